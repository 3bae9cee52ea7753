//! What `--json` prints is what the README says, key by key, and the README says no more.

use std::collections::{BTreeMap, BTreeSet};

use firebank::sandbox::{SandboxConfig, SyntheticSpec};

use crate::cli_clean::CLEAN_KEYS;
use crate::cli_commands::{BACKUP_KEYS, RESTORE_KEYS, SNAPSHOT_KEYS};
use crate::cli_support::*;
use crate::cost::ESTIMATE_KEYS;

const LIST_KEYS: [&str; 3] = ["json_backups", "snapshots", "unreadable"];

const VERIFY_KEYS: [&str; 9] = [
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

const LIVE_KEYS: [&str; 16] = [
    "billed_reads",
    "check",
    "collections",
    "different",
    "documents",
    "equal",
    "extra",
    "first_differences",
    "later_ranges",
    "matches",
    "missing",
    "read_time",
    "retries",
    "seconds",
    "snapshot",
    "target",
];

const COUNTS_KEYS: [&str; 9] = [
    "billed_reads",
    "check",
    "counts",
    "matches",
    "read_time",
    "retries",
    "seconds",
    "snapshot",
    "target",
];

const STATUS_KEYS: [&str; 13] = [
    "backup_is_recent",
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

const DIFF_KEYS: [&str; 7] = [
    "billed_reads",
    "documents",
    "later_ranges",
    "new",
    "old",
    "read_time",
    "summary",
];

#[test]
fn the_commands_print_these_keys() {
    let (shop, id) = Shop::backed_up();
    let check = |arguments: &[&str], expected: &[&str]| {
        let printed = shop.firebank(arguments).json();
        assert_eq!(keys(&printed), expected, "{arguments:?}");
    };
    check(&["backup", "--json"], &BACKUP_KEYS);
    check(&["list-backups", "--json"], &LIST_KEYS);
    check(&["verify", "--json"], &VERIFY_KEYS);
    check(&["verify", "--live", "--json"], &LIVE_KEYS);
    check(&["verify", "--live", "--counts", "--json"], &COUNTS_KEYS);
    check(&["clean", "--keep-last", "1", "-n", "--json"], &CLEAN_KEYS);
    check(&["status", "--max-age", "1d", "--json"], &STATUS_KEYS);
    check(&["diff", &id, "live", "--json"], &DIFF_KEYS);
    let with_snapshot = |keys: &[&'static str], also: &'static str| {
        let mut keys = [keys, &[also]].concat();
        keys.sort_unstable();
        keys
    };
    let elsewhere = ["restore", &id, "--to-project", "demo-x", "--json"];
    let planned = with_snapshot(&PLAN_KEYS, "snapshot");
    check(&[&elsewhere[..], &["--dry-run"]].concat(), &planned);
    let verified = with_snapshot(&RESTORE_KEYS, "verification");
    check(&[&elsewhere[..], &["--verify"]].concat(), &verified);
}

/// The lag tells how old a snapshot was when it could first be restored.
#[test]
fn the_lag_is_that_of_the_commit() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let first = shop.firebank(["backup", "--json"]).json();
    let lag = first["lag_seconds"].as_f64().unwrap();
    assert!((0.0..60.0).contains(&lag), "{lag}");
    let then = first["read_time"].as_str().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let late = shop
        .firebank(["backup", "--full", "--read-time", then, "--json"])
        .json();
    let lag = late["lag_seconds"].as_f64().unwrap();
    assert!((2.0..120.0).contains(&lag), "{lag}");
    let listed = shop.run(["list-backups", "--json"]).json();
    assert_eq!(listed["snapshots"][0]["lag_seconds"], late["lag_seconds"]);
}

/// Files that are larger than what the process may have go through it, out of a database and a snapshot and in again.
#[cfg(target_os = "linux")]
#[test]
fn json_files_of_any_size_take_little_memory() {
    const DOCUMENTS: u64 = 40_000;
    let shop = Shop::of(crate::support::sandbox_with(SandboxConfig {
        synthetic: vec![SyntheticSpec::new("many", DOCUMENTS, 4000)],
        ..SandboxConfig::default()
    }));
    shop.run(["init"]).done();
    shop.firebank(["backup"]).done();
    let check = |arguments: &[&str]| {
        let peak = shop.peak_mib(arguments);
        assert!((1..120).contains(&peak), "{arguments:?}: {peak} MiB");
    };
    check(&["backup", "--format", "json", "-o", "saved"]);
    check(&["export", "latest", "--format", "json", "-o", "exported"]);
    for folder in ["saved", "exported"] {
        let files = files_below(&shop.file(folder));
        let file = files.iter().find(|file| file.starts_with("backup_many")).unwrap();
        let file = format!("{folder}/{file}");
        let bytes = std::fs::metadata(shop.file(&file)).unwrap().len();
        assert!(bytes > 150 << 20, "{file}: {bytes}");
        check(&["import", &file, "--dry-run"]);
    }
}

/// The keys of each row of the README's table.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let readme = include_str!("../../README.md");
    let (_, section) = readme
        .split_once("\n### What `--json` says\n")
        .expect("the section is there");
    let section = section.split("\n#").next().unwrap();
    let mut rows = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [command, keys] = cells[..] else {
            panic!("a row has two cells: {row}");
        };
        let keys = keys.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        rows.insert(command.trim().to_owned(), keys);
    }
    rows
}

#[test]
fn the_readme_lists_every_key_and_no_other() {
    let mut rows = documented();
    let mut check = |row: &str, keys: &[&[&str]]| {
        let expected: BTreeSet<String> = keys.concat().into_iter().map(str::to_owned).collect();
        let found = rows.remove(row);
        assert_eq!(found, Some(expected), "{row}");
    };
    check("`backup`", &[&BACKUP_KEYS]);
    check("`backup --dry-run`", &[&ESTIMATE_KEYS]);
    check("`list-backups`", &[&LIST_KEYS]);
    check("`list-backups`, each of `snapshots`; `show`", &[&SNAPSHOT_KEYS]);
    check("`restore`, `import`", &[&RESTORE_KEYS, &["verification"]]);
    check("`restore --dry-run`", &[&PLAN_KEYS, &["snapshot"]]);
    check("`verify`", &[&VERIFY_KEYS]);
    check("`verify --live`", &[&LIVE_KEYS]);
    check("`verify --live --counts`", &[&COUNTS_KEYS]);
    check("`clean`", &[&CLEAN_KEYS]);
    check("`status`", &[&STATUS_KEYS]);
    check("`diff`", &[&DIFF_KEYS]);
    assert!(rows.is_empty(), "{rows:?}");
}
