//! What a restore records of itself, so that another process can go on where one was stopped.
//!
//! A session is a plan and checkpoints, below `restores/<id>/` of any store: a folder of this machine, or a bucket where several
//! machines see it. The plan says what is restored and into which ranges it was cut; a checkpoint says how far each range is.
//! Every object is created once and never changed. Whoever goes on with a session first creates the next of its claims, which only
//! one process can; a process that finds a claim newer than its own stops. Checkpoints bear the number of the claim that they were
//! made under, so that one of a process that has not noticed yet counts for nothing. An older checkpoint goes when a newer one is
//! stored, everything when the restore is done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::write::{RangeState, Ranges};
use super::{Conflicts, Gap, RestoreCounts, RestoreError, RestoreOptions};
use crate::archive::envelope::{self, MAX_JSON_LEN};
use crate::archive::{ArchiveError, RepositoryId, SessionId, SnapshotId};
use crate::clock;
use crate::document::{DatabaseName, DocumentKey, KeyRange};
use crate::store::{Store, StoreError};

const FOLDER: &str = "restores";
const PLAN: &str = "plan.json";
const PLAN_KIND: &str = "restore plan";
const CLAIM_KIND: &str = "restore claim";
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
pub struct UnfinishedRestore {
    id: SessionId,
    plan: Plan,
    /// The newest claim; 0 is that of the process that began it.
    claim: u64,
    /// Of the newest checkpoint.
    number: CheckpointNumber,
    checkpoint: Option<Checkpoint>,
    last_sign: DateTime<Utc>,
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

    /// When it last recorded something, by the store's own time.
    pub fn last_sign(&self) -> DateTime<Utc> {
        self.last_sign
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

    /// What decides which documents it writes and how, by the option's name.
    pub fn options(&self) -> &BTreeMap<String, String> {
        &self.plan.options
    }

    /// Which task's share it restores, and of how many, where it is shared by tasks.
    pub fn task(&self) -> Option<(u32, u32)> {
        let number = |name: &str| self.plan.options.get(name)?.parse().ok();
        Some((number("--task-index")?, number("--task-count")?))
    }

    /// Whether it was begun with the same options, as far as these decide which documents are written and how.
    pub fn has_options(&self, options: &RestoreOptions) -> bool {
        self.plan.options == options.described()
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

fn plan_name(id: SessionId) -> String {
    format!("{FOLDER}/{id}/{PLAN}")
}

fn claim_name(id: SessionId, claim: u64) -> String {
    format!("{FOLDER}/{id}/claim-{claim:010}.json")
}

/// A claim, and the number of a checkpoint under it, from 1. Nothing is there at 0.
type CheckpointNumber = (u64, u64);

fn checkpoint_name(id: SessionId, (claim, number): CheckpointNumber) -> String {
    format!("{FOLDER}/{id}/checkpoint-{claim:010}-{number:010}.json")
}

/// An object of a session.
#[derive(Debug, PartialEq)]
enum Object {
    Plan,
    Claim(u64),
    Checkpoint(CheckpointNumber),
}

fn parse(name: &str) -> Option<(SessionId, Object)> {
    let (id, object) = name.strip_prefix(FOLDER)?.strip_prefix('/')?.split_once('/')?;
    let id = id.parse().ok()?;
    if object == PLAN {
        return Some((id, Object::Plan));
    }
    let object = object.strip_suffix(".json")?;
    if let Some(claim) = object.strip_prefix("claim-") {
        return Some((id, Object::Claim(claim.parse().ok()?)));
    }
    let (claim, number) = object.strip_prefix("checkpoint-")?.split_once('-')?;
    Some((
        id,
        Object::Checkpoint((claim.parse().ok()?, number.parse().ok()?)),
    ))
}

/// What a listing shows of a session.
#[derive(Clone, Copy, Debug, Default)]
struct Listed {
    has_plan: bool,
    claim: u64,
    number: CheckpointNumber,
    last_sign: DateTime<Utc>,
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
        let mut all: BTreeMap<SessionId, Listed> = BTreeMap::new();
        let mut listing = self.store.list(FOLDER);
        while let Some(found) = listing.try_next().await? {
            let Some((id, object)) = parse(&found.name) else {
                continue;
            };
            let listed = all.entry(id).or_default();
            listed.last_sign = listed.last_sign.max(found.last_modified);
            match object {
                Object::Plan => listed.has_plan = true,
                Object::Claim(claim) => listed.claim = claim.max(listed.claim),
                Object::Checkpoint(number) => listed.number = number.max(listed.number),
            }
        }
        let mut sessions = Vec::new();
        for (id, listed) in all {
            if !listed.has_plan {
                continue;
            }
            match self.read(id, listed).await {
                Ok(Some(session)) => sessions.push(session),
                Ok(None) => {}
                // Finished by another process between the listing and now, or cut off by a crash of the machine.
                Err(error) => tracing::warn!("an unfinished restore is left out: {error}"),
            }
        }
        Ok(sessions)
    }

    /// `None` where all of it is done and only its removal was not.
    async fn read(&self, id: SessionId, listed: Listed) -> Result<Option<UnfinishedRestore>, ArchiveError> {
        let number = listed.number;
        let plan: Plan = self.read_object(&plan_name(id), PLAN_KIND).await?;
        let checkpoint = match number {
            (_, 0) => None,
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
            claim: listed.claim,
            number,
            checkpoint,
            last_sign: listed.last_sign,
        }))
    }

