//! Hands what is decided to the writer, and keeps account of how far each key range is done.
//!
//! A range's cursor moves over a key only when every write up to it is acknowledged, or is in the dead-letter file. Writes are
//! done in any order, so what is decided waits in its range's queue until all before it is done too.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::decide::Decided;
use super::session::RestoreSession;
use super::{Gap, RestoreCounts, RestoreError};
use crate::document::{DocumentKey, KeyRange};
use crate::firestore::{Acknowledged, BulkWriter, Mark, WriteStats};
use crate::progress::Progress;
use crate::stop::Stop;

/// How long a restore that is asked to stop waits for what is under way.
pub(crate) const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// What a range's reader says. The number is the range's.
pub(super) type Message = (usize, Result<Step, RestoreError>);

/// The next of a range.
pub(super) enum Step {
    /// A stretch that is decided.
    Decided(Box<Decided>),
    /// A stretch that cannot be read, up to this key, or to the end.
    Gap(Gap, Option<DocumentKey>),
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

    /// What is not done; `None` when all is.
    pub(super) fn rest(&self) -> Option<KeyRange> {
        if self.finished {
            return None;
        }
        Some(KeyRange {
            start: match &self.cursor {
                Some(cursor) => Some(cursor.after()),
                None => self.range.start.clone(),
            },
            end: self.range.end.clone(),
        })
    }
}

/// How far a restore is.
#[derive(Debug)]
pub(super) struct Ranges {
    states: Vec<RangeState>,
    /// What is decided and waits for its writes, by range.
    waiting: Vec<VecDeque<Waiting>>,
    /// The range that a mark belongs to.
    marks: HashMap<Mark, usize>,
    /// What is done, up to the cursors.
    counts: RestoreCounts,
    /// What could not be read, up to the cursors.
    gaps: Vec<Gap>,
    /// Whether a cursor has moved since somebody asked.
    moved: bool,
}

/// A stretch whose writes are under way, or that waits for those before it.
#[derive(Debug, Default)]
struct Waiting {
    /// `None` when its own writes are done.
    mark: Option<Mark>,
    counts: RestoreCounts,
    gap: Option<Gap>,
    up_to: Option<DocumentKey>,
    is_end: bool,
}

impl Ranges {
    pub(super) fn new(states: Vec<RangeState>) -> Self {
        Self::at(states, RestoreCounts::default(), Vec::new())
    }

    /// Where an earlier process has left them.
    pub(super) fn at(states: Vec<RangeState>, counts: RestoreCounts, gaps: Vec<Gap>) -> Self {
        Self {
            waiting: states.iter().map(|_| VecDeque::new()).collect(),
            states,
            marks: HashMap::new(),
            counts,
            gaps,
            moved: false,
        }
    }

    pub(super) fn states(&self) -> &[RangeState] {
        &self.states
    }

    /// What is done.
    pub(super) fn counts(&self) -> RestoreCounts {
        self.counts
    }

    /// What could not be read.
    pub(super) fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// Notes what was handed to the writer, or needs no writer.
    fn push(&mut self, range: usize, waiting: Waiting) {
        if let Some(mark) = waiting.mark {
            self.marks.insert(mark, range);
        }
        self.waiting[range].push_back(waiting);
        self.advance(range);
    }

    /// Notes what the writer has done. Returns what was counted with it.
    fn acknowledge(&mut self, done: Acknowledged) -> RestoreCounts {
        let Some(range) = self.marks.remove(&done.mark) else {
            return RestoreCounts::default();
        };
        let waiting = self.waiting[range]
            .iter_mut()
            .find(|waiting| waiting.mark == Some(done.mark));
        let Some(waiting) = waiting else {
            return RestoreCounts::default();
        };
        waiting.mark = None;
        waiting.counts.written += done.written;
        waiting.counts.failed += done.failed;
        waiting.counts.left_out += done.left_out;
        let counts = waiting.counts;
        self.advance(range);
        counts
    }

    /// Moves a range's cursor over everything that is done.
    fn advance(&mut self, range: usize) {
        let (state, waiting) = (&mut self.states[range], &mut self.waiting[range]);
        while let Some(done) = waiting.pop_front_if(|first| first.mark.is_none()) {
            self.counts.add(&done.counts);
            self.gaps.extend(done.gap);
            if done.up_to.is_some() {
                state.cursor = done.up_to;
            }
            state.finished |= done.is_end;
            self.moved = true;
        }
    }

    /// Whether nothing waits for the writer.
    fn are_settled(&self) -> bool {
        self.marks.is_empty()
    }

    fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }
}

/// How the writing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All ranges are done.
    Done,
    /// Somebody asked it to stop.
    Stopped,
}

/// The last stage of a restore.
pub(super) struct Writing<'a> {
    pub(super) writer: BulkWriter,
    pub(super) ranges: Ranges,
    /// Where it is recorded how far the ranges are, and how often.
    pub(super) session: Option<(&'a mut RestoreSession, Duration)>,
    pub(super) progress: &'a Progress,
    pub(super) stop: &'a Stop,
}

