//! What each operation asks of a bucket, as the bucket counts it: nothing by document, one create for each chunk.

use std::fmt;

use firebank::archive::{Repository, Snapshot};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::sandbox::{Sandbox, SandboxConfig, SyntheticSpec};
use firebank::store::RequestCounts;
use firebank::verify::{VerifyOptions, verify};

use crate::support::buckets::{KINDS, Kind, Server};
use crate::support::operations::*;
use crate::support::sandbox_with;

const RANGES: usize = 2;
const PAGE_RECORDS: u64 = 32;
/// Beyond what the formulas say: `repository.json`, the parent's records, a page at each end of a range and the like.
const FEW: u64 = 20;

/// Requests by verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    put: u64,
    create: u64,
    get: u64,
    range: u64,
    head: u64,
    list: u64,
    delete: u64,
}

/// A repository in a bucket, with a database to back up.
struct Scene {
    server: Server,
    _sandbox: Sandbox,
    database: Firestore,
    copy: Firestore,
    repository: Repository,
    before: RequestCounts,
    documents: u64,
}

impl Scene {
    async fn new(kind: Kind, documents: u64) -> Option<Self> {
        let server = Server::start(kind).await?;
        let sandbox = sandbox_with(SandboxConfig {
            synthetic: vec![SyntheticSpec::new("products", documents, 600)],
            ..SandboxConfig::default()
        })
        .await;
        let address = sandbox.address().to_string();
        let store = server.store("counted");
        let before = store.requests();
        Some(Self {
            database: connect(&address, "demo-requests", "(default)").await,
            copy: connect(&address, "demo-requests-copy", "(default)").await,
            repository: repository_in(store, small_segments()).await,
            server,
            _sandbox: sandbox,
            before,
            documents,
        })
    }

    /// What the bucket was asked since the last time, which is what the store says that it asked.
    fn counts(&mut self, operation: impl fmt::Display) -> Counts {
        let front = &self.server.front;
        let counts = Counts {
            put: front.count("PUT"),
            create: front.count("CREATE"),
            get: front.count("GET"),
            range: front.count("RANGE"),
            head: front.count("HEAD"),
            list: front.count("LIST"),
            delete: front.count("DELETE"),
        };
        assert_eq!(front.count("OTHER"), 0, "{:?}", front.asked());
        front.forget();
        let (before, now) = (self.before, self.repository.store().requests());
        let said = Counts {
            put: now.put - before.put,
            create: now.put_create - before.put_create,
            get: now.get - before.get,
            range: now.get_range - before.get_range,
            head: now.head - before.head,
            list: now.list - before.list,
            delete: now.delete - before.delete,
        };
        self.before = now;
        assert_eq!(counts, said, "{operation} of {}", self.documents);
        counts
    }

    fn pages(&self) -> u64 {
        self.documents.div_ceil(PAGE_RECORDS)
    }
}

/// What a night asks for, by documents in the database.
struct Night {
    chunks: u64,
    pages: u64,
    init: Counts,
    first: Counts,
    unchanged: Counts,
    listing: Counts,
    verify: Counts,
    verify_data: Counts,
    restore: Counts,
}

async fn verify_one(repository: &Repository, snapshot: &Snapshot, options: VerifyOptions) {
    let options = VerifyOptions {
        snapshots: Some(vec![snapshot.clone()]),
        ..options
    };
    let stats = verify(repository, options, &Progress::new()).await.unwrap();
    assert!(stats.is_intact(), "{:?}", stats.damage);
}

