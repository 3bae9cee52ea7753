//! `firebank verify SNAPSHOT --live`, and what `restore --verify` has in common with it.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::diff::field_list;
use super::later::{LaterView, warn_of_later};
use super::ls::subtree;
use super::options::GlobalOptions;
use super::output::Output;
use super::progress::ProgressDisplay;
use super::snapshots::find_snapshot;
use super::write_args::positive;
use super::{Outcome, UsageError, output};
use crate::archive::{Snapshot, SnapshotId};
use crate::compare::{Difference, DifferenceKind, NAMED_DIFFERENCES};
use crate::document::{DatabaseName, KeyRange};
use crate::path_filter::PathFilter;
use crate::progress::Progress;
use crate::verify::{
    CompareOptions, CountOf, CountStats, CountedPart, DatabaseStats, Sample, verify_counts, verify_database,
    verify_sample,
};

/// Names that a sample may have: they take eight bytes each.
const LARGEST_SAMPLE: usize = 10_000_000;

#[derive(Args, Debug)]
pub(crate) struct LiveArgs {
    /// Compare the snapshot (`latest` if none is named) with the database as it is now, every document by its contents
    #[arg(long, conflicts_with = "read_data")]
    pub(crate) live: bool,
    /// With --live: compare only so many documents, such as 500, or a part of them, such as 2%; others each time
    #[arg(long, value_name = "N|P%", requires = "live", value_parser = sample)]
    sample: Option<Sample>,
    /// With --live: compare only how many documents there are, by collection; costs a read for a thousand documents
    #[arg(long, requires = "live", conflicts_with = "sample")]
    counts: bool,
    /// With --live: compare only what this pattern chooses; may be repeated
    #[arg(long, value_name = "PATTERN", requires = "live")]
    only: Vec<String>,
    /// With --live: compare nothing of what this pattern chooses; may be repeated
    #[arg(long, value_name = "PATTERN", requires = "live", conflicts_with = "counts")]
    exclude: Vec<String>,
    /// With --live: the project to look at, if it is not the snapshot's
    #[arg(long, value_name = "ID", requires = "live")]
    to_project: Option<String>,
    /// With --live: the database to look at, if it is not the snapshot's
    #[arg(long, value_name = "ID", requires = "live")]
    to_database: Option<String>,
    /// With --live: how many of the documents that differ to name
    #[arg(long, value_name = "N", requires = "live", default_value_t = NAMED_DIFFERENCES)]
    limit: usize,
    /// With --live: how many key ranges to read at the same time
    #[arg(long, value_name = "N", requires = "live", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=512))]
    parallel: u16,
    /// With --live: read at most so many documents a second, by all readers together
    #[arg(long, value_name = "N", requires = "live", value_parser = positive)]
    read_rate: Option<f64>,
}

fn sample(text: &str) -> Result<Sample, String> {
    const FORMS: &str = "give a number of documents such as 500, or a percentage such as 2%";
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.parse().map_err(|_| FORMS)?;
        return match percent > 0.0 && percent <= 100.0 {
            true => Ok(Sample::Percent(percent)),
            false => Err(FORMS.to_owned()),
        };
    }
    match text.parse::<usize>().map_err(|_| FORMS)? {
        0 => Err(FORMS.to_owned()),
        documents if documents > LARGEST_SAMPLE => Err(format!(
            "a sample has {} documents at most; give a percentage",
            output::number(LARGEST_SAMPLE as u64)
        )),
        documents => Ok(Sample::Documents(documents)),
    }
}

impl LiveArgs {
    pub(crate) async fn run(self, global: &GlobalOptions, snapshots: &[String]) -> anyhow::Result<Outcome> {
        let wanted = match snapshots {
            [] => "latest",
            [one] => one,
            _ => {
                return Err(UsageError::new(
                    "--live compares one snapshot with the database: name one",
                ));
            }
        };
        let filter = PathFilter::new(&self.only)
            .and_then(|filter| filter.excluding(&self.exclude))
            .map_err(|error| UsageError::new(error.to_string()))?;
        let paths = match self.counts {
            true => counted_paths(&self.only)?,
            false => Vec::new(),
        };
        let repository = global.open_repository().await?;
        let snapshot = find_snapshot(global, &repository, wanted).await?;
        let target = self.target(global, &snapshot);
        let database = global.connect_reading(target.clone(), self.read_rate).await?;
        let reader = repository.reader(&snapshot).await?;
        let progress = Arc::new(Progress::new());
        let display = ProgressDisplay::start("comparing", &progress, global.quiet);
        if self.counts {
            let stats = verify_counts(&reader, &database, &paths, &progress).await?;
            drop(display);
            return report_counts(global, snapshot.id, &target, &stats);
        }
        let options = CompareOptions {
            filter,
            named: self.limit,
            parallel: usize::from(self.parallel),
            ..CompareOptions::default()
        };
        let stats = match self.sample {
            Some(sample) => verify_sample(&reader, &database, sample, &options, &progress).await?,
            None => verify_database(&reader, &database, &options, &progress).await?,
        };
        drop(display);
        let verification = Verification {
            snapshot: snapshot.id,
            target: &target,
            stats: &stats,
            check: match self.sample {
                Some(_) => Check::Sample,
                None => Check::Contents,
            },
            extra_matters: true,
            around_damage: false,
        };
        verification.tell(global.output())?;
        global.output().json(&verification.view())?;
        Ok(verification.outcome())
    }

