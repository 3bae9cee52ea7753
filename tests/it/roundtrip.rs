//! What goes into a backup comes out of a restore: every value type, every id, at the level of the protocol.
//!
//! The documents are written and read back by a client that shares nothing with Firebank, against Google's emulator and
//! against the sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use firebank::clock;
use firebank::export::{
    ExportOptions, ExportStats, LinesOptions, LinesTo, export_database, export_lines, export_snapshot,
};
use firebank::firestore::Firestore;
use firebank::import::import;
use firebank::json::DocumentsFile;
use firebank::progress::Progress;
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::{Document, ListDocumentsRequest, Value, Write};
use prost::Message;

use crate::conformance::client::*;
use crate::support::operations::*;
use crate::support::{emulator, sandbox};

/// Fields by name, in an order that says nothing.
type Fields = Vec<(String, Value)>;

fn named(fields: &[(&str, Value)]) -> Fields {
    fields
        .iter()
        .map(|(name, value)| (name.to_string(), value.clone()))
        .collect()
}

/// Every type of value, and of each what is at its edges.
fn every_value(server: &Server) -> Vec<Value> {
    let deepest = (0..19).fold(integer(1), |inside, _| map(&[("m", inside)]));
    let deepest_arrays = (0..9).fold(integer(1), |inside, _| array(vec![map(&[("a", inside)])]));
    let sibling = format!("projects/{}/databases/sibling/documents/a/b", server.project);
    let many: Vec<Value> = (0..1000).map(integer).collect();
    vec![
        null(),
        boolean(true),
        boolean(false),
        integer(0),
        integer(-1),
        integer(i64::MIN),
        integer(i64::MAX),
        integer((1 << 53) + 1),
        double(0.0),
        double(-0.0),
        double(5.0),
        double(-1e15),
        double(0.1),
        double(1e23),
        double(f64::MAX),
        double(f64::MIN_POSITIVE),
        double(f64::MIN_POSITIVE / 2.0),
        double(f64::from_bits(1)),
        double(f64::INFINITY),
        double(f64::NEG_INFINITY),
        double(f64::NAN),
        timestamp(-62_135_596_800, 0),
        timestamp(-62_135_596_800, 1_000),
        timestamp(-1, 999_999_000),
        timestamp(0, 0),
        timestamp(1_751_198_400, 123_456_000),
        timestamp(253_402_300_799, 999_999_000),
        text(""),
        text("\0 \u{1f} \u{7f} é e\u{301} 😀 \u{feff} \u{2028} \u{ffff} \u{10ffff}"),
        text("\"quoted\" \\ / \r\n\t</script>"),
        text("2025-06-29T12:00:00Z"),
        bytes(&[]),
        bytes(&[0, 255]),
        bytes(&(0..=255).collect::<Vec<u8>>()),
        server.reference("a/b"),
        server.reference("a/b/c/\0\n\"%2F😀"),
        server.reference("a/__id7__"),
        reference("projects/other/databases/(default)/documents/a/b"),
        reference("projects/other/databases/named/documents/a/__id-7__"),
        reference(&sibling),
        point(-90.0, 180.0),
        point(0.0, 0.0),
        point(48.137_154_321_098_7, -11.5),
        point(1.0, 2.0),
        array(vec![]),
        array(many),
        array(vec![
            map(&[("x", array(vec![]))]),
            null(),
            server.reference("in/array"),
        ]),
        map(&[]),
        map(&[("x", map(&[])), ("reference", server.reference("in/map"))]),
        vector(&[1.0, -0.0, f64::MAX]),
        vector(&vec![1.5; 2048]),
        deepest,
        deepest_arrays,
        odd_keys(server),
        // What looks like the typed form of JSON and is none.
        map(&[("$timestamp", text("2025-06-29T12:00:00Z"))]),
        map(&[("$map", map(&[("$bytes", text("AA=="))]))]),
        map(&[("$double", text("NaN")), ("other", integer(1))]),
        map(&[("$reference", server.reference("a/b"))]),
        map(&[("$", null())]),
    ]
}

