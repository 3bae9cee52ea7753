//! Fleets: tasks that know how many they are take one backup together, whatever happens to some of them.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use firebank::archive::{Parameters, ReadMode, Repository, RepositoryId, SweepOptions, sweep};
use firebank::backup::{BackupError, BackupOptions, BackupStats, CommittedBy, TaskOptions, backup};
use firebank::document::{DocumentPath, canonical, typed_json};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::sandbox::{FaultPlan, Sandbox, SandboxConfig, SyntheticSpec};
use firebank::stop::Stop;
use firebank::store::Store;
use firebank::task::Task;
use rand::RngExt;

use crate::archive_support::object_names;
use crate::cli_support::*;
use crate::support::operations::*;
use crate::support::pruning::at_once;
use crate::support::{project, sandbox, sandbox_with};

/// Documents of about 1 KB each.
pub(crate) const DOCUMENTS: u32 = 4000;
const TASKS: u32 = 8;

pub(crate) fn document(number: u32, version: u32) -> (DocumentPath, Vec<u8>) {
    let text: String = (0..1000u32)
        .map(|at| char::from(b'a' + (at.wrapping_mul(number + 7 + version) >> 3) as u8 % 26))
        .collect();
    let fields = format!(r#"{{"number": {number}, "text": "{text}"}}"#);
    let body = canonical::encode(&typed_json::fields_from_str(&fields).unwrap());
    (DocumentPath::parse(format!("large/d{number:05}")).unwrap(), body)
}

/// So small segments that every range has many.
pub(crate) fn many_segments() -> Parameters {
    Parameters {
        cut_target: 16 << 10,
        cut_max: 64 << 10,
        frame_len: 8 << 10,
        page_records: 64,
        ..Parameters::random()
    }
}

/// A repository of many segments in a shop's folder.
pub(crate) fn make_repository(shop: &Shop) {
    let store = Store::create_local(shop.repository()).unwrap();
    let made = Repository::init_with(
        store,
        firebank::clock::now(),
        RepositoryId::random(),
        many_segments(),
    );
    shop.runtime.block_on(made).unwrap();
}

fn slowly(sandbox: &Sandbox, bytes_per_second: u64) {
    sandbox.faults().set(FaultPlan {
        bytes_per_second: Some(bytes_per_second),
        ..FaultPlan::default()
    });
}

/// Starts one task of a session that is planned in so many ranges.
fn start_task(shop: &Shop, address: &str, (session, ranges): (&str, u32), task: Task) -> Child {
    let mut command = shop.std_command();
    command
        .args(["--emulator", address, "--project", SHOP])
        .args(["backup", "--session", session, "--parallel", "2"])
        .args(["--ranges", &ranges.to_string()])
        .args(["--task-count", &task.count().to_string()])
        .env("JOB_COMPLETION_INDEX", task.index().to_string())
        .env("FIREBANK_EXECUTION", format!("of-{session}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits for the tasks; with `kills`, so many of them are killed first, at random, and started again.
fn let_work(shop: &Shop, session: &str, mut kills: u32) -> Vec<String> {
    let start = |index| {
        start_task(
            shop,
            &shop.address(),
            (session, 64),
            Task::new(index, TASKS).unwrap(),
        )
    };
    let mut tasks: Vec<Child> = (0..TASKS).map(start).collect();
    let begun = Instant::now();
    let mut random = rand::rng();
    while kills > 0 {
        std::thread::sleep(Duration::from_millis(random.random_range(50..350)));
        let index = random.random_range(0..TASKS);
        let task = &mut tasks[index as usize];
        if task.try_wait().unwrap().is_none() {
            task.kill().unwrap();
            task.wait().unwrap();
        }
        *task = start(index);
        kills -= 1;
    }
    assert!(begun.elapsed() < Duration::from_secs(120));
    let mut said = Vec::new();
    for (index, task) in tasks.into_iter().enumerate() {
        let ended = task.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success(), "task {index}: {errors}");
        said.push(String::from_utf8(ended.stdout).unwrap());
    }
    said
}

#[test]
fn eight_tasks_that_are_killed_take_the_snapshot_of_one() {
    let shop = Shop::empty();
    make_repository(&shop);
    shop.put(SHOP, (0..DOCUMENTS).map(|number| document(number, 0)).collect());
    // The second night builds upon the first.
    for (night, session) in ["first", "second"].into_iter().enumerate() {
        slowly(&shop.sandbox, 1_000_000);
        let said = let_work(&shop, session, 24);
        shop.sandbox.faults().clear();
        assert!(said.iter().all(|said| said.contains("Snapshot ")), "{said:?}");
        let snapshots = shop.snapshots();
        assert_eq!(snapshots.len(), 2 * night + 1, "one backup, whoever was killed");

        // One that comes back after the commit.
        let late = start_task(
            &shop,
            &shop.address(),
            (session, 64),
            Task::new(3, TASKS).unwrap(),
        )
        .wait_with_output()
        .unwrap();
        let says = String::from_utf8(late.stdout).unwrap();
        assert!(late.status.success() && says.contains("is there"), "{says}");
        assert!(says.contains(&snapshots[0]), "{says}");
        assert_eq!(shop.snapshots().len(), 2 * night + 1);

        let alone = shop.firebank(["backup", "--full", "--json"]).json();
        // Of what a night changes the cuts depend on what is stored together.
        assert!(night > 0 || alone["new_bytes"] == 0, "the same chunks: {alone}");
        let alone = alone["snapshot"].as_str().unwrap();
        let differs = shop.run(["diff", &snapshots[0], alone]).done();
        assert_eq!(differs, "no document differs\n");
        let listed = shop.run(["show", &snapshots[0], "--json"]).json();
        assert_eq!(
            listed["snapshot"]["documents"]
                .as_u64()
                .or(listed["documents"].as_u64()),
            Some(u64::from(DOCUMENTS + 100 * night as u32))
        );
        shop.run(["verify", "--read-data"]).done();
        let more = (0..300).map(|number| document(DOCUMENTS - 200 + number, 1));
        shop.put(SHOP, more.collect());
    }
    nothing_is_left(&shop);
}

/// What the next prune leaves is what the snapshots need: nothing of any session, and nothing that another prune would find.
fn nothing_is_left(shop: &Shop) {
    shop.runtime.block_on(async {
        let store = Store::local(shop.repository()).unwrap();
        let repository = Repository::open(store).await.unwrap();
        let options = SweepOptions {
            keep_records: Duration::ZERO,
            ..at_once()
        };
        sweep(&repository, &options).await.unwrap();
        let left = object_names(repository.store(), "sessions").await;
        assert!(left.is_empty(), "{left:?}");
        let again = sweep(&repository, &options).await.unwrap();
        assert_eq!(
            (again.deleted_objects, again.deleted_records),
            (0, 0),
            "{again:?}"
        );
    });
    shop.run(["verify", "--read-data"]).done();
}

struct World {
    sandbox: Sandbox,
    database: Firestore,
    repository: Repository,
}

impl World {
    async fn new() -> Self {
        Self::of(DOCUMENTS).await
    }

    async fn of(documents: u32) -> Self {
        let sandbox = sandbox().await;
        let world = Self {
            database: client(&sandbox, &project("fleets")).await,
            repository: repository(many_segments()).await,
            sandbox,
        };
        let all = (0..documents).map(|number| document(number, 0));
        put_all(&world.database, all).await;
        world
    }

    /// A process of its own.
    fn task(
        &self,
        session: &str,
        task: TaskOptions,
        more: BackupOptions,
    ) -> impl Future<Output = Result<BackupStats, BackupError>> + Send + use<> {
        let address = self.sandbox.address().to_string();
        let (project, store) = (
            self.database.database().project.clone(),
            self.repository.store().clone(),
        );
        let options = BackupOptions {
            session: Some(session.to_owned()),
            task: Some(task),
            parallel: 2,
            split_after: Duration::from_millis(300),
            split_documents: 128,
            ..more
        };
        async move {
            let database = connect(&address, &project, "(default)").await;
            let repository = Repository::open(store).await.unwrap();
            backup(&database, &repository, options, &Progress::new()).await
        }
    }
}

/// With times for tasks that read for seconds.
fn quick(index: u32, count: u32) -> TaskOptions {
    TaskOptions {
        look_every: Duration::from_millis(80),
        wait: Duration::from_secs(5),
        ..TaskOptions::new(Task::new(index, count).unwrap())
    }
}

/// Where there are fewer ranges than tasks, each has something to do only because others give parts away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_tasks_are_given_parts_of_what_others_read() {
    // So many that what is on its way when a range is split, some 600 documents each time, is little beside them.
    const MANY: u32 = 3 * DOCUMENTS;
    let world = World::of(MANY).await;
    // Of a range that is compared with a parent, nothing is left to give away where all of the parent's records are at hand: so
    // there the tasks begin with shares of their own.
    for (session, read, ranges) in [("first", None, 2), ("whole", Some(ReadMode::Full), 32)] {
        slowly(&world.sandbox, 1_000_000);
        let before = world.sandbox.usage().documents_sent;
        let tasks: Vec<_> = (0..TASKS)
            .map(|index| {
                let options = BackupOptions {
                    ranges: Some(ranges),
                    read,
                    ..BackupOptions::default()
                };
                tokio::spawn(world.task(session, quick(index, TASKS), options))
            })
            .collect();
        let mut reads = Vec::new();
        let mut snapshots = Vec::new();
        for task in tasks {
            let stats = task.await.unwrap().unwrap();
            reads.push(stats.billed_reads);
            snapshots.push((stats.snapshot, stats.committed));
        }
        world.sandbox.faults().clear();
        let sent = world.sandbox.usage().documents_sent - before;
        let snapshot = &snapshots[0].0;
        assert!(snapshots.iter().all(|(other, _)| other.id == snapshot.id));
        let here = |(_, by): &&(_, CommittedBy)| *by == CommittedBy::ThisProcess;
        assert_eq!(snapshots.iter().filter(here).count(), 1);
        assert_snapshot_is(&world.repository, snapshot, &world.database).await;
        let busy = reads
            .iter()
            .filter(|&&reads| reads > u64::from(MANY) / 40)
            .count();
        assert!(busy >= 4, "all by a few: {reads:?}");
        // Eight times all would be each for itself.
        assert!(
            sent < u64::from(MANY) * 3,
            "{sent} documents were sent, {reads:?}"
        );
        // What is billed is said of all tasks together.
        let billed: u64 = reads.iter().sum();
        let said = snapshot.stats.billed_reads;
        assert!(said <= billed && said * 10 >= billed * 9, "{said} of {billed}");
    }
}

/// Tasks that vanish in the middle of anything, and come back or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_vanish_while_ranges_are_split_do_no_harm() {
    let world = World::new().await;
    let mut random = rand::rng();
    for (round, session) in ["one", "two", "three"].into_iter().enumerate() {
        slowly(&world.sandbox, 2_000_000);
        let start = |index| {
            let options = BackupOptions {
                ranges: Some(6),
                read: (round == 1).then_some(ReadMode::Full),
                checkpoint_every: Duration::from_millis(100),
                ..BackupOptions::default()
            };
            tokio::spawn(world.task(session, quick(index, TASKS), options))
        };
        let mut tasks: Vec<_> = (0..TASKS).map(start).collect();
        for _ in 0..16 {
            tokio::time::sleep(Duration::from_millis(random.random_range(10..120))).await;
            let index = random.random_range(0..TASKS);
            tasks[index as usize].abort();
            tasks[index as usize] = start(index);
        }
        let mut snapshot = None;
        for task in tasks {
            snapshot = Some(task.await.unwrap().unwrap().snapshot);
        }
        world.sandbox.faults().clear();
        let snapshot = snapshot.unwrap();
        assert_snapshot_is(&world.repository, &snapshot, &world.database).await;
        assert_intact(&world.repository, round as u64 + 1).await;
        let more = (0..300).map(|number| document(number * 11, round as u32 + 1));
        put_all(&world.database, more).await;
    }
    sweep(&world.repository, &at_once()).await.unwrap();
    let mut left = object_names(world.repository.store(), "sessions").await;
    left.retain(|name| !name.contains("/by-name/"));
    assert!(left.is_empty(), "{left:?}");
    assert_intact(&world.repository, 3).await;
}

/// What a task had claimed that is gone for good is taken over when it has shown no sign of life for long enough, and no sooner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_task_held_is_taken_over() {
    let world = World::new().await;
    slowly(&world.sandbox, 500_000);
    let options = || BackupOptions {
        ranges: Some(2),
        ..BackupOptions::default()
    };
    let dead = tokio::spawn(world.task("one", quick(0, 2), options()));
    let claims = async || {
        let mut names = object_names(world.repository.store(), "sessions").await;
        names.retain(|name| name.contains("/claims/"));
        names.len()
    };
    while claims().await < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    dead.abort();
    world.sandbox.faults().clear();
    let mut patient = quick(1, 2);
    patient.claims.worker = Duration::from_secs(3);
    let start = Instant::now();
    let stats = world.task("one", patient, options()).await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(1), "it might have lived");
    assert_eq!(stats.committed, CommittedBy::ThisProcess);
    assert_snapshot_is(&world.repository, &stats.snapshot, &world.database).await;
}

