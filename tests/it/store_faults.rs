//! Stores that fail: whichever request it is, the repository stays valid, nothing half-written is taken for a snapshot, and
//! the next backup succeeds.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use firebank::archive::{ReadMode, Repository};
use firebank::backup::{BackupError, BackupStats};
use firebank::document::DocumentPath;
use firebank::firestore::{BulkWriter, Firestore, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::sandbox::{Sandbox, SandboxConfig, SyntheticSpec};
use firebank::store::Store;
use firebank::verify::{VerifyOptions, verify};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::support::operations::*;
use crate::support::sandbox_with;

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    /// Nothing happens but the error.
    Refused,
    /// It is done, and the answer is lost.
    DoneUnsaid,
    /// A put is done, its answer lost, and the client underneath, trying again, finds the object there.
    DoneTwice,
}

/// Which requests fail.
#[derive(Clone, Copy, Debug)]
enum Which {
    /// This one, counted from 1.
    Only(u64),
    /// This one and all that follow.
    From(u64),
}

#[derive(Debug, Default)]
struct Plan {
    seen: u64,
    trouble: Option<(Which, Trouble)>,
}

/// Objects in memory behind requests that fail by plan.
#[derive(Debug, Default)]
struct FailingStore {
    inner: InMemory,
    plan: Mutex<Plan>,
}

impl FailingStore {
    /// Begins to count anew.
    fn plan(&self, trouble: Option<(Which, Trouble)>) {
        *self.plan.lock().unwrap() = Plan { seen: 0, trouble };
    }

    fn seen(&self) -> u64 {
        self.plan.lock().unwrap().seen
    }

    fn count(&self) -> Option<Trouble> {
        let mut plan = self.plan.lock().unwrap();
        plan.seen += 1;
        let seen = plan.seen;
        plan.trouble.and_then(|(which, trouble)| {
            let meant = match which {
                Which::Only(nth) => seen == nth,
                Which::From(nth) => seen >= nth,
            };
            meant.then_some(trouble)
        })
    }
}

fn lost() -> Error {
    Error::Generic {
        store: "failing",
        source: "the connection is gone".into(),
    }
}

impl fmt::Display for FailingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing")
    }
}

