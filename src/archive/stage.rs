//! How far a session has got: which ranges are left, after what its workers agreed upon since the plan.
//!
//! Two things are agreed upon on the way, each by an object that is created once, so that whoever is first decides for all:
//!
//! - A **split** puts parts of a range in its place, so that idle readers can take some of it. Splits form a tree; the ranges
//!   that count are its leaves. A range that somebody finished whole all the same counts as it is.
//! - **Tails**: when the database can no longer be read at the plan's time, what is finished up to there stays, and all the rest
//!   is read at one newer time. They list both: what stays, checkpoint by checkpoint, with the exact keys that it has all
//!   documents of, and the ranges between, which own exactly their keys. Whatever is written of other ranges after that does not
//!   count. Tails may be followed by others; the last ones hold.
//!
//! Listings are not atomic, and need not be: a worker that has not seen a split or the tails works on a tiling that is
//! complete as well, and a commit takes ranges of one tiling only.

use std::collections::{HashMap, HashSet};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::checkpoint::{FINISHED, UnfinishedRange};
use super::claims::Signs;
use super::envelope::{self, MAX_JSON_LEN};
use super::error::{ArchiveError, DamageKind, Result};
use super::ids::SessionId;
use super::range_writer::RangeOutput;
use super::repository::Repository;
use super::session::{Session, SessionShared};
use super::snapshot::{ReadMode, range_as_hex, rfc3339};
use crate::document::{DocumentKey, KeyRange, Timestamp};
use crate::store::StoreError;

/// Checkpoints that are read at the same time.
const READS: usize = 16;

/// The parts that take a range's place: it is cut at these keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Split {
    #[serde(with = "range_as_hex::keys")]
    boundaries: Vec<DocumentKey>,
    /// How they are read, where that is not as planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read: Option<ReadMode>,
}

/// What stays of what was read, and what is read at a newer time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tails {
    #[serde(with = "rfc3339")]
    read_time: Timestamp,
    kept: Vec<Kept>,
    #[serde(with = "range_as_hex::list")]
    ranges: Vec<KeyRange>,
}

/// A checkpoint that stays, and the keys that it has all documents of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    checkpoint: String,
    #[serde(with = "range_as_hex")]
    range: KeyRange,
}

/// A range that takes part in the tiling.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) range: KeyRange,
    pub(super) name: String,
    pub(super) finished: bool,
    /// Those that it is the first part of, the nearest first: their checkpoints hold for it as far as they go.
    pub(super) ancestors: Vec<String>,
    /// How it is read, where the split that it comes of says so.
    read: Option<ReadMode>,
    /// Which of the ranges that were begun with it is a part of, and how many these are.
    origin: (usize, usize),
}

/// How far a session has got.
#[derive(Debug)]
pub(super) struct Stage {
    /// The number of the tails; 0 while the plan holds.
    number: u64,
    tails: Option<Tails>,
    pub(super) leaves: Vec<Leaf>,
    /// What tasks have said of themselves.
    pub(super) signs: Signs,
    /// Numbers of the checkpoints of each range that is not finished, ascending.
    progress: HashMap<String, Vec<u64>>,
}

impl Stage {
    fn read_time(&self, session: &SessionShared) -> Timestamp {
        self.tails
            .as_ref()
            .map_or(session.plan().read_time, |tails| tails.read_time)
    }
}

impl Session {
    /// The ranges that nobody has finished, in key order, with how far they have got.
    pub async fn unfinished_ranges(&self) -> Result<Vec<UnfinishedRange>> {
        let stage = self.shared.stage().await?;
        let unfinished = stage.leaves.iter().filter(|leaf| !leaf.finished);
        let read: Vec<BoxFuture<'_, _>> = unfinished
            .map(|leaf| self.shared.unfinished(&stage, leaf).boxed())
            .collect();
        futures::stream::iter(read).buffered(READS).try_collect().await
    }

    /// The ranges that are finished, by any worker, in key order.
    pub async fn finished_ranges(&self) -> Result<Vec<RangeOutput>> {
        let stage = self.shared.stage().await?;
        self.shared.outputs(&stage).await
    }

    /// Whether another worker has finished a range meanwhile, or split it.
    pub async fn is_done_or_split(&self, range: &UnfinishedRange) -> Result<bool> {
        let shared = &self.shared;
        let name = shared.range_name(&range.range, range.tail)?;
        let store = shared.repository.store();
        Ok(store.exists(&shared.checkpoint_name(&name, FINISHED)).await?
            || store.exists(&shared.split_name(&name)).await?)
    }

