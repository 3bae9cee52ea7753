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

mod beside;
mod check;
mod conflicts;
mod decide;
mod failures;
mod plan;
mod ranges;
mod read;
mod references;
mod renames;
mod retry;
mod rules;
mod session;
mod shared;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::Either;
use tokio::sync::mpsc;

use crate::archive::{ArchiveError, Lease, SessionId, SnapshotReader};
use crate::document::{DatabaseName, DocumentPath, FieldMask, KeyRange, PathError, Timestamp};
use crate::firestore::{self, BulkWriter, Firestore, Throttle, WriteOptions, WriteStats};
use crate::path_filter::{PathFilter, without_lock};
use crate::progress::Progress;
use crate::records::shares::SharesError;
use crate::stop::Stop;
use crate::store::StoreError;
use crate::task::{Part, Task};
pub(crate) use check::{Checks, is_acceptable};
pub use check::{TtlField, Warning, WarningKind, ttl_fields_of};
pub(crate) use conflicts::Conflicts;
use decide::{Decide, Purpose};
pub(crate) use decide::{plan as plan_document, write as write_document};
pub(crate) use failures::Sent;
pub(crate) use plan::{AmountRead, Tally};
pub use plan::{Findings, RestorePlan, check_restore, plan_restore};
pub use read::Gap;
use read::Reading;
pub(crate) use references::References;
pub use references::{ReferenceCounts, ReferenceMode};
pub use renames::{Rename, RenameError, Renames};
pub use retry::{RetryError, retry};
pub use rules::{Fates, RestoreMode};
pub(crate) use rules::{Found, Look, Rules};
use session::{Plan, RestoreSession};
pub use session::{RestoreSessions, SessionOptions, SharedRestore, UnfinishedRestore};
pub(crate) use write::{Account, DRAIN_PATIENCE, Reads};
use write::{End, Ranges, Writing};

/// Batches that wait for the writer. A few are enough: the readers refill faster than a database writes.
const WAITING_BATCHES: usize = 4;

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Which documents.
    pub filter: PathFilter,
    /// What happens to a document that exists.
    pub mode: RestoreMode,
    /// Restore only these fields, and only of documents that exist. A field that the snapshot does not have is removed, but not
    /// in a merge.
    pub fields: Option<FieldMask>,
    /// Leave documents alone that were changed after this time, and count them as conflicts.
    pub unmodified_since: Option<Timestamp>,
    /// Collections that are restored under another name.
    pub renames: Renames,
    /// Where references point.
    pub references: ReferenceMode,
    /// Fields that the database deletes documents by once their time has passed: plans warn of them.
    pub ttl_fields: Vec<TtlField>,
    /// How to write.
    pub write: WriteOptions,
    /// How many key ranges of the snapshot are read at the same time.
    pub parallel: usize,
    /// Where documents go that the database refuses. Made when the first one is.
    pub dead_letter_file: PathBuf,
    /// Restores what is intact around damage, instead of stopping there.
    pub skip_damaged: bool,
    /// Restore only the share of one of several tasks: together they restore all. They must be given the same of everything else.
    /// A restore that is [shared](SessionOptions::shared) chooses what it does itself.
    pub task: Option<Task>,
    /// Where it is recorded how far the restore is, so that it can be resumed.
    pub session: Option<SessionOptions>,
    /// Asks the restore to stop: it waits for what is under way, and records it.
    pub stop: Stop,
}

impl RestoreOptions {
    /// Everything, with the defaults for a database.
    pub fn new(database: &Firestore, dead_letter_file: impl Into<PathBuf>) -> Self {
        Self::for_target(database.is_emulator(), dead_letter_file)
    }

    /// The same before there is a connection.
    pub fn for_target(is_emulator: bool, dead_letter_file: impl Into<PathBuf>) -> Self {
        Self {
            filter: PathFilter::all(),
            mode: RestoreMode::Overwrite,
            fields: None,
            unmodified_since: None,
            renames: Renames::default(),
            references: ReferenceMode::Rewrite,
            ttl_fields: Vec::new(),
            write: WriteOptions::for_target(is_emulator),
            parallel: READERS,
            dead_letter_file: dead_letter_file.into(),
            skip_damaged: false,
            task: None,
            session: None,
            stop: Stop::default(),
        }
    }

