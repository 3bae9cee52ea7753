//! What a restore would do, found out by the stages that do it, with a count in the place of the writer.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::future::Either;
use tokio::sync::mpsc;

use super::check::{self, Checks, Warning};
use super::conflicts::Conflicts;
use super::decide::{Decide, Purpose};
use super::read::Reading;
use super::rules::{Fate, Fates, Look};
use super::write::{Message, Step};
use super::{
    Gap, ReferenceCounts, ReferenceMode, RestoreCounts, RestoreError, RestoreOptions, WAITING_BATCHES,
};
use crate::archive::{Lease, SnapshotReader};
use crate::compare::{Difference, DifferenceKind, NAMED_DIFFERENCES};
use crate::cost::Billed;
use crate::document::{DatabaseName, DocumentPath};
use crate::firestore::{Firestore, RequestCounts, write_time};

/// What a restore would do.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RestorePlan {
    /// Documents that were chosen.
    pub documents: u64,
    /// Bytes of their fields, in canonical form.
    pub bytes: u64,
    /// What would become of them, and of documents that a mirror deletes.
    #[serde(flatten)]
    pub fates: Fates,
    /// The same by root collection of the database that would be written, everything below it included.
    pub collections: BTreeMap<String, Fates>,
    /// References in what would be written.
    pub references: ReferenceCounts,
    /// Reads that the restore would be billed, about.
    pub billed_reads: u64,
    /// Writes that it would be billed, those that are refused because a document exists, or does not, among them.
    pub billed_writes: u64,
    /// Deletes that it would be billed.
    pub billed_deletes: u64,
    /// Bytes of the database's answers that the restore would read, about.
    pub read_bytes: u64,
    /// Bytes of the repository's objects that it would read, about: where little of what lies together is chosen, rather too many.
    pub fetched_bytes: u64,
    /// Bytes of the fields that it would send to be written, in canonical form, those of refused writes among them. The database
    /// stores fields with names and with entries of its indexes, which are not known here.
    pub written_bytes: u64,
    /// All that would go from one place to another: these three.
    pub transferred_bytes: u64,
    /// The least time that the writes take at the rate and the ramp that they would have; none where nothing bounds it.
    pub seconds: Option<f64>,
    /// Documents that were changed too late and would be left alone: the first of them.
    pub conflicting: Vec<DocumentPath>,
    /// Some of the documents that would be created (missing), changed (different) or deleted (extra), in path order.
    pub some_differences: Vec<Difference>,
    /// What to know before.
    pub warnings: Vec<Warning>,
    /// What would be left out because the snapshot is damaged there ([`RestoreOptions::skip_damaged`]).
    pub gaps: Vec<Gap>,
}

/// What to know before documents are written.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// What to warn of.
    pub warnings: Vec<Warning>,
    /// What will be left out because the snapshot is damaged there ([`RestoreOptions::skip_damaged`]).
    pub gaps: Vec<Gap>,
}

/// What has been counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) collections: BTreeMap<String, Fates>,
    pub(crate) writes: u64,
    /// Bytes of their fields, in canonical form.
    pub(crate) written_bytes: u64,
    pub(crate) some_differences: Vec<Difference>,
    pub(crate) warnings: Vec<Warning>,
}

