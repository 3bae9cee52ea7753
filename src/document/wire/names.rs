//! Names at a glance: what a query without fields answers, millions of times.
//!
//! Almost every answer looks like the one before it: the same fields in the same places, a document of the same
//! collection, the same time that it was read at. So those parts are compared with what is known, and only what is new is
//! taken apart. Whatever looks different in any way is left to [`query_answer`](super::query_answer) and
//! [`append_document`](super::append_document).

use memchr::memchr;

use super::cursor::{Cursor, tag};
use super::number;
use crate::document::key::{append_key, append_segment, append_text_segment, is_usual_id};
use crate::document::path::is_document_path;
use crate::document::{DocumentBatch, Timestamp, canonical};

/// Reads the answers of one database's queries for names.
#[derive(Debug)]
pub struct NameReader {
    collection: Collection,
    /// The time that the last answer was read at, as it was sent and as it is.
    read_time: (Vec<u8>, Timestamp),
}

impl NameReader {
    /// For documents below a root: see [`append_document`](super::append_document).
    pub fn new(root: &str) -> Self {
        Self {
            collection: Collection::below(root),
            read_time: (Vec::new(), Timestamp::default()),
        }
    }

    /// The root.
    pub fn root(&self) -> &str {
        &self.collection.root
    }

    /// Takes a `RunQueryResponse` with a document without fields apart, and appends that as
    /// [`append_document`](super::append_document) does. Returns the time that the answer was read at.
    ///
    /// `None` says that nothing was appended, and nothing about the answer.
    #[inline]
    pub fn append(&mut self, message: &[u8], batch: &mut DocumentBatch) -> Option<Timestamp> {
        let mut answer = Cursor::new(message);
        let mut document = Cursor::over(message, answer.delimited(tag(number::ANSWER_DOCUMENT))?);
        let name = document.delimited(tag(number::DOCUMENT_NAME))?.of(message);
        let created = document.delimited(tag(number::DOCUMENT_CREATE_TIME))?;
        let updated = document.delimited(tag(number::DOCUMENT_UPDATE_TIME))?;
        let read = answer.delimited(tag(number::ANSWER_READ_TIME))?;
        if !document.is_at_end() || !answer.is_at_end() {
            return None;
        }
        let create_time = answer.usual_time(created)?;
        let update_time = match is_same(created.of(message), updated.of(message)) {
            true => create_time,
            false => answer.usual_time(updated)?,
        };
        if !is_same(read.of(message), &self.read_time.0) {
            self.read_time = (read.of(message).to_vec(), answer.usual_time(read)?);
        }
        let (keys, bodies) = batch.buffers();
        if !self.collection.append_usual_key(name, keys) {
            return None;
        }
        canonical::put_map_header(0, bodies);
        batch.seal(create_time, update_time);
        Some(self.read_time.1)
    }
}

/// Whether these are the same bytes, without a call where they are as many as a time usually takes.
#[inline]
fn is_same(a: &[u8], b: &[u8]) -> bool {
    const WORD: usize = size_of::<u64>();
    if a.len() != b.len() {
        return false;
    }
    match (a.first_chunk::<WORD>(), b.first_chunk::<WORD>()) {
        // What is left after the first word is within the last one, which may overlap.
        (Some(first), Some(second)) if a.len() <= 2 * WORD => {
            first == second && a.last_chunk::<WORD>() == b.last_chunk::<WORD>()
        }
        _ => a == b,
    }
}

/// The collection of the last document, which is that of the next one mostly.
#[derive(Debug)]
pub(super) struct Collection {
    /// What its name begins with.
    root: String,
    /// What the names of its documents begin with, up to the slash before their ids. Empty: there was none yet.
    name: String,
    /// Its key.
    key: Vec<u8>,
}

impl Collection {
    /// None, and no root.
    pub(super) const fn unknown() -> Self {
        Self {
            root: String::new(),
            name: String::new(),
            key: Vec::new(),
        }
    }

    fn below(root: &str) -> Self {
        Self {
            root: root.to_owned(),
            ..Self::unknown()
        }
    }

    /// Appends the key of the document with this name; `false` when there is none below the root.
    #[inline]
    pub(super) fn append_key(&mut self, name: &str, root: &str, keys: &mut Vec<u8>) -> bool {
        if self.root != root {
            *self = Self::below(root);
        }
        let id = name.strip_prefix(&*self.name);
        let id =
            id.filter(|id| !self.name.is_empty() && !id.is_empty() && memchr(b'/', id.as_bytes()).is_none());
        let Some(id) = id.or_else(|| self.learn(name)) else {
            return false;
        };
        keys.extend_from_slice(&self.key);
        append_segment(id, keys);
        true
    }

    /// The same for a name whose id is of the usual kind; `false` says nothing about others.
    #[inline]
    fn append_usual_key(&mut self, name: &[u8], keys: &mut Vec<u8>) -> bool {
        let known = |collection: &Self| match name.strip_prefix(collection.name.as_bytes()) {
            Some(id) if !collection.name.is_empty() && is_usual_id(id) => Some(id),
            _ => None,
        };
        let id = known(self).or_else(|| {
            self.learn(std::str::from_utf8(name).ok()?)?;
            known(self)
        });
        if let Some(id) = id {
            keys.extend_from_slice(&self.key);
            append_text_segment(id, keys);
        }
        id.is_some()
    }

    /// Becomes the collection of the document with this name, and returns the document's id.
    #[cold]
    fn learn<'n>(&mut self, name: &'n str) -> Option<&'n str> {
        let (collection, id) = path_below(name, &self.root)?.rsplit_once('/')?;
        self.name.clear();
        self.name.push_str(&name[..name.len() - id.len()]);
        self.key.clear();
        append_key(collection, &mut self.key);
        Some(id)
    }
}

/// The document path that `name` has below `root`.
#[inline]
pub(super) fn path_below<'n>(name: &'n str, root: &str) -> Option<&'n str> {
    let path = name.strip_prefix(root)?.strip_prefix('/')?;
    is_document_path(path).then_some(path)
}
