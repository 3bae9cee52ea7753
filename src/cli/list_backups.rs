//! `firebank list-backups`

use std::path::Path;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::options::GlobalOptions;
use super::{Outcome, output};
use crate::archive::{ArchiveError, Repository, Snapshot};
use crate::json::{JsonBackup, list_folder};

#[derive(Args, Debug)]
pub(crate) struct ListBackupsCommand {}

#[derive(Serialize)]
struct Listing<'a> {
    snapshots: Vec<SnapshotEntry<'a>>,
    unreadable: Vec<Unreadable>,
    json_backups: &'a [JsonBackup],
}

#[derive(Serialize)]
struct SnapshotEntry<'a> {
    id: String,
    time: DateTime<Utc>,
    #[serde(flatten)]
    snapshot: &'a Snapshot,
}

#[derive(Serialize)]
struct Unreadable {
    object: String,
    reason: String,
}

impl ListBackupsCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let path = global.repository_path()?;
        let json_backups = if path.is_dir() { list_folder(&path)? } else { Vec::new() };
        let (snapshots, unreadable) = snapshots(global, &path, !json_backups.is_empty()).await?;
        let output = global.output();
        show(output, &snapshots, &json_backups)?;
        for object in &unreadable {
            tracing::error!("{} cannot be read: {}", object.object, object.reason);
        }
        let outcome = if unreadable.is_empty() { Outcome::Done } else { Outcome::NeedsLook };
        let entries = snapshots
            .iter()
            .map(|snapshot| SnapshotEntry { id: snapshot.id.to_string(), time: snapshot.started_at, snapshot })
            .collect();
        output.json(&Listing { snapshots: entries, unreadable, json_backups: &json_backups })?;
        Ok(outcome)
    }
}

/// The repository's snapshots, newest first. A folder that holds JSON backups need not be a repository.
async fn snapshots(
    global: &GlobalOptions,
    path: &Path,
    has_json_backups: bool,
) -> anyhow::Result<(Vec<Snapshot>, Vec<Unreadable>)> {
    let repository = match global.open_repository().await {
        Err(error) if has_json_backups && is_not_a_repository(&error) => {
            tracing::info!("{} holds JSON backups and no repository", path.display());
            return Ok((Vec::new(), Vec::new()));
        }
        opened => opened?,
    };
    let listing = repository.snapshots().await?;
    let unreadable = listing
        .unreadable
        .into_iter()
        .map(|(object, error)| Unreadable { object, reason: error.to_string() })
        .collect();
    Ok((listing.snapshots, unreadable))
}

fn is_not_a_repository(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ArchiveError::NotARepository { .. }))
}

fn show(output: output::Output, snapshots: &[Snapshot], json_backups: &[JsonBackup]) -> anyhow::Result<()> {
    if snapshots.is_empty() && json_backups.is_empty() {
        output.data("No backups yet: `firebank backup` takes one.")?;
    }
    if !snapshots.is_empty() {
        let header = ["snapshot", "read time", "database", "selection", "documents", "new bytes", "tags"];
        let mut table = output::table(&header, &[4, 5]);
        for snapshot in snapshots {
            table.add_row([
                snapshot.id.to_string(),
                snapshot.read_time.to_string(),
                snapshot.database.to_string(),
                output::printable(&snapshot.selection.to_string()),
                output::number(snapshot.documents),
                output::bytes(snapshot.stats.stored_bytes),
                output::printable(&snapshot.tags.join(",")),
            ]);
        }
        output.table(&table)?;
    }
    if !json_backups.is_empty() {
        if !snapshots.is_empty() {
            output.data("")?;
        }
        let mut table = output::table(&["JSON backup", "taken", "collection", "documents", "size"], &[3, 4]);
        for backup in json_backups {
            table.add_row([
                output::printable(&backup.file),
                backup.timestamp.clone().unwrap_or_default(),
                output::printable(backup.collection.as_deref().unwrap_or("?")),
                backup.document_count.map_or_else(|| "?".to_owned(), output::number),
                output::bytes(backup.bytes),
            ]);
        }
        output.table(&table)?;
    }
    Ok(())
}
