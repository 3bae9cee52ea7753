//! A migration's script.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::engine::{self, Exports, Module};
use super::{RunOptions, RunStats, ScriptError};
use crate::firestore::Firestore;
use crate::progress::Progress;

/// What a script may use up.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of memory of the JavaScript engine.
    pub memory_bytes: usize,
    /// Bytes of its stack.
    pub stack_bytes: usize,
    /// How long it may compute without asking anything of the database: an endless loop is found by this.
    pub busy: Duration,
    /// How long one call of its may take to be answered by the database or the journal.
    pub call: Duration,
    /// How long a function may take altogether; `None` for as long as it takes.
    pub total: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            stack_bytes: 1 << 20,
            busy: Duration::from_secs(30),
            call: Duration::from_secs(600),
            total: None,
        }
    }
}

/// A function that a script may export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// The way there. Every script has it.
    Migrate,
    /// The way back.
    Rollback,
    /// The check afterwards. It cannot write, whatever the run's mode.
    Validate,
}

impl Function {
    /// The name under which it is exported.
    pub fn name(self) -> &'static str {
        match self {
            Self::Migrate => "migrate",
            Self::Rollback => "rollback",
            Self::Validate => "validate",
        }
    }
}

/// A script that was read and makes sense: a module that exports `migrate`.
#[derive(Clone, Debug)]
pub struct Script {
    module: Module,
    exports: Exports,
}

impl Script {
    /// Reads a script: evaluates the module once, in an engine that is thrown away, without a database at hand. Blocks for
    /// that long, at most [`Limits::busy`].
    ///
    /// `file` is only a name for messages. The script finds the settings as `db.settings`; it has no access to files, the
    /// network and the environment, and cannot import other modules.
    pub fn load(
        file: &Path,
        source: String,
        settings: BTreeMap<String, String>,
        limits: Limits,
    ) -> Result<Self, ScriptError> {
        let module = Module {
            file: file.to_owned(),
            source,
            settings,
            limits,
        };
        let exports = engine::load(&module)?;
        Ok(Self { module, exports })
    }

    /// The file's name, as it was given.
    pub fn file(&self) -> &Path {
        &self.module.file
    }

    /// The source text.
    pub fn source(&self) -> &str {
        &self.module.source
    }

    /// What the script says about itself: its export `description`.
    pub fn description(&self) -> Option<&str> {
        self.exports.description.as_deref()
    }

    /// Whether it knows the way back.
    pub fn has_rollback(&self) -> bool {
        self.exports.rollback
    }

    /// Whether it checks what it has done.
    pub fn has_validate(&self) -> bool {
        self.exports.validate
    }

    /// Runs one of its functions. What it writes is done when this returns, or refused: on an error nothing is under way any
    /// more, and what is written already is in the journal.
    ///
    /// A script that throws, or a database that refuses a write, ends the run as soon as it is noticed; the writes that were
    /// asked for and not sent by then are not done. Dropping the future ends the script and cancels what is under way.
    ///
    /// The progress counts documents that were read, and bytes of them.
    pub async fn run(
        &self,
        function: Function,
        database: &Firestore,
        options: RunOptions,
        progress: &Progress,
    ) -> Result<RunStats, ScriptError> {
        engine::run(&self.module, function, database, options, progress).await
    }
}
