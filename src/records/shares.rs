//! Shares: how tasks divide work among themselves that needs nothing but the same snapshot.
//!
//! The work has a name, and by that a folder. The first task creates `agreed.json` in it: how many tasks there are, what they do, and
//! what has to be settled once, as where the key ranges are cut. The others go by that, or are told that they do something else. There are
//! as many shares as tasks, and each has a record of its own. A task begins with its own share. When that is done it looks what became of
//! the others: a share whose record shows no sign of life, or that nobody has begun, it takes over. So the work is done when any
//! of them lives to its end. Shares that are done are marked, for tasks that come late, or again; and as whoever had done one may be gone
//! since, every task tells in the end what came of all of them.
//!
//! Whether somebody works on a share is seen by looking twice, not by the time of day. A task that is only slow loses its share to another
//! one, as by any other claim, and looks for the next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{CheckpointNumber, End, Listed, Record, Records, Running, Work};
use crate::archive::envelope::{self, MAX_JSON_LEN};
use crate::archive::{ArchiveError, SessionId};
use crate::clock;
use crate::stop::Stop;
use crate::store::{Store, StoreError};
use crate::task::Task;

/// For how long after the end a task that names no execution is taken for one that comes back.
const COMES_BACK: TimeDelta = TimeDelta::hours(1);
/// For how long it is remembered what was done, in the store's time.
const REMEMBERED: TimeDelta = TimeDelta::days(30);
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
    /// How often to look what became of the others' shares.
    pub look_every: Duration,
    /// For how long a share must have shown no sign of life before it is taken over. Whoever works on one shows three in that time,
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
    /// What the first task settles for all of them.
    type Common: Clone + Debug + Serialize + DeserializeOwned;
}

/// What the tasks have agreed upon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Agreed<C> {
    /// At random: what is left of other work by the same name has another one.
    id: SessionId,
    pub(crate) name: String,
    pub(crate) count: u32,
    execution: Option<String>,
    /// By the option's name, or another word for a person.
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) common: C,
}

impl<C> Agreed<C> {
    fn share(&self, index: u32) -> SessionId {
        let hash = blake3::hash(format!("{}/{index}", self.id).as_bytes());
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
    /// A share that nobody has begun, with the id of its record.
    Begin(Task, SessionId),
    /// A share that somebody has left.
    Resume(Task, Record<W>),
    /// Nothing, for now: others are at work.
    Wait,
    /// All is done. What came of each share, whoever has done it.
    Finished(Vec<(Task, W::Checkpoint)>),
}

/// The shares of a work, as one task sees them.
#[derive(Debug)]
pub(crate) struct Shares<'a, W: ShareableWork> {
    records: Records<W>,
    shared: &'a SharedWork,
    agreed: Agreed<W::Common>,
    /// What was last seen of each, and since when.
    seen: HashMap<u32, (Sign, Instant)>,
    is_first_look: bool,
    has_told: bool,
}

/// What changes as long as somebody works on a share.
type Sign = Option<(u64, CheckpointNumber, DateTime<Utc>)>;

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

