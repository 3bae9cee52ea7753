//! The paths of documents and collections, relative to a database's root.
//!
//! A path is kept as it is written, so that it is shown and sent without work. Where paths are put in order,
//! it is by their [keys](super::key): Firestore's order of names is not that of the text.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::key::{DocumentKey, KeyRange, key_of, path_of_key, prefix_end};

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
    /// Takes any path whose segments are not empty and come in pairs. Which ids a server accepts is left to
    /// the server: databases imported from Datastore hold ids that cannot be written today.
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
        DocumentKey::from_bytes(key_of(&self.0))
    }

    /// The path that a key stands for. The key must be one that [`DocumentPath::key`] writes, to the byte.
    pub fn from_key(key: &[u8]) -> Result<Self, PathError> {
        Self::from_key_in(key, String::with_capacity(key.len()))
    }

    /// The same in a buffer, which is cleared first: who reads many keys gets it back with `String::from` and
    /// allocates nothing. On an error it is lost.
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
        let start = key_of(&self.0);
        let end = prefix_end(&start);
        KeyRange {
            start: Some(DocumentKey::from_bytes(start)),
            end: Some(DocumentKey::from_bytes(end)),
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
