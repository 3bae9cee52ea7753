//! Writes in the form in which they are sent.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{LARGEST_BATCH, WriteMode, WriteOptions};
use crate::document::wire::{self, WireError};
use crate::document::{DocumentBatch, DocumentPath, Timestamp};

/// Field numbers and wire types of `BatchWriteRequest`, `Write` and `Precondition`
/// (<https://github.com/googleapis/googleapis/tree/master/google/firestore/v1>). All are length-delimited.
mod tag {
    pub(super) const REQUEST_DATABASE: u8 = 1 << 3 | 2;
    pub(super) const REQUEST_WRITE: u8 = 2 << 3 | 2;
    pub(super) const WRITE_UPDATE: u8 = 1 << 3 | 2;
    pub(super) const WRITE_DELETE: u8 = 2 << 3 | 2;
    pub(super) const WRITE_MASK: u8 = 3 << 3 | 2;
    pub(super) const WRITE_PRECONDITION: u8 = 4 << 3 | 2;
    /// `Precondition.exists`, a varint.
    pub(super) const PRECONDITION_EXISTS: u8 = 1 << 3;
    pub(super) const PRECONDITION_UPDATE_TIME: u8 = 2 << 3 | 2;
    pub(super) const MASK_FIELD_PATH: u8 = 1 << 3 | 2;
    /// `Timestamp.seconds` and `Timestamp.nanos`, varints.
    pub(super) const TIMESTAMP_SECONDS: u8 = 1 << 3;
    pub(super) const TIMESTAMP_NANOS: u8 = 2 << 3;
}

/// `Write.current_document = {exists: false}`.
const MUST_NOT_EXIST: [u8; 4] = [tag::WRITE_PRECONDITION, 2, tag::PRECONDITION_EXISTS, 0];

/// What a document must be for a write to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// There is none; else ALREADY_EXISTS.
    Absent,
    /// It was last changed at this time; else FAILED_PRECONDITION.
    UpdateTime(Timestamp),
}

impl Precondition {
    /// `Write.current_document`.
    fn put(self, out: &mut Vec<u8>) {
        let time = match self {
            Self::Absent => return out.extend_from_slice(&MUST_NOT_EXIST),
            Self::UpdateTime(time) => time,
        };
        let mut message = vec![tag::TIMESTAMP_SECONDS];
        // Times before 1970 take ten bytes, as protobuf has it.
        put_varint(time.seconds as usize, &mut message);
        message.push(tag::TIMESTAMP_NANOS);
        put_varint(time.nanos as usize, &mut message);
        let mut condition = Vec::new();
        put_message(tag::PRECONDITION_UPDATE_TIME, &message, &mut condition);
        put_message(tag::WRITE_PRECONDITION, &condition, out);
    }
}

fn put_message(tag: u8, message: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    put_varint(message.len(), out);
    out.extend_from_slice(message);
}

pub(super) fn path_hash(path: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(path.as_bytes())
}

/// Writes, encoded one after the other as the fields of a request.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// How much a request may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) writes: usize,
    pub(super) bytes: usize,
}

impl Limits {
    /// What the options say, within what the server takes.
    pub(super) fn of(options: &WriteOptions, largest_request: usize) -> Self {
        Self {
            writes: options.batch_writes.clamp(1, LARGEST_BATCH),
            bytes: options.batch_bytes.unwrap_or(largest_request).max(1),
        }
    }
}

/// Buffers of requests that were answered, for those to come: memory that is asked for anew is cleared page by page.
#[derive(Debug, Default)]
pub(super) struct SpareBuffers(Mutex<Vec<Vec<u8>>>);

impl SpareBuffers {
    /// As many as requests are usually under way.
    const MOST: usize = 16;

    fn buffers(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, capacity: usize) -> Vec<u8> {
        let spare = self.buffers().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(capacity))
    }

    /// Takes a request's buffer back, unless the connection still has it.
    pub(super) fn give(&self, bytes: Bytes) {
        let Ok(buffer) = bytes.try_into_mut() else {
            return;
        };
        let mut buffer = Vec::from(buffer);
        buffer.clear();
        let mut buffers = self.buffers();
        if buffers.len() < Self::MOST {
            buffers.push(buffer);
        }
    }
}

