//! From typed JSON to values.
//!
//! A value's text is first taken as a whole ([`RawValue`]), then read with serde_json. That costs a second
//! look at the bytes, and it is what makes reading exact: serde_json turns an integer beyond 64 bits into a
//! double, and only the text tells the two apart. It also lets an object with one `$` key be looked at twice:
//! as a typed form, or, when a second key follows, as the ordinary map that it then is.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;

use base64::Engine as _;
use chrono::DateTime;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    ABSOLUTE_REFERENCE, BASE64, BYTES, DOUBLE, GEO_POINT, MAP, REFERENCE, TIMESTAMP, TypedJsonError,
};
use crate::document::canonical::{MAX_DEPTH, NANOS_PER_SECOND};
use crate::document::{DocumentPath, FieldPath, Fields, GeoPoint, Reference, Timestamp, Value};

/// Reads a value from the text of its typed JSON.
pub fn value_from_str(text: &str) -> Result<Value, TypedJsonError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(TypedJsonError::Syntax)?;
    interpret(raw, |reading, text| parse(text, AnyValue { reading, depth: 1 }))
}

/// Reads a document's fields from the text of their typed JSON: an object with a member a field.
pub fn fields_from_str(text: &str) -> Result<Fields, TypedJsonError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(TypedJsonError::Syntax)?;
    fields_from_raw(raw)
}

/// Reads the value of the field `name` from its text.
pub(crate) fn field_from_raw(name: &str, raw: &RawValue) -> Result<Value, TypedJsonError> {
    interpret(raw, |reading, text| {
        let value = AnyValue { reading, depth: 1 };
        reading.key(name, parse(text, value))
    })
}

/// Reads a document's fields from their text.
pub(crate) fn fields_from_raw(raw: &RawValue) -> Result<Fields, TypedJsonError> {
    interpret(raw, |reading, text| parse(text, PlainMap { reading, depth: 1 }))
}

/// Reads a value from a JSON tree.
///
/// A tree that was itself read from text has lost the digits of integers beyond 64 bits; [`value_from_str`]
/// refuses those.
pub fn value_from_json(json: &serde_json::Value) -> Result<Value, TypedJsonError> {
    value_from_str(&json.to_string())
}

/// Reads a document's fields from a JSON tree. See [`value_from_json`].
pub fn fields_from_json(json: &serde_json::Value) -> Result<Fields, TypedJsonError> {
    fields_from_str(&json.to_string())
}

/// Reads one value from any of serde_json's deserializers. Holds the value's text while it does.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValueSeed;

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        interpret(&raw, |reading, text| parse(text, AnyValue { reading, depth: 1 })).map_err(D::Error::custom)
    }
}

/// Reads a document's fields from any of serde_json's deserializers. Holds their text while it does.
#[derive(Clone, Copy, Debug, Default)]
pub struct FieldsSeed;

impl<'de> DeserializeSeed<'de> for FieldsSeed {
    type Value = Fields;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        fields_from_raw(&raw).map_err(D::Error::custom)
    }
}

/// What is shared while one text is read. serde's errors are opaque and carry positions within the part of
/// the text that happens to be read; so what is wrong, and where, is kept here.
#[derive(Default)]
struct Reading {
    fault: RefCell<Option<String>>,
    /// Grows from the inside out while an error travels up.
    field: RefCell<FieldPath>,
    /// Doubles so far that may be integers beyond 64 bits.
    huge_numbers: Cell<usize>,
    /// The one of them that is, and its text.
    refuse: Option<(usize, String)>,
}

impl Reading {
    #[cold]
    fn fail<E: Error>(&self, what: impl Into<String>) -> E {
        let what = what.into();
        let error = E::custom(&what);
        self.fault.borrow_mut().get_or_insert(what);
        error
    }

    fn key<T, E: Error>(&self, key: &str, result: Result<T, E>) -> Result<T, E> {
        result.inspect_err(|_| self.field.borrow_mut().push_key(key))
    }

    fn into_error(self, error: &serde_json::Error) -> TypedJsonError {
        let what = self.fault.into_inner().unwrap_or_else(|| {
            let text = error.to_string();
            // The position is one in this value and not in what the user sees.
            match text.rfind(" at line ") {
                Some(end) => text[..end].to_owned(),
                None => text,
            }
        });
        TypedJsonError::Invalid {
            field: self.field.into_inner(),
            what,
        }
    }
}

/// Reads the text of a value with `read`.
fn interpret<T>(
    raw: &RawValue,
    read: impl for<'r, 't> Fn(&'r Reading, &'t str) -> Result<T, serde_json::Error>,
) -> Result<T, TypedJsonError> {
    let run = |reading: Reading| match read(&reading, raw.get()) {
        Ok(value) => Ok((value, reading.huge_numbers.get())),
        Err(error) => Err(reading.into_error(&error)),
    };
    let (value, huge_numbers) = run(Reading::default())?;
    if huge_numbers > 0
        && let Some(refuse) = integer_beyond_64_bits(raw.get())
    {
        // Once more, to find out where it is.
        run(Reading {
            refuse: Some(refuse),
            ..Reading::default()
        })?;
    }
    Ok(value)
}

