//! Backups that ask a field which documents have changed: what they cost, that they are what a reading of names gives, and what becomes
//! of each change that the field does not tell of.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use firebank::archive::{
    Consistency, ReadMode, Repository, Selection, Snapshot, SnapshotFilter, changes::changes,
};
use firebank::backup::{BackupError, BackupOptions, BackupStats, ChangeField, Parent, backup};
use firebank::clock;
use firebank::document::{DocumentPath, Fields, KeyRange, Timestamp, Value, canonical};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, Sandbox, When};
use firebank::stop::Stop;
use futures::TryStreamExt;
use tonic::Code;

use crate::cli_support::{SHOP, Shop};
use crate::support::operations::*;
use crate::support::{emulator, project, sandbox};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const FIELD: &str = "updated_at";
/// Longer ago than a backup ever asks.
const LONG_AGO: i64 = 3 * 24 * 3600;

fn path(text: impl Into<String>) -> DocumentPath {
    DocumentPath::parse(text.into()).unwrap()
}

/// So many seconds ago.
fn ago(seconds: i64) -> Value {
    let now = Timestamp::from(clock::now());
    Value::Timestamp(Timestamp::new(now.seconds - seconds, now.nanos / 1000 * 1000))
}

fn body(number: u64, field: Option<Value>) -> Vec<u8> {
    let mut fields: Fields = [
        ("number".to_owned(), Value::Integer(number as i64)),
        ("text".to_owned(), Value::String(format!("{number:x}").repeat(20))),
    ]
    .into();
    fields.extend(field.map(|value| (FIELD.to_owned(), value)));
    canonical::encode(&fields)
}

/// A place for document `number`: three groups side by side and below each other, one below missing documents.
fn place(number: u64) -> DocumentPath {
    let id = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
    path(match number % 10 {
        0..5 => format!("orders/{id:010x}"),
        5..7 => format!("users/{id:010x}"),
        7 => format!(
            "users/{:010x}/visits/{id:010x}",
            number.wrapping_mul(0x9e37_79b9) & 0xfff
        ),
        _ => format!("missing/{:03}/visits/{id:010x}", number % 100),
    })
}

struct World {
    sandbox: Option<Sandbox>,
    database: Firestore,
    repository: Repository,
    selection: Selection,
}

impl World {
    /// With so many documents that were all written long ago, by what they say, and a backup of them.
    async fn open(documents: u64) -> (Self, Snapshot) {
        let sandbox = sandbox().await;
        let address = sandbox.address().to_string();
        Self::at(&address, Some(sandbox), documents).await
    }

    async fn at(address: &str, sandbox: Option<Sandbox>, documents: u64) -> (Self, Snapshot) {
        let world = Self {
            database: connect(address, &project("changed"), "(default)").await,
            sandbox,
            repository: repository(small_segments()).await,
            selection: Selection::all(),
        };
        let old = ago(LONG_AGO);
        let all = (0..documents).map(|number| (place(number), Some(body(number, Some(old.clone())))));
        change_all(&world.database, all).await;
        let first = world.names().await.snapshot;
        (world, first)
    }

    fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().unwrap()
    }

    fn options(&self) -> BackupOptions {
        BackupOptions {
            selection: self.selection.clone(),
            ..BackupOptions::default()
        }
    }

    fn asking(&self) -> BackupOptions {
        BackupOptions {
            changed: Some(ChangeField {
                field: vec![FIELD.to_owned()],
                full_scan_every: WEEK,
            }),
            ..self.options()
        }
    }

    async fn back_up(&self, options: BackupOptions) -> BackupStats {
        backup(&self.database, &self.repository, options, &Progress::new())
            .await
            .unwrap()
    }

    async fn names(&self) -> BackupStats {
        let options = BackupOptions {
            read: Some(ReadMode::Names),
            ..self.options()
        };
        self.back_up(options).await
    }

    /// Names, upon the same parent as another backup.
    async fn names_beside(&self, other: &Snapshot) -> BackupStats {
        let options = BackupOptions {
            read: Some(ReadMode::Names),
            parent: Parent::Snapshot(other.parent.unwrap().to_string()),
            ..self.options()
        };
        self.back_up(options).await
    }

    async fn changed(&self) -> BackupStats {
        let stats = self.back_up(self.asking()).await;
        assert_eq!(stats.snapshot.stats.read, ReadMode::Changed);
        stats
    }

    /// The same, where nothing comes in the way of asking.
    async fn asked(&self) -> BackupStats {
        let stats = self.changed().await;
        assert_eq!(stats.names_instead, Vec::<String>::new());
        stats
    }

    async fn write(&self, documents: impl IntoIterator<Item = (&str, Option<Vec<u8>>)>) {
        let documents = documents.into_iter().map(|(text, body)| (path(text), body));
        change_all(&self.database, documents).await;
    }

    /// How the snapshot differs from the database.
    async fn differences(&self, snapshot: &Snapshot) -> Vec<String> {
        let names = self.names_beside(snapshot).await.snapshot;
        self.differences_of(snapshot, &names).await
    }

    async fn differences_of(&self, one: &Snapshot, other: &Snapshot) -> Vec<String> {
        let one = self.repository.reader(one).await.unwrap();
        let other = self.repository.reader(other).await.unwrap();
        let batches = changes(&one, &other, &KeyRange::all());
        let batches: Vec<_> = batches.try_collect().await.unwrap();
        let path = |key: &[u8]| DocumentPath::from_key(key).unwrap().to_string();
        let all = batches
            .iter()
            .flat_map(|batch| batch.iter().map(|change| path(change.key())));
        all.collect()
    }

    /// Panics unless the snapshot is what a reading of names gives, to the counts.
    async fn assert_as_names(&self, snapshot: &Snapshot) {
        let names = self.names_beside(snapshot).await.snapshot;
        assert_eq!(self.differences_of(snapshot, &names).await, Vec::<String>::new());
        assert_same_counts(snapshot, &names);
    }
}

fn assert_same_counts(one: &Snapshot, other: &Snapshot) {
    let counts = |snapshot: &Snapshot| {
        let stats = &snapshot.stats;
        (
            snapshot.documents,
            snapshot.body_bytes,
            [
                stats.new_documents,
                stats.changed_documents,
                stats.deleted_documents,
                stats.unchanged_documents,
            ],
            snapshot.collections.clone(),
            snapshot.collection_groups.clone(),
        )
    };
    assert_eq!(counts(one), counts(other));
}

fn reads(world: &World, before: u64) -> u64 {
    world.sandbox().usage().reads - before
}

