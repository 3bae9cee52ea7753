//! Writing many documents, with an answer for every one of them.
//!
//! BatchWrite applies each write for itself and answers for each. A batch is encoded once, straight from canonical
//! bodies into the buffer that is sent; what has to be sent again is copied out of it. A batch stays one task until each
//! of its writes is done, so retries hold their place among the requests in flight, and a database that pushes back is
//! sent less by itself.
//!
//! **Nothing is lost without a word**: a write ends as written or is handed to the [`FailureSink`], and
//! [`BulkWriter::finish`] checks that the two add up. Refusals that concern the whole database (no permission, no such
//! database) stop the writer instead of filling a file with every document there is.

mod batch;
mod conditional;
mod encode;
mod mark;
mod send;
mod write;

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{Error, Firestore, Result, Throttle, ThrottleOptions};
use crate::document::DocumentPath;
use crate::progress::Pace;
use batch::{Batch, Limits, SpareBuffers};
pub use conditional::{ConditionalWriter, ConditionalWrites, WriteFence};
pub use encode::{EncodedWrites, WriteEncoder};
pub(crate) use mark::Marks;
pub use mark::{Acknowledged, Mark};
use send::{Outcome, Sender};
pub use write::{Change, OwnedChange, Precondition, Write, WriteFailure};

/// How to write.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Requests under way at once.
    pub max_in_flight: usize,
    /// Bytes of requests under way at once.
    pub max_bytes_in_flight: usize,
    /// Writes in a request.
    pub batch_writes: usize,
    /// Bytes of a request; `None` takes what the server accepts: 9.5 MiB, or 3.5 MiB for an emulator.
    pub batch_bytes: Option<usize>,
    /// Writes a second, at most.
    pub rate: Option<f64>,
    /// Follow Firestore's advice for new traffic: 500 writes a second, half as much again every five minutes.
    pub ramp: bool,
    /// Write less when the database pushes back or becomes slow: see [`Throttle`].
    pub adaptive: bool,
}

impl WriteOptions {
    /// The defaults for a database: ramped up for production, as fast as it goes for an emulator.
    pub fn new(firestore: &Firestore) -> Self {
        Self::for_target(firestore.is_emulator())
    }

    /// The same before there is a connection.
    pub fn for_target(is_emulator: bool) -> Self {
        Self {
            max_in_flight: 16,
            max_bytes_in_flight: 32 << 20,
            batch_writes: LARGEST_BATCH,
            batch_bytes: None,
            rate: None,
            ramp: !is_emulator,
            adaptive: !is_emulator,
        }
    }

    /// What keeps writers to the rate and the ramp.
    pub(crate) fn throttle(&self) -> Arc<Throttle> {
        Arc::new(Throttle::new(ThrottleOptions {
            rate: self.rate,
            ramp: self.ramp,
            adaptive: self.adaptive,
        }))
    }
}

/// As Beam's and Google's own bulk writers: <https://cloud.google.com/firestore/quotas#writes_and_transactions>.
const LARGEST_BATCH: usize = 500;
/// A request may have 10 MiB.
const BATCH_BYTES: usize = 9 * (1 << 20) + (1 << 19);
/// Google's emulator takes messages of up to 4 MiB.
const EMULATOR_BATCH_BYTES: usize = 7 << 19;

/// What a [`FailureSink`] makes of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It counts as one.
    Failed,
    /// What was to be written was left out on purpose: the refusal is what somebody asked for.
    LeftOut,
}

/// Takes the writes that have failed. An error stops the writer: what cannot be recorded would be lost.
pub trait FailureSink: Send {
    /// Records a failure.
    fn record(&mut self, failure: WriteFailure) -> std::io::Result<Recorded>;

