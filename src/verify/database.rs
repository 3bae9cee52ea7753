//! Whether a database holds what a snapshot holds, document by document.
//!
//! Contents are compared, and not times: no restore can set those, so create_time and update_time prove nothing about a
//! database that was restored, and a database that only has the right times proves nothing either. That is why every
//! document is read whole, in the database that the snapshot is of as well, where a difference for people to read
//! ([`diff_live`](crate::diff::diff_live)) trusts the times.

use std::collections::{BTreeMap, BinaryHeap};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::task::JoinSet;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::archive::{ChangeKind, Lease, RangeTime, RecordBatch, SnapshotReader};
use crate::compare::{Comparison, DifferenceKind, NAMED_DIFFERENCES};
use crate::diff::joined::{Joined, ReferencesThere, ranges_of};
use crate::diff::{DiffError, DocumentChange, ReadTimes, fields_between};
use crate::document::{KeyRange, Timestamp};
use crate::firestore::Firestore;
use crate::path_filter::PathFilter;
use crate::progress::Progress;
use crate::restore::ReferenceMode;

/// Names that are fetched together at most.
const SAMPLED_TOGETHER: usize = 1_200;
/// Bytes of bodies that are fetched together, as the snapshot has them.
const SAMPLED_BYTES: u64 = 8 << 20;

/// What to compare, and how much to say about it.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// Which documents: what lies outside of it is looked at on neither side.
    pub filter: PathFilter,
    /// Where references were made to point when the snapshot was restored into another database.
    pub references: ReferenceMode,
    /// How many documents that differ are named; all are counted. Naming the fields of one costs a read.
    pub named: usize,
    /// Key ranges that are read at the same time.
    pub parallel: usize,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self {
            filter: PathFilter::all(),
            references: ReferenceMode::Rewrite,
            named: NAMED_DIFFERENCES,
            parallel: 8,
        }
    }
}

/// How a database and a snapshot compare.
#[derive(Clone, Debug)]
pub struct DatabaseStats {
    /// The moment that the database was looked at.
    pub read_time: Timestamp,
    /// What was looked at later, ascending, because that moment could be read no longer.
    pub later: Vec<RangeTime>,
    /// What differs: the snapshot is what is expected, the database what is found.
    pub comparison: Comparison,
    /// Documents that differ, are missing or extra, by root collection; collections without any are left out.
    pub collections: BTreeMap<String, u64>,
    /// Documents that were compared, those that only one side has included.
    pub documents: u64,
    /// Reads that Firestore bills for it, as far as the client can tell.
    pub billed_reads: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// How long it took.
    pub duration: Duration,
}

/// How many documents a quick look takes. Which ones is decided by a hash of their names, another one each time, so that in the
/// end all have their turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// So many. Picking them takes eight bytes of memory each, and a second pass over the snapshot's index.
    Documents(usize),
    /// So many of a hundred, on average.
    Percent(f64),
}

/// Compares all chosen documents of a snapshot with those of a database, as it is now. Reads every chosen document of the
/// database, and of the snapshot only the index and what differs.
///
/// # Errors
/// When either side cannot be read. A difference is none.
pub async fn verify_database(
    snapshot: &SnapshotReader,
    database: &Firestore,
    options: &CompareOptions,
    progress: &Progress,
) -> Result<DatabaseStats, DiffError> {
    let proof = Proof::begin(snapshot, database, options, progress).await?;
    if options.filter.is_all() {
        progress.set_total_documents(snapshot.snapshot().documents);
    }
    proof.leased(proof.compare_all()).await
}

/// Compares some documents of a snapshot with what a database has under their names. Documents that only the database has
/// cannot show in it. Reads so many documents.
///
/// # Errors
/// As [`verify_database`].
pub async fn verify_sample(
    snapshot: &SnapshotReader,
    database: &Firestore,
    sample: Sample,
    options: &CompareOptions,
    progress: &Progress,
) -> Result<DatabaseStats, DiffError> {
    let proof = Proof::begin(snapshot, database, options, progress).await?;
    proof.leased(proof.compare_sample(sample)).await
}