/// Names of fields that need care. The emulator refuses the empty one and `__…__` ones as INVALID_ARGUMENT, and the
/// sandbox follows it.
const ODD_NAMES: &[&str] = &[
    "a.b",
    "`",
    "a`b",
    "\\",
    "a\\`b",
    "..",
    ".",
    "/",
    " ",
    "é",
    "e\u{301}",
    "😀",
    "\0",
    "\n",
    "\"",
    "'",
    "$",
    "$map",
    "$collections",
    "$fields",
    "$missing",
    "id",
    "__name",
    "name__",
    "__type",
    "0",
    "-1",
    "true",
    "*",
    "[]",
    "~",
];

fn odd_keys(server: &Server) -> Value {
    let fields: Vec<(&str, Value)> = ODD_NAMES
        .iter()
        .enumerate()
        .map(|(number, name)| {
            (
                *name,
                if number % 5 == 0 {
                    server.reference("k/k")
                } else {
                    text(name)
                },
            )
        })
        .collect();
    map(&fields)
}

/// Ids that need care, for documents.
fn odd_ids() -> Vec<String> {
    let mut ids: Vec<String> = [
        "__id-9223372036854775808__",
        "__id-5__",
        "__id5__",
        "__id7__",
        "__id10__",
        "__id9223372036854775807__",
        "____",
        "__",
        "__a",
        "a__",
        "a b",
        " ",
        "  x ",
        "%2F",
        "%",
        "%%",
        ".x",
        "...",
        "x.",
        "\0",
        "\n",
        "\r\n",
        "a\0b",
        "\t",
        "\u{1}",
        "\u{7f}",
        "'",
        "\"",
        "\\",
        "`",
        "<>",
        "|",
        "?",
        "#",
        "#1",
        "a#2",
        "*",
        "**",
        "[x]",
        "{x}",
        "~",
        "$",
        "$collections",
        "id",
        "é",
        "e\u{301}",
        "\u{200d}",
        "\u{feff}",
        "\u{ffff}",
        "\u{10ffff}",
        "😀",
        "👩‍👩‍👧‍👦",
        "(default)",
        "documents",
        "null",
        "-1",
        "00",
    ]
    .map(str::to_owned)
    .to_vec();
    ids.push("x".repeat(1500));
    ids.push("😀".repeat(375));
    ids.push("\0".repeat(1500));
    ids
}

/// The deepest that JSON files take, and the deepest there is.
const JSON_DEPTH: usize = 40;
const DEEPEST: usize = 100;

/// The root collection that is too deep for JSON files.
const DEEP: &str = "deep";

fn deep(collection: &str, depth: usize) -> String {
    let mut path = format!("{collection}/x");
    path.push_str(&"/d/x".repeat(depth - 1));
    path
}

