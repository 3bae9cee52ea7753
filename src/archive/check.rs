//! Verification: is what snapshots need there, whole, and does it agree with itself?
//!
//! Three depths. *Structure* reads every run, block and index page and holds them against each other and against the snapshot's
//! counts. *Presence* lists the chunks and compares names and sizes: no request per chunk. *Data* reads the chunks themselves,
//! re-hashes every frame and looks at every body. A finding is a [`Damage`] that names the object and the documents it
//! affects; it never stops the check of the others. What is no damage (the network, permissions) does stop it: a check that
//! could not look must not say that all is well.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use super::chunk::{ChunkKind, FrameTable, header_len, with_decoder};
use super::counts::{Counts, Tally};
use super::cut::key_hash;
use super::error::{ArchiveError, Damage, DamageKind, Result, show_key};
use super::filter;
use super::ids::{ChunkId, ChunkRef, SessionId};
use super::index_page::PageCursor;
use super::reader::{Run, SnapshotReader, check_data_table};
use super::repository::Repository;
use super::run::{DirectoryBlock, IndexEntry};
use crate::document::{KeyRange, canonical};

/// Locations of bodies held before chunks are checked, in all: bounds the memory of [`check_data`].
const MAX_PENDING: usize = 2 << 20;
/// Index chunks that are checked at the same time.
const ENTRIES_AT_ONCE: usize = 4;

/// What a check found. Keeps the first findings and counts them all.
#[derive(Debug, Default)]
pub struct DamageReport {
    found: Vec<Damage>,
    seen: HashSet<(String, String)>,
    count: u64,
}

impl DamageReport {
    /// Findings that are kept.
    pub const KEPT: usize = 1000;

    /// Adds a finding; the same one again, met on another way, is not counted twice.
    pub fn add(&mut self, damage: Damage) {
        if self.seen.len() < 100 * Self::KEPT
            && !self.seen.insert((damage.object.clone(), damage.what.clone()))
        {
            return;
        }
        self.count += 1;
        if self.found.len() < Self::KEPT {
            self.found.push(damage);
        }
    }

    /// Takes damage out of a result; what is no damage stays an error.
    fn take<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.add(error.into_damage()?);
                Ok(None)
            }
        }
    }

    /// The findings that were kept.
    pub fn damages(&self) -> &[Damage] {
        &self.found
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What a check looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckStats {
    /// Objects whose existence and size were looked at.
    pub objects: u64,
    /// Runs.
    pub runs: u64,
    /// Directory blocks.
    pub directory_blocks: u64,
    /// Index chunks.
    pub index_chunks: u64,
    /// Index records, tombstones and hidden ones included.
    pub records: u64,
    /// Data chunks.
    pub data_chunks: u64,
    /// Bodies that were looked at.
    pub documents: u64,
    /// Bytes of objects read.
    pub stored_bytes: u64,
    /// Bytes of plaintext that were hashed.
    pub raw_bytes: u64,
}

/// A part of all data chunks, picked by their ids: part `part` (from zero) of `of`. Checking every part on another day checks
/// everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSubset {
    /// Which part, from zero.
    pub part: u64,
    /// Of how many.
    pub of: u64,
}

impl DataSubset {
    /// All data chunks.
    pub const ALL: Self = Self { part: 0, of: 1 };

    /// Whether a chunk belongs to the part.
    pub fn includes(&self, id: &ChunkId) -> bool {
        id.low_bits() % self.of.max(1) == self.part
    }
}

/// Checks one snapshot's runs, blocks and index pages, and that the documents are those that the snapshot counts.
pub async fn check_structure(reader: &SnapshotReader, report: &mut DamageReport) -> Result<CheckStats> {
    let mut stats = CheckStats::default();
    let before = report.count();
    for run in reader.runs() {
        stats.runs += 1;
        for listed in &run.root.blocks {
            stats.directory_blocks += 1;
            stats.stored_bytes += listed.chunk.stored_len;
            let Some(block) = report.take(reader.block_source().load(listed).await)? else {
                continue;
            };
            let mut checks = stream::iter(0..block.entries.len())
                .map(|entry| check_index_chunk(reader.repository(), Arc::clone(&block), entry))
                .buffered(ENTRIES_AT_ONCE);
            while let Some(checked) = checks.next().await {
                stats.index_chunks += 1;
                if let Some((records, stored)) = report.take(checked)? {
                    stats.records += records;
                    stats.stored_bytes += stored;
                }
            }
        }
    }
    if report.count() == before {
        let counted = count_documents(reader).await;
        if let Some(counted) = report.take(counted)? {
            compare_counts(reader, &counted, report);
        }
    }
    Ok(stats)
}