impl Tally {
    pub(crate) fn note(&mut self, path: &DocumentPath, fate: Fate) {
        let kind = match fate {
            Fate::Created => Some(DifferenceKind::Missing),
            Fate::Changed => Some(DifferenceKind::Different),
            Fate::Deleted => Some(DifferenceKind::Extra),
            _ => None,
        };
        if let Some(kind) = kind.filter(|_| self.some_differences.len() < NAMED_DIFFERENCES) {
            let (path, fields) = (path.clone(), Vec::new());
            self.some_differences.push(Difference { path, kind, fields });
        }
        match self.collections.get_mut(path.root_collection()) {
            Some(fates) => fates.note(fate),
            None => {
                let mut fates = Fates::default();
                fates.note(fate);
                self.collections.insert(path.root_collection().to_owned(), fates);
            }
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (collection, fates) in other.collections {
            *self.collections.entry(collection).or_default() += fates;
        }
        self.writes += other.writes;
        self.written_bytes += other.written_bytes;
        let room = NAMED_DIFFERENCES.saturating_sub(self.some_differences.len());
        let more = other.some_differences.into_iter().take(room);
        self.some_differences.extend(more);
        check::merge(&mut self.warnings, other.warnings);
    }

    pub(crate) fn into_warnings(self) -> Vec<Warning> {
        self.warnings
    }
}

impl RestorePlan {
    /// What is paid for; `from_bucket`: whether what leaves the repository is. What goes into a database is free, and what the
    /// documents take in it then, indexes included, is not known here.
    pub fn billed(&self, from_bucket: bool) -> Billed {
        Billed {
            reads: self.billed_reads,
            writes: self.billed_writes,
            deletes: self.billed_deletes,
            stored_bytes: 0,
            transferred_bytes: self.read_bytes + if from_bucket { self.fetched_bytes } else { 0 },
        }
    }

    /// The same where all that is chosen is looked through before, by [`check_restore`].
    #[must_use]
    pub fn after_a_check(mut self, options: &RestoreOptions) -> Self {
        let once = self.fetched_bytes / passes(options);
        self.fetched_bytes += once;
        self.transferred_bytes += once;
        self
    }

    pub(crate) fn new(
        counts: &RestoreCounts,
        mut tally: Tally,
        read: AmountRead,
        conflicts: &Conflicts,
        options: &RestoreOptions,
    ) -> Self {
        tally
            .some_differences
            .sort_by_cached_key(|difference| difference.path.key());
        let billed_deletes = counts.fates.deleted;
        let time = write_time(
            tally.writes + billed_deletes,
            options.write.rate,
            options.write.ramp,
        );
        Self {
            documents: counts.documents,
            bytes: counts.bytes,
            fates: counts.fates,
            collections: tally.collections,
            references: counts.references,
            billed_reads: read.billed_reads,
            billed_writes: tally.writes,
            billed_deletes,
            read_bytes: read.bytes,
            fetched_bytes: read.fetched_bytes,
            written_bytes: tally.written_bytes,
            transferred_bytes: read.bytes + read.fetched_bytes + tally.written_bytes,
            seconds: time.map(|time| time.as_secs_f64()),
            conflicting: conflicts.paths(),
            some_differences: tally.some_differences,
            warnings: tally.warnings,
            gaps: Vec::new(),
        }
    }
}

/// What the writing would read, as the plan did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AmountRead {
    pub(crate) billed_reads: u64,
    /// Bytes of the database's answers.
    pub(crate) bytes: u64,
    /// Bytes of the repository's objects.
    pub(crate) fetched_bytes: u64,
}

impl AmountRead {
    /// What was read of the database since then: a plan looks into it to tell what would become of its documents, which the writing
    /// does only where `look` says so.
    pub(crate) fn since(before: &RequestCounts, database: &Firestore, look: Look) -> Self {
        let counts = database.stats().counts().since(before);
        match look {
            Look::Nothing => Self::default(),
            Look::Documents => Self {
                billed_reads: counts.billed_reads,
                bytes: counts.received_bytes,
                fetched_bytes: 0,
            },
        }
    }
}

/// How often a restore goes through what is chosen: first for references that it should fail at.
fn passes(options: &RestoreOptions) -> u64 {
    1 + u64::from(options.references == ReferenceMode::Fail)
}

