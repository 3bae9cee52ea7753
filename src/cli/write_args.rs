//! What the commands that write documents have in common: how to write, the plan, the report.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::confirm::{confirm, is_protected};
use super::cost_args::{self, PricesArgs};
use super::options::GlobalOptions;
use super::output::Output;
use super::verify_live::{Verification, VerificationView};
use super::{Outcome, UsageError, output};
use crate::clock;
use crate::cost::Cost;
use crate::document::{DatabaseName, DocumentPath, FieldMask, Timestamp};
use crate::firestore::WriteOptions;
use crate::path_filter::PathFilter;
use crate::restore::{
    Fates, Gap, ReferenceCounts, ReferenceMode, Renames, RestoreError, RestoreMode, RestoreOptions,
    RestorePlan, RestoreStats, SharedStats, TtlField, Warning, ttl_fields_of,
};

/// How to write, for every command that does.
#[derive(Args, Debug)]
pub(super) struct WriteArgs {
    /// Only what this pattern chooses, such as `products`, `users/u1` or `users/*/orders`; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(super) only: Vec<String>,
    /// Nothing of what this pattern chooses; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(super) exclude: Vec<String>,
    /// Only these fields, and only of documents that exist
    #[arg(long, value_name = "A,B.C")]
    pub(super) fields: Option<String>,
    /// Put a collection and what is below it under another name; may be repeated
    #[arg(long, value_name = "FROM=TO")]
    pub(super) rename_collection: Vec<String>,
    /// What happens to a document that exists
    #[arg(long, value_enum, default_value_t = Mode::Overwrite)]
    pub(super) mode: Mode,
    /// Leave documents alone that were changed after this time, such as `2026-11-22T02:00:00Z`, and list them
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) if_unmodified_since: Option<Timestamp>,
    /// Where references to documents of the snapshot's own database point afterwards
    #[arg(long, value_enum, default_value_t = References::Rewrite)]
    pub(super) references: References,
    /// A field by which the database deletes documents once its time has passed: warns of those that would go again; may be
    /// repeated. Without it the database is asked, which needs the permission datastore.indexes.list
    #[arg(long, value_name = "[COLLECTION.]FIELD")]
    pub(super) ttl_field: Vec<String>,
    /// Show what would be created, changed, left alone and deleted, with what that costs, and write nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) prices: PricesArgs,
    /// Do not look through the documents for what to warn of before they are written
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) no_check: bool,
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
    /// It is replaced if it differs, which costs a read
    SkipIdentical,
    /// It is replaced if it differs, and chosen documents that the snapshot does not have are DELETED
    Mirror,
    /// It gets the fields that the snapshot has and keeps its others
    Merge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum References {
    /// Into the database that is written
    Rewrite,
    /// Where they pointed
    Keep,
    /// As with `rewrite`; nothing is written when documents refer to other databases
    Fail,
}

fn time(text: &str) -> Result<Timestamp, String> {
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) => Ok(Timestamp::from(time.with_timezone(&Utc))),
        Err(_) => Err("write a time with its zone, such as 2026-11-22T02:00:00Z".to_owned()),
    }
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("must be a number above zero".to_owned()),
    }
}

impl WriteArgs {
    /// What is meant, before anything is done.
    pub(super) fn restore_options(&self, global: &GlobalOptions) -> anyhow::Result<RestoreOptions> {
        let usage = |error: &dyn std::error::Error| UsageError::new(error.to_string());
        let filter = PathFilter::new(&self.only)
            .and_then(|filter| filter.excluding(&self.exclude))
            .map_err(|error| usage(&error))?;
        let fields = self.fields.as_deref().map(FieldMask::parse).transpose();
        let ttl_fields = self.ttl_field.iter().map(|field| TtlField::parse(field));
        let defaults = RestoreOptions::for_target(global.is_emulated(), self.dead_letter_file());
        let options = RestoreOptions {
            filter,
            mode: match self.mode {
                Mode::Overwrite => RestoreMode::Overwrite,
                Mode::CreateOnly => RestoreMode::CreateOnly,
                Mode::SkipIdentical => RestoreMode::SkipIdentical,
                Mode::Mirror => RestoreMode::Mirror,
                Mode::Merge => RestoreMode::Merge,
            },
            fields: fields.map_err(|error| usage(&error))?,
            unmodified_since: self.if_unmodified_since,
            renames: Renames::parse(&self.rename_collection).map_err(|error| usage(&error))?,
            references: match self.references {
                References::Rewrite => ReferenceMode::Rewrite,
                References::Keep => ReferenceMode::Keep,
                References::Fail => ReferenceMode::Fail,
            },
            ttl_fields: ttl_fields
                .collect::<Result<_, _>>()
                .map_err(|error| usage(&error))?,
            write: WriteOptions {
                max_in_flight: usize::from(self.parallel),
                rate: self.rate,
                ramp: defaults.write.ramp && !self.no_ramp,
                ..defaults.write
            },
            ..defaults
        };
        options.check().map_err(|error| usage(&error))?;
        Ok(options)
    }

