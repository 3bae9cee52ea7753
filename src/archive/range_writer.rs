//! The range writer: takes the documents of one key range in order and makes segments and an index of them.
//!
//! The path of a document: its key's hash says whether a segment ends here and whether the segment is this range's
//! ([`cut`](super::cut)); its body goes to the end of the open frame; its record to the open page. Nothing is allocated for
//! it. Full frames and pages are hashed and compressed on blocking threads while the next ones fill; finished chunks are
//! uploaded in the background, as far as the byte budget that all writers of the session share allows. A writer that gets
//! ahead waits in [`RangeWriter::push`], and so the read stream before it waits.

use std::num::NonZero;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::chunk::{BuiltChunk, ChunkBuilder, ChunkKind};
use super::counts::{Counts, Tally};
use super::cut::{Ownership, Verdict, is_natural_cut, key_hash};
use super::error::{ArchiveError, Result, show_key};
use super::ids::ChunkRef;
use super::index_page::{MAX_KEY_LEN, Put};
use super::index_writer::{BodyChunk, FullIndexChunk, IndexWriter, PendingEntry};
use super::layer_writer::Held;
use super::run::{IndexEntry, MAX_CHUNK_RAW_LEN};
use super::session::{SessionShared, Stored};
use super::snapshot::ReadMode;
use crate::document::{DocumentKey, DocumentRef, KeyRange, Timestamp};

/// The zstd level of bodies. On frames of 256 KiB, level 3 stores 2 % less of records as shops have them and 6 % less of prose,
/// and takes 1.6 to 1.8 times as much of what a backup computes most: its tables do not fit into a core's cache beside
/// all the rest.
pub(crate) const DATA_LEVEL: i32 = 1;
/// Frames that a writer alone compresses at the same time: enough for the one thread that hands them over.
const MOST_IN_FLIGHT: usize = 4;
/// The largest body: far above any limit of Firestore's.
const MAX_BODY_LEN: usize = 256 << 20;

/// Whether a range writer wants more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// Go on.
    Continue,
    /// Go on; the document was passed over because a range before this one owns it.
    Skipped,
    /// The writer has all that is its own: stop reading. Documents pushed after this are passed over.
    Done,
}

/// What a range writer did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteStats {
    /// Documents written: all that the range owns, or in a layer those that are new or changed.
    pub documents: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Bytes of the bodies that came in (reused ones came not).
    pub raw_bytes: u64,
    /// Bytes of bodies whose chunk was not there before.
    pub new_bytes: u64,
    /// Bytes of objects written, data and index.
    pub stored_bytes: u64,
    /// Bytes of bodies whose chunk was there already.
    pub deduplicated_bytes: u64,
    /// Data chunks written.
    pub chunks_written: u64,
    /// Data chunks that were there already.
    pub chunks_reused: u64,
    /// Documents passed over because another range owns them.
    pub skipped_documents: u64,
    /// Documents by root collection, those that a layer leaves unchanged included.
    pub collections: Counts,
    /// The same by collection group.
    pub collection_groups: Counts,
    /// Documents written that the parent snapshot does not have.
    #[serde(default)]
    pub added_documents: u64,
    /// Documents that are as the parent snapshot has them.
    #[serde(default)]
    pub unchanged_documents: u64,
    /// The longest time, in microseconds, by which the update time of a written document was behind a time that it carries.
    #[serde(default)]
    pub largest_lag_micros: u64,
}

impl WriteStats {
    /// Adds what another writer did.
    pub fn add(&mut self, other: &Self) {
        self.add_storage(other);
        self.documents += other.documents;
        self.tombstones += other.tombstones;
        self.raw_bytes += other.raw_bytes;
        self.skipped_documents += other.skipped_documents;
        self.added_documents += other.added_documents;
        self.unchanged_documents += other.unchanged_documents;
        self.largest_lag_micros = self.largest_lag_micros.max(other.largest_lag_micros);
        super::counts::add_counts(&mut self.collections, &other.collections);
        super::counts::add_counts(&mut self.collection_groups, &other.collection_groups);
    }

    /// Adds what another writer did to the store, and not what documents it was given.
    pub(crate) fn add_storage(&mut self, other: &Self) {
        self.new_bytes += other.new_bytes;
        self.stored_bytes += other.stored_bytes;
        self.deduplicated_bytes += other.deduplicated_bytes;
        self.chunks_written += other.chunks_written;
        self.chunks_reused += other.chunks_reused;
    }
}

