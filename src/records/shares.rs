//! Shares: how tasks divide work among themselves that needs nothing but the same snapshot.
//!
//! The work has a name, and by that a folder. The first task creates `agreed.json` in it: how many tasks there are, what they do, and
//! what has to be settled once, as where the key ranges are cut. The others go by that, or are told that they do something else. The work
//! is cut into some parts for each task, its share, and each part has a record of its own. A task does its share part by part. When
//! none of that is left, it takes parts that nobody has begun from the share that has most of them, the last one first: so a task that is slow,
//! or has not started yet, keeps nobody waiting for more than the part that it is at. A part whose record shows no sign of life is taken over.
//! So the work is done when any of the tasks lives to its end. Parts that are done are marked, for tasks that come late, or again; and as
//! whoever had done one may be gone since, every task tells in the end what came of all of them.
//!
//! Whether somebody works on a part is seen by looking twice, not by the time of day. A task that shows no life although it has some loses
//! its part to another one, as by any other claim, and looks for the next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{CheckpointNumber, End, Listed, Record, Records, Running, Work};
use crate::archive::envelope::{self, MAX_JSON_LEN};
use crate::archive::{ArchiveError, SessionId};
use crate::clock;
use crate::stop::Stop;
use crate::store::{Store, StoreError};
use crate::task::{Part, Task};

/// For how long after the end a task that names no execution is taken for one that comes back.
const COMES_BACK: TimeDelta = TimeDelta::hours(1);
/// For how long it is remembered what was done, in the store's time.
const REMEMBERED: TimeDelta = TimeDelta::days(30);
/// Records that are read at the same time.
const READS_AT_ONCE: usize = 16;
const AGREED: &str = "agreed.json";
const AGREED_KIND: &str = "shared work";

/// How tasks share work.
#[derive(Clone, Debug)]
pub struct SharedWork {
    /// Which one this process is.
    pub task: Task,
    /// What the work is called: the same for all tasks, and another one for each work.
    pub name: String,
    /// What tells these tasks from those of another time that were given the same name.
    pub execution: Option<String>,
    /// How often to look what became of the others' parts, when there is nothing else to do.
    pub look_every: Duration,
    /// For how long a part must have shown no sign of life before it is taken over. Whoever works on one shows three in that time,
    /// whatever it waits for.
    pub patience: Duration,
}

impl SharedWork {
    /// With times that suit work of minutes or hours.
    pub fn new(task: Task, name: impl Into<String>) -> Self {
        Self {
            task,
            name: name.into(),
            execution: None,
            // Each look costs a listing: a hundred tasks make ten in a second.
            look_every: Duration::from_secs(5).max(Duration::from_millis(100) * task.count()),
            patience: Duration::from_secs(100),
        }
    }

    /// How often to show a sign of life.
    fn heartbeat(&self) -> Duration {
        self.patience / 3
    }

    /// What the work's folder is called: names may have letters in them that objects' names may not.
    fn folder(&self, below: &str) -> String {
        let hash = blake3::hash(self.name.as_bytes()).to_hex();
        format!("{below}/{}", hash.as_str().get(..16).unwrap_or_default())
    }
}

/// Work that can be shared.
pub(crate) trait ShareableWork: Work {
    /// Where such work is recorded, each in a folder of its own.
    const SHARED_FOLDER: &'static str;
    /// Into how many parts each task's share is cut. The more there are, the less is left to wait for at the end; each costs some requests.
    const PARTS_PER_TASK: u32;
    /// What the first task settles for all of them.
    type Common: Clone + Debug + Serialize + DeserializeOwned;
}

/// What the tasks have agreed upon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Agreed<C> {
    /// At random: what is left of other work by the same name has another one.
    id: SessionId,
    pub(crate) name: String,
    pub(crate) tasks: u32,
    /// How many parts there are.
    parts: u32,
    execution: Option<String>,
    /// By the option's name, or another word for a person.
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) common: C,
}

impl<C> Agreed<C> {
    /// All parts, ascending.
    fn parts(&self) -> impl Iterator<Item = Part> + use<C> {
        let of = self.parts;
        (0..of).map(move |number| Part { number, of })
    }

    /// The id of a part's record.
    fn record(&self, part: Part) -> SessionId {
        let hash = blake3::hash(format!("{}/{}", self.id, part.number).as_bytes());
        let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        SessionId::from_u64(u64::from_be_bytes(first))
    }
}

