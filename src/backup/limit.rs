//! A backup that may be billed so many reads and no more.

use std::convert::Infallible;

use super::{BackupError, BackupOptions, Taken, take};
use crate::archive::Repository;
use crate::firestore::{Firestore, RequestCounts};
use crate::progress::Progress;
use crate::stop::Stop;

/// Takes a backup, and stops it when so many reads were billed. Whoever asks to stop for another reason still can.
pub(super) async fn take_within(
    most: u64,
    database: &Firestore,
    repository: &Repository,
    options: BackupOptions,
    before: &RequestCounts,
    progress: &Progress,
) -> Result<Taken, BackupError> {
    let asked = options.stop.clone();
    let options = BackupOptions {
        stop: Stop::default(),
        ..options
    };
    let billed = || database.stats().counts().since(before).billed_reads;
    let watch = async {
        tokio::select! {
            () = asked.requested() => {}
            () = database.stats().have_billed(before.billed_reads.saturating_add(most).saturating_add(1)) => {}
        }
        options.stop.request();
        std::future::pending::<Infallible>().await
    };
    let taken = tokio::select! {
        biased;
        never = watch => match never {},
        taken = take(database, repository, &options, before, progress) => taken,
    };
    match taken {
        Err(BackupError::Stopped {
            session,
            finished,
            ranges,
        }) if !asked.is_requested() => Err(BackupError::ReadsSpent {
            session,
            finished,
            ranges,
            reads: billed(),
            most,
        }),
        taken => taken,
    }
}
