//! One runner at a time: a document that says who runs migrations, for as long as it shows that it lives.
//!
//! The lock is taken by a commit on the condition that the document is still what it was read as, renewed by heartbeats, and one
//! that was not renewed for as long as it says itself has expired: the next one takes it. How old it is is told by the
//! server's times alone: when the document was last changed, and when it was read. The owner for its part stops earlier than
//! that, by a clock that only measures durations: a runner that cannot renew its lock writes no more by the time at which
//! another may take it. Every record of the history is written in one commit with a renewal of the lock, so a runner that lost
//! it cannot say that it has done anything. Documents are written without it, so the lock is looked at right before each request
//! that writes some ([`WriteFence`]): what waited for its turn while somebody removed the lock or took it over is not sent.
//!
//! There is no transaction that reads first, because servers lock what one reads: a process that is killed while it waits
//! would keep the owner from renewing its lock. See [`commit`](crate::firestore::Firestore::commit).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::document::{DocumentPath, Fields, Timestamp, Value};
use crate::firestore::{
    self, CommitWrite, Committed, Firestore, Precondition, Seen, SeenDocument, WriteFence,
};
use crate::stop::Stop;

/// The collection of the lock.
pub const LOCK_COLLECTION: &str = crate::export::MIGRATIONS_LOCK_COLLECTION;
const LOCK_ID: &str = "lock";

/// How to take the lock.
#[derive(Clone, Debug)]
pub struct LockOptions {
    /// Who takes it, in words for others.
    pub owner: String,
    /// How long to wait for another owner.
    pub wait: Duration,
    /// For how long without a sign of life it stays taken.
    pub expiry: Duration,
}

impl LockOptions {
    /// Waits up to five minutes; expires a minute after the last sign of life.
    pub fn new(owner: impl Into<String>) -> Self {
        Self {
            owner: owner.into(),
            wait: Duration::from_secs(300),
            expiry: Duration::from_secs(60),
        }
    }
}

/// Who has the lock.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Holder {
    /// What it calls itself.
    pub owner: String,
    /// When it took the lock, by the server's clock, as text.
    pub since: String,
    /// Seconds since its last sign of life, by the server's clock.
    pub silent_seconds: i64,
    /// Whether that is so long that anybody may take it.
    pub expired: bool,
    #[serde(skip)]
    token: String,
}

/// The lock is somebody else's, or cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "migrations are being run by {}, since {} (last sign of life {} s ago): wait for it to end. If it is no more, its lock \
         expires by itself; `firebank migrate --unlock` removes it at once",
        .0.owner, .0.since, .0.silent_seconds
    )]
    Held(Holder),
    /// It was ours and is not any more.
    #[error(
        "the lock on migrations was lost ({0}), so nothing more was written. The next `firebank migrate` undoes what was not \
         finished"
    )]
    Lost(String),
    /// The database failed.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
}

fn path() -> DocumentPath {
    #[expect(clippy::expect_used, reason = "a constant")]
    DocumentPath::parse(format!("{LOCK_COLLECTION}/{LOCK_ID}")).expect("two segments")
}

impl Holder {
    fn read(document: &SeenDocument, now: Timestamp) -> Self {
        let text = |name: &str| match document.fields.get(name) {
            Some(Value::String(text)) => text.clone(),
            _ => String::new(),
        };
        let expires_after = match document.fields.get("expires_after_ms") {
            Some(Value::Integer(milliseconds)) => *milliseconds,
            _ => 0,
        };
        let silent = milliseconds(now) - milliseconds(document.update_time);
        Self {
            owner: text("owner"),
            since: text("acquired_at"),
            silent_seconds: silent / 1000,
            expired: silent > expires_after,
            token: text("token"),
        }
    }

    fn seen(seen: &Seen) -> Option<Self> {
        let document = seen.documents.first()?.as_ref()?;
        Some(Self::read(document, seen.read_time))
    }
}

fn milliseconds(time: Timestamp) -> i64 {
    time.seconds
        .saturating_mul(1000)
        .saturating_add(i64::from(time.nanos / 1_000_000))
}

/// The lock, held. Dropping it stops the heartbeat and leaves the lock to expire; [`Lock::release`] gives it back.
#[derive(Debug)]
pub struct Lock {
    shared: Arc<Shared>,
    heartbeat: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    database: Firestore,
    options: LockOptions,
    token: String,
    /// The lock as this owner wrote it last. Whoever renews it holds this.
    held: tokio::sync::Mutex<Held>,
    /// When the last renewal that was done was asked for.
    renewed: Mutex<Instant>,
    /// Why it was lost.
    lost: Mutex<Option<String>>,
    /// Asked to stop when it is lost: what the owner does.
    stop: Stop,
    /// The same, for writes alone: others may ask the owner to stop, and then he undoes what he did.
    gone: Stop,
}

#[derive(Debug, Default)]
struct Held {
    acquired_at: Timestamp,
    update_time: Timestamp,
    beats: i64,
}

