//! The order of documents, as bytes.
//!
//! Firestore orders documents by name, segment by segment: ids of the form `__id<int64>__` come first, by
//! number, then all others by their UTF-8 bytes; a path comes before the paths below it
//! (<https://firebase.google.com/docs/firestore/manage-data/data-types#data_types>). The archive must agree
//! with the server to merge two streams of documents, and wants to do it with `memcmp`. [`DocumentKey`] is
//! the byte string that makes that true: comparing two keys as bytes compares the paths as Firestore does,
//! and everything below a document is one contiguous range of keys, those that start with its own.
//!
//! A key is made of whole segments, each a tag and what follows it. What else has to know how they are
//! written asks here.

use std::fmt;

use memchr::memchr;
use serde::{Deserialize, Serialize};

use super::path::{DocumentPath, PathError};

/// Tag of a `__id<int64>__` segment: eight bytes follow, big-endian, the sign bit flipped.
const TAG_NUMERIC: u8 = 0x01;
/// Tag of any other segment: its UTF-8 bytes follow, NUL written as `00 FF`, ended by `00`.
pub(crate) const TAG_TEXT: u8 = 0x02;
/// Smaller than any tag that could follow it or the end, greater than none: ends a text segment.
pub(crate) const TEXT_END: u8 = 0x00;
/// After a `00`, says that the `00` was a NUL of the text and not its end. Greater than every tag.
const TEXT_NUL: u8 = 0xff;

/// Follows a document's key in the first place past it: no tag, and smaller than each.
const PAST: u8 = 0x00;
/// Follows a prefix in the first place past everything that starts with it: greater than every tag. Not `ff`:
/// after a text segment's end that would read as a NUL of its text.
const PAST_PREFIX: u8 = TAG_TEXT + 1;

/// A document path as bytes that compare as Firestore orders names. See the module's documentation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DocumentKey(#[serde(with = "serde_bytes")] Vec<u8>);

impl DocumentKey {
    /// Bytes that came from a key. Whether they are one shows when a path is asked of them.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path that the key stands for.
    pub fn path(&self) -> Result<DocumentPath, PathError> {
        DocumentPath::from_key(&self.0)
    }

    /// The first place past this document's own key and before all that follows, what is below it included: a
    /// boundary, and no key that a path has. As every segment's bytes begin with a tag greater than zero, one
    /// zero more is just that.
    pub fn after(&self) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len() + 1);
        bytes.extend_from_slice(&self.0);
        bytes.push(PAST);
        Self(bytes)
    }

    /// The key that this is the place right [after](Self::after), if it is one.
    pub(crate) fn previous(&self) -> Option<Self> {
        let previous = self.0.strip_suffix(&[PAST])?;
        // A text's end is the same byte, so only what is left tells.
        DocumentPath::from_key(previous)
            .is_ok()
            .then(|| Self(previous.to_vec()))
    }

    /// The keys of this document and everything below it.
    pub fn subtree(&self) -> KeyRange {
        KeyRange {
            start: Some(self.clone()),
            end: Some(DocumentKey(prefix_end(&self.0))),
        }
    }

    /// Becomes the key with these bytes, in the memory that it has.
    pub(crate) fn assign(&mut self, bytes: &[u8]) {
        self.0.clear();
        self.0.extend_from_slice(bytes);
    }
}

impl AsRef<[u8]> for DocumentKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path() {
            Ok(path) => write!(f, "key({path:?})"),
            Err(_) => write!(f, "key(0x{})", hex::encode(&self.0)),
        }
    }
}

/// A range of keys: `start` belongs to it, `end` does not; `None` is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key that belongs to the range.
    pub start: Option<DocumentKey>,
    /// The first key past the range.
    pub end: Option<DocumentKey>,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_ref().is_none_or(|start| start.as_bytes() <= key)
            && self.end.as_ref().is_none_or(|end| key < end.as_bytes())
    }

    /// Whether no key can lie in the range.
    pub fn is_empty(&self) -> bool {
        matches!((&self.start, &self.end), (Some(start), Some(end)) if start >= end)
    }

    /// The ranges in ascending order, those that touch or overlap joined.
    pub fn merge(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if last.end.is_none() || last.end >= range.start => {
                    last.end = match (last.end.take(), range.end) {
                        (Some(a), Some(b)) => Some(a.max(b)),
                        _ => None,
                    };
                }
                _ => merged.push(range),
            }
        }
        merged
    }

    /// The parts that ascending boundaries cut the range into: they tile it. Boundaries outside of it, at its
    /// start, or met before are passed over; of a range that is empty there is nothing.
    pub fn cut_at<'a>(&self, boundaries: impl IntoIterator<Item = &'a DocumentKey>) -> Vec<Self> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut parts = Vec::new();
        let mut start = self.start.clone();
        for boundary in boundaries {
            if self.contains(boundary.as_bytes()) && start.as_ref().is_none_or(|start| start < boundary) {
                parts.push(Self {
                    start: start.replace(boundary.clone()),
                    end: Some(boundary.clone()),
                });
            }
        }
        parts.push(Self {
            start,
            end: self.end.clone(),
        });
        parts
    }

    /// The keys that lie in both.
    pub fn intersection(&self, other: &Self) -> Self {
        Self {
            start: self.start.clone().max(other.start.clone()),
            end: match (&self.end, &other.end) {
                (Some(a), Some(b)) => Some(a.min(b).clone()),
                (end, None) | (None, end) => end.clone(),
            },
        }
    }
}

