//! The database client: what it reads and writes must be complete, in order and at one time, whatever goes wrong.

use std::sync::{Arc, Mutex};

use firebank::document::{
    CollectionPath, DatabaseName, DocumentBatch, DocumentKey, DocumentPath, Fields, GeoPoint, KeyRange,
    Reference, Timestamp, Value, canonical,
};
use firebank::firestore::{
    BulkWriter, ConnectOptions, Error, Firestore, Permission, Precondition, RetryPolicy, ScanOptions, Target,
    Write, WriteFailure, WriteOptions, WriteStats,
};
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, Sandbox, SandboxConfig, SyntheticSpec, When};
use futures::{StreamExt, TryStreamExt};
use tonic::Code;

use crate::support::{emulator, project, sandbox, sandbox_with};

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
    let Some(host_port) = emulator() else { return };
    let firestore = connect(host_port, &project("client")).await;
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
        assert_eq!(
            firestore.count(&range, Some(time)).await.unwrap(),
            expected.len() as u64
        );
    }

    for parts in [1, 2, 4, 8] {
        let boundaries = firestore.split(&KeyRange::all(), &[], time, parts).await.unwrap();
        check_split(&documents, &KeyRange::all(), &boundaries, parts);
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
    let (fair, largest) = (documents.len() / parts, largest_part(documents, boundaries));
    assert!(largest <= fair * 2 + 20, "{largest} of {}", documents.len());
}

