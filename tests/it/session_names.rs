//! Named sessions: processes that know nothing but a name take one backup together.

use std::time::Duration;

use chrono::TimeDelta;
use firebank::archive::{
    ArchiveError, NamedSession, Plan, ReadMode, Repository, Selection, Session, SessionOptions, SnapshotKind,
    SweepOptions, sweep,
};
use firebank::backup::{BackupError, BackupOptions, BackupStats, Parent, backup};
use firebank::document::{DocumentPath, canonical, typed_json};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::sandbox::{FaultPlan, Sandbox};
use firebank::stop::Stop;

use crate::archive_support::object_names;
use crate::cli_support::Shop;
use crate::strange_store::{Habits, StrangeStore};
use crate::support::operations::*;
use crate::support::{project, sandbox};

const DOCUMENTS: u64 = 3000;

struct World {
    sandbox: Sandbox,
    database: Firestore,
    repository: Repository,
}

impl World {
    async fn new() -> Self {
        let sandbox = sandbox().await;
        let world = Self {
            database: client(&sandbox, &project("names")).await,
            repository: repository(small_segments()).await,
            sandbox,
        };
        world.write(0..DOCUMENTS, 0).await;
        world
    }

    async fn write(&self, documents: impl Iterator<Item = u64>, version: u64) {
        let documents = documents.map(|number| {
            let path = DocumentPath::parse(format!("orders/{:06}", number * 7919 % 1_000_003)).unwrap();
            let text = format!("{path}{version}").repeat(20);
            let body =
                canonical::encode(&typed_json::fields_from_str(&format!(r#"{{"text": "{text}"}}"#)).unwrap());
            (path, body)
        });
        put_all(&self.database, documents).await;
    }

    /// A process of its own.
    async fn work(&self, name: &str, more: BackupOptions) -> Result<BackupStats, BackupError> {
        let address = self.sandbox.address().to_string();
        let database = connect(&address, &self.database.database().project, "(default)").await;
        let repository = Repository::open(self.repository.store().clone()).await.unwrap();
        let options = BackupOptions {
            session: Some(name.to_owned()),
            ranges: Some(24),
            parallel: 2,
            ..more
        };
        backup(&database, &repository, options, &Progress::new()).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_with_one_name_take_one_backup() {
    let world = World::new().await;
    for (night, name) in ["first", "second", "third"].into_iter().enumerate() {
        world.sandbox.faults().set(FaultPlan {
            bytes_per_second: Some(600_000),
            ..FaultPlan::default()
        });
        let options = || BackupOptions {
            read: (night == 2).then_some(ReadMode::Full),
            ..BackupOptions::default()
        };
        let sent = world.sandbox.usage().documents_sent;
        let (one, two, three) = tokio::join!(
            world.work(name, options()),
            world.work(name, options()),
            world.work(name, options())
        );
        let sent = world.sandbox.usage().documents_sent - sent;
        world.sandbox.faults().clear();
        let mut ids = Vec::new();
        for stats in [one, two, three] {
            match stats {
                Ok(stats) => ids.push(stats.snapshot),
                // It came so late that all was done.
                Err(BackupError::NameUsed { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(!ids.is_empty());
        assert!(ids.iter().all(|snapshot| snapshot.id == ids[0].id));
        assert_eq!(ids[0].parent.is_some(), night > 0);
        assert_snapshot_is(&world.repository, &ids[0], &world.database).await;
        assert_intact(&world.repository, night as u64 + 1).await;
        // They share the work: three times the whole would be all for themselves. (What a first backup reads past the ends of
        // its ranges is much, of documents as small as these.)
        assert!(
            night == 0 || sent < DOCUMENTS * 5 / 2,
            "{sent} documents were sent"
        );
        let late = world.work(name, options()).await;
        assert!(
            matches!(late, Err(BackupError::NameUsed { how: "committed", .. })),
            "{late:?}"
        );
        world.write((0..DOCUMENTS).step_by(17), night as u64 + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_was_left_is_taken_up_by_its_name() {
    let world = World::new().await;
    back_up(&world.database, &world.repository, 2).await;
    // Named, and nothing more; then with pins too, and then with a plan.
    for (at, left) in ["named", "pinned", "planned"].into_iter().enumerate() {
        let Ok(NamedSession::New(id)) = world.repository.session_named(left).await else {
            panic!("the name is new")
        };
        let parent = world.repository.snapshots().await.unwrap().snapshots[0].clone();
        if left == "pinned" {
            // It died right after its pins: nothing else is there.
            let now = world.database.current_read_time().await.unwrap();
            let plan = plan(&world, now, Some(parent.id));
            Session::begin(
                &world.repository,
                SessionOptions {
                    id: Some(id),
                    ..SessionOptions::new(plan)
                },
            )
            .await
            .unwrap();
            let name = format!("sessions/{id}/plan.json");
            world.repository.store().delete(&name).await.unwrap();
            // Meanwhile there is a newer one that it would rather build upon.
            back_up(&world.database, &world.repository, 2).await;
        } else if left == "planned" {
            let stop = firebank::stop::Stop::default();
            stop.request();
            let stopped = world
                .work(
                    left,
                    BackupOptions {
                        stop,
                        ..BackupOptions::default()
                    },
                )
                .await;
            assert!(
                matches!(stopped, Err(BackupError::Stopped { session, .. }) if session == id),
                "{stopped:?}"
            );
        }
        let stats = world.work(left, BackupOptions::default()).await.unwrap();
        assert_eq!(stats.snapshot.id, id);
        assert_eq!(stats.snapshot.parent, Some(parent.id), "{at}");
        assert_snapshot_is(&world.repository, &stats.snapshot, &world.database).await;
    }
    let given_up = world.repository.session_named("given-up").await.unwrap();
    let NamedSession::New(id) = given_up else {
        panic!("{given_up:?}")
    };
    firebank::archive::session::abort(&world.repository, id, "a test")
        .await
        .unwrap();
    let error = world
        .work("given-up", BackupOptions::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, BackupError::NameUsed { how: "given up", .. }),
        "{error}"
    );
}

fn plan(
    world: &World,
    read_time: firebank::document::Timestamp,
    parent: Option<firebank::archive::SnapshotId>,
) -> Plan {
    Plan {
        parent,
        ..plan_of(&world.database, read_time)
    }
}

fn plan_of(database: &Firestore, read_time: firebank::document::Timestamp) -> Plan {
    Plan {
        kind: SnapshotKind::Backup,
        database: database.database().clone(),
        database_uid: None,
        read_time,
        started_at: firebank::clock::now(),
        selection: Selection::all(),
        parent: None,
        merges: None,
        read: ReadMode::Names,
        ranges: vec![firebank::document::KeyRange::all()],
        extra: Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_one_session_must_want_the_same() {
    let world = World::new().await;
    let stop = firebank::stop::Stop::default();
    stop.request();
    let stopped = world
        .work(
            "one",
            BackupOptions {
                stop,
                ..BackupOptions::default()
            },
        )
        .await;
    assert!(matches!(stopped, Err(BackupError::Stopped { .. })), "{stopped:?}");
    let other = BackupOptions {
        selection: Selection::new(vec![], vec!["orders".to_owned()]),
        parent: Parent::None,
        ..BackupOptions::default()
    };
    let error = world.work("one", other).await.unwrap_err();
    assert!(matches!(error, BackupError::OtherPlan { .. }), "{error}");
}

/// How old a name is the store says: machines' clocks may be a day apart.
#[tokio::test]
async fn whether_a_name_is_old_is_told_by_the_stores_clock() {
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), small_segments()).await;
    let since = |hours| {
        objects.habits(Habits {
            ahead: TimeDelta::hours(hours),
            ..Habits::default()
        });
    };
    since(-30);
    let NamedSession::New(id) = repository.session_named("nightly").await.unwrap() else {
        panic!("the name is new")
    };
    // The store's clock says that it is young; that of this machine is of no interest.
    since(-10);
    let again = repository.session_named("nightly").await.unwrap();
    assert!(
        matches!(again, NamedSession::New(same) if same == id),
        "{again:?}"
    );
    since(0);
    let late = repository.session_named("nightly").await;
    assert!(matches!(late, Err(ArchiveError::Aborted { .. })), "{late:?}");
}

/// Names of sessions that are at their end go with the other records, and those of sessions that may live do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_swept_when_their_time_is_up() {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), &project("names"), "(default)").await;
    let objects = StrangeStore::new();
    let repository = repository_in(objects.store(), small_segments()).await;
    let ahead = |days| {
        objects.habits(Habits {
            ahead: TimeDelta::days(days),
            ..Habits::default()
        });
    };
    let names = async || {
        let mut names = object_names(repository.store(), "sessions").await;
        names.retain(|name| name.contains("/by-name/"));
        names
    };
    let work = async |name: &str, stop: Stop| {
        let options = BackupOptions {
            session: Some(name.to_owned()),
            stop,
            ..BackupOptions::default()
        };
        backup(&database, &repository, options, &Progress::new()).await
    };
    work("done", Stop::default()).await.unwrap();
    // One that lost what it was to build upon, and the one that took its place.
    let taken = repository.snapshots().await.unwrap().snapshots.remove(0);
    let NamedSession::New(id) = repository.session_named("lost").await.unwrap() else {
        panic!("the name is new")
    };
    let doomed = Plan {
        parent: Some(taken.id),
        ..plan_of(&database, database.current_read_time().await.unwrap())
    };
    repository.forget(taken.id, "a test").await.unwrap();
    let options = SessionOptions {
        id: Some(id),
        ..SessionOptions::new(doomed)
    };
    let begun = Session::begin(&repository, options).await;
    assert!(matches!(begun, Err(ArchiveError::PinGone { .. })), "{begun:?}");
    work("lost", Stop::default()).await.unwrap();
    let all = [
        "sessions/by-name/done.json",
        "sessions/by-name/lost.json",
        "sessions/by-name/lost@2.json",
    ];
    assert_eq!(names().await, all);

    ahead(29);
    let stop = Stop::default();
    stop.request();
    let left = work("left", stop).await;
    assert!(matches!(left, Err(BackupError::Stopped { .. })), "{left:?}");
    sweep(&repository, &SweepOptions::default()).await.unwrap();
    assert_eq!(names().await.len(), 4, "their time is not up");
    let late = work("done", Stop::default()).await;
    assert!(matches!(late, Err(BackupError::NameUsed { .. })), "{late:?}");
    ahead(31);
    let patient = SweepOptions {
        expiry: Duration::from_secs(90 * 86_400),
        ..SweepOptions::default()
    };
    sweep(&repository, &patient).await.unwrap();
    assert_eq!(names().await, ["sessions/by-name/left.json"]);
    // However old: it is not decided, and may be gone on with.
    ahead(62);
    sweep(&repository, &patient).await.unwrap();
    assert_eq!(names().await, ["sessions/by-name/left.json"]);
    work("left", Stop::default()).await.unwrap();
    sweep(&repository, &patient).await.unwrap();
    assert!(names().await.is_empty());
    work("done", Stop::default()).await.unwrap();
}

#[test]
fn sessions_are_named_on_the_command_line() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    shop.firebank(["backup", "--session", "nightly-1", "--json"])
        .json();
    shop.firebank(["backup", "--session", "nightly-1"])
        .fails(1, &["`nightly-1`", "committed"]);
    shop.firebank(["backup", "--session", "../x"])
        .fails(1, &["cannot name a session"]);
    shop.firebank(["backup", "--session", "x", "--resume"])
        .fails(2, &["--resume"]);
    shop.run(["clean", "--keep-last", "1"]).done();
    shop.firebank(["backup", "--session", "nightly-2"]).done();
    shop.run(["verify"]).done();
}
