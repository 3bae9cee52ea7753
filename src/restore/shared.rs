//! A restore that several tasks share: each restores its own share, and then what others have left.

use std::time::{Duration, Instant};

use super::session::{Plan, RestoreWork, UnfinishedRestore};
use super::{RestoreError, RestoreOptions, RestoreStats, SessionOptions, Settled, restore_all};
use crate::archive::SnapshotReader;
use crate::firestore::{Firestore, WriteStats};
use crate::progress::Progress;
use crate::records::shares::{Next, Shares, SharesError};

/// Restores shares until all are done, by this task or by others.
pub(super) async fn restore_shares(
    reader: &SnapshotReader,
    database: &Firestore,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreStats, RestoreError> {
    let start = Instant::now();
    let mut stats = RestoreStats::default();
    let Some(session) = options.session.clone() else {
        return Ok(stats);
    };
    let Some(shared) = &session.shared else {
        return Ok(stats);
    };
    let unusable = |error| match error {
        SharesError::Records(source) => session.sessions.unusable(source),
        error => RestoreError::Shares(error),
    };
    let options = RestoreOptions {
        task: Some(shared.task),
        ..options
    };
    let from = (reader.repository().id(), reader.id());
    let Some(agreed) = Plan::new(from, database.database(), &options, &[]).agreed else {
        return Ok(stats);
    };
    let mut shares = Shares::<RestoreWork>::new(session.sessions.records(), shared, agreed);
    // One for all shares: what the database bears, it has learnt by the first.
    let throttle = options.write.throttle();
    loop {
        let next = shares.next().await.map_err(unusable)?;
        let (task, id, resume) = match next {
            Next::Begin(task, id) => (task, Some(id), None),
            Next::Resume(task, record) => (task, None, Some(record.into())),
            Next::Wait if shares.wait(&options.stop).await => continue,
            Next::Wait => {
                return Err(RestoreError::TaskStopped {
                    documents: stats.documents,
                });
            }
            Next::WasDone(task, record) => {
                tracing::info!("the share of {task} was done before");
                let done = UnfinishedRestore::from(record).ranges();
                let (counts, conflicts) = (done.counts(), done.conflicts());
                stats.add(RestoreStats {
                    gaps: done.gaps().to_vec(),
                    shares: vec![task],
                    ..counts.stats(WriteStats::default(), conflicts, Duration::ZERO)
                });
                continue;
            }
            Next::Finished => break,
        };
        let share = RestoreOptions {
            task: Some(task),
            session: Some(SessionOptions {
                resume,
                ..session.clone()
            }),
            ..options.clone()
        };
        let settled = Settled {
            throttle: throttle.clone(),
            id,
        };
        match restore_all(reader, database, share, settled, progress).await {
            Ok(done) => stats.add(RestoreStats {
                shares: vec![task],
                ..done
            }),
            // What was done of it is in the account of whoever goes on.
            Err(RestoreError::SessionTaken { .. }) => {
                tracing::info!("another process has gone on with the share of {task}");
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
    Ok(stats)
}
