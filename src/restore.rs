//! Puts documents of a snapshot into a database.
//!
//! The stages, each of which waits for the next one:
//!
//! ```text
//! ranges   the snapshot, cut into key ranges; those that are read together lie far apart
//! read     several ranges at a time, a few megabytes ahead
//! decide   for each chosen document what is to be written, encoded where it was decoded
//! write    one writer; a range's cursor moves over what is acknowledged
//! ```
//!
//! Several key ranges feed one writer, so that neighbouring writes lie far apart in the key space: writes in key order would
//! all go to one tablet of the database at a time.

mod beside;
mod check;
mod conflicts;
mod decide;
mod failures;
mod plan;
mod ranges;
mod references;
mod renames;
mod rules;
mod write;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use crate::archive::{ArchiveError, Lease, SnapshotReader};
use crate::document::{DatabaseName, DocumentPath, FieldMask, KeyRange, PathError, Timestamp};
use crate::firestore::{self, BulkWriter, Firestore, WriteOptions, WriteStats};
use crate::path_filter::PathFilter;
use crate::progress::Progress;
pub(crate) use check::Checks;
pub use check::{TtlField, Warning, WarningKind};
pub(crate) use conflicts::Conflicts;
use decide::{Decide, Purpose};
pub(crate) use decide::{plan as plan_document, write as write_document};
use failures::Refusal;
pub(crate) use plan::Tally;
pub use plan::{RestorePlan, check_restore, plan_restore};
pub(crate) use references::References;
pub use references::{ReferenceCounts, ReferenceMode};
pub use renames::{Rename, RenameError, Renames};
pub use rules::{Fates, RestoreMode};
pub(crate) use rules::{Found, Look, Rules};
use write::{RangeState, Ranges, Step};

/// Batches that wait for the writer. A few are enough: the readers refill faster than a database writes.
const WAITING_BATCHES: usize = 4;

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Which documents.
    pub filter: PathFilter,
    /// What happens to a document that exists.
    pub mode: RestoreMode,
    /// Restore only these fields, and only of documents that exist. A field that the snapshot does not have is removed, but not
    /// in a merge.
    pub fields: Option<FieldMask>,
    /// Leave documents alone that were changed after this time, and count them as conflicts.
    pub unmodified_since: Option<Timestamp>,
    /// Collections that are restored under another name.
    pub renames: Renames,
    /// Where references point.
    pub references: ReferenceMode,
    /// Fields that the database deletes documents by once their time has passed: plans warn of them.
    pub ttl_fields: Vec<TtlField>,
    /// How to write.
    pub write: WriteOptions,
    /// How many key ranges of the snapshot are read at the same time.
    pub parallel: usize,
    /// Where documents go that the database refuses. Made when the first one is.
    pub dead_letter_file: PathBuf,
}

impl RestoreOptions {
    /// Everything, with the defaults for a database.
    pub fn new(database: &Firestore, dead_letter_file: impl Into<PathBuf>) -> Self {
        Self::for_target(database.is_emulator(), dead_letter_file)
    }

    /// The same before there is a connection.
    pub fn for_target(is_emulator: bool, dead_letter_file: impl Into<PathBuf>) -> Self {
        Self {
            filter: PathFilter::all(),
            mode: RestoreMode::Overwrite,
            fields: None,
            unmodified_since: None,
            renames: Renames::default(),
            references: ReferenceMode::Rewrite,
            ttl_fields: Vec::new(),
            write: WriteOptions::for_target(is_emulator),
            parallel: READERS,
            dead_letter_file: dead_letter_file.into(),
        }
    }

    /// Says no to options that contradict each other: [`RestoreError::Options`].
    pub fn check(&self) -> Result<(), RestoreError> {
        rules::check(self.mode, self.fields.as_ref(), self.unmodified_since)
    }

    /// What decides about a document, from a database, if it is known, into another one.
    pub(crate) fn rules(
        &self,
        source: Option<&DatabaseName>,
        target: &DatabaseName,
    ) -> Result<Rules, RestoreError> {
        self.check()?;
        Ok(Rules {
            mode: self.mode,
            fields: self.fields.clone(),
            unmodified_since: self.unmodified_since,
            references: References::new(self.references, source, target, &self.renames),
        })
    }

