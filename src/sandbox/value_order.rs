//! Firestore's order of values, which comparisons, sorting and cursors share.
//!
//! Null, booleans, numbers (NaN first, integers and doubles by their value), timestamps, strings, bytes,
//! references, geographical points, arrays, vectors, maps:
//! <https://firebase.google.com/docs/firestore/manage-data/data-types#value_type_ordering>.

use std::cmp::Ordering;

use ::firestore::gcloud_sdk::google::firestore::v1::{MapValue, Value, value::ValueType};

use crate::document::key as keys;

/// The rank of a value's type. Comparisons in filters match within a rank only.
pub(crate) fn rank(value: &Value) -> u8 {
    match &value.value_type {
        None | Some(ValueType::NullValue(_)) => 0,
        Some(ValueType::BooleanValue(_)) => 1,
        Some(ValueType::IntegerValue(_) | ValueType::DoubleValue(_)) => 2,
        Some(ValueType::TimestampValue(_)) => 3,
        Some(ValueType::StringValue(_)) => 4,
        Some(ValueType::BytesValue(_)) => 5,
        Some(ValueType::ReferenceValue(_)) => 6,
        Some(ValueType::GeoPointValue(_)) => 7,
        Some(ValueType::ArrayValue(_)) => 8,
        Some(ValueType::MapValue(map)) => {
            if vector_elements(map).is_some() {
                9
            } else {
                10
            }
        }
        Some(_) => 11,
    }
}

/// The elements of a map that is a vector.
pub(crate) fn vector_elements(map: &MapValue) -> Option<&[Value]> {
    match (
        &map.fields.get("__type__")?.value_type,
        &map.fields.get("value")?.value_type,
    ) {
        (Some(ValueType::StringValue(kind)), Some(ValueType::ArrayValue(array))) if kind == "__vector__" => {
            Some(&array.values)
        }
        _ => None,
    }
}

/// Whether a value is the number that is none.
pub(crate) fn is_nan(value: &Value) -> bool {
    matches!(value.value_type, Some(ValueType::DoubleValue(number)) if number.is_nan())
}

/// Compares two values.
pub(crate) fn compare(a: &Value, b: &Value) -> Ordering {
    use ValueType::{
        ArrayValue, BooleanValue, BytesValue, DoubleValue, GeoPointValue, IntegerValue, MapValue,
        ReferenceValue, StringValue, TimestampValue,
    };
    let by_rank = rank(a).cmp(&rank(b));
    if by_rank.is_ne() {
        return by_rank;
    }
    match (&a.value_type, &b.value_type) {
        (Some(BooleanValue(a)), Some(BooleanValue(b))) => a.cmp(b),
        (Some(IntegerValue(a)), Some(IntegerValue(b))) => a.cmp(b),
        (Some(DoubleValue(a)), Some(DoubleValue(b))) => doubles(*a, *b),
        (Some(IntegerValue(a)), Some(DoubleValue(b))) => integer_to_double(*a, *b),
        (Some(DoubleValue(a)), Some(IntegerValue(b))) => integer_to_double(*b, *a).reverse(),
        (Some(TimestampValue(a)), Some(TimestampValue(b))) => (a.seconds, a.nanos).cmp(&(b.seconds, b.nanos)),
        (Some(StringValue(a)), Some(StringValue(b))) => a.cmp(b),
        (Some(BytesValue(a)), Some(BytesValue(b))) => a.cmp(b),
        (Some(ReferenceValue(a)), Some(ReferenceValue(b))) => keys::key_of(a).cmp(&keys::key_of(b)),
        (Some(GeoPointValue(a)), Some(GeoPointValue(b))) => {
            doubles(a.latitude, b.latitude).then(doubles(a.longitude, b.longitude))
        }
        (Some(ArrayValue(a)), Some(ArrayValue(b))) => sequences(&a.values, &b.values),
        (Some(MapValue(a)), Some(MapValue(b))) => match (vector_elements(a), vector_elements(b)) {
            (Some(a), Some(b)) => a.len().cmp(&b.len()).then_with(|| sequences(a, b)),
            _ => maps(a, b),
        },
        _ => Ordering::Equal,
    }
}

fn sequences(a: &[Value], b: &[Value]) -> Ordering {
    let differing = a
        .iter()
        .zip(b)
        .map(|(a, b)| compare(a, b))
        .find(|order| order.is_ne());
    differing.unwrap_or_else(|| a.len().cmp(&b.len()))
}

fn maps(a: &MapValue, b: &MapValue) -> Ordering {
    let sorted = |map: &MapValue| {
        let mut fields: Vec<_> = map.fields.clone().into_iter().collect();
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        fields
    };
    let (a, b) = (sorted(a), sorted(b));
    for ((name, value), (other_name, other)) in a.iter().zip(&b) {
        let order = name.cmp(other_name).then_with(|| compare(value, other));
        if order.is_ne() {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

fn doubles(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

fn integer_to_double(integer: i64, double: f64) -> Ordering {
    if double.is_nan() {
        return Ordering::Greater;
    }
    // 2^63 is a double; everything from there on is above every integer.
    if double >= 9_223_372_036_854_775_808.0 {
        return Ordering::Less;
    }
    if double < -9_223_372_036_854_775_808.0 {
        return Ordering::Greater;
    }
    let whole = double.trunc();
    integer
        .cmp(&(whole as i64))
        .then_with(|| 0.0_f64.partial_cmp(&(double - whole)).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::firestore::gcloud_sdk::google::firestore::v1::ArrayValue;

    #[test]
    fn values_ascend() {
        let value = |value| Value {
            value_type: Some(value),
        };
        let double = |number| value(ValueType::DoubleValue(number));
        let integer = |number| value(ValueType::IntegerValue(number));
        let array = |values| value(ValueType::ArrayValue(ArrayValue { values }));
        let ascending = [
            value(ValueType::NullValue(0)),
            value(ValueType::BooleanValue(false)),
            value(ValueType::BooleanValue(true)),
            double(f64::NAN),
            double(f64::NEG_INFINITY),
            integer(i64::MIN),
            double(-1.5),
            integer(-1),
            double(0.5),
            integer(1),
            double(1.5),
            integer(9_007_199_254_740_993),
            double(9_007_199_254_740_994.0),
            integer(i64::MAX),
            double(9_223_372_036_854_775_808.0),
            double(f64::INFINITY),
            value(ValueType::StringValue(String::new())),
            value(ValueType::StringValue("a".into())),
            value(ValueType::BytesValue(vec![])),
            array(vec![]),
            array(vec![integer(1)]),
            array(vec![integer(1), integer(0)]),
            array(vec![integer(2)]),
            value(ValueType::MapValue(MapValue::default())),
        ];
        for (index, a) in ascending.iter().enumerate() {
            for (other, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), index.cmp(&other), "{a:?} {b:?}");
            }
        }
        assert!(compare(&double(-0.0), &integer(0)).is_eq());
        assert!(compare(&double(f64::NAN), &double(f64::NAN)).is_eq());
    }
}