    /// Where the snapshot is of, unless another place is named.
    fn target(&self, global: &GlobalOptions, snapshot: &Snapshot) -> DatabaseName {
        let project = self.to_project.clone().or_else(|| global.named_project());
        let database = self.to_database.as_deref().or_else(|| global.named_database());
        DatabaseName::new(
            project.unwrap_or_else(|| snapshot.database.project.clone()),
            database.unwrap_or(&snapshot.database.database),
        )
    }
}

/// A server counts what is in a key range, so a pattern must be a path.
fn counted_paths(patterns: &[String]) -> anyhow::Result<Vec<(String, KeyRange)>> {
    let path = |pattern: &String| {
        if pattern.contains(['*', '?', '[', ']', '{', '}', '\\']) {
            return Err(UsageError::new(format!(
                "--counts counts collections and documents with everything below them: `{pattern}` is a pattern, and not the \
                 path of one"
            )));
        }
        Ok((pattern.clone(), subtree(pattern)?))
    };
    patterns.iter().map(path).collect()
}

/// How closely was looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Check {
    Contents,
    Sample,
    Counts,
}

/// A comparison of documents, to be told.
pub(crate) struct Verification<'a> {
    pub(crate) snapshot: SnapshotId,
    pub(crate) target: &'a DatabaseName,
    pub(crate) stats: &'a DatabaseStats,
    pub(crate) check: Check,
    /// Whether documents that only the database has are a difference.
    pub(crate) extra_matters: bool,
    /// Whether damaged parts of the snapshot were left out.
    pub(crate) around_damage: bool,
}

/// What `--json` prints of it.
#[derive(Serialize)]
pub(crate) struct VerificationView<'a> {
    snapshot: String,
    target: String,
    check: Check,
    matches: bool,
    read_time: String,
    /// What was read at a newer time.
    later_ranges: Vec<LaterView>,
    documents: u64,
    equal: u64,
    different: u64,
    missing: u64,
    extra: u64,
    collections: &'a std::collections::BTreeMap<String, u64>,
    first_differences: &'a [Difference],
    billed_reads: u64,
    retries: u64,
    seconds: f64,
}

impl<'a> Verification<'a> {
    fn matches(&self) -> bool {
        let comparison = &self.stats.comparison;
        comparison.different + comparison.missing == 0 && (comparison.extra == 0 || !self.extra_matters)
    }

    pub(crate) fn outcome(&self) -> Outcome {
        match self.matches() {
            true => Outcome::Done,
            false => Outcome::NeedsLook,
        }
    }

