//! A database, a repository and the model of both: every operation is done to all, and whatever comes of it is held against
//! the model.
//!
//! A process that is killed is one whose store answers nothing any more from some request on; the next one sees the same
//! objects through a handle of its own.

mod checks;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use firebank::archive::{
    Parameters, ReadMode, Repository, SessionId, Snapshot, SnapshotId, SnapshotReader, SweepOptions,
};
use firebank::backup::{BackupOptions, Parent, backup};
use firebank::compact::{CompactOptions, compact};
use firebank::diff::{DiffOptions, ReadTimes, diff, diff_live};
use firebank::document::{Timestamp, canonical};
use firebank::firestore::{BulkWriter, Firestore, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::prune::{Choice, Policy, PruneError, PruneFilter, PruneStats, plan, prune};

use super::state::{Doc, State, assert_holds, collect, differences, path};
use crate::archive_support::object_names;
use crate::strange_store::{Habits, StrangeStore};
use crate::support::operations::*;
use crate::support::project;

/// What becomes of a document.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Edit {
    Put(i64),
    Delete,
    /// Deleted and made again with the same fields.
    Remake,
}

/// How to read for a backup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) read: ReadMode,
    pub(crate) ranges: usize,
    /// Builds upon nothing.
    pub(crate) alone: bool,
    /// Goes on with what was left, where something was.
    pub(crate) resume: bool,
}

/// Whether a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    /// It was killed on the way.
    Killed,
}

/// A process with the repository open.
struct Process {
    repository: Repository,
    objects: Arc<StrangeStore>,
    kill_at: Option<u64>,
}

/// What an operation may have done to the snapshots.
#[derive(Default)]
struct Allowed {
    /// Recorded the present state.
    recording: bool,
    /// Put another in the place of this one.
    merging: Option<SnapshotId>,
    /// Given these up.
    going: BTreeSet<SnapshotId>,
    /// Given up sessions that show no sign of life.
    sweeping: bool,
}

/// A repository so small that a few dozen documents make several segments, frames and pages.
fn parameters() -> Parameters {
    Parameters {
        frame_len: 512,
        cut_target: 1500,
        cut_max: 3000,
        page_records: 8,
        ..Parameters::with_seed(0x5eed)
    }
}

/// All of it.
#[derive(Clone)]
pub(crate) struct World {
    address: String,
    database: Firestore,
    objects: Arc<StrangeStore>,
    /// What the store's clock is ahead by.
    clock: TimeDelta,
    /// What the database holds.
    state: State,
    writings: u64,
    /// Every snapshot that was ever seen, with what it recorded.
    recorded: HashMap<SnapshotId, (Snapshot, State)>,
    /// Those that stand, newest first.
    standing: Vec<Snapshot>,
    /// Sessions that were killed and are not given up.
    undecided: BTreeMap<SessionId, Killed>,
    pub(crate) tally: Tally,
}

/// A session that was killed.
#[derive(Clone, Debug)]
struct Killed {
    /// When, by the store's clock: the last time if somebody went on with it.
    at: TimeDelta,
    /// What it would record if somebody went on with it.
    state: State,
}

/// What has happened, so that a test can tell that anything did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) recorded: usize,
    pub(crate) merged: usize,
    pub(crate) removed: usize,
    pub(crate) killed: usize,
    pub(crate) gone_on: usize,
    pub(crate) sessions_given_up: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.recorded += other.recorded;
        self.merged += other.merged;
        self.removed += other.removed;
        self.killed += other.killed;
        self.gone_on += other.gone_on;
        self.sessions_given_up += other.sessions_given_up;
    }
}

