//! Transactions: optimistic, as the server's own clients have them.
//!
//! A transaction reads at the time at which it began and remembers what it read. Its commit is refused with
//! ABORTED when any of that has changed since. Nothing is locked, so other writers never wait for it.
//! Google's emulator locks what a transaction reads instead and lets the *other* writer fail, with ABORTED
//! too: clients must retry in both worlds.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ::firestore::gcloud_sdk::google::firestore::v1::TransactionOptions;
use ::firestore::gcloud_sdk::google::firestore::v1::transaction_options::{Mode, read_only};
use tonic::Status;

use super::database::{Database, Micros, Position, micros};
use crate::document::DatabaseName;

/// How long a transaction may be open: as Firestore's.
const LIFETIME: Duration = Duration::from_secs(270);
/// What transactions' ids start with.
const ID_PREFIX: &str = "transaction-";

/// One transaction.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    database: DatabaseName,
    pub(crate) read_time: Micros,
    read_only: bool,
    began: Instant,
    reads: Vec<Position>,
}

/// The transactions that are open.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    open: Mutex<(u64, HashMap<Vec<u8>, Transaction>)>,
}

fn unknown() -> Status {
    Status::invalid_argument("Transaction is invalid or closed.")
}

impl Transactions {
    fn open(&self) -> MutexGuard<'_, (u64, HashMap<Vec<u8>, Transaction>)> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Begins a transaction and returns its id and the time at which it reads.
    pub(crate) fn begin(
        &self,
        database: &Database,
        options: Option<&TransactionOptions>,
        history: Micros,
    ) -> Result<(Vec<u8>, Micros), Status> {
        let mode = options.and_then(|options| options.mode.as_ref());
        let read_time = match mode {
            Some(Mode::ReadOnly(read_only)) => read_only.consistency_selector.as_ref(),
            _ => None,
        };
        let read_time = match read_time {
            Some(read_only::ConsistencySelector::ReadTime(time)) => {
                let time = micros(time);
                database.check_read_time(time, history)?;
                time
            }
            None => database.read_time(),
        };
        let transaction = Transaction {
            database: database.name.clone(),
            read_time,
            read_only: matches!(mode, Some(Mode::ReadOnly(_))),
            began: Instant::now(),
            reads: Vec::new(),
        };
        let (next, open) = &mut *self.open();
        open.retain(|_, transaction| transaction.began.elapsed() < LIFETIME);
        *next += 1;
        let id = format!("{ID_PREFIX}{next}").into_bytes();
        open.insert(id.clone(), transaction);
        Ok((id, read_time))
    }

    /// Remembers a read of a transaction and says at which time it happens.
    pub(crate) fn read(&self, id: &[u8], database: &Database, range: Position) -> Result<Micros, Status> {
        let (_, open) = &mut *self.open();
        let transaction = open
            .get_mut(id)
            .filter(|transaction| {
                transaction.began.elapsed() < LIFETIME && transaction.database == database.name
            })
            .ok_or_else(unknown)?;
        if !transaction.read_only {
            transaction.reads.push(range);
        }
        Ok(transaction.read_time)
    }

    /// Takes a transaction out to commit so many writes.
    pub(crate) fn take(
        &self,
        id: &[u8],
        database: &DatabaseName,
        writes: usize,
    ) -> Result<Transaction, Status> {
        let (_, open) = &mut *self.open();
        match open.get(id) {
            Some(transaction) if transaction.read_only && writes > 0 => {
                return Err(Status::invalid_argument(
                    "Cannot modify entities in a read-only transaction.",
                ));
            }
            Some(transaction) if transaction.database == *database => {}
            _ => return Err(unknown()),
        }
        open.remove(id)
            .filter(|transaction| transaction.began.elapsed() < LIFETIME)
            .ok_or_else(unknown)
    }

    /// Forgets a transaction; one that is over already is no error.
    pub(crate) fn rollback(&self, id: &[u8]) -> Result<(), Status> {
        if !id.starts_with(ID_PREFIX.as_bytes()) {
            return Err(Status::invalid_argument("Invalid transaction."));
        }
        self.open().1.remove(id);
        Ok(())
    }
}

impl Transaction {
    /// Refuses the commit when something that was read has changed since.
    pub(crate) fn check(&self, database: &Database, state: &super::database::State) -> Result<(), Status> {
        if self
            .reads
            .iter()
            .any(|range| database.changed_since(state, range, self.read_time))
        {
            return Err(Status::aborted(
                "Aborted due to cross-transaction contention. This occurs when multiple transactions attempt to access the same data, requiring Firestore to abort at least one in order to enforce serializability.",
            ));
        }
        Ok(())
    }
}

/// The range that holds one document.
pub(crate) fn one(key: Vec<u8>) -> Position {
    Position {
        start: Bound::Included(key.clone()),
        end: Bound::Included(key),
    }
}
