//! What plans say of costs, against what the sandbox then bills.

use std::time::Duration;

use firebank::archive::{ReadMode, Repository, Selection};
use firebank::backup::{
    BackupEstimate, BackupOptions, BackupStats, ChangeField, Parent, backup, estimate_backup,
};
use firebank::clock;
use firebank::document::{CollectionPath, DocumentPath, Fields, Timestamp, Value, canonical};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::restore::{RestoreMode, RestoreOptions, plan_restore, restore};
use firebank::sandbox::{Administration, DatabaseFacts, Effect, Fault, Rpc, Sandbox, SandboxConfig, When};
use serde_json::json;
use tonic::Code;

use crate::cli_support::{SHOP, Shop, files_below, keys};
use crate::support::buckets::{Kind, Server};
use crate::support::operations::*;
use crate::support::{project, sandbox, sandbox_with};

const FIELD: &str = "updated_at";
/// Longer ago than a backup ever asks.
const LONG_AGO: i64 = 3 * 24 * 3600;

/// What `backup --dry-run --json` prints.
pub(crate) const ESTIMATE_KEYS: [&str; 20] = [
    "billed_reads",
    "changed_documents",
    "cost",
    "database",
    "deleted_documents",
    "documents",
    "dry_run",
    "estimate_billed_reads",
    "known_from",
    "location",
    "names_instead",
    "parent",
    "ranges",
    "read",
    "read_bytes",
    "read_time",
    "region_warning",
    "requests",
    "stored_bytes",
    "transferred_bytes",
];

/// Scattered over three groups, one of them below missing documents.
pub(crate) fn place(number: u64) -> DocumentPath {
    let id = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
    let text = match number % 10 {
        0..6 => format!("orders/{id:010x}"),
        6..9 => format!("users/{id:010x}"),
        _ => format!("missing/{:03}/visits/{id:010x}", number % 100),
    };
    DocumentPath::parse(text).unwrap()
}

pub(crate) fn body(number: u64, seconds_ago: i64) -> Vec<u8> {
    let now = Timestamp::from(clock::now());
    let then = Timestamp::new(now.seconds - seconds_ago, now.nanos / 1000 * 1000);
    let fields: Fields = [
        ("number".to_owned(), Value::Integer(number as i64)),
        ("text".to_owned(), Value::String(format!("{number:x}").repeat(40))),
        (FIELD.to_owned(), Value::Timestamp(then)),
    ]
    .into();
    canonical::encode(&fields)
}

pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) database: Firestore,
    pub(crate) repository: Repository,
}

impl World {
    pub(crate) async fn of(documents: u64) -> Self {
        let sandbox = sandbox().await;
        let database = client(&sandbox, &project("cost")).await;
        let all = (0..documents).map(|number| (place(number), body(number, LONG_AGO)));
        put_all(&database, all).await;
        Self {
            database,
            sandbox,
            repository: repository(small_segments()).await,
        }
    }

    /// A night's changes: one in `every` of the documents written again, a fifth as many deleted, and as many new.
    pub(crate) async fn night(&self, number: u64, documents: u64, every: u64) {
        let changed = (0..documents).filter(|of| of % every == number);
        let changed: Vec<u64> = changed.collect();
        let gone = changed.iter().step_by(5).map(|&of| (place(of + 1), None));
        let new = (0..changed.len() as u64 / 5).map(|of| {
            let of = documents * (number + 1) + of;
            (place(of), Some(body(of, 0)))
        });
        let written = changed.iter().map(|&of| (place(of), Some(body(of, 0))));
        change_all(&self.database, written.chain(gone).chain(new)).await;
    }

    async fn estimate(&self, options: &BackupOptions) -> BackupEstimate {
        estimate_backup(&self.database, &self.repository, options)
            .await
            .unwrap()
    }

    pub(crate) async fn back_up(&self, options: &BackupOptions) -> BackupStats {
        backup(
            &self.database,
            &self.repository,
            options.clone(),
            &Progress::new(),
        )
        .await
        .unwrap()
    }

