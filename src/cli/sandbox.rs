//! `firebank sandbox`

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use tonic::Code;

use super::options::GlobalOptions;
use super::{Outcome, output};
use crate::document::{DatabaseName, canonical};
use crate::firestore::{BulkWriter, ConnectOptions, Firestore, Target, WriteFailure, WriteOptions};
use crate::sandbox::retail::{self, RetailSize};
use crate::sandbox::{Effect, Fault, FaultPlan, Rpc, Sandbox, SandboxConfig, SyntheticSpec, When};

const DEFAULT_PROJECT: &str = "demo-shop";
const RETAIL_SEED: u64 = 1;

#[derive(Args, Debug)]
pub(crate) struct SandboxCommand {
    /// The port on 127.0.0.1; 0 for a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Load the demonstration's retail shop into the project (`demo-shop` when none is named)
    #[arg(long)]
    retail: bool,
    /// Serve so many made-up documents from the collection `synthetic`, without holding them
    #[arg(long, value_name = "DOCUMENTS", default_value_t = 0)]
    synthetic: u64,
    /// About how large a made-up document is
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    synthetic_bytes: usize,
    /// Take writes without keeping what they write
    #[arg(long)]
    discard_writes: bool,
    /// Answer every call this much later
    #[arg(long, value_name = "MS")]
    latency_ms: Option<u64>,
    /// Send at most so many bytes a second, over all streams
    #[arg(long, value_name = "BYTES")]
    bytes_per_second: Option<u64>,
    /// Answer this share of the calls with UNAVAILABLE, between 0 and 1
    #[arg(long, value_name = "SHARE", value_parser = share)]
    unavailable: Option<f64>,
    /// Cut every stream after so many documents
    #[arg(long, value_name = "DOCUMENTS")]
    cut_streams: Option<u64>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be between 0 and 1".to_owned()),
    }
}

#[derive(Serialize)]
struct Ready {
    address: String,
    documents: u64,
}

impl SandboxCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let output = global.output();
        let sandbox = Sandbox::start(self.config(global))
            .await
            .with_context(|| format!("cannot listen on 127.0.0.1:{}", self.port))?;
        let address = sandbox.address();
        let mut documents = self.synthetic;
        if self.retail {
            let project = global
                .named_project()
                .unwrap_or_else(|| DEFAULT_PROJECT.to_owned());
            let target = DatabaseName::new(project, global.database_id());
            documents += load_retail(&sandbox, target, RetailSize::DEMO).await?;
        }
        sandbox.faults().set(self.faults());
        output.line(format!(
            "Firestore sandbox on {address} with {}. Stop it with Ctrl-C.",
            output::count(documents, "document")
        ))?;
        output.line(format!("  export FIRESTORE_EMULATOR_HOST={address}"))?;
        output.json(&Ready {
            address: address.to_string(),
            documents,
        })?;
        // Until a signal ends the process; the front end handles them.
        std::future::pending().await
    }

    fn config(&self, global: &GlobalOptions) -> SandboxConfig {
        // Without a named project every one of them has the documents.
        let database = global
            .named_project()
            .map(|project| DatabaseName::new(project, global.database_id()));
        let synthetic = (self.synthetic > 0)
            .then(|| SyntheticSpec {
                database,
                ..SyntheticSpec::new("synthetic", self.synthetic, self.synthetic_bytes)
            })
            .into_iter()
            .collect();
        SandboxConfig {
            port: self.port,
            accept_and_discard: self.discard_writes,
            synthetic,
            ..SandboxConfig::default()
        }
    }

    fn faults(&self) -> FaultPlan {
        let mut plan = FaultPlan {
            bytes_per_second: self.bytes_per_second,
            ..FaultPlan::default()
        };
        if let Some(milliseconds) = self.latency_ms {
            let effect = Effect::Delay(Duration::from_millis(milliseconds));
            plan.faults.push(Fault {
                methods: Vec::new(),
                when: When::Always,
                effect,
            });
        }
        if let Some(share) = self.unavailable {
            let effect = Effect::Status(Code::Unavailable, "the sandbox was asked to fail".to_owned());
            plan.faults.push(Fault {
                methods: Vec::new(),
                when: When::Probability(share),
                effect,
            });
        }
        if let Some(documents) = self.cut_streams {
            let effect = Effect::CutAfter {
                documents,
                code: Code::Unavailable,
            };
            plan.faults.push(Fault::new(Rpc::RunQuery, When::Always, effect));
        }
        plan
    }
}

/// Fills a database of the sandbox with the retail shop. Answers how many documents it has.
pub(crate) async fn load_retail(
    sandbox: &Sandbox,
    database: DatabaseName,
    size: RetailSize,
) -> anyhow::Result<u64> {
    let target = Target::Emulator {
        host_port: sandbox.address().to_string(),
    };
    let connection = Firestore::connect(ConnectOptions::new(database, target)).await?;
    let options = WriteOptions::new(&connection);
    let mut writer = BulkWriter::new(&connection, options, Vec::<WriteFailure>::new());
    for (path, fields) in retail::documents(size, RETAIL_SEED) {
        writer.put(&path, &canonical::encode(&fields)).await?;
    }
    let stats = writer.finish().await?;
    anyhow::ensure!(
        stats.failed == 0,
        "the sandbox refused {} of its sample documents",
        stats.failed
    );
    Ok(stats.written)
}
