//! Layers: a stack of runs reads as if every change had been made to one map.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::sync::Arc;

use firebank::archive::*;
use firebank::document::*;
use firebank::progress::Progress;
use futures::TryStreamExt;
use proptest::prelude::*;

use crate::archive_support::*;

/// A change of one document: new contents, or gone.
type Edit = (u16, Option<u64>);

fn path(number: u16) -> Vec<u8> {
    key(&format!("c{}/{number}", number % 3))
}

/// Puts a layer of changes on top of a snapshot, in ranges between the boundaries.
async fn layer(
    repository: &Repository,
    parent: &Snapshot,
    docs: &mut Docs,
    changes: &[Edit],
    cut: Option<u16>,
) -> Snapshot {
    let mut changed = std::collections::BTreeMap::new();
    for &(number, change) in changes {
        changed.insert(
            path(number),
            change.map(|seed| doc(seed, 20 + seed as usize % 90)),
        );
    }
    let boundaries: Vec<Vec<u8>> = cut.map(path).into_iter().collect();
    let options = SessionOptions {
        pins: vec![parent.id],
        ..SessionOptions::new(plan(&boundaries, parent.read_time.seconds - 1_750_000_000 + 60))
    };
    let session = Session::begin(repository, options).await.unwrap();
    for range in session.plan().ranges.clone() {
        let mut writer = session.exact_range_writer(range.clone());
        for (key, change) in changed.iter().filter(|(key, _)| range.contains(key)) {
            let flow = match change {
                Some(doc) => {
                    let document = DocumentRef {
                        key,
                        create_time: doc.create_time,
                        update_time: doc.update_time,
                        body: &doc.body,
                    };
                    writer.push(document).await.unwrap()
                }
                None => writer.push_tombstone(key).await.unwrap(),
            };
            assert_eq!(flow, Flow::Continue);
        }
        writer.finish().await.unwrap();
    }
    for (key, change) in changed {
        match change {
            Some(doc) => docs.insert(key, doc),
            None => docs.remove(&key),
        };
    }
    let draft = SnapshotDraft {
        parent: Some(parent.clone()),
        totals: Some(totals(docs)),
        ..SnapshotDraft::default()
    };
    session.commit(draft).await.unwrap()
}

/// Merges some runs of the stack, in ranges between the boundaries.
async fn merge(
    repository: &Repository,
    snapshot: &Snapshot,
    runs: std::ops::Range<usize>,
    cut: Option<u16>,
) -> Snapshot {
    let boundaries: Vec<Vec<u8>> = cut.map(path).into_iter().collect();
    let options = SessionOptions {
        pins: vec![snapshot.id],
        ..SessionOptions::new(plan(&boundaries, 100_000))
    };
    let session = Session::begin(repository, options).await.unwrap();
    let reader = repository.reader(snapshot).await.unwrap();
    for range in session.plan().ranges.clone() {
        let output = merge_range(&reader, &runs, &Arc::default(), session.exact_range_writer(range))
            .await
            .unwrap();
        assert_eq!(output.stats.chunks_written, 0);
    }
    session.commit_compaction(snapshot, runs).await.unwrap()
}

async fn check_all(repository: &Repository, snapshot: &Snapshot) {
    let reader = [repository.reader(snapshot).await.unwrap()];
    let mut report = DamageReport::default();
    check_presence(&reader, &mut report).await.unwrap();
    check_contents(&reader, Some(DataSubset::ALL), &mut report, &Progress::new())
        .await
        .unwrap();
    assert!(report.is_empty(), "{:?}", report.damages());
}

type Changed = Vec<(Vec<u8>, ChangeKind, Option<Timestamp>, Option<Timestamp>)>;

/// What the archive says has changed.
async fn changed(repository: &Repository, old: &Snapshot, new: &Snapshot) -> Changed {
    let old = repository.reader(old).await.unwrap();
    let new = repository.reader(new).await.unwrap();
    let batches: Vec<_> = changes(&old, &new, &KeyRange::all()).try_collect().await.unwrap();
    let time = |record: Option<RecordRef<'_>>| record.map(|record| record.update_time);
    let each = |change: Change<'_>| {
        (
            change.key().to_vec(),
            change.kind,
            time(change.old),
            time(change.new),
        )
    };
    batches
        .iter()
        .flat_map(|batch| batch.iter().map(each).collect::<Vec<_>>())
        .collect()
}

