//! A snapshot against the live database.
//!
//! The database that the snapshot is of is read by names: a document whose times are those of the record has not changed, and
//! only the others are fetched. In another database, such as one that the snapshot was restored into, all times differ and
//! the documents are read whole.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::pin::pin;

use futures::stream::{self, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{DiffError, DiffOptions, DocumentChange, fields_between, leased};
use crate::archive::{ChangeKind, RecordBatch, RecordRef, SnapshotReader};
use crate::compare::Cursor;
use crate::document::{DocumentBatch, DocumentPath, DocumentRef, KeyRange, Timestamp};
use crate::firestore::{Firestore, ScanOptions};

/// Differences that are settled together at most: as many fit a fetch by name.
const BATCH_CHANGES: usize = 256;
/// Bytes of bodies that wait at most.
const BATCH_BYTES: usize = 4 << 20;
/// Batches that a range may be ahead of whoever reads the differences.
const WAITING_BATCHES: usize = 4;

/// What changed from a snapshot to the database as it is at `read_time`, ascending by path, in batches; only what the
/// snapshot selects.
///
/// # Errors
/// When the snapshot's directory cannot be read; what goes wrong later ends the stream.
pub async fn diff_live(
    snapshot: &SnapshotReader,
    database: &Firestore,
    read_time: Timestamp,
    options: &DiffOptions,
) -> Result<impl Stream<Item = Result<Vec<DocumentChange>, DiffError>> + Send + 'static + use<>, DiffError> {
    let boundaries = snapshot.page_boundaries(options.parallel).await?;
    let comparison = Comparison {
        snapshot: snapshot.clone(),
        database: database.clone(),
        read_time,
        names_only: snapshot.snapshot().database == *database.database(),
        fields: options.fields,
    };
    let mut ranges = Vec::new();
    for (part, groups) in snapshot.snapshot().selection.parts(&options.range) {
        let cut = part.cut_at(&boundaries).into_iter();
        ranges.extend(cut.map(|range| (range, groups.to_vec())));
    }
    let differences = side_by_side(comparison, ranges);
    Ok(leased(vec![snapshot.clone()], differences))
}

/// Compares ranges at the same time, and gives the differences of one after those of the other.
fn side_by_side(
    comparison: Comparison,
    ranges: Vec<(KeyRange, Vec<String>)>,
) -> impl Stream<Item = Result<Vec<DocumentChange>, DiffError>> + Send + 'static {
    // Dropping the set stops them all.
    let mut tasks = JoinSet::new();
    let mut receivers = VecDeque::new();
    for (range, groups) in ranges {
        let (to, from) = mpsc::channel(WAITING_BATCHES);
        receivers.push_back(from);
        tasks.spawn(comparison.clone().send_differences(range, groups, to));
    }
    stream::try_unfold((tasks, receivers), |(mut tasks, mut receivers)| async move {
        while let Some(receiver) = receivers.front_mut() {
            if let Some(changes) = receiver.recv().await {
                return Ok(Some((changes?, (tasks, receivers))));
            }
            receivers.pop_front();
            // A task that was stopped has not said all.
            while let Some(ended) = tasks.try_join_next() {
                ended?;
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended?;
        }
        Ok(None)
    })
}

/// One range of a snapshot and of the database.
#[derive(Clone)]
struct Comparison {
    snapshot: SnapshotReader,
    database: Firestore,
    read_time: Timestamp,
    names_only: bool,
    fields: bool,
}

/// Documents that may differ, until that is settled.
#[derive(Default)]
struct Suspects {
    /// Whether the snapshot and whether the database has each of them.
    found: Vec<(bool, bool)>,
    records: RecordBatch,
    documents: DocumentBatch,
}

impl Suspects {
    fn push(&mut self, record: Option<RecordRef<'_>>, document: Option<DocumentRef<'_>>) {
        self.found.push((record.is_some(), document.is_some()));
        if let Some(record) = record {
            self.records.push(record);
        }
        if let Some(document) = document {
            self.documents.push(document);
        }
    }

    fn is_full(&self) -> bool {
        self.found.len() >= BATCH_CHANGES || self.documents.byte_len() >= BATCH_BYTES
    }
}

impl Comparison {
    /// Sends what is different in a range, or why that cannot be told.
    async fn send_differences(
        self,
        range: KeyRange,
        groups: Vec<String>,
        to: mpsc::Sender<Result<Vec<DocumentChange>, DiffError>>,
    ) {
        if let Err(error) = self.compare(range, groups, &to).await {
            // Nobody to tell when the receiver is gone.
            let _ = to.send(Err(error)).await;
        }
    }

    async fn compare(
        &self,
        range: KeyRange,
        groups: Vec<String>,
        to: &mpsc::Sender<Result<Vec<DocumentChange>, DiffError>>,
    ) -> Result<(), DiffError> {
        let scan = ScanOptions {
            names_only: self.names_only,
            groups,
            ..ScanOptions::new(range.clone(), self.read_time)
        };
        let mut documents = Cursor::new(Box::pin(self.database.scan(scan)));
        let mut records = pin!(self.snapshot.records(range));
        let (mut batch, mut at) = (RecordBatch::default(), 0);
        let mut suspects = Suspects::default();
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
            let order = match (record, document) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(record), Some(document)) => record.key.cmp(document.key),
            };
            let record = record.filter(|_| order.is_le());
            let document = document.filter(|_| order.is_ge());
            if self.differ(record, document) {
                suspects.push(record, document);
            }
            at += usize::from(order.is_le());
            if order.is_ge() {
                documents.advance();
            }
            if suspects.is_full() {
                self.settle(std::mem::take(&mut suspects), to).await?;
            }
        }
        self.settle(suspects, to).await
    }

    /// Whether the two may differ, as far as the scan tells.
    fn differ(&self, record: Option<RecordRef<'_>>, document: Option<DocumentRef<'_>>) -> bool {
        match (record, document) {
            (Some(record), Some(document)) if self.names_only => {
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

    /// Finds out what is different about suspects, and sends it.
    async fn settle(
        &self,
        suspects: Suspects,
        to: &mpsc::Sender<Result<Vec<DocumentChange>, DiffError>>,
    ) -> Result<(), DiffError> {
        let Suspects {
            found,
            records,
            documents,
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
        if self.names_only {
            let paths = paths_of_changed(&changes);
            let fetched = self.database.get_documents(&paths, Some(self.read_time)).await?;
            self.settle_changed(&in_both, &fetched.found, &mut changes)
                .await?;
        } else {
            self.settle_changed(&in_both, &documents, &mut changes).await?;
        }
        if !changes.is_empty() {
            // Nobody to tell when the receiver is gone.
            let _ = to.send(Ok(changes)).await;
        }
        Ok(())
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
        if !self.fields {
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
                change.fields = fields_between(&change.path, old.body, document.body)?;
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
