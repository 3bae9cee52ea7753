//! Work that tasks share without a session of a backup: restores and verifications of the data.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use firebank::archive::{DataSubset, Repository, SnapshotFilter};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::restore::{
    RestoreError, RestoreMode, RestoreOptions, RestoreSessions, RestoreStats, SessionOptions, restore,
};
use firebank::sandbox::{Effect, Fault, Rpc, When};
use firebank::store::Store;
use firebank::task::{SharedWork, Task};
use firebank::verify::{VerifyOptions, VerifyStats, verify_shared};
use futures::TryStreamExt;

use crate::cli_support::*;
use crate::fleets::{DOCUMENTS, document, make_repository};
use crate::strange_store::{Habits, StrangeStore};

#[test]
fn tasks_share_the_data_that_is_verified() {
    let (shop, _) = Shop::backed_up();
    make_damage(&shop);
    let all = shop.run(["verify", "--read-data", "--json"]);
    let whole = all.json();
    assert_eq!(all.code, 3, "{all}");
    let (mut read, mut found) = (0, 0);
    for index in 0..3 {
        let part = shop.run_with(
            &[("JOB_COMPLETION_INDEX", &index.to_string())],
            ["verify", "--read-data", "--task-count", "3", "--json"],
        );
        let json = part.json();
        read += json["data_bytes"].as_u64().unwrap();
        found += json["damage_count"].as_u64().unwrap();
        assert_eq!(part.code == 3, json["damage_count"] != 0, "{part}");
    }
    assert_eq!(read, whole["data_bytes"].as_u64().unwrap());
    assert_eq!(found, whole["damage_count"].as_u64().unwrap());
    shop.run(["verify", "--read-data", "--task-index", "3", "--task-count", "3"])
        .fails(2, &["no task 3 of 3"]);
}

/// Flips a bit in the middle of the largest object, which is a chunk of data.
fn make_damage(shop: &Shop) {
    let chunks = files_below(&shop.repository().join("chunks"));
    let files = chunks
        .iter()
        .map(|name| shop.repository().join("chunks").join(name));
    let largest = files
        .max_by_key(|file| std::fs::metadata(file).unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut permissions = std::fs::metadata(&largest).unwrap().permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "a file of the test's own")]
    permissions.set_readonly(false);
    std::fs::set_permissions(&largest, permissions).unwrap();
    std::fs::write(&largest, bytes).unwrap();
}

