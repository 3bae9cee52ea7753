//! `firebank export`

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::backup::{has_no_documents, root_collections};
use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::snapshot_filter::SnapshotFilterArgs;
use super::snapshots::find_filtered;
use super::{Outcome, UsageError, json_backup, output};
use crate::archive::{Snapshot, SnapshotReader};
use crate::clock;
use crate::document::CollectionPath;
use crate::export::{ExportError, LinesOptions, LinesTo, WrittenLines, export_lines, export_snapshot};
use crate::json::{JsonError, is_ndjson};
use crate::progress::Progress;

/// What standard output is called on the command line.
const STANDARD_OUTPUT: &str = "-";

#[derive(Args, Debug)]
pub(crate) struct ExportCommand {
    /// A snapshot: its id, a unique prefix of it, or `latest`
    snapshot: String,
    /// Root collections; without any, all but `_migrations`
    #[arg(value_name = "COLLECTION")]
    collections: Vec<String>,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// The folder for the files; with NDJSON also one FILE.ndjson for all, or `-` for standard output
    #[arg(short, long, value_name = "DIR|FILE|-")]
    output: PathBuf,
    /// Include the `_migrations` collection
    #[arg(long)]
    include_migrations: bool,
    #[command(flatten)]
    latest: SnapshotFilterArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One typed JSON file a collection
    Json,
    /// One document a line, with its path
    Ndjson,
}

/// What `--json` prints of an export as NDJSON.
#[derive(Serialize)]
struct Summary {
    files: Vec<File>,
}

#[derive(Serialize)]
struct File {
    collections: Vec<String>,
    file: String,
    documents: u64,
    bytes: u64,
}

impl ExportCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let collections = root_collections(&self.collections)?;
        let to_stream = self.output.as_os_str() == STANDARD_OUTPUT;
        if to_stream && (self.format == Format::Json || global.json) {
            return Err(UsageError::new(
                "only documents as NDJSON go to standard output, and nothing beside them: --format ndjson, without --json",
            ));
        }
        let repository = global.open_repository().await?;
        let snapshot = find_filtered(global, &repository, &self.snapshot, &self.latest).await?;
        let reader = repository.reader(&snapshot).await?;
        match self.format {
            Format::Json => self.json(global, &reader, &snapshot, collections).await,
            Format::Ndjson => {
                self.ndjson(global, &reader, &snapshot, collections, to_stream)
                    .await
            }
        }
    }

    async fn json(
        self,
        global: &GlobalOptions,
        reader: &SnapshotReader,
        snapshot: &Snapshot,
        collections: Vec<CollectionPath>,
    ) -> anyhow::Result<Outcome> {
        let options = json_backup::options(self.output, collections, self.include_migrations)?;
        let progress = Arc::new(Progress::new());
        progress.set_total_documents(snapshot.documents);
        let display = ProgressDisplay::start("exporting", &progress, global.quiet);
        let stats = export_snapshot(reader, snapshot, &options, &progress).await?;
        drop(display);
        json_backup::report(global, &stats, !options.collections.is_empty(), None)
    }

    async fn ndjson(
        self,
        global: &GlobalOptions,
        reader: &SnapshotReader,
        snapshot: &Snapshot,
        collections: Vec<CollectionPath>,
        to_stream: bool,
    ) -> anyhow::Result<Outcome> {
        let to = match to_stream {
            true => LinesTo::Stream(Box::new(io::stdout()), PathBuf::from("standard output")),
            false if is_ndjson(&self.output) && !self.output.is_dir() => LinesTo::File(self.output),
            false => {
                std::fs::create_dir_all(&self.output)
                    .with_context(|| format!("cannot create the folder {}", self.output.display()))?;
                LinesTo::Folder(self.output)
            }
        };
        let options = LinesOptions {
            collections,
            include_migrations: self.include_migrations,
            time: clock::now(),
        };
        let progress = Arc::new(Progress::new());
        if options.collections.is_empty() {
            progress.set_total_documents(snapshot.documents);
        }
        let display = ProgressDisplay::start("exporting", &progress, global.quiet);
        let exported = export_lines(reader, to, &options, &progress).await;
        drop(display);
        let stats = match exported {
            // Whoever reads our output has seen enough.
            Err(ExportError::Json(JsonError::Io { source, .. }))
                if to_stream && source.kind() == io::ErrorKind::BrokenPipe =>
            {
                return Err(output::OutputError::from(source).into());
            }
            exported => exported?,
        };
        if !to_stream {
            tell(global, &stats.files)?;
        }
        let mut outcome = Outcome::Done;
        for collection in &stats.empty {
            outcome = has_no_documents(collection);
        }
        Ok(outcome)
    }
}

fn tell(global: &GlobalOptions, written: &[WrittenLines]) -> anyhow::Result<()> {
    let output = global.output();
    for file in written {
        output.line(format!(
            "{}: {} ({})",
            file.file.display(),
            output::count(file.documents, "document"),
            output::bytes(file.bytes)
        ))?;
    }
    output.json(&Summary {
        files: written
            .iter()
            .map(|written| File {
                collections: written.collections.iter().map(ToString::to_string).collect(),
                file: written.file.display().to_string(),
                documents: written.documents,
                bytes: written.bytes,
            })
            .collect(),
    })
}
