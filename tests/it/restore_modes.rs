//! What each mode of a restore does, as the table in the README says, against the sandbox and Google's emulator.
//!
//! The table is read from the README: what is written there is what is tried.

use std::collections::BTreeMap;

use firebank::document::typed_json::{fields_from_str, fields_to_json};
use firebank::document::{DocumentPath, Timestamp, canonical};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::restore::{RestoreMode, RestoreOptions, RestoreStats, plan_restore, restore};
use firebank::sandbox::Sandbox;
use futures::TryStreamExt;
use serde_json::{Value as Json, json};

use crate::support::operations::*;
use crate::support::{emulator, project, sandbox};

/// Documents by path, as typed JSON.
pub(crate) type Documents = BTreeMap<String, Json>;

pub(crate) fn documents_of(json: Json) -> Documents {
    json.as_object().unwrap().clone().into_iter().collect()
}

/// Writes documents into a database.
pub(crate) async fn put(database: &Firestore, documents: &Documents) {
    let documents = documents.iter().map(|(path, fields)| {
        let path = DocumentPath::parse(path.as_str()).unwrap();
        let body = canonical::encode(&fields_from_str(&fields.to_string()).unwrap());
        (path, body)
    });
    put_all(database, documents).await;
}

/// What a database has, with the times of the last changes.
pub(crate) async fn contents_with_times(database: &Firestore) -> BTreeMap<String, (Json, Timestamp)> {
    let mut batches = Box::pin(scan(database).await);
    let mut contents = BTreeMap::new();
    while let Some(batch) = batches.try_next().await.unwrap() {
        for document in batch.iter() {
            let fields = canonical::decode(document.body).unwrap();
            let json = fields_to_json(&fields).unwrap();
            contents.insert(document.path().unwrap().into(), (json, document.update_time));
        }
    }
    contents
}

pub(crate) async fn contents(database: &Firestore) -> Documents {
    let contents = contents_with_times(database).await;
    contents
        .into_iter()
        .map(|(path, (json, _))| (path, json))
        .collect()
}

const MODES: [(&str, RestoreMode); 5] = [
    ("overwrite", RestoreMode::Overwrite),
    ("create-only", RestoreMode::CreateOnly),
    ("skip-identical", RestoreMode::SkipIdentical),
    ("mirror", RestoreMode::Mirror),
    ("merge", RestoreMode::Merge),
];

/// Cells of the README's table: row, mode, what happens.
fn table() -> BTreeMap<(String, String), String> {
    let readme = include_str!("../../README.md");
    let lines: Vec<&str> = readme
        .lines()
        .skip_while(|line| !line.starts_with("| the target's document |"))
        .take_while(|line| line.starts_with('|'))
        .collect();
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().replace('`', ""))
            .collect()
    };
    let modes = cells(lines[0]);
    assert_eq!(modes[1..], MODES.map(|(name, _)| name.to_owned()));
    let mut table = BTreeMap::new();
    for line in &lines[2..] {
        let row = cells(line);
        assert_eq!(row.len(), modes.len(), "{line}");
        for (mode, cell) in modes.iter().zip(&row).skip(1) {
            table.insert((row[0].clone(), mode.clone()), cell.clone());
        }
    }
    table
}

/// What the snapshot has, what the target has, and what a merge of the two is: rows of the table by path.
struct Case {
    row: &'static str,
    path: &'static str,
    snapshot: Option<Json>,
    target: Option<Json>,
    merged: Option<Json>,
}

