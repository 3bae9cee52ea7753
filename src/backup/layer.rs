//! Backs up one range as a layer: compares it with the parent, fetches what changed, writes it and what is gone.
//!
//! Batches of changes are fetched several at a time and written in order, so that whatever is written is complete up to the last
//! document of its batch. What is fetched is answered for at the backup's own read time: a name that was there when it
//! was listed cannot be missing.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::BackupError;
use super::compared::{Changes, Comparer, Comparison};
use crate::archive::{LayerWriter, ReadMode, Session};
use crate::document::{DocumentBatch, DocumentPath, KeyRange};
use crate::progress::Progress;
use crate::stop::Stop;

/// Batches of changes of one range that are fetched at the same time.
const FETCHES_PER_RANGE: usize = 4;
/// The same for all ranges together: each is about a megabyte.
const FETCHES: usize = 32;
/// How often a range is read again whose documents the server counts and does not send.
const ATTEMPTS: u32 = 3;
/// The share of the unchanged documents that a reading of names fetches all the same.
const SAMPLED: f64 = 1e-4;
/// How many that are at least, in a backup of more.
const SAMPLED_AT_LEAST: f64 = 8.0;

/// What all ranges of a backup share.
#[derive(Clone)]
pub(super) struct LayerContext {
    comparison: Comparison,
    session: Arc<Session>,
    fetches: Arc<Semaphore>,
    progress: Progress,
    stop: Stop,
}

/// How a range was left.
enum Left {
    Done,
    /// The body of a document has changed and its times have not: names do not tell what changed.
    Misled(DocumentPath),
}

impl LayerContext {
    pub(super) fn new(comparison: Comparison, session: Arc<Session>, stop: Stop, progress: Progress) -> Self {
        Self {
            comparison,
            session,
            fetches: Arc::new(Semaphore::new(FETCHES)),
            progress,
            stop,
        }
    }

    /// Backs up a range, again when the server contradicts itself, and in full where names mislead.
    pub(super) async fn back_up(self, range: KeyRange, mut mode: ReadMode) -> Result<(), BackupError> {
        let mut attempt = 1;
        loop {
            match self.try_once(range.clone(), mode).await {
                Ok(Left::Done) => return Ok(()),
                Ok(Left::Misled(path)) => {
                    warn!(
                        "`{path}` has changed and its times have not: reading whole documents in its range, and names \
                         cannot be relied upon in this database (use --read full)"
                    );
                    mode = ReadMode::Full;
                }
                Err(error @ BackupError::Contradiction { .. }) if attempt < ATTEMPTS => {
                    attempt += 1;
                    warn!("{error}: reading the range again");
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_once(&self, range: KeyRange, mode: ReadMode) -> Result<Left, BackupError> {
        let mut writer = self.session.layer_writer(range.clone());
        let comparer = Comparer::new(self.comparison.clone(), range, mode);
        let changes = stream::try_unfold(comparer, |mut comparer| async move {
            let changes = comparer.next().await?;
            Ok::<_, BackupError>(changes.map(|changes| (changes, comparer)))
        });
        let mut changes = changes
            .map_ok(|changes| self.fetch(changes))
            .try_buffered(FETCHES_PER_RANGE)
            .boxed();
        while let Some((changes, misled)) = changes.try_next().await? {
            if let Some(path) = misled {
                return Ok(Left::Misled(path));
            }
            self.write(changes, &mut writer).await?;
            if self.stop.is_requested() {
                // What is finished is kept; this range is small, and is read again.
                return Ok(Left::Done);
            }
        }
        drop(changes);
        let output = writer.finish().await?;
        debug!(range = ?output.range, stats = ?output.stats, "range finished");
        Ok(Left::Done)
    }

    /// Fetches what the changes want, and says which of the samples is not as the parent has it.
    async fn fetch(&self, mut changes: Changes) -> Result<(Changes, Option<DocumentPath>), BackupError> {
        let mut paths = std::mem::take(&mut changes.wanted);
        if paths.is_empty() && changes.samples.is_empty() {
            return Ok((changes, None));
        }
        let read_time = self.comparison.read_time;
        paths.extend(changes.samples.iter().map(|sample| sample.path.clone()));
        // The semaphore is never closed.
        let _turn = self.fetches.acquire().await.ok();
        let database = &self.comparison.database;
        let fetched = database.get_documents(&paths, Some(read_time)).await?;
        if let Some(path) = fetched.missing.into_iter().next() {
            return Err(BackupError::Vanished { path, read_time });
        }
        if changes.samples.is_empty() {
            changes.documents = fetched.found;
            return Ok((changes, None));
        }
        let mut samples = changes.samples.iter().peekable();
        let mut documents = DocumentBatch::new();
        for document in fetched.found.iter() {
            let sample = samples.next_if(|sample| sample.path.key().as_bytes() == document.key);
            match sample {
                None => documents.push(document),
                Some(sample) => {
                    let repository = self.comparison.parent.repository();
                    let same = sample.length as usize == document.body.len()
                        && sample.body_hash == repository.body_hash(document.body);
                    if !same {
                        let path = sample.path.clone();
                        return Ok((changes, Some(path)));
                    }
                }
            }
        }
        changes.documents = documents;
        Ok((changes, None))
    }

    /// Writes changes in the order of keys.
    async fn write(&self, changes: Changes, writer: &mut LayerWriter) -> Result<(), BackupError> {
        let unchanged = changes.compared.unchanged_documents();
        let written = changes.documents.len() as u64;
        let bytes = changes
            .documents
            .iter()
            .map(|document| document.body.len() as u64);
        self.progress.add(unchanged + written, bytes.sum());
        let mut deleted = changes.deleted.iter().peekable();
        for document in changes.documents.iter() {
            while let Some(key) = deleted.next_if(|key| key.as_bytes() < document.key) {
                writer.delete(key.as_bytes()).await?;
            }
            writer.put(document).await?;
        }
        for key in deleted {
            writer.delete(key.as_bytes()).await?;
        }
        writer.note(changes.compared);
        Ok(())
    }
}

/// The share of the unchanged documents to fetch all the same, of so many.
pub(super) fn sampled(documents: u64) -> f64 {
    (SAMPLED_AT_LEAST / documents.max(1) as f64).clamp(SAMPLED, 1.0)
}
