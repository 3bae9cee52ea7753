//! What a nightly backup cannot do without, each in a process of its own: listing the names, fetching what
//! changed.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Subcommand;
use firebank::document::DatabaseName;
use firestore::gcloud_sdk::google::firestore::v1 as pb;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;

use crate::measure::process::{self, Cost, measure_by_itself};
use crate::measure::raw::{
    READ_CONNECTIONS, READ_STREAMS, RawCodec, SOURCE_PROJECT, channels, drain, root, send_each,
};

/// Names in a request, as many as the tool asks for.
const NAMES_PER_REQUEST: usize = 300;

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Yardstick {
    /// Reads the names of a database as raw bytes and throws them away
    DrainNames { address: String },
    /// Fetches the documents whose paths a file has, a line each, as raw bytes and throws them away
    Fetch { address: String, paths: PathBuf },
}

impl Yardstick {
    /// Starts this benchmark again to measure, and waits for it.
    pub(crate) fn measure(&self) -> anyhow::Result<Cost> {
        match self {
            Self::DrainNames { address } => measure_by_itself(&["drain-names".as_ref(), address.as_ref()]),
            Self::Fetch { address, paths } => {
                measure_by_itself(&["fetch".as_ref(), address.as_ref(), paths.as_ref()])
            }
        }
    }
}

impl process::Yardstick for Yardstick {
    fn run(self) -> anyhow::Result<Cost> {
        // Wall time counts, so all cores may help.
        let runtime = tokio::runtime::Runtime::new()?;
        match self {
            Self::DrainNames { address } => runtime.block_on(drain(address, true)),
            Self::Fetch { address, paths } => runtime.block_on(fetch(&address, &paths)),
        }
    }
}

async fn fetch(address: &str, paths: &Path) -> anyhow::Result<Cost> {
    let paths = fs::read_to_string(paths)?;
    let names: Vec<_> = paths.lines().collect();
    let requests: Vec<_> = names.chunks(NAMES_PER_REQUEST).map(request).collect();
    let channels = channels(address, READ_CONNECTIONS)?;
    send_each(&channels, READ_STREAMS, requests, async |grpc, request| {
        let path = PathAndQuery::from_static("/google.firestore.v1.Firestore/BatchGetDocuments");
        let answers = grpc.server_streaming(request, path, RawCodec).await?;
        let mut answers = answers.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    })
    .await
}

fn request(paths: &[&str]) -> Bytes {
    let root = root(SOURCE_PROJECT);
    let request = pb::BatchGetDocumentsRequest {
        database: DatabaseName::new(SOURCE_PROJECT, DatabaseName::DEFAULT_DATABASE).resource(),
        documents: paths.iter().map(|path| format!("{root}/{path}")).collect(),
        ..Default::default()
    };
    request.encode_to_vec().into()
}
