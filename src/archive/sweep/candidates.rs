//! The chunks and run roots that exist, less what turns out to be needed: what is left at the end may go.

use std::collections::HashMap;

use futures::TryStreamExt;

use crate::archive::error::Result;
use crate::archive::ids::{
    ChunkId, ChunkRef, RunId, SessionId, chunk_name, parse_chunk_name, parse_run_name, run_name,
};
use crate::store::Store;

/// Objects by the parts of their names, with their sizes: some 60 bytes each, whatever the repository holds.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    runs: HashMap<(RunId, SessionId), u64>,
    chunks: HashMap<(ChunkId, SessionId), u64>,
    /// Objects and bytes of those that are needed.
    kept: (u64, u64),
}

impl Candidates {
    /// All that exist now. Files with other names are none of ours, and stay.
    pub(super) async fn list(store: &Store) -> Result<Self> {
        let mut candidates = Self::default();
        let mut objects = store.list("chunks");
        while let Some(object) = objects.try_next().await? {
            match parse_chunk_name(&object.name) {
                Some(chunk) => drop(candidates.chunks.insert(chunk, object.size)),
                None => tracing::info!("`{}` is no chunk and stays", object.name),
            }
        }
        let mut objects = store.list("runs");
        while let Some(object) = objects.try_next().await? {
            match parse_run_name(&object.name) {
                Some(run) => drop(candidates.runs.insert(run, object.size)),
                None => tracing::info!("`{}` is no run and stays", object.name),
            }
        }
        Ok(candidates)
    }

    fn keep(&mut self, size: Option<u64>) {
        if let Some(size) = size {
            self.kept.0 += 1;
            self.kept.1 += size;
        }
    }

    pub(super) fn keep_chunk(&mut self, chunk: &ChunkRef) {
        let size = self.chunks.remove(&(chunk.id, chunk.session));
        self.keep(size);
    }

    pub(super) fn keep_run(&mut self, id: RunId, session: SessionId) {
        let size = self.runs.remove(&(id, session));
        self.keep(size);
    }

    /// Keeps an object by its name, whatever it is.
    pub(super) fn keep_name(&mut self, name: &str) {
        if let Some(chunk) = parse_chunk_name(name) {
            let size = self.chunks.remove(&chunk);
            self.keep(size);
        } else if let Some(run) = parse_run_name(name) {
            let size = self.runs.remove(&run);
            self.keep(size);
        }
    }

    /// Keeps all that a session wrote.
    pub(super) fn keep_session(&mut self, session: SessionId) {
        let kept = &mut self.kept;
        let mut other = |writer: SessionId, size: u64| {
            if writer == session {
                kept.0 += 1;
                kept.1 += size;
            }
            writer != session
        };
        self.runs.retain(|(_, writer), size| other(*writer, *size));
        self.chunks.retain(|(_, writer), size| other(*writer, *size));
    }

    /// Whether nothing that a session wrote is left to be deleted.
    pub(super) fn writers(&self) -> std::collections::HashSet<SessionId> {
        let runs = self.runs.keys().map(|(_, session)| *session);
        runs.chain(self.chunks.keys().map(|(_, session)| *session))
            .collect()
    }

    /// Objects and bytes that stay.
    pub(super) fn kept(&self) -> (u64, u64) {
        self.kept
    }

    /// Objects and bytes that may go.
    pub(super) fn left(&self) -> (u64, u64) {
        let objects = self.runs.len() + self.chunks.len();
        let bytes = self.runs.values().sum::<u64>() + self.chunks.values().sum::<u64>();
        (objects as u64, bytes)
    }

    pub(super) fn run_names(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.runs
            .iter()
            .map(|((id, session), size)| (run_name(*id, *session), *size))
    }

    pub(super) fn chunk_names(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.chunks
            .iter()
            .map(|((id, session), size)| (chunk_name(id, *session), *size))
    }
}
