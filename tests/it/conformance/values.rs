//! Values come back bit for bit, and those that cannot be stored are refused.

use firestore::gcloud_sdk::google::firestore::v1::{Value, value::ValueType};

use super::client::*;

fn bits(value: &Value) -> String {
    match &value.value_type {
        Some(ValueType::DoubleValue(number)) => format!("{:x}", number.to_bits()),
        Some(ValueType::ArrayValue(array)) => array.values.iter().map(bits).collect::<Vec<_>>().join(","),
        Some(ValueType::MapValue(map)) => {
            let mut fields: Vec<_> = map
                .fields
                .iter()
                .map(|(name, value)| format!("{name}:{}", bits(value)))
                .collect();
            fields.sort();
            fields.join(",")
        }
        other => format!("{other:?}"),
    }
}

pub(crate) async fn values_come_back_bit_for_bit(server: &Server) {
    let deepest = (0..19).fold(integer(1), |inside, _| map(&[("m", inside)]));
    let values = [
        null(),
        boolean(true),
        integer(i64::MIN),
        integer(i64::MAX),
        double(0.0),
        double(-0.0),
        double(5.0),
        double(f64::MIN_POSITIVE / 2.0),
        double(f64::INFINITY),
        double(f64::NEG_INFINITY),
        double(f64::NAN),
        timestamp(-62_135_596_800, 0),
        timestamp(253_402_300_799, 999_999_000),
        text(""),
        text("\0 é 😀 \u{ffff}"),
        bytes(&[]),
        bytes(&[0, 255]),
        server.reference("a/b"),
        reference("projects/other/databases/(default)/documents/a/b"),
        reference("projects/other/databases/named/documents/a/__id7__"),
        point(-90.0, 180.0),
        array(vec![]),
        array(vec![map(&[("x", array(vec![]))]), null()]),
        map(&[]),
        map(&[("", null())][..0]),
        map(&[
            ("a.b", integer(1)),
            ("`", integer(2)),
            ("é", integer(3)),
            ("____", integer(4)),
        ]),
        vector(&[1.0, -0.0]),
        vector(&vec![1.5; 2048]),
        deepest,
    ];
    let fields: Vec<(String, Value)> = values
        .iter()
        .enumerate()
        .map(|(number, value)| (format!("v{number}"), value.clone()))
        .collect();
    let fields: Vec<(&str, Value)> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    server.put("a/values", &fields).await;
    let got = server.get("a/values").await.unwrap();
    let streamed = server.run(kindless()).await.unwrap();
    assert_eq!(got.fields.len(), values.len());
    for (name, value) in &fields {
        assert_eq!(bits(&got.fields[*name]), bits(value), "{name}");
        assert_eq!(bits(&streamed[0].fields[*name]), bits(value), "{name}");
    }
}

pub(crate) async fn timestamps_are_cut_to_microseconds(server: &Server) {
    let nested = map(&[("t", timestamp(5, 123_456_999))]);
    server
        .put(
            "a/t",
            &[("t", timestamp(1, 123_456_789)), ("m", nested), ("n", integer(1))],
        )
        .await;
    let got = server.get("a/t").await.unwrap().fields;
    assert_eq!(got["t"], timestamp(1, 123_456_000));
    assert_eq!(got["m"], map(&[("t", timestamp(5, 123_456_000))]));
    assert_eq!(got["n"], integer(1));
}

/// What is wrong with a value fails the whole request, so that nothing of it is written.
pub(crate) async fn bad_values_fail_the_request(server: &Server) {
    let long_name = "x".repeat(1501);
    let too_deep = (0..21).fold(integer(1), |inside, _| map(&[("m", inside)]));
    let elements = |values| map(&[("__type__", text("__vector__")), ("value", array(values))]);
    let cases = [
        ("__x__", integer(1)),
        ("", integer(1)),
        (&long_name, integer(1)),
        ("unset", Value::default()),
        ("empty-key", map(&[("", integer(1))])),
        ("reserved-key", map(&[("__x__", integer(1))])),
        ("type", map(&[("__type__", text("x"))])),
        ("vector-of-integers", elements(vec![integer(1)])),
        ("vector-of-nothing", elements(vec![])),
        ("vector-too-long", elements(vec![double(1.0); 2049])),
        ("array-in-array", array(vec![array(vec![])])),
        ("point", point(91.0, 0.0)),
        ("point-nan", point(f64::NAN, 0.0)),
        ("time-before", timestamp(-62_135_596_801, 0)),
        ("time-after", timestamp(253_402_300_800, 0)),
        ("time-nanos", timestamp(1, -1)),
        ("reference", reference("a/b")),
        ("reference-empty", reference("")),
        ("reference-to-collection", server.reference("a")),
        ("reference-to-root", reference(&server.root())),
        ("reference-reserved", server.reference("a/__x__")),
        (
            "field-reference",
            value(ValueType::FieldReferenceValue("x".to_owned())),
        ),
        ("deep", too_deep),
        ("long-text", text(&"x".repeat(1_048_488))),
        ("long-bytes", bytes(&vec![1; 1_048_488])),
    ];
    for (name, value) in cases {
        let writes = vec![
            server.set("a/good", &[]),
            server.set("a/bad", &[(name, value.clone())]),
        ];
        assert_eq!(code(server.try_batch(writes).await), 3, "{name}");
        let writes = vec![server.set("a/good", &[]), server.set("a/bad", &[(name, value)])];
        assert_eq!(code(server.commit(writes).await), 3, "{name}");
    }
    assert_eq!(code(server.get("a/good").await), 5);
}

/// A document that is too large as a whole fails alone.
pub(crate) async fn large_documents_fail_alone(server: &Server) {
    let large = array(vec![text(&"x".repeat(530_000)), text(&"x".repeat(530_000))]);
    let fits = array(vec![text(&"x".repeat(524_000)), text(&"x".repeat(524_000))]);
    let writes = vec![
        server.set("a/good", &[]),
        server.set("a/large", &[("x", large)]),
        server.set("a/fits", &[("x", fits)]),
    ];
    let results = server.batch(writes).await;
    assert_eq!(
        results
            .iter()
            .map(|result| result.as_ref().err().copied())
            .collect::<Vec<_>>(),
        [None, Some(3), None]
    );
    let longest = server.set("a/x", &[("x", text(&"x".repeat(1_048_487)))]);
    assert_eq!(
        code(server.try_batch(vec![longest]).await),
        0,
        "the value may be that long, whatever the document may"
    );
}
