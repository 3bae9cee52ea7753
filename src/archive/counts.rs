//! Documents and bytes by collection, counted as records pass by.
//!
//! Most documents follow one of the same collection, so the count remembers the last one and compares a prefix; nothing is
//! allocated for a document.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::document::DocumentPath;
use crate::document::key::segment_len;

/// Collections counted by name; what comes beyond is counted under the empty name, which no collection has.
pub const MAX_COUNTED: usize = 100_000;

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Documents.
    pub documents: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

impl Count {
    /// Adds what another has.
    pub fn add(&mut self, other: Count) {
        self.documents += other.documents;
        self.bytes += other.bytes;
    }
}

/// Counts by name.
pub type Counts = BTreeMap<String, Count>;

/// Adds the counts of `more` to `counts`, within the bound on names.
pub fn add_counts(counts: &mut Counts, more: &Counts) {
    for (name, count) in more {
        let counted = counts.len() < MAX_COUNTED || counts.contains_key(name);
        let name = if counted { name.clone() } else { String::new() };
        counts.entry(name).or_default().add(*count);
    }
}

/// Counts by root collection and by collection group.
#[derive(Debug, Default)]
pub struct Tally {
    roots: Names,
    groups: Names,
    /// The key of the last document's collection, with where it is counted.
    collection: Vec<u8>,
    root: usize,
    group: usize,
}

#[derive(Debug, Default)]
struct Names {
    places: HashMap<Vec<u8>, usize>,
    counts: Vec<Count>,
}

impl Names {
    fn place(&mut self, segment: &[u8]) -> usize {
        if let Some(&place) = self.places.get(segment) {
            return place;
        }
        let segment = if self.places.len() < MAX_COUNTED {
            segment
        } else {
            &[]
        };
        let new = self.counts.len();
        let place = *self.places.entry(segment.to_vec()).or_insert(new);
        if place == new {
            self.counts.push(Count::default());
        }
        place
    }

    fn absorb(&mut self, other: Names) {
        for (segment, place) in other.places {
            let own = self.place(&segment);
            self.counts[own].add(other.counts[place]);
        }
    }

    fn named(&self) -> Counts {
        let mut counts = Counts::new();
        for (segment, &place) in &self.places {
            // A segment twice is a document's key.
            let name = DocumentPath::from_key(&[&segment[..], segment].concat())
                .map(|path| path.root_collection().to_owned())
                .unwrap_or_default();
            counts.entry(name).or_default().add(self.counts[place]);
        }
        counts
    }
}

impl Tally {
    /// Counts a document; `false` when the key is not one.
    pub fn add(&mut self, key: &[u8], body_len: usize) -> bool {
        let same = key
            .strip_prefix(&self.collection[..])
            .is_some_and(|id| !self.collection.is_empty() && segment_len(id) == Some(id.len()));
        if !same {
            let Some([root, group, collection]) = split(key) else {
                return false;
            };
            self.root = self.roots.place(root);
            self.group = self.groups.place(group);
            self.collection.clear();
            self.collection.extend_from_slice(collection);
        }
        let count = Count {
            documents: 1,
            bytes: body_len as u64,
        };
        self.roots.counts[self.root].add(count);
        self.groups.counts[self.group].add(count);
        true
    }

    /// Adds what another has counted.
    pub(crate) fn absorb(&mut self, other: Tally) {
        self.roots.absorb(other.roots);
        self.groups.absorb(other.groups);
    }

    /// The counts by root collection and by collection group.
    pub fn named(&self) -> (Counts, Counts) {
        (self.roots.named(), self.groups.named())
    }
}

/// The first segment, the last but one, and all but the last.
fn split(key: &[u8]) -> Option<[&[u8]; 3]> {
    let root = segment_len(key)?;
    let (mut group, mut at, mut end) = (0, root, root);
    loop {
        end += segment_len(&key[end..])?;
        if end == key.len() {
            return Some([&key[..root], &key[group..at], &key[..at]]);
        }
        group = end;
        end += segment_len(&key[end..])?;
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_are_those_of_the_paths(paths in proptest::collection::vec("([abé\0]{1,2}/([cd\0]|__id[1-3]__)/){0,2}[abé\0]/[cd]{1,2}", 0..40)) {
            let mut tally = Tally::default();
            let (mut roots, mut groups) = (Counts::new(), Counts::new());
            for path in &paths {
                let path = DocumentPath::parse(path.as_str()).unwrap();
                prop_assert!(tally.add(path.key().as_bytes(), 3));
                let one = Count { documents: 1, bytes: 3 };
                roots.entry(path.root_collection().to_owned()).or_default().add(one);
                groups.entry(path.collection_group().to_owned()).or_default().add(one);
            }
            prop_assert_eq!(tally.named(), (roots, groups));
        }

        #[test]
        fn any_bytes_are_counted_or_refused(key in proptest::collection::vec(0u8..4, 0..20)) {
            Tally::default().add(&key, 1);
        }
    }
}
