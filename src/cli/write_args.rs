//! What the commands that write documents have in common: how to write, the plan, the report.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::confirm::confirm;
use super::options::GlobalOptions;
use super::output::Output;
use super::{Outcome, output};
use crate::clock;
use crate::document::DatabaseName;
use crate::firestore::{Firestore, WriteMode, WriteOptions};
use crate::path_filter::PathFilter;
use crate::restore::{RestoreOptions, RestorePlan, RestoreStats};

/// Key ranges of a snapshot that are read at the same time: the more, the further apart neighbouring writes lie.
const READERS: usize = 8;

/// How to write, for every command that does.
#[derive(Args, Debug)]
pub(super) struct WriteArgs {
    /// What happens to a document that exists
    #[arg(long, value_enum, default_value_t = Mode::Overwrite)]
    pub(super) mode: Mode,
    /// Show what would be written, and write nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// At most this many writes a second
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(super) rate: Option<f64>,
    /// Do not start slowly: for databases that are empty or warmed up
    #[arg(long)]
    pub(super) no_ramp: bool,
    /// Where documents go that the database refuses [default: firebank-failed-<time>.ndjson]
    #[arg(long, value_name = "FILE")]
    pub(super) dead_letter_file: Option<PathBuf>,
    /// How many requests are under way at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(super) parallel: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// It is replaced
    Overwrite,
    /// It is left alone
    CreateOnly,
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("must be a number above zero".to_owned()),
    }
}

impl WriteArgs {
    pub(super) fn restore_options(&self, database: &Firestore, filter: PathFilter) -> RestoreOptions {
        let defaults = WriteOptions::new(database);
        let write = WriteOptions {
            mode: match self.mode {
                Mode::Overwrite => WriteMode::Overwrite,
                Mode::CreateOnly => WriteMode::CreateOnly,
            },
            max_in_flight: usize::from(self.parallel),
            rate: self.rate,
            ramp: defaults.ramp && !self.no_ramp,
            ..defaults
        };
        RestoreOptions {
            filter,
            write,
            parallel: READERS,
            dead_letter_file: self.dead_letter_file(),
        }
    }

    fn dead_letter_file(&self) -> PathBuf {
        self.dead_letter_file.clone().unwrap_or_else(|| {
            PathBuf::from(format!(
                "firebank-failed-{}.ndjson",
                clock::now().format("%Y%m%d_%H%M%S%3f")
            ))
        })
    }

    /// Asks before documents are overwritten.
    pub(super) fn confirm(&self, global: &GlobalOptions, target: &DatabaseName) -> anyhow::Result<()> {
        if self.dry_run || self.mode == Mode::CreateOnly {
            return Ok(());
        }
        confirm(global, target, "overwrite documents in")
    }
}

/// The plan for people.
pub(super) fn show_plan(
    output: Output,
    plan: &RestorePlan,
    source: &str,
    target: &DatabaseName,
    filter: &PathFilter,
) -> anyhow::Result<Outcome> {
    let source = output::printable(source);
    let mut table = output::table(&["collection", "documents"], &[1]);
    for (collection, documents) in &plan.collections {
        table.add_row([output::printable(collection), output::number(*documents)]);
    }
    output.table(&table)?;
    output.data(format!(
        "Dry run: {} ({}) of {source} would be written into {target}. Nothing was written.",
        output::count(plan.documents, "document"),
        output::bytes(plan.bytes),
    ))?;
    Ok(outcome_of_choice(filter, plan.documents))
}

/// Patterns that choose nothing are most likely misspelt, and whoever wrote them counts on what they should have chosen.
fn outcome_of_choice(filter: &PathFilter, documents: u64) -> Outcome {
    if filter.is_all() || documents > 0 {
        return Outcome::Done;
    }
    tracing::error!(
        "no document matches --only {}: is it spelled right? `firebank ls` lists what a snapshot has",
        output::printable(&filter.patterns().join(" --only "))
    );
    Outcome::NeedsLook
}

/// What `--json` prints of a restore.
#[derive(Serialize)]
struct Summary<'a> {
    source: &'a str,
    target: String,
    documents: u64,
    bytes: u64,
    written: u64,
    existing: u64,
    failed: u64,
    dead_letter_file: Option<&'a Path>,
    foreign_references: u64,
    requests: u64,
    retries: u64,
    seconds: f64,
}

/// Tells how a restore or an import ended.
pub(super) fn report(
    global: &GlobalOptions,
    source: &str,
    target: &DatabaseName,
    stats: &RestoreStats,
    filter: &PathFilter,
    dead_letter_file: &Path,
) -> anyhow::Result<Outcome> {
    let output = global.output();
    let shown = output::printable(source);
    output.line(format!(
        "Restored {} ({}) of {shown} into {target} in {}.",
        output::count(stats.written, "document"),
        output::bytes(stats.bytes),
        output::duration(stats.duration)
    ))?;
    if stats.existing > 0 {
        output.line(format!(
            "{} there already and stayed as they were.",
            match stats.existing {
                1 => "1 document was".to_owned(),
                existing => format!("{} documents were", output::number(existing)),
            }
        ))?;
    }
    if stats.writes.absolute_references > 0 {
        output.line(format!(
            "{} to documents of other databases; they were written as they are.",
            output::count(stats.writes.absolute_references, "reference")
        ))?;
    }
    if stats.failed > 0 {
        tracing::error!(
            "the database refused {}: {} has each with the reason",
            output::count(stats.failed, "document"),
            dead_letter_file.display()
        );
    }
    output.json(&Summary {
        source,
        target: target.to_string(),
        documents: stats.documents,
        bytes: stats.bytes,
        written: stats.written,
        existing: stats.existing,
        failed: stats.failed,
        dead_letter_file: (stats.failed > 0).then_some(dead_letter_file),
        foreign_references: stats.writes.absolute_references,
        requests: stats.writes.requests,
        retries: stats.writes.retries,
        seconds: stats.duration.as_secs_f64(),
    })?;
    Ok(if stats.failed > 0 {
        Outcome::NeedsLook
    } else {
        outcome_of_choice(filter, stats.documents)
    })
}
