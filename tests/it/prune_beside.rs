//! Backups, compactions, readers with leases and prunes side by side, over a store that is slow and lists as buckets may: whatever
//! the order of things, nothing is lost that a committed snapshot or a standing lease needs. Backups are of everything or layers
//! upon others, by one worker or by two.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firebank::archive::*;
use firebank::compact::{CompactOptions, compact};
use firebank::document::KeyRange;
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::archive_support::*;
use crate::strange_store::{Habits, StrangeStore};

/// Documents as every snapshot that was committed took them.
type Taken = Arc<Mutex<HashMap<SnapshotId, Docs>>>;

const ROUNDS: usize = 6;

#[derive(Debug, Default)]
struct Tally {
    committed: usize,
    given_up: usize,
    read: usize,
    forgotten: usize,
    deleted: u64,
    /// Snapshots of more than one layer that were committed, some with tombstones.
    layered: usize,
    merged: usize,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.committed += other.committed;
        self.given_up += other.given_up;
        self.read += other.read;
        self.forgotten += other.forgotten;
        self.deleted += other.deleted;
        self.layered += other.layered;
        self.merged += other.merged;
    }
}

/// What a snapshot must hold: what it took, or what the one took that it stands in for.
fn docs_of(taken: &Taken, snapshot: &Snapshot) -> Docs {
    let mut taken = taken.lock().unwrap();
    let of = snapshot.replaces.unwrap_or(snapshot.id);
    let docs = taken
        .get(&snapshot.id)
        .or_else(|| taken.get(&of))
        .unwrap()
        .clone();
    taken.insert(snapshot.id, docs.clone());
    docs
}

/// A database that changes a little at a time, so that snapshots share most chunks.
fn some_docs(random: &mut StdRng) -> Docs {
    let mut docs = sample(60);
    for _ in 0..random.random_range(0..3) {
        let place = random.random_range(0..docs.len());
        let key = docs.keys().nth(place).unwrap().clone();
        docs.insert(key, doc(random.random_range(0..4), 150));
    }
    docs
}

/// The next day: some documents are others, some are gone.
fn a_day_later(random: &mut StdRng, mut docs: Docs) -> Docs {
    for _ in 0..random.random_range(0..4) {
        let place = random.random_range(0..docs.len());
        let key = docs.keys().nth(place).unwrap().clone();
        match random.random_bool(0.4) {
            true => drop(docs.remove(&key)),
            false => drop(docs.insert(key, doc(random.random_range(0..40), 150))),
        }
    }
    docs
}

async fn writer(repository: Repository, taken: Taken, seed: u64) -> Tally {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let standing = repository.snapshots().await.unwrap();
        assert!(standing.unreadable.is_empty(), "{:?}", standing.unreadable);
        let parent = match random.random_bool(0.5) {
            true => standing.snapshots.first().cloned(),
            false => None,
        };
        let before = parent.as_ref().map(|parent| docs_of(&taken, parent));
        let docs = match &before {
            Some(docs) => a_day_later(&mut random, docs.clone()),
            None => some_docs(&mut random),
        };
        let pins: Vec<SnapshotId> = standing
            .snapshots
            .iter()
            .map(|snapshot| snapshot.id)
            .filter(|_| random.random_bool(0.6))
            .take(2)
            .collect();
        let id = SessionId::random();
        let plan = Plan {
            parent: parent.as_ref().map(|parent| parent.id),
            ..plan(&[key("products/p00020")], (seed * 100 + round as u64) as i64)
        };
        let options = SessionOptions {
            id: Some(id),
            pins: match parent {
                Some(_) => Vec::new(),
                None => pins,
            },
            ..SessionOptions::new(plan)
        };
        let night = Night {
            parent,
            before: before.unwrap_or_default(),
            docs: docs.clone(),
        };
        // Documented before it is committed: whoever sees the snapshot finds what it must be.
        taken.lock().unwrap().insert(id, docs.clone());
        match back_up_or_die(&repository, options, &night, &mut random).await {
            Ok(Some(snapshot)) => {
                tally.committed += 1;
                tally.layered += usize::from(snapshot.runs.len() > 1);
            }
            Ok(None) => tally.given_up += 1,
            Err(
                ArchiveError::PinGone { .. } | ArchiveError::Aborted { .. } | ArchiveError::Incomplete { .. },
            ) => tally.given_up += 1,
            // A session that was aborted while it began or worked finds its own objects swept.
            Err(error) => {
                let decision = repository.decision(id).await.unwrap();
                assert!(matches!(decision, Some(Decision::Aborted(_))), "{error}");
                tally.given_up += 1;
            }
        }
    }
    tally
}

