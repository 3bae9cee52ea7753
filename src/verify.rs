//! Checks that snapshots are intact: their structure, that every object is there, and on demand every byte; and whether a
//! database holds what a snapshot holds.

mod counts;
mod database;
mod restored;
mod shared;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::archive::forget::is_missing_object;
use crate::archive::{
    ArchiveError, CheckStats, Damage, DamageReport, DataSubset, Lease, Repository, RunRef, Snapshot,
    SnapshotId, SnapshotReader, check_contents, check_data, check_presence,
};
use crate::document::CollectionPath;
use crate::progress::Progress;

pub use counts::{CountOf, CountStats, CountedPart, verify_counts};
pub use database::{CompareOptions, DatabaseStats, Sample, verify_database, verify_sample};
pub use restored::{VerifyRestoreError, verify_restore};
pub use shared::{SharedVerification, VerifySharedError, verify_shared};

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// The snapshots; `None`: all that the repository has.
    pub snapshots: Option<Vec<Snapshot>>,
    /// Which part of the data to read and hash; `None`: none of it.
    pub read_data: Option<DataSubset>,
}

impl VerifyOptions {
    /// All snapshots, every byte.
    pub fn read_everything() -> Self {
        Self {
            snapshots: None,
            read_data: Some(DataSubset::ALL),
        }
    }
}

/// What was looked at and what was found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VerifyStats {
    /// Snapshots that were checked.
    pub snapshots: u64,
    /// Documents that these hold, those that several share counted in each.
    pub documents: u64,
    /// Objects whose existence and size were checked.
    pub objects: u64,
    /// Bytes of objects that were read.
    pub stored_bytes: u64,
    /// Bytes of data that were decompressed and hashed.
    pub data_bytes: u64,
    /// Places that are damaged.
    pub damage_count: u64,
    /// The first of them.
    pub damage: Vec<Damage>,
    /// How long it took.
    pub duration: Duration,
}

impl VerifyStats {
    /// Whether nothing is damaged.
    pub fn is_intact(&self) -> bool {
        self.damage_count == 0
    }

    /// Adds another part of the data. The structure may have been looked at with each.
    fn add(&mut self, other: Self) {
        self.snapshots = self.snapshots.max(other.snapshots);
        self.documents = self.documents.max(other.documents);
        self.objects = self.objects.max(other.objects);
        self.stored_bytes += other.stored_bytes;
        self.data_bytes += other.data_bytes;
        self.add_damage(other.damage, other.damage_count);
    }

    /// Adds damage that may be known in part: what is wrong with the structure is found by each process.
    fn add_damage(&mut self, damage: Vec<Damage>, count: u64) {
        self.damage_count += count;
        for damage in damage {
            let is_same = |known: &&Damage| (&known.object, &known.what) == (&damage.object, &damage.what);
            match self.damage.iter().any(|known| is_same(&known)) {
                true => self.damage_count -= 1,
                false if self.damage.len() < DamageReport::KEPT => self.damage.push(damage),
                false => {}
            }
        }
    }
}

/// Checks snapshots. Damage is a finding and never stops the check of the rest.
///
/// Snapshots that retention gives up meanwhile are not damaged: of all snapshots, they are left out.
///
/// # Errors
/// When the repository cannot be read for another reason than damage: then nothing can be said. And
/// [`ArchiveError::Forgotten`] when a snapshot that was asked for was given up meanwhile.
pub async fn verify(
    repository: &Repository,
    options: VerifyOptions,
    progress: &Progress,
) -> Result<VerifyStats, ArchiveError> {
    look(repository, options, Look::Everything, None, progress).await
}

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Look {
    /// The structure, and the data.
    Everything,
    /// The data alone.
    Data,
}

