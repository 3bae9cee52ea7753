//! `firebank create-migration`, `list-migrations` and `migration-status`

use clap::Args;
use serde::Serialize;

use super::migration_args::FolderArgs;
use super::options::GlobalOptions;
use super::{Outcome, output};
use crate::migration::{Entry, Holder, Lock, MigrationState, Overview, Runner, files};

#[derive(Args, Debug)]
pub(crate) struct CreateMigrationCommand {
    /// What it does, in a few words: they become the file's name
    name: String,
    /// A sentence about it
    description: Option<String>,
    #[command(flatten)]
    folder: FolderArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ListMigrationsCommand {
    #[command(flatten)]
    folder: FolderArgs,
    /// Only those that are applied
    #[arg(long)]
    applied: bool,
}

/// List the migrations that are applied
#[derive(Args, Debug)]
pub(crate) struct AppliedCommand {
    #[command(flatten)]
    folder: FolderArgs,
}

#[derive(Args, Debug)]
pub(crate) struct MigrationStatusCommand {
    #[command(flatten)]
    folder: FolderArgs,
}

#[derive(Serialize)]
struct EntryView {
    id: String,
    version: u64,
    state: MigrationState,
    file: Option<String>,
    description: Option<String>,
    executed_at: Option<String>,
    rolled_back_at: Option<String>,
    seconds: Option<f64>,
    documents_written: Option<u64>,
    documents_deleted: Option<u64>,
    checksum: Option<String>,
    snapshot: Option<String>,
    tool_version: Option<String>,
    error: Option<String>,
}

impl EntryView {
    fn new(entry: &Entry, description: Option<String>) -> Self {
        let record = entry.record.as_ref();
        Self {
            id: entry.id.to_string(),
            version: entry.id.version(),
            state: entry.state,
            file: entry.file.as_ref().map(|file| file.path.display().to_string()),
            description,
            executed_at: record
                .and_then(|record| record.executed_at)
                .map(|time| time.to_string()),
            rolled_back_at: record
                .and_then(|record| record.rolled_back_at)
                .map(|time| time.to_string()),
            seconds: record
                .and_then(|record| record.duration_ms)
                .map(|milliseconds| milliseconds as f64 / 1000.0),
            documents_written: record.and_then(|record| record.documents_written),
            documents_deleted: record.and_then(|record| record.documents_deleted),
            checksum: record.and_then(|record| record.checksum.clone()),
            snapshot: record
                .and_then(|record| record.snapshot_id)
                .map(|id| id.to_string()),
            tool_version: record.and_then(|record| record.tool_version.clone()),
            error: record.and_then(|record| record.error.clone()),
        }
    }
}

/// A state in words.
pub(super) fn words(state: MigrationState) -> &'static str {
    match state {
        MigrationState::Applied => "applied",
        MigrationState::Baseline => "baseline",
        MigrationState::Pending => "pending",
        MigrationState::RolledBack => "rolled back",
        MigrationState::Failed => "failed",
        MigrationState::Partial => "failed, writes kept",
        MigrationState::Interrupted => "interrupted",
    }
}

impl CreateMigrationCommand {
    pub(crate) fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let made = files::create(&self.folder.migrations, &self.name, self.description.as_deref())?;
        let output = global.output();
        output.line(format!(
            "Created {}. `firebank migrate --dry-run` shows what it would change.",
            made.path.display()
        ))?;
        output.json(&serde_json::json!({ "id": made.id.as_str(), "file": made.path }))?;
        Ok(Outcome::Done)
    }
}

impl ListMigrationsCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        list(global, &self.folder, self.applied).await
    }
}

impl AppliedCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        list(global, &self.folder, true).await
    }
}

async fn views(runner: &Runner, entries: impl Iterator<Item = &Entry>) -> Vec<EntryView> {
    let mut views = Vec::new();
    for entry in entries {
        views.push(EntryView::new(entry, runner.description(entry).await));
    }
    views
}

