//! The objects of a repository: named byte strings that are written once, on a disk, in memory or in a bucket.
//!
//! Everything above relies on three promises and no more: a create-only put lets exactly one writer win, what
//! was written can be read at once, and listing shows it at once. [`Store`] wraps any [`ObjectStore`] that
//! keeps them, counts the requests (tests and `--json` output say what an operation asked for), turns
//! failures into the decisions that a caller makes ([`StoreError`]), and syncs what it writes to a local
//! disk.
//!
//! A create-only put may be told that the object exists although nobody else wrote it: the answer to the
//! first attempt was lost and the client library tried again. [`Store::put_new`] therefore reads the object
//! back and calls it a success when the bytes are its own.
//!
//! A bucket's address ([`Address`]) and the environment ([`BucketOptions`]) say which service to talk to;
//! requests to it are tried again with back-off where that can help, and refused ones say which right is
//! missing.

mod address;
mod bucket;
pub mod conformance;
mod counters;
mod error;
mod profile;
mod rights;
mod staging;
mod transport;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

pub use address::{Address, AddressError, BucketAddress, Provider};
pub use bucket::BucketOptions;
use counters::Counters;
pub use counters::RequestCounts;
pub use error::StoreError;

/// What a listing says about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The whole name, from the repository's root.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When the store says it was last written.
    pub last_modified: DateTime<Utc>,
}

/// How often a create is tried that is refused although there is no such object.
const CREATE_ATTEMPTS: u32 = 5;
/// Between two such attempts.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);

/// The longest range that is read of an object whose size nobody has looked at.
const UNSEEN_LEN: u64 = 32 << 20;

/// A repository's objects. Clones share the connection and the counters.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    counters: Arc<Counters>,
    place: Arc<Place>,
}

/// Where a store's objects are.
#[derive(Debug)]
struct Place {
    /// In words for a person.
    location: String,
    folder: Option<PathBuf>,
    provider: Option<Provider>,
}

impl Place {
    fn named(location: &str) -> Self {
        Self {
            location: location.to_owned(),
            folder: None,
            provider: None,
        }
    }
}

impl Store {
    /// The objects at an address. A folder must exist; a bucket is asked nothing yet.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for a missing folder, [`StoreError::Settings`] when `options` say too little
    /// about a bucket.
    pub fn open(address: &Address, options: &BucketOptions) -> Result<Self, StoreError> {
        match address {
            Address::Folder(folder) => Self::local(folder),
            Address::Bucket(bucket) => Self::bucket(bucket, options),
        }
    }

    /// Like [`Store::open`], and makes a folder first where it is missing. Buckets are made by their owners.
    pub fn create_at(address: &Address, options: &BucketOptions) -> Result<Self, StoreError> {
        match address {
            Address::Folder(folder) => Self::create_local(folder),
            Address::Bucket(bucket) => Self::bucket(bucket, options),
        }
    }

    /// The objects in a bucket, below a prefix. Nothing is asked of it yet.
    pub fn bucket(address: &BucketAddress, options: &BucketOptions) -> Result<Self, StoreError> {
        Ok(Self {
            objects: bucket::connect(address, options)?,
            counters: Arc::default(),
            place: Arc::new(Place {
                provider: Some(address.provider),
                ..Place::named(&address.to_string())
            }),
        })
    }

