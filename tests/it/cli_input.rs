//! Bad input: what cannot be done is refused with words that help, and leaves everything as it was.

use firebank::archive::{Repository, SessionOptions};
use firebank::store::Store;

use crate::archive_support;
use crate::cli_support::*;

/// Wraps a body as the format says, in whatever version.
fn envelope(kind: &str, format: u32, body: &str) -> String {
    let checksum = blake3::hash(body.as_bytes()).to_hex();
    format!(r#"{{"firebank": "{kind}", "format": {format}, "checksum": "{checksum}", "body": {body}}}"#)
}

/// The text of the body of `repository.json`.
fn repository_body(shop: &Shop) -> String {
    let text = std::fs::read_to_string(shop.file("backups/repository.json")).unwrap();
    let envelope: serde_json::Value = serde_json::from_str(&text).unwrap();
    envelope["body"].to_string()
}

#[test]
fn a_snapshot_that_is_not_there_is_named_with_those_that_are() {
    let (shop, id) = Shop::backed_up();
    for wanted in ["zzz", "", "0000000000000000", "-", "LATEST", "../repository"] {
        for command in ["show", "ls", "verify", "restore"] {
            let refused = shop.firebank_on("demo-b", [command, "--", wanted]);
            // The project is not looked at before the snapshot is known.
            refused.fails(1, &["no snapshot matches", wanted, &id]);
        }
        shop.run(["export", "-o", "out", "--", wanted])
            .fails(1, &["no snapshot matches", &id]);
    }
    assert!(!shop.file("out").exists());
    shop.run(["show", &id, "products/nosuch"])
        .fails(1, &["products/nosuch", &id, "firebank ls"]);
    shop.run(["show", &id, "products"])
        .fails(2, &["`products` does not name a document"]);
    shop.run(["ls", &id, "products//x"]).fails(2, &["products//x"]);
    // A whole id in capitals, or too long.
    assert_eq!(shop.run(["show", &id.to_uppercase()]).code, 0);
    shop.run(["show", &format!("{id}0")])
        .fails(1, &["no snapshot matches"]);
}

#[test]
fn an_empty_repository_has_no_latest() {
    let shop = Shop::empty();
    shop.run(["init"]).done();
    shop.run(["show", "latest"])
        .fails(1, &["latest", "no snapshot yet", "firebank backup"]);
    shop.firebank(["restore", "latest", "--in-place"])
        .fails(1, &["latest", "firebank backup"]);
    assert!(shop.run(["verify", "--read-data"]).done().contains("0 snapshots"));
    // An empty database is a backup like any other.
    let id = shop.back_up();
    assert_eq!(shop.run(["ls", &id]).done(), "");
    assert_eq!(
        shop.firebank(["restore", &id, "--to-project", "demo-x", "--json"])
            .json()["written"],
        0
    );
    shop.run(["verify", "--read-data"]).done();
    assert_eq!(shop.firebank(["export", &id, "-o", "out"]).code, 0);
}

#[test]
fn an_ambiguous_prefix_lists_what_it_may_mean() {
    let shop = Shop::empty();
    shop.run(["init"]).done();
    shop.runtime.block_on(async {
        let repository = Repository::open(Store::local(shop.repository()).unwrap())
            .await
            .unwrap();
        for (number, id) in ["abc0000000000001", "abc0000000000002", "abd0000000000003"]
            .into_iter()
            .enumerate()
        {
            let options = SessionOptions {
                id: Some(id.parse().unwrap()),
                ..SessionOptions::new(archive_support::plan(&[], number as i64))
            };
            archive_support::back_up(&repository, options, &archive_support::sample(3)).await;
        }
    });
    for command in ["show", "ls", "verify", "restore"] {
        let ambiguous = shop.run([command, "abc"]);
        ambiguous.fails(
            1,
            &["`abc`", "abc0000000000001", "abc0000000000002", "more digits"],
        );
        assert!(!ambiguous.stderr.contains("abd"), "{ambiguous}");
    }
    assert_eq!(
        shop.run(["show", "abd", "--json"]).json()["id"],
        "abd0000000000003"
    );
    assert_eq!(
        shop.run(["show", "abc0000000000001", "--json"]).json()["id"],
        "abc0000000000001"
    );
}

#[test]
fn only_init_makes_a_repository() {
    let shop = Shop::open();
    std::fs::create_dir(shop.file("empty")).unwrap();
    shop.write("file", "x");
    for (place, says) in [
        ("nowhere", "firebank init"),
        ("empty", "firebank init"),
        ("file", "is a file"),
    ] {
        for command in [
            &["backup"][..],
            &["backup-all"],
            &["list-backups"],
            &["show", "latest"],
            &["ls", "latest"],
            &["verify"],
            &["restore", "latest", "--to-project", "demo-x"],
            &["export", "latest", "-o", "out"],
        ] {
            shop.firebank([command, &["-r", place]].concat())
                .fails(1, &[place, says]);
        }
        let doctor = shop.firebank(["doctor", "-r", place]);
        assert!(
            doctor.code == 3 && doctor.stdout.contains(place) && doctor.stdout.contains("PROBLEM"),
            "{doctor}"
        );
    }
    // Nothing came into being, and the database is shown all the same where it says that there is no repository.
    assert_eq!(shop.files(), ["file"]);
    assert!(!shop.file("nowhere").exists());
    assert_eq!(shop.firebank(["status", "-r", "nowhere"]).code, 0);
    for (address, says) in [
        ("ftp://bucket/x", "s3://BUCKET"),
        ("https://bucket.s3.amazonaws.com", "AWS_ENDPOINT_URL"),
        ("s3://", "bucket"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://id:hidden@bucket/x", "environment"),
    ] {
        let ended = shop.run(["list-backups", "-r", address]);
        ended.fails(2, &["--repository", says]);
        assert!(!ended.stderr.contains("hidden"), "{ended}");
    }
    shop.run(["list-backups", "-r", "az://container/x"])
        .fails(1, &["az://container/x", "AZURE_STORAGE_ACCOUNT_NAME"]);
    shop.run(["list-backups", "-r", ""]).fails(2, &["--repository"]);
}

#[test]
fn init_touches_nothing_that_is_there() {
    let shop = Shop::empty();
    shop.run(["init"]).done();
    let made = std::fs::read(shop.file("backups/repository.json")).unwrap();
    shop.run(["init"]).fails(1, &["backups", "repository already"]);
    assert_eq!(std::fs::read(shop.file("backups/repository.json")).unwrap(), made);

    std::fs::create_dir_all(shop.file("foreign/photos")).unwrap();
    shop.write("foreign/photos/cat.jpg", "meow");
    shop.run(["init", "-r", "foreign"])
        .fails(1, &["foreign", "photos/cat.jpg", "empty folder"]);
    assert_eq!(files_below(&shop.file("foreign")), ["photos/cat.jpg"]);

    shop.write("file", "x");
    shop.run(["init", "-r", "file"]).fails(1, &["file"]);
    shop.run(["init", "-r", "file/below"]).fails(1, &["file/below"]);
    assert_eq!(std::fs::read(shop.file("file")).unwrap(), b"x");

    // Beside JSON backups it may be: both are backups.
    std::fs::create_dir(shop.file("json")).unwrap();
    shop.write("json/backup_products_20250629_120000.json", "{}");
    shop.run(["init", "-r", "json"]).done();
}

#[test]
fn a_repository_of_a_newer_format_is_left_alone() {
    let (shop, id) = Shop::backed_up();
    let original = repository_body(&shop);
    let features = |features: &str| {
        let body: serde_json::Value = serde_json::from_str(&original).unwrap();
        let mut body = body.as_object().unwrap().clone();
        body.insert("features".to_owned(), serde_json::from_str(features).unwrap());
        envelope("repository", 1, &serde_json::to_string(&body).unwrap())
    };
    let newer = [
        (envelope("repository", 2, &original), "format 2"),
        (
            r#"{"firebank": "repository", "format": 7, "cipher": "x"}"#.to_owned(),
            "format 7",
        ),
        (
            features(r#"{"read": ["sealed-names"], "write": [], "prune": []}"#),
            "sealed-names",
        ),
    ];
    for (text, says) in newer {
        shop.write("backups/repository.json", text);
        let before = shop.files();
        for command in [
            &["backup"][..],
            &["list-backups"],
            &["show", &id],
            &["verify"],
            &["restore", &id, "--to-project", "demo-x"],
            &["init"],
        ] {
            let refused = shop.firebank(command);
            if command[0] == "init" {
                refused.fails(1, &["repository already"]);
            } else {
                refused.fails(1, &["repository.json", "newer Firebank", says]);
            }
        }
        assert_eq!(shop.files(), before);
    }
    assert!(shop.contents("demo-x").is_empty());

    // What only writing needs does not stop reading.
    shop.write(
        "backups/repository.json",
        features(r#"{"read": [], "write": ["layers"], "prune": ["layers"]}"#),
    );
    let before = shop.files();
    shop.firebank(["backup"]).fails(1, &["newer Firebank", "layers"]);
    assert_eq!(shop.files(), before);
    shop.run(["verify", "--read-data"]).done();
    shop.firebank(["restore", &id, "--to-project", "demo-x"]).done();
    assert_eq!(shop.contents("demo-x"), shop.contents(SHOP));
}

#[test]
fn a_changed_repository_file_is_damage() {
    let (shop, id) = Shop::backed_up();
    let file = shop.file("backups/repository.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let changed = text.replace("\"frame_len\": 262144", "\"frame_len\": 262145");
    assert_ne!(changed, text);
    for damaged in [&changed[..], &text[..text.len() / 2], "", "[]", "\0\0\0\0", "{}"] {
        std::fs::write(&file, damaged).unwrap();
        for command in [
            &["backup"][..],
            &["list-backups"],
            &["show", &id],
            &["restore", &id, "--to-project", "demo-x"],
        ] {
            shop.firebank(command).fails(1, &["repository.json", "damaged"]);
        }
        let verified = shop.run(["verify", "--json"]);
        assert_eq!(verified.code, 3, "{verified}");
        assert_eq!(verified.json()["damage"][0]["object"], "repository.json");
    }
    assert!(shop.contents("demo-x").is_empty());
}

#[test]
fn a_restore_goes_where_it_was_told_and_nowhere_else() {
    let (shop, id) = Shop::backed_up();
    let before = shop.contents(SHOP);
    // Another project is named, but not as the target.
    shop.firebank_on("demo-other", ["restore", &id])
        .fails(2, &["demo-shop", "demo-other", "--to-project demo-other"]);
    // Its own database.
    let own = shop.firebank(["restore", &id]);
    own.fails(2, &["demo-shop/(default)", "--in-place", "--to-project"]);
    shop.firebank(["restore", &id, "--to-project", SHOP])
        .fails(2, &["--in-place"]);
    shop.firebank(["restore", &id, "--to-database", "(default)", "--dry-run"])
        .fails(2, &["--in-place"]);
    // Another database is named, but not as the target.
    shop.firebank(["restore", &id, "--database", "second"])
        .fails(2, &["(default)", "second", "--to-database second"]);
    shop.firebank([
        "restore",
        &id,
        "--database",
        "second",
        "--to-project",
        "demo-other",
    ])
    .fails(2, &["--to-database second"]);
    assert!(shop.contents("demo-other").is_empty());
    assert!(shop.contents_of("demo-other", "second").is_empty());
    assert_eq!(shop.contents(SHOP), before);
}

#[test]
fn what_nobody_named_is_asked_for() {
    let (shop, id) = Shop::backed_up();
    let address = shop.address();
    for command in [
        &["backup"][..],
        &["status"],
        &["backup", "--format", "json", "-o", "out"],
    ] {
        shop.run([command, &["--emulator", &address]].concat())
            .fails(2, &["which project?", "--project", "FIREBASE_PROJECT_ID"]);
    }
    let file = shop.write("backup_x.json", r#"{"collection": "x", "documents": []}"#);
    for command in ["restore", "import"] {
        shop.run([command, file.to_str().unwrap(), "--emulator", &address])
            .fails(2, &["which project?"]);
    }
    assert!(!shop.file("out").exists());
    // The environment names it, the flag before the environment.
    let environment = [
        ("FIREBASE_PROJECT_ID", SHOP),
        ("GOOGLE_CLOUD_PROJECT", "demo-no"),
        ("FIRESTORE_EMULATOR_HOST", &*address),
        ("FIREBANK_REPOSITORY", "backups"),
    ];
    let status = shop.run_with(&environment, ["status", "--json"]).json();
    assert_eq!(status["project"], SHOP);
    let status = shop
        .run_with(&environment, ["status", "--json", "--project", "demo-yes"])
        .json();
    assert_eq!(status["project"], "demo-yes");
    // A snapshot names its own.
    shop.run_with(
        &[("FIRESTORE_EMULATOR_HOST", &*address)],
        ["restore", &id, "--in-place"],
    )
    .done();
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let (shop, id) = Shop::backed_up();
    let before = shop.files();
    for (arguments, says) in [
        (&["frobnicate"][..], "frobnicate"),
        (&[], "Usage"),
        (&["show"], "SNAPSHOT"),
        (&["restore"], "SNAPSHOT"),
        (&["import"], "FILE"),
        (&["export", &id], "--output"),
        (&["export", &id, "-o", "x", "--format", "xml"], "xml"),
        (&["backup", "--format", "xml"], "xml"),
        (&["backup", "-o", "x"], "--format json"),
        (&["backup", "--parallel", "0"], "--parallel"),
        (&["backup", "--ranges", "0"], "--ranges"),
        (&["backup", "a/b"], "`a/b` does not name a collection"),
        (&["backup", ""], "does not name a collection"),
        (&["backup-all", "products"], "products"),
        (&["verify", "--read-data=0%"], "10%"),
        (&["verify", "--read-data=nan%"], "10%"),
        (&["verify", "--read-data=4/3"], "2/7"),
        (&["verify", "--read-data="], "10%"),
        (&["restore", &id, "--mode", "merge-all"], "merge-all"),
        (&["restore", &id, "--rate", "0"], "--rate"),
        (&["restore", &id, "--rate", "fast"], "--rate"),
        (
            &["restore", &id, "--only", "a//b", "--to-project", "demo-x"],
            "a//b",
        ),
        (
            &["restore", &id, "--only", "", "--to-project", "demo-x"],
            "pattern",
        ),
        (&["list-backups", "--json", "--nonsense"], "--nonsense"),
        (&["sandbox", "--port", "99999"], "99999"),
        (&["sandbox", "--unavailable", "2"], "between 0 and 1"),
    ] {
        let refused = shop.firebank(arguments);
        assert_eq!(refused.code, 2, "{arguments:?}: {refused}");
        assert_eq!(refused.stdout, "", "{arguments:?}");
        assert!(refused.stderr.contains(says), "{arguments:?}: {refused}");
    }
    assert_eq!(shop.files(), before);
}

#[test]
fn what_chooses_nothing_needs_a_look() {
    let (shop, id) = Shop::backed_up();
    // A collection's name with a typing error would otherwise be a backup that has nothing.
    let backup = shop.firebank(["backup", "prodcuts", "users", "--json"]);
    assert_eq!(backup.code, 3, "{backup}");
    assert!(
        backup.stderr.contains("prodcuts") && !backup.stderr.contains("users"),
        "{backup}"
    );
    assert!(backup.json()["documents"].as_u64().unwrap() > 0);
    let file = shop.firebank(["backup", "prodcuts", "--format", "json", "-o", "out", "--json"]);
    assert_eq!(file.code, 3, "{file}");
    assert!(file.stderr.contains("prodcuts"), "{file}");
    let export = shop.run(["export", &id, "prodcuts", "-o", "out2"]);
    assert_eq!(export.code, 3, "{export}");
    assert!(export.stderr.contains("prodcuts"), "{export}");

    for dry in [false, true] {
        let mut arguments = vec![
            "restore",
            &id,
            "--only",
            "prodcuts",
            "--to-project",
            "demo-x",
            "--json",
        ];
        arguments.extend(dry.then_some("--dry-run"));
        let restore = shop.firebank(arguments);
        assert_eq!(restore.code, 3, "{restore}");
        assert!(restore.stderr.contains("prodcuts"), "{restore}");
        assert_eq!(restore.json()["documents"], 0);
    }
}

#[test]
fn a_log_that_cannot_be_written_is_said_before_anything_else() {
    let desk = Desk::new();
    desk.run(["init", "--log-file", "no/such/folder.log"])
        .fails(1, &["no/such/folder.log"]);
    assert_eq!(desk.files(), [""; 0]);
}

/// `firebase-credentials.json` in the working folder is used last, and announced.
#[test]
fn the_working_folders_credentials_are_used_last() {
    let desk = Desk::new();
    std::fs::create_dir(desk.file("migrations")).unwrap();
    let run = |arguments: &[&str], credentials: Option<&str>| {
        let mut command = desk.std_command();
        command.args(["list-migrations", "--project", "some-project"]);
        command.env("HOME", desk.file("home"));
        command.args(arguments);
        if let Some(credentials) = credentials {
            command.env("GOOGLE_APPLICATION_CREDENTIALS", credentials);
        }
        let ended = finish(command);
        assert_eq!(ended.code, 1, "{ended}");
        ended
    };
    let name = "firebase-credentials.json";
    desk.write(
        name,
        r#"{"type": "service_account", "project_id": "some-project"}"#,
    );
    let used = [
        "using firebase-credentials.json of the working folder",
        "the key file firebase-credentials.json has no `client_email`",
    ];
    run(&[], None).fails(1, &used);
    // A variable that is empty says nothing.
    run(&[], Some("")).fails(1, &used);
    for (arguments, variable) in [
        (&["--credentials", "flag.json"][..], None),
        (&[], Some("variable.json")),
        (&["--credentials", "flag.json"], Some("variable.json")),
    ] {
        let ended = run(arguments, variable);
        let named = arguments.last().copied().or(variable).unwrap();
        ended.fails(1, &[&format!("cannot read the key file {named}")]);
        assert!(!ended.stderr.contains(name), "{ended}");
    }
    // What gcloud has left comes first.
    let gcloud = desk.file("home/.config/gcloud");
    std::fs::create_dir_all(&gcloud).unwrap();
    std::fs::write(
        gcloud.join("application_default_credentials.json"),
        r#"{"type": "nothing known"}"#,
    )
    .unwrap();
    let ended = run(&[], None);
    ended.fails(1, &["application default credentials"]);
    assert!(!ended.stderr.contains(name), "{ended}");
    // An emulator takes none.
    let shop = Shop::empty();
    shop.write(name, "{");
    std::fs::create_dir(shop.file("migrations")).unwrap();
    let listed = shop.firebank(["list-migrations"]);
    assert_eq!(listed.code, 0, "{listed}");
    assert!(!listed.stderr.contains(name), "{listed}");
}
