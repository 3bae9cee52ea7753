//! How a backup begins: with a session of its own, or with one that an earlier process has left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::{BackupError, BackupOptions, parent, plan};
use crate::archive::session::UPLOAD_BUDGET;
use crate::archive::{
    ArchiveError, OpenSession, Plan, ReadMode, Repository, Session, SessionOptions, Snapshot, SnapshotKind,
    SnapshotReader, UnfinishedRange,
};
use crate::clock;
use crate::document::Timestamp;
use crate::firestore::Firestore;
use crate::progress::Progress;

/// How long a database can be read at a past time without point-in-time recovery, less what is left to be done then.
/// <https://cloud.google.com/firestore/docs/reference/rest/v1/projects.databases#Database.FIELDS.version_retention_period>
const READABLE: Duration = Duration::from_secs(55 * 60);

/// A session to work in.
pub(super) struct Begun {
    pub(super) session: Arc<Session>,
    pub(super) parent: Option<SnapshotReader>,
    /// What is left to be read.
    pub(super) ranges: Vec<UnfinishedRange>,
}

/// How often to look again for snapshots to build upon when one that was found is forgotten in the same moment.
const ATTEMPTS: u32 = 3;

/// Begins a new session at the read time.
pub(super) async fn begin(
    database: &Firestore,
    repository: &Repository,
    options: &BackupOptions,
    read_time: Timestamp,
    progress: &Progress,
) -> Result<Begun, BackupError> {
    for _ in 1..ATTEMPTS {
        match try_begin(database, repository, options, read_time, progress).await {
            // Its session is aborted; the next look does not find the snapshot any more.
            Err(BackupError::Archive(error @ ArchiveError::PinGone { .. })) => {
                info!("{error}: looking again")
            }
            begun => return begun,
        }
    }
    try_begin(database, repository, options, read_time, progress).await
}

async fn try_begin(
    database: &Firestore,
    repository: &Repository,
    options: &BackupOptions,
    read_time: Timestamp,
    progress: &Progress,
) -> Result<Begun, BackupError> {
    let uid = database_uid(database).await;
    let listing = repository.snapshots().await?;
    let wanted = parent::Wanted {
        database: database.database(),
        uid: uid.as_deref(),
        selection: &options.selection,
        read_time,
    };
    let parent = match parent::find(repository, &listing, options, &wanted).await? {
        Some(parent) => Some(open_parent(repository, &parent).await?),
        None => None,
    };
    let ranges = match &parent {
        Some(parent) => plan::ranges_of_parent(database, parent, read_time, options, progress).await?,
        None => plan::ranges_of_database(database, options, read_time, progress).await?,
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
        _ if !options.deduplicate => Vec::new(),
        Some(_) => Vec::new(),
        None => parent::newest_of_every_selection(&listing),
    };
    let session = SessionOptions {
        pins,
        ..SessionOptions::new(plan)
    };
    let session = Arc::new(Session::begin(repository, session).await?);
    let ranges = session.plan().ranges.iter().cloned();
    Ok(Begun {
        ranges: ranges.map(UnfinishedRange::new).collect(),
        session,
        parent,
    })
}

/// Takes part in the newest session of the same database and selection that nobody has finished; `None` when there is none
/// whose time the database can still be read at.
pub(super) async fn resume(
    database: &Firestore,
    repository: &Repository,
    options: &BackupOptions,
    now: Timestamp,
    progress: &Progress,
) -> Result<Option<Begun>, BackupError> {
    let is_readable = |session: &OpenSession| {
        let age = now.seconds.saturating_sub(session.plan.read_time.seconds);
        u64::try_from(age).is_ok_and(|age| age < READABLE.as_secs())
    };
    let fits = |session: &OpenSession| {
        session.plan.kind == SnapshotKind::Backup
            && session.plan.database == *database.database()
            && session.plan.selection == options.selection
    };
    let sessions = repository.open_sessions().await?;
    let Some(open) = sessions
        .into_iter()
        .find(|session| fits(session) && is_readable(session))
    else {
        info!("there is no unfinished backup to go on with");
        return Ok(None);
    };
    let session = Arc::new(Session::join(repository, open.id, UPLOAD_BUDGET).await?);
    let parent = match session.plan().parent {
        Some(parent) => {
            let snapshot = repository
                .resolve(&parent.to_string(), &Default::default())
                .await?;
            Some(open_parent(repository, &snapshot).await?)
        }
        None => None,
    };
    let ranges = session.unfinished_ranges().await?;
    info!(
        session = %open.id, read_time = %open.plan.read_time, finished = open.finished_ranges,
        unfinished = ranges.len(), "going on"
    );
    for finished in session.finished_ranges().await? {
        let documents = finished.stats.documents + finished.stats.unchanged_documents;
        progress.add(documents, finished.stats.raw_bytes);
    }
    for (_, documents) in ranges.iter().filter_map(UnfinishedRange::covered) {
        progress.add(documents, 0);
    }
    Ok(Some(Begun {
        session,
        parent,
        ranges,
    }))
}

async fn open_parent(repository: &Repository, parent: &Snapshot) -> Result<SnapshotReader, BackupError> {
    let reader = repository.reader(parent).await;
    reader.map_err(|error| BackupError::of_parent(parent.id, error))
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
