//! The documents of a database with their past: every version that a read could still ask for.
//!
//! A version is a document's encoded message or the fact that there is none. Commit times are microseconds
//! and strictly ascending over the whole server, and a read without a time takes one that no later commit can
//! get, so what a client reads at that time again is the same for ever. History is kept as long as the
//! configured window says, and not for longer than memory allows: reads from before what was let go are
//! refused, never answered wrongly.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow, Range};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ::firestore::gcloud_sdk::prost_types::Timestamp;
use bytes::{BufMut, Bytes};
use tonic::Status;

use super::codec::put_bytes_field;
use super::synthetic::Synthetic;
use crate::document::DatabaseName;

/// Microseconds since the epoch.
pub(crate) type Micros = i64;

/// Superseded versions that a database holds at most, whatever the window: about a gigabyte of small documents.
const MAX_SUPERSEDED: usize = 1 << 20;

const MINUTE: Micros = 60_000_000;

/// As protobuf has it.
pub(crate) fn timestamp(time: Micros) -> Timestamp {
    Timestamp {
        seconds: time.div_euclid(1_000_000),
        nanos: (time.rem_euclid(1_000_000) * 1000) as i32,
    }
}

/// Cut to microseconds.
pub(crate) fn micros(time: &Timestamp) -> Micros {
    time.seconds
        .saturating_mul(1_000_000)
        .saturating_add(i64::from(time.nanos) / 1000)
}

/// Appends a timestamp as a field.
pub(crate) fn put_time_field(tag: u32, time: Micros, out: &mut impl BufMut) {
    prost::encoding::message::encode(tag, &timestamp(time), out);
}

/// The server's clock: wall time, and never the same twice for commits.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    last: AtomicI64,
}

impl Clock {
    fn wall() -> Micros {
        crate::clock::now().timestamp_micros()
    }

    /// A time after every time that was given out.
    fn tick(&self) -> Micros {
        let now = Self::wall();
        let next = |last: Micros| Some(now.max(last + 1));
        match self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(last) | Err(last) => now.max(last + 1),
        }
    }

    /// A time that no commit will get from now on.
    pub(crate) fn observe(&self) -> Micros {
        let now = Self::wall();
        self.last.fetch_max(now, Ordering::SeqCst).max(now)
    }
}

/// A document as it is kept: its message, encoded.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    message: Bytes,
    fields: Range<u32>,
    pub(crate) create_time: Micros,
    pub(crate) update_time: Micros,
}

impl Stored {
    /// Puts a document together; `fields` are its map entries under tag 2.
    pub(crate) fn from_parts(name: &str, fields: &[u8], create_time: Micros, update_time: Micros) -> Self {
        let mut message = Vec::with_capacity(name.len() + fields.len() + 48);
        put_bytes_field(1, name.as_bytes(), &mut message);
        let start = message.len();
        message.extend_from_slice(fields);
        let end = message.len();
        put_time_field(3, create_time, &mut message);
        put_time_field(4, update_time, &mut message);
        Self {
            message: message.into(),
            fields: start as u32..end as u32,
            create_time,
            update_time,
        }
    }

    /// The `Document` message.
    pub(crate) fn message(&self) -> &Bytes {
        &self.message
    }

    /// The map entries of the fields, each under tag 2.
    pub(crate) fn fields(&self) -> &[u8] {
        &self.message[self.fields.start as usize..self.fields.end as usize]
    }

    /// The document without fields.
    pub(crate) fn names_only(&self) -> Bytes {
        self.with_fields(&[])
    }

    /// The document's message with other fields.
    pub(crate) fn with_fields(&self, fields: &[u8]) -> Bytes {
        let mut message = Vec::with_capacity(self.message.len() - self.fields().len() + fields.len());
        message.extend_from_slice(&self.message[..self.fields.start as usize]);
        message.extend_from_slice(fields);
        message.extend_from_slice(&self.message[self.fields.end as usize..]);
        message.into()
    }
}

/// What a document was from a time on.
#[derive(Clone, Debug)]
struct Version {
    time: Micros,
    document: Option<Stored>,
}

/// A document's versions, ascending by time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Versions(Vec<Version>);

