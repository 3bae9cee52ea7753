//! Giving a snapshot up, and telling a snapshot that was given up from one that is damaged.
//!
//! The order of the two looks matters: first that there is no marker, then that there is a record. A sweep removes the record
//! before the marker, so whoever finds neither marker nor, before it, a gone record has found a snapshot that stood.

use std::collections::HashSet;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::envelope;
use super::error::{ArchiveError, Damage, DamageKind, Result};
use super::ids::SnapshotId;
use super::repository::Repository;
use super::snapshot::Decision;
use crate::store::StoreError;

const KIND: &str = "forgotten";

/// The body of `snapshots/<id>.forgotten`: for people. Only that the object exists counts, and when the store says it was
/// written.
#[derive(Debug, Serialize, Deserialize)]
struct Forgotten<'a> {
    snapshot: SnapshotId,
    reason: &'a str,
    at: chrono::DateTime<chrono::Utc>,
}

impl Repository {
    /// Gives a snapshot up: it is listed no more, and a sweep may delete what only it needs. Its record stays for a while.
    pub async fn forget(&self, snapshot: SnapshotId, reason: &str) -> Result<()> {
        self.check_prunable()?;
        let marker = Forgotten {
            snapshot,
            reason,
            at: crate::clock::now(),
        };
        let marker = envelope::encode(KIND, &marker)?;
        match self.store().put_new(&snapshot.forgotten_name(), marker).await {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a marker says that the snapshot was given up.
    pub async fn is_forgotten(&self, snapshot: SnapshotId) -> Result<bool> {
        Ok(self.store().exists(&snapshot.forgotten_name()).await?)
    }

    /// Why nobody may build upon the snapshot any more; `None` when it stands.
    pub(crate) async fn why_fallen(&self, snapshot: SnapshotId) -> Result<Option<&'static str>> {
        if self.is_forgotten(snapshot).await? {
            return Ok(Some("was forgotten"));
        }
        Ok(match self.decision(snapshot).await? {
            Some(Decision::Committed(_)) => None,
            Some(Decision::Aborted(_)) => Some("was aborted"),
            None => Some("does not exist"),
        })
    }

    /// Those of the snapshots that do not stand any more: two listings, whatever their number.
    pub(crate) async fn fallen(&self, snapshots: &[SnapshotId]) -> Result<Vec<SnapshotId>> {
        let forgotten = self.snapshot_objects(".forgotten").await?;
        let recorded = self.snapshot_objects(".json").await?;
        let stands = |id: &SnapshotId| recorded.contains(id) && !forgotten.contains(id);
        Ok(snapshots.iter().filter(|id| !stands(id)).copied().collect())
    }

    /// The sessions that are decided one way or the other.
    pub(crate) async fn recorded(&self) -> Result<HashSet<SnapshotId>> {
        self.snapshot_objects(".json").await
    }

    async fn snapshot_objects(&self, suffix: &str) -> Result<HashSet<SnapshotId>> {
        let mut ids = HashSet::new();
        let mut objects = self.store().list("snapshots");
        while let Some(object) = objects.try_next().await? {
            let id = object
                .name
                .strip_prefix("snapshots/")
                .and_then(|name| name.strip_suffix(suffix));
            ids.extend(id.and_then(|id| id.parse::<SnapshotId>().ok()));
        }
        Ok(ids)
    }

    /// The error with which reading a snapshot really ended: an object that is missing is no damage when the snapshot was
    /// forgotten meanwhile.
    pub async fn explain(&self, snapshot: SnapshotId, error: ArchiveError) -> ArchiveError {
        if !is_missing(&error) {
            return error;
        }
        match self.why_fallen(snapshot).await {
            Ok(Some(_)) => ArchiveError::Forgotten { snapshot },
            // It stands, or the store does not say: then the first error is the better one.
            Ok(None) | Err(_) => error,
        }
    }
}

/// Whether an object that should be there is not.
pub(crate) fn is_missing(error: &ArchiveError) -> bool {
    match error {
        ArchiveError::Damaged(damage) => is_missing_object(damage),
        ArchiveError::Store(StoreError::NotFound { .. }) => true,
        _ => false,
    }
}

/// The same of damage that was found.
pub fn is_missing_object(damage: &Damage) -> bool {
    damage.kind == DamageKind::Missing
}