/// Begins a work, or finds out what another task has settled meanwhile.
pub(crate) async fn agree<W: ShareableWork>(
    store: &Store,
    shared: &SharedWork,
    options: BTreeMap<String, String>,
    common: W::Common,
) -> Result<Agreed<W::Common>, SharesError> {
    let agreed = Agreed {
        id: SessionId::random(),
        name: shared.name.clone(),
        count: shared.task.count(),
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
        if agreed.count != shared.task.count() {
            return Err(SharesError::Count {
                name: name(),
                then: agreed.count,
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
            records: Records::below(store.clone(), shared.folder(W::SHARED_FOLDER)),
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

    /// This task's own, and then those of the others, the next one's first: so several that are idle begin with different ones.
    fn order(&self) -> impl Iterator<Item = Task> + use<W> {
        let (own, count) = (self.shared.task.index(), self.shared.task.count());
        let indexes = (own..count).chain(0..own);
        indexes.filter_map(move |index| Task::new(index, count).ok())
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
        let mut undone = 0;
        let mut chosen = None;
        for task in self.order() {
            let id = self.agreed.share(task.index());
            let listed = listing.get(&id).filter(|listed| listed.has_plan);
            if listed.is_some_and(|listed| listed.is_done) {
                continue;
            }
            undone += 1;
            let sign = listed.map(|listed| (listed.claim, listed.number, listed.last_sign));
            let (seen, since) = self.seen.entry(task.index()).or_insert((sign, now));
            if *seen != sign {
                (*seen, *since) = (sign, now);
            }
            // An earlier process of this very task is gone.
            let is_left = is_first_look && task == self.shared.task
                || now.duration_since(*since) >= self.shared.patience;
            if is_left && chosen.is_none() {
                chosen = Some((task, id, listed.copied()));
            }
        }
        if undone == 0 {
            let signs = listing.values().map(|listed| listed.last_sign);
            let newest = signs.max().unwrap_or(self.agreed.started_at);
            return self.finish(is_first_look, newest).await;
        }
        if is_first_look {
            forget_old::<W>(&self.records).await;
        }
        let Some((task, id, listed)) = chosen else {
            self.tell_of_waiting(undone);
            return Ok(Next::Wait);
        };
        let next = match listed {
            None => Next::Begin(task, id),
            Some(listed) => match self.records.read(id, listed).await {
                Ok(record) => Next::Resume(task, record),
                // A newer checkpoint has taken the place of the one that was listed: somebody is at work.
                Err(ArchiveError::Store(StoreError::NotFound { .. })) => return Ok(Next::Wait),
                Err(error) => return Err(error.into()),
            },
        };
        if task != self.shared.task {
            tracing::warn!(
                "nobody works on what is the share of {task} of `{}`: taking it over",
                self.shared.name
            );
        }
        self.has_told = false;
        Ok(next)
    }

    async fn finish(&self, is_first_look: bool, newest: DateTime<Utc>) -> Result<Next<W>, SharesError> {
        let mut outcomes = Vec::new();
        let mut executions = vec![self.agreed.execution.clone()];
        for task in self.order() {
            let end = self.records.read_end(self.agreed.share(task.index())).await?;
            executions.push(end.execution);
            outcomes.push((task, end.outcome));
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

    /// Begins a share; `None` when another process was faster.
    pub(crate) async fn begin(
        &self,
        id: SessionId,
        plan: &W::Plan,
    ) -> Result<Option<Running<W>>, ArchiveError> {
        Ok(self.alive(self.records.begin(id, plan).await?))
    }

    /// Goes on with a share; `None` when another process was faster.
    pub(crate) async fn resume(&self, record: &Record<W>) -> Result<Option<Running<W>>, ArchiveError> {
        Ok(self.alive(self.records.resume(record).await?))
    }

    fn alive(&self, running: Option<Running<W>>) -> Option<Running<W>> {
        let mut running = running?;
        running.show_life(self.shared.heartbeat());
        Some(running)
    }

    /// Marks a share as done, with what came of it. False when another process has gone on with it.
    pub(crate) async fn mark_done(
        &self,
        running: &Running<W>,
        outcome: W::Checkpoint,
    ) -> Result<bool, ArchiveError> {
        let execution = self.shared.execution.clone();
        running.mark_done(&End { execution, outcome }).await
    }

    /// Waits until another process has gone on with a share.
    pub(crate) async fn lost(&self, running: &Running<W>) -> Result<(), ArchiveError> {
        loop {
            tokio::time::sleep(self.shared.heartbeat()).await;
            if running.is_taken().await? {
                return Ok(());
            }
        }
    }

    fn tell_of_waiting(&mut self, undone: usize) {
        if !std::mem::replace(&mut self.has_told, true) {
            tracing::info!(
                "waiting for the tasks that work on {undone} of the {} shares of `{}`",
                self.shared.task.count(),
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
    /// How far the shares are that have recorded it.
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
        let shares = (0..agreed.count).map(|index| agreed.share(index));
        let shares = shares.filter_map(|id| Some((id, *listing.get(&id)?)));
        let shares: Vec<(SessionId, Listed)> = shares.filter(|(_, listed)| listed.has_plan).collect();
        let done = shares.iter().filter(|(_, listed)| listed.is_done).count();
        if done == agreed.count as usize {
            continue;
        }
        let signs = shares.iter().map(|(_, listed)| listed.last_sign);
        let last_sign = signs.max().unwrap_or(begun_at);
        let mut begun = Vec::new();
        for (id, listed) in shares {
            match records.look_at(id, listed).await {
                Ok(checkpoint) => begun.extend(checkpoint),
                Err(error) => tracing::warn!("a share of `{}` is left out: {error}", agreed.name),
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
    for index in 0..agreed.count {
        records.remove(agreed.share(index)).await?;
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
    ) -> Result<Shares<'a, Digging>, SharesError> {
        let options = BTreeMap::from([("--depth".to_owned(), depth.to_owned())]);
        let place = format!("where {} found it", shared.task);
        let agreed = agree::<Digging>(store, shared, options.clone(), place).await?;
        Shares::new(store, shared, agreed, &options)
    }

    async fn shares<'a>(store: &Store, shared: &'a SharedWork) -> Shares<'a, Digging> {
        try_shares(store, shared, "5").await.unwrap()
    }

    /// Begins or goes on with what is next at that time, which must be the share of that task.
    async fn take(shares: &mut Shares<'_, Digging>, now: Instant, index: u32) -> Running<Digging> {
        let taken = match shares.next_at(now).await.unwrap() {
            Next::Begin(task, id) if task.index() == index => shares.begin(id, &index).await,
            Next::Resume(task, record) if task.index() == index => shares.resume(&record).await,
            other => panic!("{other:?}"),
        };
        taken.unwrap().unwrap()
    }

    async fn waits(shares: &mut Shares<'_, Digging>, now: Instant) -> bool {
        matches!(shares.next_at(now).await.unwrap(), Next::Wait)
    }

    /// What came of each share, this task's own first.
    async fn outcome(shares: &mut Shares<'_, Digging>) -> Vec<(u32, u64)> {
        let Next::Finished(outcomes) = shares.next().await.unwrap() else {
            panic!("not finished");
        };
        let outcomes = outcomes.into_iter();
        outcomes.map(|(task, outcome)| (task.index(), outcome)).collect()
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
        // The third share nobody begins; the second is at work.
        let moment = of_first.patience / 4;
        for depth in 0..3 {
            now += moment;
            assert!(slow.checkpoint(&depth).await.unwrap());
            assert!(waits(&mut first, now).await);
        }
        now += moment;
        let third = take(&mut first, now, 2).await;
        assert!(first.mark_done(&third, 0).await.unwrap());
        assert!(waits(&mut first, now).await);
        // Now that one falls silent.
        now += of_first.patience;
        let mut taken = take(&mut first, now, 1).await;
        assert!(!slow.checkpoint(&7).await.unwrap(), "two work on one share");
        assert!(!second.mark_done(&slow, 7).await.unwrap());
        assert!(slow.is_taken().await.unwrap());
        assert!(waits(&mut second, now).await);
        assert!(taken.checkpoint(&8).await.unwrap());
        assert!(first.mark_done(&taken, 9).await.unwrap());
        assert_eq!(outcome(&mut first).await, [(0, 2), (1, 9), (2, 0)]);
        assert_eq!(outcome(&mut second).await, [(1, 9), (2, 0), (0, 2)]);
        // One that is started again is told what came of it.
        let mut again = shares(&store, &of_second).await;
        assert_eq!(outcome(&mut again).await, [(1, 9), (2, 0), (0, 2)]);
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
        let of_task = work(1, 2);
        let mut gone = take(&mut shares(&store, &of_task).await, Instant::now(), 1).await;
        assert!(gone.checkpoint(&3).await.unwrap());
        let mut again = shares(&store, &of_task).await;
        let Next::Resume(_, record) = again.next().await.unwrap() else {
            panic!("it was begun");
        };
        assert_eq!(record.checkpoint, Some(3));
        assert!(again.resume(&record).await.unwrap().is_some());
        assert!(again.resume(&record).await.unwrap().is_none(), "claimed twice");
        assert!(!gone.checkpoint(&4).await.unwrap());
    }

    #[tokio::test]
    async fn tasks_that_do_not_agree_are_told_so() {
        let store = Store::memory();
        let (of_first, of_many, of_second) = (work(0, 2), work(2, 3), work(1, 2));
        shares(&store, &of_first).await;
        let refused = try_shares(&store, &of_many, "5").await.unwrap_err().to_string();
        assert!(
            refused.contains("shared by 2 tasks") && refused.contains("task 2 of 3"),
            "{refused}"
        );
        let refused = try_shares(&store, &of_second, "6").await.unwrap_err().to_string();
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
