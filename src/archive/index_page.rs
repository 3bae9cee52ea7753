//! The index page: a few thousand sorted records in columns, the unit in which an index is fetched and merged.
//!
//! Columns because neighbours are alike: keys share prefixes, times are near each other, bodies lie one after the other. So
//! most columns are runs of small numbers, and zstd makes little of what is left. [`PageCursor`] reads a page from its
//! plaintext, record by record, without expanding it: a merge of many layers holds one plaintext page a layer.

mod names;

use bytes::Bytes;

use super::error::{ArchiveError, DamageKind, Result, show_key};
use crate::document::Timestamp;
pub(crate) use names::NameCursor;

const VERSION: u8 = 1;
const COLUMNS: usize = 9;
const HEADER_LEN: usize = 8 + COLUMNS * 4;
const KIND_PUT: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
/// The longest key that a record has, in bytes. Firestore's longest name is 6 KiB.
pub const MAX_KEY_LEN: usize = 32 << 10;
/// The most records of a page.
pub const MAX_PAGE_RECORDS: u32 = 1 << 16;

const KEY_LENS: usize = 0;
const KEYS: usize = 1;
const KINDS: usize = 2;
const CREATE_TIMES: usize = 3;
const UPDATE_TIMES: usize = 4;
const CHUNKS: usize = 5;
const OFFSETS: usize = 6;
const LENGTHS: usize = 7;
const HASHES: usize = 8;

/// What an index says of a document that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Put {
    /// When the server says it was created.
    pub create_time: Timestamp,
    /// When the server says it was last changed.
    pub update_time: Timestamp,
    /// XXH3-64 of the body, seeded with the repository's secret.
    pub body_hash: u64,
    /// The data chunk's number in the index chunk's table.
    pub chunk: u32,
    /// Where the body starts in the data chunk's plaintext.
    pub offset: u32,
    /// The body's length in bytes.
    pub length: u32,
}

/// Collects the records of one page.
#[derive(Debug, Default)]
pub struct PageBuilder {
    columns: [Vec<u8>; COLUMNS],
    first_key: Vec<u8>,
    last_key: Vec<u8>,
    puts: u32,
    tombstones: u32,
    create_seconds: i64,
    chunk: u32,
    next_offset: u32,
}

impl PageBuilder {
    /// Appends a document. The caller vouches that the key comes after the last one.
    pub fn put(&mut self, key: &[u8], put: &Put) {
        self.key(key);
        self.puts += 1;
        let [_, _, kinds, creates, updates, chunks, offsets, lengths, hashes] = &mut self.columns;
        kinds.push(KIND_PUT);
        let (create, update) = (put.create_time, put.update_time);
        varint(creates, zigzag(create.seconds.wrapping_sub(self.create_seconds)));
        varint(creates, nanos_code(create.nanos));
        varint(updates, zigzag(update.seconds.wrapping_sub(create.seconds)));
        let nanos = nanos_code(update.nanos) as i64 - nanos_code(create.nanos) as i64;
        varint(updates, zigzag(nanos));
        self.create_seconds = create.seconds;
        varint(chunks, zigzag(i64::from(put.chunk) - i64::from(self.chunk)));
        if put.chunk != self.chunk {
            self.next_offset = 0;
        }
        varint(
            offsets,
            zigzag(i64::from(put.offset) - i64::from(self.next_offset)),
        );
        varint(lengths, u64::from(put.length));
        hashes.extend_from_slice(&put.body_hash.to_le_bytes());
        self.chunk = put.chunk;
        self.next_offset = put.offset.wrapping_add(put.length);
    }

    /// Appends a tombstone: the document is gone, whatever older runs say.
    pub fn tombstone(&mut self, key: &[u8]) {
        self.key(key);
        self.tombstones += 1;
        self.columns[KINDS].push(KIND_TOMBSTONE);
    }

