//! How a backup begins: with a session of its own, or with one that an earlier process has left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

use super::since::{self, Choice, Since};
use super::{BackupError, BackupOptions, Parent, TaskOptions, estimate, fleet, parent, plan, recovery};
use crate::archive::session::UPLOAD_BUDGET;
use crate::archive::{
    ArchiveError, Decision, NamedSession, OpenSession, Plan, ReadMode, Repository, Selection, Session,
    SessionId, SessionOptions, Snapshot, SnapshotId, SnapshotKind, SnapshotListing, SnapshotReader,
    UnfinishedRange,
};
use crate::clock;
use crate::document::{DatabaseName, Timestamp};
use crate::firestore::{DatabaseMetadata, Firestore};
use crate::progress::Progress;

/// What must be left of the time that a database can be read at a past moment, in seconds, to go on with a backup.
const MARGIN: i64 = 5 * 60;

/// A session to work in.
pub(super) struct Begun {
    pub(super) session: Arc<Session>,
    pub(super) parent: Option<SnapshotReader>,
    /// What is left to be read.
    pub(super) ranges: Vec<UnfinishedRange>,
}

/// What a backup begins with.
pub(super) enum Start {
    /// Work to do.
    Work(Begun),
    /// Nothing: other workers of its session came to its end in the same moment.
    Committed(Box<Snapshot>),
}

/// How often a task looks whether there is a plan.
const PLAN_POLL: Duration = Duration::from_millis(500);

/// How often to look again when what was found is forgotten, given up or chosen otherwise in the same moment.
const ATTEMPTS: u32 = 3;

/// How long any moment can be read afterwards
/// (<https://firebase.google.com/docs/firestore/pitr#read_historical_data>).
const HOUR: i64 = 3600;
/// How long whole minutes can be, with point-in-time recovery.
const SEVEN_DAYS: i64 = 7 * 24 * HOUR;

/// The time to read at.
pub(super) async fn read_time(
    database: &Firestore,
    options: &BackupOptions,
) -> Result<Timestamp, BackupError> {
    let Some(read_time) = options.read_time else {
        return time_to_read(database, options.pitr).await;
    };
    let now = database.current_read_time().await?;
    let wrong = |why| Err(BackupError::ReadTime { read_time, why });
    let age = now.seconds.saturating_sub(read_time.seconds);
    let is_minute = read_time.nanos == 0 && read_time.seconds % 60 == 0;
    match () {
        () if read_time > now => wrong("it is in the future of the server's clock"),
        () if read_time.nanos % 1000 != 0 => wrong("the server knows whole microseconds"),
        () if options.pitr && !is_minute => wrong("point-in-time recovery keeps whole minutes"),
        () if age < HOUR => Ok(read_time),
        () if age >= SEVEN_DAYS => {
            wrong("it is longer ago than the seven days that point-in-time recovery keeps")
        }
        () if !is_minute => {
            wrong("it is longer ago than an hour, and of the time before only whole minutes are kept")
        }
        () if options.pitr || has_recovery(database).await => Ok(read_time),
        () => wrong(
            "it is longer ago than an hour; a database with point-in-time recovery keeps seven days: say so with --pitr",
        ),
    }
}

/// The present, or with point-in-time recovery the last whole minute.
pub(super) async fn time_to_read(database: &Firestore, pitr: bool) -> Result<Timestamp, BackupError> {
    let now = database.current_read_time().await?;
    Ok(match pitr {
        true => Timestamp::new(now.seconds - now.seconds.rem_euclid(60), 0),
        false => now,
    })
}

/// Whether the database says that it has point-in-time recovery.
pub(super) async fn has_recovery(database: &Firestore) -> bool {
    let metadata = database.metadata().await.ok().flatten();
    metadata.is_some_and(|metadata| metadata.point_in_time_recovery)
}

