//! Backups that build upon the one before: what they store, what they read, and that every snapshot stays what it was.

use std::collections::{BTreeMap, BTreeSet};

use firebank::archive::{ArchiveError, Count, Parameters, ReadMode, Repository, Selection, Snapshot};
use firebank::backup::{BackupError, BackupOptions, BackupStats, Parent, backup};
use firebank::document::{CollectionPath, DocumentPath, Fields, KeyRange, Value, canonical};
use firebank::firestore::{BulkWriter, Firestore, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, Sandbox, SandboxConfig, SyntheticSpec, When};
use futures::TryStreamExt;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tonic::Code;

use crate::support::operations::*;
use crate::support::{emulator, project, sandbox, sandbox_with};

/// What the database should hold: a number for each document.
type Model = BTreeMap<String, i64>;

/// Documents with such a number and above are large.
const LARGE: i64 = 1_000_000;

fn fields(number: i64) -> Fields {
    let padding = match number {
        LARGE.. => {
            let mut random = SmallRng::seed_from_u64(number as u64);
            (0..20_000)
                .map(|_| random.sample(rand::distr::Alphanumeric) as char)
                .collect()
        }
        _ => format!("{number:x}").repeat(20 + (number % 40) as usize),
    };
    [
        ("number".to_owned(), Value::Integer(number)),
        ("padding".to_owned(), Value::String(padding)),
    ]
    .into()
}

/// A place for document `number`: four collections, some of them below documents, some below missing ones.
fn path(number: u64) -> String {
    match number % 5 {
        0 => format!("orders/{number}"),
        1 => format!("orders/{}/items/{number}", number - 1),
        2 => format!("missing/{number}/items/{number}"),
        3 => format!("products/__id{number}__"),
        _ => format!("users/ü{number}"),
    }
}

struct World {
    sandbox: Option<Sandbox>,
    database: Firestore,
    repository: Repository,
    model: Model,
    random: SmallRng,
    nights: Vec<(Snapshot, Model)>,
}

impl World {
    async fn open(seed: u64) -> Self {
        let sandbox = sandbox().await;
        let address = sandbox.address().to_string();
        Self::at(&address, Some(sandbox), seed).await
    }

    async fn at(address: &str, sandbox: Option<Sandbox>, seed: u64) -> Self {
        let project = project("nights");
        Self {
            database: connect(address, &project, "(default)").await,
            sandbox,
            repository: repository(small_segments()).await,
            model: Model::new(),
            random: SmallRng::seed_from_u64(seed),
            nights: Vec::new(),
        }
    }

    fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().unwrap()
    }

    /// Makes the database what the model becomes.
    async fn change(&mut self, change: impl FnOnce(&mut Model, &mut SmallRng)) {
        let before = self.model.clone();
        change(&mut self.model, &mut self.random);
        let options = WriteOptions::new(&self.database);
        let mut writer = BulkWriter::new(&self.database, options, Vec::<WriteFailure>::new());
        for (path, number) in &self.model {
            if before.get(path) != Some(number) {
                let path = DocumentPath::parse(path.as_str()).unwrap();
                writer
                    .put(&path, &canonical::encode(&fields(*number)))
                    .await
                    .unwrap();
            }
        }
        for path in before.keys().filter(|path| !self.model.contains_key(*path)) {
            writer
                .delete(&DocumentPath::parse(path.as_str()).unwrap())
                .await
                .unwrap();
        }
        let stats = writer.finish().await.unwrap();
        assert_eq!(stats.failed, 0);
    }

    async fn fill(&mut self, documents: u64) {
        self.change(|model, _| model.extend((0..documents).map(|number| (path(number), number as i64))))
            .await;
    }

    /// Some documents are changed, some are new and some go away.
    async fn churn(&mut self, changes: usize) {
        self.change(|model, random| {
            let paths: Vec<String> = model.keys().cloned().collect();
            for _ in 0..changes {
                let some = &paths[random.random_range(0..paths.len())];
                match random.random_range(0..4) {
                    0 => drop(model.remove(some)),
                    1 => drop(model.insert(
                        path(random.random_range(0..100_000)),
                        random.random_range(0..1000),
                    )),
                    _ => drop(model.insert(some.clone(), random.random_range(0..1000))),
                }
            }
        })
        .await;
    }

    async fn back_up(&mut self, read: ReadMode, ranges: usize) -> BackupStats {
        let before = self.nights.last().map(|(_, model)| model.clone());
        let parent = self.nights.last().map(|(snapshot, _)| snapshot.clone());
        let night = try_back_up_changes(&self.database, &self.repository, read, ranges)
            .await
            .unwrap();
        let snapshot = night.snapshot.clone();
        assert_eq!(snapshot.parent, parent.as_ref().map(|parent| parent.id));
        check(&self.repository, &snapshot, &self.model).await;
        check_counts(&snapshot, &before.unwrap_or_default(), &self.model);
        self.nights.push((snapshot, self.model.clone()));
        night
    }

    /// Every snapshot is still what it was.
    async fn check_all(&self) {
        for (snapshot, model) in &self.nights {
            check(&self.repository, snapshot, model).await;
        }
        assert_intact(&self.repository, self.nights.len() as u64).await;
    }
}

