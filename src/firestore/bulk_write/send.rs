//! Delivers a batch: sends it, and parts of it again, until every write in it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::batch::{Batch, Sealed, SpareBuffers, request_head};
use super::{Mark, OwnedChange, Precondition, WriteFailure, WriteFence, WriteStats};
use crate::document::{DocumentPath, canonical, changed_fields};
use crate::firestore::connect::Lane;
use crate::firestore::retry::{Backoff, is_retryable, is_retryable_code};
use crate::firestore::{Error, Firestore, Method, Result, Throttle};
use crate::progress::Pace;
use crate::stop::Stop;

/// `BatchWriteResponse` without the times of the writes, which nobody asks for.
#[derive(Clone, PartialEq, prost::Message)]
struct Statuses {
    #[prost(message, repeated, tag = "2")]
    status: Vec<WriteStatus>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
struct WriteStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The batch's bytes, which are no longer under way.
    pub(super) bytes: usize,
    pub(super) done: Vec<Done>,
    pub(super) written: u64,
    pub(super) failures: Vec<(Option<Mark>, WriteFailure)>,
}

/// A write that is done, well or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// Of its path.
    pub(super) hash: u64,
    pub(super) mark: Option<Mark>,
}

/// Sends batches to a database.
pub(super) struct Sender {
    firestore: Firestore,
    throttle: Arc<Throttle>,
    head: bytes::Bytes,
    root: Arc<str>,
    spare: Arc<SpareBuffers>,
    /// Asks to send nothing more.
    stop: Stop,
    /// The right to write, where it can be lost.
    fence: Option<Arc<dyn WriteFence>>,
    retries: AtomicU64,
    /// Writes that are done, well or not.
    settled: AtomicU64,
    requests: AtomicU64,
    sent_bytes: AtomicU64,
}

/// What became of a part of a batch.
enum Delivered {
    /// Each of its writes is done.
    Done,
    /// It was too much, or one of its writes is to blame: to be sent as two.
    Halves(Batch, Batch),
    /// Nothing more is to be sent, and some of it was not.
    Stopped,
}

/// What a refused request asks for.
enum Refusal {
    /// The same again, later.
    Retry,
    /// Smaller requests, at once.
    Halve,
    /// A search for the write that is to blame: it is refused alone, the others are not.
    Search,
    /// Giving up.
    Stop,
}

impl Sender {
    /// How the writing goes, and the reading on the same connection.
    pub(super) fn pace(&self) -> Pace {
        Pace {
            limit: self.throttle.current_rate(),
            retries: self.retries.load(Relaxed) + self.firestore.stats().counts().retries,
            settled: self.settled.load(Relaxed),
        }
    }

