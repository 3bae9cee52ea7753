//! What guards a production database: nothing connects to one before somebody has confirmed it.
//!
//! The credentials in these tests are a file that does not exist: a command that gets as far as connecting fails there, with
//! exit code 1, and never reaches a network.

use std::process::Stdio;

use crate::cli_support::*;

const PRODUCTION: &str = "retail-prod";

fn restore(shop: &Shop, id: &str, environment: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let command = [
        "restore",
        id,
        "--to-project",
        PRODUCTION,
        "--credentials",
        "none.json",
    ];
    shop.run_with(environment, [&command, arguments].concat())
}

/// It got past the guard, and failed to find the credentials.
#[track_caller]
fn connects(ended: &Ended) {
    ended.fails(1, &["none.json"]);
}

#[test]
fn production_is_confirmed_by_name() {
    let (shop, id) = Shop::backed_up();
    let refused = restore(&shop, &id, &[], &[]);
    refused.fails(
        2,
        &[
            PRODUCTION,
            "overwrite",
            "--confirm-project retail-prod",
            "no terminal",
        ],
    );
    restore(&shop, &id, &[], &["--confirm-project", "retail-test"]).fails(2, &["retail-test", PRODUCTION]);
    restore(&shop, &id, &[], &["--confirm-project", ""]).fails(2, &[PRODUCTION]);
    // The source's name is not the target's.
    restore(&shop, &id, &[], &["--confirm-project", SHOP]).fails(2, &[SHOP, PRODUCTION]);
    connects(&restore(&shop, &id, &[], &["--confirm-project", PRODUCTION]));
    // It overwrites nothing, and writes all the same.
    restore(&shop, &id, &[], &["--mode", "create-only"]).fails(2, &["create documents in", PRODUCTION]);
    let create = ["--mode", "create-only", "--confirm-project", PRODUCTION];
    connects(&restore(&shop, &id, &[], &create));
    connects(&restore(&shop, &id, &[], &["--dry-run"]));
}

#[test]
fn a_stray_variable_disarms_nothing() {
    let (shop, id) = Shop::backed_up();
    for environment in [
        &[("TESTING", "true")][..],
        &[("TESTING", "1"), ("FIREBANK_ALLOW_PROJECTS", PRODUCTION)],
        &[("FIREBANK_ALLOW_PROJECTS", PRODUCTION)],
        &[("TESTING", "true"), ("FIREBANK_ALLOW_PROJECTS", "")],
        &[
            ("TESTING", "true"),
            ("FIREBANK_ALLOW_PROJECTS", "retail-pro,retail-prod-2"),
        ],
        &[("FIRESTORE_EMULATOR_HOST", "")],
    ] {
        restore(&shop, &id, environment, &[]).fails(2, &["--confirm-project"]);
    }
    for allowed in [PRODUCTION, "a,retail-prod,b"] {
        let environment = [("TESTING", "true"), ("FIREBANK_ALLOW_PROJECTS", allowed)];
        connects(&restore(&shop, &id, &environment, &[]));
    }
    let allowed = restore(
        &shop,
        &id,
        &[("TESTING", "true")],
        &["--allow-project", PRODUCTION],
    );
    connects(&allowed);
}

#[test]
fn projects_that_cannot_be_production_need_no_confirmation() {
    let (shop, id) = Shop::backed_up();
    for project in ["test-project", "demo-anything"] {
        let restored = shop.run([
            "restore",
            &id,
            "--to-project",
            project,
            "--credentials",
            "none.json",
        ]);
        connects(&restored);
    }
    for project in ["test-project-2", "my-demo-project", "demo", "testing"] {
        shop.run([
            "restore",
            &id,
            "--to-project",
            project,
            "--credentials",
            "none.json",
        ])
        .fails(2, &["--confirm-project"]);
    }
    // A confirmation that names another project is a mistake everywhere.
    shop.firebank([
        "restore",
        &id,
        "--to-project",
        "demo-copy",
        "--confirm-project",
        "demo-cpoy",
    ])
    .fails(2, &["demo-cpoy", "demo-copy"]);
    assert!(shop.contents("demo-copy").is_empty());
}