    fn dead_letter_file(&self) -> PathBuf {
        self.dead_letter_file.clone().unwrap_or_else(|| {
            PathBuf::from(format!(
                "firebank-failed-{}.ndjson",
                clock::now().format("%Y%m%d_%H%M%S%3f")
            ))
        })
    }

    /// Whether to look for what to warn of: where a confirmation is due, it should be given knowingly.
    pub(super) fn checks_first(&self, global: &GlobalOptions, target: &DatabaseName) -> bool {
        !self.no_check && (is_protected(global, target) || !self.ttl_field.is_empty())
    }

    /// The options to look through the documents with: with the fields by which the database deletes documents, where it says.
    /// What is looked for without them is looked for where it cannot be reached as well.
    pub(super) async fn check_options(
        &self,
        global: &GlobalOptions,
        target: &DatabaseName,
        options: &RestoreOptions,
    ) -> RestoreOptions {
        let mut options = options.clone();
        if options.ttl_fields.is_empty()
            && let Ok(database) = global.connect_to(target.clone()).await
        {
            options.ttl_fields = ttl_fields_of(&database, &options).await;
        }
        options
    }

    /// What a plan costs that writes into a database in this place; `from_bucket`: whether what leaves the repository is paid for.
    pub(super) fn cost(
        &self,
        plan: &RestorePlan,
        location: Option<&str>,
        from_bucket: bool,
    ) -> anyhow::Result<Cost> {
        Ok(self.prices.at(location)?.of(&plan.billed(from_bucket)))
    }

    /// Says what comes of writing, and asks before documents are written or deleted.
    pub(super) fn confirm(&self, global: &GlobalOptions, target: &DatabaseName) -> anyhow::Result<()> {
        if !self.dry_run && is_protected(global, target) {
            tracing::warn!(
                "every write and deletion triggers the Cloud Functions and Eventarc triggers that listen to {target}: disable \
                 those that should not see them"
            );
        }
        let what = match self.mode {
            _ if self.dry_run => return Ok(()),
            Mode::CreateOnly => "create documents in",
            Mode::Overwrite | Mode::SkipIdentical => "overwrite documents in",
            Mode::Mirror => "overwrite and DELETE documents in",
            Mode::Merge => "change documents in",
        };
        confirm(global, target, what)
    }
}

/// What to know before documents are written.
pub(super) fn show_warnings(warnings: &[Warning]) {
    for warning in warnings {
        let examples: Vec<&str> = warning.examples.iter().map(DocumentPath::as_str).collect();
        let field = warning.field.as_ref();
        let field = field.map(|field| format!(" (`{}`)", output::printable(field)));
        tracing::warn!(
            "{} {}{}: {}{}",
            output::count(warning.documents, "document"),
            warning.kind.of(warning.documents),
            field.unwrap_or_default(),
            output::printable(&examples.join(", ")),
            match warning.documents > examples.len() as u64 {
                true => ", …",
                false => "",
            }
        );
    }
}

