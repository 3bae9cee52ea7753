//! Document paths and their order.
//!
//! Firestore orders documents by name, segment by segment: ids of the form `__id<int64>__` come first, by
//! number, then all others by their UTF-8 bytes; a path comes before the paths below it
//! (<https://firebase.google.com/docs/firestore/manage-data/data-types#data_types>). The archive must agree
//! with the server to merge two streams of documents, and wants to do it with `memcmp`. [`DocumentKey`] is
//! the byte string that makes that true: comparing two keys as bytes compares the paths as Firestore does,
//! and everything below a document is one contiguous range of keys, those that start with its own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Tag of a `__id<int64>__` segment: eight bytes follow, big-endian, the sign bit flipped.
const TAG_NUMERIC: u8 = 0x01;
/// Tag of any other segment: its UTF-8 bytes follow, NUL written as `00 FF`, ended by `00`.
const TAG_TEXT: u8 = 0x02;
/// Smaller than any tag that could follow it or the end, greater than none: ends a text segment.
const TEXT_END: u8 = 0x00;
/// After a `00`, says that the `00` was a NUL of the text and not its end. Greater than every tag.
const TEXT_NUL: u8 = 0xff;

/// A path that is not one, or a key that no path has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A segment is empty: two slashes in a row, or one at an end.
    #[error("`{0}` has an empty segment")]
    EmptySegment(String),
    /// A document path has an even number of segments, a collection path an odd number.
    #[error("`{0}` does not name a {1}")]
    WrongDepth(String, &'static str),
    /// Bytes that [`DocumentPath::key`] never writes.
    #[error("not a document key: {0}")]
    BadKey(&'static str),
    /// Not `projects/<project>/databases/<database>`, with or without `/documents…` after it.
    #[error("`{0}` does not name a Firestore database")]
    BadDatabaseName(String),
}

fn check_segments(path: &str) -> Result<usize, PathError> {
    let mut count = 0;
    for segment in path.split('/') {
        if segment.is_empty() {
            return Err(PathError::EmptySegment(path.to_owned()));
        }
        count += 1;
    }
    Ok(count)
}

/// Whether [`DocumentPath::parse`] would take `path`, without a copy.
pub(crate) fn is_document_path(path: &str) -> bool {
    let mut slashes = 0;
    let mut previous = b'/';
    for &byte in path.as_bytes() {
        if byte == b'/' {
            if previous == b'/' {
                return false;
            }
            slashes += 1;
        }
        previous = byte;
    }
    previous != b'/' && slashes % 2 == 1
}

/// A document's path relative to the database's root, such as `products/p1/reviews/r1`.
///
/// Ordered as Firestore orders document names.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DocumentPath(String);

impl DocumentPath {
    /// Takes any path whose segments are not empty and come in pairs. Which ids a server accepts is left to the
    /// server: databases imported from Datastore hold ids that cannot be written today.
    pub fn parse(path: impl Into<String>) -> Result<Self, PathError> {
        let path = path.into();
        if check_segments(&path)? % 2 != 0 {
            return Err(PathError::WrongDepth(path, "document"));
        }
        Ok(Self(path))
    }

    /// The path as `collection/id/…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, collection ids and document ids in turn.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The last segment.
    pub fn id(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The collection that holds the document.
    pub fn collection(&self) -> CollectionPath {
        let end = self.0.rfind('/').unwrap_or(self.0.len());
        CollectionPath(self.0[..end].to_owned())
    }

    /// The id of the collection that holds the document, whatever its parent: the collection group.
    pub fn collection_group(&self) -> &str {
        self.0.rsplit('/').nth(1).unwrap_or_default()
    }

    /// The root collection that the path starts in.
    pub fn root_collection(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// The document that this document's collection belongs to, `None` in a root collection.
    pub fn parent(&self) -> Option<DocumentPath> {
        let collection = self.collection().0;
        collection
            .rfind('/')
            .map(|end| DocumentPath(collection[..end].to_owned()))
    }

    /// The byte form that orders as Firestore does.
    pub fn key(&self) -> DocumentKey {
        let mut bytes = Vec::with_capacity(self.0.len() + 8);
        append_key(&self.0, &mut bytes);
        DocumentKey(bytes)
    }

    /// The path that a key stands for. The key must be one that [`DocumentPath::key`] writes, to the byte.
    pub fn from_key(key: &[u8]) -> Result<Self, PathError> {
        Self::from_key_in(key, String::with_capacity(key.len()))
    }

    /// The same in a buffer, which is cleared first: who reads many keys gets it back with `String::from` and allocates
    /// nothing. On an error it is lost.
    pub(crate) fn from_key_in(key: &[u8], buffer: String) -> Result<Self, PathError> {
        let (path, count) = path_of_key(key, buffer)?;
        if count == 0 || count % 2 != 0 {
            return Err(PathError::BadKey("an odd number of segments"));
        }
        Ok(Self(path))
    }
}

impl PartialOrd for DocumentPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DocumentPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl fmt::Display for DocumentPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DocumentPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for DocumentPath {
    type Error = PathError;
    fn try_from(path: String) -> Result<Self, PathError> {
        Self::parse(path)
    }
}

impl From<DocumentPath> for String {
    fn from(path: DocumentPath) -> Self {
        path.0
    }
}

/// A collection's path relative to the database's root, such as `products` or `products/p1/reviews`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CollectionPath(String);

impl CollectionPath {
    /// Takes any path with an odd number of segments, none of them empty.
    pub fn parse(path: impl Into<String>) -> Result<Self, PathError> {
        let path = path.into();
        if check_segments(&path)? % 2 != 1 {
            return Err(PathError::WrongDepth(path, "collection"));
        }
        Ok(Self(path))
    }

    /// The path as `collection` or `collection/id/collection`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment: the collection group's id.
    pub fn id(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// A document of this collection.
    pub fn document(&self, id: &str) -> Result<DocumentPath, PathError> {
        DocumentPath::parse(format!("{}/{id}", self.0))
    }

    /// The keys of every document in the collection and below it.
    pub fn key_range(&self) -> KeyRange {
        let mut start = Vec::with_capacity(self.0.len() + 8);
        append_key(&self.0, &mut start);
        let end = prefix_end(&start);
        KeyRange {
            start: Some(DocumentKey(start)),
            end: Some(DocumentKey(end)),
        }
    }
}

impl fmt::Display for CollectionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for CollectionPath {
    type Error = PathError;
    fn try_from(path: String) -> Result<Self, PathError> {
        Self::parse(path)
    }
}

impl From<CollectionPath> for String {
    fn from(path: CollectionPath) -> Self {
        path.0
    }
}

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

    /// The smallest key past a document's: that of no document, and before everything below it.
    pub fn next(&self) -> Self {
        let mut next = Vec::with_capacity(self.0.len() + 1);
        next.extend_from_slice(&self.0);
        next.push(PAST);
        Self(next)
    }

    /// The key that this is the [next](Self::next) of, if it is one.
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
}

impl DocumentKey {
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
        match numeric_id(segment) {
            Some(number) => {
                out.push(TAG_NUMERIC);
                out.extend_from_slice(&((number as u64) ^ (1 << 63)).to_be_bytes());
            }
            None => {
                out.push(TAG_TEXT);
                let mut rest = segment.as_bytes();
                while let Some(nul) = rest.iter().position(|&byte| byte == 0) {
                    out.extend_from_slice(&rest[..nul]);
                    out.extend_from_slice(&[0, TEXT_NUL]);
                    rest = &rest[nul + 1..];
                }
                out.extend_from_slice(rest);
                out.push(TEXT_END);
            }
        }
    }
}

/// The number of a `__id<int64>__` id in its one decimal form. Anything else (leading zeros, a plus sign, too many
/// digits) is text: two ids must never share a key.
fn numeric_id(segment: &str) -> Option<i64> {
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

fn path_of_key(key: &[u8], buffer: String) -> Result<(String, usize), PathError> {
    let mut path = buffer.into_bytes();
    path.clear();
    let mut rest = key;
    let mut count = 0;
    while let Some((&tag, after)) = rest.split_first() {
        if count > 0 {
            path.push(b'/');
        }
        count += 1;
        let segment_start = path.len();
        rest = match tag {
            TAG_NUMERIC => {
                let (number, after) = after
                    .split_first_chunk::<8>()
                    .ok_or(PathError::BadKey("a number is cut off"))?;
                let number = (u64::from_be_bytes(*number) ^ (1 << 63)) as i64;
                path.extend_from_slice(format!("__id{number}__").as_bytes());
                after
            }
            TAG_TEXT => {
                let mut text = after;
                loop {
                    let end = text
                        .iter()
                        .position(|&byte| byte == TEXT_END)
                        .ok_or(PathError::BadKey("a segment has no end"))?;
                    path.extend_from_slice(&text[..end]);
                    text = &text[end + 1..];
                    if text.first() != Some(&TEXT_NUL) {
                        break;
                    }
                    path.push(0);
                    text = &text[1..];
                }
                let segment = &path[segment_start..];
                if segment.is_empty() || segment.contains(&b'/') {
                    return Err(PathError::BadKey("an empty segment or a slash"));
                }
                let is_numeric = |text| numeric_id(text).is_some();
                if segment.starts_with(b"__id") && std::str::from_utf8(segment).is_ok_and(is_numeric) {
                    return Err(PathError::BadKey("a number written as text"));
                }
                text
            }
            _ => return Err(PathError::BadKey("an unknown tag")),
        };
    }
    let path = String::from_utf8(path).map_err(|_| PathError::BadKey("not UTF-8"))?;
    Ok((path, count))
}

/// What follows a document's key in the smallest key past it: no tag.
const PAST: u8 = 0;

/// The first key after all keys that start with `prefix`, which ends with a whole segment: what follows there is a tag.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = Vec::with_capacity(prefix.len() + 1);
    end.extend_from_slice(prefix);
    // Not 0xff: after a text segment's end that would read as a NUL of its text.
    end.push(TAG_TEXT + 1);
    end
}

/// A database's name: the project and the database in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DatabaseName {
    /// The project's id.
    pub project: String,
    /// The database's id, `(default)` where the project has only one.
    pub database: String,
}

impl DatabaseName {
    /// The id of the database that a project has when it names none.
    pub const DEFAULT_DATABASE: &'static str = "(default)";

    /// A database of a project.
    pub fn new(project: impl Into<String>, database: impl Into<String>) -> Self {
        Self {
            project: project.into(),
            database: database.into(),
        }
    }

    /// Takes the database out of a resource name: `projects/<project>/databases/<database>`, whatever follows.
    pub fn parse(name: &str) -> Result<Self, PathError> {
        let mut segments = name.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("projects"), Some(project), Some("databases"), Some(database))
                if !project.is_empty() && !database.is_empty() =>
            {
                Ok(Self::new(project, database))
            }
            _ => Err(PathError::BadDatabaseName(name.to_owned())),
        }
    }

    /// `projects/<project>/databases/<database>`.
    pub fn resource(&self) -> String {
        format!("projects/{}/databases/{}", self.project, self.database)
    }

    /// The root that document names start with, without a slash after it: `…/documents`.
    pub fn root(&self) -> String {
        format!("{}/documents", self.resource())
    }

    /// A document's full resource name.
    pub fn document_name(&self, path: &DocumentPath) -> String {
        format!("{}/{path}", self.root())
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.database)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(path: &str) -> DocumentKey {
        DocumentPath::parse(path).unwrap().key()
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
