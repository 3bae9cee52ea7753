//! Queries for whatever documents there are, in the order of their names.
//!
//! Without a collection, over all descendants of the root, such a query returns every document at every
//! depth, the children of missing documents included. Not every server answers it.

use ::firestore::gcloud_sdk::google::firestore::v1::run_query_request::{ConsistencySelector, QueryType};
use ::firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    CollectionSelector, Direction, Order, Projection,
};
use ::firestore::gcloud_sdk::google::firestore::v1::{RunQueryRequest, StructuredQuery};
use tonic::Code;

use super::cursor::{NameRange, cursor};
use super::proto::{name_field, protobuf_time};
use super::{Error, Firestore};
use crate::document::{DocumentPath, Timestamp};

impl Firestore {
    /// The path that a full name stands for, if it is a document of this database.
    pub(super) fn path_of(&self, name: &str) -> Option<DocumentPath> {
        let path = name.strip_prefix(&self.inner.root)?.strip_prefix('/')?;
        DocumentPath::parse(path).ok()
    }
}

/// The query over all collections, or over all with one id, bounded by names.
pub(super) fn query_by_name(
    root: &str,
    group: Option<&str>,
    names: &NameRange,
    after: Option<&DocumentPath>,
) -> StructuredQuery {
    StructuredQuery {
        from: vec![CollectionSelector {
            collection_id: group.unwrap_or_default().to_owned(),
            all_descendants: true,
        }],
        order_by: vec![Order {
            field: Some(name_field()),
            direction: Direction::Ascending.into(),
        }],
        start_at: match after {
            Some(last) => Some(cursor(root, last, false)),
            None => names
                .start
                .as_ref()
                .map(|first| cursor(root, first, !names.after_start)),
        },
        end_at: names
            .end
            .as_ref()
            .map(|end| cursor(root, end, !names.through_end)),
        ..Default::default()
    }
}

/// The request for at most `limit` documents of a query, or only their names.
pub(super) fn query_request(
    root: &str,
    mut query: StructuredQuery,
    names_only: bool,
    limit: u32,
    read_time: Option<Timestamp>,
) -> RunQueryRequest {
    query.limit = Some(i32::try_from(limit).unwrap_or(i32::MAX));
    if names_only {
        query.select = Some(Projection {
            fields: vec![name_field()],
        });
    }
    RunQueryRequest {
        parent: root.to_owned(),
        query_type: Some(QueryType::StructuredQuery(query)),
        consistency_selector: read_time.map(|time| ConsistencySelector::ReadTime(protobuf_time(time))),
        ..Default::default()
    }
}

/// Tells a server that knows no such query from one that refuses this one.
pub(super) fn kindless_refused(error: Error) -> Error {
    match error {
        Error::Unsupported { source, .. } => Error::KindlessRefused { source },
        Error::Rejected { source, .. }
            if source.code() == Code::InvalidArgument && speaks_of_kind(source.message()) =>
        {
            Error::KindlessRefused { source }
        }
        other => other,
    }
}

fn speaks_of_kind(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("kind") || message.contains("collection")
}