/// The plan for people.
pub(super) fn show_plan(
    output: Output,
    plan: &RestorePlan,
    source: &str,
    target: &DatabaseName,
    options: &RestoreOptions,
    cost: &Cost,
) -> anyhow::Result<Outcome> {
    let source = output::printable(source);
    let mut table = output::table(
        &[
            "collection",
            "create",
            "change",
            "unchanged",
            "leave alone",
            "delete",
        ],
        &[1, 2, 3, 4, 5],
    );
    let left_alone = |fates: &Fates| fates.existing + fates.left_out + fates.conflicts;
    for (collection, fates) in &plan.collections {
        table.add_row([
            output::printable(collection),
            output::number(fates.created),
            output::number(fates.changed),
            output::number(fates.unchanged),
            output::number(left_alone(fates)),
            output::number(fates.deleted),
        ]);
    }
    output.table(&table)?;
    let fates = &plan.fates;
    output.data(format!(
        "Dry run: of {} ({}) of {source}, {} would be created in {target}, {} changed, {} are the same, and {} would be \
         left alone; {} would be deleted. Nothing was written.",
        output::count(plan.documents, "document"),
        output::bytes(plan.bytes),
        output::number(fates.created),
        output::number(fates.changed),
        output::number(fates.unchanged),
        output::number(left_alone(fates)),
        output::number(fates.deleted),
    ))?;
    let time = match plan.seconds {
        Some(seconds) => format!(
            ", and takes {} at least",
            output::duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        ),
        None => String::new(),
    };
    output.data(format!(
        "It is billed as about {}, {} and {}{time}.",
        output::count(plan.billed_reads, "read"),
        output::count(plan.billed_writes, "write"),
        output::count(plan.billed_deletes, "delete"),
    ))?;
    let fetched = match plan.fetched_bytes {
        0 => String::new(),
        fetched => format!("{} from the repository, ", output::bytes(fetched)),
    };
    output.data(format!(
        "It transfers about {fetched}{} from the database and {} into it.",
        output::bytes(plan.read_bytes),
        output::bytes(plan.written_bytes),
    ))?;
    cost_args::show(output, cost)?;
    if plan.billed_writes + plan.billed_deletes > 0 {
        output
            .data("Cloud Functions and Eventarc triggers that listen to these collections are triggered by every one of these writes.")?;
    }
    show_references(output, &plan.references)?;
    show_conflicts(output, &plan.conflicting, plan.fates.conflicts)?;
    show_warnings(&plan.warnings);
    tell_of_gaps(&plan.gaps, "cannot be restored");
    if !plan.gaps.is_empty() {
        return Ok(Outcome::NeedsLook);
    }
    Ok(outcome_of_choice(options, plan.documents + fates.deleted))
}

/// Patterns that choose nothing are most likely misspelt, and whoever wrote them counts on what they should have chosen.
fn outcome_of_choice(options: &RestoreOptions, documents: u64) -> Outcome {
    let filter = &options.filter;
    if filter.is_all() || documents > 0 {
        return Outcome::Done;
    }
    let named = |flag: &str, patterns: &[String]| {
        let named = patterns.iter().map(|pattern| format!(" {flag} {pattern}"));
        named.collect::<String>()
    };
    tracing::error!(
        "no document matches{}: is it spelled right? `firebank ls` lists what a snapshot has",
        output::printable(&format!(
            "{}{}",
            named("--only", filter.patterns()),
            named("--exclude", filter.excluded())
        ))
    );
    Outcome::NeedsLook
}

/// Gaps that are listed for people.
const LISTED_GAPS: usize = 50;

/// Lists what is damaged; `what` says what that means for the documents.
pub(super) fn tell_of_gaps(gaps: &[Gap], what: &str) {
    if gaps.is_empty() {
        return;
    }
    let known: u64 = gaps.iter().filter_map(|gap| gap.documents).sum();
    let more = match gaps.iter().any(|gap| gap.documents.is_none()) {
        true => " and those of stretches that the damage hides",
        false => "",
    };
    tracing::error!(
        "the snapshot is damaged, and {}{more} {what}:",
        output::count(known, "document")
    );
    for gap in gaps.iter().take(LISTED_GAPS) {
        tracing::error!("{}", output::printable(&gap.to_string()));
    }
    if let Some(left @ 1..) = gaps.len().checked_sub(LISTED_GAPS) {
        tracing::error!("… and {left} more, which --json lists");
    }
}

fn show_references(output: Output, references: &ReferenceCounts) -> anyhow::Result<()> {
    let lines = [
        (references.renamed, "follows", "follow", "renamed collections"),
        (
            references.kept,
            "keeps pointing",
            "keep pointing",
            "into the database that the snapshot was taken of",
        ),
        (
            references.foreign,
            "leads to another database, and is",
            "lead to other databases, and are",
            "left alone",
        ),
    ];
    for (count, one, many, what) in lines.into_iter().filter(|(count, ..)| *count > 0) {
        let does = if count == 1 { one } else { many };
        output.line(format!("{} {does} {what}.", output::count(count, "reference")))?;
    }
    Ok(())
}