/// Panics unless the snapshot holds exactly the model, to the bit.
async fn check(repository: &Repository, snapshot: &Snapshot, model: &Model) {
    let mut batches = documents(repository, snapshot).await;
    let mut expected: Vec<(DocumentPath, i64)> = model
        .iter()
        .map(|(path, number)| (DocumentPath::parse(path.as_str()).unwrap(), *number))
        .collect();
    expected.sort();
    let mut expected = expected.into_iter();
    while let Some(batch) = batches.try_next().await.unwrap() {
        for document in batch.iter() {
            let (path, number) = expected.next().unwrap();
            assert_eq!(document.path().unwrap(), path);
            assert_eq!(document.body, canonical::encode(&fields(number)), "{path}");
        }
    }
    assert_eq!(expected.next(), None);
}

/// Panics unless the snapshot's counts are those of the model.
fn check_counts(snapshot: &Snapshot, before: &Model, model: &Model) {
    let mut collections: BTreeMap<String, Count> = BTreeMap::new();
    let mut groups: BTreeMap<String, Count> = BTreeMap::new();
    for (path, number) in model {
        let path = DocumentPath::parse(path.as_str()).unwrap();
        let one = Count {
            documents: 1,
            bytes: canonical::encode(&fields(*number)).len() as u64,
        };
        collections
            .entry(path.root_collection().to_owned())
            .or_default()
            .add(one);
        groups
            .entry(path.collection_group().to_owned())
            .or_default()
            .add(one);
    }
    assert_eq!(snapshot.collections, collections);
    assert_eq!(snapshot.collection_groups, groups);
    assert_eq!(snapshot.documents, model.len() as u64);
    let bytes: u64 = collections.values().map(|count| count.bytes).sum();
    assert_eq!(snapshot.body_bytes, bytes);
    let stats = &snapshot.stats;
    let added = model.keys().filter(|path| !before.contains_key(*path)).count() as u64;
    let changed = model
        .iter()
        .filter(|(path, number)| before.get(*path).is_some_and(|old| old != *number))
        .count() as u64;
    let deleted = before.keys().filter(|path| !model.contains_key(*path)).count() as u64;
    assert_eq!(
        (
            stats.new_documents,
            stats.changed_documents,
            stats.deleted_documents
        ),
        (added, changed, deleted)
    );
    if snapshot.parent.is_some() {
        assert_eq!(stats.unchanged_documents, model.len() as u64 - added - changed);
    }
}

