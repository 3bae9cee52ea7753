//! What every store must do for a repository to rest on it: one suite, run on each kind.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::collections::BTreeSet;

use bytes::Bytes;
use firebank::store::{Store, StoreError};
use futures::{StreamExt, TryStreamExt};

async fn listed(store: &Store, prefix: &str) -> BTreeSet<String> {
    store
        .list(prefix)
        .map_ok(|object| object.name)
        .try_collect()
        .await
        .unwrap()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// Runs all of it on an empty store.
pub(crate) async fn conforms(store: &Store) {
    assert!(listed(store, "").await.is_empty());
    create_only(store).await;
    ranges(store).await;
    listing(store).await;
    deleting(store).await;
    names_of_objects(store).await;
    one_creator_wins(store).await;
    large_objects(store).await;
    store.check_create_only().await.unwrap();
    assert!(listed(store, "probes").await.is_empty());
}

async fn create_only(store: &Store) {
    let before = store.requests();
    store
        .put_new("a/object", Bytes::from_static(b"first"))
        .await
        .unwrap();
    let once = store.requests();
    assert_eq!(once.put_create - before.put_create, 1);
    assert_eq!(once.sent_bytes - before.sent_bytes, 5);
    // The very same bytes may be our own, whose answer was lost.
    store
        .put_new("a/object", Bytes::from_static(b"first"))
        .await
        .unwrap();
    for other in ["other", "", "first and more", "firs"] {
        let error = store.put_new("a/object", Bytes::from(other)).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::AlreadyExists { name } if name == "a/object"),
            "{error:?}"
        );
    }
    assert_eq!(store.get("a/object").await.unwrap(), "first");
    // In parts, as chunks are put.
    let parts = |parts: [&'static str; 3]| {
        parts
            .map(Bytes::from_static_str)
            .into_iter()
            .collect::<object_store::PutPayload>()
    };
    store.put_new("a/parts", parts(["on", "", "e"])).await.unwrap();
    store.put_new("a/parts", parts(["o", "n", "e"])).await.unwrap();
    assert!(store.put_new("a/parts", parts(["o", "n", "f"])).await.is_err());
    store.put("a/marker", Bytes::from_static(b"1")).await.unwrap();
    store.put("a/marker", Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(store.get("a/marker").await.unwrap(), "2");
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Self;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes())
    }
}

async fn ranges(store: &Store) {
    store
        .put_new("r/ten", Bytes::from_static(b"0123456789"))
        .await
        .unwrap();
    assert_eq!(store.get_range("r/ten", 0..10).await.unwrap(), "0123456789");
    assert_eq!(store.get_range("r/ten", 3..5).await.unwrap(), "34");
    assert_eq!(store.get_range("r/ten", 9..10).await.unwrap(), "9");
    assert!(store.get_range("r/ten", 4..4).await.unwrap().is_empty());
    for range in [8..11, 10..11, 50..60] {
        let error = store.get_range("r/ten", range).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::OutOfRange { name, size: 10, .. } if name == "r/ten"),
            "{error:?}"
        );
    }
    assert!(matches!(
        store.get_range("r/none", 0..1).await.unwrap_err(),
        StoreError::NotFound { name } if name == "r/none"
    ));
    assert!(matches!(
        store.get_at_most("r/ten", 9).await.unwrap_err(),
        StoreError::TooLarge {
            size: 10,
            limit: 9,
            ..
        }
    ));
    assert_eq!(store.get_at_most("r/ten", 10).await.unwrap().len(), 10);
    let head = store.head("r/ten").await.unwrap();
    assert_eq!((head.name.as_str(), head.size), ("r/ten", 10));
    let age = firebank::clock::now() - head.last_modified;
    assert!(age.num_seconds().abs() < 60, "{age}");
}

async fn listing(store: &Store) {
    assert!(listed(store, "l").await.is_empty());
    for name in ["l/ab/1", "l/ab/2", "l/abc/3", "l/x"] {
        store.put_new(name, Bytes::from_static(b"x")).await.unwrap();
        assert!(
            listed(store, "l").await.contains(name),
            "{name} must be listed at once"
        );
    }
    assert_eq!(listed(store, "l/ab").await, names(["l/ab/1", "l/ab/2"]));
    assert_eq!(listed(store, "l/ab/").await, names(["l/ab/1", "l/ab/2"]));
    assert_eq!(
        listed(store, "l").await,
        names(["l/ab/1", "l/ab/2", "l/abc/3", "l/x"])
    );
    assert!(listed(store, "nowhere").await.is_empty());
    let sizes: Vec<u64> = store
        .list("l")
        .map_ok(|object| object.size)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(sizes, [1; 4]);
}

async fn deleting(store: &Store) {
    store.put_new("d/object", Bytes::from_static(b"x")).await.unwrap();
    assert!(store.exists("d/object").await.unwrap());
    store.delete("d/object").await.unwrap();
    assert!(!store.exists("d/object").await.unwrap());
    assert!(matches!(
        store.get("d/object").await,
        Err(StoreError::NotFound { .. })
    ));
    assert!(matches!(
        store.head("d/object").await,
        Err(StoreError::NotFound { .. })
    ));
    assert!(listed(store, "d").await.is_empty());
    store.delete("d/object").await.unwrap();
    store
        .put_new("d/object", Bytes::from_static(b"again"))
        .await
        .unwrap();
}

async fn names_of_objects(store: &Store) {
    let hex = "ab".repeat(32);
    for name in [
        format!("chunks/ab/{hex}-0123456789abcdef"),
        "n/with space and ü.json".to_owned(),
    ] {
        store.put_new(&name, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(store.get(&name).await.unwrap(), "x");
        assert_eq!(store.head(&name).await.unwrap().name, name);
    }
    for name in ["", "/a", "a/", "a//b", "../a", "a/./b"] {
        let error = store.put_new(name, Bytes::from_static(b"x")).await.unwrap_err();
        assert!(matches!(error, StoreError::BadName { .. }), "{name:?}: {error:?}");
    }
}

async fn one_creator_wins(store: &Store) {
    for round in 0..4 {
        let name = format!("race/{round}");
        let attempts = (0..16).map(|writer| {
            let (store, name) = (store.clone(), name.clone());
            tokio::spawn(async move {
                store
                    .put_new(&name, Bytes::from(format!("writer {writer}")))
                    .await
                    .map(|()| writer)
            })
        });
        let results: Vec<_> = futures::stream::iter(attempts)
            .buffer_unordered(16)
            .collect()
            .await;
        let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
        let winners: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        assert_eq!(store.get(&name).await.unwrap(), format!("writer {}", winners[0]));
    }
}

async fn large_objects(store: &Store) {
    let parts: Vec<Bytes> = (0..20u8).map(|part| Bytes::from(vec![part; 1 << 20])).collect();
    let payload: object_store::PutPayload = parts.into_iter().collect();
    store.put_new("large", payload).await.unwrap();
    assert_eq!(store.head("large").await.unwrap().size, 20 << 20);
    let across = store
        .get_range("large", (5 << 20) - 2..(5 << 20) + 2)
        .await
        .unwrap();
    assert_eq!(&across[..], [4, 4, 5, 5]);
    assert_eq!(store.get("large").await.unwrap().len(), 20 << 20);
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&Store::memory()).await;
}

#[tokio::test]
async fn a_local_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conforms(&Store::local(folder.path()).unwrap()).await;
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
    let error = store.check_create_only().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unfit { what } if what.contains("second create")),
        "{error}"
    );
}
