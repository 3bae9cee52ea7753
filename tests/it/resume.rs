//! Backups that stop half-way go on where they were: after a signal, and after a kill.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use firebank::archive::{Parameters, ReadMode, Repository, RepositoryId};
use firebank::backup::{BackupError, BackupOptions, backup};
use firebank::document::{DocumentPath, canonical, typed_json};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::sandbox::FaultPlan;
use firebank::stop::Stop;
use firebank::store::Store;

use crate::cli_support::*;

/// Documents of about 1 KB each.
const DOCUMENTS: u32 = 4000;
/// Bytes in a second that make a backup of them last for some seconds, and that a busy machine keeps up with.
const SLOW: u64 = 500_000;

fn document(number: u32) -> (DocumentPath, Vec<u8>) {
    let text: String = (0..1000u32)
        .map(|at| char::from(b'a' + (at.wrapping_mul(number + 7) >> 3) as u8 % 26))
        .collect();
    let fields = format!(r#"{{"number": {number}, "text": "{text}"}}"#);
    let body = canonical::encode(&typed_json::fields_from_str(&fields).unwrap());
    (DocumentPath::parse(format!("large/d{number:05}")).unwrap(), body)
}

/// A shop whose repository cuts segments of some 16 KB, so that every range has many.
fn slow_shop() -> Shop {
    let shop = Shop::empty();
    let parameters = Parameters {
        cut_target: 16 << 10,
        cut_max: 64 << 10,
        frame_len: 8 << 10,
        ..Parameters::random()
    };
    let store = Store::create_local(shop.repository()).unwrap();
    let made = Repository::init_with(store, firebank::clock::now(), RepositoryId::random(), parameters);
    shop.runtime.block_on(made).unwrap();
    shop.put(SHOP, (0..DOCUMENTS).map(document).collect());
    slow_down(&shop);
    shop
}

fn slow_down(shop: &Shop) {
    shop.sandbox.faults().set(FaultPlan {
        bytes_per_second: Some(SLOW),
        ..FaultPlan::default()
    });
}

/// The repository and the database, for backups in this process.
fn opened(shop: &Shop) -> (Repository, Firestore) {
    let store = Store::local(shop.repository()).unwrap();
    let repository = shop.runtime.block_on(Repository::open(store)).unwrap();
    (repository, shop.connect(SHOP, "(default)"))
}

fn start_backup(shop: &Shop, more: &[&str]) -> Child {
    let mut command = shop.std_command();
    command
        .args(["--emulator", &shop.address(), "--project", SHOP, "backup"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn signal(child: &Child, signal: &str) {
    let killed = std::process::Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
}

/// The names of the objects of a kind.
fn objects(shop: &Shop, kind: &str) -> Vec<String> {
    let mut names = files_below(&shop.repository());
    // One that is being written has a name of its own.
    names.retain(|name| name.contains(kind) && !name.contains('#'));
    names
}

fn checkpoints(shop: &Shop) -> Vec<String> {
    objects(shop, "/checkpoints/")
}

fn documents_sent(shop: &Shop) -> u64 {
    shop.sandbox.usage().documents_sent
}

#[test]
fn a_killed_backup_goes_on_and_does_not_read_finished_ranges_again() {
    let shop = slow_shop();
    let mut killed = start_backup(&shop, &["--ranges", "8", "--parallel", "2"]);
    let start = Instant::now();
    while checkpoints(&shop).len() < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&killed, "-KILL");
    killed.wait().unwrap();
    shop.sandbox.faults().clear();
    assert_eq!(shop.snapshots(), Vec::<String>::new());

    let sessions = shop.run(["sessions", "--json"]).json();
    let session = &sessions["sessions"][0];
    let finished = session["finished_ranges"].as_u64().unwrap();
    assert!((3..8).contains(&finished), "{sessions}");
    assert_eq!(session["ranges"], 8);
    assert!(shop.run(["sessions"]).done().contains("of 8"));

    let before = documents_sent(&shop);
    let resumed = shop.firebank(["backup", "--resume", "--json"]).json();
    assert_eq!(resumed["snapshot"], session["id"], "the same session");
    assert_eq!(resumed["read_time"], session["read_time"]);
    assert_eq!(resumed["documents"], DOCUMENTS);
    let read = documents_sent(&shop) - before;
    // What is left, and what ranges read past their ends.
    let left = u64::from(DOCUMENTS) * (8 - finished) / 8;
    assert!(read <= left + 400, "{read} read, {left} were left");
    shop.run(["verify", "--read-data"]).done();
    assert!(shop.run(["sessions"]).done().starts_with("No session"));
    // The same chunks as those of a backup that was never killed.
    let whole = shop.firebank(["backup", "--full", "--json"]).json();
    assert_eq!(whole["new_bytes"], 0, "{whole}");
    let ids = [&resumed, &whole].map(|backup| backup["snapshot"].as_str().unwrap());
    assert_eq!(shop.run(["diff", ids[0], ids[1]]).done(), "no document differs\n");
}

#[test]
fn sigterm_stops_at_a_checkpoint_and_says_how_to_go_on() {
    stops_at_a_checkpoint("-TERM");
}

#[test]
fn sigint_does_too() {
    stops_at_a_checkpoint("-INT");
}

fn stops_at_a_checkpoint(name: &str) {
    let shop = slow_shop();
    let child = start_backup(&shop, &["--ranges", "1"]);
    let start = Instant::now();
    while documents_sent(&shop) < u64::from(DOCUMENTS) / 2 {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not read");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&child, name);
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("backup --resume"), "{said}");
    assert!(said.contains("0 of 1 key ranges finished"), "{said}");
    assert!(!checkpoints(&shop).is_empty(), "{said}");
    shop.sandbox.faults().clear();
    let before = documents_sent(&shop);
    let resumed = shop.firebank(["backup", "--resume", "--json"]).json();
    assert_eq!(resumed["documents"], DOCUMENTS);
    // What was on its way when the signal came is read again.
    let read = documents_sent(&shop) - before;
    assert!(read < u64::from(DOCUMENTS) * 3 / 4, "{read} read again");
    shop.run(["verify", "--read-data"]).done();
    let whole = shop.firebank(["backup", "--full", "--json"]).json();
    assert_eq!(whole["new_bytes"], 0, "{whole}");
}

/// Where the next cut in the data is far, the checkpoint does not wait for it.
#[test]
fn a_slow_source_stops_in_time() {
    // Segments of some 8 MB, and 4 MB of documents that take eight seconds.
    let shop = Shop::empty();
    shop.run(["init"]).done();
    shop.put(SHOP, (0..DOCUMENTS).map(document).collect());
    slow_down(&shop);
    let sent = documents_sent(&shop);
    let child = start_backup(&shop, &["--ranges", "1"]);
    let start = Instant::now();
    while documents_sent(&shop) < sent + u64::from(DOCUMENTS) / 8 {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not read");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&child, "-TERM");
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("0 of 1 key ranges finished"), "{said}");
    assert_eq!(checkpoints(&shop).len(), 1, "{said}");
    shop.sandbox.faults().clear();
    let before = documents_sent(&shop);
    let resumed = shop.firebank(["backup", "--resume", "--json"]).json();
    assert_eq!(resumed["documents"], DOCUMENTS);
    let read = documents_sent(&shop) - before;
    assert!(read < u64::from(DOCUMENTS) * 15 / 16, "{read} read again");
    shop.run(["verify", "--read-data"]).done();
    shop.firebank(["verify", "--live"]).done();
}

/// Documents of several moments are a backup, and one that somebody should look at.
#[test]
fn a_backup_of_several_moments_needs_a_look() {
    const WINDOW: Duration = Duration::from_secs(2);
    let shop = slow_shop();
    let slow = FaultPlan {
        bytes_per_second: Some(SLOW),
        ..FaultPlan::default()
    };
    for (strict, code) in [(true, 1), (false, 3)] {
        shop.sandbox.faults().set(slow.clone());
        let more: &[&str] = match strict {
            true => &["--ranges", "4", "--parallel", "2", "--require-consistent"],
            false => &["--ranges", "4", "--parallel", "2"],
        };
        let sent = documents_sent(&shop);
        let begun = Instant::now();
        let child = start_backup(&shop, more);
        while documents_sent(&shop) < sent + u64::from(DOCUMENTS) / 4 || begun.elapsed() < WINDOW {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not read");
            std::thread::sleep(Duration::from_millis(20));
        }
        shop.sandbox.faults().set(FaultPlan {
            history: Some(WINDOW),
            ..FaultPlan::default()
        });
        let ended = child.wait_with_output().unwrap();
        shop.sandbox.faults().clear();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{said}");
        match strict {
            true => assert!(
                said.contains("--require-consistent") && shop.snapshots().is_empty(),
                "{said}"
            ),
            false => assert!(said.contains("of several moments"), "{said}"),
        }
    }
    let shown = shop.run(["show", "latest", "--json"]).json();
    assert_eq!(shown["consistency"]["state"], "mixed", "{shown}");
    assert_eq!(shown["documents"], DOCUMENTS);
    shop.run(["verify", "--read-data"]).done();
}

#[test]
fn ranges_write_down_how_far_they_got_from_time_to_time() {
    let shop = slow_shop();
    shop.sandbox.faults().clear();
    let (repository, connection) = opened(&shop);
    let options = BackupOptions {
        ranges: Some(2),
        checkpoint_every: Duration::ZERO,
        ..BackupOptions::default()
    };
    let stats = shop
        .runtime
        .block_on(backup(&connection, &repository, options, &Progress::new()))
        .unwrap();
    assert_eq!(stats.snapshot.documents, u64::from(DOCUMENTS));
    let written = checkpoints(&shop);
    assert!(written.len() > 4, "{written:?}");
    assert_eq!(written.iter().filter(|name| name.ends_with("-0")).count(), 2);
    shop.run(["verify", "--read-data"]).done();
    let whole = shop.firebank(["backup", "--full", "--json"]).json();
    assert_eq!(whole["new_bytes"], 0, "{whole}");
}

#[test]
fn a_killed_night_goes_on_after_the_changes_that_are_in_chunks() {
    let shop = slow_shop();
    shop.sandbox.faults().clear();
    let first = shop.firebank(["backup", "--json"]).json();
    let changed = |number| (document(number).0, document(number + DOCUMENTS).1);
    shop.put(SHOP, (0..DOCUMENTS).map(changed).collect());
    slow_down(&shop);
    let (repository, connection) = opened(&shop);
    let options = BackupOptions {
        ranges: Some(1),
        checkpoint_every: Duration::ZERO,
        read: Some(ReadMode::Full),
        ..BackupOptions::default()
    };
    let progress = Progress::new();
    let night = backup(&connection, &repository, options, &progress);
    let chunks = objects(&shop, "chunks/").len();
    // A range keeps up to 1 MiB in its checkpoints; what comes then is in those that follow as chunks.
    let is_in_chunks = async {
        let pause = || tokio::time::sleep(Duration::from_millis(5));
        while objects(&shop, "chunks/").len() < chunks + 20 {
            pause().await;
        }
        let written = checkpoints(&shop).len();
        while checkpoints(&shop).len() < written + 2 {
            pause().await;
        }
    };
    shop.runtime.block_on(async {
        tokio::select! {
            done = night => panic!("nobody has stopped it: {done:?}"),
            () = is_in_chunks => {}
        }
    });
    shop.sandbox.faults().clear();

    let before = documents_sent(&shop);
    let resumed = shop.firebank(["backup", "--resume", "--json"]).json();
    assert_eq!(resumed["parent"], first["snapshot"]);
    assert_eq!(resumed["changed_documents"], DOCUMENTS);
    let read = documents_sent(&shop) - before;
    assert!(
        read < u64::from(DOCUMENTS) - 900,
        "{read} of {DOCUMENTS} read again"
    );
    let live = shop.firebank(["diff", "latest", "live"]).done();
    assert!(live.starts_with("no document differs\n"), "{live}");
    shop.run(["verify", "--read-data"]).done();
}

#[test]
fn a_night_goes_on_too_and_without_one_to_go_on_with_a_new_one_begins() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let first = shop.firebank(["backup", "--resume", "--json"]).json();
    shop.put(SHOP, vec![document(1)]);
    let (repository, connection) = opened(&shop);
    let stop = Stop::default();
    stop.request();
    let options = BackupOptions {
        ranges: Some(4),
        stop,
        ..BackupOptions::default()
    };
    let stopped = shop
        .runtime
        .block_on(backup(&connection, &repository, options, &Progress::new()));
    let Err(BackupError::Stopped {
        session, finished, ..
    }) = stopped
    else {
        panic!("{stopped:?}")
    };
    assert_eq!(finished, 0);
    let resumed = shop.firebank(["backup", "--resume", "--json"]).json();
    assert_eq!(resumed["snapshot"], session.to_string());
    assert_eq!(resumed["parent"], first["snapshot"]);
    assert_eq!(resumed["new_documents"], 1);
    assert_eq!(
        shop.runtime.block_on(repository.open_sessions()).unwrap().len(),
        0
    );
    // Another selection is another backup.
    let other = shop.firebank(["backup", "users", "--resume", "--json"]).json();
    assert_ne!(other["snapshot"], resumed["snapshot"]);
    shop.firebank(["backup", "--resume", "--full"])
        .fails(2, &["--resume"]);
}
