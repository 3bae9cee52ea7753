//! The same documents are stored once: whatever the ranges, the day and the project.

use firebank::archive::{Parameters, Repository, Snapshot};
use firebank::document::{DatabaseName, KeyRange};
use firebank::firestore::{Firestore, ScanOptions};
use firebank::sandbox::{Sandbox, SandboxConfig, SyntheticSpec};
use futures::TryStreamExt;

use crate::support::operations::*;
use crate::support::{sandbox, sandbox_with};

/// Two collections, of which one has much larger documents.
fn specs(database: Option<DatabaseName>, large: u64, small: u64) -> Vec<SyntheticSpec> {
    let spec = |collection: &str, documents, bytes| SyntheticSpec {
        database: database.clone(),
        ..SyntheticSpec::new(collection, documents, bytes)
    };
    vec![spec("products", small, 600), spec("users", large, 6_000)]
}

async fn synthetic(large: u64, small: u64) -> Sandbox {
    sandbox_with(SandboxConfig {
        synthetic: specs(None, large, small),
        ..SandboxConfig::default()
    })
    .await
}

/// Documents that make many chunks, and nothing in the repository.
async fn small_chunks() -> (Sandbox, Firestore, Repository) {
    let sandbox = synthetic(400, 5_000).await;
    let database = client(&sandbox, "demo-dedup").await;
    let parameters = Parameters {
        frame_len: 16 << 10,
        cut_target: 64 << 10,
        cut_max: 128 << 10,
        ..Parameters::with_seed(1)
    };
    let repository = repository(parameters).await;
    (sandbox, database, repository)
}

/// The names of all chunks.
async fn chunks(repository: &Repository) -> Vec<String> {
    let objects = repository.store().list("chunks");
    let mut names: Vec<String> = objects.map_ok(|object| object.name).try_collect().await.unwrap();
    names.sort();
    names
}

/// Data chunks that the snapshot needs.
fn data_chunks(snapshot: &Snapshot) -> u64 {
    snapshot.stats.chunks_written + snapshot.stats.chunks_reused
}

fn assert_nothing_new(first: &Snapshot, again: &Snapshot) {
    assert_eq!(again.documents, first.documents);
    assert_eq!(
        (again.stats.chunks_written, again.stats.new_bytes),
        (0, 0),
        "{:?}",
        again.stats
    );
    assert_eq!(again.stats.chunks_reused, data_chunks(first));
    assert_eq!(again.stats.deduplicated_bytes, first.stats.raw_bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_backup_stores_no_data_whatever_the_ranges() {
    let (_sandbox, database, repository) = small_chunks().await;
    let first = back_up(&database, &repository, 3).await;
    assert_eq!(first.documents, 5_400);
    assert!(first.stats.chunks_written > 64, "{:?}", first.stats);
    let stored = chunks(&repository).await.len();
    for ranges in [1, 2, 7, 16, 64] {
        let again = back_up(&database, &repository, ranges).await;
        assert_nothing_new(&first, &again);
    }
    // The index is cut along the ranges, so a little of it is new each time; it is small.
    let more = chunks(&repository).await.len() - stored;
    assert!(more <= 1 + 2 + 7 + 16 + 64, "{more} chunks more");
    assert_intact(&repository, 6).await;
    assert_snapshot_is(&repository, &first, &database).await;
}

/// Ranges begin between cuts, and what lies before the first cut of each belongs to the one before: only one of the two
/// reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbouring_ranges_read_nothing_twice() {
    let (sandbox, database, repository) = small_chunks().await;
    let mut sent = Vec::new();
    for ranges in [1, 16] {
        let before = sandbox.usage();
        back_up(&database, &repository, ranges).await;
        sent.push(sandbox.usage().since(&before).sent_bytes);
    }
    // Finding out where to split takes a few names; reading on to the next cut would take a fifth of everything again.
    assert!(sent[1] < sent[0] + sent[0] / 20, "{sent:?}");
}

/// The sizes that everybody uses, with enough data for some segments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_backup_stores_no_data_with_segments_of_their_usual_size() {
    let sandbox = synthetic(7_500, 4_000).await;
    let database = client(&sandbox, "demo-dedup").await;
    let repository = repository(Parameters::with_seed(2)).await;
    let first = back_up(&database, &repository, 1).await;
    assert!(
        first.stats.raw_bytes > 40 << 20 && first.stats.chunks_written >= 3,
        "{:?}",
        first.stats
    );
    let again = back_up(&database, &repository, 7).await;
    assert_nothing_new(&first, &again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_in_another_project_shares_its_data() {
    let sandbox = synthetic(300, 4_000).await;
    let repository = repository(small_segments()).await;
    let first = back_up(&client(&sandbox, "demo-one").await, &repository, 1).await;
    let stored = chunks(&repository).await;
    let other = client(&sandbox, "demo-two").await;
    let again = back_up(&other, &repository, 1).await;
    assert_eq!(again.database.project, "demo-two");
    assert_nothing_new(&first, &again);
    // The times are the same, so the index is as well: only the run's directory, which names its chunks, is not.
    let more = chunks(&repository).await.len() - stored.len();
    assert!(more <= 1, "{more} chunks more");
    let elsewhere = back_up(&other, &repository, 4).await;
    assert_nothing_new(&first, &elsewhere);
    assert_intact(&repository, 3).await;
}

/// A copy that was written document by document has other times: only its index is new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_copy_shares_its_data() {
    let source = synthetic(100, 1_000).await;
    let database = client(&source, "demo-one").await;
    let repository = repository(small_segments()).await;
    let first = back_up(&database, &repository, 2).await;
    let target = sandbox().await;
    let copy = client(&target, "demo-copy").await;
    restore_all(&repository, &first, &copy).await;
    let again = back_up(&copy, &repository, 5).await;
    assert_nothing_new(&first, &again);
    assert_snapshot_is(&repository, &again, &database).await;
}

/// What changes costs the segments it lies in, not the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_costs_the_segments_around_it() {
    let source = synthetic(200, 3_000).await;
    let repository = repository(small_segments()).await;
    let first = back_up(&client(&source, "demo-one").await, &repository, 1).await;
    let target = sandbox().await;
    let copy = client(&target, "demo-copy").await;
    restore_all(&repository, &first, &copy).await;

    let time = copy.current_read_time().await.unwrap();
    let batches: Vec<_> = copy
        .scan(ScanOptions::new(KeyRange::all(), time))
        .try_collect()
        .await
        .unwrap();
    let documents: Vec<_> = batches.iter().flat_map(|batch| batch.iter()).collect();
    let deleted = (documents[500].path().unwrap(), None);
    // Another document's fields, of about the same length.
    let changed = (
        documents[1500].path().unwrap(),
        Some(documents[1501].body.to_vec()),
    );
    change_all(&copy, [deleted, changed]).await;

    let again = back_up(&copy, &repository, 3).await;
    let (all, new) = (data_chunks(&first), again.stats.chunks_written);
    assert!(
        all > 100 && (1..=6).contains(&new),
        "{new} of {all} chunks are new"
    );
    assert_snapshot_is(&repository, &again, &copy).await;
    assert_intact(&repository, 2).await;
}