/// A database that a lossy tool cannot bring back.
fn hard_documents(server: &Server) -> BTreeMap<String, Fields> {
    let mut documents = BTreeMap::new();
    let values: Fields = every_value(server)
        .into_iter()
        .enumerate()
        .map(|(number, value)| (format!("v{number}"), value))
        .collect();
    documents.insert("values/all".to_owned(), values.clone());
    for (name, value) in values {
        documents.insert(format!("values/{name}"), vec![("value".to_owned(), value)]);
    }
    let odd = |name: &&str| (name.to_string(), text(name));
    documents.insert("values/odd-names".to_owned(), ODD_NAMES.iter().map(odd).collect());
    documents.insert("values/empty".to_owned(), vec![]);

    for id in odd_ids() {
        let fields = named(&[
            ("id", text(&id)),
            ("reference", server.reference(&format!("odd/{id}"))),
        ]);
        documents.insert(format!("odd/{id}"), fields.clone());
        documents.insert(format!("odd/{id}/below/{id}"), fields.clone());
        // Its parents are missing.
        documents.insert(format!("missing/{id}/below/{id}"), fields);
    }
    // As collections' ids, of which the numbers of Datastore are none. At the root some, since every one is a file.
    let is_collection = |id: &String| !(id.starts_with("__") && id.ends_with("__"));
    for (number, id) in odd_ids().into_iter().rev().filter(is_collection).enumerate() {
        documents.insert(format!("parents/exists/{id}/x"), named(&[("number", integer(2))]));
        if number < 3 || number % 5 == 0 {
            documents.insert(format!("{id}/x"), named(&[("number", integer(1))]));
        }
    }
    documents.insert("parents/exists".to_owned(), vec![]);
    documents.insert(
        "_migrations/v1_first".to_owned(),
        named(&[("status", text("completed"))]),
    );
    documents.insert(
        "missing/far/above/missing/too/x".to_owned(),
        named(&[("number", integer(3))]),
    );
    documents.insert(
        deep("json-deep", JSON_DEPTH),
        named(&[("m", every_value(server).remove(51))]),
    );
    documents.insert(deep(DEEP, DEEPEST), named(&[("number", integer(4))]));
    let long = [
        "é".repeat(750),
        "y".repeat(1500),
        "z".repeat(1500),
        "\n".repeat(1300),
    ]
    .join("/");
    documents.insert(long, named(&[("number", integer(5))]));

    let halves = array(vec![text(&"x".repeat(524_000)), text(&"é".repeat(262_000))]);
    documents.insert("large/text".to_owned(), named(&[("value", halves)]));
    let noise: Vec<u8> = (0..1_040_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    documents.insert("large/bytes".to_owned(), named(&[("value", bytes(&noise))]));
    let names: Fields = (0..3000)
        .map(|n| (format!("field-{n}-{}", "n".repeat(n % 200)), integer(n as i64)))
        .collect();
    documents.insert("large/fields".to_owned(), names);
    documents
}

/// Writes documents in requests that the emulator takes.
async fn load(server: &Server, documents: &BTreeMap<String, Fields>) {
    let (mut request, mut size): (Vec<Write>, usize) = Default::default();
    for (path, fields) in documents {
        let fields: Vec<(&str, Value)> = fields
            .iter()
            .map(|(name, value)| (&name[..], value.clone()))
            .collect();
        let write = server.set(path, &fields);
        if size + write.encoded_len() > 3 << 20 || request.len() == 100 {
            send(server, std::mem::take(&mut request)).await;
            size = 0;
        }
        size += write.encoded_len();
        request.push(write);
    }
    send(server, request).await;
}

async fn send(server: &Server, writes: Vec<Write>) {
    let names: Vec<String> = writes
        .iter()
        .map(|write| format!("{:?}", write.operation).chars().take(150).collect())
        .collect();
    let results = server
        .try_batch(writes)
        .await
        .unwrap_or_else(|error| panic!("{error}: {names:?}"));
    for (result, name) in results.into_iter().zip(names) {
        assert!(result.is_ok(), "{name}: {result:?}");
    }
}

/// A value in words that are equal only for values that are equal to the bit. References into `from` are told as such
/// into `to`.
fn describe(value: &Value, from: &str, to: &str, out: &mut String) {
    match value.value_type.as_ref().expect("every value has a type") {
        ValueType::DoubleValue(number) => write!(out, "double {:016x}", number.to_bits()).unwrap(),
        ValueType::GeoPointValue(point) => {
            let (latitude, longitude) = (point.latitude.to_bits(), point.longitude.to_bits());
            write!(out, "point {latitude:016x} {longitude:016x}").unwrap();
        }
        ValueType::ReferenceValue(name) => match name.strip_prefix(from) {
            Some(path) if path.starts_with('/') => {
                write!(out, "reference {:?}", format!("{to}{path}")).unwrap()
            }
            _ => write!(out, "reference {name:?}").unwrap(),
        },
        ValueType::ArrayValue(array) => {
            out.push('[');
            for value in &array.values {
                describe(value, from, to, out);
                out.push(',');
            }
            out.push(']');
        }
        ValueType::MapValue(map) => {
            let fields: BTreeMap<&String, &Value> = map.fields.iter().collect();
            out.push('{');
            for (name, value) in fields {
                write!(out, "{name:?}:").unwrap();
                describe(value, from, to, out);
                out.push(',');
            }
            out.push('}');
        }
        plain => write!(out, "{plain:?}").unwrap(),
    }
}

/// What a database should hold: the documents of `source`, moved.
fn moved(documents: &BTreeMap<String, Fields>, source: &Server, target: &Server) -> BTreeMap<String, String> {
    let document = |(path, fields): (&String, &Fields)| {
        let mut told = String::new();
        let value = map(&fields
            .iter()
            .map(|(name, value)| (&name[..], value.clone()))
            .collect::<Vec<_>>());
        describe(&value, &source.root(), &target.root(), &mut told);
        (path.clone(), told)
    };
    documents.iter().map(document).collect()
}

/// What a database does hold, read by one query.
async fn read_back(server: &Server) -> BTreeMap<String, String> {
    let documents: Vec<Document> = server.run(kindless()).await.unwrap();
    let mut told = BTreeMap::new();
    for document in documents {
        let path = server.path(&document.name);
        let fields: Vec<(&str, Value)> = document
            .fields
            .iter()
            .map(|(name, value)| (&name[..], value.clone()))
            .collect();
        let mut text = String::new();
        describe(&map(&fields), "nowhere", "nowhere", &mut text);
        assert!(told.insert(path, text).is_none(), "{} came twice", document.name);
    }
    told
}

fn short(text: &str) -> String {
    text.chars().take(300).collect()
}

fn assert_same(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>) {
    let paths = |documents: &BTreeMap<String, String>| documents.keys().cloned().collect::<BTreeSet<_>>();
    let (found_paths, expected_paths) = (paths(found), paths(expected));
    let missing: Vec<_> = expected_paths
        .difference(&found_paths)
        .map(|path| short(path))
        .collect();
    let extra: Vec<_> = found_paths
        .difference(&expected_paths)
        .map(|path| short(path))
        .collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing {missing:?}, extra {extra:?}"
    );
    for (path, expected) in expected {
        let found = &found[path];
        assert!(
            found == expected,
            "{}: {} instead of {}",
            short(path),
            short(found),
            short(expected)
        );
    }
}

