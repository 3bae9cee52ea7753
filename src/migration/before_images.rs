//! Before-images in a repository: kept while a migration runs, sorted into a snapshot at its end, read back to undo it.
//!
//! A migration has a session of its own in the repository. Every record goes into the session's journal before the write that
//! it belongs to. When the migration is done the journal becomes a snapshot of kind `before_images`: a document that was
//! there is a put, one that was not is a tombstone, and what the migration made of each is in the snapshot's attachment, so
//! that a rollback can tell whether somebody has changed it since.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::sorted::{Image, ImageBatch, sorted_images};
use super::{
    BeforeImage, BodyHash, HISTORY_COLLECTION, Journal, JournalError, LOCK_COLLECTION, LockWatch,
    MigrationError, MigrationId,
};
use crate::archive::{
    Appended, ArchiveError, BodyDigest, DamageKind, Decision, JournalDocument, JournalObject, JournalRecord,
    Plan, ReadMode, RecordBatch, Repository, Selection, Session, SessionId, SessionOptions, Snapshot,
    SnapshotDraft, SnapshotKind, attachment,
};
use crate::document::{DocumentBatch, DocumentRef, KeyRange, Timestamp};
use crate::firestore::{Firestore, WriteFence};

/// Images that are handed on together when they are read from a snapshot.
const BATCH_IMAGES: usize = 300;
const BATCH_LEN: usize = 3 << 20;

/// Images in batches, ascending by key.
pub(super) type Images = BoxStream<'static, Result<ImageBatch, MigrationError>>;

/// Objects of a journal whose intervals of keys are kept in mind: of 100 million documents there are no more.
const MOST_INTERVALS: usize = 100_000;

/// Keeps before-images in a session's journal, as long as the lock is held.
pub(super) struct SessionJournal {
    session: Session,
    lock: LockWatch,
    images: AtomicU64,
    /// What the journal has, as long as each object's keys ascend.
    objects: Mutex<Option<Vec<Interval>>>,
}

/// The keys of an object of the journal.
struct Interval {
    first: Vec<u8>,
    last: Vec<u8>,
    object: JournalObject,
}

/// What a session's plan and snapshot say beside the database's name: an emulator may have a copy under the same name.
const EMULATOR: &str = "emulator";

/// Whether a session or snapshot has before-images of this database, and not of another one that this is a copy of.
///
/// A backup that was taken while a migration ran has its record, which names its session. Where that is restored, the copy is
/// put in order from the original's before-images, and these stay the original's.
pub(super) async fn is_of(
    repository: &Repository,
    session: SessionId,
    database: &Firestore,
) -> Result<bool, MigrationError> {
    let (name, extra) = match repository.decision(session).await? {
        Some(Decision::Committed(snapshot)) => (snapshot.database, snapshot.extra),
        Some(Decision::Aborted(_)) => return Ok(false),
        None => {
            let plan = repository.plan_of(session).await?;
            (plan.database, plan.extra)
        }
    };
    let of_emulator = extra.get(EMULATOR).and_then(serde_json::Value::as_bool);
    let same_kind = of_emulator.is_none_or(|of_emulator| of_emulator == database.is_emulator());
    Ok(name == *database.database() && same_kind)
}

/// Begins the session of a migration.
pub(super) async fn begin(
    repository: &Repository,
    database: &Firestore,
    read_time: Timestamp,
    lock: LockWatch,
) -> Result<Arc<SessionJournal>, MigrationError> {
    let is_emulator = database.is_emulator();
    let plan = Plan {
        kind: SnapshotKind::BeforeImages,
        database: database.database().clone(),
        database_uid: None,
        read_time,
        started_at: crate::clock::now(),
        selection: Selection::all(),
        parent: None,
        merges: None,
        read: ReadMode::Full,
        ranges: vec![KeyRange::all()],
        extra: BTreeMap::from([(EMULATOR.to_owned(), is_emulator.into())]),
    };
    let session = Session::begin(repository, SessionOptions::new(plan)).await?;
    Ok(Arc::new(SessionJournal {
        session,
        lock,
        images: AtomicU64::new(0),
        objects: Mutex::new(Some(Vec::new())),
    }))
}

