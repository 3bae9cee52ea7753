//! `firebank setup-test` and `firebank reset-dev`: databases that may be thrown away.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::billed::BilledView;
use super::confirm::{cannot_be_production, confirm, is_protected, is_testing};
use super::migrate::report;
use super::migration_args::{RunArgs, repository};
use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::{Outcome, Refused, output};
use crate::archive::Repository;
use crate::clock;
use crate::document::DatabaseName;
use crate::migration::{Applied, MigrateOptions};
use crate::progress::Progress;
use crate::stop::Stop;

/// The project of the original tools' tests.
const TEST_PROJECT: &str = "test-project";

#[derive(Args, Debug)]
pub(crate) struct SetupTestCommand {
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ResetDevCommand {
    #[command(flatten)]
    run: RunArgs,
    /// Do not ask to type DELETE
    #[arg(long)]
    confirm: bool,
}

impl SetupTestCommand {
    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        let global = match global.named_project() {
            Some(_) => global.clone(),
            None => global.with_project(TEST_PROJECT),
        };
        let database = global.database()?;
        if is_protected(&global, &database) {
            return Err(Refused::new(format!(
                "setup-test is for databases of tests, and project `{}` could be production: use {TEST_PROJECT}, a project named \
                 demo-…, an emulator, or TESTING=true with --allow-project {}",
                database.project, database.project
            )));
        }
        let output = global.output();
        if repository(&global).await?.is_none() {
            let made = Repository::init(global.new_store()?, clock::now()).await?;
            output.line(format!("Created a repository in {}.", made.store().location()))?;
        }
        let runner = self.run.runner(&global, false, stop).await?;
        let progress = Arc::new(Progress::new());
        let stats = runner.migrate(MigrateOptions::default(), &progress).await?;
        report(&global, &stats, BilledView::of(runner.database()))
    }
}

#[derive(Serialize)]
struct ResetView<'a> {
    snapshot: String,
    deleted: u64,
    applied: &'a [Applied],
    version: Option<u64>,
    #[serde(flatten)]
    billed: BilledView,
}

impl ResetDevCommand {
    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        let database = global.database()?;
        self.guard(global, &database)?;
        let runner = self.run.runner(global, false, stop).await?;
        let progress = Arc::new(Progress::new());
        let display = ProgressDisplay::start("read", &progress, global.quiet || global.json);
        let stats = runner.reset(&progress).await;
        drop(display);
        let stats = stats?;
        let output = global.output();
        output.line(format!(
            "Backed up {} as snapshot {}.",
            output::count(stats.backup.documents, "document"),
            stats.backup.id
        ))?;
        output.line(format!("Deleted {}.", output::count(stats.deleted, "document")))?;
        for applied in &stats.migrated.applied {
            output.line(format!("{}: applied", applied.id))?;
        }
        tracing::info!("reset of {database}: {} documents deleted", stats.deleted);
        let billed = BilledView::of(runner.database());
        billed.tell(output)?;
        output.json(&ResetView {
            snapshot: stats.backup.id.to_string(),
            deleted: stats.deleted,
            applied: &stats.migrated.applied,
            version: stats.migrated.version,
            billed,
        })?;
        Ok(Outcome::Done)
    }

    /// Only a database of development, only after the project's id was confirmed where it could be another one, and only after
    /// the word.
    fn guard(&self, global: &GlobalOptions, database: &DatabaseName) -> anyhow::Result<()> {
        let development =
            is_testing() || cannot_be_production(&database.project) || !is_protected(global, database);
        if !development {
            return Err(Refused::new(format!(
                "reset-dev deletes everything and is for development only: use project {TEST_PROJECT}, an emulator, or set \
                 TESTING=true (project `{}`)",
                database.project
            )));
        }
        confirm(global, database, "delete everything in")?;
        if self.confirm {
            return Ok(());
        }
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(Refused::new(
                "this would delete every document, and there is no terminal to ask on: --confirm goes on without asking",
            ));
        }
        let mut terminal = std::io::stderr();
        writeln!(terminal, "This will delete every document of {database}.")?;
        write!(terminal, "Type DELETE to go on: ")?;
        terminal.flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        match answer.trim() {
            "DELETE" => Ok(()),
            _ => Err(Refused::new("DELETE was not typed: nothing was changed")),
        }
    }
}
