//! Kills at any point: what was half done is put in order by the next run, and each migration is applied once.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use firebank::archive::{Repository, SweepOptions, sweep};
use firebank::document::canonical;
use firebank::migration::RecordStatus;
use firebank::store::Store;

use crate::cli_support::*;
use crate::migrations_support::*;
use crate::support::emulator;
use crate::support::operations::{repository_in, small_segments};

/// Long enough for many batches; every document is written more than once.
const LONG: &str = r#"
export function migrate(db) {
  db.transform("items", (item) => ({ ...item, name: item.name + "!", half: item.half + 1 }));
  for (let i = 0; i < 400; i += 1) db.create(`extra/e${i}`, { i });
  for (let i = 0; i < 300; i += 1) db.delete(`items/i${String(i).padStart(5, "0")}`);
  db.addField("items", "state", "new");
  db.renameField("items", "big", "huge");
}
"#;

const ITEMS: i64 = 2500;

/// Of a runner that is to be killed: short, and long enough that it keeps its lock on a busy machine.
const LOCK_EXPIRY: &str = "3s";

impl Project {
    /// Starts a command whose lock expires after this long.
    fn start(&self, arguments: &[&str], lock_expiry: &str) -> Child {
        self.std_command()
            .args(["--emulator", &self.address(), "--project", SHOP])
            .args(arguments)
            .args(["--lock-expiry", lock_expiry])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs a command and kills it after this long. Says whether it was killed.
    fn kill_after(&self, arguments: &[&str], delay: Duration) -> bool {
        let mut child = self.start(arguments, LOCK_EXPIRY);
        std::thread::sleep(delay);
        let killed = child.try_wait().unwrap().is_none();
        let _ = child.kill();
        child.wait().unwrap();
        killed
    }

    /// Runs a command and kills it when it has changed some documents of many. Returns what there is then.
    fn kill_at_work(&self, arguments: &[&str], before: &Contents) -> Contents {
        self.kill_when(arguments, |documents| documents != before)
    }

    /// Runs a command and kills it when the documents are as asked for. Returns what there is then.
    fn kill_when(&self, arguments: &[&str], is_time: impl Fn(&Contents) -> bool) -> Contents {
        // So slowly that there is much left to do when the first change is seen.
        let mut child = self.start(&[arguments, &["--rate", "1000"]].concat(), LOCK_EXPIRY);
        let start = Instant::now();
        while !is_time(&self.documents()) {
            assert!(start.elapsed() < Duration::from_secs(60), "{arguments:?}");
            assert_eq!(child.try_wait().unwrap(), None, "{arguments:?} ended too early");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What was on its way arrives.
        std::thread::sleep(Duration::from_millis(200));
        self.documents()
    }

    /// Puts in order what was left, and applies nothing.
    fn recover(&self) {
        let recovered = self.firebank(["migrate", "--to", "0", "--wait", "1min"]);
        assert_eq!(recovered.code, 0, "{recovered}");
    }
}

/// Moments spread over a duration and a bit more, different in each run.
fn moments(count: u32, duration: Duration) -> impl Iterator<Item = Duration> {
    let shift: f64 = rand::random();
    (0..count).map(move |number| duration.mul_f64((f64::from(number) + shift) / f64::from(count) * 1.05))
}

/// What a database is with and without the migration, and how long the migration takes.
struct Known {
    before: Contents,
    after: Contents,
    migrating: Duration,
    rolling_back: Duration,
}

fn known(project: &Project) -> Known {
    project.script("v1_long", LONG);
    let before = project.documents();
    let start = Instant::now();
    project.firebank(["migrate"]).done();
    let migrating = start.elapsed();
    let after = project.documents();
    assert_eq!(after.len(), ITEMS as usize + 400 - 300);
    let start = Instant::now();
    project.firebank(["rollback"]).done();
    let rolling_back = start.elapsed();
    assert!(project.documents() == before);
    Known {
        before,
        after,
        migrating,
        rolling_back,
    }
}

#[test]
fn a_killed_migration_is_undone_by_the_next_run() {
    let project = Project::with_items(ITEMS);
    let known = known(&project);
    // At any moment, and once certainly at work.
    let delays = moments(6, known.migrating).map(Some).chain([None]);
    for delay in delays {
        let killed = match delay {
            Some(delay) => project.kill_after(&["migrate"], delay),
            None => {
                let half = project.kill_at_work(&["migrate"], &known.before);
                assert!(![&known.before, &known.after].contains(&&half));
                true
            }
        };
        project.recover();
        let documents = project.documents();
        let status = project.status("v1_long");
        match status.as_str() {
            "completed" => assert!(documents == known.after, "killed {killed} after {delay:?}"),
            _ => assert!(
                documents == known.before,
                "killed {killed} after {delay:?}: {status}"
            ),
        }
        // Started again it does all of it.
        project.firebank(["migrate", "--wait", "1min"]).done();
        assert!(project.documents() == known.after, "killed after {delay:?}");
        project.firebank(["rollback"]).done();
        assert!(project.documents() == known.before);
    }
    project.run(["clean", "--yes"]).done();
    project.run(["verify", "--read-data"]).done();
}

/// At moments of its work that differ in each run.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_killed_on_the_emulator_is_undone_by_the_next_run() {
    let Some(address) = emulator() else { return };
    let desk = Desk::new();
    let store = Store::create_local(desk.file("backups")).unwrap();
    let repository = repository_in(store, small_segments()).await;
    let bench = Bench::with_repository(address, "killed", 1500, repository).await;
    bench.script("v1_long", LONG);
    let command = |arguments: &[&str]| {
        let mut command = desk.std_command();
        command
            .args(["--emulator", address, "--repository", "backups"])
            .args(["--project", &bench.database.database().project])
            .args(arguments)
            .arg("--migrations")
            .arg(bench.folder.path());
        command
    };
    let run = |arguments: &[&str]| finish(command(arguments)).done();
    let before = bench.documents().await;
    run(&["migrate"]);
    let after = bench.documents().await;
    assert_eq!(after.len(), 1500 + 400 - 300);
    run(&["rollback"]);
    assert!(bench.documents().await == before);
    for _ in 0..4 {
        let mut child = command(&["migrate", "--lock-expiry", LOCK_EXPIRY, "--rate", "500"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        bench.until(|documents| *documents != before).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..600))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(bench.status("v1_long").await, RecordStatus::Running);
        run(&["migrate", "--to", "0", "--wait", "1min"]);
        assert!(bench.documents().await == before);
    }
    run(&["migrate"]);
    assert!(bench.documents().await == after);
    run(&["rollback"]);
    assert!(bench.documents().await == before);
}

#[test]
fn the_undo_may_be_killed_as_well() {
    const RECOVER: [&str; 5] = ["migrate", "--to", "0", "--wait", "1min"];
    let project = Project::with_items(ITEMS);
    let known = known(&project);
    for _ in 0..2 {
        // Killed when every item was changed, and then while that is undone, again and again.
        let has_more = |documents: &Contents| documents.len() > known.before.len();
        let mut half = project.kill_when(&["migrate"], has_more);
        for _ in 0..2 {
            let less = project.kill_at_work(&RECOVER, &half);
            assert!(![&known.before, &known.after, &half].contains(&&less));
            assert_eq!(project.status("v1_long"), "running");
            half = less;
        }
        // And at any moment.
        let delay = known.migrating.mul_f64(rand::random()) + Duration::from_millis(2700);
        project.kill_after(&RECOVER, delay);
        project.recover();
        assert!(project.documents() == known.before);
        assert_eq!(project.status("v1_long"), "failed");
    }
}

#[test]
fn a_killed_rollback_is_finished_by_the_next_run() {
    let project = Project::with_items(ITEMS);
    let known = known(&project);
    for delay in moments(4, known.rolling_back).map(Some).chain([None]) {
        project.firebank(["migrate"]).done();
        match delay {
            Some(delay) => {
                project.kill_after(&["rollback"], delay);
            }
            None => {
                let half = project.kill_at_work(&["rollback"], &known.after);
                assert!(![&known.before, &known.after].contains(&&half));
            }
        }
        project.recover();
        let documents = project.documents();
        match project.status("v1_long").as_str() {
            "completed" => assert!(documents == known.after, "killed after {delay:?}"),
            _ => assert!(documents == known.before, "killed after {delay:?}"),
        }
        if project.status("v1_long") == "completed" {
            project.firebank(["rollback"]).done();
        }
    }
}

#[test]
fn a_killed_rollback_by_script_is_undone() {
    let project = Project::with_items(ITEMS);
    let script = format!(
        "{ADD_STATE}\nexport function rollback(db) {{ db.removeField('items', 'state'); db.addField('items', 'back', 1); }}"
    );
    project.script("v1_state", &script);
    let before: Vec<_> = (0..ITEMS)
        .map(|number| (item(number), canonical::encode(&fields(number))))
        .collect();
    let start = Instant::now();
    project.firebank(["migrate"]).done();
    let duration = start.elapsed();
    let applied = project.documents();
    for delay in moments(3, duration).map(Some).chain([None]) {
        match delay {
            Some(delay) => {
                project.kill_after(&["rollback"], delay);
            }
            None => {
                let half = project.kill_at_work(&["rollback"], &applied);
                assert!(half != applied);
                assert_eq!(project.status("v1_state"), "rolling_back");
            }
        }
        project.recover();
        match project.status("v1_state").as_str() {
            "completed" => assert!(project.documents() == applied, "killed after {delay:?}"),
            // It came too late.
            status => {
                assert_eq!(status, "rolled_back");
                project.put(SHOP, before.clone());
                project.firebank(["migrate"]).done();
                assert!(project.documents() == applied);
            }
        }
    }
}

#[test]
fn runners_that_start_together_apply_each_once() {
    let project = Project::with_items(50);
    for number in 1..=4 {
        project.script(
            &format!("v{number}_count"),
            "export function migrate(db) {
               const count = db.get('counts/all')?.data.count ?? 0;
               db.set('counts/all', { count: count + 1 });
               db.transform('items', (item) => ({ ...item, number: item.number + 1 }));
             }",
        );
    }
    let children: Vec<Child> = (0..3)
        .map(|_| project.start(&["migrate", "--json", "--wait", "2min"], "60s"))
        .collect();
    let mut applied = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        let stats: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        applied.extend(ids(&stats["applied"]));
    }
    applied.sort();
    assert_eq!(applied, ["v1_count", "v2_count", "v3_count", "v4_count"]);
    let documents = project.documents();
    let count = firebank::document::canonical::decode(&documents["counts/all"]).unwrap();
    assert_eq!(count["count"], firebank::document::Value::Integer(4));
}

