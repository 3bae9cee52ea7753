//! The data chunks: each one read whole, every frame hashed again, every body looked at.
//!
//! Bodies are noted as the index is read, and a chunk is checked once all of its bodies are known, which most often is long
//! before the index has been read to its end. So the data is checked while the index is still being read, by as many tasks as
//! there are cores, and what is noted stays little.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::locate::locate;
use super::pages::{IndexChunk, get_whole};
use super::{CheckStats, DamageReport, DataSubset};
use crate::archive::chunk::{ChunkKind, FrameTable, with_decoder};
use crate::archive::error::{Damage, DamageKind, Result};
use crate::archive::ids::{ChunkId, ChunkRef, SessionId};
use crate::archive::reader::{Run, SnapshotReader, check_data_table};
use crate::archive::repository::Repository;
use crate::document::canonical;

/// Places of bodies held before chunks are checked, in all: bounds the memory of a check.
const MAX_HELD: usize = 2 << 20;
/// Bytes of objects under check at the same time, unless one is larger.
const BYTES_AT_ONCE: u64 = 64 << 20;
/// Chunks of a bucket under check at the same time, at least: their bytes take a while to arrive.
const REMOTE_AT_ONCE: usize = 8;

/// Buffers up to this size are used again.
const KEPT_BUFFER: usize = 32 << 20;

type ChunkName = (ChunkId, SessionId);

/// Where a body lies in its chunk, and its hash.
#[derive(Clone, Copy)]
pub(super) struct Located {
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) body_hash: u64,
}

impl Located {
    fn span(&self) -> Range<u64> {
        u64::from(self.offset)..u64::from(self.offset) + u64::from(self.length)
    }
}

/// A data chunk that is to be checked, with what the index says of it.
pub(super) struct Pending {
    pub(super) chunk: ChunkRef,
    bodies: Vec<Located>,
    /// Bytes of these bodies.
    covered: u64,
    /// The index chunks that point into it.
    pub(super) entries: Vec<IndexChunk>,
}

/// Something wrong with a data chunk, and which of its plaintext is affected.
pub(super) struct Wrong {
    pub(super) damage: Damage,
    pub(super) span: Range<u64>,
}

/// Checks the data chunks of some runs while their index is read.
pub(super) struct BodyChecks {
    reader: SnapshotReader,
    subset: DataSubset,
    /// How many index chunks that are not read yet point into a data chunk; those that were checked are gone.
    uses: HashMap<ChunkName, u32>,
    pending: HashMap<ChunkName, Pending>,
    held: usize,
    ready: VecDeque<Pending>,
    running: JoinSet<Result<Checked>>,
    bytes_running: u64,
    at_once: usize,
    idle: Vec<Buffers>,
}

/// What a check works in. Used again, so that a check of any number of chunks takes no more memory than that of a few.
#[derive(Default)]
struct Buffers {
    stored: Vec<u8>,
    plain: Vec<u8>,
}

/// A chunk that was checked.
struct Checked {
    pending: Pending,
    wrong: Vec<Wrong>,
    buffers: Buffers,
}

impl BodyChecks {
    /// Looks up which index chunks of the runs point into which data chunks.
    pub(super) async fn new(
        reader: &SnapshotReader,
        runs: &[Arc<Run>],
        subset: DataSubset,
        threads: usize,
    ) -> Result<Self> {
        let mut uses = HashMap::new();
        for listed in runs.iter().flat_map(|run| &run.root.blocks) {
            let block = match reader.block_source().load(listed).await {
                Ok(block) => block,
                Err(error) => {
                    // It is reported when its turn comes.
                    error.into_damage()?;
                    continue;
                }
            };
            for chunk in block.entries.iter().flat_map(|entry| &entry.data) {
                if subset.includes(&chunk.id) {
                    *uses.entry((chunk.id, chunk.session)).or_insert(0) += 1;
                }
            }
        }
        let at_least = match reader.repository().store().local_folder() {
            Some(_) => 1,
            None => REMOTE_AT_ONCE,
        };
        Ok(Self {
            reader: reader.clone(),
            subset,
            uses,
            pending: HashMap::new(),
            held: 0,
            ready: VecDeque::new(),
            running: JoinSet::new(),
            bytes_running: 0,
            at_once: (threads + 1).max(at_least),
            idle: Vec::new(),
        })
    }

    /// An index chunk is about to be read: the data chunks that it lists are needed, also those that no body points into.
    pub(super) fn begin(&mut self, index: &IndexChunk) {
        for chunk in self.listed(index) {
            if self.uses.contains_key(&(chunk.id, chunk.session)) {
                self.pending(&chunk, index);
            }
        }
    }

