//! Field transforms: values that the server makes from what is there.

use ::firestore::gcloud_sdk::google::firestore::v1::document_transform::FieldTransform;
use ::firestore::gcloud_sdk::google::firestore::v1::document_transform::field_transform::TransformType;
use ::firestore::gcloud_sdk::google::firestore::v1::{ArrayValue, Value, value::ValueType};
use tonic::Status;

use super::database::{Micros, timestamp};
use super::value_order::{compare, rank};
use super::values::{FieldPath, Tree};

/// Applies transforms in their order, and returns what each gives back.
pub(crate) fn apply(
    transforms: &[FieldTransform],
    tree: &mut Tree,
    time: Micros,
) -> Result<Vec<Value>, Status> {
    let mut results = Vec::with_capacity(transforms.len());
    for transform in transforms {
        let path = FieldPath::parse(&transform.field_path)?;
        let operation = transform
            .transform_type
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("A field transform needs a transform type."))?;
        let current = path.get(tree);
        let (new, result) = transformed(operation, current, time)?;
        path.set(tree, Some(new));
        results.push(result);
    }
    Ok(results)
}

/// Checks transforms as far as that needs no document.
pub(crate) fn check(transforms: &[FieldTransform]) -> Result<(), Status> {
    for transform in transforms {
        FieldPath::parse(&transform.field_path)?;
        match &transform.transform_type {
            None => {
                return Err(Status::invalid_argument(
                    "A field transform needs a transform type.",
                ));
            }
            Some(
                TransformType::Increment(value)
                | TransformType::Maximum(value)
                | TransformType::Minimum(value),
            ) => {
                number(value)?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn value(value: ValueType) -> Value {
    Value {
        value_type: Some(value),
    }
}

fn transformed(
    operation: &TransformType,
    current: Option<&Value>,
    time: Micros,
) -> Result<(Value, Value), Status> {
    let null = value(ValueType::NullValue(0));
    let new = match operation {
        TransformType::SetToServerValue(_) => {
            // Server time has milliseconds only, as the documentation says and the emulator does.
            value(ValueType::TimestampValue(timestamp(time - time.rem_euclid(1000))))
        }
        TransformType::Increment(by) => added(current, number(by)?),
        TransformType::Maximum(other) => chosen(current, number(other)?, std::cmp::Ordering::Less),
        TransformType::Minimum(other) => chosen(current, number(other)?, std::cmp::Ordering::Greater),
        TransformType::AppendMissingElements(elements) => {
            let mut values = array(current);
            for element in &elements.values {
                if !values.iter().any(|value| compare(value, element).is_eq()) {
                    values.push(element.clone());
                }
            }
            return Ok((value(ValueType::ArrayValue(ArrayValue { values })), null));
        }
        TransformType::RemoveAllFromArray(elements) => {
            let mut values = array(current);
            values.retain(|value| {
                !elements
                    .values
                    .iter()
                    .any(|element| compare(value, element).is_eq())
            });
            return Ok((value(ValueType::ArrayValue(ArrayValue { values })), null));
        }
    };
    Ok((new.clone(), new))
}

fn array(current: Option<&Value>) -> Vec<Value> {
    match current.and_then(|value| value.value_type.as_ref()) {
        Some(ValueType::ArrayValue(array)) => array.values.clone(),
        _ => Vec::new(),
    }
}

fn number(value: &Value) -> Result<&Value, Status> {
    if rank(value) != 2 {
        return Err(Status::invalid_argument("Input must be int64 or double."));
    }
    Ok(value)
}

fn added(current: Option<&Value>, by: &Value) -> Value {
    use ValueType::{DoubleValue, IntegerValue};
    let sum = match (
        current.and_then(|value| value.value_type.as_ref()),
        &by.value_type,
    ) {
        (Some(IntegerValue(a)), Some(IntegerValue(b))) => IntegerValue(a.saturating_add(*b)),
        (Some(IntegerValue(a)), Some(DoubleValue(b))) => DoubleValue(*a as f64 + b),
        (Some(DoubleValue(a)), Some(IntegerValue(b))) => DoubleValue(a + *b as f64),
        (Some(DoubleValue(a)), Some(DoubleValue(b))) => DoubleValue(a + b),
        _ => return by.clone(),
    };
    value(sum)
}

/// The other number where the current one is none, or compares as `replace` to it.
fn chosen(current: Option<&Value>, other: &Value, replace: std::cmp::Ordering) -> Value {
    match current {
        Some(current) if rank(current) == 2 && compare(current, other) != replace => current.clone(),
        _ => other.clone(),
    }
}