/// Documents that do not exist but have something below them, by the server's word.
async fn assert_still_missing(server: &Server) {
    let request = ListDocumentsRequest {
        parent: server.root(),
        collection_id: "missing".to_owned(),
        show_missing: true,
        page_size: 300,
        ..Default::default()
    };
    let listed = server
        .client()
        .list_documents(request)
        .await
        .unwrap()
        .into_inner()
        .documents;
    let names: BTreeSet<String> = listed
        .iter()
        .map(|document| server.path(&document.name))
        .collect();
    let mut expected: BTreeSet<String> = odd_ids().iter().map(|id| format!("missing/{id}")).collect();
    expected.insert("missing/far".to_owned());
    assert_eq!(names, expected);
    for document in listed {
        assert_eq!(
            (document.create_time, document.fields.len()),
            (None, 0),
            "{}",
            document.name
        );
    }
    for path in [
        "missing/far",
        "missing/far/above/missing",
        "missing/\0",
        &deep(DEEP, 1),
        &deep(DEEP, 99),
    ] {
        assert_eq!(
            code(server.get(path).await),
            tonic::Code::NotFound as i32,
            "{path:?}"
        );
    }
}

async fn client(address: &str, server: &Server) -> Firestore {
    let (_, database) = server.database.rsplit_once('/').unwrap();
    connect(address, &server.project, database).await
}

/// Through an archive, into another project and into a named database.
async fn through_an_archive(address: &str) {
    let source = Server::connect(address, "trip").await;
    let documents = hard_documents(&source);
    load(&source, &documents).await;
    let database = client(address, &source).await;
    assert_same(&read_back(&source).await, &moved(&documents, &source, &source));

    let repository = repository(small_segments()).await;
    let snapshot = back_up(&database, &repository, 3).await;
    assert_eq!(snapshot.documents, documents.len() as u64);
    assert_intact(&repository, 1).await;
    for target in [
        source.with_new_project("(default)"),
        source.with_database("copy-of-it"),
    ] {
        let copy = client(address, &target).await;
        restore_all(&repository, &snapshot, &copy).await;
        assert_same(&read_back(&target).await, &moved(&documents, &source, &target));
        assert_still_missing(&target).await;
        assert!(compare_databases(&database, &copy).await.is_equal());
    }
}

fn export_options(folder: &tempfile::TempDir) -> ExportOptions {
    ExportOptions {
        folder: folder.path().to_owned(),
        collections: vec![],
        include_migrations: true,
        time: clock::now(),
    }
}

/// Everything but the collection that lies too deep, about which the export says so.
fn exported(stats: ExportStats) -> Vec<PathBuf> {
    let failed: Vec<(String, String)> = stats
        .failed
        .iter()
        .map(|(collection, error)| (short(collection.as_str()), error.to_string()))
        .collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].0, DEEP);
    assert!(failed[0].1.contains("40 subcollections"), "{failed:?}");
    stats.files.into_iter().map(|(_, file)| file.file).collect()
}

