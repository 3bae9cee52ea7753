use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::document::canonical::MAX_DEPTH;
use crate::document::{DocumentPath, GeoPoint, Reference, Timestamp, testing};

fn reference(path: &str) -> Value {
    Value::Reference(Reference::Relative(DocumentPath::parse(path).unwrap()))
}

fn map(entries: &[(&str, Value)]) -> Value {
    Value::Map(
        entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect(),
    )
}

#[test]
fn writes_and_reads_the_documented_forms() {
    let point = GeoPoint {
        latitude: 52.52,
        longitude: 13.0,
    };
    let cases = [
        (Value::Null, json!(null)),
        (Value::Boolean(true), json!(true)),
        (Value::Integer(i64::MIN), json!(i64::MIN)),
        (Value::Integer(i64::MAX), json!(i64::MAX)),
        (Value::Double(349.99), json!(349.99)),
        (Value::Double(5.0), json!({"$double": "5.0"})),
        (Value::Double(-0.0), json!({"$double": "-0.0"})),
        (Value::Double(1e300), json!({"$double": "1e300"})),
        (Value::Double(f64::NAN), json!({"$double": "NaN"})),
        (
            Value::Double(-f64::NAN),
            json!({"$double": "NaN:fff8000000000000"}),
        ),
        (Value::Double(f64::NEG_INFINITY), json!({"$double": "-Infinity"})),
        (
            Value::Timestamp(Timestamp::new(1_751_198_400, 123_456_000)),
            json!({"$timestamp": "2025-06-29T12:00:00.123456Z"}),
        ),
        (
            Value::Timestamp(Timestamp::new(253_402_300_800, 1)),
            json!({"$timestamp": {"seconds": 253_402_300_800_i64, "nanos": 1}}),
        ),
        (Value::Bytes(vec![0, 1, 2]), json!({"$bytes": "AAEC"})),
        (reference("products/p1"), json!({"$reference": "products/p1"})),
        (
            Value::Reference(Reference::Absolute("elsewhere".to_owned())),
            json!({"$absoluteReference": "elsewhere"}),
        ),
        (
            Value::GeoPoint(point),
            json!({"$geopoint": {"latitude": 52.52, "longitude": {"$double": "13.0"}}}),
        ),
        (
            map(&[("$double", Value::Null)]),
            json!({"$map": {"$double": null}}),
        ),
        (map(&[("$map", map(&[]))]), json!({"$map": {"$map": {}}})),
        (
            map(&[("$double", Value::Null), ("a", Value::Null)]),
            json!({"$double": null, "a": null}),
        ),
        (
            map(&[("$a", Value::Double(1.0)), ("$double", Value::Null)]),
            json!({"$a": {"$double": "1.0"}, "$double": null}),
        ),
        (map(&[]), json!({})),
    ];
    for (value, json) in cases {
        assert_eq!(value_to_json(&value).unwrap(), json, "{value:?}");
        assert_eq!(value_from_json(&json).unwrap(), value, "{json}");
    }
}

#[test]
fn fields_are_never_a_typed_form() {
    let fields = Fields::from([("$double".to_owned(), Value::String("5.0".to_owned()))]);
    let json = fields_to_json(&fields).unwrap();
    assert_eq!(json, json!({"$double": "5.0"}));
    assert_eq!(fields_from_json(&json).unwrap(), fields);
}

#[test]
fn reads_more_than_it_writes() {
    for (text, value) in [
        ("5.0", Value::Double(5.0)),
        ("-0.0", Value::Double(-0.0)),
        ("1e+30", Value::Double(1e30)),
        (
            "[18446744073709551616.0]",
            Value::Array(vec![Value::Double(18446744073709551616.0)]),
        ),
        (
            r#"{"$timestamp":"2025-06-29T14:00:00+02:00"}"#,
            Value::Timestamp(Timestamp::new(1_751_198_400, 0)),
        ),
        (
            r#"{"$geopoint":{"longitude":2,"latitude":1}}"#,
            Value::GeoPoint(GeoPoint {
                latitude: 1.0,
                longitude: 2.0,
            }),
        ),
    ] {
        assert_eq!(value_from_str(text).unwrap(), value, "{text}");
    }
}

