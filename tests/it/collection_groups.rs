//! Backups of collection groups: only their documents are read, on first backups and on nights, in whatever ranges.

use std::collections::BTreeMap;

use firebank::archive::{ReadMode, Repository, Selection, Snapshot};
use firebank::backup::{BackupOptions, BackupStats, backup};
use firebank::diff::{DiffOptions, ReadTimes, diff_live};
use firebank::document::{CollectionPath, DocumentPath, Fields, Value, canonical};
use firebank::firestore::{BulkWriter, Firestore, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::sandbox::{FaultPlan, Rpc, Sandbox};
use futures::TryStreamExt;

use crate::cli_support::Shop;
use crate::support::operations::*;
use crate::support::{emulator, project, sandbox};

type Model = BTreeMap<DocumentPath, i64>;

/// Of `documents`, a tenth is in the group `reviews` and a tenth in `items`, some below documents and some below missing ones.
fn path(number: u64) -> DocumentPath {
    let path = match number % 10 {
        0 => format!("products/p{:06}/reviews/r{number}", number * 7919 % 100_000),
        1 => format!("orders/missing{number:06}/items/i{number}"),
        2..5 => format!("products/p{number:06}"),
        _ => format!("users/u{number:06}"),
    };
    DocumentPath::parse(path).unwrap()
}

fn body(number: i64) -> Vec<u8> {
    let fields: Fields = [
        ("number".to_owned(), Value::Integer(number)),
        ("text".to_owned(), Value::String(format!("{number:x}").repeat(30))),
    ]
    .into();
    canonical::encode(&fields)
}

struct World {
    database: Firestore,
    repository: Repository,
    model: Model,
}

impl World {
    async fn new(address: &str, documents: u64) -> Self {
        let mut world = Self {
            database: connect(address, &project("groups"), "(default)").await,
            repository: repository(small_segments()).await,
            model: Model::new(),
        };
        let all: Vec<(DocumentPath, Option<i64>)> = (0..documents)
            .map(|number| (path(number), Some(number as i64)))
            .collect();
        world.write(all).await;
        world
    }

    /// Gives documents a number, or takes them away.
    async fn write(&mut self, edits: Vec<(DocumentPath, Option<i64>)>) {
        let options = WriteOptions::new(&self.database);
        let mut writer = BulkWriter::new(&self.database, options, Vec::<WriteFailure>::new());
        let edits: BTreeMap<DocumentPath, Option<i64>> = edits.into_iter().collect();
        for (path, number) in edits {
            match number {
                Some(number) => {
                    writer.put(&path, &body(number)).await.unwrap();
                    self.model.insert(path, number);
                }
                None => {
                    writer.delete(&path).await.unwrap();
                    self.model.remove(&path);
                }
            }
        }
        assert_eq!(writer.finish().await.unwrap().failed, 0);
    }

    async fn back_up(&self, selection: &Selection, read: Option<ReadMode>, ranges: usize) -> BackupStats {
        let options = BackupOptions {
            selection: selection.clone(),
            ranges: Some(ranges),
            read,
            ..BackupOptions::default()
        };
        let stats = backup(&self.database, &self.repository, options, &Progress::new())
            .await
            .unwrap();
        self.check(&stats.snapshot, selection).await;
        stats
    }

    /// What is selected, and nothing else, is in the snapshot.
    async fn check(&self, snapshot: &Snapshot, selection: &Selection) {
        let mut expected = self.model.iter().filter(|(path, _)| {
            let in_collection = selection
                .collections
                .iter()
                .any(|collection| collection.key_range().contains(path.key().as_bytes()));
            let in_group = selection
                .collection_groups
                .iter()
                .any(|group| group == path.collection_group());
            in_collection || in_group
        });
        let mut batches = documents(&self.repository, snapshot).await;
        let mut found = 0;
        while let Some(batch) = batches.try_next().await.unwrap() {
            for document in batch.iter() {
                let (path, number) = expected.next().unwrap();
                assert_eq!(document.path().unwrap(), *path);
                assert_eq!(document.body, body(*number));
                found += 1;
            }
        }
        assert_eq!(expected.next(), None);
        assert_eq!(snapshot.documents, found);
    }

    /// The live database differs from the snapshot in so many documents.
    async fn differences(&self, snapshot: &Snapshot) -> usize {
        let reader = self.repository.reader(snapshot).await.unwrap();
        let now = self.database.current_read_time().await.unwrap();
        let options = DiffOptions::default();
        let differences = diff_live(&reader, &self.database, &ReadTimes::beginning_at(now), &options)
            .await
            .unwrap();
        let batches: Vec<Vec<_>> = differences.try_collect().await.unwrap();
        batches.iter().map(Vec::len).sum()
    }
}

fn groups(names: &[&str]) -> Selection {
    Selection::new(vec![], names.iter().map(ToString::to_string).collect())
}

fn with_users(names: &[&str]) -> Selection {
    let users = CollectionPath::parse("users").unwrap();
    Selection::new(vec![users], names.iter().map(ToString::to_string).collect())
}

/// First backups and nights of groups, alone, several at once, and beside a collection.
async fn groups_are_backed_up(mut world: World) {
    let selections = [
        groups(&["reviews"]),
        groups(&["items", "reviews"]),
        with_users(&["reviews", "users"]),
        groups(&["none"]),
    ];
    for (at, selection) in selections.iter().enumerate() {
        let first = world.back_up(selection, None, at * 3 + 1).await.snapshot;
        assert_eq!(first.parent, None);
    }
    let some: Vec<DocumentPath> = world.model.keys().cloned().collect();
    let changes = some.iter().step_by(7).enumerate();
    world
        .write(
            changes
                .map(|(at, path)| (path.clone(), (at % 3 > 0).then_some(-(at as i64))))
                .collect(),
        )
        .await;
    let new = (0..20).map(|number| {
        (
            DocumentPath::parse(format!("new/{number}/reviews/1")).unwrap(),
            Some(number),
        )
    });
    world.write(new.collect()).await;
    for (at, selection) in selections[..3].iter().enumerate() {
        for read in [ReadMode::Names, ReadMode::Full] {
            let night = world.back_up(selection, Some(read), 5 - at).await.snapshot;
            assert!(night.parent.is_some());
            assert_eq!(world.differences(&night).await, 0);
        }
    }
    world
        .write(vec![(DocumentPath::parse("x/1/reviews/2").unwrap(), Some(2))])
        .await;
    let night = &world.repository.snapshots().await.unwrap().snapshots;
    let of = |selection: &Selection| night.iter().find(|one| one.selection == *selection).unwrap();
    assert_eq!(world.differences(of(&selections[0])).await, 1);
    assert_intact(&world.repository, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_backed_up_by_themselves() {
    let sandbox = sandbox().await;
    groups_are_backed_up(World::new(&sandbox.address().to_string(), 4000).await).await;
}

/// The emulator offers no PartitionQuery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_groups_are_backed_up_by_themselves() {
    let Some(address) = emulator() else { return };
    groups_are_backed_up(World::new(address, 300).await).await;
}

/// A tenth of the documents is in the group, and a tenth is billed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_groups_documents_are_billed() {
    const DOCUMENTS: u64 = 20_000;
    const RANGES: u64 = 6;
    let sandbox: Sandbox = sandbox().await;
    let mut world = World::new(&sandbox.address().to_string(), DOCUMENTS).await;
    let selection = groups(&["reviews"]);
    let in_group = DOCUMENTS / 10;

    let before = sandbox.usage();
    let first = world.back_up(&selection, None, RANGES as usize).await;
    let usage = sandbox.usage().since(&before);
    assert_eq!(first.snapshot.documents, in_group);
    assert_eq!(first.billed_reads, usage.reads);
    assert!(usage.requests_of(Rpc::PartitionQuery) > 0);
    assert!(
        usage.requests_of(Rpc::RunQuery) > RANGES,
        "it was read in one range: {usage:?}"
    );
    // Beside the documents: the read time, the counts, and for each range an empty answer and a count of what is left.
    let beside = 5 + 3 * RANGES;
    assert!(usage.reads <= in_group + beside, "{usage:?}");

    let some: Vec<DocumentPath> = world.model.keys().cloned().collect();
    let changed: Vec<_> = some
        .iter()
        .filter(|path| path.collection_group() == "reviews")
        .take(50)
        .map(|path| (path.clone(), Some(1_000_000)))
        .collect();
    world.write(changed).await;
    let before = sandbox.usage();
    let night = world.back_up(&selection, None, RANGES as usize).await;
    let usage = sandbox.usage().since(&before);
    assert_eq!(night.snapshot.stats.read, ReadMode::Names);
    assert_eq!(night.snapshot.stats.changed_documents, 50);
    // And some of the unchanged, fetched to be sure.
    assert!(usage.reads <= in_group + 50 + 40 + beside, "{usage:?}");
}

/// A server that refuses queries over all collections answers those over a group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_need_no_query_over_all_collections() {
    let sandbox = sandbox().await;
    let world = World::new(&sandbox.address().to_string(), 2000).await;
    sandbox.faults().set(FaultPlan {
        refuse_kindless: true,
        ..FaultPlan::default()
    });
    let before = sandbox.usage();
    for ranges in [1, 3] {
        let stats = world.back_up(&groups(&["reviews", "items"]), None, ranges).await;
        assert_eq!(stats.snapshot.documents, 400);
    }
    let usage = sandbox.usage().since(&before);
    assert_eq!(usage.requests_of(Rpc::ListDocuments), 0, "nothing was walked");
}