/// A finished range: the contents of its checkpoint, from which alone a commit is made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RangeOutput {
    /// The range.
    pub range: KeyRange,
    /// How far a range that is not finished has got: the last key that is covered. `None`: it is finished.
    pub cursor: Option<DocumentKey>,
    /// What was done.
    pub stats: WriteStats,
    /// The index chunks of the range's records, ascending.
    pub entries: Vec<IndexEntry>,
    /// The records of a layer's range that has too few for chunks of its own; it has no entries then.
    #[serde(default)]
    pub held: Option<Held>,
    /// The keys that these are all records of, to the byte: with cuts, not the range itself. `None`: of none.
    #[serde(default)]
    pub owned: Option<KeyRange>,
    /// When the range was read, where that is not the plan's read time.
    #[serde(default)]
    pub read_time: Option<Timestamp>,
    /// How the range is read, where that is not as the plan says.
    #[serde(default)]
    pub read: Option<ReadMode>,
}

/// A document whose body is stored already.
#[derive(Clone, Copy, Debug)]
pub struct StoredDocument<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// When the server says it was created.
    pub create_time: Timestamp,
    /// When the server says it was last changed.
    pub update_time: Timestamp,
    /// The hash of its body.
    pub body_hash: u64,
    /// The data chunk that holds the body: one that the session's pins reach.
    pub chunk: ChunkRef,
    /// Where the body starts in the chunk's plaintext.
    pub offset: u32,
    /// The body's length in bytes.
    pub length: u32,
}

/// Writes one range. Dropping it stops its uploads and leaves nothing behind but chunks that a sweep collects.
pub struct RangeWriter {
    session: Arc<SessionShared>,
    range: KeyRange,
    reads: KeyRange,
    /// When the range is read, where that is not the plan's read time.
    read_time: Option<Timestamp>,
    ownership: Ownership,
    exact: bool,
    /// Where that which it owns begins, once that is known: at its own start, or after its first cut.
    owned_from: Option<Option<DocumentKey>>,
    /// The last document that it owns, once the cut that ends it was met.
    owned_to: Option<DocumentKey>,
    previous: Vec<u8>,
    started: bool,
    /// Set while a call is under way: one that failed or was dropped half-way leaves it set.
    broken: bool,
    frame: Vec<u8>,
    data: ChunkBuilder,
    segment_len: u64,
    segments: Vec<Option<ChunkRef>>,
    index: IndexWriter,
    entries: Vec<Listed>,
    uploads: JoinSet<Result<Upload>>,
    stats: WriteStats,
    tally: Tally,
    /// What was done before the checkpoint that this writer goes on from.
    before: WriteStats,
    /// The number of its next checkpoint.
    checkpoint: u64,
    checkpoint_wanted: bool,
}

/// An index chunk of the range.
enum Listed {
    /// One that this writer made, and where it is once it is stored.
    Written(PendingEntry, Option<ChunkRef>),
    /// One that is listed as another run has it.
    Kept(Box<IndexEntry>),
}

/// What an upload task brings back.
struct Upload {
    place: Place,
    stored: Stored,
}

#[derive(Clone, Copy)]
enum Place {
    Segment(usize),
    Entry(usize),
}

impl RangeWriter {
    pub(crate) fn new(
        session: Arc<SessionShared>,
        range: KeyRange,
        reads: KeyRange,
        open_start: bool,
        exact: bool,
    ) -> Self {
        let ownership = match exact {
            true => Ownership::exact(range.clone()),
            false => Ownership::by_cuts(range.clone(), open_start),
        };
        let page_records = session.parameters().page_records;
        Self {
            session,
            owned_from: (exact || open_start).then(|| range.start.clone()),
            owned_to: None,
            range,
            reads,
            read_time: None,
            ownership,
            exact,
            previous: Vec::new(),
            started: false,
            broken: false,
            frame: Vec::new(),
            data: ChunkBuilder::new(ChunkKind::Data, DATA_LEVEL),
            segment_len: 0,
            segments: Vec::new(),
            index: IndexWriter::new(page_records),
            entries: Vec::new(),
            uploads: JoinSet::new(),
            stats: WriteStats::default(),
            tally: Tally::default(),
            before: WriteStats::default(),
            checkpoint: 1,
            checkpoint_wanted: false,
        }
    }

