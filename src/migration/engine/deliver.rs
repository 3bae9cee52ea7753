//! From what a script wants to what is written: some hundred writes at a time.
//!
//! Every write is done upon a known version of its document, with a condition to that end. So the before-image is exactly what
//! the write replaces, increments count once whatever the network does, and somebody else's change is never lost: when the
//! condition does not hold, the change is made again upon what the document has become.
//!
//! What is sent are values and never transforms: an increment, a union and also a server timestamp are worked out here. Only so
//! is the hash of what is going to be there known before it is written, and only so may a request be repeated. The server's time
//! is the server's own, asked for once a minute and carried on by the local monotonic clock in between.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use tokio::sync::{Mutex, OnceCell};
use tonic::Code;

use super::change::{After, Base, Change, ChangeError, OnConflict};
use super::failure::Failure;
use super::sink::{Ready, Sink, Undone};
use crate::document::{DocumentBatch, DocumentPath, DocumentRef, Timestamp, canonical};
use crate::firestore::Firestore;
use crate::migration::{CollectionStats, StoredDocument};

/// How often a document may have become something else before it is given up.
const ATTEMPTS: u32 = 12;

/// All the writes to one document that are done at once.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: DocumentPath,
    pub(super) base: Base,
    pub(super) changes: Vec<Change>,
    pub(super) on_conflict: OnConflict,
    pub(super) site: Arc<str>,
    pub(super) supersedes: bool,
    /// Whether an earlier write of the run has made the document something else than the script saw.
    pub(super) outdated: bool,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    pub(super) paths: Vec<DocumentPath>,
    pub(super) unchanged: u64,
    pub(super) collections: BTreeMap<String, CollectionStats>,
    pub(super) created_collections: Vec<String>,
    /// Documents on which a function must run again.
    pub(super) rerun: Vec<(u32, DocumentPath)>,
}

/// What all batches of a run share.
pub(super) struct Delivery<S> {
    pub(super) firestore: Firestore,
    pub(super) sink: S,
    pub(super) deadline: Duration,
    clock: Mutex<Option<(Timestamp, Instant)>>,
    /// The root collections that had documents before the first write.
    roots: OnceCell<HashSet<String>>,
}

/// The server's time is asked for again after this; in between, the local monotonic clock goes on from it.
const CLOCK_AGE: Duration = Duration::from_secs(60);

impl<S: Sink> Delivery<S> {
    pub(super) fn new(firestore: Firestore, sink: S, deadline: Duration) -> Self {
        Self {
            firestore,
            sink,
            deadline,
            clock: Mutex::default(),
            roots: OnceCell::new(),
        }
    }

    /// Writes until each is done. Different documents only.
    pub(super) async fn deliver(&self, mut entries: Vec<Entry>) -> Result<Delivered, Failure> {
        let mut delivered = Delivered {
            paths: entries.iter().map(|entry| entry.path.clone()).collect(),
            ..Delivered::default()
        };
        let roots = self.roots().await;
        for attempt in 1..=ATTEMPTS {
            self.fetch_bases(&mut entries).await?;
            let now = self.now().await?;
            let mut ready = Vec::with_capacity(entries.len());
            let mut waiting = Vec::with_capacity(entries.len());
            for mut entry in entries {
                if let (true, OnConflict::Rerun(function)) = (entry.outdated, entry.on_conflict) {
                    delivered.rerun.push((function, entry.path));
                    continue;
                }
                match prepare(&mut entry, now)? {
                    Some(write) => {
                        ready.push(write);
                        waiting.push(entry);
                    }
                    None => delivered.unchanged += 1,
                }
            }
            let mut undone = self.sink.apply(&ready).await?;
            let mut conflicts = Vec::new();
            for (mut entry, write) in waiting.into_iter().zip(ready) {
                match undone.remove(&entry.path) {
                    None => delivered.done(&write, roots),
                    Some(undone) if !is_conflict(undone.code) => return Err(refused(&entry, undone)),
                    Some(_) => match entry.on_conflict {
                        OnConflict::Rerun(function) => delivered.rerun.push((function, entry.path)),
                        OnConflict::Never => return Err(contended(&entry, attempt)),
                        _ if attempt == ATTEMPTS => return Err(contended(&entry, attempt)),
                        _ => {
                            entry.base = Base::Unknown;
                            entry.supersedes = true;
                            conflicts.push(entry);
                        }
                    },
                }
            }
            if conflicts.is_empty() {
                break;
            }
            entries = conflicts;
            tokio::time::sleep(Duration::from_millis(10) * (attempt - 1)).await;
        }
        Ok(delivered)
    }

