//! What a script wants to be written, before it is known what is stored.
//!
//! JavaScript has one type of number, Firestore has two, and a script that only looks at a document must not turn one into the
//! other. So a value that comes from a script stays a draft until it is put next to the stored one: see [`Draft::onto`].

use std::collections::BTreeMap;

use crate::document::{Fields, Timestamp, Value};

/// A value from a script.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Draft {
    /// A value whose type is known.
    Value(Value),
    /// A number whose type follows from what is stored.
    Number(f64),
    /// An array.
    Array(Vec<Draft>),
    /// A map.
    Map(BTreeMap<String, Draft>),
    /// Something to be done to what is stored.
    Operation(Operation),
}

/// What `FieldValue` makes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operation {
    /// The server's time.
    ServerTimestamp,
    /// The field goes away.
    Delete,
    /// The number grows.
    Increment(Box<Draft>),
    /// The array gets what it does not have.
    ArrayUnion(Vec<Draft>),
    /// The array loses what equals these.
    ArrayRemove(Vec<Draft>),
}

/// A draft that makes no sense where it stands.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DraftError(pub(crate) &'static str);

/// The largest whole number up to which doubles have all of them.
pub(crate) const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

impl Draft {
    /// The value that the draft stands for where `stored` is stored; `None` where the field goes away.
    pub(crate) fn onto(self, stored: Option<&Value>, now: Timestamp) -> Result<Option<Value>, DraftError> {
        Ok(Some(match self {
            Self::Value(value) => value,
            Self::Number(number) => number_onto(number, stored),
            Self::Array(drafts) => {
                let stored = match stored {
                    Some(Value::Array(values)) => &values[..],
                    _ => &[],
                };
                let mut values = Vec::with_capacity(drafts.len());
                for (index, draft) in drafts.into_iter().enumerate() {
                    if matches!(draft, Self::Operation(_)) {
                        return Err(DraftError("a FieldValue cannot stand in an array"));
                    }
                    values.extend(draft.onto(stored.get(index), now)?);
                }
                Value::Array(values)
            }
            Self::Map(drafts) => Value::Map(map_onto(drafts, stored, now)?),
            Self::Operation(operation) => return operation.onto(stored, now),
        }))
    }

    /// Whether its value follows from what is stored alone, and not from when it is written.
    fn is_timeless(&self) -> bool {
        match self {
            Self::Value(_) | Self::Number(_) => true,
            Self::Array(drafts) => drafts.iter().all(Self::is_timeless),
            Self::Map(drafts) => are_timeless(drafts),
            Self::Operation(Operation::ServerTimestamp) => false,
            Self::Operation(Operation::Delete) => true,
            Self::Operation(Operation::Increment(by)) => by.is_timeless(),
            Self::Operation(Operation::ArrayUnion(drafts) | Operation::ArrayRemove(drafts)) => {
                drafts.iter().all(Self::is_timeless)
            }
        }
    }
}

/// Whether what the drafts stand for does not depend on when it is written.
pub(crate) fn are_timeless(drafts: &BTreeMap<String, Draft>) -> bool {
    drafts.values().all(Draft::is_timeless)
}

/// A map that takes the place of what is stored, types from there.
pub(crate) fn map_onto(
    drafts: BTreeMap<String, Draft>,
    stored: Option<&Value>,
    now: Timestamp,
) -> Result<Fields, DraftError> {
    let stored = match stored {
        Some(Value::Map(fields)) => Some(fields),
        _ => None,
    };
    fields_onto(drafts, stored, now)
}

/// The same for fields.
pub(crate) fn fields_onto(
    drafts: BTreeMap<String, Draft>,
    stored: Option<&Fields>,
    now: Timestamp,
) -> Result<Fields, DraftError> {
    // They ascend, and of such a map is made faster as a whole than one by one.
    let mut fields = Vec::with_capacity(drafts.len());
    for (key, draft) in drafts {
        let stored = stored.and_then(|fields| fields.get(&key));
        if let Some(value) = draft.onto(stored, now)? {
            fields.push((key, value));
        }
    }
    Ok(fields.into_iter().collect())
}

/// Puts a map over what is stored: maps are merged, everything else is replaced.
pub(crate) fn merge(
    drafts: BTreeMap<String, Draft>,
    fields: &mut Fields,
    now: Timestamp,
) -> Result<(), DraftError> {
    for (key, draft) in drafts {
        match (draft, fields.get_mut(&key)) {
            (Draft::Map(drafts), Some(Value::Map(below))) if !drafts.is_empty() => merge(drafts, below, now)?,
            (draft, stored) => {
                let stored = stored.map(|value| &*value);
                match draft.onto(stored, now)? {
                    Some(value) => fields.insert(key, value),
                    None => fields.remove(&key),
                };
            }
        }
    }
    Ok(())
}

