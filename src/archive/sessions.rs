//! The sessions that are under way, or were left.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use tracing::warn;

use super::checkpoint::is_of_finished_range;
use super::envelope::{self, MAX_JSON_LEN};
use super::error::{ArchiveError, Result};
use super::ids::SessionId;
use super::journal::is_of_journal;
use super::repository::Repository;
use super::session::Plan;
use super::stage;
use super::sweep::session_of;
use crate::document::Timestamp;
use crate::store::StoreError;

/// A session that is not decided.
#[derive(Clone, Debug)]
pub struct OpenSession {
    /// Its id, and the id of the snapshot that it may become.
    pub id: SessionId,
    /// What it set out to do.
    pub plan: Plan,
    /// The moment that what is left is read at: the plan's, unless that could not be read any more.
    pub read_time: Timestamp,
    /// The last sign of life of any of its workers, by the store's clock.
    pub last_sign: DateTime<Utc>,
    /// Ranges that are finished.
    pub finished_ranges: usize,
    /// Ranges in all, at least: one that was split counts as two, in however many parts it is.
    pub ranges: usize,
}

/// What a listing showed of a session.
struct Seen {
    last_sign: DateTime<Utc>,
    finished: usize,
    splits: usize,
    /// The number of its last tails.
    tails: u64,
}

impl Repository {
    /// The sessions that are neither committed nor given up, newest read time first. Those without a plan have not done
    /// anything yet and are left out; so are those whose plan is damaged, with a warning: nobody can go on with them.
    pub async fn open_sessions(&self) -> Result<Vec<OpenSession>> {
        let mut seen: BTreeMap<SessionId, Seen> = BTreeMap::new();
        let mut objects = self.store().list("sessions");
        while let Some(object) = objects.try_next().await? {
            let Some(id) = session_of(&object.name) else {
                continue;
            };
            let seen = seen.entry(id).or_insert_with(|| Seen {
                last_sign: object.last_modified,
                finished: 0,
                splits: 0,
                tails: 0,
            });
            seen.last_sign = object.last_modified.max(seen.last_sign);
            seen.splits += usize::from(stage::is_split(&object.name));
            seen.finished += usize::from(is_of_finished_range(&object.name));
            seen.tails = seen.tails.max(stage::number_of_tails(&object.name));
        }
        // After the sessions: one that is decided in between is not taken for open.
        for decided in self.recorded().await? {
            seen.remove(&decided);
        }
        let mut open: Vec<OpenSession> = futures::stream::iter(seen)
            .map(|(id, seen)| async move {
                match self.open_session(id, &seen).await {
                    Err(error @ (ArchiveError::Damaged(_) | ArchiveError::Newer { .. })) => {
                        warn!("session {id} is left out: {error}; `firebank clean {id}` gives it up");
                        Ok(None)
                    }
                    read => read,
                }
            })
            .buffered(8)
            .try_filter_map(|session| std::future::ready(Ok(session)))
            .try_collect()
            .await?;
        open.sort_by_key(|session| std::cmp::Reverse((session.plan.read_time, session.id)));
        Ok(open)
    }

    /// The plan of a session whose objects are still there.
    ///
    /// # Errors
    /// [`ArchiveError::Store`] with `NotFound` when it has none.
    pub async fn plan_of(&self, session: SessionId) -> Result<Plan> {
        let name = format!("{}/plan.json", session.folder());
        let bytes = self.store().get_at_most(&name, MAX_JSON_LEN).await?;
        envelope::decode(&name, "plan", &bytes)
    }

    async fn open_session(&self, id: SessionId, seen: &Seen) -> Result<Option<OpenSession>> {
        let plan = match self.plan_of(id).await {
            Err(ArchiveError::Store(StoreError::NotFound { .. })) => return Ok(None),
            read => read?,
        };
        Ok(Some(OpenSession {
            id,
            read_time: match seen.tails {
                0 => plan.read_time,
                number => stage::read_time_of_tails(self, id, number).await?,
            },
            ranges: (plan.ranges.len() + seen.splits).max(seen.finished),
            plan,
            last_sign: seen.last_sign,
            finished_ranges: seen.finished,
        }))
    }

    /// Whether somebody may give a session up: it is not decided, something of it is there, and it has changed nothing that could
    /// only be undone from it.
    pub async fn is_open_session(&self, id: SessionId) -> Result<bool> {
        // Whatever the record says, and whether it can be read.
        if self.store().exists(&id.snapshot_name()).await? {
            return Ok(false);
        }
        let mut objects = self.store().list(&id.folder());
        let mut is_open = false;
        while let Some(object) = objects.try_next().await? {
            if is_of_journal(&object.name) {
                return Ok(false);
            }
            is_open = true;
        }
        Ok(is_open)
    }
}
