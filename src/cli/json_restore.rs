//! `firebank restore FILE.json` and `firebank import`.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::cost_args::location;
use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::write_args::{WriteArgs, report, show_plan, show_warnings};
use super::{Outcome, output, write_args};
use crate::cost::Cost;
use crate::document::DatabaseName;
use crate::import::{ImportError, check_import, import, plan_import};
use crate::json::DocumentsFile;
use crate::progress::Progress;
use crate::restore::{RestoreOptions, RestorePlan};

#[derive(Serialize)]
struct Plan<'a> {
    dry_run: bool,
    files: Vec<&'a Path>,
    target: String,
    cost: Cost,
    #[serde(flatten)]
    plan: RestorePlan,
}

pub(crate) async fn run(
    global: &GlobalOptions,
    files: &[DocumentsFile],
    target: &DatabaseName,
    options: RestoreOptions,
    write: &WriteArgs,
) -> anyhow::Result<Outcome> {
    let source = match files {
        [file] => file.name().display().to_string(),
        files => output::count(files.len() as u64, "file"),
    };
    if write.dry_run {
        let database = global.connect_to(target.clone()).await?;
        let plan = plan_import(files, &database, &options)
            .await
            .map_err(wrong_usage)?;
        let output = global.output();
        let location = location(&database).await;
        let cost = write.cost(&plan, location.as_deref(), false)?;
        let outcome = show_plan(output, &plan, &source, target, &options, &cost)?;
        output.json(&Plan {
            dry_run: true,
            files: files.iter().map(DocumentsFile::name).collect(),
            target: target.to_string(),
            cost,
            plan,
        })?;
        return Ok(outcome);
    }
    if write.checks_first(global, target) {
        let checked = write.check_options(global, target, &options).await;
        let warnings = check_import(files, target, &checked).await;
        show_warnings(&warnings.map_err(wrong_usage)?);
    }
    write.confirm(global, target)?;
    let database = global.connect_to(target.clone()).await?;
    let progress = Arc::new(Progress::new());
    let display = ProgressDisplay::start("restoring", &progress, global.quiet);
    let imported = import(files, &database, options.clone(), &progress).await;
    drop(display);
    let stats = imported.map_err(wrong_usage)?;
    report(global, &source, target, &stats, &options, None)
}

fn wrong_usage(error: ImportError) -> anyhow::Error {
    match error {
        ImportError::Restore(error) => write_args::wrong_usage(error),
        error => error.into(),
    }
}
