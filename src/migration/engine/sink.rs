//! Where writes end: in the database, or in what a dry run shows.
//!
//! The two are different types. What a dry run has cannot write, whatever becomes of the code around it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use super::change::After;
use super::failure::Failure;
use crate::document::{DocumentPath, canonical, changed_fields};
use crate::firestore::{ConditionalWriter, Precondition, Write, WriteFailure};
use crate::migration::{BeforeImage, BodyHash, DocumentChange, Journal, StoredDocument};

/// A write of which everything is known.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) path: DocumentPath,
    pub(super) before: Option<Arc<StoredDocument>>,
    /// What is to be there.
    pub(super) after: Option<After>,
    /// Whether an earlier attempt was recorded and refused.
    pub(super) supersedes: bool,
}

/// A write that was not done.
#[derive(Debug)]
pub(super) struct Undone {
    pub(super) code: Code,
    pub(super) reason: String,
}

/// Takes writes of different documents.
#[async_trait::async_trait]
pub(super) trait Sink: Send + Sync + 'static {
    /// Does them, and says which were not done.
    async fn apply(&self, ready: &[Ready]) -> Result<HashMap<DocumentPath, Undone>, Failure>;

    /// Does nothing more: what is not on its way yet is not done.
    fn stop(&self) {}

    /// Whether what is written is only kept in mind.
    fn pretends(&self) -> bool {
        false
    }

    /// What an earlier write made of a document where the database does not have it: `Some(None)` for a deletion.
    fn pretended(&self, _path: &DocumentPath) -> Option<Option<Bytes>> {
        None
    }

    /// The first changes, once, for who wants to see them.
    fn take_preview(&self) -> Vec<DocumentChange> {
        Vec::new()
    }
}

/// Writes to the database, after the journal.
pub(super) struct Live {
    pub(super) writer: ConditionalWriter,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) deadline: Duration,
}

#[async_trait::async_trait]
impl Sink for Live {
    async fn apply(&self, ready: &[Ready]) -> Result<HashMap<DocumentPath, Undone>, Failure> {
        if ready.is_empty() {
            return Ok(HashMap::new());
        }
        let images = ready.iter().map(before_image).collect();
        tokio::time::timeout(self.deadline, self.journal.record(images))
            .await
            .map_err(|_| Failure::Deadline("the journal"))??;
        let mut writes = self.writer.writes();
        for write in ready {
            let condition = match &write.before {
                Some(before) => Precondition::UpdateTime(before.update_time),
                None => Precondition::MustNotExist,
            };
            match &write.after {
                Some(After {
                    patch: Some(patch), ..
                }) => writes.push(Write::patch(&write.path, &patch.body, &patch.mask).on(condition))?,
                Some(after) => writes.push(Write::put(&write.path, &after.body).on(condition))?,
                None => writes.push(Write::delete(&write.path).on(condition))?,
            }
        }
        let failures = self.writer.send(writes).await?;
        Ok(failures.into_iter().map(undone).collect())
    }

    fn stop(&self) {
        self.writer.stop();
    }
}

fn before_image(ready: &Ready) -> BeforeImage {
    BeforeImage {
        path: ready.path.clone(),
        before: ready.before.as_deref().cloned(),
        after: ready.after.as_ref().map(|after| BodyHash::of(&after.body)),
        supersedes: ready.supersedes,
    }
}

fn undone(failure: WriteFailure) -> (DocumentPath, Undone) {
    let undone = Undone {
        code: failure.code,
        reason: failure.reason,
    };
    (failure.path, undone)
}

/// Bytes of pretended documents that a dry run keeps in mind.
const PRETENDED_BYTES: usize = 32 << 20;

/// Keeps the first changes, and counts on whoever counts.
pub(super) struct Pretend {
    preview: usize,
    state: Mutex<Pretended>,
}

#[derive(Default)]
struct Pretended {
    preview: Vec<DocumentChange>,
    /// In the order of names, so that what is forgotten does not depend on chance.
    documents: BTreeMap<String, Option<Bytes>>,
    bytes: usize,
    full: bool,
}

impl Pretend {
    pub(super) fn new(preview: usize) -> Self {
        Self {
            preview,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, Pretended> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Sink for Pretend {
    async fn apply(&self, ready: &[Ready]) -> Result<HashMap<DocumentPath, Undone>, Failure> {
        let mut state = self.state();
        for write in ready {
            if state.preview.len() < self.preview {
                state.preview.push(change(write)?);
            }
            let body = write.after.as_ref().map(|after| after.body.clone());
            let bytes = write.path.as_str().len() + body.as_ref().map_or(0, Bytes::len) + 64;
            if state.bytes + bytes <= PRETENDED_BYTES {
                state.bytes += bytes;
                state.documents.insert(write.path.as_str().to_owned(), body);
            } else if !state.full {
                state.full = true;
                tracing::warn!(
                    "the dry run writes more than it can keep in mind: from here on, the script reads what the database has"
                );
            }
        }
        Ok(HashMap::new())
    }

    fn pretends(&self) -> bool {
        true
    }

    fn pretended(&self, path: &DocumentPath) -> Option<Option<Bytes>> {
        self.state().documents.get(path.as_str()).cloned()
    }

    fn take_preview(&self) -> Vec<DocumentChange> {
        std::mem::take(&mut self.state().preview)
    }
}

fn change(write: &Ready) -> Result<DocumentChange, Failure> {
    let fields = |body: &Bytes| {
        canonical::decode(body).map_err(|error| Failure::Change {
            path: write.path.clone(),
            site: Arc::default(),
            source: error.into(),
        })
    };
    let before = write
        .before
        .as_ref()
        .map(|before| fields(&before.body))
        .transpose()?;
    let after = write
        .after
        .as_ref()
        .map(|after| fields(&after.body))
        .transpose()?;
    let changed = match (&before, &after) {
        (Some(before), Some(after)) => changed_fields(before, after),
        _ => Vec::new(),
    };
    Ok(DocumentChange {
        path: write.path.clone(),
        before,
        after,
        fields: changed,
    })
}
