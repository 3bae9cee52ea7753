//! `firebank export`

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::backup::root_collections;
use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::snapshot_filter::SnapshotFilterArgs;
use super::snapshots::find_filtered;
use super::{Outcome, json_backup};
use crate::export::export_snapshot;
use crate::progress::Progress;

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
    /// The folder for the files
    #[arg(short, long, value_name = "DIR")]
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
}

impl ExportCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let Format::Json = self.format;
        let collections = root_collections(&self.collections)?;
        let repository = global.open_repository().await?;
        let snapshot = find_filtered(global, &repository, &self.snapshot, &self.latest).await?;
        let reader = repository.reader(&snapshot).await?;
        let options = json_backup::options(self.output, collections, self.include_migrations)?;
        let progress = Arc::new(Progress::new());
        progress.set_total_documents(snapshot.documents);
        let display = ProgressDisplay::start("exporting", &progress, global.quiet);
        let stats = export_snapshot(&reader, &snapshot, &options, &progress).await?;
        drop(display);
        json_backup::report(global, &stats, !options.collections.is_empty())
    }
}
