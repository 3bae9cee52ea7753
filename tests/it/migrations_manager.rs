//! The database manager's commands: what guards them, what they do, and their old names.

use firebank::document::{DocumentPath, Fields, Value, canonical};

use crate::cli_support::*;
use crate::migrations_support::*;

const PRODUCTION: &str = "retail-prod";

/// Without a server: a command that gets past the guard fails at credentials that do not exist.
fn on_production(desk: &Desk, environment: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let all = [
        arguments,
        &["--project", PRODUCTION, "--credentials", "none.json"],
    ]
    .concat();
    desk.run_with(environment, all)
}

fn desk() -> Desk {
    let desk = Desk::new();
    std::fs::create_dir(desk.file("migrations")).unwrap();
    desk.write("migrations/v1_a.js", ADD_STATE);
    desk.run(["init"]).done();
    desk
}

#[test]
fn production_is_confirmed_by_name() {
    let desk = desk();
    let guarded: &[&[&str]] = &[
        &["migrate"],
        &["migrate", "--keep-partial"],
        &["migrate", "--repair"],
        &["migrate", "--unlock"],
        &["migrate", "--baseline", "1"],
        &["rollback"],
        &["rollback", "--force"],
        &["run-migration", "migrations/v1_a.js"],
        &["init", "--schema", "-r", "new"],
    ];
    for command in guarded {
        on_production(&desk, &[], command).fails(2, &["--confirm-project retail-prod", "no terminal"]);
        let confirmed = [command, &["--confirm-project", PRODUCTION][..]].concat();
        on_production(&desk, &[], &confirmed).fails(1, &["none.json"]);
        let wrong = [command, &["--confirm-project", "retail-test"][..]].concat();
        on_production(&desk, &[], &wrong).fails(2, &["retail-test"]);
    }
    // These write nothing.
    for command in [
        &["migrate", "--dry-run"][..],
        &["rollback", "-n"],
        &["migration-status"],
        &["status"],
    ] {
        on_production(&desk, &[], command).fails(1, &["none.json"]);
    }
}

#[test]
fn reset_and_setup_are_for_development() {
    let desk = desk();
    let confirmed = ["--confirm", "--confirm-project", PRODUCTION];
    let reset = [&["reset-dev"][..], &confirmed].concat();
    // Not even with a confirmation.
    on_production(&desk, &[], &reset).fails(2, &["development", "TESTING"]);
    let testing = [("TESTING", "true")];
    on_production(&desk, &testing, &["reset-dev", "--confirm"]).fails(2, &["--confirm-project"]);
    on_production(&desk, &testing, &["reset-dev", "--confirm-project", PRODUCTION]).fails(2, &["--confirm "]);
    on_production(&desk, &testing, &reset).fails(1, &["none.json"]);
    on_production(&desk, &[], &["setup-test"]).fails(2, &["setup-test is for databases of tests"]);
    on_production(&desk, &[], &["setup-test", "--confirm-project", PRODUCTION]).fails(2, &["setup-test"]);
    let named = desk.run([
        "reset-dev",
        "--project",
        "test-project",
        "--credentials",
        "none.json",
    ]);
    named.fails(2, &["--confirm"]);
}

#[test]
fn reset_dev_backs_up_deletes_everything_and_migrates() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    std::fs::create_dir(shop.file("migrations")).unwrap();
    shop.write(
        "migrations/v1_first.js",
        "export function migrate(db) { db.create('fresh/one', { n: 1 }); }",
    );
    shop.firebank(["migrate"]).done();
    let before = shop.contents(SHOP);
    let reset = shop.firebank(["reset-dev", "--confirm", "--json"]).json();
    // The lock is the one document that it keeps to itself.
    assert_eq!(reset["deleted"], before.len());
    let after = shop.contents(SHOP);
    let names: Vec<&String> = after.keys().collect();
    assert_eq!(names, ["_migrations/v1_first", "fresh/one"]);
    // All of it comes back.
    let snapshot = reset["snapshot"].as_str().unwrap();
    shop.firebank(["restore", snapshot, "--to-project", "demo-back"])
        .done();
    let mut back = shop.contents("demo-back");
    back.retain(|path, _| !path.starts_with("_migrations_lock"));
    assert!(back == before);
}

#[test]
fn reset_dev_without_a_backup_deletes_nothing() {
    let shop = Shop::open();
    std::fs::create_dir(shop.file("migrations")).unwrap();
    let before = shop.contents(SHOP);
    shop.firebank(["reset-dev", "--confirm"])
        .fails(1, &["firebank init"]);
    assert!(shop.contents(SHOP) == before);
}

