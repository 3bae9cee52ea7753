//! Whether a field can be asked: tried out, collection group by collection group.
//!
//! Firestore keeps an index of every field for each collection, and none over the collections of a group, so the queries of
//! this module need one that somebody has to make. A query that needs a missing one is refused at once, whatever it would find.

use std::collections::BTreeSet;

use futures::TryStreamExt;

use super::asked::query;
use crate::archive::{Snapshot, SnapshotKind};
use crate::backup::ChangeField;
use crate::document::{DocumentPath, KeyRange, Timestamp};
use crate::firestore::{Error, Firestore, Query, Result};

/// Whether a field of a collection group can be asked.
#[derive(Debug)]
pub struct FieldCheck {
    /// The collection group.
    pub collection_group: String,
    /// The refusal, if it is refused.
    pub refusal: Option<Error>,
    /// The command that makes the index which asking needs.
    pub index_command: String,
}

/// Tries the field on every collection group that is known: those of the newest of these backups of the database, and the root
/// collections as the server lists them now. Bills a read for each.
///
/// # Errors
/// When the server cannot be asked at all.
pub async fn check_field(
    database: &Firestore,
    field: &ChangeField,
    snapshots: &[Snapshot],
) -> Result<Vec<FieldCheck>> {
    let mut groups: BTreeSet<String> = database.collection_ids(None, None).try_collect().await?;
    let newest = snapshots
        .iter()
        .filter(|snapshot| snapshot.kind == SnapshotKind::Backup && snapshot.database == *database.database())
        .max_by_key(|snapshot| (snapshot.selection.is_all(), snapshot.read_time));
    if let Some(newest) = newest {
        let known = newest.collection_groups.keys().filter(|name| !name.is_empty());
        groups.extend(known.cloned());
    }
    let now = database.current_read_time().await?;
    let mut checks = Vec::with_capacity(groups.len());
    for collection_group in groups {
        let refusal = match database
            .count_query(&bounded(field, &collection_group, now)?, None)
            .await
        {
            Ok(_) => None,
            Err(error @ (Error::Rejected { .. } | Error::Unsupported { .. })) => Some(error),
            Err(error) => return Err(error),
        };
        checks.push(FieldCheck {
            index_command: field.index_command(database.database(), &collection_group),
            collection_group,
            refusal,
        });
    }
    Ok(checks)
}

/// A query as a backup asks it, with bounds for names.
fn bounded(field: &ChangeField, group: &str, from: Timestamp) -> Result<Query> {
    let somewhere = DocumentPath::parse(format!("{group}/0")).map(|path| path.key());
    query(&field.field, group, from).within(&KeyRange {
        start: somewhere.ok(),
        end: None,
    })
}
