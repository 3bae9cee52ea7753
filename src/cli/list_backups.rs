//! `firebank list-backups`

use clap::Args;
use serde::Serialize;

use super::options::GlobalOptions;
use super::snapshot_filter::SnapshotFilterArgs;
use super::snapshots::SnapshotView;
use super::{Outcome, output};
use crate::archive::{ArchiveError, Repository, Snapshot, SnapshotId};
use crate::json::{Header, JsonBackup, list_folder};

#[derive(Args, Debug)]
pub(crate) struct ListBackupsCommand {
    #[command(flatten)]
    filter: SnapshotFilterArgs,
}

#[derive(Serialize)]
struct Listing<'a> {
    snapshots: Vec<SnapshotView<'a>>,
    unreadable: Vec<Unreadable>,
    json_backups: Vec<JsonEntry>,
}

#[derive(Serialize)]
struct JsonEntry {
    file: String,
    bytes: u64,
    collection: Option<String>,
    time: Option<String>,
    /// Documents directly in the collection.
    document_count: Option<u64>,
    /// All documents, where the file says so.
    total_document_count: Option<u64>,
    project: Option<String>,
    /// Why the file cannot be read.
    error: Option<String>,
}

impl JsonEntry {
    fn new(backup: JsonBackup) -> Self {
        let (header, error) = match backup.header {
            Ok(header) => (header, None),
            Err(error) => (Header::default(), Some(error.to_string())),
        };
        Self {
            file: backup
                .file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            bytes: backup.bytes,
            collection: error.is_none().then_some(header.collection),
            time: header.timestamp,
            document_count: header.document_count,
            total_document_count: header
                .metadata
                .as_ref()
                .and_then(|metadata| metadata.total_document_count),
            project: header.metadata.and_then(|metadata| metadata.firebase_project),
            error,
        }
    }
}

#[derive(Serialize)]
struct Unreadable {
    object: String,
    reason: String,
}

impl ListBackupsCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let folder = global.repository_folder()?;
        let repository = match global.open_repository().await {
            Err(error) if !is_not_a_repository(&error) => return Err(error),
            opened => opened,
        };
        let files = folder.as_deref().map(list_folder).transpose()?;
        let mut json_backups: Vec<JsonEntry> = files.into_iter().flatten().map(JsonEntry::new).collect();
        let (mut snapshots, unreadable) = snapshots(repository, !json_backups.is_empty()).await?;
        let filter = self.filter.prune_filter(global);
        snapshots.retain(|snapshot| filter.accepts(snapshot));
        // Files have neither tags nor hosts, and do not always say which database they are of.
        json_backups.retain(|backup| {
            self.filter.is_empty()
                && (filter.project.is_none() || backup.error.is_some() || backup.project == filter.project)
        });
        let output = global.output();
        show(output, &snapshots, &json_backups)?;
        for object in &unreadable {
            tracing::error!("{} cannot be read: {}", object.object, object.reason);
        }
        for backup in &json_backups {
            if let Some(reason) = &backup.error {
                tracing::error!("{reason}");
            }
        }
        let readable = unreadable.is_empty() && json_backups.iter().all(|backup| backup.error.is_none());
        let outcome = if readable {
            Outcome::Done
        } else {
            Outcome::NeedsLook
        };
        output.json(&Listing {
            snapshots: snapshots.iter().map(SnapshotView::new).collect(),
            unreadable,
            json_backups,
        })?;
        Ok(outcome)
    }
}

/// The repository's snapshots, newest first. A folder that holds JSON backups need not be a repository.
async fn snapshots(
    repository: anyhow::Result<Repository>,
    has_json_backups: bool,
) -> anyhow::Result<(Vec<Snapshot>, Vec<Unreadable>)> {
    let repository = match repository {
        Err(error) if has_json_backups => {
            tracing::info!("there are JSON backups only: {error}");
            return Ok((Vec::new(), Vec::new()));
        }
        opened => opened?,
    };
    let listing = repository.snapshots().await?;
    let unreadable = listing
        .unreadable
        .into_iter()
        .map(|(object, error)| Unreadable {
            object,
            reason: error.to_string(),
        })
        .collect();
    Ok((listing.snapshots, unreadable))
}

fn is_not_a_repository(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ArchiveError::NotARepository { .. }))
}

fn show(output: output::Output, snapshots: &[Snapshot], json_backups: &[JsonEntry]) -> anyhow::Result<()> {
    if snapshots.is_empty() && json_backups.is_empty() {
        output.data("No backups yet: `firebank backup` takes one.")?;
    }
    if !snapshots.is_empty() {
        let header = [
            "snapshot",
            "read time",
            "database",
            "selection",
            "documents",
            "new bytes",
            "took",
            "parent",
            "layers",
            "tags",
        ];
        let mut table = output::table(&header, &[4, 5, 6, 8]);
        for snapshot in snapshots {
            table.add_row([
                snapshot.id.to_string(),
                snapshot.read_time.to_string(),
                snapshot.database.to_string(),
                output::printable(&snapshot.selection.to_string()),
                output::number(snapshot.documents),
                output::bytes(snapshot.stats.stored_bytes),
                output::duration(
                    (snapshot.finished_at - snapshot.started_at)
                        .to_std()
                        .unwrap_or_default(),
                ),
                snapshot.parent.map_or_else(String::new, short_id),
                output::number(snapshot.runs.len() as u64),
                output::printable(&snapshot.tags.join(",")),
            ]);
        }
        output.table(&table)?;
    }
    if !json_backups.is_empty() {
        if !snapshots.is_empty() {
            output.data("")?;
        }
        let mut table = output::table(
            &["JSON backup", "taken", "collection", "documents", "size"],
            &[3, 4],
        );
        for backup in json_backups {
            table.add_row([
                output::printable(&backup.file),
                backup.time.clone().unwrap_or_default(),
                output::printable(backup.collection.as_deref().unwrap_or("?")),
                backup
                    .total_document_count
                    .or(backup.document_count)
                    .map_or_else(|| "?".to_owned(), output::number),
                output::bytes(backup.bytes),
            ]);
        }
        output.table(&table)?;
    }
    Ok(())
}

/// Enough of an id to find it in the first column.
fn short_id(id: SnapshotId) -> String {
    id.to_string().chars().take(8).collect()
}