fn expected_changes(old: &Docs, new: &Docs) -> Changed {
    let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let kind = |old: Option<&Doc>, new: Option<&Doc>| match (old, new) {
        (None, _) => Some(ChangeKind::Added),
        (_, None) => Some(ChangeKind::Deleted),
        (Some(old), Some(new)) if old.body != new.body => Some(ChangeKind::Changed),
        (Some(old), Some(new)) => (old != new).then_some(ChangeKind::Rewritten),
    };
    keys.into_iter()
        .filter_map(|key| {
            let (old, new) = (old.get(key), new.get(key));
            let time = |doc: Option<&Doc>| doc.map(|doc| doc.update_time);
            Some((key.clone(), kind(old, new)?, time(old), time(new)))
        })
        .collect()
}

fn edit() -> impl Strategy<Value = Edit> {
    (0u16..60, proptest::option::weighted(0.7, any::<u64>()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn stacks_read_as_the_map_that_the_changes_make(
        layers in proptest::collection::vec((proptest::collection::vec(edit(), 0..40), proptest::option::of(0u16..60)), 1..7),
        start in proptest::option::of(0u16..60),
        end in proptest::option::of(0u16..60),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let repository = repository(Parameters { page_records: 5, ..tiny() }).await;
            let mut docs = Docs::new();
            let mut snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
            let mut nights = vec![(snapshot.clone(), docs.clone())];
            for (changes, cut) in &layers {
                snapshot = layer(&repository, &snapshot, &mut docs, changes, *cut).await;
                nights.push((snapshot.clone(), docs.clone()));
            }
            assert_eq!(read(&repository, &snapshot, KeyRange::all()).await.unwrap(), docs);
            let range = KeyRange {
                start: start.map(path).map(DocumentKey::from_bytes),
                end: end.map(path).map(DocumentKey::from_bytes),
            };
            let part: Docs = docs.iter().filter(|(key, _)| range.contains(key)).map(|(key, doc)| (key.clone(), doc.clone())).collect();
            assert_eq!(read(&repository, &snapshot, range).await.unwrap(), part);
            let reader = repository.reader(&snapshot).await.unwrap();
            for number in 0..62 {
                let path = DocumentPath::from_key(&path(number)).unwrap();
                let found = reader.get(&path).await.unwrap();
                let found = found.as_ref().map(|batch| batch.get(0).unwrap().body);
                assert_eq!(found, docs.get(path.key().as_bytes()).map(|doc| &doc.body[..]), "{path}");
            }
            check_all(&repository, &snapshot).await;
            let depth = snapshot.runs.len();
            for (runs, cut) in [(0..depth, None), (0..depth, start), (1.min(depth)..depth, end), (0..depth.saturating_sub(1), None)] {
                let before = snapshot.runs.len() - runs.len();
                let merged = merge(&repository, &snapshot, runs, cut).await;
                assert!(merged.runs.len() <= before + 1);
                assert_eq!(merged.replaces, Some(snapshot.id));
                assert_eq!(read(&repository, &merged, KeyRange::all()).await.unwrap(), docs);
                check_all(&repository, &merged).await;
            }
            let compacted = merge(&repository, &snapshot, 0..depth, None).await;
            assert!(compacted.runs.iter().all(|run| run.tombstones == 0));
            assert_eq!(read(&repository, &compacted, KeyRange::all()).await.unwrap(), docs);
            check_all(&repository, &compacted).await;
            nights.push((compacted, docs.clone()));
            let last = nights.len() - 1;
            for other in 0..last {
                for (old, new) in [(other, last), (last, other), (other, last - 1)] {
                    let ((a, a_docs), (b, b_docs)) = (&nights[old], &nights[new]);
                    assert_eq!(changed(&repository, a, b).await, expected_changes(a_docs, b_docs));
                }
            }
        });
    }
}

#[tokio::test]
async fn nothing_changed_keeps_the_stack_as_it_is() {
    let repository = repository(tiny()).await;
    let mut docs = sample(100);
    let first = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let second = layer(&repository, &first, &mut docs, &[], Some(3)).await;
    assert_eq!(second.runs, first.runs);
    assert_eq!(second.stats.stored_bytes, 0);
    assert_eq!(second.parent, Some(first.id));
    check_all(&repository, &second).await;
}

