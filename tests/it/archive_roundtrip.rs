//! What goes into an archive comes out of it, whole, in part and one by one.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::collections::BTreeSet;

use firebank::archive::*;
use firebank::document::*;
use firebank::store::Store;
use futures::{StreamExt, TryStreamExt};

use crate::archive_support::*;

#[tokio::test]
async fn documents_read_back() {
    for parameters in [tiny(), Parameters::with_seed(1)] {
        let repository = repository(parameters).await;
        let docs = sample(1000);
        let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
        assert_eq!(snapshot.documents, 1000);
        assert_eq!(
            snapshot.body_bytes,
            docs.values().map(|doc| doc.body.len() as u64).sum::<u64>()
        );
        assert_eq!(snapshot.collections["products"].documents, 500);
        assert_eq!(snapshot.collection_groups["reviews"].documents, 250);
        assert_eq!(read(&repository, &snapshot, KeyRange::all()).await.unwrap(), docs);
        let reopened = Repository::open(repository.store().clone()).await.unwrap();
        let found = reopened
            .resolve("latest", &SnapshotFilter::default())
            .await
            .unwrap();
        assert_eq!(found, snapshot);
        assert_eq!(read(&reopened, &found, KeyRange::all()).await.unwrap(), docs);
    }
}

#[tokio::test]
async fn on_a_disk_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository_in(Store::local(folder.path()).unwrap(), tiny()).await;
    let docs = sample(40);
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    assert_eq!(read(&repository, &snapshot, KeyRange::all()).await.unwrap(), docs);
}

