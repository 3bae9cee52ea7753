//! The protocol: who takes part, what there is, and which steps each of them may take next.

/// What is left out of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Without {
    /// Writers look whether their pins stand, and then write the pins.
    PinsBeforeCheck,
    /// Writers do not look whether their pins stand.
    CheckOfMarkers,
    /// A worker that joins begins before there is a plan.
    WaitingForThePlan,
    /// A commit overwrites a record that says aborted.
    CreateOnlyCommit,
    /// Chunks are named by their content alone.
    SessionInNames,
    /// The candidates are listed last.
    CandidatesFirst,
    /// The markers are listed after sessions and leases.
    MarkersBeforeSessions,
    /// The decisions are read before sessions and leases.
    DecisionsLast,
    /// What the pins of undecided sessions reach is not kept.
    ReachOfPins,
    /// What undecided sessions wrote is not kept.
    OwnObjects,
    /// All sessions that were seen are deleted.
    OnlyDecidedSessions,
    /// Chunks are deleted before runs.
    RunsBeforeChunks,
    /// Forgetting removes the record.
    RecordStays,
    /// A reader does not look again once its lease is there.
    LookAfterLease,
    /// A sweep does not look at leases.
    Leases,
}

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    /// Of snapshot 0, which is there from the beginning: sessions 1 and 2. Session 2 pins snapshot 1 instead
    /// when it is chained.
    pub(super) writers: usize,
    pub(super) chained: bool,
    /// A second worker of session 1.
    pub(super) second_worker: bool,
    pub(super) sweeps: usize,
    /// Of snapshot 0.
    pub(super) reader: bool,
    pub(super) without: Option<Without>,
}

// Objects, a bit each: snapshot 0 has chunk 0 and run 0, and so on.
const fn chunk(snapshot: usize) -> u8 {
    1 << (2 * snapshot)
}

const fn run(snapshot: usize) -> u8 {
    2 << (2 * snapshot)
}

const CHUNKS: u8 = chunk(0) | chunk(1) | chunk(2);
const LEASE: u8 = 1 << 3;

/// All that there is: objects in the store, and where each process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) objects: u8,
    /// A bit a snapshot.
    pub(super) committed: u8,
    pub(super) aborted: u8,
    pub(super) forgotten: u8,
    /// A bit a session; the lease is bit 3 of the pins: sessions and leases are listed together.
    pub(super) pins: u8,
    pub(super) plans: u8,
    pub(super) workers: [u8; 3],
    pub(super) reader: u8,
    pub(super) sweeps: [Sweep; 2],
}

/// A sweep: its step, and what its listings showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sweep {
    pub(super) step: u8,
    /// What was there when the listing that goes on began.
    pub(super) before: u8,
    pub(super) candidates: u8,
    pub(super) markers: u8,
    pub(super) sessions: u8,
    /// Committed in the low half, aborted in the high one.
    pub(super) decisions: u8,
}

// Steps of a worker.
const W_START: u8 = 0;
const W_PINNED: u8 = 1;
const W_CHECKED: u8 = 2;
const W_PLANNED: u8 = 3;
const W_CHUNK: u8 = 4;
const W_RUN: u8 = 5;
const W_DONE: u8 = 6;

// Steps of a reader.
const R_START: u8 = 0;
const R_LEASED: u8 = 1;
const R_READS: u8 = 2;
const R_DONE: u8 = 3;

// Steps of a sweep: before it, in one of four listings, deleting. The end of a listing and the beginning of
// the next are one step: listings that take longer than they do see all that shorter ones can see, and more.
const S_START: u8 = 0;
const S_DELETES: u8 = 5;
const S_DONE: u8 = 6;

#[derive(Clone, Copy, PartialEq)]
enum Listing {
    Candidates,
    Markers,
    Sessions,
    Decisions,
}

impl Cast {
    fn is_without(&self, what: Without) -> bool {
        self.without == Some(what)
    }