    /// What decides which documents are written and how, by the option's name: a restore is resumed with the same.
    fn described(&self) -> BTreeMap<String, String> {
        let mut options = BTreeMap::new();
        let mut note = |name: &str, value: String| {
            options.insert(name.to_owned(), value);
        };
        note("--mode", format!("{:?}", self.mode));
        note("--references", format!("{:?}", self.references));
        if !self.filter.is_all() {
            note("--only", self.filter.patterns().join(" "));
            note("--exclude", self.filter.excluded().join(" "));
        }
        if let Some(fields) = &self.fields {
            note("--fields", fields.to_string());
        }
        if let Some(time) = self.unmodified_since {
            note("--if-unmodified-since", time.to_string());
        }
        if !self.renames.is_empty() {
            let renames: Vec<String> = self.renames.iter().map(ToString::to_string).collect();
            note("--rename-collection", renames.join(" "));
        }
        if self.skip_damaged {
            note("--skip-damaged", "yes".to_owned());
        }
        if let Some(task) = self.task {
            note(session::TASK_INDEX, task.index().to_string());
            note(session::TASK_COUNT, task.count().to_string());
        }
        options
    }

    /// Says no to options that contradict each other: [`RestoreError::Options`].
    pub fn check(&self) -> Result<(), RestoreError> {
        rules::check(self.mode, self.fields.as_ref(), self.unmodified_since)
    }

    /// What decides about a document, from a database, if it is known, into another one.
    pub(crate) fn rules(
        &self,
        source: Option<&DatabaseName>,
        target: &DatabaseName,
    ) -> Result<Rules, RestoreError> {
        self.check()?;
        Ok(Rules {
            mode: self.mode,
            fields: self.fields.clone(),
            unmodified_since: self.unmodified_since,
            references: References::new(self.references, source, target, &self.renames),
        })
    }

    /// The ranges of a snapshot that were chosen, or a task's share of them, cut where its index can be cut, ascending.
    async fn cut(&self, reader: &SnapshotReader) -> Result<Vec<KeyRange>, ArchiveError> {
        let tasks = self.task.map_or(1, |task| task.count() as usize);
        let count = ranges::ranges_for(self.parallel.max(1) * tasks);
        let pieces = self.cut_into(reader, count).await?;
        Ok(match self.task {
            Some(task) => Part::from(task).pick(pieces),
            None => pieces,
        })
    }

    /// The ranges that were chosen, of all tasks, cut into so many, and more where they lie apart.
    async fn cut_into(&self, reader: &SnapshotReader, count: usize) -> Result<Vec<KeyRange>, ArchiveError> {
        let chosen = self.pieces(reader);
        match ranges::split_ranges(reader, &chosen, count).await {
            Err(error) if self.skip_damaged => {
                // Where the index cannot be cut it is read in one piece, and around what is damaged.
                error.into_damage()?;
                Ok(chosen)
            }
            pieces => pieces,
        }
    }

    /// Where a document is restored.
    pub(crate) fn renamed(&self, path: DocumentPath) -> Result<DocumentPath, RestoreError> {
        Ok(renames::renamed(&self.renames, &path)?.unwrap_or(path))
    }

    /// The ranges of a snapshot that were chosen, cut so that all of each is renamed alike. The lock of migrations is never chosen.
    fn pieces(&self, reader: &SnapshotReader) -> Vec<KeyRange> {
        let selected = reader.snapshot().selection.key_ranges();
        let chosen = self.filter.ranges().iter().flat_map(|chosen| {
            selected
                .iter()
                .map(|selected| selected.intersection(chosen))
                .filter(|range| !range.is_empty())
        });
        self.renames.pieces(&without_lock(&chosen.collect::<Vec<_>>()))
    }
}

/// Key ranges of a snapshot that are read at the same time: the more, the further apart neighbouring writes lie.
const READERS: usize = 8;

/// What a restore has done, or a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
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
    /// What was decided, and of what is acknowledged, what became of it.
    pub fates: Fates,
    /// References in what is written.
    pub references: ReferenceCounts,
    /// Reads that are billed.
    pub billed_reads: u64,
    /// Writes that are billed: what the database has taken, and what it refused because a document exists or does not, or was
    /// changed. What it refuses for any other reason is not billed.
    pub billed_writes: u64,
    /// Deletions that are billed.
    pub billed_deletes: u64,
}

