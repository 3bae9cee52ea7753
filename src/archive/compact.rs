//! Compaction: which runs of a stack to merge, and the merge of a part of their keys.
//!
//! Merging is lazy: a merge of a few dozen runs streams as well as one of two, so what a compaction saves is index pages that a
//! nightly comparison reads. Only index pages are written. Bodies stay where they are, but for those in chunks that are
//! [mostly dead](super::sparse), and an index chunk in whose interval no other merged run has a key is listed as it is.

use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::error::Result;
use super::merge::{Merge, Part, RunCursor};
use super::range_writer::{Flow, RangeOutput, RangeWriter, StoredDocument};
use super::reader::{Run, SnapshotReader};
use super::snapshot::RunRef;
use super::sparse::SparseChunks;
use crate::document::DocumentKey;

/// Runs that a stack may have before some of its layers are merged.
const MAX_RUNS: usize = 32;

/// The runs of a stack, newest first, that are due to be merged: all, once the layers have more than half as many records as
/// the base; else, of a stack that grew too deep, neighbours of similar size.
pub fn due_runs(stack: &[RunRef]) -> Option<Range<usize>> {
    let records: Vec<u64> = stack.iter().map(|run| run.puts + run.tombstones).collect();
    due(&records)
}

fn due(records: &[u64]) -> Option<Range<usize>> {
    let (base, layers) = records.split_last()?;
    if layers.is_empty() {
        return None;
    }
    if 2 * layers.iter().sum::<u64>() > *base {
        return Some(0..records.len());
    }
    if records.len() <= MAX_RUNS {
        return None;
    }
    // Each takes part when it is no larger than all newer ones together, so that a record is merged again only when the
    // merged run is twice as large: as many times as the logarithm of the nights.
    let longest = (0..layers.len())
        .map(|start| {
            let mut sum = layers[start];
            let mut end = start + 1;
            while end < layers.len() && layers[end] <= sum {
                sum += layers[end];
                end += 1;
            }
            start..end
        })
        .max_by_key(|window| (window.len(), std::cmp::Reverse(window.start)))?;
    Some(if longest.len() < 2 { 0..2 } else { longest })
}

impl SnapshotReader {
    /// Keys that cut some of the stack's runs into up to `parts` ranges, ascending: first keys of index chunks of the largest of
    /// them, so that its chunks can be kept whole.
    pub async fn chunk_boundaries(&self, runs: &Range<usize>, parts: usize) -> Result<Vec<DocumentKey>> {
        let runs = self.runs().get(runs.clone()).unwrap_or_default();
        let Some(largest) = runs.iter().max_by_key(|run| run.reference.puts) else {
            return Ok(Vec::new());
        };
        let blocks = self.block_source();
        let mut starts: Vec<DocumentKey> = Vec::new();
        let mut loaded = futures::stream::iter(&largest.root.blocks)
            .map(|listed| blocks.load(listed))
            .buffered(4)
            .boxed();
        while let Some(block) = loaded.try_next().await? {
            starts.extend(
                block
                    .entries
                    .iter()
                    .filter_map(|entry| Some(entry.pages.first()?.first_key.clone())),
            );
        }
        let parts = parts.min(starts.len()).max(1);
        Ok((1..parts)
            .map(|part| starts[starts.len() * part / parts].clone())
            .collect())
    }
}

/// Merges some runs of a snapshot's stack, as far as they are in the writer's range, which it must own exactly. Tombstones
/// are dropped when the oldest run takes part: nothing is left that they would hide. Bodies are copied out of `sparse` chunks.
pub async fn merge_range(
    reader: &SnapshotReader,
    runs: &Range<usize>,
    sparse: &Arc<SparseChunks>,
    mut writer: RangeWriter,
) -> Result<RangeOutput> {
    let keep_tombstones = runs.end < reader.runs().len();
    let range = writer.range().clone();
    let cursor = |run: &Arc<Run>| {
        let blocks = reader.block_source().clone();
        RunCursor::new(blocks, Arc::clone(run), range.clone(), false)
    };
    let merged = reader.runs().get(runs.clone()).unwrap_or_default();
    let mut merge = Merge::compacting(merged.iter().map(cursor).collect(), keep_tombstones, sparse);
    while let Some(part) = merge.next_part().await? {
        let batch = match part {
            Part::Chunk(entry) => {
                writer.push_chunk(entry).await?;
                continue;
            }
            Part::Records(batch) => batch,
        };
        let mut copies = sparse.copies(reader, &batch);
        for record in batch.iter() {
            let flow = match record.body {
                Some(body) if sparse.contains(&body.chunk) => {
                    writer.push(copies.next(record.key).await?).await?
                }
                Some(body) => {
                    let document = StoredDocument {
                        key: record.key,
                        create_time: record.create_time,
                        update_time: record.update_time,
                        body_hash: record.body_hash,
                        chunk: body.chunk,
                        offset: body.offset,
                        length: body.length,
                    };
                    writer.push_reusing(document).await?
                }
                None => writer.push_tombstone(record.key).await?,
            };
            debug_assert_eq!(flow, Flow::Continue);
        }
    }
    writer.finish().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_merged_once_the_layers_are_half_of_the_base() {
        assert_eq!(due(&[]), None);
        assert_eq!(due(&[5]), None);
        assert_eq!(due(&[5, 10]), None);
        assert_eq!(due(&[6, 10]), Some(0..2));
        assert_eq!(due(&[1, 2, 3, 10]), Some(0..4));
        assert_eq!(due(&[1, 2, 2, 10]), None);
    }

    #[test]
    fn a_deep_stack_merges_layers_of_similar_size() {
        let mut stack = vec![1; MAX_RUNS - 1];
        stack.push(1_000_000);
        assert_eq!(due(&stack), None);
        stack.insert(0, 1);
        assert_eq!(due(&stack), Some(0..MAX_RUNS));
        // A large layer stays out of it.
        stack[MAX_RUNS - 1] = 1000;
        assert_eq!(due(&stack), Some(0..MAX_RUNS - 1));
        let mut doubling: Vec<u64> = (0..MAX_RUNS as u64).map(|n| 1 << n).collect();
        doubling.push(1 << 40);
        assert_eq!(due(&doubling), Some(0..2));
    }

    #[test]
    fn a_record_is_rewritten_a_few_times_in_a_thousand_nights() {
        let (mut stack, mut rewritten) = (vec![1_000_000], 0);
        for _ in 0..1000 {
            stack.insert(0, 100);
            if let Some(runs) = due(&stack) {
                let merged: u64 = stack[runs.clone()].iter().sum();
                rewritten += merged;
                stack.splice(runs, [merged]);
            }
            assert!(stack.len() <= MAX_RUNS);
        }
        assert!(rewritten <= 8 * 100 * 1000, "{rewritten}");
    }
}
