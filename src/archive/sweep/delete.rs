//! Deleting many objects, and what the store refuses.

use futures::StreamExt;

use crate::archive::error::{ArchiveError, Result};
use crate::store::{Store, StoreError};

/// Deletes under way at a time.
const PARALLEL: usize = 16;
/// After so many refusals there is no hope for the others.
const ENOUGH_REFUSALS: u64 = 64;

/// What was deleted so far. A refusal does not stop it: a bucket may lock some objects for a time and not others.
pub(super) struct Deletion<'a> {
    store: &'a Store,
    objects: u64,
    bytes: u64,
    refused: u64,
    first: Option<(String, StoreError)>,
}

impl<'a> Deletion<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self {
            store,
            objects: 0,
            bytes: 0,
            refused: 0,
            first: None,
        }
    }

    /// Deletes objects, of which the sizes are known.
    pub(super) async fn delete(&mut self, names: impl Iterator<Item = (String, u64)>) -> Result<()> {
        let store = self.store;
        let mut deletes = futures::stream::iter(names)
            .map(|(name, size)| async move {
                let deleted = store.delete(&name).await;
                (name, size, deleted)
            })
            .buffer_unordered(PARALLEL);
        while let Some((name, size, deleted)) = deletes.next().await {
            match deleted {
                Ok(()) => {
                    self.objects += 1;
                    self.bytes += size;
                }
                Err(error @ StoreError::NoPermission { .. }) => {
                    self.refused += 1;
                    self.first.get_or_insert((name, error));
                    if self.refused >= ENOUGH_REFUSALS {
                        break;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Objects and bytes that were deleted.
    pub(super) fn deleted(&self) -> (u64, u64) {
        (self.objects, self.bytes)
    }

    /// Fails when the store refused anything.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.first.take() {
            None => Ok(()),
            Some((first, source)) => Err(ArchiveError::NotDeleted {
                refused: self.refused,
                first,
                source,
            }),
        }
    }
}
