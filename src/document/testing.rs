//! Documents for property tests, with everything that has broken a backup tool before.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::{DocumentPath, Fields, GeoPoint, Reference, Timestamp, Value};

pub(crate) const ROOT: &str = "projects/shop/databases/(default)/documents";

pub(crate) fn double() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        any::<i32>().prop_map(f64::from),
        (-1000i32..1000).prop_map(|number| f64::from(number) / 8.0),
        proptest::sample::select(vec![
            0.0,
            -0.0,
            5.0,
            1e300,
            9.3e18,
            1.8446744073709552e19,
            f64::MIN_POSITIVE,
            5e-324,
            f64::MAX,
            f64::NAN,
            -f64::NAN,
            f64::from_bits(0x7ff0_0000_0000_0001),
            f64::INFINITY,
            f64::NEG_INFINITY,
        ]),
    ]
}

pub(crate) fn timestamp() -> impl Strategy<Value = Timestamp> {
    let seconds = prop_oneof![
        -62_135_596_800i64..=253_402_300_799,
        proptest::sample::select(vec![
            -62_135_596_800,
            -1,
            0,
            u32::MAX as i64,
            u32::MAX as i64 + 1,
            (1 << 34) - 1,
            1 << 34,
            253_402_300_799,
        ]),
    ];
    let nanos = prop_oneof![Just(0), 0u32..1_000_000_000, Just(123_456_000), Just(999_999_999)];
    (seconds, nanos).prop_map(|(seconds, nanos)| Timestamp::new(seconds, nanos))
}

fn reference() -> impl Strategy<Value = Reference> {
    let relative = |path: &str| Reference::Relative(DocumentPath::parse(path).unwrap());
    prop_oneof![
        "[a-z]{1,3}/[a-z0-9é]{1,20}".prop_map(move |path| relative(&path)),
        Just(relative("products/p1/reviews/__id7__")),
        proptest::sample::select(vec![
            "",
            "products/p1",
            "projects/other/databases/(default)/documents/a/b",
            "projects/shop/databases/second/documents/a/b",
            "projects/shop/databases/(default)/documents",
            "projects/shop/databases/(default)/documents/",
            "projects/shop/databases/(default)/documents/a",
            "projects/shop/databases/(default)/documents/a//b/c",
            "projects/shop/databases/(default)/documentsX/a/b",
        ])
        .prop_map(|name| Reference::Absolute(name.to_owned())),
    ]
}

pub(crate) fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,3}",
        ".{0,10}",
        "[a-z]{8}[\0a]{0,2}",
        "[a-z]{30,40}",
        proptest::sample::select(vec![
            "",
            "a.b",
            "`",
            "\\",
            "\0",
            "a\0",
            "id",
            "$",
            "$map",
            "$double",
            "$timestamp",
            "$bytes",
            "$reference",
            "$geopoint",
            "$collections",
            "$fields",
            "$missing",
            "__type__",
            "__int__",
            "__proto__",
            "é",
        ])
        .prop_map(str::to_owned),
    ]
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Boolean),
        any::<i64>().prop_map(Value::Integer),
        (0u32..64, any::<i64>()).prop_map(|(shift, number)| Value::Integer(number >> shift)),
        (0u32..64, -2i64..2).prop_map(|(shift, delta)| Value::Integer((1i64 << shift).wrapping_add(delta))),
        double().prop_map(Value::Double),
        timestamp().prop_map(Value::Timestamp),
        ".{0,12}".prop_map(Value::String),
        proptest::sample::select(vec![31, 32, 127, 128, 255, 256, 65_535, 65_536])
            .prop_map(|length| Value::String("x".repeat(length))),
        vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
        proptest::sample::select(vec![255, 256, 65_535, 65_536])
            .prop_map(|length| Value::Bytes(vec![7; length])),
        reference().prop_map(Value::Reference),
        (double(), double())
            .prop_map(|(latitude, longitude)| Value::GeoPoint(GeoPoint { latitude, longitude })),
        vec(double(), 0..20).prop_map(|numbers| Value::Map(Fields::from([
            ("__type__".to_owned(), Value::String("__vector__".to_owned())),
            (
                "value".to_owned(),
                Value::Array(numbers.into_iter().map(Value::Double).collect())
            ),
        ]))),
    ]
}

pub(crate) fn value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(5, 24, 8, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..18).prop_map(Value::Array),
            btree_map(key(), inner.clone(), 0..20).prop_map(Value::Map),
            (key(), inner).prop_map(|(key, value)| Value::Map(Fields::from([(key, value)]))),
        ]
    })
}

pub(crate) fn fields() -> impl Strategy<Value = Fields> {
    btree_map(key(), value(), 0..18)
}

/// A value nested so that the innermost is at `depth` when the outermost is a field.
pub(crate) fn nested(depth: usize, array: bool) -> Value {
    (1..depth).fold(Value::Null, |value, _| {
        if array {
            Value::Array(vec![value])
        } else {
            Value::Map(Fields::from([("m".to_owned(), value)]))
        }
    })
}

/// A document as a shop has them, of about 0.9 KB.
pub(crate) fn retail_document() -> Fields {
    let text = |text: &str| Value::String(text.to_owned());
    let map = |entries: Vec<(&str, Value)>| {
        Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        )
    };
    let Value::Map(fields) = map(vec![
        (
            "name",
            text("Wireless noise-cancelling headphones, over-ear, black"),
        ),
        ("sku", text("WH-1000XM5-B-EU")),
        ("price", Value::Double(349.99)),
        ("currency", text("EUR")),
        ("in_stock", Value::Boolean(true)),
        ("quantity", Value::Integer(137)),
        (
            "category",
            Value::Reference(Reference::Relative(
                DocumentPath::parse("categories/audio").unwrap(),
            )),
        ),
        (
            "tags",
            Value::Array(["audio", "bluetooth", "travel", "bestseller"].map(text).to_vec()),
        ),
        (
            "created_at",
            Value::Timestamp(Timestamp::new(1_751_198_400, 123_456_000)),
        ),
        ("updated_at", Value::Timestamp(Timestamp::new(1_751_284_800, 0))),
        (
            "description",
            text(
                &"Thirty hours of battery life, quick charge, multipoint pairing and touch controls. "
                    .repeat(4),
            ),
        ),
        (
            "dimensions",
            map(vec![
                ("width", Value::Double(18.5)),
                ("height", Value::Double(20.25)),
                ("depth", Value::Double(7.75)),
                ("unit", text("cm")),
            ]),
        ),
        (
            "supplier",
            map(vec![
                ("name", text("Müller Elektronik GmbH")),
                ("email", text("orders@mueller.example")),
                (
                    "location",
                    Value::GeoPoint(GeoPoint {
                        latitude: 52.520008,
                        longitude: 13.404954,
                    }),
                ),
                ("rating", Value::Double(4.7)),
            ]),
        ),
        (
            "ratings",
            map(vec![
                ("average", Value::Double(4.6)),
                ("count", Value::Integer(1289)),
                (
                    "histogram",
                    Value::Array([12, 31, 88, 310, 848].map(Value::Integer).to_vec()),
                ),
            ]),
        ),
        ("discontinued", Value::Null),
    ]) else {
        unreachable!()
    };
    fields
}
