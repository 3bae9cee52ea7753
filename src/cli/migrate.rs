//! `firebank migrate` and `firebank run-migration`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::billed::BilledView;
use super::confirm::confirm;
use super::migration_args::RunArgs;
use super::migration_view::{RunView, show_run};
use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::{Outcome, output};
use crate::migration::{Applied, Lock, MigrateOptions, MigrateStats, Recovered, Runner, Version};
use crate::progress::Progress;
use crate::stop::Stop;

#[derive(Args, Debug)]
pub(crate) struct MigrateCommand {
    #[command(flatten)]
    run: RunArgs,
    /// Apply none above this version
    #[arg(long, value_name = "VERSION")]
    to: Option<Version>,
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Apply also what is below the version that the database is at
    #[arg(long)]
    out_of_order: bool,
    /// Leave what a migration wrote that fails; without it, that is undone
    #[arg(long)]
    keep_partial: bool,
    /// Run nothing: take all scripts up to this version for applied
    #[arg(long, value_name = "VERSION", group = "action", conflicts_with_all = ["to", "dry_run", "out_of_order"])]
    baseline: Option<Version>,
    /// Run nothing: accept applied scripts as they are now, changed or gone
    #[arg(long, group = "action", conflicts_with_all = ["to", "dry_run", "out_of_order"])]
    repair: bool,
    /// Run nothing: remove the lock of a runner that is no more
    #[arg(long, group = "action", conflicts_with_all = ["to", "dry_run", "out_of_order"])]
    unlock: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RunMigrationCommand {
    /// The script: v<N>_<name>.js
    file: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Leave what the migration wrote if it fails; without it, that is undone
    #[arg(long)]
    keep_partial: bool,
}

#[derive(Serialize)]
struct MigrateView<'a> {
    recovered: &'a [Recovered],
    applied: &'a [Applied],
    version: Option<u64>,
    #[serde(flatten)]
    billed: BilledView,
}

#[derive(Serialize)]
struct PlanView {
    dry_run: bool,
    interrupted: Vec<String>,
    migrations: Vec<RunView>,
    #[serde(flatten)]
    billed: BilledView,
}

impl MigrateCommand {
    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        let database = global.database()?;
        if !self.dry_run {
            let what = match (self.baseline, self.repair, self.unlock) {
                (None, false, false) => "run migrations on",
                (_, _, true) => "remove the lock on migrations of",
                _ => "change the history of migrations of",
            };
            confirm(global, &database, what)?;
        }
        let runner = self.run.runner(global, self.keep_partial, stop).await?;
        if self.unlock {
            return unlock(global, &runner).await;
        }
        if self.repair {
            return repair(global, &runner).await;
        }
        if let Some(version) = self.baseline {
            return baseline(global, &runner, version).await;
        }
        let options = MigrateOptions {
            to: self.to,
            out_of_order: self.out_of_order,
        };
        let progress = Arc::new(Progress::new());
        let quiet = global.quiet || global.json;
        if self.dry_run {
            let plan = runner.plan_migrate(options, &progress).await?;
            let interrupted: Vec<String> = plan.interrupted.iter().map(ToString::to_string).collect();
            let runs = plan.runs.iter();
            let migrations = runs.map(|(id, run)| RunView::new(id.as_str(), run)).collect();
            return show_plan(global, interrupted, migrations, BilledView::of(runner.database()));
        }
        let display = ProgressDisplay::start("read by migrations", &progress, quiet);
        let stats = runner.migrate(options, &progress).await;
        drop(display);
        report(global, &stats?, BilledView::of(runner.database()))
    }
}

impl RunMigrationCommand {
    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        if !self.dry_run {
            confirm(global, &global.database()?, "run a migration on")?;
        }
        let runner = self.run.runner(global, self.keep_partial, stop).await?;
        let progress = Arc::new(Progress::new());
        if self.dry_run {
            let run = runner.plan_file(&self.file, &progress).await?;
            let name = self.file.file_stem().unwrap_or_default().to_string_lossy();
            let billed = BilledView::of(runner.database());
            return show_plan(global, Vec::new(), vec![RunView::new(&name, &run)], billed);
        }
        let display = ProgressDisplay::start("read by migrations", &progress, global.quiet || global.json);
        let stats = runner.run_file(&self.file, &progress).await;
        drop(display);
        report(global, &stats?, BilledView::of(runner.database()))
    }
}

