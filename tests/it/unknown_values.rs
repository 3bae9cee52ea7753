//! A value of a type that Firebank does not know must never be left away in silence: the backup fails and names the document.
//!
//! Neither the emulator nor the sandbox stores such a value, so this is a server of its own that answers queries.

use std::convert::Infallible;
use std::task::{Context, Poll};

use firestore::gcloud_sdk::google::firestore::v1::run_query_request::ConsistencySelector;
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::{Document, RunQueryRequest, RunQueryResponse};
use firestore::gcloud_sdk::prost_types::Timestamp;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};
use tower::Service;

use crate::conformance::client::{integer, map, value};
use crate::support::operations::*;

const ROOT: &str = "projects/demo-future/databases/(default)/documents";

/// Has one document with a value from the future.
#[derive(Clone)]
struct FutureServer;

impl NamedService for FutureServer {
    const NAME: &'static str = "google.firestore.v1.Firestore";
}

impl Service<http::Request<Body>> for FutureServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        async move {
            Ok(match request.uri().path().ends_with("/RunQuery") {
                true => {
                    let mut grpc = Grpc::new(tonic_prost::ProstCodec::default());
                    grpc.server_streaming(RunQuery, request).await
                }
                false => Status::unimplemented("only RunQuery").into_http(),
            })
        }
        .boxed()
    }
}

struct RunQuery;

impl ServerStreamingService<RunQueryRequest> for RunQuery {
    type Response = RunQueryResponse;
    type ResponseStream = BoxStream<'static, Result<RunQueryResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<RunQueryRequest>) -> Self::Future {
        let read_time = match request.into_inner().consistency_selector {
            Some(ConsistencySelector::ReadTime(time)) => time,
            _ => Timestamp {
                seconds: 1_750_000_000,
                nanos: 0,
            },
        };
        let unknown = value(ValueType::FieldReferenceValue("price".to_owned()));
        let document = |id: &str, value| Document {
            name: format!("{ROOT}/products/{id}"),
            fields: [("inside".to_owned(), map(&[("value", value)]))].into(),
            create_time: Some(read_time),
            update_time: Some(read_time),
        };
        let answers = [document("known", integer(1)), document("new", unknown)].map(|document| {
            Ok(RunQueryResponse {
                document: Some(document),
                read_time: Some(read_time),
                ..Default::default()
            })
        });
        async move { Ok(Response::new(futures::stream::iter(answers).boxed())) }.boxed()
    }
}

#[tokio::test]
async fn a_value_of_an_unknown_type_fails_the_backup_by_name() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(FutureServer)
            .serve_with_incoming(incoming),
    );
    let database = connect(&address, "demo-future", "(default)").await;
    let repository = repository(small_segments()).await;
    for ranges in [1, 3] {
        let error = try_back_up(&database, &repository, ranges).await.unwrap_err();
        assert!(error.to_string().contains("products/new"), "{error}");
        assert_intact(&repository, 0).await;
    }
    server.abort();
}
