//! The names of things in a repository, and of the objects that hold them.
//!
//! The writing session's id is part of every chunk's and run's object name. So a name is never used twice, and a
//! deletion never meets a new writer that is about to rely on the same content.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name that does not have the form of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not {1}")]
pub struct BadId(String, &'static str);

macro_rules! short_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// A new one, at random.
            pub fn random() -> Self {
                Self(rand::random())
            }

            /// The id with this number: for reproducible tests.
            pub const fn from_u64(number: u64) -> Self {
                Self(number)
            }

            /// Its number.
            pub const fn to_u64(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                match u64::from_str_radix(text, 16) {
                    Ok(number) if text.len() == 16 && Self(number).to_string() == text => Ok(Self(number)),
                    _ => Err(BadId(text.to_owned(), concat!($what, " (16 hexadecimal digits)"))),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match serializer.is_human_readable() {
                    true => serializer.collect_str(self),
                    false => serializer.serialize_u64(self.0),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match deserializer.is_human_readable() {
                    true => String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom),
                    false => u64::deserialize(deserializer).map(Self),
                }
            }
        }
    };
}

short_id! {
    /// A session: a backup, a compaction, a restore. The snapshot that it commits has the same id.
    SessionId, "a session's id"
}
short_id! {
    /// A run: a sorted set of records that one session wrote.
    RunId, "a run's id"
}
short_id! {
    /// A reader's lease.
    LeaseId, "a lease's id"
}
short_id! {
    /// A repository.
    RepositoryId, "a repository's id"
}

/// A snapshot: the id of the session that committed it.
pub type SnapshotId = SessionId;

impl SessionId {
    /// The commit point: `snapshots/<id>.json`.
    pub fn snapshot_name(self) -> String {
        format!("snapshots/{self}.json")
    }

    /// The session whose decision an object of this name is, if it can be one.
    pub(crate) fn of_snapshot(name: &str) -> Option<Self> {
        name.strip_prefix("snapshots/")?
            .strip_suffix(".json")?
            .parse()
            .ok()
    }

    /// The marker that retention sets: `snapshots/<id>.forgotten`.
    pub fn forgotten_name(self) -> String {
        format!("snapshots/{self}.forgotten")
    }

    /// The folder of the session's own objects, without a slash at the end.
    pub fn folder(self) -> String {
        format!("sessions/{self}")
    }
}

impl LeaseId {
    /// The object: `leases/<id>.json`.
    pub fn name(self) -> String {
        format!("leases/{self}.json")
    }

    /// The lease that an object of this name is, if it can be one.
    pub(crate) fn of_object(name: &str) -> Option<Self> {
        name.strip_prefix("leases/")?.strip_suffix(".json")?.parse().ok()
    }
}

/// What a chunk holds, by its plaintext: see [`chunk`](super::chunk). Equal plaintext cut into equal frames has an equal
/// id, whoever wrote it and however it was compressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId([u8; 32]);

impl ChunkId {
    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Evenly spread bits of the id, for picking a part of all chunks.
    pub fn low_bits(&self) -> u64 {
        self.0
            .iter()
            .take(8)
            .fold(0, |bits, &byte| bits << 8 | u64::from(byte))
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ChunkId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if hex::encode(bytes) == text => Ok(Self(bytes)),
            _ => Err(BadId(text.to_owned(), "a chunk's id (64 hexadecimal digits)")),
        }
    }
}

impl Serialize for ChunkId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => serializer.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ChunkId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return String::deserialize(deserializer)?
                .parse()
                .map_err(serde::de::Error::custom);
        }
        let bytes: serde_bytes::ByteArray<32> = Deserialize::deserialize(deserializer)?;
        Ok(Self(bytes.into_array()))
    }
}

/// A stored chunk: which content, under which name, how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Its content.
    pub id: ChunkId,
    /// The session that wrote it.
    pub session: SessionId,
    /// Bytes of plaintext.
    pub raw_len: u64,
    /// Bytes of the object.
    pub stored_len: u64,
}

impl ChunkRef {
    /// The object's name: `chunks/<aa>/<chunk id>-<session>`.
    pub fn name(&self) -> String {
        chunk_name(&self.id, self.session)
    }
}

/// `chunks/<aa>/<chunk id>-<session>`, where `aa` are the id's first two digits.
pub fn chunk_name(id: &ChunkId, session: SessionId) -> String {
    format!("chunks/{:02x}/{id}-{session}", id.0[0])
}

/// Reads a name that [`chunk_name`] wrote.
pub fn parse_chunk_name(name: &str) -> Option<(ChunkId, SessionId)> {
    let (folder, file) = name.strip_prefix("chunks/")?.split_once('/')?;
    let (id, session) = file.split_once('-')?;
    let (id, session): (ChunkId, SessionId) = (id.parse().ok()?, session.parse().ok()?);
    (chunk_name(&id, session) == name && folder.len() == 2).then_some((id, session))
}

/// `runs/<run id>-<session>`.
pub fn run_name(id: RunId, session: SessionId) -> String {
    format!("runs/{id}-{session}")
}

/// Reads a name that [`run_name`] wrote.
pub fn parse_run_name(name: &str) -> Option<(RunId, SessionId)> {
    let (id, session) = name.strip_prefix("runs/")?.split_once('-')?;
    Some((id.parse().ok()?, session.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_nothing_else_does() {
        let id = ChunkId::from_bytes([0xab; 32]);
        let session = SessionId::from_u64(0x1f);
        let name = chunk_name(&id, session);
        assert!(name.starts_with("chunks/ab/abab") && name.ends_with("-000000000000001f"));
        assert_eq!(parse_chunk_name(&name), Some((id, session)));
        for wrong in [
            name.replace("chunks/ab", "chunks/ac"),
            name.to_uppercase(),
            format!("{name}0"),
        ] {
            assert_eq!(parse_chunk_name(&wrong), None, "{wrong}");
        }
        let run = run_name(RunId::from_u64(7), session);
        assert_eq!(parse_run_name(&run), Some((RunId::from_u64(7), session)));
        assert!("00000000000000FF".parse::<SessionId>().is_err());
        assert!("+0000000000000ff".parse::<SessionId>().is_err());
        assert!("ff".parse::<SessionId>().is_err());
    }
}
