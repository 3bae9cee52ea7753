//! A page of documents that a query streams: what has come of it, and what it is billed.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::call::AnswerStream;
use super::read_rate::ReadRate;
use super::{Error, Method, RequestStats, Result};
use crate::document::wire::{self, NameReader};
use crate::document::{DocumentBatch, Timestamp};

/// A query under way.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) answers: AnswerStream,
    /// Documents that were asked for.
    pub(super) limit: u64,
    /// Documents that have arrived.
    pub(super) documents: u64,
    /// Bytes of the messages that have arrived.
    pub(super) bytes: u64,
    names: NameReader,
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
    pub(super) fn new(answers: AnswerStream, root: &str, limit: u64, asked_at: Instant) -> Self {
        Self {
            names: NameReader::new(root),
            answers,
            limit,
            documents: 0,
            bytes: 0,
            answered: false,
            accounted: 0,
            asked_at,
            first_after: None,
        }
    }

    /// Takes in a message, and tells whether it brought a document, which is then the batch's last. Not
    /// async, and inlined: a scan goes through here for every document.
    #[inline]
    pub(super) fn take_in(
        &mut self,
        message: &Bytes,
        read_time: Timestamp,
        batch: &mut DocumentBatch,
    ) -> Result<bool> {
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
                        check_read_time(read_time, answer.read_time)?;
                        return Ok(false);
                    }
                }
                answer.read_time
            }
        };
        check_read_time(read_time, answered)?;
        self.documents += 1;
        Ok(true)
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
