//! Sessions: beginning, resuming, working together, committing once, giving up.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use firebank::archive::*;
use firebank::document::*;
use firebank::store::Store;

use crate::archive_support::*;

fn boundaries() -> Vec<Vec<u8>> {
    vec![
        key("orders/__id100__"),
        key("products/p00100"),
        key("products/p00250"),
        key("users/3"),
    ]
}

#[tokio::test]
async fn a_second_backup_of_the_same_documents_adds_no_data() {
    let repository = repository(tiny()).await;
    let docs = sample(400);
    let first = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let options = SessionOptions {
        pins: vec![first.id],
        ..SessionOptions::new(plan(&boundaries(), 60))
    };
    let second = back_up(&repository, options, &docs).await;
    assert_eq!((second.stats.chunks_written, second.stats.new_bytes), (0, 0));
    assert_eq!(second.stats.deduplicated_bytes, second.body_bytes);
    assert!(second.stats.stored_bytes < first.stats.stored_bytes / 3);
    assert_eq!(read(&repository, &second, KeyRange::all()).await.unwrap(), docs);
    // Without the pin nothing is known, and everything is written again under the new session's names.
    let third = back_up(&repository, SessionOptions::new(plan(&[], 120)), &docs).await;
    assert_eq!(third.stats.chunks_written, first.stats.chunks_written);
    let listing = repository.snapshots().await.unwrap();
    let ids: Vec<_> = listing.snapshots.iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(ids, [third.id, second.id, first.id]);
}

#[tokio::test]
async fn a_changed_document_changes_only_chunks_around_it() {
    let repository = repository(tiny()).await;
    let mut docs = sample(400);
    let first = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    let changed = docs.keys().nth(200).unwrap().clone();
    docs.insert(changed, doc(77_777, 90));
    let options = SessionOptions {
        pins: vec![first.id],
        ..SessionOptions::new(plan(&[], 60))
    };
    let second = back_up(&repository, options, &docs).await;
    assert!(second.stats.chunks_written <= 3, "{:?}", second.stats);
    assert!(second.stats.chunks_reused > 10);
    assert_eq!(read(&repository, &second, KeyRange::all()).await.unwrap(), docs);
}

#[tokio::test]
async fn two_workers_share_a_session_and_one_snapshot_comes_of_it() {
    let repository = repository(tiny()).await;
    let docs = sample(400);
    let id = SessionId::from_u64(7);
    let options = SessionOptions {
        id: Some(id),
        ..SessionOptions::new(plan(&boundaries(), 0))
    };
    let one = Session::begin(&repository, options).await.unwrap();
    let two = Session::join(&repository, id, 1 << 20).await.unwrap();
    assert_eq!(two.plan(), one.plan());
    let ranges = one.plan().ranges.clone();
    for (number, range) in ranges.iter().enumerate() {
        // Both do the middle one.
        if number % 2 == 0 || number == 3 {
            feed(one.range_writer(range.clone()), &docs).await;
        }
        if number % 2 == 1 {
            feed(two.range_writer(range.clone()), &docs).await;
        }
    }
    let (a, b) = tokio::join!(
        one.commit(SnapshotDraft::default()),
        two.commit(SnapshotDraft::default())
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(
        a, b,
        "the second commit must answer with the first one's snapshot"
    );
    assert_eq!(a.documents, 400);
    assert_eq!(read(&repository, &a, KeyRange::all()).await.unwrap(), docs);
    let joined = Session::join(&repository, id, 1 << 20).await.unwrap_err();
    assert!(joined.to_string().contains("committed already"), "{joined}");
}

#[tokio::test]
async fn a_resumed_session_does_not_read_finished_ranges_again() {
    let repository = repository(tiny()).await;
    let docs = sample(400);
    let id = SessionId::from_u64(8);
    let options = || SessionOptions {
        id: Some(id),
        ..SessionOptions::new(plan(&boundaries(), 0))
    };
    {
        let session = Session::begin(&repository, options()).await.unwrap();
        for range in &session.plan().ranges[..3] {
            feed(session.range_writer(range.clone()), &docs).await;
        }
        // A writer that dies half-way leaves chunks and no checkpoint.
        let mut writer = session.range_writer(session.plan().ranges[3].clone());
        for (key, doc) in docs.range(key("products/p00250")..).take(60) {
            let document = DocumentRef {
                key,
                create_time: doc.create_time,
                update_time: doc.update_time,
                body: &doc.body,
            };
            let _ = writer.push(document).await.unwrap();
        }
    }
    let session = Session::begin(&repository, options()).await.unwrap();
    let finished: Vec<KeyRange> = session
        .finished_ranges()
        .await
        .unwrap()
        .into_iter()
        .map(|output| output.range)
        .collect();
    assert_eq!(finished, session.plan().ranges[..3]);
    let error = session.commit(SnapshotDraft::default()).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Incomplete { .. }), "{error}");
    for range in &session.plan().ranges[3..] {
        feed(session.range_writer(range.clone()), &docs).await;
    }
    let snapshot = session.commit(SnapshotDraft::default()).await.unwrap();
    assert_eq!(read(&repository, &snapshot, KeyRange::all()).await.unwrap(), docs);
}

