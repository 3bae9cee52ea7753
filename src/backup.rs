//! Takes a snapshot: reads a database at one read time, in parallel key ranges, into a new run of the archive.
//!
//! Without a **parent** snapshot everything is read and stored. The ranges of the plan only say where a reader starts: which
//! documents it stores is decided by the cut points in the data (see [`cut`](crate::archive::cut)), so the same data gives
//! the same chunks whatever the ranges are.
//!
//! With a parent, the newest snapshot of the same database and selection as a rule, each range is compared with the parent's
//! index, exactly range by range, and only what differs is stored, as a layer on top of the parent's runs. What stores little
//! is stored together: see [`layer_writer`](crate::archive::layer_writer).
//!
//! # What a night asks of the store
//!
//! A backup with a parent in which nothing has changed makes, after the repository is opened,
//!
//! ```text
//! P + B + R   ranged gets   P: the parent's index pages, one once for each range that it meets; B: its directory blocks;
//!                           R: its run roots that are too large to stand in the snapshot
//! N + 3       gets          N: snapshots in the repository, among which the parent is chosen
//! C + 3       creations     C: ranges, a checkpoint each; pins, plan, snapshot
//! 3           heads         of the plan, at the beginning and before the commit, and of the mark that the parent was forgotten
//! 2           listings      of the snapshots, and of the checkpoints
//! ```
//!
//! and one creation for every 30 seconds that it takes, the heartbeat. Nothing is asked for a document or a data chunk. What
//! changed adds the chunks that are written: where ranges have little to write, a data chunk for each 8 MiB of bodies, an index
//! chunk, and a directory.

mod begin;
mod compared;
mod head;
mod layer;
mod parent;
mod plan;
mod range;
mod reading;

use std::sync::Arc;
use std::time::{Duration, Instant};

use begin::Begun;
use tokio::task::JoinSet;
use tracing::warn;

use crate::archive::{
    ArchiveError, ReadMode, Repository, Selection, Session, SessionId, Snapshot, SnapshotDraft, SnapshotId,
    SnapshotReader, UnfinishedRange,
};
use crate::compact::{CompactOptions, compact};
use crate::document::{DocumentPath, PathError, Timestamp};
use crate::firestore::{self, Firestore};
use crate::progress::Progress;
use crate::stop::Stop;

/// Which snapshot a backup builds upon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// The newest of the same database and selection that is older; none if there is none.
    #[default]
    Newest,
    /// This one: an id, the beginning of one, or `latest`.
    Snapshot(String),
    /// None: every document is read and listed anew. What is stored already is still not stored again.
    None,
}

/// What to back up, and how.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Which part of the database.
    pub selection: Selection,
    /// How many key ranges are read at the same time.
    pub parallel: usize,
    /// How many key ranges to read it in; `None`: as many as its size asks for.
    pub ranges: Option<usize>,
    /// Which snapshot to compare with.
    pub parent: Parent,
    /// How to read; `None`: names where there is a parent, else whole documents. Without a parent there is nothing to
    /// compare names with, and whole documents are read in any case.
    pub read: Option<ReadMode>,
    /// Words to find the snapshot by.
    pub tags: Vec<String>,
    /// The machine that takes it.
    pub host: Option<String>,
    /// A sentence about it.
    pub description: Option<String>,
    /// Go on with the newest backup of the same database and selection that was not finished, as long as the database can
    /// be read at its time; begin a new one if there is none.
    pub resume: bool,
    /// How often a range writes down how far it has got.
    pub checkpoint_every: Duration,
    /// Asks the backup to stop where it can go on later.
    pub stop: Stop,
}

impl Default for BackupOptions {
    /// The whole database, by eight readers, compared with the newest snapshot.
    fn default() -> Self {
        Self {
            selection: Selection::default(),
            parallel: 8,
            ranges: None,
            parent: Parent::default(),
            read: None,
            tags: Vec::new(),
            host: None,
            description: None,
            resume: false,
            checkpoint_every: Duration::from_secs(60),
            stop: Stop::default(),
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
    /// The server sent a document whose name is none.
    #[error("the server sent a document whose name makes no sense: {0}")]
    Name(#[from] PathError),
    /// The snapshot that was named as the parent cannot be it.
    #[error("the backup cannot build upon snapshot {snapshot}: {why}. Name another one, or none with --full")]
    NotAParent {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What speaks against it.
        why: &'static str,
    },
    /// The parent's index cannot be read.
    #[error(
        "snapshot {snapshot}, which the backup builds upon, cannot be read: {source}. Nothing was committed. Build upon \
         nothing with --full, or upon another snapshot with --parent; `firebank verify {snapshot}` tells what is damaged"
    )]
    DamagedParent {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What is wrong with it.
        source: Box<ArchiveError>,
    },
    /// The server counts documents that it does not send.
    #[error(
        "the server sends no documents of {range} and counts {documents} there, as of {read_time}: nothing may be \
         concluded from that, and nothing was committed. Try again later"
    )]
    Contradiction {
        /// Where.
        range: String,
        /// When.
        read_time: Timestamp,
        /// How many it counts.
        documents: u64,
    },
    /// The server listed a document and then had none of that name at the same moment.
    #[error(
        "the server listed `{path}` and then said that there is no such document, both as of {read_time}: nothing was \
         committed. Try again, or read whole documents with --read full"
    )]
    Vanished {
        /// The document.
        path: DocumentPath,
        /// When.
        read_time: Timestamp,
    },
    /// Somebody asked it to stop.
    #[error(
        "stopped with {finished} of {ranges} key ranges finished: there is no snapshot of it, and what was read is kept. \
         `firebank backup --resume` goes on from there while the database can be read at the same time, for an hour after it began (session {session})"
    )]
    Stopped {
        /// Its session.
        session: SessionId,
        /// Ranges that are finished.
        finished: usize,
        /// Ranges in all.
        ranges: usize,
    },
    /// Documents that were held in memory could not be compressed.
    #[error("cannot compress documents in memory: {0}")]
    Compression(#[from] std::io::Error),
}

