//! `firebank restore`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::confirm::confirm;
use super::cost_args::{location, look_for_crossing, warn_of_crossing};
use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::restore_session::SessionArgs;
use super::snapshot_filter::SnapshotFilterArgs;
use super::snapshots::find_filtered;
use super::verify_live::{Check, Verification};
use super::write_args::{WriteArgs, report, show_plan, show_warnings, tell_of_gaps, wrong_usage};
use super::{Outcome, UsageError, json_restore, output};
use crate::archive::{Snapshot, SnapshotFilter, SnapshotReader};
use crate::cost::Cost;
use crate::document::DatabaseName;
use crate::json::{DocumentsFile, is_ndjson};
use crate::progress::Progress;
use crate::restore::{
    RestoreError, RestoreMode, RestoreOptions, RestorePlan, check_restore, plan_restore, restore, retry,
};
use crate::stop::Stop;
use crate::task::{SharedWork, SharesError};
use crate::verify::verify_restore;

#[derive(Args, Debug)]
pub(crate) struct RestoreCommand {
    /// A snapshot (its id, a unique prefix of it, or `latest`), or a file as `import` takes it (.json, .ndjson, .jsonl)
    #[arg(value_name = "SNAPSHOT|FILE", required_unless_present = "retry")]
    source: Option<String>,
    /// Write again what an earlier restore or import left in this dead-letter file, as it was meant to be written
    #[arg(long, value_name = "FILE", conflicts_with_all = RETRY_HEEDS_NOT)]
    retry: Option<PathBuf>,
    /// The project to write into
    #[arg(long, value_name = "ID")]
    to_project: Option<String>,
    /// The database to write into
    #[arg(long, value_name = "ID")]
    to_database: Option<String>,
    /// Allow writing into the database that the snapshot was taken of
    #[arg(long)]
    in_place: bool,
    /// Compare the database with the snapshot afterwards, every chosen document by its contents, which costs a read each; exit
    /// code 3 where they differ
    #[arg(long, conflicts_with = "dry_run")]
    verify: bool,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    latest: SnapshotFilterArgs,
}

/// A dead letter says itself what is to be written and when. Whoever gives one of these counts on it.
const RETRY_HEEDS_NOT: [&str; 19] = [
    "source",
    "in_place",
    "verify",
    "fields",
    "rename_collection",
    "mode",
    "if_unmodified_since",
    "references",
    "ttl_field",
    "dry_run",
    "prices",
    "no_check",
    "resume",
    "skip_damaged",
    "session",
    "task_index",
    "task_count",
    "tags",
    "hosts",
];

