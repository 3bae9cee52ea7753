//! Connections: several HTTP/2 channels over one token cache, kept apart by what they carry.
//!
//! A stream that nobody reads for a while keeps its flow control window full, and with enough of them the
//! connection's window: then every other call on that connection waits for the reader, who may be waiting for that
//! very call. So channels are grouped in lanes (bulk streams, calls and fetches, writes), a channel takes only so many
//! streams that their windows together stay below the connection's, and where all channels of a lane are taken, one
//! more is opened: a caller never waits for a channel.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use ::firestore::gcloud_sdk::GoogleAuthHeaders;
use ::firestore::gcloud_sdk::google_cloud_auth::errors::CredentialsError;
use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::http::{self, HeaderMap, HeaderName, HeaderValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::credentials::token_cache;
use super::{Credentials, Error, Result, RetryPolicy};
use crate::document::DatabaseName;

const PRODUCTION: &str = "https://firestore.googleapis.com";
/// What a server may send in one frame: HTTP/2's default of 16 KiB is a hundred names.
const LARGEST_FRAME: u32 = 128 << 10;

/// Where a database lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Google's emulator or the embedded sandbox: no TLS, no credentials.
    Emulator {
        /// `host:port`.
        host_port: String,
    },
    /// Google's service.
    Production {
        /// Who to act as.
        credentials: Credentials,
    },
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The database.
    pub database: DatabaseName,
    /// Where it lives. Environment variables play no part in it.
    pub target: Target,
    /// Channels for bulk streams to start with; more are opened when all are taken.
    pub channels: usize,
    /// Bulk streams that share a channel.
    pub streams_per_channel: usize,
    /// Bytes that a stream may have under way, unread. A channel holds at most `streams_per_channel` + 1 times as
    /// many.
    pub stream_window: u32,
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// How long a stream may stay silent before it is given up and resumed.
    pub stall_timeout: Duration,
    /// What happens after failures.
    pub retry: RetryPolicy,
    /// Documents a second that are read at most, by all streams together; `None`: as many as there are. Counts are not limited.
    pub read_rate: Option<f64>,
}

impl ConnectOptions {
    /// The defaults for a database.
    pub fn new(database: DatabaseName, target: Target) -> Self {
        Self {
            database,
            target,
            channels: 4,
            streams_per_channel: 4,
            stream_window: 2 << 20,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(90),
            retry: RetryPolicy::default(),
            read_rate: None,
        }
    }
}

/// What a channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Long streams, read at the pace of a whole pipeline.
    Bulk,
    /// Everything that is read as fast as it comes.
    Call,
    /// Writes.
    Write,
}

/// All channels of a connection.
#[derive(Debug)]
pub(super) struct Channels {
    bulk: LaneChannels,
    call: LaneChannels,
    write: LaneChannels,
}

/// Requests that share a channel for writes: their answers are small.
const WRITES_PER_CHANNEL: usize = 4;

impl Channels {
    /// Connects one channel, so that a wrong address shows at once; the others connect when they are first used.
    pub(super) async fn connect(options: &ConnectOptions) -> Result<Self> {
        let auth = match &options.target {
            Target::Emulator { .. } => Auth::Owner,
            Target::Production { credentials } => Auth::Google(token_cache(credentials).await?),
        };
        let headers = Arc::new(headers(&options.database, &auth));
        let endpoint = endpoint(options)?;
        let lane = |per_channel: usize, channels: Vec<Channel>| LaneChannels {
            endpoint: endpoint.clone(),
            auth: auth.clone(),
            headers: headers.clone(),
            per_channel: per_channel.max(1),
            slots: Mutex::new(channels.into_iter().map(Slot::new).collect()),
        };
        let first = endpoint.connect().await.map_err(|source| Error::Connect {
            address: address(&options.target).to_owned(),
            source: Box::new(source),
        })?;
        let bulk = (0..options.channels.max(1))
            .map(|_| endpoint.connect_lazy())
            .collect();
        Ok(Self {
            bulk: lane(options.streams_per_channel, bulk),
            call: lane(options.streams_per_channel, vec![first]),
            write: lane(WRITES_PER_CHANNEL, Vec::new()),
        })
    }

