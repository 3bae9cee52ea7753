//! Restores of damaged snapshots: with --skip-damaged all arrives that can be read, and the rest is told.

use std::path::Path;

use firebank::archive::{ReadMode, Repository, Snapshot};
use firebank::document::{DatabaseName, DocumentPath, Value, canonical};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::restore::{Gap, RestoreError, RestoreStats, restore};
use firebank::sandbox::{Sandbox, SandboxConfig, SyntheticSpec};
use firebank::store::Store;
use futures::TryStreamExt;

use crate::cli_support::files_below;
use crate::support::operations::*;
use crate::support::sandbox_with;

const DOCUMENTS: u64 = 600;

async fn scene(folder: &Path) -> (Sandbox, Firestore, Repository) {
    let spec = SyntheticSpec {
        database: Some(DatabaseName::new("demo-shop", "(default)")),
        ..SyntheticSpec::new("things", DOCUMENTS, 400)
    };
    let sandbox = sandbox_with(SandboxConfig {
        synthetic: vec![spec],
        ..SandboxConfig::default()
    })
    .await;
    let database = client(&sandbox, "demo-shop").await;
    let store = Store::create_local(folder).unwrap();
    let repository = repository_in(store, small_segments()).await;
    (sandbox, database, repository)
}

/// Chunks of a kind: their ninth byte says which they are.
fn chunks(folder: &Path, kind: u8) -> Vec<String> {
    let mut names = files_below(folder);
    names.retain(|name| name.starts_with("chunks/") && std::fs::read(folder.join(name)).unwrap()[9] == kind);
    names
}

const DATA: u8 = 1;
const INDEX: u8 = 2;

async fn try_skipping(
    repository: &Repository,
    snapshot: &Snapshot,
    copy: &Firestore,
    skip_damaged: bool,
) -> Result<RestoreStats, RestoreError> {
    let folder = tempfile::tempdir().unwrap();
    let mut options = restore_options(copy, &folder.path().join("dead.ndjson"));
    options.skip_damaged = skip_damaged;
    let reader = repository.reader(snapshot).await.unwrap();
    restore(&reader, copy, options, &Progress::new()).await
}

async fn paths(database: &Firestore) -> Vec<DocumentPath> {
    let batches: Vec<_> = scan(database).await.try_collect().await.unwrap();
    let documents = batches.iter().flat_map(|batch| batch.iter());
    documents.map(|document| document.path().unwrap()).collect()
}

fn is_within(path: &DocumentPath, gap: &Gap) -> bool {
    let bound = |path: &Option<String>| {
        path.as_ref()
            .map(|path| DocumentPath::parse(path.as_str()).unwrap())
    };
    bound(&gap.first).is_none_or(|first| first <= *path) && bound(&gap.last).is_none_or(|last| *path <= last)
}