impl Versions {
    fn at(&self, time: Micros) -> Option<&Version> {
        self.0.iter().rev().find(|version| version.time <= time)
    }
}

/// A document that a scan found.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// One that was written.
    Stored(Stored),
    /// One that is made when it is read.
    Synthetic(Arc<Synthetic>, u64),
}

impl Found {
    /// As if it had been written.
    pub(crate) fn stored(&self) -> Stored {
        match self {
            Self::Stored(stored) => stored.clone(),
            Self::Synthetic(source, index) => source.stored(*index),
        }
    }
}

/// One database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) name: DatabaseName,
    clock: Arc<Clock>,
    /// Ascending by key, none of them overlapping.
    synthetic: Vec<Arc<Synthetic>>,
    state: RwLock<State>,
}

/// What changes about a database.
#[derive(Debug, Default)]
pub(crate) struct State {
    documents: BTreeMap<Box<[u8]>, Versions>,
    /// The time at which a version was superseded, and whose it was; ascending.
    superseded: VecDeque<(Micros, Box<[u8]>)>,
    /// Reads before this time are refused: some of their versions are gone.
    floor: Micros,
}

impl Database {
    pub(crate) fn new(name: DatabaseName, clock: Arc<Clock>, mut synthetic: Vec<Arc<Synthetic>>) -> Self {
        synthetic.sort_by(|a, b| a.prefix().cmp(b.prefix()));
        Self {
            name,
            clock,
            synthetic,
            state: RwLock::default(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The present as a time to read at.
    pub(crate) fn read_time(&self) -> Micros {
        // Under the lock: a commit that has its time and is not applied yet must not be missed.
        let _guard = self.read();
        self.clock.observe()
    }

    /// Checks that a read at `time` can be answered: not in the future, not before the window of `history`
    /// microseconds, and where that is longer than an hour (point-in-time recovery), of whole minutes beyond
    /// it.
    pub(crate) fn check_read_time(&self, time: Micros, history: Micros) -> Result<(), Status> {
        let state = self.read();
        let now = self.clock.observe();
        if time > now {
            return Err(Status::invalid_argument(
                "The requested 'read_time' cannot be in the future.",
            ));
        }
        if time < state.floor || time < now.saturating_sub(history) {
            return Err(Status::failed_precondition(
                "The requested snapshot version is too old.",
            ));
        }
        if time < now - 60 * MINUTE && time % MINUTE != 0 {
            return Err(Status::invalid_argument(
                "A read_time more than an hour ago must be a whole minute.",
            ));
        }
        Ok(())
    }

    fn synthetic_at(&self, key: &[u8]) -> Option<Found> {
        self.synthetic
            .iter()
            .find_map(|source| Some(Found::Synthetic(source.clone(), source.find(key)?)))
    }

    /// The document with this key at a time.
    pub(crate) fn get(&self, key: &[u8], time: Micros) -> Option<Found> {
        match self
            .read()
            .documents
            .get(key)
            .and_then(|versions| versions.at(time))
        {
            Some(version) => version.document.clone().map(Found::Stored),
            None => self.synthetic_at(key),
        }
    }

    /// Up to `limit` documents past `position` at a time, in order, for which `accept`
    /// holds; `position` moves past what was looked at and is `None` when there is nothing more.
    ///
    /// The lock is held for one call: a long scan lets writers in between, which its time does not see.
    pub(crate) fn scan(
        &self,
        position: &mut Option<Position>,
        time: Micros,
        limit: usize,
        accept: &mut dyn FnMut(&[u8], &Found) -> bool,
    ) -> Vec<Found> {
        let mut found = Vec::new();
        let state = self.read();
        let Some(from) = position.take() else { return found };
        let mut merge = Merge::new(&state.documents, &self.synthetic, &from);
        let mut looked_at = 0;
        while let Some((key, candidate)) = merge.next(time) {
            looked_at += 1;
            if let Some(candidate) = candidate
                && accept(&key, &candidate)
            {
                found.push(candidate);
            }
            if found.len() >= limit || looked_at >= limit.max(256) * 8 {
                *position = Some(from.after(&key));
                break;
            }
        }
        found
    }

    /// The first key from `from` on whose document exists at a time, below `end`.
    pub(crate) fn first_key(&self, from: Bound<Vec<u8>>, end: &[u8], time: Micros) -> Option<Vec<u8>> {
        let state = self.read();
        let from = Position {
            start: from,
            end: Bound::Excluded(end.to_vec()),
        };
        let mut merge = Merge::new(&state.documents, &self.synthetic, &from);
        std::iter::from_fn(|| merge.next(time)).find_map(|(key, candidate)| candidate.map(|_| key))
    }

    /// Shows the documents of a range at a time in order, synthetic ones by the run instead of one by one.
    pub(crate) fn visit(
        &self,
        position: &Position,
        time: Micros,
        visit: &mut dyn FnMut(Run<'_>) -> ControlFlow<()>,
    ) {
        let state = self.read();
        let mut merge = Merge::new(&state.documents, &self.synthetic, position);
        loop {
            let flow = match merge.take_run() {
                Some((source, range)) => visit(Run::Synthetic(source, range)),
                None => match merge.next(time) {
                    Some((key, Some(found))) => visit(Run::One(&key, &found)),
                    Some((_, None)) => ControlFlow::Continue(()),
                    None => return,
                },
            };
            if flow.is_break() {
                return;
            }
        }
    }

    /// Whether a document in the range changed after a time.
    pub(crate) fn changed_since(&self, state: &State, position: &Position, time: Micros) -> bool {
        !is_empty_range(&position.start, &position.end)
            && state
                .documents
                .range::<[u8], _>(position.bounds())
                .any(|(_, versions)| versions.0.last().is_some_and(|version| version.time > time))
    }

    /// Locks the database for a commit.
    pub(crate) fn write(&self) -> Commit<'_> {
        Commit {
            database: self,
            state: self
                .state
                .write()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        }
    }
}

/// The right to change a database, alone.
pub(crate) struct Commit<'a> {
    database: &'a Database,
    state: RwLockWriteGuard<'a, State>,
}

impl Commit<'_> {
    /// The database's present documents.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Stored> {
        match self
            .state
            .documents
            .get(key)
            .and_then(|versions| versions.0.last())
        {
            Some(version) => version.document.clone(),
            None => self.database.synthetic_at(key).map(|found| found.stored()),
        }
    }