impl BackupError {
    /// An error from reading the snapshot that the backup builds upon.
    fn of_parent(snapshot: SnapshotId, error: ArchiveError) -> Self {
        match error.into_damage() {
            Ok(damage) => Self::DamagedParent {
                snapshot,
                source: Box::new(ArchiveError::Damaged(Box::new(damage))),
            },
            Err(error) => error.into(),
        }
    }
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
    progress.watch(database.pace());
    let read_time = database.current_read_time().await?;
    let begun = match options.resume {
        true => begin::resume(database, repository, &options, read_time, progress).await?,
        false => None,
    };
    let Begun {
        session,
        parent,
        ranges,
    } = match begun {
        Some(begun) => begun,
        None => begin::begin(database, repository, &options, read_time, progress).await?,
    };
    let complete = match &parent {
        Some(parent) => compare_ranges(database, &session, ranges, parent, &options, progress).await?,
        None => read_ranges(database, &session, ranges, &options, progress).await?,
    };
    if !complete {
        return Err(BackupError::Stopped {
            session: session.id(),
            finished: session.finished_ranges().await?.len(),
            ranges: session.plan().ranges.len(),
        });
    }

    let counts = database.stats().counts().since(&before);
    let snapshot = session
        .commit(SnapshotDraft {
            parent: parent.map(|parent| parent.snapshot().clone()),
            tags: options.tags,
            host: options.host,
            description: options.description,
            billed_reads: counts.billed_reads,
            ..SnapshotDraft::default()
        })
        .await?;
    let snapshot = compact_if_due(repository, snapshot).await;
    Ok(BackupStats {
        snapshot,
        duration: start.elapsed(),
        billed_reads: counts.billed_reads,
        requests: counts.total_requests(),
        retries: counts.retries,
    })
}

/// Merges layers where the stack has grown too deep. The backup stands whatever comes of it.
async fn compact_if_due(repository: &Repository, snapshot: Snapshot) -> Snapshot {
    match compact(repository, &snapshot, &CompactOptions::default()).await {
        Ok(merged) => merged.unwrap_or(snapshot),
        Err(error) => {
            warn!(
                "the backup is done; its layers could not be merged, which the next one tries again: {error}"
            );
            snapshot
        }
    }
}

/// Reads ranges whole. Each is a task: parsing is work for every core, and wants to be where the bytes have just arrived.
/// Says whether all are finished.
async fn read_ranges(
    database: &Firestore,
    session: &Session,
    ranges: Vec<UnfinishedRange>,
    options: &BackupOptions,
    progress: &Progress,
) -> Result<bool, BackupError> {
    let plan = session.plan();
    let context = range::RangeContext {
        database: database.clone(),
        selection: plan.selection.clone(),
        read_time: plan.read_time,
        checkpoint_every: options.checkpoint_every,
        stop: options.stop.clone(),
        progress: progress.clone(),
    };
    let mut running = JoinSet::new();
    for job in range::jobs(ranges, options.parallel) {
        make_room(&mut running, options.parallel).await?;
        if options.stop.is_requested() {
            break;
        }
        let writer = session.resume_range_writer(job.range().clone());
        running.spawn(range::back_up(context.clone(), writer, job));
    }
    make_room(&mut running, 1).await?;
    Ok(!options.stop.is_requested() || session.unfinished_ranges().await?.is_empty())
}

/// Compares ranges with the parent, each in a task of its own. Says whether all are finished.
async fn compare_ranges(
    database: &Firestore,
    session: &Arc<Session>,
    ranges: Vec<UnfinishedRange>,
    parent: &SnapshotReader,
    options: &BackupOptions,
    progress: &Progress,
) -> Result<bool, BackupError> {
    let plan = session.plan();
    let comparison = compared::Comparison {
        database: database.clone(),
        parent: parent.clone(),
        read_time: plan.read_time,
        sampled: layer::sampled(parent.snapshot().documents),
    };
    let (session, stop) = (Arc::clone(session), options.stop.clone());
    let context = layer::LayerContext::new(comparison, Arc::clone(&session), stop, progress.clone());
    let mut running = JoinSet::new();
    for unfinished in ranges {
        make_room(&mut running, options.parallel).await?;
        if options.stop.is_requested() {
            break;
        }
        running.spawn(context.clone().back_up(unfinished.range, plan.read));
    }
    make_room(&mut running, 1).await?;
    Ok(!options.stop.is_requested() || session.unfinished_ranges().await?.is_empty())
}

/// Waits until fewer tasks than `most` run.
async fn make_room(running: &mut JoinSet<Result<(), BackupError>>, most: usize) -> Result<(), BackupError> {
    while running.len() >= most.max(1) {
        if let Some(done) = running.join_next().await {
            done.map_err(ArchiveError::from)??;
        }
    }
    Ok(())
}
