//! Reading a key range at one time, in the order of names, with nothing repeated and nothing skipped.
//!
//! One query without a collection, over all descendants of the root, returns every document at every depth,
//! the children of missing documents included. It is asked for in pages, each resumed after the last document
//! that arrived: a page bounds what a server has to hold open, and a cut stream is just a short page. Servers
//! have been seen to end streams early and call it OK, so **a range is finished only when a query from its
//! cursor is answered, and has no documents**: Firestore says in a message of its own that there are none, so
//! a stream without any message is one more that ended early.
//!
//! A server that refuses such queries is read another way: see [`walk`](super::walk). Where only some
//! collection groups are wanted, each is a query of its own: see [`groups`](super::groups).
//!
//! A page begins with an idle moment, the time to its first document. So pages are long (their size follows
//! the documents' mean size), and the next one is asked for when the last document of the one before has
//! arrived, without waiting for the stream to end.

use std::time::Instant;

use futures::{Stream, stream};
use tonic::Status;

use super::by_name::{kindless_refused, query_by_name, query_request};
use super::call::{encoded, no_answer};
use super::connect::Lane;
use super::cursor::{NameRange, name_range};
use super::groups::MergedGroups;
use super::page::{Page, Step};
use super::retry::Backoff;
use super::walk::Walker;
use super::{Error, Firestore, Method, Result};
use crate::document::{DocumentBatch, DocumentKey, DocumentPath, KeyRange, Timestamp};

/// What to scan, and how.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// The keys to read.
    pub range: KeyRange,
    /// Read only documents whose collection has one of these ids, at any depth, by a query for each; none:
    /// all documents.
    pub groups: Vec<String>,
    /// Begin after this document instead of at the range's start: where an earlier scan has got to.
    pub after: Option<DocumentKey>,
    /// The time to read at.
    pub read_time: Timestamp,
    /// Leave the bodies away: every document comes without fields, with its times. Billed like a whole read.
    pub names_only: bool,
    /// Documents a query asks for; `None` adapts to their size.
    pub page_documents: Option<u32>,
    /// Documents in a batch, at most.
    pub batch_documents: usize,
    /// Bytes of keys and bodies that complete a batch.
    pub batch_bytes: usize,
}

impl ScanOptions {
    /// Whole documents of a range at a time.
    pub fn new(range: KeyRange, read_time: Timestamp) -> Self {
        Self {
            range,
            groups: Vec::new(),
            after: None,
            read_time,
            names_only: false,
            page_documents: None,
            batch_documents: 1024,
            batch_bytes: 512 << 10,
        }
    }

    /// Names and times only.
    pub fn names(range: KeyRange, read_time: Timestamp) -> Self {
        Self {
            names_only: true,
            ..Self::new(range, read_time)
        }
    }
}

impl Firestore {
    /// Streams the documents of a range as they were at the read time, strictly ascending by key, in batches.
    ///
    /// Failures that pass are retried and the stream resumes where it was; the stream ends after the first error.
    /// Nothing runs while it is not polled, beyond what fits the connection's windows; dropping it cancels.
    pub fn scan(
        &self,
        options: ScanOptions,
    ) -> impl Stream<Item = Result<DocumentBatch>> + Send + 'static + use<> {
        stream::try_unfold(Scan::Ahead(self.clone(), options), |mut scan| async move {
            let batch = scan.next_batch().await?;
            Ok(batch.map(|batch| (batch, scan)))
        })
    }
}

/// Bytes that a page should hold, so that its start does not count: at 40 MB/s and 5 ms it is about 1 %.
const PAGE_BYTES: u64 = 16 << 20;
const FIRST_PAGE: u32 = 10_000;
const SMALLEST_PAGE: u32 = 300;
const LARGEST_PAGE: u32 = 100_000;

/// How many documents to ask for next.
#[derive(Debug)]
struct PageSize {
    fixed: Option<u32>,
    documents: u64,
    bytes: u64,
}

impl PageSize {
    fn next(&self) -> u32 {
        match (self.fixed, self.bytes / self.documents.max(1)) {
            (Some(fixed), _) => fixed.max(1),
            (None, 0) => FIRST_PAGE,
            (None, mean) => u32::try_from(PAGE_BYTES / mean)
                .unwrap_or(LARGEST_PAGE)
                .clamp(SMALLEST_PAGE, LARGEST_PAGE),
        }
    }

    fn arrived(&mut self, documents: u64, bytes: u64) {
        self.documents += documents;
        self.bytes += bytes;
    }
}

