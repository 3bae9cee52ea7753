//! Where the writes go that failed.

use tonic::Code;

use super::{Conflicts, RestoreMode, RestoreOptions};
use crate::firestore::{DeadLetterFile, FailureSink, Precondition, Recorded, WriteFailure};

/// What it means when a precondition does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The document exists, and is to be left alone for that.
    Existing,
    /// The document does not exist, and only fields of existing ones are restored.
    LeftOut,
    /// Somebody else has changed the document.
    Conflict,
}

impl RestoreOptions {
    /// Tells writes that are refused as somebody has asked for from those that fail.
    pub(crate) fn sink(&self, conflicts: Conflicts) -> impl FailureSink + use<> {
        RestoreSink {
            means: self.refusal_means(),
            conflicts,
            dead_letters: DeadLetterFile::new(&self.dead_letter_file),
        }
    }

    /// A restore has preconditions for one reason only.
    pub(super) fn refusal_means(&self) -> Refusal {
        match self.mode {
            RestoreMode::CreateOnly => Refusal::Existing,
            _ if self.fields.is_some() && self.unmodified_since.is_none() => Refusal::LeftOut,
            _ => Refusal::Conflict,
        }
    }
}

struct RestoreSink {
    means: Refusal,
    conflicts: Conflicts,
    dead_letters: DeadLetterFile,
}

impl FailureSink for RestoreSink {
    fn record(&mut self, failure: WriteFailure) -> std::io::Result<Recorded> {
        let is_refusal = matches!(
            (failure.precondition, failure.code),
            (Precondition::MustNotExist, Code::AlreadyExists)
                | (Precondition::MustExist, Code::NotFound)
                | (
                    Precondition::UpdateTime(_),
                    Code::FailedPrecondition | Code::NotFound
                )
        );
        if !is_refusal {
            return self.dead_letters.record(failure);
        }
        if self.means == Refusal::Conflict {
            self.conflicts.note(&failure.path);
        }
        Ok(Recorded::LeftOut)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.dead_letters.sync()
    }
}
