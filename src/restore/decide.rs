//! Decides what becomes of each chosen document: the writes, encoded where the documents are decoded.
//!
//! Where nothing has to be known of the database, the snapshot's documents go straight into writes. Otherwise the
//! snapshot's records are merged with what the database has first (see [`beside`](super::beside)), and only those bodies are
//! fetched of which the records do not say enough. A plan goes the same way and counts instead of writing.

use std::borrow::Cow;
use std::sync::Arc;

use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};

use super::beside::{Beside, OwnedFound, Step};
use super::check::{Checks, examine};
use super::conflicts::Conflicts;
use super::failures::Sent;
use super::plan::Tally;
use super::renames::{Rename, Renames, renamed};
use super::rules::{Action, Fate, Found, Look, Rules};
use super::{ReferenceCounts, RestoreCounts, RestoreError, RestoreOptions};
use crate::archive::{ArchiveError, Damage, DocumentSink, RecordBatch, SnapshotReader};
use crate::document::wire::{ReferencesSeen, WireError};
use crate::document::{CanonicalError, DatabaseName, DocumentKey, DocumentPath, DocumentRef, KeyRange};
use crate::firestore::{EncodedWrites, Firestore, Precondition, Write, WriteEncoder};
use crate::path_filter::PathFilter;

/// What is decided for a stretch of a key range.
///
/// A range's stretches follow each other without a gap, also where nothing is to be written: up to `up_to` everything before
/// is decided once these writes are done.
#[derive(Default)]
pub(super) struct Decided {
    /// What is to be written; may be nothing.
    pub(super) writes: EncodedWrites,
    /// The documents that were looked at in this stretch.
    pub(super) counts: RestoreCounts,
    /// The last key of the stretch, `None` where it is as far as that before.
    pub(super) up_to: Option<DocumentKey>,
    /// What was decided about each of the writes.
    pub(super) sent: Sent,
    /// Documents that were changed too late.
    pub(super) conflicts: Conflicts,
    /// What a plan counts.
    pub(super) tally: Tally,
}

/// What is done with what is decided.
pub(super) enum Purpose {
    /// It is written by the writer of this encoder.
    Write(WriteEncoder),
    /// It is counted, as if this had been looked at, and looked through for what the database would refuse or delete.
    Plan(Look, Checks),
}

/// Decides what is to be written.
#[derive(Clone)]
pub(super) struct Decide {
    pub(super) reader: SnapshotReader,
    pub(super) shared: Arc<Shared>,
}

/// What all ranges have in common.
pub(super) struct Shared {
    pub(super) filter: PathFilter,
    pub(super) rules: Rules,
    pub(super) renames: Renames,
    pub(super) database: Option<Firestore>,
    purpose: Purpose,
}

impl Shared {
    /// What is read of the database.
    pub(super) fn look(&self) -> Look {
        match &self.purpose {
            Purpose::Write(_) => self.rules.look(),
            Purpose::Plan(look, _) => *look,
        }
    }

    fn out(&self) -> Out {
        match &self.purpose {
            Purpose::Write(encoder) => Out::Writes(encoder.another()),
            Purpose::Plan(_, checks) => Out::Tally(Tally::default(), checks.clone()),
        }
    }

    /// Takes account of a document whose fate needs no writing.
    pub(super) fn settle(&self, path: &DocumentPath, fate: Fate, step: &mut Step) {
        step.counts.fates.note(fate);
        step.tally.note(path, fate);
        if fate == Fate::Conflict {
            step.conflicts.note(path);
        }
    }
}

/// Where decisions go.
enum Out {
    Writes(WriteEncoder),
    Tally(Tally, Checks),
}

impl Decide {
    /// Decides by these options. `database` may be none where nothing is read of it.
    pub(super) fn new(
        reader: &SnapshotReader,
        target: &DatabaseName,
        database: Option<&Firestore>,
        options: &RestoreOptions,
        purpose: Purpose,
    ) -> Result<Self, RestoreError> {
        let source = Some(&reader.snapshot().database);
        let rules = options.rules(source, target)?;
        Ok(Self {
            reader: reader.clone(),
            shared: Arc::new(Shared {
                filter: options.filter.clone(),
                rules,
                renames: options.renames.clone(),
                database: database.cloned(),
                purpose,
            }),
        })
    }