/// Appends the key of `path`, a relative path of either kind, to `out`.
///
/// The caller vouches that no segment is empty; such a path would give a key that no path has.
pub(crate) fn append_key(path: &str, out: &mut Vec<u8>) {
    for segment in path.split('/') {
        append_segment(segment, out);
    }
}

/// Appends a segment, which has no slash.
#[inline]
pub(crate) fn append_segment(segment: &str, out: &mut Vec<u8>) {
    if let Some(number) = numeric_id(segment) {
        out.push(TAG_NUMERIC);
        out.extend_from_slice(&((number as u64) ^ (1 << 63)).to_be_bytes());
        return;
    }
    out.push(TAG_TEXT);
    let mut rest = segment.as_bytes();
    while let Some(nul) = memchr(0, rest) {
        out.extend_from_slice(&rest[..nul]);
        out.extend_from_slice(&[0, TEXT_NUL]);
        rest = &rest[nul + 1..];
    }
    out.extend_from_slice(rest);
    out.push(TEXT_END);
}

/// Appends a segment that is no number and has neither slash nor NUL.
#[inline]
pub(crate) fn append_text_segment(text: &[u8], out: &mut Vec<u8>) {
    out.push(TAG_TEXT);
    out.extend_from_slice(text);
    out.push(TEXT_END);
}

/// Whether a segment is of ASCII, some bytes long, and so that it is itself in the key: no number, no slash and no NUL.
/// Only a quick look: `false` says nothing.
#[inline]
pub(crate) fn is_usual_id(segment: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH_BITS: u64 = 0x80 * ONES;
    // The high bit of each byte that is not ASCII, or zero; and possibly of one above such a byte.
    let zeros = |word: u64| word.wrapping_sub(ONES) | word;
    let odd = |word: &[u8; 8]| {
        let word = u64::from_ne_bytes(*word);
        zeros(word) | zeros(word ^ (b'/' as u64 * ONES))
    };
    let Some(last) = segment.last_chunk() else {
        return false;
    };
    let (words, _) = segment.as_chunks();
    // The last one overlaps with the one before.
    let odd = words.iter().fold(odd(last), |seen, word| seen | odd(word));
    odd & HIGH_BITS == 0 && !segment.starts_with(b"__")
}

/// The key of `path`, as [`append_key`] writes it.
pub(crate) fn key_of(path: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(path.len() + 8);
    append_key(path, &mut key);
    key
}

/// The number of a `__id<int64>__` id in its one decimal form. Anything else (leading zeros, a plus sign, too
/// many digits) is text: two ids must never share a key.
pub(crate) fn numeric_id(segment: &str) -> Option<i64> {
    let digits = segment.strip_prefix("__id")?.strip_suffix("__")?;
    let number: i64 = digits.parse().ok()?;
    let canonical = match digits.as_bytes() {
        [b'0'] => true,
        [b'-', rest @ ..] => !rest.starts_with(b"0"),
        [first, ..] => *first != b'0' && *first != b'+',
        [] => false,
    };
    canonical.then_some(number)
}

/// The relative path that a key stands for, in a buffer that is cleared first, and the number of its
/// segments. Only what [`append_key`] writes is taken, to the byte.
pub(super) fn path_of_key(key: &[u8], buffer: String) -> Result<(String, usize), PathError> {
    let mut path = buffer.into_bytes();
    path.clear();
    let mut rest = key;
    let mut count = 0;
    while let Some((&tag, after)) = rest.split_first() {
        if count > 0 {
            path.push(b'/');
        }
        count += 1;
        rest = match tag {
            TAG_NUMERIC => append_number(after, &mut path)?,
            TAG_TEXT => append_text(after, &mut path)?,
            _ => return Err(PathError::BadKey("an unknown tag")),
        };
    }
    let path = String::from_utf8(path).map_err(|_| PathError::BadKey("not UTF-8"))?;
    Ok((path, count))
}

