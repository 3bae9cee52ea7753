//! What documents were before a migration wrote them: the way back.
//!
//! The engine hands over a before-image of every document that it is about to write, and writes only after the journal has
//! said that the images will stay. So whatever happens then, a crash included, each written document can be put back.

use std::fmt;

use bytes::Bytes;

use crate::document::{DocumentPath, Timestamp};

/// Keeps before-images.
///
/// The engine calls [`record`](Self::record) from several tasks at once, each with some hundred or thousand images (a few
/// MiB), and writes the documents of a call when the call has returned. Images of **different** paths come in any order.
/// A path that is written twice may be recorded twice, the second time after the first write was acknowledged; then the
/// *first* image says what there was before the migration and the *last* one what there is after it. A call that is
/// dropped, or an image without a write that follows, means that the document was not written: it then still is what
/// `before` says.
#[async_trait::async_trait]
pub trait Journal: Send + Sync {
    /// Keeps the images. Returns when they are durable: a crash right after it must not lose one.
    ///
    /// An error ends the migration; the documents are not written.
    async fn record(&self, images: Vec<BeforeImage>) -> Result<(), JournalError>;
}

/// What a document is right before a write, and what the write makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BeforeImage {
    /// Which document.
    pub path: DocumentPath,
    /// What it is, `None` where there is none. The write has a precondition to the same end: it is refused if the document
    /// is something else by then.
    pub before: Option<StoredDocument>,
    /// The hash of what it is going to be, `None` where it is going to be deleted. It differs from the hash of `before`:
    /// what would change nothing is not written.
    pub after: Option<BodyHash>,
    /// Whether the write of the image that was recorded last for this path was refused, because somebody else had changed
    /// the document since it was read: forget that image, this one takes its place.
    pub supersedes: bool,
}

/// A document as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDocument {
    /// Its fields in canonical form: see [`canonical`](crate::document::canonical).
    pub body: Bytes,
    /// When the server says it was created.
    pub create_time: Timestamp,
    /// When the server says it was last changed.
    pub update_time: Timestamp,
}

/// BLAKE3 of a document's canonical body: equal documents, and only these, have equal hashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyHash(pub [u8; 32]);

impl BodyHash {
    /// The hash of a body.
    pub fn of(body: &[u8]) -> Self {
        Self(*blake3::hash(body).as_bytes())
    }
}

impl fmt::Debug for BodyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Images could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("what the documents are now could not be kept, so they are not written: {source}")]
pub struct JournalError {
    /// What went wrong.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl JournalError {
    /// An error with its cause.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            source: source.into(),
        }
    }
}

/// Keeps nothing: what is written cannot be undone. For databases that are made anew anyway, and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoJournal;

#[async_trait::async_trait]
impl Journal for NoJournal {
    async fn record(&self, _images: Vec<BeforeImage>) -> Result<(), JournalError> {
        Ok(())
    }
}
