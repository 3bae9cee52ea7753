//! A restore that several tasks share: each restores its own share, and then what others have left.

use std::time::{Duration, Instant};

use super::session::{Checkpoint, Plan, RangeRecord, RestoreWork, outcome};
use super::write::Ranges;
use super::{
    RestoreError, RestoreOptions, RestoreSessions, RestoreStats, SessionOptions, Settled, SharedStats,
    UnfinishedRestore, check_first, ranges, restore_all,
};
use crate::archive::SnapshotReader;
use crate::firestore::{Firestore, WriteStats};
use crate::progress::Progress;
use crate::records::shares::{Next, Shares, SharesError, agree, find_agreed};
use crate::task::{SharedWork, Task};

/// Restores shares until all are done, by this task or by others.
pub(super) async fn restore_shares(
    reader: &SnapshotReader,
    database: &Firestore,
    options: RestoreOptions,
    (session, shared): (&SessionOptions, &SharedWork),
    progress: &Progress,
) -> Result<RestoreStats, RestoreError> {
    let start = Instant::now();
    let options = RestoreOptions {
        task: Some(shared.task),
        ..options
    };
    let unusable = |error| match error {
        SharesError::Records(source) => session.sessions.unusable(source),
        error => RestoreError::Shares(error),
    };
    let store = session.sessions.store();
    let from = (reader.repository().id(), reader.id());
    let common = Plan::new(from, database.database(), &options, &[]).common();
    let found = find_agreed::<RestoreWork>(store, shared)
        .await
        .map_err(unusable)?;
    let agreed = match found {
        Some(agreed) => agreed,
        None => {
            // Before any of the tasks writes.
            let all = RestoreOptions {
                task: None,
                ..options.clone()
            };
            check_first(reader, database, &all).await?;
            let pieces = options.cut_for_all(reader).await?;
            let pieces = pieces.iter().map(RangeRecord::of).collect();
            let agreed = agree::<RestoreWork>(store, shared, common.clone(), pieces).await;
            agreed.map_err(unusable)?
        }
    };
    let mut shares = Shares::<RestoreWork>::new(store, shared, agreed, &common).map_err(unusable)?;
    let sessions = RestoreSessions::of_shares(shares.records());
    // One for all shares: what the database bears, it has learnt by the first.
    let throttle = options.write.throttle();
    let (mut stats, mut done) = (RestoreStats::default(), SharedStats::default());
    loop {
        let next = shares.next().await.map_err(unusable)?;
        let task = match &next {
            Next::Begin(task, _) | Next::Resume(task, _) => *task,
            Next::Wait if shares.wait(&options.stop).await => continue,
            Next::Wait => {
                return Err(RestoreError::TaskStopped {
                    documents: stats.documents,
                });
            }
            Next::Finished(_) => shared.task,
        };
        let share = RestoreOptions {
            task: Some(task),
            ..options.clone()
        };
        let begun = match next {
            Next::Begin(_, id) => {
                let pieces = shares.common().iter().map(RangeRecord::range).collect();
                let pieces = ranges::share(pieces, task);
                let plan = Plan::new(from, database.database(), &share, &pieces);
                let session = sessions.run(id, shares.begin(id, &plan).await);
                session.map(|session| (session, Ranges::of(pieces)))
            }
            Next::Resume(_, record) => {
                let unfinished = UnfinishedRestore::from(record.clone());
                unfinished.check(&Plan::new(from, database.database(), &share, &[]))?;
                let session = sessions.run(record.id, shares.resume(&record).await);
                session.map(|session| (session, unfinished.ranges()))
            }
            Next::Wait => continue,
            Next::Finished(outcomes) => {
                for (task, checkpoint) in outcomes {
                    if !done.shares.contains(&task) {
                        tell(task == shared.task, (task, checkpoint), &mut stats, &mut done);
                    }
                }
                break;
            }
        };
        let restored = async {
            let (session, ranges) = begun?;
            let settled = Settled {
                throttle: throttle.clone(),
                session: Some(session),
                ranges,
            };
            let restored = restore_all(reader, database, share, settled, progress).await?;
            if let Some(session) = &restored.session {
                session.mark_done(&shares, &restored.ranges).await?;
            }
            Ok(restored.stats)
        };
        match restored.await {
            Ok(restored) => {
                stats.add(restored);
                done.shares.push(task);
            }
            // What was done of it is in the account of whoever goes on.
            Err(RestoreError::SessionTaken { .. }) => {
                tracing::warn!("another process has gone on with the share of {task}");
            }
            Err(RestoreError::Stopped { documents, .. }) => {
                return Err(RestoreError::TaskStopped {
                    documents: stats.documents + documents,
                });
            }
            Err(error) => return Err(error),
        }
    }
    stats.duration = start.elapsed();
    stats.shared = Some(done);
    Ok(stats)
}

/// Tells what is recorded of a share that another process has done: as this one's where it is its own.
fn tell(
    is_own: bool,
    (task, checkpoint): (Task, Checkpoint),
    stats: &mut RestoreStats,
    shared: &mut SharedStats,
) {
    let (counts, gaps, conflicts) = outcome(checkpoint);
    if is_own {
        stats.add(RestoreStats {
            gaps,
            ..counts.stats(WriteStats::default(), &conflicts, Duration::ZERO)
        });
        shared.shares.push(task);
        shared.own_was_done = true;
    } else {
        shared.others.add(&counts);
        shared.gaps_of_others.extend(gaps);
    }
}
