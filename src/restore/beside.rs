//! Reading the database beside the snapshot: what it has where documents are to be restored.
//!
//! Where every document of a range was chosen, and where others than the snapshot's have to be found, both sides are merged by
//! their keys, as a stream each; else the chosen documents are asked for by name, so that nothing is billed that was not
//! chosen. A database can be read at one time for an hour only, and a restore may take longer: a scan goes on at a newer time
//! now and then. That costs no consistency, as every document is looked at and written by itself.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{BoxStream, StreamExt, TryStreamExt};

use super::conflicts::Conflicts;
use super::decide::{Decide, Shared};
use super::plan::Tally;
use super::renames::{KeyMap, renamed};
use super::rules::{Fate, Found, RestoreMode};
use super::{RestoreCounts, RestoreError};
use crate::archive::{ArchiveError, RecordBatch, RecordRef, SnapshotReader};
use crate::document::{DocumentBatch, DocumentKey, DocumentPath, DocumentRef, KeyRange, Timestamp};
use crate::firestore::{self, Firestore, ScanOptions};

/// Documents that are asked for by name together, and their bytes as far as the snapshot tells them.
const BY_NAME: usize = 300;
const BY_NAME_BYTES: usize = 2 << 20;
/// Documents to be written in a step, the bytes of their bodies, and the bytes of what the database has in their place.
const WANTED: usize = 4096;
const WANTED_BYTES: usize = 4 << 20;
const FOUND_BYTES: usize = 4 << 20;
/// Deletions in a step.
const DELETES: usize = 1000;
/// Documents after which a step ends in any case, so that progress shows.
const LOOKED_AT: u64 = 16 << 10;
/// How long a scan reads at one time.
const SCAN_LIFETIME: Duration = Duration::from_secs(600);

/// What the database has in one place.
#[derive(Clone, Debug)]
pub(super) enum OwnedFound {
    Missing,
    There { update_time: Timestamp, body: Vec<u8> },
}

impl OwnedFound {
    fn of(found: Found<'_>) -> Self {
        match found {
            Found::Missing | Found::Unknown => Self::Missing,
            Found::There { update_time, body } => Self::There {
                update_time,
                body: body.to_vec(),
            },
        }
    }

    pub(super) fn as_found(&self) -> Found<'_> {
        match self {
            Self::Missing => Found::Missing,
            Self::There { update_time, body } => Found::There {
                update_time: *update_time,
                body,
            },
        }
    }
}

/// What was found out about some documents that follow each other.
#[derive(Default)]
pub(super) struct Step {
    /// Documents of which the fields are needed to decide.
    pub(super) wanted: RecordBatch,
    /// What the database has in their places, in the same order.
    pub(super) found: Vec<OwnedFound>,
    /// Documents that only the database has and that are to go, with the times of their last changes.
    pub(super) deletes: Vec<(DocumentPath, Timestamp)>,
    /// All documents of the step, those included that nothing is written for.
    pub(super) counts: RestoreCounts,
    pub(super) tally: Tally,
    /// Documents that were changed too late.
    pub(super) conflicts: Conflicts,
    /// The last key of the snapshot's that the step has dealt with.
    pub(super) up_to: Option<DocumentKey>,
    wanted_bytes: usize,
    found_bytes: usize,
    looked_at: u64,
}

impl Step {
    fn is_full(&self) -> bool {
        self.wanted.len() >= WANTED
            || self.wanted_bytes >= WANTED_BYTES
            || self.found_bytes >= FOUND_BYTES
            || self.deletes.len() >= DELETES
            || self.looked_at >= LOOKED_AT
    }

    fn passed(&mut self, key: &[u8]) {
        self.looked_at += 1;
        self.up_to
            .get_or_insert_with(|| DocumentKey::from_bytes([]))
            .assign(key);
    }
}

/// A range of the snapshot, and the same range of the database.
pub(super) struct Beside {
    reader: SnapshotReader,
    shared: Arc<Shared>,
    database: Firestore,
    keys: KeyMap,
    records: Records,
    /// Where all of the range is read; `None` where documents are asked for by name.
    scan: Option<TargetScan>,
    ended: bool,
}

