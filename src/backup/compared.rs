//! Comparing a range of the database with the parent snapshot: a merge of two ascending streams, of which the parent's is
//! its index alone.
//!
//! What comes out are [`Changes`], a batch at a time: documents to write, documents to fetch first, names that are gone.
//! Reading names, a document has changed when one of its times **differs**: with point-in-time recovery a read may go back, so
//! "is newer" would be wrong. Reading whole documents, the body's hash counts as well.

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use rand::RngExt;
use tracing::info;

use super::BackupError;
use super::reading::{Reading, contradiction, documents_left};
use crate::archive::{ArchiveError, Compared, ReadMode, RecordBatch, RecordRef, SnapshotReader};
use crate::document::{DocumentBatch, DocumentKey, DocumentPath, DocumentRef, KeyRange, Timestamp};
use crate::firestore::{Firestore, ScanOptions};

/// Names that are fetched together.
const WANTED: usize = 300;
/// Bytes of documents that are fetched or written together, as far as one can tell before they are here.
const CHANGED_BYTES: usize = 1 << 20;
/// Names that are gone, in one batch.
const DELETED: usize = 4096;
/// Unchanged documents after which a batch ends in any case, so that progress shows.
const UNCHANGED: u64 = 64 << 10;
/// Documents in a row that are gone after which the server must count none in their place.
const DOUBTFUL_GAP: usize = 256;
/// Documents after which it is looked whether most of them have changed.
const WINDOW: u64 = 1000;

/// What there is to do for some documents that follow each other.
#[derive(Default)]
pub(super) struct Changes {
    /// New and changed documents, ascending.
    pub(super) documents: DocumentBatch,
    /// New and changed documents that are yet to be fetched, ascending.
    pub(super) wanted: Vec<DocumentPath>,
    /// Unchanged documents to be fetched and compared all the same, ascending.
    pub(super) samples: Vec<Sample>,
    /// Names that are gone, ascending.
    pub(super) deleted: Vec<DocumentKey>,
    /// What need not be written.
    pub(super) compared: Compared,
    /// The last key, document or gone, up to which all that there is to do is in these changes and those before.
    pub(super) cursor: Option<DocumentKey>,
    pub(super) wanted_bytes: usize,
}

/// An unchanged document that is to be fetched all the same.
pub(super) struct Sample {
    pub(super) path: DocumentPath,
    pub(super) body_hash: u64,
    pub(super) length: u32,
}

impl Changes {
    pub(super) fn is_full(&self) -> bool {
        self.wanted.len() + self.samples.len() >= WANTED
            || self.wanted_bytes + self.documents.byte_len() >= CHANGED_BYTES
            || self.deleted.len() >= DELETED
            || self.compared.unchanged_documents() >= UNCHANGED
    }
}

/// How a range is compared.
#[derive(Clone)]
pub(super) struct Comparison {
    pub(super) database: Firestore,
    pub(super) parent: SnapshotReader,
    pub(super) read_time: Timestamp,
    /// The share of the unchanged documents that is fetched all the same.
    pub(super) sampled: f64,
}

/// Compares one range, from its start or from a cursor on.
pub(super) struct Comparer {
    comparison: Comparison,
    range: KeyRange,
    mode: ReadMode,
    records: Records,
    documents: Documents,
    /// The last document that is there.
    last: Option<DocumentKey>,
    /// Names that are gone, since then, as long as nobody has vouched for it.
    gap: Vec<DocumentKey>,
    gap_is_sure: bool,
    /// Documents and changes since it was last looked whether most have changed.
    window: (u64, u64),
    /// Unchanged documents until the next sample.
    until_sample: u64,
    finished: bool,
}

/// Why the merge pauses.
enum Pause {
    /// One of the streams needs its next batch.
    Read,
    /// The gap needs somebody to vouch for it.
    Doubt,
    /// There is enough to do.
    Full,
}

impl Comparer {
    /// Of the range, what comes after a document, if one is given.
    pub(super) fn new(
        comparison: Comparison,
        mut range: KeyRange,
        after: Option<&DocumentKey>,
        mode: ReadMode,
    ) -> Self {
        range.start = after.map(DocumentKey::after).or(range.start);
        let records = Records::new(&comparison.parent, range.clone());
        Self::with_records(comparison, range, records, mode)
    }

