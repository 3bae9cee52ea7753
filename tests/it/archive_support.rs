//! What the tests of the archive share: small archives of known documents.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use std::collections::BTreeMap;

use firebank::archive::*;
use firebank::document::*;
use firebank::store::Store;
use futures::{StreamExt, TryStreamExt};

/// A document as the tests compare it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Doc {
    pub(crate) create_time: Timestamp,
    pub(crate) update_time: Timestamp,
    pub(crate) body: Vec<u8>,
}

/// Documents by key.
pub(crate) type Docs = BTreeMap<Vec<u8>, Doc>;

pub(crate) fn key(path: &str) -> Vec<u8> {
    DocumentPath::parse(path).unwrap().key().as_bytes().to_vec()
}

/// A canonical body of about this length: a map of one byte string.
pub(crate) fn body(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for (number, byte) in bytes.iter_mut().enumerate() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Half noise, half not: something is left to compress.
        *byte = if number % 2 == 0 { state as u8 } else { b'x' };
    }
    let mut body = vec![0x81, 0xa1, b'b'];
    if length < 256 {
        body.extend_from_slice(&[0xc4, length as u8]);
    } else if length < 65536 {
        body.push(0xc5);
        body.extend_from_slice(&(length as u16).to_be_bytes());
    } else {
        body.push(0xc6);
        body.extend_from_slice(&(length as u32).to_be_bytes());
    }
    body.extend_from_slice(&bytes);
    body
}

pub(crate) fn doc(seed: u64, length: usize) -> Doc {
    let seconds = 1_700_000_000 + seed as i64 % 1000;
    Doc {
        create_time: Timestamp::new(seconds, (seed % 1_000_000) as u32 * 1000),
        update_time: Timestamp::new(seconds + (seed % 3) as i64, (seed % 7) as u32 * 1000),
        body: body(seed, length),
    }
}

/// Some hundred documents in three collections, one below another's documents.
pub(crate) fn sample(count: u64) -> Docs {
    let mut docs = Docs::new();
    for number in 0..count {
        let length = 20 + (number * 37 % 300) as usize;
        let path = match number % 4 {
            0 => format!("products/p{number:05}"),
            1 => format!("products/p{:05}/reviews/r{number}", number - 1),
            2 => format!("users/{number:x}"),
            _ => format!("orders/__id{number}__"),
        };
        docs.insert(key(&path), doc(number, length));
    }
    docs
}

/// Numbers so small that a few hundred documents make many segments, frames and pages.
pub(crate) fn tiny() -> Parameters {
    Parameters {
        frame_len: 512,
        cut_target: 3000,
        cut_max: 6000,
        page_records: 16,
        ..Parameters::with_seed(0x5eed)
    }
}

pub(crate) async fn repository(parameters: Parameters) -> Repository {
    repository_in(Store::memory(), parameters).await
}

pub(crate) async fn repository_in(store: Store, parameters: Parameters) -> Repository {
    let id = RepositoryId::from_u64(0xf17e_ba4c);
    Repository::init_with(store, time(0), id, parameters)
        .await
        .unwrap()
}

pub(crate) fn time(seconds: i64) -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::from_timestamp(1_750_000_000 + seconds, 0).unwrap()
}

/// A plan to back up a whole database in ranges between these keys.
pub(crate) fn plan(boundaries: &[Vec<u8>], read_time: i64) -> Plan {
    Plan {
        kind: SnapshotKind::Backup,
        database: DatabaseName::new("demo-test", "(default)"),
        database_uid: None,
        read_time: Timestamp::new(1_750_000_000 + read_time, 0),
        started_at: time(read_time),
        selection: Selection::all(),
        parent: None,
        merges: None,
        read: ReadMode::Full,
        ranges: tile(boundaries),
        extra: BTreeMap::new(),
    }
}

pub(crate) fn tile(boundaries: &[Vec<u8>]) -> Vec<KeyRange> {
    let bound = |place: Option<usize>| Some(DocumentKey::from_bytes(boundaries.get(place?)?.clone()));
    (0..=boundaries.len())
        .map(|range| KeyRange {
            start: bound(range.checked_sub(1)),
            end: bound(Some(range)),
        })
        .collect()
}

