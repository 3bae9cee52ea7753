//! Asking the field: one query for each collection group of a section.
//!
//! A query is counted before it is asked. The count costs no more than the query that would find nothing, tells when so much has
//! changed that names are cheaper, and vouches for the end of the answer: one that ended short would leave changes out.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tracing::{debug, warn};

use super::section::Section;
use crate::backup::compared::Comparison;
use crate::backup::since::{self, Since};
use crate::backup::{BackupError, ChangeField};
use crate::document::field_mask::value_at;
use crate::document::{
    DatabaseName, DocumentPath, DocumentRef, Timestamp, Value, canonical, field_path_text,
};
use crate::firestore::{self, Query, QueryFilter, QueryOperator};

/// Groups of a section that are asked at the same time.
const GROUPS_AT_ONCE: usize = 4;
/// Bytes of bodies of a section that are kept until they are written. What is beyond is fetched again.
const BODY_BYTES: usize = 1 << 20;
/// How often a query is asked again that does not bring what was counted.
const ATTEMPTS: u32 = 3;
/// The wait before the first of them; doubled each time.
const WAIT: Duration = Duration::from_millis(100);
/// The share of a section's documents that may have changed for the field to be worth asking: what is not written at once is read twice.
const WORTH_ASKING: u64 = 2;
/// What one group of a section costs to ask and to count, in reads, about, when nothing has changed.
const READS_PER_GROUP: usize = 4;

/// A document that the field told of.
pub(super) struct Found {
    pub(super) key: Vec<u8>,
    pub(super) path: DocumentPath,
    pub(super) create_time: Timestamp,
    pub(super) update_time: Timestamp,
    /// `None`: it is to be fetched.
    pub(super) body: Option<Vec<u8>>,
    /// The number of its collection group in the section.
    pub(super) group: usize,
}

/// What the field told of a section.
pub(super) enum Answer {
    /// Documents whose field is not before the time asked for, ascending by key, of which some may be as the parent has them.
    Documents(Vec<Found>),
    /// Names are to be read.
    OfNoUse,
}

/// How a backup asks the field, and what came of it.
pub(in crate::backup) struct Asking {
    field: Vec<String>,
    overlap: Duration,
    /// Why names are read where the field should have been asked, each said once.
    said: Mutex<BTreeSet<String>>,
    /// Collection groups that the server refuses to ask.
    refused: Mutex<BTreeSet<String>>,
}

