//! Limits to what a backup reads: how much, and how fast.

use std::time::Duration;

use firebank::archive::ReadMode;
use firebank::backup::{BackupError, BackupOptions, backup};
use firebank::firestore::{ConnectOptions, Firestore, RetryPolicy, Target};
use firebank::progress::Progress;
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, Sandbox, When};
use firebank::store::Store;
use tonic::Code;

use crate::cli_support::{SHOP, Shop, files_below};
use crate::cost::{World, body, place};
use crate::support::operations::*;
use crate::support::{project, sandbox};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_would_be_billed_too_much_is_not_begun() {
    let world = World::of(2_000).await;
    let options = BackupOptions {
        max_reads: Some(1_500),
        ..BackupOptions::default()
    };
    let before = world.sandbox.usage();
    let refused = backup(
        &world.database,
        &world.repository,
        options.clone(),
        &Progress::new(),
    )
    .await;
    assert!(
        matches!(
            &refused,
            Err(BackupError::TooManyReads {
                expected: 2_000..2_200,
                most: 1_500
            })
        ),
        "{refused:?}"
    );
    let spent = world.sandbox.usage().since(&before).reads;
    assert!(spent < 20, "{spent}");
    assert_eq!(world.repository.open_sessions().await.unwrap().len(), 0);
    let enough = BackupOptions {
        max_reads: Some(2_500),
        ..BackupOptions::default()
    };
    assert_eq!(world.back_up(&enough).await.snapshot.documents, 2_000);
}

/// The estimate of a night is the last night's: one that is nothing like it is stopped, and gone on with.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_stops_where_it_is_billed_too_much_and_goes_on() {
    const DOCUMENTS: u64 = 8_000;
    let world = World::of(DOCUMENTS).await;
    let first = world.back_up(&BackupOptions::default()).await.snapshot;
    // A night without a change, and then half of them.
    world.back_up(&BackupOptions::default()).await;
    world.night(1, DOCUMENTS, 3).await;
    let limited = |resume| BackupOptions {
        max_reads: Some(9_000),
        read: Some(ReadMode::Names),
        ranges: Some(4),
        parallel: 1,
        resume,
        ..BackupOptions::default()
    };
    let stopped = backup(
        &world.database,
        &world.repository,
        limited(false),
        &Progress::new(),
    )
    .await;
    let Err(BackupError::ReadsSpent {
        reads, most: 9_000, ..
    }) = stopped
    else {
        panic!("{stopped:?}");
    };
    assert!((9_000..11_000).contains(&reads), "{reads}");
    let stats = backup(
        &world.database,
        &world.repository,
        limited(true),
        &Progress::new(),
    )
    .await
    .unwrap();
    assert!(stats.billed_reads < 6_000, "{}", stats.billed_reads);
    assert_ne!(stats.snapshot.id, first.id);
    assert_snapshot_is(&world.repository, &stats.snapshot, &world.database).await;
}

#[test]
fn the_command_line_says_why_it_stopped_or_did_not_begin() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let before = files_below(&shop.path());
    shop.firebank(["backup", "--max-reads", "10"])
        .fails(1, &["--max-reads allows 10", "nothing was begun", "--dry-run"]);
    assert_eq!(files_below(&shop.path()), before);
    shop.firebank(["backup", "--max-reads", "1000000"]).done();

    // More than was to be expected, found out on the way.
    const DOCUMENTS: u64 = 8_000;
    let every = |step| {
        let numbers = (0..DOCUMENTS).step_by(step);
        numbers.map(|number| (place(number), body(number, 0))).collect()
    };
    shop.put("demo-night", every(1));
    let backup = |arguments: &[&str]| {
        let all = ["backup", "--ranges", "4", "--parallel", "1"];
        shop.firebank_on("demo-night", [&all[..], arguments].concat())
    };
    backup(&[]).done();
    backup(&[]).done();
    shop.put("demo-night", every(2));
    let snapshots = shop.snapshots().len();
    backup(&["--max-reads", "9000"]).fails(1, &["--max-reads allows 9000", "--resume"]);
    assert_eq!(shop.snapshots().len(), snapshots);
    let gone_on = backup(&["--resume", "--json"]).json();
    assert_eq!(gone_on["documents"], DOCUMENTS);
    assert_eq!(gone_on["changed_documents"], DOCUMENTS / 2);
    assert!(gone_on["billed_reads"].as_u64().unwrap() < 6_000, "{gone_on}");
    assert_eq!(shop.snapshots().len(), snapshots + 1);
}

