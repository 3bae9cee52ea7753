//! What is to become of a document: one write of a script, and what it makes of what is stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::draft::{Draft, DraftError, fields_onto, merge, remove_at, set_at, value_at};
use crate::document::{DocumentPath, Fields, Timestamp, Value, canonical, field_path_text};
use crate::migration::StoredDocument;

/// One write.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Makes the document, which must not be there.
    Create(BTreeMap<String, Draft>),
    /// Makes the document what this is, whatever is there.
    Set(BTreeMap<String, Draft>),
    /// Puts this over what is there, if anything.
    Merge(BTreeMap<String, Draft>),
    /// Changes fields of what is there.
    Update(Vec<(Vec<String>, Draft)>),
    /// Makes what is there what this is.
    Replace(BTreeMap<String, Draft>),
    /// The same, worked out already.
    Become(Replacement),
    /// Puts these very bytes, whatever is there.
    Copy(Bytes),
    /// Gives what is there a field that it does not have.
    AddField(Vec<String>, Draft),
    /// Moves a value within what is there, as it is.
    RenameField(Vec<String>, Vec<String>),
    /// Takes away what is there.
    Delete,
}

/// What is worked out of a change: the document that it is for, and what is to be written.
#[derive(Clone, Debug)]
pub(super) struct Replacement {
    pub(super) of: Arc<StoredDocument>,
    pub(super) after: After,
}

/// What a write makes of a document, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct After {
    /// The whole document in canonical form.
    pub(super) body: Bytes,
    /// What differs, where there is a document.
    pub(super) patch: Option<Patch>,
}

/// The top-level fields of a document that change.
#[derive(Clone, Debug)]
pub(super) struct Patch {
    /// Their field paths.
    pub(super) mask: Vec<String>,
    /// Those that are there afterwards, in canonical form.
    pub(super) body: Vec<u8>,
}

impl After {
    /// `None` where nothing would change.
    pub(super) fn of(before: Option<&Fields>, after: &Fields) -> Option<Self> {
        let patch = match before {
            Some(before) => Some(Patch::of(before, after)?),
            None => None,
        };
        Some(Self {
            body: canonical::encode(after).into(),
            patch,
        })
    }
}

impl Patch {
    fn of(before: &Fields, after: &Fields) -> Option<Self> {
        let changed = after
            .iter()
            .filter(|(name, value)| before.get(*name) != Some(value));
        let changed: Vec<(&String, &Value)> = changed.collect();
        let gone = before.keys().filter(|name| !after.contains_key(*name));
        let names = changed.iter().map(|(name, _)| *name).chain(gone);
        let mask: Vec<String> = names.map(|name| field_path_text([name.as_str()])).collect();
        if mask.is_empty() {
            return None;
        }
        let mut body = Vec::new();
        canonical::encode_entries(changed.into_iter(), &mut body);
        Some(Self { mask, body })
    }
}

/// Why a change cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum ChangeError {
    /// It needs a document.
    #[error("there is no such document")]
    Missing,
    /// It makes a new document, and there is one.
    #[error("the document exists already")]
    Exists,
    /// A value makes no sense there.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// What is stored cannot be understood.
    #[error("what is stored cannot be read: {0}")]
    Stored(#[from] canonical::CanonicalError),
    /// A renamed field would take the place of another.
    #[error("the document has a field by the new name already")]
    Taken,
}

/// What is known of a document that is to be written.
#[derive(Clone, Debug)]
pub(super) enum Base {
    /// Nothing.
    Unknown,
    /// There should be none.
    Absent,
    /// It was this when the script saw it.
    Stored(Arc<StoredDocument>),
}

/// What to do when the document has become something else since the script saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnConflict {
    /// Make the same change to what it has become.
    Again,
    /// The same, and nothing if it is gone: a scan found it, and there is nothing left to change.
    AgainIfThere,
    /// Give up: the change is right for what was seen and for nothing else.
    Never,
    /// Run the script's function with this number again, on what it has become.
    Rerun(u32),
}

impl OnConflict {
    /// Whether the same change can be made to whatever the document has become.
    pub(super) fn repeats(self) -> bool {
        matches!(self, Self::Again | Self::AgainIfThere)
    }
}

