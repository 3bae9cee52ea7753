//! `firebank rollback`

use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::billed::BilledView;
use super::confirm::confirm;
use super::migrate::show_recovered;
use super::migration_args::RunArgs;
use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::{Outcome, output};
use crate::migration::{Recovered, RollbackOptions, RollbackTarget, RolledBack, Version};
use crate::progress::Progress;
use crate::stop::Stop;

#[derive(Args, Debug)]
pub(crate) struct RollbackCommand {
    #[command(flatten)]
    run: RunArgs,
    /// How many migrations to take back, the newest first [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "to", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Take back all above this version; 0 takes back all
    #[arg(long, value_name = "VERSION")]
    to: Option<Version>,
    /// Show what would change, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Put back also documents that somebody changed since; what they are now is kept in the repository
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct RollbackView<'a> {
    dry_run: bool,
    recovered: &'a [Recovered],
    rolled_back: &'a [RolledBack],
    version: Option<u64>,
    #[serde(flatten)]
    billed: BilledView,
}

impl RollbackCommand {
    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        if !self.dry_run {
            let what = match self.force {
                true => "roll back migrations, also over what was changed since, on",
                false => "roll back migrations on",
            };
            confirm(global, &global.database()?, what)?;
        }
        let runner = self.run.runner(global, false, stop).await?;
        let options = RollbackOptions {
            target: match (self.to, self.steps) {
                (Some(version), _) => RollbackTarget::To(version),
                (None, steps) => RollbackTarget::Steps(steps.unwrap_or(1) as usize),
            },
            force: self.force,
        };
        let progress = Arc::new(Progress::new());
        let output = global.output();
        let stats = match self.dry_run {
            true => runner.plan_rollback(options, &progress).await?,
            false => {
                let display = ProgressDisplay::start("looked at", &progress, global.quiet || global.json);
                let stats = runner.rollback(options, &progress).await;
                drop(display);
                stats?
            }
        };
        let mut outcome = Outcome::Done;
        show_recovered(output, &stats.recovered, &mut outcome)?;
        for one in &stats.rolled_back {
            show(output, one, self.dry_run)?;
            if one.changed_since > 0 && !self.force {
                outcome = Outcome::NeedsLook;
            }
        }
        let version = stats
            .version
            .map_or("no version".to_owned(), |version| format!("v{version}"));
        match (stats.rolled_back.is_empty(), self.dry_run) {
            (true, _) => output.line("There is nothing to roll back.")?,
            (false, true) => output.line("Dry run: nothing was written.")?,
            (false, false) => output.line(format!("The database is at {version}."))?,
        }
        let billed = BilledView::of(runner.database());
        billed.tell(output)?;
        output.json(&RollbackView {
            dry_run: self.dry_run,
            recovered: &stats.recovered,
            rolled_back: &stats.rolled_back,
            version: stats.version,
            billed,
        })?;
        Ok(outcome)
    }
}

fn show(output: output::Output, one: &RolledBack, dry_run: bool) -> anyhow::Result<()> {
    let (by, put_back) = match one.by_script {
        true => ("by its rollback()", "written"),
        false => ("from before-images", "put back as they were"),
    };
    let would = if dry_run {
        "would be rolled back"
    } else {
        "rolled back"
    };
    output.line(format!(
        "{}: {would} {by}: {} {put_back}, {} deleted",
        one.id,
        output::count(one.restored, "document"),
        output::number(one.deleted)
    ))?;
    if one.changed_since > 0 {
        let what = match &one.snapshot {
            Some(snapshot) => format!("were overwritten; snapshot {snapshot} has what they were"),
            None if dry_run => "would stop it: --force puts them back as well".to_owned(),
            None => "were left as they are".to_owned(),
        };
        output.data(format!(
            "  {} changed since {what}: {}",
            output::count(one.changed_since, "document"),
            output::printable(&one.first_changed_since.join(", "))
        ))?;
    } else if let (Some(snapshot), false) = (&one.snapshot, dry_run) {
        output.line(format!(
            "  snapshot {snapshot} has what the documents were before the rollback"
        ))?;
    }
    Ok(())
}