#[track_caller]
fn assert_counts_differ(error: &BackupError, by_plan: Option<u32>, by_task: Option<u32>) {
    match error {
        BackupError::TaskCount { planned, asked, .. } => assert_eq!((*planned, *asked), (by_plan, by_task)),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_must_agree_upon_how_many_they_are_and_whose() {
    let world = World::new().await;
    let execution = |task: TaskOptions, execution: &str| TaskOptions {
        execution: Some(execution.to_owned()),
        ..task
    };
    let stop = Stop::default();
    stop.request();
    let stopped = BackupOptions {
        stop,
        ..BackupOptions::default()
    };
    let left = world.task("one", execution(quick(0, 4), "a"), stopped).await;
    assert!(matches!(left, Err(BackupError::Stopped { .. })), "{left:?}");

    let other = world
        .task("one", execution(quick(0, 8), "a"), BackupOptions::default())
        .await
        .unwrap_err();
    assert_counts_differ(&other, Some(4), Some(8));
    let other = world
        .task("one", execution(quick(1, 4), "b"), BackupOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(other, BackupError::OtherExecution { .. }), "{other}");
    let taskless = BackupOptions {
        session: Some("one".to_owned()),
        ..BackupOptions::default()
    };
    let other = backup(&world.database, &world.repository, taskless, &Progress::new())
        .await
        .unwrap_err();
    assert_counts_differ(&other, Some(4), None);

    // One of the four is enough.
    let stats = world
        .task("one", execution(quick(2, 4), "a"), BackupOptions::default())
        .await
        .unwrap();
    assert_eq!(stats.committed, CommittedBy::ThisProcess);
    assert_snapshot_is(&world.repository, &stats.snapshot, &world.database).await;
    let back = world
        .task("one", execution(quick(3, 4), "a"), BackupOptions::default())
        .await
        .unwrap();
    assert_eq!(
        (back.snapshot.id, back.committed),
        (stats.snapshot.id, CommittedBy::Before)
    );
    assert!(back.billed_reads < 5, "it has asked for the time, and no more");
    for stranger in [
        execution(quick(3, 4), "b"),
        execution(quick(3, 5), "a"),
        quick(3, 4),
    ] {
        let refused = world.task("one", stranger, BackupOptions::default()).await;
        assert!(
            matches!(refused, Err(BackupError::NameUsed { how: "committed", .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn the_environment_says_which_task_this_is() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let address = shop.address();
    let run = |environment: &[(&str, &str)], arguments: &[&str]| {
        let here = [
            ("FIRESTORE_EMULATOR_HOST", address.as_str()),
            ("FIREBASE_PROJECT_ID", SHOP),
        ];
        shop.run_with(&[&here, environment].concat(), [&["backup"], arguments].concat())
    };
    let task = |index: &'static str, count: &'static str, execution: &'static str| {
        [
            ("CLOUD_RUN_TASK_INDEX", index),
            ("CLOUD_RUN_TASK_COUNT", count),
            ("CLOUD_RUN_EXECUTION", execution),
        ]
    };
    let first = run(&task("0", "3", "nightly-x1"), &["--json"]).json();
    assert_eq!(first["committed_by"], "this process");
    for index in ["1", "2", "0"] {
        let late = run(&task(index, "3", "nightly-x1"), &["--json"]).json();
        assert_eq!(late["committed_by"], "before");
        assert_eq!(late["snapshot"], first["snapshot"]);
    }
    run(&task("1", "4", "nightly-x1"), &[]).fails(1, &["nightly-x1", "committed"]);
    let reused = [&task("1", "3", "nightly-x2")[..]].concat();
    run(&reused, &["--session", "nightly-x1"]).fails(1, &["nightly-x1", "committed"]);
    run(&task("3", "3", "nightly-x3"), &[]).fails(2, &["no task 3 of 3"]);
    run(&task("one", "3", "nightly-x3"), &[]).fails(2, &["CLOUD_RUN_TASK_INDEX", "`one`"]);

    // An Indexed Job says which task it is, and the manifest how many there are and what they are called.
    let pod = [("JOB_COMPLETION_INDEX", "0"), ("FIREBANK_EXECUTION", "4f1c")];
    run(&pod, &["--task-count", "2"]).fails(2, &["--session"]);
    let job = ["--session", "nightly-29384", "--task-count", "2", "--json"];
    assert_eq!(run(&pod, &job).json()["committed_by"], "this process");
    assert_eq!(run(&pod, &job).json()["committed_by"], "before");
    run(&[], &["--task-count", "2", "--session", "x"]).fails(2, &["--task-index", "JOB_COMPLETION_INDEX"]);
    run(&[], &["--task-index", "0", "--session", "x"]).fails(2, &["--task-count"]);
    run(&pod, &["--task-count", "4000000000", "--session", "x"]).fails(2, &["100000 at most"]);

    // A count that is not the one that was planned for: wrong usage.
    let repository = Store::local(shop.repository()).unwrap();
    let stop = Stop::default();
    stop.request();
    shop.runtime.block_on(async {
        let database = client(&shop.sandbox, SHOP).await;
        let repository = Repository::open(repository).await.unwrap();
        let options = BackupOptions {
            session: Some("open".to_owned()),
            task: Some(quick(0, 4)),
            stop,
            ..BackupOptions::default()
        };
        let left = backup(&database, &repository, options, &Progress::new()).await;
        assert!(matches!(left, Err(BackupError::Stopped { .. })), "{left:?}");
    });
    run(&pod, &["--session", "open", "--task-count", "8"])
        .fails(2, &["`open`", "4 tasks", "says that there are 8", "--task-count"]);
    run(&[], &["--session", "open"]).fails(2, &["4 tasks"]);
}

/// Bytes in a second that each process gets, however many there are.
const RATE: u64 = 600_000;

/// How long it takes so many processes to back up 96 MB, each at the same rate. A part that one can hand over is a megabyte.
fn seconds(tasks: u32) -> f64 {
    let shop = Shop::empty();
    make_repository(&shop);
    // A server for each process, all with the same documents: so each has a rate of its own.
    let servers: Vec<Sandbox> = (0..tasks)
        .map(|_| {
            let config = SandboxConfig {
                synthetic: vec![SyntheticSpec::new("synthetic", 96_000, 1000)],
                ..SandboxConfig::default()
            };
            let server = shop.runtime.block_on(sandbox_with(config));
            slowly(&server, RATE);
            server
        })
        .collect();
    let start = Instant::now();
    let children: Vec<Child> = servers
        .iter()
        .zip(0..)
        .map(|(server, index)| {
            let task = Task::new(index, tasks).unwrap();
            start_task(&shop, &server.address().to_string(), ("timed", 32), task)
        })
        .collect();
    for child in children {
        let ended = child.wait_with_output().unwrap();
        let says = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success(), "{says}");
    }
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(shop.snapshots().len(), 1);
    shop.run(["verify", "--read-data"]).done();
    seconds
}

#[test]
#[ignore = "takes four minutes, and a machine that does nothing else"]
#[expect(clippy::print_stdout, reason = "the figure is what it is run for")]
fn eight_tasks_are_six_times_as_fast_as_one() {
    let (one, eight) = (seconds(1), seconds(8));
    println!(
        "one task: {one:.1} s, eight: {eight:.1} s, {:.2} times as fast",
        one / eight
    );
    assert!(one / eight >= 6.0, "{one} s and {eight} s");
}
