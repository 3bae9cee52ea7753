//! What a dry run of a script shows: counts of all, and the first few documents with their fields.

use serde::Serialize;

use super::output::{self, Output};
use crate::document::{FieldChangeKind, Fields, typed_json};
use crate::migration::{CollectionStats, DocumentChange, RunStats};

/// Characters of a value that are shown.
const SHOWN_VALUE: usize = 80;

#[derive(Serialize)]
pub(super) struct RunView {
    id: String,
    read: u64,
    created: u64,
    updated: u64,
    deleted: u64,
    unchanged: u64,
    collections: std::collections::BTreeMap<String, CollectionStats>,
    first_changes: Vec<ChangeView>,
}

#[derive(Serialize)]
struct ChangeView {
    path: String,
    change: &'static str,
    fields: Vec<FieldView>,
}

#[derive(Serialize)]
struct FieldView {
    field: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<serde_json::Value>,
}

impl RunView {
    pub(super) fn new(id: &str, run: &RunStats) -> Self {
        Self {
            id: id.to_owned(),
            read: run.read,
            created: run.created,
            updated: run.updated,
            deleted: run.deleted,
            unchanged: run.unchanged,
            collections: run.collections.clone(),
            first_changes: run.preview.iter().map(ChangeView::new).collect(),
        }
    }
}

impl ChangeView {
    fn new(change: &DocumentChange) -> Self {
        let json = |value: &crate::document::Value| typed_json::value_to_json(value).ok();
        let whole = |fields: &Fields, before: bool| {
            let view = |(name, value): (&String, _)| FieldView {
                field: name.clone(),
                before: before.then(|| json(value)).flatten(),
                after: (!before).then(|| json(value)).flatten(),
            };
            fields.iter().map(view).collect()
        };
        let (kind, fields) = match (&change.before, &change.after) {
            (None, Some(after)) => ("created", whole(after, false)),
            (Some(before), None) => ("deleted", whole(before, true)),
            (before, after) => {
                let at = |fields: &Option<Fields>, path: &crate::document::FieldPath| {
                    fields
                        .as_ref()
                        .and_then(|fields| path.find(fields))
                        .and_then(json)
                };
                let view = |field: &crate::document::FieldChange| FieldView {
                    field: field.path.to_string(),
                    before: (field.kind != FieldChangeKind::Added)
                        .then(|| at(before, &field.path))
                        .flatten(),
                    after: (field.kind != FieldChangeKind::Removed)
                        .then(|| at(after, &field.path))
                        .flatten(),
                };
                ("updated", change.fields.iter().map(view).collect())
            }
        };
        Self {
            path: change.path.to_string(),
            change: kind,
            fields,
        }
    }
}

/// A run for people.
pub(super) fn show_run(output: Output, run: &RunView) -> anyhow::Result<()> {
    output.data(format!(
        "{}: {} would be created, {} updated, {} deleted",
        output::printable(&run.id),
        output::number(run.created),
        output::number(run.updated),
        output::number(run.deleted)
    ))?;
    if !run.collections.is_empty() {
        let mut table = output::table(&["  collection", "created", "updated", "deleted"], &[1, 2, 3]);
        for (name, counts) in &run.collections {
            table.add_row([
                format!("  {}", output::printable(name)),
                output::number(counts.created),
                output::number(counts.updated),
                output::number(counts.deleted),
            ]);
        }
        output.table(&table)?;
    }
    for change in &run.first_changes {
        let sign = match change.change {
            "created" => '+',
            "deleted" => '-',
            _ => 'M',
        };
        output.data(format!("  {sign} {}", output::printable(&change.path)))?;
        for field in &change.fields {
            let shown = match (&field.before, &field.after) {
                (Some(before), Some(after)) => format!("{} → {}", value(before), value(after)),
                (Some(before), None) => format!("{} → (none)", value(before)),
                (None, Some(after)) => value(after),
                (None, None) => String::new(),
            };
            output.data(format!("      {}: {shown}", output::printable(&field.field)))?;
        }
    }
    let shown = run.first_changes.len() as u64;
    let changed = run.created + run.updated + run.deleted;
    if changed > shown {
        output.data(format!("  … and {} more", output::number(changed - shown)))?;
    }
    Ok(())
}

fn value(value: &serde_json::Value) -> String {
    let text = output::printable(&value.to_string());
    match text.char_indices().nth(SHOWN_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
