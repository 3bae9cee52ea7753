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
use super::write_args::{WriteArgs, report, show_plan};
use super::{Outcome, UsageError, json_restore, output};
use crate::archive::{Repository, Snapshot};
use crate::document::DatabaseName;
use crate::json::DocumentsFile;
use crate::path_filter::PathFilter;
use crate::progress::Progress;
use crate::restore::{RestorePlan, plan_restore, restore};

#[derive(Args, Debug)]
pub(crate) struct RestoreCommand {
    /// A snapshot (its id, a unique prefix of it, or `latest`), or a JSON backup's file
    #[arg(value_name = "SNAPSHOT|FILE.json")]
    source: String,
    /// Restore only what this pattern chooses, such as `products`, `users/u1` or `users/*/orders`; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
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
        let filter = PathFilter::new(&self.only).map_err(|error| UsageError::new(error.to_string()))?;
        if let Some(file) = json_file(global, &self.source)? {
            let target = self.json_target(global)?;
            return json_restore::run(
                global,
                &[DocumentsFile::collection(file)],
                &target,
                filter,
                &self.write,
            )
            .await;
        }
        let repository = global.open_repository().await?;
        let snapshot = find_filtered(global, &repository, &self.source, &self.latest).await?;
        let target = self.target(global, &snapshot)?;
        if self.write.dry_run {
            return dry_run(global, &repository, &snapshot, &target, &filter).await;
        }
        self.write.confirm(global, &target)?;
        self.write_snapshot(global, &repository, &snapshot, target, filter)
            .await
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

    async fn write_snapshot(
        self,
        global: &GlobalOptions,
        repository: &Repository,
        snapshot: &Snapshot,
        target: DatabaseName,
        filter: PathFilter,
    ) -> anyhow::Result<Outcome> {
        let database = global.connect_to(target.clone()).await?;
        let options = self.write.restore_options(&database, filter.clone());
        let dead_letter_file = options.dead_letter_file.clone();
        let progress = Arc::new(Progress::new());
        if options.filter.is_all() {
            progress.set_total_documents(snapshot.documents);
        }
        let reader = repository.reader(snapshot).await?;
        let display = ProgressDisplay::start("restoring", &progress, global.quiet);
        let restored = restore(&reader, &database, options, &progress).await;
        drop(display);
        let stats = restored.with_context(|| {
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
            &filter,
            &dead_letter_file,
        )
    }
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
    repository: &Repository,
    snapshot: &Snapshot,
    target: &DatabaseName,
    filter: &PathFilter,
) -> anyhow::Result<Outcome> {
    let plan = plan_restore(&repository.reader(snapshot).await?, filter).await?;
    let output = global.output();
    let source = format!("snapshot {}", snapshot.id);
    let outcome = show_plan(output, &plan, &source, target, filter)?;
    output.json(&Plan {
        dry_run: true,
        snapshot: snapshot.id.to_string(),
        target: target.to_string(),
        plan,
    })?;
    Ok(outcome)
}
