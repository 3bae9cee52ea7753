//! What is stored already: the chunks that a session need not write because its pins reach them.

use std::collections::HashMap;

use futures::TryStreamExt;

use super::error::{ArchiveError, DamageKind, Result};
use super::ids::{ChunkId, ChunkRef, SessionId, SnapshotId, parse_chunk_name};
use super::repository::Repository;
use super::snapshot::{Decision, Snapshot};
use crate::store::Store;

/// A stored chunk, in 48 bytes with its id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    session: SessionId,
    pub(super) raw_len: u32,
    stored_len: u32,
}

/// The chunks in the runs of the pinned snapshots that are there, with the length that they should have: a chunk that is
/// missing or cut short is stored again by the next backup that needs it. Of a snapshot whose directories are damaged none
/// is reused: it is not known which are left. Where two snapshots have the same chunk under two names, the newer one's is
/// taken: the older one may be why it was stored again.
pub(super) async fn known_chunks(
    repository: &Repository,
    pins: &[SnapshotId],
) -> Result<HashMap<ChunkId, Known>> {
    let mut snapshots = Vec::with_capacity(pins.len());
    for &pin in pins {
        match repository.pinned_snapshot(pin).await {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(error) => warn_of_damage(pin, error)?,
        }
    }
    snapshots.sort_by_key(|snapshot| snapshot.finished_at);
    let mut known = HashMap::new();
    for snapshot in snapshots {
        match chunks_of(repository, &snapshot).await {
            Ok(chunks) => known.extend(chunks),
            Err(error) => warn_of_damage(snapshot.id, error)?,
        }
    }
    if known.is_empty() {
        return Ok(known);
    }
    let listed = known.len();
    let known = present(repository.store(), &known).await?;
    if known.len() < listed {
        tracing::warn!(
            "{} of {listed} stored chunks are missing or have another length, and are stored again where they are needed",
            listed - known.len()
        );
    }
    Ok(known)
}

fn warn_of_damage(pin: SnapshotId, error: ArchiveError) -> Result<()> {
    let damage = error.into_damage()?;
    tracing::warn!("nothing is reused from snapshot {pin}, which is damaged: {damage}");
    Ok(())
}

impl Repository {
    /// A snapshot that a session with a plan has pinned: it is there as long as the session is undecided, forgotten or not.
    pub(crate) async fn pinned_snapshot(&self, pin: SnapshotId) -> Result<Snapshot> {
        match self.decision(pin).await? {
            Some(Decision::Committed(snapshot)) => Ok(*snapshot),
            // The pin was checked before the plan was made; it can only be gone because the session was given up and swept.
            _ => Err(ArchiveError::damaged(
                pin.snapshot_name(),
                DamageKind::Missing,
                "a running session builds upon it, and it is gone",
            )),
        }
    }
}

async fn chunks_of(repository: &Repository, snapshot: &Snapshot) -> Result<HashMap<ChunkId, Known>> {
    let mut known = HashMap::new();
    let reader = repository.reader(snapshot).await?;
    let mut blocks = std::pin::pin!(reader.blocks());
    while let Some(block) = blocks.try_next().await? {
        for chunk in block
            .entries
            .iter()
            .flat_map(|entry| entry.data.iter().chain([&entry.chunk]))
        {
            if let Some(entry) = Known::new(chunk) {
                known.entry(chunk.id).or_insert(entry);
            }
        }
    }
    Ok(known)
}

/// Those that a listing has too.
async fn present(store: &Store, known: &HashMap<ChunkId, Known>) -> Result<HashMap<ChunkId, Known>> {
    let mut present = HashMap::with_capacity(known.len());
    let mut objects = store.list("chunks");
    while let Some(object) = objects.try_next().await? {
        let Some((id, session)) = parse_chunk_name(&object.name) else {
            continue;
        };
        let same = |known: &&Known| known.session == session && u64::from(known.stored_len) == object.size;
        if let Some(entry) = known.get(&id).filter(same) {
            present.insert(id, *entry);
        }
    }
    Ok(present)
}

impl Known {
    pub(super) fn new(chunk: &ChunkRef) -> Option<Self> {
        Some(Self {
            session: chunk.session,
            raw_len: u32::try_from(chunk.raw_len).ok()?,
            stored_len: u32::try_from(chunk.stored_len).ok()?,
        })
    }

    pub(super) fn chunk(self, id: ChunkId) -> ChunkRef {
        ChunkRef {
            id,
            session: self.session,
            raw_len: u64::from(self.raw_len),
            stored_len: u64::from(self.stored_len),
        }
    }
}