/// What is backed up, and upon what.
struct Night {
    parent: Option<Snapshot>,
    before: Docs,
    docs: Docs,
}

/// The snapshot, if it came to its end: now and then a process dies. Some sessions have two.
async fn back_up_or_die(
    repository: &Repository,
    options: SessionOptions,
    night: &Night,
    random: &mut StdRng,
) -> Result<Option<Snapshot>> {
    let session = Session::begin(repository, options).await?;
    let mut other_random = StdRng::seed_from_u64(random.random());
    if random.random_bool(0.5) {
        return work_or_die(&session, night, random).await;
    }
    let joined = async {
        let other = Session::join(repository, session.id(), 1 << 20).await?;
        work_or_die(&other, night, &mut other_random).await
    };
    let (one, other) = tokio::join!(work_or_die(&session, night, random), joined);
    match (one, other) {
        (Ok(Some(one)), Ok(Some(other))) => {
            assert_eq!(one, other, "one session has two snapshots");
            Ok(Some(one))
        }
        // One that comes late, or dies, takes nothing from the other.
        (Ok(Some(one)), _) | (_, Ok(Some(one))) => Ok(Some(one)),
        (Err(error), _) | (_, Err(error)) => Err(error),
        (Ok(None), Ok(None)) => Ok(None),
    }
}

async fn work_or_die(session: &Session, night: &Night, random: &mut StdRng) -> Result<Option<Snapshot>> {
    for range in session.unfinished_ranges().await? {
        if random.random_bool(0.07) {
            return Ok(None);
        }
        match night.parent {
            Some(_) => write_changes(session, range, night, random).await?,
            None => write_all(session, range, &night.docs).await?,
        }
    }
    let draft = SnapshotDraft {
        parent: night.parent.clone(),
        ..SnapshotDraft::default()
    };
    Ok(Some(session.commit(draft).await?))
}

async fn write_all(session: &Session, range: UnfinishedRange, docs: &Docs) -> Result<()> {
    let mut writer = session.resume_range_writer(range);
    for (key, doc) in docs {
        if !writer.reads().contains(key) {
            continue;
        }
        let document = firebank::document::DocumentRef {
            key,
            create_time: doc.create_time,
            update_time: doc.update_time,
            body: &doc.body,
        };
        if writer.push(document).await? == Flow::Done {
            break;
        }
    }
    writer.finish().await.map(drop)
}

async fn write_changes(
    session: &Session,
    range: UnfinishedRange,
    night: &Night,
    random: &mut StdRng,
) -> Result<()> {
    let all = differences(&night.before, &night.docs, &range.range);
    let after = range.covered().map(|(key, _)| key.as_bytes().to_vec());
    let mut writer = session.resume_layer_writer(range).await?;
    for (key, before, now) in all {
        if after.as_ref().is_some_and(|after| key <= after) {
            continue;
        }
        compare_one(&mut writer, key, before, now).await?;
        if random.random_bool(0.03) {
            let cursor = firebank::document::DocumentKey::from_bytes(key.clone());
            writer.write_checkpoint(cursor).await?;
        }
    }
    writer.finish().await.map(drop)
}

/// Merges layers of whatever has some.
async fn compactor(repository: Repository, taken: Taken, seed: u64, impatient: bool) -> Tally {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    for _ in 0..ROUNDS * 2 {
        let mut standing = repository.snapshots().await.unwrap().snapshots;
        standing.retain(|snapshot| snapshot.runs.len() > 1);
        if standing.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let snapshot = standing.swap_remove(random.random_range(0..standing.len()));
        docs_of(&taken, &snapshot);
        let options = CompactOptions {
            all: true,
            parallel: 2,
        };
        match compact(&repository, &snapshot, &options).await {
            Ok(Some(merged)) => {
                assert_eq!((merged.replaces, merged.runs.len()), (Some(snapshot.id), 1));
                tally.merged += 1;
            }
            Ok(None) => panic!("it has layers"),
            Err(error) => {
                // Its session may be taken for dead, and swept while it works.
                let error = repository.explain(snapshot.id, error).await;
                let is_fair = matches!(
                    error,
                    ArchiveError::PinGone { .. } | ArchiveError::Forgotten { .. }
                );
                assert!(is_fair || impatient, "{error}");
                tally.given_up += 1;
            }
        }
    }
    tally
}

