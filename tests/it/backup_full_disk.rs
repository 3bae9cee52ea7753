//! A disk that fills up during a backup, at any write: a clear error, a valid repository, no snapshot.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use firebank::archive::{ArchiveError, Repository};
use firebank::backup::{BackupError, BackupOptions, backup};
use firebank::clock;
use firebank::document::{DatabaseName, canonical};
use firebank::firestore::{BulkWriter, ConnectOptions, Firestore, Target, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::sandbox::retail::{self, RetailSize};
use firebank::store::{Store, StoreError};
use firebank::verify::{VerifyOptions, verify};
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::support;

/// A store with room for so many more objects.
#[derive(Debug, Default)]
struct Filling {
    objects: InMemory,
    room: AtomicI64,
}

impl std::fmt::Display for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a small disk")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Filling {
    async fn put_opts(&self, name: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.room.fetch_sub(1, Ordering::SeqCst) <= 0 {
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
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(name, options).await
    }

    async fn get_opts(&self, name: &Path, options: GetOptions) -> Result<GetResult> {
        self.objects.get_opts(name, options).await
    }

    async fn get_ranges(&self, name: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.objects.get_ranges(name, ranges).await
    }

    fn delete_stream(&self, names: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(names)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_disk_that_fills_at_any_write_leaves_a_valid_repository() {
    let sandbox = support::sandbox().await;
    let target = Target::Emulator {
        host_port: sandbox.address().to_string(),
    };
    let database = DatabaseName::new(support::project("full"), "(default)");
    let connection = Firestore::connect(ConnectOptions::new(database, target))
        .await
        .unwrap();
    let options = WriteOptions::new(&connection);
    let mut writer = BulkWriter::new(&connection, options, Vec::<WriteFailure>::new());
    for (path, fields) in retail::documents(RetailSize::SMALL, 3) {
        writer.put(&path, &canonical::encode(&fields)).await.unwrap();
    }
    writer.finish().await.unwrap();

    let disk = Arc::new(Filling::default());
    let store = Store::new(disk.clone(), "a small disk");
    disk.room.store(i64::MAX, Ordering::SeqCst);
    let repository = Repository::init(store, clock::now()).await.unwrap();

    let mut failures = 0;
    for room in 0.. {
        disk.room.store(room, Ordering::SeqCst);
        let options = BackupOptions {
            ranges: Some(3),
            ..BackupOptions::default()
        };
        let taken = backup(&connection, &repository, options, &Progress::new()).await;
        let repository = Repository::open(repository.store().clone()).await.unwrap();
        let checked = verify(&repository, VerifyOptions::read_everything(), &Progress::new())
            .await
            .unwrap();
        assert!(checked.is_intact(), "{:?}", checked.damage);
        let snapshots = repository.snapshots().await.unwrap();
        assert!(snapshots.unreadable.is_empty());
        match taken {
            Err(error) => {
                let message = error.to_string();
                assert!(
                    matches!(
                        error,
                        BackupError::Archive(ArchiveError::Store(StoreError::Full { .. }))
                    ),
                    "after {room} writes: {error:?}"
                );
                assert!(message.starts_with("no space left to create `"), "{message}");
                assert!(snapshots.snapshots.is_empty(), "after {room} writes");
                failures += 1;
            }
            Ok(stats) => {
                assert_eq!(snapshots.snapshots.len(), 1);
                assert_eq!(checked.documents, stats.snapshot.documents);
                break;
            }
        }
    }
    // Pins, plan, chunks, checkpoints, the snapshot itself: each was the one that did not fit.
    assert!(failures >= 6, "{failures}");
}