async fn nights(mut world: World, documents: u64, nights: usize) {
    world.fill(documents).await;
    world.back_up(ReadMode::Names, 3).await;
    for night in 0..nights {
        world.churn(documents as usize / 40).await;
        let read = [ReadMode::Names, ReadMode::Full][night % 2];
        let ranges = [1, 4, 16, 64][night % 4];
        let stats = world.back_up(read, ranges).await;
        assert_eq!(stats.snapshot.stats.read, read);
        assert_eq!(stats.snapshot.runs.len(), night + 2);
    }
    world.check_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_night_is_what_the_database_was() {
    nights(World::open(1).await, 1200, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_nights_are_what_the_database_was() {
    let Some(address) = emulator() else { return };
    nights(World::at(address, None, 2).await, 200, 4).await;
}

/// Nothing changed: the same stack, and no chunk, run or body more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_night_stores_nothing() {
    let mut world = World::open(3).await;
    world.fill(800).await;
    let first = world.back_up(ReadMode::Full, 2).await.snapshot;
    let stored = objects(&world.repository, "chunks").await;
    for (read, ranges) in [(ReadMode::Names, 1), (ReadMode::Full, 7), (ReadMode::Names, 64)] {
        let night = world.back_up(read, ranges).await.snapshot;
        assert_eq!(night.runs, first.runs);
        assert_eq!(night.stats.stored_bytes, 0);
    }
    assert_eq!(objects(&world.repository, "chunks").await, stored);
    assert_eq!(objects(&world.repository, "runs").await, BTreeSet::new());
    world.check_all().await;
}

async fn objects(repository: &Repository, folder: &str) -> BTreeSet<String> {
    let names = repository.store().list(folder).map_ok(|object| object.name);
    names.try_collect().await.unwrap()
}

/// Both ways to read, in any ranges, store the same chunks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_and_readings_make_no_difference() {
    let mut world = World::open(4).await;
    world.fill(2500).await;
    let parent = world.back_up(ReadMode::Full, 1).await.snapshot;
    world.churn(120).await;
    let mut stored = Vec::new();
    for read in [ReadMode::Names, ReadMode::Full] {
        for ranges in [1, 16, 64] {
            let options = BackupOptions {
                ranges: Some(ranges),
                read: Some(read),
                parent: Parent::Snapshot(parent.id.to_string()),
                ..BackupOptions::default()
            };
            let night = backup(&world.database, &world.repository, options, &Progress::new())
                .await
                .unwrap()
                .snapshot;
            check(&world.repository, &night, &world.model).await;
            check_counts(&night, &world.nights[0].1, &world.model);
            let suffix = format!("-{}", night.id);
            let chunks: BTreeSet<String> = objects(&world.repository, "chunks")
                .await
                .iter()
                .filter_map(|name| name.strip_suffix(&suffix).map(str::to_owned))
                .collect();
            stored.push((chunks, night.stats.stored_bytes, night.stats.new_bytes));
        }
    }
    let (first, bytes, new) = &stored[0];
    assert!(first.len() >= 3, "{first:?}");
    for (chunks, stored_bytes, new_bytes) in &stored[1..] {
        // All but the directory, which names the chunks with their session.
        assert_eq!(chunks.len(), first.len());
        assert_eq!(chunks.intersection(first).count(), first.len() - 1);
        assert_eq!((stored_bytes, new_bytes), (bytes, new));
    }
}

/// Ranges with much to write make chunks of their own, beside ranges that leave theirs to their neighbours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_small_changes_stand_side_by_side() {
    let mut world = World::open(15).await;
    world.fill(1500).await;
    world.back_up(ReadMode::Full, 2).await;
    for ranges in [1, 2, 3, 5, 16] {
        world.churn(50).await;
        // Two megabytes in one collection, less in the next one.
        world
            .change(|model, random| {
                let large = random.random_range(LARGE..2 * LARGE);
                let some = model
                    .iter_mut()
                    .enumerate()
                    .filter(|(at, (path, _))| match path.as_str() {
                        path if path.starts_with("orders/") => at % 5 == 0,
                        path => path.starts_with("products/") && at % 40 == 0,
                    });
                some.for_each(|(at, (_, number))| *number = large + at as i64);
            })
            .await;
        let stats = world.back_up(ReadMode::Names, ranges).await.snapshot.stats;
        assert!(stats.new_bytes > 2 << 20, "{stats:?}");
        assert!(stats.stored_bytes < stats.new_bytes, "{stats:?}");
    }
    world.check_all().await;
}

/// Many documents in a row that are gone: the server must count none in their place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wide_gap_is_counted() {
    let mut world = World::open(16).await;
    world.fill(2000).await;
    world.back_up(ReadMode::Full, 1).await;
    let counts = async |world: &mut World| {
        let before = world.sandbox().usage();
        world.back_up(ReadMode::Names, 1).await;
        world
            .sandbox()
            .usage()
            .since(&before)
            .requests_of(Rpc::RunAggregationQuery)
    };
    world.churn(30).await;
    assert_eq!(counts(&mut world).await, 1);
    world
        .change(|model, _| model.retain(|path, _| !path.starts_with("products/")))
        .await;
    assert_eq!(counts(&mut world).await, 2);
    // A server that does not count is asked for names instead.
    world
        .change(|model, _| model.retain(|path, _| !path.starts_with("missing/")))
        .await;
    let effect = Effect::Status(Code::Unimplemented, "not here".to_owned());
    world
        .sandbox()
        .faults()
        .add(Fault::new(Rpc::RunAggregationQuery, When::Always, effect));
    assert_eq!(counts(&mut world).await, 2);
    world.check_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_away_and_comes_back() {
    let mut world = World::open(5).await;
    world.fill(600).await;
    world.back_up(ReadMode::Names, 4).await;
    // A whole collection, and everything below a document.
    world
        .change(|model, _| {
            model.retain(|path, _| !path.starts_with("products/") && !path.starts_with("orders/10/"))
        })
        .await;
    world.back_up(ReadMode::Names, 4).await;
    // Deleted and made again with the same fields: the times are others.
    let kept = world.model.clone();
    world
        .change(|model, _| model.retain(|path, _| !path.starts_with("users/")))
        .await;
    world.change(|model, _| *model = kept).await;
    let night = try_back_up_changes(&world.database, &world.repository, ReadMode::Names, 4)
        .await
        .unwrap()
        .snapshot;
    check(&world.repository, &night, &world.model).await;
    let users = world
        .model
        .keys()
        .filter(|path| path.starts_with("users/"))
        .count() as u64;
    assert_eq!(
        (night.stats.changed_documents, night.stats.new_documents),
        (users, 0)
    );
    world.nights.push((night, world.model.clone()));
    // Everything, and everything back.
    let kept = world.model.clone();
    world.change(|model, _| model.clear()).await;
    let night = world.back_up(ReadMode::Names, 4).await.snapshot;
    assert_eq!(night.documents, 0);
    world.change(|model, _| *model = kept).await;
    // An empty snapshot is nothing to build upon.
    let night = try_back_up_changes(&world.database, &world.repository, ReadMode::Names, 4)
        .await
        .unwrap()
        .snapshot;
    assert_eq!(night.parent, None);
    check(&world.repository, &night, &world.model).await;
    world.nights.push((night, world.model.clone()));
    world.check_all().await;
}

