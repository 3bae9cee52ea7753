//! Reading canonical values one after the other.

use super::put::{MAX_SECONDS_64, NANOS_PER_SECOND, timestamp_length};
use super::{
    Defect, EXT_ABSOLUTE_REFERENCE, EXT_GEO_POINT, EXT_RELATIVE_REFERENCE, EXT_TIMESTAMP, ReferenceRef,
};
use crate::document::Timestamp;
use crate::document::path::is_document_path;

/// Whether `bytes` are UTF-8. Most texts are short and ASCII, for which the general check is slow.
#[inline]
pub(crate) fn is_utf8(bytes: &[u8]) -> bool {
    is_ascii(bytes) || std::str::from_utf8(bytes).is_ok()
}

/// Like the standard library's, which goes byte by byte through what is as short as most texts are.
#[inline]
fn is_ascii(bytes: &[u8]) -> bool {
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    let (words, _) = bytes.as_chunks::<8>();
    let seen = match (
        bytes.last_chunk::<8>(),
        bytes.first_chunk::<4>(),
        bytes.last_chunk::<4>(),
    ) {
        // The last ones overlap with those before.
        (Some(last), ..) => words.iter().fold(u64::from_ne_bytes(*last), |seen, word| {
            seen | u64::from_ne_bytes(*word)
        }),
        (None, Some(first), Some(last)) => u64::from(u32::from_ne_bytes(*first) | u32::from_ne_bytes(*last)),
        _ => bytes.iter().fold(0, |seen, &byte| seen | u64::from(byte)),
    };
    seen & HIGH_BITS == 0
}

/// The order of keys, for keys of which the first byte decides most times.
#[inline]
fn precedes(a: &[u8], b: &[u8]) -> bool {
    match (a.first(), b.first()) {
        (Some(first), Some(second)) if first != second => first < second,
        _ => a < b,
    }
}

/// A text whose bytes nobody has looked at yet: whoever reads a body for the first time must
/// [`check`](Self::check) it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// Checks that it is UTF-8.
    #[inline]
    pub(crate) fn check(self) -> Result<(), Defect> {
        if is_utf8(self.0) {
            Ok(())
        } else {
            Err(Defect::Utf8)
        }
    }

    #[inline]
    pub(crate) fn to_str(self) -> Result<&'a str, Defect> {
        std::str::from_utf8(self.0).map_err(|_| Defect::Utf8)
    }

    pub(crate) fn to_lossy(self) -> std::borrow::Cow<'a, str> {
        String::from_utf8_lossy(self.0)
    }

    /// The bytes, of which UTF-8 is known or does not matter.
    #[inline]
    pub(crate) fn as_bytes(self) -> &'a [u8] {
        self.0
    }
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
    String(Text<'a>),
    Bytes(&'a [u8]),
    Reference(ReferenceRef<'a>),
    /// Latitude and longitude, the bits.
    GeoPoint(u64, u64),
    Array(usize),
    Map(usize),
}

/// Reads canonical values one after the other. Strict about each; [`check_depth`] and
/// [`finish`](Self::finish) are the caller's.
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
    pub(crate) fn key(&mut self, previous: Option<Text<'_>>) -> Result<Text<'a>, Defect> {
        let length = match self.byte()? {
            tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
            tag @ 0xd9..=0xdb => self.text_length(tag)?,
            _ => return Err(Defect::KeyType),
        };
        let key = Text(self.take(length)?);
        match previous {
            Some(previous) if !precedes(previous.0, key.0) => Err(Defect::KeyOrder),
            _ => Ok(key),
        }
    }

    /// The next value.
    // As a call of its own it would pass every token through memory.
    #[inline(always)]
    pub(crate) fn token(&mut self) -> Result<Token<'a>, Defect> {
        let tag = self.byte()?;
        Ok(match tag {
            0x00..=0x7f => Token::Integer(i64::from(tag)),
            0xe0..=0xff => Token::Integer(i64::from(tag as i8)),
            0xa0..=0xbf => Token::String(Text(self.take(usize::from(tag & 0x1f))?)),
            0xd9..=0xdb => {
                let length = self.text_length(tag)?;
                Token::String(Text(self.take(length)?))
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

    /// Every element takes a byte at least, so a count beyond the rest is known to be wrong before anything
    /// is read.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn utf8_is_told_as_the_standard_library_does(
            mut bytes in proptest::collection::vec(0u8..0x80, 0..40),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            text in ".{0,12}",
        ) {
            prop_assert!(super::is_ascii(&bytes));
            prop_assert!(super::is_utf8(text.as_bytes()));
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            prop_assert_eq!(super::is_ascii(&bytes), bytes.is_ascii());
            prop_assert_eq!(super::is_utf8(&bytes), std::str::from_utf8(&bytes).is_ok());
        }
    }
}
