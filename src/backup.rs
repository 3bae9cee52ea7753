//! Takes a snapshot: reads a database at one read time, in parallel key ranges, into a new run of the archive.
//!
//! The ranges of the plan only say where a reader starts: which documents it stores is decided by the cut points in the
//! data (see [`cut`](crate::archive::cut)), so the same data gives the same chunks whatever the ranges are.

mod head;
mod range;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tracing::info;

use crate::archive::{
    ArchiveError, Plan, Repository, Selection, Session, SessionOptions, Snapshot, SnapshotDraft, SnapshotId,
    SnapshotKind,
};
use crate::clock;
use crate::document::{DatabaseName, KeyRange, Timestamp};
use crate::firestore::{self, Firestore};
use crate::progress::Progress;

/// Documents per range below which it is not worth a range of its own: a range reads on past its end to the next cut,
/// some 8 MiB, so small ranges would read much of the database twice.
const MIN_DOCUMENTS_PER_RANGE: u64 = 64 * 1024;

/// How long to wait for counts. They only decide how many ranges to read in, and counting hundreds of millions of documents
/// takes longer than servers let a call take.
const COUNT_PATIENCE: Duration = Duration::from_secs(20);

/// Ranges per reader, so that readers which finish early find more to do.
const RANGES_PER_READER: usize = 4;

/// What to back up, and how.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Which part of the database.
    pub selection: Selection,
    /// How many key ranges are read at the same time.
    pub parallel: usize,
    /// How many key ranges to read it in; `None`: as many as its size asks for.
    pub ranges: Option<usize>,
    /// Words to find the snapshot by.
    pub tags: Vec<String>,
    /// The machine that takes it.
    pub host: Option<String>,
    /// A sentence about it.
    pub description: Option<String>,
}

