//! Where the writes go that fail, and what that changes in the account of a restore.
//!
//! What is decided about a document is counted when it is decided; what the database then says may be something else. So whoever
//! has looked at the database keeps in mind what it has sent, until that is acknowledged, and takes back what did not come to pass.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tonic::Code;
use xxhash_rust::xxh3::xxh3_64;

use super::rules::{Fate, Look};
use super::{Conflicts, RestoreCounts, RestoreMode, RestoreOptions};
use crate::document::DocumentPath;
use crate::firestore::{Acknowledged, DeadLetterFile, FailureSink, Precondition, Recorded, WriteFailure};

/// What it means when a precondition does not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The document exists, and is to be left alone for that.
    Existing,
    /// The document does not exist, and only fields of existing ones are restored.
    LeftOut,
    /// Somebody else has changed the document.
    #[default]
    Conflict,
}

impl Refusal {
    fn fate(self) -> Fate {
        match self {
            Self::Existing => Fate::Existing,
            Self::LeftOut => Fate::LeftOut,
            Self::Conflict => Fate::Conflict,
        }
    }
}

impl RestoreOptions {
    /// Tells writes that are refused as somebody has asked for from those that fail, which go to the dead-letter file.
    pub(crate) fn sink(&self, refusals: Refusals) -> impl FailureSink + use<> {
        RestoreSink {
            refusals,
            dead_letters: DeadLetterFile::new(&self.dead_letter_file),
        }
    }

    /// What is refused, for those who look at the database so far before.
    pub(crate) fn refusals(&self, look: Look) -> Refusals {
        Refusals {
            // A restore has preconditions for one reason only.
            means: match self.mode {
                RestoreMode::CreateOnly => Refusal::Existing,
                _ if self.fields.is_some() && self.unmodified_since.is_none() => Refusal::LeftOut,
                _ => Refusal::Conflict,
            },
            keeps: look != Look::Nothing,
            refused: Arc::default(),
        }
    }
}

/// What was decided about the writes of a stretch, by the hashes of their paths.
#[derive(Debug, Default)]
pub(crate) struct Sent(Vec<(u64, Fate)>);

impl Sent {
    pub(crate) fn note(&mut self, path: &DocumentPath, fate: Fate) {
        // Nobody has counted what nobody has looked at.
        if fate != Fate::Written {
            self.0.push((hash(path), fate));
        }
    }
}

fn hash(path: &DocumentPath) -> u64 {
    xxh3_64(path.as_str().as_bytes())
}

/// Writes that were refused or have failed and are not accounted for. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals {
    means: Refusal,
    keeps: bool,
    refused: Arc<Mutex<Vec<(DocumentPath, Recorded)>>>,
}

impl Refusals {
    fn note(&self, path: &DocumentPath, recorded: Recorded) {
        if self.keeps {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.push((path.clone(), recorded));
        }
    }

    /// Brings what was counted when it was decided in line with what the database has said to the writes.
    pub(super) fn account(
        &self,
        done: Acknowledged,
        sent: &Sent,
        counts: &mut RestoreCounts,
        conflicts: &mut Conflicts,
    ) {
        counts.written += done.written;
        counts.failed += done.failed;
        counts.left_out += done.left_out;
        let deletes = sent.0.iter().filter(|(_, fate)| *fate == Fate::Deleted).count() as u64;
        let mut failed_deletes = 0;
        match self.keeps {
            // What was refused for a precondition is billed; what has failed is not.
            true if done.failed + done.left_out > 0 => {
                for (path, recorded, fate) in self.take(sent) {
                    counts.fates.take_back(fate);
                    match recorded {
                        Recorded::Failed => failed_deletes += u64::from(fate == Fate::Deleted),
                        Recorded::LeftOut => {
                            counts.fates.note(self.means.fate());
                            if self.means == Refusal::Conflict {
                                conflicts.note(&path);
                            }
                        }
                    }
                }
            }
            true => {}
            false => (0..done.left_out).for_each(|_| counts.fates.note(self.means.fate())),
        }
        let billed_deletes = deletes.saturating_sub(failed_deletes);
        counts.billed_deletes += billed_deletes;
        counts.billed_writes += (done.written + done.left_out).saturating_sub(billed_deletes);
    }

    /// Those of the writes that did not come to pass, with what was decided.
    fn take(&self, sent: &Sent) -> Vec<(DocumentPath, Recorded, Fate)> {
        let fates: HashMap<u64, Fate> = sent.0.iter().copied().collect();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused
            .extract_if(.., |(path, _)| fates.contains_key(&hash(path)))
            .filter_map(|(path, recorded)| {
                let fate = *fates.get(&hash(&path))?;
                Some((path, recorded, fate))
            })
            .collect()
    }
}

/// Whether a write was refused because its precondition does not hold.
pub(super) fn is_refusal(failure: &WriteFailure) -> bool {
    matches!(
        (failure.precondition, failure.code),
        (Precondition::MustNotExist, Code::AlreadyExists)
            | (Precondition::MustExist, Code::NotFound)
            | (
                Precondition::UpdateTime(_),
                Code::FailedPrecondition | Code::NotFound
            )
    )
}

struct RestoreSink {
    refusals: Refusals,
    dead_letters: DeadLetterFile,
}

impl FailureSink for RestoreSink {
    fn record(&mut self, failure: WriteFailure) -> std::io::Result<Recorded> {
        let path = failure.path.clone();
        let recorded = match is_refusal(&failure) {
            true => Recorded::LeftOut,
            false => self.dead_letters.record(failure)?,
        };
        self.refusals.note(&path, recorded);
        Ok(recorded)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.dead_letters.sync()
    }
}
