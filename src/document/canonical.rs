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
//! The codec is written out here and not taken from a MessagePack crate: those read every form of a value and do not
//! tell which they met. Everything that reads bodies goes through one [`Reader`], which never allocates.

use super::path::is_document_path;
use super::{DocumentPath, FieldPath, Fields, GeoPoint, Reference, Timestamp, Value};

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
    pub(crate) fn under_key(mut self: Box<Self>, key: &str) -> Box<Self> {
        self.field.push_key(key);
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
    put_map_header(fields.len(), out);
    for (key, value) in fields {
        put_str(key, out);
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
        Value::String(value) => put_str(value, out),
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
        each(name);
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
        token => each(token),
    }
    Ok(())
}

fn decode_entries(reader: &mut Reader<'_>, count: usize, depth: usize) -> Result<Fields, Fault> {
    let mut fields = Fields::new();
    let mut previous = None;
    for _ in 0..count {
        let key = reader.key(previous)?;
        let value = decode_value(reader, depth).map_err(|fault| fault.under_key(key))?;
        fields.insert(key.to_owned(), value);
        previous = Some(key);
    }
    Ok(fields)
}

fn decode_value(reader: &mut Reader<'_>, depth: usize) -> Result<Value, Fault> {
    check_depth(depth)?;
    Ok(match reader.token()? {
        Token::Null => Value::Null,
        Token::Boolean(value) => Value::Boolean(value),
        Token::Integer(value) => Value::Integer(value),
        Token::Double(bits) => Value::Double(f64::from_bits(bits)),
        Token::Timestamp(value) => Value::Timestamp(value),
        Token::String(value) => Value::String(value.to_owned()),
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

/// One value, or the beginning of an array or map: its length, the members follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    Null,
    Boolean(bool),
    Integer(i64),
    /// The bits.
    Double(u64),
    Timestamp(Timestamp),
    String(&'a str),
    Bytes(&'a [u8]),
    Reference(ReferenceRef<'a>),
    /// Latitude and longitude, the bits.
    GeoPoint(u64, u64),
    Array(usize),
    Map(usize),
}

/// Reads canonical values one after the other. Strict about each; [`check_depth`] and [`finish`](Self::finish) are the
/// caller's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins to read a body: a reader before the first field's key, and the number of fields.
    pub(crate) fn open(body: &'a [u8]) -> Result<(Self, usize), Defect> {
        let mut reader = Self { rest: body };
        match reader.token()? {
            Token::Map(count) => Ok((reader, count)),
            _ => Err(Defect::NotAMap),
        }
    }

    /// Begins to read a single value.
    pub(crate) fn of_value(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    /// Checks that everything was read.
    pub(crate) fn finish(&self) -> Result<(), Defect> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Defect::TrailingBytes)
        }
    }

    /// The next key of a map, which must be greater than the one before.
    #[inline]
    pub(crate) fn key(&mut self, previous: Option<&str>) -> Result<&'a str, Defect> {
        let length = match self.byte()? {
            tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
            tag @ 0xd9..=0xdb => self.text_length(tag)?,
            _ => return Err(Defect::KeyType),
        };
        let key = self.text(length)?;
        match previous {
            Some(previous) if previous.as_bytes() >= key.as_bytes() => Err(Defect::KeyOrder),
            _ => Ok(key),
        }
    }

    /// The next value.
    #[inline]
    pub(crate) fn token(&mut self) -> Result<Token<'a>, Defect> {
        let tag = self.byte()?;
        Ok(match tag {
            0x00..=0x7f => Token::Integer(i64::from(tag)),
            0xe0..=0xff => Token::Integer(i64::from(tag as i8)),
            0xa0..=0xbf => Token::String(self.text(usize::from(tag & 0x1f))?),
            0xd9..=0xdb => {
                let length = self.text_length(tag)?;
                Token::String(self.text(length)?)
            }
            0x80..=0x8f => self.map(usize::from(tag & 0x0f))?,
            0x90..=0x9f => self.array_of(usize::from(tag & 0x0f))?,
            0xcb => Token::Double(u64::from_be_bytes(self.bytes()?)),
            0xc0 => Token::Null,
            0xc2 => Token::Boolean(false),
            0xc3 => Token::Boolean(true),
            0xcc..=0xcf => Token::Integer(self.unsigned(tag)?),
            0xd0..=0xd3 => Token::Integer(self.signed(tag)?),
            0xc4 => {
                let length = self.length8(0)?;
                Token::Bytes(self.take(length)?)
            }
            0xc5 => {
                let length = self.length16(0x100)?;
                Token::Bytes(self.take(length)?)
            }
            0xc6 => {
                let length = self.length32()?;
                Token::Bytes(self.take(length)?)
            }
            0xdc => {
                let count = self.length16(16)?;
                self.array_of(count)?
            }
            0xdd => {
                let count = self.length32()?;
                self.array_of(count)?
            }
            0xde => {
                let count = self.length16(16)?;
                self.map(count)?
            }
            0xdf => {
                let count = self.length32()?;
                self.map(count)?
            }
            0xd4..=0xd8 => self.extension(1 << (tag - 0xd4))?,
            0xc7 => {
                let length = self.length8(0)?;
                if matches!(length, 1 | 2 | 4 | 8 | 16) {
                    return Err(Defect::NotSmallest);
                }
                self.extension(length)?
            }
            0xc8 => {
                let length = self.length16(0x100)?;
                self.extension(length)?
            }
            0xc9 => {
                let length = self.length32()?;
                self.extension(length)?
            }
            0xc1 | 0xca => return Err(Defect::UnknownType(tag)),
        })
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Defect> {
        let (&byte, rest) = self.rest.split_first().ok_or(Defect::Truncated)?;
        self.rest = rest;
        Ok(byte)
    }

    #[inline]
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Defect> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(Defect::Truncated)?;
        self.rest = rest;
        Ok(*bytes)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Defect> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Defect::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn text(&mut self, length: usize) -> Result<&'a str, Defect> {
        std::str::from_utf8(self.take(length)?).map_err(|_| Defect::Utf8)
    }

    fn text_length(&mut self, tag: u8) -> Result<usize, Defect> {
        match tag {
            0xd9 => self.length8(32),
            0xda => self.length16(0x100),
            _ => self.length32(),
        }
    }

    /// A length in a form that lengths below `least` do not need.
    fn length8(&mut self, least: usize) -> Result<usize, Defect> {
        at_least(usize::from(self.byte()?), least)
    }

    fn length16(&mut self, least: usize) -> Result<usize, Defect> {
        at_least(usize::from(u16::from_be_bytes(self.bytes()?)), least)
    }

    fn length32(&mut self) -> Result<usize, Defect> {
        let length = u32::from_be_bytes(self.bytes()?);
        at_least(usize::try_from(length).map_err(|_| Defect::Truncated)?, 0x1_0000)
    }

    /// Every element takes a byte at least, so a count beyond the rest is known to be wrong before anything is read.
    fn array_of(&self, count: usize) -> Result<Token<'a>, Defect> {
        if count > self.rest.len() {
            return Err(Defect::Truncated);
        }
        Ok(Token::Array(count))
    }

    fn map(&self, count: usize) -> Result<Token<'a>, Defect> {
        if count > self.rest.len() / 2 {
            return Err(Defect::Truncated);
        }
        Ok(Token::Map(count))
    }

    fn unsigned(&mut self, tag: u8) -> Result<i64, Defect> {
        let (value, least) = match tag {
            0xcc => (u64::from(self.byte()?), 1 << 7),
            0xcd => (u64::from(u16::from_be_bytes(self.bytes()?)), 1 << 8),
            0xce => (u64::from(u32::from_be_bytes(self.bytes()?)), 1 << 16),
            _ => (u64::from_be_bytes(self.bytes()?), 1 << 32),
        };
        if value < least {
            return Err(Defect::NotSmallest);
        }
        i64::try_from(value).map_err(|_| Defect::IntegerRange)
    }

    fn signed(&mut self, tag: u8) -> Result<i64, Defect> {
        let (value, greatest) = match tag {
            0xd0 => (i64::from(i8::from_be_bytes(self.bytes()?)), -33),
            0xd1 => (
                i64::from(i16::from_be_bytes(self.bytes()?)),
                i64::from(i8::MIN) - 1,
            ),
            0xd2 => (
                i64::from(i32::from_be_bytes(self.bytes()?)),
                i64::from(i16::MIN) - 1,
            ),
            _ => (i64::from_be_bytes(self.bytes()?), i64::from(i32::MIN) - 1),
        };
        if value > greatest {
            return Err(Defect::NotSmallest);
        }
        Ok(value)
    }

    fn extension(&mut self, length: usize) -> Result<Token<'a>, Defect> {
        match (self.byte()?, length) {
            (EXT_TIMESTAMP, 4 | 8 | 12) => self.timestamp(length),
            (EXT_RELATIVE_REFERENCE, _) => {
                let path = self.text(length)?;
                if !is_document_path(path) {
                    return Err(Defect::ReferencePath);
                }
                Ok(Token::Reference(ReferenceRef::Relative(path)))
            }
            (EXT_ABSOLUTE_REFERENCE, _) => Ok(Token::Reference(ReferenceRef::Absolute(self.text(length)?))),
            (EXT_GEO_POINT, 16) => {
                let latitude = u64::from_be_bytes(self.bytes()?);
                let longitude = u64::from_be_bytes(self.bytes()?);
                Ok(Token::GeoPoint(latitude, longitude))
            }
            (kind, _) => Err(Defect::UnknownType(kind)),
        }
    }

    fn timestamp(&mut self, length: usize) -> Result<Token<'a>, Defect> {
        let time = match length {
            4 => Timestamp::new(i64::from(u32::from_be_bytes(self.bytes()?)), 0),
            8 => {
                let packed = u64::from_be_bytes(self.bytes()?);
                Timestamp::new((packed & MAX_SECONDS_64 as u64) as i64, (packed >> 34) as u32)
            }
            _ => {
                let nanos = u32::from_be_bytes(self.bytes()?);
                Timestamp::new(i64::from_be_bytes(self.bytes()?), nanos)
            }
        };
        if time.nanos >= NANOS_PER_SECOND {
            return Err(Defect::Nanoseconds);
        }
        if timestamp_length(time) != length {
            return Err(Defect::NotSmallest);
        }
        Ok(Token::Timestamp(time))
    }
}