/// Starts a task of a restore.
fn start_restore(shop: &Shop, snapshot: &str, index: u32, more: &[&str]) -> Child {
    let mut command = shop.std_command();
    command
        .args(["--emulator", &shop.address(), "--project", SHOP])
        .args(["restore", snapshot, "--to-project", "demo-copy", "--json"])
        .args(["--state", "state", "--parallel", "2"])
        .args(more)
        .env("JOB_COMPLETION_INDEX", index.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if !more.contains(&"--session") {
        command.args(["--session", "staging"]);
    }
    command.spawn().unwrap()
}

/// What a task that has ended well reports.
fn report_of(task: Child) -> serde_json::Value {
    let ended = task.wait_with_output().unwrap();
    let says = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{says}");
    serde_json::from_slice(&ended.stdout).unwrap()
}

/// What a task says that it and all others have done.
fn count_of(task: &serde_json::Value, what: &str) -> u64 {
    task[what].as_u64().unwrap() + task["others"][what].as_u64().unwrap()
}

/// A shop with a snapshot that is cut into many ranges.
fn scene() -> (Shop, String) {
    let shop = Shop::empty();
    make_repository(&shop);
    shop.put(SHOP, (0..DOCUMENTS).map(|number| document(number, 0)).collect());
    let snapshot = shop.back_up();
    (shop, snapshot)
}

#[test]
fn tasks_share_a_restore_and_go_on_where_they_were_killed() {
    const RESTORERS: u32 = 3;
    let (shop, snapshot) = scene();
    let task = |snapshot: &str, more: &[&str]| {
        let restore = ["restore", snapshot, "--to-project", "demo-copy"];
        let task = ["--task-index", "0", "--task-count", "3"];
        shop.firebank([&restore[..], &task[..], more].concat())
    };
    task(&snapshot, &["--session", "staging"]).fails(2, &["--state"]);
    task(&snapshot, &["--state", "state"]).fails(2, &["--session"]);
    for flag in ["--verify", "--resume"] {
        task(&snapshot, &["--state", "state", "--session", "staging", flag]).fails(2, &[flag]);
    }
    // The next task could take another one for it.
    task("latest", &["--state", "state", "--session", "staging"]).fails(2, &["by its id"]);
    // Slow enough that one is killed in the middle.
    let slow = ["--rate", "150", "--task-count", "3"];
    let mut tasks: Vec<Child> = (0..RESTORERS)
        .map(|index| start_restore(&shop, &snapshot, index, &slow))
        .collect();
    let begun = Instant::now();
    let checkpoints = || {
        let files = files_below(&shop.path());
        files.iter().filter(|name| name.contains("/checkpoint-")).count()
    };
    while checkpoints() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = tasks[1].kill();
    tasks[1].wait().unwrap();
    let wrong = start_restore(&shop, &snapshot, 0, &["--task-count", "4"]);
    let wrong = wrong.wait_with_output().unwrap();
    let says = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{says}");
    assert!(says.contains("shared by 3 tasks"), "{says}");
    tasks[1] = start_restore(&shop, &snapshot, 1, &slow);
    let (mut documents, mut of_second) = (0, 0);
    for (index, task) in (0..).zip(tasks) {
        let stats = report_of(task);
        assert_eq!(count_of(&stats, "documents"), u64::from(DOCUMENTS), "{stats}");
        let own = stats["documents"].as_u64().unwrap();
        documents += own;
        of_second = if index == 1 { own } else { of_second };
    }
    // Of the one that was killed, what it had recorded counts as its own.
    assert_eq!(documents, u64::from(DOCUMENTS), "each document is some task's");
    assert!(shop.contents("demo-copy") == shop.contents(SHOP));
    let sessions = shop.firebank(["sessions", "--state", "state", "--json"]).json();
    assert_eq!(sessions["restores"], serde_json::json!([]));
    // One that is started again tells the same, and writes nothing.
    let writes = shop.sandbox.usage().writes;
    let again = report_of(start_restore(&shop, &snapshot, 1, &slow));
    assert_eq!(again["documents"], of_second);
    assert_eq!(count_of(&again, "documents"), u64::from(DOCUMENTS), "{again}");
    assert_eq!(shop.sandbox.usage().writes, writes);
    // Other tasks with the same name are told that it is used.
    let others = ["--task-count", "3", "--execution", "another"];
    let refused = start_restore(&shop, &snapshot, 1, &others)
        .wait_with_output()
        .unwrap();
    let says = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{says}");
    assert!(says.contains("`staging` was shared by other tasks"), "{says}");
}

/// A task of a restore as a process of its own would do it, with times for work of seconds.
async fn restore_task(
    (repository, snapshot): (&Repository, &str),
    copy: &Firestore,
    sessions: &RestoreSessions,
    (index, count): (u32, u32),
    with: impl FnOnce(&mut RestoreOptions),
) -> Result<RestoreStats, RestoreError> {
    let snapshot = repository
        .resolve(snapshot, &SnapshotFilter::default())
        .await
        .unwrap();
    let reader = repository.reader(&snapshot).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut options = RestoreOptions::new(copy, folder.path().join("dead.ndjson"));
    options.parallel = 2;
    options.session = Some(SessionOptions {
        shared: Some(quick(index, count)),
        checkpoint_every: Duration::from_millis(50),
        ..SessionOptions::new(sessions.clone())
    });
    with(&mut options);
    restore(&reader, copy, options, &Progress::new()).await
}

fn quick(index: u32, count: u32) -> SharedWork {
    SharedWork {
        look_every: Duration::from_millis(20),
        patience: Duration::from_secs(6),
        ..SharedWork::new(Task::new(index, count).unwrap(), "shared")
    }
}

/// The parts that a task has done.
fn parts(stats: &RestoreStats) -> BTreeSet<u32> {
    let shared = stats.shared.as_ref().unwrap();
    shared.parts.iter().copied().collect()
}

/// Waits until the sandbox has dealt with what was sent, and says how many writes it has seen.
async fn settled_writes(shop: &Shop) -> u64 {
    let (mut seen, mut quiet) = (shop.sandbox.usage().writes, 0);
    while quiet < 4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = shop.sandbox.usage().writes;
        quiet = if now == seen { quiet + 1 } else { 0 };
        seen = now;
    }
    seen
}