/// The bytes before a write's content when both lengths take two, as for documents of 128 bytes to 16 KiB.
const USUAL_HEAD: usize = 6;

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
    /// An empty batch, in the memory of an earlier one if there is any.
    pub(super) fn in_spare(spare: &SpareBuffers) -> Self {
        Self {
            bytes: spare.take(0),
            entries: Vec::new(),
        }
    }

    /// Takes everything and leaves an empty batch with room for as much: the next one is likely to be of its size.
    pub(super) fn take(&mut self, spare: &SpareBuffers) -> Self {
        let next = Self {
            bytes: spare.take(self.bytes.len() + self.bytes.len() / 8),
            entries: Vec::with_capacity(self.entries.len()),
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
        let start = self.begin_write();
        let absolute_references = match wire::append_document_message(path, body, root, &mut self.bytes) {
            Ok(references) => references,
            Err(error) => {
                self.bytes.truncate(start);
                return Err(error);
            }
        };
        let precondition = match mode {
            WriteMode::Overwrite => &[][..],
            WriteMode::CreateOnly => &MUST_NOT_EXIST[..],
        };
        self.end_write(start, tag::WRITE_UPDATE, precondition, hash);
        Ok(absolute_references)
    }

    pub(super) fn push_delete(&mut self, path: &DocumentPath, root: &str, hash: u64) {
        let start = self.begin_write();
        self.bytes.extend_from_slice(root.as_bytes());
        self.bytes.push(b'/');
        self.bytes.extend_from_slice(path.as_str().as_bytes());
        self.end_write(start, tag::WRITE_DELETE, &[], hash);
    }

    /// Appends a write with a condition: a put of the fields that the mask names, or of the whole document without one, or a
    /// deletion without a body. Returns how many absolute references it has.
    pub(super) fn push_conditional(
        &mut self,
        path: &DocumentPath,
        body: Option<&[u8]>,
        mask: Option<&[String]>,
        condition: Precondition,
        root: &str,
        hash: u64,
    ) -> Result<u64, WireError> {
        let start = self.begin_write();
        let (operation, absolute_references) = match body {
            Some(body) => match wire::append_document_message(path, body, root, &mut self.bytes) {
                Ok(references) => (tag::WRITE_UPDATE, references),
                Err(error) => {
                    self.bytes.truncate(start);
                    return Err(error);
                }
            },
            None => {
                self.bytes.extend_from_slice(root.as_bytes());
                self.bytes.push(b'/');
                self.bytes.extend_from_slice(path.as_str().as_bytes());
                (tag::WRITE_DELETE, 0)
            }
        };
        let mut suffix = Vec::new();
        if let Some(mask) = mask {
            let mut fields = Vec::new();
            for path in mask {
                put_message(tag::MASK_FIELD_PATH, path.as_bytes(), &mut fields);
            }
            put_message(tag::WRITE_MASK, &fields, &mut suffix);
        }
        condition.put(&mut suffix);
        self.end_write(start, operation, &suffix, hash);
        Ok(absolute_references)
    }

    /// Leaves room for a write's head. Its content is to follow.
    fn begin_write(&mut self) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; USUAL_HEAD]);
        start
    }

    /// Puts the head before the content, now that its length is known, and what follows behind it.
    fn end_write(&mut self, start: usize, operation: u8, precondition: &[u8], hash: u64) {
        let content = self.bytes.len() - start - USUAL_HEAD;
        let length = 1 + varint_len(content) + content + precondition.len();
        let two_bytes = |length: usize| [length as u8 | 0x80, (length >> 7) as u8];
        let head_len = match (varint_len(length), varint_len(content)) {
            (2, 2) => {
                let ([a, b], [c, d]) = (two_bytes(length), two_bytes(content));
                self.bytes[start..start + USUAL_HEAD].copy_from_slice(&[
                    tag::REQUEST_WRITE,
                    a,
                    b,
                    operation,
                    c,
                    d,
                ]);
                USUAL_HEAD
            }
            _ => {
                let mut head = vec![tag::REQUEST_WRITE];
                put_varint(length, &mut head);
                head.push(operation);
                put_varint(content, &mut head);
                let head_len = head.len();
                self.bytes.splice(start..start + USUAL_HEAD, head);
                head_len
            }
        };
        self.bytes.extend_from_slice(precondition);
        self.entries.push(Entry {
            end: self.bytes.len(),
            content: (head_len, content),
            is_put: operation == tag::WRITE_UPDATE,
            hash,
            attempts: 0,
            in_doubt: false,
        });
    }

    /// Takes what is to be sent by itself, if that is enough: as many writes as a request may have, or all but the last when
    /// that one is too much.
    pub(super) fn take_full(&mut self, limits: Limits, spare: &SpareBuffers) -> Option<Self> {
        if self.len() >= limits.writes {
            return Some(self.take(spare));
        }
        if self.byte_len() > limits.bytes && self.len() > 1 {
            let last = self.split_off(self.len() - 1);
            return Some(std::mem::replace(self, last));
        }
        None
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

    /// The hashes of the paths, in order.
    pub(super) fn hashes(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().map(|entry| entry.hash)
    }

    fn start(&self, index: usize) -> usize {
        match index.checked_sub(1) {
            Some(previous) => self.entries[previous].end,
            None => 0,
        }
    }

    /// Appends a copy of a write to another batch.
    pub(super) fn copy_to(&self, index: usize, batch: &mut Self) {
        let entry = &self.entries[index];
        batch.append_copy(&self.bytes[self.start(index)..entry.end], entry);
    }

    fn append_copy(&mut self, write: &[u8], entry: &Entry) {
        self.bytes.extend_from_slice(write);
        self.entries.push(Entry {
            end: self.bytes.len(),
            ..entry.clone()
        });
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
        }
    }

    /// Appends a copy of a write to a batch.
    pub(super) fn copy_to(&self, index: usize, batch: &mut Batch) {
        let entry = &self.entries[index];
        batch.append_copy(&self.bytes[self.start(index)..entry.end], entry);
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
