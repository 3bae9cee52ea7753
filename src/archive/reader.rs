//! The snapshot reader: every way to look into a snapshot, from listing names to fetching one document.
//!
//! What needs only names never touches a body; what needs one document fetches a block, a page, a frame table and a frame or
//! two. Everything read is verified on its way: roots by the snapshot, blocks and pages by the hash in their parent, frame
//! tables by the chunk's id, frames by their table, bodies by their records.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, Stream, StreamExt, TryStreamExt};

use super::chunk::{ChunkKind, FrameTable, header_len, with_decoder};
use super::documents::{self, DocumentSink};
use super::error::{ArchiveError, DamageKind, Result};
use super::ids::{ChunkId, SnapshotId};
use super::index_page::PageCursor;
use super::lookup::Lookup;
use super::merge::{Merge, RunCursor};
use super::record::{BodyLocation, RecordBatch};
use super::repository::Repository;
use super::run::{BlockEntry, DirectoryBlock, IndexEntry, RunRoot};
use super::shared_pages::{SharedPage, SharedPages};
use super::snapshot::{RunRef, Snapshot};
use crate::document::{DocumentBatch, DocumentKey, DocumentPath, KeyRange};
use crate::store::{Store, StoreError};

/// Roughly the bytes of directory blocks that a reader keeps.
const BLOCK_CACHE_LEN: usize = 16 << 20;
/// The most bytes of an index page, decompressed, that is decompressed where it is asked for.
const INLINE_LEN: u32 = 1 << 20;

/// A run of a snapshot's stack.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) reference: RunRef,
    pub(crate) root: RunRoot,
}

/// Fetches directory blocks and index pages.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    store: Store,
    cache: Arc<Mutex<BlockCache>>,
    shared: Arc<Mutex<SharedPages>>,
}

#[derive(Debug, Default)]
struct BlockCache {
    blocks: HashMap<ChunkId, (Arc<DirectoryBlock>, usize, u64)>,
    bytes: usize,
    clock: u64,
}

impl BlockCache {
    fn get(&mut self, id: &ChunkId) -> Option<Arc<DirectoryBlock>> {
        self.clock += 1;
        let (block, _, used) = self.blocks.get_mut(id)?;
        *used = self.clock;
        Some(Arc::clone(block))
    }

    fn insert(&mut self, id: ChunkId, block: &Arc<DirectoryBlock>) {
        let weight = block.entries.iter().map(IndexEntry::weight).sum::<usize>() * 2;
        self.clock += 1;
        if self
            .blocks
            .insert(id, (Arc::clone(block), weight, self.clock))
            .is_none()
        {
            self.bytes += weight;
        }
        while self.bytes > BLOCK_CACHE_LEN && self.blocks.len() > 1 {
            let oldest = self
                .blocks
                .iter()
                .min_by_key(|(_, (_, _, used))| *used)
                .map(|(id, _)| *id);
            match oldest.and_then(|id| self.blocks.remove(&id)) {
                Some((_, weight, _)) => self.bytes -= weight,
                None => return,
            }
        }
    }
}

