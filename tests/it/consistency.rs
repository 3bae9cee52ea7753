//! A backup taken while others write is the database as of one read time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use firebank::archive::{ReadMode, Repository, Snapshot};
use firebank::document::{Fields, Value, canonical};
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, When};
use firestore::gcloud_sdk::google::firestore::v1::Write;
use firestore::gcloud_sdk::prost_types::Timestamp;
use futures::TryStreamExt;
use tonic::Code;

use crate::conformance::client::*;
use crate::support::operations::*;
use crate::support::{emulator, sandbox};

/// Accounts lie in three collections, one of them below documents of another.
const ACCOUNTS: i64 = 120;
const EACH: i64 = 1_000;
/// Documents that all say the number of the last commit.
const CLOCKS: [&str; 4] = ["a/clock", "m/deep/down/clock", "m/missing/down/clock", "z/clock"];

fn account(number: i64) -> String {
    match number % 3 {
        0 => format!("a/{number}"),
        1 => format!("m/{number}/sub/account"),
        _ => format!("z/{number}"),
    }
}

fn set_account(server: &Server, number: i64, balance: i64, padding: &str) -> Write {
    let fields = [("balance", integer(balance)), ("padding", text(padding))];
    server.set(&account(number), &fields)
}

/// Moves money between accounts of different collections, creates and deletes documents in pairs, and moves the clocks on;
/// each time in one commit.
struct Trade {
    server: Server,
    balances: Vec<i64>,
    commits: i64,
}

impl Trade {
    async fn open(server: Server) -> Self {
        let trade = Self {
            server,
            balances: vec![EACH; ACCOUNTS as usize],
            commits: 0,
        };
        let padding = "p".repeat(500);
        let mut writes: Vec<Write> = (0..ACCOUNTS)
            .map(|number| set_account(&trade.server, number, EACH, &padding))
            .collect();
        writes.extend(trade.clocks());
        trade.server.commit(writes).await.unwrap();
        trade
    }

    fn clocks(&self) -> Vec<Write> {
        CLOCKS
            .iter()
            .map(|clock| self.server.set(clock, &[("commits", integer(self.commits))]))
            .collect()
    }

    async fn step(&mut self) {
        self.commits += 1;
        let (from, to) = (self.commits * 7 % ACCOUNTS, (self.commits * 11 + 1) % ACCOUNTS);
        if from != to {
            self.balances[from as usize] -= self.commits % 5;
            self.balances[to as usize] += self.commits % 5;
        }
        let balance = |number: i64| self.balances[number as usize];
        let mut writes = self.clocks();
        let padding = "q".repeat((self.commits % 700) as usize);
        writes.push(set_account(&self.server, from, balance(from), &padding));
        if from != to {
            writes.push(set_account(&self.server, to, balance(to), &padding));
        }
        // A pair moves through the key space: one goes, the next comes.
        for (side, number) in [("b", self.commits), ("y", self.commits)] {
            writes.push(
                self.server
                    .set(&format!("{side}/{}", number % 50), &[("of", integer(number))]),
            );
            writes.push(self.server.deletion(&format!("{side}/{}", (number + 25) % 50)));
        }
        self.server.commit(writes).await.unwrap();
    }
}

fn number(fields: &Fields, name: &str) -> i64 {
    match fields.get(name) {
        Some(Value::Integer(number)) => *number,
        other => panic!("{name} is {other:?}"),
    }
}

async fn contents(repository: &Repository, snapshot: &Snapshot) -> BTreeMap<String, Fields> {
    let mut found = BTreeMap::new();
    let mut batches = documents(repository, snapshot).await;
    while let Some(batch) = batches.try_next().await.unwrap() {
        for document in batch.iter() {
            let fields = canonical::decode(document.body).unwrap();
            let known = found.insert(document.path().unwrap().to_string(), fields);
            assert!(known.is_none());
        }
    }
    found
}

