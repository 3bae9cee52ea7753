//! A migration over a whole collection, measured against reading it and writing the same changes with bare BatchWrite.
//!
//! `cargo bench --bench migrations` makes the figures; after `--` come options, such as `--documents 20000 --runs 5`. The
//! database is the sandbox in a process of its own, and so is each side of the comparison. The script transforms every document
//! with a function; the yardstick reads the raw bytes and throws them away, then sends requests with the same changes that were
//! built before. What a user has is `firebank migrate`, which keeps before-images in a repository, here on the local disk, before it
//! writes; the script alone, without them, shows what they cost. All begin with the same documents; they take turns within one
//! run.

#[path = "measure/mod.rs"]
mod measure;

use std::ffi::OsStr;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use firebank::archive::Repository;
use firebank::document::{CollectionPath, DatabaseName, Fields, Value, canonical};
use firebank::firestore::{BulkWriter, Query, WriteFailure, WriteOptions};
use firebank::migration::{
    Function, Limits, MigrateOptions, NoJournal, RunMode, RunOptions, Runner, RunnerOptions, Script,
};
use firebank::store::Store;
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use futures::TryStreamExt;
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;

use measure::process::{self, Cost, Sandbox, Stopwatch, asked, measure_by_itself};
use measure::raw::{
    RawCodec, SOURCE_PROJECT, as_administrator, channels, connect, drain, root, single_threaded,
};
use measure::report::{self, Bound, Row};

const COLLECTION: &str = "products";
const WRITE_CONNECTIONS: usize = 2;
const REQUESTS_IN_FLIGHT: usize = 16;
const WRITES_PER_REQUEST: usize = 500;

