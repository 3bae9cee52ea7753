//! What a restore records of itself, so that another process can go on where one was stopped: a [record](crate::records), whose
//! plan says what is restored and into which ranges it was cut, and whose checkpoints say how far each range is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::write::{RangeState, Ranges};
use super::{Conflicts, Gap, RestoreCounts, RestoreError, RestoreOptions};
use crate::archive::{ArchiveError, RepositoryId, SessionId, SnapshotId};
use crate::clock;
use crate::document::{DatabaseName, DocumentKey, KeyRange};
use crate::records::shares::{self, Found, ShareableWork, SharedWork, Shares, differences};
use crate::records::{Record, Records, Running, Work};
use crate::store::Store;

pub(super) const TASK_INDEX: &str = "--task-index";
pub(super) const TASK_COUNT: &str = "--task-count";
const THE_REPOSITORY: &str = "the repository";
const THE_SNAPSHOT: &str = "the snapshot";
const THE_TARGET: &str = "the target";

/// Where restores record how far they are.
#[derive(Clone, Debug)]
pub struct RestoreSessions(Records<RestoreWork>);

/// How a restore records how far it is.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Where.
    pub sessions: RestoreSessions,
    /// How it is shared with other tasks, where it is: then each goes on with what it finds of its own share, and with what others
    /// have left or have not begun.
    pub shared: Option<SharedWork>,
    /// Which one to go on with; `None` begins a new one.
    pub resume: Option<UnfinishedRestore>,
    /// How often: what was written since is written again after a kill.
    pub checkpoint_every: Duration,
}

impl SessionOptions {
    /// A new session with a checkpoint a second.
    pub fn new(sessions: RestoreSessions) -> Self {
        Self {
            sessions,
            shared: None,
            resume: None,
            checkpoint_every: Duration::from_secs(1),
        }
    }
}

/// Restores, as work that is recorded.
#[derive(Clone, Debug)]
pub(super) enum RestoreWork {}

impl Work for RestoreWork {
    const FOLDER: &'static str = "restores";
    const NAME: &'static str = "restore";
    type Plan = Plan;
    type Checkpoint = Checkpoint;

    fn check(plan: &Plan, checkpoint: &Checkpoint) -> Result<(), &'static str> {
        match checkpoint.ranges.len() == plan.ranges.len() {
            true => Ok(()),
            false => Err("it has another number of ranges than its plan"),
        }
    }
}

impl ShareableWork for RestoreWork {
    const SHARED_FOLDER: &'static str = "shared-restores";
    const PARTS_PER_TASK: u32 = 8;
    /// Where the snapshot is cut.
    type Common = Vec<RangeRecord>;
}

/// What is restored, from where and into what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) repository: RepositoryId,
    pub(super) snapshot: SnapshotId,
    pub(super) target: DatabaseName,
    /// What decides which documents are written and how, by the option's name.
    pub(super) options: BTreeMap<String, String>,
    pub(super) ranges: Vec<RangeRecord>,
    pub(super) dead_letter_file: PathBuf,
    pub(super) started_at: DateTime<Utc>,
    pub(super) tool_version: String,
}

