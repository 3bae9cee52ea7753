//! Small pieces of the API's own types: values for filters and cursors, times, the field that is the name.

use ::firestore::gcloud_sdk::google::firestore::v1::structured_query::FieldReference;
use ::firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use ::firestore::gcloud_sdk::google::firestore::v1::{ArrayValue, MapValue, Value as ProtoValue};
use ::firestore::gcloud_sdk::google::r#type::LatLng;
use ::firestore::gcloud_sdk::prost_types;

use crate::document::{Reference, Timestamp, Value};

/// The name by which queries know a document's name.
pub const NAME_FIELD: &str = "__name__";

/// The field that is a document's name.
pub(super) fn name_field() -> FieldReference {
    FieldReference {
        field_path: NAME_FIELD.to_owned(),
    }
}

/// A time as the API has it.
pub(super) fn protobuf_time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.seconds,
        nanos: i32::try_from(time.nanos).unwrap_or(0),
    }
}

/// A time that the API gave.
pub(super) fn timestamp(time: &prost_types::Timestamp) -> Timestamp {
    Timestamp::new(time.seconds, u32::try_from(time.nanos).unwrap_or(0))
}

/// A value as the API has it; relative references point below `root`.
pub(super) fn proto_value(value: &Value, root: &str) -> ProtoValue {
    let value_type = match value {
        Value::Null => ValueType::NullValue(0),
        Value::Boolean(value) => ValueType::BooleanValue(*value),
        Value::Integer(value) => ValueType::IntegerValue(*value),
        Value::Double(value) => ValueType::DoubleValue(*value),
        Value::Timestamp(value) => ValueType::TimestampValue(protobuf_time(*value)),
        Value::String(value) => ValueType::StringValue(value.clone()),
        Value::Bytes(value) => ValueType::BytesValue(value.clone()),
        Value::Reference(Reference::Relative(path)) => ValueType::ReferenceValue(format!("{root}/{path}")),
        Value::Reference(Reference::Absolute(name)) => ValueType::ReferenceValue(name.clone()),
        Value::GeoPoint(point) => ValueType::GeoPointValue(LatLng {
            latitude: point.latitude,
            longitude: point.longitude,
        }),
        Value::Array(values) => ValueType::ArrayValue(ArrayValue {
            values: values.iter().map(|value| proto_value(value, root)).collect(),
        }),
        Value::Map(fields) => ValueType::MapValue(MapValue {
            fields: fields
                .iter()
                .map(|(key, value)| (key.clone(), proto_value(value, root)))
                .collect(),
        }),
    };
    ProtoValue {
        value_type: Some(value_type),
    }
}