    fn order(&self) -> [Listing; 4] {
        use Listing::*;
        match self.without {
            Some(Without::CandidatesFirst) => [Markers, Sessions, Decisions, Candidates],
            Some(Without::MarkersBeforeSessions) => [Candidates, Sessions, Markers, Decisions],
            Some(Without::DecisionsLast) => [Candidates, Markers, Decisions, Sessions],
            _ => [Candidates, Markers, Sessions, Decisions],
        }
    }

    /// The snapshot that a session pins.
    fn pin(&self, session: usize) -> usize {
        if session == 2 && self.chained { 1 } else { 0 }
    }

    /// The chunk that a session writes.
    fn own_chunk(&self, session: usize) -> u8 {
        match self.is_without(Without::SessionInNames) {
            true if session > 0 => chunk(1),
            _ => chunk(session),
        }
    }

    fn own(&self, session: usize) -> u8 {
        self.own_chunk(session) | run(session)
    }

    /// A snapshot needs its own objects and those of the one below.
    fn reach(&self, snapshot: usize) -> u8 {
        match snapshot {
            0 => self.own(0),
            _ => self.own(snapshot) | self.reach(self.pin(snapshot)),
        }
    }

    fn sessions(&self) -> impl Iterator<Item = usize> + use<> {
        1..=self.writers
    }

    fn workers(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let second = self.second_worker.then_some((2, 1));
        (0..self.writers).map(|worker| (worker, worker + 1)).chain(second)
    }

    pub(super) fn first(&self) -> State {
        State {
            objects: self.own(0),
            committed: 1,
            ..State::default()
        }
    }

    /// What must hold always.
    pub(super) fn check(&self, state: &State) -> Result<(), String> {
        for snapshot in 0..=self.writers {
            let stands = (state.committed & !state.forgotten) >> snapshot & 1 == 1;
            if stands && state.objects & self.reach(snapshot) != self.reach(snapshot) {
                return Err(format!("snapshot {snapshot} stands and misses an object"));
            }
        }
        // Of what was there before any sweep began, however many sweeps were stopped half-way.
        if state.objects & run(0) != 0 && state.objects & chunk(0) == 0 {
            return Err("a run is there without its chunk".to_owned());
        }
        if state.reader == R_READS
            && state.pins & LEASE != 0
            && state.objects & self.reach(0) != self.reach(0)
        {
            return Err("a reader with a standing lease misses an object".to_owned());
        }
        Ok(())
    }

