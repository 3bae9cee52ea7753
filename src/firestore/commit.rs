//! A few documents at once: read as of one moment, written all or none, on conditions.
//!
//! For what two processes must agree upon, such as who holds a lock. One commit with conditions does what a
//! transaction would that reads first: it applies when everything is as it was read, and else not at all. But
//! it leaves nothing behind that others have to wait for. Servers lock what a transaction reads, and a
//! process that is killed in the middle of one would block the documents for a minute.

use ::firestore::gcloud_sdk::google::firestore::v1 as proto;
use prost::Message;
use proto::batch_get_documents_response::Result as Found;
use proto::precondition::ConditionType;
use proto::write::Operation;
use tonic::Code;

use super::call::encoded;
use super::connect::Lane;
use super::proto::{protobuf_time, timestamp};
use super::retry::Backoff;
use super::{Error, Firestore, Method, Precondition, Result};
use crate::document::{DocumentBatch, DocumentPath, Fields, Timestamp, canonical, wire};

/// A document as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenDocument {
    /// When the server says it was created.
    pub create_time: Timestamp,
    /// When the server says it was last changed.
    pub update_time: Timestamp,
    /// Its fields.
    pub fields: Fields,
}

/// Documents as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The moment, by the server's clock.
    pub read_time: Timestamp,
    /// The documents in the order asked for; `None` where there is none.
    pub documents: Vec<Option<SeenDocument>>,
}

/// A write of a commit.
#[derive(Clone, Debug)]
pub struct CommitWrite {
    /// Which document.
    pub path: DocumentPath,
    /// What it is to be; `None` for nothing.
    pub fields: Option<Fields>,
    /// What it must be for any of the commit to be done.
    pub condition: Precondition,
}

/// What came of a commit.
#[derive(Clone, Debug)]
pub enum Committed {
    /// All was written; when each write was, in their order.
    Done(Vec<Timestamp>),
    /// Nothing was, because a condition does not hold. After a lost answer that may be the commit's own
    /// doing: who reads again must recognise its own work.
    Refused,
}

impl Firestore {
    /// Reads documents as they are now, all as of one moment.
    pub async fn look_at(&self, paths: &[DocumentPath]) -> Result<Seen> {
        let method = Method::BatchGetDocuments;
        let root = &self.inner.root;
        let names: Vec<String> = paths.iter().map(|path| format!("{root}/{path}")).collect();
        let request = proto::BatchGetDocumentsRequest {
            database: self.inner.database.resource(),
            documents: names.clone(),
            ..Default::default()
        };
        let mut backoff = Backoff::new(self.inner.retry.clone());
        loop {
            let asked = self.ask_stream(method, None, &request);
            let answers: Vec<proto::BatchGetDocumentsResponse> = asked.await?;
            self.inner.stats.billed(paths.len() as u64);
            let mut seen = Seen {
                read_time: Timestamp::default(),
                documents: vec![None; paths.len()],
            };
            let mut answered = 0;
            for answer in answers {
                if let Some(time) = &answer.read_time {
                    seen.read_time = timestamp(time);
                }
                match answer.result {
                    Some(Found::Found(document)) => {
                        let at = names.iter().position(|name| *name == document.name);
                        let at =
                            at.ok_or_else(|| Error::malformed(method, "it has what was not asked for"))?;
                        seen.documents[at] = Some(self.seen_document(&document)?);
                        answered += 1;
                    }
                    Some(Found::Missing(_)) => answered += 1,
                    None => {}
                }
            }
            if answered == paths.len() {
                return Ok(seen);
            }
            let status = tonic::Status::unavailable("the answer ended before every name was answered for");
            self.wait_or_fail(method, None, &mut backoff, status).await?;
        }
    }

    fn seen_document(&self, document: &proto::Document) -> Result<SeenDocument> {
        let method = Method::BatchGetDocuments;
        let mut batch = DocumentBatch::new();
        wire::append_document(&document.encode_to_vec(), &self.inner.root, &mut batch)?;
        let document = batch
            .last()
            .ok_or_else(|| Error::malformed(method, "an empty document"))?;
        Ok(SeenDocument {
            create_time: document.create_time,
            update_time: document.update_time,
            fields: canonical::decode(document.body).map_err(|source| Error::malformed(method, source))?,
        })
    }

    /// Writes all or nothing.
    pub async fn commit(&self, writes: &[CommitWrite]) -> Result<Committed> {
        let method = Method::Commit;
        let request = proto::CommitRequest {
            database: self.inner.database.resource(),
            writes: writes
                .iter()
                .map(|write| self.proto_write(write))
                .collect::<Result<_>>()?,
            ..Default::default()
        };
        let request = encoded(&request);
        let mut backoff = Backoff::new(self.inner.retry.clone());
        let answer = loop {
            match self.send(Lane::Call, method, request.clone()).await {
                Ok(answer) => break answer,
                Err(status) if is_refusal(status.code()) => return Ok(Committed::Refused),
                Err(status) => self.wait_or_fail(method, None, &mut backoff, status).await?,
            }
        };
        let answer =
            proto::CommitResponse::decode(answer).map_err(|source| Error::malformed(method, source))?;
        for write in writes {
            self.inner.stats.billed_write(write.fields.is_none());
        }
        let committed = answer.commit_time.unwrap_or_default();
        let times = answer
            .write_results
            .iter()
            .map(|result| timestamp(result.update_time.as_ref().unwrap_or(&committed)));
        Ok(Committed::Done(times.collect()))
    }

    fn proto_write(&self, write: &CommitWrite) -> Result<proto::Write> {
        let (root, path) = (&self.inner.root, &write.path);
        let operation = match &write.fields {
            Some(fields) => {
                let mut bytes = Vec::new();
                wire::append_document_message(path, &canonical::encode(fields), root, &mut bytes)?;
                let document = proto::Document::decode(&*bytes)
                    .map_err(|source| Error::malformed(Method::Commit, source))?;
                Operation::Update(document)
            }
            None => Operation::Delete(format!("{root}/{path}")),
        };
        let condition = match write.condition {
            Precondition::None => None,
            Precondition::MustNotExist => Some(ConditionType::Exists(false)),
            Precondition::MustExist => Some(ConditionType::Exists(true)),
            Precondition::UpdateTime(time) => Some(ConditionType::UpdateTime(protobuf_time(time))),
        };
        Ok(proto::Write {
            current_document: condition.map(|condition| proto::Precondition {
                condition_type: Some(condition),
            }),
            operation: Some(operation),
            ..Default::default()
        })
    }
}

/// Whether a condition does not hold.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition | Code::AlreadyExists | Code::NotFound
    )
}