#[test]
fn errors_say_what_and_where() {
    let cases = [
        (
            r#"{"a": [1e30, {"b c": 9223372036854775808}]}"#,
            "the integer 9223372036854775808 does not fit 64 bits; for a double write \
             {\"$double\": \"9223372036854775808\"}, else a string (at a[1].`b c`)",
        ),
        (
            r#"{"t": "-99999999999999999999", "a": [1e30, {"$q": -99999999999999999999, "b": 1}]}"#,
            "the integer -99999999999999999999 does not fit 64 bits; for a double write \
             {\"$double\": \"-99999999999999999999\"}, else a string (at a[1].$q)",
        ),
        (
            r#"{"a": {"$dobule": "5"}}"#,
            "`$dobule` is not the name of a typed form; a map with this one key is \
             written {\"$map\": {\"$dobule\": …}} (at a)",
        ),
        (r#"{"a": {"b": 1, "b": 2}}"#, "the key is there twice (at a.b)"),
        (
            r#"{"a": {"$bytes": "A"}}"#,
            "`$bytes` must hold base64 with padding (at a)",
        ),
        (
            r#"{"a": [{"$reference": "a"}]}"#,
            "`$reference` must hold a document path such as \"products/p1\" (at a[0])",
        ),
        (
            r#"{"a": {"$double": "inf"}}"#,
            "`$double` must hold a number in quotes, \"NaN\", \"Infinity\" or \"-Infinity\" (at a)",
        ),
        (
            r#"{"a": {"$map": {"$x": {"$y": 1}}}}"#,
            "`$y` is not the name of a typed form; a map with this one key is \
             written {\"$map\": {\"$y\": …}} (at a.`$x`)",
        ),
        (
            r#"{"a": {"$geopoint": {"latitude": 1}}}"#,
            "`$geopoint` must hold the numbers `latitude` and `longitude` (at a)",
        ),
        (r#"{"a": "\ud800"}"#, "unexpected end of hex escape (at a)"),
        (
            r#"{"a": 1"#,
            "not valid JSON: EOF while parsing an object at line 1 column 7",
        ),
        (
            r#"{"a": 1} x"#,
            "not valid JSON: trailing characters at line 1 column 10",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(
            fields_from_str(text).unwrap_err().to_string(),
            message.replace("a[1].$q", "a[1].`$q`"),
            "{text}"
        );
    }
    for text in [
        r#"{"$timestamp":"2025-06-29"}"#,
        r#"{"$timestamp":"2025-06-29T12:00:00.1234567891Z"}"#,
        r#"{"$timestamp":"2016-12-31T23:59:60Z"}"#,
        r#"{"$timestamp":{"seconds":1,"nanos":1000000000}}"#,
        r#"{"$double":"NaN:7ff0000000000000"}"#,
        r#"{"$double":"NaN:+ff8000000000001"}"#,
        r#"{"$double":"1e999"}"#,
        r#"{"$double":5}"#,
        r#"{"$map":5}"#,
        "1e999",
        "18446744073709551615",
        "123456789012345678901234567890",
    ] {
        assert!(value_from_str(text).is_err(), "{text}");
    }
}

#[test]
fn the_seeds_are_as_strict_within_a_larger_text() {
    let mut json = serde_json::Deserializer::from_str(r#"{"a": 99999999999999999999}"#);
    let error = serde::de::DeserializeSeed::deserialize(FieldsSeed, &mut json).unwrap_err();
    assert!(error.to_string().contains("99999999999999999999"), "{error}");
}

#[test]
fn nests_as_deep_as_allowed_and_no_deeper() {
    let escaped = |depth| (1..depth).fold(Value::Null, |value, _| map(&[("$m", value)]));
    for nested in [
        &(|depth| testing::nested(depth, true)) as &dyn Fn(usize) -> Value,
        &|depth| testing::nested(depth, false),
        &escaped,
    ] {
        let text = serde_json::to_string(&ValueJson(&nested(MAX_DEPTH))).unwrap();
        assert_eq!(value_from_str(&text).unwrap(), nested(MAX_DEPTH));
        assert!(value_to_json(&nested(MAX_DEPTH + 1)).is_err());
    }
    let deep = format!("{}{}", "[".repeat(MAX_DEPTH + 1), "]".repeat(MAX_DEPTH + 1));
    let error = value_from_str(&deep).unwrap_err().to_string();
    assert!(error.starts_with("values nest deeper"), "{error}");
    for bracket in ["[", r#"{"a":"#, r#"{"$map":"#] {
        assert!(value_from_str(&bracket.repeat(100_000)).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_document_survives(fields in testing::fields()) {
        let body = canonical::encode(&fields);
        let text = serde_json::to_string(&FieldsJson::new(&body)).unwrap();
        prop_assert_eq!(&fields_from_str(&text).unwrap(), &fields);
        let pretty = serde_json::to_string_pretty(&FieldsJson::new(&body)).unwrap();
        prop_assert_eq!(canonical::encode(&fields_from_str(&pretty).unwrap()), body);
        prop_assert_eq!(fields_from_json(&fields_to_json(&fields).unwrap()).unwrap(), fields);
    }

    #[test]
    fn every_value_survives(value in testing::value()) {
        prop_assert_eq!(value_from_json(&value_to_json(&value).unwrap()).unwrap(), value);
    }

    #[test]
    fn doubles_keep_their_bits(value in testing::double()) {
        let text = serde_json::to_string(&ValueJson(&Value::Double(value))).unwrap();
        prop_assert_eq!(value_from_str(&text).unwrap(), Value::Double(value));
    }

    #[test]
    fn whatever_is_read_is_written_to_read_the_same(
        text in "[\\[\\]{}\",:$0-9eE.+a-d \\\\-]{0,40}|\\{\"\\$(map|double|timestamp|geopoint|bytes)\":[\\[\\]{}\",:$0-9eE. -]{0,20}\\}",
    ) {
        if let Ok(value) = value_from_str(&text) {
            prop_assert_eq!(value_from_json(&value_to_json(&value).unwrap()).unwrap(), value);
        }
    }

    #[test]
    fn bodies_that_are_not_canonical_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let written = serde_json::to_string(&FieldsJson::new(&bytes));
        prop_assert_eq!(written.is_ok(), canonical::validate(&bytes).is_ok());
    }
}
