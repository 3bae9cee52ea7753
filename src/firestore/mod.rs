//! The database: reads it at one time, in the order of names, and writes to it in bulk.
//!
//! What a backup needs is a stream of documents that neither repeats nor skips one, whatever the network does, and
//! what a restore needs is a writer that accounts for every document. Both go below the message types of the
//! `firestore` crate, which gives the protocol and the credentials: answers stay bytes until one pass turns them into
//! canonical documents (`messages`, `scan`). The archive is unknown here; the operations
//! bring the two together.

mod aggregate;
mod bulk_write;
mod by_name;
mod call;
mod commit;
mod connect;
mod credentials;
mod cursor;
mod dead_letter;
mod error;
mod fetch;
mod groups;
mod list;
mod messages;
mod metadata;
mod method;
mod page;
mod permissions;
mod proto;
mod query;
mod query_pages;
mod read_rate;
mod read_time;
mod retry;
mod scan;
mod split;
mod stats;
mod throttle;
mod ttl;
mod walk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[cfg(test)]
pub(crate) use bulk_write::Marks;
pub use bulk_write::{
    Acknowledged, BulkWriter, Change, ConditionalWriter, ConditionalWrites, EncodedWrites, FailureSink, Mark,
    OwnedChange, Precondition, Recorded, Write, WriteEncoder, WriteFailure, WriteFence, WriteOptions,
    WriteStats,
};
pub use commit::{CommitWrite, Committed, Seen, SeenDocument};
pub use connect::{ConnectOptions, Target};
pub use credentials::Credentials;
pub use dead_letter::{DeadLetterError, DeadLetterFile, DeadLetters};
pub use error::{Error, Result};
pub use fetch::Fetched;
pub use metadata::DatabaseMetadata;
pub use method::Method;
pub use permissions::{Permission, PermissionCheck, Purpose};
pub use proto::NAME_FIELD;
pub use query::{Query, QueryFilter, QueryOperator, QueryOrder};
pub use retry::RetryPolicy;
pub use scan::ScanOptions;
pub use stats::{RequestCounts, RequestStats};
pub use throttle::{Clock, SystemClock, Throttle, ThrottleOptions, ramp_time, write_time};
pub use ttl::TtlPolicy;

use crate::document::DatabaseName;
use crate::progress::Pace;

/// A connection to one database. Clones share it.
#[derive(Clone)]
pub struct Firestore {
    inner: Arc<Inner>,
}

struct Inner {
    database: DatabaseName,
    /// `projects/…/databases/…/documents`, what document names start with.
    root: String,
    emulator: bool,
    channels: connect::Channels,
    retry: RetryPolicy,
    stall_timeout: Duration,
    stats: RequestStats,
    read_rate: read_rate::ReadRate,
    /// Whether to read collection by collection.
    walks: AtomicBool,
}

impl std::fmt::Debug for Firestore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Firestore")
            .field("database", &self.inner.database)
            .field("emulator", &self.inner.emulator)
            .finish_non_exhaustive()
    }
}

impl Firestore {
    /// Connects to a database. Fails when nobody answers at the address or when there are no usable credentials;
    /// whether the database exists and what is permitted shows with the first request.
    pub async fn connect(options: ConnectOptions) -> Result<Self> {
        let channels = connect::Channels::connect(&options).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                root: options.database.root(),
                database: options.database,
                emulator: matches!(options.target, Target::Emulator { .. }),
                channels,
                read_rate: read_rate::ReadRate::new(options.read_rate),
                retry: options.retry,
                stall_timeout: options.stall_timeout,
                stats: RequestStats::default(),
                walks: AtomicBool::new(false),
            }),
        })
    }

    /// The database.
    pub fn database(&self) -> &DatabaseName {
        &self.inner.database
    }

    /// Whether the other side is an emulator or the sandbox.
    pub fn is_emulator(&self) -> bool {
        self.inner.emulator
    }

    /// Whether databases are read collection by collection: because the server refuses queries over all collections, or
    /// because [`Firestore::walk`] said so.
    pub fn walks(&self) -> bool {
        self.inner.walks.load(Ordering::Relaxed)
    }

    /// Reads collection by collection from now on, as where the server refuses queries over all collections.
    pub fn walk(&self) {
        self.inner.walks.store(true, Ordering::Relaxed);
    }

    /// Takes note that the server refuses queries over all collections.
    fn walk_from_now_on(&self, refusal: &tonic::Status) {
        if !self.inner.walks.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the server refuses queries over all collections ({}): reading collection by collection, which takes a \
                 call and a billed read more for every document",
                refusal.message()
            );
        }
    }

    /// A way to ask how the reading fares, from anywhere and for as long as the connection is there.
    pub fn pace(&self) -> impl Fn() -> Option<Pace> + Send + Sync + 'static + use<> {
        let inner = Arc::downgrade(&self.inner);
        move || {
            inner.upgrade().map(|inner| Pace {
                limit: inner.read_rate.current(),
                retries: inner.stats.counts().retries,
                ..Pace::default()
            })
        }
    }

    /// What has been asked and received so far, by this connection and its clones.
    pub fn stats(&self) -> &RequestStats {
        &self.inner.stats
    }
}
