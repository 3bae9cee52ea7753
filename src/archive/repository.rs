//! The repository: where snapshots are found by name.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::chunk::MAX_FRAME_LEN;
use super::envelope::{self, MAX_JSON_LEN};
use super::error::{ArchiveError, DamageKind, Result};
use super::ids::{RepositoryId, SnapshotId};
use super::reader::SnapshotReader;
use super::run::MAX_CHUNK_RAW_LEN;
use super::selection::Selection;
use super::snapshot::{AbortRecord, Decision, Snapshot, SnapshotKind};
use crate::document::DatabaseName;
use crate::store::{Store, StoreError};

/// The object that makes a folder or a prefix a repository.
pub const REPOSITORY_OBJECT: &str = "repository.json";
const KIND: &str = "repository";

/// The features that this version knows. None so far.
const KNOWN_FEATURES: &[&str] = &[];

/// The numbers that a repository was made with. They never change: equal documents must give equal chunks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// Bytes of plaintext of each frame of a data chunk, the last one excepted.
    pub frame_len: u32,
    /// Bytes of bodies that a segment has on average.
    pub cut_target: u64,
    /// Bytes of bodies that a segment has at most, unless one document alone is larger.
    pub cut_max: u64,
    /// Records of an index page at most.
    pub page_records: u32,
    /// The secret that body hashes are seeded with, 16 hexadecimal digits.
    #[serde(with = "hex_u64")]
    pub hash_seed: u64,
}

impl Parameters {
    /// The usual ones, with a new secret.
    pub fn random() -> Self {
        Self::with_seed(rand::random())
    }

    /// The usual ones with this secret: for reproducible tests.
    pub fn with_seed(hash_seed: u64) -> Self {
        Self {
            frame_len: 256 << 10,
            cut_target: 8 << 20,
            cut_max: 16 << 20,
            page_records: 4096,
            hash_seed,
        }
    }

    fn check(&self) -> Result<()> {
        let possible = (64..=MAX_FRAME_LEN).contains(&self.frame_len)
            && self.cut_target >= 1
            && (1..=MAX_CHUNK_RAW_LEN / 2).contains(&self.cut_max)
            && self.cut_target <= MAX_CHUNK_RAW_LEN
            && (1..=1 << 16).contains(&self.page_records);
        if possible {
            return Ok(());
        }
        Err(ArchiveError::damaged(
            REPOSITORY_OBJECT,
            DamageKind::Malformed,
            "its parameters are impossible",
        ))
    }
}

mod hex_u64 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}

/// The features that one must know to do something with a repository.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Features {
    /// To read from it.
    #[serde(default)]
    pub read: Vec<String>,
    /// To add to it.
    #[serde(default)]
    pub write: Vec<String>,
    /// To delete from it.
    #[serde(default)]
    pub prune: Vec<String>,
}

/// The body of `repository.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepositoryConfig {
    /// The repository's id.
    pub id: RepositoryId,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Its numbers.
    pub parameters: Parameters,
    /// What one must know to use it.
    #[serde(default)]
    pub features: Features,
    /// The version that made it.
    pub tool_version: String,
}

/// An open repository. Clones are cheap and share everything.
#[derive(Clone, Debug)]
pub struct Repository {
    store: Store,
    config: Arc<RepositoryConfig>,
}

impl Repository {
    /// Makes a repository in an empty store, or beside JSON backups (`backup_*.json`).
    ///
    /// # Errors
    /// [`ArchiveError::AlreadyARepository`], [`ArchiveError::NotEmpty`], and [`StoreError::Unfit`] when the store breaks a
    /// promise that a repository rests on.
    pub async fn init(store: Store, now: DateTime<Utc>) -> Result<Self> {
        Self::init_with(store, now, RepositoryId::random(), Parameters::random()).await
    }

