//! HTTP to a bucket with time-outs that fit what is sent, and with refusals that keep what the service said.
//!
//! The client library knows one time-out for a whole request, which is too short for 16 MiB over a slow line
//! or too long for a connection that died, and gives up on a create whose answer was lost. So its requests
//! pass through here: a download may take as long as bytes keep coming, an upload as long as its size at the
//! slowest useful rate; whatever then fails is tried again by the library with its back-off. Answers that no
//! second try changes come out as a [`Refusal`].

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};
use tokio::time::{Instant, Sleep};

/// Of an error's body: more than any service writes.
const MAX_ERROR_BODY: usize = 64 << 10;
/// Attempts to reach a host that never answered: an address with a typing error should be told soon.
const FIRST_ATTEMPTS: u32 = 5;

/// How long a request may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Without a byte from the other side.
    pub(super) stall: Duration,
    /// Uploads may be this slow, in bytes a second.
    pub(super) slowest_upload: u64,
}

/// Makes the clients of one store.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) patience: Patience,
    /// Where a virtual machine is told about itself, as `HOST` or `HOST:PORT`.
    pub(super) metadata: Arc<[String]>,
}

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Requests {
            client: ReqwestConnector::default().connect(options)?,
            patience: self.patience,
            metadata: Arc::clone(&self.metadata),
            answered: AtomicBool::new(false),
            unanswered: AtomicU32::new(0),
        }))
    }
}

/// An answer that trying again does not change, in the service's words.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// The service's own code, such as `AccessDenied`.
    pub(super) code: Option<String>,
    message: Option<String>,
    /// Where S3 says the bucket is.
    pub(super) region: Option<String>,
    /// It came from where credentials are fetched, not from the bucket.
    pub(super) of_credentials: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the service answered {}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// Nothing answers where a virtual machine would be told its credentials.
#[derive(Debug, thiserror::Error)]
#[error("no credentials are given, and no metadata service has any")]
pub(super) struct NoMetadata;

#[derive(Debug, thiserror::Error)]
#[error("nothing came for {0:?}")]
struct Stalled(Duration);

/// What a request is for, as far as it matters here.
#[derive(Clone, Copy)]
struct Kind {
    of_credentials: bool,
    is_listing: bool,
}

#[derive(Debug)]
struct Requests {
    client: HttpClient,
    patience: Patience,
    metadata: Arc<[String]>,
    answered: AtomicBool,
    unanswered: AtomicU32,
}

#[async_trait::async_trait]
impl HttpService for Requests {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let place = request.uri().authority().map(|authority| authority.as_str());
        let metadata = place.is_some_and(|place| self.metadata.iter().any(|known| known == place));
        let kind = Kind {
            of_credentials: metadata || is_token(&request),
            is_listing: is_listing(&request),
        };
        let is_put = request.method() == "PUT";
        let upload = request.body().content_length() as u64 / self.patience.slowest_upload.max(1);
        let patience = self.patience.stall + Duration::from_secs(upload);
        let result = match tokio::time::timeout(patience, self.client.execute(request)).await {
            Ok(result) => result,
            Err(_) => Err(HttpError::new(HttpErrorKind::Timeout, Stalled(patience))),
        };
        match result {
            Err(_) if metadata => Err(HttpError::new(HttpErrorKind::Unknown, NoMetadata)),
            Err(error) => Err(self.unanswered(error, is_put)),
            Ok(response) => {
                self.answered.store(true, Relaxed);
                self.judge(response, kind).await
            }
        }
    }
}

impl Requests {
    /// Says by an error's kind whether the library tries again.
    fn unanswered(&self, error: HttpError, is_put: bool) -> HttpError {
        use HttpErrorKind as K;
        let kind = match error.kind() {
            K::Connect if !self.answered.load(Relaxed) => {
                match self.unanswered.fetch_add(1, Relaxed) + 1 < FIRST_ATTEMPTS {
                    true => return error,
                    false => return HttpError::new(K::Unknown, Unreachable(error)),
                }
            }
            // Every put may be repeated: `Store::put_new` knows its own object when it meets it.
            K::Timeout | K::Interrupted if is_put => K::Request,
            _ => return error,
        };
        HttpError::new(kind, error)
    }

    async fn judge(&self, response: HttpResponse, kind: Kind) -> Result<HttpResponse, HttpError> {
        let (parts, body) = response.into_parts();
        let status = parts.status.as_u16();
        let body = HttpResponseBody::new(Watched::new(body, self.patience.stall));
        let refused = match status {
            301 | 302 | 307 | 308 | 400 | 401 | 403 | 404 => true,
            402..500 => kind.of_credentials && status != 429,
            _ => false,
        };
        if !refused && (kind.is_listing || kind.of_credentials) {
            // The library reads these whole and does not ask again when they are cut; it does when no answer
            // came.
            let cut = |error| HttpError::new(HttpErrorKind::Interrupted, error);
            return Ok(HttpResponse::from_parts(
                parts,
                body.bytes().await.map_err(cut)?.into(),
            ));
        }
        if !refused {
            return Ok(HttpResponse::from_parts(parts, body));
        }
        let text = error_text(body).await?;
        let header = |name: &str| {
            let value = parts.headers.get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let refusal = Refusal {
            status,
            code: element(&text, "Code").or_else(|| header("x-ms-error-code")),
            message: message(&text),
            region: header("x-amz-bucket-region").or_else(|| element(&text, "Region")),
            of_credentials: kind.of_credentials,
        };
        // That an object is missing is an answer like any other.
        if status == 404 && !refusal.is_missing_bucket() && !kind.of_credentials {
            return Ok(HttpResponse::from_parts(parts, text.into()));
        }
        // S3's way to say that an upload paused for too long.
        let kind = match refusal.code.as_deref() {
            Some("RequestTimeout") => HttpErrorKind::Request,
            _ => HttpErrorKind::Unknown,
        };
        Err(HttpError::new(kind, refusal))
    }
}

impl Refusal {
    pub(super) fn is_missing_bucket(&self) -> bool {
        matches!(
            self.code.as_deref(),
            Some("NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted")
        )
    }