#[test]
fn setup_test_makes_what_tests_need() {
    let shop = Shop::empty();
    std::fs::create_dir(shop.file("migrations")).unwrap();
    shop.write(
        "migrations/v1_first.js",
        "export function migrate(db) { db.create('fresh/one', { n: 1 }); }",
    );
    let emulator = shop.address();
    let made = shop.run(["setup-test", "--emulator", &emulator]);
    assert!(made.done().contains("v1_first"));
    assert!(shop.contents("test-project").contains_key("fresh/one"));
    shop.run(["setup-test", "--emulator", &emulator]).done();
    shop.run(["status", "--emulator", &emulator, "--project", "test-project"])
        .done();
}

#[test]
fn init_takes_what_is_for_scripts_only_with_one() {
    let shop = Shop::empty();
    for alone in [
        ["--set", "a=b"],
        ["--wait", "1s"],
        ["--rate", "5"],
        ["--script-memory", "64"],
    ] {
        shop.run(["init"].iter().chain(&alone)).fails(2, &["--schema"]);
    }
    assert_eq!(shop.files(), Vec::<String>::new());
    let mut named = shop.std_command();
    named.args(["init"]).env("FIREBANK_MIGRATIONS", "elsewhere");
    finish(named).done();
}

#[test]
fn listings_say_what_pending_scripts_are_for() {
    let shop = Shop::empty();
    shop.run(["init"]).done();
    std::fs::create_dir(shop.file("migrations")).unwrap();
    shop.write(
        "migrations/v1_first.js",
        "export const description = 'Makes one';\nexport function migrate(db) { db.create('fresh/one', {}); }",
    );
    shop.firebank(["migrate"]).done();
    shop.write(
        "migrations/v2_second.js",
        "export const description = `Makes ${1 + 1}`;\nexport function migrate(db) {}",
    );
    shop.write("migrations/v3_broken.js", "export const description = ;");
    shop.write(
        "migrations/v4_endless.js",
        "for (;;) {}\nexport function migrate(db) {}",
    );
    for command in ["list-migrations", "migration-status"] {
        let listed = shop.firebank([command, "--json"]).json();
        let descriptions: Vec<_> = listed["migrations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["description"].as_str())
            .collect();
        assert_eq!(descriptions, [Some("Makes one"), Some("Makes 2"), None, None]);
    }
    assert!(shop.firebank(["list-migrations"]).done().contains("Makes 2"));
}

#[test]
fn init_can_make_the_schema() {
    let shop = Shop::empty();
    std::fs::create_dir(shop.file("migrations")).unwrap();
    shop.firebank(["init", "--schema"])
        .fails(1, &["create-migration"]);
    shop.write(
        "migrations/v1_first.js",
        "export function migrate(db) { db.create('fresh/one', { n: 1 }); }",
    );
    shop.write(
        "migrations/v2_second.js",
        "export function migrate(db) { db.create('fresh/two', { n: 2 }); }",
    );
    let made = shop.firebank(["init", "--schema", "--json"]).json();
    assert_eq!(ids(&made["applied"]), ["v1_first"]);
    shop.firebank(["init"]).fails(1, &["already"]);
    assert!(shop.firebank(["init", "--schema"]).done().contains("already"));
    assert!(!shop.contents(SHOP).contains_key("fresh/two"));
}

#[test]
fn the_status_shows_everything_at_a_glance() {
    let project = Project::with_items(3);
    project.script("v1_a", ADD_STATE);
    project.script("v2_b", "export function migrate(db) {}");
    project.firebank(["migrate", "--to", "1"]).done();
    project.back_up();
    project.run(["verify", "--read-data"]).done();
    let status = project.firebank(["status", "--json"]).json();
    assert_eq!(status["project"], SHOP);
    assert_eq!(status["environment"], "emulator");
    assert_eq!(status["protected"], false);
    assert_eq!(status["migrations"]["version"], 1);
    assert_eq!(status["migrations"]["pending"], serde_json::json!(["v2_b"]));
    assert_eq!(status["migrations"]["drift"], false);
    assert_eq!(status["last_backups"].as_array().unwrap().len(), 1);
    let age = status["last_backups"][0]["age_seconds"].as_i64().unwrap();
    assert!((0..600).contains(&age), "{status}");
    assert_eq!(status["last_backups"][0]["documents"], 4);
    let counts: Vec<_> = status["collections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["id"].as_str().unwrap(), one["documents"].as_u64().unwrap()))
        .collect();
    assert_eq!(counts, [("_migrations", 1), ("items", 3)]);
    assert_eq!(status["last_verification"]["damage_count"], 0);
    assert_eq!(status["last_verification"]["data_read"], 1.0);
    let shown = project.firebank(["status"]).done();
    for part in [SHOP, "v1 (1 pending: v2_b)", "items", "intact", "every byte"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn the_old_names_work() {
    let project = Project::with_items(3);
    project.script("v1_a", ADD_STATE);
    // migration_manager.py
    project.firebank(["list"]).done();
    assert!(!project.firebank(["applied"]).done().contains("v1_a"));
    project.firebank(["run", "migrations/v1_a.js"]).done();
    assert!(project.firebank(["applied"]).done().contains("v1_a"));
    project
        .firebank(["create", "add user analytics", "More of it"])
        .done();
    assert!(project.file("migrations/v2_add_user_analytics.js").is_file());
    assert_eq!(
        std::fs::read_to_string(project.file("migrations/firebank.d.ts")).unwrap(),
        include_str!("../../migrations/firebank.d.ts")
    );
    project.firebank(["migrate"]).done();
    project.firebank(["status"]).done();
    // backup.py
    project
        .firebank(["backup_collection", "items", "--format", "json"])
        .done();
    project.firebank(["backup_all_collections"]).done();
    project.firebank(["list_backups"]).done();
    let file = project
        .files()
        .into_iter()
        .find(|name| name.contains("backup_items_"))
        .unwrap();
    project.firebank(["restore_collection", &file]).done();
    // The log that the original tools always wrote.
    project
        .firebank(["migrate", "--log-file", "database_operations.log"])
        .done();
    let made = project.firebank([
        "create-migration",
        "third",
        "--log-file",
        "database_operations.log",
    ]);
    made.done();
    project
        .firebank(["migrate", "--log-file", "database_operations.log"])
        .done();
    let log = std::fs::read_to_string(project.file("database_operations.log")).unwrap();
    assert!(log.contains("v3_third"), "{log}");
    // Neither the history nor the lock is part of a JSON backup of everything.
    project
        .firebank(["backup", "--format", "json", "-o", "out"])
        .done();
    let files = project.files();
    assert!(
        !files
            .iter()
            .any(|name| name.starts_with("out/") && name.contains("_migrations")),
        "{files:?}"
    );
}

#[test]
fn the_projects_own_migrations_run_and_come_back() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    let before = shop.contents(SHOP);
    let users = before
        .keys()
        .filter(|path| path.starts_with("users/") && path.split('/').count() == 2)
        .count();
    shop.firebank(["migrate", "--migrations", folder]).done();
    let after = shop.contents(SHOP);
    let preferences = after
        .keys()
        .filter(|path| path.starts_with("user_preferences/"))
        .count();
    assert_eq!(preferences, users + 1);
    let product = canonical::decode(&after["products/p000001"]).unwrap();
    assert!(product.contains_key("search_name") && product.contains_key("low_stock"));
    let record = canonical::decode(&after["_migrations/v2_user_preferences"]).unwrap();
    assert_eq!(
        record["created_collections"],
        Value::Array(vec![Value::String("user_preferences".to_owned())])
    );
    shop.firebank(["rollback", "--to", "0", "--migrations", folder])
        .done();
    let mut back = shop.contents(SHOP);
    back.retain(|path, _| !path.starts_with("_migrations"));
    assert!(back == before);
}

/// As they are printed, each in a file of its own.
#[test]
fn the_scripts_of_the_readme_run() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    std::fs::create_dir(shop.file("migrations")).unwrap();
    let whole = |script: &str| match script.contains("function migrate") {
        true => script.to_owned(),
        false => format!("{script}export function migrate(db) {{}}\n"),
    };
    let scripts: Vec<&str> = include_str!("../../README.md")
        .split("```js\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert_eq!(scripts.len(), 3);
    for (at, script) in scripts.iter().enumerate() {
        shop.write(&format!("migrations/v{}_of_the_readme.js", at + 1), whole(script));
    }
    let bare = DocumentPath::parse("products/without-a-currency").unwrap();
    shop.put(SHOP, vec![(bare, canonical::encode(&Fields::new()))]);
    let applied = shop.firebank(["migrate", "--json"]).json();
    assert_eq!(ids(&applied["applied"]).len(), 3, "{applied}");
    let after = shop.contents(SHOP);
    let bare = canonical::decode(&after["products/without-a-currency"]).unwrap();
    assert_eq!(bare["currency"], Value::String("EUR".to_owned()));
    let schema = canonical::decode(&after["user_preferences/_schema"]).unwrap();
    assert!(schema.contains_key("indexes"), "{schema:?}");
    let empty = Shop::empty();
    empty.run(["init"]).done();
    std::fs::create_dir(empty.file("migrations")).unwrap();
    empty.write("migrations/v1_of_the_readme.js", whole(scripts[2]));
    empty
        .firebank(["migrate"])
        .fails(1, &["v1_of_the_readme.js:2", "products"]);
}
