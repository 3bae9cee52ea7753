//! Where the writes go that failed.

use tonic::Code;

use super::{RestoreMode, RestoreOptions};
use crate::firestore::{DeadLetterFile, FailureSink, Recorded, WriteFailure};

impl RestoreOptions {
    /// Tells documents that are there already, which create-only asks to leave alone, from those that were refused.
    pub(crate) fn sink(&self) -> impl FailureSink + use<> {
        RestoreSink {
            create_only: self.mode == RestoreMode::CreateOnly,
            dead_letters: DeadLetterFile::new(&self.dead_letter_file),
        }
    }
}

struct RestoreSink {
    create_only: bool,
    dead_letters: DeadLetterFile,
}

impl FailureSink for RestoreSink {
    fn record(&mut self, failure: WriteFailure) -> std::io::Result<Recorded> {
        if self.create_only && failure.code == Code::AlreadyExists {
            return Ok(Recorded::LeftOut);
        }
        self.dead_letters.record(failure)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.dead_letters.sync()
    }
}
