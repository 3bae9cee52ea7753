//! The index of a run, each page fetched and decoded once.
//!
//! An index chunk is fetched whole, its pages are checked side by side on blocking threads. What a page says goes on in two
//! forms: its names, in order, for the merge that counts what a snapshot shows, and the places of its bodies, for the check of
//! the data. Where the chunk as a whole is wrong, what can be had of its pages still goes on, so that one damaged byte does not
//! keep the data of thousands of documents from being looked at.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use super::DataSubset;
use super::bodies::Located;
use crate::archive::chunk::{ChunkKind, FrameTable, with_decoder};
use crate::archive::cut::key_hash;
use crate::archive::error::{ArchiveError, Damage, DamageKind, Result, show_key};
use crate::archive::filter;
use crate::archive::ids::ChunkRef;
use crate::archive::index_page::{NameCursor, PageCursor};
use crate::archive::reader::{Run, SnapshotReader};
use crate::archive::repository::Repository;
use crate::archive::run::{DirectoryBlock, IndexEntry};

/// How closely to look at a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Depth {
    /// It was looked at before, as a part of another snapshot: only its names are of interest.
    Names,
    /// Everything that the index says; the places of bodies in these data chunks.
    Everything(Option<DataSubset>),
    /// It was looked at before: only the places of bodies in these data chunks are of interest, and no names.
    Data(DataSubset),
}

impl Depth {
    /// Which data chunks' bodies are looked for.
    pub(super) fn data(self) -> Option<DataSubset> {
        match self {
            Self::Names => None,
            Self::Everything(data) => data,
            Self::Data(data) => Some(data),
        }
    }

    /// Whether the names of all documents are looked at.
    pub(super) fn has_names(self) -> bool {
        !matches!(self, Self::Data(_))
    }

    /// Whether an index chunk has to be read.
    fn needs(self, entry: &IndexEntry) -> bool {
        match self {
            Self::Names | Self::Everything(_) => true,
            Self::Data(subset) => entry.data.iter().any(|data| subset.includes(&data.id)),
        }
    }
}

/// An index chunk as the directory lists it.
#[derive(Clone, Debug)]
pub(super) struct IndexChunk {
    pub(super) block: Arc<DirectoryBlock>,
    /// Which of the block's entries it is.
    pub(super) number: usize,
}

impl IndexChunk {
    pub(super) fn entry(&self) -> &IndexEntry {
        &self.block.entries[self.number]
    }
}

/// What comes next in a run.
pub(super) enum Step {
    /// A block or an index chunk is not what it should be.
    Damaged(Damage),
    /// An index chunk; its pages follow.
    Begin(IndexChunk),
    /// The next page of the chunk.
    Page(Box<CheckedPage>),
    /// That were all its pages.
    End,
}

/// What a page says.
#[derive(Default)]
pub(super) struct CheckedPage {
    /// Its records; `None` where they cannot be relied upon.
    pub(super) names: Option<NameCursor>,
    /// How many records were read.
    pub(super) records: u64,
    /// Bytes of the bodies of its documents.
    pub(super) body_bytes: u64,
    /// Where bodies are, by the entry's number of their data chunk, ascending.
    pub(super) bodies: Vec<(u32, Located)>,
    /// What is wrong with it.
    pub(super) damage: Option<Damage>,
}