/// Puts a draft at a field path; what is no map on the way becomes one.
pub(crate) fn set_at(
    fields: &mut Fields,
    path: &[String],
    draft: Draft,
    now: Timestamp,
) -> Result<(), DraftError> {
    let Some((key, rest)) = path.split_first() else {
        return Ok(());
    };
    if rest.is_empty() {
        match draft.onto(fields.get(key), now)? {
            Some(value) => fields.insert(key.clone(), value),
            None => fields.remove(key),
        };
        return Ok(());
    }
    if !matches!(fields.get(key), Some(Value::Map(_))) {
        if draft == Draft::Operation(Operation::Delete) {
            return Ok(());
        }
        fields.insert(key.clone(), Value::Map(Fields::new()));
    }
    match fields.get_mut(key) {
        Some(Value::Map(below)) => set_at(below, rest, draft, now),
        _ => Ok(()),
    }
}

/// The value at a field path.
pub(crate) fn value_at<'f>(fields: &'f Fields, path: &[String]) -> Option<&'f Value> {
    let (key, rest) = path.split_first()?;
    match (fields.get(key)?, rest) {
        (value, []) => Some(value),
        (Value::Map(below), rest) => value_at(below, rest),
        _ => None,
    }
}

/// Takes the value at a field path away.
pub(crate) fn remove_at(fields: &mut Fields, path: &[String]) -> Option<Value> {
    let (key, rest) = path.split_first()?;
    match (rest, fields.get_mut(key)) {
        ([], _) => fields.remove(key),
        (rest, Some(Value::Map(below))) => remove_at(below, rest),
        _ => None,
    }
}

/// A number takes its type from the stored one; else it is an integer where it can be one.
fn number_onto(number: f64, stored: Option<&Value>) -> Value {
    match stored {
        // A NaN comes back from JavaScript with other bits.
        Some(Value::Double(stored)) if stored.is_nan() && number.is_nan() => Value::Double(*stored),
        Some(Value::Double(_)) => Value::Double(number),
        _ => number_value(number),
    }
}

fn number_value(number: f64) -> Value {
    let negative_zero = number == 0.0 && number.is_sign_negative();
    if number.fract() == 0.0 && number.abs() <= MAX_SAFE_INTEGER && !negative_zero {
        Value::Integer(number as i64)
    } else {
        Value::Double(number)
    }
}

impl Operation {
    fn onto(self, stored: Option<&Value>, now: Timestamp) -> Result<Option<Value>, DraftError> {
        Ok(Some(match self {
            // Milliseconds, as Firestore's own has.
            Self::ServerTimestamp => {
                Value::Timestamp(Timestamp::new(now.seconds, now.nanos - now.nanos % 1_000_000))
            }
            Self::Delete => return Ok(None),
            Self::Increment(by) => incremented(*by, stored)?,
            Self::ArrayUnion(drafts) => {
                let mut values = array(stored);
                for value in elements(drafts, now)? {
                    if !values.iter().any(|there| equal_in_firestore(there, &value)) {
                        values.push(value);
                    }
                }
                Value::Array(values)
            }
            Self::ArrayRemove(drafts) => {
                let gone = elements(drafts, now)?;
                let mut values = array(stored);
                values.retain(|value| !gone.iter().any(|gone| equal_in_firestore(gone, value)));
                Value::Array(values)
            }
        }))
    }
}

fn array(stored: Option<&Value>) -> Vec<Value> {
    match stored {
        Some(Value::Array(values)) => values.clone(),
        _ => Vec::new(),
    }
}

fn elements(drafts: Vec<Draft>, now: Timestamp) -> Result<Vec<Value>, DraftError> {
    drafts
        .into_iter()
        .map(|draft| match draft {
            Draft::Operation(_) => Err(DraftError("a FieldValue cannot stand in another")),
            draft => draft
                .onto(None, now)?
                .ok_or(DraftError("a FieldValue cannot stand in another")),
        })
        .collect()
}

