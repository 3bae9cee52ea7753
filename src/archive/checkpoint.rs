//! Checkpoints: what a session's workers have written down of its ranges, from which alone a commit is made and a resume goes on.
//!
//! Each is one self-contained object, `<range>-<n>`: all index chunks from the range's start to where it has got. Number
//! 0 is that of a finished range, the others count from 1.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use futures::{StreamExt, TryStreamExt};

use super::error::Result;
use super::range_writer::{RangeOutput, RangeWriter};
use super::sealed::{self, MAX_SEALED_LEN, SealedKind};
use super::session::{Session, SessionShared};
use crate::document::{DocumentKey, KeyRange};
use crate::store::StoreError;

/// The number of a finished range's checkpoint.
const FINISHED: u64 = 0;

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
    checkpoint: Option<RangeOutput>,
    next: u64,
}

impl UnfinishedRange {
    /// A range that nobody has begun.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            checkpoint: None,
            next: 1,
        }
    }

    /// The last document that need not be read again, and how many there are up to it.
    pub fn covered(&self) -> Option<(&DocumentKey, u64)> {
        let checkpoint = self.checkpoint.as_ref()?;
        Some((checkpoint.cursor.as_ref()?, checkpoint.stats.documents))
    }
}

impl Session {
    /// The plan's ranges that are not finished, in key order, with how far they have got.
    pub async fn unfinished_ranges(&self) -> Result<Vec<UnfinishedRange>> {
        let folder = self.shared.checkpoint_folder();
        let mut written: HashMap<String, u64> = HashMap::new();
        let mut finished: HashSet<String> = HashSet::new();
        let mut objects = self.shared.repository.store().list(&folder);
        while let Some(object) = objects.try_next().await? {
            let Some((range, number)) = object.name.rsplit_once('-') else {
                continue;
            };
            match number.parse() {
                Ok(FINISHED) => {
                    finished.insert(range.to_owned());
                }
                Ok(number) => {
                    let newest = written.entry(range.to_owned()).or_insert(number);
                    *newest = number.max(*newest);
                }
                Err(_) => {}
            }
        }
        let mut unfinished = Vec::new();
        for range in &self.shared.plan().ranges {
            let name = self.shared.range_name(range)?;
            if finished.contains(&name) {
                continue;
            }
            let written = written.get(&name).copied();
            let checkpoint = match written {
                Some(number) => Some(self.shared.read_checkpoint(&format!("{name}-{number}")).await?),
                None => None,
            };
            unfinished.push(UnfinishedRange {
                range: range.clone(),
                checkpoint: checkpoint.filter(|checkpoint| checkpoint.range == *range),
                next: written.unwrap_or(0) + 1,
            });
        }
        Ok(unfinished)
    }

    /// Like [`Session::range_writer`], for a range that goes on where its last checkpoint ended.
    pub fn resume_range_writer(&self, unfinished: UnfinishedRange) -> RangeWriter {
        let mut writer = self.range_writer(unfinished.range);
        if let Some(checkpoint) = unfinished.checkpoint {
            let reads = writer.reads().clone();
            writer = RangeWriter::resume(Arc::clone(&self.shared), reads, checkpoint, unfinished.next);
        }
        writer
    }

    /// The ranges that are finished, by any worker, in key order.
    pub async fn finished_ranges(&self) -> Result<Vec<RangeOutput>> {
        let folder = self.shared.checkpoint_folder();
        let names: Vec<String> = self
            .shared
            .repository
            .store()
            .list(&folder)
            .map_ok(|object| object.name)
            .try_filter(|name| std::future::ready(is_of_finished_range(name)))
            .try_collect()
            .await?;
        let mut outputs: Vec<RangeOutput> = futures::stream::iter(names)
            .map(|name| async move { self.shared.read_checkpoint(&name).await })
            .buffer_unordered(16)
            .try_collect()
            .await?;
        outputs.retain(|output| output.cursor.is_none());
        outputs.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        Ok(outputs)
    }
}

impl SessionShared {
    /// Writes down how far a range has got. Another worker of the same range may have been there before: then its word stands
    /// as well.
    pub(crate) async fn write_progress(&self, output: &RangeOutput, number: u64) -> Result<()> {
        let name = format!("{}-{number}", self.range_name(&output.range)?);
        let sealed = sealed::encode(SealedKind::Checkpoint, output)?;
        match self.repository.store().put_new(&name, sealed).await {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn checkpoint_folder(&self) -> String {
        format!("{}/checkpoints", self.id().folder())
    }

    /// The name of a range's checkpoints, without their numbers.
    fn range_name(&self, range: &KeyRange) -> Result<String> {
        let digest = blake3::hash(&sealed::pack(range)?).to_hex();
        Ok(format!("{}/{}", self.checkpoint_folder(), &digest[..16]))
    }

    /// Writes a range's checkpoint; when another worker finished the same range first, its output is the one that counts.
    pub(crate) async fn write_checkpoint(&self, output: RangeOutput) -> Result<RangeOutput> {
        let name = format!("{}-{FINISHED}", self.range_name(&output.range)?);
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

    async fn read_checkpoint(&self, name: &str) -> Result<RangeOutput> {
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
