//! Generates the server side of `google.firestore.v1.Firestore` for the sandbox.
//!
//! No crate ships it. The service is described by hand over message types that exist already, so that neither `.proto`
//! files nor `protoc` are needed. Calls that the sandbox does not know are answered UNIMPLEMENTED by tonic.

use tonic_build::manual::{Builder, Method, Service};

const TYPES: &str = "::firestore::gcloud_sdk::google::firestore::v1";
/// Types of our own where a document's fields must stay the bytes that were sent.
const RAW: &str = "crate::sandbox::messages";

fn main() {
    let methods = [
        ("run_query", "RunQuery", TYPES, true),
        ("run_aggregation_query", "RunAggregationQuery", TYPES, true),
        ("partition_query", "PartitionQuery", TYPES, false),
        ("list_collection_ids", "ListCollectionIds", TYPES, false),
        ("list_documents", "ListDocuments", TYPES, false),
        ("get_document", "GetDocument", TYPES, false),
        ("create_document", "CreateDocument", RAW, false),
        ("update_document", "UpdateDocument", RAW, false),
        ("delete_document", "DeleteDocument", TYPES, false),
        ("batch_get_documents", "BatchGetDocuments", TYPES, true),
        ("batch_write", "BatchWrite", RAW, false),
        ("commit", "Commit", RAW, false),
        ("begin_transaction", "BeginTransaction", TYPES, false),
        ("rollback", "Rollback", TYPES, false),
    ];
    let service = methods.into_iter().fold(
        Service::builder()
            .name("Firestore")
            .package("google.firestore.v1"),
        |service, (name, route, types, streaming)| {
            let method = Method::builder()
                .name(name)
                .route_name(route)
                .input_type(format!(
                    "crate::sandbox::codec::Received<{types}::{route}Request>"
                ))
                .output_type("crate::sandbox::codec::Answer")
                .codec_path("crate::sandbox::codec::Codec");
            service.method(
                if streaming {
                    method.server_streaming()
                } else {
                    method
                }
                .build(),
            )
        },
    );
    Builder::new().build_client(false).compile(&[service.build()]);
    println!("cargo::rerun-if-changed=src/build.rs");
}
