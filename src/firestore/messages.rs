//! gRPC over HTTP/2, as bytes: how an encoded request becomes a body, and how messages are taken out of an answer.
//!
//! A document that is only passed on costs three to six times as much when it goes through generated message
//! types. So requests are handed over encoded, answers are taken as the bytes that arrived, and only what needs a
//! look inside is decoded by those who need it. Messages are lent out of the frames that they arrived in, and only
//! one that the end of a frame cuts is put together: tonic's client copies every frame into a buffer and gives each
//! message out as a piece of it with a count of its own, which for a scan of names is a tenth of all its work.
//!
//! The framing is <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>: before each message stand a byte
//! that says whether it is compressed, which nothing here asks for, and its length in four, big-endian; the status
//! comes in the trailers, or in the headers of an answer without messages.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http_body::{Body as _, Frame};
use http_body_util::StreamBody;
use tonic::body::Body;
use tonic::codegen::http::{self, HeaderMap, HeaderValue, StatusCode, header};
use tonic::{Code, Status};

use super::Method;

/// An encoded request: its parts are sent one after the other, as one message.
pub(super) type RawRequest = [Bytes; 2];

/// What stands before a message.
const HEAD: usize = 5;
/// A document is at most 1 MiB (4 in the Enterprise edition), a page of a list can be many times that.
const LARGEST_MESSAGE: usize = 64 << 20;

/// A call as an HTTP request.
pub(super) fn http_request(
    method: Method,
    [first, second]: RawRequest,
) -> Result<http::Request<Body>, Status> {
    let len = u32::try_from(first.len() + second.len())
        .map_err(|_| Status::out_of_range("the request is larger than 4 GiB"))?;
    let mut beginning = BytesMut::with_capacity(HEAD + first.len());
    beginning.put_u8(0);
    beginning.put_u32(len);
    beginning.put(first);
    let parts = [beginning.freeze(), second].into_iter();
    let frames = parts
        .filter(|part| !part.is_empty())
        .map(|part| Ok::<_, Infallible>(Frame::data(part)));
    let mut request = http::Request::new(Body::new(StreamBody::new(stream::iter(frames))));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = method.path().into();
    let headers = request.headers_mut();
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(request)
}

/// The messages of an answer, as they arrive. Dropping it cancels the call.
#[derive(Debug)]
pub(super) struct Messages {
    body: Body,
    /// What arrived last.
    frame: Bytes,
    /// How much of it has been given out, or was put into `cut`.
    taken: usize,
    /// A message that ends of frames cut, its head included, as far as it has arrived; all of `frame` is taken then.
    cut: Vec<u8>,
    /// Whether the message in `cut` is whole and has been given out.
    given: bool,
    /// Whether the server has ended the answer with OK.
    ended: bool,
}

/// Where a message lies until the next one is asked for.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Frame(Range<usize>),
    Cut,
}

impl Messages {
    /// What comes after the headers, which say that the call has not failed already.
    pub(super) fn new(response: http::Response<Body>) -> Result<Self, Status> {
        let ended = match Status::from_header_map(response.headers()) {
            Some(status) if status.code() == Code::Ok => true,
            Some(status) => return Err(status),
            None if response.status() == StatusCode::OK => false,
            None => return Err(http_error(response.status())),
        };
        Ok(Self {
            body: response.into_body(),
            frame: Bytes::new(),
            taken: 0,
            cut: Vec::new(),
            given: false,
            ended,
        })
    }

    /// The next message, `None` when the server has ended the answer with OK. Not to be called again after an error.
    #[inline]
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Place>, Status>> {
        match self.next_in_frame() {
            Some(place) => Poll::Ready(Ok(Some(place))),
            None => self.poll_beyond(context),
        }
    }

    /// The message at a place that was given out last.
    #[inline]
    pub(super) fn at(&self, place: Place) -> &[u8] {
        match place {
            Place::Frame(range) => &self.frame[range],
            Place::Cut => &self.cut[HEAD..],
        }
    }

    /// The same, to keep: the memory that it arrived in, and not a copy.
    pub(super) fn take(&mut self, place: Place) -> Bytes {
        match place {
            Place::Frame(range) => self.frame.slice(range),
            Place::Cut => Bytes::from(std::mem::take(&mut self.cut)).slice(HEAD..),
        }
    }