#[async_trait::async_trait]
impl ObjectStore for FailingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let trouble = self.count();
        if trouble == Some(Trouble::Refused) {
            return Err(lost());
        }
        let result = self.inner.put_opts(location, payload, opts).await;
        match trouble {
            Some(Trouble::DoneTwice) => Err(Error::AlreadyExists {
                path: location.to_string(),
                source: "it is there".into(),
            }),
            Some(_) => Err(lost()),
            None => result,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        match self.count() {
            Some(_) => Err(lost()),
            None => self.inner.put_multipart_opts(location, opts).await,
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        match self.count() {
            Some(Trouble::DoneTwice) | None => self.inner.get_opts(location, options).await,
            Some(_) => Err(lost()),
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        match self.count() {
            Some(Trouble::DoneTwice) | None => self.inner.get_ranges(location, ranges).await,
            Some(_) => Err(lost()),
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.count() {
            Some(Trouble::Refused) => async { Err(lost()) }.into_stream().boxed(),
            _ => self.inner.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.count() {
            Some(Trouble::DoneTwice) | None => self.inner.list(prefix),
            // Cut off: a listing that ends early must not look complete.
            Some(_) => self
                .inner
                .list(prefix)
                .take(1)
                .chain(async { Err(lost()) }.into_stream())
                .boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        match self.count() {
            Some(Trouble::DoneTwice) | None => self.inner.list_with_delimiter(prefix).await,
            Some(_) => Err(lost()),
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A database in a sandbox, and a repository in a store that can fail.
struct Scene {
    sandbox: Sandbox,
    database: Firestore,
    objects: Arc<FailingStore>,
    repository: Repository,
    snapshots: u64,
    changes: u64,
    /// Whether backups build upon the one before.
    nights: bool,
}

impl Scene {
    async fn new() -> Self {
        let sandbox = sandbox_with(SandboxConfig {
            synthetic: vec![SyntheticSpec {
                database: Some(firebank::document::DatabaseName::new("demo-store", "(default)")),
                ..SyntheticSpec::new("products", 120, 600)
            }],
            ..SandboxConfig::default()
        })
        .await;
        let database = client(&sandbox, "demo-store").await;
        let objects = Arc::new(FailingStore::default());
        let store = Store::new(objects.clone(), "failing");
        let repository = repository_in(store, small_segments()).await;
        Self {
            sandbox,
            database,
            objects,
            repository,
            snapshots: 0,
            changes: 0,
            nights: false,
        }
    }

    /// Something that each new backup has to store.
    async fn change(&mut self) {
        self.changes += 1;
        let mut writer = BulkWriter::new(
            &self.database,
            WriteOptions::new(&self.database),
            Vec::<WriteFailure>::new(),
        );
        for collection in ["a", "z"] {
            let path = DocumentPath::parse(format!("{collection}/{}", self.changes % 7)).unwrap();
            let fields = [(
                "n".to_owned(),
                firebank::document::Value::Integer(self.changes as i64),
            )]
            .into();
            writer
                .put(&path, &firebank::document::canonical::encode(&fields))
                .await
                .unwrap();
        }
        assert_eq!(writer.finish().await.unwrap().written, 2);
    }

    /// Everything that is listed is whole. How many snapshots there are.
    async fn intact(&self) -> u64 {
        let stats = verify(
            &self.repository,
            VerifyOptions::read_everything(),
            &Progress::new(),
        )
        .await
        .unwrap();
        assert!(stats.is_intact(), "{:?}", stats.damage);
        stats.snapshots
    }

    async fn succeeds(&mut self) {
        let snapshot = self.back_up().await.unwrap().snapshot;
        self.snapshots += 1;
        assert_eq!(self.intact().await, self.snapshots);
        assert_snapshot_is(&self.repository, &snapshot, &self.database).await;
    }

    /// How many requests a backup takes.
    async fn requests(&mut self) -> u64 {
        self.change().await;
        self.objects.plan(None);
        self.back_up().await.unwrap();
        self.snapshots += 1;
        self.objects.seen()
    }

    async fn back_up(&self) -> std::result::Result<BackupStats, BackupError> {
        match self.nights {
            true => try_back_up_changes(&self.database, &self.repository, ReadMode::Names, 2).await,
            false => try_back_up(&self.database, &self.repository, 2).await,
        }
    }
}

/// Every request in turn fails: once, or from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_survives_the_failure_of_any_request() {
    survives_the_failure_of_any_request(Scene::new().await).await;
}

/// The same for backups that build upon the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_survives_the_failure_of_any_request() {
    let mut scene = Scene::new().await;
    scene.succeeds().await;
    scene.nights = true;
    survives_the_failure_of_any_request(scene).await;
}

async fn survives_the_failure_of_any_request(mut scene: Scene) {
    scene.succeeds().await;
    let requests = scene.requests().await;
    assert!(requests > 10, "{requests}");
    let (mut failed, mut committed) = (0, 0);
    for nth in 1..=requests {
        for (which, trouble) in [
            (Which::Only(nth), Trouble::Refused),
            (Which::From(nth), Trouble::Refused),
            (Which::Only(nth), Trouble::DoneUnsaid),
        ] {
            scene.change().await;
            scene.objects.plan(Some((which, trouble)));
            let result = scene.back_up().await;
            scene.objects.plan(None);
            let listed = scene.intact().await;
            match result {
                Ok(stats) => {
                    // A failed heartbeat or the like harms nobody.
                    assert_eq!(listed, scene.snapshots + 1, "{which:?} {trouble:?}");
                    assert_snapshot_is(&scene.repository, &stats.snapshot, &scene.database).await;
                }
                Err(error) => {
                    failed += 1;
                    let told = format!("{error}: {:?}", std::error::Error::source(&error));
                    assert!(told.contains("connection is gone"), "{told}");
                    match trouble {
                        Trouble::Refused => assert_eq!(listed, scene.snapshots, "{which:?}: {told}"),
                        // The commit itself may be what nobody heard the answer of.
                        _ => committed += listed - scene.snapshots,
                    }
                }
            }
            scene.snapshots = listed;
        }
        if nth % 5 == 0 {
            scene.change().await;
            scene.succeeds().await;
        }
    }
    assert!(failed >= 2 * requests, "{failed} of {requests} times 3 failed");
    assert!(
        committed <= 1,
        "{committed} snapshots came out of backups that failed"
    );
    scene.change().await;
    scene.succeeds().await;
    scene.sandbox.shutdown().await;
}

/// An object that is there already with the very same bytes is one's own write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_was_done_twice_unawares_is_no_failure() {
    let mut scene = Scene::new().await;
    scene.succeeds().await;
    let requests = scene.requests().await;
    for which in (1..=requests).map(Which::Only).chain([Which::From(1)]) {
        scene.change().await;
        scene.objects.plan(Some((which, Trouble::DoneTwice)));
        let snapshot = back_up(&scene.database, &scene.repository, 2).await;
        scene.objects.plan(None);
        scene.snapshots += 1;
        assert_eq!(scene.intact().await, scene.snapshots, "{which:?}");
        assert_snapshot_is(&scene.repository, &snapshot, &scene.database).await;
    }
}

/// A restore that cannot read stops with the reason, and the next one completes what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_says_when_it_cannot_read() {
    let mut scene = Scene::new().await;
    scene.change().await;
    let snapshot = back_up(&scene.database, &scene.repository, 2).await;
    let address = scene.sandbox.address().to_string();
    scene.objects.plan(None);
    let copy = connect(&address, "demo-first-copy", "(default)").await;
    restore_all(&scene.repository, &snapshot, &copy).await;
    // The last one removes the lease: where that fails, a later `clean` does it.
    let requests = scene.objects.seen() - 1;
    assert!(requests >= 5, "{requests}");
    for nth in 1..=requests {
        let copy = connect(&address, &format!("demo-copy-{nth}"), "(default)").await;
        scene.objects.plan(Some((Which::From(nth), Trouble::Refused)));
        let told = match scene.repository.reader(&snapshot).await {
            Ok(reader) => try_restore(&reader, &copy)
                .await
                .err()
                .map(|error| format!("{error}: {:?}", std::error::Error::source(&error))),
            Err(error) => Some(format!("{error}: {:?}", std::error::Error::source(&error))),
        };
        scene.objects.plan(None);
        let told = told.unwrap_or_else(|| panic!("request {nth} of {requests} failed and nobody said so"));
        assert!(told.contains("connection is gone"), "{told}");
        if nth % 4 == 0 || nth == requests {
            restore_all(&scene.repository, &snapshot, &copy).await;
            assert!(compare_databases(&scene.database, &copy).await.is_equal());
        }
    }
}