async fn night(kind: Kind, documents: u64) -> Option<Night> {
    let mut scene = Scene::new(kind, documents).await?;
    assert_eq!(scene.repository.parameters().page_records as u64, PAGE_RECORDS);
    let init = scene.counts("init");
    let snapshot: Snapshot = back_up(&scene.database, &scene.repository, RANGES).await;
    let first = scene.counts("the first backup");
    back_up(&scene.database, &scene.repository, RANGES).await;
    let unchanged = scene.counts("an unchanged backup");
    assert_eq!(scene.repository.snapshots().await.unwrap().snapshots.len(), 2);
    let listing = scene.counts("list-backups");
    verify_one(&scene.repository, &snapshot, VerifyOptions::default()).await;
    let structure = scene.counts("verify");
    verify_one(&scene.repository, &snapshot, VerifyOptions::read_everything()).await;
    let verify_data = scene.counts("verify --read-data");
    restore_all(&scene.repository, &snapshot, &scene.copy).await;
    let restore = scene.counts("restore");
    Some(Night {
        chunks: snapshot.stats.chunks_written,
        pages: scene.pages(),
        init,
        first,
        unchanged,
        listing,
        verify: structure,
        verify_data,
        restore,
    })
}

impl Night {
    fn check(&self) {
        let all = [
            ("init", self.init),
            ("first", self.first),
            ("unchanged", self.unchanged),
            ("list-backups", self.listing),
            ("verify", self.verify),
            ("verify --read-data", self.verify_data),
            ("restore", self.restore),
        ];
        for (name, counts) in all {
            // Nothing is asked by document or by chunk, nothing overwritten, nothing deleted but `init`'s probe and the lease
            // of a long reader.
            let leases = matches!(name, "verify" | "verify --read-data" | "restore");
            assert!(counts.head <= 3 && counts.list <= 4, "{name}: {counts:?}");
            assert_eq!(counts.put, 0, "{name}: {counts:?}");
            assert_eq!(
                counts.delete,
                u64::from(leases || name == "init"),
                "{name}: {counts:?}"
            );
            if leases || name == "list-backups" {
                assert_eq!(counts.create, u64::from(leases), "{name}: {counts:?}");
            }
        }
        let reads = |counts: Counts| counts.get + counts.range;
        // Chunks, a checkpoint a range, and the session's and snapshot's own objects.
        assert!(self.first.create >= self.chunks, "{:?}", self.first);
        assert!(
            self.first.create <= self.chunks + self.pages + FEW,
            "{:?}",
            self.first
        );
        assert!(reads(self.first) <= FEW, "{:?}", self.first);
        assert!(self.unchanged.create <= FEW, "{:?}", self.unchanged);
        assert!(reads(self.unchanged) <= self.pages + FEW, "{:?}", self.unchanged);
        assert!(reads(self.listing) <= FEW, "{:?}", self.listing);
        assert!(
            reads(self.verify) <= 2 * self.pages + self.chunks + FEW,
            "{:?}",
            self.verify
        );
        assert!(
            reads(self.verify_data) <= 4 * self.pages + 2 * self.chunks + FEW,
            "{:?}",
            self.verify_data
        );
        assert!(
            reads(self.restore) <= 2 * self.pages + self.chunks + FEW,
            "{:?}",
            self.restore
        );
    }

    /// What does not depend on how much there is.
    fn constants(&self) -> Vec<u64> {
        let all = [
            self.init,
            self.first,
            self.unchanged,
            self.listing,
            self.verify,
            self.verify_data,
            self.restore,
        ];
        let counts = all
            .iter()
            .flat_map(|counts| [counts.put, counts.head, counts.list, counts.delete]);
        counts
            .chain([self.first.get, self.first.range, self.unchanged.create])
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_do_not_grow_with_the_documents_but_with_the_chunks() {
    let small = night(Kind::S3, 200).await.unwrap();
    let large = night(Kind::S3, 2_000).await.unwrap();
    small.check();
    large.check();
    assert!(large.chunks > 5 * small.chunks);
    assert_eq!(small.constants(), large.constants());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_service_is_asked_the_same() {
    let mut all = Vec::new();
    for kind in KINDS {
        if let Some(night) = night(kind, 200).await {
            night.check();
            all.push(night.constants());
        }
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
}
