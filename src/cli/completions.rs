//! `firebank completions`

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::output::OutputError;
use super::{Cli, Outcome};

#[derive(Args, Debug)]
pub(crate) struct CompletionsCommand {
    /// The shell to complete in
    shell: Shell,
}

impl CompletionsCommand {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "firebank", &mut script);
        let written = std::io::stdout().lock().write_all(&script);
        written.map_err(OutputError::from)?;
        Ok(Outcome::Done)
    }
}