    /// The least used channel of a lane, for as long as the lease is held.
    pub(super) fn lease(&self, lane: Lane) -> Lease {
        match lane {
            Lane::Bulk => self.bulk.lease(),
            Lane::Call => self.call.lease(),
            Lane::Write => self.write.lease(),
        }
    }
}

fn address(target: &Target) -> &str {
    match target {
        Target::Emulator { host_port } => host_port.trim_start_matches("http://").trim_end_matches('/'),
        Target::Production { .. } => PRODUCTION,
    }
}

fn endpoint(options: &ConnectOptions) -> Result<Endpoint> {
    let shown = address(&options.target).to_owned();
    let url = match &options.target {
        Target::Emulator { .. } => format!("http://{shown}"),
        Target::Production { .. } => shown.clone(),
    };
    let refuse = |source: tonic::transport::Error| Error::Connect {
        address: shown.clone(),
        source: Box::new(source),
    };
    let streams = u32::try_from(options.streams_per_channel.max(1)).unwrap_or(u32::MAX);
    let endpoint = Channel::from_shared(url)
        .map_err(|source| Error::Connect {
            address: shown.clone(),
            source: Box::new(source),
        })?
        .user_agent(concat!("firebank/", env!("CARGO_PKG_VERSION")))
        .map_err(refuse)?
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(60)))
        .max_frame_size(LARGEST_FRAME)
        .initial_stream_window_size(options.stream_window)
        .initial_connection_window_size(options.stream_window.saturating_mul(streams.saturating_add(1)));
    match options.target {
        // The emulator's server closes connections that ping often.
        Target::Emulator { .. } => Ok(endpoint),
        Target::Production { .. } => endpoint
            .http2_keep_alive_interval(Duration::from_secs(60))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true)
            .tls_config(ClientTlsConfig::new().with_webpki_roots())
            .map_err(refuse),
    }
}

#[derive(Debug)]
struct LaneChannels {
    endpoint: Endpoint,
    auth: Auth,
    headers: Arc<HeaderMap>,
    per_channel: usize,
    slots: Mutex<Vec<Slot>>,
}

#[derive(Debug)]
struct Slot {
    channel: Channel,
    streams: Arc<AtomicUsize>,
}

impl Slot {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            streams: Arc::default(),
        }
    }
}

impl LaneChannels {
    fn lease(&self) -> Lease {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let least = slots
            .iter()
            .enumerate()
            .map(|(index, slot)| (slot.streams.load(Relaxed), index))
            .min();
        let index = match least {
            Some((streams, index)) if streams < self.per_channel => index,
            _ => {
                slots.push(Slot::new(self.endpoint.connect_lazy()));
                slots.len() - 1
            }
        };
        let slot = &slots[index];
        // Under the lock, so that two leases never see the same count.
        slot.streams.fetch_add(1, Relaxed);
        Lease {
            service: Authorized {
                channel: slot.channel.clone(),
                auth: self.auth.clone(),
                headers: self.headers.clone(),
            },
            streams: slot.streams.clone(),
        }
    }
}

/// A place on a channel, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) service: Authorized,
    streams: Arc<AtomicUsize>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Relaxed);
    }
}

#[derive(Clone)]
enum Auth {
    /// The word that emulators take for an administrator's token.
    Owner,
    Google(Arc<GoogleAuthHeaders>),
}

impl std::fmt::Debug for Auth {
    /// Nothing of a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Auth::Owner => "Owner",
            Auth::Google(_) => "Google",
        })
    }
}

/// A channel that adds the headers which say who asks and for which database.
#[derive(Clone, Debug)]
pub(super) struct Authorized {
    channel: Channel,
    auth: Auth,
    headers: Arc<HeaderMap>,
}

