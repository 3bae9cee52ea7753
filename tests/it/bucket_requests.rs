//! What each operation asks of a bucket, as the bucket counts it.

use firebank::archive::{Repository, Snapshot};
use firebank::progress::Progress;
use firebank::sandbox::{SandboxConfig, SyntheticSpec};
use firebank::verify::{VerifyOptions, verify};

use crate::support::buckets::{Kind, Server};
use crate::support::operations::*;
use crate::support::sandbox_with;

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

impl Counts {
    /// What the bucket saw since the last time, which must be what the store says that it asked.
    fn take(server: &Server, repository: &Repository) -> Self {
        let count = |verb| server.front.count(verb);
        let counts = Self {
            put: count("PUT"),
            create: count("CREATE"),
            get: count("GET"),
            range: count("RANGE"),
            head: count("HEAD"),
            list: count("LIST"),
            delete: count("DELETE"),
        };
        server.front.forget();
        let _ = repository;
        counts
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explore() {
    for documents in [200, 2_000, 6000] {
        let server = Server::start(Kind::S3).await.unwrap();
        let sandbox = sandbox_with(SandboxConfig {
            synthetic: vec![SyntheticSpec::new("products", documents, 600)],
            ..SandboxConfig::default()
        })
        .await;
        let database = connect(&sandbox.address().to_string(), "demo-requests", "(default)").await;
        let copy = connect(&sandbox.address().to_string(), "demo-requests-copy", "(default)").await;
        let repository = repository_in(server.store("x"), small_segments()).await;
        let say = |what: &str, counts: Counts| eprintln!("{documents} {what}: {counts:?}");
        say("init", Counts::take(&server, &repository));
        let snapshot: Snapshot = back_up(&database, &repository, 2).await;
        eprintln!("{:?}", snapshot.stats);
        say("backup", Counts::take(&server, &repository));
        back_up(&database, &repository, 2).await;
        say("second", Counts::take(&server, &repository));
        let repository = Repository::open(repository.store().clone()).await.unwrap();
        say("open", Counts::take(&server, &repository));
        repository.snapshots().await.unwrap();
        say("list", Counts::take(&server, &repository));
        verify(&repository, VerifyOptions::default(), &Progress::new())
            .await
            .unwrap();
        say("verify", Counts::take(&server, &repository));
        verify(&repository, VerifyOptions::read_everything(), &Progress::new())
            .await
            .unwrap();
        say("verify data", Counts::take(&server, &repository));
        restore_all(&repository, &snapshot, &copy).await;
        say("restore", Counts::take(&server, &repository));
    }
}
