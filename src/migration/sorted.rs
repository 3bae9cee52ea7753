//! A journal in the order of keys, one image a document: an external sort in bounded memory.
//!
//! The journal is in the order in which the documents were written, which can be any, and a document that was written twice is
//! in it twice. Parts of it are sorted in memory; more than one part goes to temporary files, which are merged. What a
//! document was *first* is what counts, and what its last two writes made of it: those are all that a killed migration can
//! have left.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use tokio::sync::mpsc;

use super::{BodyHash, MigrationError};
use crate::archive::{JournalDocument, JournalRecord, Repository, SessionId};

/// Bytes of records that are sorted in memory.
const PART_LEN: usize = 32 << 20;
/// Sorted files that are merged at a time: each takes about a megabyte of memory.
const FAN_IN: usize = 32;
/// What a record takes beside its key and body, about.
const RECORD_LEN: usize = 160;
/// Images and bytes of bodies that are handed on together.
const BATCH_IMAGES: usize = 300;
const BATCH_LEN: usize = 3 << 20;
/// Batches that wait for their reader.
const WAITING_BATCHES: usize = 2;
/// The zstd level of temporary files.
const LEVEL: i32 = 1;

/// A document before a migration, and what the migration made of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Image {
    pub(super) key: Vec<u8>,
    /// What it was, `None` where there was none.
    pub(super) before: Option<JournalDocument>,
    /// What the last writes were to make of it, the last one last; `None` for a deletion. One or two.
    pub(super) after: Vec<Option<BodyHash>>,
    /// Whether somebody else changed it between two writes of the migration.
    pub(super) disturbed: bool,
}

impl Image {
    /// The image of a document that has one record.
    pub(super) fn of(record: JournalRecord) -> Self {
        Self {
            key: record.key,
            before: record.before,
            after: vec![record.after.map(|after| BodyHash(after.0))],
            disturbed: false,
        }
    }

    pub(super) fn before_hash(&self) -> Option<BodyHash> {
        hash(self.before.as_ref())
    }

    fn len(&self) -> usize {
        self.key.len() + self.before.as_ref().map_or(0, |before| before.body.len())
    }
}

fn hash(document: Option<&JournalDocument>) -> Option<BodyHash> {
    document.map(|document| BodyHash::of(&document.body))
}

/// Images that follow each other by key.
pub(super) type ImageBatch = Vec<Image>;

/// A record with its place in the journal.
type Placed = (JournalRecord, (u64, u64));

/// The images of a session's journal, ascending by key, in batches of a few megabytes.
pub(super) async fn sorted_images(
    repository: &Repository,
    session: SessionId,
) -> Result<mpsc::Receiver<Result<ImageBatch, MigrationError>>, MigrationError> {
    let mut parts: Vec<File> = Vec::new();
    let mut open: Vec<Placed> = Vec::new();
    let mut bytes = 0;
    for object in repository.journal(session).await? {
        for (at, record) in repository.read_journal(&object).await?.into_iter().enumerate() {
            bytes += RECORD_LEN + record.key.len() + record.before.as_ref().map_or(0, |doc| doc.body.len());
            open.push((record, (object.number, at as u64)));
        }
        if bytes >= PART_LEN {
            bytes = 0;
            let part = std::mem::take(&mut open);
            parts.push(blocking(move || write_part(sorted(part).into_iter().map(Ok))).await?);
        }
    }
    while parts.len() > FAN_IN {
        let rest = parts.split_off(FAN_IN);
        let merged = blocking(move || write_part(Merge::new(parts, Vec::new())?)).await?;
        // The oldest first, so that each record is copied as seldom as any.
        parts = rest;
        parts.push(merged);
    }
    let (sender, receiver) = mpsc::channel(WAITING_BATCHES);
    tokio::task::spawn_blocking(move || {
        let merged = Merge::new(parts, sorted(open)).map_err(MigrationError::from);
        let sent = merged.and_then(|merged| send_images(merged, &sender));
        if let Err(error) = sent {
            // Nobody to tell when the reader has stopped.
            let _ = sender.blocking_send(Err(error));
        }
    });
    Ok(receiver)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, MigrationError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(io::Error::other)??)
}

