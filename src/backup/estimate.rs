//! What a backup would be billed, before it is: from counts, the parent's statistics, and a small sample.
//!
//! How many documents there are is counted, at a billed read for each thousand. How many of them have changed cannot be known without
//! reading them: Firestore has no query for that, unless a field of the documents tells ([`ChangeField`](super::ChangeField)), and
//! then they are counted as well. Otherwise a night is taken to be as the last one was. Every estimate says what it comes from.
//!
//! In billed reads, of `N` documents in `R` ranges, of which `C` are new or changed and `D` are gone:
//!
//! ```text
//! full, without a parent    N + N/1000 (the count) + what it takes to cut the database + 3R
//! full, with a parent       N + 2R
//! names                     N + C + 0.0001 N (the sample that is compared all the same) + 2R
//! changed:FIELD             C + 2N/1000 + some for each collection group of 16,000 documents + some 24 D
//! ```
//!
//! Nothing is written to the repository.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};

use super::begin::{self, Basis};
use super::{BackupError, BackupOptions, changed, layer, plan, since};
use crate::archive::{ReadMode, Repository, Selection, Snapshot, SnapshotId, SnapshotReader};
use crate::cost::Billed;
use crate::document::{CollectionPath, DatabaseName, DocumentPath, KeyRange, Timestamp};
use crate::firestore::{self, Firestore, ScanOptions};
use crate::progress::Progress;

/// Documents that a sample has at most, and the share of all that it may have.
const SAMPLE: u64 = 400;
const SAMPLE_SHARE: u64 = 50;
/// Places that a sample is taken from.
const PLACES: usize = 16;
/// Collections that are looked at in a database of which nothing is known.
const COLLECTIONS: usize = 32;
/// Bytes of a name's answer beside the name: two times, the read time, and what holds them together.
const NAME_OVERHEAD: u64 = 52;
/// What a document's times and place in the index take when it is stored.
const INDEX_BYTES: u64 = 24;
/// Documents that a backup which asks a field counts at once, and how many are left when it compares names instead.
const LEAF: u64 = 1000;
const LEFT_IN_LEAF: u64 = 15;
/// Bytes of an answer that is a count, or that there is nothing.
const COUNT_BYTES: u64 = 40;
/// Documents that are asked for by name in one request.
const NAMES_PER_REQUEST: u64 = 300;
/// The level of zstd that repositories are compressed with.
const COMPRESSION: i32 = 3;

/// What a backup would do and be billed.
#[derive(Clone, Debug)]
pub struct BackupEstimate {
    /// The database.
    pub database: DatabaseName,
    /// Where it is stored, if it says.
    pub location: Option<String>,
    /// As of when the documents were counted.
    pub read_time: Timestamp,
    /// The snapshot that the backup would build upon.
    pub parent: Option<SnapshotId>,
    /// How it would be read.
    pub read: ReadMode,
    /// Documents of the selection.
    pub documents: u64,
    /// Documents that would be stored because they are new or have changed.
    pub changed_documents: u64,
    /// Documents that are gone since the parent.
    pub deleted_documents: u64,
    /// Key ranges that it would be read in.
    pub ranges: u64,
    /// Reads that Firestore would bill.
    pub billed_reads: u64,
    /// Requests to the database, none of them sent twice.
    pub requests: u64,
    /// Bytes of the database's answers.
    pub read_bytes: u64,
    /// Bytes that the repository would grow by.
    pub stored_bytes: u64,
    /// What this comes from, a sentence each.
    pub known_from: Vec<String>,
    /// Where a field should be asked and names would be read: why.
    pub names_instead: Vec<String>,
    /// Reads that Firestore bills for the estimate.
    pub spent_reads: u64,
}

impl BackupEstimate {
    /// What is paid for; `to_bucket`: whether the repository's bytes are paid for by their amount.
    pub fn billed(&self, to_bucket: bool) -> Billed {
        Billed {
            reads: self.billed_reads,
            stored_bytes: if to_bucket { self.stored_bytes } else { 0 },
            transferred_bytes: self.read_bytes,
            ..Billed::default()
        }
    }
}