impl Asking {
    pub(in crate::backup) fn new(since: &Since) -> Self {
        Self {
            field: since.field.clone(),
            overlap: since.overlap(),
            said: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    /// Why names were read where the field should have been asked.
    pub(in crate::backup) fn said(&self) -> Vec<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().cloned().collect()
    }

    /// Says why names are read; once.
    pub(super) fn say(&self, why: String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.insert(why.clone()) {
            warn!("{why}");
        }
    }

    fn field_path(&self) -> String {
        field_path_text(self.field.iter().map(String::as_str))
    }

    /// By how much the commit of a document was behind its field, in microseconds, if that counts.
    pub(in crate::backup) fn lag_micros(&self, document: DocumentRef<'_>) -> Option<u64> {
        lag_micros(&self.field, document)
    }

    /// Which documents of a section say that they have changed.
    pub(super) async fn ask(
        &self,
        comparison: &Comparison,
        section: &Section,
    ) -> Result<Answer, BackupError> {
        if section.groups.len() * READS_PER_GROUP > section.parents().max(READS_PER_GROUP) {
            debug!(range = ?section.range, groups = section.groups.len(), "too many collection groups to ask");
            return Ok(Answer::OfNoUse);
        }
        let known_until = since::known_until(comparison.parent.snapshot(), &section.range);
        let from = from(known_until, self.overlap);
        let mut queries = Vec::with_capacity(section.groups.len());
        for group in &section.groups {
            queries.push(query(&self.field, group, from).within(&section.range)?);
        }
        let counts = queries
            .iter()
            .map(|query| self.count(comparison, query))
            .collect::<Vec<_>>();
        let counts: Vec<Option<u64>> = stream::iter(counts)
            .buffered(GROUPS_AT_ONCE)
            .try_collect()
            .await?;
        let Some(counts) = counts.into_iter().collect::<Option<Vec<u64>>>() else {
            return Ok(Answer::OfNoUse);
        };
        let told: u64 = counts.iter().sum();
        if told * WORTH_ASKING > section.parents() as u64 {
            debug!(range = ?section.range, told, "most of it has changed: reading names");
            return Ok(Answer::OfNoUse);
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        for (group, (query, count)) in queries.into_iter().zip(counts).enumerate() {
            if count == 0 {
                continue;
            }
            if !self
                .find(comparison, section, (group, query, count), &mut bytes, &mut found)
                .await?
            {
                return Ok(Answer::OfNoUse);
            }
        }
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(Answer::Documents(found))
    }

    /// How many documents a query will bring; `None` where the server refuses it.
    async fn count(&self, comparison: &Comparison, query: &Query) -> Result<Option<u64>, BackupError> {
        let group = &query.collection;
        let is_refused = |group| {
            let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.contains(group)
        };
        if is_refused(group) {
            return Ok(None);
        }
        let counted = comparison
            .database
            .count_query(query, Some(comparison.read_time))
            .await;
        self.unless_refused(comparison, group, counted)
    }

    /// Takes note of a refusal.
    fn unless_refused<T>(
        &self,
        comparison: &Comparison,
        group: &str,
        result: firestore::Result<T>,
    ) -> Result<Option<T>, BackupError> {
        match result {
            Ok(result) => Ok(Some(result)),
            Err(error @ (firestore::Error::Rejected { .. } | firestore::Error::Unsupported { .. })) => {
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                refused.insert(group.to_owned());
                drop(refused);
                let database = comparison.database.database();
                self.say(format!(
                    "names are read where collection group `{group}` has documents, for the server does not tell by `{}` which of them \
                     have changed ({error}). If an index is missing: {}",
                    self.field_path(),
                    index_command(database, group, &self.field)
                ));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Collects what a query brings; `false` when it does not bring what was counted, or is refused.
    async fn find(
        &self,
        comparison: &Comparison,
        section: &Section,
        (group, query, count): (usize, Query, u64),
        bytes: &mut usize,
        found: &mut Vec<Found>,
    ) -> Result<bool, BackupError> {
        let (before, bytes_before) = (found.len(), *bytes);
        for attempt in 1..=ATTEMPTS {
            let mut told = 0;
            let batches = comparison.database.query(query.clone(), comparison.read_time);
            let mut batches = batches.boxed();
            loop {
                let batch = batches.try_next().await;
                let Some(batch) = self.unless_refused(comparison, &query.collection, batch)? else {
                    return Ok(false);
                };
                let Some(batch) = batch else { break };
                told += batch.len() as u64;
                for document in batch
                    .iter()
                    .filter(|document| section.range.contains(document.key))
                {
                    let found_here = Found::new(document, section, group, bytes)?;
                    found.extend(found_here);
                }
            }
            if told == count {
                return Ok(true);
            }
            warn!(
                "the server counts {count} documents of `{}` that have changed and sends {told}, in answer {attempt} of {ATTEMPTS}",
                query.collection
            );
            found.truncate(before);
            *bytes = bytes_before;
            tokio::time::sleep(WAIT * (1 << attempt)).await;
        }
        self.say(format!(
            "names are read where the server contradicts itself about which documents of `{}` have changed",
            query.collection
        ));
        Ok(false)
    }
}

impl Found {
    /// Takes a document, unless the parent has it as it is.
    fn new(
        document: DocumentRef<'_>,
        section: &Section,
        group: usize,
        bytes: &mut usize,
    ) -> Result<Option<Self>, BackupError> {
        let mut found = Self {
            key: document.key.to_vec(),
            path: document.path()?,
            create_time: document.create_time,
            update_time: document.update_time,
            body: None,
            group,
        };
        if section
            .record(document.key)
            .is_some_and(|record| found.is_as(&record))
        {
            return Ok(None);
        }
        if *bytes + document.body.len() <= BODY_BYTES {
            *bytes += document.body.len();
            found.body = Some(document.body.to_vec());
        }
        Ok(Some(found))
    }
}

/// From when on to ask.
pub(super) fn from(known_until: Timestamp, overlap: Duration) -> Timestamp {
    let overlap = i64::try_from(overlap.as_secs()).unwrap_or(i64::MAX);
    Timestamp::new(known_until.seconds.saturating_sub(overlap), 0)
}

/// The documents of a group whose field is not before a time.
pub(in crate::backup) fn query(field: &[String], group: &str, from: Timestamp) -> Query {
    Query {
        filters: vec![QueryFilter {
            field: field.to_vec(),
            operator: QueryOperator::GreaterThanOrEqual,
            value: Value::Timestamp(from),
        }],
        ..Query::group(group)
    }
}

/// See [`Asking::lag_micros`].
fn lag_micros(field: &[String], document: DocumentRef<'_>) -> Option<u64> {
    let fields = canonical::decode(document.body).ok()?;
    match value_at(&fields, field)? {
        Value::Timestamp(time) => since::lag_micros(*time, document.update_time),
        _ => None,
    }
}

impl ChangeField {
    /// The command that makes the index which asking this field of a collection group needs. It names the indexes as well that
    /// Firestore keeps by itself, for what it does not name is dropped
    /// (<https://cloud.google.com/sdk/gcloud/reference/firestore/indexes/fields/update>).
    pub fn index_command(&self, database: &DatabaseName, group: &str) -> String {
        index_command(database, group, &self.field)
    }
}

fn index_command(database: &DatabaseName, group: &str, field: &[String]) -> String {
    let path = field_path_text(field.iter().map(String::as_str));
    format!(
        "gcloud firestore indexes fields update {} --collection-group={} --project={} --database={} \
         --index=order=ascending,query-scope=collection --index=order=descending,query-scope=collection \
         --index=array-config=contains,query-scope=collection --index=order=ascending,query-scope=collection-group",
        quoted(&path),
        quoted(group),
        quoted(&database.project),
        quoted(&database.database),
    )
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-' | '.');
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
