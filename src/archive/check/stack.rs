//! One pass over the index of a snapshot's whole stack.
//!
//! The runs are read side by side and merged by key, because only the merge tells which record of a document counts. Every page
//! is decoded once, whatever is made of it.

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt};

use super::bodies::BodyChecks;
use super::count::Counter;
use super::pages::{CheckedPage, Depth, IndexChunk, Step, steps};
use super::{CheckStats, DamageReport};
use crate::archive::error::{Damage, DamageKind, Result};
use crate::archive::heap::{KeyHeap, Keyed};
use crate::archive::index_page::NameCursor;
use crate::archive::reader::{Run, SnapshotReader};
use crate::progress::Progress;

/// A run of the stack, read in key order.
struct RunCursor {
    steps: BoxStream<'static, Result<Step>>,
    depth: Depth,
    index: Option<IndexChunk>,
    page: Option<NameCursor>,
    /// Bytes of the bodies that the index chunk's pages count so far; `None` once one of them could not be read.
    body_bytes: Option<u64>,
    /// Whether all records were seen so far.
    is_complete: bool,
}

impl RunCursor {
    /// Goes to the page's next record; `false` past the last.
    fn advance_in_page(&mut self) -> bool {
        let advanced = self.page.as_mut().map(NameCursor::advance);
        // A page may be malformed that was reported when the run was first looked at.
        self.is_complete &= advanced != Some(None);
        advanced == Some(Some(true))
    }
}

impl Keyed for RunCursor {
    fn key(&self) -> &[u8] {
        self.page.as_ref().map_or(&[], NameCursor::key)
    }
}

/// The pass over one snapshot.
pub(super) struct StackCheck<'a> {
    reader: &'a SnapshotReader,
    runs: Vec<RunCursor>,
    /// Whether all names of all runs are looked at.
    sees_all: bool,
    heap: KeyHeap,
    counter: Counter,
    bodies: Option<BodyChecks>,
    report: &'a mut DamageReport,
    stats: &'a mut CheckStats,
    progress: &'a Progress,
    /// The documents and bytes that the progress knows of.
    told: (u64, u64),
}

impl<'a> StackCheck<'a> {
    /// `depths` says how closely to look at each run; `None`: not at all.
    pub(super) async fn new(
        reader: &'a SnapshotReader,
        depths: &[Option<Depth>],
        report: &'a mut DamageReport,
        stats: &'a mut CheckStats,
        progress: &'a Progress,
    ) -> Result<Self> {
        let told = (0, stats.stored_bytes);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let chosen = || {
            let runs = reader.runs().iter().zip(depths);
            runs.filter_map(|(run, depth)| Some((run, (*depth)?)))
        };
        let with_data: Vec<Arc<Run>> = chosen()
            .filter(|(_, depth)| depth.data().is_some())
            .map(|(run, _)| Arc::clone(run))
            .collect();
        let bodies = match chosen().find_map(|(_, depth)| depth.data()) {
            Some(subset) => Some(BodyChecks::new(reader, &with_data, subset, threads).await?),
            None => None,
        };
        let most = reader
            .runs()
            .iter()
            .map(|run| run.reference.puts)
            .max()
            .unwrap_or(0);
        let mut runs = Vec::with_capacity(reader.runs().len());
        for (run, depth) in chosen() {
            // Reading ahead in every small layer of a deep stack would hold as many pages again.
            let ahead = match run.reference.puts >= most / 8 {
                true => threads + 1,
                false => 1,
            };
            stats.runs += 1;
            stats.directory_blocks += run.root.blocks.len() as u64;
            stats.stored_bytes += run
                .root
                .blocks
                .iter()
                .map(|block| block.chunk.stored_len)
                .sum::<u64>();
            runs.push(RunCursor {
                steps: steps(reader, run, depth, ahead),
                depth,
                index: None,
                page: None,
                body_bytes: None,
                is_complete: true,
            });
        }
        Ok(Self {
            heap: KeyHeap::with_capacity(runs.len()),
            runs,
            sees_all: depths.iter().all(|depth| depth.is_some_and(Depth::has_names)),
            counter: Counter::new(&reader.snapshot().selection),
            bodies,
            report,
            told,
            stats,
            progress,
            reader,
        })
    }

