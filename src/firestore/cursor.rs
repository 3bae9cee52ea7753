//! Key ranges as a query's cursors.
//!
//! A range's ends are keys, and a key need not be a document's: it may be a collection's, or the first key past
//! everything below a document or a collection. A query's cursor must name a document, existing or not. So each
//! kind of end is turned into the smallest document name that is not before it.

use ::firestore::gcloud_sdk::google::firestore::v1::{Cursor, Value, value::ValueType};

use super::{Error, Result};
use crate::document::key::{numeric_id, smallest_in_collection, strip_prefix_end};
use crate::document::{DocumentKey, DocumentPath, KeyRange};

/// The smallest id there is.
pub(super) const SMALLEST_ID: &str = "__id-9223372036854775808__";
/// The longest id, in bytes: a cursor with a longer one may be refused.
const LONGEST_ID: usize = 1500;
/// The smallest id that is not a number.
const SMALLEST_TEXT_ID: &str = "\0";

/// A query's bounds: the first name that belongs to it and the first that does not; `None` is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NameRange {
    pub(super) start: Option<DocumentPath>,
    pub(super) end: Option<DocumentPath>,
    /// The first name that belongs to it is the next one after `start`.
    pub(super) after_start: bool,
    /// `end` belongs to it, and is the last.
    pub(super) through_end: bool,
}

/// The names of the documents whose keys lie in `range`, which must not be empty.
pub(super) fn name_range(range: &KeyRange) -> Result<NameRange> {
    let bound = |key: &Option<DocumentKey>| match key {
        Some(key) => match document_before(key) {
            Some(document) => Ok::<_, Error>((Some(document), true)),
            None => Ok((first_name_from(key)?, false)),
        },
        None => Ok((None, false)),
    };
    let (start, after_start) = bound(&range.start)?;
    let (end, through_end) = bound(&range.end)?;
    Ok(NameRange {
        start,
        end,
        after_start,
        through_end,
    })
}

/// The document that a boundary is right after: see [`DocumentKey::after`].
fn document_before(boundary: &DocumentKey) -> Option<DocumentPath> {
    boundary.previous()?.path().ok()
}

/// The smallest document name whose key is not below `boundary`, which is not the place right after a document;
/// `None` where that is the very beginning or the very end: which of the two, the side of the range tells.
fn first_name_from(boundary: &DocumentKey) -> Result<Option<DocumentPath>> {
    let bytes = boundary.as_bytes();
    if bytes.is_empty() || strip_prefix_end(bytes).is_some_and(<[u8]>::is_empty) {
        return Ok(None);
    }
    if let Ok(document) = DocumentPath::from_key(bytes) {
        return Ok(Some(document));
    }
    if let Some(first) = first_in_collection(bytes) {
        return Ok(Some(first));
    }
    strip_prefix_end(bytes)
        .and_then(first_past)
        .map(Some)
        .ok_or_else(|| Error::BadBoundary {
            boundary: format!("{boundary:?}"),
        })
}

/// The smallest name in a collection, given the collection's key.
fn first_in_collection(collection: &[u8]) -> Option<DocumentPath> {
    DocumentPath::from_key(&smallest_in_collection(collection)).ok()
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
    match numeric_id(id) {
        None if id.len() >= LONGEST_ID => format!("{parent}{}", successor_of_longest(id)),
        None => format!("{path}\0"),
        Some(i64::MAX) => format!("{parent}{SMALLEST_TEXT_ID}"),
        Some(number) => format!("{parent}__id{}__", number + 1),
    }
}

/// The next id after one that no longer id can start with: its last character is replaced by the next one, or,
/// where none of them fits, left away and the one before it replaced.
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
    fn right_after_a_document_is_a_place_too() {
        for path in ["a/b", "a/__id0__", "a/__id256__", "a/b\0", "a/b/c/d"] {
            let range = KeyRange {
                start: Some(document(path).key().after()),
                end: Some(document(path).key().after()),
            };
            let names = name_range(&range).unwrap();
            assert_eq!(names.start.as_ref().map(DocumentPath::as_str), Some(path));
            assert_eq!(names.start, names.end);
            assert!(names.after_start && names.through_end, "{path:?}");
            let plain = name_range(&document(path).key().subtree()).unwrap();
            assert!(!plain.after_start && !plain.through_end, "{path:?}");
        }
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
