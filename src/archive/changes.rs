//! What changed between two snapshots: a merge of the runs that they do not share.
//!
//! Two snapshots of nights that follow each other have nearly all of their stack in common. Only keys in the runs that one
//! has and the other has not can differ, so only those runs are read, and what the shared runs say of such a key is looked up
//! where one side says nothing. The cost is that of the change, not of the database; bodies are not read at all, for records
//! carry a hash.

use std::cmp::Ordering;
use std::sync::Arc;

use futures::stream::{self, Stream};

use super::error::Result;
use super::lookup::Lookup;
use super::merge::Merge;
use super::reader::{Run, SnapshotReader};
use super::record::{RecordBatch, RecordRef};
use crate::document::KeyRange;

/// Changes of a batch at most.
const BATCH_CHANGES: usize = 1024;

/// How a document differs between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Only the newer one has it.
    Added,
    /// Both have it, with other fields.
    Changed,
    /// Both have it, with the same fields; it was written again in between.
    Rewritten,
    /// Only the older one has it.
    Deleted,
}

/// One document that differs.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// How.
    pub kind: ChangeKind,
    /// Its record in the older snapshot; `None` when it was added.
    pub old: Option<RecordRef<'a>>,
    /// Its record in the newer snapshot; `None` when it was deleted.
    pub new: Option<RecordRef<'a>>,
}

impl<'a> Change<'a> {
    /// The document's key.
    pub fn key(&self) -> &'a [u8] {
        self.new.or(self.old).map_or(&[], |record| record.key)
    }
}

/// Changes in ascending order of their keys.
#[derive(Clone, Debug, Default)]
pub struct ChangeBatch {
    kinds: Vec<ChangeKind>,
    old: RecordBatch,
    new: RecordBatch,
}

impl ChangeBatch {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The changes in order.
    pub fn iter(&self) -> impl Iterator<Item = Change<'_>> {
        let (mut old, mut new) = (self.old.iter(), self.new.iter());
        self.kinds.iter().map(move |&kind| Change {
            kind,
            old: (kind != ChangeKind::Added).then(|| old.next()).flatten(),
            new: (kind != ChangeKind::Deleted).then(|| new.next()).flatten(),
        })
    }

    /// Takes the next document, as it stands in the snapshots; nothing when it is the same in both.
    fn push(&mut self, old: Option<RecordRef<'_>>, new: Option<RecordRef<'_>>) {
        let kind = match (old, new) {
            (None, None) => return,
            (None, Some(_)) => ChangeKind::Added,
            (Some(_), None) => ChangeKind::Deleted,
            (Some(old), Some(new)) if old.body_hash != new.body_hash || old.length() != new.length() => {
                ChangeKind::Changed
            }
            (Some(old), Some(new))
                if (old.create_time, old.update_time) != (new.create_time, new.update_time) =>
            {
                ChangeKind::Rewritten
            }
            _ => return,
        };
        self.kinds.push(kind);
        if let Some(old) = old {
            self.old.push(old);
        }
        if let Some(new) = new {
            self.new.push(new);
        }
    }
}

/// What is different in a range, ascending. Of snapshots with different selections, only documents that both select.
pub fn changes(
    old: &SnapshotReader,
    new: &SnapshotReader,
    range: &KeyRange,
) -> impl Stream<Item = Result<ChangeBatch>> + Send + 'static + use<> {
    let differ = Differ::new(old.clone(), new.clone(), range);
    stream::try_unfold(differ, |mut differ| async move {
        Ok(differ.next().await?.map(|batch| (batch, differ)))
    })
}

/// A snapshot's own runs: those that the other one has not.
struct Side {
    reader: SnapshotReader,
    own: Vec<Arc<Run>>,
    merge: Option<Merge>,
    batch: RecordBatch,
    at: usize,
}

impl Side {
    fn new(reader: SnapshotReader, own: usize) -> Self {
        Self {
            own: reader.runs()[..own].to_vec(),
            reader,
            merge: None,
            batch: RecordBatch::default(),
            at: 0,
        }
    }

    fn start(&mut self, range: &KeyRange) {
        self.merge = Some(self.reader.merge_of(&self.own, range, true));
        (self.batch, self.at) = (RecordBatch::default(), 0);
    }

    async fn fill(&mut self) -> Result<()> {
        while self.at == self.batch.len()
            && let Some(merge) = &mut self.merge
        {
            match merge.next().await? {
                Some(batch) => (self.batch, self.at) = (batch, 0),
                None => self.merge = None,
            }
        }
        Ok(())
    }

    fn current(&self) -> Option<RecordRef<'_>> {
        self.batch.get(self.at)
    }
}

struct Differ {
    old: Side,
    new: Side,
    shared: Lookup,
    /// What is still to be looked at, the last first.
    ranges: Vec<KeyRange>,
    started: bool,
}

impl Differ {
    fn new(old: SnapshotReader, new: SnapshotReader, range: &KeyRange) -> Self {
        let same = |(a, b): &(&Arc<Run>, &Arc<Run>)| a.reference == b.reference;
        let shared = old
            .runs()
            .iter()
            .rev()
            .zip(new.runs().iter().rev())
            .take_while(same)
            .count();
        let (old_own, new_own) = (old.runs().len() - shared, new.runs().len() - shared);
        let mut ranges: Vec<KeyRange> = Vec::new();
        for of_old in old.snapshot().selection.key_ranges() {
            for of_new in new.snapshot().selection.key_ranges() {
                ranges.push(of_old.intersection(&of_new).intersection(range));
            }
        }
        ranges.retain(|range| !range.is_empty());
        ranges.reverse();
        Self {
            shared: Lookup::new(new.block_source().clone(), &new.runs()[new_own..]),
            old: Side::new(old, old_own),
            new: Side::new(new, new_own),
            ranges,
            started: false,
        }
    }

    async fn next(&mut self) -> Result<Option<ChangeBatch>> {
        let mut changes = ChangeBatch::default();
        let mut looked_up = RecordBatch::default();
        while changes.len() < BATCH_CHANGES {
            if !self.started {
                let Some(range) = self.ranges.pop() else { break };
                self.old.start(&range);
                self.new.start(&range);
                self.started = true;
            }
            self.old.fill().await?;
            self.new.fill().await?;
            let order = match (self.old.current(), self.new.current()) {
                (None, None) => {
                    self.started = false;
                    continue;
                }
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.key.cmp(new.key),
            };
            let (old, new) = (self.old.current(), self.new.current());
            let key = match order {
                Ordering::Greater => new,
                _ => old,
            };
            if let Some(key) = key.map(|record| record.key).filter(|key| self.is_selected(key)) {
                looked_up.clear();
                if order != Ordering::Equal {
                    self.shared.find(key, &mut looked_up).await?;
                }
                let (old, new) = match order {
                    Ordering::Less => (old, looked_up.get(0)),
                    Ordering::Equal => (old, new),
                    Ordering::Greater => (looked_up.get(0), new),
                };
                let put = |record: &RecordRef<'_>| record.body.is_some();
                changes.push(old.filter(put), new.filter(put));
            }
            self.old.at += usize::from(order != Ordering::Greater);
            self.new.at += usize::from(order != Ordering::Less);
        }
        Ok((!changes.is_empty()).then_some(changes))
    }

    fn is_selected(&self, key: &[u8]) -> bool {
        let selects = |side: &Side| side.reader.snapshot().selection.contains(key);
        selects(&self.old) && selects(&self.new)
    }
}
