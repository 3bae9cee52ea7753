//! The time that a database is read at: a moment of the past, and what comes of a backup that takes longer than that moment can be
//! read.

use std::collections::BTreeMap;
use std::time::Duration;

use firebank::archive::{ChangeKind, Consistency, RangeTime, ReadMode, Repository, Snapshot};
use firebank::backup::{BackupError, BackupOptions, BackupStats, backup};
use firebank::diff::{DiffOptions, ReadTimes, diff_live};
use firebank::document::{DocumentKey, DocumentPath, KeyRange, Timestamp, canonical, typed_json};
use firebank::firestore::{BulkWriter, Firestore, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::sandbox::{FaultPlan, Sandbox, SandboxConfig};
use firebank::verify::{CompareOptions, Sample, verify_database, verify_sample};
use futures::TryStreamExt;

use crate::cli_support::{SHOP, Shop};
use crate::support::operations::*;
use crate::support::{project, sandbox, sandbox_with};

/// What the database holds: a number for each document.
type Model = BTreeMap<DocumentKey, i64>;

const DOCUMENTS: u64 = 3000;
/// How long the past can be read, once that begins to count.
const WINDOW: Duration = Duration::from_secs(2);

fn path(number: u64) -> DocumentPath {
    let path = match number % 3 {
        0 => format!("orders/o{:05}", number * 7919 % 100_000),
        1 => format!("products/p{:05}/reviews/r{number}", number * 7919 % 100_000),
        _ => format!("users/u{:05}", number * 7919 % 100_000),
    };
    DocumentPath::parse(path).unwrap()
}

fn body(number: i64) -> Vec<u8> {
    let text = format!("{number:x}").repeat(40);
    canonical::encode(
        &typed_json::fields_from_str(&format!(r#"{{"number": {number}, "text": "{text}"}}"#)).unwrap(),
    )
}

struct World {
    sandbox: Sandbox,
    database: Firestore,
    repository: Repository,
    model: Model,
}

impl World {
    async fn new() -> Self {
        let sandbox = sandbox().await;
        let mut world = Self {
            database: connect(&sandbox.address().to_string(), &project("windows"), "(default)").await,
            repository: repository(small_segments()).await,
            sandbox,
            model: Model::new(),
        };
        world
            .write((0..DOCUMENTS).map(|number| (path(number), Some(number as i64))))
            .await;
        world
    }

    async fn write(&mut self, edits: impl IntoIterator<Item = (DocumentPath, Option<i64>)>) {
        let options = WriteOptions::new(&self.database);
        let mut writer = BulkWriter::new(&self.database, options, Vec::<WriteFailure>::new());
        for (path, number) in edits {
            match number {
                Some(number) => {
                    writer.put(&path, &body(number)).await.unwrap();
                    self.model.insert(path.key(), number);
                }
                None => {
                    writer.delete(&path).await.unwrap();
                    self.model.remove(&path.key());
                }
            }
        }
        assert_eq!(writer.finish().await.unwrap().failed, 0);
    }

    /// A third of the documents is changed, some go away, some come.
    async fn change(&mut self, seed: u64) {
        let edits = (0..DOCUMENTS + 300).filter_map(|number| match (number + seed) % 9 {
            0 => Some((path(number), None)),
            1..4 => Some((path(number), Some((number * 31 + seed * 10_000) as i64))),
            _ => None,
        });
        self.write(edits.collect::<Vec<_>>()).await;
    }

    fn options(&self, read: ReadMode) -> BackupOptions {
        BackupOptions {
            ranges: Some(6),
            parallel: 3,
            read: Some(read),
            ..BackupOptions::default()
        }
    }

    /// Backs up while the database changes, and closes the window of the past once so many documents were read. A backup that
    /// has stored nothing by then begins anew.
    async fn back_up_while_it_closes(
        &mut self,
        options: BackupOptions,
        documents: u64,
    ) -> (Result<BackupStats, BackupError>, Model) {
        let (database, repository) = (self.database.clone(), self.repository.clone());
        let work = async move { backup(&database, &repository, options, &Progress::new()).await };
        self.while_it_closes(work, documents).await
    }

    /// Does something while the database changes, and closes the window of the past once so many documents were read: there the
    /// server waits. What the database held before comes along.
    async fn while_it_closes<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = T> + Send + 'static,
        documents: u64,
    ) -> (T, Model) {
        let before = self.model.clone();
        self.sandbox.faults().set(FaultPlan {
            hold_after: Some(documents),
            ..FaultPlan::default()
        });
        let sent = self.sandbox.usage().documents_sent;
        let begun = std::time::Instant::now();
        let running = tokio::spawn(work);
        while self.sandbox.usage().documents_sent < sent + documents {
            assert!(begun.elapsed() < Duration::from_secs(60) && !running.is_finished());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.change(begun.elapsed().subsec_nanos().into()).await;
        tokio::time::sleep(WINDOW).await;
        self.sandbox.faults().set(FaultPlan {
            history: Some(WINDOW),
            ..FaultPlan::default()
        });
        let result = running.await.unwrap();
        self.sandbox.faults().clear();
        (result, before)
    }

    /// Each document of the snapshot is as it was at the time of its range.
    async fn check(&self, snapshot: &Snapshot, before: &Model, after: &Model) -> (usize, usize) {
        let Consistency::Mixed { ranges } = &snapshot.consistency else {
            panic!("{:?}", snapshot.consistency)
        };
        assert!(ranges.iter().all(|range| range.read_time > snapshot.read_time));
        let later = |key: &[u8]| ranges.iter().any(|range| range.range.contains(key));
        let early = before.iter().filter(|(key, _)| !later(key.as_bytes()));
        let late = after.iter().filter(|(key, _)| later(key.as_bytes()));
        let mut expected: Vec<(&DocumentKey, &i64)> = early.chain(late).collect();
        expected.sort();
        let mut batches = documents(&self.repository, snapshot).await;
        let mut found = Vec::new();
        while let Some(batch) = batches.try_next().await.unwrap() {
            found.extend(
                batch
                    .iter()
                    .map(|document| (document.key.to_vec(), document.body.to_vec())),
            );
        }
        assert_eq!(found.len() as u64, snapshot.documents);
        for ((key, body_found), (expected, number)) in found.iter().zip(&expected) {
            assert_eq!(key, expected.as_bytes(), "{expected:?}");
            assert_eq!(*body_found, body(**number), "{expected:?}");
        }
        assert_eq!(found.len(), expected.len());
        let late = expected.iter().filter(|(key, _)| later(key.as_bytes())).count();
        (expected.len() - late, late)
    }

    /// A night upon what is there is the database as it is now.
    async fn check_the_next_night(&self, read: ReadMode) {
        let night = try_back_up_changes(&self.database, &self.repository, read, 4)
            .await
            .unwrap();
        assert_eq!(night.snapshot.consistency, Consistency::Consistent);
        assert_eq!(night.snapshot.documents, self.model.len() as u64);
        assert_snapshot_is(&self.repository, &night.snapshot, &self.database).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_backup_reads_the_rest_later_when_the_window_closes() {
    let mut world = World::new().await;
    let (result, before) = world
        .back_up_while_it_closes(world.options(ReadMode::Full), DOCUMENTS / 2)
        .await;
    let snapshot = result.unwrap().snapshot;
    let (early, late) = world.check(&snapshot, &before, &world.model).await;
    assert!(early > 300 && late > 300, "{early} and {late}");
    assert_intact(&world.repository, 1).await;
    for read in [ReadMode::Names, ReadMode::Full] {
        world.check_the_next_night(read).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_reads_the_rest_later_when_the_window_closes() {
    let mut world = World::new().await;
    for read in [ReadMode::Names, ReadMode::Full] {
        if world.repository.snapshots().await.unwrap().snapshots.is_empty() {
            back_up(&world.database, &world.repository, 2).await;
        }
        world.change(1).await;
        let (result, before) = world
            .back_up_while_it_closes(world.options(read), DOCUMENTS * 2 / 3)
            .await;
        let snapshot = result.unwrap().snapshot;
        assert!(snapshot.parent.is_some());
        let (early, late) = world.check(&snapshot, &before, &world.model).await;
        assert!(early > 100 && late > 100, "{early} and {late}");
        world.check_the_next_night(ReadMode::Names).await;
    }
}

/// A session that was left in its tails goes on there; who asks for one moment does not take it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_in_its_tails() {
    let mut world = World::new().await;
    let stop = firebank::stop::Stop::default();
    let options = BackupOptions {
        stop: stop.clone(),
        session: Some("tails".to_owned()),
        ..world.options(ReadMode::Full)
    };
    // Left at once, with its plan.
    stop.request();
    let (database, repository) = (world.database.clone(), world.repository.clone());
    let stopped = backup(&database, &repository, options.clone(), &Progress::new()).await;
    let Err(BackupError::Stopped { session, .. }) = stopped else {
        panic!("{stopped:?}")
    };
    let before = world.model.clone();
    let session = firebank::archive::Session::join(&repository, session, 1 << 20)
        .await
        .unwrap();
    let planned = session.plan().read_time;
    let first = session.unfinished_ranges().await.unwrap().remove(0);
    let mut writer = session.resume_range_writer(first);
    let mut batches = Box::pin(database.scan(firebank::firestore::ScanOptions::new(
        writer.reads().clone(),
        planned,
    )));
    let batch = batches.try_next().await.unwrap().unwrap();
    for document in batch.iter().take(200) {
        assert_eq!(
            writer.push(document).await.unwrap(),
            firebank::archive::Flow::Continue
        );
    }
    writer.checkpoint_here().await.unwrap();
    world.change(3).await;
    let now = database.current_read_time().await.unwrap();
    session.read_rest_at(planned, now).await.unwrap();
    let go_on = |require_consistent| BackupOptions {
        stop: firebank::stop::Stop::default(),
        require_consistent,
        ..options.clone()
    };
    let refused = backup(&database, &repository, go_on(true), &Progress::new()).await;
    assert!(matches!(refused, Err(BackupError::Mixed { .. })), "{refused:?}");
    let stats = backup(&database, &repository, go_on(false), &Progress::new())
        .await
        .unwrap();
    let (early, late) = world.check(&stats.snapshot, &before, &world.model).await;
    assert_eq!(early, 200);
    assert!(late > 2000, "{late}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_for_one_moment_gets_no_other() {
    let mut world = World::new().await;
    let options = BackupOptions {
        require_consistent: true,
        ..world.options(ReadMode::Full)
    };
    let (result, _) = world.back_up_while_it_closes(options, DOCUMENTS / 2).await;
    assert!(
        matches!(result, Err(BackupError::WindowClosed { .. })),
        "{result:?}"
    );
    assert!(world.repository.snapshots().await.unwrap().snapshots.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_backed_up() {
    let mut world = World::new().await;
    let then = world.database.current_read_time().await.unwrap();
    let past = world.model.clone();
    world.change(5).await;
    let options = BackupOptions {
        read_time: Some(then),
        ..world.options(ReadMode::Full)
    };
    let at = |options: BackupOptions| {
        let (database, repository) = (world.database.clone(), world.repository.clone());
        async move { backup(&database, &repository, options, &Progress::new()).await }
    };
    let snapshot = at(options.clone()).await.unwrap().snapshot;
    assert_eq!(snapshot.read_time, then);
    assert_eq!(snapshot.documents, past.len() as u64);
    let mut batches = documents(&world.repository, &snapshot).await;
    let mut expected = past.iter();
    while let Some(batch) = batches.try_next().await.unwrap() {
        for document in batch.iter() {
            let (key, number) = expected.next().unwrap();
            assert_eq!(
                (document.key, document.body),
                (key.as_bytes(), &body(*number)[..])
            );
        }
    }
    // It goes on from the past to the present, and cannot go the other way: only what is of no later time can be built upon.
    world.check_the_next_night(ReadMode::Names).await;
    let again = at(options).await.unwrap().snapshot;
    assert_eq!(again.parent, Some(snapshot.id));
    for (seconds, nanos, pitr, why) in [
        (60, 0, false, "future"),
        (0, 1, false, "microseconds"),
        (-8 * 86_400, 0, true, "seven days"),
    ] {
        let wrong = Timestamp::new(then.seconds + seconds, nanos);
        let wrong = match pitr {
            true => Timestamp::new(wrong.seconds - wrong.seconds % 60, 0),
            false => wrong,
        };
        let options = BackupOptions {
            read_time: Some(wrong),
            pitr,
            ..BackupOptions::default()
        };
        let error = at(options).await.unwrap_err();
        assert!(matches!(error, BackupError::ReadTime { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

/// What a comparison finds where the database is looked at later than at first: documents that were changed meanwhile.
fn changed_in(later: &[RangeTime], before: &Model, after: &Model) -> Vec<DocumentKey> {
    let is_later = |key: &&DocumentKey| later.iter().any(|later| later.range.contains(key.as_bytes()));
    let all: std::collections::BTreeSet<&DocumentKey> = before.keys().chain(after.keys()).collect();
    let changed = all.into_iter().filter(|key| before.get(*key) != after.get(*key));
    changed.filter(is_later).cloned().collect()
}

fn check_later(later: &[RangeTime], first: Timestamp) {
    assert!(!later.is_empty());
    assert!(later.iter().all(|later| later.read_time > first));
    for pair in later.windows(2) {
        assert!(pair[0].range.end.is_some() && pair[0].range.end <= pair[1].range.start);
    }
}

/// A comparison takes longer than the database can be read at one moment: the rest is compared as it is later, and the report
/// says what.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_is_compared_later_when_the_window_closes() {
    let mut world = World::new().await;
    let snapshot = back_up(&world.database, &world.repository, 2).await;
    let reader = world.repository.reader(&snapshot).await.unwrap();
    let database = world.database.clone();
    let work = async move {
        let options = CompareOptions {
            parallel: 3,
            named: 10_000,
            ..CompareOptions::default()
        };
        verify_database(&reader, &database, &options, &Progress::new()).await
    };
    let (stats, before) = world.while_it_closes(work, DOCUMENTS / 3).await;
    let stats = stats.unwrap();
    check_later(&stats.later, stats.read_time);
    let found = stats.comparison.first_differences.iter();
    let found: Vec<DocumentKey> = found.map(|difference| difference.path.key()).collect();
    let expected = changed_in(&stats.later, &before, &world.model);
    assert_eq!(found, expected);
    let all = changed_in(
        &[RangeTime {
            range: KeyRange::all(),
            read_time: stats.read_time,
        }],
        &before,
        &world.model,
    );
    assert!(
        expected.len() > 100 && expected.len() < all.len(),
        "{}",
        expected.len()
    );
    assert_eq!(
        stats.comparison.equal + stats.comparison.differences(),
        stats.documents
    );

    // In the database that the snapshot is of, where only names are read, and what changed is fetched.
    let snapshot = back_up(&world.database, &world.repository, 2).await;
    let reader = world.repository.reader(&snapshot).await.unwrap();
    let of_snapshot = world.model.clone();
    world.change(7).await;
    let database = world.database.clone();
    let times = ReadTimes::now(&database).await.unwrap();
    let told = times.clone();
    let work = async move {
        let options = DiffOptions {
            parallel: 3,
            ..DiffOptions::default()
        };
        let changes = diff_live(&reader, &database, &times, &options).await?;
        changes.try_collect::<Vec<_>>().await
    };
    // Some of what changed is fetched before, some at the first moment still.
    let (changes, before) = world.while_it_closes(work, DOCUMENTS * 2 / 3).await;
    let changes = changes.unwrap().into_iter().flatten();
    let changes: BTreeMap<DocumentKey, ChangeKind> =
        changes.map(|change| (change.path.key(), change.kind)).collect();
    let later = told.later();
    check_later(&later, told.first());
    let is_later = |key: &DocumentKey| later.iter().any(|later| later.range.contains(key.as_bytes()));
    let mut met = [0, 0];
    for key in (0..DOCUMENTS + 300).map(|number| path(number).key()) {
        let now = match is_later(&key) {
            true => world.model.get(&key),
            false => before.get(&key),
        };
        let expected = match (of_snapshot.get(&key), now) {
            (None, Some(_)) => Some(ChangeKind::Added),
            (Some(_), None) => Some(ChangeKind::Deleted),
            (Some(old), Some(new)) if old != new => Some(ChangeKind::Changed),
            _ => None,
        };
        let found = changes
            .get(&key)
            .copied()
            .filter(|kind| *kind != ChangeKind::Rewritten);
        assert_eq!(found, expected, "{key:?}");
        met[usize::from(is_later(&key))] += u64::from(expected.is_some());
    }
    assert!(met.iter().all(|met| *met > 50), "{met:?}");
}

/// A sample as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_of_a_sample_is_compared_later_when_the_window_closes() {
    let mut world = World::new().await;
    let snapshot = back_up(&world.database, &world.repository, 2).await;
    let reader = world.repository.reader(&snapshot).await.unwrap();
    let database = world.database.clone();
    let work = async move {
        let options = CompareOptions {
            named: 10_000,
            ..CompareOptions::default()
        };
        let everything = Sample::Percent(100.0);
        verify_sample(&reader, &database, everything, &options, &Progress::new()).await
    };
    let (stats, before) = world.while_it_closes(work, DOCUMENTS / 6).await;
    let stats = stats.unwrap();
    check_later(&stats.later, stats.read_time);
    assert_eq!(stats.documents, DOCUMENTS);
    let found = stats.comparison.first_differences.iter();
    let found: Vec<DocumentKey> = found.map(|difference| difference.path.key()).collect();
    // A sample does not see what only the database has.
    let mut expected = changed_in(&stats.later, &before, &world.model);
    expected.retain(|key| before.contains_key(key));
    assert_eq!(found, expected);
}

/// The command says from which document on.
#[test]
fn the_command_tells_what_was_compared_later() {
    let shop = Shop::open();
    shop.put(SHOP, (0..1500).map(|number| (path(number), body(7))).collect());
    shop.run(["init"]).done();
    let id = shop.back_up();
    let address = shop.address();
    let run = |arguments: &[&str]| {
        shop.sandbox.faults().set(FaultPlan {
            hold_after: Some(900),
            ..FaultPlan::default()
        });
        let sent = shop.sandbox.usage().documents_sent;
        let ended = std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let all = ["--emulator", &address, "--project", SHOP].into_iter();
                shop.desk.run(all.chain(arguments.iter().copied()))
            });
            while shop.sandbox.usage().documents_sent < sent + 900 && !running.is_finished() {
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(WINDOW);
            shop.sandbox.faults().set(FaultPlan {
                history: Some(WINDOW),
                ..FaultPlan::default()
            });
            running.join().unwrap()
        });
        shop.sandbox.faults().clear();
        assert_eq!(ended.code, 0, "{ended}");
        assert!(ended.stderr.contains("newer ones in part: "), "{ended}");
        assert!(ended.stderr.contains(": as of 2"), "{ended}");
        ended.json()
    };
    let verified = run(&["verify", &id, "--live", "--parallel", "2", "--json"]);
    assert_eq!(verified["matches"], true);
    let differences = run(&["diff", &id, "live", "--parallel", "2", "--json"]);
    assert_eq!(differences["documents"], serde_json::json!([]));
    for view in [verified, differences] {
        let later = view["later_ranges"].as_array().unwrap();
        assert!(!later.is_empty(), "{view}");
        for range in later {
            let begin = range.get("after").or(range.get("from"));
            assert!(
                begin.is_none_or(|path| path.as_str().unwrap().contains('/')),
                "{range}"
            );
            assert!(
                range["read_time"].as_str() > view["read_time"].as_str(),
                "{range}"
            );
        }
        assert!(later.iter().any(|range| range.get("after").is_some()), "{view}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_recovery_backups_are_of_whole_minutes() {
    let days = SandboxConfig {
        history: Duration::from_secs(7 * 86_400),
        ..SandboxConfig::default()
    };
    let sandbox = sandbox_with(days).await;
    let database = connect(&sandbox.address().to_string(), &project("recovery"), "(default)").await;
    let repository = repository(small_segments()).await;
    let at = async |read_time: Option<Timestamp>, pitr| {
        let options = BackupOptions {
            read_time,
            pitr,
            ..BackupOptions::default()
        };
        backup(&database, &repository, options, &Progress::new()).await
    };
    let now = database.current_read_time().await.unwrap();
    let snapshot = at(None, true).await.unwrap().snapshot;
    assert_eq!(
        (snapshot.read_time.seconds % 60, snapshot.read_time.nanos),
        (0, 0)
    );
    assert!((0..120).contains(&(now.seconds - snapshot.read_time.seconds)));
    let yesterday = Timestamp::new((now.seconds - 86_400) / 60 * 60, 0);
    let snapshot = at(Some(yesterday), true).await.unwrap().snapshot;
    assert_eq!(snapshot.read_time, yesterday);
    let error = at(Some(yesterday), false).await.unwrap_err();
    assert!(error.to_string().contains("--pitr"), "{error}");
    let error = at(Some(Timestamp::new(yesterday.seconds + 1, 0)), true)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("whole minutes"), "{error}");
}

#[test]
fn times_are_named_on_the_command_line() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let first = shop.firebank(["backup", "--json"]).json();
    assert_eq!(first["consistency"]["state"], "consistent");
    let then = first["read_time"].as_str().unwrap();
    let again = shop
        .firebank(["backup", "--json", "--full", "--read-time", then])
        .json();
    assert_eq!(again["read_time"], first["read_time"]);
    shop.firebank(["backup", "--read-time", "yesterday"])
        .fails(2, &["2026-01-31T22:00:00Z"]);
    shop.firebank(["backup", "--read-time", "2001-01-01T00:00:00Z"])
        .fails(1, &["seven days"]);
    let minute = shop
        .firebank(["backup", "--json", "--full", "--pitr", "--require-consistent"])
        .json();
    assert!(
        minute["read_time"].as_str().unwrap().ends_with(":00Z"),
        "{minute}"
    );
}
