//! `firebank show`

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::options::GlobalOptions;
use super::snapshot_filter::SnapshotFilterArgs;
use super::snapshots::{SnapshotView, find_filtered, read_of};
use super::{Outcome, UsageError, output};
use crate::archive::{Repository, Snapshot};
use crate::document::{DocumentPath, typed_json};

#[derive(Args, Debug)]
pub(crate) struct ShowCommand {
    /// A snapshot: its id, a unique prefix of it, or `latest`
    snapshot: String,
    /// A document's path, to show its fields as typed JSON
    path: Option<String>,
    #[command(flatten)]
    latest: SnapshotFilterArgs,
}

#[derive(Serialize)]
struct DocumentView {
    path: String,
    create_time: String,
    update_time: String,
    fields: serde_json::Value,
}

impl ShowCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let path = self.path.map(DocumentPath::parse).transpose();
        let path = path.map_err(|error| UsageError::new(error.to_string()))?;
        let repository = global.open_repository().await?;
        let snapshot = find_filtered(global, &repository, &self.snapshot, &self.latest).await?;
        match path {
            Some(path) => {
                let shown = show_document(global, &repository, &snapshot, path);
                read_of(&repository, &snapshot, shown).await?;
            }
            None => show_snapshot(global, &snapshot)?,
        }
        Ok(Outcome::Done)
    }
}

async fn show_document(
    global: &GlobalOptions,
    repository: &Repository,
    snapshot: &Snapshot,
    path: DocumentPath,
) -> anyhow::Result<()> {
    let found = repository.reader(snapshot).await?.get(&path).await?;
    let Some(document) = found.as_ref().and_then(|batch| batch.get(0)) else {
        bail!(
            "snapshot {} has no document `{path}`; `firebank ls {}` lists what it has",
            snapshot.id,
            snapshot.id
        )
    };
    let fields: serde_json::Value = serde_json::from_str(&serde_json::to_string(
        &typed_json::FieldsJson::new(document.body),
    )?)?;
    let output = global.output();
    output.data(serde_json::to_string_pretty(&fields)?)?;
    output.json(&DocumentView {
        path: path.into(),
        create_time: document.create_time.to_string(),
        update_time: document.update_time.to_string(),
        fields,
    })
}

fn read_times(snapshot: &Snapshot) -> String {
    let (first, last) = (snapshot.read_time, snapshot.latest_read_time());
    match first == last {
        true => first.to_string(),
        false => {
            format!("{first} to {last} (mixed: the database could not be read at one time for long enough)")
        }
    }
}

fn show_snapshot(global: &GlobalOptions, snapshot: &Snapshot) -> anyhow::Result<()> {
    let output = global.output();
    let mut facts = vec![
        ("snapshot", snapshot.id.to_string()),
        ("database", snapshot.database.to_string()),
        ("read time", read_times(snapshot)),
        ("taken", output::time(snapshot.started_at)),
        ("selection", snapshot.selection.to_string()),
        ("documents", output::number(snapshot.documents)),
        ("bytes", output::bytes(snapshot.body_bytes)),
        ("stored", output::bytes(snapshot.stats.stored_bytes)),
        ("layers", snapshot.runs.len().to_string()),
        ("made by", snapshot.tool_version.clone()),
    ];
    if let Some(parent) = snapshot.parent {
        let stats = &snapshot.stats;
        facts.push(("parent", parent.to_string()));
        facts.push((
            "since then",
            format!(
                "{} new, {} changed, {} deleted, {} unchanged",
                output::number(stats.new_documents),
                output::number(stats.changed_documents),
                output::number(stats.deleted_documents),
                output::number(stats.unchanged_documents),
            ),
        ));
    }
    facts.push(("read", snapshot.stats.read.to_string()));
    facts.extend(snapshot.host.clone().map(|host| ("host", host)));
    facts.extend(snapshot.description.clone().map(|text| ("description", text)));
    if !snapshot.tags.is_empty() {
        facts.push(("tags", snapshot.tags.join(", ")));
    }
    for (name, value) in facts {
        output.data(format!("{name:12} {}", output::printable(&value)))?;
    }
    if !snapshot.collections.is_empty() {
        output.data("")?;
        let mut table = output::table(&["collection", "documents", "bytes"], &[1, 2]);
        for (name, count) in &snapshot.collections {
            table.add_row([
                output::printable(name),
                output::number(count.documents),
                output::bytes(count.bytes),
            ]);
        }
        output.table(&table)?;
    }
    output.json(&SnapshotView::new(snapshot))
}
