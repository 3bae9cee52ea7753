use std::collections::HashMap;

use ::firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use ::firestore::gcloud_sdk::google::firestore::v1::{
    self as pb, batch_get_documents_response, run_query_response,
};
use ::firestore::gcloud_sdk::google::r#type::LatLng;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::document::canonical::{self, MAX_DEPTH};
use crate::document::testing::{self, ROOT};
use crate::document::{DocumentBatch, DocumentPath, Fields, GeoPoint, Reference, Value};

fn to_proto(value: &Value) -> pb::Value {
    let value_type = match value {
        Value::Null => ValueType::NullValue(0),
        Value::Boolean(value) => ValueType::BooleanValue(*value),
        Value::Integer(value) => ValueType::IntegerValue(*value),
        Value::Double(value) => ValueType::DoubleValue(*value),
        Value::Timestamp(time) => ValueType::TimestampValue(prost_time(*time)),
        Value::String(value) => ValueType::StringValue(value.clone()),
        Value::Bytes(value) => ValueType::BytesValue(value.clone()),
        Value::Reference(Reference::Relative(path)) => ValueType::ReferenceValue(format!("{ROOT}/{path}")),
        Value::Reference(Reference::Absolute(name)) => ValueType::ReferenceValue(name.clone()),
        Value::GeoPoint(point) => ValueType::GeoPointValue(LatLng {
            latitude: point.latitude,
            longitude: point.longitude,
        }),
        Value::Array(values) => ValueType::ArrayValue(pb::ArrayValue {
            values: values.iter().map(to_proto).collect(),
        }),
        Value::Map(fields) => ValueType::MapValue(pb::MapValue {
            fields: fields_to_proto(fields),
        }),
    };
    pb::Value {
        value_type: Some(value_type),
    }
}

fn fields_to_proto(fields: &Fields) -> HashMap<String, pb::Value> {
    fields
        .iter()
        .map(|(key, value)| (key.clone(), to_proto(value)))
        .collect()
}

fn from_proto(value: &pb::Value) -> Value {
    match value.value_type.as_ref().unwrap() {
        ValueType::NullValue(_) => Value::Null,
        ValueType::BooleanValue(value) => Value::Boolean(*value),
        ValueType::IntegerValue(value) => Value::Integer(*value),
        ValueType::DoubleValue(value) => Value::Double(*value),
        ValueType::TimestampValue(time) => Value::Timestamp(Timestamp::new(time.seconds, time.nanos as u32)),
        ValueType::StringValue(value) => Value::String(value.clone()),
        ValueType::BytesValue(value) => Value::Bytes(value.clone()),
        ValueType::ReferenceValue(name) => Value::Reference(
            match name
                .strip_prefix(ROOT)
                .and_then(|path| path.strip_prefix('/'))
                .and_then(|path| DocumentPath::parse(path).ok())
            {
                Some(path) => Reference::Relative(path),
                None => Reference::Absolute(name.clone()),
            },
        ),
        ValueType::GeoPointValue(point) => Value::GeoPoint(GeoPoint {
            latitude: point.latitude,
            longitude: point.longitude,
        }),
        ValueType::ArrayValue(array) => Value::Array(array.values.iter().map(from_proto).collect()),
        ValueType::MapValue(map) => Value::Map(fields_from_proto(&map.fields)),
        other => panic!("{other:?}"),
    }
}

fn fields_from_proto(fields: &HashMap<String, pb::Value>) -> Fields {
    fields
        .iter()
        .map(|(key, value)| (key.clone(), from_proto(value)))
        .collect()
}

fn prost_time(time: Timestamp) -> ::firestore::gcloud_sdk::prost_types::Timestamp {
    ::firestore::gcloud_sdk::prost_types::Timestamp {
        seconds: time.seconds,
        nanos: time.nanos as i32,
    }
}

fn document(fields: &Fields) -> pb::Document {
    pb::Document {
        name: format!("{ROOT}/products/p1"),
        fields: fields_to_proto(fields),
        create_time: Some(prost_time(Timestamp::new(5, 0))),
        update_time: Some(prost_time(Timestamp::new(0, 7))),
    }
}

fn one(fields: Fields) -> Vec<u8> {
    document(&fields).encode_to_vec()
}