    /// The next message if all of it lies in the frame.
    #[inline]
    fn next_in_frame(&mut self) -> Option<Place> {
        let (head, rest) = self.frame.get(self.taken..)?.split_first_chunk::<HEAD>()?;
        let [0, len @ ..] = *head else { return None };
        let len = u32::from_be_bytes(len) as usize;
        if len > rest.len() {
            return None;
        }
        let start = self.taken + HEAD;
        self.taken = start + len;
        Some(Place::Frame(start..self.taken))
    }

    /// The next message, of which the frame has a beginning at most.
    fn poll_beyond(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Place>, Status>> {
        if std::mem::take(&mut self.given) {
            self.cut.clear();
        }
        loop {
            self.fill_cut(HEAD);
            if let Some(head) = self.cut.first_chunk::<HEAD>() {
                let len = message_len(head)?;
                self.fill_cut(HEAD + len);
                if self.cut.len() == HEAD + len {
                    self.given = true;
                    return Poll::Ready(Ok(Some(Place::Cut)));
                }
            }
            // All of it is taken. Nothing keeps the memory that it shares with other frames from being used again.
            (self.frame, self.taken) = (Bytes::new(), 0);
            match ready!(self.poll_frame(context))? {
                Some(frame) => self.frame = frame,
                None if self.cut.is_empty() => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(Status::internal("the answer ended within a message"))),
            }
            if self.cut.is_empty()
                && let Some(place) = self.next_in_frame()
            {
                return Poll::Ready(Ok(Some(place)));
            }
        }
    }

    /// Moves bytes of the frame to the cut message until that has so many or the frame no more.
    fn fill_cut(&mut self, len: usize) {
        let rest = self.frame.get(self.taken..).unwrap_or_default();
        let part = rest.get(..len.saturating_sub(self.cut.len())).unwrap_or(rest);
        self.cut.extend_from_slice(part);
        self.taken += part.len();
    }

    /// The next frame of data, `None` at an end with OK.
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        while !self.ended {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)?) else {
                return Poll::Ready(Err(no_status()));
            };
            match frame.into_data() {
                Ok(data) => return Poll::Ready(Ok(Some(data))),
                Err(other) => {
                    if let Ok(trailers) = other.into_trailers() {
                        check_ended_well(&trailers)?;
                        self.ended = true;
                    }
                }
            }
        }
        Poll::Ready(Ok(None))
    }
}

fn message_len(&[compressed, ref len @ ..]: &[u8; HEAD]) -> Result<usize, Status> {
    let len = u32::from_be_bytes(*len) as usize;
    match compressed {
        0 if len <= LARGEST_MESSAGE => Ok(len),
        0 => Err(Status::out_of_range(format!(
            "the answer has a message of {len} bytes, and {LARGEST_MESSAGE} are taken at most"
        ))),
        // Not "unimplemented", which says what the server cannot do, and is believed.
        _ => Err(Status::internal(
            "the answer is no gRPC, or is compressed, which was not asked for",
        )),
    }
}

fn check_ended_well(trailers: &HeaderMap) -> Result<(), Status> {
    match Status::from_header_map(trailers) {
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(status),
        None => Err(no_status()),
    }
}

/// An answer that ended and did not say how was cut short on its way.
fn no_status() -> Status {
    Status::unavailable("the answer ended without a status")
}

