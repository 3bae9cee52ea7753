//! `firebank restore`

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::snapshot_filter::SnapshotFilterArgs;
use super::snapshots::find_filtered;
use super::write_args::{WriteArgs, report, show_plan, show_warnings, wrong_usage};
use super::{Outcome, UsageError, json_restore, output};
use crate::archive::{Snapshot, SnapshotReader};
use crate::document::DatabaseName;
use crate::progress::Progress;
use crate::restore::{RestoreOptions, RestorePlan, check_restore, plan_restore, restore};

#[derive(Args, Debug)]
pub(crate) struct RestoreCommand {
    /// A snapshot (its id, a unique prefix of it, or `latest`), or a JSON backup's file
    #[arg(value_name = "SNAPSHOT|FILE.json")]
    source: String,
    /// The project to write into
    #[arg(long, value_name = "ID")]
    to_project: Option<String>,
    /// The database to write into
    #[arg(long, value_name = "ID")]
    to_database: Option<String>,
    /// Allow writing into the database that the snapshot was taken of
    #[arg(long)]
    in_place: bool,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    latest: SnapshotFilterArgs,
}

impl RestoreCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let options = self.write.restore_options(global)?;
        if let Some(file) = json_file(global, &self.source)? {
            let target = self.json_target(global)?;
            return json_restore::run(global, &[file], &target, options, &self.write).await;
        }
        let repository = global.open_repository().await?;
        let snapshot = find_filtered(global, &repository, &self.source, &self.latest).await?;
        let target = self.target(global, &snapshot)?;
        let reader = repository.reader(&snapshot).await?;
        if self.write.dry_run {
            return dry_run(global, &reader, &target, &options).await;
        }
        if self.write.checks_first(global, &target) {
            let warnings = check_restore(&reader, &target, &options).await;
            show_warnings(&warnings.map_err(wrong_usage)?);
        }
        self.write.confirm(global, &target)?;
        write_snapshot(global, &reader, target, options).await
    }

    /// A JSON backup goes where the command line points: the original tools restored them so.
    fn json_target(&self, global: &GlobalOptions) -> anyhow::Result<DatabaseName> {
        let project = match &self.to_project {
            Some(project) => project.clone(),
            None => global.database()?.project,
        };
        let database = self.to_database.as_deref().unwrap_or(global.database_id());
        Ok(DatabaseName::new(project, database))
    }

    /// A snapshot goes back where it came from only when that is said, and elsewhere only when that is said.
    fn target(&self, global: &GlobalOptions, snapshot: &Snapshot) -> anyhow::Result<DatabaseName> {
        let source = &snapshot.database;
        if self.to_project.is_none()
            && let Some(named) = global.named_project().filter(|named| *named != source.project)
        {
            return Err(UsageError::new(format!(
                "snapshot {} is of project `{}`, and the project here is `{named}`: to restore into `{named}`, say \
                 --to-project {named}",
                snapshot.id, source.project
            )));
        }
        if self.to_database.is_none()
            && let Some(named) = global.named_database().filter(|named| *named != source.database)
        {
            return Err(UsageError::new(format!(
                "snapshot {} is of database `{}`, and the database here is `{named}`: to restore into `{named}`, say \
                 --to-database {named}",
                snapshot.id, source.database
            )));
        }
        let target = DatabaseName::new(
            self.to_project.as_ref().unwrap_or(&source.project),
            self.to_database.as_ref().unwrap_or(&source.database),
        );
        if target == *source && !self.in_place {
            return Err(UsageError::new(format!(
                "this would write into {target}, the database that the snapshot was taken of: say --in-place if that \
                 is meant, or name another with --to-project or --to-database"
            )));
        }
        Ok(target)
    }
}

async fn write_snapshot(
    global: &GlobalOptions,
    reader: &SnapshotReader,
    target: DatabaseName,
    options: RestoreOptions,
) -> anyhow::Result<Outcome> {
    let snapshot = reader.snapshot();
    let database = global.connect_to(target.clone()).await?;
    let progress = Arc::new(Progress::new());
    if options.filter.is_all() {
        progress.set_total_documents(snapshot.documents);
    }
    let display = ProgressDisplay::start("restoring", &progress, global.quiet);
    let restored = restore(reader, &database, options.clone(), &progress).await;
    drop(display);
    let stats = restored.map_err(wrong_usage).with_context(|| {
        format!(
            "the restore of snapshot {} into {target} stopped after {}",
            snapshot.id,
            output::count(progress.documents(), "document")
        )
    })?;
    report(
        global,
        &format!("snapshot {}", snapshot.id),
        &target,
        &stats,
        &options,
    )
}

/// The JSON backup that `source` names: as a path, or as a file's name in the repository's folder.
fn json_file(global: &GlobalOptions, source: &str) -> anyhow::Result<Option<PathBuf>> {
    if !source.ends_with(".json") {
        return Ok(None);
    }
    let given = PathBuf::from(source);
    if given.exists() {
        return Ok(Some(given));
    }
    let Some(folder) = global.repository_folder()? else {
        bail!("there is no file {source}");
    };
    let in_repository = folder.join(source);
    if given.components().count() == 1 && in_repository.exists() {
        return Ok(Some(in_repository));
    }
    bail!(
        "there is no file {source}, neither here nor in {}",
        folder.display()
    )
}

#[derive(Serialize)]
struct Plan {
    dry_run: bool,
    snapshot: String,
    target: String,
    #[serde(flatten)]
    plan: RestorePlan,
}

async fn dry_run(
    global: &GlobalOptions,
    reader: &SnapshotReader,
    target: &DatabaseName,
    options: &RestoreOptions,
) -> anyhow::Result<Outcome> {
    let database = global.connect_to(target.clone()).await?;
    let plan = plan_restore(reader, &database, options)
        .await
        .map_err(wrong_usage)?;
    let output = global.output();
    let source = format!("snapshot {}", reader.id());
    let outcome = show_plan(output, &plan, &source, target, options)?;
    output.json(&Plan {
        dry_run: true,
        snapshot: reader.id().to_string(),
        target: target.to_string(),
        plan,
    })?;
    Ok(outcome)
}
