//! Backups that others get in the way of, each at one moment between two of its requests: what it builds upon is forgotten, another
//! worker of its session is faster, the session of its name cannot be begun.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use firebank::archive::{
    ArchiveError, Parameters, Repository, Session, SessionId, Snapshot, SnapshotDraft, SweepOptions, sweep,
};
use firebank::backup::{BackupError, BackupOptions, BackupStats, backup};
use firebank::document::{DocumentPath, canonical, typed_json};
use firebank::firestore::{BulkWriter, Firestore, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::sandbox::Sandbox;
use firebank::stop::Stop;
use firebank::store::Store;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::support::operations::*;
use crate::support::{project, sandbox};

/// What another process does at the right moment.
type Meddling = BoxFuture<'static, ()>;

/// Objects in memory, where something happens right before the first request for an object whose name ends so.
#[derive(Default)]
struct Meddled {
    objects: Arc<InMemory>,
    before: Mutex<Option<(&'static str, String, Meddling)>>,
}

impl Meddled {
    async fn happens(&self, verb: &str, name: &Path) {
        let meddling = {
            let mut before = self.before.lock().unwrap();
            match &*before {
                Some((wanted, end, _)) if *wanted == verb && name.as_ref().ends_with(end) => before.take(),
                _ => None,
            }
        };
        if let Some((_, _, meddling)) = meddling {
            meddling.await;
        }
    }
}

impl fmt::Debug for Meddled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meddled")
    }
}

