//! Identities that may do only what their work needs, as the README lists it: each does its work, and each of its rights is
//! needed.

use std::fmt;
use std::sync::Arc;

use firebank::archive::{ArchiveError, Repository, SweepOptions};
use firebank::backup::BackupError;
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::prune::{Choice, Policy, PruneError, PruneFilter, PruneStats, plan, prune};
use firebank::sandbox::{Sandbox, SandboxConfig, SyntheticSpec};
use firebank::store::{Store, StoreError};
use firebank::verify::{VerifyOptions, verify};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::cli_support::{SHOP, Shop};
use crate::support::buckets::{KINDS, Server, Trouble};
use crate::support::operations::*;
use crate::support::sandbox_with;

/// What an identity may do with objects. Nobody needs to overwrite one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Create,
    Get,
    List,
    Delete,
}

use Right::{Create, Delete, Get, List};

const BACKUP: [Right; 3] = [Create, Get, List];
const PRUNE: [Right; 4] = [Create, Get, List, Delete];
const RESTORE: [Right; 2] = [Get, List];

/// Objects in memory, seen by an identity with these rights.
#[derive(Debug)]
struct Seen {
    objects: Arc<InMemory>,
    rights: Vec<Right>,
}

impl Seen {
    fn needs(&self, right: Right, location: &Path) -> Result<()> {
        match self.rights.contains(&right) {
            true => Ok(()),
            false => Err(refused(location, format!("{right:?} is not granted"))),
        }
    }
}

