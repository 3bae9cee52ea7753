//! From the canonical form to the wire.
//!
//! Protobuf puts every message's length before it. One pass over the body checks it and notes the length of each array and
//! map in the order in which they begin; a second writes, and takes the lengths as it comes to them. All other lengths
//! follow from the value itself.

use std::cell::RefCell;

use super::{WireError, number};
use crate::document::DocumentPath;
use crate::document::canonical::{CanonicalError, Reader, ReferenceRef, Text, Token, check_depth};

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
            let mut head = Head::new();
            head.length(number::DOCUMENT_NAME, root.len() + 1 + path.as_str().len());
            head.put(out);
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
            key.check()?;
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
            Token::String(text) => {
                text.check()?;
                Ok(scalar_size(Token::String(text), self.root))
            }
            token => Ok(scalar_size(token, self.root)),
        }
    }
}

/// The length of a map's entry.
fn entry_size(key: Text<'_>, value: usize) -> usize {
    delimited(key.as_bytes().len()) + delimited(value)
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
        Token::String(text) => 1 + delimited(text.as_bytes().len()),
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
            let key = self.reader.key(None)?.as_bytes();
            let token = self.reader.token()?;
            let (value, content) = self.value_size(token);
            let mut head = Head::new();
            head.length(field, delimited(key.len()) + delimited(value));
            head.length(number::ENTRY_KEY, key.len());
            head.put(self.out);
            self.out.extend_from_slice(key);
            let mut head = Head::new();
            head.length(number::ENTRY_VALUE, value);
            self.value(head, token, content)?;
        }
        Ok(())
    }

    /// The length of the value that begins with `token`, and of what an array or map holds.
    #[inline]
    fn value_size(&mut self, token: Token<'_>) -> (usize, usize) {
        match token {
            Token::Array(_) | Token::Map(_) => {
                let content = self.sizes.next().copied().unwrap_or_default();
                (delimited(content), content)
            }
            token => (scalar_size(token, self.root), 0),
        }
    }

    /// Writes a value after `head`.
    #[inline]
    fn value(&mut self, mut head: Head, token: Token<'_>, content: usize) -> Result<(), Box<CanonicalError>> {
        let mut rest: [&[u8]; 3] = [b""; 3];
        match token {
            Token::Null => head.number(number::NULL, 0),
            Token::Boolean(value) => head.number(number::BOOLEAN, u64::from(value)),
            Token::Integer(value) => head.number(number::INTEGER, value as u64),
            Token::Double(bits) => head.fixed64(number::DOUBLE, bits),
            Token::Timestamp(time) => {
                head.length(number::TIMESTAMP, timestamp_size(time));
                if time.seconds != 0 {
                    head.number(number::TIMESTAMP_SECONDS, time.seconds as u64);
                }
                if time.nanos != 0 {
                    head.number(number::TIMESTAMP_NANOS, u64::from(time.nanos));
                }
            }
            Token::String(text) => {
                rest[0] = text.as_bytes();
                head.length(number::STRING, rest[0].len());
            }
            Token::Bytes(bytes) => {
                rest[0] = bytes;
                head.length(number::BYTES, bytes.len());
            }
            Token::Reference(ReferenceRef::Absolute(name)) => {
                rest[0] = name.as_bytes();
                head.length(number::REFERENCE, name.len());
            }
            Token::Reference(ReferenceRef::Relative(path)) => {
                rest = [self.root.as_bytes(), b"/", path.as_bytes()];
                head.length(number::REFERENCE, self.root.len() + 1 + path.len());
            }
            Token::GeoPoint(latitude, longitude) => {
                head.length(number::GEO_POINT, GEO_POINT_SIZE);
                head.fixed64(number::LATITUDE, latitude);
                head.fixed64(number::LONGITUDE, longitude);
            }
            Token::Array(count) => {
                head.length(number::ARRAY, content);
                head.put(self.out);
                return self.elements(count);
            }
            Token::Map(count) => {
                head.length(number::MAP, content);
                head.put(self.out);
                return self.entries(number::MAP_FIELDS, count);
            }
        }
        head.put(self.out);
        for bytes in rest {
            if !bytes.is_empty() {
                self.out.extend_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn elements(&mut self, count: usize) -> Result<(), Box<CanonicalError>> {
        for _ in 0..count {
            let token = self.reader.token()?;
            let (value, content) = self.value_size(token);
            let mut head = Head::new();
            head.length(number::ARRAY_VALUES, value);
            self.value(head, token, content)?;
        }
        Ok(())
    }
}

/// A few tags, lengths and numbers, put together before they are appended at once.
///
/// The longest is an array's or a map's element that is a timestamp: a length of 11 bytes at most, one of 2, numbers of 11
/// and 6.
struct Head {
    bytes: [u8; 64],
    length: usize,
}

impl Head {
    #[inline]
    fn new() -> Self {
        Self {
            bytes: [0; 64],
            length: 0,
        }
    }

    #[inline]
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..self.length]);
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    #[inline]
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    #[inline]
    fn length(&mut self, field: u32, length: usize) {
        self.varint(u64::from(field << 3 | 2));
        self.varint(length as u64);
    }

    #[inline]
    fn number(&mut self, field: u32, value: u64) {
        self.varint(u64::from(field << 3));
        self.varint(value);
    }

    #[inline]
    fn fixed64(&mut self, field: u32, bits: u64) {
        self.varint(u64::from(field << 3 | 1));
        for byte in bits.to_le_bytes() {
            self.push(byte);
        }
    }
}
