//! One document through the snapshots: when it appeared, which fields changed, when it went.

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::archive::{ChangeKind, Lease, Repository, Snapshot};
use crate::diff::{DiffError, fields_between};
use crate::document::{DocumentBatch, DocumentPath, FieldChange};

/// Snapshots that are looked into at the same time.
const PARALLEL: usize = 8;

/// A stretch of snapshots that hold the same of a document.
#[derive(Clone, Debug)]
pub struct Version {
    /// The first and the last snapshot of the stretch, by read time.
    pub snapshots: (Snapshot, Snapshot),
    /// How many snapshots it has.
    pub count: usize,
    /// How it differs from the stretch before; the first is [`ChangeKind::Added`].
    pub kind: ChangeKind,
    /// The document, as a batch of one; `None` where it is deleted.
    pub document: Option<DocumentBatch>,
    /// The fields that changed since the stretch before.
    pub fields: Vec<FieldChange>,
}

/// The versions of a document in some snapshots, the oldest first. Snapshots from before its first appearance make no
/// version, nor do those whose selection leaves it out.
pub async fn history(
    repository: &Repository,
    mut snapshots: Vec<Snapshot>,
    path: &DocumentPath,
) -> Result<Vec<Version>, DiffError> {
    let key = path.key();
    snapshots.retain(|snapshot| snapshot.selection.contains(key.as_bytes()));
    let ids: Vec<_> = snapshots.iter().map(|snapshot| snapshot.id).collect();
    let lease = Lease::take(repository, &ids, "history").await?;
    snapshots.retain(|snapshot| !lease.fallen().contains(&snapshot.id));
    let versions = versions(repository, snapshots, path).await;
    lease.release().await;
    versions
}

async fn versions(
    repository: &Repository,
    mut snapshots: Vec<Snapshot>,
    path: &DocumentPath,
) -> Result<Vec<Version>, DiffError> {
    snapshots.sort_by_key(|snapshot| (snapshot.read_time, snapshot.finished_at, snapshot.id));
    let mut found = stream::iter(snapshots)
        .map(|snapshot| async move {
            let document = repository.reader(&snapshot).await?.get(path).await?;
            Ok::<_, DiffError>((snapshot, document))
        })
        .buffered(PARALLEL)
        .boxed();
    let mut versions: Vec<Version> = Vec::new();
    while let Some((snapshot, document)) = found.try_next().await? {
        let new = document.as_ref().and_then(|batch| batch.get(0));
        let kind = match versions.last().map(|version| &version.document) {
            None | Some(None) if new.is_none() => None,
            None | Some(None) => Some(ChangeKind::Added),
            Some(Some(old)) => match (old.get(0), new) {
                (Some(old), Some(new)) if old.body != new.body => Some(ChangeKind::Changed),
                (Some(old), Some(new)) if old != new => Some(ChangeKind::Rewritten),
                (Some(_), None) => Some(ChangeKind::Deleted),
                _ => None,
            },
        };
        match (kind, versions.last_mut()) {
            (None, None) => {}
            (None, Some(last)) => {
                last.snapshots.1 = snapshot;
                last.count += 1;
            }
            (Some(kind), last) => {
                let old = last.and_then(|version| version.document.as_ref()?.get(0));
                let fields = match (old, new) {
                    (Some(old), Some(new)) => fields_between(path, old.body, new.body)?,
                    _ => Vec::new(),
                };
                versions.push(Version {
                    snapshots: (snapshot.clone(), snapshot),
                    count: 1,
                    kind,
                    document,
                    fields,
                });
            }
        }
    }
    Ok(versions)
}
