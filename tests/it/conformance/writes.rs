//! BatchWrite and Commit: statuses, preconditions, masks, transforms, times.

use firestore::gcloud_sdk::google::firestore::v1::document_transform::FieldTransform;
use firestore::gcloud_sdk::google::firestore::v1::document_transform::field_transform::{
    ServerValue, TransformType,
};
use firestore::gcloud_sdk::google::firestore::v1::precondition::ConditionType;
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::*;
use firestore::gcloud_sdk::prost_types::Timestamp;

use super::client::*;

fn on(write: Write, condition: ConditionType) -> Write {
    Write {
        current_document: Some(Precondition {
            condition_type: Some(condition),
        }),
        ..write
    }
}

fn masked(write: Write, paths: &[&str]) -> Write {
    let field_paths = paths.iter().map(|path| path.to_string()).collect();
    Write {
        update_mask: Some(DocumentMask { field_paths }),
        ..write
    }
}

pub(crate) async fn preconditions_fail_alone_in_a_batch(server: &Server) {
    use ConditionType::{Exists, UpdateTime};
    let time = server.put("u/a", &[]).await;
    let wrong = Timestamp { seconds: 1, nanos: 0 };
    let cases = [
        (on(server.set("u/a", &[]), Exists(false)), Some(6)),
        (on(server.set("u/no", &[]), Exists(true)), Some(5)),
        (on(server.set("u/a", &[]), UpdateTime(wrong)), Some(9)),
        (on(server.set("u/no", &[]), UpdateTime(wrong)), Some(9)),
        (on(server.deletion("u/no"), Exists(true)), Some(5)),
        (on(server.deletion("u/a"), Exists(false)), Some(6)),
        (on(server.deletion("u/a"), UpdateTime(wrong)), Some(9)),
        (on(server.deletion("u/no"), Exists(false)), None),
        (
            on(server.set("u/a", &[("x", integer(1))]), UpdateTime(time)),
            None,
        ),
        (on(server.set("u/a", &[]), Exists(true)), None),
        (on(server.set("u/new", &[]), Exists(false)), None),
    ];
    for (number, (write, expected)) in cases.into_iter().enumerate() {
        let other = format!("u/other{number}");
        if expected.is_some() {
            let commit = server.commit(vec![server.set(&other, &[]), write.clone()]).await;
            assert_eq!(Some(code(commit)), expected, "{write:?}");
            assert_eq!(
                code(server.get(&other).await),
                5,
                "a commit is done as a whole or not at all"
            );
        }
        let results = server.batch(vec![server.set(&other, &[]), write.clone()]).await;
        assert_eq!(results[1].as_ref().err().copied(), expected, "{write:?}");
        assert!(
            results[0].is_ok() && server.get(&other).await.is_ok(),
            "the other write is done"
        );
    }
}

pub(crate) async fn batches_refuse_as_a_whole(server: &Server) {
    assert_eq!(
        code(
            server
                .try_batch(vec![server.set("t/a", &[]), server.set("t/a", &[])])
                .await
        ),
        3
    );
    assert_eq!(
        code(
            server
                .try_batch(vec![server.set("t/a", &[]), server.deletion("t/a")])
                .await
        ),
        3
    );
    assert_eq!(
        code(
            server
                .try_batch(vec![server.set("t/a", &[]), server.set("t/__x__", &[])])
                .await
        ),
        3
    );
    assert_eq!(
        code(
            server
                .try_batch(vec![server.set("t/a", &[]), Write::default()])
                .await
        ),
        3
    );
    assert_eq!(code(server.get("t/a").await), 5);
    assert!(server.try_batch(vec![]).await.is_ok());
    let many: Vec<String> = (0..501).map(|number| format!("many/{number:03}")).collect();
    let writes = many.iter().map(|path| server.set(path, &[])).collect();
    assert!(
        server.batch(writes).await.iter().all(Result::is_ok),
        "501 writes are no limit"
    );
    assert_eq!(server.paths(collection("many", false)).await, many);
}

