//! What the server was asked for: operations as Firestore bills them, requests, documents, bytes.
//!
//! The prices' rules are those of <https://firebase.google.com/docs/firestore/pricing>: a read for each
//! document that is returned or skipped by an offset, one for a query without results, one for a thousand
//! index entries that an aggregation counts, one for a request that lists collections; a write for each
//! document written, changed or not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::faults::Rpc;

/// Counters since the server's start. Subtract an earlier one to know what happened between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Billed reads.
    pub reads: u64,
    /// Billed writes.
    pub writes: u64,
    /// Billed deletes.
    pub deletes: u64,
    /// Requests, refused ones included.
    pub requests: BTreeMap<Rpc, u64>,
    /// Streams of documents that are open now.
    pub open_streams: u64,
    /// Documents sent by RunQuery, BatchGetDocuments, ListDocuments and GetDocument.
    pub documents_sent: u64,
    /// Bytes of requests, without gRPC's framing.
    pub received_bytes: u64,
    /// Bytes of answers, without gRPC's framing.
    pub sent_bytes: u64,
}

impl Usage {
    /// What happened since `earlier`.
    pub fn since(&self, earlier: &Usage) -> Usage {
        let before = |rpc: &Rpc| earlier.requests.get(rpc).copied().unwrap_or_default();
        Usage {
            reads: self.reads - earlier.reads,
            writes: self.writes - earlier.writes,
            deletes: self.deletes - earlier.deletes,
            requests: self
                .requests
                .iter()
                .map(|(rpc, count)| (*rpc, count - before(rpc)))
                .collect(),
            open_streams: self.open_streams,
            documents_sent: self.documents_sent - earlier.documents_sent,
            received_bytes: self.received_bytes - earlier.received_bytes,
            sent_bytes: self.sent_bytes - earlier.sent_bytes,
        }
    }

    /// Requests of one method.
    pub fn requests_of(&self, rpc: Rpc) -> u64 {
        self.requests.get(&rpc).copied().unwrap_or_default()
    }
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) deletes: AtomicU64,
    requests: [AtomicU64; Rpc::ALL.len()],
    pub(crate) open_streams: AtomicU64,
    pub(crate) documents_sent: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn request(&self, rpc: Rpc, bytes: usize) {
        add(&self.requests[rpc as usize], 1);
        add(&self.received_bytes, bytes as u64);
    }

    pub(crate) fn snapshot(&self) -> Usage {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let requests = Rpc::ALL
            .iter()
            .map(|&rpc| (rpc, get(&self.requests[rpc as usize])));
        Usage {
            reads: get(&self.reads),
            writes: get(&self.writes),
            deletes: get(&self.deletes),
            requests: requests.filter(|(_, count)| *count > 0).collect(),
            open_streams: get(&self.open_streams),
            documents_sent: get(&self.documents_sent),
            received_bytes: get(&self.received_bytes),
            sent_bytes: get(&self.sent_bytes),
        }
    }
}
