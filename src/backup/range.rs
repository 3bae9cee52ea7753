//! Backs up one range: what is in it, less what the range before owns, and what the range after has of it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tracing::{debug, info};

use super::crew::Share;
use super::fleet::{Others, Wanting};
use super::head::{HeadBudget, HeadKeeper, NextHead};
use super::reading::Reading;
use super::{BackupError, BackupOptions, out_of_patience, plan};
use crate::archive::{Flow, RangeWriter, Session, UnfinishedRange};
use crate::document::{DocumentBatch, DocumentKey, KeyRange};
use crate::firestore::{self, Firestore, ScanOptions};
use crate::progress::Progress;

/// A range, and its ties to the ranges before and after it.
pub(super) struct RangeJob {
    range: UnfinishedRange,
    head: HeadKeeper,
    next: Option<NextHead>,
}

/// Ties ranges together where one begins at the other's end. They must be started in order, and `parallel` at a time: a
/// range waits for the head of the one after it, so alone it waits for nothing and reads for itself.
pub(super) fn jobs(ranges: Vec<UnfinishedRange>, parallel: usize, budget: &HeadBudget) -> Vec<RangeJob> {
    let mut jobs: Vec<RangeJob> = Vec::with_capacity(ranges.len());
    for unfinished in ranges {
        let range = &unfinished.range;
        // One that goes on from a checkpoint does not read its head again, and one that owns its keys has none.
        let reads_head = range.start.is_some() && unfinished.covered().is_none() && !unfinished.is_exact();
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
    pub(super) session: Arc<Session>,
    pub(super) others: Arc<Others>,
    pub(super) options: Arc<BackupOptions>,
    pub(super) heads: HeadBudget,
    pub(super) progress: Progress,
}

/// Reads a range and writes what it owns. Asked to stop, it does at its next checkpoint, where it is if that is far, and the range
/// stays unfinished. When the database can no longer be read at its time, it writes down what it has.
pub(super) async fn back_up(
    context: RangeContext,
    job: RangeJob,
    share: Share<RangeJob>,
) -> Result<(), BackupError> {
    let RangeJob { range, head, next } = job;
    if !context.others.leave(&context.session, &range).await? {
        return Ok(());
    }
    let mut reader = RangeReader {
        sink: Sink {
            writer: context.session.resume_range_writer(range.clone()),
            head,
            checkpoint_at: Instant::now(),
            stopping: false,
            options: Arc::clone(&context.options),
            progress: context.progress.clone(),
        },
        last: range.covered().map(|(covered, _)| covered.clone()),
        range,
        next,
        context,
        share,
    };
    match reader.read().await {
        Ok(true) => {
            reader.context.others.tell_reads().await?;
            let output = reader.sink.writer.finish().await?;
            debug!(range = ?output.range, stats = ?output.stats, "range finished");
            Ok(())
        }
        Ok(false) => Ok(()),
        Err(error) => {
            if let BackupError::Firestore(firestore::Error::ReadTimeTooOld { .. }) = &error {
                reader.sink.writer.checkpoint_here().await?;
            }
            Err(error)
        }
    }
}

/// A range being read.
struct RangeReader {
    context: RangeContext,
    share: Share<RangeJob>,
    range: UnfinishedRange,
    /// The head of the range after it.
    next: Option<NextHead>,
    sink: Sink,
    /// The last document that was read.
    last: Option<DocumentKey>,
}

impl RangeReader {
    /// Reads the documents of a range.
    fn open(&self, range: KeyRange, after: Option<DocumentKey>, page_documents: Option<u32>) -> Reading {
        let options = ScanOptions {
            after,
            page_documents,
            ..ScanOptions::new(range, self.range.read_time)
        };
        let selection = &self.context.session.plan().selection;
        Reading::new(self.context.database.clone(), selection, options)
    }

    /// Reads all that the range owns. Says whether that came to its end.
    async fn read(&mut self) -> Result<bool, BackupError> {
        let mut flow = Flow::Continue;
        let mut batches = self.open(self.range.range.clone(), self.last.clone(), None);
        let mut out_of_patience = pin!(out_of_patience(Arc::clone(&self.context.options)));
        while flow != Flow::Done {
            let batch = tokio::select! {
                batch = batches.next() => batch?,
                () = &mut out_of_patience => {
                    self.sink.writer.checkpoint_here().await?;
                    return Ok(false);
                }
            };
            let Some(batch) = batch else { break };
            flow = self.sink.push(&batch).await?;
            if let Some(last) = batch.last() {
                self.last = Some(DocumentKey::from_bytes(last.key));
            }
            if self.sink.stops() {
                return Ok(false);
            }
            if flow != Flow::Done
                && !self.sink.writer.is_before_first_cut()
                && let Some((wanted, to)) = self.wanted()?
                && !self.give_away(wanted, to, &mut batches).await?
            {
                return Ok(false);
            }
        }
        if self.sink.writer.is_before_first_cut() {
            self.sink.head.hand_over(self.next.take())?;
        } else if flow != Flow::Done {
            let next = self.next.take();
            let rest = KeyRange {
                start: self.sink.push_heads(next, &self.range.range).await?,
                end: self.sink.writer.reads().end.clone(),
            };
            // Without a start there is nothing left to read.
            if rest.start.is_some() && !rest.is_empty() {
                // It ends somewhere in the next segment or two, and what is asked for is billed.
                let page = self.sink.writer.documents_in_segment().clamp(16, 10_000);
                let mut batches = self.open(rest, None, Some(page));
                while let Some(batch) = batches.next().await? {
                    if self.sink.push(&batch).await? == Flow::Done {
                        break;
                    }
                }
            }
        }
        Ok(true)
    }

    /// How many others want a part of the range, and who.
    fn wanted(&self) -> Result<Option<(usize, Wanting)>, BackupError> {
        if let Some(wanted) = self.share.wanted() {
            return Ok(Some((wanted, Wanting::Readers)));
        }
        let wanted = self.context.others.want(&self.range)?;
        Ok(wanted.map(|wanted| (wanted, Wanting::Tasks)))
    }

    /// Splits what is left of the range, and gives all but the first part away. `false`: another worker has split it where this one
    /// has read on, so that what it has read is of no use.
    async fn give_away(
        &mut self,
        wanted: usize,
        to: Wanting,
        batches: &mut Reading,
    ) -> Result<bool, BackupError> {
        let Some(last) = self.last.clone() else {
            return Ok(true);
        };
        let (session, options) = (&self.context.session, &self.context.options);
        let mut rest = self.range.clone();
        rest.range.start = Some(last.after());
        let points = plan::split_points(
            &self.context.database,
            None,
            session.plan(),
            &rest,
            wanted + 1,
            options,
        );
        let points = points.await?;
        if points.is_empty() {
            if to == Wanting::Readers {
                self.share.give_nothing();
            }
            return Ok(true);
        }
        let mut parts = session.split(&self.range, &points).await?;
        if !parts[0].range.contains(last.as_bytes()) {
            self.share
                .give(jobs(parts, options.parallel, &self.context.heads));
            return Ok(false);
        }
        info!(range = ?self.range.range, parts = parts.len(), "giving parts of a range to idle {to}");
        let others = parts.split_off(1);
        self.range.range = parts.remove(0).range;
        let end = self.range.range.end.clone();
        self.sink.writer.shorten(end.clone())?;
        batches.shorten(end, Some(last));
        if to == Wanting::Tasks {
            // They find the parts by themselves; the heads of those are not to be had from here.
            self.next = None;
            return Ok(true);
        }
        let mut others = jobs(others, 2, &self.context.heads);
        if !self.range.is_exact()
            && let Some(first) = others.first_mut()
        {
            let (to, next) = oneshot::channel();
            first.head = HeadKeeper::new(
                Some(to),
                first.range.range.end.clone(),
                self.context.heads.clone(),
            );
            let after = self.next.replace(next);
            if let Some(last) = others.last_mut() {
                last.next = after;
            }
        }
        self.share.give(others);
        Ok(true)
    }
}

/// Where the documents of a range go.
struct Sink {
    writer: RangeWriter,
    head: HeadKeeper,
    options: Arc<BackupOptions>,
    progress: Progress,
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
        self.progress
            .add(after.documents - before.0, after.raw_bytes - before.1);
        Ok(flow)
    }

    /// Asks for a checkpoint when one is due. Says whether it is time to stop: asked to, and nothing to be lost by it.
    fn stops(&mut self) -> bool {
        let stop = self.options.stop.is_requested();
        if stop && (self.stopping && !self.writer.wants_checkpoint() || self.writer.is_before_first_cut()) {
            return true;
        }
        if stop && !self.stopping || self.checkpoint_at.elapsed() >= self.options.checkpoint_every {
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