/// Reads the whole of a JSON text.
fn parse<'t, S: DeserializeSeed<'t>>(text: &'t str, seed: S) -> Result<S::Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Whether serde_json may have made this double of an integer that has no place in 64 bits.
fn is_huge(value: f64) -> bool {
    value.abs() >= 9_223_372_036_854_775_808.0
}

/// The first integer in a valid JSON text that has no place in 64 bits and that serde_json therefore reads as
/// a double: its text, and how many huge doubles come before it.
fn integer_beyond_64_bits(text: &str) -> Option<(usize, String)> {
    let bytes = text.as_bytes();
    let mut huge_numbers = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let start = at;
                while at < bytes.len() && matches!(bytes[at], b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')
                {
                    at += 1;
                }
                let number = &text[start..at];
                let whole = !number.contains(['.', 'e', 'E']);
                let fits = number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
                if whole && fits {
                    continue;
                }
                if number.parse().is_ok_and(is_huge) {
                    if whole {
                        return Some((huge_numbers, number.to_owned()));
                    }
                    huge_numbers += 1;
                }
            }
            _ => at += 1,
        }
    }
    None
}

/// Reads any value.
#[derive(Clone, Copy)]
struct AnyValue<'r> {
    reading: &'r Reading,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for AnyValue<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(self
                .reading
                .fail(format!("values nest deeper than {MAX_DEPTH} levels")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        i64::try_from(value)
            .map(Value::Integer)
            .map_err(|_| self.reading.fail(too_large(&value.to_string())))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        if is_huge(value) {
            let number = self.reading.huge_numbers.get();
            self.reading.huge_numbers.set(number + 1);
            if let Some((refused, text)) = &self.reading.refuse
                && number == *refused
            {
                return Err(self.reading.fail(too_large(text)));
            }
        }
        Ok(Value::Double(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        let element = AnyValue {
            reading: self.reading,
            depth: self.depth + 1,
        };
        loop {
            let next = array
                .next_element_seed(element)
                .inspect_err(|_| self.reading.field.borrow_mut().push_index(values.len()))?;
            match next {
                Some(value) => values.push(value),
                None => return Ok(Value::Array(values)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let Some(first) = map.next_key::<String>()? else {
            return Ok(Value::Map(Fields::new()));
        };
        let entries = PlainMap {
            reading: self.reading,
            depth: self.depth + 1,
        };
        let mut fields = Fields::new();
        if !first.starts_with('$') {
            let value = entries.value(&first, &mut map)?;
            fields.insert(first, value);
            return entries.rest(fields, None, map).map(Value::Map);
        }
        let raw: &'de RawValue = map.next_value()?;
        match map.next_key::<String>()? {
            None => self.typed(&first, raw),
            second => {
                let value = self.reading.key(&first, entries.any().read(raw))?;
                fields.insert(first, value);
                entries.rest(fields, second, map).map(Value::Map)
            }
        }
    }
}

fn too_large(number: &str) -> String {
    format!(
        "the integer {number} does not fit 64 bits; for a double write {{\"$double\": \"{number}\"}}, else a string"
    )
}

impl AnyValue<'_> {
    /// Reads the value whose text was set aside.
    fn read<E: Error>(self, raw: &RawValue) -> Result<Value, E> {
        parse(raw.get(), self).map_err(|error| self.forward(&error))
    }

    /// Carries an error out of a text within the text; what it says about itself is in `reading`, if it was ours.
    #[cold]
    fn forward<E: Error>(self, error: &serde_json::Error) -> E {
        E::custom(error)
    }

    /// The value that `{"$name": raw}` stands for.
    fn typed<E: Error>(self, name: &str, raw: &RawValue) -> Result<Value, E> {
        let value = match name {
            MAP => {
                let entries = PlainMap {
                    reading: self.reading,
                    depth: self.depth + 1,
                };
                return parse(raw.get(), entries)
                    .map(Value::Map)
                    .map_err(|error| self.forward(&error));
            }
            GEO_POINT => return self.geo_point(raw),
            DOUBLE => text(raw).and_then(|text| double(&text)).map(Value::Double),
            TIMESTAMP => timestamp(raw).map(Value::Timestamp),
            BYTES => text(raw)
                .and_then(|text| BASE64.decode(&*text).ok())
                .map(Value::Bytes),
            REFERENCE => text(raw)
                .and_then(|path| DocumentPath::parse(path).ok())
                .map(|path| Value::Reference(Reference::Relative(path))),
            ABSOLUTE_REFERENCE => {
                text(raw).map(|name| Value::Reference(Reference::Absolute(name.into_owned())))
            }
            _ => {
                return Err(self.reading.fail(format!(
                    "`{name}` is not the name of a typed form; a map with this one key is written \
                     {{\"$map\": {{\"{name}\": …}}}}"
                )));
            }
        };
        value.ok_or_else(|| {
            let expected = match name {
                DOUBLE => "a number in quotes, \"NaN\", \"Infinity\" or \"-Infinity\"",
                TIMESTAMP => "a time such as \"2025-06-29T12:00:00.123456Z\"",
                BYTES => "base64 with padding",
                REFERENCE => "a document path such as \"products/p1\"",
                _ => "a string",
            };
            self.reading.fail(format!("`{name}` must hold {expected}"))
        })
    }

    fn geo_point<E: Error>(self, raw: &RawValue) -> Result<Value, E> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Coordinates<'t> {
            #[serde(borrow)]
            latitude: &'t RawValue,
            #[serde(borrow)]
            longitude: &'t RawValue,
        }
        let shape = || {
            self.reading
                .fail("`$geopoint` must hold the numbers `latitude` and `longitude`")
        };
        let point: Coordinates<'_> = serde_json::from_str(raw.get()).map_err(|_| shape())?;
        let coordinate = |raw: &RawValue| {
            let value = AnyValue {
                reading: self.reading,
                depth: self.depth,
            };
            match value.read(raw)? {
                Value::Double(value) => Ok(value),
                // Not every integer is a double.
                Value::Integer(value) if value.unsigned_abs() < 1 << 53 => Ok(value as f64),
                _ => Err(shape()),
            }
        };
        Ok(Value::GeoPoint(GeoPoint {
            latitude: coordinate(point.latitude)?,
            longitude: coordinate(point.longitude)?,
        }))
    }
}

/// Reads an object as a map, whatever its keys are.
#[derive(Clone, Copy)]
struct PlainMap<'r> {
    reading: &'r Reading,
    /// That of the map's values.
    depth: usize,
}

