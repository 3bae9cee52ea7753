//! `firebank status`

use std::pin::pin;
use std::time::Duration;

use clap::Args;
use futures::TryStreamExt;
use serde::Serialize;

use super::confirm::{is_protected, is_testing};
use super::migration_args::{FolderArgs, owner, repository};
use super::options::GlobalOptions;
use super::{Outcome, backup, durations, output};
use crate::archive::{Selection, SnapshotFilter, Verification};
use crate::clock;
use crate::document::{CollectionPath, DatabaseName, Timestamp};
use crate::firestore::Firestore;
use crate::migration::{FilesError, History, MigrationError, Overview, Runner, RunnerOptions};

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
    #[command(flatten)]
    folder: FolderArgs,
}

#[derive(Serialize)]
struct Status {
    project: String,
    database: String,
    /// `emulator`, `testing` or `production`.
    environment: &'static str,
    protected: bool,
    read_time: String,
    collections: Vec<Collection>,
    migrations: Migrations,
    repository: String,
    snapshots: usize,
    last_backups: Vec<Backup>,
    last_verification: Option<Verification>,
    /// The newest verification that found damage which none since has shown to be gone.
    standing_damage: Option<Verification>,
    /// With --max-age: whether the newest complete backup is young enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup_is_recent: Option<bool>,
}

#[derive(Serialize)]
struct Migrations {
    /// The highest version that is applied.
    version: Option<u64>,
    applied: usize,
    pending: Vec<String>,
    interrupted: Vec<String>,
    drift: bool,
    /// What does not fit, in words.
    problems: Vec<String>,
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
        let migrations = migrations(&connection, &self.folder).await?;
        let (snapshots, last_backups, [last_verification, standing_damage]) =
            last_backups(global, &database, selection.clone(), read_time).await?;
        let recent = self.max_age.map(|most| {
            let newest = last_backups.first();
            newest.is_some_and(|backup| u64::try_from(backup.age_seconds).unwrap_or(0) <= most.as_secs())
        });
        let status = Status {
            backup_is_recent: recent,
            environment: match (global.is_emulated(), is_testing()) {
                (true, _) => "emulator",
                (false, true) => "testing",
                (false, false) => "production",
            },
            protected: is_protected(global, &database),
            project: database.project,
            database: database.database,
            read_time: read_time.to_string(),
            collections,
            migrations,
            repository: global.repository.clone(),
            snapshots,
            last_backups,
            last_verification,
            standing_damage,
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

/// Where the database stands. Scripts that make no sense are a problem to show, and no reason to show nothing.
async fn migrations(database: &Firestore, folder: &FolderArgs) -> anyhow::Result<Migrations> {
    let options = RunnerOptions::new(database, &folder.migrations, owner());
    let runner = Runner::new(database.clone(), None, options);
    let mut problems = Vec::new();
    let overview = match runner.overview().await {
        Err(MigrationError::Files(error)) => {
            if !matches!(error, FilesError::NoFolder(_)) {
                problems.push(error.to_string());
            }
            let history = History::read(database).await?;
            Overview {
                current: history.current(),
                ..Overview::default()
            }
        }
        overview => overview?,
    };
    problems.extend(overview.divergences.iter().map(ToString::to_string));
    Ok(Migrations {
        version: overview.current,
        applied: overview.applied().count(),
        pending: overview.pending().map(|entry| entry.id.to_string()).collect(),
        interrupted: overview.interrupted().map(|entry| entry.id.to_string()).collect(),
        drift: overview.has_drift(),
        problems,
    })
}

/// How many snapshots of the database the repository has, the newest of them, and the last verification. No repository is none.
async fn last_backups(
    global: &GlobalOptions,
    database: &DatabaseName,
    selection: Option<Selection>,
    now: Timestamp,
) -> anyhow::Result<(usize, Vec<Backup>, [Option<Verification>; 2])> {
    let Some(repository) = repository(global).await? else {
        return Ok((0, Vec::new(), [None, None]));
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
    let verifications = [
        repository.last_verification().await?,
        repository.standing_damage().await?,
    ];
    Ok((ours.len(), last, verifications))
}

fn show(output: output::Output, status: &Status) -> anyhow::Result<()> {
    let protection = match status.protected {
        true => "protected: destructive commands ask for the project's id",
        false => "not protected: an emulator, or a project that cannot be production",
    };
    output.data(format!("{:12} {} ({protection})", "project", status.project))?;
    output.data(format!("{:12} {}", "database", status.database))?;
    output.data(format!("{:12} {}", "environment", status.environment))?;
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
    show_migrations(output, &status.migrations)?;
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
    let verified = match &status.last_verification {
        Some(last) => {
            let data = match last.data_read {
                0.0 => "structure only".to_owned(),
                1.0 => "every byte".to_owned(),
                part => format!("{:.0} % of the data", part * 100.0),
            };
            let found = match last.damage_count {
                0 => "intact".to_owned(),
                places => format!("DAMAGED in {}", output::count(places, "place")),
            };
            let age = output::age((clock::now() - last.at).num_seconds());
            format!(
                "{age} ago, {}, {data}: {found}",
                output::count(last.snapshots, "snapshot")
            )
        }
        None => "never: `firebank verify --read-data` checks every byte".to_owned(),
    };
    output.data(format!("{:12} {verified}", "verified"))?;
    match &status.standing_damage {
        Some(damaged) if status.last_verification.as_ref() != Some(damaged) => output.data(format!(
            "{:12} DAMAGED in {}, found {} ago; `firebank verify --read-data` tells whether that still is so",
            "",
            output::count(damaged.damage_count, "place"),
            output::age((clock::now() - damaged.at).num_seconds())
        ))?,
        _ => {}
    }
    Ok(())
}

fn show_migrations(output: output::Output, migrations: &Migrations) -> anyhow::Result<()> {
    output.data("")?;
    let version = migrations
        .version
        .map_or("none".to_owned(), |version| format!("v{version}"));
    let pending = match migrations.pending.len() {
        0 => "nothing pending".to_owned(),
        count => format!(
            "{count} pending: {}",
            output::printable(&migrations.pending.join(", "))
        ),
    };
    let drift = if migrations.drift { "; DRIFT" } else { "" };
    output.data(format!("{:12} {version} ({pending}{drift})", "schema"))?;
    for id in &migrations.interrupted {
        output.data(format!(
            "{:12} {} was left half done, or is running",
            "",
            output::printable(id)
        ))?;
    }
    for problem in &migrations.problems {
        output.data(format!("{:12} {}", "", output::printable(problem)))?;
    }
    output.data("")?;
    Ok(())
}