    /// Reads everything. Damage goes to the report.
    pub(super) async fn run(mut self) -> Result<()> {
        for run in 0..self.runs.len() {
            if self.advance(run).await? {
                self.heap.push(run, &self.runs);
            }
        }
        let mut key = Vec::new();
        while let Some(top) = self.heap.first() {
            let cursor = &self.runs[top];
            if let Some(length) = cursor.page.as_ref().and_then(NameCursor::length) {
                self.counter.add(cursor.key(), length);
            }
            if self.heap.is_single() {
                if !self.runs[top].advance_in_page() {
                    self.next(top).await?;
                }
                continue;
            }
            // The record, and the older ones that it hides.
            key.clear();
            key.extend_from_slice(cursor.key());
            while let Some(same) = self.heap.first().filter(|&run| *self.runs[run].key() == *key) {
                self.next(same).await?;
            }
        }
        if let Some(bodies) = self.bodies.take() {
            bodies.finish(self.report, self.stats).await?;
        }
        self.tell();
        // Counts of a part of the records mean nothing.
        if self.sees_all && self.runs.iter().all(|run| run.is_complete) {
            self.counter.compare(self.reader.snapshot(), self.report);
        }
        Ok(())
    }

    /// Goes on in the run that stands first in the heap.
    async fn next(&mut self, run: usize) -> Result<()> {
        match self.advance(run).await? {
            true => self.heap.first_moved(&self.runs),
            false => self.heap.remove_first(&self.runs),
        }
        Ok(())
    }

    /// Goes to the run's next record; `false` past the last.
    async fn advance(&mut self, run: usize) -> Result<bool> {
        loop {
            let cursor = &mut self.runs[run];
            if cursor.advance_in_page() {
                return Ok(true);
            }
            cursor.page = None;
            match cursor.steps.next().await {
                Some(step) => self.take(run, step?).await?,
                None => return Ok(false),
            }
        }
    }

    async fn take(&mut self, run: usize, step: Step) -> Result<()> {
        match step {
            Step::Damaged(damage) => self.damaged(run, damage),
            Step::Begin(index) => {
                self.stats.index_chunks += 1;
                self.stats.stored_bytes += index.entry().chunk.stored_len;
                let cursor = &mut self.runs[run];
                if let Some(bodies) = self.bodies.as_mut().filter(|_| cursor.depth != Depth::Names) {
                    bodies.begin(&index);
                }
                cursor.index = Some(index);
                cursor.body_bytes = Some(0);
            }
            Step::Page(page) => self.take_page(run, *page).await?,
            Step::End => self.end_index_chunk(run).await?,
        }
        Ok(())
    }

    async fn take_page(&mut self, run: usize, page: CheckedPage) -> Result<()> {
        self.stats.records += page.records;
        if let Some(damage) = page.damage {
            self.damaged(run, damage);
        }
        let cursor = &mut self.runs[run];
        cursor.is_complete &= page.names.is_some();
        cursor.body_bytes = match page.names {
            Some(_) => cursor.body_bytes.map(|bytes| bytes + page.body_bytes),
            None => None,
        };
        cursor.page = page.names;
        if let (Some(bodies), Some(index)) = (&mut self.bodies, &cursor.index) {
            bodies.place(index, &page.bodies);
        }
        self.check_bodies().await
    }

    async fn end_index_chunk(&mut self, run: usize) -> Result<()> {
        let cursor = &mut self.runs[run];
        let Some(index) = cursor.index.take().filter(|_| cursor.depth != Depth::Names) else {
            return Ok(());
        };
        let entry = index.entry();
        let differs = cursor.body_bytes.is_some_and(|bytes| bytes != entry.body_bytes);
        if let Some(bodies) = &mut self.bodies {
            bodies.end(&index);
        }
        if differs {
            let what = "the bytes of its bodies differ from its entry";
            let damage = Damage::new(entry.chunk.name(), DamageKind::Inconsistent, what);
            self.damaged(run, damage.within(entry.first_key(), entry.last_key()));
        }
        self.check_bodies().await
    }

    async fn check_bodies(&mut self) -> Result<()> {
        self.tell();
        match &mut self.bodies {
            Some(bodies) => bodies.go_on(self.report, self.stats).await,
            None => Ok(()),
        }
    }

    fn damaged(&mut self, run: usize, damage: Damage) {
        self.report.add(damage);
        self.runs[run].is_complete = false;
    }

    /// Says how far it is.
    fn tell(&mut self) {
        let now = (self.counter.documents(), self.stats.stored_bytes);
        self.progress.add(now.0 - self.told.0, now.1 - self.told.1);
        self.told = now;
    }
}
