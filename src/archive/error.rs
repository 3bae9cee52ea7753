//! What can go wrong with an archive, sorted by what the caller does about it, and how damage is described.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::SnapshotId;
use crate::document::{DocumentKey, DocumentPath, KeyRange};
use crate::store::StoreError;

/// A result of the archive.
pub type Result<T, E = ArchiveError> = std::result::Result<T, E>;

/// An operation on an archive that failed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no `repository.json`.
    #[error("{location} is not a Firebank repository. Create one with `firebank init`")]
    NotARepository {
        /// Where it was looked for.
        location: String,
    },
    /// There is a repository already.
    #[error("{location} is a repository already; it was left as it is")]
    AlreadyARepository {
        /// Where.
        location: String,
    },
    /// A new repository was asked for among foreign files.
    #[error("{location} holds `{found}`, which is no part of a repository. Choose an empty folder or prefix")]
    NotEmpty {
        /// Where.
        location: String,
        /// One of the foreign objects.
        found: String,
    },
    /// A format version or a needed feature that this version does not know.
    #[error("`{object}` was made by a newer Firebank ({what}). Use that version or a later one")]
    Newer {
        /// The object.
        object: String,
        /// What is not known here.
        what: String,
    },
    /// An object is not what it should be.
    #[error("{0}")]
    Damaged(Box<Damage>),
    /// No snapshot of that name.
    #[error("no snapshot matches `{wanted}`. {hint}")]
    UnknownSnapshot {
        /// What was asked for.
        wanted: String,
        /// What there is.
        hint: String,
    },
    /// More than one snapshot's id starts like this.
    #[error(
        "`{wanted}` matches more than one snapshot: {}. Give more digits",
        list(candidates)
    )]
    AmbiguousSnapshot {
        /// What was asked for.
        wanted: String,
        /// What it may mean.
        candidates: Vec<SnapshotId>,
    },
    /// The snapshot was given up by retention, before or while it was read.
    #[error("snapshot {snapshot} was forgotten; its data may be gone already. Choose another snapshot")]
    Forgotten {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// What an object refers to cannot be told, so nothing may be deleted.
    #[error("nothing is deleted while it is not known what `{object}` needs: {source}. {advice}")]
    CannotSweep {
        /// The object.
        object: String,
        /// Why not.
        source: Box<ArchiveError>,
        /// What to do.
        advice: String,
    },
    /// The store refuses to delete what nothing needs any more.
    #[error(
        "{refused} could not be deleted, `{first}` first: {source}. Deleting is the right that `clean` needs beyond those of a \
         backup; what is left harms nobody, and the next `clean` tries again"
    )]
    NotDeleted {
        /// How many were refused.
        refused: u64,
        /// The first of them.
        first: String,
        /// What the store said of it.
        source: StoreError,
    },
    /// The session was given up by somebody, perhaps because it seemed dead.
    #[error("session {session} was aborted{reason}. Start a new one")]
    Aborted {
        /// The session.
        session: SnapshotId,
        /// Why, with a colon before it, or nothing.
        reason: String,
    },
    /// The session is at its end: the snapshot of its id is what came of it.
    #[error("session {session} is committed already: snapshot {session} is what came of it")]
    CommittedAlready {
        /// The session, and the snapshot.
        session: SnapshotId,
    },
    /// A snapshot to reuse from is gone.
    #[error("snapshot {pin}, which session {session} wanted to build upon, {what}. Start again without it")]
    PinGone {
        /// The session.
        session: SnapshotId,
        /// The snapshot.
        pin: SnapshotId,
        /// Was forgotten, or was never committed.
        what: &'static str,
    },
    /// Another worker of the session has pinned other snapshots than the one to build upon.
    #[error("another worker of session {session} has chosen other snapshots to build upon: start again")]
    OtherPins {
        /// The session.
        session: SnapshotId,
    },
    /// A key did not come after the one before it.
    #[error("documents must come in ascending order, but {next} came after {previous}")]
    OutOfOrder {
        /// The key before.
        previous: String,
        /// The key that came.
        next: String,
    },
    /// A document is larger than the archive takes.
    #[error("{key} {what}")]
    TooLarge {
        /// The document.
        key: String,
        /// Which limit.
        what: String,
    },
    /// The finished ranges do not cover the selection exactly.
    #[error("session {session} cannot be committed: {what}")]
    Incomplete {
        /// The session.
        session: SnapshotId,
        /// Where a range is missing or double.
        what: String,
    },
    /// The caller broke a rule of the interface.
    #[error("{0}")]
    Misuse(String),
    /// A worker thread stopped, because of a defect or because the runtime shuts down.
    #[error("a worker thread stopped: {0}")]
    Worker(String),
}

