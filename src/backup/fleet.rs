//! The tasks of a fleet: processes on many machines that take one backup and share nothing but the bucket.
//!
//! Any number of processes may work on a session; a fleet is those that know how many they are. So each begins with its own share
//! of the ranges, and goes on with what others have not begun or have left: it claims a range before it reads it (see
//! [`Session::claim`]). Who has nothing left asks others for parts of what they read, and waits for those, or for a range whose
//! reader has died, until all is read. Whoever reads the last range commits.
//!
//! Nothing of this is needed for the snapshot to be right: claims may be wrong, and the session's protocol takes care that ranges that
//! were read twice count once. It keeps documents from being read, and billed, more than once.
//!
//! Beside what any backup asks of the store (see [`backup`](mod@super)), a fleet makes two creations and two heads for each
//! range: the claim, whether it is done or split, and what was billed so far; a listing every few seconds for each task: of requests while
//! it reads, of the session while it does not; and a get for each claim that a task with nothing to do looks at, once.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::crew::Ended;
use super::{BackupError, BackupOptions, Readers};
use crate::archive::{
    ArchiveError, ClaimPatience, Committed, Session, Snapshot, SnapshotDraft, TaskView, UnfinishedRange,
};
use crate::clock;
use crate::firestore::{Firestore, RequestCounts};
use crate::task::Task;

/// Where plans and snapshots say what the tasks agreed upon.
const AGREED: &str = "tasks";

/// So long after a commit a task that cannot say which execution it is of is taken for one of those that took the snapshot.
/// Engines start a task again within minutes; another backup under the same name comes another day.
const COMES_BACK_WITHIN: TimeDelta = TimeDelta::hours(1);

/// How a process takes part in a backup as one of several tasks.
#[derive(Clone, Debug)]
pub struct TaskOptions {
    /// Which one it is. All must say the same count.
    pub task: Task,
    /// What tells this execution of the tasks from others: one that comes back after the commit is told by it from one
    /// of another backup, for which the session's name cannot be used again.
    pub execution: Option<String>,
    /// How often to look what others want, and what they have left.
    pub look_every: Duration,
    /// When what others have claimed is taken over.
    pub claims: ClaimPatience,
    /// How long to wait for the first task's plan, and for the commit of whoever read the last range, before doing it.
    pub wait: Duration,
}

impl TaskOptions {
    /// With times that suit tasks that read for minutes or hours.
    pub fn new(task: Task) -> Self {
        Self {
            task,
            execution: None,
            look_every: Duration::from_secs(2),
            claims: ClaimPatience {
                // Three signs of life that did not come.
                worker: Duration::from_secs(100),
                range: Duration::from_secs(30 * 60),
            },
            wait: Duration::from_secs(30),
        }
    }
}

/// What all tasks of a session agree upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Agreed {
    count: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    execution: Option<String>,
}

impl Agreed {
    fn of(options: &TaskOptions) -> Self {
        Self {
            count: options.task.count(),
            execution: options.execution.clone(),
        }
    }

    fn read(extra: &BTreeMap<String, serde_json::Value>) -> Option<Self> {
        serde_json::from_value(extra.get(AGREED)?.clone()).ok()
    }
}

/// What a plan, and the snapshot that comes of it, says of the tasks.
pub(super) fn agreed(options: &BackupOptions) -> BTreeMap<String, serde_json::Value> {
    let agreed = options.task.as_ref().map(Agreed::of);
    let value = agreed.and_then(|agreed| serde_json::to_value(agreed).ok());
    value
        .map(|value| (AGREED.to_owned(), value))
        .into_iter()
        .collect()
}

