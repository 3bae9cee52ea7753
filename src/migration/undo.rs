//! Putting documents back as they were before a migration.
//!
//! A document is put back when it is what the migration made of it, left alone when it is what it was already, and a conflict
//! when it is something else: then somebody changed it since. What is written has the time of the document that was looked
//! at as its condition, so a change in between is noticed and looked at again. All of that may be stopped at any point
//! and done again, and ends when the lock is lost: whoever has it then does the rest.

use std::sync::Arc;

use futures::stream::{StreamExt, TryStreamExt};

use super::before_images::{Images, SessionJournal};
use super::sorted::{Image, ImageBatch};
use super::{BeforeImage, BodyHash, Journal, LockWatch, MigrationError, StoredDocument};
use crate::document::DocumentPath;
use crate::firestore::{ConditionalWriter, Firestore, Precondition, Write, WriteFence, WriteOptions};
use crate::progress::Progress;

/// Batches under way at the same time.
const AT_ONCE: usize = 4;
/// How often a document is looked at again that changes while it is put back.
const ATTEMPTS: usize = 5;
/// Conflicts that are named.
const NAMED: usize = 10;

/// What to do with documents that somebody changed since.
#[derive(Clone, Copy)]
pub(super) enum Conflicts<'a> {
    /// Leave them as they are.
    Leave,
    /// Put them back as well, and keep what they are in this journal first.
    Overwrite(&'a SessionJournal),
}

/// What came of putting documents back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UndoStats {
    /// Documents that were put back as they were.
    pub restored: u64,
    /// Documents that the migration had made, and that were deleted.
    pub deleted: u64,
    /// Documents that were as before already.
    pub unchanged: u64,
    /// Documents that somebody changed since.
    pub conflicts: u64,
    /// The first of these, by name.
    pub first_conflicts: Vec<String>,
}

impl UndoStats {
    /// Documents that were written.
    pub fn changed(&self) -> u64 {
        self.restored + self.deleted
    }

    fn add(&mut self, other: Self) {
        self.restored += other.restored;
        self.deleted += other.deleted;
        self.unchanged += other.unchanged;
        self.conflicts += other.conflicts;
        let room = NAMED.saturating_sub(self.first_conflicts.len());
        self.first_conflicts
            .extend(other.first_conflicts.into_iter().take(room));
    }

    fn conflict(&mut self, path: &DocumentPath) {
        self.conflicts += 1;
        if self.first_conflicts.len() < NAMED {
            self.first_conflicts.push(path.to_string());
        }
    }
}

/// Puts all documents back.
pub(super) async fn undo(
    database: &Firestore,
    images: Images,
    conflicts: Conflicts<'_>,
    options: &WriteOptions,
    lock: &LockWatch,
    progress: &Progress,
) -> Result<UndoStats, MigrationError> {
    let fence: Arc<dyn WriteFence> = Arc::new(lock.clone());
    let writer = ConditionalWriter::new(database, options, Some(fence));
    let work = Undo {
        database,
        writer: Some(&writer),
        conflicts,
    };
    let undone = work.all(images, progress).await;
    // Before anything else: it says why there was an error, and what is believed to be undone is somebody else's by now.
    lock.check()?;
    undone
}

/// Says what [`undo`] would do, and writes nothing.
pub(super) async fn plan_undo(database: &Firestore, images: Images) -> Result<UndoStats, MigrationError> {
    let work = Undo {
        database,
        writer: None,
        conflicts: Conflicts::Leave,
    };
    work.all(images, &Progress::new()).await
}

struct Undo<'a> {
    database: &'a Firestore,
    /// `None`: only look.
    writer: Option<&'a ConditionalWriter>,
    conflicts: Conflicts<'a>,
}

/// A document that is not put back yet.
struct Open {
    path: DocumentPath,
    image: Image,
    /// Whether it was kept as something to be overwritten, and then was not: it was something else by then.
    kept_in_vain: bool,
}

/// What a document is to the undo.
#[derive(Clone, Copy)]
enum Found {
    /// What it was before.
    Before,
    /// What the migration made of it.
    After,
    /// Something else.
    Changed,
}

