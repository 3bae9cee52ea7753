//! The run: a sorted set of records and everything that it takes to find them.
//!
//! A run is paged too, so that a terabyte does not mean one huge object: a small root lists directory blocks, a block lists
//! index chunks, an index chunk's entry lists its pages and the data chunks that its records point into. Everything that a
//! run needs is found by root → blocks → entries, which is what a sweep follows.
//!
//! An entry knows where each page stands in its chunk and what it hashes to, so a page is one ranged get, verified. Because the
//! numbers of data chunks are local to the index chunk and everything else about it is in its entry, a compaction keeps an index
//! chunk by copying its entry.

use serde::{Deserialize, Serialize};

use super::chunk::{ChunkKind, FrameRow, MAX_FRAME_LEN, chunk_id, header_len};
use super::error::{ArchiveError, DamageKind, Result};
use super::filter;
use super::ids::ChunkRef;
use super::sealed;
use crate::document::DocumentKey;

/// The most bytes of plaintext that a data chunk has.
pub const MAX_CHUNK_RAW_LEN: u64 = 512 << 20;
/// The most index chunks of a directory block.
pub const MAX_BLOCK_ENTRIES: usize = 64;
/// A block ends when its entries are about this large, in bytes.
pub(crate) const BLOCK_TARGET_LEN: usize = 1 << 20;
/// The most pages of an index chunk.
pub const MAX_PAGES: usize = 16;
/// An index chunk ends when it points into this many data chunks.
pub(crate) const DATA_REFS_TARGET: usize = 4096;
/// The most records of a run that still has filters: above it a look-up most likely finds what it looks for.
pub const MAX_FILTERED_RECORDS: u64 = 1 << 20;

/// One page of an index chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageEntry {
    /// The first record's key.
    pub first_key: DocumentKey,
    /// The last record's key.
    pub last_key: DocumentKey,
    /// Documents.
    pub puts: u32,
    /// Tombstones.
    pub tombstones: u32,
    /// Bytes of the frame in the object.
    pub stored_len: u32,
    /// Whether the frame is stored as it is.
    pub stored_raw: bool,
    /// Bytes of the page.
    pub raw_len: u32,
    /// BLAKE3 of the page.
    #[serde(with = "serde_bytes")]
    pub hash: [u8; 32],
}

impl PageEntry {
    /// The page's row in the chunk's frame table.
    pub fn row(&self) -> FrameRow {
        FrameRow {
            stored_len: self.stored_len,
            stored_raw: self.stored_raw,
            raw_len: self.raw_len,
            hash: self.hash,
        }
    }
}

/// One index chunk of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// The chunk.
    pub chunk: ChunkRef,
    /// Its pages, ascending.
    pub pages: Vec<PageEntry>,
    /// The data chunks that its records point into, by their local numbers.
    pub data: Vec<ChunkRef>,
    /// Bytes of the bodies of its documents.
    pub body_bytes: u64,
    /// The filter of its keys; empty where the run has none.
    #[serde(with = "serde_bytes")]
    pub filter: Vec<u8>,
}

impl IndexEntry {
    /// The first record's key.
    pub fn first_key(&self) -> &[u8] {
        self.pages.first().map_or(&[], |page| page.first_key.as_bytes())
    }

    /// The last record's key.
    pub fn last_key(&self) -> &[u8] {
        self.pages.last().map_or(&[], |page| page.last_key.as_bytes())
    }

    /// Documents in the chunk.
    pub fn puts(&self) -> u64 {
        self.pages.iter().map(|page| u64::from(page.puts)).sum()
    }

    /// Tombstones in the chunk.
    pub fn tombstones(&self) -> u64 {
        self.pages.iter().map(|page| u64::from(page.tombstones)).sum()
    }

    /// Where a page's bytes are in the object.
    pub fn stored_range(&self, page: usize) -> std::ops::Range<u64> {
        let before: u64 = self.pages[..page]
            .iter()
            .map(|page| u64::from(page.stored_len))
            .sum();
        let start = header_len(self.pages.len()) + before;
        start..start + u64::from(self.pages[page].stored_len)
    }

    /// Whether the chunk may hold a record with this key.
    pub fn may_contain(&self, key: &[u8], key_hash: u64) -> bool {
        self.first_key() <= key && key <= self.last_key() && filter::may_contain(&self.filter, key_hash)
    }

    /// Roughly the bytes that the entry takes in a block.
    pub(crate) fn weight(&self) -> usize {
        let keys = |page: &PageEntry| page.first_key.as_bytes().len() + page.last_key.as_bytes().len();
        self.pages.iter().map(|page| 64 + keys(page)).sum::<usize>()
            + self.data.len() * 56
            + self.filter.len()
    }