fn cases() -> Vec<Case> {
    let case = |row, path, snapshot: Json, target: Json, merged: Json| Case {
        row,
        path,
        snapshot: Some(snapshot).filter(|json| !json.is_null()),
        target: Some(target).filter(|json| !json.is_null()),
        merged: Some(merged).filter(|json| !json.is_null()),
    };
    let full =
        json!({"a": 1, "m": {"x": 1, "e": {}}, "list": [1, {"b": 2}], "r": {"$reference": "things/same"}});
    let null = Json::Null;
    vec![
        case(
            "identical",
            "things/same",
            full.clone(),
            full.clone(),
            full.clone(),
        ),
        case("identical", "things/empty", json!({}), json!({}), json!({})),
        case(
            "changed",
            "things/changed",
            full.clone(),
            json!({"a": 2, "m": {"x": 2, "y": 3, "e": {"k": 1}}, "list": [1], "own": true, "r": null}),
            json!({"a": 1, "m": {"x": 1, "y": 3, "e": {"k": 1}}, "list": [1, {"b": 2}], "own": true,
                   "r": {"$reference": "things/same"}}),
        ),
        case(
            "changed",
            "things/retyped",
            json!({"m": {"e": {}, "n": 5}, "d": 1.5, "odd `name`.x": 1}),
            json!({"m": {"e": 7, "n": {"o": 1}}, "d": 1, "odd `name`.y": 2}),
            json!({"m": {"e": {}, "n": 5}, "d": 1.5, "odd `name`.x": 1, "odd `name`.y": 2}),
        ),
        // Lacks fields, so that a merge would write nothing.
        case(
            "changed",
            "things/poorer",
            full.clone(),
            json!({"m": {"x": 1}}),
            full.clone(),
        ),
        case(
            "identical and newer",
            "things/same-newer",
            full.clone(),
            full.clone(),
            full.clone(),
        ),
        case(
            "newer",
            "things/newer",
            json!({"a": 1}),
            json!({"a": 9}),
            json!({"a": 1}),
        ),
        case(
            "missing",
            "things/missing",
            full.clone(),
            null.clone(),
            full.clone(),
        ),
        case("missing", "things/empty-too", json!({}), null.clone(), json!({})),
        case(
            "extra",
            "things/extra",
            null.clone(),
            json!({"z": 1}),
            json!({"z": 1}),
        ),
        case(
            "extra and newer",
            "things/extra-newer",
            null.clone(),
            json!({"z": 2}),
            json!({"z": 2}),
        ),
        // Below documents, below extra ones, and below missing ones.
        case(
            "identical",
            "things/same/parts/1",
            json!({"p": 1}),
            json!({"p": 1}),
            json!({"p": 1}),
        ),
        case(
            "changed",
            "things/gone/parts/1",
            json!({"p": 1}),
            json!({"p": 2}),
            json!({"p": 1}),
        ),
        case(
            "missing",
            "things/lost/parts/1",
            json!({"p": 1}),
            null.clone(),
            json!({"p": 1}),
        ),
        case(
            "extra",
            "things/extra/parts/1",
            null.clone(),
            json!({"p": 1}),
            json!({"p": 1}),
        ),
        case(
            "extra",
            "things/ghost/parts/9",
            null.clone(),
            json!({"p": 1}),
            json!({"p": 1}),
        ),
        case(
            "newer",
            "things/gone/parts/2",
            json!({"p": 1}),
            json!({"p": 8}),
            json!({"p": 1}),
        ),
        case(
            "missing parent",
            "things/gone",
            null.clone(),
            null.clone(),
            null.clone(),
        ),
        case("missing parent", "things/lost", null.clone(), null.clone(), null),
        case(
            "identical",
            "first/1",
            json!({"f": 1}),
            json!({"f": 1}),
            json!({"f": 1}),
        ),
        case(
            "changed",
            "zlast/1",
            json!({"f": 1}),
            json!({"f": 2}),
            json!({"f": 1}),
        ),
    ]
}

/// What a cell's word means: what is there afterwards, and what it is counted and billed as.
struct Expected<'a> {
    after: Option<Json>,
    fate: &'a str,
    writes: u64,
}