    /// The objects in an existing folder. Files and folders are synced to the disk as they are written.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such folder: [`Store::create_local`] makes one.
    pub fn local(folder: impl AsRef<Path>) -> Result<Self, StoreError> {
        let folder = folder.as_ref();
        let name = folder.display().to_string();
        match std::fs::metadata(folder) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(StoreError::Unfit {
                    what: format!("{name} is a file, not a folder"),
                });
            }
            Ok(_) => {}
            Err(error) => return Err(StoreError::from_io(&name, "open", error)),
        }
        let place = Place {
            folder: Some(folder.to_owned()),
            ..Place::named(&name)
        };
        let objects = LocalFileSystem::new_with_prefix(folder)
            .map_err(|error| StoreError::from_object_store(&place, &name, "open", error))?
            .with_fsync(true)
            .with_automatic_cleanup(true);
        Ok(Self {
            objects: Arc::new(objects),
            counters: Arc::default(),
            place: Arc::new(place),
        })
    }

    /// Like [`Store::local`], and makes the folder and its parents first where they are missing.
    pub fn create_local(folder: impl AsRef<Path>) -> Result<Self, StoreError> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder)
            .map_err(|error| StoreError::from_io(&folder.display().to_string(), "create", error))?;
        Self::local(folder)
    }

    /// Objects that live as long as the process: for tests and the demonstration.
    pub fn memory() -> Self {
        Self::new(Arc::new(InMemory::new()), "memory")
    }

    /// The objects of any other store; `location` is what messages call it, such as `s3://bucket/prefix`.
    pub fn new(objects: Arc<dyn ObjectStore>, location: &str) -> Self {
        Self {
            objects,
            counters: Arc::default(),
            place: Arc::new(Place::named(location)),
        }
    }

    /// The same objects with counters of their own, at zero.
    pub fn with_own_counters(&self) -> Self {
        Self {
            counters: Arc::default(),
            ..self.clone()
        }
    }

    /// Where the objects are, in words for a person.
    pub fn location(&self) -> &str {
        &self.place.location
    }

    /// The folder of a local store.
    pub fn local_folder(&self) -> Option<PathBuf> {
        self.place.folder.clone()
    }

    /// Sorts an error of the client library.
    fn failed(&self, name: &str, operation: &'static str, error: object_store::Error) -> StoreError {
        StoreError::from_object_store(&self.place, name, operation, error)
    }

    /// What was asked of the store so far, by all clones.
    pub fn requests(&self) -> RequestCounts {
        self.counters.read()
    }

    /// Creates an object. An object of that name with the very same bytes counts as created: it is our own
    /// write whose answer was lost, or an equal one.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] when the name holds other bytes; they are left as they are.
    pub async fn put_new(&self, name: &str, payload: impl Into<PutPayload>) -> Result<(), StoreError> {
        let payload = payload.into();
        let exists = || StoreError::AlreadyExists {
            name: name.to_owned(),
        };
        for _ in 0..CREATE_ATTEMPTS {
            match self.create(name, payload.clone()).await {
                Err(StoreError::AlreadyExists { .. }) => {}
                created => return created,
            }
            match self.get_at_most(name, payload.content_length() as u64).await {
                Ok(found) if is_same(&found, &payload) => return Ok(()),
                Ok(_) | Err(StoreError::TooLarge { .. }) => return Err(exists()),
                // Somebody else's attempt was in the way and came to nothing: S3 refuses both then.
                Err(StoreError::NotFound { .. }) => tokio::time::sleep(CONFLICT_PAUSE).await,
                Err(error) => return Err(error),
            }
        }
        Err(exists())
    }

    async fn create(&self, name: &str, payload: PutPayload) -> Result<(), StoreError> {
        let path = object_path(name)?;
        self.counters.put_create(payload.content_length());
        let options = PutOptions::from(PutMode::Create);
        match self.objects.put_opts(&path, payload, options).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed(name, "create", error)),
        }
    }

    /// Writes an object, over one that may be there.
    pub async fn put(&self, name: &str, payload: impl Into<PutPayload>) -> Result<(), StoreError> {
        let path = object_path(name)?;
        let payload = payload.into();
        self.counters.put(payload.content_length());
        match self.objects.put(&path, payload).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed(name, "write", error)),
        }
    }

    /// A whole object.
    pub async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        self.get_at_most(name, u64::MAX).await
    }

    /// A whole object, unless it is larger than `limit` bytes: then nothing of it is read.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for such an object.
    pub async fn get_at_most(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        let path = object_path(name)?;
        self.counters.get();
        let failed = |error| self.failed(name, "read", error);
        let result = self.objects.get(&path).await.map_err(failed)?;
        if result.meta.size > limit {
            return Err(StoreError::TooLarge {
                name: name.to_owned(),
                size: result.meta.size,
                limit,
            });
        }
        let bytes = result.bytes().await.map_err(failed)?;
        self.counters.received(bytes.len());
        Ok(bytes)
    }

    /// Like [`get_at_most`](Self::get_at_most), into a buffer that is cleared first and given back: who reads
    /// many large objects keeps its memory, instead of leaving pieces of it to every thread's allocator. The
    /// buffer is lost on an error.
    pub async fn get_into(&self, name: &str, limit: u64, mut buffer: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let path = object_path(name)?;
        self.counters.get();
        let failed = |error| self.failed(name, "read", error);
        let result = self.objects.get(&path).await.map_err(failed)?;
        let size = result.meta.size;
        if size > limit {
            return Err(StoreError::TooLarge {
                name: name.to_owned(),
                size,
                limit,
            });
        }
        buffer.clear();
        buffer.reserve_exact(size as usize);
        match result.payload {
            GetResultPayload::File(file, _) => {
                let read = tokio::task::spawn_blocking(move || {
                    // No more than the file had: the buffer shall not grow.
                    std::io::Read::read_to_end(&mut std::io::Read::take(file, size), &mut buffer)?;
                    Ok::<_, std::io::Error>(buffer)
                });
                let read = read.await.map_err(|error| failed(error.into()))?;
                buffer = read.map_err(|error| StoreError::from_io(name, "read", error))?;
            }
            GetResultPayload::Stream(mut parts) => {
                while let Some(part) = parts.try_next().await.map_err(failed)? {
                    buffer.extend_from_slice(&part);
                }
            }
        }
        self.counters.received(buffer.len());
        Ok(buffer)
    }

    /// Exactly these bytes of an object.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] when the object ends before the range does.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = object_path(name)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let out_of_range = |size| StoreError::OutOfRange {
            name: name.to_owned(),
            range: range.clone(),
            size,
        };
        let len = range.end - range.start;
        // A local file's bytes are given a buffer before anybody has looked how many it has.
        if len > UNSEEN_LEN {
            let size = self.head(name).await?.size;
            if size < range.end {
                return Err(out_of_range(size));
            }
        }
        self.counters.get_range();
        // One request, as `get_opts` would be; of a local file, opened and read in one go instead of two.
        match self.objects.get_ranges(&path, std::slice::from_ref(&range)).await {
            Ok(mut parts) => {
                let bytes = parts.pop().unwrap_or_default();
                self.counters.received(bytes.len());
                match bytes.len() as u64 == len {
                    true => Ok(bytes),
                    false => Err(out_of_range(range.start + bytes.len() as u64)),
                }
            }
            // Stores word an end past the object's, or a start, in their own ways; the object's size settles it.
            Err(error) => {
                let error = self.failed(name, "read", error);
                if !matches!(error, StoreError::Other { .. }) {
                    return Err(error);
                }
                match self.head(name).await {
                    Ok(info) if info.size < range.end => Err(out_of_range(info.size)),
                    // What a folder holds under the name need not be a file.
                    Err(missing @ StoreError::NotFound { .. }) => Err(missing),
                    _ => Err(error),
                }
            }
        }
    }

    /// An object's size and time.
    pub async fn head(&self, name: &str) -> Result<ObjectInfo, StoreError> {
        let path = object_path(name)?;
        self.counters.head();
        match self.objects.head(&path).await {
            Ok(meta) => Ok(info(meta)),
            Err(error) => Err(self.failed(name, "look at", error)),
        }
    }

    /// Whether an object of that name exists.
    pub async fn exists(&self, name: &str) -> Result<bool, StoreError> {
        match self.head(name).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The objects below a folder, the empty string for all; in no order. `prefix` is made of whole segments:
    /// `chunks/ab` does not list `chunks/abc/x`. The listing is a stream: it is never held as a whole.
    pub fn list(&self, prefix: &str) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        self.counters.list();
        let prefix = prefix.trim_end_matches('/').to_owned();
        let path = match prefix.is_empty() {
            true => None,
            false => match object_path(&prefix) {
                Ok(path) => Some(path),
                Err(error) => return futures::stream::once(async { Err(error) }).boxed(),
            },
        };
        let place = Arc::clone(&self.place);
        self.objects
            .list(path.as_ref())
            .map_ok(info)
            .map_err(move |error| StoreError::from_object_store(&place, &format!("{prefix}/"), "list", error))
            .boxed()
    }

    /// Removes an object. One that is not there is no error: another prune was faster.
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = object_path(name)?;
        self.counters.delete();
        match self.objects.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(name, "delete", error)),
        }
    }

    /// Tries out the promises that the archive rests on: that a second create of a name is refused, that the
    /// first one's bytes stay, and that a listing shows them at once. Some S3 clones take any conditional put
    /// and overwrite.
    ///
    /// Leaves one small object below `probes/` behind where this identity may not delete.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] when the store breaks a promise.
    pub async fn check_create_only(&self) -> Result<(), StoreError> {
        let name = format!("probes/{:016x}", rand::random::<u64>());
        self.put_new(&name, Bytes::from_static(b"first")).await?;
        let second = self.create(&name, PutPayload::from_static(b"second")).await;
        let found = self.get(&name).await;
        let listed = self
            .list("probes")
            .try_any(|object| std::future::ready(object.name == name))
            .await;
        match self.delete(&name).await {
            // The second is how Azure words that a container keeps what it has.
            Ok(()) | Err(StoreError::NoPermission { .. } | StoreError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        let broken = match (second, &found?[..], listed?) {
            (Err(StoreError::AlreadyExists { .. }), b"first", true) => return Ok(()),
            (Ok(()), ..) => {
                "it accepted a second create of the same name, so two writers could overwrite each other"
            }
            (Err(StoreError::AlreadyExists { .. }), b"first", false) => {
                "a listing did not show an object that was just written"
            }
            (Err(StoreError::AlreadyExists { .. }), ..) => "a refused create changed the object",
            (Err(error), ..) => return Err(error),
        };
        Err(StoreError::Unfit {
            what: format!("{}: {broken}", self.location()),
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.location())
    }
}

fn is_same(found: &[u8], payload: &PutPayload) -> bool {
    let mut rest = found;
    for part in payload {
        match rest.strip_prefix(&part[..]) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

fn object_path(name: &str) -> Result<ObjectPath, StoreError> {
    let path = ObjectPath::parse(name).map_err(|error| StoreError::BadName {
        name: name.to_owned(),
        what: error.to_string(),
    })?;
    if path.as_ref() != name || name.is_empty() {
        return Err(StoreError::BadName {
            name: name.to_owned(),
            what: "slashes at an end, or nothing".to_owned(),
        });
    }
    Ok(path)
}

fn info(meta: object_store::ObjectMeta) -> ObjectInfo {
    ObjectInfo {
        name: meta.location.to_string(),
        size: meta.size,
        last_modified: meta.last_modified,
    }
}
