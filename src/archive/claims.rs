//! Claims: how the tasks of a fleet keep out of each other's way.
//!
//! Nothing that is committed depends on them. Two tasks that read one range are as safe as ever, only the work is done twice; so
//! claims may be wrong, late or lost, and a clock may decide when one counts for nothing. What they are for is that it hardly ever
//! is done twice.
//!
//! - A **claim**, `claims/<range>-<n>`, says which task reads a range. It is created once, so of several that want the same range
//!   one gets it. Who finds that the holder of the last claim is dead claims it with the next number. The holder of a range
//!   that is split holds its first part.
//! - A **request**, `requests/<range>-<worker>`, asks the holder of a range to split it: only who reads it knows where it is.
//!   Idle tasks ask, and look for parts that nobody holds.
//! - `reads/<worker>-<n>` says how many reads a worker was billed for so far, so that whoever commits can say it of all.
//!
//! A worker is a process; a task that is started again is another worker of the same task, and takes what that one held.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::checkpoint::UnfinishedRange;
use super::envelope::{self, MAX_JSON_LEN};
use super::error::{ArchiveError, Result};
use super::ids::SessionId;
use super::session::{Session, SessionShared};
use super::stage::{Leaf, Stage};
use crate::store::StoreError;

/// Claims that are read at the same time.
const READS: usize = 16;

/// Who reads a range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Claim {
    worker: SessionId,
    task: u32,
}

/// When a claim counts for nothing, by the store's times.
#[derive(Clone, Copy, Debug)]
pub struct ClaimPatience {
    /// So long after the last sign of life of its worker.
    pub worker: Duration,
    /// So long after the last sign of progress in its range.
    pub range: Duration,
}

/// What there is to do in a session, for one of its tasks.
#[derive(Debug, Default)]
pub struct TaskView {
    /// Ranges that nobody reads, in key order.
    pub free: Vec<UnfinishedRange>,
    /// Ranges that other tasks read.
    pub held: Vec<HeldRange>,
    /// Reads that other workers were billed for, as far as they have said.
    pub reads_of_others: u64,
}

impl TaskView {
    /// Whether all is read.
    pub fn is_finished(&self) -> bool {
        self.free.is_empty() && self.held.is_empty()
    }
}

/// A range that another task reads.
#[derive(Clone, Debug)]
pub struct HeldRange {
    name: String,
    /// For how long it has.
    pub held_for: Duration,
    /// Whether this worker has asked for a part of it.
    pub asked: bool,
}

/// What a listing shows of the tasks.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// The number of each range's last claim, and its time.
    claims: HashMap<String, (u64, DateTime<Utc>)>,
    /// The last checkpoint of each range.
    checkpoints: HashMap<String, DateTime<Utc>>,
    workers: HashMap<String, DateTime<Utc>>,
    /// Ranges, and workers that want a part of them.
    requests: HashSet<(String, String)>,
    reads: HashMap<String, u64>,
    newest: DateTime<Utc>,
}

impl Signs {
    /// Takes notice of an object, by its name below the session's folder.
    pub(super) fn take(&mut self, name: &str, at: DateTime<Utc>) {
        self.newest = self.newest.max(at);
        let Some((kind, (of, last))) = name
            .split_once('/')
            .and_then(|(kind, name)| Some((kind, name.rsplit_once('-')?)))
        else {
            return;
        };
        let later = |time: &mut DateTime<Utc>| *time = at.max(*time);
        match kind {
            "claims" => {
                if let Ok(number) = last.parse() {
                    let claim = self.claims.entry(of.to_owned()).or_default();
                    *claim = (number, at).max(*claim);
                }
            }
            "checkpoints" => later(self.checkpoints.entry(of.to_owned()).or_default()),
            "heartbeats" => later(self.workers.entry(of.to_owned()).or_default()),
            "requests" => drop(self.requests.insert((of.to_owned(), last.to_owned()))),
            "reads" => {
                later(self.workers.entry(of.to_owned()).or_default());
                let reads = self.reads.entry(of.to_owned()).or_default();
                *reads = last.parse().unwrap_or(0).max(*reads);
            }
            _ => {}
        }
    }

    /// How often a range was claimed.
    pub(super) fn claims_of(&self, range: &str) -> u64 {
        self.claims.get(range).map_or(0, |(number, _)| *number)
    }
}

