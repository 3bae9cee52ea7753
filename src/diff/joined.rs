//! The merge-join of a snapshot with a database: what a difference and a proof have in common.
//!
//! Both sides come in path order, so one pass with one page of each in memory tells which documents only one side has, and
//! the hashes in the snapshot's index tell which of the others differ: no body of the snapshot is read for a document that is
//! as it should be.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering as Atomic};

use futures::stream::{self, Stream, StreamExt};
use tokio::sync::mpsc;

use super::{DiffError, DocumentChange, ReadTimes, fields_between};
use crate::archive::{ArchiveError, ChangeKind, RecordBatch, RecordRef, SnapshotReader};
use crate::compare::Cursor;
use crate::document::{
    DatabaseName, DocumentBatch, DocumentKey, DocumentPath, DocumentRef, KeyRange, PathError, Timestamp,
};
use crate::firestore::{self, Firestore, ScanOptions};
use crate::path_filter::{PathFilter, without_lock};
use crate::progress::Progress;
use crate::restore::{ReferenceMode, References, Renames};

/// Differences that are settled together at most: as many fit a fetch by name.
const BATCH_CHANGES: usize = 256;
/// Bytes of bodies that wait at most.
const BATCH_BYTES: u64 = 4 << 20;
/// How often to read names again, one time after the other, whose documents cannot be fetched any more.
const MOST_REWINDS: u32 = 3;
/// Documents after which progress is told.
const TOLD_AFTER: u64 = 256;

/// What a snapshot and a database are compared in, side by side: ranges, ascending and apart, about `parallel` equal parts of
/// the snapshot, of which only what it selects and `chosen` has; each with the collection groups that are selected there, none
/// of them where everything is. The lock of migrations is not compared.
pub(crate) async fn ranges_of(
    snapshot: &SnapshotReader,
    parallel: usize,
    chosen: &[KeyRange],
) -> Result<Vec<(KeyRange, Vec<String>)>, ArchiveError> {
    let chosen = without_lock(chosen);
    let boundaries = snapshot.page_boundaries_within(&chosen, parallel).await?;
    let mut ranges = Vec::new();
    for chosen in &chosen {
        for (part, groups) in snapshot.snapshot().selection.parts(chosen) {
            let cut = part.cut_at(&boundaries).into_iter();
            ranges.extend(cut.map(|range| (range, groups.to_vec())));
        }
    }
    Ok(ranges)
}

/// How a snapshot's references read in the database that they were written to. There "the same database" means another one, so
/// two documents can differ in their bytes and say the same.
#[derive(Clone)]
pub(crate) struct ReferencesThere {
    /// `None` where all of them read as they are stored.
    restored: Option<References>,
}

impl ReferencesThere {
    /// References of a snapshot of `source` in `there`, restored in this mode.
    pub(crate) fn new(mode: ReferenceMode, source: &DatabaseName, there: &DatabaseName) -> Self {
        let references = || References::new(mode, Some(source), there, &Renames::default());
        Self {
            restored: (source != there).then(references),
        }
    }

    fn are_as_stored(&self) -> bool {
        self.restored.is_none()
    }

    /// The body that a document has there if it has this one in the snapshot.
    pub(crate) fn body_there<'b>(
        &self,
        path: &DocumentPath,
        body: &'b [u8],
    ) -> Result<Cow<'b, [u8]>, DiffError> {
        let Some(references) = &self.restored else {
            return Ok(Cow::Borrowed(body));
        };
        references.restored(body).map_err(|source| DiffError::Body {
            path: path.clone(),
            source,
        })
    }
}

/// A snapshot and a database, to be compared range by range.
#[derive(Clone)]
pub(crate) struct Joined {
    pub(crate) snapshot: SnapshotReader,
    pub(crate) database: Firestore,
    /// The database as it was then, or later where it took too long.
    pub(crate) times: ReadTimes,
    /// Whether a document whose times are those of its record is taken to be the same unread. Only of use in the database that
    /// the snapshot is of.
    pub(crate) trust_times: bool,
    /// Whether to say which fields changed.
    pub(crate) fields: bool,
    /// Which documents.
    pub(crate) filter: PathFilter,
    /// How the snapshot's references read in the database.
    pub(crate) references: ReferencesThere,
    /// Documents that both sides have with the same fields.
    pub(crate) equal: Arc<AtomicU64>,
    /// Who watches: documents of either side, and bytes of the database's.
    pub(crate) progress: Progress,
}