/// Reads a whole index chunk and holds it against its entry. Says its records and its bytes.
async fn check_index_chunk(
    repository: &Repository,
    block: Arc<DirectoryBlock>,
    number: usize,
) -> Result<(u64, u64)> {
    let entry = &block.entries[number];
    let (name, stored_len) = (entry.chunk.name(), entry.chunk.stored_len);
    let locate = |error: ArchiveError| match error.into_damage() {
        Ok(damage) => ArchiveError::Damaged(Box::new(damage.within(entry.first_key(), entry.last_key()))),
        Err(error) => error,
    };
    let bytes = get_whole(repository, &entry.chunk).await.map_err(locate)?;
    let work = Arc::clone(&block);
    let records = tokio::task::spawn_blocking(move || check_pages(&name, &work.entries[number], &bytes));
    Ok((records.await?.map_err(locate)?, stored_len))
}

/// A whole object that must have its size.
async fn get_whole(repository: &Repository, chunk: &ChunkRef) -> Result<Bytes> {
    let name = chunk.name();
    let bytes = repository.store().get_at_most(&name, chunk.stored_len).await?;
    if bytes.len() as u64 != chunk.stored_len {
        let what = format!("it has {} bytes instead of {}", bytes.len(), chunk.stored_len);
        return Err(ArchiveError::damaged(name, DamageKind::WrongSize, what));
    }
    Ok(bytes)
}

fn check_pages(name: &str, entry: &IndexEntry, bytes: &[u8]) -> Result<u64> {
    let inconsistent = |what: &str| ArchiveError::damaged(name, DamageKind::Inconsistent, what);
    let table = FrameTable::parse(name, ChunkKind::Index, &entry.chunk.id, bytes)?;
    if table.rows().len() != entry.pages.len()
        || table
            .rows()
            .iter()
            .zip(&entry.pages)
            .any(|(row, page)| *row != page.row())
    {
        return Err(inconsistent(
            "its frame table differs from its entry in the directory",
        ));
    }
    let (mut records, mut body_bytes) = (0, 0);
    for (number, page) in entry.pages.iter().enumerate() {
        let range = table.stored_range(number);
        let stored = &bytes[range.start as usize..range.end as usize];
        let mut plain = Vec::new();
        with_decoder(|decoder| decoder.decode(name, &page.row(), stored, &mut plain))?;
        let mut cursor = PageCursor::new(name, plain)?;
        let (mut puts, mut tombstones) = (0, 0);
        while cursor.advance(name)? {
            let key = cursor.key();
            if puts + tombstones == 0 && key != page.first_key.as_bytes() {
                return Err(inconsistent("a page begins with another key than its entry says"));
            }
            if !filter::may_contain(&entry.filter, key_hash(key)) {
                return Err(inconsistent(&format!("its filter denies {}", show_key(key))));
            }
            let Some(put) = cursor.put() else {
                tombstones += 1;
                continue;
            };
            puts += 1;
            body_bytes += u64::from(put.length);
            let inside = entry
                .data
                .get(put.chunk as usize)
                .is_some_and(|data| u64::from(put.offset) + u64::from(put.length) <= data.raw_len);
            if !inside {
                return Err(inconsistent(&format!(
                    "the record of {} points outside of its data",
                    show_key(key)
                )));
            }
        }
        if cursor.key() != page.last_key.as_bytes() || (puts, tombstones) != (page.puts, page.tombstones) {
            return Err(inconsistent("a page's last key or counts differ from its entry"));
        }
        records += u64::from(puts) + u64::from(tombstones);
    }
    if body_bytes != entry.body_bytes {
        return Err(inconsistent("the bytes of its bodies differ from its entry"));
    }
    Ok(records)
}

/// The documents that the merged stack shows.
struct Counted {
    documents: u64,
    bytes: u64,
    collections: Counts,
    groups: Counts,
}

