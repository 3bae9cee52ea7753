//! Fetches the bodies of merged records: a pipeline of small windows, so that memory stays bounded whatever the archive.
//!
//! A window is a stretch of records that needs at most a few frames which are not at hand. Neighbouring records of one run
//! lie in the same frames; the frame that a window ends in is the first that the next one needs, in every layer. So a plan keeps
//! account of which decoded frames stay (least recently used go), windows are fetched ahead by one, and decoded in order
//! on blocking threads: each frame is fetched, decompressed and hashed once.

mod decode;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use tokio::task::JoinHandle;

use super::chunk::{FrameRow, FrameTable, header_len};
use super::error::{ArchiveError, DamageKind, Result};
use super::ids::{ChunkId, ChunkRef, SessionId};
use super::reader::data_table;
use super::record::{BodyLocation, RecordBatch};
use super::repository::Repository;
use crate::document::{DocumentBatch, DocumentRef};
use crate::store::Store;
use decode::{Frames, decode_window};

/// Bytes of frames that a window fetches at most, unless one document needs more.
const WINDOW_LEN: u64 = 4 << 20;
/// Records of a window at most.
const WINDOW_RECORDS: usize = 8192;
/// Decoded frames that stay between windows at most.
const MAX_RESIDENT: usize = 32;
/// A chunk up to this size is fetched whole with its table.
const SMALL_CHUNK: u64 = 512 << 10;
/// A gap between two wanted frames up to this size is fetched along.
const MAX_GAP: u64 = 64 << 10;
/// Frame tables kept.
const MAX_TABLES: usize = 256;

/// Frame tables by chunk.
type Tables = HashMap<(ChunkId, SessionId), Arc<FrameTable>>;
/// A frame of a stored chunk.
type FrameKey = (ChunkId, SessionId, u32);

/// Takes documents in, in order, while the bytes that they are decoded from are at hand. It works on blocking threads.
pub trait DocumentSink: Send + 'static {
    /// What it makes of them.
    type Output: Send + 'static;

    /// So many documents follow, with so many bytes of keys and bodies.
    fn expect(&mut self, documents: usize, key_bytes: usize, body_bytes: usize) {
        let _ = (documents, key_bytes, body_bytes);
    }

    /// The next document.
    fn push(&mut self, document: DocumentRef<'_>);

    /// Called every few thousand documents: what there is to pass on.
    fn pass_on(&mut self) -> Self::Output;

    /// What is left after the last document.
    fn finish(self) -> Option<Self::Output>;
}

/// Packs documents into batches.
#[derive(Default)]
struct Pack(DocumentBatch);

impl DocumentSink for Pack {
    type Output = DocumentBatch;

    fn expect(&mut self, documents: usize, key_bytes: usize, body_bytes: usize) {
        self.0 = DocumentBatch::with_capacity(documents, key_bytes, body_bytes);
    }

    fn push(&mut self, document: DocumentRef<'_>) {
        self.0.push(document);
    }

    fn pass_on(&mut self) -> DocumentBatch {
        std::mem::take(&mut self.0)
    }

    fn finish(self) -> Option<DocumentBatch> {
        None
    }
}

/// The documents of records, in their order.
pub(crate) fn stream(
    repository: &Repository,
    records: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    runs: usize,
) -> impl Stream<Item = Result<DocumentBatch>> + Send + 'static {
    stream_into(repository, records, runs, Pack::default())
}

/// What a sink makes of the documents of records.
pub(crate) fn stream_into<Sink: DocumentSink>(
    repository: &Repository,
    records: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    runs: usize,
    sink: Sink,
) -> impl Stream<Item = Result<Sink::Output>> + Send + 'static {
    let parameters = repository.parameters();
    let frame_len = parameters.frame_len;
    let planner = Planner {
        records: records.boxed(),
        batch: Arc::new(RecordBatch::default()),
        next: 0,
        frame_len,
        resident: Resident::new((2 * runs).clamp(2, MAX_RESIDENT)),
    };
    let fetcher = Fetcher {
        store: repository.store().clone(),
        frame_len,
        tables: Arc::default(),
    };
    let fetched = stream::try_unfold(planner, |mut planner| async move {
        Ok(planner.window().await?.map(|window| (window, planner)))
    })
    .map_ok(move |window| fetcher.clone().spawn(window))
    .try_buffered(2);
    let state = Some((fetched.boxed(), Frames::default(), repository.clone(), sink));
    stream::try_unfold(state, |state| async move {
        let Some((mut fetched, mut frames, repository, mut sink)) = state else {
            return Ok(None);
        };
        let Some(window) = fetched.try_next().await? else {
            return Ok(sink.finish().map(|left| (left, None)));
        };
        let at_work = repository.clone();
        let (output, frames, sink) = tokio::task::spawn_blocking(move || {
            decode_window(window, &mut frames, &at_work, &mut sink)?;
            Ok::<_, ArchiveError>((sink.pass_on(), frames, sink))
        })
        .await??;
        Ok(Some((output, Some((fetched, frames, repository, sink)))))
    })
}