/// Documents that may differ, until that is settled.
#[derive(Default)]
struct Suspects {
    /// Whether the snapshot and whether the database has each of them.
    found: Vec<(bool, bool)>,
    records: RecordBatch,
    documents: DocumentBatch,
    /// Bytes of bodies that settling them may need, as far as is known.
    bytes: u64,
    /// The first of them.
    first: Option<DocumentKey>,
}

impl Suspects {
    fn push(&mut self, record: Option<RecordRef<'_>>, document: Option<DocumentRef<'_>>) {
        self.found.push((record.is_some(), document.is_some()));
        if self.first.is_none() {
            let key = record.map(|record| record.key);
            let key = key.or(document.as_ref().map(|document| document.key));
            self.first = key.map(DocumentKey::from_bytes);
        }
        if let Some(record) = record {
            self.bytes += u64::from(record.length());
            self.records.push(record);
        }
        if let Some(document) = document {
            self.bytes += document.body.len() as u64;
            self.documents.push(document);
        }
    }

    fn is_full(&self) -> bool {
        self.found.len() >= BATCH_CHANGES || self.bytes >= BATCH_BYTES
    }
}

/// What has been seen and not yet been told.
struct Seen<'a> {
    by: &'a Joined,
    documents: u64,
    bytes: u64,
    equal: u64,
}

impl Seen<'_> {
    fn tell(&mut self) {
        self.by.progress.add(self.documents, self.bytes);
        self.by.equal.fetch_add(self.equal, Atomic::Relaxed);
        (self.documents, self.bytes, self.equal) = (0, 0, 0);
    }
}

