//! The documents that a restore left alone because somebody else has changed them.

use std::sync::{Arc, Mutex, PoisonError};

use crate::document::DocumentPath;

/// How many of them are named. All are counted.
const NAMED: usize = 1_000;

/// Names of documents, as many as one wants to see. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conflicts(Arc<Mutex<Vec<DocumentPath>>>);

impl Conflicts {
    pub(crate) fn note(&self, path: &DocumentPath) {
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < NAMED {
            named.push(path.clone());
        }
    }

    /// The names, in path order.
    pub(crate) fn paths(&self) -> Vec<DocumentPath> {
        let mut named = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        named.sort();
        named.dedup();
        named
    }
}
