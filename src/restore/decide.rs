//! What becomes of each chosen document: the writes, encoded where the documents are decoded.

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt};

use super::{RestoreCounts, RestoreError, RestoreMode};
use crate::archive::{DocumentSink, SnapshotReader};
use crate::document::{DocumentKey, DocumentPath, DocumentRef, KeyRange};
use crate::firestore::{EncodedWrites, Precondition, Write, WriteEncoder};
use crate::path_filter::PathFilter;

/// What is decided for a stretch of a key range.
///
/// A range's stretches follow each other without a gap, also where nothing is to be written: up to `up_to` everything before
/// is decided once these writes are done.
pub(super) struct Decided {
    /// What is to be written; may be nothing.
    pub(super) writes: EncodedWrites,
    /// The documents that were looked at in this stretch.
    pub(super) counts: RestoreCounts,
    /// The last key of the stretch, `None` where it is as far as that before.
    pub(super) up_to: Option<DocumentKey>,
}

/// Decides what is to be written.
#[derive(Clone)]
pub(super) struct Decide {
    reader: SnapshotReader,
    rules: Arc<Rules>,
}

/// What all ranges have in common.
struct Rules {
    filter: PathFilter,
    mode: RestoreMode,
    /// Makes the ranges' encoders.
    encoder: WriteEncoder,
}

impl Decide {
    pub(super) fn new(
        reader: &SnapshotReader,
        filter: PathFilter,
        mode: RestoreMode,
        encoder: WriteEncoder,
    ) -> Self {
        Self {
            reader: reader.clone(),
            rules: Arc::new(Rules {
                filter,
                mode,
                encoder,
            }),
        }
    }

    /// What is to be written for the documents of a range. The stream's end says that all of the range is decided.
    pub(super) fn range(&self, range: KeyRange) -> BoxStream<'static, Result<Decided, RestoreError>> {
        let encode = Encode::new(Arc::clone(&self.rules));
        self.reader
            .documents_into(range, encode)
            .map(|encoded| encoded?)
            .boxed()
    }
}

/// Encodes the chosen documents of a range where they are decoded: their bytes are at hand there, and all cores take part.
struct Encode {
    rules: Arc<Rules>,
    encoder: WriteEncoder,
    /// The memory of paths.
    path: String,
    counts: RestoreCounts,
    /// The last document that was looked at.
    last: Option<Vec<u8>>,
    failed: Option<RestoreError>,
}

impl Encode {
    fn new(rules: Arc<Rules>) -> Self {
        Self {
            encoder: rules.encoder.another(),
            rules,
            path: String::new(),
            counts: RestoreCounts::default(),
            last: None,
            failed: None,
        }
    }

    fn put(&mut self, document: DocumentRef<'_>) -> Result<(), RestoreError> {
        let path = DocumentPath::from_key_in(document.key, std::mem::take(&mut self.path))?;
        if self.rules.filter.matches(&path) {
            self.counts.documents += 1;
            self.counts.bytes += document.body.len() as u64;
            let precondition = match self.rules.mode {
                RestoreMode::Overwrite => Precondition::None,
                RestoreMode::CreateOnly => Precondition::MustNotExist,
            };
            self.encoder
                .write(Write::put(&path, document.body).on(precondition))?;
        }
        self.path = path.into();
        let last = self.last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(document.key);
        Ok(())
    }

    fn decided(&mut self) -> Decided {
        Decided {
            writes: self.encoder.take(),
            counts: std::mem::take(&mut self.counts),
            up_to: self.last.as_deref().map(DocumentKey::from_bytes),
        }
    }
}

impl DocumentSink for Encode {
    type Output = Result<Decided, RestoreError>;

    fn push(&mut self, document: DocumentRef<'_>) {
        if self.failed.is_none() {
            self.failed = self.put(document).err();
        }
    }

    fn pass_on(&mut self) -> Self::Output {
        match self.failed.take() {
            Some(failed) => Err(failed),
            None => Ok(self.decided()),
        }
    }

    fn finish(self) -> Option<Self::Output> {
        None
    }
}