impl RestoreCounts {
    /// Adds another part.
    pub(crate) fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.written += other.written;
        self.failed += other.failed;
        self.left_out += other.left_out;
        self.fates += other.fates;
        self.references += other.references;
        self.billed_reads += other.billed_reads;
        self.billed_writes += other.billed_writes;
        self.billed_deletes += other.billed_deletes;
    }
}

/// What a restore did.
#[derive(Clone, Debug, Default)]
pub struct RestoreStats {
    /// Documents that were chosen.
    pub documents: u64,
    /// Bytes of their fields, in canonical form.
    pub bytes: u64,
    /// Writes and deletions that the database has taken.
    pub written: u64,
    /// Documents that were there already and stay as they were ([`RestoreMode::CreateOnly`]).
    pub existing: u64,
    /// Documents that the database refused; the dead-letter file has them.
    pub failed: u64,
    /// What was left out because the snapshot is damaged there ([`RestoreOptions::skip_damaged`]).
    pub gaps: Vec<Gap>,
    /// What became of the documents. Those that the database refused ([`failed`](Self::failed)) are in none of them. Documents are
    /// known to be created or changed only where the database was looked at.
    pub fates: Fates,
    /// Documents that were changed too late and stay as they are: the first thousand of them, in path order.
    pub conflicts: Vec<DocumentPath>,
    /// References in what was written.
    pub references: ReferenceCounts,
    /// Reads that are billed. Of a restore that was resumed, here and below, those of all processes; of one that was killed, what
    /// it had recorded.
    pub billed_reads: u64,
    /// Writes that are billed, those among them that were refused because a document exists or does not, or was changed.
    pub billed_writes: u64,
    /// Deletions that are billed.
    pub billed_deletes: u64,
    /// Of a restore that is [shared](SessionOptions::shared), what is not counted here.
    pub shared: Option<SharedStats>,
    /// How the writer fared, in this process.
    pub writes: WriteStats,
    /// How long it took, in this process.
    pub duration: Duration,
}

/// What one of several tasks says of the others. Every task tells it, for whoever has done a part may be gone since.
#[derive(Clone, Debug, Default)]
pub struct SharedStats {
    /// The numbers of the parts that are counted in the [`RestoreStats`]: those that this task has brought to their end, earlier
    /// processes of it included.
    pub parts: Vec<u32>,
    /// How many other tasks have brought to their end.
    pub parts_of_others: usize,
    /// What is recorded of these.
    pub others: RestoreCounts,
    /// What was left out there because the snapshot is damaged.
    pub gaps_of_others: Vec<Gap>,
}

impl RestoreStats {
    /// Adds what was done of another part; not the time that it took.
    fn add(&mut self, other: Self) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.written += other.written;
        self.existing += other.existing;
        self.failed += other.failed;
        self.gaps.extend(other.gaps);
        self.fates += other.fates;
        let mut conflicts = Conflicts::default();
        let paths = self.conflicts.iter().chain(&other.conflicts);
        paths.for_each(|path| conflicts.note(path));
        self.conflicts = conflicts.paths();
        self.references += other.references;
        self.billed_reads += other.billed_reads;
        self.billed_writes += other.billed_writes;
        self.billed_deletes += other.billed_deletes;
        self.writes += other.writes;
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
    /// Options that contradict each other. Nothing was written.
    #[error("{0}")]
    Options(String),
    /// A renamed collection comes to lie where other documents are restored. Nothing was written.
    #[error(
        "`{rename}` would put documents where `{path}` is restored to as well: leave one of them out with --only or \
         --exclude, or rename the other collection too"
    )]
    Collision {
        /// Which name.
        rename: String,
        /// A document that is there.
        path: DocumentPath,
    },
    /// Documents refer to other databases, and that was not wanted. Nothing was written.
    #[error(
        "{} of the chosen documents refer to documents of other databases, such as `{}`: nothing was written, as \
         --references fail says", .0.documents, .0.examples.first().map_or("", DocumentPath::as_str)
    )]
    ForeignReferences(Box<Warning>),
    /// Somebody asked it to stop.
    #[error("stopped after {}: what was written stays written{}", documents_in_words(*documents), going_on(*session))]
    Stopped {
        /// Documents that are done, whether they are written or in the dead-letter file.
        documents: u64,
        /// What goes on with it.
        session: Option<SessionId>,
    },
    /// Somebody asked one of several tasks to stop.
    #[error(
        "stopped after {}: what was written stays written, and the same command goes on from there, if no other task does",
        documents_in_words(*documents)
    )]
    TaskStopped {
        /// Documents that are done by this process.
        documents: u64,
    },
    /// A restore cannot be resumed with other options.
    #[error(
        "restore {session} cannot be resumed like this: {differences}. Resume it as it was begun, or begin a new one without \
         --resume"
    )]
    OtherOptions {
        /// The session.
        session: SessionId,
        /// What differs.
        differences: String,
    },
    /// Tasks that share a restore do not agree upon what it is.
    #[error(transparent)]
    Shares(SharesError),
    /// Another process goes on with the session.
    #[error("another process has gone on with restore {session}: this one stops")]
    SessionTaken {
        /// The session.
        session: SessionId,
    },
    /// How far the restore is cannot be recorded, or read.
    #[error("cannot keep the state of the restore in {location}: {source}. Name another place with --state")]
    State {
        /// Where.
        location: String,
        /// Why.
        source: Box<ArchiveError>,
    },
}

