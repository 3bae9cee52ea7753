//! Compaction: merges layers of a snapshot into fewer, from the archive alone, without reading the database.
//!
//! The merged snapshot reads the same and stands in for the old one, which is forgotten; what only that needed goes with the next
//! `clean`. Other snapshots keep their own stacks. Bodies stay where they are, but for those in chunks that are mostly dead: see
//! [`SparseChunks`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::info;

use crate::archive::{
    ArchiveError, Plan, ReadMode, Repository, Session, SessionOptions, Snapshot, SparseChunks, due_runs,
    merge_range,
};
use crate::clock;

/// How to compact.
#[derive(Clone, Debug)]
pub struct CompactOptions {
    /// Merge all layers; otherwise only what is due, see [`due_runs`].
    pub all: bool,
    /// Key ranges that are merged at the same time.
    pub parallel: usize,
}

impl Default for CompactOptions {
    /// What is due, four ranges at a time.
    fn default() -> Self {
        Self {
            all: false,
            parallel: 4,
        }
    }
}

/// Merges layers of a snapshot. `None` when there is nothing to merge.
///
/// # Errors
/// Whatever the reason, the snapshot stays as it is, and the repository valid.
pub async fn compact(
    repository: &Repository,
    snapshot: &Snapshot,
    options: &CompactOptions,
) -> Result<Option<Snapshot>, ArchiveError> {
    let runs = match options.all {
        true => (snapshot.runs.len() > 1).then_some(0..snapshot.runs.len()),
        false => due_runs(&snapshot.runs),
    };
    let Some(runs) = runs else { return Ok(None) };
    info!(snapshot = %snapshot.id, ?runs, layers = snapshot.runs.len(), "merging layers");
    let merged = merge(repository, snapshot, &runs, options.parallel).await?;
    let reason = format!("{} stands in for it, with fewer layers", merged.id);
    repository.forget(snapshot.id, &reason).await?;
    Ok(Some(merged))
}

async fn merge(
    repository: &Repository,
    snapshot: &Snapshot,
    runs: &Range<usize>,
    parallel: usize,
) -> Result<Snapshot, ArchiveError> {
    let reader = repository.reader(snapshot).await?;
    // As long as only some of the layers are merged, the others may need the rest of a chunk.
    let sparse = Arc::new(match *runs == (0..snapshot.runs.len()) {
        true => SparseChunks::find(&reader, &repository.snapshots().await?).await?,
        false => SparseChunks::default(),
    });
    if !sparse.is_empty() {
        info!(
            chunks = sparse.len(),
            "copying what is left in mostly dead chunks"
        );
    }
    let boundaries = reader.chunk_boundaries(runs, 2 * parallel).await?;
    let selected = snapshot.selection.key_ranges();
    let ranges = selected
        .iter()
        .flat_map(|range| range.cut_at(&boundaries))
        .collect();
    let plan = Plan {
        kind: snapshot.kind,
        database: snapshot.database.clone(),
        database_uid: snapshot.database_uid.clone(),
        read_time: snapshot.read_time,
        started_at: clock::now(),
        selection: snapshot.selection.clone(),
        parent: None,
        merges: Some(snapshot.id),
        read: ReadMode::default(),
        ranges,
        extra: BTreeMap::new(),
    };
    let options = SessionOptions {
        pins: vec![snapshot.id],
        ..SessionOptions::new(plan)
    };
    let session = Arc::new(Session::begin(repository, options).await?);
    let mut running = JoinSet::new();
    for range in session.plan().ranges.clone() {
        while running.len() >= parallel.max(1) {
            if let Some(merged) = running.join_next().await {
                merged??;
            }
        }
        let (reader, runs, sparse) = (reader.clone(), runs.clone(), Arc::clone(&sparse));
        let writer = session.exact_range_writer(range);
        running.spawn(async move { merge_range(&reader, &runs, &sparse, writer).await.map(drop) });
    }
    while let Some(merged) = running.join_next().await {
        merged??;
    }
    session.commit_compaction(snapshot, runs.clone()).await
}