    /// Makes sure that what was recorded stays. Called at the end, and by [`BulkWriter::sync_failures`].
    fn sync(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps them in memory.
impl FailureSink for Vec<WriteFailure> {
    fn record(&mut self, failure: WriteFailure) -> std::io::Result<Recorded> {
        self.push(failure);
        Ok(Recorded::Failed)
    }
}

/// Shared with whoever wants to look at them afterwards.
impl<Sink: FailureSink> FailureSink for Arc<std::sync::Mutex<Sink>> {
    fn record(&mut self, failure: WriteFailure) -> std::io::Result<Recorded> {
        self.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .record(failure)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .sync()
    }
}

/// What a writer has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// Writes asked for.
    pub submitted: u64,
    /// Those that the server has acknowledged.
    pub written: u64,
    /// Those that went to the failure sink and count as failures.
    pub failed: u64,
    /// Those that went to the failure sink and are [left out](Recorded::LeftOut) on purpose.
    pub left_out: u64,
    /// References to documents of other databases in the puts; they are written as they are.
    pub absolute_references: u64,
    /// Writes that were sent again.
    pub retries: u64,
    /// Requests sent.
    pub requests: u64,
    /// Bytes of requests sent, retries included.
    pub sent_bytes: u64,
}

impl std::ops::AddAssign for WriteStats {
    fn add_assign(&mut self, other: Self) {
        self.submitted += other.submitted;
        self.written += other.written;
        self.failed += other.failed;
        self.left_out += other.left_out;
        self.absolute_references += other.absolute_references;
        self.retries += other.retries;
        self.requests += other.requests;
        self.sent_bytes += other.sent_bytes;
    }
}

/// Writes documents in bulk. Dropping it cancels what is under way; a call that is dropped before it is done has taken its
/// write, or not, and the writer goes on.
///
/// Writes to different paths are applied in any order; writes to one path in the order in which they are given.
pub struct BulkWriter {
    sender: Arc<Sender>,
    root: Arc<str>,
    options: WriteOptions,
    limits: Limits,
    spare: Arc<SpareBuffers>,
    sink: Box<dyn FailureSink>,
    /// What is being filled.
    batch: Batch,
    /// What waits for room in flight: more than one only after a caller has stopped waiting for it.
    full: VecDeque<Batch>,
    in_flight: JoinSet<Result<Outcome>>,
    bytes_in_flight: usize,
    /// Hashes of the paths whose writes are not done. Two paths with one hash only wait for each other.
    undone: HashSet<u64, BuildHasherDefault<IsHash>>,
    marks: Marks,
    stats: WriteStats,
    stopped: bool,
}

impl std::fmt::Debug for BulkWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkWriter")
            .field("stats", &self.stats)
            .field("in_flight", &self.in_flight.len())
            .finish_non_exhaustive()
    }
}

