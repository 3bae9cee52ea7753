//! Checks that snapshots are intact: their structure, that every object is there, and on demand every byte.

use std::time::{Duration, Instant};

use crate::archive::{
    ArchiveError, Damage, DamageReport, DataSubset, Repository, Snapshot, SnapshotReader, check_contents,
    check_presence,
};
use crate::progress::Progress;

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
#[derive(Clone, Debug, Default)]
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
}

/// Checks snapshots. Damage is a finding and never stops the check of the rest.
///
/// # Errors
/// When the repository cannot be read for another reason than damage: then nothing can be said.
pub async fn verify(
    repository: &Repository,
    options: VerifyOptions,
    progress: &Progress,
) -> Result<VerifyStats, ArchiveError> {
    let start = Instant::now();
    let mut report = DamageReport::default();
    let snapshots = match options.snapshots {
        Some(snapshots) => snapshots,
        None => {
            let listing = repository.snapshots().await?;
            for (_, error) in listing.unreadable {
                report.add(error.into_damage()?);
            }
            listing.snapshots
        }
    };
    let mut stats = VerifyStats {
        snapshots: snapshots.len() as u64,
        ..VerifyStats::default()
    };
    let mut readers: Vec<SnapshotReader> = Vec::with_capacity(snapshots.len());
    for snapshot in &snapshots {
        match repository.reader(snapshot).await {
            Ok(reader) => readers.push(reader),
            Err(error) => report.add(error.into_damage()?),
        }
    }
    progress.set_total_documents(snapshots.iter().map(|snapshot| snapshot.documents).sum());

    stats.documents = readers.iter().map(|reader| reader.snapshot().documents).sum();
    stats.objects = check_presence(&readers, &mut report).await?.objects;
    let read = check_contents(&readers, options.read_data, &mut report, progress).await?;
    stats.stored_bytes = read.stored_bytes;
    stats.data_bytes = read.raw_bytes;
    stats.damage_count = report.count();
    stats.damage = report.damages().to_vec();
    stats.duration = start.elapsed();
    Ok(stats)
}
