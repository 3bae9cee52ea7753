//! Reading what a query selects as of one time, page by page.
//!
//! What holds for [scans](super::ScanOptions) holds here: nothing is repeated and nothing skipped whatever
//! the network does, and a stream that ended is believed only when a query from its cursor has nothing. A
//! page resumes after the last document by the values that the query orders by.

use std::time::Instant;

use ::firestore::gcloud_sdk::google::firestore::v1::run_query_request::{ConsistencySelector, QueryType};
use ::firestore::gcloud_sdk::google::firestore::v1::{Cursor, RunQueryRequest};
use futures::{Stream, stream};
use tonic::Status;

use super::call::{encoded, no_answer};
use super::connect::Lane;
use super::page::{Page, Step};
use super::proto::protobuf_time;
use super::retry::Backoff;
use super::{Error, Firestore, Method, Query, Result};
use crate::document::{DocumentBatch, DocumentPath, Timestamp};

/// Documents that a query asks for; as for scans, an emulator's queries have a high fixed cost.
const PAGE: u64 = 5_000;
const EMULATOR_PAGE: u64 = 10_000;
/// What completes a batch.
const BATCH_DOCUMENTS: usize = 512;
const BATCH_BYTES: usize = 512 << 10;

impl Firestore {
    /// Streams what a query selects as it was at the read time, in batches.
    ///
    /// Failures that pass are retried and the stream resumes where it was; it ends after the first error.
    /// Nothing runs while it is not polled, beyond what fits the connection's windows; dropping it cancels.
    pub fn query(
        &self,
        query: Query,
        read_time: Timestamp,
    ) -> impl Stream<Item = Result<DocumentBatch>> + Send + 'static + use<> {
        self.query_from(query, read_time, None)
    }

    /// The same for what comes after a document in the query's order, given by its path and its canonical body.
    pub fn query_after(
        &self,
        query: Query,
        read_time: Timestamp,
        after: Option<(&DocumentPath, &[u8])>,
    ) -> Result<impl Stream<Item = Result<DocumentBatch>> + Send + 'static + use<>> {
        let after = after.map(|(path, body)| query.cursor(path, body, &self.inner.root));
        let after = after.transpose()?;
        Ok(self.query_from(query, read_time, after))
    }

    fn query_from(
        &self,
        query: Query,
        read_time: Timestamp,
        after: Option<Cursor>,
    ) -> impl Stream<Item = Result<DocumentBatch>> + Send + 'static + use<> {
        let pages = Pages {
            left: query.limit.unwrap_or(u64::MAX),
            backoff: Backoff::new(self.inner.retry.clone()),
            firestore: self.clone(),
            query,
            read_time,
            after,
            page: None,
            finished: false,
        };
        stream::try_unfold(pages, |mut pages| async move {
            let batch = pages.next_batch().await?;
            Ok(batch.map(|batch| (batch, pages)))
        })
    }
}

struct Pages {
    firestore: Firestore,
    query: Query,
    read_time: Timestamp,
    left: u64,
    /// After the last document that has arrived.
    after: Option<Cursor>,
    page: Option<Page>,
    backoff: Backoff,
    finished: bool,
}

impl Pages {
    async fn next_batch(&mut self) -> Result<Option<DocumentBatch>> {
        let mut batch = DocumentBatch::new();
        while !self.finished && self.left > 0 {
            match self.read_on(&mut batch).await? {
                Ok(()) if batch.len() >= BATCH_DOCUMENTS || batch.byte_len() >= BATCH_BYTES => break,
                Ok(()) => {}
                Err(status) => {
                    self.arrived(&batch)?;
                    self.finish_page();
                    self.firestore
                        .wait_or_fail(Method::RunQuery, Some(self.read_time), &mut self.backoff, status)
                        .await?;
                }
            }
        }
        self.arrived(&batch)?;
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// Takes note of where the next page begins.
    fn arrived(&mut self, batch: &DocumentBatch) -> Result<()> {
        let Some(last) = batch.last() else { return Ok(()) };
        let path = last
            .path()
            .map_err(|error| Error::malformed(Method::RunQuery, error))?;
        self.after = Some(self.query.cursor(&path, last.body, &self.firestore.inner.root)?);
        Ok(())
    }

    /// Takes in messages until the batch is full, the page ends or the call fails. The inner error is the call's.
    async fn read_on(&mut self, batch: &mut DocumentBatch) -> Result<Result<(), Status>> {
        if self.page.is_none() {
            self.arrived(batch)?;
            match self.open_page().await {
                Ok(page) => self.page = Some(page),
                Err(status) => return Ok(Err(status)),
            }
        }
        let Some(page) = &mut self.page else {
            return Ok(Ok(()));
        };
        while page.taken.documents < page.limit {
            match page.take_in_next(batch).await? {
                Step::Document => {
                    self.left -= 1;
                    if batch.len() >= BATCH_DOCUMENTS || batch.byte_len() >= BATCH_BYTES {
                        page.taken.account_so_far(&self.firestore.inner.stats);
                        return Ok(Ok(()));
                    }
                }
                Step::Progress => {}
                Step::End if !page.taken.answered => return Ok(Err(no_answer())),
                Step::End => {
                    self.finished = page.taken.documents == 0;
                    break;
                }
                Step::Failed(status) => return Ok(Err(status)),
            }
        }
        self.finish_page();
        Ok(Ok(()))
    }

    fn finish_page(&mut self) {
        let Some(page) = self.page.take() else { return };
        if page.taken.documents > 0 {
            self.backoff.progressed();
        }
        page.taken
            .account(&self.firestore.inner.stats, &self.firestore.inner.read_rate);
    }

    async fn open_page(&mut self) -> Result<Page, Status> {
        let page = match self.firestore.is_emulator() {
            true => EMULATOR_PAGE,
            false => PAGE,
        };
        let wanted = u32::try_from(page.min(self.left)).unwrap_or(u32::MAX);
        let limit = u64::from(self.firestore.inner.read_rate.query(wanted).await);
        let asked_at = Instant::now();
        let root = &self.firestore.inner.root;
        let mut query = self.query.structured(root);
        query.start_at = self.after.clone();
        query.limit = i32::try_from(limit).ok();
        let request = RunQueryRequest {
            parent: self.query.parent_name(root),
            query_type: Some(QueryType::StructuredQuery(query)),
            consistency_selector: Some(ConsistencySelector::ReadTime(protobuf_time(self.read_time))),
            ..Default::default()
        };
        let answers = self
            .firestore
            .open_stream(Lane::Bulk, Method::RunQuery, encoded(&request))
            .await?;
        Ok(Page::new(answers, root, limit, self.read_time, asked_at))
    }
}

impl Drop for Pages {
    /// Whoever has read enough leaves in the middle of a page, and it is billed all the same.
    fn drop(&mut self) {
        self.finish_page();
    }
}