/// A night in which of every thousand documents one has changed, and of every five thousand one has gone. Says what was billed for it,
/// and for reading names instead.
async fn billed(documents: u64) -> (u64, u64) {
    let (world, _) = World::open(documents).await;
    let now = ago(0);
    let edits = (0..documents).filter_map(|number| match number % 5000 {
        17 => Some((place(number), None)),
        n if n % 1000 == 3 => Some((place(number), Some(body(number + 1, Some(now.clone()))))),
        _ => None,
    });
    change_all(&world.database, edits.collect::<Vec<_>>()).await;
    let before = world.sandbox().usage().reads;
    let night = world.asked().await;
    let by_field = reads(&world, before);
    assert_eq!(night.billed_reads, by_field, "what is said is what is billed");
    assert_eq!(night.snapshot.stats.changed_documents, documents / 1000);
    assert_eq!(night.snapshot.stats.deleted_documents, documents / 5000);
    let before = world.sandbox().usage().reads;
    let names = world.names_beside(&night.snapshot).await.snapshot;
    let by_names = reads(&world, before);
    assert_eq!(
        world.differences_of(&night.snapshot, &names).await,
        Vec::<String>::new()
    );
    assert_same_counts(&night.snapshot, &names);
    (by_field, by_names)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_bills_in_proportion_to_the_change() {
    let (by_field, by_names) = billed(20_000).await;
    assert!(by_field * 20 < by_names, "{by_field} reads, {by_names} for names");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes in the profile of tests"]
async fn a_large_night_bills_in_proportion_to_the_change() {
    let (by_field, by_names) = billed(200_000).await;
    let said = format!("{by_field} reads by the field, {by_names} for names\n");
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    assert!(by_field * 20 < by_names, "{by_field} reads, {by_names} for names");
}

async fn nights(world: World, documents: u64, nights: u64) {
    let mut seed: u64 = 1;
    let mut chance = |of: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % of
    };
    for night in 0..nights {
        let now = ago(0);
        let mut edits = BTreeMap::new();
        for _ in 0..=chance(documents / 40) {
            let number = chance(documents + documents / 10);
            let edit = (chance(4) > 0).then(|| body(chance(1 << 30), Some(now.clone())));
            edits.insert(place(number), edit);
        }
        change_all(&world.database, edits).await;
        let options = BackupOptions {
            ranges: Some([1, 4, 16][night as usize % 3]),
            ..world.asking()
        };
        let snapshot = world.back_up(options).await.snapshot;
        assert_eq!(snapshot.stats.read, ReadMode::Changed);
        world.assert_as_names(&snapshot).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_night_is_what_names_give() {
    let (world, _) = World::open(4000).await;
    nights(world, 4000, 9).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_nights_are_what_names_give() {
    let Some(address) = emulator() else { return };
    let (world, _) = World::at(address, None, 600).await;
    nights(world, 600, 3).await;
}

/// Selections have no other documents, whatever the queries over collection groups bring.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selections_are_what_names_give() {
    let (mut world, _) = World::open(2000).await;
    let collection = |name: &str| firebank::document::CollectionPath::parse(name).unwrap();
    for (round, selection) in [
        Selection::new(vec![collection("users")], vec![]),
        Selection::new(vec![], vec!["visits".to_owned()]),
        Selection::new(
            vec![collection("missing")],
            vec!["orders".to_owned(), "visits".to_owned()],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        world.selection = selection;
        world.names().await;
        let now = ago(0);
        let edits = (0..2000).filter_map(|number| match (number + 7 * round as u64) % 97 {
            5 => Some((place(number), None)),
            6 => Some((place(number), Some(body(number + 7, Some(now.clone()))))),
            7 => Some((place(number + 10_000), Some(body(number, Some(now.clone()))))),
            _ => None,
        });
        change_all(&world.database, edits.collect::<Vec<_>>()).await;
        let night = world.asked().await.snapshot;
        assert!(
            night.stats.changed_documents > 0
                && night.stats.deleted_documents + night.stats.new_documents > 0
        );
        world.assert_as_names(&night).await;
    }
}

/// The time for the field is taken some time before the commit: such documents are found, as long as it is not too long before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_that_precede_their_commit_are_asked_for() {
    let (world, _) = World::open(3000).await;
    let orders: Vec<DocumentPath> = (0..60).map(|number| place(number * 10)).collect();
    let touch = async |number: usize, seconds: i64| {
        let changed = body(1_000_000 + number as u64, Some(ago(seconds)));
        change_all(&world.database, [(orders[number].clone(), Some(changed))]).await;
        orders[number].to_string()
    };
    // Within a quarter of an hour.
    touch(1, 14 * 60).await;
    world.assert_as_names(&world.asked().await.snapshot).await;
    // Beyond it. A reading of names finds the document, and how late it was.
    let late = touch(2, 40 * 60).await;
    let missed = world.asked().await.snapshot;
    assert_eq!(world.differences(&missed).await, [late]);
    let scan = BackupOptions {
        changed: Some(ChangeField {
            field: vec![FIELD.to_owned()],
            full_scan_every: Duration::ZERO,
        }),
        parent: Parent::Snapshot(missed.id.to_string()),
        ..world.options()
    };
    let healed = world.back_up(scan).await;
    assert_eq!(healed.snapshot.stats.read, ReadMode::Names);
    assert_eq!(healed.snapshot.stats.changed_documents, 1);
    assert!(
        healed.names_instead[0].contains("all names are read"),
        "{:?}",
        healed.names_instead
    );
    assert!(healed.snapshot.stats.largest_lag_micros >= 40 * 60 * 1_000_000);
    // From now on that is within.
    touch(3, 39 * 60).await;
    world.assert_as_names(&world.asked().await.snapshot).await;
    // And still is after a night that has seen no such lag.
    touch(4, 0).await;
    world.assert_as_names(&world.asked().await.snapshot).await;
    touch(5, 38 * 60).await;
    world.assert_as_names(&world.asked().await.snapshot).await;
}

/// Names are read when they were not for too long, and only then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_read_from_time_to_time() {
    let (world, first) = World::open(300).await;
    let every = |seconds| BackupOptions {
        changed: Some(ChangeField {
            field: vec![FIELD.to_owned()],
            full_scan_every: Duration::from_secs(seconds),
        }),
        ..world.options()
    };
    let night = world.back_up(every(3600)).await.snapshot;
    assert_eq!(night.stats.read, ReadMode::Changed);
    let second = world.back_up(every(3600)).await.snapshot;
    assert_eq!(
        (second.parent, second.stats.read),
        (Some(night.id), ReadMode::Changed)
    );
    let since_first = |time: Timestamp| time.seconds - first.read_time.seconds;
    while since_first(world.database.current_read_time().await.unwrap()) < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // It is the reading of names that counts, not the backups since.
    let third = world.back_up(every(2)).await;
    assert_eq!(third.snapshot.stats.read, ReadMode::Names);
    assert_eq!(third.names_instead.len(), 1, "{:?}", third.names_instead);
    let fourth = world.back_up(every(3600)).await.snapshot;
    assert_eq!(fourth.stats.read, ReadMode::Changed);
    // Nobody asks for the field: it is remembered all the same.
    let names = world.names().await.snapshot;
    assert_eq!(names.extra["changed"]["field"][0], FIELD);
    let whole = BackupOptions {
        parent: Parent::None,
        ..world.asking()
    };
    let whole = world.back_up(whole).await;
    assert_eq!(whole.snapshot.stats.read, ReadMode::Full);
    assert_eq!(whole.names_instead.len(), 1, "{:?}", whole.names_instead);
}

/// A parent of another selection is none: it would not know what was not selected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_selection_is_not_built_upon() {
    let (mut world, first) = World::open(500).await;
    world.selection = Selection::new(vec![], vec!["orders".to_owned()]);
    let orders = world.back_up(world.asking()).await;
    assert_eq!(
        (orders.snapshot.parent, orders.snapshot.stats.read),
        (None, ReadMode::Full)
    );
    assert_eq!(orders.names_instead.len(), 1);
    world.selection = Selection::all();
    let all = world.asked().await.snapshot;
    assert_eq!(all.parent, Some(first.id));
    world.assert_as_names(&all).await;
}

/// One group loses as many documents as another one gains, at the same place: the totals agree and the groups do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_collections_are_found() {
    let (world, _) = World::open(1500).await;
    let lines = ["cart/1/lines/a", "cart/1/lines/b", "cart/1/lines/c"];
    world
        .write(lines.map(|path| (path, Some(body(1, Some(ago(LONG_AGO)))))))
        .await;
    world.names().await;
    // Moved, with the field as it was.
    let moved = ["cart/1/moved/a", "cart/1/moved/b", "cart/1/moved/c"];
    world.write(lines.map(|path| (path, None))).await;
    world
        .write(moved.map(|path| (path, Some(body(1, Some(ago(LONG_AGO)))))))
        .await;
    let night = world.asked().await.snapshot;
    assert_eq!((night.stats.new_documents, night.stats.deleted_documents), (3, 3));
    world.assert_as_names(&night).await;
}

