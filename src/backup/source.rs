//! What tells the changes of a range: a comparison with the parent, or a field and counts.

use std::sync::Arc;

use super::BackupError;
use super::changed::{Asking, Changed};
use super::compared::{Changes, Comparer, Comparison};
use crate::archive::ReadMode;
use crate::document::{DocumentKey, KeyRange};

/// Where changes come from.
pub(super) enum Source {
    /// Names or whole documents, compared with the parent's.
    Compared(Box<Comparer>),
    /// A field that tells of changes, and counts.
    Changed(Box<Changed>),
}

impl Source {
    /// Of a range, what comes after a document, if one is given.
    pub(super) fn new(
        comparison: Comparison,
        asking: Option<&Arc<Asking>>,
        range: KeyRange,
        after: Option<&DocumentKey>,
        mode: ReadMode,
    ) -> Self {
        match (asking, mode) {
            (Some(asking), ReadMode::Changed) => {
                let changed = Changed::new(comparison, Arc::clone(asking), range, after);
                Self::Changed(Box::new(changed))
            }
            _ => Self::Compared(Box::new(Comparer::new(comparison, range, after, mode))),
        }
    }

    /// The next changes; `None` at the end of the range.
    pub(super) async fn next(&mut self) -> Result<Option<Changes>, BackupError> {
        match self {
            Self::Compared(comparer) => comparer.next().await,
            Self::Changed(changed) => changed.next().await,
        }
    }

    /// What is left to be read for sure, past all that is in memory.
    pub(super) fn rest(&self) -> KeyRange {
        match self {
            Self::Compared(comparer) => comparer.rest(),
            Self::Changed(changed) => changed.rest(),
        }
    }

    /// Ends earlier: where the rest, or a part of it, begins.
    pub(super) fn shorten(&mut self, end: Option<DocumentKey>) {
        match self {
            Self::Compared(comparer) => comparer.shorten(end),
            Self::Changed(changed) => changed.shorten(end),
        }
    }
}