#[test]
fn an_import_is_guarded_like_a_restore() {
    let desk = Desk::new();
    desk.write("x.json", r#"{"collection": "x", "documents": [{"id": "a"}]}"#);
    for command in ["import", "restore"] {
        let arguments = [
            command,
            "x.json",
            "--project",
            PRODUCTION,
            "--credentials",
            "none.json",
        ];
        desk.run(arguments).fails(2, &["--confirm-project retail-prod"]);
        let confirmed = [&arguments[..], &["--confirm-project", PRODUCTION]].concat();
        connects(&desk.run(confirmed));
    }
}

/// A second attempt writes and deletes what its file says, whatever a mode would.
#[test]
fn a_second_attempt_is_guarded_and_takes_no_option_that_it_would_not_heed() {
    let desk = Desk::new();
    desk.write(
        "dead.ndjson",
        r#"{"path": "users/u1", "operation": "delete", "status": "ABORTED", "reason": "", "document": null}"#,
    );
    let retry = |environment: &[(&str, &str)], more: &[&str]| {
        let all = [
            "restore",
            "--retry",
            "dead.ndjson",
            "--project",
            PRODUCTION,
            "--credentials",
            "none.json",
        ];
        desk.run_with(environment, [&all, more].concat())
    };
    retry(&[], &[]).fails(
        2,
        &["write and DELETE documents in", "--confirm-project retail-prod"],
    );
    let confirmed = ["--confirm-project", PRODUCTION];
    // The variable is there for other commands, too.
    connects(&retry(&[("FIREBANK_STATE", "state")], &confirmed));
    connects(&retry(
        &[],
        &[&confirmed[..], &["--only", "users", "--rate", "5"]].concat(),
    ));
    for ignored in [
        &["--mode", "create-only"][..],
        &["--mode", "overwrite"],
        &["--if-unmodified-since", "2026-01-01T00:00:00Z"],
        &["--rename-collection", "a=b"],
        &["--fields", "a"],
        &["--references", "rewrite"],
        &["--ttl-field", "a"],
        &["--no-check"],
        &["--verify"],
        &["--in-place"],
        &["--skip-damaged"],
        &["--resume"],
        &["--dry-run"],
        &["--state", "state"],
        &["--tag", "a"],
        &["--host", "a"],
    ] {
        let refused = retry(&[], &[&confirmed[..], ignored].concat());
        assert_eq!(refused.code, 2, "{ignored:?}: {refused}");
        assert!(refused.stderr.contains(ignored[0]), "{ignored:?}: {refused}");
    }
}

/// A file has no damage to go around, and its import keeps no record.
#[test]
fn a_file_takes_no_option_of_snapshots() {
    let shop = Shop::empty();
    shop.write("x.json", r#"{"collection": "x", "documents": [{"id": "a"}]}"#);
    for option in [
        &["--resume"][..],
        &["--skip-damaged"],
        &["--state", "state"],
        &["--verify"],
        &["--tag", "a"],
    ] {
        let refused = shop.firebank([&["restore", "x.json"], option].concat());
        assert_eq!(refused.code, 2, "{option:?}: {refused}");
        assert!(refused.stderr.contains(option[0]), "{option:?}: {refused}");
        assert!(shop.contents(SHOP).is_empty());
    }
}

#[test]
fn reading_asks_for_no_confirmation() {
    let desk = Desk::new();
    desk.run(["init"]).done();
    for command in [&["backup"][..], &["status"], &["backup", "--format", "json"]] {
        let arguments = ["--project", PRODUCTION, "--credentials", "none.json"];
        connects(&desk.run([command, &arguments].concat()));
    }
    let doctor = desk.run(["doctor", "--project", PRODUCTION, "--credentials", "none.json"]);
    assert!(
        doctor.code == 3 && doctor.stdout.contains("none.json"),
        "{doctor}"
    );
}

#[test]
fn nobody_sees_what_is_in_a_key_file() {
    let desk = Desk::new();
    desk.run(["init"]).done();
    for (text, says) in [
        (
            r#"{"type": "service_account", "private_key": "SECRET", "project_id": "p"}"#,
            "key.json",
        ),
        ("SECRET", "key.json"),
    ] {
        desk.write("key.json", text);
        let refused = desk.run(["backup", "--project", "p", "--credentials", "key.json", "-vv"]);
        refused.fails(1, &[says]);
        assert!(!refused.stderr.contains("SECRET"), "{refused}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (shop, id) = Shop::backed_up();
    for command in [
        &["ls", &id][..],
        &["ls", &id, "--json"],
        &["completions", "bash"],
        &["show", &id],
    ] {
        let mut child = shop.std_command();
        let mut child = child
            .args(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Closed before anything is read.
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert_eq!(
            (ended.status.code(), &*String::from_utf8_lossy(&ended.stderr)),
            (Some(0), ""),
            "{command:?}"
        );
    }
}

#[test]
#[cfg(target_os = "linux")]
fn output_that_cannot_be_written_is_an_error() {
    let (shop, id) = Shop::backed_up();
    for command in [
        &["ls", &id][..],
        &["ls", &id, "--json"],
        &["completions", "bash"],
        &["show", &id],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut child = shop.std_command();
        let ended = child.args(command).stdout(full).output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{command:?}: {stderr}");
        assert!(stderr.contains("standard output"), "{stderr}");
    }
}

#[test]
fn control_characters_reach_no_terminal() {
    let shop = Shop::empty();
    let evil = "evil\u{1b}]0;owned\u{7}\u{1b}[31m\nline\u{202e}";
    let path = firebank::document::DocumentPath::parse(format!("c{evil}/d{evil}")).unwrap();
    let plain = firebank::document::DocumentPath::parse("c/d").unwrap();
    let fields = firebank::document::Fields::from([(
        evil.to_owned(),
        firebank::document::Value::String(evil.to_owned()),
    )]);
    let body = firebank::document::canonical::encode(&fields);
    shop.put(SHOP, vec![(path.clone(), body.clone()), (plain, body)]);
    shop.run(["init"]).done();
    let taken = shop.firebank(["backup", "--tag", evil, "--description", evil, "--host", evil]);
    // `run` itself looks for escape characters in everything that is printed.
    assert_eq!(taken.code, 0, "{taken}");
    shop.run(["list-backups"]).done();
    shop.run(["show", "latest"]).done();
    let listed = shop.run(["ls", "latest"]).done();
    assert_eq!(listed.lines().count(), 2, "{listed}");
    shop.run(["ls", "latest", "--long"]).done();
    shop.run(["show", "latest", "c/d"]).done();
    shop.run(["show", "latest", path.as_str()]).done();
    shop.run(["show", "latest", &format!("c/{evil}")])
        .fails(1, &["c/evil"]);
    shop.run(["show", evil]).fails(1, &["evil"]);
    shop.run(["ls", "latest", &format!("{evil}//x")])
        .fails(2, &["evil"]);
    shop.firebank(["status"]).done();
    shop.run(["verify", "--read-data"]).done();
    shop.firebank(["restore", "latest", "--to-project", "demo-x"])
        .done();
    shop.firebank(["restore", "latest", "--to-project", "demo-x", "--dry-run"])
        .done();
    shop.firebank(["backup", "--format", "json", "-o", "out"]).done();
    shop.run(["list-backups", "-r", "out"]).done();
    assert_eq!(shop.contents("demo-x"), shop.contents(SHOP));
    for name in shop.files() {
        if name.starts_with("out/backup_") && !name.contains("summary") {
            shop.firebank_on("demo-y", ["restore", &name]).done();
        }
    }
    assert_eq!(shop.contents("demo-y"), shop.contents(SHOP));
    // Machines get every byte.
    let json = shop.run(["ls", "latest", "--json"]).json();
    let paths: Vec<&str> = json["documents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|document| document["path"].as_str().unwrap())
        .collect();
    assert!(paths.contains(&path.as_str()));
    // In messages, too: a file's name, a document that is refused.
    shop.write(
        "a\u{1b}[31m.json",
        r#"{"collection": "x\u001b[31m", "documents": [{"id": "\u001b", "f": {"$wrong\u001b": 1}}]}"#,
    );
    shop.firebank(["restore", "a\u{1b}[31m.json"])
        .fails(1, &["wrong"]);
}

#[test]
fn the_clock_and_the_log_keep_out_of_the_output() {
    let (shop, id) = Shop::backed_up();
    let verbose = shop.firebank(["restore", &id, "--to-project", "demo-v", "--json", "-vv"]);
    assert_eq!(verbose.json()["failed"], 0);
}
