//! What a restore records of itself, so that another process can go on where one was stopped.
//!
//! A session is a plan and checkpoints, below `restores/<id>/` of any store: a folder of this machine, or a bucket where several
//! machines see it. The plan says what is restored and into which ranges it was cut; a checkpoint says how far each range is.
//! Every object is created once and never changed. Checkpoints are numbered: of two processes that go on with one session, only
//! one can create the next number, and the other stops. An older checkpoint goes when a newer one is stored, everything when the
//! restore is done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::write::{RangeState, Ranges};
use super::{Gap, RestoreCounts, RestoreError};
use crate::archive::envelope::{self, MAX_JSON_LEN};
use crate::archive::{ArchiveError, RepositoryId, SessionId, SnapshotId};
use crate::clock;
use crate::document::{DatabaseName, DocumentKey, KeyRange};
use crate::store::{Store, StoreError};

const FOLDER: &str = "restores";
const PLAN: &str = "plan.json";
const PLAN_KIND: &str = "restore plan";
const CHECKPOINT_KIND: &str = "restore checkpoint";

/// Where restores record how far they are.
#[derive(Clone, Debug)]
pub struct RestoreSessions {
    store: Store,
}

/// How a restore records how far it is.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Where.
    pub sessions: RestoreSessions,
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
            resume: None,
            checkpoint_every: Duration::from_secs(1),
        }
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
struct Checkpoint {
    /// Of the process that wrote it: two never write the same bytes.
    worker: SessionId,
    ranges: Vec<Place>,
    counts: RestoreCounts,
    gaps: Vec<Gap>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Place {
    cursor: Option<HexKey>,
    finished: bool,
}

/// A restore that was not finished.
#[derive(Clone, Debug)]
pub struct UnfinishedRestore {
    id: SessionId,
    plan: Plan,
    number: u64,
    checkpoint: Option<Checkpoint>,
}

impl UnfinishedRestore {
    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The repository that the snapshot is in.
    pub fn repository(&self) -> RepositoryId {
        self.plan.repository
    }

    /// The snapshot that it restores.
    pub fn snapshot(&self) -> SnapshotId {
        self.plan.snapshot
    }

    /// The database that it writes into.
    pub fn target(&self) -> &DatabaseName {
        &self.plan.target
    }

    /// When it began.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.plan.started_at
    }

    /// Where its dead letters are.
    pub fn dead_letter_file(&self) -> &Path {
        &self.plan.dead_letter_file
    }

    /// What it had done at its last checkpoint.
    pub fn counts(&self) -> RestoreCounts {
        self.checkpoint
            .as_ref()
            .map(|checkpoint| checkpoint.counts)
            .unwrap_or_default()
    }

    /// Whether it is the same restore: of that snapshot, into that database, with those options.
    ///
    /// # Errors
    /// [`RestoreError::OtherOptions`], which says what differs.
    pub(super) fn check(&self, plan: &Plan) -> Result<(), RestoreError> {
        let mut differences = Vec::new();
        let mut compare = |name: &str, then: &str, now: &str| {
            if then != now {
                differences.push(format!("{name} was {then} and is {now}"));
            }
        };
        let (then, now) = (&self.plan, plan);
        compare(
            "the repository",
            &then.repository.to_string(),
            &now.repository.to_string(),
        );
        compare(
            "the snapshot",
            &then.snapshot.to_string(),
            &now.snapshot.to_string(),
        );
        compare("the target", &then.target.to_string(), &now.target.to_string());
        let names = then.options.keys().chain(now.options.keys());
        let names: std::collections::BTreeSet<&String> = names.collect();
        for name in names {
            let shown = |options: &BTreeMap<String, String>| match options.get(name) {
                Some(value) => format!("`{value}`"),
                None => "not given".to_owned(),
            };
            compare(name, &shown(&then.options), &shown(&now.options));
        }
        match differences.is_empty() {
            true => Ok(()),
            false => Err(RestoreError::OtherOptions {
                session: self.id,
                differences: differences.join("; "),
            }),
        }
    }

