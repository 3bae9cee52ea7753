//! Forgetting and sweeping: what goes, what stays, wherever it is stopped.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::time::Duration;

use firebank::archive::*;
use firebank::document::*;
use firebank::prune::{Choice, Policy, PruneError, PruneFilter, estimate, plan as plan_prune, prune};
use firebank::store::Store;

use crate::archive_support::*;
use crate::strange_store::{Habits, StrangeStore};
use crate::support::pruning::*;

#[tokio::test]
async fn what_nothing_needs_goes_and_everything_else_stays() {
    let repository = repository(tiny()).await;
    let nights = nights(&repository, 6).await;
    let dead = abandoned(&repository, vec![nights[5].0.id], 5000).await;
    let before = stored(&repository).await;

    // A dry run changes nothing and says what would happen.
    let choice = Choice::Policy(Policy::last(2));
    let plan = plan_prune(Some(&repository), None, &choice, &PruneFilter::default())
        .await
        .unwrap();
    let all = object_names(repository.store(), "").await;
    let would = estimate(Some(&repository), &plan, &at_once()).await.unwrap();
    assert_eq!(object_names(repository.store(), "").await, all);

    let stats = prune(Some(&repository), &plan, &at_once()).await.unwrap();
    assert_eq!((stats.forgotten, would.forgotten), (4, 4));
    assert_eq!(
        (would.sweep.deleted_objects, would.sweep.deleted_bytes),
        (stats.sweep.deleted_objects, stats.sweep.deleted_bytes)
    );
    assert!(stats.sweep.deleted_objects > 20, "{:?}", stats.sweep);
    assert_eq!((stats.sweep.aborted_sessions, stats.sweep.snapshots), (1, 2));
    assert_eq!(stats.sweep.finished_sessions, 7);
    let after = stored(&repository).await;
    assert_eq!(before.len() - after.len(), stats.sweep.deleted_objects as usize);
    assert_eq!(after, needed(&repository).await);
    assert_eq!(all_restore(&repository, &nights).await, 2);
    intact(&repository).await;
    assert!(object_names(repository.store(), "sessions").await.is_empty());
    assert!(object_names(repository.store(), "probes").await.is_empty());
    let aborted = repository.decision(dead).await.unwrap();
    assert!(
        matches!(aborted, Some(Decision::Aborted(_))),
        "the record of an aborted session stays"
    );

    let again = clean(&repository, 2, &at_once()).await;
    assert_eq!(
        (
            again.forgotten,
            again.sweep.deleted_objects,
            again.sweep.aborted_sessions
        ),
        (0, 0, 0)
    );
    // Chunks of what was swept are not reused by name, and the next backup works.
    let options = SessionOptions {
        pins: vec![nights[5].0.id],
        ..SessionOptions::new(crate::archive_support::plan(&[], 9 * 86_400))
    };
    let next = back_up(&repository, options, &nights[1].1).await;
    assert_eq!(
        read(&repository, &next, KeyRange::all()).await.unwrap(),
        nights[1].1
    );
}

/// Stopped at every request in turn: what is committed is whole, the next one succeeds, and nothing is left of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_may_stop_anywhere() {
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), tiny()).await;
    let nights = nights(&repository, 5).await;
    abandoned(&repository, vec![nights[4].0.id], 5000).await;
    abandoned(&repository, vec![nights[0].0.id], 7000).await;
    let open =
        async |objects: &std::sync::Arc<StrangeStore>| Repository::open(objects.store()).await.unwrap();

    let undisturbed = objects.fork();
    let repository = open(&undisturbed).await;
    undisturbed.habits(Habits::default());
    clean(&repository, 2, &at_once()).await;
    let requests = undisturbed.requests();
    let expected = object_names(repository.store(), "").await;
    assert!(requests > 60, "{requests}");

    for stop in 1..=requests {
        let stopped = objects.fork();
        let repository = open(&stopped).await;
        stopped.habits(Habits {
            stops_at: Some(stop),
            ..Habits::default()
        });
        let result = try_clean(&repository, 2, &at_once()).await;
        stopped.habits(Habits::default());
        assert!(
            result.is_err(),
            "stopped at {stop} of {requests}, and nobody said so"
        );
        intact(&repository).await;
        let left = all_restore(&repository, &nights).await;
        assert!((2..=5).contains(&left), "{left}");
        clean(&repository, 2, &at_once()).await;
        assert_eq!(all_restore(&repository, &nights).await, 2);
        assert_eq!(
            object_names(repository.store(), "").await,
            expected,
            "stopped at {stop}"
        );
        assert_eq!(stored(&repository).await, needed(&repository).await);
    }
}

