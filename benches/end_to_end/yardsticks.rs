//! The parts that nobody can leave out, each in a process of its own, so that its CPU seconds are its own.
//!
//! The benchmark starts itself again with a [`Yardstick`] and reads what that measured from its standard output.
//! Preparing (connecting to learn the key ranges, building requests, reading files) is not measured.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::Context;
use bytes::{Buf, BufMut, Bytes};
use clap::Subcommand;
use firebank::document::{DatabaseName, DocumentPath, KeyRange, Timestamp, wire};
use firebank::firestore::{ConnectOptions, Firestore, ScanOptions, Target};
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use firestore::gcloud_sdk::prost_types;
use futures::TryStreamExt;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::process::{Cost, Stopwatch, run};

/// The database that is read.
pub(crate) const SOURCE_PROJECT: &str = "demo-source";
/// The database that is written.
pub(crate) const TARGET_PROJECT: &str = "demo-target";

/// As many as `backup` has by default.
const READ_CONNECTIONS: usize = 4;
const READ_STREAMS: usize = 8;
/// As many as `restore` has by default.
const WRITE_CONNECTIONS: usize = 2;
const REQUESTS_IN_FLIGHT: usize = 16;
const WRITES_PER_REQUEST: usize = 500;
/// What bare compression works on at a time: the archive's frame, because whoever can fetch a single document pays
/// for frames. That favours the archive a little: blocks of 8 MiB compress these documents 13 % better and some 15 % faster.
const BLOCK: usize = 256 << 10;
const LEVEL: i32 = 3;

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Yardstick {
    /// Reads a database as raw bytes and throws them away
    Drain { address: String },
    /// Writes the canonical bytes of all documents to a file: what the other yardsticks work on
    Copy { address: String, file: PathBuf },
    /// Compresses a file with zstd
    Compress { file: PathBuf },
    /// Decompresses what a file was compressed to
    Decompress { file: PathBuf },
    /// Hashes a file with BLAKE3
    Hash { file: PathBuf },
    /// Sends requests that were built before from the documents of one database to another
    BatchWrite { source: String, target: String },
}

impl Yardstick {
    /// Starts this benchmark again to measure, and waits for it.
    pub(crate) fn measure(&self) -> anyhow::Result<Cost> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.arg("yardstick");
        match self {
            Self::Drain { address } => command.arg("drain").arg(address),
            Self::Copy { address, file } => command.arg("copy").arg(address).arg(file),
            Self::Compress { file } => command.arg("compress").arg(file),
            Self::Decompress { file } => command.arg("decompress").arg(file),
            Self::Hash { file } => command.arg("hash").arg(file),
            Self::BatchWrite { source, target } => command.arg("batch-write").args([source, target]),
        };
        let (_, printed) = run(&mut command)?;
        serde_json::from_slice(&printed).context("the yardstick printed something else than what it measured")
    }

    /// Measures, in the process that was started for it, and prints the result.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let cost = match self {
            // One thread is the cheapest way: nothing moves between cores.
            Self::Drain { address } => single_threaded(drain(address))?,
            Self::Copy { address, file } => single_threaded(copy(address, file))?,
            Self::Compress { file } => each_block(&blocks(&file)?, compressor)?,
            Self::Decompress { file } => {
                let blocks = blocks(&file)?;
                let compressed: Vec<_> = blocks
                    .iter()
                    .map(|block| zstd::bulk::compress(block, LEVEL))
                    .collect::<Result<_, _>>()?;
                drop(blocks);
                each_block(&compressed, decompressor)?
            }
            Self::Hash { file } => each_block(&blocks(&file)?, || {
                Ok(|block: &[u8]| {
                    std::hint::black_box(blake3::hash(block));
                    Ok(())
                })
            })?,
            Self::BatchWrite { source, target } => single_threaded(batch_write(source, target))?,
        };
        serde_json::to_writer(std::io::stdout().lock(), &cost)?;
        Ok(())
    }
}

