//! Lists of collections and documents, reads by name, and counts.

use firestore::gcloud_sdk::google::firestore::v1::*;
use firestore::gcloud_sdk::prost_types::Timestamp;

use super::client::*;

const PATHS: &[&str] = &[
    "a/1",
    "a/2",
    "a/2/s/1",
    "a/3",
    "b/1",
    "m/w",
    "m/x/s/1",
    "m/x/s/2/s/3",
];

async fn collection_ids(
    server: &Server,
    parent: &str,
    page_size: i32,
    time: Option<Timestamp>,
) -> Vec<String> {
    let mut ids = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListCollectionIdsRequest {
            parent: parent.to_owned(),
            page_size,
            page_token,
            consistency_selector: time.map(list_collection_ids_request::ConsistencySelector::ReadTime),
            ..Default::default()
        };
        let answer = server
            .client()
            .list_collection_ids(request)
            .await
            .unwrap()
            .into_inner();
        assert!(page_size == 0 || answer.collection_ids.len() <= page_size as usize);
        ids.extend(answer.collection_ids);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

pub(crate) async fn collection_ids_come_in_pages(server: &Server) {
    server.put_all(PATHS).await;
    let before = server.now().await;
    server.put_all(&["later/1"]).await;
    let root = server.root();
    for page_size in [0, 1, 2, 4, 100] {
        assert_eq!(
            collection_ids(server, &root, page_size, None).await,
            ["a", "b", "later", "m"]
        );
        assert_eq!(
            collection_ids(server, &root, page_size, Some(before)).await,
            ["a", "b", "m"]
        );
    }
    assert_eq!(collection_ids(server, &server.name("m/x"), 0, None).await, ["s"]);
    assert_eq!(
        collection_ids(server, &server.name("m/x/s/2"), 0, None).await,
        ["s"]
    );
    assert_eq!(
        collection_ids(server, &server.name("a/1"), 0, None).await,
        [""; 0]
    );
    server.delete("later/1").await;
    assert_eq!(
        collection_ids(server, &root, 0, None).await,
        ["a", "b", "m"],
        "a collection is its documents"
    );
    for (parent, page_size, token) in [
        (server.name("z"), 0, ""),
        (root.clone(), 0, "zzz"),
        (root, -1, ""),
    ] {
        let request = ListCollectionIdsRequest {
            parent,
            page_size,
            page_token: token.to_owned(),
            ..Default::default()
        };
        assert_eq!(code(server.client().list_collection_ids(request).await), 3);
    }
}

async fn documents(server: &Server, request: ListDocumentsRequest) -> Vec<String> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListDocumentsRequest {
            page_token,
            ..request.clone()
        };
        let answer = server
            .client()
            .list_documents(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(request.page_size == 0 || answer.documents.len() <= request.page_size as usize);
        for document in answer.documents {
            let missing = if document.create_time.is_none() { "?" } else { "" };
            found.push(format!("{}{missing}", server.path(&document.name)));
        }
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

pub(crate) async fn documents_are_listed_with_missing_ones(server: &Server) {
    server.put_all(PATHS).await;
    let before = server.now().await;
    server.delete("a/2").await;
    let list = |parent: String, id: &str, show_missing| ListDocumentsRequest {
        parent,
        collection_id: id.to_owned(),
        show_missing,
        ..Default::default()
    };
    for page_size in [0, 1, 2, 3, 100] {
        let paged = |request| ListDocumentsRequest { page_size, ..request };
        assert_eq!(
            documents(server, paged(list(server.root(), "a", false))).await,
            ["a/1", "a/3"]
        );
        assert_eq!(
            documents(server, paged(list(server.root(), "a", true))).await,
            ["a/1", "a/2?", "a/3"]
        );
        assert_eq!(
            documents(server, paged(list(server.root(), "m", true))).await,
            ["m/w", "m/x?"]
        );
        let below = list(server.name("m/x"), "s", true);
        assert_eq!(documents(server, paged(below)).await, ["m/x/s/1", "m/x/s/2?"]);
        let past = list_documents_request::ConsistencySelector::ReadTime(before);
        let past = ListDocumentsRequest {
            consistency_selector: Some(past),
            ..list(server.root(), "a", true)
        };
        assert_eq!(documents(server, paged(past)).await, ["a/1", "a/2", "a/3"]);
    }
    assert_eq!(
        documents(server, list(server.root(), "none", true)).await,
        [""; 0]
    );
    for (mask, fields) in [(&[][..], 0), (&["__name__"], 0), (&["path"], 1)] {
        let field_paths = mask.iter().map(|path: &&str| path.to_string()).collect();
        let request = ListDocumentsRequest {
            mask: Some(DocumentMask { field_paths }),
            ..list(server.root(), "a", false)
        };
        let answer = server
            .client()
            .list_documents(request)
            .await
            .unwrap()
            .into_inner();
        assert!(
            answer
                .documents
                .iter()
                .all(|document| document.fields.len() == fields)
        );
    }
    let ordered = ListDocumentsRequest {
        order_by: "path".to_owned(),
        ..list(server.root(), "a", true)
    };
    assert_eq!(code(server.client().list_documents(ordered).await), 3);
    assert_eq!(
        code(
            server
                .client()
                .list_documents(list(server.root(), "", true))
                .await
        ),
        3
    );
}

async fn batch_get(server: &Server, request: BatchGetDocumentsRequest) -> Vec<String> {
    let mut stream = server
        .client()
        .batch_get_documents(request)
        .await
        .unwrap()
        .into_inner();
    let mut found = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        assert!(answer.read_time.is_some());
        found.push(match answer.result.unwrap() {
            batch_get_documents_response::Result::Found(document) => {
                format!("{}:{}", server.path(&document.name), document.fields.len())
            }
            batch_get_documents_response::Result::Missing(name) => format!("{}?", server.path(&name)),
        });
    }
    found.sort();
    found
}

pub(crate) async fn documents_are_got_by_name(server: &Server) {
    server.put_all(PATHS).await;
    let before = server.now().await;
    server.delete("a/1").await;
    let request = |paths: &[&str]| BatchGetDocumentsRequest {
        database: server.database.clone(),
        documents: paths.iter().map(|path| server.name(path)).collect(),
        ..Default::default()
    };
    let wanted = ["a/1", "m/x", "z/z", "a/2", "b/1"];
    assert_eq!(
        batch_get(server, request(&wanted)).await,
        ["a/1?", "a/2:1", "b/1:1", "m/x?", "z/z?"]
    );
    let past = batch_get_documents_request::ConsistencySelector::ReadTime(before);
    let past = BatchGetDocumentsRequest {
        consistency_selector: Some(past),
        ..request(&wanted)
    };
    assert_eq!(
        batch_get(server, past).await,
        ["a/1:1", "a/2:1", "b/1:1", "m/x?", "z/z?"]
    );
    let mask = Some(DocumentMask {
        field_paths: vec!["__name__".to_owned()],
    });
    let masked = BatchGetDocumentsRequest {
        mask,
        ..request(&["a/2"])
    };
    assert_eq!(batch_get(server, masked).await, ["a/2:0"]);
    assert_eq!(
        batch_get(server, request(&["a/2", "a/2", "z/z", "z/z"])).await,
        ["a/2:1", "z/z?"]
    );
    assert_eq!(batch_get(server, request(&[])).await, [""; 0]);
    assert_eq!(
        code(server.client().batch_get_documents(request(&["a"])).await),
        3
    );
}

pub(crate) async fn counts_follow_the_query(server: &Server) {
    server.put_all(PATHS).await;
    let before = server.now().await;
    server.delete("a/1").await;
    let total = PATHS.len() as i64 - 1;
    assert_eq!(count(server, kindless(), None, None).await.unwrap(), total);
    assert_eq!(
        count(server, kindless(), None, Some(before)).await.unwrap(),
        total + 1
    );
    assert_eq!(count(server, kindless(), Some(3), None).await.unwrap(), 3);
    assert_eq!(
        count(server, limited(kindless(), 2), None, None).await.unwrap(),
        2
    );
    assert_eq!(
        count(server, query(|query| query.offset = 2), None, None)
            .await
            .unwrap(),
        total - 2
    );
    assert_eq!(
        count(server, collection("a", false), None, None).await.unwrap(),
        2
    );
    assert_eq!(count(server, collection("s", true), None, None).await.unwrap(), 3);
    let range = query(|query| {
        query.start_at = server.cursor("a/2", true);
        query.end_at = server.cursor("b/1", true);
    });
    assert_eq!(count(server, range, None, None).await.unwrap(), 3);
}