impl Writing<'_> {
    /// Writes what the ranges' readers decide, until all of them are done. Whatever ends it, what was submitted is waited for
    /// where that makes sense, and what is done is recorded.
    pub(super) async fn run(
        mut self,
        steps: mpsc::Receiver<Message>,
    ) -> Result<(End, Ranges, WriteStats), RestoreError> {
        let ended = self.take_in(steps).await;
        let drained = match &ended {
            Ok(End::Stopped) => self.writer.drain(DRAIN_PATIENCE).await,
            // Where the writer itself has failed, this says so at once.
            _ => self.writer.complete().await.map(drop),
        };
        self.acknowledge();
        let recorded = self.checkpoint().await;
        let end = ended?;
        drained?;
        recorded?;
        let stats = self.writer.stats();
        Ok((end, self.ranges, stats))
    }

    async fn take_in(&mut self, mut steps: mpsc::Receiver<Message>) -> Result<End, RestoreError> {
        let every = self.session.as_ref().map(|(_, every)| *every);
        let mut checkpoint_at = every.map(|every| Instant::now() + every);
        let mut reading = true;
        // Also when all is read: what is under way may take long.
        while reading || !self.ranges.are_settled() {
            let checkpoint_due = async {
                match checkpoint_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.stop.requested() => return Ok(End::Stopped),
                () = checkpoint_due => {
                    // What is left over would hold cursors back for as long as nothing comes that fills a request.
                    if self.flush().await? == End::Stopped {
                        return Ok(End::Stopped);
                    }
                    self.acknowledge();
                    self.checkpoint().await?;
                    checkpoint_at = every.map(|every| Instant::now() + every);
                }
                settled = self.writer.settled() => settled?,
                step = steps.recv(), if reading => match step {
                    Some((range, step)) => {
                        if self.take_step(range, step?).await? == End::Stopped {
                            return Ok(End::Stopped);
                        }
                    }
                    None => {
                        reading = false;
                        if self.flush().await? == End::Stopped {
                            return Ok(End::Stopped);
                        }
                    }
                },
            }
            self.acknowledge();
        }
        Ok(End::Done)
    }

    /// Sends what is left over, unless somebody asks to stop.
    async fn flush(&mut self) -> Result<End, RestoreError> {
        tokio::select! {
            flushed = self.writer.flush() => flushed?,
            () = self.stop.requested() => return Ok(End::Stopped),
        }
        Ok(End::Done)
    }

    async fn take_step(&mut self, range: usize, step: Step) -> Result<End, RestoreError> {
        let mut waiting = Waiting::default();
        match step {
            Step::Decided(decided) => {
                let Decided {
                    writes,
                    counts,
                    up_to,
                    ..
                } = *decided;
                let mark = self.writer.mark();
                waiting.mark = Some(mark);
                waiting.counts = counts;
                waiting.up_to = up_to;
                self.ranges.push(range, waiting);
                tokio::select! {
                    submitted = self.writer.submit(writes.marked(mark)) => submitted?,
                    // What was not taken is never acknowledged, so no cursor moves over it.
                    () = self.stop.requested() => return Ok(End::Stopped),
                }
            }
            Step::Gap(gap, up_to) => {
                waiting.gap = Some(gap);
                waiting.up_to = up_to;
                self.ranges.push(range, waiting);
            }
            Step::End => {
                waiting.is_end = true;
                self.ranges.push(range, waiting);
            }
        }
        Ok(End::Done)
    }

    fn acknowledge(&mut self) {
        for done in self.writer.take_acknowledged() {
            let counts = self.ranges.acknowledge(done);
            self.progress.add(counts.documents, counts.bytes);
        }
    }

    /// Records how far the ranges are, if they have moved.
    async fn checkpoint(&mut self) -> Result<(), RestoreError> {
        let Some((session, _)) = &mut self.session else {
            return Ok(());
        };
        if self.ranges.take_moved() {
            self.writer.sync_failures()?;
            session.checkpoint(&self.ranges).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::DocumentPath;

    fn key(id: u64) -> DocumentKey {
        DocumentPath::parse(format!("a/{id}")).unwrap().key()
    }

    #[test]
    fn what_is_done_early_waits_for_what_is_before_it() {
        let mut ranges = Ranges::new(vec![RangeState::new(KeyRange::all()); 2]);
        let mut marks = crate::firestore::Marks::default();
        let mut waiting = |up_to| {
            let mark = marks.next();
            let counts = RestoreCounts {
                documents: 1,
                ..RestoreCounts::default()
            };
            let waiting = Waiting {
                mark: Some(mark),
                counts,
                up_to: Some(key(up_to)),
                ..Waiting::default()
            };
            (mark, waiting)
        };
        let ((first, one), (second, two), (other, three)) = (waiting(1), waiting(2), waiting(7));
        ranges.push(0, one);
        ranges.push(0, two);
        ranges.push(1, three);
        ranges.push(
            0,
            Waiting {
                is_end: true,
                ..Waiting::default()
            },
        );
        let done = |mark| Acknowledged {
            mark,
            written: 1,
            failed: 0,
            left_out: 0,
        };
        ranges.acknowledge(done(second));
        assert!(!ranges.take_moved());
        assert_eq!(ranges.states()[0], RangeState::new(KeyRange::all()));
        ranges.acknowledge(done(other));
        assert!(ranges.take_moved());
        assert_eq!(ranges.counts().documents, 1);
        assert_eq!(ranges.states()[1].cursor, Some(key(7)));
        assert!(!ranges.states()[1].finished);
        ranges.acknowledge(done(first));
        assert_eq!(ranges.counts().written, 3);
        assert_eq!(ranges.states()[0].cursor, Some(key(2)));
        assert!(ranges.states()[0].finished);
        assert_eq!(ranges.states()[0].rest(), None);
        let rest = ranges.states()[1].rest().unwrap();
        assert!(!rest.contains(key(7).as_bytes()) && rest.contains(key(8).as_bytes()));
    }
}
