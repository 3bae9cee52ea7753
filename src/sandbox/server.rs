//! The methods of google.firestore.v1.Firestore: requests taken apart, answers put together.

use std::collections::HashSet;

use ::firestore::gcloud_sdk::google::firestore::v1 as proto;
use ::firestore::gcloud_sdk::google::rpc;
use rand::RngExt;
use tonic::{Request, Response, Status};

use super::codec::{Answer, Received};
use super::database::timestamp;
use super::faults::{Rpc, WriteFate};
use super::list::Listing;
use super::messages;
use super::query::{Plan, Walk};
use super::service::{Answers, At, Service, projection};
use super::stream::Source;
use super::transaction;
use super::usage::add;
use super::write::{self, Staging};
use super::{aggregate, list, names, partition};
use crate::document::key as keys;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
mod generated {
    tonic::include_proto!("google.firestore.v1.Firestore");
}
pub(crate) use generated::firestore_server::{Firestore, FirestoreServer};

/// The most documents or ids in a page of a list.
const MAX_PAGE: usize = 300;

fn rpc_status(result: Result<(), Status>) -> rpc::Status {
    match result {
        Ok(()) => rpc::Status::default(),
        Err(status) => rpc::Status {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: Vec::new(),
        },
    }
}

fn page_size(asked: i32, config: usize) -> Result<usize, Status> {
    match asked {
        0 => Ok(config),
        asked => {
            let asked =
                usize::try_from(asked).map_err(|_| Status::invalid_argument("The page size is negative."))?;
            Ok(asked.min(config))
        }
    }
}

#[tonic::async_trait]
impl Firestore for Service {
    type RunQueryStream = Answers;
    type RunAggregationQueryStream = Answers;
    type BatchGetDocumentsStream = Answers;

    async fn run_query(
        &self,
        request: Request<Received<proto::RunQueryRequest>>,
    ) -> Result<Response<Answers>, Status> {
        use proto::run_query_request::QueryType;
        let (request, fate, connection) = self.enter(Rpc::RunQuery, request).await?;
        let (name, parent) = names::parent(&request.parent)?;
        let database = self.database(&name);
        let Some(QueryType::StructuredQuery(query)) = request.query_type else {
            return Err(Status::invalid_argument("A query is missing."));
        };
        let plan = Plan::new(query, &parent, &database.name)?;
        if plan.kindless && self.faults().refuses_kindless() {
            return Err(Status::invalid_argument(
                "kind is required for all orders except __key__ ascending",
            ));
        }
        let at = At::from(request.consistency_selector);
        let (time, transaction) = self.resolve(at, &database, plan.position.clone())?;
        let source = Source::Query(Box::new(Walk::new(plan, database, time)));
        Ok(Response::new(self.pump(source, fate, connection, transaction)))
    }

