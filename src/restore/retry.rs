//! Writes again what a dead-letter file holds.
//!
//! The file is read through before the first write, so that a file that is none is found out before anything changes. Writes keep
//! their order and their preconditions: what was refused because a document had changed is refused again as long as it has.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use super::failures::is_refusal;
use super::{Conflicts, DRAIN_PATIENCE, RestoreCounts, RestoreOptions, RestoreStats};
use crate::firestore::{
    self, BulkWriter, DeadLetterError, DeadLetterFile, DeadLetters, FailureSink, Firestore, OwnedChange,
    Recorded, Write, WriteFailure,
};
use crate::progress::Progress;

/// Writes that wait for the writer.
const WAITING_WRITES: usize = 1_000;

/// A second attempt that stopped.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// The file cannot be read. Nothing was written.
    #[error("{0}. Nothing was written")]
    Refused(DeadLetterError),
    /// A file that was checked can no longer be read as it was.
    #[error("the file changed while it was read: {0}. What was written before stays written")]
    Changed(DeadLetterError),
    /// What fails again cannot go where the failures are read from.
    #[error("{} is the file that is read: name another one with --dead-letter-file", .0.display())]
    SameFile(PathBuf),
    /// Somebody asked it to stop.
    #[error(
        "stopped after {written} writes: what was written stays written; the same command again writes it again"
    )]
    Stopped {
        /// Writes that the database has taken.
        written: u64,
    },
    /// The database could not be written.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// The thread that reads is gone.
    #[error("the thread that reads the file stopped: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// Writes what a dead-letter file holds. Of the options, it is how to write that counts, where those go that fail again, and the
/// filter. Session and mode are not for it.
///
/// # Errors
/// Before anything is written when the file cannot be read to its end; afterwards when the database cannot be written at all.
pub async fn retry(
    file: &Path,
    database: &Firestore,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreStats, RetryError> {
    let start = Instant::now();
    if is_same_file(file, &options.dead_letter_file) {
        return Err(RetryError::SameFile(file.to_owned()));
    }
    let path = file.to_owned();
    let checked = tokio::task::spawn_blocking(move || {
        DeadLetters::open(path)?.try_fold(0u64, |count, letter| letter.map(|_| count + 1))
    });
    progress.set_total_documents(checked.await?.map_err(RetryError::Refused)?);

    let unbilled = Arc::<Unbilled>::default();
    let sink = RetrySink {
        dead_letters: DeadLetterFile::new(&options.dead_letter_file),
        unbilled: Arc::clone(&unbilled),
    };
    let mut writer = BulkWriter::new(database, options.write.clone(), sink);
    let (sender, mut letters) = mpsc::channel::<WriteFailure>(WAITING_WRITES);
    let (path, filter) = (file.to_owned(), options.filter.clone());
    let reading = tokio::task::spawn_blocking(move || {
        for letter in DeadLetters::open(path)? {
            let letter = letter?;
            if filter.matches(&letter.path) && sender.blocking_send(letter).is_err() {
                // The writer has failed, and its error is the one to report.
                break;
            }
        }
        Ok(())
    });
    let mut counts = RestoreCounts::default();
    let mut deletes = 0;
    loop {
        let next = tokio::select! {
            biased;
            () = options.stop.requested() => {
                writer.drain(DRAIN_PATIENCE).await?;
                let written = writer.stats().written;
                return Err(RetryError::Stopped { written });
            }
            next = letters.recv() => next,
        };
        let Some(letter) = next else { break };
        let bytes = letter.body().map_or(0, <[u8]>::len) as u64;
        let write = Write {
            path: &letter.path,
            change: letter.change.as_change(),
            precondition: letter.precondition,
        };
        tokio::select! {
            written = writer.write(write) => written?,
            () = options.stop.requested() => continue,
        }
        deletes += u64::from(letter.change == OwnedChange::Delete);
        counts.documents += 1;
        counts.bytes += bytes;
        progress.add(1, bytes);
    }
    reading.await?.map_err(RetryError::Changed)?;
    let writes = tokio::select! {
        writes = writer.complete() => writes?,
        () = options.stop.requested() => {
            writer.drain(DRAIN_PATIENCE).await?;
            let written = writer.stats().written;
            return Err(RetryError::Stopped { written });
        }
    };
    counts.written = writes.written;
    counts.failed = writes.failed;
    counts.left_out = writes.left_out;
    counts.billed_deletes = deletes - unbilled.deletes.load(Ordering::Relaxed);
    counts.billed_writes = writes.submitted - unbilled.writes.load(Ordering::Relaxed) - counts.billed_deletes;
    Ok(counts.stats(writes, &Conflicts::default(), start.elapsed()))
}

/// Writes that have failed for another reason than a precondition: these are not billed.
#[derive(Debug, Default)]
struct Unbilled {
    writes: AtomicU64,
    /// Deletions among them.
    deletes: AtomicU64,
}

/// Where the writes go that fail again.
struct RetrySink {
    dead_letters: DeadLetterFile,
    unbilled: Arc<Unbilled>,
}

impl FailureSink for RetrySink {
    fn record(&mut self, failure: WriteFailure) -> std::io::Result<Recorded> {
        if !is_refusal(&failure) {
            self.unbilled.writes.fetch_add(1, Ordering::Relaxed);
            let delete = u64::from(failure.change == OwnedChange::Delete);
            self.unbilled.deletes.fetch_add(delete, Ordering::Relaxed);
        }
        self.dead_letters.record(failure)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.dead_letters.sync()
    }
}

/// Whether both names mean one file that exists.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
