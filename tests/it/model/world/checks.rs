//! What is looked at after every operation.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use firebank::archive::{Repository, SessionId, SnapshotId, SweepOptions};
use futures::TryStreamExt;

use super::{Allowed, Killed, World};
use crate::archive_support::object_names;
use crate::model::state::assert_holds;
use crate::support::operations::{assert_intact, documents};

/// Sessions that are neither committed nor aborted.
async fn undecided_sessions(repository: &Repository) -> Vec<SessionId> {
    let store = repository.store();
    let objects: Vec<_> = store.list("sessions").try_collect().await.unwrap();
    let sessions: BTreeSet<SessionId> = objects
        .iter()
        .filter_map(|object| {
            object
                .name
                .strip_prefix("sessions/")?
                .split_once('/')?
                .0
                .parse()
                .ok()
        })
        .collect();
    let mut undecided = Vec::new();
    for session in sessions {
        let record = format!("snapshots/{session}.json");
        if !store.exists(&record).await.unwrap() {
            undecided.push(session);
        }
    }
    undecided
}

/// When a session is given up that shows no sign of life.
fn expiry() -> TimeDelta {
    TimeDelta::from_std(SweepOptions::default().expiry).unwrap()
}

impl World {
    /// Looks at what an operation left, and checks that it is what was allowed, and that everything that stands is whole.
    pub(super) async fn settle(&mut self, allowed: Allowed) {
        let repository = self.repository().await;
        let listing = repository.snapshots().await.unwrap();
        assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
        let mut replaced = BTreeSet::new();
        for snapshot in &listing.snapshots {
            if self.recorded.contains_key(&snapshot.id) {
                continue;
            }
            let state = match snapshot.replaces {
                Some(old) if allowed.merging == Some(old) => {
                    replaced.insert(old);
                    self.tally.merged += 1;
                    self.recorded[&old].1.clone()
                }
                // The backup merged the layers of what it had just recorded.
                other => {
                    self.tally.merged += usize::from(other.is_some());
                    let is_own = other.is_none_or(|old| !self.standing.iter().any(|one| one.id == old));
                    assert!(
                        allowed.recording && is_own,
                        "a snapshot out of nowhere: {snapshot:?}"
                    );
                    // It may be that of a session which was left, and the database has changed since.
                    match self.undecided.get(&other.unwrap_or(snapshot.id)) {
                        Some(killed) => {
                            self.tally.gone_on += 1;
                            killed.state.clone()
                        }
                        None => self.state.clone(),
                    }
                }
            };
            self.tally.recorded += 1;
            self.recorded.insert(snapshot.id, (snapshot.clone(), state));
        }
        for gone in &self.standing {
            if !listing.snapshots.contains(gone) {
                let may_go = allowed.going.contains(&gone.id) || replaced.contains(&gone.id);
                assert!(may_go, "snapshot {} went away", gone.id);
                self.tally.removed += 1;
            }
        }
        self.standing = listing.snapshots;
        self.note_sessions(&repository, allowed.sweeping).await;
        self.check_what_stands(&repository).await;
    }

    async fn note_sessions(&mut self, repository: &Repository, sweeping: bool) {
        let found = undecided_sessions(repository).await;
        let before = self.undecided.len();
        let recorded: BTreeSet<SessionId> = self
            .recorded
            .values()
            .flat_map(|(snapshot, _)| [Some(snapshot.id), snapshot.replaces])
            .flatten()
            .collect();
        self.undecided.retain(|session, killed| {
            let stays = found.contains(session);
            let is_dead = self.clock - killed.at >= expiry();
            let is_recorded = recorded.contains(session);
            assert!(
                stays || is_recorded || sweeping && is_dead,
                "session {session} was given up too early"
            );
            stays
        });
        self.tally.sessions_given_up += before - self.undecided.len();
        for session in found {
            let at = self.last_sign(repository, session).await;
            let state = &self.state;
            let killed = self.undecided.entry(session).or_insert_with(|| Killed {
                at,
                state: state.clone(),
            });
            killed.at = at.max(killed.at);
        }
    }

