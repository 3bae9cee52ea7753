//! Finding by counts where there is something else than there should be.
//!
//! Counts are billed a read for each thousand index entries, one at least. So a leaf has at most a thousand documents, and a
//! difference in it is narrowed down with some six counts more.

use std::ops::Range;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::asked::Asking;
use super::section::Section;
use crate::backup::compared::Comparison;
use crate::backup::{BackupError, plan};
use crate::document::KeyRange;

/// Documents that there should be in a leaf, at most: what the server counts for one read.
const LEAF: usize = 1000;
/// Documents among which names are compared rather than counted on.
const NARROW: usize = 16;
/// Counts of a section under way at the same time.
const COUNTS_AT_ONCE: usize = 8;

/// Where a section does not have what it should: its items there, ascending; `None` where the server does not count.
pub(super) async fn differing(
    comparison: &Comparison,
    asking: &Asking,
    section: &Section,
) -> Result<Option<Vec<Range<usize>>>, BackupError> {
    let counter = Counter { comparison, section };
    let differing = counter.all().await?;
    if differing.is_none() {
        asking.say("names are read where the server does not count documents, or not soon".to_owned());
    }
    Ok(differing)
}

struct Counter<'a> {
    comparison: &'a Comparison,
    section: &'a Section,
}

impl Counter<'_> {
    async fn all(&self) -> Result<Option<Vec<Range<usize>>>, BackupError> {
        let items = self.section.len();
        // Where nothing is expected, nothing is still to be counted.
        let leaves = (0..items.max(1)).step_by(LEAF);
        let leaves = leaves.map(|start| start..(start + LEAF).min(items)).collect();
        let Some(mut differing) = self.narrow_all(leaves).await? else {
            return Ok(None);
        };
        differing.sort_by_key(|items| items.start);
        let groups = self.groups(&differing);
        if groups.len() * 4 > self.section.parents().max(64) {
            // Names cost less.
            let all = 0..items;
            return Ok(Some(vec![all]));
        }
        let Some(of_groups) = self.counted_otherwise(groups).await? else {
            return Ok(None);
        };
        differing.extend(of_groups);
        Ok(Some(joined(differing)))
    }

    /// The groups of each leaf, where nothing differs so far.
    fn groups(&self, differing: &[Range<usize>]) -> Vec<(Range<usize>, usize)> {
        if self.section.selected.len() == 1 {
            // They were counted.
            return Vec::new();
        }
        let starts = std::iter::once(0).chain(differing.iter().map(|items| items.end));
        let ends = differing
            .iter()
            .map(|items| items.start)
            .chain([self.section.len()]);
        let mut wanted = Vec::new();
        for (mut start, end) in starts.zip(ends) {
            while start < end {
                let items = start..end.min((start / LEAF + 1) * LEAF);
                start = items.end;
                for group in 0..self.section.groups.len() {
                    if self.section.expected(&items, Some(group)) > 0 {
                        wanted.push((items.clone(), group));
                    }
                }
            }
        }
        wanted
    }

    /// Where a group has not what it should, as a whole: all collections together have, so what one has lost another one has
    /// gained, and that may be anywhere there and of a group that nobody knows.
    async fn counted_otherwise(
        &self,
        wanted: Vec<(Range<usize>, usize)>,
    ) -> Result<Option<Vec<Range<usize>>>, BackupError> {
        let counts = wanted
            .into_iter()
            .map(|(items, group)| async move {
                let expected = self.section.expected(&items, Some(group));
                let count = self.count(&items, Some(group)).await?;
                Ok::<_, BackupError>(count.map(|count| (count != expected).then_some(items)))
            })
            .collect::<Vec<_>>();
        let counts: Vec<Option<Option<Range<usize>>>> = stream::iter(counts)
            .buffered(COUNTS_AT_ONCE)
            .try_collect()
            .await?;
        let counts: Option<Vec<_>> = counts.into_iter().collect();
        Ok(counts.map(|counts| counts.into_iter().flatten().collect()))
    }

    /// Counts, and narrows down what differs.
    async fn narrow_all(&self, leaves: Vec<Range<usize>>) -> Result<Option<Vec<Range<usize>>>, BackupError> {
        let narrowed = leaves
            .into_iter()
            .map(|items| self.narrow(items))
            .collect::<Vec<_>>();
        let narrowed: Vec<Option<Vec<Range<usize>>>> = stream::iter(narrowed)
            .buffered(COUNTS_AT_ONCE)
            .try_collect()
            .await?;
        let narrowed: Option<Vec<_>> = narrowed.into_iter().collect();
        Ok(narrowed.map(|narrowed| narrowed.concat()))
    }

    async fn narrow(&self, items: Range<usize>) -> Result<Option<Vec<Range<usize>>>, BackupError> {
        let Some(count) = self.count(&items, None).await? else {
            return Ok(None);
        };
        let mut differing = Vec::new();
        let mut open = vec![(items, count)];
        while let Some((items, count)) = open.pop() {
            if count == self.section.expected(&items, None) {
                continue;
            }
            if items.len() <= NARROW {
                differing.push(items);
                continue;
            }
            let middle = items.start + items.len() / 2;
            let (left, right) = (items.start..middle, middle..items.end);
            let Some(on_the_left) = self.count(&left, None).await? else {
                return Ok(None);
            };
            let Some(on_the_right) = count.checked_sub(on_the_left) else {
                // The whole cannot have fewer than its half.
                differing.push(items);
                continue;
            };
            open.push((right, on_the_right));
            open.push((left, on_the_left));
        }
        Ok(Some(differing))
    }

    async fn count(&self, items: &Range<usize>, group: Option<usize>) -> Result<Option<u64>, BackupError> {
        let range: KeyRange = self.section.range_of(items);
        let of_group;
        let groups = match group {
            None => &self.section.selected[..],
            Some(group) => {
                of_group = [self.section.groups[group].clone()];
                &of_group[..]
            }
        };
        let Comparison {
            database, read_time, ..
        } = self.comparison;
        plan::count(database, &range, groups, None, *read_time).await
    }
}

/// Ranges in order, those that touch joined.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
