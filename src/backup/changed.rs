//! Asking a field which documents of a range have changed, and counts which have gone: reads in proportion to the change.
//!
//! Documents that carry a modification time say themselves that they have changed. So the range is gone through in **sections** of
//! some thousand keys of the parent, and for each section every collection group that the parent has there is asked for the
//! documents whose field is not before the time up to which the parent knows, less an overlap (see
//! [`since`](super::since)). What the parent has already, by its times, is dropped again. A section is one interval of names, and
//! its queries are bounded by them: so ranges, workers, splits and checkpoints are what they are in any backup, what is held
//! in memory is bounded, and the order of the field, which is not that of names, matters only inside of a section.
//!
//! What has gone does not say so. It is found by counting, at the same read time: a **leaf** is at most a thousand of the keys that
//! there should be, and the server counts them for one billed read. The count is over all collections, so that also documents
//! of collection groups that the parent has never seen are counted. Where that disagrees, the leaf is halved, one half counted and the
//! other known by subtraction, until some sixteen keys are left, and those are compared name by name as in any backup. Then each
//! group is counted in each leaf that agrees: a group may have lost what another one has gained, perhaps one that the parent has never
//! seen. Where that is so the names of the leaf are compared, for what was gained may be anywhere in it. So a count
//! never makes a deletion: only a reading of names does that comes to its end as all readings do.
//!
//! Reading names is also what is done with a whole section wherever this way is of no use: most of it has changed, its groups are too many
//! to be asked, the server refuses the query or the count, or contradicts itself. The result is the same, for more reads, and
//! it is said.
//!
//! What cannot be seen, and is seen by the next backup that reads names: a change that leaves the field as it was, or sets it to a time
//! before what is asked for, in a document that has no field or one of another type; a document that is deleted
//! and made again with such a field; and a document of a group that appears in the same leaf in which another one of the group
//! goes away, if the field does not tell of it.

mod asked;
mod counted;
mod index;
mod section;

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::debug;

use asked::Answer;
pub(super) use asked::Asking;
pub use index::{FieldCheck, check_field};
use section::Section;

use super::BackupError;
use super::compared::{Changes, Comparer, Comparison, Records};
use super::since::Since;
use crate::archive::{ReadMode, RecordBatch};
use crate::document::{DocumentKey, KeyRange, Timestamp};
use crate::firestore::Query;

/// Keys of the parent in a section, at most.
pub(super) const SECTION: usize = 16_000;

/// The documents of a group that the field tells of, as a backup asks for them whose parent knows until this time: some of
/// them the parent has.
pub(super) fn query(since: &Since, group: &str, known_until: Timestamp) -> Query {
    asked::query(&since.field, group, asked::from(known_until, since.overlap()))
}

/// Those whose field says that they have changed since then.
pub(super) fn query_changed(since: &Since, group: &str, known_until: Timestamp) -> Query {
    asked::query(&since.field, group, known_until)
}

/// Goes through a range, from its start or from a cursor on.
pub(super) struct Changed {
    comparison: Comparison,
    asking: Arc<Asking>,
    /// What is left to be loaded, with the collection groups that are selected there; none: all.
    parts: VecDeque<(KeyRange, Vec<String>)>,
    /// The parent's records of the first of them, once it is begun.
    records: Option<Records>,
    /// The section that is being given out.
    section: Section,
    /// What is left of it.
    pieces: VecDeque<Piece>,
    /// Names are compared, somewhere in the section.
    comparer: Option<Box<Comparer>>,
    /// The range's end.
    end: Option<DocumentKey>,
}

/// A part of a section: some of its items, which follow each other.
struct Piece {
    items: std::ops::Range<usize>,
    /// Whether there is exactly what there should be.
    agrees: bool,
}

impl Changed {
    /// Of the range, what comes after a document, if one is given.
    pub(super) fn new(
        comparison: Comparison,
        asking: Arc<Asking>,
        mut range: KeyRange,
        after: Option<&DocumentKey>,
    ) -> Self {
        range.start = after.map(DocumentKey::after).or(range.start);
        let selection = &comparison.parent.snapshot().selection;
        let parts = selection.parts(&range).into_iter();
        Self {
            parts: parts
                .filter(|(part, _)| !part.is_empty())
                .map(|(part, groups)| (part, groups.to_vec()))
                .collect(),
            comparison,
            asking,
            records: None,
            section: Section::before(range.start),
            pieces: VecDeque::new(),
            comparer: None,
            end: range.end,
        }
    }

