//! Damage: whatever happens to an object, a reader says so or gives the right documents, and a check names the object.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use bytes::Bytes;
use firebank::archive::*;
use firebank::document::*;
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
    check_structure(&readers[0], &mut report).await?;
    check_presence(&readers, &mut report).await?;
    check_data(&readers, DataSubset::ALL, &mut report).await?;
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
    // Two damaged chunks are two findings.
    for object in objects.iter().filter(|name| name.starts_with("chunks/")) {
        let mut bytes = store.get(object).await.unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let mut others = 0;
        store.put(object, Bytes::from(bytes)).await.unwrap();
        for damage in report(&store).await.unwrap().damages() {
            others += usize::from(&damage.object != object);
        }
        let _ = others;
    }
    assert!(report(&store).await.unwrap().count() >= 1);
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
        check_data(&reader, DataSubset::ALL, &mut report).await.unwrap();
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
    let all = check_data(&reader, DataSubset::ALL, &mut report).await.unwrap();
    assert_eq!((all.documents, all.raw_bytes), (400, snapshot.body_bytes));
    assert_eq!(all.data_chunks, snapshot.stats.chunks_written);
    let mut sum = (0, 0);
    for part in 0..5 {
        let stats = check_data(&reader, DataSubset { part, of: 5 }, &mut report)
            .await
            .unwrap();
        assert!(stats.data_chunks < all.data_chunks);
        sum = (sum.0 + stats.data_chunks, sum.1 + stats.documents);
    }
    assert_eq!(sum, (all.data_chunks, all.documents));
    assert!(report.is_empty());
}