    /// The same of a range whose records are at hand.
    pub(super) fn with_records(
        comparison: Comparison,
        range: KeyRange,
        records: Records,
        mode: ReadMode,
    ) -> Self {
        let mode = match mode {
            ReadMode::Full => ReadMode::Full,
            ReadMode::Names | ReadMode::Changed => ReadMode::Names,
        };
        let options = match mode {
            ReadMode::Full => ScanOptions::new(range.clone(), comparison.read_time),
            _ => ScanOptions::names(range.clone(), comparison.read_time),
        };
        let selection = &comparison.parent.snapshot().selection;
        Self {
            records,
            documents: Documents::new(Reading::new(comparison.database.clone(), selection, options)),
            until_sample: next_sample(comparison.sampled),
            comparison,
            range,
            mode,
            last: None,
            gap: Vec::new(),
            gap_is_sure: false,
            window: (0, 0),
            finished: false,
        }
    }

    /// The next changes; `None` at the end of the range.
    pub(super) async fn next(&mut self) -> Result<Option<Changes>, BackupError> {
        if self.finished {
            return Ok(None);
        }
        let mut changes = Changes::default();
        loop {
            self.records.fill(&self.comparison.parent).await?;
            self.documents.fill().await?;
            if self.documents.ended {
                // The reading's end is vouched for, and so is everything that is gone before it.
                self.gap_is_sure = true;
                changes.deleted.append(&mut self.gap);
                if self.records.ended {
                    self.finished = true;
                    return Ok(Some(self.give(changes)));
                }
            }
            match self.merge(&mut changes)? {
                Pause::Read => {}
                Pause::Doubt => self.check_gap(&mut changes).await?,
                Pause::Full => return Ok(Some(self.give(changes))),
            }
            if self.mode == ReadMode::Names && self.window.0 >= WINDOW {
                let (documents, changed) = std::mem::take(&mut self.window);
                if changed * 2 > documents && !self.documents.ended {
                    info!(after = ?self.last, "most documents have changed: reading whole documents from here on");
                    self.mode = ReadMode::Full;
                    self.documents.read_whole(self.last.clone());
                    return Ok(Some(self.give(changes)));
                }
            }
        }
    }

    /// Says how far the changes go: to the last document that is there, or to the last name that is surely gone.
    fn give(&self, changes: Changes) -> Changes {
        let cursor = self.last.as_ref().max(changes.deleted.last()).cloned();
        Changes { cursor, ..changes }
    }

    /// What is left to be read for sure, past all that is in memory.
    pub(super) fn rest(&self) -> KeyRange {
        let records = &self.records.batch;
        let record = records.len().checked_sub(1).and_then(|last| records.get(last));
        let document = self.documents.batch.last();
        let read = record
            .map(|record| record.key)
            .max(document.map(|document| document.key))
            .max(self.last.as_ref().map(DocumentKey::as_bytes));
        KeyRange {
            start: match read {
                Some(key) => Some(DocumentKey::from_bytes(key).after()),
                None => self.range.start.clone(),
            },
            end: self.range.end.clone(),
        }
    }

    /// Ends earlier: where the rest, or a part of it, begins.
    pub(super) fn shorten(&mut self, end: Option<DocumentKey>) {
        self.range.end.clone_from(&end);
        let after = self
            .documents
            .batch
            .last()
            .map(|last| DocumentKey::from_bytes(last.key));
        let after = after.or_else(|| self.last.clone());
        self.records.end.clone_from(&end);
        if !self.documents.ended {
            self.documents.reading.shorten(end, after);
        }
    }

    /// Goes on as far as both batches reach.
    fn merge(&mut self, changes: &mut Changes) -> Result<Pause, BackupError> {
        loop {
            self.pass_unchanged(changes)?;
            if changes.is_full() {
                return Ok(Pause::Full);
            }
            let (record, document) = (self.records.current(), self.documents.current());
            match (record, document) {
                (Some(record), Some(document)) if record.key == document.key => {
                    self.both(changes)?;
                    self.records.position += 1;
                    self.documents.position += 1;
                }
                (Some(record), document) if document.is_none_or(|document| record.key < document.key) => {
                    if document.is_none() && !self.documents.ended {
                        return Ok(Pause::Read);
                    }
                    let key = DocumentKey::from_bytes(record.key);
                    self.records.position += 1;
                    match self.gap_is_sure {
                        true => changes.deleted.push(key),
                        false => self.gap.push(key),
                    }
                    if self.gap.len() >= DOUBTFUL_GAP {
                        return Ok(Pause::Doubt);
                    }
                }
                (record, Some(_)) => {
                    if record.is_none() && !self.records.ended {
                        return Ok(Pause::Read);
                    }
                    self.document_alone(changes)?;
                    self.documents.position += 1;
                }
                _ => return Ok(Pause::Read),
            }
            if self.window.0 >= WINDOW && self.mode == ReadMode::Names {
                return Ok(Pause::Read);
            }
        }
    }
}