    /// What is to be written for the documents of a range. The stream's end says that all of the range is decided.
    pub(super) fn range(&self, range: KeyRange) -> BoxStream<'static, Result<Decided, RestoreError>> {
        match (&self.shared.database, self.shared.look()) {
            (Some(database), Look::Documents) => self.beside(Beside::new(self, database.clone(), range)),
            _ => self.blind(range),
        }
    }

    /// Without a look at the database.
    fn blind(&self, range: KeyRange) -> BoxStream<'static, Result<Decided, RestoreError>> {
        let encode = Encode::new(Arc::clone(&self.shared), None);
        if self.shared.filter.is_all() {
            return one_by_one(self.reader.documents_into(range, encode));
        }
        // Chosen by name first, so that nothing is fetched that is not chosen.
        let shared = Arc::clone(&self.shared);
        let records = self
            .reader
            .records(range)
            .map_ok(move |batch| chosen(&shared.filter, &batch))
            .try_filter(|batch| std::future::ready(!batch.is_empty()));
        one_by_one(self.reader.bodies_into(records, encode))
    }

    /// With a look at the database: each step's bodies are fetched while the next step is found.
    fn beside(&self, beside: Beside) -> BoxStream<'static, Result<Decided, RestoreError>> {
        let decide = self.clone();
        stream::try_unfold(beside, |mut beside| async move {
            Ok::<_, RestoreError>(beside.next().await?.map(|step| (step, beside)))
        })
        .map_ok(move |step| {
            let decide = decide.clone();
            async move { decide.step(step).await }
        })
        .try_buffered(2)
        .map_ok(|decided| stream::iter(decided.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
    }

    /// What is to be written for a step.
    async fn step(&self, step: Step) -> Result<Vec<Decided>, RestoreError> {
        let Step {
            wanted,
            found,
            deletes,
            counts,
            tally,
            conflicts,
            up_to,
            ..
        } = step;
        let mut all = Vec::new();
        if !wanted.is_empty() {
            let encode = Encode::new(Arc::clone(&self.shared), Some(found));
            let records = stream::once(std::future::ready(Ok(wanted)));
            let mut decided = self.reader.bodies_into(records, encode).boxed();
            while let Some(decided) = decided.try_next().await? {
                all.extend(decided?);
            }
        }
        let mut out = self.shared.out();
        let mut sent = Sent::default();
        if let Out::Writes(encoder) = &mut out {
            for (path, update_time) in &deletes {
                // What was changed since is not what was looked at.
                encoder.write(Write::delete(path).on(Precondition::UpdateTime(*update_time)))?;
                sent.note(path, Fate::Deleted);
            }
        }
        // The step is done when all of it is.
        all.push(Decided {
            writes: match &mut out {
                Out::Writes(encoder) => encoder.take(),
                Out::Tally(..) => EncodedWrites::default(),
            },
            counts,
            up_to,
            sent,
            conflicts,
            tally,
        });
        Ok(all)
    }

    /// Fails where renamed collections come to lie among documents that are restored, too. Where the index is damaged and that is
    /// gone around, nothing is restored.
    pub(super) async fn check_renames(&self, skip_damaged: bool) -> Result<(), RestoreError> {
        for (taken, rename) in self.shared.renames.taken() {
            for range in self.shared.filter.ranges() {
                let mut rest = range.intersection(&taken);
                while let Some(damage) = self.check_rename(rest.clone(), rename, skip_damaged).await? {
                    // Without a span the whole rest is left out, as the restore will.
                    let span = damage.span.map(|span| span.intersection(&rest));
                    let Some(span) = span.filter(|span| !span.is_empty()) else {
                        break;
                    };
                    let before = KeyRange {
                        start: rest.start.take(),
                        end: span.start,
                    };
                    self.check_rename(before, rename, skip_damaged).await?;
                    match span.end {
                        Some(end) if rest.end.as_ref().is_none_or(|last| end < *last) => {
                            rest.start = Some(end);
                        }
                        _ => break,
                    }
                }
            }
        }
        Ok(())
    }

    /// The same of a range, up to what is damaged, if that is gone around.
    async fn check_rename(
        &self,
        range: KeyRange,
        rename: &Rename,
        skip_damaged: bool,
    ) -> Result<Option<Damage>, RestoreError> {
        if range.is_empty() {
            return Ok(None);
        }
        let mut records = self.reader.records(range).boxed();
        loop {
            let batch = match records.try_next().await {
                Ok(Some(batch)) => batch,
                Ok(None) => return Ok(None),
                Err(error) if skip_damaged => return Ok(Some(error.into_damage()?)),
                Err(error) => return Err(error.into()),
            };
            for record in batch.iter() {
                let path = DocumentPath::from_key(record.key)?;
                let stays = self.shared.renames.rename(path.as_str()).is_none();
                if stays && self.shared.filter.matches(&path) {
                    return Err(RestoreError::Collision {
                        rename: rename.to_string(),
                        path,
                    });
                }
            }
        }
    }
}

