//! The form of every JSON object in a repository: `{"firebank": kind, "format": 1, "checksum": …, "body": {…}}`.
//!
//! People read and mail these objects, and a flipped digit in a read time must be noticed. The checksum is BLAKE3 of the
//! exact text of the body, so that nothing depends on how a JSON library writes numbers.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::{ArchiveError, DamageKind, Result};

/// The version of the repository format that this crate writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The largest JSON object that is read: a snapshot with thousands of layers and collections stays far below.
pub const MAX_JSON_LEN: u64 = 64 << 20;

#[derive(Serialize)]
struct Written<'a> {
    firebank: &'a str,
    format: u32,
    checksum: String,
    body: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read<'a> {
    firebank: String,
    format: u32,
    checksum: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Only what tells a newer format: its envelope may have other fields.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// Wraps a body.
pub fn encode<T: Serialize>(kind: &str, body: &T) -> Result<Bytes> {
    let unwritable =
        |error: serde_json::Error| ArchiveError::Misuse(format!("cannot write a {kind}: {error}"));
    let text = serde_json::to_string_pretty(body).map_err(unwritable)?;
    let checksum = blake3::hash(text.as_bytes()).to_hex().to_string();
    let mut bytes = serde_json::to_vec_pretty(&Written {
        firebank: kind,
        format: FORMAT_VERSION,
        checksum,
        body: &RawValue::from_string(text).map_err(unwritable)?,
    })
    .map_err(unwritable)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// Reads a body back; `object` is what messages call it.
pub fn decode<T: DeserializeOwned>(object: &str, kind: &str, bytes: &[u8]) -> Result<T> {
    let malformed = |what: String| ArchiveError::damaged(object, DamageKind::Malformed, what);
    let envelope: Read<'_> = match serde_json::from_slice(bytes) {
        Ok(envelope) => envelope,
        Err(error) => {
            return Err(match serde_json::from_slice::<Version>(bytes) {
                Ok(Version { format }) if format > FORMAT_VERSION => newer(object, format),
                _ => malformed(format!("not a {kind}: {error}")),
            });
        }
    };
    if envelope.format > FORMAT_VERSION {
        return Err(newer(object, envelope.format));
    }
    if envelope.format != FORMAT_VERSION || envelope.firebank != kind {
        return Err(malformed(format!(
            "a {} of format {} where a {kind} of format {FORMAT_VERSION} belongs",
            envelope.firebank, envelope.format
        )));
    }
    let text = envelope.body.get();
    if blake3::hash(text.as_bytes()).to_hex().as_str() != envelope.checksum {
        return Err(ArchiveError::damaged(
            object,
            DamageKind::Checksum,
            "its checksum does not match: it was changed after it was written",
        ));
    }
    serde_json::from_str(text).map_err(|error| malformed(format!("not a {kind}: {error}")))
}

fn newer(object: &str, format: u32) -> ArchiveError {
    ArchiveError::Newer {
        object: object.to_owned(),
        what: format!("format {format}, this version knows {FORMAT_VERSION}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn any_flipped_bit_is_noticed_or_harmless() {
        let body = BTreeMap::from([("read_time", "2025-06-29T12:00:00Z"), ("z", "ü")]);
        let bytes = encode("snapshot", &body).unwrap();
        let read: BTreeMap<String, String> = decode("x", "snapshot", &bytes).unwrap();
        assert_eq!(read["read_time"], "2025-06-29T12:00:00Z");
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.to_vec();
                damaged[position] ^= 1 << bit;
                if let Ok(damaged) = decode::<BTreeMap<String, String>>("x", "snapshot", &damaged) {
                    assert_eq!(damaged, read);
                }
            }
            if let Ok(cut) = decode::<BTreeMap<String, String>>("x", "snapshot", &bytes[..position]) {
                assert!(position == bytes.len() - 1 && cut == read);
            }
        }
    }

    #[test]
    fn a_newer_format_is_called_newer_whatever_else_it_has() {
        let newer = br#"{"firebank": "snapshot", "format": 2, "sealed": true}"#;
        let error = decode::<BTreeMap<String, String>>("x", "snapshot", newer).unwrap_err();
        assert!(matches!(error, ArchiveError::Newer { .. }), "{error:?}");
    }
}