/// Feeds a writer as an operation does: from the range's start, until it is done or nothing is left.
pub(crate) async fn feed(writer: RangeWriter, docs: &Docs) -> RangeOutput {
    try_feed(writer, docs).await.unwrap()
}

/// The same where the store may fail.
pub(crate) async fn try_feed(mut writer: RangeWriter, docs: &Docs) -> Result<RangeOutput> {
    for (key, doc) in docs {
        if !writer.reads().contains(key) {
            continue;
        }
        let document = DocumentRef {
            key,
            create_time: doc.create_time,
            update_time: doc.update_time,
            body: &doc.body,
        };
        if writer.push(document).await? == Flow::Done {
            break;
        }
    }
    writer.finish().await
}

/// What differs between a parent and what is to be written, in a part of the keys: each key with the document that is there now.
pub(crate) fn differences<'a>(
    parent: &'a Docs,
    docs: &'a Docs,
    range: &KeyRange,
) -> Vec<(&'a Vec<u8>, Option<&'a Doc>, Option<&'a Doc>)> {
    let mut keys: Vec<&Vec<u8>> = parent.keys().chain(docs.keys()).collect();
    keys.retain(|key| range.contains(key));
    keys.sort();
    keys.dedup();
    let both = |key: &'a Vec<u8>| (key, parent.get(key), docs.get(key));
    keys.into_iter().map(both).collect()
}

/// Tells a layer's writer of one document: as the parent has it, and as it is now.
pub(crate) async fn compare_one(
    writer: &mut LayerWriter,
    key: &[u8],
    before: Option<&Doc>,
    now: Option<&Doc>,
) -> Result<()> {
    let mut compared = Compared::default();
    match (before, now) {
        (_, Some(doc)) if before != now => {
            if before.is_none() {
                compared.added();
            }
            let document = DocumentRef {
                key,
                create_time: doc.create_time,
                update_time: doc.update_time,
                body: &doc.body,
            };
            writer.put(document).await?;
        }
        (_, Some(doc)) => compared.unchanged(key, doc.body.len() as u32)?,
        (_, None) => writer.delete(key).await?,
    }
    writer.note(compared);
    Ok(())
}

/// A full backup in ranges between these keys.
pub(crate) async fn back_up(repository: &Repository, options: SessionOptions, docs: &Docs) -> Snapshot {
    let session = Session::begin(repository, options).await.unwrap();
    for range in session.plan().ranges.clone() {
        feed(session.range_writer(range), docs).await;
    }
    let draft = SnapshotDraft {
        finished_at: Some(time(3600)),
        ..SnapshotDraft::default()
    };
    session.commit(draft).await.unwrap()
}

pub(crate) async fn read(repository: &Repository, snapshot: &Snapshot, range: KeyRange) -> Result<Docs> {
    let reader = repository.reader(snapshot).await?;
    let mut docs = Docs::new();
    let mut batches = reader.documents(range).boxed();
    while let Some(batch) = batches.try_next().await? {
        assert!(!batch.is_empty());
        for document in batch.iter() {
            let last = docs.last_key_value().map(|(key, _)| key.clone());
            assert!(
                last.is_none_or(|last| last[..] < *document.key),
                "documents must ascend"
            );
            let doc = Doc {
                create_time: document.create_time,
                update_time: document.update_time,
                body: document.body.to_vec(),
            };
            docs.insert(document.key.to_vec(), doc);
        }
    }
    Ok(docs)
}

pub(crate) async fn object_names(store: &Store, prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = store
        .list(prefix)
        .map_ok(|object| object.name)
        .try_collect()
        .await
        .unwrap();
    names.sort();
    names
}

/// The counts of a snapshot that holds these documents.
pub(crate) fn totals(docs: &Docs) -> Totals {
    let mut totals = Totals {
        documents: docs.len() as u64,
        ..Totals::default()
    };
    for (key, doc) in docs {
        let path = DocumentPath::from_key(key).unwrap();
        let one = Count {
            documents: 1,
            bytes: doc.body.len() as u64,
        };
        totals.body_bytes += one.bytes;
        totals
            .collections
            .entry(path.root_collection().to_owned())
            .or_default()
            .add(one);
        totals
            .collection_groups
            .entry(path.collection_group().to_owned())
            .or_default()
            .add(one);
    }
    totals
}
