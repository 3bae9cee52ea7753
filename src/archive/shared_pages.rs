//! Index pages that several readers of key ranges need.
//!
//! A page in which ranges meet is read for each of them, from where the range begins. Of a small run, as the layer of a night is, most pages
//! hold several such places, and a deep stack has many small runs. So these pages are fetched and decoded once, by whoever comes first, and
//! kept for a while, with records to begin at: who needs only the end of a page need not go through all that comes before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::ids::ChunkId;
use super::index_page::PageCursor;

/// Bytes of pages, decompressed, that are kept for those who come later.
const KEPT_LEN: usize = 16 << 20;
/// Records from one that can be begun at to the next.
const STRIDE: usize = 128;

/// A page that any number of cursors read.
#[derive(Debug)]
pub(super) struct SharedPage {
    /// Before its first record.
    first: PageCursor,
    /// At records of it, ascending.
    later: Vec<PageCursor>,
}

impl SharedPage {
    /// Shares what a cursor has before it, which must not have started. Where a record is malformed, whoever comes there says so.
    pub(super) fn new(object: &str, mut cursor: PageCursor) -> Self {
        let first = cursor.clone();
        let (mut later, mut records) = (Vec::new(), 0);
        // They take no more room than the page has bytes, however long its keys are.
        let mut room = cursor.byte_len();
        while matches!(cursor.advance(object), Ok(true)) {
            records += 1;
            let bytes = size_of::<PageCursor>() + cursor.key().len();
            if records % STRIDE == 0 && room >= bytes {
                room -= bytes;
                later.push(cursor.clone());
            }
        }
        Self { first, later }
    }

    /// A cursor before the first record that has a key or comes after it; other records may come before.
    pub(super) fn cursor_before(&self, key: &[u8]) -> PageCursor {
        let before = self.later.partition_point(|place| place.key() < key);
        let last = before.checked_sub(1).and_then(|last| self.later.get(last));
        last.unwrap_or(&self.first).clone()
    }
}

/// The pages that were shared last.
#[derive(Debug, Default)]
pub(super) struct SharedPages {
    pages: HashMap<(ChunkId, usize), Kept>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    page: Arc<OnceCell<SharedPage>>,
    bytes: usize,
    used: u64,
}

impl SharedPages {
    /// The place of a page of an index chunk, which has so many bytes; whoever finds it empty fills it.
    pub(super) fn place(
        pages: &Mutex<Self>,
        (chunk, number): (ChunkId, usize),
        bytes: usize,
    ) -> Arc<OnceCell<SharedPage>> {
        let mut pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.clock += 1;
        let used = pages.clock;
        if let Some(kept) = pages.pages.get_mut(&(chunk, number)) {
            kept.used = used;
            return Arc::clone(&kept.page);
        }
        while pages.bytes + bytes > KEPT_LEN {
            let oldest = pages.pages.iter().min_by_key(|(_, kept)| kept.used);
            let Some(name) = oldest.map(|(name, _)| *name) else {
                break;
            };
            if let Some(gone) = pages.pages.remove(&name) {
                pages.bytes -= gone.bytes;
            }
        }
        let page = Arc::default();
        let kept = Kept {
            page: Arc::clone(&page),
            bytes,
            used,
        };
        pages.pages.insert((chunk, number), kept);
        pages.bytes += bytes;
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::index_page::PageBuilder;
    use crate::document::DocumentPath;

    fn key(number: usize) -> Vec<u8> {
        let path = DocumentPath::parse(format!("c/{number:06}")).unwrap();
        path.key().as_bytes().to_vec()
    }

    fn page(records: usize) -> SharedPage {
        let mut builder = PageBuilder::default();
        for number in 0..records {
            builder.tombstone(&key(2 * number));
        }
        let mut plain = Vec::new();
        builder.finish(&mut plain);
        SharedPage::new("index", PageCursor::new("index", plain).unwrap())
    }

    /// From wherever it is begun, what comes is what comes from the page's beginning on; and little is gone through before.
    #[test]
    fn a_page_can_be_begun_anywhere() {
        for records in [1, 127, 128, 129, 1000] {
            let page = page(records);
            for start in [
                0,
                1,
                2,
                253,
                254,
                255,
                256,
                257,
                258,
                2 * records - 2,
                2 * records,
            ] {
                let mut cursor = page.cursor_before(&key(start));
                let (mut before, mut after) = (0, Vec::new());
                while cursor.advance("index").unwrap() {
                    match cursor.key() < &key(start)[..] {
                        true => before += 1,
                        false => after.push(cursor.key().to_vec()),
                    }
                }
                let expected = start.div_ceil(2).min(records)..records;
                assert_eq!(after, expected.map(|number| key(2 * number)).collect::<Vec<_>>());
                assert!(before < STRIDE, "{before} before {start} of {records}");
            }
        }
    }

    #[test]
    fn what_was_not_used_for_longest_goes() {
        let pages = Mutex::default();
        let name = |number: u8| (ChunkId::from_bytes([number; 32]), 0);
        let place = |number| SharedPages::place(&pages, name(number), KEPT_LEN / 3);
        let first = place(0);
        for number in 1..3 {
            place(number);
        }
        assert!(Arc::ptr_eq(&first, &place(0)));
        place(3);
        assert!(Arc::ptr_eq(&first, &place(0)));
        let kept = |number| pages.lock().unwrap().pages.contains_key(&name(number));
        assert!(!kept(1) && kept(2) && kept(3));
        // One that is larger than all that is kept is kept alone.
        SharedPages::place(&pages, name(4), 2 * KEPT_LEN);
        assert!(kept(4) && !kept(0));
        place(5);
        assert!(!kept(4));
    }
}
