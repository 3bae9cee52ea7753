//! Backs up one range as a layer: compares it with the parent, fetches what changed, writes it and what is gone.
//!
//! Batches of changes are fetched several at a time and written in order, so that whatever is written is complete up to the last
//! document of its batch. What is fetched is answered for at the backup's own read time: a name that was there when it
//! was listed cannot be missing.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::changed::Asking;
use super::compared::{Changes, Comparison};
use super::crew::Share;
use super::fleet::{Others, Wanting};
use super::source::Source;
use super::{BackupError, BackupOptions, out_of_patience, plan};
use crate::archive::{LayerWriter, ReadMode, Session, UnfinishedRange};
use crate::document::{DocumentBatch, DocumentKey, DocumentPath};
use crate::firestore;
use crate::progress::Progress;

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
    others: Arc<Others>,
    options: Arc<BackupOptions>,
    /// How a field is asked that tells of changes, where one is known.
    asking: Option<Arc<Asking>>,
    fetches: Arc<Semaphore>,
    progress: Progress,
}

/// How a range was left.
enum Left {
    Done,
    /// The body of a document has changed and its times have not: names do not tell what changed.
    Misled(DocumentPath),
}

/// A range that may be split while it is read: whoever reads ahead does, and whoever writes ends where it says.
struct Splitting {
    context: LayerContext,
    share: Share<UnfinishedRange>,
    source: Source,
    range: Arc<Mutex<UnfinishedRange>>,
}

impl LayerContext {
    pub(super) fn new(
        comparison: Comparison,
        session: Arc<Session>,
        others: Arc<Others>,
        options: Arc<BackupOptions>,
        asking: Option<Arc<Asking>>,
        progress: Progress,
    ) -> Self {
        Self {
            comparison,
            session,
            others,
            options,
            asking,
            fetches: Arc::new(Semaphore::new(FETCHES)),
            progress,
        }
    }

