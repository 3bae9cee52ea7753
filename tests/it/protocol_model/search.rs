//! The search: every state that can be reached, each as a number.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::protocol::{Cast, State, Sweep};

impl State {
    /// The same with sessions 1 and 2 in each other's place.
    fn mirrored(&self) -> Self {
        // Two bits an object pair, one bit all others.
        let objects = |bits: u8| bits & 0x03 | bits << 2 & 0x30 | bits >> 2 & 0x0c;
        let bits = |bits: u8| bits & 0x99 | bits << 1 & 0x44 | bits >> 1 & 0x22;
        let sweep = |sweep: Sweep| Sweep {
            step: sweep.step,
            before: match sweep.step {
                1 => objects(sweep.before),
                _ => bits(sweep.before),
            },
            candidates: objects(sweep.candidates),
            markers: bits(sweep.markers),
            sessions: bits(sweep.sessions),
            decisions: bits(sweep.decisions),
        };
        Self {
            objects: objects(self.objects),
            committed: bits(self.committed),
            aborted: bits(self.aborted),
            forgotten: bits(self.forgotten),
            pins: bits(self.pins),
            plans: bits(self.plans),
            workers: [self.workers[1], self.workers[0], self.workers[2]],
            reader: self.reader,
            sweeps: self.sweeps.map(sweep),
        }
    }

    /// As one number. Sweeps are alike, so their order does not count.
    fn number(&self) -> u128 {
        let [a, b, c] = self.workers;
        let shared = u64::from(self.objects)
            | u64::from(self.committed) << 6
            | u64::from(self.aborted) << 9
            | u64::from(self.forgotten) << 12
            | u64::from(self.pins) << 15
            | u64::from(self.plans) << 19
            | u64::from(a) << 22
            | u64::from(b) << 25
            | u64::from(c) << 28
            | u64::from(self.reader) << 31;
        let (one, other) = (self.sweeps[0].number(), self.sweeps[1].number());
        let (less, more) = if one < other { (one, other) } else { (other, one) };
        u128::from(shared) << 64 | u128::from(less) << 32 | u128::from(more)
    }
}

impl Sweep {
    fn number(&self) -> u32 {
        u32::from(self.step)
            | u32::from(self.before) << 3
            | u32::from(self.candidates) << 10
            | u32::from(self.markers) << 16
            | u32::from(self.sessions) << 19
            | u32::from(self.decisions & 7) << 23
            | u32::from(self.decisions >> 4) << 26
    }
}

/// States are numbers already: multiplying spreads them well enough.
#[derive(Default)]
struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        panic!("only numbers are hashed here");
    }

    fn write_u128(&mut self, number: u128) {
        let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number >> 64) as u64;
        let mixed = mixed.wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.0 = mixed ^ mixed >> 32;
    }
}

type Seen = HashMap<u128, u32, BuildHasherDefault<Multiply>>;

/// How many states there are, or the way to one that must not be.
pub(super) fn search(cast: Cast) -> Result<usize, String> {
    let mut seen = Seen::default();
    // Each state with the one before it: states are looked at in the order of their distance, so ways are
    // shortest.
    let mut states = vec![(cast.first(), 0u32, "the beginning")];
    seen.insert(cast.first().number(), 0);
    let mut next = Vec::new();
    // Two writers that do the same may change places.
    let alike = cast.writers == 2 && !cast.chained && !cast.second_worker && cast.without.is_none();
    let mut place = 0;
    while place < states.len() {
        let state = states[place].0;
        if let Err(wrong) = cast.check(&state) {
            return Err(format!("{wrong}:{}", way(&states, place)));
        }
        cast.next(&state, &mut next);
        for (state, what) in next.drain(..) {
            let new = states.len() as u32;
            let number = match alike {
                true => state.number().min(state.mirrored().number()),
                false => state.number(),
            };
            if *seen.entry(number).or_insert(new) == new {
                states.push((state, place as u32, what));
            }
        }
        place += 1;
    }
    Ok(states.len())
}

fn way(states: &[(State, u32, &'static str)], mut place: usize) -> String {
    let mut steps = Vec::new();
    while place != 0 {
        steps.push(states[place].2);
        place = states[place].1 as usize;
    }
    steps.reverse();
    format!(" {}", steps.join("; "))
}