impl Beside {
    pub(super) fn new(decide: &Decide, database: Firestore, range: KeyRange) -> Self {
        let (reader, shared) = (decide.reader.clone(), Arc::clone(&decide.shared));
        let keys = shared.renames.of_piece(&range);
        let selects_groups = !reader.snapshot().selection.collection_groups.is_empty();
        let reads_all =
            shared.rules.mode == RestoreMode::Mirror || (shared.filter.is_exact() && !selects_groups);
        let scan = reads_all.then(|| TargetScan::new(&database, keys.target_range(&range)));
        Self {
            records: Records::new(&reader, range),
            reader,
            shared,
            database,
            keys,
            scan,
            ended: false,
        }
    }

    /// What was found out about the next documents; `None` at the range's end.
    pub(super) async fn next(&mut self) -> Result<Option<Step>, RestoreError> {
        if self.ended {
            return Ok(None);
        }
        let mut step = Step::default();
        match self.scan.take() {
            Some(mut scan) => {
                let merged = self.merge(&mut scan, &mut step).await;
                self.scan = Some(scan);
                merged?;
            }
            None => self.ask(&mut step).await?,
        }
        Ok(Some(step))
    }

    async fn merge(&mut self, scan: &mut TargetScan, step: &mut Step) -> Result<(), RestoreError> {
        while !step.is_full() {
            self.records.fill().await?;
            scan.fill().await?;
            let (record, document) = (self.records.current(), scan.current());
            let order = match (&record, &document) {
                (None, None) => {
                    self.ended = true;
                    return Ok(());
                }
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(record), Some(document)) => (*self.keys.target(record.key)).cmp(document.key),
            };
            if let Some(record) = record.filter(|_| order.is_le()) {
                self.record(record, document.filter(|_| order.is_eq()), step)?;
                step.passed(record.key);
                self.records.at += 1;
            } else if let Some(document) = document {
                self.only_there(document, step)?;
                step.passed(&self.keys.source(document.key));
            }
            if order.is_ge() {
                scan.advance();
            }
        }
        Ok(())
    }

    /// A document of the snapshot, with what the database has in its place.
    fn record(
        &self,
        record: RecordRef<'_>,
        there: Option<DocumentRef<'_>>,
        step: &mut Step,
    ) -> Result<(), RestoreError> {
        let path = record.path()?;
        if !self.shared.filter.matches(&path) {
            return Ok(());
        }
        let target = renamed(&self.shared.renames, &path)?.unwrap_or(path);
        step.counts.documents += 1;
        step.counts.bytes += u64::from(record.length());
        let found = match there {
            None => Found::Missing,
            Some(document) => Found::There {
                update_time: document.update_time,
                body: document.body,
            },
        };
        let rules = &self.shared.rules;
        // What a plan leaves alone and the restore sends is read by the restore, and so by the plan: it may be damaged.
        let known = rules.known_fate(&found).filter(|fate| !rules.sends_anyway(*fate));
        let fate = known.or_else(|| {
            let document = there?;
            let equal =
                rules.skips_equal_body(document.update_time) && self.is_body_of(record, document.body);
            equal.then_some(Fate::Unchanged)
        });
        if let Some(fate) = fate {
            self.shared.settle(&target, fate, step);
            return Ok(());
        }
        step.wanted_bytes += record.length() as usize;
        step.found_bytes += there.map_or(0, |document| document.body.len());
        step.wanted.push(record);
        step.found.push(OwnedFound::of(found));
        Ok(())
    }

    fn is_body_of(&self, record: RecordRef<'_>, body: &[u8]) -> bool {
        body.len() == record.length() as usize && self.reader.repository().body_hash(body) == record.body_hash
    }

    /// A document that the snapshot does not have.
    fn only_there(&self, document: DocumentRef<'_>, step: &mut Step) -> Result<(), RestoreError> {
        if self.shared.rules.mode != RestoreMode::Mirror {
            return Ok(());
        }
        // Whether it is the selection's business is asked of the name that it would have in the snapshot.
        let source = self.keys.source(document.key);
        let selection = &self.reader.snapshot().selection;
        if !selection.contains(&source) || !self.shared.filter.matches(&DocumentPath::from_key(&source)?) {
            return Ok(());
        }
        let path = document.path()?;
        if self.shared.rules.is_too_new(document.update_time) {
            self.shared.settle(&path, Fate::Conflict, step);
            return Ok(());
        }
        self.shared.settle(&path, Fate::Deleted, step);
        step.deletes.push((path, document.update_time));
        Ok(())
    }

    /// Asks for the next chosen documents by name.
    async fn ask(&mut self, step: &mut Step) -> Result<(), RestoreError> {
        let mut asked = RecordBatch::default();
        let mut paths = Vec::new();
        let mut bytes = 0;
        while asked.len() < BY_NAME && bytes < BY_NAME_BYTES && step.looked_at < LOOKED_AT {
            self.records.fill().await?;
            let Some(record) = self.records.current() else {
                self.ended = true;
                break;
            };
            let path = record.path()?;
            if self.shared.filter.matches(&path) {
                paths.push(renamed(&self.shared.renames, &path)?.unwrap_or(path));
                asked.push(record);
                bytes += record.length() as usize;
            }
            step.passed(record.key);
            self.records.at += 1;
        }
        // Renamed alike, so both are in the order of names.
        let fetched = self.database.get_documents(&paths, None).await?;
        let mut found = fetched.found.iter().peekable();
        for record in asked.iter() {
            let target = self.keys.target(record.key);
            let there = found.next_if(|document| *document.key == *target);
            self.record(record, there, step)?;
        }
        Ok(())
    }
}

