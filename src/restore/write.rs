//! Hands what is decided to the writer, and keeps account of how far each key range is done.
//!
//! A range's cursor moves over a key only when every write up to it is acknowledged, or is in the dead-letter file. Writes are
//! done in any order, so what is decided waits in its range's queue until all before it is done too.

use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc;

use super::decide::Decided;
use super::{RestoreCounts, RestoreError};
use crate::document::{DocumentKey, KeyRange};
use crate::firestore::{Acknowledged, BulkWriter, Mark, WriteStats};
use crate::progress::Progress;

/// What a range's reader says.
pub(super) enum Step {
    /// The next stretch.
    Decided(Decided),
    /// There is no more.
    End,
}

/// A key range of a restore, and how far it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RangeState {
    /// The range.
    pub(super) range: KeyRange,
    /// The last key up to which everything is done.
    pub(super) cursor: Option<DocumentKey>,
    /// Whether all of it is done.
    pub(super) finished: bool,
}

impl RangeState {
    /// A range of which nothing is done.
    pub(super) fn new(range: KeyRange) -> Self {
        Self {
            range,
            cursor: None,
            finished: false,
        }
    }
}

/// How far a restore is.
pub(super) struct Ranges {
    states: Vec<RangeState>,
    /// What is decided and waits for its writes, by range.
    waiting: Vec<VecDeque<Waiting>>,
    /// The range that a mark belongs to.
    marks: HashMap<Mark, usize>,
    /// What is done, up to the cursors.
    counts: RestoreCounts,
}

/// A stretch whose writes are under way, or that waits for those before it.
struct Waiting {
    /// `None` when its own writes are done.
    mark: Option<Mark>,
    counts: RestoreCounts,
    up_to: Option<DocumentKey>,
    is_end: bool,
}

impl Ranges {
    pub(super) fn new(states: Vec<RangeState>) -> Self {
        Self {
            waiting: states.iter().map(|_| VecDeque::new()).collect(),
            states,
            marks: HashMap::new(),
            counts: RestoreCounts::default(),
        }
    }

    /// What is done.
    pub(super) fn counts(&self) -> RestoreCounts {
        self.counts
    }

    /// Notes what was handed to the writer.
    fn submitted(&mut self, range: usize, mark: Mark, counts: RestoreCounts, up_to: Option<DocumentKey>) {
        self.marks.insert(mark, range);
        self.waiting[range].push_back(Waiting {
            mark: Some(mark),
            counts,
            up_to,
            is_end: false,
        });
    }

    /// Notes that a range has no more than what was handed to the writer.
    fn ended(&mut self, range: usize) {
        self.waiting[range].push_back(Waiting {
            mark: None,
            counts: RestoreCounts::default(),
            up_to: None,
            is_end: true,
        });
        self.advance(range);
    }

    /// Notes what the writer has done.
    fn acknowledge(&mut self, done: Acknowledged) {
        let Some(range) = self.marks.remove(&done.mark) else {
            return;
        };
        let waiting = self.waiting[range]
            .iter_mut()
            .find(|waiting| waiting.mark == Some(done.mark));
        if let Some(waiting) = waiting {
            waiting.mark = None;
            waiting.counts.written += done.written;
            waiting.counts.failed += done.failed;
            waiting.counts.left_out += done.left_out;
        }
        self.advance(range);
    }

    /// Moves a range's cursor over everything that is done.
    fn advance(&mut self, range: usize) {
        let (state, waiting) = (&mut self.states[range], &mut self.waiting[range]);
        while let Some(done) = waiting.pop_front_if(|first| first.mark.is_none()) {
            self.counts.add(&done.counts);
            if done.up_to.is_some() {
                state.cursor = done.up_to;
            }
            state.finished |= done.is_end;
        }
    }
}

/// Writes what the ranges' readers decide, until all of them are done. The `usize` is the range's number.
pub(super) async fn write_all(
    mut writer: BulkWriter,
    mut steps: mpsc::Receiver<(usize, Step)>,
    ranges: &mut Ranges,
    progress: &Progress,
) -> Result<WriteStats, RestoreError> {
    loop {
        tokio::select! {
            biased;
            settled = writer.settled() => settled?,
            step = steps.recv() => match step {
                Some((range, Step::Decided(Decided { writes, counts, up_to, .. }))) => {
                    let mark = writer.mark();
                    progress.add(counts.documents, counts.bytes);
                    ranges.submitted(range, mark, counts, up_to);
                    writer.submit(writes.marked(mark)).await?;
                }
                Some((range, Step::End)) => ranges.ended(range),
                None => break,
            },
        }
        for done in writer.take_acknowledged() {
            ranges.acknowledge(done);
        }
    }
    let stats = writer.complete().await?;
    for done in writer.take_acknowledged() {
        ranges.acknowledge(done);
    }
    Ok(stats)
}
