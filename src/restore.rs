//! Puts documents of a snapshot into a database.
//!
//! The stages, each of which waits for the next one:
//!
//! ```text
//! ranges   the snapshot, cut into key ranges; those that are read together lie far apart
//! read     several ranges at a time, a few megabytes ahead
//! decide   for each chosen document what is to be written, encoded where it was decoded
//! write    one writer; a range's cursor moves over what is acknowledged
//! ```
//!
//! Several key ranges feed one writer, so that neighbouring writes lie far apart in the key space: writes in key order would
//! all go to one tablet of the database at a time.

mod decide;
mod failures;
mod plan;
mod ranges;
mod write;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use crate::archive::{ArchiveError, Lease, SnapshotReader};
use crate::document::PathError;
use crate::firestore::{self, BulkWriter, Firestore, WriteOptions, WriteStats};
use crate::path_filter::PathFilter;
use crate::progress::Progress;
use decide::Decide;
pub use plan::{RestorePlan, plan_restore};
use write::{RangeState, Ranges, Step};

/// Batches that wait for the writer. A few are enough: the readers refill faster than a database writes.
const WAITING_BATCHES: usize = 4;

/// What happens to a document that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestoreMode {
    /// It is replaced.
    #[default]
    Overwrite,
    /// It is left alone.
    CreateOnly,
}

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Which documents.
    pub filter: PathFilter,
    /// What happens to a document that exists.
    pub mode: RestoreMode,
    /// How to write.
    pub write: WriteOptions,
    /// How many key ranges of the snapshot are read at the same time.
    pub parallel: usize,
    /// Where documents go that the database refuses. Made when the first one is.
    pub dead_letter_file: PathBuf,
}

impl RestoreOptions {
    /// Everything, with the defaults for a database.
    pub fn new(database: &Firestore, dead_letter_file: impl Into<PathBuf>) -> Self {
        Self {
            filter: PathFilter::all(),
            mode: RestoreMode::Overwrite,
            write: WriteOptions::new(database),
            parallel: READERS,
            dead_letter_file: dead_letter_file.into(),
        }
    }
}

/// Key ranges of a snapshot that are read at the same time: the more, the further apart neighbouring writes lie.
const READERS: usize = 8;

/// What a restore has done, or a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RestoreCounts {
    /// Documents that were chosen.
    pub documents: u64,
    /// Bytes of their fields, in canonical form.
    pub bytes: u64,
    /// Writes that the database has taken.
    pub written: u64,
    /// Writes that the database refused; the dead-letter file has them.
    pub failed: u64,
    /// Writes that were refused because somebody asked for that, as of documents that exist in [`RestoreMode::CreateOnly`].
    pub left_out: u64,
}

impl RestoreCounts {
    /// Adds another part.
    pub(crate) fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.written += other.written;
        self.failed += other.failed;
        self.left_out += other.left_out;
    }
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
    /// Documents that were there already and stay as they were ([`RestoreMode::CreateOnly`]).
    pub existing: u64,
    /// Documents that the database refused; the dead-letter file has them.
    pub failed: u64,
    /// How the writer fared.
    pub writes: WriteStats,
    /// How long it took.
    pub duration: Duration,
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
    let pieces = ranges::split_ranges(reader, options.filter.ranges(), options.parallel).await?;
    let sink = options.sink();
    let writer = BulkWriter::new(database, options.write, sink);
    progress.watch(writer.pace());
    let decide = Decide::new(reader, options.filter, options.mode, writer.encoder());
    let mut ranges = Ranges::new(pieces.iter().cloned().map(RangeState::new).collect());

    let (sender, steps) = mpsc::channel(WAITING_BATCHES);
    let parallel = options.parallel.max(1);
    let order = ranges::far_apart(pieces.len(), parallel);
    let read = async move {
        stream::iter(order)
            .map(|number| read_range(&decide, number, &pieces[number], sender.clone()))
            .buffer_unordered(parallel)
            .try_for_each(|()| async { Ok(()) })
            .await
    };
    let write = write::write_all(writer, steps, &mut ranges, progress);
    let ((), writes) = tokio::try_join!(read, write)?;
    Ok(ranges.counts().stats(writes, start.elapsed()))
}

/// Reads a range and sends what is decided, then that it is at its end.
async fn read_range(
    decide: &Decide,
    number: usize,
    range: &crate::document::KeyRange,
    steps: mpsc::Sender<(usize, Step)>,
) -> Result<(), RestoreError> {
    let mut decided = decide.range(range.clone());
    while let Some(decided) = decided.try_next().await? {
        if steps.send((number, Step::Decided(decided))).await.is_err() {
            // The writer has failed, and its error is the one to report.
            return Ok(());
        }
    }
    // The same holds here.
    let _ = steps.send((number, Step::End)).await;
    Ok(())
}

impl RestoreCounts {
    /// With how the writer fared.
    pub(crate) fn stats(self, writes: WriteStats, duration: Duration) -> RestoreStats {
        RestoreStats {
            documents: self.documents,
            bytes: self.bytes,
            written: self.written,
            existing: self.left_out,
            failed: self.failed,
            writes,
            duration,
        }
    }
}