impl Blocks {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            cache: Arc::default(),
            shared: Arc::default(),
        }
    }

    /// The block that a root lists.
    pub(crate) async fn load(&self, listed: &BlockEntry) -> Result<Arc<DirectoryBlock>> {
        let id = listed.chunk.id;
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = lock().get(&id) {
            return Ok(block);
        }
        let name = listed.chunk.name();
        let within = |error: ArchiveError| match error.into_damage() {
            Ok(damage) => ArchiveError::Damaged(Box::new(
                damage.within(listed.first_key.as_bytes(), listed.last_key.as_bytes()),
            )),
            Err(error) => error,
        };
        let bytes = self.store.get_range(&name, 0..listed.chunk.stored_len).await;
        let bytes = bytes.map_err(|error| within(error.into()))?;
        let (object, chunk) = (name.clone(), listed.chunk);
        let block = tokio::task::spawn_blocking(move || {
            let table = FrameTable::parse(&object, ChunkKind::Directory, &id, &bytes)?;
            if table.rows().len() != 1 || table.stored_len() != chunk.stored_len {
                return Err(ArchiveError::damaged(
                    &object,
                    DamageKind::Inconsistent,
                    "it has another size than its run says",
                ));
            }
            let stored = &bytes[table.stored_range(0).start as usize..];
            let mut plain = Vec::new();
            with_decoder(|decoder| decoder.decode(&object, &table.rows()[0], stored, &mut plain))?;
            DirectoryBlock::decode(&object, &plain)
        })
        .await?
        .map_err(within)?;
        if block.summary(listed.chunk) != *listed {
            return Err(within(ArchiveError::damaged(
                name,
                DamageKind::Inconsistent,
                "its counts or bounds differ from its run's",
            )));
        }
        let block = Arc::new(block);
        lock().insert(id, &block);
        Ok(block)
    }

    /// A page of which only a part is needed, from the first record on that has the key `from` or comes after it: others need other parts
    /// of it. Some records may come before.
    pub(crate) async fn load_part(
        &self,
        entry: &IndexEntry,
        page: usize,
        name: &Arc<str>,
        from: &[u8],
    ) -> Result<PageCursor> {
        let bytes = entry.pages[page].row().raw_len as usize;
        let place = SharedPages::place(&self.shared, (entry.chunk.id, page), bytes);
        let load = || async {
            let cursor = self.load_page(entry, page, Arc::clone(name)).await?;
            Ok::<_, ArchiveError>(SharedPage::new(name, cursor))
        };
        Ok(place.get_or_try_init(load).await?.cursor_before(from))
    }

    /// A page of an index chunk: one ranged get, verified by the hash in its entry.
    pub(crate) async fn load_page(
        &self,
        entry: &IndexEntry,
        page: usize,
        name: Arc<str>,
    ) -> Result<PageCursor> {
        let listed = &entry.pages[page];
        let within = |error: ArchiveError| match error.into_damage() {
            Ok(damage) => ArchiveError::Damaged(Box::new(
                damage.within(listed.first_key.as_bytes(), listed.last_key.as_bytes()),
            )),
            Err(error) => error,
        };
        let stored = self.store.get_range(&name, entry.stored_range(page)).await;
        let stored = stored.map_err(|error| within(error.into()))?;
        let row = listed.row();
        let object = Arc::clone(&name);
        let decode = move || {
            let mut plain = Vec::new();
            with_decoder(|decoder| decoder.decode(&object, &row, &stored, &mut plain))?;
            PageCursor::new(&object, plain)
        };
        // Usual pages take less than to wake another thread, and the sleep after it.
        let decoded = match row.raw_len <= INLINE_LEN {
            true => decode(),
            false => tokio::task::spawn_blocking(decode).await?,
        };
        decoded.map_err(within)
    }
}

/// Reads one snapshot. Clones are cheap and share what they fetched.
#[derive(Clone, Debug)]
pub struct SnapshotReader {
    repository: Repository,
    snapshot: Arc<Snapshot>,
    runs: Arc<Vec<Arc<Run>>>,
    blocks: Blocks,
}

impl SnapshotReader {
    /// Fetches the roots of the snapshot's runs.
    pub(crate) async fn open(repository: &Repository, snapshot: &Snapshot) -> Result<Self> {
        let store = repository.store();
        let runs = stream::iter(snapshot.runs.clone())
            .map(|reference| async move {
                let stored = match &reference.root {
                    Some(_) => None,
                    None => Some(store.get_range(&reference.name(), 0..reference.root_len).await?),
                };
                let root = reference.open(stored.as_deref())?;
                Ok::<_, ArchiveError>(Arc::new(Run { reference, root }))
            })
            .buffered(8)
            .try_collect()
            .await?;
        Ok(Self {
            repository: repository.clone(),
            snapshot: Arc::new(snapshot.clone()),
            runs: Arc::new(runs),
            blocks: Blocks::new(store.clone()),
        })
    }

    /// The snapshot.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Its id.
    pub fn id(&self) -> SnapshotId {
        self.snapshot.id
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(crate) fn runs(&self) -> &[Arc<Run>] {
        &self.runs
    }

    pub(crate) fn block_source(&self) -> &Blocks {
        &self.blocks
    }

    /// All directory blocks of all runs: what a sweep and a deduplication follow.
    pub fn blocks(&self) -> impl Stream<Item = Result<Arc<DirectoryBlock>>> + Send + 'static {
        let blocks = self.blocks.clone();
        let runs = Arc::clone(&self.runs);
        let listed = (0..runs.len()).flat_map(move |run| {
            let runs = Arc::clone(&runs);
            (0..runs[run].root.blocks.len()).map(move |block| runs[run].root.blocks[block].clone())
        });
        stream::iter(listed)
            .map(move |listed| {
                let blocks = blocks.clone();
                async move { blocks.load(&listed).await }
            })
            .buffered(4)
    }