    /// Its ranges, and how far they are.
    pub(super) fn ranges(&self) -> Ranges {
        let mut states: Vec<RangeState> = self
            .plan
            .ranges
            .iter()
            .map(|range| RangeState::new(range.range()))
            .collect();
        let Some(checkpoint) = &self.checkpoint else {
            return Ranges::new(states);
        };
        for (state, place) in states.iter_mut().zip(&checkpoint.ranges) {
            state.cursor = place.cursor.as_ref().map(HexKey::key);
            state.finished = place.finished;
        }
        Ranges::at(states, checkpoint.counts, checkpoint.gaps.clone())
    }
}

fn plan_name(id: SessionId) -> String {
    format!("{FOLDER}/{id}/{PLAN}")
}

fn checkpoint_name(id: SessionId, number: u64) -> String {
    format!("{FOLDER}/{id}/checkpoint-{number:010}.json")
}

/// The session and, for a checkpoint, its number.
fn parse(name: &str) -> Option<(SessionId, Option<u64>)> {
    let (id, object) = name.strip_prefix(FOLDER)?.strip_prefix('/')?.split_once('/')?;
    let id = id.parse().ok()?;
    if object == PLAN {
        return Some((id, None));
    }
    let number = object.strip_prefix("checkpoint-")?.strip_suffix(".json")?;
    Some((id, Some(number.parse().ok()?)))
}

impl RestoreSessions {
    /// Those in a store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Where they are, in words for a person.
    pub fn location(&self) -> &str {
        self.store.location()
    }

    /// The restores that were not finished, or that run at this moment: the newest first.
    pub async fn unfinished(&self) -> Result<Vec<UnfinishedRestore>, RestoreError> {
        let mut found = self.find().await.map_err(|source| self.unusable(source))?;
        found.sort_by_key(|session| std::cmp::Reverse((session.plan.started_at, session.id)));
        Ok(found)
    }

    async fn find(&self) -> Result<Vec<UnfinishedRestore>, ArchiveError> {
        let mut newest: BTreeMap<SessionId, (bool, u64)> = BTreeMap::new();
        let mut listing = self.store.list(FOLDER);
        while let Some(object) = listing.try_next().await? {
            match parse(&object.name) {
                Some((id, None)) => newest.entry(id).or_default().0 = true,
                Some((id, Some(number))) => {
                    let known = &mut newest.entry(id).or_default().1;
                    *known = number.max(*known);
                }
                None => {}
            }
        }
        let mut found = Vec::new();
        for (id, (has_plan, number)) in newest {
            if !has_plan {
                continue;
            }
            match self.read(id, number).await {
                Ok(Some(session)) => found.push(session),
                Ok(None) => {}
                // Finished by another process between the listing and now, or cut off by a crash of the machine.
                Err(error) => tracing::warn!("an unfinished restore is left out: {error}"),
            }
        }
        Ok(found)
    }

    /// `None` where all of it is done and only its removal was not.
    async fn read(&self, id: SessionId, number: u64) -> Result<Option<UnfinishedRestore>, ArchiveError> {
        let plan: Plan = self.read_object(&plan_name(id), PLAN_KIND).await?;
        let checkpoint = match number {
            0 => None,
            number => {
                let name = checkpoint_name(id, number);
                let checkpoint: Checkpoint = self.read_object(&name, CHECKPOINT_KIND).await?;
                if checkpoint.ranges.len() != plan.ranges.len() {
                    return Err(ArchiveError::damaged(
                        name,
                        crate::archive::DamageKind::Inconsistent,
                        "it has another number of ranges than its plan",
                    ));
                }
                Some(checkpoint)
            }
        };
        if let Some(checkpoint) = &checkpoint
            && checkpoint.ranges.iter().all(|place| place.finished)
        {
            return Ok(None);
        }
        Ok(Some(UnfinishedRestore {
            id,
            plan,
            number,
            checkpoint,
        }))
    }

