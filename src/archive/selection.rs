//! Which documents a snapshot is of: the whole database, some root collections, some collection groups.

use serde::{Deserialize, Serialize};

use crate::document::{CollectionPath, DocumentPath, KeyRange};

/// The documents that a snapshot claims to be complete for. Both lists empty: the whole database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// These collections with everything below them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collections: Vec<CollectionPath>,
    /// Documents whose collection has one of these ids, at any depth.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collection_groups: Vec<String>,
}

impl Selection {
    /// The whole database.
    pub fn all() -> Self {
        Self::default()
    }

    /// Collections and groups, in the one form in which equal selections are equal.
    pub fn new(mut collections: Vec<CollectionPath>, mut collection_groups: Vec<String>) -> Self {
        collections.sort();
        collections.dedup();
        collection_groups.sort();
        collection_groups.dedup();
        Self {
            collections,
            collection_groups,
        }
    }

    /// Whether nothing is left out.
    pub fn is_all(&self) -> bool {
        self.collections.is_empty() && self.collection_groups.is_empty()
    }

    /// The key ranges that hold every selected document, ascending and apart. Collection groups may be anywhere.
    pub fn key_ranges(&self) -> Vec<KeyRange> {
        if self.is_all() || !self.collection_groups.is_empty() {
            return vec![KeyRange::all()];
        }
        KeyRange::merge(self.collections.iter().map(CollectionPath::key_range).collect())
    }

    /// What must be read of a range to see every selected document in it: parts of it, ascending and apart, and the collection
    /// groups that are selected there; none of them: everything in the part is.
    pub fn parts(&self, range: &KeyRange) -> Vec<(KeyRange, &[String])> {
        if self.is_all() {
            return vec![(range.clone(), &[])];
        }
        let whole = KeyRange::merge(self.collections.iter().map(CollectionPath::key_range).collect());
        let boundaries = whole
            .iter()
            .flat_map(|whole| [&whole.start, &whole.end])
            .flatten();
        let parts = range.cut_at(boundaries).into_iter().map(|part| {
            let is_whole = whole.iter().any(|whole| !whole.intersection(&part).is_empty());
            let groups = if is_whole {
                &[][..]
            } else {
                &self.collection_groups
            };
            (is_whole || !groups.is_empty()).then_some((part, groups))
        });
        parts.flatten().collect()
    }

    /// Whether a document belongs to the selection. A key that is none does not.
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.is_all() || self.collections.iter().any(|path| path.key_range().contains(key)) {
            return true;
        }
        if self.collection_groups.is_empty() {
            return false;
        }
        DocumentPath::from_key(key).is_ok_and(|path| {
            self.collection_groups
                .iter()
                .any(|group| group == path.collection_group())
        })
    }
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_all() {
            return f.write_str("the whole database");
        }
        let names: Vec<String> = self
            .collections
            .iter()
            .map(ToString::to_string)
            .chain(
                self.collection_groups
                    .iter()
                    .map(|group| format!("group {group}")),
            )
            .collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::DocumentKey;

    fn collection(path: &str) -> CollectionPath {
        CollectionPath::parse(path).unwrap()
    }

    fn key(path: &str) -> Option<DocumentKey> {
        Some(DocumentPath::parse(path).unwrap().key())
    }

    #[test]
    fn parts_are_what_must_be_read() {
        let all = KeyRange::all();
        assert_eq!(Selection::all().parts(&all), [(all.clone(), &[][..])]);
        let [b, c] = ["b", "c"].map(|path| collection(path).key_range());
        let collections = Selection::new(vec![collection("c"), collection("b")], vec![]);
        assert_eq!(
            collections.parts(&all),
            [(b.clone(), &[][..]), (c.clone(), &[][..])]
        );
        let groups = ["x".to_owned()];
        let group = Selection::new(vec![], groups.to_vec());
        assert_eq!(group.parts(&all), [(all.clone(), &groups[..])]);
        let both = Selection::new(vec![collection("b"), collection("b/1/x")], groups.to_vec());
        let range = KeyRange {
            start: key("a/1"),
            end: key("b/7"),
        };
        let [before, inside] =
            [(&range.start, &b.start), (&b.start, &range.end)].map(|(start, end)| KeyRange {
                start: start.clone(),
                end: end.clone(),
            });
        assert_eq!(both.parts(&range), [(before, &groups[..]), (inside, &[][..])]);
        assert_eq!(both.parts(&all).len(), 3);
        let past = KeyRange {
            start: c.end,
            end: None,
        };
        assert_eq!(collections.parts(&past), []);
    }
}
