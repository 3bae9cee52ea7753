//! Whether a database has as many documents as a snapshot: the cheap check, a billed read for a thousand documents.
//!
//! Equal counts prove little, and unequal ones prove that something is missing or extra. A whole snapshot is compared by
//! collection group, which finds documents that were lost wherever they were, and in all, which finds a collection that the
//! snapshot does not have.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use serde::Serialize;

use crate::archive::{Lease, SnapshotReader};
use crate::diff::DiffError;
use crate::document::{KeyRange, Timestamp};
use crate::firestore::{self, Firestore};
use crate::progress::Progress;

/// What a count is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CountOf {
    /// The whole database.
    Database,
    /// All collections of an id, wherever they are.
    CollectionGroup,
    /// A collection or a document, with everything below it.
    Path,
}

/// Documents of one part on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CountedPart {
    /// What sort of part it is.
    pub of: CountOf,
    /// The group's id or the path; empty for the whole database.
    pub name: String,
    /// Documents in the snapshot.
    pub expected: u64,
    /// Documents in the database.
    pub found: u64,
}

/// How the counts compare.
#[derive(Clone, Debug)]
pub struct CountStats {
    /// The moment that the database was looked at.
    pub read_time: Timestamp,
    /// The parts, the whole first where it was counted.
    pub parts: Vec<CountedPart>,
    /// Whether the server refused to count over all collections: then a collection that only the database has goes unnoticed.
    pub whole_refused: bool,
    /// Reads that Firestore bills for it, as far as the client can tell.
    pub billed_reads: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// How long it took.
    pub duration: Duration,
}

impl CountStats {
    /// Whether all counts are the same.
    pub fn is_equal(&self) -> bool {
        self.parts.iter().all(|part| part.expected == part.found)
    }
}

/// A part whose count in the snapshot is known.
struct Part {
    of: CountOf,
    name: String,
    range: KeyRange,
    expected: u64,
}

/// Compares how many documents a snapshot and a database have, now: of some paths, given with what they are called and their key
/// ranges, or without any of all that the snapshot selects.
///
/// # Errors
/// When either side cannot be read. A difference is none.
pub async fn verify_counts(
    snapshot: &SnapshotReader,
    database: &Firestore,
    paths: &[(String, KeyRange)],
    progress: &Progress,
) -> Result<CountStats, DiffError> {
    let started = Instant::now();
    let before = database.stats().counts();
    let read_time = database.current_read_time().await?;
    let lease = Lease::of(snapshot, "verify").await?;
    let parts = match paths {
        [] => parts_of_selection(snapshot).await,
        paths => parts_of_paths(snapshot, paths).await,
    };
    lease.release().await;
    let parts = match parts {
        Err(DiffError::Archive(error)) => {
            return Err(snapshot.repository().explain(snapshot.id(), error).await.into());
        }
        parts => parts?,
    };
    let mut whole_refused = false;
    let mut counted = Vec::with_capacity(parts.len());
    for part in parts {
        let found = match part.of {
            CountOf::CollectionGroup => database.count_group(&part.name, Some(read_time)).await?,
            CountOf::Path => database.count(&part.range, Some(read_time)).await?,
            CountOf::Database => match database.count(&part.range, Some(read_time)).await {
                Err(firestore::Error::Unsupported { .. } | firestore::Error::Rejected { .. }) => {
                    whole_refused = true;
                    continue;
                }
                found => found?,
            },
        };
        progress.add(found, 0);
        counted.push(CountedPart {
            of: part.of,
            name: part.name,
            expected: part.expected,
            found,
        });
    }
    let after = database.stats().counts();
    Ok(CountStats {
        read_time,
        parts: counted,
        whole_refused,
        billed_reads: after.billed_reads - before.billed_reads,
        retries: after.retries - before.retries,
        duration: started.elapsed(),
    })
}

/// What is to be counted of a snapshot's selection, with what the snapshot itself says about it.
async fn parts_of_selection(snapshot: &SnapshotReader) -> Result<Vec<Part>, DiffError> {
    let told = snapshot.snapshot();
    let selection = &told.selection;
    let group = |name: &String| Part {
        of: CountOf::CollectionGroup,
        name: name.clone(),
        range: KeyRange::default(),
        expected: told
            .collection_groups
            .get(name)
            .map_or(0, |count| count.documents),
    };
    if !selection.is_all() {
        let paths: Vec<(String, KeyRange)> = selection
            .collections
            .iter()
            .map(|path| (path.to_string(), path.key_range()))
            .collect();
        let mut parts = parts_of_paths(snapshot, &paths).await?;
        parts.extend(selection.collection_groups.iter().map(group));
        return Ok(parts);
    }
    let whole = Part {
        of: CountOf::Database,
        name: String::new(),
        range: KeyRange::all(),
        expected: told.documents,
    };
    // What was too much to be counted by name stands under the empty one.
    let groups = told.collection_groups.keys().filter(|name| !name.is_empty());
    Ok(std::iter::once(whole).chain(groups.map(group)).collect())
}

/// Paths, with what the snapshot's index has in their ranges.
async fn parts_of_paths(
    snapshot: &SnapshotReader,
    paths: &[(String, KeyRange)],
) -> Result<Vec<Part>, DiffError> {
    let mut parts = Vec::with_capacity(paths.len());
    for (name, range) in paths {
        let mut expected = 0;
        let mut records = pin!(snapshot.records(range.clone()));
        while let Some(batch) = records.try_next().await? {
            expected += batch.len() as u64;
        }
        parts.push(Part {
            of: CountOf::Path,
            name: name.clone(),
            range: range.clone(),
            expected,
        });
    }
    Ok(parts)
}