/// The records that a filter chooses, and those that have no path: they are an error once their turn comes.
fn chosen(filter: &PathFilter, batch: &RecordBatch) -> RecordBatch {
    let mut chosen = RecordBatch::default();
    let mut buffer = String::new();
    for record in batch.iter() {
        match DocumentPath::from_key_in(record.key, std::mem::take(&mut buffer)) {
            Ok(path) => {
                if filter.matches(&path) {
                    chosen.push(record);
                }
                buffer = path.into();
            }
            Err(_) => chosen.push(record),
        }
    }
    chosen
}

/// What sinks have made, in its order.
fn one_by_one(
    sinks: impl Stream<Item = Result<<Encode as DocumentSink>::Output, ArchiveError>> + Send + 'static,
) -> BoxStream<'static, Result<Decided, RestoreError>> {
    sinks
        .map(|decided| Ok::<_, RestoreError>(stream::iter(decided??.into_iter().map(Ok))))
        .try_flatten()
        .boxed()
}

/// Encodes chosen documents where they are decoded: their bytes are at hand there, and all cores take part.
struct Encode {
    shared: Arc<Shared>,
    out: Out,
    /// What the database has, in the documents' order, where somebody has looked.
    found: Option<std::vec::IntoIter<OwnedFound>>,
    /// The memory of paths.
    path: String,
    counts: RestoreCounts,
    sent: Sent,
    conflicts: Conflicts,
    /// The last document that was looked at, where that says how far everything is.
    last: Option<Vec<u8>>,
    /// What makes a request each: so much is done at a time, and a cursor need not wait for a whole window of documents.
    ready: Vec<Decided>,
    failed: Option<RestoreError>,
}

impl Encode {
    fn new(shared: Arc<Shared>, found: Option<Vec<OwnedFound>>) -> Self {
        Self {
            out: shared.out(),
            shared,
            found: found.map(Vec::into_iter),
            path: String::new(),
            counts: RestoreCounts::default(),
            sent: Sent::default(),
            conflicts: Conflicts::default(),
            last: None,
            ready: Vec::new(),
            failed: None,
        }
    }

    fn put(&mut self, document: DocumentRef<'_>) -> Result<(), RestoreError> {
        let path = DocumentPath::from_key_in(document.key, std::mem::take(&mut self.path))?;
        let moved = renamed(&self.shared.renames, &path)?;
        match self.found.as_mut().map(Iterator::next) {
            Some(found) => {
                let found = found.unwrap_or(OwnedFound::Missing);
                self.decide(moved.as_ref().unwrap_or(&path), document.body, found.as_found())?;
            }
            None => {
                self.counts.looked_at(document.body);
                self.decide(moved.as_ref().unwrap_or(&path), document.body, Found::Unknown)?;
                let last = self.last.get_or_insert_default();
                last.clear();
                last.extend_from_slice(document.key);
            }
        }
        self.path = path.into();
        if matches!(&self.out, Out::Writes(encoder) if encoder.has_full()) {
            let decided = self.decided();
            self.ready.push(decided);
        }
        Ok(())
    }

    fn decide(&mut self, path: &DocumentPath, body: &[u8], found: Found<'_>) -> Result<(), RestoreError> {
        let rules = &self.shared.rules;
        let outcome = match &mut self.out {
            Out::Writes(encoder) => write(rules, path, body, found, |write| Ok(encoder.write(write)?))?,
            Out::Tally(tally, checks) => plan(rules, path, body, found, tally, checks)?,
        };
        self.counts.note(&outcome);
        outcome.note(path, &mut self.sent, &mut self.conflicts);
        Ok(())
    }

    fn decided(&mut self) -> Decided {
        let (writes, tally) = match &mut self.out {
            Out::Writes(encoder) => (encoder.take(), Tally::default()),
            Out::Tally(tally, _) => (EncodedWrites::default(), std::mem::take(tally)),
        };
        Decided {
            writes,
            counts: std::mem::take(&mut self.counts),
            up_to: self.last.as_deref().map(DocumentKey::from_bytes),
            sent: std::mem::take(&mut self.sent),
            conflicts: std::mem::take(&mut self.conflicts),
            tally,
        }
    }
}

/// What became of a document.
pub(crate) struct Outcome {
    pub(crate) fate: Fate,
    /// Whether it is written.
    is_sent: bool,
    /// References in it, if it is written.
    pub(crate) references: ReferenceCounts,
}