/// Says what [`backup`](fn@super::backup) would do and be billed with these options, if it began now. Writes nothing.
pub async fn estimate_backup(
    database: &Firestore,
    repository: &Repository,
    options: &BackupOptions,
) -> Result<BackupEstimate, BackupError> {
    let before = database.stats().counts();
    let read_time = begin::read_time(database, options).await?;
    let basis = begin::basis(database, repository, options, read_time, false).await?;
    let (scale, mut known_from) = Scale::find(database, options, &basis).await?;
    let ranges = match &basis.parent {
        Some(parent) => {
            let ranges =
                plan::ranges_of_parent(database, parent, read_time, options, &Progress::new()).await?;
            ranges.len() as u64
        }
        None => plan::expected_ranges(scale.documents, false, options),
    };
    let night = scale.night(&basis, ranges);
    let sample = Sample::take(database, options, &basis, scale.documents).await?;
    known_from.push(sample.said());
    let snapshot = basis.parent.as_ref().map(SnapshotReader::snapshot);
    let body_bytes = snapshot
        .and_then(|parent| parent.body_bytes.checked_div(parent.documents))
        .unwrap_or(sample.body_bytes);
    let (stored_bytes, from) = stored(&basis, &scale, &sample, body_bytes);
    known_from.push(from);
    let wanted = options.changed.as_ref();
    let names_instead =
        wanted.and_then(|wanted| since::why_another(wanted, basis.choice.read, read_time, snapshot));
    Ok(BackupEstimate {
        database: database.database().clone(),
        location: basis.metadata.as_ref().map(|metadata| metadata.location.clone()),
        read_time,
        parent: snapshot.map(|parent| parent.id),
        read: basis.choice.read,
        documents: scale.documents,
        changed_documents: scale.changed,
        deleted_documents: scale.deleted,
        ranges,
        billed_reads: night.reads,
        requests: night.requests(database, &sample, body_bytes),
        read_bytes: (night.names + night.beside) * sample.name_bytes
            + night.requests * COUNT_BYTES
            + (night.whole + night.fetched) * sample.wire_bytes(body_bytes),
        stored_bytes,
        known_from,
        names_instead: names_instead.into_iter().collect(),
        spent_reads: database.stats().counts().since(&before).billed_reads,
    })
}

/// Reads that a backup would be billed which builds upon this, found out with counts alone.
pub(super) async fn reads(
    database: &Firestore,
    options: &BackupOptions,
    basis: &Basis,
) -> Result<u64, BackupError> {
    let (scale, _) = Scale::find(database, options, basis).await?;
    let ranges = plan::expected_ranges(scale.documents, basis.parent.is_some(), options);
    Ok(scale.night(basis, ranges).reads)
}

/// How much there is, and how much of it has changed.
struct Scale {
    documents: u64,
    changed: u64,
    deleted: u64,
    /// Documents that a field tells of, those that the parent has already among them.
    told: u64,
    /// Collection groups in a section of the parent.
    groups: f64,
    /// Whether the server answers what is asked of the field.
    answers: bool,
    /// Whether only one collection group is selected, which is counted when everything is.
    one_group: bool,
}

