//! The methods of the API.

use tonic::codegen::http::uri::PathAndQuery;

/// A method of Firestore's API that Firebank calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Streams the documents that a query selects.
    RunQuery,
    /// Streams the results of an aggregation, such as a count.
    RunAggregationQuery,
    /// Streams documents by name.
    BatchGetDocuments,
    /// Applies writes, each for itself.
    BatchWrite,
    /// Lists the collections of a document or of the root.
    ListCollectionIds,
    /// Lists the documents of a collection.
    ListDocuments,
    /// Offers names that split a query's results.
    PartitionQuery,
    /// Applies writes, all or none.
    Commit,
    /// Describes the database: a method of the administration API.
    GetDatabase,
    /// Lists fields with settings of their own: a method of the administration API.
    ListFields,
}

impl Method {
    /// Every method, in the order of its declaration.
    pub const ALL: [Method; 10] = [
        Method::RunQuery,
        Method::RunAggregationQuery,
        Method::BatchGetDocuments,
        Method::BatchWrite,
        Method::ListCollectionIds,
        Method::ListDocuments,
        Method::PartitionQuery,
        Method::Commit,
        Method::GetDatabase,
        Method::ListFields,
    ];

    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// Whether its answers are documents, or what was counted of them.
    pub(super) fn reads_documents(self) -> bool {
        use Method::{BatchGetDocuments, ListDocuments, RunAggregationQuery, RunQuery};
        matches!(
            self,
            RunQuery | RunAggregationQuery | BatchGetDocuments | ListDocuments
        )
    }

    pub(super) fn path(self) -> PathAndQuery {
        PathAndQuery::from_static(match self {
            Method::RunQuery => "/google.firestore.v1.Firestore/RunQuery",
            Method::RunAggregationQuery => "/google.firestore.v1.Firestore/RunAggregationQuery",
            Method::BatchGetDocuments => "/google.firestore.v1.Firestore/BatchGetDocuments",
            Method::BatchWrite => "/google.firestore.v1.Firestore/BatchWrite",
            Method::ListCollectionIds => "/google.firestore.v1.Firestore/ListCollectionIds",
            Method::ListDocuments => "/google.firestore.v1.Firestore/ListDocuments",
            Method::PartitionQuery => "/google.firestore.v1.Firestore/PartitionQuery",
            Method::Commit => "/google.firestore.v1.Firestore/Commit",
            Method::GetDatabase => "/google.firestore.admin.v1.FirestoreAdmin/GetDatabase",
            Method::ListFields => "/google.firestore.admin.v1.FirestoreAdmin/ListFields",
        })
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Method::RunQuery => "RunQuery",
            Method::RunAggregationQuery => "RunAggregationQuery",
            Method::BatchGetDocuments => "BatchGetDocuments",
            Method::BatchWrite => "BatchWrite",
            Method::ListCollectionIds => "ListCollectionIds",
            Method::ListDocuments => "ListDocuments",
            Method::PartitionQuery => "PartitionQuery",
            Method::Commit => "Commit",
            Method::GetDatabase => "GetDatabase",
            Method::ListFields => "ListFields",
        })
    }
}
