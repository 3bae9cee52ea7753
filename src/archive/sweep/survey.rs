//! The listings of a sweep, in the order of the protocol.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};

use super::candidates::Candidates;
use super::reach::Reach;
use super::{SweepOptions, SweepStats};
use crate::archive::envelope::{self, MAX_JSON_LEN};
use crate::archive::error::{ArchiveError, Result};
use crate::archive::ids::{LeaseId, SessionId, SnapshotId};
use crate::archive::journal::is_of_journal;
use crate::archive::lease::{self, LeaseRecord};
use crate::archive::repository::Repository;
use crate::archive::session::{Pins, abort};
use crate::archive::session_name;
use crate::archive::snapshot::{Decision, SILENT};
use crate::archive::store_time::store_time_or_before;
use crate::store::{Store, StoreError};

/// Small objects that are fetched at a time.
const PARALLEL: usize = 16;

/// Whether to write.
pub(super) enum Mode<'a> {
    /// Give up what has expired.
    Act,
    /// Write nothing, and take these snapshots for forgotten.
    Plan {
        /// Snapshots that are to be forgotten.
        also_forgotten: &'a HashSet<SnapshotId>,
    },
}

/// What a survey found.
pub(super) struct Findings {
    /// What nothing needs.
    pub(super) candidates: Candidates,
    /// Decided sessions that still have objects.
    pub(super) finished_sessions: Vec<SessionId>,
    /// Records that were kept long enough.
    pub(super) old_records: Vec<SessionId>,
    /// Objects that say what a name of a session stands for, kept long enough.
    pub(super) old_names: Vec<String>,
    /// The store's time.
    pub(super) now: DateTime<Utc>,
    snapshots: u64,
    aborted_sessions: u64,
    expired_leases: u64,
}

impl Findings {
    pub(super) fn stats(&self) -> SweepStats {
        let (deleted_objects, deleted_bytes) = self.candidates.left();
        let (kept_objects, kept_bytes) = self.candidates.kept();
        SweepStats {
            snapshots: self.snapshots,
            deleted_objects,
            deleted_bytes,
            kept_objects,
            kept_bytes,
            aborted_sessions: self.aborted_sessions,
            finished_sessions: self.finished_sessions.len() as u64,
            expired_leases: self.expired_leases,
            deleted_records: (self.old_records.len() + self.old_names.len()) as u64,
            deleted_staging_files: 0,
        }
    }
}

/// What is named: the objects that say so, and when the last of them was written.
type Names = BTreeMap<String, (Vec<String>, DateTime<Utc>)>;

/// A session's objects, as a listing showed them.
struct SessionSeen {
    last_sign: DateTime<Utc>,
    has_plan: bool,
    pins: Result<Vec<SnapshotId>>,
}

struct Surveyor<'a> {
    repository: &'a Repository,
    options: &'a SweepOptions,
    mode: Mode<'a>,
    now: DateTime<Utc>,
    names: Names,
    aborted_sessions: u64,
    expired_leases: u64,
}

/// Looks at everything, in the order that makes the answer safe.
pub(super) async fn survey(
    repository: &Repository,
    options: &SweepOptions,
    mode: Mode<'_>,
) -> Result<Findings> {
    repository.check_prunable()?;
    let now = match mode {
        Mode::Act => store_time_or_before(repository.store()).await?,
        Mode::Plan { .. } => crate::clock::now(),
    };
    let mut surveyor = Surveyor {
        repository,
        options,
        mode,
        now,
        names: Names::new(),
        aborted_sessions: 0,
        expired_leases: 0,
    };
    let candidates = Candidates::list(repository.store()).await?;
    let writers = candidates.writers();
    let marks = surveyor.marks().await?;
    let sessions = surveyor.sessions(&marks.recorded).await?;
    let leased = surveyor.leases().await?;
    surveyor
        .follow(candidates, &writers, marks, sessions, leased)
        .await
}

/// The session that an object below `sessions/` belongs to. Names of sessions (`sessions/by-name/…`) belong to none.
pub(in crate::archive) fn session_of(name: &str) -> Option<SessionId> {
    let (session, _) = name.strip_prefix("sessions/")?.split_once('/')?;
    session.parse().ok()
}

