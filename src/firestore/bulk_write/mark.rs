//! Which writes are done, for whoever must know it of some of them: a restore's place in a key range moves on only when
//! everything before it is.

use std::collections::HashMap;
use std::num::NonZeroU64;

/// A name for writes that were submitted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(NonZeroU64);

/// Marked writes that are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Which ones.
    pub mark: Mark,
    /// Those that the server has taken.
    pub written: u64,
    /// Those that are recorded as failures.
    pub failed: u64,
    /// Those that were [left out](super::Recorded::LeftOut) on purpose.
    pub left_out: u64,
}

/// What is known of marks.
#[derive(Debug, Default)]
pub(super) struct Marks {
    last: u64,
    undone: HashMap<Mark, Undone>,
    done: Vec<Acknowledged>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Undone {
    writes: u64,
    left: u64,
    failed: u64,
    left_out: u64,
}

impl Marks {
    pub(super) fn next(&mut self) -> Mark {
        self.last += 1;
        Mark(NonZeroU64::new(self.last).unwrap_or(NonZeroU64::MIN))
    }

    /// So many writes bear the mark.
    pub(super) fn begin(&mut self, mark: Mark, writes: u64) {
        let undone = Undone {
            writes,
            left: writes,
            ..Undone::default()
        };
        match writes {
            0 => self.done.push(undone.acknowledged(mark)),
            _ => drop(self.undone.insert(mark, undone)),
        }
    }

    pub(super) fn failed(&mut self, mark: Option<Mark>) {
        if let Some(undone) = mark.and_then(|mark| self.undone.get_mut(&mark)) {
            undone.failed += 1;
        }
    }

    pub(super) fn left_out(&mut self, mark: Option<Mark>) {
        if let Some(undone) = mark.and_then(|mark| self.undone.get_mut(&mark)) {
            undone.left_out += 1;
        }
    }

    /// One of its writes is done.
    pub(super) fn done(&mut self, mark: Option<Mark>) {
        let Some(mark) = mark else { return };
        let Some(undone) = self.undone.get_mut(&mark) else {
            return;
        };
        undone.left -= 1;
        if undone.left == 0 {
            let done = undone.acknowledged(mark);
            self.undone.remove(&mark);
            self.done.push(done);
        }
    }

    pub(super) fn take_done(&mut self) -> Vec<Acknowledged> {
        std::mem::take(&mut self.done)
    }
}

impl Undone {
    fn acknowledged(self, mark: Mark) -> Acknowledged {
        Acknowledged {
            mark,
            written: self.writes - self.failed - self.left_out,
            failed: self.failed,
            left_out: self.left_out,
        }
    }
}
