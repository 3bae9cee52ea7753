//! Where the database client cuts the key space, so that it is read side by side.

use firebank::document::{CollectionPath, Fields, KeyRange};
use firebank::firestore::{Error, ScanOptions};
use firebank::sandbox::{Fault, FaultPlan, Rpc, SandboxConfig, SyntheticSpec, When};
use tonic::Code;

use crate::support::plain::*;
use crate::support::{sandbox, sandbox_with};

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
