//! The protocol of sessions, readers and sweeps (`FORMAT.md`, section 7), searched exhaustively: every
//! interleaving of every step of small groups of processes, which may stop anywhere, be given up wrongly at
//! any time, and whose listings may miss whatever is created while they run.
//!
//! A model of its own and not of the code: what the code does in these steps is tested by `prune_beside`. Its
//! worth is the other half: leaving out any one step makes the search find a counterexample, so each of them
//! is needed.
//!
//! The search is written here in a page, for its speed in a build without optimisation: a state is one
//! number, and a general model checker's are trees of values. A process that crashed is one that takes no
//! further step, and every state is checked, so crashes need no steps of their own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

mod protocol;
mod search;

use protocol::{Cast, Without};
use search::search;

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
