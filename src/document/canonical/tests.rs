use proptest::prelude::*;

use super::*;
use crate::document::{Timestamp, testing};

fn defect(body: &[u8]) -> Defect {
    let error = decode(body).unwrap_err();
    assert_eq!(validate(body).unwrap_err(), error, "{body:02x?}");
    error.defect
}

/// A map with the one field "a", whose value is `value`.
fn field(value: &[u8]) -> Vec<u8> {
    [&[0x81, 0xa1, b'a'], value].concat()
}

#[test]
fn writes_what_the_format_says() {
    let cases: Vec<(Value, Vec<u8>)> = vec![
        (Value::Null, vec![0xc0]),
        (Value::Boolean(true), vec![0xc3]),
        (Value::Integer(127), vec![0x7f]),
        (Value::Integer(128), vec![0xcc, 0x80]),
        (Value::Integer(256), vec![0xcd, 1, 0]),
        (Value::Integer(65_536), vec![0xce, 0, 1, 0, 0]),
        (Value::Integer(1 << 32), vec![0xcf, 0, 0, 0, 1, 0, 0, 0, 0]),
        (Value::Integer(-32), vec![0xe0]),
        (Value::Integer(-33), vec![0xd0, 0xdf]),
        (Value::Integer(-129), vec![0xd1, 0xff, 0x7f]),
        (Value::Integer(-32_769), vec![0xd2, 0xff, 0xff, 0x7f, 0xff]),
        (Value::Double(1.0), vec![0xcb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]),
        (
            Value::Timestamp(Timestamp::new(1, 0)),
            vec![0xd6, 0xff, 0, 0, 0, 1],
        ),
        (
            Value::Timestamp(Timestamp::new(1, 1)),
            vec![0xd7, 0xff, 0, 0, 0, 4, 0, 0, 0, 1],
        ),
        (
            Value::Timestamp(Timestamp::new(-1, 2)),
            [&[0xc7, 12, 0xff, 0, 0, 0, 2][..], &[0xff; 8]].concat(),
        ),
        (Value::Bytes(vec![1, 2]), vec![0xc4, 2, 1, 2]),
        (
            Value::Reference(Reference::Relative(DocumentPath::parse("a/b").unwrap())),
            vec![0xc7, 3, 1, b'a', b'/', b'b'],
        ),
        (
            Value::Reference(Reference::Absolute("abcd".to_owned())),
            vec![0xd6, 2, b'a', b'b', b'c', b'd'],
        ),
    ];
    for (value, bytes) in cases {
        let mut out = Vec::new();
        encode_value(&value, &mut out);
        assert_eq!(out, bytes, "{value:?}");
        let fields = Fields::from([("a".to_owned(), value)]);
        assert_eq!(decode(&field(&bytes)).unwrap(), fields);
    }
    assert_eq!(encode(&Fields::new()), EMPTY);
}

#[test]
fn refuses_every_other_form() {
    let long = [0xd9, 31].iter().copied().chain([b'x'; 31]).collect::<Vec<_>>();
    let cases: Vec<(Vec<u8>, Defect)> = vec![
        (vec![], Defect::Truncated),
        (vec![0xc0], Defect::NotAMap),
        (vec![0x80, 0x80], Defect::TrailingBytes),
        (vec![0xde, 0, 0], Defect::NotSmallest),
        (vec![0x81, 0x01, 0x01], Defect::KeyType),
        (vec![0x82, 0xa1, b'b', 0xc0, 0xa1, b'a', 0xc0], Defect::KeyOrder),
        (vec![0x82, 0xa1, b'a', 0xc0, 0xa1, b'a', 0xc0], Defect::KeyOrder),
        (vec![0x81, 0xa1, 0xff, 0xc0], Defect::Utf8),
        (field(&[0xa1, 0xff]), Defect::Utf8),
        (field(&long), Defect::NotSmallest),
        (field(&[0xcc, 0x7f]), Defect::NotSmallest),
        (field(&[0xcd, 0, 0xff]), Defect::NotSmallest),
        (field(&[0xd0, 0xff]), Defect::NotSmallest),
        (field(&[0xd0, 0x05]), Defect::NotSmallest),
        (field(&[0xd3, 0, 0, 0, 1, 0, 0, 0, 0]), Defect::NotSmallest),
        (field(&[0xcf, 0xff, 0, 0, 0, 0, 0, 0, 0]), Defect::IntegerRange),
        (field(&[0xca, 0, 0, 0, 0]), Defect::UnknownType(0xca)),
        (field(&[0xc1]), Defect::UnknownType(0xc1)),
        (field(&[0xd4, 9, 0]), Defect::UnknownType(9)),
        (field(&[0xd4, 1, b'a']), Defect::ReferencePath),
        (field(&[0xc7, 4, 2, 0, 0, 0, 0]), Defect::NotSmallest),
        (field(&[0xd7, 0xff, 0, 0, 0, 0, 0, 0, 0, 1]), Defect::NotSmallest),
        (
            field(&[0xd7, 0xff, 0xff, 0xff, 0xff, 0xfc, 0, 0, 0, 1]),
            Defect::Nanoseconds,
        ),
        (field(&[0xdd, 0xff, 0xff, 0xff, 0xff]), Defect::Truncated),
        (field(&[0xdf, 0xff, 0xff, 0xff, 0xff]), Defect::Truncated),
        (field(&[0xc6, 0xff, 0xff, 0xff, 0xff]), Defect::Truncated),
        (field(&[0xdc, 0, 2, 0xc0, 0xc0]), Defect::NotSmallest),
    ];
    for (body, expected) in cases {
        assert_eq!(defect(&body), expected, "{body:02x?}");
    }
}

