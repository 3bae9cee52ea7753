//! Reading a range to an end that somebody else vouches for.
//!
//! A scan is finished when the server says that there is nothing more. Streams have been seen to end early and call it OK, and a
//! backup that believed one would leave documents out, or, with a parent, take them for deleted. So what a scan says
//! of its end is checked another way: the server must **count** nothing where nothing was found. A count of nothing is fast
//! and billed as one read. Where a server does not count, a second query for a name has to find nothing.

use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use tracing::warn;

use super::{BackupError, plan};
use crate::document::{DocumentBatch, DocumentKey, KeyRange, Timestamp};
use crate::firestore::{self, Firestore, ScanOptions};

/// How often a scan is taken up again that ends early without having brought a document since.
const ATTEMPTS: u32 = 4;
/// The wait before the first of them; doubled each time.
const WAIT: Duration = Duration::from_millis(100);

/// The documents of a range, in batches.
pub(super) struct Reading {
    database: Firestore,
    options: ScanOptions,
    scan: BoxStream<'static, firestore::Result<DocumentBatch>>,
    failures: u32,
}

impl Reading {
    pub(super) fn new(database: Firestore, options: ScanOptions) -> Self {
        Self {
            scan: database.scan(options.clone()).boxed(),
            database,
            options,
            failures: 0,
        }
    }

    /// The next documents; `None` when the server both says and counts that there are no more.
    pub(super) async fn next(&mut self) -> Result<Option<DocumentBatch>, BackupError> {
        loop {
            if let Some(batch) = self.scan.try_next().await? {
                if let Some(last) = batch.last() {
                    self.options.after = Some(DocumentKey::from_bytes(last.key));
                }
                self.failures = 0;
                return Ok(Some(batch));
            }
            if self.options.range.is_empty() {
                return Ok(None);
            }
            let (range, after) = (&self.options.range, self.options.after.as_ref());
            let left = documents_left(&self.database, range, after, self.options.read_time).await?;
            if left == 0 {
                return Ok(None);
            }
            self.failures += 1;
            if self.failures >= ATTEMPTS {
                return Err(contradiction(range, after, self.options.read_time, left));
            }
            warn!("the server ended its answer {left} documents early and called it complete: asking again");
            tokio::time::sleep(WAIT * (1 << self.failures)).await;
            self.scan = self.database.scan(self.options.clone()).boxed();
        }
    }

    /// Goes on with whole documents after the one with this key.
    pub(super) fn read_whole(&mut self, after: Option<DocumentKey>) {
        self.options.names_only = false;
        self.options.after = after;
        self.scan = self.database.scan(self.options.clone()).boxed();
    }
}

/// How many documents the server has in a range, or after one of its documents: counted, or, where it does not count, as
/// far as a query for names finds any.
pub(super) async fn documents_left(
    database: &Firestore,
    range: &KeyRange,
    after: Option<&DocumentKey>,
    read_time: Timestamp,
) -> Result<u64, BackupError> {
    if let Some(count) = plan::count(database, range, after, read_time).await? {
        return Ok(count);
    }
    let options = ScanOptions {
        after: after.cloned(),
        batch_documents: 1,
        page_documents: Some(1),
        ..ScanOptions::names(range.clone(), read_time)
    };
    let found = database.scan(options).boxed().try_next().await?;
    Ok(found.map_or(0, |batch| batch.len() as u64))
}

/// What is wrong with a server that has documents and does not send them.
pub(super) fn contradiction(
    range: &KeyRange,
    after: Option<&DocumentKey>,
    read_time: Timestamp,
    left: u64,
) -> BackupError {
    let start = after.or(range.start.as_ref());
    BackupError::Contradiction {
        range: match (start, &range.end) {
            (None, None) => "the whole database".to_owned(),
            (Some(start), None) => format!("{start:?} and what follows"),
            (None, Some(end)) => format!("what comes before {end:?}"),
            (Some(start), Some(end)) => format!("{start:?} to {end:?}"),
        },
        read_time,
        documents: left,
    }
}
