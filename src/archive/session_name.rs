//! Names of sessions: how processes that know nothing of each other come to work on one session.
//!
//! `sessions/by-name/<name>.json` says which session a name stands for. It is created once, so that whoever comes first decides, and
//! all others find the same session. It stays when the session is decided: a name is never used for another one.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::envelope::{self, MAX_JSON_LEN};
use super::error::{ArchiveError, Result};
use super::ids::{SessionId, SnapshotId};
use super::repository::Repository;
use super::session::Pins;
use super::snapshot::Decision;
use crate::clock;
use crate::store::StoreError;

/// The longest name.
const MAX_NAME_LEN: usize = 128;
/// How long after it was named a session can still be begun. Much later, that there is nothing of it means that there was.
const BEGIN_WITHIN: TimeDelta = TimeDelta::days(1);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Named {
    session: SessionId,
    named_at: DateTime<Utc>,
}

/// What there is of the session that a name stands for.
#[derive(Clone, Debug)]
pub enum NamedSession {
    /// Nobody has begun it, or not got as far as to pin.
    New(SessionId),
    /// It has pins, and no plan.
    Pinned(SessionId, Vec<SnapshotId>),
    /// It is under way: take part in it.
    Planned(SessionId),
    /// It has come to its end.
    Decided(SessionId, Box<Decision>),
}

impl Repository {
    /// The session that a name stands for: from now on, where it did not stand for any.
    ///
    /// # Errors
    /// [`ArchiveError::Misuse`] when the name is none: letters, digits, dots, hyphens and underscores, 128 at most, a letter or
    /// a digit first.
    pub async fn session_named(&self, name: &str) -> Result<NamedSession> {
        let is_word = |character: char| character.is_ascii_alphanumeric() || ".-_".contains(character);
        let is_name = name.len() <= MAX_NAME_LEN
            && name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name.chars().all(is_word);
        if !is_name {
            return Err(ArchiveError::Misuse(format!(
                "`{name}` cannot name a session: take letters, digits, `.`, `-` and `_`, {MAX_NAME_LEN} at most, a letter or a \
                 digit first"
            )));
        }
        let object = format!("sessions/by-name/{name}.json");
        let mut named = Named {
            session: SessionId::random(),
            named_at: clock::now(),
        };
        match self
            .store()
            .put_new(&object, envelope::encode("name", &named)?)
            .await
        {
            Ok(()) => return Ok(NamedSession::New(named.session)),
            Err(StoreError::AlreadyExists { .. }) => {
                let bytes = self.store().get_at_most(&object, MAX_JSON_LEN).await?;
                named = envelope::decode(&object, "name", &bytes)?;
            }
            Err(error) => return Err(error.into()),
        }
        let id = named.session;
        if let Some(decision) = self.decision(id).await? {
            return Ok(NamedSession::Decided(id, Box::new(decision)));
        }
        if self.store().exists(&format!("{}/plan.json", id.folder())).await? {
            return Ok(NamedSession::Planned(id));
        }
        let pins_name = format!("{}/pins.json", id.folder());
        match self.store().get_at_most(&pins_name, MAX_JSON_LEN).await {
            Ok(bytes) => {
                let pins: Pins = envelope::decode(&pins_name, "pins", &bytes)?;
                Ok(NamedSession::Pinned(id, pins.pins))
            }
            Err(StoreError::NotFound { .. }) if clock::now() - named.named_at < BEGIN_WITHIN => {
                Ok(NamedSession::New(id))
            }
            Err(StoreError::NotFound { .. }) => Err(ArchiveError::Aborted {
                session: id,
                reason: format!(
                    ": `{name}` was named on {}, and nothing is left of it",
                    named.named_at
                ),
            }),
            Err(error) => Err(error.into()),
        }
    }
}