async fn list(global: &GlobalOptions, folder: &FolderArgs, applied: bool) -> anyhow::Result<Outcome> {
    let runner = folder.observer(global).await?;
    let overview = runner.overview().await?;
    let shown = |entry: &&Entry| {
        !applied || matches!(entry.state, MigrationState::Applied | MigrationState::Baseline)
    };
    let entries = views(&runner, overview.entries.iter().filter(shown)).await;
    let output = global.output();
    show_entries(output, &entries)?;
    output.json(&serde_json::json!({ "migrations": entries }))?;
    Ok(Outcome::Done)
}

fn show_entries(output: output::Output, entries: &[EntryView]) -> anyhow::Result<()> {
    if entries.is_empty() {
        output.data("No migration yet: `firebank create-migration NAME` makes one.")?;
        return Ok(());
    }
    let mut table = output::table(
        &["migration", "state", "executed", "documents", "description"],
        &[3],
    );
    for entry in entries {
        let documents = entry
            .documents_written
            .map(|written| output::number(written + entry.documents_deleted.unwrap_or(0)));
        let when = match entry.state {
            MigrationState::RolledBack => &entry.rolled_back_at,
            _ => &entry.executed_at,
        };
        table.add_row([
            output::printable(&entry.id),
            words(entry.state).to_owned(),
            when.clone().unwrap_or_default(),
            documents.unwrap_or_default(),
            output::printable(entry.description.as_deref().unwrap_or_default()),
        ]);
    }
    output.table(&table)?;
    Ok(())
}

#[derive(Serialize)]
struct StatusView {
    project: String,
    database: String,
    version: Option<u64>,
    applied: usize,
    pending: Vec<String>,
    interrupted: Vec<String>,
    drift: bool,
    divergences: Vec<String>,
    lock: Option<Holder>,
    migrations: Vec<EntryView>,
}

impl MigrationStatusCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let runner = self.folder.observer(global).await?;
        let overview = runner.overview().await?;
        let lock = Lock::holder(runner.database())
            .await
            .map_err(anyhow::Error::from)?
            .filter(|holder| !holder.expired);
        let name = runner.database().database().clone();
        let view = StatusView {
            project: name.project,
            database: name.database,
            version: overview.current,
            applied: overview.applied().count(),
            pending: overview.pending().map(|entry| entry.id.to_string()).collect(),
            interrupted: overview.interrupted().map(|entry| entry.id.to_string()).collect(),
            drift: overview.has_drift(),
            divergences: overview.divergences.iter().map(ToString::to_string).collect(),
            lock,
            migrations: views(&runner, overview.entries.iter()).await,
        };
        let output = global.output();
        output.data(format!("{:12} {}", "project", view.project))?;
        output.data(format!("{:12} {}", "database", view.database))?;
        output.data(format!("{:12} {}", "version", version(&overview)))?;
        output.data(format!("{:12} {}", "pending", view.pending.len()))?;
        if let Some(holder) = &view.lock {
            output.data(format!(
                "{:12} {}, since {}",
                "locked by",
                output::printable(&holder.owner),
                output::printable(&holder.since)
            ))?;
        }
        output.data("")?;
        show_entries(output, &view.migrations)?;
        for entry in view
            .migrations
            .iter()
            .filter(|entry| entry.state == MigrationState::Failed)
        {
            if let Some(line) = entry.error.as_deref().and_then(|error| error.lines().next()) {
                output.data(format!("{} failed: {}", entry.id, output::printable(line)))?;
            }
        }
        output.json(&view)?;
        let running = view.lock.is_some();
        for divergence in &view.divergences {
            tracing::error!("{}", output::printable(divergence));
        }
        if !running {
            for id in &view.interrupted {
                tracing::error!("{id} was left half done: `firebank migrate` undoes it and runs it again");
            }
        }
        let fine = view.divergences.is_empty() && (running || view.interrupted.is_empty());
        Ok(if fine { Outcome::Done } else { Outcome::NeedsLook })
    }
}

/// The schema version in words.
pub(super) fn version(overview: &Overview) -> String {
    overview
        .current
        .map_or("none".to_owned(), |version| format!("v{version}"))
}