    fn key(&mut self, key: &[u8]) {
        if self.is_empty() {
            self.first_key.clear();
            self.first_key.extend_from_slice(key);
        }
        let shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        varint(&mut self.columns[KEY_LENS], shared as u64);
        varint(&mut self.columns[KEY_LENS], (key.len() - shared) as u64);
        self.columns[KEYS].extend_from_slice(&key[shared..]);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
    }

    /// How many records there are.
    pub fn len(&self) -> u32 {
        self.puts + self.tombstones
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the page would have.
    pub fn byte_len(&self) -> usize {
        HEADER_LEN + self.columns.iter().map(Vec::len).sum::<usize>()
    }

    /// The first and last key, the puts and the tombstones.
    pub fn summary(&self) -> (&[u8], &[u8], u32, u32) {
        (&self.first_key, &self.last_key, self.puts, self.tombstones)
    }

    /// Writes the page to the end of `out` and begins a new one.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.reserve(self.byte_len());
        out.extend_from_slice(&[VERSION, 0, 0, 0]);
        out.extend_from_slice(&self.len().to_le_bytes());
        for column in &self.columns {
            out.extend_from_slice(&(column.len() as u32).to_le_bytes());
        }
        for column in &mut self.columns {
            out.extend_from_slice(column);
            column.clear();
        }
        self.last_key.clear();
        (self.puts, self.tombstones) = (0, 0);
        (self.create_seconds, self.chunk, self.next_offset) = (0, 0, 0);
    }
}

/// Reads one page, record by record. Clones are of one plaintext.
#[derive(Clone, Debug)]
pub struct PageCursor {
    plain: Bytes,
    /// Where each column goes on, and where it ends.
    at: [(usize, usize); COLUMNS],
    left: u32,
    key: Vec<u8>,
    put: Option<Put>,
    create_seconds: i64,
    chunk: u32,
    next_offset: u32,
    started: bool,
}

impl PageCursor {
    /// A cursor before the first record of a page's plaintext, which was verified by its hash.
    pub fn new(object: &str, plain: Vec<u8>) -> Result<Self> {
        let malformed = || damaged(object, "an index page's header says something impossible");
        let header = plain.get(..HEADER_LEN).ok_or_else(malformed)?;
        let [version, flags, 0, 0, ..] = header else {
            return Err(malformed());
        };
        if *version > VERSION || *flags != 0 {
            return Err(ArchiveError::Newer {
                object: object.to_owned(),
                what: format!("index page version {version} with flags {flags}"),
            });
        }
        let word = |at: usize| {
            let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            u32::from_le_bytes(bytes)
        };
        let mut at = [(0, 0); COLUMNS];
        let mut start = HEADER_LEN;
        for (column, at) in at.iter_mut().enumerate() {
            let end = start + word(8 + column * 4) as usize;
            *at = (start, end);
            start = end;
        }
        let left = word(4);
        if *version != VERSION || start != plain.len() || left == 0 || left > MAX_PAGE_RECORDS {
            return Err(malformed());
        }
        Ok(Self {
            plain: plain.into(),
            at,
            left,
            key: Vec::new(),
            put: None,
            create_seconds: 0,
            chunk: 0,
            next_offset: 0,
            started: false,
        })
    }

    /// Goes to the next record; `false` past the last. `object` is what messages call the index chunk.
    pub fn advance(&mut self, object: &str) -> Result<bool> {
        if self.left == 0 {
            return match self.at.iter().all(|(at, end)| at == end) {
                true => Ok(false),
                false => Err(damaged(object, "an index page has more than its records")),
            };
        }
        self.left -= 1;
        match self.read_record() {
            Some(true) => Ok(true),
            Some(false) => Err(ArchiveError::damaged(
                object,
                DamageKind::Inconsistent,
                format!(
                    "the records of an index page do not ascend at {}",
                    show_key(&self.key)
                ),
            )),
            None => Err(damaged(
                object,
                "a record of an index page says something impossible",
            )),
        }
    }

    /// The present record's key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The present record's document, `None` for a tombstone.
    pub fn put(&self) -> Option<&Put> {
        self.put.as_ref()
    }

