//! `firebank restore FILE.json` and `firebank import`.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::write_args::{WriteArgs, report, show_plan};
use super::{Outcome, output};
use crate::document::DatabaseName;
use crate::import::{import, plan_import};
use crate::json::DocumentsFile;
use crate::path_filter::PathFilter;
use crate::progress::Progress;
use crate::restore::RestorePlan;

#[derive(Serialize)]
struct Plan<'a> {
    dry_run: bool,
    files: Vec<&'a Path>,
    target: String,
    #[serde(flatten)]
    plan: RestorePlan,
}

pub(crate) async fn run(
    global: &GlobalOptions,
    files: &[DocumentsFile],
    target: &DatabaseName,
    filter: PathFilter,
    write: &WriteArgs,
) -> anyhow::Result<Outcome> {
    let source = match files {
        [file] => file.name().display().to_string(),
        files => output::count(files.len() as u64, "file"),
    };
    if write.dry_run {
        let plan = plan_import(files, &filter).await?;
        let output = global.output();
        let outcome = show_plan(output, &plan, &source, target, &filter)?;
        output.json(&Plan {
            dry_run: true,
            files: files.iter().map(DocumentsFile::name).collect(),
            target: target.to_string(),
            plan,
        })?;
        return Ok(outcome);
    }
    write.confirm(global, target)?;
    let database = global.connect_to(target.clone()).await?;
    let options = write.restore_options(&database, filter.clone());
    let dead_letter_file = options.dead_letter_file.clone();
    let progress = Arc::new(Progress::new());
    let display = ProgressDisplay::start("restoring", &progress, global.quiet);
    let stats = import(files, &database, options, &progress).await?;
    drop(display);
    report(global, &source, target, &stats, &filter, &dead_letter_file)
}
