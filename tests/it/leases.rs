//! Readers and their leases, beside prunes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::time::Duration;

use firebank::archive::*;
use firebank::document::*;
use firebank::history::history;
use firebank::progress::Progress;
use firebank::verify::{VerifyOptions, verify};

use crate::archive_support::*;
use crate::strange_store::{Habits, StrangeStore};

async fn two_nights(repository: &Repository) -> [Snapshot; 2] {
    let old = back_up(repository, SessionOptions::new(plan(&[], 0)), &sample(80)).await;
    let mut docs = sample(80);
    docs.values_mut().for_each(|one| *one = doc(4711, 100));
    let new = back_up(repository, SessionOptions::new(plan(&[], 86_400)), &docs).await;
    [old, new]
}

#[tokio::test]
async fn a_lease_holds_what_is_forgotten_until_it_is_released() {
    let repository = repository(tiny()).await;
    let [old, _] = two_nights(&repository).await;
    let reader = repository.reader(&old).await.unwrap();
    let lease = Lease::of(&reader, "test").await.unwrap();
    assert!(lease.is_held());
    repository.forget(old.id, "test").await.unwrap();
    let stats = sweep(&repository, &SweepOptions::default()).await.unwrap();
    assert_eq!(stats.deleted_objects, 0);
    assert_eq!(
        read(&repository, &old, KeyRange::all()).await.unwrap(),
        sample(80)
    );
    // Who comes now is too late, and leaves nothing.
    let error = Lease::of(&reader, "test").await.unwrap_err();
    assert!(matches!(error, ArchiveError::Forgotten { .. }), "{error}");
    assert_eq!(object_names(repository.store(), "leases").await.len(), 1);
    lease.release().await;
    assert!(object_names(repository.store(), "leases").await.is_empty());
    let stats = sweep(&repository, &SweepOptions::default()).await.unwrap();
    assert!(stats.deleted_objects > 5);
}

#[tokio::test]
async fn a_lease_that_is_dropped_is_removed() {
    let repository = repository(tiny()).await;
    let [old, new] = two_nights(&repository).await;
    let lease = Lease::take(&repository, &[old.id, new.id], "test").await.unwrap();
    assert_eq!(object_names(repository.store(), "leases").await.len(), 1);
    drop(lease);
    for _ in 0..200 {
        if object_names(repository.store(), "leases").await.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the lease is still there");
}

#[tokio::test]
async fn operations_leave_no_lease_behind() {
    let repository = repository(tiny()).await;
    two_nights(&repository).await;
    let put = repository.store().requests().put_create;
    let stats = verify(&repository, VerifyOptions::read_everything(), &Progress::new())
        .await
        .unwrap();
    assert!(stats.is_intact());
    assert_eq!(
        repository.store().requests().put_create,
        put + 1,
        "one lease for all snapshots"
    );
    let snapshots = repository.snapshots().await.unwrap().snapshots;
    let path = DocumentPath::from_key(sample(80).keys().next().unwrap()).unwrap();
    let versions = history(&repository, snapshots, &path).await.unwrap();
    assert_eq!(versions.len(), 2);
    assert_eq!(repository.store().requests().put_create, put + 2);
    assert!(object_names(repository.store(), "leases").await.is_empty());
}

#[tokio::test]
async fn who_may_only_read_reads_without_a_lease() {
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), tiny()).await;
    let [old, new] = two_nights(&repository).await;
    let read_only = || Habits {
        no_put: true,
        no_delete: Some(String::new()),
        ..Habits::default()
    };
    objects.habits(read_only());
    let lease = Lease::take(&repository, &[old.id], "test").await.unwrap();
    assert!(!lease.is_held());
    let stats = verify(&repository, VerifyOptions::read_everything(), &Progress::new())
        .await
        .unwrap();
    assert!(stats.is_intact() && stats.snapshots == 2);

    // The snapshot is forgotten and swept while it is read: that is no damage.
    objects.habits(Habits::default());
    repository.forget(old.id, "test").await.unwrap();
    sweep(&repository, &SweepOptions::default()).await.unwrap();
    objects.habits(read_only());
    let options = VerifyOptions {
        snapshots: Some(vec![old.clone(), new.clone()]),
        ..VerifyOptions::read_everything()
    };
    let error = verify(&repository, options, &Progress::new()).await.unwrap_err();
    assert!(
        matches!(error, ArchiveError::Forgotten { snapshot } if snapshot == old.id),
        "{error}"
    );
    let options = VerifyOptions {
        snapshots: Some(vec![new]),
        ..VerifyOptions::read_everything()
    };
    assert!(
        verify(&repository, options, &Progress::new())
            .await
            .unwrap()
            .is_intact()
    );
}

