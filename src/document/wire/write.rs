//! From the canonical form to the wire.
//!
//! Protobuf puts every message's length before it. One pass over the body checks it and notes the length of each array and
//! map in the order in which they begin; a second writes, and takes the lengths as it comes to them. All other lengths
//! follow from the value itself.

use std::cell::RefCell;

use super::{WireError, number};
use crate::document::DocumentPath;
use crate::document::canonical::{CanonicalError, Reader, ReferenceRef, Token, check_depth};

/// Appends `google.firestore.v1.Document{name, fields}` to `out`: the document at `path` below `root`
/// (`projects/P/databases/D/documents`) with the fields that `body` is the canonical form of. Relative references
/// become names below `root`.
///
/// Fails if `body` is not canonical; `out` is as it was before then.
pub fn append_document_message(
    path: &DocumentPath,
    body: &[u8],
    root: &str,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    thread_local! {
        static SIZES: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    }
    SIZES.with_borrow_mut(|sizes| {
        sizes.clear();
        let start = out.len();
        let result = measure(body, root, sizes).and_then(|()| {
            out.reserve(body.len() + body.len() / 2 + root.len() + path.as_str().len());
            put_tag(number::DOCUMENT_NAME, DELIMITED, out);
            put_varint((root.len() + 1 + path.as_str().len()) as u64, out);
            out.extend_from_slice(root.as_bytes());
            out.push(b'/');
            out.extend_from_slice(path.as_str().as_bytes());
            write(body, root, sizes, out)
        });
        if sizes.capacity() > MAX_KEPT_SIZES {
            *sizes = Vec::new();
        }
        result.map_err(|source| {
            out.truncate(start);
            WireError::InvalidBody {
                document: path.to_string(),
                source: *source,
            }
        })
    })
}

const MAX_KEPT_SIZES: usize = 16 * 1024;

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const DELIMITED: u32 = 2;

/// Checks `body` and collects the lengths of its arrays' and maps' messages in the order in which they begin.
fn measure(body: &[u8], root: &str, sizes: &mut Vec<usize>) -> Result<(), Box<CanonicalError>> {
    let (mut reader, count) = Reader::open(body)?;
    let mut measure = Measure {
        reader: &mut reader,
        root,
        sizes,
    };
    measure.entries(count, 1)?;
    Ok(reader.finish()?)
}

struct Measure<'a, 'm> {
    reader: &'m mut Reader<'a>,
    root: &'m str,
    sizes: &'m mut Vec<usize>,
}

impl Measure<'_, '_> {
    /// The length of a `MapValue` with the next `count` entries.
    fn entries(&mut self, count: usize, depth: usize) -> Result<usize, Box<CanonicalError>> {
        let mut size = 0;
        let mut previous = None;
        for _ in 0..count {
            let key = self.reader.key(previous)?;
            let value = self.value(depth).map_err(|fault| fault.under_key(key))?;
            size += delimited(entry_size(key, value));
            previous = Some(key);
        }
        Ok(size)
    }

    /// The length of a `Value` with the next value.
    fn value(&mut self, depth: usize) -> Result<usize, Box<CanonicalError>> {
        check_depth(depth)?;
        match self.reader.token()? {
            Token::Array(count) => {
                let slot = self.sizes.len();
                self.sizes.push(0);
                let mut size = 0;
                for index in 0..count {
                    let value = self.value(depth + 1).map_err(|fault| fault.under_index(index))?;
                    size += delimited(value);
                }
                self.sizes[slot] = size;
                Ok(delimited(size))
            }
            Token::Map(count) => {
                let slot = self.sizes.len();
                self.sizes.push(0);
                let size = self.entries(count, depth + 1)?;
                self.sizes[slot] = size;
                Ok(delimited(size))
            }
            token => Ok(scalar_size(token, self.root)),
        }
    }
}

/// The length of a map's entry.
fn entry_size(key: &str, value: usize) -> usize {
    delimited(key.len()) + delimited(value)
}

/// The length of a delimited field with a one-byte tag.
#[inline]
fn delimited(length: usize) -> usize {
    1 + varint_size(length as u64) + length
}

#[inline]
fn varint_size(value: u64) -> usize {
    // Seven bits a byte, and one byte for zero.
    ((63 - (value | 1).leading_zeros()) / 7 + 1) as usize
}

/// The length of a `Value` that is no array and no map.
#[inline]
fn scalar_size(token: Token<'_>, root: &str) -> usize {
    match token {
        Token::Null | Token::Boolean(_) => 2,
        Token::Integer(value) => 1 + varint_size(value as u64),
        Token::Double(_) => 9,
        Token::Timestamp(time) => delimited(timestamp_size(time)),
        // Their field numbers take two bytes.
        Token::String(text) => 1 + delimited(text.len()),
        Token::Bytes(bytes) => 1 + delimited(bytes.len()),
        Token::Reference(ReferenceRef::Relative(path)) => delimited(root.len() + 1 + path.len()),
        Token::Reference(ReferenceRef::Absolute(name)) => delimited(name.len()),
        Token::GeoPoint(..) => delimited(GEO_POINT_SIZE),
        Token::Array(size) | Token::Map(size) => delimited(size),
    }
}

