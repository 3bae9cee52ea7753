//! The sweep: deletes what no snapshot, session or lease needs, beside anything else that runs, and killable at any point.
//!
//! The order of the listings is the protocol of `FORMAT.md`, which was model-checked, and each step of it is needed:
//! candidates first, so that what is written from now on is none; markers before sessions and leases, so that whoever was not
//! seen finds the markers that this sweep goes by; decisions last, so that a session that was seen undecided and commits
//! meanwhile counts either way. Runs are deleted before chunks: a sweep that is stopped leaves no run without its chunks.
//!
//! Clocks decide only when a session or a lease is given up. All times compared are the store's own, "now" too: that of an
//! object which the sweep writes. This machine's clock does not matter. Were the store's own clock to jump by a day between
//! two signs of life, a session that lives would be aborted and its backup fail, which is what an abort may always do; and a
//! reader would be told that its snapshot was forgotten, if it was. Nothing that is committed and not forgotten depends on it.
//!
//! What cannot be read stops a sweep before it deletes anything. A full disk does not: a sweep needs no room, only then it goes by the
//! time of the newest object and leaves sessions without a sign of life to the next one.

mod candidates;
mod delete;
mod reach;
mod survey;

pub(super) use survey::session_of;

use std::collections::HashSet;
use std::time::Duration;

use futures::TryStreamExt;
use serde::Serialize;

use super::error::Result;
use super::ids::SnapshotId;
use super::repository::Repository;
use delete::Deletion;
use survey::{Findings, Mode, survey};

/// When a sweep gives things up.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// A session or a lease without a sign of life for so long is given up.
    pub expiry: Duration,
    /// So long the records of forgotten snapshots and aborted sessions stay, and names of sessions.
    pub keep_records: Duration,
}

impl Default for SweepOptions {
    /// A day, and thirty.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            expiry: DAY,
            keep_records: 30 * DAY,
        }
    }
}

/// What a sweep deleted, or would delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SweepStats {
    /// Snapshots that stand.
    pub snapshots: u64,
    /// Chunks and run roots that nothing needs.
    pub deleted_objects: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Chunks and run roots that stay.
    pub kept_objects: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Sessions without a sign of life, aborted.
    pub aborted_sessions: u64,
    /// Finished sessions whose own objects were removed.
    pub finished_sessions: u64,
    /// Leases of readers without a sign of life, removed.
    pub expired_leases: u64,
    /// Old records of forgotten snapshots and aborted sessions, and old names of sessions that are at their end.
    pub deleted_records: u64,
    /// Files that a crash left half-written in a local repository.
    pub deleted_staging_files: u64,
}

impl SweepStats {
    /// Adds what a sweep right before this one deleted.
    pub fn add_deleted(&mut self, before: &Self) {
        self.deleted_objects += before.deleted_objects;
        self.deleted_bytes += before.deleted_bytes;
        self.aborted_sessions += before.aborted_sessions;
        self.finished_sessions += before.finished_sessions;
        self.expired_leases += before.expired_leases;
        self.deleted_records += before.deleted_records;
        self.deleted_staging_files += before.deleted_staging_files;
    }
}

/// Says what a sweep would do if these snapshots were forgotten. Writes nothing: "now" is this machine's here.
pub async fn plan_sweep(
    repository: &Repository,
    options: &SweepOptions,
    also_forgotten: &HashSet<SnapshotId>,
) -> Result<SweepStats> {
    let found = survey(repository, options, Mode::Plan { also_forgotten }).await?;
    Ok(found.stats())
}

/// Deletes what nothing needs.
///
/// # Errors
/// [`ArchiveError::CannotSweep`](super::ArchiveError::CannotSweep), and nothing is deleted, when an object that may refer to
/// others cannot be read; [`ArchiveError::NotDeleted`](super::ArchiveError::NotDeleted) when the store refuses.
pub async fn sweep(repository: &Repository, options: &SweepOptions) -> Result<SweepStats> {
    let found = survey(repository, options, Mode::Act).await?;
    let mut stats = found.stats();
    let Findings {
        candidates,
        finished_sessions,
        old_records,
        old_names,
        now,
        ..
    } = found;
    let store = repository.store();

    let mut deletion = Deletion::new(store);
    deletion.delete(candidates.run_names()).await?;
    // A run that stays needs its chunks.
    deletion.check()?;
    deletion.delete(candidates.chunk_names()).await?;
    deletion.check()?;
    (stats.deleted_objects, stats.deleted_bytes) = deletion.deleted();

    for session in finished_sessions {
        let names: Vec<(String, u64)> = store
            .list(&session.folder())
            .map_ok(|object| (object.name, object.size))
            .try_collect()
            .await?;
        deletion.delete(names.into_iter()).await?;
    }
    for record in old_records {
        deletion.delete([(record.snapshot_name(), 0)].into_iter()).await?;
        // After the record: see `forget`.
        deletion
            .delete([(record.forgotten_name(), 0)].into_iter())
            .await?;
    }
    deletion
        .delete(old_names.into_iter().map(|name| (name, 0)))
        .await?;
    let stale = now - options.expiry;
    let probes: Vec<(String, u64)> = store
        .list("probes")
        .try_filter(|object| std::future::ready(object.last_modified < stale))
        .map_ok(|object| (object.name, object.size))
        .try_collect()
        .await?;
    deletion.delete(probes.into_iter()).await?;
    deletion.check()?;
    stats.deleted_staging_files = store.remove_staging_files(stale).await?;
    Ok(stats)
}
