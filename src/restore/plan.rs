//! What a restore would write.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::TryStreamExt;

use super::RestoreError;
use crate::archive::{Lease, SnapshotReader};
use crate::document::DocumentPath;
use crate::path_filter::PathFilter;

/// What a restore would write.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RestorePlan {
    /// Documents that were chosen.
    pub documents: u64,
    /// Bytes of their fields, in canonical form.
    pub bytes: u64,
    /// Documents by root collection, everything below it included.
    pub collections: BTreeMap<String, u64>,
}

impl RestorePlan {
    pub(crate) fn add(&mut self, path: &DocumentPath, bytes: u64) {
        self.documents += 1;
        self.bytes += bytes;
        match self.collections.get_mut(path.root_collection()) {
            Some(documents) => *documents += 1,
            None => drop(self.collections.insert(path.root_collection().to_owned(), 1)),
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        for (collection, documents) in other.collections {
            *self.collections.entry(collection).or_default() += documents;
        }
    }
}

/// Says what [`restore`](super::restore) would write, without reading a single body.
pub async fn plan_restore(reader: &SnapshotReader, filter: &PathFilter) -> Result<RestorePlan, RestoreError> {
    let lease = Lease::of(reader, "restore plan").await?;
    let plan = plan(reader, filter).await;
    lease.release().await;
    match plan {
        Err(RestoreError::Archive(error)) => {
            Err(reader.repository().explain(reader.id(), error).await.into())
        }
        plan => plan,
    }
}

async fn plan(reader: &SnapshotReader, filter: &PathFilter) -> Result<RestorePlan, RestoreError> {
    let mut plan = RestorePlan::default();
    for range in filter.ranges() {
        let mut records = pin!(reader.records(range.clone()));
        while let Some(batch) = records.try_next().await? {
            for record in batch.iter() {
                let path = DocumentPath::from_key(record.key)?;
                if !filter.matches(&path) {
                    continue;
                }
                plan.add(&path, u64::from(record.length()));
            }
        }
    }
    Ok(plan)
}
