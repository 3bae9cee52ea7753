//! A database that changes from night to night: scattered documents of random ids are updated, inserted and
//! deleted.
//!
//! What it begins with the sandbox makes up; the changes are written by the tool's own writer. A document is
//! updated as a shop's software would: a few fields get other values, the others stay. An inserted one is
//! like one that is there.

use std::collections::HashSet;
use std::pin::pin;

use anyhow::{Context, ensure};
use firebank::document::{DocumentPath, Fields, KeyRange, Timestamp, Value, canonical};
use firebank::firestore::{BulkWriter, Firestore, ScanOptions, WriteFailure, WriteOptions};
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::measure::process::{Sandbox, synthetic};
use crate::measure::raw;

/// The collection of the sandbox's made-up documents.
const COLLECTION: &str = "synthetic";
const ID_LENGTH: usize = 20;
const SEED: u64 = 3;
/// What documents carry as the time of their last change, the night's number in days after it: 2026-01-01.
const FIRST_NIGHT: i64 = 1_767_225_600;

/// Shares of the documents that change in a night.
const UPDATED: f64 = 0.008;
const INSERTED: f64 = 0.001;
const DELETED: f64 = 0.001;

/// The database, in a sandbox of its own.
pub(crate) struct ChangingDatabase {
    pub(crate) sandbox: Sandbox,
    connection: Firestore,
    /// Of all documents, in no order.
    paths: Vec<DocumentPath>,
    random: StdRng,
    nights: i64,
}

/// What a night has changed.
pub(crate) struct Night {
    /// The inserted and updated documents, in the order of names, with their canonical bytes.
    pub(crate) changed: Vec<(DocumentPath, Vec<u8>)>,
    /// How many went away.
    pub(crate) deleted: u64,
}

impl Night {
    /// The canonical bytes of what was inserted or updated, one after the other.
    pub(crate) fn canonical_bytes(&self) -> Vec<u8> {
        self.changed.iter().flat_map(|(_, body)| body).copied().collect()
    }
}

impl ChangingDatabase {
    /// Starts a sandbox, with more options than the documents' if need be.
    pub(crate) async fn start(documents: u64, document_bytes: usize, more: &[&str]) -> anyhow::Result<Self> {
        let mut options = synthetic(documents, document_bytes);
        options.extend(more.iter().map(|&option| option.to_owned()));
        let sandbox = Sandbox::start(&options)?;
        let connection = raw::connect(&sandbox.address).await?;
        let read_time = connection.current_read_time().await?;
        let mut paths = Vec::with_capacity(documents as usize);
        let mut names = pin!(connection.scan(ScanOptions::names(KeyRange::all(), read_time)));
        while let Some(batch) = names.try_next().await? {
            for document in batch.iter() {
                paths.push(document.path()?);
            }
        }
        ensure!(
            paths.len() as u64 == documents,
            "the sandbox has {} documents",
            paths.len()
        );
        Ok(Self {
            sandbox,
            connection,
            paths,
            random: StdRng::seed_from_u64(SEED),
            nights: 0,
        })
    }

    pub(crate) fn documents(&self) -> u64 {
        self.paths.len() as u64
    }

    /// All documents, as they are now.
    pub(crate) async fn scan(
        &self,
    ) -> anyhow::Result<
        impl futures::Stream<Item = firebank::firestore::Result<firebank::document::DocumentBatch>> + use<>,
    > {
        let read_time = self.connection.current_read_time().await?;
        Ok(self.connection.scan(ScanOptions::new(KeyRange::all(), read_time)))
    }

    /// Makes the changes of one night.
    pub(crate) async fn pass_a_night(&mut self) -> anyhow::Result<Night> {
        self.nights += 1;
        let share = |share: f64| ((self.paths.len() as f64 * share).round() as usize).max(1);
        let (updated, inserted, deleted) = (share(UPDATED), share(INSERTED), share(DELETED));
        let chosen =
            rand::seq::index::sample(&mut self.random, self.paths.len(), updated + inserted + deleted);
        let mut chosen: Vec<usize> = chosen.into_vec();
        let mut gone = chosen.split_off(updated + inserted);
        let models: HashSet<_> = chosen[updated..]
            .iter()
            .map(|&index| self.paths[index].clone())
            .collect();

        let wanted: Vec<_> = chosen.iter().map(|&index| self.paths[index].clone()).collect();
        let fetched = self.connection.get_documents(&wanted, None).await?;
        ensure!(
            fetched.missing.is_empty(),
            "documents are missing that nobody has deleted"
        );
        let mut changed = Vec::with_capacity(wanted.len());
        for document in fetched.found.iter() {
            let mut fields = canonical::decode(document.body)?;
            self.update(&mut fields);
            let path = document.path()?;
            let path = match models.contains(&path) {
                true => self.new_path()?,
                false => path,
            };
            changed.push((path, canonical::encode(&fields)));
        }
        changed.sort_by_cached_key(|(path, _)| path.key());

        let options = WriteOptions::new(&self.connection);
        let mut writer = BulkWriter::new(&self.connection, options, Vec::<WriteFailure>::new());
        for (path, body) in &changed {
            writer.put(path, body).await?;
        }
        for &index in &gone {
            writer.delete(&self.paths[index]).await?;
        }
        let written = writer.finish().await?;
        ensure!(
            written.failed == 0,
            "the sandbox refused {} writes",
            written.failed
        );

        let deleted = gone.len() as u64;
        gone.sort_unstable();
        for index in gone.into_iter().rev() {
            self.paths.swap_remove(index);
        }
        let known: HashSet<_> = wanted.into_iter().collect();
        let new = changed.iter().filter(|(path, _)| !known.contains(path));
        self.paths.extend(new.map(|(path, _)| path.clone()));
        Ok(Night { changed, deleted })
    }

    fn update(&mut self, fields: &mut Fields) {
        let random = &mut self.random;
        let etag = format!("{:016x}", random.random::<u64>());
        let price = f64::from(random.random_range(0..100_000)) / 100.0;
        let seconds = FIRST_NIGHT + self.nights * 86_400 + random.random_range(0..86_400);
        let updated_at = Timestamp::new(seconds, random.random_range(0..1_000_000) * 1000);
        fields.insert("etag".to_owned(), Value::String(etag));
        fields.insert("price".to_owned(), Value::Double(price));
        fields.insert(
            "quantity".to_owned(),
            Value::Integer(random.random_range(0..1000)),
        );
        fields.insert("updated_at".to_owned(), Value::Timestamp(updated_at));
    }

    fn new_path(&mut self) -> anyhow::Result<DocumentPath> {
        let characters = (0..ID_LENGTH).map(|_| self.random.sample(rand::distr::Alphanumeric) as char);
        let path = format!("{COLLECTION}/{}", characters.collect::<String>());
        DocumentPath::parse(path).context("an id of letters and digits")
    }
}