async fn count_documents(reader: &SnapshotReader) -> Result<Counted> {
    let mut tally = Tally::default();
    let (mut documents, mut bytes) = (0, 0);
    let mut records = reader.records(KeyRange::all()).boxed();
    while let Some(batch) = records.try_next().await? {
        for record in batch.iter() {
            documents += 1;
            bytes += u64::from(record.length());
            if !tally.add(record.key, record.length() as usize) {
                return Err(ArchiveError::damaged(
                    reader.id().snapshot_name(),
                    DamageKind::Malformed,
                    format!("{} is not the key of a document", show_key(record.key)),
                ));
            }
        }
    }
    let (collections, groups) = tally.named();
    Ok(Counted {
        documents,
        bytes,
        collections,
        groups,
    })
}

fn compare_counts(reader: &SnapshotReader, counted: &Counted, report: &mut DamageReport) {
    let snapshot = reader.snapshot();
    let mut differ = |what: String| {
        report.add(Damage::new(
            snapshot.id.snapshot_name(),
            DamageKind::Inconsistent,
            what,
        ));
    };
    if (snapshot.documents, snapshot.body_bytes) != (counted.documents, counted.bytes) {
        differ(format!(
            "it counts {} documents with {} bytes, its runs hold {} with {}",
            snapshot.documents, snapshot.body_bytes, counted.documents, counted.bytes
        ));
    }
    if snapshot.collections != counted.collections || snapshot.collection_groups != counted.groups {
        differ("its counts by collection differ from what its runs hold".to_owned());
    }
}

/// Checks that every object that the snapshots need exists and has its size, by listing.
pub async fn check_presence(readers: &[SnapshotReader], report: &mut DamageReport) -> Result<CheckStats> {
    let mut stats = CheckStats::default();
    let Some(repository) = readers.first().map(SnapshotReader::repository) else {
        return Ok(stats);
    };
    let mut needed: HashMap<String, u64> = HashMap::new();
    let mut chunks: HashMap<(ChunkId, SessionId), u64> = HashMap::new();
    let mut need = |chunk: &ChunkRef| {
        chunks.insert((chunk.id, chunk.session), chunk.stored_len);
    };
    for reader in readers {
        for run in reader.runs() {
            stats.runs += 1;
            if run.reference.root.is_none() {
                needed.insert(run.reference.name(), run.reference.root_len);
            }
            for listed in &run.root.blocks {
                stats.directory_blocks += 1;
                need(&listed.chunk);
                let Some(block) = report.take(reader.block_source().load(listed).await)? else {
                    continue;
                };
                for entry in &block.entries {
                    stats.index_chunks += 1;
                    need(&entry.chunk);
                    entry.data.iter().for_each(&mut need);
                }
            }
        }
    }
    stats.objects = (needed.len() + chunks.len()) as u64;
    let mut wrong: HashMap<(ChunkId, SessionId), Option<u64>> = HashMap::new();
    let mut objects = repository.store().list("chunks");
    while let Some(object) = objects.try_next().await? {
        let Some(name) = super::ids::parse_chunk_name(&object.name) else {
            continue;
        };
        if let Some(size) = chunks.remove(&name)
            && size != object.size
        {
            wrong.insert(name, Some(object.size));
        }
    }
    let mut objects = repository.store().list("runs");
    while let Some(object) = objects.try_next().await? {
        if let Some(size) = needed.remove(&object.name)
            && size != object.size
        {
            let what = format!("it has {} bytes instead of {size}", object.size);
            report.add(Damage::new(object.name, DamageKind::WrongSize, what));
        }
    }
    for (name, _) in needed {
        report.add(Damage::new(
            name,
            DamageKind::Missing,
            "the object does not exist",
        ));
    }
    wrong.extend(chunks.into_keys().map(|name| (name, None)));
    if !wrong.is_empty() {
        locate_wrong(readers, &wrong, report).await?;
    }
    Ok(stats)
}

