//! What a restore does with one document: the modes, and all else that decides.
//!
//! | the database has the document | overwrite | create-only | skip-identical | mirror | merge |
//! | --- | --- | --- | --- | --- | --- |
//! | not at all | creates | creates | creates | creates | creates |
//! | with the same fields | writes it again | leaves it | leaves it | leaves it | leaves it |
//! | with other fields | replaces it | leaves it | replaces it | replaces it | writes what differs, keeps what only the database has |
//! | and the snapshot does not | leaves it | leaves it | leaves it | deletes it | leaves it |
//!
//! With a time since which documents must be unmodified, one that was changed later and would be changed is a conflict: it is
//! left alone and listed, whatever the mode. With fields that are named, only these are written, and a document that the database does not have
//! is left out. Overwrite and create-only need not read the database for any of this; the others do, a read for a document.
//!
//! Documents are written at their own paths and nowhere above: a missing document that only has subcollections stays missing.

use std::borrow::Cow;

use super::{References, RestoreError};
use crate::document::field_mask::{Merge, merge};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing.
    Nothing,
    /// The documents that are there.
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
        /// Its fields in canonical form.
        body: &'a [u8],
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
            (RestoreMode::Overwrite | RestoreMode::CreateOnly, Some(_)) => Look::Documents,
        }
    }

    /// Whether a document with the snapshot's body, last changed then, is left alone for that.
    pub(crate) fn skips_equal_body(&self, update_time: Timestamp) -> bool {
        let leaves = self.skips_identical() || self.is_too_new(update_time);
        self.fields.is_none() && self.references.is_plain() && leaves
    }

    /// Whether a document that a plan leaves alone is left alone only once its write is refused, which is billed.
    pub(crate) fn sends_anyway(&self, fate: Fate) -> bool {
        self.look() == Look::Nothing && matches!(fate, Fate::Existing | Fate::LeftOut)
    }

    /// Bytes of the fields that are sent of such a document, in canonical form.
    pub(crate) fn sent_len(&self, body: &[u8]) -> Result<usize, CanonicalError> {
        match &self.fields {
            None => Ok(body.len()),
            Some(mask) => Ok(canonical::encode(&mask.pick(&canonical::decode(body)?)).len()),
        }
    }

    fn skips_identical(&self) -> bool {
        matches!(
            self.mode,
            RestoreMode::SkipIdentical | RestoreMode::Mirror | RestoreMode::Merge
        )
    }

    /// Whether a document that exists was changed too late.
    pub(crate) fn is_too_new(&self, update_time: Timestamp) -> bool {
        self.unmodified_since.is_some_and(|since| update_time > since)
    }

    /// What is known of a document's fate without its fields.
    pub(crate) fn known_fate(&self, found: &Found<'_>) -> Option<Fate> {
        match found {
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
        let decision = self.compare(body, found)?;
        let too_new = matches!(found, Found::There { update_time, .. } if self.is_too_new(update_time));
        Ok(match decision.fate {
            Fate::Unchanged if too_new => Decision::leave(Fate::Unchanged),
            _ if too_new => Decision::leave(Fate::Conflict),
            _ => decision,
        })
    }

    /// The same, whenever the document was changed.
    fn compare<'a>(&self, body: Cow<'a, [u8]>, found: Found<'_>) -> Result<Decision<'a>, CanonicalError> {
        let mut precondition = self.precondition(&found);
        let there = match found {
            Found::There { body, update_time } => Some((body, update_time)),
            Found::Missing | Found::Unknown => None,
        };
        let (same, action) = match (&self.fields, there) {
            (fields, Some((there, update_time))) if self.mode == RestoreMode::Merge => {
                let from = canonical::decode(&body)?;
                let from = fields
                    .as_ref()
                    .map_or_else(|| from.clone(), |mask| mask.pick(&from));
                let action = match merge(&from, &canonical::decode(there)?) {
                    Merge::Nothing => Action::Nothing,
                    Merge::Patch { fields, mask } => Action::Patch {
                        body: canonical::encode(&fields),
                        mask: mask.names(),
                    },
                    Merge::Whole(fields) => {
                        // It was put together from what was read, so it must still be that.
                        precondition = Precondition::UpdateTime(update_time);
                        Action::Put(Cow::Owned(canonical::encode(&fields)))
                    }
                };
                (action == Action::Nothing, action)
            }
            (None, there) => (there.is_some_and(|(there, _)| *there == *body), Action::Put(body)),
            (Some(mask), there) => {
                let fields = canonical::decode(&body)?;
                let same = match there {
                    Some((there, _)) => mask.agree(&fields, &canonical::decode(there)?),
                    None => false,
                };
                (same, patch(mask, &fields))
            }
        };
        let fate = match found {
            _ if same => Fate::Unchanged,
            Found::Unknown => Fate::Written,
            Found::Missing => Fate::Created,
            Found::There { .. } => Fate::Changed,
        };
        Ok(match same && self.skips_identical() {
            true => Decision::leave(fate),
            false => Decision {
                fate,
                action,
                precondition,
            },
        })
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

fn patch(mask: &FieldMask, fields: &Fields) -> Action<'static> {
    Action::Patch {
        body: canonical::encode(&mask.pick(fields)),
        mask: mask.names(),
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
    fn of(&mut self, fate: Fate) -> Option<&mut u64> {
        Some(match fate {
            Fate::Written => return None,
            Fate::Created => &mut self.created,
            Fate::Changed => &mut self.changed,
            Fate::Unchanged => &mut self.unchanged,
            Fate::Existing => &mut self.existing,
            Fate::LeftOut => &mut self.left_out,
            Fate::Conflict => &mut self.conflicts,
            Fate::Deleted => &mut self.deleted,
        })
    }

    pub(crate) fn note(&mut self, fate: Fate) {
        if let Some(count) = self.of(fate) {
            *count += 1;
        }
    }

    /// Uncounts a document, because it did not come to that.
    pub(crate) fn take_back(&mut self, fate: Fate) {
        if let Some(count) = self.of(fate) {
            *count = count.saturating_sub(1);
        }
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