    /// Estimates, backs up, and compares with what the sandbox bills.
    async fn compare(&self, what: &str, options: &BackupOptions) -> (BackupEstimate, BackupStats) {
        let before = self.sandbox.usage();
        let estimate = self.estimate(options).await;
        let spent = self.sandbox.usage().since(&before);
        assert_eq!(estimate.spent_reads, spent.reads, "{what}");
        let before = self.sandbox.usage();
        let stats = self.back_up(options).await;
        let used = self.sandbox.usage().since(&before);
        assert_eq!(estimate.read, stats.snapshot.stats.read, "{what}");
        assert_eq!(estimate.parent, stats.snapshot.parent, "{what}");
        assert_eq!(estimate.documents, stats.snapshot.documents, "{what}");
        assert_eq!(stats.billed_reads, used.reads, "{what}");
        assert_near(&format!("{what}: reads"), estimate.billed_reads, used.reads, 0.1);
        assert_near(
            &format!("{what}: bytes"),
            estimate.read_bytes,
            used.sent_bytes,
            0.3,
        );
        let requests = used.requests.values().sum();
        assert_near(&format!("{what}: requests"), estimate.requests, requests, 0.5);
        (estimate, stats)
    }
}

#[track_caller]
fn assert_near(what: &str, estimated: u64, billed: u64, share: f64) {
    let off = estimated.abs_diff(billed) as f64;
    assert!(
        off <= share * billed as f64,
        "{what}: estimated {estimated}, billed {billed}"
    );
}

fn reading(read: ReadMode) -> BackupOptions {
    BackupOptions {
        read: Some(read),
        ..BackupOptions::default()
    }
}