    /// Backs up a range, again when the server contradicts itself, and in full where names mislead.
    pub(super) async fn back_up(
        mut self,
        range: UnfinishedRange,
        share: Share<UnfinishedRange>,
    ) -> Result<(), BackupError> {
        if !self.others.leave(&self.session, &range).await? {
            return Ok(());
        }
        let mut attempt = 1;
        let mut mode = range.read().unwrap_or(self.session.plan().read);
        self.comparison.read_time = range.read_time;
        let range = Arc::new(Mutex::new(range));
        loop {
            match self.try_once(&range, mode, &share).await {
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
            // Nothing of this attempt may be relied upon, by whoever goes on with the session either.
            let mut anew = lock(&range).clone();
            self.session.begin_anew(&mut anew, mode).await?;
            *lock(&range) = anew;
        }
    }

    async fn try_once(
        &self,
        range: &Arc<Mutex<UnfinishedRange>>,
        mode: ReadMode,
        share: &Share<UnfinishedRange>,
    ) -> Result<Left, BackupError> {
        let unfinished = lock(range).clone();
        let after = unfinished.covered().map(|(covered, _)| covered.clone());
        let source = Source::new(
            self.comparison.clone(),
            self.asking.as_ref(),
            unfinished.range.clone(),
            after.as_ref(),
            mode,
        );
        let mut writer = self.session.resume_layer_writer(unfinished).await?;
        let reader = Splitting {
            context: self.clone(),
            share: share.clone(),
            source,
            range: Arc::clone(range),
        };
        let changes = stream::try_unfold(reader, |mut reader| async move {
            let changes = match reader.give_away().await? {
                true => reader.source.next().await?,
                false => return Err(BackupError::SplitElsewhere),
            };
            Ok::<_, BackupError>(changes.map(|changes| (changes, reader)))
        });
        let mut changes = changes
            .map_ok(|changes| self.fetch(changes))
            .try_buffered(FETCHES_PER_RANGE)
            .boxed();
        let mut cursor = None;
        let mut checkpoint_at = Instant::now();
        let mut out_of_patience = pin!(out_of_patience(Arc::clone(&self.options)));
        let left = loop {
            let next = tokio::select! {
                next = changes.try_next() => next,
                () = &mut out_of_patience => {
                    if let Some(cursor) = &cursor {
                        self.write_checkpoint(range, cursor, &mut writer).await?;
                    }
                    return Ok(Left::Done);
                }
            };
            let (changes, misled) = match next {
                Ok(Some(changes)) => changes,
                Ok(None) => break None,
                Err(BackupError::SplitElsewhere) => return Ok(Left::Done),
                Err(error) => break Some(error),
            };
            if let Some(path) = misled {
                return Ok(Left::Misled(path));
            }
            cursor = changes.cursor.clone().or(cursor);
            self.write(changes, &mut writer).await?;
            let stop = self.options.stop.is_requested();
            if let Some(cursor) = &cursor
                && (stop || checkpoint_at.elapsed() >= self.options.checkpoint_every)
            {
                checkpoint_at = Instant::now();
                self.write_checkpoint(range, cursor, &mut writer).await?;
            }
            if stop {
                return Ok(Left::Done);
            }
        };
        drop(changes);
        match left {
            None => {
                writer.shorten(lock(range).range.end.clone())?;
                self.others.tell_reads().await?;
                let output = writer.finish().await?;
                debug!(range = ?output.range, stats = ?output.stats, "range finished");
                Ok(Left::Done)
            }
            Some(error) => {
                if let (BackupError::Firestore(firestore::Error::ReadTimeTooOld { .. }), Some(cursor)) =
                    (&error, &cursor)
                {
                    self.write_checkpoint(range, cursor, &mut writer).await?;
                }
                Err(error)
            }
        }
    }

    async fn write_checkpoint(
        &self,
        range: &Mutex<UnfinishedRange>,
        cursor: &DocumentKey,
        writer: &mut LayerWriter,
    ) -> Result<(), BackupError> {
        let end = lock(range).range.end.clone();
        writer.shorten(end)?;
        writer.write_checkpoint(cursor.clone()).await?;
        lock(range).passed_checkpoint(writer.next_checkpoint());
        Ok(())
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
            changes.documents = merged(std::mem::take(&mut changes.documents), fetched.found);
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
    async fn write(&self, mut changes: Changes, writer: &mut LayerWriter) -> Result<(), BackupError> {
        if let Some(asking) = &self.asking {
            let lags = changes
                .documents
                .iter()
                .filter_map(|document| asking.lag_micros(document));
            if let Some(lag) = lags.max() {
                changes.compared.lagged(lag);
            }
        }
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

impl Splitting {
    /// Splits what is left of the range, when other readers want some of it, and gives all but the first part away. `false`:
    /// another worker has split it where this one has read on.
    async fn give_away(&mut self) -> Result<bool, BackupError> {
        let range = lock(&self.range).clone();
        let (wanted, to) = match (self.share.wanted(), self.context.others.want(&range)?) {
            (Some(wanted), _) => (wanted, Wanting::Readers),
            (None, Some(wanted)) => (wanted, Wanting::Tasks),
            (None, None) => return Ok(true),
        };
        let LayerContext {
            comparison,
            session,
            options,
            ..
        } = &self.context;
        let mut rest = range.clone();
        rest.range = self.source.rest();
        let parent = Some(&comparison.parent);
        let points = match rest.range.is_empty() {
            true => Vec::new(),
            false => {
                plan::split_points(
                    &comparison.database,
                    parent,
                    session.plan(),
                    &rest,
                    wanted + 1,
                    options,
                )
                .await?
            }
        };
        if points.is_empty() {
            if to == Wanting::Readers {
                self.share.give_nothing();
            }
            return Ok(true);
        }
        let mut parts = session.split(&range, &points).await?;
        let fits = match (&parts[0].range.end, &rest.range.start) {
            (Some(end), Some(start)) => end >= start,
            _ => true,
        };
        if !fits {
            self.share.give(parts);
            return Ok(false);
        }
        info!(range = ?range.range, parts = parts.len(), "giving parts of a range to idle {to}");
        let others = parts.split_off(1);
        let end = parts.remove(0).range.end;
        lock(&self.range).range.end.clone_from(&end);
        self.source.shorten(end);
        if to == Wanting::Readers {
            self.share.give(others);
        }
        Ok(true)
    }
}

/// Two ascending batches as one.
fn merged(one: DocumentBatch, other: DocumentBatch) -> DocumentBatch {
    if one.is_empty() {
        return other;
    }
    let mut merged = DocumentBatch::new();
    let mut others = other.iter().peekable();
    for document in one.iter() {
        while let Some(first) = others.next_if(|other| other.key < document.key) {
            merged.push(first);
        }
        merged.push(document);
    }
    others.for_each(|document| merged.push(document));
    merged
}

fn lock(range: &Mutex<UnfinishedRange>) -> MutexGuard<'_, UnfinishedRange> {
    range.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The share of the unchanged documents to fetch all the same, of so many.
pub(super) fn sampled(documents: u64) -> f64 {
    (SAMPLED_AT_LEAST / documents.max(1) as f64).clamp(SAMPLED, 1.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::archive::{Plan, Repository, Selection, SessionOptions, SnapshotKind};
    use crate::backup::backup;
    use crate::clock;
    use crate::document::{DatabaseName, KeyRange};
    use crate::firestore::{ConnectOptions, Firestore, Target};
    use crate::sandbox::{Sandbox, SandboxConfig, SyntheticSpec};
    use crate::store::Store;

    /// No real server does that, and if one did it would be no deletion.
    #[tokio::test]
    async fn a_document_that_was_listed_and_is_missing_is_an_error() {
        let sandbox = Sandbox::start(SandboxConfig {
            synthetic: vec![SyntheticSpec::new("products", 12, 400)],
            ..SandboxConfig::default()
        });
        let sandbox = sandbox.await.unwrap();
        let target = Target::Emulator {
            host_port: sandbox.address().to_string(),
        };
        let name = DatabaseName::new("demo-vanished", "(default)");
        let database = Firestore::connect(ConnectOptions::new(name.clone(), target))
            .await
            .unwrap();
        let repository = Repository::init(Store::memory(), clock::now()).await.unwrap();
        let progress = Progress::new();
        let taken = backup(&database, &repository, BackupOptions::default(), &progress);
        let parent = taken.await.unwrap().snapshot;
        let read_time = database.current_read_time().await.unwrap();
        let plan = Plan {
            kind: SnapshotKind::Backup,
            database: name,
            database_uid: None,
            read_time,
            started_at: clock::now(),
            selection: Selection::all(),
            parent: Some(parent.id),
            merges: None,
            read: ReadMode::Names,
            ranges: vec![KeyRange::all()],
            extra: BTreeMap::new(),
        };
        let session = Session::begin(&repository, SessionOptions::new(plan))
            .await
            .unwrap();
        let comparison = Comparison {
            database,
            parent: repository.reader(&parent).await.unwrap(),
            read_time,
            sampled: 0.0,
        };
        let options = Arc::new(BackupOptions::default());
        let context = LayerContext::new(
            comparison,
            Arc::new(session),
            Arc::new(Others::None),
            options,
            None,
            progress,
        );
        let nobody = DocumentPath::parse("products/nobody").unwrap();
        let mut changes = Changes::default();
        changes.wanted.push(nobody.clone());
        let fetched = context.fetch(changes).await.map(drop);
        assert!(
            matches!(&fetched, Err(BackupError::Vanished { path, .. }) if *path == nobody),
            "{fetched:?}"
        );
    }
}
