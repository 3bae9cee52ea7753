//! The layer writer: takes what changed in one key range since the parent snapshot, and what was seen unchanged.
//!
//! A night of few changes in many ranges would be many objects of a few kilobytes, each compressed by itself: half as much
//! again as the changes need. So a range with little to write writes no chunk at all. It **holds** its records, bodies
//! included, and its checkpoint carries them; the commit, which reads all checkpoints anyway, writes the held records
//! of neighbouring ranges together, in key order. That is as durable as a chunk, takes no request more, leaves no small
//! chunks behind for a sweep, and gives the same chunks in whatever ranges the database was read. What all ranges of a
//! session hold is bounded (`HOLD_TOTAL`): the one that goes beyond its share writes chunks of its own, which are then
//! large enough to be worth it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::checkpoint::UnfinishedRange;
use super::counts::Tally;
use super::error::{ArchiveError, DamageKind, Result, show_key};
use super::range_writer::{DATA_LEVEL, Flow, RangeOutput, RangeWriter, WriteStats};
use super::run::IndexEntry;
use super::sealed;
use super::session::SessionShared;
use super::snapshot::ReadMode;
use crate::document::{DocumentKey, DocumentRef, KeyRange, Timestamp};

/// Bytes of keys and bodies that all ranges of a session may hold together.
const HOLD_TOTAL: usize = 32 << 20;
/// Bytes that one range may hold, at most and at least: a checkpoint stays a small object, and a chunk that is worth one is
/// larger than the least.
const HOLD_RANGE: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 20;
/// What a record takes beside its key and body, about.
const RECORD_LEN: usize = 48;
/// The most bytes that held records have when they are packed: a bound for decoders.
const MAX_HELD_LEN: u32 = 16 << 20;

/// What was found by comparing documents with the parent snapshot, to be told to a [`LayerWriter`] before its range ends.
#[derive(Debug, Default)]
pub struct Compared {
    added: u64,
    unchanged: u64,
    largest_lag_micros: u64,
    tally: Tally,
}

impl Compared {
    /// Takes note of a document that is as the parent has it.
    ///
    /// # Errors
    /// [`ArchiveError::Misuse`] when the key is not a document's.
    pub fn unchanged(&mut self, key: &[u8], body_len: u32) -> Result<()> {
        self.unchanged += 1;
        match self.tally.add(key, body_len as usize) {
            true => Ok(()),
            false => Err(no_document(key)),
        }
    }

    /// Takes note that one of the documents that are written is not in the parent.
    pub fn added(&mut self) {
        self.added += 1;
    }

    /// Takes note of how long after a time that it carries a document was committed.
    pub fn lagged(&mut self, micros: u64) {
        self.largest_lag_micros = self.largest_lag_micros.max(micros);
    }

    /// Documents that are as the parent has them.
    pub fn unchanged_documents(&self) -> u64 {
        self.unchanged
    }
}

/// A record that a checkpoint carries.
#[derive(Debug, Serialize, Deserialize)]
struct HeldRecord {
    #[serde(with = "serde_bytes")]
    key: Vec<u8>,
    put: Option<HeldPut>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeldPut {
    create_time: Timestamp,
    update_time: Timestamp,
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
}

/// Held records on their way out of a [`Held`].
type Unpacking = JoinHandle<Result<Vec<HeldRecord>>>;

/// Records of a range that are too few for chunks of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Bytes of the MessagePack: an array of records, ascending.
    raw_len: u32,
    /// The MessagePack as one zstd frame.
    #[serde(with = "serde_bytes")]
    packed: Vec<u8>,
}

impl Held {
    async fn pack(records: &[HeldRecord]) -> Result<Self> {
        let raw = sealed::pack(&records)?;
        let packed = tokio::task::spawn_blocking(move || {
            let packed = zstd::bulk::compress(&raw, DATA_LEVEL)
                .map_err(|error| ArchiveError::Worker(format!("cannot compress: {error}")))?;
            Ok::<_, ArchiveError>((raw.len(), packed))
        });
        let (raw_len, packed) = packed.await??;
        let raw_len = u32::try_from(raw_len)
            .ok()
            .filter(|&length| length <= MAX_HELD_LEN);
        Ok(Self {
            raw_len: raw_len.ok_or_else(|| ArchiveError::Misuse("a range holds too much".to_owned()))?,
            packed,
        })
    }

    /// Begins at once, whether it is waited for or not.
    fn unpack(self) -> Unpacking {
        const OBJECT: &str = "checkpoint";
        tokio::task::spawn_blocking(move || {
            if self.raw_len > MAX_HELD_LEN {
                let what = "it holds impossibly many bytes";
                return Err(ArchiveError::damaged(OBJECT, DamageKind::Malformed, what));
            }
            let raw = zstd::bulk::decompress(&self.packed, self.raw_len as usize);
            let raw = raw.map_err(|error| {
                let what = format!("what it holds does not decompress: {error}");
                ArchiveError::damaged(OBJECT, DamageKind::Malformed, what)
            })?;
            sealed::unpack(OBJECT, &raw)
        })
    }
}