/// Goes through the directories again to say which keys the missing chunks affect.
async fn locate_wrong(
    readers: &[SnapshotReader],
    wrong: &HashMap<(ChunkId, SessionId), Option<u64>>,
    report: &mut DamageReport,
) -> Result<()> {
    let mut found: HashMap<(ChunkId, SessionId), Damage> = HashMap::new();
    let mut note = |chunk: &ChunkRef, first: &[u8], last: &[u8]| {
        let key = (chunk.id, chunk.session);
        let Some(size) = wrong.get(&key) else { return };
        let damage = found.entry(key).or_insert_with(|| match size {
            None => Damage::new(chunk.name(), DamageKind::Missing, "the object does not exist"),
            Some(size) => Damage::new(
                chunk.name(),
                DamageKind::WrongSize,
                format!("it has {size} bytes instead of {}", chunk.stored_len),
            ),
        });
        *damage = damage.clone().widen(first, last);
    };
    for reader in readers {
        for listed in reader.runs().iter().flat_map(|run| &run.root.blocks) {
            note(
                &listed.chunk,
                listed.first_key.as_bytes(),
                listed.last_key.as_bytes(),
            );
            // A block that cannot be read was reported before.
            let Ok(block) = reader.block_source().load(listed).await else {
                continue;
            };
            for entry in &block.entries {
                for chunk in entry.data.iter().chain([&entry.chunk]) {
                    note(chunk, entry.first_key(), entry.last_key());
                }
            }
        }
    }
    found.into_values().for_each(|damage| report.add(damage));
    Ok(())
}

/// Where a body lies in its chunk, and its hash.
#[derive(Clone, Copy)]
struct Located {
    offset: u32,
    length: u32,
    body_hash: u64,
}

impl Located {
    fn span(&self) -> Range<u64> {
        u64::from(self.offset)..u64::from(self.offset) + u64::from(self.length)
    }
}

/// A data chunk that is to be checked, with what the index says of it.
struct Pending {
    chunk: ChunkRef,
    bodies: Vec<Located>,
    /// The index chunks that point into it.
    entries: Vec<(Arc<DirectoryBlock>, usize)>,
}

/// Reads the data chunks of the snapshots, each one whole: re-hashes every frame, and looks at every body that the index
/// places in it. A chunk that several snapshots share is read once when they share the run as well.
pub async fn check_data(
    readers: &[SnapshotReader],
    subset: DataSubset,
    report: &mut DamageReport,
) -> Result<CheckStats> {
    let mut stats = CheckStats::default();
    let mut seen = HashSet::new();
    for reader in readers {
        for run in reader.runs() {
            if seen.insert((run.reference.id, run.reference.session)) {
                stats.runs += 1;
                check_run_data(reader, run, subset, report, &mut stats).await?;
            }
        }
    }
    Ok(stats)
}

async fn check_run_data(
    reader: &SnapshotReader,
    run: &Arc<Run>,
    subset: DataSubset,
    report: &mut DamageReport,
    stats: &mut CheckStats,
) -> Result<()> {
    let last_use = last_uses(reader, run, subset).await?;
    let mut pending: HashMap<(ChunkId, SessionId), Pending> = HashMap::new();
    let mut held = 0;
    let mut number = 0u64;
    for listed in &run.root.blocks {
        // Damage of the index is for the check of the structure to tell, and here it means documents not looked at.
        let Some(block) = report.take(reader.block_source().load(listed).await)? else {
            continue;
        };
        stats.directory_blocks += 1;
        for entry in 0..block.entries.len() {
            number += 1;
            stats.index_chunks += 1;
            let placed = report.take(place_bodies(reader, &block, entry, subset, &mut pending).await)?;
            held += placed.unwrap_or_default();
            let ready: Vec<Pending> = match held > MAX_PENDING {
                true => pending.drain().map(|(_, pending)| pending).collect(),
                false => pending
                    .extract_if(|key, _| last_use.get(key).is_none_or(|&last| last <= number))
                    .map(|(_, pending)| pending)
                    .collect(),
            };
            held -= ready
                .iter()
                .map(|pending| pending.bodies.len())
                .sum::<usize>()
                .min(held);
            check_chunks(reader, ready, report, stats).await?;
        }
    }
    let rest = pending.into_values().collect();
    check_chunks(reader, rest, report, stats).await
}

/// For each data chunk of the run the number of the last index chunk that points into it, from one.
async fn last_uses(
    reader: &SnapshotReader,
    run: &Arc<Run>,
    subset: DataSubset,
) -> Result<HashMap<(ChunkId, SessionId), u64>> {
    let mut last_use = HashMap::new();
    let mut number = 0;
    for listed in &run.root.blocks {
        let block = match reader.block_source().load(listed).await {
            Ok(block) => block,
            Err(error) => {
                error.into_damage()?;
                continue;
            }
        };
        for entry in &block.entries {
            number += 1;
            for chunk in entry.data.iter().filter(|chunk| subset.includes(&chunk.id)) {
                last_use.insert((chunk.id, chunk.session), number);
            }
        }
    }
    Ok(last_use)
}

