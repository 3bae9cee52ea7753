//! `firebank init`

use std::sync::Arc;

use anyhow::Context;
use clap::{Arg, Args};
use serde::Serialize;

use super::billed::BilledView;
use super::confirm::confirm;
use super::migration_args::{RunArgs, repository};
use super::options::GlobalOptions;
use super::{Outcome, output};
use crate::archive::Repository;
use crate::clock;
use crate::migration::{Applied, MigrateOptions, Version, files};
use crate::progress::Progress;
use crate::stop::Stop;

#[derive(Args, Debug)]
#[command(mut_args(only_with_schema))]
pub(crate) struct InitCommand {
    /// Also apply the first migration: the schema to begin with. The repository may be there already then
    #[arg(long)]
    schema: bool,
    #[command(flatten)]
    run: RunArgs,
}

/// How a script runs says nothing where none does. The folder can be named in the environment, for all commands.
fn only_with_schema(argument: Arg) -> Arg {
    match argument.get_id().as_str() {
        "schema" | "migrations" => argument,
        _ => argument.requires("schema"),
    }
}

#[derive(Serialize)]
struct Summary {
    repository: String,
    id: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    schema: Option<Schema>,
}

/// What became of the first migration.
#[derive(Serialize)]
struct Schema {
    applied: Vec<Applied>,
    #[serde(flatten)]
    billed: BilledView,
}

impl InitCommand {
    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        let output = global.output();
        let first = match self.schema {
            true => {
                let scripts = files::discover(&self.run.folder.migrations)?;
                let first = scripts.first().map(|file| Version(file.id.version()));
                let first = first.with_context(|| {
                    let folder = self.run.folder.migrations.display();
                    format!("there is no script in {folder}: `firebank create-migration NAME` makes one")
                })?;
                confirm(global, &global.database()?, "run the first migration on")?;
                // Before anything is made.
                global.connect().await?;
                Some(first)
            }
            false => None,
        };
        let existing = match first {
            Some(_) => repository(global).await?,
            None => None,
        };
        let repository = match existing {
            Some(repository) => {
                output.line(format!(
                    "There is a repository in {}.",
                    repository.store().location()
                ))?;
                repository
            }
            None => {
                let repository = Repository::init(global.new_store()?, clock::now()).await?;
                let location = repository.store().location();
                output.line(format!("Created repository {} in {location}.", repository.id()))?;
                repository
            }
        };
        let mut summary = Summary {
            repository: repository.store().location().to_owned(),
            id: repository.id().to_string(),
            schema: None,
        };
        if let Some(first) = first {
            let runner = self.run.runner(global, false, stop).await?;
            let options = MigrateOptions {
                to: Some(first),
                ..MigrateOptions::default()
            };
            let stats = runner.migrate(options, &Arc::new(Progress::new())).await?;
            match stats.applied.first() {
                Some(applied) => output.line(format!(
                    "{}: applied, {} created",
                    applied.id,
                    output::count(applied.created, "document")
                ))?,
                None => output.line(format!("The schema is there already ({first}).",))?,
            }
            let billed = BilledView::of(runner.database());
            billed.tell(output)?;
            summary.schema = Some(Schema {
                applied: stats.applied,
                billed,
            });
        }
        output.json(&summary)?;
        Ok(Outcome::Done)
    }
}
