//! The database's answers as the bytes that they are: what nobody can do without who reads them.

use std::cell::RefCell;

use bytes::{Buf, BufMut, Bytes};
use firebank::document::{DatabaseName, DocumentPath, KeyRange, Timestamp};
use firebank::firestore::{ConnectOptions, Firestore, Target};
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use firestore::gcloud_sdk::prost_types;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::process::{Cost, Stopwatch};

/// The database that is read.
pub(crate) const SOURCE_PROJECT: &str = "demo-source";

/// As many as `backup` has by default.
pub(crate) const READ_CONNECTIONS: usize = 4;
pub(crate) const READ_STREAMS: usize = 8;
/// As many as `restore` has by default.
pub(crate) const WRITE_CONNECTIONS: usize = 2;
pub(crate) const REQUESTS_IN_FLIGHT: usize = 16;
pub(crate) const WRITES_PER_REQUEST: usize = 500;

/// Does it on one thread, the cheapest way: nothing moves between cores.
pub(crate) fn single_threaded(work: impl Future<Output = anyhow::Result<Cost>>) -> anyhow::Result<Cost> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// The tool's own connection to the database that is read.
pub(crate) async fn connect(address: &str) -> anyhow::Result<Firestore> {
    let database = DatabaseName::new(SOURCE_PROJECT, DatabaseName::DEFAULT_DATABASE);
    let target = Target::Emulator {
        host_port: address.to_owned(),
    };
    Ok(Firestore::connect(ConnectOptions::new(database, target)).await?)
}

/// Reads all documents of a database over as many connections as a backup has, or their names, and throws
/// them away.
pub(crate) async fn drain(address: String, names_only: bool) -> anyhow::Result<Cost> {
    let source = connect(&address).await?;
    let read_time = source.current_read_time().await?;
    let boundaries = source
        .split(&KeyRange::all(), &[], read_time, READ_STREAMS)
        .await?;
    let names = boundaries
        .iter()
        .map(|key| DocumentPath::from_key(key.as_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    let starts = std::iter::once(None).chain(names.iter().map(Some));
    let ends = names.iter().map(Some).chain([None]);
    let channels = channels(&address, READ_CONNECTIONS)?;

    let stopwatch = Stopwatch::start()?;
    let streams = starts
        .zip(ends)
        .zip(channels.iter().cycle())
        .map(|((start, end), channel)| async move {
            let mut grpc = Grpc::new(channel.clone());
            grpc.ready().await?;
            let path = PathAndQuery::from_static("/google.firestore.v1.Firestore/RunQuery");
            let request = as_administrator(range_query(start, end, read_time, names_only));
            let mut answers = grpc.server_streaming(request, path, RawCodec).await?.into_inner();
            while answers.message().await?.is_some() {}
            anyhow::Ok(())
        });
    futures::future::try_join_all(streams).await?;
    stopwatch.stop()
}

/// Sends requests that are ready, `at_once` at a time, over the channels in turn. Only this is measured.
pub(crate) async fn send_each(
    channels: &[Channel],
    at_once: usize,
    requests: Vec<Bytes>,
    send: impl AsyncFn(&mut Grpc<Channel>, Request<Bytes>) -> anyhow::Result<()>,
) -> anyhow::Result<Cost> {
    let waiting = RefCell::new(requests.into_iter());
    let stopwatch = Stopwatch::start()?;
    let senders = channels.iter().cycle().take(at_once).map(|channel| async {
        let mut grpc = Grpc::new(channel.clone());
        loop {
            let Some(request) = waiting.borrow_mut().next() else {
                return anyhow::Ok(());
            };
            grpc.ready().await?;
            send(&mut grpc, as_administrator(request)).await?;
        }
    });
    futures::future::try_join_all(senders).await?;
    stopwatch.stop()
}

/// Sends BatchWrite requests, as many at once as `restore`.
pub(crate) async fn batch_write(address: &str, requests: Vec<Bytes>) -> anyhow::Result<Cost> {
    let channels = channels(address, WRITE_CONNECTIONS)?;
    send_each(&channels, REQUESTS_IN_FLIGHT, requests, async |grpc, request| {
        let path = PathAndQuery::from_static("/google.firestore.v1.Firestore/BatchWrite");
        grpc.unary(request, path, RawCodec).await?;
        Ok(())
    })
    .await
}

/// All documents between two names.
fn range_query(
    start: Option<&DocumentPath>,
    end: Option<&DocumentPath>,
    read_time: Timestamp,
    names_only: bool,
) -> Bytes {
    use pb::structured_query::{CollectionSelector, Direction, FieldReference, Order, Projection};
    let root = root(SOURCE_PROJECT);
    let at = |name: &DocumentPath| pb::Cursor {
        values: vec![pb::Value {
            value_type: Some(pb::value::ValueType::ReferenceValue(format!("{root}/{name}"))),
        }],
        before: true,
    };
    let name = || FieldReference {
        field_path: "__name__".to_owned(),
    };
    let query = pb::StructuredQuery {
        select: names_only.then(|| Projection { fields: vec![name()] }),
        from: vec![CollectionSelector {
            collection_id: String::new(),
            all_descendants: true,
        }],
        order_by: vec![Order {
            field: Some(name()),
            direction: Direction::Ascending.into(),
        }],
        start_at: start.map(at),
        end_at: end.map(at),
        ..Default::default()
    };
    let time = prost_types::Timestamp {
        seconds: read_time.seconds,
        nanos: read_time.nanos as i32,
    };
    let request = pb::RunQueryRequest {
        parent: root.clone(),
        query_type: Some(pb::run_query_request::QueryType::StructuredQuery(query)),
        consistency_selector: Some(pb::run_query_request::ConsistencySelector::ReadTime(time)),
        ..Default::default()
    };
    request.encode_to_vec().into()
}

/// What the names of a project's documents start with.
pub(crate) fn root(project: &str) -> String {
    DatabaseName::new(project, DatabaseName::DEFAULT_DATABASE).root()
}

/// Connections as the tool's own.
pub(crate) fn channels(address: &str, count: usize) -> anyhow::Result<Vec<Channel>> {
    let endpoint = Channel::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(10 << 20);
    Ok((0..count).map(|_| endpoint.connect_lazy()).collect())
}

/// A request with what an emulator wants to see.
pub(crate) fn as_administrator(message: Bytes) -> Request<Bytes> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "authorization",
        tonic::metadata::MetadataValue::from_static("Bearer owner"),
    );
    request
}

/// Passes bytes through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.len());
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(128 << 10, 32 << 10)
    }
}
