//! The streams that queries and batch reads answer with: pages from the store, throttled, cut and counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tonic::Status;

use super::codec::{Answer, put_bytes_field};
use super::connections::ConnectionId;
use super::database::{Database, Found, Micros, Stored, put_time_field};
use super::faults::{StreamEnd, StreamFate};
use super::query::{Projection, Walk};
use super::service::Service;
use super::usage::add;

/// Documents in a page. The store is locked for one page at a time.
const PAGE: usize = 256;
/// `done: true` of a query's last answer.
const DONE: [u8; 2] = [6 << 3, 1];

/// Where a stream's answers come from.
pub(crate) enum Source {
    Query(Box<Walk>),
    Names {
        database: Arc<Database>,
        time: Micros,
        keys: std::vec::IntoIter<(String, Vec<u8>)>,
        projection: Projection,
    },
}

/// A stream under way.
pub(crate) struct Pump {
    pub(crate) service: Service,
    pub(crate) source: Source,
    pub(crate) fate: StreamFate,
    pub(crate) connection: ConnectionId,
    /// A transaction that began with this request: told by the first answer.
    pub(crate) transaction: Vec<u8>,
    pub(crate) sent: u64,
    pub(crate) skipped_told: bool,
    pub(crate) held: Option<Answer>,
    pub(crate) done: bool,
    /// Whether the connection is to be closed next.
    pub(crate) reset: bool,
}

/// Counts as an open stream as long as it is there.
struct OpenStream(Service);

impl OpenStream {
    fn new(service: Service) -> Self {
        service.counters().open_streams.fetch_add(1, Ordering::Relaxed);
        Self(service)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.counters().open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pump {
    /// The stream of answers. Nothing runs on its own: dropping it ends it.
    pub(crate) fn stream(self) -> impl Stream<Item = Result<Answer, Status>> + Send + 'static {
        let open = OpenStream::new(self.service.clone());
        stream::unfold((self, open), |(pump, open)| async move {
            let (answers, pump) = pump.step().await?;
            Some((answers, (pump, open)))
        })
        .flat_map(stream::iter)
    }

    async fn step(mut self) -> Option<(Vec<Result<Answer, Status>>, Self)> {
        if self.done {
            return None;
        }
        if self.reset {
            // The documents before it should reach the client: they are in the connection's buffers.
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.service.faults().connections().close(self.connection);
            return std::future::pending().await;
        }
        if self
            .fate
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            self.done = true;
            return Some((
                vec![Err(Status::unavailable(
                    "The stream has reached the end of its life.",
                ))],
                self,
            ));
        }
        let mut answers = Vec::new();
        if !self.transaction.is_empty() {
            answers.push(self.transaction_answer());
        }
        let mut page = match self.next_page() {
            Ok(page) => page,
            Err(status) => {
                self.done = true;
                return Some((vec![Err(status)], self));
            }
        };
        self.done = page.is_empty();
        // The last answer waits until it is known whether more follow, because then it says so.
        let held = std::mem::replace(&mut self.held, page.pop());
        page.splice(0..0, held);
        if self.done
            && matches!(self.source, Source::Query(_))
            && let Some(last) = page.last_mut()
        {
            last.extend_tail(&DONE);
        }
        let first = self.sent;
        answers.extend(page);
        let mut ending = None;
        if let Some((limit, end)) = &self.fate.end {
            let room = limit.saturating_sub(first);
            let documents = answers.iter().filter(|answer| answer.is_document()).count() as u64;
            if documents >= room {
                let mut left = room;
                answers.retain(|answer| {
                    !answer.is_document() || {
                        left = left.wrapping_sub(1);
                        left < room
                    }
                });
                ending = Some(end.clone());
                self.done = true;
            }
        }
        let bytes: usize = answers.iter().map(Answer::len).sum();
        let documents = answers.iter().filter(|answer| answer.is_document()).count() as u64;
        self.service.faults().throttle(documents, bytes).await;
        self.sent += documents;
        let usage = self.service.counters();
        add(&usage.documents_sent, documents);
        add(&usage.sent_bytes, bytes as u64);
        let reads = match &self.source {
            Source::Query(_) if self.done && self.sent == 0 => 1,
            Source::Query(_) => documents,
            Source::Names { .. } => answers.iter().filter(|answer| answer.is_billed()).count() as u64,
        };
        add(&usage.reads, reads);
        let told = matches!(ending, None | Some(StreamEnd::Complete));
        if self.done
            && told
            && self.sent == 0
            && let Source::Query(walk) = &self.source
        {
            let mut message = Vec::new();
            put_time_field(3, walk.time, &mut message);
            message.extend_from_slice(&DONE);
            answers.push(Answer::Message(message.into()));
        }
        let mut out: Vec<_> = answers.into_iter().map(Ok).collect();
        match ending {
            Some(StreamEnd::Status(code)) => {
                out.push(Err(Status::new(code, "The sandbox was told to cut this stream.")));
            }
            Some(StreamEnd::Reset) => {
                self.done = false;
                self.reset = true;
            }
            Some(StreamEnd::Short | StreamEnd::Complete) | None => {}
        }
        Some((out, self))
    }