#[async_trait::async_trait]
impl Journal for SessionJournal {
    async fn record(&self, images: Vec<BeforeImage>) -> Result<(), JournalError> {
        self.lock.check().map_err(JournalError::new)?;
        let own = |image: &&BeforeImage| {
            [HISTORY_COLLECTION, LOCK_COLLECTION].contains(&image.path.root_collection())
        };
        if let Some(image) = images.iter().find(own) {
            return Err(JournalError::new(format!(
                "`{}` is where Firebank keeps which migrations were run, and no script may write there",
                image.path
            )));
        }
        let count = images.len() as u64;
        let records = images.into_iter().map(record).collect();
        let appended = self.session.append_to_journal(records).await;
        self.remember(appended.map_err(JournalError::new)?);
        self.images.fetch_add(count, Ordering::Relaxed);
        // It may have taken long, and another runner may be at work by now.
        self.lock.check().map_err(JournalError::new)
    }
}

fn record(image: BeforeImage) -> JournalRecord {
    JournalRecord {
        key: image.path.key().as_bytes().to_vec(),
        before: image.before.map(|before| JournalDocument {
            create_time: before.create_time,
            update_time: before.update_time,
            body: before.body.to_vec(),
        }),
        after: image.after.map(|after| BodyDigest(after.0)),
        supersedes: image.supersedes,
    }
}

impl SessionJournal {
    /// The right to write what it keeps.
    pub(super) fn fence(&self) -> Arc<dyn WriteFence> {
        Arc::new(self.lock.clone())
    }

    pub(super) fn id(&self) -> SessionId {
        self.session.id()
    }

    /// Whether nothing was kept: then nothing was written.
    pub(super) fn is_empty(&self) -> bool {
        self.images.load(Ordering::Relaxed) == 0
    }

    fn remember(&self, appended: Vec<Appended>) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        for Appended { object, ascending } in appended {
            let Some(intervals) = objects.as_mut() else { return };
            match ascending {
                Some((first, last)) if intervals.len() < MOST_INTERVALS => {
                    intervals.push(Interval { first, last, object });
                }
                _ => *objects = None,
            }
        }
    }

    /// Makes the snapshot.
    pub(super) async fn commit(
        &self,
        repository: &Repository,
        of: &MigrationId,
    ) -> Result<Snapshot, MigrationError> {
        let session = self.session.id();
        let intervals = self.objects.lock().unwrap_or_else(PoisonError::into_inner).take();
        let images = match intervals.and_then(in_order) {
            // What is listed is what counts.
            Some(objects) if objects.len() == repository.journal(session).await?.len() => {
                images_in_order(repository, objects)
            }
            _ => images_of_journal(repository, session).await?,
        };
        commit(&self.session, images, of).await
    }
}

/// The objects in the order of keys, if none has keys among those of another: so it is when a script goes over a collection
/// once.
fn in_order(mut intervals: Vec<Interval>) -> Option<Vec<JournalObject>> {
    intervals.sort_unstable_by(|a, b| a.first.cmp(&b.first));
    let apart = intervals.windows(2).all(|pair| pair[0].last < pair[1].first);
    apart.then(|| intervals.into_iter().map(|interval| interval.object).collect())
}

/// What a migration made of a document: a record of the attachment.
#[derive(Serialize, Deserialize)]
struct Effect {
    #[serde(with = "serde_bytes")]
    key: Vec<u8>,
    after: Vec<Option<BodyDigest>>,
    disturbed: bool,
}

/// Makes a session's snapshot of the images in its journal.
async fn commit(session: &Session, mut images: Images, of: &MigrationId) -> Result<Snapshot, MigrationError> {
    let mut layer = session.layer_writer(KeyRange::all());
    let mut effects = session.attachment_writer();
    while let Some(batch) = images.try_next().await? {
        for image in batch {
            match &image.before {
                Some(before) => {
                    let document = DocumentRef {
                        key: &image.key,
                        create_time: before.create_time,
                        update_time: before.update_time,
                        body: &before.body,
                    };
                    layer.put(document).await?;
                }
                None => layer.delete(&image.key).await?,
            }
            let effect = Effect {
                key: image.key,
                after: image
                    .after
                    .iter()
                    .map(|after| after.map(|after| BodyDigest(after.0)))
                    .collect(),
                disturbed: image.disturbed,
            };
            let packed = rmp_serde::to_vec(&effect).map_err(std::io::Error::other)?;
            effects.push(&packed).await?;
        }
    }
    layer.finish().await?;
    let mut extra = session.plan().extra.clone();
    extra.insert("migration".to_owned(), of.as_str().into());
    let draft = SnapshotDraft {
        refs: effects.finish().await?,
        description: Some(format!("What documents were before {of}")),
        tags: vec!["migration".to_owned(), of.to_string()],
        extra,
        ..SnapshotDraft::default()
    };
    Ok(session.commit(draft).await?)
}

