//! Generates the server side of `google.firestore.v1.Firestore`, and of what is used of its administration, for the sandbox.
//!
//! No crate ships it. The service is described by hand over message types that exist already, so that neither `.proto`
//! files nor `protoc` are needed. Calls that the sandbox does not know are answered UNIMPLEMENTED by tonic.

use tonic_build::manual::{Builder, Method, Service};

const TYPES: &str = "::firestore::gcloud_sdk::google::firestore::v1";
/// Types of our own where a document's fields must stay the bytes that were sent.
const RAW: &str = "crate::sandbox::messages";
/// And where no crate has them.
const ADMIN: &str = "crate::sandbox::admin::messages";

/// A method: its name in Rust and on the wire, the module of its request, whether its answer is a stream.
type Described = (&'static str, &'static str, &'static str, bool);

const METHODS: &[Described] = &[
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

const ADMIN_METHODS: &[Described] = &[
    ("get_database", "GetDatabase", ADMIN, false),
    ("list_fields", "ListFields", ADMIN, false),
];

fn service(name: &str, package: &str, methods: &[Described]) -> Service {
    let service = Service::builder().name(name).package(package);
    let service = methods
        .iter()
        .fold(service, |service, (name, route, types, streaming)| {
            let method = Method::builder()
                .name(*name)
                .route_name(*route)
                .input_type(format!(
                    "crate::sandbox::codec::Received<{types}::{route}Request>"
                ))
                .output_type("crate::sandbox::codec::Answer")
                .codec_path("crate::sandbox::codec::Codec");
            let method = match streaming {
                true => method.server_streaming(),
                false => method,
            };
            service.method(method.build())
        });
    service.build()
}

fn main() {
    let services = [
        service("Firestore", "google.firestore.v1", METHODS),
        service("FirestoreAdmin", "google.firestore.admin.v1", ADMIN_METHODS),
    ];
    Builder::new().build_client(false).compile(&services);
    println!("cargo::rerun-if-changed=src/build.rs");
}
