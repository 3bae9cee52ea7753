//! How a script is run, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::Journal;
use crate::document::{DocumentPath, FieldChange, Fields};
use crate::firestore::{Firestore, WriteFence, WriteOptions};
use crate::stop::Stop;

/// Whether the script's writes are done, or only shown.
#[derive(Clone)]
pub enum RunMode {
    /// They are done, after the journal has what was there before.
    Write {
        /// Keeps the before-images.
        journal: Arc<dyn Journal>,
        /// How fast to write.
        options: WriteOptions,
        /// The right to write, where it can be lost.
        fence: Option<Arc<dyn WriteFence>>,
    },
    /// They are counted, and the first few are shown; the code that runs has nothing to write with.
    DryRun {
        /// How many changed documents to show in [`RunStats::preview`].
        preview: usize,
    },
}

impl RunMode {
    /// Writes with the defaults for a database, whatever others do.
    pub fn write(database: &Firestore, journal: Arc<dyn Journal>) -> Self {
        Self::Write {
            journal,
            options: WriteOptions::new(database),
            fence: None,
        }
    }
}

impl fmt::Debug for RunMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { options, .. } => f.debug_tuple("Write").field(options).finish(),
            Self::DryRun { preview } => f.debug_tuple("DryRun").field(preview).finish(),
        }
    }
}

/// Takes the lines that a script logs, as they come, on the engine's thread.
pub type LogSink = Arc<dyn Fn(LogLine) + Send + Sync>;

/// How to run a function of a script.
#[derive(Clone)]
pub struct RunOptions {
    /// Whether to write.
    pub mode: RunMode,
    /// Takes the script's log; by default it goes to `tracing`.
    pub log: LogSink,
    /// Ends the script as soon as it is asked to stop, as an error.
    pub stop: Stop,
}

impl RunOptions {
    /// Logs to `tracing`, and is never asked to stop.
    pub fn new(mode: RunMode) -> Self {
        Self {
            mode,
            log: Arc::new(
                |line| tracing::info!(target: "firebank::script", level = ?line.level, "{}", line.text),
            ),
            stop: Stop::default(),
        }
    }
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOptions")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// What a script had to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How loud.
    pub level: LogLevel,
    /// The text, without a line's end; it can have several lines.
    pub text: String,
}

/// How loud a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// For who looks closely.
    Debug,
    /// For everybody.
    Info,
    /// Something needs a look.
    Warning,
    /// Something is wrong.
    Error,
}

/// What a function of a script has done, or would have done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunStats {
    /// Documents that the script's reads and scans brought.
    pub read: u64,
    /// Documents written where there was none.
    pub created: u64,
    /// Documents changed.
    pub updated: u64,
    /// Documents deleted.
    pub deleted: u64,
    /// Writes that would have changed nothing, and were left out.
    pub unchanged: u64,
    /// The same by collection. Ids of documents on the way are `*`, as in `users/*/orders`.
    pub collections: BTreeMap<String, CollectionStats>,
    /// Collections that had no documents and have some now, in order.
    pub created_collections: Vec<String>,
    /// The first changes, in a dry run.
    pub preview: Vec<DocumentChange>,
}

impl RunStats {
    /// Documents created, updated and deleted.
    pub fn changed(&self) -> u64 {
        self.created + self.updated + self.deleted
    }
}

/// What was done to a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CollectionStats {
    /// Documents written where there was none.
    pub created: u64,
    /// Documents changed.
    pub updated: u64,
    /// Documents deleted.
    pub deleted: u64,
}

/// A change that a dry run shows.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentChange {
    /// Which document.
    pub path: DocumentPath,
    /// What it is, `None` where there is none.
    pub before: Option<Fields>,
    /// What it would be, `None` where it would be deleted.
    pub after: Option<Fields>,
    /// The fields that differ; none of them for a document that is created or deleted.
    pub fields: Vec<FieldChange>,
}