fn body_of(wire: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut batch = DocumentBatch::new();
    append_document(wire, ROOT, &mut batch)?;
    Ok(batch.last().unwrap().body.to_vec())
}

fn delimited(field: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

/// A document `products/p1` whose field `f` has the value whose message is `value`.
fn with_value(value: &[u8]) -> Vec<u8> {
    let entry = [delimited(1, b"f"), delimited(2, value)].concat();
    [
        delimited(1, format!("{ROOT}/products/p1").as_bytes()),
        delimited(2, &entry),
    ]
    .concat()
}

#[test]
fn takes_the_envelope_apart() {
    let mut batch = DocumentBatch::new();
    append_document(&one(testing::retail_document()), ROOT, &mut batch).unwrap();
    append_document(
        &delimited(1, format!("{ROOT}/a/b/c/d").as_bytes()),
        ROOT,
        &mut batch,
    )
    .unwrap();
    let first = batch.get(0).unwrap();
    assert_eq!(first.path().unwrap().as_str(), "products/p1");
    assert_eq!(first.create_time, Timestamp::new(5, 0));
    assert_eq!(first.update_time, Timestamp::new(0, 7));
    assert_eq!(canonical::decode(first.body).unwrap(), testing::retail_document());
    let second = batch.get(1).unwrap();
    assert_eq!(second.path().unwrap().as_str(), "a/b/c/d");
    assert_eq!(second.body, canonical::EMPTY);
    assert_eq!(second.create_time, Timestamp::default());
}

#[test]
fn takes_absent_fields_for_their_defaults() {
    // An entry without a key, an empty array, map, timestamp and geopoint; prost leaves all of these out.
    let fields = Fields::from([
        (String::new(), Value::Integer(0)),
        ("a".to_owned(), Value::Array(vec![])),
        ("b".to_owned(), Value::Map(Fields::new())),
        ("c".to_owned(), Value::Timestamp(Timestamp::default())),
        (
            "d".to_owned(),
            Value::GeoPoint(GeoPoint {
                latitude: 0.0,
                longitude: 0.0,
            }),
        ),
        ("e".to_owned(), Value::String(String::new())),
        ("f".to_owned(), Value::Double(0.0)),
        ("g".to_owned(), Value::Bytes(vec![])),
        ("h".to_owned(), Value::Boolean(false)),
    ]);
    let body = body_of(&one(fields.clone())).unwrap();
    assert_eq!(canonical::decode(&body).unwrap(), fields);
    let mut wire = Vec::new();
    append_document_message(&DocumentPath::parse("a/b").unwrap(), &body, ROOT, &mut wire).unwrap();
    let back = pb::Document::decode(&wire[..]).unwrap();
    assert_eq!(fields_from_proto(&back.fields), fields);
}

#[test]
fn writes_coordinates_of_minus_zero() {
    let point = GeoPoint {
        latitude: -0.0,
        longitude: f64::NAN,
    };
    let body = canonical::encode(&Fields::from([("a".to_owned(), Value::GeoPoint(point))]));
    let mut wire = Vec::new();
    append_document_message(&DocumentPath::parse("a/b").unwrap(), &body, ROOT, &mut wire).unwrap();
    assert_eq!(body_of(&wire).unwrap(), body);
}

#[test]
fn the_last_of_equal_keys_wins() {
    let entry = |key: &str, number: u8| {
        delimited(
            2,
            &[delimited(1, key.as_bytes()), delimited(2, &[0x10, number])].concat(),
        )
    };
    let name = delimited(1, format!("{ROOT}/a/b").as_bytes());
    for order in [["k", "k", "a"], ["a", "k", "k"], ["k", "a", "k"]] {
        let entries: Vec<Vec<u8>> = order
            .iter()
            .zip(1..)
            .map(|(key, number)| entry(key, number))
            .collect();
        let fields =
            canonical::decode(&body_of(&[name.clone(), entries.concat()].concat()).unwrap()).unwrap();
        let expected = |key: &str| order.iter().rposition(|other| *other == key).unwrap() as i64 + 1;
        assert_eq!(fields["k"], Value::Integer(expected("k")), "{order:?}");
        assert_eq!(fields["a"], Value::Integer(expected("a")), "{order:?}");
        assert_eq!(fields.len(), 2);
    }
}

#[test]
fn skips_unknown_fields_of_messages() {
    let unknown = [
        &[0xf8, 0x07, 0x05][..],
        &delimited(200, b"later"),
        &[0xfd, 0x07, 0, 0, 0, 0],
    ]
    .concat();
    let map = [
        unknown.clone(),
        delimited(
            1,
            &[delimited(2, &[0x10, 1]), delimited(1, b"k"), unknown.clone()].concat(),
        ),
    ]
    .concat();
    let wire = [with_value(&delimited(6, &map)), unknown].concat();
    let fields = canonical::decode(&body_of(&wire).unwrap()).unwrap();
    assert_eq!(
        fields["f"],
        Value::Map(Fields::from([("k".to_owned(), Value::Integer(1))]))
    );
}

#[test]
fn a_value_of_an_unknown_kind_is_an_error_that_says_where() {
    for (number, shown) in [
        (19, "a field reference (value type 19)"),
        (21, "a pipeline (value type 21)"),
        (77, "a value of the unknown type 77"),
    ] {
        let array = delimited(
            9,
            &[delimited(1, &[0x58, 0]), delimited(1, &delimited(number, b""))].concat(),
        );
        let error = body_of(&with_value(&array)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "document `products/p1` holds {shown} at f[1], which this version cannot keep; \
                 leaving it out would lose data"
            )
        );
    }
    let unset = |wire: &[u8]| {
        assert!(
            matches!(
                body_of(wire),
                Err(WireError::UnsupportedValue {
                    kind: ValueKind::Unset,
                    ..
                })
            ),
            "{wire:02x?}"
        );
    };
    unset(&with_value(b""));
    let name = delimited(1, format!("{ROOT}/a/b").as_bytes());
    unset(&[name, delimited(2, &delimited(1, b"f"))].concat());
}

