//! Restores that are stopped, killed and resumed: what was done is not written again, and in the end it is all there.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use firebank::archive::{Repository, Snapshot, SnapshotFilter};
use firebank::compare::compare;
use firebank::document::DatabaseName;
use firebank::progress::Progress;
use firebank::restore::{
    RestoreError, RestoreOptions, RestoreSessions, SessionOptions, UnfinishedRestore, restore,
};
use firebank::sandbox::{Effect, Fault, Rpc, SandboxConfig, SyntheticSpec, When};
use firebank::stop::Stop;
use firebank::store::Store;

use crate::cli_support::*;
use crate::support::operations;

const COPY: &str = "demo-copy";

/// A shop of so many documents, and the id of a snapshot of it.
fn scene(documents: u64) -> (Shop, String) {
    let shop = stock(documents);
    shop.run(["init"]).done();
    let id = shop.back_up();
    (shop, id)
}

/// The same with a snapshot that is cut into many ranges, as one of millions of documents is.
fn fine_scene(documents: u64) -> (Shop, String) {
    let shop = stock(documents);
    let store = Store::create_local(shop.repository()).unwrap();
    shop.runtime
        .block_on(operations::repository_in(store, operations::small_segments()));
    let id = shop.back_up();
    (shop, id)
}

fn stock(documents: u64) -> Shop {
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
    Shop {
        desk: Desk::new(),
        sandbox,
        runtime,
    }
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

fn unfinished(shop: &Shop, state: &Path) -> Vec<UnfinishedRestore> {
    if !state.exists() {
        return Vec::new();
    }
    let sessions = RestoreSessions::new(Store::local(state).unwrap());
    shop.runtime.block_on(sessions.unfinished()).unwrap()
}

/// Documents that are done by the last checkpoint in a folder; `None` without any unfinished restore.
fn checkpointed(shop: &Shop, state: &Path) -> Option<u64> {
    let unfinished = unfinished(shop, state);
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

/// A restore that cannot begin is none to go on with.
#[test]
fn what_is_refused_before_it_begins_leaves_no_record() {
    let (shop, _) = scene(20);
    let other = firebank::document::DocumentPath::parse("others/1").unwrap();
    let empty = firebank::document::canonical::encode(&Default::default());
    shop.put(SHOP, vec![(other, empty)]);
    let id = shop.back_up();
    let more = ["--state", "state", "--rename-collection", "things=others"];
    let refused = shop.firebank(arguments(&id, &more));
    assert!(
        refused.code != 0 && refused.stderr.contains("others/1"),
        "{refused}"
    );
    assert!(unfinished(&shop, &shop.file("state")).is_empty());
}

/// Two restores of one snapshot into one database that were killed, of different documents: each goes on with its own.
#[test]
fn each_restore_is_resumed_by_its_own_options() {
    let (shop, _) = scene(2_000);
    let others = (0..2_000).map(|number| {
        let path = firebank::document::DocumentPath::parse(format!("others/{number}")).unwrap();
        (path, firebank::document::canonical::encode(&Default::default()))
    });
    shop.put(SHOP, others.collect());
    let id = shop.back_up();
    let state = shop.file("state");
    for only in ["things", "others"] {
        let more = ["--state", "state", "--rate", "500", "--only", only];
        let mut child = start(&shop, &id, &more);
        wait_until("no checkpoint", || {
            let unfinished = unfinished(&shop, &state);
            unfinished
                .first()
                .is_some_and(|newest| newest.counts().documents > 0)
                && unfinished.len() == 1 + usize::from(only == "others")
        });
        signal(&mut child, "-KILL");
        child.wait().unwrap();
    }
    // There is a newer snapshot by now: `latest` goes on with what was begun as well.
    shop.firebank(["backup", "--full"]).done();
    for (only, source) in [("things", "latest"), ("others", id.as_str())] {
        let before = settled_writes(&shop);
        let more = ["--state", "state", "--only", only, "--resume", "--json"];
        let report = shop.firebank(arguments(source, &more)).json();
        assert_eq!(report["written"], 2_000, "{report}");
        assert_eq!(report["source"], format!("snapshot {id}"));
        assert!(writes(&shop) - before < 2_000, "it began anew");
    }
    assert_eq!(shop.contents(COPY), shop.contents(SHOP));
}

/// What is billed, and what was left alone, is told of all processes that had a part in it.
#[test]
fn the_report_of_a_resumed_restore_is_of_all_of_it() {
    let (shop, id) = fine_scene(3_000);
    shop.firebank(arguments(&id, &[])).done();
    let copy = shop.connect(COPY, "(default)");
    let time = shop.runtime.block_on(copy.current_read_time()).unwrap();
    let changed = |number: usize| {
        let path = shop.contents(COPY).into_keys().nth(number).unwrap();
        shop.put(
            COPY,
            vec![(
                firebank::document::DocumentPath::parse(path.clone()).unwrap(),
                firebank::document::canonical::encode(&Default::default()),
            )],
        );
        path
    };
    // One of the first and one of the last.
    let theirs = [changed(0), changed(2_999)];
    let more = ["--if-unmodified-since", &time.to_string(), "--state", "state"];
    let before = shop.sandbox.usage();
    let mut child = start(&shop, &id, &[&more[..], &["--rate", "700"]].concat());
    wait_until("no checkpoint", || {
        checkpointed(&shop, &shop.file("state")).is_some_and(|done| done > 0)
    });
    signal(&mut child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let between = shop.sandbox.usage().since(&before);
    let ended = shop.firebank(arguments(&id, &[&more[..], &["--resume", "--json"]].concat()));
    assert_eq!(ended.code, 3, "{ended}");
    let report = ended.json();
    let usage = shop.sandbox.usage().since(&before);
    assert!(between.writes > 0 && between.writes < 2_998, "{between:?}");
    let number = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(["conflicts", "written"].map(number), [2, 2_998], "{report}");
    // A part of a stretch may have been written twice, which only the server knows.
    assert!(
        (2_998..=usage.writes).contains(&number("billed_writes")),
        "{usage:?} {report}"
    );
    // What was sent to the first process and not taken any more is not known to anybody but the server.
    let last = usage.reads - between.reads;
    assert!(
        (last + between.reads / 2..=usage.reads).contains(&number("billed_reads")),
        "{between:?} {usage:?} {report}"
    );
    assert_eq!(report["conflicting"], serde_json::json!(theirs));
}

/// The record says that documents were refused; the file that names them was on a disk that is gone.
#[test]
fn dead_letters_that_are_gone_are_said_to_be() {
    let (shop, id) = fine_scene(2_000);
    let refused = shop.contents(SHOP).into_keys().next().unwrap();
    shop.add_fault(Fault::write(tonic::Code::InvalidArgument, refused, When::Always));
    let more = ["--state", "state", "--dead-letter-file", "lost.ndjson"];
    let mut child = start(&shop, &id, &[&more[..], &["--rate", "500"]].concat());
    wait_until("no checkpoint", || {
        checkpointed(&shop, &shop.file("state")).is_some_and(|done| done > 0)
    });
    signal(&mut child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(shop.file("lost.ndjson").exists());
    std::fs::remove_file(shop.file("lost.ndjson")).unwrap();
    let resumed = shop.firebank(arguments(&id, &["--state", "state", "--resume"]));
    assert_eq!(resumed.code, 3, "{resumed}");
    for part in [
        "refused 1 document",
        "1 that an earlier process had kept there",
        "skip-identical",
    ] {
        assert!(resumed.stderr.contains(part), "{resumed}");
    }
    let again = shop.firebank(arguments(&id, &["--mode", "skip-identical", "--json"]));
    assert_eq!(again.code, 3, "{again}");
    assert!(again.stderr.contains("has each with the reason"), "{again}");
}

/// Kills a restore in a mode a few times. The copy must end as `expected`.
fn killed_in(mode: &str) {
    let (shop, id) = fine_scene(6_000);
    let original = shop.contents(SHOP);
    let path = |path: &str| firebank::document::DocumentPath::parse(path.to_owned()).unwrap();
    let mine = firebank::document::canonical::encode(
        &[("mine".to_owned(), firebank::document::Value::Integer(1))].into(),
    );
    // A half of them, with fields of its own, and others.
    let there = original.keys().step_by(2).map(|name| path(name));
    let extra = (0..1_500).map(|number| path(&format!("extra/{number}")));
    let there: Vec<_> = there.chain(extra).map(|path| (path, mine.clone())).collect();
    shop.put(COPY, there);
    let state = shop.file("state");
    let more = ["--mode", mode, "--resume", "--state", "state", "--json"];
    let slowly = [&more[..], &["--rate", "900"]].concat();
    let mut done = 0;
    for kill in 0..4 {
        let mut child = start(&shop, &id, &slowly);
        wait_until("no checkpoint", || {
            checkpointed(&shop, &state).is_some_and(|now| now > done)
        });
        std::thread::sleep(Duration::from_millis(130 * kill));
        signal(&mut child, "-KILL");
        child.wait().unwrap();
        let now = checkpointed(&shop, &state).unwrap_or(0);
        assert!(now >= done, "{now} after {done}");
        done = now;
    }
    assert!((1..6_000).contains(&done), "{done}");
    settled_writes(&shop);
    let ended = shop.firebank(arguments(&id, &more));
    assert_eq!(ended.code, 0, "{ended}");
    let report = ended.json();
    assert_eq!(
        (&report["documents"], &report["failed"]),
        (&6_000.into(), &0.into()),
        "{report}"
    );
    let copy = shop.contents(COPY);
    match mode {
        "mirror" => assert_eq!(copy, original),
        _ => {
            assert_eq!(copy.len(), 7_500);
            for (number, (name, body)) in original.iter().enumerate() {
                let mut fields = firebank::document::canonical::decode(body).unwrap();
                if number % 2 == 0 {
                    fields.insert("mine".to_owned(), firebank::document::Value::Integer(1));
                }
                assert_eq!(
                    copy[name],
                    firebank::document::canonical::encode(&fields),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn a_mirror_that_is_killed_ends_equal() {
    killed_in("mirror");
}

#[test]
fn a_merge_that_is_killed_ends_merged() {
    killed_in("merge");
}

/// A database that does not answer any more is waited for ten seconds, and no longer.
#[test]
fn a_signal_ends_a_restore_that_gets_no_answers() {
    let (shop, id) = scene(3_000);
    let mut child = start(&shop, &id, &["--rate", "1000", "--state", "state"]);
    wait_until("no checkpoint", || {
        checkpointed(&shop, &shop.file("state")).is_some_and(|done| done > 0)
    });
    let silence = Effect::Delay(Duration::from_secs(120));
    shop.add_fault(Fault::new(Rpc::BatchWrite, When::Always, silence));
    let asked = shop.sandbox.usage().requests_of(Rpc::BatchWrite);
    wait_until("no request", || {
        shop.sandbox.usage().requests_of(Rpc::BatchWrite) > asked
    });
    let start = Instant::now();
    signal(&mut child, "-TERM");
    let ended = child.wait_with_output().unwrap();
    let took = start.elapsed();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("--resume"), "{stderr}");
    assert!((8..40).contains(&took.as_secs()), "{took:?}");
    shop.sandbox.faults().clear();
    let done = checkpointed(&shop, &shop.file("state")).unwrap();
    assert!((1..3_000).contains(&done), "{done}");
    let report = shop
        .firebank(arguments(&id, &["--resume", "--state", "state", "--json"]))
        .json();
    assert_eq!(report["written"], 3_000, "{report}");
    assert_copy_is(&shop, &id);
}

/// A snapshot that is forgotten while it is restored stays until the restore is done.
#[test]
fn a_sweep_during_a_restore_takes_nothing_from_it() {
    let (shop, id) = scene(3_000);
    shop.firebank(["backup", "--full", "--no-dedup"]).done();
    let before = files_below(&shop.repository().join("chunks"));
    let child = start(&shop, &id, &["--rate", "600"]);
    wait_until("no write", || writes(&shop) > 300);
    let clean = ["clean", "--keep-last", "1", "--yes"];
    shop.firebank(clean).done();
    assert_eq!(shop.snapshots().len(), 1, "it is forgotten");
    assert_eq!(
        files_below(&shop.repository().join("chunks")),
        before,
        "and all of it is there"
    );
    assert!(writes(&shop) < 3_000, "the restore was over too early");
    let ended = child.wait_with_output().unwrap();
    assert!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    assert_eq!(shop.contents(COPY), shop.contents(SHOP));
    shop.firebank(clean).done();
    assert!(
        files_below(&shop.repository().join("chunks")).len() < before.len(),
        "now it is gone"
    );
}

/// What is under way at one time lies far apart in the key space.
#[test]
fn writes_are_spread_over_the_key_space() {
    let (shop, id) = fine_scene(10_000);
    let all: Vec<String> = shop.contents(SHOP).into_keys().collect();
    let mut child = start(&shop, &id, &["--rate", "1000"]);
    wait_until("no write", || writes(&shop) >= 2_500);
    signal(&mut child, "-KILL");
    child.wait().unwrap();
    settled_writes(&shop);
    let written = shop.contents(COPY);
    assert!(written.len() < 4_500, "{}", written.len());
    let mut parts = [0; 8];
    for (number, name) in all.iter().enumerate() {
        parts[number * parts.len() / all.len()] += usize::from(written.contains_key(name));
    }
    assert!(
        parts.iter().filter(|writes| **writes > 0).count() >= 5,
        "{parts:?}"
    );
}

/// What is left of restores is listed beside the sessions of backups, and goes when somebody says so.
#[test]
fn unfinished_restores_are_listed_and_removed() {
    let (shop, id) = fine_scene(3_000);
    let sessions = |more: &[&str]| shop.run([&["sessions", "--state", "state", "--json"], more].concat());
    sessions(&[]).fails(1, &["state"]);
    assert!(shop.run(["sessions"]).done().starts_with("No session"));
    let more = [
        "--rate", "700", "--state", "state", "--only", "things", "--mode", "merge",
    ];
    let mut killed = start(&shop, &id, &more);
    wait_until("no checkpoint", || {
        checkpointed(&shop, &shop.file("state")).is_some_and(|done| done > 0)
    });
    signal(&mut killed, "-KILL");
    killed.wait().unwrap();
    let done = checkpointed(&shop, &shop.file("state")).unwrap();
    let listed = sessions(&[]).json();
    let restores = listed["restores"].as_array().unwrap();
    assert_eq!(restores.len(), 1, "{listed}");
    let restore = &restores[0];
    assert_eq!(
        (&restore["snapshot"], &restore["target"], &restore["documents"]),
        (
            &id.clone().into(),
            &format!("{COPY}/(default)").into(),
            &done.into()
        )
    );
    assert_eq!(restore["options"]["--only"], "things");
    assert_eq!(restore["options"]["--mode"], "Merge");
    let text = shop.run(["sessions", "--state", "state"]).done();
    for part in [&id[..], COPY, "--only things", "ago"] {
        assert!(text.contains(part), "{part:?}: {text}");
    }
    // Those of another repository are none of this one's business.
    shop.run(["-r", "other", "init"]).done();
    let other = shop.run(["-r", "other", "sessions", "--state", "state"]).done();
    assert!(other.starts_with("No session"), "{other}");

    let name = restore["id"].as_str().unwrap();
    sessions(&["--remove", "ffffffffffffffff"]).fails(2, &["no such unfinished restore"]);
    sessions(&["--remove", ""]).fails(2, &["no such unfinished restore"]);
    assert_eq!(
        sessions(&["--remove", &name[..8]]).json()["restores"],
        serde_json::json!([])
    );
    let mut left = files_below(&shop.file("state"));
    left.retain(|name| !name.contains('#'));
    assert_eq!(left, Vec::<String>::new());
    let again = shop.firebank(arguments(&id, &[&more[..], &["--resume"]].concat()));
    assert!(again.stderr.contains("no unfinished restore"), "{again}");
}

/// The state in a bucket, as another machine finds it.
fn resumed_from(kind: crate::support::buckets::Kind) {
    let (shop, id) = scene(4_000);
    let Some(server) = shop
        .runtime
        .block_on(crate::support::buckets::Server::start(kind))
    else {
        return;
    };
    let address = server.address("state/of");
    let variables = server.variables();
    let run = |more: &[&str]| {
        let mut command = shop.std_command();
        command
            .args(["--emulator", &shop.address(), "--project", SHOP])
            .args(arguments(&id, &[&["--state", &address, "--json"], more].concat()))
            .envs(&variables);
        command
    };
    let sessions = RestoreSessions::new(server.store("state/of"));
    let done = || {
        let unfinished = shop.runtime.block_on(sessions.unfinished()).unwrap();
        unfinished.first().map(|restore| restore.counts().documents)
    };
    let mut child = run(&["--rate", "800"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("no checkpoint", || done() > Some(0));
    signal(&mut child, "-KILL");
    child.wait().unwrap();
    let before = settled_writes(&shop);
    let recorded = done().unwrap();
    assert!((1..4_000).contains(&recorded), "{recorded}");
    let report = finish(run(&["--resume"])).json();
    assert_eq!(report["written"], 4_000, "{report}");
    assert_eq!(writes(&shop) - before, 4_000 - recorded);
    assert_copy_is(&shop, &id);
    assert_eq!(done(), None);
}

#[test]
fn a_restore_is_resumed_from_a_record_in_s3() {
    resumed_from(crate::support::buckets::Kind::S3);
}

#[test]
fn a_restore_is_resumed_from_a_record_in_google_cloud_storage() {
    resumed_from(crate::support::buckets::Kind::Gcs);
}

#[test]
fn a_restore_is_resumed_from_a_record_in_azure() {
    resumed_from(crate::support::buckets::Kind::Azure);
}