/// Everything in a run, in order; up to `ahead` pages are worked on at a time.
pub(super) fn steps(
    reader: &SnapshotReader,
    run: &Arc<Run>,
    depth: Depth,
    ahead: usize,
) -> BoxStream<'static, Result<Step>> {
    let (blocks, run) = (reader.block_source().clone(), Arc::clone(run));
    let repository = reader.repository().clone();
    stream::iter(0..run.root.blocks.len())
        .then(move |number| {
            let (blocks, run) = (blocks.clone(), Arc::clone(&run));
            async move { damage_or(blocks.load(&run.root.blocks[number]).await) }
        })
        .flat_map(move |block| match block {
            Ok(Ok(block)) => {
                let numbers: Vec<usize> = (0..block.entries.len())
                    .filter(|&number| depth.needs(&block.entries[number]))
                    .collect();
                let chunks = numbers.into_iter().map(move |number| {
                    let block = Arc::clone(&block);
                    Ok(Ok(IndexChunk { block, number }))
                });
                stream::iter(chunks).left_stream()
            }
            Ok(Err(damage)) => stream::iter([Ok(Err(damage))]).right_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        })
        .map(move |chunk| fetch(repository.clone(), chunk, depth))
        .buffered(ahead.min(2))
        .flat_map(|work| match work {
            Ok(work) => stream::iter(work).map(Ok).left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        })
        .map(|work| async move {
            Ok(match work? {
                Work::Damaged(damage) => Step::Damaged(damage),
                Work::Begin(chunk) => Step::Begin(chunk),
                Work::Page(page) => Step::Page(Box::new(page.check().await?)),
                Work::End => Step::End,
            })
        })
        .buffered(ahead.max(1))
        .boxed()
}

/// Takes damage out of a result; what is no damage stays an error.
fn damage_or<T>(result: Result<T>) -> Result<Result<T, Damage>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => Ok(Err(error.into_damage()?)),
    }
}

/// A whole object that must have its size, in a buffer that may be used again.
pub(super) async fn get_whole(repository: &Repository, chunk: &ChunkRef, buffer: Vec<u8>) -> Result<Vec<u8>> {
    let name = chunk.name();
    let bytes = repository
        .store()
        .get_into(&name, chunk.stored_len, buffer)
        .await?;
    if bytes.len() as u64 != chunk.stored_len {
        let what = format!("it has {} bytes instead of {}", bytes.len(), chunk.stored_len);
        return Err(ArchiveError::damaged(name, DamageKind::WrongSize, what));
    }
    Ok(bytes)
}

/// Like [`Step`], before the work is done.
enum Work {
    Damaged(Damage),
    Begin(IndexChunk),
    Page(PageWork),
    End,
}

struct PageWork {
    repository: Repository,
    chunk: IndexChunk,
    object: Arc<str>,
    page: usize,
    /// The chunk's bytes; `None` where the chunk is damaged, which was said.
    bytes: Option<Bytes>,
    depth: Depth,
}

async fn fetch(
    repository: Repository,
    chunk: Result<Result<IndexChunk, Damage>>,
    depth: Depth,
) -> Result<Vec<Work>> {
    let chunk = match chunk? {
        Ok(chunk) => chunk,
        Err(damage) => return Ok(vec![Work::Damaged(damage)]),
    };
    let entry = chunk.entry();
    let object: Arc<str> = entry.chunk.name().into();
    let bytes = get_whole(&repository, &entry.chunk, Vec::new()).await;
    let bytes = damage_or(bytes.and_then(|bytes| {
        check_table(&object, entry, &bytes)?;
        Ok(Bytes::from(bytes))
    }))?;
    let pages = match &bytes {
        Err(damage) if damage.kind == DamageKind::Missing => 0,
        _ => entry.pages.len(),
    };
    let mut work = Vec::with_capacity(pages + 3);
    let bytes = match bytes {
        Ok(bytes) => Some(bytes),
        Err(damage) => {
            let damage = damage.within(entry.first_key(), entry.last_key());
            work.push(Work::Damaged(damage));
            None
        }
    };
    work.push(Work::Begin(chunk.clone()));
    work.extend((0..pages).map(|page| {
        Work::Page(PageWork {
            repository: repository.clone(),
            chunk: chunk.clone(),
            object: Arc::clone(&object),
            page,
            bytes: bytes.clone(),
            depth,
        })
    }));
    work.push(Work::End);
    Ok(work)
}

/// Holds an index chunk's frame table against its entry.
fn check_table(object: &str, entry: &IndexEntry, bytes: &[u8]) -> Result<()> {
    let table = FrameTable::parse(object, ChunkKind::Index, &entry.chunk.id, bytes)?;
    let rows = entry.pages.iter().map(|page| page.row());
    if table.stored_len() == entry.chunk.stored_len && rows.eq(table.rows().iter().copied()) {
        return Ok(());
    }
    Err(ArchiveError::damaged(
        object,
        DamageKind::Inconsistent,
        "its frame table differs from its entry in the directory",
    ))
}

