//! How much there is to back up: counts, the parent's night, and what a field tells.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};

use super::super::begin::Basis;
use super::super::{BackupError, BackupOptions, changed, plan, since};
use crate::archive::{ReadMode, Selection, Snapshot, SnapshotReader};
use crate::document::{DocumentPath, KeyRange, Timestamp};
use crate::firestore::{self, Firestore};

/// How much there is, and how much of it has changed.
pub(super) struct Scale {
    pub(super) documents: u64,
    pub(super) changed: u64,
    pub(super) deleted: u64,
    /// Documents that a field tells of, those that the parent has already among them.
    pub(super) told: u64,
    /// Collection groups in a section of the parent.
    pub(super) groups: f64,
    /// Collection groups among a thousand documents of it.
    pub(super) leaf_groups: f64,
    /// Whether the server answers what is asked of the field.
    pub(super) answers: bool,
    /// Whether only one collection group is selected, which is counted when everything is.
    pub(super) one_group: bool,
}

impl Scale {
    /// Finds out, and says what that comes from.
    pub(super) async fn find(
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
            leaf_groups: 1.0,
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
            (scale.groups, scale.leaf_groups) = groups_of_a_section(basis).await?;
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
pub(super) fn last_night(parent: &Snapshot) -> Option<(u64, u64)> {
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

/// How many collection groups a section of the parent has, and a thousand of its documents, as some of them do.
pub(super) async fn groups_of_a_section(basis: &Basis) -> Result<(f64, f64), BackupError> {
    const LOOKED_AT: usize = 4;
    let Some(parent) = &basis.parent else {
        return Ok((1.0, 1.0));
    };
    let of_parent = |error| BackupError::of_parent(parent.id(), error);
    let boundaries = parent.page_boundaries(LOOKED_AT).await.map_err(of_parent)?;
    let (mut of_sections, mut of_leaves) = (Mean::default(), Mean::default());
    for part in KeyRange::all().cut_at(&boundaries) {
        let mut records = parent.records(part).boxed();
        let (mut in_section, mut in_leaf, mut seen) = (HashSet::new(), HashSet::new(), 0);
        while seen < changed::SECTION
            && let Some(batch) = records.try_next().await.map_err(of_parent)?
        {
            for record in batch.iter() {
                let group = DocumentPath::from_key(record.key)?.collection_group().to_owned();
                in_leaf.insert(group.clone());
                in_section.insert(group);
                seen += 1;
                if seen % 1000 == 0 {
                    of_leaves.add(in_leaf.len());
                    in_leaf.clear();
                }
            }
        }
        if !in_leaf.is_empty() {
            of_leaves.add(in_leaf.len());
        }
        of_sections.add(in_section.len());
    }
    Ok((of_sections.value(), of_leaves.value()))
}

#[derive(Default)]
struct Mean {
    sum: usize,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: usize) {
        self.sum += value;
        self.count += 1;
    }

    /// At least 1.
    fn value(&self) -> f64 {
        (self.sum as f64 / self.count.max(1) as f64).max(1.0)
    }
}
