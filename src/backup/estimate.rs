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

mod night;
mod sample;
mod scale;

use sample::Sample;
use scale::Scale;

use super::begin::{self, Basis};
use super::{BackupError, BackupOptions, plan, since};
use crate::archive::{ReadMode, Repository, SnapshotId, SnapshotReader};
use crate::cost::Billed;
use crate::document::{DatabaseName, Timestamp};
use crate::firestore::Firestore;
use crate::progress::Progress;

/// Bytes of an answer that is a count, or that there is nothing.
const COUNT_BYTES: u64 = 40;

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
    let (stored_bytes, from) = sample::stored(&basis, &scale, &sample, body_bytes);
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