#[test]
fn groups_are_named_on_the_command_line() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let whole = shop.firebank(["backup", "--json"]).json();
    let group = shop
        .firebank(["backup", "--collection-group", "reviews", "--json"])
        .json();
    let reviews = group["documents"].as_u64().unwrap();
    assert!(
        (1..whole["documents"].as_u64().unwrap()).contains(&reviews),
        "{group}"
    );
    let billed = group["billed_reads"].as_u64().unwrap();
    assert!(billed <= reviews + 10, "{group}");
    let night = shop
        .firebank(["backup", "--collection-group", "reviews", "--json"])
        .json();
    assert_eq!(night["parent"], group["snapshot"]);
    let listed = shop.run(["ls", night["snapshot"].as_str().unwrap()]).done();
    assert_eq!(listed.lines().count() as u64, reviews, "{listed}");
    assert!(listed.lines().all(|line| line.contains("/reviews/")), "{listed}");
    // `latest` is of the whole database.
    let latest = shop.run(["show", "latest", "--json"]).json();
    assert_eq!(latest["documents"], whole["documents"]);

    let nothing = shop.firebank(["backup", "--collection-group", "reviws"]);
    assert_eq!(nothing.code, 3, "{nothing}");
    assert!(nothing.stderr.contains("`reviws`"), "{nothing}");
    shop.firebank(["backup", "--collection-group", "products/p1/reviews"])
        .fails(2, &["collection group"]);
    shop.firebank(["backup", "--format", "json", "--collection-group", "reviews"])
        .fails(2, &["snapshots"]);
}
