use std::fs;

use chrono::TimeZone;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::document::{DatabaseName, Fields, Timestamp, Value, canonical, testing};

const FIXTURE: &str = "fixtures/json/backup_products_20250629_120000.json";

fn time() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2025, 6, 29, 12, 0, 0).unwrap()
}

fn path(path: &str) -> DocumentPath {
    DocumentPath::parse(path).unwrap()
}

fn origin(collection: &str) -> Origin {
    Origin {
        collection: CollectionPath::parse(collection).unwrap(),
        database: DatabaseName::new("shop", "(default)"),
        time: time(),
        read_time: Some(Timestamp::new(1_751_198_398, 123_456_000)),
    }
}

fn fields(entries: &[(&str, Value)]) -> Fields {
    entries
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect()
}

fn number(number: i64) -> Fields {
    fields(&[("n", Value::Integer(number))])
}

type Documents = Vec<(DocumentPath, Fields)>;

fn write(
    folder: &Path,
    collection: &str,
    documents: &[(DocumentPath, Fields)],
) -> Result<WrittenFile, JsonError> {
    let mut writer = CollectionWriter::create(folder, origin(collection))?;
    for (path, fields) in documents {
        writer.write(path, &canonical::encode(fields))?;
    }
    writer.finish()
}

fn read(file: &Path) -> Result<(Documents, Checked), JsonError> {
    let mut documents = Vec::new();
    let checked = read_documents::<JsonError>(file, |path, fields| {
        documents.push((path, fields));
        Ok(())
    })?;
    assert_eq!(check(file).unwrap(), checked);
    Ok((documents, checked))
}

/// Reads a file with this text.
fn read_text(text: &str) -> Result<(Documents, Checked), JsonError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file.json");
    fs::write(&file, text).unwrap();
    read(&file)
}

fn error(text: &str) -> String {
    let error = read_text(text).unwrap_err().to_string();
    // Without the file's name, which is another each time.
    match error.split_once("file.json ") {
        Some((_, error)) => error.to_owned(),
        None => error,
    }
}

#[test]
fn writes_the_documented_layout() {
    let folder = tempfile::tempdir().unwrap();
    let documents = [
        (
            path("products/p1"),
            fields(&[
                ("price", Value::Double(349.99)),
                ("name", Value::String("Größe".to_owned())),
            ]),
        ),
        (path("products/p1/prices/eur"), number(1)),
        (path("products/p1/prices/usd/old/x"), Fields::new()),
        (
            path("products/p1/reviews/r1"),
            fields(&[("tags", Value::Array(vec![Value::Null, Value::Map(number(2))]))]),
        ),
        (path("products/p1/reviews/r2"), number(3)),
        (path("products/p2/reviews/r1"), number(4)),
        (
            path("products/p3"),
            fields(&[("id", Value::Integer(5)), ("empty", Value::Array(vec![]))]),
        ),
    ];
    let written = write(folder.path(), "products", &documents).unwrap();
    assert_eq!(
        written.file,
        folder.path().join("backup_products_20250629_120000.json")
    );
    assert_eq!((written.document_count, written.total_document_count), (2, 7));
    let text = fs::read_to_string(&written.file).unwrap();
    assert_eq!(written.bytes, text.len() as u64);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        text,
        r#"{
  "collection": "products",
  "timestamp": "2025-06-29T12:00:00Z",
  "document_count":                    2,
  "documents": [
    {
      "id": "p1",
      "name": "Größe",
      "price": 349.99,
      "$collections": {
        "prices": [
          {
            "id": "eur",
            "n": 1
          },
          {
            "id": "usd",
            "$missing": true,
            "$collections": {
              "old": [
                {
                  "id": "x"
                }
              ]
            }
          }
        ],
        "reviews": [
          {
            "id": "r1",
            "tags": [
              null,
              {
                "n": 2
              }
            ]
          },
          {
            "id": "r2",
            "n": 3
          }
        ]
      }
    },
    {
      "id": "p2",
      "$missing": true,
      "$collections": {
        "reviews": [
          {
            "id": "r1",
            "n": 4
          }
        ]
      }
    },
    {
      "id": "p3",
      "$fields": {
        "empty": [],
        "id": 5
      }
    }
  ],
  "metadata": {
    "backup_version": "1.0",
    "firebase_project": "shop",
    "backup_type": "full_collection",
    "compression": "none",
    "firebase_database": "(default)",
    "total_document_count": 7,
    "read_time": "2025-06-29T11:59:58.123456Z",
    "tool": "firebank VERSION"
  }
}
"#
        .replace("VERSION", version)
    );
    let (read, checked) = read(&written.file).unwrap();
    assert_eq!(read, documents);
    assert_eq!(
        (
            checked.document_count,
            checked.total_document_count,
            checked.missing_documents
        ),
        (2, 7, 2)
    );
    assert_eq!(
        checked.header.metadata.unwrap().firebase_project.as_deref(),
        Some("shop")
    );
}