impl Outcome {
    pub(crate) fn note(&self, path: &DocumentPath, sent: &mut Sent, conflicts: &mut Conflicts) {
        if self.fate == Fate::Conflict {
            conflicts.note(path);
        } else if self.is_sent {
            sent.note(path, self.fate);
        }
    }
}

impl RestoreCounts {
    pub(crate) fn looked_at(&mut self, body: &[u8]) {
        self.documents += 1;
        self.bytes += body.len() as u64;
    }

    pub(crate) fn note(&mut self, outcome: &Outcome) {
        self.fates.note(outcome.fate);
        self.references += outcome.references;
    }
}

/// Decides about one document and hands what is to be written to `write`.
pub(crate) fn write(
    rules: &Rules,
    path: &DocumentPath,
    body: &[u8],
    found: Found<'_>,
    write: impl FnOnce(Write<'_>) -> Result<ReferencesSeen, RestoreError>,
) -> Result<Outcome, RestoreError> {
    // Where nothing has to be compared and nothing changes, what is to be known of the references shows on the way.
    let plain = rules.references.is_plain() && found == Found::Unknown;
    let body = match plain {
        true => Cow::Borrowed(body),
        false => restored(rules, path, body)?,
    };
    let decision = rules.decide(body, found).map_err(|error| invalid(path, error))?;
    let precondition = decision.precondition;
    let seen = match &decision.action {
        Action::Nothing => ReferencesSeen::default(),
        Action::Put(body) => write(Write::put(path, body).on(precondition))?,
        Action::Patch { body, mask } => write(Write::patch(path, body, mask).on(precondition))?,
    };
    let references = match plain {
        true => ReferenceCounts {
            rewritten: seen.relative,
            foreign: seen.absolute,
            ..ReferenceCounts::default()
        },
        false => references_of(rules, path, &decision.action)?,
    };
    Ok(Outcome {
        fate: decision.fate,
        is_sent: decision.action != Action::Nothing,
        references,
    })
}

/// Decides about one document and counts what would be written.
pub(crate) fn plan(
    rules: &Rules,
    path: &DocumentPath,
    body: &[u8],
    found: Found<'_>,
    tally: &mut Tally,
    checks: &Checks,
) -> Result<Outcome, RestoreError> {
    let body = restored(rules, path, body)?;
    let decision = rules
        .decide(Cow::Borrowed(&body), found)
        .map_err(|error| invalid(path, error))?;
    tally.note(path, decision.fate);
    let sent = match &decision.action {
        Action::Nothing if rules.sends_anyway(decision.fate) => {
            Some(rules.sent_len(&body).map_err(|error| invalid(path, error))?)
        }
        Action::Nothing => None,
        Action::Put(body) => Some(body.len()),
        Action::Patch { body, .. } => Some(body.len()),
    };
    tally.writes += u64::from(sent.is_some());
    tally.written_bytes += sent.unwrap_or(0) as u64;
    if decision.action != Action::Nothing {
        examine(path, &body, checks, &mut tally.warnings).map_err(|error| invalid(path, error))?;
    }
    Ok(Outcome {
        fate: decision.fate,
        // A plan sends nothing.
        is_sent: false,
        references: references_of(rules, path, &decision.action)?,
    })
}

fn restored<'a>(rules: &Rules, path: &DocumentPath, body: &'a [u8]) -> Result<Cow<'a, [u8]>, RestoreError> {
    rules
        .references
        .restored(body)
        .map_err(|error| invalid(path, error))
}

fn references_of(
    rules: &Rules,
    path: &DocumentPath,
    action: &Action<'_>,
) -> Result<ReferenceCounts, RestoreError> {
    let counted = match action {
        Action::Nothing => return Ok(ReferenceCounts::default()),
        Action::Put(body) => rules.references.count(body),
        Action::Patch { body, .. } => rules.references.count(body),
    };
    counted.map_err(|error| invalid(path, error))
}

/// The error of a body that does not read.
fn invalid(path: &DocumentPath, source: CanonicalError) -> RestoreError {
    let error = WireError::InvalidBody {
        document: path.to_string(),
        source,
    };
    RestoreError::Firestore(error.into())
}

impl DocumentSink for Encode {
    type Output = Result<Vec<Decided>, RestoreError>;

    fn push(&mut self, document: DocumentRef<'_>) {
        if self.failed.is_none() {
            self.failed = self.put(document).err();
        }
    }

    fn pass_on(&mut self) -> Self::Output {
        match self.failed.take() {
            Some(failed) => Err(failed),
            None => {
                let rest = self.decided();
                self.ready.push(rest);
                Ok(std::mem::take(&mut self.ready))
            }
        }
    }

    fn finish(self) -> Option<Self::Output> {
        None
    }
}
