//! Every command as it should go: what it prints, as `--json` and to people, and how it ends.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::cli_support::plan_keys;
use crate::cli_support::*;

pub(crate) const BACKUP_KEYS: [&str; 22] = [
    "billed_reads",
    "changed_documents",
    "committed_by",
    "consistency",
    "database",
    "deleted_documents",
    "documents",
    "lag_seconds",
    "layers",
    "names_instead",
    "new_bytes",
    "new_documents",
    "parent",
    "raw_bytes",
    "read",
    "read_time",
    "requests",
    "retries",
    "seconds",
    "snapshot",
    "stored_bytes",
    "unchanged_documents",
];

/// As `list-backups` and `show` tell of a snapshot.
pub(crate) const SNAPSHOT_KEYS: [&str; 27] = [
    "billed_reads",
    "bytes",
    "changed_documents",
    "collections",
    "consistency",
    "database",
    "deleted_documents",
    "description",
    "documents",
    "host",
    "id",
    "kind",
    "lag_seconds",
    "layers",
    "new_bytes",
    "new_documents",
    "parent",
    "project",
    "read",
    "read_time",
    "seconds",
    "selection",
    "stored_bytes",
    "tags",
    "time",
    "tool_version",
    "unchanged_documents",
];

pub(crate) const RESTORE_KEYS: [&str; 24] = [
    "billed_deletes",
    "billed_reads",
    "billed_writes",
    "bytes",
    "changed",
    "conflicting",
    "conflicts",
    "created",
    "dead_letter_file",
    "deleted",
    "documents",
    "existing",
    "failed",
    "foreign_references",
    "gaps",
    "left_out",
    "references",
    "requests",
    "retries",
    "seconds",
    "source",
    "target",
    "unchanged",
    "written",
];

#[test]
fn a_repository_is_made_filled_and_listed() {
    let shop = Shop::open();
    let made = shop.run(["init", "--json"]).json();
    assert_eq!(keys(&made), ["id", "repository"]);
    assert!(shop.run(["list-backups"]).done().contains("No backups yet"));

    let first = shop
        .firebank([
            "backup",
            "--json",
            "--tag",
            "nightly",
            "--tag",
            "eu",
            "--host",
            "db1",
            "--description",
            "before the move",
        ])
        .json();
    assert_eq!(keys(&first), BACKUP_KEYS);
    let documents = shop.contents(SHOP).len() as u64;
    assert_eq!(first["documents"], documents);
    assert_eq!(first["database"], "demo-shop/(default)");
    let part = shop.firebank(["backup", "products", "users/", "--json"]).json();
    assert!(part["documents"].as_u64().unwrap() < documents);
    let second = shop.firebank(["backup-all", "--json"]).json();
    // Nothing has changed since the first one, which it builds upon.
    assert_eq!(
        (&second["new_bytes"], &second["stored_bytes"]),
        (&0.into(), &0.into())
    );
    assert_eq!(
        (&second["parent"], &second["read"]),
        (&first["snapshot"], &"names".into())
    );
    assert_eq!(second["unchanged_documents"], documents);
    assert_eq!(first["new_documents"], documents);
    let full = shop
        .firebank(["backup", "--full", "--read", "full", "--json"])
        .json();
    assert_eq!(
        (&full["parent"], &full["read"]),
        (&serde_json::Value::Null, &"full".into())
    );
    let id = full["snapshot"].as_str().unwrap();
    std::fs::remove_file(shop.file(&format!("backups/snapshots/{id}.json"))).unwrap();
    let parent = first["snapshot"].as_str().unwrap();
    shop.firebank(["backup", "--full", "--parent", parent])
        .fails(2, &["cannot be used with"]);
    shop.firebank(["backup", "products", "--parent", parent])
        .fails(1, &["another selection", "--full"]);

    for command in ["list-backups", "snapshots"] {
        let listing = shop.run([command, "--json"]).json();
        assert_eq!(keys(&listing), ["json_backups", "snapshots", "unreadable"]);
        let snapshots = listing["snapshots"].as_array().unwrap();
        assert_eq!(snapshots.len(), 3);
        assert_eq!(keys(&snapshots[0]), SNAPSHOT_KEYS);
        assert_eq!(snapshots[2]["id"], first["snapshot"]);
        assert_eq!(snapshots[2]["tags"], serde_json::json!(["nightly", "eu"]));
        assert!(snapshots[2]["time"].is_string());
    }
    let table = shop.run(["list-backups"]).done();
    assert!(
        table.contains("nightly,eu") && table.contains("products") && table.contains("layers"),
        "{table}"
    );
    // The night that changed nothing, column by column.
    let cells = |line: &str| -> Vec<String> {
        let cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    };
    let header = cells(table.lines().next().unwrap());
    let night = second["snapshot"].as_str().unwrap();
    let row = cells(table.lines().find(|line| line.starts_with(night)).unwrap());
    let shown = |column: &str| &row[header.iter().position(|name| name == column).unwrap()];
    assert_eq!(shown("read time"), second["read_time"].as_str().unwrap());
    assert_eq!(*shown("documents"), documents.to_string());
    assert_eq!(shown("new bytes"), "0 B");
    assert_eq!(*shown("layers"), second["layers"].to_string());
    // Once whole, and the beginning of it as the third one's parent.
    let id = first["snapshot"].as_str().unwrap();
    let named = |id: &str| table.matches(id).count();
    assert_eq!((named(id), named(&id[..8])), (1, 2), "{table}");

    let shown = shop.run(["show", first["snapshot"].as_str().unwrap()]).done();
    for part in ["db1", "before the move", "demo-shop/(default)", "products"] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    let shown = shop.run(["show", "latest"]).done();
    assert!(
        shown.contains("0 new, 0 changed, 0 deleted") && shown.contains(parent),
        "{shown}"
    );
    let shown = shop.run(["show", "latest", "--json"]).json();
    assert_eq!(keys(&shown), SNAPSHOT_KEYS);
    assert_eq!(shown["id"], second["snapshot"]);
    assert_eq!(shown["documents"], documents);
}

