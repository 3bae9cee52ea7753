//! Values in the API's own types, for filters and cursors.

use ::firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use ::firestore::gcloud_sdk::google::firestore::v1::{ArrayValue, MapValue, Value as ProtoValue};
use ::firestore::gcloud_sdk::google::r#type::LatLng;

use super::scan::protobuf_time;
use crate::document::{Reference, Value};

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
