//! Sweeps and what is under way beside them: sessions that live, were left or slept, whatever the clock says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::time::Duration;

use chrono::TimeDelta;
use firebank::archive::*;
use firebank::document::*;

use crate::archive_support::*;
use crate::strange_store::{Habits, StrangeStore};
use crate::support::pruning::*;

#[tokio::test]
async fn a_session_under_way_keeps_its_pins_and_what_it_wrote() {
    let repository = repository(tiny()).await;
    let nights = nights(&repository, 3).await;
    let options = SessionOptions {
        pins: vec![nights[0].0.id],
        ..SessionOptions::new(plan(&[key("products/p00040")], 9 * 86_400))
    };
    let session = Session::begin(&repository, options).await.unwrap();
    let docs = &nights[0].1;
    feed(session.range_writer(session.plan().ranges[0].clone()), docs).await;
    let stats = clean(&repository, 1, &SweepOptions::default()).await;
    assert_eq!((stats.forgotten, stats.sweep.aborted_sessions), (2, 0));
    feed(session.range_writer(session.plan().ranges[1].clone()), docs).await;
    let snapshot = session.commit(SnapshotDraft::default()).await.unwrap();
    assert!(
        snapshot.stats.chunks_reused > 0 && snapshot.stats.chunks_written == 0,
        "{:?}",
        snapshot.stats
    );
    clean(&repository, 2, &SweepOptions::default()).await;
    assert_eq!(
        &read(&repository, &snapshot, KeyRange::all()).await.unwrap(),
        docs
    );
    intact(&repository).await;

    // Who begins after the marker is there does not begin.
    let options = SessionOptions {
        pins: vec![nights[0].0.id],
        ..SessionOptions::new(plan(&[], 10 * 86_400))
    };
    let error = Session::begin(&repository, options).await.unwrap_err();
    assert!(matches!(error, ArchiveError::PinGone { .. }), "{error}");
}

/// The same for a backup: what it left is gone after the next prune once its session has expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopped_backup_left_is_swept_once_it_expired() {
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), tiny()).await;
    let nights = nights(&repository, 2).await;
    clean(&repository, 9, &at_once()).await;
    let before = object_names(repository.store(), "").await;
    let mut docs = sample(40);
    docs.values_mut().for_each(|one| *one = doc(3, 200));
    for stop in 1..200 {
        let stopped = objects.fork();
        let repository = Repository::open(stopped.store()).await.unwrap();
        stopped.habits(Habits {
            stops_at: Some(stop),
            ..Habits::default()
        });
        let backup = async {
            let options = SessionOptions {
                pins: vec![nights[1].0.id],
                ..SessionOptions::new(plan(&[key("products/p00012")], 86_400))
            };
            let session = Session::begin(&repository, options).await?;
            for range in session.plan().ranges.clone() {
                try_feed(session.range_writer(range), &docs).await?;
            }
            session.commit(SnapshotDraft::default()).await
        };
        let result = backup.await;
        stopped.habits(Habits::default());
        if result.is_ok() {
            assert!(stop > 15, "{stop}");
            return;
        }
        // Not yet: it may live.
        let stats = clean(&repository, 9, &SweepOptions::default()).await;
        assert_eq!(stats.sweep.aborted_sessions, 0);
        clean(&repository, 9, &at_once()).await;
        let mut left = object_names(repository.store(), "").await;
        left.retain(|name| !before.contains(name));
        let only_record = left.iter().all(|name| name.starts_with("snapshots/")) && left.len() <= 1;
        assert!(only_record, "stopped at {stop}: {left:?}");
        assert_eq!(all_restore(&repository, &nights).await, 2);
        intact(&repository).await;
    }
    panic!("the backup never came to its end");
}

