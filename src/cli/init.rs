//! `firebank init`

use clap::Args;
use serde::Serialize;

use super::Outcome;
use super::options::GlobalOptions;
use crate::archive::Repository;
use crate::clock;

#[derive(Args, Debug)]
pub(crate) struct InitCommand {}

#[derive(Serialize)]
struct Summary {
    repository: String,
    id: String,
}

impl InitCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let repository = Repository::init(global.new_store()?, clock::now()).await?;
        let location = repository.store().location();
        let output = global.output();
        output.line(format!("Created repository {} in {location}.", repository.id()))?;
        output.json(&Summary {
            repository: location.to_owned(),
            id: repository.id().to_string(),
        })?;
        Ok(Outcome::Done)
    }
}
