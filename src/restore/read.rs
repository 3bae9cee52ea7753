//! Reads a key range, passes on what is decided, and where that is wished goes around what is damaged.
//!
//! Damage is told of a window of many documents. Whoever goes around it wants to lose as few as can be: so the window's
//! documents are looked at by the frames that they lie in, and only those are left out whose frames cannot be read. Where the
//! index is damaged it is not known which documents there are, and the whole stretch is left out.

use std::collections::HashMap;
use std::ops::Range;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::RestoreError;
use super::decide::Decide;
use super::ranges;
use super::write::{Message, Step};
use crate::archive::{ArchiveError, Damage, DamageKind, RecordBatch, SnapshotReader};
use crate::document::{DocumentKey, KeyRange};
use crate::path_filter::PathFilter;

/// Documents of a snapshot that cannot be restored, because it is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The damaged object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// The first document; `None` is the snapshot's first.
    pub first: Option<String>,
    /// The last document; `None` is the snapshot's last.
    pub last: Option<String>,
    /// How many there are among those that were chosen; `None` where the damage hides that.
    pub documents: Option<u64>,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first = self.first.as_deref().unwrap_or("the first document");
        let last = self.last.as_deref().unwrap_or("the last document");
        match (self.documents, first == last) {
            (Some(1), true) => write!(f, "{first}")?,
            (Some(documents), _) => write!(f, "{documents} between {first} and {last}")?,
            (None, _) => write!(f, "an unknown number between {first} and {last}")?,
        }
        write!(f, ": `{}` is damaged: {}", self.object, self.what)
    }
}

impl Gap {
    fn new(damage: &Damage, range: &KeyRange, documents: Option<u64>) -> Self {
        // The end of a span of damage is the smallest key past its last document.
        let shown = |key: &DocumentKey| {
            let path = key.previous().as_ref().unwrap_or(key).path();
            path.map_or_else(|_| format!("key 0x{}", hex::encode(key.as_bytes())), String::from)
        };
        Self {
            object: damage.object.clone(),
            what: damage.what.clone(),
            first: range.start.as_ref().map(shown),
            last: range.end.as_ref().map(shown),
            documents,
        }
    }
}

/// Reads ranges.
pub(super) struct Reading {
    pub(super) reader: SnapshotReader,
    pub(super) decide: Decide,
    pub(super) filter: PathFilter,
    /// Goes around what is damaged.
    pub(super) skip_damaged: bool,
}

/// A part of a range, in key order.
enum Part {
    /// To be read. What has been looked at and still cannot be read is given up whole.
    Read { range: KeyRange, looked_at: bool },
    /// Not to be read.
    Skip { range: KeyRange, gap: Gap },
}

/// Nobody takes the steps any more: the writer has failed or was stopped, and says why itself.
struct Gone;

/// Where the steps of a range go.
struct Steps {
    number: usize,
    steps: mpsc::Sender<Message>,
}

impl Steps {
    async fn send(&self, step: Result<Step, RestoreError>) -> Result<(), Gone> {
        self.steps.send((self.number, step)).await.map_err(|_| Gone)
    }
}

impl Reading {
    /// Reads ranges, so many at a time, and sends what is decided for them. Those that are read together lie far apart.
    pub(super) async fn all(
        self,
        ranges: Vec<(usize, KeyRange)>,
        parallel: usize,
        steps: mpsc::Sender<Message>,
    ) {
        let (reading, ranges, steps) = (&self, &ranges, &steps);
        stream::iter(ranges::far_apart(ranges.len(), parallel))
            .map(|place| {
                let (number, range) = ranges[place].clone();
                reading.range(number, range, steps.clone())
            })
            .buffer_unordered(parallel)
            .for_each(|()| std::future::ready(()))
            .await;
    }

