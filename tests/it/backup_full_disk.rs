//! A disk that fills up at any write: a clear error, a valid repository, no snapshot; and a full disk that is cleaned.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use firebank::archive::{ArchiveError, Repository, Snapshot, SweepOptions, sweep};
use firebank::backup::{BackupError, BackupOptions, BackupStats, backup};
use firebank::clock;
use firebank::document::{DatabaseName, DocumentPath, Fields, Value, canonical};
use firebank::firestore::{BulkWriter, ConnectOptions, Firestore, Target, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::prune::{Choice, Policy, PruneError, PruneFilter, PruneStats, plan, prune};
use firebank::sandbox::Sandbox;
use firebank::sandbox::retail::{self, RetailSize};
use firebank::store::{Store, StoreError};
use firebank::verify::{VerifyOptions, verify};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use crate::support;

/// A store with room for so many more objects. What is deleted makes room again.
#[derive(Debug, Default)]
struct Filling {
    objects: InMemory,
    room: Arc<AtomicI64>,
}

impl Filling {
    fn set_room(&self, room: i64) {
        self.room.store(room, Ordering::SeqCst);
    }

    fn takes_one_more(&self) -> bool {
        let less = |room: i64| (room > 0).then(|| room - 1);
        self.room
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .is_ok()
    }
}

impl std::fmt::Display for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a small disk")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Filling {
    async fn put_opts(
        &self,
        name: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if !self.takes_one_more() {
            return Err(object_store::Error::Generic {
                store: "a small disk",
                source: Box::new(std::io::Error::from(std::io::ErrorKind::StorageFull)),
            });
        }
        self.objects.put_opts(name, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        name: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(name, options).await
    }

    async fn get_opts(&self, name: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.objects.get_opts(name, options).await
    }

    async fn get_ranges(&self, name: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.objects.get_ranges(name, ranges).await
    }

    fn delete_stream(
        &self,
        names: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let room = Arc::clone(&self.room);
        let deleted = self.objects.delete_stream(names);
        deleted
            .inspect_ok(move |_| {
                room.fetch_add(1, Ordering::SeqCst);
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

struct World {
    _sandbox: Sandbox,
    database: Firestore,
    disk: Arc<Filling>,
    repository: Repository,
}

impl World {
    /// Documents, an empty repository, and room for everything.
    async fn new() -> Self {
        let sandbox = support::sandbox().await;
        let target = Target::Emulator {
            host_port: sandbox.address().to_string(),
        };
        let database = DatabaseName::new(support::project("full"), "(default)");
        let database = Firestore::connect(ConnectOptions::new(database, target))
            .await
            .unwrap();
        let disk = Arc::new(Filling::default());
        disk.set_room(i64::from(u32::MAX));
        let store = Store::new(disk.clone(), "a small disk");
        let repository = Repository::init(store, clock::now()).await.unwrap();
        let world = Self {
            _sandbox: sandbox,
            database,
            disk,
            repository,
        };
        world.write(retail::documents(RetailSize::SMALL, 3)).await;
        world
    }

    async fn write(&self, documents: impl Iterator<Item = (DocumentPath, Fields)>) {
        let options = WriteOptions::new(&self.database);
        let mut writer = BulkWriter::new(&self.database, options, Vec::<WriteFailure>::new());
        for (path, fields) in documents {
            writer.put(&path, &canonical::encode(&fields)).await.unwrap();
        }
        writer.finish().await.unwrap();
    }

    /// Changes so many documents.
    async fn change(&self, documents: usize, version: i64) {
        let all = retail::documents(RetailSize::SMALL, 3).take(documents);
        let changed = all.map(|(path, mut fields)| {
            fields.insert("version".to_owned(), Value::Integer(version));
            (path, fields)
        });
        self.write(changed).await;
    }

    async fn back_up(&self) -> Result<BackupStats, BackupError> {
        let options = BackupOptions {
            ranges: Some(3),
            ..BackupOptions::default()
        };
        backup(&self.database, &self.repository, options, &Progress::new()).await
    }

    async fn clean(&self, keep: u32) -> Result<PruneStats, PruneError> {
        let choice = Choice::Policy(Policy::last(keep));
        let repository = Some(&self.repository);
        let plan = plan(repository, None, &choice, &PruneFilter::default()).await?;
        prune(repository, &plan, &SweepOptions::default()).await
    }

    /// Everything that stands is whole to the last byte.
    async fn check(&self) -> (Vec<Snapshot>, u64) {
        let repository = Repository::open(self.repository.store().clone()).await.unwrap();
        let checked = verify(&repository, VerifyOptions::read_everything(), &Progress::new())
            .await
            .unwrap();
        assert!(checked.is_intact(), "{:?}", checked.damage);
        let listing = repository.snapshots().await.unwrap();
        assert!(listing.unreadable.is_empty());
        (listing.snapshots, checked.documents)
    }
}

fn is_full(error: &BackupError) -> bool {
    matches!(
        error,
        BackupError::Archive(ArchiveError::Store(StoreError::Full { .. }))
    )
}

#[tokio::test]
async fn a_disk_that_fills_at_any_write_leaves_a_valid_repository() {
    let world = World::new().await;
    let mut failures = 0;
    for room in 0.. {
        world.disk.set_room(room);
        let taken = world.back_up().await;
        let (snapshots, documents) = world.check().await;
        match taken {
            Err(error) => {
                let message = error.to_string();
                assert!(is_full(&error), "after {room} writes: {error:?}");
                assert!(message.starts_with("no space left to create `"), "{message}");
                assert!(snapshots.is_empty(), "after {room} writes");
                failures += 1;
            }
            Ok(stats) => {
                assert_eq!(snapshots.len(), 1);
                assert_eq!(documents, stats.snapshot.documents);
                break;
            }
        }
    }
    // Pins, plan, chunks, checkpoints, the snapshot itself: each was the one that did not fit.
    assert!(failures >= 6, "{failures}");
}

/// A night whose layers are due: it stands from its own snapshot on, merged or not.
#[tokio::test]
async fn a_night_and_its_merge_may_find_the_disk_full_at_any_write() {
    let world = World::new().await;
    let base = world.back_up().await.unwrap().snapshot;
    world.change(base.documents as usize * 2 / 3, 1).await;
    let (mut failures, mut unmerged) = (0, 0);
    for room in 0.. {
        world.disk.set_room(room);
        let taken = world.back_up().await;
        let (snapshots, _) = world.check().await;
        match taken {
            Err(error) => {
                assert!(is_full(&error), "after {room} writes: {error:?}");
                assert_eq!(snapshots.len(), 1, "after {room} writes");
                failures += 1;
            }
            Ok(stats) => {
                let night = &stats.snapshot;
                assert!(snapshots.contains(night), "after {room} writes");
                assert_eq!(night.documents, base.documents);
                if night.runs.len() == 1 {
                    break;
                }
                unmerged += 1;
                // The same again, upon the same.
                world.disk.set_room(i64::from(u32::MAX));
                for one in snapshots.iter().filter(|one| one.id != base.id) {
                    world.repository.forget(one.id, "a test").await.unwrap();
                }
            }
        }
    }
    assert!(failures >= 5 && unmerged >= 4, "{failures} and {unmerged}");
}

/// To give snapshots up takes room, and room is what is missing: so what is due already goes first.
#[tokio::test]
async fn a_full_disk_is_cleaned() {
    let world = World::new().await;
    let first = world.back_up().await.unwrap().snapshot;
    for version in 0..3 {
        world.change(10, version).await;
        world.back_up().await.unwrap();
    }
    world.disk.set_room(0);
    let stats = world.clean(2).await.unwrap();
    assert_eq!(stats.forgotten, 2);
    assert!(stats.sweep.finished_sessions > 0, "{stats:?}");
    let (snapshots, _) = world.check().await;
    assert_eq!(snapshots.len(), 2);
    assert!(snapshots.iter().all(|one| one.id != first.id));
    // A sweep alone needs no room at all.
    world.repository.forget(snapshots[0].id, "a test").await.unwrap();
    world.disk.set_room(0);
    let swept = sweep(&world.repository, &SweepOptions::default()).await.unwrap();
    assert!(swept.deleted_objects > 0, "{swept:?}");
    assert_eq!(world.check().await.0.len(), 1);
}

/// Where nothing is due, and there is no room to say what is to go, that is what the error says.
#[tokio::test]
async fn a_full_disk_where_nothing_is_due_says_what_to_do() {
    let world = World::new().await;
    for version in 0..3 {
        world.change(10, version).await;
        world.back_up().await.unwrap();
    }
    sweep(&world.repository, &SweepOptions::default()).await.unwrap();
    world.disk.set_room(0);
    let error = world.clean(1).await.unwrap_err();
    let message = error.to_string();
    for part in ["some kilobytes", "nothing that could be deleted", "clean"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(world.check().await.0.len(), 3);
    world.disk.set_room(2);
    assert_eq!(world.clean(1).await.unwrap().forgotten, 2);
    assert_eq!(world.check().await.0.len(), 1);
}
