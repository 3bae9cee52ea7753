//! Counting documents without reading them.

use ::firestore::gcloud_sdk::google::firestore::v1::run_aggregation_query_request::{
    ConsistencySelector, QueryType,
};
use ::firestore::gcloud_sdk::google::firestore::v1::structured_aggregation_query::aggregation::{
    Count, Operator,
};
use ::firestore::gcloud_sdk::google::firestore::v1::structured_aggregation_query::{
    Aggregation, QueryType as Over,
};
use ::firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use ::firestore::gcloud_sdk::google::firestore::v1::{
    RunAggregationQueryRequest, RunAggregationQueryResponse, StructuredAggregationQuery, StructuredQuery,
};
use futures::future::try_join_all;

use super::by_name::query_by_name;
use super::cursor::name_range;
use super::proto::protobuf_time;
use super::{Error, Firestore, Method, Query, Result};
use crate::document::{DocumentKey, KeyRange, Timestamp};

const ALIAS: &str = "n";

/// Index entries that are counted for one billed read
/// (<https://cloud.google.com/firestore/docs/query-data/aggregation-queries#pricing>).
const ENTRIES_PER_READ: u64 = 1000;

impl Firestore {
    /// How many documents a range of keys has, at the read time or now. Bills a read for each thousand.
    ///
    /// A server that does not count over all collections answers [`Error::Unsupported`] or [`Error::Rejected`].
    pub async fn count(&self, range: &KeyRange, read_time: Option<Timestamp>) -> Result<u64> {
        self.count_after(range, &[], None, read_time).await
    }

    /// The same for the documents of the range that come after one, and only for those of some collection
    /// groups if any are named.
    pub async fn count_after(
        &self,
        range: &KeyRange,
        groups: &[String],
        after: Option<&DocumentKey>,
        read_time: Option<Timestamp>,
    ) -> Result<u64> {
        if range.is_empty() {
            return Ok(0);
        }
        if groups.is_empty() {
            return self.count_in(range, None, after, read_time).await;
        }
        let counts = groups
            .iter()
            .map(|group| self.count_in(range, Some(group), after, read_time));
        Ok(try_join_all(counts).await?.into_iter().sum())
    }

    /// How many documents the collections of this id have, wherever they are, at the read time or now. Bills
    /// a read for each thousand.
    pub async fn count_group(&self, id: &str, read_time: Option<Timestamp>) -> Result<u64> {
        self.count_in(&KeyRange::all(), Some(id), None, read_time).await
    }

    async fn count_in(
        &self,
        range: &KeyRange,
        group: Option<&str>,
        after: Option<&DocumentKey>,
        read_time: Option<Timestamp>,
    ) -> Result<u64> {
        let after = after.map(DocumentKey::path).transpose();
        let after = after.map_err(|error| Error::BadBoundary {
            boundary: error.to_string(),
        })?;
        let query = query_by_name(&self.inner.root, group, &name_range(range)?, after.as_ref());
        self.run_count(self.inner.root.clone(), query, read_time).await
    }

    /// How many documents a query selects, at the read time or now. Bills a read for each thousand.
    pub async fn count_query(&self, query: &Query, read_time: Option<Timestamp>) -> Result<u64> {
        let root = &self.inner.root;
        let mut structured = query.structured(root);
        structured.limit = query.limit.and_then(|limit| i32::try_from(limit).ok());
        self.run_count(query.parent_name(root), structured, read_time)
            .await
    }

    async fn run_count(
        &self,
        parent: String,
        query: StructuredQuery,
        read_time: Option<Timestamp>,
    ) -> Result<u64> {
        let request = RunAggregationQueryRequest {
            parent,
            query_type: Some(QueryType::StructuredAggregationQuery(
                StructuredAggregationQuery {
                    aggregations: vec![Aggregation {
                        alias: ALIAS.to_owned(),
                        operator: Some(Operator::Count(Count { up_to: None })),
                    }],
                    query_type: Some(Over::StructuredQuery(query)),
                },
            )),
            consistency_selector: read_time.map(|time| ConsistencySelector::ReadTime(protobuf_time(time))),
            ..Default::default()
        };
        let answers: Vec<RunAggregationQueryResponse> = self
            .ask_stream(Method::RunAggregationQuery, read_time, &request)
            .await?;
        let count = answers
            .into_iter()
            .filter_map(|answer| answer.result)
            .find_map(|result| result.aggregate_fields.get(ALIAS).cloned())
            .and_then(|value| match value.value_type {
                Some(ValueType::IntegerValue(count)) => u64::try_from(count).ok(),
                _ => None,
            })
            .ok_or_else(|| Error::malformed(Method::RunAggregationQuery, "there is no count in it"))?;
        self.inner.stats.billed(count.div_ceil(ENTRIES_PER_READ).max(1));
        Ok(count)
    }
}