fn asking() -> BackupOptions {
    BackupOptions {
        changed: Some(ChangeField {
            field: vec![FIELD.to_owned()],
            full_scan_every: Duration::from_secs(7 * 24 * 3600),
        }),
        ..BackupOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_estimate_is_near_to_what_each_way_of_reading_is_billed() {
    const DOCUMENTS: u64 = 60_000;
    let world = World::of(DOCUMENTS).await;
    // The first backup, in one range and in many.
    let (first, _) = world.compare("first", &BackupOptions::default()).await;
    assert_eq!((first.read, first.changed_documents), (ReadMode::Full, DOCUMENTS));
    let many = BackupOptions {
        ranges: Some(8),
        parent: Parent::None,
        ..BackupOptions::default()
    };
    world.compare("in many ranges", &many).await;
    world.night(1, DOCUMENTS, 100).await;
    // Nothing is known of a night yet: the first one is as it comes.
    world.back_up(&BackupOptions::default()).await;
    for (night, (what, options)) in [
        ("names", reading(ReadMode::Names)),
        ("full", reading(ReadMode::Full)),
        ("auto", BackupOptions::default()),
        ("changed", asking()),
        ("changed again", asking()),
    ]
    .into_iter()
    .enumerate()
    {
        world.night(night as u64 + 2, DOCUMENTS, 100).await;
        let (estimate, stats) = world.compare(what, &options).await;
        let stored = stats.snapshot.stats;
        let changed = stored.new_documents + stored.changed_documents;
        assert_near(
            &format!("{what}: changed"),
            estimate.changed_documents,
            changed,
            0.1,
        );
        assert_near(
            &format!("{what}: stored"),
            estimate.stored_bytes,
            stored.stored_bytes,
            0.3,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_database_is_estimated_as_that_part() {
    const DOCUMENTS: u64 = 10_000;
    let world = World::of(DOCUMENTS).await;
    let users = CollectionPath::parse("users").unwrap();
    for (what, selection) in [
        ("a group", Selection::new(vec![], vec!["visits".to_owned()])),
        ("a collection", Selection::new(vec![users], vec![])),
    ] {
        let options = BackupOptions {
            selection,
            ..BackupOptions::default()
        };
        let (first, _) = world.compare(what, &options).await;
        assert!(first.documents < DOCUMENTS / 2, "{what}: {first:?}");
        world.compare(what, &options).await;
        let asking = BackupOptions {
            selection: options.selection,
            ..asking()
        };
        let (night, _) = world.compare(what, &asking).await;
        assert_eq!(night.read, ReadMode::Changed);
    }
}

/// A night in which nobody tells what has changed, for the server lacks the index.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_expected_where_the_field_cannot_be_asked() {
    const DOCUMENTS: u64 = 3_000;
    let world = World::of(DOCUMENTS).await;
    world.back_up(&BackupOptions::default()).await;
    let refused = Effect::Status(
        Code::FailedPrecondition,
        "The query requires an index.".to_owned(),
    );
    world
        .sandbox
        .faults()
        .add(Fault::new(Rpc::RunAggregationQuery, When::After(1), refused));
    let estimate = world.estimate(&asking()).await;
    assert!(
        (DOCUMENTS..DOCUMENTS + 100).contains(&estimate.billed_reads),
        "{estimate:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_of_a_restore_is_near_to_what_each_mode_is_billed() {
    const DOCUMENTS: u64 = 6_000;
    let world = World::of(DOCUMENTS).await;
    let snapshot = world.back_up(&BackupOptions::default()).await.snapshot;
    let reader = world.repository.reader(&snapshot).await.unwrap();
    for mode in [
        RestoreMode::Overwrite,
        RestoreMode::CreateOnly,
        RestoreMode::SkipIdentical,
        RestoreMode::Mirror,
        RestoreMode::Merge,
    ] {
        // Some are there as they were, some differ, some are missing, and some are there beside.
        let target = client(&world.sandbox, &project("target")).await;
        let there = (0..DOCUMENTS + 500).filter(|number| number % 3 > 0);
        let there = there.map(|number| (place(number), body(number + number % 2, LONG_AGO)));
        put_all(&target, there).await;
        let folder = tempfile::tempdir().unwrap();
        let options = RestoreOptions {
            mode,
            ..restore_options(&target, &folder.path().join("failed.ndjson"))
        };
        let before = world.sandbox.usage();
        let plan = plan_restore(&reader, &target, &options).await.unwrap();
        let looked_at = world.sandbox.usage().since(&before);
        let before = world.sandbox.usage();
        let fetched_before = world.repository.store().requests().received_bytes;
        let stats = restore(&reader, &target, options, &Progress::new())
            .await
            .unwrap();
        let used = world.sandbox.usage().since(&before);
        let fetched = world.repository.store().requests().received_bytes - fetched_before;
        for (what, planned, told, billed) in [
            ("reads", plan.billed_reads, stats.billed_reads, used.reads),
            ("writes", plan.billed_writes, stats.billed_writes, used.writes),
            ("deletes", plan.billed_deletes, stats.billed_deletes, used.deletes),
        ] {
            let what = format!("{mode:?}: {what}");
            assert_near(&what, planned, billed, 0.1);
            assert_eq!(told, billed, "{what}");
        }
        // A plan looks in every mode, but only some of them do when they write.
        let looks = !matches!(mode, RestoreMode::Overwrite | RestoreMode::CreateOnly);
        let read = if looks { looked_at.sent_bytes } else { 0 };
        assert_near(&format!("{mode:?}: read"), plan.read_bytes, read, 0.1);
        assert_near(&format!("{mode:?}: fetched"), plan.fetched_bytes, fetched, 0.1);
        // A write brings its document's name, too.
        let most = used.received_bytes - plan.billed_deletes;
        let written = most / 4..most;
        assert!(
            written.contains(&plan.written_bytes),
            "{mode:?}: {plan:?}, {most}"
        );
        if mode == RestoreMode::Overwrite {
            assert_eq!(plan.written_bytes, stats.bytes);
        }
        assert_eq!(
            plan.transferred_bytes,
            plan.read_bytes + plan.fetched_bytes + plan.written_bytes
        );
    }
}

#[test]
fn a_dry_run_of_a_backup_tells_and_writes_nothing() {
    let (shop, _) = Shop::backed_up();
    let before = files_below(&shop.path());
    let contents = |name: &String| std::fs::read(shop.file(name)).unwrap();
    let bytes: Vec<_> = before.iter().map(contents).collect();
    let estimate = shop.firebank(["backup", "--dry-run", "--json"]).json();
    assert_eq!(keys(&estimate), ESTIMATE_KEYS);
    assert_eq!(estimate["read"], "names");
    let documents = shop.contents(SHOP).len() as u64;
    assert_eq!(estimate["documents"], documents);
    let reads = estimate["billed_reads"].as_u64().unwrap();
    let cost = &estimate["cost"];
    let expected = reads as f64 / 100_000.0 * 0.06;
    assert!(
        (cost["total"].as_f64().unwrap() - expected).abs() < 1e-12,
        "{cost}"
    );
    // A folder's bytes are nobody's bill.
    assert_eq!(
        (&cost["stored_month"], &cost["prices"]["currency"]),
        (&json!(0.0), &json!("USD"))
    );
    shop.desk
        .write("prices.json", r#"{"reads_per_100k": 600, "currency": "EUR"}"#);
    let own = shop
        .firebank(["backup", "-n", "--json", "--prices", "prices.json"])
        .json();
    assert!(
        (own["cost"]["total"].as_f64().unwrap() / expected - 10_000.0).abs() < 300.0,
        "{own}"
    );
    let shown = shop.firebank(["backup", "-n", "--prices", "prices.json"]).done();
    for part in [
        "Dry run: ",
        "billed reads",
        "EUR ",
        "nothing was written",
        "counted by the server",
    ] {
        assert!(shown.contains(part), "{part:?}: {shown}");
    }
    shop.desk.write("prices.json", r#"{"reads": 1}"#);
    shop.firebank(["backup", "-n", "--prices", "prices.json"])
        .fails(2, &["prices.json", "reads_per_100k"]);
    let ended = shop.firebank(["backup", "--prices", "prices.json"]);
    assert!(ended.code == 2 && ended.stderr.contains("--dry-run"), "{ended}");
    shop.firebank(["backup", "-n", "--format", "json"])
        .fails(2, &["--dry-run"]);
    std::fs::remove_file(shop.file("prices.json")).unwrap();
    assert_eq!(files_below(&shop.path()), before);
    assert_eq!(before.iter().map(contents).collect::<Vec<_>>(), bytes);
}

#[test]
fn prices_are_those_of_the_database_and_plans_of_restores_show_them() {
    let facts = DatabaseFacts {
        location: "us-central1".to_owned(),
        ..DatabaseFacts::default()
    };
    let shop = Shop::of(sandbox_with(SandboxConfig {
        administration: Administration::Describes(facts),
        ..SandboxConfig::default()
    }));
    shop.put(
        SHOP,
        (0..10).map(|number| (place(number), body(number, 0))).collect(),
    );
    shop.run(["init"]).done();
    let id = shop.back_up();
    let estimate = shop.firebank(["backup", "--dry-run", "--json"]).json();
    assert_eq!(estimate["location"], "us-central1");
    assert_eq!(estimate["cost"]["prices"]["reads_per_100k"], 0.03);
    let restore = ["restore", &id, "--to-project", "demo-x", "--dry-run"];
    let plan = shop.firebank([&restore[..], &["--json"]].concat()).json();
    let cost = &plan["cost"];
    assert!(
        (cost["total"].as_f64().unwrap() - 10.0 * 0.09 / 100_000.0).abs() < 1e-12,
        "{plan}"
    );
    let shown = shop.firebank(restore).done();
    assert!(shown.contains("That is about USD 0.0000090"), "{shown}");
    let bytes = |name: &str| plan[name].as_u64().unwrap();
    assert!(bytes("fetched_bytes") > 0 && bytes("read_bytes") == 0, "{plan}");
    assert_eq!(bytes("written_bytes"), bytes("bytes"));
    // What looks through all of it before reads it once more.
    for again in [
        &["--ttl-field", "until"][..],
        &["--references", "fail"],
        &["--references", "fail", "--ttl-field", "until"],
    ] {
        let more = shop.firebank([&restore[..], &["--json"], again].concat()).json();
        let times = 1 + again.len() as u64 / 2;
        assert_eq!(
            more["fetched_bytes"].as_u64().unwrap(),
            times * bytes("fetched_bytes")
        );
        assert_eq!(
            more["transferred_bytes"].as_u64().unwrap() - bytes("transferred_bytes"),
            (times - 1) * bytes("fetched_bytes")
        );
    }
    // Of documents that are not there, fields are sent all the same.
    let fields = [&restore[..], &["--json", "--fields", "number"]].concat();
    let fields = shop.firebank(fields).json();
    assert_eq!(fields["billed_writes"], 10);
    assert!(
        fields["written_bytes"].as_u64().unwrap() < bytes("written_bytes") / 4,
        "{fields}"
    );
    assert!(
        shown.contains("from the repository, 0 B from the database and"),
        "{shown}"
    );
    // A folder's bytes leave nothing that is billed.
    shop.desk.write("prices.json", r#"{"egress_gib": 1000000}"#);
    let priced = [&restore[..], &["--json", "--prices", "prices.json"]].concat();
    let priced = shop.firebank(priced).json();
    assert_eq!(priced["cost"]["egress"], 0.0, "{priced}");
    shop.firebank(["export", &id, "--format", "ndjson", "-o", "out"])
        .done();
    let files: Vec<String> = files_below(&shop.file("out"));
    let file = format!("out/{}", files[0]);
    let plan = shop.firebank(["import", &file, "--dry-run", "--json"]).json();
    assert_eq!(plan["cost"]["prices"]["location"], "us-central1");
}

/// A bucket of Google's has a place that the environment says; that of a service of somebody's own nobody knows.
#[test]
fn a_bucket_in_another_region_is_warned_of() {
    let shop = Shop::of(sandbox_with(SandboxConfig {
        administration: Administration::Describes(DatabaseFacts::default()),
        ..SandboxConfig::default()
    }));
    shop.put(
        SHOP,
        (0..10).map(|number| (place(number), body(number, 0))).collect(),
    );
    let Some(server) = shop.runtime.block_on(Server::start(Kind::Gcs)) else {
        return;
    };
    let mut variables = server.variables();
    variables.insert("FIREBANK_REPOSITORY".to_owned(), server.address("far"));
    variables.insert("FIRESTORE_EMULATOR_HOST".to_owned(), shop.address());
    variables.insert("FIREBASE_PROJECT_ID".to_owned(), SHOP.to_owned());
    let firebank = |place: &str, arguments: &[&str]| {
        let mut all: Vec<(&str, &str)> = Vec::new();
        all.extend(variables.iter().map(|(name, value)| (&name[..], &value[..])));
        all.extend([("FIREBANK_BUCKET_LOCATION", place)]);
        shop.run_with(&all, arguments)
    };
    const FAR: &str = "the database is in nam5, and the repository's bucket in europe-west1";
    firebank("", &["init"]).done();
    for arguments in [
        &["backup"][..],
        &["backup", "--dry-run"],
        &["restore", "latest", "--to-project", "demo-x", "--dry-run"],
        &["restore", "latest", "--to-project", "demo-x"],
    ] {
        for (place, warns) in [
            ("europe-west1", true),
            ("us-central1", false),
            ("US", false),
            ("", false),
        ] {
            let ended = firebank(place, arguments);
            assert_eq!(
                ended.stderr.contains(FAR),
                warns,
                "{place} {arguments:?}: {ended}"
            );
            assert_eq!(ended.code, 0, "{ended}");
        }
    }
    let estimate = firebank("europe-west1", &["backup", "-n", "--json"]).json();
    assert!(
        estimate["region_warning"].as_str().unwrap().contains(FAR),
        "{estimate}"
    );
    // What is in a bucket is paid for, and what leaves it.
    let first = firebank("", &["backup", "-n", "--full", "--json"]).json();
    assert!(first["cost"]["stored_month"].as_f64().unwrap() > 0.0, "{first}");
    shop.desk.write("prices.json", r#"{"egress_gib": 1048576}"#);
    let restore = ["restore", "latest", "--to-project", "demo-x", "--mode", "mirror"];
    let priced = ["--dry-run", "--json", "--prices", "prices.json"];
    let plan = firebank("", &[&restore[..], &priced[..]].concat()).json();
    let bytes = |name: &str| plan[name].as_u64().unwrap();
    assert!(bytes("read_bytes") > 0 && bytes("fetched_bytes") > 0, "{plan}");
    let kib = (bytes("read_bytes") + bytes("fetched_bytes")) as f64 / 1024.0;
    assert!(
        (plan["cost"]["egress"].as_f64().unwrap() - kib).abs() < 1e-6,
        "{plan}"
    );
}

#[test]
fn every_summary_says_what_was_billed() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    std::fs::create_dir(shop.file("migrations")).unwrap();
    shop.desk.write(
        "migrations/v1_currency.js",
        "export function migrate(db) { db.addField('products', 'currency', 'EUR'); }",
    );
    shop.desk.write(
        "migrations/v2_state.js",
        "export function migrate(db) { db.addField('products', 'state', 'new'); }",
    );
    let mirror = [
        "restore",
        "latest",
        "--to-project",
        "demo-x",
        "--mode",
        "mirror",
        "--json",
    ];
    let commands: [&[&str]; 15] = [
        &["backup", "--json"],
        &["backup", "--read", "full", "--json"],
        &["backup", "--format", "json", "-o", "files", "--json"],
        &["migrate", "--dry-run", "--json"],
        &["init", "--schema", "--json"],
        &["migrate", "--json"],
        &["diff", "latest", "live", "--json"],
        &["verify", "--live", "--json"],
        &["verify", "--live", "--counts", "--json"],
        &["verify", "--live", "--sample", "20", "--json"],
        &mirror,
        &["rollback", "--json"],
        &["reset-dev", "--confirm", "--json"],
        &["import", "lines.ndjson", "--mode", "skip-identical", "--json"],
        &["import", "lines.ndjson", "--json"],
    ];
    shop.desk.write(
        "lines.ndjson",
        r#"{"path": "products/p1", "document": {"n": 1}}"#.to_owned() + "\n",
    );
    for command in commands {
        let before = shop.sandbox.usage();
        let told = shop.firebank(command).json();
        let used = shop.sandbox.usage().since(&before);
        let number = |key: &str| told[key].as_u64().unwrap_or(0);
        assert_eq!(
            ["billed_reads", "billed_writes", "billed_deletes"].map(number),
            [used.reads, used.writes, used.deletes],
            "{command:?}: {told}"
        );
        let silent = shop.firebank(command.iter().filter(|word| **word != "--json").copied());
        if used.reads > 0 && [0, 3].contains(&silent.code) {
            assert!(
                silent.stdout.to_lowercase().contains("billed"),
                "{command:?}: {silent}"
            );
        }
    }
}
