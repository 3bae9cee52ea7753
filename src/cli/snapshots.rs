//! Finding the snapshot that a user means.

use super::options::GlobalOptions;
use crate::archive::{Repository, Snapshot, SnapshotFilter};
use crate::document::DatabaseName;

/// The snapshot that `wanted` names: an id, a unique prefix, or `latest`.
///
/// `latest` is the newest of the whole database that the options name. When they name none, or one that the repository
/// knows nothing of, it is the newest of the only database that the repository holds.
pub(crate) async fn find_snapshot(
    global: &GlobalOptions,
    repository: &Repository,
    wanted: &str,
) -> anyhow::Result<Snapshot> {
    let filter = match wanted {
        "latest" => SnapshotFilter {
            database: latest_of(global, repository).await?,
            ..SnapshotFilter::default()
        },
        _ => SnapshotFilter::default(),
    };
    Ok(repository.resolve(wanted, &filter).await?)
}

async fn latest_of(global: &GlobalOptions, repository: &Repository) -> anyhow::Result<Option<DatabaseName>> {
    let mut databases: Vec<DatabaseName> = repository
        .snapshots()
        .await?
        .snapshots
        .into_iter()
        .map(|snapshot| snapshot.database)
        .collect();
    databases.sort_by(|a, b| (&a.project, &a.database).cmp(&(&b.project, &b.database)));
    databases.dedup();
    let named = global
        .named_project()
        .map(|project| DatabaseName::new(project, global.database_id()));
    if let Some(named) = named.filter(|named| databases.contains(named)) {
        return Ok(Some(named));
    }
    match <[DatabaseName; 1]>::try_from(databases) {
        Ok([only]) => Ok(Some(only)),
        Err(databases) if databases.is_empty() => Ok(None),
        Err(databases) => {
            let names: Vec<String> = databases.iter().map(ToString::to_string).collect();
            anyhow::bail!(
                "`latest` of which database? The repository holds {}: name one with --project and --database, or \
                 give a snapshot's id",
                names.join(", ")
            )
        }
    }
}
