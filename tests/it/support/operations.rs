//! Firebank's operations with what tests need to be short: quick retries, small segments, a store in memory.

use std::path::Path;

use firebank::archive::{
    Parameters, ReadMode, Repository, RepositoryId, Selection, Snapshot, SnapshotReader,
};
use firebank::backup::{BackupError, BackupOptions, BackupStats, Parent, backup};
use firebank::clock;
use firebank::compare::{Comparison, compare};
use firebank::document::{DatabaseName, DocumentBatch, DocumentPath, KeyRange};
use firebank::firestore::{
    BulkWriter, ConnectOptions, Firestore, RetryPolicy, ScanOptions, Target, WriteFailure, WriteOptions,
};
use firebank::progress::Progress;
use firebank::restore::{RestoreError, RestoreOptions, RestoreStats, restore};
use firebank::sandbox::Sandbox;
use firebank::store::Store;
use firebank::verify::{VerifyOptions, verify};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};

/// A database of an emulator or sandbox, with hardly any waiting between attempts.
pub(crate) async fn connect(address: &str, project: &str, database: &str) -> Firestore {
    let target = Target::Emulator {
        host_port: address.to_owned(),
    };
    let mut options = ConnectOptions::new(DatabaseName::new(project, database), target);
    options.retry = RetryPolicy::quick();
    Firestore::connect(options).await.unwrap()
}

/// The same of a sandbox, the database that has no name.
pub(crate) async fn client(sandbox: &Sandbox, project: &str) -> Firestore {
    connect(
        &sandbox.address().to_string(),
        project,
        DatabaseName::DEFAULT_DATABASE,
    )
    .await
}

/// Writes documents, given by their canonical bodies.
pub(crate) async fn put_all(
    database: &Firestore,
    documents: impl IntoIterator<Item = (DocumentPath, Vec<u8>)>,
) {
    let changes = documents.into_iter().map(|(path, body)| (path, Some(body)));
    change_all(database, changes).await;
}

/// Writes documents, and deletes those without a body.
pub(crate) async fn change_all(
    database: &Firestore,
    changes: impl IntoIterator<Item = (DocumentPath, Option<Vec<u8>>)>,
) {
    let mut writer = BulkWriter::new(database, WriteOptions::new(database), Vec::<WriteFailure>::new());
    for (path, body) in changes {
        match body {
            Some(body) => writer.put(&path, &body).await.unwrap(),
            None => writer.delete(&path).await.unwrap(),
        }
    }
    assert_eq!(writer.finish().await.unwrap().failed, 0);
}

/// Numbers so small that a few hundred documents make many segments, frames and pages.
pub(crate) fn small_segments() -> Parameters {
    Parameters {
        frame_len: 4096,
        cut_target: 16 << 10,
        cut_max: 32 << 10,
        page_records: 32,
        ..Parameters::with_seed(0x5eed)
    }
}

/// A new repository in memory.
pub(crate) async fn repository(parameters: Parameters) -> Repository {
    repository_in(Store::memory(), parameters).await
}

/// A new repository.
pub(crate) async fn repository_in(store: Store, parameters: Parameters) -> Repository {
    let id = RepositoryId::from_u64(0xf17e_ba4c);
    Repository::init_with(store, clock::now(), id, parameters)
        .await
        .unwrap()
}

/// A backup of the whole database in so many ranges that builds upon no other.
pub(crate) async fn try_back_up(
    database: &Firestore,
    repository: &Repository,
    ranges: usize,
) -> Result<BackupStats, BackupError> {
    let options = BackupOptions {
        selection: Selection::all(),
        ranges: Some(ranges),
        parent: Parent::None,
        ..BackupOptions::default()
    };
    backup(database, repository, options, &Progress::new()).await
}

/// A backup of the whole database that builds upon the newest one.
pub(crate) async fn try_back_up_changes(
    database: &Firestore,
    repository: &Repository,
    read: ReadMode,
    ranges: usize,
) -> Result<BackupStats, BackupError> {
    let options = BackupOptions {
        ranges: Some(ranges),
        read: Some(read),
        ..BackupOptions::default()
    };
    backup(database, repository, options, &Progress::new()).await
}

/// A backup that must succeed.
pub(crate) async fn back_up(database: &Firestore, repository: &Repository, ranges: usize) -> Snapshot {
    try_back_up(database, repository, ranges).await.unwrap().snapshot
}

/// Everything, as fast as it goes.
pub(crate) fn restore_options(database: &Firestore, dead_letter_file: &Path) -> RestoreOptions {
    RestoreOptions {
        parallel: 4,
        ..RestoreOptions::new(database, dead_letter_file)
    }
}

/// A restore of all of a snapshot; its dead letters go where nobody looks.
pub(crate) async fn try_restore(
    reader: &SnapshotReader,
    database: &Firestore,
) -> Result<RestoreStats, RestoreError> {
    let folder = tempfile::tempdir().unwrap();
    let options = restore_options(database, &folder.path().join("failed.ndjson"));
    restore(reader, database, options, &Progress::new()).await
}

/// A restore of all documents that must succeed.
pub(crate) async fn restore_all(repository: &Repository, snapshot: &Snapshot, database: &Firestore) {
    let reader = repository.reader(snapshot).await.unwrap();
    let stats = try_restore(&reader, database).await.unwrap();
    assert_eq!(
        (stats.documents, stats.written, stats.failed, stats.existing),
        (snapshot.documents, snapshot.documents, 0, 0)
    );
}

/// Every document of a database, now.
pub(crate) async fn scan(database: &Firestore) -> impl Stream<Item = anyhow::Result<DocumentBatch>> + use<> {
    let time = database.current_read_time().await.unwrap();
    database
        .scan(ScanOptions::new(KeyRange::all(), time))
        .map_err(anyhow::Error::from)
}

/// Every document of a snapshot.
pub(crate) async fn documents(
    repository: &Repository,
    snapshot: &Snapshot,
) -> BoxStream<'static, anyhow::Result<DocumentBatch>> {
    let reader = repository.reader(snapshot).await.unwrap();
    let documents = reader.documents(KeyRange::all()).boxed();
    documents.map_err(anyhow::Error::from).boxed()
}

/// Two databases, document by document.
pub(crate) async fn compare_databases(expected: &Firestore, found: &Firestore) -> Comparison {
    compare(scan(expected).await, scan(found).await).await.unwrap()
}

/// Panics unless the snapshot is the database.
pub(crate) async fn assert_snapshot_is(repository: &Repository, snapshot: &Snapshot, database: &Firestore) {
    let comparison = compare(scan(database).await, documents(repository, snapshot).await)
        .await
        .unwrap();
    assert!(comparison.is_equal(), "{comparison:?}");
    assert_eq!(comparison.equal, snapshot.documents);
}

/// Panics unless every snapshot is intact to the last byte, and there are so many.
pub(crate) async fn assert_intact(repository: &Repository, snapshots: u64) {
    let stats = verify(repository, VerifyOptions::read_everything(), &Progress::new())
        .await
        .unwrap();
    assert!(stats.is_intact(), "{:?}", stats.damage);
    assert_eq!(stats.snapshots, snapshots);
}
