//! A restore that several tasks share: each restores its own share, and then what others have left.

use std::time::{Duration, Instant};

use super::session::{Plan, RangeRecord, RestoreWork};
use super::{
    RestoreError, RestoreOptions, RestoreSessions, RestoreStats, SessionOptions, Settled, SharedStats,
    UnfinishedRestore, ranges, restore_all,
};
use crate::archive::SnapshotReader;
use crate::firestore::{Firestore, WriteStats};
use crate::progress::Progress;
use crate::records::Record;
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
        let (task, resume, share) = match shares.next().await.map_err(unusable)? {
            Next::Begin(task, id) => {
                let pieces = shares.common().iter().map(RangeRecord::range).collect();
                (task, None, Some((id, ranges::share(pieces, task))))
            }
            Next::Resume(task, record) => (task, Some(UnfinishedRestore::from(record)), None),
            Next::Wait if shares.wait(&options.stop).await => continue,
            Next::Wait => {
                return Err(RestoreError::TaskStopped {
                    documents: stats.documents,
                });
            }
            Next::Finished(records) => {
                for (task, record) in records {
                    if !done.shares.contains(&task) {
                        tell(task == shared.task, (task, record), &mut stats, &mut done);
                    }
                }
                break;
            }
        };
        let of_share = RestoreOptions {
            task: Some(task),
            session: Some(SessionOptions {
                sessions: sessions.clone(),
                resume,
                ..session.clone()
            }),
            ..options.clone()
        };
        let settled = Settled {
            throttle: throttle.clone(),
            share,
        };
        match restore_all(reader, database, of_share, settled, progress).await {
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
    (task, record): (Task, Record<RestoreWork>),
    stats: &mut RestoreStats,
    shared: &mut SharedStats,
) {
    let ranges = UnfinishedRestore::from(record).ranges();
    let (counts, gaps) = (ranges.counts(), ranges.gaps().to_vec());
    if is_own {
        stats.add(RestoreStats {
            gaps,
            ..counts.stats(WriteStats::default(), ranges.conflicts(), Duration::ZERO)
        });
        shared.shares.push(task);
    } else {
        shared.others.add(&counts);
        shared.gaps_of_others.extend(gaps);
    }
}
