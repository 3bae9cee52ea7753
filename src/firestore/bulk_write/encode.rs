//! Encoding apart from the writer: on any thread, and where the documents are at hand.

use std::sync::Arc;

use super::batch::{Batch, Limits, SpareBuffers, path_hash};
use super::{BulkWriter, Mark, Write};
use crate::document::DocumentPath;
use crate::document::wire::ReferencesSeen;
use crate::firestore::Result;

/// Encodes writes for a [`BulkWriter`], which [makes](BulkWriter::encoder) it: several can work at the same time.
#[derive(Debug)]
pub struct WriteEncoder {
    root: Arc<str>,
    limits: Limits,
    spare: Arc<SpareBuffers>,
    batch: Batch,
    done: EncodedWrites,
}

/// Writes ready to be sent: [`BulkWriter::submit`] takes them.
#[derive(Debug, Default)]
#[must_use = "they are not sent yet"]
pub struct EncodedWrites {
    /// Requests.
    pub(super) full: Vec<Batch>,
    /// What is no request yet, and may become one with others.
    pub(super) rest: Option<Batch>,
    pub(super) absolute_references: u64,
    pub(super) mark: Option<Mark>,
}

impl EncodedWrites {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.full.iter().chain(&self.rest).map(Batch::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same writes, whose end will be told: see [`BulkWriter::take_acknowledged`].
    pub fn marked(mut self, mark: Mark) -> Self {
        for batch in self.full.iter_mut().chain(&mut self.rest) {
            batch.mark(mark);
        }
        self.mark = Some(mark);
        self
    }
}

impl BulkWriter {
    /// An encoder of writes into the writer's database, within its bounds.
    pub fn encoder(&self) -> WriteEncoder {
        WriteEncoder {
            root: self.root.clone(),
            limits: self.limits,
            spare: self.spare.clone(),
            batch: Batch::in_spare(&self.spare),
            done: EncodedWrites::default(),
        }
    }
}

impl WriteEncoder {
    /// Another encoder for the same writer, with nothing in it.
    pub fn another(&self) -> Self {
        Self {
            root: self.root.clone(),
            limits: self.limits,
            spare: self.spare.clone(),
            batch: Batch::in_spare(&self.spare),
            done: EncodedWrites::default(),
        }
    }

    /// Encodes a write, and says which references it has. A body that is not canonical is an error, and nothing is encoded for
    /// it.
    pub fn write(&mut self, write: Write<'_>) -> Result<ReferencesSeen> {
        let hash = path_hash(write.path.as_str());
        let references = self.batch.push(write, &self.root, hash)?;
        self.done.absolute_references += references.absolute;
        self.done
            .full
            .extend(self.batch.take_full(self.limits, &self.spare));
        Ok(references)
    }

    /// Encodes what [`BulkWriter::put`] would write.
    pub fn put(&mut self, path: &DocumentPath, body: &[u8]) -> Result<()> {
        self.write(Write::put(path, body)).map(|_| ())
    }

    /// The requests that are full. What is left over begins the next.
    pub fn take_full(&mut self) -> EncodedWrites {
        std::mem::take(&mut self.done)
    }

    /// Everything so far: what is left over goes with what other encoders leave over.
    pub fn take(&mut self) -> EncodedWrites {
        let mut taken = self.take_full();
        if !self.batch.is_empty() {
            taken.rest = Some(self.batch.take(&self.spare));
        }
        taken
    }

    /// All that is left.
    pub fn finish(mut self) -> EncodedWrites {
        self.take()
    }
}
