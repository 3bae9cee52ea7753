//! Restores of a part: what is chosen is restored where it is meant to go, and nothing else is touched, read or deleted.

use std::path::PathBuf;

use firebank::archive::{Repository, Selection, Snapshot, SnapshotReader};
use firebank::backup::{BackupOptions, Parent, backup};
use firebank::document::{CollectionPath, FieldMask};
use firebank::firestore::Firestore;
use firebank::path_filter::PathFilter;
use firebank::progress::Progress;
use firebank::restore::{
    ReferenceMode, Renames, RestoreError, RestoreMode, RestoreOptions, RestoreStats, plan_restore, restore,
};
use firebank::sandbox::{Rpc, Sandbox};
use serde_json::json;

use crate::restore_modes::{Documents, contents, documents_of, put};
use crate::support::operations::*;
use crate::support::{emulator, project, sandbox};

struct World {
    folder: tempfile::TempDir,
    source: Firestore,
    repository: Repository,
    snapshot: Snapshot,
    reader: SnapshotReader,
    address: String,
}

impl World {
    async fn new(address: &str, documents: &Documents) -> Self {
        Self::with_selection(address, documents, Selection::all()).await
    }

    async fn with_selection(address: &str, documents: &Documents, selection: Selection) -> Self {
        let source = connect(address, &project("selection"), "(default)").await;
        put(&source, documents).await;
        let repository = repository(small_segments()).await;
        let options = BackupOptions {
            selection,
            ranges: Some(3),
            parent: Parent::None,
            ..BackupOptions::default()
        };
        let stats = backup(&source, &repository, options, &Progress::new())
            .await
            .unwrap();
        let reader = repository.reader(&stats.snapshot).await.unwrap();
        Self {
            folder: tempfile::tempdir().unwrap(),
            source,
            repository,
            snapshot: stats.snapshot,
            reader,
            address: address.to_owned(),
        }
    }

    /// A database with some documents.
    async fn target(&self, documents: &Documents) -> Firestore {
        let target = connect(&self.address, &project("selected"), "(default)").await;
        put(&target, documents).await;
        target
    }

    fn dead_letters(&self) -> PathBuf {
        self.folder.path().join("failed.ndjson")
    }

    fn options(&self, target: &Firestore, only: &[&str], exclude: &[&str]) -> RestoreOptions {
        let filter = PathFilter::new(only).unwrap().excluding(exclude).unwrap();
        RestoreOptions {
            filter,
            ..RestoreOptions::new(target, self.dead_letters())
        }
    }

    /// A restore that does what its plan says.
    async fn restore(&self, target: &Firestore, options: RestoreOptions) -> RestoreStats {
        let plan = plan_restore(&self.reader, target, &options).await.unwrap();
        let mode = options.mode;
        let stats = self.try_restore(target, options).await.unwrap();
        assert_eq!(stats.documents, plan.documents);
        assert_eq!(stats.written, plan.billed_writes + plan.billed_deletes);
        assert_eq!(stats.references, plan.references);
        if mode != RestoreMode::Overwrite {
            assert_eq!(stats.fates, plan.fates);
        }
        stats
    }

    async fn try_restore(
        &self,
        target: &Firestore,
        options: RestoreOptions,
    ) -> Result<RestoreStats, RestoreError> {
        restore(&self.reader, target, options, &Progress::new()).await
    }
}

fn shop() -> Documents {
    documents_of(json!({
        "_migrations/v1": {"m": 1},
        "orders/o1": {"user": {"$reference": "users/u1"}, "product": {"$reference": "products/p1"}},
        "orders/o1/lines/1": {"n": 1},
        "products/p1": {"price": 1, "name": "one", "size": {"w": 1, "h": 2}},
        "products/p1/reviews/r1": {"stars": 5},
        "products/p2": {"name": "two"},
        "products/lost/reviews/r2": {"stars": 1},
        "users/u1": {"name": "a", "last": {"$reference": "products/p1/reviews/r1"}},
        "users/u1/orders/o1": {"n": 1},
        "users/u2": {"name": "b"},
        "users/u2/orders/o2": {"n": 2},
    }))
}

