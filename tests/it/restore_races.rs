//! Restores beside somebody who writes at the same time, and beside everything that a database under load does.

use std::time::Duration;

use firebank::document::{DocumentPath, typed_json};
use firebank::firestore::{CommitWrite, Committed, Firestore, Precondition};
use firebank::progress::Progress;
use firebank::restore::{RestoreMode, RestoreOptions, RestoreStats, restore};
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, Sandbox, When};
use serde_json::{Value as Json, json};
use tonic::Code;

use crate::restore_modes::{Documents, contents, documents_of, put};
use crate::support::operations::*;
use crate::support::sandbox;

/// Writes with a method of its own, which the faults of BatchWrite do not meet.
async fn commit(database: &Firestore, path: &str, fields: Option<Json>) {
    let fields = fields.map(|fields| typed_json::fields_from_str(&fields.to_string()).unwrap());
    let write = CommitWrite {
        path: DocumentPath::parse(path).unwrap(),
        fields,
        condition: Precondition::None,
    };
    let done = database.commit(&[write]).await.unwrap();
    assert!(matches!(done, Committed::Done(_)), "{done:?}");
}

/// Restores a snapshot of `snapshot` into a database with `target`; between the look at that and the writes, somebody else makes
/// `meanwhile` of some documents.
async fn raced(
    sandbox: &Sandbox,
    mode: RestoreMode,
    with_time: bool,
    [snapshot, target, meanwhile]: [Json; 3],
) -> (RestoreStats, Documents) {
    let address = sandbox.address().to_string();
    let source = connect(&address, &crate::support::project("race"), "(default)").await;
    put(&source, &documents_of(snapshot)).await;
    let repository = repository(small_segments()).await;
    let snapshot = back_up(&source, &repository, 1).await;
    let reader = repository.reader(&snapshot).await.unwrap();
    let copy = connect(&address, &crate::support::project("race-copy"), "(default)").await;
    put(&copy, &documents_of(target)).await;
    let folder = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        mode,
        unmodified_since: match with_time {
            true => Some(copy.current_read_time().await.unwrap()),
            false => None,
        },
        parallel: 1,
        ..RestoreOptions::new(&copy, folder.path().join("failed.ndjson"))
    };
    // Every write has to be sent again and again.
    sandbox
        .faults()
        .add(Fault::write(Code::Aborted, "", When::Always));
    let before = sandbox.usage();
    let progress = Progress::new();
    let restoring = restore(&reader, &copy, options, &progress);
    let somebody = async {
        while sandbox.usage().since(&before).requests_of(Rpc::BatchWrite) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for (path, fields) in documents_of(meanwhile) {
            commit(&copy, &path, Some(fields).filter(|fields| !fields.is_null())).await;
        }
        sandbox.faults().clear();
    };
    let (stats, ()) = tokio::join!(restoring, somebody);
    assert!(!folder.path().join("failed.ndjson").exists());
    (stats.unwrap(), contents(&copy).await)
}

fn conflicts(stats: &RestoreStats) -> Vec<&str> {
    stats.conflicts.iter().map(DocumentPath::as_str).collect()
}

/// What somebody changes between the look and the write stays as they made it, and is listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_changes_between_look_and_write_is_a_conflict() {
    let sandbox = sandbox().await;
    let snapshot = json!({"a/changed": {"n": 1}, "a/gone": {"n": 1}, "a/new": {"n": 1}, "a/quiet": {"n": 1}});
    let target = json!({"a/changed": {"n": 2}, "a/gone": {"n": 2}, "a/quiet": {"n": 2}});
    let meanwhile = json!({"a/changed": {"n": 3}, "a/gone": null, "a/new": {"n": 3}});
    for mode in [
        RestoreMode::Overwrite,
        RestoreMode::SkipIdentical,
        RestoreMode::Mirror,
        RestoreMode::Merge,
    ] {
        let case = [snapshot.clone(), target.clone(), meanwhile.clone()];
        let (stats, after) = raced(&sandbox, mode, true, case).await;
        let expected = json!({"a/changed": {"n": 3}, "a/new": {"n": 3}, "a/quiet": {"n": 1}});
        assert_eq!(after, documents_of(expected), "{mode:?}");
        assert_eq!(conflicts(&stats), ["a/changed", "a/gone", "a/new"], "{mode:?}");
        let fates = stats.fates;
        assert_eq!(
            (
                stats.written,
                fates.conflicts,
                fates.changed,
                fates.created,
                stats.failed
            ),
            (1, 3, 1, 0, 0),
            "{mode:?}: {fates:?}"
        );
    }
}

/// A mirror deletes only what it has seen, and a merge creates only what was not there, also without a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_that_nobody_has_seen() {
    let sandbox = sandbox().await;
    let case = [
        json!({"a/1": {"n": 1}}),
        json!({"b/1": {"n": 2}, "b/2": {"n": 2}, "b/3": {"n": 2}}),
        json!({"b/1": {"n": 3}, "b/3": null}),
    ];
    let (stats, after) = raced(&sandbox, RestoreMode::Mirror, false, case).await;
    assert_eq!(after, documents_of(json!({"a/1": {"n": 1}, "b/1": {"n": 3}})));
    assert_eq!(conflicts(&stats), ["b/1", "b/3"]);
    assert_eq!(
        (stats.fates.deleted, stats.fates.conflicts, stats.fates.created),
        (1, 2, 1)
    );

    let case = [
        json!({"a/1": {"n": 1}, "a/2": {"n": 1, "m": {"x": 1}}}),
        json!({"a/2": {"n": 2, "m": {"y": 1}}}),
        json!({"a/1": {"own": 1}, "a/2": {"n": 3, "m": {"y": 2}, "own": 1}}),
    ];
    let (stats, after) = raced(&sandbox, RestoreMode::Merge, false, case).await;
    let expected = json!({"a/1": {"own": 1}, "a/2": {"n": 1, "m": {"x": 1, "y": 2}, "own": 1}});
    assert_eq!(after, documents_of(expected));
    assert_eq!(conflicts(&stats), ["a/1"]);
}

