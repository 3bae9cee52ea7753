//! `firebank status`

use std::pin::pin;

use clap::Args;
use futures::TryStreamExt;
use serde::Serialize;

use super::confirm::is_protected;
use super::options::GlobalOptions;
use super::{Outcome, output};
use crate::archive::{ArchiveError, Repository, SnapshotFilter};
use crate::clock;
use crate::document::{CollectionPath, DatabaseName};

/// Backups that are shown.
const LAST_BACKUPS: usize = 5;

#[derive(Args, Debug)]
pub(crate) struct StatusCommand {}

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
        let (snapshots, last_backups) = last_backups(global, &database).await?;
        let status = Status {
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
        Ok(Outcome::Done)
    }
}

/// How many snapshots of the database the repository has, and the newest of them. No repository is none.
async fn last_backups(
    global: &GlobalOptions,
    database: &DatabaseName,
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
        ..SnapshotFilter::default()
    };
    let listing = repository.snapshots().await?;
    let ours: Vec<_> = listing
        .snapshots
        .into_iter()
        .filter(|snapshot| filter.accepts(snapshot))
        .collect();
    let now = clock::now().timestamp();
    let last = ours
        .iter()
        .take(LAST_BACKUPS)
        .map(|snapshot| Backup {
            id: snapshot.id.to_string(),
            read_time: snapshot.read_time.to_string(),
            age_seconds: now - snapshot.read_time.seconds,
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