    /// When a session was last seen alive, by the store's clock.
    async fn last_sign(&self, repository: &Repository, session: SessionId) -> TimeDelta {
        let objects = repository.store().list(&session.folder());
        let objects: Vec<_> = objects.try_collect().await.unwrap();
        let last = objects.iter().map(|object| object.last_modified).max();
        last.unwrap() - firebank::clock::now()
    }

    /// Chunks and runs that sessions wrote which may live.
    pub(super) async fn objects_of_undecided(&self) -> BTreeSet<(SessionId, String)> {
        let mut objects = self.object_names().await;
        objects.retain(|name| name.starts_with("chunks/") || name.starts_with("runs/"));
        let writer = |name: &String| name.rsplit_once('-')?.1.parse::<SessionId>().ok();
        let of_session = |name: String| Some((writer(&name)?, name));
        let objects = objects.into_iter().filter_map(of_session);
        objects
            .filter(|(session, _)| self.undecided.contains_key(session))
            .collect()
    }

    /// Every snapshot that stands is whole to the last byte, and is what it recorded.
    async fn check_what_stands(&self, repository: &Repository) {
        assert_intact(repository, self.standing.len() as u64).await;
        for snapshot in &self.standing {
            let (recorded, state) = &self.recorded[&snapshot.id];
            assert_eq!(snapshot, recorded, "a snapshot changed");
            assert_eq!(snapshot.documents, state.len() as u64);
            let what = format!("snapshot {}", snapshot.id);
            assert_holds(documents(repository, snapshot).await, state, &what).await;
        }
    }

    /// After a prune: what nothing claims is gone, and what something claims is there.
    pub(super) async fn check_nothing_else_is_there(&self) {
        let repository = self.repository().await;
        let store = repository.store();
        for (session, killed) in &self.undecided {
            assert!(
                self.clock - killed.at < expiry(),
                "{session} should have been given up"
            );
        }
        for name in object_names(store, "sessions").await {
            let is_undecided = self.undecided.keys().any(|one| name.starts_with(&one.folder()));
            assert!(is_undecided, "{name} was left");
        }
        let mut needed: BTreeSet<SnapshotId> = self.standing.iter().map(|one| one.id).collect();
        for session in self.undecided.keys() {
            needed.extend(claims(&repository, &format!("{}/pins.json", session.folder()), "pins").await);
        }
        for lease in object_names(store, "leases").await {
            needed.extend(claims(&repository, &lease, "snapshots").await);
        }
        let mut live = BTreeSet::new();
        for snapshot in needed {
            let reader = repository.reader(&self.recorded[&snapshot].0).await.unwrap();
            let objects: Vec<String> = reader.object_names().try_collect().await.unwrap();
            live.extend(objects);
        }
        let mut stored: BTreeSet<String> = object_names(store, "chunks").await.into_iter().collect();
        stored.extend(object_names(store, "runs").await);
        for session in self.undecided.keys() {
            let of_session = format!("-{session}");
            live.extend(stored.iter().filter(|name| name.ends_with(&of_session)).cloned());
        }
        assert_eq!(stored, live);
        for folder in ["leases", "probes"] {
            let old = store.list(folder).try_filter(|object| {
                let age = firebank::clock::now() + self.clock - object.last_modified;
                std::future::ready(age >= expiry())
            });
            let old: Vec<_> = old.try_collect().await.unwrap();
            assert!(old.is_empty(), "{old:?}");
        }
    }
}

/// The snapshots that a session or a lease names.
async fn claims(repository: &Repository, name: &str, field: &str) -> Vec<SnapshotId> {
    let bytes = repository.store().get_at_most(name, 1 << 20).await.unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let named = json["body"][field].as_array().unwrap();
    named
        .iter()
        .map(|id| id.as_str().unwrap().parse().unwrap())
        .collect()
}