impl fmt::Display for Meddled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("meddled with")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Meddled {
    async fn put_opts(&self, name: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.happens("put", name).await;
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
        self.happens("get", name).await;
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

struct World {
    _sandbox: Sandbox,
    database: Firestore,
    objects: Arc<Meddled>,
    /// As any other process sees it.
    repository: Repository,
}

impl World {
    async fn new() -> Self {
        let sandbox = sandbox().await;
        let objects = Arc::new(Meddled::default());
        let store = Store::new(Arc::clone(&objects.objects) as Arc<dyn ObjectStore>, "beside");
        let parameters = Parameters {
            page_records: 16,
            ..small_segments()
        };
        let world = Self {
            database: connect(&sandbox.address().to_string(), &project("races"), "(default)").await,
            repository: repository_in(store, parameters).await,
            objects,
            _sandbox: sandbox,
        };
        world.write(0..60, 0).await;
        world
    }

    async fn write(&self, documents: impl Iterator<Item = u64>, version: u64) {
        let options = WriteOptions::new(&self.database);
        let mut writer = BulkWriter::new(&self.database, options, Vec::<WriteFailure>::new());
        for number in documents {
            let path = DocumentPath::parse(format!("orders/o{number:04}")).unwrap();
            let text = format!("{number}v{version}").repeat(20);
            let fields = typed_json::fields_from_str(&format!(r#"{{"text": "{text}"}}"#)).unwrap();
            writer.put(&path, &canonical::encode(&fields)).await.unwrap();
        }
        assert_eq!(writer.finish().await.unwrap().failed, 0);
    }

    /// A process of its own, that others meddle with.
    async fn back_up(&self, options: BackupOptions) -> std::result::Result<BackupStats, BackupError> {
        let store = Store::new(Arc::clone(&self.objects) as Arc<dyn ObjectStore>, "meddled with");
        let repository = Repository::open(store).await.unwrap();
        let options = BackupOptions {
            ranges: Some(3),
            ..options
        };
        backup(&self.database, &repository, options, &Progress::new()).await
    }

    /// Has something happen right before the next request of a kind for an object whose name ends so.
    fn before(&self, verb: &'static str, end: &str, meddling: impl Future<Output = ()> + Send + 'static) {
        *self.objects.before.lock().unwrap() = Some((verb, end.to_owned(), meddling.boxed()));
    }

    /// Whether what was to happen did.
    fn has_happened(&self) -> bool {
        self.objects.before.lock().unwrap().is_none()
    }

    /// A backup that stops as soon as it has a plan.
    async fn leave(&self, options: BackupOptions) -> SessionId {
        let stop = Stop::default();
        stop.request();
        let left = self.back_up(BackupOptions { stop, ..options }).await;
        match left {
            Err(BackupError::Stopped { session, .. }) => session,
            other => panic!("{other:?}"),
        }
    }

    async fn newest(&self) -> Snapshot {
        self.repository.snapshots().await.unwrap().snapshots.remove(0)
    }

    /// Another worker of the session commits what its ranges have.
    fn commits(&self, session: SessionId, parent: Option<Snapshot>) -> impl Future<Output = ()> + use<> {
        let repository = self.repository.clone();
        async move {
            let other = Session::join(&repository, session, 1 << 20).await.unwrap();
            let draft = SnapshotDraft {
                parent,
                ..SnapshotDraft::default()
            };
            other.commit(draft).await.unwrap();
        }
    }

    fn forgets(&self, snapshot: &Snapshot) -> impl Future<Output = ()> + use<> {
        let (repository, id) = (self.repository.clone(), snapshot.id);
        async move { repository.forget(id, "a test").await.unwrap() }
    }
}

fn named(name: &str) -> BackupOptions {
    BackupOptions {
        session: Some(name.to_owned()),
        ..BackupOptions::default()
    }
}

fn resuming() -> BackupOptions {
    BackupOptions {
        resume: true,
        ..BackupOptions::default()
    }
}

/// What a session pins stays while it is undecided, forgotten or not, and whoever goes on with it builds upon it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_when_what_it_builds_upon_was_forgotten() {
    for (options, go_on) in [
        (BackupOptions::default(), resuming()),
        (named("nightly"), named("nightly")),
    ] {
        let world = World::new().await;
        let parent = world.back_up(BackupOptions::default()).await.unwrap().snapshot;
        world.write((0..60).step_by(9), 1).await;
        let session = world.leave(options).await;
        // Another one stands in for it, and a prune runs over everything.
        world.back_up(BackupOptions::default()).await.unwrap();
        world.forgets(&parent).await;
        sweep(&world.repository, &SweepOptions::default()).await.unwrap();
        let stats = world.back_up(go_on).await.unwrap();
        assert_eq!(stats.snapshot.id, session);
        assert_eq!(stats.snapshot.parent, Some(parent.id));
        assert_snapshot_is(&world.repository, &stats.snapshot, &world.database).await;
        sweep(&world.repository, &SweepOptions::default()).await.unwrap();
        assert_intact(&world.repository, 2).await;
    }
}

/// The snapshot to build upon is forgotten between the look and the pins: the session is lost, its name is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_outlives_a_pin_that_is_gone() {
    for options in [BackupOptions::default(), named("nightly")] {
        let world = World::new().await;
        let older = world.back_up(BackupOptions::default()).await.unwrap().snapshot;
        world.write(0..5, 1).await;
        let newest = world.back_up(BackupOptions::default()).await.unwrap().snapshot;
        world.write(5..9, 2).await;
        world.before("put", "/pins.json", world.forgets(&newest));
        let stats = world.back_up(options.clone()).await.unwrap();
        assert!(world.has_happened());
        assert_eq!(stats.snapshot.parent, Some(older.id));
        assert_snapshot_is(&world.repository, &stats.snapshot, &world.database).await;
        if options.session.is_some() {
            // It is used up now, by the one snapshot that came of it.
            let late = world.back_up(options).await;
            assert!(
                matches!(&late, Err(BackupError::NameUsed { session, how: "committed", .. }) if *session == stats.snapshot.id),
                "{late:?}"
            );
        }
        sweep(&world.repository, &SweepOptions::default()).await.unwrap();
        assert_intact(&world.repository, 2).await;
    }
}

/// A worker died when it had pinned a snapshot that was forgotten since: nobody can plan upon it, and the name goes on without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_outlives_pins_that_were_left() {
    let world = World::new().await;
    let parent = world.back_up(BackupOptions::default()).await.unwrap().snapshot;
    world.write(0..5, 1).await;
    let session = world.leave(named("nightly")).await;
    let plan = format!("{}/plan.json", session.folder());
    world.repository.store().delete(&plan).await.unwrap();
    world.forgets(&parent).await;
    let stats = world.back_up(named("nightly")).await.unwrap();
    assert_eq!(stats.snapshot.parent, None);
    assert_ne!(stats.snapshot.id, session);
    assert_snapshot_is(&world.repository, &stats.snapshot, &world.database).await;
}

/// Another worker commits between the look at the session and the work on it: that snapshot is what came of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_committed_in_the_same_moment_ends_well() {
    for (options, go_on) in [
        (BackupOptions::default(), resuming()),
        (named("nightly"), named("nightly")),
    ] {
        let world = World::new().await;
        let session = world.leave(options).await;
        // All is read, and only the commit is missing.
        let other = Session::join(&world.repository, session, 1 << 20).await.unwrap();
        for range in other.unfinished_ranges().await.unwrap() {
            let mut writer = other.resume_range_writer(range.clone());
            let options =
                firebank::firestore::ScanOptions::new(writer.reads().clone(), other.plan().read_time);
            let mut batches = Box::pin(world.database.scan(options));
            'reading: while let Some(batch) = futures::TryStreamExt::try_next(&mut batches).await.unwrap() {
                for document in batch.iter() {
                    if writer.push(document).await.unwrap() == firebank::archive::Flow::Done {
                        break 'reading;
                    }
                }
            }
            writer.finish().await.unwrap();
        }
        world.before("get", "/pins.json", world.commits(session, None));
        let stats = world.back_up(go_on).await.unwrap();
        assert!(world.has_happened());
        assert_eq!(stats.snapshot, world.newest().await);
        assert_eq!(stats.snapshot.id, session);
        assert_snapshot_is(&world.repository, &stats.snapshot, &world.database).await;
        assert_intact(&world.repository, 1).await;
    }
}