    /// Like [`Repository::init`], with an id and parameters of the caller's: for reproducible archives and small tests.
    pub async fn init_with(
        store: Store,
        now: DateTime<Utc>,
        id: RepositoryId,
        parameters: Parameters,
    ) -> Result<Self> {
        parameters.check()?;
        let location = store.location().to_owned();
        if store.exists(REPOSITORY_OBJECT).await? {
            return Err(ArchiveError::AlreadyARepository { location });
        }
        let mut objects = store.list("");
        while let Some(object) = objects.try_next().await? {
            let json_backup = object.name.starts_with("backup_") && object.name.ends_with(".json");
            let probe = object.name.starts_with("probes/");
            if !probe && (!json_backup || object.name.contains('/')) {
                return Err(ArchiveError::NotEmpty {
                    location,
                    found: object.name,
                });
            }
        }
        store.check_create_only().await?;
        let config = RepositoryConfig {
            id,
            created_at: now,
            parameters,
            features: Features::default(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        match store
            .put_new(REPOSITORY_OBJECT, envelope::encode(KIND, &config)?)
            .await
        {
            Ok(()) => {}
            Err(StoreError::AlreadyExists { .. }) => {
                return Err(ArchiveError::AlreadyARepository { location });
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Self {
            store,
            config: Arc::new(config),
        })
    }

    /// Opens a repository for reading; [`Session::begin`](super::Session::begin) checks what writing needs.
    ///
    /// # Errors
    /// [`ArchiveError::NotARepository`] and [`ArchiveError::Newer`].
    pub async fn open(store: Store) -> Result<Self> {
        let bytes = match store.get_at_most(REPOSITORY_OBJECT, MAX_JSON_LEN).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => {
                return Err(ArchiveError::NotARepository {
                    location: store.location().to_owned(),
                });
            }
            Err(error) => return Err(error.into()),
        };
        let config: RepositoryConfig = envelope::decode(REPOSITORY_OBJECT, KIND, &bytes)?;
        check_features("read", &config.features.read)?;
        config.parameters.check()?;
        Ok(Self {
            store,
            config: Arc::new(config),
        })
    }

    /// Fails when the repository needs a feature for writing that is not known here.
    pub fn check_writable(&self) -> Result<()> {
        check_features("write", &self.config.features.write)
    }

    /// Fails when the repository needs a feature for deleting that is not known here.
    pub fn check_prunable(&self) -> Result<()> {
        check_features("prune", &self.config.features.prune)
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.config.id
    }

    /// What `repository.json` says.
    pub fn config(&self) -> &RepositoryConfig {
        &self.config
    }

    /// The numbers that it was made with.
    pub fn parameters(&self) -> &Parameters {
        &self.config.parameters
    }

    /// Its objects.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The hash by which bodies are told apart: XXH3-64 seeded with the repository's secret. Not for integrity.
    pub fn body_hash(&self, body: &[u8]) -> u64 {
        xxh3_64_with_seed(body, self.config.parameters.hash_seed)
    }

    /// How a session was decided, `None` while it is not.
    pub async fn decision(&self, session: SnapshotId) -> Result<Option<Decision>> {
        match self
            .store
            .get_at_most(&session.snapshot_name(), MAX_JSON_LEN)
            .await
        {
            Ok(bytes) => Decision::decode(session, &bytes).map(Some),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// All snapshots, newest first.
    pub async fn snapshots(&self) -> Result<SnapshotListing> {
        let mut listing = SnapshotListing::default();
        let mut ids = Vec::new();
        let mut objects = self.store.list("snapshots");
        while let Some(object) = objects.try_next().await? {
            let name = object.name.strip_prefix("snapshots/").unwrap_or_default();
            match name.rsplit_once('.').map(|(id, kind)| (id.parse(), kind)) {
                Some((Ok(id), "json")) => ids.push(id),
                Some((Ok(id), "forgotten")) => listing.forgotten.push(id),
                // File managers leave such files in every folder that they look into.
                _ if name.starts_with('.') => {}
                _ => {
                    let what = "no snapshot has such a name";
                    let error = ArchiveError::damaged(&object.name, DamageKind::Malformed, what);
                    listing.unreadable.push((object.name, error));
                }
            }
        }
        let mut decisions = futures::stream::iter(ids)
            .map(|id| async move { (id, self.decision(id).await) })
            .buffer_unordered(16);
        while let Some((id, decision)) = decisions.next().await {
            match decision {
                // Swept between the listing and now.
                Ok(None) => {}
                Ok(Some(Decision::Aborted(record))) => listing.aborted.push(record),
                Ok(Some(Decision::Committed(snapshot))) if !listing.forgotten.contains(&id) => {
                    listing.snapshots.push(*snapshot);
                }
                Ok(Some(Decision::Committed(_))) => {}
                Err(ArchiveError::Store(error)) => return Err(error.into()),
                Err(error) => listing.unreadable.push((id.snapshot_name(), error)),
            }
        }
        listing.snapshots.sort_by_key(|snapshot| {
            std::cmp::Reverse((snapshot.read_time, snapshot.finished_at, snapshot.id))
        });
        listing.unreadable.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listing)
    }

    /// The snapshot that `wanted` names: `latest`, a full id, or the beginning of one. `latest` is the newest that passes
    /// the filter, which by default asks for a backup of the whole database; an id is never filtered.
    ///
    /// # Errors
    /// [`ArchiveError::UnknownSnapshot`] and [`ArchiveError::AmbiguousSnapshot`]. A listing with unreadable snapshots does
    /// not stop an id from being resolved, but `latest` of it would be a guess: then the error says so and lists ids.
    pub async fn resolve(&self, wanted: &str, filter: &SnapshotFilter) -> Result<Snapshot> {
        if let Ok(id) = wanted.parse::<SnapshotId>() {
            let forgotten = self.store.exists(&id.forgotten_name()).await?;
            return match self.decision(id).await? {
                Some(Decision::Committed(snapshot)) if !forgotten => Ok(*snapshot),
                Some(Decision::Committed(_)) => Err(unknown(
                    wanted,
                    "It was forgotten; its data may be gone already".into(),
                )),
                Some(Decision::Aborted(_)) => Err(unknown(wanted, "That session was aborted".into())),
                None => Err(unknown(wanted, hint(&self.snapshots().await?.snapshots))),
            };
        }
        let listing = self.snapshots().await?;
        if wanted == "latest" {
            // A stray file is no snapshot that may be newer.
            let lost = listing
                .unreadable
                .iter()
                .find(|(name, _)| SnapshotId::of_snapshot(name).is_some());
            if let Some((_, error)) = lost {
                let newest = match listing.snapshots.is_empty() {
                    true => "No other snapshot can be read".to_owned(),
                    false => hint(&listing.snapshots),
                };
                let hint = format!("{error}; so which one is the latest is not certain. {newest}");
                return Err(unknown(wanted, hint));
            }
            return match listing.snapshots.iter().find(|snapshot| filter.accepts(snapshot)) {
                Some(snapshot) => Ok(snapshot.clone()),
                None => Err(unknown(wanted, hint(&listing.snapshots))),
            };
        }
        let prefix = wanted.to_ascii_lowercase();
        let mut matching: Vec<Snapshot> = listing
            .snapshots
            .iter()
            .filter(|snapshot| !prefix.is_empty() && snapshot.id.to_string().starts_with(&prefix))
            .cloned()
            .collect();
        let unreadable = listing.unreadable.into_iter().find(|(name, _)| {
            !prefix.is_empty()
                && name
                    .strip_prefix("snapshots/")
                    .is_some_and(|id| id.starts_with(&prefix))
        });
        match matching.len() {
            0 => match unreadable {
                Some((_, error)) => Err(error),
                None => Err(unknown(wanted, hint(&listing.snapshots))),
            },
            1 => Ok(matching.remove(0)),
            _ => Err(ArchiveError::AmbiguousSnapshot {
                wanted: wanted.to_owned(),
                candidates: matching.iter().map(|snapshot| snapshot.id).collect(),
            }),
        }
    }

    /// A reader of one snapshot: fetches its run roots.
    pub async fn reader(&self, snapshot: &Snapshot) -> Result<SnapshotReader> {
        match SnapshotReader::open(self, snapshot).await {
            Err(error) => Err(self.explain(snapshot.id, error).await),
            opened => opened,
        }
    }
}

fn check_features(verb: &str, needed: &[String]) -> Result<()> {
    match needed
        .iter()
        .find(|feature| !KNOWN_FEATURES.contains(&feature.as_str()))
    {
        None => Ok(()),
        Some(feature) => Err(ArchiveError::Newer {
            object: REPOSITORY_OBJECT.to_owned(),
            what: format!("to {verb} it takes the feature `{feature}`"),
        }),
    }
}

fn unknown(wanted: &str, hint: String) -> ArchiveError {
    ArchiveError::UnknownSnapshot {
        wanted: wanted.to_owned(),
        hint,
    }
}

fn hint(snapshots: &[Snapshot]) -> String {
    if snapshots.is_empty() {
        return "The repository holds no snapshot yet; `firebank backup` takes one".to_owned();
    }
    let newest: Vec<String> = snapshots
        .iter()
        .take(5)
        .map(|snapshot| format!("{} ({}, {})", snapshot.id, snapshot.read_time, snapshot.database))
        .collect();
    format!("The newest are: {}", newest.join("; "))
}

/// What the `snapshots/` folder holds.
#[derive(Debug, Default)]
pub struct SnapshotListing {
    /// The committed ones that are not forgotten, newest read time first.
    pub snapshots: Vec<Snapshot>,
    /// Objects that could not be read, with the reason: a caller says so and does not pass them over.
    pub unreadable: Vec<(String, ArchiveError)>,
    /// Forgotten snapshots that a sweep has not removed yet.
    pub forgotten: Vec<SnapshotId>,
    /// Sessions that were given up.
    pub aborted: Vec<AbortRecord>,
}

/// Which snapshots `latest` may mean.
#[derive(Clone, Debug, Default)]
pub struct SnapshotFilter {
    /// Of this database; of any when none.
    pub database: Option<DatabaseName>,
    /// Of exactly this selection; of the whole database when none.
    pub selection: Option<Selection>,
    /// Of this kind; a backup when none.
    pub kind: Option<SnapshotKind>,
    /// With all tags of one of these lists; with any when there is none.
    pub tags: Vec<Vec<String>>,
    /// Taken by one of these machines; by any when there is none.
    pub hosts: Vec<String>,
}

impl SnapshotFilter {
    /// Whether the snapshot passes.
    pub fn accepts(&self, snapshot: &Snapshot) -> bool {
        self.database
            .as_ref()
            .is_none_or(|database| *database == snapshot.database)
            && self.kind.unwrap_or(SnapshotKind::Backup) == snapshot.kind
            && match &self.selection {
                Some(selection) => *selection == snapshot.selection,
                None => snapshot.selection.is_all(),
            }
            && (self.tags.is_empty() || self.tags.iter().any(|tags| snapshot.has_tags(tags)))
            && (self.hosts.is_empty()
                || snapshot
                    .host
                    .as_ref()
                    .is_some_and(|host| self.hosts.contains(host)))
    }
}
