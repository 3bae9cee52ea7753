//! A verification of the data that several tasks share: each reads its own share, and then what others have left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{VerifyOptions, VerifyStats, verify};
use crate::archive::{ArchiveError, DataSubset, Repository, RepositoryId};
use crate::clock;
use crate::progress::Progress;
use crate::records::shares::{Next, ShareableWork, Shares, SharesError, agree, find_agreed};
use crate::records::{Running, Work};
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

/// A share is read as a whole, so there is nothing to tell but that somebody is at it, or what was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Checkpoint {
    found: Option<VerifyStats>,
}

impl Work for VerifyWork {
    // None is recorded by itself.
    const FOLDER: &'static str = "verifies";
    const NAME: &'static str = "verification";
    type Plan = Plan;
    type Checkpoint = Checkpoint;

    fn check(_: &Plan, _: &Checkpoint) -> Result<(), &'static str> {
        Ok(())
    }
}

impl ShareableWork for VerifyWork {
    const SHARED_FOLDER: &'static str = "shared-verifications";
    type Common = ();
}

/// Checks snapshots as [`verify`] does, of the data to be read one task's share, and then the shares that other tasks have left, which
/// `state` tells of. The structure is looked at with every share. It ends when all shares are done. The stats are those of this task's own
/// share, whoever has read it, and of those that it has taken over; damage is told of all shares. Returns with them how many these are.
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
    let records = shares.records().clone();
    let (mut stats, mut done) = (VerifyStats::default(), Vec::new());
    let never = Stop::default();
    loop {
        let (task, running) = match shares.next().await.map_err(disagree)? {
            Next::Begin(task, id) => {
                let plan = Plan {
                    started_at: clock::now(),
                    tool_version: env!("CARGO_PKG_VERSION").to_owned(),
                };
                (task, records.begin(id, &plan).await)
            }
            Next::Resume(task, record) => (task, records.resume(&record).await),
            Next::Wait => {
                shares.wait(&never).await;
                continue;
            }
            Next::Finished(shares) => {
                for (task, record) in shares {
                    if done.contains(&task) {
                        continue;
                    }
                    let found = record.checkpoint.and_then(|checkpoint| checkpoint.found);
                    let found = found.unwrap_or_default();
                    if task == shared.task {
                        stats.add(found);
                        done.push(task);
                    } else {
                        stats.add_damage(found.damage, found.damage_count);
                    }
                }
                break;
            }
        };
        let Some(mut running) = running.map_err(unusable)? else {
            continue;
        };
        let share = VerifyOptions {
            read_data: options.read_data.map(|subset| subset.share(task)),
            ..options.clone()
        };
        let found = tokio::select! {
            found = verify(repository, share, progress) => Some(found?),
            lost = signs_of_life(&mut running, shared.heartbeat()) => {
                lost.map_err(unusable)?;
                None
            }
        };
        let told = match found {
            Some(found) => tell(running, found).await.map_err(unusable)?,
            None => None,
        };
        match told {
            Some(found) => {
                stats.add(found);
                done.push(task);
            }
            None => tracing::warn!("another process reads the share of {task}"),
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

/// Shows that this process lives, until another one has taken its share.
async fn signs_of_life(running: &mut Running<VerifyWork>, every: Duration) -> Result<(), ArchiveError> {
    loop {
        tokio::time::sleep(every).await;
        if !running.checkpoint(&Checkpoint { found: None }).await? {
            return Ok(());
        }
    }
}

/// Records what was found; `None` when another process has taken the share, and tells itself what it finds.
async fn tell(
    mut running: Running<VerifyWork>,
    found: VerifyStats,
) -> Result<Option<VerifyStats>, ArchiveError> {
    let checkpoint = Checkpoint { found: Some(found) };
    if !running.checkpoint(&checkpoint).await? {
        return Ok(None);
    }
    running.mark_done().await?;
    Ok(checkpoint.found)
}
