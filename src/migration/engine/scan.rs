//! Reading collections of any size, for as long as it takes.
//!
//! A scan reads at one time. Firestore keeps the past for an hour (seven days with point-in-time recovery), and a migration can
//! take longer: then the rest is read at a newer time, from where the scan has got to. That beats failing after an hour of
//! work; a warning says so, because from there on a scan may meet what was written since.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;

use super::failure::Failure;
use super::serve::Reading;
use crate::document::{DocumentBatch, DocumentKey, DocumentPath, KeyRange, Timestamp};
use crate::firestore::{Error, Firestore, Query, Result, ScanOptions};

/// What to read.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// What a query selects.
    Query(Query),
    /// Everything in a range of keys.
    Range(KeyRange),
}

/// Documents under way.
pub(super) struct Scan {
    firestore: Firestore,
    source: Source,
    read: Reading,
    deadline: Duration,
    batches: BoxStream<'static, Result<DocumentBatch>>,
    /// The last document that arrived, and its body.
    last: Option<(DocumentPath, Vec<u8>)>,
    warned: bool,
}

impl Scan {
    /// Reads at the present time.
    pub(super) async fn open(
        firestore: &Firestore,
        source: Source,
        read: Reading,
        deadline: Duration,
    ) -> Result<Self, Failure> {
        let mut scan = Self {
            firestore: firestore.clone(),
            source,
            read,
            deadline,
            batches: futures::stream::empty().boxed(),
            last: None,
            warned: false,
        };
        let time = scan.now().await?;
        scan.batches = scan.from_here(time)?;
        Ok(scan)
    }

    /// The next documents; `None` when there are no more.
    pub(super) async fn next(&mut self) -> Result<Option<DocumentBatch>, Failure> {
        loop {
            let next = tokio::time::timeout(self.deadline, self.batches.next());
            match next.await.map_err(|_| Failure::Deadline("a scan"))? {
                Some(Ok(batch)) => {
                    self.read.add(batch.len(), batch.byte_len());
                    self.arrived(&batch)?;
                    return Ok(Some(batch));
                }
                None => return Ok(None),
                Some(Err(Error::ReadTimeTooOld { read_time, .. })) if self.last.is_some() => {
                    let time = self.now().await?;
                    if !std::mem::replace(&mut self.warned, true) {
                        tracing::warn!(
                            "the database no longer keeps what it held at {read_time}: the scan goes on with what it holds \
                             now, and may meet what was written since it began"
                        );
                    }
                    self.batches = self.from_here(time)?;
                }
                Some(Err(error)) => return Err(error.into()),
            }
        }
    }

    fn arrived(&mut self, batch: &DocumentBatch) -> Result<(), Failure> {
        if let Source::Query(Query {
            limit: Some(limit), ..
        }) = &mut self.source
        {
            *limit = limit.saturating_sub(batch.len() as u64);
        }
        if let Some(last) = batch.last() {
            let path = last.path().map_err(|_| Failure::Gone)?;
            self.last = Some((path, last.body.to_vec()));
        }
        Ok(())
    }

    /// A time later than every write that was done before.
    // Exclusive, because the stream cannot be shared between threads.
    async fn now(&mut self) -> Result<Timestamp, Failure> {
        tokio::time::timeout(self.deadline, self.firestore.current_read_time())
            .await
            .map_err(|_| Failure::Deadline("the question for the time"))?
            .map_err(Failure::from)
    }

    fn from_here(&self, time: Timestamp) -> Result<BoxStream<'static, Result<DocumentBatch>>, Failure> {
        let last = self.last.as_ref();
        Ok(match &self.source {
            Source::Query(query) => {
                let after = last.map(|(path, body)| (path, body.as_slice()));
                self.firestore.query_after(query.clone(), time, after)?.boxed()
            }
            Source::Range(range) => {
                let mut options = ScanOptions::new(range.clone(), time);
                options.after = last.map(|(path, _)| -> DocumentKey { path.key() });
                self.firestore.scan(options).boxed()
            }
        })
    }
}
