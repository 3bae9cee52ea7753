//! Hands what is decided to the writer, and keeps account of how far each key range is done.
//!
//! A range's cursor moves over a key only when every write up to it is acknowledged, or is in the dead-letter file. Writes are
//! done in any order, so what is decided waits in its range's queue until all before it is done too.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::decide::Decided;
use super::failures::{Refusals, Sent};
use super::session::RestoreSession;
use super::{Conflicts, Gap, RestoreCounts, RestoreError};
use crate::document::{DocumentKey, KeyRange};
use crate::firestore::{Acknowledged, BulkWriter, Firestore, Mark, RequestCounts, WriteStats};
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
    /// A stretch that cannot be read, with the first key past it; `None` where there is nothing past it.
    Gap(Gap, Option<DocumentKey>),
    /// There is no more.
    End,
}

/// A key range of a restore, and how far it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RangeState {
    /// The range.
    pub(super) range: KeyRange,
    /// The first key that may not be done: everything before it is. `None` at the range's start.
    pub(super) next: Option<DocumentKey>,
    /// Whether all of it is done.
    pub(super) finished: bool,
}

impl RangeState {
    /// A range of which nothing is done.
    pub(super) fn new(range: KeyRange) -> Self {
        Self {
            range,
            next: None,
            finished: false,
        }
    }

    /// What is not done; `None` when all is.
    pub(super) fn rest(&self) -> Option<KeyRange> {
        if self.finished {
            return None;
        }
        let rest = KeyRange {
            start: self.next.as_ref().or(self.range.start.as_ref()).cloned(),
            end: self.range.end.clone(),
        };
        // What was left out at a range's end leads up to it, and no further.
        (!rest.is_empty()).then_some(rest)
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
    /// What somebody else has changed, up to the cursors.
    conflicts: Conflicts,
    /// What the database has said no to.
    refusals: Refusals,
    /// Whether a cursor has moved since somebody asked.
    moved: bool,
}

/// A stretch whose writes are under way, or that waits for those before it.
#[derive(Debug, Default)]
struct Waiting {
    /// `None` when its own writes are done.
    mark: Option<Mark>,
    counts: RestoreCounts,
    sent: Sent,
    conflicts: Conflicts,
    gap: Option<Gap>,
    /// The first key past the stretch.
    next: Option<DocumentKey>,
    is_end: bool,
}

impl Ranges {
    /// Those of which nothing is done.
    pub(super) fn of(ranges: Vec<KeyRange>) -> Self {
        Self::new(ranges.into_iter().map(RangeState::new).collect())
    }

    pub(super) fn new(states: Vec<RangeState>) -> Self {
        Self::at(states, RestoreCounts::default(), Vec::new(), Conflicts::default())
    }

    /// Where an earlier process has left them.
    pub(super) fn at(
        states: Vec<RangeState>,
        counts: RestoreCounts,
        gaps: Vec<Gap>,
        conflicts: Conflicts,
    ) -> Self {
        Self {
            waiting: states.iter().map(|_| VecDeque::new()).collect(),
            states,
            marks: HashMap::new(),
            counts,
            gaps,
            conflicts,
            refusals: Refusals::default(),
            moved: false,
        }
    }

    /// With where the writes are noted that fail.
    pub(super) fn with(self, refusals: Refusals) -> Self {
        Self { refusals, ..self }
    }

    pub(super) fn states(&self) -> &[RangeState] {
        &self.states
    }

    /// What is done.
    pub(super) fn counts(&self) -> RestoreCounts {
        self.counts
    }

    /// What somebody else has changed.
    pub(super) fn conflicts(&self) -> &Conflicts {
        &self.conflicts
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
        let sent = std::mem::take(&mut waiting.sent);
        self.refusals
            .account(done, &sent, &mut waiting.counts, &mut waiting.conflicts);
        let counts = waiting.counts;
        self.advance(range);
        counts
    }

