//! The key filter: answers "certainly not here" for a look-up of one document, so that most layers cost no page read.
//!
//! A Bloom filter over the key hash that the cut rule computes anyway, one an index chunk: it travels with the chunk's entry when
//! a compaction keeps the chunk, and needs no second pass over the keys. Ten bits and seven probes a key: about one look-up
//! in a hundred reads a page in vain.

const BITS_PER_KEY: usize = 10;
const PROBES: u64 = 7;

/// Builds the filter of these key hashes: its bytes, a whole number of 64-bit words.
pub fn build(hashes: &[u64]) -> Vec<u8> {
    let words = (hashes.len() * BITS_PER_KEY).div_ceil(64).max(1);
    let mut bits = vec![0u8; words * 8];
    let len = (words * 64) as u64;
    for &hash in hashes {
        for bit in probes(hash, len) {
            bits[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }
    bits
}

/// Whether a key with this hash may be among those that the filter was built of. An empty filter says yes to all.
pub fn may_contain(filter: &[u8], hash: u64) -> bool {
    let len = filter.len() as u64 * 8;
    len == 0 || probes(hash, len).all(|bit| filter[(bit / 8) as usize] & (1 << (bit % 8)) != 0)
}

/// Double hashing after Kirsch and Mitzenmacher: probe i looks at the high half of ((h1 + i * h2) mod 2^64) * len.
fn probes(hash: u64, len: u64) -> impl Iterator<Item = u64> {
    let step = hash.rotate_left(32) | 1;
    (0..PROBES).map(move |probe| {
        let point = hash.wrapping_add(probe.wrapping_mul(step));
        ((u128::from(point) * u128::from(len)) >> 64) as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn no_key_is_ever_denied(keys in proptest::collection::vec(any::<[u8; 9]>(), 0..300)) {
            let hashes: Vec<u64> = keys.iter().map(|key| super::super::cut::key_hash(key)).collect();
            let filter = build(&hashes);
            for hash in hashes {
                prop_assert!(may_contain(&filter, hash));
            }
        }
    }

    #[test]
    fn most_strangers_are_denied() {
        let hash = |number: u64| super::super::cut::key_hash(&number.to_be_bytes());
        let filter = build(&(0..10_000).map(hash).collect::<Vec<_>>());
        let taken = (10_000..110_000)
            .map(hash)
            .filter(|&hash| may_contain(&filter, hash))
            .collect::<BTreeSet<_>>();
        assert!(taken.len() < 1_500, "{} of 100,000", taken.len());
        assert!(may_contain(&[], 1));
    }
}