    /// Notes bodies of an index chunk's documents, by the number of their data chunk.
    pub(super) fn place(&mut self, index: &IndexChunk, bodies: &[(u32, Located)]) {
        for bodies in bodies.chunk_by(|(a, _), (b, _)| a == b) {
            let Some(chunk) = index.entry().data.get(bodies[0].0 as usize) else {
                continue;
            };
            let pending = self.pending(chunk, index);
            pending.bodies.extend(bodies.iter().map(|(_, body)| *body));
            pending.covered += bodies.iter().map(|(_, body)| u64::from(body.length)).sum::<u64>();
            let is_whole = pending.covered == chunk.raw_len;
            self.held += bodies.len();
            if is_whole {
                let name = (chunk.id, chunk.session);
                self.uses.remove(&name);
                self.is_ready(&name);
            }
        }
        if self.held > MAX_HELD {
            // Their other bodies are looked at when these are known.
            self.held = 0;
            self.ready
                .extend(self.pending.drain().map(|(_, pending)| pending));
        }
    }

    /// All of an index chunk was read.
    pub(super) fn end(&mut self, index: &IndexChunk) {
        for chunk in self.listed(index) {
            let name = (chunk.id, chunk.session);
            let left = match self.uses.get_mut(&name) {
                Some(uses) => {
                    *uses -= 1;
                    *uses
                }
                None => 0,
            };
            if left == 0 {
                self.uses.remove(&name);
                self.is_ready(&name);
            }
        }
    }

    fn listed(&self, index: &IndexChunk) -> Vec<ChunkRef> {
        let listed = index.entry().data.iter();
        listed
            .filter(|chunk| self.subset.includes(&chunk.id))
            .copied()
            .collect()
    }

    fn pending(&mut self, chunk: &ChunkRef, index: &IndexChunk) -> &mut Pending {
        let name = (chunk.id, chunk.session);
        let pending = self.pending.entry(name).or_insert_with(|| Pending {
            chunk: *chunk,
            bodies: Vec::new(),
            covered: 0,
            entries: Vec::new(),
        });
        let same = |last: &IndexChunk| Arc::ptr_eq(&last.block, &index.block) && last.number == index.number;
        if !pending.entries.last().is_some_and(same) {
            pending.entries.push(index.clone());
        }
        pending
    }

    fn is_ready(&mut self, name: &ChunkName) {
        if let Some(pending) = self.pending.remove(name) {
            self.held = self.held.saturating_sub(pending.bodies.len());
            self.ready.push_back(pending);
        }
    }

    /// Starts what is ready, and waits as long as more is ready than may run.
    pub(super) async fn go_on(&mut self, report: &mut DamageReport, stats: &mut CheckStats) -> Result<()> {
        loop {
            while let Some(done) = self.running.try_join_next() {
                self.take(done??, report, stats).await;
            }
            while let Some(next) = self.ready.pop_front_if(|next| {
                self.running.is_empty()
                    || (self.running.len() < self.at_once
                        && self.bytes_running + next.chunk.stored_len <= BYTES_AT_ONCE)
            }) {
                self.bytes_running += next.chunk.stored_len;
                let repository = self.reader.repository().clone();
                let buffers = self.idle.pop().unwrap_or_default();
                self.running.spawn(check_chunk(repository, next, buffers));
            }
            if self.ready.is_empty() {
                return Ok(());
            }
            if let Some(done) = self.running.join_next().await {
                self.take(done??, report, stats).await;
            }
        }
    }

    /// Checks what is left.
    pub(super) async fn finish(mut self, report: &mut DamageReport, stats: &mut CheckStats) -> Result<()> {
        self.ready
            .extend(self.pending.drain().map(|(_, pending)| pending));
        self.go_on(report, stats).await?;
        while let Some(done) = self.running.join_next().await {
            self.take(done??, report, stats).await;
        }
        Ok(())
    }

    async fn take(&mut self, checked: Checked, report: &mut DamageReport, stats: &mut CheckStats) {
        let Checked {
            pending,
            wrong,
            buffers,
        } = checked;
        if buffers.stored.capacity().max(buffers.plain.capacity()) <= KEPT_BUFFER {
            self.idle.push(buffers);
        }
        self.bytes_running -= pending.chunk.stored_len;
        stats.data_chunks += 1;
        stats.documents += pending.bodies.len() as u64;
        stats.stored_bytes += pending.chunk.stored_len;
        stats.raw_bytes += pending.chunk.raw_len;
        for wrong in wrong {
            report.add(locate(&self.reader, &pending, wrong).await);
        }
    }
}