/// Checks that a process may take part in a session by what its plan says.
pub(super) fn check(
    name: &str,
    extra: &BTreeMap<String, serde_json::Value>,
    options: &BackupOptions,
) -> Result<(), BackupError> {
    let planned = Agreed::read(extra);
    let ours = options.task.as_ref().map(Agreed::of);
    let count = |agreed: &Option<Agreed>| agreed.as_ref().map(|agreed| agreed.count);
    if count(&planned) != count(&ours) {
        return Err(BackupError::TaskCount {
            name: name.to_owned(),
            planned: count(&planned),
            asked: count(&ours),
        });
    }
    let execution = |agreed: Option<Agreed>| agreed.and_then(|agreed| agreed.execution);
    match (execution(planned), execution(ours)) {
        (Some(theirs), Some(ours)) if theirs != ours => Err(BackupError::OtherExecution {
            name: name.to_owned(),
            theirs,
            ours,
        }),
        _ => Ok(()),
    }
}

/// Whether a process is one of the tasks that have taken this snapshot, come back.
pub(super) fn has_taken(snapshot: &Snapshot, options: &BackupOptions) -> bool {
    let (Some(theirs), Some(ours)) = (
        Agreed::read(&snapshot.extra),
        options.task.as_ref().map(Agreed::of),
    ) else {
        return false;
    };
    let is_known = theirs.execution.is_some() && ours.execution.is_some();
    theirs == ours && (is_known || clock::now() - snapshot.finished_at < COMES_BACK_WITHIN)
}

/// Who wants a part of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanting {
    /// Readers of the same process.
    Readers,
    /// Other tasks.
    Tasks,
}

impl fmt::Display for Wanting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Readers => "readers",
            Self::Tasks => "tasks",
        })
    }
}

/// The other workers of a session, as far as a backup takes notice of them.
pub(super) enum Others {
    /// None are expected.
    None,
    /// There may be any number, that know only the session's name.
    Named,
    /// It is one of several tasks.
    Tasks(Box<Fleet>),
}

impl Others {
    pub(super) fn of(
        options: &BackupOptions,
        session: &Arc<Session>,
        database: &Firestore,
        before: &RequestCounts,
    ) -> Self {
        match (&options.task, &options.session) {
            (Some(task), _) => Self::Tasks(Box::new(Fleet {
                options: task.clone(),
                session: Arc::clone(session),
                database: database.clone(),
                before: *before,
                has_claimed: AtomicBool::new(false),
            })),
            (None, Some(_)) => Self::Named,
            (None, None) => Self::None,
        }
    }

    /// Whether a range is still to be read, and by this process.
    pub(super) async fn leave(
        &self,
        session: &Session,
        range: &UnfinishedRange,
    ) -> Result<bool, BackupError> {
        Ok(match self {
            Self::None => true,
            Self::Named => !session.is_done_or_split(range).await?,
            Self::Tasks(fleet) => fleet.claim(range).await?,
        })
    }

    /// How many other tasks want a part of a range that this process reads.
    pub(super) fn want(&self, range: &UnfinishedRange) -> Result<Option<usize>, BackupError> {
        match self {
            Self::Tasks(fleet) => Ok(fleet.session.take_request(range)?),
            Self::None | Self::Named => Ok(None),
        }
    }

    /// Tells others what was read so far, before a range is finished: whoever commits says it of all.
    pub(super) async fn tell_reads(&self) -> Result<(), BackupError> {
        match self {
            Self::Tasks(fleet) => fleet.tell_reads().await,
            Self::None | Self::Named => Ok(()),
        }
    }

    /// Looks from time to time what others want, for as long as this process reads.
    pub(super) async fn listen(&self) -> Infallible {
        let Self::Tasks(fleet) = self else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(fleet.options.look_every).await;
            if let Err(error) = fleet.session.look_for_requests().await {
                info!("cannot look what other tasks want: {error}");
            }
        }
    }
}

/// This process, as one of the tasks.
pub(super) struct Fleet {
    options: TaskOptions,
    session: Arc<Session>,
    database: Firestore,
    before: RequestCounts,
    /// Whether it has claimed anything since it was last asked.
    has_claimed: AtomicBool,
}

impl Fleet {
    async fn claim(&self, range: &UnfinishedRange) -> Result<bool, BackupError> {
        let claimed = self.session.claim(range, self.options.task.index()).await?;
        self.has_claimed.fetch_or(claimed, Ordering::Relaxed);
        Ok(claimed)
    }

