//! A verification of the data that several tasks share: each reads its own share, and then what others have left.

use std::collections::BTreeMap;
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{VerifyOptions, VerifyStats, verify};
use crate::archive::heartbeat::HEARTBEAT_EVERY;
use crate::archive::{ArchiveError, DataSubset, Repository, RepositoryId};
use crate::clock;
use crate::progress::Progress;
use crate::records::shares::{Agreed, Next, ShareableWork, SharedWork, Shares, SharesError};
use crate::records::{Records, Running, Work};
use crate::stop::Stop;
use crate::store::Store;

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
    agreed: Agreed,
    started_at: DateTime<Utc>,
    tool_version: String,
}

/// A share is read as a whole, so there is nothing to tell but that somebody is at it, or what was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Checkpoint {
    found: Option<VerifyStats>,
}

impl Work for VerifyWork {
    // Not that of the records which verifications leave in a repository: the state may be in one.
    const FOLDER: &'static str = "shared-verifications";
    const NAME: &'static str = "verification";
    type Plan = Plan;
    type Checkpoint = Checkpoint;

    fn check(_: &Plan, _: &Checkpoint) -> Result<(), &'static str> {
        Ok(())
    }
}

impl ShareableWork for VerifyWork {
    fn agreed(plan: &Plan) -> Option<&Agreed> {
        Some(&plan.agreed)
    }
}

/// Checks snapshots as [`verify`] does, of the data to be read one task's share, and then the shares that other tasks have left, which
/// `state` tells of. Every task looks at the structure. It ends when all shares are done. What this task found in its own share is told
/// again when it is started again. Returns with it how many shares this process tells of.
///
/// # Errors
/// As [`verify`]; when the tasks do not agree upon what they do, or the state cannot be kept.
pub async fn verify_shared(
    repository: &Repository,
    options: VerifyOptions,
    state: Store,
    shared: &SharedWork,
    progress: &Progress,
) -> Result<(VerifyStats, u32), VerifySharedError> {
    let start = Instant::now();
    let records = Records::<VerifyWork>::new(state);
    let unusable = |source| VerifySharedError::State {
        location: records.location().to_owned(),
        source: Box::new(source),
    };
    let disagree = |error| match error {
        SharesError::Records(source) => unusable(source),
        error => VerifySharedError::Shares(error),
    };
    let agreed = agreed(repository.id(), &options, shared);
    let mut shares = Shares::new(&records, shared, agreed.clone());
    let (mut stats, mut told_of) = (VerifyStats::default(), 0);
    let never = Stop::default();
    loop {
        let (task, running) = match shares.next().await.map_err(disagree)? {
            Next::Begin(task, id) => {
                let plan = Plan {
                    agreed: agreed.clone(),
                    started_at: clock::now(),
                    tool_version: env!("CARGO_PKG_VERSION").to_owned(),
                };
                (task, records.begin(id, &plan).await)
            }
            Next::Resume(task, record) => (task, records.resume(&record).await),
            Next::WasDone(task, record) => {
                tracing::info!("the share of {task} was read before");
                let found = record.checkpoint.and_then(|checkpoint| checkpoint.found);
                stats.add(found.unwrap_or_default());
                told_of += 1;
                continue;
            }
            Next::Wait => {
                shares.wait(&never).await;
                continue;
            }
            Next::Finished => break,
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
            lost = signs_of_life(&mut running) => {
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
                told_of += 1;
            }
            None => tracing::info!("another process reads the share of {task}"),
        }
    }
    stats.duration = start.elapsed();
    Ok((stats, told_of))
}

/// What the tasks must have in common.
fn agreed(repository: RepositoryId, options: &VerifyOptions, shared: &SharedWork) -> Agreed {
    let snapshots = match &options.snapshots {
        Some(snapshots) => {
            let ids = snapshots.iter().map(|snapshot| snapshot.id.to_string());
            ids.collect::<Vec<_>>().join(" ")
        }
        // Whichever there are when a task begins.
        None => "all".to_owned(),
    };
    let data = match options.read_data {
        Some(DataSubset { part, of }) => format!("{}/{of}", part + 1),
        None => "none".to_owned(),
    };
    let options = [
        ("the repository", repository.to_string()),
        ("the snapshots", snapshots),
        ("--read-data", data),
    ];
    let options: BTreeMap<String, String> = options
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    Agreed::new(shared, options)
}

/// Shows that this process lives, until another one has taken its share.
async fn signs_of_life(running: &mut Running<VerifyWork>) -> Result<(), ArchiveError> {
    loop {
        tokio::time::sleep(HEARTBEAT_EVERY).await;
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
