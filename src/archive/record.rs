//! Merged records in batches: what a snapshot says of its documents, without their bodies.

use std::ops::Range;

use super::error::Result;
use super::ids::ChunkRef;
use super::index_page::Put;
use crate::document::{DocumentPath, PathError, Timestamp};

/// Records in ascending order of their keys.
#[derive(Clone, Debug, Default)]
pub struct RecordBatch {
    keys: Vec<u8>,
    chunks: Vec<ChunkRef>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key_end: usize,
    /// The chunk's number is that of the batch's list; `None` for a tombstone.
    put: Option<Put>,
}

/// Where a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLocation {
    /// The data chunk.
    pub chunk: ChunkRef,
    /// Where the body starts in the chunk's plaintext.
    pub offset: u32,
    /// The body's length in bytes.
    pub length: u32,
}

/// One record of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecordRef<'a> {
    /// The document's key.
    pub key: &'a [u8],
    /// When the server says it was created; zero for a tombstone.
    pub create_time: Timestamp,
    /// When the server says it was last changed; zero for a tombstone.
    pub update_time: Timestamp,
    /// The hash of its body: see [`Repository::body_hash`](super::Repository::body_hash).
    pub body_hash: u64,
    /// Where its body is; `None` for a tombstone, which only a merge that keeps them gives.
    pub body: Option<BodyLocation>,
}

/// What tells whether a document is the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordHead<'a> {
    pub(crate) key: &'a [u8],
    /// When it was created, and when it was last changed.
    pub(crate) times: (Timestamp, Timestamp),
    /// Bytes of its body.
    pub(crate) length: u32,
}

impl RecordRef<'_> {
    /// The document's path.
    pub fn path(&self) -> Result<DocumentPath, PathError> {
        DocumentPath::from_key(self.key)
    }

    /// The body's length in bytes, zero for a tombstone.
    pub fn length(&self) -> u32 {
        self.body.map_or(0, |body| body.length)
    }
}

impl RecordBatch {
    pub(crate) fn push_put(&mut self, key: &[u8], put: Option<Put>) {
        self.keys.extend_from_slice(key);
        self.entries.push(Entry {
            key_end: self.keys.len(),
            put,
        });
    }

    /// Makes room for so many more records, and so many bytes of keys.
    pub(crate) fn reserve(&mut self, records: usize, key_bytes: usize) {
        self.entries.reserve(records);
        self.keys.reserve(key_bytes);
    }

    /// Appends a copy of a record, whose key must come after the last one's.
    pub fn push(&mut self, record: RecordRef<'_>) {
        let put = record.body.map(|body| Put {
            create_time: record.create_time,
            update_time: record.update_time,
            body_hash: record.body_hash,
            // Neighbours are often in the same chunk.
            chunk: match self.chunks.last() {
                Some(last) if *last == body.chunk => self.chunks.len() as u32 - 1,
                _ => self.add_chunk(body.chunk),
            },
            offset: body.offset,
            length: body.length,
        });
        self.push_put(record.key, put);
    }

    /// Lists a chunk and says its number in this batch.
    pub(crate) fn add_chunk(&mut self, chunk: ChunkRef) -> u32 {
        self.chunks.push(chunk);
        self.chunks.len() as u32 - 1
    }

    /// Empties the batch and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.keys.clear();
        self.chunks.clear();
        self.entries.clear();
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys held.
    pub fn key_bytes(&self) -> usize {
        self.keys.len()
    }

    /// The record at `index`, `None` past the end.
    pub fn get(&self, index: usize) -> Option<RecordRef<'_>> {
        let entry = self.entries.get(index)?;
        let start = index
            .checked_sub(1)
            .map_or(0, |before| self.entries[before].key_end);
        Some(self.record(entry, start..entry.key_end))
    }

    /// What tells whether a document is the same, by its times: its key, when it was created and changed, and how long its
    /// body is. `None` past the end, and for a tombstone.
    #[inline]
    pub(crate) fn head(&self, index: usize) -> Option<RecordHead<'_>> {
        let Entry { key_end, put } = self.entries.get(index)?;
        let put = put.as_ref()?;
        let start = match index.checked_sub(1) {
            Some(before) => self.entries[before].key_end,
            None => 0,
        };
        Some(RecordHead {
            key: &self.keys[start..*key_end],
            times: (put.create_time, put.update_time),
            length: put.length,
        })
    }

    /// The records in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordRef<'_>> {
        let mut start = 0;
        self.entries.iter().map(move |entry| {
            let key = std::mem::replace(&mut start, entry.key_end)..entry.key_end;
            self.record(entry, key)
        })
    }

    fn record(&self, entry: &Entry, key: Range<usize>) -> RecordRef<'_> {
        let put = entry.put.unwrap_or_default();
        RecordRef {
            key: &self.keys[key],
            create_time: put.create_time,
            update_time: put.update_time,
            body_hash: put.body_hash,
            body: entry.put.map(|put| BodyLocation {
                chunk: self.chunks[put.chunk as usize],
                offset: put.offset,
                length: put.length,
            }),
        }
    }
}