impl Default for BackupOptions {
    /// The whole database, by eight readers.
    fn default() -> Self {
        Self {
            selection: Selection::default(),
            parallel: 8,
            ranges: None,
            tags: Vec::new(),
            host: None,
            description: None,
        }
    }
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct BackupStats {
    /// The snapshot that it committed.
    pub snapshot: Snapshot,
    /// How long it took.
    pub duration: Duration,
    /// Reads as Firestore bills them: more than the snapshot has documents where ranges overlap.
    pub billed_reads: u64,
    /// Requests that were sent to the database.
    pub requests: u64,
    /// Requests that were sent again after a failure.
    pub retries: u64,
}

/// A backup that failed. Nothing that it wrote is taken for a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database could not be read.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// The repository could not be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Documents that were held in memory could not be compressed.
    #[error("cannot compress documents in memory: {0}")]
    Compression(#[from] std::io::Error),
}

/// Takes a snapshot of `database` and commits it to `repository`.
///
/// # Errors
/// Whatever the reason, the repository stays valid and has no new snapshot.
pub async fn backup(
    database: &Firestore,
    repository: &Repository,
    options: BackupOptions,
    progress: &Progress,
) -> Result<BackupStats, BackupError> {
    let start = Instant::now();
    // The connection may have served others before.
    let before = database.stats().counts();
    let read_time = database.current_read_time().await?;
    let ranges = plan_ranges(database, &options, read_time, progress).await?;
    info!(%read_time, ranges = ranges.len(), "reading {}", database.database());

    let plan = Plan {
        kind: SnapshotKind::Backup,
        database: database.database().clone(),
        database_uid: database_uid(database).await,
        read_time,
        started_at: clock::now(),
        selection: options.selection.clone(),
        ranges: ranges.clone(),
        extra: BTreeMap::new(),
    };
    let pins = newest_of_every_selection(repository).await?;
    let session = Session::begin(
        repository,
        SessionOptions {
            pins,
            ..SessionOptions::new(plan)
        },
    )
    .await?;

    // Each range is a task: parsing is work for every core, and wants to be where the bytes have just arrived.
    let mut running = JoinSet::new();
    for job in range::jobs(ranges, options.parallel) {
        while running.len() >= options.parallel.max(1) {
            finish_one(&mut running).await?;
        }
        let writer = session.range_writer(job.range().clone());
        running.spawn(range::back_up(
            database.clone(),
            writer,
            job,
            read_time,
            progress.clone(),
        ));
    }
    while !running.is_empty() {
        finish_one(&mut running).await?;
    }

    let counts = database.stats().counts().since(&before);
    let snapshot = session
        .commit(SnapshotDraft {
            tags: options.tags,
            host: options.host,
            description: options.description,
            billed_reads: counts.billed_reads,
            ..SnapshotDraft::default()
        })
        .await?;
    Ok(BackupStats {
        snapshot,
        duration: start.elapsed(),
        billed_reads: counts.billed_reads,
        requests: counts.total_requests(),
        retries: counts.retries,
    })
}

/// The database's own identity, which tells one that was deleted and made again from the one before. A backup does not
/// depend on it: emulators do not say, and not every account may ask.
async fn database_uid(database: &Firestore) -> Option<String> {
    match database.metadata().await {
        Ok(metadata) => metadata.map(|metadata| metadata.uid),
        Err(error) => {
            info!("the database's identity is not known: {error}");
            None
        }
    }
}

/// Waits until a range is done.
async fn finish_one(running: &mut JoinSet<Result<(), BackupError>>) -> Result<(), BackupError> {
    match running.join_next().await {
        Some(done) => done.map_err(ArchiveError::from)?,
        None => Ok(()),
    }
}

/// The selection cut into ranges to read side by side.
async fn plan_ranges(
    database: &Firestore,
    options: &BackupOptions,
    read_time: Timestamp,
    progress: &Progress,
) -> Result<Vec<KeyRange>, BackupError> {
    let intervals = options.selection.key_ranges();
    let mut counts = Vec::with_capacity(intervals.len());
    for interval in &intervals {
        counts.push(count(database, interval, read_time).await?);
    }
    let total: Option<u64> = counts.iter().copied().sum();
    if let Some(total) = total {
        progress.set_total_documents(total);
    }

    let mut ranges = Vec::new();
    for (interval, count) in intervals.into_iter().zip(counts) {
        let parts = match (options.ranges, count) {
            (Some(ranges), _) => ranges.max(1),
            (None, Some(count)) => usize::try_from(count / MIN_DOCUMENTS_PER_RANGE)
                .unwrap_or(usize::MAX)
                .clamp(1, options.parallel.max(1) * RANGES_PER_READER),
            (None, None) => options.parallel.max(1),
        };
        let boundaries = if parts > 1 {
            database.split(&interval, read_time, parts).await?
        } else {
            Vec::new()
        };
        let mut from = interval.start;
        for boundary in boundaries {
            ranges.push(KeyRange {
                start: from.replace(boundary.clone()),
                end: Some(boundary),
            });
        }
        ranges.push(KeyRange {
            start: from,
            end: interval.end,
        });
    }
    Ok(ranges)
}

/// How many documents there are; `None` where the server cannot tell, or not soon, which costs a backup no more than a good
/// guess. Only what everything that follows would meet as well is an error.
async fn count(
    database: &Firestore,
    range: &KeyRange,
    read_time: Timestamp,
) -> Result<Option<u64>, BackupError> {
    let asked = database.count(range, Some(read_time));
    match tokio::time::timeout(COUNT_PATIENCE, asked).await {
        Ok(Ok(count)) => Ok(Some(count)),
        Ok(Err(
            error @ (firestore::Error::PermissionDenied { .. }
            | firestore::Error::Unauthenticated { .. }
            | firestore::Error::DatabaseNotFound { .. }
            | firestore::Error::ReadTimeTooOld { .. }),
        )) => Err(error.into()),
        Ok(Err(error)) => {
            info!("the server does not count its documents: {error}");
            Ok(None)
        }
        Err(_) => {
            info!("the server takes long to count its documents: going on without");
            Ok(None)
        }
    }
}

/// What the backup may reuse chunks from: the newest snapshot of every database in the repository, so that copies of a
/// database in other projects share theirs, and of every selection, so that a backup of some collections does not make
/// the next one of the whole database forget what is stored.
async fn newest_of_every_selection(repository: &Repository) -> Result<Vec<SnapshotId>, BackupError> {
    let mut newest: BTreeMap<(String, String, String), SnapshotId> = BTreeMap::new();
    for snapshot in repository.snapshots().await?.snapshots {
        let selection = snapshot.selection.to_string();
        let DatabaseName { project, database } = snapshot.database;
        newest
            .entry((project, database, selection))
            .or_insert(snapshot.id);
    }
    Ok(newest.into_values().collect())
}