    /// How many ranges there are, finished or not.
    pub async fn ranges(&self) -> Result<usize> {
        let stage = self.shared.stage().await?;
        Ok(stage.leaves.len() + stage.tails.map_or(0, |tails| tails.kept.len()))
    }

    /// Puts the parts of a range in its place, cut at keys inside of it. Says which parts there are: those of another worker that
    /// was faster may be others.
    pub async fn split(
        &self,
        range: &UnfinishedRange,
        boundaries: &[DocumentKey],
    ) -> Result<Vec<UnfinishedRange>> {
        let name = self.shared.range_name(&range.range, range.tail)?;
        let object = self.shared.split_name(&name);
        let split = Split {
            boundaries: boundaries.to_vec(),
            read: range.read,
        };
        let store = self.shared.repository.store();
        let split = match store.put_new(&object, envelope::encode("split", &split)?).await {
            Ok(()) => split,
            Err(StoreError::AlreadyExists { .. }) => self.shared.read_split(&object).await?,
            Err(error) => return Err(error.into()),
        };
        let parts = range.range.cut_at(&split.boundaries).into_iter();
        let read = range.read.or(split.read);
        let part = |part| UnfinishedRange {
            read,
            ..range.part(part)
        };
        Ok(parts.map(part).collect())
    }

    /// The moment that what is left is read at: the plan's, unless that could not be read any more.
    pub async fn read_time(&self) -> Result<Timestamp> {
        let stage = self.shared.stage().await?;
        Ok(stage.read_time(&self.shared))
    }