/// Notes where the bodies of an index chunk's documents are; says how many.
async fn place_bodies(
    reader: &SnapshotReader,
    block: &Arc<DirectoryBlock>,
    number: usize,
    subset: DataSubset,
    pending: &mut HashMap<(ChunkId, SessionId), Pending>,
) -> Result<usize> {
    let entry = &block.entries[number];
    let mut numbers: Vec<Vec<Located>> = entry.data.iter().map(|_| Vec::new()).collect();
    // Chunks that no body points into any more are read as well: frames that share a chunk with a needed one are needed.
    for page in 0..entry.pages.len() {
        let name: Arc<str> = entry.chunk.name().into();
        let mut cursor = reader
            .block_source()
            .load_page(entry, page, Arc::clone(&name))
            .await?;
        while cursor.advance(&name)? {
            let Some(put) = cursor.put() else { continue };
            if let Some(bodies) = numbers.get_mut(put.chunk as usize) {
                bodies.push(Located {
                    offset: put.offset,
                    length: put.length,
                    body_hash: put.body_hash,
                });
            }
        }
    }
    let mut placed = 0;
    for (chunk, bodies) in entry.data.iter().zip(numbers) {
        if !subset.includes(&chunk.id) {
            continue;
        }
        placed += bodies.len();
        let pending = pending
            .entry((chunk.id, chunk.session))
            .or_insert_with(|| Pending {
                chunk: *chunk,
                bodies: Vec::new(),
                entries: Vec::new(),
            });
        pending.bodies.extend(bodies);
        pending.entries.push((Arc::clone(block), number));
    }
    Ok(placed)
}

async fn check_chunks(
    reader: &SnapshotReader,
    ready: Vec<Pending>,
    report: &mut DamageReport,
    stats: &mut CheckStats,
) -> Result<()> {
    let at_once = std::thread::available_parallelism()
        .map_or(2, |threads| threads.get() + 1)
        .min(8);
    let mut checks = stream::iter(ready)
        .map(|pending| check_chunk(reader.repository().clone(), pending))
        .buffer_unordered(at_once);
    while let Some(checked) = checks.next().await {
        let (pending, wrong) = checked?;
        stats.data_chunks += 1;
        stats.documents += pending.bodies.len() as u64;
        stats.stored_bytes += pending.chunk.stored_len;
        stats.raw_bytes += pending.chunk.raw_len;
        for wrong in wrong {
            report.add(locate(reader, &pending, wrong).await);
        }
    }
    Ok(())
}

/// Something wrong with a data chunk, and which of its plaintext is affected.
struct Wrong {
    damage: Damage,
    span: Range<u64>,
}

async fn check_chunk(repository: Repository, mut pending: Pending) -> Result<(Pending, Vec<Wrong>)> {
    let bytes = match get_whole(&repository, &pending.chunk).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let span = 0..pending.chunk.raw_len;
            let damage = error.into_damage()?;
            return Ok((pending, vec![Wrong { damage, span }]));
        }
    };
    let checked = tokio::task::spawn_blocking(move || {
        let wrong = check_bodies(&repository, &mut pending, &bytes)?;
        Ok::<_, ArchiveError>((pending, wrong))
    });
    checked.await?
}