#[test]
fn refuses_what_is_not_a_document() {
    let invalid = |value: &[u8], expected: &str| match body_of(&with_value(value)) {
        Err(WireError::InvalidDocument { what, document, .. }) => {
            assert_eq!((what, &document[..]), (expected, "products/p1"));
        }
        other => panic!("{other:?}"),
    };
    invalid(&[0x10, 1, 0x08, 1], "a value has two types");
    invalid(&[0x13, 0x14], "it holds a group");
    invalid(&[0x11, 0, 0, 0, 0, 0, 0, 0, 0], "a field has the wrong wire type");
    invalid(&[0x19, 0], "it is cut off");
    invalid(&delimited(17, &[0xff]), "a text is not UTF-8");
    invalid(
        &[&[0x10][..], &[0xff; 10]].concat(),
        "a number has more than 64 bits",
    );
    let nanos = "a timestamp's nanoseconds are negative or a second and more";
    let time = |nanos| prost_types_value(prost_time(Timestamp::new(1, 0)), nanos);
    invalid(&time(-1), nanos);
    invalid(&time(1_000_000_000), nanos);

    for name in ["", "x", "projects/other/databases/(default)/documents/a/b"] {
        assert!(matches!(
            body_of(&delimited(1, name.as_bytes())),
            Err(WireError::OutsideRoot { .. })
        ));
    }
    for path in ["", "/", "/a", "/a//b/c", "X/a/b"] {
        let name = format!("{ROOT}{path}");
        assert!(
            matches!(
                body_of(&delimited(1, name.as_bytes())),
                Err(WireError::OutsideRoot { .. })
            ),
            "{name}"
        );
    }
}

fn prost_types_value(mut time: ::firestore::gcloud_sdk::prost_types::Timestamp, nanos: i32) -> Vec<u8> {
    time.nanos = nanos;
    pb::Value {
        value_type: Some(ValueType::TimestampValue(time)),
    }
    .encode_to_vec()
}

#[test]
fn an_error_leaves_the_batch_and_the_output_alone() {
    let mut batch = DocumentBatch::new();
    append_document(&one(testing::retail_document()), ROOT, &mut batch).unwrap();
    let before = (batch.len(), batch.byte_len());
    append_document(&with_value(b""), ROOT, &mut batch).unwrap_err();
    append_document(b"\xff", ROOT, &mut batch).unwrap_err();
    assert_eq!((batch.len(), batch.byte_len()), before);

    let mut out = b"before".to_vec();
    let path = DocumentPath::parse("a/b").unwrap();
    let error = append_document_message(&path, &[0x81, 0xa1, b'a', 0xc1], ROOT, &mut out).unwrap_err();
    assert!(matches!(error, WireError::InvalidBody { .. }));
    assert_eq!(out, b"before");
}

