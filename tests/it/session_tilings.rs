//! Workers of one session that read, split, write down how far they got, die, are late, and go on to newer times, in any order: what
//! is committed is always whole, each range of it as of its own time.
//!
//! Steps are drawn at random, with the seed in every message. The workers hold what they know of the session for a while, so they act
//! on ranges that others have finished or split since, or that tails have taken the place of.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use firebank::archive::*;
use firebank::document::*;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::archive_support::*;

const WORKERS: usize = 2;
const DOCUMENTS: u64 = 160;

/// The database at each of the times that it is read at: the plan's, and those of tails.
struct Past(Vec<(Timestamp, Docs)>);

impl Past {
    fn new(random: &mut SmallRng, planned: Timestamp) -> Self {
        let mut docs = sample(DOCUMENTS);
        let mut times = vec![(planned, docs.clone())];
        for minute in 1..4 {
            let keys: Vec<Vec<u8>> = docs.keys().cloned().collect();
            for key in keys {
                match random.random_range(0..6) {
                    0 => drop(docs.remove(&key)),
                    1 => drop(docs.insert(key, doc(random.random(), random.random_range(10..900)))),
                    _ => {}
                }
            }
            for number in 0..30 {
                let new = format!("products/p{:05}x{minute}", random.random_range(0..DOCUMENTS));
                docs.insert(key(&new), doc(number, 100));
            }
            times.push((Timestamp::new(planned.seconds + 60 * minute, 0), docs.clone()));
        }
        Self(times)
    }

    fn at(&self, time: Timestamp) -> &Docs {
        &self.0.iter().find(|(at, _)| *at == time).unwrap().1
    }

    /// What a snapshot must hold.
    fn of(&self, snapshot: &Snapshot) -> Docs {
        let tails = match &snapshot.consistency {
            Consistency::Consistent => &[][..],
            Consistency::Mixed { ranges } => ranges,
        };
        let time_of = |key: &[u8]| {
            let tail = tails.iter().find(|tail| tail.range.contains(key));
            tail.map_or(snapshot.read_time, |tail| tail.read_time)
        };
        let all = self
            .0
            .iter()
            .flat_map(|(time, docs)| docs.iter().map(move |one| (*time, one)));
        all.filter(|(time, (key, _))| time_of(key) == *time)
            .map(|(_, (key, doc))| (key.clone(), doc.clone()))
            .collect()
    }
}

struct Worker {
    session: Session,
    /// What it knows, which may be old.
    ranges: Vec<UnfinishedRange>,
}

/// What becomes of a range that a worker reads.
enum Fate {
    Finishes,
    /// Dies after so many documents.
    Dies(usize),
    /// The window closes after so many documents.
    StopsShort(usize),
    /// Gives a part away after so many documents, at the nth that follows.
    Splits(usize, usize),
}

async fn read_range(session: &Session, mut range: UnfinishedRange, docs: &Docs, fate: Fate, often: bool) {
    let after = range.covered().map(|(key, _)| key.as_bytes().to_vec());
    let mut writer = session.resume_range_writer(range.clone());
    let mut pushed = 0;
    let mut shared = false;
    for (key, doc) in docs {
        if !writer.reads().contains(key) || after.as_ref().is_some_and(|after| key <= after) {
            continue;
        }
        match fate {
            Fate::Dies(at) if pushed == at => return,
            Fate::StopsShort(at) if pushed == at => return writer.checkpoint_here().await.unwrap(),
            Fate::Splits(at, further) if pushed == at && !shared && !writer.is_before_first_cut() => {
                shared = true;
                let rest: Vec<&Vec<u8>> = docs
                    .keys()
                    .filter(|later| *later > key && range.range.contains(later))
                    .collect();
                if let Some(boundary) = rest.get(further) {
                    let boundary = DocumentKey::from_bytes((*boundary).clone());
                    let parts = session.split(&range, &[boundary]).await.unwrap();
                    let end = parts[0].range.end.clone();
                    // Another worker may have split it where this one has been.
                    if writer.shorten(end).is_err()
                        || parts[0]
                            .range
                            .end
                            .as_ref()
                            .is_some_and(|end| end.as_bytes() <= &key[..])
                    {
                        return;
                    }
                    range = parts[0].clone();
                }
            }
            _ => {}
        }
        if often {
            writer.want_checkpoint();
        }
        let document = DocumentRef {
            key,
            create_time: doc.create_time,
            update_time: doc.update_time,
            body: &doc.body,
        };
        pushed += 1;
        if writer.push(document).await.unwrap() == Flow::Done {
            break;
        }
    }
    writer.finish().await.unwrap();
}

