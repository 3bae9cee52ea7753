//! Writes in the form in which they are sent.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ::firestore::gcloud_sdk::google::firestore::v1::BatchWriteRequest;
use bytes::Bytes;
use prost::Message;

use super::{BATCH_BYTES, EMULATOR_BATCH_BYTES, LARGEST_BATCH};
use super::{Change, Mark, OwnedChange, Precondition, Write, WriteOptions};
use crate::document::wire::{self, ReferencesSeen, WireError};
use crate::document::{DocumentBatch, DocumentPath};

/// Field numbers and wire types of `BatchWriteRequest`, `Write` and `Precondition`
/// (<https://github.com/googleapis/googleapis/tree/master/google/firestore/v1>). All are length-delimited.
mod tag {
    pub(super) const REQUEST_DATABASE: u8 = 1 << 3 | 2;
    pub(super) const REQUEST_WRITE: u8 = 2 << 3 | 2;
    pub(super) const WRITE_UPDATE: u8 = 1 << 3 | 2;
    pub(super) const WRITE_DELETE: u8 = 2 << 3 | 2;
    pub(super) const WRITE_MASK: u8 = 3 << 3 | 2;
    pub(super) const WRITE_PRECONDITION: u8 = 4 << 3 | 2;
    pub(super) const MASK_PATH: u8 = 1 << 3 | 2;
    /// `Precondition.exists`, a varint.
    pub(super) const PRECONDITION_EXISTS: u8 = 1 << 3;
    pub(super) const PRECONDITION_UPDATE_TIME: u8 = 2 << 3 | 2;
    /// `Timestamp.seconds` and `Timestamp.nanos`, varints.
    pub(super) const TIMESTAMP_SECONDS: u8 = 1 << 3;
    pub(super) const TIMESTAMP_NANOS: u8 = 2 << 3;
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
    pub(super) fn of(options: &WriteOptions, is_emulator: bool) -> Self {
        let accepted = match is_emulator {
            true => EMULATOR_BATCH_BYTES,
            false => BATCH_BYTES,
        };
        // A request of more than a second's worth would only make the writes wait for each other.
        let per_second = options.rate.map_or(LARGEST_BATCH, |rate| rate.ceil() as usize);
        Self {
            writes: options.batch_writes.min(per_second).clamp(1, LARGEST_BATCH),
            bytes: options.batch_bytes.unwrap_or(accepted).max(1),
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
    operation: Operation,
    pub(super) precondition: Precondition,
    pub(super) hash: u64,
    /// Whose end somebody waits for.
    pub(super) mark: Option<Mark>,
    /// How often it has been answered for.
    pub(super) attempts: u32,
    /// Whether it may have been applied although its answer says otherwise: its request was lost on the way, or its status did
    /// not tell.
    pub(super) in_doubt: bool,
}

impl Entry {
    /// Whether it deletes the document.
    pub(super) fn deletes(&self) -> bool {
        self.operation == Operation::Delete
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Put,
    Patch,
    Delete,
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

    /// Appends a write. Returns how many references it has.
    pub(super) fn push(
        &mut self,
        write: Write<'_>,
        root: &str,
        hash: u64,
    ) -> Result<ReferencesSeen, WireError> {
        let start = self.begin_write();
        let (operation, mask, references) = match write.change {
            Change::Put { body } => (
                Operation::Put,
                &[][..],
                self.put_document(start, &write, body, root)?,
            ),
            Change::Patch { body, mask } => (
                Operation::Patch,
                mask,
                self.put_document(start, &write, body, root)?,
            ),
            Change::Delete => {
                self.bytes.extend_from_slice(root.as_bytes());
                self.bytes.push(b'/');
                self.bytes.extend_from_slice(write.path.as_str().as_bytes());
                (Operation::Delete, &[][..], ReferencesSeen::default())
            }
        };
        let mut tail = Vec::new();
        if operation == Operation::Patch {
            put_mask(mask, &mut tail);
        }
        put_precondition(write.precondition, &mut tail);
        self.end_write(start, operation, &tail, write.precondition, hash);
        Ok(references)
    }

    fn put_document(
        &mut self,
        start: usize,
        write: &Write<'_>,
        body: &[u8],
        root: &str,
    ) -> Result<ReferencesSeen, WireError> {
        let appended = wire::append_document_message(write.path, body, root, &mut self.bytes);
        if appended.is_err() {
            self.bytes.truncate(start);
        }
        appended
    }

    /// Leaves room for a write's head. Its content is to follow.
    fn begin_write(&mut self) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; USUAL_HEAD]);
        start
    }