    /// Goes on after a checkpoint of the range, which ended with a segment; the next one has the number `next`.
    pub(crate) fn resume(self, checkpoint: RangeOutput, next: u64) -> Self {
        let kept = checkpoint.entries.into_iter();
        Self {
            ownership: match self.exact {
                true => Ownership::exact(self.range.clone()),
                false => Ownership::by_cuts(self.range.clone(), true),
            },
            owned_from: checkpoint.owned.map(|owned| owned.start),
            entries: kept.map(|entry| Listed::Kept(Box::new(entry))).collect(),
            before: checkpoint.stats,
            checkpoint: next,
            ..self
        }
    }

    /// The same writer for a range that is read at a time of its own.
    pub(crate) fn at(self, read_time: Option<Timestamp>) -> Self {
        Self { read_time, ..self }
    }

    /// Has the range end earlier, after a split: at a key past all that was pushed.
    ///
    /// # Errors
    /// [`ArchiveError::Misuse`] when more was pushed already.
    pub fn shorten(&mut self, end: Option<DocumentKey>) -> Result<()> {
        let passed = end
            .as_ref()
            .is_some_and(|end| self.started && end.as_bytes() <= &self.previous[..]);
        if passed || self.owned_to.is_some() {
            return Err(ArchiveError::Misuse(
                "a range cannot end before what was written of it".to_owned(),
            ));
        }
        if self.exact {
            self.reads.end.clone_from(&end);
        }
        self.ownership.shorten(end.clone());
        self.range.end = end;
        Ok(())
    }

    /// Asks for a checkpoint at the end of the present segment: what comes before it need not be read again when this
    /// process ends early.
    pub fn want_checkpoint(&mut self) {
        self.checkpoint_wanted = true;
    }

    /// Whether a checkpoint that was asked for is still to come.
    pub fn wants_checkpoint(&self) -> bool {
        self.checkpoint_wanted
    }

    /// A writer of exactly the records in the range.
    pub(crate) fn exact(session: Arc<SessionShared>, range: KeyRange) -> Self {
        Self::new(session, range.clone(), range, true, true)
    }