async fn check_chunk(repository: Repository, mut pending: Pending, mut buffers: Buffers) -> Result<Checked> {
    let stored = std::mem::take(&mut buffers.stored);
    match get_whole(&repository, &pending.chunk, stored).await {
        Ok(stored) => buffers.stored = stored,
        Err(error) => {
            let wrong = vec![Wrong {
                damage: error.into_damage()?,
                span: 0..pending.chunk.raw_len,
            }];
            return Ok(Checked {
                pending,
                wrong,
                buffers,
            });
        }
    }
    let checked = tokio::task::spawn_blocking(move || {
        let wrong = check_bodies(&repository, &mut pending, &mut buffers)?;
        Ok(Checked {
            pending,
            wrong,
            buffers,
        })
    });
    checked.await?
}

fn check_bodies(repository: &Repository, pending: &mut Pending, buffers: &mut Buffers) -> Result<Vec<Wrong>> {
    let Buffers { stored, plain } = buffers;
    let chunk = pending.chunk;
    let name = chunk.name();
    let table = match data_table(repository, &name, &chunk, stored) {
        Ok(table) => table,
        Err(error) => {
            return Ok(vec![Wrong {
                damage: error.into_damage()?,
                span: 0..chunk.raw_len,
            }]);
        }
    };
    pending.bodies.sort_by_key(|body| body.offset);
    let mut bodies = pending.bodies.iter().peekable();
    let mut wrong = Vec::new();
    // The plaintext from `start` on, as far as bodies that end later need it: it stays in the processor's cache.
    plain.clear();
    let mut start = 0u64;
    for (frame, row) in table.rows().iter().enumerate() {
        let range = table.stored_range(frame);
        let frame_stored = &stored[range.start as usize..range.end as usize];
        let span = start + plain.len() as u64..start + plain.len() as u64 + u64::from(row.raw_len);
        if let Err(error) = with_decoder(|decoder| decoder.decode(&name, row, frame_stored, plain)) {
            let mut damage = error.into_damage()?;
            damage.what = format!("frame {} of {}: {}", frame + 1, table.rows().len(), damage.what);
            plain.resize((span.end - start) as usize, 0);
            wrong.push(Wrong {
                damage,
                span: span.clone(),
            });
        }
        while let Some(body) = bodies.next_if(|body| body.span().end <= span.end) {
            wrong.extend(check_body(repository, &name, body, plain, start, &wrong));
        }
        let needed = bodies.peek().map_or(span.end, |body| body.span().start);
        let needed = needed.clamp(start, span.end);
        plain.drain(..(needed - start) as usize);
        start = needed;
    }
    for body in bodies {
        wrong.extend(check_body(repository, &name, body, &[], start, &wrong));
    }
    Ok(wrong)
}

fn data_table(repository: &Repository, name: &str, chunk: &ChunkRef, stored: &[u8]) -> Result<FrameTable> {
    let table = FrameTable::parse(name, ChunkKind::Data, &chunk.id, stored)?;
    let frame_len = repository.parameters().frame_len;
    check_data_table(name, &table, chunk.raw_len, chunk.stored_len, frame_len)?;
    Ok(table)
}

/// Looks at a body in the plaintext that begins at `start` of its chunk; what lies in a broken frame is not looked at.
fn check_body(
    repository: &Repository,
    chunk: &str,
    body: &Located,
    plain: &[u8],
    start: u64,
    broken: &[Wrong],
) -> Option<Wrong> {
    let span = body.span();
    let is_broken = |wrong: &Wrong| {
        wrong.damage.kind != DamageKind::Document
            && wrong.span.start < span.end
            && span.start < wrong.span.end
    };
    if broken.iter().any(is_broken) {
        return None;
    }
    let place = span.start.checked_sub(start).zip(span.end.checked_sub(start));
    let what = match place.and_then(|(from, to)| plain.get(from as usize..to as usize)) {
        None => "a body lies outside of the chunk".to_owned(),
        Some(bytes) if repository.body_hash(bytes) != body.body_hash => {
            "a body has another hash than its record says".to_owned()
        }
        Some(bytes) => match canonical::validate(bytes) {
            Ok(()) => return None,
            Err(error) => format!("a body is not a document: {error}"),
        },
    };
    let what = format!("{what} (at byte {})", body.offset);
    Some(Wrong {
        damage: Damage::new(chunk, DamageKind::Document, what),
        span,
    })
}