    /// Looks up what nobody has seen yet.
    async fn fetch_bases(&self, entries: &mut [Entry]) -> Result<(), Failure> {
        for entry in entries.iter_mut() {
            if let Some(pretended) = self.sink.pretended(&entry.path) {
                let same = match (&entry.base, &pretended) {
                    (Base::Stored(stored), Some(body)) => stored.body == *body,
                    (Base::Absent, None) => true,
                    _ => false,
                };
                if same {
                    continue;
                }
                entry.outdated = !matches!(entry.base, Base::Unknown);
                entry.base = match pretended {
                    Some(body) => Base::Stored(Arc::new(StoredDocument {
                        body,
                        create_time: Timestamp::default(),
                        update_time: Timestamp::default(),
                    })),
                    None => Base::Absent,
                };
            }
        }
        let unknown: Vec<DocumentPath> = entries
            .iter()
            .filter(|entry| matches!(entry.base, Base::Unknown))
            .map(|entry| entry.path.clone())
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let mut found = self.get(&unknown).await?;
        for entry in entries {
            if matches!(entry.base, Base::Unknown) {
                entry.base = match found.remove(&entry.path) {
                    Some(stored) => Base::Stored(Arc::new(stored)),
                    None => Base::Absent,
                };
            }
        }
        Ok(())
    }

    /// What a scan brought, with what earlier writes made of it where the database does not have that.
    pub(super) fn as_pretended(&self, batch: DocumentBatch) -> Result<DocumentBatch, Failure> {
        if !self.sink.pretends() {
            return Ok(batch);
        }
        let mut pretended = DocumentBatch::new();
        for document in batch.iter() {
            let path = document.path().map_err(|_| Failure::Gone)?;
            match self.sink.pretended(&path) {
                None => pretended.push(document),
                Some(Some(body)) => pretended.push(DocumentRef {
                    body: &body,
                    ..document
                }),
                Some(None) => {}
            }
        }
        Ok(pretended)
    }

    /// Documents by name, as they are now.
    pub(super) async fn get(
        &self,
        paths: &[DocumentPath],
    ) -> Result<std::collections::HashMap<DocumentPath, StoredDocument>, Failure> {
        let fetched = tokio::time::timeout(self.deadline, self.firestore.get_documents(paths, None))
            .await
            .map_err(|_| Failure::Deadline("a look-up of documents"))??;
        let documents = fetched.found.iter().map(|document| {
            let path = document.path().map_err(|_| Failure::Gone)?;
            Ok((path, StoredDocument::of(document)))
        });
        documents.collect()
    }

    /// The server's time, as well as it is known.
    async fn now(&self) -> Result<Timestamp, Failure> {
        let mut clock = self.clock.lock().await;
        let (time, asked) = match *clock {
            Some((time, asked)) if asked.elapsed() < CLOCK_AGE => (time, asked),
            _ => {
                let time = tokio::time::timeout(self.deadline, self.firestore.current_read_time())
                    .await
                    .map_err(|_| Failure::Deadline("the question for the time"))??;
                *clock.insert((time, Instant::now()))
            }
        };
        let past = asked.elapsed();
        let nanos = u64::from(time.nanos) + u64::from(past.subsec_nanos());
        Ok(Timestamp::new(
            time.seconds + past.as_secs() as i64 + (nanos / 1_000_000_000) as i64,
            (nanos % 1_000_000_000) as u32,
        ))
    }