/// Where no snapshots are named, looks at all, or at those of `among` that are still there.
async fn look(
    repository: &Repository,
    options: VerifyOptions,
    at: Look,
    among: Option<&[SnapshotId]>,
    progress: &Progress,
) -> Result<VerifyStats, ArchiveError> {
    let start = Instant::now();
    loop {
        let mut report = DamageReport::default();
        let mut snapshots = match &options.snapshots {
            Some(snapshots) => snapshots.clone(),
            None => {
                let listing = repository.snapshots().await?;
                for (_, error) in listing.unreadable {
                    report.add(error.into_damage()?);
                }
                let mut snapshots = listing.snapshots;
                snapshots.retain(|snapshot| among.is_none_or(|among| among.contains(&snapshot.id)));
                snapshots
            }
        };
        let ids: Vec<SnapshotId> = snapshots.iter().map(|snapshot| snapshot.id).collect();
        let lease = Lease::take(repository, &ids, "verify").await?;
        let mut fallen = lease.fallen().to_vec();
        snapshots.retain(|snapshot| !fallen.contains(&snapshot.id));
        let checked = match options.snapshots.is_some() && !fallen.is_empty() {
            true => Ok(VerifyStats::default()),
            false => {
                let data = options.read_data;
                check(repository, &snapshots, (at, data), &mut report, progress).await
            }
        };
        lease.release().await;
        let mut stats = checked?;
        // Only a reader without a lease, or with one that was taken for dead, can meet this.
        let lost = report.damages().iter().any(is_missing_object);
        if lost {
            fallen.extend(repository.fallen(&ids).await?);
        }
        match fallen.first() {
            Some(&snapshot) if options.snapshots.is_some() => {
                return Err(ArchiveError::Forgotten { snapshot });
            }
            Some(_) if lost => continue,
            _ => {}
        }
        stats.damage_count = report.count();
        stats.damage = report.damages().to_vec();
        for damage in &mut stats.damage {
            name_collections(damage, &snapshots);
        }
        stats.duration = start.elapsed();
        return Ok(stats);
    }
}

/// Names every root collection that a damage may affect. What found it knows the first and the last of the keys at most; what the
/// snapshots have between them, or at all where the object is needed to read any of it, they say themselves.
fn name_collections(damage: &mut Damage, snapshots: &[Snapshot]) {
    let needs = |snapshot: &&Snapshot| {
        let is_root = |run: &RunRef| run.root.is_none() && run.name() == damage.object;
        snapshot.runs.iter().any(is_root) || snapshot.refs.contains(&damage.object)
    };
    let concerned: Vec<&Snapshot> = match &damage.span {
        // All below one root, and said more closely than that.
        Some(_) if damage.affected.len() == 1 => return,
        Some(_) => snapshots.iter().collect(),
        None => snapshots.iter().filter(needs).collect(),
    };
    let names = concerned.iter().flat_map(|snapshot| snapshot.collections.keys());
    let touched = names.filter(|name| {
        let range = CollectionPath::parse(name.as_str()).map(|path| path.key_range());
        match (&damage.span, range) {
            (Some(span), Ok(range)) => !span.intersection(&range).is_empty(),
            (None, range) => range.is_ok(),
            (_, Err(_)) => false,
        }
    });
    let named: BTreeSet<String> = touched.chain(&damage.affected).cloned().collect();
    damage.affected = named.into_iter().collect();
}

async fn check(
    repository: &Repository,
    snapshots: &[Snapshot],
    (look, data): (Look, Option<DataSubset>),
    report: &mut DamageReport,
    progress: &Progress,
) -> Result<VerifyStats, ArchiveError> {
    let mut stats = VerifyStats {
        snapshots: snapshots.len() as u64,
        ..VerifyStats::default()
    };
    let mut readers: Vec<SnapshotReader> = Vec::with_capacity(snapshots.len());
    for snapshot in snapshots {
        // Not `Repository::reader`, which tells what is forgotten from what is damaged: that is looked at for all at once.
        match SnapshotReader::open(repository, snapshot).await {
            Ok(reader) => readers.push(reader),
            Err(error) => report.add(error.into_damage()?),
        }
    }
    progress.set_total_documents(snapshots.iter().map(|snapshot| snapshot.documents).sum());

    stats.documents = readers.iter().map(|reader| reader.snapshot().documents).sum();
    let read = match (look, data) {
        (Look::Everything, data) => {
            stats.objects = check_presence(&readers, report).await?.objects;
            check_contents(&readers, data, report, progress).await?
        }
        (Look::Data, Some(data)) => check_data(&readers, data, report, progress).await?,
        (Look::Data, None) => CheckStats::default(),
    };
    stats.stored_bytes = read.stored_bytes;
    stats.data_bytes = read.raw_bytes;
    Ok(stats)
}
