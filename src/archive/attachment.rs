//! Attachments: a stream of bytes that belongs to a snapshot and is no document, in chunks that its `refs` name.
//!
//! In order and with hashes like everything else: a frame is taken whole or not at all, and a value that is pushed is never
//! cut by the end of one.

use std::sync::Arc;

use futures::stream::{self, Stream, StreamExt, TryStreamExt};

use super::chunk::{ChunkBuilder, ChunkKind, FrameTable, with_decoder};
use super::error::{ArchiveError, DamageKind, Result};
use super::ids::parse_chunk_name;
use super::repository::Repository;
use super::session::{Session, SessionShared};
use super::snapshot::Snapshot;

const LEVEL: i32 = 3;
/// Bytes that end a frame, and frames that end a chunk.
const FRAME_LEN: usize = 256 << 10;
const CHUNK_FRAMES: usize = 32;
/// The largest attachment chunk that is read: its frames, not compressed, and its table.
const MAX_CHUNK_LEN: u64 = 1 << 30;

/// Writes an attachment. Dropping it leaves nothing behind but chunks that a sweep collects.
pub struct AttachmentWriter {
    session: Arc<SessionShared>,
    builder: ChunkBuilder,
    frame: Vec<u8>,
    names: Vec<String>,
}

impl Session {
    /// A writer of the session's attachment.
    pub fn attachment_writer(&self) -> AttachmentWriter {
        AttachmentWriter {
            session: Arc::clone(&self.shared),
            builder: ChunkBuilder::new(ChunkKind::Attachment, LEVEL),
            frame: Vec::with_capacity(FRAME_LEN),
            names: Vec::new(),
        }
    }
}

impl AttachmentWriter {
    /// Appends a value, which must have less than 16 MiB.
    pub async fn push(&mut self, value: &[u8]) -> Result<()> {
        if !self.frame.is_empty() && self.frame.len() + value.len() > FRAME_LEN {
            self.end_frame().await?;
        }
        self.frame.extend_from_slice(value);
        Ok(())
    }

    async fn end_frame(&mut self) -> Result<()> {
        self.builder.add_frame(&mut self.frame).await?;
        if self.builder.frames() >= CHUNK_FRAMES {
            self.end_chunk().await?;
        }
        Ok(())
    }

    async fn end_chunk(&mut self) -> Result<()> {
        let stored = self.session.put_chunk(self.builder.finish().await?).await?;
        self.names.push(stored.chunk.name());
        Ok(())
    }

    /// Ends it. What it gives goes into the snapshot's `refs`.
    pub async fn finish(mut self) -> Result<Vec<String>> {
        if !self.frame.is_empty() {
            self.end_frame().await?;
        }
        if self.builder.frames() > 0 {
            self.end_chunk().await?;
        }
        Ok(self.names)
    }
}

/// The frames of a snapshot's attachment, in order, each verified; none where it has no attachment.
pub fn attachment(
    repository: &Repository,
    snapshot: &Snapshot,
) -> impl Stream<Item = Result<Vec<u8>>> + Send + 'static + use<> {
    let repository = repository.clone();
    stream::iter(snapshot.refs.clone())
        .then(move |name| {
            let repository = repository.clone();
            async move { read_chunk(&repository, name).await }
        })
        .map_ok(|frames| stream::iter(frames.into_iter().map(Ok)))
        .try_flatten()
}

/// The frames of one chunk.
pub(crate) async fn read_chunk(repository: &Repository, name: String) -> Result<Vec<Vec<u8>>> {
    let Some((id, _)) = parse_chunk_name(&name) else {
        return Err(ArchiveError::damaged(
            name,
            DamageKind::Malformed,
            "the snapshot names it as an attachment, and it is no chunk",
        ));
    };
    let bytes = repository.store().get_at_most(&name, MAX_CHUNK_LEN).await?;
    tokio::task::spawn_blocking(move || {
        let table = FrameTable::parse(&name, ChunkKind::Attachment, &id, &bytes)?;
        if table.stored_len() != bytes.len() as u64 {
            return Err(ArchiveError::damaged(
                name,
                DamageKind::WrongSize,
                "it was cut short, or bytes follow its end",
            ));
        }
        let mut frames = Vec::with_capacity(table.rows().len());
        for (frame, row) in table.rows().iter().enumerate() {
            let range = table.stored_range(frame);
            let stored = &bytes[range.start as usize..range.end as usize];
            let mut plain = Vec::new();
            with_decoder(|decoder| decoder.decode(&name, row, stored, &mut plain))?;
            frames.push(plain);
        }
        Ok(frames)
    })
    .await?
}
