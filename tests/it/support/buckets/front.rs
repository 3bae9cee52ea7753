//! An HTTP server on a loopback port that passes requests on, counts them, and makes trouble where a test
//! asks for it.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::{TcpListener, TcpStream};

pub(super) const S3_KEY: &str = "AKIATEST";
pub(super) const S3_SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQ";

/// What was asked of the server, trouble or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// `PUT` for an overwriting one, `CREATE` for one that must not be; `GET`, `RANGE` for a part; `HEAD`,
    /// `LIST`, `DELETE`.
    pub(crate) verb: &'static str,
    /// The object, with its bucket.
    pub(crate) path: String,
    /// Counted from 1, among all.
    pub(crate) number: u64,
    /// Counted from 1, among those with the same verb and path.
    pub(crate) attempt: u64,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// This answer, without asking the server.
    Answer(u16, &'static str),
    /// The same, with headers.
    AnswerWith(u16, &'static str, Vec<(&'static str, &'static str)>),
    /// The connection ends before the server is asked.
    Drop,
    /// The server does it, and the connection ends without an answer.
    DropAnswer,
    /// The server does it, and the answer's body ends after so many bytes.
    Cut(usize),
    /// The server does it, and after so many bytes of the answer's body nothing more comes.
    Stall(usize),
    /// Nothing comes at all.
    Silence,
    /// The server is asked only after a while.
    Late(Duration),
    /// The answer comes in pieces, this far apart.
    Slow(Duration),
    /// A create-only put that the server refuses is answered as if it were done.
    Accept,
}

type Rule = dyn Fn(&Asked) -> Option<Trouble> + Send + Sync;
type Body = UnsyncBoxBody<Bytes, std::io::Error>;

enum Behind {
    Folder {
        service: S3Service,
        root: PathBuf,
        is_gcs: bool,
    },
    Server(SocketAddr),
}

struct State {
    behind: Behind,
    asked: Mutex<Vec<Asked>>,
    rule: Mutex<Option<Arc<Rule>>>,
    /// Requests under way, and the most that there were since the last [`Front::forget`].
    busy: Mutex<(u64, u64)>,
    /// The file system backend looks whether an object exists and then writes, which is no create-only put
    /// when two do it at once. The real services decide at one place; so does this.
    creating: tokio::sync::Mutex<()>,
}

/// See the module's documentation. Ends when it is dropped.
pub(crate) struct Front {
    address: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Front {
    /// S3 over a folder, whose folders are the buckets.
    pub(super) async fn of_folder(folder: &Path, is_gcs: bool) -> Self {
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).unwrap());
        if !is_gcs {
            builder.set_auth(s3s::auth::SimpleAuth::from_single(S3_KEY, S3_SECRET));
        }
        let service = builder.build();
        let root = folder.to_owned();
        Self::start(Behind::Folder {
            service,
            root,
            is_gcs,
        })
        .await
    }

    /// Another server.
    pub(super) async fn of_server(address: SocketAddr) -> Self {
        Self::start(Behind::Server(address)).await
    }

    async fn start(behind: Behind) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            behind,
            asked: Mutex::default(),
            rule: Mutex::default(),
            busy: Mutex::default(),
            creating: tokio::sync::Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&state), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, state, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Which requests meet trouble from now on.
    pub(crate) fn trouble(&self, rule: impl Fn(&Asked) -> Option<Trouble> + Send + Sync + 'static) {
        self.forget();
        *self.state.rule.lock().unwrap() = Some(Arc::new(rule));
    }

    pub(crate) fn no_trouble(&self) {
        *self.state.rule.lock().unwrap() = None;
    }

    /// Begins to count anew.
    pub(crate) fn forget(&self) {
        self.state.asked.lock().unwrap().clear();
        self.state.busy.lock().unwrap().1 = 0;
    }

    /// The most requests that were under way at once.
    pub(crate) fn most_at_once(&self) -> u64 {
        self.state.busy.lock().unwrap().1
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, verb: &str) -> u64 {
        let asked = self.state.asked.lock().unwrap();
        asked.iter().filter(|asked| asked.verb == verb).count() as u64
    }
}

fn verb(request: &Request<Incoming>) -> &'static str {
    let query = request.uri().query().unwrap_or_default();
    let has = |name: &str| request.headers().contains_key(name);
    match *request.method() {
        Method::PUT if has("if-none-match") || has("x-goog-if-generation-match") => "CREATE",
        Method::PUT => "PUT",
        Method::GET if query.contains("list-type=2") || query.contains("comp=list") => "LIST",
        Method::GET if has("range") || has("x-ms-range") => "RANGE",
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::DELETE => "DELETE",
        // Azure deletes by a batch.
        Method::POST if query.contains("comp=batch") => "DELETE",
        _ => "OTHER",
    }
}

/// One request under way.
struct Busy<'a>(&'a State);

impl<'a> Busy<'a> {
    fn new(state: &'a State) -> Self {
        let mut busy = state.busy.lock().unwrap();
        busy.0 += 1;
        busy.1 = busy.1.max(busy.0);
        Self(state)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.lock().unwrap().0 -= 1;
    }
}