/// A key range in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct RangeRecord {
    start: Option<HexKey>,
    end: Option<HexKey>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct HexKey(#[serde(with = "hex::serde")] Vec<u8>);

impl HexKey {
    fn of(key: &DocumentKey) -> Self {
        Self(key.as_bytes().to_vec())
    }

    fn key(&self) -> DocumentKey {
        DocumentKey::from_bytes(self.0.clone())
    }
}

impl RangeRecord {
    pub(super) fn of(range: &KeyRange) -> Self {
        Self {
            start: range.start.as_ref().map(HexKey::of),
            end: range.end.as_ref().map(HexKey::of),
        }
    }

    pub(super) fn range(&self) -> KeyRange {
        KeyRange {
            start: self.start.as_ref().map(HexKey::key),
            end: self.end.as_ref().map(HexKey::key),
        }
    }
}

/// How far a restore is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    ranges: Vec<Place>,
    counts: RestoreCounts,
    gaps: Vec<Gap>,
    conflicts: Conflicts,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Place {
    /// The first key that may not be done.
    next: Option<HexKey>,
    finished: bool,
}

/// A restore that was not finished.
#[derive(Clone, Debug)]
pub struct UnfinishedRestore(Record<RestoreWork>);

impl UnfinishedRestore {
    /// Its id.
    pub fn id(&self) -> SessionId {
        self.0.id
    }

    /// The repository that the snapshot is in.
    pub fn repository(&self) -> RepositoryId {
        self.0.plan.repository
    }

    /// The snapshot that it restores.
    pub fn snapshot(&self) -> SnapshotId {
        self.0.plan.snapshot
    }

    /// The database that it writes into.
    pub fn target(&self) -> &DatabaseName {
        &self.0.plan.target
    }

    /// When it began.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.0.plan.started_at
    }

    /// When it last recorded something, by the store's own time.
    pub fn last_sign(&self) -> DateTime<Utc> {
        self.0.last_sign
    }

    /// Where its dead letters are.
    pub fn dead_letter_file(&self) -> &Path {
        &self.0.plan.dead_letter_file
    }

    /// What it had done at its last checkpoint.
    pub fn counts(&self) -> RestoreCounts {
        self.0
            .checkpoint
            .as_ref()
            .map(|checkpoint| checkpoint.counts)
            .unwrap_or_default()
    }

    /// What decides which documents it writes and how, by the option's name.
    pub fn options(&self) -> &BTreeMap<String, String> {
        &self.0.plan.options
    }

    /// Which task's share it restores, and of how many, where it is shared by tasks.
    pub fn task(&self) -> Option<(u32, u32)> {
        let number = |name: &str| self.0.plan.options.get(name)?.parse().ok();
        Some((number(TASK_INDEX)?, number(TASK_COUNT)?))
    }

    /// Whether it was begun with the same options, as far as these decide which documents are written and how.
    pub fn has_options(&self, options: &RestoreOptions) -> bool {
        self.0.plan.options == options.described()
    }

    /// Whether it is the same restore: of that snapshot, into that database, with those options.
    ///
    /// # Errors
    /// [`RestoreError::OtherOptions`], which says what differs.
    pub(super) fn check(&self, plan: &Plan) -> Result<(), RestoreError> {
        let differences = differences(&self.0.plan.identity(), &plan.identity());
        match differences.is_empty() {
            true => Ok(()),
            false => Err(RestoreError::OtherOptions {
                session: self.0.id,
                differences: differences.join("; "),
            }),
        }
    }

    /// Its ranges, and how far they are.
    pub(super) fn ranges(&self) -> Ranges {
        let mut states: Vec<RangeState> = self
            .0
            .plan
            .ranges
            .iter()
            .map(|range| RangeState::new(range.range()))
            .collect();
        let Some(checkpoint) = &self.0.checkpoint else {
            return Ranges::new(states);
        };
        for (state, place) in states.iter_mut().zip(&checkpoint.ranges) {
            state.next = place.next.as_ref().map(HexKey::key);
            state.finished = place.finished;
        }
        Ranges::at(
            states,
            checkpoint.counts,
            checkpoint.gaps.clone(),
            checkpoint.conflicts.clone(),
        )
    }
}

/// A restore that tasks share and that is not done.
#[derive(Clone, Debug)]
pub struct SharedRestore(Found<RestoreWork>);

impl SharedRestore {
    /// What the tasks call it.
    pub fn name(&self) -> &str {
        &self.0.agreed.name
    }

    /// How many tasks share it.
    pub fn tasks(&self) -> u32 {
        self.0.agreed.tasks
    }

    fn option(&self, name: &str) -> &str {
        self.0.agreed.options.get(name).map_or("", String::as_str)
    }

    /// The repository that the snapshot is in.
    pub fn repository(&self) -> Option<RepositoryId> {
        self.option(THE_REPOSITORY).parse().ok()
    }