/// Documents in the largest of the parts that boundaries make.
fn largest_part(documents: &[Plain], boundaries: &[DocumentKey]) -> usize {
    let mut sizes = vec![0; boundaries.len() + 1];
    for (path, _) in documents {
        let key = path.key();
        sizes[boundaries.partition_point(|boundary| *boundary <= key)] += 1;
    }
    sizes.into_iter().max().unwrap()
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
    let Some(host_port) = emulator() else { return };
    let firestore = connect(host_port, &project("client")).await;
    let body = |number| canonical::encode(&fields(number, "x"));
    write(&firestore, &[(path("a/existing"), fields(0, "old"))]).await;

    let failures = failures();
    let mut writer = BulkWriter::new(&firestore, WriteOptions::new(&firestore), failures.clone());
    for index in 0..600 {
        let path = path(format!("a/new{index}"));
        writer.write(Write::create(&path, &body(index))).await.unwrap();
    }
    writer
        .write(Write::create(&path("a/existing"), &body(1)))
        .await
        .unwrap();
    let stats = writer.finish().await.unwrap();
    assert_eq!((stats.submitted, stats.written, stats.failed), (601, 600, 1));
    {
        let failures = failures.lock().unwrap();
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].path, path("a/existing"));
        assert_eq!(failures[0].code, Code::AlreadyExists);
        assert_eq!(failures[0].body(), Some(&body(1)[..]));
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
    for index in 0..6 {
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
    assert_eq!(stats.failed, 2, "{failed:?}");
    assert!(
        failed
            .iter()
            .all(|(path, _, _)| path.starts_with("large/") && path.ends_with("too"))
    );
    assert!(stats.requests >= 3, "{stats:?}");

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
    let Some(host_port) = emulator() else { return };
    let firestore = connect(host_port, &project("client")).await;
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

fn fault(method: Rpc, when: When, effect: Effect) -> FaultPlan {
    FaultPlan {
        seed: 7,
        faults: vec![Fault::new(method, when, effect)],
        ..FaultPlan::default()
    }
}

fn status(code: Code) -> Effect {
    Effect::Status(code, "made up".to_owned())
}

async fn sandbox_client(sandbox: &Sandbox) -> Firestore {
    connect(&sandbox.address().to_string(), &project("client")).await
}

/// A sandbox with the sample in it.
async fn sampled() -> (Sandbox, Firestore, Vec<Plain>, Timestamp) {
    let sandbox = sandbox().await;
    let firestore = sandbox_client(&sandbox).await;
    let documents = sample();
    write(&firestore, &documents).await;
    let time = firestore.current_read_time().await.unwrap();
    (sandbox, firestore, documents, time)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_is_complete_whatever_happens_to_its_streams() {
    let (sandbox, firestore, documents, time) = sampled().await;
    let run = Rpc::RunQuery;
    let cut = |documents, code| Effect::CutAfter { documents, code };
    let plans = [
        fault(run, When::Always, cut(7, Code::Unavailable)),
        fault(run, When::Always, cut(1, Code::Internal)),
        fault(run, When::EveryNth(2), cut(0, Code::DeadlineExceeded)),
        fault(run, When::EveryNth(3), Effect::ResetAfter { documents: 5 }),
        fault(run, When::First(3), Effect::ResetAfter { documents: 0 }),
        fault(run, When::Always, Effect::EndAfter { documents: 10 }),
        fault(run, When::Always, Effect::EndAfter { documents: 1 }),
        fault(run, When::First(4), status(Code::ResourceExhausted)),
        fault(run, When::EveryNth(2), status(Code::Aborted)),
        fault(
            run,
            When::Always,
            Effect::Delay(std::time::Duration::from_millis(3)),
        ),
        FaultPlan {
            stream_lifetime: Some(std::time::Duration::from_millis(20)),
            bytes_per_second: Some(400_000),
            ..FaultPlan::default()
        },
    ];
    for plan in plans {
        sandbox.faults().set(plan.clone());
        for page in [None, Some(9), Some(1000)] {
            let mut options = ScanOptions::new(KeyRange::all(), time);
            options.page_documents = page;
            options.batch_documents = 8;
            assert_eq!(scan(&firestore, options).await, documents, "{plan:?} {page:?}");
        }
    }
    assert!(firestore.stats().counts().retries > 20);
}

#[tokio::test]
async fn what_is_refused_for_good_is_said_at_once() {
    let (sandbox, firestore, _, time) = sampled().await;
    let first = async |options: ScanOptions| firestore.scan(options).boxed().try_next().await.unwrap_err();
    let all = || ScanOptions::new(KeyRange::all(), time);

    let requests = sandbox.usage().requests_of(Rpc::RunQuery);
    sandbox
        .faults()
        .set(fault(Rpc::RunQuery, When::Always, status(Code::PermissionDenied)));
    let error = first(all()).await;
    assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
    assert!(error.to_string().contains("roles/datastore.viewer"), "{error}");
    assert_eq!(sandbox.usage().requests_of(Rpc::RunQuery), requests + 1);

    sandbox
        .faults()
        .set(fault(Rpc::RunQuery, When::Always, status(Code::Unauthenticated)));
    assert!(matches!(first(all()).await, Error::Unauthenticated { .. }));

    sandbox
        .faults()
        .set(fault(Rpc::RunQuery, When::Always, status(Code::Unavailable)));
    let error = first(all()).await;
    assert!(
        matches!(error, Error::Unavailable { attempts: 12, .. }),
        "{error:?}"
    );

    sandbox.faults().set(FaultPlan {
        history: Some(std::time::Duration::from_millis(50)),
        ..FaultPlan::default()
    });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let error = first(all()).await;
    assert!(
        matches!(error, Error::ReadTimeTooOld { read_time, .. } if read_time == time),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_stream_ends_after_its_first_error() {
    let (sandbox, firestore, _, time) = sampled().await;
    sandbox
        .faults()
        .set(fault(Rpc::RunQuery, When::Always, status(Code::PermissionDenied)));
    let results: Vec<_> = firestore
        .scan(ScanOptions::new(KeyRange::all(), time))
        .collect()
        .await;
    assert_eq!(results.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_answer_for_every_name_whatever_happens() {
    let (sandbox, firestore, documents, time) = sampled().await;
    let mut wanted: Vec<DocumentPath> = documents.iter().map(|(path, _)| path.clone()).collect();
    let gone: Vec<DocumentPath> = (0..700)
        .map(|index| path(format!("products/gone{index:03}")))
        .collect();
    wanted.extend(gone.iter().cloned());
    wanted.extend(gone.iter().take(10).cloned());
    let get = Rpc::BatchGetDocuments;
    let plans = [
        FaultPlan::default(),
        fault(
            get,
            When::Always,
            Effect::CutAfter {
                documents: 50,
                code: Code::Unavailable,
            },
        ),
        fault(get, When::EveryNth(2), Effect::EndAfter { documents: 5 }),
        fault(get, When::EveryNth(2), Effect::ResetAfter { documents: 20 }),
        fault(get, When::EveryNth(2), status(Code::Internal)),
    ];
    for plan in plans {
        sandbox.faults().set(plan.clone());
        let fetched = firestore.get_documents(&wanted, Some(time)).await.unwrap();
        assert_eq!(plain(&fetched.found), documents, "{plan:?}");
        assert_eq!(fetched.missing, gone, "{plan:?}");
    }
}

async fn write_through(
    firestore: &Firestore,
    options: WriteOptions,
    precondition: Precondition,
    documents: &[Plain],
) -> Result<(WriteStats, Vec<WriteFailure>), Error> {
    let failures = failures();
    let mut writer = BulkWriter::new(firestore, options, failures.clone());
    for (path, fields) in documents {
        let body = canonical::encode(fields);
        writer.write(Write::put(path, &body).on(precondition)).await?;
    }
    let stats = writer.finish().await?;
    let failures = failures.lock().unwrap().clone();
    assert_eq!(stats.failed, failures.len() as u64);
    assert_eq!(stats.written + stats.failed, documents.len() as u64);
    Ok((stats, failures))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_arrives_whatever_happens_to_the_requests() {
    let documents = sample();
    let write = Rpc::BatchWrite;
    let plans = [
        fault(write, When::EveryNth(2), status(Code::Unavailable)),
        fault(write, When::First(3), status(Code::ResourceExhausted)),
        fault(write, When::EveryNth(3), Effect::ResetAfter { documents: 0 }),
        FaultPlan {
            faults: vec![Fault::write(Code::Aborted, "", When::Probability(0.3))],
            seed: 11,
            ..FaultPlan::default()
        },
        FaultPlan {
            max_request_writes: Some(3),
            ..FaultPlan::default()
        },
        FaultPlan {
            max_request_bytes: Some(700),
            ..FaultPlan::default()
        },
        FaultPlan {
            faults: vec![
                Fault::write(Code::Unavailable, "", When::Probability(0.2)),
                Fault::new(write, When::EveryNth(2), status(Code::Internal)),
            ],
            max_request_writes: Some(20),
            ..FaultPlan::default()
        },
    ];
    for (precondition, plan) in plans
        .iter()
        .flat_map(|plan| [Precondition::None, Precondition::MustNotExist].map(|condition| (condition, plan)))
    {
        let sandbox = sandbox().await;
        let firestore = sandbox_client(&sandbox).await;
        sandbox.faults().set(plan.clone());
        let mut options = WriteOptions::new(&firestore);
        options.batch_writes = 50;
        options.max_in_flight = 4;
        let (stats, failures) = write_through(&firestore, options, precondition, &documents)
            .await
            .unwrap();
        assert_eq!(failures, [], "{plan:?}");
        assert!(stats.requests > documents.len() as u64 / 50, "{plan:?} {stats:?}");
        sandbox.faults().set(FaultPlan::default());
        let time = firestore.current_read_time().await.unwrap();
        assert_eq!(
            scan(&firestore, ScanOptions::new(KeyRange::all(), time)).await,
            documents,
            "{plan:?}"
        );
    }
}

/// A write may be done though its status says that it timed out: that it then meets its own precondition is no failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_whose_status_does_not_tell_are_looked_for() {
    let documents = sample();
    for code in [Code::DeadlineExceeded, Code::Internal, Code::Unavailable] {
        for when in [When::Always, When::EveryNth(3)] {
            let sandbox = sandbox().await;
            let firestore = sandbox_client(&sandbox).await;
            sandbox.faults().add(Fault::done_write(code, "", when));
            let (stats, failures) = write_through(
                &firestore,
                WriteOptions::new(&firestore),
                Precondition::MustNotExist,
                &documents,
            )
            .await
            .unwrap();
            assert_eq!(failures, [], "{code:?} {when:?}");
            assert_eq!(stats.written, documents.len() as u64);
            // Deletions as well.
            let time = firestore.current_read_time().await.unwrap();
            let there = scan(&firestore, ScanOptions::new(KeyRange::all(), time)).await;
            assert_eq!(there, documents, "{code:?} {when:?}");
            let failures = self::failures();
            let mut writer = BulkWriter::new(&firestore, WriteOptions::new(&firestore), failures.clone());
            for document in &there {
                let condition = Precondition::MustExist;
                writer
                    .write(Write::delete(&document.0).on(condition))
                    .await
                    .unwrap();
            }
            writer.finish().await.unwrap();
            assert_eq!(*failures.lock().unwrap(), [], "{code:?} {when:?}");
        }
    }
    // What is refused for good before it was ever in doubt stays refused.
    let sandbox = sandbox().await;
    let firestore = sandbox_client(&sandbox).await;
    let options = || WriteOptions::new(&firestore);
    write_through(&firestore, options(), Precondition::None, &documents)
        .await
        .unwrap();
    sandbox
        .faults()
        .add(Fault::write(Code::Aborted, "", When::First(5)));
    let (_, failures) = write_through(&firestore, options(), Precondition::MustNotExist, &documents)
        .await
        .unwrap();
    assert_eq!(failures.len(), documents.len());
}

/// What was encoded apart is written as if it had been put: in order where paths repeat, in as few requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encoded_writes_are_writes() {
    let sandbox = sandbox().await;
    let firestore = sandbox_client(&sandbox).await;
    let body = |number| canonical::encode(&fields(number, "x"));
    let failures = failures();
    let mut options = WriteOptions::new(&firestore);
    options.batch_writes = 50;
    let mut writer = BulkWriter::new(&firestore, options, failures.clone());
    let mut encoders: Vec<_> = (0..10).map(|_| writer.encoder()).collect();
    for (part, encoder) in encoders.iter_mut().enumerate() {
        for index in 0..65 {
            encoder
                .put(&path(format!("apart/{part}-{index}")), &body(index))
                .unwrap();
        }
        assert!(encoder.put(&path("apart/broken"), b"\xc1").is_err());
    }
    // One full request of each, and what is left over of ten makes three.
    for mut encoder in encoders {
        writer.submit(encoder.take_full()).await.unwrap();
        writer.submit(encoder.finish()).await.unwrap();
    }
    let stats = writer.stats();
    assert_eq!((stats.submitted, stats.requests <= 13), (650, true), "{stats:?}");

    // The last write to a path wins, whichever way each of them came.
    writer.put(&path("same/a"), &body(1)).await.unwrap();
    for round in 0..4 {
        let mut encoder = writer.encoder();
        for number in 0..120 {
            encoder
                .put(
                    &path(format!("same/{}", number % 40)),
                    &body(round * 1000 + number),
                )
                .unwrap();
        }
        encoder.put(&path("same/a"), &body(round)).unwrap();
        writer.submit(encoder.finish()).await.unwrap();
    }
    writer.put(&path("same/7"), &body(7)).await.unwrap();
    let stats = writer.finish().await.unwrap();
    assert_eq!(stats.written, 650 + 2 + 4 * 121);
    assert_eq!(*failures.lock().unwrap(), []);
    let read_time = firestore.current_read_time().await.unwrap();
    let found = scan(&firestore, ScanOptions::new(KeyRange::all(), read_time)).await;
    assert_eq!(found.len(), 650 + 41);
    for (path, found) in found
        .into_iter()
        .filter(|(path, _)| path.root_collection() == "same")
    {
        let number = match path.id() {
            "a" => 3,
            "7" => 7,
            id => 3080 + id.parse::<i64>().unwrap(),
        };
        assert_eq!(found, fields(number, "x"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_is_handed_over_alone() {
    let documents = sample();
    let bad: Vec<Plain> = documents
        .iter()
        .filter(|(path, _)| path.as_str().contains("/p000"))
        .cloned()
        .collect();
    let good: Vec<Plain> = documents
        .iter()
        .filter(|document| !bad.contains(document))
        .cloned()
        .collect();
    for code in [Code::InvalidArgument, Code::PermissionDenied, Code::Unavailable] {
        let sandbox = sandbox().await;
        let firestore = sandbox_client(&sandbox).await;
        sandbox.faults().set(FaultPlan {
            faults: vec![Fault::write(code, "/p000", When::Always)],
            ..FaultPlan::default()
        });
        let (stats, mut failures) = write_through(
            &firestore,
            WriteOptions::new(&firestore),
            Precondition::None,
            &documents,
        )
        .await
        .unwrap();
        assert_eq!(stats.failed, bad.len() as u64);
        failures.sort_by(|a, b| a.path.cmp(&b.path));
        for (failure, (path, fields)) in failures.iter().zip(&bad) {
            assert_eq!((&failure.path, failure.code), (path, code));
            assert_eq!(failure.body(), Some(&canonical::encode(fields)[..]));
        }
        let time = firestore.current_read_time().await.unwrap();
        assert_eq!(
            scan(&firestore, ScanOptions::new(KeyRange::all(), time)).await,
            good
        );
    }
}

#[tokio::test]
async fn a_refusal_of_everything_stops_the_writer() {
    let sandbox = sandbox().await;
    let firestore = sandbox_client(&sandbox).await;
    for (code, attempts) in [
        (Code::PermissionDenied, 1),
        (Code::Unauthenticated, 1),
        (Code::Unavailable, 12),
    ] {
        sandbox
            .faults()
            .set(fault(Rpc::BatchWrite, When::Always, status(code)));
        let before = sandbox.usage().requests_of(Rpc::BatchWrite);
        let failures = failures();
        let mut options = WriteOptions::new(&firestore);
        options.max_in_flight = 1;
        let mut writer = BulkWriter::new(&firestore, options, failures.clone());
        let mut outcome = Ok(());
        for (path, fields) in &sample() {
            outcome = writer.put(path, &canonical::encode(fields)).await;
            if outcome.is_err() {
                break;
            }
        }
        let error = match outcome {
            Err(error) => error,
            Ok(()) => writer.finish().await.unwrap_err(),
        };
        assert_eq!(error.status().map(tonic::Status::code), Some(code), "{error:?}");
        assert_eq!(sandbox.usage().requests_of(Rpc::BatchWrite) - before, attempts);
        assert_eq!(*failures.lock().unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_scans_hold_nobody_up() {
    let sandbox = sandbox_with(SandboxConfig {
        synthetic: vec![SyntheticSpec::new("things", 200_000, 900)],
        ..SandboxConfig::default()
    })
    .await;
    let firestore = sandbox_client(&sandbox).await;
    let time = firestore.current_read_time().await.unwrap();
    let mut scans: Vec<_> = (0..30)
        .map(|_| firestore.scan(ScanOptions::new(KeyRange::all(), time)).boxed())
        .collect();
    let mut names = Vec::new();
    for scan in &mut scans {
        let batch = scan.try_next().await.unwrap().unwrap();
        names.extend(batch.iter().map(|document| document.path().unwrap()));
    }
    names.sort();
    names.dedup();
    let calls = async {
        let fetched = firestore.get_documents(&names, Some(time)).await.unwrap();
        assert_eq!(fetched.found.len(), names.len());
        let mut writer = BulkWriter::new(&firestore, WriteOptions::new(&firestore), failures());
        writer
            .put(&path("other/1"), &canonical::encode(&Fields::new()))
            .await
            .unwrap();
        writer.finish().await.unwrap();
        // One more scan reads to its end beside them.
        let mut read = 0;
        let mut scan = firestore.scan(ScanOptions::names(KeyRange::all(), time)).boxed();
        while let Some(batch) = scan.try_next().await.unwrap() {
            read += batch.len();
        }
        assert_eq!(read, 200_000);
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), calls)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_are_even_with_and_without_the_servers_help() {
    let (sandbox, firestore, documents, time) = sampled().await;
    for refuse_partition_query in [false, true] {
        sandbox.faults().set(FaultPlan {
            refuse_partition_query,
            ..FaultPlan::default()
        });
        let products = CollectionPath::parse("products").unwrap().key_range();
        for range in [KeyRange::all(), products] {
            let inside: Vec<Plain> = documents
                .iter()
                .filter(|(path, _)| range.contains(path.key().as_bytes()))
                .cloned()
                .collect();
            assert_eq!(
                firestore.count(&range, Some(time)).await.unwrap(),
                inside.len() as u64
            );
            for parts in [1, 2, 4] {
                let boundaries = firestore.split(&range, &[], time, parts).await.unwrap();
                check_split(&inside, &range, &boundaries, parts);
            }
        }
    }
    // Whatever fails, there is an answer; only a lack of permission is an error.
    sandbox.faults().set(FaultPlan {
        faults: vec![Fault {
            methods: vec![
                Rpc::PartitionQuery,
                Rpc::RunAggregationQuery,
                Rpc::ListCollectionIds,
            ],
            when: When::Always,
            effect: status(Code::InvalidArgument),
        }],
        ..FaultPlan::default()
    });
    let boundaries = firestore.split(&KeyRange::all(), &[], time, 4).await.unwrap();
    assert!(boundaries.len() < 4);
    sandbox.faults().set(fault(
        Rpc::ListCollectionIds,
        When::Always,
        status(Code::PermissionDenied),
    ));
    assert!(matches!(
        firestore.split(&KeyRange::all(), &[], time, 4).await,
        Err(Error::PermissionDenied { .. })
    ));
}

#[tokio::test]
async fn a_creation_whose_answer_was_lost_is_no_failure() {
    let (sandbox, firestore, documents, _) = sampled().await;
    let options = WriteOptions::new(&firestore);
    // All of it is there, as after a request whose answer was lost, but for one document of somebody else's.
    let mut again = documents.clone();
    again[5].1.insert("other".to_owned(), Value::Null);
    sandbox
        .faults()
        .set(fault(Rpc::BatchWrite, When::First(1), status(Code::Unavailable)));
    let (stats, failures) = write_through(&firestore, options.clone(), Precondition::MustNotExist, &again)
        .await
        .unwrap();
    assert_eq!((stats.written, stats.failed), (documents.len() as u64 - 1, 1));
    assert_eq!(
        (&failures[0].path, failures[0].code),
        (&documents[5].0, Code::AlreadyExists)
    );
    // Without a lost answer what exists is in the way.
    let (stats, _) = write_through(&firestore, options, Precondition::MustNotExist, &documents)
        .await
        .unwrap();
    assert_eq!(stats.failed, documents.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_on_after_a_drop() {
    let sandbox = sandbox_with(SandboxConfig {
        synthetic: vec![SyntheticSpec::new("things", 500_000, 900)],
        ..SandboxConfig::default()
    })
    .await;
    let firestore = sandbox_client(&sandbox).await;
    let time = firestore.current_read_time().await.unwrap();
    let mut scan = firestore.scan(ScanOptions::new(KeyRange::all(), time)).boxed();
    scan.try_next().await.unwrap().unwrap();
    drop(scan);
    sandbox.faults().set(fault(
        Rpc::BatchWrite,
        When::Always,
        Effect::Delay(std::time::Duration::from_millis(200)),
    ));
    let mut writer = BulkWriter::new(&firestore, WriteOptions::new(&firestore), failures());
    for (path, fields) in &sample() {
        writer.put(path, &canonical::encode(fields)).await.unwrap();
    }
    drop(writer);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let before = sandbox.usage();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let since = sandbox.usage().since(&before);
    assert_eq!(since.documents_sent, 0, "{since:?}");
    assert_eq!(since.requests.values().sum::<u64>(), 0, "{since:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_find_where_the_documents_are() {
    let sandbox = sandbox_with(SandboxConfig {
        synthetic: vec![
            SyntheticSpec::new("large", 12_000, 300),
            SyntheticSpec::new("small", 300, 300),
            SyntheticSpec::new("tiny", 3, 300),
        ],
        ..SandboxConfig::default()
    })
    .await;
    let mixed = sandbox_client(&sandbox).await;
    // Nearly everything lies below a handful of documents, some of which do not exist.
    let nested = self::sandbox().await;
    let nested_client = sandbox_client(&nested).await;
    let documents: Vec<Plain> = (0..3000)
        .map(|index| {
            let path = path(format!("tenants/t{}/orders/o{:05}", index % 3, index));
            (path, Fields::new())
        })
        .collect();
    write(&nested_client, &documents).await;
    for (sandbox, firestore) in [(&sandbox, &mixed), (&nested, &nested_client)] {
        let time = firestore.current_read_time().await.unwrap();
        let documents = scan(firestore, ScanOptions::names(KeyRange::all(), time)).await;
        for refuse_partition_query in [false, true] {
            sandbox.faults().set(FaultPlan {
                refuse_partition_query,
                ..FaultPlan::default()
            });
            for parts in [2, 8, 16] {
                let before = firestore.stats().counts();
                let boundaries = firestore.split(&KeyRange::all(), &[], time, parts).await.unwrap();
                check_split(&documents, &KeyRange::all(), &boundaries, parts);
                let requests = firestore.stats().counts().total_requests() - before.total_requests();
                assert!(
                    requests <= 50 + 12 * parts as u64,
                    "{requests} requests for {parts} parts"
                );
            }
        }
    }
}