    /// The next changes; `None` at the end of the range.
    pub(super) async fn next(&mut self) -> Result<Option<Changes>, BackupError> {
        loop {
            if let Some(comparer) = &mut self.comparer {
                if let Some(changes) = comparer.next().await? {
                    return Ok(Some(changes));
                }
                self.comparer = None;
            }
            let Some(mut piece) = self.pieces.pop_front() else {
                match self.load().await? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            if !piece.agrees {
                self.comparer = Some(Box::new(self.compare_names(&piece.items)));
                continue;
            }
            let mut changes = Changes::default();
            piece.items.start = self.section.take(piece.items.clone(), &mut changes)?;
            if !piece.items.is_empty() {
                self.pieces.push_front(piece);
            }
            return Ok(Some(changes));
        }
    }

    fn compare_names(&self, items: &std::ops::Range<usize>) -> Comparer {
        Comparer::with_records(
            self.comparison.clone(),
            self.section.range_of(items),
            Records::at_hand(self.section.records_of(items)),
            ReadMode::Names,
        )
    }

    /// What is left to be read for sure, past all that is in memory.
    pub(super) fn rest(&self) -> KeyRange {
        match &self.section.range.end {
            Some(end) => KeyRange {
                start: Some(end.clone()),
                end: self.end.clone(),
            },
            // The section in memory goes on to the very end: nothing is left.
            None => KeyRange {
                start: Some(DocumentKey::from_bytes([])),
                end: Some(DocumentKey::from_bytes([])),
            },
        }
    }

    /// Ends earlier: where the rest, or a part of it, begins.
    pub(super) fn shorten(&mut self, end: Option<DocumentKey>) {
        let before = KeyRange {
            start: None,
            end: end.clone(),
        };
        for (part, _) in &mut self.parts {
            *part = part.intersection(&before);
        }
        self.parts.retain(|(part, _)| !part.is_empty());
        match (self.parts.front(), &mut self.records) {
            (Some((part, _)), Some(records)) => records.end.clone_from(&part.end),
            _ => self.records = None,
        }
        self.end = end;
    }

    /// Loads the next section, and finds out what there is to do; `false` when there is none.
    async fn load(&mut self) -> Result<bool, BackupError> {
        let Some((part, groups)) = self.parts.front().cloned() else {
            return Ok(false);
        };
        let parent = self.comparison.parent.clone();
        let records = self
            .records
            .get_or_insert_with(|| Records::new(&parent, part.clone()));
        let mut batch = RecordBatch::default();
        let next = loop {
            records.fill(&parent).await?;
            match records.current() {
                Some(record) if batch.len() < SECTION => batch.push(record),
                next => break next.map(|record| DocumentKey::from_bytes(record.key)),
            }
            records.position += 1;
        };
        let range = KeyRange {
            start: part.start.clone(),
            end: next.clone().or(part.end),
        };
        match next {
            Some(next) => {
                if let Some((part, _)) = self.parts.front_mut() {
                    part.start = Some(next);
                }
            }
            None => {
                self.parts.pop_front();
                self.records = None;
            }
        }
        self.section = Section::new(range, groups, batch)?;
        self.pieces = self.find_out().await?.into();
        Ok(true)
    }

    /// Asks the field and counts.
    async fn find_out(&mut self) -> Result<Vec<Piece>, BackupError> {
        match self.asking.ask(&self.comparison, &self.section).await? {
            Answer::Documents(found) => self.section.add(found),
            Answer::OfNoUse => return Ok(self.all_names()),
        }
        let Some(differing) = counted::differing(&self.comparison, &self.asking, &self.section).await? else {
            return Ok(self.all_names());
        };
        if !differing.is_empty() {
            debug!(range = ?self.section.range, ?differing, "counts differ");
        }
        let mut pieces = Vec::with_capacity(2 * differing.len() + 1);
        let mut at = 0;
        for items in differing {
            if at < items.start {
                pieces.push(Piece {
                    items: at..items.start,
                    agrees: true,
                });
            }
            at = items.end;
            pieces.push(Piece { items, agrees: false });
        }
        if at < self.section.len() {
            pieces.push(Piece {
                items: at..self.section.len(),
                agrees: true,
            });
        }
        Ok(pieces)
    }

    /// Compares the names of the whole section.
    fn all_names(&self) -> Vec<Piece> {
        vec![Piece {
            items: 0..self.section.len(),
            agrees: false,
        }]
    }
}
