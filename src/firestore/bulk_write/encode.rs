//! Encoding apart from the writer: on any thread, and where the documents are at hand.

use std::sync::Arc;

use super::batch::{Batch, Limits, SpareBuffers, path_hash};
use super::{BulkWriter, WriteMode};
use crate::document::DocumentPath;
use crate::firestore::Result;

/// Encodes writes for a [`BulkWriter`], which [makes](BulkWriter::encoder) it: several can work at the same time.
#[derive(Debug)]
pub struct WriteEncoder {
    root: Arc<str>,
    mode: WriteMode,
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
}

impl BulkWriter {
    /// An encoder of writes into the writer's database, in its mode and within its bounds.
    pub fn encoder(&self) -> WriteEncoder {
        WriteEncoder {
            root: self.root.clone(),
            mode: self.options.mode,
            limits: self.limits,
            spare: self.spare.clone(),
            batch: Batch::in_spare(&self.spare),
            done: EncodedWrites::default(),
        }
    }
}

impl WriteEncoder {
    /// Encodes what [`BulkWriter::put`] would write. A body that is not canonical is an error, and nothing is encoded for it.
    pub fn put(&mut self, path: &DocumentPath, body: &[u8]) -> Result<()> {
        let hash = path_hash(path.as_str());
        let references = self.batch.push_put(path, body, &self.root, self.mode, hash)?;
        self.done.absolute_references += references;
        self.done
            .full
            .extend(self.batch.take_full(self.limits, &self.spare));
        Ok(())
    }

    /// The requests that are full. What is left over begins the next.
    pub fn take_full(&mut self) -> EncodedWrites {
        std::mem::take(&mut self.done)
    }

    /// All that is left.
    pub fn finish(mut self) -> EncodedWrites {
        self.done.rest = Some(self.batch).filter(|rest| !rest.is_empty());
        self.done
    }
}
