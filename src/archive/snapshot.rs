//! The snapshot: the commit point of a session, one JSON object that is created once and never changed.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::counts::Counts;
use super::envelope;
use super::error::{ArchiveError, DamageKind, Result};
use super::ids::{RunId, SessionId, SnapshotId, run_name};
use super::run::RunRoot;
use super::selection::Selection;
use crate::document::{DatabaseName, DocumentKey, KeyRange, Timestamp};

/// A run's root up to this size stands in the snapshot itself.
pub(crate) const MAX_INLINE_ROOT: usize = 16 << 10;

/// What a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// A backup.
    Backup,
    /// The documents that a migration is about to change, as they were.
    BeforeImages,
}

/// How a session reads the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadMode {
    /// Whole documents.
    #[default]
    Full,
    /// Names and times, and those documents whose times differ from the parent's.
    Names,
    /// The documents that say by a field that they have changed, and names only where counts differ.
    Changed,
}

impl std::fmt::Display for ReadMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Names => "names",
            Self::Changed => "changed",
        })
    }
}

/// Whether all documents are of one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Consistency {
    /// All documents are as they were at the snapshot's read time.
    #[default]
    Consistent,
    /// The read window closed before all was read: these ranges are of other times.
    Mixed {
        /// Which range was read at which time, where it differs from the snapshot's.
        ranges: Vec<RangeTime>,
    },
}

/// A range that was read at its own time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RangeTime {
    /// The range.
    #[serde(with = "range_as_hex")]
    pub range: KeyRange,
    /// When it was read.
    #[serde(with = "rfc3339")]
    pub read_time: Timestamp,
}

/// Where a run's root is, and what it must hash to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRef {
    /// The run.
    pub id: RunId,
    /// The session that wrote it.
    pub session: SessionId,
    /// Documents in the run.
    pub puts: u64,
    /// Tombstones in the run.
    pub tombstones: u64,
    /// Bytes of the bodies of its documents.
    pub body_bytes: u64,
    /// BLAKE3 of the sealed root, in hexadecimal.
    pub root_hash: String,
    /// Bytes of the sealed root.
    pub root_len: u64,
    /// The sealed root in base64 where it is small; else it is the object [`RunRef::name`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

impl RunRef {
    /// A reference to a root, and the bytes to store under its name where it is too large to stand in the snapshot.
    pub(crate) fn new(id: RunId, session: SessionId, root: &RunRoot) -> Result<(Self, Option<Vec<u8>>)> {
        let sealed = root.encode()?;
        let inline = sealed.len() <= MAX_INLINE_ROOT;
        let reference = Self {
            id,
            session,
            puts: root.puts(),
            tombstones: root.tombstones(),
            body_bytes: root.body_bytes(),
            root_hash: blake3::hash(&sealed).to_hex().to_string(),
            root_len: sealed.len() as u64,
            root: inline.then(|| BASE64.encode(&sealed)),
        };
        Ok((reference, (!inline).then_some(sealed)))
    }

    /// The object that holds the root where the snapshot does not: `runs/<run id>-<session>`.
    pub fn name(&self) -> String {
        run_name(self.id, self.session)
    }

    /// Opens a sealed root that was fetched, or the inline one when `stored` is none.
    pub(crate) fn open(&self, stored: Option<&[u8]>) -> Result<RunRoot> {
        let name = self.name();
        let damaged = |kind, what: &str| ArchiveError::damaged(&name, kind, what);
        let decoded;
        let sealed = match (stored, &self.root) {
            (Some(stored), _) => stored,
            (None, Some(inline)) => {
                decoded = BASE64
                    .decode(inline)
                    .map_err(|_| damaged(DamageKind::Malformed, "its inline root is not base64"))?;
                &decoded
            }
            (None, None) => return Err(damaged(DamageKind::Missing, "its root is nowhere")),
        };
        if sealed.len() as u64 != self.root_len || blake3::hash(sealed).to_hex().as_str() != self.root_hash {
            return Err(damaged(
                DamageKind::Checksum,
                "it is not the run that the snapshot refers to",
            ));
        }
        let root = RunRoot::decode(&name, sealed)?;
        if (root.puts(), root.tombstones(), root.body_bytes())
            != (self.puts, self.tombstones, self.body_bytes)
        {
            return Err(damaged(
                DamageKind::Inconsistent,
                "its counts differ from the snapshot's",
            ));
        }
        Ok(root)
    }
}