    /// The names of all objects that the snapshot needs beside its own, in no order and possibly more than once.
    pub fn object_names(&self) -> impl Stream<Item = Result<String>> + Send + 'static {
        let mut names: Vec<Result<String>> = self.snapshot.refs.iter().cloned().map(Ok).collect();
        for run in self.runs.iter() {
            if run.reference.root.is_none() {
                names.push(Ok(run.reference.name()));
            }
            names.extend(run.root.blocks.iter().map(|block| Ok(block.chunk.name())));
        }
        let below = self.blocks().map_ok(|block| {
            let names = |entry: &IndexEntry| {
                let chunks = entry.data.iter().chain([&entry.chunk]);
                chunks.map(|chunk| Ok(chunk.name())).collect::<Vec<_>>()
            };
            stream::iter(block.entries.iter().flat_map(names).collect::<Vec<_>>())
        });
        stream::iter(names).chain(below.try_flatten())
    }

    fn merge(&self, range: &KeyRange, tombstones: bool) -> Merge {
        self.merge_of(&self.runs, range, tombstones)
    }

    /// A merge of some of the runs, newest first.
    pub(crate) fn merge_of(&self, runs: &[Arc<Run>], range: &KeyRange, tombstones: bool) -> Merge {
        let most = runs.iter().map(|run| run.reference.puts).max().unwrap_or(0);
        let cursor = |run: &Arc<Run>| {
            let read_ahead = run.reference.puts >= most / 8;
            RunCursor::new(self.blocks.clone(), Arc::clone(run), range.clone(), read_ahead)
        };
        Merge::new(runs.iter().map(cursor).collect(), tombstones)
    }

    /// The records of the documents in a range, ascending, that the snapshot's selection includes. Never reads a body.
    pub fn records(&self, range: KeyRange) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
        let mut selected: Vec<KeyRange> = self
            .snapshot
            .selection
            .key_ranges()
            .iter()
            .map(|selected| selected.intersection(&range))
            .filter(|range| !range.is_empty())
            .collect();
        selected.reverse();
        let filtered = !self.snapshot.selection.collection_groups.is_empty();
        let state = (self.clone(), selected, None::<Merge>);
        stream::try_unfold(state, move |(reader, mut ranges, mut merge)| async move {
            loop {
                let mut running = match merge.take() {
                    Some(merge) => merge,
                    None => match ranges.pop() {
                        Some(range) => reader.merge(&range, false),
                        None => return Ok(None),
                    },
                };
                if let Some(mut batch) = running.next().await? {
                    if filtered {
                        batch = reader.select(&batch);
                    }
                    return Ok(Some((batch, (reader, ranges, Some(running)))));
                }
            }
        })
        .try_filter(|batch| std::future::ready(!batch.is_empty()))
    }

    /// All records of the stack in a range, ascending, tombstones that nothing newer hides included, whatever the
    /// selection: for compaction.
    pub fn records_with_tombstones(
        &self,
        range: KeyRange,
    ) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
        stream::try_unfold(self.merge(&range, true), |mut merge| async move {
            Ok(merge.next().await?.map(|batch| (batch, merge)))
        })
    }

    fn select(&self, batch: &RecordBatch) -> RecordBatch {
        let mut selected = RecordBatch::default();
        for record in batch
            .iter()
            .filter(|record| self.snapshot.selection.contains(record.key))
        {
            selected.push(record);
        }
        selected
    }

    /// The documents in a range, ascending, every body verified. Reads ahead by a few megabytes and no more.
    pub fn documents(&self, range: KeyRange) -> impl Stream<Item = Result<DocumentBatch>> + Send + 'static {
        documents::stream(&self.repository, self.records(range), self.runs.len())
    }

    /// What a sink makes of the documents in a range, ascending, every body verified: for who does not need them together.
    pub fn documents_into<Sink: DocumentSink>(
        &self,
        range: KeyRange,
        sink: Sink,
    ) -> impl Stream<Item = Result<Sink::Output>> + Send + 'static {
        documents::stream_into(&self.repository, self.records(range), self.runs.len(), sink)
    }

    /// The documents of records that came from this snapshot, in their order: for readers that choose by name first.
    pub fn bodies(
        &self,
        records: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    ) -> impl Stream<Item = Result<DocumentBatch>> + Send + 'static {
        documents::stream(&self.repository, records, self.runs.len())
    }

    /// What a sink makes of the documents of records that came from this snapshot, in their order.
    pub fn bodies_into<Sink: DocumentSink>(
        &self,
        records: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
        sink: Sink,
    ) -> impl Stream<Item = Result<Sink::Output>> + Send + 'static {
        documents::stream_into(&self.repository, records, self.runs.len(), sink)
    }

    /// One document by its path, as a batch of one; `None` when the snapshot does not have it.
    pub async fn get(&self, path: &DocumentPath) -> Result<Option<DocumentBatch>> {
        match self.find(path).await? {
            Some(record) => {
                let records = stream::once(std::future::ready(Ok(record)));
                documents::stream(&self.repository, records, 1)
                    .boxed()
                    .try_next()
                    .await
            }
            None => Ok(None),
        }
    }

    /// One document's record, as a batch of one; `None` when the snapshot does not have it.
    pub async fn find(&self, path: &DocumentPath) -> Result<Option<RecordBatch>> {
        let key = path.key();
        let key = key.as_bytes();
        if !self.snapshot.selection.contains(key) {
            return Ok(None);
        }
        let mut record = RecordBatch::default();
        let found = Lookup::new(self.blocks.clone(), &self.runs)
            .find(key, &mut record)
            .await?;
        Ok(found.then_some(record))
    }

    /// Keys that cut the snapshot into up to `parts` ranges with about as many records each, ascending: for reading it
    /// in parallel. They are first keys of pages, so no range reads a page in vain; a small snapshot has fewer.
    pub async fn page_boundaries(&self, parts: usize) -> Result<Vec<DocumentKey>> {
        self.page_boundaries_within(&[KeyRange::all()], parts).await
    }

    /// The same for some ranges of the snapshot, keys inside of them: only what lists their pages is read.
    pub async fn page_boundaries_within(
        &self,
        ranges: &[KeyRange],
        parts: usize,
    ) -> Result<Vec<DocumentKey>> {
        let meets = |first: &DocumentKey, last: &DocumentKey| {
            ranges.iter().any(|range| {
                range.start.as_ref().is_none_or(|start| start <= last)
                    && range.end.as_ref().is_none_or(|end| first < end)
            })
        };
        let listed = self.runs.iter().flat_map(|run| &run.root.blocks);
        let listed: Vec<BlockEntry> = listed
            .filter(|block| meets(&block.first_key, &block.last_key))
            .cloned()
            .collect();
        let mut pages: Vec<(DocumentKey, u64)> = Vec::new();
        let source = self.blocks.clone();
        let mut blocks = stream::iter(listed)
            .map(move |listed| {
                let source = source.clone();
                async move { source.load(&listed).await }
            })
            .buffered(4);
        while let Some(block) = blocks.try_next().await? {
            for page in block.entries.iter().flat_map(|entry| &entry.pages) {
                if meets(&page.first_key, &page.last_key) {
                    pages.push((page.first_key.clone(), u64::from(page.puts + page.tombstones)));
                }
            }
        }
        let cuts = |range: &KeyRange, key: &DocumentKey| {
            range.contains(key.as_bytes()) && range.start.as_ref() != Some(key)
        };
        pages.retain(|(key, _)| ranges.iter().any(|range| cuts(range, key)));
        pages.sort();
        let total: u64 = pages.iter().map(|(_, records)| records).sum();
        let mut boundaries: Vec<DocumentKey> = Vec::new();
        let mut before = 0;
        for (key, records) in pages {
            let due = total * (boundaries.len() as u64 + 1) / parts.max(1) as u64;
            if before >= due && before > 0 && boundaries.len() + 1 < parts && boundaries.last() != Some(&key)
            {
                boundaries.push(key);
            }
            before += records;
        }
        Ok(boundaries)
    }
}