/// Takes nights collection by collection; the nights in between are taken the usual way by another connection.
async fn walked_nights(mut world: World, documents: u64) {
    let usual = world.database.clone();
    let walking = connect_again(&world).await;
    world.fill(documents).await;
    for (night, read) in [
        ReadMode::Full,
        ReadMode::Names,
        ReadMode::Names,
        ReadMode::Full,
        ReadMode::Names,
    ]
    .into_iter()
    .enumerate()
    {
        world.database = [&walking, &usual][usize::from(night == 2)].clone();
        world.back_up(read, [1, 3, 16][night % 3]).await;
        world.churn(documents as usize / 10).await;
    }
    // Only some of it.
    world.database = walking;
    for parent in [Parent::None, Parent::Newest] {
        let below = CollectionPath::parse("orders/10/items").unwrap();
        let some = Selection::new(vec![below, CollectionPath::parse("users").unwrap()], vec![]);
        let taken = with(&world, some, parent).await.unwrap();
        let of_users = |path: &String| path.starts_with("users/") || path.starts_with("orders/10/items/");
        let mut model = world.model.clone();
        model.retain(|path, _| of_users(path));
        check(&world.repository, &taken, &model).await;
        world.nights.push((taken, model));
        world
            .change(|model, _| *model.get_mut("users/ü4").unwrap() += 1)
            .await;
    }
    world.check_all().await;
}