/// An error of this function ends the connection.
async fn answer(state: Arc<State>, request: Request<Incoming>) -> std::io::Result<Response<Body>> {
    let (asked, rule) = {
        let verb = verb(&request);
        let path = request.uri().path().to_owned();
        let mut all = state.asked.lock().unwrap();
        let same = all
            .iter()
            .filter(|other| other.verb == verb && other.path == path);
        let asked = Asked {
            verb,
            attempt: same.count() as u64 + 1,
            path,
            number: all.len() as u64 + 1,
        };
        all.push(asked.clone());
        (asked, state.rule.lock().unwrap().clone())
    };
    let _busy = Busy::new(&state);
    let trouble = rule.and_then(|rule| rule(&asked));
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    match &trouble {
        Some(Trouble::Answer(status, text)) => return Ok(ready(*status, text, &[])),
        Some(Trouble::AnswerWith(status, text, headers)) => return Ok(ready(*status, text, headers)),
        Some(Trouble::Drop) => return Err(gone()),
        Some(Trouble::Silence) => std::future::pending().await,
        Some(Trouble::Late(pause)) => tokio::time::sleep(*pause).await,
        _ => {}
    }
    let _creating = match asked.verb {
        "CREATE" => Some(state.creating.lock().await),
        _ => None,
    };
    let answered = match &state.behind {
        Behind::Folder {
            service,
            root,
            is_gcs,
        } => {
            let bucket = asked
                .path
                .split('/')
                .nth(1)
                .unwrap_or_default()
                .replace("%2D", "-");
            // The backend would make it.
            if !root.join(bucket).is_dir() {
                return Ok(ready(404, "<Error><Code>NoSuchBucket</Code></Error>", &[]));
            }
            if *is_gcs {
                as_s3(&mut parts.headers);
            }
            let request = Request::from_parts(parts, s3s::Body::from(body));
            let response = service
                .call(request)
                .await
                .map_err(|error| std::io::Error::other(format!("{error:?}")))?;
            let (mut parts, body) = response.into_parts();
            if *is_gcs {
                parts.headers.insert("x-goog-generation", "1".parse().unwrap());
            }
            let body = BodyExt::collect(body)
                .await
                .map_err(|error| std::io::Error::other(error.to_string()))?;
            (parts, body.to_bytes())
        }
        Behind::Server(address) => pass_on(*address, Request::from_parts(parts, Full::new(body))).await?,
    };
    let (parts, body) = answered;
    if trouble == Some(Trouble::Accept) && matches!(parts.status.as_u16(), 409 | 412) {
        return Ok(ready(201, "", &[("etag", "\"1\""), ("x-goog-generation", "1")]));
    }
    let body = match trouble {
        Some(Trouble::DropAnswer) => return Err(gone()),
        Some(Trouble::Cut(length)) => {
            let head = body.slice(..length.min(body.len()));
            pieces(vec![head], None, Some(Err(gone())))
        }
        Some(Trouble::Stall(length)) => pieces(vec![body.slice(..length.min(body.len()))], None, None),
        Some(Trouble::Slow(pause)) => {
            let each = body.len().div_ceil(4).max(1);
            let parts = body.chunks(each).map(Bytes::copy_from_slice).collect();
            pieces(parts, Some(pause), Some(Ok(())))
        }
        _ => Full::new(body)
            .map_err(|never: Infallible| match never {})
            .boxed_unsync(),
    };
    Ok(Response::from_parts(parts, body))
}

fn gone() -> std::io::Error {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset)
}

fn ready(status: u16, text: &'static str, headers: &[(&'static str, &'static str)]) -> Response<Body> {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let mut response = Response::new(body.map_err(|never: Infallible| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

/// A body of these pieces, a pause before each, and then its end: none at all, an error, or a good one.
fn pieces(parts: Vec<Bytes>, pause: Option<Duration>, end: Option<std::io::Result<()>>) -> Body {
    let parts = futures::stream::iter(parts).then(move |part| async move {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        Ok(Frame::data(part))
    });
    let end = futures::stream::once(async move {
        match end {
            None => std::future::pending().await,
            Some(Ok(())) => Ok(Frame::data(Bytes::new())),
            // What came before shall be on its way.
            Some(Err(error)) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(error)
            }
        }
    });
    StreamBody::new(parts.chain(end)).boxed_unsync()
}

/// The headers in which Google's XML interface differs from S3's.
fn as_s3(headers: &mut HeaderMap) {
    headers.remove("authorization");
    if headers
        .remove("x-goog-if-generation-match")
        .is_some_and(|value| value == "0")
    {
        headers.insert("if-none-match", "*".parse().unwrap());
    }
}

async fn pass_on(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> std::io::Result<(hyper::http::response::Parts, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(std::io::Error::other)?;
    let connection = tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .map_err(std::io::Error::other)?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    connection.abort();
    Ok((parts, body))
}
