//! Bytes that nobody wrote, in every decoder of the archive and of the documents in it: an error or a value, no panic, and no memory by
//! a length that is only claimed.
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
use crate::document::{DocumentBatch, DocumentPath, canonical, typed_json, wire};

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

/// Protobuf that claims as much, of every length-delimited field that a value or a message has: arrays, maps, texts, bytes, names.
const WIRE_CLAIMS: [&[u8]; 7] = [
    &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x2a, 0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x32, 0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x4a, 0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x8a, 0x01, 0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x92, 0x01, 0xff, 0xff, 0xff, 0xff, 0x0f],
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
    decode_document(bytes);
}

/// Everything that reads bytes of documents: the form that they are stored in, and the one that they come over the wire in.
fn decode_document(bytes: &[u8]) {
    const ROOT: &str = "projects/p/databases/(default)/documents";
    if let Ok(fields) = canonical::decode(bytes) {
        assert_eq!(canonical::encode(&fields), bytes, "equal documents, equal bytes");
    }
    let _ = canonical::validate(bytes);
    let _ = canonical::for_each_reference(bytes, |_| ());
    let _ = canonical::for_each_field_name(bytes, |_| ());
    let path = DocumentPath::parse("a/b").unwrap();
    let _ = wire::append_document_message(&path, bytes, ROOT, &mut Vec::new());
    let mut batch = DocumentBatch::default();
    let _ = wire::append_document(bytes, ROOT, &mut batch);
    let _ = wire::NameReader::new(ROOT).append(bytes, &mut batch);
    let _ = wire::query_answer(bytes);
    let _ = wire::batch_get_answer(bytes);
    let _ = wire::list_answer(bytes);
}

/// A document on the wire, with a field whose value is these bytes.
fn message_by_hand(value: &[u8]) -> Vec<u8> {
    let delimited = |tag: u8, bytes: &[u8]| [&[tag, bytes.len() as u8][..], bytes].concat();
    let entry = [delimited(0x0a, b"f"), delimited(0x12, value)].concat();
    let name = b"projects/p/databases/(default)/documents/a/b";
    [delimited(0x0a, name), delimited(0x12, &entry)].concat()
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

    /// What nearly is a document gets further than bytes by chance.
    #[test]
    fn arbitrary_values_do_no_harm(value in prop::collection::vec(any::<u8>(), 0..60)) {
        decode_document(&message_by_hand(&value));
        decode_document(&[&[0x81, 0xa1, b'f'], &value[..]].concat());
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
        decode_document(&[&[0x81, 0xa1, b'f'], claim].concat());
    }
    for claim in WIRE_CLAIMS {
        decode_document(claim);
        decode_document(&message_by_hand(claim));
    }
    for frames in [1 << 16, u32::MAX] {
        decode_all(&table_by_hand(ChunkKind::Data, frames, u64::MAX, &[]));
    }
    let grown = peak_mib() - before;
    assert!(grown < 1024, "{grown} MiB for some bytes");
}
