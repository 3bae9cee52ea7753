//! Shares: how tasks divide work among themselves that needs nothing but the same snapshot.
//!
//! The work is cut into as many shares as there are tasks, the same way by each of them, and each share has a record of its own, by
//! an id that follows from the name that the tasks have in common. A task begins with its own share. When that is done it looks
//! what became of the others: a share whose record shows no sign of life, or that nobody has begun, it takes over. So the work is done
//! when any of them lives to its end, and a task that comes late, or again, finds what is done marked as done.
//!
//! What is safe does not depend on clocks, and neither does this: whether a record has changed is seen by looking twice. A task that
//! is only slow loses its share to another one, as by any other claim, and looks for the next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::{Listed, Record, Records, Work};
use crate::archive::{ArchiveError, SessionId};
use crate::clock;
use crate::stop::Stop;
use crate::store::StoreError;
use crate::task::Task;

/// For how long after the end a task that names no execution is taken for one that comes back.
const COMES_BACK: TimeDelta = TimeDelta::hours(1);
/// For how long it is remembered that a share is done.
const REMEMBERED: TimeDelta = TimeDelta::days(30);

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
    /// For how long a share must have shown no sign of life before it is taken over.
    pub patience: Duration,
}

impl SharedWork {
    /// With times that suit work of minutes or hours.
    pub fn new(task: Task, name: impl Into<String>) -> Self {
        Self {
            task,
            name: name.into(),
            execution: None,
            look_every: Duration::from_secs(5),
            // Three signs of life that did not come.
            patience: Duration::from_secs(100),
        }
    }
}

/// What the record of a share says of the others. All of it must be the same for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agreed {
    pub(crate) count: u32,
    pub(crate) execution: Option<String>,
    /// By the option's name, or another word for a person.
    pub(crate) options: BTreeMap<String, String>,
}

impl Agreed {
    pub(crate) fn new(shared: &SharedWork, options: BTreeMap<String, String>) -> Self {
        Self {
            count: shared.task.count(),
            execution: shared.execution.clone(),
            options,
        }
    }
}

/// Work that can be shared.
pub(crate) trait ShareableWork: Work {
    /// What the tasks have agreed upon; `None` in the record of what one process does alone.
    fn agreed(plan: &Self::Plan) -> Option<&Agreed>;
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
    /// This task's own share was done before: what the record says of it is to be told again.
    WasDone(Task, Record<W>),
    /// Nothing, for now: others are at work.
    Wait,
    /// All is done.
    Finished,
}

/// The shares of a work, as one task sees them.
#[derive(Debug)]
pub(crate) struct Shares<'a, W: Work> {
    records: &'a Records<W>,
    shared: &'a SharedWork,
    agreed: Agreed,
    /// What was last seen of each, and since when.
    seen: HashMap<u32, (Sign, Instant)>,
    /// Those whose plans are known to agree.
    agreeing: BTreeSet<u32>,
    is_first_look: bool,
    has_told: bool,
}

/// What changes as long as somebody works on a share.
type Sign = Option<(u64, super::CheckpointNumber, chrono::DateTime<chrono::Utc>)>;

impl<'a, W: ShareableWork> Shares<'a, W> {
    pub(crate) fn new(records: &'a Records<W>, shared: &'a SharedWork, agreed: Agreed) -> Self {
        Self {
            records,
            shared,
            agreed,
            seen: HashMap::new(),
            agreeing: BTreeSet::new(),
            is_first_look: true,
            has_told: false,
        }
    }

    fn id(&self, index: u32) -> SessionId {
        let name = format!("{index}/{}", self.shared.name);
        let hash = blake3::hash(name.as_bytes());
        let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        SessionId::from_u64(u64::from_be_bytes(first))
    }

    /// This task's own, and then those of the others, the next one's first: so several that are idle begin with different ones.
    fn order(&self) -> impl Iterator<Item = u32> + use<W> {
        let (own, count) = (self.shared.task.index(), self.shared.task.count());
        (own..count).chain(0..own)
    }

