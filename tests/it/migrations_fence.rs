//! What must hold whatever happens around a migration: to its lock, to its before-images, in a copy of its database.

use std::collections::BTreeMap;
use std::time::Duration;

use firebank::archive::{Decision, SweepOptions, session, sweep};
use firebank::document::{DocumentPath, Fields, Value, canonical};
use firebank::firestore::{BulkWriter, CommitWrite, Precondition, WriteFailure, WriteFence, WriteOptions};
use firebank::migration::{
    History, Lock, LockOptions, MigrateOptions, MigrationError, RecordStatus, RollbackOptions, RollbackStats,
    RollbackTarget, Runner, RunnerOptions,
};
use firebank::progress::Progress;
use firebank::restore::{RestoreMode, plan_restore, restore};
use firebank::sandbox::{Effect, Fault, Rpc, Sandbox, When};
use firebank::stop::Stop;
use firebank::verify::verify_restore;
use futures::TryStreamExt;

use crate::migrations_support::{ADD_STATE, Bench, fields, item};
use crate::strange_store::{Habits, StrangeStore};
use crate::support::operations::{back_up, repository_in, restore_options, scan, small_segments};
use crate::support::sandbox;

type Documents = BTreeMap<String, Vec<u8>>;

const COUNTS: &str = "export function migrate(db) {
  db.transform('items', (item) => ({ ...item, number: item.number + 1 }));
}";

/// Writes (what a query could find is written before it runs), and then runs until somebody opens the gate.
const COUNTS_AND_WAITS: &str = "export function migrate(db) {
  db.transform('items', (item) => ({ ...item, number: item.number + 1 }));
  db.count('items');
  while (db.count('gate') === 0);
}";

/// Opens the gate of [`COUNTS_AND_WAITS`], or takes it away again.
async fn gate(bench: &Bench, fields: Option<Fields>) {
    let write = CommitWrite {
        path: DocumentPath::parse("gate/open").unwrap(),
        fields,
        condition: Precondition::None,
    };
    bench.database.commit(&[write]).await.unwrap();
}