/// The same, far from each other among a thousand names, and what was gained is of a group that nobody knows there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_for_what_goes_is_found_anywhere() {
    for field in [Some(ago(0)), None] {
        let (world, _) = World::open(1).await;
        let many = (0..2500).map(|number| {
            let group = ["a", "b"][number as usize % 2];
            let place = path(format!("all/{:02}/{group}/{number:04}", number / 100));
            (place, Some(body(number, Some(ago(LONG_AGO)))))
        });
        change_all(&world.database, many).await;
        world.names().await;
        world
            .write([
                ("all/01/a/0100", None),
                ("all/08/orders/new", Some(body(1, field.clone()))),
                // Two groups exchange documents, each in another thousand.
                ("all/03/a/0300", None),
                ("all/04/b/0301", Some(body(2, None))),
                ("all/19/b/1901", None),
                ("all/18/a/1801", Some(body(3, None))),
            ])
            .await;
        let night = world.asked().await.snapshot;
        assert_eq!((night.stats.new_documents, night.stats.deleted_documents), (3, 3));
        world.assert_as_names(&night).await;
    }
}

/// Collections that the parent has never seen, of groups that it has never seen, between what it has and past it; with the field and
/// without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_collections_are_found() {
    let (world, _) = World::open(3000).await;
    let mut new: Vec<(DocumentPath, Option<Vec<u8>>)> = Vec::new();
    for number in 0..40 {
        let field = [Some(ago(0)), None, Some(ago(LONG_AGO)), Some(Value::Integer(7))];
        let body = Some(body(number, field[number as usize % 4].clone()));
        new.push((path(format!("aaa/{number}")), body.clone()));
        new.push((
            path(format!("orders/0000000000/new/{number}/newer/{number}")),
            body.clone(),
        ));
        new.push((path(format!("zzz/{number}")), body));
    }
    change_all(&world.database, new).await;
    let night = world.asked().await.snapshot;
    assert_eq!(night.stats.new_documents, 120);
    world.assert_as_names(&night).await;
    // Into an empty database, too: there is a parent that has one document.
    let many = (0..3000).map(|number| (path(format!("many/{number}")), Some(body(number, Some(ago(0))))));
    change_all(&world.database, many).await;
    let night = world.changed().await.snapshot;
    assert_eq!(night.stats.new_documents, 3000);
    world.assert_as_names(&night).await;
}