#[test]
fn nests_as_deep_as_allowed_and_no_deeper() {
    for array in [false, true] {
        let fields = |depth| Fields::from([("a".to_owned(), testing::nested(depth, array))]);
        let body = body_of(&one(fields(MAX_DEPTH))).unwrap();
        assert_eq!(body, canonical::encode(&fields(MAX_DEPTH)));
        let mut wire = Vec::new();
        let path = DocumentPath::parse("a/b").unwrap();
        append_document_message(&path, &body, ROOT, &mut wire).unwrap();
        assert_eq!(body_of(&wire).unwrap(), body);
        assert!(body_of(&one(fields(MAX_DEPTH + 1))).is_err());
        let deep = canonical::encode(&fields(MAX_DEPTH + 1));
        assert!(append_document_message(&path, &deep, ROOT, &mut wire).is_err());
    }
}

#[test]
fn takes_answers_apart() {
    let document = document(&testing::retail_document());
    let answer = pb::RunQueryResponse {
        transaction: vec![1],
        document: Some(document.clone()),
        read_time: Some(prost_time(Timestamp::new(9, 1))),
        skipped_results: 3,
        explain_metrics: Some(pb::ExplainMetrics::default()),
        continuation_selector: Some(run_query_response::ContinuationSelector::Done(true)),
    };
    assert_eq!(
        query_answer(&answer.encode_to_vec()).unwrap(),
        QueryAnswer {
            document: Some(&document.encode_to_vec()),
            read_time: Some(Timestamp::new(9, 1)),
            skipped_results: 3,
            done: true,
        }
    );
    assert_eq!(query_answer(b"").unwrap(), QueryAnswer::default());
    let mut answer = pb::BatchGetDocumentsResponse {
        transaction: vec![1],
        read_time: Some(prost_time(Timestamp::new(0, 1))),
        result: Some(batch_get_documents_response::Result::Found(document.clone())),
    };
    let bytes = answer.encode_to_vec();
    let found = batch_get_answer(&bytes).unwrap();
    assert_eq!(found.found, Some(&document.encode_to_vec()[..]));
    assert_eq!(
        (found.missing, found.read_time),
        (None, Some(Timestamp::new(0, 1)))
    );
    answer.result = Some(batch_get_documents_response::Result::Missing("a/b".to_owned()));
    assert_eq!(
        batch_get_answer(&answer.encode_to_vec()).unwrap().missing,
        Some("a/b")
    );
    assert!(query_answer(&[0x0a, 5]).is_err());
}

/// An answer with a document's name and times.
fn name_answer(path: &str, times: [Timestamp; 3]) -> Vec<u8> {
    let [create_time, update_time, read_time] = times.map(prost_time);
    let answer = pb::RunQueryResponse {
        document: Some(pb::Document {
            name: format!("{ROOT}/{path}"),
            create_time: Some(create_time),
            update_time: Some(update_time),
            ..Default::default()
        }),
        read_time: Some(read_time),
        ..Default::default()
    };
    answer.encode_to_vec()
}

/// Appends the document of an answer at a glance, and says whether that is possible; then it is checked that it comes to the
/// same.
fn is_taken_at_a_glance(reader: &mut NameReader, answer: &[u8]) -> bool {
    let (mut quick, mut thorough) = (DocumentBatch::new(), DocumentBatch::new());
    let Some(read_time) = reader.append(answer, &mut quick) else {
        assert!(quick.is_empty() && quick.byte_len() == 0);
        return false;
    };
    let taken = query_answer(answer).unwrap();
    assert_eq!(taken.read_time, Some(read_time));
    append_document(taken.document.unwrap(), reader.root(), &mut thorough).unwrap();
    assert_eq!(quick.last(), thorough.last());
    true
}

