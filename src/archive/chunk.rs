//! The chunk: the container of everything bulky, in frames that can be fetched and verified one by one.
//!
//! The frame table stands at the front. Each frame is hashed (BLAKE3 of its plaintext) and compressed by itself, and **the
//! chunk's id is the BLAKE3 hash over the frame hashes**, not over the plaintext. That keeps "same plaintext, same id"
//! because frames are fixed slices of it, costs one hashing pass, and lets a reader that fetches a single frame verify it
//! against the id that the index gave: table against id, frame against table.
//!
//! [`ChunkBuilder`] compresses each frame on a blocking thread as it fills, one in flight where others write beside it, so a
//! chunk in the making costs its compressed size and its owner's task never computes for long.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use tokio::task::JoinHandle;
use zstd::bulk::{Compressor, Decompressor};

use super::error::{ArchiveError, DamageKind, Result};
use super::ids::ChunkId;

const MAGIC: &[u8; 8] = b"FIREBANK";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 32;
const ROW_LEN: usize = 40;
const CHECKSUM_LEN: usize = 16;
const STORED_RAW: u32 = 1 << 31;
const ID_DOMAIN: &[u8] = b"firebank chunk id v1\0";

/// The largest frame of an index or directory chunk, in bytes of plaintext.
pub(crate) const MAX_FRAME_LEN: u32 = 16 << 20;
/// The most frames that a chunk has.
pub(crate) const MAX_FRAMES: usize = 1 << 16;

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChunkKind {
    /// Document bodies, one after the other, in frames of fixed length.
    Data = 1,
    /// Pages of index records, one a frame.
    Index = 2,
    /// A directory block of a run, in one frame.
    Directory = 3,
    /// Bytes that belong to a snapshot and are no documents: see [`attachment`](super::attachment()).
    Attachment = 4,
}

/// Where a frame stands in its chunk, and what it must hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRow {
    /// Bytes of the frame in the object.
    pub stored_len: u32,
    /// Whether those bytes are the plaintext itself, because compression did not make it smaller.
    pub stored_raw: bool,
    /// Bytes of plaintext.
    pub raw_len: u32,
    /// BLAKE3 of the plaintext.
    pub hash: [u8; 32],
}

/// The bytes before the first frame.
pub fn header_len(frames: usize) -> u64 {
    (HEADER_LEN + frames * ROW_LEN + CHECKSUM_LEN) as u64
}

/// The id of a chunk with these frames.
pub fn chunk_id(kind: ChunkKind, raw_len: u64, frames: impl Iterator<Item = [u8; 32]>) -> ChunkId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(ID_DOMAIN);
    hasher.update(&[kind as u8]);
    hasher.update(&raw_len.to_le_bytes());
    for hash in frames {
        hasher.update(&hash);
    }
    ChunkId::from_bytes(*hasher.finalize().as_bytes())
}

/// A chunk's header: the frames in order.
#[derive(Clone, Debug, PartialEq)]
pub struct FrameTable {
    /// What the chunk holds.
    pub kind: ChunkKind,
    /// Bytes of plaintext, all frames together.
    pub raw_len: u64,
    rows: Vec<FrameRow>,
    /// Where each frame starts in the object; one more for the end.
    offsets: Vec<u64>,
}

impl FrameTable {
    /// Builds the table of these frames.
    pub fn new(kind: ChunkKind, rows: Vec<FrameRow>) -> Self {
        let mut offsets = Vec::with_capacity(rows.len() + 1);
        let mut offset = header_len(rows.len());
        offsets.push(offset);
        for row in &rows {
            offset += u64::from(row.stored_len);
            offsets.push(offset);
        }
        Self {
            kind,
            raw_len: rows.iter().map(|row| u64::from(row.raw_len)).sum(),
            rows,
            offsets,
        }
    }