/// Everything is gone, or nearly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_collections_are_found() {
    let (world, _) = World::open(2500).await;
    let orders = (0..2500).filter(|number| number % 10 < 5);
    change_all(&world.database, orders.map(|number| (place(number), None))).await;
    world.assert_as_names(&world.asked().await.snapshot).await;
    change_all(&world.database, (0..2500).map(|number| (place(number), None))).await;
    let night = world.changed().await.snapshot;
    assert_eq!(night.documents, 0);
    world.assert_as_names(&night).await;
}

/// Changes that the field does not tell of are not seen, and the next reading of names finds them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_field_does_not_tell_is_healed_by_the_next_reading_of_names() {
    let (world, _) = World::open(2000).await;
    let old = || Some(ago(LONG_AGO));
    let kinds: [(&str, Option<Value>); 3] = [
        ("hazards/without", None),
        ("hazards/text", Some(Value::String("2030-01-01".to_owned()))),
        ("hazards/number", Some(Value::Integer(4_000_000_000))),
    ];
    world
        .write(kinds.clone().map(|(path, field)| (path, Some(body(1, field)))))
        .await;
    world
        .write([
            ("hazards/unmoved", Some(body(1, old()))),
            ("hazards/loses", Some(body(1, old()))),
            ("hazards/again", Some(body(1, old()))),
            ("hazards/x", Some(body(1, None))),
        ])
        .await;
    world.names().await;

    world
        .write(kinds.map(|(path, field)| (path, Some(body(2, field)))))
        .await;
    world
        .write([
            ("hazards/unmoved", Some(body(2, old()))),
            ("hazards/loses", Some(body(2, None))),
            // Deleted and made again with the field of before.
            ("hazards/again", None),
            // One goes and another one comes, of the same group and in the same leaf.
            ("hazards/x", None),
            ("hazards/y", Some(body(1, None))),
        ])
        .await;
    world.write([("hazards/again", Some(body(2, old())))]).await;
    let hidden = [
        "hazards/again",
        "hazards/loses",
        "hazards/number",
        "hazards/text",
        "hazards/unmoved",
        "hazards/without",
        "hazards/x",
        "hazards/y",
    ];
    let night = world.asked().await.snapshot;
    assert_eq!(world.differences(&night).await, hidden);
    // Still so in the next night.
    let options = BackupOptions {
        parent: Parent::Snapshot(night.id.to_string()),
        ..world.asking()
    };
    let next = world.back_up(options).await.snapshot;
    assert_eq!(next.stats.read, ReadMode::Changed);
    let scan = BackupOptions {
        parent: Parent::Snapshot(next.id.to_string()),
        read: Some(ReadMode::Names),
        ..world.options()
    };
    let scan = world.back_up(scan).await.snapshot;
    assert_eq!(world.differences_of(&next, &scan).await, hidden);
    assert_snapshot_is(&world.repository, &scan, &world.database).await;
}

