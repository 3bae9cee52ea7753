//! `firebank verify`

use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::restore_session::StateArgs;
use super::snapshots::find_snapshot;
use super::task_args::SharedArgs;
use super::verify_live::LiveArgs;
use super::{Outcome, UsageError, output};
use crate::archive::{ArchiveError, Damage, DataSubset, Repository, Verification};
use crate::clock;
use crate::progress::Progress;
use crate::store::Store;
use crate::task::{SharedWork, SharesError};
use crate::verify::{VerifyOptions, VerifySharedError, VerifyStats, verify, verify_shared};

#[derive(Args, Debug)]
pub(crate) struct VerifyCommand {
    /// Snapshots: ids, unique prefixes, or `latest`; without any, all of them
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// Also read the data, all of it or a part: `10%`, or `2/7` for the second of seven parts
    #[arg(long, value_name = "SUBSET", num_args = 0..=1, require_equals = true, default_missing_value = "100%", value_parser = wanted_data)]
    read_data: Option<WantedData>,
    #[command(flatten)]
    shared: SharedArgs,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    live: LiveArgs,
}

/// What `--json` prints of a verification.
#[derive(Serialize)]
struct Summary<'a> {
    intact: bool,
    snapshots: u64,
    documents: u64,
    objects: u64,
    stored_bytes: u64,
    data_bytes: u64,
    damage_count: u64,
    damage: &'a [Damage],
    seconds: f64,
}

/// As restic's `--read-data-subset`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum WantedData {
    /// This one.
    Part(DataSubset),
    /// One of so many: another one every time, so that in the end all have their turn.
    OneOf(u64),
}

impl WantedData {
    /// What is read. Tasks that share it under a name must read the same.
    fn subset(self, name: Option<&str>) -> DataSubset {
        let pick = |of| match name {
            Some(name) => xxh3_64(name.as_bytes()) % of,
            None => rand::random_range(0..of),
        };
        match self {
            Self::Part(subset) => subset,
            Self::OneOf(of) => DataSubset { part: pick(of), of },
        }
    }
}

fn wanted_data(text: &str) -> Result<WantedData, String> {
    const FORMS: &str = "give a percentage such as 10%, or n/t such as 2/7 with 1 ≤ n ≤ t";
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.parse().map_err(|_| FORMS)?;
        if !(percent > 0.0 && percent <= 100.0) {
            return Err(FORMS.to_owned());
        }
        // Rounded down, so that what is read is never less than what was asked for.
        return Ok(WantedData::OneOf(((100.0 / percent) as u64).max(1)));
    }
    let (part, of) = text.split_once('/').ok_or(FORMS)?;
    let (part, of): (u64, u64) = (part.parse().map_err(|_| FORMS)?, of.parse().map_err(|_| FORMS)?);
    if part == 0 || part > of {
        return Err(FORMS.to_owned());
    }
    Ok(WantedData::Part(DataSubset { part: part - 1, of }))
}