/// A session's pins. What is wrong with them only matters while the session is undecided.
async fn pins_of(store: &Store, session: SessionId) -> Result<Result<Vec<SnapshotId>>> {
    let name = format!("{}/pins.json", session.folder());
    match store.get_at_most(&name, MAX_JSON_LEN).await {
        Ok(bytes) => Ok(envelope::decode(&name, "pins", &bytes).map(|pins: Pins| pins.pins)),
        // Deleted meanwhile, because it is decided; or only a late sign of life is there.
        Err(StoreError::NotFound { .. }) => Ok(Ok(Vec::new())),
        Err(error @ StoreError::TooLarge { .. }) => Ok(Err(error.into())),
        Err(error) => Err(error.into()),
    }
}

/// What the first look into `snapshots/` shows.
struct Marks {
    forgotten: HashMap<SnapshotId, DateTime<Utc>>,
    recorded: HashSet<SnapshotId>,
}

/// What the last look into `snapshots/` shows of one record.
struct Record {
    modified: DateTime<Utc>,
    aborted: bool,
}

impl Surveyor<'_> {
    fn is_expired(&self, last_sign: DateTime<Utc>) -> bool {
        (self.now - last_sign)
            .to_std()
            .is_ok_and(|age| age >= self.options.expiry)
    }

    /// A: the markers.
    async fn marks(&self) -> Result<Marks> {
        let mut marks = Marks {
            forgotten: HashMap::new(),
            recorded: HashSet::new(),
        };
        if let Mode::Plan { also_forgotten } = self.mode {
            marks
                .forgotten
                .extend(also_forgotten.iter().map(|id| (*id, self.now)));
        }
        let mut objects = self.repository.store().list("snapshots");
        while let Some(object) = objects.try_next().await? {
            let name = object.name.strip_prefix("snapshots/").unwrap_or_default();
            match name.rsplit_once('.').map(|(id, kind)| (id.parse(), kind)) {
                Some((Ok(id), "forgotten")) => drop(marks.forgotten.insert(id, object.last_modified)),
                Some((Ok(id), "json")) => drop(marks.recorded.insert(id)),
                _ => {}
            }
        }
        Ok(marks)
    }

    /// L, first part: the sessions. Gives those up that show no sign of life.
    async fn sessions(&mut self, recorded: &HashSet<SessionId>) -> Result<BTreeMap<SessionId, SessionSeen>> {
        let mut listed: BTreeMap<SessionId, (DateTime<Utc>, bool)> = BTreeMap::new();
        let mut journals = HashSet::new();
        let mut objects = self.repository.store().list("sessions");
        while let Some(object) = objects.try_next().await? {
            let Some(session) = session_of(&object.name) else {
                self.note_name(object.name, object.last_modified);
                continue;
            };
            let (last_sign, has_plan) = listed.entry(session).or_insert((object.last_modified, false));
            *last_sign = object.last_modified.max(*last_sign);
            *has_plan |= object.name.ends_with("/plan.json");
            if is_of_journal(&object.name) {
                journals.insert(session);
            }
        }
        let store = self.repository.store();
        let mut sessions: BTreeMap<SessionId, SessionSeen> = futures::stream::iter(listed)
            .map(|(session, (last_sign, has_plan))| async move {
                let pins = pins_of(store, session).await?;
                let seen = SessionSeen {
                    last_sign,
                    has_plan,
                    pins,
                };
                Ok::<_, ArchiveError>((session, seen))
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let expired: Vec<SessionId> = sessions
            .iter()
            .filter(|(session, seen)| !recorded.contains(session) && self.is_expired(seen.last_sign))
            .map(|(session, _)| *session)
            .collect();
        for session in expired {
            // What it changed is not undone yet, and this is all that it can be undone from.
            if journals.contains(&session) {
                tracing::warn!(
                    "session {session} is an unfinished migration and stays: `firebank migrate` undoes it"
                );
                continue;
            }
            if let Mode::Act = self.mode {
                let hours = self.options.expiry.as_secs() / 3600;
                let reason = format!("{SILENT}{hours} hours");
                match abort(self.repository, session, &reason).await {
                    Err(ArchiveError::Store(error @ StoreError::Full { .. })) => {
                        tracing::warn!("session {session} is left to the next `clean`: {error}");
                        continue;
                    }
                    given_up => given_up.map(drop)?,
                }
            } else {
                sessions.remove(&session);
            }
            self.aborted_sessions += 1;
        }
        Ok(sessions)
    }

    /// L, second part: what readers claim. Removes the leases of those that show no sign of life.
    async fn leases(&mut self) -> Result<HashSet<SnapshotId>> {
        let store = self.repository.store();
        let mut leased = HashSet::new();
        let mut objects = store.list("leases");
        while let Some(object) = objects.try_next().await? {
            if LeaseId::of_object(&object.name).is_none() {
                continue;
            }
            if self.is_expired(object.last_modified) {
                if let Mode::Act = self.mode {
                    store.delete(&object.name).await?;
                }
                self.expired_leases += 1;
                continue;
            }
            match store.get_at_most(&object.name, MAX_JSON_LEN).await {
                Ok(bytes) => {
                    let record: LeaseRecord = envelope::decode(&object.name, lease::KIND, &bytes)
                        .map_err(|error| self.cannot(&object.name, error, LEASE_ADVICE))?;
                    leased.extend(record.snapshots);
                }
                // Its reader is done.
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(leased)
    }

    /// B: the decisions, and what they and the others reach.
    async fn follow(
        self,
        candidates: Candidates,
        writers: &HashSet<SessionId>,
        marks: Marks,
        sessions: BTreeMap<SessionId, SessionSeen>,
        leased: HashSet<SnapshotId>,
    ) -> Result<Findings> {
        let repository = self.repository;
        let mut reach = Reach::new(repository, candidates);
        let mut records: HashMap<SessionId, Record> = HashMap::new();
        let mut standing: HashSet<SnapshotId> = HashSet::new();
        let mut decisions = repository
            .store()
            .list("snapshots")
            .try_filter_map(|object| {
                let session = SessionId::of_snapshot(&object.name);
                std::future::ready(Ok(session.map(|session| (session, object.last_modified))))
            })
            .map(|listed| async move {
                let (session, modified) = listed?;
                Ok::<_, ArchiveError>((session, modified, repository.decision(session).await))
            })
            .buffer_unordered(PARALLEL);
        while let Some(decided) = decisions.next().await {
            let (session, modified, decision) = decided?;
            let forgotten = marks.forgotten.contains_key(&session);
            let mut aborted = false;
            match decision {
                // Its time was up, and another sweep removed it.
                Ok(None) => continue,
                Ok(Some(Decision::Aborted(_))) => aborted = true,
                Ok(Some(Decision::Committed(snapshot))) if !forgotten => {
                    let marked = reach.mark(&snapshot).await;
                    marked.map_err(|error| self.cannot(&session.snapshot_name(), error, SNAPSHOT_ADVICE))?;
                    standing.insert(session);
                }
                Ok(Some(Decision::Committed(_))) => {}
                // Whatever it says, nothing relies on it.
                Err(error) if forgotten && !matches!(error, ArchiveError::Store(_)) => {}
                Err(error) => return Err(self.cannot(&session.snapshot_name(), error, SNAPSHOT_ADVICE)),
            }
            records.insert(session, Record { modified, aborted });
        }
        drop(decisions);

        let mut claimed = leased;
        let mut finished_sessions = Vec::new();
        for (session, seen) in &sessions {
            if records.contains_key(session) {
                finished_sessions.push(*session);
                continue;
            }
            reach.candidates.keep_session(*session);
            match &seen.pins {
                Ok(pins) => {
                    self.check_pins(*session, seen, pins, &records)?;
                    claimed.extend(pins);
                }
                Err(_) => return Err(self.unreadable_pins(*session, sessions)),
            }
        }
        for snapshot in claimed.difference(&standing) {
            let cannot = |error| self.cannot(&snapshot.snapshot_name(), error, CLAIM_ADVICE);
            if let Some(Decision::Committed(snapshot)) =
                repository.decision(*snapshot).await.map_err(cannot)?
            {
                reach.mark(&snapshot).await.map_err(cannot)?;
            }
        }
        let old_records = self.old_records(&marks, &records, &sessions, writers, &claimed);
        let old_names = self.old_names(&records, &sessions).await?;
        Ok(Findings {
            candidates: reach.candidates,
            finished_sessions,
            old_records,
            old_names,
            now: self.now,
            snapshots: standing.len() as u64,
            aborted_sessions: self.aborted_sessions,
            expired_leases: self.expired_leases,
        })
    }

    /// A session with a plan has seen its pins stand, and their records stay as long as it is undecided.
    fn check_pins(
        &self,
        session: SessionId,
        seen: &SessionSeen,
        pins: &[SnapshotId],
        records: &HashMap<SessionId, Record>,
    ) -> Result<()> {
        match pins.iter().find(|pin| !records.contains_key(pin)) {
            Some(pin) if seen.has_plan => {
                let missing = StoreError::NotFound {
                    name: pin.snapshot_name(),
                };
                Err(self.cannot(
                    &format!("{}/pins.json", session.folder()),
                    missing.into(),
                    SESSION_ADVICE,
                ))
            }
            _ => Ok(()),
        }
    }

    fn unreadable_pins(
        &self,
        session: SessionId,
        mut sessions: BTreeMap<SessionId, SessionSeen>,
    ) -> ArchiveError {
        let object = format!("{}/pins.json", session.folder());
        match sessions.remove(&session).map(|seen| seen.pins) {
            Some(Err(error)) => self.cannot(&object, error, SESSION_ADVICE),
            _ => ArchiveError::Misuse(format!("`{object}` can be read after all")),
        }
    }

    fn note_name(&mut self, object: String, written: DateTime<Utc>) {
        let Some(name) = session_name::name_of(&object).map(str::to_owned) else {
            return;
        };
        let (objects, last) = self.names.entry(name).or_insert_with(|| (Vec::new(), written));
        *last = written.max(*last);
        objects.push(object);
    }

    /// Names that were kept as long as records are, of sessions that are at their end: nobody comes late any more, and who wants the
    /// name may have it.
    async fn old_names(
        &self,
        records: &HashMap<SessionId, Record>,
        sessions: &BTreeMap<SessionId, SessionSeen>,
    ) -> Result<Vec<String>> {
        let store = self.repository.store();
        let mut old = Vec::new();
        for (objects, _) in self.names.values().filter(|(_, written)| self.is_old(*written)) {
            let mut at_their_end = true;
            for object in objects {
                let session = match store.get_at_most(object, MAX_JSON_LEN).await {
                    Ok(bytes) => session_name::decode(object, &bytes),
                    // Another sweep was faster.
                    Err(StoreError::NotFound { .. }) => continue,
                    Err(error) => return Err(error.into()),
                };
                at_their_end &= match session {
                    Ok(session) => records.contains_key(&session) || !sessions.contains_key(&session),
                    Err(error) => {
                        tracing::warn!("`{object}` stays: {error}");
                        false
                    }
                };
            }
            if at_their_end {
                old.extend(objects.iter().cloned());
            }
        }
        Ok(old)
    }

    /// Whether records are not kept any longer that were written then.
    fn is_old(&self, written: DateTime<Utc>) -> bool {
        let age = (self.now - written).to_std();
        age.is_ok_and(|age| age >= self.options.keep_records)
    }

    /// Records that were kept long enough and that nobody can need: of sessions that have left nothing else, and of forgotten
    /// snapshots that nobody claims.
    fn old_records(
        &self,
        marks: &Marks,
        records: &HashMap<SessionId, Record>,
        sessions: &BTreeMap<SessionId, SessionSeen>,
        writers: &HashSet<SessionId>,
        claimed: &HashSet<SnapshotId>,
    ) -> Vec<SessionId> {
        let aborted = records
            .iter()
            .filter(|(session, record)| {
                record.aborted && self.is_old(record.modified) && !writers.contains(session)
            })
            .map(|(session, _)| *session);
        let forgotten = marks
            .forgotten
            .iter()
            .filter(|(_, since)| self.is_old(**since))
            .map(|(snapshot, _)| *snapshot);
        let mut old: Vec<SessionId> = aborted
            .chain(forgotten)
            .filter(|session| !sessions.contains_key(session) && !claimed.contains(session))
            .collect();
        old.sort();
        old.dedup();
        old
    }

    /// Only what is wrong with the object itself: a store that fails is told as it is.
    fn cannot(&self, object: &str, error: ArchiveError, advice: &str) -> ArchiveError {
        match error {
            ArchiveError::Store(StoreError::NotFound { .. } | StoreError::TooLarge { .. })
            | ArchiveError::Damaged(_)
            | ArchiveError::Newer { .. } => ArchiveError::CannotSweep {
                object: object.to_owned(),
                source: Box::new(error),
                advice: advice.to_owned(),
            },
            error => error,
        }
    }
}

const SNAPSHOT_ADVICE: &str = "`firebank verify` shows what is damaged; when the snapshot is not to be saved, \
     `firebank clean ID` with its full id gives it up";
const CLAIM_ADVICE: &str = "The snapshot was forgotten, but a running session or reader holds it: run `clean` again when that is \
     done, or has expired";
const SESSION_ADVICE: &str = "The session is given up by itself when it has shown no sign of life for the time that \
     `--expire-after` sets";
const LEASE_ADVICE: &str = "The lease is given up by itself after the time that `--expire-after` sets";
