//! What a document takes: a few from all over the database, and what the repository knows.

use futures::{StreamExt, TryStreamExt};

use super::super::begin::Basis;
use super::super::{BackupError, BackupOptions, plan};
use super::scale::{Scale, last_night};
use crate::archive::SnapshotReader;
use crate::document::{CollectionPath, KeyRange};
use crate::firestore::{Firestore, ScanOptions};

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
/// The level of zstd that repositories are compressed with.
const COMPRESSION: i32 = 3;

/// Bytes that are stored, and what that comes from.
pub(super) fn stored(basis: &Basis, scale: &Scale, sample: &Sample, body_bytes: u64) -> (u64, String) {
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
pub(super) struct Sample {
    pub(super) documents: u64,
    /// Canonical bytes of a document's fields.
    pub(super) body_bytes: u64,
    /// Bytes of an answer with a whole document.
    pub(super) whole_bytes: u64,
    /// Bytes of an answer with a name.
    pub(super) name_bytes: u64,
    /// Stored bytes for each of the fields' bytes.
    pub(super) ratio: f64,
}

impl Sample {
    /// Reads a few documents from all over the database. What is taken from a collection counts by how many documents it has.
    pub(super) async fn take(
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
    pub(super) fn wire_bytes(&self, body_bytes: u64) -> u64 {
        match self.body_bytes {
            0 => body_bytes + self.name_bytes,
            of_sample => {
                let fields = self.whole_bytes.saturating_sub(self.name_bytes);
                self.name_bytes + fields * body_bytes / of_sample
            }
        }
    }

    pub(super) fn said(&self) -> String {
        match self.documents {
            1 => "bytes: from a sample of 1 document".to_owned(),
            count => format!("bytes: from a sample of {count} documents"),
        }
    }
}