    /// Sends what is decided for a range, then that it is at its end; or why it cannot be read.
    async fn range(&self, number: usize, range: KeyRange, steps: mpsc::Sender<Message>) {
        let steps = Steps { number, steps };
        let mut parts = vec![Part::Read {
            range,
            looked_at: false,
        }];
        while let Some(part) = parts.pop() {
            let sent = match part {
                Part::Skip { range, gap } => steps.send(Ok(Step::Gap(gap, range.end))).await.map(|()| None),
                Part::Read { range, looked_at } => self.part(range, looked_at, &steps).await,
            };
            match sent {
                Ok(None) => {}
                Ok(Some(instead)) => parts.extend(instead.into_iter().rev()),
                Err(Gone) => return,
            }
        }
        // Nobody may be there any more, which is no matter.
        let _ = steps.send(Ok(Step::End)).await;
    }

    /// Reads a part to its end, or as far as it can be read: then it says what to read instead of the rest.
    async fn part(&self, range: KeyRange, looked_at: bool, steps: &Steps) -> Result<Option<Vec<Part>>, Gone> {
        let mut rest = range.clone();
        let mut decided = self.decide.range(range);
        let error = loop {
            match decided.next().await {
                None => return Ok(None),
                Some(Ok(decided)) => {
                    if let Some(up_to) = &decided.up_to {
                        rest.start = Some(up_to.after());
                    }
                    steps.send(Ok(Step::Decided(Box::new(decided)))).await?;
                }
                Some(Err(error)) => break error,
            }
        };
        drop(decided);
        match self.around(error, rest, looked_at).await {
            Ok(parts) => Ok(Some(parts)),
            Err(error) => {
                steps.send(Err(error)).await?;
                // Whoever takes the steps stops at an error.
                Err(Gone)
            }
        }
    }

    /// What to read of `rest`, which an error came up in.
    async fn around(
        &self,
        error: RestoreError,
        rest: KeyRange,
        looked_at: bool,
    ) -> Result<Vec<Part>, RestoreError> {
        let damage = match error {
            RestoreError::Archive(error) if self.skip_damaged => error.into_damage()?,
            error => return Err(error),
        };
        tracing::warn!("going around damage: {damage}");
        let span = damage.span.as_ref().map(|span| span.intersection(&rest));
        let span = match span {
            Some(span) if !span.is_empty() && !looked_at => span,
            _ => {
                let documents = self.count(&rest).await?;
                let gap = Gap::new(&damage, &rest, documents);
                return Ok(vec![Part::Skip { range: rest, gap }]);
            }
        };
        let before = KeyRange {
            start: rest.start,
            end: span.start.clone(),
        };
        let after = KeyRange {
            start: span.end.clone(),
            end: rest.end,
        };
        let mut parts = vec![Part::Read {
            range: before,
            looked_at: false,
        }];
        parts.extend(self.look_at(span, &damage).await?);
        parts.push(Part::Read {
            range: after,
            looked_at: false,
        });
        parts.retain(|part| !matches!(part, Part::Read { range, .. } if range.is_empty()));
        Ok(parts)
    }

    /// How many documents of a range were chosen; `None` where the index cannot tell.
    async fn count(&self, range: &KeyRange) -> Result<Option<u64>, RestoreError> {
        let mut records = self.reader.records(range.clone()).boxed();
        let mut documents = 0;
        loop {
            match records.try_next().await {
                Ok(Some(batch)) => documents += self.chosen(&batch, 0..batch.len()),
                Ok(None) => return Ok(Some(documents)),
                Err(error) => return error.into_damage().map(|_| None).map_err(Into::into),
            }
        }
    }

    fn chosen(&self, batch: &RecordBatch, records: Range<usize>) -> u64 {
        let is_chosen = |number: &usize| {
            let path = batch.get(*number).and_then(|record| record.path().ok());
            path.is_some_and(|path| self.filter.matches(&path))
        };
        records.filter(is_chosen).count() as u64
    }

