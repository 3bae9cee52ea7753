//! `export --format ndjson` and `import FILE.ndjson`: files, pipes, and lines that are no good.

use std::io::Write;
use std::process::{Command, Stdio};

use firebank::document::DocumentPath;
use serde_json::{Value as Json, json};

use crate::cli_support::*;

fn lines(text: &str) -> Vec<Json> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Runs a command on the shop that reads this.
fn with_input(shop: &Shop, project: &str, input: &[u8], arguments: &[&str]) -> Ended {
    let mut command = shop.std_command();
    command.args(["--emulator", &shop.address(), "--project", project]);
    command.args(arguments);
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end before it has read all.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let ended = Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!ended.stderr.contains("panicked"), "{shown}: {ended}");
    ended
}

#[test]
fn a_shop_comes_back_from_a_file_from_files_and_through_a_pipe() {
    let (shop, id) = Shop::backed_up();
    let contents = shop.contents(SHOP);

    let told = shop
        .run(["export", &id, "--format", "ndjson", "-o", "shop.ndjson", "--json"])
        .json();
    assert_eq!(keys(&told), ["files"]);
    assert_eq!(told["files"][0]["documents"], contents.len());
    let text = std::fs::read_to_string(shop.file("shop.ndjson")).unwrap();
    assert_eq!(told["files"][0]["bytes"], text.len());
    let documents = lines(&text);
    let paths: Vec<DocumentPath> = documents
        .iter()
        .map(|line| DocumentPath::parse(line["path"].as_str().unwrap()).unwrap())
        .collect();
    assert!(paths.is_sorted(), "in path order");
    assert_eq!(
        keys(&documents[0]),
        ["create_time", "document", "path", "update_time"]
    );
    let imported = shop
        .firebank_on("demo-one", ["import", "shop.ndjson", "--json"])
        .json();
    assert_eq!(imported["written"], contents.len());
    assert_eq!(shop.contents("demo-one"), contents);
    let again = shop.run(["export", &id, "--format", "ndjson", "-o", "shop.ndjson"]);
    again.fails(1, &["shop.ndjson", "exists"]);

    let told = shop
        .run(["export", &id, "--format", "ndjson", "-o", "lines"])
        .done();
    assert!(told.contains("lines/backup_products_"), "{told}");
    let files: Vec<String> = shop
        .files()
        .into_iter()
        .filter(|file| file.starts_with("lines/"))
        .collect();
    assert!(files.len() > 3 && files.iter().all(|file| file.ends_with(".ndjson")));
    let mut import = vec!["import"];
    import.extend(files.iter().map(String::as_str));
    shop.firebank_on("demo-many", import).done();
    assert_eq!(shop.contents("demo-many"), contents);

    let piped = shop.run(["export", &id, "--format", "ndjson", "-o", "-"]).done();
    assert_eq!(piped, text);
    let imported = with_input(&shop, "demo-piped", piped.as_bytes(), &["import", "-"]);
    assert_eq!(imported.code, 0, "{imported}");
    assert_eq!(shop.contents("demo-piped"), contents);
    assert!(
        std::fs::read_dir(shop.path().parent().unwrap().join("tmp"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn collections_and_patterns_choose() {
    let (shop, id) = Shop::backed_up();
    let users = shop
        .run(["export", &id, "users", "--format", "ndjson", "-o", "-"])
        .done();
    assert!(!users.is_empty());
    assert!(
        lines(&users)
            .iter()
            .all(|line| line["path"].as_str().unwrap().starts_with("users/"))
    );
    // One below the other is there once.
    let overlapping = shop.run([
        "export",
        &id,
        "users",
        "users/u000001/addresses",
        "--format",
        "ndjson",
        "-o",
        "-",
    ]);
    assert_eq!(overlapping.stdout, users);
    let none = shop.run(["export", &id, "users", "usres", "--format", "ndjson", "-o", "-"]);
    assert_eq!(none.code, 3, "{none}");
    assert!(
        none.stderr.contains("`usres`") && !none.stderr.contains("`users`"),
        "{none}"
    );
    assert_eq!(none.stdout, users);

    shop.write("users.txt", &users);
    let one = [
        "import",
        "users.txt",
        "--format",
        "ndjson",
        "--only",
        "users/u000001",
    ];
    shop.firebank_on("demo-x", one).done();
    assert!(
        shop.contents("demo-x")
            .keys()
            .all(|path| path.starts_with("users/u000001"))
    );
    assert!(!shop.contents("demo-x").is_empty());
    let plan = shop
        .firebank_on(
            "demo-y",
            ["import", "users.txt", "--format", "ndjson", "--dry-run", "--json"],
        )
        .json();
    assert_eq!(plan["documents"], users.lines().count());
    assert_eq!(plan["files"], json!(["users.txt"]));
    assert!(shop.contents("demo-y").is_empty());
}

#[test]
fn a_line_that_is_no_document_writes_nothing_and_is_named() {
    let shop = Shop::empty();
    let good = "{\"path\": \"a/1\", \"document\": {\"n\": 5}}\n";
    for (bad, says) in [
        ("{\"path\": \"a/2\", \"document\": {\"n\": 5}", "cut off"),
        ("{\"path\": \"a\", \"document\": {}}", "`path`"),
        ("{\"path\": \"a/2\", \"fields\": {}}", "missing field `document`"),
        (
            "{\"path\": \"a/2\", \"document\": {\"m\": {\"x\": {\"$bytes\": \"?\"}}}}",
            "(at m.x)",
        ),
        ("id,price\n", "column 1"),
    ] {
        let text = [good, good, bad].concat();
        shop.write("x.ndjson", &text);
        for ended in [
            shop.firebank(["import", "x.ndjson"]),
            shop.firebank(["import", "x.ndjson", "--dry-run"]),
        ] {
            ended.fails(1, &["x.ndjson, line 3: ", says, "othing was written"]);
        }
        let piped = with_input(&shop, SHOP, text.as_bytes(), &["import", "-"]);
        piped.fails(1, &["standard input, line 3: ", says, "othing was written"]);
    }
    // The second of two files.
    shop.write("good.ndjson", good);
    shop.firebank(["import", "good.ndjson", "x.ndjson"])
        .fails(1, &["x.ndjson, line 3"]);
    assert!(shop.contents(SHOP).is_empty());
    shop.firebank(["import", "none.ndjson"])
        .fails(1, &["none.ndjson"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (shop, id) = Shop::backed_up();
    for arguments in [
        vec!["export", &id, "-o", "-"],
        vec!["export", &id, "--format", "ndjson", "-o", "-", "--json"],
        vec!["import", "-", "-"],
        vec!["import", "-", "--format", "json"],
    ] {
        let refused = shop.firebank(arguments);
        assert_eq!(refused.code, 2, "{refused}");
        assert!(refused.stdout.is_empty(), "{refused}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_an_export() {
    let (shop, id) = Shop::backed_up();
    let mut command = shop.std_command();
    command
        .args(["export", &id, "--format", "ndjson", "-o", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(
        (
            ended.status.code(),
            String::from_utf8(ended.stderr).unwrap().as_str()
        ),
        (Some(0), "")
    );
}

#[test]
fn a_dead_letter_file_can_be_imported() {
    let (shop, id) = Shop::backed_up();
    shop.add_fault(firebank::sandbox::Fault::write(
        tonic::Code::InvalidArgument,
        "/products/p00000",
        firebank::sandbox::When::Always,
    ));
    let restored = shop.firebank_on(
        "demo-copy",
        [
            "restore",
            &id,
            "--to-project",
            "demo-copy",
            "--dead-letter-file",
            "failed.ndjson",
        ],
    );
    assert_eq!(restored.code, 3, "{restored}");
    shop.sandbox.faults().clear();
    assert_ne!(shop.contents("demo-copy"), shop.contents(SHOP));
    shop.firebank_on("demo-copy", ["import", "failed.ndjson"]).done();
    assert_eq!(shop.contents("demo-copy"), shop.contents(SHOP));
}

/// A patch is no document: written as one, it would take the document's other fields away. And what was only to be created must
/// not replace what somebody else has created.
#[test]
fn dead_letters_that_are_more_than_a_document_are_refused() {
    let (shop, id) = Shop::backed_up();
    shop.firebank(["restore", &id, "--to-project", "demo-copy"])
        .done();
    let original = shop.contents("demo-copy");
    let left_over = |file: &str, options: &[&str]| {
        shop.add_fault(firebank::sandbox::Fault::write(
            tonic::Code::InvalidArgument,
            "/products/p000001",
            firebank::sandbox::When::Always,
        ));
        let all = [
            "restore",
            &id,
            "--to-project",
            "demo-copy",
            "--only",
            "products/p000001",
        ];
        let restored = shop.firebank([&all[..], &["--dead-letter-file", file], options].concat());
        assert_eq!(restored.code, 3, "{restored}");
        shop.sandbox.faults().clear();
    };
    left_over("patch.ndjson", &["--fields", "price"]);
    left_over("new.ndjson", &["--mode", "create-only"]);
    shop.write(
        "deletion.ndjson",
        r#"{"path": "users/u000001", "operation": "delete", "status": "ABORTED", "reason": "", "document": null}"#,
    );
    for file in ["patch.ndjson", "new.ndjson", "deletion.ndjson"] {
        for command in ["import", "restore"] {
            if command == "import" || file == "patch.ndjson" {
                let says = [file, "line 1", "firebank restore --retry", "Nothing was written"];
                shop.firebank_on("demo-copy", [command, file]).fails(1, &says);
            }
        }
        assert_eq!(shop.contents("demo-copy"), original, "{file}");
    }
    for file in ["patch.ndjson", "deletion.ndjson"] {
        shop.firebank_on("demo-copy", ["restore", "--retry", file]).done();
    }
    let mut without = original;
    without.remove("users/u000001");
    assert_eq!(shop.contents("demo-copy"), without);
}

#[test]
fn a_restore_takes_files_of_lines_as_an_import_does() {
    let shop = Shop::empty();
    for name in ["x.ndjson", "y.jsonl"] {
        let text = format!("{{\"path\": \"a/{name}/b/1\", \"document\": {{\"n\": 5}}}}\n");
        shop.write(name, text);
        shop.firebank(["restore", name]).done();
        assert!(
            shop.contents(SHOP).contains_key(&format!("a/{name}/b/1")),
            "{name}"
        );
    }
    shop.firebank(["restore", "none.ndjson"])
        .fails(1, &["there is no file none.ndjson"]);
}

#[cfg(target_os = "linux")]
#[test]
fn any_number_of_lines_takes_little_memory() {
    let shop = Shop::empty();
    let filler = "x".repeat(4000);
    let mut file = std::io::BufWriter::new(std::fs::File::create(shop.file("x.ndjson")).unwrap());
    for number in 0..60_000 {
        writeln!(
            file,
            "{{\"path\":\"a/{number}\",\"document\":{{\"f\":\"{filler}\"}}}}"
        )
        .unwrap();
    }
    file.flush().unwrap();
    drop(file);
    let mut command: Command = shop.std_command();
    command
        .args(["--emulator", &shop.address(), "--project", SHOP])
        .args(["import", "x.ndjson", "--dry-run"])
        .stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    // Not what `wait4` tells: that counts this process too, as it was when the child split off.
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) >> 10);
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(ended.success());
    assert!((1..100).contains(&peak), "{peak} MiB for 240 MB");
}
