//! Finding the snapshot that a user means, and what `--json` tells of one.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::UsageError;
use super::options::GlobalOptions;
use super::snapshot_filter::SnapshotFilterArgs;
use crate::archive::{
    ArchiveError, Consistency, Counts, ReadMode, Repository, Selection, Snapshot, SnapshotFilter,
    SnapshotKind,
};
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
    find_filtered(global, repository, wanted, &SnapshotFilterArgs::default()).await
}

/// The same, where `latest` is the newest with some tags or of some machine.
pub(crate) async fn find_filtered(
    global: &GlobalOptions,
    repository: &Repository,
    wanted: &str,
    filter: &SnapshotFilterArgs,
) -> anyhow::Result<Snapshot> {
    let filter = match wanted {
        "latest" => SnapshotFilter {
            database: chosen_database(global, repository, "`latest`").await?,
            ..filter.of_latest()
        },
        _ if !filter.is_empty() => {
            return Err(UsageError::new(
                "--tag and --host go with `latest`: an id names one snapshot",
            ));
        }
        _ => SnapshotFilter::default(),
    };
    Ok(repository.resolve(wanted, &filter).await?)
}

/// What reading a snapshot came to. An object that is missing because the snapshot was forgotten meanwhile is told so.
pub(crate) async fn read_of<T>(
    repository: &Repository,
    snapshot: &Snapshot,
    read: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match read.await.map_err(|error| error.downcast::<ArchiveError>()) {
        Ok(read) => Ok(read),
        Err(Ok(error)) => Err(repository.explain(snapshot.id, error).await.into()),
        Err(Err(error)) => Err(error),
    }
}

/// The database that the options name, or the only one that the repository holds; `None` when it holds none.
pub(crate) async fn chosen_database(
    global: &GlobalOptions,
    repository: &Repository,
    what: &str,
) -> anyhow::Result<Option<DatabaseName>> {
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
                "{what} of which database? The repository holds {}: name one with --project and --database, or \
                 give a snapshot's id",
                names.join(", ")
            )
        }
    }
}

/// How old a snapshot's documents were when it was committed, in seconds. The read time is the server's and the commit this
/// machine's: where their clocks disagree by more than that, there is none.
pub(crate) fn lag_seconds(snapshot: &Snapshot) -> f64 {
    let read_time = snapshot.read_time.seconds as f64 + f64::from(snapshot.read_time.nanos) / 1e9;
    let committed = snapshot.finished_at.timestamp_micros() as f64 / 1e6;
    (committed - read_time).max(0.0)
}

/// What `--json` tells of a snapshot: what it is, without the places of its parts in the repository.
#[derive(Serialize)]
pub(crate) struct SnapshotView<'a> {
    id: String,
    /// When the backup began.
    time: DateTime<Utc>,
    /// The moment that the documents are of.
    read_time: String,
    /// From then to the commit.
    lag_seconds: f64,
    kind: SnapshotKind,
    project: &'a str,
    database: &'a str,
    selection: &'a Selection,
    consistency: &'a Consistency,
    documents: u64,
    /// Bytes of the documents' fields.
    bytes: u64,
    /// Bytes of fields that no earlier snapshot held.
    new_bytes: u64,
    /// Bytes that the backup added to the repository.
    stored_bytes: u64,
    /// How the database was read.
    read: ReadMode,
    /// Documents by how they compare with the parent; without one all are new.
    new_documents: u64,
    changed_documents: u64,
    deleted_documents: u64,
    unchanged_documents: u64,
    billed_reads: u64,
    seconds: f64,
    layers: usize,
    parent: Option<String>,
    tags: &'a [String],
    host: Option<&'a str>,
    description: Option<&'a str>,
    tool_version: &'a str,
    /// Documents and bytes by root collection, with everything below it.
    collections: &'a Counts,
}

impl<'a> SnapshotView<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot) -> Self {
        let duration = snapshot.finished_at - snapshot.started_at;
        Self {
            id: snapshot.id.to_string(),
            time: snapshot.started_at,
            read_time: snapshot.read_time.to_string(),
            lag_seconds: lag_seconds(snapshot),
            kind: snapshot.kind,
            project: &snapshot.database.project,
            database: &snapshot.database.database,
            selection: &snapshot.selection,
            consistency: &snapshot.consistency,
            documents: snapshot.documents,
            bytes: snapshot.body_bytes,
            new_bytes: snapshot.stats.new_bytes,
            stored_bytes: snapshot.stats.stored_bytes,
            read: snapshot.stats.read,
            new_documents: snapshot.stats.new_documents,
            changed_documents: snapshot.stats.changed_documents,
            deleted_documents: snapshot.stats.deleted_documents,
            unchanged_documents: snapshot.stats.unchanged_documents,
            billed_reads: snapshot.stats.billed_reads,
            seconds: duration.as_seconds_f64(),
            layers: snapshot.runs.len(),
            parent: snapshot.parent.map(|parent| parent.to_string()),
            tags: &snapshot.tags,
            host: snapshot.host.as_deref(),
            description: snapshot.description.as_deref(),
            tool_version: &snapshot.tool_version,
            collections: &snapshot.collections,
        }
    }
}
