//! A verification of the data that several tasks share: each reads its own share, part by part, and then what others have left or have
//! not begun.

use std::collections::BTreeMap;
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Look, VerifyOptions, VerifyStats, look};
use crate::archive::{ArchiveError, DataSubset, Repository, RepositoryId, SnapshotId};
use crate::clock;
use crate::progress::Progress;
use crate::records::Work;
use crate::records::shares::{Next, ShareableWork, Shares, SharesError, agree, find_agreed};
use crate::stop::Stop;
use crate::store::Store;
use crate::task::SharedWork;

/// A verification that tasks share could not be done.
#[derive(Debug, thiserror::Error)]
pub enum VerifySharedError {
    /// The repository could not be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The tasks do not agree upon what it is.
    #[error(transparent)]
    Shares(SharesError),
    /// Who does what cannot be recorded, or read.
    #[error(
        "cannot keep the state of the verification in {location}: {source}. Name another place with --state"
    )]
    State {
        /// Where.
        location: String,
        /// Why.
        source: Box<ArchiveError>,
    },
}

/// Verifications, as work that is recorded.
#[derive(Debug)]
enum VerifyWork {}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    started_at: DateTime<Utc>,
    tool_version: String,
}

impl Work for VerifyWork {
    // None is recorded by itself.
    const FOLDER: &'static str = "verifies";
    const NAME: &'static str = "verification";
    type Plan = Plan;
    /// A part is read as a whole, so there is nothing to tell but what was found.
    type Checkpoint = VerifyStats;

    fn check(_: &Plan, _: &VerifyStats) -> Result<(), &'static str> {
        Ok(())
    }
}

impl ShareableWork for VerifyWork {
    const SHARED_FOLDER: &'static str = "shared-verifications";
    /// Each part reads those pages of the index again that point into its data.
    const PARTS_PER_TASK: u32 = 4;
    /// The snapshots that there are: the data of one that comes later would not be read in parts that are done.
    type Common = Vec<SnapshotId>;
}

/// What a process has done of a verification that tasks share.
#[derive(Clone, Debug)]
pub struct SharedVerification {
    /// The bytes are those that this process has read; damage is that of all parts, whoever has found it.
    pub stats: VerifyStats,
    /// How many parts of the data this process has read.
    pub parts: u32,
    /// How many there are.
    pub of: u32,
}

/// Checks snapshots as [`verify`](super::verify()) does, of the data to be read one task's share, part by part, and then what other tasks
/// have left or have not begun, which `state` tells of. Each process looks at the structure once, with the first part that it reads. It ends
/// when all parts are done.
///
/// # Errors
/// As [`verify`](super::verify()); when the tasks do not agree upon what they do, or the state cannot be kept.
pub async fn verify_shared(
    repository: &Repository,
    options: VerifyOptions,
    state: &Store,
    shared: &SharedWork,
    progress: &Progress,
) -> Result<SharedVerification, VerifySharedError> {
    let start = Instant::now();
    let unusable = |source| VerifySharedError::State {
        location: state.location().to_owned(),
        source: Box::new(source),
    };
    let disagree = |error| match error {
        SharesError::Records(source) => unusable(source),
        error => VerifySharedError::Shares(error),
    };
    let same = in_common(repository.id(), &options);
    let found = find_agreed::<VerifyWork>(state, shared).await.map_err(disagree)?;
    let agreed = match found {
        Some(agreed) => agreed,
        None => {
            let listing = repository.snapshots().await?;
            let snapshots = listing.snapshots.iter().map(|snapshot| snapshot.id).collect();
            let agreed = agree::<VerifyWork>(state, shared, same.clone(), snapshots, usize::MAX).await;
            agreed.map_err(disagree)?
        }
    };
    let mut shares = Shares::<VerifyWork>::new(state, shared, agreed, &same).map_err(disagree)?;
    let (mut stats, mut done) = (VerifyStats::default(), Vec::new());
    let never = Stop::default();
    let of = loop {
        let (part, running) = match shares.next().await.map_err(disagree)? {
            Next::Begin(part, id) => {
                let plan = Plan {
                    started_at: clock::now(),
                    tool_version: env!("CARGO_PKG_VERSION").to_owned(),
                };
                (part, shares.begin(id, &plan).await)
            }
            Next::Resume(part, record) => (part, shares.resume(&record).await),
            Next::Wait => {
                shares.wait(&never).await;
                continue;
            }
            Next::Finished(outcomes) => {
                let of = outcomes.len() as u32;
                let others = outcomes.into_iter().filter(|(part, ..)| !done.contains(part));
                for (.., found) in others {
                    stats.add(VerifyStats {
                        stored_bytes: 0,
                        data_bytes: 0,
                        ..found
                    });
                }
                break of;
            }
        };
        let Some(running) = running.map_err(unusable)? else {
            continue;
        };
        let share = VerifyOptions {
            read_data: options.read_data.map(|subset| subset.cut(part)),
            ..options.clone()
        };
        // Reading every page of the index with every part would take longer than the data.
        let at = match done.is_empty() {
            true => Look::Everything,
            false => Look::Data,
        };
        let found = tokio::select! {
            found = look(repository, share, at, Some(shares.common()), progress) => Some(found?),
            lost = shares.lost(&running) => {
                lost.map_err(unusable)?;
                None
            }
        };
        let is_own = match &found {
            Some(found) => shares
                .mark_done(&running, found.clone())
                .await
                .map_err(unusable)?,
            None => false,
        };
        match found {
            Some(found) if is_own => {
                stats.add(found);
                done.push(part);
            }
            _ => tracing::warn!("another process reads {part}"),
        }
    };
    stats.duration = start.elapsed();
    let parts = done.len() as u32;
    Ok(SharedVerification { stats, parts, of })
}

/// What the tasks must have in common.
fn in_common(repository: RepositoryId, options: &VerifyOptions) -> BTreeMap<String, String> {
    let snapshots = match &options.snapshots {
        Some(snapshots) => {
            let ids = snapshots.iter().map(|snapshot| snapshot.id.to_string());
            ids.collect::<Vec<_>>().join(" ")
        }
        // Whichever there are when a share is begun.
        None => "all".to_owned(),
    };
    let data = match options.read_data {
        Some(DataSubset { part, of }) => format!("{}/{of}", part + 1),
        None => "none".to_owned(),
    };
    let same = [
        ("the repository", repository.to_string()),
        ("the snapshots", snapshots),
        ("--read-data", data),
    ];
    same.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
