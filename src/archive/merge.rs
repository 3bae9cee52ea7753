//! The merge: one ascending stream of records out of a stack of runs, where the newest record of a key hides the older ones.
//!
//! Each run is a cursor that holds one page; the cursors stand in a heap by their keys, the newer run first among equals. A
//! merge never looks at a body. Large runs load their next page while the present one is read; small ones do not, because a
//! deep stack of nightly layers would hold as many pages again.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::error::{ArchiveError, DamageKind, Result, show_key};
use super::heap::{KeyHeap, Keyed};
use super::ids::ChunkRef;
use super::index_page::PageCursor;
use super::reader::{Blocks, Run};
use super::record::RecordBatch;
use super::run::{DirectoryBlock, IndexEntry, PageEntry};
use super::sparse::SparseChunks;
use crate::document::{DocumentKey, KeyRange};

/// Records of a batch at most.
const BATCH_RECORDS: usize = 4096;
/// Bytes of keys after which a batch ends.
const BATCH_KEY_BYTES: usize = 1 << 20;

/// A page, and the entry that it is listed in.
struct LoadedPage {
    block: Arc<DirectoryBlock>,
    entry: usize,
    number: usize,
    name: Arc<str>,
    cursor: PageCursor,
    /// Whether all of it lies in the range, by what its entry says.
    is_inside: bool,
    /// Whether the range begins before the present record, or with it.
    is_past_start: bool,
    /// Whether no record of it was read yet.
    is_new: bool,
}

impl LoadedPage {
    fn listed(&self) -> &PageEntry {
        &self.block.entries[self.entry].pages[self.number]
    }

    fn damaged(&self, what: &str) -> ArchiveError {
        let what = format!("{what} {}", show_key(self.cursor.key()));
        ArchiveError::damaged(&*self.name, DamageKind::Inconsistent, what)
    }
}

/// Goes through the pages of a run that meet a range.
struct PageSource {
    blocks: Blocks,
    run: Arc<Run>,
    range: KeyRange,
    block: usize,
    loaded: Option<Arc<DirectoryBlock>>,
    entry: usize,
    page: usize,
}

impl PageSource {
    fn new(blocks: Blocks, run: Arc<Run>, range: KeyRange) -> Self {
        let block = match &range.start {
            Some(start) => run.root.blocks.partition_point(|block| block.last_key < *start),
            None => 0,
        };
        Self {
            blocks,
            run,
            range,
            block,
            loaded: None,
            entry: 0,
            page: 0,
        }
    }

    fn starts_past_end(&self, first_key: &[u8]) -> bool {
        self.range
            .end
            .as_ref()
            .is_some_and(|end| end.as_bytes() <= first_key)
    }

    async fn next(&mut self) -> Result<Option<LoadedPage>> {
        loop {
            let Some(listed) = self.run.root.blocks.get(self.block) else {
                return Ok(None);
            };
            if self.starts_past_end(listed.first_key.as_bytes()) {
                return Ok(None);
            }
            let block = match &self.loaded {
                Some(block) => Arc::clone(block),
                None => {
                    let block = self.blocks.load(listed).await?;
                    let start = self
                        .range
                        .start
                        .as_ref()
                        .map_or(&[][..], |start| start.as_bytes());
                    self.entry = block.entries.partition_point(|entry| entry.last_key() < start);
                    self.page = 0;
                    self.loaded.insert(block).clone()
                }
            };
            let Some(entry) = block.entries.get(self.entry) else {
                self.block += 1;
                self.loaded = None;
                continue;
            };
            let (number, page) = (self.page, entry.pages.get(self.page));
            let Some(page) = page else {
                self.entry += 1;
                self.page = 0;
                continue;
            };
            self.page += 1;
            if self.starts_past_end(page.first_key.as_bytes()) {
                return Ok(None);
            }
            if self
                .range
                .start
                .as_ref()
                .is_some_and(|start| page.last_key < *start)
            {
                continue;
            }
            let name: Arc<str> = entry.chunk.name().into();
            let is_inside = self.range.contains(page.first_key.as_bytes())
                && self.range.contains(page.last_key.as_bytes());
            // One that begins in the range is read from its beginning, whatever it has: what comes first is held against its entry.
            let begins_before = |start: &&DocumentKey| page.first_key < **start;
            let start = self.range.start.as_ref().filter(begins_before);
            let start = start.map_or(&[][..], |start| start.as_bytes());
            let cursor = match is_inside {
                true => self.blocks.load_page(entry, number, Arc::clone(&name)).await?,
                false => self.blocks.load_part(entry, number, &name, start).await?,
            };
            return Ok(Some(LoadedPage {
                is_inside,
                is_past_start: is_inside,
                is_new: true,
                entry: self.entry,
                number,
                block,
                name,
                cursor,
            }));
        }
    }
}

