//! The canonical MessagePack form of a document's fields.
//!
//! Equal documents must have equal bytes, because the bytes' hash is the document's identity in the archive. So
//! there is one way to write each value, and the decoder refuses every other: what it accepts, the encoder would
//! have written.
//!
//! | value | MessagePack |
//! | --- | --- |
//! | null, boolean | nil, false, true |
//! | integer | the smallest form; those that are not negative in the unsigned family |
//! | double | float 64, the 8 raw bytes, whatever they hold |
//! | string, bytes | str (UTF-8), bin, with the smallest header |
//! | timestamp | extension -1, the smallest of MessagePack's 32, 64 and 96 bit forms |
//! | reference into the same database | extension 1: the path below the database's root, UTF-8 |
//! | any other reference | extension 2: the resource name, UTF-8 |
//! | geopoint | extension 3: latitude and longitude, 8 raw bytes each, big-endian |
//! | array, map | array, map, with the smallest header; keys are str, ascending by their bytes, none twice |
//!
//! A body is one map. An extension's header is the smallest too: fixext where one has the length.
//!
//! The codec is written out here and not taken from a MessagePack crate: those read every form of a value and
//! do not tell which they met. Everything that reads bodies goes through one `Reader`, which never allocates.

mod put;
mod reader;

use super::{DocumentPath, FieldPath, Fields, GeoPoint, Reference, Value};

pub(crate) use put::{
    NANOS_PER_SECOND, put_absolute_reference, put_array_header, put_boolean, put_bytes, put_double,
    put_geo_point, put_integer, put_map_header, put_null, put_relative_reference, put_text, put_timestamp,
};
pub(crate) use reader::{Reader, Text, Token, is_utf8};

/// How deep values may nest: a field's own value is at depth 1. Firestore allows 20
/// (<https://firebase.google.com/docs/firestore/quotas>); the bound is there for the stack's sake.
pub const MAX_DEPTH: usize = 100;

/// The body of a document without fields.
pub const EMPTY: &[u8] = &[0x80];

const EXT_TIMESTAMP: u8 = 0xff;
const EXT_RELATIVE_REFERENCE: u8 = 1;
const EXT_ABSOLUTE_REFERENCE: u8 = 2;
const EXT_GEO_POINT: u8 = 3;

/// Bytes that are not the canonical form of anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a document in canonical form: {defect} (at {field})")]
pub struct CanonicalError {
    /// What is wrong.
    pub defect: Defect,
    /// Where.
    pub field: FieldPath,
}

/// What can be wrong with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// It ends in the middle of a value, or a length points past its end.
    #[error("it is cut off")]
    Truncated,
    /// Bytes follow the last field.
    #[error("bytes follow its end")]
    TrailingBytes,
    /// The outermost value is not a map.
    #[error("it is not a map")]
    NotAMap,
    /// A number, a header or a timestamp in a longer form than it needs.
    #[error("a value is not in its smallest form")]
    NotSmallest,
    /// An integer above the largest int64.
    #[error("an integer is beyond 64 signed bits")]
    IntegerRange,
    /// A map's keys do not ascend, or one is there twice.
    #[error("a map's keys do not ascend")]
    KeyOrder,
    /// A key that is not a string.
    #[error("a map's key is not a string")]
    KeyType,
    /// Text that is not UTF-8.
    #[error("a text is not UTF-8")]
    Utf8,
    /// A relative reference that is not a document path.
    #[error("a reference is not a document path")]
    ReferencePath,
    /// A timestamp with a thousand million nanoseconds or more.
    #[error("a timestamp has too many nanoseconds")]
    Nanoseconds,
    /// A MessagePack type or extension that no value has.
    #[error("no value has the MessagePack type {0:#04x}")]
    UnknownType(u8),
    /// More than [`MAX_DEPTH`] levels.
    #[error("values nest deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

/// A boxed error, so that results stay small on the way up.
type Fault = Box<CanonicalError>;

