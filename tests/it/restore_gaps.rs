//! `restore --skip-damaged` as a user of the binary meets it: beside every other option, and when it is stopped.

use std::time::Duration;

use firebank::document::{DatabaseName, DocumentPath, canonical};
use firebank::sandbox::{SandboxConfig, SyntheticSpec};
use firebank::store::Store;
use serde_json::{Value as Json, json};

use crate::cli_support::*;
use crate::support::operations::{repository_in, small_segments};
use crate::support::sandbox_with;

const DOCUMENTS: u64 = 600;
const COPY: &str = "demo-copy";
const PRODUCTION: &str = "retail-prod";

/// A snapshot of which some data chunks in the middle are damaged.
fn scene() -> (Shop, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let spec = SyntheticSpec {
        database: Some(DatabaseName::new(SHOP, "(default)")),
        ..SyntheticSpec::new("things", DOCUMENTS, 400)
    };
    let sandbox = runtime.block_on(sandbox_with(SandboxConfig {
        synthetic: vec![spec],
        ..SandboxConfig::default()
    }));
    let shop = Shop {
        desk: Desk::new(),
        sandbox,
        runtime,
    };
    let store = Store::create_local(shop.repository()).unwrap();
    shop.runtime.block_on(repository_in(store, small_segments()));
    let id = shop.back_up();
    let data = chunks(&shop, 1);
    assert!(data.len() > 6, "{data:?}");
    for name in data.iter().step_by(4) {
        flip(&shop, name);
    }
    (shop, id)
}

/// Chunks of a kind: their ninth byte says which they are.
fn chunks(shop: &Shop, kind: u8) -> Vec<String> {
    let mut names = files_below(&shop.repository());
    let is_of_kind = |name: &str| std::fs::read(shop.repository().join(name)).unwrap()[9] == kind;
    names.retain(|name| name.starts_with("chunks/") && is_of_kind(name));
    names
}

fn flip(shop: &Shop, name: &str) {
    let file = shop.repository().join(name);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 10;
    bytes[at] ^= 4;
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, bytes).unwrap();
}

fn restore(shop: &Shop, id: &str, to: &str, more: &[&str]) -> Ended {
    let all = ["restore", id, "--to-project", to, "--skip-damaged"];
    shop.firebank([&all, more].concat())
}

/// Documents that the gaps of a report or a plan say they hold.
fn in_gaps(report: &Json) -> u64 {
    let gaps = report["gaps"].as_array().unwrap();
    gaps.iter().map(|gap| gap["documents"].as_u64().unwrap()).sum()
}

fn put(shop: &Shop, project: &str, path: &str) {
    let body = canonical::encode(&[("mine".to_owned(), firebank::document::Value::Boolean(true))].into());
    shop.put(project, vec![(DocumentPath::parse(path).unwrap(), body)]);
}

#[test]
fn what_is_planned_is_what_is_restored_and_the_rest_is_listed() {
    let (shop, id) = scene();
    let dry = restore(&shop, &id, COPY, &["--dry-run", "--json"]);
    assert_eq!(dry.code, 3, "{dry}");
    let plan = dry.json();
    let missing = in_gaps(&plan);
    assert!(missing > 0);
    assert_eq!(plan["documents"], DOCUMENTS - missing);
    assert!(shop.contents(COPY).is_empty());
    let shown = restore(&shop, &id, COPY, &["--dry-run"]);
    assert!(shown.stderr.contains("is damaged"), "{shown}");
    shop.firebank(["restore", &id, "--to-project", COPY, "--dry-run"])
        .fails(1, &["--skip-damaged"]);

    let done = restore(&shop, &id, COPY, &["--references", "fail", "--json"]);
    assert_eq!(done.code, 3, "{done}");
    let report = done.json();
    let mut gaps = [plan["gaps"].clone(), report["gaps"].clone()];
    for gaps in &mut gaps {
        let by_first = |gap: &Json| gap["first"].as_str().unwrap().to_owned();
        gaps.as_array_mut().unwrap().sort_by_key(by_first);
    }
    assert_eq!(gaps[0], gaps[1]);
    assert_eq!(report["written"], DOCUMENTS - missing);
    let copy = shop.contents(COPY);
    assert_eq!(copy.len() as u64, DOCUMENTS - missing);
    let original = shop.contents(SHOP);
    assert!(copy.iter().all(|(path, body)| original[path] == *body));

    let told = restore(&shop, &id, COPY, &[]);
    assert_eq!(told.code, 3, "{told}");
    let gap = report["gaps"][0]["object"].as_str().unwrap();
    for part in [
        &format!("{missing} documents could not be restored")[..],
        gap,
        " between things/",
    ] {
        assert!(told.stderr.contains(part), "{part:?}: {told}");
    }
}

/// The look through the documents before a confirmation goes around damage as the restore will.
#[test]
fn production_is_looked_through_around_damage() {
    let (shop, id) = scene();
    let production = |more: &[&str]| {
        let all = [
            "restore",
            &id,
            "--to-project",
            PRODUCTION,
            "--skip-damaged",
            "--credentials",
            "none.json",
        ];
        shop.run([&all, more].concat())
    };
    let refused = production(&[]);
    refused.fails(2, &["--confirm-project retail-prod"]);
    // It is to be given knowingly.
    assert!(
        refused.stderr.contains("could not be restored") || refused.stderr.contains("cannot be restored"),
        "{refused}"
    );
    production(&["--confirm-project", PRODUCTION]).fails(1, &["none.json"]);
}