    /// Where a document is restored.
    pub(crate) fn renamed(&self, path: DocumentPath) -> Result<DocumentPath, RestoreError> {
        Ok(renames::renamed(&self.renames, &path)?.unwrap_or(path))
    }

    /// The ranges of a snapshot that were chosen, cut so that all of each is renamed alike.
    fn pieces(&self, reader: &SnapshotReader) -> Vec<KeyRange> {
        let selected = reader.snapshot().selection.key_ranges();
        let chosen = self.filter.ranges().iter().flat_map(|chosen| {
            selected
                .iter()
                .map(|selected| selected.intersection(chosen))
                .filter(|range| !range.is_empty())
        });
        self.renames.pieces(&chosen.collect::<Vec<_>>())
    }
}

/// Key ranges of a snapshot that are read at the same time: the more, the further apart neighbouring writes lie.
const READERS: usize = 8;

/// What a restore has done, or a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RestoreCounts {
    /// Documents that were chosen.
    pub documents: u64,
    /// Bytes of their fields, in canonical form.
    pub bytes: u64,
    /// Writes that the database has taken.
    pub written: u64,
    /// Writes that the database refused; the dead-letter file has them.
    pub failed: u64,
    /// Writes that were refused because somebody asked for that, as of documents that exist in [`RestoreMode::CreateOnly`].
    pub left_out: u64,
    /// What was decided.
    pub fates: Fates,
    /// References in what is written.
    pub references: ReferenceCounts,
}

impl RestoreCounts {
    /// Adds another part.
    pub(crate) fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.written += other.written;
        self.failed += other.failed;
        self.left_out += other.left_out;
        self.fates += other.fates;
        self.references += other.references;
    }
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct RestoreStats {
    /// Documents that were chosen.
    pub documents: u64,
    /// Bytes of their fields, in canonical form.
    pub bytes: u64,
    /// Writes and deletions that the database has taken.
    pub written: u64,
    /// Documents that were there already and stay as they were ([`RestoreMode::CreateOnly`]).
    pub existing: u64,
    /// Documents that the database refused; the dead-letter file has them.
    pub failed: u64,
    /// What was decided about the documents, and what the database said to it. Documents are known to be created or changed
    /// only where the database was looked at.
    pub fates: Fates,
    /// Documents that were changed too late and stay as they are: the first thousand of them, in path order.
    pub conflicts: Vec<DocumentPath>,
    /// References in what was written.
    pub references: ReferenceCounts,
    /// How the writer fared.
    pub writes: WriteStats,
    /// How long it took.
    pub duration: Duration,
}

/// A restore that stopped. What it wrote before stays written; to run it again does no harm.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot could not be read.
    #[error("{}{}", .0, advice(.0))]
    Archive(#[from] ArchiveError),
    /// The database could not be written.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// A record of the snapshot has no path.
    #[error(
        "the snapshot names a document that has no path: {0}; `firebank verify --read-data` shows what is damaged"
    )]
    Path(#[from] PathError),
    /// Options that contradict each other. Nothing was written.
    #[error("{0}")]
    Options(String),
    /// A renamed collection comes to lie where other documents are restored. Nothing was written.
    #[error(
        "`{rename}` would put documents where `{path}` is restored to as well: leave one of them out with --only or \
         --exclude, or rename the other collection too"
    )]
    Collision {
        /// Which name.
        rename: String,
        /// A document that is there.
        path: DocumentPath,
    },
    /// Documents refer to other databases, and that was not wanted. Nothing was written.
    #[error(
        "{} of the chosen documents refer to documents of other databases, such as `{}`: nothing was written, as \
         --references fail says", .0.documents, .0.examples.first().map_or("", DocumentPath::as_str)
    )]
    ForeignReferences(Box<Warning>),
}

fn advice(error: &ArchiveError) -> &'static str {
    match error {
        ArchiveError::Damaged(_) => {
            ". `firebank verify --read-data` shows what else is damaged; --only restores what is not"
        }
        _ => "",
    }
}