    async fn run_aggregation_query(
        &self,
        request: Request<Received<proto::RunAggregationQueryRequest>>,
    ) -> Result<Response<Answers>, Status> {
        use proto::run_aggregation_query_request::QueryType;
        use proto::structured_aggregation_query::QueryType as Inner;
        let (request, _, _) = self.enter(Rpc::RunAggregationQuery, request).await?;
        let (name, parent) = names::parent(&request.parent)?;
        let database = self.database(&name);
        let Some(QueryType::StructuredAggregationQuery(query)) = request.query_type else {
            return Err(Status::invalid_argument("A query is missing."));
        };
        let Some(Inner::StructuredQuery(inner)) = query.query_type else {
            return Err(Status::invalid_argument("A query is missing."));
        };
        let plan = Plan::new(inner, &parent, &database.name)?;
        if plan.kindless && self.faults().refuses_kindless() {
            return Err(Status::invalid_argument(
                "kind is required for all orders except __key__ ascending",
            ));
        }
        let at = At::from(request.consistency_selector);
        let (time, transaction) = self.resolve(at, &database, plan.position.clone())?;
        let mut walk = Walk::new(plan, database, time);
        let (aggregate_fields, entries) = aggregate::run(&mut walk, &query.aggregations)?;
        add(&self.counters().reads, entries.div_ceil(1000).max(1));
        let answer = Answer::of(&proto::RunAggregationQueryResponse {
            result: Some(proto::AggregationResult { aggregate_fields }),
            transaction,
            read_time: Some(timestamp(time)),
            explain_metrics: None,
        });
        add(&self.counters().sent_bytes, answer.len() as u64);
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(answer)]))))
    }

    async fn partition_query(
        &self,
        request: Request<Received<proto::PartitionQueryRequest>>,
    ) -> Result<Response<Answer>, Status> {
        use proto::partition_query_request::QueryType;
        let (request, _, _) = self.enter(Rpc::PartitionQuery, request).await?;
        let (name, parent) = names::parent(&request.parent)?;
        let database = self.database(&name);
        let Some(QueryType::StructuredQuery(query)) = request.query_type else {
            return Err(Status::invalid_argument("A query is missing."));
        };
        let group =
            matches!(&query.from[..], [from] if from.all_descendants && !from.collection_id.is_empty());
        let plain = query.r#where.is_none()
            && query.limit.is_none()
            && query.offset == 0
            && query.start_at.is_none()
            && query.end_at.is_none();
        let plan = Plan::new(query, &parent, &database.name)?;
        if !group || !plain || !plan.counts_by_range() || !parent.is_empty() {
            return Err(Status::invalid_argument(
                "A partition query needs the database's root as its parent, one named collection with all descendants, ordered by __name__ ascending, and no filter, limit, offset or cursor.",
            ));
        }
        let count = u64::try_from(request.partition_count)
            .ok()
            .filter(|count| *count > 0);
        let count = count.ok_or_else(|| Status::invalid_argument("partition_count must be positive."))?;
        let at = At::from(request.consistency_selector);
        let (time, _) = self.resolve(at, &database, plan.position.clone())?;
        let cursors = partition::cursors(&database, &plan, time, count);
        add(&self.counters().reads, 1);
        let start: usize = match request.page_token.as_str() {
            "" => 0,
            token => token
                .parse()
                .map_err(|_| Status::invalid_argument("invalid page token"))?,
        };
        let start = start.min(cursors.len());
        let end = (start + page_size(request.page_size, MAX_PAGE)?).min(cursors.len());
        self.answer(&proto::PartitionQueryResponse {
            partitions: cursors[start..end].to_vec(),
            next_page_token: if end < cursors.len() {
                end.to_string()
            } else {
                String::new()
            },
        })
    }

    async fn list_collection_ids(
        &self,
        request: Request<Received<proto::ListCollectionIdsRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let (request, _, _) = self.enter(Rpc::ListCollectionIds, request).await?;
        let (name, parent) = names::parent(&request.parent)?;
        let database = self.database(&name);
        let at = At::from(request.consistency_selector);
        let (time, _) = self.resolve(at, &database, list::range(&parent))?;
        let limit = page_size(request.page_size, MAX_PAGE)?;
        let (collection_ids, next_page_token) =
            list::collection_ids(&database, &parent, time, limit, &request.page_token)?;
        add(&self.counters().reads, 1);
        self.answer(&proto::ListCollectionIdsResponse {
            collection_ids,
            next_page_token,
        })
    }

    async fn list_documents(
        &self,
        request: Request<Received<proto::ListDocumentsRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let (request, _, _) = self.enter(Rpc::ListDocuments, request).await?;
        let (name, parent) = names::parent(&request.parent)?;
        let database = self.database(&name);
        names::check_collection_id(&request.collection_id)?;
        if request.show_missing && !request.order_by.is_empty() {
            return Err(Status::invalid_argument(
                "cannot specify an order when show_missing is true",
            ));
        }
        if !matches!(request.order_by.as_str(), "" | "__name__" | "__name__ asc") {
            return Err(Status::unimplemented(
                "The sandbox lists documents in the order of their names only.",
            ));
        }
        let mut collection = parent;
        collection.extend(keys::key_of(&request.collection_id));
        let at = At::from(request.consistency_selector);
        let (time, _) = self.resolve(at, &database, list::range(&collection))?;
        let listing = Listing {
            collection: &collection,
            name_prefix: &format!("{}/{}/", request.parent, request.collection_id),
            show_missing: request.show_missing,
            projection: &projection(request.mask)?,
        };
        let limit = page_size(request.page_size, MAX_PAGE)?;
        let (documents, next_page_token) =
            list::documents(&database, &listing, time, limit, &request.page_token)?;
        add(&self.counters().reads, documents.len().max(1) as u64);
        add(&self.counters().documents_sent, documents.len() as u64);
        self.answer(&messages::ListDocumentsResponse {
            documents,
            next_page_token,
        })
    }

    async fn get_document(
        &self,
        request: Request<Received<proto::GetDocumentRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let (request, _, _) = self.enter(Rpc::GetDocument, request).await?;
        let database = self.database(&names::database(&request.name)?);
        let key = names::document(&request.name, &database.name)?;
        let at = At::from(request.consistency_selector);
        let (time, _) = self.resolve(at, &database, transaction::one(key.clone()))?;
        add(&self.counters().reads, 1);
        let found = database.get(&key, time);
        let found =
            found.ok_or_else(|| Status::not_found(format!("Document ({}) not found.", request.name)))?;
        add(&self.counters().documents_sent, 1);
        self.document_answer(Some(found.stored()), request.mask)
    }

    async fn create_document(
        &self,
        request: Request<Received<messages::CreateDocumentRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let (request, _, _) = self.enter(Rpc::CreateDocument, request).await?;
        let (name, _) = names::parent(&request.parent)?;
        let database = self.database(&name);
        names::check_collection_id(&request.collection_id)?;
        let id = match request.document_id.as_str() {
            "" => {
                let digit = |_| rand::rng().sample(rand::distr::Alphanumeric) as char;
                (0..20).map(digit).collect()
            }
            id => {
                names::check_document_id(id)?;
                id.to_owned()
            }
        };
        let mut document = request.document.unwrap_or_default();
        document.name = format!("{}/{}/{id}", request.parent, request.collection_id);
        let exists = proto::precondition::ConditionType::Exists(false);
        let write = messages::Write {
            update: Some(document),
            current_document: Some(proto::Precondition {
                condition_type: Some(exists),
            }),
            ..Default::default()
        };
        self.document_answer(self.write_one(&write, &database)?, request.mask)
    }

    async fn update_document(
        &self,
        request: Request<Received<messages::UpdateDocumentRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let (request, _, _) = self.enter(Rpc::UpdateDocument, request).await?;
        let document = request.document.unwrap_or_default();
        let database = self.database(&names::database(&document.name)?);
        let write = messages::Write {
            update: Some(document),
            update_mask: request.update_mask,
            current_document: request.current_document,
            ..Default::default()
        };
        self.document_answer(self.write_one(&write, &database)?, request.mask)
    }

    async fn delete_document(
        &self,
        request: Request<Received<proto::DeleteDocumentRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let (request, _, _) = self.enter(Rpc::DeleteDocument, request).await?;
        let database = self.database(&names::database(&request.name)?);
        let write = messages::Write {
            delete: Some(request.name),
            current_document: request.current_document,
            ..Default::default()
        };
        self.write_one(&write, &database)?;
        self.answer(&())
    }

    async fn batch_get_documents(
        &self,
        request: Request<Received<proto::BatchGetDocumentsRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (request, fate, connection) = self.enter(Rpc::BatchGetDocuments, request).await?;
        let database = self.database(&names::database(&request.database)?);
        let mut seen = HashSet::new();
        let mut keys = Vec::with_capacity(request.documents.len());
        for name in request.documents {
            let key = names::document(&name, &database.name)?;
            if seen.insert(key.clone()) {
                keys.push((name, key));
            }
        }
        let at = At::from(request.consistency_selector);
        let mut ranges = keys.iter().map(|(_, key)| transaction::one(key.clone()));
        let first = ranges.next().unwrap_or_else(|| transaction::one(Vec::new()));
        let in_transaction = match &at {
            At::In(id) => Some(id.clone()),
            _ => None,
        };
        let (time, began) = self.resolve(at, &database, first)?;
        if let Some(id) = in_transaction
            .as_ref()
            .or(Some(&began).filter(|id| !id.is_empty()))
        {
            for range in ranges {
                self.transactions().read(id, &database, range)?;
            }
        }
        let projection = projection(request.mask)?;
        let source = Source::Names {
            database,
            time,
            keys: keys.into_iter(),
            projection,
        };
        Ok(Response::new(self.pump(source, fate, connection, began)))
    }

    async fn batch_write(
        &self,
        request: Request<Received<messages::BatchWriteRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let bytes = request.get_ref().bytes;
        let (request, _, _) = self.enter(Rpc::BatchWrite, request).await?;
        self.faults().check_size(request.writes.len(), bytes)?;
        let database = self.database(&names::database(&request.database)?);
        let writes = write::prepare(&request.writes, &database.name, true)?;
        self.bill_writes(&request.writes);
        let mut answer = proto::BatchWriteResponse::default();
        if self.config().accept_and_discard {
            let now = Some(timestamp(database.read_time()));
            for write in &writes {
                let status = match self.faults().write_fate(write.name()) {
                    WriteFate::Usual => Ok(()),
                    WriteFate::NotDone(status) | WriteFate::Done(status) => Err(status),
                };
                let update_time = status.is_ok().then_some(now).flatten();
                answer.write_results.push(proto::WriteResult {
                    update_time,
                    transform_results: Vec::new(),
                });
                answer.status.push(rpc_status(status));
            }
            return self.answer(&answer);
        }
        let mut commit = database.write();
        let history = self.history();
        for write in writes {
            let one = || {
                let fate = self.faults().write_fate(write.name());
                if let WriteFate::NotDone(status) = fate {
                    return Err(status);
                }
                let mut staging = Staging::new(&mut commit);
                let result = staging.write(write)?;
                staging.apply(history);
                match fate {
                    WriteFate::Done(status) => Err(status),
                    _ => Ok(result),
                }
            };
            let (result, status) = match one() {
                Ok(result) => (result, Ok(())),
                Err(status) => (proto::WriteResult::default(), Err(status)),
            };
            answer.write_results.push(result);
            answer.status.push(rpc_status(status));
        }
        drop(commit);
        self.answer(&answer)
    }

    async fn commit(
        &self,
        request: Request<Received<messages::CommitRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let bytes = request.get_ref().bytes;
        let (request, _, _) = self.enter(Rpc::Commit, request).await?;
        self.faults().check_size(request.writes.len(), bytes)?;
        let database = self.database(&names::database(&request.database)?);
        let writes = write::prepare(&request.writes, &database.name, false)?;
        let transaction = match request.transaction.is_empty() {
            true => None,
            false => Some(
                self.transactions()
                    .take(&request.transaction, &database.name, writes.len())?,
            ),
        };
        self.bill_writes(&request.writes);
        let discard = self.config().accept_and_discard;
        let mut commit = database.write();
        if let Some(transaction) = &transaction {
            transaction.check(&database, commit.state())?;
        }
        let mut staging = Staging::new(&mut commit);
        let mut write_results = Vec::with_capacity(writes.len());
        for write in writes {
            write_results.push(staging.write(write)?);
        }
        let time = staging.time();
        if !discard {
            staging.apply(self.history());
        }
        drop(commit);
        self.answer(&proto::CommitResponse {
            write_results,
            commit_time: Some(timestamp(time)),
        })
    }

    async fn begin_transaction(
        &self,
        request: Request<Received<proto::BeginTransactionRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let (request, _, _) = self.enter(Rpc::BeginTransaction, request).await?;
        let database = self.database(&names::database(&request.database)?);
        let (transaction, _) =
            self.transactions()
                .begin(&database, request.options.as_ref(), self.history())?;
        self.answer(&proto::BeginTransactionResponse { transaction })
    }

    async fn rollback(
        &self,
        request: Request<Received<proto::RollbackRequest>>,
    ) -> Result<Response<Answer>, Status> {
        let (request, _, _) = self.enter(Rpc::Rollback, request).await?;
        names::database(&request.database)?;
        self.transactions().rollback(&request.transaction)?;
        self.answer(&())
    }
}
