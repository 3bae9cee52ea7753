//! What the methods have in common: databases, counting, faults, the time of a read, streams.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock};

use ::firestore::gcloud_sdk::google::firestore::v1 as proto;
use ::firestore::gcloud_sdk::prost_types::Timestamp;
use futures::Stream;
use tonic::{Request, Response, Status};

use super::SandboxConfig;
use super::admin::Administration;
use super::codec::{Answer, Received};
use super::connections::ConnectionId;
use super::database::{Clock, Database, Micros, Position, Stored, micros};
use super::faults::{Faults, Rpc, StreamFate};
use super::messages;
use super::query::Projection;
use super::stream::{Pump, Source};
use super::synthetic::Synthetic;
use super::transaction::Transactions;
use super::usage::{Counters, add};
use super::write::{Prepared, Staging};
use crate::document::DatabaseName;

/// The stream that a method answers with.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<Answer, Status>> + Send>>;

/// What all calls share. Clones are the same server.
#[derive(Clone, Debug)]
pub(crate) struct Service(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: SandboxConfig,
    administration: RwLock<Administration>,
    clock: Arc<Clock>,
    databases: Mutex<BTreeMap<(String, String), Arc<Database>>>,
    transactions: Transactions,
    counters: Counters,
    faults: Faults,
}

/// When a read happens.
pub(crate) enum At {
    Now,
    Time(Timestamp),
    In(Vec<u8>),
    New(proto::TransactionOptions),
}

/// Every request has a type of its own for the same choice.
macro_rules! consistency_selectors {
    ($($request:ident { $($variant:ident => $at:ident),* })*) => {$(
        impl From<Option<proto::$request::ConsistencySelector>> for At {
            fn from(selector: Option<proto::$request::ConsistencySelector>) -> Self {
                match selector {
                    None => At::Now,
                    $(Some(proto::$request::ConsistencySelector::$variant(value)) => At::$at(value),)*
                }
            }
        }
    )*};
}

consistency_selectors! {
    run_query_request { Transaction => In, NewTransaction => New, ReadTime => Time }
    run_aggregation_query_request { Transaction => In, NewTransaction => New, ReadTime => Time }
    batch_get_documents_request { Transaction => In, NewTransaction => New, ReadTime => Time }
    get_document_request { Transaction => In, ReadTime => Time }
    list_documents_request { Transaction => In, ReadTime => Time }
    list_collection_ids_request { ReadTime => Time }
    partition_query_request { ReadTime => Time }
}

impl Service {
    pub(crate) fn new(config: SandboxConfig, faults: Faults) -> Self {
        Self(Arc::new(Shared {
            administration: RwLock::new(config.administration.clone()),
            config,
            clock: Arc::default(),
            databases: Mutex::default(),
            transactions: Transactions::default(),
            counters: Counters::default(),
            faults,
        }))
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.0.faults
    }

    pub(crate) fn database(&self, name: &DatabaseName) -> Arc<Database> {
        let mut databases = self
            .0
            .databases
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let key = (name.project.clone(), name.database.clone());
        databases
            .entry(key)
            .or_insert_with(|| {
                let specs = self.0.config.synthetic.iter();
                let specs =
                    specs.filter(|spec| spec.database.as_ref().is_none_or(|database| database == name));
                let synthetic = specs
                    .map(|spec| Arc::new(Synthetic::new(spec.clone(), &name.root())))
                    .collect();
                Arc::new(Database::new(name.clone(), self.0.clock.clone(), synthetic))
            })
            .clone()
    }

    pub(crate) fn config(&self) -> &SandboxConfig {
        &self.0.config
    }