impl Firestore {
    /// How many documents a query of a scan asks for whose documents take so many bytes each.
    pub(crate) fn page_documents(&self, mean_bytes: u64) -> u64 {
        let size = PageSize {
            fixed: self.is_emulator().then_some(FIRST_PAGE),
            documents: 1,
            bytes: mean_bytes,
        };
        size.next().into()
    }
}

/// A scan, one way or the other.
enum Scan {
    Ahead(Firestore, ScanOptions),
    Query(Box<Scanner>),
    Groups(Box<MergedGroups>),
    Walk(Box<Walker>),
}

impl Scan {
    async fn next_batch(&mut self) -> Result<Option<DocumentBatch>> {
        if let Self::Ahead(firestore, options) = self {
            let (firestore, options) = (firestore.clone(), options.clone());
            if !options.groups.is_empty() {
                *self = Self::Groups(Box::new(MergedGroups::new(&firestore, &options)?));
                return Box::pin(self.next_batch()).await;
            }
            if !firestore.walks() {
                let mut scanner = Box::new(Scanner::new(firestore.clone(), None, options.clone())?);
                match scanner.next_batch().await {
                    Err(Error::KindlessRefused { source }) => firestore.walk_from_now_on(&source),
                    first => {
                        *self = Self::Query(scanner);
                        return first;
                    }
                }
            }
            *self = Self::Walk(Box::new(Walker::new(firestore, options)));
        }
        match self {
            Self::Query(scanner) => scanner.next_batch().await,
            Self::Groups(groups) => groups.next_batch().await,
            Self::Walk(walker) => walker.next_batch().await,
            Self::Ahead(..) => Ok(None),
        }
    }
}

/// The documents of a range, of all collections or of those with one id.
pub(super) struct Scanner {
    firestore: Firestore,
    group: Option<String>,
    options: ScanOptions,
    names: NameRange,
    size: PageSize,
    backoff: Backoff,
    page: Option<Page>,
    batch: DocumentBatch,
    /// The key of the last document of the last batch that was given out, or that the scan begins after; or
    /// empty.
    given: Vec<u8>,
    finished: bool,
}

impl Scanner {
    pub(super) fn new(firestore: Firestore, group: Option<String>, options: ScanOptions) -> Result<Self> {
        let fixed = match (options.page_documents, firestore.is_emulator()) {
            // What a query costs the emulator grows with the square of its results, and with each query.
            (None, true) => Some(FIRST_PAGE),
            (fixed, _) => fixed,
        };
        Ok(Self {
            names: name_range(&options.range)?,
            finished: options.range.is_empty(),
            size: PageSize {
                fixed,
                documents: 0,
                bytes: 0,
            },
            backoff: Backoff::new(firestore.inner.retry.clone()),
            page: None,
            batch: DocumentBatch::new(),
            given: match &options.after {
                Some(after) => after.as_bytes().to_vec(),
                None => Vec::new(),
            },
            firestore,
            group,
            options,
        })
    }

    /// The next documents, `None` when the range is finished.
    pub(super) async fn next_batch(&mut self) -> Result<Option<DocumentBatch>> {
        while !self.finished {
            if self.is_full() {
                return Ok(Some(self.give_batch()));
            }
            if let Err(status) = self.read_on().await? {
                self.finish_page();
                let read_time = Some(self.options.read_time);
                self.firestore
                    .wait_or_fail(Method::RunQuery, read_time, &mut self.backoff, status)
                    .await
                    .map_err(|error| match &self.group {
                        None => kindless_refused(error),
                        Some(_) => error,
                    })?;
            }
        }
        Ok((!self.batch.is_empty()).then(|| self.give_batch()))
    }

    fn give_batch(&mut self) -> DocumentBatch {
        if let Some(last) = self.batch.last() {
            self.given.clear();
            self.given.extend_from_slice(last.key);
        }
        std::mem::take(&mut self.batch)
    }

