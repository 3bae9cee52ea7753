//! A section: the parent's records in an interval of names, and what the field told of it, in one order.

use std::collections::HashMap;
use std::ops::Range;

use super::asked::Found;
use crate::archive::{RecordBatch, RecordRef};
use crate::backup::BackupError;
use crate::backup::compared::Changes;
use crate::document::key::segment_len;
use crate::document::{DocumentKey, DocumentPath, DocumentRef, KeyRange};

/// The documents that there should be in an interval.
pub(super) struct Section {
    pub(super) range: KeyRange,
    /// The collection groups that are selected there; none: all.
    pub(super) selected: Vec<String>,
    records: RecordBatch,
    found: Vec<Found>,
    /// Ascending by key.
    items: Vec<Item>,
    /// The ids of the collection groups that the parent has there.
    pub(super) groups: Vec<String>,
}

/// A document that there should be: one of the parent, one that the field told of, or both.
#[derive(Clone, Copy)]
struct Item {
    record: Option<usize>,
    found: Option<usize>,
    /// Its collection group.
    group: usize,
}

impl Section {
    /// Nothing, right before a range.
    pub(super) fn before(start: Option<DocumentKey>) -> Self {
        Self {
            range: KeyRange {
                start: start.clone(),
                // The very beginning.
                end: Some(start.unwrap_or_else(|| DocumentKey::from_bytes([]))),
            },
            selected: Vec::new(),
            records: RecordBatch::default(),
            found: Vec::new(),
            items: Vec::new(),
            groups: Vec::new(),
        }
    }

    pub(super) fn new(
        range: KeyRange,
        selected: Vec<String>,
        records: RecordBatch,
    ) -> Result<Self, BackupError> {
        let mut groups = Groups::default();
        let mut items = Vec::with_capacity(records.len());
        for (number, record) in records.iter().enumerate() {
            items.push(Item {
                record: Some(number),
                found: None,
                group: groups.number(record.key)?,
            });
        }
        Ok(Self {
            range,
            selected,
            records,
            found: Vec::new(),
            items,
            groups: groups.ids,
        })
    }

    /// Adds what the field told, ascending by key.
    pub(super) fn add(&mut self, found: Vec<Found>) {
        let mut items = Vec::with_capacity(self.items.len() + found.len());
        let mut of_parent = std::mem::take(&mut self.items).into_iter().peekable();
        for (number, new) in found.iter().enumerate() {
            let key = |item: &Item| item.record.and_then(|record| self.records.get(record));
            let is_before = |item: &Item| key(item).is_some_and(|record| *record.key < *new.key);
            while let Some(item) = of_parent.next_if(is_before) {
                items.push(item);
            }
            let same = of_parent.next_if(|item| key(item).is_some_and(|record| *record.key == *new.key));
            items.push(Item {
                record: same.and_then(|item| item.record),
                found: Some(number),
                group: new.group,
            });
        }
        items.extend(of_parent);
        self.items = items;
        self.found = found;
    }

    /// How many documents there should be.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// How many of them the parent has.
    pub(super) fn parents(&self) -> usize {
        self.records.len()
    }