/// A store whose clock is wrong by a day is compared with itself, and this machine's does not matter.
#[tokio::test]
async fn a_clock_that_is_wrong_by_a_day_gives_nothing_up() {
    for ahead in [TimeDelta::days(2), TimeDelta::days(-2)] {
        let objects = StrangeStore::new();
        objects.habits(Habits {
            ahead,
            ..Habits::default()
        });
        let repository = repository_in(objects.store(), tiny()).await;
        let nights = nights(&repository, 3).await;
        let session = abandoned(&repository, vec![nights[0].0.id], 5000).await;
        let lease = Lease::take(&repository, &[nights[1].0.id], "test").await.unwrap();
        let before = stored(&repository).await;
        let stats = clean(&repository, 1, &SweepOptions::default()).await;
        assert_eq!(
            (
                stats.forgotten,
                stats.sweep.aborted_sessions,
                stats.sweep.expired_leases
            ),
            (2, 0, 0)
        );
        assert_eq!(
            stats.sweep.deleted_objects, 0,
            "all three are held, by a session, a lease and the rules"
        );
        assert_eq!(stored(&repository).await, before);
        assert_eq!(repository.decision(session).await.unwrap(), None);
        for (snapshot, docs) in &nights {
            assert_eq!(&read(&repository, snapshot, KeyRange::all()).await.unwrap(), docs);
        }
        lease.release().await;
    }
}

/// The clock jumps by two days while a session and a reader live: they are given up, which may happen at any time, and
/// what is committed stays.
#[tokio::test]
async fn a_clock_that_jumps_by_days_costs_only_what_is_under_way() {
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), tiny()).await;
    let nights = nights(&repository, 3).await;
    let options = SessionOptions {
        pins: vec![nights[2].0.id],
        ..SessionOptions::new(plan(&[], 9 * 86_400))
    };
    let session = Session::begin(&repository, options).await.unwrap();
    feed(
        session.range_writer(session.plan().ranges[0].clone()),
        &sample(50),
    )
    .await;
    let reader = repository.reader(&nights[0].0).await.unwrap();
    let lease = Lease::of(&reader, "test").await.unwrap();
    let now = SweepOptions {
        // The jump of the clock, seen from the objects that were there before it.
        expiry: Duration::ZERO,
        ..SweepOptions::default()
    };
    let stats = clean(&repository, 2, &now).await;
    assert_eq!((stats.sweep.aborted_sessions, stats.sweep.expired_leases), (1, 1));
    let error = session.commit(SnapshotDraft::default()).await.unwrap_err();
    assert!(
        matches!(
            error,
            ArchiveError::Aborted { .. } | ArchiveError::Incomplete { .. }
        ),
        "{error}"
    );
    // The reader of a forgotten snapshot is told so, and not that the archive is damaged.
    let error = read(&repository, &nights[0].0, KeyRange::all())
        .await
        .unwrap_err();
    let error = repository.explain(nights[0].0.id, error).await;
    assert!(matches!(error, ArchiveError::Forgotten { .. }), "{error}");
    assert_eq!(all_restore(&repository, &nights).await, 2);
    intact(&repository).await;
    lease.release().await;
}

/// A worker that slept past the end of all records does not find its name free.
#[tokio::test]
async fn a_worker_that_slept_for_months_does_not_commit() {
    let repository = repository(tiny()).await;
    let session = Session::begin(&repository, SessionOptions::new(plan(&[], 0)))
        .await
        .unwrap();
    feed(session.range_writer(session.plan().ranges[0].clone()), &sample(0)).await;
    // What the worker has read already when it falls asleep, right before it commits.
    let store = repository.store();
    let checkpoints = object_names(store, &format!("{}/checkpoints", session.id().folder())).await;
    let checkpoint = store.get(&checkpoints[0]).await.unwrap();
    let everything = SweepOptions {
        expiry: Duration::ZERO,
        keep_records: Duration::ZERO,
    };
    for _ in 0..3 {
        sweep(&repository, &everything).await.unwrap();
    }
    assert!(object_names(repository.store(), "snapshots").await.is_empty());
    store.put_new(&checkpoints[0], checkpoint).await.unwrap();
    let error = session.commit(SnapshotDraft::default()).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Aborted { .. }), "{error}");
    assert!(object_names(repository.store(), "snapshots").await.is_empty());
}

#[tokio::test]
async fn a_resumed_session_shows_at_once_that_it_lives() {
    let repository = repository(tiny()).await;
    let options = SessionOptions {
        id: Some(SessionId::from_u64(9)),
        ..SessionOptions::new(plan(&[], 0))
    };
    drop(Session::begin(&repository, options.clone()).await.unwrap());
    let folder = "sessions/0000000000000009/heartbeats";
    assert!(object_names(repository.store(), folder).await.is_empty());
    let _resumed = Session::begin(&repository, options).await.unwrap();
    for _ in 0..200 {
        if !object_names(repository.store(), folder).await.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("there is no sign of life");
}
