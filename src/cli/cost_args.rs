//! What a plan costs, and whether bytes leave a region: `--prices`, the lines for people, and the warning.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::options::GlobalOptions;
use super::output::{self, Output};
use super::{UsageError, output::OutputError};
use crate::cost::{BucketPlace, Cost, Prices, crossing};
use crate::firestore::Firestore;

#[derive(Args, Debug)]
pub(super) struct PricesArgs {
    /// With --dry-run: take prices from this JSON file where it names any: location, currency, as_of, reads_per_100k, writes_per_100k,
    /// deletes_per_100k, stored_gib_month, egress_gib
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    prices: Option<PathBuf>,
}

impl PricesArgs {
    /// The prices at a database's location.
    pub(super) fn at(&self, location: Option<&str>) -> anyhow::Result<Prices> {
        let prices = Prices::at(location);
        let Some(file) = &self.prices else {
            return Ok(prices);
        };
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        prices
            .with_file(&text)
            .map_err(|error| UsageError::new(format!("{}: {error}", file.display())))
    }
}

/// Where a database is stored, if it says.
pub(super) async fn location(database: &Firestore) -> Option<String> {
    let metadata = database.metadata().await.ok().flatten()?;
    Some(metadata.location).filter(|location| !location.is_empty())
}

/// Tells people what operations cost.
pub(super) fn show(output: Output, cost: &Cost) -> Result<(), OutputError> {
    let stored = match cost.stored_month {
        0.0 => String::new(),
        stored => format!(", and {} a month for what is stored", cost.amount(stored)),
    };
    let prices = &cost.prices;
    output.data(format!(
        "That is about {}{stored}, at the prices of {} as of {} and without the free quota.",
        cost.amount(cost.total),
        output::printable(&prices.location),
        output::printable(&prices.as_of),
    ))
}

/// Where the repository's bucket is, if that can be told.
pub(super) fn bucket_place(global: &GlobalOptions) -> anyhow::Result<Option<BucketPlace>> {
    Ok(BucketPlace::of(&global.address()?, &global.bucket_options()))
}

/// Warns where what goes between the database and the repository leaves the database's region. Says what it warned of.
pub(super) fn warn_of_crossing(
    global: &GlobalOptions,
    location: Option<&str>,
) -> anyhow::Result<Option<String>> {
    let both = location.zip(bucket_place(global)?);
    let found = both.and_then(|(location, place)| crossing(location, &place));
    let warning = found.map(|crossing| crossing.to_string());
    if let Some(warning) = &warning {
        tracing::warn!("{}", output::printable(warning));
    }
    Ok(warning)
}

/// The same, and asks the database where it is only where that matters.
pub(super) async fn look_for_crossing(global: &GlobalOptions, database: &Firestore) -> anyhow::Result<()> {
    if bucket_place(global)?.is_some() {
        warn_of_crossing(global, location(database).await.as_deref())?;
    }
    Ok(())
}