impl Comparer {
    /// Passes over documents that follow each other in both and are the same by their times: most of most nights. Never
    /// past a sample, or what else there is to do at some place.
    fn pass_unchanged(&mut self, changes: &mut Changes) -> Result<(), BackupError> {
        if self.mode == ReadMode::Full || !self.gap.is_empty() || !self.records.is_whole() {
            return Ok(());
        }
        let most = self
            .until_sample
            .min(WINDOW.saturating_sub(self.window.0))
            .min(UNCHANGED.saturating_sub(changes.compared.unchanged_documents()));
        let (records, documents) = (&mut self.records, &mut self.documents);
        let mut last = None;
        let mut passed = 0;
        while passed < most
            && let Some(record) = records.batch.head(records.position)
            && let Some(document) = documents.current()
            && record.key == document.key
            && record.times == (document.create_time, document.update_time)
        {
            changes.compared.unchanged(record.key, record.length)?;
            last = Some(documents.position);
            records.position += 1;
            documents.position += 1;
            passed += 1;
        }
        if let Some(document) = last.and_then(|last| self.documents.batch.get(last)) {
            let last = self.last.get_or_insert_with(|| DocumentKey::from_bytes([]));
            last.assign(document.key);
            self.gap_is_sure = false;
            self.until_sample -= passed;
            self.window.0 += passed;
        }
        Ok(())
    }

    /// A document that the parent has too.
    fn both(&mut self, changes: &mut Changes) -> Result<(), BackupError> {
        let (Some(record), Some(document)) = (self.records.current(), self.documents.current()) else {
            return Ok(());
        };
        let same_times =
            (record.create_time, record.update_time) == (document.create_time, document.update_time);
        let unchanged = match self.mode {
            ReadMode::Names | ReadMode::Changed => same_times,
            ReadMode::Full => {
                let repository = self.comparison.parent.repository();
                same_times
                    && record.length() as usize == document.body.len()
                    && record.body_hash == repository.body_hash(document.body)
            }
        };
        if unchanged {
            changes.compared.unchanged(record.key, record.length())?;
            if self.mode == ReadMode::Names {
                match self.until_sample.checked_sub(1) {
                    Some(left) => self.until_sample = left,
                    None => {
                        self.until_sample = next_sample(self.comparison.sampled);
                        changes.wanted_bytes += record.length() as usize;
                        changes.samples.push(Sample {
                            path: path_of(document)?,
                            body_hash: record.body_hash,
                            length: record.length(),
                        });
                    }
                }
            }
        } else {
            take(self.mode, changes, document, record.length() as usize)?;
        }
        self.passed(changes, !unchanged);
        Ok(())
    }

    /// A document that the parent does not have.
    fn document_alone(&mut self, changes: &mut Changes) -> Result<(), BackupError> {
        let Some(document) = self.documents.current() else {
            return Ok(());
        };
        let parent = self.comparison.parent.snapshot();
        changes.compared.added();
        let mean = parent.body_bytes.checked_div(parent.documents).unwrap_or(0);
        take(self.mode, changes, document, mean as usize)?;
        self.passed(changes, true);
        Ok(())
    }

    /// Takes note of a document that is there: nothing is between it and the one before it but what is gone.
    fn passed(&mut self, changes: &mut Changes, changed: bool) {
        let key = self.documents.current().map(|document| document.key);
        let last = self.last.get_or_insert_with(|| DocumentKey::from_bytes([]));
        last.assign(key.unwrap_or_default());
        changes.deleted.append(&mut self.gap);
        self.gap_is_sure = false;
        self.window.0 += 1;
        self.window.1 += u64::from(changed);
    }