async fn connect_again(world: &World) -> Firestore {
    let address = match &world.sandbox {
        Some(sandbox) => sandbox.address().to_string(),
        None => emulator().unwrap().to_owned(),
    };
    let project = &world.database.database().project;
    let database = connect(&address, project, "(default)").await;
    database.walk();
    database
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_finds_what_a_query_finds() {
    walked_nights(World::open(12).await, 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_a_walk_finds_what_a_query_finds() {
    let Some(address) = emulator() else { return };
    walked_nights(World::at(address, None, 13).await, 60).await;
}

/// A server that refuses queries over all collections is read another way without being told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_kindless_queries_is_walked() {
    let mut world = World::open(14).await;
    world.fill(500).await;
    let later = |rpc, n| {
        let status = Effect::Status(Code::Unavailable, "later".to_owned());
        Fault::new(rpc, When::EveryNth(n), status)
    };
    for (night, faults) in [
        vec![],
        vec![],
        vec![later(Rpc::ListDocuments, 2), later(Rpc::ListCollectionIds, 7)],
    ]
    .into_iter()
    .enumerate()
    {
        world.sandbox().faults().set(FaultPlan {
            refuse_kindless: true,
            faults,
            ..FaultPlan::default()
        });
        assert_eq!(world.database.walks(), night > 0);
        let before = world.sandbox().usage();
        world.back_up(ReadMode::Names, 4).await;
        let usage = world.sandbox().usage().since(&before);
        assert!(usage.requests_of(Rpc::ListDocuments) > 4, "{usage:?}");
        assert!(usage.requests_of(Rpc::RunQuery) <= 1, "{usage:?}");
        world.sandbox().faults().clear();
        world.churn(30).await;
    }
    world.check_all().await;
}

fn complete_after(when: When, documents: u64) -> FaultPlan {
    let effect = Effect::CompleteAfter { documents };
    FaultPlan {
        faults: vec![Fault::new(Rpc::RunQuery, when, effect)],
        ..FaultPlan::default()
    }
}

/// Streams that end short with OK, and say that they are complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_ends_short_deletes_nothing() {
    let mut world = World::open(6).await;
    world.fill(700).await;
    world.back_up(ReadMode::Names, 3).await;
    for read in [ReadMode::Names, ReadMode::Full] {
        world.churn(20).await;
        for (ranges, plan) in [
            (3, complete_after(When::EveryNth(2), 0)),
            (3, complete_after(When::EveryNth(3), 7)),
            (3, complete_after(When::Always, 50)),
            // The count is no help, so a second query has to do. In one range, so that no range meets two faults in a row,
            // which nobody could tell from the end.
            (
                1,
                FaultPlan {
                    faults: vec![
                        Fault::new(Rpc::RunAggregationQuery, When::Always, refused()),
                        Fault::new(
                            Rpc::RunQuery,
                            When::EveryNth(4),
                            Effect::CompleteAfter { documents: 0 },
                        ),
                    ],
                    ..FaultPlan::default()
                },
            ),
        ] {
            world.sandbox().faults().set(plan);
            let night = try_back_up_changes(&world.database, &world.repository, read, ranges)
                .await
                .unwrap()
                .snapshot;
            world.sandbox().faults().clear();
            check(&world.repository, &night, &world.model).await;
            world.nights.push((night, world.model.clone()));
        }
        // Again and again: an error that says where, and no snapshot.
        world.sandbox().faults().set(complete_after(When::After(1), 0));
        let failed = try_back_up_changes(&world.database, &world.repository, read, 1).await;
        world.sandbox().faults().clear();
        let Err(BackupError::Contradiction { documents, .. }) = failed else {
            panic!("{failed:?}")
        };
        assert_eq!(documents, world.model.len() as u64);
    }
    // A first backup leaves nothing out either.
    world.sandbox().faults().set(complete_after(When::EveryNth(2), 0));
    let first = back_up(&world.database, &world.repository, 4).await;
    world.sandbox().faults().clear();
    check(&world.repository, &first, &world.model).await;
    world.nights.push((first, world.model.clone()));
    world.check_all().await;
}

fn refused() -> Effect {
    Effect::Status(Code::Unimplemented, "not here".to_owned())
}

/// Where most documents have changed, whole documents are read; where few have, they are fetched by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_left_where_most_documents_have_changed() {
    let mut world = World::open(7).await;
    world.fill(6000).await;
    world.back_up(ReadMode::Names, 1).await;
    world.churn(30).await;
    let before = world.sandbox().usage();
    world.back_up(ReadMode::Names, 1).await;
    let usage = world.sandbox().usage().since(&before);
    assert_eq!(usage.requests_of(Rpc::BatchGetDocuments), 1);
    world
        .change(|model, _| model.values_mut().for_each(|number| *number += 1))
        .await;
    let before = world.sandbox().usage();
    world.back_up(ReadMode::Names, 1).await;
    let usage = world.sandbox().usage().since(&before);
    // The window of a thousand names, by three hundred.
    assert!(usage.requests_of(Rpc::BatchGetDocuments) <= 6, "{usage:?}");
    world.check_all().await;
}

/// Documents of the same names and times with other fields: no real server has them, unless its times lie.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_of_the_unchanged_is_compared() {
    async fn served(document_bytes: usize) -> (Sandbox, Firestore) {
        let sandbox = sandbox_with(SandboxConfig {
            synthetic: vec![SyntheticSpec::new("products", 12, document_bytes)],
            ..SandboxConfig::default()
        })
        .await;
        let database = connect(&sandbox.address().to_string(), "demo-shop", "(default)").await;
        (sandbox, database)
    }
    let (_first, before) = served(400).await;
    let (_second, after) = served(500).await;
    let repository = repository(small_segments()).await;
    back_up(&before, &repository, 1).await;
    let night = try_back_up_changes(&after, &repository, ReadMode::Names, 1)
        .await
        .unwrap()
        .snapshot;
    // Of so few every second one is a sample.
    assert_eq!(night.stats.changed_documents, 12, "{:?}", night.stats);
    assert_snapshot_is(&repository, &night, &after).await;
}