    /// The collections that are there before anything is written. Only a report depends on them.
    async fn roots(&self) -> &HashSet<String> {
        self.roots
            .get_or_init(|| async {
                let listed = self.firestore.collection_ids(None, None).try_collect().await;
                listed.unwrap_or_else(|error| {
                    tracing::warn!(%error, "cannot list the collections: new ones will not be told apart");
                    HashSet::new()
                })
            })
            .await
    }
}

/// What is to be written; the entry keeps its changes where they may have to be made again.
fn prepare(entry: &mut Entry, now: Timestamp) -> Result<Option<Ready>, Failure> {
    let mut changes = match entry.on_conflict.repeats() {
        true => entry.changes.clone(),
        false => std::mem::take(&mut entry.changes),
    };
    if changes.is_empty() {
        return Err(Failure::Gone);
    }
    let failed = |source: ChangeError| Failure::Change {
        path: entry.path.clone(),
        site: entry.site.clone(),
        source,
    };
    let before = match &entry.base {
        Base::Stored(stored) => Some(stored.clone()),
        Base::Unknown | Base::Absent => None,
    };
    let ready = |after| Ready {
        path: entry.path.clone(),
        before: before.clone(),
        after,
        supersedes: entry.supersedes,
    };
    // Such a change is alone: see `Writer::add`.
    let worked_out = changes.pop_if(|change| match (change, &before) {
        (Change::Become(replacement), Some(before)) => Arc::ptr_eq(&replacement.of, before),
        _ => false,
    });
    if let Some(Change::Become(replacement)) = worked_out {
        return Ok(Some(ready(Some(replacement.after))));
    }
    let before_fields = match &before {
        Some(stored) => Some(canonical::decode(&stored.body).map_err(|error| failed(error.into()))?),
        None if entry.on_conflict == OnConflict::AgainIfThere => return Ok(None),
        None => None,
    };
    let mut after = None;
    for (number, change) in changes.into_iter().enumerate() {
        let upon = match number {
            0 => before_fields.as_ref(),
            _ => after.as_ref(),
        };
        after = change.apply(upon, now).map_err(failed)?;
    }
    Ok(match (&before_fields, after) {
        (None, None) => None,
        (Some(_), None) => Some(ready(None)),
        (before, Some(after)) => After::of(before.as_ref(), &after).map(|after| ready(Some(after))),
    })
}

/// Whether the document is just not what it was thought to be.
fn is_conflict(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition | Code::AlreadyExists | Code::NotFound
    )
}

fn refused(entry: &Entry, undone: Undone) -> Failure {
    Failure::Refused {
        path: entry.path.clone(),
        site: entry.site.clone(),
        code: undone.code,
        reason: undone.reason,
    }
}

fn contended(entry: &Entry, attempts: u32) -> Failure {
    Failure::Contended {
        path: entry.path.clone(),
        site: entry.site.clone(),
        attempts,
    }
}

impl Delivered {
    fn done(&mut self, write: &Ready, roots: &HashSet<String>) {
        let stats = self.collections.entry(shape(&write.path)).or_default();
        match (&write.before, &write.after) {
            (None, _) => {
                stats.created += 1;
                let root = write.path.root_collection();
                if write.path.parent().is_none()
                    && !roots.contains(root)
                    && !self.created_collections.iter().any(|name| name == root)
                {
                    self.created_collections.push(root.to_owned());
                }
            }
            (Some(_), Some(_)) => stats.updated += 1,
            (Some(_), None) => stats.deleted += 1,
        }
    }
}

/// The collection of a document, without the ids of documents on the way: there may be millions of these.
fn shape(path: &DocumentPath) -> String {
    let mut shape = String::new();
    for (index, segment) in path.segments().enumerate() {
        if index > 0 {
            shape.push('/');
        }
        shape.push_str(if index % 2 == 0 { segment } else { "*" });
    }
    shape.truncate(shape.len().saturating_sub(2));
    shape
}
