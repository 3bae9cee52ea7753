//! Buckets that make trouble: what can be tried again is, what cannot is said clearly, and nothing is lost either way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use firebank::archive::{ArchiveError, Repository};
use firebank::firestore::Firestore;
use firebank::sandbox::{Sandbox, SandboxConfig, SyntheticSpec};
use firebank::store::{Address, BucketOptions, Store, StoreError};
use futures::TryStreamExt;

use crate::support::buckets::{Asked, KINDS, Kind, SECRET, Server, Trouble};
use crate::support::operations::*;
use crate::support::sandbox_with;

const DENIED: &str =
    "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";

/// Time-outs that tests can wait for.
fn impatient(server: &Server) -> BucketOptions {
    BucketOptions {
        stall: Duration::from_millis(300),
        ..server.options()
    }
}

async fn servers() -> Vec<Server> {
    let mut servers = Vec::new();
    for kind in KINDS {
        servers.extend(Server::start(kind).await);
    }
    servers
}

fn is_put(asked: &Asked) -> bool {
    matches!(asked.verb, "PUT" | "CREATE")
}

fn is_read(asked: &Asked) -> bool {
    matches!(asked.verb, "GET" | "RANGE" | "LIST")
}

async fn shop() -> (Sandbox, Firestore) {
    let sandbox = sandbox_with(SandboxConfig {
        synthetic: vec![SyntheticSpec::new("products", 120, 600)],
        ..SandboxConfig::default()
    })
    .await;
    let database = client(&sandbox, "demo-buckets").await;
    (sandbox, database)
}

type Rule = fn(&Asked) -> Option<Trouble>;

/// Whatever happens to each first attempt, the second one makes good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_that_passes_is_sat_out() {
    let (sandbox, database) = shop().await;
    let copy = client(&sandbox, "demo-buckets-copy").await;
    let servers = servers().await;
    let all = servers.iter().map(|server| sit_out(server, &database, &copy));
    futures::future::join_all(all).await;
}

async fn sit_out(server: &Server, database: &Firestore, copy: &Firestore) {
    let troubles: [(&str, Rule); 9] = [
        ("429", |_| {
            Some(Trouble::Answer(429, "<Error><Code>SlowDown</Code></Error>"))
        }),
        ("500", |_| Some(Trouble::Answer(500, ""))),
        ("503", |_| {
            Some(Trouble::Answer(503, "<Error><Code>SlowDown</Code></Error>"))
        }),
        ("dropped", |_| Some(Trouble::Drop)),
        ("answers dropped", |_| Some(Trouble::DropAnswer)),
        ("cut", |asked| is_read(asked).then_some(Trouble::Cut(40))),
        ("cut at once", |asked| is_read(asked).then_some(Trouble::Cut(0))),
        ("stalled", |asked| is_read(asked).then_some(Trouble::Stall(40))),
        ("silent", |asked| {
            (asked.number % 7 == 0).then_some(Trouble::Silence)
        }),
    ];
    for (which, (name, trouble)) in troubles.into_iter().enumerate() {
        let store = server.store_with(&format!("trouble-{which}"), &impatient(server));
        // A delete whose answer is lost is done when it is tried again, and nothing else is.
        server.front.trouble(move |asked| {
            let first = asked.attempt == 1 && asked.verb != "DELETE";
            first.then(|| trouble(asked)).flatten()
        });
        let repository = repository_in(store, small_segments()).await;
        let snapshot = back_up(database, &repository, 2).await;
        assert_snapshot_is(&repository, &snapshot, database).await;
        restore_all(&repository, &snapshot, copy).await;
        let asked = server.front.asked();
        let again = asked.iter().filter(|asked| asked.attempt == 2).count();
        assert!(
            again > 5,
            "{:?}, {name}: only {again} requests met trouble",
            server.kind
        );
        server.front.no_trouble();
        assert_intact(&repository, 1).await;
    }
}