    pub(super) fn new(
        firestore: Firestore,
        throttle: Arc<Throttle>,
        spare: Arc<SpareBuffers>,
        fence: Option<Arc<dyn WriteFence>>,
    ) -> Self {
        Self {
            fence,
            head: request_head(&firestore.database().resource()),
            root: firestore.inner.root.as_str().into(),
            firestore,
            throttle,
            spare,
            stop: Stop::default(),
            retries: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn root(&self) -> Arc<str> {
        self.root.clone()
    }

    /// From now on nothing more is sent: what is not yet, is not done.
    pub(super) fn stop(&self) {
        self.stop.request();
    }

    /// Waits until nothing more is to be sent.
    async fn stopped(&self) {
        match &self.fence {
            None => self.stop.requested().await,
            Some(fence) => tokio::select! {
                () = self.stop.requested() => {}
                () = fence.lost().requested() => {}
            },
        }
    }

    /// Whether a request may be sent now.
    async fn may_send(&self) -> Result<bool> {
        match &self.fence {
            None => Ok(true),
            Some(fence) => fence.may_write().await,
        }
    }

    pub(super) fn add_counts(&self, stats: &mut WriteStats) {
        stats.retries += self.retries.load(Relaxed);
        stats.requests += self.requests.load(Relaxed);
        stats.sent_bytes += self.sent_bytes.load(Relaxed);
    }

    /// Sends a batch until each of its writes is written or has failed for good, or nothing more is to be sent. An error means
    /// that there is no point in going on with any.
    ///
    /// The batch's place in time is taken at the call, so that batches are sent in the order in which they are given.
    pub(super) fn deliver(
        self: Arc<Self>,
        batch: Batch,
    ) -> impl Future<Output = Result<Outcome>> + Send + 'static {
        let wait = self.throttle.reserve(batch.len());
        async move {
            tokio::select! {
                biased;
                () = self.stopped() => return Ok(Outcome::default()),
                () = self.throttle.wait(wait) => {}
            }
            self.deliver_in_time(batch).await
        }
    }

    async fn deliver_in_time(&self, batch: Batch) -> Result<Outcome> {
        let mut outcome = Outcome {
            bytes: batch.byte_len(),
            ..Outcome::default()
        };
        // Each write's first place in time is taken.
        let mut paid = batch.len();
        let mut waiting = vec![batch];
        while let Some(mut batch) = waiting.pop() {
            let most = self.throttle.request_writes();
            if batch.len() > most {
                waiting.push(batch.split_off(most));
            }
            let sealed = batch.seal();
            let done: Vec<Done> = sealed
                .entries
                .iter()
                .map(|entry| Done {
                    hash: entry.hash,
                    mark: entry.mark,
                })
                .collect();
            match self.deliver_part(sealed, &mut paid, &mut outcome).await? {
                Delivered::Done => outcome.done.extend(done),
                Delivered::Halves(first, second) => waiting.extend([second, first]),
                Delivered::Stopped => break,
            }
        }
        Ok(outcome)
    }

    /// Sends writes until they are done, or gives back two halves to send on their own.
    async fn deliver_part(
        &self,
        mut part: Sealed,
        paid: &mut usize,
        outcome: &mut Outcome,
    ) -> Result<Delivered> {
        let policy = self.firestore.inner.retry.clone();
        // Requests that fail as a whole, and writes that fail within answered requests, are counted apart: a bad
        // connection must not use up what a contended document may need.
        let mut unanswered = Backoff::new(policy.clone());
        let mut undone = Backoff::new(policy.clone());
        loop {
            let owed = part.entries.len().saturating_sub(*paid);
            *paid = paid.saturating_sub(part.entries.len());
            tokio::select! {
                biased;
                () = self.stopped() => return Ok(Delivered::Stopped),
                () = self.throttle.acquire(owed) => {}
            }
            if !self.may_send().await? {
                self.stop();
                return Ok(Delivered::Stopped);
            }
            let status = match self.send_once(&part).await {
                Ok(statuses) => {
                    unanswered.progressed();
                    for entry in &mut part.entries {
                        entry.attempts += 1;
                    }
                    let again = self
                        .take_statuses(&part, statuses, policy.attempts, outcome)
                        .await?;
                    if again.is_empty() {
                        self.spare.give(part.bytes);
                        return Ok(Delivered::Done);
                    }
                    if again.len() < part.entries.len() {
                        undone.progressed();
                    }
                    part = again.seal();
                    None
                }
                Err(status) => match refusal(&status) {
                    Refusal::Retry => {
                        for entry in &mut part.entries {
                            entry.in_doubt = true;
                        }
                        Some(status)
                    }
                    Refusal::Halve | Refusal::Search if part.entries.len() > 1 => {
                        tracing::debug!(
                            writes = part.entries.len(),
                            message = status.message(),
                            "halving a request"
                        );
                        let (first, second) = part.unseal().halve();
                        return Ok(Delivered::Halves(first, second));
                    }
                    Refusal::Halve | Refusal::Search => {
                        outcome
                            .failures
                            .push(self.failure(&part, 0, status.code(), status.message()));
                        return Ok(Delivered::Done);
                    }
                    Refusal::Stop => {
                        return Err(Error::from_status(
                            self.firestore.database(),
                            Method::BatchWrite,
                            None,
                            1,
                            status,
                        ));
                    }
                },
            };
            self.retries.fetch_add(part.entries.len() as u64, Relaxed);
            let (backoff, status) = match status {
                Some(status) => (&mut unanswered, status),
                // Never the last attempt: writes that have had theirs are failures by now.
                None => (&mut undone, Status::aborted("some writes are to be tried again")),
            };
            tokio::select! {
                biased;
                () = self.stopped() => return Ok(Delivered::Stopped),
                waited = self.firestore.wait_or_fail(Method::BatchWrite, None, backoff, status) => waited?,
            }
        }
    }

    async fn send_once(&self, part: &Sealed) -> Result<Vec<(Code, String)>, Status> {
        let sent_at = Instant::now();
        let answer = self.send_request(part).await;
        let writes = part.entries.len();
        match &answer {
            Ok(statuses) => {
                let refused = statuses.iter().filter(|(code, _)| is_push_back(*code)).count();
                self.throttle.answered(writes, refused, sent_at.elapsed());
            }
            Err(status) if is_retryable(status) => {
                self.throttle.answered(writes, writes, sent_at.elapsed());
            }
            Err(_) => {}
        }
        answer
    }

    async fn send_request(&self, part: &Sealed) -> Result<Vec<(Code, String)>, Status> {
        self.requests.fetch_add(1, Relaxed);
        self.sent_bytes
            .fetch_add((self.head.len() + part.bytes.len()) as u64, Relaxed);
        let request = [self.head.clone(), part.bytes.clone()];
        let answer = self
            .firestore
            .send(Lane::Write, Method::BatchWrite, request)
            .await?;
        let answer = Statuses::decode(answer)
            .map_err(|error| Status::data_loss(format!("the answer cannot be decoded: {error}")))?;
        if answer.status.len() != part.entries.len() {
            // Which write is meant by which answer cannot be told, and all may be applied.
            return Err(Status::internal(format!(
                "{} answers came for {} writes",
                answer.status.len(),
                part.entries.len()
            )));
        }
        Ok(answer
            .status
            .into_iter()
            .map(|status| (Code::from_i32(status.code), status.message))
            .collect())
    }

    /// Books the answers, and collects the writes that are to be sent again.
    async fn take_statuses(
        &self,
        part: &Sealed,
        statuses: Vec<(Code, String)>,
        attempts: u32,
        outcome: &mut Outcome,
    ) -> Result<Batch> {
        let mut again = Batch::default();
        let sent = statuses.len();
        for (index, (code, message)) in statuses.into_iter().enumerate() {
            let entry = &part.entries[index];
            if code == Code::Ok || is_of_condition(code) {
                self.firestore.stats().billed_write(entry.deletes());
            }
            match code {
                Code::Ok => outcome.written += 1,
                code if is_retryable_code(code) && entry.attempts < attempts => {
                    part.copy_to(index, &mut again);
                    again.doubt_last(leaves_in_doubt(code));
                }
                // Its precondition held, perhaps, until the write itself was applied.
                code if (entry.in_doubt || leaves_in_doubt(code))
                    && entry.precondition != Precondition::None =>
                {
                    let (mark, failure) = self.failure(part, index, code, &message);
                    match self.is_applied(&failure).await? {
                        true => outcome.written += 1,
                        false => outcome.failures.push((mark, failure)),
                    }
                }
                code => outcome.failures.push(self.failure(part, index, code, &message)),
            }
        }
        let settled = sent - again.len();
        self.settled.fetch_add(settled as u64, Relaxed);
        Ok(again)
    }

    /// Whether the database is as the write was to leave it: then it was this write that an answer was lost for.
    async fn is_applied(&self, failure: &WriteFailure) -> Result<bool> {
        let stored = self
            .firestore
            .get_documents(std::slice::from_ref(&failure.path), None)
            .await?;
        let stored = stored.found.last().map(|document| document.body);
        Ok(match &failure.change {
            OwnedChange::Put { body } => stored == Some(body),
            OwnedChange::Patch { body, mask } => stored.is_some_and(|stored| has_fields(stored, body, mask)),
            OwnedChange::Delete => stored.is_none(),
        })
    }

    fn failure(&self, part: &Sealed, index: usize, code: Code, reason: &str) -> (Option<Mark>, WriteFailure) {
        let entry = &part.entries[index];
        let (path, change, reason) = match part.read_back(index, &self.root) {
            Ok((path, change)) => (path, change, reason.to_owned()),
            // What this writer has encoded itself reads back. If it ever does not, the failure still counts.
            Err(unreadable) => (
                unreadable_path(),
                OwnedChange::Delete,
                format!("{reason} (and the write cannot be shown: {unreadable})"),
            ),
        };
        let failure = WriteFailure {
            path,
            code,
            reason,
            change,
            precondition: entry.precondition,
        };
        (entry.mark, failure)
    }
}

#[expect(clippy::expect_used, reason = "a constant")]
fn unreadable_path() -> DocumentPath {
    DocumentPath::parse("unknown/unknown").expect("two segments")
}

/// Whether a write's status says that the database has too much to do.
fn is_push_back(code: Code) -> bool {
    is_retryable_code(code)
}

/// Whether a write with this status may have been applied. ABORTED and RESOURCE_EXHAUSTED say that it was not.
fn leaves_in_doubt(code: Code) -> bool {
    is_retryable_code(code) && !matches!(code, Code::Aborted | Code::ResourceExhausted)
}

/// Whether a write's condition did not hold. It is billed all the same.
fn is_of_condition(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition | Code::AlreadyExists | Code::NotFound
    )
}

