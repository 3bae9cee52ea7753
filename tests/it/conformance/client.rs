//! A thin client of the raw protocol, with what checks need to be short.

use firestore::gcloud_sdk::google::firestore::v1::firestore_client::FirestoreClient;
use firestore::gcloud_sdk::google::firestore::v1::structured_aggregation_query::{Aggregation, aggregation};
use firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    CollectionSelector, Direction, FieldReference, Order, Projection,
};
use firestore::gcloud_sdk::google::firestore::v1::*;
use firestore::gcloud_sdk::google::r#type::LatLng;
use firestore::gcloud_sdk::prost_types::Timestamp;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Signs requests as the emulator's administrator, without which it refuses some methods.
#[derive(Clone)]
pub(crate) struct Owner;

impl Interceptor for Owner {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", MetadataValue::from_static("Bearer owner"));
        Ok(request)
    }
}

/// A server under test, with a database of the check's own.
pub(crate) struct Server {
    client: FirestoreClient<InterceptedService<Channel, Owner>>,
    pub(crate) project: String,
    /// `projects/…/databases/…`.
    pub(crate) database: String,
}

impl Server {
    pub(crate) async fn connect(address: &str, test: &str) -> Self {
        let channel = Channel::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let client = FirestoreClient::with_interceptor(channel, Owner).max_decoding_message_size(64 << 20);
        let project = super::support::project(&test[..test.len().min(12)].replace('_', "-"));
        let database = format!("projects/{project}/databases/(default)");
        Self {
            client,
            project,
            database,
        }
    }

    /// The same server, another database.
    pub(crate) fn with_database(&self, database: &str) -> Self {
        Self {
            client: self.client.clone(),
            project: self.project.clone(),
            database: format!("projects/{}/databases/{database}", self.project),
        }
    }

    /// The same server, a database of another project that no other test has.
    pub(crate) fn with_new_project(&self, database: &str) -> Self {
        let project = super::support::project("other");
        Self {
            client: self.client.clone(),
            database: format!("projects/{project}/databases/{database}"),
            project,
        }
    }

    pub(crate) fn client(&self) -> FirestoreClient<InterceptedService<Channel, Owner>> {
        self.client.clone()
    }

    pub(crate) fn root(&self) -> String {
        format!("{}/documents", self.database)
    }

