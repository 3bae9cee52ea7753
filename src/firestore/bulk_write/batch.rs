//! Writes in the form in which they are sent.

use bytes::Bytes;

use super::WriteMode;
use crate::document::wire::{self, WireError};
use crate::document::{DocumentBatch, DocumentPath};

/// Field numbers and wire types of `BatchWriteRequest`, `Write` and `Precondition`
/// (<https://github.com/googleapis/googleapis/tree/master/google/firestore/v1>). All are length-delimited.
mod tag {
    pub(super) const REQUEST_DATABASE: u8 = 1 << 3 | 2;
    pub(super) const REQUEST_WRITE: u8 = 2 << 3 | 2;
    pub(super) const WRITE_UPDATE: u8 = 1 << 3 | 2;
    pub(super) const WRITE_DELETE: u8 = 2 << 3 | 2;
    pub(super) const WRITE_PRECONDITION: u8 = 4 << 3 | 2;
    /// `Precondition.exists`, a varint.
    pub(super) const PRECONDITION_EXISTS: u8 = 1 << 3;
}

/// `Write.current_document = {exists: false}`.
const MUST_NOT_EXIST: [u8; 4] = [tag::WRITE_PRECONDITION, 2, tag::PRECONDITION_EXISTS, 0];

pub(super) fn path_hash(path: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(path.as_bytes())
}

/// Writes, encoded one after the other as the fields of a request.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// A document's message while its length is not known.
    scratch: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where the write ends in the bytes.
    end: usize,
    /// The document's message or the deleted document's name: what follows these many bytes of the write and has this
    /// length.
    content: (usize, usize),
    is_put: bool,
    pub(super) hash: u64,
    /// How often it has been answered for.
    pub(super) attempts: u32,
    /// Whether it may have been applied although its answer says otherwise: its request was lost on the way.
    pub(super) in_doubt: bool,
}

impl Batch {
    /// An empty batch with room for as much as this one has: the next one is likely to be of its size. It takes over
    /// what is needed for encoding.
    pub(super) fn take(&mut self) -> Self {
        let next = Self {
            bytes: Vec::with_capacity(self.bytes.len() + self.bytes.len() / 8),
            entries: Vec::with_capacity(self.entries.len()),
            scratch: std::mem::take(&mut self.scratch),
        };
        std::mem::replace(self, next)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a put. Returns how many absolute references it has.
    pub(super) fn push_put(
        &mut self,
        path: &DocumentPath,
        body: &[u8],
        root: &str,
        mode: WriteMode,
        hash: u64,
    ) -> Result<u64, WireError> {
        self.scratch.clear();
        let absolute_references = wire::append_document_message(path, body, root, &mut self.scratch)?;
        let content = std::mem::take(&mut self.scratch);
        let precondition = match mode {
            WriteMode::Overwrite => &[][..],
            WriteMode::CreateOnly => &MUST_NOT_EXIST[..],
        };
        self.push(tag::WRITE_UPDATE, &content, precondition, hash);
        self.scratch = content;
        Ok(absolute_references)
    }

    pub(super) fn push_delete(&mut self, path: &DocumentPath, root: &str, hash: u64) {
        let name = format!("{root}/{path}");
        self.push(tag::WRITE_DELETE, name.as_bytes(), &[], hash);
    }

    fn push(&mut self, operation: u8, content: &[u8], precondition: &[u8], hash: u64) {
        let start = self.bytes.len();
        let length = 1 + varint_len(content.len()) + content.len() + precondition.len();
        self.bytes.push(tag::REQUEST_WRITE);
        put_varint(length, &mut self.bytes);
        self.bytes.push(operation);
        put_varint(content.len(), &mut self.bytes);
        let content_start = self.bytes.len() - start;
        self.bytes.extend_from_slice(content);
        self.bytes.extend_from_slice(precondition);
        self.entries.push(Entry {
            end: self.bytes.len(),
            content: (content_start, content.len()),
            is_put: operation == tag::WRITE_UPDATE,
            hash,
            attempts: 0,
            in_doubt: false,
        });
    }

    /// Takes the writes from `at` on out of the batch.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let start = self.start(at);
        let mut entries = self.entries.split_off(at);
        for entry in &mut entries {
            entry.end -= start;
        }
        Self {
            bytes: self.bytes.split_off(start),
            entries,
            scratch: Vec::new(),
        }
    }

    /// Cuts the batch in two of about the same size in bytes; both have a write if it has two.
    pub(super) fn halve(mut self) -> (Self, Self) {
        let middle = self.bytes.len() / 2;
        let at = self.entries.partition_point(|entry| entry.end <= middle);
        let at = at.clamp(
            1.min(self.len()),
            self.len().saturating_sub(1).max(1).min(self.len()),
        );
        let second = self.split_off(at);
        (self, second)
    }

    fn start(&self, index: usize) -> usize {
        match index.checked_sub(1) {
            Some(previous) => self.entries[previous].end,
            None => 0,
        }
    }

    /// Makes it a request: see [`Sealed`].
    pub(super) fn seal(self) -> Sealed {
        Sealed {
            bytes: self.bytes.into(),
            entries: self.entries,
        }
    }
}

/// A batch that is being sent. Its bytes are shared with the connection.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    pub(super) bytes: Bytes,
    pub(super) entries: Vec<Entry>,
}

impl Sealed {
    /// The batch again, without a copy if the connection is done with it.
    pub(super) fn unseal(self) -> Batch {
        Batch {
            bytes: self.bytes.into(),
            entries: self.entries,
            scratch: Vec::new(),
        }
    }