#[tokio::test]
async fn what_changed_costs_the_change_and_not_the_database() {
    let repository = repository(tiny()).await;
    let mut docs = sample(3000);
    let first = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let before = docs.clone();
    let second = layer(
        &repository,
        &first,
        &mut docs,
        &[(7, Some(1)), (8, Some(2))],
        None,
    )
    .await;
    let requests = || repository.store().requests().get + repository.store().requests().get_range;
    let before_them = requests();
    assert_eq!(
        changed(&repository, &first, &second).await,
        expected_changes(&before, &docs)
    );
    // Block and page of the new run; blocks and pages of the old one where it may have the keys.
    let requests = requests() - before_them;
    assert!(requests <= 6, "{requests} requests");
}

#[tokio::test]
async fn index_chunks_that_no_other_run_touches_are_kept() {
    let repository = repository(Parameters {
        page_records: 4,
        ..tiny()
    })
    .await;
    let mut docs = Docs::new();
    for number in 0..2000 {
        docs.insert(path(number), doc(u64::from(number), 50));
    }
    let first = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    // Everything that changes is in one collection of three.
    let edits: Vec<Edit> = (0..300).map(|n| (3 * n, Some(7000 + u64::from(n)))).collect();
    let second = layer(&repository, &first, &mut docs, &edits, None).await;
    let chunks = |snapshot: Snapshot| {
        let repository = repository.clone();
        async move {
            let reader = repository.reader(&snapshot).await.unwrap();
            let blocks: Vec<_> = reader.blocks().try_collect().await.unwrap();
            let names = |entry: &firebank::archive::run::IndexEntry| entry.chunk.name();
            blocks
                .iter()
                .flat_map(|block| block.entries.iter().map(names).collect::<Vec<_>>())
                .collect::<std::collections::BTreeSet<_>>()
        }
    };
    let before = repository.store().requests();
    let merged = merge(&repository, &second, 0..2, None).await;
    let after = repository.store().requests();
    assert_eq!(read(&repository, &merged, KeyRange::all()).await.unwrap(), docs);
    let (old, new) = (chunks(first.clone()).await, chunks(merged).await);
    let kept = old.intersection(&new).count();
    assert!(
        3 * kept > 2 * old.len() - 6,
        "{kept} of {} chunks kept",
        old.len()
    );
    assert!(after.put_create - before.put_create < old.len() as u64);
}

#[tokio::test]
async fn a_stack_fetches_each_frame_once() {
    let repository = repository(tiny()).await;
    let mut docs = Docs::new();
    for number in 0..300 {
        docs.insert(path(number), doc(u64::from(number), 100));
    }
    let mut snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    for night in 0..10u64 {
        let changes: Vec<Edit> = (0..30)
            .map(|n| (n * 10 + night as u16, Some(1000 * (night + 1) + u64::from(n))))
            .collect();
        snapshot = layer(&repository, &snapshot, &mut docs, &changes, None).await;
    }
    let stored: u64 = docs.values().map(|doc| doc.body.len() as u64).sum();
    let before = repository.store().requests().received_bytes;
    assert_eq!(read(&repository, &snapshot, KeyRange::all()).await.unwrap(), docs);
    let read = repository.store().requests().received_bytes - before;
    assert!(read < 3 * stored, "{read} bytes read for {stored}");
}

#[tokio::test]
async fn a_night_of_many_ranges_leaves_one_index_chunk() {
    let repository = repository(Parameters {
        page_records: 64,
        ..tiny()
    })
    .await;
    let docs = sample(400);
    let first = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let keys: Vec<Vec<u8>> = docs.keys().step_by(20).skip(1).cloned().collect();
    let options = SessionOptions {
        pins: vec![first.id],
        ..SessionOptions::new(plan(&keys, 60))
    };
    let session = Session::begin(&repository, options).await.unwrap();
    let mut changed = docs.clone();
    for range in session.plan().ranges.clone() {
        let mut writer = session.exact_range_writer(range.clone());
        let (key, _) = docs.iter().find(|(key, _)| range.contains(key)).unwrap();
        let _ = writer.push_tombstone(key).await.unwrap();
        changed.remove(key);
        writer.finish().await.unwrap();
    }
    let draft = SnapshotDraft {
        parent: Some(first),
        totals: Some(totals(&changed)),
        ..SnapshotDraft::default()
    };
    let second = session.commit(draft).await.unwrap();
    assert_eq!(second.runs[0].tombstones, keys.len() as u64 + 1);
    let reader = repository.reader(&second).await.unwrap();
    let blocks: Vec<_> = reader.blocks().try_collect().await.unwrap();
    assert_eq!(blocks[0].entries.len(), 1);
    assert_eq!(
        read(&repository, &second, KeyRange::all()).await.unwrap(),
        changed
    );
    check_all(&repository, &second).await;
}