/// What a session did: for people and for comparisons.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotStats {
    /// Bytes of bodies that the session took in.
    pub raw_bytes: u64,
    /// Bytes of bodies that no chunk held before.
    pub new_bytes: u64,
    /// Bytes of objects that the session added.
    pub stored_bytes: u64,
    /// Bytes of bodies whose chunk was there already.
    pub deduplicated_bytes: u64,
    /// Data chunks written.
    pub chunks_written: u64,
    /// Data chunks that were there already.
    pub chunks_reused: u64,
    /// Reads that Firestore bills for the session, as far as the client can tell.
    pub billed_reads: u64,
    /// How the database was read.
    pub read: ReadMode,
    /// Documents that the parent does not have; without a parent, all.
    pub new_documents: u64,
    /// Documents whose body or times are not as the parent has them.
    pub changed_documents: u64,
    /// Documents that only the parent has.
    pub deleted_documents: u64,
    /// Documents that are as the parent has them.
    pub unchanged_documents: u64,
    /// The longest time, in microseconds, by which the update time of a written document was behind the time that it carries in
    /// the field that tells of changes; 0 where no field was looked at.
    #[serde(skip_serializing_if = "is_zero")]
    pub largest_lag_micros: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A committed snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The session's id.
    pub id: SnapshotId,
    /// What it is for.
    pub kind: SnapshotKind,
    /// The database it is of.
    pub database: DatabaseName,
    /// The database's own identity where the server told it: a database deleted and made again under its name is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_uid: Option<String>,
    /// The moment that the documents are of.
    #[serde(with = "rfc3339")]
    pub read_time: Timestamp,
    /// Whether all are of that moment.
    pub consistency: Consistency,
    /// When the session began.
    pub started_at: DateTime<Utc>,
    /// When it committed.
    pub finished_at: DateTime<Utc>,
    /// Which documents it claims to be complete for.
    pub selection: Selection,
    /// Documents.
    pub documents: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// The stack of runs, newest first.
    pub runs: Vec<RunRef>,
    /// The snapshot that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// The snapshots whose chunks it may share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<SnapshotId>,
    /// The snapshot that it stands in for, after a compaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<SnapshotId>,
    /// Other objects that it needs: none in this version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refs: Vec<String>,
    /// The user's tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The user's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The machine it was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The version that wrote it.
    pub tool_version: String,
    /// What the session did.
    pub stats: SnapshotStats,
    /// Documents by root collection, with all below it.
    #[serde(default)]
    pub collections: Counts,
    /// Documents by collection group.
    #[serde(default)]
    pub collection_groups: Counts,
    /// Whatever the operation wants to remember.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, serde_json::Value>,
}

impl Snapshot {
    /// The last of the moments that its documents are of: the read time, unless its consistency is mixed.
    pub fn latest_read_time(&self) -> Timestamp {
        let tails = match &self.consistency {
            Consistency::Consistent => &[][..],
            Consistency::Mixed { ranges } => ranges,
        };
        let times = tails.iter().map(|tail| tail.read_time);
        times.fold(self.read_time, Timestamp::max)
    }

    /// Whether it has all of these tags. One empty tag asks for a snapshot without any, as restic means it.
    pub fn has_tags(&self, wanted: &[String]) -> bool {
        has_tags(&self.tags, wanted)
    }
}

/// Whether all wanted tags are there; one empty tag asks for none at all.
pub fn has_tags(tags: &[String], wanted: &[String]) -> bool {
    match wanted {
        [only] if only.is_empty() => tags.is_empty(),
        wanted => wanted.iter().all(|tag| tags.contains(tag)),
    }
}