/// A page on its way; dropping it stops the fetch.
struct Ahead(JoinHandle<(PageSource, Result<Option<LoadedPage>>)>);

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads one run in key order.
pub(crate) struct RunCursor {
    source: Option<PageSource>,
    ahead: Option<Ahead>,
    read_ahead: bool,
    range: KeyRange,
    page: Option<LoadedPage>,
    /// The last key of the pages that were read.
    passed: Vec<u8>,
    /// The batch's numbers of the entry's data chunks, as far as they were given.
    numbers: Vec<u32>,
    numbered: (u64, usize, usize),
}

const UNNUMBERED: u32 = u32::MAX;

impl Keyed for RunCursor {
    /// Empty before the first record and past the last.
    fn key(&self) -> &[u8] {
        self.page.as_ref().map_or(&[], |page| page.cursor.key())
    }
}

impl RunCursor {
    pub(crate) fn new(blocks: Blocks, run: Arc<Run>, range: KeyRange, read_ahead: bool) -> Self {
        Self {
            source: Some(PageSource::new(blocks, run, range.clone())),
            ahead: None,
            read_ahead,
            range,
            page: None,
            passed: Vec::new(),
            numbers: Vec::new(),
            numbered: (0, 0, 0),
        }
    }

    /// Goes to the next record of the range; `false` past the last.
    async fn advance(&mut self) -> Result<bool> {
        while !self.advance_on_page()? {
            self.page = self.next_page().await?;
            if self.page.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same on the present page; `false` when that has none of the range's any more.
    fn advance_on_page(&mut self) -> Result<bool> {
        let Some(page) = &mut self.page else {
            return Ok(false);
        };
        while page.cursor.advance(&page.name)? {
            let key = page.cursor.key();
            if std::mem::take(&mut page.is_new) {
                // No record has the empty key that this starts with.
                if *key <= *self.passed {
                    return Err(page.damaged("its records do not ascend at"));
                }
                if page.is_inside && key != page.listed().first_key.as_bytes() {
                    return Err(page.damaged("its records do not begin where its entry says, but at"));
                }
            }
            if page.is_inside {
                return Ok(true);
            }
            if self.range.end.as_ref().is_some_and(|end| end.as_bytes() <= key) {
                break;
            }
            let start = self.range.start.as_ref();
            if page.is_past_start || start.is_none_or(|start| start.as_bytes() <= key) {
                page.is_past_start = true;
                return Ok(true);
            }
        }
        if page.is_inside && page.cursor.key() != page.listed().last_key.as_bytes() {
            return Err(page.damaged("its records do not end where its entry says, but at"));
        }
        self.passed.clear();
        self.passed.extend_from_slice(page.cursor.key());
        self.page = None;
        Ok(false)
    }

    async fn next_page(&mut self) -> Result<Option<LoadedPage>> {
        let (source, page) = match self.ahead.as_mut() {
            Some(ahead) => {
                let done = (&mut ahead.0).await;
                self.ahead = None;
                done?
            }
            None => {
                let Some(mut source) = self.source.take() else {
                    return Err(ArchiveError::Misuse("a merge goes on after an error".to_owned()));
                };
                let page = source.next().await;
                (source, page)
            }
        };
        let page = page?;
        match page.is_some() && self.read_ahead {
            true => {
                let mut source = source;
                self.ahead = Some(Ahead(tokio::spawn(async move {
                    let page = source.next().await;
                    (source, page)
                })));
            }
            false => self.source = Some(source),
        }
        Ok(page)
    }

    /// The index chunk that begins with the present record, when all of it is in the range.
    fn chunk_start(&self) -> Option<&IndexEntry> {
        let page = self.page.as_ref().filter(|page| page.number == 0)?;
        let entry = &page.block.entries[page.entry];
        let begins = page.cursor.key() == entry.first_key();
        (begins && self.range.contains(entry.last_key())).then_some(entry)
    }

    /// Goes past the index chunk that the present record begins; `false` when nothing comes after it. Only for cursors that
    /// do not read ahead.
    async fn skip_chunk(&mut self) -> Result<bool> {
        if let (Some(page), Some(source)) = (self.page.take(), &mut self.source) {
            self.passed.clear();
            self.passed
                .extend_from_slice(page.block.entries[page.entry].last_key());
            source.entry = page.entry + 1;
            source.page = 0;
        }
        self.advance().await
    }

    /// Appends the present record to a batch.
    fn append_to(&mut self, batch: &mut RecordBatch, epoch: u64, tombstones: bool) -> Result<()> {
        let Some(page) = &self.page else {
            return Ok(());
        };
        let Some(put) = page.cursor.put() else {
            if tombstones {
                batch.push_put(page.cursor.key(), None);
            }
            return Ok(());
        };
        let data = &page.block.entries[page.entry].data;
        let place = (epoch, Arc::as_ptr(&page.block) as usize, page.entry);
        if self.numbered != place {
            self.numbered = place;
            self.numbers.clear();
            self.numbers.resize(data.len(), UNNUMBERED);
        }
        let mut put = *put;
        let chunk: Option<&ChunkRef> = data.get(put.chunk as usize);
        let chunk = chunk
            .filter(|chunk| u64::from(put.offset) + u64::from(put.length) <= chunk.raw_len)
            .ok_or_else(|| {
                ArchiveError::damaged(
                    &*page.name,
                    DamageKind::Inconsistent,
                    format!(
                        "the record of {} points outside of its data",
                        show_key(page.cursor.key())
                    ),
                )
            })?;
        let number = &mut self.numbers[put.chunk as usize];
        if *number == UNNUMBERED {
            *number = batch.add_chunk(*chunk);
        }
        put.chunk = *number;
        batch.push_put(page.cursor.key(), Some(put));
        Ok(())
    }

    /// Appends the present record and those that follow it on its page, before the next record of all other runs and
    /// as far as there is room. Then the present record is the next one: `false` when it is on another page, if anywhere.
    fn append_stretch(
        &mut self,
        batch: &mut RecordBatch,
        before: Option<&[u8]>,
        epoch: u64,
        tombstones: bool,
    ) -> Result<bool> {
        if let Some(page) = self.page.as_ref().filter(|_| before.is_none()) {
            let records = (page.cursor.left() + 1).min(BATCH_RECORDS.saturating_sub(batch.len()));
            let keys = records * page.cursor.key().len();
            batch.reserve(records, keys.min(BATCH_KEY_BYTES));
        }
        loop {
            self.append_to(batch, epoch, tombstones)?;
            if !self.advance_on_page()? {
                return Ok(false);
            }
            if is_full(batch) || before.is_some_and(|before| before <= self.key()) {
                return Ok(true);
            }
        }
    }
}

fn is_full(batch: &RecordBatch) -> bool {
    batch.len() >= BATCH_RECORDS || batch.key_bytes() >= BATCH_KEY_BYTES
}

/// What a merge for a compaction gives next.
pub(crate) enum Part {
    /// Records.
    Records(RecordBatch),
    /// A whole index chunk: no other run has a key in its interval, so it can be listed as it is.
    Chunk(IndexEntry),
}

/// Merges runs; the first cursor is the newest run's.
pub(crate) struct Merge {
    cursors: Vec<RunCursor>,
    heap: KeyHeap,
    started: bool,
    tombstones: bool,
    /// Whether index chunks are given as a whole: those whose records point into none of these.
    whole_chunks: Option<Arc<SparseChunks>>,
    epoch: u64,
    key: Vec<u8>,
}

impl Merge {
    /// A merge; `tombstones` says whether they are given, or only hide what is older.
    pub(crate) fn new(cursors: Vec<RunCursor>, tombstones: bool) -> Self {
        Self {
            heap: KeyHeap::with_capacity(cursors.len()),
            cursors,
            started: false,
            tombstones,
            whole_chunks: None,
            epoch: 0,
            key: Vec::new(),
        }
    }

    /// A merge of a part of a stack for a compaction: see [`Part`]. Its cursors must not read ahead.
    pub(crate) fn compacting(cursors: Vec<RunCursor>, tombstones: bool, sparse: &Arc<SparseChunks>) -> Self {
        Self {
            whole_chunks: Some(Arc::clone(sparse)),
            ..Self::new(cursors, tombstones)
        }
    }

    /// The next records; `None` when there are no more. After an error the merge is of no use.
    pub(crate) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        match self.next_part().await? {
            Some(Part::Records(batch)) => Ok(Some(batch)),
            Some(Part::Chunk(_)) => Err(ArchiveError::Misuse(
                "a merge for a compaction is read as records".to_owned(),
            )),
            None => Ok(None),
        }
    }

    /// The index chunk that comes next as a whole.
    fn whole_chunk(&self, top: usize) -> Option<&IndexEntry> {
        let sparse = self.whole_chunks.as_ref()?;
        let entry = self.cursors[top].chunk_start()?;
        let alone = match self.heap.second(&self.cursors) {
            Some(second) => self.cursors[second].key() > entry.last_key(),
            None => true,
        };
        let stays = !entry.data.iter().any(|chunk| sparse.contains(chunk));
        (alone && stays && (self.tombstones || entry.tombstones() == 0)).then_some(entry)
    }

    /// The next records or the next index chunk; `None` when there is nothing more.
    pub(crate) async fn next_part(&mut self) -> Result<Option<Part>> {
        if !self.started {
            for number in 0..self.cursors.len() {
                if self.cursors[number].advance().await? {
                    self.heap.push(number, &self.cursors);
                }
            }
            self.started = true;
        }
        self.epoch += 1;
        let mut batch = RecordBatch::default();
        while let Some(top) = self.heap.first() {
            if is_full(&batch) {
                break;
            }
            if let Some(entry) = self.whole_chunk(top) {
                if !batch.is_empty() {
                    break;
                }
                let entry = entry.clone();
                match self.cursors[top].skip_chunk().await? {
                    true => self.heap.first_moved(&self.cursors),
                    false => self.heap.remove_first(&self.cursors),
                }
                return Ok(Some(Part::Chunk(entry)));
            }
            let second = self.heap.second(&self.cursors);
            // Only the first record of a stretch can hide others: those after it come before all other runs'.
            self.key.clear();
            if second.is_some() {
                self.key.extend_from_slice(self.cursors[top].key());
            }
            let (cursor, before) = match second {
                Some(second) => match self.cursors.get_disjoint_mut([top, second]) {
                    Ok([cursor, second]) => (cursor, Some(second.key())),
                    Err(_) => return Err(ArchiveError::Misuse("a run is merged with itself".to_owned())),
                },
                None => (&mut self.cursors[top], None),
            };
            let moved = cursor.append_stretch(&mut batch, before, self.epoch, self.tombstones)?;
            match moved || cursor.advance().await? {
                true => self.heap.first_moved(&self.cursors),
                false => self.heap.remove_first(&self.cursors),
            }
            while let Some(next) = self.heap.first() {
                if self.cursors[next].key() != self.key {
                    break;
                }
                match self.cursors[next].advance().await? {
                    true => self.heap.first_moved(&self.cursors),
                    false => self.heap.remove_first(&self.cursors),
                }
            }
        }
        Ok((!batch.is_empty()).then_some(Part::Records(batch)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::ids::{ChunkId, SessionId};
    use crate::archive::index_page::PageBuilder;
    use crate::document::{DocumentKey, DocumentPath};

    fn key(id: &str) -> DocumentKey {
        DocumentPath::parse(format!("c/{id}")).unwrap().key()
    }

    /// A page of tombstones, and what its entry says of its first and last.
    fn page(ids: &[&str], listed: [&str; 2]) -> LoadedPage {
        let mut builder = PageBuilder::default();
        for id in ids {
            builder.tombstone(key(id).as_bytes());
        }
        let mut plain = Vec::new();
        builder.finish(&mut plain);
        let [first_key, last_key] = listed.map(key);
        let listed = PageEntry {
            first_key,
            last_key,
            puts: 0,
            tombstones: ids.len() as u32,
            stored_len: 0,
            stored_raw: true,
            raw_len: plain.len() as u32,
            hash: [0; 32],
        };
        let entry = IndexEntry {
            chunk: ChunkRef {
                id: ChunkId::from_bytes([0; 32]),
                session: SessionId::from_u64(0),
                raw_len: 0,
                stored_len: 0,
            },
            pages: vec![listed],
            data: Vec::new(),
            body_bytes: 0,
            filter: Vec::new(),
        };
        LoadedPage {
            block: Arc::new(DirectoryBlock { entries: vec![entry] }),
            entry: 0,
            number: 0,
            name: "index".into(),
            cursor: PageCursor::new("index", plain).unwrap(),
            is_inside: true,
            is_past_start: true,
            is_new: true,
        }
    }

    /// Reads pages one after the other, and says what is wrong with them.
    fn read(pages: Vec<LoadedPage>) -> std::result::Result<usize, String> {
        let mut cursor = RunCursor {
            source: None,
            ahead: None,
            read_ahead: false,
            range: KeyRange::all(),
            page: None,
            passed: Vec::new(),
            numbers: Vec::new(),
            numbered: (0, 0, 0),
        };
        let mut records = 0;
        for page in pages {
            cursor.page = Some(page);
            while cursor.advance_on_page().map_err(|error| error.to_string())? {
                records += 1;
            }
        }
        Ok(records)
    }

    #[test]
    fn pages_hold_what_their_entries_say_in_order() {
        assert_eq!(
            read(vec![page(&["a", "b"], ["a", "b"]), page(&["c"], ["c", "c"])]),
            Ok(3)
        );
        for (pages, what) in [
            (
                vec![page(&["b"], ["b", "b"]), page(&["b"], ["b", "b"])],
                "do not ascend",
            ),
            (
                vec![page(&["c"], ["c", "c"]), page(&["b"], ["b", "b"])],
                "do not ascend",
            ),
            (vec![page(&["a", "b"], ["b", "b"])], "do not begin where"),
            (vec![page(&["a", "b"], ["a", "c"])], "do not end where"),
            (vec![page(&["a", "b"], ["a", "a"])], "do not end where"),
        ] {
            let error = read(pages).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
