//! Which snapshot a backup builds upon, and which it only shares chunks with.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::{BackupError, BackupOptions, Parent};
use crate::archive::{
    Repository, Selection, Snapshot, SnapshotFilter, SnapshotId, SnapshotKind, SnapshotListing,
};
use crate::document::{DatabaseName, Timestamp};

/// What a parent has to be of.
pub(super) struct Wanted<'a> {
    pub(super) database: &'a DatabaseName,
    pub(super) uid: Option<&'a str>,
    pub(super) selection: &'a Selection,
    pub(super) read_time: Timestamp,
}

impl Wanted<'_> {
    /// Why a snapshot cannot be the parent. An identity that one side does not know is no reason: times and names are
    /// compared anyway, and not every account may ask for it.
    fn objection(&self, snapshot: &Snapshot) -> Option<&'static str> {
        if snapshot.kind != SnapshotKind::Backup {
            return Some("it is no backup");
        }
        if snapshot.database != *self.database {
            return Some("it is of another database");
        }
        if snapshot.selection != *self.selection {
            return Some("it is of another selection");
        }
        if let (Some(theirs), Some(ours)) = (&snapshot.database_uid, self.uid)
            && theirs != ours
        {
            return Some("the database was deleted and made again since then");
        }
        if snapshot.read_time >= self.read_time {
            return Some("it is not older than this backup");
        }
        None
    }
}

/// The snapshot to build upon, `None` for a backup that stands by itself.
pub(super) async fn find(
    repository: &Repository,
    listing: &SnapshotListing,
    options: &BackupOptions,
    wanted: &Wanted<'_>,
) -> Result<Option<Snapshot>, BackupError> {
    match &options.parent {
        Parent::None => Ok(None),
        Parent::Snapshot(name) => {
            let filter = SnapshotFilter {
                database: Some(wanted.database.clone()),
                selection: Some(wanted.selection.clone()),
                ..SnapshotFilter::default()
            };
            let snapshot = repository.resolve(name, &filter).await?;
            match wanted.objection(&snapshot) {
                None => Ok(Some(snapshot)),
                Some(why) => Err(BackupError::NotAParent {
                    snapshot: snapshot.id,
                    why,
                }),
            }
        }
        Parent::Newest => Ok(newest(listing, wanted)),
    }
}

fn newest(listing: &SnapshotListing, wanted: &Wanted<'_>) -> Option<Snapshot> {
    for (name, error) in &listing.unreadable {
        warn!("`{name}` cannot be the parent: {error}");
    }
    let parent = listing
        .snapshots
        .iter()
        .find(|snapshot| wanted.objection(snapshot).is_none());
    if parent.is_none() {
        let remade = listing.snapshots.iter().find(|snapshot| {
            snapshot.database == *wanted.database && snapshot.selection == *wanted.selection
        });
        if let Some(snapshot) = remade {
            let why = wanted.objection(snapshot).unwrap_or_default();
            info!("the backup does not build upon snapshot {}: {why}", snapshot.id);
        }
    }
    // Nothing to compare with, and nothing that says where documents may be.
    parent.filter(|parent| parent.documents > 0).cloned()
}

/// What a backup without a parent may reuse chunks from: the newest snapshot of every database in the repository, so that
/// copies of a database in other projects share theirs, and of every selection, so that a backup of some collections does
/// not make the next one of the whole database forget what is stored.
pub(super) fn newest_of_every_selection(listing: &SnapshotListing) -> Vec<SnapshotId> {
    let mut newest: BTreeMap<(&str, &str, String), SnapshotId> = BTreeMap::new();
    for snapshot in &listing.snapshots {
        let DatabaseName { project, database } = &snapshot.database;
        newest
            .entry((project, database, snapshot.selection.to_string()))
            .or_insert(snapshot.id);
    }
    newest.into_values().collect()
}
