//! The conformance suite on the stores that need no server, and on one that does not conform. Buckets: see `buckets`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use bytes::Bytes;
use firebank::store::conformance::{self, Violation};
use firebank::store::{Store, StoreError};

/// Runs all of it on an empty store.
#[track_caller]
fn passes(result: Result<(), Violation>) {
    if let Err(violation) = result {
        panic!("{violation}");
    }
}

#[tokio::test]
async fn memory_conforms() {
    passes(conformance::check(&Store::memory()).await);
}

#[tokio::test]
async fn a_local_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    passes(conformance::check(&Store::local(folder.path()).unwrap()).await);
}

/// Every request is counted once, with its bytes.
#[tokio::test]
async fn requests_are_counted() {
    let store = Store::memory();
    store.put_new("a/object", "first").await.unwrap();
    let once = store.requests();
    assert_eq!(
        (once.put_create, once.sent_bytes, once.get, once.head),
        (1, 5, 0, 0)
    );
    // Refused, then read to see whose it is.
    store.put_new("a/object", "first").await.unwrap();
    let twice = store.requests();
    assert_eq!(
        (twice.put_create, twice.get, twice.head, twice.received_bytes),
        (2, 1, 0, 5)
    );
    store.get_range("a/object", 1..3).await.unwrap();
    store.delete("a/object").await.unwrap();
    let last = store.requests();
    assert_eq!(
        (last.get_range, last.received_bytes, last.delete, last.put),
        (1, 7, 1, 0)
    );
}

#[tokio::test]
async fn a_folder_is_no_object() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("a/folder")).unwrap();
    let store = Store::local(folder.path()).unwrap();
    let error = store.get_range("a/folder", 0..10).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::NotFound { name } if name == "a/folder"),
        "{error}"
    );
}

/// Nobody makes room for what is only claimed.
#[tokio::test]
async fn an_impossible_range_is_refused_with_the_size() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::local(folder.path()).unwrap();
    store.put_new("a/ten", "0123456789").await.unwrap();
    let error = store.get_range("a/ten", 0..1 << 50).await.unwrap_err();
    assert!(
        matches!(error, StoreError::OutOfRange { size: 10, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_missing_folder_is_not_made_by_opening() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("not/there");
    assert!(matches!(Store::local(&missing), Err(StoreError::NotFound { .. })));
    assert!(!missing.exists());
    let store = Store::create_local(&missing).unwrap();
    store.put_new("x", Bytes::from_static(b"x")).await.unwrap();
    assert!(missing.join("x").is_file());
    let error = Store::local(missing.join("x")).unwrap_err();
    assert!(error.to_string().contains("not a folder"), "{error}");
}

/// A store that takes any create, as some S3 clones do.
#[derive(Debug)]
struct Overwriting(object_store::memory::InMemory);

impl std::fmt::Display for Overwriting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("overwriting")
    }
}

#[async_trait::async_trait]
impl object_store::ObjectStore for Overwriting {
    async fn put_opts(
        &self,
        location: &object_store::path::Path,
        payload: object_store::PutPayload,
        _: object_store::PutOptions,
    ) -> object_store::Result<object_store::PutResult> {
        self.0.put_opts(location, payload, Default::default()).await
    }

    async fn put_multipart_opts(
        &self,
        location: &object_store::path::Path,
        options: object_store::PutMultipartOptions,
    ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &object_store::path::Path,
        options: object_store::GetOptions,
    ) -> object_store::Result<object_store::GetResult> {
        self.0.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: futures::stream::BoxStream<'static, object_store::Result<object_store::path::Path>>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<object_store::path::Path>> {
        self.0.delete_stream(locations)
    }

    fn list(
        &self,
        prefix: Option<&object_store::path::Path>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<object_store::ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&object_store::path::Path>,
    ) -> object_store::Result<object_store::ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &object_store::path::Path,
        to: &object_store::path::Path,
        options: object_store::CopyOptions,
    ) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_store_that_overwrites_is_found_unfit() {
    let store = Store::new(
        std::sync::Arc::new(Overwriting(object_store::memory::InMemory::new())),
        "clone",
    );
    assert!(matches!(
        conformance::check(&store).await,
        Err(Violation::Broken { promise, .. }) if promise.contains("second create")
    ));
    let error = store.check_create_only().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unfit { what } if what.contains("second create")),
        "{error}"
    );
}
