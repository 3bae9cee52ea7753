//! `firebank history`

use clap::Args;
use serde::Serialize;

use super::diff::field_list;
use super::options::GlobalOptions;
use super::snapshots::chosen_database;
use super::{Outcome, UsageError, output};
use crate::archive::{ChangeKind, SnapshotKind};
use crate::document::{DocumentPath, FieldChange, typed_json};
use crate::history::{Version, history};

#[derive(Args, Debug)]
pub(crate) struct HistoryCommand {
    /// The document's path
    path: String,
}

#[derive(Serialize)]
struct HistoryView<'a> {
    path: &'a str,
    versions: Vec<VersionView>,
}

#[derive(Serialize)]
struct VersionView {
    change: ChangeKind,
    first_snapshot: String,
    last_snapshot: String,
    snapshots: usize,
    read_time: String,
    create_time: Option<String>,
    update_time: Option<String>,
    changed: Vec<FieldChange>,
    fields: Option<serde_json::Value>,
}

impl HistoryCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let path = DocumentPath::parse(self.path).map_err(|error| UsageError::new(error.to_string()))?;
        let repository = global.open_repository().await?;
        let database = chosen_database(global, &repository, "The history").await?;
        let mut listing = repository.snapshots().await?;
        for (name, error) in &listing.unreadable {
            tracing::warn!("{name} is left out: {error}");
        }
        listing.snapshots.retain(|snapshot| {
            snapshot.kind == SnapshotKind::Backup
                && database
                    .as_ref()
                    .is_none_or(|database| *database == snapshot.database)
        });
        let left_out = !listing.unreadable.is_empty();
        let versions = history(&repository, listing.snapshots, &path).await?;
        let output = global.output();
        if versions.is_empty() {
            output.data(format!(
                "no snapshot has a document `{}`",
                output::printable(path.as_str())
            ))?;
        }
        for version in &versions {
            output.data(line(version))?;
        }
        output.json(&HistoryView {
            path: path.as_str(),
            versions: versions.iter().map(view).collect::<anyhow::Result<_>>()?,
        })?;
        Ok(if left_out {
            Outcome::NeedsLook
        } else {
            Outcome::Done
        })
    }
}

fn line(version: &Version) -> String {
    let (first, _) = &version.snapshots;
    let what = match version.kind {
        ChangeKind::Added => "added",
        ChangeKind::Changed => "changed",
        ChangeKind::Rewritten => "rewritten",
        ChangeKind::Deleted => "deleted",
    };
    let document = version.document.as_ref().and_then(|batch| batch.get(0));
    let mut line = format!("{}  {}  {what:9}", first.id, first.read_time);
    if let Some(document) = document {
        line.push_str(&format!("  updated {}", document.update_time));
    }
    if version.count > 1 {
        line.push_str(&format!("  in {} snapshots", version.count));
    }
    if !version.fields.is_empty() {
        line.push_str(&format!("  {}", field_list(&version.fields)));
    }
    line
}

fn view(version: &Version) -> anyhow::Result<VersionView> {
    let (first, last) = &version.snapshots;
    let document = version.document.as_ref().and_then(|batch| batch.get(0));
    let fields = document.map(|document| serde_json::to_value(typed_json::FieldsJson::new(document.body)));
    Ok(VersionView {
        change: version.kind,
        first_snapshot: first.id.to_string(),
        last_snapshot: last.id.to_string(),
        snapshots: version.count,
        read_time: first.read_time.to_string(),
        create_time: document.map(|document| document.create_time.to_string()),
        update_time: document.map(|document| document.update_time.to_string()),
        changed: version.fields.clone(),
        fields: fields.transpose()?,
    })
}
