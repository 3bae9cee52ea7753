//! What the sandbox has beyond Firestore: synthetic documents, faults, counters, a window that closes.

use std::time::{Duration, Instant};

use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, Sandbox, SandboxConfig, SyntheticSpec, When};
use firestore::gcloud_sdk::google::firestore::v1::*;
use firestore::gcloud_sdk::prost_types::Timestamp;
use tonic::Code;

use crate::conformance::client::*;
use crate::support;

async fn start(config: SandboxConfig) -> (Sandbox, Server) {
    let sandbox = support::sandbox_with(config).await;
    let server = Server::connect(&sandbox.address().to_string(), "sandbox").await;
    (sandbox, server)
}

fn with_synthetic(documents: u64) -> SandboxConfig {
    SandboxConfig {
        synthetic: vec![SyntheticSpec::new("products", documents, 600)],
        ..Default::default()
    }
}

fn with_faults(faults: Vec<Fault>) -> SandboxConfig {
    SandboxConfig {
        faults: FaultPlan {
            faults,
            ..Default::default()
        },
        ..with_synthetic(1000)
    }
}

async fn count_now(server: &Server, query: StructuredQuery) -> i64 {
    count(server, query, None, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synthetic_documents_are_served_like_stored_ones() {
    let (_sandbox, server) = start(with_synthetic(2000)).await;
    server.put_all(&["a/1", "products/00/reviews/1", "z/1"]).await;
    let all = server.run(kindless()).await.unwrap();
    assert_eq!(all.len(), 2003);
    let paths: Vec<String> = all.iter().map(|document| server.path(&document.name)).collect();
    let ids: Vec<&str> = paths.iter().map(String::as_str).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(
        server.run(kindless()).await.unwrap(),
        all,
        "the same documents every time"
    );
    assert_eq!(count_now(&server, kindless()).await, 2003);
    assert_eq!(count_now(&server, collection("products", false)).await, 2000);
    assert_eq!(count_now(&server, collection("reviews", true)).await, 1);
    for at in [0, 1, 2, 500, 2001, 2002] {
        let range = query(|query| {
            query.start_at = server.cursor(ids[at], false);
            query.end_at = server.cursor(ids[2002], true);
        });
        assert_eq!(
            count_now(&server, range.clone()).await as usize,
            2002usize.saturating_sub(at + 1)
        );
        assert_eq!(
            server.paths(limited(range, 3)).await,
            ids[(at + 1).min(2002)..(at + 4).min(2002)]
        );
    }
    let names = server.run(selecting(kindless(), &["__name__"])).await.unwrap();
    assert_eq!(names.len(), all.len());
    assert!(names.iter().zip(&all).all(|(name, document)| {
        name.fields.is_empty() && name.name == document.name && name.update_time == document.update_time
    }));
    assert_eq!(server.get(ids[700]).await.unwrap(), all[700]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_lie_over_synthetic_documents() {
    let (_sandbox, server) = start(with_synthetic(1000)).await;
    let before = server.run(kindless()).await.unwrap();
    let then = server.now().await;
    let path = |index: usize| server.path(&before[index].name);
    server.put(&path(10), &[("n", integer(1))]).await;
    server.delete(&path(20)).await;
    server.put_all(&["products/5"]).await;
    let after = server.run(kindless()).await.unwrap();
    assert_eq!(after.len(), 1000);
    assert_eq!(count_now(&server, kindless()).await, 1000);
    let changed = after
        .iter()
        .find(|document| document.name == before[10].name)
        .unwrap();
    assert_eq!(changed.fields["n"], integer(1));
    assert_eq!(changed.create_time, before[10].create_time);
    assert!(after.iter().all(|document| document.name != before[20].name));
    let past = server
        .run_at(&server.root(), kindless(), Some(then))
        .await
        .unwrap();
    assert_eq!(past, before, "the past stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_cut_a_group_into_equal_parts() {
    let (sandbox, server) = start(with_synthetic(10_000)).await;
    let partition = |page_token: String, partition_count| PartitionQueryRequest {
        parent: server.root(),
        partition_count,
        page_token,
        page_size: 3,
        query_type: Some(partition_query_request::QueryType::StructuredQuery(
            StructuredQuery {
                order_by: kindless().order_by,
                ..collection("products", true)
            },
        )),
        ..Default::default()
    };
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let answer = server
            .client()
            .partition_query(partition(token, 7))
            .await
            .unwrap()
            .into_inner();
        names.extend(
            answer
                .partitions
                .into_iter()
                .map(|cursor| cursor.values[0].clone()),
        );
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names.len(), 7);
    for name in names {
        let start_at = Some(Cursor {
            values: vec![name],
            before: true,
        });
        let above = count_now(&server, query(|query| query.start_at = start_at)).await;
        assert_eq!(above % 1250, 0, "{above}");
    }
    sandbox.faults().set(FaultPlan {
        refuse_partition_query: true,
        ..Default::default()
    });
    assert_eq!(
        code(server.client().partition_query(partition(String::new(), 7)).await),
        Code::Unimplemented as i32
    );
}

async fn read(server: &Server) -> (usize, i32) {
    let request = RunQueryRequest {
        parent: server.root(),
        query_type: Some(run_query_request::QueryType::StructuredQuery(kindless())),
        ..Default::default()
    };
    let mut stream = match server.client().run_query(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (0, status.code() as i32),
    };
    let mut documents = 0;
    loop {
        match stream.message().await {
            Ok(Some(answer)) => documents += usize::from(answer.document.is_some()),
            Ok(None) => return (documents, 0),
            Err(status) => return (documents, status.code() as i32),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_cut_and_end_short() {
    let unavailable = Code::Unavailable;
    for documents in [0, 1, 255, 256, 257, 999, 1000] {
        let cut = Effect::CutAfter {
            documents,
            code: unavailable,
        };
        let (_sandbox, server) =
            start(with_faults(vec![Fault::new(Rpc::RunQuery, When::First(1), cut)])).await;
        assert_eq!(read(&server).await, (documents as usize, unavailable as i32));
        assert_eq!(read(&server).await, (1000, 0));
        let end = Effect::EndAfter { documents };
        let (_sandbox, server) = start(with_faults(vec![Fault::new(
            Rpc::RunQuery,
            When::EveryNth(2),
            end,
        )]))
        .await;
        assert_eq!(read(&server).await, (1000, 0));
        assert_eq!(read(&server).await, (documents as usize, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_reset() {
    let reset = Effect::ResetAfter { documents: 300 };
    let (sandbox, server) = start(with_faults(vec![Fault::new(
        Rpc::RunQuery,
        When::First(1),
        reset,
    )]))
    .await;
    let (documents, status) = read(&server).await;
    assert!(documents <= 300 && status != 0, "{documents} {status}");
    connects_again(&server).await;
    sandbox.faults().kill_connections();
    connects_again(&server).await;
}

/// A client may find out that its connection is gone only when it sends something: then that fails, too.
async fn connects_again(server: &Server) {
    let again = async {
        while read(server).await != (1000, 0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, again)
        .await
        .expect("no new connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_come_by_chance_and_by_seed() {
    let refuse = Effect::Status(Code::PermissionDenied, "no".to_owned());
    let fault = Fault::new(Rpc::GetDocument, When::Probability(0.5), refuse);
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        let faults = FaultPlan {
            seed,
            faults: vec![fault.clone()],
            ..Default::default()
        };
        let (_sandbox, server) = start(SandboxConfig {
            faults,
            ..Default::default()
        })
        .await;
        let mut codes = Vec::new();
        for _ in 0..40 {
            codes.push(code(server.get("a/b").await));
        }
        runs.push(codes);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    let refused = runs[0]
        .iter()
        .filter(|code| **code == Code::PermissionDenied as i32)
        .count();
    assert!((8..=32).contains(&refused), "{refused} of 40");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_fail_one_by_one_or_are_too_big() {
    let fault = Fault::write(Code::ResourceExhausted, "/bad", When::First(2));
    let faults = FaultPlan {
        faults: vec![fault],
        max_request_writes: Some(4),
        ..Default::default()
    };
    let (sandbox, server) = start(SandboxConfig {
        faults,
        ..Default::default()
    })
    .await;
    let writes = || {
        vec![
            server.set("a/bad1", &[]),
            server.set("a/good", &[]),
            server.set("a/bad2", &[]),
        ]
    };
    let codes: Vec<i32> = server
        .batch(writes())
        .await
        .iter()
        .map(|result| result.clone().err().unwrap_or(0))
        .collect();
    assert_eq!(codes, [8, 0, 8]);
    assert_eq!(server.paths(kindless()).await, ["a/good"]);
    assert!(server.batch(writes()).await.iter().all(Result::is_ok));
    let five = (0..5)
        .map(|number| server.set(&format!("b/{number}"), &[]))
        .collect();
    let status = server.try_batch(five).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (
            Code::InvalidArgument,
            "Transaction too big. Decrease transaction size."
        )
    );
    sandbox.faults().clear();
    let large = server.try_batch(
        (0..11)
            .map(|n| server.set(&format!("c/{n}"), &[("x", text(&"x".repeat(1_000_000)))]))
            .collect(),
    );
    assert_eq!(code(large.await), Code::InvalidArgument as i32, "above 10 MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_late_slow_and_mortal() {
    let delay = Fault::new(
        Rpc::GetDocument,
        When::Always,
        Effect::Delay(Duration::from_millis(80)),
    );
    let (sandbox, server) = start(with_faults(vec![delay])).await;
    let started = Instant::now();
    let _ = server.get("a/b").await;
    assert!(started.elapsed() >= Duration::from_millis(80));
    sandbox.faults().set(FaultPlan {
        bytes_per_second: Some(1_000_000),
        ..Default::default()
    });
    let started = Instant::now();
    assert_eq!(read(&server).await, (1000, 0));
    let bytes = sandbox.usage().sent_bytes as f64;
    let seconds = started.elapsed().as_secs_f64();
    assert!(
        seconds > bytes / 1e6 * 0.6 && seconds < bytes / 1e6 * 2.0 + 0.2,
        "{bytes} bytes in {seconds} s"
    );
    let lifetime = Some(Duration::from_millis(100));
    sandbox.faults().set(FaultPlan {
        bytes_per_second: Some(1_000_000),
        stream_lifetime: lifetime,
        ..Default::default()
    });
    let (documents, status) = read(&server).await;
    assert!(documents < 1000 && status == Code::Unavailable as i32);
    sandbox.faults().set(FaultPlan {
        refuse_kindless: true,
        ..Default::default()
    });
    assert_eq!(read(&server).await, (0, Code::InvalidArgument as i32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_window_of_the_past_closes() {
    let (sandbox, server) = start(SandboxConfig::default()).await;
    let first = server.put("a/1", &[]).await;
    let (server, root) = (&server, &server.root());
    let at = |time| async move { code(server.run_at(root, kindless(), Some(time)).await) };
    assert_eq!(at(first).await, 0);
    let old = Timestamp {
        seconds: first.seconds - 3700,
        nanos: 0,
    };
    assert_eq!(at(old).await, Code::FailedPrecondition as i32);
    sandbox.faults().set(FaultPlan {
        history: Some(Duration::from_millis(100)),
        ..Default::default()
    });
    assert_eq!(at(server.now().await).await, 0);
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(at(first).await, Code::FailedPrecondition as i32);
    server.put("a/1", &[("x", integer(1))]).await;
    sandbox.faults().clear();
    let now = server.now().await;
    assert_eq!(at(now).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_far_past_has_whole_minutes() {
    let days = SandboxConfig {
        history: Duration::from_secs(7 * 86_400),
        ..Default::default()
    };
    let (_sandbox, server) = start(days).await;
    let now = server.now().await;
    let (server, root) = (&server, &server.root());
    let at = |seconds| async move {
        code(
            server
                .run_at(root, kindless(), Some(Timestamp { seconds, nanos: 0 }))
                .await,
        )
    };
    let minute = (now.seconds - 86_400) / 60 * 60;
    assert_eq!(at(minute).await, 0);
    assert_eq!(at(minute + 1).await, Code::InvalidArgument as i32);
    assert_eq!(at(now.seconds - 61).await, 0);
    assert_eq!(at(minute - 7 * 86_400).await, Code::FailedPrecondition as i32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_counted_as_it_is_billed() {
    let (sandbox, server) = start(with_synthetic(1000)).await;
    let before = sandbox.usage();
    let billed = |reads, writes, deletes| {
        let usage = sandbox.usage().since(&before);
        assert_eq!(
            (usage.reads, usage.writes, usage.deletes),
            (reads, writes, deletes)
        );
    };
    server.put_all(&["a/1", "a/2"]).await;
    server.delete("a/2").await;
    billed(0, 2, 1);
    assert_eq!(server.paths(collection("a", false)).await.len(), 1);
    billed(1, 2, 1);
    assert_eq!(server.paths(collection("none", false)).await.len(), 0);
    billed(2, 2, 1);
    assert_eq!(
        server
            .paths(limited(query(|query| query.offset = 10), 5))
            .await
            .len(),
        5
    );
    billed(17, 2, 1);
    assert_eq!(count_now(&server, kindless()).await, 1001);
    billed(19, 2, 1);
    let _ = server.get("z/z").await;
    billed(20, 2, 1);
    let usage = sandbox.usage().since(&before);
    assert_eq!(
        (
            usage.requests_of(Rpc::RunQuery),
            usage.requests_of(Rpc::BatchWrite)
        ),
        (3, 2)
    );
    assert_eq!(usage.documents_sent, 6);
    assert!(usage.sent_bytes > 3000 && usage.received_bytes > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discarded_writes_are_answered_and_gone() {
    let (sandbox, server) = start(SandboxConfig {
        accept_and_discard: true,
        ..Default::default()
    })
    .await;
    server.put_all(&["a/1", "a/2"]).await;
    server.commit(vec![server.set("a/3", &[])]).await.unwrap();
    assert!(server.paths(kindless()).await.is_empty());
    assert_eq!(sandbox.usage().writes, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_sandbox_frees_its_port() {
    let (sandbox, server) = start(SandboxConfig::default()).await;
    let port = sandbox.address().port();
    sandbox.shutdown().await;
    assert_ne!(code(server.get("a/b").await), 5);
    let again = support::sandbox_with(SandboxConfig {
        port,
        ..Default::default()
    })
    .await;
    assert_eq!(again.address().port(), port);
    drop(again);
    tokio::time::sleep(Duration::from_millis(50)).await;
    support::sandbox_with(SandboxConfig {
        port,
        ..Default::default()
    })
    .await;
}
