//! From the canonical form to the wire.
//!
//! One pass, which checks the body as it goes. Protobuf puts every message's length before it: a scalar's
//! follows from its token, and an array's or a map's is put in when its members are written, behind room that
//! is closed again by one move.

use super::{ReferencesSeen, WireError, number};
use crate::document::canonical::{CanonicalError, Reader, ReferenceRef, Text, Token, check_depth};
use crate::document::{DocumentPath, Timestamp};

/// Appends `google.firestore.v1.Document{name, fields}` to `out`: the document at `path` below `root`
/// (`projects/P/databases/D/documents`) with the fields that `body` is the canonical form of. Relative references
/// become names below `root`; absolute ones stay as they are. Returns how many there are of each.
///
/// Fails if `body` is not canonical; `out` is as it was before then.
pub fn append_document_message(
    path: &DocumentPath,
    body: &[u8],
    root: &str,
    out: &mut Vec<u8>,
) -> Result<ReferencesSeen, WireError> {
    let start = out.len();
    let path_text = path.as_str();
    out.reserve(body.len() * 2 + root.len() + path_text.len());
    put_length(number::DOCUMENT_NAME, root.len() + 1 + path_text.len(), out);
    out.extend_from_slice(root.as_bytes());
    out.push(b'/');
    out.extend_from_slice(path_text.as_bytes());
    let mut writer = Writer {
        root,
        out,
        references: ReferencesSeen::default(),
    };
    match writer.document(body) {
        Ok(()) => Ok(writer.references),
        Err(source) => {
            out.truncate(start);
            Err(WireError::InvalidBody {
                document: path.to_string(),
                source: *source,
            })
        }
    }
}

/// What is known of a value's length before its members are written.
enum Size {
    Scalar(usize),
    Members(Members),
}

/// An array or a map, and how many members it has.
#[derive(Clone, Copy)]
enum Members {
    Array(usize),
    Map(usize),
}

impl Members {
    /// The member of `Value` that it is.
    fn member(self) -> u32 {
        match self {
            Self::Array(_) => number::ARRAY,
            Self::Map(_) => number::MAP,
        }
    }
}

struct Writer<'m> {
    root: &'m str,
    out: &'m mut Vec<u8>,
    references: ReferencesSeen,
}