impl From<Defect> for Fault {
    #[cold]
    fn from(defect: Defect) -> Self {
        Box::new(CanonicalError {
            defect,
            field: FieldPath::root(),
        })
    }
}

impl From<Defect> for CanonicalError {
    fn from(defect: Defect) -> Self {
        *Fault::from(defect)
    }
}

impl CanonicalError {
    #[cold]
    pub(crate) fn under_key(mut self: Box<Self>, key: Text<'_>) -> Box<Self> {
        self.field.push_key(&key.to_lossy());
        self
    }

    #[cold]
    pub(crate) fn under_index(mut self: Box<Self>, index: usize) -> Box<Self> {
        self.field.push_index(index);
        self
    }
}

/// The canonical form of `fields`.
///
/// A tree that nests deeper than [`MAX_DEPTH`], or a timestamp with too many nanoseconds, is written and will be
/// refused by every reader.
pub fn encode(fields: &Fields) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    encode_fields(fields, &mut out);
    out
}

/// Appends the canonical form of `fields` to `out`. See [`encode`].
pub fn encode_fields(fields: &Fields, out: &mut Vec<u8>) {
    encode_entries(fields.iter(), out);
}

/// The same of some of a document's fields, ascending by name.
pub(crate) fn encode_entries<'f>(
    entries: impl ExactSizeIterator<Item = (&'f String, &'f Value)>,
    out: &mut Vec<u8>,
) {
    put_map_header(entries.len(), out);
    for (key, value) in entries {
        put_text(key.as_bytes(), out);
        encode_value(value, out);
    }
}

/// Appends the canonical form of one value to `out`. See [`encode`].
pub fn encode_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => put_null(out),
        Value::Boolean(value) => put_boolean(*value, out),
        Value::Integer(value) => put_integer(*value, out),
        Value::Double(value) => put_double(value.to_bits(), out),
        Value::Timestamp(value) => put_timestamp(*value, out),
        Value::String(value) => put_text(value.as_bytes(), out),
        Value::Bytes(value) => put_bytes(value, out),
        Value::Reference(Reference::Relative(path)) => put_relative_reference(path.as_str(), out),
        Value::Reference(Reference::Absolute(name)) => put_absolute_reference(name, out),
        Value::GeoPoint(point) => put_geo_point(point.latitude.to_bits(), point.longitude.to_bits(), out),
        Value::Array(values) => {
            put_array_header(values.len(), out);
            for value in values {
                encode_value(value, out);
            }
        }
        Value::Map(fields) => encode_fields(fields, out),
    }
}

/// The fields that `body` is the canonical form of.
///
/// Fails on everything that [`encode`] would not have written.
pub fn decode(body: &[u8]) -> Result<Fields, CanonicalError> {
    let (mut reader, count) = Reader::open(body)?;
    let fields = decode_entries(&mut reader, count, 1).map_err(|fault| *fault)?;
    reader.finish()?;
    Ok(fields)
}

/// Checks that [`decode`] would accept `body`, without building anything.
pub fn validate(body: &[u8]) -> Result<(), CanonicalError> {
    walk(body, &mut |_| ())
}