/// A large object may take longer than any pause.
#[tokio::test]
async fn slow_is_not_stalled() {
    for server in servers().await {
        let store = server.store_with("slow", &impatient(&server));
        let object = Bytes::from(vec![7; 1 << 20]);
        store.put_new("large", object.clone()).await.unwrap();
        server
            .front
            .trouble(|_| Some(Trouble::Slow(Duration::from_millis(200))));
        let started = Instant::now();
        assert_eq!(store.get("large").await.unwrap(), object);
        assert!(
            started.elapsed() > Duration::from_millis(600),
            "{:?}",
            started.elapsed()
        );
        assert_eq!(server.front.asked().len(), 1);
    }
}

/// How long an upload may take depends on its size.
#[tokio::test]
async fn a_large_upload_has_its_time() {
    let server = Server::start(Kind::S3).await.unwrap();
    let options = BucketOptions {
        slowest_upload: 1 << 20,
        ..impatient(&server)
    };
    let store = server.store_with("upload", &options);
    for (name, length, attempts) in [("large", 2 << 20, 1), ("small", 1 << 10, 2)] {
        server
            .front
            .trouble(|asked| (asked.attempt == 1).then_some(Trouble::Late(Duration::from_millis(900))));
        store.put_new(name, Bytes::from(vec![7; length])).await.unwrap();
        assert_eq!(server.front.count("CREATE"), attempts, "{name}");
    }
}

/// A bucket that takes its time is sent several objects at once, and not more than a few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_run_in_parallel_and_wait_for_a_slow_bucket() {
    let (_sandbox, database) = shop().await;
    let server = Server::start(Kind::S3).await.unwrap();
    let repository = repository_in(server.store("parallel"), small_segments()).await;
    server
        .front
        .trouble(|_| Some(Trouble::Late(Duration::from_millis(100))));
    back_up(&database, &repository, 4).await;
    let most = server.front.most_at_once();
    assert!((3..=32).contains(&most), "{most} requests at once");
}

/// A create of which nobody heard the end, and one that was in another's way.
#[tokio::test]
async fn a_create_is_found_to_be_ones_own() {
    for server in servers().await {
        let store = server.store_with("create", &impatient(&server));
        for (name, trouble) in [
            ("lost", Trouble::DropAnswer),
            ("stalled", Trouble::Silence),
            // What S3 says to both of two writers at once; neither's object need be there.
            (
                "conflict",
                Trouble::Answer(409, "<Error><Code>ConditionalRequestConflict</Code></Error>"),
            ),
        ] {
            server
                .front
                .trouble(move |asked| (is_put(asked) && asked.attempt == 1).then(|| trouble.clone()));
            store.put_new(name, Bytes::from_static(b"mine")).await.unwrap();
            assert_eq!(server.front.count("CREATE"), 2, "{name}");
            assert_eq!(store.get(name).await.unwrap(), "mine");
            let error = store
                .put_new(name, Bytes::from_static(b"more"))
                .await
                .unwrap_err();
            assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
        }
        // A conflict that does not end is told as one.
        server
            .front
            .trouble(|asked| is_put(asked).then_some(Trouble::Answer(409, "")));
        let error = store
            .put_new("never", Bytes::from_static(b"x"))
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
    }
}

/// A refusal is told at once, with the right that is missing.
#[tokio::test]
async fn a_refusal_is_not_tried_again_and_names_the_right() {
    for server in servers().await {
        let store = server.store("refused");
        store.put_new("object", Bytes::from_static(b"x")).await.unwrap();
        let rights = match server.kind {
            Kind::S3 => [
                "s3:PutObject",
                "s3:GetObject",
                "s3:GetObject",
                "s3:ListBucket",
                "s3:DeleteObject",
            ],
            Kind::Gcs => [
                "storage.objects.create",
                "storage.objects.get",
                "storage.objects.get",
                "storage.objects.list",
                "storage.objects.delete",
            ],
            Kind::Azure => [
                "blobs/add/action",
                "blobs/read",
                "blobs/read",
                "blobs/read",
                "blobs/delete",
            ],
        };
        server.front.trouble(|_| Some(Trouble::Answer(403, DENIED)));
        for (nth, right) in rights.into_iter().enumerate() {
            server.front.forget();
            let result = match nth {
                0 => store.put_new("new", Bytes::from_static(b"x")).await,
                1 => store.get("object").await.map(drop),
                2 => store.get_range("object", 0..1).await.map(drop),
                3 => store.list("").try_collect::<Vec<_>>().await.map(drop),
                _ => store.delete("object").await,
            };
            let error = result.unwrap_err();
            assert!(matches!(error, StoreError::NoPermission { .. }), "{error:?}");
            let told = error.to_string();
            assert!(
                told.contains(right) && told.contains("AccessDenied: Access Denied"),
                "{told}"
            );
            assert_eq!(server.front.asked().len(), 1, "{told}");
        }
    }
}