fn refused(location: &Path, what: String) -> Error {
    Error::PermissionDenied {
        path: location.to_string(),
        source: what.into(),
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seen")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Seen {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if opts.mode != PutMode::Create {
            return Err(refused(location, "nobody may overwrite".to_owned()));
        }
        self.needs(Create, location)?;
        self.objects.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(refused(location, "nobody may overwrite".to_owned()))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.needs(Get, location)?;
        self.objects.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.rights.contains(&Delete) {
            true => self.objects.delete_stream(locations),
            false => locations
                .map(|location| Err(refused(&location?, "Delete is not granted".to_owned())))
                .boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.needs(List, prefix.unwrap_or(&Path::default())) {
            Ok(()) => self.objects.list(prefix),
            Err(error) => futures::future::ready(Err(error)).into_stream().boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.needs(List, prefix.unwrap_or(&Path::default()))?;
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, to: &Path, _: CopyOptions) -> Result<()> {
        Err(refused(to, "nobody copies".to_owned()))
    }
}

struct Scene {
    objects: Arc<InMemory>,
    sandbox: Sandbox,
    database: Firestore,
}

impl Scene {
    async fn new() -> Self {
        let sandbox = sandbox_with(SandboxConfig {
            synthetic: vec![SyntheticSpec::new("products", 200, 600)],
            ..SandboxConfig::default()
        })
        .await;
        Self {
            objects: Arc::default(),
            database: client(&sandbox, "demo-rights").await,
            sandbox,
        }
    }

    fn store(&self, rights: &[Right]) -> Store {
        let objects = Arc::clone(&self.objects);
        let rights = rights.to_vec();
        Store::new(Arc::new(Seen { objects, rights }), "seen")
    }

    async fn repository(&self, rights: &[Right]) -> Repository {
        Repository::open(self.store(rights)).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_identity_does_its_work() {
    let scene = Scene::new().await;
    // `init` too: its probe stays where it may not be deleted.
    repository_in(scene.store(&BACKUP), small_segments()).await;
    let repository = scene.repository(&BACKUP).await;
    back_up(&scene.database, &repository, 2).await;
    let snapshot = back_up(&scene.database, &repository, 2).await;
    assert_eq!(repository.store().requests().delete, 0);

    let repository = scene.repository(&RESTORE).await;
    assert_intact(&repository, 2).await;
    assert_snapshot_is(&repository, &snapshot, &scene.database).await;
    let address = scene.sandbox.address().to_string();
    let copy = connect(&address, "demo-rights-copy", "(default)").await;
    restore_all(&repository, &snapshot, &copy).await;
    let asked = repository.store().requests();
    // The leases of the verification and of the restore were refused, and both went on without.
    assert_eq!((asked.put, asked.put_create, asked.delete), (0, 2, 0));

    let repository = scene.repository(&PRUNE).await;
    let stats = prune_all_but_one(&repository).await.unwrap();
    assert_eq!(stats.forgotten, 1);
    assert!(stats.sweep.finished_sessions > 0 && repository.store().requests().delete > 0);
    assert_intact(&repository, 1).await;
    assert_snapshot_is(&repository, &snapshot, &scene.database).await;
}

async fn prune_all_but_one(repository: &Repository) -> std::result::Result<PruneStats, PruneError> {
    let choice = Choice::Policy(Policy::last(1));
    let plan = plan(Some(repository), None, &choice, &PruneFilter::default()).await?;
    prune(Some(repository), &plan, &SweepOptions::default()).await
}

/// Without one of its rights a prune deletes nothing that anybody needs, and says which right is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_right_of_a_prune_is_needed() {
    let scene = Scene::new().await;
    repository_in(scene.store(&BACKUP), small_segments()).await;
    for _ in 0..3 {
        back_up(&scene.database, &scene.repository(&BACKUP).await, 2).await;
    }
    for missing in [Create, List, Delete] {
        let rights: Vec<Right> = PRUNE.into_iter().filter(|right| *right != missing).collect();
        let repository = scene.repository(&rights).await;
        let error = prune_all_but_one(&repository).await.unwrap_err();
        match (&error, missing) {
            (PruneError::Archive(ArchiveError::NotDeleted { .. }), Delete) => {}
            (PruneError::Archive(ArchiveError::Store(StoreError::NoPermission { .. })), Create | List) => {}
            _ => panic!("without {missing:?}: {error:?}"),
        }
        assert!(error.to_string().contains("permission"), "{error}");
        let repository = scene.repository(&RESTORE).await;
        // What was given up before the first refusal stays so.
        let standing = repository.snapshots().await.unwrap().snapshots.len() as u64;
        assert_eq!(standing, if missing == Delete { 1 } else { 3 });
        assert_intact(&repository, standing).await;
    }
    prune_all_but_one(&scene.repository(&PRUNE).await).await.unwrap();
    assert_intact(&scene.repository(&RESTORE).await, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_right_is_needed() {
    let is_refused =
        |error: &ArchiveError| matches!(error, ArchiveError::Store(StoreError::NoPermission { .. }));
    let scene = Scene::new().await;
    repository_in(scene.store(&BACKUP), small_segments()).await;
    back_up(&scene.database, &scene.repository(&BACKUP).await, 2).await;
    for rights in [[Create, List], [Delete, Delete]] {
        let error = Repository::open(scene.store(&rights)).await.unwrap_err();
        assert!(is_refused(&error), "{error:?}");
    }
    for rights in [[Get, List], [Create, Get]] {
        let repository = scene.repository(&rights).await;
        let error = try_back_up(&scene.database, &repository, 2).await.unwrap_err();
        assert!(
            matches!(&error, BackupError::Archive(error) if is_refused(error)),
            "{error:?}"
        );
    }
    let error = verify(
        &scene.repository(&[Get]).await,
        VerifyOptions::default(),
        &Progress::new(),
    )
    .await
    .unwrap_err();
    assert!(is_refused(&error), "{error:?}");
    assert_intact(&scene.repository(&RESTORE).await, 1).await;
}

/// The same by the binary, refused by the server.
#[test]
fn each_identity_does_its_work_in_a_bucket() {
    let shop = Shop::open();
    for (nth, kind) in KINDS.into_iter().enumerate() {
        let Some(server) = shop.runtime.block_on(Server::start(kind)) else {
            continue;
        };
        let may = |verbs: &'static [&'static str]| {
            server.front.trouble(|asked| {
                let refused = !verbs.contains(&asked.verb);
                refused.then_some(Trouble::Answer(403, "<Error><Code>AccessDenied</Code></Error>"))
            });
        };
        let variables = server.variables();
        let mut variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let (address, shop_address) = (server.address("rights"), shop.address());
        variables.extend([
            ("FIREBANK_REPOSITORY", address.as_str()),
            ("FIRESTORE_EMULATOR_HOST", &shop_address),
            ("FIREBASE_PROJECT_ID", SHOP),
        ]);
        let firebank = |arguments: &[&str]| shop.run_with(&variables, arguments);
        may(&["CREATE", "GET", "RANGE", "HEAD", "LIST"]);
        firebank(&["init"]).done();
        firebank(&["doctor", "--for", "backup"]).done();
        firebank(&["backup"]).done();
        firebank(&["list-backups"]).done();
        firebank(&["backup", "--full"]).done();
        let refused = firebank(&["clean", "--keep-last", "1"]);
        assert_eq!(refused.code, 1, "{refused}");
        assert!(refused.stderr.contains("right that `clean` needs"), "{refused}");
        may(&["CREATE", "GET", "RANGE", "HEAD", "LIST", "DELETE", "OTHER"]);
        firebank(&["clean", "--keep-last", "1"]).done();
        may(&["GET", "RANGE", "HEAD", "LIST"]);
        firebank(&["show", "latest"]).done();
        firebank(&["verify", "--read-data"]).done();
        let copy = format!("demo-rights-{nth}");
        firebank(&["restore", "latest", "--to-project", &copy]).done();
        assert_eq!(shop.contents(&copy), shop.contents(SHOP));
        firebank(&["backup"]).fails(1, &["no permission to create"]);
    }
}
