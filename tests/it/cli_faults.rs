//! Trouble with the server, the disk and the rights, seen from the command line.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, When};
use tonic::Code;

use crate::cli_support::*;
use crate::support::tools;

fn refuse(shop: &Shop, methods: &[Rpc]) {
    let effect = Effect::Status(Code::PermissionDenied, "no such right".to_owned());
    shop.sandbox.faults().set(FaultPlan {
        faults: vec![Fault {
            methods: methods.to_vec(),
            when: When::Always,
            effect,
        }],
        ..FaultPlan::default()
    });
}

/// The repository has these snapshots, whole.
#[track_caller]
fn is_intact_with(shop: &Shop, snapshots: &[&str]) {
    assert_eq!(shop.snapshots(), snapshots);
    shop.run(["verify", "--read-data"]).done();
}

#[test]
fn nobody_listens() {
    let (shop, id) = Shop::backed_up();
    // Port 1 is nobody's.
    let nowhere = ["--emulator", "127.0.0.1:1", "--project", "demo-x"];
    for command in [
        &["backup"][..],
        &["status"],
        &["restore", &id, "--to-project", "demo-x"],
        &["backup", "--format", "json", "-o", "out"],
    ] {
        let refused = shop.run([command, &nowhere].concat());
        refused.fails(1, &["cannot connect to 127.0.0.1:1", "refused"]);
        assert_eq!(refused.stderr.matches("tcp connect error").count().min(1), 1);
        assert!(refused.stderr.len() < 250, "{refused}");
    }
    for wrong in [
        "127.0.0.1:99999",
        "not an address",
        "no-such-host.invalid:80",
        ":",
        "http://",
    ] {
        let refused = shop.run(["status", "--emulator", wrong, "--project", "demo-x"]);
        refused.fails(1, &["cannot connect to"]);
    }
    let doctor = shop.run([&["doctor", "--json"][..], &nowhere].concat());
    assert_eq!(doctor.code, 3, "{doctor}");
    assert_eq!(doctor.json()["healthy"], false);
    assert!(doctor.stdout.contains("127.0.0.1:1"), "{doctor}");
    is_intact_with(&shop, &[&id]);
}

#[test]
fn reading_is_not_permitted() {
    let (shop, id) = Shop::backed_up();
    refuse(
        &shop,
        &[Rpc::RunQuery, Rpc::RunAggregationQuery, Rpc::ListCollectionIds],
    );
    for command in [
        &["backup"][..],
        &["status"],
        &["backup", "--format", "json", "-o", "out"],
    ] {
        shop.firebank(command).fails(
            1,
            &[
                "permission denied",
                "demo-shop/(default)",
                "roles/datastore",
                "firebank doctor",
            ],
        );
    }
    let doctor = shop.firebank(["doctor"]);
    assert_eq!(doctor.code, 3, "{doctor}");
    let line = |name: &str| {
        let found = doctor.stdout.lines().find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("{name}: {doctor}")).to_owned()
    };
    assert!(
        line("datastore.entities.list").contains("missing; needed for reading a database"),
        "{doctor}"
    );
    assert!(line("datastore.entities.get").contains(" ok "), "{doctor}");
    shop.sandbox.faults().clear();
    is_intact_with(&shop, &[&id]);
}

#[test]
fn reading_ends_being_permitted_halfway() {
    let (shop, id) = Shop::backed_up();
    // Documents come, then the right is gone: what came is no snapshot.
    let effect = Effect::CutAfter {
        documents: 30,
        code: Code::PermissionDenied,
    };
    shop.add_fault(Fault::new(Rpc::RunQuery, When::After(1), effect));
    shop.firebank(["backup"]).fails(1, &["permission denied"]);
    let json = shop.firebank(["backup", "--format", "json", "-o", "out", "--json"]);
    assert_eq!(json.code, 3, "{json}");
    let json = json.json();
    for failed in json["failed"].as_array().unwrap() {
        assert!(
            failed["reason"].as_str().unwrap().contains("permission denied"),
            "{failed}"
        );
        let name = format!("out/backup_{}", failed["collection"].as_str().unwrap());
        assert!(!shop.files().iter().any(|file| file.starts_with(&name)));
    }
    assert!(!json["failed"].as_array().unwrap().is_empty());
    shop.sandbox.faults().clear();
    is_intact_with(&shop, &[&id]);
}

