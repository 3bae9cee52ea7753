//! What an ordinary backup makes of point-in-time recovery, where the database says that it has it.
//!
//! Every moment can be read for an hour, and with point-in-time recovery whole minutes for seven days. Whoever backs up means
//! *now*: what was written before the backup began belongs to it, so the last whole minute is too early, and a backup that is
//! done within the hour reads as of the present, as without recovery. One that needs more than the hour would be of several
//! moments, which is worse than to wait: it reads as of the **next** whole minute, and is of one moment however long it takes.
//! How long it takes is told by the backups before it; a first one may take any time.

use std::time::Duration;

use tracing::info;

use super::BackupOptions;
use crate::archive::{SnapshotKind, SnapshotListing};
use crate::document::{DatabaseName, Timestamp};
use crate::firestore::{DatabaseMetadata, Firestore, Result};

const MINUTE: i64 = 60;

/// How long a backup of the same may have taken at most for the next one to read as of the present. A third of the hour: it grows,
/// and a full one takes longer than one that builds upon another.
const SHORT: Duration = Duration::from_secs(20 * 60);

/// The time that a new session reads at: `present`, or where that may not last and the database says that it has recovery, the
/// next whole minute, once that has come.
pub(super) async fn time_that_lasts(
    database: &Firestore,
    metadata: Option<&DatabaseMetadata>,
    listing: &SnapshotListing,
    options: &BackupOptions,
    present: Timestamp,
) -> Result<Timestamp> {
    let has_recovery = metadata.is_some_and(|metadata| metadata.point_in_time_recovery);
    // Who names a time, or says --pitr, has chosen.
    if !has_recovery || options.pitr || options.read_time.is_some() {
        return Ok(present);
    }
    if !options.require_consistent && is_short(listing, database.database(), options) {
        return Ok(present);
    }
    let minute = next_minute(present);
    loop {
        let now = database.current_read_time().await?;
        if now >= minute {
            return Ok(minute);
        }
        let wait = Duration::from_secs((minute.seconds - now.seconds).clamp(1, MINUTE).unsigned_abs());
        info!(
            "the database has point-in-time recovery, and this backup may take longer than the hour that the present can be \
             read: waiting {} s for a whole minute, which can be read for seven days",
            wait.as_secs()
        );
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // It ends before it reads anything.
            () = options.stop.requested() => return Ok(present),
        }
    }
}

/// The time to read the rest at when `gone` can be read no longer: with recovery a whole minute, so that it lasts.
pub(super) fn time_of_the_rest(gone: Timestamp, now: Timestamp, has_recovery: bool) -> Timestamp {
    let minute = Timestamp::new(now.seconds - now.seconds.rem_euclid(MINUTE), 0);
    match has_recovery && minute > gone {
        true => minute,
        false => now,
    }
}

fn next_minute(time: Timestamp) -> Timestamp {
    let past = time.seconds.rem_euclid(MINUTE);
    match (past, time.nanos) {
        (0, 0) => time,
        _ => Timestamp::new(time.seconds - past + MINUTE, 0),
    }
}

/// Whether backups of the same never took long. Without one it cannot be told.
fn is_short(listing: &SnapshotListing, database: &DatabaseName, options: &BackupOptions) -> bool {
    let same = listing.snapshots.iter().filter(|snapshot| {
        snapshot.kind == SnapshotKind::Backup
            && snapshot.database == *database
            && snapshot.selection == options.selection
    });
    let longest = same
        .map(|snapshot| snapshot.finished_at - snapshot.started_at)
        .max();
    longest.is_some_and(|longest| longest.to_std().unwrap_or_default() <= SHORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minute_is_never_before_the_present() {
        let at = Timestamp::new;
        assert_eq!(next_minute(at(120, 0)), at(120, 0));
        assert_eq!(next_minute(at(120, 1)), at(180, 0));
        assert_eq!(next_minute(at(179, 999)), at(180, 0));
        assert_eq!(next_minute(at(-1, 0)), at(0, 0));
    }

    #[test]
    fn the_rest_is_read_at_a_minute_that_lasts() {
        let at = Timestamp::new;
        assert_eq!(time_of_the_rest(at(100, 5), at(3725, 7), true), at(3720, 0));
        assert_eq!(time_of_the_rest(at(100, 5), at(3725, 7), false), at(3725, 7));
        // It must be newer than what went before.
        assert_eq!(time_of_the_rest(at(3721, 0), at(3725, 7), true), at(3725, 7));
    }
}