    /// Removes the record of a restore that nobody is to go on with. What it has written stays. One that runs goes on, and can
    /// not be resumed should it be stopped.
    pub async fn remove(&self, unfinished: &UnfinishedRestore) -> Result<(), RestoreError> {
        let removed = self.remove_all(unfinished.id).await;
        removed.map_err(|source| self.unusable(source))
    }

    async fn remove_all(&self, id: SessionId) -> Result<(), ArchiveError> {
        // The plan first: without it there is no session, whatever else is left.
        self.store.delete(&plan_name(id)).await?;
        let mut listing = self.store.list(&format!("{FOLDER}/{id}"));
        while let Some(object) = listing.try_next().await? {
            self.store.delete(&object.name).await?;
        }
        Ok(())
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
            claim: 0,
            number: (0, 0),
        })
    }

    /// Goes on with a session.
    ///
    /// # Errors
    /// [`RestoreError::SessionTaken`] when another process was faster.
    pub(super) async fn resume(
        &self,
        unfinished: &UnfinishedRestore,
    ) -> Result<RestoreSession, RestoreError> {
        let (id, claim) = (unfinished.id, unfinished.claim + 1);
        // Of this process alone: two claims must not be equal.
        let payload = envelope::encode(CLAIM_KIND, &SessionId::random().to_string())
            .map_err(|source| self.unusable(source))?;
        match self.store.put_new(&claim_name(id, claim), payload).await {
            Ok(()) => Ok(RestoreSession {
                sessions: self.clone(),
                id,
                claim,
                number: unfinished.number,
            }),
            Err(StoreError::AlreadyExists { .. }) => Err(RestoreError::SessionTaken { session: id }),
            Err(error) => Err(self.unusable(error.into())),
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
    claim: u64,
    /// Of the newest checkpoint.
    number: CheckpointNumber,
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
            next: state.next.as_ref().map(HexKey::of),
            finished: state.finished,
        });
        let store = &self.sessions.store;
        let taken = store.exists(&claim_name(self.id, self.claim + 1)).await;
        if taken.map_err(|error| self.sessions.unusable(error.into()))? {
            return Err(RestoreError::SessionTaken { session: self.id });
        }
        let checkpoint = Checkpoint {
            ranges: places.collect(),
            counts: ranges.counts(),
            gaps: ranges.gaps().to_vec(),
            conflicts: ranges.conflicts().clone(),
        };
        let payload = envelope::encode(CHECKPOINT_KIND, &checkpoint)
            .map_err(|source| self.sessions.unusable(source))?;
        let number = match self.number {
            (claim, number) if claim == self.claim => (claim, number + 1),
            _ => (self.claim, 1),
        };
        let stored = store.put_new(&checkpoint_name(self.id, number), payload).await;
        stored.map_err(|error| self.sessions.unusable(error.into()))?;
        let older = std::mem::replace(&mut self.number, number);
        if older.1 > 0 {
            self.delete(&checkpoint_name(self.id, older)).await;
        }
        Ok(())
    }

    /// Removes the session, of which the last checkpoint says that all is done.
    pub(super) async fn remove(self) {
        if let Err(error) = self.sessions.remove_all(self.id).await {
            tracing::info!(
                "the record of restore {} in {} is not needed any more, but stays: {error}",
                self.id,
                self.sessions.location()
            );
        }
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