struct Proof<'a> {
    joined: Joined,
    options: &'a CompareOptions,
    billed_before: u64,
    retries_before: u64,
    started: Instant,
}

/// What was found in a part, ascending.
#[derive(Default)]
struct Found {
    comparison: Comparison,
    collections: BTreeMap<String, u64>,
}

impl Found {
    fn add(&mut self, change: DocumentChange, named: usize) {
        let kind = match change.kind {
            ChangeKind::Added => DifferenceKind::Extra,
            ChangeKind::Deleted => DifferenceKind::Missing,
            ChangeKind::Changed => DifferenceKind::Different,
            // The same contents.
            ChangeKind::Rewritten => return,
        };
        let collection = change.path.root_collection();
        match self.collections.get_mut(collection) {
            Some(count) => *count += 1,
            None => drop(self.collections.insert(collection.to_owned(), 1)),
        }
        self.comparison.note(change.path, kind, named);
    }

    fn append(&mut self, later: Self, named: usize) {
        self.comparison.append(later.comparison, named);
        for (collection, count) in later.collections {
            *self.collections.entry(collection).or_default() += count;
        }
    }
}

impl<'a> Proof<'a> {
    async fn begin(
        snapshot: &SnapshotReader,
        database: &Firestore,
        options: &'a CompareOptions,
        progress: &Progress,
    ) -> Result<Self, DiffError> {
        let started = Instant::now();
        let before = database.stats().counts();
        progress.watch(database.pace());
        let times = ReadTimes::now(database).await?;
        let source = &snapshot.snapshot().database;
        let joined = Joined {
            snapshot: snapshot.clone(),
            database: database.clone(),
            times,
            trust_times: false,
            fields: false,
            filter: options.filter.clone(),
            references: ReferencesThere::new(options.references, source, database.database()),
            equal: Arc::<AtomicU64>::default(),
            progress: progress.clone(),
        };
        Ok(Self {
            joined,
            options,
            billed_before: before.billed_reads,
            retries_before: before.retries,
            started,
        })
    }

    /// Compares while a lease is held, and tells a snapshot that was forgotten meanwhile from one that is damaged.
    async fn leased(
        &self,
        compare: impl Future<Output = Result<Found, DiffError>>,
    ) -> Result<DatabaseStats, DiffError> {
        let snapshot = &self.joined.snapshot;
        let lease = Lease::of(snapshot, "verify").await?;
        let stats = async { self.stats(compare.await?).await }.await;
        lease.release().await;
        match stats {
            Err(DiffError::Archive(error)) => {
                Err(snapshot.repository().explain(snapshot.id(), error).await.into())
            }
            stats => stats,
        }
    }

    async fn compare_all(&self) -> Result<Found, DiffError> {
        let parallel = self.options.parallel.max(1);
        let ranges = ranges_of(&self.joined.snapshot, parallel, self.options.filter.ranges()).await?;
        let mut ranges = ranges.into_iter().enumerate();
        // Each keeps the first of its own differences, and the first of all are among these. Dropping the set stops them.
        let mut running = JoinSet::new();
        let mut parts = BTreeMap::new();
        loop {
            while running.len() < parallel
                && let Some((number, range)) = ranges.next()
            {
                let (joined, named) = (self.joined.clone(), self.options.named);
                running.spawn(async move { (number, compare_range(joined, range, named).await) });
            }
            let Some(ended) = running.join_next().await else {
                break;
            };
            let (number, found) = ended?;
            parts.insert(number, found?);
        }
        let mut all = Found::default();
        for part in parts.into_values() {
            all.append(part, self.options.named);
        }
        Ok(all)
    }

