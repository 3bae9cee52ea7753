//! The commit: makes one run of what the finished ranges of a session wrote.
//!
//! The index chunks of the ranges are listed as they are, which costs nothing however large the run. Only where small ones
//! stand side by side, as after a night of few changes in many ranges, they are written anew as one.

use super::chunk::{ChunkBuilder, ChunkKind};
use super::cut::key_hash;
use super::error::{ArchiveError, DamageKind, Result, show_key};
use super::ids::{ChunkId, RunId};
use super::index_writer::{BodyChunk, FullIndexChunk, IndexWriter};
use super::range_writer::RangeOutput;
use super::reader::Blocks;
use super::run::{
    BLOCK_TARGET_LEN, DirectoryBlock, IndexEntry, MAX_BLOCK_ENTRIES, MAX_FILTERED_RECORDS, RunRoot,
};
use super::sealed;
use super::session::SessionShared;
use super::snapshot::RunRef;

impl SessionShared {
    /// The finished ranges, in key order, must cover each range of the selection without gap or overlap.
    pub(super) fn check_tiling(&self, outputs: &[RangeOutput]) -> Result<()> {
        let incomplete = |what: String| ArchiveError::Incomplete {
            session: self.id(),
            what,
        };
        let mut finished = outputs.iter();
        for selected in self.plan().selection.key_ranges() {
            let mut at = selected.start.clone();
            loop {
                let next = finished
                    .next()
                    .ok_or_else(|| incomplete(format!("nothing covers what follows {at:?}")))?;
                if next.range.start != at || next.range.is_empty() {
                    return Err(incomplete(format!(
                        "a range that starts at {:?} was finished where one from {at:?} on is missing",
                        next.range.start
                    )));
                }
                at.clone_from(&next.range.end);
                if at == selected.end {
                    break;
                }
                if at.is_none() || selected.end.is_some() && at > selected.end {
                    return Err(incomplete(format!(
                        "a finished range goes past {:?}",
                        selected.end
                    )));
                }
            }
        }
        match finished.next() {
            None => Ok(()),
            Some(extra) => Err(incomplete(format!(
                "{:?} was finished twice or is not selected",
                extra.range
            ))),
        }
    }

    /// Joins the index chunks of all ranges into one run; `None` when there are none.
    pub(super) async fn write_run(
        &self,
        entries: Vec<IndexEntry>,
        stored_bytes: &mut u64,
    ) -> Result<Option<RunRef>> {
        if entries.is_empty() {
            return Ok(None);
        }
        if let Some(pair) = entries
            .windows(2)
            .find(|pair| pair[0].last_key() >= pair[1].first_key())
        {
            return Err(ArchiveError::OutOfOrder {
                previous: super::error::show_key(pair[0].last_key()),
                next: super::error::show_key(pair[1].first_key()),
            });
        }
        let mut entries = self.join_small(entries, stored_bytes).await?;
        let records: u64 = entries
            .iter()
            .map(|entry| entry.puts() + entry.tombstones())
            .sum();
        if records > MAX_FILTERED_RECORDS {
            entries.iter_mut().for_each(|entry| entry.filter = Vec::new());
        }
        let mut root = RunRoot::default();
        let mut builder = ChunkBuilder::new(ChunkKind::Directory, 3);
        let mut block = DirectoryBlock { entries: Vec::new() };
        let mut weight = 0;
        let mut entries = entries.into_iter().peekable();
        while let Some(entry) = entries.next() {
            weight += entry.weight();
            block.entries.push(entry);
            let full = block.entries.len() == MAX_BLOCK_ENTRIES || weight >= BLOCK_TARGET_LEN;
            if full || entries.peek().is_none() {
                builder.add_frame(&mut block.encode()?).await?;
                let stored = self.put_chunk(builder.finish().await?).await?;
                *stored_bytes += stored.chunk.stored_len;
                root.blocks.push(block.summary(stored.chunk));
                block.entries.clear();
                weight = 0;
            }
        }
        let digest = blake3::hash(&sealed::pack(&root)?);
        let id = RunId::from_u64(ChunkId::from_bytes(*digest.as_bytes()).low_bits());
        let (run, stored) = RunRef::new(id, self.id(), &root)?;
        if let Some(sealed) = stored {
            *stored_bytes += sealed.len() as u64;
            self.repository.store().put_new(&run.name(), sealed).await?;
        }
        Ok(Some(run))
    }

