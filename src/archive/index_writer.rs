//! Writes the index of one range: pages into index chunks, and the entries that a directory will list.

use std::collections::HashMap;

use super::chunk::{BuiltChunk, ChunkBuilder, ChunkKind, FrameTable};
use super::error::{ArchiveError, Result};
use super::filter;
use super::ids::{ChunkId, ChunkRef, SessionId};
use super::index_page::{PageBuilder, Put};
use super::run::{DATA_REFS_TARGET, IndexEntry, MAX_FILTERED_RECORDS, MAX_PAGES, PageEntry};
use crate::document::DocumentKey;

/// A page ends when it is this large, in bytes, whatever its records.
const PAGE_TARGET_LEN: usize = 512 << 10;
/// Index pages compress well and are read often: worth a higher level than bodies.
const LEVEL: i32 = 3;

/// Where a record's body is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BodyChunk {
    /// In a segment that is still in the making: its number among the range's segments.
    Segment(u32),
    /// In a chunk that is stored already.
    Stored(ChunkRef),
}

/// An index chunk that is full: to be uploaded and, once its segments are stored, to be listed.
pub(crate) struct FullIndexChunk {
    pub(crate) built: BuiltChunk,
    pub(crate) entry: PendingEntry,
}

/// An entry whose data chunks are not all known yet.
#[derive(Debug)]
pub(crate) struct PendingEntry {
    pages: Vec<PageEntry>,
    data: Vec<BodyChunk>,
    body_bytes: u64,
    filter: Vec<u8>,
}

impl PendingEntry {
    /// Takes over where the pages stand in the chunk that another worker stored: the same pages, compressed otherwise.
    pub(crate) fn relocate(&mut self, found: &FrameTable) {
        for (page, row) in self.pages.iter_mut().zip(found.rows()) {
            (page.stored_len, page.stored_raw) = (row.stored_len, row.stored_raw);
        }
    }

    /// Fills in the chunks of the range's segments.
    pub(crate) fn resolve(self, chunk: ChunkRef, segments: &[Option<ChunkRef>]) -> Result<IndexEntry> {
        let resolved = |body: BodyChunk| match body {
            BodyChunk::Stored(chunk) => Some(chunk),
            BodyChunk::Segment(number) => segments.get(number as usize).copied().flatten(),
        };
        let data = self.data.into_iter().map(resolved).collect::<Option<Vec<_>>>();
        Ok(IndexEntry {
            chunk,
            pages: self.pages,
            data: data.ok_or_else(|| ArchiveError::Misuse("a segment was not stored".to_owned()))?,
            body_bytes: self.body_bytes,
            filter: self.filter,
        })
    }
}

/// Where a page begins and ends, until its frame is done.
struct PageBounds {
    first_key: DocumentKey,
    last_key: DocumentKey,
    puts: u32,
    tombstones: u32,
}

/// Collects records into pages and pages into chunks.
pub(crate) struct IndexWriter {
    page_records: u32,
    page: PageBuilder,
    plain: Vec<u8>,
    builder: ChunkBuilder,
    bounds: Vec<PageBounds>,
    data: Vec<BodyChunk>,
    segment: Option<(u32, u32)>,
    stored: HashMap<(ChunkId, SessionId), u32>,
    hashes: Vec<u64>,
    body_bytes: u64,
    records: u64,
}

impl IndexWriter {
    pub(crate) fn new(page_records: u32) -> Self {
        Self {
            page_records,
            page: PageBuilder::default(),
            plain: Vec::new(),
            builder: ChunkBuilder::new(ChunkKind::Index, LEVEL),
            bounds: Vec::new(),
            data: Vec::new(),
            segment: None,
            stored: HashMap::new(),
            hashes: Vec::new(),
            body_bytes: 0,
            records: 0,
        }
    }

    /// Whether [`IndexWriter::flush_page`] must come before the next record.
    pub(crate) fn page_is_full(&self) -> bool {
        self.page.len() >= self.page_records || self.page.byte_len() >= PAGE_TARGET_LEN
    }

    /// Appends a document; `put.chunk` is filled in here.
    pub(crate) fn put(&mut self, key: &[u8], key_hash: u64, body: BodyChunk, mut put: Put) {
        put.chunk = self.local_number(body);
        self.page.put(key, &put);
        self.body_bytes += u64::from(put.length);
        self.count(key_hash);
    }

    /// Appends a tombstone.
    pub(crate) fn tombstone(&mut self, key: &[u8], key_hash: u64) {
        self.page.tombstone(key);
        self.count(key_hash);
    }

    fn count(&mut self, key_hash: u64) {
        self.records += 1;
        if self.records <= MAX_FILTERED_RECORDS {
            self.hashes.push(key_hash);
        }
    }

    fn local_number(&mut self, body: BodyChunk) -> u32 {
        let new = self.data.len() as u32;
        let number = match body {
            BodyChunk::Segment(segment) => match self.segment {
                Some((current, number)) if current == segment => number,
                _ => {
                    self.segment = Some((segment, new));
                    new
                }
            },
            BodyChunk::Stored(chunk) => *self.stored.entry((chunk.id, chunk.session)).or_insert(new),
        };
        if number == new {
            self.data.push(body);
        }
        number
    }

    /// Ends the page, and the chunk when it is full.
    pub(crate) async fn flush_page(&mut self) -> Result<Option<FullIndexChunk>> {
        if !self.page.is_empty() {
            let (first, last, puts, tombstones) = self.page.summary();
            self.bounds.push(PageBounds {
                first_key: DocumentKey::from_bytes(first),
                last_key: DocumentKey::from_bytes(last),
                puts,
                tombstones,
            });
            self.page.finish(&mut self.plain);
            self.builder.add_frame(&mut self.plain).await?;
        }
        if self.bounds.len() >= MAX_PAGES || self.data.len() >= DATA_REFS_TARGET {
            return self.finish_chunk().await;
        }
        Ok(None)
    }

    /// Ends the chunk; `None` when it holds nothing. Pages must be flushed.
    pub(crate) async fn finish_chunk(&mut self) -> Result<Option<FullIndexChunk>> {
        if self.bounds.is_empty() {
            return Ok(None);
        }
        let built = self.builder.finish().await?;
        let pages = self
            .bounds
            .drain(..)
            .zip(built.table.rows())
            .map(|(bounds, row)| PageEntry {
                first_key: bounds.first_key,
                last_key: bounds.last_key,
                puts: bounds.puts,
                tombstones: bounds.tombstones,
                stored_len: row.stored_len,
                stored_raw: row.stored_raw,
                raw_len: row.raw_len,
                hash: row.hash,
            })
            .collect();
        let filtered = self.records <= MAX_FILTERED_RECORDS;
        let entry = PendingEntry {
            pages,
            data: std::mem::take(&mut self.data),
            body_bytes: std::mem::take(&mut self.body_bytes),
            filter: if filtered {
                filter::build(&self.hashes)
            } else {
                Vec::new()
            },
        };
        self.hashes.clear();
        self.segment = None;
        self.stored.clear();
        Ok(Some(FullIndexChunk { built, entry }))
    }
}
