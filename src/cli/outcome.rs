//! How a command ends: what it answers, and the exit code and the words for it.

use std::io::{self, Write};
use std::process::ExitCode;

use super::output;
use crate::backup::BackupError;
use crate::import::ImportError;
use crate::restore::{RestoreError, RetryError};

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_NEEDS_LOOK: u8 = 3;
/// What a shell reports for a command that SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Done,
    /// Done, but something needs a look.
    NeedsLook,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::NeedsLook => Self::from(EXIT_NEEDS_LOOK),
        }
    }
}

/// The command line is wrong in a way that the parser could not see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

impl UsageError {
    /// As an error to return.
    #[expect(clippy::new_ret_no_self, reason = "only ever made to be returned")]
    pub(crate) fn new(message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self(message.into()))
    }
}

/// A destructive command that nobody confirmed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

impl Refused {
    /// As an error to return.
    #[expect(clippy::new_ret_no_self, reason = "only ever made to be returned")]
    pub(crate) fn new(message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self(message.into()))
    }
}

/// A signal ended the command early; what that leaves behind.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: {0}")]
pub(crate) struct Interrupted(pub(crate) &'static str);

/// Says what failed, and answers the exit code for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let Some(code) = exit_code(error) else {
        return ExitCode::SUCCESS;
    };
    tracing::debug!("{error:?}");
    // Nobody to tell when standard error is gone.
    let _ = writeln!(
        io::stderr(),
        "error: {}",
        output::printable_lines(&in_words(error))
    );
    ExitCode::from(code)
}

/// `None` when whoever read our output has seen enough, as `head` does. Only our own output counts: a
/// connection to a server that breaks like a pipe is a failure.
fn exit_code(error: &anyhow::Error) -> Option<u8> {
    Some(match error {
        error if error.is::<UsageError>() || error.is::<Refused>() => EXIT_USAGE,
        error if disagrees_with_others(error) => EXIT_USAGE,
        error if error.is::<Interrupted>() => EXIT_INTERRUPTED,
        error if was_stopped(error) => EXIT_INTERRUPTED,
        error => match error.downcast_ref::<output::OutputError>() {
            Some(error) if error.is_broken_pipe() => return None,
            _ => EXIT_FAILED,
        },
    })
}

/// Whether the command line is not that of the others which it is to work with.
fn disagrees_with_others(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(BackupError::TaskCount { .. }))
}

/// Whether somebody asked the command to stop, and it did.
fn was_stopped(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(BackupError::Stopped { .. }))
        || matches!(
            error.downcast_ref(),
            Some(RestoreError::Stopped { .. } | RestoreError::TaskStopped { .. })
        )
        || matches!(error.downcast_ref(), Some(ImportError::Stopped { .. }))
        || matches!(error.downcast_ref(), Some(RetryError::Stopped { .. }))
}

/// The error and its causes, without those that say again what stands there.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_output_may_break_unnoticed() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let connection = anyhow::Error::new(broken()).context("RunQuery failed");
        assert_eq!(exit_code(&connection), Some(EXIT_FAILED));
        let output = anyhow::Error::new(output::OutputError::from(broken()));
        assert_eq!(exit_code(&output), None);
        let full = output::OutputError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(exit_code(&full.into()), Some(EXIT_FAILED));
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("connection refused")
            .context("tcp connect error: connection refused")
            .context("cannot connect");
        assert_eq!(
            in_words(&error),
            "cannot connect: tcp connect error: connection refused"
        );
    }
}