/// What other tasks want of the ranges that this worker reads.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: Mutex<HashMap<String, usize>>,
    answered: Mutex<HashSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Claims a range for a task. `false`: another one was faster, or it is done.
    pub async fn claim(&self, range: &UnfinishedRange, task: u32) -> Result<bool> {
        let shared = &self.shared;
        let of_range = shared.range_name(&range.range, range.tail)?;
        let name = shared.claim_name(&of_range, range.claims + 1);
        let worker = shared.worker;
        let claim = envelope::encode("claim", &Claim { worker, task })?;
        match shared.repository.store().put_new(&name, claim).await {
            Ok(()) => Ok(!self.is_done_or_split(range).await?),
            Err(StoreError::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks what there is to do for a task that does nothing at the moment.
    pub async fn view_of_task(&self, task: u32, patience: &ClaimPatience) -> Result<TaskView> {
        let shared = &self.shared;
        let stage = shared.stage().await?;
        let own = shared.worker.to_string();
        let signs = &stage.signs;
        let now = shared.store_now(signs.newest);
        let mut view = TaskView {
            reads_of_others: signs
                .reads
                .iter()
                .filter(|(worker, _)| **worker != own)
                .map(|(_, reads)| reads)
                .sum(),
            ..TaskView::default()
        };
        let unfinished = stage.leaves.iter().filter(|leaf| !leaf.finished);
        let holders: Vec<_> = unfinished
            .map(|leaf| {
                let stage = &stage;
                async move {
                    let since = shared.held_since(stage, leaf, (task, now), patience).await?;
                    Ok::<_, ArchiveError>((leaf, since))
                }
            })
            .collect();
        let mut holders = futures::stream::iter(holders).buffered(READS);
        let mut free = Vec::new();
        while let Some(found) = holders.next().await {
            let (leaf, since) = found?;
            match since {
                None => free.push(shared.unfinished(&stage, leaf)),
                Some(since) => view.held.push(HeldRange {
                    held_for: (now - since).to_std().unwrap_or_default(),
                    asked: signs.requests.contains(&(leaf.name.clone(), own.clone())),
                    name: leaf.name.clone(),
                }),
            }
        }
        drop(holders);
        view.free = futures::stream::iter(free).buffered(READS).try_collect().await?;
        Ok(view)
    }

    /// Asks for a part of a range that another task reads.
    pub async fn request_part(&self, range: &HeldRange) -> Result<()> {
        let shared = &self.shared;
        let name = format!(
            "{}/requests/{}-{}",
            shared.id().folder(),
            range.name,
            shared.worker
        );
        self.put_mark(&name).await
    }

    /// Looks which of the ranges that are read other tasks want parts of.
    pub async fn look_for_requests(&self) -> Result<()> {
        let shared = &self.shared;
        let folder = format!("{}/requests/", shared.id().folder());
        let own = shared.worker.to_string();
        let mut requests: HashMap<String, usize> = HashMap::new();
        let mut objects = shared.repository.store().list(folder.trim_end_matches('/'));
        while let Some(object) = objects.try_next().await? {
            let request = object.name.strip_prefix(&folder);
            if let Some((range, worker)) = request.and_then(|request| request.rsplit_once('-'))
                && worker != own
            {
                *requests.entry(range.to_owned()).or_default() += 1;
            }
        }
        let answered = lock(&shared.requests.answered);
        requests.retain(|range, _| !answered.contains(range));
        *lock(&shared.requests.open) = requests;
        Ok(())
    }

    /// How many other tasks want a part of a range, as far as that was looked for; told once of each range.
    pub fn take_request(&self, range: &UnfinishedRange) -> Result<Option<usize>> {
        let shared = &self.shared;
        if lock(&shared.requests.open).is_empty() {
            return Ok(None);
        }
        let name = shared.range_name(&range.range, range.tail)?;
        let wanted = lock(&shared.requests.open).remove(&name);
        if wanted.is_some() {
            lock(&shared.requests.answered).insert(name);
        }
        Ok(wanted)
    }

    /// Says how many reads this worker was billed for so far.
    pub async fn note_reads(&self, reads: u64) -> Result<()> {
        let shared = &self.shared;
        let name = format!("{}/reads/{}-{reads}", shared.id().folder(), shared.worker);
        self.put_mark(&name).await
    }

    async fn put_mark(&self, name: &str) -> Result<()> {
        let mark = bytes::Bytes::from_static(b"{}\n");
        match self.shared.repository.store().put_new(name, mark).await {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl SessionShared {
    fn claim_name(&self, range: &str, number: u64) -> String {
        format!("{}/claims/{range}-{number}", self.id().folder())
    }

    /// The store's time, as far as it can be told without a request: that of the newest object, and what has passed since that
    /// was seen.
    fn store_now(&self, newest: DateTime<Utc>) -> DateTime<Utc> {
        let mut seen = lock(&self.newest);
        let (then, at) = match *seen {
            Some((then, at)) if then >= newest => (then, at),
            _ => *seen.insert((newest, Instant::now())),
        };
        then + TimeDelta::from_std(at.elapsed()).unwrap_or_default()
    }

    /// Since when another task reads a range; `None` when none does, or none that shows that it does.
    async fn held_since(
        &self,
        stage: &Stage,
        leaf: &Leaf,
        (task, now): (u32, DateTime<Utc>),
        patience: &ClaimPatience,
    ) -> Result<Option<DateTime<Utc>>> {
        let signs = &stage.signs;
        let mut names = std::iter::once(&leaf.name).chain(&leaf.ancestors);
        let claimed = names.find_map(|name| Some((name, signs.claims.get(name)?)));
        let Some((name, &(number, since))) = claimed else {
            return Ok(None);
        };
        let claim = self.read_claim(&self.claim_name(name, number)).await?;
        if claim.task == task {
            return Ok(None);
        }
        let worker = signs.workers.get(&claim.worker.to_string());
        let life = worker.map_or(since, |&sign| sign.max(since));
        let own = std::iter::once(&leaf.name).chain(&leaf.ancestors);
        let progress = own.filter_map(|name| signs.checkpoints.get(name)).max();
        let progress = progress.map_or(since, |&sign| sign.max(since));
        let is_within = |sign: DateTime<Utc>, patience| (now - sign).to_std().unwrap_or_default() < patience;
        let holds = is_within(life, patience.worker) && is_within(progress, patience.range);
        Ok(holds.then_some(since))
    }

    async fn read_claim(&self, name: &str) -> Result<Claim> {
        let known = lock(&self.claims).get(name).copied();
        if let Some((worker, task)) = known {
            return Ok(Claim { worker, task });
        }
        let bytes = self.repository.store().get_at_most(name, MAX_JSON_LEN).await?;
        let claim: Claim = envelope::decode(name, "claim", &bytes)?;
        lock(&self.claims).insert(name.to_owned(), (claim.worker, claim.task));
        Ok(claim)
    }
}