pub(crate) async fn times_are_the_servers(server: &Server) {
    let fields = [("x", integer(1)), ("d", double(-0.0))];
    let first = server.put("u/a", &fields).await;
    assert_eq!(first.nanos % 1000, 0);
    let document = server.get("u/a").await.unwrap();
    assert_eq!(
        (document.create_time, document.update_time),
        (Some(first), Some(first))
    );
    assert_eq!(
        server.put("u/a", &fields).await,
        first,
        "a write that changes nothing leaves the update time"
    );
    assert_eq!(server.get("u/a").await.unwrap().update_time, Some(first));
    let second = server
        .put("u/a", &[("x", double(1.0)), ("d", double(-0.0))])
        .await;
    assert_ne!(second, first, "1 and 1.0 differ");
    let document = server.get("u/a").await.unwrap();
    assert_eq!(
        (document.create_time, document.update_time),
        (Some(first), Some(second))
    );
    let third = server.put("u/a", &[("x", double(1.0)), ("d", double(0.0))]).await;
    assert_ne!(third, second, "0.0 and -0.0 differ");
    server.delete("u/a").await;
    let fourth = server.put("u/a", &fields).await;
    assert_eq!(
        server.get("u/a").await.unwrap().create_time,
        Some(fourth),
        "a new document is created anew"
    );
    let results = server
        .batch(vec![server.deletion("u/a"), server.deletion("u/none")])
        .await;
    assert!(
        results
            .iter()
            .all(|result| result.as_ref().is_ok_and(|result| result.update_time.is_none()))
    );
    let commit = server
        .commit(vec![
            server.set("u/b", &[]),
            server.set("u/c", &[]),
            server.deletion("u/d"),
        ])
        .await;
    let commit = commit.unwrap();
    let times: Vec<_> = commit
        .write_results
        .iter()
        .map(|result| result.update_time)
        .collect();
    assert_eq!(times, [commit.commit_time, commit.commit_time, None]);
    let again = server.commit(vec![server.set("u/b", &[])]).await.unwrap();
    assert_eq!(again.write_results[0].update_time, commit.commit_time);
    assert_ne!(again.commit_time, commit.commit_time);
}

pub(crate) async fn commits_apply_in_order(server: &Server) {
    let writes = vec![
        server.set("t/a", &[("x", integer(1))]),
        server.set("t/a", &[("x", integer(2))]),
    ];
    assert_eq!(server.commit(writes).await.unwrap().write_results.len(), 2);
    assert_eq!(server.get("t/a").await.unwrap().fields["x"], integer(2));
}

pub(crate) async fn masks_change_what_they_name(server: &Server) {
    let write = |fields: &[(&str, Value)], mask: &[&str]| masked(server.set("u/m", fields), mask);
    server
        .put(
            "u/m",
            &[
                ("x", integer(1)),
                ("m", map(&[("a", integer(1)), ("b", integer(2))])),
            ],
        )
        .await;
    let nine = |name| map(&[(name, integer(9))]);
    for (write, name, expected) in [
        (
            write(&[("m", nine("a"))], &["m.a"]),
            "m",
            Some(map(&[("a", integer(9)), ("b", integer(2))])),
        ),
        (write(&[], &["m.b"]), "m", Some(nine("a"))),
        (write(&[], &["q.r.s"]), "q", None),
        (write(&[], &["x.y.z"]), "x", Some(integer(1))),
        (write(&[("x", nine("y"))], &["x.y"]), "x", Some(nine("y"))),
        (write(&[("z", integer(1))], &[]), "z", None),
        (write(&[("z", integer(1)), ("y", integer(1))], &["z"]), "y", None),
        (write(&[("a b", integer(1))], &["`a b`"]), "a b", Some(integer(1))),
        (
            write(&[("n", map(&[("a.b", integer(1))]))], &["n.`a.b`"]),
            "n",
            Some(map(&[("a.b", integer(1))])),
        ),
    ] {
        server.batch(vec![write.clone()]).await[0].as_ref().unwrap();
        assert_eq!(
            server.get("u/m").await.unwrap().fields.get(name),
            expected.as_ref(),
            "{write:?}"
        );
    }
    for path in ["a b", "a..b", "1a", "`a"] {
        assert_eq!(
            code(server.try_batch(vec![write(&[], &[path])]).await),
            3,
            "{path}"
        );
    }
    server.batch(vec![masked(server.set("u/new", &[]), &[])]).await[0]
        .as_ref()
        .unwrap();
    assert!(
        server.get("u/new").await.unwrap().fields.is_empty(),
        "an empty mask creates an empty document"
    );
}