async fn write_all(records: &[HeldRecord], writer: &mut RangeWriter) -> Result<()> {
    for HeldRecord { key, put } in records {
        let flow = match put {
            Some(put) => {
                let document = DocumentRef {
                    key,
                    create_time: put.create_time,
                    update_time: put.update_time,
                    body: &put.body,
                };
                writer.push(document).await?
            }
            None => writer.push_tombstone(key).await?,
        };
        if flow != Flow::Continue {
            return Err(outside(key));
        }
    }
    Ok(())
}

fn outside(key: &[u8]) -> ArchiveError {
    ArchiveError::Misuse(format!("{} lies outside of its range", show_key(key)))
}

fn no_document(key: &[u8]) -> ArchiveError {
    ArchiveError::Misuse(format!("{} is not a document's", show_key(key)))
}

/// Writes what changed in one range: exactly the records in it, ascending. Dropping it leaves nothing behind but chunks
/// that a sweep collects.
pub struct LayerWriter {
    session: Arc<SessionShared>,
    range: KeyRange,
    /// When the range is read, where that is not the plan's read time.
    read_time: Option<Timestamp>,
    /// How it is read, where that is not as planned.
    read: Option<ReadMode>,
    held: Vec<HeldRecord>,
    held_len: usize,
    hold: usize,
    /// Where records go once there are too many to hold.
    chunks: Option<Box<RangeWriter>>,
    stats: WriteStats,
    tally: Tally,
    /// What was done before the checkpoint that this writer goes on from.
    before: WriteStats,
    /// The number of its next checkpoint.
    checkpoint: u64,
}

impl LayerWriter {
    pub(crate) fn new(session: Arc<SessionShared>, range: KeyRange) -> Self {
        let ranges = session.plan().ranges.len().max(1);
        Self {
            hold: (HOLD_TOTAL / ranges).clamp(*HOLD_RANGE.start(), *HOLD_RANGE.end()),
            session,
            range,
            read_time: None,
            read: None,
            held: Vec::new(),
            held_len: 0,
            chunks: None,
            stats: WriteStats::default(),
            tally: Tally::default(),
            before: WriteStats::default(),
            checkpoint: 1,
        }
    }

    pub(crate) async fn resume(session: Arc<SessionShared>, unfinished: UnfinishedRange) -> Result<Self> {
        let mut writer = Self {
            read_time: unfinished.tail,
            read: unfinished.read,
            checkpoint: unfinished.next,
            ..Self::new(session, unfinished.range)
        };
        let Some(checkpoint) = unfinished.checkpoint else {
            return Ok(writer);
        };
        if let Some(held) = checkpoint.held.clone() {
            for HeldRecord { key, put } in held.unpack().await?? {
                writer.hold(&key, put)?;
            }
        }
        writer.before = checkpoint.stats.clone();
        if !checkpoint.entries.is_empty() {
            let chunks = RangeWriter::exact(Arc::clone(&writer.session), writer.range.clone());
            // Its checkpoints are never written: this writer's are.
            let checkpoint = RangeOutput {
                stats: WriteStats::default(),
                ..checkpoint
            };
            writer.chunks = Some(Box::new(chunks.resume(checkpoint, 0)));
        }
        Ok(writer)
    }

    /// Has the range end earlier, after a split: at a key past all that was written.
    ///
    /// # Errors
    /// [`ArchiveError::Misuse`] when more was written already.
    pub fn shorten(&mut self, end: Option<DocumentKey>) -> Result<()> {
        let last = self.held.last().map(|last| &last.key);
        if let (Some(last), Some(end)) = (last, &end)
            && end.as_bytes() <= &last[..]
        {
            return Err(outside(last));
        }
        if let Some(chunks) = &mut self.chunks {
            chunks.shorten(end.clone())?;
        }
        self.range.end = end;
        Ok(())
    }

    /// The number of its next checkpoint: a writer that starts the range again goes on from it.
    pub fn next_checkpoint(&self) -> u64 {
        self.checkpoint
    }

    /// Writes down what was written so far: all that there is to be up to this key, in the database and in the parent.
    pub async fn write_checkpoint(&mut self, cursor: DocumentKey) -> Result<()> {
        let mut output = RangeOutput {
            range: self.range.clone(),
            stats: self.stats.clone(),
            owned: Some(KeyRange {
                start: self.range.start.clone(),
                end: Some(cursor.after()),
            }),
            cursor: Some(cursor),
            read_time: self.read_time,
            read: self.read,
            ..RangeOutput::default()
        };
        if let Some(chunks) = &mut self.chunks {
            let (entries, stored) = chunks.settle_here().await?;
            output.stats.add_storage(&stored);
            output.entries = entries;
        } else if !self.held.is_empty() {
            output.held = Some(Held::pack(&self.held).await?);
        }
        self.sum_up(&mut output.stats);
        self.session.write_progress(&output, self.checkpoint).await?;
        self.checkpoint += 1;
        Ok(())
    }

    /// Adds the collections, and what was done before.
    fn sum_up(&self, stats: &mut WriteStats) {
        (stats.collections, stats.collection_groups) = self.tally.named();
        stats.add(&self.before);
    }

