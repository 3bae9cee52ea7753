//! Plans, warnings and guards of a restore, and imports in the same modes, as a user of the binary meets them.

use firebank::archive::SessionOptions;
use firebank::document::{canonical, typed_json};
use firebank::store::Store;
use serde_json::json;

use crate::archive_support::{self, Doc};
use crate::cli_support::{SHOP, Shop, keys, plan_keys};
use crate::restore_modes::{Documents, contents, documents_of, put};
use crate::support::operations::{repository_in, small_segments};

const PRODUCTION: &str = "retail-prod";

fn fill(shop: &Shop, project: &str, documents: &Documents) {
    let database = shop.connect(project, "(default)");
    shop.runtime.block_on(put(&database, documents));
}

fn of(shop: &Shop, project: &str) -> Documents {
    let database = shop.connect(project, "(default)");
    shop.runtime.block_on(contents(&database))
}

/// A shop with a few documents, and a snapshot of it.
fn small_shop() -> (Shop, String) {
    let shop = Shop::empty();
    fill(
        &shop,
        SHOP,
        &documents_of(json!({
            "products/p1": {"n": 1},
            "products/p2": {"n": 2},
            "products/p3": {"n": 3},
            "sessions/s1": {"until": {"$timestamp": "2020-01-01T00:00:00Z"}},
            "sessions/s2": {"until": {"$timestamp": "2999-01-01T00:00:00Z"}},
            "users/u1": {"far": {"$absoluteReference": "projects/else/databases/(default)/documents/a/1"}},
        })),
    );
    shop.run(["init"]).done();
    let id = shop.back_up();
    (shop, id)
}

