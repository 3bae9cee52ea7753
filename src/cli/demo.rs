//! `firebank demo`: the whole story on the embedded sandbox, in a temporary folder.

use std::pin::pin;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use futures::TryStreamExt;
use serde::Serialize;

use super::Outcome;
use super::demo_migrations;
use super::options::GlobalOptions;
use super::output::{self, Output};
use super::sandbox::load_retail;
use crate::archive::{Repository, Selection, Snapshot};
use crate::backup::{BackupOptions, BackupStats, backup};
use crate::clock;
use crate::compare::{Comparison, compare};
use crate::document::{CollectionPath, DatabaseName, DocumentPath, KeyRange, Timestamp, Value, canonical};
use crate::firestore::{
    BulkWriter, ConnectOptions, Firestore, ScanOptions, Target, WriteFailure, WriteOptions,
};
use crate::progress::Progress;
use crate::restore::{RestoreOptions, restore};
use crate::sandbox::retail::RetailSize;
use crate::sandbox::{Sandbox, SandboxConfig};
use crate::store::Store;
use crate::verify::{VerifyOptions, verify};

const SHOP: &str = "demo-shop";
const COPY: &str = "demo-copy";

#[derive(Args, Debug)]
pub(crate) struct DemoCommand {}

#[derive(Serialize)]
struct Report {
    documents: u64,
    came_back: u64,
    first_snapshot_bytes: u64,
    second_snapshot_bytes: u64,
    seconds: f64,
}

impl DemoCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let story = Story {
            output: global.output(),
        };
        story.output.line(
            "Firebank's story, on an embedded Firestore and in a temporary folder. Nothing else is touched.",
        )?;

        let folder = tempfile::Builder::new()
            .prefix("firebank-demo-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let sandbox = Sandbox::start(SandboxConfig::default())
            .await
            .context("cannot start the sandbox")?;
        let shop = story.load(&sandbox).await?;
        let repository = story.init(&folder).await?;

        let first = story.back_up("Back up", &shop, &repository).await?;
        story.look_inside(&repository, &first).await?;
        story.change(&shop).await?;
        let second = story.back_up("Back up again", &shop, &repository).await?;
        story.verify(&repository).await?;
        let copy = story.restore(&sandbox, &repository, &second, &folder).await?;
        let comparison = story.compare(&shop, &copy).await?;
        demo_migrations::show(&story, &shop, &repository, &folder).await?;

        let expected = comparison.equal + comparison.different + comparison.missing;
        story.output.line("")?;
        for difference in &comparison.first_differences {
            story.output.line(format!(
                "{:?}: {}",
                difference.kind,
                output::printable(difference.path.as_str())
            ))?;
        }
        story.output.line(if comparison.is_equal() {
            format!(
                "Every document came back: {} of {} are equal field by field. ({})",
                comparison.equal,
                expected,
                output::duration(start.elapsed())
            )
        } else {
            format!(
                "NOT every document came back: {} of {expected} are equal.",
                comparison.equal
            )
        })?;
        story.output.json(&Report {
            documents: expected,
            came_back: comparison.equal,
            first_snapshot_bytes: first.stats.stored_bytes,
            second_snapshot_bytes: second.stats.stored_bytes,
            seconds: start.elapsed().as_secs_f64(),
        })?;
        sandbox.shutdown().await;
        ensure!(
            comparison.is_equal(),
            "the restored database differs from the original"
        );
        Ok(Outcome::Done)
    }
}

pub(super) struct Story {
    output: Output,
}

impl Story {
    pub(super) fn chapter(&self, title: &str, command: &str) -> anyhow::Result<()> {
        self.output.line("")?;
        self.output.line(format!("{title}: firebank {command}"))?;
        Ok(())
    }

    pub(super) fn tell(&self, line: impl AsRef<str>) -> anyhow::Result<()> {
        Ok(self.output.line(format!("  {}", line.as_ref()))?)
    }

    async fn load(&self, sandbox: &Sandbox) -> anyhow::Result<Firestore> {
        self.chapter("Start", "sandbox --retail")?;
        let start = Instant::now();
        let documents = load_retail(sandbox, database(SHOP), RetailSize::DEMO).await?;
        self.tell(format!(
            "a retail shop of {} in {}: products, users, orders, feedback, analytics and more,",
            output::count(documents, "document"),
            output::duration(start.elapsed())
        ))?;
        self.tell("with subcollections, missing documents and every type of value.")?;
        connect(sandbox, SHOP).await
    }

    async fn init(&self, folder: &tempfile::TempDir) -> anyhow::Result<Repository> {
        let store = Store::create_local(folder.path().join("backups"))?;
        Ok(Repository::init(store, clock::now()).await?)
    }

