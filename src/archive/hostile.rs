//! Bytes that nobody wrote, in every decoder of the archive: an error or a value, no panic, and no memory by a length that is only
//! claimed.
//!
//! Damage is found by checksums before a decoder looks further, so bytes by chance would never get past them. Whoever wants to do
//! harm computes them; so do these tests.

use proptest::prelude::*;

use super::chunk::{ChunkKind, FrameTable};
use super::ids::{ChunkId, SessionId};
use super::index_page::NameCursor;
use super::journal;
use super::range_writer::RangeOutput;
use super::run::{DirectoryBlock, RunRoot};
use super::sealed::{self, SealedKind};
use super::snapshot::Decision;
use crate::document::typed_json;

const OBJECT: &str = "hostile";
const CHUNK_KINDS: [ChunkKind; 4] = [
    ChunkKind::Data,
    ChunkKind::Index,
    ChunkKind::Directory,
    ChunkKind::Attachment,
];

/// MessagePack that claims four thousand million elements, entries, bytes, or letters.
const CLAIMS: [&[u8]; 6] = [
    &[0xdd, 0xff, 0xff, 0xff, 0xff],
    &[0xdf, 0xff, 0xff, 0xff, 0xff],
    &[0xc6, 0xff, 0xff, 0xff, 0xff],
    &[0xdb, 0xff, 0xff, 0xff, 0xff],
    &[0xc9, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xdd, 0x7f, 0xff, 0xff, 0xff, 0xdd, 0x7f, 0xff, 0xff, 0xff],
];

/// A sealed object with this payload, whatever it is.
fn sealed_by_hand(kind: SealedKind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"FIRESEAL".to_vec();
    bytes.extend_from_slice(&[1, kind as u8, 0, 0]);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    bytes
}

/// The front of a chunk with these rows and the checksum that they need.
fn table_by_hand(kind: ChunkKind, frames: u32, raw_len: u64, rows: &[u8]) -> Vec<u8> {
    let mut bytes = b"FIREBANK".to_vec();
    bytes.extend_from_slice(&[1, kind as u8, 0, 0]);
    bytes.extend_from_slice(&frames.to_le_bytes());
    bytes.extend_from_slice(&raw_len.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(rows);
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(&checksum.as_bytes()[..16]);
    bytes
}

/// Everything that reads bytes of the archive.
fn decode_all(bytes: &[u8]) {
    let _ = RunRoot::decode(OBJECT, bytes);
    let _ = DirectoryBlock::decode(OBJECT, bytes);
    let _ = sealed::decode::<RangeOutput>(OBJECT, SealedKind::Checkpoint, bytes);
    let _ = journal::unpack(OBJECT, bytes);
    let _ = Decision::decode(SessionId::from_u64(1), bytes);
    for kind in CHUNK_KINDS {
        let _ = FrameTable::parse(OBJECT, kind, &ChunkId::from_bytes([7; 32]), bytes);
    }
    if let Ok(mut names) = NameCursor::new(OBJECT, bytes.to_vec()) {
        while names.advance() == Some(true) {}
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = typed_json::fields_from_str(&text);
    let _ = typed_json::value_from_str(&text);
}

fn decode_sealed(payload: &[u8]) {
    for kind in [SealedKind::RunRoot, SealedKind::Checkpoint, SealedKind::Journal] {
        decode_all(&sealed_by_hand(kind, payload));
    }
    decode_all(payload);
}

/// A value's MessagePack with bytes of it replaced.
fn changed(valid: &[u8], changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for (at, byte) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    bytes
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_sealed(&bytes);
    }

    #[test]
    fn arbitrary_payloads_do_no_harm(
        claim in prop::sample::select(&CLAIMS[..]),
        before in prop::collection::vec(0x90u8..0x9f, 0..6),
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        decode_sealed(&[&before, claim, &rest[..]].concat());
    }

    /// What nearly is a checkpoint gets further.
    #[test]
    fn changed_checkpoints_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let valid = sealed::pack(&RangeOutput::default()).unwrap();
        decode_sealed(&changed(&valid, &changes));
    }

    #[test]
    fn arbitrary_frame_tables_do_no_harm(
        rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 40), 0..8),
        frames in prop_oneof![0u32..10, Just(1 << 16), any::<u32>()],
        raw_len in any::<u64>(),
    ) {
        for kind in CHUNK_KINDS {
            decode_all(&table_by_hand(kind, frames, raw_len, &rows.concat()));
            decode_all(&table_by_hand(kind, rows.len() as u32, raw_len, &rows.concat()));
        }
    }

    #[test]
    fn arbitrary_json_does_no_harm(text in r#"[\[\]{}:,"$a-z0-9.eE\-\\ ]{0,200}"#) {
        decode_all(text.as_bytes());
    }
}

/// Nothing nests deeper than the stack is.
#[test]
fn deep_nesting_does_no_harm() {
    for opening in [
        &[0x91u8][..],
        &[0x81, 0xa1, b'a'],
        b"[",
        br#"{"a":"#,
        br#"{"$map":{"a":"#,
    ] {
        decode_sealed(&opening.repeat(200_000));
    }
}

/// What is claimed and not there takes no room. Of the whole process, so with some for what other tests do meanwhile.
#[cfg(target_os = "linux")]
#[test]
fn claims_take_no_memory() {
    let peak_mib = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap() >> 10
    };
    let before = peak_mib();
    for claim in CLAIMS {
        for depth in 0..4 {
            let payload = [&[0x9f].repeat(depth), claim, &[0xdd, 0x7f, 0xff, 0xff, 0xff][..]].concat();
            decode_sealed(&payload);
        }
    }
    for frames in [1 << 16, u32::MAX] {
        decode_all(&table_by_hand(ChunkKind::Data, frames, u64::MAX, &[]));
    }
    let grown = peak_mib() - before;
    assert!(grown < 1024, "{grown} MiB for some bytes");
}