    /// The state under the lock.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// A commit time.
    pub(crate) fn tick(&self) -> Micros {
        self.database.clock.tick()
    }

    /// Makes `document` the newest version, and lets go of versions that nobody may ask for any more.
    pub(crate) fn put(&mut self, key: &[u8], time: Micros, document: Option<Stored>, history: Micros) {
        let state = &mut *self.state;
        let versions = state.documents.entry(key.into()).or_default();
        versions.0.push(Version { time, document });
        state.superseded.push_back((time, key.into()));
        while let Some((superseded, _)) = state.superseded.front() {
            let expired = *superseded < time.saturating_sub(history);
            if !expired && state.superseded.len() <= MAX_SUPERSEDED {
                break;
            }
            let Some((superseded, key)) = state.superseded.pop_front() else {
                break;
            };
            // Also when it has expired: the window can be made longer again.
            state.floor = state.floor.max(superseded);
            state.forget(&key, superseded);
        }
    }
}

impl State {
    /// Drops what the document was before `time`.
    fn forget(&mut self, key: &[u8], time: Micros) {
        let Some(versions) = self.documents.get_mut(key) else {
            return;
        };
        let keep = versions
            .0
            .iter()
            .rposition(|version| version.time <= time)
            .unwrap_or(0);
        versions.0.drain(..keep);
        versions.0.shrink_to_fit();
    }
}

/// Where a scan is, and where it ends.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    pub(crate) start: Bound<Vec<u8>>,
    pub(crate) end: Bound<Vec<u8>>,
}

impl Position {
    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (
            self.start.as_ref().map(Vec::as_slice),
            self.end.as_ref().map(Vec::as_slice),
        )
    }

    fn after(&self, key: &[u8]) -> Self {
        Self {
            start: Bound::Excluded(key.to_vec()),
            end: self.end.clone(),
        }
    }
}

fn is_empty_range(start: &Bound<Vec<u8>>, end: &Bound<Vec<u8>>) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => {
            start >= end
        }
    }
}