    pub(crate) fn administration(&self) -> Administration {
        let administration = self.0.administration.read();
        administration
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    pub(crate) fn administer(&self, administration: Administration) {
        let held = self.0.administration.write();
        *held.unwrap_or_else(|poisoned| poisoned.into_inner()) = administration;
    }

    pub(crate) fn transactions(&self) -> &Transactions {
        &self.0.transactions
    }

    pub(crate) fn history(&self) -> Micros {
        self.faults().history(self.0.config.history)
    }

    /// Counts a request and lets it suffer what the faults say.
    pub(crate) async fn enter<T>(
        &self,
        rpc: Rpc,
        request: Request<Received<T>>,
    ) -> Result<(T, StreamFate, ConnectionId), Status> {
        let connection = request
            .extensions()
            .get::<ConnectionId>()
            .copied()
            .unwrap_or_default();
        let received = request.into_inner();
        self.counters().request(rpc, received.bytes);
        let fate = self.faults().admit(rpc).await?;
        if received.bytes > self.0.config.max_request_bytes {
            return Err(Status::invalid_argument(format!(
                "Request payload size exceeds the limit: {} bytes.",
                self.0.config.max_request_bytes
            )));
        }
        Ok((received.message, fate, connection))
    }

    pub(crate) fn answer(&self, message: &impl prost::Message) -> Result<Response<Answer>, Status> {
        self.reply(Answer::of(message))
    }

    pub(crate) fn reply(&self, answer: Answer) -> Result<Response<Answer>, Status> {
        add(&self.counters().sent_bytes, answer.len() as u64);
        Ok(Response::new(answer))
    }

    /// The time of a read of `range`, and the transaction that began with it.
    pub(crate) fn resolve(
        &self,
        at: At,
        database: &Database,
        range: Position,
    ) -> Result<(Micros, Vec<u8>), Status> {
        match at {
            At::Now => Ok((database.read_time(), Vec::new())),
            At::Time(time) => {
                let time = micros(&time);
                database.check_read_time(time, self.history())?;
                Ok((time, Vec::new()))
            }
            At::In(id) => Ok((self.0.transactions.read(&id, database, range)?, Vec::new())),
            At::New(options) => {
                let (id, time) = self
                    .0
                    .transactions
                    .begin(database, Some(&options), self.history())?;
                self.0.transactions.read(&id, database, range)?;
                Ok((time, id))
            }
        }
    }

    pub(crate) fn pump(
        &self,
        source: Source,
        fate: StreamFate,
        connection: ConnectionId,
        transaction: Vec<u8>,
    ) -> Answers {
        let pump = Pump {
            service: self.clone(),
            source,
            fate,
            connection,
            transaction,
            sent: 0,
            skipped_told: false,
            held: None,
            done: false,
            reset: false,
        };
        Box::pin(pump.stream())
    }

    /// Does one write and returns what became of the document.
    pub(crate) fn write_one(
        &self,
        write: &messages::Write,
        database: &Database,
    ) -> Result<Option<Stored>, Status> {
        let prepared = Prepared::new(write, &database.name)?;
        let key = prepared.key().to_vec();
        self.bill_writes(std::slice::from_ref(write));
        let mut commit = database.write();
        let mut staging = Staging::new(&mut commit);
        staging.write(prepared)?;
        staging.apply(self.history());
        Ok(commit.get(&key))
    }

    pub(crate) fn bill_writes(&self, writes: &[messages::Write]) {
        let deletes = writes.iter().filter(|write| write.delete.is_some()).count() as u64;
        add(&self.counters().deletes, deletes);
        add(&self.counters().writes, writes.len() as u64 - deletes);
    }

    pub(crate) fn document_answer(
        &self,
        document: Option<Stored>,
        mask: Option<proto::DocumentMask>,
    ) -> Result<Response<Answer>, Status> {
        let document = document.ok_or_else(|| Status::internal("The document is gone."))?;
        self.reply(Answer::Message(projection(mask)?.apply(&document)))
    }
}

/// What a mask lets through; everything where there is none.
pub(crate) fn projection(mask: Option<proto::DocumentMask>) -> Result<Projection, Status> {
    mask.map_or(Ok(Projection::Whole), |mask| {
        Projection::of_paths(&mask.field_paths)
    })
}
