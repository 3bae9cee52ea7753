//! `firebank verify`

use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::snapshots::find_snapshot;
use super::{Outcome, output};
use crate::archive::Damage;
use crate::verify::DataSubset;
use crate::progress::Progress;
use crate::verify::{VerifyOptions, VerifyStats, verify};

#[derive(Args, Debug)]
pub(crate) struct VerifyCommand {
    /// Snapshots: ids, unique prefixes, or `latest`; without any, all of them
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// Also read the data, all of it or a part: `10%`, or `2/7` for the second of seven parts
    #[arg(long, value_name = "SUBSET", num_args = 0..=1, require_equals = true, default_missing_value = "100%")]
    read_data: Option<DataSubset>,
}

/// What `--json` prints of a verification.
#[derive(Serialize)]
struct Summary<'a> {
    intact: bool,
    snapshots: u64,
    documents: u64,
    objects: u64,
    read_bytes: u64,
    damage_count: u64,
    damage: &'a [Damage],
    seconds: f64,
}

impl VerifyCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let repository = global.open_repository().await?;
        let mut snapshots = Vec::with_capacity(self.snapshots.len());
        for wanted in &self.snapshots {
            snapshots.push(find_snapshot(global, &repository, wanted).await?);
        }
        let options = VerifyOptions {
            snapshots: (!self.snapshots.is_empty()).then_some(snapshots),
            read_data: self.read_data,
        };
        let progress = Arc::new(Progress::new());
        let display = ProgressDisplay::start("verifying", &progress, global.quiet);
        let stats = verify(&repository, options, &progress).await?;
        drop(display);
        report(global, &stats)
    }
}

fn report(global: &GlobalOptions, stats: &VerifyStats) -> anyhow::Result<Outcome> {
    let output = global.output();
    for damage in &stats.damage {
        output.data(output::printable(&damage.to_string()))?;
    }
    let listed = stats.damage.len() as u64;
    if stats.damage_count > listed {
        output.data(format!("… and {} more", output::number(stats.damage_count - listed)))?;
    }
    let checked = format!(
        "{} with {}, {}, {} of data read in {}",
        output::count(stats.snapshots, "snapshot"),
        output::count(stats.documents, "document"),
        output::count(stats.objects, "object"),
        output::bytes(stats.read_bytes),
        output::duration(stats.duration)
    );
    if stats.is_intact() {
        output.line(format!("Intact: {checked}."))?;
    } else {
        output.data(format!("DAMAGED in {}: {checked}.", output::count(stats.damage_count, "place")))?;
    }
    output.json(&Summary {
        intact: stats.is_intact(),
        snapshots: stats.snapshots,
        documents: stats.documents,
        objects: stats.objects,
        read_bytes: stats.read_bytes,
        damage_count: stats.damage_count,
        damage: &stats.damage,
        seconds: stats.duration.as_secs_f64(),
    })?;
    Ok(if stats.is_intact() { Outcome::Done } else { Outcome::NeedsLook })
}