/// A session that was given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AbortRecord {
    /// The session.
    pub session: SessionId,
    /// Why.
    pub reason: String,
    /// When.
    pub at: DateTime<Utc>,
    /// The snapshot that it wanted to build upon and that did not stand any more: nothing was done yet, and whoever named the
    /// session begins another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_gone: Option<SnapshotId>,
}

/// How the reason begins of a session that a sweep has given up.
pub(crate) const SILENT: &str = "it showed no sign of life for ";

impl AbortRecord {
    /// Whether a sweep has given it up for its silence. That happens to no session with a [journal](super::journal).
    pub fn is_of_silence(&self) -> bool {
        self.reason.starts_with(SILENT)
    }
}

/// How a session was decided: the body of `snapshots/<session>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The snapshot.
    Committed(Box<Snapshot>),
    /// Given up.
    Aborted(AbortRecord),
}

const KIND: &str = "snapshot";

impl Decision {
    pub(crate) fn encode(&self) -> Result<bytes::Bytes> {
        envelope::encode(KIND, self)
    }

    /// Reads `snapshots/<session>.json`; the record must be that session's.
    pub(crate) fn decode(session: SessionId, bytes: &[u8]) -> Result<Self> {
        let object = session.snapshot_name();
        let decision: Self = envelope::decode(&object, KIND, bytes)?;
        let of = match &decision {
            Self::Committed(snapshot) => snapshot.id,
            Self::Aborted(record) => record.session,
        };
        if of != session {
            return Err(ArchiveError::damaged(
                object,
                DamageKind::Inconsistent,
                format!("it is the record of {of}"),
            ));
        }
        Ok(decision)
    }
}

/// Timestamps as people read them.
pub(crate) mod rfc3339 {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        if time.to_datetime().is_none() {
            return Err(serde::ser::Error::custom("a time outside of the calendar"));
        }
        serializer.collect_str(time)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = DateTime::parse_from_rfc3339(&text).map_err(serde::de::Error::custom)?;
        Ok(Timestamp::from(time.with_timezone(&Utc)))
    }
}

/// Key ranges in JSON: `{"start": "<hex>", "end": "<hex>"}`, an open side left out.
pub(crate) mod range_as_hex {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(crate) struct HexRange {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end: Option<String>,
    }

    impl From<&KeyRange> for HexRange {
        fn from(range: &KeyRange) -> Self {
            Self {
                start: range.start.as_ref().map(hex::encode),
                end: range.end.as_ref().map(hex::encode),
            }
        }
    }

    impl TryFrom<HexRange> for KeyRange {
        type Error = hex::FromHexError;
        fn try_from(range: HexRange) -> Result<Self, Self::Error> {
            let key = |side: Option<String>| {
                side.map(|text| hex::decode(text).map(DocumentKey::from_bytes))
                    .transpose()
            };
            Ok(Self {
                start: key(range.start)?,
                end: key(range.end)?,
            })
        }
    }

    pub(crate) fn serialize<S: Serializer>(range: &KeyRange, serializer: S) -> Result<S::Ok, S::Error> {
        HexRange::from(range).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyRange, D::Error> {
        HexRange::deserialize(deserializer)?
            .try_into()
            .map_err(serde::de::Error::custom)
    }

    /// Lists of keys.
    pub(crate) mod keys {
        use super::*;

        pub(crate) fn serialize<S: Serializer>(
            keys: &[DocumentKey],
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(keys.iter().map(hex::encode))
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Vec<DocumentKey>, D::Error> {
            Vec::<String>::deserialize(deserializer)?
                .into_iter()
                .map(|key| {
                    hex::decode(key)
                        .map(DocumentKey::from_bytes)
                        .map_err(serde::de::Error::custom)
                })
                .collect()
        }
    }

    /// The same for lists.
    pub(crate) mod list {
        use super::*;

        pub(crate) fn serialize<S: Serializer>(
            ranges: &[KeyRange],
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(ranges.iter().map(HexRange::from))
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Vec<KeyRange>, D::Error> {
            Vec::<HexRange>::deserialize(deserializer)?
                .into_iter()
                .map(|range| range.try_into().map_err(serde::de::Error::custom))
                .collect()
        }
    }
}
