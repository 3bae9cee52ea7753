//! Looking single keys up in a stack of runs: block, page, record, of the newest run that knows the key.
//!
//! A lookup keeps one page a run, so keys that are asked for in ascending order fetch each page once.

use std::sync::Arc;

use super::cut::key_hash;
use super::error::{ArchiveError, DamageKind, Result, show_key};
use super::index_page::{PageCursor, Put};
use super::reader::{Blocks, Run};
use super::record::RecordBatch;
use super::run::{BlockEntry, DirectoryBlock};

/// Finds the records of keys.
pub(crate) struct Lookup {
    blocks: Blocks,
    runs: Vec<RunLookup>,
}

struct RunLookup {
    run: Arc<Run>,
    page: Option<Page>,
}

/// A page, and the place that it is listed at.
struct Page {
    block: Arc<DirectoryBlock>,
    entry: usize,
    number: usize,
    name: Arc<str>,
    cursor: PageCursor,
}

impl Lookup {
    /// Of a stack of runs, the newest first.
    pub(crate) fn new(blocks: Blocks, runs: &[Arc<Run>]) -> Self {
        let runs = runs.iter().map(|run| RunLookup {
            run: Arc::clone(run),
            page: None,
        });
        Self {
            blocks,
            runs: runs.collect(),
        }
    }

    /// Appends the record of a key to `found`; `false` when the stack does not have it, or a tombstone hides it.
    pub(crate) async fn find(&mut self, key: &[u8], found: &mut RecordBatch) -> Result<bool> {
        let hash = key_hash(key);
        for run in &mut self.runs {
            match run.find(&self.blocks, key, hash).await? {
                None => {}
                Some(None) => return Ok(false),
                Some(Some(put)) => {
                    run.append(key, put, found)?;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl RunLookup {
    /// What this run says of a key: nothing, that it is gone, or where it is.
    async fn find(&mut self, blocks: &Blocks, key: &[u8], hash: u64) -> Result<Option<Option<Put>>> {
        let listed = &self.run.root.blocks;
        let place = listed.partition_point(|block: &BlockEntry| block.last_key.as_bytes() < key);
        let Some(listed) = listed
            .get(place)
            .filter(|block| block.first_key.as_bytes() <= key)
        else {
            return Ok(None);
        };
        let block = blocks.load(listed).await?;
        let number = block.entries.partition_point(|entry| entry.last_key() < key);
        let Some(entry) = block
            .entries
            .get(number)
            .filter(|entry| entry.may_contain(key, hash))
        else {
            return Ok(None);
        };
        let page_number = entry.pages.partition_point(|page| page.last_key.as_bytes() < key);
        let listed = entry.pages.get(page_number);
        if listed.is_none_or(|page| page.first_key.as_bytes() > key) {
            return Ok(None);
        }
        let held = self.page.take().filter(|page| {
            Arc::ptr_eq(&page.block, &block)
                && (page.entry, page.number) == (number, page_number)
                // It only goes forward.
                && page.cursor.key() <= key
        });
        let mut page = match held {
            Some(page) => page,
            None => {
                let name: Arc<str> = entry.chunk.name().into();
                let cursor = blocks.load_page(entry, page_number, Arc::clone(&name)).await?;
                Page {
                    block,
                    entry: number,
                    number: page_number,
                    name,
                    cursor,
                }
            }
        };
        while page.cursor.key() < key && page.cursor.advance(&page.name)? {}
        let found = (page.cursor.key() == key).then(|| page.cursor.put().copied());
        self.page = Some(page);
        Ok(found)
    }

    fn append(&self, key: &[u8], put: Put, found: &mut RecordBatch) -> Result<()> {
        let Some(page) = &self.page else { return Ok(()) };
        let chunk = page.block.entries[page.entry].data.get(put.chunk as usize);
        let chunk = chunk.filter(|chunk| u64::from(put.offset) + u64::from(put.length) <= chunk.raw_len);
        let chunk = chunk.ok_or_else(|| {
            let what = format!("the record of {} points outside of its data", show_key(key));
            ArchiveError::damaged(&*page.name, DamageKind::Inconsistent, what)
        })?;
        let chunk = found.add_chunk(*chunk);
        found.push_put(key, Some(Put { chunk, ..put }));
        Ok(())
    }
}