    /// The snapshot that it restores.
    pub fn snapshot(&self) -> &str {
        self.option(THE_SNAPSHOT)
    }

    /// The database that it writes into.
    pub fn target(&self) -> &str {
        self.option(THE_TARGET)
    }

    /// What decides which documents it writes and how, by the option's name.
    pub fn options(&self) -> BTreeMap<String, String> {
        let mut options = self.0.agreed.options.clone();
        options.retain(|name, _| name.starts_with("--"));
        options
    }

    /// When it began.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.0.agreed.started_at
    }

    /// When one of the tasks last recorded something, by the store's own time.
    pub fn last_sign(&self) -> DateTime<Utc> {
        self.0.last_sign
    }

    /// What all tasks had done at their last checkpoints.
    pub fn counts(&self) -> RestoreCounts {
        let mut counts = RestoreCounts::default();
        let begun = self.0.begun.iter();
        begun.for_each(|checkpoint| counts.add(&checkpoint.counts));
        counts
    }
}

impl From<Record<RestoreWork>> for UnfinishedRestore {
    fn from(record: Record<RestoreWork>) -> Self {
        Self(record)
    }
}

impl RestoreSessions {
    /// Those in a store.
    pub fn new(store: Store) -> Self {
        Self(Records::new(store))
    }

    /// Where they are, in words for a person.
    pub fn location(&self) -> &str {
        self.0.location()
    }

    pub(super) fn store(&self) -> &Store {
        self.0.store()
    }

    /// Those of the shares of a restore.
    pub(super) fn of_shares(records: &Records<RestoreWork>) -> Self {
        Self(records.clone())
    }

    /// The restores that tasks share and that are not done.
    pub async fn shared(&self) -> Result<Vec<SharedRestore>, RestoreError> {
        let found = shares::undone(self.store()).await;
        let found = found.map_err(|source| self.unusable(source))?;
        Ok(found.into_iter().map(SharedRestore).collect())
    }

    /// Removes the record of a restore that tasks share. What it has written stays; tasks that are at work on it end when they are
    /// done with what they are at.
    pub async fn remove_shared(&self, shared: &SharedRestore) -> Result<(), RestoreError> {
        let removed = shares::remove(self.store(), &shared.0).await;
        removed.map_err(|source| self.unusable(source))
    }

    /// The restores that were not finished, or that run at this moment: the newest first.
    pub async fn unfinished(&self) -> Result<Vec<UnfinishedRestore>, RestoreError> {
        let mut found = self.0.undone().await.map_err(|source| self.unusable(source))?;
        // Of some all is done, and only their removal was not.
        found.retain(|record| {
            let checkpoint = record.checkpoint.as_ref();
            !checkpoint.is_some_and(|checkpoint| checkpoint.ranges.iter().all(|place| place.finished))
        });
        found.sort_by_key(|record| std::cmp::Reverse((record.plan.started_at, record.id)));
        Ok(found.into_iter().map(UnfinishedRestore).collect())
    }

    /// Removes the record of a restore that nobody is to go on with. What it has written stays. One that runs goes on, and can
    /// not be resumed should it be stopped.
    pub async fn remove(&self, unfinished: &UnfinishedRestore) -> Result<(), RestoreError> {
        let removed = self.0.remove(unfinished.id()).await;
        removed.map_err(|source| self.unusable(source))
    }

    pub(super) fn unusable(&self, source: ArchiveError) -> RestoreError {
        RestoreError::State {
            location: self.location().to_owned(),
            source: Box::new(source),
        }
    }

    /// Begins a session.
    ///
    /// # Errors
    /// [`RestoreError::SessionTaken`] when another process has begun one with this id.
    pub(super) async fn begin(&self, id: SessionId, plan: &Plan) -> Result<RestoreSession, RestoreError> {
        self.run(id, self.0.begin(id, plan).await)
    }

    /// Goes on with a session.
    ///
    /// # Errors
    /// [`RestoreError::SessionTaken`] when another process was faster.
    pub(super) async fn resume(
        &self,
        unfinished: &UnfinishedRestore,
    ) -> Result<RestoreSession, RestoreError> {
        self.run(unfinished.id(), self.0.resume(&unfinished.0).await)
    }