/// Which frames are decoded and at hand after the windows planned so far, with when they were last wanted.
struct Resident {
    capacity: usize,
    /// The number of the record, counted over all windows, that wanted it last.
    used: HashMap<FrameKey, u64>,
    clock: u64,
    /// The one frame that the last record lies in; its time is noted when another is wanted.
    latest: Option<FrameKey>,
}

impl Resident {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            used: HashMap::new(),
            clock: 0,
            latest: None,
        }
    }

    /// Notes when the latest frame was wanted last.
    fn settle(&mut self) {
        if let Some(latest) = self.latest.take() {
            self.used.insert(latest, self.clock);
        }
    }

    /// The frames that go with a window, each with the record that wants it last: that one first that goes first.
    fn evict(&mut self) -> Vec<(u64, FrameKey)> {
        self.settle();
        let excess = self.used.len().saturating_sub(self.capacity);
        let mut by_age: Vec<(u64, FrameKey)> = self.used.iter().map(|(key, used)| (*used, *key)).collect();
        by_age.sort_unstable();
        by_age.truncate(excess);
        for (_, key) in &by_age {
            self.used.remove(key);
        }
        by_age
    }
}

/// A stretch of records, with the frames to fetch for it and those to let go after it.
struct Window {
    batch: Arc<RecordBatch>,
    first: usize,
    end: usize,
    fetch: BTreeMap<FrameKey, ChunkRef>,
    /// By the record, of the batch, that needs them last.
    evict: Vec<(usize, FrameKey)>,
}

impl Window {
    /// Says which keys a damage affects: at most those of the window.
    fn locate(&self, error: ArchiveError) -> ArchiveError {
        let damage = match error.into_damage() {
            Ok(damage) => damage,
            Err(error) => return error,
        };
        ArchiveError::Damaged(Box::new(
            match (self.batch.get(self.first), self.batch.get(self.end - 1)) {
                (Some(first), Some(last)) => damage.within(first.key, last.key),
                _ => damage,
            },
        ))
    }
}

struct Planner {
    records: stream::BoxStream<'static, Result<RecordBatch>>,
    batch: Arc<RecordBatch>,
    next: usize,
    frame_len: u32,
    resident: Resident,
}

impl Planner {
    async fn window(&mut self) -> Result<Option<Window>> {
        while self.next >= self.batch.len() {
            match self.records.try_next().await? {
                Some(batch) => (self.batch, self.next) = (Arc::new(batch), 0),
                None => return Ok(None),
            }
        }
        let frame_len = u64::from(self.frame_len);
        let first = self.next;
        let clock = self.resident.clock;
        let mut fetch = BTreeMap::new();
        let mut body_bytes = 0;
        while let Some(record) = self.batch.get(self.next) {
            let Some(body) = record.body else {
                return Err(ArchiveError::Misuse("a tombstone has no body".to_owned()));
            };
            let frames = frames_of(&body, self.frame_len);
            let key = |frame| (body.chunk.id, body.chunk.session, frame);
            // Most bodies lie in the frame that the one before lies in.
            let same = frames.len() == 1 && self.resident.latest == Some(key(frames.start));
            let new = match same {
                true => 0,
                false => frames
                    .clone()
                    .filter(|&frame| !self.resident.used.contains_key(&key(frame)))
                    .count(),
            };
            let bytes = (fetch.len() + new) as u64 * frame_len;
            let full = bytes > WINDOW_LEN.max(2 * frame_len)
                || body_bytes + u64::from(body.length) > WINDOW_LEN
                || self.next - first >= WINDOW_RECORDS;
            if full && self.next > first {
                break;
            }
            body_bytes += u64::from(body.length);
            if !same {
                self.resident.settle();
            }
            self.resident.clock += 1;
            if !same {
                for frame in frames {
                    if self
                        .resident
                        .used
                        .insert(key(frame), self.resident.clock)
                        .is_none()
                    {
                        fetch.insert(key(frame), body.chunk);
                    }
                    self.resident.latest = Some(key(frame));
                }
            }
            self.next += 1;
        }
        let evict = self.resident.evict().into_iter().map(|(used, key)| {
            // Frames of earlier windows go at once.
            let record = used.saturating_sub(clock + 1) as usize;
            (first + record, key)
        });
        Ok(Some(Window {
            batch: Arc::clone(&self.batch),
            first,
            evict: evict.collect(),
            end: self.next,
            fetch,
        }))
    }
}

/// The frames that a body lies in.
fn frames_of(body: &BodyLocation, frame_len: u32) -> std::ops::Range<u32> {
    let end = (u64::from(body.offset) + u64::from(body.length)).div_ceil(u64::from(frame_len));
    body.offset / frame_len..end as u32
}

