//! Damage: whatever happens to an object, a reader says so or gives the right documents, and a check names the object.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::collections::BTreeSet;

use bytes::Bytes;
use firebank::archive::*;
use firebank::document::*;
use firebank::progress::Progress;
use firebank::store::Store;

use crate::archive_support::*;

/// Everything a reader can be asked, from the listing on.
async fn read_everything(store: &Store) -> Result<Docs> {
    let repository = Repository::open(store.clone()).await?;
    let snapshot = repository.resolve("latest", &SnapshotFilter::default()).await?;
    read(&repository, &snapshot, KeyRange::all()).await
}

async fn report(store: &Store) -> Result<DamageReport> {
    let repository = Repository::open(store.clone()).await?;
    let snapshot = repository.resolve("latest", &SnapshotFilter::default()).await?;
    let readers = [repository.reader(&snapshot).await?];
    let mut report = DamageReport::default();
    check_presence(&readers, &mut report).await?;
    check_contents(&readers, Some(DataSubset::ALL), &mut report, &Progress::new()).await?;
    Ok(report)
}

async fn small_archive() -> (Store, Docs, Vec<String>) {
    let repository = repository(Parameters {
        page_records: 8,
        ..tiny()
    })
    .await;
    let docs = sample(30);
    back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let store = repository.store().clone();
    let mut objects = object_names(&store, "chunks").await;
    objects.extend(object_names(&store, "snapshots").await);
    objects.push("repository.json".to_owned());
    (store, docs, objects)
}