#[test]
fn a_backup_tells_people_what_it_did_and_is_silent_when_asked() {
    let (shop, _) = Shop::backed_up();
    let told = shop.firebank(["backup"]).done();
    assert!(
        told.starts_with("Snapshot ") && told.contains("demo-shop/(default)"),
        "{told}"
    );
    let quiet = shop.firebank(["backup", "-q"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""), "{quiet}");
    assert_eq!(quiet.stdout, "");
    assert_ne!(shop.run(["list-backups", "-q"]).done(), "");
    let log = shop.file("firebank.log");
    shop.firebank(["backup", "-v", "--log-file", log.to_str().unwrap()])
        .done();
    assert!(
        std::fs::read_to_string(log)
            .unwrap()
            .contains("reading demo-shop")
    );
}

#[test]
fn a_snapshot_is_looked_into() {
    let (shop, id) = Shop::backed_up();
    let contents = shop.contents(SHOP);
    let all = shop.run(["ls", "latest"]).done();
    let mut listed: Vec<&str> = all.lines().collect();
    assert_eq!(listed.len(), contents.len());
    listed.sort_unstable();
    // The shop's ids need no escapes.
    assert!(listed.iter().all(|path| contents.contains_key(*path)));

    let products = shop.run(["ls", &id[..6], "products"]).done();
    assert!(products.lines().all(|path| path.starts_with("products/")));
    let expected = contents.keys().filter(|path| path.starts_with("products/"));
    assert_eq!(products.lines().count(), expected.count());
    let product = products.lines().next().unwrap().to_owned();
    let below = shop.run(["ls", "latest", &product]).done();
    assert!(below.lines().all(|path| path.starts_with(&product)));
    let long = shop.run(["ls", "latest", &product, "--long"]).done();
    let told = shop.run(["ls", "latest", &product, "--json"]).json();
    let time = told["documents"][0]["update_time"].as_str().unwrap();
    assert!(long.contains(&time[..10]), "{long} has no date of {time}");

    let listing = shop.run(["ls", "latest", "products/", "--json"]).json();
    assert_eq!(keys(&listing), ["documents", "snapshot"]);
    assert_eq!(listing["snapshot"], id);
    let documents = listing["documents"].as_array().unwrap();
    assert_eq!(documents.len(), products.lines().count());
    assert_eq!(keys(&documents[0]), ["bytes", "path", "update_time"]);

    let fields: serde_json::Value =
        serde_json::from_str(&shop.run(["show", "latest", &product]).done()).unwrap();
    assert!(fields["name"].is_string(), "{fields}");
    let shown = shop.run(["show", "latest", &product, "--json"]).json();
    assert_eq!(keys(&shown), ["create_time", "fields", "path", "update_time"]);
    assert_eq!(
        (&shown["fields"], shown["path"].as_str()),
        (&fields, Some(&*product))
    );
}