impl Scale {
    /// Finds out, and says what that comes from.
    async fn find(
        database: &Firestore,
        options: &BackupOptions,
        basis: &Basis,
    ) -> Result<(Self, Vec<String>), BackupError> {
        let mut known_from = Vec::new();
        let parent = basis.parent.as_ref().map(SnapshotReader::snapshot);
        let counted = count(database, &options.selection, basis.read_time).await?;
        known_from.push(match counted {
            Some(_) => "documents: counted by the server".to_owned(),
            None => "documents: as many as the parent has, for the server does not count them".to_owned(),
        });
        let documents = counted.unwrap_or_else(|| parent.map_or(0, |parent| parent.documents));
        let mut scale = Self {
            documents,
            changed: documents,
            deleted: 0,
            told: 0,
            groups: 1.0,
            answers: false,
            one_group: options.selection.collections.is_empty()
                && options.selection.collection_groups.len() == 1,
        };
        let Some(parent) = parent else {
            return Ok((scale, known_from));
        };
        let last = last_night(parent);
        let (mut changed, deleted) = last.unwrap_or_default();
        if basis.choice.read == ReadMode::Changed
            && let Some(told) = told_by_field(database, basis, parent).await?
        {
            (scale.told, changed, scale.answers) = (told.documents, told.changed, true);
            scale.groups = groups_of_a_section(basis).await?;
        }
        // There are at least as many new ones as there are more, and at least as many are gone as there are less.
        let (grown, shrunk) = (
            documents.saturating_sub(parent.documents),
            parent.documents.saturating_sub(documents),
        );
        scale.changed = changed.max(grown).min(documents);
        scale.deleted = deleted.max(shrunk).min(parent.documents);
        known_from.push(match (scale.answers, last) {
            (true, Some(_)) => format!(
                "changed documents: counted by the field; deleted ones: as in the backup {}",
                parent.id
            ),
            (true, None) => {
                "changed documents: counted by the field; deleted ones: by how much fewer there are".to_owned()
            }
            (false, Some(_)) => format!("changed and deleted documents: as in the backup {}", parent.id),
            (false, None) => "changed and deleted documents: by how many more or fewer there are, for no backup has compared yet"
                .to_owned(),
        });
        Ok((scale, known_from))
    }

    /// What is read for it in so many ranges.
    fn night(&self, basis: &Basis, ranges: u64) -> Night {
        let mut night = Night {
            // The time to read at.
            reads: 1,
            requests: 2,
            ..Night::default()
        };
        match (basis.choice.read, &basis.parent) {
            (ReadMode::Full, None) => {
                night.whole = self.documents;
                night.count(1, self.documents);
                night.reads += plan::reads_to_cut(self.documents, ranges);
                // The end of each range is asked for and counted, and it reads on to the next cut.
                night.ask(3 * ranges);
            }
            (ReadMode::Full, Some(_)) => {
                night.whole = self.documents;
                night.ask(2 * ranges);
            }
            (ReadMode::Changed, Some(_)) if self.is_worth_asking(ranges) => self.asked(ranges, &mut night),
            _ => {
                night.names = self.documents;
                let unchanged = self.documents.saturating_sub(self.changed);
                let sampled = unchanged as f64 * layer::sampled(self.documents);
                night.fetched = self.changed + sampled.round() as u64;
                night.ask(2 * ranges);
            }
        }
        night.reads += night.names + night.whole + night.fetched;
        night
    }

    fn sections(&self, ranges: u64) -> u64 {
        let most = changed::SECTION as u64;
        let of_range = (self.documents / ranges.max(1)).div_ceil(most).max(1);
        ranges.max(1) * of_range
    }

    /// Whether counts are what tells, in the end: not where most has changed, or so much is gone that names cost less.
    fn is_worth_asking(&self, ranges: u64) -> bool {
        let stretches = (self.deleted + self.sections(ranges)) as f64 * self.groups;
        self.answers && self.told * 2 <= self.documents && stretches * 4.0 <= self.documents.max(64) as f64
    }

    /// See [`changed`].
    fn asked(&self, ranges: u64, night: &mut Night) {
        let sections = self.sections(ranges);
        let queries = sections as f64 * self.groups;
        let with_answers = queries * -(-(self.told as f64) / queries).exp_m1();
        // Each group is counted first, and a query that brings something ends with one that brings nothing.
        night.ask((queries + with_answers).round() as u64);
        night.whole = self.told;
        // What does not fit into memory comes again by name; how large it is, is not asked here.
        night.count(sections, self.documents);
        let narrowed = Narrowed::find(self.documents, self.deleted);
        night.ask(narrowed.halvings);
        night.beside = narrowed.leaves * LEFT_IN_LEAF;
        night.reads += night.beside;
        // Each comparison of names ends with a query that finds nothing, and a count that agrees.
        night.requests += narrowed.leaves;
        night.ask(2 * narrowed.leaves);
        // Each group is counted wherever nothing differs.
        if !self.one_group {
            let stretches = (narrowed.leaves + sections) as f64 * self.groups;
            night.count(stretches.round() as u64, self.documents);
        }
    }
}