    /// What was begun, or resumed.
    pub(super) fn run(
        &self,
        session: SessionId,
        begun: Result<Option<Running<RestoreWork>>, ArchiveError>,
    ) -> Result<RestoreSession, RestoreError> {
        match begun.map_err(|source| self.unusable(source))? {
            Some(running) => Ok(RestoreSession(running)),
            None => Err(RestoreError::SessionTaken { session }),
        }
    }
}

impl Plan {
    /// The plan of a new restore.
    pub(super) fn new(
        (repository, snapshot): (RepositoryId, SnapshotId),
        target: &DatabaseName,
        options: &RestoreOptions,
        ranges: &[KeyRange],
    ) -> Self {
        let dead_letter_file = &options.dead_letter_file;
        Self {
            repository,
            snapshot,
            target: target.clone(),
            options: options.described(),
            ranges: ranges.iter().map(RangeRecord::of).collect(),
            // Whoever goes on may be in another working folder.
            dead_letter_file: std::path::absolute(dead_letter_file)
                .unwrap_or_else(|_| dead_letter_file.to_owned()),
            started_at: clock::now(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// What makes it the same restore, in words for a person.
    pub(super) fn identity(&self) -> BTreeMap<String, String> {
        let of = [
            (THE_REPOSITORY, self.repository.to_string()),
            (THE_SNAPSHOT, self.snapshot.to_string()),
            (THE_TARGET, self.target.to_string()),
        ];
        let of = of.map(|(name, value)| (name.to_owned(), value));
        of.into_iter().chain(self.options.clone()).collect()
    }
}

/// A session under way in this process.
#[derive(Debug)]
pub(super) struct RestoreSession(Running<RestoreWork>);

/// How far the restore is.
fn checkpoint_of(ranges: &Ranges) -> Checkpoint {
    let places = ranges.states().iter().map(|state| Place {
        next: state.next.as_ref().map(HexKey::of),
        finished: state.finished,
    });
    Checkpoint {
        ranges: places.collect(),
        counts: ranges.counts(),
        gaps: ranges.gaps().to_vec(),
        conflicts: ranges.conflicts().clone(),
    }
}

impl RestoreSession {
    pub(super) fn id(&self) -> SessionId {
        self.0.id()
    }

    /// Records how far the restore is. Failures up to there must be recorded already.
    ///
    /// # Errors
    /// [`RestoreError::SessionTaken`] when another process has gone on with the session.
    pub(super) async fn checkpoint(&mut self, ranges: &Ranges) -> Result<(), RestoreError> {
        let recorded = self.0.checkpoint(&checkpoint_of(ranges)).await;
        self.unless_taken(recorded)
    }

    /// Marks a part as done, for the other tasks.
    ///
    /// # Errors
    /// [`RestoreError::SessionTaken`] when another process has gone on with it.
    pub(super) async fn mark_done(
        &self,
        shares: &Shares<'_, RestoreWork>,
        ranges: &Ranges,
    ) -> Result<(), RestoreError> {
        let marked = shares.mark_done(&self.0, checkpoint_of(ranges)).await;
        self.unless_taken(marked)
    }

    fn unless_taken(&self, is_own: Result<bool, ArchiveError>) -> Result<(), RestoreError> {
        let unusable = |source| RestoreSessions(self.0.records().clone()).unusable(source);
        match is_own.map_err(unusable)? {
            true => Ok(()),
            false => Err(RestoreError::SessionTaken { session: self.id() }),
        }
    }

    /// Removes the session, of which the last checkpoint says that all is done.
    pub(super) async fn remove(self) {
        self.0.remove().await;
    }
}

/// What is recorded of a part that is done.
pub(super) fn outcome(checkpoint: Checkpoint) -> (RestoreCounts, Vec<Gap>, Conflicts) {
    (checkpoint.counts, checkpoint.gaps, checkpoint.conflicts)
}