    /// Reads the table at the front of `bytes`, which may go on after it, and holds it against the chunk's id.
    ///
    /// `object` is what messages call the chunk. A table that passes is the one that was written: its hashes by the id,
    /// its lengths by its checksum.
    pub fn parse(object: &str, kind: ChunkKind, id: &ChunkId, bytes: &[u8]) -> Result<Self> {
        let malformed = |what: &str| ArchiveError::damaged(object, DamageKind::Malformed, what);
        let header: &[u8; HEADER_LEN] = bytes
            .first_chunk()
            .ok_or_else(|| malformed("it is too short for a chunk"))?;
        if &header[..8] != MAGIC {
            return Err(malformed("it is not a chunk"));
        }
        if header[8] > VERSION {
            return Err(ArchiveError::Newer {
                object: object.to_owned(),
                what: format!("chunk version {}, this version knows {VERSION}", header[8]),
            });
        }
        let frames = le_u32(&header[12..16]) as usize;
        if header[8] != VERSION || frames > MAX_FRAMES {
            return Err(malformed("its header says something impossible"));
        }
        let table_end = header_len(frames) as usize;
        let table = bytes
            .get(..table_end)
            .ok_or_else(|| malformed("it is too short for its frame table"))?;
        let (table, checksum) = table.split_at(table_end - CHECKSUM_LEN);
        if &blake3::hash(table).as_bytes()[..CHECKSUM_LEN] != checksum {
            return Err(ArchiveError::damaged(
                object,
                DamageKind::Checksum,
                "the checksum of its frame table does not match",
            ));
        }
        if header[9] != kind as u8 || header[10..12] != [0; 2] || header[24..32] != [0; 8] {
            return Err(malformed(
                "it is a chunk of another kind, or has features that are not known here",
            ));
        }
        let rows: Vec<FrameRow> = table[HEADER_LEN..].chunks_exact(ROW_LEN).map(read_row).collect();
        let read = Self::new(kind, rows);
        let impossible = |row: &FrameRow| {
            row.raw_len == 0
                || row.raw_len > MAX_FRAME_LEN
                || if row.stored_raw {
                    row.stored_len != row.raw_len
                } else {
                    row.stored_len >= row.raw_len
                }
        };
        if read.raw_len != le_u64(&header[16..24]) || read.rows.iter().any(impossible) {
            return Err(malformed("its frame table says something impossible"));
        }
        if read.id() != *id {
            return Err(ArchiveError::damaged(
                object,
                DamageKind::Checksum,
                "its frames are not those that its name promises",
            ));
        }
        Ok(read)
    }

    /// The chunk's id.
    pub fn id(&self) -> ChunkId {
        chunk_id(self.kind, self.raw_len, self.rows.iter().map(|row| row.hash))
    }

    /// The frames.
    pub fn rows(&self) -> &[FrameRow] {
        &self.rows
    }

    /// Where a frame's bytes are in the object.
    pub fn stored_range(&self, frame: usize) -> Range<u64> {
        self.offsets[frame]..self.offsets[frame + 1]
    }

    /// Bytes of the whole object.
    pub fn stored_len(&self) -> u64 {
        self.offsets[self.rows.len()]
    }

    /// The object's bytes before the first frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(header_len(self.rows.len()) as usize);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, self.kind as u8, 0, 0]);
        bytes.extend_from_slice(&(self.rows.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.raw_len.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        for row in &self.rows {
            let flag = if row.stored_raw { STORED_RAW } else { 0 };
            bytes.extend_from_slice(&(row.stored_len | flag).to_le_bytes());
            bytes.extend_from_slice(&row.raw_len.to_le_bytes());
            bytes.extend_from_slice(&row.hash);
        }
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM_LEN]);
        bytes
    }
}

fn read_row(bytes: &[u8]) -> FrameRow {
    let stored = le_u32(&bytes[..4]);
    let mut hash = [0; 32];
    hash.copy_from_slice(&bytes[8..ROW_LEN]);
    FrameRow {
        stored_len: stored & !STORED_RAW,
        stored_raw: stored & STORED_RAW != 0,
        raw_len: le_u32(&bytes[4..8]),
        hash,
    }
}