#[test]
fn an_empty_collection_is_a_valid_file() {
    let folder = tempfile::tempdir().unwrap();
    let written = write(folder.path(), "products/p1/reviews", &[]).unwrap();
    assert!(
        fs::read_to_string(&written.file)
            .unwrap()
            .contains("\"documents\": [],\n")
    );
    assert_eq!(read(&written.file).unwrap().0, []);
}

#[test]
fn nothing_half_written_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = CollectionWriter::create(folder.path(), origin("a")).unwrap();
    writer.write(&path("a/b"), canonical::EMPTY).unwrap();
    assert!(list_folder(folder.path()).unwrap().is_empty());
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    write(folder.path(), "a", &[]).unwrap();
    assert!(matches!(
        write(folder.path(), "a", &[]),
        Err(JsonError::AlreadyExists(_))
    ));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn refuses_documents_that_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = CollectionWriter::create(folder.path(), origin("a")).unwrap();
    writer.write(&path("a/b"), canonical::EMPTY).unwrap();
    for (document, body) in [
        ("a/b", canonical::EMPTY),
        ("a/a", canonical::EMPTY),
        ("a/c", b"\xc0"),
        ("ab/c", canonical::EMPTY),
    ] {
        assert!(writer.write(&path(document), body).is_err(), "{document}");
    }
    // The errors have not touched the file.
    writer.write(&path("a/b/c/d"), canonical::EMPTY).unwrap();
    let file = writer.finish().unwrap().file;
    let paths: Vec<_> = read(&file)
        .unwrap()
        .0
        .into_iter()
        .map(|(path, _)| path.to_string())
        .collect();
    assert_eq!(paths, ["a/b", "a/b/c/d"]);
}

#[test]
fn subcollections_nest_as_deep_as_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let deep = |levels: usize| path(&vec!["a/b"; levels + 1].join("/"));
    let documents = [(
        deep(MAX_COLLECTION_DEPTH),
        fields(&[("v", testing::nested(canonical::MAX_DEPTH, false))]),
    )];
    let written = write(folder.path(), "a", &documents).unwrap();
    assert_eq!(read(&written.file).unwrap().0, documents);
    let mut writer = CollectionWriter::create(folder.path(), origin("a")).unwrap();
    assert!(matches!(
        writer.write(&deep(MAX_COLLECTION_DEPTH + 1), canonical::EMPTY),
        Err(JsonError::TooDeep(_))
    ));
}

#[test]
fn reads_a_file_of_the_old_tool() {
    let (documents, checked) = read(Path::new(FIXTURE)).unwrap();
    assert_eq!(checked.document_count, 3);
    assert_eq!(
        checked.header.timestamp.as_deref(),
        Some("2025-06-29T12:00:00.123456+00:00")
    );
    let paths: Vec<_> = documents.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["products/p1", "products/p2", "products/__weird id.é"]);
    let p1 = &documents[0].1;
    assert_eq!(p1["name"], Value::String("Café-Mühle „Größe L“".to_owned()));
    assert_eq!(p1["big"], Value::Integer(9_007_199_254_740_993));
    assert_eq!(p1["huge"], Value::Double(1e30));
    assert_eq!(p1["tiny"], Value::Double(1e-5));
    assert_eq!(p1["whole"], Value::Double(5.0));
    assert_eq!(p1["stock"], Value::Integer(137));
    assert_eq!(
        p1["text"],
        Value::String("line\nbreak \"quoted\" \\ tab\t \u{1} /".to_owned())
    );
    assert!(!p1.contains_key("id"));
    assert!(documents[1].1.is_empty());
}

