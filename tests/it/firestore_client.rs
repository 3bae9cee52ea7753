//! The database client: what it reads and writes must be complete, in order and at one time, whatever goes wrong.

use std::sync::{Arc, Mutex};

use firebank::document::{
    CollectionPath, DatabaseName, DocumentBatch, DocumentKey, DocumentPath, Fields, GeoPoint, KeyRange,
    Reference, Timestamp, Value, canonical,
};
use firebank::firestore::{
    BulkWriter, ConnectOptions, Error, Firestore, Permission, RetryPolicy, ScanOptions, Target, WriteFailure,
    WriteMode, WriteOptions,
};
use futures::TryStreamExt;
use tonic::Code;

fn path(text: impl Into<String>) -> DocumentPath {
    DocumentPath::parse(text).unwrap()
}

async fn connect(host_port: &str, project: &str) -> Firestore {
    let target = Target::Emulator {
        host_port: host_port.to_owned(),
    };
    let mut options = ConnectOptions::new(DatabaseName::new(project, "(default)"), target);
    options.retry = RetryPolicy::quick();
    Firestore::connect(options).await.unwrap()
}

/// A document as the tests compare it.
type Plain = (DocumentPath, Fields);

fn plain(batch: &DocumentBatch) -> Vec<Plain> {
    batch
        .iter()
        .map(|document| {
            (
                document.path().unwrap(),
                canonical::decode(document.body).unwrap(),
            )
        })
        .collect()
}

async fn scan(firestore: &Firestore, options: ScanOptions) -> Vec<Plain> {
    let batches: Vec<DocumentBatch> = firestore.scan(options).try_collect().await.unwrap();
    batches.iter().flat_map(plain).collect()
}

fn fields(number: i64, text: &str) -> Fields {
    [
        ("number".to_owned(), Value::Integer(number)),
        ("text".to_owned(), Value::String(text.to_owned())),
    ]
    .into()
}

fn failures() -> Arc<Mutex<Vec<WriteFailure>>> {
    Arc::default()
}

async fn write(firestore: &Firestore, documents: &[Plain]) {
    let failures = failures();
    let mut writer = BulkWriter::new(firestore, WriteOptions::new(firestore), failures.clone());
    for (path, fields) in documents {
        writer.put(path, &canonical::encode(fields)).await.unwrap();
    }
    let stats = writer.finish().await.unwrap();
    assert_eq!(*failures.lock().unwrap(), []);
    assert_eq!(stats.written, documents.len() as u64);
}