#[tokio::test]
async fn a_store_that_refuses_to_delete_is_named_with_the_object() {
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), tiny()).await;
    let nights = nights(&repository, 4).await;
    objects.habits(Habits {
        no_delete: Some("chunks/".to_owned()),
        ..Habits::default()
    });
    let error = try_clean(&repository, 1, &at_once()).await.unwrap_err();
    let PruneError::Archive(ArchiveError::NotDeleted { refused, first, .. }) = &error else {
        panic!("{error}");
    };
    assert!(*refused > 5 && first.starts_with("chunks/"), "{error}");
    assert!(
        error.to_string().contains(first.as_str()) && error.to_string().contains("403"),
        "{error}"
    );
    assert_eq!(all_restore(&repository, &nights).await, 1);
    intact(&repository).await;
    // With the right, the next one does it.
    objects.habits(Habits::default());
    clean(&repository, 1, &at_once()).await;
    assert_eq!(stored(&repository).await, needed(&repository).await);
}

#[tokio::test]
async fn damage_stops_a_sweep_before_it_deletes() {
    let objects = StrangeStore::new();
    let base = repository_in(objects.store(), tiny()).await;
    let nights = nights(&base, 3).await;
    let session = abandoned(&base, vec![nights[2].0.id], 5000).await;
    base.forget(nights[0].0.id, "test").await.unwrap();
    let lease = Lease::take(&base, &[nights[2].0.id], "test").await.unwrap();
    let leases = object_names(base.store(), "leases").await;
    let directory = {
        use futures::TryStreamExt;
        let reader = base.reader(&nights[1].0).await.unwrap();
        let names: Vec<String> = reader.object_names().try_collect().await.unwrap();
        names[0].clone()
    };
    let damaged = [
        nights[1].0.id.snapshot_name(),
        format!("{}/pins.json", session.folder()),
        leases[0].clone(),
        directory,
    ];
    for name in damaged {
        for loss in ["flipped", "gone"] {
            let objects = objects.fork();
            let repository = Repository::open(objects.store()).await.unwrap();
            let store = repository.store();
            let mut bytes = store.get(&name).await.unwrap().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            store.delete(&name).await.unwrap();
            if loss == "flipped" {
                store.put_new(&name, bytes).await.unwrap();
            } else if !name.starts_with("chunks/") {
                // A record that is gone says nothing: only what refers to it can miss it.
                continue;
            }
            let before = stored(&repository).await;
            let error = sweep(&repository, &SweepOptions::default()).await.unwrap_err();
            let told = error.to_string();
            assert!(
                matches!(error, ArchiveError::CannotSweep { .. }),
                "{name} {loss}: {told}"
            );
            assert!(told.contains(&name), "{name} {loss}: {told}");
            assert_eq!(stored(&repository).await, before, "{name} {loss}");
            // A dry run says the same.
            let planned = plan_sweep(&repository, &SweepOptions::default(), &Default::default()).await;
            assert!(
                matches!(planned, Err(ArchiveError::CannotSweep { .. })),
                "{name} {loss}"
            );
        }
    }
    // The way out: give the damaged snapshot up by its id.
    let name = nights[1].0.id.snapshot_name();
    base.store().delete(&name).await.unwrap();
    base.store().put_new(&name, &b"{}"[..]).await.unwrap();
    lease.release().await;
    let choice = Choice::Snapshots(vec![nights[1].0.id]);
    let plan = plan_prune(Some(&base), None, &choice, &PruneFilter::default())
        .await
        .unwrap();
    prune(Some(&base), &plan, &at_once()).await.unwrap();
    assert_eq!(stored(&base).await, needed(&base).await);
    assert_eq!(
        &read(&base, &nights[2].0, KeyRange::all()).await.unwrap(),
        &nights[2].1
    );
}

#[tokio::test]
async fn records_are_kept_for_their_time() {
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), tiny()).await;
    let nights = nights(&repository, 3).await;
    abandoned(&repository, vec![nights[2].0.id], 5000).await;
    clean(&repository, 1, &at_once()).await;
    let names = object_names(repository.store(), "snapshots").await;
    assert_eq!(names.len(), 3 + 2 + 1, "{names:?}");
    let stats = clean(&repository, 1, &at_once()).await;
    assert_eq!(stats.sweep.deleted_records, 0);
    let records = SweepOptions {
        keep_records: Duration::ZERO,
        ..at_once()
    };
    let stats = clean(&repository, 1, &records).await;
    assert_eq!(stats.sweep.deleted_records, 3);
    let names = object_names(repository.store(), "snapshots").await;
    assert_eq!(names, [nights[2].0.id.snapshot_name()]);

    // A session that pins a forgotten snapshot keeps its record, however old.
    let options = SessionOptions {
        pins: vec![nights[2].0.id],
        ..SessionOptions::new(plan(&[], 9 * 86_400))
    };
    let session = Session::begin(&repository, options).await.unwrap();
    repository.forget(nights[2].0.id, "test").await.unwrap();
    let records = SweepOptions {
        keep_records: Duration::ZERO,
        ..SweepOptions::default()
    };
    let stats = sweep(&repository, &records).await.unwrap();
    assert_eq!((stats.deleted_records, stats.deleted_objects), (0, 0));
    let _joined = Session::join(&repository, session.id(), 1 << 20).await.unwrap();
}

