//! `firebank import`

use std::io;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::options::GlobalOptions;
use super::write_args::WriteArgs;
use super::{Outcome, UsageError, json_restore};
use crate::json::DocumentsFile;
use crate::stop::Stop;

#[derive(Args, Debug)]
pub(crate) struct ImportCommand {
    /// JSON backups' files, files of NDJSON (.ndjson, .jsonl), or `-` for NDJSON on standard input, which is kept on the disk
    /// until it ends, because nothing is written before all of it was read
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What the files are, whatever they are called
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One typed JSON file a collection
    Json,
    /// One document a line, with its path
    Ndjson,
}

/// What standard input is called on the command line.
const STANDARD_INPUT: &str = "-";

impl ImportCommand {
    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        let mut options = self.write.restore_options(global)?;
        options.stop = stop;
        let target = global.database()?;
        let files = self.sources().await?;
        json_restore::run(global, &files, &target, options, &self.write).await
    }

    async fn sources(&self) -> anyhow::Result<Vec<DocumentsFile>> {
        let mut sources = Vec::with_capacity(self.files.len());
        let inputs = self
            .files
            .iter()
            .filter(|file| file.as_os_str() == STANDARD_INPUT);
        if inputs.count() > 1 {
            return Err(UsageError::new("there is one standard input: name `-` once"));
        }
        for file in &self.files {
            sources.push(match self.format {
                _ if file.as_os_str() == STANDARD_INPUT => {
                    if self.format == Some(Format::Json) {
                        return Err(UsageError::new("standard input is read as NDJSON only"));
                    }
                    let spool = || DocumentsFile::spool(io::stdin(), "standard input");
                    tokio::task::spawn_blocking(spool).await??
                }
                None => DocumentsFile::at(file),
                Some(Format::Json) => DocumentsFile::collection(file),
                Some(Format::Ndjson) => DocumentsFile::ndjson(file),
            });
        }
        Ok(sources)
    }
}
