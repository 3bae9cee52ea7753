//! The messages that carry documents to and from the server, with the documents' fields left as bytes.
//!
//! On the wire they are google.firestore.v1's. A map field is a repeated message there, and a `oneof` is any
//! of its members, so these types read the same bytes without taking the values apart: what is stored is what
//! was sent, bit for bit, and a write costs a copy instead of a tree.

use ::firestore::gcloud_sdk::google::firestore::v1::{
    DocumentMask, Precondition, Value, document_transform::FieldTransform,
};
use ::firestore::gcloud_sdk::prost_types::Timestamp;
use bytes::Bytes;

/// `Document`. Each entry of `fields` is the map's entry: name as field 1, value as field 2.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Document {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(crate) fields: Vec<Bytes>,
    #[prost(message, optional, tag = "3")]
    pub(crate) create_time: Option<Timestamp>,
    #[prost(message, optional, tag = "4")]
    pub(crate) update_time: Option<Timestamp>,
}

/// `DocumentTransform`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DocumentTransform {
    #[prost(string, tag = "1")]
    pub(crate) document: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) field_transforms: Vec<FieldTransform>,
}

/// `Write`, its `operation` being whichever of the three is there.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Write {
    #[prost(message, optional, tag = "1")]
    pub(crate) update: Option<Document>,
    #[prost(string, optional, tag = "2")]
    pub(crate) delete: Option<String>,
    #[prost(message, optional, tag = "6")]
    pub(crate) transform: Option<DocumentTransform>,
    #[prost(message, optional, tag = "3")]
    pub(crate) update_mask: Option<DocumentMask>,
    #[prost(message, optional, tag = "4")]
    pub(crate) current_document: Option<Precondition>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) update_transforms: Vec<FieldTransform>,
}

impl Write {
    /// The name of the document that the write is about, `None` where the write has no operation.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self {
                update: Some(document),
                ..
            } => Some(&document.name),
            Self {
                delete: Some(name), ..
            } => Some(name),
            Self {
                transform: Some(transform),
                ..
            } => Some(&transform.document),
            _ => None,
        }
    }
}

/// `BatchWriteRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BatchWriteRequest {
    #[prost(string, tag = "1")]
    pub(crate) database: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) writes: Vec<Write>,
}

/// `CommitRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CommitRequest {
    #[prost(string, tag = "1")]
    pub(crate) database: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) writes: Vec<Write>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) transaction: Vec<u8>,
}

/// `CreateDocumentRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CreateDocumentRequest {
    #[prost(string, tag = "1")]
    pub(crate) parent: String,
    #[prost(string, tag = "2")]
    pub(crate) collection_id: String,
    #[prost(string, tag = "3")]
    pub(crate) document_id: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) document: Option<Document>,
    #[prost(message, optional, tag = "5")]
    pub(crate) mask: Option<DocumentMask>,
}

/// `UpdateDocumentRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UpdateDocumentRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) document: Option<Document>,
    #[prost(message, optional, tag = "2")]
    pub(crate) update_mask: Option<DocumentMask>,
    #[prost(message, optional, tag = "3")]
    pub(crate) mask: Option<DocumentMask>,
    #[prost(message, optional, tag = "4")]
    pub(crate) current_document: Option<Precondition>,
}

/// `ListDocumentsResponse`, its documents encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListDocumentsResponse {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(crate) documents: Vec<Bytes>,
    #[prost(string, tag = "2")]
    pub(crate) next_page_token: String,
}

/// An entry of a `map<string, Value>`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<Value>,
}