#[tokio::test]
async fn parts_read_back() {
    let repository = repository(tiny()).await;
    let docs = sample(600);
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let collection = CollectionPath::parse("products").unwrap().key_range();
    let subtree = DocumentPath::parse("products/p00100").unwrap().key().subtree();
    let keys: Vec<_> = docs.keys().collect();
    let between = KeyRange {
        start: Some(DocumentKey::from_bytes(keys[100].clone())),
        end: Some(DocumentKey::from_bytes(keys[333].clone())),
    };
    for range in [collection, subtree, between] {
        let expected: Docs = docs
            .iter()
            .filter(|(key, _)| range.contains(key))
            .map(|(key, doc)| (key.clone(), doc.clone()))
            .collect();
        assert!(!expected.is_empty());
        assert_eq!(read(&repository, &snapshot, range).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn one_document_takes_few_small_requests() {
    let repository = repository(Parameters::with_seed(3)).await;
    let docs = sample(20_000);
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let reader = repository.reader(&snapshot).await.unwrap();
    let path = DocumentPath::parse("products/p10000").unwrap();
    let before = repository.store().requests();
    let found = reader.get(&path).await.unwrap().unwrap();
    let after = repository.store().requests();
    let expected = &docs[path.key().as_bytes()];
    assert_eq!(found.len(), 1);
    assert_eq!(found.get(0).unwrap().body, expected.body);
    assert_eq!(found.get(0).unwrap().update_time, expected.update_time);
    let gets = after.get + after.get_range - before.get - before.get_range;
    assert!(gets <= 4, "{gets} gets");
    let bytes = after.received_bytes - before.received_bytes;
    assert!(
        bytes < 1_200_000,
        "{bytes} bytes of {}",
        snapshot.stats.stored_bytes
    );
    for missing in ["products/p10001", "zzz/a", "a/a"] {
        let path = DocumentPath::parse(missing).unwrap();
        assert!(reader.get(&path).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn records_never_touch_a_body() {
    let repository = repository(tiny()).await;
    let docs = sample(500);
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let reader = repository.reader(&snapshot).await.unwrap();
    let mut blocks = reader.blocks().boxed();
    while let Some(block) = blocks.try_next().await.unwrap() {
        for chunk in block.entries.iter().flat_map(|entry| &entry.data) {
            repository.store().delete(&chunk.name()).await.unwrap();
        }
    }
    let mut records = reader.records(KeyRange::all()).boxed();
    let mut expected = docs.iter();
    while let Some(batch) = records.try_next().await.unwrap() {
        for record in batch.iter() {
            let (key, doc) = expected.next().unwrap();
            assert_eq!(record.key, key);
            assert_eq!(record.body_hash, repository.body_hash(&doc.body));
            assert_eq!(record.length() as usize, doc.body.len());
            assert_eq!(
                (record.create_time, record.update_time),
                (doc.create_time, doc.update_time)
            );
        }
    }
    assert!(expected.next().is_none());
    let error = read(&repository, &snapshot, KeyRange::all()).await.unwrap_err();
    let damage = error.into_damage().unwrap();
    assert_eq!(damage.kind, DamageKind::Missing);
    assert!(!damage.affected.is_empty(), "{damage:?}");
}

async fn data_chunks(repository: &Repository, snapshot: &Snapshot) -> BTreeSet<ChunkId> {
    let reader = repository.reader(snapshot).await.unwrap();
    let blocks: Vec<_> = reader.blocks().try_collect().await.unwrap();
    let chunks = blocks
        .iter()
        .flat_map(|block| &block.entries)
        .flat_map(|entry| &entry.data);
    chunks.map(|chunk| chunk.id).collect()
}

#[tokio::test]
async fn any_ranges_give_the_same_chunks_and_every_document_once() {
    let docs = sample(400);
    let whole = repository(tiny()).await;
    let expected = back_up(&whole, SessionOptions::new(plan(&[], 0)), &docs).await;
    let expected_chunks = data_chunks(&whole, &expected).await;
    assert!(expected_chunks.len() > 10);
    let keys: Vec<Vec<u8>> = docs.keys().cloned().collect();
    let mut state = 42u64;
    for parts in [2usize, 3, 5, 9, 17, 33, 64] {
        let mut boundaries = BTreeSet::new();
        while boundaries.len() < parts - 1 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut boundary = keys[(state >> 33) as usize % keys.len()].clone();
            // A boundary need not be a document's key.
            if state & 1 == 1 {
                boundary.push(1);
            }
            boundaries.insert(boundary);
        }
        let boundaries: Vec<Vec<u8>> = boundaries.into_iter().collect();
        let repository = repository(tiny()).await;
        let snapshot = back_up(&repository, SessionOptions::new(plan(&boundaries, 0)), &docs).await;
        assert_eq!(
            data_chunks(&repository, &snapshot).await,
            expected_chunks,
            "{parts} parts"
        );
        assert_eq!(snapshot.documents, 400);
        assert_eq!(read(&repository, &snapshot, KeyRange::all()).await.unwrap(), docs);
    }
}

#[tokio::test]
async fn page_boundaries_cut_evenly() {
    let repository = repository(tiny()).await;
    let docs = sample(1000);
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let reader = repository.reader(&snapshot).await.unwrap();
    let boundaries = reader.page_boundaries(8).await.unwrap();
    assert_eq!(boundaries.len(), 7);
    let boundaries: Vec<Vec<u8>> = boundaries.iter().map(|key| key.as_bytes().to_vec()).collect();
    let mut all = Docs::new();
    for range in tile(&boundaries) {
        let part = read(&repository, &snapshot, range).await.unwrap();
        assert!((80..180).contains(&part.len()), "{}", part.len());
        all.extend(part);
    }
    assert_eq!(all, docs);
    assert!(reader.page_boundaries(1).await.unwrap().is_empty());
}

#[tokio::test]
async fn large_and_small_bodies_side_by_side() {
    let repository = repository(Parameters {
        cut_max: 9 << 20,
        ..Parameters::with_seed(9)
    })
    .await;
    let mut docs = Docs::new();
    for (number, length) in [
        (0, 1),
        (1, 3 << 20),
        (2, 12 << 20),
        (3, 256 << 10),
        (4, 200),
        (5, 9 << 20),
    ] {
        docs.insert(key(&format!("c/{number}")), doc(number, length));
    }
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    assert_eq!(read(&repository, &snapshot, KeyRange::all()).await.unwrap(), docs);
}

#[tokio::test]
async fn an_empty_database_makes_a_snapshot_too() {
    let repository = repository(tiny()).await;
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &Docs::new()).await;
    assert!(snapshot.runs.is_empty() && snapshot.documents == 0);
    assert!(
        read(&repository, &snapshot, KeyRange::all())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_selection_stays_within_itself() {
    let repository = repository(tiny()).await;
    let docs = sample(400);
    let products = Selection::new(vec![CollectionPath::parse("products").unwrap()], vec![]);
    let ranges = products.key_ranges();
    let options = SessionOptions::new(Plan {
        ranges: ranges.clone(),
        selection: products.clone(),
        ..plan(&[], 0)
    });
    let snapshot = back_up(&repository, options, &docs).await;
    assert_eq!(snapshot.documents, 200);
    let expected: Docs = docs
        .into_iter()
        .filter(|(key, _)| ranges[0].contains(key))
        .collect();
    assert_eq!(
        read(&repository, &snapshot, KeyRange::all()).await.unwrap(),
        expected
    );
    assert!(
        repository
            .resolve("latest", &SnapshotFilter::default())
            .await
            .is_err()
    );
    let filter = SnapshotFilter {
        selection: Some(products),
        ..SnapshotFilter::default()
    };
    assert_eq!(
        repository.resolve("latest", &filter).await.unwrap().id,
        snapshot.id
    );
}
