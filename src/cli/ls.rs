//! `firebank ls`

use std::pin::pin;

use clap::Args;
use futures::TryStreamExt;
use serde::Serialize;

use super::listing::JsonListing;
use super::options::GlobalOptions;
use super::snapshot_filter::SnapshotFilterArgs;
use super::snapshots::{find_filtered, read_of};
use super::{Outcome, UsageError, output};
use crate::archive::{Repository, Snapshot};
use crate::document::{CollectionPath, DocumentPath, KeyRange};

#[derive(Args, Debug)]
pub(crate) struct LsCommand {
    /// A snapshot: its id, a unique prefix of it, or `latest`
    snapshot: String,
    /// Only this document or collection, and what is below it
    prefix: Option<String>,
    /// Also show update time and size
    #[arg(short, long)]
    long: bool,
    #[command(flatten)]
    latest: SnapshotFilterArgs,
}

#[derive(Serialize)]
struct Entry {
    path: String,
    update_time: String,
    bytes: u32,
}

impl LsCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let range = self.prefix.as_deref().map_or(Ok(KeyRange::all()), subtree)?;
        let repository = global.open_repository().await?;
        let snapshot = find_filtered(global, &repository, &self.snapshot, &self.latest).await?;
        let listed = self.list(global, &repository, &snapshot, range);
        read_of(&repository, &snapshot, listed).await?;
        Ok(Outcome::Done)
    }

    async fn list(
        &self,
        global: &GlobalOptions,
        repository: &Repository,
        snapshot: &Snapshot,
        range: KeyRange,
    ) -> anyhow::Result<()> {
        let output = global.output();
        let mut listing = JsonListing::start(
            output.is_json(),
            &[("snapshot", snapshot.id.to_string())],
            "documents",
        )?;
        let reader = repository.reader(snapshot).await?;
        let mut records = pin!(reader.records(range));
        while let Some(batch) = records.try_next().await? {
            for record in batch.iter() {
                let path = DocumentPath::from_key(record.key)?;
                if output.is_json() {
                    listing.entry(&Entry {
                        path: path.into(),
                        update_time: record.update_time.to_string(),
                        bytes: record.length(),
                    })?;
                } else if self.long {
                    output.entry(format!(
                        "{:30} {:>10}  {}",
                        record.update_time.to_string(),
                        record.length(),
                        output::printable(path.as_str())
                    ))?;
                } else {
                    output.entry(output::printable(path.as_str()))?;
                }
            }
        }
        listing.end(&[])?;
        Ok(())
    }
}

/// The keys of a document or a collection and of what is below it.
pub(crate) fn subtree(path: &str) -> anyhow::Result<KeyRange> {
    let path = path.trim_end_matches('/');
    match (DocumentPath::parse(path), CollectionPath::parse(path)) {
        (Ok(document), _) => Ok(document.key().subtree()),
        (_, Ok(collection)) => Ok(collection.key_range()),
        (_, Err(error)) => Err(UsageError::new(error.to_string())),
    }
}
