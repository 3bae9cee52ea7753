//! What time it is for the store, by which alone it is decided what is old: clocks of machines do not matter.

use chrono::{DateTime, Utc};
use futures::TryStreamExt;

use super::error::{ArchiveError, Result};
use crate::store::{Store, StoreError};

/// The time of an object which is written for it.
pub(super) async fn store_time(store: &Store) -> Result<DateTime<Utc>> {
    let name = format!("probes/{:016x}", rand::random::<u64>());
    store.put_new(&name, bytes::Bytes::from_static(b"now\n")).await?;
    let now = store.head(&name).await?.last_modified;
    match store.delete(&name).await {
        // A later sweep tries again, and what matters is refused by name.
        Ok(()) | Err(StoreError::NoPermission { .. }) => Ok(now),
        Err(error) => Err(error.into()),
    }
}

/// The same; on a full disk the time of the newest object that there is. That is earlier, so less counts as old.
pub(super) async fn store_time_or_before(store: &Store) -> Result<DateTime<Utc>> {
    match store_time(store).await {
        Err(ArchiveError::Store(StoreError::Full { .. })) => {
            let mut newest = DateTime::<Utc>::MIN_UTC;
            let mut objects = store.list("");
            while let Some(object) = objects.try_next().await? {
                newest = newest.max(object.last_modified);
            }
            Ok(newest)
        }
        time => time,
    }
}
