//! Backups, readers with leases and prunes side by side, over a store that is slow and lists as buckets may: whatever the
//! order of things, nothing is lost that a committed snapshot or a standing lease needs.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firebank::archive::*;
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

async fn writer(repository: Repository, taken: Taken, seed: u64) -> Tally {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let docs = some_docs(&mut random);
        let standing = repository.snapshots().await.unwrap();
        assert!(standing.unreadable.is_empty(), "{:?}", standing.unreadable);
        let pins: Vec<SnapshotId> = standing
            .snapshots
            .iter()
            .map(|snapshot| snapshot.id)
            .filter(|_| random.random_bool(0.6))
            .take(2)
            .collect();
        let options = SessionOptions {
            pins,
            ..SessionOptions::new(plan(
                &[key("products/p00020")],
                (seed * 100 + round as u64) as i64,
            ))
        };
        let id = SessionId::random();
        let options = SessionOptions {
            id: Some(id),
            ..options
        };
        // Documented before it is committed: whoever sees the snapshot finds what it must be.
        taken.lock().unwrap().insert(id, docs.clone());
        match back_up_or_die(&repository, options, &docs, &mut random).await {
            Ok(true) => tally.committed += 1,
            Ok(false) => tally.given_up += 1,
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

/// Whether it came to its end: now and then a process dies.
async fn back_up_or_die(
    repository: &Repository,
    options: SessionOptions,
    docs: &Docs,
    random: &mut StdRng,
) -> Result<bool> {
    let session = Session::begin(repository, options).await?;
    for range in session.plan().ranges.clone() {
        if random.random_bool(0.07) {
            return Ok(false);
        }
        let mut writer = session.range_writer(range);
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
        writer.finish().await?;
    }
    session.commit(SnapshotDraft::default()).await?;
    Ok(true)
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
                    assert_eq!(&docs, taken.lock().unwrap().get(&snapshot.id).unwrap());
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
            if random.random_bool(0.5) {
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
    let mut all = Tally::default();
    while let Some(tally) = running.join_next().await {
        let tally = tally.unwrap();
        all.committed += tally.committed;
        all.given_up += tally.given_up;
        all.read += tally.read;
        all.forgotten += tally.forgotten;
        all.deleted += tally.deleted;
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
            assert_eq!(&docs, taken.lock().unwrap().get(&snapshot.id).unwrap());
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_beside_patient_prunes() {
    let mut all = Tally::default();
    for seed in 0..3 {
        let tally = side_by_side(seed, false).await;
        all.committed += tally.committed;
        all.read += tally.read;
        all.deleted += tally.deleted;
    }
    assert!(all.committed > 20 && all.read > 20 && all.deleted > 50, "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_beside_prunes_that_take_everything_for_dead() {
    let mut all = Tally::default();
    for seed in 10..13 {
        let tally = side_by_side(seed, true).await;
        all.committed += tally.committed;
        all.given_up += tally.given_up;
        all.deleted += tally.deleted;
    }
    assert!(
        all.committed > 3 && all.given_up > 3 && all.deleted > 50,
        "{all:?}"
    );
}