#[test]
fn a_repository_is_verified() {
    let (shop, id) = Shop::backed_up();
    let intact = shop.run(["verify"]).done();
    assert!(intact.starts_with("Intact: 1 snapshot "), "{intact}");
    let quick = shop.run(["verify", "--json"]).json();
    let wanted = [
        "damage",
        "damage_count",
        "data_bytes",
        "documents",
        "intact",
        "objects",
        "seconds",
        "snapshots",
        "stored_bytes",
    ];
    assert_eq!(keys(&quick), wanted);
    assert_eq!(
        (&quick["intact"], &quick["data_bytes"]),
        (&true.into(), &0.into())
    );
    let all = shop.run(["verify", &id, "--read-data", "--json"]).json();
    let bytes = shop.run(["show", &id, "--json"]).json()["bytes"].clone();
    assert_eq!(all["data_bytes"], bytes);
    let mut parts = 0;
    for part in ["1/3", "2/3", "3/3"] {
        let part = shop
            .run(["verify", &format!("--read-data={part}"), "--json"])
            .json();
        parts += part["data_bytes"].as_u64().unwrap();
    }
    assert_eq!(parts, bytes.as_u64().unwrap());
    shop.run(["verify", "--read-data=10%", "latest", &id[..5]]).done();
}

#[test]
fn a_snapshot_is_restored_whole_and_in_part() {
    let (shop, id) = Shop::backed_up();
    let original = shop.contents(SHOP);
    let restore = |arguments: &[&str]| {
        let all = ["restore", &id, "--json"]
            .into_iter()
            .chain(arguments.iter().copied());
        shop.firebank(all.collect::<Vec<_>>())
    };

    let dry = restore(&["--to-project", "demo-dry", "--dry-run"]).json();
    assert_eq!(keys(&dry), plan_keys("snapshot"));
    assert_eq!(dry["documents"], original.len());
    assert!(shop.contents("demo-dry").is_empty());

    let whole = restore(&["--to-project", "demo-copy"]).json();
    assert_eq!(keys(&whole), RESTORE_KEYS);
    assert_eq!(
        (&whole["written"], &whole["target"]),
        (&original.len().into(), &"demo-copy/(default)".into())
    );
    // The bodies are equal although they refer to other documents: references point at home, wherever that is.
    assert_eq!(shop.contents("demo-copy"), original);

    restore(&["--to-database", "second"]).json();
    assert_eq!(shop.contents_of(SHOP, "second"), original);

    let part = restore(&[
        "--to-project",
        "demo-part",
        "--only",
        "products",
        "--only",
        "users/*/addresses",
    ]);
    assert_eq!(part.json()["failed"], 0);
    let found = shop.contents("demo-part");
    let chosen = |path: &str| path.starts_with("products/") || path.contains("/addresses/");
    let expected: Contents = original
        .iter()
        .filter(|(path, _)| chosen(path))
        .map(|(path, body)| (path.clone(), body.clone()))
        .collect();
    assert!(expected.keys().any(|path| path.starts_with("users/")));
    assert_eq!(found, expected);

    assert_eq!(restore(&["--in-place"]).json()["written"], original.len());
    assert_eq!(shop.contents(SHOP), original);
    assert_eq!(
        shop.files()
            .iter()
            .filter(|name| name.ends_with(".ndjson"))
            .count(),
        0
    );
}

