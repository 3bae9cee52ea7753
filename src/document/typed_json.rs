//! Values as JSON that a person can read and that loses nothing.
//!
//! What JSON can say, it says plainly. Everything else is an object with one key that starts with `$`:
//!
//! | Firestore | JSON |
//! | --- | --- |
//! | null, boolean, string | `null`, `true`, `"text"` |
//! | integer | `42`: a number without point and exponent is an integer, with all 64 bits |
//! | double with a fraction | `349.99`; reads back to the same bits |
//! | any other double | `{"$double": "5.0"}`, also `"-0.0"`, `"1e300"`, `"NaN"`, `"Infinity"`, `"-Infinity"`; a NaN with other bits than the usual ones is `"NaN:fff8000000000000"` |
//! | timestamp | `{"$timestamp": "2025-06-29T12:00:00.123456Z"}`; one outside the years 1 to 9999 is `{"$timestamp": {"seconds": 253402300800, "nanos": 0}}` |
//! | bytes | `{"$bytes": "AAEC"}` (base64, with padding) |
//! | reference into the same database | `{"$reference": "products/p1"}`: moves with the database |
//! | any other reference | `{"$absoluteReference": "projects/other/databases/(default)/documents/a/b"}` |
//! | geopoint | `{"$geopoint": {"latitude": 52.52, "longitude": {"$double": "13.0"}}}` |
//! | array, map | `[…]`, `{…}` |
//! | map with exactly one key, which starts with `$` | `{"$map": {"$key": …}}` |
//! | vector | the map that it is: `{"__type__": "__vector__", "value": […]}` |
//!
//! The fields of a document are an object with a member a field; a typed form is not looked for there, since
//! fields are never anything but a map.
//!
//! Reading is a little more generous than writing: `5.0` is a double, whole numbers are good for coordinates,
//! timestamps may carry any offset. It is strict where a guess could lose something: an integer beyond 64
//! signed bits, a key that is there twice, and an object with one unknown `$` key are errors, which say at
//! which field.
//!
//! Writing goes straight from the canonical bytes to the serializer, without a tree.

mod read;

use std::cell::Cell;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};

use super::canonical::{self, CanonicalError, Reader, ReferenceRef, Token, check_depth};
use super::{FieldPath, Fields, Value};

pub use read::{FieldsSeed, ValueSeed, fields_from_json, fields_from_str, value_from_json, value_from_str};
pub(crate) use read::{field_from_raw, fields_from_raw};

const DOUBLE: &str = "$double";
const TIMESTAMP: &str = "$timestamp";
const BYTES: &str = "$bytes";
const REFERENCE: &str = "$reference";
const ABSOLUTE_REFERENCE: &str = "$absoluteReference";
const GEO_POINT: &str = "$geopoint";
const MAP: &str = "$map";

/// The first and last second that RFC 3339 can say: those of the years 1 and 9999.
const RFC3339_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// JSON that is not a value, or a value that has no JSON form.
#[derive(Debug, thiserror::Error)]
pub enum TypedJsonError {
    /// Not JSON.
    #[error("not valid JSON: {0}")]
    Syntax(#[source] serde_json::Error),
    /// JSON that says no value.
    #[error("{what} (at {field})")]
    Invalid {
        /// Where.
        field: FieldPath,
        /// What is wrong, and what to write instead.
        what: String,
    },
    /// A value that readers would refuse: it nests too deep.
    #[error("it cannot be written as JSON: {0}")]
    Unwritable(#[source] serde_json::Error),
}

/// A document's fields, to be serialized as typed JSON straight from their canonical form.
///
/// Serializing fails if the body is not canonical.
#[derive(Clone, Copy, Debug)]
pub struct FieldsJson<'a> {
    body: &'a [u8],
}

impl<'a> FieldsJson<'a> {
    /// The fields that `body` is the canonical form of.
    pub fn new(body: &'a [u8]) -> Self {
        Self { body }
    }
}

impl Serialize for FieldsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (reader, count) = Reader::open(self.body).map_err(refused)?;
        let reader = Cell::new(reader);
        let done = Entries {
            reader: &reader,
            count,
            depth: 1,
        }
        .serialize(serializer)?;
        reader.get().finish().map_err(refused)?;
        Ok(done)
    }
}

/// A value, to be serialized as typed JSON.
#[derive(Clone, Copy, Debug)]
pub struct ValueJson<'a>(pub &'a Value);

impl Serialize for ValueJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        canonical::encode_value(self.0, &mut bytes);
        let reader = Cell::new(Reader::of_value(&bytes));
        NextValue {
            reader: &reader,
            depth: 1,
        }
        .serialize(serializer)
    }
}

/// A value as a JSON tree.
pub fn value_to_json(value: &Value) -> Result<serde_json::Value, TypedJsonError> {
    serde_json::to_value(ValueJson(value)).map_err(TypedJsonError::Unwritable)
}

/// A document's fields as a JSON tree.
pub fn fields_to_json(fields: &Fields) -> Result<serde_json::Value, TypedJsonError> {
    serde_json::to_value(FieldsJson::new(&canonical::encode(fields))).map_err(TypedJsonError::Unwritable)
}

