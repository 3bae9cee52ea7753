//! Where one segment ends and the next begins, and which range owns a segment.
//!
//! Cut points need no history and no neighbours: a record ends a segment with a probability proportional to its length,
//! decided by the hash of its key. So the same documents read again in other ranges give the same chunks, and a document that
//! grew or went away moves only the cuts around it. Records that would take a segment past the hard maximum start a new one;
//! those forced cuts depend only on what came since the last natural cut, so they are found again too.
//!
//! Who owns what follows from natural cuts alone: a range owns what lies after the first natural cut at or after its start
//! (from its start when nothing can lie before it), up to and including the first natural cut at or after its end. Its
//! writer skips and reads on accordingly. Ranges that tile a key space own every record exactly once, however they are chosen.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::document::{DocumentKey, KeyRange};

/// The seed of the key hash: "firebank" in ASCII, big-endian. The same everywhere, so that equal databases deduplicate.
pub const KEY_HASH_SEED: u64 = u64::from_be_bytes(*b"firebank");

/// The hash of a key that decides cuts and fills filters.
pub fn key_hash(key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, KEY_HASH_SEED)
}

/// Whether a record is a natural cut: whether its hash, as a fraction of 2^64, is less than its body's length over the target.
pub fn is_natural_cut(key_hash: u64, body_len: u64, target: u64) -> bool {
    u128::from(key_hash) * u128::from(target) < u128::from(body_len) << 64
}

/// What a range's writer does with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Before the range's first segment: another range's.
    Skip,
    /// The range's own.
    Own,
    /// The range's own, and the last of them.
    OwnLast,
    /// Nothing here or after is the range's own.
    Stop,
}

/// Follows one range's ownership from record to record.
#[derive(Debug)]
pub(crate) struct Ownership {
    range: KeyRange,
    state: State,
    exact: bool,
}

#[derive(Debug, PartialEq)]
enum State {
    Skipping,
    Owning,
    Done,
}

impl Ownership {
    /// Ownership by natural cuts. `open_start`: nothing can lie before the range.
    pub(crate) fn by_cuts(range: KeyRange, open_start: bool) -> Self {
        Self {
            range,
            state: if open_start {
                State::Owning
            } else {
                State::Skipping
            },
            exact: false,
        }
    }

    /// Exactly what lies in the range.
    pub(crate) fn exact(range: KeyRange) -> Self {
        Self {
            range,
            state: State::Owning,
            exact: true,
        }
    }

    /// Has the range end earlier, at a key past all that was judged.
    pub(crate) fn shorten(&mut self, end: Option<DocumentKey>) {
        self.range.end = end;
    }

    /// Whether the range's first cut is still to come.
    pub(crate) fn is_skipping(&self) -> bool {
        self.state == State::Skipping
    }

    /// Judges the next record; keys must ascend.
    pub(crate) fn judge(&mut self, key: &[u8], natural_cut: bool) -> Verdict {
        let past_end = self.range.end.as_ref().is_some_and(|end| end.as_bytes() <= key);
        match self.state {
            State::Done => Verdict::Stop,
            State::Owning if self.exact && past_end => {
                self.state = State::Done;
                Verdict::Stop
            }
            State::Owning if past_end && natural_cut => {
                self.state = State::Done;
                Verdict::OwnLast
            }
            State::Owning => Verdict::Own,
            // The range's end came before its first cut: the range before it reads on past both.
            State::Skipping if past_end => {
                self.state = State::Done;
                Verdict::Stop
            }
            State::Skipping => {
                if natural_cut {
                    self.state = State::Owning;
                }
                Verdict::Skip
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cuts_are_as_frequent_as_the_lengths_say() {
        let cuts = |length: u64| {
            (0u64..100_000)
                .filter(|number| is_natural_cut(key_hash(&number.to_be_bytes()), length, 8 << 20))
                .count()
        };
        assert!((80..120).contains(&cuts(8 << 10)), "{}", cuts(8 << 10));
        assert!((40..62).contains(&cuts(4 << 10)), "{}", cuts(4 << 10));
        assert_eq!(cuts(8 << 20), 100_000);
        assert_eq!(cuts(0), 0);
    }

    proptest! {
        #[test]
        fn any_tiling_owns_every_record_exactly_once(
            cuts in proptest::collection::vec(any::<bool>(), 0..60),
            mut bounds in proptest::collection::vec(0u8..62, 0..20),
        ) {
            bounds.sort_unstable();
            bounds.dedup();
            let mut owners = vec![Vec::new(); cuts.len()];
            for range in 0..=bounds.len() {
                let start = range.checked_sub(1).map(|before| DocumentKey::from_bytes([bounds[before]]));
                let end = bounds.get(range).map(|&end| DocumentKey::from_bytes([end]));
                let reads = KeyRange { start: start.clone(), end: None };
                let mut ownership = Ownership::by_cuts(KeyRange { start: start.clone(), end }, start.is_none());
                for (number, &cut) in cuts.iter().enumerate() {
                    let key = [number as u8];
                    if !reads.contains(&key) {
                        continue;
                    }
                    match ownership.judge(&key, cut) {
                        Verdict::Skip => {}
                        Verdict::Own => owners[number].push(range),
                        Verdict::OwnLast => { owners[number].push(range); break }
                        Verdict::Stop => break,
                    }
                }
            }
            for (number, owners) in owners.iter().enumerate() {
                prop_assert_eq!(owners.len(), 1, "record {} is owned by {:?}", number, owners);
            }
            // And no range owns a part of a segment.
            for number in 1..cuts.len() {
                if !cuts[number - 1] {
                    prop_assert_eq!(&owners[number], &owners[number - 1]);
                }
            }
        }
    }
}
