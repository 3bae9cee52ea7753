//! Puts documents of JSON and NDJSON files into a database.
//!
//! Every file is read through before the first document is written: a file that is cut off or says another count than it
//! holds must not be found out halfway through a restore.

use std::time::Instant;

use tokio::sync::mpsc;
use tracing::info;

use crate::document::{DocumentPath, canonical};
use crate::firestore::{self, BulkWriter, Firestore, Write};
use crate::json::{DocumentsFile, JsonError};
use crate::path_filter::PathFilter;
use crate::progress::Progress;
use crate::restore::{RestoreCounts, RestoreMode, RestoreOptions, RestorePlan, RestoreStats};

/// Documents that wait for the writer.
const WAITING_DOCUMENTS: usize = 1_000;

/// An import that stopped. What it wrote before stays written; to run it again does no harm.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file is none that can be restored. Nothing was written.
    #[error("{0}. Nothing was written")]
    Refused(JsonError),
    /// A file that was checked can no longer be read as it was.
    #[error("a file changed while it was restored: {0}. What was written before stays written")]
    Changed(JsonError),
    /// The database could not be written.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// The thread that reads is gone.
    #[error("the thread that reads the files stopped: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// Reads the files through and says what [`import`] would write.
pub async fn plan_import(files: &[DocumentsFile], filter: &PathFilter) -> Result<RestorePlan, ImportError> {
    let mut plan = RestorePlan::default();
    for file in files {
        let (file, filter) = (file.clone(), filter.clone());
        let part = tokio::task::spawn_blocking(move || {
            let mut part = RestorePlan::default();
            file.read::<JsonError>(|path, fields| {
                if filter.matches(&path) {
                    part.add(&path, canonical::encode(&fields).len() as u64);
                }
                Ok(())
            })
            .map(|_| part)
        })
        .await?
        .map_err(ImportError::Refused)?;
        plan.merge(part);
    }
    Ok(plan)
}

/// Writes the documents of the files, under the ids that they have there.
///
/// # Errors
/// Before anything is written when a file cannot be read to its end or contradicts itself; afterwards when the database
/// cannot be written at all. A single document that the database refuses is no error: it is counted and goes to the
/// dead-letter file.
pub async fn import(
    files: &[DocumentsFile],
    database: &Firestore,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreStats, ImportError> {
    let start = Instant::now();
    let mut total = 0;
    for file in files {
        let documents = check_file(file.clone()).await?;
        info!(file = %file.name().display(), documents, "checked");
        total += documents;
    }
    if options.filter.is_all() {
        progress.set_total_documents(total);
    }

    let sink = options.sink();
    let mut writer = BulkWriter::new(database, options.write, sink);
    progress.watch(writer.pace());
    let (sender, mut documents) = mpsc::channel(WAITING_DOCUMENTS);
    let (files, filter) = (files.to_vec(), options.filter);
    let reading = tokio::task::spawn_blocking(move || {
        files.iter().try_for_each(|file| {
            send_documents(file, |path, body| {
                // A closed channel means that the writer has failed, and its error is the one to report.
                !filter.matches(&path) || sender.blocking_send((path, body)).is_ok()
            })
        })
    });
    let mut counts = RestoreCounts::default();
    while let Some((path, body)) = documents.recv().await {
        counts.documents += 1;
        counts.bytes += body.len() as u64;
        let write = match options.mode {
            RestoreMode::Overwrite => Write::put(&path, &body),
            RestoreMode::CreateOnly => Write::create(&path, &body),
        };
        writer.write(write).await?;
        progress.add(1, body.len() as u64);
    }
    reading.await?.map_err(ImportError::Changed)?;
    let writes = writer.finish().await?;
    counts.written = writes.written;
    counts.failed = writes.failed;
    counts.left_out = writes.left_out;
    Ok(counts.stats(writes, start.elapsed()))
}

/// Reads a file through and keeps nothing: whether every document in it can be restored. Says how many there are.
async fn check_file(file: DocumentsFile) -> Result<u64, ImportError> {
    let checked = tokio::task::spawn_blocking(move || file.read::<JsonError>(|_, _| Ok(()))).await?;
    checked.map_err(ImportError::Refused)
}

/// Calls `each` with the documents of a file until it answers false.
fn send_documents(
    file: &DocumentsFile,
    mut each: impl FnMut(DocumentPath, Vec<u8>) -> bool,
) -> Result<(), JsonError> {
    enum Stopped {
        ByReceiver,
        ByFile(JsonError),
    }
    impl From<JsonError> for Stopped {
        fn from(error: JsonError) -> Self {
            Self::ByFile(error)
        }
    }
    let read = file.read(|path, fields| match each(path, canonical::encode(&fields)) {
        true => Ok(()),
        false => Err(Stopped::ByReceiver),
    });
    match read {
        Ok(_) | Err(Stopped::ByReceiver) => Ok(()),
        Err(Stopped::ByFile(error)) => Err(error),
    }
}