/// How counts are narrowed down that differ.
struct Narrowed {
    /// Counts of halves.
    halvings: u64,
    /// Stretches of names that are compared in the end.
    leaves: u64,
}

impl Narrowed {
    /// Where so many are gone, anywhere: what is halved is what has any of them.
    fn find(documents: u64, gone: u64) -> Self {
        let counted = documents.div_ceil(LEAF).max(1) as f64;
        let hit = |parts: f64| parts * -(-(gone as f64) / parts).exp_m1();
        let levels = (LEAF / LEFT_IN_LEAF).ilog2();
        let halvings: f64 = (0..levels)
            .map(|level| hit(counted * f64::from(1 << level)))
            .sum();
        Self {
            halvings: halvings.round() as u64,
            leaves: hit(counted * f64::from(1 << levels)).round() as u64,
        }
    }
}

/// What a backup reads.
#[derive(Default)]
struct Night {
    /// What is billed.
    reads: u64,
    /// Names that are streamed.
    names: u64,
    /// Names that are compared where counts differ.
    beside: u64,
    /// Documents that are streamed.
    whole: u64,
    /// Documents that are asked for by name.
    fetched: u64,
    /// Requests that bring no documents to speak of.
    requests: u64,
}

impl Night {
    /// Questions that are billed as a read each.
    fn ask(&mut self, questions: u64) {
        self.reads += questions;
        self.requests += questions;
    }

    /// So many counts, of so many documents together.
    fn count(&mut self, counts: u64, documents: u64) {
        let counts = counts.max(1);
        // Each is rounded up.
        self.reads += match documents / counts {
            0..1000 => counts,
            _ => documents / 1000 + counts / 2,
        };
        self.requests += counts;
    }

    fn requests(&self, database: &Firestore, sample: &Sample, body_bytes: u64) -> u64 {
        let pages = |documents: u64, bytes: u64| documents.div_ceil(database.page_documents(bytes));
        self.requests
            + pages(self.names, sample.name_bytes)
            + pages(self.whole, sample.wire_bytes(body_bytes))
            + self.fetched.div_ceil(NAMES_PER_REQUEST)
    }
}

/// How many documents of the selection there are; `None` where the server does not count.
async fn count(
    database: &Firestore,
    selection: &Selection,
    read_time: Timestamp,
) -> Result<Option<u64>, BackupError> {
    let mut all = Some(0);
    for (range, groups) in selection.parts(&KeyRange::all()) {
        let counted = match database.walks() && groups.is_empty() {
            true => None,
            false => plan::count(database, &range, groups, None, read_time).await?,
        };
        all = all.zip(counted).map(|(sum, counted)| sum + counted);
    }
    Ok(all)
}

/// New and changed documents, and deleted ones, of the night that the parent was taken in, if it was compared with anything.
fn last_night(parent: &Snapshot) -> Option<(u64, u64)> {
    let stats = &parent.stats;
    parent.parent?;
    Some((
        stats.new_documents + stats.changed_documents,
        stats.deleted_documents,
    ))
}

/// What the field tells of.
#[derive(Default)]
struct Told {
    /// All that is asked for, what the parent has already among it.
    documents: u64,
    /// What says that it has changed since the parent.
    changed: u64,
}

