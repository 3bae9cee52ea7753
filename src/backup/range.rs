//! Backs up one range: what is in it, less what the range before owns, and what the range after has of it.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::debug;

use super::BackupError;
use super::head::{HeadBudget, HeadKeeper, NextHead};
use super::reading::Reading;
use crate::archive::{Flow, RangeWriter, Selection, UnfinishedRange};
use crate::document::{DocumentBatch, DocumentKey, KeyRange, Timestamp};
use crate::firestore::{Firestore, ScanOptions};
use crate::progress::Progress;
use crate::stop::Stop;

/// A range, and its ties to the ranges before and after it.
pub(super) struct RangeJob {
    range: UnfinishedRange,
    head: HeadKeeper,
    next: Option<NextHead>,
}

impl RangeJob {
    pub(super) fn range(&self) -> &UnfinishedRange {
        &self.range
    }
}

/// Ties ranges together where one begins at the other's end. They must be started in order, and `parallel` at a time: a
/// range waits for the head of the one after it, so alone it waits for nothing and reads for itself.
pub(super) fn jobs(ranges: Vec<UnfinishedRange>, parallel: usize) -> Vec<RangeJob> {
    let budget = HeadBudget::new();
    let mut jobs: Vec<RangeJob> = Vec::with_capacity(ranges.len());
    for unfinished in ranges {
        let range = &unfinished.range;
        // One that goes on from a checkpoint does not read its head again.
        let reads_head = range.start.is_some() && unfinished.covered().is_none();
        let before = jobs
            .last_mut()
            .filter(|before| parallel > 1 && reads_head && before.range.range.end == range.start);
        let to = before.map(|before| {
            let (to, next) = oneshot::channel();
            before.next = Some(next);
            to
        });
        jobs.push(RangeJob {
            head: HeadKeeper::new(to, range.end.clone(), budget.clone()),
            next: None,
            range: unfinished,
        });
    }
    jobs
}

/// What all ranges of a backup share.
#[derive(Clone)]
pub(super) struct RangeContext {
    pub(super) database: Firestore,
    pub(super) selection: Selection,
    pub(super) read_time: Timestamp,
    pub(super) checkpoint_every: Duration,
    pub(super) stop: Stop,
    pub(super) progress: Progress,
}

/// Reads a range and writes what it owns. Asked to stop, it does at its next checkpoint, and the range stays unfinished.
pub(super) async fn back_up(
    context: RangeContext,
    writer: RangeWriter,
    job: RangeJob,
) -> Result<(), BackupError> {
    let RangeJob { range, head, next } = job;
    let after = range.covered().map(|(covered, _)| covered.clone());
    let range = range.range;
    let (database, read_time) = (context.database.clone(), context.read_time);
    let selection = context.selection.clone();
    let mut sink = Sink {
        writer,
        head,
        context,
        checkpoint_at: Instant::now(),
        stopping: false,
    };
    let read = |range, after| {
        let options = ScanOptions {
            after,
            ..ScanOptions::new(range, read_time)
        };
        Reading::new(database.clone(), &selection, options)
    };
    let mut flow = Flow::Continue;
    let mut batches = read(range.clone(), after);
    while flow != Flow::Done
        && let Some(batch) = batches.next().await?
    {
        flow = sink.push(&batch).await?;
        if sink.stops() {
            return Ok(());
        }
    }
    if sink.writer.is_before_first_cut() {
        sink.head.hand_over(next)?;
    } else if flow != Flow::Done {
        let rest = KeyRange {
            start: sink.push_heads(next, &range).await?,
            end: sink.writer.reads().end.clone(),
        };
        // Without a start there is nothing left to read.
        if rest.start.is_some() && !rest.is_empty() {
            let mut batches = read(rest, None);
            while let Some(batch) = batches.next().await? {
                if sink.push(&batch).await? == Flow::Done {
                    break;
                }
            }
        }
    }
    let output = sink.writer.finish().await?;
    debug!(range = ?output.range, stats = ?output.stats, "range finished");
    Ok(())
}

/// Where the documents of a range go.
struct Sink {
    writer: RangeWriter,
    head: HeadKeeper,
    context: RangeContext,
    /// When the last checkpoint was asked for.
    checkpoint_at: Instant,
    /// Whether it was the last: the one to stop at.
    stopping: bool,
}

impl Sink {
    /// Writes the documents that the range owns, and keeps those of its head.
    async fn push(&mut self, batch: &DocumentBatch) -> Result<Flow, BackupError> {
        let before = (self.writer.stats().documents, self.writer.stats().raw_bytes);
        let mut flow = Flow::Continue;
        for document in batch.iter() {
            flow = self.writer.push(document).await?;
            match flow {
                Flow::Continue => {}
                Flow::Skipped => {
                    self.head.push(document)?;
                    if !self.writer.is_before_first_cut() {
                        self.head.hand_over(None)?;
                    }
                }
                Flow::Done => break,
            }
        }
        let after = self.writer.stats();
        self.context
            .progress
            .add(after.documents - before.0, after.raw_bytes - before.1);
        Ok(flow)
    }

    /// Asks for a checkpoint when one is due. Says whether it is time to stop: asked to, and nothing to be lost by it.
    fn stops(&mut self) -> bool {
        let stop = self.context.stop.is_requested();
        if stop && (self.stopping && !self.writer.wants_checkpoint() || self.writer.is_before_first_cut()) {
            return true;
        }
        if stop && !self.stopping || self.checkpoint_at.elapsed() >= self.context.checkpoint_every {
            self.stopping = stop;
            self.checkpoint_at = Instant::now();
            self.writer.want_checkpoint();
        }
        false
    }

    /// Writes what the ranges after this one have of it. Says from where on the rest must be read; `None` if there is none.
    async fn push_heads(
        &mut self,
        mut next: Option<NextHead>,
        range: &KeyRange,
    ) -> Result<Option<DocumentKey>, BackupError> {
        let mut rest = range.end.clone();
        while let Some(coming) = next.take() {
            let Ok(mut head) = coming.await else { break };
            for batch in head.batches() {
                if self.push(&batch?).await? == Flow::Done {
                    return Ok(None);
                }
            }
            (rest, next) = (head.end, head.next);
        }
        Ok(rest)
    }
}
