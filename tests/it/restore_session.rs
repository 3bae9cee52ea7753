//! Restores that are stopped, killed and resumed: what was done is not written again, and in the end it is all there.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use firebank::archive::{Repository, Snapshot, SnapshotFilter};
use firebank::compare::compare;
use firebank::document::DatabaseName;
use firebank::progress::Progress;
use firebank::restore::{RestoreError, RestoreOptions, RestoreSessions, SessionOptions, restore};
use firebank::sandbox::{Effect, Fault, Rpc, SandboxConfig, SyntheticSpec, When};
use firebank::stop::Stop;
use firebank::store::Store;

use crate::cli_support::*;
use crate::support::operations;

const COPY: &str = "demo-copy";

/// A shop of so many documents, and the id of a snapshot of it.
fn scene(documents: u64) -> (Shop, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let spec = SyntheticSpec {
        database: Some(DatabaseName::new(SHOP, "(default)")),
        ..SyntheticSpec::new("things", documents, 300)
    };
    let sandbox = runtime.block_on(crate::support::sandbox_with(SandboxConfig {
        synthetic: vec![spec],
        ..SandboxConfig::default()
    }));
    let shop = Shop {
        desk: Desk::new(),
        sandbox,
        runtime,
    };
    shop.run(["init"]).done();
    let id = shop.back_up();
    (shop, id)
}

fn arguments<'a>(source: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = ["restore", source, "--to-project", COPY];
    all.into_iter().chain(more.iter().copied()).collect()
}

fn start(shop: &Shop, source: &str, more: &[&str]) -> Child {
    let mut command = shop.std_command();
    command
        .args(["--emulator", &shop.address(), "--project", SHOP])
        .args(arguments(source, more))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn signal(child: &mut Child, signal: &str) {
    assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
    let killed = std::process::Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
}

fn writes(shop: &Shop) -> u64 {
    shop.sandbox.usage().writes
}

/// Waits until the sandbox has dealt with what killed processes had sent it, and says how many writes it has seen.
fn settled_writes(shop: &Shop) -> u64 {
    let mut seen = writes(shop);
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = writes(shop);
        if now == seen {
            return seen;
        }
        seen = now;
    }
}

/// Documents that are done by the last checkpoint in a folder; `None` without any unfinished restore.
fn checkpointed(shop: &Shop, state: &Path) -> Option<u64> {
    if !state.exists() {
        return None;
    }
    let sessions = RestoreSessions::new(Store::local(state).unwrap());
    let unfinished = shop.runtime.block_on(sessions.unfinished()).unwrap();
    assert!(unfinished.len() <= 1, "{unfinished:?}");
    Some(unfinished.first()?.counts().documents)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn snapshot(shop: &Shop, id: &str) -> (Repository, Snapshot) {
    shop.runtime.block_on(async {
        let store = Store::local(shop.repository()).unwrap();
        let repository = Repository::open(store).await.unwrap();
        let snapshot = repository.resolve(id, &SnapshotFilter::default()).await.unwrap();
        (repository, snapshot)
    })
}

/// Panics unless the copy is the snapshot, document by document.
fn assert_copy_is(shop: &Shop, id: &str) {
    let (repository, snapshot) = snapshot(shop, id);
    let copy = shop.connect(COPY, "(default)");
    let comparison = shop.runtime.block_on(async {
        let documents = operations::documents(&repository, &snapshot).await;
        compare(documents, operations::scan(&copy).await).await.unwrap()
    });
    assert!(comparison.is_equal(), "{comparison:?}");
    assert_eq!(comparison.equal, snapshot.documents);
}

/// Kills a restore ten times at random moments and lets it end the eleventh time. Returns how many writes that took.
fn killed_ten_times(documents: u64, rate: u64) -> u64 {
    let (shop, id) = scene(documents);
    let state = shop.file("state");
    let rate = rate.to_string();
    let resume = ["--resume", "--state", "state", "--json"];
    let slowly = [&resume[..], &["--rate", &rate]].concat();
    let mut chance = documents;
    let mut done = 0;
    for kill in 0..10 {
        let mut child = start(&shop, &id, &slowly);
        // Every third one dies before its first checkpoint, most likely; the others some time after one.
        if kill % 3 != 2 {
            wait_until("no checkpoint", || {
                checkpointed(&shop, &state).is_some_and(|now| now > done)
            });
        }
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis((chance >> 33) % 500));
        signal(&mut child, "-KILL");
        child.wait().unwrap();
        let now = checkpointed(&shop, &state).unwrap_or(0);
        assert!(now >= done, "{now} after {done}");
        done = now;
    }
    assert!((1..documents).contains(&done), "{done}");

    let before = settled_writes(&shop);
    let report = shop.firebank(arguments(&id, &resume)).json();
    let last = writes(&shop) - before;
    assert_eq!(last, documents - done, "what was done is not written again");
    assert_eq!(
        (&report["documents"], &report["written"], &report["failed"]),
        (&documents.into(), &documents.into(), &0.into()),
        "{report}"
    );
    let total = writes(&shop);
    assert_copy_is(&shop, &id);
    // But for what a process had not named yet when it was killed.
    let mut left = files_below(&state);
    left.retain(|name| !name.contains('#'));
    assert_eq!(left, Vec::<String>::new(), "the state is gone");
    total
}

