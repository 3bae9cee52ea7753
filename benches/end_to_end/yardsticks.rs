//! The parts that nobody can leave out, each in a process of its own, so that its CPU seconds are its own.
//!
//! The benchmark starts itself again with a [`Yardstick`] and reads what that measured from its standard output.
//! Preparing (connecting to learn the key ranges, building requests, reading files) is not measured.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::thread;

use bytes::Bytes;
use clap::Subcommand;
use firebank::document::{DatabaseName, KeyRange, wire};
use firebank::firestore::ScanOptions;
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use futures::TryStreamExt;
use prost::Message;

use crate::measure::process::{self, Cost, Stopwatch, measure_by_itself};
use crate::measure::raw::{WRITES_PER_REQUEST, batch_write, connect, drain, root, single_threaded};

/// The database that is written.
pub(crate) const TARGET_PROJECT: &str = "demo-target";

/// What bare compression works on at a time: the archive's frame, because whoever can fetch a single document
/// pays for frames. That favours the archive a little: blocks of 8 MiB compress these documents 13 % better
/// and some 15 % faster.
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
        let arguments: Vec<&std::ffi::OsStr> = match self {
            Self::Drain { address } => vec!["drain".as_ref(), address.as_ref()],
            Self::Copy { address, file } => vec!["copy".as_ref(), address.as_ref(), file.as_ref()],
            Self::Compress { file } => vec!["compress".as_ref(), file.as_ref()],
            Self::Decompress { file } => vec!["decompress".as_ref(), file.as_ref()],
            Self::Hash { file } => vec!["hash".as_ref(), file.as_ref()],
            Self::BatchWrite { source, target } => {
                vec!["batch-write".as_ref(), source.as_ref(), target.as_ref()]
            }
        };
        measure_by_itself(&arguments)
    }
}

impl process::Yardstick for Yardstick {
    fn run(self) -> anyhow::Result<Cost> {
        match self {
            // One thread is the cheapest way: nothing moves between cores.
            Self::Drain { address } => single_threaded(drain(address, false)),
            Self::Copy { address, file } => single_threaded(copy(address, file)),
            Self::Compress { file } => each_block(&blocks(&file)?, compressor),
            Self::Decompress { file } => {
                let blocks = blocks(&file)?;
                let compressed: Vec<_> = blocks
                    .iter()
                    .map(|block| zstd::bulk::compress(block, LEVEL))
                    .collect::<Result<_, _>>()?;
                drop(blocks);
                each_block(&compressed, decompressor)
            }
            Self::Hash { file } => each_block(&blocks(&file)?, || {
                Ok(|block: &[u8]| {
                    std::hint::black_box(blake3::hash(block));
                    Ok(())
                })
            }),
            Self::BatchWrite { source, target } => single_threaded(async {
                let requests = write_requests(&source).await?;
                batch_write(&target, requests).await
            }),
        }
    }
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