impl BulkWriter {
    /// A way to ask how the writer fares, from anywhere and for as long as it is there.
    pub fn pace(&self) -> impl Fn() -> Option<Pace> + Send + Sync + 'static + use<> {
        let sender = Arc::downgrade(&self.sender);
        move || sender.upgrade().map(|sender| sender.pace())
    }

    /// A writer into a database. It needs a Tokio runtime.
    pub fn new(firestore: &Firestore, options: WriteOptions, sink: impl FailureSink + 'static) -> Self {
        let throttle = options.throttle();
        Self::with_throttle(firestore, options, throttle, sink)
    }

    /// The same with a throttle that several writers may share; it takes the place of the options' rate and ramp.
    pub fn with_throttle(
        firestore: &Firestore,
        options: WriteOptions,
        throttle: Arc<Throttle>,
        sink: impl FailureSink + 'static,
    ) -> Self {
        let spare = Arc::<SpareBuffers>::default();
        let sender = Sender::new(firestore.clone(), throttle, spare.clone(), None);
        let sender = Arc::new(sender);
        let limits = Limits::of(&options, firestore.is_emulator());
        Self {
            root: sender.root(),
            sender,
            limits,
            spare,
            options,
            sink: Box::new(sink),
            batch: Batch::default(),
            full: VecDeque::new(),
            in_flight: JoinSet::new(),
            bytes_in_flight: 0,
            undone: HashSet::default(),
            marks: Marks::default(),
            stats: WriteStats::default(),
            stopped: false,
        }
    }

    /// Writes a document with the fields that `body` is the canonical form of: [`Write::put`].
    pub async fn put(&mut self, path: &DocumentPath, body: &[u8]) -> Result<()> {
        self.write(Write::put(path, body)).await
    }

    /// Deletes a document: [`Write::delete`].
    pub async fn delete(&mut self, path: &DocumentPath) -> Result<()> {
        self.write(Write::delete(path)).await
    }

    /// Writes. Waits while too much is under way.
    ///
    /// A body that is not canonical is an error, and nothing is written for it; the writer goes on.
    pub async fn write(&mut self, write: Write<'_>) -> Result<()> {
        let hash = self.make_room(write.path).await?;
        self.stats.absolute_references += self.batch.push(write, &self.root, hash)?.absolute;
        self.added(hash).await
    }

    /// Writes what was encoded apart. Waits while too much is under way; a call that is dropped before it is done may have
    /// taken some of the writes, and their mark is never acknowledged then.
    pub async fn submit(&mut self, writes: EncodedWrites) -> Result<()> {
        self.check_running()?;
        if let Some(mark) = writes.mark {
            self.marks.begin(mark, writes.len() as u64);
        }
        self.stats.absolute_references += writes.absolute_references;
        for batch in writes.full {
            self.settle_done()?;
            self.submit_batch(batch).await?;
        }
        let Some(rest) = writes.rest else {
            return Ok(());
        };
        for (index, hash) in rest.hashes().enumerate() {
            if self.undone.contains(&hash) {
                self.wait_for(hash).await?;
            }
            rest.copy_to(index, &mut self.batch);
            self.added(hash).await?;
        }
        Ok(())
    }

    /// A name for writes whose end is to be told.
    pub fn mark(&mut self) -> Mark {
        self.marks.next()
    }

    /// The marks all of whose writes are done since the last call: acknowledged by the server, or handed to the failure sink.
    /// Marked writes without any write are done at once.
    pub fn take_acknowledged(&mut self) -> Vec<Acknowledged> {
        self.marks.take_done()
    }

    /// Waits until a request is done; for ever while none is under way. A call that is dropped before has done nothing.
    pub async fn settled(&mut self) -> Result<()> {
        match self.settle_one().await? {
            true => Ok(()),
            false => std::future::pending().await,
        }
    }

    /// Sends what is left over from earlier writes, though it makes no full request.
    pub async fn flush(&mut self) -> Result<()> {
        self.check_running()?;
        self.send_batch().await
    }

    /// Makes sure that the failures recorded so far stay.
    pub fn sync_failures(&mut self) -> Result<()> {
        self.sink.sync().map_err(Error::FailureSink)
    }

    async fn submit_batch(&mut self, mut batch: Batch) -> Result<()> {
        loop {
            // Up to the first path of which an earlier write is undone.
            let conflict = batch
                .hashes()
                .enumerate()
                .find(|&(_, hash)| !self.undone.insert(hash));
            let later = conflict.map(|(at, hash)| (batch.split_off(at), hash));
            if !batch.is_empty() {
                self.stats.submitted += batch.len() as u64;
                self.full.push_back(batch);
                self.send_full().await?;
            }
            let Some((rest, hash)) = later else {
                return Ok(());
            };
            self.wait_for(hash).await?;
            batch = rest;
        }
    }

    /// Sends nothing more, and waits for what is under way, as long as `patience` lasts. What is done by then can be
    /// [asked for](Self::take_acknowledged); the writer takes nothing any more.
    pub async fn drain(&mut self, patience: Duration) -> Result<()> {
        self.check_running()?;
        self.stopped = true;
        self.sender.stop();
        let settled = async {
            while self.settle_one().await? {}
            Ok(())
        };
        let in_time = tokio::time::timeout(patience, settled).await;
        self.in_flight.abort_all();
        in_time.unwrap_or_else(|_| {
            tracing::warn!("some writes were still under way after {patience:?}: they may be applied or not");
            Ok(())
        })
    }

    /// What has been done so far.
    pub fn stats(&self) -> WriteStats {
        let mut stats = self.stats;
        self.sender.add_counts(&mut stats);
        stats
    }

    /// Sends what is left and waits until every write is done.
    pub async fn finish(mut self) -> Result<WriteStats> {
        self.complete().await
    }

    /// The same for who wants to ask for what is [acknowledged](Self::take_acknowledged) afterwards, or to go on.
    pub async fn complete(&mut self) -> Result<WriteStats> {
        self.check_running()?;
        self.send_batch().await?;
        while self.settle_one().await? {}
        self.sync_failures()?;
        let stats = self.stats();
        if stats.written + stats.failed + stats.left_out != stats.submitted {
            return Err(Error::Malformed {
                method: super::Method::BatchWrite,
                reason: format!(
                    "{} writes were submitted, but {} are written, {} failed and {} were left out",
                    stats.submitted, stats.written, stats.failed, stats.left_out
                ),
            });
        }
        Ok(stats)
    }

    fn check_running(&self) -> Result<()> {
        match self.stopped {
            true => Err(Error::WriterStopped),
            false => Ok(()),
        }
    }

    /// Waits until no earlier write to the path is undone, and says the path's hash.
    async fn make_room(&mut self, path: &DocumentPath) -> Result<u64> {
        self.check_running()?;
        let hash = batch::path_hash(path.as_str());
        if self.undone.contains(&hash) {
            self.wait_for(hash).await?;
        }
        self.settle_done()?;
        Ok(hash)
    }

    /// Waits until the write to a path is done.
    async fn wait_for(&mut self, hash: u64) -> Result<()> {
        self.send_batch().await?;
        while self.undone.contains(&hash) && self.settle_one().await? {}
        Ok(())
    }

    /// Takes in what is done, as it comes, so that failures are recorded soon.
    fn settle_done(&mut self) -> Result<()> {
        while let Some(done) = self.in_flight.try_join_next() {
            self.settle(done)?;
        }
        Ok(())
    }

    /// Counts the write that was just pushed, and sends the batch when it is full.
    async fn added(&mut self, hash: u64) -> Result<()> {
        self.undone.insert(hash);
        self.stats.submitted += 1;
        match self.batch.take_full(self.limits, &self.spare) {
            Some(full) => {
                self.full.push_back(full);
                self.send_full().await
            }
            None => Ok(()),
        }
    }

    /// Sends the batch, if it has anything, as soon as there is room in flight.
    async fn send_batch(&mut self) -> Result<()> {
        if !self.batch.is_empty() {
            let batch = self.batch.take(&self.spare);
            self.full.push_back(batch);
        }
        self.send_full().await
    }

    /// Sends what is full. A batch leaves the queue only for a task, so nothing is lost when the caller stops waiting.
    async fn send_full(&mut self) -> Result<()> {
        while let Some(next) = self.full.front() {
            let bytes = next.byte_len();
            if self.in_flight.len() >= self.options.max_in_flight.max(1)
                || (self.bytes_in_flight > 0
                    && self.bytes_in_flight + bytes > self.options.max_bytes_in_flight)
            {
                self.settle_one().await?;
                continue;
            }
            if let Some(batch) = self.full.pop_front() {
                self.bytes_in_flight += bytes;
                self.in_flight.spawn(self.sender.clone().deliver(batch));
            }
        }
        Ok(())
    }

    /// Waits for a batch to be done; false when none is under way.
    async fn settle_one(&mut self) -> Result<bool> {
        match self.in_flight.join_next().await {
            Some(done) => self.settle(done).map(|()| true),
            None => Ok(false),
        }
    }

    fn settle(&mut self, done: Result<Result<Outcome>, tokio::task::JoinError>) -> Result<()> {
        let settled = match done {
            Ok(outcome) => outcome.and_then(|outcome| self.account(outcome)),
            // Tasks are aborted only when the writer is dropped, so this one has panicked.
            Err(_) => Err(Error::WriterStopped),
        };
        if settled.is_err() {
            self.stopped = true;
            self.in_flight.abort_all();
        }
        settled
    }

    fn account(&mut self, outcome: Outcome) -> Result<()> {
        self.bytes_in_flight -= outcome.bytes;
        for done in &outcome.done {
            self.undone.remove(&done.hash);
        }
        self.stats.written += outcome.written;
        for (mark, failure) in outcome.failures {
            match self.sink.record(failure).map_err(Error::FailureSink)? {
                Recorded::Failed => {
                    self.stats.failed += 1;
                    self.marks.failed(mark);
                }
                Recorded::LeftOut => {
                    self.stats.left_out += 1;
                    self.marks.left_out(mark);
                }
            }
        }
        // After the failures: whoever hears of the end may rely on their being recorded.
        for done in outcome.done {
            self.marks.done(done.mark);
        }
        Ok(())
    }
}

/// Hashes what is a hash already.
#[derive(Default)]
struct IsHash(u64);

impl Hasher for IsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
