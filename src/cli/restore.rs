//! `firebank restore`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::confirm::confirm;
use super::options::GlobalOptions;
use super::output::Output;
use super::progress::ProgressDisplay;
use super::snapshots::find_snapshot;
use super::{Outcome, UsageError, json_restore, output};
use crate::archive::{Repository, Snapshot};
use crate::clock;
use crate::document::DatabaseName;
use crate::firestore::{Firestore, WriteMode, WriteOptions};
use crate::path_filter::PathFilter;
use crate::progress::Progress;
use crate::restore::{RestoreOptions, RestorePlan, RestoreStats, plan_restore, restore};

/// Key ranges of a snapshot that are read at the same time: the more, the further apart neighbouring writes lie.
const READERS: usize = 8;

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
}

/// How to write, for every command that does.
#[derive(Args, Debug)]
pub(crate) struct WriteArgs {
    /// What happens to a document that exists
    #[arg(long, value_enum, default_value_t = Mode::Overwrite)]
    pub(crate) mode: Mode,
    /// Show what would be written, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// At most this many writes a second
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// Do not start slowly: for databases that are empty or warmed up
    #[arg(long)]
    pub(crate) no_ramp: bool,
    /// Where documents go that the database refuses [default: firebank-failed-<time>.ndjson]
    #[arg(long, value_name = "FILE")]
    pub(crate) dead_letter_file: Option<PathBuf>,
    /// How many requests are under way at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) parallel: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// It is replaced
    Overwrite,
    /// It is left alone
    CreateOnly,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("must be a number above zero".to_owned()),
    }
}

impl WriteArgs {
    pub(crate) fn restore_options(&self, database: &Firestore, filter: PathFilter) -> RestoreOptions {
        let defaults = WriteOptions::new(database);
        let write = WriteOptions {
            mode: match self.mode {
                Mode::Overwrite => WriteMode::Overwrite,
                Mode::CreateOnly => WriteMode::CreateOnly,
            },
            max_in_flight: usize::from(self.parallel),
            rate: self.rate,
            ramp: defaults.ramp && !self.no_ramp,
            ..defaults
        };
        RestoreOptions {
            filter,
            write,
            parallel: READERS,
            dead_letter_file: self.dead_letter_file(),
        }
    }

    fn dead_letter_file(&self) -> PathBuf {
        self.dead_letter_file.clone().unwrap_or_else(|| {
            PathBuf::from(format!(
                "firebank-failed-{}.ndjson",
                clock::now().format("%Y%m%d_%H%M%S%3f")
            ))
        })
    }

    /// Asks before documents are overwritten.
    pub(crate) fn confirm(&self, global: &GlobalOptions, target: &DatabaseName) -> anyhow::Result<()> {
        if self.dry_run || self.mode == Mode::CreateOnly {
            return Ok(());
        }
        confirm(global, target, "overwrite documents in")
    }
}

impl RestoreCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let filter = PathFilter::new(&self.only).map_err(|error| UsageError::new(error.to_string()))?;
        if let Some(file) = json_file(global, &self.source)? {
            let target = self.json_target(global)?;
            return json_restore::run(global, &[file], &target, filter, &self.write).await;
        }
        let repository = global.open_repository().await?;
        let snapshot = find_snapshot(global, &repository, &self.source).await?;
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
        let options = self.write.restore_options(&database, filter);
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
    let in_repository = global.repository_path()?.join(source);
    if given.components().count() == 1 && in_repository.exists() {
        return Ok(Some(in_repository));
    }
    bail!(
        "there is no file {source}, neither here nor in {}",
        global.repository
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
    show_plan(output, &plan, &format!("snapshot {}", snapshot.id), target)?;
    output.json(&Plan {
        dry_run: true,
        snapshot: snapshot.id.to_string(),
        target: target.to_string(),
        plan,
    })?;
    Ok(Outcome::Done)
}

/// The plan for people.
pub(crate) fn show_plan(
    output: Output,
    plan: &RestorePlan,
    source: &str,
    target: &DatabaseName,
) -> anyhow::Result<()> {
    let mut table = output::table(&["collection", "documents"], &[1]);
    for (collection, documents) in &plan.collections {
        table.add_row([output::printable(collection), output::number(*documents)]);
    }
    output.table(&table)?;
    output.data(format!(
        "Dry run: {} ({}) of {source} would be written into {target}. Nothing was written.",
        output::count(plan.documents, "document"),
        output::bytes(plan.bytes),
    ))?;
    Ok(())
}

/// What `--json` prints of a restore.
#[derive(Serialize)]
struct Summary<'a> {
    source: &'a str,
    target: String,
    documents: u64,
    bytes: u64,
    written: u64,
    existing: u64,
    failed: u64,
    dead_letter_file: Option<&'a Path>,
    foreign_references: u64,
    requests: u64,
    retries: u64,
    seconds: f64,
}

/// Tells how a restore or an import ended.
pub(crate) fn report(
    global: &GlobalOptions,
    source: &str,
    target: &DatabaseName,
    stats: &RestoreStats,
    dead_letter_file: &Path,
) -> anyhow::Result<Outcome> {
    let output = global.output();
    output.line(format!(
        "Restored {} ({}) of {source} into {target} in {}.",
        output::count(stats.written, "document"),
        output::bytes(stats.bytes),
        output::duration(stats.duration)
    ))?;
    if stats.existing > 0 {
        output.line(format!(
            "{} there already and stayed as they were.",
            match stats.existing {
                1 => "1 document was".to_owned(),
                existing => format!("{} documents were", output::number(existing)),
            }
        ))?;
    }
    if stats.foreign_references > 0 {
        output.line(format!(
            "{} to documents of other databases; they were written as they are.",
            output::count(stats.foreign_references, "reference")
        ))?;
    }
    if stats.failed > 0 {
        tracing::error!(
            "the database refused {}: {} has each with the reason",
            output::count(stats.failed, "document"),
            dead_letter_file.display()
        );
    }
    output.json(&Summary {
        source,
        target: target.to_string(),
        documents: stats.documents,
        bytes: stats.bytes,
        written: stats.written,
        existing: stats.existing,
        failed: stats.failed,
        dead_letter_file: (stats.failed > 0).then_some(dead_letter_file),
        foreign_references: stats.foreign_references,
        requests: stats.writes.requests,
        retries: stats.writes.retries,
        seconds: stats.duration.as_secs_f64(),
    })?;
    Ok(if stats.failed > 0 {
        Outcome::NeedsLook
    } else {
        Outcome::Done
    })
}