fn refusal(status: &Status) -> Refusal {
    let message = status.message().to_ascii_lowercase();
    let too_large = [
        "too large",
        "too big",
        "exceeds maximum size",
        "larger than max",
        "maximum allowed size",
    ]
    .iter()
    .any(|words| message.contains(words));
    match status.code() {
        Code::ResourceExhausted | Code::InvalidArgument | Code::OutOfRange if too_large => Refusal::Halve,
        Code::InvalidArgument | Code::OutOfRange | Code::AlreadyExists | Code::DataLoss => Refusal::Search,
        _ if is_retryable(status) => Refusal::Retry,
        _ => Refusal::Stop,
    }
}

/// Whether the fields that a mask names are the same in two bodies.
fn has_fields(stored: &[u8], body: &[u8], mask: &[String]) -> bool {
    let (Ok(stored), Ok(body)) = (canonical::decode(stored), canonical::decode(body)) else {
        return false;
    };
    let below = |path: &str, above: &str| {
        path.strip_prefix(above)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    changed_fields(&stored, &body).iter().all(|change| {
        let changed = change.path.to_string();
        !mask
            .iter()
            .any(|path| below(&changed, path) || below(path, &changed))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::typed_json::fields_from_str;

    #[test]
    fn a_patch_is_applied_when_its_fields_are_there() {
        let body = |json: &str| canonical::encode(&fields_from_str(json).unwrap());
        let stored = body(r#"{"a": {"b": 1, "c": 2}, "d": 3}"#);
        let holds = |wanted: &str, mask: &[&str]| {
            let mask: Vec<String> = mask.iter().map(ToString::to_string).collect();
            has_fields(&stored, &body(wanted), &mask)
        };
        assert!(holds(r#"{"a": {"b": 1}}"#, &["a.b"]));
        assert!(holds(r#"{"a": {"b": 1}}"#, &["a.b", "gone"]));
        assert!(!holds(r#"{"a": {"b": 1}}"#, &["a"]));
        assert!(!holds(r#"{"a": {"b": 2}}"#, &["a.b"]));
        assert!(!holds("{}", &["d"]));
        assert!(!holds(r#"{"d": {"e": 1}}"#, &["d.e"]));
    }
}
