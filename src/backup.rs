//! Takes a snapshot: reads a database at one read time, in parallel key ranges, into a new run of the archive.
//!
//! The ranges of the plan only say where a reader starts: which documents it stores is decided by the cut points in the
//! data (see [`cut`](crate::archive::cut)), so the same data gives the same chunks whatever the ranges are.

mod compared;
mod head;
mod layer;
mod parent;
mod plan;
mod range;
mod reading;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tracing::info;

use crate::archive::{
    ArchiveError, Plan, ReadMode, Repository, Selection, Session, SessionOptions, Snapshot, SnapshotDraft,
    SnapshotId, SnapshotKind, SnapshotReader,
};
use crate::clock;
use crate::document::{DocumentPath, PathError, Timestamp};
use crate::firestore::{self, Firestore};
use crate::progress::Progress;

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
    let read_time = database.current_read_time().await?;
    let uid = database_uid(database).await;
    let listing = repository.snapshots().await?;
    let wanted = parent::Wanted {
        database: database.database(),
        uid: uid.as_deref(),
        selection: &options.selection,
        read_time,
    };
    let parent = match parent::find(repository, &listing, &options, &wanted).await? {
        Some(parent) => Some(open_parent(repository, &parent).await?),
        None => None,
    };
    let ranges = match &parent {
        Some(parent) => plan::ranges_of_parent(parent, &options, progress).await?,
        None => plan::ranges_of_database(database, &options, read_time, progress).await?,
    };
    let read = match &parent {
        Some(_) => options.read.unwrap_or(ReadMode::Names),
        None => ReadMode::Full,
    };
    info!(
        %read_time, ranges = ranges.len(), %read, parent = ?parent.as_ref().map(SnapshotReader::id),
        "reading {}", database.database()
    );
    let plan = Plan {
        kind: SnapshotKind::Backup,
        database: database.database().clone(),
        database_uid: uid,
        read_time,
        started_at: clock::now(),
        selection: options.selection.clone(),
        parent: parent.as_ref().map(SnapshotReader::id),
        read,
        ranges,
        extra: BTreeMap::new(),
    };
    let pins = match &parent {
        Some(_) => Vec::new(),
        None => parent::newest_of_every_selection(&listing),
    };
    let session = SessionOptions {
        pins,
        ..SessionOptions::new(plan)
    };
    let session = Arc::new(Session::begin(repository, session).await?);
    match &parent {
        Some(parent) => compare_ranges(database, &session, parent, &options, progress).await?,
        None => read_ranges(database, &session, &options, progress).await?,
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
    Ok(BackupStats {
        snapshot,
        duration: start.elapsed(),
        billed_reads: counts.billed_reads,
        requests: counts.total_requests(),
        retries: counts.retries,
    })
}

async fn open_parent(repository: &Repository, parent: &Snapshot) -> Result<SnapshotReader, BackupError> {
    let reader = repository.reader(parent).await;
    reader.map_err(|error| BackupError::of_parent(parent.id, error))
}

/// Reads the plan's ranges whole. Each is a task: parsing is work for every core, and wants to be where the bytes have just
/// arrived.
async fn read_ranges(
    database: &Firestore,
    session: &Session,
    options: &BackupOptions,
    progress: &Progress,
) -> Result<(), BackupError> {
    let plan = session.plan();
    let mut running = JoinSet::new();
    for job in range::jobs(plan.ranges.clone(), options.parallel) {
        make_room(&mut running, options.parallel).await?;
        let writer = session.range_writer(job.range().clone());
        running.spawn(range::back_up(
            database.clone(),
            writer,
            job,
            plan.selection.clone(),
            plan.read_time,
            progress.clone(),
        ));
    }
    make_room(&mut running, 1).await
}

/// Compares the plan's ranges with the parent, each in a task of its own.
async fn compare_ranges(
    database: &Firestore,
    session: &Arc<Session>,
    parent: &SnapshotReader,
    options: &BackupOptions,
    progress: &Progress,
) -> Result<(), BackupError> {
    let plan = session.plan();
    let comparison = compared::Comparison {
        database: database.clone(),
        parent: parent.clone(),
        read_time: plan.read_time,
        sampled: layer::sampled(parent.snapshot().documents),
    };
    let context = layer::LayerContext::new(comparison, Arc::clone(session), progress.clone());
    let mut running = JoinSet::new();
    for range in plan.ranges.clone() {
        make_room(&mut running, options.parallel).await?;
        running.spawn(context.clone().back_up(range, plan.read));
    }
    make_room(&mut running, 1).await
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