impl<'r> PlainMap<'r> {
    fn any(self) -> AnyValue<'r> {
        AnyValue {
            reading: self.reading,
            depth: self.depth,
        }
    }

    fn value<'de, A: MapAccess<'de>>(self, key: &str, map: &mut A) -> Result<Value, A::Error> {
        self.reading.key(key, map.next_value_seed(self.any()))
    }

    /// Reads the entries that are left: first that of `key`, if it was taken already.
    fn rest<'de, A: MapAccess<'de>>(
        self,
        mut fields: Fields,
        key: Option<String>,
        mut map: A,
    ) -> Result<Fields, A::Error> {
        let mut next = match key {
            Some(key) => Some(key),
            None => map.next_key::<String>()?,
        };
        while let Some(key) = next {
            if fields.contains_key(&key) {
                let twice = self.reading.fail("the key is there twice");
                return self.reading.key(&key, Err(twice));
            }
            let value = self.value(&key, &mut map)?;
            fields.insert(key, value);
            next = map.next_key::<String>()?;
        }
        Ok(fields)
    }
}

impl<'de> DeserializeSeed<'de> for PlainMap<'_> {
    type Value = Fields;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PlainMap<'_> {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Fields, A::Error> {
        self.rest(Fields::new(), None, map)
    }
}

fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'t>(#[serde(borrow)] Cow<'t, str>);
    serde_json::from_str::<Text<'_>>(raw.get())
        .ok()
        .map(|text| text.0)
}

/// A double from its text in a `$double`.
fn double(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => match text.strip_prefix("NaN:") {
            Some(bits) => {
                let digits = bits.len() == 16 && bits.bytes().all(|byte| byte.is_ascii_hexdigit());
                let value = f64::from_bits(u64::from_str_radix(bits, 16).ok()?);
                (digits && value.is_nan()).then_some(value)
            }
            None => {
                // Rust reads `inf` and `nan` in any case too, and a number that is too large as infinity.
                let number = text
                    .bytes()
                    .all(|byte| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'));
                let value: f64 = text.parse().ok()?;
                (number && value.is_finite()).then_some(value)
            }
        },
    }
}

fn timestamp(raw: &RawValue) -> Option<Timestamp> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Numbers {
        seconds: i64,
        nanos: u32,
    }
    let Some(text) = text(raw) else {
        let numbers: Numbers = serde_json::from_str(raw.get()).ok()?;
        let valid = numbers.nanos < NANOS_PER_SECOND;
        return valid.then_some(Timestamp::new(numbers.seconds, numbers.nanos));
    };
    // chrono drops digits beyond nanoseconds.
    let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
    if fraction.bytes().take_while(u8::is_ascii_digit).count() > 9 {
        return None;
    }
    let time = DateTime::parse_from_rfc3339(&text).ok()?;
    let nanos = time.timestamp_subsec_nanos();
    // chrono counts a leap second as nanoseconds beyond a second, protobuf has none.
    (nanos < NANOS_PER_SECOND).then_some(Timestamp::new(time.timestamp(), nanos))
}