/// A document without the field is found where it comes or goes by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_without_the_field_come_and_go() {
    let (world, _) = World::open(2000).await;
    world
        .write([
            ("orders/without-1", Some(body(1, None))),
            ("users/without-2", Some(body(1, None))),
        ])
        .await;
    let night = world.asked().await.snapshot;
    assert_eq!(night.stats.new_documents, 2);
    world.assert_as_names(&night).await;
    world.names().await;
    world
        .write([("orders/without-1", None), ("users/without-2", None)])
        .await;
    let night = world.asked().await.snapshot;
    assert_eq!(night.stats.deleted_documents, 2);
    world.assert_as_names(&night).await;
}

/// A server that does not count, or refuses the query, has its names read, and the index is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_read_names_and_say_so() {
    let (world, _) = World::open(800).await;
    let refuse = |when, code, message: &str| {
        world.sandbox().faults().clear();
        let effect = Effect::Status(code, message.to_owned());
        world
            .sandbox()
            .faults()
            .add(Fault::new(Rpc::RunAggregationQuery, when, effect));
    };
    let mut number = 0;
    let mut night = async |said: &[&str]| {
        number += 1;
        let now = ago(0);
        let changed = (number..800).step_by(50);
        let edits = changed.map(|at| (place(at), Some(body(at + number * 1000, Some(now.clone())))));
        let gone = [(place(number * 50 - 1), None)];
        change_all(&world.database, edits.chain(gone).collect::<Vec<_>>()).await;
        let stats = world.changed().await;
        world.sandbox().faults().clear();
        world.assert_as_names(&stats.snapshot).await;
        assert_eq!(stats.names_instead.len(), 1, "{:?}", stats.names_instead);
        for said in said {
            assert!(stats.names_instead[0].contains(said), "{:?}", stats.names_instead);
        }
    };
    let index = "The query requires an index. You can create it here: https://console.example";
    refuse(When::First(1), Code::FailedPrecondition, index);
    night(&[
        "The query requires an index",
        "gcloud firestore indexes fields update updated_at --collection-group=",
        "--index=order=ascending,query-scope=collection-group",
    ])
    .await;
    refuse(When::After(3), Code::Unimplemented, "not here");
    night(&["does not count"]).await;
}

/// Streams that end short are not believed: neither are documents missed, nor taken for deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_end_short_are_not_believed() {
    let (world, _) = World::open(1200).await;
    for (number, effect) in [
        Effect::EndAfter { documents: 2 },
        Effect::CompleteAfter { documents: 0 },
        Effect::CompleteAfter { documents: 3 },
        Effect::CutAfter {
            documents: 1,
            code: Code::Unavailable,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let now = ago(0);
        let number = number as u64;
        let edits = (0..1200).filter_map(|at| match at % 60 {
            n if n == number => Some((place(at), Some(body(at + 5000 + number, Some(now.clone()))))),
            n if n == 30 + number && at < 300 => Some((place(at), None)),
            _ => None,
        });
        change_all(&world.database, edits.collect::<Vec<_>>()).await;
        let fault = Fault::new(Rpc::RunQuery, When::EveryNth(2), effect);
        world.sandbox().faults().add(fault);
        let night = world.changed().await.snapshot;
        world.sandbox().faults().clear();
        world.assert_as_names(&night).await;
    }
}

