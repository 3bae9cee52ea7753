//! Sending requests: one attempt, and as many as it takes.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::Status;
use tower::Service;

use super::connect::{Lane, Lease};
use super::messages::{Messages, Place, RawRequest, http_request};
use super::retry::{Backoff, is_retryable};
use super::{Error, Firestore, Method, Result};
use crate::document::Timestamp;

/// An answer in many messages. Dropping it cancels the call.
#[derive(Debug)]
pub(super) struct AnswerStream {
    messages: Messages,
    stall_timeout: Duration,
    _lease: Lease,
}

impl AnswerStream {
    /// The next message if it has arrived, as [`next`](Self::next) gives it.
    #[inline]
    pub(super) fn arrived(&mut self) -> Option<Result<Option<&[u8]>, Status>> {
        match self.poll_now() {
            Poll::Ready(Ok(place)) => Some(Ok(place.map(|place| self.messages.at(place)))),
            Poll::Ready(Err(status)) => Some(Err(status)),
            Poll::Pending => None,
        }
    }

    /// The next message, `None` when the server has ended the stream with OK.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, Status> {
        let place = self.next_place().await?;
        Ok(place.map(|place| self.messages.at(place)))
    }

    async fn next_place(&mut self) -> Result<Option<Place>, Status> {
        // Only what does not arrive at once is worth a timer.
        if let Poll::Ready(arrived) = self.poll_now() {
            return arrived;
        }
        let next = poll_fn(|context| self.messages.poll_next(context));
        match tokio::time::timeout(self.stall_timeout, next).await {
            Ok(arrived) => arrived,
            Err(_) => Err(Status::deadline_exceeded(format!(
                "nothing arrived for {} s",
                self.stall_timeout.as_secs()
            ))),
        }
    }

    #[inline]
    fn poll_now(&mut self) -> Poll<Result<Option<Place>, Status>> {
        self.messages.poll_next(&mut Context::from_waker(Waker::noop()))
    }
}

pub(super) fn encoded(message: &impl Message) -> RawRequest {
    [Bytes::from(message.encode_to_vec()), Bytes::new()]
}

/// What an answer is worth that ended with OK and without a message: every query is answered by one at least, with the
/// time it was read at, and every other call by exactly one.
pub(super) fn no_answer() -> Status {
    Status::unavailable("the stream ended without an answer")
}

impl Firestore {
    /// Sends a request once and takes its answer as a stream.
    pub(super) async fn open_stream(
        &self,
        lane: Lane,
        method: Method,
        request: RawRequest,
    ) -> Result<AnswerStream, Status> {
        let lease = self.inner.channels.lease(lane);
        let mut service = lease.service.clone();
        let stall_timeout = self.inner.stall_timeout;
        self.inner
            .stats
            .sent(method, request.iter().map(Bytes::len).sum());
        let open = async {
            // A channel that cannot connect says so here, and would be classed as unknown otherwise.
            poll_fn(|context| service.poll_ready(context))
                .await
                .map_err(|error| Status::unavailable(format!("no connection: {error}")))?;
            let response = service.call(http_request(method, request)?).await;
            Messages::new(response.map_err(Status::from_error)?)
        };
        let messages = tokio::time::timeout(stall_timeout, open)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer"))??;
        Ok(AnswerStream {
            messages,
            stall_timeout,
            _lease: lease,
        })
    }

    /// Sends a request with a single answer once.
    pub(super) async fn send(
        &self,
        lane: Lane,
        method: Method,
        request: RawRequest,
    ) -> Result<Bytes, Status> {
        let mut answers = self.open_stream(lane, method, request).await?;
        let place = answers.next_place().await?.ok_or_else(no_answer)?;
        let answer = answers.messages.take(place);
        if answers.next().await?.is_some() {
            return Err(Status::internal("one request was answered twice"));
        }
        self.inner.stats.received(answer.len() as u64);
        Ok(answer)
    }

    /// Sends a request until it is answered or refused for good, and decodes the answer.
    pub(super) async fn ask<Answer: Message + Default>(
        &self,
        method: Method,
        read_time: Option<Timestamp>,
        request: &impl Message,
    ) -> Result<Answer> {
        decoded(method, &self.ask_raw(method, read_time, request).await?)
    }

    /// The same, and leaves the answer as it is.
    pub(super) async fn ask_raw(
        &self,
        method: Method,
        read_time: Option<Timestamp>,
        request: &impl Message,
    ) -> Result<Bytes> {
        let request = encoded(request);
        let mut backoff = Backoff::new(self.inner.retry.clone());
        loop {
            match self.send(Lane::Call, method, request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(status) => self.wait_or_fail(method, read_time, &mut backoff, status).await?,
            }
        }
    }

    /// Sends a request whose answer is a short stream, of one message at least, until that has arrived whole
    /// or is refused for good.
    pub(super) async fn ask_stream<Answer: Message + Default>(
        &self,
        method: Method,
        read_time: Option<Timestamp>,
        request: &impl Message,
    ) -> Result<Vec<Answer>> {
        let request = encoded(request);
        let mut backoff = Backoff::new(self.inner.retry.clone());
        loop {
            let answers = async {
                let mut stream = self.open_stream(Lane::Call, method, request.clone()).await?;
                let mut messages = Vec::new();
                while let Some(message) = stream.next().await? {
                    self.inner.stats.received(message.len() as u64);
                    messages.push(decoded(method, message));
                }
                match messages.is_empty() {
                    true => Err(no_answer()),
                    false => Ok(messages),
                }
            };
            match answers.await {
                Ok(messages) => return messages.into_iter().collect(),
                Err(status) => self.wait_or_fail(method, read_time, &mut backoff, status).await?,
            }
        }
    }

    /// Waits before the next attempt, or says what the failure means when there is none.
    pub(super) async fn wait_or_fail(
        &self,
        method: Method,
        read_time: Option<Timestamp>,
        backoff: &mut Backoff,
        status: Status,
    ) -> Result<()> {
        if method.reads_documents() {
            self.inner.read_rate.refused(&status);
        }
        if is_retryable(&status)
            && let Some(wait) = backoff.next_wait()
        {
            tracing::debug!(%method, code = ?status.code(), message = status.message(), ?wait, "trying again");
            self.inner.stats.retried();
            tokio::time::sleep(wait).await;
            return Ok(());
        }
        let attempts = backoff.failures().max(1);
        Err(Error::from_status(
            &self.inner.database,
            method,
            read_time,
            attempts,
            status,
        ))
    }
}

fn decoded<Answer: Message + Default>(method: Method, answer: &[u8]) -> Result<Answer> {
    Answer::decode(answer).map_err(|source| Error::malformed(method, source))
}
