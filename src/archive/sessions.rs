//! The sessions that are under way, or were left.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};

use super::checkpoint::is_of_finished_range;
use super::envelope::{self, MAX_JSON_LEN};
use super::error::Result;
use super::ids::SessionId;
use super::repository::Repository;
use super::session::Plan;
use super::sweep::session_of;
use crate::store::StoreError;

/// A session that is not decided.
#[derive(Clone, Debug)]
pub struct OpenSession {
    /// Its id, and the id of the snapshot that it may become.
    pub id: SessionId,
    /// What it set out to do.
    pub plan: Plan,
    /// The last sign of life of any of its workers, by the store's clock.
    pub last_sign: DateTime<Utc>,
    /// Ranges that are finished.
    pub finished_ranges: usize,
}

impl Repository {
    /// The sessions that are neither committed nor given up, newest read time first. Those without a plan have not done
    /// anything yet and are left out.
    pub async fn open_sessions(&self) -> Result<Vec<OpenSession>> {
        let mut seen: BTreeMap<SessionId, (DateTime<Utc>, HashSet<String>)> = BTreeMap::new();
        let mut objects = self.store().list("sessions");
        while let Some(object) = objects.try_next().await? {
            let Some(id) = session_of(&object.name) else {
                continue;
            };
            let (last_sign, finished) = seen
                .entry(id)
                .or_insert_with(|| (object.last_modified, HashSet::new()));
            *last_sign = object.last_modified.max(*last_sign);
            if is_of_finished_range(&object.name) {
                finished.insert(object.name);
            }
        }
        // After the sessions: one that is decided in between is not taken for open.
        for decided in self.recorded().await? {
            seen.remove(&decided);
        }
        let mut open: Vec<OpenSession> = futures::stream::iter(seen)
            .map(|(id, (last_sign, finished))| async move {
                let name = format!("{}/plan.json", id.folder());
                let bytes = match self.store().get_at_most(&name, MAX_JSON_LEN).await {
                    Err(StoreError::NotFound { .. }) => return Ok(None),
                    read => read?,
                };
                Ok::<_, super::error::ArchiveError>(Some(OpenSession {
                    id,
                    plan: envelope::decode(&name, "plan", &bytes)?,
                    last_sign,
                    finished_ranges: finished.len(),
                }))
            })
            .buffered(8)
            .try_filter_map(|session| std::future::ready(Ok(session)))
            .try_collect()
            .await?;
        open.sort_by_key(|session| std::cmp::Reverse((session.plan.read_time, session.id)));
        Ok(open)
    }
}
