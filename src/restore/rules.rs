//! What a restore does with one document: the modes, and all else that decides.
//!
//! | the database has the document | overwrite | create-only | skip-identical | mirror | merge |
//! | --- | --- | --- | --- | --- | --- |
//! | not at all | creates | creates | creates | creates | creates |
//! | with the same fields | writes it again | leaves it | leaves it | leaves it | leaves it |
//! | with other fields | replaces it | leaves it | replaces it | replaces it | writes what differs, keeps what only the database has |
//! | and the snapshot does not | leaves it | leaves it | leaves it | deletes it | leaves it |
//!
//! With a time since which documents must be unmodified, one that was changed later is a conflict: it is left alone and
//! listed, whatever the mode. With fields that are named, only these are written, and a document that the database does not have
//! is left out. Overwrite and create-only need not read the database for any of this; the others do, a read for a document.
//!
//! Documents are written at their own paths and nowhere above: a missing document that only has subcollections stays missing.

use std::borrow::Cow;

use super::{References, RestoreError};
use crate::document::field_mask::{Merge, merge, value_at};
use crate::document::{CanonicalError, FieldMask, Fields, Timestamp, canonical};
use crate::firestore::Precondition;

/// What happens to a document that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreMode {
    /// It is replaced, without being looked at.
    #[default]
    Overwrite,
    /// It is left alone.
    CreateOnly,
    /// It is replaced where its fields differ.
    SkipIdentical,
    /// As [`SkipIdentical`](Self::SkipIdentical); and documents that were chosen and the snapshot does not have are deleted.
    Mirror,
    /// It gets the fields that the snapshot has and keeps those that only it has.
    Merge,
}

/// What has to be read of the database before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Look {
    /// Nothing.
    Nothing,
    /// Which documents there are, and since when they are as they are.
    Times,
    /// Documents.
    Documents,
}

/// What the database has where a document is to be restored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Found<'a> {
    /// Nobody has looked.
    Unknown,
    /// No document.
    Missing,
    /// A document.
    There {
        /// When it was last changed.
        update_time: Timestamp,
        /// Its fields, if they were read.
        body: Option<&'a [u8]>,
    },
}

/// What becomes of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is written, and nobody has looked what was there.
    Written,
    /// It is new.
    Created,
    /// It changes.
    Changed,
    /// It has what it is to have. Only an overwrite writes it all the same.
    Unchanged,
    /// It exists and is left alone for that.
    Existing,
    /// It does not exist and is left out for that.
    LeftOut,
    /// It was changed too late and is left alone for that.
    Conflict,
    /// The snapshot does not have it, and it goes.
    Deleted,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action<'a> {
    /// Nothing.
    Nothing,
    /// The whole document.
    Put(Cow<'a, [u8]>),
    /// Some fields.
    Patch {
        /// The fields in canonical form.
        body: Vec<u8>,
        /// Their names.
        mask: Vec<String>,
    },
}

/// What is decided about a document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decision<'a> {
    pub(crate) fate: Fate,
    pub(crate) action: Action<'a>,
    pub(crate) precondition: Precondition,
}

impl Decision<'_> {
    fn leave(fate: Fate) -> Self {
        Self {
            fate,
            action: Action::Nothing,
            precondition: Precondition::None,
        }
    }
}

/// All that decides about a document beside the document.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) mode: RestoreMode,
    pub(crate) fields: Option<FieldMask>,
    pub(crate) unmodified_since: Option<Timestamp>,
    pub(crate) references: References,
}

/// Says no to what cannot be meant.
pub(super) fn check(
    mode: RestoreMode,
    fields: Option<&FieldMask>,
    unmodified_since: Option<Timestamp>,
) -> Result<(), RestoreError> {
    let no = |what: &str| Err(RestoreError::Options(what.to_owned()));
    match (mode, fields, unmodified_since) {
        (RestoreMode::CreateOnly, Some(_), _) => {
            no("create-only writes no document that exists, and fields can only be restored in one that does")
        }
        (RestoreMode::Mirror, Some(_), _) => no(
            "mirror makes whole documents what they were, not some of their fields: restore fields with \
                    another mode",
        ),
        (RestoreMode::CreateOnly, _, Some(_)) => {
            no("create-only leaves every document alone that exists, whenever it was changed")
        }
        _ => Ok(()),
    }
}