#[test]
fn a_restore_that_is_killed_ten_times_ends_equal() {
    let total = killed_ten_times(20_000, 900);
    assert!(total < 30_000, "{total} writes for 20,000 documents");
}

#[test]
#[ignore = "takes a minute: the size that the promise speaks of"]
fn a_restore_of_200_000_documents_that_is_killed_ten_times_ends_equal() {
    let total = killed_ten_times(200_000, 9_000);
    assert!(total < 300_000, "{total} writes for 200,000 documents");
}

#[test]
fn a_signal_drains_what_is_under_way_and_says_how_to_go_on() {
    for name in ["-TERM", "-INT"] {
        let (shop, id) = scene(6_000);
        // Answers take a while: there is something to wait for.
        shop.add_fault(Fault::new(
            Rpc::BatchWrite,
            When::Always,
            Effect::Delay(Duration::from_millis(300)),
        ));
        let mut child = start(&shop, &id, &["--rate", "1000"]);
        wait_until("no write", || writes(&shop) > 1_000);
        signal(&mut child, name);
        let ended = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(130), "{stderr}");
        assert!(stderr.contains("--resume"), "{stderr}");
        shop.sandbox.faults().clear();

        // Without being told where, the state is among the user's.
        let state = shop.path().parent().unwrap().join("home/.local/state/firebank");
        let done = checkpointed(&shop, &state).unwrap();
        assert_eq!(done, writes(&shop), "all that was sent is accounted for");
        // Nothing of it is left to the process that died: the snapshot is free.
        assert!(
            !files_below(&shop.repository())
                .iter()
                .any(|name| name.starts_with("leases/"))
        );
        let report = shop.firebank(arguments(&id, &["--resume", "--json"])).json();
        assert_eq!(report["written"], 6_000, "{report}");
        assert_eq!(writes(&shop), 6_000);
        assert_copy_is(&shop, &id);
    }
}

#[test]
fn an_import_stops_as_well() {
    let (shop, _) = scene(6_000);
    shop.firebank(["backup", "--format", "json", "-o", "out"]).done();
    let files = shop.files();
    let file = files
        .iter()
        .find(|name| name.starts_with("out/backup_things"))
        .unwrap();
    let mut child = start(&shop, file, &["--rate", "500"]);
    wait_until("no write", || writes(&shop) > 500);
    signal(&mut child, "-TERM");
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("what was written stays written"), "{stderr}");
}