#[test]
fn create_only_leaves_what_is_there() {
    let (shop, id) = Shop::backed_up();
    let original = shop.contents(SHOP);
    let (changed, _) = original.iter().next().unwrap();
    let path = firebank::document::DocumentPath::parse(changed.as_str()).unwrap();
    shop.put("demo-half", vec![(path, vec![0x80])]);
    let restored = shop.firebank([
        "restore",
        &id,
        "--to-project",
        "demo-half",
        "--mode",
        "create-only",
        "--json",
    ]);
    assert_eq!(restored.code, 0, "{restored}");
    let restored = restored.json();
    assert_eq!(
        (&restored["existing"], &restored["failed"]),
        (&1.into(), &0.into())
    );
    let mut expected = original.clone();
    expected.insert(changed.clone(), vec![0x80]);
    assert_eq!(shop.contents("demo-half"), expected);
    // And to people.
    let told = shop
        .firebank([
            "restore",
            &id,
            "--to-project",
            "demo-half",
            "--mode",
            "create-only",
        ])
        .done();
    assert!(told.contains("stayed as they were"), "{told}");
}

#[test]
fn json_backups_need_no_repository() {
    let shop = Shop::open();
    let original = shop.contents(SHOP);
    let backup = shop
        .firebank(["backup", "--format", "json", "-o", "out", "--json"])
        .json();
    assert_eq!(keys(&backup), ["billed_reads", "failed", "files", "summary"]);
    let files = backup["files"].as_array().unwrap();
    assert_eq!(
        keys(&files[0]),
        [
            "bytes",
            "collection",
            "document_count",
            "file",
            "total_document_count"
        ]
    );
    let counted: u64 = files
        .iter()
        .map(|file| file["total_document_count"].as_u64().unwrap())
        .sum();
    assert_eq!(counted, original.len() as u64);
    let summary = std::fs::read(shop.file(backup["summary"].as_str().unwrap())).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!(summary["backup_session"]["status"], "success");
    // Nothing but the files that were named.
    assert_eq!(shop.files().len(), files.len() + 1);

    for file in files {
        let name = file["file"].as_str().unwrap();
        let restored = shop.firebank_on("demo-json", ["restore", name, "--json"]).json();
        assert_eq!(keys(&restored), RESTORE_KEYS);
        assert_eq!(restored["written"], file["total_document_count"]);
    }
    assert_eq!(shop.contents("demo-json"), original);

    let names: Vec<&str> = files.iter().map(|file| file["file"].as_str().unwrap()).collect();
    let import = [&["import"], &names[..]].concat();
    let dry = shop.firebank_on("demo-import", [&import[..], &["--dry-run", "--json"]].concat());
    let dry = dry.json();
    assert_eq!(keys(&dry), plan_keys("files"));
    assert!(shop.contents("demo-import").is_empty());
    shop.firebank_on("demo-import", import).done();
    assert_eq!(shop.contents("demo-import"), original);

    // `list-backups` of the folder, which is no repository.
    let listing = shop.run(["list-backups", "-r", "out", "--json"]).json();
    let listed = listing["json_backups"].as_array().unwrap();
    assert_eq!(listed.len(), files.len());
    let wanted = [
        "bytes",
        "collection",
        "document_count",
        "error",
        "file",
        "project",
        "time",
        "total_document_count",
    ];
    assert_eq!(keys(&listed[0]), wanted);
    assert_eq!(listed[0]["project"], SHOP);
    assert!(
        shop.run(["list-backups", "-r", "out"])
            .done()
            .contains("backup_products_")
    );
}

#[test]
fn json_files_go_beside_the_snapshots_and_come_out_of_them() {
    let (shop, id) = Shop::backed_up();
    let original = shop.contents(SHOP);
    shop.firebank(["backup", "--format", "json", "products"]).done();
    let listing = shop.run(["list-backups", "--json"]).json();
    assert_eq!(listing["snapshots"].as_array().unwrap().len(), 1);
    let file = listing["json_backups"][0]["file"].as_str().unwrap().to_owned();
    // By its name in the repository's folder, as `list-backups` shows it.
    shop.firebank_on("demo-one", ["restore", &file, "--only", "products"])
        .done();
    let found = shop.contents("demo-one");
    let products: Contents = original
        .clone()
        .into_iter()
        .filter(|(path, _)| path.starts_with("products/"))
        .collect();
    assert_eq!(found, products);

    shop.run(["export", &id, "-o", "out"]).done();
    let exported: Vec<String> = shop
        .files()
        .into_iter()
        .filter(|name| name.starts_with("out/backup_") && !name.contains("summary"))
        .collect();
    let mut import = vec!["import".to_owned()];
    import.extend(exported);
    shop.firebank_on("demo-all", import).done();
    assert_eq!(shop.contents("demo-all"), original);
    // Into a folder of somebody else's choice, one collection only.
    let one = shop
        .run([
            "export", "latest", "users", "--format", "json", "-o", "users", "--json",
        ])
        .json();
    assert_eq!(one["files"].as_array().unwrap().len(), 1);
    shop.run(["verify", "--read-data"]).done();
}

