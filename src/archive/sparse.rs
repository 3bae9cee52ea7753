//! Data chunks of which little is needed any more, so that a compaction copies that out and leaves them behind.
//!
//! A merge rewrites names and lets bodies stay where they are, so a chunk lives as long as one body in it does: after a year
//! of nights that change scattered documents nearly every chunk would be kept for a few of its bodies. A compaction of all
//! layers therefore copies the bodies out of chunks that are less than half live. Each body is copied at most once for
//! every time that half of its neighbours change.
//!
//! Not where nothing would be gained: a chunk stays at least as long as the snapshot of the session that wrote it stands,
//! which needs all of it. Who keeps every snapshot never has a body copied.

use std::collections::{HashMap, HashSet};
use std::pin::pin;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use super::error::{ArchiveError, Result, show_key};
use super::ids::{ChunkId, ChunkRef, SessionId};
use super::reader::SnapshotReader;
use super::record::RecordBatch;
use super::repository::SnapshotListing;
use crate::document::{DocumentBatch, DocumentRef, KeyRange};

/// Chunks to be left behind.
#[derive(Clone, Debug, Default)]
pub struct SparseChunks(HashSet<(ChunkId, SessionId)>);

impl SparseChunks {
    /// The chunks of a snapshot that are less than half live in it and that no other snapshot needs all of. Reads the
    /// snapshot's directories, and its index only where there is a chunk that may be one.
    ///
    /// Holds an entry for every chunk that may be one.
    pub async fn find(reader: &SnapshotReader, listing: &SnapshotListing) -> Result<Self> {
        if !listing.unreadable.is_empty() {
            // What those need is not known.
            return Ok(Self::default());
        }
        let standing: HashSet<SessionId> = listing
            .snapshots
            .iter()
            .flat_map(|snapshot| [Some(snapshot.id), snapshot.replaces])
            .flatten()
            .collect();
        let mut live: HashMap<(ChunkId, SessionId), (u64, u64)> = HashMap::new();
        let mut blocks = pin!(reader.blocks());
        while let Some(block) = blocks.try_next().await? {
            for chunk in block.entries.iter().flat_map(|entry| &entry.data) {
                if !standing.contains(&chunk.session) {
                    live.insert((chunk.id, chunk.session), (0, chunk.raw_len));
                }
            }
        }
        if live.is_empty() {
            return Ok(Self::default());
        }
        let mut records = pin!(reader.records_with_tombstones(KeyRange::all()));
        while let Some(batch) = records.try_next().await? {
            for body in batch.iter().filter_map(|record| record.body) {
                if let Some((live, _)) = live.get_mut(&(body.chunk.id, body.chunk.session)) {
                    *live += u64::from(body.length);
                }
            }
        }
        live.retain(|_, (live, raw_len)| 2 * *live < *raw_len);
        Ok(Self(live.into_keys().collect()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, chunk: &ChunkRef) -> bool {
        // Most compactions have none.
        !self.0.is_empty() && self.0.contains(&(chunk.id, chunk.session))
    }

    /// The documents of a batch whose bodies lie in one of them.
    pub(super) fn copies(&self, reader: &SnapshotReader, batch: &RecordBatch) -> Copies {
        let mut chosen = RecordBatch::default();
        for record in batch.iter() {
            if record.body.is_some_and(|body| self.contains(&body.chunk)) {
                chosen.push(record);
            }
        }
        let batches = match chosen.is_empty() {
            true => stream::empty().boxed(),
            false => reader.bodies(stream::iter([Ok(chosen)])).boxed(),
        };
        Copies {
            batches,
            batch: DocumentBatch::default(),
            next: 0,
        }
    }
}

/// Documents that are read to be written again, in the order of their records.
pub(super) struct Copies {
    batches: BoxStream<'static, Result<DocumentBatch>>,
    batch: DocumentBatch,
    next: usize,
}

impl Copies {
    /// The next one, which must be that of `key`.
    pub(super) async fn next(&mut self, key: &[u8]) -> Result<DocumentRef<'_>> {
        while self.next >= self.batch.len() {
            let Some(batch) = self.batches.try_next().await? else {
                break;
            };
            (self.batch, self.next) = (batch, 0);
        }
        let document = self.batch.get(self.next).filter(|document| document.key == key);
        self.next += 1;
        document.ok_or_else(|| {
            ArchiveError::Misuse(format!("the body of {} was not read for its copy", show_key(key)))
        })
    }
}