async fn a_session(seed: u64) -> bool {
    let random = &mut SmallRng::seed_from_u64(seed);
    let repository = repository(tiny()).await;
    let keys: Vec<Vec<u8>> = sample(DOCUMENTS).into_keys().collect();
    let mut cuts: Vec<Vec<u8>> = keys.sample(random, seed as usize % 5).cloned().collect();
    cuts.sort();
    let plan = plan(&cuts, 0);
    let past = Past::new(random, plan.read_time);
    let id = SessionId::from_u64(seed + 1);
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let options = SessionOptions {
            id: Some(id),
            ..SessionOptions::new(plan.clone())
        };
        let session = Session::begin(&repository, options).await.unwrap();
        let ranges = session.planned_ranges();
        workers.push(Worker { session, ranges });
    }
    let mut tails = 0;
    let committed = 'committed: {
        for step in 0.. {
            let worker = &mut workers[random.random_range(0..WORKERS)];
            let session = &worker.session;
            match random.random_range(0..12) {
                0 => match session.commit(SnapshotDraft::default()).await {
                    Ok(snapshot) => break 'committed snapshot,
                    Err(ArchiveError::Incomplete { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                },
                1..4 => worker.ranges = session.unfinished_ranges().await.unwrap(),
                4 if tails + 1 < past.0.len() => {
                    tails += 1;
                    let (before, now) = (past.0[tails - 1].0, past.0[tails].0);
                    session.read_rest_at(before, now).await.unwrap();
                    // Who is late to notice changes nothing any more.
                    session.read_rest_at(before, past.0[0].0).await.unwrap();
                    assert_eq!(session.read_time().await.unwrap(), now, "seed {seed}");
                }
                _ => {
                    let Some(range) = worker.ranges.choose(random).cloned() else {
                        continue;
                    };
                    let fate = match random.random_range(0..5) {
                        _ if step > 60 => Fate::Finishes,
                        0 => Fate::Finishes,
                        1 => Fate::Dies(random.random_range(0..40)),
                        2 => Fate::StopsShort(random.random_range(0..40)),
                        _ => Fate::Splits(random.random_range(0..40), random.random_range(0..30)),
                    };
                    let docs = past.at(range.read_time);
                    read_range(session, range, docs, fate, random.random()).await;
                }
            }
        }
        unreachable!()
    };
    let found = read(&repository, &committed, KeyRange::all()).await.unwrap();
    let expected = past.of(&committed);
    let differs = found
        .iter()
        .zip(&expected)
        .find(|(a, b)| a != b)
        .map(|((a, _), (b, _))| {
            (
                DocumentPath::from_key(a).unwrap(),
                DocumentPath::from_key(b).unwrap(),
            )
        });
    assert_eq!(differs, None, "seed {seed}: {:?}", committed.consistency);
    assert_eq!(found.len(), expected.len(), "seed {seed}");
    assert_eq!(committed.documents, found.len() as u64, "seed {seed}");
    // The other worker has the same answer.
    for worker in &workers {
        assert_eq!(
            worker.session.commit(SnapshotDraft::default()).await.unwrap(),
            committed,
            "seed {seed}"
        );
    }
    committed.consistency != Consistency::Consistent
}