#[test]
fn what_we_write_is_laid_out_as_the_old_tool_did() {
    // The old tool's own file, written again: the same text but for what only we say.
    let folder = tempfile::tempdir().unwrap();
    let simple = json!({"id": "p1", "a": [1, [], {}, {"b": null}], "é": "\n\u{1}\u{7f}\"/😀", "z": 0.25});
    let fields = crate::document::typed_json::fields_from_json(
        &json!({"a": simple["a"], "é": simple["é"], "z": 0.25}),
    )
    .unwrap();
    let written = write(folder.path(), "products", &[(path("products/p1"), fields)]).unwrap();
    let text = fs::read_to_string(&written.file).unwrap();
    let python = "    {\n      \"id\": \"p1\",\n      \"a\": [\n        1,\n        [],\n        {},\n        {\n          \"b\": null\n        }\n      ],\n      \"z\": 0.25,\n      \"é\": \"\\n\\u0001\u{7f}\\\"/😀\"\n    }\n  ],\n";
    assert!(text.contains(python), "{text}");
}

#[test]
fn members_may_come_in_any_order() {
    let text = r#"{"documents": [
        {"$collections": {"c": [{"x": 1, "id": "d"}]}, "$missing": true, "id": "a"}, {"n": 1, "id": "b", "$missing": false}
      ], "document_count": 1, "extra": [1], "collection": "p"}"#;
    let (documents, checked) = read_text(text).unwrap();
    let paths: Vec<_> = documents.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["p/a/c/d", "p/b"]);
    assert_eq!(
        (
            checked.document_count,
            checked.total_document_count,
            checked.missing_documents
        ),
        (1, 2, 1)
    );
    assert_eq!(checked.header.metadata, None);
}