/// Calls `each` with the fields of `body`, each as its name and something that serializes as its value.
/// `each` must serialize it, once.
pub(crate) fn for_each_field<'a, E: From<CanonicalError>>(
    body: &'a [u8],
    mut each: impl FnMut(&'a str, NextValue<'_, 'a>) -> Result<(), E>,
) -> Result<(), E> {
    let (reader, count) = Reader::open(body).map_err(CanonicalError::from)?;
    let reader = Cell::new(reader);
    let mut previous = None;
    for _ in 0..count {
        let key = read(&reader, |reader| reader.key(previous)).map_err(CanonicalError::from)?;
        each(
            key.to_str().map_err(CanonicalError::from)?,
            NextValue {
                reader: &reader,
                depth: 1,
            },
        )?;
        previous = Some(key);
    }
    Ok(reader.get().finish().map_err(CanonicalError::from)?)
}

fn refused<E: serde::ser::Error>(error: impl Into<CanonicalError>) -> E {
    E::custom(error.into())
}

fn read<'a, T>(
    reader: &Cell<Reader<'a>>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, canonical::Defect>,
) -> Result<T, canonical::Defect> {
    let mut next = reader.get();
    let result = read(&mut next);
    reader.set(next);
    result
}

/// The value that comes next in a body. Serializing it moves the reader past it.
#[derive(Clone, Copy)]
pub(crate) struct NextValue<'r, 'a> {
    reader: &'r Cell<Reader<'a>>,
    depth: usize,
}

impl Serialize for NextValue<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        check_depth(self.depth).map_err(refused)?;
        match read(self.reader, Reader::token).map_err(refused)? {
            Token::Null => serializer.serialize_unit(),
            Token::Boolean(value) => serializer.serialize_bool(value),
            Token::Integer(value) => serializer.serialize_i64(value),
            Token::String(value) => serializer.serialize_str(value.to_str().map_err(refused)?),
            Token::Double(bits) => Double(bits).serialize(serializer),
            Token::Timestamp(time) if RFC3339_SECONDS.contains(&time.seconds) => {
                typed(serializer, TIMESTAMP, &time.to_string())
            }
            Token::Timestamp(time) => typed(serializer, TIMESTAMP, &time),
            Token::Bytes(bytes) => typed(serializer, BYTES, &BASE64.encode(bytes)),
            Token::Reference(ReferenceRef::Relative(path)) => typed(serializer, REFERENCE, path),
            Token::Reference(ReferenceRef::Absolute(name)) => typed(serializer, ABSOLUTE_REFERENCE, name),
            Token::GeoPoint(latitude, longitude) => {
                typed(serializer, GEO_POINT, &Coordinates { latitude, longitude })
            }
            Token::Array(count) => {
                let mut array = serializer.serialize_seq(Some(count))?;
                for _ in 0..count {
                    array.serialize_element(&NextValue {
                        reader: self.reader,
                        depth: self.depth + 1,
                    })?;
                }
                array.end()
            }
            Token::Map(count) => {
                let entries = Entries {
                    reader: self.reader,
                    count,
                    depth: self.depth + 1,
                };
                if entries.look_typed() {
                    typed(serializer, MAP, &entries)
                } else {
                    entries.serialize(serializer)
                }
            }
        }
    }
}

fn typed<S: Serializer>(
    serializer: S,
    name: &'static str,
    value: &(impl Serialize + ?Sized),
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(name, value)?;
    map.end()
}

/// The entries of a map, which come next in a body.
struct Entries<'r, 'a> {
    reader: &'r Cell<Reader<'a>>,
    count: usize,
    depth: usize,
}

impl Entries<'_, '_> {
    /// Whether a reader would take the map for a typed form.
    fn look_typed(&self) -> bool {
        let mut ahead = self.reader.get();
        self.count == 1 && ahead.key(None).is_ok_and(|key| key.as_bytes().starts_with(b"$"))
    }
}

impl Serialize for Entries<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.count))?;
        let mut previous = None;
        for _ in 0..self.count {
            let key = read(self.reader, |reader| reader.key(previous)).map_err(S::Error::custom)?;
            map.serialize_entry(
                key.to_str().map_err(S::Error::custom)?,
                &NextValue {
                    reader: self.reader,
                    depth: self.depth,
                },
            )?;
            previous = Some(key);
        }
        map.end()
    }
}

/// A double's bits.
struct Double(u64);

impl Serialize for Double {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = f64::from_bits(self.0);
        if value.is_finite() && value.fract() != 0.0 {
            return serializer.serialize_f64(value);
        }
        let text = if self.0 == f64::NAN.to_bits() {
            "NaN".to_owned()
        } else if value.is_nan() {
            format!("NaN:{:016x}", self.0)
        } else if value.is_infinite() {
            if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
        } else {
            format!("{value:?}")
        };
        typed(serializer, DOUBLE, &text)
    }
}

struct Coordinates {
    latitude: u64,
    longitude: u64,
}

impl Serialize for Coordinates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("latitude", &Double(self.latitude))?;
        map.serialize_entry("longitude", &Double(self.longitude))?;
        map.end()
    }
}

#[cfg(test)]
mod tests;