/// Makes the snapshot of a session whose process ended; the committed one where there is one already.
pub(super) async fn commit_left(
    repository: &Repository,
    session: SessionId,
    of: &MigrationId,
) -> Result<Snapshot, MigrationError> {
    match repository.decision(session).await? {
        Some(Decision::Committed(snapshot)) => Ok(*snapshot),
        _ => {
            let session = Session::join(repository, session, crate::archive::session::UPLOAD_BUDGET).await?;
            let images = images_of_journal(repository, session.id()).await?;
            commit(&session, images, of).await
        }
    }
}

/// The images of a migration: those of its snapshot, or of its journal as long as there is none.
///
/// # Errors
/// When neither is there any more.
pub(super) async fn images(
    repository: &Repository,
    session: SessionId,
    of: &MigrationId,
) -> Result<Images, MigrationError> {
    match repository.decision(session).await? {
        Some(Decision::Committed(snapshot)) => {
            if repository.is_forgotten(session).await? {
                return Err(ArchiveError::Forgotten { snapshot: session }.into());
            }
            images_of_snapshot(repository, &snapshot).await
        }
        // By somebody else: a record still needs it. What it kept is there until it is swept.
        Some(Decision::Aborted(given_up)) => match repository.journal(session).await?.is_empty() {
            false => images_of_journal(repository, session).await,
            true if given_up.is_of_silence() => Ok(stream::empty().boxed()),
            true => Err(MigrationError::LostWayBack {
                id: of.clone(),
                session,
                reason: given_up.reason,
            }),
        },
        None => images_of_journal(repository, session).await,
    }
}

/// Objects of a journal that are read ahead.
const READ_AHEAD: usize = 2;

/// The images in objects that follow each other by key, one of each document.
fn images_in_order(repository: &Repository, objects: Vec<JournalObject>) -> Images {
    let repository = repository.clone();
    let read = move |object: JournalObject| {
        let repository = repository.clone();
        async move { repository.read_journal(&object).await }
    };
    stream::iter(objects)
        .map(read)
        .buffered(READ_AHEAD)
        .map(|records| Ok(records?.into_iter().map(Image::of).collect()))
        .boxed()
}

async fn images_of_journal(repository: &Repository, session: SessionId) -> Result<Images, MigrationError> {
    let receiver = sorted_images(repository, session).await?;
    let next = |mut receiver: tokio::sync::mpsc::Receiver<_>| async move {
        let batch = receiver.recv().await?;
        Some((batch, receiver))
    };
    Ok(stream::unfold(receiver, next).boxed())
}

async fn images_of_snapshot(repository: &Repository, snapshot: &Snapshot) -> Result<Images, MigrationError> {
    let reader = repository.reader(snapshot).await?;
    let images = SnapshotImages {
        snapshot: snapshot.id,
        records: reader.records_with_tombstones(KeyRange::all()).boxed(),
        found: RecordBatch::default(),
        next: 0,
        documents: Documents {
            batches: reader.documents(KeyRange::all()).boxed(),
            batch: DocumentBatch::new(),
            next: 0,
        },
        effects: Effects {
            frames: attachment(repository, snapshot).boxed(),
            frame: Vec::new(),
            at: 0,
        },
    };
    let next = |mut images: SnapshotImages| async move {
        Ok::<_, MigrationError>(images.batch().await?.map(|batch| (batch, images)))
    };
    Ok(stream::try_unfold(images, next).boxed())
}

/// Reads the three streams of a before-images snapshot side by side: all are ascending by key.
struct SnapshotImages {
    snapshot: SessionId,
    records: BoxStream<'static, Result<RecordBatch, ArchiveError>>,
    found: RecordBatch,
    next: usize,
    documents: Documents,
    effects: Effects,
}