impl Joined {
    /// The differences in a range, ascending by path, in batches. The work goes on while the stream is polled, and ends with it.
    pub(crate) fn differences(
        self,
        range: KeyRange,
        groups: Vec<String>,
    ) -> impl Stream<Item = Result<Vec<DocumentChange>, DiffError>> + Send + 'static {
        let (to, from) = mpsc::channel(1);
        let work = async move {
            let result = self.compare(range, groups, &to).await;
            if let Err(error) = result {
                // Nobody to tell when the receiver is gone.
                let _ = to.send(Err(error)).await;
            }
        };
        let received = stream::unfold(from, |mut from| async move {
            from.recv().await.map(|changes| (changes, from))
        });
        stream::select(stream::once(work).map(|()| None), received.map(Some)).filter_map(std::future::ready)
    }

    async fn compare(
        &self,
        range: KeyRange,
        groups: Vec<String>,
        to: &mpsc::Sender<Result<Vec<DocumentChange>, DiffError>>,
    ) -> Result<(), DiffError> {
        let scan = ScanOptions {
            names_only: self.trust_times,
            groups,
            // What is compared by the time that the database can be read no longer is not read again.
            batch_documents: BATCH_CHANGES,
            ..ScanOptions::new(range.clone(), self.times.newest())
        };
        let mut documents = self.times.scan(&self.database, scan);
        let mut records = self.snapshot.records(range.clone()).boxed();
        let (mut batch, mut at) = (RecordBatch::default(), 0);
        let mut suspects = Suspects::default();
        let mut rewinds = 0;
        let mut seen = Seen {
            by: self,
            documents: 0,
            bytes: 0,
            equal: 0,
        };
        loop {
            documents.fill().await?;
            while at == batch.len() {
                match records.next().await.transpose()? {
                    Some(next) => (batch, at) = (next, 0),
                    None => {
                        (batch, at) = (RecordBatch::default(), 0);
                        break;
                    }
                }
            }
            let (record, document) = (batch.get(at), documents.current());
            let ended = record.is_none() && document.is_none();
            let order = match (record, document) {
                (None, None) => Ordering::Equal,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(record), Some(document)) => record.key.cmp(document.key),
            };
            let record = record.filter(|_| order.is_le());
            let document = document.filter(|_| order.is_ge());
            if self.concerns(record, document)? {
                seen.documents += 1;
                seen.bytes += document.map_or(0, |document| document.body.len() as u64);
                match self.differ(record, document) {
                    true => suspects.push(record, document),
                    false => seen.equal += 1,
                }
            }
            if !ended {
                at += usize::from(order.is_le());
                if order.is_ge() {
                    documents.advance();
                }
            }
            if seen.documents >= TOLD_AFTER {
                seen.tell();
            }
            if !ended && !suspects.is_full() {
                continue;
            }
            let (first, suspects) = (suspects.first.clone(), std::mem::take(&mut suspects));
            match self.settle_and_send(suspects, documents.read_time(), to).await {
                // Their names were read, and they cannot be fetched any more: what follows the first of them is read again.
                Err(DiffError::Firestore(firestore::Error::ReadTimeTooOld { read_time, .. }))
                    if let Some(first) = first
                        && rewinds < MOST_REWINDS =>
                {
                    rewinds += 1;
                    let rest = KeyRange {
                        start: Some(first),
                        end: range.end.clone(),
                    };
                    documents.go_back(rest.clone(), read_time).await?;
                    records = self.snapshot.records(rest).boxed();
                    (batch, at) = (RecordBatch::default(), 0);
                    continue;
                }
                settled => settled?,
            }
            rewinds = 0;
            if ended {
                seen.tell();
                return Ok(());
            }
        }
    }

    /// Compares the documents of some records, which ascend, with what the database has under their names. Which documents
    /// only the database has cannot show. Reads each of them.
    pub(crate) async fn compare_records(
        &self,
        records: &RecordBatch,
    ) -> Result<Vec<DocumentChange>, DiffError> {
        let paths = records.iter().map(|record| record.path());
        let paths = paths.collect::<Result<Vec<_>, PathError>>()?;
        let read_time = self.times.newest();
        let fetched = self.times.fetch(&self.database, &paths, read_time).await?;
        // What follows is looked at no earlier.
        if let Some(first) = paths.first() {
            self.times.note_rest(first);
        }
        let mut documents = fetched.found.iter().peekable();
        let mut suspects = Suspects::default();
        let mut equal = 0;
        for record in records.iter() {
            let document = documents.next_if(|document| document.key == record.key);
            match self.differ(Some(record), document) {
                true => suspects.push(Some(record), document),
                false => equal += 1,
            }
        }
        self.equal.fetch_add(equal, Atomic::Relaxed);
        self.progress
            .add(records.len() as u64, fetched.found.byte_len() as u64);
        self.settle(suspects, read_time).await
    }

    /// Whether what one or both sides have is to be compared at all.
    fn concerns(
        &self,
        record: Option<RecordRef<'_>>,
        document: Option<DocumentRef<'_>>,
    ) -> Result<bool, PathError> {
        let key = match (record, document) {
            (Some(record), _) => record.key,
            (None, Some(document)) if self.snapshot.snapshot().selection.contains(document.key) => {
                document.key
            }
            _ => return Ok(false),
        };
        Ok(self.filter.is_all() || self.filter.matches(&DocumentPath::from_key(key)?))
    }

    /// Whether the two may differ, as far as the scan tells.
    fn differ(&self, record: Option<RecordRef<'_>>, document: Option<DocumentRef<'_>>) -> bool {
        match (record, document) {
            (Some(record), Some(document)) if self.trust_times => {
                (record.create_time, record.update_time) != (document.create_time, document.update_time)
            }
            (Some(record), Some(document)) => !self.is_body_of(record, document.body),
            _ => true,
        }
    }

    fn is_body_of(&self, record: RecordRef<'_>, body: &[u8]) -> bool {
        body.len() == record.length() as usize
            && self.snapshot.repository().body_hash(body) == record.body_hash
    }

    async fn settle_and_send(
        &self,
        suspects: Suspects,
        read_time: Timestamp,
        to: &mpsc::Sender<Result<Vec<DocumentChange>, DiffError>>,
    ) -> Result<(), DiffError> {
        let changes = self.settle(suspects, read_time).await?;
        if !changes.is_empty() {
            // Nobody to tell when the receiver is gone.
            let _ = to.send(Ok(changes)).await;
        }
        Ok(())
    }

    /// Finds out what is different about suspects that were met at `read_time`.
    async fn settle(
        &self,
        suspects: Suspects,
        read_time: Timestamp,
    ) -> Result<Vec<DocumentChange>, DiffError> {
        let Suspects {
            found,
            records,
            documents,
            ..
        } = suspects;
        let mut changes = Vec::with_capacity(found.len());
        let (mut of_records, mut of_documents) = (records.iter(), documents.iter());
        let mut in_both = RecordBatch::default();
        for (in_snapshot, in_database) in found {
            let record = in_snapshot.then(|| of_records.next()).flatten();
            let document = in_database.then(|| of_documents.next()).flatten();
            let (kind, key) = match (record, document) {
                (Some(record), Some(_)) => {
                    in_both.push(record);
                    (ChangeKind::Changed, record.key)
                }
                (Some(record), None) => (ChangeKind::Deleted, record.key),
                (None, Some(document)) => (ChangeKind::Added, document.key),
                (None, None) => continue,
            };
            changes.push(DocumentChange {
                path: DocumentPath::from_key(key)?,
                kind,
                fields: Vec::new(),
            });
        }
        if self.trust_times {
            let paths = paths_of_changed(&changes);
            let fetched = self.database.get_documents(&paths, Some(read_time)).await?;
            self.settle_changed(&in_both, &fetched.found, &mut changes)
                .await?;
        } else {
            self.settle_changed(&in_both, &documents, &mut changes).await?;
            // Their times were not asked for.
            let suspected = changes.len();
            changes.retain(|change| change.kind != ChangeKind::Rewritten);
            let equal = suspected - changes.len();
            self.equal.fetch_add(equal as u64, Atomic::Relaxed);
        }
        Ok(changes)
    }

    /// Tells the rewritten from the changed and names the fields of these.
    async fn settle_changed(
        &self,
        in_both: &RecordBatch,
        documents: &DocumentBatch,
        changes: &mut [DocumentChange],
    ) -> Result<(), DiffError> {
        let mut new = documents.iter().peekable();
        let mut pairs = Vec::new();
        let mut different = RecordBatch::default();
        let changed = changes
            .iter_mut()
            .filter(|change| change.kind == ChangeKind::Changed);
        for (change, record) in changed.zip(in_both.iter()) {
            while new.next_if(|document| document.key < record.key).is_some() {}
            let Some(document) = new.next_if(|document| document.key == record.key) else {
                continue;
            };
            if self.is_body_of(record, document.body) {
                change.kind = ChangeKind::Rewritten;
            } else {
                different.push(record);
                pairs.push((change, document));
            }
        }
        if !self.fields && self.references.are_as_stored() {
            return Ok(());
        }
        let bodies = self
            .snapshot
            .bodies(stream::once(std::future::ready(Ok(different))));
        let bodies = pin!(bodies);
        let mut old = Cursor::new(bodies);
        for (change, document) in pairs {
            old.fill().await?;
            if let Some(old) = old.current() {
                let there = self.references.body_there(&change.path, old.body)?;
                if *there == *document.body {
                    change.kind = ChangeKind::Rewritten;
                } else if self.fields {
                    change.fields = fields_between(&change.path, &there, document.body)?;
                }
            }
            old.advance();
        }
        Ok(())
    }
}

fn paths_of_changed(changes: &[DocumentChange]) -> Vec<DocumentPath> {
    changes
        .iter()
        .filter(|change| change.kind == ChangeKind::Changed)
        .map(|change| change.path.clone())
        .collect()
}