#[test]
fn what_was_restored_around_damage_is_proven() {
    let (shop, id) = scene();
    let restored = |copy: &str, options: &[&str]| {
        let done = restore(&shop, &id, copy, &[&["--verify", "--json"], options].concat());
        assert_eq!(done.code, 3, "{options:?}: {done}");
        done.json()
    };
    // The index tells what is missing where only bodies are damaged.
    for (copy, options) in [("demo-a", &[][..]), ("demo-b", &["--mode", "mirror"])] {
        let report = restored(copy, options);
        let missing = in_gaps(&report);
        let verification = &report["verification"];
        assert_eq!(
            ["equal", "missing", "different", "extra"].map(|name| &verification[name]),
            [DOCUMENTS - missing, missing, 0, 0]
                .map(|count| json!(count))
                .each_ref(),
            "{options:?}: {report}"
        );
    }
    // Fields are compared with what can be read.
    let merge = ["--mode", "merge"];
    let report = restored("demo-c", &merge);
    let left = DOCUMENTS - in_gaps(&report);
    let verification = &report["verification"];
    assert_eq!(
        (&verification["matches"], &verification["equal"]),
        (&json!(true), &json!(left))
    );
    let told = restore(&shop, &id, "demo-c", &[&["--verify"], &merge[..]].concat());
    assert_eq!(told.code, 3, "{told}");
    assert!(
        told.stdout.contains(&format!("Equal: {left} documents of")),
        "{told}"
    );
    assert!(told.stdout.contains("but for what is damaged"), "{told}");

    // Where the index is damaged, nobody knows what is missing.
    flip(&shop, &chunks(&shop, 2)[0]);
    for (copy, options) in [("demo-d", &[][..]), ("demo-e", &["--mode", "mirror"])] {
        let report = restored(copy, options);
        let verification = &report["verification"];
        assert_eq!(
            (&verification["matches"], &verification["equal"]),
            (&json!(true), &report["written"]),
            "{options:?}: {report}"
        );
        assert!(report["written"].as_u64() < Some(left), "{report}");
    }
    // What can be read there is still in the way of a collection that gets its name.
    let taken = restore(&shop, &id, "demo-f", &["--rename-collection", "others=things"]);
    taken.fails(2, &["others=things", "things/"]);
    let renamed = restore(&shop, &id, "demo-f", &["--rename-collection", "things=others"]);
    assert_eq!(renamed.code, 3, "{renamed}");
}

#[test]
fn a_mirror_deletes_nothing_where_it_cannot_see() {
    let (shop, id) = scene();
    let gaps = restore(&shop, &id, COPY, &["--dry-run", "--json"]).json()["gaps"].clone();
    let gap = gaps
        .as_array()
        .unwrap()
        .iter()
        .find(|gap| gap["documents"].as_u64() > Some(1));
    let gap = gap.unwrap();
    let (first, last) = (gap["first"].as_str().unwrap(), gap["last"].as_str().unwrap());
    // The gap's documents with other contents, one between them, and some outside.
    let inside = [first.to_owned(), format!("{first}/below/1"), last.to_owned()];
    let outside = ["aaa/1", "things/zzz", "zzz/1"];
    for path in inside.iter().map(String::as_str).chain(outside) {
        put(&shop, COPY, path);
    }
    let before = shop.contents(COPY);
    let done = restore(&shop, &id, COPY, &["--mode", "mirror", "--json"]);
    assert_eq!(done.code, 3, "{done}");
    let report = done.json();
    assert_eq!(report["deleted"], outside.len(), "{report}");
    let after = shop.contents(COPY);
    for path in &inside {
        assert_eq!(after[path], before[path], "{path}");
    }
    assert!(outside.iter().all(|path| !after.contains_key(*path)));
    assert_eq!(
        after.len() as u64,
        DOCUMENTS - in_gaps(&report) + inside.len() as u64
    );
}

#[test]
fn what_was_left_out_before_a_kill_is_listed_after_it() {
    let (shop, id) = scene();
    let whole = in_gaps(&restore(&shop, &id, COPY, &["--dry-run", "--json"]).json());
    let mut command = shop.std_command();
    command
        .args(["--emulator", &shop.address(), "--project", SHOP])
        .args([
            "restore",
            &id,
            "--to-project",
            COPY,
            "--skip-damaged",
            "--state",
            "state",
            "--rate",
            "60",
        ])
        .stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let seen = || {
        let state = shop.file("state");
        state.exists()
            && files_below(&state).iter().any(|name| {
                let text = std::fs::read_to_string(state.join(name)).unwrap_or_default();
                name.contains("checkpoint") && text.contains("\"object\"")
            })
    };
    let start = std::time::Instant::now();
    while !seen() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        assert!(start.elapsed() < Duration::from_secs(60), "no gap was recorded");
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        (shop.contents(COPY).len() as u64) < DOCUMENTS - whole,
        "it was killed too late"
    );
    let done = restore(&shop, &id, COPY, &["--state", "state", "--resume", "--json"]);
    assert_eq!(done.code, 3, "{done}");
    let report = done.json();
    assert_eq!(in_gaps(&report), whole, "each once: {report}");
    assert_eq!(report["written"], DOCUMENTS - whole, "{report}");
    assert_eq!(shop.contents(COPY).len() as u64, DOCUMENTS - whole);
}
