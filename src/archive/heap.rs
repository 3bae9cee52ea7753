//! The heap of a merge: which of several ascending sources has the smallest key now.

/// A source of ascending keys.
pub(super) trait Keyed {
    /// The present record's key.
    fn key(&self) -> &[u8];
}

/// The numbers of sources that have a record, as a binary heap: the smallest key first, the lower number first among equals.
///
/// The sources are the caller's and are given to each call: they move on between the calls.
#[derive(Debug, Default)]
pub(super) struct KeyHeap(Vec<usize>);

impl KeyHeap {
    pub(super) fn with_capacity(sources: usize) -> Self {
        Self(Vec::with_capacity(sources))
    }

    /// The source with the smallest key.
    pub(super) fn first(&self) -> Option<usize> {
        self.0.first().copied()
    }

    /// Whether there is one source, so that no other can have its key.
    pub(super) fn is_single(&self) -> bool {
        self.0.len() == 1
    }

    /// Adds a source that has a record.
    pub(super) fn push(&mut self, source: usize, sources: &[impl Keyed]) {
        self.0.push(source);
        let mut at = self.0.len() - 1;
        while at > 0 && self.before(at, (at - 1) / 2, sources) {
            self.0.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    /// Takes the first source out: it has no more records.
    pub(super) fn remove_first(&mut self, sources: &[impl Keyed]) {
        if !self.0.is_empty() {
            self.0.swap_remove(0);
            self.first_moved(sources);
        }
    }

    /// Puts the first source where it belongs now that it stands at its next record.
    pub(super) fn first_moved(&mut self, sources: &[impl Keyed]) {
        let mut at = 0;
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.0.len() && self.before(child, least, sources) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.0.swap(at, least);
            at = least;
        }
    }

    fn before(&self, a: usize, b: usize, sources: &[impl Keyed]) -> bool {
        let (a, b) = (self.0[a], self.0[b]);
        match sources[a].key().cmp(sources[b].key()) {
            std::cmp::Ordering::Equal => a < b,
            order => order.is_lt(),
        }
    }
}