/// Appends the id whose number follows a tag, and returns what is left.
fn append_number<'a>(after: &'a [u8], path: &mut Vec<u8>) -> Result<&'a [u8], PathError> {
    let (number, after) = after
        .split_first_chunk::<8>()
        .ok_or(PathError::BadKey("a number is cut off"))?;
    let number = (u64::from_be_bytes(*number) ^ (1 << 63)) as i64;
    path.extend_from_slice(format!("__id{number}__").as_bytes());
    Ok(after)
}

/// Appends the text that follows a tag, and returns what is left.
#[inline]
fn append_text<'a>(mut text: &'a [u8], path: &mut Vec<u8>) -> Result<&'a [u8], PathError> {
    let start = path.len();
    loop {
        let end = memchr(TEXT_END, text).ok_or(PathError::BadKey("a segment has no end"))?;
        path.extend_from_slice(&text[..end]);
        text = &text[end + 1..];
        if text.first() != Some(&TEXT_NUL) {
            break;
        }
        path.push(0);
        text = &text[1..];
    }
    let segment = &path[start..];
    if segment.is_empty() || memchr(b'/', segment).is_some() {
        return Err(PathError::BadKey("an empty segment or a slash"));
    }
    let is_numeric = |text| numeric_id(text).is_some();
    if segment.starts_with(b"__id") && std::str::from_utf8(segment).is_ok_and(is_numeric) {
        return Err(PathError::BadKey("a number written as text"));
    }
    Ok(text)
}

/// The length of the segment that `key` starts with; `None` where none does, or it is cut off.
#[inline]
pub(crate) fn segment_len(key: &[u8]) -> Option<usize> {
    match *key.first()? {
        TAG_NUMERIC => (key.len() >= 9).then_some(9),
        TAG_TEXT => {
            let mut at = 1;
            loop {
                at += memchr(TEXT_END, &key[at..])? + 1;
                if key.get(at) != Some(&TEXT_NUL) {
                    return Some(at);
                }
                at += 1;
            }
        }
        _ => None,
    }
}

/// The segment that a key starts with: nothing of an empty key, and all of what is no key.
pub(crate) fn first_segment(key: &[u8]) -> &[u8] {
    &key[..segment_len(key).unwrap_or(key.len())]
}

/// The segments of a key.
pub(crate) fn segments(mut key: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let segment = first_segment(key);
        key = &key[segment.len()..];
        (!segment.is_empty()).then_some(segment)
    })
}

/// The text of a segment; empty where it is none.
pub(crate) fn segment_text(segment: &[u8]) -> String {
    path_of_key(segment, String::new())
        .map(|(text, _)| text)
        .unwrap_or_default()
}

/// The first place past all keys that start with `prefix`, which ends with a whole segment.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = Vec::with_capacity(prefix.len() + 1);
    end.extend_from_slice(prefix);
    end.push(PAST_PREFIX);
    end
}

/// The prefix that `key` is the [end](prefix_end) of, if it is one.
pub(crate) fn strip_prefix_end(key: &[u8]) -> Option<&[u8]> {
    key.strip_suffix(&[PAST_PREFIX])
}

