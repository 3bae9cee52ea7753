//! What the database client writes must be complete and in order, and what it cannot write accounted for, whatever goes wrong.

use firebank::document::{CollectionPath, KeyRange, Value, canonical};
use firebank::firestore::{
    BulkWriter, Error, Firestore, Precondition, ScanOptions, Write, WriteFailure, WriteOptions, WriteStats,
};
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, When};
use tonic::Code;

use crate::support::plain::*;
use crate::support::{emulator, project, sandbox};

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

/// Requests are as large as a server takes them and no larger, so that none has to be sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_bounded_by_their_bytes() {
    let documents: Vec<Plain> = (0..100)
        .map(|number| (path(format!("a/{number}")), fields(number, &"y".repeat(100_000))))
        .collect();
    // The default, and one that somebody asks for: of each, how many documents fit.
    for (batch_bytes, accepted, fit) in [(None, 4 << 20, 36), (Some(1 << 20), 1 << 20, 10)] {
        let sandbox = sandbox().await;
        let firestore = sandbox_client(&sandbox).await;
        sandbox.faults().set(FaultPlan {
            max_request_bytes: Some(accepted),
            ..FaultPlan::default()
        });
        let options = WriteOptions {
            batch_bytes,
            ..WriteOptions::new(&firestore)
        };
        let (stats, failures) = write_through(&firestore, options, Precondition::None, &documents)
            .await
            .unwrap();
        assert_eq!((stats.written, stats.retries), (100, 0), "{stats:?} {failures:?}");
        assert!(
            (100_u64.div_ceil(fit)..=100 / fit + 2).contains(&stats.requests),
            "{stats:?}"
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
        (Code::Unavailable, 50),
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