    /// Writes neighbouring small index chunks anew as one. Pages are read back: they are small, or this would not be done.
    async fn join_small(&self, entries: Vec<IndexEntry>, stored_bytes: &mut u64) -> Result<Vec<IndexEntry>> {
        let page_records = self.parameters().page_records;
        let small = |entry: &IndexEntry| entry.puts() + entry.tombstones() < u64::from(page_records);
        let joins: Vec<bool> = (0..entries.len())
            .map(|at| {
                let neighbour = |at: Option<usize>| at.and_then(|at| entries.get(at)).is_some_and(small);
                small(&entries[at]) && (neighbour(at.checked_sub(1)) || neighbour(Some(at + 1)))
            })
            .collect();
        if !joins.contains(&true) {
            return Ok(entries);
        }
        let blocks = Blocks::new(self.repository.store().clone());
        let mut joined = Vec::new();
        let mut writer = IndexWriter::new(page_records);
        for (entry, join) in entries.into_iter().zip(joins) {
            if join {
                self.copy_records(&blocks, &entry, &mut writer, &mut joined, stored_bytes)
                    .await?;
                continue;
            }
            self.end_joined(&mut writer, &mut joined, stored_bytes).await?;
            joined.push(entry);
        }
        self.end_joined(&mut writer, &mut joined, stored_bytes).await?;
        Ok(joined)
    }

    async fn copy_records(
        &self,
        blocks: &Blocks,
        entry: &IndexEntry,
        writer: &mut IndexWriter,
        joined: &mut Vec<IndexEntry>,
        stored_bytes: &mut u64,
    ) -> Result<()> {
        let name: std::sync::Arc<str> = entry.chunk.name().into();
        for page in 0..entry.pages.len() {
            let mut cursor = blocks.load_page(entry, page, name.clone()).await?;
            while cursor.advance(&name)? {
                if writer.page_is_full() {
                    let full = writer.flush_page().await?;
                    self.store_joined(full, joined, stored_bytes).await?;
                }
                let key = cursor.key();
                let Some(put) = cursor.put() else {
                    writer.tombstone(key, key_hash(key));
                    continue;
                };
                let data = entry.data.get(put.chunk as usize).ok_or_else(|| {
                    let what = format!("the record of {} points outside of its data", show_key(key));
                    ArchiveError::damaged(&*name, DamageKind::Inconsistent, what)
                })?;
                writer.put(key, key_hash(key), BodyChunk::Stored(*data), *put);
            }
        }
        Ok(())
    }

    async fn end_joined(
        &self,
        writer: &mut IndexWriter,
        joined: &mut Vec<IndexEntry>,
        stored_bytes: &mut u64,
    ) -> Result<()> {
        let full = writer.flush_page().await?;
        self.store_joined(full, joined, stored_bytes).await?;
        let full = writer.finish_chunk().await?;
        self.store_joined(full, joined, stored_bytes).await
    }

    async fn store_joined(
        &self,
        full: Option<FullIndexChunk>,
        joined: &mut Vec<IndexEntry>,
        stored_bytes: &mut u64,
    ) -> Result<()> {
        let Some(FullIndexChunk { built, mut entry }) = full else {
            return Ok(());
        };
        let stored = self.put_chunk(built).await?;
        *stored_bytes += stored.chunk.stored_len;
        if let Some(found) = &stored.found {
            entry.relocate(found);
        }
        joined.push(entry.resolve(stored.chunk, &[])?);
        Ok(())
    }
}
