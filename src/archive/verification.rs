//! When the repository was verified last, and what came of it: for whoever looks at its state.
//!
//! A verification reads only. Where it may also write it leaves a record; nothing depends on it.

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::envelope::{self, MAX_JSON_LEN};
use super::error::Result;
use super::repository::Repository;
use crate::store::{ObjectInfo, StoreError};

const FOLDER: &str = "verifications";
const KIND: &str = "verification";
/// Records that are left when old ones are removed.
const KEPT: usize = 20;

/// A verification that was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// Snapshots that it checked.
    pub snapshots: u64,
    /// Whether it was of all snapshots.
    pub all: bool,
    /// The share of the data that was read and hashed, from 0 to 1.
    pub data_read: f64,
    /// Places that are damaged.
    pub damage_count: u64,
    /// The version that did it.
    pub tool_version: String,
}

impl Repository {
    /// Leaves a record of a verification. Says whether it may: who only reads may not.
    pub async fn record_verification(&self, verification: &Verification) -> Result<bool> {
        let name = format!("{FOLDER}/{:016x}.json", rand::random::<u64>());
        let written = self.store().put_new(&name, envelope::encode(KIND, verification)?);
        match written.await {
            Ok(()) => Ok(true),
            Err(StoreError::NoPermission { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The newest record of a verification, by the store's clock.
    pub async fn last_verification(&self) -> Result<Option<Verification>> {
        match self.verification_objects().await?.last() {
            Some(newest) => {
                let bytes = self.store().get_at_most(&newest.name, MAX_JSON_LEN).await?;
                envelope::decode(&newest.name, KIND, &bytes).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Removes all records but the newest twenty.
    pub async fn remove_old_verifications(&self) -> Result<()> {
        let mut objects = self.verification_objects().await?;
        objects.truncate(objects.len().saturating_sub(KEPT));
        for object in objects {
            self.store().delete(&object.name).await?;
        }
        Ok(())
    }

    /// The records, oldest first.
    async fn verification_objects(&self) -> Result<Vec<ObjectInfo>> {
        let mut objects: Vec<ObjectInfo> = self.store().list(FOLDER).try_collect().await?;
        objects.sort_by(|a, b| (a.last_modified, &a.name).cmp(&(b.last_modified, &b.name)));
        Ok(objects)
    }
}
