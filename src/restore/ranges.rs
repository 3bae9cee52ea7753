//! Into which key ranges a restore is cut, and in which order they are begun.

use crate::archive::{ArchiveError, SnapshotReader};
use crate::document::KeyRange;

/// Ranges for each reader: a reader that is done takes the next, so that all of them end at about the same time.
const RANGES_PER_READER: usize = 4;

/// How many ranges so many readers have work with.
pub(super) fn ranges_for(readers: usize) -> usize {
    readers.max(1) * RANGES_PER_READER
}

/// Cuts the ranges where the snapshot's index can be cut, ascending: into `count` ranges, and more where they lie apart.
pub(super) async fn split_ranges(
    reader: &SnapshotReader,
    ranges: &[KeyRange],
    count: usize,
) -> Result<Vec<KeyRange>, ArchiveError> {
    let boundaries = reader.page_boundaries_within(ranges, count).await?;
    Ok(ranges
        .iter()
        .flat_map(|range| range.cut_at(&boundaries))
        .collect())
}

/// The order in which so many ranges are begun when `parallel` of them are read at a time: those that are read together lie
/// far apart. Neighbours would send their writes to the same tablets of the database.
pub(super) fn far_apart(ranges: usize, parallel: usize) -> Vec<usize> {
    let stride = ranges.div_ceil(parallel.max(1)).max(1);
    (0..stride)
        .flat_map(|first| (first..ranges).step_by(stride))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_once_and_neighbours_apart() {
        for ranges in 0..70 {
            for parallel in 1..10 {
                let order = far_apart(ranges, parallel);
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..ranges).collect::<Vec<_>>());
            }
        }
        assert_eq!(far_apart(8, 4), [0, 2, 4, 6, 1, 3, 5, 7]);
    }
}
