//! What a restore records of itself, so that another process can go on where one was stopped: a [record](crate::records), whose
//! plan says what is restored and into which ranges it was cut, and whose checkpoints say how far each range is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::write::{RangeState, Ranges};
use super::{Conflicts, Gap, RestoreCounts, RestoreError, RestoreOptions};
use crate::archive::heartbeat::HEARTBEAT_EVERY;
use crate::archive::{ArchiveError, RepositoryId, SessionId, SnapshotId};
use crate::clock;
use crate::document::{DatabaseName, DocumentKey, KeyRange};
use crate::records::shares::{Agreed, ShareableWork, SharedWork, differences};
use crate::records::{Record, Records, Running, Work};
use crate::store::Store;

pub(super) const TASK_INDEX: &str = "--task-index";
pub(super) const TASK_COUNT: &str = "--task-count";

/// Where restores record how far they are.
#[derive(Clone, Debug)]
pub struct RestoreSessions(Records<RestoreWork>);

/// How a restore records how far it is.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Where.
    pub sessions: RestoreSessions,
    /// How it is shared with other tasks, where it is: then each goes on with what it finds of its own share, and with what others
    /// have left.
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
#[derive(Debug)]
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
    fn agreed(plan: &Plan) -> Option<&Agreed> {
        plan.agreed.as_ref()
    }
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
    /// What tasks have agreed upon that share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) agreed: Option<Agreed>,
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

    fn range(&self) -> KeyRange {
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

    pub(super) fn records(&self) -> &Records<RestoreWork> {
        &self.0
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
    pub(super) async fn begin(
        &self,
        id: Option<SessionId>,
        plan: &Plan,
    ) -> Result<RestoreSession, RestoreError> {
        let id = id.unwrap_or_else(SessionId::random);
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

    fn run(
        &self,
        session: SessionId,
        begun: Result<Option<Running<RestoreWork>>, ArchiveError>,
    ) -> Result<RestoreSession, RestoreError> {
        match begun.map_err(|source| self.unusable(source))? {
            Some(running) => Ok(RestoreSession {
                running,
                last: Instant::now(),
            }),
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
        let mut plan = Self {
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
            agreed: None,
        };
        let session = options.session.as_ref();
        plan.agreed = session.and_then(|session| session.shared.as_ref()).map(|shared| {
            let mut common = plan.identity();
            // These are each share's own.
            common.retain(|name, _| ![TASK_INDEX, TASK_COUNT].contains(&name.as_str()));
            Agreed::new(shared, common)
        });
        plan
    }

    /// What makes it the same restore, in words for a person.
    fn identity(&self) -> BTreeMap<String, String> {
        let of = [
            ("the repository", self.repository.to_string()),
            ("the snapshot", self.snapshot.to_string()),
            ("the target", self.target.to_string()),
        ];
        let of = of.map(|(name, value)| (name.to_owned(), value));
        of.into_iter().chain(self.options.clone()).collect()
    }
}

/// A session under way in this process.
#[derive(Debug)]
pub(super) struct RestoreSession {
    running: Running<RestoreWork>,
    /// When it last showed that it lives.
    last: Instant,
}

impl RestoreSession {
    pub(super) fn id(&self) -> SessionId {
        self.running.id()
    }

    /// Whether somebody could take it for dead.
    pub(super) fn is_silent(&self) -> bool {
        self.last.elapsed() >= HEARTBEAT_EVERY
    }

    /// Records how far the restore is. Failures up to there must be recorded already.
    ///
    /// # Errors
    /// [`RestoreError::SessionTaken`] when another process has gone on with the session.
    pub(super) async fn checkpoint(&mut self, ranges: &Ranges) -> Result<(), RestoreError> {
        let places = ranges.states().iter().map(|state| Place {
            next: state.next.as_ref().map(HexKey::of),
            finished: state.finished,
        });
        let checkpoint = Checkpoint {
            ranges: places.collect(),
            counts: ranges.counts(),
            gaps: ranges.gaps().to_vec(),
            conflicts: ranges.conflicts().clone(),
        };
        let recorded = self.running.checkpoint(&checkpoint).await;
        self.last = Instant::now();
        match recorded.map_err(|source| self.unusable(source))? {
            true => Ok(()),
            false => Err(RestoreError::SessionTaken { session: self.id() }),
        }
    }

    /// Marks the session as done, for the tasks that share the restore.
    pub(super) async fn mark_done(self) -> Result<(), RestoreError> {
        let marked = self.running.mark_done().await;
        marked.map_err(|source| self.unusable(source))
    }

    /// Removes the session, of which the last checkpoint says that all is done.
    pub(super) async fn remove(self) {
        self.running.remove().await;
    }

    fn unusable(&self, source: ArchiveError) -> RestoreError {
        RestoreSessions(self.running.records().clone()).unusable(source)
    }
}
