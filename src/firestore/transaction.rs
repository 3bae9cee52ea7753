//! Transactions over a few documents: read them, decide, write, or do it again.
//!
//! For what two processes must agree upon, such as who holds a lock. Servers resolve contention in two ways: one lets the later
//! commit fail, the other lets readers wait and fail. Both say ABORTED, and then the whole transaction is run again.
//!
//! A commit whose answer is lost may have been applied. It is not sent again but decided anew, so a caller must recognise its
//! own work in what it reads.

use ::firestore::gcloud_sdk::google::firestore::v1 as proto;
use prost::Message;
use proto::batch_get_documents_request::ConsistencySelector;
use proto::batch_get_documents_response::Result as Found;
use proto::precondition::ConditionType;
use proto::write::Operation;

use super::call::encoded;
use super::connect::Lane;
use super::retry::Backoff;
use super::scan::protobuf_time;
use super::{Error, Firestore, Method, Result};
use crate::document::{DocumentBatch, DocumentPath, Fields, Timestamp, canonical, wire};

/// A document as a transaction read it.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenDocument {
    /// When the server says it was created.
    pub create_time: Timestamp,
    /// When the server says it was last changed.
    pub update_time: Timestamp,
    /// Its fields.
    pub fields: Fields,
}

/// What a transaction read.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The moment, by the server's clock.
    pub read_time: Timestamp,
    /// The documents in the order asked for; `None` where there is none.
    pub documents: Vec<Option<SeenDocument>>,
}

/// What a transaction writes.
#[derive(Clone, Debug)]
pub enum TransactionWrite {
    /// A whole document.
    Put {
        /// Which one.
        path: DocumentPath,
        /// Its fields.
        fields: Fields,
        /// Only while it was last changed at this moment.
        unchanged_since: Option<Timestamp>,
    },
    /// No document.
    Delete {
        /// Which one.
        path: DocumentPath,
        /// Only while it was last changed at this moment.
        unchanged_since: Option<Timestamp>,
    },
}

/// What came of a transaction.
#[derive(Clone, Debug)]
pub struct Transacted {
    /// What it read.
    pub seen: Seen,
    /// When each of its writes was applied, in their order; empty when it wrote nothing.
    pub update_times: Vec<Timestamp>,
}

impl Firestore {
    /// Reads documents and writes what `decide` makes of them, all as of one moment. `decide` may be called more than once.
    ///
    /// # Errors
    /// What `decide` says, and then nothing is written; [`Error::Unavailable`] when others are in the way for too long.
    pub async fn transact<E: From<Error>>(
        &self,
        paths: &[DocumentPath],
        mut decide: impl FnMut(&Seen) -> Result<Vec<TransactionWrite>, E> + Send,
    ) -> Result<Transacted, E> {
        let mut backoff = Backoff::new(self.inner.retry.clone());
        loop {
            let (seen, transaction) = match self.begin_reading(paths).await? {
                Ok(begun) => begun,
                Err(status) => {
                    self.wait_or_fail(Method::BatchGetDocuments, None, &mut backoff, status)
                        .await?;
                    continue;
                }
            };
            let writes = match decide(&seen) {
                Ok(writes) if !writes.is_empty() => writes,
                nothing => {
                    self.roll_back(transaction).await;
                    return nothing.map(|_| Transacted {
                        seen,
                        update_times: Vec::new(),
                    });
                }
            };
            match self.commit(transaction, &writes).await? {
                Ok(update_times) => return Ok(Transacted { seen, update_times }),
                Err(status) => {
                    self.wait_or_fail(Method::Commit, None, &mut backoff, status)
                        .await?
                }
            }
        }
    }

    async fn begin_reading(&self, paths: &[DocumentPath]) -> Result<Result<(Seen, Vec<u8>), tonic::Status>> {
        let root = &self.inner.root;
        let names: Vec<String> = paths.iter().map(|path| format!("{root}/{path}")).collect();
        let request = proto::BatchGetDocumentsRequest {
            database: self.inner.database.resource(),
            documents: names.clone(),
            consistency_selector: Some(ConsistencySelector::NewTransaction(read_write())),
            ..Default::default()
        };
        let method = Method::BatchGetDocuments;
        let read = async {
            let mut stream = self.open_stream(Lane::Call, method, encoded(&request)).await?;
            let mut answers = Vec::new();
            while let Some(message) = stream.next().await? {
                self.inner.stats.received(message.len() as u64);
                answers.push(message);
            }
            Ok(answers)
        };
        let answers = match read.await {
            Ok(answers) => answers,
            Err(status) => return Ok(Err(status)),
        };
        self.inner.stats.billed(paths.len() as u64);
        let mut seen = Seen {
            read_time: Timestamp::default(),
            documents: vec![None; paths.len()],
        };
        let mut transaction = Vec::new();
        let mut answered = 0;
        for answer in answers {
            let answer = proto::BatchGetDocumentsResponse::decode(answer)
                .map_err(|source| malformed(method, source.to_string()))?;
            if !answer.transaction.is_empty() {
                transaction = answer.transaction;
            }
            if let Some(time) = answer.read_time {
                seen.read_time = timestamp(&time);
            }
            match answer.result {
                Some(Found::Found(document)) => {
                    let at = names.iter().position(|name| *name == document.name);
                    let at = at.ok_or_else(|| malformed(method, "a document that was not asked for"))?;
                    seen.documents[at] = Some(self.seen_document(&document)?);
                    answered += 1;
                }
                Some(Found::Missing(_)) => answered += 1,
                None => {}
            }
        }
        if answered < paths.len() || transaction.is_empty() {
            let status = tonic::Status::unavailable("the answer ended before every name was answered for");
            return Ok(Err(status));
        }
        Ok(Ok((seen, transaction)))
    }