#[cfg(unix)]
#[test]
fn an_interrupted_migration_is_undone_at_once() {
    let project = Project::with_items(2000);
    let before = project.documents();
    project.script(
        "v1_slow",
        "export function migrate(db) { db.addField('items', 'a', 1); for (;;) db.count('items'); }",
    );
    let child = project.start(&["migrate"], "60s");
    let start = Instant::now();
    while project.documents() == before {
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    let interrupted = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupted.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("v1_slow failed") && stderr.contains("undone"),
        "{stderr}"
    );
    assert!(project.documents() == before);
    assert_eq!(project.status("v1_slow"), "failed");
}

#[test]
fn clean_keeps_what_a_killed_migration_needs() {
    let project = Project::with_items(ITEMS);
    let known = known(&project);
    project.kill_at_work(&["migrate"], &known.before);
    // As if it had been silent for longer than any session may be.
    let sweep_all = || {
        let options = SweepOptions {
            expiry: Duration::ZERO,
            ..SweepOptions::default()
        };
        project.runtime.block_on(async {
            let store = Store::local(project.repository()).unwrap();
            let repository = Repository::open(store).await.unwrap();
            sweep(&repository, &options).await.unwrap();
        });
    };
    sweep_all();
    project.recover();
    assert!(project.documents() == known.before);
    // Then it may go.
    sweep_all();
    let left: Vec<String> = project
        .files()
        .into_iter()
        .filter(|name| name.contains("/journal/"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn another_repository_is_not_taken_for_the_right_one() {
    let project = Project::with_items(ITEMS);
    let known = known(&project);
    project.kill_at_work(&["migrate"], &known.before);
    project.run(["-r", "other", "init"]).done();
    let refused = project.firebank(["-r", "other", "migrate", "--wait", "1min"]);
    refused.fails(1, &["v1_long", "--repository"]);
    project.recover();
    assert!(project.documents() == known.before);
}
