//! Puts documents of a snapshot into a database.
//!
//! Several key ranges are read side by side and feed one writer, so that neighbouring writes lie far apart in the key
//! space: writes in key order would all go to one tablet of the database at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tonic::Code;

use crate::archive::{ArchiveError, DocumentSink, Lease, SnapshotReader};
use crate::document::{DocumentPath, DocumentRef, KeyRange, PathError};
use crate::firestore::{
    self, BulkWriter, DeadLetterFile, EncodedWrites, FailureSink, Firestore, WriteEncoder, WriteFailure,
    WriteMode, WriteOptions, WriteStats,
};
use crate::path_filter::PathFilter;
use crate::progress::Progress;

/// Batches that wait for the writer. A few are enough: the readers refill faster than a database writes.
const WAITING_BATCHES: usize = 4;

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Which documents.
    pub filter: PathFilter,
    /// How to write.
    pub write: WriteOptions,
    /// How many key ranges of the snapshot are read at the same time.
    pub parallel: usize,
    /// Where documents go that the database refuses. Made when the first one is.
    pub dead_letter_file: PathBuf,
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct RestoreStats {
    /// Documents that were chosen.
    pub documents: u64,
    /// Bytes of their fields, in canonical form.
    pub bytes: u64,
    /// Documents that the database has taken.
    pub written: u64,
    /// Documents that were there already and stay as they were ([`WriteMode::CreateOnly`]).
    pub existing: u64,
    /// Documents that the database refused; the dead-letter file has them.
    pub failed: u64,
    /// How the writer fared.
    pub writes: WriteStats,
    /// How long it took.
    pub duration: Duration,
}

/// What a restore would write.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RestorePlan {
    /// Documents that were chosen.
    pub documents: u64,
    /// Bytes of their fields, in canonical form.
    pub bytes: u64,
    /// Documents by root collection, everything below it included.
    pub collections: BTreeMap<String, u64>,
}

impl RestorePlan {
    pub(crate) fn add(&mut self, path: &DocumentPath, bytes: u64) {
        self.documents += 1;
        self.bytes += bytes;
        match self.collections.get_mut(path.root_collection()) {
            Some(documents) => *documents += 1,
            None => drop(self.collections.insert(path.root_collection().to_owned(), 1)),
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        for (collection, documents) in other.collections {
            *self.collections.entry(collection).or_default() += documents;
        }
    }
}

/// A restore that stopped. What it wrote before stays written; to run it again does no harm.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot could not be read.
    #[error("{}{}", .0, advice(.0))]
    Archive(#[from] ArchiveError),
    /// The database could not be written.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// A record of the snapshot has no path.
    #[error(
        "the snapshot names a document that has no path: {0}; `firebank verify --read-data` shows what is damaged"
    )]
    Path(#[from] PathError),
}

fn advice(error: &ArchiveError) -> &'static str {
    match error {
        ArchiveError::Damaged(_) => {
            ". `firebank verify --read-data` shows what else is damaged; --only restores what is not"
        }
        _ => "",
    }
}

/// Says what [`restore`] would write, without reading a single body.
pub async fn plan_restore(reader: &SnapshotReader, filter: &PathFilter) -> Result<RestorePlan, RestoreError> {
    let mut plan = RestorePlan::default();
    for range in filter.ranges() {
        let mut records = pin!(reader.records(range.clone()));
        while let Some(batch) = records.try_next().await? {
            for record in batch.iter() {
                let path = DocumentPath::from_key(record.key)?;
                if !filter.matches(&path) {
                    continue;
                }
                plan.add(&path, u64::from(record.length()));
            }
        }
    }
    Ok(plan)
}