impl Rules {
    /// What must be read of the database.
    pub(crate) fn look(&self) -> Look {
        match (self.mode, self.unmodified_since) {
            (RestoreMode::SkipIdentical | RestoreMode::Mirror | RestoreMode::Merge, _) => Look::Documents,
            (RestoreMode::Overwrite | RestoreMode::CreateOnly, None) => Look::Nothing,
            (RestoreMode::Overwrite | RestoreMode::CreateOnly, Some(_)) => Look::Times,
        }
    }

    /// Whether documents that have the same fields as the snapshot's are left alone, and equal bodies mean equal fields.
    pub(crate) fn skips_equal_bodies(&self) -> bool {
        self.fields.is_none() && self.references.is_plain() && self.skips_identical()
    }

    fn skips_identical(&self) -> bool {
        matches!(
            self.mode,
            RestoreMode::SkipIdentical | RestoreMode::Mirror | RestoreMode::Merge
        )
    }

    /// Whether a document that exists was changed too late.
    pub(crate) fn is_conflict(&self, update_time: Timestamp) -> bool {
        self.unmodified_since.is_some_and(|since| update_time > since)
    }

    /// What is known of a document's fate without its fields.
    pub(crate) fn known_fate(&self, found: &Found<'_>) -> Option<Fate> {
        match found {
            Found::There { update_time, .. } if self.is_conflict(*update_time) => Some(Fate::Conflict),
            Found::There { .. } if self.mode == RestoreMode::CreateOnly => Some(Fate::Existing),
            Found::Missing if self.fields.is_some() => Some(Fate::LeftOut),
            _ => None,
        }
    }

    /// What becomes of a document with these fields, references as they are to be.
    pub(crate) fn decide<'a>(
        &self,
        body: Cow<'a, [u8]>,
        found: Found<'_>,
    ) -> Result<Decision<'a>, CanonicalError> {
        if let Some(fate) = self.known_fate(&found) {
            return Ok(Decision::leave(fate));
        }
        let precondition = self.precondition(&found);
        let there = match found {
            Found::There { body, update_time } => body.map(|body| (body, update_time)),
            _ => None,
        };
        let (action, precondition) = match (&self.fields, there) {
            (None, Some((there, update_time))) if self.mode == RestoreMode::Merge => {
                merge_over(&canonical::decode(&body)?, there, update_time, precondition)?
            }
            (None, there) => {
                let identical = there.is_some_and(|(there, _)| *there == *body);
                match identical && self.skips_identical() {
                    true => return Ok(Decision::leave(Fate::Unchanged)),
                    false if identical => {
                        return Ok(Decision {
                            fate: Fate::Unchanged,
                            action: Action::Put(body),
                            precondition,
                        });
                    }
                    false => (Action::Put(body), precondition),
                }
            }
            (Some(mask), there) => {
                let fields = canonical::decode(&body)?;
                match there {
                    Some((there, update_time)) if self.mode == RestoreMode::Merge => {
                        let picked = mask.pick(&fields);
                        merge_over(&picked, there, update_time, precondition)?
                    }
                    there => {
                        let patch = patch(&mask.filter(|path| self.restores(&fields, path)), &fields);
                        let same = match there {
                            Some((there, _)) => mask.agree(&fields, &canonical::decode(there)?),
                            None => false,
                        };
                        if same {
                            return Ok(Decision {
                                fate: Fate::Unchanged,
                                action: match self.skips_identical() {
                                    true => Action::Nothing,
                                    false => patch,
                                },
                                precondition,
                            });
                        }
                        (patch, precondition)
                    }
                }
            }
        };
        let fate = match (found, &action) {
            (_, Action::Nothing) => Fate::Unchanged,
            (Found::Unknown, _) => Fate::Written,
            (Found::Missing, _) => Fate::Created,
            (Found::There { body: None, .. }, _) => Fate::Written,
            (Found::There { .. }, _) => Fate::Changed,
        };
        Ok(Decision {
            fate,
            action,
            precondition,
        })
    }

    /// Whether a named field is written: in a merge, only where the snapshot has it.
    fn restores(&self, fields: &Fields, path: &[String]) -> bool {
        self.mode != RestoreMode::Merge || value_at(fields, path).is_some()
    }

    /// What must hold when the write happens.
    fn precondition(&self, found: &Found<'_>) -> Precondition {
        match (found, self.unmodified_since) {
            (Found::There { update_time, .. }, Some(_)) => Precondition::UpdateTime(*update_time),
            (Found::Missing, Some(_)) => Precondition::MustNotExist,
            _ if self.mode == RestoreMode::CreateOnly => Precondition::MustNotExist,
            _ if self.fields.is_some() => Precondition::MustExist,
            // Somebody else's fields must not go because the document was not there a moment ago.
            (Found::Missing, None) if self.mode == RestoreMode::Merge => Precondition::MustNotExist,
            _ => Precondition::None,
        }
    }
}

