//! Writes documents as JSON files, one a root collection: from a snapshot, or straight from a database; or a snapshot as NDJSON.

mod ndjson;

use std::path::{Path, PathBuf};
use std::pin::pin;

use chrono::{DateTime, Utc};
use futures::{Stream, TryStreamExt};
use tokio::sync::mpsc;

use crate::archive::{ArchiveError, Lease, Snapshot, SnapshotReader};
use crate::document::{
    CollectionPath, DatabaseName, DocumentBatch, DocumentRef, KeyRange, PathError, Timestamp,
};
use crate::firestore::{self, Firestore, ScanOptions};
use crate::json::{BackupSummary, CollectionWriter, JsonError, Origin, WrittenFile};
use crate::progress::Progress;

pub use ndjson::{LinesOptions, LinesStats, LinesTo, WrittenLines, export_lines};

/// Batches that wait for the thread that writes.
const WAITING_BATCHES: usize = 4;

/// The collection in which migrations are recorded. Backups of all collections leave it out unless asked for it.
pub const MIGRATIONS_COLLECTION: &str = "_migrations";

/// The collection of the lock that whoever runs migrations holds. It is left out with them.
pub const MIGRATIONS_LOCK_COLLECTION: &str = "_migrations_lock";

/// What to write where.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The folder for the files. It must exist.
    pub folder: PathBuf,
    /// Root collections; none means all.
    pub collections: Vec<CollectionPath>,
    /// Whether all collections include [`MIGRATIONS_COLLECTION`].
    pub include_migrations: bool,
    /// The time that goes into the files and their names.
    pub time: DateTime<Utc>,
}

/// What an export wrote.
#[derive(Debug)]
pub struct ExportStats {
    /// The files, by collection.
    pub files: Vec<(CollectionPath, WrittenFile)>,
    /// Collections without a file, and why.
    pub failed: Vec<(CollectionPath, ExportError)>,
    /// The file that sums it up.
    pub summary: PathBuf,
}

/// A collection that could not be written. No file of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The database could not be read.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// The snapshot could not be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The file could not be written.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A document has no path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The documents ended without an end.
    #[error("reading stopped before the last document")]
    Interrupted,
    /// The thread that writes is gone.
    #[error("the thread that writes the file stopped: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// Writes collections of a database, all at one read time.
///
/// # Errors
/// When the collections cannot be listed or the summary cannot be written. A collection that fails does not stop the
/// others: see [`ExportStats::failed`].
pub async fn export_database(
    database: &Firestore,
    options: &ExportOptions,
    progress: &Progress,
) -> Result<ExportStats, ExportError> {
    let read_time = database.current_read_time().await?;
    let collections = match options.collections.is_empty() {
        false => options.collections.clone(),
        true => {
            let ids: Vec<String> = database
                .collection_ids(None, Some(read_time))
                .try_collect()
                .await?;
            all_collections(ids.into_iter(), options.include_migrations)?
        }
    };
    let scan = |range| {
        database
            .scan(ScanOptions::new(range, read_time))
            .map_err(ExportError::from)
    };
    export(
        scan,
        collections,
        database.database(),
        Some(read_time),
        options,
        progress,
    )
    .await
}

/// Writes collections of a snapshot.
///
/// # Errors
/// As [`export_database`].
pub async fn export_snapshot(
    reader: &SnapshotReader,
    snapshot: &Snapshot,
    options: &ExportOptions,
    progress: &Progress,
) -> Result<ExportStats, ExportError> {
    let lease = Lease::of(reader, "export").await?;
    let mut exported = export_collections(reader, snapshot, options, progress).await;
    lease.release().await;
    match &mut exported {
        Err(error) => explain(reader, error).await,
        Ok(stats) => {
            for (_, error) in &mut stats.failed {
                explain(reader, error).await;
            }
        }
    }
    exported
}

/// Puts the real reason in the place of a missing object, where the snapshot was forgotten meanwhile.
async fn explain(reader: &SnapshotReader, error: &mut ExportError) {
    if let ExportError::Archive(inner) = error {
        let taken = std::mem::replace(
            inner,
            ArchiveError::Forgotten {
                snapshot: reader.id(),
            },
        );
        *inner = reader.repository().explain(reader.id(), taken).await;
    }
}

async fn export_collections(
    reader: &SnapshotReader,
    snapshot: &Snapshot,
    options: &ExportOptions,
    progress: &Progress,
) -> Result<ExportStats, ExportError> {
    let collections = chosen_collections(reader, &options.collections, options.include_migrations).await?;
    let documents = |range| reader.documents(range).map_err(ExportError::from);
    export(
        documents,
        collections,
        &snapshot.database,
        Some(snapshot.read_time),
        options,
        progress,
    )
    .await
}

/// The collections that were named, else all of the snapshot.
async fn chosen_collections(
    reader: &SnapshotReader,
    named: &[CollectionPath],
    include_migrations: bool,
) -> Result<Vec<CollectionPath>, ExportError> {
    match named.is_empty() {
        false => Ok(named.to_vec()),
        true => Ok(all_collections(
            root_collections(reader).await?.into_iter(),
            include_migrations,
        )?),
    }
}

