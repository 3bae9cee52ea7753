//! The head of a range: what comes before its first cut, and belongs to the range before it.
//!
//! Ranges begin anywhere, segments where the data says ([`cut`](crate::archive::cut)). So whoever reads a range meets some
//! 8 MiB first that the writer of the range before needs to end its last segment. Were both to read them, every range
//! would cost as much again: in time, and in reads that Firestore bills. So they are handed over. Until the neighbour
//! comes for them they wait compressed. All heads of a backup share one bound: the one that goes beyond it is dropped, and its
//! neighbour reads it for itself.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::document::{DocumentBatch, DocumentKey, DocumentRef};

/// KiB that all heads may take together: eight heads of mean length take half of it. One alone may be much longer than
/// the mean, for the lengths are those of a random process.
const BUDGET_KIB: usize = 48 << 10;
/// Bytes of documents that are compressed together.
const PART_BYTES: usize = 256 << 10;
/// One of the fast ones: the parts do not outlive the backup.
const LEVEL: i32 = -4;

/// Where the head of the next range comes from. It is closed without one when the neighbour has dropped it.
pub(super) type NextHead = oneshot::Receiver<Head>;

/// Documents that a range before theirs owns, ascending.
pub(super) struct Head {
    parts: Vec<Part>,
    /// The end of their range.
    pub(super) end: Option<DocumentKey>,
    /// Where it goes on when the range had no cut at all: with the head of the range after it.
    pub(super) next: Option<NextHead>,
}

impl Head {
    /// The documents, in batches.
    pub(super) fn batches(&mut self) -> impl Iterator<Item = std::io::Result<DocumentBatch>> + use<> {
        std::mem::take(&mut self.parts).into_iter().map(Part::unpack)
    }
}

/// What all heads of a backup may take. Clones share it.
#[derive(Clone)]
pub(super) struct HeadBudget(Arc<Semaphore>);

impl HeadBudget {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET_KIB)))
    }

    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(kib).ok()
    }
}

/// Documents whose bodies are compressed.
struct Part {
    documents: DocumentBatch,
    bodies: Vec<u8>,
    length: usize,
    _held: OwnedSemaphorePermit,
}

impl Part {
    /// `None` when the budget has no room.
    fn pack(mut documents: DocumentBatch, budget: &HeadBudget) -> std::io::Result<Option<Self>> {
        let bodies = documents.take_bodies();
        let length = bodies.len();
        let bodies = zstd::bulk::compress(&bodies, LEVEL)?;
        // The times of a document take about as much as its key.
        let held = budget.take(bodies.len() + 3 * documents.byte_len());
        Ok(held.map(|held| Self {
            documents,
            bodies,
            length,
            _held: held,
        }))
    }

    fn unpack(mut self) -> std::io::Result<DocumentBatch> {
        let bodies = zstd::bulk::decompress(&self.bodies, self.length)?;
        self.documents.put_bodies(bodies);
        Ok(self.documents)
    }
}

/// Keeps a head while it is met.
pub(super) struct HeadKeeper {
    /// `None` when nobody takes it, or no longer.
    to: Option<oneshot::Sender<Head>>,
    end: Option<DocumentKey>,
    parts: Vec<Part>,
    open: DocumentBatch,
    budget: HeadBudget,
}

impl HeadKeeper {
    /// For a range that ends at `end`.
    pub(super) fn new(
        to: Option<oneshot::Sender<Head>>,
        end: Option<DocumentKey>,
        budget: HeadBudget,
    ) -> Self {
        Self {
            to,
            end,
            parts: Vec::new(),
            open: DocumentBatch::new(),
            budget,
        }
    }

    /// Takes the next document.
    pub(super) fn push(&mut self, document: DocumentRef<'_>) -> std::io::Result<()> {
        if self.to.is_none() {
            return Ok(());
        }
        self.open.push(document);
        if self.open.byte_len() >= PART_BYTES {
            self.pack()?;
        }
        Ok(())
    }

    fn pack(&mut self) -> std::io::Result<()> {
        match Part::pack(std::mem::take(&mut self.open), &self.budget)? {
            Some(part) => self.parts.push(part),
            None => {
                self.to = None;
                self.parts.clear();
            }
        }
        Ok(())
    }

    /// Hands the head over, once; `next` is where it goes on if the range has ended without a cut.
    pub(super) fn hand_over(&mut self, next: Option<NextHead>) -> std::io::Result<()> {
        if self.to.is_some() && !self.open.is_empty() {
            self.pack()?;
        }
        let Some(to) = self.to.take() else {
            return Ok(());
        };
        let parts = std::mem::take(&mut self.parts);
        let end = self.end.take();
        // A neighbour that is gone has failed, and the backup with it.
        let _ = to.send(Head { parts, end, next });
        Ok(())
    }
}