    /// Takes in messages until a batch is full, a page ends or a call fails. The inner error is the call's.
    async fn read_on(&mut self) -> Result<Result<(), Status>> {
        if self.page.is_none() {
            match self.open_page().await? {
                Ok(page) => self.page = Some(page),
                Err(status) => return Ok(Err(status)),
            }
        }
        if self.batch.is_empty() {
            let room = self.options.batch_bytes + self.options.batch_bytes / 8;
            let documents = self.options.batch_documents.min(room);
            self.batch.reserve(documents);
            let (keys, bodies) = self.batch.buffers();
            match self.options.names_only {
                true => {
                    keys.reserve(48 * documents);
                    bodies.reserve(documents);
                }
                false => bodies.reserve(room),
            }
        }
        loop {
            let ended = self.take_in_arrived()?;
            let is_full = self.is_full();
            let Some(page) = &mut self.page else {
                return Ok(Ok(()));
            };
            if is_full {
                page.taken.account_so_far(&self.firestore.inner.stats);
                return Ok(Ok(()));
            }
            let step = match ended {
                Some(ended) => ended,
                None if page.taken.documents == page.limit => {
                    page.take_in_end();
                    break;
                }
                None => page.take_in_next(&mut self.batch).await?,
            };
            match step {
                Step::Document => self.check_order()?,
                Step::Progress => {}
                Step::End if !page.taken.answered => return Ok(Err(no_answer())),
                Step::End => {
                    self.finished = page.taken.documents == 0;
                    break;
                }
                Step::Failed(status) => return Ok(Err(status)),
            }
        }
        self.finish_page();
        Ok(Ok(()))
    }

    /// Takes in the messages that have arrived, as far as the batch has room and the page documents. Returns what has
    /// arrived and is no message: the stream's end, or a failure. Not async: a scan of names spends its time here.
    fn take_in_arrived(&mut self) -> Result<Option<Step>> {
        while !self.is_full()
            && let Some(page) = &mut self.page
            && page.taken.documents < page.limit
            && let Some(step) = page.take_in_arrived(&mut self.batch)?
        {
            match step {
                Step::Document => self.check_order()?,
                Step::Progress => {}
                Step::End | Step::Failed(_) => return Ok(Some(step)),
            }
        }
        Ok(None)
    }

    /// Checks that the batch's last document comes after those before.
    #[inline]
    fn check_order(&self) -> Result<()> {
        match self.batch.ends_ascending(&self.given) {
            true => Ok(()),
            false => Err(out_of_order(&self.given, &self.batch)?),
        }
    }

    fn is_full(&self) -> bool {
        self.batch.len() >= self.options.batch_documents.max(1)
            || self.batch.byte_len() >= self.options.batch_bytes
    }

    /// Does the books of the page, if one is open, and lets go of it.
    fn finish_page(&mut self) {
        let Some(page) = self.page.take() else { return };
        if page.taken.documents > 0 {
            self.backoff.progressed();
            self.size.arrived(page.taken.documents, page.taken.bytes);
        }
        page.taken
            .account(&self.firestore.inner.stats, &self.firestore.inner.read_rate);
    }

    async fn open_page(&mut self) -> Result<Result<Page, Status>> {
        let last = match self.batch.last() {
            Some(last) => Some(last.path()),
            None if self.given.is_empty() => None,
            None => Some(DocumentPath::from_key(&self.given)),
        };
        let last = last
            .transpose()
            .map_err(|source| Error::malformed(Method::RunQuery, source))?;
        let limit = self.firestore.inner.read_rate.query(self.size.next()).await;
        let asked_at = Instant::now();
        let root = &self.firestore.inner.root;
        let query = query_by_name(root, self.group.as_deref(), &self.names, last.as_ref());
        let read_time = Some(self.options.read_time);
        let request = query_request(root, query, self.options.names_only, limit, read_time);
        let opened = self
            .firestore
            .open_stream(Lane::Bulk, Method::RunQuery, encoded(&request))
            .await;
        Ok(opened.map(|answers| Page::new(answers, root, limit.into(), self.options.read_time, asked_at)))
    }
}

impl Drop for Scanner {
    /// Whoever has read enough leaves in the middle of a page, and it is billed all the same.
    fn drop(&mut self) {
        self.finish_page();
    }
}

/// What is wrong where the batch's last document does not come after the one before it, which may be in the batch given
/// out before.
#[cold]
fn out_of_order(given: &[u8], batch: &DocumentBatch) -> Result<Error> {
    let keys = |index: usize| batch.get(index).map(|document| document.key);
    let last = batch.len().saturating_sub(1);
    let before = last.checked_sub(1).and_then(keys).unwrap_or(given);
    let path =
        |key: &[u8]| DocumentPath::from_key(key).map_err(|source| Error::malformed(Method::RunQuery, source));
    Ok(Error::OutOfOrder {
        first: path(before)?,
        second: path(keys(last).unwrap_or_default())?,
    })
}
