//! What ends a run from the database's side, while the script may be anywhere.

use std::sync::Arc;

use super::change::ChangeError;
use crate::document::DocumentPath;
use crate::firestore::Error;
use crate::migration::JournalError;

/// Why the run cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A write makes no sense on what is stored.
    #[error("cannot write `{path}`: {source}")]
    Change {
        path: DocumentPath,
        site: Arc<str>,
        source: ChangeError,
    },
    /// The database refused a write for good.
    #[error("the database refuses the write of `{path}`: {reason} ({code:?})")]
    Refused {
        path: DocumentPath,
        site: Arc<str>,
        code: tonic::Code,
        reason: String,
    },
    /// Somebody else changes a document all the time, or changed one that must stay as it was.
    #[error(
        "somebody else changed `{path}` while it was being written: {attempts} attempts met another version"
    )]
    Contended {
        path: DocumentPath,
        site: Arc<str>,
        attempts: u32,
    },
    /// So many documents were changed by others that they cannot all be kept in mind.
    #[error(
        "others change so many of the documents that are being transformed that it cannot be done beside them"
    )]
    TooContended,
    /// The database failed.
    #[error("{}", with_causes(.0))]
    Database(Error),
    /// Before-images could not be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A call took longer than it may.
    #[error("{0} was not answered within the time that a call may take")]
    Deadline(&'static str),
    /// All of it took longer than it may.
    #[error("the script took more than the {} s that it may", .0.as_secs_f64())]
    TotalTime(std::time::Duration),
    /// Somebody asked to stop.
    #[error("the script was asked to stop")]
    Stopped,
    /// A part of the engine has gone.
    #[error("the engine stopped by itself; please report this")]
    Gone,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

impl Failure {
    /// The JavaScript stack of the call that asked for it.
    pub(super) fn site(&self) -> Option<&str> {
        match self {
            Self::Change { site, .. } | Self::Refused { site, .. } | Self::Contended { site, .. } => {
                Some(site)
            }
            _ => None,
        }
    }
}

/// An error and what caused it, in one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
