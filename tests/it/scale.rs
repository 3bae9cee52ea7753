//! More documents than one reader is given: the plan that is made for them, and what it costs.

use firebank::archive::Parameters;
use firebank::backup::{BackupOptions, backup};
use firebank::document::DatabaseName;
use firebank::progress::Progress;
use firebank::sandbox::{Rpc, SandboxConfig, SyntheticSpec};

use crate::support::operations::*;
use crate::support::sandbox_with;

/// Enough for two ranges of the default size.
const DOCUMENTS: u64 = 132_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_collection_is_read_in_several_ranges_and_comes_back() {
    let sandbox = sandbox_with(SandboxConfig {
        synthetic: vec![SyntheticSpec {
            database: Some(DatabaseName::new("demo-large", "(default)")),
            ..SyntheticSpec::new("events", DOCUMENTS, 200)
        }],
        ..SandboxConfig::default()
    })
    .await;
    let address = sandbox.address().to_string();
    let database = connect(&address, "demo-large", "(default)").await;
    let repository = repository(Parameters::with_seed(3)).await;
    let progress = Progress::new();
    let before = sandbox.usage();
    let stats = backup(&database, &repository, BackupOptions::default(), &progress)
        .await
        .unwrap();
    let usage = sandbox.usage().since(&before);
    let snapshot = stats.snapshot;
    assert_eq!(snapshot.documents, DOCUMENTS);
    assert_eq!(progress.total_documents(), Some(DOCUMENTS));
    assert_eq!(progress.documents(), DOCUMENTS);
    assert!(usage.requests_of(Rpc::PartitionQuery) >= 1, "{usage:?}");
    // The count costs a thousandth, and the one overlap no more than the rest of the first range.
    assert!((DOCUMENTS..DOCUMENTS * 8 / 5).contains(&usage.reads), "{usage:?}");
    assert!(usage.requests.values().sum::<u64>() < 80, "{usage:?}");

    let copy = connect(&address, "demo-copy", "(default)").await;
    restore_all(&repository, &snapshot, &copy).await;
    let comparison = compare_databases(&database, &copy).await;
    assert!(comparison.is_equal(), "{comparison:?}");
    assert_eq!(comparison.equal, DOCUMENTS);
}
