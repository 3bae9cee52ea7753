//! The store against a model of it: every version of every document in one list.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::synthetic::{Synthetic, SyntheticSpec};
use super::*;
use crate::document::key::key_of;

const HOUR: Micros = 3_600_000_000;

/// A database in which `b` holds synthetic documents.
fn database() -> (Database, Vec<Vec<u8>>) {
    let name = DatabaseName::new("p", "d");
    let source = Arc::new(Synthetic::new(SyntheticSpec::new("b", 12, 300), &name.root()));
    let keys = (0..source.len()).map(|index| source.key(index)).collect();
    (Database::new(name, Arc::default(), vec![source]), keys)
}

/// The keys that the test writes to: around and among the synthetic ones, and those themselves.
fn candidates(synthetic: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = ["a/x", "b/0", "b/zzz", "b\0/x", "c/x"]
        .iter()
        .map(|path| key_of(path))
        .collect();
    for key in synthetic {
        keys.push(key.clone());
        keys.push([&key[..], &key_of("c/1")].concat());
    }
    keys.sort();
    keys
}

fn bound(choice: u8, key: &[u8]) -> Bound<Vec<u8>> {
    match choice % 3 {
        0 => Bound::Unbounded,
        1 => Bound::Included(key.to_vec()),
        _ => Bound::Excluded(key.to_vec()),
    }
}

/// What a document is told apart by.
fn version(found: &Found) -> Micros {
    found.stored().update_time
}

fn all(database: &Database, position: Position, time: Micros, limit: usize) -> Vec<Micros> {
    let mut position = Some(position);
    let mut found = Vec::new();
    while position.is_some() {
        found.extend(
            database
                .scan(&mut position, time, limit, &mut |_, _| true)
                .iter()
                .map(version),
        );
    }
    found
}

proptest! {
    #[test]
    fn scans_agree_with_a_model(
        writes in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..40),
        reads in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>(), any::<u8>(),
             any::<prop::sample::Index>(), 1usize..9),
            1..8,
        ),
    ) {
        let (database, synthetic) = database();
        let keys = candidates(&synthetic);
        let mut states = Vec::new();
        let mut state: BTreeMap<Vec<u8>, Micros> = BTreeMap::new();
        for key in &synthetic {
            state.insert(key.clone(), version(&database.get(key, 0).unwrap()));
        }
        states.push((database.read_time(), state.clone()));
        for (key, exists) in writes {
            let key = &keys[key.index(keys.len())];
            let mut commit = database.write();
            let time = commit.tick();
            let document = exists.then(|| Stored::from_parts("n", b"", time, time));
            commit.put(key, time, document, HOUR);
            if exists { state.insert(key.clone(), time) } else { state.remove(key) };
            states.push((time, state.clone()));
        }
        for (start, start_kind, end, end_kind, time, limit) in reads {
            let position = Position {
                start: bound(start_kind, &keys[start.index(keys.len())]),
                end: bound(end_kind, &keys[end.index(keys.len())]),
            };
            let (time, state) = &states[time.index(states.len())];
            let inside = |key: &Vec<u8>| {
                let above = match &position.start {
                    Bound::Unbounded => true,
                    Bound::Included(start) => key >= start,
                    Bound::Excluded(start) => key > start,
                };
                let below = match &position.end {
                    Bound::Unbounded => true,
                    Bound::Included(end) => key <= end,
                    Bound::Excluded(end) => key < end,
                };
                above && below
            };
            let expected: Vec<Micros> =
                state.iter().filter(|(key, _)| inside(key)).map(|(_, version)| *version).collect();
            prop_assert_eq!(&all(&database, position.clone(), *time, limit), &expected);
            let mut visited = 0;
            database.visit(&position, *time, &mut |run| {
                visited += match run {
                    Run::One(..) => 1,
                    Run::Synthetic(_, range) => range.end - range.start,
                };
                ControlFlow::Continue(())
            });
            prop_assert_eq!(visited as usize, expected.len());
        }
    }
}

#[test]
fn what_was_let_go_cannot_be_read() {
    let (database, _) = database();
    let key = key_of("a/x");
    let mut times = Vec::new();
    for _ in 0..3 {
        let mut commit = database.write();
        let time = commit.tick();
        commit.put(&key, time, Some(Stored::from_parts("n", b"", time, time)), 0);
        times.push(time);
        drop(commit);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let readable = |time: Micros| database.check_read_time(time, HOUR).is_ok();
    assert!(!readable(times[0]), "its version may be gone");
    assert!(readable(times[2]));
    let found = database.get(&key, times[2]).map(|found| version(&found));
    assert_eq!(found, Some(times[2]));
    for time in times.into_iter().filter(|time| readable(*time)) {
        assert_eq!(database.get(&key, time).map(|found| version(&found)), Some(time));
    }
}
