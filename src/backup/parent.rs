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
        // With recovery, backups are of whole minutes, and two may be of the same.
        if snapshot.latest_read_time() > self.read_time {
            return Some("it is of a later time than this backup");
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::archive::{Consistency, SnapshotStats};
    use crate::clock;
    use crate::document::CollectionPath;

    pub(in crate::backup) fn snapshot(read_time: i64) -> Snapshot {
        Snapshot {
            id: SnapshotId::from_u64(7),
            kind: SnapshotKind::Backup,
            database: DatabaseName::new("shop", "(default)"),
            database_uid: Some("one".to_owned()),
            read_time: Timestamp::new(read_time, 0),
            consistency: Consistency::Consistent,
            started_at: clock::now(),
            finished_at: clock::now(),
            selection: Selection::all(),
            documents: 1,
            body_bytes: 1,
            runs: Vec::new(),
            parent: None,
            pins: Vec::new(),
            replaces: None,
            refs: Vec::new(),
            tags: Vec::new(),
            description: None,
            host: None,
            tool_version: String::new(),
            stats: SnapshotStats::default(),
            collections: BTreeMap::new(),
            collection_groups: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Whether a snapshot of time 1 is the parent of what is wanted.
    fn is_parent(change: impl FnOnce(&mut Snapshot, &mut Wanted<'_>)) -> bool {
        let (database, all) = (DatabaseName::new("shop", "(default)"), Selection::all());
        let mut wanted = Wanted {
            database: &database,
            uid: Some("one"),
            selection: &all,
            read_time: Timestamp::new(2, 0),
        };
        let mut listing = SnapshotListing::default();
        let mut candidate = snapshot(1);
        change(&mut candidate, &mut wanted);
        listing.snapshots.push(candidate);
        newest(&listing, &wanted).is_some()
    }

    #[test]
    fn the_parent_is_of_the_same() {
        assert!(is_parent(|_, _| {}));
        assert!(is_parent(|_, wanted| wanted.read_time = Timestamp::new(1, 0)));
        assert!(!is_parent(
            |_, wanted| wanted.read_time = Timestamp::new(0, 999_999_000)
        ));
        assert!(!is_parent(
            |snapshot, _| snapshot.kind = SnapshotKind::BeforeImages
        ));
        assert!(!is_parent(
            |snapshot, _| snapshot.database.project = "other".to_owned()
        ));
        assert!(!is_parent(
            |snapshot, _| snapshot.database.database = "other".to_owned()
        ));
        let products = || CollectionPath::parse("products").unwrap();
        assert!(!is_parent(
            |snapshot, _| snapshot.selection = Selection::new(vec![products()], vec![])
        ));
        assert!(!is_parent(|snapshot, _| snapshot.documents = 0));
        // Deleted and made again under its name; an identity that nobody knows speaks neither way.
        assert!(!is_parent(|_, wanted| wanted.uid = Some("two")));
        assert!(is_parent(|_, wanted| wanted.uid = None));
        assert!(is_parent(|snapshot, _| snapshot.database_uid = None));
    }
}
