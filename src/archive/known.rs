//! What is stored already: the chunks that a session need not write because its pins reach them.

use std::collections::HashMap;

use futures::TryStreamExt;

use super::error::{ArchiveError, DamageKind, Result};
use super::ids::{ChunkId, ChunkRef, SessionId, SnapshotId};
use super::repository::Repository;
use super::snapshot::Decision;

/// A stored chunk, in 48 bytes with its id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    session: SessionId,
    pub(super) raw_len: u32,
    stored_len: u32,
}

/// The chunks in the runs of the pinned snapshots. Of one that is damaged none is reused: it is not known which are left.
pub(super) async fn known_chunks(
    repository: &Repository,
    pins: &[SnapshotId],
) -> Result<HashMap<ChunkId, Known>> {
    let mut known = HashMap::new();
    for &pin in pins {
        match chunks_of(repository, pin).await {
            Ok(chunks) => known.extend(chunks),
            Err(error) => {
                let damage = error.into_damage()?;
                tracing::warn!("nothing is reused from snapshot {pin}, which is damaged: {damage}");
            }
        }
    }
    Ok(known)
}

async fn chunks_of(repository: &Repository, pin: SnapshotId) -> Result<HashMap<ChunkId, Known>> {
    let Some(Decision::Committed(snapshot)) = repository.decision(pin).await? else {
        // The pin was checked before the plan was made; it can only be gone because the session was given up and swept.
        return Err(ArchiveError::damaged(
            pin.snapshot_name(),
            DamageKind::Missing,
            "a running session builds upon it, and it is gone",
        ));
    };
    let mut known = HashMap::new();
    let reader = repository.reader(&snapshot).await?;
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
