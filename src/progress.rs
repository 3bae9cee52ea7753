//! What an operation has done so far, for whoever watches.
//!
//! An operation adds to the counters; a front end reads them when it likes. Nobody waits for anybody.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Counters of a running operation. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    documents: AtomicU64,
    bytes: AtomicU64,
    total_documents: AtomicU64,
    pace: Mutex<Option<PaceSource>>,
}

/// Asks whoever talks to the database.
type PaceSource = Box<dyn Fn() -> Option<Pace> + Send + Sync>;

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters")
            .field("documents", &self.documents)
            .field("bytes", &self.bytes)
            .field("total_documents", &self.total_documents)
            .finish_non_exhaustive()
    }
}

/// How the conversation with the database goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Writes a second that are let through at the moment, or documents that are read where nothing is written; `None` without a
    /// limit.
    pub limit: Option<f64>,
    /// What was sent again so far: requests that read, single writes.
    pub retries: u64,
    /// Writes that the database has answered for good. A restore tells of its documents in large steps, as
    /// their order demands; this counts every one of them.
    pub settled: u64,
}

impl Progress {
    /// All zero, the total unknown.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds documents that are done, and their bytes.
    pub fn add(&self, documents: u64, bytes: u64) {
        self.counters.documents.fetch_add(documents, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Says how many documents there will be.
    pub fn set_total_documents(&self, documents: u64) {
        self.counters.total_documents.store(documents, Ordering::Relaxed);
    }

    /// Says where the pace can be asked for from now on. What is given must be quick, and answers `None` once
    /// there is nothing to tell any more.
    pub fn watch(&self, pace: impl Fn() -> Option<Pace> + Send + Sync + 'static) {
        *self.counters.pace.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(pace));
    }

    /// Documents done.
    pub fn documents(&self) -> u64 {
        self.counters.documents.load(Ordering::Relaxed)
    }

    /// Bytes done.
    pub fn bytes(&self) -> u64 {
        self.counters.bytes.load(Ordering::Relaxed)
    }

    /// How many documents there will be, `None` while nobody knows.
    pub fn total_documents(&self) -> Option<u64> {
        Some(self.counters.total_documents.load(Ordering::Relaxed)).filter(|&total| total > 0)
    }

    /// How the conversation with the database goes, `None` where nobody can say.
    pub fn pace(&self) -> Option<Pace> {
        let pace = self.counters.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.as_ref().and_then(|pace| pace())
    }
}
