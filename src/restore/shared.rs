//! A restore that several tasks share: each restores its own share, part by part, and then what others have left or have not begun.

use std::time::{Duration, Instant};

use super::session::{Plan, RangeRecord, RestoreWork, outcome};
use super::write::Ranges;
use super::{
    RestoreError, RestoreOptions, RestoreSessions, RestoreStats, SessionOptions, Settled, SharedStats,
    UnfinishedRestore, check_first, restore_all,
};
use crate::archive::{ArchiveError, SnapshotReader};
use crate::document::KeyRange;
use crate::firestore::{Firestore, WriteStats};
use crate::progress::Progress;
use crate::records::shares::{Next, ShareableWork, Shares, SharesError, agree, find_agreed};
use crate::task::{SharedWork, Task};

/// Ranges that are agreed upon at most, and bytes of their keys: every task reads them again whenever it looks for more to do.
const MOST_PIECES: usize = 1 << 14;
const MOST_KEY_BYTES: usize = 8 << 20;

/// Cuts what was chosen into ranges for all parts.
async fn cut_for_tasks(
    reader: &SnapshotReader,
    options: &RestoreOptions,
    task: Task,
) -> Result<Vec<KeyRange>, ArchiveError> {
    let parts = task.count() as usize * RestoreWork::PARTS_PER_TASK as usize;
    let mut count = (options.parallel.max(1) * parts).min(MOST_PIECES);
    loop {
        let pieces = options.cut_into(reader, count).await?;
        let ends = pieces.iter().flat_map(|piece| [&piece.start, &piece.end]);
        let bytes: usize = ends.flatten().map(|key| key.as_bytes().len()).sum();
        if bytes <= MOST_KEY_BYTES || count <= 1 {
            return Ok(pieces);
        }
        count /= 2;
    }
}

/// Restores parts until all are done, by this task or by others.
pub(super) async fn restore_shares(
    reader: &SnapshotReader,
    database: &Firestore,
    options: RestoreOptions,
    (session, shared): (&SessionOptions, &SharedWork),
    progress: &Progress,
) -> Result<RestoreStats, RestoreError> {
    let start = Instant::now();
    // A part is cut out of the whole.
    let options = RestoreOptions {
        task: None,
        ..options
    };
    let unusable = |error| match error {
        SharesError::Records(source) => session.sessions.unusable(source),
        error => RestoreError::Shares(error),
    };
    let store = session.sessions.store();
    let from = (reader.repository().id(), reader.id());
    let plan = |pieces: &[_]| Plan::new(from, database.database(), &options, pieces);
    let common = plan(&[]).identity();
    let found = find_agreed::<RestoreWork>(store, shared)
        .await
        .map_err(unusable)?;
    let agreed = match found {
        Some(agreed) => agreed,
        None => {
            // Before any of the tasks writes.
            check_first(reader, database, &options).await?;
            let pieces = cut_for_tasks(reader, &options, shared.task).await?;
            // As many for each part as there are readers, which begin with it and are done with it together.
            let most = (pieces.len() / options.parallel.max(1)).max(shared.task.count() as usize);
            let most = most.min(pieces.len());
            let pieces = pieces.iter().map(RangeRecord::of).collect();
            let agreed = agree::<RestoreWork>(store, shared, common.clone(), pieces, most).await;
            agreed.map_err(unusable)?
        }
    };
    let mut shares = Shares::<RestoreWork>::new(store, shared, agreed, &common).map_err(unusable)?;
    let sessions = RestoreSessions::of_shares(shares.records());
    // One for all parts: what the database bears, it has learnt by the first.
    let throttle = options.write.throttle();
    let (mut stats, mut done) = (RestoreStats::default(), SharedStats::default());
    loop {
        let (part, begun) = match shares.next().await.map_err(unusable)? {
            Next::Begin(part, id) => {
                let pieces = part.pick(shares.common().iter().map(RangeRecord::range).collect());
                let begun = shares.begin(id, &plan(&pieces)).await;
                if matches!(begun, Ok(None)) {
                    // Another task was faster.
                    continue;
                }
                let session = sessions.run(id, begun);
                (part, session.map(|session| (session, Ranges::of(pieces))))
            }
            Next::Resume(part, record) => {
                let unfinished = UnfinishedRestore::from(record.clone());
                unfinished.check(&plan(&[]))?;
                let session = sessions.run(record.id, shares.resume(&record).await);
                (part, session.map(|session| (session, unfinished.ranges())))
            }
            Next::Wait if shares.wait(&options.stop).await => continue,
            Next::Wait => {
                return Err(RestoreError::TaskStopped {
                    documents: stats.documents,
                });
            }
            Next::Finished(outcomes) => {
                for (part, task, checkpoint) in outcomes {
                    if done.parts.contains(&part.number) {
                        continue;
                    }
                    let (counts, gaps, conflicts) = outcome(checkpoint);
                    if task == shared.task.index() {
                        // An earlier process of this very task has told nobody.
                        stats.add(RestoreStats {
                            gaps,
                            ..counts.stats(WriteStats::default(), &conflicts, Duration::ZERO)
                        });
                        done.parts.push(part.number);
                    } else {
                        done.parts_of_others += 1;
                        done.others.add(&counts);
                        done.gaps_of_others.extend(gaps);
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
            let restored = restore_all(reader, database, options.clone(), settled, progress).await?;
            if let Some(session) = &restored.session {
                session.mark_done(&shares, &restored.ranges).await?;
            }
            Ok(restored.stats)
        };
        match restored.await {
            Ok(restored) => {
                stats.add(restored);
                done.parts.push(part.number);
            }
            // What was done of it is in the account of whoever goes on.
            Err(RestoreError::SessionTaken { .. }) => {
                tracing::warn!("another process has gone on with {part}");
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
