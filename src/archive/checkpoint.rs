//! Checkpoints: what a session's workers have written down of its ranges, from which alone a commit is made and a resume goes on.
//!
//! Each is one self-contained object, `<range>-<n>`: all that was written from the range's start to where it has got. Number
//! 0 is that of a finished range, the others count from 1. Which ranges there are, and which of their checkpoints hold, is
//! for the module `stage` to say.
//!
//! One that has got nowhere says that the range was begun anew: those before it do not count any more.

use std::sync::{Arc, PoisonError};

use super::error::Result;
use super::layer_writer::LayerWriter;
use super::range_writer::{RangeOutput, RangeWriter};
use super::sealed::{self, MAX_SEALED_LEN, SealedKind};
use super::session::{Session, SessionShared};
use super::snapshot::ReadMode;
use crate::document::{DocumentKey, KeyRange, Timestamp};
use crate::store::StoreError;

/// The number of a finished range's checkpoint.
pub(super) const FINISHED: u64 = 0;

/// Whether an object with this name says that a range is finished.
pub(super) fn is_of_finished_range(name: &str) -> bool {
    name.contains("/checkpoints/")
        && name
            .rsplit_once('-')
            .is_some_and(|(_, number)| number.parse() == Ok(FINISHED))
}

/// A range of a session that nobody has finished.
#[derive(Clone, Debug)]
pub struct UnfinishedRange {
    /// The range.
    pub range: KeyRange,
    /// The moment to read it at.
    pub read_time: Timestamp,
    /// The same, where it is not the plan's: then the range owns exactly its keys.
    pub(super) tail: Option<Timestamp>,
    pub(super) checkpoint: Option<RangeOutput>,
    /// The number of its next checkpoint.
    pub(super) next: u64,
    /// How it is read, where that is not as planned.
    pub(super) read: Option<ReadMode>,
    /// How often it was claimed.
    pub(super) claims: u64,
    /// Which of the ranges that the session began with it is of, and how many these are.
    pub(super) origin: (usize, usize),
}

impl UnfinishedRange {
    /// The last document that need not be read again, and how many there are up to it.
    pub fn covered(&self) -> Option<(&DocumentKey, u64)> {
        let checkpoint = self.checkpoint.as_ref()?;
        let documents = checkpoint.stats.documents + checkpoint.stats.unchanged_documents;
        Some((checkpoint.cursor.as_ref()?, documents))
    }

    /// Whether it owns exactly its keys, whatever the cuts in the data are: so that it fits what was read at another time.
    pub fn is_exact(&self) -> bool {
        self.tail.is_some()
    }

    /// How it is to be read, where somebody has found out that it cannot be read as planned.
    pub fn read(&self) -> Option<ReadMode> {
        self.read
    }

    /// Which of the ranges that the session began with it is a part of, and how many these are.
    pub fn origin(&self) -> (usize, usize) {
        self.origin
    }

    /// Takes notice of checkpoints that were written of it.
    pub fn passed_checkpoint(&mut self, next: u64) {
        self.next = next;
    }

    /// A part of it that nobody has begun.
    pub(super) fn part(&self, range: KeyRange) -> Self {
        Self {
            range,
            checkpoint: None,
            next: 1,
            claims: 0,
            ..*self
        }
    }
}

impl Session {
    /// The plan's ranges, as if nobody had begun with them.
    pub fn planned_ranges(&self) -> Vec<UnfinishedRange> {
        let plan = self.plan();
        let planned = plan
            .ranges
            .iter()
            .enumerate()
            .map(|(origin, range)| UnfinishedRange {
                range: range.clone(),
                read_time: plan.read_time,
                tail: None,
                checkpoint: None,
                next: 1,
                read: None,
                claims: 0,
                origin: (origin, plan.ranges.len()),
            });
        planned.collect()
    }

    /// Begins a range anew, to be read like this: no checkpoint of it that was written before may be relied upon, by anybody.
    pub async fn begin_anew(&self, range: &mut UnfinishedRange, read: ReadMode) -> Result<()> {
        let shared = &self.shared;
        let anew = RangeOutput {
            range: range.range.clone(),
            read_time: range.tail,
            read: Some(read),
            ..RangeOutput::default()
        };
        let sealed = sealed::encode(SealedKind::Checkpoint, &anew)?;
        let of_range = shared.range_name(&range.range, range.tail)?;
        let store = shared.repository.store();
        loop {
            let name = shared.checkpoint_name(&of_range, range.next);
            range.next += 1;
            match store.put_new(&name, sealed.clone()).await {
                Ok(()) => break,
                // Another worker's, which this one must come after.
                Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        range.checkpoint = None;
        range.read = Some(read);
        Ok(())
    }

    /// Like [`Session::range_writer`], for a range that goes on where its last checkpoint ended, or one that owns exactly its
    /// keys.
    pub fn resume_range_writer(&self, unfinished: UnfinishedRange) -> RangeWriter {
        let writer = match unfinished.is_exact() {
            true => self.exact_range_writer(unfinished.range).at(unfinished.tail),
            false => self.range_writer(unfinished.range),
        };
        match unfinished.checkpoint {
            Some(checkpoint) => writer.resume(checkpoint, unfinished.next),
            None => writer,
        }
    }

    /// Like [`Session::layer_writer`], for a range that goes on where its last checkpoint ended.
    pub async fn resume_layer_writer(&self, unfinished: UnfinishedRange) -> Result<LayerWriter> {
        LayerWriter::resume(Arc::clone(&self.shared), unfinished).await
    }
}

impl SessionShared {
    /// Writes down how far a range has got. Another worker of the same range may have been there before: then its word stands
    /// as well.
    pub(crate) async fn write_progress(&self, output: &RangeOutput, number: u64) -> Result<()> {
        let name = self.checkpoint_name(&self.range_name(&output.range, output.read_time)?, number);
        let sealed = sealed::encode(SealedKind::Checkpoint, output)?;
        match self.repository.store().put_new(&name, sealed).await {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn checkpoint_name(&self, range: &str, number: u64) -> String {
        format!("{}/checkpoints/{range}-{number}", self.id().folder())
    }

    /// What a range is called in the names of objects; `tail` is the moment it is read at, where that is not the plan's.
    pub(super) fn range_name(&self, range: &KeyRange, tail: Option<Timestamp>) -> Result<String> {
        let packed = match tail {
            None => sealed::pack(range)?,
            Some(read_time) => sealed::pack(&(range, read_time))?,
        };
        Ok(blake3::hash(&packed).to_hex()[..16].to_owned())
    }

    /// Writes a range's checkpoint; when another worker finished the same range first, its output is the one that counts.
    pub(crate) async fn write_checkpoint(&self, output: RangeOutput) -> Result<RangeOutput> {
        let name = self.checkpoint_name(&self.range_name(&output.range, output.read_time)?, FINISHED);
        let sealed = sealed::encode(SealedKind::Checkpoint, &output)?;
        match self.repository.store().put_new(&name, sealed).await {
            Ok(()) => {
                let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
                finished.insert(name, output.clone());
                Ok(output)
            }
            Err(StoreError::AlreadyExists { .. }) => self.read_checkpoint(&name).await,
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn read_checkpoint(&self, name: &str) -> Result<RangeOutput> {
        let own = || {
            let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
            finished.get(name).cloned()
        };
        if let Some(output) = own() {
            return Ok(output);
        }
        let bytes = self.repository.store().get_at_most(name, MAX_SEALED_LEN).await?;
        sealed::decode(name, SealedKind::Checkpoint, &bytes)
    }
}