/// Conflicts that are shown; `--json` has more of them.
const SHOWN_CONFLICTS: usize = 20;

fn show_conflicts(output: Output, paths: &[DocumentPath], conflicts: u64) -> anyhow::Result<()> {
    for path in paths.iter().take(SHOWN_CONFLICTS) {
        output.data(format!("changed meanwhile: {}", output::printable(path.as_str())))?;
    }
    let shown = paths.len().min(SHOWN_CONFLICTS) as u64;
    if conflicts > shown {
        output.data(format!("… and {} more", output::number(conflicts - shown)))?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Others<'a> {
    parts: usize,
    documents: u64,
    failed: u64,
    conflicts: u64,
    gaps: &'a [Gap],
}

/// What `--json` prints of a restore.
#[derive(Serialize)]
struct Summary<'a> {
    source: &'a str,
    target: String,
    documents: u64,
    bytes: u64,
    written: u64,
    /// Created, changed and so on.
    #[serde(flatten)]
    fates: Fates,
    failed: u64,
    dead_letter_file: Option<&'a Path>,
    gaps: &'a [Gap],
    conflicting: &'a [DocumentPath],
    references: ReferenceCounts,
    foreign_references: u64,
    billed_reads: u64,
    billed_writes: u64,
    billed_deletes: u64,
    requests: u64,
    retries: u64,
    seconds: f64,
    /// How many parts these are of, where tasks share the restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<usize>,
    /// What is recorded of the parts that other tasks have restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<Others<'a>>,
    /// Of `restore --verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<VerificationView<'a>>,
}

/// The letters in a file, where it is one that can be read.
fn lines_of(file: &Path) -> u64 {
    let Ok(file) = std::fs::File::open(file) else {
        return 0;
    };
    match file.metadata() {
        Ok(data) if data.is_file() => BufReader::new(file).split(b'\n').map_while(Result::ok).count() as u64,
        // Who reads the other end of a pipe has them.
        _ => u64::MAX,
    }
}

/// Tells what is wrong with what other tasks have restored, of which some may be gone; false if anything is.
fn tell_of_others(shared: &SharedStats) -> bool {
    let others = &shared.others;
    if others.failed > 0 {
        tracing::error!(
            "the database refused {} that other tasks have restored: the dead-letter files where these ran have them",
            output::count(others.failed, "document")
        );
    }
    if others.fates.conflicts > 0 {
        tracing::error!(
            "{} for other tasks to restore changed meanwhile, and were left alone",
            output::count(others.fates.conflicts, "document")
        );
    }
    tell_of_gaps(&shared.gaps_of_others, "could not be restored by other tasks");
    others.failed == 0 && others.fates.conflicts == 0 && shared.gaps_of_others.is_empty()
}