#[test]
fn writing_is_not_permitted() {
    let (shop, id) = Shop::backed_up();
    refuse(&shop, &[Rpc::BatchWrite]);
    let refused = shop.firebank(["restore", &id, "--to-project", "demo-x"]);
    refused.fails(
        1,
        &[
            "permission denied",
            "demo-x/(default)",
            "roles/datastore.user",
            &id,
        ],
    );
    let doctor = shop.firebank(["doctor", "--json"]).json();
    let missing: Vec<&str> = doctor["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["state"] == "problem")
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    assert_eq!(missing, ["datastore.entities.update"]);
    // An account that only backs up lacks nothing.
    assert_eq!(shop.firebank(["doctor", "--for", "backup"]).code, 0);
    assert!(shop.contents("demo-x").is_empty());
    assert!(!shop.files().iter().any(|name| name.ends_with(".ndjson")));
}

#[test]
fn what_the_database_refuses_goes_to_the_dead_letter_file() {
    let (shop, id) = Shop::backed_up();
    let original = shop.contents(SHOP);
    let fault = || Fault::write(Code::InvalidArgument, "/users/", When::Always);
    shop.add_fault(fault());
    let restored = shop.firebank(["restore", &id, "--to-project", "demo-x", "--json"]);
    assert_eq!(restored.code, 3, "{restored}");
    assert!(restored.stderr.contains("the database refused"), "{restored}");
    let report = restored.json();
    let file = report["dead_letter_file"].as_str().unwrap().to_owned();
    assert!(restored.stderr.contains(&file), "{restored}");

    let written = shop.contents("demo-x");
    let (refused, taken): (Contents, Contents) = original
        .clone()
        .into_iter()
        .partition(|(path, _)| path.starts_with("users/"));
    assert_eq!(written, taken);
    assert_eq!(report["written"], taken.len());
    assert_eq!(report["failed"], refused.len());
    let mode = std::fs::metadata(shop.file(&file)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut lines = std::collections::BTreeSet::new();
    for line in std::fs::read_to_string(shop.file(&file)).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(keys(&line), ["document", "operation", "path", "reason", "status"]);
        assert_eq!(line["status"], "INVALID_ARGUMENT");
        assert_ne!(line["reason"], "");
        let fields: serde_json::Value =
            serde_json::from_str(&shop.run(["show", &id, line["path"].as_str().unwrap()]).done()).unwrap();
        assert_eq!(line["document"], fields);
        lines.insert(line["path"].as_str().unwrap().to_owned());
        if lines.len() > 5 {
            break;
        }
    }
    let text = std::fs::read_to_string(shop.file(&file)).unwrap();
    assert_eq!(text.lines().count(), refused.len());

    // Into a file of one's choice, quietly, from JSON: the same.
    shop.firebank(["backup", "--format", "json", "-o", "out", "users"])
        .done();
    let json = shop
        .files()
        .into_iter()
        .find(|name| name.starts_with("out/backup_users"))
        .unwrap();
    shop.add_fault(fault());
    let restored = shop.firebank_on(
        "demo-y",
        ["restore", &json, "--dead-letter-file", "dead.ndjson", "-q"],
    );
    assert_eq!(restored.code, 3, "{restored}");
    assert_eq!(restored.stdout, "");
    assert!(restored.stderr.contains("dead.ndjson"), "{restored}");
    let text = std::fs::read_to_string(shop.file("dead.ndjson")).unwrap();
    assert_eq!(text.lines().count(), refused.len());
    assert!(shop.contents("demo-y").is_empty());

    // Where it cannot be written, nothing goes on as if it were.
    shop.add_fault(fault());
    let arguments = [
        "restore",
        &id,
        "--to-project",
        "demo-z",
        "--dead-letter-file",
        "no/such/x",
    ];
    shop.firebank(arguments).fails(1, &["no/such/x"]);
}

#[test]
fn a_server_in_trouble_is_asked_again() {
    let (shop, _) = Shop::backed_up();
    let original = shop.contents(SHOP);
    let plan = |seed| FaultPlan {
        seed,
        faults: vec![
            Fault {
                methods: Vec::new(),
                when: When::EveryNth(3),
                effect: Effect::Status(Code::Unavailable, "later".to_owned()),
            },
            Fault::new(
                Rpc::RunQuery,
                When::EveryNth(2),
                Effect::CutAfter {
                    documents: 20,
                    code: Code::Internal,
                },
            ),
            Fault::write(Code::Aborted, "", When::EveryNth(7)),
        ],
        ..FaultPlan::default()
    };
    shop.sandbox.faults().set(plan(1));
    let backup = shop.firebank(["backup", "--json"]);
    assert_eq!(backup.code, 0, "{backup}");
    let backup = backup.json();
    assert!(backup["retries"].as_u64().unwrap() > 0);
    let id = backup["snapshot"].as_str().unwrap();
    let restored = shop.firebank(["restore", id, "--to-project", "demo-x", "--json"]);
    assert_eq!(restored.code, 0, "{restored}");
    assert_eq!(shop.contents("demo-x"), original);
}

/// Somebody whom rights hold back: as the user `nobody` where the tests run as root, with a binary of its own, for the one that was
/// built may lie where only root can go.
struct Nobody {
    binary: Option<PathBuf>,
}

impl Nobody {
    /// None where there is nobody like that, which is said.
    fn of(shop: &Shop) -> Option<Self> {
        let probe = shop.file("backups/.probe");
        if std::fs::write(&probe, "").is_err() {
            return Some(Self { binary: None });
        }
        std::fs::remove_file(probe).unwrap();
        let binary = shop.path().with_file_name("firebank-of-nobody");
        // By a process of its own: what another test starts meanwhile would hold a file open that this one writes, and a file that
        // is written cannot be run.
        let copied = std::process::Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_firebank"))
            .arg(&binary)
            .status();
        assert!(copied.unwrap().success());
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        let nobody = Self { binary: Some(binary) };
        let mut version = nobody.command(shop);
        let reached = version.arg("--version").output();
        if matches!(&reached, Ok(output) if output.status.success()) {
            return Some(nobody);
        }
        tools::skip(
            "rights",
            &format!("the user `nobody` cannot run what is in the tests' folder: {reached:?}"),
        );
        None
    }

    fn command(&self, shop: &Shop) -> std::process::Command {
        let Some(binary) = &self.binary else {
            return shop.std_command();
        };
        let mut command = shop.std_command_of(binary);
        command.uid(65_534).gid(65_534);
        command
    }

    fn run(&self, shop: &Shop, arguments: &[&str]) -> Ended {
        let mut command = self.command(shop);
        command.args(arguments);
        finish(command)
    }
}

fn set_mode(path: &std::path::Path, folders: u32, files: u32) {
    let metadata = std::fs::metadata(path).unwrap();
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            set_mode(&entry.unwrap().path(), folders, files);
        }
    }
    let mode = if metadata.is_dir() { folders } else { files };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_folder_that_may_only_be_read_can_be_restored_from() {
    let (shop, id) = Shop::backed_up();
    let desk = shop.path();
    for folder in [desk.parent().unwrap(), &desk] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    set_mode(&shop.repository(), 0o555, 0o444);
    let before = shop.files();
    let address = shop.address();
    let server = ["--emulator", &*address, "--project", SHOP];
    let Some(nobody) = Nobody::of(&shop) else {
        return;
    };
    let backup = nobody.run(&shop, &[&["backup"][..], &server].concat());
    backup.fails(1, &["ermission", "sessions/"]);
    let read = nobody.run(&shop, &["verify", "--read-data"]);
    assert_eq!(read.code, 0, "{read}");
    let arguments = [&["restore", &id, "--to-project", "demo-x"][..], &server].concat();
    let restored = nobody.run(&shop, &arguments);
    assert_eq!(restored.code, 0, "{restored}");
    assert_eq!(shop.contents("demo-x"), shop.contents(SHOP));
    let doctor = nobody.run(&shop, &[&["doctor"][..], &server].concat());
    assert!(
        doctor.code == 3 && doctor.stdout.contains("repository writes"),
        "{doctor}"
    );
    assert_eq!(shop.files(), before);
    // Not even read: no damage, and no "intact" either.
    let snapshot = shop.file(&format!("backups/snapshots/{id}.json"));
    for hidden in [
        &snapshot,
        &shop.file("backups/repository.json"),
        &shop.file("backups/chunks"),
    ] {
        std::fs::set_permissions(hidden, std::fs::Permissions::from_mode(0o000)).unwrap();
        for command in [
            &["verify", "--read-data"][..],
            &["restore", &id, "--to-project", "demo-y", "--emulator", &address],
        ] {
            nobody.run(&shop, command).fails(1, &["ermission"]);
        }
        let mode = if hidden.is_dir() { 0o755 } else { 0o644 };
        std::fs::set_permissions(hidden, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    set_mode(&shop.repository(), 0o755, 0o644);
    assert!(shop.contents("demo-y").is_empty());
    is_intact_with(&shop, &[&id]);
}

/// Files larger than 8 KiB cannot be written: the nearest to a full disk that needs no disk.
#[test]
fn a_disk_without_room_is_a_clear_error() {
    let (shop, id) = Shop::backed_up();
    let original = shop.contents(SHOP);
    // Documents that need a chunk which is larger.
    let path = firebank::document::DocumentPath::parse("noise/n").unwrap();
    let bytes: Vec<u8> = (0..60_000u32)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let fields =
        firebank::document::Fields::from([("bytes".to_owned(), firebank::document::Value::Bytes(bytes))]);
    shop.put(SHOP, vec![(path, firebank::document::canonical::encode(&fields))]);
    let limited = |arguments: &str| {
        let mut command = std::process::Command::new("sh");
        let firebank = env!("CARGO_BIN_EXE_firebank");
        // Units of 512 bytes (dash) or 1024 (bash).
        let script = format!("trap '' XFSZ; ulimit -f 16; exec '{firebank}' {arguments}");
        command.args(["-c", &script]).current_dir(shop.path());
        finish(command)
    };
    let server = format!("--emulator {} --project {SHOP}", shop.address());
    let failed = limited(&format!("backup {server}"));
    // What a night holds back for its neighbours is in its checkpoint, what is too much for that in chunks.
    failed.fails(1, &["checkpoints/", "large"]);
    let failed = limited(&format!("backup --full {server}"));
    failed.fails(1, &["chunks/", "large"]);
    is_intact_with(&shop, &[&id]);
    let export = limited(&format!("backup --format json -o out {server}"));
    assert_eq!(export.code, 3, "{export}");
    assert!(export.stderr.contains("out/backup_"), "{export}");
    assert!(
        !shop
            .files()
            .iter()
            .any(|name| name.starts_with("out/backup_noise"))
    );
    shop.firebank(["restore", &id, "--to-project", "demo-x"]).done();
    assert_eq!(shop.contents("demo-x"), original);
    // With room again it goes.
    shop.firebank(["backup"]).done();
    shop.run(["verify", "--read-data"]).done();
}

#[test]
fn a_signal_ends_a_backup_without_a_snapshot() {
    let (shop, id) = Shop::backed_up();
    let delay = Effect::Delay(std::time::Duration::from_secs(30));
    shop.add_fault(Fault::new(Rpc::RunQuery, When::After(1), delay));
    let address = shop.address();
    let mut command = shop.std_command();
    command.args(["backup", "--emulator", &address, "--project", SHOP, "--json"]);
    let child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its plan is there: it reads, and waits for an answer.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let plans = || {
        let files = shop.files();
        files.iter().filter(|name| name.ends_with("plan.json")).count()
    };
    while plans() < 2 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let killed = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let ended = child.wait_with_output().unwrap();
    let message = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{message}");
    assert!(
        message.contains("no snapshot") && message.contains("--resume"),
        "{message}"
    );
    assert_eq!(ended.stdout, b"");
    shop.sandbox.faults().clear();
    is_intact_with(&shop, &[&id]);
    shop.firebank(["backup"]).done();
}