    /// Moves a range's cursor over everything that is done.
    fn advance(&mut self, range: usize) {
        let (state, waiting) = (&mut self.states[range], &mut self.waiting[range]);
        while let Some(done) = waiting.pop_front_if(|first| first.mark.is_none()) {
            self.counts.add(&done.counts);
            self.conflicts.add(&done.conflicts);
            self.gaps.extend(done.gap);
            if done.next.is_some() {
                state.next = done.next;
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

/// The account of documents that come in one order and need no record of how far they are.
#[derive(Debug)]
pub(crate) struct Account(Ranges);

impl Account {
    pub(crate) fn new(refusals: Refusals) -> Self {
        Self(Ranges::new(vec![RangeState::new(KeyRange::all())]).with(refusals))
    }

    /// Notes what is about to be handed to the writer under a mark.
    pub(crate) fn expect(&mut self, mark: Mark, counts: RestoreCounts, sent: Sent, conflicts: Conflicts) {
        let waiting = Waiting {
            mark: Some(mark),
            counts,
            sent,
            conflicts,
            ..Waiting::default()
        };
        self.0.push(0, waiting);
    }

    /// Takes in what the writer has done.
    pub(crate) fn acknowledge(&mut self, writer: &mut BulkWriter) {
        for done in writer.take_acknowledged() {
            self.0.acknowledge(done);
        }
    }

    /// What is done, and what somebody else has changed.
    pub(crate) fn finish(self) -> (RestoreCounts, Conflicts) {
        (self.0.counts, self.0.conflicts)
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

/// What a restore reads of the database, that of earlier processes included as far as they have recorded it.
pub(crate) struct Reads {
    database: Firestore,
    before: RequestCounts,
    earlier: u64,
}

impl Reads {
    /// From now on, with what was read earlier.
    pub(crate) fn new(database: &Firestore, earlier: u64) -> Self {
        Self {
            before: database.stats().counts(),
            database: database.clone(),
            earlier,
        }
    }

    pub(crate) fn billed(&self) -> u64 {
        self.earlier + self.database.stats().counts().since(&self.before).billed_reads
    }
}

/// The last stage of a restore.
pub(super) struct Writing<'a> {
    pub(super) writer: BulkWriter,
    pub(super) ranges: Ranges,
    pub(super) reads: Reads,
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
        self.ranges.counts.billed_reads = self.reads.billed();
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
                    sent,
                    conflicts,
                    ..
                } = *decided;
                let mark = self.writer.mark();
                waiting.mark = Some(mark);
                waiting.counts = counts;
                waiting.sent = sent;
                waiting.conflicts = conflicts;
                waiting.next = up_to.map(|last| last.after());
                self.ranges.push(range, waiting);
                tokio::select! {
                    submitted = self.writer.submit(writes.marked(mark)) => submitted?,
                    // What was not taken is never acknowledged, so no cursor moves over it.
                    () = self.stop.requested() => return Ok(End::Stopped),
                }
            }
            Step::Gap(gap, end) => {
                waiting.gap = Some(gap);
                waiting.is_end = end.is_none();
                waiting.next = end;
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
            self.ranges.counts.billed_reads = self.reads.billed();
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
                next: Some(key(up_to).after()),
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
        assert_eq!(ranges.states()[1].next, Some(key(7).after()));
        assert!(!ranges.states()[1].finished);
        ranges.acknowledge(done(first));
        assert_eq!(ranges.counts().written, 3);
        assert_eq!(ranges.states()[0].next, Some(key(2).after()));
        assert!(ranges.states()[0].finished);
        assert_eq!(ranges.states()[0].rest(), None);
        let rest = ranges.states()[1].rest().unwrap();
        assert!(!rest.contains(key(7).as_bytes()) && rest.contains(key(8).as_bytes()));
    }

    #[test]
    fn what_is_past_a_gap_is_read_and_the_gap_is_not() {
        let gap = || Gap {
            object: "chunks/x".to_owned(),
            what: "gone".to_owned(),
            first: None,
            last: None,
            documents: None,
        };
        let range = KeyRange {
            start: Some(key(1)),
            end: Some(key(5)),
        };
        let left_out = |end| Waiting {
            gap: Some(gap()),
            is_end: Option::is_none(&end),
            next: end,
            ..Waiting::default()
        };
        let mut ranges = Ranges::new(vec![
            RangeState::new(range.clone()),
            RangeState::new(range),
            RangeState::new(KeyRange::all()),
        ]);
        // The key that a gap ends at may be a document's.
        ranges.push(0, left_out(Some(key(3))));
        assert_eq!(ranges.states()[0].rest().unwrap().start, Some(key(3)));
        // A range that ends with a gap is over, also when nobody has said so yet.
        ranges.push(1, left_out(Some(key(5))));
        assert_eq!(ranges.states()[1].rest(), None);
        ranges.push(2, left_out(None));
        assert_eq!(ranges.states()[2].rest(), None);
        assert_eq!(ranges.gaps().len(), 3);
    }
}
