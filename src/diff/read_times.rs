//! The moments that a database is looked at while it is compared: the present, and a newer one each time when the one before can
//! be read no longer.
//!
//! A database keeps what has changed for an hour, and comparing it may take longer. Every document is compared by itself, so
//! whatever is left is compared as it is at a newer moment: all ranges that are left share that one, and which documents it
//! was is recorded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::stream::{BoxStream, StreamExt};
use tracing::info;

use crate::archive::RangeTime;
use crate::compare::Cursor;
use crate::document::{DocumentBatch, DocumentKey, DocumentPath, DocumentRef, KeyRange, Timestamp};
use crate::firestore::{self, Error, Fetched, Firestore, ScanOptions};

/// How often to go on at a newer moment without a single document in between: then it is the database that keeps nothing.
const FRUITLESS: u32 = 3;

/// The moments that a database is looked at. Clones are the same.
#[derive(Clone, Debug)]
pub struct ReadTimes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    first: Timestamp,
    state: Mutex<State>,
    /// Held while a newer moment is asked for, so that all who need one get the same.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    newest: Timestamp,
    later: Vec<RangeTime>,
}

impl ReadTimes {
    /// Begins with the present.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn now(database: &Firestore) -> firestore::Result<Self> {
        Ok(Self::beginning_at(database.current_read_time().await?))
    }

    /// Begins with a moment that the database can be read at.
    pub fn beginning_at(first: Timestamp) -> Self {
        Self(Arc::new(Shared {
            first,
            state: Mutex::new(State {
                newest: first,
                later: Vec::new(),
            }),
            asking: tokio::sync::Mutex::default(),
        }))
    }

    /// The moment that all documents were looked at which [`ReadTimes::later`] does not name.
    pub fn first(&self) -> Timestamp {
        self.0.first
    }

    /// The ranges that were looked at later, ascending and apart; none of them where everything could be read at one moment.
    /// Complete when the comparison has ended.
    pub fn later(&self) -> Vec<RangeTime> {
        let mut ranges = self.state().later.clone();
        ranges.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        let mut later: Vec<RangeTime> = Vec::with_capacity(ranges.len());
        for next in ranges {
            match later.last_mut() {
                Some(last) if last.read_time == next.read_time && last.range.end == next.range.start => {
                    last.range.end = next.range.end;
                }
                _ => later.push(next),
            }
        }
        later
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn newest(&self) -> Timestamp {
        self.state().newest
    }

    /// The moment that a document was looked at.
    pub(crate) fn at(&self, path: &DocumentPath) -> Timestamp {
        let key = path.key();
        let later = &self.state().later;
        let later = later.iter().find(|later| later.range.contains(key.as_bytes()));
        later.map_or(self.first(), |later| later.read_time)
    }

    /// A moment after one that can be read no longer.
    async fn later_than(&self, gone: Timestamp, database: &Firestore) -> firestore::Result<Timestamp> {
        let _asking = self.0.asking.lock().await;
        let newest = self.newest();
        if newest > gone {
            return Ok(newest);
        }
        let now = database.current_read_time().await?;
        info!("the database no longer keeps what it held at {gone}: the rest is compared as of {now}");
        self.state().newest = now;
        Ok(now)
    }

    /// Records that a range is looked at then, and no more as was recorded before.
    fn note(&self, range: KeyRange, read_time: Timestamp) {
        let mut state = self.state();
        let mut later = Vec::with_capacity(state.later.len() + 2);
        for earlier in state.later.drain(..) {
            let before = range.start.clone().map(|end| KeyRange {
                start: None,
                end: Some(end),
            });
            let behind = range.end.clone().map(|start| KeyRange {
                start: Some(start),
                end: None,
            });
            if earlier.range.intersection(&range).is_empty() {
                later.push(earlier);
                continue;
            }
            let rest = [before, behind].into_iter().flatten();
            later.extend(
                rest.map(|rest| earlier.range.intersection(&rest))
                    .filter(|rest| !rest.is_empty())
                    .map(|range| RangeTime {
                        range,
                        read_time: earlier.read_time,
                    }),
            );
        }
        later.push(RangeTime { range, read_time });
        state.later = later;
    }

    /// Records that everything from a document on is looked at at the newest moment.
    pub(crate) fn note_rest(&self, from: &DocumentPath) {
        let newest = self.newest();
        if newest != self.first() {
            let start = Some(from.key());
            self.note(KeyRange { start, end: None }, newest);
        }
    }

    /// Fetches documents, which ascend, as they were at `read_time`, or at a newer moment where that can be read no longer.
    pub(crate) async fn fetch(
        &self,
        database: &Firestore,
        paths: &[DocumentPath],
        read_time: Timestamp,
    ) -> firestore::Result<Fetched> {
        let mut at = read_time;
        let mut fruitless = 0;
        loop {
            match database.get_documents(paths, Some(at)).await {
                Err(Error::ReadTimeTooOld { .. }) if fruitless < FRUITLESS => {
                    fruitless += 1;
                    at = self.later_than(at, database).await?;
                }
                Ok(fetched) => {
                    if at != self.first()
                        && let (Some(first), Some(last)) = (paths.first(), paths.last())
                    {
                        let range = KeyRange {
                            start: Some(first.key()),
                            end: Some(last.key().after()),
                        };
                        self.note(range, at);
                    }
                    return Ok(fetched);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The documents of a range, one by one.
    pub(crate) fn scan(&self, database: &Firestore, options: ScanOptions) -> LiveScan {
        let options = ScanOptions {
            read_time: self.newest(),
            ..options
        };
        if options.read_time != self.first() {
            self.note(options.range.clone(), options.read_time);
        }
        LiveScan {
            documents: Cursor::new(database.scan(options.clone()).boxed()),
            times: self.clone(),
            database: database.clone(),
            options,
            fruitless: 0,
        }
    }
}

/// A scan that goes on at a newer moment when its own can be read no longer.
pub(crate) struct LiveScan {
    times: ReadTimes,
    database: Firestore,
    options: ScanOptions,
    documents: Cursor<BoxStream<'static, firestore::Result<DocumentBatch>>>,
    fruitless: u32,
}

impl LiveScan {
    /// Fetches the next batch when the present one is used up. Must come before [`LiveScan::current`].
    pub(crate) async fn fill(&mut self) -> firestore::Result<()> {
        loop {
            match self.documents.fill().await {
                Err(Error::ReadTimeTooOld { read_time, .. }) if self.fruitless < FRUITLESS => {
                    self.go_on_later(read_time).await?;
                }
                filled => return filled,
            }
        }
    }

    async fn go_on_later(&mut self, gone: Timestamp) -> firestore::Result<()> {
        match self.documents.last() {
            Some(last) => {
                self.options.after = Some(DocumentKey::from_bytes(last.key));
                self.fruitless = 0;
            }
            None => self.fruitless += 1,
        }
        self.reopen(gone).await
    }

    async fn reopen(&mut self, gone: Timestamp) -> firestore::Result<()> {
        self.options.read_time = self.times.later_than(gone, &self.database).await?;
        let rest = KeyRange {
            start: self.options.after.as_ref().map(DocumentKey::after),
            end: None,
        };
        self.times
            .note(self.options.range.intersection(&rest), self.options.read_time);
        self.documents = Cursor::new(self.database.scan(self.options.clone()).boxed());
        Ok(())
    }

    /// Goes back to the start of what is left, and reads it at a newer moment.
    pub(crate) async fn go_back(&mut self, rest: KeyRange, gone: Timestamp) -> firestore::Result<()> {
        (self.options.range, self.options.after) = (rest, None);
        self.reopen(gone).await
    }

    /// The document that it is at; `None` at the end.
    pub(crate) fn current(&self) -> Option<DocumentRef<'_>> {
        self.documents.current()
    }

    /// Goes to the next document.
    pub(crate) fn advance(&mut self) {
        self.documents.advance();
    }

    /// The moment that its documents are read at.
    pub(crate) fn read_time(&self) -> Timestamp {
        self.options.read_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> DocumentKey {
        DocumentPath::parse(path).unwrap().key()
    }

    fn range(start: &str, end: &str) -> KeyRange {
        let side = |path: &str| (!path.is_empty()).then(|| key(path));
        KeyRange {
            start: side(start),
            end: side(end),
        }
    }

    #[test]
    fn what_was_looked_at_again_counts_from_then_on() {
        let at = |seconds| Timestamp::new(seconds, 0);
        let times = ReadTimes::beginning_at(at(1));
        assert!(times.later().is_empty());
        times.note(range("a/5", ""), at(2));
        times.note(range("a/2", "a/3"), at(2));
        times.note(range("a/6", "a/7"), at(3));
        times.note(range("a/9", ""), at(4));
        let later: Vec<(KeyRange, i64)> = times
            .later()
            .into_iter()
            .map(|later| (later.range, later.read_time.seconds))
            .collect();
        let expected = [
            (range("a/2", "a/3"), 2),
            (range("a/5", "a/6"), 2),
            (range("a/6", "a/7"), 3),
            (range("a/7", "a/9"), 2),
            (range("a/9", ""), 4),
        ];
        assert_eq!(later, expected);
        times.note(KeyRange::all(), at(5));
        assert_eq!(times.later().len(), 1);
    }
}