/// A server that takes its time: counts are what a night waits for.
fn slow(world: &World, millis: u64) {
    let delay = Effect::Delay(Duration::from_millis(millis));
    let fault = Fault::new(Rpc::RunAggregationQuery, When::Always, delay);
    world.sandbox().faults().add(fault);
}

async fn churn(world: &World, documents: u64, seed: u64) {
    let now = ago(0);
    let edits = (0..documents).filter_map(|number| match (number + seed) % 45 {
        1 => Some((place(number), None)),
        2 | 3 => Some((
            place(number),
            Some(body(number + seed * 100_000, Some(now.clone()))),
        )),
        4 => Some((
            place(number + documents * seed),
            Some(body(number, Some(now.clone()))),
        )),
        _ => None,
    });
    change_all(&world.database, edits.collect::<Vec<_>>()).await;
}

/// Stopped again and again, it goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_that_is_stopped_goes_on() {
    let (world, _) = World::open(3000).await;
    churn(&world, 3000, 1).await;
    slow(&world, 30);
    let mut stops = 0;
    let night = loop {
        let stop = Stop::default();
        let options = BackupOptions {
            ranges: Some(40),
            parallel: 2,
            resume: stops > 0,
            checkpoint_every: Duration::ZERO,
            stop: stop.clone(),
            ..world.asking()
        };
        let (database, repository) = (world.database.clone(), world.repository.clone());
        let running =
            tokio::spawn(async move { backup(&database, &repository, options, &Progress::new()).await });
        tokio::time::sleep(Duration::from_millis(600)).await;
        if stops < 4 {
            stop.request();
        }
        match running.await.unwrap() {
            Ok(stats) => break stats.snapshot,
            Err(BackupError::Stopped { finished, .. }) => {
                stops += 1;
                assert!(finished > 0);
            }
            Err(error) => panic!("{error}"),
        }
    };
    world.sandbox().faults().clear();
    assert!(stops > 0);
    assert_eq!(night.stats.read, ReadMode::Changed);
    world.assert_as_names(&night).await;
}

/// Several processes share a night, and idle readers take parts of what others read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_a_night() {
    let (world, _) = World::open(4000).await;
    for (round, ranges) in [(1, 24), (2, 1)] {
        churn(&world, 4000, round).await;
        slow(&world, 20);
        let work = async || {
            let repository = Repository::open(world.repository.store().clone()).await.unwrap();
            let options = BackupOptions {
                session: Some(format!("night-{round}")),
                ranges: Some(ranges),
                parallel: 3,
                split_after: Duration::from_millis(10),
                ..world.asking()
            };
            backup(&world.database, &repository, options, &Progress::new())
                .await
                .unwrap()
        };
        let (one, two, three) = tokio::join!(work(), work(), work());
        world.sandbox().faults().clear();
        assert_eq!(one.snapshot.id, two.snapshot.id);
        assert_eq!(two.snapshot.id, three.snapshot.id);
        assert_eq!(one.snapshot.stats.read, ReadMode::Changed);
        let (id, any) = (one.snapshot.id.to_string(), SnapshotFilter::default());
        let night = world.repository.resolve(&id, &any).await.unwrap();
        world.assert_as_names(&night).await;
    }
}

/// The rest is read later when the time can no longer be read; the next night knows each range until its own time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_parents_are_built_upon() {
    let (world, _) = World::open(2400).await;
    churn(&world, 2400, 1).await;
    slow(&world, 60);
    let (database, repository) = (world.database.clone(), world.repository.clone());
    let options = BackupOptions {
        ranges: Some(16),
        parallel: 1,
        ..world.asking()
    };
    let running =
        tokio::spawn(async move { backup(&database, &repository, options, &Progress::new()).await });
    tokio::time::sleep(Duration::from_millis(1200)).await;
    churn(&world, 2400, 2).await;
    let plan = FaultPlan {
        history: Some(Duration::from_millis(500)),
        ..world.sandbox().faults().plan()
    };
    let refused = || world.sandbox().usage().requests_of(Rpc::RunAggregationQuery);
    let before = refused();
    world.sandbox().faults().set(plan);
    while refused() < before + 4 && !running.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // However slow the machine is, the rest has the time that it needs.
    world.sandbox().faults().clear();
    let mixed = running.await.unwrap().unwrap().snapshot;
    world.sandbox().faults().clear();
    assert_eq!(mixed.stats.read, ReadMode::Changed);
    assert!(
        matches!(&mixed.consistency, Consistency::Mixed { .. }),
        "{:?}",
        mixed.consistency
    );
    churn(&world, 2400, 3).await;
    let night = world.asked().await.snapshot;
    assert_eq!(night.parent, Some(mixed.id));
    world.assert_as_names(&night).await;
    assert_snapshot_is(&world.repository, &night, &world.database).await;
}