/// Restores what is left, and looks whether it is exactly what can be read.
async fn check(
    sandbox: &Sandbox,
    database: &Firestore,
    repository: &Repository,
    snapshot: &Snapshot,
    case: &str,
) {
    let copy = client(sandbox, &format!("demo-{case}")).await;
    let refused = try_skipping(repository, snapshot, &copy, false)
        .await
        .unwrap_err();
    assert!(matches!(refused, RestoreError::Archive(_)), "{case}: {refused}");
    assert!(
        refused.to_string().contains("--skip-damaged"),
        "{case}: {refused}"
    );

    let project = format!("demo-{case}-skipping");
    let copy = client(sandbox, &project).await;
    let stats = try_skipping(repository, snapshot, &copy, true).await.unwrap();
    assert!(!stats.gaps.is_empty(), "{case}");
    let written = paths(&copy).await;
    assert_eq!(written.len() as u64, stats.written, "{case}");
    let reader = repository.reader(snapshot).await.unwrap();
    let mut missing = 0;
    for path in paths(database).await {
        let is_written = written.binary_search(&path).is_ok();
        let readable = reader.get(&path).await;
        assert_eq!(
            is_written,
            readable.is_ok(),
            "{case}: {path} {readable:?} {:?}",
            stats.gaps
        );
        if !is_written {
            missing += 1;
            assert!(
                stats.gaps.iter().any(|gap| is_within(&path, gap)),
                "{case}: {path} is not in {:?}",
                stats.gaps
            );
        }
    }
    assert!(missing > 0, "{case}");
    if stats.gaps.iter().all(|gap| gap.documents.is_some()) {
        let told: u64 = stats.gaps.iter().filter_map(|gap| gap.documents).sum();
        assert_eq!(told, missing, "{case}: {:?}", stats.gaps);
    }
    let comparison = compare_databases(database, &copy).await;
    assert_eq!(comparison.equal, stats.written, "{case}: {comparison:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_intact_around_damage_arrives_and_the_rest_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (sandbox, database, repository) = scene(folder).await;
    let snapshot = back_up(&database, &repository, 2).await;
    let harm = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let file = folder.join(name);
        let whole = std::fs::read(&file).unwrap();
        let mut damaged = whole.clone();
        change(&mut damaged);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, damaged).unwrap();
        (file, whole)
    };
    let data = chunks(folder, DATA);
    assert!(data.len() > 8, "{data:?}");
    let flip_late: &dyn Fn(&mut Vec<u8>) = &|bytes| {
        let at = bytes.len() - 10;
        bytes[at] ^= 4;
    };
    let cut: &dyn Fn(&mut Vec<u8>) = &|bytes| bytes.truncate(bytes.len() / 2);
    for (case, name, change) in [
        ("flipped", &data[0], flip_late),
        ("cut", &data[data.len() / 2], cut),
        ("header", &data[data.len() - 1], &|bytes: &mut Vec<u8>| {
            bytes[20] ^= 1
        }),
    ] {
        let (file, whole) = harm(name, change);
        check(&sandbox, &database, &repository, &snapshot, case).await;
        std::fs::write(file, whole).unwrap();
    }
    // Several at once, one of them gone.
    let kept: Vec<(_, _)> = data.iter().step_by(3).map(|name| harm(name, flip_late)).collect();
    std::fs::remove_file(folder.join(&data[1])).unwrap();
    check(&sandbox, &database, &repository, &snapshot, "many").await;
    drop(kept);
}

/// In a stack of layers, where neighbouring documents lie in different chunks; and damage of the index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_layers_and_in_the_index_is_gone_around() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (sandbox, database, repository) = scene(folder).await;
    back_up(&database, &repository, 1).await;
    let first = chunks(folder, DATA);
    let changed = paths(&database).await.into_iter().step_by(4);
    let body = canonical::encode(&[("new".to_owned(), Value::String("x".repeat(300)))].into());
    put_all(&database, changed.map(|path| (path, body.clone()))).await;
    let night = try_back_up_changes(&database, &repository, ReadMode::Names, 1)
        .await
        .unwrap()
        .snapshot;
    assert!(night.runs.len() > 1);
    let second: Vec<String> = chunks(folder, DATA)
        .into_iter()
        .filter(|name| !first.contains(name))
        .collect();
    let flip = |name: &str| {
        let file = folder.join(name);
        let mut bytes = std::fs::read(&file).unwrap();
        let at = bytes.len() - 10;
        bytes[at] ^= 4;
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, bytes).unwrap();
    };
    flip(&second[0]);
    check(&sandbox, &database, &repository, &night, "upper").await;
    flip(&first[2]);
    check(&sandbox, &database, &repository, &night, "both").await;

    // A page of names that cannot be read hides which documents there are.
    let index = chunks(folder, INDEX);
    flip(&index[0]);
    let copy = client(&sandbox, "demo-index").await;
    let stats = try_skipping(&repository, &night, &copy, true).await.unwrap();
    assert!(
        stats.gaps.iter().any(|gap| gap.documents.is_none()),
        "{:?}",
        stats.gaps
    );
    let written = paths(&copy).await;
    assert_eq!(written.len() as u64, stats.written);
    assert!(stats.written > DOCUMENTS / 4, "{}", stats.written);
    for path in paths(&database).await {
        let is_written = written.binary_search(&path).is_ok();
        assert!(
            is_written || stats.gaps.iter().any(|gap| is_within(&path, gap)),
            "{path}"
        );
    }
    let comparison = compare_databases(&database, &copy).await;
    assert_eq!(comparison.equal, stats.written, "{comparison:?}");
}
