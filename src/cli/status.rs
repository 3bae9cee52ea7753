//! `firebank status`

use std::pin::pin;
use std::time::Duration;

use clap::Args;
use futures::TryStreamExt;
use serde::Serialize;

use super::confirm::is_protected;
use super::options::GlobalOptions;
use super::{Outcome, backup, durations, output};
use crate::archive::{ArchiveError, Repository, Selection, SnapshotFilter};
use crate::document::{CollectionPath, DatabaseName, Timestamp};

/// Backups that are shown.
const LAST_BACKUPS: usize = 5;

#[derive(Args, Debug)]
pub(crate) struct StatusCommand {
    /// With --max-age: the collections that the backup is of; without any, the whole database
    #[arg(value_name = "COLLECTION", requires = "max_age")]
    collections: Vec<String>,
    /// End with exit code 3 when the newest complete backup is older than this (such as 26h), or there is none
    #[arg(long, value_name = "DURATION", value_parser = durations::parse)]
    max_age: Option<Duration>,
}

#[derive(Serialize)]
struct Status {
    project: String,
    database: String,
    protected: bool,
    read_time: String,
    collections: Vec<Collection>,
    repository: String,
    snapshots: usize,
    last_backups: Vec<Backup>,
    /// With --max-age: whether the newest complete backup is young enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup_is_recent: Option<bool>,
}

#[derive(Serialize)]
struct Collection {
    id: String,
    /// With everything below it; `None` where the server does not count.
    documents: Option<u64>,
}

#[derive(Serialize)]
struct Backup {
    id: String,
    read_time: String,
    age_seconds: i64,
    documents: u64,
}

impl StatusCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let selection = match self.collections.is_empty() {
            true => None,
            false => Some(Selection::new(
                backup::root_collections(&self.collections)?,
                Vec::new(),
            )),
        };
        let database = global.database()?;
        let output = global.output();
        let connection = global.connect().await?;
        let read_time = connection.current_read_time().await?;
        let mut collections = Vec::new();
        let mut ids = pin!(connection.collection_ids(None, Some(read_time)));
        while let Some(id) = ids.try_next().await? {
            let range = CollectionPath::parse(&*id)?.key_range();
            let documents = connection.count(&range, Some(read_time)).await.ok();
            collections.push(Collection { id, documents });
        }
        let (snapshots, last_backups) = last_backups(global, &database, selection.clone(), read_time).await?;
        let recent = self.max_age.map(|most| {
            let newest = last_backups.first();
            newest.is_some_and(|backup| u64::try_from(backup.age_seconds).unwrap_or(0) <= most.as_secs())
        });
        let status = Status {
            backup_is_recent: recent,
            protected: is_protected(global, &database),
            project: database.project,
            database: database.database,
            read_time: read_time.to_string(),
            collections,
            repository: global.repository.clone(),
            snapshots,
            last_backups,
        };
        show(output, &status)?;
        output.json(&status)?;
        if recent != Some(false) {
            return Ok(Outcome::Done);
        }
        let of = selection.unwrap_or_default();
        match status.last_backups.first() {
            Some(newest) => tracing::error!(
                "the newest backup of {of} is {} old: snapshot {}",
                output::age(newest.age_seconds),
                newest.id
            ),
            None => tracing::error!("there is no backup of {of}"),
        }
        Ok(Outcome::NeedsLook)
    }
}

/// How many snapshots of the database the repository has, and the newest of them. No repository is none.
async fn last_backups(
    global: &GlobalOptions,
    database: &DatabaseName,
    selection: Option<Selection>,
    now: Timestamp,
) -> anyhow::Result<(usize, Vec<Backup>)> {
    if global.repository_folder()?.is_some_and(|path| !path.exists()) {
        return Ok((0, Vec::new()));
    }
    let repository = match Repository::open(global.store()?).await {
        Ok(repository) => repository,
        Err(ArchiveError::NotARepository { .. }) => return Ok((0, Vec::new())),
        Err(error) => return Err(error.into()),
    };
    let filter = SnapshotFilter {
        database: Some(database.clone()),
        selection,
        ..SnapshotFilter::default()
    };
    let listing = repository.snapshots().await?;
    let ours: Vec<_> = listing
        .snapshots
        .into_iter()
        .filter(|snapshot| filter.accepts(snapshot))
        .collect();
    let last = ours
        .iter()
        .take(LAST_BACKUPS)
        .map(|snapshot| Backup {
            id: snapshot.id.to_string(),
            read_time: snapshot.read_time.to_string(),
            // Both are the server's times: this machine's clock does not matter.
            age_seconds: now.seconds - snapshot.read_time.seconds,
            documents: snapshot.documents,
        })
        .collect();
    Ok((ours.len(), last))
}

fn show(output: output::Output, status: &Status) -> anyhow::Result<()> {
    let protection = match status.protected {
        true => "protected: destructive commands ask for the project's id",
        false => "not protected: an emulator, or a project that cannot be production",
    };
    output.data(format!("{:12} {} ({protection})", "project", status.project))?;
    output.data(format!("{:12} {}", "database", status.database))?;
    output.data(format!("{:12} {}", "read time", status.read_time))?;
    output.data("")?;
    let mut table = output::table(&["collection", "documents"], &[1]);
    for collection in &status.collections {
        let documents = collection
            .documents
            .map_or_else(|| "?".to_owned(), output::number);
        table.add_row([output::printable(&collection.id), documents]);
    }
    if status.collections.is_empty() {
        output.data("The database is empty.")?;
    } else {
        output.table(&table)?;
    }
    output.data("")?;
    output.data(format!(
        "{:12} {} ({} of this database)",
        "repository",
        status.repository,
        output::count(status.snapshots as u64, "snapshot")
    ))?;
    let mut table = output::table(&["last backups", "read time", "age", "documents"], &[2, 3]);
    for backup in &status.last_backups {
        table.add_row([
            backup.id.clone(),
            backup.read_time.clone(),
            output::age(backup.age_seconds),
            output::number(backup.documents),
        ]);
    }
    if status.last_backups.is_empty() {
        output.data("No backup of this database yet: `firebank backup` takes one.")?;
    } else {
        output.table(&table)?;
    }
    Ok(())
}
