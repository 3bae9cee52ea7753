//! Documents as trees of values, for the tests of the database client.

use std::sync::{Arc, Mutex};

use firebank::document::{
    DatabaseName, DocumentBatch, DocumentKey, DocumentPath, Fields, GeoPoint, KeyRange, Reference, Timestamp,
    Value, canonical,
};
use firebank::firestore::{BulkWriter, Firestore, ScanOptions, WriteFailure, WriteOptions};
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, Sandbox, When};
use futures::TryStreamExt;
use tonic::Code;

use super::{operations, project, sandbox};

pub(crate) fn path(text: impl Into<String>) -> DocumentPath {
    DocumentPath::parse(text).unwrap()
}

pub(crate) async fn connect(host_port: &str, project: &str) -> Firestore {
    operations::connect(host_port, project, DatabaseName::DEFAULT_DATABASE).await
}

/// A document as the tests compare it.
pub(crate) type Plain = (DocumentPath, Fields);

pub(crate) fn plain(batch: &DocumentBatch) -> Vec<Plain> {
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

pub(crate) async fn scan(firestore: &Firestore, options: ScanOptions) -> Vec<Plain> {
    let batches: Vec<DocumentBatch> = firestore.scan(options).try_collect().await.unwrap();
    batches.iter().flat_map(plain).collect()
}

pub(crate) fn fields(number: i64, text: &str) -> Fields {
    [
        ("number".to_owned(), Value::Integer(number)),
        ("text".to_owned(), Value::String(text.to_owned())),
    ]
    .into()
}

pub(crate) fn failures() -> Arc<Mutex<Vec<WriteFailure>>> {
    Arc::default()
}

pub(crate) async fn write(firestore: &Firestore, documents: &[Plain]) {
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
pub(crate) fn sample() -> Vec<Plain> {
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

pub(crate) fn fault(method: Rpc, when: When, effect: Effect) -> FaultPlan {
    FaultPlan {
        seed: 7,
        faults: vec![Fault::new(method, when, effect)],
        ..FaultPlan::default()
    }
}

pub(crate) fn status(code: Code) -> Effect {
    Effect::Status(code, "made up".to_owned())
}

pub(crate) async fn sandbox_client(sandbox: &Sandbox) -> Firestore {
    operations::client(sandbox, &project("client")).await
}

/// A sandbox with the sample in it.
pub(crate) async fn sampled() -> (Sandbox, Firestore, Vec<Plain>, Timestamp) {
    let sandbox = sandbox().await;
    let firestore = sandbox_client(&sandbox).await;
    let documents = sample();
    write(&firestore, &documents).await;
    let time = firestore.current_read_time().await.unwrap();
    (sandbox, firestore, documents, time)
}

pub(crate) fn every_type() -> Fields {
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

/// Boundaries must cut the range into parts of a fair size.
pub(crate) fn check_split(documents: &[Plain], range: &KeyRange, boundaries: &[DocumentKey], parts: usize) {
    assert!(
        boundaries.windows(2).all(|pair| pair[0] < pair[1]),
        "{boundaries:?}"
    );
    assert!(
        boundaries.iter().all(|key| range.contains(key.as_bytes())),
        "{boundaries:?}"
    );
    assert_eq!(boundaries.len() + 1, parts, "{boundaries:?}");
    let (fair, largest) = (documents.len() / parts, largest_part(documents, boundaries));
    assert!(largest <= fair * 2 + 20, "{largest} of {}", documents.len());
}

/// Documents in the largest of the parts that boundaries make.
pub(crate) fn largest_part(documents: &[Plain], boundaries: &[DocumentKey]) -> usize {
    let mut sizes = vec![0; boundaries.len() + 1];
    for (path, _) in documents {
        let key = path.key();
        sizes[boundaries.partition_point(|boundary| *boundary <= key)] += 1;
    }
    sizes.into_iter().max().unwrap()
}