/// Trouble that does not pass ends in an error that says what the service said, and harms nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_that_stays_is_told() {
    let (_sandbox, database) = shop().await;
    for server in servers().await {
        let few = BucketOptions {
            max_retries: 2,
            ..impatient(&server)
        };
        let store = server.store_with("stays", &few);
        let repository = repository_in(store, small_segments()).await;
        back_up(&database, &repository, 1).await;
        for (trouble, says) in [
            (
                Trouble::Answer(503, "<Error><Code>SlowDown</Code></Error>"),
                "503",
            ),
            (Trouble::Answer(429, "busy"), "429"),
            (Trouble::Answer(500, ""), "500"),
            (Trouble::Answer(403, DENIED), "AccessDenied"),
            (
                Trouble::Answer(400, "<Error><Code>EntityTooLarge</Code></Error>"),
                "EntityTooLarge",
            ),
            (Trouble::Silence, "nothing came"),
        ] {
            // From the middle of a backup on.
            server
                .front
                .trouble(move |asked| (asked.number > 8 || is_put(asked)).then(|| trouble.clone()));
            let error = try_back_up(&database, &repository, 1).await.unwrap_err();
            let told = format!("{:#}", anyhow::Error::new(error));
            assert!(told.contains(says), "{says}: {told}");
            server.front.no_trouble();
            assert_intact(&repository, 1).await;
        }
    }
}

/// Some S3 clones take any conditional put: `init` must find out, and leave nothing behind.
#[tokio::test]
async fn a_bucket_that_overwrites_is_found_unfit() {
    for server in servers().await {
        let store = server.store("unfit");
        server.front.trouble(|_| Some(Trouble::Accept));
        let error = Repository::init(store.clone(), firebank::clock::now())
            .await
            .unwrap_err();
        assert!(
            matches!(&error, ArchiveError::Store(StoreError::Unfit { what }) if what.contains("second create")
                && what.contains(store.location())),
            "{error:?}"
        );
        let left: Vec<_> = store.list("").try_collect().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
        // Where this identity may not delete, one small object stays and nobody minds.
        server
            .front
            .trouble(|asked| (asked.verb == "DELETE").then_some(Trouble::Answer(403, DENIED)));
        store.check_create_only().await.unwrap();
        assert_eq!(
            store.list("probes").try_collect::<Vec<_>>().await.unwrap().len(),
            1
        );
        server.front.no_trouble();
        Repository::init(store.clone(), firebank::clock::now())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_missing_bucket_is_told_from_a_missing_object() {
    for server in servers().await {
        let here = server.store("");
        assert!(matches!(here.get("x").await, Err(StoreError::NotFound { .. })));
        assert!(matches!(here.head("x").await, Err(StoreError::NotFound { .. })));
        let address: Address = server.address("x").replace("://", "://no-such-").parse().unwrap();
        let store = Store::open(&address, &server.options()).unwrap();
        for error in [
            store.list("").try_collect::<Vec<_>>().await.unwrap_err(),
            store.put_new("x", Bytes::from_static(b"x")).await.unwrap_err(),
            store.get("x").await.unwrap_err(),
        ] {
            assert!(
                matches!(&error, StoreError::NoBucket { location, .. } if *location == address.to_string()),
                "{:?}: {error:?}",
                server.kind
            );
        }
    }
}

#[tokio::test]
async fn a_wrong_region_is_named() {
    let server = Server::start(Kind::S3).await.unwrap();
    let store = server.store("x");
    for trouble in [
        Trouble::AnswerWith(301, "", vec![("x-amz-bucket-region", "eu-north-1")]),
        Trouble::Answer(
            400,
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'eu-central-1' is wrong; expecting \
             'eu-north-1'</Message><Region>eu-north-1</Region></Error>",
        ),
    ] {
        server.front.trouble(move |_| Some(trouble.clone()));
        let error = store.get("x").await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Elsewhere { what, .. } if what.contains("AWS_REGION=eu-north-1")),
            "{error:?}"
        );
        assert_eq!(server.front.asked().len(), 1);
    }
}