    /// The full name of a path.
    pub(crate) fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.root())
    }

    /// The path of a full name.
    pub(crate) fn path(&self, name: &str) -> String {
        name.strip_prefix(&format!("{}/", self.root()))
            .unwrap_or(name)
            .to_owned()
    }

    /// Writes small documents.
    pub(crate) async fn put_all(&self, paths: &[&str]) -> Vec<Timestamp> {
        let writes = paths
            .iter()
            .map(|path| self.set(path, &[("path", text(path))]))
            .collect();
        self.batch(writes)
            .await
            .into_iter()
            .map(|result| result.unwrap().update_time.unwrap())
            .collect()
    }

    /// Writes a document and returns its update time.
    pub(crate) async fn put(&self, path: &str, fields: &[(&str, Value)]) -> Timestamp {
        let results = self.batch(vec![self.set(path, fields)]).await;
        results.into_iter().next().unwrap().unwrap().update_time.unwrap()
    }

    pub(crate) async fn delete(&self, path: &str) {
        let results = self.batch(vec![self.deletion(path)]).await;
        results.into_iter().for_each(|result| {
            result.unwrap();
        });
    }

    /// The write that sets a document.
    pub(crate) fn set(&self, path: &str, fields: &[(&str, Value)]) -> Write {
        Write {
            operation: Some(write::Operation::Update(self.document(path, fields))),
            ..Default::default()
        }
    }

    pub(crate) fn document(&self, path: &str, fields: &[(&str, Value)]) -> Document {
        Document {
            name: self.name(path),
            fields: fields
                .iter()
                .map(|(name, value)| (name.to_string(), value.clone()))
                .collect(),
            ..Default::default()
        }
    }

    pub(crate) fn deletion(&self, path: &str) -> Write {
        Write {
            operation: Some(write::Operation::Delete(self.name(path))),
            ..Default::default()
        }
    }

    /// A BatchWrite, a result for each write.
    pub(crate) async fn batch(&self, writes: Vec<Write>) -> Vec<Result<WriteResult, i32>> {
        self.try_batch(writes).await.unwrap()
    }

    pub(crate) async fn try_batch(
        &self,
        writes: Vec<Write>,
    ) -> Result<Vec<Result<WriteResult, i32>>, Status> {
        let request = BatchWriteRequest {
            database: self.database.clone(),
            writes,
            ..Default::default()
        };
        let answer = self.client().batch_write(request).await?.into_inner();
        assert_eq!(answer.write_results.len(), answer.status.len());
        let results = answer.write_results.into_iter().zip(answer.status);
        Ok(results
            .map(|(result, status)| {
                if status.code == 0 {
                    Ok(result)
                } else {
                    Err(status.code)
                }
            })
            .collect())
    }

    pub(crate) async fn commit(&self, writes: Vec<Write>) -> Result<CommitResponse, Status> {
        let request = CommitRequest {
            database: self.database.clone(),
            writes,
            ..Default::default()
        };
        Ok(self.client().commit(request).await?.into_inner())
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Document, Status> {
        let request = GetDocumentRequest {
            name: self.name(path),
            ..Default::default()
        };
        Ok(self.client().get_document(request).await?.into_inner())
    }

    /// The documents that a query below the root finds.
    pub(crate) async fn run(&self, query: StructuredQuery) -> Result<Vec<Document>, Status> {
        self.run_at(&self.root(), query, None).await
    }

    pub(crate) async fn run_at(
        &self,
        parent: &str,
        query: StructuredQuery,
        read_time: Option<Timestamp>,
    ) -> Result<Vec<Document>, Status> {
        let answers = self.answers(parent, query, read_time).await?;
        Ok(answers.into_iter().filter_map(|answer| answer.document).collect())
    }

    /// All messages that answer a query.
    pub(crate) async fn answers(
        &self,
        parent: &str,
        query: StructuredQuery,
        read_time: Option<Timestamp>,
    ) -> Result<Vec<RunQueryResponse>, Status> {
        let request = RunQueryRequest {
            parent: parent.to_owned(),
            query_type: Some(run_query_request::QueryType::StructuredQuery(query)),
            consistency_selector: read_time.map(run_query_request::ConsistencySelector::ReadTime),
            ..Default::default()
        };
        let mut stream = self.client().run_query(request).await?.into_inner();
        let mut answers = Vec::new();
        while let Some(answer) = stream.message().await? {
            answers.push(answer);
        }
        Ok(answers)
    }

    /// The paths of what a query finds.
    pub(crate) async fn paths(&self, query: StructuredQuery) -> Vec<String> {
        self.run(query)
            .await
            .unwrap()
            .iter()
            .map(|document| self.path(&document.name))
            .collect()
    }

    /// A cursor at a document.
    pub(crate) fn cursor(&self, path: &str, before: bool) -> Option<Cursor> {
        Some(Cursor {
            values: vec![self.reference(path)],
            before,
        })
    }

    pub(crate) fn reference(&self, path: &str) -> Value {
        value(value::ValueType::ReferenceValue(self.name(path)))
    }

    /// The time of a read that happens now.
    pub(crate) async fn now(&self) -> Timestamp {
        let answers = self
            .answers(&self.root(), limited(kindless(), 1), None)
            .await
            .unwrap();
        answers.iter().find_map(|answer| answer.read_time).unwrap()
    }
}

pub(crate) fn value(value: value::ValueType) -> Value {
    Value {
        value_type: Some(value),
    }
}

pub(crate) fn text(text: &str) -> Value {
    value(value::ValueType::StringValue(text.to_owned()))
}

pub(crate) fn integer(number: i64) -> Value {
    value(value::ValueType::IntegerValue(number))
}

pub(crate) fn double(number: f64) -> Value {
    value(value::ValueType::DoubleValue(number))
}

pub(crate) fn array(values: Vec<Value>) -> Value {
    value(value::ValueType::ArrayValue(ArrayValue { values }))
}