fn sorted(mut part: Vec<Placed>) -> Vec<Placed> {
    part.sort_by(|(a, place_a), (b, place_b)| (&a.key, place_a).cmp(&(&b.key, place_b)));
    part
}

/// Writes sorted records to a temporary file that goes away with its last handle.
fn write_part(records: impl Iterator<Item = io::Result<Placed>>) -> io::Result<File> {
    let file = tempfile::tempfile()?;
    let mut out = BufWriter::new(zstd::stream::write::Encoder::new(file, LEVEL)?);
    for placed in records {
        rmp_serde::encode::write(&mut out, &placed?).map_err(io::Error::other)?;
    }
    out.flush()?;
    let mut file = out
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .finish()?;
    file.rewind()?;
    Ok(file)
}

/// Sorted records, read one after the other.
enum Source {
    File(BufReader<zstd::stream::read::Decoder<'static, BufReader<File>>>),
    Memory(std::vec::IntoIter<Placed>),
}

impl Source {
    fn next(&mut self) -> io::Result<Option<Placed>> {
        match self {
            Self::Memory(records) => Ok(records.next()),
            Self::File(file) => {
                if io::BufRead::fill_buf(file)?.is_empty() {
                    return Ok(None);
                }
                let reader: &mut dyn Read = file;
                rmp_serde::decode::from_read(reader)
                    .map(Some)
                    .map_err(io::Error::other)
            }
        }
    }
}

/// Merges sorted sources by key and place.
struct Merge {
    sources: Vec<Source>,
    heap: BinaryHeap<Reverse<Head>>,
}

/// The first record of a source.
struct Head {
    placed: Placed,
    source: usize,
}

impl Head {
    fn order(&self) -> (&[u8], (u64, u64)) {
        (&self.placed.0.key, self.placed.1)
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl Merge {
    fn new(files: Vec<File>, memory: Vec<Placed>) -> io::Result<Self> {
        let mut sources = vec![Source::Memory(memory.into_iter())];
        for file in files {
            let decoder = zstd::stream::read::Decoder::new(file)?;
            sources.push(Source::File(BufReader::new(decoder)));
        }
        let mut merge = Self {
            heap: BinaryHeap::with_capacity(sources.len()),
            sources,
        };
        for source in 0..merge.sources.len() {
            merge.refill(source)?;
        }
        Ok(merge)
    }

    fn refill(&mut self, source: usize) -> io::Result<()> {
        if let Some(placed) = self.sources[source].next()? {
            self.heap.push(Reverse(Head { placed, source }));
        }
        Ok(())
    }
}

impl Iterator for Merge {
    type Item = io::Result<Placed>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse(Head { placed, source }) = self.heap.pop()?;
        Some(self.refill(source).map(|()| placed))
    }
}

/// Makes one image of the records of each document, and sends them.
fn send_images(
    records: impl Iterator<Item = io::Result<Placed>>,
    sender: &mpsc::Sender<Result<ImageBatch, MigrationError>>,
) -> Result<(), MigrationError> {
    let mut batch = ImageBatch::new();
    let mut bytes = 0;
    let mut open: Option<Image> = None;
    for placed in records {
        let (record, _) = placed?;
        match &mut open {
            Some(image) if image.key == record.key => add(image, record),
            _ => {
                let Some(done) = open.replace(Image::of(record)) else {
                    continue;
                };
                if batch.len() >= BATCH_IMAGES || bytes > 0 && bytes + done.len() > BATCH_LEN {
                    bytes = 0;
                    if sender.blocking_send(Ok(std::mem::take(&mut batch))).is_err() {
                        return Ok(());
                    }
                }
                bytes += done.len();
                batch.push(done);
            }
        }
    }
    batch.extend(open);
    if !batch.is_empty() {
        // A reader that has stopped wants nothing more.
        let _ = sender.blocking_send(Ok(batch));
    }
    Ok(())
}

/// Takes a later record of the same document into its image.
fn add(image: &mut Image, record: JournalRecord) {
    if record.supersedes {
        image.after.pop();
    }
    match image.after.last() {
        // Nothing was written before this.
        None => image.before = record.before,
        Some(last) => image.disturbed |= *last != hash(record.before.as_ref()),
    }
    image.after.push(record.after.map(|after| BodyHash(after.0)));
    let surplus = image.after.len().saturating_sub(2);
    image.after.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::BodyDigest;
    use crate::document::Timestamp;

    fn document(body: u8) -> JournalDocument {
        JournalDocument {
            create_time: Timestamp::new(1, 0),
            update_time: Timestamp::new(i64::from(body), 0),
            body: vec![body; 3],
        }
    }

    /// 0 stands for no document.
    fn record(key: u8, before: u8, after: u8) -> JournalRecord {
        JournalRecord {
            key: vec![key],
            before: (before > 0).then(|| document(before)),
            after: (after > 0).then(|| BodyDigest(BodyHash::of(&document(after).body).0)),
            supersedes: false,
        }
    }

    fn again(record: JournalRecord) -> JournalRecord {
        JournalRecord {
            supersedes: true,
            ..record
        }
    }

    fn images(records: Vec<JournalRecord>) -> Vec<Image> {
        let place = |(at, record)| (record, (0, at as u64));
        let placed: Vec<Placed> = records.into_iter().enumerate().map(place).collect();
        // Half of them in files, so that both are merged.
        let (files, memory): (Vec<Placed>, Vec<Placed>) =
            placed.into_iter().partition(|(_, (_, at))| at % 2 == 0);
        let files = files
            .chunks(2)
            .map(|part| write_part(sorted(part.to_vec()).into_iter().map(Ok)).unwrap())
            .collect();
        let (sender, mut receiver) = mpsc::channel(100);
        send_images(Merge::new(files, sorted(memory)).unwrap(), &sender).unwrap();
        drop(sender);
        let mut images = Vec::new();
        while let Some(batch) = receiver.blocking_recv() {
            images.extend(batch.unwrap());
        }
        images
    }

    fn after(body: u8) -> Option<BodyHash> {
        (body > 0).then(|| BodyHash::of(&document(body).body))
    }

    #[test]
    fn the_first_image_and_the_last_writes_count() {
        let images = images(vec![
            record(9, 0, 1),
            record(5, 1, 2),
            record(7, 1, 0),
            record(5, 2, 3),
            record(1, 0, 4),
            record(5, 3, 4),
            record(7, 0, 6),
        ]);
        let keys: Vec<u8> = images.iter().map(|image| image.key[0]).collect();
        assert_eq!(keys, [1, 5, 7, 9]);
        assert_eq!(images[1].before, Some(document(1)));
        assert_eq!(images[1].after, [after(3), after(4)]);
        assert_eq!(images[2].before, Some(document(1)));
        assert_eq!(images[2].after, [None, after(6)]);
        assert_eq!(images[3].before, None);
        assert!(images.iter().all(|image| !image.disturbed));
    }

    #[test]
    fn a_write_that_was_not_done_does_not_count_and_a_stranger_is_noticed() {
        let images = images(vec![
            // The first was refused: somebody had written 8, which is what there was before the migration.
            record(1, 1, 2),
            again(record(1, 8, 3)),
            // Somebody wrote 9 between two writes.
            record(2, 1, 2),
            record(2, 9, 3),
            // The same, and it was noticed by a refusal.
            record(3, 1, 2),
            record(3, 2, 4),
            again(record(3, 9, 5)),
        ]);
        assert_eq!(images[0].before, Some(document(8)));
        assert_eq!(images[0].after, [after(3)]);
        assert!(!images[0].disturbed);
        assert_eq!(images[1].before, Some(document(1)));
        assert!(images[1].disturbed);
        assert_eq!(images[2].after, [after(2), after(5)]);
        assert!(images[2].disturbed);
    }
}
