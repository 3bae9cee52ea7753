//! The form of every small binary object (run roots, checkpoints, journals): MessagePack between a magic and a hash.
//!
//! Binary because their keys are bytes and their lists long; sealed because each is trusted as a whole or not at all.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{ArchiveError, DamageKind, Result};

const MAGIC: &[u8; 8] = b"FIRESEAL";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 16;
const HASH_LEN: usize = 32;

/// How deep values nest at most: several times what any of them does. The decoder's own bound takes more stack than a thread has.
const MAX_DEPTH: usize = 64;

/// The largest sealed object that is read, in bytes.
pub(crate) const MAX_SEALED_LEN: u64 = 1 << 30;

/// What a sealed object is.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
pub(crate) enum SealedKind {
    RunRoot = 1,
    Checkpoint = 2,
    Journal = 3,
}

/// MessagePack of a value, structures as arrays of their fields in order.
pub(crate) fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    rmp_serde::to_vec(value).map_err(|error| ArchiveError::Misuse(format!("cannot encode: {error}")))
}

/// Reads what [`pack`] wrote, to the last byte.
pub(crate) fn unpack<T: DeserializeOwned>(object: &str, bytes: &[u8]) -> Result<T> {
    let mut rest = bytes;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    deserializer.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut deserializer);
    match value {
        Ok(value) if rest.is_empty() => Ok(value),
        Ok(_) => Err(ArchiveError::damaged(
            object,
            DamageKind::Malformed,
            "bytes follow its end",
        )),
        Err(error) => Err(ArchiveError::damaged(
            object,
            DamageKind::Malformed,
            format!("it does not decode: {error}"),
        )),
    }
}

/// Seals a value.
pub(crate) fn encode<T: Serialize>(kind: SealedKind, value: &T) -> Result<Vec<u8>> {
    let payload = pack(value)?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len() + HASH_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[VERSION, kind as u8, 0, 0]);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&payload);
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    Ok(bytes)
}

/// Opens a sealed value.
pub(crate) fn decode<T: DeserializeOwned>(object: &str, kind: SealedKind, bytes: &[u8]) -> Result<T> {
    let malformed = |what: &str| ArchiveError::damaged(object, DamageKind::Malformed, what);
    let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or_else(|| malformed("it is too short"))?;
    if &header[..8] != MAGIC {
        return Err(malformed("it is not a sealed object"));
    }
    if header[8] > VERSION {
        return Err(ArchiveError::Newer {
            object: object.to_owned(),
            what: format!("sealed version {}, this version knows {VERSION}", header[8]),
        });
    }
    let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    if bytes.len() != HEADER_LEN + length + HASH_LEN {
        return Err(malformed("it was cut short, or bytes follow its end"));
    }
    let (sealed, hash) = bytes.split_at(HEADER_LEN + length);
    if blake3::hash(sealed).as_bytes() != hash {
        return Err(ArchiveError::damaged(
            object,
            DamageKind::Checksum,
            "its checksum does not match: it was changed after it was written",
        ));
    }
    if header[8] != VERSION || header[9] != kind as u8 || header[10..12] != [0; 2] {
        return Err(malformed("it is a sealed object of another kind"));
    }
    unpack(object, &sealed[HEADER_LEN..])
}