fn list(ids: &[SnapshotId]) -> String {
    let shown: Vec<String> = ids.iter().take(10).map(ToString::to_string).collect();
    match ids.len().saturating_sub(10) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

impl ArchiveError {
    /// An object that is not what it should be.
    pub fn damaged(object: impl Into<String>, kind: DamageKind, what: impl Into<String>) -> Self {
        Self::Damaged(Box::new(Damage {
            object: object.into(),
            kind,
            what: what.into(),
            span: None,
            affected: Vec::new(),
        }))
    }

    /// The damage that the error tells of, where it does: a missing or cut object is damage as well.
    pub fn into_damage(self) -> Result<Damage> {
        match self {
            Self::Damaged(damage) => Ok(*damage),
            Self::Store(StoreError::NotFound { name }) => Ok(Damage::new(
                name,
                DamageKind::Missing,
                "the object does not exist",
            )),
            Self::Store(error @ (StoreError::OutOfRange { .. } | StoreError::TooLarge { .. })) => {
                let what = error.to_string();
                match error {
                    StoreError::OutOfRange { name, .. } | StoreError::TooLarge { name, .. } => {
                        Ok(Damage::new(name, DamageKind::WrongSize, what))
                    }
                    error => Err(Self::Store(error)),
                }
            }
            other => Err(other),
        }
    }
}

impl From<tokio::task::JoinError> for ArchiveError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Worker(error.to_string())
    }
}

/// What sort of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageKind {
    /// The object does not exist.
    Missing,
    /// The object is longer or shorter than it was written.
    WrongSize,
    /// A checksum or hash does not match: bytes have changed.
    Checksum,
    /// The bytes are intact as far as is known but say something impossible.
    Malformed,
    /// Two objects disagree: counts, order, bounds.
    Inconsistent,
    /// A document's body is not what its index record says.
    Document,
}

/// One thing that is wrong with an archive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Damage {
    /// The object's name.
    pub object: String,
    /// What sort.
    pub kind: DamageKind,
    /// What is wrong, in words.
    pub what: String,
    /// The keys that may be affected, where it is known.
    #[serde(skip)]
    pub span: Option<KeyRange>,
    /// The collections that the span touches: root collections, or the collection when it is one.
    pub affected: Vec<String>,
}

impl Damage {
    /// Damage of an object whose place among the keys is not known yet.
    pub fn new(object: impl Into<String>, kind: DamageKind, what: impl Into<String>) -> Self {
        Self {
            object: object.into(),
            kind,
            what: what.into(),
            span: None,
            affected: Vec::new(),
        }
    }

    /// Says which keys are affected, from the first to the last (both belong to them).
    pub fn within(mut self, first: &[u8], last: &[u8]) -> Self {
        if self.span.is_none() {
            let mut end = last.to_vec();
            end.push(0);
            self.span = Some(KeyRange {
                start: Some(DocumentKey::from_bytes(first)),
                end: Some(DocumentKey::from_bytes(end)),
            });
            self.affected = affected(first, last);
        }
        self
    }
}

impl Damage {
    /// Widens the affected keys by those from `first` to `last`.
    pub(crate) fn widen(self, first: &[u8], last: &[u8]) -> Self {
        let Some(KeyRange {
            start: Some(start),
            end: Some(end),
        }) = self.span.clone()
        else {
            return self.within(first, last);
        };
        let (start, end) = (start.as_bytes(), end.as_bytes());
        // The end is a last key with a zero after it.
        let end = &end[..end.len().saturating_sub(1)];
        Self { span: None, ..self }.within(start.min(first), end.max(last))
    }
}

/// The collections between two documents, as far as the two alone tell.
fn affected(first: &[u8], last: &[u8]) -> Vec<String> {
    let (Ok(first), Ok(last)) = (DocumentPath::from_key(first), DocumentPath::from_key(last)) else {
        return Vec::new();
    };
    if first.collection() == last.collection() {
        return vec![first.collection().to_string()];
    }
    match (first.root_collection(), last.root_collection()) {
        (a, b) if a == b => vec![a.to_owned()],
        (a, b) => vec![a.to_owned(), b.to_owned()],
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is damaged: {}", self.object, self.what)?;
        if !self.affected.is_empty() {
            // Two are the ends of what lies between them.
            let between = if self.affected.len() == 2 { " … " } else { ", " };
            write!(f, " (in {})", self.affected.join(between))?;
        }
        Ok(())
    }
}

/// A key for a message: the path where it has one.
pub(crate) fn show_key(key: &[u8]) -> String {
    match DocumentPath::from_key(key) {
        Ok(path) => format!("`{path}`"),
        Err(_) => format!("key 0x{}", hex::encode(&key[..key.len().min(64)])),
    }
}
