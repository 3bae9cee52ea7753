//! `firebank backup --dry-run`: what a backup would do and cost.

use serde::Serialize;

use super::cost_args::{self, PricesArgs};
use super::options::GlobalOptions;
use super::{Outcome, output};
use crate::archive::{ReadMode, Repository};
use crate::backup::{BackupOptions, estimate_backup};
use crate::cost::Cost;
use crate::firestore::Firestore;

#[derive(Serialize)]
struct EstimateView {
    dry_run: bool,
    database: String,
    location: Option<String>,
    read_time: String,
    parent: Option<String>,
    read: ReadMode,
    documents: u64,
    changed_documents: u64,
    deleted_documents: u64,
    ranges: u64,
    billed_reads: u64,
    requests: u64,
    read_bytes: u64,
    stored_bytes: u64,
    transferred_bytes: u64,
    cost: Cost,
    known_from: Vec<String>,
    names_instead: Vec<String>,
    region_warning: Option<String>,
    estimate_billed_reads: u64,
}

pub(super) async fn run(
    global: &GlobalOptions,
    database: &Firestore,
    repository: &Repository,
    options: &BackupOptions,
    prices: &PricesArgs,
) -> anyhow::Result<Outcome> {
    let estimate = estimate_backup(database, repository, options).await?;
    let to_bucket = global.repository_folder()?.is_none();
    let location = estimate.location.as_deref();
    let cost = prices.at(location)?.of(&estimate.billed(to_bucket));
    let output = global.output();
    let upon = match estimate.parent {
        Some(parent) => format!(", upon snapshot {parent},"),
        None => ", upon no other,".to_owned(),
    };
    output.data(format!(
        "Dry run: a backup of {} ({}){upon} would store about {} new or changed and {} deleted; nothing was written.",
        estimate.database,
        output::count(estimate.documents, "document"),
        output::number(estimate.changed_documents),
        output::number(estimate.deleted_documents),
    ))?;
    let how = match estimate.read {
        ReadMode::Full => "Whole documents are read",
        ReadMode::Names => "Names are read, and what has changed",
        ReadMode::Changed => "The field is asked what has changed, and counts what has gone",
    };
    output.data(format!(
        "{how}: about {}, {}, {} from the database and {} to the repository.",
        output::count(estimate.billed_reads, "billed read"),
        output::count(estimate.requests, "request"),
        output::bytes(estimate.read_bytes),
        output::bytes(estimate.stored_bytes),
    ))?;
    cost_args::show(output, &cost)?;
    for why in &estimate.names_instead {
        output.data(format!("Note: {}.", output::printable(why)))?;
    }
    for known in &estimate.known_from {
        output.line(format!("  {}", output::printable(known)))?;
    }
    output.line(format!(
        "  the estimate itself was billed as {}",
        output::count(estimate.spent_reads, "read")
    ))?;
    let region_warning = cost_args::warn_of_crossing(global, location)?;
    output.json(&EstimateView {
        dry_run: true,
        database: estimate.database.to_string(),
        location: estimate.location,
        read_time: estimate.read_time.to_string(),
        parent: estimate.parent.map(|parent| parent.to_string()),
        read: estimate.read,
        documents: estimate.documents,
        changed_documents: estimate.changed_documents,
        deleted_documents: estimate.deleted_documents,
        ranges: estimate.ranges,
        billed_reads: estimate.billed_reads,
        requests: estimate.requests,
        read_bytes: estimate.read_bytes,
        stored_bytes: estimate.stored_bytes,
        transferred_bytes: estimate.read_bytes + estimate.stored_bytes,
        cost,
        known_from: estimate.known_from,
        names_instead: estimate.names_instead,
        region_warning,
        estimate_billed_reads: estimate.spent_reads,
    })?;
    Ok(Outcome::Done)
}
