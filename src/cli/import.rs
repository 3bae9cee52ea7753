//! `firebank import`

use std::path::PathBuf;

use clap::Args;

use super::options::GlobalOptions;
use super::write_args::WriteArgs;
use super::{Outcome, UsageError, json_restore};
use crate::path_filter::PathFilter;
use crate::stop::Stop;

#[derive(Args, Debug)]
pub(crate) struct ImportCommand {
    /// JSON backups' files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Import only what this pattern chooses; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    #[command(flatten)]
    write: WriteArgs,
}

impl ImportCommand {
    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        let filter = PathFilter::new(&self.only).map_err(|error| UsageError::new(error.to_string()))?;
        let target = global.database()?;
        json_restore::run(global, &self.files, &target, filter, &self.write, stop).await
    }
}
