//! The demonstration's part about migrations: the project's own ones, one that fails, and the way back.

use std::pin::pin;

use anyhow::{Context, bail, ensure};
use futures::TryStreamExt;

use super::demo::Story;
use super::output;
use crate::archive::Repository;
use crate::document::KeyRange;
use crate::firestore::{Firestore, ScanOptions};
use crate::migration::{
    HISTORY_COLLECTION, LOCK_COLLECTION, MigrateOptions, MigrationError, RollbackOptions, RollbackTarget,
    Runner, RunnerOptions, Version,
};
use crate::progress::Progress;

/// The project's own migrations, which any project can begin with.
const SCRIPTS: [(&str, &str); 3] = [
    (
        "v1_initial_schema.js",
        include_str!("../../migrations/v1_initial_schema.js"),
    ),
    (
        "v2_user_preferences.js",
        include_str!("../../migrations/v2_user_preferences.js"),
    ),
    (
        "v3_product_search.js",
        include_str!("../../migrations/v3_product_search.js"),
    ),
];

/// Changes a thousand documents and more before it meets one that it does not expect.
const FAILING: (&str, &str) = (
    "v4_prices_in_cents.js",
    r#"
export const description = "Prices in cents";
export function migrate(db) {
  db.transform("products", (product, doc) => {
    if (doc.id === "_schema") return undefined;
    if (doc.id === "p001500") throw new Error(`${doc.path}: the price cannot be converted`);
    return { ...product, price: Math.round(product.price * 100) };
  });
}
"#,
);

pub(super) async fn show(
    story: &Story,
    shop: &Firestore,
    repository: &Repository,
    folder: &tempfile::TempDir,
) -> anyhow::Result<()> {
    let scripts = folder.path().join("migrations");
    std::fs::create_dir(&scripts).context("cannot make a folder for scripts")?;
    for (name, text) in SCRIPTS {
        std::fs::write(scripts.join(name), text).context("cannot write a script")?;
    }
    let options = RunnerOptions::new(shop, &scripts, "the demonstration");
    let runner = Runner::new(shop.clone(), Some(repository.clone()), options);
    let before = digest(shop).await?;

    story.chapter("Migrate", "migrate")?;
    let progress = Progress::new();
    for applied in runner
        .migrate(MigrateOptions::default(), &progress)
        .await?
        .applied
    {
        story.tell(format!(
            "{} ({}): {} created, {} updated in {:.2} s",
            applied.id,
            applied.description.unwrap_or_default(),
            output::number(applied.created),
            output::number(applied.updated),
            applied.seconds
        ))?;
    }

    story.chapter("A migration that fails half-way", "migrate")?;
    let migrated = digest(shop).await?;
    std::fs::write(scripts.join(FAILING.0), FAILING.1).context("cannot write a script")?;
    match runner.migrate(MigrateOptions::default(), &progress).await {
        Err(MigrationError::Failed { reason, after, .. }) => {
            // The line that says what was thrown; the file's name is that of a temporary folder.
            let reason = reason.lines().next().unwrap_or_default();
            let reason = reason.split_once(FAILING.0).map_or(reason, |(_, reason)| reason);
            story.tell(format!("{}{reason}", FAILING.0))?;
            story.tell(after.to_string())?;
        }
        Err(error) => return Err(error.into()),
        Ok(_) => bail!("a migration that throws was applied"),
    }
    ensure!(
        digest(shop).await? == migrated,
        "a failed migration left something"
    );

    story.chapter("Take everything back", "rollback --to 0")?;
    let options = RollbackOptions {
        target: RollbackTarget::To(Version(0)),
        force: false,
    };
    for one in runner.rollback(options, &progress).await?.rolled_back {
        story.tell(format!(
            "{}: {} {}, {} deleted",
            one.id,
            output::count(one.restored, "document"),
            if one.by_script {
                "written by its rollback()"
            } else {
                "put back from before-images"
            },
            output::number(one.deleted)
        ))?;
    }
    ensure!(digest(shop).await? == before, "the rollback left something");
    story.tell("Every document is as it was before the first migration, byte for byte.")
}

/// One hash of all documents but those that say which migrations were run.
async fn digest(shop: &Firestore) -> anyhow::Result<blake3::Hash> {
    let read_time = shop.current_read_time().await?;
    let mut batches = pin!(shop.scan(ScanOptions::new(KeyRange::all(), read_time)));
    let mut hasher = blake3::Hasher::new();
    while let Some(batch) = batches.try_next().await? {
        for document in batch.iter() {
            if [HISTORY_COLLECTION, LOCK_COLLECTION].contains(&document.path()?.root_collection()) {
                continue;
            }
            hasher.update(&(document.key.len() as u64).to_le_bytes());
            hasher.update(document.key);
            hasher.update(&(document.body.len() as u64).to_le_bytes());
            hasher.update(document.body);
        }
    }
    Ok(hasher.finalize())
}
