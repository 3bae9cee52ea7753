//! What the administration API says of a database, where it may be asked: its identity, point-in-time recovery, and the fields by
//! which it deletes documents.

use std::time::Duration;

use firebank::archive::{ReadMode, Repository};
use firebank::backup::{BackupError, BackupOptions, BackupStats, backup};
use firebank::document::{DocumentPath, Timestamp, canonical, typed_json};
use firebank::firestore::{BulkWriter, Firestore, WriteFailure, WriteOptions};
use firebank::progress::Progress;
use firebank::sandbox::{Administration, DatabaseFacts, Rpc, Sandbox, SandboxConfig};
use firebank::stop::Stop;
use serde_json::json;

use crate::cli_support::{SHOP, Shop};
use crate::restore_modes::{documents_of, put};
use crate::support::operations::*;
use crate::support::{project, sandbox_with};

async fn world(administration: Administration) -> (Sandbox, Firestore, Repository) {
    let config = SandboxConfig {
        history: Duration::from_secs(7 * 86_400),
        administration,
        ..SandboxConfig::default()
    };
    let sandbox = sandbox_with(config).await;
    let database = connect(&sandbox.address().to_string(), &project("admin"), "(default)").await;
    (sandbox, database, repository(small_segments()).await)
}

fn with_recovery() -> Administration {
    Administration::Describes(DatabaseFacts {
        point_in_time_recovery: true,
        ..DatabaseFacts::default()
    })
}

fn with_uid(uid: &str) -> Administration {
    Administration::Describes(DatabaseFacts {
        uid: uid.to_owned(),
        ..DatabaseFacts::default()
    })
}