/// Says what [`restore`](super::restore) would do to the database as it is now. Reads of it as much as a restore in
/// [`RestoreMode::SkipIdentical`](super::RestoreMode::SkipIdentical) would.
pub async fn plan_restore(
    reader: &SnapshotReader,
    database: &Firestore,
    options: &RestoreOptions,
) -> Result<RestorePlan, RestoreError> {
    let before = database.stats().counts();
    let store = reader.repository().store();
    let fetched_before = store.requests().received_bytes;
    let target = database.database();
    let checks = Checks::new(&check::ttl_fields_of(database, options).await);
    let purpose = Purpose::Plan(Look::Documents, checks);
    let decide = Decide::new(reader, target, Some(database), options, purpose)?;
    let rules_look = decide.shared.rules.look();
    let survey = leased(reader, survey(decide, options)).await?;
    let read = AmountRead {
        fetched_bytes: (store.requests().received_bytes - fetched_before) * passes(options),
        ..AmountRead::since(&before, database, rules_look)
    };
    let Survey {
        counts,
        tally,
        conflicts,
        gaps,
    } = survey;
    Ok(RestorePlan {
        gaps,
        ..RestorePlan::new(&counts, tally, read, &conflicts, options)
    })
}

/// Looks through the chosen documents for what to know before they are written, without a look at the database: as if all of
/// them were.
pub async fn check_restore(
    reader: &SnapshotReader,
    target: &DatabaseName,
    options: &RestoreOptions,
) -> Result<Findings, RestoreError> {
    let survey = leased(reader, look_through(reader, target, options)).await?;
    Ok(Findings {
        warnings: survey.tally.into_warnings(),
        gaps: survey.gaps,
    })
}

/// The same under somebody else's lease.
pub(super) async fn look_through(
    reader: &SnapshotReader,
    target: &DatabaseName,
    options: &RestoreOptions,
) -> Result<Survey, RestoreError> {
    let purpose = Purpose::Plan(Look::Nothing, Checks::new(&options.ttl_fields));
    let decide = Decide::new(reader, target, None, options, purpose)?;
    survey(decide, options).await
}

async fn leased<T>(
    reader: &SnapshotReader,
    work: impl Future<Output = Result<T, RestoreError>>,
) -> Result<T, RestoreError> {
    let lease = Lease::of(reader, "restore plan").await?;
    let done = work.await;
    lease.release().await;
    match done {
        Err(RestoreError::Archive(error)) => {
            Err(reader.repository().explain(reader.id(), error).await.into())
        }
        done => done,
    }
}

/// What was found out about all ranges.
#[derive(Default)]
pub(super) struct Survey {
    counts: RestoreCounts,
    pub(super) tally: Tally,
    conflicts: Conflicts,
    gaps: Vec<Gap>,
}

impl Survey {
    async fn take_in(mut self, mut steps: mpsc::Receiver<Message>) -> Result<Self, RestoreError> {
        while let Some((_, step)) = steps.recv().await {
            match step? {
                Step::Decided(decided) => {
                    self.counts.add(&decided.counts);
                    self.conflicts.add(&decided.conflicts);
                    self.tally.add(decided.tally);
                }
                Step::Gap(gap, _) => self.gaps.push(gap),
                Step::End => {}
            }
        }
        Ok(self)
    }
}

/// Goes through all ranges as a restore would, and around the same damage.
async fn survey(decide: Decide, options: &RestoreOptions) -> Result<Survey, RestoreError> {
    decide.check_renames(options.skip_damaged).await?;
    let pieces = options.cut(&decide.reader).await?;
    let reading = Reading {
        reader: decide.reader.clone(),
        decide,
        filter: options.filter.clone(),
        skip_damaged: options.skip_damaged,
    };
    let (sender, steps) = mpsc::channel(WAITING_BATCHES);
    let ranges = pieces.into_iter().enumerate().collect();
    let read = reading.all(ranges, options.parallel.max(1), sender);
    // An error ends the counting first, and nobody needs what is still being read.
    match futures::future::select(pin!(Survey::default().take_in(steps)), pin!(read)).await {
        Either::Left((survey, _)) => survey,
        Either::Right(((), survey)) => survey.await,
    }
}
