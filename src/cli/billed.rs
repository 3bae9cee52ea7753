//! What a command's connection was billed, for commands that do many things.

use serde::Serialize;

use super::output::{self, Output, OutputError};
use crate::firestore::Firestore;

/// Operations as Firestore bills them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct BilledView {
    billed_reads: u64,
    billed_writes: u64,
    billed_deletes: u64,
}

impl BilledView {
    /// All of a connection.
    pub(super) fn of(database: &Firestore) -> Self {
        let counts = database.stats().counts();
        Self {
            billed_reads: counts.billed_reads,
            billed_writes: counts.billed_writes,
            billed_deletes: counts.billed_deletes,
        }
    }

    /// Tells people.
    pub(super) fn tell(self, output: Output) -> Result<(), OutputError> {
        output.line(format!(
            "Billed: {}, {}, {}.",
            output::count(self.billed_reads, "read"),
            output::count(self.billed_writes, "write"),
            output::count(self.billed_deletes, "delete"),
        ))
    }
}