/// The database as a parent has it, and at each of the times that it is read at. Some documents are so large that a range cannot hold
/// what changed in it.
fn changing(random: &mut SmallRng, planned: Timestamp) -> (Docs, Past) {
    let mut past = Past::new(random, planned);
    let parent = past.0[0].1.clone();
    let large = random.random_bool(0.1);
    for number in 0..past.0.len() {
        let docs = &mut past.0[number].1;
        let keys: Vec<Vec<u8>> = docs.keys().cloned().collect();
        for key in keys {
            match random.random_range(0..20) {
                0 => drop(docs.remove(&key)),
                1 => drop(docs.insert(key, doc(random.random(), 400))),
                2 if large => drop(docs.insert(key, doc(random.random(), 300_000))),
                _ => {}
            }
        }
    }
    (parent, past)
}

/// How a worker leaves a range of a layer.
#[derive(Clone, Copy)]
enum Leaves {
    /// Finished, or split so many documents further.
    As(usize, usize),
    Dead(usize),
    /// With a checkpoint.
    Short(usize),
    /// It has missed all changes so far, and has found out: with a checkpoint, and the word that none counts.
    Anew(usize),
}

async fn compare_range(
    session: &Session,
    mut range: UnfinishedRange,
    parent: &Docs,
    docs: &Docs,
    leaves: Leaves,
    often: usize,
) {
    let after = range.covered().map(|(key, _)| key.as_bytes().to_vec());
    let mut writer = session.resume_layer_writer(range.clone()).await.unwrap();
    let whole = range.range.clone();
    let mut all = differences(parent, docs, &whole);
    all.retain(|(key, ..)| after.as_ref().is_none_or(|after| *key > after));
    let mut cursor = None;
    for (place, (key, before, now)) in all.iter().enumerate() {
        if !range.range.contains(key) {
            break;
        }
        match leaves {
            Leaves::Dead(at) if place == at => return,
            Leaves::Short(at) if place == at => {
                if let Some(cursor) = cursor {
                    writer.write_checkpoint(cursor).await.unwrap();
                }
                return;
            }
            Leaves::Anew(at) if place == at => {
                if let Some(cursor) = cursor {
                    writer.write_checkpoint(cursor).await.unwrap();
                    range.passed_checkpoint(writer.next_checkpoint());
                }
                session.begin_anew(&mut range, ReadMode::Full).await.unwrap();
                assert!(range.covered().is_none() && range.read() == Some(ReadMode::Full));
                return;
            }
            Leaves::As(at, further) if place == at => {
                if let Some((boundary, ..)) = all.get(place + 1 + further) {
                    let boundary = DocumentKey::from_bytes((*boundary).clone());
                    let parts = session.split(&range, &[boundary]).await.unwrap();
                    let end = parts[0].range.end.clone();
                    // Another worker may have split it where this one has been.
                    if end.as_ref().is_some_and(|end| end.as_bytes() <= &key[..]) {
                        return;
                    }
                    writer.shorten(end).unwrap();
                    range = parts[0].clone();
                }
            }
            _ => {}
        }
        let is_blind = matches!(leaves, Leaves::Anew(_));
        match (is_blind, before) {
            (false, _) => compare_one(&mut writer, key, *before, *now).await.unwrap(),
            (true, Some(_)) => compare_one(&mut writer, key, *before, *before).await.unwrap(),
            (true, None) => {}
        }
        cursor = Some(DocumentKey::from_bytes((*key).clone()));
        if place % 10 < often
            && let Some(cursor) = &cursor
        {
            writer.write_checkpoint(cursor.clone()).await.unwrap();
        }
    }
    match leaves {
        Leaves::Anew(_) => session.begin_anew(&mut range, ReadMode::Full).await.unwrap(),
        _ => drop(writer.finish().await.unwrap()),
    }
}

