//! What can go wrong with a script, and where in it.

use std::fmt;
use std::path::PathBuf;

use super::JournalError;

/// A script that failed: what happened, where, and how the script got there.
///
/// Shown as `file:line:column: what happened`, and the JavaScript stack on the lines below where there is one.
#[derive(Debug)]
pub struct ScriptError {
    /// The script's file.
    pub file: PathBuf,
    /// The line in it, from 1, if it is known.
    pub line: Option<u32>,
    /// The column, from 1, if it is known.
    pub column: Option<u32>,
    /// What happened, in words.
    pub message: String,
    /// The JavaScript stack, a call a line, the innermost first; empty where there is none.
    pub stack: String,
    /// What a caller may act upon.
    pub kind: ScriptErrorKind,
}

/// What kind of failure it was.
#[derive(Debug)]
#[non_exhaustive]
pub enum ScriptErrorKind {
    /// It is not a JavaScript module.
    Syntax,
    /// It does not export what it must, or exports something else by that name.
    Exports,
    /// It threw, or made a call that makes no sense.
    Thrown,
    /// `validate` returned false, or an assertion failed.
    Invalid,
    /// It computed longer than it may without asking anything of the database, or ran longer than it may at all.
    TimeLimit,
    /// It wanted more memory than it may have.
    MemoryLimit,
    /// A promise was never settled, or rejected and nobody looked.
    Promise,
    /// The database refused one of its writes, for good.
    Refused,
    /// The database failed.
    Database(Box<crate::firestore::Error>),
    /// Before-images could not be kept.
    Journal(JournalError),
    /// It was asked to stop.
    Stopped,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": {}", self.message)?;
        for call in self.stack.lines() {
            write!(f, "\n    {}", call.trim())?;
        }
        Ok(())
    }
}

impl std::error::Error for ScriptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            ScriptErrorKind::Database(error) => Some(&**error),
            ScriptErrorKind::Journal(error) => Some(error),
            _ => None,
        }
    }
}
