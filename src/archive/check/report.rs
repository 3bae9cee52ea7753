//! What a check found.

use std::collections::HashSet;

use crate::archive::error::{Damage, Result};

/// What a check found. Keeps the first findings and counts them all.
#[derive(Debug, Default)]
pub struct DamageReport {
    found: Vec<Damage>,
    seen: HashSet<(String, String)>,
    count: u64,
}

impl DamageReport {
    /// Findings that are kept.
    pub const KEPT: usize = 1000;

    /// Adds a finding; the same one again, met on another way, is not counted twice.
    pub fn add(&mut self, damage: Damage) {
        if self.seen.len() < 100 * Self::KEPT
            && !self.seen.insert((damage.object.clone(), damage.what.clone()))
        {
            return;
        }
        self.count += 1;
        if self.found.len() < Self::KEPT {
            self.found.push(damage);
        }
    }

    /// Takes damage out of a result; what is no damage stays an error.
    pub(super) fn take<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.add(error.into_damage()?);
                Ok(None)
            }
        }
    }

    /// The findings that were kept.
    pub fn damages(&self) -> &[Damage] {
        &self.found
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