#[test]
fn the_state_of_things_is_shown() {
    let (shop, id) = Shop::backed_up();
    let status = shop.firebank(["status", "--json"]).json();
    let wanted = [
        "collections",
        "database",
        "environment",
        "last_backups",
        "last_verification",
        "migrations",
        "project",
        "protected",
        "read_time",
        "repository",
        "snapshots",
        "standing_damage",
    ];
    assert_eq!(keys(&status), wanted);
    assert_eq!(
        (&status["snapshots"], &status["last_backups"][0]["id"]),
        (&1.into(), &id.into())
    );
    assert!(shop.firebank(["status"]).done().contains("products"));

    let healthy = shop.firebank(["doctor", "--json"]).json();
    assert_eq!(keys(&healthy), ["checks", "healthy"]);
    assert_eq!(healthy["healthy"], true);
    assert_eq!(keys(&healthy["checks"][0]), ["detail", "name", "state"]);
    assert!(
        shop.firebank(["doctor"])
            .done()
            .contains("datastore.entities.list")
    );
    // Looking leaves nothing behind.
    shop.run(["verify"]).done();
    assert!(!shop.files().iter().any(|name| name.contains("probes/")));
}

#[test]
fn completions_are_scripts() {
    let desk = Desk::new();
    for (shell, sign) in [
        ("bash", "_firebank()"),
        ("zsh", "#compdef firebank"),
        ("fish", "complete -c firebank"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let script = desk.run(["completions", shell]).done();
        assert!(
            script.contains(sign) && script.contains("list-backups"),
            "{shell}"
        );
    }
    desk.run(["completions", "dos"]).fails(2, &["dos", "bash"]);
    let help = desk.run(["--help"]).done();
    assert!(
        help.contains("list-backups") && help.contains("--repository"),
        "{help}"
    );
    assert!(desk.run(["--version"]).done().starts_with("firebank "));
}

#[test]
fn the_demonstration_leaves_nothing_behind() {
    let desk = Desk::new();
    let story = desk.run(["demo"]).done();
    let last = story.lines().last().unwrap();
    assert!(last.starts_with("Every document came back: "), "{last}");
    assert_eq!(desk.files(), [""; 0]);
    let below = desk.path().parent().unwrap().to_owned();
    assert_eq!(files_below(&below), [""; 0]);
}

#[test]
fn the_sandbox_runs_until_it_is_told_to_end() {
    let desk = Desk::new();
    for json in [false, true] {
        let mut command = desk.std_command();
        command.args(["sandbox", "--port", "0"]);
        if json {
            command.arg("--json");
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let address = if json {
            let mut text = String::new();
            while serde_json::from_str::<serde_json::Value>(&text).is_err() {
                assert!(printed.read_line(&mut text).unwrap() > 0, "{text}");
            }
            let ready: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(keys(&ready), ["address", "documents"]);
            ready["address"].as_str().unwrap().to_owned()
        } else {
            let mut first = String::new();
            printed.read_line(&mut first).unwrap();
            let mut second = String::new();
            printed.read_line(&mut second).unwrap();
            let (_, address) = second.trim().split_once("FIRESTORE_EMULATOR_HOST=").unwrap();
            address.to_owned()
        };
        // The environment that it prints is all that a command needs.
        let answer = desk.run_with(
            &[
                ("FIRESTORE_EMULATOR_HOST", &*address),
                ("GOOGLE_CLOUD_PROJECT", "demo-x"),
            ],
            ["status", "--json"],
        );
        assert_eq!(answer.json()["project"], "demo-x");

        let killed = std::process::Command::new("kill")
            .arg(child.id().to_string())
            .status()
            .unwrap();
        assert!(killed.success());
        let status = child.wait().unwrap();
        let mut complaint = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut complaint)
            .unwrap();
        assert_eq!((status.code(), complaint.as_str()), (Some(0), ""));
    }
}