    async fn read_object<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
        kind: &str,
    ) -> Result<T, ArchiveError> {
        let bytes = self.store.get_at_most(name, MAX_JSON_LEN).await?;
        envelope::decode(name, kind, &bytes)
    }

    fn unusable(&self, source: ArchiveError) -> RestoreError {
        RestoreError::State {
            location: self.location().to_owned(),
            source: Box::new(source),
        }
    }

    /// Begins a session.
    pub(super) async fn begin(&self, plan: Plan) -> Result<RestoreSession, RestoreError> {
        let id = SessionId::random();
        let stored = async {
            let payload = envelope::encode(PLAN_KIND, &plan)?;
            self.store.put_new(&plan_name(id), payload).await?;
            Ok::<_, ArchiveError>(())
        };
        stored.await.map_err(|source| self.unusable(source))?;
        Ok(RestoreSession {
            sessions: self.clone(),
            id,
            worker: SessionId::random(),
            number: 0,
        })
    }

    /// Goes on with a session.
    pub(super) fn resume(&self, unfinished: &UnfinishedRestore) -> RestoreSession {
        RestoreSession {
            sessions: self.clone(),
            id: unfinished.id,
            worker: SessionId::random(),
            number: unfinished.number,
        }
    }
}

/// The plan of a new restore.
pub(super) fn plan(
    repository: RepositoryId,
    snapshot: SnapshotId,
    target: &DatabaseName,
    options: BTreeMap<String, String>,
    ranges: &[KeyRange],
    dead_letter_file: &Path,
) -> Plan {
    Plan {
        repository,
        snapshot,
        target: target.clone(),
        options,
        ranges: ranges.iter().map(RangeRecord::of).collect(),
        // Whoever goes on may be in another working folder.
        dead_letter_file: std::path::absolute(dead_letter_file)
            .unwrap_or_else(|_| dead_letter_file.to_owned()),
        started_at: clock::now(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// A session under way in this process.
#[derive(Debug)]
pub(super) struct RestoreSession {
    sessions: RestoreSessions,
    id: SessionId,
    worker: SessionId,
    /// Of the newest checkpoint; 0 is none.
    number: u64,
}

impl RestoreSession {
    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    /// Records how far the restore is. Failures up to there must be recorded already.
    ///
    /// # Errors
    /// [`RestoreError::SessionTaken`] when another process has gone on with the session.
    pub(super) async fn checkpoint(&mut self, ranges: &Ranges) -> Result<(), RestoreError> {
        let places = ranges.states().iter().map(|state| Place {
            cursor: state.cursor.as_ref().map(HexKey::of),
            finished: state.finished,
        });
        let checkpoint = Checkpoint {
            worker: self.worker,
            ranges: places.collect(),
            counts: ranges.counts(),
            gaps: ranges.gaps().to_vec(),
        };
        let payload = envelope::encode(CHECKPOINT_KIND, &checkpoint)
            .map_err(|source| self.sessions.unusable(source))?;
        let name = checkpoint_name(self.id, self.number + 1);
        match self.sessions.store.put_new(&name, payload).await {
            Ok(()) => {}
            Err(StoreError::AlreadyExists { .. }) => {
                return Err(RestoreError::SessionTaken { session: self.id });
            }
            Err(error) => return Err(self.sessions.unusable(error.into())),
        }
        self.number += 1;
        if self.number > 1 {
            self.delete(&checkpoint_name(self.id, self.number - 1)).await;
        }
        Ok(())
    }

    /// Removes the session, of which the last checkpoint says that all is done.
    pub(super) async fn remove(self) {
        // The plan first: without it there is no session, whatever else is left.
        self.delete(&plan_name(self.id)).await;
        self.delete(&checkpoint_name(self.id, self.number)).await;
    }

    async fn delete(&self, name: &str) {
        if let Err(error) = self.sessions.store.delete(name).await {
            tracing::info!(
                "`{name}` in {} is not needed any more, but stays: {error}",
                self.sessions.location()
            );
        }
    }
}
