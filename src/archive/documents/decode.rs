//! From the frames of a window to its documents: each frame is decompressed when the first body in it is wanted, while the
//! processor has it at hand, and goes after the last.

use std::collections::HashMap;

use bytes::Bytes;

use super::{DocumentSink, Fetched, FrameKey, Window, frames_of};
use crate::archive::chunk::{FrameRow, with_decoder};
use crate::archive::error::{ArchiveError, Damage, DamageKind, Result, show_key};
use crate::archive::ids::{ChunkRef, chunk_name};
use crate::archive::record::{BodyLocation, RecordRef};
use crate::archive::repository::Repository;
use crate::document::DocumentRef;

/// Decoded frames that stay from window to window.
#[derive(Default)]
pub(super) struct Frames {
    plain: HashMap<FrameKey, Vec<u8>>,
    /// Buffers of frames that are gone, for those to come.
    idle: Vec<Vec<u8>>,
}

/// Gives the documents of a window to a sink, every frame and every body verified.
pub(super) fn decode_window(
    fetched: Fetched,
    frames: &mut Frames,
    repository: &Repository,
    sink: &mut impl DocumentSink,
) -> Result<()> {
    let window = &fetched.window;
    let records = (window.first..window.end).filter_map(|number| window.batch.get(number));
    let (keys, bodies) = records.fold((0, 0), |(keys, bodies), record| {
        (keys + record.key.len(), bodies + record.length() as usize)
    });
    sink.expect(window.end - window.first, keys, bodies);
    let stored = fetched.frames.into_iter();
    let mut decoding = Decoding {
        window,
        frame_len: fetched.frame_len,
        stored: stored.map(|(key, row, bytes)| (key, (row, bytes))).collect(),
        frames,
        repository,
        across: Vec::new(),
    };
    let mut evict = window.evict.iter().peekable();
    let mut number = window.first;
    while number < window.end {
        while let Some((_, key)) = evict.next_if(|(last, _)| *last < number) {
            decoding.forget(key);
        }
        number = decoding.documents_of_frame(number, sink)?;
    }
    evict.for_each(|(_, key)| decoding.forget(key));
    Ok(())
}

struct Decoding<'a> {
    window: &'a Window,
    frame_len: u32,
    /// Frames that were fetched and not decoded yet.
    stored: HashMap<FrameKey, (FrameRow, Bytes)>,
    frames: &'a mut Frames,
    repository: &'a Repository,
    /// A body that goes across frames.
    across: Vec<u8>,
}

impl Decoding<'_> {
    fn forget(&mut self, key: &FrameKey) {
        self.frames.idle.extend(self.frames.plain.remove(key));
    }

    /// Takes a frame's plaintext out of the frames at hand; `None` when nobody has fetched it.
    fn take(&mut self, key: &FrameKey) -> Result<Option<Vec<u8>>> {
        if let Some(plain) = self.frames.plain.remove(key) {
            return Ok(Some(plain));
        }
        let Some((row, stored)) = self.stored.remove(key) else {
            return Ok(None);
        };
        let mut plain = self.frames.idle.pop().unwrap_or_default();
        plain.clear();
        plain.reserve_exact(row.raw_len as usize);
        let name = chunk_name(&key.0, key.1);
        with_decoder(|decoder| decoder.decode(&name, &row, &stored, &mut plain))
            .map_err(|error| self.window.locate(error))?;
        Ok(Some(plain))
    }

    /// Passes on the documents from a record on that begin in the same frame. Says which record comes next.
    fn documents_of_frame(&mut self, number: usize, sink: &mut impl DocumentSink) -> Result<usize> {
        let record = self.window.batch.get(number);
        let Some((record, body)) = record.and_then(|record| Some((record, record.body?))) else {
            return Ok(number + 1);
        };
        let frame = body.offset / self.frame_len;
        let key = (body.chunk.id, body.chunk.session, frame);
        let plain = self.take(&key)?.ok_or_else(|| no_frame(&record, &body.chunk))?;
        let next = self.documents_in(&plain, &body.chunk, frame, number, sink)?;
        self.frames.plain.insert(key, plain);
        Ok(next)
    }

    fn documents_in(
        &mut self,
        plain: &[u8],
        chunk: &ChunkRef,
        frame: u32,
        mut number: usize,
        sink: &mut impl DocumentSink,
    ) -> Result<usize> {
        let window = self.window;
        while number < window.end {
            let Some(record) = window.batch.get(number) else {
                break;
            };
            let here = |body: &BodyLocation| body.offset / self.frame_len == frame && body.chunk == *chunk;
            let Some(body) = record.body.filter(here) else {
                break;
            };
            let start = (body.offset % self.frame_len) as usize;
            let bytes = match plain.get(start..start + body.length as usize) {
                Some(bytes) => bytes,
                None => {
                    self.gather(plain.get(start..).unwrap_or_default(), &record, &body)?;
                    &self.across
                }
            };
            if bytes.len() != body.length as usize || self.repository.body_hash(bytes) != record.body_hash {
                let what = "has another body than its record says";
                return Err(wrong(&record, &body.chunk, DamageKind::Document, what));
            }
            sink.push(DocumentRef {
                key: record.key,
                create_time: record.create_time,
                update_time: record.update_time,
                body: bytes,
            });
            number += 1;
        }
        Ok(number)
    }

    /// Puts a body together that begins at the end of one frame and goes on in the next.
    fn gather(&mut self, begin: &[u8], record: &RecordRef<'_>, body: &BodyLocation) -> Result<()> {
        self.across.clear();
        self.across.extend_from_slice(begin);
        for frame in frames_of(body, self.frame_len).skip(1) {
            let key = (body.chunk.id, body.chunk.session, frame);
            let plain = self.take(&key)?.ok_or_else(|| no_frame(record, &body.chunk))?;
            let more = (body.length as usize).saturating_sub(self.across.len());
            self.across.extend_from_slice(&plain[..more.min(plain.len())]);
            self.frames.plain.insert(key, plain);
        }
        Ok(())
    }
}

fn no_frame(record: &RecordRef<'_>, chunk: &ChunkRef) -> ArchiveError {
    wrong(record, chunk, DamageKind::Inconsistent, "has no frame")
}

fn wrong(record: &RecordRef<'_>, chunk: &ChunkRef, kind: DamageKind, what: &str) -> ArchiveError {
    let what = format!("{} {what}", show_key(record.key));
    let damage = Damage::new(chunk.name(), kind, what);
    ArchiveError::Damaged(Box::new(damage.within(record.key, record.key)))
}