fn documents_in_words(count: u64) -> String {
    match count {
        1 => "1 document".to_owned(),
        count => format!("{count} documents"),
    }
}

fn going_on(session: Option<SessionId>) -> &'static str {
    match session {
        Some(_) => ", and the same command with --resume goes on from there",
        None => "; the same command again writes it again",
    }
}

fn advice(error: &ArchiveError) -> &'static str {
    let is_damage = matches!(
        error,
        ArchiveError::Damaged(_)
            | ArchiveError::Store(
                StoreError::NotFound { .. } | StoreError::OutOfRange { .. } | StoreError::TooLarge { .. }
            )
    );
    match is_damage {
        true => {
            ". `firebank verify --read-data` shows what else is damaged; --skip-damaged restores what is not"
        }
        false => "",
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
    let session = options.session.clone();
    let shared = session
        .as_ref()
        .and_then(|session| Some((session, session.shared.as_ref()?)));
    let restored = match shared {
        Some(shared) => shared::restore_shares(reader, database, options, shared, progress).await,
        None => restore_alone(reader, database, options, progress).await,
    };
    lease.release().await;
    match restored {
        Err(RestoreError::Archive(error)) => {
            Err(reader.repository().explain(reader.id(), error).await.into())
        }
        restored => restored,
    }
}