impl Writer<'_> {
    fn document(&mut self, body: &[u8]) -> Result<(), Box<CanonicalError>> {
        let (mut reader, count) = Reader::open(body)?;
        self.entries(&mut reader, number::DOCUMENT_FIELDS, count, 1)?;
        Ok(reader.finish()?)
    }

    /// Writes the next `count` entries of a map, each as the field `field`; their values are at `depth`.
    fn entries(
        &mut self,
        reader: &mut Reader<'_>,
        field: u32,
        count: usize,
        depth: usize,
    ) -> Result<(), Box<CanonicalError>> {
        let mut previous = None;
        for _ in 0..count {
            let key = reader.key(previous)?;
            key.check()?;
            self.entry(reader, field, key, depth)
                .map_err(|fault| fault.under_key(key))?;
            previous = Some(key);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        reader: &mut Reader<'_>,
        field: u32,
        key: Text<'_>,
        depth: usize,
    ) -> Result<(), Box<CanonicalError>> {
        check_depth(depth)?;
        let name = key.as_bytes();
        let token = reader.token()?;
        let members = match self.size(token)? {
            Size::Members(members) => members,
            Size::Scalar(value) => {
                let length = delimited(name.len()) + delimited(value);
                if length < 0x80 {
                    // Tags and lengths of a byte each, as they mostly are.
                    let head = [
                        delimited_tag(field),
                        length as u8,
                        delimited_tag(number::ENTRY_KEY),
                        name.len() as u8,
                    ];
                    self.out.extend_from_slice(&head);
                    self.out.extend_from_slice(name);
                    self.out
                        .extend_from_slice(&[delimited_tag(number::ENTRY_VALUE), value as u8]);
                } else {
                    put_length(field, length, self.out);
                    put_length(number::ENTRY_KEY, name.len(), self.out);
                    self.out.extend_from_slice(name);
                    put_length(number::ENTRY_VALUE, value, self.out);
                }
                self.scalar(token);
                return Ok(());
            }
        };
        let room = Room::open(4 * MAX_HEAD + name.len(), self.out);
        self.members(reader, members, depth + 1)?;
        let (member, content) = (members.member(), room.filled(self.out));
        let value = delimited(content);
        room.close(self.out, |head| {
            put_length(field, delimited(name.len()) + delimited(value), head);
            put_length(number::ENTRY_KEY, name.len(), head);
            head.extend_from_slice(name);
            put_length(number::ENTRY_VALUE, value, head);
            put_length(member, content, head);
        });
        Ok(())
    }

    /// Writes the next `count` values of an array, which are at `depth`.
    fn elements(
        &mut self,
        reader: &mut Reader<'_>,
        count: usize,
        depth: usize,
    ) -> Result<(), Box<CanonicalError>> {
        for index in 0..count {
            self.element(reader, depth)
                .map_err(|fault| fault.under_index(index))?;
        }
        Ok(())
    }

    fn element(&mut self, reader: &mut Reader<'_>, depth: usize) -> Result<(), Box<CanonicalError>> {
        check_depth(depth)?;
        let token = reader.token()?;
        let members = match self.size(token)? {
            Size::Members(members) => members,
            Size::Scalar(value) => {
                put_length(number::ARRAY_VALUES, value, self.out);
                self.scalar(token);
                return Ok(());
            }
        };
        let room = Room::open(2 * MAX_HEAD, self.out);
        self.members(reader, members, depth + 1)?;
        let (member, content) = (members.member(), room.filled(self.out));
        room.close(self.out, |head| {
            put_length(number::ARRAY_VALUES, delimited(content), head);
            put_length(member, content, head);
        });
        Ok(())
    }

    /// Writes what an array or a map holds, whose values are at `depth`.
    fn members(
        &mut self,
        reader: &mut Reader<'_>,
        members: Members,
        depth: usize,
    ) -> Result<(), Box<CanonicalError>> {
        match members {
            Members::Array(count) => self.elements(reader, count, depth),
            Members::Map(count) => self.entries(reader, number::MAP_FIELDS, count, depth),
        }
    }

    /// The length of the `Value` that a token is, as far as the token tells. Checks a text.
    #[inline(always)]
    fn size(&mut self, token: Token<'_>) -> Result<Size, Box<CanonicalError>> {
        Ok(Size::Scalar(match token {
            // Its field number takes two bytes.
            Token::String(text) => {
                text.check()?;
                1 + delimited(text.as_bytes().len())
            }
            Token::Integer(value) => 1 + varint_len(value as u64),
            Token::Double(_) => 9,
            Token::Null | Token::Boolean(_) => 2,
            Token::Timestamp(time) => delimited(timestamp_len(time)),
            Token::Bytes(bytes) => 1 + delimited(bytes.len()),
            Token::Reference(ReferenceRef::Relative(path)) => {
                self.references.relative += 1;
                delimited(self.root.len() + 1 + path.len())
            }
            Token::Reference(ReferenceRef::Absolute(name)) => {
                self.references.absolute += 1;
                delimited(name.len())
            }
            Token::GeoPoint(..) => delimited(GEO_POINT_LEN),
            Token::Array(count) => return Ok(Size::Members(Members::Array(count))),
            Token::Map(count) => return Ok(Size::Members(Members::Map(count))),
        }))
    }

    /// Writes a `Value` that is no array and no map.
    #[inline(always)]
    fn scalar(&mut self, token: Token<'_>) {
        let out = &mut *self.out;
        match token {
            Token::String(text) => {
                put_length(number::STRING, text.as_bytes().len(), out);
                out.extend_from_slice(text.as_bytes());
            }
            Token::Integer(value) => put_number(number::INTEGER, value as u64, out),
            Token::Double(bits) => put_fixed64(number::DOUBLE, bits, out),
            Token::Boolean(value) => put_number(number::BOOLEAN, u64::from(value), out),
            Token::Null => put_number(number::NULL, 0, out),
            Token::Timestamp(time) => {
                put_length(number::TIMESTAMP, timestamp_len(time), out);
                if time.seconds != 0 {
                    put_number(number::TIMESTAMP_SECONDS, time.seconds as u64, out);
                }
                if time.nanos != 0 {
                    put_number(number::TIMESTAMP_NANOS, u64::from(time.nanos), out);
                }
            }
            Token::Bytes(bytes) => {
                put_length(number::BYTES, bytes.len(), out);
                out.extend_from_slice(bytes);
            }
            Token::Reference(ReferenceRef::Absolute(name)) => {
                put_length(number::REFERENCE, name.len(), out);
                out.extend_from_slice(name.as_bytes());
            }
            Token::Reference(ReferenceRef::Relative(path)) => {
                put_length(number::REFERENCE, self.root.len() + 1 + path.len(), out);
                out.extend_from_slice(self.root.as_bytes());
                out.push(b'/');
                out.extend_from_slice(path.as_bytes());
            }
            Token::GeoPoint(latitude, longitude) => {
                put_length(number::GEO_POINT, GEO_POINT_LEN, out);
                put_fixed64(number::LATITUDE, latitude, out);
                put_fixed64(number::LONGITUDE, longitude, out);
            }
            Token::Array(_) | Token::Map(_) => {}
        }
    }
}

