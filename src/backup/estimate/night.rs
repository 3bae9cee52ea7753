//! What is read for so much, as the module docs have it.

use super::super::begin::Basis;
use super::super::{changed, layer, plan};
use super::sample::Sample;
use super::scale::Scale;
use crate::archive::ReadMode;
use crate::firestore::Firestore;

/// Documents that a backup which asks a field counts at once, and how many are left when it compares names instead.
const LEAF: u64 = 1000;
const LEFT_IN_LEAF: u64 = 15;
/// Documents that are asked for by name in one request.
const NAMES_PER_REQUEST: u64 = 300;

impl Scale {
    /// What is read for it in so many ranges.
    pub(super) fn night(&self, basis: &Basis, ranges: u64) -> Night {
        let mut night = Night {
            // The time to read at.
            reads: 1,
            requests: 2,
            ..Night::default()
        };
        match (basis.choice.read, &basis.parent) {
            (ReadMode::Full, None) => {
                night.whole = self.documents;
                night.count(1, self.documents);
                night.reads += plan::reads_to_cut(self.documents, ranges);
                // The end of each range is asked for and counted, and it reads on to the next cut.
                night.ask(3 * ranges);
            }
            (ReadMode::Full, Some(_)) => {
                night.whole = self.documents;
                night.ask(2 * ranges);
            }
            (ReadMode::Changed, Some(_)) if self.is_worth_asking(ranges) => self.asked(ranges, &mut night),
            _ => {
                night.names = self.documents;
                let unchanged = self.documents.saturating_sub(self.changed);
                let sampled = unchanged as f64 * layer::sampled(self.documents);
                night.fetched = self.changed + sampled.round() as u64;
                night.ask(2 * ranges);
            }
        }
        night.reads += night.names + night.whole + night.fetched;
        night
    }

    fn sections(&self, ranges: u64) -> u64 {
        let most = changed::SECTION as u64;
        let of_range = (self.documents / ranges.max(1)).div_ceil(most).max(1);
        ranges.max(1) * of_range
    }

    /// Whether counts are what tells, in the end: not where most has changed, or so much is gone that names cost less.
    fn is_worth_asking(&self, ranges: u64) -> bool {
        let stretches = (self.deleted + self.leaves(self.sections(ranges))) as f64 * self.leaf_groups;
        self.answers && self.told * 2 <= self.documents && stretches * 4.0 <= self.documents.max(64) as f64
    }

    /// See [`changed`].
    fn asked(&self, ranges: u64, night: &mut Night) {
        let sections = self.sections(ranges);
        let queries = sections as f64 * self.groups;
        let with_answers = queries * -(-(self.told as f64) / queries).exp_m1();
        // Each group is counted first, and a query that brings something ends with one that brings nothing.
        night.ask((queries + with_answers).round() as u64);
        night.whole = self.told;
        // What does not fit into memory comes again by name; how large it is, is not asked here.
        night.count(sections, self.documents);
        let narrowed = Narrowed::find(self.documents, self.deleted);
        night.ask(narrowed.halvings);
        night.beside = narrowed.leaves * LEFT_IN_LEAF;
        night.reads += night.beside;
        // Each comparison of names ends with a query that finds nothing, and a count that agrees.
        night.requests += narrowed.leaves;
        night.ask(2 * narrowed.leaves);
        // Each group of a leaf is counted wherever nothing differs.
        if !self.one_group {
            let stretches = (narrowed.leaves + self.leaves(sections)) as f64 * self.leaf_groups;
            night.ask(stretches.round() as u64);
        }
    }

    fn leaves(&self, sections: u64) -> u64 {
        (self.documents / LEAF + sections / 2).max(sections)
    }
}

/// How counts are narrowed down that differ.
struct Narrowed {
    /// Counts of halves.
    halvings: u64,
    /// Stretches of names that are compared in the end.
    leaves: u64,
}

impl Narrowed {
    /// Where so many are gone, anywhere: what is halved is what has any of them.
    fn find(documents: u64, gone: u64) -> Self {
        let counted = documents.div_ceil(LEAF).max(1) as f64;
        let hit = |parts: f64| parts * -(-(gone as f64) / parts).exp_m1();
        let levels = (LEAF / LEFT_IN_LEAF).ilog2();
        let halvings: f64 = (0..levels)
            .map(|level| hit(counted * f64::from(1 << level)))
            .sum();
        Self {
            halvings: halvings.round() as u64,
            leaves: hit(counted * f64::from(1 << levels)).round() as u64,
        }
    }
}

/// What a backup reads.
#[derive(Default)]
pub(super) struct Night {
    /// What is billed.
    pub(super) reads: u64,
    /// Names that are streamed.
    pub(super) names: u64,
    /// Names that are compared where counts differ.
    pub(super) beside: u64,
    /// Documents that are streamed.
    pub(super) whole: u64,
    /// Documents that are asked for by name.
    pub(super) fetched: u64,
    /// Requests that bring no documents to speak of.
    pub(super) requests: u64,
}

impl Night {
    /// Questions that are billed as a read each.
    fn ask(&mut self, questions: u64) {
        self.reads += questions;
        self.requests += questions;
    }

    /// So many counts, of so many documents together.
    fn count(&mut self, counts: u64, documents: u64) {
        let counts = counts.max(1);
        // Each is rounded up.
        self.reads += match documents / counts {
            0..1000 => counts,
            _ => documents / 1000 + counts / 2,
        };
        self.requests += counts;
    }

    pub(super) fn requests(&self, database: &Firestore, sample: &Sample, body_bytes: u64) -> u64 {
        let pages = |documents: u64, bytes: u64| documents.div_ceil(database.page_documents(bytes));
        self.requests
            + pages(self.names, sample.name_bytes)
            + pages(self.whole, sample.wire_bytes(body_bytes))
            + self.fetched.div_ceil(NAMES_PER_REQUEST)
    }
}
