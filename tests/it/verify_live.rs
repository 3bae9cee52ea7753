//! `verify --live`, and the comparison of a snapshot with a database beneath it: what differs is found, named and counted, and
//! nothing else, on the sandbox and on Google's emulator.

use std::collections::BTreeMap;

use firebank::archive::{ReadMode, Repository, Snapshot};
use firebank::compare::DifferenceKind;
use firebank::document::{CollectionPath, DocumentPath, canonical, typed_json};
use firebank::firestore::{BulkWriter, Firestore, WriteFailure, WriteOptions};
use firebank::path_filter::PathFilter;
use firebank::progress::Progress;
use firebank::sandbox::{Effect, Fault, Rpc, When};
use firebank::verify::{
    CompareOptions, CountOf, DatabaseStats, Sample, verify_counts, verify_database, verify_sample,
};
use serde_json::json;

use crate::cli_support::{SHOP, Shop, keys};
use crate::support::operations::*;
use crate::support::{emulator, project, sandbox};

type Change<'a> = (&'a str, Option<&'a str>);

/// Puts documents with these fields, and deletes those without.
async fn write(database: &Firestore, changes: &[Change<'_>]) {
    let mut writer = BulkWriter::new(database, WriteOptions::new(database), Vec::<WriteFailure>::new());
    for (path, fields) in changes {
        let path = DocumentPath::parse(*path).unwrap();
        match fields {
            Some(fields) => {
                let body = canonical::encode(&typed_json::fields_from_str(fields).unwrap());
                writer.put(&path, &body).await.unwrap();
            }
            None => writer.delete(&path).await.unwrap(),
        }
    }
    assert_eq!(writer.finish().await.unwrap().failed, 0);
}

/// A database with subcollections, missing parents and references, its snapshot, and a copy that was restored from it.
struct World {
    source: Firestore,
    copy: Firestore,
    repository: Repository,
    snapshot: Snapshot,
}

/// Documents of `many`, enough for several pages and ranges.
const MANY: usize = 400;

impl World {
    async fn new(address: &str) -> Self {
        let (from, to) = (project("proof-source"), project("proof-copy"));
        let source = connect(address, &from, "(default)").await;
        let copy = connect(address, &to, "(default)").await;
        let into_copy = format!(
            r#"{{"of": {{"$absoluteReference": "projects/{to}/databases/(default)/documents/a/1"}},
                "in": [{{"m": {{"$reference": "a/2"}}}}],
                "else": {{"$absoluteReference": "projects/x/databases/y/documents/a/1"}}}}"#
        );
        let many: Vec<(String, String)> = (0..MANY)
            .map(|number| (format!("many/{number}"), format!(r#"{{"n": {number}}}"#)))
            .collect();
        let mut documents: Vec<Change<'_>> = vec![
            (
                "a/1",
                Some(r#"{"price": 1, "stock": {"x": 1, "y": 2}, "old": true}"#),
            ),
            ("a/1/sub/1", Some(r#"{"n": 1}"#)),
            (
                "a/2",
                Some(r#"{"at": {"$timestamp": "2025-06-29T12:00:00.123456Z"}, "nan": {"$double": "NaN"}}"#),
            ),
            ("a/missing/sub/1", Some(r#"{"n": 2}"#)),
            ("a/missing/sub/2", Some(r#"{"n": 3}"#)),
            ("refs/1", Some(&into_copy)),
            ("z/1", Some("{}")),
        ];
        documents.extend(
            many.iter()
                .map(|(path, fields)| (path.as_str(), Some(fields.as_str()))),
        );
        write(&source, &documents).await;
        let repository = repository(small_segments()).await;
        let snapshot = back_up(&source, &repository, 4).await;
        restore_all(&repository, &snapshot, &copy).await;
        Self {
            source,
            copy,
            repository,
            snapshot,
        }
    }

    async fn verify(&self, database: &Firestore, options: &CompareOptions) -> DatabaseStats {
        let reader = self.repository.reader(&self.snapshot).await.unwrap();
        verify_database(&reader, database, options, &Progress::new())
            .await
            .unwrap()
    }

    async fn sample(&self, sample: Sample) -> DatabaseStats {
        let reader = self.repository.reader(&self.snapshot).await.unwrap();
        verify_sample(
            &reader,
            &self.copy,
            sample,
            &CompareOptions::default(),
            &Progress::new(),
        )
        .await
        .unwrap()
    }
}

/// The differences by name, with the fields.
fn named(stats: &DatabaseStats) -> Vec<(String, DifferenceKind, String)> {
    let fields = |fields: &[firebank::document::FieldChange]| {
        let names: Vec<String> = fields.iter().map(|field| field.path.to_string()).collect();
        names.join(" ")
    };
    stats
        .comparison
        .first_differences
        .iter()
        .map(|difference| {
            (
                difference.path.to_string(),
                difference.kind,
                fields(&difference.fields),
            )
        })
        .collect()
}

fn only(patterns: &[&str]) -> CompareOptions {
    CompareOptions {
        filter: PathFilter::new(patterns).unwrap(),
        ..CompareOptions::default()
    }
}

async fn differences_are_found_named_and_counted(address: &str) {
    let world = World::new(address).await;
    let all = world.snapshot.documents;
    // A restored database has other times, and references that point into itself.
    let stats = world.verify(&world.copy, &CompareOptions::default()).await;
    assert!(stats.comparison.is_equal(), "{stats:?}");
    assert_eq!((stats.comparison.equal, stats.documents), (all, all));
    assert!(stats.billed_reads >= all, "{stats:?}");
    // The source is compared by contents too: written again and the same is no difference.
    write(
        &world.source,
        &[
            ("many/7", None),
            ("many/8", None),
            ("many/8", Some(r#"{"n": 8}"#)),
        ],
    )
    .await;
    write(&world.source, &[("many/7", Some(r#"{"n": 7}"#))]).await;
    let stats = world.verify(&world.source, &CompareOptions::default()).await;
    assert!(stats.comparison.is_equal(), "{stats:?}");

    write(
        &world.copy,
        &[
            ("a/1", Some(r#"{"price": 1.5, "stock": {"x": 1, "z": 2}}"#)),
            ("a/1/sub/1", None),
            ("a/missing", Some(r#"{"now": "here"}"#)),
            ("a/missing/sub/2", Some(r#"{"n": {"$double": "3.0"}}"#)),
            ("a/missing/sub/3", Some("{}")),
            ("many/100", None),
            ("new/1/sub/1", Some("{}")),
            ("z/1", Some("{}")),
        ],
    )
    .await;
    let expected = [
        ("a/1", DifferenceKind::Different, "old price stock.y stock.z"),
        ("a/1/sub/1", DifferenceKind::Missing, ""),
        ("a/missing", DifferenceKind::Extra, ""),
        ("a/missing/sub/2", DifferenceKind::Different, "n"),
        ("a/missing/sub/3", DifferenceKind::Extra, ""),
        ("many/100", DifferenceKind::Missing, ""),
        ("new/1/sub/1", DifferenceKind::Extra, ""),
    ]
    .map(|(path, kind, fields)| (path.to_owned(), kind, fields.to_owned()));
    for parallel in [1, 7] {
        let options = CompareOptions {
            parallel,
            ..CompareOptions::default()
        };
        let stats = world.verify(&world.copy, &options).await;
        assert_eq!(named(&stats), expected);
        let comparison = &stats.comparison;
        assert_eq!(
            (comparison.different, comparison.missing, comparison.extra),
            (2, 2, 3)
        );
        assert_eq!((comparison.equal, stats.documents), (all - 4, all + 3));
        let collections = [("a", 5), ("many", 1), ("new", 1)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!(stats.collections, BTreeMap::from(collections));
    }

    // Fewer are named than there are.
    let options = CompareOptions {
        named: 2,
        ..CompareOptions::default()
    };
    let stats = world.verify(&world.copy, &options).await;
    assert_eq!(named(&stats), expected[..2]);
    assert_eq!(stats.comparison.differences(), 7);

    // What is not chosen is not looked at.
    let stats = world.verify(&world.copy, &only(&["a/missing", "many/1*"])).await;
    assert_eq!(named(&stats), expected[2..6]);
    let stats = world.verify(&world.copy, &only(&["a/*/sub"])).await;
    assert_eq!(
        named(&stats),
        [&expected[1..2], &expected[3..5]].concat(),
        "the document above is not chosen"
    );
    assert_eq!(stats.documents, 4);
}

async fn a_sample_finds_what_it_meets(address: &str) {
    let world = World::new(address).await;
    let all = world.snapshot.documents;
    write(
        &world.copy,
        &[("a/1", None), ("many/3", Some("{}")), ("new/1", Some("{}"))],
    )
    .await;
    // All of them, and no extra ones: their names are not in the snapshot.
    for sample in [Sample::Percent(100.0), Sample::Documents(10_000)] {
        let stats = world.sample(sample).await;
        assert_eq!(stats.documents, all);
        let comparison = &stats.comparison;
        assert_eq!(
            (comparison.different, comparison.missing, comparison.extra),
            (1, 1, 0)
        );
        assert_eq!(named(&stats)[0].0, "a/1");
    }
    let stats = world.sample(Sample::Documents(50)).await;
    assert_eq!(stats.documents, 50);
    // One read each, one for the time, and one for each whose fields are named.
    let most = 50 + 1 + stats.comparison.different;
    assert!((50..=most).contains(&stats.billed_reads), "{stats:?}");
    let stats = world.sample(Sample::Percent(10.0)).await;
    assert!((all / 40..all / 3).contains(&stats.documents), "{stats:?}");
    // Every time others.
    let mut met = false;
    for _ in 0..60 {
        met |= !world.sample(Sample::Documents(30)).await.comparison.is_equal();
    }
    assert!(
        met,
        "60 samples of 30 documents of {all} never met two that differ"
    );
}

async fn counts_tell_what_is_lost_or_extra(address: &str) {
    let world = World::new(address).await;
    let reader = world.repository.reader(&world.snapshot).await.unwrap();
    let count = async |paths: &[&str]| {
        let paths: Vec<_> = paths
            .iter()
            .map(|path| {
                (
                    path.to_string(),
                    CollectionPath::parse(*path).unwrap().key_range(),
                )
            })
            .collect();
        verify_counts(&reader, &world.copy, &paths, &Progress::new())
            .await
            .unwrap()
    };
    let stats = count(&[]).await;
    assert!(stats.is_equal(), "{stats:?}");
    let parts: Vec<_> = stats
        .parts
        .iter()
        .map(|part| (part.of, part.name.as_str(), part.expected))
        .collect();
    let all = world.snapshot.documents;
    assert!(!stats.whole_refused);
    assert_eq!(
        parts,
        [
            (CountOf::Database, "", all),
            (CountOf::CollectionGroup, "a", 2),
            (CountOf::CollectionGroup, "many", MANY as u64),
            (CountOf::CollectionGroup, "refs", 1),
            (CountOf::CollectionGroup, "sub", 3),
            (CountOf::CollectionGroup, "z", 1),
        ]
    );
    assert!(stats.billed_reads <= 7, "{stats:?}");
    // One gone below a missing document, and one in a collection that the snapshot does not have.
    write(&world.copy, &[("a/missing/sub/1", None), ("new/1", Some("{}"))]).await;
    let stats = count(&[]).await;
    let differing: Vec<_> = stats
        .parts
        .iter()
        .filter(|part| part.expected != part.found)
        .map(|part| (part.name.as_str(), part.expected, part.found))
        .collect();
    assert_eq!(
        differing,
        [("sub", 3, 2)],
        "one less and one more: the same in all"
    );
    write(&world.copy, &[("new/2", Some("{}"))]).await;
    let stats = count(&[]).await;
    assert_eq!((stats.parts[0].expected, stats.parts[0].found), (all, all + 1));
    let stats = count(&["a", "many"]).await;
    let parts: Vec<_> = stats
        .parts
        .iter()
        .map(|part| (part.of, part.expected, part.found))
        .collect();
    assert_eq!(
        parts,
        [(CountOf::Path, 5, 4), (CountOf::Path, MANY as u64, MANY as u64)]
    );
}

macro_rules! on_both_servers {
    ($($check:ident),* $(,)?) => {
        mod on_the_sandbox {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                let sandbox = super::sandbox().await;
                super::$check(&sandbox.address().to_string()).await;
            })*
        }
        mod on_the_emulator {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                let Some(address) = super::emulator() else { return };
                super::$check(address).await;
            })*
        }
    };
}

on_both_servers! {
    differences_are_found_named_and_counted,
    a_sample_finds_what_it_meets,
    counts_tell_what_is_lost_or_extra,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_and_selections_are_compared_as_they_read() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let mut world = World::new(&address).await;
    write(&world.source, &[("a/2", None), ("b/1", Some("{}"))]).await;
    world.snapshot = try_back_up_changes(&world.source, &world.repository, ReadMode::Names, 3)
        .await
        .unwrap()
        .snapshot;
    assert!(
        world
            .verify(&world.source, &CompareOptions::default())
            .await
            .comparison
            .is_equal()
    );
    let stats = world.verify(&world.copy, &CompareOptions::default()).await;
    let names: Vec<_> = named(&stats)
        .into_iter()
        .map(|(path, kind, _)| (path, kind))
        .collect();
    assert_eq!(
        names,
        [
            ("a/2".to_owned(), DifferenceKind::Extra),
            ("b/1".to_owned(), DifferenceKind::Missing)
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_on_the_way_changes_nothing_and_is_billed_as_the_server_says() {
    let sandbox = sandbox().await;
    let address = sandbox.address().to_string();
    let world = World::new(&address).await;
    write(&world.copy, &[("many/9", None)]).await;
    let before = sandbox.usage();
    let stats = world.verify(&world.copy, &CompareOptions::default()).await;
    let billed = sandbox.usage().since(&before);
    assert_eq!(stats.billed_reads, billed.reads, "{billed:?}");
    sandbox.faults().add(Fault::new(
        Rpc::RunQuery,
        When::EveryNth(2),
        Effect::CutAfter {
            documents: 30,
            code: tonic::Code::Unavailable,
        },
    ));
    let stats = world.verify(&world.copy, &CompareOptions::default()).await;
    assert_eq!(
        named(&stats),
        [("many/9".to_owned(), DifferenceKind::Missing, String::new())]
    );
    assert!(stats.retries > 0);
    assert_eq!(stats.documents, world.snapshot.documents);
}

fn copy_of_the_shop() -> (Shop, String) {
    let (shop, id) = Shop::backed_up();
    shop.firebank_on("demo-copy", ["restore", &id, "--to-project", "demo-copy"])
        .done();
    (shop, id)
}

fn put(shop: &Shop, project: &str, path: &str, fields: &str) {
    let body = canonical::encode(&typed_json::fields_from_str(fields).unwrap());
    shop.put(project, vec![(DocumentPath::parse(path).unwrap(), body)]);
}

#[test]
fn the_command_tells_and_exits() {
    let (shop, id) = copy_of_the_shop();
    let documents = shop.contents(SHOP).len() as u64;
    let same = shop.firebank(["verify", "--live"]).done();
    assert!(
        same.starts_with(&format!(
            "Equal: all {documents} documents of snapshot {id} are in demo-shop/(default) as of "
        )),
        "{same}"
    );
    let copy = ["verify", &id, "--live", "--to-project", "demo-copy", "--json"];
    let view = shop.firebank(copy).json();
    assert_eq!(
        keys(&view),
        [
            "billed_reads",
            "check",
            "collections",
            "different",
            "documents",
            "equal",
            "extra",
            "first_differences",
            "later_ranges",
            "matches",
            "missing",
            "read_time",
            "retries",
            "seconds",
            "snapshot",
            "target"
        ]
    );
    assert_eq!(view["matches"], true);
    assert_eq!(view["equal"], documents);
    assert_eq!(view["target"], "demo-copy/(default)");

    put(&shop, "demo-copy", "products/p000001", r#"{"odd": 1}"#);
    put(&shop, "demo-copy", "products/p000001/evil\u{1b}[2J/1", "{}");
    let different = shop.firebank(["verify", &id, "--live", "--to-project", "demo-copy"]);
    assert_eq!(different.code, 3, "{different}");
    let lines: Vec<&str> = different.stdout.lines().collect();
    assert!(
        lines[0].starts_with("different  products/p000001  "),
        "{different}"
    );
    assert!(lines[0].contains("+odd"), "{different}");
    assert_eq!(lines[1], "extra      products/p000001/evil\\u{1b}[2J/1");
    assert!(
        lines[2].starts_with("DIFFERENT: ") && lines[2].contains("1 different, 0 missing, 1 extra"),
        "{different}"
    );
    let view = shop.firebank(copy);
    assert_eq!(view.code, 3);
    let view = view.json();
    assert_eq!(view["matches"], false);
    assert_eq!(view["first_differences"][1]["kind"], "extra");
    assert_eq!(view["collections"], json!({"products": 2}));

    let part = shop.firebank([
        "verify",
        &id,
        "--live",
        "--to-project",
        "demo-copy",
        "--only",
        "users",
    ]);
    assert_eq!(part.code, 0, "{part}");
    let few = shop.firebank([
        "verify",
        &id,
        "--live",
        "--to-project",
        "demo-copy",
        "--limit",
        "1",
    ]);
    assert!(few.stdout.contains("\n… and 1 more\n"), "{few}");

    let counts = shop.firebank(["verify", &id, "--live", "--counts", "--to-project", "demo-copy"]);
    assert_eq!(counts.code, 3, "{counts}");
    assert!(
        counts
            .stdout
            .lines()
            .nth(1)
            .unwrap()
            .starts_with("all collections"),
        "{counts}"
    );
    let counts = shop
        .firebank(["verify", &id, "--live", "--counts", "--json"])
        .json();
    assert_eq!(counts["matches"], true);
    assert_eq!(counts["check"], "counts");
    assert_eq!(
        counts["counts"][0],
        json!({"of": "database", "name": "", "expected": documents, "found": documents})
    );
    let sample = shop
        .firebank(["verify", &id, "--live", "--sample", "25", "--json"])
        .json();
    assert_eq!(
        (&sample["documents"], &sample["check"]),
        (&json!(25), &json!("sample"))
    );
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let (shop, id) = Shop::backed_up();
    for (arguments, says) in [
        (vec!["verify", &id, &id, "--live"], "one snapshot"),
        (vec!["verify", "--sample", "5"], "--live"),
        (vec!["verify", "--live", "--sample", "0"], "500"),
        (vec!["verify", "--live", "--read-data"], "--read-data"),
        (vec!["verify", "--live", "--counts", "--sample", "5"], "--sample"),
        (
            vec!["verify", "--live", "--counts", "--only", "products/*"],
            "products/*",
        ),
    ] {
        let refused = shop.firebank(arguments);
        assert_eq!(refused.code, 2, "{refused}");
        assert!(refused.stderr.contains(says), "{refused}");
    }
}

#[test]
fn a_server_that_does_not_count_over_all_collections_is_told() {
    let (shop, id) = Shop::backed_up();
    shop.add_fault(Fault::new(
        Rpc::RunAggregationQuery,
        When::First(1),
        Effect::Status(tonic::Code::InvalidArgument, "no kindless counts here".to_owned()),
    ));
    let counts = shop.firebank(["verify", &id, "--live", "--counts"]);
    assert_eq!(counts.code, 0, "{counts}");
    assert!(counts.stderr.contains("would go unnoticed"), "{counts}");
    assert!(!counts.stdout.contains("all collections"), "{counts}");
}