    /// How many records follow the present one.
    pub(crate) fn left(&self) -> usize {
        self.left as usize
    }

    /// Bytes held.
    pub fn byte_len(&self) -> usize {
        self.plain.len() + self.key.capacity()
    }

    /// Gives the plaintext back.
    pub(crate) fn into_plain(self) -> Vec<u8> {
        self.plain.into()
    }

    /// `None` when malformed, `false` when out of order.
    fn read_record(&mut self) -> Option<bool> {
        let ascends = self.read_key()?;
        self.put = match self.read_kind()? {
            KIND_PUT => Some(self.read_put()?),
            KIND_TOMBSTONE => None,
            _ => return None,
        };
        Some(ascends)
    }

    /// Reads the next key; says whether it comes after the one before.
    fn read_key(&mut self) -> Option<bool> {
        let shared = usize::try_from(self.varint(KEY_LENS)?).ok()?;
        let rest = usize::try_from(self.varint(KEY_LENS)?).ok()?;
        if shared > self.key.len() || rest > MAX_KEY_LEN || shared + rest > MAX_KEY_LEN {
            return None;
        }
        let (start, end) = self.take(KEYS, rest)?;
        let (rest, before) = (&self.plain[start..end], &self.key[shared..]);
        // As the shared part is as long as it can be, the first byte decides mostly.
        let ascends = match (rest.first(), before.first()) {
            (Some(first), Some(second)) if first != second => first > second,
            _ => !self.started || rest > before,
        };
        self.started = true;
        self.key.truncate(shared);
        self.key.extend_from_slice(rest);
        Some(ascends)
    }

    fn read_kind(&mut self) -> Option<u8> {
        let (kind, _) = self.take(KINDS, 1)?;
        Some(self.plain[kind])
    }

    fn read_put(&mut self) -> Option<Put> {
        let seconds = self
            .create_seconds
            .wrapping_add(unzigzag(self.varint(CREATE_TIMES)?));
        let code = self.varint(CREATE_TIMES)?;
        let create_time = Timestamp::new(seconds, nanos_of(code)?);
        self.create_seconds = seconds;
        let seconds = seconds.wrapping_add(unzigzag(self.varint(UPDATE_TIMES)?));
        let code = code.wrapping_add(unzigzag(self.varint(UPDATE_TIMES)?) as u64);
        let update_time = Timestamp::new(seconds, nanos_of(code)?);
        let chunk = i64::from(self.chunk).checked_add(unzigzag(self.varint(CHUNKS)?))?;
        let chunk = u32::try_from(chunk).ok()?;
        if chunk != self.chunk {
            self.next_offset = 0;
        }
        let offset = i64::from(self.next_offset).checked_add(unzigzag(self.varint(OFFSETS)?))?;
        let offset = u32::try_from(offset).ok()?;
        let length = u32::try_from(self.varint(LENGTHS)?).ok()?;
        self.chunk = chunk;
        self.next_offset = offset.checked_add(length)?;
        let (start, end) = self.take(HASHES, 8)?;
        let body_hash = u64::from_le_bytes(*self.plain[start..end].first_chunk()?);
        Some(Put {
            create_time,
            update_time,
            body_hash,
            chunk,
            offset,
            length,
        })
    }

    #[inline]
    fn take(&mut self, column: usize, length: usize) -> Option<(usize, usize)> {
        let (at, end) = &mut self.at[column];
        let start = *at;
        if *end - start < length {
            return None;
        }
        *at += length;
        Some((start, start + length))
    }

    #[inline]
    fn varint(&mut self, column: usize) -> Option<u64> {
        let (at, end) = &mut self.at[column];
        match self.plain.get(*at) {
            Some(&byte) if byte < 0x80 && *at < *end => {
                *at += 1;
                Some(u64::from(byte))
            }
            _ => self.long_varint(column),
        }
    }