/// Begins a new session at the read time.
pub(super) async fn begin(
    database: &Firestore,
    repository: &Repository,
    options: &BackupOptions,
    read_time: Timestamp,
    progress: &Progress,
) -> Result<Begun, BackupError> {
    for _ in 1..ATTEMPTS {
        match try_begin(database, repository, None, options, read_time, progress).await {
            // Its session is aborted; the next look does not find the snapshot any more.
            Err(BackupError::Archive(error @ ArchiveError::PinGone { .. })) => {
                info!("{error}: looking again")
            }
            begun => return begun,
        }
    }
    try_begin(database, repository, None, options, read_time, progress).await
}

/// Takes part in the session of this name, or begins it.
pub(super) async fn named(
    database: &Firestore,
    repository: &Repository,
    name: &str,
    options: &BackupOptions,
    read_time: Timestamp,
    progress: &Progress,
) -> Result<Start, BackupError> {
    let check = |kind: SnapshotKind, of: &DatabaseName, selection: &Selection| {
        let is_same =
            kind == SnapshotKind::Backup && of == database.database() && *selection == options.selection;
        // The plan may be another worker's.
        is_same.then_some(()).ok_or_else(|| BackupError::OtherPlan {
            name: name.to_owned(),
            database: of.clone(),
            selection: selection.to_string(),
        })
    };
    let since = Instant::now();
    let mut attempt = 1;
    loop {
        let begun = match repository.session_named(name).await? {
            NamedSession::Planned(id) => join(repository, id, progress).await,
            NamedSession::New(_) | NamedSession::Pinned(..) if waits_for_plan(options, since) => {
                tokio::time::sleep(PLAN_POLL).await;
                continue;
            }
            NamedSession::Decided(session, decision) => {
                if let Decision::Committed(snapshot) = &*decision
                    && fleet::has_taken(snapshot, options)
                {
                    check(snapshot.kind, &snapshot.database, &snapshot.selection)?;
                    return Ok(Start::Committed(snapshot.clone()));
                }
                return Err(BackupError::NameUsed {
                    name: name.to_owned(),
                    session,
                    how: match *decision {
                        Decision::Committed(_) => "committed",
                        Decision::Aborted(_) => "given up",
                    },
                });
            }
            NamedSession::New(id) => {
                try_begin(database, repository, Some(id), options, read_time, progress).await
            }
            // Somebody has pinned and not planned, and may never do so. Nobody waits for anybody.
            NamedSession::Pinned(id, pins) => {
                begin_pinned(database, repository, (id, &pins), options, read_time, progress).await
            }
        };
        match begun {
            Ok(begun) => {
                let plan = begun.session.plan();
                check(plan.kind, &plan.database, &plan.selection)?;
                fleet::check(name, &plan.extra, options)?;
                return Ok(Start::Work(begun));
            }
            Err(BackupError::Archive(ArchiveError::CommittedAlready { session })) => {
                let snapshot = repository.pinned_snapshot(session).await?;
                check(snapshot.kind, &snapshot.database, &snapshot.selection)?;
                fleet::check(name, &snapshot.extra, options)?;
                return Ok(Start::Committed(Box::new(snapshot)));
            }
            Err(BackupError::Archive(error)) if attempt < ATTEMPTS && may_differ_next_time(&error) => {
                info!("{error}: looking again");
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether a task leaves it to the first one to plan, for a while: to find out how to cut a database is billed.
fn waits_for_plan(options: &BackupOptions, since: Instant) -> bool {
    let waits = |task: &TaskOptions| task.task.index() > 0 && since.elapsed() < task.wait;
    options.task.as_ref().is_some_and(waits) && !options.stop.is_requested()
}

/// Whether another look at a name or at the sessions that were left finds something else.
fn may_differ_next_time(error: &ArchiveError) -> bool {
    matches!(
        error,
        ArchiveError::OtherPins { .. } | ArchiveError::PinGone { .. } | ArchiveError::Aborted { .. }
    )
}

/// Begins a session that somebody has pinned: it can only build upon what they chose.
async fn begin_pinned(
    database: &Firestore,
    repository: &Repository,
    (id, pins): (SessionId, &[SnapshotId]),
    options: &BackupOptions,
    read_time: Timestamp,
    progress: &Progress,
) -> Result<Begun, BackupError> {
    let parent = match (pins, &options.parent) {
        ([pin], Parent::Newest) => Parent::Snapshot(pin.to_string()),
        (_, Parent::Newest) => Parent::None,
        (_, parent) => parent.clone(),
    };
    let with = |parent| BackupOptions {
        parent,
        ..options.clone()
    };
    let chosen = with(parent);
    match try_begin(database, repository, Some(id), &chosen, read_time, progress).await {
        Err(BackupError::NotAParent { .. }) if chosen.parent != options.parent => {
            let alone = with(Parent::None);
            try_begin(database, repository, Some(id), &alone, read_time, progress).await
        }
        begun => begun,
    }
}

/// What a new session would build upon, and how it would read.
pub(super) struct Basis {
    pub(super) metadata: Option<DatabaseMetadata>,
    pub(super) listing: SnapshotListing,
    pub(super) read_time: Timestamp,
    pub(super) parent: Option<SnapshotReader>,
    pub(super) choice: Choice,
}

/// Finds out what a new session would build upon; `lasting`: waits for a time to read at that lasts, where that is due.
pub(super) async fn basis(
    database: &Firestore,
    repository: &Repository,
    options: &BackupOptions,
    read_time: Timestamp,
    lasting: bool,
) -> Result<Basis, BackupError> {
    let metadata = metadata(database).await;
    let listing = repository.snapshots().await?;
    let read_time = match lasting {
        true => recovery::time_that_lasts(database, metadata.as_ref(), &listing, options, read_time).await?,
        false => read_time,
    };
    let wanted = parent::Wanted {
        database: database.database(),
        uid: metadata.as_ref().map(|metadata| &metadata.uid[..]),
        selection: &options.selection,
        read_time,
    };
    let parent = match parent::find(repository, &listing, options, &wanted).await? {
        Some(parent) => Some(open_parent(repository, &parent).await?),
        None => None,
    };
    let choice = match &parent {
        Some(parent) => since::choose(database, parent.snapshot(), read_time, options),
        None => Choice {
            read: ReadMode::Full,
            since: None,
        },
    };
    Ok(Basis {
        metadata,
        listing,
        read_time,
        parent,
        choice,
    })
}

/// Refuses a backup that is expected to be billed more reads than it may.
async fn check_reads(
    database: &Firestore,
    options: &BackupOptions,
    basis: &Basis,
) -> Result<(), BackupError> {
    let Some(most) = options.max_reads else {
        return Ok(());
    };
    // Each task has its share, and its own limit.
    let tasks = options
        .task
        .as_ref()
        .map_or(1, |task| u64::from(task.task.count()));
    let expected = estimate::reads(database, options, basis).await?.div_ceil(tasks);
    match expected > most {
        true => Err(BackupError::TooManyReads { expected, most }),
        false => Ok(()),
    }
}

async fn try_begin(
    database: &Firestore,
    repository: &Repository,
    id: Option<SessionId>,
    options: &BackupOptions,
    read_time: Timestamp,
    progress: &Progress,
) -> Result<Begun, BackupError> {
    let basis = basis(database, repository, options, read_time, true).await?;
    check_reads(database, options, &basis).await?;
    let Basis {
        metadata,
        listing,
        read_time,
        parent,
        choice: Choice { read, since },
    } = basis;
    let uid = metadata.map(|metadata| metadata.uid);
    let ranges = match &parent {
        Some(parent) => plan::ranges_of_parent(database, parent, read_time, options, progress).await?,
        None => plan::ranges_of_database(database, options, read_time, progress).await?,
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
        merges: None,
        read,
        ranges,
        extra: fleet::agreed(options)
            .into_iter()
            .chain(since.iter().flat_map(Since::entry))
            .collect(),
    };
    let pins = match &parent {
        _ if !options.deduplicate => Vec::new(),
        Some(_) => Vec::new(),
        None => parent::newest_of_every_selection(&listing),
    };
    let session = SessionOptions {
        id,
        pins,
        ..SessionOptions::new(plan)
    };
    let session = Arc::new(Session::begin(repository, session).await?);
    if id.is_none() {
        return Ok(Begun {
            ranges: session.planned_ranges(),
            session,
            parent,
        });
    }
    // The plan that holds may be another worker's.
    let parent = match (session.plan().parent, parent) {
        (Some(id), Some(parent)) if parent.id() == id => Some(parent),
        (planned, _) => open_planned(repository, planned).await?,
    };
    Ok(Begun {
        ranges: session.unfinished_ranges().await?,
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
    progress: &Progress,
) -> Result<Option<Start>, BackupError> {
    let now = database.current_read_time().await?;
    let recovery = options.pitr || has_recovery(database).await;
    let is_readable = |session: &OpenSession| {
        let age = now.seconds.saturating_sub(session.read_time.seconds);
        let is_minute = session.read_time.nanos == 0 && session.read_time.seconds % 60 == 0;
        let window = if recovery && is_minute { SEVEN_DAYS } else { HOUR };
        age < window - MARGIN
    };
    let fits = |session: &OpenSession| {
        session.plan.kind == SnapshotKind::Backup
            && session.plan.merges.is_none()
            && session.plan.database == *database.database()
            && session.plan.selection == options.selection
    };
    let mut attempt = 1;
    loop {
        let sessions = repository.open_sessions().await?;
        let Some(open) = sessions
            .into_iter()
            .find(|session| fits(session) && is_readable(session))
        else {
            info!("there is no unfinished backup to go on with");
            return Ok(None);
        };
        info!(session = %open.id, read_time = %open.read_time, finished = open.finished_ranges, "going on");
        match join(repository, open.id, progress).await {
            Ok(begun) => return Ok(Some(Start::Work(begun))),
            Err(BackupError::Archive(ArchiveError::CommittedAlready { session })) => {
                let snapshot = repository.pinned_snapshot(session).await?;
                return Ok(Some(Start::Committed(Box::new(snapshot))));
            }
            Err(BackupError::Archive(error)) if attempt < ATTEMPTS && may_differ_next_time(&error) => {
                info!("{error}: looking again");
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Takes part in a session that has a plan.
async fn join(repository: &Repository, id: SessionId, progress: &Progress) -> Result<Begun, BackupError> {
    let session = Arc::new(Session::join(repository, id, UPLOAD_BUDGET).await?);
    let parent = open_planned(repository, session.plan().parent).await?;
    let ranges = session.unfinished_ranges().await?;
    for finished in session.finished_ranges().await? {
        let documents = finished.stats.documents + finished.stats.unchanged_documents;
        progress.add(documents, finished.stats.raw_bytes);
    }
    for (_, documents) in ranges.iter().filter_map(UnfinishedRange::covered) {
        progress.add(documents, 0);
    }
    Ok(Begun {
        session,
        parent,
        ranges,
    })
}

/// The parent that a plan names. That it was forgotten since does not matter: the session's pins keep it.
async fn open_planned(
    repository: &Repository,
    parent: Option<SnapshotId>,
) -> Result<Option<SnapshotReader>, BackupError> {
    let Some(parent) = parent else {
        return Ok(None);
    };
    let snapshot = repository.pinned_snapshot(parent).await?;
    Ok(Some(open_parent(repository, &snapshot).await?))
}

async fn open_parent(repository: &Repository, parent: &Snapshot) -> Result<SnapshotReader, BackupError> {
    let reader = repository.reader(parent).await;
    reader.map_err(|error| BackupError::of_parent(parent.id, error))
}

/// What the database says of itself: its own identity, which tells one that was deleted and made again from the one before, and
/// whether it has point-in-time recovery. A backup does not depend on it: emulators do not say, and not every account may ask.
async fn metadata(database: &Firestore) -> Option<DatabaseMetadata> {
    match database.metadata().await {
        Ok(metadata) => metadata,
        Err(error) => {
            info!("the database does not say what it is: {error}");
            None
        }
    }
}