fn at_least(length: usize, least: usize) -> Result<usize, Defect> {
    if length < least {
        Err(Defect::NotSmallest)
    } else {
        Ok(length)
    }
}

/// Nanoseconds of a timestamp stay below this.
pub(crate) const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// The largest number of seconds that MessagePack's 64 bit timestamp holds: 34 bits.
const MAX_SECONDS_64: i64 = (1 << 34) - 1;

/// The length of MessagePack's smallest form of a timestamp.
fn timestamp_length(time: Timestamp) -> usize {
    match time {
        Timestamp { seconds, nanos: 0 } if u32::try_from(seconds).is_ok() => 4,
        Timestamp { seconds, nanos }
            if (0..=MAX_SECONDS_64).contains(&seconds) && nanos < NANOS_PER_SECOND =>
        {
            8
        }
        _ => 12,
    }
}

pub(crate) fn put_null(out: &mut Vec<u8>) {
    out.push(0xc0);
}

pub(crate) fn put_boolean(value: bool, out: &mut Vec<u8>) {
    out.push(0xc2 | u8::from(value));
}

pub(crate) fn put_integer(value: i64, out: &mut Vec<u8>) {
    // Each cast keeps the value: the arm's range says so.
    match value {
        0..=0x7f => out.push(value as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, value as u8]),
        0x100..=0xffff => put_tagged(0xcd, (value as u16).to_be_bytes(), out),
        0x1_0000..=0xffff_ffff => put_tagged(0xce, (value as u32).to_be_bytes(), out),
        0x1_0000_0000.. => put_tagged(0xcf, value.to_be_bytes(), out),
        -32..=-1 => out.push(value as u8),
        -0x80..=-33 => out.extend_from_slice(&[0xd0, value as u8]),
        -0x8000..=-0x81 => put_tagged(0xd1, (value as i16).to_be_bytes(), out),
        -0x8000_0000..=-0x8001 => put_tagged(0xd2, (value as i32).to_be_bytes(), out),
        ..=-0x8000_0001 => put_tagged(0xd3, value.to_be_bytes(), out),
    }
}