    fn long_varint(&mut self, column: usize) -> Option<u64> {
        let (at, end) = &mut self.at[column];
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            if *at == *end {
                return None;
            }
            let byte = self.plain[*at];
            *at += 1;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

fn damaged(object: &str, what: &str) -> ArchiveError {
    ArchiveError::damaged(object, DamageKind::Malformed, what)
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// Firestore's times are whole microseconds: those are an even code, any other nanoseconds an odd one.
fn nanos_code(nanos: u32) -> u64 {
    match nanos % 1000 {
        0 => u64::from(nanos / 1000) << 1,
        _ => u64::from(nanos) << 1 | 1,
    }
}

fn nanos_of(code: u64) -> Option<u32> {
    let nanos = match code & 1 {
        0 => (code >> 1).checked_mul(1000)?,
        _ => code >> 1,
    };
    u32::try_from(nanos).ok().filter(|&nanos| nanos < 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn time() -> impl Strategy<Value = Timestamp> {
        (
            prop_oneof![any::<i64>(), 1_700_000_000i64..1_700_000_100],
            prop_oneof![
                0u32..1_000_000_000,
                (0u32..1_000_000).prop_map(|micros| micros * 1000)
            ],
        )
            .prop_map(|(seconds, nanos)| Timestamp::new(seconds, nanos))
    }

    fn put() -> impl Strategy<Value = Put> {
        let place = (prop_oneof![0u32..3, any::<u32>()], 0u32..1 << 31, 0u32..1 << 31);
        (time(), time(), any::<u64>(), place).prop_map(
            |(create_time, update_time, body_hash, (chunk, offset, length))| Put {
                create_time,
                update_time,
                body_hash,
                chunk,
                offset,
                length,
            },
        )
    }

    fn records() -> impl Strategy<Value = BTreeMap<Vec<u8>, Option<Put>>> {
        proptest::collection::btree_map(
            proptest::collection::vec(0u8..4, 0..12),
            proptest::option::weighted(0.8, put()),
            1..60,
        )
    }

    fn page(records: &BTreeMap<Vec<u8>, Option<Put>>) -> Vec<u8> {
        let mut builder = PageBuilder::default();
        // A page before it must leave no trace.
        builder.put(
            b"zzz",
            &Put {
                chunk: 9,
                ..Put::default()
            },
        );
        builder.finish(&mut Vec::new());
        for (key, put) in records {
            match put {
                Some(put) => builder.put(key, put),
                None => builder.tombstone(key),
            }
        }
        let mut out = Vec::new();
        let expected = builder.byte_len();
        builder.finish(&mut out);
        assert_eq!(out.len(), expected);
        out
    }

    fn read(plain: Vec<u8>) -> Result<Vec<(Vec<u8>, Option<Put>)>> {
        let mut cursor = PageCursor::new("page", plain)?;
        let mut records = Vec::new();
        while cursor.advance("page")? {
            records.push((cursor.key().to_vec(), cursor.put().copied()));
        }
        Ok(records)
    }

    proptest! {
        #[test]
        fn pages_read_back(records in records()) {
            let expected: Vec<_> = records.clone().into_iter().collect();
            prop_assert_eq!(read(page(&records)).unwrap(), expected.clone());
            let mut names = NameCursor::new("page", page(&records)).unwrap();
            for (key, put) in expected {
                prop_assert!(names.advance().unwrap());
                prop_assert_eq!((names.key(), names.length()), (&key[..], put.map(|put| put.length)));
            }
            prop_assert!(!names.advance().unwrap());
        }

        #[test]
        fn hostile_pages_end_in_an_error_or_in_ascending_records(
            records in records(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut plain = page(&records);
            let position = at.index(plain.len());
            plain[position] = byte;
            let cut = plain[..cut.index(plain.len())].to_vec();
            for plain in [plain, cut] {
                if let Ok(mut names) = NameCursor::new("page", plain.clone()) {
                    while names.advance() == Some(true) {}
                }
                if let Ok(records) = read(plain) {
                    prop_assert!(records.windows(2).all(|pair| pair[0].0 < pair[1].0));
                }
            }
        }
    }
}