/// The same of a night: what is written is what differs from a parent, which is forgotten meanwhile.
async fn a_night(seed: u64) -> (bool, usize) {
    let random = &mut SmallRng::seed_from_u64(seed);
    let repository = repository(tiny()).await;
    let planned = plan(&[], 10);
    let (parent_docs, past) = changing(random, planned.read_time);
    let parent = back_up(&repository, SessionOptions::new(plan(&[], 0)), &parent_docs).await;
    let keys: Vec<Vec<u8>> = parent_docs.keys().cloned().collect();
    let mut cuts: Vec<Vec<u8>> = keys.sample(random, seed as usize % 5).cloned().collect();
    cuts.sort();
    let plan = Plan {
        parent: Some(parent.id),
        read: ReadMode::Names,
        ..plan(&cuts, 10)
    };
    let id = SessionId::from_u64(seed + 1_000);
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let options = SessionOptions {
            id: Some(id),
            ..SessionOptions::new(plan.clone())
        };
        let session = Session::begin(&repository, options).await.unwrap();
        let ranges = session.planned_ranges();
        workers.push(Worker { session, ranges });
    }
    repository.forget(parent.id, "a test").await.unwrap();
    sweep(&repository, &SweepOptions::default()).await.unwrap();
    let draft = || SnapshotDraft {
        parent: Some(parent.clone()),
        ..SnapshotDraft::default()
    };
    let (mut tails, mut anew) = (0, 0);
    let committed = 'committed: {
        for step in 0.. {
            let worker = &mut workers[random.random_range(0..WORKERS)];
            let session = &worker.session;
            match random.random_range(0..12) {
                0 => match session.commit(draft()).await {
                    Ok(snapshot) => break 'committed snapshot,
                    Err(ArchiveError::Incomplete { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                },
                1..4 => worker.ranges = session.unfinished_ranges().await.unwrap(),
                4 if tails + 1 < past.0.len() && seed.is_multiple_of(2) => {
                    tails += 1;
                    let (before, now) = (past.0[tails - 1].0, past.0[tails].0);
                    session.read_rest_at(before, now).await.unwrap();
                }
                _ => {
                    let Some(range) = worker.ranges.choose(random).cloned() else {
                        continue;
                    };
                    anew += usize::from(range.read().is_some());
                    let at = random.random_range(0..40);
                    let leaves = match random.random_range(0..5) {
                        _ if step > 60 => Leaves::As(usize::MAX, 0),
                        0 => Leaves::As(usize::MAX, 0),
                        1 => Leaves::Dead(at),
                        2 => Leaves::Short(at),
                        3 => Leaves::Anew(at),
                        _ => Leaves::As(at, random.random_range(0..30)),
                    };
                    let docs = past.at(range.read_time);
                    let often = random.random_range(0..3);
                    compare_range(session, range, &parent_docs, docs, leaves, often).await;
                }
            }
        }
        unreachable!()
    };
    let found = read(&repository, &committed, KeyRange::all()).await.unwrap();
    let expected = past.of(&committed);
    let differs = found.iter().zip(&expected).find(|(a, b)| a != b);
    let path = |key: &[u8]| DocumentPath::from_key(key).unwrap();
    let differs = differs.map(|((a, _), (b, _))| (path(a), path(b)));
    assert_eq!(differs, None, "seed {seed}: {:?}", committed.consistency);
    assert_eq!(found.len(), expected.len(), "seed {seed}");
    assert_eq!(committed.documents, found.len() as u64, "seed {seed}");
    for worker in &workers {
        assert_eq!(
            worker.session.commit(draft()).await.unwrap(),
            committed,
            "seed {seed}"
        );
    }
    sweep(&repository, &SweepOptions::default()).await.unwrap();
    let again = read(&repository, &committed, KeyRange::all()).await.unwrap();
    assert!(again == found, "seed {seed}: a sweep took something");
    (committed.consistency != Consistency::Consistent, anew)
}

#[tokio::test]
async fn whatever_workers_of_a_night_do_a_commit_is_whole() {
    let (mut mixed, mut anew) = (0, 0);
    for seed in 0..50 {
        let night = a_night(seed).await;
        mixed += u32::from(night.0);
        anew += night.1;
    }
    assert!((8..50).contains(&mixed), "{mixed} were of several times");
    assert!(anew > 20, "{anew} ranges were begun anew");
}

#[tokio::test]
async fn whatever_workers_do_a_commit_is_whole() {
    let mut mixed = 0;
    for seed in 0..150 {
        mixed += u32::from(a_session(seed).await);
    }
    assert!((30..150).contains(&mixed), "{mixed} were of several times");
}
