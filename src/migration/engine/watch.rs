//! Keeps an eye on a script that computes: how long it has, and whether anybody still wants it to go on.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::migration::Limits;
use crate::stop::Stop;

/// Why a script was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It computed too long without asking anything of the database.
    Busy(Duration),
    /// It took too long altogether.
    Total(Duration),
    /// It was asked to stop.
    Asked,
    /// Nobody waits for it any more, or the database's side has failed.
    Abandoned,
}

/// Asked by the engine every now and then. It is not asked within the host's calls, which have deadlines of their own.
#[derive(Debug)]
pub(super) struct Watch {
    busy: Duration,
    total: Option<Duration>,
    began: Instant,
    resumed: Cell<Instant>,
    stop: Stop,
    abandoned: Arc<AtomicBool>,
    ended: Cell<Option<Ended>>,
}

impl Watch {
    pub(super) fn new(limits: &Limits, stop: Stop, abandoned: Arc<AtomicBool>) -> Self {
        let now = Instant::now();
        Self {
            busy: limits.busy,
            total: limits.total,
            began: now,
            resumed: Cell::new(now),
            stop,
            abandoned,
            ended: Cell::new(None),
        }
    }

    /// The script has waited for the database: its time to compute begins anew.
    pub(super) fn resumed(&self) {
        self.resumed.set(Instant::now());
    }

    /// Whether the script must end. Once it must, it always must.
    pub(super) fn must_end(&self) -> bool {
        if self.ended.get().is_none() {
            self.ended.set(self.reason());
        }
        self.ended.get().is_some()
    }

    fn reason(&self) -> Option<Ended> {
        if self.abandoned.load(Ordering::Relaxed) {
            Some(Ended::Abandoned)
        } else if self.stop.is_requested() {
            Some(Ended::Asked)
        } else if self.resumed.get().elapsed() > self.busy {
            Some(Ended::Busy(self.busy))
        } else {
            let total = self.total.filter(|&total| self.began.elapsed() > total);
            total.map(Ended::Total)
        }
    }

    /// Ends the script at the next occasion.
    pub(super) fn abandon(&self) {
        self.ended.set(self.ended.get().or(Some(Ended::Abandoned)));
    }

    /// Why it was ended.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.get()
    }
}
