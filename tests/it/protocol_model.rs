//! The protocol of sessions, readers and sweeps (`FORMAT.md`, section 7), searched exhaustively: every interleaving of every
//! step of small groups of processes, which may stop anywhere, be given up wrongly at any time, and whose listings may miss
//! whatever is created while they run.
//!
//! A model of its own and not of the code: what the code does in these steps is tested by `prune_beside`. Its worth is the
//! other half: leaving out any one step makes the search find a counterexample, so each of them is needed.
//!
//! The search is written here in a page, for its speed in a build without optimisation: a state is one number, and a
//! general model checker's are trees of values. A process that crashed is one that takes no further step, and every state is
//! checked, so crashes need no steps of their own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// What is left out of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
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
struct Cast {
    /// Of snapshot 0, which is there from the beginning: sessions 1 and 2. Session 2 pins snapshot 1 instead when it is
    /// chained.
    writers: usize,
    chained: bool,
    /// A second worker of session 1.
    second_worker: bool,
    sweeps: usize,
    /// Of snapshot 0.
    reader: bool,
    without: Option<Without>,
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
struct State {
    objects: u8,
    /// A bit a snapshot.
    committed: u8,
    aborted: u8,
    forgotten: u8,
    /// A bit a session; the lease is bit 3 of the pins: sessions and leases are listed together.
    pins: u8,
    plans: u8,
    workers: [u8; 3],
    reader: u8,
    sweeps: [Sweep; 2],
}

/// A sweep: its step, and what its listings showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sweep {
    step: u8,
    /// What was there when the listing that goes on began.
    before: u8,
    candidates: u8,
    markers: u8,
    sessions: u8,
    /// Committed in the low half, aborted in the high one.
    decisions: u8,
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

// Steps of a sweep: before it, in one of four listings, deleting. The end of a listing and the beginning of the next are one
// step: listings that take longer than they do see all that shorter ones can see, and more.
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

    fn first(&self) -> State {
        State {
            objects: self.own(0),
            committed: 1,
            ..State::default()
        }
    }