/// A name that was listed and cannot be fetched at the same moment is no deletion, and no document left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_is_fetched_whatever_happens_to_the_calls() {
    let mut world = World::open(8).await;
    world.fill(500).await;
    world.back_up(ReadMode::Names, 2).await;
    let cut = |documents| Effect::CutAfter {
        documents,
        code: Code::Unavailable,
    };
    for effect in [
        cut(0),
        cut(9),
        Effect::EndAfter { documents: 5 },
        Effect::ResetAfter { documents: 3 },
        Effect::Status(Code::ResourceExhausted, "later".to_owned()),
    ] {
        world.churn(60).await;
        let get = Fault::new(Rpc::BatchGetDocuments, When::EveryNth(2), effect.clone());
        let query = Fault::new(Rpc::RunQuery, When::EveryNth(3), effect);
        world.sandbox().faults().set(FaultPlan {
            faults: vec![get, query],
            ..FaultPlan::default()
        });
        world.back_up(ReadMode::Names, 4).await;
        world.sandbox().faults().clear();
    }
    world.check_all().await;
}

async fn with(world: &World, selection: Selection, parent: Parent) -> Result<Snapshot, BackupError> {
    let options = BackupOptions {
        selection,
        parent,
        ..BackupOptions::default()
    };
    let stats = backup(&world.database, &world.repository, options, &Progress::new()).await?;
    Ok(stats.snapshot)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parent_is_the_newest_of_the_same() {
    let mut world = World::open(9).await;
    world.fill(300).await;
    let products = Selection::new(vec![CollectionPath::parse("products").unwrap()], vec![]);
    let group = Selection::new(vec![], vec!["items".to_owned()]);
    let whole = with(&world, Selection::all(), Parent::Newest).await.unwrap();
    let some = with(&world, products.clone(), Parent::Newest).await.unwrap();
    let grouped = with(&world, group.clone(), Parent::Newest).await.unwrap();
    assert_eq!((whole.parent, some.parent, grouped.parent), (None, None, None));
    let items = world.model.keys().filter(|path| path.contains("/items/")).count() as u64;
    assert_eq!(grouped.documents, items);
    world.churn(20).await;
    let second = with(&world, Selection::all(), Parent::Newest).await.unwrap();
    assert_eq!(second.parent, Some(whole.id));
    let second_some = with(&world, products.clone(), Parent::Newest).await.unwrap();
    assert_eq!(second_some.parent, Some(some.id));
    let second_group = with(&world, group, Parent::Newest).await.unwrap();
    assert_eq!(second_group.parent, Some(grouped.id));
    let items: Model = world
        .model
        .clone()
        .into_iter()
        .filter(|(path, _)| path.contains("/items/"))
        .collect();
    check(&world.repository, &second_group, &items).await;
    assert_eq!(second_group.documents, items.len() as u64);
    // By name, and none at all.
    let third = with(&world, Selection::all(), Parent::Snapshot(whole.id.to_string()))
        .await
        .unwrap();
    assert_eq!((third.parent, third.runs.len()), (Some(whole.id), 2));
    let fourth = with(&world, Selection::all(), Parent::None).await.unwrap();
    assert_eq!((fourth.parent, fourth.runs.len()), (None, 1));
    check(&world.repository, &third, &world.model).await;
    check(&world.repository, &fourth, &world.model).await;
    // Of another selection, of another database, and no snapshot.
    for wanted in [some.id.to_string(), "ffffffffffffffff".to_owned()] {
        let failed = with(&world, Selection::all(), Parent::Snapshot(wanted)).await;
        let error = failed.unwrap_err().to_string();
        assert!(
            error.contains("another selection") || error.contains("no snapshot"),
            "{error}"
        );
    }
    let address = world.sandbox().address().to_string();
    let other = connect(&address, &project("other"), "(default)").await;
    let options = |parent| BackupOptions {
        parent,
        ..BackupOptions::default()
    };
    let elsewhere = backup(
        &other,
        &world.repository,
        options(Parent::Newest),
        &Progress::new(),
    )
    .await
    .unwrap();
    assert_eq!(elsewhere.snapshot.parent, None);
    let failed = backup(
        &other,
        &world.repository,
        options(Parent::Snapshot(second.id.to_string())),
        &Progress::new(),
    )
    .await;
    let error = failed.unwrap_err();
    assert!(
        matches!(&error, BackupError::NotAParent { why, .. } if why.contains("another database")),
        "{error}"
    );
    // What was forgotten is no parent.
    for forgotten in [&whole, &second, &third, &fourth] {
        let name = forgotten.id.forgotten_name();
        world
            .repository
            .store()
            .put_new(&name, bytes::Bytes::from_static(b"{}"))
            .await
            .unwrap();
    }
    assert_eq!(
        with(&world, Selection::all(), Parent::Newest)
            .await
            .unwrap()
            .parent,
        None
    );
    let failed = with(&world, Selection::all(), Parent::Snapshot(whole.id.to_string())).await;
    assert!(
        matches!(
            failed,
            Err(BackupError::Archive(ArchiveError::UnknownSnapshot { .. }))
        ),
        "{failed:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_parent_is_said_and_full_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::open(10).await;
    let store = firebank::store::Store::create_local(folder.path().to_str().unwrap()).unwrap();
    world.repository = repository_in(store, small_segments()).await;
    world.fill(400).await;
    let parent = world.back_up(ReadMode::Names, 1).await.snapshot;
    world.churn(20).await;
    // Every index and directory chunk in turn.
    for name in objects(&world.repository, "chunks").await {
        let file = folder.path().join(&name);
        let bytes = std::fs::read(&file).unwrap();
        if bytes[9] == 1 {
            continue;
        }
        std::fs::remove_file(&file).unwrap();
        let failed = with(&world, Selection::all(), Parent::Newest).await;
        let error = failed.unwrap_err();
        assert!(
            matches!(&error, BackupError::DamagedParent { snapshot, .. } if *snapshot == parent.id),
            "{error}"
        );
        assert!(error.to_string().contains("--full"), "{error}");
        let full = with(&world, Selection::all(), Parent::None).await.unwrap();
        check(&world.repository, &full, &world.model).await;
        std::fs::write(&file, bytes).unwrap();
        let forgotten = full.id.forgotten_name();
        world
            .repository
            .store()
            .put_new(&forgotten, bytes::Bytes::from_static(b"{}"))
            .await
            .unwrap();
    }
    world.back_up(ReadMode::Names, 2).await;
}

/// What a night without changes asks of the store: see `firebank::backup`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_night_costs_what_the_formula_says() {
    let mut world = World::open(11).await;
    world.fill(1500).await;
    world.back_up(ReadMode::Full, 1).await;
    for night in 0..6 {
        let parts = [1, 8, 64][night % 3];
        let (parent, _) = world.nights.last().unwrap();
        let reader = world.repository.reader(parent).await.unwrap();
        let boundaries = reader.page_boundaries(parts).await.unwrap();
        let ranges: Vec<KeyRange> = (0..=boundaries.len())
            .map(|range| KeyRange {
                start: range.checked_sub(1).map(|before| boundaries[before].clone()),
                end: boundaries.get(range).cloned(),
            })
            .collect();
        let blocks: Vec<_> = reader.blocks().try_collect().await.unwrap();
        // Also one in which ranges meet is read once for all of them.
        let entries = blocks.iter().flat_map(|block| &block.entries);
        let pages: usize = entries.map(|entry| entry.pages.len()).sum();
        let roots = parent.runs.iter().filter(|run| run.root.is_none()).count();
        let snapshots = world.nights.len();

        let store = world.repository.store().clone();
        let before = store.requests();
        let read = [ReadMode::Names, ReadMode::Full][night % 2];
        try_back_up_changes(&world.database, &world.repository, read, parts)
            .await
            .unwrap();
        let after = store.requests();
        let seen = [
            after.list - before.list,
            after.head - before.head,
            after.get - before.get,
            after.get_range - before.get_range,
            after.put_create - before.put_create,
            after.put - before.put + after.delete - before.delete,
        ];
        let expected = [
            2,
            3,
            snapshots + 3,
            roots + blocks.len() + pages,
            ranges.len() + 3,
            0,
        ];
        assert_eq!(seen.map(|count| count as usize), expected, "night {night}");
        // And a layer more for the next one.
        let listing = world.repository.snapshots().await.unwrap();
        world
            .nights
            .push((listing.snapshots[0].clone(), world.model.clone()));
        world.churn(40).await;
        world.back_up(ReadMode::Names, 4).await;
    }
    world.check_all().await;
}

/// Made-up documents of everyday size under random ids, a few of which are changed, added and deleted each night.
struct Scattered {
    _sandboxes: [Sandbox; 2],
    database: Firestore,
    /// Documents to take bodies from.
    others: Firestore,
    paths: Vec<DocumentPath>,
    random: SmallRng,
}

impl Scattered {
    async fn open(documents: u64) -> Self {
        let start = async |seed| {
            sandbox_with(SandboxConfig {
                synthetic: vec![SyntheticSpec {
                    seed,
                    ..SyntheticSpec::new("products", documents, 840)
                }],
                ..SandboxConfig::default()
            })
            .await
        };
        let sandboxes = [start(1).await, start(2).await];
        let connected =
            async |sandbox: &Sandbox| connect(&sandbox.address().to_string(), "demo-shop", "(default)").await;
        let database = connected(&sandboxes[0]).await;
        let paths = scan(&database)
            .await
            .try_fold(Vec::new(), async |mut paths, batch| {
                paths.extend(batch.iter().map(|document| document.path().unwrap()));
                Ok(paths)
            })
            .await
            .unwrap();
        Self {
            others: connected(&sandboxes[1]).await,
            database,
            _sandboxes: sandboxes,
            paths,
            random: SmallRng::seed_from_u64(7),
        }
    }

    /// Changes documents, and says how many bytes zstd makes of the changed ones' bodies.
    async fn night(&mut self, updated: usize, inserted: usize, deleted: usize) -> u64 {
        let mut writer = BulkWriter::new(
            &self.database,
            WriteOptions::new(&self.database),
            Vec::<WriteFailure>::new(),
        );
        let mut bodies = Vec::new();
        let mut touched = BTreeSet::new();
        while touched.len() < updated + deleted {
            touched.insert(self.random.random_range(0..self.paths.len()));
        }
        let mut targets: Vec<DocumentPath> = touched.iter().map(|&at| self.paths[at].clone()).collect();
        let gone: Vec<DocumentPath> = targets
            .iter()
            .step_by((updated + deleted) / deleted)
            .cloned()
            .collect();
        targets.retain(|path| !gone.contains(path));
        for _ in 0..inserted {
            let id: String = (0..20)
                .map(|_| self.random.sample(rand::distr::Alphanumeric) as char)
                .collect();
            targets.push(DocumentPath::parse(format!("products/{id}")).unwrap());
        }
        targets.sort();
        let time = self.others.current_read_time().await.unwrap();
        let range = CollectionPath::parse("products").unwrap().key_range();
        let mut sources = std::pin::pin!(
            self.others
                .scan(firebank::firestore::ScanOptions::new(range, time))
        );
        let skip = self.random.random_range(0..2000);
        let mut source = firebank::document::DocumentBatch::new();
        while source.len() < targets.len() + skip {
            let batch = sources.try_next().await.unwrap().unwrap();
            batch.iter().for_each(|document| source.push(document));
        }
        for (path, document) in targets.iter().zip(source.iter().skip(skip)) {
            writer.put(path, document.body).await.unwrap();
            bodies.extend_from_slice(document.body);
        }
        for path in &gone {
            writer.delete(path).await.unwrap();
        }
        assert_eq!(writer.finish().await.unwrap().failed, 0);
        self.paths.retain(|path| !gone.contains(path));
        zstd::bulk::compress(&bodies, 3).unwrap().len() as u64
    }
}

async fn stored_bytes(repository: &Repository) -> u64 {
    let mut bytes = 0;
    for folder in ["chunks", "runs"] {
        let sizes: Vec<u64> = repository
            .store()
            .list(folder)
            .map_ok(|object| object.size)
            .try_collect()
            .await
            .unwrap();
        bytes += sizes.iter().sum::<u64>();
    }
    bytes
}

/// Scattered changes cost what changed, whatever the ranges.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_stores_little_more_than_what_changed() {
    nights_store_little_more_than_what_changed(20_000, 6, 256).await;
}