/// What makes a document have these fields, too.
fn merge_over(
    fields: &Fields,
    there: &[u8],
    update_time: Timestamp,
    precondition: Precondition,
) -> Result<(Action<'static>, Precondition), CanonicalError> {
    Ok(match merge(fields, &canonical::decode(there)?) {
        Merge::Nothing => (Action::Nothing, Precondition::None),
        Merge::Patch { fields, mask } => (
            Action::Patch {
                body: canonical::encode(&fields),
                mask: mask.names(),
            },
            precondition,
        ),
        // It was put together from what was read, so it must still be that.
        Merge::Whole(fields) => (
            Action::Put(Cow::Owned(canonical::encode(&fields))),
            Precondition::UpdateTime(update_time),
        ),
    })
}

fn patch(mask: &FieldMask, fields: &Fields) -> Action<'static> {
    match mask.is_empty() {
        true => Action::Nothing,
        false => Action::Patch {
            body: canonical::encode(&mask.pick(fields)),
            mask: mask.names(),
        },
    }
}

/// What became of documents, by fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fates {
    /// Documents that are new in the database, where it was looked at.
    pub created: u64,
    /// Documents that were there with other fields, where it was looked at.
    pub changed: u64,
    /// Documents that have what they are to have.
    pub unchanged: u64,
    /// Documents that exist and are left alone for that.
    pub existing: u64,
    /// Documents that do not exist, of which only some fields are restored.
    pub left_out: u64,
    /// Documents that were changed too late and are left alone.
    pub conflicts: u64,
    /// Documents that the snapshot does not have and that are deleted.
    pub deleted: u64,
}

impl Fates {
    pub(crate) fn note(&mut self, fate: Fate) {
        let count = match fate {
            Fate::Written => return,
            Fate::Created => &mut self.created,
            Fate::Changed => &mut self.changed,
            Fate::Unchanged => &mut self.unchanged,
            Fate::Existing => &mut self.existing,
            Fate::LeftOut => &mut self.left_out,
            Fate::Conflict => &mut self.conflicts,
            Fate::Deleted => &mut self.deleted,
        };
        *count += 1;
    }
}

impl std::ops::AddAssign for Fates {
    fn add_assign(&mut self, other: Self) {
        self.created += other.created;
        self.changed += other.changed;
        self.unchanged += other.unchanged;
        self.existing += other.existing;
        self.left_out += other.left_out;
        self.conflicts += other.conflicts;
        self.deleted += other.deleted;
    }
}
