//! Key ranges as a query's cursors.
//!
//! A range's ends are keys, and a key need not be a document's: it may be a collection's, or the first key past
//! everything below a document or a collection. A query's cursor must name a document, existing or not. So each
//! kind of end is turned into the smallest document name that is not before it.

use ::firestore::gcloud_sdk::google::firestore::v1::{Cursor, Value, value::ValueType};

use super::{Error, Result};
use crate::document::{DocumentKey, DocumentPath, KeyRange};

/// The smallest id there is.
pub(super) const SMALLEST_ID: &str = "__id-9223372036854775808__";
/// The longest id, in bytes: a cursor with a longer one may be refused.
const LONGEST_ID: usize = 1500;
/// The smallest id that is not a number.
const SMALLEST_TEXT_ID: &str = "\0";
/// What follows a whole prefix in the first key past everything that starts with it: see `document::path`.
const PAST_PREFIX: u8 = 0x03;

/// A query's bounds: the first name that belongs to it and the first that does not; `None` is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NameRange {
    pub(super) start: Option<DocumentPath>,
    pub(super) end: Option<DocumentPath>,
}

/// The names of the documents whose keys lie in `range`, which must not be empty.
pub(super) fn name_range(range: &KeyRange) -> Result<NameRange> {
    let bound = |key: &Option<DocumentKey>| match key {
        Some(key) => first_name_from(key),
        None => Ok(None),
    };
    Ok(NameRange {
        start: bound(&range.start)?,
        end: bound(&range.end)?,
    })
}

/// The smallest document name whose key is not below `boundary`, `None` where that is the very beginning or the
/// very end: which of the two, the side of the range tells.
fn first_name_from(boundary: &DocumentKey) -> Result<Option<DocumentPath>> {
    let bytes = boundary.as_bytes();
    if bytes.is_empty() || bytes == [PAST_PREFIX] {
        return Ok(None);
    }
    if let Ok(document) = DocumentPath::from_key(bytes) {
        return Ok(Some(document));
    }
    if let Some(document) = boundary.previous() {
        return Ok(first_below(&document));
    }
    if let Some(first) = first_in_collection(bytes) {
        return Ok(Some(first));
    }
    bytes
        .strip_suffix(&[PAST_PREFIX])
        .and_then(first_past)
        .map(Some)
        .ok_or_else(|| Error::BadBoundary {
            boundary: format!("{boundary:?}"),
        })
}

/// The smallest name in a collection, given the collection's key.
fn first_in_collection(collection: &[u8]) -> Option<DocumentPath> {
    let mut key = collection.to_vec();
    // The key of the smallest id: its tag and the smallest number.
    key.extend_from_slice(&[0x01, 0, 0, 0, 0, 0, 0, 0, 0]);
    DocumentPath::from_key(&key).ok()
}

/// The smallest name below a document. The ids of collections are never numbers.
fn first_below(document: &DocumentKey) -> Option<DocumentPath> {
    let document = document.path().ok()?;
    DocumentPath::parse(format!("{document}/{SMALLEST_TEXT_ID}/{SMALLEST_ID}")).ok()
}

/// The smallest name past everything that starts with a prefix, which is a document's key or a collection's.
fn first_past(prefix: &[u8]) -> Option<DocumentPath> {
    let path = match DocumentPath::from_key(prefix) {
        Ok(document) => successor(document.as_str()),
        Err(_) => {
            let first = first_in_collection(prefix)?;
            format!("{}/{SMALLEST_ID}", successor(first.collection().as_str()))
        }
    };
    DocumentPath::parse(path).ok()
}

/// The path with the next id after the last one.
fn successor(path: &str) -> String {
    let id_start = path.rfind('/').map_or(0, |slash| slash + 1);
    let (parent, id) = path.split_at(id_start);
    let number = match DocumentPath::parse(format!("c/{id}")) {
        Ok(alone) => numeric_id(&alone),
        Err(_) => None,
    };
    match number {
        None if id.len() >= LONGEST_ID => format!("{parent}{}", successor_of_longest(id)),
        None => format!("{path}\0"),
        Some(i64::MAX) => format!("{parent}{SMALLEST_TEXT_ID}"),
        Some(number) => format!("{parent}__id{}__", number + 1),
    }
}

/// The next id after one that no longer id can start with: its last character is replaced by the next one, or, where none of
/// them fits, left away and the one before it replaced.
fn successor_of_longest(id: &str) -> String {
    let mut successor = id.to_owned();
    while let Some(last) = successor.pop() {
        // Beyond the gap of the surrogates and up to the last character there is.
        let next = (last..=char::MAX).nth(1);
        if let Some(next) = next
            && successor.len() + next.len_utf8() <= LONGEST_ID
        {
            successor.push(next);
            return successor;
        }
    }
    // All of it is the last character there is: only a server that takes longer ids has a name for the place.
    format!("{id}\0")
}

