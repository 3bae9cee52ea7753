//! Random sequences of everything that is done to a repository, against a model of it in memory: every snapshot that stands
//! is at all times exactly what it recorded, whatever was killed on the way.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

mod state;
pub(crate) mod world;

use std::sync::Mutex;

use chrono::TimeDelta;
use firebank::archive::ReadMode;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, RngAlgorithm, TestRng, TestRunner};
use world::{Edit, Reading, Tally, World};

use crate::support::sandbox;

/// Sequences that are tried, always the same ones, so that a test run says the same twice and a sequence of few merges
/// does not come by chance. `PROPTEST_CASES=N` tries N new ones instead.
const CASES: u32 = 16;
/// Of the seeds that were tried the one that does most of everything.
const SEED: u8 = 2;

/// What is done. Snapshots are picked by number, from the newest on and around.
///
/// A backup may go on with a killed one: the model knows what such a session has to record.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(u16, Edit)>),
    BackUp(Reading, KillAt),
    Compact {
        which: usize,
        all: bool,
        kill_at: KillAt,
    },
    Clean {
        keep: usize,
        kill_at: KillAt,
    },
    GiveUp {
        which: usize,
        kill_at: KillAt,
    },
    Restore {
        which: usize,
        kill_at: KillAt,
    },
    Diff {
        old: usize,
        new: usize,
    },
    DiffLive {
        old: usize,
    },
    WaitHours(i64),
}

/// The request to the store at which the process is killed, counted from 1; it may end before.
type KillAt = Option<u64>;

fn edit() -> impl Strategy<Value = (u16, Edit)> {
    let edit = prop_oneof![
        4 => (0i64..1000).prop_map(Edit::Put),
        2 => Just(Edit::Delete),
        1 => Just(Edit::Remake),
    ];
    (0u16..100, edit)
}

fn reading() -> impl Strategy<Value = Reading> {
    let read = prop_oneof![Just(ReadMode::Names), Just(ReadMode::Full)];
    let often = proptest::bool::weighted;
    (read, 1usize..6, often(0.15), often(0.5)).prop_map(|(read, ranges, alone, resume)| Reading {
        read,
        ranges,
        alone,
        resume,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let kill_at = || weighted(0.4, 1u64..50);
    let which = || 0usize..12;
    prop_oneof![
        5 => vec(edit(), 1..12).prop_map(Step::Write),
        1 => vec(edit(), 30..60).prop_map(Step::Write),
        6 => (reading(), kill_at()).prop_map(|(reading, kill_at)| Step::BackUp(reading, kill_at)),
        2 => (which(), any::<bool>(), kill_at())
            .prop_map(|(which, all, kill_at)| Step::Compact { which, all, kill_at }),
        3 => (1usize..6, kill_at()).prop_map(|(keep, kill_at)| Step::Clean { keep, kill_at }),
        1 => (which(), kill_at()).prop_map(|(which, kill_at)| Step::GiveUp { which, kill_at }),
        1 => (which(), kill_at()).prop_map(|(which, kill_at)| Step::Restore { which, kill_at }),
        1 => (which(), which()).prop_map(|(old, new)| Step::Diff { old, new }),
        1 => which().prop_map(|old| Step::DiffLive { old }),
        2 => prop_oneof![3 => Just(1), 3 => Just(13), 2 => Just(25), 1 => Just(31 * 24)].prop_map(Step::WaitHours),
    ]
}

async fn take(world: &mut World, step: Step) {
    match step {
        Step::Write(edits) => world.write(edits).await,
        Step::BackUp(reading, kill_at) => drop(world.back_up(reading, kill_at).await),
        Step::Compact { which, all, kill_at } => drop(world.compact(which, all, kill_at).await),
        Step::Clean { keep, kill_at } => drop(world.clean(keep, kill_at).await),
        Step::GiveUp { which, kill_at } => drop(world.give_up(which, kill_at).await),
        Step::Restore { which, kill_at } => drop(world.restore(which, kill_at).await),
        Step::Diff { old, new } => world.diff(old, new).await,
        Step::DiffLive { old } => world.diff_live(old).await,
        Step::WaitHours(hours) => world.wait(TimeDelta::hours(hours)),
    }
}

/// Steps, and at last everything restored and everything given up that was left.
async fn live_through(address: &str, steps: Vec<Step>) -> Tally {
    let mut world = World::new(address).await;
    for step in steps {
        take(&mut world, step).await;
    }
    world.restore_all().await;
    world.wait(TimeDelta::hours(25));
    world.clean(100, None).await;
    world.restore_all().await;
    world.tally
}

#[test]
fn every_snapshot_is_what_it_recorded() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let sandbox = runtime.block_on(sandbox());
    let address = sandbox.address().to_string();
    let tally = Mutex::new(Tally::default());
    let mut config = ProptestConfig {
        max_shrink_iters: 300,
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    let mut runner = if std::env::var_os("PROPTEST_CASES").is_some() {
        TestRunner::new(config.clone())
    } else {
        config.cases = CASES;
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[SEED; 32]);
        TestRunner::new_with_rng(config.clone(), rng)
    };
    let cases = config.cases as usize;
    let tried = runner.run(&vec(step(), 10..30), |steps| {
        let of_case = runtime.block_on(live_through(&address, steps));
        tally.lock().unwrap().add(of_case);
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}");
    }
    let tally = tally.into_inner().unwrap();
    let enough = [
        tally.recorded,
        tally.merged,
        tally.removed,
        tally.killed,
        tally.gone_on,
        tally.sessions_given_up,
    ];
    assert!(enough.iter().all(|&count| count >= cases / 4), "{tally:?}");
}
