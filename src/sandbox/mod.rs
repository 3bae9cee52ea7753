//! An embedded, in-memory Firestore that speaks google.firestore.v1 over gRPC.
//!
//! It backs `firebank demo`, the benchmarks and most tests: it starts in a millisecond, it can hold more
//! documents than Google's emulator, it can serve millions that it does not hold ([`SyntheticSpec`]), and it
//! makes the trouble that a client must live through ([`FaultPlan`]). One conformance suite runs against it
//! and against Google's emulator, so that it does not invent behaviour.
//!
//! ```no_run
//! use firebank::sandbox::{Sandbox, SandboxConfig};
//! # async fn example() -> std::io::Result<()> {
//! let sandbox = Sandbox::start(SandboxConfig::default()).await?;
//! println!("FIRESTORE_EMULATOR_HOST={}", sandbox.address());
//! sandbox.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! A request goes from `server` (what the methods mean) through `query`, `list`, `write` to `database`
//! (documents and their past), and streams come back through `stream` and `codec`, which send what is stored
//! as it is stored. It listens on loopback only, accepts any project and database, and takes no notice of
//! credentials.

mod admin;
mod aggregate;
mod codec;
mod connections;
mod database;
mod faults;
mod filter;
mod list;
mod messages;
mod names;
mod partition;
mod query;
pub mod retail;
mod server;
mod service;
mod stream;
mod synthetic;
mod synthetic_body;
mod transaction;
mod transform;
mod usage;
mod value_order;
mod values;
mod write;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Server;

pub use admin::{Administration, DatabaseFacts};
pub use faults::{Effect, Fault, FaultPlan, Faults, Rpc, When};
pub use synthetic::SyntheticSpec;
pub use usage::Usage;

/// How a sandbox is to be. The default is an empty one on a free port, without faults.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxConfig {
    /// The port on 127.0.0.1; 0 for a free one.
    pub port: u16,
    /// How long the past can be read. Firestore has an hour, and with point-in-time recovery seven days, of
    /// which only whole minutes can be read past the first hour.
    pub history: Duration,
    /// The largest request, in bytes. Firestore's is 10 MiB, the emulator's 4 MiB.
    pub max_request_bytes: usize,
    /// Accept writes without holding them: what is written is not there afterwards.
    pub accept_and_discard: bool,
    /// Collections that are made up when they are read.
    pub synthetic: Vec<SyntheticSpec>,
    /// What the administration API answers.
    pub administration: Administration,
    /// What goes wrong from the start.
    pub faults: FaultPlan,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            port: 0,
            history: Duration::from_secs(3600),
            max_request_bytes: 10 << 20,
            accept_and_discard: false,
            synthetic: Vec::new(),
            administration: Administration::Absent,
            faults: FaultPlan::default(),
        }
    }
}

/// A running server. It stops when this is dropped.
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    service: service::Service,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Sandbox {
    /// Starts a server. It answers from the moment on at which this returns.
    ///
    /// # Errors
    /// When the port is taken or no socket can be had.
    pub async fn start(config: SandboxConfig) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, config.port)).await?;
        let address = listener.local_addr()?;
        let connections = connections::Connections::default();
        let faults = Faults::new(config.faults.clone(), connections.clone());
        let service = service::Service::new(config, faults);
        let incoming = futures::stream::unfold(listener, move |listener| {
            let connections = connections.clone();
            async move {
                let accepted = listener
                    .accept()
                    .await
                    .and_then(|(stream, _)| connections.accept(stream));
                if accepted.is_err() {
                    // Out of descriptors, most likely: it must not spin until some are free again.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Some((accepted, listener))
            }
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let methods = server::FirestoreServer::new(service.clone())
            // The limit is the service's, which knows the status that Firestore gives.
            .max_decoding_message_size(256 << 20)
            .max_encoding_message_size(usize::MAX);
        let admin_methods = admin::FirestoreAdminServer::new(service.clone());
        let serving = Server::builder()
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(32 << 20)
            .max_concurrent_streams(None)
            .add_service(methods)
            .add_service(admin_methods)
            .serve_with_incoming(incoming);
        let task = tokio::spawn(async move {
            tokio::select! {
                result = serving => {
                    if let Err(error) = result {
                        tracing::error!(%error, "the sandbox stopped");
                    }
                }
                _ = stopped => {}
            }
        });
        Ok(Self {
            address,
            service,
            stop: Some(stop),
            task,
        })
    }

    /// Where it listens. Its text is what `FIRESTORE_EMULATOR_HOST` takes.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked for since it started.
    pub fn usage(&self) -> Usage {
        self.service.counters().snapshot()
    }

    /// The handle by which its faults are changed.
    pub fn faults(&self) -> Faults {
        self.service.faults().clone()
    }

    /// Has the administration API answer otherwise from now on.
    pub fn administer(&self, administration: Administration) {
        self.service.administer(administration);
    }

    /// Stops the server and closes every connection.
    pub async fn shutdown(mut self) {
        self.stop_now();
        // The task ends by itself or was never more than this: an error has nothing to tell.
        let _ = (&mut self.task).await;
    }

    fn stop_now(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        self.service.faults().kill_connections();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.stop_now();
    }
}