impl Undo<'_> {
    async fn all(&self, images: Images, progress: &Progress) -> Result<UndoStats, MigrationError> {
        let mut batches = images
            .map_ok(|batch| self.batch(batch))
            .try_buffered(AT_ONCE)
            .boxed();
        let mut stats = UndoStats::default();
        while let Some(done) = batches.try_next().await? {
            progress.add(done.changed() + done.unchanged + done.conflicts, 0);
            stats.add(done);
        }
        Ok(stats)
    }

    async fn batch(&self, batch: ImageBatch) -> Result<UndoStats, MigrationError> {
        let mut stats = UndoStats::default();
        let mut open: Vec<Open> = batch
            .into_iter()
            .map(|image| {
                Ok(Open {
                    path: DocumentPath::from_key(&image.key)?,
                    image,
                    kept_in_vain: false,
                })
            })
            .collect::<Result<_, MigrationError>>()?;
        for attempt in 1.. {
            if open.is_empty() {
                break;
            }
            if attempt > ATTEMPTS {
                open.iter().for_each(|open| stats.conflict(&open.path));
                break;
            }
            open = self.attempt(open, &mut stats).await?;
        }
        Ok(stats)
    }

    /// Looks at documents and puts them back. Gives those again that changed in between.
    async fn attempt(&self, open: Vec<Open>, stats: &mut UndoStats) -> Result<Vec<Open>, MigrationError> {
        let paths: Vec<DocumentPath> = open.iter().map(|open| open.path.clone()).collect();
        let fetched = self.database.get_documents(&paths, None).await?;
        // Both are in the order of keys.
        let mut found = fetched.found.iter().peekable();
        let mut writing = Vec::new();
        let mut overwritten = Vec::new();
        for mut open in open {
            let now = found.next_if(|document| document.key == open.image.key);
            let hash = now.map(|document| BodyHash::of(document.body));
            let what = classify(&open.image, hash);
            match (what, self.conflicts) {
                (Found::Before, _) => stats.unchanged += 1,
                (Found::After, _) => {}
                (Found::Changed, Conflicts::Leave) => stats.conflict(&open.path),
                (Found::Changed, Conflicts::Overwrite(_)) => {
                    overwritten.push(BeforeImage {
                        path: open.path.clone(),
                        before: now.map(|document| StoredDocument {
                            body: bytes::Bytes::copy_from_slice(document.body),
                            create_time: document.create_time,
                            update_time: document.update_time,
                        }),
                        after: open.image.before_hash(),
                        supersedes: open.kept_in_vain,
                    });
                    open.kept_in_vain = true;
                }
            }
            let writes = match what {
                Found::Before => false,
                Found::After => true,
                Found::Changed => matches!(self.conflicts, Conflicts::Overwrite(_)),
            };
            if writes {
                let condition = match now {
                    Some(document) => Precondition::UpdateTime(document.update_time),
                    None => Precondition::MustNotExist,
                };
                writing.push((open, condition));
            }
        }
        let Some(writer) = self.writer else {
            writing.iter().for_each(|(open, _)| count(&open.image, stats));
            return Ok(Vec::new());
        };
        if let (Conflicts::Overwrite(journal), false) = (self.conflicts, overwritten.is_empty()) {
            let recorded = journal.record(overwritten).await;
            recorded.map_err(|error| MigrationError::Refused(error.to_string()))?;
        }
        let mut writes = writer.writes();
        for (open, condition) in &writing {
            let write = match &open.image.before {
                Some(before) => Write::put(&open.path, &before.body),
                None => Write::delete(&open.path),
            };
            writes.push(write.on(*condition))?;
        }
        let mut again = Vec::new();
        let refused = writer.send(writes).await?;
        for (open, _) in writing {
            let Some(refused) = refused.iter().find(|refused| refused.path == open.path) else {
                count(&open.image, stats);
                continue;
            };
            use tonic::Code::{AlreadyExists, FailedPrecondition, NotFound};
            if !matches!(refused.code, AlreadyExists | FailedPrecondition | NotFound) {
                return Err(MigrationError::Refused(format!(
                    "`{}` could not be put back: {}",
                    open.path, refused.reason
                )));
            }
            again.push(open);
        }
        Ok(again)
    }
}

fn classify(image: &Image, now: Option<BodyHash>) -> Found {
    if now == image.before_hash() {
        Found::Before
    } else if !image.disturbed && image.after.contains(&now) {
        Found::After
    } else {
        Found::Changed
    }
}

fn count(image: &Image, stats: &mut UndoStats) {
    match image.before {
        Some(_) => stats.restored += 1,
        None => stats.deleted += 1,
    }
}