/// A reference as it stands in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceRef<'a> {
    /// To a document of the same database: its path.
    Relative(&'a str),
    /// To anything else: the full resource name.
    Absolute(&'a str),
}

/// Calls `each` with every reference in `body`, in the order of the bytes, without building anything.
///
/// Fails as [`validate`] does; `each` has seen what stands before the fault by then.
pub fn for_each_reference<'a>(
    body: &'a [u8],
    mut each: impl FnMut(ReferenceRef<'a>),
) -> Result<(), CanonicalError> {
    walk(body, &mut |token| {
        if let Token::Reference(reference) = token {
            each(reference);
        }
    })
}

/// Calls `each` with the name of every field of `body`, in order. Fails as [`validate`] does.
pub fn for_each_field_name<'a>(body: &'a [u8], mut each: impl FnMut(&'a str)) -> Result<(), CanonicalError> {
    let (mut reader, count) = Reader::open(body)?;
    let mut previous = None;
    for _ in 0..count {
        let name = reader.key(previous)?;
        each(name.to_str()?);
        walk_value(&mut reader, 1, &mut |_| ()).map_err(|fault| *fault.under_key(name))?;
        previous = Some(name);
    }
    Ok(reader.finish()?)
}

fn walk<'a>(body: &'a [u8], each: &mut impl FnMut(Token<'a>)) -> Result<(), CanonicalError> {
    let (mut reader, count) = Reader::open(body)?;
    walk_entries(&mut reader, count, 1, each).map_err(|fault| *fault)?;
    Ok(reader.finish()?)
}

fn walk_entries<'a>(
    reader: &mut Reader<'a>,
    count: usize,
    depth: usize,
    each: &mut impl FnMut(Token<'a>),
) -> Result<(), Fault> {
    let mut previous = None;
    for _ in 0..count {
        let key = reader.key(previous)?;
        key.check()?;
        walk_value(reader, depth, each).map_err(|fault| fault.under_key(key))?;
        previous = Some(key);
    }
    Ok(())
}

fn walk_value<'a>(
    reader: &mut Reader<'a>,
    depth: usize,
    each: &mut impl FnMut(Token<'a>),
) -> Result<(), Fault> {
    check_depth(depth)?;
    match reader.token()? {
        Token::Array(count) => {
            for index in 0..count {
                walk_value(reader, depth + 1, each).map_err(|fault| fault.under_index(index))?;
            }
        }
        Token::Map(count) => walk_entries(reader, count, depth + 1, each)?,
        Token::String(text) => text.check()?,
        token => each(token),
    }
    Ok(())
}

fn decode_entries(reader: &mut Reader<'_>, count: usize, depth: usize) -> Result<Fields, Fault> {
    // They ascend, and of such a map is made faster as a whole than one by one. The count is the input's claim.
    let mut fields = Vec::with_capacity(count.min(64));
    let mut previous = None;
    for _ in 0..count {
        let key = reader.key(previous)?;
        let name = key.to_str()?.to_owned();
        let value = decode_value(reader, depth).map_err(|fault| fault.under_key(key))?;
        fields.push((name, value));
        previous = Some(key);
    }
    Ok(fields.into_iter().collect())
}

fn decode_value(reader: &mut Reader<'_>, depth: usize) -> Result<Value, Fault> {
    check_depth(depth)?;
    Ok(match reader.token()? {
        Token::Null => Value::Null,
        Token::Boolean(value) => Value::Boolean(value),
        Token::Integer(value) => Value::Integer(value),
        Token::Double(bits) => Value::Double(f64::from_bits(bits)),
        Token::Timestamp(value) => Value::Timestamp(value),
        Token::String(value) => Value::String(value.to_str()?.to_owned()),
        Token::Bytes(value) => Value::Bytes(value.to_owned()),
        Token::Reference(ReferenceRef::Absolute(name)) => {
            Value::Reference(Reference::Absolute(name.to_owned()))
        }
        Token::Reference(ReferenceRef::Relative(path)) => {
            let path = DocumentPath::parse(path).map_err(|_| Defect::ReferencePath)?;
            Value::Reference(Reference::Relative(path))
        }
        Token::GeoPoint(latitude, longitude) => Value::GeoPoint(GeoPoint {
            latitude: f64::from_bits(latitude),
            longitude: f64::from_bits(longitude),
        }),
        Token::Array(count) => {
            // The count is the input's claim: nested arrays that all claim much must not add up.
            let mut values = Vec::with_capacity(count.min(64));
            for index in 0..count {
                values.push(decode_value(reader, depth + 1).map_err(|fault| fault.under_index(index))?);
            }
            Value::Array(values)
        }
        Token::Map(count) => Value::Map(decode_entries(reader, count, depth + 1)?),
    })
}

/// Whether a value may stand at `depth`.
pub(crate) fn check_depth(depth: usize) -> Result<(), Defect> {
    if depth > MAX_DEPTH {
        return Err(Defect::TooDeep);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
