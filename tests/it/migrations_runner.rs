//! Migrations from outside: each once, in order, undone when they fail, taken back when asked for.

use firebank::document::{Value, canonical};

use crate::cli_support::*;
use crate::migrations_support::*;

#[test]
fn each_is_applied_once_in_the_order_of_numbers() {
    let project = Project::with_items(20);
    let step = |n: u32| {
        format!(
            r#"export function migrate(db) {{
              const log = db.get("log/all")?.data.steps ?? [];
              db.set("log/all", {{ steps: [...log, {n}] }});
            }}"#
        )
    };
    for n in [10, 9, 2, 1] {
        project.script(&format!("v{n}_step"), &step(n));
    }
    assert_eq!(project.applied(), ["v1_step", "v2_step", "v9_step", "v10_step"]);
    assert_eq!(project.applied(), Vec::<String>::new());
    let log = canonical::decode(&project.documents()["log/all"]).unwrap();
    assert_eq!(
        log["steps"],
        Value::Array([1, 2, 9, 10].map(Value::Integer).to_vec())
    );
    project.script("v11_step", &step(11));
    project.script("v12_step", &step(12));
    let to = project.firebank(["migrate", "--to", "11", "--json"]).json();
    assert_eq!(ids(&to["applied"]), ["v11_step"]);
    assert_eq!(to["version"], 11);
    let record = project.record("v11_step");
    assert_eq!(record["migration_id"], Value::String("v11_step".to_owned()));
    assert_eq!(record["version"], Value::String("11.0".to_owned()));
    assert_eq!(record["status"], Value::String("completed".to_owned()));
    assert_eq!(record["documents_written"], Value::Integer(1));
    for name in [
        "executed_at",
        "checksum",
        "tool_version",
        "snapshot_id",
        "repository_id",
    ] {
        assert!(matches!(record[name], Value::String(_)), "{name}: {record:?}");
    }
    assert!(matches!(record["duration_ms"], Value::Integer(_)));
    assert_eq!(record["created_collections"], Value::Array(Vec::new()));
    assert_eq!(record["failed_collections"], Value::Array(Vec::new()));
}

#[test]
fn a_failure_in_the_middle_leaves_the_database_as_it_was() {
    let project = Project::with_items(2500);
    let before = project.documents();
    project.script("v1_fails", FAILS_LATE);
    let failed = project.firebank(["migrate"]);
    assert_eq!(failed.code, 1, "{failed}");
    for part in [
        "v1_fails failed",
        "on purpose, at the end",
        "v1_fails.js:",
        "undone",
    ] {
        assert!(failed.stderr.contains(part), "{part}: {failed}");
    }
    assert!(project.documents() == before, "the database is not as it was");
    assert_eq!(project.status("v1_fails"), "failed");
    // Nothing is kept of it, and it can be mended and run.
    project.script("v1_fails", ADD_STATE);
    assert_eq!(project.applied(), ["v1_fails"]);
    assert_eq!(project.status("v1_fails"), "completed");
    project.run(["clean", "--yes"]).done();
    project.run(["verify", "--read-data"]).done();
}

/// What each of the bad scripts does before it goes wrong: all of it is written by then.
const BEGIN: &str = "export function migrate(db) {
  db.addField('items', 'state', 'new'); db.create('extra/e1', { n: 1 }); db.delete('items/i00001');
  if (db.count('extra') !== 1) throw new Error('nothing was written');
";