#[tokio::test]
async fn a_missing_object_of_a_snapshot_that_stands_is_damage() {
    let repository = repository(tiny()).await;
    let [old, _] = two_nights(&repository).await;
    let chunk = {
        use futures::TryStreamExt;
        let reader = repository.reader(&old).await.unwrap();
        let names: Vec<String> = reader.object_names().try_collect().await.unwrap();
        names.into_iter().next_back().unwrap()
    };
    repository.store().delete(&chunk).await.unwrap();
    let error = read(&repository, &old, KeyRange::all()).await.unwrap_err();
    let error = repository.explain(old.id, error).await;
    assert!(matches!(error, ArchiveError::Damaged(_)), "{error}");
    let stats = verify(&repository, VerifyOptions::read_everything(), &Progress::new())
        .await
        .unwrap();
    assert!(!stats.is_intact());
}

#[tokio::test]
async fn a_reader_that_died_holds_nothing_for_ever() {
    let repository = repository(tiny()).await;
    let [old, _] = two_nights(&repository).await;
    let lease = Lease::take(&repository, &[old.id], "test").await.unwrap();
    // As a killed process: nobody removes it.
    std::mem::forget(lease);
    repository.forget(old.id, "test").await.unwrap();
    let stats = sweep(&repository, &SweepOptions::default()).await.unwrap();
    assert_eq!((stats.expired_leases, stats.deleted_objects), (0, 0));
    let expired = SweepOptions {
        expiry: Duration::ZERO,
        ..SweepOptions::default()
    };
    let stats = sweep(&repository, &expired).await.unwrap();
    assert!(
        stats.expired_leases == 1 && stats.deleted_objects > 5,
        "{stats:?}"
    );
    assert!(object_names(repository.store(), "leases").await.is_empty());
}

#[tokio::test]
async fn a_diff_holds_both_snapshots_until_it_is_read() {
    use firebank::diff::{DiffOptions, diff};
    use futures::StreamExt;

    let repository = repository(tiny()).await;
    let [old, new] = two_nights(&repository).await;
    let leases = async || object_names(repository.store(), "leases").await.len();
    let readers = (
        repository.reader(&old).await.unwrap(),
        repository.reader(&new).await.unwrap(),
    );
    let mut changes = Box::pin(diff(&readers.0, &readers.1, &DiffOptions::default()));
    assert_eq!(leases().await, 0, "nothing is read yet");
    let mut seen = changes.next().await.unwrap().unwrap().len();
    assert_eq!(leases().await, 1);
    repository.forget(old.id, "test").await.unwrap();
    let stats = sweep(&repository, &SweepOptions::default()).await.unwrap();
    assert_eq!(stats.deleted_objects, 0);
    while let Some(batch) = changes.next().await {
        seen += batch.unwrap().len();
    }
    assert_eq!((seen, leases().await), (80, 0));
    let error = diff(&readers.0, &readers.1, &DiffOptions::default())
        .boxed()
        .next()
        .await;
    let error = error.unwrap().unwrap_err().to_string();
    assert!(error.contains("was forgotten"), "{error}");
}