#[tokio::test]
async fn every_flipped_byte_and_every_truncation_is_detected_or_harmless() {
    let (store, docs, objects) = small_archive().await;
    assert!(report(&store).await.unwrap().is_empty());
    let (mut flips, mut harmless) = (0, 0);
    for object in &objects {
        let intact = store.get(object).await.unwrap();
        for position in 0..intact.len() {
            let mut damaged = intact.to_vec();
            damaged[position] ^= 1 << (position % 8);
            for damaged in [Bytes::from(damaged), intact.slice(..position)] {
                // Long objects are cut at some places only: each cut is found by the same few checks.
                if damaged.len() < intact.len() && position % 7 != 0 {
                    continue;
                }
                flips += 1;
                store.put(object, damaged).await.unwrap();
                match read_everything(&store).await {
                    Ok(read) => {
                        harmless += 1;
                        assert_eq!(read, docs, "{object} at {position}: other documents");
                    }
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
        store.put(object, intact).await.unwrap();
    }
    assert_eq!(read_everything(&store).await.unwrap(), docs);
    assert!(flips > 5000, "{flips}");
    assert!(harmless < flips / 4, "{harmless} of {flips} were not noticed");
}

#[tokio::test]
async fn a_check_names_what_is_damaged_and_goes_on() {
    let (store, _, objects) = small_archive().await;
    for object in objects.iter().filter(|name| name.starts_with("chunks/")) {
        let intact = store.get(object).await.unwrap();
        let mut flipped = intact.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        let mut longer = intact.to_vec();
        longer.push(0);
        let cases = [
            Some(Bytes::from(flipped)),
            Some(intact.slice(..intact.len() - 1)),
            Some(Bytes::from(longer)),
            Some(Bytes::new()),
            None,
        ];
        for (case, damaged) in cases.into_iter().enumerate() {
            match damaged {
                Some(damaged) => store.put(object, damaged).await.unwrap(),
                None => store.delete(object).await.unwrap(),
            }
            let report = report(&store).await.unwrap();
            assert!(!report.is_empty(), "case {case} of {object}");
            for damage in report.damages() {
                assert_eq!(&damage.object, object, "case {case}: {damage:?}");
                assert!(damage.span.is_some() && !damage.affected.is_empty(), "{damage:?}");
            }
            if case == 4 {
                assert!(
                    report
                        .damages()
                        .iter()
                        .any(|damage| damage.kind == DamageKind::Missing)
                );
            }
            store.put(object, intact.clone()).await.unwrap();
        }
    }
    // Damage in one place hides none in another.
    let mut damaged = BTreeSet::new();
    for object in objects.iter().filter(|name| name.starts_with("chunks/")) {
        let mut bytes = store.get(object).await.unwrap().to_vec();
        // Byte 9 says the kind: 1 is data.
        if bytes[9] != 1 {
            continue;
        }
        *bytes.last_mut().unwrap() ^= 1;
        store.put(object, Bytes::from(bytes)).await.unwrap();
        damaged.insert(object.clone());
    }
    assert!(damaged.len() > 1, "{damaged:?}");
    let report = report(&store).await.unwrap();
    let named = report.damages().iter().map(|damage| damage.object.clone());
    assert_eq!(named.collect::<BTreeSet<_>>(), damaged);
}

#[tokio::test]
async fn a_damaged_frame_tells_which_documents_it_held() {
    let repository = repository(tiny()).await;
    let docs = sample(200);
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let reader = [repository.reader(&snapshot).await.unwrap()];
    let mut names: Vec<String> = object_names(repository.store(), "chunks").await;
    let mut found = 0;
    while let Some(name) = names.pop() {
        let intact = repository.store().get(&name).await.unwrap();
        // Byte 9 says the kind: 1 is data.
        if intact[9] != 1 {
            continue;
        }
        let mut damaged = intact.to_vec();
        *damaged.last_mut().unwrap() ^= 0xff;
        repository.store().put(&name, Bytes::from(damaged)).await.unwrap();
        let mut report = DamageReport::default();
        check_contents(&reader, Some(DataSubset::ALL), &mut report, &Progress::new())
            .await
            .unwrap();
        assert_eq!(report.count(), 1, "{:?}", report.damages());
        let damage = &report.damages()[0];
        assert_eq!(
            (damage.object.as_str(), damage.kind),
            (name.as_str(), DamageKind::Checksum)
        );
        assert!(
            damage.what.contains("frame") && damage.what.contains("affects"),
            "{}",
            damage.what
        );
        // The reader fails exactly in the documents that the check named.
        let span = damage.span.clone().unwrap();
        for key in docs.keys() {
            let path = DocumentPath::from_key(key).unwrap();
            match reader[0].get(&path).await {
                Ok(found) => assert!(found.is_some()),
                Err(_) => assert!(span.contains(key), "{path} is unreadable and was not named"),
            }
        }
        repository.store().put(&name, intact).await.unwrap();
        found += 1;
        if found == 3 {
            return;
        }
    }
    panic!("no data chunk was found");
}

#[tokio::test]
async fn parts_of_the_data_add_up_to_all() {
    let repository = repository(tiny()).await;
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &sample(400)).await;
    let reader = [repository.reader(&snapshot).await.unwrap()];
    let mut report = DamageReport::default();
    let all = check_contents(&reader, Some(DataSubset::ALL), &mut report, &Progress::new())
        .await
        .unwrap();
    assert_eq!((all.documents, all.raw_bytes), (400, snapshot.body_bytes));
    assert_eq!(all.data_chunks, snapshot.stats.chunks_written);
    let mut sum = (0, 0);
    for part in 0..5 {
        let subset = Some(DataSubset { part, of: 5 });
        let stats = check_contents(&reader, subset, &mut report, &Progress::new())
            .await
            .unwrap();
        assert!(stats.data_chunks < all.data_chunks);
        sum = (sum.0 + stats.data_chunks, sum.1 + stats.documents);
    }
    assert_eq!(sum, (all.data_chunks, all.documents));
    assert!(report.is_empty());
}

#[tokio::test]
async fn a_check_reads_every_chunk_once() {
    let repository = repository(Parameters {
        page_records: 8,
        ..tiny()
    })
    .await;
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &sample(400)).await;
    let store = repository.store().with_own_counters();
    let repository = Repository::open(store.clone()).await.unwrap();
    let readers = [repository.reader(&snapshot).await.unwrap()];
    let before = store.requests();
    let mut report = DamageReport::default();
    let progress = Progress::new();
    let checked = check_contents(&readers, Some(DataSubset::ALL), &mut report, &progress)
        .await
        .unwrap();
    let after = store.requests();
    assert!(report.is_empty());
    assert!(checked.index_chunks > 1 && checked.data_chunks > 10);
    assert_eq!(checked.records, 400);
    assert_eq!(after.get - before.get, checked.index_chunks + checked.data_chunks);
    assert_eq!(after.get_range - before.get_range, checked.directory_blocks);
    assert_eq!(after.received_bytes - before.received_bytes, checked.stored_bytes);
    assert_eq!(
        (progress.documents(), progress.bytes()),
        (400, checked.stored_bytes)
    );
}

#[tokio::test]
async fn a_damaged_index_does_not_hide_damaged_data() {
    let repository = repository(tiny()).await;
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &sample(60)).await;
    let store = repository.store();
    let (mut index, mut data) = (None, None);
    for name in object_names(store, "chunks").await {
        match store.get(&name).await.unwrap()[9] {
            1 => data = Some(name),
            2 => index = Some(name),
            _ => {}
        }
    }
    let names = [index.unwrap(), data.unwrap()];
    let body = store.get(&names[1]).await.unwrap();
    for position in [1, 40] {
        // The header and the frame table are in the index's first bytes; the pages that follow them are whole.
        for (name, position) in [(&names[0], position), (&names[1], body.len() - 1)] {
            let mut bytes = store.get(name).await.unwrap().to_vec();
            bytes[position] ^= 1;
            store.put(name, Bytes::from(bytes)).await.unwrap();
        }
        let readers = [repository.reader(&snapshot).await.unwrap()];
        let mut report = DamageReport::default();
        check_contents(&readers, Some(DataSubset::ALL), &mut report, &Progress::new())
            .await
            .unwrap();
        let found = report.damages();
        assert_eq!(found.len(), 2, "{found:?}");
        for name in &names {
            let damage = found.iter().find(|damage| &damage.object == name).unwrap();
            assert!(!damage.affected.is_empty(), "{damage:?}");
        }
        let of_data = found.iter().find(|damage| damage.object == names[1]).unwrap();
        assert!(of_data.what.contains("affects"), "{of_data:?}");
        for (name, position) in [(&names[0], position), (&names[1], body.len() - 1)] {
            let mut bytes = store.get(name).await.unwrap().to_vec();
            bytes[position] ^= 1;
            store.put(name, Bytes::from(bytes)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn wrong_counts_are_found() {
    let repository = repository(tiny()).await;
    let snapshot = back_up(&repository, SessionOptions::new(plan(&[], 0)), &sample(60)).await;
    let mut documents = snapshot.clone();
    documents.documents += 1;
    let mut bytes = snapshot.clone();
    bytes.body_bytes -= 1;
    let mut collection = snapshot.clone();
    collection.collections.values_mut().next().unwrap().documents += 1;
    let mut group = snapshot.clone();
    group.collection_groups.values_mut().last().unwrap().bytes += 1;
    let intact = repository.reader(&snapshot).await.unwrap();
    for wrong in [documents, bytes, collection, group] {
        // The runs are looked at closely in the first snapshot only, and counted for each.
        let readers = [intact.clone(), repository.reader(&wrong).await.unwrap()];
        let mut report = DamageReport::default();
        check_contents(&readers, None, &mut report, &Progress::new())
            .await
            .unwrap();
        let [damage] = report.damages() else {
            panic!("{:?}", report.damages())
        };
        assert_eq!(damage.kind, DamageKind::Inconsistent);
        assert_eq!(damage.object, snapshot.id.snapshot_name());
    }
}