    /// Writes a document that is new or changed.
    pub async fn put(&mut self, document: DocumentRef<'_>) -> Result<()> {
        if !self.tally.add(document.key, document.body.len()) {
            return Err(no_document(document.key));
        }
        self.stats.documents += 1;
        self.stats.raw_bytes += document.body.len() as u64;
        if self.chunks.is_none() && !self.fits(document.key.len() + document.body.len()) {
            self.spill().await?;
        }
        match &mut self.chunks {
            Some(chunks) => match chunks.push(document).await? {
                Flow::Continue => Ok(()),
                _ => Err(outside(document.key)),
            },
            None => {
                let put = HeldPut {
                    create_time: document.create_time,
                    update_time: document.update_time,
                    body: document.body.to_vec(),
                };
                self.hold(document.key, Some(put))
            }
        }
    }

    /// Writes that a document which the parent has is gone.
    pub async fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.stats.tombstones += 1;
        if self.chunks.is_none() && !self.fits(key.len()) {
            self.spill().await?;
        }
        match &mut self.chunks {
            Some(chunks) => match chunks.push_tombstone(key).await? {
                Flow::Continue => Ok(()),
                _ => Err(outside(key)),
            },
            None => self.hold(key, None),
        }
    }

    /// Takes note of documents that need not be written. They count towards the snapshot's totals.
    pub fn note(&mut self, compared: Compared) {
        self.stats.added_documents += compared.added;
        self.stats.unchanged_documents += compared.unchanged;
        let lag = &mut self.stats.largest_lag_micros;
        *lag = (*lag).max(compared.largest_lag_micros);
        self.tally.absorb(compared.tally);
    }

    /// Ends the range: what it needs is durable, in chunks or in the checkpoint, when this returns.
    pub async fn finish(mut self) -> Result<RangeOutput> {
        let mut output = RangeOutput {
            owned: Some(self.range.clone()),
            range: self.range.clone(),
            stats: self.stats.clone(),
            read_time: self.read_time,
            ..RangeOutput::default()
        };
        if let Some(chunks) = self.chunks.take() {
            let (entries, stored) = chunks.complete().await?;
            output.stats.add_storage(&stored);
            output.entries = entries;
        } else if !self.held.is_empty() {
            output.held = Some(Held::pack(&self.held).await?);
        }
        self.sum_up(&mut output.stats);
        self.session.write_checkpoint(output).await
    }

    fn fits(&self, more: usize) -> bool {
        self.held_len + more + RECORD_LEN <= self.hold
    }

    fn hold(&mut self, key: &[u8], put: Option<HeldPut>) -> Result<()> {
        if let Some(last) = self.held.last().filter(|last| *key <= *last.key) {
            return Err(ArchiveError::OutOfOrder {
                previous: show_key(&last.key),
                next: show_key(key),
            });
        }
        if !self.range.contains(key) {
            return Err(outside(key));
        }
        self.held_len += RECORD_LEN + key.len() + put.as_ref().map_or(0, |put| put.body.len());
        self.held.push(HeldRecord {
            key: key.to_vec(),
            put,
        });
        Ok(())
    }

    /// Goes over to chunks.
    async fn spill(&mut self) -> Result<()> {
        let mut chunks = Box::new(RangeWriter::exact(Arc::clone(&self.session), self.range.clone()));
        write_all(&std::mem::take(&mut self.held), &mut chunks).await?;
        self.chunks = Some(chunks);
        Ok(())
    }
}

/// Writes the held records of neighbouring ranges together: see the module. Nothing else is written then, so a range is unpacked
/// while the one before it is written, and frames are compressed beside each other.
pub(crate) struct HeldJoiner {
    session: Arc<SessionShared>,
    writer: Option<RangeWriter>,
    /// The last range, on its way to be written.
    next: Option<Unpacking>,
}

impl HeldJoiner {
    pub(crate) fn new(session: Arc<SessionShared>) -> Self {
        Self {
            session,
            writer: None,
            next: None,
        }
    }

    /// Takes the held records of the next range, which begins at `start`.
    pub(crate) async fn push(&mut self, start: Option<DocumentKey>, held: Held) -> Result<()> {
        let session = &self.session;
        self.writer.get_or_insert_with(|| {
            RangeWriter::exact(Arc::clone(session), KeyRange { start, end: None }).alone()
        });
        let before = self.next.replace(held.unpack());
        self.write(before).await
    }

    async fn write(&mut self, unpacked: Option<Unpacking>) -> Result<()> {
        if let (Some(unpacked), Some(writer)) = (unpacked, &mut self.writer) {
            write_all(&unpacked.await??, writer).await?;
        }
        Ok(())
    }

    /// The index entries of what was pushed since the last call, and what was stored for it.
    pub(crate) async fn complete(&mut self, stats: &mut WriteStats) -> Result<Vec<IndexEntry>> {
        let last = self.next.take();
        self.write(last).await?;
        let Some(writer) = self.writer.take() else {
            return Ok(Vec::new());
        };
        let (entries, stored) = writer.complete().await?;
        stats.add_storage(&stored);
        Ok(entries)
    }
}