impl SnapshotImages {
    async fn batch(&mut self) -> Result<Option<ImageBatch>, MigrationError> {
        let mut batch = ImageBatch::new();
        let mut bytes = 0;
        while batch.len() < BATCH_IMAGES && bytes < BATCH_LEN {
            let Some(record) = self.found.get(self.next) else {
                match self.records.try_next().await? {
                    Some(found) => (self.found, self.next) = (found, 0),
                    None => break,
                }
                continue;
            };
            self.next += 1;
            let effect = self.effects.next().await?;
            let effect = effect.filter(|effect| effect.key == record.key);
            let effect = effect.ok_or_else(|| contradiction(self.snapshot))?;
            let before = match record.body {
                Some(_) => Some(self.documents.next(record.key, self.snapshot).await?),
                None => None,
            };
            bytes += before.as_ref().map_or(0, |before| before.body.len());
            batch.push(Image {
                key: effect.key,
                before,
                after: effect
                    .after
                    .iter()
                    .map(|after| after.map(|after| BodyHash(after.0)))
                    .collect(),
                disturbed: effect.disturbed,
            });
        }
        Ok((!batch.is_empty()).then_some(batch))
    }
}

/// The documents that were there, one after the other.
struct Documents {
    batches: BoxStream<'static, Result<DocumentBatch, ArchiveError>>,
    batch: DocumentBatch,
    next: usize,
}

impl Documents {
    async fn next(&mut self, key: &[u8], snapshot: SessionId) -> Result<JournalDocument, MigrationError> {
        loop {
            if let Some(document) = self.batch.get(self.next) {
                self.next += 1;
                if document.key != key {
                    return Err(contradiction(snapshot).into());
                }
                return Ok(JournalDocument {
                    create_time: document.create_time,
                    update_time: document.update_time,
                    body: document.body.to_vec(),
                });
            }
            let next = self.batches.try_next().await?;
            self.batch = next.ok_or_else(|| contradiction(snapshot))?;
            self.next = 0;
        }
    }
}

/// The records of the attachment, one after the other.
struct Effects {
    frames: BoxStream<'static, Result<Vec<u8>, ArchiveError>>,
    frame: Vec<u8>,
    at: usize,
}

impl Effects {
    async fn next(&mut self) -> Result<Option<Effect>, MigrationError> {
        while self.at >= self.frame.len() {
            match self.frames.try_next().await? {
                Some(frame) => (self.frame, self.at) = (frame, 0),
                None => return Ok(None),
            }
        }
        let mut rest = &self.frame[self.at..];
        let effect = Effect::deserialize(&mut rmp_serde::Deserializer::new(&mut rest));
        self.at = self.frame.len() - rest.len();
        let effect = effect.map_err(|error| {
            let what = format!("its attachment does not decode: {error}");
            ArchiveError::damaged("attachment", DamageKind::Malformed, what)
        })?;
        Ok(Some(effect))
    }
}

fn contradiction(snapshot: SessionId) -> ArchiveError {
    ArchiveError::damaged(
        snapshot.snapshot_name(),
        DamageKind::Inconsistent,
        "its documents and its attachment are not of the same migration",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(intervals: &[(u8, u8)]) -> Option<Vec<u64>> {
        let intervals = (0..).zip(intervals).map(|(number, &(first, last))| Interval {
            first: vec![first],
            last: vec![last],
            object: JournalObject {
                number,
                name: String::new(),
                size: 0,
            },
        });
        let objects = in_order(intervals.collect())?;
        Some(objects.into_iter().map(|object| object.number).collect())
    }

    #[test]
    fn only_objects_apart_are_in_order() {
        assert_eq!(numbers(&[]), Some(vec![]));
        assert_eq!(numbers(&[(5, 6), (1, 3), (4, 4)]), Some(vec![1, 2, 0]));
        // A document twice, one among others, and all of one within another.
        assert_eq!(numbers(&[(1, 3), (3, 5)]), None);
        assert_eq!(numbers(&[(1, 4), (3, 5)]), None);
        assert_eq!(numbers(&[(1, 9), (3, 5)]), None);
    }
}