#[test]
fn a_restore_is_resumed_with_its_own_options_and_its_own_snapshot() {
    let (shop, id) = scene(3_000);
    let mut killed = start(&shop, "latest", &["--rate", "700", "--only", "things"]);
    let state = shop.path().parent().unwrap().join("home/.local/state/firebank");
    wait_until("no checkpoint", || {
        checkpointed(&shop, &state).is_some_and(|done| done > 0)
    });
    signal(&mut killed, "-KILL");
    killed.wait().unwrap();
    let done = checkpointed(&shop, &state).unwrap();

    let other = shop.firebank(arguments(
        &id,
        &["--resume", "--only", "things", "--mode", "create-only"],
    ));
    other.fails(2, &["--mode was", "Overwrite", "CreateOnly"]);
    let other = shop.firebank(arguments(&id, &["--resume"]));
    other.fails(2, &["--only was `things` and is not given"]);
    // Another target is another restore.
    let other = shop.firebank([
        "restore",
        &id,
        "--to-project",
        "demo-y",
        "--resume",
        "--only",
        "things/none",
    ]);
    assert!(other.stderr.contains("no unfinished restore"), "{other}");

    // By now there is a newer snapshot, which was not what was being restored.
    shop.firebank(["backup", "--full"]).done();
    let before = settled_writes(&shop);
    let resumed = shop.firebank(arguments("latest", &["--resume", "--only", "things", "--json"]));
    assert!(resumed.stderr.contains("not the latest any more"), "{resumed}");
    assert_eq!(resumed.json()["source"], format!("snapshot {id}"));
    assert_eq!(writes(&shop) - before, 3_000 - done);
    assert_copy_is(&shop, &id);
    assert_eq!(checkpointed(&shop, &state), None);
}

/// Two processes that go on with one session, wherever its state is: one of them stops, and nothing is lost.
#[test]
fn only_one_goes_on_with_a_session() {
    let (shop, id) = scene(4_000);
    let (repository, snapshot) = snapshot(&shop, &id);
    let sessions = RestoreSessions::new(Store::memory());
    let copy = shop.connect(COPY, "(default)");
    let run = async |resume: bool, rate: f64, stop: Stop| {
        let mut options = RestoreOptions::new(&copy, shop.file("dead.ndjson"));
        options.write.rate = Some(rate);
        options.stop = stop;
        let mut session = SessionOptions::new(sessions.clone());
        session.checkpoint_every = Duration::from_millis(50);
        if resume {
            session.resume = sessions.unfinished().await.unwrap().into_iter().next();
        }
        options.session = Some(session);
        let reader = repository.reader(&snapshot).await.unwrap();
        restore(&reader, &copy, options, &Progress::new()).await
    };
    shop.runtime.block_on(async {
        let stop = Stop::default();
        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(700)).await;
            asked.request();
        });
        let stopped = run(false, 1000.0, stop).await.unwrap_err();
        assert!(
            matches!(&stopped, RestoreError::Stopped { session: Some(_), .. }),
            "{stopped}"
        );
        let (one, other) = tokio::join!(
            run(true, 2000.0, Stop::default()),
            run(true, 2000.0, Stop::default())
        );
        let taken =
            |result: &Result<_, RestoreError>| matches!(result, Err(RestoreError::SessionTaken { .. }));
        assert!(taken(&one) != taken(&other), "{one:?} {other:?}");
        let stats = one.or(other).unwrap();
        assert_eq!(stats.written, 4_000);
        assert!(sessions.unfinished().await.unwrap().is_empty());
    });
    assert_copy_is(&shop, &id);
}

/// A failure that stops a restore leaves it to be resumed.
#[test]
fn a_restore_that_fails_is_resumed() {
    let (shop, id) = scene(5_000);
    let fault = Fault::new(
        Rpc::BatchWrite,
        When::After(4),
        Effect::Status(tonic::Code::PermissionDenied, "not you".to_owned()),
    );
    shop.add_fault(fault);
    let failed = shop.firebank(arguments(&id, &["--state", "state", "--rate", "2000"]));
    failed.fails(1, &["--resume", "not you"]);
    shop.sandbox.faults().clear();
    let done = checkpointed(&shop, &shop.file("state")).unwrap();
    assert!(done > 0);
    let before = writes(&shop);
    let report = shop
        .firebank(arguments(&id, &["--state", "state", "--resume", "--json"]))
        .json();
    assert_eq!(report["written"], 5_000);
    assert_eq!(writes(&shop) - before, 5_000 - done);
    assert_copy_is(&shop, &id);

    // A state that cannot be kept is told before anything is written.
    shop.desk.write("file", "");
    let before = writes(&shop);
    let refused = shop.firebank(arguments(&id, &["--state", "file"]));
    refused.fails(1, &["--state"]);
    assert_eq!(writes(&shop), before);
}
