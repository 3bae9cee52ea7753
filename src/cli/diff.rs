//! `firebank diff`

use std::pin::pin;

use clap::Args;
use futures::{Stream, TryStreamExt};
use serde::Serialize;

use super::later::{LaterView, warn_of_later};
use super::listing::JsonListing;
use super::ls::subtree;
use super::options::GlobalOptions;
use super::snapshots::find_snapshot;
use super::write_args::positive;
use super::{Outcome, UsageError, output};
use crate::archive::ChangeKind;
use crate::diff::{
    ChangeCounts, DiffError, DiffOptions, DiffSummary, DocumentChange, ReadTimes, diff, diff_live,
};
use crate::document::{FieldChange, FieldChangeKind, KeyRange};
use crate::firestore::{Firestore, RequestCounts};

/// What the second side is called when it is the database itself.
const LIVE: &str = "live";

#[derive(Args, Debug)]
pub(crate) struct DiffCommand {
    /// The older snapshot: its id, a unique prefix of it, or `latest`
    #[arg(value_name = "A")]
    old: String,
    /// The newer snapshot, or `live` for the database as it is now
    #[arg(value_name = "B")]
    new: String,
    /// Only this document or collection, and what is below it
    prefix: Option<String>,
    /// Only how many documents changed in each collection; reads no document
    #[arg(long)]
    by_collection: bool,
    /// With `live`: how many key ranges to read at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=512))]
    parallel: u16,
    /// With `live`: read at most so many documents a second, by all readers together
    #[arg(long, value_name = "N", value_parser = positive)]
    read_rate: Option<f64>,
}

/// The database that is compared with.
struct Live<'a> {
    times: &'a ReadTimes,
    database: &'a Firestore,
    /// What it was asked before.
    before: RequestCounts,
}

impl Live<'_> {
    fn billed_reads(&self) -> u64 {
        self.database.stats().counts().since(&self.before).billed_reads
    }
}

#[derive(Serialize)]
struct ChangeView<'a> {
    path: &'a str,
    change: ChangeKind,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    fields: &'a [FieldChange],
}

impl DiffCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let range = self.prefix.as_deref().map_or(Ok(KeyRange::all()), subtree)?;
        let options = DiffOptions {
            range,
            fields: !self.by_collection,
            parallel: usize::from(self.parallel),
        };
        let repository = global.open_repository().await?;
        let old = find_snapshot(global, &repository, &self.old).await?;
        let reader = repository.reader(&old).await?;
        let mut about = vec![("old", old.id.to_string())];
        if self.new == LIVE {
            let name = match global.named_project() {
                Some(_) => global.database()?,
                None => old.database.clone(),
            };
            let database = global.connect_reading(name, self.read_rate).await?;
            let before = database.stats().counts();
            let times = ReadTimes::now(&database).await?;
            about.push(("new", LIVE.to_owned()));
            about.push(("read_time", times.first().to_string()));
            let changes = diff_live(&reader, &database, &times, &options).await?;
            let live = Live {
                times: &times,
                database: &database,
                before,
            };
            return self.print(global, &about, changes, Some(live)).await;
        }
        if self.read_rate.is_some() {
            return Err(UsageError::new(
                "--read-rate goes with `live`: no database is read to compare two snapshots",
            ));
        }
        let new = find_snapshot(global, &repository, &self.new).await?;
        about.push(("new", new.id.to_string()));
        if old.selection != new.selection {
            tracing::warn!(
                "{} is of {}, {} of {}: only what both hold is compared",
                old.id,
                old.selection,
                new.id,
                new.selection
            );
        }
        let changes = diff(&reader, &repository.reader(&new).await?, &options);
        self.print(global, &about, changes, None).await
    }

    async fn print(
        &self,
        global: &GlobalOptions,
        about: &[(&str, String)],
        changes: impl Stream<Item = Result<Vec<DocumentChange>, DiffError>> + Send,
        live: Option<Live<'_>>,
    ) -> anyhow::Result<Outcome> {
        let output = global.output();
        let mut listing = JsonListing::start(output.is_json(), about, "documents")?;
        let mut summary = DiffSummary::default();
        let mut changes = pin!(changes);
        while let Some(batch) = changes.try_next().await? {
            for change in &batch {
                summary.add(change);
                if self.by_collection {
                    continue;
                }
                listing.entry(&ChangeView {
                    path: change.path.as_str(),
                    change: change.kind,
                    fields: &change.fields,
                })?;
                output.entry(line(change))?;
            }
        }
        let mut values = vec![("summary", serde_json::to_value(&summary)?)];
        if let Some(live) = &live {
            let later = live.times.later();
            warn_of_later(&later);
            values.push(("later_ranges", serde_json::to_value(LaterView::of(&later))?));
            values.push(("billed_reads", live.billed_reads().into()));
        }
        listing.end(&values)?;
        let billed = live.map(|live| output::count(live.billed_reads(), "billed read"));
        if summary.total == ChangeCounts::default() {
            output.line("no document differs")?;
            return tell_billed(output, billed);
        }
        if !self.by_collection {
            output.line("")?;
        }
        let mut table = output::table(
            &["collection", "added", "changed", "rewritten", "deleted"],
            &[1, 2, 3, 4],
        );
        let mut row = |name: &str, counts: &ChangeCounts| {
            let counts = [counts.added, counts.changed, counts.rewritten, counts.deleted];
            let cells = std::iter::once(output::printable(name)).chain(counts.map(output::number));
            table.add_row(cells);
        };
        for (name, counts) in &summary.collections {
            row(name, counts);
        }
        if summary.collections.len() > 1 {
            row("all", &summary.total);
        }
        if self.by_collection {
            output.table(&table)?;
        } else {
            for text in table.lines() {
                output.line(text.trim_end())?;
            }
        }
        tell_billed(output, billed)
    }
}

fn tell_billed(output: output::Output, billed: Option<String>) -> anyhow::Result<Outcome> {
    if let Some(billed) = billed {
        output.line(format!("({billed})"))?;
    }
    Ok(Outcome::Done)
}

/// `M products/p1  price, +stock.count, -old`
fn line(change: &DocumentChange) -> String {
    let sign = match change.kind {
        ChangeKind::Added => '+',
        ChangeKind::Changed => 'M',
        ChangeKind::Rewritten => 'R',
        ChangeKind::Deleted => '-',
    };
    let path = output::printable(change.path.as_str());
    match change.fields.is_empty() {
        true => format!("{sign} {path}"),
        false => format!("{sign} {path}  {}", field_list(&change.fields)),
    }
}

/// `price, +stock.count, -old`
pub(crate) fn field_list(fields: &[FieldChange]) -> String {
    let name = |field: &FieldChange| {
        let sign = match field.kind {
            FieldChangeKind::Added => "+",
            FieldChangeKind::Changed => "",
            FieldChangeKind::Removed => "-",
        };
        format!("{sign}{}", output::printable(&field.path.to_string()))
    };
    fields.iter().map(name).collect::<Vec<_>>().join(", ")
}
