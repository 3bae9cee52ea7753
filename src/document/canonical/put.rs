//! Writing canonical values one after the other.

use super::{EXT_ABSOLUTE_REFERENCE, EXT_GEO_POINT, EXT_RELATIVE_REFERENCE, EXT_TIMESTAMP};
use crate::document::Timestamp;

/// Nanoseconds of a timestamp stay below this.
pub(crate) const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// The largest number of seconds that MessagePack's 64 bit timestamp holds: 34 bits.
pub(super) const MAX_SECONDS_64: i64 = (1 << 34) - 1;

/// The length of MessagePack's smallest form of a timestamp.
pub(super) fn timestamp_length(time: Timestamp) -> usize {
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
pub(crate) fn put_text(text: &[u8], out: &mut Vec<u8>) {
    match text.len() {
        length @ 0..=31 => out.push(0xa0 | length as u8),
        length @ 32..=0xff => out.extend_from_slice(&[0xd9, length as u8]),
        length => put_long(length, 0xda, 0xdb, out),
    }
    out.extend_from_slice(text);
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

/// A length in 16 bits after one tag or in 32 after the other. MessagePack has no longer ones, and nothing
/// that Firestore holds comes near: a document has 4 MiB at most.
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