    pub(crate) fn view(&self) -> VerificationView<'a> {
        let comparison = &self.stats.comparison;
        VerificationView {
            snapshot: self.snapshot.to_string(),
            target: self.target.to_string(),
            check: self.check,
            matches: self.matches(),
            read_time: self.stats.read_time.to_string(),
            later_ranges: LaterView::of(&self.stats.later),
            documents: self.stats.documents,
            equal: comparison.equal,
            different: comparison.different,
            missing: comparison.missing,
            extra: comparison.extra,
            collections: &self.stats.collections,
            first_differences: &comparison.first_differences,
            billed_reads: self.stats.billed_reads,
            retries: self.stats.retries,
            seconds: self.stats.duration.as_secs_f64(),
        }
    }

    /// In words.
    pub(crate) fn tell(&self, output: Output) -> anyhow::Result<()> {
        let comparison = &self.stats.comparison;
        for difference in &comparison.first_differences {
            output.data(line(difference))?;
        }
        let named = comparison.first_differences.len() as u64;
        let unnamed = comparison.differences().saturating_sub(named);
        if unnamed > 0 && named > 0 {
            output.data(format!("… and {} more", output::number(unnamed)))?;
        }
        if self.stats.collections.len() > 1 {
            let mut table = output::table(&["collection", "differences"], &[1]);
            for (collection, count) in &self.stats.collections {
                table.add_row([output::printable(collection), output::number(*count)]);
            }
            output.table(&table)?;
        }
        warn_of_later(&self.stats.later);
        let whole = match self.check {
            Check::Sample => "a sample of ",
            _ if self.matches() && !self.around_damage => "all ",
            _ => "",
        };
        let but = match self.around_damage && self.matches() {
            true => ", but for what is damaged,",
            false => "",
        };
        let place = format!("{} as of {}{but}", self.target, self.stats.read_time);
        let end = format!(
            "({}, {} billed)",
            output::duration(self.stats.duration),
            output::count(self.stats.billed_reads, "read")
        );
        if self.matches() {
            let more = match comparison.extra {
                0 => String::new(),
                extra => format!(", which has {} more", output::number(extra)),
            };
            output.line(format!(
                "Equal: {whole}{} of snapshot {} are in {place}{more} {end}.",
                output::count(comparison.equal, "document"),
                self.snapshot,
            ))?;
        } else {
            output.data(format!(
                "DIFFERENT: {whole}{}, of snapshot {}, in {place}: {} equal, {} different, {} missing, {} extra {end}.",
                output::count(self.stats.documents, "document"),
                self.snapshot,
                output::number(comparison.equal),
                output::number(comparison.different),
                output::number(comparison.missing),
                output::number(comparison.extra),
            ))?;
        }
        Ok(())
    }
}

/// `different  products/p1  price, -old`
fn line(difference: &Difference) -> String {
    let kind = match difference.kind {
        DifferenceKind::Different => "different",
        DifferenceKind::Missing => "missing",
        DifferenceKind::Extra => "extra",
    };
    let path = output::printable(difference.path.as_str());
    match difference.fields.is_empty() {
        true => format!("{kind:<9}  {path}"),
        false => format!("{kind:<9}  {path}  {}", field_list(&difference.fields)),
    }
}

/// What `--json` prints of counts.
#[derive(Serialize)]
struct CountsView<'a> {
    snapshot: String,
    target: String,
    check: Check,
    matches: bool,
    read_time: String,
    counts: &'a [CountedPart],
    billed_reads: u64,
    retries: u64,
    seconds: f64,
}

fn report_counts(
    global: &GlobalOptions,
    snapshot: SnapshotId,
    target: &DatabaseName,
    stats: &CountStats,
) -> anyhow::Result<Outcome> {
    let output = global.output();
    let matches = stats.is_equal();
    let mut table = output::table(&["documents of", "snapshot", "database", ""], &[1, 2]);
    for part in &stats.parts {
        let name = match part.of {
            CountOf::Database => "all collections".to_owned(),
            CountOf::CollectionGroup | CountOf::Path => output::printable(&part.name),
        };
        let differs = if part.expected == part.found {
            ""
        } else {
            "DIFFERENT"
        };
        table.add_row([
            name,
            output::number(part.expected),
            output::number(part.found),
            differs.to_owned(),
        ]);
    }
    output.table(&table)?;
    if stats.whole_refused {
        tracing::warn!(
            "the server does not count over all collections: documents of collections that the snapshot does not have would \
             go unnoticed"
        );
    }
    let end = format!(
        "{target} as of {} ({}, {} billed)",
        stats.read_time,
        output::duration(stats.duration),
        output::count(stats.billed_reads, "read")
    );
    match matches {
        true => output.line(format!(
            "Equal: snapshot {snapshot} has the same counts as {end}."
        ))?,
        false => output.data(format!(
            "DIFFERENT: snapshot {snapshot} has other counts than {end}."
        ))?,
    }
    output.json(&CountsView {
        snapshot: snapshot.to_string(),
        target: target.to_string(),
        check: Check::Counts,
        matches,
        read_time: stats.read_time.to_string(),
        counts: &stats.parts,
        billed_reads: stats.billed_reads,
        retries: stats.retries,
        seconds: stats.duration.as_secs_f64(),
    })?;
    Ok(match matches {
        true => Outcome::Done,
        false => Outcome::NeedsLook,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_numbers_or_percentages() {
        assert_eq!(sample("500"), Ok(Sample::Documents(500)));
        assert_eq!(sample("2.5%"), Ok(Sample::Percent(2.5)));
        for wrong in ["", "0", "-1", "1.5", "0%", "101%", "NaN%", "x", "10000001"] {
            assert!(sample(wrong).is_err(), "{wrong}");
        }
    }
}
