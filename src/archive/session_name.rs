//! Names of sessions: how processes that know nothing of each other come to work on one session.
//!
//! `sessions/by-name/<name>.json` says which session a name stands for. It is created once, so that whoever comes first decides, and
//! all others find the same session. It stays when the session is decided, for as long as records of sessions that were given up
//! do: a name is not used for another one.
//!
//! Only where the session came to nothing before it had a plan, because what it was to build upon was forgotten in the same moment,
//! another takes its place: `sessions/by-name/<name>@2.json`, and so on. Whoever begins it is not to blame, and has done nothing yet.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::envelope::{self, MAX_JSON_LEN};
use super::error::{ArchiveError, Result};
use super::ids::{SessionId, SnapshotId};
use super::repository::Repository;
use super::session::{Pins, abort_without_pins};
use super::snapshot::Decision;
use super::store_time::store_time;
use crate::clock;
use crate::store::StoreError;

/// The longest name.
const MAX_NAME_LEN: usize = 128;
/// How long after it was named a session can still be begun, by the store's times. Much later, that there is nothing of it means
/// that there was.
const BEGIN_WITHIN: TimeDelta = TimeDelta::days(1);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Named {
    pub(super) session: SessionId,
    /// For people.
    named_at: DateTime<Utc>,
}

/// The folder of all names.
pub(super) const FOLDER: &str = "sessions/by-name";

/// Where it is written which session a name stands for, for the `nth` time.
fn object_of(name: &str, nth: u32) -> String {
    match nth {
        1 => format!("{FOLDER}/{name}.json"),
        nth => format!("{FOLDER}/{name}@{nth}.json"),
    }
}

/// The name that an object is about.
pub(super) fn name_of(object: &str) -> Option<&str> {
    let name = object
        .strip_prefix(FOLDER)?
        .strip_prefix('/')?
        .strip_suffix(".json")?;
    Some(name.split_once('@').map_or(name, |(name, _)| name))
}

/// Which session a name stands for, by such an object.
pub(super) fn decode(object: &str, bytes: &[u8]) -> Result<SessionId> {
    let named: Named = envelope::decode(object, "name", bytes)?;
    Ok(named.session)
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
        let mut nth = 1;
        loop {
            match self.nth_session_named(name, nth).await? {
                NamedSession::Decided(_, decision) if lost_a_pin(&decision) => nth += 1,
                // Who pinned these has died, or is about to find out.
                NamedSession::Pinned(id, pins) if abort_without_pins(self, id, &pins).await?.is_some() => {}
                named => return Ok(named),
            }
        }
    }

    async fn nth_session_named(&self, name: &str, nth: u32) -> Result<NamedSession> {
        let object = object_of(name, nth);
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
            Err(StoreError::NotFound { .. }) => {
                let since = self.store().head(&object).await?.last_modified;
                if store_time(self.store()).await? - since < BEGIN_WITHIN {
                    return Ok(NamedSession::New(id));
                }
                Err(ArchiveError::Aborted {
                    session: id,
                    reason: format!(": `{name}` was named on {since}, and nothing is left of it"),
                })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the session came to nothing because a snapshot that it was to build upon was forgotten.
fn lost_a_pin(decision: &Decision) -> bool {
    matches!(decision, Decision::Aborted(record) if record.pin_gone.is_some())
}