fn changed(server: &Server, changes: &[(&str, &str)]) -> BucketOptions {
    let mut options = server.options();
    for (name, value) in changes {
        options.variables.insert((*name).to_owned(), (*value).to_owned());
    }
    options
}

#[tokio::test]
async fn wrong_credentials_are_told_and_not_shown() {
    let server = Server::start(Kind::S3).await.unwrap();
    for (changes, says) in [
        (
            [("AWS_SECRET_ACCESS_KEY", "c2VjcmV0LW90aGVy")],
            "SignatureDoesNotMatch",
        ),
        ([("AWS_ACCESS_KEY_ID", "AKIASOMEBODY")], "NotSignedUp"),
    ] {
        let error = server
            .store_with("x", &changed(&server, &changes))
            .get("x")
            .await
            .unwrap_err();
        let told = format!("{:#}", anyhow::Error::new(error));
        assert!(
            told.contains(says) && told.contains("AWS_SECRET_ACCESS_KEY"),
            "{told}"
        );
        assert!(!told.contains(SECRET), "{told}");
    }
    let Some(server) = Server::start(Kind::Azure).await else {
        return;
    };
    for (changes, says) in [
        (
            [("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0LW90aGVy")],
            "AuthorizationFailure",
        ),
        // The query of every request's URL, then.
        (
            [("AZURE_STORAGE_SAS_TOKEN", "sv=2023-11-03&sp=r&sig=c2VjcmV0")],
            "Auth",
        ),
    ] {
        let mut options = changed(&server, &changes);
        options.variables.remove("AZURE_STORAGE_USE_EMULATOR");
        let url = format!("http://{}/devstoreaccount1", server.front.address());
        options.variables.insert("AZURE_STORAGE_ENDPOINT".to_owned(), url);
        options
            .variables
            .insert("AZURE_STORAGE_ACCOUNT".to_owned(), "devstoreaccount1".to_owned());
        let error = server.store_with("x", &options).get("x").await.unwrap_err();
        let told = format!("{:#}", anyhow::Error::new(error));
        assert!(told.contains(says), "{told}");
        assert!(!told.contains(SECRET), "{told}");
    }
}

type Variables<'a> = Vec<(&'a str, &'a str)>;

/// A service that is not there is told within seconds, credentials that are nowhere even sooner.
#[tokio::test]
async fn what_cannot_be_reached_is_told_soon() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let url = format!("http://{closed}");
    let cases: [(&str, Variables<'_>, &str); 4] = [
        (
            "s3://bucket/x",
            [&keys[..], &[("AWS_ENDPOINT_URL", url.as_str())]].concat(),
            "AWS_ENDPOINT_URL",
        ),
        (
            "gs://bucket/x",
            vec![("STORAGE_EMULATOR_HOST", &closed)],
            "STORAGE_EMULATOR_HOST",
        ),
        (
            "az://bucket/x",
            vec![
                ("AZURE_STORAGE_USE_EMULATOR", "true"),
                ("AZURITE_BLOB_STORAGE_URL", &url),
            ],
            "AZURE_STORAGE_ENDPOINT",
        ),
        (
            "s3://bucket/x",
            vec![("AWS_METADATA_ENDPOINT", &url)],
            "AWS_PROFILE",
        ),
    ];
    for (address, variables, says) in cases {
        let variables: BTreeMap<String, String> = variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let options = BucketOptions {
            variables,
            ..BucketOptions::default()
        };
        let store = Store::open(&address.parse().unwrap(), &options).unwrap();
        let started = Instant::now();
        let error = store.get("x").await.unwrap_err();
        let is_of_credentials = matches!(error, StoreError::Credentials { .. });
        assert_eq!(is_of_credentials, says == "AWS_PROFILE", "{error:?}");
        assert!(
            is_of_credentials || matches!(error, StoreError::Unreachable { .. }),
            "{error:?}"
        );
        let told = error.to_string();
        assert!(
            told.contains(says) && told.contains(address) && !told.contains(SECRET),
            "{told}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{:?}",
            started.elapsed()
        );
    }
}