#[test]
fn says_what_is_wrong_with_a_file() {
    let document = |document: &str| error(&format!(r#"{{"collection": "p", "documents": [{document}]}}"#));
    let cases = [
        (
            error(""),
            "is not valid JSON: EOF while parsing a value at line 1 column 0",
        ),
        (
            error("[]"),
            "is not a valid backup: invalid type: sequence, expected an object with `collection` and `documents` at line 1 column 1",
        ),
        (
            error("{}"),
            "is not a valid backup: it has no `collection` at line 1 column 2",
        ),
        (
            error(r#"{"collection": "p"}"#),
            "is not a valid backup: it has no `documents` at line 1 column 19",
        ),
        (
            error(r#"{"documents": []}"#),
            "is not a valid backup: it has no `collection` at line 1 column 17",
        ),
        (
            error(r#"{"collection": "p/q", "documents": []}"#),
            "is not a valid backup: `collection`: `p/q` does not name a collection at line 1 column 21",
        ),
        (
            error("{\"collection\": \"p\",\n\"documents\": [{\"id\": \"a\"}, {\"id\""),
            "is not valid JSON: EOF while parsing an object at line 2 column 32",
        ),
        (
            error(r#"{"collection": "p", "documents": []} x"#),
            "is not valid JSON: trailing characters at line 1 column 38",
        ),
        (
            error(r#"{"collection": "p", "documents": [{"id": "a"}], "document_count": 2}"#),
            "says `document_count` 2 and holds 1: it is damaged or was edited",
        ),
        (
            error(r#"{"collection": "p", "documents": [], "metadata": {"total_document_count": 1}}"#),
            "says `total_document_count` 1 and holds 0: it is damaged or was edited",
        ),
        (
            document("{}"),
            "is not a valid backup: a document of `p`: it has no `id` at line 1 column 36",
        ),
        (
            document(r#"{"n": 1}"#),
            "is not a valid backup: a document of `p`: it has no `id` at line 1 column 42",
        ),
        (
            document(r#"{"id": 7}"#),
            "is not a valid backup: a document of `p`: its `id` is not a string at line 1 column 43",
        ),
        (
            document(r#"{"id": "a/b"}"#),
            "is not a valid backup: a document of `p`: its `id` \"a/b\" is not a valid document id at line 1 column 47",
        ),
        (
            document(r#"{"id": ".."}"#),
            "is not a valid backup: a document of `p`: its `id` \"..\" is not a valid document id at line 1 column 46",
        ),
        (
            document(r#"{"id": "a", "x": {"y": [{"$bytes": "?"}]}}"#),
            "is not a valid backup: document `p/a`: `$bytes` must hold base64 with padding (at x.y[0]) at line 1 column 76",
        ),
        (
            document(r#"{"id": "a", "x": 9223372036854775808}"#),
            "is not a valid backup: document `p/a`: the integer 9223372036854775808 does not fit 64 bits; for a double write {\"$double\": \"9223372036854775808\"}, else a string (at x) at line 1 column 71",
        ),
        (
            document(r#"{"id": "a", "x": 1, "x": 2}"#),
            "is not a valid backup: document `p/a`: field `x` is there twice, or beside `$fields` at line 1 column 58",
        ),
        (
            document(r#"{"id": "a", "$x": 1}"#),
            "is not a valid backup: document `p/a`: unknown member `$x`; fields with such names go into `$fields` at line 1 column 51",
        ),
        (
            document(r#"{"id": "a", "$missing": true, "x": 1}"#),
            "is not a valid backup: document `p/a`: it is `$missing` and has fields at line 1 column 71",
        ),
        (
            document(r#"{"id": "a", "$collections": {"c": []}, "x": 1}"#),
            "is not a valid backup: document `p/a`: `x` comes after `$collections`, which must be last at line 1 column 77",
        ),
        (
            document(r#"{"id": "a", "$collections": {"c/d": []}}"#),
            "is not a valid backup: document `p/a`: \"c/d\" is not a valid collection id at line 1 column 69",
        ),
        (
            document(r#"{"id": "a", "x": tru}"#),
            "is not valid JSON: expected ident at line 1 column 55",
        ),
    ];
    let wrong: Vec<_> = cases
        .iter()
        .filter(|(found, expected)| found != expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_cut_is_noticed() {
    let text = fs::read_to_string(FIXTURE).unwrap();
    for (cut, _) in text.trim_end().char_indices().step_by(7) {
        assert!(
            matches!(read_text(&text[..cut]), Err(JsonError::Malformed { .. })),
            "{cut}"
        );
    }
}

#[test]
fn stops_at_the_callers_error() {
    #[derive(Debug)]
    enum Stop {
        Mine(String),
        File,
    }
    impl From<JsonError> for Stop {
        fn from(_: JsonError) -> Self {
            Self::File
        }
    }
    let mut calls = 0;
    let result = read_documents(Path::new(FIXTURE), |path, _| {
        calls += 1;
        Err(Stop::Mine(path.to_string()))
    });
    assert!(matches!(result, Err(Stop::Mine(path)) if path == "products/p1"));
    assert_eq!(calls, 1);
    assert!(matches!(
        read_documents(Path::new("missing.json"), |_, _| Ok(())),
        Err(Stop::File)
    ));
}

#[test]
fn file_names_are_safe() {
    let name = |collection: &str| file_name(&CollectionPath::parse(collection).unwrap(), time());
    assert_eq!(name("products"), "backup_products_20250629_120000.json");
    assert_eq!(name("größe_1-x"), "backup_größe_1-x_20250629_120000.json");
    assert_eq!(name("a/b/c"), "backup_a%2Fb%2Fc_20250629_120000.json");
    assert_eq!(name(".."), "backup_%2E%2E_20250629_120000.json");
    assert_eq!(name("a\\b\0%~ "), "backup_a%5Cb%00%25%7E%20_20250629_120000.json");
    let long = [
        name(&"😀".repeat(400)),
        name(&"😀".repeat(401)),
        name(&"ü".repeat(700)),
    ];
    assert_ne!(long[0], long[1]);
    assert!(long.iter().all(|name| name.len() < 255), "{long:?}");
}

#[test]
fn lists_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(folder.path(), "orders", &[(path("orders/o1"), number(1))]).unwrap();
    fs::copy(
        FIXTURE,
        folder.path().join("backup_products_20250629_120000.json"),
    )
    .unwrap();
    let text = fs::read_to_string(FIXTURE).unwrap();
    file("backup_cut_20250629_120000.json", &text[..text.len() - 10]);
    file(
        "backup_sorted_20250629_120000.json",
        r#"{"documents": [{"id": "a"}], "metadata": {"firebase_project": "s"}, "collection": "sorted"}"#,
    );
    file(
        "backup_bare_20250629_120000.json",
        r#"{"collection": "bare", "documents": [{"id": "a", "metadata": {"firebase_project": "wrong"}}]}"#,
    );
    file("backup_text_20250629_120000.json", "hello");
    file("notes.json", "{}");
    BackupSummary::new(time(), &[], &[])
        .write(folder.path(), time())
        .unwrap();

    let listed: Vec<_> = list_folder(folder.path())
        .unwrap()
        .into_iter()
        .map(|backup| match backup.header {
            Ok(header) => {
                let project = header.metadata.and_then(|metadata| metadata.firebase_project);
                (
                    header.collection,
                    header.document_count,
                    project.unwrap_or_default(),
                )
            }
            Err(error) => (
                error.to_string().split_once(".json is ").unwrap().1.to_owned(),
                None,
                String::new(),
            ),
        })
        .collect();
    let line = |a: &str, count: Option<u64>, b: &str| (a.to_owned(), count, b.to_owned());
    assert_eq!(
        listed,
        [
            line("bare", None, ""),
            line("not valid JSON: it is cut off", None, ""),
            line("orders", Some(1), "shop"),
            line("products", Some(3), "retailgenie-prod"),
            line("sorted", None, "s"),
            line("not valid JSON: expected value at line 1 column 1", None, ""),
        ]
    );
    assert!(list_folder(&folder.path().join("missing")).unwrap().is_empty());
}

#[test]
fn writes_a_summary() {
    let folder = tempfile::tempdir().unwrap();
    let files = [("a".to_owned(), PathBuf::from("backups/backup_a.json"))];
    let summary = BackupSummary::new(time(), &files, &["b".to_owned()]);
    let file = summary.write(folder.path(), time()).unwrap();
    assert_eq!(file.file_name().unwrap(), "backup_summary_20250629_120000.json");
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(serde_json::from_str::<BackupSummary>(&text).unwrap(), summary);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text).unwrap(),
        json!({
            "backup_session": {"timestamp": "2025-06-29T12:00:00Z", "total_collections": 2, "successful_backups": 1, "failed_backups": 1, "status": "partial_failure"},
            "successful_collections": ["a"], "failed_collections": ["b"], "backup_files": {"a": "backups/backup_a.json"}
        })
    );
}

/// Documents of one collection, some far below it, in path order.
fn documents() -> impl Strategy<Value = Documents> {
    let id = prop_oneof![
        "[ab]",
        "[^/.]{1,3}",
        Just("__id7__".to_owned()),
        Just("$collections".to_owned())
    ];
    let below = proptest::collection::vec((prop_oneof![Just("c"), Just("$d"), Just("id")], id.clone()), 0..3);
    let path = (id, below).prop_map(|(id, below)| {
        let rest: String = below
            .iter()
            .map(|(collection, id)| format!("/{collection}/{id}"))
            .collect();
        path(&format!("p/{id}{rest}"))
    });
    let fields = proptest::collection::btree_map(testing::key(), testing::value(), 0..3);
    proptest::collection::btree_map(path, fields, 0..12).prop_map(|documents| documents.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_document_survives(documents in documents()) {
        let folder = tempfile::tempdir().unwrap();
        let written = write(folder.path(), "p", &documents).unwrap();
        let (read, checked) = read(&written.file).unwrap();
        prop_assert_eq!(&read, &documents);
        prop_assert_eq!(checked.total_document_count, documents.len() as u64);
        // It is laid out as serde_json's pretty printer would, but for the room before the count.
        let text = fs::read_to_string(&written.file).unwrap();
        let raw: Box<serde_json::value::RawValue> = serde_json::from_str(&text).unwrap();
        drop(raw);
        for line in text.lines() {
            prop_assert_eq!(line.trim_end(), line);
        }
    }

    #[test]
    fn damage_is_an_error_or_another_backup(
        documents in documents(),
        at in any::<proptest::sample::Index>(),
        byte in prop_oneof![any::<u8>(), proptest::sample::select(b"[]{},:\"0$".to_vec())],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let written = write(folder.path(), "p", &documents).unwrap();
        let mut bytes = fs::read(&written.file).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        fs::write(&written.file, bytes).unwrap();
        let _ = check(&written.file);
        let _ = list_folder(folder.path()).unwrap();
    }
}
