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

mod found;
#[cfg(test)]
mod tests;

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
use found::forget_old;
pub(crate) use found::{Found, remove, undone};

/// For how long after the end a task that names no execution is taken for one that comes back.
const COMES_BACK: TimeDelta = TimeDelta::hours(1);
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
