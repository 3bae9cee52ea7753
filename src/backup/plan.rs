//! Which key ranges to read side by side: quantiles of the parent's index, or, without one, of what the server tells.

use std::time::Duration;

use tracing::info;

use super::{BackupError, BackupOptions};
use crate::archive::{Plan, SnapshotReader, UnfinishedRange};
use crate::document::{DocumentKey, KeyRange, Timestamp};
use crate::firestore::{self, Firestore};
use crate::progress::Progress;

/// Documents per range below which it is not worth a range of its own: a range reads on past its end to the next cut,
/// some 8 MiB, so small ranges would read much of the database twice.
const MIN_DOCUMENTS_PER_RANGE: u64 = 64 * 1024;

/// The same for a backup with a parent, whose ranges end where they end: each costs a few requests.
const MIN_COMPARED_PER_RANGE: u64 = 16 * 1024;

/// The same where every reader has a range already. Fewer have too few changes, on most nights, for chunks of their own: those
/// are compressed for a checkpoint that carries them, and once more when the session commits.
const MIN_COMPARED_PER_SPARE_RANGE: u64 = 256 * 1024;

/// How long to wait for counts. They only decide how many ranges to read in, and counting hundreds of millions of documents
/// takes longer than servers let a call take.
const COUNT_PATIENCE: Duration = Duration::from_secs(20);

/// Ranges per reader, so that readers which finish early find more to do.
const RANGES_PER_READER: usize = 4;

/// The selection cut at the parent's pages, into ranges with about as many records each.
pub(super) async fn ranges_of_parent(
    database: &Firestore,
    parent: &SnapshotReader,
    read_time: Timestamp,
    options: &BackupOptions,
    progress: &Progress,
) -> Result<Vec<KeyRange>, BackupError> {
    let documents = parent.snapshot().documents;
    progress.set_total_documents(documents);
    let parts = options
        .ranges
        .unwrap_or_else(|| compared_parts(documents, options));
    let boundaries = match database.walks() && options.selection.collection_groups.is_empty() {
        true => {
            database
                .split(&KeyRange::all(), &[], read_time, parts.max(1))
                .await?
        }
        false => {
            let boundaries = parent.page_boundaries(parts.max(1)).await;
            boundaries.map_err(|error| BackupError::of_parent(parent.id(), error))?
        }
    };
    let selected = options.selection.key_ranges();
    Ok(selected
        .iter()
        .flat_map(|interval| interval.cut_at(&boundaries))
        .collect())
}

/// How many ranges can be read at the same time, by all tasks together.
fn readers(options: &BackupOptions) -> usize {
    let tasks = options.task.as_ref().map_or(1, |task| task.task.count() as usize);
    options.parallel.max(1) * tasks
}

fn parts(documents: u64, least: u64, options: &BackupOptions) -> usize {
    usize::try_from(documents / least)
        .unwrap_or(usize::MAX)
        .clamp(1, readers(options) * RANGES_PER_READER)
}

/// In how many ranges a database with so many documents is compared with its parent.
fn compared_parts(documents: u64, options: &BackupOptions) -> usize {
    let spare = parts(documents, MIN_COMPARED_PER_SPARE_RANGE, options);
    parts(documents, MIN_COMPARED_PER_RANGE, options).min(spare.max(readers(options)))
}

/// In how many ranges so many documents are read, where nothing else comes between.
pub(super) fn expected_ranges(documents: u64, has_parent: bool, options: &BackupOptions) -> u64 {
    let parts = options.ranges.unwrap_or_else(|| match has_parent {
        true => compared_parts(documents, options),
        false => parts(documents, MIN_DOCUMENTS_PER_RANGE, options),
    });
    parts.max(1) as u64
}

/// What it costs about in reads to have the server tell where to cut so many documents: a few questions for each piece that is
/// looked at, and counts, of all documents at first and of halves then.
pub(super) fn reads_to_cut(documents: u64, ranges: u64) -> u64 {
    if ranges < 2 {
        return 0;
    }
    let pieces = 2 * ranges;
    let rounds = 1 + u64::from(pieces.ilog2()) / 2;
    4 * pieces + documents / 1000 * rounds
}

