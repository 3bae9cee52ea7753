//! The lock on migrations: one holder at a time, whatever happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use firebank::document::{DocumentPath, Fields, Value};
use firebank::firestore::{CommitWrite, Firestore, Precondition};
use firebank::migration::{Lock, LockError, LockOptions};
use firebank::sandbox::Sandbox;
use firebank::stop::Stop;

use crate::support::operations::{client, connect};
use crate::support::{emulator, project, sandbox};

const LONG: Duration = Duration::from_secs(60);

fn options(owner: &str, wait: Duration, expiry: Duration) -> LockOptions {
    LockOptions {
        wait,
        expiry,
        ..LockOptions::new(owner)
    }
}

async fn acquire(database: &Firestore, options: LockOptions) -> Result<Lock, LockError> {
    Lock::acquire(database, options, &Stop::default(), |_| {}).await
}

async fn scene() -> (Sandbox, Firestore) {
    let sandbox = sandbox().await;
    let database = client(&sandbox, "demo-lock").await;
    (sandbox, database)
}

/// The lock of the runner "first", and what tells it to stop.
async fn taken(database: &Firestore, expiry: Duration) -> (Lock, Stop) {
    let stop = Stop::default();
    let lock = Lock::acquire(database, options("first", LONG, expiry), &stop, |_| {})
        .await
        .unwrap();
    (lock, stop)
}

async fn one_holder_at_a_time(database: Firestore) {
    let holders = Arc::new(AtomicUsize::new(0));
    let runners: Vec<_> = (0..6)
        .map(|number| {
            let (database, holders) = (database.clone(), Arc::clone(&holders));
            tokio::spawn(async move {
                let lock = acquire(&database, options(&format!("runner {number}"), LONG, LONG))
                    .await
                    .unwrap();
                assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1);
                lock.release().await;
            })
        })
        .collect();
    for runner in runners {
        runner.await.unwrap();
    }
    assert_eq!(Lock::holder(&database).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_holder_at_a_time_on_the_sandbox() {
    let (_sandbox, database) = scene().await;
    one_holder_at_a_time(database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_holder_at_a_time_on_the_emulator() {
    let Some(address) = emulator() else { return };
    one_holder_at_a_time(connect(address, &project("lock"), "(default)").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_to_wait_is_told_for_whom() {
    let (_sandbox, database) = scene().await;
    let lock = acquire(&database, options("Ada on tower", LONG, LONG))
        .await
        .unwrap();
    let refused = acquire(&database, options("Bob", Duration::ZERO, LONG)).await;
    let message = refused.unwrap_err().to_string();
    assert!(
        message.contains("Ada on tower") && message.contains("--unlock"),
        "{message}"
    );
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    let stop = Stop::default();
    let waiting = Lock::acquire(
        &database,
        options("Bob", Duration::from_millis(100), LONG),
        &stop,
        move |holder| {
            assert_eq!(holder.owner, "Ada on tower");
            counter.fetch_add(1, Ordering::SeqCst);
        },
    );
    assert!(matches!(waiting.await, Err(LockError::Held(_))));
    assert_eq!(told.load(Ordering::SeqCst), 1);
    lock.release().await;
    acquire(&database, options("Bob", Duration::ZERO, LONG))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_holders_lock_expires_and_a_living_one_keeps_it() {
    let (_sandbox, database) = scene().await;
    let short = Duration::from_millis(600);
    let living = acquire(&database, options("living", LONG, short)).await.unwrap();
    tokio::time::sleep(short * 3).await;
    living.check().unwrap();
    let refused = acquire(&database, options("other", Duration::ZERO, short)).await;
    assert!(matches!(refused, Err(LockError::Held(_))));
    // Dropped without being given back, as by a kill.
    drop(living);
    let refused = acquire(&database, options("other", Duration::ZERO, short)).await;
    assert!(matches!(refused, Err(LockError::Held(_))));
    let other = acquire(&database, options("other", LONG, short)).await.unwrap();
    assert_eq!(Lock::holder(&database).await.unwrap().unwrap().owner, "other");
    other.release().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_the_lock_notices_and_writes_nothing_more() {
    let (_sandbox, database) = scene().await;
    let expiry = Duration::from_millis(600);
    let (lock, stop) = taken(&database, expiry).await;
    let write = |text: &str| {
        vec![CommitWrite {
            path: DocumentPath::parse("_migrations/v1_a").unwrap(),
            fields: Some(Fields::from([(
                "status".to_owned(),
                Value::String(text.to_owned()),
            )])),
            condition: Precondition::None,
        }]
    };
    lock.write(write("running")).await.unwrap();
    let removed = Lock::remove(&database).await.unwrap().unwrap();
    assert_eq!(removed.owner, "first");
    let second = acquire(&database, options("second", Duration::ZERO, LONG))
        .await
        .unwrap();
    // Before the heartbeat has noticed: the history is written with a look at the lock.
    let refused = lock.write(write("completed")).await.unwrap_err().to_string();
    assert!(refused.contains("second has it now"), "{refused}");
    let kept = database
        .get_documents(&[DocumentPath::parse("_migrations/v1_a").unwrap()], None)
        .await
        .unwrap();
    let kept = firebank::document::canonical::decode(kept.found.get(0).unwrap().body).unwrap();
    assert_eq!(kept["status"], Value::String("running".to_owned()));
    tokio::time::timeout(LONG, async {
        while !stop.is_requested() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert!(matches!(lock.check(), Err(LockError::Lost(_))));
    // Giving back what is somebody else's does nothing.
    lock.release().await;
    second.check().unwrap();
    assert_eq!(Lock::holder(&database).await.unwrap().unwrap().owner, "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_alone_notices_a_removed_lock() {
    let (_sandbox, database) = scene().await;
    let expiry = Duration::from_millis(600);
    let (lock, stop) = taken(&database, expiry).await;
    Lock::remove(&database).await.unwrap();
    tokio::time::sleep(expiry).await;
    assert!(stop.is_requested());
    let message = lock.check().unwrap_err().to_string();
    assert!(message.contains("somebody removed it"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_reach_the_database_gives_up_before_another_may_begin() {
    let (sandbox, database) = scene().await;
    let expiry = Duration::from_millis(900);
    let (lock, stop) = taken(&database, expiry).await;
    let start = std::time::Instant::now();
    sandbox.shutdown().await;
    while lock.check().is_ok() {
        assert!(start.elapsed() < expiry, "it still believes to have the lock");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(stop.is_requested());
}