/// As Firestore adds: what is no number counts as if it were not there, and integers stop at their ends.
fn incremented(by: Draft, stored: Option<&Value>) -> Result<Value, DraftError> {
    let by = match by {
        Draft::Number(number) => number_value(number),
        Draft::Value(value @ (Value::Integer(_) | Value::Double(_))) => value,
        _ => return Err(DraftError("FieldValue.increment takes a number")),
    };
    Ok(match (stored, by) {
        (Some(Value::Integer(a)), Value::Integer(b)) => Value::Integer(a.saturating_add(b)),
        (Some(Value::Integer(a)), Value::Double(b)) => Value::Double(*a as f64 + b),
        (Some(Value::Double(a)), Value::Integer(b)) => Value::Double(a + b as f64),
        (Some(Value::Double(a)), Value::Double(b)) => Value::Double(a + b),
        (_, by) => by,
    })
}

/// Firestore's own equality: numbers are equal whatever their types.
fn equal_in_firestore(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Integer(a), Value::Double(b)) | (Value::Double(b), Value::Integer(a)) => {
            *b == *a as f64 && b.fract() == 0.0 && *b as i128 == i128::from(*a)
        }
        (Value::Double(a), Value::Double(b)) => a == b || (a.is_nan() && b.is_nan()),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_in_firestore(a, b))
        }
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|((a, x), (b, y))| a == b && equal_in_firestore(x, y))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp {
        seconds: 7,
        nanos: 123_456_789,
    };

    fn number(number: f64, stored: Option<Value>) -> Value {
        Draft::Number(number).onto(stored.as_ref(), NOW).unwrap().unwrap()
    }

    #[test]
    fn numbers_take_their_type_from_what_is_stored() {
        use Value::{Double, Integer};
        assert_eq!(number(5.0, None), Integer(5));
        assert_eq!(number(5.0, Some(Integer(1))), Integer(5));
        assert_eq!(number(5.0, Some(Double(1.5))), Double(5.0));
        assert_eq!(number(5.5, Some(Integer(1))), Double(5.5));
        assert_eq!(number(-0.0, None), Double(-0.0));
        assert_eq!(number(-0.0, Some(Integer(0))), Double(-0.0));
        assert_eq!(
            number(9_007_199_254_740_992.0, None),
            Double(9_007_199_254_740_992.0)
        );
        assert_eq!(number(f64::INFINITY, None), Double(f64::INFINITY));
        let odd_nan = f64::from_bits(0x7ff8_0000_0000_0001);
        assert_eq!(number(f64::NAN, Some(Double(odd_nan))), Double(odd_nan));
    }

    #[test]
    fn types_come_from_the_same_place() {
        let stored = Value::Map(
            [(
                "a".to_owned(),
                Value::Array(vec![Value::Double(1.0), Value::Integer(1)]),
            )]
            .into(),
        );
        let draft = Draft::Map(
            [(
                "a".to_owned(),
                Draft::Array(vec![Draft::Number(2.0), Draft::Number(2.0), Draft::Number(2.0)]),
            )]
            .into(),
        );
        let expected = Value::Map(
            [(
                "a".to_owned(),
                Value::Array(vec![Value::Double(2.0), Value::Integer(2), Value::Integer(2)]),
            )]
            .into(),
        );
        assert_eq!(draft.onto(Some(&stored), NOW).unwrap(), Some(expected));
    }

    #[test]
    fn operations_are_those_of_firestore() {
        let apply = |operation: Operation, stored: Option<Value>| {
            Draft::Operation(operation).onto(stored.as_ref(), NOW).unwrap()
        };
        let increment = |by| Operation::Increment(Box::new(Draft::Number(by)));
        assert_eq!(
            apply(increment(1.0), Some(Value::Integer(i64::MAX))),
            Some(Value::Integer(i64::MAX))
        );
        assert_eq!(
            apply(increment(1.0), Some(Value::Double(0.5))),
            Some(Value::Double(1.5))
        );
        assert_eq!(
            apply(increment(1.0), Some(Value::String("x".into()))),
            Some(Value::Integer(1))
        );
        assert_eq!(apply(Operation::Delete, Some(Value::Null)), None);
        assert_eq!(
            apply(Operation::ServerTimestamp, None),
            Some(Value::Timestamp(Timestamp::new(7, 123_000_000)))
        );
        let stored = Value::Array(vec![Value::Integer(1), Value::Integer(2)]);
        let some = vec![Draft::Value(Value::Double(2.0)), Draft::Number(3.0)];
        assert_eq!(
            apply(Operation::ArrayUnion(some.clone()), Some(stored.clone())),
            Some(Value::Array(vec![
                Value::Integer(1),
                Value::Integer(2),
                Value::Integer(3)
            ]))
        );
        assert_eq!(
            apply(Operation::ArrayRemove(some), Some(stored)),
            Some(Value::Array(vec![Value::Integer(1)]))
        );
    }
}