async fn restore_alone(
    reader: &SnapshotReader,
    database: &Firestore,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreStats, RestoreError> {
    check_first(reader, database, &options).await?;
    let (session, ranges) = begin(reader, database, &options).await?;
    let settled = Settled {
        throttle: options.write.throttle(),
        session,
        ranges,
    };
    let restored = restore_all(reader, database, options, settled, progress).await?;
    if let Some(session) = restored.session {
        session.remove().await;
    }
    Ok(restored.stats)
}

/// Fails where nothing may be written: before it is recorded that the restore has begun, so that nobody is told to go on with it.
async fn check_first(
    reader: &SnapshotReader,
    database: &Firestore,
    options: &RestoreOptions,
) -> Result<(), RestoreError> {
    let target = database.database();
    if options.references == ReferenceMode::Fail {
        return refuse_foreign(&plan::look_through(reader, target, options).await?.tally);
    }
    let purpose = Purpose::Plan(Look::Nothing, Checks::new(&[]));
    let decide = Decide::new(reader, target, None, options, purpose)?;
    decide.check_renames(options.skip_damaged).await
}

/// What is settled before a restore is done, or a part of it.
struct Settled {
    throttle: Arc<Throttle>,
    session: Option<RestoreSession>,
    ranges: Ranges,
}

/// What was restored, with the record of it.
struct Restored {
    stats: RestoreStats,
    session: Option<RestoreSession>,
    ranges: Ranges,
}

async fn restore_all(
    reader: &SnapshotReader,
    database: &Firestore,
    options: RestoreOptions,
    settled: Settled,
    progress: &Progress,
) -> Result<Restored, RestoreError> {
    let start = Instant::now();
    let target = database.database();
    let Settled {
        throttle,
        mut session,
        ranges,
    } = settled;
    let refusals = options.refusals(options.rules(None, target)?.look());
    let sink = options.sink(refusals.clone());
    let writer = BulkWriter::with_throttle(database, options.write.clone(), throttle, sink);
    progress.watch(writer.pace());
    let purpose = Purpose::Write(writer.encoder());
    let decide = Decide::new(reader, target, Some(database), &options, purpose)?;
    let ranges = ranges.with(refusals);
    let done = ranges.counts();
    progress.add(done.documents, done.bytes);
    let rest: Vec<(usize, KeyRange)> = (ranges.states().iter().enumerate())
        .filter_map(|(number, state)| Some((number, state.rest()?)))
        .collect();
    let reading = Reading {
        reader: reader.clone(),
        decide,
        filter: options.filter.clone(),
        skip_damaged: options.skip_damaged,
    };
    let every = options.session.as_ref().map(|session| session.checkpoint_every);
    let writing = Writing {
        writer,
        ranges,
        reads: Reads::new(database, done.billed_reads),
        session: session.as_mut().zip(every),
        progress,
        stop: &options.stop,
    };

    let (sender, steps) = mpsc::channel(WAITING_BATCHES);
    let read = reading.all(rest, options.parallel.max(1), sender);
    // When the writing ends early, nobody needs what is still being read.
    let write = match futures::future::select(pin!(writing.run(steps)), pin!(read)).await {
        Either::Left((written, _)) => written,
        Either::Right(((), write)) => write.await,
    };
    let (end, ranges, writes) = write?;
    if end == End::Stopped {
        return Err(RestoreError::Stopped {
            documents: ranges.counts().documents,
            session: session.map(|session| session.id()),
        });
    }
    let mut stats = ranges.counts().stats(writes, ranges.conflicts(), start.elapsed());
    stats.gaps = ranges.gaps().to_vec();
    Ok(Restored {
        stats,
        session,
        ranges,
    })
}

/// Fails when documents refer to other databases.
pub(crate) fn refuse_foreign(tally: &Tally) -> Result<(), RestoreError> {
    let is_foreign = |warning: &&Warning| warning.kind == WarningKind::ForeignReferences;
    match tally.warnings.iter().find(is_foreign) {
        Some(warning) => Err(RestoreError::ForeignReferences(Box::new(warning.clone()))),
        None => Ok(()),
    }
}

/// Cuts the snapshot into ranges and begins a session where one is wanted, or takes up an earlier one.
async fn begin(
    reader: &SnapshotReader,
    database: &Firestore,
    options: &RestoreOptions,
) -> Result<(Option<RestoreSession>, Ranges), RestoreError> {
    let plan = |pieces: &[KeyRange]| {
        let from = (reader.repository().id(), reader.id());
        Plan::new(from, database.database(), options, pieces)
    };
    if let Some(session) = &options.session
        && let Some(unfinished) = &session.resume
    {
        unfinished.check(&plan(&[]))?;
        let resumed = session.sessions.resume(unfinished).await?;
        return Ok((Some(resumed), unfinished.ranges()));
    }
    let pieces = options.cut(reader).await?;
    let session = match &options.session {
        Some(session) => {
            let id = SessionId::random();
            Some(session.sessions.begin(id, &plan(&pieces)).await?)
        }
        None => None,
    };
    Ok((session, Ranges::of(pieces)))
}

impl RestoreCounts {
    /// With how the writer fared.
    pub(crate) fn stats(self, writes: WriteStats, conflicts: &Conflicts, duration: Duration) -> RestoreStats {
        RestoreStats {
            documents: self.documents,
            bytes: self.bytes,
            written: self.written,
            existing: self.fates.existing,
            failed: self.failed,
            fates: self.fates,
            conflicts: conflicts.paths(),
            references: self.references,
            billed_reads: self.billed_reads,
            billed_writes: self.billed_writes,
            billed_deletes: self.billed_deletes,
            gaps: Vec::new(),
            shared: None,
            writes,
            duration,
        }
    }
}