    /// What the parent has of a name.
    pub(super) fn record(&self, key: &[u8]) -> Option<RecordRef<'_>> {
        let (mut low, mut high) = (0, self.records.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let record = self.records.get(middle)?;
            match record.key.cmp(key) {
                std::cmp::Ordering::Equal => return Some(record),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn key(&self, item: usize) -> Option<&[u8]> {
        let item = self.items.get(item)?;
        match (item.record, item.found) {
            (Some(record), _) => self.records.get(record).map(|record| record.key),
            (None, found) => found
                .and_then(|found| self.found.get(found))
                .map(|found| &found.key[..]),
        }
    }

    /// The interval from the first of some items to the one that follows the last. The first item's begins where the section
    /// does, the last one's ends where it does.
    pub(super) fn range_of(&self, items: &Range<usize>) -> KeyRange {
        let at = |item: usize| self.key(item).map(DocumentKey::from_bytes);
        KeyRange {
            start: match items.start {
                0 => self.range.start.clone(),
                start => at(start),
            },
            end: match items.end {
                end if end >= self.items.len() => self.range.end.clone(),
                end => at(end),
            },
        }
    }

    /// How many of some items are in a group; without one, all.
    pub(super) fn expected(&self, items: &Range<usize>, group: Option<usize>) -> u64 {
        let Some(group) = group else {
            return items.len() as u64;
        };
        let of_group = self.items[items.clone()]
            .iter()
            .filter(|item| item.group == group);
        of_group.count() as u64
    }

    /// The parent's records among some items.
    pub(super) fn records_of(&self, items: &Range<usize>) -> RecordBatch {
        let mut batch = RecordBatch::default();
        let records = self.items[items.clone()].iter().filter_map(|item| item.record);
        for record in records.filter_map(|record| self.records.get(record)) {
            batch.push(record);
        }
        batch
    }

    /// Gives out items that are what they should be, until there is enough to do. Says which is the next one.
    pub(super) fn take(&self, items: Range<usize>, changes: &mut Changes) -> Result<usize, BackupError> {
        for at in items.clone() {
            if changes.is_full() {
                changes.cursor = at
                    .checked_sub(1)
                    .and_then(|last| self.key(last))
                    .map(DocumentKey::from_bytes);
                return Ok(at);
            }
            let item = self.items[at];
            let record = item.record.and_then(|record| self.records.get(record));
            let found = item.found.and_then(|found| self.found.get(found));
            match (record, found) {
                (Some(record), Some(found)) if !found.is_as(&record) => found.give(record.length(), changes),
                (Some(record), _) => changes.compared.unchanged(record.key, record.length())?,
                (None, Some(found)) => {
                    changes.compared.added();
                    found.give(0, changes);
                }
                (None, None) => {}
            }
        }
        changes.cursor = items
            .end
            .checked_sub(1)
            .and_then(|last| self.key(last))
            .map(DocumentKey::from_bytes);
        Ok(items.end)
    }
}

impl Found {
    /// Whether the parent has the document as it is.
    pub(super) fn is_as(&self, record: &RecordRef<'_>) -> bool {
        (record.create_time, record.update_time) == (self.create_time, self.update_time)
    }

    /// Has it written, or fetched first, `length` being what it takes, more or less.
    fn give(&self, length: u32, changes: &mut Changes) {
        match &self.body {
            Some(body) => changes.documents.push(DocumentRef {
                key: &self.key,
                create_time: self.create_time,
                update_time: self.update_time,
                body,
            }),
            None => {
                changes.wanted_bytes += self.key.len() + length as usize;
                changes.wanted.push(self.path.clone());
            }
        }
    }
}

/// The collection groups of keys.
#[derive(Default)]
struct Groups {
    ids: Vec<String>,
    numbers: HashMap<String, usize>,
    /// The key of the last document's collection: most documents follow one of the same.
    collection: Vec<u8>,
    last: usize,
}

impl Groups {
    fn number(&mut self, key: &[u8]) -> Result<usize, BackupError> {
        let id = key.strip_prefix(&self.collection[..]);
        if !self.collection.is_empty() && id.is_some_and(|id| segment_len(id) == Some(id.len())) {
            return Ok(self.last);
        }
        let path = DocumentPath::from_key(key)?;
        let group = path.collection_group();
        self.last = match self.numbers.get(group) {
            Some(&number) => number,
            None => {
                self.ids.push(group.to_owned());
                self.numbers.insert(group.to_owned(), self.ids.len() - 1);
                self.ids.len() - 1
            }
        };
        let (mut at, mut id) = (0, 0);
        while let Some(length) = segment_len(&key[at..]) {
            id = at;
            at += length;
        }
        self.collection.clear();
        self.collection.extend_from_slice(&key[..id]);
        Ok(self.last)
    }
}