type Written<'a> = dyn Iterator<Item = (&'a Box<[u8]>, &'a Versions)> + 'a;

/// Written documents and synthetic ones in one order; what was written hides the synthetic one of its name.
struct Merge<'a> {
    stored: std::iter::Peekable<Box<Written<'a>>>,
    /// Sources with the indices that are left of them, in the order of the scan.
    synthetic: VecDeque<(&'a Arc<Synthetic>, Range<u64>)>,
    /// How many synthetic documents come before the next written one.
    run: u64,
}

impl<'a> Merge<'a> {
    fn new(
        documents: &'a BTreeMap<Box<[u8]>, Versions>,
        sources: &'a [Arc<Synthetic>],
        position: &Position,
    ) -> Self {
        let mut synthetic = VecDeque::new();
        let stored: Box<dyn Iterator<Item = _>> = if is_empty_range(&position.start, &position.end) {
            Box::new(std::iter::empty())
        } else {
            for source in sources {
                let start = match &position.start {
                    Bound::Unbounded => 0,
                    Bound::Included(key) => source.lower_bound(key),
                    Bound::Excluded(key) => source.lower_bound(key) + u64::from(source.find(key).is_some()),
                };
                let end = match &position.end {
                    Bound::Unbounded => source.len(),
                    Bound::Excluded(key) => source.lower_bound(key),
                    Bound::Included(key) => source.lower_bound(key) + u64::from(source.find(key).is_some()),
                };
                if start < end {
                    synthetic.push_back((source, start..end));
                }
            }
            let range = documents.range::<[u8], _>(position.bounds());
            Box::new(range)
        };
        Self {
            stored: stored.peekable(),
            synthetic,
            run: 0,
        }
    }

    /// The synthetic documents that come next, all that follow each other without a written one.
    fn take_run(&mut self) -> Option<(&'a Arc<Synthetic>, Range<u64>)> {
        while self.synthetic.front().is_some_and(|(_, range)| range.is_empty()) {
            self.synthetic.pop_front();
        }
        let (source, range) = self.synthetic.front_mut()?;
        let run = run_length(source, range, self.stored.peek().map(|(key, _)| &***key));
        let taken = range.start..range.start + run;
        range.start += run;
        (run > 0).then_some((*source, taken))
    }

    /// The next key, and its document if there is one at the time.
    fn next(&mut self, time: Micros) -> Option<(Vec<u8>, Option<Found>)> {
        loop {
            let Some((source, range)) = self.synthetic.front_mut() else {
                let (key, versions) = self.stored.next()?;
                return Some((key.to_vec(), existing(versions, time)));
            };
            if range.is_empty() {
                self.synthetic.pop_front();
                continue;
            }
            if self.run == 0 {
                self.run = run_length(source, range, self.stored.peek().map(|(key, _)| &***key));
            }
            if self.run > 0 {
                self.run -= 1;
                let index = range.start;
                range.start += 1;
                return Some((
                    source.key(index),
                    Some(Found::Synthetic((*source).clone(), index)),
                ));
            }
            let (key, versions) = self.stored.next()?;
            let hidden = source.find(key);
            if let Some(index) = hidden {
                range.start = index + 1;
            }
            let candidate = match (versions.at(time), hidden) {
                (Some(version), _) => version.document.clone().map(Found::Stored),
                (None, Some(index)) => Some(Found::Synthetic((*source).clone(), index)),
                (None, None) => None,
            };
            return Some((key.to_vec(), candidate));
        }
    }
}

/// How many of a source's documents come before the next written one.
fn run_length(source: &Synthetic, range: &Range<u64>, stored: Option<&[u8]>) -> u64 {
    let end = stored.map_or(range.end, |key| {
        source.lower_bound(key).clamp(range.start, range.end)
    });
    end - range.start
}

/// Documents that follow each other.
pub(crate) enum Run<'a> {
    /// One, with its key.
    One(&'a [u8], &'a Found),
    /// Synthetic ones, by their indices.
    Synthetic(&'a Arc<Synthetic>, Range<u64>),
}

fn existing(versions: &Versions, time: Micros) -> Option<Found> {
    versions.at(time)?.document.clone().map(Found::Stored)
}

#[cfg(test)]
mod tests;
