//! Verification: is what snapshots need there, whole, and does it agree with itself?
//!
//! *Presence* lists the chunks and compares names and sizes. *Contents* reads every run, block and index page and holds them
//! against each other and against the snapshot's counts; on demand it reads the data chunks as well, hashes every frame again
//! and looks at every body. Both parts of that go on at the same time, and every page is fetched and decoded once.
//!
//! A finding is a [`Damage`](super::Damage) that names the object and the documents it affects; it never stops the check of
//! the others. What is no damage (the network, permissions) does stop it: a check that could not look must not say that all is
//! well.

mod bodies;
mod count;
mod locate;
mod pages;
mod presence;
mod report;
mod stack;

use std::collections::HashSet;

use serde::Serialize;

use super::attachment::read_chunk;
use super::error::Result;
use super::ids::{ChunkId, RunId, SessionId};
use super::reader::SnapshotReader;
use crate::progress::Progress;
use crate::task::{Part, Task};
use pages::Depth;
pub use presence::check_presence;
pub use report::DamageReport;
use stack::StackCheck;

/// What a check looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckStats {
    /// Objects whose existence and size were looked at.
    pub objects: u64,
    /// Runs.
    pub runs: u64,
    /// Directory blocks.
    pub directory_blocks: u64,
    /// Index chunks.
    pub index_chunks: u64,
    /// Index records that were held against the directory, tombstones and hidden ones included.
    pub records: u64,
    /// Data chunks.
    pub data_chunks: u64,
    /// Bodies that were looked at.
    pub documents: u64,
    /// Bytes of objects read.
    pub stored_bytes: u64,
    /// Bytes of data that were decompressed and hashed.
    pub raw_bytes: u64,
}

/// A part of all data chunks, picked by their ids: part `part` (from zero) of `of`. Checking every part on another day checks
/// everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSubset {
    /// Which part, from zero.
    pub part: u64,
    /// Of how many.
    pub of: u64,
}

impl DataSubset {
    /// All data chunks.
    pub const ALL: Self = Self { part: 0, of: 1 };

    /// The share of it that one of several tasks reads: together they read all of it, and nothing twice.
    pub fn share(self, task: Task) -> Self {
        self.cut(task.into())
    }

    /// One of the parts that it is cut into.
    pub(crate) fn cut(self, part: Part) -> Self {
        Self {
            part: self.part + u64::from(part.number) * self.of.max(1),
            of: self.of.max(1) * u64::from(part.of),
        }
    }

    /// Whether a chunk belongs to the part.
    pub fn includes(&self, id: &ChunkId) -> bool {
        id.low_bits() % self.of.max(1) == self.part
    }
}

/// Checks the runs, blocks and index pages of snapshots, that the documents are those that each snapshot counts, and with
/// `data` the chunks of that part of the data: each one is read whole, every frame hashed again, every body looked at.
///
/// A run that several snapshots share is checked once, and merged for each of them. A data chunk is read once for all the runs
/// of a snapshot that point into it.
pub async fn check_contents(
    readers: &[SnapshotReader],
    data: Option<DataSubset>,
    report: &mut DamageReport,
    progress: &Progress,
) -> Result<CheckStats> {
    let mut stats = CheckStats::default();
    let mut seen = HashSet::new();
    for reader in readers {
        let depths = depths(reader, &mut seen, |is_new| match is_new {
            true => Some(Depth::Everything(data)),
            false => Some(Depth::Names),
        });
        let stack = StackCheck::new(reader, &depths, report, &mut stats, progress).await?;
        stack.run().await?;
        for name in &reader.snapshot().refs {
            if let Some(frames) = report.take(read_chunk(reader.repository(), name.clone()).await)? {
                stats.raw_bytes += frames.iter().map(Vec::len).sum::<usize>() as u64;
            }
        }
    }
    Ok(stats)
}

/// Checks a part of the data as [`check_contents`] does, where all else was looked at before: of the index, only what points into that
/// part is read, and nothing is counted.
pub async fn check_data(
    readers: &[SnapshotReader],
    data: DataSubset,
    report: &mut DamageReport,
    progress: &Progress,
) -> Result<CheckStats> {
    let mut stats = CheckStats::default();
    let mut seen = HashSet::new();
    for reader in readers {
        let depths = depths(reader, &mut seen, |is_new| is_new.then_some(Depth::Data(data)));
        let stack = StackCheck::new(reader, &depths, report, &mut stats, progress).await?;
        stack.run().await?;
    }
    Ok(stats)
}

/// How closely to look at each run of a snapshot, by whether no snapshot before has it.
fn depths(
    reader: &SnapshotReader,
    seen: &mut HashSet<(RunId, SessionId)>,
    depth: impl Fn(bool) -> Option<Depth>,
) -> Vec<Option<Depth>> {
    let runs = reader.runs().iter();
    runs.map(|run| depth(seen.insert((run.reference.id, run.reference.session))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_share_a_part_without_rest_or_overlap() {
        for subset in [DataSubset::ALL, DataSubset { part: 2, of: 3 }] {
            for bits in 0..1000u64 {
                let in_part = |subset: DataSubset| bits % subset.of == subset.part;
                let tasks = (0..5).map(|index| Task::new(index, 5).unwrap());
                let readers = tasks.filter(|&task| in_part(subset.share(task))).count();
                assert_eq!(readers, usize::from(in_part(subset)), "{subset:?} {bits}");
            }
        }
    }
}
