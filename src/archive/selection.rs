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