fn show_plan(
    global: &GlobalOptions,
    interrupted: Vec<String>,
    migrations: Vec<RunView>,
    billed: BilledView,
) -> anyhow::Result<Outcome> {
    let output = global.output();
    for id in &interrupted {
        output.data(format!("{id} was left half done, and would be undone first."))?;
    }
    for (at, run) in migrations.iter().enumerate() {
        if at == 1 {
            output.data("")?;
            output.data("What follows is run on the database as it is, without what comes before it:")?;
        }
        show_run(output, run)?;
    }
    match migrations.len() {
        0 => output.data("Nothing is pending.")?,
        _ => output.data("Dry run: nothing was written.")?,
    }
    billed.tell(output)?;
    output.json(&PlanView {
        dry_run: true,
        interrupted,
        migrations,
        billed,
    })?;
    Ok(Outcome::Done)
}

/// Tells what a run did.
pub(super) fn report(
    global: &GlobalOptions,
    stats: &MigrateStats,
    billed: BilledView,
) -> anyhow::Result<Outcome> {
    let output = global.output();
    let mut outcome = Outcome::Done;
    show_recovered(output, &stats.recovered, &mut outcome)?;
    for applied in &stats.applied {
        let changed = applied.created + applied.updated + applied.deleted;
        let kept = match &applied.snapshot {
            Some(snapshot) => format!("; before-images: snapshot {snapshot}"),
            None => String::new(),
        };
        output.line(format!(
            "{}: {} changed ({} created, {} updated, {} deleted) in {:.2} s{kept}",
            applied.id,
            output::count(changed, "document"),
            output::number(applied.created),
            output::number(applied.updated),
            output::number(applied.deleted),
            applied.seconds,
        ))?;
        tracing::info!("{}: {changed} documents changed", applied.id);
    }
    let version = stats
        .version
        .map_or("no version".to_owned(), |version| format!("v{version}"));
    match stats.applied.len() {
        0 => output.line(format!("Nothing was pending: the database is at {version}."))?,
        count => output.line(format!(
            "{} applied: the database is at {version}.",
            output::count(count as u64, "migration")
        ))?,
    }
    billed.tell(output)?;
    output.json(&MigrateView {
        recovered: &stats.recovered,
        applied: &stats.applied,
        version: stats.version,
        billed,
    })?;
    Ok(outcome)
}

/// Tells what was put in order first.
pub(super) fn show_recovered(
    output: output::Output,
    recovered: &[Recovered],
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    for one in recovered {
        let what = match one.was_rollback {
            true => "its rollback had been killed, and was put in order",
            false => "it had been killed, and was undone",
        };
        output.line(format!(
            "{}: {what} ({} put back)",
            one.id,
            output::count(one.documents, "document")
        ))?;
        if !one.left.is_empty() {
            *outcome = Outcome::NeedsLook;
            tracing::error!(
                "{}: somebody changed these documents meanwhile, and they were left as they are: {}",
                one.id,
                output::printable(&one.left.join(", "))
            );
        }
    }
    Ok(())
}

async fn unlock(global: &GlobalOptions, runner: &Runner) -> anyhow::Result<Outcome> {
    let removed = Lock::remove(runner.database())
        .await
        .map_err(anyhow::Error::from)?;
    let output = global.output();
    match &removed {
        Some(holder) => output.line(format!(
            "Removed the lock of {}, who had it since {} and gave the last sign of life {} ago.",
            output::printable(&holder.owner),
            output::printable(&holder.since),
            output::age(holder.silent_seconds)
        ))?,
        None => output.line("Nobody has the lock.")?,
    }
    output.json(&serde_json::json!({ "removed": removed }))?;
    Ok(Outcome::Done)
}

async fn repair(global: &GlobalOptions, runner: &Runner) -> anyhow::Result<Outcome> {
    let repaired = runner.repair().await?;
    let output = global.output();
    for divergence in &repaired {
        output.line(format!("Accepted: {divergence}"))?;
    }
    if repaired.is_empty() {
        output.line("There is nothing to repair.")?;
    }
    let ids: Vec<&str> = repaired
        .iter()
        .map(|divergence| divergence.id().as_str())
        .collect();
    output.json(&serde_json::json!({ "repaired": ids }))?;
    Ok(Outcome::Done)
}

async fn baseline(global: &GlobalOptions, runner: &Runner, version: Version) -> anyhow::Result<Outcome> {
    let taken = runner.baseline(version).await?;
    let output = global.output();
    for id in &taken {
        output.line(format!("{id}: taken for applied, not run"))?;
    }
    if taken.is_empty() {
        output.line(format!("All up to {version} were applied already."))?;
    }
    let ids: Vec<String> = taken.iter().map(ToString::to_string).collect();
    output.json(&serde_json::json!({ "baseline": ids }))?;
    Ok(Outcome::Done)
}
