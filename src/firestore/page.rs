//! A page of documents that a query streams: what has come of it, and what it is billed.

use std::time::{Duration, Instant};

use tonic::Status;

use super::call::AnswerStream;
use super::read_rate::ReadRate;
use super::{Error, Method, RequestStats, Result};
use crate::document::wire::{self, NameReader};
use crate::document::{DocumentBatch, Timestamp};

/// A query under way.
#[derive(Debug)]
pub(super) struct Page {
    answers: AnswerStream,
    /// Documents that were asked for.
    pub(super) limit: u64,
    pub(super) taken: Taken,
}

/// What has come of a page.
#[derive(Debug)]
pub(super) struct Taken {
    /// Documents that have arrived.
    pub(super) documents: u64,
    /// Bytes of the messages that have arrived.
    pub(super) bytes: u64,
    names: NameReader,
    /// As of when it was asked for.
    read_time: Timestamp,
    /// Whether any message has arrived.
    pub(super) answered: bool,
    /// Documents that are in the books already.
    accounted: u64,
    asked_at: Instant,
    /// From the request to the first message.
    first_after: Option<Duration>,
}

impl Page {
    /// A page that nothing has come of yet, asked for at this moment, of documents below a root.
    pub(super) fn new(
        answers: AnswerStream,
        root: &str,
        limit: u64,
        read_time: Timestamp,
        asked_at: Instant,
    ) -> Self {
        Self {
            answers,
            limit,
            taken: Taken {
                documents: 0,
                bytes: 0,
                names: NameReader::new(root),
                read_time,
                answered: false,
                accounted: 0,
                asked_at,
                first_after: None,
            },
        }
    }

    /// Takes in the next message if it has arrived. Not async, and inlined: a scan goes through here for every
    /// document.
    #[inline]
    pub(super) fn take_in_arrived(&mut self, batch: &mut DocumentBatch) -> Result<Option<Step>> {
        match self.answers.arrived() {
            Some(arrived) => self.taken.take_in(arrived, batch).map(Some),
            None => Ok(None),
        }
    }

    /// Takes in the next message.
    pub(super) async fn take_in_next(&mut self, batch: &mut DocumentBatch) -> Result<Step> {
        self.taken.take_in(self.answers.next().await, batch)
    }

    /// Takes in the end of the stream if it has come along with the last document, which spares the server a cancelled
    /// call.
    pub(super) fn take_in_end(&mut self) {
        let _ = self.answers.arrived();
    }
}

/// What came of waiting for a message.
#[derive(Debug)]
pub(super) enum Step {
    /// A document, which is the batch's last.
    Document,
    /// A message without one.
    Progress,
    /// The end, with OK.
    End,
    /// The call has failed.
    Failed(Status),
}

impl Taken {
    #[inline]
    fn take_in(&mut self, arrived: Result<Option<&[u8]>, Status>, batch: &mut DocumentBatch) -> Result<Step> {
        let message = match arrived {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Step::End),
            Err(status) => return Ok(Step::Failed(status)),
        };
        if !self.answered {
            self.answered = true;
            self.first_after = Some(self.asked_at.elapsed());
        }
        self.bytes += message.len() as u64;
        let answered = match self.names.append(message, batch) {
            Some(answered) => Some(answered),
            None => {
                let answer = wire::query_answer(message)?;
                match answer.document {
                    Some(document) => wire::append_document(document, self.names.root(), batch)?,
                    None => {
                        check_read_time(self.read_time, answer.read_time)?;
                        return Ok(Step::Progress);
                    }
                }
                answer.read_time
            }
        };
        check_read_time(self.read_time, answered)?;
        self.documents += 1;
        Ok(Step::Document)
    }

    /// Does the books up to here: whoever watches what is billed need not wait for the end of a page.
    pub(super) fn account_so_far(&mut self, stats: &RequestStats) {
        stats.billed(self.documents - self.accounted);
        self.accounted = self.documents;
    }

    /// Does the books. A query that finds nothing is billed as one read.
    pub(super) fn account(&self, stats: &RequestStats, rate: &ReadRate) {
        stats.billed(self.documents.max(1) - self.accounted);
        stats.received(self.bytes);
        if self.answered {
            rate.answered(self.documents, self.first_after);
        }
    }
}

#[inline]
fn check_read_time(asked: Timestamp, answered: Option<Timestamp>) -> Result<()> {
    match answered {
        Some(answered) if answered != asked => Err(Error::OtherReadTime {
            method: Method::RunQuery,
            asked,
            answered,
        }),
        _ => Ok(()),
    }
}
