//! Trouble with the database: backups and restores end complete and equal, or fail with a clear error and leave the
//! repository valid.

use std::time::{Duration, Instant};

use firebank::archive::{ReadMode, Repository};
use firebank::document::{DatabaseName, DocumentPath, Value, canonical};
use firebank::firestore::{Error, Firestore};
use firebank::progress::Progress;
use firebank::restore::{RestoreError, restore};
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, Sandbox, SandboxConfig, SyntheticSpec, When};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::support::operations::*;
use crate::support::sandbox_with;

/// Documents of every kind of place: two collections, some below documents, some below missing ones.
const DOCUMENTS: u64 = 500 + 200 + 90;

async fn scene() -> (Sandbox, Firestore) {
    let spec = |collection: &str, documents, bytes| SyntheticSpec {
        database: Some(DatabaseName::new("demo-shop", "(default)")),
        ..SyntheticSpec::new(collection, documents, bytes)
    };
    let sandbox = sandbox_with(SandboxConfig {
        synthetic: vec![spec("products", 500, 400), spec("users", 200, 1500)],
        ..SandboxConfig::default()
    })
    .await;
    let database = client(&sandbox, "demo-shop").await;
    let documents = (0..90).map(|number| {
        let path = match number % 3 {
            0 => format!("orders/{number}"),
            1 => format!("orders/{}/items/{number}", number - 1),
            _ => format!("missing/{number}/items/{number}"),
        };
        let fields = [("number".to_owned(), Value::Integer(number))].into();
        (DocumentPath::parse(path).unwrap(), canonical::encode(&fields))
    });
    put_all(&database, documents).await;
    (sandbox, database)
}

/// Breaks all connections again and again, until it is aborted.
fn keep_breaking(sandbox: &Sandbox, every: Duration) -> JoinHandle<()> {
    let faults = sandbox.faults();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            faults.kill_connections();
        }
    })
}

fn plan(faults: impl IntoIterator<Item = Fault>) -> FaultPlan {
    FaultPlan {
        faults: faults.into_iter().collect(),
        ..FaultPlan::default()
    }
}

fn status(code: Code) -> Effect {
    Effect::Status(code, "the sandbox was told to".to_owned())
}

fn cut(documents: u64, code: Code) -> Effect {
    Effect::CutAfter { documents, code }
}

fn any(when: When, effect: Effect) -> Fault {
    Fault {
        methods: vec![],
        when,
        effect,
    }
}

