//! A bound on the bytes that many tasks hold together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counted in KiB, so that any size fits a permit.
const UNIT: u64 = 1 << 10;

/// Bytes to share. Clones share the same ones.
#[derive(Clone, Debug)]
pub(crate) struct ByteBudget {
    units: Arc<Semaphore>,
    total: u32,
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Taken(
    #[expect(dead_code, reason = "held for what its drop does")] Option<OwnedSemaphorePermit>,
);

impl ByteBudget {
    pub(crate) fn new(bytes: u64) -> Self {
        let total = (bytes / UNIT).clamp(1, 1 << 24) as u32;
        Self {
            units: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    /// Waits for this many bytes; what is larger than the whole budget waits for all of it.
    pub(crate) async fn take(&self, bytes: u64) -> Taken {
        let units = bytes.div_ceil(UNIT).clamp(1, u64::from(self.total)) as u32;
        // The semaphore is never closed; if it were, going on without the bound is better than stopping.
        Taken(Arc::clone(&self.units).acquire_many_owned(units).await.ok())
    }
}