/// The routing headers, as Google's own clients send them: a request that lacks them may be routed to the default
/// database's location.
fn headers(database: &DatabaseName, auth: &Auth) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut add = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    add("google-cloud-resource-prefix", &database.resource());
    add(
        "x-goog-request-params",
        &format!(
            "project_id={}&database_id={}",
            percent_encoded(&database.project),
            percent_encoded(&database.database)
        ),
    );
    add(
        "x-goog-api-client",
        concat!("gl-rust/1 gccl/", env!("CARGO_PKG_VERSION")),
    );
    if let Auth::Owner = auth {
        add("authorization", "Bearer owner");
    }
    headers
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

impl tower::Service<http::Request<Body>> for Authorized {
    type Response = http::Response<Body>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let fresh = self.channel.clone();
        // The one that was polled ready goes, the clone stays.
        let mut channel = std::mem::replace(&mut self.channel, fresh);
        let auth = self.auth.clone();
        let headers = self.headers.clone();
        Box::pin(async move {
            let target = request.headers_mut();
            for (name, value) in headers.iter() {
                target.insert(name.clone(), value.clone());
            }
            if let Auth::Google(tokens) = auth {
                let tokens = tokens.headers().await.map_err(token_status)?;
                for (name, value) in tokens.iter() {
                    target.insert(name.clone(), value.clone());
                }
            }
            Ok(channel.call(request).await?)
        })
    }
}

/// A token that cannot be had, as the status that the server would give without one: retried if that may help.
fn token_status(error: ::firestore::gcloud_sdk::error::Error) -> tonic::Status {
    use ::firestore::gcloud_sdk::error::ErrorKind;
    let transient =
        matches!(error.kind(), ErrorKind::Credentials(cause) if CredentialsError::is_transient(cause));
    let message = format!("no access token: {error}");
    let mut status = match transient {
        true => tonic::Status::unavailable(message),
        false => tonic::Status::unauthenticated(message),
    };
    status.set_source(Arc::new(error));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_names_the_database() {
        let headers = headers(&DatabaseName::new("my-project", "(default)"), &Auth::Owner);
        assert_eq!(
            headers["google-cloud-resource-prefix"],
            "projects/my-project/databases/(default)"
        );
        assert_eq!(
            headers["x-goog-request-params"],
            "project_id=my-project&database_id=%28default%29"
        );
        assert_eq!(headers["authorization"], "Bearer owner");
    }

    #[tokio::test]
    async fn production_is_reached_by_tls() {
        let target = Target::Production {
            credentials: Credentials::ApplicationDefault,
        };
        let options = ConnectOptions::new(DatabaseName::new("p", "(default)"), target);
        // Fails where no cryptography or no certificates are compiled in.
        let endpoint = endpoint(&options).unwrap();
        assert_eq!(endpoint.uri().to_string(), "https://firestore.googleapis.com/");
        let target = Target::Emulator {
            host_port: "http://localhost:8080/".to_owned(),
        };
        let options = ConnectOptions { target, ..options };
        assert_eq!(
            super::endpoint(&options).unwrap().uri().to_string(),
            "http://localhost:8080/"
        );
    }

    #[tokio::test]
    async fn streams_spread_and_a_full_lane_grows() {
        let lane = LaneChannels {
            endpoint: Endpoint::from_static("http://127.0.0.1:1"),
            auth: Auth::Owner,
            headers: Arc::default(),
            per_channel: 2,
            slots: Mutex::new(Vec::new()),
        };
        let mut leases: Vec<Lease> = (0..5).map(|_| lane.lease()).collect();
        let counts = || -> Vec<usize> {
            lane.slots
                .lock()
                .unwrap()
                .iter()
                .map(|slot| slot.streams.load(Relaxed))
                .collect()
        };
        assert_eq!(counts(), [2, 2, 1]);
        leases.remove(0);
        assert_eq!(counts(), [1, 2, 1]);
        leases.push(lane.lease());
        leases.push(lane.lease());
        assert_eq!(counts(), [2, 2, 2]);
        leases.clear();
        assert_eq!(counts(), [0, 0, 0]);
    }
}
