//! A store in memory that does what real ones do at times: refuses by right, is slow, tells its own time, stops working,
//! and lists what is created meanwhile or does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chrono::TimeDelta;
use firebank::store::Store;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What the store does. All by default: as it should.
#[derive(Clone, Debug, Default)]
pub(crate) struct Habits {
    /// Writing is not permitted.
    pub(crate) no_put: bool,
    /// Deleting what lies below this is not permitted.
    pub(crate) no_delete: Option<String>,
    /// Requests from this one on, counted from 1, fail.
    pub(crate) stops_at: Option<u64>,
    /// How long they take to.
    pub(crate) takes_to_fail: Duration,
    /// Its clock is ahead by so much: what is written bears such times.
    pub(crate) ahead: TimeDelta,
    /// Requests take up to so long, and listings see some of what is created or deleted meanwhile.
    pub(crate) delay: Option<Duration>,
}

/// The store.
#[derive(Debug)]
pub(crate) struct StrangeStore {
    inner: Arc<InMemory>,
    habits: Mutex<Habits>,
    requests: AtomicU64,
    deleted: Arc<Mutex<Vec<String>>>,
    listed: Mutex<Vec<String>>,
    ahead: WrittenAhead,
}

/// By how much the clock was ahead when each object was written.
type WrittenAhead = Arc<Mutex<HashMap<Path, TimeDelta>>>;

impl StrangeStore {
    pub(crate) fn new() -> Arc<Self> {
        Self::over(Arc::default(), WrittenAhead::default())
    }

    fn over(inner: Arc<InMemory>, ahead: WrittenAhead) -> Arc<Self> {
        Arc::new(Self {
            inner,
            habits: Mutex::default(),
            requests: AtomicU64::new(0),
            deleted: Arc::default(),
            listed: Mutex::default(),
            ahead,
        })
    }

    /// A copy with the same objects, that behaves.
    pub(crate) fn fork(&self) -> Arc<Self> {
        let ahead = self.ahead.lock().unwrap().clone();
        Self::over(Arc::new(self.inner.fork()), Arc::new(Mutex::new(ahead)))
    }

    /// The same objects as another process sees them, with habits of its own.
    pub(crate) fn beside(&self) -> Arc<Self> {
        Self::over(Arc::clone(&self.inner), Arc::clone(&self.ahead))
    }

    pub(crate) fn store(self: &Arc<Self>) -> Store {
        Store::new(Arc::clone(self) as Arc<dyn ObjectStore>, "strange")
    }

    /// Changes what it does from now on, and begins to count anew.
    pub(crate) fn habits(&self, habits: Habits) {
        *self.habits.lock().unwrap() = habits;
        self.requests.store(0, Ordering::SeqCst);
    }

    /// Requests since the habits were changed.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// The names of what was deleted, in order.
    pub(crate) fn deleted(&self) -> Vec<String> {
        self.deleted.lock().unwrap().clone()
    }

    /// The folders that were listed since this was asked last, in order.
    pub(crate) fn listed(&self) -> Vec<String> {
        std::mem::take(&mut self.listed.lock().unwrap())
    }

    fn count(&self) -> Result<Habits> {
        let habits = self.habits.lock().unwrap().clone();
        let nth = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        match habits.stops_at.is_some_and(|stop| nth >= stop) {
            true => Err(Error::Generic {
                store: "strange",
                source: "the process was stopped here".into(),
            }),
            false => Ok(habits),
        }
    }

    async fn begin(&self) -> Result<Habits> {
        match self.count() {
            Ok(habits) => {
                pause(habits.delay).await;
                Ok(habits)
            }
            Err(error) => {
                let takes = self.habits.lock().unwrap().takes_to_fail;
                tokio::time::sleep(takes).await;
                Err(error)
            }
        }
    }
}

async fn pause(delay: Option<Duration>) {
    if let Some(delay) = delay {
        tokio::time::sleep(delay.mul_f64(rand::random::<f64>())).await;
    }
}

fn refused(path: &Path) -> Error {
    Error::PermissionDenied {
        path: path.to_string(),
        source: "403 Forbidden".into(),
    }
}

fn told(ahead: &WrittenAhead, mut meta: ObjectMeta) -> ObjectMeta {
    meta.last_modified += ahead
        .lock()
        .unwrap()
        .get(&meta.location)
        .copied()
        .unwrap_or_default();
    meta
}

impl fmt::Display for StrangeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("strange")
    }
}

#[async_trait::async_trait]
impl ObjectStore for StrangeStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let habits = self.begin().await?;
        if habits.no_put {
            return Err(refused(location));
        }
        let put = self.inner.put_opts(location, payload, opts).await;
        if put.is_ok() {
            self.ahead.lock().unwrap().insert(location.clone(), habits.ahead);
        }
        pause(habits.delay).await;
        put
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.begin().await?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let habits = self.begin().await?;
        let mut result = self.inner.get_opts(location, options).await?;
        result.meta = told(&self.ahead, result.meta);
        pause(habits.delay).await;
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.begin().await?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let habits = match self.count() {
            Ok(habits) => habits,
            Err(error) => return futures::stream::once(async { Err(error) }).boxed(),
        };
        let (protected, delay) = (habits.no_delete, habits.delay);
        let deleted = Arc::clone(&self.deleted);
        let locations = locations.and_then(move |path| {
            let refuse = protected
                .as_ref()
                .is_some_and(|folder| path.as_ref().starts_with(folder));
            deleted.lock().unwrap().push(path.to_string());
            async move {
                pause(delay).await;
                if refuse { Err(refused(&path)) } else { Ok(path) }
            }
        });
        self.inner.delete_stream(locations.boxed())
    }

    /// Everything that was there all the time, and of the rest what chance shows.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let folder = prefix.map(ToString::to_string).unwrap_or_default();
        self.listed.lock().unwrap().push(folder);
        let habits = match self.count() {
            Ok(habits) => habits,
            Err(error) => return futures::stream::once(async { Err(error) }).boxed(),
        };
        let first = self.inner.list(prefix);
        let ahead = Arc::clone(&self.ahead);
        let Some(delay) = habits.delay else {
            return first.map_ok(move |meta| told(&ahead, meta)).boxed();
        };
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.cloned());
        let listed = async move {
            pause(Some(delay)).await;
            let before: Vec<ObjectMeta> = first.try_collect().await?;
            pause(Some(delay * 4)).await;
            let after: Vec<ObjectMeta> = inner.list(prefix.as_ref()).try_collect().await?;
            let is_in = |list: &[ObjectMeta], meta: &ObjectMeta| {
                list.iter().any(|other| other.location == meta.location)
            };
            let mut shown: Vec<Result<ObjectMeta>> = Vec::new();
            for meta in &before {
                if is_in(&after, meta) || rand::random() {
                    shown.push(Ok(told(&ahead, meta.clone())));
                }
            }
            for meta in after {
                if !is_in(&before, &meta) && rand::random() {
                    shown.push(Ok(told(&ahead, meta)));
                }
            }
            Ok::<_, Error>(futures::stream::iter(shown))
        };
        futures::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.begin().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