/// Documents at several depths, children of missing documents among them, in the order of names.
fn sample() -> Vec<Plain> {
    let mut paths: Vec<DocumentPath> = Vec::new();
    for index in 0..120 {
        paths.push(path(format!("products/p{index:04}")));
        if index % 5 == 0 {
            paths.push(path(format!("products/p{index:04}/reviews/r{index}")));
        }
        if index % 7 == 0 {
            paths.push(path(format!("users/missing{index}/orders/o{index}")));
        }
    }
    for id in ["\u{1}", " ", "é", "😀", "a b", "\u{ffff}", "Z", "_", "~"] {
        paths.push(path(format!("odd/{id}")));
    }
    paths.sort();
    paths
        .into_iter()
        .enumerate()
        .map(|(index, path)| {
            let fields = fields(index as i64, &format!("text of {path}"));
            (path, fields)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_round_trip() {
    let Some(host_port) = emulator().await else { return };
    let firestore = connect(&host_port, &fresh_project()).await;
    let empty_time = firestore.current_read_time().await.unwrap();
    let all = |time| ScanOptions::new(KeyRange::all(), time);
    assert_eq!(scan(&firestore, all(empty_time)).await, []);

    let mut documents = sample();
    documents.push((path("zoo/every-type"), every_type()));
    write(&firestore, &documents).await;
    let time = firestore.current_read_time().await.unwrap();
    assert!(time > empty_time);
    assert_eq!(scan(&firestore, all(time)).await, documents);
    // The past stays what it was.
    assert_eq!(scan(&firestore, all(empty_time)).await, []);

    // Small pages and batches change nothing.
    let mut small = all(time);
    small.page_documents = Some(7);
    small.batch_documents = 5;
    assert_eq!(scan(&firestore, small).await, documents);

    let names: Vec<Plain> = scan(&firestore, ScanOptions::names(KeyRange::all(), time)).await;
    let expected: Vec<Plain> = documents
        .iter()
        .map(|(path, _)| (path.clone(), Fields::new()))
        .collect();
    assert_eq!(names, expected);

    // Ranges: a collection, a subtree, everything past it.
    let product = path("products/p0005").key();
    for range in [
        CollectionPath::parse("products").unwrap().key_range(),
        CollectionPath::parse("odd").unwrap().key_range(),
        product.subtree(),
        KeyRange {
            start: product.subtree().end,
            end: CollectionPath::parse("users").unwrap().key_range().end,
        },
        KeyRange {
            start: Some(product.clone()),
            end: Some(product.clone()),
        },
    ] {
        let expected: Vec<Plain> = documents
            .iter()
            .filter(|(path, _)| range.contains(path.key().as_bytes()))
            .cloned()
            .collect();
        assert_eq!(
            scan(&firestore, ScanOptions::new(range.clone(), time)).await,
            expected,
            "{range:?}"
        );
        eprintln!("count {range:?}: {:?}", firestore.count(&range, Some(time)).await);
    }

    for parts in [1, 2, 4, 8] {
        let before = firestore.stats().counts().total_requests();
        let boundaries = firestore.split(&KeyRange::all(), time, parts).await.unwrap();
        check_split(&documents, &KeyRange::all(), &boundaries, parts);
        eprintln!(
            "{parts}: {boundaries:?} {}",
            firestore.stats().counts().total_requests() - before
        );
    }

    let ids: Vec<String> = firestore
        .collection_ids(None, Some(time))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(ids, ["odd", "products", "users", "zoo"]);
    let below: Vec<String> = firestore
        .collection_ids(Some(&path("users/missing7")), Some(time))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(below, ["orders"]);

    // By name, backwards and with gaps.
    let mut wanted: Vec<DocumentPath> = documents.iter().rev().map(|(path, _)| path.clone()).collect();
    wanted.extend((0..400).map(|index| path(format!("products/gone{index:03}"))));
    let fetched = firestore.get_documents(&wanted, Some(time)).await.unwrap();
    assert_eq!(plain(&fetched.found), documents);
    let gone: Vec<DocumentPath> = (0..400)
        .map(|index| path(format!("products/gone{index:03}")))
        .collect();
    assert_eq!(fetched.missing, gone);
}

/// Boundaries must cut the range into parts of a fair size.
fn check_split(documents: &[Plain], range: &KeyRange, boundaries: &[DocumentKey], parts: usize) {
    assert!(
        boundaries.windows(2).all(|pair| pair[0] < pair[1]),
        "{boundaries:?}"
    );
    assert!(
        boundaries.iter().all(|key| range.contains(key.as_bytes())),
        "{boundaries:?}"
    );
    assert_eq!(boundaries.len() + 1, parts, "{boundaries:?}");
    let mut sizes = vec![0; parts];
    for (path, _) in documents {
        let key = path.key();
        sizes[boundaries.partition_point(|boundary| *boundary <= key)] += 1;
    }
    let fair = documents.len() / parts;
    assert!(
        sizes.iter().all(|&size| size <= fair * 2 + 20),
        "{sizes:?} of {}",
        documents.len()
    );
}

fn every_type() -> Fields {
    let nested: Fields = [
        ("b".to_owned(), Value::Null),
        ("a".to_owned(), Value::Boolean(true)),
    ]
    .into();
    [
        ("null", Value::Null),
        ("boolean", Value::Boolean(false)),
        ("integer", Value::Integer(i64::MIN)),
        ("double", Value::Double(-0.0)),
        (
            "timestamp",
            Value::Timestamp(Timestamp::new(1_751_000_000, 123_456_000)),
        ),
        ("string", Value::String("Grüße 😀".to_owned())),
        ("bytes", Value::Bytes(vec![0, 1, 2, 255])),
        (
            "reference",
            Value::Reference(Reference::Relative(path("products/p0001"))),
        ),
        (
            "elsewhere",
            Value::Reference(Reference::Absolute(
                "projects/other/databases/(default)/documents/products/p1".to_owned(),
            )),
        ),
        (
            "point",
            Value::GeoPoint(GeoPoint {
                latitude: 52.5,
                longitude: -13.25,
            }),
        ),
        (
            "array",
            Value::Array(vec![Value::Integer(1), Value::Map(nested.clone())]),
        ),
        ("map", Value::Map(nested)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_writes_are_accounted_for() {
    let Some(host_port) = emulator().await else { return };
    let firestore = connect(&host_port, &fresh_project()).await;
    let body = |number| canonical::encode(&fields(number, "x"));
    write(&firestore, &[(path("a/existing"), fields(0, "old"))]).await;

    let failures = failures();
    let mut options = WriteOptions::new(&firestore);
    options.mode = WriteMode::CreateOnly;
    let mut writer = BulkWriter::new(&firestore, options, failures.clone());
    for index in 0..1200 {
        writer
            .put(&path(format!("a/new{index}")), &body(index))
            .await
            .unwrap();
    }
    writer.put(&path("a/existing"), &body(1)).await.unwrap();
    let stats = writer.finish().await.unwrap();
    assert_eq!((stats.submitted, stats.written, stats.failed), (1201, 1200, 1));
    {
        let failures = failures.lock().unwrap();
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].path, path("a/existing"));
        assert_eq!(failures[0].code, Code::AlreadyExists);
        assert_eq!(failures[0].body, Some(body(1)));
    }

    // The last write to a path wins, deletions included; big documents make smaller requests; one that is too
    // large for the server fails alone.
    let failures = self::failures();
    let mut writer = BulkWriter::new(&firestore, WriteOptions::new(&firestore), failures.clone());
    for round in 0..5 {
        for index in 0..20 {
            writer
                .put(&path(format!("b/{index}")), &body(round * 100 + index))
                .await
                .unwrap();
        }
    }
    writer.delete(&path("b/3")).await.unwrap();
    writer.delete(&path("b/never-was")).await.unwrap();
    let large = canonical::encode(&fields(1, &"y".repeat(900_000)));
    for index in 0..12 {
        writer.put(&path(format!("large/{index}")), &large).await.unwrap();
    }
    let too_large = canonical::encode(&fields(1, &"y".repeat(1_200_000)));
    writer.put(&path("large/too"), &too_large).await.unwrap();
    writer
        .put(
            &path("large/much-too"),
            &canonical::encode(&fields(1, &"y".repeat(5_000_000))),
        )
        .await
        .unwrap();
    assert!(matches!(
        writer.put(&path("b/broken"), b"\xc1").await,
        Err(Error::Document(_))
    ));
    let stats = writer.finish().await.unwrap();
    let failed: Vec<(String, Code, String)> = failures
        .lock()
        .unwrap()
        .iter()
        .map(|failure| (failure.path.to_string(), failure.code, failure.reason.clone()))
        .collect();
    eprintln!("{stats:?} {failed:?}");
    assert_eq!(stats.failed, 2, "{failed:?}");
    assert!(
        failed
            .iter()
            .all(|(path, _, _)| path.starts_with("large/") && path.ends_with("too"))
    );
    assert!(stats.requests >= 5, "{stats:?}");

    let time = firestore.current_read_time().await.unwrap();
    let range = CollectionPath::parse("b").unwrap().key_range();
    let found = scan(&firestore, ScanOptions::new(range, time)).await;
    let mut expected: Vec<Plain> = (0..20)
        .filter(|index| *index != 3)
        .map(|index| (path(format!("b/{index}")), fields(400 + index, "x")))
        .collect();
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found, expected);
}

#[tokio::test]
async fn emulator_permissions_and_metadata() {
    let Some(host_port) = emulator().await else { return };
    let firestore = connect(&host_port, &fresh_project()).await;
    for check in firestore.check_permissions().await {
        match check.permission {
            "datastore.entities.create" => assert!(matches!(check.result, Permission::Unknown(_))),
            _ => assert_eq!(check.result, Permission::Granted, "{check:?}"),
        }
    }
    assert_eq!(firestore.metadata().await.unwrap(), None);
}

#[tokio::test]
async fn nobody_at_the_address() {
    let target = Target::Emulator {
        host_port: "127.0.0.1:1".to_owned(),
    };
    let options = ConnectOptions::new(DatabaseName::new("p", "(default)"), target);
    let error = Firestore::connect(options).await.unwrap_err();
    assert!(
        matches!(&error, Error::Connect { address, .. } if address == "127.0.0.1:1"),
        "{error:?}"
    );
}

/// Projects live side by side in an emulator: a test of its own has one of its own.
fn fresh_project() -> String {
    format!("demo-client-{:016x}", rand::random::<u64>())
}

async fn emulator() -> Option<String> {
    std::env::var("FIREBANK_TMP_EMULATOR").ok()
}