#[test]
fn says_where_a_fault_is() {
    let body = [0x81, 0xa1, b'a', 0x92, 0xc0, 0x81, 0xa1, b'b', 0xc1];
    assert_eq!(
        decode(&body).unwrap_err().to_string(),
        "not a document in canonical form: no value has the MessagePack type 0xc1 (at a[1].b)"
    );
}

#[test]
fn nests_as_deep_as_allowed_and_no_deeper() {
    for array in [false, true] {
        let fields = |depth| Fields::from([("a".to_owned(), testing::nested(depth, array))]);
        assert_eq!(decode(&encode(&fields(MAX_DEPTH))).unwrap(), fields(MAX_DEPTH));
        assert_eq!(defect(&encode(&fields(MAX_DEPTH + 1))), Defect::TooDeep);
    }
    assert_eq!(defect(&field(&vec![0x91; 1_000_000])), Defect::TooDeep);
}

#[test]
fn visits_references_wherever_they_are() {
    let relative = |path: &str| Value::Reference(Reference::Relative(DocumentPath::parse(path).unwrap()));
    let absolute = Value::Reference(Reference::Absolute("elsewhere".to_owned()));
    let inner = Fields::from([("x".to_owned(), absolute), ("y".to_owned(), Value::Integer(1))]);
    let body = encode(&Fields::from([
        (
            "a".to_owned(),
            Value::Array(vec![relative("a/b"), Value::Map(inner)]),
        ),
        ("b".to_owned(), relative("c/d")),
    ]));
    let mut seen = Vec::new();
    for_each_reference(&body, |reference| seen.push(reference)).unwrap();
    assert_eq!(
        seen,
        [
            ReferenceRef::Relative("a/b"),
            ReferenceRef::Absolute("elsewhere"),
            ReferenceRef::Relative("c/d")
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_document_reads_back(fields in testing::fields()) {
        let body = encode(&fields);
        prop_assert_eq!(&decode(&body).unwrap(), &fields);
        validate(&body).unwrap();
    }

    #[test]
    fn what_is_accepted_is_what_would_be_written(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let body = [&[0x81, 0xa0][..], &bytes].concat();
        for body in [&body, &bytes] {
            let decoded = decode(body);
            prop_assert_eq!(decoded.is_ok(), validate(body).is_ok());
            if let Ok(fields) = decoded {
                prop_assert_eq!(&encode(&fields), body);
            }
        }
    }

    #[test]
    fn mutations_are_refused_or_another_document(
        fields in testing::fields(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut body = encode(&fields);
        for (index, byte) in changes {
            let index = index.index(body.len());
            body[index] = byte;
        }
        let cut = &body[..cut.index(body.len())];
        for body in [&body[..], cut] {
            let decoded = decode(body);
            prop_assert_eq!(decoded.clone().err(), validate(body).err());
            if let Ok(fields) = decoded {
                prop_assert_eq!(&encode(&fields)[..], body);
            }
        }
    }
}
