//! Reading a page's names only.

use super::{KIND_PUT, KIND_TOMBSTONE, LENGTHS, PageCursor};
use crate::archive::error::Result;

/// Goes through the keys of a page once more and passes over what else its records say: for who merges or counts what a
/// [`PageCursor`] has checked before.
#[derive(Debug)]
pub(crate) struct NameCursor {
    page: PageCursor,
    length: Option<u32>,
}

impl NameCursor {
    /// A cursor before the first record of a page's plaintext, which was verified by its hash.
    pub(crate) fn new(object: &str, plain: Vec<u8>) -> Result<Self> {
        Ok(Self {
            page: PageCursor::new(object, plain)?,
            length: None,
        })
    }

    /// Goes to the next record; `false` past the last, `None` when a record says something impossible.
    pub(crate) fn advance(&mut self) -> Option<bool> {
        let page = &mut self.page;
        let Some(left) = page.left.checked_sub(1) else {
            return Some(false);
        };
        page.left = left;
        if !page.read_key()? {
            return None;
        }
        self.length = match page.read_kind()? {
            KIND_PUT => Some(u32::try_from(page.varint(LENGTHS)?).ok()?),
            KIND_TOMBSTONE => None,
            _ => return None,
        };
        Some(true)
    }

    /// The present record's key.
    pub(crate) fn key(&self) -> &[u8] {
        self.page.key()
    }

    /// The length of the present record's body; `None` for a tombstone.
    pub(crate) fn length(&self) -> Option<u32> {
        self.length
    }
}