/// How many documents the field tells of; `None` where the server refuses to say.
async fn told_by_field(
    database: &Firestore,
    basis: &Basis,
    parent: &Snapshot,
) -> Result<Option<Told>, BackupError> {
    let Some(since) = &basis.choice.since else {
        return Ok(None);
    };
    let mut told = Told::default();
    for (range, groups) in parent.selection.parts(&KeyRange::all()) {
        let known_until = since::known_until(parent, &range);
        let all = parent.collection_groups.keys().filter(|group| !group.is_empty());
        let groups: Vec<&String> = match groups {
            [] => all.collect(),
            groups => groups.iter().collect(),
        };
        for group in groups {
            for (query, sum) in [
                (changed::query(since, group, known_until), &mut told.documents),
                (
                    changed::query_changed(since, group, known_until),
                    &mut told.changed,
                ),
            ] {
                let query = query.within(&range)?;
                match database.count_query(&query, Some(basis.read_time)).await {
                    Ok(count) => *sum += count,
                    Err(firestore::Error::Rejected { .. } | firestore::Error::Unsupported { .. }) => {
                        return Ok(None);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(Some(told))
}

/// How many collection groups a section of the parent has, as some of them do.
async fn groups_of_a_section(basis: &Basis) -> Result<f64, BackupError> {
    const LOOKED_AT: usize = 4;
    let Some(parent) = &basis.parent else {
        return Ok(1.0);
    };
    let of_parent = |error| BackupError::of_parent(parent.id(), error);
    let boundaries = parent.page_boundaries(LOOKED_AT).await.map_err(of_parent)?;
    let (mut groups, mut sections) = (0, 0);
    for part in KeyRange::all().cut_at(&boundaries) {
        let mut records = parent.records(part).boxed();
        let (mut found, mut seen) = (HashSet::new(), 0);
        while seen < changed::SECTION
            && let Some(batch) = records.try_next().await.map_err(of_parent)?
        {
            for record in batch.iter() {
                found.insert(DocumentPath::from_key(record.key)?.collection_group().to_owned());
            }
            seen += batch.len();
        }
        (groups, sections) = (groups + found.len(), sections + 1);
    }
    Ok((groups as f64 / f64::from(sections.max(1))).max(1.0))
}

/// Bytes that are stored, and what that comes from.
fn stored(basis: &Basis, scale: &Scale, sample: &Sample, body_bytes: u64) -> (u64, String) {
    let raw = scale.changed * (body_bytes + INDEX_BYTES);
    let parent = basis.parent.as_ref().map(SnapshotReader::snapshot);
    if let Some(parent) = parent
        && parent.replaces.is_none()
        && let Some((changed @ 1.., deleted)) = last_night(parent)
    {
        let each = parent.stats.stored_bytes as f64 / (changed + deleted) as f64;
        let stored = each * (scale.changed + scale.deleted) as f64;
        let from = format!(
            "stored bytes: as much for a document as in the backup {}",
            parent.id
        );
        return (stored.round() as u64, from);
    }
    let known = parent.or(basis.listing.snapshots.first());
    match known.map(|snapshot| (snapshot, &snapshot.stats)) {
        Some((snapshot, stats)) if stats.new_bytes > 0 => {
            let ratio = stats.stored_bytes as f64 / stats.new_bytes as f64;
            let from = format!("stored bytes: compressed as those of the backup {}", snapshot.id);
            ((raw as f64 * ratio).round() as u64, from)
        }
        _ => {
            let from = "stored bytes: compressed as the sample".to_owned();
            ((raw as f64 * sample.ratio).round() as u64, from)
        }
    }
}

/// Some documents, for what one takes.
struct Sample {
    documents: u64,
    /// Canonical bytes of a document's fields.
    body_bytes: u64,
    /// Bytes of an answer with a whole document.
    whole_bytes: u64,
    /// Bytes of an answer with a name.
    name_bytes: u64,
    /// Stored bytes for each of the fields' bytes.
    ratio: f64,
}

impl Sample {
    /// Reads a few documents from all over the database. What is taken from a collection counts by how many documents it has.
    async fn take(
        database: &Firestore,
        options: &BackupOptions,
        basis: &Basis,
        documents: u64,
    ) -> Result<Self, BackupError> {
        let most = SAMPLE.min(documents / SAMPLE_SHARE + 1);
        let places = Self::places(database, options, basis).await?;
        let each = (most / (places.len() as u64).max(1)).max(1);
        let root = database.database().root().len() as u64;
        let mut sample = Self {
            documents: 0,
            body_bytes: 0,
            whole_bytes: 0,
            name_bytes: root + NAME_OVERHEAD,
            ratio: 1.0,
        };
        let (mut bodies, mut paths, mut wire) = (Vec::new(), 0.0, 0.0);
        let (mut weights, mut weighed) = (0.0, 0.0);
        for (place, weight) in places {
            if sample.documents >= most {
                break;
            }
            let before = database.stats().counts();
            let mut batch = None;
            for (range, groups) in options.selection.parts(&place) {
                let options = ScanOptions {
                    groups: groups.to_vec(),
                    page_documents: u32::try_from(each).ok(),
                    batch_documents: usize::try_from(each).unwrap_or(usize::MAX),
                    ..ScanOptions::new(range, basis.read_time)
                };
                let mut batches = database.scan(options).boxed();
                batch = batches.try_next().await?;
                if batch.is_some() {
                    break;
                }
            }
            let Some(batch) = batch else { continue };
            let count = batch.len() as f64;
            let received = database.stats().counts().since(&before).received_bytes;
            sample.documents += batch.len() as u64;
            for document in batch.iter() {
                bodies.extend_from_slice(document.body);
                weighed += weight * document.body.len() as f64 / count;
                paths += weight * document.path()?.as_str().len() as f64 / count;
            }
            wire += weight * received as f64 / count;
            weights += weight;
        }
        if weights > 0.0 {
            let mean = |sum: f64| (sum / weights).round() as u64;
            sample.body_bytes = mean(weighed);
            sample.whole_bytes = mean(wire);
            sample.name_bytes += mean(paths);
        }
        if !bodies.is_empty() {
            // Into memory that is large enough; a failure would be no reason not to tell the rest.
            let compressed = zstd::bulk::compress(&bodies, COMPRESSION);
            sample.ratio = compressed.map_or(1.0, |compressed| compressed.len() as f64 / bodies.len() as f64);
        }
        Ok(sample)
    }

    /// Where to take it from: all over the parent, or from each root collection, by how many documents they have.
    async fn places(
        database: &Firestore,
        options: &BackupOptions,
        basis: &Basis,
    ) -> Result<Vec<(KeyRange, f64)>, BackupError> {
        if let Some(parent) = &basis.parent {
            let boundaries = parent.page_boundaries(PLACES).await;
            let boundaries = boundaries.map_err(|error| BackupError::of_parent(parent.id(), error))?;
            let parts = KeyRange::all().cut_at(&boundaries);
            return Ok(parts.into_iter().map(|part| (part, 1.0)).collect());
        }
        let read_time = basis.read_time;
        let ids = database.collection_ids(None, Some(read_time));
        let ids: Vec<String> = ids.try_collect().await?;
        let mut places = Vec::new();
        let step = ids.len().div_ceil(COLLECTIONS).max(1);
        for id in ids.iter().step_by(step) {
            let Ok(collection) = CollectionPath::parse(id.as_str()) else {
                continue;
            };
            for (range, groups) in options.selection.parts(&collection.key_range()) {
                let counted = match database.walks() {
                    true => None,
                    false => plan::count(database, &range, groups, None, read_time).await?,
                };
                match counted {
                    Some(0) => {}
                    counted => places.push((range, counted.unwrap_or(1) as f64)),
                }
            }
        }
        Ok(places)
    }

    /// Bytes of an answer with a document of this size.
    fn wire_bytes(&self, body_bytes: u64) -> u64 {
        match self.body_bytes {
            0 => body_bytes + self.name_bytes,
            of_sample => {
                let fields = self.whole_bytes.saturating_sub(self.name_bytes);
                self.name_bytes + fields * body_bytes / of_sample
            }
        }
    }

    fn said(&self) -> String {
        match self.documents {
            1 => "bytes: from a sample of 1 document".to_owned(),
            count => format!("bytes: from a sample of {count} documents"),
        }
    }
}