pub(crate) fn map(fields: &[(&str, Value)]) -> Value {
    let fields = fields
        .iter()
        .map(|(name, value)| (name.to_string(), value.clone()))
        .collect();
    value(value::ValueType::MapValue(MapValue { fields }))
}

pub(crate) fn field(path: &str) -> FieldReference {
    FieldReference {
        field_path: path.to_owned(),
    }
}

pub(crate) fn by(path: &str, direction: Direction) -> Order {
    Order {
        field: Some(field(path)),
        direction: direction as i32,
    }
}

/// Every document below the parent, in the order of names.
pub(crate) fn kindless() -> StructuredQuery {
    StructuredQuery {
        from: vec![CollectionSelector {
            collection_id: String::new(),
            all_descendants: true,
        }],
        order_by: vec![by("__name__", Direction::Ascending)],
        ..Default::default()
    }
}

/// The documents of one collection, or of its group.
pub(crate) fn collection(id: &str, all_descendants: bool) -> StructuredQuery {
    StructuredQuery {
        from: vec![CollectionSelector {
            collection_id: id.to_owned(),
            all_descendants,
        }],
        ..Default::default()
    }
}

pub(crate) fn limited(query: StructuredQuery, limit: i32) -> StructuredQuery {
    StructuredQuery {
        limit: Some(limit),
        ..query
    }
}

pub(crate) fn selecting(query: StructuredQuery, fields: &[&str]) -> StructuredQuery {
    let fields = fields.iter().map(|path| field(path)).collect();
    StructuredQuery {
        select: Some(Projection { fields }),
        ..query
    }
}

/// The kindless query, changed.
pub(crate) fn query(change: impl FnOnce(&mut StructuredQuery)) -> StructuredQuery {
    let mut query = kindless();
    change(&mut query);
    query
}

/// The status code of a result, 0 for success.
pub(crate) fn code<T>(result: Result<T, Status>) -> i32 {
    result.err().map_or(0, |status| status.code() as i32)
}

pub(crate) fn null() -> Value {
    value(value::ValueType::NullValue(0))
}

pub(crate) fn boolean(boolean: bool) -> Value {
    value(value::ValueType::BooleanValue(boolean))
}

pub(crate) fn bytes(bytes: &[u8]) -> Value {
    value(value::ValueType::BytesValue(bytes.to_vec()))
}

pub(crate) fn timestamp(seconds: i64, nanos: i32) -> Value {
    value(value::ValueType::TimestampValue(Timestamp { seconds, nanos }))
}

pub(crate) fn reference(name: &str) -> Value {
    value(value::ValueType::ReferenceValue(name.to_owned()))
}

pub(crate) fn point(latitude: f64, longitude: f64) -> Value {
    value(value::ValueType::GeoPointValue(LatLng { latitude, longitude }))
}

pub(crate) fn vector(elements: &[f64]) -> Value {
    let elements = elements.iter().map(|&element| double(element)).collect();
    map(&[("__type__", text("__vector__")), ("value", array(elements))])
}

/// How many documents a query selects, counted up to a bound, now or as of a time.
pub(crate) async fn count(
    server: &Server,
    query: StructuredQuery,
    up_to: Option<i64>,
    time: Option<Timestamp>,
) -> Result<i64, Status> {
    let operator = Some(aggregation::Operator::Count(aggregation::Count { up_to }));
    let query = StructuredAggregationQuery {
        aggregations: vec![Aggregation {
            alias: "n".to_owned(),
            operator,
        }],
        query_type: Some(structured_aggregation_query::QueryType::StructuredQuery(query)),
    };
    let request = RunAggregationQueryRequest {
        parent: server.root(),
        query_type: Some(run_aggregation_query_request::QueryType::StructuredAggregationQuery(query)),
        consistency_selector: time.map(run_aggregation_query_request::ConsistencySelector::ReadTime),
        ..Default::default()
    };
    let mut stream = server.client().run_aggregation_query(request).await?.into_inner();
    let answer = stream.message().await?.unwrap();
    assert!(answer.read_time.is_some());
    match answer.result.unwrap().aggregate_fields["n"].value_type {
        Some(value::ValueType::IntegerValue(count)) => Ok(count),
        ref other => panic!("a count is an integer, not {other:?}"),
    }
}