/// The frames of a chunk of this plaintext length: all of the same length but the last.
pub(crate) fn data_frames(raw_len: u64, frame_len: u32) -> usize {
    raw_len.div_ceil(u64::from(frame_len)) as usize
}

/// Fetches a data chunk's frame table, with what may come after it: `(table, bytes from the object's start)`.
pub(crate) async fn data_table(
    store: &Store,
    body: &BodyLocation,
    frame_len: u32,
    at_least: u64,
) -> Result<(FrameTable, bytes::Bytes)> {
    let chunk = &body.chunk;
    let name = chunk.name();
    let frames = data_frames(chunk.raw_len, frame_len);
    let wanted = header_len(frames).max(at_least).min(chunk.stored_len);
    let bytes = store
        .get_range(&name, 0..wanted)
        .await
        .map_err(|error| match error {
            StoreError::NotFound { name } => {
                ArchiveError::damaged(name, DamageKind::Missing, "the object does not exist")
            }
            error => error.into(),
        })?;
    let table = FrameTable::parse(&name, ChunkKind::Data, &chunk.id, &bytes)?;
    check_data_table(&name, &table, chunk.raw_len, chunk.stored_len, frame_len)?;
    Ok((table, bytes))
}

/// Holds a data chunk's table against its reference and the rule of fixed frames.
pub(crate) fn check_data_table(
    name: &str,
    table: &FrameTable,
    raw_len: u64,
    stored_len: u64,
    frame_len: u32,
) -> Result<()> {
    let full = |row: &super::chunk::FrameRow| row.raw_len == frame_len;
    let fixed = match table.rows().split_last() {
        Some((last, others)) => others.iter().all(full) && last.raw_len <= frame_len,
        None => true,
    };
    if fixed && table.raw_len == raw_len && table.stored_len() == stored_len {
        return Ok(());
    }
    Err(ArchiveError::damaged(
        name,
        DamageKind::Inconsistent,
        "it has another size than the index says",
    ))
}