pub(crate) fn put_double(bits: u64, out: &mut Vec<u8>) {
    put_tagged(0xcb, bits.to_be_bytes(), out);
}

#[inline]
fn put_tagged<const N: usize>(tag: u8, bytes: [u8; N], out: &mut Vec<u8>) {
    out.reserve(N + 1);
    out.push(tag);
    out.extend_from_slice(&bytes);
}

pub(crate) fn put_timestamp(time: Timestamp, out: &mut Vec<u8>) {
    match timestamp_length(time) {
        4 => {
            out.extend_from_slice(&[0xd6, EXT_TIMESTAMP]);
            out.extend_from_slice(&(time.seconds as u32).to_be_bytes());
        }
        8 => {
            out.extend_from_slice(&[0xd7, EXT_TIMESTAMP]);
            let packed = u64::from(time.nanos) << 34 | time.seconds as u64;
            out.extend_from_slice(&packed.to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[0xc7, 12, EXT_TIMESTAMP]);
            out.extend_from_slice(&time.nanos.to_be_bytes());
            out.extend_from_slice(&time.seconds.to_be_bytes());
        }
    }
}

#[inline]
pub(crate) fn put_str(text: &str, out: &mut Vec<u8>) {
    match text.len() {
        length @ 0..=31 => out.push(0xa0 | length as u8),
        length @ 32..=0xff => out.extend_from_slice(&[0xd9, length as u8]),
        length => put_long(length, 0xda, 0xdb, out),
    }
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    match bytes.len() {
        length @ 0..=0xff => out.extend_from_slice(&[0xc4, length as u8]),
        length => put_long(length, 0xc5, 0xc6, out),
    }
    out.extend_from_slice(bytes);
}

