//! Documents by name.

use ::firestore::gcloud_sdk::google::firestore::v1::BatchGetDocumentsRequest;
use ::firestore::gcloud_sdk::google::firestore::v1::batch_get_documents_request::ConsistencySelector;
use futures::{StreamExt, TryStreamExt, stream};
use tonic::Status;

use super::call::encoded;
use super::connect::Lane;
use super::proto::protobuf_time;
use super::retry::Backoff;
use super::{Error, Firestore, Method, Result};
use crate::document::{DocumentBatch, DocumentPath, Timestamp, wire};

/// Names in a request. More do not make it faster, and a lost one costs more.
const NAMES_PER_REQUEST: usize = 300;
/// Requests under way at once for one call.
const REQUESTS_AT_ONCE: usize = 4;

/// What a look-up by name found.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// The documents that exist, in the order of names.
    pub found: DocumentBatch,
    /// The names that no document has, in the order of names.
    pub missing: Vec<DocumentPath>,
}

impl Firestore {
    /// Fetches documents by name, as they were at the read time or are now. Every name is answered for: it is
    /// either found or missing, in the order of names whatever the order of `paths`; a name that is given
    /// twice counts once.
    ///
    /// All of it is held in memory, so ask for as much as fits. Each name is billed as a read.
    pub async fn get_documents(
        &self,
        paths: &[DocumentPath],
        read_time: Option<Timestamp>,
    ) -> Result<Fetched> {
        // Ordered by key once: comparing paths makes their keys anew each time.
        let mut wanted: Vec<(Vec<u8>, &DocumentPath)> = paths
            .iter()
            .map(|path| (path.key().as_bytes().to_vec(), path))
            .collect();
        wanted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        wanted.dedup_by(|a, b| a.0 == b.0);
        let requests = wanted
            .chunks(NAMES_PER_REQUEST)
            .map(|names| self.get_some(names, read_time));
        // In order, so the parts follow each other by name.
        let mut parts = stream::iter(requests).buffered(REQUESTS_AT_ONCE).boxed();
        let mut all = match parts.try_next().await? {
            Some(first) => first,
            None => return Ok(Fetched::default()),
        };
        while let Some(part) = parts.try_next().await? {
            for document in part.found.iter() {
                all.found.push(document);
            }
            all.missing.extend(part.missing);
        }
        Ok(all)
    }

    /// One request's worth; `wanted` ascends by key.
    async fn get_some(
        &self,
        wanted: &[(Vec<u8>, &DocumentPath)],
        read_time: Option<Timestamp>,
    ) -> Result<Fetched> {
        let mut answers = Answers {
            found: DocumentBatch::new(),
            slots: vec![Slot::Open; wanted.len()],
        };
        let mut backoff = Backoff::new(self.inner.retry.clone());
        loop {
            let open_before = answers.open();
            if open_before == 0 {
                return Ok(answers.in_order(wanted));
            }
            self.inner.read_rate.names(open_before).await;
            let outcome = self.get_once(wanted, read_time, &mut answers).await?;
            let answered = open_before - answers.open();
            self.inner.stats.billed(answered as u64);
            if answered > 0 {
                self.inner.read_rate.answered(answered as u64, None);
                backoff.progressed();
            }
            match outcome {
                Err(status) => {
                    self.wait_or_fail(Method::BatchGetDocuments, read_time, &mut backoff, status)
                        .await?;
                }
                // Ended with OK and some names are unanswered: the same as a cut stream.
                Ok(()) if answers.open() > 0 => {
                    let status = Status::unavailable("the answer ended before every name was answered for");
                    self.wait_or_fail(Method::BatchGetDocuments, read_time, &mut backoff, status)
                        .await?;
                }
                Ok(()) => {}
            }
        }
    }

    async fn get_once(
        &self,
        wanted: &[(Vec<u8>, &DocumentPath)],
        read_time: Option<Timestamp>,
        answers: &mut Answers,
    ) -> Result<Result<(), Status>> {
        let root = &self.inner.root;
        let request = BatchGetDocumentsRequest {
            database: self.inner.database.resource(),
            documents: wanted
                .iter()
                .zip(&answers.slots)
                .filter(|(_, slot)| matches!(slot, Slot::Open))
                .map(|((_, path), _)| format!("{root}/{path}"))
                .collect(),
            consistency_selector: read_time.map(|time| ConsistencySelector::ReadTime(protobuf_time(time))),
            ..Default::default()
        };
        let opened = self
            .open_stream(Lane::Call, Method::BatchGetDocuments, encoded(&request))
            .await;
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(status) => return Ok(Err(status)),
        };
        loop {
            let message = match stream.next().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(Ok(())),
                Err(status) => return Ok(Err(status)),
            };
            self.inner.stats.received(message.len() as u64);
            let answer = wire::batch_get_answer(message)?;
            if let (Some(asked), Some(answered)) = (read_time, answer.read_time)
                && asked != answered
            {
                return Err(Error::OtherReadTime {
                    method: Method::BatchGetDocuments,
                    asked,
                    answered,
                });
            }
            if let Some(document) = answer.found {
                answers.found(wanted, document, root)?;
            }
            if let Some(name) = answer.missing {
                answers.missing(wanted, name, root)?;
            }
        }
    }
}

/// What has been said about a name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    Open,
    /// Where it is among the found, in the order of arrival.
    Found(usize),
    Missing,
}

struct Answers {
    /// In the order of arrival.
    found: DocumentBatch,
    slots: Vec<Slot>,
}

impl Answers {
    fn open(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| matches!(slot, Slot::Open))
            .count()
    }

    fn found(&mut self, wanted: &[(Vec<u8>, &DocumentPath)], document: &[u8], root: &str) -> Result<()> {
        wire::append_document(document, root, &mut self.found)?;
        let index = self.found.len() - 1;
        let key = self.found.last().map_or(&[][..], |document| document.key);
        let position = position(wanted, key)?;
        self.slots[position] = Slot::Found(index);
        Ok(())
    }

    fn missing(&mut self, wanted: &[(Vec<u8>, &DocumentPath)], name: &str, root: &str) -> Result<()> {
        let path = name
            .strip_prefix(root)
            .and_then(|path| path.strip_prefix('/'))
            .and_then(|path| DocumentPath::parse(path).ok())
            .ok_or_else(|| unasked(name.to_owned()))?;
        let position = position(wanted, path.key().as_bytes())?;
        self.slots[position] = Slot::Missing;
        Ok(())
    }

    fn in_order(self, wanted: &[(Vec<u8>, &DocumentPath)]) -> Fetched {
        let mut result = Fetched::default();
        for ((_, path), slot) in wanted.iter().zip(&self.slots) {
            match slot {
                Slot::Found(index) => {
                    if let Some(document) = self.found.get(*index) {
                        result.found.push(document);
                    }
                }
                Slot::Missing | Slot::Open => result.missing.push((*path).clone()),
            }
        }
        result
    }
}

fn position(wanted: &[(Vec<u8>, &DocumentPath)], key: &[u8]) -> Result<usize> {
    wanted
        .binary_search_by(|(wanted, _)| wanted.as_slice().cmp(key))
        .map_err(|_| match DocumentPath::from_key(key) {
            Ok(path) => unasked(path.to_string()),
            Err(_) => unasked(hex::encode(key)),
        })
}

fn unasked(name: String) -> Error {
    let reason = format!("it has `{name}`, which was not asked for");
    Error::malformed(Method::BatchGetDocuments, reason)
}