    fn tail(&self) -> (u32, Micros) {
        match &self.source {
            Source::Query(walk) => (3, walk.time),
            Source::Names { time, .. } => (4, *time),
        }
    }

    fn transaction_answer(&mut self) -> Answer {
        let tag = match &self.source {
            Source::Query(_) => 2,
            Source::Names { .. } => 3,
        };
        let mut message = Vec::new();
        put_bytes_field(tag, &std::mem::take(&mut self.transaction), &mut message);
        Answer::Message(message.into())
    }

    fn next_page(&mut self) -> Result<Vec<Answer>, Status> {
        let (tag, time) = self.tail();
        let mut tail = Vec::new();
        put_time_field(tag, time, &mut tail);
        let tail = Bytes::from(tail);
        match &mut self.source {
            Source::Query(walk) => {
                let before = walk.skipped;
                let page = walk.next(PAGE)?;
                add(&self.service.counters().reads, (walk.skipped - before) as u64);
                let projection = &walk.plan.projection;
                let mut answers: Vec<_> = page
                    .into_iter()
                    .map(|found| answer(found, projection, &tail))
                    .collect();
                if !self.skipped_told
                    && walk.skipped > 0
                    && let Some(first) = answers.first_mut()
                {
                    let mut skipped = Vec::new();
                    prost::encoding::int32::encode(4, &(walk.skipped as i32), &mut skipped);
                    first.extend_tail(&skipped);
                    self.skipped_told = true;
                }
                Ok(answers)
            }
            Source::Names {
                database,
                time,
                keys,
                projection,
            } => {
                let page = keys
                    .by_ref()
                    .take(PAGE)
                    .map(|(name, key)| match database.get(&key, *time) {
                        Some(found) => answer(found, projection, &tail),
                        None => {
                            let mut message = Vec::with_capacity(name.len() + 24);
                            put_bytes_field(2, name.as_bytes(), &mut message);
                            message.extend_from_slice(&tail);
                            Answer::Message(message.into())
                        }
                    });
                Ok(page.collect())
            }
        }
    }
}

fn answer(found: Found, projection: &Projection, tail: &Bytes) -> Answer {
    let document = |stored: &Stored| Answer::Document {
        document: projection.apply(stored),
        tail: tail.clone(),
    };
    match (found, projection) {
        (Found::Stored(stored), _) => document(&stored),
        (Found::Synthetic(source, index), Projection::Fields(_)) => document(&source.stored(index)),
        (Found::Synthetic(source, index), projection) => Answer::Synthetic {
            source,
            index,
            names_only: matches!(projection, Projection::NameOnly),
            tail: tail.clone(),
        },
    }
}