impl World {
    pub(crate) async fn new(address: &str) -> Self {
        let objects = StrangeStore::new();
        repository_in(objects.store(), parameters()).await;
        Self {
            address: address.to_owned(),
            database: connect(address, &project("model"), "(default)").await,
            objects,
            clock: TimeDelta::zero(),
            state: State::new(),
            writings: 0,
            recorded: HashMap::new(),
            standing: Vec::new(),
            undecided: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    /// A world with the same database in which the repository goes its own way.
    pub(crate) fn fork(&self) -> Self {
        Self {
            objects: self.objects.fork(),
            ..self.clone()
        }
    }

    /// Takes the database for what another world has made of it.
    pub(crate) fn follow(&mut self, other: &Self) {
        self.state.clone_from(&other.state);
        self.writings = other.writings;
    }

    /// The snapshots that stand, newest first.
    pub(crate) fn standing(&self) -> &[Snapshot] {
        &self.standing
    }

    /// Of how many moments they are.
    pub(crate) fn moments(&self) -> usize {
        self.read_times().len()
    }

    fn read_times(&self) -> Vec<Timestamp> {
        let mut times: Vec<Timestamp> = self.standing.iter().map(|one| one.read_time).collect();
        times.dedup();
        times
    }

    /// Where a snapshot stands among them.
    pub(crate) fn place_of(&self, snapshot: SnapshotId) -> Option<usize> {
        self.standing.iter().position(|one| one.id == snapshot)
    }

    /// Sessions that were killed and are not given up.
    pub(crate) fn undecided(&self) -> usize {
        self.undecided.len()
    }

    /// All objects of the repository.
    pub(crate) async fn object_names(&self) -> Vec<String> {
        object_names(self.repository().await.store(), "").await
    }

    /// A process that is killed at this request to the store, counted from 1.
    async fn process(&self, kill_at: Option<u64>) -> Process {
        let objects = self.objects.beside();
        let habits = |stops_at| Habits {
            ahead: self.clock,
            stops_at,
            ..Habits::default()
        };
        objects.habits(habits(None));
        let repository = Repository::open(objects.store()).await.unwrap();
        objects.habits(habits(kill_at));
        Process {
            repository,
            objects,
            kill_at,
        }
    }

    /// Panics when the process failed for another reason than that it was killed.
    fn ended<T, E: std::fmt::Display>(&mut self, process: &Process, result: &Result<T, E>) -> Ended {
        let requests = process.objects.requests();
        if process.kill_at.is_some_and(|kill_at| requests >= kill_at) {
            self.tally.killed += 1;
            return Ended::Killed;
        }
        if let Err(error) = result {
            panic!("{error}");
        }
        Ended::Done
    }

    async fn repository(&self) -> Repository {
        self.process(None).await.repository
    }

    /// Sessions that a backup can go on with.
    pub(crate) async fn open_sessions(&self) -> Vec<SessionId> {
        let open = self.repository().await.open_sessions().await.unwrap();
        open.into_iter().map(|session| session.id).collect()
    }

    /// Whether a session has become a snapshot, or one that stands in for it.
    pub(crate) fn has_recorded(&self, session: SessionId) -> bool {
        let is_its =
            |(snapshot, _): &(Snapshot, State)| snapshot.id == session || snapshot.replaces == Some(session);
        self.recorded.values().any(is_its)
    }

    /// Time goes by for the store.
    pub(crate) fn wait(&mut self, time: TimeDelta) {
        self.clock += time;
    }

    /// Changes documents, each once.
    pub(crate) async fn write(&mut self, edits: impl IntoIterator<Item = (u16, Edit)>) {
        let edits: BTreeMap<u16, Edit> = edits.into_iter().collect();
        self.writings += 1;
        let mut deleting = self.writer();
        let mut puts = BTreeMap::new();
        for (number, edit) in edits {
            let path = path(number);
            let before = self.state.get(&path).cloned();
            let number = match (edit, &before) {
                (Edit::Put(number), _) => number,
                (Edit::Remake, Some(before)) => before.number,
                (Edit::Delete, Some(_)) => {
                    deleting.delete(&path).await.unwrap();
                    self.state.remove(&path);
                    continue;
                }
                (Edit::Delete | Edit::Remake, None) => continue,
            };
            if let Edit::Remake = edit {
                deleting.delete(&path).await.unwrap();
            } else if before.is_some_and(|before| before.number == number) {
                // To write what is there already changes nothing, the update time included.
                continue;
            }
            puts.insert(path, number);
        }
        assert_eq!(deleting.finish().await.unwrap().failed, 0);
        let mut writing = self.writer();
        for (path, number) in puts {
            let body = canonical::encode(&super::state::fields(number));
            writing.put(&path, &body).await.unwrap();
            let written = self.writings;
            self.state.insert(path, Doc { number, written });
        }
        assert_eq!(writing.finish().await.unwrap().failed, 0);
    }

    fn writer(&self) -> BulkWriter {
        let options = WriteOptions::new(&self.database);
        BulkWriter::new(&self.database, options, Vec::<WriteFailure>::new())
    }

    /// Takes a snapshot of the present.
    pub(crate) async fn back_up(&mut self, reading: Reading, kill_at: Option<u64>) -> Ended {
        let options = BackupOptions {
            read: Some(reading.read),
            ranges: Some(reading.ranges),
            parallel: 3,
            parent: match reading.alone {
                true => Parent::None,
                false => Parent::Newest,
            },
            resume: reading.resume,
            checkpoint_every: Duration::ZERO,
            ..BackupOptions::default()
        };
        let process = self.process(kill_at).await;
        let result = backup(&self.database, &process.repository, options, &Progress::new()).await;
        let ended = self.ended(&process, &result);
        let before = self.standing.len();
        self.settle(Allowed {
            recording: true,
            ..Allowed::default()
        })
        .await;
        match &result {
            Ok(stats) => {
                let stands = self.standing.contains(&stats.snapshot);
                assert!(stands, "the backup told of a snapshot that is not there");
            }
            Err(error) => assert_eq!(
                self.standing.len(),
                before,
                "{error}, and a snapshot all the same"
            ),
        }
        ended
    }

    /// Merges layers of a snapshot.
    pub(crate) async fn compact(&mut self, which: usize, all: bool, kill_at: Option<u64>) -> Ended {
        let Some(snapshot) = self.pick(which) else {
            return Ended::Done;
        };
        let options = CompactOptions {
            all,
            ..CompactOptions::default()
        };
        let process = self.process(kill_at).await;
        let result = compact(&process.repository, &snapshot, &options).await;
        let ended = self.ended(&process, &result);
        self.settle(Allowed {
            merging: Some(snapshot.id),
            ..Allowed::default()
        })
        .await;
        let stands = |id| self.standing.iter().any(|snapshot| snapshot.id == id);
        match result {
            Ok(Some(merged)) => {
                assert!(stands(merged.id) && !stands(snapshot.id));
                assert!(merged.runs.len() < snapshot.runs.len());
            }
            Ok(None) => assert!(stands(snapshot.id)),
            Err(_) => {}
        }
        ended
    }

    /// Keeps the newest `keep` snapshots; of those that were put in the place of others, one of each moment.
    pub(crate) async fn clean(&mut self, keep: usize, kill_at: Option<u64>) -> Ended {
        let mut kept = self.read_times();
        kept.truncate(keep);
        let of_kept = |snapshot: &&Snapshot| kept.contains(&snapshot.read_time);
        let alone = |snapshot: &&Snapshot| {
            let same = self
                .standing
                .iter()
                .filter(|one| one.read_time == snapshot.read_time);
            same.count() == 1
        };
        let going = self.standing.iter().filter(|one| !(of_kept(one) && alone(one)));
        let going = going.map(|one| one.id).collect();
        let choice = Choice::Policy(Policy::last(keep as u32));
        let ended = self.prune(choice, going, kill_at).await;
        let mut left = self.read_times();
        match ended {
            Ended::Killed => left.truncate(keep),
            Ended::Done => assert_eq!(left.len(), self.standing.len(), "a moment is there twice"),
        }
        assert_eq!(left, kept);
        ended
    }

    /// Gives up one snapshot by its id.
    pub(crate) async fn give_up(&mut self, which: usize, kill_at: Option<u64>) -> Ended {
        let Some(snapshot) = self.pick(which) else {
            return Ended::Done;
        };
        let choice = Choice::Snapshots(vec![snapshot.id]);
        let ended = self.prune(choice, [snapshot.id].into(), kill_at).await;
        assert!(ended == Ended::Killed || !self.standing.contains(&snapshot));
        ended
    }

    async fn prune(&mut self, choice: Choice, going: BTreeSet<SnapshotId>, kill_at: Option<u64>) -> Ended {
        let before = self.objects_of_undecided().await;
        let process = self.process(kill_at).await;
        let repository = Some(&process.repository);
        let options = SweepOptions::default();
        let pruned = async {
            let plan = plan(repository, None, &choice, &PruneFilter::default()).await?;
            prune(repository, &plan, &options).await
        };
        let result: Result<PruneStats, PruneError> = pruned.await;
        let ended = self.ended(&process, &result);
        self.settle(Allowed {
            going,
            sweeping: true,
            ..Allowed::default()
        })
        .await;
        let after = self.objects_of_undecided().await;
        for (session, object) in before.difference(&after) {
            let is_given_up = !self.undecided.contains_key(session);
            assert!(is_given_up, "{object} of a session that may live is gone");
        }
        if result.is_ok() {
            self.check_nothing_else_is_there().await;
        }
        ended
    }

    /// Writes a snapshot into an empty database.
    pub(crate) async fn restore(&mut self, which: usize, kill_at: Option<u64>) -> Ended {
        let Some(snapshot) = self.pick(which) else {
            return Ended::Done;
        };
        let target = connect(&self.address, &project("restored"), "(default)").await;
        let process = self.process(kill_at).await;
        let restored = async {
            let reader = process.repository.reader(&snapshot).await?;
            try_restore(&reader, &target).await
        };
        let result = restored.await;
        if let Ok(stats) = &result {
            assert_eq!((stats.documents, stats.failed), (snapshot.documents, 0));
            let (_, state) = &self.recorded[&snapshot.id];
            assert_holds(scan(&target).await, state, "a restored database").await;
        }
        self.ended(&process, &result)
    }

    /// Restores every snapshot that stands.
    pub(crate) async fn restore_all(&mut self) {
        for which in 0..self.standing.len() {
            self.restore(which, None).await;
        }
    }

    /// Compares two snapshots.
    pub(crate) async fn diff(&self, old: usize, new: usize) {
        let (Some(old), Some(new)) = (self.pick(old), self.pick(new)) else {
            return;
        };
        let expected = differences(&self.recorded[&old.id].1, &self.recorded[&new.id].1);
        let (old, new) = (self.reader(&old).await, self.reader(&new).await);
        assert_eq!(collect(diff(&old, &new, &DiffOptions::default())).await, expected);
    }

    /// Compares a snapshot with the database.
    pub(crate) async fn diff_live(&self, old: usize) {
        let Some(old) = self.pick(old) else { return };
        let expected = differences(&self.recorded[&old.id].1, &self.state);
        let time = self.database.current_read_time().await.unwrap();
        let old = self.reader(&old).await;
        let changes = diff_live(
            &old,
            &self.database,
            &ReadTimes::beginning_at(time),
            &DiffOptions::default(),
        )
        .await
        .unwrap();
        assert_eq!(collect(changes).await, expected);
    }

    async fn reader(&self, snapshot: &Snapshot) -> SnapshotReader {
        self.repository().await.reader(snapshot).await.unwrap()
    }

    fn pick(&self, which: usize) -> Option<Snapshot> {
        let which = which.checked_rem(self.standing.len())?;
        Some(self.standing[which].clone())
    }
}
