//! What the database client reads must be complete, in order and at one time, whatever goes wrong.

use firebank::document::{CollectionPath, DatabaseName, DocumentPath, Fields, KeyRange, canonical};
use firebank::firestore::{
    BulkWriter, ConnectOptions, Error, Firestore, Permission, ScanOptions, Target, WriteOptions,
};
use firebank::sandbox::{Effect, FaultPlan, Rpc, SandboxConfig, SyntheticSpec, When};
use futures::{StreamExt, TryStreamExt};
use tonic::Code;

use crate::support::plain::*;
use crate::support::{emulator, project, sandbox_with};

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
        matches!(error, Error::Unavailable { attempts: 50, .. }),
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
