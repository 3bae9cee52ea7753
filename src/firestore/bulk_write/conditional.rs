//! Writes with conditions, a request at a time, for whoever wants to know what became of each before it goes on.
//!
//! A migration knows what each document is before it writes it, and must not write it when it has become something else.
//! Delivery is that of the [`BulkWriter`](super::BulkWriter): what can be tried again is tried again, in smaller requests
//! where that helps, and what is left are refusals of single writes.

use std::fmt;
use std::sync::Arc;

use super::batch::{Batch, Limits, Precondition, SpareBuffers, path_hash};
use super::send::Sender;
use super::{WriteFailure, WriteMode, WriteOptions, largest_request};
use crate::document::DocumentPath;
use crate::firestore::{Firestore, Result, Throttle};

/// Sends batches of conditional writes. Clones share the throttle.
#[derive(Clone)]
pub struct ConditionalWriter {
    sender: Arc<Sender>,
    limits: Limits,
}

impl fmt::Debug for ConditionalWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConditionalWriter").finish_non_exhaustive()
    }
}

/// Conditional writes, each of another document, to be sent together.
#[derive(Debug)]
pub struct ConditionalWrites {
    root: Arc<str>,
    limits: Limits,
    full: Vec<Batch>,
    batch: Batch,
}

impl ConditionalWriter {
    /// A writer into a database. The options' mode means nothing here.
    pub fn new(firestore: &Firestore, options: &WriteOptions) -> Self {
        let throttle = Arc::new(Throttle::new(options.rate, options.ramp));
        let spare = Arc::<SpareBuffers>::default();
        // Answers about conditions are the caller's to understand: no mode has a meaning of its own.
        let sender = Sender::new(firestore.clone(), throttle, WriteMode::Overwrite, spare);
        Self {
            sender: Arc::new(sender),
            limits: Limits::of(options, largest_request(firestore)),
        }
    }

    /// Nothing yet.
    pub fn writes(&self) -> ConditionalWrites {
        ConditionalWrites {
            root: self.sender.root(),
            limits: self.limits,
            full: Vec::new(),
            batch: Batch::default(),
        }
    }

    /// Sends the writes until each is done or refused for good, and returns those that were refused. A write whose condition
    /// does not hold is refused with ALREADY_EXISTS, FAILED_PRECONDITION or NOT_FOUND; so is one that was done when the answer
    /// got lost on the way and it was sent again.
    ///
    /// An error means that some are done and others are not, and that there is no point in going on.
    pub async fn send(&self, mut writes: ConditionalWrites) -> Result<Vec<WriteFailure>> {
        if !writes.batch.is_empty() {
            writes.full.push(writes.batch);
        }
        let mut failures = Vec::new();
        for batch in writes.full {
            failures.extend(self.sender.deliver(batch).await?.failures);
        }
        Ok(failures)
    }
}

impl ConditionalWrites {
    /// Adds a put of a whole document, or of the fields of it that the mask names (as Firestore writes field paths): those
    /// that the body does not have are deleted. A body that is not canonical is an error, and nothing is added.
    pub fn put(
        &mut self,
        path: &DocumentPath,
        body: &[u8],
        mask: Option<&[String]>,
        condition: Precondition,
    ) -> Result<()> {
        self.push(path, Some(body), mask, condition)
    }

    /// Adds a deletion.
    pub fn delete(&mut self, path: &DocumentPath, condition: Precondition) -> Result<()> {
        self.push(path, None, None, condition)
    }

    fn push(
        &mut self,
        path: &DocumentPath,
        body: Option<&[u8]>,
        mask: Option<&[String]>,
        condition: Precondition,
    ) -> Result<()> {
        let hash = path_hash(path.as_str());
        self.batch
            .push_conditional(path, body, mask, condition, &self.root, hash)?;
        let spare = SpareBuffers::default();
        self.full.extend(self.batch.take_full(self.limits, &spare));
        Ok(())
    }
}
