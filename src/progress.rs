//! What an operation has done so far, for whoever watches.
//!
//! An operation adds to the counters; a front end reads them when it likes. Nobody waits for anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a running operation. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    documents: AtomicU64,
    bytes: AtomicU64,
    total_documents: AtomicU64,
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
}