    fn seen_document(&self, document: &proto::Document) -> Result<SeenDocument> {
        let mut batch = DocumentBatch::new();
        wire::append_document(&document.encode_to_vec(), &self.inner.root, &mut batch)?;
        let document = batch
            .last()
            .ok_or_else(|| malformed(Method::BatchGetDocuments, "an empty document"))?;
        Ok(SeenDocument {
            create_time: document.create_time,
            update_time: document.update_time,
            fields: canonical::decode(document.body)
                .map_err(|source| malformed(Method::BatchGetDocuments, source.to_string()))?,
        })
    }

    async fn commit(
        &self,
        transaction: Vec<u8>,
        writes: &[TransactionWrite],
    ) -> Result<Result<Vec<Timestamp>, tonic::Status>> {
        let request = proto::CommitRequest {
            database: self.inner.database.resource(),
            writes: writes
                .iter()
                .map(|write| self.proto_write(write))
                .collect::<Result<_>>()?,
            transaction,
            ..Default::default()
        };
        let answer = match self.send(Lane::Call, Method::Commit, encoded(&request)).await {
            Ok(answer) => answer,
            // The transaction is over, one way or the other: what became of it shows when it is read again.
            Err(status) if is_over(&status) => {
                return Ok(Err(tonic::Status::aborted(status.message().to_owned())));
            }
            Err(status) => return Ok(Err(status)),
        };
        let answer = proto::CommitResponse::decode(answer)
            .map_err(|source| malformed(Method::Commit, source.to_string()))?;
        let committed = answer.commit_time.unwrap_or_default();
        Ok(Ok(answer
            .write_results
            .iter()
            .map(|result| timestamp(result.update_time.as_ref().unwrap_or(&committed)))
            .collect()))
    }

    fn proto_write(&self, write: &TransactionWrite) -> Result<proto::Write> {
        let root = &self.inner.root;
        let (operation, unchanged_since) = match write {
            TransactionWrite::Put {
                path,
                fields,
                unchanged_since,
            } => {
                let mut bytes = Vec::new();
                wire::append_document_message(path, &canonical::encode(fields), root, &mut bytes)?;
                let document = proto::Document::decode(&*bytes)
                    .map_err(|source| malformed(Method::Commit, source.to_string()))?;
                (Operation::Update(document), unchanged_since)
            }
            TransactionWrite::Delete {
                path,
                unchanged_since,
            } => (Operation::Delete(format!("{root}/{path}")), unchanged_since),
        };
        Ok(proto::Write {
            current_document: unchanged_since.map(|time| proto::Precondition {
                condition_type: Some(ConditionType::UpdateTime(protobuf_time(time))),
            }),
            operation: Some(operation),
            ..Default::default()
        })
    }

    /// Ends a transaction without writes. One that the server does not hear of ends by itself.
    async fn roll_back(&self, transaction: Vec<u8>) {
        let request = proto::RollbackRequest {
            database: self.inner.database.resource(),
            transaction,
            ..Default::default()
        };
        let answer = self.send(Lane::Call, Method::Rollback, encoded(&request)).await;
        if let Err(status) = answer {
            tracing::debug!(message = status.message(), "a transaction was not rolled back");
        }
    }
}

/// Must be said: a transaction that begins with a read is read-only by default.
fn read_write() -> proto::TransactionOptions {
    proto::TransactionOptions {
        mode: Some(proto::transaction_options::Mode::ReadWrite(Default::default())),
    }
}

/// Whether the server no longer knows the transaction, or the documents have changed since it read them.
fn is_over(status: &tonic::Status) -> bool {
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::NotFound | tonic::Code::AlreadyExists => true,
        tonic::Code::InvalidArgument => status.message().to_ascii_lowercase().contains("transaction"),
        _ => false,
    }
}

fn timestamp(time: &::firestore::gcloud_sdk::prost_types::Timestamp) -> Timestamp {
    Timestamp::new(time.seconds, u32::try_from(time.nanos).unwrap_or(0))
}

fn malformed(method: Method, reason: impl Into<String>) -> Error {
    Error::Malformed {
        method,
        reason: reason.into(),
    }
}
