//! gRPC messages as bytes: the methods of the API and a codec that neither encodes nor decodes.
//!
//! A document that is only passed on costs three to six times as much when it goes through generated message
//! types. So requests are handed over encoded, answers are taken as the bytes that arrived, and only what needs a
//! look inside is decoded by those who need it.

use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
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

/// An encoded request: its parts are sent one after the other, as one message.
pub(super) type RawRequest = [Bytes; 2];

/// Passes encoded requests and answers through. An answer shares the memory that it was received in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RawCodec;

/// What a stream's receive buffer grows by. Tonic's default of 8 KiB means an allocation for every few documents.
const RECEIVE_BUFFER: usize = 128 << 10;
const SEND_YIELD: usize = 32 << 10;

impl Codec for RawCodec {
    type Encode = RawRequest;
    type Decode = Bytes;
    type Encoder = RawEncoder;
    type Decoder = RawDecoder;

    fn encoder(&mut self) -> RawEncoder {
        RawEncoder
    }

    fn decoder(&mut self) -> RawDecoder {
        RawDecoder
    }
}

#[derive(Debug)]
pub(super) struct RawEncoder;

impl Encoder for RawEncoder {
    type Item = RawRequest;
    type Error = Status;

    fn encode(&mut self, item: RawRequest, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.iter().map(Bytes::len).sum());
        for part in item {
            buffer.put(part);
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1 << 10, SEND_YIELD)
    }
}

#[derive(Debug)]
pub(super) struct RawDecoder;

impl Decoder for RawDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(RECEIVE_BUFFER, SEND_YIELD)
    }
}