#[tokio::test]
async fn a_split_range_is_replaced_by_its_parts() {
    let repository = repository(tiny()).await;
    let docs = sample(200);
    let session = Session::begin(&repository, SessionOptions::new(plan(&[], 0)))
        .await
        .unwrap();
    // Parts of what nobody has split count for nothing.
    let middle = key("products/p00100");
    for range in tile(std::slice::from_ref(&middle)) {
        feed(session.range_writer(range), &docs).await;
    }
    let error = session.commit(SnapshotDraft::default()).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Incomplete { .. }), "{error}");
    let whole = session.planned_ranges().remove(0);
    let parts = session
        .split(&whole, &[DocumentKey::from_bytes(middle)])
        .await
        .unwrap();
    assert_eq!(parts.len(), 2);
    assert!(session.unfinished_ranges().await.unwrap().is_empty());
    let snapshot = session.commit(SnapshotDraft::default()).await.unwrap();
    assert_eq!(read(&repository, &snapshot, KeyRange::all()).await.unwrap(), docs);

    // A range that somebody finishes whole all the same counts as it is, and its parts do not.
    let session = Session::begin(&repository, SessionOptions::new(plan(&[], 1)))
        .await
        .unwrap();
    let whole = session.planned_ranges().remove(0);
    let parts = session
        .split(&whole, &[DocumentKey::from_bytes(key("products/p00100"))])
        .await
        .unwrap();
    feed(session.resume_range_writer(parts[1].clone()), &docs).await;
    feed(session.resume_range_writer(whole), &docs).await;
    let snapshot = session.commit(SnapshotDraft::default()).await.unwrap();
    assert_eq!(read(&repository, &snapshot, KeyRange::all()).await.unwrap(), docs);
}

#[tokio::test]
async fn an_aborted_session_cannot_commit_and_a_committed_one_cannot_be_aborted() {
    let repository = repository(tiny()).await;
    let docs = sample(50);
    let session = Session::begin(&repository, SessionOptions::new(plan(&[], 0)))
        .await
        .unwrap();
    feed(session.range_writer(KeyRange::all()), &docs).await;
    assert!(matches!(
        session.abort("seemed dead").await.unwrap(),
        Decision::Aborted(_)
    ));
    let error = session.commit(SnapshotDraft::default()).await.unwrap_err();
    assert!(error.to_string().contains("seemed dead"), "{error}");
    let again = Session::join(&repository, session.id(), 1 << 20)
        .await
        .unwrap_err();
    assert!(matches!(again, ArchiveError::Aborted { .. }));
    let listing = repository.snapshots().await.unwrap();
    assert!(listing.snapshots.is_empty() && listing.aborted.len() == 1);

    let session = Session::begin(&repository, SessionOptions::new(plan(&[], 1)))
        .await
        .unwrap();
    feed(session.range_writer(KeyRange::all()), &docs).await;
    let snapshot = session.commit(SnapshotDraft::default()).await.unwrap();
    let decision = session.abort("too late").await.unwrap();
    assert_eq!(decision, Decision::Committed(Box::new(snapshot)));
}