    /// The bucket is somewhere else than where it was asked for.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self.status, 301 | 302 | 307 | 308)
            || matches!(
                self.code.as_deref(),
                Some(
                    "AuthorizationHeaderMalformed"
                        | "IllegalLocationConstraintException"
                        | "PermanentRedirect"
                )
            )
    }

    /// The service does not know who asks, rather than not letting them.
    pub(super) fn is_of_credentials(&self) -> bool {
        self.of_credentials
            || self.status == 401
            || matches!(
                self.code.as_deref(),
                Some(
                    "InvalidAccessKeyId"
                        | "NotSignedUp"
                        | "SignatureDoesNotMatch"
                        | "InvalidToken"
                        | "ExpiredToken"
                        | "TokenRefreshRequired"
                        | "RequestTimeTooSkewed"
                        | "AuthenticationFailed"
                        | "InvalidAuthenticationInfo"
                        | "NoAuthenticationInformation"
                )
            )
    }
}

/// A host that never answered.
#[derive(Debug, thiserror::Error)]
#[error("{}", innermost(.0))]
pub(super) struct Unreachable(HttpError);

/// The last cause, which says it plainest.
fn innermost(error: &HttpError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

fn is_token(request: &HttpRequest) -> bool {
    let path = request.uri().path();
    let host = request.uri().host().unwrap_or_default();
    host.starts_with("sts.")
        || (request.method() == "POST" && (path.ends_with("/token") || path.contains("/oauth2/")))
}

/// One page of a listing.
fn is_listing(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let has = |parameter| query.split('&').any(|given| given == parameter);
    request.method() == "GET" && (has("list-type=2") || has("comp=list"))
}

async fn error_text(mut body: HttpResponseBody) -> Result<String, HttpError> {
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            text.extend_from_slice(&data[..data.len().min(MAX_ERROR_BODY - text.len())]);
        }
        if text.len() == MAX_ERROR_BODY {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What a service says of an error, in XML or, where it hands out tokens, in JSON.
fn message(text: &str) -> Option<String> {
    if let Ok(serde_json::Value::Object(json)) = serde_json::from_str(text) {
        let said = ["error_description", "message", "error"].map(|key| json.get(key)?.as_str());
        return said.into_iter().flatten().next().map(short);
    }
    let message = element(text, "Message")?;
    Some(match element(text, "Details") {
        Some(details) => short(&format!("{message} {details}")),
        None => short(&message),
    })
}

/// One line, and not too long.
fn short(text: &str) -> String {
    const LENGTH: usize = 400;
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// The text of the first element of that name. Services write their errors flat, so that nothing more is needed.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let mut plain = inner.to_owned();
    for (escaped, character) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ] {
        plain = plain.replace(escaped, character);
    }
    Some(plain)
}

/// A body that fails when nothing comes for a while. The clock runs only while somebody waits: a slow reader
/// is no fault of the service.
struct Watched {
    body: HttpResponseBody,
    stall: Duration,
    waiting: bool,
    timer: Pin<Box<Sleep>>,
}

impl Watched {
    fn new(body: HttpResponseBody, stall: Duration) -> Self {
        Self {
            body,
            stall,
            waiting: false,
            timer: Box::pin(tokio::time::sleep(stall)),
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.waiting = false;
            return Poll::Ready(frame);
        }
        if !self.waiting {
            self.waiting = true;
            let deadline = Instant::now() + self.stall;
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(Some(Err(HttpError::new(
            HttpErrorKind::Timeout,
            Stalled(self.stall),
        ))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use super::*;

    #[test]
    fn errors_are_told_in_the_services_words() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access\n denied.</Message>\
                   <Details>x lacks &quot;storage.objects.create&quot;</Details></Error>";
        assert_eq!(element(xml, "Code").unwrap(), "AccessDenied");
        assert_eq!(
            message(xml).unwrap(),
            "Access denied. x lacks \"storage.objects.create\""
        );
        let json = r#"{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}"#;
        assert_eq!(message(json).unwrap(), "Invalid JWT Signature.");
        for nothing in ["", "<html>", "<Message>", "</Message><Message>", "[1]", "{}"] {
            assert_eq!(message(nothing), None, "{nothing}");
        }
        assert_eq!(short(&"ü".repeat(500)).chars().count(), 401);
    }
}