/// The status of an answer that is not gRPC's, as a proxy gives it, by
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>, except that what passes may be called
/// so: servers that speak gRPC answer 200 with a status of their own, whatever they do not have or cannot do.
fn http_error(status: StatusCode) -> Status {
    let code = match status {
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Code::Unavailable
        }
        _ if status.is_server_error() => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(
        code,
        format!("the answer is HTTP status {status} and no gRPC status"),
    )
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures::StreamExt;
    use proptest::prelude::*;

    use super::super::retry::is_retryable;
    use super::*;

    fn response(frames: Vec<Frame<Bytes>>) -> http::Response<Body> {
        let frames = stream::iter(frames).map(Ok::<_, Infallible>);
        http::Response::new(Body::new(StreamBody::new(frames)))
    }

    fn trailers(status: &'static str) -> Frame<Bytes> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        Frame::trailers(trailers)
    }

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut framed = Vec::new();
        for message in messages {
            framed.push(0);
            framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            framed.extend_from_slice(message);
        }
        framed
    }

    /// All messages, and what came after them.
    fn all(response: http::Response<Body>) -> (Vec<Vec<u8>>, Result<(), Status>) {
        let mut messages = Messages::new(response).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let mut all = Vec::new();
        loop {
            match messages.poll_next(&mut context) {
                Poll::Ready(Ok(Some(place))) => {
                    all.push(messages.at(place.clone()).to_vec());
                    // Every other one is kept.
                    if all.len() % 2 == 0 {
                        assert_eq!(messages.take(place), all[all.len() - 1]);
                    }
                }
                Poll::Ready(Ok(None)) => return (all, Ok(())),
                Poll::Ready(Err(status)) => return (all, Err(status)),
                Poll::Pending => unreachable!("everything has arrived"),
            }
        }
    }

    proptest! {
        #[test]
        fn messages_arrive_as_they_were_sent_however_frames_cut_them(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            cuts in prop::collection::vec(1_usize..60, 1..20),
        ) {
            let bytes = framed(&messages);
            let mut rest = bytes.as_slice();
            let mut frames = Vec::new();
            for cut in cuts.iter().cycle() {
                let (frame, after) = rest.split_at((*cut).min(rest.len()));
                frames.push(Frame::data(Bytes::copy_from_slice(frame)));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            frames.push(trailers("0"));
            let (arrived, ended) = all(response(frames));
            prop_assert_eq!(arrived, messages);
            prop_assert!(ended.is_ok());
        }
    }

    #[test]
    fn only_a_status_ends_an_answer_well() {
        let message = vec![7; 9];
        let whole = Bytes::from(framed(std::slice::from_ref(&message)));
        let code = |frames: Vec<Frame<Bytes>>| {
            let (arrived, ended) = all(response(frames));
            (arrived.len(), ended.err().map(|status| status.code()))
        };
        let data = || Frame::data(whole.clone());
        let cut = || Frame::data(whole.slice(..11));
        assert_eq!(code(vec![data(), trailers("0")]), (1, None));
        assert_eq!(
            code(vec![data(), trailers("8")]),
            (1, Some(Code::ResourceExhausted))
        );
        assert_eq!(
            code(vec![data(), Frame::trailers(HeaderMap::new())]),
            (1, Some(Code::Unavailable))
        );
        assert_eq!(code(vec![data()]), (1, Some(Code::Unavailable)));
        assert_eq!(
            code(vec![data(), cut(), trailers("0")]),
            (1, Some(Code::Internal))
        );
        assert_eq!(code(vec![cut()]), (0, Some(Code::Unavailable)));
    }

    #[test]
    fn what_cannot_be_taken_is_refused() {
        for stranger in [&[1, 0, 0, 0, 1, 9][..], b"<html>"] {
            let (_, ended) = all(response(vec![Frame::data(Bytes::from_static(stranger))]));
            let status = ended.unwrap_err();
            assert!(is_retryable(&status), "{status}");
        }
        let endless = Frame::data(Bytes::from_static(&[0, 255, 255, 255, 255, 9]));
        let (_, ended) = all(response(vec![endless, trailers("0")]));
        assert_eq!(ended.unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn headers_can_be_the_whole_answer() {
        let with = |http: u16, grpc: Option<&'static str>| {
            let mut response = response(Vec::new());
            *response.status_mut() = StatusCode::from_u16(http).unwrap();
            if let Some(grpc) = grpc {
                let value = HeaderValue::from_static(grpc);
                response.headers_mut().insert("grpc-status", value);
            }
            response
        };
        assert!(matches!(all(with(200, Some("0"))), (messages, Ok(())) if messages.is_empty()));
        let refused = |http, grpc| Messages::new(with(http, grpc)).unwrap_err().code();
        assert_eq!(refused(200, Some("7")), Code::PermissionDenied);
        assert_eq!(refused(403, None), Code::PermissionDenied);
        for passing in [404, 408, 429, 500, 502, 503, 504] {
            assert_eq!(refused(passing, None), Code::Unavailable, "{passing}");
        }
        assert_eq!(refused(418, None), Code::Unknown);
    }

    #[test]
    fn a_request_is_one_message() {
        let parts = [Bytes::from_static(b"head"), Bytes::from_static(b"writes")];
        let request = http_request(Method::BatchWrite, parts).unwrap();
        assert_eq!(request.uri(), "/google.firestore.v1.Firestore/BatchWrite");
        let mut body = request.into_body();
        let mut context = Context::from_waker(Waker::noop());
        let mut sent = Vec::new();
        while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut context) {
            sent.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        assert_eq!(sent, framed(&[b"headwrites".to_vec()]));
    }
}
