//! The head of a range: what comes before its first cut, and belongs to the range before it.
//!
//! Ranges begin anywhere, segments where the data says ([`cut`](crate::archive::cut)). So whoever reads a range meets some
//! 8 MiB first that the writer of the range before needs to end its last segment. Were both to read them, every range
//! would cost as much again: in time, and in reads that Firestore bills. So they are handed over. Until the neighbour
//! comes for them they wait compressed; a head that grows beyond all likelihood is dropped,
//! and the neighbour reads it for itself.

use tokio::sync::oneshot;

use crate::document::{DocumentBatch, DocumentKey, DocumentRef};

/// Bytes of documents that a head may have: four times the mean, which less than one head in fifty reaches.
const MAX_BYTES: usize = 32 << 20;
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

/// Documents whose bodies are compressed.
struct Part {
    documents: DocumentBatch,
    bodies: Vec<u8>,
    length: usize,
}

impl Part {
    fn pack(mut documents: DocumentBatch) -> std::io::Result<Self> {
        let bodies = documents.take_bodies();
        Ok(Self {
            length: bodies.len(),
            bodies: zstd::bulk::compress(&bodies, LEVEL)?,
            documents,
        })
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
    bytes: usize,
}

impl HeadKeeper {
    /// For a range that ends at `end`.
    pub(super) fn new(to: Option<oneshot::Sender<Head>>, end: Option<DocumentKey>) -> Self {
        Self {
            to,
            end,
            parts: Vec::new(),
            open: DocumentBatch::new(),
            bytes: 0,
        }
    }

    /// Takes the next document.
    pub(super) fn push(&mut self, document: DocumentRef<'_>) -> std::io::Result<()> {
        if self.to.is_none() {
            return Ok(());
        }
        self.bytes += document.key.len() + document.body.len();
        if self.bytes > MAX_BYTES {
            *self = Self::new(None, None);
            return Ok(());
        }
        self.open.push(document);
        if self.open.byte_len() >= PART_BYTES {
            self.parts.push(Part::pack(std::mem::take(&mut self.open))?);
        }
        Ok(())
    }

    /// Hands the head over, once; `next` is where it goes on if the range has ended without a cut.
    pub(super) fn hand_over(&mut self, next: Option<NextHead>) -> std::io::Result<()> {
        let Some(to) = self.to.take() else {
            return Ok(());
        };
        if !self.open.is_empty() {
            self.parts.push(Part::pack(std::mem::take(&mut self.open))?);
        }
        let parts = std::mem::take(&mut self.parts);
        let end = self.end.take();
        // A neighbour that is gone has failed, and the backup with it.
        let _ = to.send(Head { parts, end, next });
        Ok(())
    }
}