/// The same at the size that file backup tools were measured at: 168 MB as JSON.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; the small one shows the same"]
async fn a_night_of_a_larger_database_stores_little_more_than_what_changed() {
    nights_store_little_more_than_what_changed(200_000, 3, 2048).await;
}

async fn nights_store_little_more_than_what_changed(documents: usize, nights: usize, page_records: u32) {
    let mut shop = Scattered::open(documents as u64).await;
    // Pages are as long as 64 ranges let them be.
    let repository = repository(Parameters {
        page_records,
        ..Parameters::with_seed(3)
    })
    .await;
    back_up(&shop.database, &repository, 1).await;
    let (updated, few) = (documents / 125, documents / 1000);
    for ranges in [1, 16, 64, 1, 64, 16].into_iter().take(nights) {
        let bare = shop.night(updated, few, few).await;
        let before = stored_bytes(&repository).await;
        let night = try_back_up_changes(&shop.database, &repository, ReadMode::Names, ranges)
            .await
            .unwrap();
        let stats = &night.snapshot.stats;
        assert_eq!(
            (stats.new_documents, stats.deleted_documents),
            (few as u64, few as u64)
        );
        let grown = stored_bytes(&repository).await - before;
        assert_eq!(stats.stored_bytes, grown);
        let checkpoints = format!("sessions/{}/checkpoints", night.snapshot.id);
        assert_eq!(objects(&repository, &checkpoints).await.len(), ranges);
        let ratio = grown as f64 / bare as f64;
        assert!(ratio <= 1.5, "{ranges} ranges: {grown} for {bare} bytes");
    }
    assert_intact(&repository, nights as u64 + 1).await;
}
