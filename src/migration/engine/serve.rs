//! The database's side of a run: does what the script's thread asks for, one request after the other.
//!
//! Requests come over a bounded channel, so a script that writes faster than the database takes it waits. Everything that is
//! under way belongs to this side: when it is dropped, the tasks end and the script's next call fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::bulk::Bulk;
use super::change::Write;
use super::deliver::Delivery;
use super::failure::Failure;
use super::scan::{Scan, Source};
use super::sink::Sink;
use super::writer::Writer;
use crate::document::{DocumentBatch, DocumentPath};
use crate::firestore::{Firestore, Query};
use crate::migration::{RunStats, StoredDocument};
use crate::progress::Progress;
use crate::stop::Stop;

/// What a script wants.
#[derive(Debug)]
pub(super) enum Request {
    /// Writes, in this order. There is no answer: a failure ends the run.
    Write(Vec<Write>),
    /// A document as it is now.
    Get(DocumentPath, Reply<Option<StoredDocument>>),
    /// The documents that a query selects now.
    Open(Query, Reply<mpsc::Receiver<Scanned>>),
    /// How many documents a query selects now.
    Count(Query, Reply<u64>),
    /// A step over a whole collection; how many documents it concerned.
    Bulk(Bulk, Arc<str>, Reply<u64>),
    /// That what concerns a query is written; whether functions must run again on some of it.
    Ready(Query, Reply<bool>),
    /// That everything is written; the documents on which functions must run again.
    Flush(Reply<Vec<(u32, DocumentPath)>>),
}

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// What a scan brings.
#[derive(Debug)]
pub(super) enum Scanned {
    /// Some documents.
    Documents(DocumentBatch),
    /// There are no more.
    End,
    /// It cannot go on.
    Failed(Failure),
}

/// Batches of a scan that wait for the script.
const READ_AHEAD: usize = 2;

/// See the module's documentation.
pub(super) struct Server<S> {
    pub(super) firestore: Firestore,
    pub(super) writer: Writer<S>,
    scans: JoinSet<()>,
    read: Reading,
    bounds: Bounds,
}

/// How long a run goes on.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    /// The most that a call may take.
    pub(super) call: Duration,
    /// When all of it must be over, and how long that is from its beginning.
    pub(super) total: Option<(Instant, Duration)>,
    /// Whether somebody asked to stop.
    pub(super) stop: Stop,
}

impl Bounds {
    /// Whether the run may go on. The script's thread looks by itself, but not while it waits for an answer.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.stop.is_requested() {
            return Err(Failure::Stopped);
        }
        match self.total {
            Some((end, total)) if Instant::now() > end => Err(Failure::TotalTime(total)),
            _ => Ok(()),
        }
    }
}

/// Counts what was read.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    documents: Arc<AtomicU64>,
    progress: Progress,
}

impl Reading {
    pub(super) fn add(&self, documents: usize, bytes: usize) {
        self.documents.fetch_add(documents as u64, Ordering::Relaxed);
        self.progress.add(documents as u64, bytes as u64);
    }
}

impl<S: Sink> Server<S> {
    pub(super) fn new(firestore: Firestore, writer: Writer<S>, progress: Progress, bounds: Bounds) -> Self {
        Self {
            firestore,
            writer,
            scans: JoinSet::new(),
            read: Reading {
                documents: Arc::default(),
                progress,
            },
            bounds,
        }
    }

    pub(super) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Serves until the script is done. What it has not asked to be flushed by then, because it failed, is not written.
    pub(super) async fn serve(mut self, mut requests: mpsc::Receiver<Request>) -> Result<RunStats, Failure> {
        let served = self.serve_all(&mut requests).await;
        // From here on every call of the script fails.
        drop(requests);
        self.writer.wind_down().await;
        served?;
        let mut stats = std::mem::take(&mut self.writer.stats);
        stats.read = self.read.documents.load(Ordering::Relaxed);
        stats.preview = self.writer.delivery().sink.take_preview();
        Ok(stats)
    }

    async fn serve_all(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), Failure> {
        loop {
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => self.handle(request).await?,
                    None => return Ok(()),
                },
                settled = self.writer.settle_one(), if self.writer.is_busy() => {
                    settled?;
                }
            }
            while self.scans.try_join_next().is_some() {}
        }
    }

    /// Does what is asked. A failure of a read is the script's to hear; one of a write ends the run.
    async fn handle(&mut self, request: Request) -> Result<(), Failure> {
        self.bounds.check()?;
        match request {
            Request::Write(writes) => {
                for write in writes {
                    self.writer.add(write).await?;
                }
            }
            Request::Get(path, reply) => {
                self.writer.flush_document(&path).await?;
                let _ = reply.send(self.get(path).await);
            }
            Request::Open(query, reply) => {
                self.writer.flush_query(&query).await?;
                let _ = reply.send(self.open(query).await);
            }
            Request::Count(query, reply) => {
                self.writer.flush_query(&query).await?;
                let counted = self.within("a count", self.firestore.count_query(&query, None));
                let _ = reply.send(counted.await);
            }
            Request::Bulk(bulk, site, reply) => {
                let done = self.bulk(bulk, site).await?;
                let _ = reply.send(Ok(done));
            }
            Request::Ready(query, reply) => {
                self.writer.flush_query(&query).await?;
                let _ = reply.send(Ok(self.writer.has_rerun()));
            }
            Request::Flush(reply) => {
                self.writer.flush().await?;
                let _ = reply.send(Ok(self.writer.take_rerun()));
            }
        }
        Ok(())
    }

    async fn within<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = crate::firestore::Result<T>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.bounds.call, call).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Failure::Deadline(what)),
        }
    }

    async fn get(&self, path: DocumentPath) -> Result<Option<StoredDocument>, Failure> {
        let delivery = self.writer.delivery();
        if let Some(pretended) = delivery.sink.pretended(&path) {
            return Ok(pretended.map(|body| StoredDocument {
                body,
                create_time: Default::default(),
                update_time: Default::default(),
            }));
        }
        let mut found = delivery.get(std::slice::from_ref(&path)).await?;
        let document = found.remove(&path);
        if let Some(document) = &document {
            self.read.add(1, document.body.len());
        }
        Ok(document)
    }

    /// Begins to read a source as it is now.
    pub(super) async fn scan(&self, source: Source) -> Result<Scan, Failure> {
        Scan::open(&self.firestore, source, self.read.clone(), self.bounds.call).await
    }

    async fn open(&mut self, query: Query) -> Result<mpsc::Receiver<Scanned>, Failure> {
        let scan = self.scan(Source::Query(query)).await?;
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let delivery = self.writer.delivery().clone();
        self.scans.spawn(pass_on(scan, delivery, sender));
        Ok(receiver)
    }
}

async fn pass_on<S: Sink>(mut scan: Scan, delivery: Arc<Delivery<S>>, sender: mpsc::Sender<Scanned>) {
    loop {
        let next = scan.next().await;
        let next = next.and_then(|batch| batch.map(|batch| delivery.as_pretended(batch)).transpose());
        let scanned = match next {
            Ok(Some(batch)) => Scanned::Documents(batch),
            Ok(None) => Scanned::End,
            Err(failure) => Scanned::Failed(failure),
        };
        let last = !matches!(scanned, Scanned::Documents(_));
        // Nobody listens any more when the script has left the loop.
        if sender.send(scanned).await.is_err() || last {
            return;
        }
    }
}