fn transform(path: &str, transform: TransformType) -> FieldTransform {
    FieldTransform {
        field_path: path.to_owned(),
        transform_type: Some(transform),
    }
}

pub(crate) async fn transforms_compute_from_what_is_there(server: &Server) {
    use TransformType::*;
    let list = |values: &[Value]| ArrayValue {
        values: values.to_vec(),
    };
    let fields = [
        ("n", integer(i64::MAX - 1)),
        ("d", double(1.5)),
        ("a", array(vec![integer(1), double(2.0)])),
        ("s", text("x")),
    ];
    server.put("t/a", &fields).await;
    let cases = [
        (
            transform("n", Increment(integer(5))),
            "n",
            integer(i64::MAX),
            false,
        ),
        (transform("d", Increment(integer(1))), "d", double(2.5), false),
        (transform("new", Increment(integer(5))), "new", integer(5), false),
        (transform("s", Increment(integer(5))), "s", integer(5), false),
        (transform("d", Maximum(integer(3))), "d", integer(3), false),
        (transform("d", Maximum(double(3.0))), "d", integer(3), false),
        (transform("low", Minimum(integer(2))), "low", integer(2), false),
        (
            transform(
                "a",
                AppendMissingElements(list(&[double(1.0), integer(3), integer(3)])),
            ),
            "a",
            array(vec![integer(1), double(2.0), integer(3)]),
            true,
        ),
        (
            transform("a", RemoveAllFromArray(list(&[integer(2)]))),
            "a",
            array(vec![integer(1), integer(3)]),
            true,
        ),
        (
            transform("s", AppendMissingElements(list(&[integer(1)]))),
            "s",
            array(vec![integer(1)]),
            true,
        ),
        (
            transform("q.r", Increment(integer(5))),
            "q",
            map(&[("r", integer(5))]),
            true,
        ),
    ];
    for (transform, name, expected, no_result) in cases {
        let write = Write {
            update_transforms: vec![transform.clone()],
            ..masked(server.set("t/a", &[]), &[])
        };
        let commit = server.commit(vec![write]).await.unwrap();
        assert_eq!(
            server.get("t/a").await.unwrap().fields[name],
            expected,
            "{transform:?}"
        );
        if !no_result {
            assert_eq!(commit.write_results[0].transform_results, [expected]);
        }
    }
    for bad in [
        transform("n", Increment(text("x"))),
        transform("a..b", Increment(integer(1))),
    ] {
        let write = Write {
            update_transforms: vec![bad],
            ..server.set("t/a", &[])
        };
        assert_eq!(code(server.commit(vec![write]).await), 3);
    }
    let now = transform("t", SetToServerValue(ServerValue::RequestTime as i32));
    let stamp = DocumentTransform {
        document: server.name("t/b"),
        field_transforms: vec![now],
    };
    let write = Write {
        operation: Some(write::Operation::Transform(stamp)),
        ..Default::default()
    };
    let commit = server.commit(vec![write]).await.unwrap();
    let Some(ValueType::TimestampValue(time)) = server.get("t/b").await.unwrap().fields["t"].value_type
    else {
        panic!("the server's time is a timestamp");
    };
    assert!((time.seconds, time.nanos) <= commit.commit_time.map(|time| (time.seconds, time.nanos)).unwrap());
    let write = server.set("t/c", &[("x", integer(1))]);
    let both = Write {
        update_transforms: vec![transform("n", Increment(integer(1)))],
        ..write
    };
    server.commit(vec![both]).await.unwrap();
    assert_eq!(server.get("t/c").await.unwrap().fields.len(), 2);
}