/// Tasks that do not belong together, or cannot tell whether they do.
#[derive(Debug, thiserror::Error)]
pub enum SharesError {
    /// They were told to be another number.
    #[error(
        "`{name}` is shared by {then} tasks, and this is {task}: give all of them the same --task-count, or take another --session \
         NAME"
    )]
    Count {
        /// What the work is called.
        name: String,
        /// How many there are.
        then: u32,
        /// This one.
        task: Task,
    },
    /// The others do something else.
    #[error(
        "the tasks that share `{name}` were begun otherwise: {differences}. Give all of them the same, or take another --session NAME"
    )]
    Options {
        /// What the work is called.
        name: String,
        /// What differs.
        differences: String,
    },
    /// The name was that of earlier work.
    #[error("`{name}` was shared by other tasks, and is done: take another --session NAME")]
    Used {
        /// The name.
        name: String,
    },
    /// Somebody has removed the record of the work.
    #[error("the record of `{name}` was removed: nobody goes on with it")]
    Removed {
        /// The name.
        name: String,
    },
    /// The records cannot be read or written.
    #[error(transparent)]
    Records(#[from] ArchiveError),
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Next<W: Work> {
    /// A part that nobody has begun, with the id of its record.
    Begin(Part, SessionId),
    /// A part that somebody has left.
    Resume(Part, Record<W>),
    /// Nothing, for now: others are at work.
    Wait,
    /// All is done. What came of each part, with the number of the task that has done it.
    Finished(Vec<(Part, u32, W::Checkpoint)>),
}

/// The shares of a work, as one task sees them.
#[derive(Debug)]
pub(crate) struct Shares<'a, W: ShareableWork> {
    records: Records<W>,
    shared: &'a SharedWork,
    agreed: Agreed<W::Common>,
    /// What was last seen of each part, and since when.
    seen: HashMap<Part, (Sign, Instant)>,
    is_first_look: bool,
    has_told: bool,
}

/// What changes as long as somebody works on a part.
type Sign = (u64, CheckpointNumber, DateTime<Utc>);

