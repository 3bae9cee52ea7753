//! Sending requests: one attempt, and as many as it takes.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::Streaming;
use tonic::{Request, Status};

use super::connect::{Authorized, Lane, Lease};
use super::raw::{RawCodec, RawRequest};
use super::retry::{Backoff, is_retryable};
use super::{Error, Firestore, Method, Result};
use crate::document::Timestamp;

/// A document is at most 1 MiB (4 in the Enterprise edition), a page of a list can be many times that.
const LARGEST_MESSAGE: usize = 64 << 20;

/// An answer in many messages. Dropping it cancels the call.
#[derive(Debug)]
pub(super) struct AnswerStream {
    messages: Streaming<Bytes>,
    stall_timeout: Duration,
    _lease: Lease,
}

impl AnswerStream {
    /// The next message if it has arrived, as [`next`](Self::next) gives it.
    #[inline]
    pub(super) fn arrived(&mut self) -> Option<Result<Option<Bytes>, Status>> {
        let mut context = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.messages).poll_next(&mut context) {
            Poll::Ready(arrived) => Some(arrived.transpose()),
            Poll::Pending => None,
        }
    }

    /// The next message, `None` when the server has ended the stream with OK.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        // Only what does not arrive at once is worth a timer.
        if let Some(arrived) = self.arrived() {
            return arrived;
        }
        match tokio::time::timeout(self.stall_timeout, self.messages.message()).await {
            Ok(arrived) => arrived,
            Err(_) => Err(Status::deadline_exceeded(format!(
                "nothing arrived for {} s",
                self.stall_timeout.as_secs()
            ))),
        }
    }
}

pub(super) fn encoded(message: &impl Message) -> RawRequest {
    [Bytes::from(message.encode_to_vec()), Bytes::new()]
}

/// What a stream is worth that ended with OK and without a message: every query is answered by one at least,
/// with the time it was read at.
pub(super) fn no_answer() -> Status {
    Status::unavailable("the stream ended without an answer")
}

fn grpc(service: Authorized) -> Grpc<Authorized> {
    Grpc::new(service).max_decoding_message_size(LARGEST_MESSAGE)
}

async fn ready(grpc: &mut Grpc<Authorized>) -> Result<(), Status> {
    // A channel that cannot connect says so here, and would be classed as unknown otherwise.
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(format!("no connection: {error}")))
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
        let mut grpc = grpc(lease.service.clone());
        let stall_timeout = self.inner.stall_timeout;
        self.inner
            .stats
            .sent(method, request.iter().map(Bytes::len).sum());
        let open = async {
            ready(&mut grpc).await?;
            grpc.server_streaming(Request::new(request), method.path(), RawCodec)
                .await
        };
        let response = tokio::time::timeout(stall_timeout, open)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer"))??;
        Ok(AnswerStream {
            messages: response.into_inner(),
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
        let lease = self.inner.channels.lease(lane);
        let mut grpc = grpc(lease.service.clone());
        self.inner
            .stats
            .sent(method, request.iter().map(Bytes::len).sum());
        let call = async {
            ready(&mut grpc).await?;
            grpc.unary(Request::new(request), method.path(), RawCodec).await
        };
        let answer = tokio::time::timeout(self.inner.stall_timeout, call)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer"))??
            .into_inner();
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
        decoded(method, self.ask_raw(method, read_time, request).await?)
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
                    messages.push(message);
                }
                match messages.is_empty() {
                    true => Err(no_answer()),
                    false => Ok(messages),
                }
            };
            match answers.await {
                Ok(messages) => {
                    return messages
                        .into_iter()
                        .map(|message| decoded(method, message))
                        .collect();
                }
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

fn decoded<Answer: Message + Default>(method: Method, answer: Bytes) -> Result<Answer> {
    Answer::decode(answer).map_err(|source| Error::malformed(method, source))
}