async fn write(database: &Firestore, number: u32) {
    let mut writer = BulkWriter::new(database, WriteOptions::new(database), Vec::<WriteFailure>::new());
    let body = canonical::encode(&typed_json::fields_from_str(&format!(r#"{{"n": {number}}}"#)).unwrap());
    for id in 0..50 {
        let path = DocumentPath::parse(format!("a/{id}")).unwrap();
        writer.put(&path, &body).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap().failed, 0);
}

async fn take(
    database: &Firestore,
    repository: &Repository,
    options: BackupOptions,
) -> Result<BackupStats, BackupError> {
    backup(database, repository, options, &Progress::new()).await
}

/// Nothing that was written before a backup is missing in it, whatever moment it chooses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_may_be_long_waits_for_a_minute_that_lasts() {
    let (_sandbox, database, repository) = world(with_recovery()).await;
    write(&database, 1).await;
    let begun = database.current_read_time().await.unwrap();
    // Nobody knows how long the first one takes.
    let first = take(&database, &repository, BackupOptions::default())
        .await
        .unwrap();
    let read_time = first.snapshot.read_time;
    assert_eq!((read_time.seconds % 60, read_time.nanos), (0, 0));
    assert!(
        read_time >= begun && read_time.seconds - begun.seconds <= 60,
        "{read_time}"
    );
    assert_eq!(first.snapshot.documents, 50);
    write(&database, 2).await;
    // The next one is as short, and of the present.
    let next = take(&database, &repository, BackupOptions::default())
        .await
        .unwrap()
        .snapshot;
    assert_ne!((next.read_time.seconds % 60, next.read_time.nanos), (0, 0));
    assert_eq!(
        (next.parent, next.stats.changed_documents),
        (Some(first.snapshot.id), 50)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_past_the_hour_where_recovery_is_known() {
    let (sandbox, database, repository) = world(with_recovery()).await;
    write(&database, 1).await;
    let now = database.current_read_time().await.unwrap();
    let earlier = Timestamp::new((now.seconds - 2 * 3600) / 60 * 60, 0);
    let stop = Stop::default();
    stop.request();
    let stopped = BackupOptions {
        read_time: Some(earlier),
        stop,
        ..BackupOptions::default()
    };
    let Err(BackupError::Stopped { session, .. }) = take(&database, &repository, stopped).await else {
        panic!("it was asked to stop");
    };
    let resume = || BackupOptions {
        resume: true,
        ..BackupOptions::default()
    };
    // Who may not ask cannot know that the session's time can still be read.
    sandbox.administer(Administration::Refused);
    let new = take(&database, &repository, resume()).await.unwrap().snapshot;
    assert!(new.read_time >= now && new.documents == 50);
    sandbox.administer(with_recovery());
    let resumed = take(&database, &repository, resume()).await.unwrap().snapshot;
    assert_eq!(resumed.id.to_string(), session.to_string());
    assert_eq!((resumed.read_time, resumed.documents), (earlier, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_made_again_is_read_anew() {
    let (sandbox, database, repository) = world(with_uid("one")).await;
    write(&database, 1).await;
    let night = async || {
        let stats = take(&database, &repository, BackupOptions::default()).await;
        stats.unwrap().snapshot
    };
    let first = night().await;
    assert_eq!(first.database_uid.as_deref(), Some("one"));
    let second = night().await;
    assert_eq!(second.parent, Some(first.id));
    sandbox.administer(with_uid("two"));
    let third = night().await;
    assert_eq!((third.parent, third.stats.read), (None, ReadMode::Full));
    assert_eq!(third.database_uid.as_deref(), Some("two"));
    // An identity that cannot be known speaks neither way.
    sandbox.administer(Administration::Refused);
    let fourth = night().await;
    assert_eq!((fourth.parent, fourth.database_uid), (Some(third.id), None));
    assert_eq!(sandbox.usage().requests_of(Rpc::GetDatabase), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_says_what_it_is() {
    let (sandbox, database, _) = world(Administration::Absent).await;
    assert_eq!(database.metadata().await.unwrap(), None);
    assert_eq!(database.ttl_policies().await.unwrap(), None);
    sandbox.administer(Administration::Describes(DatabaseFacts {
        uid: "u".to_owned(),
        location: "eur3".to_owned(),
        point_in_time_recovery: true,
        delete_protection: true,
        ttl_fields: ["a", "b", "c"]
            .map(|group| (group.to_owned(), "`x.y`.z".to_owned()))
            .to_vec(),
    }));
    let metadata = database.metadata().await.unwrap().unwrap();
    assert_eq!((metadata.uid.as_str(), metadata.location.as_str()), ("u", "eur3"));
    assert!(metadata.native && metadata.point_in_time_recovery);
    assert_eq!(metadata.retention, Some(Duration::from_secs(7 * 86_400)));
    let policies = database.ttl_policies().await.unwrap().unwrap();
    let policies: Vec<(&str, &str)> = policies
        .iter()
        .map(|policy| (policy.collection_group.as_str(), policy.field.as_str()))
        .collect();
    assert_eq!(policies, [("a", "`x.y`.z"), ("b", "`x.y`.z"), ("c", "`x.y`.z")]);
}

#[test]
fn a_plan_warns_by_the_time_to_live_policies_of_the_target() {
    let shop = Shop::empty();
    let database = shop.connect(SHOP, "(default)");
    let past = json!({"$timestamp": "2020-01-01T00:00:00Z"});
    let future = json!({"$timestamp": "2999-01-01T00:00:00Z"});
    shop.runtime.block_on(put(
        &database,
        &documents_of(json!({
            "carts/c1/sessions/s1": {"until": past},
            "sessions/s1": {"until": past, "end": {"at": past}},
            "sessions/s2": {"until": past},
            "sessions/s3": {"until": future},
            "users/u1": {"until": past},
        })),
    ));
    shop.run(["init"]).done();
    let id = shop.back_up();
    let policies = ["other.x", "sessions.end.at", "sessions.until"];
    let policies = policies.map(|policy| policy.split_once('.').unwrap());
    shop.sandbox.administer(Administration::Describes(DatabaseFacts {
        ttl_fields: policies
            .map(|(group, field)| (group.to_owned(), field.to_owned()))
            .to_vec(),
        ..DatabaseFacts::default()
    }));
    let plan = |arguments: &[&str]| {
        let all = ["restore", &id, "--to-project", "demo-target", "--dry-run"];
        shop.firebank(all.iter().chain(arguments).copied().collect::<Vec<_>>())
    };
    assert_eq!(
        plan(&["--json"]).json()["warnings"],
        json!([
            {"kind": "ttl_passed", "field": "sessions.end.at", "documents": 1, "examples": ["sessions/s1"]},
            {"kind": "ttl_passed", "field": "sessions.until", "documents": 3,
                "examples": ["carts/c1/sessions/s1", "sessions/s1", "sessions/s2"]},
        ])
    );
    let shown = plan(&[]);
    for part in [
        "3 documents are past their time to live, and would be deleted again (`sessions.until`): ",
        "(`sessions.end.at`): sessions/s1",
    ] {
        assert!(shown.stderr.contains(part), "{part:?}: {shown}");
    }
    // A file that is imported, too.
    shop.write(
        "sessions.json",
        json!({"collection": "sessions", "documents": [{"id": "s9", "until": past}]}).to_string(),
    );
    let import = shop.firebank_on("demo-target", ["import", "sessions.json", "--dry-run"]);
    assert!(
        import.stderr.contains("(`sessions.until`): sessions/s9"),
        "{import}"
    );
    // Whoever names fields is not asked for any more.
    let asked = shop.sandbox.usage().requests_of(Rpc::ListFields);
    assert!(asked > 1);
    let named = plan(&["--ttl-field", "users.until", "--json"]).json();
    assert_eq!(
        named["warnings"],
        json!([{"kind": "ttl_passed", "field": "users.until", "documents": 1, "examples": ["users/u1"]}])
    );
    assert_eq!(shop.sandbox.usage().requests_of(Rpc::ListFields), asked);
    // Who may not ask restores without.
    shop.sandbox.administer(Administration::Refused);
    assert_eq!(plan(&["--json"]).json()["warnings"], json!([]));
}
