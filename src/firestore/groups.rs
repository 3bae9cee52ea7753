//! Reading some collection groups instead of everything: a query for each, merged into the order of names.
//!
//! A query over all collections returns, and Firestore bills, every document of the database; a query over
//! one collection group only those of that group. A document is in one group, so the queries have nothing in
//! common, and the merge of their answers by key is what a query over all of them would give.

use futures::future::try_join_all;

use super::scan::{ScanOptions, Scanner};
use super::{Firestore, Result};
use crate::document::{DocumentBatch, DocumentRef};

/// The documents of some groups in a range.
pub(super) struct MergedGroups {
    sources: Vec<Source>,
    batch_documents: usize,
    batch_bytes: usize,
}

/// One group's documents, and where the merge is in them.
struct Source {
    scanner: Scanner,
    batch: DocumentBatch,
    position: usize,
    ended: bool,
}

impl MergedGroups {
    pub(super) fn new(firestore: &Firestore, options: &ScanOptions) -> Result<Self> {
        let groups = options.groups.len().max(1);
        let sources = options.groups.iter().map(|group| {
            let options = ScanOptions {
                groups: Vec::new(),
                batch_bytes: options.batch_bytes / groups,
                ..options.clone()
            };
            Ok(Source {
                scanner: Scanner::new(firestore.clone(), Some(group.clone()), options)?,
                batch: DocumentBatch::new(),
                position: 0,
                ended: false,
            })
        });
        Ok(Self {
            sources: sources.collect::<Result<_>>()?,
            batch_documents: options.batch_documents.max(1),
            batch_bytes: options.batch_bytes,
        })
    }

    /// The next documents, `None` when all groups are finished.
    pub(super) async fn next_batch(&mut self) -> Result<Option<DocumentBatch>> {
        if let [only] = &mut self.sources[..] {
            return only.scanner.next_batch().await;
        }
        let mut merged = DocumentBatch::new();
        loop {
            try_join_all(self.sources.iter_mut().map(Source::fill)).await?;
            while merged.len() < self.batch_documents && merged.byte_len() < self.batch_bytes {
                let keys = self.sources.iter().enumerate();
                let keys = keys.filter_map(|(index, source)| Some((source.current()?.key, index)));
                let Some((_, next)) = keys.min() else {
                    // All have ended: they were filled.
                    return Ok((!merged.is_empty()).then_some(merged));
                };
                let next = &mut self.sources[next];
                if let Some(document) = next.current() {
                    merged.push(document);
                }
                next.position += 1;
                if next.current().is_none() && !next.ended {
                    break;
                }
            }
            if merged.len() >= self.batch_documents || merged.byte_len() >= self.batch_bytes {
                return Ok(Some(merged));
            }
        }
    }
}

impl Source {
    fn current(&self) -> Option<DocumentRef<'_>> {
        self.batch.get(self.position)
    }

    async fn fill(&mut self) -> Result<()> {
        while !self.ended && self.current().is_none() {
            match self.scanner.next_batch().await? {
                Some(batch) => (self.batch, self.position) = (batch, 0),
                None => self.ended = true,
            }
        }
        Ok(())
    }
}
