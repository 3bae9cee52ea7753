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
//! P + B + R   ranged gets   P: the parent's index pages, also those in which ranges meet, unless 16 MiB of other such pages come
//!                           between; B: its directory blocks; R: its run roots that are too large to stand in the snapshot
//! N + 3       gets          N: snapshots in the repository, among which the parent is chosen
//! C + 3       creations     C: ranges, a checkpoint each; pins, plan, snapshot
//! 3           heads         of the plan, at the beginning and before the commit, and of the mark that the parent was forgotten
//! 2           listings      of the snapshots, and of what the session has
//! ```
//!
//! and one creation for every 30 seconds that it takes, the heartbeat. Nothing is asked for a document or a data chunk. What
//! changed adds the chunks that are written: where ranges have little to write, a data chunk for each 8 MiB of bodies, an index
//! chunk, and a directory.

mod begin;
mod changed;
mod compared;
mod crew;
mod error;
mod estimate;
mod fleet;
mod head;
mod layer;
mod limit;
mod parent;
mod plan;
mod range;
mod reading;
mod recovery;
mod since;
mod source;

use std::sync::Arc;
use std::time::{Duration, Instant};

use begin::{Begun, Start};
use changed::Asking;
use crew::Ended;
pub use error::BackupError;
pub use estimate::{BackupEstimate, estimate_backup};
use fleet::Others;
pub use fleet::TaskOptions;
use head::HeadBudget;
use rand::seq::SliceRandom;
use since::Since;
use tracing::{info, warn};

pub use changed::{FieldCheck, check_field};
pub use since::ChangeField;

use crate::archive::{
    ArchiveError, Committed, ReadMode, Repository, Selection, Session, Snapshot, SnapshotDraft,
    SnapshotReader, UnfinishedRange,
};
use crate::compact::{CompactOptions, compact};
use crate::document::Timestamp;
use crate::firestore::{self, Firestore, RequestCounts};
use crate::progress::Progress;
use crate::stop::Stop;

/// Which snapshot a backup builds upon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// The newest of the same database and selection that is of no later time; none if there is none.
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
    /// Ask a field which documents have changed, where there is a parent whose chain has read all names lately enough; elsewhere
    /// `read` holds.
    pub changed: Option<ChangeField>,
    /// Point at what is stored already instead of storing it again. `false` is for a repository that has damaged chunks:
    /// then, without a [parent](Parent::None), the snapshot needs nothing that was there before it.
    pub deduplicate: bool,
    /// Words to find the snapshot by.
    pub tags: Vec<String>,
    /// The machine that takes it.
    pub host: Option<String>,
    /// A sentence about it.
    pub description: Option<String>,
    /// Go on with the newest backup of the same database and selection that was not finished, as long as the database can
    /// be read at its time; begin a new one if there is none.
    pub resume: bool,
    /// The name of the session to work on: the first process with it begins the session, all others take part in it.
    pub session: Option<String>,
    /// Which of the tasks of the session this process is; `None`: the session's processes do not know how many they are. Needs
    /// [`session`](Self::session), and is of no meaning to a backup that is gone on with.
    pub task: Option<TaskOptions>,
    /// How often a range writes down how far it has got.
    pub checkpoint_every: Duration,
    /// As of when to read; `None`: now. The server keeps an hour, and with point-in-time recovery the whole minutes of seven days.
    pub read_time: Option<Timestamp>,
    /// The database has point-in-time recovery: read as of a whole minute, which can be read for seven days.
    pub pitr: bool,
    /// Fail when the database can no longer be read at the time of the backup before all was read, instead of reading the rest at
    /// a newer time.
    pub require_consistent: bool,
    /// How long a range is read before it is split to give idle readers something to do.
    pub split_after: Duration,
    /// Documents that must be left of a range for that, where the server counts them.
    pub split_documents: u64,
    /// Reads that this process may be billed, about. A new backup that is expected to be billed more is not begun; one that comes to
    /// be billed more stops where it can be gone on with. To find out what to expect is billed as well: a read for each thousand
    /// documents. Each of several processes has its own limit.
    pub max_reads: Option<u64>,
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
            changed: None,
            deduplicate: true,
            tags: Vec::new(),
            host: None,
            description: None,
            resume: false,
            session: None,
            task: None,
            checkpoint_every: Duration::from_secs(60),
            read_time: None,
            pitr: false,
            require_consistent: false,
            split_after: Duration::from_secs(10),
            split_documents: 32 << 10,
            max_reads: None,
            stop: Stop::default(),
        }
    }
}

/// Who made a snapshot of what a session's processes read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommittedBy {
    /// This process.
    ThisProcess,
    /// Another process of the session, while this one took part.
    Another,
    /// Others, before this process came to do anything.
    Before,
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct BackupStats {
    /// The snapshot that it committed.
    pub snapshot: Snapshot,
    /// Who has committed it.
    pub committed: CommittedBy,
    /// How long it took.
    pub duration: Duration,
    /// Reads as Firestore bills them: more than the snapshot has documents where ranges overlap.
    pub billed_reads: u64,
    /// Requests that were sent to the database.
    pub requests: u64,
    /// Requests that were sent again after a failure.
    pub retries: u64,
    /// Where a [field](BackupOptions::changed) should have been asked and names were read by this process: why, a sentence each.
    pub names_instead: Vec<String>,
}

