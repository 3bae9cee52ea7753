//! What the conversation with the database has cost so far, readable at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;

use super::Method;

/// Counters that a [`Firestore`](super::Firestore) and its clones share.
#[derive(Debug, Default)]
pub struct RequestStats {
    /// Told of every read that is billed.
    changed: Notify,
    requests: [AtomicU64; Method::ALL.len()],
    retries: AtomicU64,
    billed_reads: AtomicU64,
    billed_writes: AtomicU64,
    billed_deletes: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    requests: [u64; Method::ALL.len()],
    /// Requests that were sent again, or resumed, after a failure.
    pub retries: u64,
    /// Reads as Firestore bills them: a document each, at least one for every query.
    pub billed_reads: u64,
    /// Writes as Firestore bills them: each that was done, or refused for a condition.
    pub billed_writes: u64,
    /// The same of deletes.
    pub billed_deletes: u64,
    /// Bytes of answers, before HTTP/2 framing and TLS.
    pub received_bytes: u64,
    /// Bytes of requests, before HTTP/2 framing and TLS.
    pub sent_bytes: u64,
}

impl RequestCounts {
    /// Requests of one method, retries included.
    pub fn requests(&self, method: Method) -> u64 {
        self.requests[method.index()]
    }

    /// What happened since an earlier moment of the same connection.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: std::array::from_fn(|index| {
                self.requests[index].saturating_sub(earlier.requests[index])
            }),
            retries: self.retries.saturating_sub(earlier.retries),
            billed_reads: self.billed_reads.saturating_sub(earlier.billed_reads),
            billed_writes: self.billed_writes.saturating_sub(earlier.billed_writes),
            billed_deletes: self.billed_deletes.saturating_sub(earlier.billed_deletes),
            received_bytes: self.received_bytes.saturating_sub(earlier.received_bytes),
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
        }
    }

    /// Requests of all methods, retries included.
    pub fn total_requests(&self) -> u64 {
        self.requests.iter().sum()
    }
}

impl RequestStats {
    /// The counters now. They are read one after the other, so they may be a request apart.
    pub fn counts(&self) -> RequestCounts {
        RequestCounts {
            requests: std::array::from_fn(|index| self.requests[index].load(Relaxed)),
            retries: self.retries.load(Relaxed),
            billed_reads: self.billed_reads.load(Relaxed),
            billed_writes: self.billed_writes.load(Relaxed),
            billed_deletes: self.billed_deletes.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
        }
    }

    pub(super) fn sent(&self, method: Method, bytes: usize) {
        self.requests[method.index()].fetch_add(1, Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(super) fn billed(&self, reads: u64) {
        self.billed_reads.fetch_add(reads, Relaxed);
        self.changed.notify_waiters();
    }

    pub(super) fn billed_write(&self, deletes: bool) {
        let counter = match deletes {
            true => &self.billed_deletes,
            false => &self.billed_writes,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Waits until so many reads were billed since the connection was made.
    pub(crate) async fn have_billed(&self, reads: u64) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before the look: what comes after it wakes.
            changed.as_mut().enable();
            if self.billed_reads.load(Relaxed) >= reads {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Relaxed);
    }
}
