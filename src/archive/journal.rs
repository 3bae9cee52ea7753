//! The journal of a session: what documents were before somebody changed them, durable before the change.
//!
//! Who is about to change documents appends what they are, one immutable object each time, below the session. In the end
//! all of it is sorted into the session's snapshot. A process that is killed leaves the objects, from which alone
//! everything can be put back; so a sweep does not give up a session that has some, however long it has been silent.
//!
//! The objects are numbered in the order in which they were begun. Of several records of one document the one in the
//! object with the lowest number says what there was first.

use std::sync::atomic::Ordering;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::error::{ArchiveError, DamageKind, Result};
use super::ids::SessionId;
use super::repository::Repository;
use super::sealed::{self, MAX_SEALED_LEN, SealedKind};
use super::session::Session;
use crate::document::Timestamp;

/// The zstd level: as with the bodies of a backup.
const LEVEL: i32 = 1;
/// Bytes of keys and bodies of an object, unless one record has more.
const OBJECT_LEN: usize = 16 << 20;
/// The most bytes that an object's records have when they are packed: a bound for decoders.
const MAX_RAW_LEN: u32 = 512 << 20;

/// A document before a change, and what the change makes of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalRecord {
    /// The document's key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// What it is, `None` where there is none.
    pub before: Option<JournalDocument>,
    /// BLAKE3 of the body that it is going to have, `None` where it is going to be deleted.
    pub after: Option<BodyDigest>,
    /// Whether the record before it of the same document does not count: its change was not made.
    pub supersedes: bool,
}

/// A document's times and body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalDocument {
    /// When the server says it was created.
    pub create_time: Timestamp,
    /// When the server says it was last changed.
    pub update_time: Timestamp,
    /// Its fields in canonical form.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

/// BLAKE3 of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyDigest(#[serde(with = "serde_bytes")] pub [u8; 32]);

/// An object of a journal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JournalObject {
    /// Its place in the order of the objects.
    pub number: u64,
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
}

/// An object that has been appended.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The object.
    pub object: JournalObject,
    /// Its first and its last key if the keys of its records ascend, none twice.
    pub ascending: Option<(Vec<u8>, Vec<u8>)>,
}

/// The contents of an object.
#[derive(Serialize, Deserialize)]
struct Packed {
    /// Bytes of the MessagePack: an array of records.
    raw_len: u32,
    /// The MessagePack as one zstd frame.
    #[serde(with = "serde_bytes")]
    packed: Vec<u8>,
}

/// Whether an object with this name belongs to a journal.
pub(crate) fn is_of_journal(name: &str) -> bool {
    name.contains("/journal/")
}

fn folder(session: SessionId) -> String {
    format!("{}/journal", session.folder())
}

impl Session {
    /// Keeps records, in one object or more. They are durable when this returns.
    pub async fn append_to_journal(&self, mut records: Vec<JournalRecord>) -> Result<Vec<Appended>> {
        let mut appended = Vec::new();
        while !records.is_empty() {
            let mut bytes = 0;
            let fits = records.iter().take_while(|record| {
                bytes += record.key.len() + record.before.as_ref().map_or(0, |before| before.body.len());
                bytes <= OBJECT_LEN
            });
            let count = fits.count().max(1);
            let rest = records.split_off(count.min(records.len()));
            // Numbered before anything is waited for: see the module.
            let number = self.shared.journal_objects.fetch_add(1, Ordering::Relaxed);
            let ascending = ascending(&records);
            let object = tokio::task::spawn_blocking(move || pack(&records)).await??;
            let name = format!("{}/{number:08}", folder(self.id()));
            let size = object.len() as u64;
            self.shared.repository.store().put_new(&name, object).await?;
            appended.push(Appended {
                object: JournalObject { number, name, size },
                ascending,
            });
            records = rest;
        }
        Ok(appended)
    }
}

fn ascending(records: &[JournalRecord]) -> Option<(Vec<u8>, Vec<u8>)> {
    let ascend = records.windows(2).all(|pair| pair[0].key < pair[1].key);
    let (first, last) = (records.first()?, records.last()?);
    ascend.then(|| (first.key.clone(), last.key.clone()))
}

fn pack(records: &[JournalRecord]) -> Result<Vec<u8>> {
    let raw = sealed::pack(&records)?;
    let raw_len = u32::try_from(raw.len()).ok().filter(|&len| len <= MAX_RAW_LEN);
    let packed = Packed {
        raw_len: raw_len.ok_or_else(|| ArchiveError::Misuse("a journal's record is too large".to_owned()))?,
        packed: zstd::bulk::compress(&raw, LEVEL)
            .map_err(|error| ArchiveError::Worker(format!("cannot compress: {error}")))?,
    };
    sealed::encode(SealedKind::Journal, &packed)
}

pub(super) fn unpack(name: &str, bytes: &[u8]) -> Result<Vec<JournalRecord>> {
    let Packed { raw_len, packed } = sealed::decode(name, SealedKind::Journal, bytes)?;
    let malformed = |what: String| ArchiveError::damaged(name, DamageKind::Malformed, what);
    if raw_len > MAX_RAW_LEN {
        return Err(malformed("it holds impossibly many bytes".to_owned()));
    }
    let raw = zstd::bulk::decompress(&packed, raw_len as usize)
        .map_err(|error| malformed(format!("it does not decompress: {error}")))?;
    sealed::unpack(name, &raw)
}

impl Repository {
    /// The objects of a session's journal, in their order. None: nothing was changed.
    pub async fn journal(&self, session: SessionId) -> Result<Vec<JournalObject>> {
        let mut objects = Vec::new();
        let mut listed = self.store().list(&folder(session));
        while let Some(object) = listed.try_next().await? {
            let number = object
                .name
                .rsplit_once('/')
                .and_then(|(_, number)| number.parse().ok());
            let number = number.ok_or_else(|| {
                ArchiveError::damaged(&object.name, DamageKind::Malformed, "it has no number")
            })?;
            objects.push(JournalObject {
                number,
                name: object.name,
                size: object.size,
            });
        }
        objects.sort();
        Ok(objects)
    }

    /// The records of one object, in the order in which they were given.
    pub async fn read_journal(&self, object: &JournalObject) -> Result<Vec<JournalRecord>> {
        let bytes = self.store().get_at_most(&object.name, MAX_SEALED_LEN).await?;
        let name = object.name.clone();
        tokio::task::spawn_blocking(move || unpack(&name, &bytes)).await?
    }
}