/// The command, what it says, and what it refuses.
#[test]
fn the_command_line_asks_a_field() {
    let shop = Shop::empty();
    shop.run(["init"]).done();
    let documents = |range: std::ops::Range<u64>, field: Value| {
        let documents = range.map(|number| (place(number), body(number, Some(field.clone()))));
        documents.collect::<Vec<_>>()
    };
    shop.put(SHOP, documents(0..400, ago(LONG_AGO)));
    let first = shop
        .firebank(["backup", "--read", "changed:updated_at", "--json"])
        .json();
    assert_eq!(first["read"], "full");
    assert_eq!(first["names_instead"].as_array().unwrap().len(), 1);
    shop.put(SHOP, documents(400..405, ago(0)));
    let night = shop
        .firebank(["backup", "--read", "changed:`updated_at`", "--json"])
        .json();
    assert_eq!(
        (&night["read"], &night["new_documents"]),
        (&"changed".into(), &5.into())
    );
    assert!(night["billed_reads"].as_u64().unwrap() < 100, "{night}");
    let names = [
        "backup",
        "--read",
        "changed:updated_at",
        "--full-scan-every",
        "1s",
    ];
    std::thread::sleep(Duration::from_millis(2100));
    let said = shop.firebank(names).done();
    assert!(
        said.contains("Note: all names are read, and `updated_at` is not asked"),
        "{said}"
    );
    shop.firebank(["backup", "--read", "changed:"])
        .fails(2, &["changed:"]);
    shop.firebank(["backup", "--read", "changed:a,b"])
        .fails(2, &["one field"]);
    shop.firebank(["backup", "--read", "new"])
        .fails(2, &["auto, full, names or changed:FIELD"]);
    shop.firebank(["backup", "--full-scan-every", "7d"])
        .fails(2, &["--read changed:FIELD"]);

    // The account's permissions are the sandbox's, all there; of the groups, those below documents are known from the backups.
    let doctor = [
        "doctor",
        "--for",
        "backup",
        "--read",
        "changed:updated_at",
        "--json",
    ];
    let healthy = shop.firebank(doctor).json();
    let checks = |diagnosis: &serde_json::Value, state: &str| -> Vec<String> {
        let checks = diagnosis["checks"].as_array().unwrap().iter();
        let named = checks.filter(|check| {
            check["state"] == state && check["name"].as_str().unwrap().starts_with("changed:")
        });
        named
            .map(|check| {
                format!(
                    "{}: {}",
                    check["name"].as_str().unwrap(),
                    check["detail"].as_str().unwrap()
                )
            })
            .collect()
    };
    assert_eq!(checks(&healthy, "ok").len(), 4, "{healthy}");
    let message = "The query requires an index".to_owned();
    let effect = Effect::Status(Code::FailedPrecondition, message);
    shop.add_fault(Fault::new(Rpc::RunAggregationQuery, When::First(1), effect));
    let broken = shop.firebank(doctor);
    assert_eq!(broken.code, 3);
    let broken: serde_json::Value = serde_json::from_str(&broken.stdout).unwrap();
    let missing = checks(&broken, "problem");
    assert_eq!(missing.len(), 1, "{broken}");
    assert!(
        missing[0].contains("gcloud firestore indexes fields update updated_at --collection-group=missing"),
        "{missing:?}"
    );
}