    /// What to do now.
    ///
    /// # Errors
    /// When the tasks do not agree upon what they do, or the records cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Next<W>, SharesError> {
        self.next_at(Instant::now()).await
    }

    async fn next_at(&mut self, now: Instant) -> Result<Next<W>, SharesError> {
        let listing = self.records.list().await?;
        let is_first_look = std::mem::take(&mut self.is_first_look);
        if is_first_look {
            self.forget_old(&listing).await;
        }
        let mut undone = 0;
        let mut chosen = None;
        for index in self.order() {
            let id = self.id(index);
            let listed = listing.get(&id).filter(|listed| listed.has_plan);
            self.check_agreement(index, id, listed).await?;
            if let Some(listed) = listed.filter(|listed| listed.is_done) {
                if is_first_look && index == self.shared.task.index() {
                    let record = self.records.read(id, *listed).await?;
                    return Ok(Next::WasDone(self.shared.task, record));
                }
                continue;
            }
            undone += 1;
            let sign = listed.map(|listed| (listed.claim, listed.number, listed.last_sign));
            let (seen, since) = self.seen.entry(index).or_insert((sign, now));
            if *seen != sign {
                (*seen, *since) = (sign, now);
            }
            // An earlier process of this very task is gone.
            let is_left = is_first_look && index == self.shared.task.index()
                || now.duration_since(*since) >= self.shared.patience;
            if is_left && chosen.is_none() {
                chosen = Some((index, id, listed.copied()));
            }
        }
        let Some((index, id, listed)) = chosen else {
            return Ok(self.nothing_to_do(undone));
        };
        let task = Task::new(index, self.shared.task.count()).unwrap_or(self.shared.task);
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
            tracing::info!(
                "nobody works on what is the share of {task} of `{}`: taking it over",
                self.shared.name
            );
        }
        self.has_told = false;
        Ok(next)
    }

    fn nothing_to_do(&mut self, undone: usize) -> Next<W> {
        if undone == 0 {
            return Next::Finished;
        }
        if !std::mem::replace(&mut self.has_told, true) {
            tracing::info!(
                "waiting for the tasks that work on {undone} of the {} shares of `{}`",
                self.shared.task.count(),
                self.shared.name
            );
        }
        Next::Wait
    }

    /// Waits until it is time for the next look, or somebody asks to stop: then it is false.
    pub(crate) async fn wait(&self, stop: &Stop) -> bool {
        tokio::select! {
            biased;
            () = stop.requested() => false,
            () = tokio::time::sleep(self.shared.look_every) => true,
        }
    }

    /// Looks once at the plan of each share.
    async fn check_agreement(
        &mut self,
        index: u32,
        id: SessionId,
        listed: Option<&Listed>,
    ) -> Result<(), SharesError> {
        let Some(listed) = listed.filter(|_| !self.agreeing.contains(&index)) else {
            return Ok(());
        };
        let plan = self.records.read_plan(id).await?;
        let name = || self.shared.name.clone();
        let Some(then) = W::agreed(&plan) else {
            return Err(SharesError::Used { name: name() });
        };
        let now = &self.agreed;
        let is_back = match &now.execution {
            Some(_) => then.execution == now.execution,
            None => then.execution.is_none() && clock::now() - listed.last_sign < COMES_BACK,
        };
        if listed.is_done && !is_back {
            return Err(SharesError::Used { name: name() });
        }
        if then.count != now.count {
            return Err(SharesError::Count {
                name: name(),
                then: then.count,
                task: self.shared.task,
            });
        }
        let differences = differences(&then.options, &now.options);
        if !differences.is_empty() {
            return Err(SharesError::Options {
                name: name(),
                differences: differences.join("; "),
            });
        }
        self.agreeing.insert(index);
        Ok(())
    }

    /// Removes what is remembered of work that was done long ago.
    async fn forget_old(&self, listing: &BTreeMap<SessionId, Listed>) {
        let now = clock::now();
        let old = listing
            .iter()
            .filter(|(_, listed)| listed.is_done && now - listed.last_sign > REMEMBERED);
        for (&id, _) in old {
            if let Err(error) = self.records.remove(id).await {
                tracing::debug!("the record of {} {id} stays: {error}", W::NAME);
            }
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
    use crate::store::Store;

    #[derive(Debug)]
    enum Digging {}

    impl Work for Digging {
        const FOLDER: &'static str = "digs";
        const NAME: &'static str = "dig";
        type Plan = Agreed;
        type Checkpoint = u64;

        fn check(_: &Agreed, _: &u64) -> Result<(), &'static str> {
            Ok(())
        }
    }

    impl ShareableWork for Digging {
        fn agreed(plan: &Agreed) -> Option<&Agreed> {
            Some(plan)
        }
    }

    fn shared(index: u32, count: u32) -> SharedWork {
        SharedWork {
            ..SharedWork::new(Task::new(index, count).unwrap(), "garden")
        }
    }

    fn agreed(shared: &SharedWork, depth: &str) -> Agreed {
        let options = [("--depth".to_owned(), depth.to_owned())];
        Agreed::new(shared, options.into())
    }

    fn shares<'a>(records: &'a Records<Digging>, shared: &'a SharedWork) -> Shares<'a, Digging> {
        Shares::new(records, shared, agreed(shared, "5"))
    }

    /// Begins or goes on with what is next at that time, which must be the share of that task.
    async fn take(shares: &mut Shares<'_, Digging>, now: Instant, index: u32) -> Running<Digging> {
        let taken = match shares.next_at(now).await.unwrap() {
            Next::Begin(task, id) if task.index() == index => shares.records.begin(id, &shares.agreed).await,
            Next::Resume(task, record) if task.index() == index => shares.records.resume(&record).await,
            other => panic!("{other:?}"),
        };
        taken.unwrap().unwrap()
    }

    async fn waits(shares: &mut Shares<'_, Digging>, now: Instant) -> bool {
        matches!(shares.next_at(now).await.unwrap(), Next::Wait)
    }

    #[tokio::test]
    async fn what_shows_no_sign_of_life_is_taken_over_and_nothing_else() {
        let records = Records::new(Store::memory());
        let (of_first, of_second) = (shared(0, 3), shared(1, 3));
        let (mut first, mut second) = (shares(&records, &of_first), shares(&records, &of_second));
        let mut now = Instant::now();
        let mut own = take(&mut first, now, 0).await;
        let mut slow = take(&mut second, now, 1).await;
        assert!(own.checkpoint(&1).await.unwrap());
        own.mark_done().await.unwrap();
        // The third share nobody begins; the second is at work.
        let moment = of_first.patience / 4;
        for depth in 0..3 {
            now += moment;
            assert!(slow.checkpoint(&depth).await.unwrap());
            assert!(waits(&mut first, now).await);
        }
        now += moment;
        let third = take(&mut first, now, 2).await;
        third.mark_done().await.unwrap();
        assert!(waits(&mut first, now).await);
        // Now that one falls silent.
        now += of_first.patience;
        let mut taken = take(&mut first, now, 1).await;
        assert!(!slow.checkpoint(&7).await.unwrap(), "two work on one share");
        assert!(waits(&mut second, now).await);
        assert!(taken.checkpoint(&9).await.unwrap());
        taken.mark_done().await.unwrap();
        assert!(matches!(first.next_at(now).await.unwrap(), Next::Finished));
        assert!(matches!(second.next_at(now).await.unwrap(), Next::Finished));
        // One that is started again is told what came of its share.
        let mut again = shares(&records, &of_second);
        let Next::WasDone(task, record) = again.next_at(now).await.unwrap() else {
            panic!("it was done");
        };
        assert_eq!((task.index(), record.checkpoint), (1, Some(9)));
        assert!(matches!(again.next_at(now).await.unwrap(), Next::Finished));
    }

    #[tokio::test]
    async fn a_task_goes_on_at_once_with_what_an_earlier_process_of_it_has_left() {
        let records = Records::new(Store::memory());
        let of_task = shared(1, 2);
        let mut gone = take(&mut shares(&records, &of_task), Instant::now(), 1).await;
        assert!(gone.checkpoint(&3).await.unwrap());
        let mut again = shares(&records, &of_task);
        let Next::Resume(_, record) = again.next().await.unwrap() else {
            panic!("it was begun");
        };
        assert_eq!(record.checkpoint, Some(3));
        assert!(records.resume(&record).await.unwrap().is_some());
        assert!(records.resume(&record).await.unwrap().is_none(), "claimed twice");
        assert!(!gone.checkpoint(&4).await.unwrap());
    }

    #[tokio::test]
    async fn tasks_that_do_not_agree_are_told_so() {
        let records = Records::new(Store::memory());
        let of_first = shared(0, 2);
        let own = take(&mut shares(&records, &of_first), Instant::now(), 0).await;
        let of_many = shared(2, 3);
        let refused = shares(&records, &of_many).next().await.unwrap_err().to_string();
        assert!(
            refused.contains("shared by 2 tasks") && refused.contains("task 2 of 3"),
            "{refused}"
        );
        let of_second = shared(1, 2);
        let mut deeper = Shares::<Digging>::new(&records, &of_second, agreed(&of_second, "6"));
        let refused = deeper.next().await.unwrap_err().to_string();
        assert!(refused.contains("--depth was `5` and is `6`"), "{refused}");
        // Of another time, they go on with what is not done, and not with what is.
        let later = SharedWork {
            execution: Some("later".to_owned()),
            ..of_first.clone()
        };
        assert!(shares(&records, &later).next().await.is_ok());
        own.mark_done().await.unwrap();
        let refused = shares(&records, &later).next().await.unwrap_err();
        assert!(matches!(refused, SharesError::Used { .. }), "{refused}");
        assert!(shares(&records, &of_first).next().await.is_ok());
    }
}
