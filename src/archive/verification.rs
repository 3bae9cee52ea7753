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

impl Verification {
    /// Whether it has looked wherever an earlier one has.
    fn clears(&self, earlier: &Self) -> bool {
        // A part of the data may be another one.
        let looked = earlier.data_read == 0.0 || self.data_read >= 1.0;
        looked && self.all
    }
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
            Some(newest) => self.read_verification(newest).await.map(Some),
            None => Ok(None),
        }
    }

    /// The newest verification that found damage, as long as none after it has shown that it is gone. Verifications of parts of the
    /// data do not show that: the next task, or the next week, looks at another part.
    pub async fn standing_damage(&self) -> Result<Option<Verification>> {
        let mut later = Vec::new();
        for object in self.verification_objects().await?.iter().rev() {
            let found = self.read_verification(object).await?;
            if found.damage_count == 0 {
                later.push(found);
            } else {
                let gone = later.iter().any(|later| later.clears(&found));
                return Ok((!gone).then_some(found));
            }
        }
        Ok(None)
    }

    async fn read_verification(&self, object: &ObjectInfo) -> Result<Verification> {
        let bytes = self.store().get_at_most(&object.name, MAX_JSON_LEN).await?;
        envelope::decode(&object.name, KIND, &bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn verification(all: bool, data_read: f64, damage_count: u64) -> Verification {
        Verification {
            at: crate::clock::now(),
            snapshots: 3,
            all,
            data_read,
            damage_count,
            tool_version: String::new(),
        }
    }

    #[tokio::test]
    async fn damage_stands_until_somebody_has_looked_everywhere() {
        let repository = Repository::init(Store::memory(), crate::clock::now())
            .await
            .unwrap();
        let stands = async |verification: Verification| {
            // Records are told apart by the store's clock.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            repository.record_verification(&verification).await.unwrap();
            repository.standing_damage().await.unwrap().is_some()
        };
        assert!(!stands(verification(true, 1.0, 0)).await);
        // One of eight tasks has found it, another one has not.
        assert!(stands(verification(true, 0.125, 1)).await);
        assert!(stands(verification(true, 0.125, 0)).await);
        assert!(stands(verification(false, 1.0, 0)).await);
        assert!(!stands(verification(true, 1.0, 0)).await);
        // What is missing is seen without a look at the data.
        assert!(stands(verification(true, 0.0, 2)).await);
        assert!(!stands(verification(true, 0.0, 0)).await);
    }
}