#[tokio::test]
async fn a_pin_that_is_gone_aborts_the_session() {
    let repository = repository(tiny()).await;
    let docs = sample(50);
    let first = back_up(&repository, SessionOptions::new(plan(&[], 0)), &docs).await;
    repository
        .store()
        .put(&first.id.forgotten_name(), bytes::Bytes::new())
        .await
        .unwrap();
    for (pin, what) in [
        (first.id, "forgotten"),
        (SessionId::from_u64(99), "does not exist"),
    ] {
        let id = SessionId::random();
        let options = SessionOptions {
            id: Some(id),
            pins: vec![pin],
            ..SessionOptions::new(plan(&[], 1))
        };
        let error = Session::begin(&repository, options).await.unwrap_err();
        assert!(
            matches!(error, ArchiveError::PinGone { .. }) && error.to_string().contains(what),
            "{error}"
        );
        assert!(matches!(
            repository.decision(id).await.unwrap(),
            Some(Decision::Aborted(_))
        ));
    }
    assert!(
        repository
            .resolve(&first.id.to_string(), &SnapshotFilter::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn writers_refuse_what_would_make_a_wrong_archive() {
    let repository = repository(tiny()).await;
    let session = Session::begin(&repository, SessionOptions::new(plan(&[], 0)))
        .await
        .unwrap();
    let doc = doc(1, 30);
    let (low, high, higher) = (key("a/a"), key("a/b"), key("a/c"));
    let document = |key| DocumentRef {
        key,
        create_time: doc.create_time,
        update_time: doc.update_time,
        body: &doc.body,
    };
    for second in [&low, &high] {
        let mut writer = session.range_writer(KeyRange::all());
        let _ = writer.push(document(&high)).await.unwrap();
        let error = writer.push(document(second)).await.unwrap_err();
        assert!(matches!(error, ArchiveError::OutOfOrder { .. }), "{error}");
        // And what follows an error would leave a gap.
        assert!(writer.push(document(&higher)).await.is_err());
        assert!(writer.finish().await.is_err());
    }
    let mut writer = session.range_writer(KeyRange::all());
    assert!(
        writer
            .push(DocumentRef {
                body: &[],
                ..document(&low)
            })
            .await
            .is_err()
    );
    let mut writer = session.range_writer(KeyRange::all());
    assert!(writer.push(document(b"no key")).await.is_err());
    let mut writer = session.range_writer(KeyRange::all());
    assert!(writer.push_tombstone(&low).await.is_err());
}

#[tokio::test]
async fn snapshots_are_found_by_name() {
    let repository = repository(tiny()).await;
    let filter = SnapshotFilter::default();
    let error = repository.resolve("latest", &filter).await.unwrap_err();
    assert!(error.to_string().contains("no snapshot yet"), "{error}");
    for (number, at) in [
        (0xab00_0000_0000_0001, 0),
        (0xab00_0000_0000_0002, 100),
        (0xcd00_0000_0000_0000, 50),
    ] {
        let options = SessionOptions {
            id: Some(SessionId::from_u64(number)),
            ..SessionOptions::new(plan(&[], at))
        };
        back_up(&repository, options, &sample(5)).await;
    }
    let id = async |wanted: &str| {
        repository
            .resolve(wanted, &filter)
            .await
            .map(|snapshot| snapshot.id.to_u64())
    };
    assert_eq!(id("latest").await.unwrap(), 0xab00_0000_0000_0002);
    assert_eq!(id("cd").await.unwrap(), 0xcd00_0000_0000_0000);
    assert_eq!(id("CD0").await.unwrap(), 0xcd00_0000_0000_0000);
    assert_eq!(id("ab00000000000001").await.unwrap(), 0xab00_0000_0000_0001);
    let error = id("ab").await.unwrap_err();
    assert!(
        error.to_string().contains("ab00000000000001") && error.to_string().contains("ab00000000000002"),
        "{error}"
    );
    for unknown in ["ef", "", "0000000000000000"] {
        let error = id(unknown).await.unwrap_err();
        assert!(matches!(error, ArchiveError::UnknownSnapshot { .. }), "{error}");
        assert!(error.to_string().contains("cd00000000000000"), "{error}");
    }
    // One that cannot be read is told of, and ids still work.
    repository
        .store()
        .put(
            "snapshots/ee00000000000000.json",
            bytes::Bytes::from_static(b"{}"),
        )
        .await
        .unwrap();
    let listing = repository.snapshots().await.unwrap();
    assert_eq!((listing.snapshots.len(), listing.unreadable.len()), (3, 1));
    assert!(
        id("latest")
            .await
            .unwrap_err()
            .to_string()
            .contains("ee00000000000000")
    );
    assert!(id("cd").await.is_ok());
}

#[tokio::test]
async fn repositories_are_made_once_and_only_where_nothing_else_is() {
    let error = Repository::open(Store::memory()).await.unwrap_err();
    assert!(
        matches!(error, ArchiveError::NotARepository { .. }) && error.to_string().contains("firebank init")
    );
    let store = Store::memory();
    for name in [
        "backup_products_20250101_000000.json",
        "backup_summary_20250101_000000.json",
    ] {
        store.put(name, bytes::Bytes::from_static(b"{}")).await.unwrap();
    }
    Repository::init(store.clone(), time(0)).await.unwrap();
    let error = Repository::init(store.clone(), time(0)).await.unwrap_err();
    assert!(
        matches!(error, ArchiveError::AlreadyARepository { .. }),
        "{error}"
    );
    Repository::open(store.clone()).await.unwrap();
    for foreign in ["notes.txt", "photos/backup_x.json", "chunks/aa/x"] {
        let store = Store::memory();
        store
            .put(foreign, bytes::Bytes::from_static(b"{}"))
            .await
            .unwrap();
        let error = Repository::init(store, time(0)).await.unwrap_err();
        assert!(
            matches!(&error, ArchiveError::NotEmpty { found, .. } if found == foreign),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_newer_repository_is_refused_by_name() {
    use firebank::archive::repository::{Features, RepositoryConfig};
    let made = repository(tiny()).await;
    for (read, write) in [(true, false), (false, true)] {
        let feature = |needed: bool| {
            if needed {
                vec!["time-travel".to_owned()]
            } else {
                vec![]
            }
        };
        let config = RepositoryConfig {
            features: Features {
                read: feature(read),
                write: feature(write),
                prune: vec![],
            },
            ..made.config().clone()
        };
        let store = Store::memory();
        let object = firebank::archive::envelope::encode("repository", &config).unwrap();
        store.put("repository.json", object).await.unwrap();
        let opened = Repository::open(store).await;
        let error = match read {
            true => opened.unwrap_err(),
            false => Session::begin(&opened.unwrap(), SessionOptions::new(plan(&[], 0)))
                .await
                .unwrap_err(),
        };
        assert!(matches!(error, ArchiveError::Newer { .. }), "{error}");
        assert!(
            error.to_string().contains("time-travel") && error.to_string().contains("newer Firebank"),
            "{error}"
        );
    }
}
