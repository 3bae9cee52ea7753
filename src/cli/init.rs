//! `firebank init`

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::Outcome;
use super::options::GlobalOptions;
use crate::archive::Repository;
use crate::clock;
use crate::store::Store;

#[derive(Args, Debug)]
pub(crate) struct InitCommand {}

#[derive(Serialize)]
struct Summary {
    repository: String,
    id: String,
}

impl InitCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let path = global.repository_path()?;
        let store = Store::create_local(&path)
            .with_context(|| format!("cannot create a repository in {}", path.display()))?;
        let repository = Repository::init(store, clock::now()).await?;
        let output = global.output();
        output.line(format!(
            "Created repository {} in {}.",
            repository.id(),
            path.display()
        ))?;
        output.json(&Summary {
            repository: path.display().to_string(),
            id: repository.id().to_string(),
        })?;
        Ok(Outcome::Done)
    }
}