/// Reads snapshots, some of them just given up, and never finds anything wrong.
async fn reader(repository: Repository, taken: Taken, seed: u64, leases_expire: bool) -> Tally {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    for _ in 0..ROUNDS * 2 {
        let standing = repository.snapshots().await.unwrap().snapshots;
        if standing.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let snapshot = standing[random.random_range(0..standing.len())].clone();
        let lease = Lease::take(&repository, &[snapshot.id], "test").await.unwrap();
        if lease.fallen().is_empty() {
            // Time for others to forget the snapshot and to sweep.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
            match read(&repository, &snapshot, KeyRange::all()).await {
                Ok(docs) => {
                    assert!(docs == docs_of(&taken, &snapshot));
                    tally.read += 1;
                }
                Err(error) => {
                    assert!(leases_expire, "a standing lease did not hold: {error}");
                    let error = repository.explain(snapshot.id, error).await;
                    assert!(matches!(error, ArchiveError::Forgotten { .. }), "{error}");
                }
            }
        }
        lease.release().await;
    }
    tally
}

/// Forgets something now and then, and sweeps. With `impatient`, takes everything under way for dead at times.
async fn pruner(repository: Repository, seed: u64, impatient: bool) -> Tally {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    for _ in 0..ROUNDS * 2 {
        let standing = repository.snapshots().await.unwrap().snapshots;
        for snapshot in standing.iter().skip(1) {
            if random.random_bool(0.2) {
                repository.forget(snapshot.id, "test").await.unwrap();
                tally.forgotten += 1;
            }
        }
        let options = match impatient && random.random_bool(0.4) {
            true => SweepOptions {
                expiry: Duration::ZERO,
                ..SweepOptions::default()
            },
            false => SweepOptions::default(),
        };
        tally.deleted += sweep(&repository, &options).await.unwrap().deleted_objects;
    }
    tally
}

async fn side_by_side(seed: u64, impatient: bool) -> Tally {
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), tiny()).await;
    objects.habits(Habits {
        delay: Some(Duration::from_millis(3)),
        ..Habits::default()
    });
    let taken = Taken::default();
    let mut running = tokio::task::JoinSet::new();
    for actor in 0..3 {
        running.spawn(writer(repository.clone(), Arc::clone(&taken), seed * 10 + actor));
        running.spawn(pruner(repository.clone(), seed * 10 + 3 + actor, impatient));
    }
    for actor in 0..2 {
        running.spawn(reader(
            repository.clone(),
            Arc::clone(&taken),
            seed * 10 + 6 + actor,
            impatient,
        ));
    }
    running.spawn(compactor(
        repository.clone(),
        Arc::clone(&taken),
        seed * 10 + 8,
        impatient,
    ));
    let mut all = Tally::default();
    while let Some(tally) = running.join_next().await {
        all.add(&tally.unwrap());
    }
    objects.habits(Habits::default());
    // Everything that stands is whole; and when all that was under way is given up, nothing else is left.
    let last = SweepOptions {
        expiry: Duration::ZERO,
        ..SweepOptions::default()
    };
    for _ in 0..2 {
        sweep(&repository, &last).await.unwrap();
        let mut needed = Vec::new();
        for snapshot in repository.snapshots().await.unwrap().snapshots {
            let docs = read(&repository, &snapshot, KeyRange::all()).await.unwrap();
            assert!(docs == docs_of(&taken, &snapshot));
            let reader = repository.reader(&snapshot).await.unwrap();
            needed.extend(reader.object_names().try_collect::<Vec<String>>().await.unwrap());
        }
        needed.sort();
        needed.dedup();
        assert_eq!(object_names(repository.store(), "chunks").await, needed);
    }
    assert!(object_names(repository.store(), "sessions").await.is_empty());
    all
}

/// Rounds until enough of everything has happened: what happens in one is a matter of the machine's speed.
async fn until(first: u64, impatient: bool, enough: impl Fn(&Tally) -> bool) {
    let mut all = Tally::default();
    for round in 0.. {
        if round >= 3 && enough(&all) {
            return;
        }
        assert!(round < 40, "{all:?}");
        all.add(&side_by_side(first + round, impatient).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_beside_patient_prunes() {
    until(0, false, |all| {
        let happens = all.committed > 20 && all.read > 20 && all.deleted > 50;
        happens && all.layered > 5 && all.merged > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_beside_prunes_that_take_everything_for_dead() {
    until(100, true, |all| {
        all.committed > 3 && all.given_up > 3 && all.deleted > 50
    })
    .await;
}