    /// Keeps what was read so far and has all the rest read at a newer time than the one that can no longer be read, unless another
    /// worker has said so before: then that holds.
    pub async fn read_rest_at(&self, closed: Timestamp, read_time: Timestamp) -> Result<()> {
        let shared = &self.shared;
        let stage = shared.stage().await?;
        if stage.read_time(shared) != closed {
            return Ok(());
        }
        let kept = shared.kept(&stage).await?;
        let cuts: Vec<DocumentKey> = stage
            .leaves
            .iter()
            .filter_map(|leaf| leaf.range.start.clone())
            .collect();
        let mut ranges = Vec::new();
        for selected in shared.plan().selection.key_ranges() {
            ranges.extend(gaps(&selected, &kept).iter().flat_map(|gap| gap.cut_at(&cuts)));
        }
        let tails = Tails {
            read_time,
            kept,
            ranges,
        };
        let name = tails_name(shared.id(), stage.number + 1);
        match shared
            .repository
            .store()
            .put_new(&name, envelope::encode("tails", &tails)?)
            .await
        {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What lies between ranges that ascend and are apart.
fn gaps(selected: &KeyRange, kept: &[Kept]) -> Vec<KeyRange> {
    let mut gaps = Vec::new();
    let mut from = Some(selected.start.clone());
    let parts = kept.iter().map(|kept| kept.range.intersection(selected));
    for part in parts.filter(|part| !part.is_empty()) {
        let Some(start) = from.take() else { break };
        if part.start > start {
            gaps.push(KeyRange {
                start,
                end: part.start,
            });
        }
        from = part.end.map(Some);
    }
    gaps.extend(from.map(|start| KeyRange {
        start,
        end: selected.end.clone(),
    }));
    gaps.retain(|gap| !gap.is_empty());
    gaps
}

impl SessionShared {
    pub(super) fn split_name(&self, range: &str) -> String {
        format!("{}/splits/{range}.json", self.id().folder())
    }

    async fn read_split(&self, object: &str) -> Result<Split> {
        let bytes = self.repository.store().get_at_most(object, MAX_JSON_LEN).await?;
        envelope::decode(object, "split", &bytes)
    }

    /// Looks at what the session has.
    pub(super) async fn stage(&self) -> Result<Stage> {
        let folder = self.id().folder();
        let (mut seen, mut signs) = (Seen::default(), Signs::default());
        let mut objects = self.repository.store().list(&folder);
        while let Some(object) = objects.try_next().await? {
            let name = object.name.strip_prefix(&folder).unwrap_or_default();
            let name = name.trim_start_matches('/');
            seen.take(name);
            signs.take(name, object.last_modified);
        }
        let tails = match seen.tails {
            0 => None,
            number => Some(read_tails(&self.repository, self.id(), number).await?),
        };
        let (ranges, tail) = match &tails {
            Some(tails) => (&tails.ranges, Some(tails.read_time)),
            None => (&self.plan().ranges, None),
        };
        let mut leaves = Vec::with_capacity(ranges.len());
        for (origin, range) in ranges.iter().enumerate() {
            let name = self.range_name(range, tail)?;
            let root = Leaf {
                range: range.clone(),
                name,
                finished: false,
                ancestors: Vec::new(),
                read: None,
                origin: (origin, ranges.len()),
            };
            self.grow(&seen, root, tail, &mut leaves).await?;
        }
        Ok(Stage {
            number: seen.tails,
            tails,
            leaves,
            signs,
            progress: seen.progress,
        })
    }

    /// Adds the leaves below a range, in key order: itself, if it was not split.
    fn grow<'a>(
        &'a self,
        seen: &'a Seen,
        whole: Leaf,
        tail: Option<Timestamp>,
        leaves: &'a mut Vec<Leaf>,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let finished = seen.finished.contains(&whole.name);
            if finished || !seen.splits.contains(&whole.name) {
                leaves.push(Leaf { finished, ..whole });
                return Ok(());
            }
            let object = self.split_name(&whole.name);
            let split = self.read_split(&object).await?;
            let parts = whole.range.cut_at(&split.boundaries);
            if parts.len() < 2 {
                let what = "it splits a range into itself";
                return Err(ArchiveError::damaged(object, DamageKind::Inconsistent, what));
            }
            for range in parts {
                let mut ancestors = Vec::new();
                if range.start == whole.range.start {
                    ancestors.push(whole.name.clone());
                    ancestors.extend(whole.ancestors.iter().cloned());
                }
                let part = Leaf {
                    name: self.range_name(&range, tail)?,
                    range,
                    finished: false,
                    ancestors,
                    read: split.read.or(whole.read),
                    origin: whole.origin,
                };
                self.grow(seen, part, tail, leaves).await?;
            }
            Ok(())
        }
        .boxed()
    }

    /// A range that is not finished, with the last checkpoint that holds for it.
    pub(super) async fn unfinished(&self, stage: &Stage, leaf: &Leaf) -> Result<UnfinishedRange> {
        let next = stage.progress.get(&leaf.name).and_then(|numbers| numbers.last());
        let last = self
            .progress(stage, leaf)
            .await?
            .map(|(_, checkpoint)| checkpoint);
        Ok(UnfinishedRange {
            range: leaf.range.clone(),
            read_time: stage.read_time(self),
            tail: stage.tails.as_ref().map(|tails| tails.read_time),
            next: next.map_or(1, |number| number + 1),
            read: last.as_ref().and_then(|last| last.read).or(leaf.read),
            checkpoint: last.filter(|last| last.cursor.is_some()),
            claims: stage.signs.claims_of(&leaf.name),
            origin: leaf.origin,
        })
    }

    /// The last checkpoint that holds for a range that is not finished, and its name. It may be one that says that the range was
    /// begun anew.
    async fn progress(&self, stage: &Stage, leaf: &Leaf) -> Result<Option<(String, RangeOutput)>> {
        for range in std::iter::once(&leaf.name).chain(&leaf.ancestors) {
            for number in stage.progress.get(range).into_iter().flatten().rev() {
                let name = self.checkpoint_name(range, *number);
                let mut checkpoint = self.read_checkpoint(&name).await?;
                // One of the whole range, or of another worker that did not know of the split, may have gone further.
                let holds = checkpoint.range.start == leaf.range.start
                    && checkpoint
                        .cursor
                        .as_ref()
                        .is_none_or(|cursor| leaf.range.contains(cursor.as_bytes()));
                if holds {
                    checkpoint.range.clone_from(&leaf.range);
                    return Ok(Some((name, checkpoint)));
                }
            }
        }
        Ok(None)
    }

    /// What the finished ranges wrote, and what stays of those that were left for tails, in key order.
    pub(super) async fn outputs(&self, stage: &Stage) -> Result<Vec<RangeOutput>> {
        let kept = stage.tails.iter().flat_map(|tails| &tails.kept);
        let kept = kept.map(|kept| (kept.checkpoint.clone(), &kept.range));
        let finished = stage.leaves.iter().filter(|leaf| leaf.finished);
        let finished = finished.map(|leaf| (self.checkpoint_name(&leaf.name, FINISHED), &leaf.range));
        let reads: Vec<BoxFuture<'_, _>> = kept
            .chain(finished)
            .map(|(name, range)| self.output(name, range.clone()).boxed())
            .collect();
        let mut outputs: Vec<RangeOutput> = futures::stream::iter(reads)
            .buffer_unordered(READS)
            .try_collect()
            .await?;
        outputs.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        Ok(outputs)
    }

    async fn output(&self, name: String, range: KeyRange) -> Result<RangeOutput> {
        Ok(RangeOutput {
            range,
            cursor: None,
            ..self.read_checkpoint(&name).await?
        })
    }

    async fn kept_of(&self, stage: &Stage, leaf: &Leaf) -> Result<Option<Kept>> {
        let checkpoint = match leaf.finished {
            true => {
                let name = self.checkpoint_name(&leaf.name, FINISHED);
                let checkpoint = self.read_checkpoint(&name).await?;
                Some((name, checkpoint))
            }
            false => self.progress(stage, leaf).await?,
        };
        Ok(checkpoint.and_then(|(checkpoint, output)| {
            Some(Kept {
                checkpoint,
                range: output.owned.filter(|owned| !owned.is_empty())?,
            })
        }))
    }

    /// What is worth keeping of everything that was read so far.
    async fn kept(&self, stage: &Stage) -> Result<Vec<Kept>> {
        let leaves: Vec<BoxFuture<'_, _>> = stage
            .leaves
            .iter()
            .map(|leaf| self.kept_of(stage, leaf).boxed())
            .collect();
        let mut kept: Vec<Kept> = futures::stream::iter(leaves)
            .buffered(READS)
            .try_filter_map(|kept| std::future::ready(Ok(kept)))
            .try_collect()
            .await?;
        kept.extend(stage.tails.iter().flat_map(|tails| tails.kept.iter().cloned()));
        kept.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        Ok(kept)
    }
}

fn tails_name(session: SessionId, number: u64) -> String {
    format!("{}/tails/{number}.json", session.folder())
}

/// Whether an object with this name says that a range is split.
pub(super) fn is_split(name: &str) -> bool {
    name.contains("/splits/")
}

/// The number of the tails that an object is; 0 if it is something else.
pub(super) fn number_of_tails(name: &str) -> u64 {
    let number = name.strip_suffix(".json").and_then(|name| name.rsplit_once('/'));
    match number {
        Some((folder, number)) if folder == "tails" || folder.ends_with("/tails") => {
            number.parse().unwrap_or(0)
        }
        _ => 0,
    }
}

/// When the tails with this number are read.
pub(super) async fn read_time_of_tails(
    repository: &Repository,
    session: SessionId,
    number: u64,
) -> Result<Timestamp> {
    Ok(read_tails(repository, session, number).await?.read_time)
}

async fn read_tails(repository: &Repository, session: SessionId, number: u64) -> Result<Tails> {
    let name = tails_name(session, number);
    let bytes = repository.store().get_at_most(&name, MAX_JSON_LEN).await?;
    envelope::decode(&name, "tails", &bytes)
}

/// What a listing of a session's objects showed.
#[derive(Debug, Default)]
struct Seen {
    finished: HashSet<String>,
    splits: HashSet<String>,
    /// Numbers of checkpoints, ascending.
    progress: HashMap<String, Vec<u64>>,
    /// The number of the last tails.
    tails: u64,
}

impl Seen {
    /// Takes notice of an object, by its name below the session's folder.
    fn take(&mut self, name: &str) {
        match name.split_once('/') {
            Some(("checkpoints", name)) => {
                let Some((range, number)) = name.rsplit_once('-') else {
                    return;
                };
                match number.parse() {
                    Ok(FINISHED) => drop(self.finished.insert(range.to_owned())),
                    Ok(number) => {
                        let numbers = self.progress.entry(range.to_owned()).or_default();
                        numbers.push(number);
                        numbers.sort_unstable();
                    }
                    Err(_) => {}
                }
            }
            Some(("splits", name)) => {
                self.splits.extend(name.strip_suffix(".json").map(str::to_owned));
            }
            Some(("tails", _)) => self.tails = self.tails.max(number_of_tails(name)),
            _ => {}
        }
    }
}