/// The key of the smallest document that a collection can have, given the collection's key.
pub(crate) fn smallest_in_collection(collection: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(collection.len() + 9);
    key.extend_from_slice(collection);
    key.push(TAG_NUMERIC);
    // The sign bit is flipped: this is the smallest number.
    key.extend_from_slice(&[0; 8]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::CollectionPath;
    use proptest::prelude::*;

    fn key(path: &str) -> DocumentKey {
        DocumentPath::parse(path).unwrap().key()
    }

    #[test]
    fn cuts_tile_the_range() {
        let keys = ["a/1", "a/2", "a/3", "a/4"].map(key);
        let whole = KeyRange::all().cut_at(&keys);
        assert_eq!(whole.len(), 5);
        assert_eq!((&whole[0].start, &whole[4].end), (&None, &None));
        assert!(
            whole
                .windows(2)
                .all(|pair| pair[0].end.is_some() && pair[0].end == pair[1].start)
        );
        // Only what lies inside cuts, and once.
        let range = |start: usize, end: usize| KeyRange {
            start: Some(keys[start].clone()),
            end: Some(keys[end].clone()),
        };
        let twice = keys.iter().flat_map(|key| [key, key]);
        assert_eq!(range(0, 3).cut_at(twice), [range(0, 1), range(1, 2), range(2, 3)]);
        assert_eq!(range(1, 2).cut_at(&[]), [range(1, 2)]);
        assert_eq!(range(2, 2).cut_at(&keys), []);
    }

    #[test]
    fn keys_order_as_firestore_orders() {
        let ascending = [
            "a/__id-9223372036854775808__",
            "a/__id-5__",
            "a/__id-5__/b/c",
            "a/__id0__",
            "a/__id7__",
            "a/__id10__",
            "a/__id9223372036854775807__",
            "a/\0",
            "a/\n",
            "a/ ",
            "a/%2F",
            "a/.x",
            "a/A",
            "a/__id007__",
            "a/__id9223372036854775808__",
            "a/a",
            "a/a/b/c",
            "a/a/b/c/d/e",
            "a/a/b0/c",
            "a/a\0",
            "a/a\0/b/c",
            "a/a b",
            "a/aa",
            "a/é",
            "a/\u{ffff}",
            "a/😀",
            "a\0/a",
            "aa/a",
        ];
        for pair in ascending.windows(2) {
            assert!(key(pair[0]) < key(pair[1]), "{:?} < {:?}", pair[0], pair[1]);
        }
        for path in ascending {
            assert_eq!(key(path).path().unwrap().as_str(), path);
        }
    }

    #[test]
    fn subtree_holds_what_lies_below_and_nothing_else() {
        let range = key("a/b").subtree();
        for inside in ["a/b", "a/b/c/d", "a/b/__id1__/x", "a/b/\u{10ffff}/x"] {
            assert!(range.contains(key(inside).as_bytes()), "{inside}");
        }
        for outside in ["a/a", "a/b\0", "a/b\0/c/d", "a/b0", "a/c", "b/b"] {
            assert!(!range.contains(key(outside).as_bytes()), "{outside}");
        }
        let range = CollectionPath::parse("a").unwrap().key_range();
        assert!(range.contains(key("a/__id-9223372036854775808__").as_bytes()));
        assert!(!range.contains(key("a\0/b").as_bytes()));
        assert!(!range.contains(key("aa/b").as_bytes()));
    }

    #[test]
    fn segments_are_found_again() {
        let path = "a/__id-5__/b\0c\0/é/__id007__/\0";
        let key = key_of(path);
        let found: Vec<String> = segments(&key).map(segment_text).collect();
        assert_eq!(found.join("/"), path);
    }

    /// The order as Firestore's clients implement it, written the slow way.
    fn reference_order(a: &str, b: &str) -> std::cmp::Ordering {
        let (mut left, mut right) = (a.split('/'), b.split('/'));
        loop {
            let (x, y) = match (left.next(), right.next()) {
                (None, None) => return std::cmp::Ordering::Equal,
                (None, Some(_)) => return std::cmp::Ordering::Less,
                (Some(_), None) => return std::cmp::Ordering::Greater,
                (Some(x), Some(y)) => (x, y),
            };
            let order = match (numeric_id(x), numeric_id(y)) {
                (Some(x), Some(y)) => x.cmp(&y),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => x.as_bytes().cmp(y.as_bytes()),
            };
            if order.is_ne() {
                return order;
            }
        }
    }

    fn segment() -> impl Strategy<Value = String> {
        prop_oneof![
            "[^/]{1,4}",
            "[\0\u{1}\u{2}\u{3}a\u{ff}]{1,3}",
            any::<i64>().prop_map(|number| format!("__id{number}__")),
            (-3i64..3).prop_map(|number| format!("__id{number}__")),
            "__id[-+]?0{0,2}[0-9]{0,2}__",
        ]
    }

    fn path() -> impl Strategy<Value = String> {
        proptest::collection::vec((segment(), segment()), 1..4).prop_map(|pairs| {
            let segments: Vec<String> = pairs.into_iter().flat_map(|(a, b)| [a, b]).collect();
            segments.join("/")
        })
    }

    proptest! {
        #[test]
        fn key_order_is_path_order(a in path(), b in path()) {
            prop_assert_eq!(key(&a).cmp(&key(&b)), reference_order(&a, &b));
        }

        #[test]
        fn keys_read_back(a in path()) {
            let read = key(&a).path().unwrap();
            prop_assert_eq!(read.as_str(), a.as_str());
        }

        #[test]
        fn bytes_that_read_as_a_path_are_its_key(bytes in proptest::collection::vec(0u8..4, 0..24)) {
            if let Ok(path) = DocumentPath::from_key(&bytes) {
                let key = path.key();
                prop_assert_eq!(key.as_bytes(), &bytes[..]);
            }
        }
    }
}