/// The selection cut by what the server tells of its documents.
pub(super) async fn ranges_of_database(
    database: &Firestore,
    options: &BackupOptions,
    read_time: Timestamp,
    progress: &Progress,
) -> Result<Vec<KeyRange>, BackupError> {
    let all = KeyRange::all();
    let intervals = options.selection.parts(&all);
    let mut counts = Vec::with_capacity(intervals.len());
    for (interval, groups) in &intervals {
        counts.push(count(database, interval, groups, None, read_time).await?);
    }
    let total: Option<u64> = counts.iter().copied().sum();
    if let Some(total) = total {
        progress.set_total_documents(total);
    }

    let mut ranges = Vec::new();
    for ((interval, groups), count) in intervals.into_iter().zip(counts) {
        let parts = match (options.ranges, count) {
            (Some(ranges), _) => ranges.max(1),
            (None, Some(count)) => parts(count, MIN_DOCUMENTS_PER_RANGE, options),
            (None, None) => readers(options),
        };
        let boundaries = if parts > 1 {
            database.split(&interval, groups, read_time, parts).await?
        } else {
            Vec::new()
        };
        ranges.extend(interval.cut_at(&boundaries));
    }
    Ok(ranges)
}

/// Where to cut what is left of a range, so that others can read some of it; nowhere where that is not worth while.
pub(super) async fn split_points(
    database: &Firestore,
    parent: Option<&SnapshotReader>,
    plan: &Plan,
    rest: &UnfinishedRange,
    parts: usize,
    options: &BackupOptions,
) -> Result<Vec<DocumentKey>, BackupError> {
    let wanted = plan.selection.parts(&rest.range);
    if database.walks() && wanted.iter().any(|(_, groups)| groups.is_empty()) {
        return Ok(Vec::new());
    }
    if let Some(parent) = parent {
        let boundaries = parent
            .page_boundaries_within(std::slice::from_ref(&rest.range), parts)
            .await;
        return boundaries.map_err(|error| BackupError::of_parent(parent.id(), error));
    }
    let mut boundaries = Vec::new();
    let mut documents = Some(0);
    for (range, groups) in &wanted {
        let count = count(database, range, groups, None, rest.read_time).await?;
        documents = documents.zip(count).map(|(sum, count)| sum + count);
        if count == Some(0) {
            continue;
        }
        if range.start != rest.range.start {
            boundaries.extend(range.start.clone());
        }
        boundaries.extend(database.split(range, groups, rest.read_time, parts).await?);
    }
    if documents.is_some_and(|documents| documents < options.split_documents) {
        return Ok(Vec::new());
    }
    // Every n-th, if there are too many.
    let (found, most) = (boundaries.len(), parts.saturating_sub(1));
    if found > most {
        let evenly = (1..=most).map(|part| boundaries[part * (found + 1) / (most + 1) - 1].clone());
        boundaries = evenly.collect();
    }
    Ok(boundaries)
}

/// How many documents there are, in all or after one; `None` where the server cannot tell, or not soon. Only what everything
/// that follows would meet as well is an error.
pub(super) async fn count(
    database: &Firestore,
    range: &KeyRange,
    groups: &[String],
    after: Option<&DocumentKey>,
    read_time: Timestamp,
) -> Result<Option<u64>, BackupError> {
    let asked = database.count_after(range, groups, after, Some(read_time));
    match tokio::time::timeout(COUNT_PATIENCE, asked).await {
        Ok(Ok(count)) => Ok(Some(count)),
        Ok(Err(
            error @ (firestore::Error::PermissionDenied { .. }
            | firestore::Error::Unauthenticated { .. }
            | firestore::Error::DatabaseNotFound { .. }
            | firestore::Error::ReadTimeTooOld { .. }),
        )) => Err(error.into()),
        Ok(Err(error)) => {
            info!("the server does not count its documents: {error}");
            Ok(None)
        }
        Err(_) => {
            info!("the server takes long to count its documents: going on without");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::TaskOptions;
    use crate::task::Task;

    #[test]
    fn there_are_ranges_for_the_readers_of_all_tasks() {
        let of = |count: Option<u32>| BackupOptions {
            parallel: 8,
            task: count.map(|count| TaskOptions::new(Task::new(0, count).unwrap())),
            ..BackupOptions::default()
        };
        let many = 1_000_000_000;
        assert_eq!(parts(many, MIN_DOCUMENTS_PER_RANGE, &of(None)), 32);
        assert_eq!(parts(many, MIN_DOCUMENTS_PER_RANGE, &of(Some(8))), 256);
        // Small ranges are not worth it, however many tasks there are: who is idle asks for parts.
        assert_eq!(parts(640 * 1024, MIN_DOCUMENTS_PER_RANGE, &of(Some(8))), 10);

        let compared = |documents| compared_parts(documents, &of(None));
        assert_eq!([10_000, 100_000, 200_000, 2_000_000].map(compared), [1, 6, 8, 8]);
        assert_eq!([5_000_000, 100_000_000].map(compared), [19, 32]);
        assert_eq!(compared_parts(2_000_000, &of(Some(8))), 64);
    }
}