#[test]
fn bad_scripts_leave_nothing_behind() {
    let project = Project::with_items(1200);
    let before = project.documents();
    // The script after `BEGIN`, and what is said about it; the first bad line is the fourth.
    let at_work = [
        // The engine knows the function, and not always how far it was.
        ("  for (;;) {}\n}", &["v1_bad.js:", "at migrate", "computed"][..]),
        (
            "  const all = [];\n  for (;;) all.push(new Array(1000).fill('x'));\n}",
            &["v1_bad.js:5", "at migrate", "memory"],
        ),
        (
            "  const deep = (item) => { throw new RangeError(`bad ${item.number}`); };\n  \
             db.transform('items', (item) => deep(item));\n}",
            &[
                "v1_bad.js:4",
                "RangeError: bad 0",
                "at deep",
                "v1_bad.js:5",
                "at migrate",
            ],
        ),
        (
            "  return new Promise(() => {});\n}",
            &["v1_bad.js:4", "at migrate", "promise"],
        ),
        (
            "  (async () => {\n    await new Promise(() => {});\n  })();\n}",
            &["v1_bad.js:5", "at migrate", "promises"],
        ),
        (
            "  Promise.reject(new Error('nobody looks'));\n}",
            &["v1_bad.js:4", "nobody looks", "at migrate"],
        ),
        (
            "  db.set('extra/e2', { f: () => 1 });\n}",
            &["v1_bad.js:4", "at migrate", "(at f)"],
        ),
        (
            "  db.set('extra/e2', { n: 2n ** 64n });\n}",
            &["v1_bad.js:4", "at migrate", "(at n)"],
        ),
        (
            "  db.set('extra/e2', { text: 'x'.repeat(1100000) });\n  db.count('extra');\n}",
            &["v1_bad.js:4", "at migrate", "extra/e2"],
        ),
        (
            "  db.set('extra/__bad__', { n: 1 });\n  db.count('extra');\n}",
            &["v1_bad.js:4", "at migrate", "extra/__bad__"],
        ),
    ];
    for (rest, says) in at_work {
        project.script("v1_bad", &format!("{BEGIN}{rest}"));
        let limits = ["--script-time", "1s", "--script-memory", "16", "--wait", "0"];
        let failed = project.firebank(["migrate"].iter().chain(&limits));
        failed.fails(1, says);
        failed.fails(1, &["v1_bad failed", "undone"]);
        assert!(project.documents() == before, "{rest}: {failed}");
        assert_eq!(project.status("v1_bad"), "failed", "{rest}");
        let Value::String(error) = &project.record("v1_bad")["error"] else {
            panic!("{rest}");
        };
        for part in says {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_no_lock(&project);
    }
    // What is not run is not recorded.
    for (script, says) in [
        (
            "export function migrate(db) {\n  const x = ;\n}",
            &["v1_bad.js:2", "v1_bad cannot be run"][..],
        ),
        (
            "export const description = 'x';",
            &["v1_bad.js", "does not export a function `migrate`"],
        ),
        (
            "await new Promise(() => {});\nexport function migrate() {}",
            &["v1_bad.js:1", "promise"],
        ),
        (
            "export function migrate() {}\nfor (;;) {}",
            &["v1_bad.js:", "computed"],
        ),
        (
            "export function migrate() {}\nfunction f() { null.x; }\nf();",
            &["v1_bad.js:2", "TypeError", "v1_bad.js:3"],
        ),
    ] {
        project.script("v1_bad", script);
        let failed = project.firebank(["migrate", "--script-time", "1s"]);
        failed.fails(1, says);
        assert!(project.documents() == before, "{script}: {failed}");
        assert_no_lock(&project);
    }
    project.run(["clean", "--yes"]).done();
    project.run(["verify", "--read-data"]).done();
    let journals = project
        .files()
        .into_iter()
        .filter(|name| name.contains("/journal/"));
    assert_eq!(journals.collect::<Vec<_>>(), Vec::<String>::new());
    project.script("v1_bad", ADD_STATE);
    assert_eq!(project.applied(), ["v1_bad"]);
}

fn assert_no_lock(project: &Project) {
    let contents = project.contents(SHOP);
    assert!(!contents.keys().any(|path| path.starts_with("_migrations_lock")));
}

#[test]
fn validation_fails_a_migration() {
    for validate in [
        "return false;",
        "throw new Error('not good');",
        "db.assert(db.count('items') === 0, 'items are left');",
    ] {
        let project = Project::with_items(30);
        let before = project.documents();
        project.script(
            "v1_checked",
            &format!("{ADD_STATE}\nexport function validate(db) {{ {validate} }}"),
        );
        let failed = project.firebank(["migrate"]);
        assert_eq!(failed.code, 1, "{failed}");
        assert!(failed.stderr.contains("undone"), "{failed}");
        assert!(project.documents() == before);
        assert_eq!(project.status("v1_checked"), "failed");
    }
}

#[test]
fn those_before_a_failed_one_stay() {
    let project = Project::with_items(10);
    project.script("v1_good", ADD_STATE);
    project.script("v2_bad", FAILS_LATE);
    project.script(
        "v3_later",
        "export function migrate(db) { db.create('c/d', {}); }",
    );
    project.firebank(["migrate"]).fails(1, &["v2_bad failed"]);
    assert_eq!(project.status("v1_good"), "completed");
    assert_eq!(project.status("v2_bad"), "failed");
    let documents = project.documents();
    assert!(!documents.contains_key("c/d"));
    assert!(
        canonical::decode(&documents["items/i00001"])
            .unwrap()
            .contains_key("state")
    );
}

#[test]
fn rollback_without_a_script_restores_equal_bytes() {
    let project = Project::with_items(1500);
    let before = project.documents();
    project.script(
        "v1_much",
        r#"
        export function migrate(db) {
          db.transform("items", (item) => ({ ...item, name: "x", half: item.half * 2 }));
          db.addField("items", "state", { deep: [1, 2.5, null] });
          for (let i = 0; i < 500; i += 1) db.delete(`items/i${String(i).padStart(5, "0")}`);
          for (let i = 0; i < 300; i += 1) db.create(`extra/e${i}`, { i });
          db.create("items/i00007", { again: true });
        }"#,
    );
    let applied = project.migrate();
    let after = project.documents();
    assert_eq!(after.len(), 1500 - 500 + 300 + 1);
    let snapshot = applied["applied"][0]["snapshot"].as_str().unwrap().to_owned();
    assert_eq!(
        project.record("v1_much")["snapshot_id"],
        Value::String(snapshot.clone())
    );

    // What there was can be looked at, is verified, is no backup, and outlives `clean`.
    project.run(["show", &snapshot, "items/i00001"]).done();
    project.run(["verify", "--read-data"]).done();
    project.run(["show", "latest"]).fails(1, &["latest"]);
    project.run(["clean", "--keep-last", "1", "--yes"]);
    project.run(["clean", "--sweep-only"]).done();
    project.run(["verify", "--read-data"]).done();

    let planned = project.firebank(["rollback", "--dry-run", "--json"]).json();
    assert_eq!(planned["rolled_back"][0]["restored"], 1500);
    assert_eq!(planned["rolled_back"][0]["deleted"], 300);
    assert!(project.documents() == after);
    let rolled_back = project.firebank(["rollback", "--json"]).json();
    assert_eq!(ids(&rolled_back["rolled_back"]), ["v1_much"]);
    assert!(project.documents() == before, "not as it was");
    assert_eq!(project.status("v1_much"), "rolled_back");
    assert!(matches!(
        project.record("v1_much")["rolled_back_at"],
        Value::String(_)
    ));
    // And there again.
    assert_eq!(project.applied(), ["v1_much"]);
    assert!(project.documents() == after);
}

#[test]
fn what_somebody_changed_since_is_not_overwritten() {
    let project = Project::with_items(40);
    let before = project.documents();
    project.script("v1_state", ADD_STATE);
    project.migrate();
    let theirs = canonical::encode(&fields(777));
    project.put(SHOP, vec![(item(3), theirs.clone()), (item(5), theirs.clone())]);
    let after = project.documents();
    project.firebank(["rollback"]).fails(
        1,
        &["v1_state", "items/i00003", "items/i00005", "2 of", "--force"],
    );
    assert!(project.documents() == after, "nothing may be changed");
    assert_eq!(project.status("v1_state"), "completed");
    let planned = project.firebank(["rollback", "--dry-run", "--json"]).json();
    assert_eq!(planned["rolled_back"][0]["changed_since"], 2);
    assert_eq!(planned["rolled_back"][0]["restored"], 38);

    let forced = project.firebank(["rollback", "--force", "--json"]).json();
    assert!(project.documents() == before);
    // What they had written is kept.
    let kept = forced["rolled_back"][0]["snapshot"].as_str().unwrap();
    let shown = project.run(["show", kept, "items/i00003"]).done();
    assert!(shown.contains("777"), "{shown}");
    project.run(["verify", "--read-data"]).done();
}

#[test]
fn a_change_to_the_same_is_no_change() {
    let project = Project::with_items(10);
    let before = project.documents();
    project.script("v1_state", ADD_STATE);
    project.migrate();
    // Written again as it was before, and as the migration made it.
    let made = project.documents()["items/i00002"].clone();
    project.put(
        SHOP,
        vec![(item(1), before["items/i00001"].clone()), (item(2), made)],
    );
    project.firebank(["rollback"]).done();
    assert!(project.documents() == before);
}

#[test]
fn a_script_may_know_its_own_way_back() {
    let project = Project::with_items(20);
    let before = project.documents();
    let script = format!(
        "{ADD_STATE}\nexport function rollback(db) {{ db.removeField('items', 'state'); db.create('trace/t', {{}}); }}"
    );
    project.script("v1_state", &script);
    project.migrate();
    let applied = project.contents(SHOP);
    let planned = project.firebank(["rollback", "--dry-run", "--json"]).json();
    let planned = &planned["rolled_back"][0];
    assert_eq!(
        (&planned["by_script"], &planned["restored"]),
        (&true.into(), &21.into())
    );
    assert!(project.contents(SHOP) == applied);
    let rolled_back = project.firebank(["rollback", "--json"]).json();
    assert_eq!(rolled_back["rolled_back"][0]["by_script"], true);
    let mut after = project.documents();
    assert!(after.remove("trace/t").is_some());
    assert!(after == before);
    assert_eq!(project.status("v1_state"), "rolled_back");
}

#[test]
fn a_rollback_that_fails_leaves_the_migration_applied() {
    let project = Project::with_items(600);
    let script = format!(
        "{ADD_STATE}\nexport function rollback(db) {{ db.deleteCollection('items'); db.count('items'); throw new Error('no way'); }}"
    );
    project.script("v1_state", &script);
    project.migrate();
    let after = project.documents();
    project
        .firebank(["rollback"])
        .fails(1, &["v1_state", "no way", "undone"]);
    assert!(project.documents() == after);
    assert_eq!(project.status("v1_state"), "completed");
}

#[test]
fn several_are_taken_back_newest_first() {
    let project = Project::with_items(10);
    let before = project.documents();
    project.script("v1_a", ADD_STATE);
    project.script(
        "v2_b",
        "export function migrate(db) { db.transform('items', (i) => ({ ...i, state: i.state + '!' })); }",
    );
    project.script(
        "v3_c",
        "export function migrate(db) { db.deleteCollection('items'); }",
    );
    project.migrate();
    let back = project.firebank(["rollback", "--to", "1", "--json"]).json();
    assert_eq!(ids(&back["rolled_back"]), ["v3_c", "v2_b"]);
    assert_eq!(back["version"], 1);
    assert_eq!(project.applied(), ["v2_b", "v3_c"]);
    let back = project.firebank(["rollback", "--steps", "3", "--json"]).json();
    assert_eq!(ids(&back["rolled_back"]), ["v3_c", "v2_b", "v1_a"]);
    assert!(project.documents() == before);
    assert!(
        project
            .firebank(["rollback"])
            .done()
            .contains("nothing to roll back")
    );
}

#[test]
fn what_failed_may_be_kept_and_taken_back_later() {
    let project = Project::with_items(100);
    let before = project.documents();
    project.script("v1_fails", FAILS_LATE);
    project
        .firebank(["migrate", "--keep-partial"])
        .fails(1, &["v1_fails", "left, as asked for", "firebank rollback"]);
    assert!(project.documents() != before);
    project
        .firebank(["migrate"])
        .fails(1, &["v1_fails failed, and what it wrote was left"]);
    let status = project.firebank(["migration-status"]);
    assert_eq!(status.code, 3, "{status}");
    project.firebank(["rollback"]).done();
    assert!(project.documents() == before);
    assert_eq!(project.status("v1_fails"), "failed");
    project.script("v1_fails", ADD_STATE);
    assert_eq!(project.applied(), ["v1_fails"]);
}

#[test]
fn a_dry_run_writes_nothing_at_all() {
    let project = Project::with_items(30);
    project.script("v1_state", ADD_STATE);
    let before = project.contents(SHOP);
    let files = project.files();
    let shown = project.firebank(["migrate", "--dry-run"]).done();
    assert!(shown.contains("30 updated") && shown.contains("state"), "{shown}");
    let json = project.firebank(["migrate", "-n", "--json"]).json();
    assert_eq!(json["migrations"][0]["updated"], 30);
    let first = &json["migrations"][0]["first_changes"][0];
    assert_eq!(first["change"], "updated");
    assert_eq!(first["fields"][0]["after"], "new");
    assert!(project.contents(SHOP) == before);
    assert_eq!(project.files(), files);
}

#[test]
fn one_script_can_be_run_by_itself() {
    let project = Project::with_items(5);
    project.script("v1_a", "export function migrate(db) { db.create('a/a', {}); }");
    project.script("v2_b", ADD_STATE);
    let ran = project
        .firebank(["run-migration", "migrations/v2_b.js", "--json"])
        .json();
    assert_eq!(ids(&ran["applied"]), ["v2_b"]);
    project
        .firebank(["run-migration", "migrations/v2_b.js"])
        .fails(1, &["v2_b is applied already"]);
    project
        .firebank(["migrate"])
        .fails(1, &["v1_a was never applied", "--out-of-order"]);
    let ran = project.firebank(["migrate", "--out-of-order", "--json"]).json();
    assert_eq!(ids(&ran["applied"]), ["v1_a"]);
    assert_eq!(ran["version"], 2);
}

#[test]
fn settings_reach_the_script() {
    let project = Project::with_items(1);
    project.script(
        "v1_a",
        "export function migrate(db) { db.create('a/a', { region: db.settings.region }); }",
    );
    project.firebank(["migrate", "--set", "region=eu=1"]).done();
    let made = canonical::decode(&project.documents()["a/a"]).unwrap();
    assert_eq!(made["region"], Value::String("eu=1".to_owned()));
    project
        .firebank(["migrate", "--set", "region"])
        .fails(2, &["KEY=VALUE"]);
}

#[test]
fn the_history_is_not_for_scripts() {
    let project = Project::with_items(5);
    let before = project.documents();
    for path in ["_migrations/v1_a", "_migrations_lock/lock", "_migrations/x/y/z"] {
        project.script(
            "v1_a",
            &format!("export function migrate(db) {{ db.create('a/a', {{}}); db.set('{path}', {{}}); }}"),
        );
        project
            .firebank(["migrate"])
            .fails(1, &["no script may write there"]);
        assert!(project.documents() == before);
    }
}

#[test]
fn without_a_repository_nothing_is_run() {
    let project = Project::with_items(3);
    std::fs::remove_dir_all(project.repository()).unwrap();
    project.script("v1_a", ADD_STATE);
    let before = project.contents(SHOP);
    project.firebank(["migrate"]).fails(1, &["firebank init"]);
    project.firebank(["migrate", "--dry-run"]).done();
    project.firebank(["migration-status"]).done();
    assert!(project.contents(SHOP) == before);
}

#[test]
fn the_template_runs_as_it_is() {
    let shop = Shop::empty();
    shop.run(["init"]).done();
    let made = shop
        .firebank([
            "create-migration",
            "add user analytics",
            "Adds \"analytics\"",
            "--json",
        ])
        .json();
    assert_eq!(made["id"], "v1_add_user_analytics");
    let next = shop.firebank(["create", "next one", "--json"]).json();
    assert_eq!(next["id"], "v2_next_one");
    shop.firebank(["migrate"]).done();
    let listed = shop.firebank(["list-migrations", "--json"]).json();
    assert_eq!(listed["migrations"][0]["description"], "Adds \"analytics\"");
    assert_eq!(listed["migrations"][0]["state"], "applied");
    shop.firebank(["rollback", "--to", "0"]).done();
}

/// Runs a command to its end. Says how it ended and the most memory that it had, in bytes.
#[cfg(target_os = "linux")]
fn run_measured(project: &Project, arguments: &[&str]) -> (Option<i32>, u64) {
    let mut child = project
        .std_command()
        .args(["--emulator", &project.address(), "--project", SHOP])
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let ended = child.try_wait().unwrap();
        let status = std::fs::read_to_string(&file).unwrap_or_default();
        // One that has just ended has no memory any more.
        if let Some(line) = status.lines().find(|line| line.starts_with("VmHWM")) {
            let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            peak = peak.max(kib << 10);
        }
        if let Some(ended) = ended {
            return (ended.code(), peak);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A migration, one that fails at its end and is undone, and a rollback, all over so many documents.
#[cfg(target_os = "linux")]
fn there_and_back_in_memory(items: i64, most: u64) {
    let project = Project::with_items(items);
    let before = project.documents();
    let transform =
        "db.transform('items', (item) => ({ ...item, name: item.name + '!', half: item.half * 2 }));";
    project.script(
        "v1_all",
        &format!("export function migrate(db) {{ {transform} }}"),
    );
    let (code, migrated) = run_measured(&project, &["migrate"]);
    assert_eq!(code, Some(0));
    let after = project.documents();
    assert!(after != before);
    project.script(
        "v2_fails",
        &format!("export function migrate(db) {{ {transform} throw new Error('on purpose'); }}"),
    );
    let (code, undone) = run_measured(&project, &["migrate"]);
    assert_eq!(code, Some(1));
    assert!(project.documents() == after);
    let (code, rolled_back) = run_measured(&project, &["rollback"]);
    assert_eq!(code, Some(0));
    assert!(project.documents() == before);
    for (what, peak) in [("run", migrated), ("undo", undone), ("rollback", rolled_back)] {
        assert!(peak > 1 << 20 && peak < most, "{what}: {} MiB", peak >> 20);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn some_thousand_documents_there_and_back_in_bounded_memory() {
    there_and_back_in_memory(4_000, 256 << 20);
}

/// By itself: `cargo test --test it -- --ignored a_hundred_thousand_documents_there_and_back`.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes minutes"]
fn a_hundred_thousand_documents_there_and_back_in_bounded_memory() {
    there_and_back_in_memory(100_000, 256 << 20);
}