    /// All that may happen next.
    pub(super) fn next(&self, state: &State, found: &mut Vec<(State, &'static str)>) {
        for (worker, session) in self.workers() {
            self.work(state, worker, session, found);
        }
        self.give_up(state, found);
        if self.reader {
            self.read(state, found);
        }
        for sweep in 0..self.sweeps {
            self.sweep(state, sweep, found);
        }
    }

    fn work(&self, state: &State, worker: usize, session: usize, found: &mut Vec<(State, &'static str)>) {
        let (bit, pin) = (1 << session, 1 << self.pin(session));
        let mut next = *state;
        let step = &mut next.workers[worker];
        let late = self.is_without(Without::PinsBeforeCheck);
        let what = match *step {
            W_START => {
                // The pins were chosen from a listing: it must have been there once.
                if state.committed & pin == 0 && !self.is_without(Without::RecordStays) {
                    return;
                }
                if late {
                    if state.forgotten & pin != 0 {
                        return;
                    }
                    *step = W_PINNED;
                } else {
                    next.pins |= bit;
                    // Adopts the pins of the other worker, and the plan when there is one.
                    *step = match worker == 2 && self.is_without(Without::WaitingForThePlan) {
                        true => W_PLANNED,
                        false => W_PINNED,
                    };
                }
                "a worker pins"
            }
            W_PINNED if late => {
                next.pins |= bit;
                *step = W_CHECKED;
                "a worker pins late"
            }
            W_PINNED if state.plans & bit != 0 => {
                *step = W_PLANNED;
                "a worker finds the plan"
            }
            W_PINNED => {
                let stands = state.committed & pin != 0 && state.forgotten & pin == 0;
                if stands || self.is_without(Without::CheckOfMarkers) {
                    *step = W_CHECKED;
                } else {
                    *step = W_DONE;
                    if (state.committed | state.aborted) & bit == 0 {
                        next.aborted |= bit;
                    }
                }
                "a worker looks at its pins"
            }
            W_CHECKED => {
                next.plans |= bit;
                *step = W_PLANNED;
                "a worker plans"
            }
            W_PLANNED => {
                next.objects |= self.own_chunk(session);
                *step = W_CHUNK;
                "a worker puts a chunk"
            }
            W_CHUNK => {
                // What it reuses is there as far as it knows, its own chunk too.
                next.objects |= run(session);
                *step = W_RUN;
                "a worker puts a run"
            }
            W_RUN => {
                let overwrites = self.is_without(Without::CreateOnlyCommit);
                if state.aborted & bit == 0 || overwrites {
                    next.aborted &= !bit;
                    next.committed |= bit;
                }
                *step = W_DONE;
                "a worker commits"
            }
            _ => return,
        };
        found.push((next, what));
    }

    /// What may come over anybody at any time: retention, and being taken for dead.
    fn give_up(&self, state: &State, found: &mut Vec<(State, &'static str)>) {
        for snapshot in 0..=self.writers {
            let bit = 1 << snapshot;
            if state.committed & !state.forgotten & bit != 0 {
                let mut next = *state;
                next.forgotten |= bit;
                if self.is_without(Without::RecordStays) {
                    next.committed &= !bit;
                }
                found.push((next, "a snapshot is forgotten"));
            }
        }
        for session in self.sessions() {
            let bit = 1 << session;
            if state.pins & bit != 0 && (state.committed | state.aborted | state.forgotten) & bit == 0 {
                let mut next = *state;
                next.aborted |= bit;
                found.push((next, "a session is aborted"));
            }
        }
        if state.pins & LEASE != 0 {
            let mut next = *state;
            next.pins &= !LEASE;
            found.push((next, "a lease expires"));
        }
    }

    fn read(&self, state: &State, found: &mut Vec<(State, &'static str)>) {
        let mut next = *state;
        let what = match state.reader {
            R_START => {
                next.pins |= LEASE;
                next.reader = R_LEASED;
                "a reader puts its lease"
            }
            R_LEASED => {
                let looks = !self.is_without(Without::LookAfterLease);
                next.reader = if looks && state.forgotten & 1 != 0 {
                    R_DONE
                } else {
                    R_READS
                };
                "a reader looks again"
            }
            _ => return,
        };
        found.push((next, what));
    }

    fn sweep(&self, state: &State, sweep: usize, found: &mut Vec<(State, &'static str)>) {
        let now = &state.sweeps[sweep];
        match now.step {
            S_START => {
                let mut next = *state;
                self.begin_listing(&mut next, sweep);
                found.push((next, "a sweep begins"));
            }
            step @ 1..S_DELETES => {
                let listing = self.order()[usize::from(step) - 1];
                let seen = state.list(listing);
                // What was there all the time, and any part of what came meanwhile.
                let (sure, perhaps) = (now.before & seen, seen & !now.before);
                let mut part = perhaps;
                loop {
                    let mut next = *state;
                    next.sweeps[sweep].listed(listing, sure | part);
                    self.begin_listing(&mut next, sweep);
                    found.push((next, listing.what()));
                    if part == 0 {
                        break;
                    }
                    part = (part - 1) & perhaps;
                }
            }
            S_DELETES => self.delete(state, sweep, found),
            _ => {}
        }
    }

    /// Goes on to the next listing, or to what follows the last.
    fn begin_listing(&self, state: &mut State, sweep: usize) {
        let step = state.sweeps[sweep].step + 1;
        let before = match self.order().get(usize::from(step) - 1) {
            Some(listing) => state.list(*listing),
            None => 0,
        };
        let begun = &mut state.sweeps[sweep];
        (begun.step, begun.before) = (step, before);
        if step == S_DELETES {
            self.decide(begun);
        }
    }

    /// Turns what was listed into what goes, and forgets the rest: fewer states.
    fn decide(&self, sweep: &mut Sweep) {
        let (committed, aborted) = (sweep.decisions & 7, sweep.decisions >> 4);
        let mut live = 0;
        for snapshot in 0..=self.writers {
            if (committed & !sweep.markers) >> snapshot & 1 == 1 {
                live |= self.reach(snapshot);
            }
        }
        let undecided = sweep.sessions & !committed & !aborted;
        for session in self.sessions().filter(|session| undecided >> session & 1 == 1) {
            let pin = self.pin(session);
            // Without its record nobody knows what a snapshot needs.
            let known = !self.is_without(Without::RecordStays) || committed >> pin & 1 == 1;
            if known && !self.is_without(Without::ReachOfPins) {
                live |= self.reach(pin);
            }
            if !self.is_without(Without::OwnObjects) {
                live |= self.own(session);
            }
        }
        if sweep.sessions & LEASE != 0 && !self.is_without(Without::Leases) {
            live |= self.reach(0);
        }
        let decided = match self.is_without(Without::OnlyDecidedSessions) {
            true => !LEASE,
            false => committed | aborted,
        };
        *sweep = Sweep {
            step: S_DELETES,
            candidates: sweep.candidates & !live,
            sessions: sweep.sessions & decided & !LEASE,
            ..Sweep::default()
        };
        if (sweep.candidates, sweep.sessions) == (0, 0) {
            sweep.step = S_DONE;
        }
    }

    fn delete(&self, state: &State, sweep: usize, found: &mut Vec<(State, &'static str)>) {
        let now = &state.sweeps[sweep];
        let (chunks, runs) = (now.candidates & CHUNKS, now.candidates & !CHUNKS);
        let (first, second) = match self.is_without(Without::RunsBeforeChunks) {
            true => (chunks, runs),
            false => (runs, chunks),
        };
        let wave = if first != 0 { first } else { second };
        for bit in (0..6).map(|place| 1 << place).filter(|bit| wave & bit != 0) {
            let mut next = *state;
            next.objects &= !bit;
            next.sweeps[sweep].candidates &= !bit;
            next.end(sweep);
            found.push((next, "a sweep deletes an object"));
        }
        if wave != 0 {
            return;
        }
        for bit in (0..3)
            .map(|session| 1 << session)
            .filter(|bit| now.sessions & bit != 0)
        {
            // The plan and the pins, in either order: whichever is left alone says nothing.
            let mut next = *state;
            next.pins &= !bit;
            next.plans &= !bit;
            next.sweeps[sweep].sessions &= !bit;
            next.end(sweep);
            found.push((next, "a sweep deletes a session"));
        }
    }
}

impl Listing {
    fn what(self) -> &'static str {
        match self {
            Self::Candidates => "a sweep has listed candidates",
            Self::Markers => "a sweep has listed markers",
            Self::Sessions => "a sweep has listed sessions and leases",
            Self::Decisions => "a sweep has listed decisions",
        }
    }
}

impl State {
    fn list(&self, listing: Listing) -> u8 {
        match listing {
            Listing::Candidates => self.objects,
            Listing::Markers => self.forgotten,
            Listing::Sessions => self.pins,
            Listing::Decisions => self.committed | self.aborted << 4,
        }
    }

    fn end(&mut self, sweep: usize) {
        let ended = &mut self.sweeps[sweep];
        if (ended.candidates, ended.sessions) == (0, 0) {
            *ended = Sweep {
                step: S_DONE,
                ..Sweep::default()
            };
        }
    }
}

impl Sweep {
    fn listed(&mut self, listing: Listing, seen: u8) {
        self.before = 0;
        match listing {
            Listing::Candidates => self.candidates = seen,
            Listing::Markers => self.markers = seen,
            Listing::Sessions => self.sessions = seen,
            Listing::Decisions => self.decisions = seen,
        }
    }
}