/// Writes the chosen documents of a snapshot.
///
/// # Errors
/// At the first part of the snapshot that is damaged or missing, and when the database cannot be written at all. A single
/// document that the database refuses is no error: it is counted and goes to the dead-letter file.
pub async fn restore(
    reader: &SnapshotReader,
    database: &Firestore,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreStats, RestoreError> {
    let lease = Lease::of(reader, "restore").await?;
    let restored = restore_all(reader, database, options, progress).await;
    lease.release().await;
    match restored {
        Err(RestoreError::Archive(error)) => {
            Err(reader.repository().explain(reader.id(), error).await.into())
        }
        restored => restored,
    }
}

async fn restore_all(
    reader: &SnapshotReader,
    database: &Firestore,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreStats, RestoreError> {
    let start = Instant::now();
    let target = database.database();
    if options.references == ReferenceMode::Fail {
        let (_, tally) = plan::look_through(reader, target, &options).await?;
        refuse_foreign(&tally)?;
    }
    let conflicts = Conflicts::default();
    let sink = options.sink(conflicts.clone());
    let writer = BulkWriter::new(database, options.write.clone(), sink);
    let purpose = Purpose::Write(writer.encoder());
    let decide = Decide::new(
        reader,
        target,
        Some(database),
        &options,
        conflicts.clone(),
        purpose,
    )?;
    decide.check_renames().await?;
    let pieces = ranges::split_ranges(reader, &options.pieces(reader), options.parallel).await?;
    let mut ranges = Ranges::new(pieces.iter().cloned().map(RangeState::new).collect());

    let (sender, steps) = mpsc::channel(WAITING_BATCHES);
    let parallel = options.parallel.max(1);
    let order = ranges::far_apart(pieces.len(), parallel);
    let read = async move {
        stream::iter(order)
            .map(|number| read_range(&decide, number, &pieces[number], sender.clone()))
            .buffer_unordered(parallel)
            .try_for_each(|()| async { Ok(()) })
            .await
    };
    let write = write::write_all(writer, steps, &mut ranges, progress);
    let ((), writes) = tokio::try_join!(read, write)?;
    Ok(ranges
        .counts()
        .stats(writes, &options, &conflicts, start.elapsed()))
}

/// Fails when documents refer to other databases.
pub(crate) fn refuse_foreign(tally: &Tally) -> Result<(), RestoreError> {
    let is_foreign = |warning: &&Warning| warning.kind == WarningKind::ForeignReferences;
    match tally.warnings.iter().find(is_foreign) {
        Some(warning) => Err(RestoreError::ForeignReferences(Box::new(warning.clone()))),
        None => Ok(()),
    }
}

/// Reads a range and sends what is decided, then that it is at its end.
async fn read_range(
    decide: &Decide,
    number: usize,
    range: &crate::document::KeyRange,
    steps: mpsc::Sender<(usize, Step)>,
) -> Result<(), RestoreError> {
    let mut decided = decide.range(range.clone());
    while let Some(decided) = decided.try_next().await? {
        if steps.send((number, Step::Decided(decided))).await.is_err() {
            // The writer has failed, and its error is the one to report.
            return Ok(());
        }
    }
    // The same holds here.
    let _ = steps.send((number, Step::End)).await;
    Ok(())
}

impl RestoreCounts {
    /// With how the writer fared.
    pub(crate) fn stats(
        self,
        writes: WriteStats,
        options: &RestoreOptions,
        conflicts: &Conflicts,
        duration: Duration,
    ) -> RestoreStats {
        let mut fates = self.fates;
        match options.refusal_means() {
            Refusal::Existing => fates.existing += self.left_out,
            Refusal::LeftOut => fates.left_out += self.left_out,
            Refusal::Conflict => fates.conflicts += self.left_out,
        }
        RestoreStats {
            documents: self.documents,
            bytes: self.bytes,
            written: self.written,
            existing: fates.existing,
            failed: self.failed,
            fates,
            conflicts: conflicts.paths(),
            references: self.references,
            writes,
            duration,
        }
    }
}