/// What a backup lives through.
fn troubles() -> Vec<FaultPlan> {
    use Code::*;
    use When::*;
    let query = |when, effect| plan([Fault::new(Rpc::RunQuery, when, effect)]);
    let count = |effect| plan([Fault::new(Rpc::RunAggregationQuery, Always, effect)]);
    let delay = |milliseconds| Effect::Delay(Duration::from_millis(milliseconds));
    vec![
        query(Always, cut(40, Unavailable)),
        query(Always, cut(17, Unavailable)),
        query(Always, cut(33, DeadlineExceeded)),
        query(EveryNth(2), cut(0, Unavailable)),
        query(EveryNth(3), cut(100, Internal)),
        query(Always, cut(64, ResourceExhausted)),
        query(First(5), status(ResourceExhausted)),
        query(EveryNth(2), status(Unavailable)),
        query(EveryNth(2), status(Aborted)),
        query(Probability(0.6), status(DeadlineExceeded)),
        // Streams that end short with OK.
        query(Always, Effect::EndAfter { documents: 30 }),
        query(First(3), Effect::EndAfter { documents: 0 }),
        query(After(1), Effect::EndAfter { documents: 9 }),
        query(EveryNth(2), Effect::EndAfter { documents: 60 }),
        query(EveryNth(3), Effect::ResetAfter { documents: 50 }),
        query(EveryNth(4), Effect::ResetAfter { documents: 0 }),
        query(Always, delay(15)),
        // The helpers of planning fail in every way.
        count(status(Unimplemented)),
        count(status(InvalidArgument)),
        count(status(Unavailable)),
        count(status(Internal)),
        count(status(Cancelled)),
        count(status(Unknown)),
        count(status(OutOfRange)),
        count(status(FailedPrecondition)),
        count(Effect::EndAfter { documents: 0 }),
        count(cut(0, Unavailable)),
        count(Effect::ResetAfter { documents: 0 }),
        plan([Fault::new(Rpc::PartitionQuery, Always, status(Internal))]),
        plan([Fault::new(Rpc::PartitionQuery, Always, status(InvalidArgument))]),
        plan([Fault::new(Rpc::ListCollectionIds, Always, status(Unavailable))]),
        FaultPlan {
            refuse_partition_query: true,
            ..plan([Fault::new(
                Rpc::RunAggregationQuery,
                Always,
                status(Unimplemented),
            )])
        },
        FaultPlan {
            refuse_partition_query: true,
            ..plan([any(EveryNth(3), status(Unavailable))])
        },
        // Everything fails now and then.
        plan([
            any(EveryNth(2), status(Unavailable)),
            any(Probability(0.2), delay(20)),
        ]),
        plan([any(Probability(0.5), status(ResourceExhausted))]),
        FaultPlan {
            stream_lifetime: Some(Duration::from_millis(60)),
            bytes_per_second: Some(4 << 20),
            ..FaultPlan::default()
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_complete_whatever_happens_to_its_calls() {
    let (sandbox, database) = scene().await;
    let repository = repository(small_segments()).await;
    let clean = back_up(&database, &repository, 1).await;
    assert_eq!(clean.documents, DOCUMENTS);
    assert_snapshot_is(&repository, &clean, &database).await;
    let mut snapshots = 1;
    for (number, plan) in troubles().into_iter().enumerate() {
        // Both where the number of ranges matters, which is in reading.
        let ranges: &[usize] = match number < 8 || number % 2 == 0 {
            true => &[1, 6],
            false => &[6],
        };
        for &ranges in ranges {
            sandbox.faults().set(plan.clone());
            let result = try_back_up(&database, &repository, ranges).await;
            sandbox.faults().clear();
            let snapshot = result
                .unwrap_or_else(|error| panic!("{plan:?}, {ranges} ranges: {error}"))
                .snapshot;
            snapshots += 1;
            // The same documents under the same times are the same data.
            assert_eq!(snapshot.documents, DOCUMENTS, "{plan:?}, {ranges} ranges");
            assert_eq!(snapshot.stats.new_bytes, 0, "{plan:?}, {ranges} ranges");
            if number % 4 == 0 {
                assert_snapshot_is(&repository, &snapshot, &database).await;
            }
        }
        // The same upon the one before: nothing has changed, and nothing is taken for it.
        sandbox.faults().set(plan.clone());
        let read = [ReadMode::Names, ReadMode::Full][number % 2];
        let result = try_back_up_changes(&database, &repository, read, 4).await;
        sandbox.faults().clear();
        let night = result
            .unwrap_or_else(|error| panic!("{plan:?}, {read}: {error}"))
            .snapshot;
        snapshots += 1;
        assert_eq!(night.stats.unchanged_documents, DOCUMENTS, "{plan:?}, {read}");
        assert_eq!(night.stats.stored_bytes, 0, "{plan:?}, {read}");
    }
    assert_intact(&repository, snapshots).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_outlives_its_connections() {
    let (sandbox, database) = scene().await;
    sandbox.faults().set(plan([Fault::new(
        Rpc::RunQuery,
        When::Always,
        Effect::Delay(Duration::from_millis(25)),
    )]));
    let killer = keep_breaking(&sandbox, Duration::from_millis(40));
    let repository = repository(small_segments()).await;
    for ranges in [1, 8] {
        let snapshot = back_up(&database, &repository, ranges).await;
        assert_eq!(snapshot.documents, DOCUMENTS);
    }
    killer.abort();
    let _ = killer.await;
    sandbox.faults().clear();
    let listing = repository.snapshots().await.unwrap();
    for snapshot in &listing.snapshots {
        assert_snapshot_is(&repository, snapshot, &database).await;
    }
    assert_intact(&repository, 2).await;
}

/// What no attempt can help is said at once, and no snapshot comes of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_refused_fails_at_once_and_harms_nothing() {
    let (sandbox, database) = scene().await;
    let repository = repository(small_segments()).await;
    back_up(&database, &repository, 1).await;
    let query = |when, effect| plan([Fault::new(Rpc::RunQuery, when, effect)]);
    let cases = [
        (
            query(When::Always, status(Code::PermissionDenied)),
            "permission denied for RunQuery",
        ),
        (
            query(When::After(1), status(Code::PermissionDenied)),
            "roles/datastore.viewer",
        ),
        (
            query(When::After(1), cut(50, Code::PermissionDenied)),
            "permission denied for RunQuery",
        ),
        (
            query(When::After(1), status(Code::Unauthenticated)),
            "does not accept the credentials",
        ),
        (
            query(When::After(1), status(Code::NotFound)),
            "there is no database",
        ),
        (query(When::After(1), cut(90, Code::DataLoss)), "RunQuery on"),
        (
            query(
                When::After(1),
                Effect::Status(
                    Code::FailedPrecondition,
                    "The requested snapshot version is too old.".to_owned(),
                ),
            ),
            "no longer keeps",
        ),
        (
            plan([Fault::new(
                Rpc::RunAggregationQuery,
                When::Always,
                status(Code::PermissionDenied),
            )]),
            "permission denied for RunAggregationQuery",
        ),
        // An empty stream is no word that there are no documents.
        (
            query(When::After(1), Effect::EndAfter { documents: 0 }),
            "50 times in a row",
        ),
        // Given up after so many attempts in a row.
        (
            query(When::After(1), cut(0, Code::Unavailable)),
            "50 times in a row",
        ),
        (
            query(When::After(1), status(Code::ResourceExhausted)),
            "50 times in a row",
        ),
    ];
    for (plan, told) in cases {
        for ranges in [1, 6] {
            sandbox.faults().set(plan.clone());
            let start = Instant::now();
            let error = try_back_up(&database, &repository, ranges)
                .await
                .err()
                .unwrap_or_else(|| panic!("{plan:?}, {ranges} ranges: it cannot succeed"));
            sandbox.faults().clear();
            assert!(
                error.to_string().contains(told),
                "{plan:?}, {ranges} ranges: {error}"
            );
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{plan:?} took {:?}",
                start.elapsed()
            );
            assert_intact(&repository, 1).await;
        }
    }
    let snapshot = back_up(&database, &repository, 4).await;
    assert_snapshot_is(&repository, &snapshot, &database).await;
    assert_intact(&repository, 2).await;
}

async fn backed_up() -> (Sandbox, Firestore, Repository, firebank::archive::Snapshot) {
    let (sandbox, database) = scene().await;
    let repository = repository(small_segments()).await;
    let snapshot = back_up(&database, &repository, 2).await;
    (sandbox, database, repository, snapshot)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_is_complete_whatever_happens_to_its_requests() {
    use Code::*;
    use When::*;
    let (sandbox, database, repository, snapshot) = backed_up().await;
    let write = |when, effect| plan([Fault::new(Rpc::BatchWrite, when, effect)]);
    let mut plans = vec![
        write(EveryNth(2), status(Unavailable)),
        write(EveryNth(3), status(ResourceExhausted)),
        write(Probability(0.5), status(Aborted)),
        write(First(6), status(DeadlineExceeded)),
        write(First(6), status(Internal)),
        write(Always, Effect::Delay(Duration::from_millis(30))),
        plan([
            Fault::write(Aborted, "", EveryNth(7)),
            Fault::write(Unavailable, "users/", Probability(0.4)),
            Fault::write(ResourceExhausted, "orders/", EveryNth(3)),
        ]),
        plan([
            Fault::write(DeadlineExceeded, "", EveryNth(2)),
            any(EveryNth(4), status(Unavailable)),
        ]),
        FaultPlan {
            max_request_writes: Some(11),
            ..FaultPlan::default()
        },
        FaultPlan {
            max_request_bytes: Some(20_000),
            ..plan([Fault::write(Aborted, "", EveryNth(5))])
        },
    ];
    // Too large as production says it of index entries.
    plans.push(FaultPlan {
        max_request_writes: Some(1),
        ..FaultPlan::default()
    });
    for (number, plan) in plans.into_iter().enumerate() {
        let copy = client(&sandbox, &format!("demo-copy-{number}")).await;
        sandbox.faults().set(plan.clone());
        restore_all(&repository, &snapshot, &copy).await;
        sandbox.faults().clear();
        let comparison = compare_databases(&database, &copy).await;
        assert!(comparison.is_equal(), "{plan:?}: {comparison:?}");
        assert_eq!(comparison.equal, DOCUMENTS);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_outlives_its_connections() {
    let (sandbox, database, repository, snapshot) = backed_up().await;
    let copy = client(&sandbox, "demo-copy").await;
    sandbox.faults().set(plan([Fault::new(
        Rpc::BatchWrite,
        When::Always,
        Effect::Delay(Duration::from_millis(25)),
    )]));
    let killer = keep_breaking(&sandbox, Duration::from_millis(60));
    restore_all(&repository, &snapshot, &copy).await;
    killer.abort();
    let _ = killer.await;
    sandbox.faults().clear();
    assert!(compare_databases(&database, &copy).await.is_equal());
}

/// What the database refuses is counted and kept, and everything else arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_documents_go_to_the_dead_letters_alone() {
    let (sandbox, database, repository, snapshot) = backed_up().await;
    let copy = client(&sandbox, "demo-copy").await;
    sandbox.faults().set(plan([
        Fault::write(Code::InvalidArgument, "orders/30", When::Always),
        Fault::write(Code::FailedPrecondition, "missing/2/", When::Always),
        // Tried again and again, and given up in the end.
        Fault::write(Code::Aborted, "orders/42/items", When::Always),
    ]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("failed.ndjson");
    let reader = repository.reader(&snapshot).await.unwrap();
    let stats = restore(&reader, &copy, restore_options(&copy, &file), &Progress::new())
        .await
        .unwrap();
    sandbox.faults().clear();
    // Of the documents in `orders/30` there is one below it.
    let refused = [
        "orders/30",
        "orders/30/items/31",
        "missing/2/items/2",
        "orders/42/items/43",
    ];
    assert_eq!(
        (stats.documents, stats.written, stats.failed),
        (DOCUMENTS, DOCUMENTS - refused.len() as u64, refused.len() as u64)
    );
    let letters = std::fs::read_to_string(&file).unwrap();
    assert_eq!(letters.lines().count(), refused.len(), "{letters}");
    for path in refused {
        assert!(
            letters.contains(&format!("{path:?}")),
            "{path} is not in {letters}"
        );
    }
    let comparison = compare_databases(&database, &copy).await;
    let missing: Vec<String> = comparison
        .first_differences
        .iter()
        .map(|difference| difference.path.to_string())
        .collect();
    assert_eq!((comparison.different, comparison.extra), (0, 0));
    let mut expected = refused.to_vec();
    expected.sort_by_key(|path| DocumentPath::parse(*path).unwrap());
    assert_eq!(missing, expected);
    // Once the trouble is over, the same again completes it.
    restore_all(&repository, &snapshot, &copy).await;
    assert!(compare_databases(&database, &copy).await.is_equal());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_refused_fails_at_once() {
    let (sandbox, _, repository, snapshot) = backed_up().await;
    let copy = client(&sandbox, "demo-copy").await;
    let reader = repository.reader(&snapshot).await.unwrap();
    for (when, code) in [
        (When::Always, Code::PermissionDenied),
        (When::After(1), Code::Unauthenticated),
        (When::Always, Code::NotFound),
        (When::After(1), Code::Unavailable),
    ] {
        sandbox
            .faults()
            .set(plan([Fault::new(Rpc::BatchWrite, when, status(code))]));
        let start = Instant::now();
        let error = try_restore(&reader, &copy).await.expect_err("it cannot succeed");
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{code:?} took {:?}",
            start.elapsed()
        );
        let RestoreError::Firestore(error) = error else {
            panic!("{error:?}")
        };
        let as_expected = match code {
            Code::PermissionDenied => matches!(error, Error::PermissionDenied { .. }),
            Code::Unauthenticated => matches!(error, Error::Unauthenticated { .. }),
            Code::NotFound => matches!(error, Error::DatabaseNotFound { .. }),
            _ => matches!(error, Error::Unavailable { .. }),
        };
        assert!(as_expected, "{code:?}: {error:?}");
    }
    sandbox.faults().clear();
    restore_all(&repository, &snapshot, &copy).await;
}

/// A backup asks for each document once, and for nothing document by document.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_costs_a_read_a_document() {
    let (sandbox, database) = scene().await;
    let repository = repository(small_segments()).await;
    let before = sandbox.usage();
    let stats = try_back_up(&database, &repository, 1).await.unwrap();
    let usage = sandbox.usage().since(&before);
    // The time, the count, and the query that finds nothing more.
    assert!((DOCUMENTS..=DOCUMENTS + 6).contains(&usage.reads), "{usage:?}");
    assert!(usage.documents_sent <= DOCUMENTS + 2, "{usage:?}");
    let requests: u64 = usage.requests.values().sum();
    assert!(requests <= 8, "{usage:?}");
    assert_eq!((usage.writes, usage.deletes), (0, 0));
    // And one to the administration service, for the database's identity: it is not among the sandbox's methods.
    assert_eq!(stats.requests, requests + 1);
    assert!(
        stats.billed_reads.abs_diff(usage.reads) <= 2,
        "{} of {}",
        stats.billed_reads,
        usage.reads
    );
    assert_eq!(stats.snapshot.stats.billed_reads, stats.billed_reads);

    // In more ranges every reader reads on for a while, here at most to the end, and the plan costs some requests a range.
    let before = sandbox.usage();
    let stats = try_back_up(&database, &repository, 4).await.unwrap();
    let usage = sandbox.usage().since(&before);
    assert!((DOCUMENTS..DOCUMENTS * 4).contains(&usage.reads), "{usage:?}");
    assert!(usage.requests.values().sum::<u64>() < 60, "{usage:?}");
    assert!(
        (DOCUMENTS..=usage.reads).contains(&stats.billed_reads),
        "{}",
        stats.billed_reads
    );

    // A restore bills a write a document and reads nothing.
    let copy = client(&sandbox, "demo-copy").await;
    let before = sandbox.usage();
    restore_all(&repository, &stats.snapshot, &copy).await;
    let usage = sandbox.usage().since(&before);
    assert_eq!((usage.reads, usage.writes), (0, DOCUMENTS), "{usage:?}");
    assert!(
        usage.requests_of(Rpc::BatchWrite) <= DOCUMENTS / 500 + 2,
        "{usage:?}"
    );
}