/// The snapshot's records, one by one.
struct Records {
    batches: BoxStream<'static, Result<RecordBatch, ArchiveError>>,
    batch: RecordBatch,
    at: usize,
    ended: bool,
}

impl Records {
    fn new(reader: &SnapshotReader, range: KeyRange) -> Self {
        Self {
            batches: reader.records(range).boxed(),
            batch: RecordBatch::default(),
            at: 0,
            ended: false,
        }
    }

    async fn fill(&mut self) -> Result<(), ArchiveError> {
        while !self.ended && self.at >= self.batch.len() {
            match self.batches.try_next().await? {
                Some(batch) => (self.batch, self.at) = (batch, 0),
                None => self.ended = true,
            }
        }
        Ok(())
    }

    fn current(&self) -> Option<RecordRef<'_>> {
        self.batch.get(self.at)
    }
}

/// The database's documents in a range, one by one.
struct TargetScan {
    database: Firestore,
    range: KeyRange,
    stream: Option<(BoxStream<'static, firestore::Result<DocumentBatch>>, Instant)>,
    after: Option<DocumentKey>,
    batch: DocumentBatch,
    at: usize,
    ended: bool,
}

impl TargetScan {
    fn new(database: &Firestore, range: KeyRange) -> Self {
        Self {
            database: database.clone(),
            range,
            stream: None,
            after: None,
            batch: DocumentBatch::new(),
            at: 0,
            ended: false,
        }
    }

    async fn fill(&mut self) -> Result<(), RestoreError> {
        while !self.ended && self.at >= self.batch.len() {
            let fresh = self
                .stream
                .take()
                .filter(|(_, since)| since.elapsed() < SCAN_LIFETIME);
            let (mut stream, since) = match fresh {
                Some(stream) => stream,
                None => {
                    let read_time = self.database.current_read_time().await?;
                    (self.open(read_time), Instant::now())
                }
            };
            match stream.try_next().await? {
                Some(batch) => {
                    if let Some(last) = batch.last() {
                        self.after = Some(DocumentKey::from_bytes(last.key));
                    }
                    (self.batch, self.at) = (batch, 0);
                    self.stream = Some((stream, since));
                }
                None => self.ended = true,
            }
        }
        Ok(())
    }

    fn open(&self, read_time: Timestamp) -> BoxStream<'static, firestore::Result<DocumentBatch>> {
        let options = ScanOptions {
            after: self.after.clone(),
            ..ScanOptions::new(self.range.clone(), read_time)
        };
        self.database.scan(options).boxed()
    }

    fn current(&self) -> Option<DocumentRef<'_>> {
        self.batch.get(self.at)
    }

    fn advance(&mut self) {
        self.at += 1;
    }
}