fn single_threaded(work: impl Future<Output = anyhow::Result<Cost>>) -> anyhow::Result<Cost> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

fn blocks(file: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    Ok(fs::read(file)?.chunks(BLOCK).map(<[u8]>::to_vec).collect())
}

/// Works on all blocks, on as many threads as there are cores.
fn each_block<Work>(
    blocks: &[Vec<u8>],
    worker: impl Fn() -> anyhow::Result<Work> + Sync,
) -> anyhow::Result<Cost>
where
    Work: FnMut(&[u8]) -> anyhow::Result<()>,
{
    let threads = thread::available_parallelism()?.get();
    let stopwatch = Stopwatch::start()?;
    thread::scope(|scope| {
        let shares: Vec<_> = blocks
            .chunks(blocks.len().div_ceil(threads).max(1))
            .map(|share| {
                scope.spawn(|| {
                    let mut work = worker()?;
                    share.iter().try_for_each(|block| work(block))
                })
            })
            .collect();
        shares.into_iter().try_for_each(|share| {
            share
                .join()
                .map_err(|_| anyhow::anyhow!("a thread has panicked"))?
        })
    })?;
    stopwatch.stop()
}

fn compressor() -> anyhow::Result<impl FnMut(&[u8]) -> anyhow::Result<()>> {
    let mut context = zstd::bulk::Compressor::new(LEVEL)?;
    let mut out = vec![0; zstd::zstd_safe::compress_bound(BLOCK)];
    Ok(move |block: &[u8]| {
        std::hint::black_box(context.compress_to_buffer(block, &mut out[..])?);
        Ok(())
    })
}

fn decompressor() -> anyhow::Result<impl FnMut(&[u8]) -> anyhow::Result<()>> {
    let mut context = zstd::bulk::Decompressor::new()?;
    let mut out = vec![0; BLOCK];
    Ok(move |block: &[u8]| {
        std::hint::black_box(context.decompress_to_buffer(block, &mut out[..])?);
        Ok(())
    })
}

async fn connect(address: &str) -> anyhow::Result<Firestore> {
    let database = DatabaseName::new(SOURCE_PROJECT, DatabaseName::DEFAULT_DATABASE);
    let target = Target::Emulator {
        host_port: address.to_owned(),
    };
    Ok(Firestore::connect(ConnectOptions::new(database, target)).await?)
}

async fn copy(address: String, file: PathBuf) -> anyhow::Result<Cost> {
    let source = connect(&address).await?;
    let read_time = source.current_read_time().await?;
    let mut file = std::io::BufWriter::new(fs::File::create(file)?);
    let stopwatch = Stopwatch::start()?;
    let mut batches = pin!(source.scan(ScanOptions::new(KeyRange::all(), read_time)));
    while let Some(batch) = batches.try_next().await? {
        for document in batch.iter() {
            file.write_all(document.body)?;
        }
    }
    file.flush()?;
    stopwatch.stop()
}