#[tokio::test]
async fn a_local_repository_loses_half_written_files_and_empty_folders() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository_in(Store::local(folder.path()).unwrap(), tiny()).await;
    let nights = nights(&repository, 3).await;
    let staging = folder.path().join("chunks/ab");
    std::fs::create_dir_all(&staging).unwrap();
    let half = staging.join("abcdef-0123#7");
    let fresh = staging.join("abcdef-0124#8");
    let foreign = staging.join("notes#draft");
    for file in [&half, &fresh, &foreign] {
        std::fs::write(file, b"half").unwrap();
    }
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let file = std::fs::File::options().write(true).open(&half).unwrap();
    file.set_modified(long_ago).unwrap();
    drop(file);
    let stats = clean(&repository, 1, &SweepOptions::default()).await;
    assert_eq!(stats.sweep.deleted_staging_files, 1);
    assert!(!half.exists() && fresh.exists() && foreign.exists());
    assert!(
        !folder
            .path()
            .join("sessions")
            .join(nights[0].0.id.to_string())
            .exists()
    );
    assert_eq!(all_restore(&repository, &nights).await, 1);
}

/// A run whose root is an object of its own: it goes before the first chunk does.
#[tokio::test]
async fn run_roots_are_deleted_before_chunks() {
    let objects = StrangeStore::new();
    // A page a record and long names make a root too large for the snapshot.
    let parameters = Parameters {
        page_records: 1,
        ..tiny()
    };
    let repository = repository_in(objects.store(), parameters).await;
    let long = |number: u64| key(&format!("{number:04}{}/d", "x".repeat(1400)));
    let docs: Docs = (0..3000).map(|number| (long(number), doc(number, 20))).collect();
    let first = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let second = back_up(&repository, SessionOptions::new(plan(&[], 86_400)), &docs).await;
    assert_eq!(
        object_names(repository.store(), "runs").await.len(),
        2,
        "both runs have roots of their own"
    );
    clean(&repository, 1, &SweepOptions::default()).await;
    let deleted = objects.deleted();
    let place = |folder: &str| deleted.iter().position(|name| name.starts_with(folder)).unwrap();
    assert!(place("runs/") < place("chunks/"), "{:?}", &deleted[..4]);
    assert_eq!(
        object_names(repository.store(), "runs").await,
        [second.runs[0].name()]
    );
    assert_eq!(stored(&repository).await, needed(&repository).await);
    assert_ne!(first.id, second.id);
    intact(&repository).await;
}

/// What a sweep asks of a store: seven listings, the time, each record and each session's pins once, each directory once
/// however many snapshots share it, and one delete for each object that goes.
#[tokio::test]
async fn a_sweep_asks_for_each_thing_once() {
    let repository = repository(tiny()).await;
    let docs = sample(120);
    let first = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    // Nights without a change share the run, by a parent and an empty layer.
    for night in 1..5 {
        let options = SessionOptions {
            pins: vec![first.id],
            ..SessionOptions::new(plan(&[], night * 86_400))
        };
        let session = Session::begin(&repository, options).await.unwrap();
        session
            .exact_range_writer(KeyRange::all())
            .finish()
            .await
            .unwrap();
        let draft = SnapshotDraft {
            parent: Some(first.clone()),
            totals: Some(totals(&docs)),
            ..SnapshotDraft::default()
        };
        session.commit(draft).await.unwrap();
    }
    let asked = async |repository: &Repository| {
        let before = repository.store().requests();
        let stats = sweep(repository, &SweepOptions::default()).await.unwrap();
        let after = repository.store().requests();
        (stats, before, after)
    };
    let (stats, before, after) = asked(&repository).await;
    assert_eq!(
        (stats.snapshots, stats.deleted_objects, stats.finished_sessions),
        (5, 0, 5)
    );
    // The folder of each finished session is listed once more when it is removed.
    assert_eq!(after.list - before.list, 7 + 5);
    assert_eq!(after.get - before.get, 5 + 5, "records and pins");
    assert_eq!(
        after.get_range - before.get_range,
        1,
        "one directory block, shared by five snapshots"
    );
    assert_eq!(
        (after.put_create - before.put_create, after.head - before.head),
        (1, 1)
    );
    let (stats, before, after) = asked(&repository).await;
    assert_eq!(stats.finished_sessions, 0);
    assert_eq!(
        (
            after.list - before.list,
            after.get - before.get,
            after.delete - before.delete
        ),
        (7, 5, 1)
    );
}

/// The protocol's order, in which each listing rests on those before it: candidates, markers, sessions, leases, decisions.
#[tokio::test]
async fn a_sweep_lists_in_the_order_of_the_protocol() {
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), tiny()).await;
    nights(&repository, 1).await;
    clean(&repository, 1, &at_once()).await;
    objects.listed();
    sweep(&repository, &SweepOptions::default()).await.unwrap();
    let order = [
        "chunks",
        "runs",
        "snapshots",
        "sessions",
        "leases",
        "snapshots",
        "probes",
    ];
    assert_eq!(objects.listed(), order);
}
