//! What changed: between two snapshots, or between a snapshot and the live database.
//!
//! The answer is a stream of documents in path order, so that it may be of any length. Which documents changed is told by
//! the index alone; bodies are read only to say which fields did.

pub(crate) mod joined;
mod live;
mod read_times;

use std::collections::BTreeMap;
use std::pin::pin;

use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use serde::Serialize;

use crate::archive::{ArchiveError, ChangeBatch, ChangeKind, Lease, RecordBatch, SnapshotReader, changes};
use crate::compare::Cursor;
use crate::document::{
    CanonicalError, DocumentPath, FieldChange, KeyRange, PathError, canonical, changed_fields,
};
use crate::firestore;

pub use live::diff_live;
pub use read_times::ReadTimes;

/// What to compare, and how closely.
#[derive(Clone, Debug)]
pub struct DiffOptions {
    /// Only documents with these keys.
    pub range: KeyRange,
    /// Whether to say which fields changed: reads the bodies of the documents that did.
    pub fields: bool,
    /// Key ranges of the live database to read at the same time.
    pub parallel: usize,
}

impl Default for DiffOptions {
    fn default() -> Self {
        Self {
            range: KeyRange::all(),
            fields: true,
            parallel: 8,
        }
    }
}

/// A document that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentChange {
    /// The document.
    pub path: DocumentPath,
    /// How it differs.
    pub kind: ChangeKind,
    /// The fields that changed; empty unless they were asked for and the document is in both with other fields.
    pub fields: Vec<FieldChange>,
}

/// How many documents differ, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChangeCounts {
    /// Documents that only the newer side has.
    pub added: u64,
    /// Documents that both have, with other fields.
    pub changed: u64,
    /// Documents that were written again with the same fields.
    pub rewritten: u64,
    /// Documents that only the older side has.
    pub deleted: u64,
}

impl ChangeCounts {
    /// Counts one more.
    pub fn add(&mut self, kind: ChangeKind) {
        *match kind {
            ChangeKind::Added => &mut self.added,
            ChangeKind::Changed => &mut self.changed,
            ChangeKind::Rewritten => &mut self.rewritten,
            ChangeKind::Deleted => &mut self.deleted,
        } += 1;
    }
}

/// Sums up changes: in all, and by root collection with everything below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiffSummary {
    /// All.
    #[serde(flatten)]
    pub total: ChangeCounts,
    /// By root collection.
    pub collections: BTreeMap<String, ChangeCounts>,
}

impl DiffSummary {
    /// Counts one more.
    pub fn add(&mut self, change: &DocumentChange) {
        self.total.add(change.kind);
        let collection = change.path.as_str().split('/').next().unwrap_or_default();
        match self.collections.get_mut(collection) {
            Some(counts) => counts.add(change.kind),
            None => {
                let mut counts = ChangeCounts::default();
                counts.add(change.kind);
                self.collections.insert(collection.to_owned(), counts);
            }
        }
    }
}

/// The two sides could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A snapshot could not be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The database could not be read.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// A key is no document's.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A body is not in canonical form.
    #[error("the fields of `{path}` cannot be decoded; run `firebank verify --read-data`")]
    Body {
        /// The document.
        path: DocumentPath,
        /// What is wrong with it.
        #[source]
        source: CanonicalError,
    },
    /// A task was stopped from outside.
    #[error("a worker stopped: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// What changed from one snapshot to another, ascending by path, in batches. Of snapshots with different selections, only
/// what both select.
pub fn diff(
    old: &SnapshotReader,
    new: &SnapshotReader,
    options: &DiffOptions,
) -> impl Stream<Item = Result<Vec<DocumentChange>, DiffError>> + Send + 'static + use<> {
    let (old, new, fields) = (old.clone(), new.clone(), options.fields);
    let readers = vec![old.clone(), new.clone()];
    let changes = changes(&old, &new, &options.range).then(move |batch| {
        let (old, new) = (old.clone(), new.clone());
        async move {
            let batch = batch?;
            let mut changes = without_fields(&batch)?;
            if fields {
                name_fields(&old, &new, &batch, &mut changes).await?;
            }
            Ok(changes)
        }
    });
    leased(readers, changes)
}

/// Holds a lease on the snapshots for as long as the stream is read, and tells one that was forgotten meanwhile from one that
/// is damaged.
fn leased<T: Send + 'static>(
    readers: Vec<SnapshotReader>,
    changes: impl Stream<Item = Result<T, DiffError>> + Send + 'static,
) -> impl Stream<Item = Result<T, DiffError>> + Send + 'static {
    stream::once(async move {
        let lease = Lease::of_all(&readers, "diff").await?;
        Ok::<_, DiffError>((lease, readers, changes.boxed()))
    })
    .map_ok(|state| {
        stream::try_unfold(state, |(lease, readers, mut changes)| async move {
            match changes.next().await {
                Some(Ok(batch)) => Ok(Some((batch, (lease, readers, changes)))),
                Some(Err(DiffError::Archive(mut error))) => {
                    for reader in &readers {
                        error = reader.repository().explain(reader.id(), error).await;
                    }
                    Err(error.into())
                }
                Some(Err(error)) => Err(error),
                None => {
                    lease.release().await;
                    Ok(None)
                }
            }
        })
    })
    .try_flatten()
}

fn without_fields(batch: &ChangeBatch) -> Result<Vec<DocumentChange>, PathError> {
    let change = |change: crate::archive::Change<'_>| {
        Ok(DocumentChange {
            path: DocumentPath::from_key(change.key())?,
            kind: change.kind,
            fields: Vec::new(),
        })
    };
    batch.iter().map(change).collect()
}

/// Reads both versions of the documents that changed, a few at a time.
async fn name_fields(
    old: &SnapshotReader,
    new: &SnapshotReader,
    batch: &ChangeBatch,
    changes: &mut [DocumentChange],
) -> Result<(), DiffError> {
    let (mut of_old, mut of_new) = (RecordBatch::default(), RecordBatch::default());
    for change in batch.iter().filter(|change| change.kind == ChangeKind::Changed) {
        change.old.into_iter().for_each(|record| of_old.push(record));
        change.new.into_iter().for_each(|record| of_new.push(record));
    }
    let once = |records: RecordBatch| stream::once(std::future::ready(Ok(records)));
    let (old, new) = (pin!(old.bodies(once(of_old))), pin!(new.bodies(once(of_new))));
    let (mut old, mut new) = (Cursor::new(old), Cursor::new(new));
    for change in changes
        .iter_mut()
        .filter(|change| change.kind == ChangeKind::Changed)
    {
        old.fill().await?;
        new.fill().await?;
        if let (Some(old), Some(new)) = (old.current(), new.current()) {
            change.fields = fields_between(&change.path, old.body, new.body)?;
        }
        old.advance();
        new.advance();
    }
    Ok(())
}

/// The fields that differ between two bodies of a document.
pub(crate) fn fields_between(
    path: &DocumentPath,
    old: &[u8],
    new: &[u8],
) -> Result<Vec<FieldChange>, DiffError> {
    let decode = |body| {
        canonical::decode(body).map_err(|source| DiffError::Body {
            path: path.clone(),
            source,
        })
    };
    Ok(changed_fields(&decode(old)?, &decode(new)?))
}