    async fn compare_sample(&self, sample: Sample) -> Result<Found, DiffError> {
        let seed = rand::random();
        let most = match sample {
            Sample::Documents(documents) => self.smallest_hashes(seed, documents).await?,
            Sample::Percent(percent) => Some(((percent / 100.0).clamp(0.0, 1.0) * u64::MAX as f64) as u64),
        };
        let mut found = Found::default();
        let Some(most) = most else {
            return Ok(found);
        };
        let (mut picked, mut bytes) = (RecordBatch::default(), 0);
        let mut records = pin!(self.chosen_records());
        while let Some(batch) = records.try_next().await? {
            let under = |key: &[u8]| xxh3_64_with_seed(key, seed) <= most;
            for record in batch.iter().filter(|record| under(record.key)) {
                bytes += u64::from(record.length());
                picked.push(record);
                if picked.len() == SAMPLED_TOGETHER || bytes >= SAMPLED_BYTES {
                    self.compare_picked(&std::mem::take(&mut picked), &mut found)
                        .await?;
                    bytes = 0;
                }
            }
        }
        self.compare_picked(&picked, &mut found).await?;
        Ok(found)
    }

    /// The largest of the `count` smallest hashes of names; `None` where nothing is chosen.
    async fn smallest_hashes(&self, seed: u64, count: usize) -> Result<Option<u64>, DiffError> {
        let mut smallest = BinaryHeap::new();
        let mut records = pin!(self.chosen_records());
        while let Some(batch) = records.try_next().await? {
            for record in batch.iter() {
                smallest.push(xxh3_64_with_seed(record.key, seed));
                if smallest.len() > count {
                    smallest.pop();
                }
            }
        }
        self.joined.progress.set_total_documents(smallest.len() as u64);
        Ok(smallest.pop())
    }

    /// The records of the chosen documents, ascending.
    fn chosen_records(&self) -> impl Stream<Item = Result<RecordBatch, DiffError>> {
        let filter = &self.options.filter;
        stream::iter(filter.ranges())
            .flat_map(|range| self.joined.snapshot.records(range.clone()).boxed())
            .map(|batch| {
                let batch = batch?;
                if filter.is_all() {
                    return Ok(batch);
                }
                let mut chosen = RecordBatch::default();
                for record in batch.iter() {
                    if filter.matches(&record.path()?) {
                        chosen.push(record);
                    }
                }
                Ok(chosen)
            })
    }

    async fn compare_picked(&self, picked: &RecordBatch, found: &mut Found) -> Result<(), DiffError> {
        for change in self.joined.compare_records(picked).await? {
            found.add(change, self.options.named);
        }
        Ok(())
    }

    async fn stats(&self, found: Found) -> Result<DatabaseStats, DiffError> {
        let Found {
            mut comparison,
            collections,
        } = found;
        self.name_fields(&mut comparison).await?;
        comparison.equal = self.joined.equal.load(Ordering::Relaxed);
        let after = self.joined.database.stats().counts();
        Ok(DatabaseStats {
            read_time: self.joined.times.first(),
            later: self.joined.times.later(),
            documents: comparison.equal + comparison.differences(),
            comparison,
            collections,
            billed_reads: after.billed_reads - self.billed_before,
            retries: after.retries - self.retries_before,
            duration: self.started.elapsed(),
        })
    }

    /// Says of the documents that are named which of their fields differ.
    async fn name_fields(&self, comparison: &mut Comparison) -> Result<(), DiffError> {
        let Joined {
            snapshot,
            database,
            references,
            times,
            ..
        } = &self.joined;
        let differing = comparison
            .first_differences
            .iter_mut()
            .filter(|difference| difference.kind == DifferenceKind::Different);
        for difference in differing {
            let path = &difference.path;
            let names = std::slice::from_ref(path);
            let there = times.fetch(database, names, times.at(path)).await?;
            let expected = snapshot.get(path).await?;
            let expected = expected.as_ref().and_then(|batch| batch.get(0));
            if let (Some(expected), Some(found)) = (expected, there.found.get(0)) {
                let expected = references.body_there(path, expected.body)?;
                difference.fields = fields_between(path, &expected, found.body)?;
            }
        }
        Ok(())
    }
}

async fn compare_range(
    joined: Joined,
    (range, groups): (KeyRange, Vec<String>),
    named: usize,
) -> Result<Found, DiffError> {
    let mut found = Found::default();
    let mut differences = pin!(joined.differences(range, groups));
    while let Some(batch) = differences.try_next().await? {
        for change in batch {
            found.add(change, named);
        }
    }
    Ok(found)
}