fn check_bodies(repository: &Repository, pending: &mut Pending, bytes: &[u8]) -> Result<Vec<Wrong>> {
    let chunk = pending.chunk;
    let name = chunk.name();
    let frame_len = repository.parameters().frame_len;
    let table = FrameTable::parse(&name, ChunkKind::Data, &chunk.id, bytes).and_then(|table| {
        check_data_table(&name, &table, chunk.raw_len, chunk.stored_len, frame_len)?;
        Ok(table)
    });
    let table = match table {
        Ok(table) => table,
        Err(error) => {
            return Ok(vec![Wrong {
                damage: error.into_damage()?,
                span: 0..chunk.raw_len,
            }]);
        }
    };
    debug_assert!(header_len(table.rows().len()) <= bytes.len() as u64);
    pending.bodies.sort_by_key(|body| body.offset);
    let mut bodies = pending.bodies.iter().peekable();
    let mut wrong = Vec::new();
    // The plaintext from `start` on, as far as bodies that end later need it: it stays in the processor's cache.
    let (mut plain, mut start) = (Vec::new(), 0u64);
    for (frame, row) in table.rows().iter().enumerate() {
        let range = table.stored_range(frame);
        let stored = &bytes[range.start as usize..range.end as usize];
        let span = start + plain.len() as u64..start + plain.len() as u64 + u64::from(row.raw_len);
        if let Err(error) = with_decoder(|decoder| decoder.decode(&name, row, stored, &mut plain)) {
            let mut damage = error.into_damage()?;
            damage.what = format!("frame {} of {}: {}", frame + 1, table.rows().len(), damage.what);
            plain.resize((span.end - start) as usize, 0);
            wrong.push(Wrong {
                damage,
                span: span.clone(),
            });
        }
        while let Some(body) = bodies.next_if(|body| body.span().end <= span.end) {
            wrong.extend(check_body(repository, &name, body, &plain, start, &wrong));
        }
        let needed = bodies.peek().map_or(span.end, |body| body.span().start);
        let needed = needed.clamp(start, span.end);
        plain.drain(..(needed - start) as usize);
        start = needed;
    }
    for body in bodies {
        wrong.extend(check_body(repository, &name, body, &[], start, &wrong));
    }
    Ok(wrong)
}

/// Looks at a body in the plaintext that begins at `start` of its chunk; what lies in a broken frame is not looked at.
fn check_body(
    repository: &Repository,
    chunk: &str,
    body: &Located,
    plain: &[u8],
    start: u64,
    broken: &[Wrong],
) -> Option<Wrong> {
    let span = body.span();
    let is_broken = |wrong: &Wrong| {
        wrong.damage.kind != DamageKind::Document
            && wrong.span.start < span.end
            && span.start < wrong.span.end
    };
    if broken.iter().any(is_broken) {
        return None;
    }
    let place = span.start.checked_sub(start).zip(span.end.checked_sub(start));
    let what = match place.and_then(|(from, to)| plain.get(from as usize..to as usize)) {
        None => "a body lies outside of the chunk".to_owned(),
        Some(bytes) if repository.body_hash(bytes) != body.body_hash => {
            "a body has another hash than its record says".to_owned()
        }
        Some(bytes) => match canonical::validate(bytes) {
            Ok(()) => return None,
            Err(error) => format!("a body is not a document: {error}"),
        },
    };
    let what = format!("{what} (at byte {})", body.offset);
    Some(Wrong {
        damage: Damage::new(chunk, DamageKind::Document, what),
        span,
    })
}

/// Says which documents a damage affects, by going through the index of the chunk once more.
async fn locate(reader: &SnapshotReader, pending: &Pending, wrong: Wrong) -> Damage {
    let (mut first, mut last, mut count) = (None::<Vec<u8>>, None::<Vec<u8>>, 0u64);
    for (block, number) in &pending.entries {
        let entry = &block.entries[*number];
        let name: Arc<str> = entry.chunk.name().into();
        for page in 0..entry.pages.len() {
            let Ok(mut cursor) = reader
                .block_source()
                .load_page(entry, page, Arc::clone(&name))
                .await
            else {
                continue;
            };
            while let Ok(true) = cursor.advance(&name) {
                let Some(put) = cursor.put() else { continue };
                let here = entry.data.get(put.chunk as usize) == Some(&pending.chunk)
                    && u64::from(put.offset) < wrong.span.end
                    && wrong.span.start < u64::from(put.offset) + u64::from(put.length);
                if here {
                    count += 1;
                    first.get_or_insert_with(|| cursor.key().to_vec());
                    last = Some(cursor.key().to_vec());
                }
            }
        }
    }
    let mut damage = wrong.damage;
    if let (Some(first), Some(last)) = (first, last) {
        match count {
            1 => damage.what = format!("{}; affects {}", damage.what, show_key(&first)),
            _ => {
                damage.what = format!(
                    "{}; affects {count} documents from {} to {}",
                    damage.what,
                    show_key(&first),
                    show_key(&last)
                );
            }
        }
        damage = damage.within(&first, &last);
    }
    damage
}