#[test]
fn the_command_line_reads_no_faster_than_it_was_asked_to() {
    const DOCUMENTS: u64 = 4_000;
    let shop = Shop::empty();
    shop.put(
        SHOP,
        (0..DOCUMENTS)
            .map(|number| (place(number), body(number, 0)))
            .collect(),
    );
    shop.run(["init"]).done();
    for command in [
        &["backup"][..],
        &["backup", "--format", "json", "-o", "files"],
        &["verify", "--live"],
        &["diff", "latest", "live"],
    ] {
        let begin = std::time::Instant::now();
        shop.firebank([command, &["--read-rate", "1000"]].concat()).done();
        // A second's worth may come at once.
        let least = (DOCUMENTS as f64 - 1_500.0) / 1_000.0;
        let took = begin.elapsed().as_secs_f64();
        assert!(took >= least, "{command:?}: {took}");
    }
}

/// A database with so many documents, read no faster than asked for.
async fn filled_at_rate(documents: u64, rate: f64) -> (Sandbox, Firestore) {
    let sandbox = sandbox().await;
    let target = Target::Emulator {
        host_port: sandbox.address().to_string(),
    };
    let name = firebank::document::DatabaseName::new(project("rate"), "(default)");
    let options = ConnectOptions {
        read_rate: Some(rate),
        retry: RetryPolicy::quick(),
        ..ConnectOptions::new(name, target)
    };
    let database = Firestore::connect(options).await.unwrap();
    let documents = (0..documents).map(|number| (place(number), body(number, 0)));
    put_all(&database, documents).await;
    (sandbox, database)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_readers_together_keep_to_the_rate() {
    const DOCUMENTS: u64 = 6_000;
    const RANGES: usize = 8;
    let (sandbox, database) = filled_at_rate(DOCUMENTS, 1_000.0).await;
    // So that streams are open for long enough to be seen.
    sandbox.faults().set(FaultPlan {
        bytes_per_second: Some(2_000_000),
        ..FaultPlan::default()
    });
    let repository = repository_in(Store::memory(), small_segments()).await;
    let options = BackupOptions {
        parallel: 2,
        ranges: Some(RANGES),
        ..BackupOptions::default()
    };
    let begin = std::time::Instant::now();
    let progress = Progress::new();
    let mut taking = std::pin::pin!(backup(&database, &repository, options, &progress));
    let mut most = 0;
    let stats = loop {
        tokio::select! {
            stats = &mut taking => break stats.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(2)) => most = most.max(sandbox.usage().open_streams),
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    // A reader opens its next query while the last answers of the one before arrive, and a server that has much else to do
    // notices the end of a stream late; without the limit there are as many as ranges, and twice that.
    assert!(
        (1..RANGES as u64).contains(&most),
        "{most} streams at once of two readers"
    );
    // A second's worth may come at once.
    let least = (DOCUMENTS as f64 - 1_500.0) / 1_000.0;
    assert!(seconds >= least, "{seconds}");
    assert_snapshot_is(
        &repository,
        &stats.snapshot,
        &client_of(&database, &sandbox).await,
    )
    .await;
}

async fn client_of(database: &Firestore, sandbox: &Sandbox) -> Firestore {
    client(sandbox, &database.database().project).await
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_slow_readers_down_and_lose_nothing() {
    const DOCUMENTS: u64 = 4_000;
    let (sandbox, database) = filled_at_rate(DOCUMENTS, 100_000.0).await;
    sandbox.faults().add(Fault::new(
        Rpc::RunQuery,
        When::Probability(0.5),
        Effect::Status(Code::ResourceExhausted, "quota".to_owned()),
    ));
    let repository = repository_in(Store::memory(), small_segments()).await;
    let stats = try_back_up(&database, &repository, 8).await.unwrap();
    assert!(stats.retries > 0);
    sandbox.faults().clear();
    assert_snapshot_is(
        &repository,
        &stats.snapshot,
        &client_of(&database, &sandbox).await,
    )
    .await;
}