#[test]
fn a_dry_run_says_what_would_happen_and_what_it_costs() {
    let (shop, id) = small_shop();
    let target = documents_of(json!({
        "extra/1": {"x": 1},
        "products/p1": {"n": 1},
        "products/p2": {"n": 9},
        "products/p9": {"n": 9},
    }));
    fill(&shop, "demo-target", &target);
    let restore = |arguments: &[&str]| {
        let all = ["restore", &id, "--to-project", "demo-target", "--mode", "mirror"];
        shop.firebank(all.iter().chain(arguments).copied().collect::<Vec<_>>())
    };
    let planned = restore(&["--dry-run", "--json", "--rate", "0.5", "--ttl-field", "until"]).json();
    assert_eq!(keys(&planned), plan_keys("snapshot"));
    let number = |name: &str| planned[name].as_u64().unwrap();
    assert_eq!(
        ["documents", "created", "changed", "unchanged", "deleted"].map(number),
        [6, 4, 1, 1, 2]
    );
    assert_eq!(
        ["billed_writes", "billed_deletes", "conflicts", "existing"].map(number),
        [5, 2, 0, 0]
    );
    assert!((4..20).contains(&number("billed_reads")), "{planned}");
    assert_eq!(planned["seconds"], 14.0);
    let products = &planned["collections"]["products"];
    assert_eq!(
        (&products["created"], &products["changed"], &products["deleted"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!(planned["collections"]["extra"]["deleted"], 1);
    let warnings = planned["warnings"].as_array().unwrap();
    assert_eq!(
        warnings.clone(),
        [
            json!({"kind": "foreign_references", "documents": 1, "examples": ["users/u1"]}),
            json!({"kind": "ttl_passed", "field": "sessions.until", "documents": 1, "examples": ["sessions/s1"]}),
        ]
    );
    assert_eq!(of(&shop, "demo-target"), target, "a dry run writes nothing");

    let shown = restore(&["--dry-run", "--ttl-field", "sessions.until"]);
    for part in [
        "4 would be created",
        "1 changed",
        "2 would be deleted",
        "Nothing was written",
        "5 writes",
        "2 deletes",
        "triggered",
    ] {
        assert!(shown.stdout.contains(part), "{part:?}: {shown}");
    }
    for part in [
        "1 document refers to documents of other databases: users/u1",
        "time to live",
        "sessions/s1",
    ] {
        assert!(shown.stderr.contains(part), "{part:?}: {shown}");
    }
    assert!(!restore(&["--dry-run"]).stderr.contains("time to live"));

    // The plan is what then runs.
    let done = restore(&["--json"]).json();
    for name in [
        "documents",
        "created",
        "changed",
        "unchanged",
        "deleted",
        "references",
    ] {
        assert_eq!(done[name], planned[name], "{name}");
    }
    assert_eq!(done["written"], 7);
    let after = restore(&["--dry-run", "--json"]).json();
    assert_eq!(
        (
            &after["billed_writes"],
            &after["billed_deletes"],
            &after["unchanged"]
        ),
        (&json!(0), &json!(0), &json!(6))
    );
    let text = restore(&[]).done();
    assert!(text.contains("6 documents were the same already."), "{text}");
}

#[test]
fn conflicts_are_left_alone_listed_and_looked_at() {
    let (shop, id) = small_shop();
    fill(
        &shop,
        "demo-target",
        &documents_of(json!({"products/p1": {"n": 8}, "products/p2": {"n": 8}})),
    );
    let database = shop.connect("demo-target", "(default)");
    let time = shop
        .runtime
        .block_on(async { database.current_read_time().await.unwrap().to_string() });
    fill(
        &shop,
        "demo-target",
        &documents_of(json!({"products/p2": {"n": 9}})),
    );
    let restore = |arguments: &[&str]| {
        let all = [
            "restore",
            &id,
            "--to-project",
            "demo-target",
            "--if-unmodified-since",
            &time,
        ];
        shop.firebank(all.iter().chain(arguments).copied().collect::<Vec<_>>())
    };
    let dry = restore(&["--dry-run"]);
    assert_eq!(dry.code, 0, "{dry}");
    assert!(dry.stdout.contains("changed meanwhile: products/p2"), "{dry}");
    let ended = restore(&["--json"]);
    assert_eq!(ended.code, 3, "{ended}");
    let json = ended.json();
    assert_eq!(
        (&json["conflicts"], &json["conflicting"]),
        (&json!(1), &json!(["products/p2"]))
    );
    assert_eq!(json["written"], 5);
    let after = of(&shop, "demo-target");
    assert_eq!(
        (&after["products/p1"]["n"], &after["products/p2"]["n"]),
        (&json!(1), &json!(9))
    );
    let again = restore(&[]);
    assert_eq!(again.code, 3, "what the restore wrote is newer itself: {again}");
    assert!(again.stdout.contains("changed meanwhile: products/p2"), "{again}");
}

#[test]
fn nothing_is_changed_in_production_without_a_confirmation() {
    let (shop, id) = small_shop();
    // No server: what gets past the guard fails to find its credentials.
    let restore = |arguments: &[&str]| {
        let all = [
            "restore",
            &id,
            "--to-project",
            PRODUCTION,
            "--credentials",
            "none.json",
        ];
        shop.run(all.iter().chain(arguments).copied().collect::<Vec<_>>())
    };
    for (mode, says) in [
        ("overwrite", "overwrite documents"),
        ("create-only", "create documents"),
        ("skip-identical", "overwrite documents"),
        ("mirror", "DELETE documents"),
        ("merge", "change documents"),
    ] {
        let refused = restore(&["--mode", mode]);
        refused.fails(2, &[says, "--confirm-project retail-prod", "no terminal"]);
        // It is to be given knowingly.
        assert!(refused.stderr.contains("other databases: users/u1"), "{refused}");
        assert_eq!(refused.stderr.matches("Eventarc").count(), 1, "{refused}");
        let unchecked = restore(&["--mode", mode, "--no-check"]);
        unchecked.fails(2, &[says]);
        assert!(!unchecked.stderr.contains("users/u1"), "{unchecked}");
        restore(&["--mode", mode, "--confirm-project", SHOP]).fails(2, &[SHOP, PRODUCTION]);
        let confirmed = restore(&["--mode", mode, "--confirm-project", PRODUCTION]);
        confirmed.fails(1, &["none.json"]);
        assert_eq!(confirmed.stderr.matches("Eventarc").count(), 1, "{confirmed}");
    }
    // What is created triggers as well; an emulator has nobody to trigger.
    let created = restore(&["--mode", "create-only"]);
    assert_eq!(created.stderr.matches("Eventarc").count(), 1, "{created}");
    let emulated = shop.firebank(["restore", &id, "--to-project", "demo-target"]);
    assert!(
        emulated.code == 0 && !emulated.stderr.contains("Eventarc"),
        "{emulated}"
    );
}

/// What a snapshot of another edition or an older database has and this one would refuse.
#[test]
fn what_would_be_refused_is_told_before() {
    let shop = Shop::empty();
    let deep = (0..22).fold(json!(1), |inner, _| json!({"m": inner}));
    let body = canonical::encode(&typed_json::fields_from_json(&deep).unwrap());
    let mut docs = archive_support::sample(4);
    for path in ["deep/1", "deep/2"] {
        let body = body.clone();
        docs.insert(
            archive_support::key(path),
            Doc {
                body,
                ..archive_support::doc(1, 1)
            },
        );
    }
    // The sandbox would refuse them as well, so they are put into a repository by hand.
    let id = shop.runtime.block_on(async {
        let store = Store::create_local(shop.repository()).unwrap();
        let repository = repository_in(store, small_segments()).await;
        let session = SessionOptions::new(archive_support::plan(&[], 0));
        let snapshot = archive_support::back_up(&repository, session, &docs).await;
        snapshot.id.to_string()
    });
    let dry = ["restore", &id, "--to-project", "demo-target", "--dry-run"];
    let shown = shop.firebank_on("demo-test", dry);
    let says = "2 documents nest deeper than 20 levels, and would be refused: deep/1, deep/2";
    assert!(shown.code == 0 && shown.stderr.contains(says), "{shown}");
    let planned = shop
        .firebank_on("demo-test", [&dry[..], &["--json"]].concat())
        .json();
    assert_eq!(
        planned["warnings"],
        json!([{"kind": "too_deep", "documents": 2, "examples": ["deep/1", "deep/2"]}])
    );
    // Before a real one where it matters.
    let real = shop.run([
        "restore",
        &id,
        "--to-project",
        PRODUCTION,
        "--credentials",
        "none.json",
    ]);
    real.fails(2, &[says, "--confirm-project"]);
}

#[test]
fn options_that_contradict_each_other_are_wrong_usage() {
    let (shop, id) = small_shop();
    let restore = |arguments: &[&str]| {
        let all = ["restore", &id, "--to-project", "demo-x"];
        shop.firebank(all.iter().chain(arguments).copied().collect::<Vec<_>>())
    };
    for (arguments, says) in [
        (&["--mode", "mirror", "--fields", "n"][..], "mirror"),
        (&["--mode", "create-only", "--fields", "n"], "create-only"),
        (
            &[
                "--mode",
                "create-only",
                "--if-unmodified-since",
                "2026-01-01T00:00:00Z",
            ],
            "create-only",
        ),
        (&["--if-unmodified-since", "yesterday"], "2026-11-22T02:00:00Z"),
        (&["--fields", "a..b"], "a..b"),
        (&["--rename-collection", "products"], "FROM=TO"),
        (&["--rename-collection", "products=users"], "users/u1"),
        (&["--exclude", "a//b"], "a//b"),
        (&["--ttl-field", "a,b"], "COLLECTION.FIELD"),
        (&["--no-check", "--dry-run"], "--dry-run"),
    ] {
        let refused = restore(arguments);
        assert_eq!(refused.code, 2, "{arguments:?}: {refused}");
        assert!(refused.stderr.contains(says), "{arguments:?}: {refused}");
    }
    let refused = restore(&["--references", "fail"]);
    refused.fails(1, &["users/u1", "nothing was written"]);
    assert!(of(&shop, "demo-x").is_empty());
    // Excluding everything is most likely a slip.
    let nothing = restore(&["--only", "products", "--exclude", "products"]);
    assert_eq!(nothing.code, 3, "{nothing}");
    assert!(nothing.stderr.contains("--exclude products"), "{nothing}");
}

#[test]
fn files_are_imported_in_the_same_modes() {
    let shop = Shop::empty();
    let file = json!({"collection": "things", "documents": [
        {"id": "same", "n": 1},
        {"id": "changed", "n": 1, "m": {"x": 1}},
        {"id": "new", "n": 1, "r": {"$reference": "things/same"}},
    ]});
    shop.write("things.json", file.to_string());
    let there = documents_of(json!({
        "things/same": {"n": 1},
        "things/changed": {"n": 2, "m": {"y": 2}, "own": 1},
        "things/extra": {"n": 1},
    }));
    let import = |project: &str, arguments: &[&str]| {
        let all = ["import", "things.json", "--json"];
        shop.firebank_on(project, all.iter().chain(arguments).copied().collect::<Vec<_>>())
    };
    let with = |json: serde_json::Value| {
        let mut documents = there.clone();
        documents.extend(documents_of(json));
        documents
    };
    let reference = json!({"$reference": "things/same"});
    let new = json!({"n": 1, "r": reference});
    let replaced = with(json!({"things/changed": {"n": 1, "m": {"x": 1}}, "things/new": new}));
    let merged = json!({"n": 1, "m": {"x": 1, "y": 2}, "own": 1});
    let cases: [(&[&str], Documents, u64); 6] = [
        (&[], replaced.clone(), 3),
        (&["--mode", "skip-identical"], replaced, 2),
        (&["--mode", "create-only"], with(json!({"things/new": new})), 1),
        (
            &["--mode", "merge"],
            with(json!({"things/changed": merged, "things/new": new})),
            2,
        ),
        (
            &["--mode", "skip-identical", "--fields", "n"],
            with(json!({"things/changed": {"n": 1, "m": {"y": 2}, "own": 1}})),
            1,
        ),
        (
            &["--rename-collection", "things=old", "--exclude", "things/same"],
            with(json!({
                "old/changed": {"n": 1, "m": {"x": 1}},
                "old/new": {"n": 1, "r": {"$reference": "old/same"}},
            })),
            2,
        ),
    ];
    for (number, (arguments, expected, written)) in cases.into_iter().enumerate() {
        let project = format!("demo-import-{number}");
        fill(&shop, &project, &there);
        let dry = import(&project, &[arguments, &["--dry-run"]].concat()).json();
        // Documents that exist are asked for, refused, and billed.
        let refused = dry["existing"].as_u64().unwrap();
        assert_eq!(dry["billed_writes"], written + refused, "{arguments:?}: {dry}");
        assert_eq!(of(&shop, &project), there, "{arguments:?}");
        let done = import(&project, arguments).json();
        assert_eq!(done["written"], written, "{arguments:?}: {done}");
        assert_eq!(of(&shop, &project), expected, "{arguments:?}");
    }
    import("demo-no", &["--mode", "mirror"]).fails(2, &["mirror needs a snapshot"]);
    import("demo-no", &["--references", "keep"]).fails(2, &["references cannot be kept"]);
    import("demo-no", &["--rename-collection", "x=things"]).fails(2, &["things/same"]);
    assert!(of(&shop, "demo-no").is_empty());
}