/// Tells how a restore or an import ended, and whether the database holds what it should, if somebody has looked.
pub(super) fn report(
    global: &GlobalOptions,
    source: &str,
    target: &DatabaseName,
    stats: &RestoreStats,
    options: &RestoreOptions,
    verification: Option<&Verification<'_>>,
) -> anyhow::Result<Outcome> {
    let output = global.output();
    let shown = output::printable(source);
    let dead_letter_file = options.dead_letter_file.as_path();
    output.line(format!(
        "Restored {} ({}) of {shown} into {target} in {}.",
        output::count(stats.written.saturating_sub(stats.fates.deleted), "document"),
        output::bytes(stats.bytes),
        output::duration(stats.duration)
    ))?;
    let documents = |count: u64, one: &str, many: &str| match count {
        1 => format!("1 document {one}"),
        count => format!("{} documents {many}", output::number(count)),
    };
    let fates = &stats.fates;
    let lines = [
        (fates.created, "is new", "are new"),
        (fates.changed, "was changed", "were changed"),
        (fates.unchanged, "was the same already", "were the same already"),
        (
            fates.existing,
            "was there already and stayed as it was",
            "were there already and stayed as they were",
        ),
        (
            fates.left_out,
            "does not exist and got no fields",
            "do not exist and got no fields",
        ),
        (
            fates.deleted,
            "that the snapshot does not have was deleted",
            "that the snapshot does not have were deleted",
        ),
    ];
    for (count, one, many) in lines.into_iter().filter(|(count, ..)| *count > 0) {
        output.line(format!("{}.", documents(count, one, many)))?;
    }
    show_references(output, &stats.references)?;
    output.line(format!(
        "Billed: {}, {}, {}; {} sent again.",
        output::count(stats.billed_reads, "read"),
        output::count(stats.billed_writes, "write"),
        output::count(stats.billed_deletes, "delete"),
        output::count(stats.writes.retries, "write"),
    ))?;
    if fates.conflicts > 0 {
        tracing::error!(
            "{} meanwhile and left alone",
            documents(fates.conflicts, "was changed", "were changed")
        );
        show_conflicts(output, &stats.conflicts, fates.conflicts)?;
    }
    if stats.failed > 0 {
        let here = lines_of(dead_letter_file).min(stats.failed);
        let file = dead_letter_file.display();
        let refused = output::count(stats.failed, "document");
        match stats.failed - here {
            0 => tracing::error!("the database refused {refused}: {file} has each with the reason"),
            gone if stats.shared.is_some() => tracing::error!(
                "the database refused {refused}: {file} has {} of them, and those of the processes that had begun these parts have {}",
                output::number(here),
                output::number(gone)
            ),
            gone => tracing::error!(
                "the database refused {refused}; {file} has {} of them, and {} that an earlier process had kept there are gone: restore \
                 again with `--mode skip-identical`, which writes what is not there and names what is refused",
                output::number(here),
                output::number(gone)
            ),
        }
    }
    tell_of_gaps(&stats.gaps, "could not be restored");
    let shared = stats.shared.clone().unwrap_or_default();
    let others_are_fine = tell_of_others(&shared);
    if let Some(verification) = verification {
        verification.tell(output)?;
    }
    output.json(&Summary {
        source,
        target: target.to_string(),
        documents: stats.documents,
        bytes: stats.bytes,
        written: stats.written,
        fates: *fates,
        failed: stats.failed,
        dead_letter_file: (stats.failed > 0).then_some(dead_letter_file),
        gaps: &stats.gaps,
        conflicting: &stats.conflicts,
        references: stats.references,
        foreign_references: stats.references.foreign,
        billed_reads: stats.billed_reads,
        billed_writes: stats.billed_writes,
        billed_deletes: stats.billed_deletes,
        requests: stats.writes.requests,
        retries: stats.writes.retries,
        seconds: stats.duration.as_secs_f64(),
        parts: options.task.map(|_| shared.parts.len()),
        others: options.task.map(|_| Others {
            parts: shared.parts_of_others,
            documents: shared.others.documents,
            failed: shared.others.failed,
            conflicts: shared.others.fates.conflicts,
            gaps: &shared.gaps_of_others,
        }),
        verification: verification.map(Verification::view),
    })?;
    let differs = verification.is_some_and(|verification| verification.outcome() == Outcome::NeedsLook);
    Ok(
        if stats.failed > 0 || fates.conflicts > 0 || !stats.gaps.is_empty() || differs || !others_are_fine {
            Outcome::NeedsLook
        } else {
            let others = &shared.others;
            let of_all = stats.documents + fates.deleted + others.documents + others.fates.deleted;
            outcome_of_choice(options, of_all)
        },
    )
}

/// What contradicts itself is wrong usage; everything else is a failure.
pub(super) fn wrong_usage(error: RestoreError) -> anyhow::Error {
    match error {
        RestoreError::Options(_) | RestoreError::Collision { .. } => UsageError::new(error.to_string()),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        global: GlobalOptions,
        #[command(flatten)]
        write: WriteArgs,
    }

    /// Firestore asks for 500/50/5, so it is what happens unless somebody says that the database does not need it.
    #[test]
    fn writes_ramp_up_unless_that_is_not_wanted() {
        let ramps = |arguments: &[&str]| {
            let all = ["restore", "--emulator", ""].iter().chain(arguments);
            // No emulator, whatever the environment of the tests says.
            let line = Line::try_parse_from(all).unwrap();
            let options = line.write.restore_options(&line.global).unwrap();
            (options.write.ramp, options.write.rate)
        };
        assert_eq!(ramps(&[]), (true, None));
        assert_eq!(ramps(&["--no-ramp"]), (false, None));
        assert_eq!(ramps(&["--rate", "50"]), (true, Some(50.0)));
    }
}
