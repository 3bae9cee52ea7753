//! Backs up one range: what is in it, less what the range before owns, and what the range after has of it.

use tokio::sync::oneshot;
use tracing::debug;

use super::BackupError;
use super::head::{HeadBudget, HeadKeeper, NextHead};
use super::reading::Reading;
use crate::archive::{Flow, RangeWriter, Selection};
use crate::document::{DocumentBatch, DocumentKey, KeyRange, Timestamp};
use crate::firestore::{Firestore, ScanOptions};
use crate::progress::Progress;

/// A range, and its ties to the ranges before and after it.
pub(super) struct RangeJob {
    range: KeyRange,
    head: HeadKeeper,
    next: Option<NextHead>,
}

impl RangeJob {
    pub(super) fn range(&self) -> &KeyRange {
        &self.range
    }
}

/// Ties ranges together where one begins at the other's end. They must be started in order, and `parallel` at a time: a
/// range waits for the head of the one after it, so alone it waits for nothing and reads for itself.
pub(super) fn jobs(ranges: Vec<KeyRange>, parallel: usize) -> Vec<RangeJob> {
    let budget = HeadBudget::new();
    let mut jobs: Vec<RangeJob> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let before = jobs
            .last_mut()
            .filter(|before| parallel > 1 && range.start.is_some() && before.range.end == range.start);
        let to = before.map(|before| {
            let (to, next) = oneshot::channel();
            before.next = Some(next);
            to
        });
        jobs.push(RangeJob {
            head: HeadKeeper::new(to, range.end.clone(), budget.clone()),
            next: None,
            range,
        });
    }
    jobs
}

/// Reads a range and writes what it owns.
pub(super) async fn back_up(
    database: Firestore,
    writer: RangeWriter,
    job: RangeJob,
    selection: Selection,
    read_time: Timestamp,
    progress: Progress,
) -> Result<(), BackupError> {
    let RangeJob { range, head, next } = job;
    let mut sink = Sink {
        writer,
        head,
        groups: (!selection.collection_groups.is_empty()).then_some(selection),
        progress,
    };
    let read = |range| Reading::new(database.clone(), ScanOptions::new(range, read_time));
    let mut flow = Flow::Continue;
    let mut batches = read(range.clone());
    while flow != Flow::Done
        && let Some(batch) = batches.next().await?
    {
        flow = sink.push(&batch).await?;
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
            let mut batches = read(rest);
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
    /// What is selected, where a range of keys does not say it.
    groups: Option<Selection>,
    progress: Progress,
}

impl Sink {
    /// Writes the documents that the range owns, and keeps those of its head.
    async fn push(&mut self, batch: &DocumentBatch) -> Result<Flow, BackupError> {
        let before = (self.writer.stats().documents, self.writer.stats().raw_bytes);
        let mut flow = Flow::Continue;
        for document in batch.iter() {
            if self
                .groups
                .as_ref()
                .is_some_and(|selection| !selection.contains(document.key))
            {
                continue;
            }
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
        self.progress
            .add(after.documents - before.0, after.raw_bytes - before.1);
        Ok(flow)
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
