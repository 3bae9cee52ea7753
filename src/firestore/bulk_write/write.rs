//! What a write is: a document's path, what becomes of it, and on which condition.

use tonic::Code;

use crate::document::{DocumentPath, Timestamp};

/// One write, as it is given to a [`BulkWriter`](super::BulkWriter) or a [`WriteEncoder`](super::WriteEncoder).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Write<'a> {
    /// The document.
    pub path: &'a DocumentPath,
    /// What becomes of it.
    pub change: Change<'a>,
    /// When it is refused.
    pub precondition: Precondition,
}

impl<'a> Write<'a> {
    /// Replaces the document, or creates it.
    pub fn put(path: &'a DocumentPath, body: &'a [u8]) -> Self {
        Self {
            path,
            change: Change::Put { body },
            precondition: Precondition::None,
        }
    }

    /// Creates the document; one that exists is a failure with ALREADY_EXISTS.
    pub fn create(path: &'a DocumentPath, body: &'a [u8]) -> Self {
        Self::put(path, body).on(Precondition::MustNotExist)
    }

    /// Sets the fields that `mask` names to what `body` has for them; those that `body` lacks are removed, the others stay.
    /// The paths are written as Firestore writes them: dots between the steps, backticks around what is no identifier.
    pub fn patch(path: &'a DocumentPath, body: &'a [u8], mask: &'a [String]) -> Self {
        Self {
            path,
            change: Change::Patch { body, mask },
            precondition: Precondition::None,
        }
    }

    /// Deletes the document; one that does not exist counts as deleted.
    pub fn delete(path: &'a DocumentPath) -> Self {
        Self {
            path,
            change: Change::Delete,
            precondition: Precondition::None,
        }
    }

    /// The same on a condition.
    pub fn on(self, precondition: Precondition) -> Self {
        Self { precondition, ..self }
    }
}

/// What becomes of a document. Bodies are in canonical form; relative references in them come to point into the writer's
/// database.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change<'a> {
    /// It has these fields and no others.
    Put {
        /// All fields.
        body: &'a [u8],
    },
    /// Some of its fields change.
    Patch {
        /// Their new values.
        body: &'a [u8],
        /// Which fields, the removed ones among them.
        mask: &'a [String],
    },
    /// It goes.
    Delete,
}

/// A [`Change`] that keeps what it is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedChange {
    /// See [`Change::Put`].
    Put {
        /// All fields.
        body: Vec<u8>,
    },
    /// See [`Change::Patch`].
    Patch {
        /// The new values.
        body: Vec<u8>,
        /// Which fields.
        mask: Vec<String>,
    },
    /// See [`Change::Delete`].
    Delete,
}

impl OwnedChange {
    /// To write it.
    pub fn as_change(&self) -> Change<'_> {
        match self {
            Self::Put { body } => Change::Put { body },
            Self::Patch { body, mask } => Change::Patch { body, mask },
            Self::Delete => Change::Delete,
        }
    }
}

/// What must hold of the stored document, or the write is refused and nothing changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// It does not exist; refused with ALREADY_EXISTS.
    MustNotExist,
    /// It exists; refused with NOT_FOUND.
    MustExist,
    /// It was last changed at this time, to the microsecond; refused with FAILED_PRECONDITION, or NOT_FOUND where it does not
    /// exist.
    UpdateTime(Timestamp),
}

/// A write that has failed for good.
#[derive(Clone, Debug, PartialEq)]
pub struct WriteFailure {
    /// Of which document.
    pub path: DocumentPath,
    /// Why, in gRPC's terms.
    pub code: Code,
    /// Why, in the server's words.
    pub reason: String,
    /// What was to become of it.
    pub change: OwnedChange,
    /// On which condition.
    pub precondition: Precondition,
}

impl WriteFailure {
    /// The fields that were to be written, in canonical form; `None` for a deletion.
    pub fn body(&self) -> Option<&[u8]> {
        match &self.change {
            OwnedChange::Put { body } | OwnedChange::Patch { body, .. } => Some(body),
            OwnedChange::Delete => None,
        }
    }
}
