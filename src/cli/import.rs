//! `firebank import`

use std::path::PathBuf;

use clap::Args;

use super::options::GlobalOptions;
use super::write_args::WriteArgs;
use super::{Outcome, json_restore};

#[derive(Args, Debug)]
pub(crate) struct ImportCommand {
    /// JSON backups' files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
}

impl ImportCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let options = self.write.restore_options(global)?;
        let target = global.database()?;
        json_restore::run(global, &self.files, &target, options, &self.write).await
    }
}