/// A runner that writes so slowly that much waits for its turn, and whose heartbeat is too seldom to notice anything.
fn slow_runner(bench: &Bench, rate: f64) -> Runner {
    let mut options = RunnerOptions::new(&bench.database, bench.folder.path(), "the first");
    options.write.rate = Some(rate);
    options.lock.expiry = Duration::from_secs(60);
    Runner::new(bench.database.clone(), Some(bench.repository.clone()), options)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_turn_is_not_written_once_the_lock_is_lost() {
    let sandbox = sandbox().await;
    let bench = Bench::new(&sandbox.address().to_string(), "fence", 300).await;
    let before = bench.documents().await;
    bench.script("v1_count", COUNTS);
    let first = slow_runner(&bench, 40.0);
    let progress = Progress::new();
    let second = async {
        bench.until(|documents| *documents != before).await;
        Lock::remove(&bench.database).await.unwrap().unwrap();
        // Undoes what the first has written, and does all of it.
        bench.migrate().await.unwrap();
        bench.documents().await
    };
    let (lost, after) = tokio::join!(first.migrate(MigrateOptions::default(), &progress), second);
    let lost = lost.unwrap_err().to_string();
    assert!(lost.contains("the lock on migrations was lost"), "{lost}");
    for number in 0..300 {
        let mut expected = fields(number);
        expected.insert("number".to_owned(), Value::Integer(number + 1));
        assert_eq!(
            canonical::decode(&after[&item(number).to_string()]).unwrap(),
            expected
        );
    }
    assert!(bench.documents().await == after, "the first one went on");
    bench.roll_back_all().await;
    assert!(bench.documents().await == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_ends_with_the_lock() {
    let sandbox = sandbox().await;
    let bench = Bench::new(&sandbox.address().to_string(), "fence-undo", 300).await;
    let before = bench.documents().await;
    bench.script("v1_count", COUNTS);
    bench.migrate().await.unwrap();
    let applied = bench.documents().await;
    let first = slow_runner(&bench, 40.0);
    let progress = Progress::new();
    let options = RollbackOptions {
        target: RollbackTarget::Steps(1),
        force: false,
    };
    let second = async {
        bench.until(|documents| *documents != applied).await;
        Lock::remove(&bench.database).await.unwrap().unwrap();
        // Finishes the rollback, and applies it again.
        assert_eq!(bench.migrate().await.unwrap(), ["v1_count"]);
    };
    let (lost, ()) = tokio::join!(first.rollback(options, &progress), second);
    let lost = lost.unwrap_err().to_string();
    assert!(lost.contains("the lock on migrations was lost"), "{lost}");
    assert!(bench.documents().await == applied, "the first one went on");
    assert_eq!(bench.status("v1_count").await, RecordStatus::Completed);
    bench.roll_back_all().await;
    assert!(bench.documents().await == before);
}

/// A copy of all that a database has, as a backup and a restore make it.
async fn copy(original: &Bench, address: &str, name: &str) -> Bench {
    let copy = Bench::with_repository(address, name, 0, original.repository.clone()).await;
    let database = &copy.database;
    let mut writer = BulkWriter::new(database, WriteOptions::new(database), Vec::<WriteFailure>::new());
    let mut batches = std::pin::pin!(scan(&original.database).await);
    while let Some(batch) = batches.try_next().await.unwrap() {
        for document in batch.iter() {
            let path = document.path().unwrap();
            if path.root_collection() != "_migrations_lock" {
                writer.put(&path, document.body).await.unwrap();
            }
        }
    }
    assert_eq!(writer.finish().await.unwrap().failed, 0);
    copy
}

/// Changes a document, if wanted, and says what then is expected of the database once all else is undone.
async fn change(bench: &Bench, changed: bool, before: &Documents) -> Documents {
    let mut expected = before.clone();
    if changed {
        let write = CommitWrite {
            path: item(0),
            fields: Some(fields(4711)),
            condition: Precondition::None,
        };
        bench.database.commit(&[write]).await.unwrap();
        expected.insert(item(0).to_string(), canonical::encode(&fields(4711)));
    }
    expected
}

/// Leaves a migration as a kill does: running, with some of its writes done.
async fn interrupt(bench: &Bench, before: &Documents) {
    let mut options = RunnerOptions::new(&bench.database, bench.folder.path(), "killed");
    options.lock.expiry = Duration::from_secs(1);
    options.write.rate = Some(100.0);
    let runner = Runner::new(bench.database.clone(), Some(bench.repository.clone()), options);
    let progress = Progress::new();
    tokio::select! {
        ended = runner.migrate(MigrateOptions::default(), &progress) => panic!("{ended:?}"),
        () = bench.until(|documents| documents != before) => {}
    }
    // What was on its way arrives.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.status("v1_count").await, RecordStatus::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_in_a_copy_leaves_the_original_its_way_back() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let original = Bench::new(&address, "original", 300).await;
    let before = original.documents().await;
    original.script("v1_count", COUNTS);
    interrupt(&original, &before).await;
    for changed in [false, true] {
        let staging = copy(&original, &address, "staging").await;
        let expected = change(&staging, changed, &before).await;
        staging.recover().await.unwrap();
        assert!(staging.documents().await == expected);
        assert_eq!(staging.status("v1_count").await, RecordStatus::Failed);
    }
    // The original is undone from the same before-images.
    original.recover().await.unwrap();
    assert!(original.documents().await == before);
    assert_eq!(original.status("v1_count").await, RecordStatus::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_in_a_copy_leaves_a_snapshot_to_its_original() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let original = Bench::new(&address, "original", 300).await;
    let before = original.documents().await;
    original.script("v1_count", COUNTS_AND_WAITS);
    // As it was while it ran.
    let running = {
        let copied = async {
            original.until(|documents| *documents != before).await;
            let copied = copy(&original, &address, "staging").await;
            gate(&original, Some(Fields::new())).await;
            copied
        };
        let (migrated, staging) = tokio::join!(original.migrate(), copied);
        migrated.unwrap();
        gate(&original, None).await;
        staging
    };
    assert_eq!(running.status("v1_count").await, RecordStatus::Running);
    for changed in [true, false] {
        let running = copy(&running, &address, "staging").await;
        let expected = change(&running, changed, &before).await;
        running.recover().await.unwrap();
        assert!(running.documents().await == expected);
    }
    // What the copy did is nothing to the original.
    assert_eq!(original.status("v1_count").await, RecordStatus::Completed);
    let swept = SweepOptions {
        expiry: Duration::ZERO,
        ..SweepOptions::default()
    };
    sweep(&original.repository, &swept).await.unwrap();
    original.roll_back_all().await;
    assert!(original.documents().await == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_images_that_somebody_gave_up_are_used_or_missed() {
    let sandbox = sandbox().await;
    let bench = Bench::new(&sandbox.address().to_string(), "given-up", 300).await;
    let before = bench.documents().await;
    bench.script("v1_count", COUNTS);
    interrupt(&bench, &before).await;
    let history = History::read(&bench.database).await.unwrap();
    let record = history.get(&"v1_count".parse().unwrap()).unwrap();
    let session = record.snapshot_id.unwrap();
    let decision = session::abort(&bench.repository, session, "a mistake")
        .await
        .unwrap();
    assert!(matches!(decision, Decision::Aborted(_)));
    // They are still there.
    bench.recover().await.unwrap();
    assert!(bench.documents().await == before);

    interrupt(&bench, &before).await;
    let half = bench.documents().await;
    let history = History::read(&bench.database).await.unwrap();
    let record = history.get(&"v1_count".parse().unwrap()).unwrap();
    let session = record.snapshot_id.unwrap();
    session::abort(&bench.repository, session, "a mistake")
        .await
        .unwrap();
    let swept = SweepOptions {
        expiry: Duration::ZERO,
        ..SweepOptions::default()
    };
    sweep(&bench.repository, &swept).await.unwrap();
    // They are gone, and nobody may say that it was undone.
    let refused = bench.recover().await.unwrap_err();
    assert!(matches!(refused, MigrationError::LostWayBack { .. }), "{refused}");
    let refused = refused.to_string();
    assert!(
        refused.contains("a mistake") && refused.contains("_migrations/v1_count"),
        "{refused}"
    );
    assert!(bench.documents().await == half);
    assert_eq!(bench.status("v1_count").await, RecordStatus::Running);
}

/// Killed before its first write, and given up by a sweep for its silence: there is nothing to undo.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_wrote_nothing_needs_no_before_images() {
    let sandbox = sandbox().await;
    let bench = Bench::new(&sandbox.address().to_string(), "silent", 5).await;
    let before = bench.documents().await;
    bench.script(
        "v1_slow",
        "export function migrate(db) { for (;;) db.count('items'); }",
    );
    let started = async {
        let start = std::time::Instant::now();
        loop {
            let history = History::read(&bench.database).await.unwrap();
            if history.get(&"v1_slow".parse().unwrap()).is_some() {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60));
        }
    };
    tokio::select! {
        ended = bench.migrate() => panic!("{ended:?}"),
        () = started => {}
    }
    let swept = SweepOptions {
        expiry: Duration::ZERO,
        ..SweepOptions::default()
    };
    for _ in 0..2 {
        sweep(&bench.repository, &swept).await.unwrap();
    }
    bench.recover().await.unwrap();
    assert_eq!(bench.status("v1_slow").await, RecordStatus::Failed);
    assert!(bench.documents().await == before);
}

/// A write to the second item.
fn overwrite(number: i64) -> Vec<CommitWrite> {
    vec![CommitWrite {
        path: item(1),
        fields: Some(fields(number)),
        condition: Precondition::None,
    }]
}

/// Rolls the last migration back, while somebody writes to the second item: after it was looked at, before it is put back.
async fn roll_back_beside_a_writer(sandbox: &Sandbox, bench: &Bench, force: bool) -> RollbackStats {
    let delay = Effect::Delay(Duration::from_secs(2));
    sandbox
        .faults()
        .add(Fault::new(Rpc::BatchWrite, When::First(1), delay));
    let asked = sandbox.usage().requests_of(Rpc::BatchWrite);
    let options = RollbackOptions {
        target: RollbackTarget::Steps(1),
        force,
    };
    let meanwhile = async {
        // It has looked at the document, and kept it where it is to be overwritten: its write is on the way.
        let start = std::time::Instant::now();
        while sandbox.usage().requests_of(Rpc::BatchWrite) == asked {
            assert!(start.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.database.commit(&overwrite(200)).await.unwrap();
    };
    let runner = bench.runner();
    let progress = Progress::new();
    let (done, ()) = tokio::join!(runner.rollback(options, &progress), meanwhile);
    done.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_leaves_alone_what_changes_meanwhile() {
    let sandbox = sandbox().await;
    let bench = Bench::new(&sandbox.address().to_string(), "meanwhile", 3).await;
    let mut expected = bench.documents().await;
    bench.script("v1_state", ADD_STATE);
    bench.migrate().await.unwrap();
    let done = roll_back_beside_a_writer(&sandbox, &bench, false).await;
    let [rolled_back] = &done.rolled_back[..] else {
        panic!("{done:?}");
    };
    assert_eq!((rolled_back.restored, rolled_back.changed_since), (2, 1));
    assert_eq!(rolled_back.first_changed_since, [item(1).to_string()]);
    expected.insert(item(1).to_string(), canonical::encode(&fields(200)));
    assert!(bench.documents().await == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_forced_rollback_overwrites_is_kept_also_when_it_changes_meanwhile() {
    let sandbox = sandbox().await;
    let bench = Bench::new(&sandbox.address().to_string(), "forced", 3).await;
    let before = bench.documents().await;
    bench.script("v1_state", ADD_STATE);
    bench.migrate().await.unwrap();
    bench.database.commit(&overwrite(100)).await.unwrap();
    let done = roll_back_beside_a_writer(&sandbox, &bench, true).await;
    assert!(bench.documents().await == before);
    let kept = done.rolled_back[0].snapshot.unwrap();
    let Some(Decision::Committed(snapshot)) = bench.repository.decision(kept).await.unwrap() else {
        panic!("not kept");
    };
    let reader = bench.repository.reader(&snapshot).await.unwrap();
    let found = reader.get(&item(1)).await.unwrap().unwrap();
    let body = found.last().unwrap().body;
    assert_eq!(canonical::decode(body).unwrap(), fields(200));
}

/// The lock is no data: it says who is at work here and now.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_leaves_the_lock_alone() {
    let sandbox = sandbox().await;
    let bench = Bench::new(&sandbox.address().to_string(), "locked", 20).await;
    let database = &bench.database;
    let lock = || async {
        let options = LockOptions::new("a migration");
        Lock::acquire(database, options, &Stop::default(), |_| {})
            .await
            .unwrap()
    };
    let free = back_up(database, &bench.repository, 1).await;
    let held = lock().await;
    let with_lock = back_up(database, &bench.repository, 1).await;
    assert_eq!(with_lock.documents, free.documents + 1);
    let folder = tempfile::tempdir().unwrap();
    let modes = [
        RestoreMode::Mirror,
        RestoreMode::Overwrite,
        RestoreMode::SkipIdentical,
    ];
    // One that is held stays, whatever the snapshot says.
    for (snapshot, mode) in [&free, &with_lock]
        .into_iter()
        .flat_map(|one| modes.map(|mode| (one, mode)))
    {
        let reader = bench.repository.reader(snapshot).await.unwrap();
        let mut options = restore_options(database, &folder.path().join("failed.ndjson"));
        options.mode = mode;
        let planned = plan_restore(&reader, database, &options).await.unwrap();
        assert_eq!((planned.documents, planned.fates.deleted), (20, 0), "{mode:?}");
        let restored = restore(&reader, database, options.clone(), &Progress::new()).await;
        let restored = restored.unwrap();
        assert_eq!(
            (restored.documents, restored.failed, restored.fates.deleted),
            (20, 0, 0),
            "{mode:?}"
        );
        let verified = verify_restore(&reader, database, &options, &Progress::new()).await;
        assert!(verified.unwrap().comparison.is_equal(), "{mode:?}");
        let watch = held.watch();
        assert!(watch.may_write().await.unwrap(), "{mode:?}");
    }
    held.release().await;
    // And none comes from a snapshot.
    let reader = bench.repository.reader(&with_lock).await.unwrap();
    for mode in modes {
        let mut options = restore_options(database, &folder.path().join("failed.ndjson"));
        options.mode = mode;
        restore(&reader, database, options, &Progress::new())
            .await
            .unwrap();
        assert_eq!(Lock::holder(database).await.unwrap(), None, "{mode:?}");
    }
    lock().await.release().await;
}

/// A repository that takes nothing more in the middle of the journal: what was written is undone, at once or by the next run.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_in_the_middle_of_the_journal_costs_nothing() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let strange = StrangeStore::new();
    let repository = repository_in(strange.store(), small_segments()).await;
    let mut bench = Bench::with_repository(&address, "journal", 1300, repository).await;
    // Every runner here gives its lock back: a busy machine must not make one lose it.
    bench.lock_expiry = Duration::from_secs(60);
    let before = bench.documents().await;
    bench.script("v1_count", COUNTS);
    // It can still be read: the migration fails, and is undone from what was kept.
    let slow = slow_runner(&bench, 2000.0);
    let progress = Progress::new();
    sandbox
        .faults()
        .add(Fault::new(Rpc::BatchWrite, When::After(1), Effect::Hold));
    let full = async {
        bench.until(|documents| *documents != before).await;
        strange.habits(Habits {
            no_put: true,
            ..Habits::default()
        });
        sandbox.faults().clear();
    };
    let (failed, ()) = tokio::join!(slow.migrate(MigrateOptions::default(), &progress), full);
    strange.habits(Habits::default());
    failed.unwrap_err();
    bench.recover().await.unwrap();
    assert!(bench.documents().await == before);
    assert_eq!(bench.status("v1_count").await, RecordStatus::Failed);

    // It is gone altogether, at any request: the next run undoes it, if it is not done.
    strange.habits(Habits::default());
    bench.migrate().await.unwrap();
    let requests = strange.requests();
    let after = bench.documents().await;
    bench.roll_back_all().await;
    let (mut half, mut not_undone) = (0, 0);
    // Slow enough that some writes are always done and others not when the repository goes.
    let slow = slow_runner(&bench, 3000.0);
    for stop in 1..=requests {
        strange.habits(Habits {
            stops_at: Some(stop),
            // Slower than the first batch of writes, and faster than the last one.
            takes_to_fail: Duration::from_millis(250),
            ..Habits::default()
        });
        let failed = slow.migrate(MigrateOptions::default(), &progress).await;
        strange.habits(Habits::default());
        not_undone += usize::from(matches!(failed, Err(MigrationError::NotUndone { .. })));
        let documents = bench.documents().await;
        half += usize::from(documents != before && documents != after);
        bench.recover().await.unwrap();
        if bench.status("v1_count").await == RecordStatus::Completed {
            assert!(
                bench.documents().await == after,
                "stopped at {stop} of {requests}"
            );
            bench.roll_back_all().await;
        }
        assert!(
            bench.documents().await == before,
            "stopped at {stop} of {requests}"
        );
    }
    assert!(half > 0 && not_undone >= half, "{half} {not_undone}");
    let swept = SweepOptions {
        expiry: Duration::ZERO,
        ..SweepOptions::default()
    };
    sweep(&bench.repository, &swept).await.unwrap();
    assert_eq!(bench.migrate().await.unwrap(), ["v1_count"]);
    bench.roll_back_all().await;
    assert!(bench.documents().await == before);
}
