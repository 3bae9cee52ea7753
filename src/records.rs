//! Records of work that another process can go on with, where one was stopped.
//!
//! A record is a plan and checkpoints, below `<folder>/<id>/` of any store: a folder of this machine, or a bucket where several
//! machines see it. The plan says what is done and to what; a checkpoint says how far it is. Every object is created once and
//! never changed. Whoever goes on with a record first creates the next of its claims, which only one process can; a process that
//! finds a claim newer than its own stops. Checkpoints bear the number of the claim that they were made under, so that one of a
//! process that has not noticed yet counts for nothing. An older checkpoint goes when a newer one is stored; everything goes when
//! the work is done, except where others have to know that it is ([`shares`]): then it is marked as done, and stays for a while.

pub(crate) mod shares;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::archive::envelope::{self, MAX_JSON_LEN};
use crate::archive::{ArchiveError, DamageKind, SessionId};
use crate::store::{Store, StoreError};

/// What is recorded of a kind of work.
pub(crate) trait Work: 'static {
    /// Where its records are.
    const FOLDER: &'static str;
    /// What it is called in its objects.
    const NAME: &'static str;
    /// What is done, and to what.
    type Plan: Clone + fmt::Debug + Serialize + DeserializeOwned;
    /// How far it is.
    type Checkpoint: Clone + fmt::Debug + Serialize + DeserializeOwned;

    /// Says no to a checkpoint that is not of this plan.
    fn check(plan: &Self::Plan, checkpoint: &Self::Checkpoint) -> Result<(), &'static str>;
}

/// An object of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Object {
    Plan,
    Claim(u64),
    Checkpoint(CheckpointNumber),
    /// Of a claim, and its number.
    Sign(u64, u64),
    Done,
}

/// A claim, and the number of a checkpoint under it, from 1. Nothing is there at 0.
type CheckpointNumber = (u64, u64);

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan => f.write_str("plan.json"),
            Self::Claim(claim) => write!(f, "claim-{claim:010}.json"),
            Self::Checkpoint((claim, number)) => write!(f, "checkpoint-{claim:010}-{number:010}.json"),
            Self::Sign(claim, number) => write!(f, "sign-{claim:010}-{number:010}.json"),
            Self::Done => f.write_str("done.json"),
        }
    }
}

impl Object {
    fn parse(name: &str) -> Option<Self> {
        let name = name.strip_suffix(".json")?;
        match name {
            "plan" => return Some(Self::Plan),
            "done" => return Some(Self::Done),
            _ => {}
        }
        if let Some(claim) = name.strip_prefix("claim-") {
            return Some(Self::Claim(claim.parse().ok()?));
        }
        let (kind, numbers) = name.split_once('-')?;
        let (claim, number) = numbers.split_once('-')?;
        let (claim, number) = (claim.parse().ok()?, number.parse().ok()?);
        match kind {
            "checkpoint" => Some(Self::Checkpoint((claim, number))),
            "sign" => Some(Self::Sign(claim, number)),
            _ => None,
        }
    }
}

/// How a record begins.
#[derive(Serialize, Deserialize)]
struct Begun<P> {
    /// Which of several tasks has begun it.
    task: Option<u32>,
    plan: P,
}

/// A claim to a record.
#[derive(Serialize, Deserialize)]
struct Claim {
    /// Two claims must not be equal.
    process: SessionId,
    task: Option<u32>,
}

/// What a listing shows of a record.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Listed {
    has_plan: bool,
    claim: u64,
    number: CheckpointNumber,
    last_sign: DateTime<Utc>,
    is_done: bool,
}

/// A record, as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Record<W: Work> {
    pub(crate) id: SessionId,
    pub(crate) plan: W::Plan,
    /// The newest.
    pub(crate) checkpoint: Option<W::Checkpoint>,
    /// When something was last recorded, by the store's own time.
    pub(crate) last_sign: DateTime<Utc>,
    /// The newest claim; 0 is that of the process that began it.
    claim: u64,
    number: CheckpointNumber,
}