impl VerifyCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        if self.live.live {
            if self.shared.is_given() {
                return Err(UsageError::new(
                    "--session, --task-index and --task-count share a verification of a snapshot's data, and not --live",
                ));
            }
            self.state.refuse("--live keeps no state")?;
            return self.live.run(global, &self.snapshots).await;
        }
        let (task, shared) = self.shared.shared()?;
        let shared = self.state_of(global, shared)?;
        let read_data = self.read_data.map(|wanted| match (&shared, task) {
            (Some((shared, _)), _) => wanted.subset(Some(&shared.name)),
            (None, Some(task)) => wanted.subset(None).share(task),
            (None, None) => wanted.subset(None),
        });
        let repository = match Repository::open(global.store()?).await {
            Err(ArchiveError::Damaged(damage)) => {
                let stats = VerifyStats {
                    damage_count: 1,
                    damage: vec![*damage],
                    ..VerifyStats::default()
                };
                return report(global, &stats);
            }
            opened => opened?,
        };
        if shared.is_some() && self.snapshots.iter().any(|snapshot| snapshot == "latest") {
            return Err(UsageError::new(
                "tasks that share a verification name snapshots by their ids: one that starts later could find another one to be the latest",
            ));
        }
        let mut snapshots = Vec::with_capacity(self.snapshots.len());
        for wanted in &self.snapshots {
            snapshots.push(find_snapshot(global, &repository, wanted).await?);
        }
        let options = VerifyOptions {
            snapshots: (!self.snapshots.is_empty()).then_some(snapshots),
            read_data,
        };
        let progress = Arc::new(Progress::new());
        let display = ProgressDisplay::start("verifying", &progress, global.quiet);
        let mut data_read = read_data.map_or(0.0, |part| 1.0 / part.of.max(1) as f64);
        let verified = match &shared {
            Some((shared, state)) => {
                let verified = verify_shared(&repository, options, state, shared, &progress).await;
                verified.map_err(wrong_usage).map(|verified| {
                    data_read *= f64::from(verified.parts) / f64::from(verified.of);
                    verified.stats
                })
            }
            None => verify(&repository, options, &progress).await.map_err(Into::into),
        };
        drop(display);
        let stats = verified?;
        let verification = Verification {
            at: clock::now(),
            snapshots: stats.snapshots,
            all: self.snapshots.is_empty(),
            data_read,
            damage_count: stats.damage_count,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        // One that was started again when all was done has looked at nothing.
        if shared.is_some() && data_read == 0.0 {
            return report(global, &stats);
        }
        // For `status`. The result stands without it.
        match repository.record_verification(&verification).await {
            Ok(true) => {}
            Ok(false) => tracing::info!("no record of this is left: the repository may not be written"),
            Err(error) => tracing::info!("no record of this is left: {error}"),
        }
        report(global, &stats)
    }

    /// With the place where tasks tell each other who reads which parts. Without one each reads its own share.
    fn state_of(
        &self,
        global: &GlobalOptions,
        shared: Option<SharedWork>,
    ) -> anyhow::Result<Option<(SharedWork, Store)>> {
        if self.shared.is_named() && (self.read_data.is_none() || self.state.chosen(global)?.is_none()) {
            return Err(UsageError::new(
                "--session is what tasks share with --read-data, and they keep it where all of them find it: name a bucket with --state",
            ));
        }
        match shared {
            Some(shared) if self.read_data.is_some() => {
                Ok(self.state.chosen(global)?.map(|state| (shared, state)))
            }
            _ => {
                self.state.refuse(
                    "it is what tasks share with --read-data, --session, --task-index and --task-count",
                )?;
                Ok(None)
            }
        }
    }
}

fn wrong_usage(error: VerifySharedError) -> anyhow::Error {
    match error {
        VerifySharedError::Shares(SharesError::Count { .. } | SharesError::Options { .. }) => {
            UsageError::new(error.to_string())
        }
        error => error.into(),
    }
}

/// Nights build upon what is there, so they would carry the damage on.
const ADVICE: &str = "If the database still has the documents, `firebank backup --full --no-dedup` stores all of them anew, \
and the backups after it build upon that one.";

fn report(global: &GlobalOptions, stats: &VerifyStats) -> anyhow::Result<Outcome> {
    let output = global.output();
    for damage in &stats.damage {
        output.data(output::printable(&damage.to_string()))?;
    }
    let listed = stats.damage.len() as u64;
    if stats.damage_count > listed {
        output.data(format!(
            "… and {} more",
            output::number(stats.damage_count - listed)
        ))?;
    }
    let checked = format!(
        "{} with {}, {}, {} of data read in {}",
        output::count(stats.snapshots, "snapshot"),
        output::count(stats.documents, "document"),
        output::count(stats.objects, "object"),
        output::bytes(stats.data_bytes),
        output::duration(stats.duration)
    );
    if stats.is_intact() {
        output.line(format!("Intact: {checked}."))?;
    } else {
        output.data(format!(
            "DAMAGED in {}: {checked}.",
            output::count(stats.damage_count, "place")
        ))?;
        output.line(ADVICE)?;
    }
    output.json(&Summary {
        intact: stats.is_intact(),
        snapshots: stats.snapshots,
        documents: stats.documents,
        objects: stats.objects,
        stored_bytes: stats.stored_bytes,
        data_bytes: stats.data_bytes,
        damage_count: stats.damage_count,
        damage: &stats.damage,
        seconds: stats.duration.as_secs_f64(),
    })?;
    Ok(if stats.is_intact() {
        Outcome::Done
    } else {
        Outcome::NeedsLook
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_are_parts_or_percentages() {
        let subset = |text| wanted_data(text).map(|wanted| wanted.subset(None));
        assert_eq!(subset("2/7"), Ok(DataSubset { part: 1, of: 7 }));
        assert_eq!(subset("100%"), Ok(DataSubset::ALL));
        assert_eq!(subset("30%").unwrap().of, 3);
        for wrong in ["", "7", "0/7", "8/7", "0%", "101%", "NaN%", "-1%", "a/b"] {
            assert!(subset(wrong).is_err(), "{wrong}");
        }
        // All tasks of a week read the same part, and those of another week another one.
        let of_week = |week: &str| wanted_data("1%").unwrap().subset(Some(week)).part;
        assert_eq!(of_week("weekly-1"), of_week("weekly-1"));
        assert_ne!(of_week("weekly-1"), of_week("weekly-2"));
    }
}