/// How long a range that is asked to stop waits for a good place to: past the next cut nothing is read or stored twice. Whoever asks
/// has little patience itself.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Waits until somebody asks to stop, and for as long after that as a range may go on: not at all where every read counts.
async fn out_of_patience(options: Arc<BackupOptions>) {
    options.stop.requested().await;
    if options.max_reads.is_none() {
        tokio::time::sleep(STOP_WITHIN).await;
    }
}

/// How often it is looked for what other workers have left before a backup gives up.
const ROUNDS: u32 = 16;
/// How often the time to read at may pass by before a backup gives up: each time it should have read for an hour.
const MOST_CLOSINGS: u32 = 48;

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
    let taken = match options.max_reads {
        None => take(database, repository, &options, &before, progress).await?,
        Some(most) => limit::take_within(most, database, repository, options, &before, progress).await?,
    };
    let (snapshot, committed, names_instead) = taken;
    let counts = database.stats().counts().since(&before);
    Ok(BackupStats {
        snapshot,
        committed,
        duration: start.elapsed(),
        billed_reads: counts.billed_reads,
        requests: counts.total_requests(),
        retries: counts.retries,
        names_instead,
    })
}

/// The snapshot, who committed it, and why names were read where a field should have been asked.
type Taken = (Snapshot, CommittedBy, Vec<String>);

/// Begins, or goes on with what was begun, and comes to its end.
async fn take(
    database: &Firestore,
    repository: &Repository,
    options: &BackupOptions,
    before: &RequestCounts,
    progress: &Progress,
) -> Result<Taken, BackupError> {
    let read_time = begin::read_time(database, options).await?;
    let resumed = match options.resume {
        true => begin::resume(database, repository, options, progress).await?,
        false => None,
    };
    let begun = match (resumed, &options.session) {
        (Some(start), _) => start,
        (None, Some(name)) => begin::named(database, repository, name, options, read_time, progress).await?,
        (None, None) => Start::Work(begin::begin(database, repository, options, read_time, progress).await?),
    };
    match begun {
        Start::Committed(snapshot) => Ok((*snapshot, CommittedBy::Before, Vec::new())),
        Start::Work(begun) => work(database, repository, begun, options, before, progress).await,
    }
}