/// Layers are merged by the worker that made the snapshot, and by it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_of_a_session_merges_layers() {
    let world = World::new().await;
    let parent = world.back_up(BackupOptions::default()).await.unwrap().snapshot;
    // More than half of the base: all layers are due.
    world.write(0..45, 1).await;
    let session = world.leave(named("nightly")).await;
    let end = session.snapshot_name();
    world.before("put", &end, world.commits(session, Some(parent)));
    let stats = world.back_up(named("nightly")).await.unwrap();
    assert!(world.has_happened());
    assert_eq!(stats.snapshot.id, session);
    let listed = world.repository.snapshots().await.unwrap();
    assert_eq!((listed.snapshots.len(), listed.forgotten.len()), (2, 0));
    // Whoever commits by itself does merge.
    world.write(0..45, 2).await;
    let merged = world.back_up(named("next")).await.unwrap().snapshot;
    assert_eq!(merged.runs.len(), 1);
    assert_snapshot_is(&world.repository, &merged, &world.database).await;
}

/// A session that is given up between the look and the work is not gone on with; another one begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_given_up_in_the_same_moment_is_not_gone_on_with() {
    let world = World::new().await;
    let session = world.leave(BackupOptions::default()).await;
    let repository = world.repository.clone();
    world.before("get", "/pins.json", async move {
        firebank::archive::session::abort(&repository, session, "a test")
            .await
            .unwrap();
    });
    let stats = world.back_up(resuming()).await.unwrap();
    assert_ne!(stats.snapshot.id, session);
    assert_snapshot_is(&world.repository, &stats.snapshot, &world.database).await;
    let late = Session::join(&world.repository, session, 1 << 20).await;
    assert!(matches!(late, Err(ArchiveError::Aborted { .. })), "{late:?}");
}