/// A window whose frames are here, compressed.
struct Fetched {
    window: Window,
    frames: Vec<(FrameKey, FrameRow, Bytes)>,
    frame_len: u32,
}

#[derive(Clone)]
struct Fetcher {
    store: Store,
    frame_len: u32,
    tables: Arc<Mutex<Tables>>,
}

/// A fetch under way; dropping it stops it.
struct Fetching(JoinHandle<Result<Fetched>>);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Fetcher {
    fn spawn(self, window: Window) -> impl Future<Output = Result<Fetched>> + Send {
        let mut fetching = Fetching(tokio::spawn(self.fetch(window)));
        async move { (&mut fetching.0).await? }
    }

    async fn fetch(self, window: Window) -> Result<Fetched> {
        let mut chunks: Vec<(ChunkRef, Vec<u32>)> = Vec::new();
        for (&(_, _, frame), chunk) in &window.fetch {
            match chunks.last_mut() {
                Some((last, frames)) if (last.id, last.session) == (chunk.id, chunk.session) => {
                    frames.push(frame)
                }
                _ => chunks.push((*chunk, vec![frame])),
            }
        }
        let frames: Vec<Vec<(FrameKey, FrameRow, Bytes)>> = stream::iter(chunks)
            .map(|(chunk, frames)| self.fetch_frames(chunk, frames))
            .buffer_unordered(8)
            .try_collect()
            .await
            .map_err(|error| window.locate(error))?;
        Ok(Fetched {
            window,
            frames: frames.into_iter().flatten().collect(),
            frame_len: self.frame_len,
        })
    }

    /// Fetches frames of one chunk, ascending: what lies close together with one get.
    async fn fetch_frames(
        &self,
        chunk: ChunkRef,
        wanted: Vec<u32>,
    ) -> Result<Vec<(FrameKey, FrameRow, Bytes)>> {
        let (table, front) = self.table(&chunk, &wanted).await?;
        let name = chunk.name();
        let rows = table.rows();
        if wanted.last().is_some_and(|&last| last as usize >= rows.len()) {
            return Err(ArchiveError::damaged(
                name,
                DamageKind::Inconsistent,
                "the index points past its last frame",
            ));
        }
        let mut frames = Vec::with_capacity(wanted.len());
        let mut take = |frame: u32, start: u64, bytes: &Bytes| {
            let range = table.stored_range(frame as usize);
            let slice = bytes.slice((range.start - start) as usize..(range.end - start) as usize);
            frames.push(((chunk.id, chunk.session, frame), rows[frame as usize], slice));
        };
        let mut rest = &wanted[..];
        while let Some(&first) = rest.first() {
            let start = table.stored_range(first as usize).start;
            let mut end = table.stored_range(first as usize).end;
            if end <= front.len() as u64 {
                take(first, 0, &front);
                rest = &rest[1..];
                continue;
            }
            let mut together = 1;
            while let Some(&next) = rest.get(together) {
                let range = table.stored_range(next as usize);
                if range.start - end > MAX_GAP {
                    break;
                }
                end = range.end;
                together += 1;
            }
            let bytes = self.store.get_range(&name, start..end).await?;
            for &frame in &rest[..together] {
                take(frame, start, &bytes);
            }
            rest = &rest[together..];
        }
        Ok(frames)
    }

    /// The chunk's table, and the bytes from the object's start that came along with it.
    ///
    /// Who reads a chunk for the first time most often reads it from its start: then the frames that are wanted now are
    /// most likely in the first bytes, as far as the chunk's own ratio of compression tells.
    async fn table(&self, chunk: &ChunkRef, wanted: &[u32]) -> Result<(Arc<FrameTable>, Bytes)> {
        let key = (chunk.id, chunk.session);
        let lock = || self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = lock().get(&key) {
            return Ok((Arc::clone(table), Bytes::new()));
        }
        let frames = super::reader::data_frames(chunk.raw_len, self.frame_len);
        let header = header_len(frames);
        let guess = match wanted {
            _ if chunk.stored_len <= SMALL_CHUNK => chunk.stored_len,
            [0, ..] => {
                let run = wanted
                    .iter()
                    .zip(0..)
                    .take_while(|(frame, at)| **frame == *at)
                    .count() as u64;
                let average = chunk.stored_len.saturating_sub(header) / frames.max(1) as u64;
                header + run * average + average / 2
            }
            _ => header,
        };
        let body = BodyLocation {
            chunk: *chunk,
            offset: 0,
            length: 0,
        };
        let (table, bytes) = data_table(&self.store, &body, self.frame_len, guess).await?;
        let table = Arc::new(table);
        let mut tables = lock();
        if tables.len() >= MAX_TABLES {
            tables.clear();
        }
        tables.insert(key, Arc::clone(&table));
        Ok((table, bytes))
    }
}
