//! The documents that a restore left alone because somebody else has changed them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::document::DocumentPath;

/// How many of them are named. All are counted.
const NAMED: usize = 1_000;

/// The first of them in path order, as many as one wants to see, whichever come first: a restore looks at distant parts of the
/// database at the same time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Conflicts(BTreeSet<DocumentPath>);

impl Conflicts {
    pub(crate) fn note(&mut self, path: &DocumentPath) {
        if self.0.len() < NAMED || self.0.last().is_some_and(|last| path < last) {
            self.0.insert(path.clone());
            if self.0.len() > NAMED {
                self.0.pop_last();
            }
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|path| self.note(path));
    }

    /// The names, in path order.
    pub(crate) fn paths(&self) -> Vec<DocumentPath> {
        self.0.iter().cloned().collect()
    }
}
