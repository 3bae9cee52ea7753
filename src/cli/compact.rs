//! `firebank compact`

use clap::Args;
use serde::Serialize;

use super::options::GlobalOptions;
use super::snapshots::find_snapshot;
use super::{Outcome, output};
use crate::compact::{CompactOptions, compact};

#[derive(Args, Debug)]
pub(crate) struct CompactCommand {
    /// A snapshot: its id, a unique prefix of it, or `latest`
    #[arg(default_value = "latest")]
    snapshot: String,
    /// How many key ranges to merge at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=512))]
    parallel: u16,
}

#[derive(Serialize)]
struct CompactView {
    /// The snapshot that was asked for.
    replaced: String,
    /// The one that stands in for it; the same when there was nothing to merge.
    snapshot: String,
    layers_before: usize,
    layers: usize,
    stored_bytes: u64,
}

impl CompactCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let repository = global.open_repository().await?;
        let snapshot = find_snapshot(global, &repository, &self.snapshot).await?;
        let options = CompactOptions {
            all: true,
            parallel: usize::from(self.parallel),
        };
        let merged = compact(&repository, &snapshot, &options).await?;
        let stored_bytes = merged.as_ref().map_or(0, |merged| {
            merged.stats.stored_bytes - snapshot.stats.stored_bytes
        });
        let output = global.output();
        match &merged {
            None => output.line(format!(
                "snapshot {} has {} and nothing to merge",
                snapshot.id,
                output::count(snapshot.runs.len() as u64, "layer")
            ))?,
            Some(merged) => output.line(format!(
                "snapshot {} with {} stands in for {} with {}; {} stored",
                merged.id,
                output::count(merged.runs.len() as u64, "layer"),
                snapshot.id,
                output::number(snapshot.runs.len() as u64),
                output::bytes(stored_bytes)
            ))?,
        }
        output.json(&CompactView {
            replaced: snapshot.id.to_string(),
            snapshot: merged.as_ref().unwrap_or(&snapshot).id.to_string(),
            layers_before: snapshot.runs.len(),
            layers: merged.as_ref().unwrap_or(&snapshot).runs.len(),
            stored_bytes,
        })?;
        Ok(Outcome::Done)
    }
}
