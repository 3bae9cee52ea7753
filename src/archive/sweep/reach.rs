//! What a snapshot reaches: its runs, their directories, index chunks and data chunks.

use std::collections::HashSet;

use futures::StreamExt;

use super::candidates::Candidates;
use crate::archive::error::{ArchiveError, Result};
use crate::archive::forget::is_missing;
use crate::archive::ids::{ChunkId, RunId, SessionId, SnapshotId};
use crate::archive::reader::Blocks;
use crate::archive::repository::Repository;
use crate::archive::run::{BlockEntry, IndexEntry, RunRoot};
use crate::archive::snapshot::{RunRef, Snapshot};

/// Directory blocks that are fetched at a time.
const PARALLEL: usize = 8;

/// Takes what snapshots reach out of the candidates. Runs and blocks that many snapshots share are read once.
pub(super) struct Reach<'a> {
    repository: &'a Repository,
    blocks: Blocks,
    pub(super) candidates: Candidates,
    /// Only those that were followed to the end.
    runs: HashSet<(RunId, SessionId)>,
    read_blocks: HashSet<ChunkId>,
}

impl<'a> Reach<'a> {
    pub(super) fn new(repository: &'a Repository, candidates: Candidates) -> Self {
        Self {
            repository,
            blocks: Blocks::new(repository.store().clone()),
            candidates,
            runs: HashSet::new(),
            read_blocks: HashSet::new(),
        }
    }

    /// Keeps all that the snapshot needs.
    ///
    /// An object that is missing stops it, unless the snapshot was forgotten: then another sweep has begun to delete it, which
    /// happens only when nobody who saw it stand relies on it, and what is still reached is kept.
    pub(super) async fn mark(&mut self, snapshot: &Snapshot) -> Result<()> {
        for name in &snapshot.refs {
            self.candidates.keep_name(name);
        }
        for run in &snapshot.runs {
            if run.root.is_none() {
                self.candidates.keep_run(run.id, run.session);
            }
            if self.runs.contains(&(run.id, run.session)) {
                continue;
            }
            let whole = match self.root(run).await {
                Ok(root) => self.mark_run(snapshot.id, &root).await?,
                Err(error) => {
                    self.missing(snapshot.id, error).await?;
                    false
                }
            };
            if whole {
                self.runs.insert((run.id, run.session));
            }
        }
        Ok(())
    }

    async fn root(&self, run: &RunRef) -> Result<RunRoot> {
        let store = self.repository.store();
        let stored = match &run.root {
            Some(_) => None,
            None => Some(store.get_range(&run.name(), 0..run.root_len).await?),
        };
        run.open(stored.as_deref())
    }

    /// Whether all of the run was there.
    async fn mark_run(&mut self, snapshot: SnapshotId, root: &RunRoot) -> Result<bool> {
        let mut unread: Vec<BlockEntry> = Vec::new();
        for block in &root.blocks {
            self.candidates.keep_chunk(&block.chunk);
            if !self.read_blocks.contains(&block.chunk.id) {
                unread.push(block.clone());
            }
        }
        let mut whole = true;
        let blocks = self.blocks.clone();
        let mut loads = futures::stream::iter(unread)
            .map(|listed| {
                let blocks = blocks.clone();
                async move { (listed.chunk.id, blocks.load(&listed).await) }
            })
            .buffer_unordered(PARALLEL);
        while let Some((id, block)) = loads.next().await {
            match block {
                Ok(block) => {
                    for entry in &block.entries {
                        self.mark_entry(entry);
                    }
                    self.read_blocks.insert(id);
                }
                Err(error) => {
                    self.missing(snapshot, error).await?;
                    whole = false;
                }
            }
        }
        Ok(whole)
    }

    fn mark_entry(&mut self, entry: &IndexEntry) {
        for chunk in entry.data.iter().chain([&entry.chunk]) {
            self.candidates.keep_chunk(chunk);
        }
    }

    /// Passes over an object that is missing because its snapshot was forgotten.
    async fn missing(&self, snapshot: SnapshotId, error: ArchiveError) -> Result<()> {
        if is_missing(&error) && self.repository.why_fallen(snapshot).await?.is_some() {
            tracing::debug!(%snapshot, "another sweep has begun to delete it: {error}");
            return Ok(());
        }
        Err(error)
    }
}
