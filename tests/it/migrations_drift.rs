//! What does not fit between a folder of scripts and a database's history.

use firebank::document::{DocumentPath, Fields, Value, canonical};

use crate::cli_support::*;
use crate::migrations_support::*;

fn create(name: &str) -> String {
    format!("export function migrate(db) {{ db.create('made/{name}', {{}}); }}\n")
}

#[test]
fn drift_stops_migrate_until_it_is_accepted() {
    let project = Project::with_items(1);
    project.script("v1_a", &create("a"));
    project.script("v2_b", &create("b"));
    project.migrate();
    // Another system's ends of lines are no change.
    project.script("v1_a", &create("a").replace('\n', "\r\n"));
    assert_eq!(project.applied(), Vec::<String>::new());

    project.script("v1_a", &create("changed"));
    std::fs::remove_file(project.file("migrations/v2_b.js")).unwrap();
    project.script("v3_c", &create("c"));
    project.firebank(["migrate"]).fails(
        1,
        &[
            "v1_a was changed",
            "v2_b is applied, and its file is not",
            "--repair",
        ],
    );
    assert!(!project.documents().contains_key("made/c"));
    let status = project.firebank(["migration-status", "--json"]);
    assert_eq!(status.code, 3, "{status}");
    let status = status.json();
    assert_eq!(status["drift"], true);
    assert_eq!(status["divergences"].as_array().unwrap().len(), 2);
    assert!(project.firebank(["status"]).done().contains("DRIFT"));

    let repaired = project.firebank(["migrate", "--repair", "--json"]).json();
    assert_eq!(repaired["repaired"], serde_json::json!(["v1_a", "v2_b"]));
    assert_eq!(project.applied(), ["v3_c"]);
    project.firebank(["migration-status"]).done();
    // v2 has no file any more, and its before-images are there.
    project.firebank(["rollback", "--to", "1"]).done();
    let made: Vec<String> = project
        .documents()
        .into_keys()
        .filter(|path| path.starts_with("made"))
        .collect();
    assert_eq!(made, ["made/a"]);
}

#[test]
fn a_renamed_script_and_a_double_number_are_told() {
    let project = Project::with_items(1);
    project.script("v1_a", &create("a"));
    project.migrate();
    std::fs::rename(
        project.file("migrations/v1_a.js"),
        project.file("migrations/v1_other.js"),
    )
    .unwrap();
    project.firebank(["migrate"]).fails(
        1,
        &["v1_a is applied, and the folder has v1_other under the same number"],
    );
    project.script("v1_a", &create("a"));
    project.firebank(["migrate"]).fails(1, &["the same number", "v2"]);
}

#[test]
fn a_changed_script_does_not_roll_back_what_another_one_did() {
    let project = Project::with_items(1);
    project.script("v1_a", &create("a"));
    project.migrate();
    project.script(
        "v1_a",
        &format!("{}export function rollback(db) {{}}", create("a")),
    );
    project
        .firebank(["rollback"])
        .fails(1, &["v1_a was changed", "--repair"]);
    project.firebank(["migrate", "--repair"]).done();
    project.firebank(["rollback"]).done();
    assert!(
        project.documents().contains_key("made/a"),
        "its rollback() does nothing"
    );
}

#[test]
fn a_baseline_takes_scripts_for_applied() {
    let project = Project::with_items(1);
    for name in ["v1_a", "v2_b", "v3_c"] {
        project.script(name, &create(name));
    }
    project
        .firebank(["migrate", "--baseline", "7"])
        .fails(1, &["no script v7"]);
    let baseline = project.firebank(["migrate", "--baseline", "2", "--json"]).json();
    assert_eq!(baseline["baseline"], serde_json::json!(["v1_a", "v2_b"]));
    assert_eq!(project.status("v2_b"), "completed");
    assert_eq!(project.applied(), ["v3_c"]);
    assert!(!project.documents().contains_key("made/v1_a"));
    let listed = project.firebank(["list-migrations", "--json"]).json();
    assert_eq!(listed["migrations"][0]["state"], "baseline");
    project.firebank(["rollback"]).done();
    project.firebank(["rollback"]).fails(1, &["v2_b", "--baseline"]);
    project
        .firebank(["migrate", "--baseline", "2", "--repair"])
        .fails(2, &[]);
}

#[test]
fn what_the_original_tool_applied_is_applied() {
    let project = Project::with_items(1);
    let record = |id: &str, status: &str| {
        Fields::from(
            [
                ("migration_id", Value::String(id.to_owned())),
                ("version", Value::String("2.0".to_owned())),
                ("executed_at", Value::String("2025-06-29T12:00:00Z".to_owned())),
                ("status", Value::String(status.to_owned())),
                ("created_collections", Value::Array(Vec::new())),
                ("failed_collections", Value::Array(Vec::new())),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        )
    };
    let put = |document: &str, fields: Fields| {
        let path = DocumentPath::parse(format!("_migrations/{document}")).unwrap();
        project.put(SHOP, vec![(path, canonical::encode(&fields))]);
    };
    put("Kx8sQm", record("v1_initial_schema", "completed"));
    put("Qm8sKx", record("v2_add_user_preferences", "failed"));
    for name in ["v1_initial_schema", "v2_add_user_preferences", "v3_more"] {
        project.script(name, &create(name));
    }
    assert_eq!(project.applied(), ["v2_add_user_preferences", "v3_more"]);
    project.firebank(["migration-status"]).done();
    project.firebank(["rollback", "--steps", "2"]).done();
    project
        .firebank(["rollback"])
        .fails(1, &["v1_initial_schema", "another tool"]);
}

#[test]
fn the_lock_can_be_removed_by_hand() {
    let project = Project::with_items(1);
    assert!(
        project
            .firebank(["migrate", "--unlock"])
            .done()
            .contains("Nobody")
    );
    let database = project.connect(SHOP, "(default)");
    let options = firebank::migration::LockOptions::new("Ada on tower");
    let stop = firebank::stop::Stop::default();
    let lock = project
        .runtime
        .block_on(firebank::migration::Lock::acquire(
            &database,
            options,
            &stop,
            |_| {},
        ))
        .unwrap();
    project.script("v1_a", ADD_STATE);
    let held = project.firebank(["migrate", "--wait", "0"]);
    held.fails(1, &["Ada on tower", "--unlock"]);
    let status = project.firebank(["migration-status"]).done();
    assert!(status.contains("Ada on tower"), "{status}");
    assert!(
        project
            .firebank(["migrate", "--unlock"])
            .done()
            .contains("Ada on tower")
    );
    assert_eq!(project.applied(), ["v1_a"]);
    drop(lock);
}
