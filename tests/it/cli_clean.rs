//! `clean`, the filters of listings, and `status --max-age`, as a user runs them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use firebank::sandbox::{Effect, Fault, Rpc, When};
use serde_json::Value as Json;

use crate::cli_support::*;

/// What `clean --json` prints.
pub(crate) const CLEAN_KEYS: [&str; 17] = [
    "aborted_sessions",
    "deleted_bytes",
    "deleted_json_bytes",
    "deleted_json_files",
    "deleted_objects",
    "deleted_records",
    "deleted_staging_files",
    "dry_run",
    "expired_leases",
    "finished_sessions",
    "forgotten_snapshots",
    "freed_bytes",
    "groups",
    "json_groups",
    "kept_bytes",
    "kept_objects",
    "snapshots",
];

fn ids_of(group: &Json, keep: bool) -> Vec<&str> {
    let snapshots = group["snapshots"].as_array().unwrap();
    snapshots
        .iter()
        .filter(|snapshot| snapshot["keep"] == keep)
        .map(|snapshot| snapshot["id"].as_str().unwrap())
        .collect()
}

#[test]
fn clean_shows_its_plan_then_does_it() {
    let (shop, first) = Shop::backed_up();
    let second = shop.back_up();
    shop.firebank(["backup", "products"]).done();
    let before = files_below(&shop.repository());

    let shown = shop.run(["clean", "--keep-last", "1", "--dry-run"]).done();
    for part in [
        &*first,
        &*second,
        "no rule keeps it",
        "keep",
        "remove",
        "last",
        "Would remove 1 snapshot",
    ] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    let planned = shop.run(["clean", "--keep-last", "1", "-n", "--json"]).json();
    assert_eq!(keys(&planned), CLEAN_KEYS);
    assert_eq!(
        (&planned["dry_run"], &planned["forgotten_snapshots"]),
        (&true.into(), &1.into())
    );
    let groups = planned["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2);
    assert_eq!(
        keys(&groups[0]),
        ["database", "kind", "project", "selection", "snapshots"]
    );
    let whole = groups
        .iter()
        .find(|group| group["selection"] == "the whole database")
        .unwrap();
    assert_eq!(
        (ids_of(whole, false), ids_of(whole, true)),
        (vec![&*first], vec![&*second])
    );
    assert_eq!(
        files_below(&shop.repository()),
        before,
        "a dry run changes nothing"
    );

    let done = shop.run(["prune", "--keep-last", "1", "--json"]).json();
    assert_eq!(
        (&done["dry_run"], &done["forgotten_snapshots"]),
        (&false.into(), &1.into())
    );
    assert_eq!(done["freed_bytes"], planned["freed_bytes"]);
    assert!(!shop.snapshots().contains(&first) && shop.snapshots().contains(&second));
    shop.run(["verify", "--read-data"]).done();
    shop.run(["show", &first]).fails(1, &["was forgotten"]);
    shop.firebank(["restore", "latest", "--to-project", "demo-copy"])
        .done();
    assert_eq!(shop.contents("demo-copy"), shop.contents(SHOP));
    let left = files_below(&shop.repository());
    let gone = ["leases/", "probes/", "sessions/"];
    assert!(
        !left
            .iter()
            .any(|name| gone.iter().any(|folder| name.starts_with(folder))),
        "{left:?}"
    );
}

#[test]
fn without_rules_it_keeps_the_last_ten_and_asks() {
    let (shop, first) = Shop::backed_up();
    for _ in 0..10 {
        shop.back_up();
    }
    shop.run(["clean"]).fails(2, &["last 10", "no terminal", "--yes"]);
    assert_eq!(shop.snapshots().len(), 11);
    let planned = shop.run(["clean", "-n", "--json"]).json();
    assert_eq!(ids_of(&planned["groups"][0], false), [&*first]);
    shop.run(["clean", "--yes"]).done();
    assert_eq!(shop.snapshots().len(), 10);
    assert!(!shop.snapshots().contains(&first));

    // By name, also by a prefix.
    let oldest = shop.snapshots().pop().unwrap();
    shop.run(["clean", &oldest]).fails(2, &["--yes"]);
    shop.run(["clean", &oldest[..12], "-y"]).done();
    assert_eq!(shop.snapshots().len(), 9);
    shop.run(["clean", "latest", "-y"]).fails(2, &["by its id"]);
    shop.run(["clean", "--sweep-only"]).done();
    assert_eq!(shop.snapshots().len(), 9);
}

#[test]
fn policies_that_cannot_be_meant_are_refused() {
    let (shop, id) = Shop::backed_up();
    shop.back_up();
    let refused: &[(&[&str], i32, &str)] = &[
        (&["--keep-tag", "prodction"], 1, "would keep none"),
        (&["--keep-last", "0"], 2, "keeps nothing"),
        (&["--keep-last", "many"], 2, "unlimited"),
        (&["--keep-within", "3 weeks"], 2, "1y5m7d2h"),
        (&["--keep-last", "1", "--timezone", "Mars"], 2, "time zone"),
        (&["--keep-last", "1", "--sweep-only"], 2, "three ways"),
        (&["--keep-last", "1", &id], 2, "three ways"),
        (&["--keep-last", "1", "--expire-after", "5min"], 2, "at least 1h"),
        (&["--keep-last", "1", "--expire-after", "soon"], 2, "26h"),
        (&["--keep-id", ""], 2, "--keep-id"),
    ];
    for (arguments, code, says) in refused {
        let mut all = vec!["clean"];
        all.extend(*arguments);
        shop.run(all).fails(*code, &[says]);
        assert_eq!(shop.snapshots().len(), 2, "{arguments:?}");
    }
    shop.run(["clean", "--keep-id", &id[..9]]).done();
    // The one that is named, and the last of the group.
    assert_eq!(shop.snapshots().len(), 2);
}

/// A session that was left is given up by its id, and all that it wrote goes.
#[test]
fn clean_gives_a_session_up() {
    let (shop, first) = Shop::backed_up();
    let leave = || {
        let store = firebank::store::Store::local(shop.repository()).unwrap();
        let stop = firebank::stop::Stop::default();
        stop.request();
        let options = firebank::backup::BackupOptions {
            stop,
            ..Default::default()
        };
        let connection = shop.connect(SHOP, "(default)");
        let stopped = shop.runtime.block_on(async {
            let repository = firebank::archive::Repository::open(store).await.unwrap();
            firebank::backup::backup(&connection, &repository, options, &Default::default()).await
        });
        match stopped {
            Err(firebank::backup::BackupError::Stopped { session, .. }) => session.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let (one, other) = (leave(), leave());
    let listed = || {
        shop.run(["sessions", "--json"]).json()["sessions"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(listed(), 2);
    shop.run(["clean", &one]).fails(2, &["--yes"]);
    let planned = shop.run(["clean", &one, "-n", "--json"]).json();
    assert_eq!(
        (&planned["aborted_sessions"], &planned["forgotten_snapshots"]),
        (&1.into(), &0.into())
    );
    assert!(
        shop.run(["clean", &one, "-n"])
            .done()
            .contains(&format!("give up the session {one}"))
    );
    assert_eq!(listed(), 2);
    let done = shop.run(["clean", &one, "--yes", "--json"]).json();
    assert_eq!(done["aborted_sessions"], 1);
    assert_eq!(listed(), 1);
    let left = files_below(&shop.repository());
    assert!(
        !left
            .iter()
            .any(|name| name.starts_with(&format!("sessions/{one}"))),
        "{left:?}"
    );
    shop.run(["clean", &one, "--yes"]).fails(1, &["aborted"]);

    // One whose plan is damaged holds up nobody, and goes in the same way.
    std::fs::write(shop.repository().join(format!("sessions/{other}/plan.json")), "{").unwrap();
    let third = leave();
    let sessions = shop.run(["sessions", "--json"]);
    assert!(sessions.stderr.contains(&format!("clean {other}")), "{sessions}");
    assert_eq!(sessions.json()["sessions"][0]["id"], third.as_str());
    let resumed = shop.firebank(["backup", "--resume", "--json"]).json();
    assert_eq!(resumed["snapshot"], third.as_str());
    assert_eq!(resumed["parent"], first.as_str());
    shop.run(["clean", &other, "--yes"]).done();
    let left = files_below(&shop.repository());
    assert!(!left.iter().any(|name| name.starts_with("sessions/")), "{left:?}");
    shop.run(["verify", "--read-data"]).done();
}

/// A file of which no rule can say anything stays, and stops nobody from cleaning the rest.
#[test]
fn a_json_backup_without_a_time_is_no_reason_to_clean_nothing() {
    let (shop, first) = Shop::backed_up();
    shop.back_up();
    let made = shop.write(
        "backups/backup_x.json",
        r#"{"collection": "x", "document_count": 0, "documents": []}"#,
    );
    shop.run(["clean", "--keep-last", "1"]).done();
    assert!(!shop.snapshots().contains(&first) && made.exists());
}

#[test]
fn json_backups_are_cleaned_by_the_same_rules() {
    let shop = Shop::open();
    std::fs::create_dir(shop.file("backups")).unwrap();
    let file = |collection: &str, day: u32| {
        let name = format!("backups/backup_{collection}_202506{day:02}_120000.json");
        let text = format!(
            r#"{{"collection": "{collection}", "timestamp": "2025-06-{day:02}T12:00:00.123456", "document_count": 0,
                "documents": [], "metadata": {{"firebase_project": "p"}}}}"#
        );
        shop.write(&name, text);
        name
    };
    let mut products: Vec<String> = (1..=12).map(|day| file("products", day)).collect();
    let users: Vec<String> = (1..=3).map(|day| file("users", day)).collect();
    let summary = |day: u32, files: &[&String]| {
        let files: serde_json::Map<String, Json> = files
            .iter()
            .enumerate()
            .map(|(place, file)| (place.to_string(), Json::from(format!("/old/place/{file}"))))
            .collect();
        let name = format!("backups/backup_summary_202506{day:02}_120000.json");
        let text = serde_json::json!({
            "backup_session": {"timestamp": "", "total_collections": 1, "successful_backups": 1, "failed_backups": 0, "status": "success"},
            "successful_collections": [], "failed_collections": [], "backup_files": files,
        });
        shop.write(&name, text.to_string());
        name
    };
    let gone = summary(2, &[&products[1]]);
    let stays = [
        summary(1, &[&products[0], &users[0]]),
        summary(12, &[&products[11]]),
    ];
    let unreadable = shop.write("backups/backup_orders_20250601_120000.json", "{\"collection\": ");
    shop.write("backups/notes.txt", "mine");

    shop.run(["clean"]).fails(2, &["--yes"]);
    let done = shop.run(["clean", "--yes", "--json"]).json();
    assert_eq!(
        (&done["deleted_json_files"], &done["forgotten_snapshots"]),
        (&2.into(), &0.into())
    );
    let left = products.split_off(2);
    assert!(products.iter().all(|file| !shop.file(file).exists()));
    assert!(
        left.iter()
            .chain(&users)
            .chain(&stays)
            .all(|file| shop.file(file).exists())
    );
    assert!(!shop.file(&gone).exists() && unreadable.exists() && shop.file("backups/notes.txt").exists());

    // In a repository both go by one policy.
    let shown = shop.run(["clean", "--keep-monthly", "1", "-n"]).done();
    assert!(shown.contains("JSON backups of p, users"), "{shown}");
    std::fs::remove_file(&unreadable).unwrap();
    std::fs::remove_file(shop.file("backups/notes.txt")).unwrap();
    shop.run(["init"]).done();
    shop.back_up();
    shop.run(["clean", "--keep-last", "1"]).done();
    let listing = shop.run(["list-backups", "--json"]).json();
    assert_eq!(listing["json_backups"].as_array().unwrap().len(), 2);
    assert_eq!(listing["snapshots"].as_array().unwrap().len(), 1);
    // Rules by tags say nothing of files.
    shop.run(["clean", "--keep-tag", "", "-n"]).done();
}

#[test]
fn listings_go_by_tag_host_project_and_database() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let take = |arguments: &[&str]| {
        let mut all = vec!["backup", "--json"];
        all.extend(arguments);
        shop.firebank(all).json()["snapshot"].as_str().unwrap().to_owned()
    };
    let nightly = take(&[
        "--tag",
        "nightly",
        "--tag",
        "eu",
        "--host",
        "db1",
        "--description",
        "by night",
    ]);
    let manual = take(&["--tag", "manual", "--host", "db2"]);
    let plain = take(&["--host", "db1"]);
    let listed = |arguments: &[&str]| -> Vec<String> {
        let mut all = vec!["list-backups", "--json"];
        all.extend(arguments);
        let listing = shop.run(all).json();
        let snapshots = listing["snapshots"].as_array().unwrap();
        snapshots
            .iter()
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(listed(&[]), [&*plain, &*manual, &*nightly]);
    assert_eq!(listed(&["--tag", "nightly"]), [&*nightly]);
    assert_eq!(listed(&["--tag", "nightly,eu"]), [&*nightly]);
    assert_eq!(listed(&["--tag", "nightly,us"]), [""; 0]);
    assert_eq!(
        listed(&["--tag", "nightly", "--tag", "manual"]),
        [&*manual, &*nightly]
    );
    assert_eq!(listed(&["--tag", ""]), [&*plain]);
    assert_eq!(listed(&["--host", "db1"]), [&*plain, &*nightly]);
    assert_eq!(listed(&["--host", "db1", "--tag", "eu"]), [&*nightly]);
    assert_eq!(listed(&["--project", "other"]), [""; 0]);
    assert_eq!(listed(&["--project", SHOP, "--database", "(default)"]).len(), 3);
    assert_eq!(listed(&["--database", "other"]), [""; 0]);

    let shown = |arguments: &[&str]| {
        let mut all = vec!["show", "latest", "--json"];
        all.extend(arguments);
        shop.run(all).json()["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(shown(&[]), plain);
    assert_eq!(shown(&["--tag", "nightly"]), nightly);
    assert_eq!(shown(&["--host", "db2"]), manual);
    shop.run(["show", "latest", "--tag", "none"])
        .fails(1, &["no snapshot matches"]);
    shop.run(["show", &plain, "--tag", "nightly"])
        .fails(2, &["latest"]);
    shop.run(["clean", "--tag", "nightly", "--keep-last", "1"]).done();
    assert_eq!(
        listed(&[]).len(),
        3,
        "each is the last of those that are looked at"
    );
    let table = shop.run(["list-backups"]).done();
    assert!(table.contains("took") && table.contains("layers"), "{table}");
}

#[test]
fn status_is_the_alert_for_a_missed_night() {
    let shop = Shop::open();
    let status = |arguments: &[&str]| {
        let mut all = vec!["status", "--json"];
        all.extend(arguments);
        shop.firebank(all)
    };
    // No repository, no backup.
    assert_eq!(status(&["--max-age", "26h"]).code, 3);
    shop.run(["init"]).done();
    let none = status(&["--max-age", "26h"]);
    assert_eq!(none.code, 3, "{none}");
    assert_eq!(none.json()["backup_is_recent"], false);
    assert!(
        none.stderr.contains("there is no backup of the whole database"),
        "{none}"
    );

    // A part is not the whole.
    shop.firebank(["backup", "products"]).done();
    assert_eq!(status(&["--max-age", "26h"]).code, 3);
    assert_eq!(status(&["--max-age", "26h", "products"]).code, 0);
    assert_eq!(status(&["--max-age", "26h", "users"]).code, 3);
    shop.back_up();
    let recent = status(&["--max-age", "26h"]);
    assert_eq!(
        (recent.code, &recent.json()["backup_is_recent"]),
        (0, &true.into()),
        "{recent}"
    );
    std::thread::sleep(Duration::from_millis(2100));
    let old = status(&["--max-age", "1s"]);
    assert_eq!(old.code, 3, "{old}");
    assert!(old.stderr.contains("old: snapshot"), "{old}");
    assert_eq!(status(&[]).code, 0, "without the question there is no alarm");
    status(&["products"]).fails(2, &["--max-age"]);
    status(&["--max-age", "26"]).fails(2, &["26h"]);
    // Retention is no excuse: a forgotten backup is none.
    let all = shop.snapshots();
    let mut names: Vec<&str> = vec!["clean", "-y"];
    names.extend(all.iter().map(String::as_str));
    shop.run(names).done();
    assert_eq!(status(&["--max-age", "26h"]).code, 3);
}

/// SIGINT ends a restore, and its lease goes with it; SIGKILL leaves the lease to a later `clean`.
#[test]
fn an_interrupted_restore_leaves_no_lease() {
    let (shop, _) = Shop::backed_up();
    for (signal, left) in [("-INT", 0), ("-KILL", 1)] {
        shop.add_fault(Fault::new(
            Rpc::BatchWrite,
            When::After(0),
            Effect::Delay(Duration::from_secs(30)),
        ));
        let address = shop.address();
        let mut command = shop.std_command();
        command.args([
            "restore",
            "latest",
            "--to-project",
            "demo-copy",
            "--emulator",
            &address,
        ]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let leases = || {
            let files = shop.files();
            files
                .iter()
                // What is being written is no lease yet, and what is left of the writing none any more.
                .filter(|name| name.starts_with("backups/leases/") && !name.contains('#'))
                .count()
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while leases() == 0 {
            assert!(Instant::now() < deadline, "there is no lease");
            std::thread::sleep(Duration::from_millis(20));
        }
        let killed = std::process::Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(killed.unwrap().success());
        child.wait().unwrap();
        assert_eq!(leases(), left, "{signal}");
        shop.sandbox.faults().clear();
    }
    // It is young, and may be of a reader that lives.
    shop.run(["clean", "--sweep-only"]).done();
    assert!(
        shop.files()
            .iter()
            .any(|name| name.starts_with("backups/leases/"))
    );
}