/// What the tasks of a work have agreed upon, if one of them has begun.
pub(crate) async fn find_agreed<W: ShareableWork>(
    store: &Store,
    shared: &SharedWork,
) -> Result<Option<Agreed<W::Common>>, SharesError> {
    let name = format!("{}/{AGREED}", shared.folder(W::SHARED_FOLDER));
    match store.get_at_most(&name, MAX_JSON_LEN).await {
        Ok(bytes) => Ok(Some(envelope::decode(&name, AGREED_KIND, &bytes)?)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(ArchiveError::from(error).into()),
    }
}

/// Begins a work, or finds out what another task has settled meanwhile. It is cut into `most` parts at most.
pub(crate) async fn agree<W: ShareableWork>(
    store: &Store,
    shared: &SharedWork,
    options: BTreeMap<String, String>,
    common: W::Common,
    most: usize,
) -> Result<Agreed<W::Common>, SharesError> {
    let tasks = shared.task.count();
    let most = u32::try_from(most).unwrap_or(u32::MAX).max(1);
    let agreed = Agreed {
        id: SessionId::random(),
        name: shared.name.clone(),
        tasks,
        parts: tasks.saturating_mul(W::PARTS_PER_TASK).min(most),
        execution: shared.execution.clone(),
        options,
        started_at: clock::now(),
        common,
    };
    let name = format!("{}/{AGREED}", shared.folder(W::SHARED_FOLDER));
    let payload = envelope::encode(AGREED_KIND, &agreed)?;
    match store.put_new(&name, payload).await {
        Ok(()) => Ok(agreed),
        Err(error @ StoreError::AlreadyExists { .. }) => match find_agreed::<W>(store, shared).await? {
            Some(settled) => Ok(settled),
            None => Err(ArchiveError::from(error).into()),
        },
        Err(error) => Err(ArchiveError::from(error).into()),
    }
}

impl<'a, W: ShareableWork> Shares<'a, W> {
    /// The shares of a work that was agreed upon.
    ///
    /// # Errors
    /// When this task was told something else.
    pub(crate) fn new(
        store: &Store,
        shared: &'a SharedWork,
        agreed: Agreed<W::Common>,
        options: &BTreeMap<String, String>,
    ) -> Result<Self, SharesError> {
        let name = || shared.name.clone();
        if agreed.tasks != shared.task.count() {
            return Err(SharesError::Count {
                name: name(),
                then: agreed.tasks,
                task: shared.task,
            });
        }
        let differences = differences(&agreed.options, options);
        if !differences.is_empty() {
            return Err(SharesError::Options {
                name: name(),
                differences: differences.join("; "),
            });
        }
        Ok(Self {
            records: Records::below(store.clone(), shared.folder(W::SHARED_FOLDER)).by(shared.task.index()),
            shared,
            agreed,
            seen: HashMap::new(),
            is_first_look: true,
            has_told: false,
        })
    }

    pub(crate) fn records(&self) -> &Records<W> {
        &self.records
    }

    pub(crate) fn common(&self) -> &W::Common {
        &self.agreed.common
    }

    /// How far a part's share is from this task's own, which is at 0.
    fn distance(&self, part: Part) -> usize {
        self.shared.task.distance(part.number as usize, part.of as usize)
    }

    /// Which of the parts that nobody has begun to begin: the first of this task's own share; else the last of the share that has most of
    /// them, of the next one after this where several have as many, so that tasks that are idle together begin with different ones.
    fn choose(&self, open: &[Part]) -> Option<Part> {
        let shares = open.chunk_by(|a, b| self.distance(*a) == self.distance(*b));
        let rank = |share: &&[Part]| {
            let distance = share.first().map_or(0, |part| self.distance(*part));
            (distance == 0, share.len(), Reverse(distance))
        };
        let share = shares.max_by_key(rank)?;
        match rank(&share) {
            (true, ..) => share.first(),
            _ => share.last(),
        }
        .copied()
    }

    /// What to do now.
    ///
    /// # Errors
    /// When the records cannot be read; when the work was done by other tasks before this one began, or was given up.
    pub(crate) async fn next(&mut self) -> Result<Next<W>, SharesError> {
        self.next_at(Instant::now()).await
    }

    async fn next_at(&mut self, now: Instant) -> Result<Next<W>, SharesError> {
        // What was begun anew under the same name is other work.
        let agreed = find_agreed::<W>(&self.records.store, self.shared).await?;
        if agreed.is_none_or(|agreed| agreed.id != self.agreed.id) {
            let name = self.shared.name.clone();
            return Err(SharesError::Removed { name });
        }
        let listing = self.records.list().await?;
        let is_first_look = std::mem::take(&mut self.is_first_look);
        let (mut open, mut begun, mut left) = (Vec::new(), Vec::new(), None);
        for part in self.agreed.parts() {
            let id = self.agreed.record(part);
            let Some(listed) = listing.get(&id).filter(|listed| listed.has_plan) else {
                open.push(part);
                continue;
            };
            if listed.is_done {
                continue;
            }
            begun.push((part, id, *listed));
            let sign = (listed.claim, listed.number, listed.last_sign);
            let (seen, since) = self.seen.entry(part).or_insert((sign, now));
            if *seen != sign {
                (*seen, *since) = (sign, now);
            }
            if now.duration_since(*since) >= self.shared.patience && left.is_none() {
                left = Some((part, id, *listed));
            }
        }
        if open.is_empty() && begun.is_empty() {
            let signs = listing.values().map(|listed| listed.last_sign);
            let newest = signs.max().unwrap_or(self.agreed.started_at);
            return self.finish(is_first_look, newest).await;
        }
        if is_first_look {
            forget_old::<W>(&self.records).await;
            left = self.own_of(&begun).await;
        }
        let next = match (left, self.choose(&open)) {
            (Some((part, id, listed)), _) => match self.records.read(id, listed).await {
                Ok(record) => {
                    if !is_first_look {
                        tracing::warn!("nobody works on {part} of `{}`: taking it over", self.shared.name);
                    }
                    Next::Resume(part, record)
                }
                // A newer checkpoint has taken the place of the one that was listed: somebody is at work.
                Err(ArchiveError::Store(StoreError::NotFound { .. })) => return Ok(Next::Wait),
                Err(error) => return Err(error.into()),
            },
            (None, Some(part)) => Next::Begin(part, self.agreed.record(part)),
            (None, None) => {
                self.tell_of_waiting(begun.len());
                return Ok(Next::Wait);
            }
        };
        self.has_told = false;
        Ok(next)
    }

    /// The part that an earlier process of this very task was the last to be at: it is gone. What cannot be read is left to those who
    /// wait for it.
    async fn own_of(&self, begun: &[(Part, SessionId, Listed)]) -> Option<(Part, SessionId, Listed)> {
        let own = Some(self.shared.task.index());
        let looks = stream::iter(begun.iter().copied()).map(|(part, id, listed)| async move {
            match self.records.read_task(id, listed).await {
                Ok(task) => (task == own).then_some((part, id, listed)),
                Err(error) => {
                    tracing::debug!("it is not known who is at {part}: {error}");
                    None
                }
            }
        });
        let found = looks.buffered(READS_AT_ONCE).filter_map(std::future::ready);
        pin!(found).next().await
    }

    async fn finish(&self, is_first_look: bool, newest: DateTime<Utc>) -> Result<Next<W>, SharesError> {
        let mut outcomes = Vec::new();
        let mut executions = vec![self.agreed.execution.clone()];
        let ends = stream::iter(self.agreed.parts()).map(|part| async move {
            let end = self.records.read_end(self.agreed.record(part)).await?;
            Ok::<_, ArchiveError>((part, end))
        });
        let mut ends = pin!(ends.buffered(READS_AT_ONCE));
        while let Some((part, end)) = ends.try_next().await? {
            if !executions.contains(&end.execution) {
                executions.push(end.execution);
            }
            outcomes.push((part, end.task, end.outcome));
        }
        if !is_first_look {
            return Ok(Next::Finished(outcomes));
        }
        let is_known = executions.contains(&self.shared.execution);
        let is_back = is_known && (self.shared.execution.is_some() || clock::now() - newest < COMES_BACK);
        let name = self.shared.name.clone();
        if !is_back {
            return Err(SharesError::Used { name });
        }
        tracing::warn!(
            "`{name}` is done already, since {}: nothing is done again, and this is what was recorded. For other work, take another \
             --session NAME",
            newest.format("%Y-%m-%d %H:%M:%S UTC")
        );
        Ok(Next::Finished(outcomes))
    }

    /// Begins a part; `None` when another process was faster.
    pub(crate) async fn begin(
        &self,
        id: SessionId,
        plan: &W::Plan,
    ) -> Result<Option<Running<W>>, ArchiveError> {
        Ok(self.alive(self.records.begin(id, plan).await?))
    }

    /// Goes on with a part; `None` when another process was faster.
    pub(crate) async fn resume(&self, record: &Record<W>) -> Result<Option<Running<W>>, ArchiveError> {
        Ok(self.alive(self.records.resume(record).await?))
    }

    fn alive(&self, running: Option<Running<W>>) -> Option<Running<W>> {
        let mut running = running?;
        running.show_life(self.shared.heartbeat());
        Some(running)
    }

    /// Marks a part as done, with what came of it. False when another process has gone on with it.
    pub(crate) async fn mark_done(
        &self,
        running: &Running<W>,
        outcome: W::Checkpoint,
    ) -> Result<bool, ArchiveError> {
        let end = End {
            execution: self.shared.execution.clone(),
            task: self.shared.task.index(),
            outcome,
        };
        running.mark_done(&end).await
    }

    /// Waits until another process has gone on with a part.
    pub(crate) async fn lost(&self, running: &Running<W>) -> Result<(), ArchiveError> {
        loop {
            tokio::time::sleep(self.shared.heartbeat()).await;
            if running.is_taken().await? {
                return Ok(());
            }
        }
    }

    fn tell_of_waiting(&mut self, begun: usize) {
        if !std::mem::replace(&mut self.has_told, true) {
            tracing::info!(
                "waiting for the tasks that work on {begun} of the {} parts of `{}`",
                self.agreed.parts,
                self.shared.name
            );
        }
    }

    /// Waits until it is time for the next look, or somebody asks to stop: then it is false.
    pub(crate) async fn wait(&self, stop: &Stop) -> bool {
        tokio::select! {
            biased;
            () = stop.requested() => false,
            () = tokio::time::sleep(self.shared.look_every) => true,
        }
    }
}

/// Shared work that was found in a store.
#[derive(Clone, Debug)]
pub(crate) struct Found<W: ShareableWork> {
    pub(crate) folder: String,
    pub(crate) agreed: Agreed<W::Common>,
    /// How far the parts are that have recorded it.
    pub(crate) begun: Vec<W::Checkpoint>,
    pub(crate) last_sign: DateTime<Utc>,
}

/// The shared work that is not done.
pub(crate) async fn undone<W: ShareableWork>(store: &Store) -> Result<Vec<Found<W>>, ArchiveError> {
    let mut folders: BTreeMap<String, DateTime<Utc>> = BTreeMap::new();
    let mut listing = store.list(W::SHARED_FOLDER);
    while let Some(object) = listing.try_next().await? {
        if let Some(folder) = object.name.strip_suffix(AGREED) {
            folders.insert(folder.trim_end_matches('/').to_owned(), object.last_modified);
        }
    }
    let mut found = Vec::new();
    for (folder, begun_at) in folders {
        let name = format!("{folder}/{AGREED}");
        let bytes = match store.get_at_most(&name, MAX_JSON_LEN).await {
            Err(StoreError::NotFound { .. }) => continue,
            bytes => bytes?,
        };
        let agreed: Agreed<W::Common> = match envelope::decode(&name, AGREED_KIND, &bytes) {
            Ok(agreed) => agreed,
            Err(error) => {
                tracing::warn!("shared work is left out: {error}");
                continue;
            }
        };
        let records = Records::<W>::below(store.clone(), folder.clone());
        let listing = records.list().await?;
        let parts = agreed.parts().map(|part| agreed.record(part));
        let parts = parts.filter_map(|id| Some((id, *listing.get(&id)?)));
        let parts: Vec<(SessionId, Listed)> = parts.filter(|(_, listed)| listed.has_plan).collect();
        let done = parts.iter().filter(|(_, listed)| listed.is_done).count();
        if done == agreed.parts as usize {
            continue;
        }
        let signs = parts.iter().map(|(_, listed)| listed.last_sign);
        let last_sign = signs.max().unwrap_or(begun_at);
        let looks = stream::iter(parts).map(|(id, listed)| records.look_at(id, listed));
        let mut looks = pin!(looks.buffered(READS_AT_ONCE));
        let mut begun = Vec::new();
        while let Some(checkpoint) = looks.next().await {
            match checkpoint {
                Ok(checkpoint) => begun.extend(checkpoint),
                Err(error) => tracing::warn!("a part of `{}` is left out: {error}", agreed.name),
            }
        }
        found.push(Found {
            folder,
            agreed,
            begun,
            last_sign,
        });
    }
    Ok(found)
}

/// Removes all that is recorded of a work. Tasks that are at work on it end when they look for more.
pub(crate) async fn remove<W: ShareableWork>(store: &Store, found: &Found<W>) -> Result<(), ArchiveError> {
    let (folder, agreed) = (&found.folder, &found.agreed);
    store.delete(&format!("{folder}/{AGREED}")).await?;
    // Not all of the folder: other work may have begun under the same name by now.
    let records = Records::<W>::below(store.clone(), folder.clone());
    for part in agreed.parts() {
        records.remove(agreed.record(part)).await?;
    }
    Ok(())
}

/// Removes what is remembered of work of long ago. What is left of it where that fails is nothing to other work by the same name.
async fn forget_old<W: ShareableWork>(own: &Records<W>) {
    let mut newest: BTreeMap<String, DateTime<Utc>> = BTreeMap::new();
    let mut names = Vec::new();
    let mut listing = own.store.list(W::SHARED_FOLDER);
    loop {
        let object = match listing.try_next().await {
            Ok(Some(object)) => object,
            Ok(None) => break,
            Err(error) => return tracing::debug!("old records stay: {error}"),
        };
        let rest = object.name.strip_prefix(W::SHARED_FOLDER).unwrap_or_default();
        let Some((folder, _)) = rest.trim_start_matches('/').split_once('/') else {
            continue;
        };
        let folder = format!("{}/{folder}", W::SHARED_FOLDER);
        let sign = newest.entry(folder.clone()).or_default();
        *sign = object.last_modified.max(*sign);
        names.push((folder, object.name));
    }
    // By the store's own clock: this task has just written there, or another of this work has.
    let now = newest.values().max().copied().unwrap_or_default();
    newest.retain(|folder, sign| *folder != own.folder && now - *sign > REMEMBERED);
    // What the tasks have agreed upon goes first: without it the rest is nothing.
    names.retain(|(folder, _)| newest.contains_key(folder));
    names.sort_by_key(|(_, name)| !name.ends_with(AGREED));
    for (_, name) in names {
        if let Err(error) = own.store.delete(&name).await {
            tracing::debug!("`{name}` stays: {error}");
        }
    }
}

/// What is not the same in two sets of options, in words.
pub(crate) fn differences(then: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let shown = |options: &BTreeMap<String, String>, name: &String| match options.get(name) {
        Some(value) => format!("`{value}`"),
        None => "not given".to_owned(),
    };
    names
        .into_iter()
        .filter(|&name| then.get(name) != now.get(name))
        .map(|name| format!("{name} was {} and is {}", shown(then, name), shown(now, name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Running;

    #[derive(Clone, Debug)]
    enum Digging {}

    impl Work for Digging {
        const FOLDER: &'static str = "digs";
        const NAME: &'static str = "dig";
        type Plan = u32;
        type Checkpoint = u64;

        fn check(_: &u32, _: &u64) -> Result<(), &'static str> {
            Ok(())
        }
    }

    impl ShareableWork for Digging {
        const SHARED_FOLDER: &'static str = "shared-digs";
        const PARTS_PER_TASK: u32 = 3;
        type Common = String;
    }

    fn work(index: u32, count: u32) -> SharedWork {
        SharedWork::new(Task::new(index, count).unwrap(), "the garden")
    }

    fn of_another_time(index: u32, count: u32) -> SharedWork {
        SharedWork {
            execution: Some("another".to_owned()),
            ..work(index, count)
        }
    }

    async fn try_shares<'a>(
        store: &Store,
        shared: &'a SharedWork,
        depth: &str,
        beds: usize,
    ) -> Result<Shares<'a, Digging>, SharesError> {
        let options = BTreeMap::from([("--depth".to_owned(), depth.to_owned())]);
        let place = format!("where {} found it", shared.task);
        let agreed = agree::<Digging>(store, shared, options.clone(), place, beds).await?;
        Shares::new(store, shared, agreed, &options)
    }

    /// One part for each task.
    async fn shares<'a>(store: &Store, shared: &'a SharedWork) -> Shares<'a, Digging> {
        let tasks = shared.task.count() as usize;
        try_shares(store, shared, "5", tasks).await.unwrap()
    }

    /// Begins or goes on with what is next at that time, which must be that part.
    async fn take(shares: &mut Shares<'_, Digging>, now: Instant, number: u32) -> Running<Digging> {
        let taken = match shares.next_at(now).await.unwrap() {
            Next::Begin(part, id) if part.number == number => shares.begin(id, &number).await,
            Next::Resume(part, record) if part.number == number => shares.resume(&record).await,
            other => panic!("{other:?} instead of {number}"),
        };
        taken.unwrap().unwrap()
    }

    async fn waits(shares: &mut Shares<'_, Digging>, now: Instant) -> bool {
        matches!(shares.next_at(now).await.unwrap(), Next::Wait)
    }

    /// What came of each part.
    async fn outcome(shares: &mut Shares<'_, Digging>) -> Vec<(u32, u64)> {
        let Next::Finished(outcomes) = shares.next().await.unwrap() else {
            panic!("not finished");
        };
        let outcomes = outcomes.into_iter();
        outcomes
            .map(|(part, _, outcome)| (part.number, outcome))
            .collect()
    }

    #[tokio::test]
    async fn what_shows_no_sign_of_life_is_taken_over_and_nothing_else() {
        let store = Store::memory();
        let (of_first, of_second) = (work(0, 3), work(1, 3));
        let (mut first, mut second) = (shares(&store, &of_first).await, shares(&store, &of_second).await);
        assert_eq!(first.common(), second.common());
        let mut now = Instant::now();
        let mut own = take(&mut first, now, 0).await;
        let mut slow = take(&mut second, now, 1).await;
        assert!(own.checkpoint(&1).await.unwrap());
        assert!(first.mark_done(&own, 2).await.unwrap());
        assert!(!own.checkpoint(&3).await.unwrap(), "it is done");
        // The third part nobody begins; the second is at work.
        let third = take(&mut first, now, 2).await;
        assert!(first.mark_done(&third, 0).await.unwrap());
        let moment = of_first.patience / 4;
        for depth in 0..6 {
            assert!(waits(&mut first, now).await);
            now += moment;
            assert!(slow.checkpoint(&depth).await.unwrap());
        }
        assert!(waits(&mut first, now).await);
        // Now that one falls silent.
        now += of_first.patience;
        let mut taken = take(&mut first, now, 1).await;
        assert!(!slow.checkpoint(&7).await.unwrap(), "two work on one part");
        assert!(!second.mark_done(&slow, 7).await.unwrap());
        assert!(slow.is_taken().await.unwrap());
        assert!(waits(&mut second, now).await);
        assert!(taken.checkpoint(&8).await.unwrap());
        assert!(first.mark_done(&taken, 9).await.unwrap());
        assert_eq!(outcome(&mut first).await, [(0, 2), (1, 9), (2, 0)]);
        assert_eq!(outcome(&mut second).await, [(0, 2), (1, 9), (2, 0)]);
        // One that is started again is told what came of it.
        let mut again = shares(&store, &of_second).await;
        assert_eq!(outcome(&mut again).await, [(0, 2), (1, 9), (2, 0)]);
    }

    /// A process that waits for long for one thing shows all the same that it lives.
    #[tokio::test]
    async fn who_waits_shows_that_it_lives() {
        let store = Store::memory();
        let of_first = SharedWork {
            patience: Duration::from_millis(60),
            ..work(0, 2)
        };
        let mut first = shares(&store, &of_first).await;
        let own = take(&mut first, Instant::now(), 0).await;
        let of_second = work(1, 2);
        let mut second = shares(&store, &of_second).await;
        let mut now = Instant::now();
        let other = take(&mut second, now, 1).await;
        assert!(second.mark_done(&other, 0).await.unwrap());
        for _ in 0..3 {
            let before = object_names(&store).await;
            let is_new = |name: &String| !before.contains(name);
            let shown = async {
                while !object_names(&store).await.iter().any(is_new) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), shown)
                .await
                .unwrap();
            now += of_second.patience;
            assert!(waits(&mut second, now).await, "it lives");
        }
        drop(own);
        now += of_second.patience;
        // What was on its way when it died may be a last sign.
        second.next_at(now).await.unwrap();
        take(&mut second, now + of_second.patience, 0).await;
    }

    async fn object_names(store: &Store) -> Vec<String> {
        let names = store.list("").map_ok(|object| object.name);
        names.try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn a_task_goes_on_at_once_with_what_an_earlier_process_of_it_has_left() {
        let store = Store::memory();
        let (of_task, of_other) = (work(1, 2), work(0, 2));
        let mut gone = take(&mut shares(&store, &of_task).await, Instant::now(), 1).await;
        assert!(gone.checkpoint(&3).await.unwrap());
        let mut again = shares(&store, &of_task).await;
        let Next::Resume(_, record) = again.next().await.unwrap() else {
            panic!("it was begun");
        };
        assert_eq!(record.checkpoint, Some(3));
        let own = again.resume(&record).await.unwrap().unwrap();
        assert!(again.resume(&record).await.unwrap().is_none(), "claimed twice");
        assert!(!gone.checkpoint(&4).await.unwrap());
        // Also where it was at another's; and not with what another one has of its own share.
        assert!(again.mark_done(&own, 0).await.unwrap());
        let now = Instant::now();
        let _of_others = take(&mut again, now, 0).await;
        assert!(waits(&mut shares(&store, &of_other).await, now).await);
        take(&mut shares(&store, &of_task).await, now, 0).await;
        assert!(waits(&mut shares(&store, &of_other).await, now).await);
    }

    /// Each its own first, in order; who has done that takes from the end of what most is left of, and leaves to each what it is at.
    #[tokio::test]
    async fn who_is_idle_takes_what_nobody_has_begun() {
        let store = Store::memory();
        let tasks = [work(0, 3), work(1, 3), work(2, 3)];
        let mut all = Vec::new();
        for task in &tasks {
            all.push(try_shares(&store, task, "5", usize::MAX).await.unwrap());
        }
        let [first, second, third] = &mut all[..] else {
            panic!("three");
        };
        let now = Instant::now();
        let mut done = Vec::new();
        let _slow = take(second, now, 3).await;
        for number in [0, 1, 2] {
            done.push(take(first, now, number).await);
        }
        // The third has not started: most is left of its share.
        done.push(take(first, now, 8).await);
        // Of both as much: the next one's after its own.
        done.push(take(first, now, 5).await);
        done.push(take(third, now, 6).await);
        done.push(take(third, now, 7).await);
        done.push(take(third, now, 4).await);
        assert!(waits(first, now).await && waits(third, now).await);
    }

    /// Where there is less to do than there are tasks.
    #[tokio::test]
    async fn there_are_no_more_parts_than_pieces() {
        let store = Store::memory();
        let (of_first, of_last) = (work(0, 4), work(3, 4));
        let mut first = try_shares(&store, &of_first, "5", 1).await.unwrap();
        let mut last = try_shares(&store, &of_last, "5", 1).await.unwrap();
        let now = Instant::now();
        let all = take(&mut last, now, 0).await;
        assert!(waits(&mut first, now).await);
        assert!(last.mark_done(&all, 1).await.unwrap());
        assert_eq!(outcome(&mut first).await, [(0, 1)]);
        assert_eq!(outcome(&mut last).await, [(0, 1)]);
        // Nothing at all is a part, too: somebody has to say that there is nothing.
        let of_none = SharedWork::new(Task::new(0, 1).unwrap(), "a balcony");
        let mut none = try_shares(&store, &of_none, "5", 0).await.unwrap();
        take(&mut none, now, 0).await;
    }

    #[tokio::test]
    async fn tasks_that_do_not_agree_are_told_so() {
        let store = Store::memory();
        let (of_first, of_many, of_second) = (work(0, 2), work(2, 3), work(1, 2));
        shares(&store, &of_first).await;
        let refused = try_shares(&store, &of_many, "5", 9)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("shared by 2 tasks") && refused.contains("task 2 of 3"),
            "{refused}"
        );
        let refused = try_shares(&store, &of_second, "6", 9)
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("--depth was `5` and is `6`"), "{refused}");
    }

    /// Tasks of another time go on with what is not done, and others are told when all is.
    #[tokio::test]
    async fn a_name_can_be_used_once() {
        let store = Store::memory();
        let (of_first, of_second) = (work(0, 2), work(1, 2));
        let mut first = shares(&store, &of_first).await;
        let own = take(&mut first, Instant::now(), 0).await;
        assert!(first.mark_done(&own, 1).await.unwrap());
        let later = of_another_time(1, 2);
        let mut second = shares(&store, &later).await;
        let other = take(&mut second, Instant::now(), 1).await;
        assert!(second.mark_done(&other, 2).await.unwrap());
        // Both have had a part in it.
        outcome(&mut shares(&store, &of_second).await).await;
        outcome(&mut shares(&store, &later).await).await;
        let never = SharedWork {
            execution: Some("never seen".to_owned()),
            ..work(0, 2)
        };
        let refused = shares(&store, &never).await.next().await.unwrap_err();
        assert!(matches!(refused, SharesError::Used { .. }), "{refused}");
        assert!(undone::<Digging>(&store).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_was_given_up_nobody_goes_on_with() {
        let store = Store::memory();
        let (of_first, of_second) = (work(0, 2), work(1, 2));
        let mut first = shares(&store, &of_first).await;
        let mut own = take(&mut first, Instant::now(), 0).await;
        assert!(own.checkpoint(&7).await.unwrap());
        let mut found = undone::<Digging>(&store).await.unwrap();
        assert_eq!(
            found.iter().flat_map(|found| &found.begun).collect::<Vec<_>>(),
            [&7]
        );
        remove(&store, &found.pop().unwrap()).await.unwrap();
        assert!(undone::<Digging>(&store).await.unwrap().is_empty());
        // Also when the name was given to other work since.
        let mut new = shares(&store, &of_second).await;
        for gone in [&mut first, &mut shares(&store, &of_first).await] {
            let is_new = gone.agreed.id == new.agreed.id;
            match gone.next().await {
                Err(SharesError::Removed { .. }) => assert!(!is_new),
                next => assert!(is_new && matches!(next, Ok(Next::Begin(..)))),
            }
        }
        take(&mut new, Instant::now(), 1).await;
    }
}