    /// Appends a copy of a write to a batch.
    pub(super) fn copy_to(&self, index: usize, batch: &mut Batch) {
        let entry = &self.entries[index];
        batch
            .bytes
            .extend_from_slice(&self.bytes[self.start(index)..entry.end]);
        batch.entries.push(Entry {
            end: batch.bytes.len(),
            ..entry.clone()
        });
    }

    /// The path of a write and, for a put, the body in canonical form.
    pub(super) fn document(
        &self,
        index: usize,
        root: &str,
    ) -> Result<(DocumentPath, Option<Vec<u8>>), String> {
        let entry = &self.entries[index];
        let start = self.start(index) + entry.content.0;
        let content = &self.bytes[start..start + entry.content.1];
        if entry.is_put {
            let mut batch = DocumentBatch::new();
            wire::append_document(content, root, &mut batch).map_err(|error| error.to_string())?;
            let document = batch.last().ok_or("no document")?;
            let path = document.path().map_err(|error| error.to_string())?;
            Ok((path, Some(document.body.to_vec())))
        } else {
            let name = std::str::from_utf8(content).map_err(|error| error.to_string())?;
            let path = name.strip_prefix(root).and_then(|path| path.strip_prefix('/'));
            let path =
                DocumentPath::parse(path.ok_or("not below the root")?).map_err(|error| error.to_string())?;
            Ok((path, None))
        }
    }

    fn start(&self, index: usize) -> usize {
        match index.checked_sub(1) {
            Some(previous) => self.entries[previous].end,
            None => 0,
        }
    }
}

/// The field that a request begins with.
pub(super) fn request_head(database: &str) -> Bytes {
    let mut head = Vec::with_capacity(database.len() + 4);
    head.push(tag::REQUEST_DATABASE);
    put_varint(database.len(), &mut head);
    head.extend_from_slice(database.as_bytes());
    head.into()
}

fn varint_len(value: usize) -> usize {
    let bits = (usize::BITS - value.leading_zeros()).max(1);
    bits.div_ceil(7) as usize
}

fn put_varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Value, canonical};
    use ::firestore::gcloud_sdk::google::firestore::v1::{BatchWriteRequest, precondition, write::Operation};
    use prost::Message;

    const ROOT: &str = "projects/p/databases/(default)/documents";

    fn path(index: usize) -> DocumentPath {
        DocumentPath::parse(format!("things/{index:03}")).unwrap()
    }

    fn body(length: usize) -> Vec<u8> {
        canonical::encode(&[("text".to_owned(), Value::String("x".repeat(length)))].into())
    }

    fn batch(writes: usize, mode: WriteMode) -> Batch {
        let mut batch = Batch::default();
        for index in 0..writes {
            match index % 3 {
                2 => batch.push_delete(&path(index), ROOT, 0),
                _ => {
                    batch
                        .push_put(&path(index), &body(index * 17), ROOT, mode, 0)
                        .unwrap();
                }
            }
        }
        batch
    }

    fn decoded(sealed: &Sealed) -> BatchWriteRequest {
        let head = request_head("projects/p/databases/(default)");
        BatchWriteRequest::decode([&head[..], &sealed.bytes[..]].concat().as_slice()).unwrap()
    }

    #[test]
    fn reads_as_the_request_it_means() {
        for mode in [WriteMode::Overwrite, WriteMode::CreateOnly] {
            let sealed = batch(30, mode).seal();
            let request = decoded(&sealed);
            assert_eq!(request.database, "projects/p/databases/(default)");
            assert_eq!(request.writes.len(), 30);
            for (index, write) in request.writes.iter().enumerate() {
                let name = format!("{ROOT}/{}", path(index));
                let exists = write
                    .current_document
                    .as_ref()
                    .and_then(|condition| condition.condition_type.as_ref());
                match write.operation.as_ref().unwrap() {
                    Operation::Update(document) => {
                        assert_eq!(document.name, name);
                        assert_eq!(document.fields.len(), 1);
                        let create_only = mode == WriteMode::CreateOnly;
                        assert_eq!(
                            exists,
                            create_only.then_some(&precondition::ConditionType::Exists(false))
                        );
                    }
                    Operation::Delete(deleted) => {
                        assert_eq!(deleted, &name);
                        assert_eq!(exists, None);
                    }
                    other => panic!("{other:?}"),
                }
                let (found, found_body) = sealed.document(index, ROOT).unwrap();
                assert_eq!(found, path(index));
                assert_eq!(found_body, (index % 3 != 2).then(|| body(index * 17)));
            }
        }
    }

    #[test]
    fn halves_hold_everything_once() {
        for writes in 1..12 {
            let whole = decoded(&batch(writes, WriteMode::Overwrite).seal()).writes;
            let (first, second) = batch(writes, WriteMode::Overwrite).halve();
            assert!(
                writes == 1 || (!first.is_empty() && !second.is_empty()),
                "{writes}"
            );
            let halves = [decoded(&first.seal()).writes, decoded(&second.seal()).writes].concat();
            assert_eq!(halves, whole);
        }
    }

    #[test]
    fn copies_are_the_writes_themselves() {
        let sealed = batch(9, WriteMode::CreateOnly).seal();
        let mut copy = Batch::default();
        for index in [1, 5, 8] {
            sealed.copy_to(index, &mut copy);
        }
        let whole = decoded(&sealed).writes;
        let copied = decoded(&copy.seal()).writes;
        assert_eq!(copied, [whole[1].clone(), whole[5].clone(), whole[8].clone()]);
    }
}
