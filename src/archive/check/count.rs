//! The documents that a snapshot shows, counted as the merge goes by, and held against what the snapshot says.

use super::DamageReport;
use crate::archive::counts::Tally;
use crate::archive::error::{Damage, DamageKind, show_key};
use crate::archive::selection::Selection;
use crate::archive::snapshot::Snapshot;
use crate::document::KeyRange;

/// Counts the documents of a snapshot.
pub(super) struct Counter {
    selection: Selected,
    tally: Tally,
    documents: u64,
    bytes: u64,
    /// A key that is none of a document.
    stray: Option<Vec<u8>>,
}

/// A selection, made ready to be asked for every document.
enum Selected {
    All,
    Ranges(Vec<KeyRange>),
    Groups(Selection),
}

impl Selected {
    fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Ranges(ranges) => ranges.iter().any(|range| range.contains(key)),
            Self::Groups(selection) => selection.contains(key),
        }
    }
}

impl Counter {
    pub(super) fn new(selection: &Selection) -> Self {
        let selection = match selection {
            all if all.is_all() => Selected::All,
            ranges if ranges.collection_groups.is_empty() => Selected::Ranges(ranges.key_ranges()),
            groups => Selected::Groups(groups.clone()),
        };
        Self {
            selection,
            tally: Tally::default(),
            documents: 0,
            bytes: 0,
            stray: None,
        }
    }

    /// Counts a document, if the snapshot is of it.
    pub(super) fn add(&mut self, key: &[u8], length: u32) {
        if !self.selection.contains(key) {
            return;
        }
        self.documents += 1;
        self.bytes += u64::from(length);
        if !self.tally.add(key, length as usize) {
            self.stray.get_or_insert_with(|| key.to_vec());
        }
    }

    /// Documents counted so far.
    pub(super) fn documents(&self) -> u64 {
        self.documents
    }

    /// Says where the snapshot counts otherwise.
    pub(super) fn compare(self, snapshot: &Snapshot, report: &mut DamageReport) {
        let mut differ = |kind, what: String| {
            report.add(Damage::new(snapshot.id.snapshot_name(), kind, what));
        };
        if let Some(key) = self.stray {
            let what = format!("{} is not the key of a document", show_key(&key));
            differ(DamageKind::Malformed, what);
            return;
        }
        if (snapshot.documents, snapshot.body_bytes) != (self.documents, self.bytes) {
            let what = format!(
                "it counts {} documents with {} bytes, its runs hold {} with {}",
                snapshot.documents, snapshot.body_bytes, self.documents, self.bytes
            );
            differ(DamageKind::Inconsistent, what);
        }
        let (collections, groups) = self.tally.named();
        if snapshot.collections != collections || snapshot.collection_groups != groups {
            let what = "its counts by collection differ from what its runs hold".to_owned();
            differ(DamageKind::Inconsistent, what);
        }
    }
}
