//! `firebank backup --format json`, and what `firebank export` has in common with it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;

use super::backup::has_no_documents;
use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::{Outcome, output};
use crate::clock;
use crate::document::CollectionPath;
use crate::export::{ExportOptions, ExportStats, export_database};
use crate::progress::Progress;

pub(crate) async fn run(
    global: &GlobalOptions,
    folder: PathBuf,
    collections: Vec<CollectionPath>,
    include_migrations: bool,
    read_rate: Option<f64>,
) -> anyhow::Result<Outcome> {
    let database = global.connect_reading(global.database()?, read_rate).await?;
    let options = options(folder, collections, include_migrations)?;
    let progress = Arc::new(Progress::new());
    let display = ProgressDisplay::start("backing up", &progress, global.quiet);
    let stats = export_database(&database, &options, &progress).await?;
    drop(display);
    let billed = database.stats().counts().billed_reads;
    report(global, &stats, !options.collections.is_empty(), Some(billed))
}

/// Makes the folder, too.
pub(crate) fn options(
    folder: PathBuf,
    collections: Vec<CollectionPath>,
    include_migrations: bool,
) -> anyhow::Result<ExportOptions> {
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    Ok(ExportOptions {
        folder,
        collections,
        include_migrations,
        time: clock::now(),
    })
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary {
    files: Vec<File>,
    failed: Vec<Failed>,
    summary: String,
    /// Of a backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    billed_reads: Option<u64>,
}

#[derive(Serialize)]
struct File {
    collection: String,
    file: String,
    document_count: u64,
    total_document_count: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Failed {
    collection: String,
    reason: String,
}

/// Tells what was written. `named` says whether the collections were named by somebody, who may have misspelt one.
///
/// `billed_reads` are those of a database, where one was read.
pub(crate) fn report(
    global: &GlobalOptions,
    stats: &ExportStats,
    named: bool,
    billed_reads: Option<u64>,
) -> anyhow::Result<Outcome> {
    let output = global.output();
    for (collection, file) in &stats.files {
        output.line(format!(
            "{}: {} in {} ({})",
            output::printable(collection.as_str()),
            output::count(file.total_document_count, "document"),
            file.file.display(),
            output::bytes(file.bytes)
        ))?;
    }
    for (collection, error) in &stats.failed {
        tracing::error!("{collection} has no file: {error}");
    }
    output.line(format!("Summary: {}", stats.summary.display()))?;
    if let Some(billed) = billed_reads {
        output.line(format!("({})", output::count(billed, "billed read")))?;
    }
    output.json(&Summary {
        files: stats
            .files
            .iter()
            .map(|(collection, file)| File {
                collection: collection.to_string(),
                file: file.file.display().to_string(),
                document_count: file.document_count,
                total_document_count: file.total_document_count,
                bytes: file.bytes,
            })
            .collect(),
        failed: stats
            .failed
            .iter()
            .map(|(collection, error)| Failed {
                collection: collection.to_string(),
                reason: error.to_string(),
            })
            .collect(),
        summary: stats.summary.display().to_string(),
        billed_reads,
    })?;
    let mut outcome = if stats.failed.is_empty() {
        Outcome::Done
    } else {
        Outcome::NeedsLook
    };
    for (collection, file) in &stats.files {
        if named && file.total_document_count == 0 {
            outcome = has_no_documents(collection);
        }
    }
    Ok(outcome)
}
