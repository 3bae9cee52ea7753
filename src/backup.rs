//! Takes a snapshot: reads a database at one read time, in parallel key ranges, into a new run of the archive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tracing::info;

use crate::archive::{
    ArchiveError, Flow, RangeSpec, Repository, Selection, Session, SessionPlan, Snapshot, SnapshotDraft,
};
use crate::document::{DocumentKey, KeyRange, PathError, Timestamp};
use crate::firestore::{self, Firestore, ScanOptions};
use crate::progress::Progress;

/// Documents per range that are worth a range of their own: a range reads on past its end to the next cut, some 8 MiB,
/// so small ranges would read much of the database twice.
const DOCUMENTS_PER_RANGE: u64 = 64 * 1024;

/// What to back up, and how.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Which part of the database.
    pub selection: Selection,
    /// How many key ranges are read at the same time.
    pub parallel: usize,
    /// How many key ranges to split into, at most; `None`: as many as the size asks for.
    pub ranges: Option<usize>,
    /// Words to find the snapshot by.
    pub tags: Vec<String>,
    /// The machine that takes it.
    pub host: Option<String>,
    /// A sentence about it.
    pub description: Option<String>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            selection: Selection::Whole,
            parallel: 8,
            ranges: None,
            tags: Vec::new(),
            host: None,
            description: None,
        }
    }
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct BackupStats {
    /// The snapshot that it committed.
    pub snapshot: Snapshot,
    /// How long it took.
    pub duration: Duration,
}

/// A backup that failed. Nothing it wrote is taken for a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database could not be read.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// The repository could not be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The server names a document that has no path.
    #[error(transparent)]
    Path(#[from] PathError),
}