impl RestoreCommand {
    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        let mut options = self.write.restore_options(global)?;
        options.stop = stop;
        options.skip_damaged = self.session.skip_damaged;
        if let Some(file) = &self.retry {
            self.session
                .refuse_state("--retry keeps no record of how far it is")?;
            return self.retry(global, file, options).await;
        }
        let source = self.source.as_deref().unwrap_or_default();
        if let Some(file) = documents_file(global, source)? {
            self.refuse_for_files()?;
            let target = self.json_target(global)?;
            let file = [DocumentsFile::at(file)];
            return json_restore::run(global, &file, &target, options, &self.write).await;
        }
        let shared = self.session.shared()?;
        if shared.is_some() && self.verify {
            return Err(UsageError::new(
                "--verify compares what one process has restored: when the tasks are done, `firebank verify --live` compares all of it",
            ));
        }
        if shared.is_some() && self.session.resume {
            return Err(UsageError::new(
                "tasks go on with what they find of their restore: leave --resume out",
            ));
        }
        options.task = shared.as_ref().map(|shared| shared.task);
        if shared.is_some() && source == "latest" {
            return Err(UsageError::new(
                "tasks that share a restore name the snapshot by its id: one that starts later could find another one to be the latest",
            ));
        }
        let repository = global.open_repository().await?;
        let mut snapshot = find_filtered(global, &repository, source, &self.latest).await?;
        let target = self.target(global, &snapshot)?;
        if let Some(shared) = shared
            && !self.write.dry_run
        {
            if self.write.dead_letter_file.is_none() {
                options.dead_letter_file = dead_letters_of(&shared);
            }
            options.session = Some(self.session.shared_options(global, shared)?);
        } else if !self.write.dry_run {
            let is_latest = source == "latest";
            let session = self
                .session
                .options(
                    global,
                    repository.id(),
                    (snapshot.id, is_latest),
                    &target,
                    &options,
                )
                .await?;
            if let Some(unfinished) = session.as_ref().and_then(|session| session.resume.as_ref()) {
                if self.write.dead_letter_file.is_none() {
                    options.dead_letter_file = unfinished.dead_letter_file().to_owned();
                }
                if unfinished.snapshot() != snapshot.id {
                    let id = unfinished.snapshot().to_string();
                    snapshot = repository.resolve(&id, &SnapshotFilter::default()).await?;
                    tracing::warn!(
                        "going on with the restore of snapshot {id}, which is not the latest any more"
                    );
                }
            }
            options.session = session;
        }
        let reader = repository.reader(&snapshot).await?;
        if self.write.dry_run {
            return dry_run(global, &reader, &target, &options, &self.write).await;
        }
        if self.write.checks_first(global, &target) {
            let checked = self.write.check_options(global, &target, &options).await;
            let findings = check_restore(&reader, &target, &checked).await;
            let findings = findings.map_err(wrong_usage)?;
            show_warnings(&findings.warnings);
            tell_of_gaps(&findings.gaps, "cannot be restored");
        }
        self.write.confirm(global, &target)?;
        write_snapshot(global, &reader, target, options, self.verify).await
    }

    /// Writes again what failed.
    async fn retry(
        &self,
        global: &GlobalOptions,
        file: &Path,
        options: RestoreOptions,
    ) -> anyhow::Result<Outcome> {
        let target = self.json_target(global)?;
        confirm(global, &target, "write and DELETE documents in")?;
        let database = global.connect_to(target.clone()).await?;
        let progress = Arc::new(Progress::new());
        let display = ProgressDisplay::start("writing again", &progress, global.quiet);
        let stats = retry(file, &database, options.clone(), &progress).await?;
        drop(display);
        let source = file.display().to_string();
        report(global, &source, &target, &stats, &options, None)
    }

    /// Says no to what only a snapshot has use for.
    fn refuse_for_files(&self) -> anyhow::Result<()> {
        let refused = [
            (self.verify, "--verify compares with a snapshot"),
            (
                self.session.resume,
                "--resume goes on with a restore of a snapshot",
            ),
            (
                self.session.skip_damaged,
                "--skip-damaged goes around what is damaged in a snapshot",
            ),
            (
                self.session.names_task(),
                "--session, --task-index and --task-count share a restore of a snapshot",
            ),
            (!self.latest.is_empty(), "--tag and --host choose among snapshots"),
        ];
        if let Some((_, what)) = refused.into_iter().find(|(given, _)| *given) {
            return Err(UsageError::new(format!("{what}, and a file is none")));
        }
        self.session
            .refuse_state("--state records how far a restore of a snapshot is, and a file is none")
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

/// The same for a task that is started again: then the file has all of its dead letters.
fn dead_letters_of(shared: &SharedWork) -> PathBuf {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    let name = shared.name.replace(|letter| !is_plain(letter), "_");
    PathBuf::from(format!("firebank-failed-{name}-{}.ndjson", shared.task.index()))
}

async fn write_snapshot(
    global: &GlobalOptions,
    reader: &SnapshotReader,
    target: DatabaseName,
    options: RestoreOptions,
    verify: bool,
) -> anyhow::Result<Outcome> {
    let snapshot = reader.snapshot();
    let database = global.connect_to(target.clone()).await?;
    look_for_crossing(global, &database).await?;
    let progress = Arc::new(Progress::new());
    if options.filter.is_all() {
        progress.set_total_documents(snapshot.documents);
    }
    let display = ProgressDisplay::start("restoring", &progress, global.quiet);
    let restored = restore(reader, &database, options.clone(), &progress).await;
    drop(display);
    let stats = match restored {
        Err(other @ RestoreError::OtherOptions { .. }) => return Err(UsageError::new(other.to_string())),
        Err(
            plain @ (RestoreError::Stopped { .. }
            | RestoreError::TaskStopped { .. }
            | RestoreError::State { .. }
            | RestoreError::Shares(SharesError::Used { .. } | SharesError::Removed { .. })),
        ) => return Err(plain.into()),
        Err(RestoreError::Shares(disagreement)) => return Err(UsageError::new(disagreement.to_string())),
        restored => restored.map_err(wrong_usage).with_context(|| {
            format!(
                "the restore of snapshot {} into {target} stopped after {} ({} goes on from there)",
                snapshot.id,
                output::count(progress.documents(), "document"),
                match options.task {
                    Some(_) => "the same command",
                    None => "--resume",
                }
            )
        })?,
    };
    let source = format!("snapshot {}", snapshot.id);
    if !verify {
        return report(global, &source, &target, &stats, &options, None);
    }
    let progress = Arc::new(Progress::new());
    let display = ProgressDisplay::start("comparing", &progress, global.quiet);
    let compared = verify_restore(reader, &database, &options, &progress).await;
    drop(display);
    match compared {
        Ok(compared) => {
            let verification = Verification {
                snapshot: snapshot.id,
                target: &target,
                stats: &compared,
                check: Check::Contents,
                extra_matters: options.mode == RestoreMode::Mirror,
                around_damage: !stats.gaps.is_empty(),
            };
            report(global, &source, &target, &stats, &options, Some(&verification))
        }
        Err(error) => {
            report(global, &source, &target, &stats, &options, None)?;
            Err(error)
                .context("what was restored could not be verified; `firebank verify --live` tries it again")
        }
    }
}

/// The file of documents that `source` names: as a path, or as a file's name in the repository's folder.
fn documents_file(global: &GlobalOptions, source: &str) -> anyhow::Result<Option<PathBuf>> {
    let given = PathBuf::from(source);
    if !(source.ends_with(".json") || is_ndjson(&given)) {
        return Ok(None);
    }
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
    cost: Cost,
    #[serde(flatten)]
    plan: RestorePlan,
}

async fn dry_run(
    global: &GlobalOptions,
    reader: &SnapshotReader,
    target: &DatabaseName,
    options: &RestoreOptions,
    write: &WriteArgs,
) -> anyhow::Result<Outcome> {
    let database = global.connect_to(target.clone()).await?;
    let plan = plan_restore(reader, &database, options)
        .await
        .map_err(wrong_usage)?;
    let plan = match write.checks_first(global, target) {
        true => plan.after_a_check(options),
        false => plan,
    };
    let location = location(&database).await;
    warn_of_crossing(global, location.as_deref())?;
    let output = global.output();
    let source = format!("snapshot {}", reader.id());
    let from_bucket = global.repository_folder()?.is_none();
    let cost = write.cost(&plan, location.as_deref(), from_bucket)?;
    let outcome = show_plan(output, &plan, &source, target, options, &cost)?;
    output.json(&Plan {
        dry_run: true,
        snapshot: reader.id().to_string(),
        target: target.to_string(),
        cost,
        plan,
    })?;
    Ok(outcome)
}