#[derive(Debug, Parser)]
#[command(about = "Measures migrations against what they are made of")]
struct Options {
    /// Documents in the collection
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    documents: u64,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is done in a process of its own.
#[derive(Clone, Debug, Subcommand)]
enum Part {
    /// Migrates, with before-images in a repository on the local disk
    Migrate { address: String, round: u64 },
    /// Runs the script alone
    Transform { address: String, round: u64 },
    /// Reads everything as raw bytes
    Drain { address: String },
    /// Sends the same changes, built before
    BatchWrite { address: String, round: u64 },
}

impl Part {
    fn measure(&self) -> anyhow::Result<Cost> {
        let (name, address, round) = match self {
            Self::Migrate { address, round } => ("migrate", address, Some(round)),
            Self::Transform { address, round } => ("transform", address, Some(round)),
            Self::Drain { address } => ("drain", address, None),
            Self::BatchWrite { address, round } => ("batch-write", address, Some(round)),
        };
        let round = round.map(u64::to_string);
        let mut arguments: Vec<&OsStr> = vec![name.as_ref(), address.as_ref()];
        arguments.extend(round.as_ref().map(AsRef::<OsStr>::as_ref));
        measure_by_itself(&arguments)
    }
}

impl process::Yardstick for Part {
    fn run(self) -> anyhow::Result<Cost> {
        match self {
            Self::Migrate { address, round } => {
                tokio::runtime::Runtime::new()?.block_on(migrate(address, round))
            }
            Self::Transform { address, round } => {
                tokio::runtime::Runtime::new()?.block_on(transform(address, round))
            }
            Self::Drain { address } => single_threaded(drain(address, false)),
            Self::BatchWrite { address, round } => single_threaded(batch_write(address, round)),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let Some(options) = asked::<Part, Options>()? else {
        return Ok(());
    };
    ensure!(options.runs >= 1, "at least one run");
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    let (mut alone_wall, mut alone_cpu) = (Vec::new(), Vec::new());
    for round in 1..=options.runs as u64 {
        // A fresh server each: what was written before must not make either side slower.
        let run = |part: fn(String, u64) -> Part| {
            let sandbox = Sandbox::start(&[])?;
            let address = sandbox.address.clone();
            tokio::runtime::Runtime::new()?.block_on(load(&address, options.documents))?;
            let drained = Part::Drain {
                address: address.clone(),
            }
            .measure()?;
            anyhow::Ok((drained, part(address, round).measure()?))
        };
        let (_, migrated) = run(|address, round| Part::Migrate { address, round })?;
        let (_, transformed) = run(|address, round| Part::Transform { address, round })?;
        let (drained, written) = run(|address, round| Part::BatchWrite { address, round })?;
        let (bare_wall, bare_cpu) = (drained.wall + written.wall, drained.cpu + written.cpu);
        wall.push((migrated.wall, bare_wall));
        cpu.push((migrated.cpu, bare_cpu));
        alone_wall.push((transformed.wall, bare_wall));
        alone_cpu.push((transformed.cpu, bare_cpu));
    }
    let rows = [
        Row::new(
            "migrate with before-images: wall / (draining + bare BatchWrite of the same changes)",
            "s",
            Bound::AtMost(2.0),
            &wall,
        ),
        Row::new(
            "migrate with before-images: CPU of the process / the same two",
            "s",
            None,
            &cpu,
        ),
        Row::new("the script alone: wall / the same two", "s", None, &alone_wall),
        Row::new(
            "the script alone: CPU of the process / the same two",
            "s",
            None,
            &alone_cpu,
        ),
    ];
    report::print(&rows, options.json)
}

/// A product as a shop has it.
fn product(number: u64) -> Fields {
    let text = |text: &str| Value::String(text.to_owned());
    let map = |entries: &[(&str, Value)]| -> Fields {
        entries
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect()
    };
    map(&[
        (
            "name",
            text(&format!("Product {number}, in the colour that everybody wants")),
        ),
        ("price", Value::Double(number as f64 / 100.0)),
        ("stock", Value::Integer(number as i64 % 1000)),
        ("active", Value::Boolean(true)),
        (
            "description",
            text(&"What can be said about it, at some length. ".repeat(10)),
        ),
        (
            "tags",
            Value::Array(vec![text("new"), text("sale"), text("summer")]),
        ),
        (
            "dimensions",
            Value::Map(map(&[
                ("width", Value::Double(1.5)),
                ("height", Value::Integer(3)),
            ])),
        ),
        ("rating", Value::Double(4.5)),
        (
            "created_at",
            Value::Timestamp(firebank::document::Timestamp::new(1_751_198_400, 0)),
        ),
    ])
}

async fn load(address: &str, documents: u64) -> anyhow::Result<()> {
    let database = connect(address).await?;
    let failures = Arc::<Mutex<Vec<WriteFailure>>>::default();
    let mut writer = BulkWriter::new(&database, WriteOptions::new(&database), failures.clone());
    let collection = CollectionPath::parse(COLLECTION)?;
    for number in 0..documents {
        let path = collection.document(&format!("p{number:08}"))?;
        writer.put(&path, &canonical::encode(&product(number))).await?;
    }
    let stats = writer.finish().await?;
    ensure!(
        stats.written == documents,
        "the database took only {}",
        stats.written
    );
    Ok(())
}

fn script(round: u64) -> String {
    format!(
        "export function migrate(db) {{\n\
         db.transform('{COLLECTION}', (data) => ({{ ...data, round: {round}, total: data.price * data.stock }}));\n}}\n"
    )
}

async fn migrate(address: String, round: u64) -> anyhow::Result<Cost> {
    let database = connect(&address).await?;
    let folder = tempfile::tempdir()?;
    let scripts = folder.path().join("migrations");
    std::fs::create_dir(&scripts)?;
    std::fs::write(scripts.join("v1_bench.js"), script(round))?;
    let store = folder.path().join("repository");
    std::fs::create_dir(&store)?;
    let store = Store::local(store)?;
    let repository = Repository::init(store, firebank::clock::now()).await?;
    let options = RunnerOptions::new(&database, scripts, "the benchmark");
    let runner = Runner::new(database, Some(repository), options);
    let stopwatch = Stopwatch::start()?;
    let stats = runner
        .migrate(MigrateOptions::default(), &Default::default())
        .await?;
    let cost = stopwatch.stop()?;
    let applied = stats.applied.first().context("nothing was applied")?;
    ensure!(
        applied.updated > 0 && applied.snapshot.is_some(),
        "nothing was transformed"
    );
    Ok(cost)
}

async fn transform(address: String, round: u64) -> anyhow::Result<Cost> {
    let database = connect(&address).await?;
    let script = Script::load(
        Path::new("v1_bench.js"),
        script(round),
        Default::default(),
        Limits::default(),
    )?;
    let options = RunOptions::new(RunMode::write(&database, Arc::new(NoJournal)));
    let stopwatch = Stopwatch::start()?;
    let stats = script
        .run(Function::Migrate, &database, options, &Default::default())
        .await?;
    let cost = stopwatch.stop()?;
    ensure!(stats.updated > 0, "nothing was transformed");
    Ok(cost)
}

async fn batch_write(address: String, round: u64) -> anyhow::Result<Cost> {
    let requests = write_requests(&address, round).await?;
    let channels = channels(&address, WRITE_CONNECTIONS)?;
    let waiting = Arc::new(Mutex::new(requests.into_iter()));
    let stopwatch = Stopwatch::start()?;
    let senders = channels.iter().cycle().take(REQUESTS_IN_FLIGHT).map(|channel| {
        let waiting = waiting.clone();
        async move {
            let mut grpc = Grpc::new(channel.clone());
            loop {
                let next = waiting.lock().ok().and_then(|mut waiting| waiting.next());
                let Some(request) = next else {
                    return anyhow::Ok(());
                };
                grpc.ready().await?;
                let path = PathAndQuery::from_static("/google.firestore.v1.Firestore/BatchWrite");
                grpc.unary(as_administrator(request), path, RawCodec).await?;
            }
        }
    });
    futures::future::try_join_all(senders).await?;
    stopwatch.stop()
}

/// The requests that make the same changes as the script.
async fn write_requests(address: &str, round: u64) -> anyhow::Result<Vec<Bytes>> {
    use pb::value::ValueType;
    let source = connect(address).await?;
    let read_time = source.current_read_time().await?;
    let database = DatabaseName::new(SOURCE_PROJECT, DatabaseName::DEFAULT_DATABASE).resource();
    let root = root(SOURCE_PROJECT);
    let query = Query::collection(&CollectionPath::parse(COLLECTION)?);
    let mut writes = Vec::new();
    let mut batches = pin!(source.query(query, read_time));
    while let Some(batch) = batches.try_next().await? {
        for document in batch.iter() {
            let fields = canonical::decode(document.body)?;
            let (Some(Value::Double(price)), Some(Value::Integer(stock))) =
                (fields.get("price"), fields.get("stock"))
            else {
                anyhow::bail!("a product without a price and a stock");
            };
            let total = price * *stock as f64;
            let value = |value| pb::Value {
                value_type: Some(value),
            };
            let total = match total.fract() == 0.0 {
                true => ValueType::IntegerValue(total as i64),
                false => ValueType::DoubleValue(total),
            };
            let changed = [
                ("round".to_owned(), value(ValueType::IntegerValue(round as i64))),
                ("total".to_owned(), value(total)),
            ];
            writes.push(pb::Write {
                operation: Some(pb::write::Operation::Update(pb::Document {
                    name: format!("{root}/{}", document.path()?),
                    fields: changed.into(),
                    ..Default::default()
                })),
                update_mask: Some(pb::DocumentMask {
                    field_paths: vec!["round".to_owned(), "total".to_owned()],
                }),
                ..Default::default()
            });
        }
    }
    let requests = writes.chunks(WRITES_PER_REQUEST).map(|writes| {
        let request = pb::BatchWriteRequest {
            database: database.clone(),
            writes: writes.to_vec(),
            ..Default::default()
        };
        Bytes::from(request.encode_to_vec())
    });
    let requests: Vec<Bytes> = requests.collect();
    requests.first().context("there are no documents")?;
    Ok(requests)
}