/// A write of a script.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) path: DocumentPath,
    pub(super) base: Base,
    pub(super) change: Change,
    pub(super) on_conflict: OnConflict,
    /// The JavaScript stack of the call.
    pub(super) site: Arc<str>,
}

impl Change {
    /// What it makes of a document, `None` for nothing.
    pub(super) fn apply(
        self,
        stored: Option<&Fields>,
        now: Timestamp,
    ) -> Result<Option<Fields>, ChangeError> {
        let existing = || stored.ok_or(ChangeError::Missing);
        Ok(Some(match self {
            Self::Create(_) if stored.is_some() => return Err(ChangeError::Exists),
            Self::Create(drafts) => fields_onto(drafts, None, now)?,
            Self::Set(drafts) => fields_onto(drafts, stored, now)?,
            Self::Merge(drafts) => {
                let mut fields = stored.cloned().unwrap_or_default();
                merge(drafts, &mut fields, now)?;
                fields
            }
            Self::Update(changes) => {
                let mut fields = existing()?.clone();
                for (path, draft) in changes {
                    set_at(&mut fields, &path, draft, now)?;
                }
                fields
            }
            Self::Replace(drafts) => fields_onto(drafts, Some(existing()?), now)?,
            Self::Become(replacement) => {
                existing()?;
                canonical::decode(&replacement.after.body)?
            }
            Self::Copy(body) => canonical::decode(&body)?,
            Self::AddField(path, draft) => {
                let mut fields = existing()?.clone();
                if value_at(&fields, &path).is_none() {
                    set_at(&mut fields, &path, draft, now)?;
                }
                fields
            }
            Self::RenameField(from, to) => {
                let mut fields = existing()?.clone();
                if let Some(value) = remove_at(&mut fields, &from) {
                    if value_at(&fields, &to).is_some() {
                        return Err(ChangeError::Taken);
                    }
                    set_at(&mut fields, &to, Draft::Value(value), now)?;
                }
                fields
            }
            Self::Delete => return Ok(None),
        }))
    }
}

/// Roughly the bytes that a draft takes.
pub(super) fn weight(draft: &Draft) -> usize {
    match draft {
        Draft::Value(value) => value_weight(value),
        Draft::Number(_) => 32,
        Draft::Array(drafts) => 32 + drafts.iter().map(weight).sum::<usize>(),
        Draft::Map(drafts) => map_weight(drafts),
        Draft::Operation(super::draft::Operation::ArrayUnion(drafts))
        | Draft::Operation(super::draft::Operation::ArrayRemove(drafts)) => {
            32 + drafts.iter().map(weight).sum::<usize>()
        }
        Draft::Operation(_) => 64,
    }
}

pub(super) fn map_weight(drafts: &BTreeMap<String, Draft>) -> usize {
    32 + drafts
        .iter()
        .map(|(key, draft)| key.len() + weight(draft))
        .sum::<usize>()
}

fn value_weight(value: &Value) -> usize {
    match value {
        Value::String(text) => 32 + text.len(),
        Value::Bytes(bytes) => 32 + bytes.len(),
        Value::Array(values) => 32 + values.iter().map(value_weight).sum::<usize>(),
        Value::Map(fields) => {
            32 + fields
                .iter()
                .map(|(key, value)| key.len() + value_weight(value))
                .sum::<usize>()
        }
        _ => 32,
    }
}

impl Write {
    /// Roughly the bytes that it takes.
    pub(super) fn weight(&self) -> usize {
        let change = match &self.change {
            Change::Create(drafts)
            | Change::Set(drafts)
            | Change::Merge(drafts)
            | Change::Replace(drafts) => map_weight(drafts),
            Change::Update(changes) => changes.iter().map(|(_, draft)| 32 + weight(draft)).sum(),
            Change::Become(replacement) => replacement.after.body.len(),
            Change::Copy(body) => body.len(),
            Change::AddField(_, draft) => weight(draft),
            Change::RenameField(..) | Change::Delete => 32,
        };
        let base = match &self.base {
            Base::Stored(stored) => stored.body.len(),
            _ => 0,
        };
        64 + self.path.as_str().len() + base + change
    }
}