async fn drain(address: String) -> anyhow::Result<Cost> {
    let source = connect(&address).await?;
    let read_time = source.current_read_time().await?;
    let boundaries = source.split(&KeyRange::all(), read_time, READ_STREAMS).await?;
    let names = boundaries
        .iter()
        .map(|key| DocumentPath::from_key(key.as_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    let starts = std::iter::once(None).chain(names.iter().map(Some));
    let ends = names.iter().map(Some).chain([None]);
    let channels = channels(&address, READ_CONNECTIONS)?;

    let stopwatch = Stopwatch::start()?;
    let streams = starts
        .zip(ends)
        .zip(channels.iter().cycle())
        .map(|((start, end), channel)| async move {
            let mut grpc = Grpc::new(channel.clone());
            grpc.ready().await?;
            let path = PathAndQuery::from_static("/google.firestore.v1.Firestore/RunQuery");
            let request = as_administrator(range_query(start, end, read_time));
            let mut answers = grpc.server_streaming(request, path, RawCodec).await?.into_inner();
            while answers.message().await?.is_some() {}
            anyhow::Ok(())
        });
    futures::future::try_join_all(streams).await?;
    stopwatch.stop()
}

/// All documents between two names.
fn range_query(start: Option<&DocumentPath>, end: Option<&DocumentPath>, read_time: Timestamp) -> Bytes {
    use pb::structured_query::{CollectionSelector, Direction, FieldReference, Order};
    let root = root(SOURCE_PROJECT);
    let before = |name: &DocumentPath| pb::Cursor {
        values: vec![pb::Value {
            value_type: Some(pb::value::ValueType::ReferenceValue(format!("{root}/{name}"))),
        }],
        before: true,
    };
    let query = pb::StructuredQuery {
        from: vec![CollectionSelector {
            collection_id: String::new(),
            all_descendants: true,
        }],
        order_by: vec![Order {
            field: Some(FieldReference {
                field_path: "__name__".to_owned(),
            }),
            direction: Direction::Ascending.into(),
        }],
        start_at: start.map(before),
        end_at: end.map(before),
        ..Default::default()
    };
    let time = prost_types::Timestamp {
        seconds: read_time.seconds,
        nanos: read_time.nanos as i32,
    };
    let request = pb::RunQueryRequest {
        parent: root.clone(),
        query_type: Some(pb::run_query_request::QueryType::StructuredQuery(query)),
        consistency_selector: Some(pb::run_query_request::ConsistencySelector::ReadTime(time)),
        ..Default::default()
    };
    request.encode_to_vec().into()
}

async fn batch_write(source: String, target: String) -> anyhow::Result<Cost> {
    let requests = write_requests(&source).await?;
    let channels = channels(&target, WRITE_CONNECTIONS)?;
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

/// The requests that put every document of the source into the target's database.
async fn write_requests(source: &str) -> anyhow::Result<Vec<Bytes>> {
    let source = connect(source).await?;
    let read_time = source.current_read_time().await?;
    let database = DatabaseName::new(TARGET_PROJECT, DatabaseName::DEFAULT_DATABASE).resource();
    let root = root(TARGET_PROJECT);
    let request = |writes: Vec<pb::Write>| {
        let request = pb::BatchWriteRequest {
            database: database.clone(),
            writes,
            ..Default::default()
        };
        Bytes::from(request.encode_to_vec())
    };
    let mut requests = Vec::new();
    let mut writes = Vec::new();
    let mut message = Vec::new();
    let mut batches = pin!(source.scan(ScanOptions::new(KeyRange::all(), read_time)));
    while let Some(batch) = batches.try_next().await? {
        for document in batch.iter() {
            message.clear();
            wire::append_document_message(&document.path()?, document.body, &root, &mut message)?;
            let update = pb::write::Operation::Update(pb::Document::decode(&message[..])?);
            writes.push(pb::Write {
                operation: Some(update),
                ..Default::default()
            });
            if writes.len() == WRITES_PER_REQUEST {
                requests.push(request(std::mem::take(&mut writes)));
            }
        }
    }
    if !writes.is_empty() {
        requests.push(request(writes));
    }
    Ok(requests)
}

fn root(project: &str) -> String {
    DatabaseName::new(project, DatabaseName::DEFAULT_DATABASE).root()
}

/// Connections as the tool's own.
fn channels(address: &str, count: usize) -> anyhow::Result<Vec<Channel>> {
    let endpoint = Channel::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(10 << 20);
    Ok((0..count).map(|_| endpoint.connect_lazy()).collect())
}

fn as_administrator(message: Bytes) -> Request<Bytes> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "authorization",
        tonic::metadata::MetadataValue::from_static("Bearer owner"),
    );
    request
}

/// Passes bytes through.
#[derive(Clone, Copy, Debug, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.len());
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(128 << 10, 32 << 10)
    }
}