fn le_u32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u32::from(byte))
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Decompresses and verifies frames. Holds a zstd context, so keep it.
pub struct FrameDecoder(Decompressor<'static>);

impl FrameDecoder {
    /// A decoder.
    pub fn new() -> Result<Self> {
        let context = Decompressor::new().map_err(|error| ArchiveError::Worker(error.to_string()))?;
        Ok(Self(context))
    }

    /// Appends a frame's plaintext to `out`, once its hash is found right. On an error `out` is as it was.
    ///
    /// The buffer is exactly what the table promises, which [`FrameTable::parse`] bounded; a frame that would give more or
    /// less is damaged.
    pub fn decode(&mut self, object: &str, row: &FrameRow, stored: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        let result = self.decode_onto(object, row, stored, out, start);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn decode_onto(
        &mut self,
        object: &str,
        row: &FrameRow,
        stored: &[u8],
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<()> {
        let checksum = |what: String| ArchiveError::damaged(object, DamageKind::Checksum, what);
        if stored.len() != row.stored_len as usize || row.raw_len > MAX_FRAME_LEN {
            return Err(checksum(
                "a frame has another length than its table says".to_owned(),
            ));
        }
        if row.stored_raw {
            out.extend_from_slice(stored);
        } else {
            out.reserve(row.raw_len as usize);
            // Behind what is there, into memory that need not be cleared before.
            let mut end = std::io::Cursor::new(&mut *out);
            end.set_position(start as u64);
            let length = self
                .0
                .decompress_to_buffer(stored, &mut end)
                .map_err(|error| checksum(format!("a frame does not decompress: {error}")))?;
            // The vector may have had more room than the frame should take.
            if length != row.raw_len as usize {
                return Err(checksum(
                    "a frame is shorter or longer than its table says".to_owned(),
                ));
            }
        }
        if blake3::hash(&out[start..]).as_bytes() != &row.hash {
            return Err(checksum("the hash of a frame does not match".to_owned()));
        }
        Ok(())
    }
}

/// Runs `work` with this thread's decoder: contexts are worth keeping, and blocking threads come and go.
pub(crate) fn with_decoder<T>(work: impl FnOnce(&mut FrameDecoder) -> Result<T>) -> Result<T> {
    thread_local! {
        static DECODER: RefCell<Option<FrameDecoder>> = const { RefCell::new(None) };
    }
    DECODER.with_borrow_mut(|slot| {
        let mut decoder = match slot.take() {
            Some(decoder) => decoder,
            None => FrameDecoder::new()?,
        };
        let result = work(&mut decoder);
        *slot = Some(decoder);
        result
    })
}

/// A finished chunk, ready to be stored.
#[derive(Debug)]
pub struct BuiltChunk {
    /// Its frames.
    pub table: FrameTable,
    /// Its id.
    pub id: ChunkId,
    frames: Vec<Bytes>,
}

impl BuiltChunk {
    /// The object's bytes, in parts.
    pub fn payload(&self) -> object_store::PutPayload {
        std::iter::once(Bytes::from(self.table.encode()))
            .chain(self.frames.iter().cloned())
            .collect()
    }
}

/// Makes chunks of frames, one chunk after the other.
pub struct ChunkBuilder {
    kind: ChunkKind,
    level: i32,
    /// In the order of the frames.
    in_flight: VecDeque<JoinHandle<std::io::Result<FrameJob>>>,
    most_in_flight: usize,
    idle: Vec<FrameJob>,
    rows: Vec<FrameRow>,
    frames: Vec<Bytes>,
}

/// A frame on its way through a blocking thread, with the context and the buffers that are used again for the next.
struct FrameJob {
    compressor: Compressor<'static>,
    plain: Vec<u8>,
    out: Vec<u8>,
    row: FrameRow,
}

impl FrameJob {
    fn new(level: i32) -> std::io::Result<Self> {
        Ok(Self {
            compressor: Compressor::new(level)?,
            plain: Vec::new(),
            out: Vec::new(),
            row: FrameRow {
                stored_len: 0,
                stored_raw: false,
                raw_len: 0,
                hash: [0; 32],
            },
        })
    }

    fn run(mut self) -> std::io::Result<Self> {
        let hash = *blake3::hash(&self.plain).as_bytes();
        self.out
            .resize(zstd::zstd_safe::compress_bound(self.plain.len()), 0);
        let length = self
            .compressor
            .compress_to_buffer(&self.plain, &mut self.out[..])?;
        let stored_raw = length >= self.plain.len();
        if stored_raw {
            self.out.clear();
            self.out.extend_from_slice(&self.plain);
        }
        self.row = FrameRow {
            stored_len: if stored_raw { self.plain.len() } else { length } as u32,
            stored_raw,
            raw_len: self.plain.len() as u32,
            hash,
        };
        Ok(self)
    }
}

impl ChunkBuilder {
    /// A builder of chunks of one kind, at a zstd level.
    pub fn new(kind: ChunkKind, level: i32) -> Self {
        Self {
            kind,
            level,
            in_flight: VecDeque::new(),
            most_in_flight: 1,
            idle: Vec::new(),
            rows: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// Compresses so many frames at the same time: for one who writes alone.
    pub fn set_in_flight(&mut self, most: usize) {
        self.most_in_flight = most.max(1);
    }

    /// Frames of the present chunk so far.
    pub fn frames(&self) -> usize {
        self.rows.len() + self.in_flight.len()
    }

    /// Takes the contents of `plain` as the next frame and leaves an empty buffer in its place. Waits for frames before it where
    /// too many are in flight. Must not be called with nothing, or with more than a frame may hold.
    pub async fn add_frame(&mut self, plain: &mut Vec<u8>) -> Result<()> {
        self.settle(self.most_in_flight - 1).await?;
        let mut job = match self.idle.pop() {
            Some(job) => job,
            None => FrameJob::new(self.level).map_err(|error| ArchiveError::Worker(error.to_string()))?,
        };
        job.plain.clear();
        std::mem::swap(&mut job.plain, plain);
        self.in_flight
            .push_back(tokio::task::spawn_blocking(|| job.run()));
        Ok(())
    }

    /// Waits until no more than so many frames are in flight.
    async fn settle(&mut self, most: usize) -> Result<()> {
        while self.in_flight.len() > most
            && let Some(running) = self.in_flight.front_mut()
        {
            let done = running.await;
            self.in_flight.pop_front();
            let job = done?.map_err(|error| ArchiveError::Worker(error.to_string()))?;
            self.rows.push(job.row);
            self.frames
                .push(Bytes::copy_from_slice(&job.out[..job.row.stored_len as usize]));
            self.idle.push(job);
        }
        Ok(())
    }

    /// Ends the chunk; the next frame begins a new one.
    pub async fn finish(&mut self) -> Result<BuiltChunk> {
        self.settle(0).await?;
        let table = FrameTable::new(self.kind, std::mem::take(&mut self.rows));
        Ok(BuiltChunk {
            id: table.id(),
            table,
            frames: std::mem::take(&mut self.frames),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chunk of frames that take differently long, and the next one.
    async fn build(in_flight: usize) -> Vec<BuiltChunk> {
        let mut builder = ChunkBuilder::new(ChunkKind::Data, 1);
        builder.set_in_flight(in_flight);
        let mut chunks = Vec::new();
        for frames in [30, 1, 0] {
            for frame in 0..frames {
                let length = 1 + (frame * 7919) % 60_000;
                let mut plain = (0..length).map(|at| (at * at / 7 + frame) as u8).collect();
                builder.add_frame(&mut plain).await.unwrap();
                assert!(plain.is_empty());
                assert_eq!(builder.frames(), frame + 1);
            }
            chunks.push(builder.finish().await.unwrap());
        }
        chunks
    }

    #[tokio::test]
    async fn frames_come_in_their_order_however_many_are_in_flight() {
        let one_by_one = build(1).await;
        let frames: Vec<usize> = one_by_one.iter().map(|chunk| chunk.table.rows().len()).collect();
        assert_eq!(frames, [30, 1, 0]);
        for in_flight in [0, 2, 4, 100] {
            let beside = build(in_flight).await;
            for (one, other) in one_by_one.iter().zip(&beside) {
                assert_eq!((one.id, &one.table), (other.id, &other.table));
                assert_eq!(one.frames, other.frames);
            }
        }
    }
}