    async fn back_up(
        &self,
        title: &str,
        shop: &Firestore,
        repository: &Repository,
    ) -> anyhow::Result<Snapshot> {
        self.chapter(title, "backup")?;
        let options = BackupOptions {
            selection: Selection::all(),
            ..BackupOptions::default()
        };
        let BackupStats {
            snapshot, duration, ..
        } = backup(shop, repository, options, &Progress::new()).await?;
        self.tell(format!(
            "snapshot {}: {}, {} of fields, as of {}",
            snapshot.id,
            output::count(snapshot.documents, "document"),
            output::bytes(snapshot.body_bytes),
            snapshot.read_time
        ))?;
        self.tell(format!(
            "stored {} in {}",
            output::bytes(snapshot.stats.stored_bytes),
            output::duration(duration)
        ))?;
        Ok(snapshot)
    }

    async fn look_inside(&self, repository: &Repository, snapshot: &Snapshot) -> anyhow::Result<()> {
        self.chapter("Look inside", "show latest; firebank show latest users/u000001")?;
        let collections: Vec<String> = snapshot
            .collections
            .iter()
            .map(|(name, count)| format!("{name} {}", output::number(count.documents)))
            .collect();
        self.tell(collections.join(", "))?;
        let path = DocumentPath::parse("users/u000001")?;
        let found = repository
            .reader(snapshot)
            .await?
            .get(&path)
            .await?
            .context("a user is missing")?;
        let document = found.get(0).context("a user is missing")?;
        let fields = crate::document::typed_json::FieldsJson::new(document.body);
        self.tell(format!("{path}: {}", serde_json::to_string(&fields)?))
    }

    async fn change(&self, shop: &Firestore) -> anyhow::Result<()> {
        self.output.line("")?;
        self.output
            .line("Change: some prices go up, a user leaves, an order comes in.")?;
        let read_time = shop.current_read_time().await?;
        let products = CollectionPath::parse("products")?.key_range();
        let mut writer = BulkWriter::new(shop, WriteOptions::new(shop), Vec::<WriteFailure>::new());
        let mut changed = 0u64;
        let mut batches = pin!(shop.scan(ScanOptions::new(products, read_time)));
        while let Some(batch) = batches.try_next().await? {
            for document in batch.iter().step_by(100) {
                let mut fields = canonical::decode(document.body)?;
                let Some(Value::Double(price)) = fields.get_mut("price") else {
                    continue;
                };
                *price += 1.0;
                writer.put(&document.path()?, &canonical::encode(&fields)).await?;
                changed += 1;
            }
        }
        writer.delete(&DocumentPath::parse("users/u000007")?).await?;
        let order = [
            ("status".to_owned(), Value::String("placed".to_owned())),
            (
                "placed_at".to_owned(),
                Value::Timestamp(Timestamp::from(clock::now())),
            ),
        ];
        writer
            .put(
                &DocumentPath::parse("orders/o9999999")?,
                &canonical::encode(&order.into()),
            )
            .await?;
        let stats = writer.finish().await?;
        ensure!(stats.failed == 0, "the sandbox refused a change");
        self.tell(format!("{changed} documents changed, 1 deleted, 1 new"))
    }

    async fn verify(&self, repository: &Repository) -> anyhow::Result<()> {
        self.chapter("Verify", "verify --read-data")?;
        let options = VerifyOptions::read_everything();
        let stats = verify(repository, options, &Progress::new()).await?;
        ensure!(stats.is_intact(), "the repository is damaged");
        self.tell(format!(
            "{} and {} of chunks read, decompressed and hashed in {}: intact",
            output::count(stats.snapshots, "snapshot"),
            output::bytes(stats.data_bytes),
            output::duration(stats.duration)
        ))
    }

    async fn restore(
        &self,
        sandbox: &Sandbox,
        repository: &Repository,
        snapshot: &Snapshot,
        folder: &tempfile::TempDir,
    ) -> anyhow::Result<Firestore> {
        self.chapter(
            "Restore into another project",
            "restore latest --to-project demo-copy",
        )?;
        let copy = connect(sandbox, COPY).await?;
        let options = RestoreOptions::new(&copy, folder.path().join("failed.ndjson"));
        let stats = restore(
            &repository.reader(snapshot).await?,
            &copy,
            options,
            &Progress::new(),
        )
        .await?;
        self.tell(format!(
            "{} written in {}, {} refused",
            output::count(stats.written, "document"),
            output::duration(stats.duration),
            stats.failed
        ))?;
        Ok(copy)
    }

    async fn compare(&self, shop: &Firestore, copy: &Firestore) -> anyhow::Result<Comparison> {
        self.output.line("")?;
        self.output
            .line(format!("Compare: {SHOP} with {COPY}, document by document."))?;
        let original = shop.scan(ScanOptions::new(KeyRange::all(), shop.current_read_time().await?));
        let restored = copy.scan(ScanOptions::new(KeyRange::all(), copy.current_read_time().await?));
        compare(
            original.map_err(anyhow::Error::from),
            restored.map_err(anyhow::Error::from),
        )
        .await
    }
}

fn database(project: &str) -> DatabaseName {
    DatabaseName::new(project, DatabaseName::DEFAULT_DATABASE)
}

async fn connect(sandbox: &Sandbox, project: &str) -> anyhow::Result<Firestore> {
    let target = Target::Emulator {
        host_port: sandbox.address().to_string(),
    };
    Ok(Firestore::connect(ConnectOptions::new(database(project), target)).await?)
}