    /// Puts the head before the content, now that its length is known, and what follows behind it.
    fn end_write(
        &mut self,
        start: usize,
        operation: Operation,
        tail: &[u8],
        precondition: Precondition,
        hash: u64,
    ) {
        let operation_tag = match operation {
            Operation::Put | Operation::Patch => tag::WRITE_UPDATE,
            Operation::Delete => tag::WRITE_DELETE,
        };
        let content = self.bytes.len() - start - USUAL_HEAD;
        let length = 1 + varint_len(content) + content + tail.len();
        let two_bytes = |length: usize| [length as u8 | 0x80, (length >> 7) as u8];
        let head_len = match (varint_len(length), varint_len(content)) {
            (2, 2) => {
                let ([a, b], [c, d]) = (two_bytes(length), two_bytes(content));
                self.bytes[start..start + USUAL_HEAD].copy_from_slice(&[
                    tag::REQUEST_WRITE,
                    a,
                    b,
                    operation_tag,
                    c,
                    d,
                ]);
                USUAL_HEAD
            }
            _ => {
                let mut head = vec![tag::REQUEST_WRITE];
                put_varint(length, &mut head);
                head.push(operation_tag);
                put_varint(content, &mut head);
                let head_len = head.len();
                self.bytes.splice(start..start + USUAL_HEAD, head);
                head_len
            }
        };
        self.bytes.extend_from_slice(tail);
        self.entries.push(Entry {
            end: self.bytes.len(),
            content: (head_len, content),
            operation,
            precondition,
            hash,
            mark: None,
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

    /// Marks all of its writes.
    pub(super) fn mark(&mut self, mark: Mark) {
        for entry in &mut self.entries {
            entry.mark = Some(mark);
        }
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

    /// Says of the last write that it may have been applied, unless that is known already.
    pub(super) fn doubt_last(&mut self, doubt: bool) {
        if let Some(entry) = self.entries.last_mut() {
            entry.in_doubt |= doubt;
        }
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

    /// What a write was to do.
    pub(super) fn read_back(&self, index: usize, root: &str) -> Result<(DocumentPath, OwnedChange), String> {
        let entry = &self.entries[index];
        let write = self.start(index);
        let content = &self.bytes[write + entry.content.0..][..entry.content.1];
        if entry.operation == Operation::Delete {
            let name = std::str::from_utf8(content).map_err(|error| error.to_string())?;
            let path = name.strip_prefix(root).and_then(|path| path.strip_prefix('/'));
            let path =
                DocumentPath::parse(path.ok_or("not below the root")?).map_err(|error| error.to_string())?;
            return Ok((path, OwnedChange::Delete));
        }
        let mut batch = DocumentBatch::new();
        wire::append_document(content, root, &mut batch).map_err(|error| error.to_string())?;
        let document = batch.last().ok_or("no document")?;
        let path = document.path().map_err(|error| error.to_string())?;
        let body = document.body.to_vec();
        let change = match entry.operation {
            Operation::Patch => OwnedChange::Patch {
                body,
                mask: read_mask(&self.bytes[write..entry.end])?,
            },
            _ => OwnedChange::Put { body },
        };
        Ok((path, change))
    }

    fn start(&self, index: usize) -> usize {
        match index.checked_sub(1) {
            Some(previous) => self.entries[previous].end,
            None => 0,
        }
    }
}

fn put_mask(mask: &[String], out: &mut Vec<u8>) {
    let length = mask
        .iter()
        .map(|path| 1 + varint_len(path.len()) + path.len())
        .sum();
    out.push(tag::WRITE_MASK);
    put_varint(length, out);
    for path in mask {
        out.push(tag::MASK_PATH);
        put_varint(path.len(), out);
        out.extend_from_slice(path.as_bytes());
    }
}

/// The mask of a write, which is a request's field.
fn read_mask(write: &[u8]) -> Result<Vec<String>, String> {
    let request = BatchWriteRequest::decode(write).map_err(|error| error.to_string())?;
    let mask = request
        .writes
        .into_iter()
        .next()
        .and_then(|write| write.update_mask);
    Ok(mask.ok_or("no mask")?.field_paths)
}

fn put_precondition(precondition: Precondition, out: &mut Vec<u8>) {
    let exists = |exists: bool| {
        [
            tag::WRITE_PRECONDITION,
            2,
            tag::PRECONDITION_EXISTS,
            exists.into(),
        ]
    };
    match precondition {
        Precondition::None => {}
        Precondition::MustNotExist => out.extend_from_slice(&exists(false)),
        Precondition::MustExist => out.extend_from_slice(&exists(true)),
        Precondition::UpdateTime(time) => {
            let mut timestamp = vec![tag::TIMESTAMP_SECONDS];
            // A negative number takes the ten bytes of its 64 bits.
            put_varint64(time.seconds as u64, &mut timestamp);
            timestamp.push(tag::TIMESTAMP_NANOS);
            put_varint64(u64::from(time.nanos), &mut timestamp);
            // None of these lengths needs a second byte.
            out.extend_from_slice(&[tag::WRITE_PRECONDITION, timestamp.len() as u8 + 2]);
            out.extend_from_slice(&[tag::PRECONDITION_UPDATE_TIME, timestamp.len() as u8]);
            out.extend_from_slice(&timestamp);
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

fn put_varint(value: usize, out: &mut Vec<u8>) {
    put_varint64(value as u64, out);
}

fn put_varint64(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Timestamp;
    use crate::document::{Value, canonical};
    use ::firestore::gcloud_sdk::google::firestore::v1::{precondition::ConditionType, write::Operation};

    const ROOT: &str = "projects/p/databases/(default)/documents";

    fn path(index: usize) -> DocumentPath {
        DocumentPath::parse(format!("things/{index:03}")).unwrap()
    }

    fn body(length: usize) -> Vec<u8> {
        canonical::encode(&[("text".to_owned(), Value::String("x".repeat(length)))].into())
    }

    const PRECONDITIONS: [Precondition; 5] = [
        Precondition::None,
        Precondition::MustNotExist,
        Precondition::MustExist,
        Precondition::UpdateTime(Timestamp {
            seconds: 1_700_000_000,
            nanos: 123_456_000,
        }),
        Precondition::UpdateTime(Timestamp {
            seconds: -5,
            nanos: 0,
        }),
    ];

    fn change(index: usize) -> OwnedChange {
        let body = body(index * 17);
        match index % 3 {
            0 => OwnedChange::Put { body },
            1 => OwnedChange::Patch {
                body,
                mask: vec!["text".to_owned(), "`odd one`.b".repeat(index)],
            },
            _ => OwnedChange::Delete,
        }
    }

    fn batch(writes: usize, precondition: Precondition) -> Batch {
        let mut batch = Batch::default();
        for index in 0..writes {
            let (path, change) = (path(index), change(index));
            let write = Write {
                path: &path,
                change: change.as_change(),
                precondition,
            };
            batch.push(write, ROOT, 0).unwrap();
        }
        batch
    }

    fn decoded(sealed: &Sealed) -> BatchWriteRequest {
        let head = request_head("projects/p/databases/(default)");
        BatchWriteRequest::decode([&head[..], &sealed.bytes[..]].concat().as_slice()).unwrap()
    }

    #[test]
    fn reads_as_the_request_it_means() {
        for precondition in PRECONDITIONS {
            let sealed = batch(30, precondition).seal();
            let request = decoded(&sealed);
            assert_eq!(request.database, "projects/p/databases/(default)");
            assert_eq!(request.writes.len(), 30);
            for (index, write) in request.writes.iter().enumerate() {
                let name = format!("{ROOT}/{}", path(index));
                let condition = write
                    .current_document
                    .as_ref()
                    .and_then(|condition| condition.condition_type);
                let expected = match precondition {
                    Precondition::None => None,
                    Precondition::MustNotExist => Some(ConditionType::Exists(false)),
                    Precondition::MustExist => Some(ConditionType::Exists(true)),
                    Precondition::UpdateTime(time) => {
                        let (seconds, nanos) = (time.seconds, time.nanos as i32);
                        Some(ConditionType::UpdateTime(
                            ::firestore::gcloud_sdk::prost_types::Timestamp { seconds, nanos },
                        ))
                    }
                };
                assert_eq!(condition, expected);
                let mask = write.update_mask.as_ref().map(|mask| &mask.field_paths);
                match (write.operation.as_ref().unwrap(), change(index)) {
                    (Operation::Update(document), OwnedChange::Put { .. }) => {
                        assert_eq!((&document.name, document.fields.len()), (&name, 1));
                        assert_eq!(mask, None);
                    }
                    (Operation::Update(document), OwnedChange::Patch { mask: expected, .. }) => {
                        assert_eq!((&document.name, document.fields.len()), (&name, 1));
                        assert_eq!(mask, Some(&expected));
                    }
                    (Operation::Delete(deleted), OwnedChange::Delete) => assert_eq!(deleted, &name),
                    other => panic!("{other:?}"),
                }
                let found = sealed.read_back(index, ROOT).unwrap();
                assert_eq!(found, (path(index), change(index)));
            }
        }
    }

    #[test]
    fn halves_hold_everything_once() {
        for writes in 1..12 {
            let whole = decoded(&batch(writes, Precondition::None).seal()).writes;
            let (first, second) = batch(writes, Precondition::None).halve();
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
        let sealed = batch(9, Precondition::MustNotExist).seal();
        let mut copy = Batch::default();
        for index in [1, 5, 8] {
            sealed.copy_to(index, &mut copy);
        }
        let whole = decoded(&sealed).writes;
        let copied = decoded(&copy.seal()).writes;
        assert_eq!(copied, [whole[1].clone(), whole[5].clone(), whole[8].clone()]);
    }
}