/// Both coordinates are written, also where they are zero: a reader that took the default for them could not tell `0.0`
/// from `-0.0`.
const GEO_POINT_SIZE: usize = 18;

fn timestamp_size(time: crate::document::Timestamp) -> usize {
    let mut size = 0;
    if time.seconds != 0 {
        size += 1 + varint_size(time.seconds as u64);
    }
    if time.nanos != 0 {
        size += 1 + varint_size(u64::from(time.nanos));
    }
    size
}

/// Writes the fields of `body`, which [`measure`] has checked.
fn write(body: &[u8], root: &str, sizes: &[usize], out: &mut Vec<u8>) -> Result<(), Box<CanonicalError>> {
    let (mut reader, count) = Reader::open(body)?;
    let mut writer = Writer {
        reader: &mut reader,
        root,
        sizes: sizes.iter(),
        out,
    };
    writer.entries(number::DOCUMENT_FIELDS, count)
}

struct Writer<'a, 'm> {
    reader: &'m mut Reader<'a>,
    root: &'m str,
    sizes: std::slice::Iter<'m, usize>,
    out: &'m mut Vec<u8>,
}

impl Writer<'_, '_> {
    fn entries(&mut self, field: u32, count: usize) -> Result<(), Box<CanonicalError>> {
        for _ in 0..count {
            let key = self.reader.key(None)?;
            let token = self.reader.token()?;
            let (value, content) = self.value_size(token);
            put_length(field, entry_size(key, value), self.out);
            put_text(number::ENTRY_KEY, key.as_bytes(), self.out);
            put_length(number::ENTRY_VALUE, value, self.out);
            self.value(token, content)?;
        }
        Ok(())
    }

    /// The length of the value that begins with `token`, and of what an array or map holds.
    fn value_size(&mut self, token: Token<'_>) -> (usize, usize) {
        match token {
            Token::Array(_) | Token::Map(_) => {
                let content = self.sizes.next().copied().unwrap_or_default();
                (delimited(content), content)
            }
            token => (scalar_size(token, self.root), 0),
        }
    }

    fn value(&mut self, token: Token<'_>, content: usize) -> Result<(), Box<CanonicalError>> {
        let out = &mut *self.out;
        match token {
            Token::Null => put_number(number::NULL, 0, out),
            Token::Boolean(value) => put_number(number::BOOLEAN, u64::from(value), out),
            Token::Integer(value) => put_number(number::INTEGER, value as u64, out),
            Token::Double(bits) => put_fixed64(number::DOUBLE, bits, out),
            Token::Timestamp(time) => {
                put_length(number::TIMESTAMP, timestamp_size(time), out);
                if time.seconds != 0 {
                    put_number(number::TIMESTAMP_SECONDS, time.seconds as u64, out);
                }
                if time.nanos != 0 {
                    put_number(number::TIMESTAMP_NANOS, u64::from(time.nanos), out);
                }
            }
            Token::String(text) => put_text(number::STRING, text.as_bytes(), out),
            Token::Bytes(bytes) => put_text(number::BYTES, bytes, out),
            Token::Reference(ReferenceRef::Absolute(name)) => {
                put_text(number::REFERENCE, name.as_bytes(), out);
            }
            Token::Reference(ReferenceRef::Relative(path)) => {
                put_length(number::REFERENCE, self.root.len() + 1 + path.len(), out);
                out.extend_from_slice(self.root.as_bytes());
                out.push(b'/');
                out.extend_from_slice(path.as_bytes());
            }
            Token::GeoPoint(latitude, longitude) => {
                put_length(number::GEO_POINT, GEO_POINT_SIZE, out);
                put_fixed64(number::LATITUDE, latitude, out);
                put_fixed64(number::LONGITUDE, longitude, out);
            }
            Token::Array(count) => {
                put_length(number::ARRAY, content, out);
                for _ in 0..count {
                    let token = self.reader.token()?;
                    let (value, content) = self.value_size(token);
                    put_length(number::ARRAY_VALUES, value, self.out);
                    self.value(token, content)?;
                }
            }
            Token::Map(count) => {
                put_length(number::MAP, content, out);
                self.entries(number::MAP_FIELDS, count)?;
            }
        }
        Ok(())
    }
}

#[inline]
fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
fn put_tag(field: u32, wire_type: u32, out: &mut Vec<u8>) {
    put_varint(u64::from(field << 3 | wire_type), out);
}

fn put_length(field: u32, length: usize, out: &mut Vec<u8>) {
    put_tag(field, DELIMITED, out);
    put_varint(length as u64, out);
}

fn put_text(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_length(field, bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn put_number(field: u32, value: u64, out: &mut Vec<u8>) {
    put_tag(field, VARINT, out);
    put_varint(value, out);
}

fn put_fixed64(field: u32, bits: u64, out: &mut Vec<u8>) {
    put_tag(field, FIXED64, out);
    out.extend_from_slice(&bits.to_le_bytes());
}
