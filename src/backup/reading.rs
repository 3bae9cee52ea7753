//! Reading a range to an end that somebody else vouches for.
//!
//! A scan is finished when the server says that there is nothing more. Streams have been seen to end early and call it OK, and a
//! backup that believed one would leave documents out, or, with a parent, take them for deleted. So what a scan says
//! of its end is checked another way: the server must **count** nothing where nothing was found. A count of nothing is fast
//! and billed as one read. Where a server does not count, a second query for a name has to find nothing.

use std::collections::VecDeque;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tracing::warn;

use super::{BackupError, plan};
use crate::archive::Selection;
use crate::document::{DocumentBatch, DocumentKey, KeyRange, Timestamp};
use crate::firestore::{self, Firestore, ScanOptions};

/// How often a scan is taken up again that ends early without having brought a document since.
const ATTEMPTS: u32 = 4;
/// The wait before the first of them; doubled each time.
const WAIT: Duration = Duration::from_millis(100);

/// The selected documents of a range, in batches.
pub(super) struct Reading {
    database: Firestore,
    selection: Selection,
    options: ScanOptions,
    /// What is left to be read; the first is being read.
    parts: VecDeque<ScanOptions>,
    scan: BoxStream<'static, firestore::Result<DocumentBatch>>,
    failures: u32,
}

impl Reading {
    pub(super) fn new(database: Firestore, selection: &Selection, options: ScanOptions) -> Self {
        let mut reading = Self {
            database,
            selection: selection.clone(),
            options,
            parts: VecDeque::new(),
            scan: stream::empty().boxed(),
            failures: 0,
        };
        reading.begin();
        reading
    }

    /// Begins at the range's start, or after the document that the options name.
    fn begin(&mut self) {
        self.parts = parts(&self.selection, &self.options).into();
        self.scan_part();
    }

    fn scan_part(&mut self) {
        if let Some(part) = self.parts.front() {
            self.scan = self.database.scan(part.clone()).boxed();
        }
    }

    /// The next documents; `None` when the server both says and counts that there are no more.
    pub(super) async fn next(&mut self) -> Result<Option<DocumentBatch>, BackupError> {
        while let Some(part) = self.parts.front_mut() {
            if let Some(batch) = self.scan.try_next().await? {
                if let Some(last) = batch.last() {
                    part.after = Some(DocumentKey::from_bytes(last.key));
                }
                self.failures = 0;
                return Ok(Some(batch));
            }
            let left = left_of_part(&self.database, part).await?;
            if left == 0 {
                self.parts.pop_front();
                self.scan_part();
                continue;
            }
            self.failures += 1;
            if self.failures >= ATTEMPTS {
                return Err(contradiction(
                    &part.range,
                    part.after.as_ref(),
                    part.read_time,
                    left,
                ));
            }
            warn!("the server ended its answer {left} documents early and called it complete: asking again");
            tokio::time::sleep(WAIT * (1 << self.failures)).await;
            self.scan_part();
        }
        Ok(None)
    }

    /// Ends earlier, at a key past all that was read.
    pub(super) fn shorten(&mut self, end: Option<DocumentKey>, after: Option<DocumentKey>) {
        self.options.range.end = end;
        self.options.after = after;
        self.begin();
    }

    /// Goes on with whole documents after the one with this key.
    pub(super) fn read_whole(&mut self, after: Option<DocumentKey>) {
        self.options.names_only = false;
        self.options.after = after;
        self.begin();
    }
}

/// What a selection wants to be read of a range, from its start or after a document.
fn parts(selection: &Selection, options: &ScanOptions) -> Vec<ScanOptions> {
    let after = options.after.as_ref();
    let parts = selection.parts(&options.range).into_iter();
    parts
        .filter(|(range, _)| {
            range.end.is_none() || after.is_none_or(|after| range.end.as_ref() > Some(after))
        })
        .map(|(range, groups)| ScanOptions {
            after: after.filter(|after| range.contains(after.as_bytes())).cloned(),
            groups: groups.to_vec(),
            range,
            ..options.clone()
        })
        .collect()
}

/// How many selected documents the server has in a range, or after one of its documents: counted, or, where it does not count, as
/// far as a query for names finds any.
pub(super) async fn documents_left(
    database: &Firestore,
    selection: &Selection,
    range: &KeyRange,
    after: Option<&DocumentKey>,
    read_time: Timestamp,
) -> Result<u64, BackupError> {
    let options = ScanOptions {
        after: after.cloned(),
        ..ScanOptions::names(range.clone(), read_time)
    };
    let mut left = 0;
    for part in parts(selection, &options) {
        left += left_of_part(database, &part).await?;
    }
    Ok(left)
}

async fn left_of_part(database: &Firestore, part: &ScanOptions) -> Result<u64, BackupError> {
    let ScanOptions {
        range,
        groups,
        after,
        read_time,
        ..
    } = part;
    if range.is_empty() || database.walks() && groups.is_empty() {
        // A walk is made of whole answers, which do not end short.
        return Ok(0);
    }
    if let Some(count) = plan::count(database, range, groups, after.as_ref(), *read_time).await? {
        return Ok(count);
    }
    let options = ScanOptions {
        names_only: true,
        batch_documents: 1,
        page_documents: Some(1),
        ..part.clone()
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
