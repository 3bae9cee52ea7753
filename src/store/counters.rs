//! How often each verb was asked of a store, and how many bytes went either way.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Requests by verb since the store was opened.
///
/// A retry inside the client library is not seen; reading a listing's further pages is not counted either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RequestCounts {
    /// Overwriting puts.
    pub put: u64,
    /// Create-only puts.
    pub put_create: u64,
    /// Gets of whole objects.
    pub get: u64,
    /// Gets of a part.
    pub get_range: u64,
    /// Questions for size and time.
    pub head: u64,
    /// Listings begun.
    pub list: u64,
    /// Deletes.
    pub delete: u64,
    /// Bytes read.
    pub received_bytes: u64,
    /// Bytes written, or tried to.
    pub sent_bytes: u64,
}

macro_rules! counters {
    ($($name:ident),*) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $($name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn read(&self) -> RequestCounts {
                RequestCounts { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters!(
    put,
    put_create,
    get,
    get_range,
    head,
    list,
    delete,
    received_bytes,
    sent_bytes
);

impl Counters {
    pub(super) fn put(&self, bytes: usize) {
        self.put.fetch_add(1, Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn put_create(&self, bytes: usize) {
        self.put_create.fetch_add(1, Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn get(&self) {
        self.get.fetch_add(1, Relaxed);
    }

    pub(super) fn get_range(&self) {
        self.get_range.fetch_add(1, Relaxed);
    }

    pub(super) fn head(&self) {
        self.head.fetch_add(1, Relaxed);
    }

    pub(super) fn list(&self) {
        self.list.fetch_add(1, Relaxed);
    }

    pub(super) fn delete(&self) {
        self.delete.fetch_add(1, Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
    }
}