fn all_collections(
    ids: impl Iterator<Item = String>,
    include_migrations: bool,
) -> Result<Vec<CollectionPath>, PathError> {
    let ours = |id: &String| id == MIGRATIONS_COLLECTION || id == MIGRATIONS_LOCK_COLLECTION;
    ids.filter(|id| include_migrations || !ours(id))
        .map(CollectionPath::parse)
        .collect()
}

/// The root collections of a snapshot, found by skipping from one to the next in its index.
async fn root_collections(reader: &SnapshotReader) -> Result<Vec<String>, ExportError> {
    let mut found = Vec::new();
    let mut from = None;
    loop {
        let rest = KeyRange {
            start: from,
            end: None,
        };
        let mut records = pin!(reader.records(rest));
        let Some(batch) = records.try_next().await? else {
            return Ok(found);
        };
        let Some(first) = batch.iter().next() else {
            return Ok(found);
        };
        let id = crate::document::DocumentPath::from_key(first.key)?
            .root_collection()
            .to_owned();
        from = CollectionPath::parse(&*id)?.key_range().end;
        found.push(id);
    }
}

async fn export<S>(
    documents: impl Fn(KeyRange) -> S,
    collections: Vec<CollectionPath>,
    database: &DatabaseName,
    read_time: Option<Timestamp>,
    options: &ExportOptions,
    progress: &Progress,
) -> Result<ExportStats, ExportError>
where
    S: Stream<Item = Result<DocumentBatch, ExportError>>,
{
    let (mut files, mut failed) = (Vec::new(), Vec::new());
    for collection in collections {
        let origin = Origin {
            collection: collection.clone(),
            database: database.clone(),
            time: options.time,
            read_time,
        };
        match write_file(
            documents(collection.key_range()),
            &options.folder,
            origin,
            progress,
        )
        .await
        {
            Ok(file) => files.push((collection, file)),
            Err(error) => failed.push((collection, error)),
        }
    }
    let written: Vec<_> = files
        .iter()
        .map(|(path, file)| (path.to_string(), file.file.clone()))
        .collect();
    let not_written: Vec<_> = failed.iter().map(|(path, _)| path.to_string()).collect();
    let summary =
        BackupSummary::new(options.time, &written, &not_written).write(&options.folder, options.time)?;
    Ok(ExportStats {
        files,
        failed,
        summary,
    })
}

/// What the reading side tells the writing thread. A channel that closes without `End` leaves no file.
enum Message {
    Documents(DocumentBatch),
    End,
}

/// Takes documents in path order, on a thread that may wait for the disk. Dropped before it is finished, it leaves nothing that looks
/// whole.
trait Writer {
    type Written: Send + 'static;
    fn write(&mut self, document: DocumentRef<'_>) -> Result<(), ExportError>;
    fn finish(self) -> Result<Self::Written, ExportError>;
}

impl Writer for CollectionWriter {
    type Written = WrittenFile;

    fn write(&mut self, document: DocumentRef<'_>) -> Result<(), ExportError> {
        Ok(CollectionWriter::write(self, &document.path()?, document.body)?)
    }

    fn finish(self) -> Result<WrittenFile, ExportError> {
        Ok(CollectionWriter::finish(self)?)
    }
}

async fn write_file(
    documents: impl Stream<Item = Result<DocumentBatch, ExportError>>,
    folder: &Path,
    origin: Origin,
    progress: &Progress,
) -> Result<WrittenFile, ExportError> {
    let folder = folder.to_owned();
    let open = move || Ok(CollectionWriter::create(&folder, origin)?);
    write_through(documents, open, progress).await
}

/// Hands documents to a writer on a thread of its own.
async fn write_through<W: Writer>(
    documents: impl Stream<Item = Result<DocumentBatch, ExportError>>,
    open: impl FnOnce() -> Result<W, ExportError> + Send + 'static,
    progress: &Progress,
) -> Result<W::Written, ExportError> {
    let (sender, receiver) = mpsc::channel(WAITING_BATCHES);
    let writing = tokio::task::spawn_blocking(move || write_messages(open()?, receiver));
    let read = async move {
        let mut documents = pin!(documents);
        while let Some(batch) = documents.try_next().await? {
            let (count, bytes) = (batch.len() as u64, batch.byte_len() as u64);
            if sender.send(Message::Documents(batch)).await.is_err() {
                // The writing side has failed, and its error is the one to report.
                return Ok(());
            }
            progress.add(count, bytes);
        }
        // As above.
        let _ = sender.send(Message::End).await;
        Ok::<_, ExportError>(())
    };
    let read = read.await;
    let written = writing.await?;
    read?;
    written?.ok_or(ExportError::Interrupted)
}

fn write_messages<W: Writer>(
    mut writer: W,
    mut messages: mpsc::Receiver<Message>,
) -> Result<Option<W::Written>, ExportError> {
    while let Some(message) = messages.blocking_recv() {
        match message {
            Message::Documents(batch) => {
                for document in batch.iter() {
                    writer.write(document)?;
                }
            }
            Message::End => return Ok(Some(writer.finish()?)),
        }
    }
    Ok(None)
}
