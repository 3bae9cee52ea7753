//! Archives of every released format must restore for ever.
//!
//! `fixtures/golden-v1` was written by `write_the_golden_archive` (ignored; run it only when a format is new, never to make a
//! failing test pass). Its documents are made by the same code that the test compares with.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::path::Path;

use firebank::archive::*;
use firebank::document::*;
use firebank::progress::Progress;
use firebank::store::Store;

use crate::archive_support::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/golden-v1");

fn base() -> Docs {
    let mut docs = sample(120);
    docs.insert(key("a/__id-5__"), doc(900, 1));
    docs.insert(key("a/__id9223372036854775807__/ü/😀"), doc(901, 2));
    docs.insert(key("large/one"), doc(902, 9000));
    docs
}

/// Documents that changed or went away.
type Changes = Vec<(Vec<u8>, Option<Doc>)>;

/// The second night: one changed, one new, one gone.
fn changed() -> (Docs, Changes) {
    let mut docs = base();
    let changes = vec![
        (key("orders/__id3__"), None),
        (key("products/p00004"), Some(doc(77, 50))),
        (key("products/zzz"), Some(doc(78, 60))),
    ];
    for (key, change) in &changes {
        match change {
            Some(doc) => docs.insert(key.clone(), doc.clone()),
            None => docs.remove(key),
        };
    }
    (docs, changes)
}

async fn write(store: Store) {
    let repository = repository_in(store, tiny()).await;
    let session = |number, pins: Vec<SessionId>, at| SessionOptions {
        id: Some(SessionId::from_u64(number)),
        pins,
        ..SessionOptions::new(plan(&[key("products/p00050")], at))
    };
    let first = back_up(&repository, session(0x1111_1111_1111_1111, vec![], 0), &base()).await;
    let (docs, changes) = changed();
    let second = Session::begin(
        &repository,
        session(0x2222_2222_2222_2222, vec![first.id], 86_400),
    )
    .await
    .unwrap();
    for range in second.plan().ranges.clone() {
        let mut writer = second.exact_range_writer(range.clone());
        for (key, change) in changes.iter().filter(|(key, _)| range.contains(key)) {
            let _ = match change {
                Some(doc) => {
                    writer
                        .push(DocumentRef {
                            key,
                            create_time: doc.create_time,
                            update_time: doc.update_time,
                            body: &doc.body,
                        })
                        .await
                }
                None => writer.push_tombstone(key).await,
            }
            .unwrap();
        }
        writer.finish().await.unwrap();
    }
    let draft = SnapshotDraft {
        parent: Some(first),
        totals: Some(totals(&docs)),
        tags: vec!["golden".to_owned()],
        description: Some("The second night".to_owned()),
        host: Some("example".to_owned()),
        finished_at: Some(time(90_000)),
        ..SnapshotDraft::default()
    };
    second.commit(draft).await.unwrap();
}

#[tokio::test]
#[ignore = "writes the fixture; only for a new format"]
async fn write_the_golden_archive() {
    assert!(
        !Path::new(FOLDER).join("repository.json").exists(),
        "the golden archive is never written again"
    );
    write(Store::create_local(FOLDER).unwrap()).await;
}

#[tokio::test]
async fn the_golden_archive_restores() {
    let repository = Repository::open(Store::local(FOLDER).unwrap()).await.unwrap();
    let listing = repository.snapshots().await.unwrap();
    assert!(listing.unreadable.is_empty());
    let [second, first] = &listing.snapshots[..] else {
        panic!("{listing:?}")
    };
    assert_eq!(read(&repository, first, KeyRange::all()).await.unwrap(), base());
    assert_eq!(
        read(&repository, second, KeyRange::all()).await.unwrap(),
        changed().0
    );
    let mut report = DamageReport::default();
    let readers = [
        repository.reader(first).await.unwrap(),
        repository.reader(second).await.unwrap(),
    ];
    check_presence(&readers, &mut report).await.unwrap();
    check_contents(&readers, Some(DataSubset::ALL), &mut report, &Progress::new())
        .await
        .unwrap();
    assert!(report.is_empty(), "{:?}", report.damages());
}

/// The same documents cut and named as in the golden archive: what was stored once is found again by later versions.
#[tokio::test]
async fn the_same_documents_still_give_the_same_chunk_ids() {
    let store = Store::memory();
    write(store.clone()).await;
    let golden = Store::local(FOLDER).unwrap();
    let data = async |store: &Store| {
        let mut names = Vec::new();
        for name in object_names(store, "chunks").await {
            if store.get_range(&name, 9..10).await.unwrap()[0] == 1 {
                names.push(name);
            }
        }
        names
    };
    assert_eq!(data(&store).await, data(&golden).await);
}