#[test]
fn usual_names_are_taken_at_a_glance() {
    let time = |seconds| Timestamp::new(1_767_225_600 + seconds, 123_456_000);
    let mut reader = NameReader::new(ROOT);
    let mut taken =
        |path: &str, times: [i64; 3]| is_taken_at_a_glance(&mut reader, &name_answer(path, times.map(time)));
    assert!(taken("products/abcdefgh", [1, 1, 9]));
    assert!(taken("products/0123456789abcdefghij", [1, 2, 9]));
    assert!(taken("others/0123456789abcdefghij", [-1, 2, 10]));
    assert!(taken("products/abcdefgh/reviews/abcdefgh", [1, 2, 9]));
    for path in [
        "products/__id123__",
        "products/a b\0cdefgh",
        "products/abcdefghi\u{e9}",
    ] {
        assert!(!taken(path, [1, 1, 9]), "{path:?}");
    }
    assert!(!is_taken_at_a_glance(
        &mut NameReader::new(&ROOT.replace("(default)", "(another)")),
        &name_answer("products/abcdefgh", [1, 1, 9].map(time)),
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_taken_at_a_glance_is_what_is_there(
        collection in "[a-z/_\0\u{e9}]{1,4}",
        id in "[a-z/_0\0\u{e9}]{0,20}",
        times in proptest::array::uniform3((any::<i64>(), 0u32..1_000_000_000)),
        change in (any::<proptest::sample::Index>(), any::<u8>()),
    ) {
        let mut reader = NameReader::new(ROOT);
        let times = times.map(|(seconds, nanos)| Timestamp::new(seconds, nanos));
        let mut answer = name_answer(&format!("{collection}/{id}"), times);
        is_taken_at_a_glance(&mut reader, &answer);
        let (index, byte) = change;
        let index = index.index(answer.len());
        answer[index] = byte;
        is_taken_at_a_glance(&mut reader, &answer);
        is_taken_at_a_glance(&mut reader, &answer[..index]);
    }

    #[test]
    fn every_document_survives(fields in testing::fields()) {
        let body = body_of(&one(fields.clone())).unwrap();
        // prost leaves out a coordinate of -0.0, and takes part in the comparison for that reason only.
        let sent = fields_from_proto(&pb::Document::decode(&one(fields)[..]).unwrap().fields);
        prop_assert_eq!(&body, &canonical::encode(&sent));

        let path = DocumentPath::parse("products/p1").unwrap();
        let mut wire = Vec::new();
        append_document_message(&path, &body, ROOT, &mut wire).unwrap();
        let back = pb::Document::decode(&wire[..]).unwrap();
        prop_assert_eq!(&back.name, &format!("{ROOT}/products/p1"));
        prop_assert_eq!(fields_from_proto(&back.fields), sent);
        prop_assert_eq!(body_of(&wire).unwrap(), body);
    }

    #[test]
    fn field_order_makes_no_difference(fields in testing::fields()) {
        // Every encoding builds a new HashMap, which has an order of its own.
        prop_assert_eq!(body_of(&one(fields.clone())).unwrap(), body_of(&one(fields)).unwrap());
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut batch = DocumentBatch::new();
        let _ = append_document(&bytes, ROOT, &mut batch);
        let _ = append_document(&with_value(&bytes), ROOT, &mut batch);
        let _ = query_answer(&bytes);
        let _ = NameReader::new(ROOT).append(&bytes, &mut batch);
        let _ = batch_get_answer(&bytes);
        let _ = append_document_message(&DocumentPath::parse("a/b").unwrap(), &bytes, ROOT, &mut Vec::new());
        for document in batch.iter() {
            canonical::validate(document.body).unwrap();
        }
    }

    #[test]
    fn mutated_messages_do_no_harm(
        fields in testing::fields(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut wire = one(fields);
        for (index, byte) in changes {
            let index = index.index(wire.len());
            wire[index] = byte;
        }
        let mut batch = DocumentBatch::new();
        let _ = append_document(&wire[..cut.index(wire.len())], ROOT, &mut batch);
        let _ = append_document(&wire, ROOT, &mut batch);
        for document in batch.iter() {
            canonical::validate(document.body).unwrap();
            let path = document.path().unwrap();
            append_document_message(&path, document.body, ROOT, &mut Vec::new()).unwrap();
        }
    }
}
