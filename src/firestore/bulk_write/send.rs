//! Delivers a batch: sends it, and parts of it again, until every write in it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prost::Message;
use tonic::{Code, Status};

use super::batch::{Batch, Sealed, SpareBuffers, request_head};
use super::{Mark, OwnedChange, Precondition, WriteFailure, WriteStats};
use crate::document::{DocumentPath, canonical, changed_fields};
use crate::firestore::connect::Lane;
use crate::firestore::retry::{Backoff, is_retryable, is_retryable_code};
use crate::firestore::{Error, Firestore, Method, Result, Throttle};

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
    retries: AtomicU64,
    requests: AtomicU64,
    sent_bytes: AtomicU64,
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
    pub(super) fn new(firestore: Firestore, throttle: Arc<Throttle>, spare: Arc<SpareBuffers>) -> Self {
        Self {
            head: request_head(&firestore.database().resource()),
            root: firestore.inner.root.as_str().into(),
            firestore,
            throttle,
            spare,
            retries: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn root(&self) -> Arc<str> {
        self.root.clone()
    }

    pub(super) fn add_counts(&self, stats: &mut WriteStats) {
        stats.retries += self.retries.load(Relaxed);
        stats.requests += self.requests.load(Relaxed);
        stats.sent_bytes += self.sent_bytes.load(Relaxed);
    }

    /// Sends a batch until each of its writes is written or has failed for good. An error means that there is no
    /// point in going on with any.
    pub(super) async fn deliver(&self, batch: Batch) -> Result<Outcome> {
        let mut outcome = Outcome {
            bytes: batch.byte_len(),
            ..Outcome::default()
        };
        let mut waiting = vec![batch];
        while let Some(batch) = waiting.pop() {
            let sealed = batch.seal();
            let done: Vec<Done> = sealed
                .entries
                .iter()
                .map(|entry| Done {
                    hash: entry.hash,
                    mark: entry.mark,
                })
                .collect();
            match self.deliver_part(sealed, &mut outcome).await? {
                Some((first, second)) => waiting.extend([second, first]),
                None => outcome.done.extend(done),
            }
        }
        Ok(outcome)
    }

    /// Sends writes until they are done, or gives back two halves to send on their own.
    async fn deliver_part(&self, mut part: Sealed, outcome: &mut Outcome) -> Result<Option<(Batch, Batch)>> {
        let policy = self.firestore.inner.retry.clone();
        // Requests that fail as a whole, and writes that fail within answered requests, are counted apart: a bad
        // connection must not use up what a contended document may need.
        let mut unanswered = Backoff::new(policy.clone());
        let mut undone = Backoff::new(policy.clone());
        loop {
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
                        return Ok(None);
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
                        return Ok(Some(part.unseal().halve()));
                    }
                    Refusal::Halve | Refusal::Search => {
                        outcome
                            .failures
                            .push(self.failure(&part, 0, status.code(), status.message()));
                        return Ok(None);
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
            self.throttle.push_back();
            let (backoff, status) = match status {
                Some(status) => (&mut unanswered, status),
                // Never the last attempt: writes that have had theirs are failures by now.
                None => (&mut undone, Status::aborted("some writes are to be tried again")),
            };
            self.firestore
                .wait_or_fail(Method::BatchWrite, None, backoff, status)
                .await?;
        }
    }

    async fn send_once(&self, part: &Sealed) -> Result<Vec<(Code, String)>, Status> {
        self.throttle.acquire(part.entries.len()).await;
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
        for (index, (code, message)) in statuses.into_iter().enumerate() {
            let entry = &part.entries[index];
            match code {
                Code::Ok => outcome.written += 1,
                code if is_retryable_code(code) && entry.attempts < attempts => {
                    part.copy_to(index, &mut again);
                }
                // Its precondition held, perhaps, until the write itself was applied.
                code if entry.in_doubt && entry.precondition != Precondition::None => {
                    let (mark, failure) = self.failure(part, index, code, &message);
                    match self.is_applied(&failure).await? {
                        true => outcome.written += 1,
                        false => outcome.failures.push((mark, failure)),
                    }
                }
                code => outcome.failures.push(self.failure(part, index, code, &message)),
            }
        }
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
