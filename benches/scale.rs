//! Plan on paper: what backups of 100 million and 10 billion documents come to, by arithmetic from a backup and a night of a small
//! database that are really taken.
//!
//! `cargo bench --bench scale` prints the tables of `src/SCALE.md`. The database is the sandbox in this process, the repository is in
//! memory, the documents are the same each time. What grows with the documents is measured for one and multiplied; what is decided by
//! how many readers there are is computed as the plan does it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that prints a table or stops"
)]

use std::collections::BTreeMap;

use clap::Parser;
use firebank::archive::{Parameters, Repository, RepositoryId, Snapshot};
use firebank::backup::{BackupOptions, backup};
use firebank::clock;
use firebank::cost::{Billed, Prices};
use firebank::document::{DatabaseName, DocumentPath, Fields, Value, canonical};
use firebank::firestore::{BulkWriter, ConnectOptions, Firestore, Target, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::sandbox::{Sandbox, SandboxConfig, SyntheticSpec};
use firebank::store::Store;
use futures::TryStreamExt;

#[derive(Debug, Parser)]
#[command(about = "What backups of very large databases come to")]
struct Options {
    /// Documents in the database that is really backed up
    #[arg(long, value_name = "N", default_value_t = 400_000)]
    documents: u64,
    /// About how many bytes a document has
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    document_bytes: usize,
    /// Cargo hands it over
    #[arg(long, hide = true)]
    bench: bool,
}

/// Objects of a kind, and their bytes.
#[derive(Clone, Copy, Default)]
struct Objects {
    count: f64,
    bytes: f64,
}

/// What one backup took.
struct Taken {
    snapshot: Snapshot,
    /// By the kind that a chunk's header names; 0 for what is no chunk.
    objects: BTreeMap<u8, Objects>,
    received_bytes: f64,
    requests: f64,
    /// Objects that were created.
    creations: f64,
    /// Bytes that were read from the repository.
    read_bytes: f64,
}

const DATA: u8 = 1;
const INDEX: u8 = 2;
const DIRECTORY: u8 = 3;

async fn objects(store: &Store) -> BTreeMap<u8, Objects> {
    let mut kinds: BTreeMap<u8, Objects> = BTreeMap::new();
    let mut listed = store.list("");
    while let Some(info) = listed.try_next().await.unwrap() {
        let kind = match info.name.starts_with("chunks/") {
            true => store.get_range(&info.name, 9..10).await.unwrap()[0],
            false => 0,
        };
        let objects = kinds.entry(kind).or_default();
        objects.count += 1.0;
        objects.bytes += info.size as f64;
    }
    kinds
}

async fn take(database: &Firestore, store: &Store, repository: &Repository) -> Taken {
    let (before, asked, stored) = (objects(store).await, database.stats().counts(), store.requests());
    let stats = backup(database, repository, BackupOptions::default(), &Progress::new())
        .await
        .unwrap();
    let (counts, requests) = (database.stats().counts().since(&asked), store.requests());
    let mut kinds = objects(store).await;
    for (kind, objects) in &mut kinds {
        let earlier = before.get(kind).copied().unwrap_or_default();
        objects.count -= earlier.count;
        objects.bytes -= earlier.bytes;
    }
    Taken {
        snapshot: stats.snapshot,
        objects: kinds,
        received_bytes: counts.received_bytes as f64,
        requests: counts.total_requests() as f64,
        creations: (requests.put + requests.put_create - stored.put - stored.put_create) as f64,
        read_bytes: (requests.received_bytes - stored.received_bytes) as f64,
    }
}

impl Taken {
    fn of(&self, kind: u8) -> Objects {
        self.objects.get(&kind).copied().unwrap_or_default()
    }
}

/// A hundredth of the documents, written anew.
async fn change(database: &Firestore, documents: u64) {
    let mut writer = BulkWriter::new(database, WriteOptions::new(database), Vec::<WriteFailure>::new());
    let scan = firebank::firestore::ScanOptions::names(
        firebank::document::KeyRange::all(),
        database.current_read_time().await.unwrap(),
    );
    let mut batches = Box::pin(database.scan(scan));
    let mut number = 0;
    let mut paths: Vec<DocumentPath> = Vec::new();
    while let Some(batch) = batches.try_next().await.unwrap() {
        for document in batch.iter() {
            number += 1;
            if number % 100 == 0 {
                paths.push(document.path().unwrap());
            }
        }
    }
    for (number, path) in paths.iter().enumerate() {
        let text = (0..60).map(|word| format!("{:x}", (number as u64 + 1).wrapping_mul(0x9e37_79b9 + word)));
        let fields: Fields = [("text".to_owned(), Value::String(text.collect()))].into();
        writer.put(path, &canonical::encode(&fields)).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap().written, documents / 100);
}

fn si(number: f64) -> String {
    for (unit, size) in [("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if number >= size {
            return format!("{:.1} {unit}", number / size);
        }
    }
    format!("{number:.0}")
}

fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} days", seconds / 86_400.0),
    }
}