    /// What must hold always.
    fn check(&self, state: &State) -> Result<(), String> {
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
    fn next(&self, state: &State, found: &mut Vec<(State, &'static str)>) {
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

    /// The same with sessions 1 and 2 in each other's place.
    fn mirrored(&self) -> Self {
        // Two bits an object pair, one bit all others.
        let objects = |bits: u8| bits & 0x03 | bits << 2 & 0x30 | bits >> 2 & 0x0c;
        let bits = |bits: u8| bits & 0x99 | bits << 1 & 0x44 | bits >> 1 & 0x22;
        let sweep = |sweep: Sweep| Sweep {
            step: sweep.step,
            before: match sweep.step {
                1 => objects(sweep.before),
                _ => bits(sweep.before),
            },
            candidates: objects(sweep.candidates),
            markers: bits(sweep.markers),
            sessions: bits(sweep.sessions),
            decisions: bits(sweep.decisions),
        };
        Self {
            objects: objects(self.objects),
            committed: bits(self.committed),
            aborted: bits(self.aborted),
            forgotten: bits(self.forgotten),
            pins: bits(self.pins),
            plans: bits(self.plans),
            workers: [self.workers[1], self.workers[0], self.workers[2]],
            reader: self.reader,
            sweeps: self.sweeps.map(sweep),
        }
    }

    /// As one number. Sweeps are alike, so their order does not count.
    fn number(&self) -> u128 {
        let [a, b, c] = self.workers;
        let shared = u64::from(self.objects)
            | u64::from(self.committed) << 6
            | u64::from(self.aborted) << 9
            | u64::from(self.forgotten) << 12
            | u64::from(self.pins) << 15
            | u64::from(self.plans) << 19
            | u64::from(a) << 22
            | u64::from(b) << 25
            | u64::from(c) << 28
            | u64::from(self.reader) << 31;
        let (one, other) = (self.sweeps[0].number(), self.sweeps[1].number());
        let (less, more) = if one < other { (one, other) } else { (other, one) };
        u128::from(shared) << 64 | u128::from(less) << 32 | u128::from(more)
    }
}

impl Sweep {
    fn number(&self) -> u32 {
        u32::from(self.step)
            | u32::from(self.before) << 3
            | u32::from(self.candidates) << 10
            | u32::from(self.markers) << 16
            | u32::from(self.sessions) << 19
            | u32::from(self.decisions & 7) << 23
            | u32::from(self.decisions >> 4) << 26
    }

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

/// States are numbers already: multiplying spreads them well enough.
#[derive(Default)]
struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        panic!("only numbers are hashed here");
    }

    fn write_u128(&mut self, number: u128) {
        let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number >> 64) as u64;
        let mixed = mixed.wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.0 = mixed ^ mixed >> 32;
    }
}

type Seen = HashMap<u128, u32, BuildHasherDefault<Multiply>>;

/// How many states there are, or the way to one that must not be.
fn search(cast: Cast) -> Result<usize, String> {
    let mut seen = Seen::default();
    // Each state with the one before it: states are looked at in the order of their distance, so ways are shortest.
    let mut states = vec![(cast.first(), 0u32, "the beginning")];
    seen.insert(cast.first().number(), 0);
    let mut next = Vec::new();
    // Two writers that do the same may change places.
    let alike = cast.writers == 2 && !cast.chained && !cast.second_worker && cast.without.is_none();
    let mut place = 0;
    while place < states.len() {
        let state = states[place].0;
        if let Err(wrong) = cast.check(&state) {
            return Err(format!("{wrong}:{}", way(&states, place)));
        }
        cast.next(&state, &mut next);
        for (state, what) in next.drain(..) {
            let new = states.len() as u32;
            let number = match alike {
                true => state.number().min(state.mirrored().number()),
                false => state.number(),
            };
            if *seen.entry(number).or_insert(new) == new {
                states.push((state, place as u32, what));
            }
        }
        place += 1;
    }
    Ok(states.len())
}

fn way(states: &[(State, u32, &'static str)], mut place: usize) -> String {
    let mut steps = Vec::new();
    while place != 0 {
        steps.push(states[place].2);
        place = states[place].1 as usize;
    }
    steps.reverse();
    format!(" {}", steps.join("; "))
}

const TWO_WRITERS: Cast = Cast {
    writers: 2,
    chained: false,
    second_worker: false,
    sweeps: 1,
    reader: false,
    without: None,
};
const CHAIN: Cast = Cast {
    chained: true,
    ..TWO_WRITERS
};
const TWO_SWEEPS: Cast = Cast {
    writers: 1,
    sweeps: 2,
    ..TWO_WRITERS
};
const TWO_WORKERS: Cast = Cast {
    writers: 1,
    second_worker: true,
    ..TWO_WRITERS
};
const READER: Cast = Cast {
    writers: 0,
    sweeps: 2,
    reader: true,
    ..TWO_WRITERS
};
const READER_AND_WRITER: Cast = Cast {
    writers: 1,
    reader: true,
    ..TWO_WRITERS
};

/// Searches all of it; `thousands` of states at least, or something is no longer tried.
#[track_caller]
fn holds(thousands: usize, cast: Cast) {
    match search(cast) {
        Ok(states) => assert!(states >= thousands * 1000, "only {states} states: {cast:?}"),
        Err(way) => panic!("{way}"),
    }
}

#[test]
fn two_writers_beside_two_sweeps() {
    let cast = Cast {
        sweeps: 2,
        ..TWO_WRITERS
    };
    holds(2_400, cast);
}

#[test]
fn a_chain_of_writers_beside_two_sweeps() {
    holds(1_300, Cast { sweeps: 2, ..CHAIN });
}

#[test]
fn two_workers_of_a_session_beside_two_sweeps() {
    let cast = Cast {
        sweeps: 2,
        ..TWO_WORKERS
    };
    holds(260, cast);
}

#[test]
fn a_reader_beside_sweeps_and_a_writer() {
    holds(1, READER);
    let cast = Cast {
        sweeps: 2,
        ..READER_AND_WRITER
    };
    holds(220, cast);
}

/// Each left-out step, and the smallest cast that shows why it is there.
#[test]
fn every_step_is_needed() {
    use Without::*;
    let table = [
        (PinsBeforeCheck, TWO_SWEEPS),
        (CheckOfMarkers, TWO_SWEEPS),
        (WaitingForThePlan, TWO_WORKERS),
        (CreateOnlyCommit, TWO_SWEEPS),
        (SessionInNames, TWO_WRITERS),
        (CandidatesFirst, TWO_SWEEPS),
        (MarkersBeforeSessions, TWO_SWEEPS),
        (DecisionsLast, TWO_SWEEPS),
        (ReachOfPins, TWO_SWEEPS),
        (OwnObjects, TWO_SWEEPS),
        (OnlyDecidedSessions, TWO_SWEEPS),
        (RunsBeforeChunks, TWO_SWEEPS),
        (RecordStays, TWO_SWEEPS),
        (LookAfterLease, READER),
        (Leases, READER),
    ];
    let mut needless = Vec::new();
    for (without, cast) in table {
        let cast = Cast {
            without: Some(without),
            ..cast
        };
        match search(cast) {
            Ok(states) => needless.push(format!("{without:?}: {states} states and no counterexample")),
            Err(way) => assert!(way.ends_with("deletes an object"), "without {without:?}: {way}"),
        }
    }
    assert!(needless.is_empty(), "{needless:?}");
}