    fn check(&self, object: &str) -> Result<()> {
        let name = self.chunk.name();
        let wrong = |what: &str| {
            Err(ArchiveError::damaged(
                object,
                DamageKind::Inconsistent,
                format!("its entry of `{name}` {what}"),
            ))
        };
        if self.pages.is_empty() || self.pages.len() > MAX_PAGES {
            return wrong("has an impossible number of pages");
        }
        let id = chunk_id(
            ChunkKind::Index,
            self.pages.iter().map(|page| u64::from(page.raw_len)).sum(),
            self.pages.iter().map(|page| page.hash),
        );
        let stored: u64 = self.pages.iter().map(|page| u64::from(page.stored_len)).sum();
        if id != self.chunk.id || header_len(self.pages.len()) + stored != self.chunk.stored_len {
            return wrong("lists other pages than the chunk's name promises");
        }
        if self
            .pages
            .iter()
            .any(|page| page.raw_len > MAX_FRAME_LEN || page.stored_len > page.raw_len)
        {
            return wrong("has a page of an impossible size");
        }
        let ascends = self.pages.iter().all(|page| page.first_key <= page.last_key)
            && self
                .pages
                .windows(2)
                .all(|pair| pair[0].last_key < pair[1].first_key);
        if !ascends {
            return wrong("does not ascend");
        }
        if self.data.iter().any(|data| data.raw_len > MAX_CHUNK_RAW_LEN) {
            return wrong("points into a data chunk of an impossible size");
        }
        Ok(())
    }
}

/// A directory block: index chunks that follow each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectoryBlock {
    /// The index chunks, ascending.
    pub entries: Vec<IndexEntry>,
}

impl DirectoryBlock {
    /// Writes the block's plaintext: the one frame of its chunk.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        sealed::pack(self)
    }

    /// Reads a block's plaintext and checks all that can be checked without the root.
    pub(crate) fn decode(object: &str, plain: &[u8]) -> Result<Self> {
        let block: Self = sealed::unpack(object, plain)?;
        if block.entries.is_empty() || block.entries.len() > MAX_BLOCK_ENTRIES {
            return Err(ArchiveError::damaged(
                object,
                DamageKind::Malformed,
                "it lists an impossible number of index chunks",
            ));
        }
        for entry in &block.entries {
            entry.check(object)?;
        }
        if !block
            .entries
            .windows(2)
            .all(|pair| pair[0].last_key() < pair[1].first_key())
        {
            return Err(ArchiveError::damaged(
                object,
                DamageKind::Inconsistent,
                "its index chunks do not ascend",
            ));
        }
        Ok(block)
    }

    /// What the root says of the block.
    pub(crate) fn summary(&self, chunk: ChunkRef) -> BlockEntry {
        let first = self.entries.first().map_or(&[][..], IndexEntry::first_key);
        let last = self.entries.last().map_or(&[][..], IndexEntry::last_key);
        BlockEntry {
            chunk,
            first_key: DocumentKey::from_bytes(first),
            last_key: DocumentKey::from_bytes(last),
            index_chunks: self.entries.len() as u32,
            puts: self.entries.iter().map(IndexEntry::puts).sum(),
            tombstones: self.entries.iter().map(IndexEntry::tombstones).sum(),
            body_bytes: self.entries.iter().map(|entry| entry.body_bytes).sum(),
        }
    }
}

/// One directory block of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockEntry {
    /// The chunk that holds the block.
    pub chunk: ChunkRef,
    /// The first record's key.
    pub first_key: DocumentKey,
    /// The last record's key.
    pub last_key: DocumentKey,
    /// Index chunks in the block.
    pub index_chunks: u32,
    /// Documents below the block.
    pub puts: u64,
    /// Tombstones below the block.
    pub tombstones: u64,
    /// Bytes of the bodies below the block.
    pub body_bytes: u64,
}

/// The root of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunRoot {
    /// The directory blocks, ascending.
    pub blocks: Vec<BlockEntry>,
}

impl RunRoot {
    /// Documents in the run.
    pub fn puts(&self) -> u64 {
        self.blocks.iter().map(|block| block.puts).sum()
    }

    /// Tombstones in the run.
    pub fn tombstones(&self) -> u64 {
        self.blocks.iter().map(|block| block.tombstones).sum()
    }

    /// Bytes of the bodies in the run.
    pub fn body_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.body_bytes).sum()
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        sealed::encode(sealed::SealedKind::RunRoot, self)
    }

    pub(crate) fn decode(object: &str, bytes: &[u8]) -> Result<Self> {
        let root: Self = sealed::decode(object, sealed::SealedKind::RunRoot, bytes)?;
        let ascends = root.blocks.iter().all(|block| block.first_key <= block.last_key)
            && root
                .blocks
                .windows(2)
                .all(|pair| pair[0].last_key < pair[1].first_key);
        // Sums must not overflow later on: no real run comes near.
        let possible = root.blocks.iter().all(|block| {
            block.puts.max(block.tombstones) < 1 << 40
                && block.body_bytes < 1 << 60
                && block.chunk.raw_len <= u64::from(MAX_FRAME_LEN)
                && block.chunk.stored_len <= header_len(1) + u64::from(MAX_FRAME_LEN)
        });
        if !ascends || !possible || root.blocks.len() > 1 << 20 {
            return Err(ArchiveError::damaged(
                object,
                DamageKind::Inconsistent,
                "its directory blocks do not ascend, or are impossibly large",
            ));
        }
        Ok(root)
    }
}