fn only(documents: &Documents, keep: impl Fn(&str) -> bool) -> Documents {
    let kept = documents.iter().filter(|(path, _)| keep(path));
    kept.map(|(path, json)| (path.clone(), json.clone())).collect()
}

/// Overwrites, and mirrors with documents in the way of which only the chosen ones may go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_chosen_is_restored_and_nothing_else_is_touched() {
    let sandbox = sandbox().await;
    let world = World::new(&sandbox.address().to_string(), &shop()).await;
    let in_the_way = documents_of(json!({
        "_migrations/v2": {"m": 2},
        "apart/1": {"x": 1},
        "orders/o9": {"x": 1},
        "products/p9": {"x": 1},
        "products/p1/reviews/r9": {"x": 1},
        "products/p9/reviews/r9": {"x": 1},
        "users/u1/orders/o9": {"x": 1},
        "users/u9": {"x": 1},
        "users/u9/orders/o9": {"x": 1},
    }));
    type Chosen = fn(&str) -> bool;
    let cases: [(&[&str], &[&str], Chosen); 7] = [
        (&["products"], &[], |path| path.starts_with("products/")),
        (&["products/p1"], &[], |path| path.starts_with("products/p1")),
        (&["products/**"], &["**/reviews"], |path| {
            path.starts_with("products/") && !path.contains("/reviews/")
        }),
        (&["users/*/orders/*"], &[], |path| {
            path.starts_with("users/") && path.contains("/orders/")
        }),
        (&[], &["_migrations", "products", "apart"], |path| {
            path.starts_with("users/") || path.starts_with("orders/")
        }),
        (&["products", "users/u1"], &["products/p1/reviews"], |path| {
            (path.starts_with("products/") && !path.starts_with("products/p1/reviews"))
                || path.starts_with("users/u1")
        }),
        (&["products/p2"], &[], |path| path == "products/p2"),
    ];
    for (only_patterns, exclude, chosen) in cases {
        let restored = only(&shop(), chosen);
        for mode in [
            RestoreMode::Overwrite,
            RestoreMode::SkipIdentical,
            RestoreMode::Mirror,
        ] {
            let what = format!("{only_patterns:?} without {exclude:?}, {mode:?}");
            let target = world.target(&in_the_way).await;
            let options = RestoreOptions {
                mode,
                ..world.options(&target, only_patterns, exclude)
            };
            let stats = world.restore(&target, options).await;
            let mut expected = match mode {
                RestoreMode::Mirror => only(&in_the_way, |path| !chosen(path)),
                _ => in_the_way.clone(),
            };
            assert_eq!(
                stats.fates.deleted,
                (in_the_way.len() - expected.len()) as u64,
                "{what}"
            );
            expected.extend(restored.clone());
            assert_eq!(contents(&target).await, expected, "{what}");
            assert_eq!(stats.documents, restored.len() as u64, "{what}");
        }
    }
}