/// Writes the chosen documents of a snapshot.
///
/// # Errors
/// At the first part of the snapshot that is damaged or missing, and when the database cannot be written at all. A single
/// document that the database refuses is no error: it is counted and goes to the dead-letter file.
pub async fn restore(
    reader: &SnapshotReader,
    database: &Firestore,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreStats, RestoreError> {
    let lease = Lease::of(reader, "restore").await?;
    let restored = restore_all(reader, database, options, progress).await;
    lease.release().await;
    match restored {
        Err(RestoreError::Archive(error)) => {
            Err(reader.repository().explain(reader.id(), error).await.into())
        }
        restored => restored,
    }
}

async fn restore_all(
    reader: &SnapshotReader,
    database: &Firestore,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreStats, RestoreError> {
    let start = Instant::now();
    let ranges = split_ranges(reader, options.filter.ranges(), options.parallel).await?;
    let (sink, existing) = options.sink();
    let mut writer = BulkWriter::new(database, options.write, sink);

    let (sender, mut batches) = mpsc::channel::<Encoded>(WAITING_BATCHES);
    let encoders: Vec<Encode> = ranges
        .iter()
        .map(|_| Encode::new(writer.encoder(), &options.filter))
        .collect();
    let read = async move {
        stream::iter(ranges.into_iter().zip(encoders))
            .map(|(range, encoder)| read_range(reader, range, encoder, sender.clone()))
            .buffer_unordered(options.parallel.max(1))
            .try_for_each(|()| async { Ok(()) })
            .await
    };
    let write = async {
        let mut totals = RestoreTotals::default();
        while let Some(Encoded { writes, read }) = batches.recv().await {
            writer.submit(writes).await?;
            progress.add(read.documents, read.bytes);
            totals.documents += read.documents;
            totals.bytes += read.bytes;
        }
        Ok::<_, RestoreError>(totals)
    };
    let ((), totals) = tokio::try_join!(read, write)?;
    let writes = writer.finish().await?;
    Ok(totals.stats(writes, &existing, start.elapsed()))
}

/// Cuts the ranges where the snapshot's index can be cut, into some four a reader.
async fn split_ranges(
    reader: &SnapshotReader,
    ranges: &[KeyRange],
    parallel: usize,
) -> Result<Vec<KeyRange>, ArchiveError> {
    let boundaries = reader.page_boundaries(parallel.max(1) * 4).await?;
    let mut pieces = Vec::with_capacity(boundaries.len() + ranges.len());
    for range in ranges {
        let mut from = range.start.clone();
        for boundary in &boundaries {
            let inside = range.contains(boundary.as_bytes()) && from.as_ref() != Some(boundary);
            if inside {
                pieces.push(KeyRange {
                    start: from.replace(boundary.clone()),
                    end: Some(boundary.clone()),
                });
            }
        }
        pieces.push(KeyRange {
            start: from,
            end: range.end.clone(),
        });
    }
    Ok(pieces)
}

async fn read_range(
    reader: &SnapshotReader,
    range: KeyRange,
    encoder: Encode,
    batches: mpsc::Sender<Encoded>,
) -> Result<(), RestoreError> {
    let mut documents = pin!(reader.documents_into(range, encoder));
    while let Some(encoded) = documents.try_next().await? {
        if batches.send(encoded?).await.is_err() {
            // The writer has failed, and its error is the one to report.
            return Ok(());
        }
    }
    Ok(())
}

/// Encodes the chosen documents of a range where they are decoded: their bytes are at hand there, and all cores take part.
struct Encode {
    encoder: WriteEncoder,
    filter: PathFilter,
    /// The memory of paths.
    path: String,
    read: RestoreTotals,
    failed: Option<RestoreError>,
}

/// Writes that are encoded.
struct Encoded {
    writes: EncodedWrites,
    /// The documents that were looked at since the last ones.
    read: RestoreTotals,
}

impl Encode {
    fn new(encoder: WriteEncoder, filter: &PathFilter) -> Self {
        Self {
            encoder,
            filter: filter.clone(),
            path: String::new(),
            read: RestoreTotals::default(),
            failed: None,
        }
    }

    fn put(&mut self, document: DocumentRef<'_>) -> Result<(), RestoreError> {
        let path = DocumentPath::from_key_in(document.key, std::mem::take(&mut self.path))?;
        if self.filter.matches(&path) {
            self.read.add(document.body);
            self.encoder.put(&path, document.body)?;
        }
        self.path = path.into();
        Ok(())
    }
}

impl DocumentSink for Encode {
    type Output = Result<Encoded, RestoreError>;

    fn push(&mut self, document: DocumentRef<'_>) {
        if self.failed.is_none() {
            self.failed = self.put(document).err();
        }
    }

    fn pass_on(&mut self) -> Self::Output {
        match self.failed.take() {
            Some(failed) => Err(failed),
            None => Ok(Encoded {
                writes: self.encoder.take_full(),
                read: std::mem::take(&mut self.read),
            }),
        }
    }

    fn finish(self) -> Option<Self::Output> {
        Some(Ok(Encoded {
            writes: self.encoder.finish(),
            read: self.read,
        }))
    }
}

/// What was handed to the writer.
#[derive(Debug, Default)]
pub(crate) struct RestoreTotals {
    documents: u64,
    bytes: u64,
}

impl RestoreTotals {
    pub(crate) fn add(&mut self, body: &[u8]) {
        self.documents += 1;
        self.bytes += body.len() as u64;
    }

    /// With what came of it.
    pub(crate) fn stats(self, writes: WriteStats, existing: &AtomicU64, duration: Duration) -> RestoreStats {
        let existing = existing.load(Ordering::Relaxed);
        RestoreStats {
            documents: self.documents,
            bytes: self.bytes,
            written: writes.written,
            existing,
            failed: writes.failed - existing,
            writes,
            duration,
        }
    }
}

impl RestoreOptions {
    /// Where failures go, and the count of those that create-only asks for.
    pub(crate) fn sink(&self) -> (impl FailureSink + use<>, Arc<AtomicU64>) {
        let existing = Arc::new(AtomicU64::new(0));
        let sink = RestoreSink {
            create_only: self.write.mode == WriteMode::CreateOnly,
            existing: Arc::clone(&existing),
            dead_letters: DeadLetterFile::new(&self.dead_letter_file),
        };
        (sink, existing)
    }
}

/// Tells documents that are there already, which create-only asks to leave alone, from those that were refused.
struct RestoreSink {
    create_only: bool,
    existing: Arc<AtomicU64>,
    dead_letters: DeadLetterFile,
}

impl FailureSink for RestoreSink {
    fn record(&mut self, failure: WriteFailure) -> std::io::Result<()> {
        if self.create_only && failure.code == Code::AlreadyExists {
            self.existing.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.dead_letters.record(failure)
    }

    fn finish(&mut self) -> std::io::Result<()> {
        self.dead_letters.finish()
    }
}