    /// Compresses several frames at the same time: for a range that is written while no other one is.
    pub(crate) fn alone(mut self) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        self.data.set_in_flight(cores.min(MOST_IN_FLIGHT));
        self
    }

    /// The range.
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// What to read: from the range's start on, past its end, until a push says [`Flow::Done`] or nothing is left.
    pub fn reads(&self) -> &KeyRange {
        &self.reads
    }

    /// Whether no cut was met yet: what was pushed so far belongs to ranges before this one.
    pub fn is_before_first_cut(&self) -> bool {
        self.ownership.is_skipping()
    }

    /// What was done so far, collections excepted.
    pub fn stats(&self) -> &WriteStats {
        &self.stats
    }

    /// About how many documents a segment has, going by those that were pushed.
    pub fn documents_in_segment(&self) -> u32 {
        let mean = self
            .stats
            .raw_bytes
            .checked_div(self.stats.documents)
            .unwrap_or(1 << 10);
        u32::try_from(self.session.parameters().cut_target / mean.max(1)).unwrap_or(u32::MAX)
    }

    /// Takes the next document; its key must come after the one before it. Waits when uploads fall behind.
    ///
    /// After an error, and when the returned future is dropped before it is done, the writer refuses everything: start the
    /// range again.
    pub async fn push(&mut self, document: DocumentRef<'_>) -> Result<Flow> {
        self.begin(document.key)?;
        let length = document.body.len();
        if length == 0 {
            return Err(ArchiveError::Misuse(format!(
                "the body of {} is empty, which no encoding of fields is",
                show_key(document.key)
            )));
        }
        if length > MAX_BODY_LEN {
            return Err(ArchiveError::TooLarge {
                key: show_key(document.key),
                what: format!("has {length} bytes, more than the {MAX_BODY_LEN} that a document may have"),
            });
        }
        let key_hash = key_hash(document.key);
        let natural_cut = is_natural_cut(key_hash, length as u64, self.session.parameters().cut_target);
        let verdict = self.ownership.judge(document.key, natural_cut);
        match verdict {
            Verdict::Skip | Verdict::Stop => {
                if verdict == Verdict::Skip && natural_cut {
                    let cut = DocumentKey::from_bytes(document.key);
                    self.owned_from = Some(Some(cut.after()));
                }
                self.stats.skipped_documents += 1;
                self.broken = false;
                return Ok(if verdict == Verdict::Skip {
                    Flow::Skipped
                } else {
                    Flow::Done
                });
            }
            Verdict::OwnLast => self.owned_to = Some(DocumentKey::from_bytes(document.key)),
            Verdict::Own => {}
        }
        if self.segment_len > 0 && self.segment_len + length as u64 > self.session.parameters().cut_max {
            self.end_segment().await?;
        }
        self.make_room().await?;
        if self.segment_len == 0 {
            self.segments.push(None);
        }
        let put = Put {
            create_time: document.create_time,
            update_time: document.update_time,
            body_hash: self.session.repository.body_hash(document.body),
            chunk: 0,
            offset: self.segment_len as u32,
            length: length as u32,
        };
        let segment = BodyChunk::Segment(self.segments.len() as u32 - 1);
        self.count(document.key, length, &put)?;
        self.index.put(document.key, key_hash, segment, put);
        self.stats.raw_bytes += length as u64;
        self.append_body(document.body).await?;
        if natural_cut {
            self.end_segment().await?;
            if self.checkpoint_wanted && verdict == Verdict::Own {
                self.write_checkpoint(document.key).await?;
            }
        }
        self.broken = false;
        Ok(match verdict {
            Verdict::OwnLast => Flow::Done,
            _ => Flow::Continue,
        })
    }

    /// Records that a document is gone. Only for writers that own exactly their range.
    pub async fn push_tombstone(&mut self, key: &[u8]) -> Result<Flow> {
        if !self.begin_exact(key)? {
            return Ok(Flow::Done);
        }
        self.make_room().await?;
        self.index.tombstone(key, key_hash(key));
        self.stats.tombstones += 1;
        self.broken = false;
        Ok(Flow::Continue)
    }

    /// Records a document whose body is stored already. Only for writers that own exactly their range.
    pub async fn push_reusing(&mut self, document: StoredDocument<'_>) -> Result<Flow> {
        if !self.begin_exact(document.key)? {
            return Ok(Flow::Done);
        }
        self.make_room().await?;
        let put = Put {
            create_time: document.create_time,
            update_time: document.update_time,
            body_hash: document.body_hash,
            chunk: 0,
            offset: document.offset,
            length: document.length,
        };
        self.count(document.key, document.length as usize, &put)?;
        let chunk = BodyChunk::Stored(document.chunk);
        self.index.put(document.key, key_hash(document.key), chunk, put);
        self.broken = false;
        Ok(Flow::Continue)
    }

    /// Lists an index chunk as another run has it, all of whose records come next. Only for writers that own exactly their
    /// range; its documents are not counted.
    pub async fn push_chunk(&mut self, entry: IndexEntry) -> Result<()> {
        if !self.begin_exact(entry.first_key())? || !self.range.contains(entry.last_key()) {
            return Err(ArchiveError::Misuse(
                "an index chunk lies outside of its range".to_owned(),
            ));
        }
        self.end_index().await?;
        self.previous.clear();
        self.previous.extend_from_slice(entry.last_key());
        self.entries.push(Listed::Kept(Box::new(entry)));
        self.broken = false;
        Ok(())
    }

    /// Ends the range, when its writer is done or nothing is left to read: waits for the uploads and writes the
    /// checkpoint. What the range's documents need is durable when this returns.
    pub async fn finish(self) -> Result<RangeOutput> {
        let session = Arc::clone(&self.session);
        let output = RangeOutput {
            range: self.range.clone(),
            cursor: None,
            owned: self.owned(),
            read_time: self.read_time,
            ..RangeOutput::default()
        };
        let (entries, stats) = self.complete().await?;
        let output = RangeOutput {
            stats,
            entries,
            ..output
        };
        session.write_checkpoint(output).await
    }

    /// What the range owns, now that its end was reached.
    fn owned(&self) -> Option<KeyRange> {
        let end = match &self.owned_to {
            Some(last) => Some(last.after()),
            None => self.reads.end.clone(),
        };
        let start = self.owned_from.clone()?;
        Some(KeyRange { start, end })
    }

    /// Writes down what was pushed so far, at the end of a segment or not: for one who cannot go on with the range. Nothing is
    /// written where nothing is the range's own yet.
    pub async fn checkpoint_here(&mut self) -> Result<()> {
        if self.is_before_first_cut() || !self.started || self.stats.documents == 0 {
            return Ok(());
        }
        let (entries, stats) = self.settle_here().await?;
        let last = self.previous.clone();
        self.write_progress(&last, entries, stats).await
    }

    /// Ends the open segment where it is, and says what there is; the writer goes on after that.
    pub(crate) async fn settle_here(&mut self) -> Result<(Vec<IndexEntry>, WriteStats)> {
        self.check_usable()?;
        self.broken = true;
        if self.segment_len > 0 {
            self.end_segment().await?;
        }
        let (entries, stats) = self.settle().await?;
        self.keep(&entries);
        self.broken = false;
        Ok((entries, stats))
    }

    /// Lists what is written as written.
    fn keep(&mut self, entries: &[IndexEntry]) {
        let kept = entries.iter().cloned();
        self.entries = kept.map(|entry| Listed::Kept(Box::new(entry))).collect();
    }

    /// Waits until everything is durable, and says what there is, without a checkpoint.
    pub(crate) async fn complete(mut self) -> Result<(Vec<IndexEntry>, WriteStats)> {
        self.check_usable()?;
        if self.segment_len > 0 {
            self.end_segment().await?;
        }
        self.settle().await
    }

    /// Ends the index chunk in the making and waits for all uploads. Says what there is: no segment may be open.
    async fn settle(&mut self) -> Result<(Vec<IndexEntry>, WriteStats)> {
        self.end_index().await?;
        while let Some(upload) = self.uploads.join_next().await {
            self.uploaded(upload??);
        }
        let mut entries = Vec::with_capacity(self.entries.len());
        for listed in std::mem::take(&mut self.entries) {
            entries.push(match listed {
                Listed::Written(pending, Some(chunk)) => pending.resolve(chunk, &self.segments)?,
                Listed::Written(_, None) => {
                    return Err(ArchiveError::Misuse("an index chunk was not stored".to_owned()));
                }
                Listed::Kept(entry) => *entry,
            });
        }
        self.segments.clear();
        let mut stats = self.stats.clone();
        (stats.collections, stats.collection_groups) = self.tally.named();
        stats.add(&self.before);
        Ok((entries, stats))
    }

    /// Writes down what is done, up to `last`, the end of a segment.
    async fn write_checkpoint(&mut self, last: &[u8]) -> Result<()> {
        let (entries, stats) = self.settle().await?;
        self.keep(&entries);
        self.write_progress(last, entries, stats).await
    }

    async fn write_progress(
        &mut self,
        last: &[u8],
        entries: Vec<IndexEntry>,
        stats: WriteStats,
    ) -> Result<()> {
        let last = DocumentKey::from_bytes(last);
        let owned = self.owned_from.clone().map(|start| KeyRange {
            start,
            end: Some(last.after()),
        });
        let output = RangeOutput {
            range: self.range.clone(),
            cursor: Some(last),
            stats,
            entries,
            owned,
            read_time: self.read_time,
            ..RangeOutput::default()
        };
        self.session.write_progress(&output, self.checkpoint).await?;
        self.checkpoint += 1;
        self.checkpoint_wanted = false;
        Ok(())
    }

    fn check_usable(&self) -> Result<()> {
        if self.broken {
            return Err(ArchiveError::Misuse(
                "an earlier call on this range writer failed or was dropped: start the range again"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// Takes note of the next key.
    fn begin(&mut self, key: &[u8]) -> Result<()> {
        self.check_usable()?;
        self.broken = true;
        if self.started && key <= &self.previous[..] {
            return Err(ArchiveError::OutOfOrder {
                previous: show_key(&self.previous),
                next: show_key(key),
            });
        }
        if key.len() > MAX_KEY_LEN {
            return Err(ArchiveError::TooLarge {
                key: show_key(key),
                what: format!("has a path longer than {MAX_KEY_LEN} bytes"),
            });
        }
        if self
            .range
            .start
            .as_ref()
            .is_some_and(|start| key < start.as_bytes())
        {
            return Err(ArchiveError::OutOfOrder {
                previous: "the range's start".to_owned(),
                next: show_key(key),
            });
        }
        self.started = true;
        self.previous.clear();
        self.previous.extend_from_slice(key);
        Ok(())
    }

    /// The same for records that only exact writers take; `false` past the range's end.
    fn begin_exact(&mut self, key: &[u8]) -> Result<bool> {
        if !self.exact {
            return Err(ArchiveError::Misuse(
                "tombstones and reused bodies need a writer that owns exactly its range".to_owned(),
            ));
        }
        self.begin(key)?;
        let owned = self.ownership.judge(key, false) == Verdict::Own;
        if !owned {
            self.broken = false;
        }
        Ok(owned)
    }

    fn count(&mut self, key: &[u8], length: usize, put: &Put) -> Result<()> {
        if put.create_time.nanos >= 1_000_000_000 || put.update_time.nanos >= 1_000_000_000 {
            return Err(ArchiveError::Misuse(format!(
                "{} has an impossible time",
                show_key(key)
            )));
        }
        if !self.tally.add(key, length) {
            return Err(ArchiveError::Misuse(format!(
                "{} is not a document's",
                show_key(key)
            )));
        }
        self.stats.documents += 1;
        Ok(())
    }

    /// Ends the index chunk in the making.
    async fn end_index(&mut self) -> Result<()> {
        if let Some(full) = self.index.flush_page().await? {
            self.store_index(full).await?;
        }
        if let Some(full) = self.index.finish_chunk().await? {
            self.store_index(full).await?;
        }
        Ok(())
    }

    /// Flushes a full page.
    async fn make_room(&mut self) -> Result<()> {
        if self.index.page_is_full()
            && let Some(full) = self.index.flush_page().await?
        {
            self.store_index(full).await?;
        }
        Ok(())
    }

    async fn append_body(&mut self, mut body: &[u8]) -> Result<()> {
        self.segment_len += body.len() as u64;
        let frame_len = self.session.parameters().frame_len as usize;
        loop {
            let room = frame_len - self.frame.len();
            if body.len() < room {
                self.frame.extend_from_slice(body);
                return Ok(());
            }
            let (now, later) = body.split_at(room);
            self.frame.extend_from_slice(now);
            self.data.add_frame(&mut self.frame).await?;
            self.frame.reserve(frame_len);
            body = later;
        }
    }

    async fn end_segment(&mut self) -> Result<()> {
        if !self.frame.is_empty() {
            self.data.add_frame(&mut self.frame).await?;
        }
        let built = self.data.finish().await?;
        let length = std::mem::take(&mut self.segment_len);
        let number = self.segments.len() - 1;
        debug_assert!(length <= MAX_CHUNK_RAW_LEN && length == built.table.raw_len);
        if let Some(known) = self.session.known_chunk(&built.id, length) {
            self.segments[number] = Some(known);
            self.stats.chunks_reused += 1;
            self.stats.deduplicated_bytes += length;
            return Ok(());
        }
        self.upload(Place::Segment(number), built).await
    }

    async fn store_index(&mut self, full: FullIndexChunk) -> Result<()> {
        let number = self.entries.len();
        let known = self.session.known_chunk(&full.built.id, full.built.table.raw_len);
        // The same pages may have been compressed otherwise by whoever wrote the known chunk; then lengths differ.
        let known = known.filter(|known| known.stored_len == full.built.table.stored_len());
        self.entries.push(Listed::Written(full.entry, known));
        match known {
            Some(_) => Ok(()),
            None => self.upload(Place::Entry(number), full.built).await,
        }
    }

    /// Uploads a chunk in the background once the budget has room, and takes notice of uploads that ended.
    async fn upload(&mut self, place: Place, built: BuiltChunk) -> Result<()> {
        while let Some(upload) = self.uploads.try_join_next() {
            self.uploaded(upload??);
        }
        let budget = self.session.budget.take(built.table.stored_len()).await;
        let session = Arc::clone(&self.session);
        self.uploads.spawn(async move {
            let stored = session.put_chunk(built).await?;
            drop(budget);
            Ok(Upload { place, stored })
        });
        Ok(())
    }

    fn uploaded(&mut self, upload: Upload) {
        let Stored { chunk, found } = upload.stored;
        if found.is_none() {
            self.stats.stored_bytes += chunk.stored_len;
        }
        match upload.place {
            Place::Segment(number) => {
                self.segments[number] = Some(chunk);
                self.stats.chunks_written += 1;
                self.stats.new_bytes += chunk.raw_len;
            }
            Place::Entry(number) => {
                if let Listed::Written(pending, stored) = &mut self.entries[number] {
                    *stored = Some(chunk);
                    if let Some(found) = found {
                        pending.relocate(&found);
                    }
                }
            }
        }
    }
}