    async fn tell_reads(&self) -> Result<(), BackupError> {
        let counts = self.database.stats().counts().since(&self.before);
        Ok(self.session.note_reads(counts.billed_reads).await?)
    }

    async fn view(&self) -> Result<TaskView, BackupError> {
        let task = self.options.task.index();
        Ok(self.session.view_of_task(task, &self.options.claims).await?)
    }

    /// The ranges to try, in this order: the task's own share, which its readers go through together; then some of what other
    /// tasks have not begun, from the end of their shares, for they come from the start.
    fn in_order(&self, ranges: Vec<UnfinishedRange>, parallel: usize) -> Vec<UnfinishedRange> {
        let distance = |range: &UnfinishedRange| {
            let (part, of) = range.origin();
            self.options.task.distance(part, of)
        };
        let (mut order, mut others): (Vec<_>, Vec<_>) =
            ranges.into_iter().partition(|range| distance(range) == 0);
        others.reverse();
        others.sort_by_key(distance);
        // What is there changes while they are read: better to look again than to try them all.
        others.truncate(2 * parallel.max(1));
        order.append(&mut others);
        order
    }

    /// Asks for a part of the range that another task has read for longest, if that is long.
    async fn ask(&self, view: &TaskView, split_after: Duration) -> Result<(), BackupError> {
        let long = view
            .held
            .iter()
            .filter(|range| !range.asked && range.held_for >= split_after);
        match long.max_by_key(|range| range.held_for) {
            Some(range) => Ok(self.session.request_part(range).await?),
            None => Ok(()),
        }
    }
}

/// Waits between two looks: longer each time, as long as nothing happens.
struct Pause {
    next: Duration,
    most: Duration,
}

impl Pause {
    fn new(look_every: Duration) -> Self {
        Self {
            next: look_every / 8,
            most: look_every * 2,
        }
    }

    async fn sleep(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(self.most);
    }
}

impl Readers<'_> {
    /// Reads with the other tasks until all is read, and commits, or takes what another one committed. `draft` is told what others
    /// were billed for.
    pub(super) async fn finish_as_task(
        &self,
        fleet: &Fleet,
        draft: impl Fn(u64) -> SnapshotDraft,
    ) -> Result<Committed, BackupError> {
        let mut pause = Pause::new(fleet.options.look_every);
        let mut closings = 0;
        let mut finished_since = None;
        let mut has_read = false;
        loop {
            let view = fleet.view().await?;
            // After the look: what a sweep has removed since the commit looks as if nobody had read it.
            if let Some(committed) = self.session.decided().await? {
                return Ok(committed);
            }
            if self.options.stop.is_requested() && !view.is_finished() {
                return Err(self.stopped().await?);
            }
            if view.is_finished() {
                let since = *finished_since.get_or_insert_with(Instant::now);
                if has_read || since.elapsed() >= fleet.options.wait {
                    match self.commit(draft(view.reads_of_others)).await {
                        Err(BackupError::Archive(ArchiveError::Incomplete { what, .. })) => {
                            info!("not all is read yet: {what}");
                        }
                        committed => return committed,
                    }
                }
            } else if view.free.is_empty() {
                fleet.ask(&view, self.options.split_after).await?;
            } else {
                let ranges = fleet.in_order(view.free, self.options.parallel);
                if let Ended::WindowClosed(error) = self.read(ranges).await? {
                    closings += 1;
                    self.go_on_later(error, closings).await?;
                }
                fleet.tell_reads().await?;
                if fleet.has_claimed.swap(false, Ordering::Relaxed) {
                    (has_read, finished_since) = (true, None);
                    pause = Pause::new(fleet.options.look_every);
                    continue;
                }
            }
            has_read = false;
            tokio::select! {
                () = pause.sleep() => {}
                () = self.options.stop.requested(), if !self.options.stop.is_requested() => {}
            }
        }
    }
}