/// Reads what is left of a session, commits it, and merges layers where that is due.
async fn work(
    database: &Firestore,
    repository: &Repository,
    begun: Begun,
    options: &BackupOptions,
    before: &RequestCounts,
    progress: &Progress,
) -> Result<Taken, BackupError> {
    let Begun {
        session,
        parent,
        ranges,
    } = begun;
    let since = Since::of(&session.plan().extra);
    let readers = Readers {
        asking: since.as_ref().map(|since| Arc::new(Asking::new(since))),
        database,
        session: &session,
        others: Arc::new(Others::of(options, &session, database, before)),
        parent: parent.as_ref(),
        options: Arc::new(options.clone()),
        progress,
    };
    let draft = |reads_of_others| SnapshotDraft {
        parent: parent.as_ref().map(|parent| parent.snapshot().clone()),
        tags: options.tags.clone(),
        host: options.host.clone(),
        description: options.description.clone(),
        billed_reads: database.stats().counts().since(before).billed_reads + reads_of_others,
        extra: fleet::agreed(options)
            .into_iter()
            .chain(since::handed_down(&session.plan().extra))
            .collect(),
        ..SnapshotDraft::default()
    };
    let mut names_instead = Vec::new();
    if let Some(wanted) = &options.changed {
        let parent = parent.as_ref().map(SnapshotReader::snapshot);
        names_instead.extend(since::why_not_asked(wanted, session.plan(), parent));
    }
    let others = Arc::clone(&readers.others);
    let committed = match &*others {
        Others::Tasks(fleet) => readers.finish_as_task(fleet, draft).await?,
        Others::None | Others::Named => readers.finish(ranges, || draft(0)).await?,
    };
    names_instead.extend(readers.asking.iter().flat_map(|asking| asking.said()));
    Ok(match committed.by_this_worker {
        true => (
            compact_if_due(repository, committed.snapshot).await,
            CommittedBy::ThisProcess,
            names_instead,
        ),
        // Once is enough: whoever made the snapshot does.
        false => (committed.snapshot, CommittedBy::Another, names_instead),
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

/// Who reads, and what they share.
struct Readers<'a> {
    database: &'a Firestore,
    session: &'a Arc<Session>,
    others: Arc<Others>,
    parent: Option<&'a SnapshotReader>,
    options: Arc<BackupOptions>,
    asking: Option<Arc<Asking>>,
    progress: &'a Progress,
}

impl Readers<'_> {
    /// Reads ranges, and what comes in their place, until nothing is left.
    async fn read_all(&self, mut ranges: Vec<UnfinishedRange>) -> Result<(), BackupError> {
        let mut closings = 0;
        loop {
            match self.read(ranges).await? {
                Ended::Done => return Ok(()),
                Ended::Stopped => {}
                Ended::WindowClosed(error) => {
                    closings += 1;
                    self.go_on_later(error, closings).await?;
                }
            }
            ranges = self.session.unfinished_ranges().await?;
            if ranges.is_empty() {
                return Ok(());
            }
            if self.options.stop.is_requested() {
                return Err(self.stopped().await?);
            }
        }
    }

    /// That somebody asked to stop, and how far it has got.
    async fn stopped(&self) -> Result<BackupError, BackupError> {
        Ok(BackupError::Stopped {
            session: self.session.id(),
            finished: self.session.finished_ranges().await?.len(),
            ranges: self.session.ranges().await?,
        })
    }

    /// Reads what is left, and commits. What another worker has split or left is read in a further round.
    async fn finish(
        &self,
        mut ranges: Vec<UnfinishedRange>,
        draft: impl Fn() -> SnapshotDraft,
    ) -> Result<Committed, BackupError> {
        for _ in 1..ROUNDS {
            self.read_all(ranges).await?;
            match self.commit(draft()).await {
                Err(BackupError::Archive(ArchiveError::Incomplete { what, .. })) => {
                    info!("not all is read yet: {what}");
                }
                committed => return committed,
            }
            ranges = self.session.unfinished_ranges().await?;
        }
        self.read_all(ranges).await?;
        self.commit(draft()).await
    }

    /// Commits; not where another worker has gone on to another time, and this one was asked for one moment.
    async fn commit(&self, draft: SnapshotDraft) -> Result<Committed, BackupError> {
        if self.options.require_consistent && self.session.read_time().await? != self.session.plan().read_time
        {
            return Err(BackupError::Mixed {
                session: self.session.id(),
            });
        }
        Ok(self.session.commit_or_adopt(draft).await?)
    }

    /// Where several processes work on a session and do not know how many they are, each takes the ranges in an order of its own: two that went through them in the
    /// same order would read the same ranges at the same time from where they meet. (In a first backup ranges lose their
    /// neighbours that way, and read some 8 MiB past their ends themselves.)
    fn in_order(&self, mut ranges: Vec<UnfinishedRange>) -> Vec<UnfinishedRange> {
        if matches!(*self.others, Others::Named) {
            ranges.shuffle(&mut rand::rng());
        }
        ranges
    }

    /// Each range is a task: parsing is work for every core, and wants to be where the bytes have just arrived.
    async fn read(&self, ranges: Vec<UnfinishedRange>) -> Result<Ended, BackupError> {
        tokio::select! {
            ended = self.read_ranges(ranges) => ended,
            never = self.others.listen() => match never {},
        }
    }

    async fn read_ranges(&self, ranges: Vec<UnfinishedRange>) -> Result<Ended, BackupError> {
        let ranges = self.in_order(ranges);
        let (session, options) = (Arc::clone(self.session), Arc::clone(&self.options));
        let Some(parent) = self.parent else {
            let context = range::RangeContext {
                database: self.database.clone(),
                session,
                others: Arc::clone(&self.others),
                heads: HeadBudget::new(),
                progress: self.progress.clone(),
                options,
            };
            let jobs = range::jobs(ranges, self.options.parallel, &context.heads);
            let work = |job, share| range::back_up(context.clone(), job, share);
            return crew::run(jobs, &self.options, work).await;
        };
        let comparison = compared::Comparison {
            database: self.database.clone(),
            parent: parent.clone(),
            read_time: self.session.plan().read_time,
            sampled: layer::sampled(parent.snapshot().documents),
        };
        let context = layer::LayerContext::new(
            comparison,
            session,
            Arc::clone(&self.others),
            options,
            self.asking.clone(),
            self.progress.clone(),
        );
        let work = |range, share| context.clone().back_up(range, share);
        crew::run(ranges, &self.options, work).await
    }

    /// The database can no longer be read as of the time that was read at: keeps what was read, and has the rest read as of now.
    async fn go_on_later(&self, error: firestore::Error, closings: u32) -> Result<(), BackupError> {
        if self.options.require_consistent {
            return Err(BackupError::WindowClosed {
                session: self.session.id(),
                source: error,
            });
        }
        if closings > MOST_CLOSINGS {
            return Err(error.into());
        }
        let now = match begin::time_to_read(self.database, self.options.pitr).await {
            Ok(now) => now,
            Err(later) => {
                info!("a newer time cannot be read at either: {later}");
                return Err(error.into());
            }
        };
        let firestore::Error::ReadTimeTooOld { read_time, .. } = &error else {
            return Err(error.into());
        };
        let has_recovery = !self.options.pitr && begin::has_recovery(self.database).await;
        let now = recovery::time_of_the_rest(*read_time, now, has_recovery);
        self.session.read_rest_at(*read_time, now).await?;
        warn!(
            "{error}: what was read stays, and the rest is read at a newer time, so the documents will not all be of one moment \
             (--require-consistent makes that an error, --pitr keeps the past for seven days)"
        );
        Ok(())
    }
}