/// Everything at once that a database under load does, in the modes that read it first and write with preconditions: in the end
/// each document is what it is to be, and nothing that the restore itself has written is taken for somebody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_makes_no_conflicts_of_its_own() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let source = connect(&address, "demo-trouble", "(default)").await;
    let document =
        |collection: &str, number: u32, n: u32| (format!("{collection}/{number:04}"), json!({"n": n}));
    let snapshot: Documents = (0..400).map(|number| document("users", number, 1)).collect();
    put(&source, &snapshot).await;
    let repository = repository(small_segments()).await;
    let taken = back_up(&source, &repository, 2).await;
    let reader = repository.reader(&taken).await.unwrap();
    // A third of them is there with other fields, a third is missing, and there are as many others.
    let there = (0..400)
        .filter(|number| number % 3 != 0)
        .map(|number| document("users", number, 1 + number % 3 % 2));
    let others: Documents = (0..150)
        .map(|number| document("users-of-old", number, 1))
        .collect();
    let there: Documents = there.chain(others.clone()).collect();
    let mut everything = snapshot.clone();
    everything.extend(others);
    let folder = tempfile::tempdir().unwrap();
    let chance = When::Probability;
    let status = |code| Effect::Status(code, "trouble on demand".to_owned());
    for (number, mode) in [
        RestoreMode::SkipIdentical,
        RestoreMode::Mirror,
        RestoreMode::Merge,
        RestoreMode::CreateOnly,
    ]
    .into_iter()
    .enumerate()
    {
        for with_time in [false, true] {
            if with_time && mode == RestoreMode::CreateOnly {
                continue;
            }
            let case = format!("{mode:?} {with_time}");
            let copy = connect(
                &address,
                &format!("demo-trouble-{number}-{with_time}"),
                "(default)",
            )
            .await;
            let before = match mode {
                RestoreMode::CreateOnly => Documents::new(),
                _ => there.clone(),
            };
            put(&copy, &before).await;
            let mut options = restore_options(&copy, &folder.path().join("failed.ndjson"));
            options.mode = mode;
            options.unmodified_since = match with_time {
                true => Some(copy.current_read_time().await.unwrap()),
                false => None,
            };
            sandbox.faults().set(FaultPlan {
                faults: vec![
                    Fault::write(Code::Aborted, "", chance(0.1)),
                    Fault::write(Code::ResourceExhausted, "", chance(0.1)),
                    Fault::write(Code::Unavailable, "/users/", chance(0.2)),
                    Fault::new(Rpc::BatchWrite, chance(0.1), status(Code::Unavailable)),
                    Fault::new(Rpc::BatchWrite, chance(0.05), status(Code::ResourceExhausted)),
                    Fault::new(Rpc::BatchWrite, chance(0.1), Effect::ResetAfter { documents: 0 }),
                    Fault::new(Rpc::RunQuery, chance(0.1), status(Code::Unavailable)),
                ],
                seed: number as u64,
                max_request_writes: Some(40),
                max_request_bytes: Some(20_000),
                ..FaultPlan::default()
            });
            let stats = restore(&reader, &copy, options, &Progress::new()).await.unwrap();
            sandbox.faults().clear();
            let expected = match mode {
                RestoreMode::Mirror | RestoreMode::CreateOnly => &snapshot,
                _ => &everything,
            };
            assert_eq!(contents(&copy).await, *expected, "{case}");
            assert!(stats.writes.retries > 20, "{case}: {:?}", stats.writes);
            assert_eq!(
                (
                    stats.fates.conflicts,
                    stats.existing,
                    stats.failed,
                    conflicts(&stats)
                ),
                (0, 0, 0, vec![]),
                "{case}"
            );
            assert!(!folder.path().join("failed.ndjson").exists(), "{case}");
        }
    }
}

/// All conflicts are counted and the first thousand are named, the first by their paths and not those that came first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_conflicts_by_path_are_named() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let source = connect(&address, "demo-conflicts", "(default)").await;
    let document = |number: u32, n: u32| (format!("things/{number:04}"), json!({"n": n}));
    put(&source, &(0..3_000).map(|number| document(number, 1)).collect()).await;
    let repository = repository(small_segments()).await;
    let snapshot = back_up(&source, &repository, 2).await;
    let reader = repository.reader(&snapshot).await.unwrap();
    let copy = connect(&address, "demo-conflicts-copy", "(default)").await;
    let time = copy.current_read_time().await.unwrap();
    put(&copy, &(0..3_000).map(|number| document(number, 2)).collect()).await;
    let folder = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        unmodified_since: Some(time),
        ..RestoreOptions::new(&copy, folder.path().join("failed.ndjson"))
    };
    let stats = restore(&reader, &copy, options, &Progress::new()).await.unwrap();
    assert_eq!(stats.fates.conflicts, 3_000);
    let first: Vec<String> = (0..1_000).map(|number| document(number, 0).0).collect();
    assert!(
        conflicts(&stats) == first,
        "{:?}",
        conflicts(&stats).iter().zip(&first).find(|(a, b)| a != b)
    );
}