/// A mirror deletes nothing that the snapshot's own selection left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_keeps_what_the_snapshot_was_not_of() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let collections = |names: &[&str]| {
        let paths = names.iter().map(|name| CollectionPath::parse(*name).unwrap());
        Selection::new(paths.collect(), vec![])
    };
    let groups = Selection::new(vec![], vec!["reviews".to_owned()]);
    type Chosen = fn(&str) -> bool;
    let cases: [(Selection, Chosen); 2] = [
        (collections(&["products", "users"]), |path| {
            path.starts_with("products/") || path.starts_with("users/")
        }),
        (groups, |path| path.contains("/reviews/")),
    ];
    for (selection, chosen) in cases {
        let world = World::with_selection(&address, &shop(), selection).await;
        let there = documents_of(json!({
            "_migrations/v1": {"m": 9},
            "_migrations/v9": {"m": 9},
            "orders/o9": {"x": 1},
            "orders/o9/reviews/r9": {"x": 1},
            "products/p9": {"x": 1},
            "products/p9/reviews/r9": {"x": 1},
            "users/u1/orders/o9": {"x": 1},
        }));
        let target = world.target(&there).await;
        let options = RestoreOptions {
            mode: RestoreMode::Mirror,
            ..world.options(&target, &[], &[])
        };
        world.restore(&target, options).await;
        let mut expected = only(&there, |path| !chosen(path));
        expected.extend(only(&shop(), chosen));
        assert_eq!(contents(&target).await, expected);
        assert!(expected.contains_key("_migrations/v9"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_are_restored_in_documents_that_exist_in_the_sandbox() {
    let sandbox = sandbox().await;
    fields_are_restored(&sandbox.address().to_string(), Some(&sandbox)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_are_restored_in_documents_that_exist_in_the_emulator() {
    let Some(address) = emulator() else { return };
    fields_are_restored(address, None).await;
}

async fn fields_are_restored(address: &str, sandbox: Option<&Sandbox>) {
    let world = World::new(address, &shop()).await;
    let there = documents_of(json!({
        "products/p1": {"price": 9, "name": "other", "size": {"w": 9, "d": 9}, "own": true},
        "products/p2": {"price": 9, "size": 5},
        "users/u1": {"name": "a"},
    }));
    let fields = Some(FieldMask::parse("price,size.h").unwrap());
    let at = |mode, target: &Firestore| RestoreOptions {
        mode,
        fields: fields.clone(),
        ..world.options(target, &["products", "users/u1"], &[])
    };
    let overwritten = documents_of(json!({
        "products/p1": {"price": 1, "name": "other", "size": {"w": 9, "d": 9, "h": 2}, "own": true},
        "products/p2": {"size": 5},
        "users/u1": {"name": "a"},
    }));
    let merged = documents_of(json!({
        "products/p1": {"price": 1, "name": "other", "size": {"w": 9, "d": 9, "h": 2}, "own": true},
        "products/p2": {"price": 9, "size": 5},
        "users/u1": {"name": "a"},
    }));
    for (mode, expected, written) in [
        (RestoreMode::Overwrite, &overwritten, 3),
        (RestoreMode::SkipIdentical, &overwritten, 2),
        (RestoreMode::Merge, &merged, 1),
    ] {
        let target = world.target(&there).await;
        let before = sandbox.map(Sandbox::usage);
        let stats = world.restore(&target, at(mode, &target)).await;
        assert_eq!(contents(&target).await, *expected, "{mode:?}");
        // Two reviews and an order are not there.
        assert_eq!((stats.written, stats.fates.left_out), (written, 3), "{mode:?}");
        assert_eq!(stats.failed, 0, "{mode:?}");
        if let (Some(sandbox), Some(before)) = (sandbox, before) {
            assert_eq!(sandbox.usage().since(&before).writes, written, "{mode:?}");
        }
        let again = world.restore(&target, at(mode, &target)).await;
        assert_eq!(contents(&target).await, *expected, "{mode:?}: again");
        let identical = match mode {
            RestoreMode::Overwrite => written,
            _ => 0,
        };
        assert_eq!(again.written, identical, "{mode:?}: again");
    }
    for mode in [RestoreMode::CreateOnly, RestoreMode::Mirror] {
        let target = world.target(&there).await;
        let refused = world.try_restore(&target, at(mode, &target)).await.unwrap_err();
        assert!(matches!(refused, RestoreError::Options(_)), "{refused}");
        assert_eq!(contents(&target).await, there);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_collection_takes_references_along() {
    let sandbox = sandbox().await;
    let world = World::new(&sandbox.address().to_string(), &shop()).await;
    let renames = Renames::parse(&["products=archive/old/goods", "users/u1/orders=users/u1/bought"]).unwrap();
    let to = |path: &str| {
        let goods = path.strip_prefix("products/");
        match goods.map(|rest| format!("archive/old/goods/{rest}")) {
            Some(path) => path,
            None => path.replace("users/u1/orders/", "users/u1/bought/"),
        }
    };
    let text = json!(shop()).to_string();
    let text = text.replace(
        r#""$reference":"products/"#,
        r#""$reference":"archive/old/goods/"#,
    );
    let renamed: Documents = documents_of(serde_json::from_str(&text).unwrap())
        .into_iter()
        .map(|(path, json)| (to(&path), json))
        .collect();
    let in_the_way = documents_of(json!({
        "archive/old": {"x": 1},
        "archive/old/goods/p9": {"x": 1},
        "products/p9": {"x": 1},
        "users/u1/bought/o9": {"x": 1},
        "users/u1/orders/o9": {"x": 1},
    }));
    // A mirror of what is renamed: the places that collections leave are none of its business.
    let gone = ["archive/old", "archive/old/goods/p9", "users/u1/bought/o9"];
    for mode in [
        RestoreMode::Overwrite,
        RestoreMode::SkipIdentical,
        RestoreMode::Mirror,
        RestoreMode::Merge,
    ] {
        let target = world.target(&in_the_way).await;
        let at = || RestoreOptions {
            mode,
            renames: renames.clone(),
            ..world.options(&target, &[], &[])
        };
        let stats = world.restore(&target, at()).await;
        let mut expected = only(&in_the_way, |path| {
            mode != RestoreMode::Mirror || !gone.contains(&path)
        });
        expected.extend(renamed.clone());
        assert_eq!(contents(&target).await, expected, "{mode:?}");
        assert_eq!((stats.references.rewritten, stats.references.renamed), (3, 2));
        let again = world.restore(&target, at()).await;
        if mode != RestoreMode::Overwrite {
            assert_eq!((again.written, again.fates.unchanged), (0, 11), "{mode:?}");
        }
    }
    // Into a place that other documents are restored to.
    let target = world.target(&Documents::new()).await;
    let options = RestoreOptions {
        renames: Renames::parse(&["products=users"]).unwrap(),
        ..world.options(&target, &[], &[])
    };
    let refused = world.try_restore(&target, options.clone()).await.unwrap_err();
    assert!(matches!(refused, RestoreError::Collision { .. }), "{refused}");
    assert!(contents(&target).await.is_empty());
    // They change places, or one of them is left out.
    let swapped = RestoreOptions {
        renames: Renames::parse(&["products=users", "users=products"]).unwrap(),
        ..options.clone()
    };
    world.restore(&target, swapped).await;
    assert!(contents(&target).await.contains_key("users/p1/reviews/r1"));
    let target = world.target(&Documents::new()).await;
    let alone = RestoreOptions {
        filter: PathFilter::new(&["products"]).unwrap(),
        ..options
    };
    assert_eq!(world.restore(&target, alone).await.written, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_point_where_they_are_told_to() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let mut documents = documents_of(json!({
        "a/1": {"r": {"$reference": "a/2"}, "list": [{"x": {"$reference": "b/1"}}]},
        "a/2": {},
    }));
    let world = World::new(&address, &documents).await;
    let kept = |path: &str| format!("{}/{path}", world.source.database().root());

    let target = world.target(&Documents::new()).await;
    let with = |references, target: &Firestore| RestoreOptions {
        mode: RestoreMode::SkipIdentical,
        references,
        ..world.options(target, &[], &[])
    };
    // Nothing leads away, so there is nothing to fail for.
    let stats = world.restore(&target, with(ReferenceMode::Fail, &target)).await;
    assert_eq!((stats.references.rewritten, stats.references.foreign), (2, 0));
    assert_eq!(contents(&target).await, documents);

    let target = world.target(&Documents::new()).await;
    let stats = world.restore(&target, with(ReferenceMode::Keep, &target)).await;
    assert_eq!((stats.references.kept, stats.references.rewritten), (2, 0));
    let expected = json!({"r": {"$absoluteReference": kept("a/2")}, "list": [{"x": {"$absoluteReference": kept("b/1")}}]});
    assert_eq!(contents(&target).await["a/1"], expected);
    let again = world.restore(&target, with(ReferenceMode::Keep, &target)).await;
    assert_eq!((again.written, again.fates.unchanged), (0, 2));

    documents.insert(
        "b/1".to_owned(),
        json!({"far": [{"$absoluteReference": kept("a/1")}]}),
    );
    let world = World::new(&address, &documents).await;
    let target = world.target(&Documents::new()).await;
    let options = RestoreOptions {
        references: ReferenceMode::Fail,
        ..world.options(&target, &[], &[])
    };
    let refused = world.try_restore(&target, options.clone()).await.unwrap_err();
    assert!(matches!(refused, RestoreError::ForeignReferences(_)), "{refused}");
    assert!(refused.to_string().contains("`b/1`"), "{refused}");
    assert!(contents(&target).await.is_empty());
    // What was not chosen does not matter.
    let filter = PathFilter::new(&["a"]).unwrap();
    world
        .restore(
            &target,
            RestoreOptions {
                filter,
                ..options.clone()
            },
        )
        .await;
    let references = ReferenceMode::Rewrite;
    let stats = world
        .restore(
            &target,
            RestoreOptions {
                references,
                ..options
            },
        )
        .await;
    assert_eq!(stats.references.foreign, 1);
    assert_eq!(contents(&target).await, documents);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_large_snapshot_takes_few_requests() {
    let sandbox = sandbox().await;
    let documents: Documents = (0..20_000)
        .map(|number| {
            let path = match number % 20 {
                0 => format!("users/u{number:05}"),
                1 => format!("users/u{:05}/orders/o1", number - 1),
                _ => format!("products/p{number:05}"),
            };
            (path, json!({"n": number, "text": "x".repeat(200)}))
        })
        .collect();
    let world = World::new(&sandbox.address().to_string(), &documents).await;
    let store = world.repository.store();
    let gets = || store.requests().get + store.requests().get_range;
    let bytes = || store.requests().received_bytes;
    let cost = async |patterns: &[&str], mode| {
        let target = world.target(&Documents::new()).await;
        // A new reader, which has nothing at hand.
        let reader = world.repository.reader(&world.snapshot).await.unwrap();
        let options = RestoreOptions {
            mode,
            ..world.options(&target, patterns, &[])
        };
        let (gets_before, bytes_before, usage) = (gets(), bytes(), sandbox.usage());
        let stats = restore(&reader, &target, options, &Progress::new())
            .await
            .unwrap();
        let reads = sandbox.usage().since(&usage).reads;
        (stats.written, gets() - gets_before, bytes() - bytes_before, reads)
    };
    let all = cost(&[], RestoreMode::Overwrite).await;
    assert_eq!(all.0, 20_000);
    for mode in [
        RestoreMode::Overwrite,
        RestoreMode::SkipIdentical,
        RestoreMode::Mirror,
    ] {
        let (written, gets, bytes, reads) = cost(&["products/p10002"], mode).await;
        assert_eq!(written, 1);
        assert!(gets <= 5, "{mode:?}: {gets} gets");
        assert!(bytes < all.2 / 5, "{mode:?}: {bytes} bytes of {}", all.2);
        assert!(reads <= 4, "{mode:?}: {reads} reads");
    }
    let users = cost(&["users"], RestoreMode::Overwrite).await;
    assert_eq!(users.0, 2_000);
    assert!(users.1 < all.1 / 5 && users.2 < all.2 / 5, "{users:?} {all:?}");
    // A glob is looked for among names; of the bodies only those chosen are fetched.
    let one = cost(&["users/*5000/orders/o1"], RestoreMode::SkipIdentical).await;
    assert!((1..=2).contains(&one.0), "{one:?}");
    assert!(one.2 < users.2, "{one:?} {users:?}");
    assert_eq!(one.3, one.0, "one read for each chosen document: {one:?}");
    assert_eq!(sandbox.usage().requests_of(Rpc::Commit), 0);
}