/// The records of one kind of work in a store.
pub(crate) struct Records<W> {
    store: Store,
    folder: String,
    /// Which task this process is, where several share the work.
    task: Option<u32>,
    work: PhantomData<fn() -> W>,
}

impl<W> Clone for Records<W> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            folder: self.folder.clone(),
            task: self.task,
            work: PhantomData,
        }
    }
}

impl<W> fmt::Debug for Records<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Records");
        shown.field("store", &self.store).field("folder", &self.folder);
        shown.finish()
    }
}

impl<W> Records<W> {
    /// Those below a folder.
    fn below(store: Store, folder: String) -> Self {
        Self {
            store,
            folder,
            task: None,
            work: PhantomData,
        }
    }

    /// With the number of the task that begins them, or goes on with them.
    fn by(self, task: u32) -> Self {
        Self {
            task: Some(task),
            ..self
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Where they are, in words for a person.
    pub(crate) fn location(&self) -> &str {
        self.store.location()
    }

    fn name(&self, id: SessionId, object: Object) -> String {
        format!("{}/{id}/{object}", self.folder)
    }

    fn parse(&self, name: &str) -> Option<(SessionId, Object)> {
        let (id, object) = name
            .strip_prefix(&self.folder)?
            .strip_prefix('/')?
            .split_once('/')?;
        Some((id.parse().ok()?, Object::parse(object)?))
    }
}

impl<W: Work> Records<W> {
    pub(crate) fn new(store: Store) -> Self {
        Self::below(store, W::FOLDER.to_owned())
    }

    /// All that a listing shows.
    async fn list(&self) -> Result<BTreeMap<SessionId, Listed>, ArchiveError> {
        let mut all: BTreeMap<SessionId, Listed> = BTreeMap::new();
        let mut listing = self.store.list(&self.folder);
        while let Some(found) = listing.try_next().await? {
            let Some((id, object)) = self.parse(&found.name) else {
                continue;
            };
            let listed = all.entry(id).or_default();
            listed.last_sign = listed.last_sign.max(found.last_modified);
            match object {
                Object::Plan => listed.has_plan = true,
                Object::Done => listed.is_done = true,
                Object::Sign(..) => {}
                Object::Claim(claim) => listed.claim = claim.max(listed.claim),
                Object::Checkpoint(number) => listed.number = number.max(listed.number),
            }
        }
        Ok(all)
    }

    /// Those that are not marked as done. One that cannot be read is left out, with a warning.
    pub(crate) async fn undone(&self) -> Result<Vec<Record<W>>, ArchiveError> {
        let mut records = Vec::new();
        for (id, listed) in self.list().await? {
            if !listed.has_plan || listed.is_done {
                continue;
            }
            match self.read(id, listed).await {
                Ok(record) => records.push(record),
                // Finished by another process between the listing and now, or cut off by a crash of the machine.
                Err(error) => tracing::warn!("an unfinished {} is left out: {error}", W::NAME),
            }
        }
        Ok(records)
    }

    async fn read(&self, id: SessionId, listed: Listed) -> Result<Record<W>, ArchiveError> {
        let number = listed.number;
        let plan = self.read_plan(id).await?;
        let checkpoint = match number {
            (_, 0) => None,
            number => {
                let name = self.name(id, Object::Checkpoint(number));
                let checkpoint: W::Checkpoint = self.read_object(&name, "checkpoint").await?;
                W::check(&plan, &checkpoint)
                    .map_err(|wrong| ArchiveError::damaged(name, DamageKind::Inconsistent, wrong))?;
                Some(checkpoint)
            }
        };
        Ok(Record {
            id,
            plan,
            checkpoint,
            last_sign: listed.last_sign,
            claim: listed.claim,
            number,
        })
    }

    /// How far a part is, if that is recorded.
    async fn look_at(&self, id: SessionId, listed: Listed) -> Result<Option<W::Checkpoint>, ArchiveError> {
        if listed.is_done {
            return Ok(Some(self.read_end(id).await?.outcome));
        }
        match self.read(id, listed).await {
            Ok(record) => Ok(record.checkpoint),
            // It has a newer one by now.
            Err(ArchiveError::Store(StoreError::NotFound { .. })) => {
                let listing = self.list().await?;
                let listed = listing.get(&id).copied().unwrap_or(listed);
                Ok(self.read(id, listed).await?.checkpoint)
            }
            Err(error) => Err(error),
        }
    }

    async fn read_plan(&self, id: SessionId) -> Result<W::Plan, ArchiveError> {
        let begun: Begun<W::Plan> = self.read_object(&self.name(id, Object::Plan), "plan").await?;
        Ok(begun.plan)
    }

    /// Which task has begun a record, or was the last to go on with it.
    async fn read_task(&self, id: SessionId, listed: Listed) -> Result<Option<u32>, ArchiveError> {
        if listed.claim == 0 {
            let name = self.name(id, Object::Plan);
            let begun: Begun<W::Plan> = self.read_object(&name, "plan").await?;
            return Ok(begun.task);
        }
        let name = self.name(id, Object::Claim(listed.claim));
        let claim: Claim = self.read_object(&name, "claim").await?;
        Ok(claim.task)
    }

    async fn read_object<T: DeserializeOwned>(&self, name: &str, kind: &str) -> Result<T, ArchiveError> {
        let bytes = self.store.get_at_most(name, MAX_JSON_LEN).await?;
        envelope::decode(name, &format!("{} {kind}", W::NAME), &bytes)
    }

    /// Creates an object; false when it is there already.
    async fn create<T: Serialize>(
        &self,
        id: SessionId,
        object: Object,
        kind: &str,
        body: &T,
    ) -> Result<bool, ArchiveError> {
        let payload = envelope::encode(&format!("{} {kind}", W::NAME), body)?;
        match self.store.put_new(&self.name(id, object), payload).await {
            Ok(()) => Ok(true),
            Err(StoreError::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What is recorded of a part that is done.
    async fn read_end(&self, id: SessionId) -> Result<End<W::Checkpoint>, ArchiveError> {
        self.read_object(&self.name(id, Object::Done), "end").await
    }

    /// Begins a record; `None` when there is one with this id.
    pub(crate) async fn begin(
        &self,
        id: SessionId,
        plan: &W::Plan,
    ) -> Result<Option<Running<W>>, ArchiveError> {
        let task = self.task;
        let body = Begun { task, plan };
        let begun = self.create(id, Object::Plan, "plan", &body).await?;
        Ok(begun.then(|| self.running(id, 0, (0, 0))))
    }

    /// Goes on with a record; `None` when another process was faster.
    pub(crate) async fn resume(&self, record: &Record<W>) -> Result<Option<Running<W>>, ArchiveError> {
        let (id, claim) = (record.id, record.claim + 1);
        let own = Claim {
            process: SessionId::random(),
            task: self.task,
        };
        let claimed = self.create(id, Object::Claim(claim), "claim", &own).await?;
        // Whoever had it may have been done before this claim.
        let is_taken = !claimed || self.store.exists(&self.name(id, Object::Done)).await?;
        Ok((!is_taken).then(|| self.running(id, claim, record.number)))
    }

    fn running(&self, id: SessionId, claim: u64, stored: CheckpointNumber) -> Running<W> {
        Running {
            records: self.clone(),
            id,
            claim,
            tried: 0,
            stored,
            life: None,
        }
    }

    /// Removes a record.
    pub(crate) async fn remove(&self, id: SessionId) -> Result<(), ArchiveError> {
        // The plan first: without it there is no record, whatever else is left.
        self.store.delete(&self.name(id, Object::Plan)).await?;
        let mut listing = self.store.list(&format!("{}/{id}", self.folder));
        while let Some(object) = listing.try_next().await? {
            self.store.delete(&object.name).await?;
        }
        Ok(())
    }
}

/// A record of what this process is doing.
#[derive(Debug)]
pub(crate) struct Running<W> {
    records: Records<W>,
    id: SessionId,
    claim: u64,
    /// The last number that was used under the claim.
    tried: u64,
    /// Of the newest checkpoint.
    stored: CheckpointNumber,
    /// Shows that this process lives, where others want to know.
    life: Option<Life>,
}

/// Signs of life, until it is dropped.
#[derive(Debug)]
struct Life(tokio::task::JoinHandle<()>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How work ended that is marked as done.
#[derive(Debug, Serialize, Deserialize)]
struct End<C> {
    /// The execution of the task that did it, where it has one.
    execution: Option<String>,
    /// That task.
    task: u32,
    outcome: C,
}

impl<W: Work> Running<W> {
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    pub(crate) fn records(&self) -> &Records<W> {
        &self.records
    }

    /// Records how far the work is. False when another process has gone on with it: then nothing is recorded. Where a call is
    /// dropped, the next one may follow.
    pub(crate) async fn checkpoint(&mut self, checkpoint: &W::Checkpoint) -> Result<bool, ArchiveError> {
        if self.is_taken().await? {
            return Ok(false);
        }
        let records = &self.records;
        // Whatever becomes of this one, its number is used.
        self.tried += 1;
        let number = (self.claim, self.tried);
        let object = Object::Checkpoint(number);
        if !records.create(self.id, object, "checkpoint", checkpoint).await? {
            let name = records.name(self.id, object);
            return Err(StoreError::AlreadyExists { name }.into());
        }
        let older = std::mem::replace(&mut self.stored, number);
        if older.1 > 0 {
            let name = self.records.name(self.id, Object::Checkpoint(older));
            if let Err(error) = self.records.store.delete(&name).await {
                self.tell_what_stays(&format!("`{name}`"), &error);
            }
        }
        Ok(true)
    }

    /// Whether another process has gone on with the work, or has done it.
    async fn is_taken(&self) -> Result<bool, ArchiveError> {
        let store = &self.records.store;
        let newer = self.records.name(self.id, Object::Claim(self.claim + 1));
        // Only where others want to know how it ends is it said that it has.
        let end = self.records.name(self.id, Object::Done);
        Ok(store.exists(&newer).await? || self.life.is_some() && store.exists(&end).await?)
    }

    /// Shows from now on that this process lives, so often, whatever it waits for.
    fn show_life(&mut self, every: Duration) {
        let (records, id, claim) = (self.records.clone(), self.id, self.claim);
        self.life = Some(Life(tokio::spawn(async move {
            for number in 1.. {
                tokio::time::sleep(every).await;
                // Whoever has taken the work shows its own: this process may not know yet.
                let newer = records.name(id, Object::Claim(claim + 1));
                if matches!(records.store.exists(&newer).await, Ok(true)) {
                    break;
                }
                let shown = records.create(id, Object::Sign(claim, number), "sign", &()).await;
                if let Err(error) = shown {
                    tracing::warn!("no sign of life of {} {id}: {error}", W::NAME);
                }
                if number > 1 {
                    // One that stays does no harm.
                    let older = records.name(id, Object::Sign(claim, number - 1));
                    let _ = records.store.delete(&older).await;
                }
            }
        })));
    }

    /// Marks the work as done, for others to see, with what came of it. False when another process has gone on with it.
    async fn mark_done(&self, end: &End<W::Checkpoint>) -> Result<bool, ArchiveError> {
        Ok(!self.is_taken().await? && self.records.create(self.id, Object::Done, "end", end).await?)
    }

    /// Removes the record of what is done.
    pub(crate) async fn remove(self) {
        if let Err(error) = self.records.remove(self.id).await {
            self.tell_what_stays(&format!("the record of {} {}", W::NAME, self.id), &error);
        }
    }

    fn tell_what_stays(&self, what: &str, error: &dyn fmt::Display) {
        tracing::info!(
            "{what} in {} is not needed any more, but stays: {error}",
            self.records.location()
        );
    }
}
