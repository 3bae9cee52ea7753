//! What the tests of migrations have in common: a shop, a folder with scripts, and a repository.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use firebank::archive::Repository;
use firebank::document::{DocumentPath, Fields, Value, canonical};
use firebank::firestore::{BulkWriter, Firestore, WriteFailure, WriteOptions};
use firebank::migration::{
    History, MigrateOptions, MigrationError, RecordStatus, RollbackOptions, RollbackTarget, Runner,
    RunnerOptions, Version,
};
use firebank::progress::Progress;
use futures::TryStreamExt;
use serde_json::Value as Json;

use crate::cli_support::*;
use crate::support::operations::{connect, repository, scan, small_segments};
use crate::support::project;

/// A shop with so many small documents `items/i0000`, a repository and an empty folder of scripts.
pub(crate) struct Project {
    pub(crate) shop: Shop,
}

impl std::ops::Deref for Project {
    type Target = Shop;

    fn deref(&self) -> &Shop {
        &self.shop
    }
}

pub(crate) fn fields(number: i64) -> Fields {
    let values = [
        ("number", Value::Integer(number)),
        ("half", Value::Double(number as f64 / 2.0)),
        ("whole", Value::Double(number as f64)),
        ("big", Value::Integer(i64::MAX - number)),
        ("name", Value::String(format!("Item {number}"))),
        ("bytes", Value::Bytes(vec![number as u8; 5])),
    ];
    values.map(|(name, value)| (name.to_owned(), value)).into()
}

pub(crate) fn item(number: i64) -> DocumentPath {
    DocumentPath::parse(format!("items/i{number:05}")).unwrap()
}

impl Project {
    pub(crate) fn with_items(items: i64) -> Self {
        let shop = Shop::empty();
        let documents = (0..items).map(|number| (item(number), canonical::encode(&fields(number))));
        shop.put(SHOP, documents.collect());
        shop.run(["init"]).done();
        std::fs::create_dir(shop.file("migrations")).unwrap();
        Self { shop }
    }

    /// Writes `migrations/<id>.js`.
    pub(crate) fn script(&self, id: &str, text: &str) {
        self.write(&format!("migrations/{id}.js"), text);
    }

    /// The database without what Firebank keeps in it for itself.
    pub(crate) fn documents(&self) -> Contents {
        let mut contents = self.contents(SHOP);
        contents.retain(|path, _| !path.starts_with("_migrations"));
        contents
    }

    /// The document `_migrations/<id>`.
    #[track_caller]
    pub(crate) fn record(&self, id: &str) -> Fields {
        let contents = self.contents(SHOP);
        canonical::decode(&contents[&format!("_migrations/{id}")]).unwrap()
    }

    #[track_caller]
    pub(crate) fn status(&self, id: &str) -> String {
        match &self.record(id)["status"] {
            Value::String(status) => status.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn migrate(&self) -> Json {
        self.firebank(["migrate", "--json"]).json()
    }

    /// The ids of what `migrate` applied.
    #[track_caller]
    pub(crate) fn applied(&self) -> Vec<String> {
        ids(&self.migrate()["applied"])
    }
}

pub(crate) fn ids(list: &Json) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

/// Adds a field to every item.
pub(crate) const ADD_STATE: &str = r#"
export const description = "Every item has a state";
export function migrate(db) { db.addField("items", "state", "new"); }
"#;

/// Changes, creates and deletes, some documents more than once, and then throws.
pub(crate) const FAILS_LATE: &str = r#"
export function migrate(db) {
  db.transform("items", (item) => ({ ...item, name: item.name.toUpperCase(), whole: item.whole + 1 }));
  db.addField("items", "state", "new");
  db.removeField("items", "bytes");
  for (let i = 0; i < 50; i += 1) db.create(`extra/e${i}`, { i });
  db.delete("items/i00003");
  db.update("items/i00004", { number: FieldValue.increment(5) });
  if (db.count("extra") !== 50) throw new Error("not written");
  throw new Error("on purpose, at the end");
}
"#;

/// A database with so many items, a repository in memory and a folder of scripts, for tests of the library.
pub(crate) struct Bench {
    pub(crate) database: Firestore,
    pub(crate) repository: Repository,
    pub(crate) folder: tempfile::TempDir,
    /// When the lock of a runner that is gone expires.
    pub(crate) lock_expiry: Duration,
}

impl Bench {
    pub(crate) async fn new(address: &str, name: &str, items: i64) -> Self {
        let repository = repository(small_segments()).await;
        Self::with_repository(address, name, items, repository).await
    }

    pub(crate) async fn with_repository(
        address: &str,
        name: &str,
        items: i64,
        repository: Repository,
    ) -> Self {
        let database = connect(address, &project(name), "(default)").await;
        let mut writer = BulkWriter::new(
            &database,
            WriteOptions::new(&database),
            Vec::<WriteFailure>::new(),
        );
        for number in 0..items {
            let body = canonical::encode(&fields(number));
            writer.put(&item(number), &body).await.unwrap();
        }
        assert_eq!(writer.finish().await.unwrap().failed, 0);
        Self {
            database,
            repository,
            folder: tempfile::tempdir().unwrap(),
            lock_expiry: Duration::from_secs(4),
        }
    }

    pub(crate) fn script(&self, id: &str, text: &str) {
        std::fs::write(self.folder.path().join(format!("{id}.js")), text).unwrap();
    }

    pub(crate) fn runner(&self) -> Runner {
        self.runner_in(self.folder.path())
    }

    pub(crate) fn runner_in(&self, folder: &Path) -> Runner {
        let mut options = RunnerOptions::new(&self.database, folder, "a test");
        options.lock.expiry = self.lock_expiry;
        Runner::new(self.database.clone(), Some(self.repository.clone()), options)
    }

    pub(crate) async fn documents(&self) -> BTreeMap<String, Vec<u8>> {
        let mut batches = std::pin::pin!(scan(&self.database).await);
        let mut documents = BTreeMap::new();
        while let Some(batch) = batches.try_next().await.unwrap() {
            for document in batch.iter() {
                let path = document.path().unwrap();
                if !path.root_collection().starts_with("_migrations") {
                    documents.insert(path.to_string(), document.body.to_vec());
                }
            }
        }
        documents
    }

    pub(crate) async fn status(&self, id: &str) -> RecordStatus {
        let history = History::read(&self.database).await.unwrap();
        history.get(&id.parse().unwrap()).unwrap().status.clone()
    }

    pub(crate) async fn migrate(&self) -> Result<Vec<String>, MigrationError> {
        let stats = self
            .runner()
            .migrate(MigrateOptions::default(), &Progress::new())
            .await?;
        Ok(stats.applied.into_iter().map(|applied| applied.id).collect())
    }

    /// Undoes what is half done, and applies nothing.
    pub(crate) async fn recover(&self) -> Result<(), MigrationError> {
        let options = MigrateOptions {
            to: Some(Version(0)),
            ..MigrateOptions::default()
        };
        let recovered = self.runner().migrate(options, &Progress::new()).await;
        recovered.map(|_| ())
    }

    /// Waits until the database is as asked for.
    pub(crate) async fn until(&self, wanted: impl Fn(&BTreeMap<String, Vec<u8>>) -> bool) {
        let start = std::time::Instant::now();
        while !wanted(&self.documents().await) {
            assert!(start.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn roll_back_all(&self) {
        let options = RollbackOptions {
            target: RollbackTarget::To(Version(0)),
            force: false,
        };
        self.runner().rollback(options, &Progress::new()).await.unwrap();
    }
}