/// The number of a document's id where its key has it as a number.
fn numeric_id(document: &DocumentPath) -> Option<i64> {
    let key = document.key();
    // `c` as text takes three bytes, a number nine.
    let number = key.as_bytes().get(3..)?.strip_prefix(&[0x01])?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    Some((number ^ (1 << 63)) as i64)
}

/// A cursor at a name: before it, or after it.
pub(super) fn cursor(root: &str, name: &DocumentPath, before: bool) -> Cursor {
    Cursor {
        values: vec![Value {
            value_type: Some(ValueType::ReferenceValue(format!("{root}/{name}"))),
        }],
        before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::CollectionPath;
    use proptest::prelude::*;

    fn document(path: &str) -> DocumentPath {
        DocumentPath::parse(path).unwrap()
    }

    fn names(range: KeyRange) -> (Option<String>, Option<String>) {
        let names = name_range(&range).unwrap();
        (names.start.map(String::from), names.end.map(String::from))
    }

    fn some(start: &str, end: &str) -> (Option<String>, Option<String>) {
        (Some(start.to_owned()), Some(end.to_owned()))
    }

    #[test]
    fn every_kind_of_end_has_a_name() {
        assert_eq!(names(KeyRange::all()), (None, None));
        let collection = |path: &str| CollectionPath::parse(path).unwrap().key_range();
        assert_eq!(
            names(collection("products")),
            some(
                "products/__id-9223372036854775808__",
                "products\0/__id-9223372036854775808__"
            )
        );
        assert_eq!(
            names(collection("p/1/reviews")),
            some(
                "p/1/reviews/__id-9223372036854775808__",
                "p/1/reviews\0/__id-9223372036854775808__"
            )
        );
        assert_eq!(names(document("a/b").key().subtree()), some("a/b", "a/b\0"));
        assert_eq!(
            names(document("a/__id7__").key().subtree()),
            some("a/__id7__", "a/__id8__")
        );
        assert_eq!(
            names(document("a/__id-1__").key().subtree()),
            some("a/__id-1__", "a/__id0__")
        );
        assert_eq!(
            names(document("a/__id9223372036854775807__").key().subtree()),
            some("a/__id9223372036854775807__", "a/\0")
        );
        // Numbers in more than one writing are text to the order of names.
        assert_eq!(
            names(document("a/__id07__").key().subtree()),
            some("a/__id07__", "a/__id07__\0")
        );
    }

    #[test]
    fn no_name_has_an_id_that_is_too_long() {
        let past = |id: &str| {
            let range = CollectionPath::parse(id).unwrap().key_range();
            let end = names(range).1.unwrap();
            end.strip_suffix("/__id-9223372036854775808__")
                .unwrap()
                .to_owned()
        };
        let long = "x".repeat(1499);
        assert_eq!(past(&long), format!("{long}\0"));
        assert_eq!(past(&format!("{long}x")), format!("{long}y"));
        // The next character takes a byte more.
        assert_eq!(past(&format!("{long}\u{7f}")), format!("{}y", "x".repeat(1498)));
        let long = "x".repeat(1497);
        assert_eq!(past(&format!("{long}\u{d7ff}")), format!("{long}\u{e000}"));
        assert_eq!(
            past(&"\u{10ffff}".repeat(375)),
            format!("{}\0", "\u{10ffff}".repeat(375))
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&b"\x09"[..], b"\x02a", b"\x02a\0\x03\x03", b"\x01\0"] {
            let range = KeyRange {
                start: Some(DocumentKey::from_bytes(bytes)),
                end: None,
            };
            assert!(
                matches!(name_range(&range), Err(Error::BadBoundary { .. })),
                "{bytes:?}"
            );
        }
    }

    fn segment() -> impl Strategy<Value = String> {
        prop_oneof![
            "[^/]{1,3}",
            "[\0\u{1}\u{2}\u{3}a]{1,3}",
            (-3i64..3).prop_map(|n| format!("__id{n}__"))
        ]
    }

    fn path(segments: std::ops::Range<usize>) -> impl Strategy<Value = String> {
        proptest::collection::vec((segment(), segment()), segments).prop_map(|pairs| {
            pairs
                .into_iter()
                .flat_map(|(a, b)| [a, b])
                .collect::<Vec<_>>()
                .join("/")
        })
    }

    proptest! {
        #[test]
        fn names_bound_what_keys_bound(base in path(1..3), collection in segment(), other in path(1..4), kind in 0..4) {
            let base = document(&base);
            let collection = CollectionPath::parse(format!("{base}/{collection}")).unwrap().key_range();
            let boundary = match kind {
                0 => base.key(),
                1 => base.key().subtree().end.unwrap(),
                2 => collection.start.unwrap(),
                _ => collection.end.unwrap(),
            };
            let name = first_name_from(&boundary).unwrap().unwrap();
            for other in [document(&other), base.clone()] {
                prop_assert_eq!(other.key() < boundary, other < name, "{:?} {:?} {:?}", other, boundary, name);
            }
        }
    }
}