/// How often the holder shows that it lives, as a part of the expiry.
const BEATS_IN_EXPIRY: u32 = 6;
/// How long others are waited for between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Lock {
    /// Takes the lock, or waits for it. `stop` is asked to stop when it is lost later. `waiting` is told once of who has it.
    ///
    /// # Errors
    /// [`LockError::Held`] when the wait is over.
    pub async fn acquire(
        database: &Firestore,
        options: LockOptions,
        stop: &Stop,
        waiting: impl Fn(&Holder) + Send,
    ) -> Result<Self, LockError> {
        let start = Instant::now();
        let shared = Arc::new(Shared {
            database: database.clone(),
            token: format!("{:032x}", rand::random::<u128>()),
            held: tokio::sync::Mutex::default(),
            renewed: Mutex::new(start),
            lost: Mutex::default(),
            stop: stop.clone(),
            gone: Stop::default(),
            options,
        });
        let mut told = false;
        loop {
            let asked = Instant::now();
            match shared.take().await {
                Ok(()) => {
                    shared.note_renewal(asked);
                    break;
                }
                Err(LockError::Held(holder)) if start.elapsed() < shared.options.wait => {
                    if !told {
                        waiting(&holder);
                        told = true;
                    }
                    if stop.is_requested() {
                        return Err(LockError::Held(holder));
                    }
                    let left = shared.options.wait.saturating_sub(start.elapsed());
                    let pause = LOOK_AGAIN.min(shared.options.expiry / 2);
                    tokio::time::sleep(pause.min(left)).await;
                }
                Err(error) => return Err(error),
            }
        }
        let heartbeat = tokio::spawn(Arc::clone(&shared).beat());
        Ok(Self { shared, heartbeat })
    }

    /// Who has the lock; `None` when nobody.
    pub async fn holder(database: &Firestore) -> Result<Option<Holder>, LockError> {
        Ok(Holder::seen(&database.look_at(&[path()]).await?))
    }

    /// Takes the lock away from whoever has it, and says who that was. If it lives it notices, and stops.
    pub async fn remove(database: &Firestore) -> Result<Option<Holder>, LockError> {
        loop {
            let seen = database.look_at(&[path()]).await?;
            let (Some(holder), Some(document)) =
                (Holder::seen(&seen), seen.documents.into_iter().flatten().next())
            else {
                return Ok(None);
            };
            if let Committed::Done(_) = database.commit(&[deletion(document.update_time)]).await? {
                return Ok(Some(holder));
            }
        }
    }

    /// Fails when the lock was lost.
    pub fn check(&self) -> Result<(), LockError> {
        self.shared.check()
    }

    /// Something that can be asked the same and does not keep the lock.
    pub fn watch(&self) -> LockWatch {
        LockWatch(Arc::clone(&self.shared))
    }

    /// Writes documents, provided that the lock is held at that moment, and renews it.
    pub async fn write(&self, writes: Vec<CommitWrite>) -> Result<(), LockError> {
        self.shared.check()?;
        match self.shared.renew(writes).await {
            Err(LockError::Lost(why)) => {
                self.shared.lose(why);
                self.shared.check()
            }
            written => written,
        }
    }

    /// Gives it back. One that cannot be given back expires.
    pub async fn release(self) {
        self.heartbeat.abort();
        if let Err(error) = self.shared.give_back().await {
            tracing::warn!("the lock on migrations is left to expire: {error}");
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// Tells whether a lock is still held, and lets writes pass only as long as it is.
#[derive(Clone, Debug)]
pub struct LockWatch(Arc<Shared>);

#[async_trait::async_trait]
impl WriteFence for LockWatch {
    /// Looks at the lock itself: between two heartbeats somebody may have removed it, and another runner be at work.
    async fn may_write(&self) -> firestore::Result<bool> {
        if self.check().is_err() {
            return Ok(false);
        }
        match self.0.still_ours().await {
            Ok(_) => Ok(self.check().is_ok()),
            Err(LockError::Firestore(error)) => Err(error),
            Err(LockError::Lost(why)) => {
                self.0.lose(why);
                Ok(false)
            }
            Err(LockError::Held(_)) => Ok(false),
        }
    }

    fn lost(&self) -> &Stop {
        &self.0.gone
    }
}

impl LockWatch {
    /// Fails when the lock was lost.
    pub fn check(&self) -> Result<(), LockError> {
        self.0.check()
    }
}

impl Shared {
    fn check(&self) -> Result<(), LockError> {
        // A process that was stopped for a while wakes up here before its heartbeat has noticed anything.
        let silent = self.silent_for();
        if silent >= self.gives_up_after() {
            self.lose(format!("it could not be renewed for {} s", silent.as_secs()));
        }
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(LockError::Lost(why.clone())),
            None => Ok(()),
        }
    }

    fn lose(&self, why: String) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get_or_insert(why);
        self.gone.request();
        self.stop.request();
    }

    fn note_renewal(&self, asked: Instant) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    /// How long ago the last renewal that was done was asked for.
    fn silent_for(&self) -> Duration {
        self.renewed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    fn beats_every(&self) -> Duration {
        self.options.expiry / BEATS_IN_EXPIRY
    }

    /// After this nothing more is written: another one may take it at the expiry.
    fn gives_up_after(&self) -> Duration {
        self.options.expiry - self.beats_every()
    }

    fn fields(&self, acquired_at: Timestamp, beats: i64) -> Fields {
        let expiry = i64::try_from(self.options.expiry.as_millis()).unwrap_or(i64::MAX);
        let fields = [
            ("owner", Value::String(self.options.owner.clone())),
            ("token", Value::String(self.token.clone())),
            ("acquired_at", Value::String(acquired_at.to_string())),
            ("expires_after_ms", Value::Integer(expiry)),
            // A write that changes nothing would leave the time of the last change alone.
            ("beats", Value::Integer(beats)),
        ];
        fields.map(|(name, value)| (name.to_owned(), value)).into()
    }

    async fn take(&self) -> Result<(), LockError> {
        loop {
            let seen = self.database.look_at(&[path()]).await?;
            let document = seen.documents.first().cloned().flatten();
            let condition = match (Holder::seen(&seen), &document) {
                (Some(holder), Some(document)) if holder.token == self.token => {
                    // Taken by a commit whose answer was lost.
                    *self.held.lock().await = Held {
                        acquired_at: seen.read_time,
                        update_time: document.update_time,
                        beats: 0,
                    };
                    return Ok(());
                }
                (Some(holder), _) if !holder.expired => return Err(LockError::Held(holder)),
                (Some(holder), Some(document)) => {
                    tracing::warn!(
                        "taking over the lock of {}, who gave no sign of life for {} s",
                        holder.owner,
                        holder.silent_seconds
                    );
                    Precondition::UpdateTime(document.update_time)
                }
                _ => Precondition::MustNotExist,
            };
            let write = CommitWrite {
                path: path(),
                fields: Some(self.fields(seen.read_time, 0)),
                condition,
            };
            if let Committed::Done(times) = self.database.commit(&[write]).await? {
                *self.held.lock().await = Held {
                    acquired_at: seen.read_time,
                    update_time: times.last().copied().unwrap_or_default(),
                    beats: 0,
                };
                return Ok(());
            }
        }
    }

    /// Renews the lock, and writes along with it.
    async fn renew(&self, mut writes: Vec<CommitWrite>) -> Result<(), LockError> {
        let mut held = self.held.lock().await;
        let own = writes.len();
        loop {
            held.beats += 1;
            writes.truncate(own);
            writes.push(CommitWrite {
                path: path(),
                fields: Some(self.fields(held.acquired_at, held.beats)),
                condition: Precondition::UpdateTime(held.update_time),
            });
            let asked = Instant::now();
            match self.database.commit(&writes).await? {
                Committed::Done(times) => {
                    self.note_renewal(asked);
                    held.update_time = times.last().copied().unwrap_or_default();
                    return Ok(());
                }
                // Renewed by a commit whose answer was lost, or somebody else's.
                Committed::Refused => held.update_time = self.still_ours().await?,
            }
        }
    }

    /// When the lock was last changed, if it still is this owner's.
    async fn still_ours(&self) -> Result<Timestamp, LockError> {
        let seen = self.database.look_at(&[path()]).await?;
        let document = seen.documents.first().cloned().flatten();
        match (Holder::seen(&seen), document) {
            (Some(holder), Some(document)) if holder.token == self.token => Ok(document.update_time),
            (Some(holder), _) => Err(LockError::Lost(format!("{} has it now", holder.owner))),
            _ => Err(LockError::Lost("somebody removed it".to_owned())),
        }
    }

    async fn give_back(&self) -> Result<(), LockError> {
        let mut held = self.held.lock().await;
        while let Committed::Refused = self.database.commit(&[deletion(held.update_time)]).await? {
            match self.still_ours().await {
                Ok(time) => held.update_time = time,
                Err(LockError::Lost(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Renews the lock until it is lost. `renewed`: when the last renewal was sent.
    async fn beat(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.beats_every()).await;
            let left = self.gives_up_after().saturating_sub(self.silent_for());
            match tokio::time::timeout(left, self.renew(Vec::new())).await {
                Ok(Err(LockError::Lost(why))) => return self.lose(why),
                Ok(Err(error)) => tracing::warn!("the lock on migrations could not be renewed: {error}"),
                Ok(Ok(())) | Err(_) => {}
            }
            if self.check().is_err() {
                return;
            }
        }
    }
}

/// Removes the lock as it was last seen.
fn deletion(update_time: Timestamp) -> CommitWrite {
    CommitWrite {
        path: path(),
        fields: None,
        condition: Precondition::UpdateTime(update_time),
    }
}
