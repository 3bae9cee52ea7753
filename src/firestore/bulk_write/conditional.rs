//! Writes with conditions, some at a time, for whoever wants to know what became of each before it goes on.
//!
//! A migration knows what each document is before it writes it, and must not write it when it has become something else.
//! Delivery is that of the [`BulkWriter`](super::BulkWriter): what can be tried again is tried again, in smaller requests
//! where that helps, and what is left are refusals of single writes.

use std::fmt;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use super::batch::{Batch, Limits, SpareBuffers, path_hash};
use super::send::Sender;
use super::{Write, WriteFailure, WriteOptions};
use crate::firestore::{Error, Firestore, Result};
use crate::stop::Stop;

/// Requests of one [`send`](ConditionalWriter::send) under way at once.
const REQUESTS_AT_ONCE: usize = 4;

/// The right to write, of whoever can lose it.
#[async_trait::async_trait]
pub trait WriteFence: Send + Sync {
    /// Whether it is there. Asked right before each request, so that what has waited for its turn is not sent without it.
    async fn may_write(&self) -> Result<bool>;

    /// Is asked to stop when it is lost, so that nothing waits for its turn in vain.
    fn lost(&self) -> &Stop;
}

/// Sends conditional writes. Clones share the throttle.
#[derive(Clone)]
pub struct ConditionalWriter {
    sender: Arc<Sender>,
    limits: Limits,
    spare: Arc<SpareBuffers>,
}

impl fmt::Debug for ConditionalWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConditionalWriter").finish_non_exhaustive()
    }
}

/// Writes, each of another document, to be sent together.
#[derive(Debug)]
pub struct ConditionalWrites {
    root: Arc<str>,
    limits: Limits,
    spare: Arc<SpareBuffers>,
    full: Vec<Batch>,
    batch: Batch,
}

impl ConditionalWriter {
    /// A writer into a database, as long as the fence lets it write.
    pub fn new(firestore: &Firestore, options: &WriteOptions, fence: Option<Arc<dyn WriteFence>>) -> Self {
        let spare = Arc::<SpareBuffers>::default();
        let sender = Sender::new(firestore.clone(), options.throttle(), spare.clone(), fence);
        Self {
            sender: Arc::new(sender),
            limits: Limits::of(options, firestore.is_emulator()),
            spare,
        }
    }

    /// Sends nothing more: what is not on its way yet is not done, and its [`send`](Self::send) fails.
    pub fn stop(&self) {
        self.sender.stop();
    }

    /// Nothing yet.
    pub fn writes(&self) -> ConditionalWrites {
        ConditionalWrites {
            root: self.sender.root(),
            limits: self.limits,
            spare: self.spare.clone(),
            full: Vec::new(),
            batch: Batch::in_spare(&self.spare),
        }
    }

    /// Sends the writes until each is done or refused for good, and returns those that were refused. A write whose answer got
    /// lost on the way, and which is there when it is looked for, is done.
    ///
    /// An error means that some are done and others are not, and that there is no point in going on.
    pub async fn send(&self, mut writes: ConditionalWrites) -> Result<Vec<WriteFailure>> {
        if !writes.batch.is_empty() {
            writes.full.push(writes.batch);
        }
        let deliveries = writes.full.into_iter().map(|batch| {
            let asked = batch.len() as u64;
            let delivery = self.sender.clone().deliver(batch);
            async move {
                let outcome = delivery.await?;
                // Only what is accounted for is done.
                match outcome.written + outcome.failures.len() as u64 == asked {
                    true => Ok(outcome.failures),
                    false => Err(Error::WriterStopped),
                }
            }
        });
        let failures: Vec<_> = stream::iter(deliveries)
            .buffer_unordered(REQUESTS_AT_ONCE)
            .try_concat()
            .await?;
        Ok(failures.into_iter().map(|(_, failure)| failure).collect())
    }
}

impl ConditionalWrites {
    /// Adds a write. A body that is not canonical is an error, and nothing is added.
    pub fn push(&mut self, write: Write<'_>) -> Result<()> {
        let hash = path_hash(write.path.as_str());
        self.batch.push(write, &self.root, hash)?;
        self.full.extend(self.batch.take_full(self.limits, &self.spare));
        Ok(())
    }
}
