//! JSON files that are no good: found out before a single document is written.

use crate::cli_support::*;

/// A small backup as the older tool wrote it.
const GOOD: &str = r#"{
  "collection": "products",
  "timestamp": "2025-06-29T12:00:00",
  "document_count": 2,
  "documents": [
    {"id": "p1", "price": 349.99, "name": "Kettle"},
    {"id": "p2", "price": 5, "tags": ["a", null, true]}
  ],
  "metadata": {"backup_version": "1.0", "firebase_project": "shop", "backup_type": "full_collection", "compression": "none"}
}"#;

const FILE: &str = "backup_products_20250629_120000.json";

#[test]
fn a_file_of_the_older_tool_is_restored_as_it_is() {
    let shop = Shop::empty();
    shop.write(FILE, GOOD);
    let listing = shop.run(["list-backups", "-r", ".", "--json"]).json();
    assert_eq!(listing["json_backups"][0]["document_count"], 2);
    assert_eq!(shop.firebank(["restore", FILE, "--json"]).json()["written"], 2);
    let found = shop.contents(SHOP);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["products/p1", "products/p2"]);
    // To another database than the one that is named.
    shop.firebank(["restore", FILE, "--to-project", "demo-y", "--to-database", "z"])
        .done();
    assert_eq!(shop.contents_of("demo-y", "z"), found);
}

#[test]
fn a_file_that_is_cut_off_anywhere_writes_nothing() {
    let shop = Shop::empty();
    let mut cuts: Vec<usize> = (0..GOOD.len() - 1).step_by(37).collect();
    cuts.push(GOOD.len() - 1);
    for cut in cuts {
        shop.write(FILE, &GOOD[..cut]);
        let refused = shop.firebank(["restore", FILE]);
        refused.fails(1, &[FILE, "not valid JSON", "othing was written"]);
    }
    assert!(shop.contents(SHOP).is_empty());
    shop.write(FILE, &GOOD[..GOOD.len() - 40]);
    let listing = shop.run(["list-backups", "-r", "."]);
    assert_eq!(listing.code, 3, "{listing}");
    assert!(listing.stderr.contains(FILE), "{listing}");
}

#[test]
fn a_file_that_is_wrong_writes_nothing() {
    let shop = Shop::empty();
    let deep = format!(
        r#"{{"collection": "x", "documents": [{{"id": "a", "f": {}1{}}}]}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let cases: &[(&str, &[&str])] = &[
        // Counts.
        (
            &GOOD.replace("\"document_count\": 2", "\"document_count\": 3"),
            &["`document_count` 3", "holds 2"],
        ),
        (
            &GOOD.replace("\"document_count\": 2", "\"document_count\": 1"),
            &["`document_count` 1", "holds 2"],
        ),
        (
            &GOOD.replace("\"document_count\": 2", "\"document_count\": -2"),
            &["line 4"],
        ),
        (
            &GOOD.replace("\"compression\"", "\"total_document_count\": 9, \"compression\""),
            &["`total_document_count` 9", "holds 2"],
        ),
        // What is no backup.
        ("[]", &["an object with `collection`"]),
        ("{}", &["no `collection`"]),
        ("null", &["an object"]),
        (r#"{"collection": "x"}"#, &["no `documents`"]),
        (r#"{"collection": "x", "documents": {}}"#, &["array", "`x`"]),
        (r#"{"collection": "x/y", "documents": []}"#, &["x/y"]),
        (r#"{"collection": "", "documents": []}"#, &["collection"]),
        (r#"{"collection": "x", "documents": [1]}"#, &["`x`", "`id`"]),
        (r#"{"collection": "x", "documents": [{"a": 1}]}"#, &["no `id`"]),
        (
            r#"{"collection": "x", "documents": [{"id": 7}]}"#,
            &["`id`", "string"],
        ),
        (r#"{"collection": "x", "documents": [{"id": ""}]}"#, &["`id`"]),
        (r#"{"collection": "x", "documents": [{"id": "a/b"}]}"#, &["a/b"]),
        (r#"{"collection": "x", "documents": [{"id": ".."}]}"#, &["`id`"]),
        (
            r#"{"collection": "x", "documents": [{"id": "a", "id": "b"}]}"#,
            &["`x/a`", "twice"],
        ),
        (
            r#"{"collection": "x", "documents": [{"id": "a", "f": 1, "f": 2}]}"#,
            &["`x/a`", "`f`", "twice"],
        ),
        (
            r#"{"collection": "x", "documents": [{"id": "a", "f": 9223372036854775808}]}"#,
            &["`x/a`", "f"],
        ),
        (
            r#"{"collection": "x", "documents": [{"id": "a", "f": {"$timestamp": "yesterday"}}]}"#,
            &["`x/a`", "f"],
        ),
        (
            r#"{"collection": "x", "documents": [{"id": "a", "f": {"$wrong": 1}}]}"#,
            &["`x/a`", "$wrong"],
        ),
        (
            r#"{"collection": "x", "documents": [{"id": "a", "f": {"$bytes": "!"}}]}"#,
            &["`x/a`", "f"],
        ),
        (&deep, &["backup_"]),
        ("\u{feff}{}", &["line 1"]),
    ];
    for (text, says) in cases {
        shop.write(FILE, text);
        let refused = shop.firebank(["restore", FILE]);
        refused.fails(1, &[FILE, "othing was written"]);
        refused.fails(1, says);
        let shown = refused.stderr.len();
        assert!(shown < 2_000, "{shown} bytes of message");
        let dry = shop.firebank(["restore", FILE, "--dry-run"]);
        assert_eq!((dry.code, dry.stdout.as_str()), (1, ""), "{dry}");
    }
    assert!(shop.contents(SHOP).is_empty());
}

#[test]
fn one_bad_file_among_good_ones_writes_nothing() {
    let shop = Shop::empty();
    shop.write("good.json", GOOD);
    shop.write("bad.json", &GOOD[..200]);
    let refused = shop.firebank(["import", "good.json", "bad.json"]);
    refused.fails(1, &["bad.json", "othing was written"]);
    assert!(!refused.stderr.contains("good.json"), "{refused}");
    shop.firebank(["import", "good.json", "missing.json"])
        .fails(1, &["missing.json", "othing was written"]);
    shop.firebank(["import", "."]).fails(1, &["othing was written"]);
    shop.firebank(["restore", "missing.json"])
        .fails(1, &["missing.json", "backups"]);
    assert!(shop.contents(SHOP).is_empty());
}

#[test]
fn json_that_cannot_be_written_leaves_no_file() {
    let shop = Shop::open();
    shop.write("file", "x");
    shop.firebank(["backup", "--format", "json", "-o", "file"])
        .fails(1, &["file"]);
    shop.firebank(["backup", "--format", "json", "-o", "file/below"])
        .fails(1, &["file/below"]);
    assert_eq!(shop.files(), ["file"]);
}