impl PageWork {
    async fn check(self) -> Result<CheckedPage> {
        let range = self.chunk.entry().stored_range(self.page);
        let stored = match &self.bytes {
            Some(bytes) => bytes.slice(range.start as usize..range.end as usize),
            None => match damage_or(
                self.repository
                    .store()
                    .get_range(&self.object, range)
                    .await
                    .map_err(Into::into),
            )? {
                Ok(stored) => stored,
                Err(_) => return Ok(CheckedPage::default()),
            },
        };
        tokio::task::spawn_blocking(move || self.decode(&stored)).await?
    }

    fn decode(&self, stored: &[u8]) -> Result<CheckedPage> {
        let mut checked = CheckedPage::default();
        if let Err(error) = self.read(stored, &mut checked) {
            let entry = self.chunk.entry();
            let page = &entry.pages[self.page];
            let mut damage = error.into_damage()?;
            damage.what = format!("page {} of {}: {}", self.page + 1, entry.pages.len(), damage.what);
            checked.names = None;
            // Of a damaged chunk one finding is enough: it names all that the pages hold.
            if self.bytes.is_some() {
                checked.damage = Some(damage.within(page.first_key.as_bytes(), page.last_key.as_bytes()));
            }
        }
        checked.bodies.sort_by_key(|(chunk, _)| *chunk);
        Ok(checked)
    }

    fn read(&self, stored: &[u8], checked: &mut CheckedPage) -> Result<()> {
        let mut plain = Vec::new();
        let row = self.chunk.entry().pages[self.page].row();
        with_decoder(|decoder| decoder.decode(&self.object, &row, stored, &mut plain))?;
        if self.depth != Depth::Names {
            let subset = self.depth.data();
            let mut page = PageCursor::new(&self.object, plain)?;
            self.check_records(&mut page, subset, checked)?;
            plain = page.into_plain();
        }
        if self.depth.has_names() {
            checked.names = Some(NameCursor::new(&self.object, plain)?);
        }
        Ok(())
    }

    /// Goes through the records. The first that is wrong does not keep the others from being noted.
    fn check_records(
        &self,
        page: &mut PageCursor,
        subset: Option<DataSubset>,
        checked: &mut CheckedPage,
    ) -> Result<()> {
        let (entry, object) = (self.chunk.entry(), &*self.object);
        let listed = &entry.pages[self.page];
        let wanted: Vec<bool> = match subset {
            Some(subset) => entry.data.iter().map(|data| subset.includes(&data.id)).collect(),
            None => Vec::new(),
        };
        let mut wrong = None;
        let mut note = |what: String| {
            wrong.get_or_insert_with(|| ArchiveError::damaged(object, DamageKind::Inconsistent, what));
        };
        let (mut puts, mut tombstones) = (0, 0);
        while page.advance(object)? {
            let key = page.key();
            if puts + tombstones == 0 && key != listed.first_key.as_bytes() {
                note("it begins with another key than its entry says".to_owned());
            }
            if !entry.filter.is_empty() && !filter::may_contain(&entry.filter, key_hash(key)) {
                note(format!("the filter denies {}", show_key(key)));
            }
            checked.records += 1;
            let Some(put) = page.put() else {
                tombstones += 1;
                continue;
            };
            puts += 1;
            checked.body_bytes += u64::from(put.length);
            let data = entry.data.get(put.chunk as usize);
            if data.is_none_or(|data| u64::from(put.offset) + u64::from(put.length) > data.raw_len) {
                note(format!(
                    "the record of {} points outside of its data",
                    show_key(key)
                ));
            }
            if wanted.get(put.chunk as usize) == Some(&true) {
                let (offset, length, body_hash) = (put.offset, put.length, put.body_hash);
                let located = Located {
                    offset,
                    length,
                    body_hash,
                };
                checked.bodies.push((put.chunk, located));
            }
        }
        if page.key() != listed.last_key.as_bytes() || (puts, tombstones) != (listed.puts, listed.tombstones)
        {
            note("its last key or its counts differ from its entry".to_owned());
        }
        wrong.map_or(Ok(()), Err)
    }
}