/// Through JSON files, straight from the database and from a snapshot of it.
async fn through_json_files(address: &str) {
    let source = Server::connect(address, "trip-json").await;
    let documents = hard_documents(&source);
    load(&source, &documents).await;
    let database = client(address, &source).await;
    let mut shallow = documents.clone();
    shallow.remove(&deep(DEEP, DEEPEST));

    let folder = tempfile::tempdir().unwrap();
    let progress = Progress::new();
    let stats = export_database(&database, &export_options(&folder), &progress)
        .await
        .unwrap();
    let from_database = exported(stats);
    let repository = repository(small_segments()).await;
    let snapshot = back_up(&database, &repository, 2).await;
    let reader = repository.reader(&snapshot).await.unwrap();
    let other_folder = tempfile::tempdir().unwrap();
    let stats = export_snapshot(&reader, &snapshot, &export_options(&other_folder), &progress)
        .await
        .unwrap();
    let from_snapshot = exported(stats);

    for files in [from_database, from_snapshot] {
        let target = source.with_new_project("named-copy");
        let copy = client(address, &target).await;
        let options = restore_options(&copy, &folder.path().join("failed.ndjson"));
        let files: Vec<DocumentsFile> = files.into_iter().map(DocumentsFile::at).collect();
        let stats = import(&files, &copy, options, &progress).await.unwrap();
        assert_eq!((stats.written, stats.failed), (shallow.len() as u64, 0));
        assert_same(&read_back(&target).await, &moved(&shallow, &source, &target));
        assert_still_missing(&target).await;
    }
}

/// Through lines of NDJSON: one file a collection, one file, and a stream. There is no limit to the depth of subcollections.
async fn through_lines(address: &str) {
    let source = Server::connect(address, "trip-lines").await;
    let documents = hard_documents(&source);
    load(&source, &documents).await;
    let database = client(address, &source).await;
    let repository = repository(small_segments()).await;
    let snapshot = back_up(&database, &repository, 2).await;
    let reader = repository.reader(&snapshot).await.unwrap();
    let (folder, progress) = (tempfile::tempdir().unwrap(), Progress::new());
    let one_file = folder.path().join("all.jsonl");
    let streamed = folder.path().join("stream.ndjson");
    let stream = std::fs::File::create(&streamed).unwrap();
    let many = folder.path().join("many");
    std::fs::create_dir(&many).unwrap();
    for to in [
        LinesTo::Folder(many),
        LinesTo::File(one_file.clone()),
        LinesTo::Stream(Box::new(stream), streamed.clone()),
    ] {
        let options = LinesOptions {
            collections: Vec::new(),
            include_migrations: true,
            time: clock::now(),
        };
        let stats = export_lines(&reader, to, &options, &progress).await.unwrap();
        let files: Vec<_> = stats.files.into_iter().map(|written| written.file).collect();
        let sources: Vec<_> = files.into_iter().map(DocumentsFile::at).collect();
        let target = source.with_new_project("named-copy");
        let copy = client(address, &target).await;
        let options = restore_options(&copy, &folder.path().join("failed.ndjson"));
        let stats = import(&sources, &copy, options, &progress).await.unwrap();
        assert_eq!((stats.written, stats.failed), (documents.len() as u64, 0));
        assert_same(&read_back(&target).await, &moved(&documents, &source, &target));
        assert_still_missing(&target).await;
    }
    let text = std::fs::read_to_string(&one_file).unwrap();
    assert_eq!(text, std::fs::read_to_string(&streamed).unwrap());
    assert_eq!(text.lines().count(), documents.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandbox_comes_back_from_lines() {
    let sandbox = sandbox().await;
    through_lines(&sandbox.address().to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_comes_back_from_lines() {
    let Some(address) = emulator() else { return };
    through_lines(address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandbox_comes_back_from_an_archive() {
    let sandbox = sandbox().await;
    through_an_archive(&sandbox.address().to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_comes_back_from_an_archive() {
    let Some(address) = emulator() else { return };
    through_an_archive(address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandbox_comes_back_from_json_files() {
    let sandbox = sandbox().await;
    through_json_files(&sandbox.address().to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emulator_comes_back_from_json_files() {
    let Some(address) = emulator() else { return };
    through_json_files(address).await;
}