fn row(name: &str, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<String> = cells.into_iter().collect();
    println!("| {name} | {} |", cells.join(" | "));
}

const SIZES: [(f64, f64); 2] = [(1e8, 8.0), (1e10, 64.0)];
const READERS: f64 = 8.0;
/// What plans go by: ranges for each reader, and documents that a range has at least.
const RANGES_PER_READER: f64 = 4.0;
const LEAST: f64 = 65_536.0;
const LEAST_COMPARED: f64 = 16_384.0;

/// Records of a full index chunk, bytes of filters for each, and records of a range that have them.
const INDEX_RECORDS: f64 = 65_536.0;
const FILTER_BYTES: f64 = 1.25;
const FILTERED: f64 = 1_048_576.0;

fn ranges((documents, tasks): (f64, f64), least: f64) -> f64 {
    (documents / least)
        .floor()
        .clamp(1.0, tasks * READERS * RANGES_PER_READER)
}

/// A value for each size.
fn each(value: impl Fn((f64, f64)) -> String) -> Vec<String> {
    SIZES.into_iter().map(value).collect()
}

fn tables(options: &Options, first: &Taken, night: &Taken) {
    let n = options.documents as f64;
    let per = |total: f64| total / n;
    let changed = (options.documents / 100) as f64;
    println!(
        "Measured, for each of {} documents of {} bytes:\n",
        si(n),
        options.document_bytes
    );
    println!("| | first backup | a night of 1 % |\n| --- | --- | --- |");
    let pair = |name: &str, value: &dyn Fn(&Taken) -> String| row(name, [value(first), value(night)]);
    pair("bytes from the database, a document", &|taken| {
        format!("{:.0}", per(taken.received_bytes))
    });
    pair("data stored, bytes a document written", &|taken| {
        let stats = &taken.snapshot.stats;
        let written = (stats.new_documents + stats.changed_documents) as f64;
        format!("{:.0}", taken.of(DATA).bytes / written)
    });
    pair("index stored, bytes a document written", &|taken| {
        let stats = &taken.snapshot.stats;
        let written = (stats.new_documents + stats.changed_documents) as f64;
        format!("{:.1}", taken.of(INDEX).bytes / written)
    });
    pair("index read, bytes a document", &|taken| {
        format!("{:.1}", per(taken.read_bytes))
    });
    pair("requests to the database", &|taken| {
        format!("{:.0}", taken.requests)
    });
    pair("objects created", &|taken| format!("{:.0}", taken.creations));

    println!("\nThe first backup:\n");
    println!(
        "| documents | {} |\n| --- | --- | --- |",
        each(|(documents, _)| si(documents)).join(" | ")
    );
    row(
        "tasks, of 8 readers each",
        each(|(_, tasks)| format!("{tasks:.0}")),
    );
    row("ranges", each(|size| si(ranges(size, LEAST))));
    row(
        "documents in a range",
        each(|size| si(size.0 / ranges(size, LEAST))),
    );
    row(
        "bytes read",
        each(|(documents, _)| si(documents * per(first.received_bytes))),
    );
    row(
        "queries",
        each(|size| si(size.0 * 1000.0 / 16e6 + 2.0 * ranges(size, LEAST))),
    );
    let data = first.of(DATA);
    row(
        "data: objects",
        each(|(documents, _)| si(documents * per(data.count))),
    );
    row(
        "data: bytes",
        each(|(documents, _)| si(documents * per(data.bytes))),
    );
    row(
        "index: objects",
        each(|size| si(size.0 / INDEX_RECORDS + ranges(size, LEAST))),
    );
    row(
        "index: bytes",
        each(|(documents, _)| si(documents * per(first.of(INDEX).bytes))),
    );
    let entries = per(first.of(DIRECTORY).bytes) - FILTER_BYTES;
    row(
        "directory: bytes, held by whoever commits",
        each(|size| {
            let filtered = (FILTERED / (size.0 / ranges(size, LEAST))).min(1.0);
            si(size.0 * (entries + FILTER_BYTES * filtered))
        }),
    );
    row(
        "checkpoints at 5.0 k documents a second a task",
        each(|size| si(size.0 / 5000.0 / 60.0 * READERS + ranges(size, LEAST))),
    );
    row("billed reads", each(|(documents, _)| si(documents * 1.001)));
    let money = |reads: f64| {
        let billed = Billed {
            reads: reads as u64,
            ..Billed::default()
        };
        format!("{:.0}", Prices::at(None).of(&billed).total)
    };
    row(
        "their price, USD (nam5)",
        each(|(documents, _)| money(documents * 1.001)),
    );
    for rate in [5_000.0, 20_000.0] {
        let name = format!("time at {} documents a second a task", si(rate));
        row(&name, each(|(documents, tasks)| time(documents / rate / tasks)));
    }
    row(
        "documents a second, to be of one moment within an hour",
        each(|(documents, _)| si(documents / 3600.0)),
    );
    row(
        "the same within seven days (`--pitr`)",
        each(|(documents, _)| si(documents / 604_800.0)),
    );

    println!("\nA night of 1 %:\n");
    println!(
        "| documents | {} |\n| --- | --- | --- |",
        each(|(documents, _)| si(documents)).join(" | ")
    );
    row("ranges", each(|size| si(ranges(size, LEAST_COMPARED))));
    row(
        "names: billed reads",
        each(|(documents, _)| si(documents * 1.0101)),
    );
    row(
        "names: their price, USD",
        each(|(documents, _)| money(documents * 1.0101)),
    );
    row(
        "names: bytes from the database",
        each(|(documents, _)| si(documents * per(night.received_bytes))),
    );
    row(
        "names: index read from the repository",
        each(|(documents, _)| si(documents * per(night.read_bytes))),
    );
    for rate in [20_000.0, 50_000.0] {
        let name = format!("names: time at {} a second a task", si(rate));
        row(&name, each(|(documents, tasks)| time(documents / rate / tasks)));
    }
    // As the estimate of `changed:FIELD` has it, for one collection group and 0.1 % of them gone.
    let field = |documents: f64| documents * (0.01 + 0.002 + 0.001 * 24.0);
    row(
        "field: billed reads, 0.1 % gone",
        each(|(documents, _)| si(field(documents))),
    );
    row(
        "field: their price, USD",
        each(|(documents, _)| money(field(documents))),
    );
    let stored = night.snapshot.stats.stored_bytes as f64 / changed;
    row(
        "bytes stored",
        each(|(documents, _)| si(documents * 0.01 * stored)),
    );
    row(
        "objects created: checkpoints, claims and data",
        each(|size| si(4.0 * ranges(size, LEAST_COMPARED) + size.0 * 0.01 * 600.0 / 8e6 * 2.0)),
    );
}

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let name = DatabaseName::new("demo-scale", "(default)");
        let sandbox = Sandbox::start(SandboxConfig {
            synthetic: vec![SyntheticSpec {
                database: Some(name.clone()),
                ..SyntheticSpec::new("events", options.documents, options.document_bytes)
            }],
            ..SandboxConfig::default()
        })
        .await
        .unwrap();
        let target = Target::Emulator {
            host_port: sandbox.address().to_string(),
        };
        let database = Firestore::connect(ConnectOptions::new(name, target))
            .await
            .unwrap();
        let store = Store::memory();
        let id = RepositoryId::from_u64(1);
        let parameters = Parameters::with_seed(1);
        let repository = Repository::init_with(store.clone(), clock::now(), id, parameters)
            .await
            .unwrap();
        let first = take(&database, &store, &repository).await;
        change(&database, options.documents).await;
        let night = take(&database, &store, &repository).await;
        tables(&options, &first, &night);
    });
}
