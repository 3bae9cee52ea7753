//! The lease: what a reader that takes long leaves in the repository, so that no sweep deletes under its hands.
//!
//! A reader puts its lease first and then looks again whether the snapshots still stand: a sweep that did not see the lease
//! listed the markers before the lease was there, so that the look finds every marker that such a sweep went by.
//!
//! Sweeps take a lease whose reader seems dead for given up, by the store's own times. So a reader that lives adds a new
//! lease from time to time, and removes them all together at its end: were each removed when the next one is there, a listing
//! that goes on meanwhile might see neither.
//!
//! A reader that may not write reads without a lease. When it misses an object then, it looks whether the snapshot was
//! forgotten before it speaks of damage ([`Repository::explain`]).

use std::sync::LazyLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::envelope;
use super::error::{ArchiveError, Result};
use super::ids::{LeaseId, SnapshotId};
use super::reader::SnapshotReader;
use super::repository::Repository;
use crate::store::{Store, StoreError};

pub(crate) const KIND: &str = "lease";
/// How often a reader shows that it lives: far below what a sweep takes for dead.
const RENEW_EVERY: Duration = Duration::from_secs(15 * 60);

/// Readers' leases of this process that are not removed yet.
static STANDING: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// The body of `leases/<id>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    /// What is read.
    pub(crate) snapshots: Vec<SnapshotId>,
    /// What for, in one word: for people.
    pub(crate) purpose: String,
}

/// A reader's claim on snapshots. Dropping it removes it in the background; [`Lease::release`] waits for that.
#[derive(Debug)]
#[must_use = "without its lease a reader is not safe from a sweep"]
pub struct Lease {
    held: Option<Held>,
    fallen: Vec<SnapshotId>,
}

#[derive(Debug)]
struct Held {
    /// Closed when the lease is to end.
    _end: oneshot::Sender<()>,
    renewal: tokio::task::JoinHandle<()>,
}

impl Lease {
    /// Claims snapshots. Those that were forgotten before the claim stood are [`Lease::fallen`].
    ///
    /// # Errors
    /// When the store fails otherwise than by refusing to write: without that right there is no lease, and none is needed to
    /// read.
    pub async fn take(repository: &Repository, snapshots: &[SnapshotId], purpose: &str) -> Result<Self> {
        let record = LeaseRecord {
            snapshots: snapshots.to_vec(),
            purpose: purpose.to_owned(),
        };
        let payload = envelope::encode(KIND, &record)?;
        let first = LeaseId::random().name();
        match repository.store().put_new(&first, payload.clone()).await {
            Ok(()) => {}
            Err(error @ (StoreError::NoPermission { .. } | StoreError::Full { .. })) => {
                tracing::info!(
                    "reading without a lease, which keeps a `clean` from deleting meanwhile: {error}"
                );
                return Ok(Self {
                    held: None,
                    fallen: Vec::new(),
                });
            }
            Err(error) => return Err(error.into()),
        }
        let (end, ended) = oneshot::channel();
        let renewal = tokio::spawn(stand(
            repository.store().clone(),
            first,
            payload,
            ended,
            Counted::new(),
        ));
        let mut lease = Self {
            held: Some(Held { _end: end, renewal }),
            fallen: Vec::new(),
        };
        lease.fallen = repository.fallen(snapshots).await?;
        Ok(lease)
    }

    /// Claims the snapshot of a reader.
    ///
    /// # Errors
    /// Also [`ArchiveError::Forgotten`].
    pub async fn of(reader: &SnapshotReader, purpose: &str) -> Result<Self> {
        Self::of_all(std::slice::from_ref(reader), purpose).await
    }

    /// Claims the snapshots of readers of one repository; of none, nothing.
    ///
    /// # Errors
    /// Also [`ArchiveError::Forgotten`], of the first that is.
    pub async fn of_all(readers: &[SnapshotReader], purpose: &str) -> Result<Self> {
        let Some(first) = readers.first() else {
            return Ok(Self {
                held: None,
                fallen: Vec::new(),
            });
        };
        let ids: Vec<SnapshotId> = readers.iter().map(SnapshotReader::id).collect();
        let lease = Self::take(first.repository(), &ids, purpose).await?;
        let Some(&snapshot) = lease.fallen.first() else {
            return Ok(lease);
        };
        lease.release().await;
        Err(ArchiveError::Forgotten { snapshot })
    }

    /// Those of the snapshots that the claim came too late for.
    pub fn fallen(&self) -> &[SnapshotId] {
        &self.fallen
    }

    /// Whether there is one: a reader that may not write has none.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Removes it. Where that fails, a sweep does it when the lease has expired.
    pub async fn release(self) {
        let Some(Held { _end: end, renewal }) = self.held else {
            return;
        };
        drop(end);
        if let Err(error) = renewal.await {
            tracing::debug!("a lease was not removed: {error}");
        }
    }
}

/// Waits until all leases of this process that were dropped are removed: before the process ends.
pub async fn all_released() {
    // The sender lives as long as the process.
    let _ = STANDING.subscribe().wait_for(|standing| *standing == 0).await;
}

/// One of the leases that stand, however its task ends.
struct Counted;

impl Counted {
    fn new() -> Self {
        STANDING.send_modify(|standing| *standing += 1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        STANDING.send_modify(|standing| *standing = standing.saturating_sub(1));
    }
}

/// Renews the lease until it ends, then removes all of it.
async fn stand(
    store: Store,
    first: String,
    payload: bytes::Bytes,
    mut ended: oneshot::Receiver<()>,
    _counted: Counted,
) {
    let mut names = vec![first];
    while tokio::time::timeout(RENEW_EVERY, &mut ended).await.is_err() {
        let name = LeaseId::random().name();
        match store.put_new(&name, payload.clone()).await {
            Ok(()) => names.push(name),
            Err(error) => tracing::warn!("a lease was not renewed: {error}"),
        }
    }
    for name in names {
        if let Err(error) = store.delete(&name).await {
            tracing::info!("`{name}` is left to a later `clean`: {error}");
        }
    }
}