/// Returns the number of the commit that the snapshot shows.
fn check_invariants(found: &BTreeMap<String, Fields>) -> i64 {
    let commits: Vec<i64> = CLOCKS
        .iter()
        .map(|clock| number(&found[*clock], "commits"))
        .collect();
    assert!(
        commits.iter().all(|commit| *commit == commits[0]),
        "clocks say {commits:?}"
    );
    let sum: i64 = (0..ACCOUNTS)
        .map(|account_number| number(&found[&account(account_number)], "balance"))
        .sum();
    assert_eq!(sum, ACCOUNTS * EACH, "money came or went");
    let side = |side: &str| -> Vec<(String, i64)> {
        let of_side = found
            .iter()
            .filter(|(path, _)| path.starts_with(&format!("{side}/")));
        of_side
            .map(|(path, fields)| (path[2..].to_owned(), number(fields, "of")))
            .collect()
    };
    assert_eq!(side("b"), side("y"), "one of a pair is there without the other");
    commits[0]
}

/// Compares with what a plain query finds at the snapshot's time.
async fn check_against_the_past(server: &Server, snapshot: &Snapshot, found: &BTreeMap<String, Fields>) {
    let read_time = Timestamp {
        seconds: snapshot.read_time.seconds,
        nanos: snapshot.read_time.nanos as i32,
    };
    let mut past = Err(tonic::Status::unavailable("not asked yet"));
    // The troubles are for this client as well.
    while matches!(&past, Err(status) if status.code() == Code::Unavailable) {
        past = server.run_at(&server.root(), kindless(), Some(read_time)).await;
    }
    let past = past.unwrap();
    let names: Vec<String> = past.iter().map(|document| server.path(&document.name)).collect();
    let mut expected: Vec<&String> = names.iter().collect();
    expected.sort();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected);
    for (path, document) in names.iter().zip(&past) {
        for (name, value) in &document.fields {
            let same = match &found[path][name] {
                Value::Integer(number) => *value == integer(*number),
                Value::String(string) => *value == text(string),
                other => panic!("{path} has {other:?}"),
            };
            assert!(same, "{path}: {name} is {value:?} in the past");
        }
        assert_eq!(document.fields.len(), found[path].len(), "{path}");
    }
}

async fn backups_while_others_write(address: &str, ranges: usize) {
    let server = Server::connect(address, "consistency").await;
    let database = connect(address, &server.project, "(default)").await;
    let reader = server.with_database("(default)");
    let mut trade = Trade::open(server).await;
    for _ in 0..60 {
        trade.step().await;
    }
    let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let writing = tokio::spawn({
        let (stop, commits) = (stop.clone(), commits.clone());
        async move {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                trade.step().await;
                commits.store(trade.commits, Ordering::Relaxed);
            }
        }
    });
    let repository = repository(small_segments()).await;
    let mut last = 0;
    for read in [None, Some(ReadMode::Names), Some(ReadMode::Full)] {
        let snapshot = match read {
            None => back_up(&database, &repository, ranges).await,
            Some(read) => {
                let night = try_back_up_changes(&database, &repository, read, ranges).await;
                night.unwrap().snapshot
            }
        };
        assert_eq!(snapshot.parent.is_some(), read.is_some());
        let written = commits.load(Ordering::Relaxed);
        let found = contents(&repository, &snapshot).await;
        assert_eq!(found.len() as u64, snapshot.documents);
        let seen = check_invariants(&found);
        assert!(seen >= last, "a later backup must not be of an earlier time");
        assert!(
            written > seen + 2,
            "nothing was written meanwhile: {written} after {seen}"
        );
        last = seen;
        check_against_the_past(&reader, &snapshot, &found).await;
    }
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    assert_intact(&repository, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandbox_backups_are_of_one_moment() {
    let sandbox = sandbox().await;
    // Slow, and cut again and again, so that each backup is put together from queries long apart.
    sandbox.faults().set(FaultPlan {
        faults: vec![
            Fault::new(
                Rpc::RunQuery,
                When::Always,
                Effect::Delay(Duration::from_millis(10)),
            ),
            Fault::new(
                Rpc::RunQuery,
                When::EveryNth(2),
                Effect::CutAfter {
                    documents: 25,
                    code: Code::Unavailable,
                },
            ),
        ],
        ..FaultPlan::default()
    });
    backups_while_others_write(&sandbox.address().to_string(), 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_backups_are_of_one_moment() {
    let Some(address) = emulator() else { return };
    backups_while_others_write(address, 5).await;
}