fn expected<'a>(case: &Case, word: &'a str) -> Expected<'a> {
    let (after, fate, writes) = match word {
        "created" | "replaced" | "written again" => (case.snapshot.clone(), word, 1),
        "merged" => (case.merged.clone(), "replaced", 1),
        "left" | "conflict" => (case.target.clone(), word, 0),
        "deleted" => (None, "deleted", 0),
        "stays missing" => (None, "none", 0),
        other => panic!("the table says `{other}`"),
    };
    Expected { after, fate, writes }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mode_does_what_its_column_says_in_the_sandbox() {
    let sandbox = sandbox().await;
    modes_do_what_the_table_says(&sandbox.address().to_string(), Some(&sandbox)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mode_does_what_its_column_says_in_the_emulator() {
    let Some(address) = emulator() else { return };
    modes_do_what_the_table_says(address, None).await;
}

async fn modes_do_what_the_table_says(address: &str, sandbox: Option<&Sandbox>) {
    let (table, cases) = (table(), cases());
    let source = connect(address, &project("modes"), "(default)").await;
    let of = |side: fn(&Case) -> &Option<Json>, rows: &[&str]| -> Documents {
        let there = cases
            .iter()
            .filter(|case| rows.is_empty() || rows.contains(&case.row));
        there
            .filter_map(|case| Some((case.path.to_owned(), side(case).clone()?)))
            .collect()
    };
    put(&source, &of(|case| &case.snapshot, &[])).await;
    let repository = repository(small_segments()).await;
    let snapshot = back_up(&source, &repository, 2).await;
    let reader = repository.reader(&snapshot).await.unwrap();
    let folder = tempfile::tempdir().unwrap();

    for (name, mode) in MODES {
        for with_time in [false, true] {
            if with_time && mode == RestoreMode::CreateOnly {
                continue;
            }
            let what = format!("{name}, with a time: {with_time}");
            let target = connect(address, &project("modes-target"), "(default)").await;
            let older = ["identical", "changed", "extra"];
            put(&target, &of(|case| &case.target, &older)).await;
            let time = target.current_read_time().await.unwrap();
            put(
                &target,
                &of(
                    |case| &case.target,
                    &["newer", "identical and newer", "extra and newer"],
                ),
            )
            .await;
            let before = contents_with_times(&target).await;

            let options = RestoreOptions {
                mode,
                unmodified_since: with_time.then_some(time),
                ..RestoreOptions::new(&target, folder.path().join("failed.ndjson"))
            };
            let plan = plan_restore(&reader, &target, &options).await.unwrap();
            assert_eq!(
                contents_with_times(&target).await,
                before,
                "{what}: a plan writes nothing"
            );
            let usage = sandbox.map(Sandbox::usage);
            let stats = restore(&reader, &target, options, &Progress::new())
                .await
                .unwrap();
            let usage = sandbox.map(|sandbox| sandbox.usage().since(&usage.unwrap()));
            let after = contents_with_times(&target).await;

            let mut writes = 0;
            let mut fates: BTreeMap<&str, u64> = BTreeMap::new();
            for case in &cases {
                let row = match case.row {
                    // Without a time nothing is newer than it.
                    "newer" if !with_time => "changed",
                    "identical and newer" if !with_time => "identical",
                    "extra and newer" if !with_time => "extra",
                    row => row,
                };
                let word = &table[&(row.to_owned(), name.to_owned())];
                let expected = expected(case, word);
                let found = after.get(case.path).map(|(json, _)| json);
                assert_eq!(
                    found,
                    expected.after.as_ref(),
                    "{what}: {} is to be {word}",
                    case.path
                );
                if let (Some(before), "left" | "conflict") = (before.get(case.path), word.as_str()) {
                    assert_eq!(after[case.path], *before, "{what}: {} was touched", case.path);
                }
                writes += expected.writes;
                let in_snapshot = case.snapshot.is_some() || expected.fate != "left";
                *fates.entry(expected.fate).or_default() += u64::from(in_snapshot);
            }
            let known: Vec<&str> = cases.iter().map(|case| case.path).collect();
            assert!(
                after.keys().all(|path| known.contains(&path.as_str())),
                "{what}: {after:?}"
            );

            let count = |fate: &str| fates.get(fate).copied().unwrap_or_default();
            let planned = &plan.fates;
            assert_eq!(
                (
                    planned.created,
                    planned.changed,
                    planned.deleted,
                    planned.conflicts
                ),
                (
                    count("created"),
                    count("replaced"),
                    count("deleted"),
                    count("conflict")
                ),
                "{what}: {planned:?}"
            );
            let left = planned.unchanged + planned.existing;
            assert_eq!(
                left,
                count("left") + count("written again"),
                "{what}: {planned:?}"
            );
            check_stats(&what, mode, &stats, &plan.fates, with_time);
            // Create-only asks the database, which refuses, and that is billed.
            let refused = match mode {
                RestoreMode::CreateOnly => planned.existing,
                _ => 0,
            };
            assert_eq!(
                (plan.billed_writes, plan.billed_deletes),
                (writes + refused, count("deleted")),
                "{what}"
            );
            assert_eq!(stats.written, writes + count("deleted"), "{what}");
            assert_eq!(
                plan.conflicting.len() as u64,
                count("conflict"),
                "{what}: {:?}",
                plan.conflicting
            );
            assert_eq!(stats.conflicts, plan.conflicting, "{what}");
            if let Some(usage) = usage {
                assert_eq!(
                    (usage.writes, usage.deletes),
                    (plan.billed_writes, plan.billed_deletes),
                    "{what}"
                );
                assert_eq!(usage.reads, plan.billed_reads, "{what}");
            }
        }
    }
    assert!(!folder.path().join("failed.ndjson").exists());
}

/// What the restore counts is what was planned, as far as it looks.
fn check_stats(
    what: &str,
    mode: RestoreMode,
    stats: &RestoreStats,
    planned: &firebank::restore::Fates,
    with_time: bool,
) {
    let looks = !matches!(mode, RestoreMode::Overwrite | RestoreMode::CreateOnly);
    if looks {
        assert_eq!(stats.fates, *planned, "{what}");
    }
    assert_eq!(
        (stats.fates.conflicts, stats.fates.existing, stats.fates.deleted),
        (planned.conflicts, planned.existing, planned.deleted),
        "{what} {with_time}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identical_target_is_read_and_not_written() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let source = connect(&address, "demo-identical", "(default)").await;
    let documents: Documents = (0..700)
        .map(|number| {
            // References to other documents, to the target's own by its full name, and to a database of nobody.
            let absolute = "projects/demo-copy/databases/(default)/documents/a/1";
            let foreign = "projects/demo-else/databases/(default)/documents/a/1";
            let fields = json!({"n": number, "r": {"$reference": format!("things/{number}")},
                                "s": [{"$absoluteReference": absolute}, {"$absoluteReference": foreign}]});
            (format!("things/{number}"), fields)
        })
        .collect();
    put(&source, &documents).await;
    let repository = repository(small_segments()).await;
    let snapshot = back_up(&source, &repository, 4).await;
    let reader = repository.reader(&snapshot).await.unwrap();
    let target = connect(&address, "demo-copy", "(default)").await;
    restore_all(&repository, &snapshot, &target).await;

    let folder = tempfile::tempdir().unwrap();
    for mode in [
        RestoreMode::SkipIdentical,
        RestoreMode::Mirror,
        RestoreMode::Merge,
    ] {
        let before = sandbox.usage();
        let options = RestoreOptions {
            mode,
            ..RestoreOptions::new(&target, folder.path().join("failed.ndjson"))
        };
        let stats = restore(&reader, &target, options, &Progress::new())
            .await
            .unwrap();
        let usage = sandbox.usage().since(&before);
        assert_eq!(stats.fates.unchanged, 700, "{mode:?}");
        assert_eq!(
            (usage.writes, usage.deletes, stats.written),
            (0, 0, 0),
            "{mode:?}"
        );
        // Each document once, and a few for queries.
        assert!((700..850).contains(&usage.reads), "{mode:?}: {}", usage.reads);
    }
}