pub(crate) fn put_array_header(count: usize, out: &mut Vec<u8>) {
    match count {
        0..=15 => out.push(0x90 | count as u8),
        _ => put_long(count, 0xdc, 0xdd, out),
    }
}

pub(crate) fn put_map_header(count: usize, out: &mut Vec<u8>) {
    match count {
        0..=15 => out.push(0x80 | count as u8),
        _ => put_long(count, 0xde, 0xdf, out),
    }
}

/// A length in 16 bits after one tag or in 32 after the other. MessagePack has no longer ones, and nothing that Firestore
/// holds comes near: a document has 4 MiB at most.
fn put_long(length: usize, tag16: u8, tag32: u8, out: &mut Vec<u8>) {
    match u16::try_from(length) {
        Ok(length) => put_tagged(tag16, length.to_be_bytes(), out),
        Err(_) => put_tagged(tag32, (length as u32).to_be_bytes(), out),
    }
}

pub(crate) fn put_relative_reference(path: &str, out: &mut Vec<u8>) {
    put_extension(EXT_RELATIVE_REFERENCE, path.as_bytes(), out);
}

pub(crate) fn put_absolute_reference(name: &str, out: &mut Vec<u8>) {
    put_extension(EXT_ABSOLUTE_REFERENCE, name.as_bytes(), out);
}

pub(crate) fn put_geo_point(latitude: u64, longitude: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd8, EXT_GEO_POINT]);
    out.extend_from_slice(&latitude.to_be_bytes());
    out.extend_from_slice(&longitude.to_be_bytes());
}

fn put_extension(kind: u8, payload: &[u8], out: &mut Vec<u8>) {
    match payload.len() {
        length @ (1 | 2 | 4 | 8 | 16) => out.push(0xd4 + length.trailing_zeros() as u8),
        length @ 0..=0xff => out.extend_from_slice(&[0xc7, length as u8]),
        length => put_long(length, 0xc8, 0xc9, out),
    }
    out.push(kind);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests;