pub(crate) async fn single_documents_are_created_updated_deleted(server: &Server) {
    let create = |id: &str| CreateDocumentRequest {
        parent: server.root(),
        collection_id: "c".to_owned(),
        document_id: id.to_owned(),
        document: Some(Document {
            fields: [("x".to_owned(), integer(1))].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let created = server
        .client()
        .create_document(create("a"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (server.path(&created.name).as_str(), &created.fields["x"]),
        ("c/a", &integer(1))
    );
    assert_eq!(created.update_time, server.get("c/a").await.unwrap().update_time);
    assert_eq!(code(server.client().create_document(create("a")).await), 6);
    let unnamed = server
        .client()
        .create_document(create(""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(server.path(&unnamed.name).len(), "c/".len() + 20);
    let document = Some(server.document("c/b", &[("y", integer(2))]));
    let update = UpdateDocumentRequest {
        document,
        ..Default::default()
    };
    let updated = server
        .client()
        .update_document(update)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(updated, server.get("c/b").await.unwrap());
    for _ in 0..2 {
        let delete = DeleteDocumentRequest {
            name: server.name("c/b"),
            ..Default::default()
        };
        server.client().delete_document(delete).await.unwrap();
    }
    assert_eq!(code(server.get("c/b").await), 5);
}

pub(crate) async fn transactions_begin_commit_and_end(server: &Server) {
    let begin = |mode| async move {
        let options = Some(TransactionOptions { mode });
        let request = BeginTransactionRequest {
            database: server.database.clone(),
            options,
            ..Default::default()
        };
        server
            .client()
            .begin_transaction(request)
            .await
            .unwrap()
            .into_inner()
            .transaction
    };
    let get = |transaction: &[u8]| {
        let consistency = get_document_request::ConsistencySelector::Transaction(transaction.to_vec());
        let request = GetDocumentRequest {
            name: server.name("a/1"),
            consistency_selector: Some(consistency),
            ..Default::default()
        };
        async move { server.client().get_document(request).await }
    };
    let commit = |transaction: &[u8], writes| {
        let transaction = transaction.to_vec();
        let request = CommitRequest {
            database: server.database.clone(),
            writes,
            transaction,
            ..Default::default()
        };
        async move { server.client().commit(request).await }
    };
    let rollback = |transaction: &[u8]| {
        let transaction = transaction.to_vec();
        let request = RollbackRequest {
            database: server.database.clone(),
            transaction,
            ..Default::default()
        };
        async move { server.client().rollback(request).await }
    };
    server.put("a/1", &[("n", integer(1))]).await;
    let transaction = begin(None).await;
    get(&transaction).await.unwrap();
    commit(&transaction, vec![server.set("a/1", &[("n", integer(2))])])
        .await
        .unwrap();
    assert_eq!(server.get("a/1").await.unwrap().fields["n"], integer(2));
    assert_eq!(code(commit(&transaction, vec![]).await), 3);
    assert_eq!(code(get(&transaction).await), 3);
    rollback(&transaction).await.unwrap();

    let transaction = begin(None).await;
    rollback(&transaction).await.unwrap();
    assert_eq!(code(commit(&transaction, vec![]).await), 3);
    assert_eq!(code(commit(b"none", vec![]).await), 3);

    let read_only = transaction_options::Mode::ReadOnly(transaction_options::ReadOnly::default());
    let transaction = begin(Some(read_only)).await;
    get(&transaction).await.unwrap();
    assert_eq!(code(commit(&transaction, vec![server.set("a/1", &[])]).await), 3);
    commit(&transaction, vec![]).await.unwrap();
}

/// Two transactions that read and write one document: one at least must be told to try again.
pub(crate) async fn contending_transactions_are_not_both_done(server: &Server) {
    server.put("a/1", &[("n", integer(1))]).await;
    let mut requests = Vec::new();
    for number in 0..2 {
        let request = BeginTransactionRequest {
            database: server.database.clone(),
            ..Default::default()
        };
        let transaction = server
            .client()
            .begin_transaction(request)
            .await
            .unwrap()
            .into_inner()
            .transaction;
        let consistency = batch_get_documents_request::ConsistencySelector::Transaction(transaction.clone());
        let get = BatchGetDocumentsRequest {
            database: server.database.clone(),
            documents: vec![server.name("a/1")],
            consistency_selector: Some(consistency),
            ..Default::default()
        };
        let mut stream = server
            .client()
            .batch_get_documents(get)
            .await
            .unwrap()
            .into_inner();
        while stream.message().await.unwrap().is_some() {}
        let writes = vec![server.set("a/1", &[("n", integer(10 + number))])];
        requests.push(CommitRequest {
            database: server.database.clone(),
            writes,
            transaction,
            ..Default::default()
        });
    }
    let second = requests.pop().unwrap();
    let (mut one, mut other) = (server.client(), server.client());
    let (first, second) = tokio::join!(one.commit(requests.pop().unwrap()), other.commit(second));
    let codes = [code(first), code(second)];
    // The emulator's locks can time out for both.
    assert!(
        codes.contains(&10) && codes.iter().all(|code| [0, 10].contains(code)),
        "{codes:?}"
    );
    let expected = codes
        .iter()
        .position(|code| *code == 0)
        .map_or(1, |winner| 10 + winner as i64);
    assert_eq!(server.get("a/1").await.unwrap().fields["n"], integer(expected));
}

/// A transaction that begins with its first read: the answer's first message carries its id.
pub(crate) async fn transactions_begin_with_a_read(server: &Server) {
    server.put("a/1", &[("n", integer(1))]).await;
    let options = || TransactionOptions {
        mode: Some(transaction_options::Mode::ReadWrite(
            transaction_options::ReadWrite::default(),
        )),
    };
    let get = BatchGetDocumentsRequest {
        database: server.database.clone(),
        documents: vec![server.name("a/1"), server.name("a/none")],
        consistency_selector: Some(batch_get_documents_request::ConsistencySelector::NewTransaction(
            options(),
        )),
        ..Default::default()
    };
    let mut stream = server
        .client()
        .batch_get_documents(get)
        .await
        .unwrap()
        .into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let mut results = usize::from(first.result.is_some());
    while let Some(answer) = stream.message().await.unwrap() {
        results += usize::from(answer.result.is_some());
        assert!(answer.transaction.is_empty());
    }
    assert_eq!(results, 2);
    let writes = vec![server.set("a/1", &[("n", integer(2))])];
    let transaction = first.transaction;
    let commit = CommitRequest {
        database: server.database.clone(),
        writes,
        transaction,
        ..Default::default()
    };
    server.client().commit(commit).await.unwrap();
    assert_eq!(server.get("a/1").await.unwrap().fields["n"], integer(2));

    let query = RunQueryRequest {
        parent: server.root(),
        query_type: Some(run_query_request::QueryType::StructuredQuery(collection(
            "a", false,
        ))),
        consistency_selector: Some(run_query_request::ConsistencySelector::NewTransaction(options())),
        ..Default::default()
    };
    let mut stream = server.client().run_query(query).await.unwrap().into_inner();
    let transaction = stream.message().await.unwrap().unwrap().transaction;
    assert!(!transaction.is_empty());
    while stream.message().await.unwrap().is_some() {}
    let rollback = RollbackRequest {
        database: server.database.clone(),
        transaction,
        ..Default::default()
    };
    server.client().rollback(rollback).await.unwrap();
}