/// A tag of two bytes and a length of ten, as long as they can get.
const MAX_HEAD: usize = 12;

/// Room for the heads of a message whose length is not known yet.
struct Room {
    start: usize,
    len: usize,
}

impl Room {
    fn open(len: usize, out: &mut Vec<u8>) -> Self {
        let start = out.len();
        out.resize(start + len, 0);
        Self { start, len }
    }

    /// What was written behind the room.
    fn filled(&self, out: &[u8]) -> usize {
        out.len() - self.start - self.len
    }

    /// Puts the heads where the room is and moves what is behind it up to them.
    fn close(self, out: &mut Vec<u8>, heads: impl FnOnce(&mut Vec<u8>)) {
        let end = out.len();
        // Behind the content first, where a vector grows: they are a few bytes.
        heads(out);
        let heads_len = out.len() - end;
        debug_assert!(heads_len <= self.len);
        out.copy_within(end.., self.start);
        out.copy_within(self.start + self.len..end, self.start + heads_len);
        out.truncate(end - self.len + heads_len);
    }
}

/// The length of a delimited field with a one-byte tag.
#[inline]
fn delimited(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// The tag of a delimited field whose number is below 16.
#[inline]
const fn delimited_tag(field: u32) -> u8 {
    (field << 3 | 2) as u8
}

#[inline]
fn varint_len(value: u64) -> usize {
    // Seven bits a byte, and one byte for zero.
    ((63 - (value | 1).leading_zeros()) / 7 + 1) as usize
}

/// Both coordinates are written, also where they are zero: a reader that took the default for them could not
/// tell `0.0` from `-0.0`.
const GEO_POINT_LEN: usize = 18;

fn timestamp_len(time: Timestamp) -> usize {
    let mut len = 0;
    if time.seconds != 0 {
        len += 1 + varint_len(time.seconds as u64);
    }
    if time.nanos != 0 {
        len += 1 + varint_len(u64::from(time.nanos));
    }
    len
}

#[inline]
fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The head of a delimited field: its tag and its length.
#[inline]
fn put_length(field: u32, len: usize, out: &mut Vec<u8>) {
    put_number_of_type(field << 3 | 2, len as u64, out);
}

/// A field that is a varint.
#[inline]
fn put_number(field: u32, value: u64, out: &mut Vec<u8>) {
    put_number_of_type(field << 3, value, out);
}

#[inline]
fn put_number_of_type(tag: u32, value: u64, out: &mut Vec<u8>) {
    // Appended at once where both are small, as they mostly are.
    match (tag, value) {
        (0..0x80, 0..0x80) => out.extend_from_slice(&[tag as u8, value as u8]),
        (0x80.., 0..0x80) if tag < 0x4000 => {
            out.extend_from_slice(&[tag as u8 | 0x80, (tag >> 7) as u8, value as u8]);
        }
        _ => {
            put_varint(u64::from(tag), out);
            put_varint(value, out);
        }
    }
}

#[inline]
fn put_fixed64(field: u32, bits: u64, out: &mut Vec<u8>) {
    // Their numbers are below 16: one byte.
    let mut bytes = [(field << 3 | 1) as u8; 9];
    bytes[1..].copy_from_slice(&bits.to_le_bytes());
    out.extend_from_slice(&bytes);
}