/// One dies in the middle and one never comes: whoever is left does their shares, without writing again what was recorded as done.
#[test]
fn what_dead_tasks_have_left_of_a_restore_is_taken_over() {
    let (shop, snapshot) = scene();
    let copy = shop.connect("demo-copy", "(default)");
    let sessions = RestoreSessions::new(Store::memory());
    shop.runtime.block_on(async {
        let repository = Repository::open(Store::local(shop.repository()).unwrap())
            .await
            .unwrap();
        let from = (&repository, snapshot.as_str());
        let recorded = async {
            loop {
                let shared = sessions.shared().await.unwrap();
                let done = shared.first().map_or(0, |restore| restore.counts().documents);
                if done >= 100 {
                    return done;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let slow = |options: &mut RestoreOptions| options.write.rate = Some(150.0);
        let recorded = tokio::select! {
            ended = restore_task(from, &copy, &sessions, (1, 4), slow) => panic!("{ended:?}"),
            recorded = recorded => recorded,
        };
        let writes = settled_writes(&shop).await;
        let (one, other) = tokio::join!(
            restore_task(from, &copy, &sessions, (0, 4), |_| {}),
            restore_task(from, &copy, &sessions, (3, 4), |_| {}),
        );
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(parts(&one).is_disjoint(&parts(&other)));
        let written = shop.sandbox.usage().writes - writes;
        assert!(
            written <= u64::from(DOCUMENTS) - recorded,
            "{written} with {recorded} recorded"
        );
        for (stats, rest) in [(&one, &other), (&other, &one)] {
            let of_others = stats.shared.as_ref().unwrap();
            assert_eq!(stats.documents + of_others.others.documents, u64::from(DOCUMENTS));
            // The one that died may have brought parts to their end.
            assert!(of_others.others.documents >= rest.documents);
            assert!(of_others.parts_of_others >= parts(rest).len());
        }
        // The one that was given up comes late.
        let late = restore_task(from, &copy, &sessions, (1, 4), |_| {})
            .await
            .unwrap();
        let of_others = late.shared.as_ref().unwrap().others.documents;
        assert_eq!(late.documents + of_others, u64::from(DOCUMENTS));
        assert_eq!(shop.sandbox.usage().writes - writes, written);
        // In another way it is not the same restore.
        let other = restore_task(from, &copy, &sessions, (2, 4), |options| {
            options.mode = RestoreMode::Mirror;
        });
        let refused = other.await.unwrap_err();
        assert!(matches!(refused, RestoreError::Shares(_)), "{refused}");
        assert!(
            refused
                .to_string()
                .contains("--mode was `Overwrite` and is `Mirror`"),
            "{refused}"
        );
    });
    assert!(shop.contents("demo-copy") == shop.contents(SHOP));
}

/// What the database refuses one task, every task tells, and none ends well.
#[test]
fn what_is_wrong_with_one_share_is_told_by_all() {
    let (shop, snapshot) = scene();
    let refused = Fault::write(tonic::Code::InvalidArgument, "/large/d00007", When::Always);
    shop.add_fault(refused);
    let more = ["--task-count", "2", "--only", "large/d0000?"];
    let tasks = [0, 1].map(|index| start_restore(&shop, &snapshot, index, &more));
    let ended = tasks.map(|task| task.wait_with_output().unwrap());
    for ended in ended {
        let says = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(3), "{says}");
        assert!(says.contains("the database refused 1 document"), "{says}");
        let stats: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(count_of(&stats, "failed"), 1, "{stats}");
    }
    shop.sandbox.faults().clear();
    // So it is of one that is started again.
    let again = start_restore(&shop, &snapshot, 1, &more)
        .wait_with_output()
        .unwrap();
    assert_eq!(again.status.code(), Some(3));
    // And of a restore of nothing, but not of a part of nothing.
    let none = ["--task-count", "1", "--only", "smaller/*", "--session", "none"];
    let none = start_restore(&shop, &snapshot, 0, &none)
        .wait_with_output()
        .unwrap();
    let says = String::from_utf8_lossy(&none.stderr).into_owned();
    assert_eq!(none.status.code(), Some(3), "{says}");
    assert!(says.contains("no document matches"), "{says}");
    let one = ["--task-count", "2", "--only", "large/d00001", "--session", "one"];
    let tasks = [0, 1].map(|index| start_restore(&shop, &snapshot, index, &one));
    let found: u64 = tasks
        .map(|task| report_of(task)["documents"].as_u64().unwrap())
        .iter()
        .sum();
    assert_eq!(found, 1);
}

/// Tasks that wait so long for the database that they have nothing to record: nobody takes them for dead.
#[test]
fn who_is_slow_keeps_what_it_is_at() {
    let shop = Shop::empty();
    shop.run(["init"]).done();
    // One page, which is all in one part.
    shop.put(SHOP, (0..600).map(|number| document(number, 0)).collect());
    let snapshot = shop.back_up();
    let copy = shop.connect("demo-copy", "(default)");
    let sessions = RestoreSessions::new(Store::memory());
    shop.runtime.block_on(async {
        let repository = Repository::open(Store::local(shop.repository()).unwrap())
            .await
            .unwrap();
        let from = (&repository, snapshot.as_str());
        let answer_late = Effect::Delay(2 * quick(0, 2).patience);
        shop.add_fault(Fault::new(Rpc::BatchWrite, When::Always, answer_late));
        let (one, other) = tokio::join!(
            restore_task(from, &copy, &sessions, (0, 2), |_| {}),
            restore_task(from, &copy, &sessions, (1, 2), |_| {}),
        );
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(parts(&one).is_disjoint(&parts(&other)));
        assert_eq!(one.documents.max(other.documents), 600);
        assert!(one.duration >= 2 * quick(0, 2).patience, "{one:?}");
        assert_eq!(one.writes.written + other.writes.written, 600);
    });
}

/// While tasks are at work their restore is listed, and can be given up.
#[test]
fn a_restore_of_tasks_is_listed_and_can_be_given_up() {
    let (shop, snapshot) = scene();
    std::fs::create_dir(shop.file("state")).unwrap();
    let slow = ["--rate", "30", "--task-count", "2"];
    let tasks = [0, 1].map(|index| start_restore(&shop, &snapshot, index, &slow));
    let sessions = |more: &[&str]| {
        let listed = shop.firebank([&["sessions", "--state", "state", "--json"], more].concat());
        listed.json()["restores"].as_array().unwrap().clone()
    };
    let begun = Instant::now();
    let listed = loop {
        match sessions(&[]).as_slice() {
            [one] if one["documents"].as_u64() > Some(0) => break one.clone(),
            _ => assert!(begun.elapsed() < Duration::from_secs(60)),
        }
    };
    assert_eq!(
        (
            &listed["id"],
            &listed["snapshot"],
            &listed["options"]["--task-count"]
        ),
        (&"staging".into(), &snapshot.as_str().into(), &"2".into())
    );
    // However often, while their records change.
    for _ in 0..10 {
        assert_eq!(sessions(&[]).len(), 1);
    }
    assert!(sessions(&["--remove", "staging"]).is_empty());
    for mut task in tasks {
        task.kill().unwrap();
        task.wait().unwrap();
    }
    let other = shop.back_up();
    let anew = start_restore(&shop, &other, 0, &["--task-count", "1"]);
    assert_eq!(report_of(anew)["documents"], DOCUMENTS);
}

/// Tasks that come and go at any time, as a cluster that is short of machines has them.
#[test]
fn tasks_that_vanish_and_come_back_restore_everything_once() {
    let (shop, snapshot) = scene();
    let copy = shop.connect("demo-copy", "(default)");
    let sessions = RestoreSessions::new(Store::memory());
    let finished = shop.runtime.block_on(async {
        let repository = Repository::open(Store::local(shop.repository()).unwrap())
            .await
            .unwrap();
        let from = (&repository, snapshot.as_str());
        let task = async |index: u32| {
            let mut lives = 0u64;
            loop {
                lives += 1;
                let run = restore_task(from, &copy, &sessions, (index, 3), |options| {
                    options.write.rate = Some(1_500.0);
                });
                // Of other lengths each time, and in the end long enough.
                let life = Duration::from_millis(150 * lives + 70 * u64::from(index));
                if let Ok(ended) = tokio::time::timeout(life, run).await {
                    return ended.unwrap();
                }
            }
        };
        let (one, two, three) = tokio::join!(task(0), task(1), task(2));
        [one, two, three]
    });
    for stats in &finished {
        let others = stats.shared.as_ref().unwrap().others.documents;
        assert_eq!(stats.documents + others, u64::from(DOCUMENTS));
    }
    assert!(shop.contents("demo-copy") == shop.contents(SHOP));
}

/// One that is slow, and alive: it keeps what it is at, and who has nothing left to do takes what it has not begun.
#[test]
fn what_a_slow_task_has_not_begun_others_restore() {
    let (shop, snapshot) = scene();
    let copy = shop.connect("demo-copy", "(default)");
    let sessions = RestoreSessions::new(Store::memory());
    let (slow, fast) = shop.runtime.block_on(async {
        let repository = Repository::open(Store::local(shop.repository()).unwrap())
            .await
            .unwrap();
        let from = (&repository, snapshot.as_str());
        tokio::join!(
            restore_task(from, &copy, &sessions, (0, 2), |options| {
                options.write.rate = Some(100.0);
            }),
            restore_task(from, &copy, &sessions, (1, 2), |options| {
                options.write.rate = Some(1_000.0);
            }),
        )
    });
    let (slow, fast) = (slow.unwrap(), fast.unwrap());
    let (of_slow, of_fast) = (parts(&slow).len(), parts(&fast).len());
    assert!(
        (1..=4).contains(&of_slow) && of_fast > 8,
        "{:?} {:?}",
        parts(&slow),
        parts(&fast)
    );
    // Nothing was taken out of a live one's hands.
    assert_eq!(slow.documents + fast.documents, u64::from(DOCUMENTS));
    assert_eq!(slow.writes.written + fast.writes.written, u64::from(DOCUMENTS));
    assert!(shop.contents("demo-copy") == shop.contents(SHOP));
}

async fn verify_task(repository: &Repository, state: &Store, index: u32, count: u32) -> (VerifyStats, u32) {
    let options = VerifyOptions {
        read_data: Some(DataSubset::ALL),
        ..VerifyOptions::default()
    };
    let shared = quick(index, count);
    let progress = Progress::new();
    let verified = verify_shared(repository, options, state, &shared, &progress)
        .await
        .unwrap();
    assert_eq!(verified.of, 4 * count);
    (verified.stats, verified.parts)
}

/// As with a restore; and the structure is read by each once, not with every part.
#[test]
fn what_a_slow_task_has_not_begun_others_verify() {
    let (shop, _) = scene();
    let strange = StrangeStore::new();
    shop.runtime.block_on(async {
        for name in files_below(&shop.repository()) {
            let bytes = std::fs::read(shop.repository().join(&name)).unwrap();
            strange.store().put_new(&name, bytes).await.unwrap();
        }
        let (slow, fast) = (strange.beside(), strange.beside());
        slow.habits(Habits {
            delay: Some(Duration::from_millis(200)),
            ..Habits::default()
        });
        let (slow, fast) = (
            Repository::open(slow.store()).await.unwrap(),
            Repository::open(fast.store()).await.unwrap(),
        );
        let state = Store::memory();
        let (all, _) = verify_task(&fast, &Store::memory(), 0, 1).await;
        let ((slow, of_slow), (fast, of_fast)) =
            tokio::join!(verify_task(&slow, &state, 0, 2), verify_task(&fast, &state, 1, 2));
        assert_eq!(of_slow + of_fast, 8);
        assert!(of_slow <= 2, "{of_slow} and {of_fast}");
        assert_eq!(slow.data_bytes + fast.data_bytes, all.data_bytes);
        for stats in [&slow, &fast] {
            assert_eq!((stats.objects, stats.documents), (all.objects, all.documents));
            assert_eq!(stats.damage_count, 0);
        }
    });
}

/// The second of three tasks never comes: the others read its share as well, and the data is read once.
#[test]
fn what_a_dead_task_was_to_verify_is_taken_over() {
    let (shop, _) = Shop::backed_up();
    make_damage(&shop);
    shop.runtime.block_on(async {
        let repository = Repository::open(Store::local(shop.repository()).unwrap())
            .await
            .unwrap();
        let state = Store::memory();
        let (all, _) = verify_task(&repository, &Store::memory(), 0, 1).await;
        assert_eq!(all.damage_count, 1, "{all:#?}");
        let ((one, of_one), (other, of_other)) = tokio::join!(
            verify_task(&repository, &state, 0, 3),
            verify_task(&repository, &state, 2, 3)
        );
        assert_eq!(of_one + of_other, 3 * 4);
        assert_eq!(one.data_bytes + other.data_bytes, all.data_bytes);
        // Who has found it may be gone: each tells it.
        assert_eq!((one.damage_count, other.damage_count), (1, 1), "{one:?}");
        // One that is started again reads nothing, and tells what was found.
        for index in 0..3 {
            let (again, read) = verify_task(&repository, &state, index, 3).await;
            assert_eq!((again.damage_count, read), (1, 0));
            assert_eq!((again.data_bytes, again.objects), (0, all.objects));
        }
    });
    let task =
        |more: &[&str]| shop.run([&["verify", "--task-index", "0", "--task-count", "2"], more].concat());
    task(&["--read-data", "--session", "weekly"]).fails(2, &["--state"]);
    task(&["--session", "weekly", "--state", "state"]).fails(2, &["--read-data"]);
    task(&["--read-data", "--session", "weekly", "--state", "state", "latest"]).fails(2, &["ids"]);
    task(&["--live", "--session", "weekly"]).fails(2, &["--live"]);
    shop.run(["verify", "--read-data", "--state", "state"])
        .fails(2, &["--state", "--session"]);
    // A job of one task has nobody to share with, and goes on all the same.
    let alone = [
        "--session",
        "alone",
        "--state",
        "state",
        "--task-index",
        "0",
        "--task-count",
        "1",
    ];
    for _ in 0..2 {
        let verified = shop.run([&["verify", "--read-data", "--json"], &alone[..]].concat());
        assert_eq!(
            (verified.code, verified.json()["damage_count"].as_u64()),
            (3, Some(1))
        );
    }
}

/// Of a snapshot that comes later only some data would be read: nobody says that it is intact.
#[test]
fn what_comes_later_is_not_verified_with_the_rest() {
    let (shop, _) = Shop::backed_up();
    let open = async || {
        let store = Store::local(shop.repository()).unwrap();
        Repository::open(store).await.unwrap()
    };
    let state = Store::memory();
    let before = shop.runtime.block_on(async {
        let repository = open().await;
        let begun = async {
            let is_begun = async || {
                let names: Vec<_> = state.list("").try_collect().await.unwrap();
                !names.is_empty()
            };
            while !is_begun().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = begun => {}
            ended = verify_task(&repository, &state, 0, 2) => panic!("{ended:?}"),
        }
        verify_task(&repository, &Store::memory(), 0, 1).await.0
    });
    shop.back_up();
    shop.runtime.block_on(async {
        let repository = open().await;
        assert_eq!(repository.snapshots().await.unwrap().snapshots.len(), 2);
        for index in [0, 1] {
            let (stats, _) = verify_task(&repository, &state, index, 2).await;
            let looked_at = (stats.snapshots, stats.documents);
            assert_eq!(looked_at, (before.snapshots, before.documents));
        }
    });
}

/// As tasks of a Cloud Run Job, which tells them who they are and what they share; one is killed, whenever that is, and started
/// again, as Cloud Run does.
#[test]
fn tasks_of_a_cloud_run_job_verify_and_restore_together() {
    const TASKS: u32 = 3;
    let (shop, snapshot) = scene();
    let start = |execution: &str, index: u32, arguments: &[&str]| {
        let mut command = shop.std_command();
        command
            .args(["--emulator", &shop.address(), "--project", SHOP])
            .args(arguments)
            .args(["--state", &format!("state-of-{execution}"), "--json"])
            .env("CLOUD_RUN_TASK_INDEX", index.to_string())
            .env("CLOUD_RUN_TASK_COUNT", TASKS.to_string())
            .env("CLOUD_RUN_EXECUTION", execution)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    // Says what the tasks reported, after one of them was killed.
    let share = |execution: &str, code: i32, arguments: &[&str]| {
        let mut tasks: Vec<Child> = (0..TASKS)
            .map(|index| start(execution, index, arguments))
            .collect();
        let begun = Instant::now();
        let has_begun = || {
            let files = files_below(&shop.path());
            let state = format!("state-of-{execution}/");
            files.iter().any(|name| name.starts_with(&state))
        };
        while !has_begun() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing is begun");
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = tasks[1].kill();
        tasks[1].wait().unwrap();
        tasks[1] = start(execution, 1, arguments);
        let report = |task: Child| -> serde_json::Value {
            let ended = task.wait_with_output().unwrap();
            let says = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert_eq!(ended.status.code(), Some(code), "{says}");
            serde_json::from_slice(&ended.stdout).unwrap()
        };
        tasks.into_iter().map(report).collect::<Vec<_>>()
    };
    let restore = [
        "restore",
        &snapshot,
        "--to-project",
        "demo-copy",
        "--parallel",
        "2",
    ];
    let restored = share("job-1", 0, &restore);
    let documents = |task: &serde_json::Value| task["documents"].as_u64().unwrap();
    assert_eq!(restored.iter().map(documents).sum::<u64>(), u64::from(DOCUMENTS));
    assert!(shop.contents("demo-copy") == shop.contents(SHOP));

    make_damage(&shop);
    let whole = shop.run(["verify", "--read-data", "--json"]).json();
    let verified = share("job-2", 3, &["verify", "--read-data"]);
    for task in &verified {
        assert_eq!(task["damage"], whole["damage"], "{task}");
    }
}