    /// Finds out which documents of a damaged span can be read.
    async fn look_at(&self, span: KeyRange, damage: &Damage) -> Result<Vec<Part>, RestoreError> {
        let mut records = RecordBatch::default();
        let mut batches = self.reader.records(span.clone()).boxed();
        loop {
            match batches.try_next().await {
                Ok(Some(batch)) => batch.iter().for_each(|record| records.push(record)),
                Ok(None) => break,
                Err(error) => {
                    let index = error.into_damage()?;
                    let gap = Gap::new(&index, &span, None);
                    return Ok(vec![Part::Skip { range: span, gap }]);
                }
            }
        }
        if records.is_empty() {
            let gap = Gap::new(damage, &span, None);
            return Ok(vec![Part::Skip { range: span, gap }]);
        }
        let unreadable = self.unreadable(&records).await?;
        Ok(self.parts(span, &records, &unreadable))
    }

    /// The damage of each record whose body cannot be read.
    async fn unreadable(&self, records: &RecordBatch) -> Result<HashMap<usize, Damage>, RestoreError> {
        let frame_len = u64::from(self.reader.repository().parameters().frame_len);
        let mut by_frames: HashMap<_, Vec<usize>> = HashMap::new();
        for (number, record) in records.iter().enumerate() {
            let Some(body) = record.body else { continue };
            let (start, length) = (u64::from(body.offset), u64::from(body.length));
            let frames = (start / frame_len, (start + length) / frame_len);
            let frames = (body.chunk.id, body.chunk.session, frames);
            by_frames.entry(frames).or_default().push(number);
        }
        let mut unreadable = HashMap::new();
        for numbers in by_frames.into_values() {
            let Err(damage) = self.read_bodies(records, &numbers).await? else {
                continue;
            };
            if damage.kind != DamageKind::Document {
                unreadable.extend(numbers.into_iter().map(|number| (number, damage.clone())));
                continue;
            }
            // The frame is whole, and some of what lies in it is not what the index says.
            for number in numbers {
                if let Err(damage) = self.read_bodies(records, &[number]).await? {
                    unreadable.insert(number, damage);
                }
            }
        }
        Ok(unreadable)
    }

    async fn read_bodies(
        &self,
        records: &RecordBatch,
        numbers: &[usize],
    ) -> Result<Result<(), Damage>, ArchiveError> {
        let mut wanted = RecordBatch::default();
        for record in numbers.iter().filter_map(|&number| records.get(number)) {
            wanted.push(record);
        }
        let mut bodies = self
            .reader
            .bodies(stream::once(std::future::ready(Ok(wanted))))
            .boxed();
        loop {
            match bodies.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Ok(())),
                Err(error) => return error.into_damage().map(Err),
            }
        }
    }

    /// Cuts a span into what can be read and what cannot.
    fn parts(&self, span: KeyRange, records: &RecordBatch, unreadable: &HashMap<usize, Damage>) -> Vec<Part> {
        let key = |number| {
            records
                .get(number)
                .map(|record| DocumentKey::from_bytes(record.key))
        };
        let mut parts = Vec::new();
        let mut from = span.start.clone();
        let mut number = 0;
        while number < records.len() {
            let Some(damage) = unreadable.get(&number) else {
                number += 1;
                continue;
            };
            let first = number;
            // Those beside it go with it as long as the same object is to blame.
            while unreadable
                .get(&number)
                .is_some_and(|next| next.object == damage.object)
            {
                number += 1;
            }
            parts.push(Part::Read {
                range: KeyRange {
                    start: from,
                    end: key(first),
                },
                looked_at: true,
            });
            from = key(number - 1).map(|last| last.after());
            let range = KeyRange {
                start: key(first),
                end: from.clone(),
            };
            let gap = Gap::new(damage, &range, Some(self.chosen(records, first..number)));
            parts.push(Part::Skip { range, gap });
        }
        parts.push(Part::Read {
            range: KeyRange {
                start: from,
                end: span.end,
            },
            looked_at: true,
        });
        parts
    }
}
