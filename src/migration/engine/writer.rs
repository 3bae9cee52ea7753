//! Collects a script's writes into batches and keeps some of them under way.
//!
//! Writes to one document keep their order: those that meet in a batch become one, and a later one waits for the batch that
//! has the earlier. What is asked of a collection waits only for writes to that collection.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::change::{Base, Write};
use super::deliver::{Delivered, Delivery, Entry};
use super::failure::Failure;
use super::sink::Sink;
use crate::document::DocumentPath;
use crate::firestore::Query;
use crate::migration::RunStats;

/// Documents and bytes that complete a batch.
const BATCH_DOCUMENTS: usize = 1000;
const BATCH_BYTES: usize = 4 << 20;
/// Batches under way at once.
const BATCHES: usize = 6;
/// Documents on which a function has to run again, until somebody asks for them.
const MOST_RERUNS: usize = 100_000;

/// See the module's documentation.
pub(super) struct Writer<S> {
    delivery: Arc<Delivery<S>>,
    pending: Vec<Entry>,
    index: HashMap<DocumentPath, usize>,
    pending_bytes: usize,
    under_way: JoinSet<Result<Delivered, Failure>>,
    paths_under_way: HashSet<DocumentPath>,
    /// Collections with writes that are not done, and how many they have.
    collections: HashMap<String, usize>,
    pub(super) stats: RunStats,
    rerun: Vec<(u32, DocumentPath)>,
}

impl<S: Sink> Writer<S> {
    pub(super) fn new(delivery: Delivery<S>) -> Self {
        Self {
            delivery: Arc::new(delivery),
            pending: Vec::new(),
            index: HashMap::new(),
            pending_bytes: 0,
            under_way: JoinSet::new(),
            paths_under_way: HashSet::new(),
            collections: HashMap::new(),
            stats: RunStats::default(),
            rerun: Vec::new(),
        }
    }

    /// Whether anything is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }

    pub(super) fn delivery(&self) -> &Arc<Delivery<S>> {
        &self.delivery
    }

    /// Takes a write. Waits while too much is under way.
    pub(super) async fn add(&mut self, mut write: Write) -> Result<(), Failure> {
        self.settle_done()?;
        // What must not be made again upon another version cannot become one with what may.
        let pending = self
            .index
            .get(&write.path)
            .map(|&at| self.pending[at].on_conflict);
        if pending.is_some_and(|pending| pending != write.on_conflict || !pending.repeats()) {
            self.send().await?;
        }
        while self.paths_under_way.contains(&write.path) {
            self.settle_one().await?;
            if write.on_conflict.repeats() {
                // The script saw it before that write.
                write.base = Base::Unknown;
            }
        }
        self.pending_bytes += write.weight();
        match self.index.get(&write.path) {
            Some(&at) => {
                let entry = &mut self.pending[at];
                entry.changes.push(write.change);
                entry.site = write.site;
            }
            None => {
                let collection = write.path.collection().as_str().to_owned();
                *self.collections.entry(collection).or_default() += 1;
                self.index.insert(write.path.clone(), self.pending.len());
                self.pending.push(Entry {
                    path: write.path,
                    base: write.base,
                    changes: vec![write.change],
                    on_conflict: write.on_conflict,
                    site: write.site,
                    supersedes: false,
                    outdated: false,
                });
            }
        }
        if self.pending.len() >= BATCH_DOCUMENTS || self.pending_bytes >= BATCH_BYTES {
            self.send().await?;
        }
        Ok(())
    }

    /// Sends what is pending.
    async fn send(&mut self) -> Result<(), Failure> {
        while self.under_way.len() >= BATCHES {
            self.settle_one().await?;
        }
        let entries = std::mem::take(&mut self.pending);
        if entries.is_empty() {
            return Ok(());
        }
        self.index.clear();
        self.pending_bytes = 0;
        self.paths_under_way
            .extend(entries.iter().map(|entry| entry.path.clone()));
        let delivery = self.delivery.clone();
        self.under_way
            .spawn(async move { delivery.deliver(entries).await });
        Ok(())
    }

    /// Sends everything and waits until it is done.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        self.send().await?;
        while self.settle_one().await? {}
        Ok(())
    }

    /// Waits until a document's writes are done.
    pub(super) async fn flush_document(&mut self, path: &DocumentPath) -> Result<(), Failure> {
        if self.index.contains_key(path) {
            self.send().await?;
        }
        while self.paths_under_way.contains(path) {
            self.settle_one().await?;
        }
        Ok(())
    }

    /// Waits until the writes to what a query looks at are done.
    pub(super) async fn flush_query(&mut self, query: &Query) -> Result<(), Failure> {
        while self.concerns(query) {
            self.send().await?;
            self.settle_one().await?;
        }
        Ok(())
    }

    fn concerns(&self, query: &Query) -> bool {
        if query.all_descendants {
            return self
                .collections
                .keys()
                .any(|path| path.rsplit('/').next() == Some(&query.collection));
        }
        let path = match &query.parent {
            Some(parent) => format!("{parent}/{}", query.collection),
            None => query.collection.clone(),
        };
        self.collections.contains_key(&path)
    }

    /// Whether functions have to run again on documents.
    pub(super) fn has_rerun(&self) -> bool {
        !self.rerun.is_empty()
    }

    /// The documents on which functions have to run again.
    pub(super) fn take_rerun(&mut self) -> Vec<(u32, DocumentPath)> {
        std::mem::take(&mut self.rerun)
    }

    /// Waits for a batch to be done; false when none is under way.
    pub(super) async fn settle_one(&mut self) -> Result<bool, Failure> {
        match self.under_way.join_next().await {
            Some(done) => self.settle(done.unwrap_or(Err(Failure::Gone))).map(|()| true),
            None => Ok(false),
        }
    }

    fn settle_done(&mut self) -> Result<(), Failure> {
        while let Some(done) = self.under_way.try_join_next() {
            self.settle(done.unwrap_or(Err(Failure::Gone)))?;
        }
        Ok(())
    }

    /// Forgets what is pending or waits for its turn, and waits for what is on its way, whatever becomes of it: the next thing
    /// may be to undo it.
    pub(super) async fn wind_down(&mut self) {
        self.delivery.sink.stop();
        self.pending.clear();
        self.index.clear();
        while let Some(done) = self.under_way.join_next().await {
            if let Ok(Ok(delivered)) = done {
                self.count(&delivered);
            }
        }
    }

    fn settle(&mut self, done: Result<Delivered, Failure>) -> Result<(), Failure> {
        let delivered = done?;
        for path in &delivered.paths {
            self.paths_under_way.remove(path);
            let collection = path.collection();
            if let Some(count) = self.collections.get_mut(collection.as_str()) {
                *count -= 1;
                if *count == 0 {
                    self.collections.remove(collection.as_str());
                }
            }
        }
        self.count(&delivered);
        self.rerun.extend(delivered.rerun);
        if self.rerun.len() > MOST_RERUNS {
            return Err(Failure::TooContended);
        }
        Ok(())
    }

    fn count(&mut self, delivered: &Delivered) {
        let stats = &mut self.stats;
        stats.unchanged += delivered.unchanged;
        for (collection, done) in &delivered.collections {
            stats.created += done.created;
            stats.updated += done.updated;
            stats.deleted += done.deleted;
            let entry = stats.collections.entry(collection.clone()).or_default();
            entry.created += done.created;
            entry.updated += done.updated;
            entry.deleted += done.deleted;
        }
        for name in &delivered.created_collections {
            if let Err(at) = stats.created_collections.binary_search(name) {
                stats.created_collections.insert(at, name.clone());
            }
        }
    }
}