    /// Lets the server count what is between the last document and the next one, where the parent has many.
    async fn check_gap(&mut self, changes: &mut Changes) -> Result<(), BackupError> {
        let Some(next) = self.documents.current() else {
            return Ok(());
        };
        let gap = KeyRange {
            start: self.range.start.clone(),
            end: Some(DocumentKey::from_bytes(next.key)),
        };
        let (after, read_time) = (self.last.as_ref(), self.comparison.read_time);
        let selection = &self.comparison.parent.snapshot().selection;
        match documents_left(&self.comparison.database, selection, &gap, after, read_time).await? {
            0 => {
                self.gap_is_sure = true;
                changes.deleted.append(&mut self.gap);
                Ok(())
            }
            left => Err(contradiction(&gap, after, read_time, left)),
        }
    }
}

/// Takes a document that is to be written, `length` being what its body takes, more or less.
fn take(
    mode: ReadMode,
    changes: &mut Changes,
    document: DocumentRef<'_>,
    length: usize,
) -> Result<(), BackupError> {
    match mode {
        ReadMode::Full => changes.documents.push(document),
        ReadMode::Names | ReadMode::Changed => {
            changes.wanted_bytes += document.key.len() + length;
            changes.wanted.push(path_of(document)?);
        }
    }
    Ok(())
}

fn path_of(document: DocumentRef<'_>) -> Result<DocumentPath, BackupError> {
    Ok(document.path()?)
}

/// How many unchanged documents are passed over before the next sample: as if each were chosen with this probability.
fn next_sample(probability: f64) -> u64 {
    if probability >= 1.0 {
        return 0;
    }
    let uniform: f64 = rand::rng().random_range(f64::MIN_POSITIVE..1.0);
    // As large as it likes to be: the conversion saturates.
    (uniform.ln() / (-probability).ln_1p()) as u64
}

/// The parent's records, batch by batch.
pub(super) struct Records {
    batches: BoxStream<'static, Result<RecordBatch, ArchiveError>>,
    /// Where to end, before the batches do.
    pub(super) end: Option<DocumentKey>,
    batch: RecordBatch,
    pub(super) position: usize,
    ended: bool,
}

impl Records {
    /// These and no others.
    pub(super) fn at_hand(batch: RecordBatch) -> Self {
        Self {
            end: None,
            batches: stream::empty().boxed(),
            batch,
            position: 0,
            ended: false,
        }
    }

    pub(super) fn new(parent: &SnapshotReader, range: KeyRange) -> Self {
        Self {
            end: range.end.clone(),
            batches: parent.records(range).boxed(),
            batch: RecordBatch::default(),
            position: 0,
            ended: false,
        }
    }

    pub(super) async fn fill(&mut self, parent: &SnapshotReader) -> Result<(), BackupError> {
        while !self.ended && self.position >= self.batch.len() {
            let batch = self.batches.try_next().await;
            match batch.map_err(|error| BackupError::of_parent(parent.id(), error))? {
                Some(batch) => (self.batch, self.position) = (batch, 0),
                None => self.ended = true,
            }
        }
        self.ended |= self.position < self.batch.len() && self.current().is_none();
        Ok(())
    }

    /// Whether no record of the batch is past the end.
    fn is_whole(&self) -> bool {
        let last = self.batch.len().checked_sub(1);
        let last = last.and_then(|last| self.batch.get(last));
        self.end
            .as_ref()
            .is_none_or(|end| last.is_none_or(|last| last.key < end.as_bytes()))
    }

    pub(super) fn current(&self) -> Option<RecordRef<'_>> {
        let record = self.batch.get(self.position)?;
        let inside = self.end.as_ref().is_none_or(|end| record.key < end.as_bytes());
        inside.then_some(record)
    }
}

/// The database's documents, batch by batch.
struct Documents {
    reading: Reading,
    batch: DocumentBatch,
    position: usize,
    ended: bool,
}

impl Documents {
    fn new(reading: Reading) -> Self {
        Self {
            reading,
            batch: DocumentBatch::new(),
            position: 0,
            ended: false,
        }
    }

    async fn fill(&mut self) -> Result<(), BackupError> {
        while !self.ended && self.position >= self.batch.len() {
            match self.reading.next().await? {
                Some(batch) => (self.batch, self.position) = (batch, 0),
                None => self.ended = true,
            }
        }
        Ok(())
    }

    fn read_whole(&mut self, after: Option<DocumentKey>) {
        self.reading.read_whole(after);
        self.batch.clear();
        (self.position, self.ended) = (0, false);
    }

    fn current(&self) -> Option<DocumentRef<'_>> {
        self.batch.get(self.position)
    }
}
