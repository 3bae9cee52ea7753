//! Many documents in few allocations: what the bulk streams carry.

use std::ops::Range;

use super::{DocumentPath, PathError, Timestamp};

/// Documents in the order in which they were pushed, their keys and bodies packed into two buffers.
#[derive(Clone, Debug, Default)]
pub struct DocumentBatch {
    keys: Vec<u8>,
    bodies: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    key_end: usize,
    body_end: usize,
    create_time: Timestamp,
    update_time: Timestamp,
}

/// One document of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DocumentRef<'a> {
    /// The byte form of its path: see [`DocumentKey`](super::DocumentKey).
    pub key: &'a [u8],
    /// When the server says it was created.
    pub create_time: Timestamp,
    /// When the server says it was last changed.
    pub update_time: Timestamp,
    /// Its fields in canonical MessagePack: see [`canonical`](super::canonical).
    pub body: &'a [u8],
}

impl DocumentRef<'_> {
    /// The document's path.
    pub fn path(&self) -> Result<DocumentPath, PathError> {
        DocumentPath::from_key(self.key)
    }
}

impl DocumentBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for so many documents, bytes of keys and bytes of bodies.
    pub(crate) fn with_capacity(documents: usize, keys: usize, bodies: usize) -> Self {
        Self {
            keys: Vec::with_capacity(keys),
            bodies: Vec::with_capacity(bodies),
            entries: Vec::with_capacity(documents),
        }
    }

    /// Appends a copy of a document.
    pub fn push(&mut self, document: DocumentRef<'_>) {
        self.keys.extend_from_slice(document.key);
        self.bodies.extend_from_slice(document.body);
        self.seal(document.create_time, document.update_time);
    }

    /// Buffers to append a key and a body to; [`seal`](Self::seal) makes them a document. What was appended
    /// and not sealed is dropped by [`discard_unsealed`](Self::discard_unsealed).
    pub(crate) fn buffers(&mut self) -> (&mut Vec<u8>, &mut Vec<u8>) {
        (&mut self.keys, &mut self.bodies)
    }

    /// Makes room for so many more documents, beside their keys and bodies.
    pub(crate) fn reserve(&mut self, documents: usize) {
        self.entries.reserve(documents);
    }

    /// Whether the last key comes after the one before it, which is this one where the batch has no other.
    #[inline]
    pub(crate) fn ends_ascending(&self, before: &[u8]) -> bool {
        match &self.entries[..] {
            [] => true,
            [last] => self.keys[..last.key_end] > *before,
            [.., first, second, last] => {
                self.keys[second.key_end..last.key_end] > self.keys[first.key_end..second.key_end]
            }
            [second, last] => self.keys[second.key_end..last.key_end] > self.keys[..second.key_end],
        }
    }

    /// Makes a document of what was appended to the buffers since the last one.
    pub(crate) fn seal(&mut self, create_time: Timestamp, update_time: Timestamp) {
        self.entries.push(Entry {
            key_end: self.keys.len(),
            body_end: self.bodies.len(),
            create_time,
            update_time,
        });
    }

    /// Drops what was appended to the buffers since the last document.
    pub(crate) fn discard_unsealed(&mut self) {
        let (key_end, body_end) = self
            .entries
            .last()
            .map_or((0, 0), |entry| (entry.key_end, entry.body_end));
        self.keys.truncate(key_end);
        self.bodies.truncate(body_end);
    }

    /// Takes the bodies out, one after the other. Nothing else may be done with the batch until
    /// [`put_bodies`](Self::put_bodies) gives them back.
    pub(crate) fn take_bodies(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bodies)
    }

    /// Gives back what [`take_bodies`](Self::take_bodies) took.
    pub(crate) fn put_bodies(&mut self, bodies: Vec<u8>) {
        self.bodies = bodies;
    }

    /// How many documents there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys and bodies held.
    pub fn byte_len(&self) -> usize {
        self.keys.len() + self.bodies.len()
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.bodies.clear();
        self.entries.clear();
    }

    /// The document at `index`, `None` past the end.
    pub fn get(&self, index: usize) -> Option<DocumentRef<'_>> {
        let entry = self.entries.get(index)?;
        let (key_start, body_start) = match index.checked_sub(1) {
            Some(previous) => (self.entries[previous].key_end, self.entries[previous].body_end),
            None => (0, 0),
        };
        Some(self.document(entry, key_start..entry.key_end, body_start..entry.body_end))
    }

    /// The last document.
    pub fn last(&self) -> Option<DocumentRef<'_>> {
        self.get(self.len().checked_sub(1)?)
    }

    /// The documents in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = DocumentRef<'_>> {
        let mut key_start = 0;
        let mut body_start = 0;
        self.entries.iter().map(move |entry| {
            let key = std::mem::replace(&mut key_start, entry.key_end)..entry.key_end;
            let body = std::mem::replace(&mut body_start, entry.body_end)..entry.body_end;
            self.document(entry, key, body)
        })
    }

    fn document(&self, entry: &Entry, key: Range<usize>, body: Range<usize>) -> DocumentRef<'_> {
        DocumentRef {
            key: &self.keys[key],
            create_time: entry.create_time,
            update_time: entry.update_time,
            body: &self.bodies[body],
        }
    }
}
