//! A verification of the data that several tasks share: each reads its own share, and then what others have left.

use std::collections::BTreeMap;
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{VerifyOptions, VerifyStats, verify};
use crate::archive::{ArchiveError, DataSubset, Repository, RepositoryId};
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
    /// A share is read as a whole, so there is nothing to tell but what was found.
    type Checkpoint = VerifyStats;

    fn check(_: &Plan, _: &VerifyStats) -> Result<(), &'static str> {
        Ok(())
    }
}

impl ShareableWork for VerifyWork {
    const SHARED_FOLDER: &'static str = "shared-verifications";
    type Common = ();
}

/// Checks snapshots as [`verify`] does, of the data to be read one task's share, and then the shares that other tasks have left, which
/// `state` tells of. The structure is looked at with every share. It ends when all shares are done. The stats are those of this task's own
/// share, whoever has read it, and of those that it has taken over; damage is told of all shares. Returns with them how many shares this process has read.
///
/// # Errors
/// As [`verify`]; when the tasks do not agree upon what they do, or the state cannot be kept.
pub async fn verify_shared(
    repository: &Repository,
    options: VerifyOptions,
    state: &Store,
    shared: &SharedWork,
    progress: &Progress,
) -> Result<(VerifyStats, u32), VerifySharedError> {
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
            let agreed = agree::<VerifyWork>(state, shared, same.clone(), ()).await;
            agreed.map_err(disagree)?
        }
    };
    let mut shares = Shares::<VerifyWork>::new(state, shared, agreed, &same).map_err(disagree)?;
    let (mut stats, mut done) = (VerifyStats::default(), Vec::new());
    let never = Stop::default();
    loop {
        let (task, running) = match shares.next().await.map_err(disagree)? {
            Next::Begin(task, id) => {
                let plan = Plan {
                    started_at: clock::now(),
                    tool_version: env!("CARGO_PKG_VERSION").to_owned(),
                };
                (task, shares.begin(id, &plan).await)
            }
            Next::Resume(task, record) => (task, shares.resume(&record).await),
            Next::Wait => {
                shares.wait(&never).await;
                continue;
            }
            Next::Finished(outcomes) => {
                for (task, found) in outcomes {
                    if done.contains(&task) {
                        continue;
                    }
                    if task == shared.task {
                        stats.add(found);
                    } else {
                        stats.add_damage(found.damage, found.damage_count);
                    }
                }
                break;
            }
        };
        let Some(running) = running.map_err(unusable)? else {
            continue;
        };
        let share = VerifyOptions {
            read_data: options.read_data.map(|subset| subset.share(task)),
            ..options.clone()
        };
        let found = tokio::select! {
            found = verify(repository, share, progress) => Some(found?),
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
                done.push(task);
            }
            _ => tracing::warn!("another process reads the share of {task}"),
        }
    }
    stats.duration = start.elapsed();
    Ok((stats, done.len() as u32))
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
