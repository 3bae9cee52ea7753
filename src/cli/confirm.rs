//! The guard before a destructive command: the target project's id, typed or given.
//!
//! Only a connection to an emulator, or a project that cannot be production, lifts it by itself. `TESTING=true` lifts it
//! for projects that were named beforehand and for no others: a stray variable must not disarm anything.

use std::io::{BufRead, IsTerminal, Write};

use super::options::GlobalOptions;
use super::{Refused, UsageError};
use crate::document::DatabaseName;

/// Whether the project can hold production data as far as its name tells.
pub(super) fn cannot_be_production(project: &str) -> bool {
    project == "test-project" || project.starts_with("demo-")
}

/// Whether the environment says that this is a test.
pub(super) fn is_testing() -> bool {
    std::env::var("TESTING").is_ok_and(|value| value.eq_ignore_ascii_case("true"))
}

/// Whether a destructive command on `target` needs the project's id.
pub(crate) fn is_protected(options: &GlobalOptions, target: &DatabaseName) -> bool {
    !(options.is_emulated()
        || cannot_be_production(&target.project)
        || is_testing() && options.allow_project.contains(&target.project))
}

/// Makes sure that the user means `target`. `what` says what is about to happen, such as "overwrite documents in".
///
/// # Errors
/// [`UsageError`] when `--confirm-project` names another project, [`Refused`] when nobody confirmed.
pub(crate) fn confirm(options: &GlobalOptions, target: &DatabaseName, what: &str) -> anyhow::Result<()> {
    if let Some(confirmed) = &options.confirm_project {
        if *confirmed == target.project {
            return Ok(());
        }
        return Err(UsageError::new(format!(
            "--confirm-project says `{confirmed}`, but this would {what} project `{}`",
            target.project
        )));
    }
    if !is_protected(options, target) {
        return Ok(());
    }
    let project = &target.project;
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Refused::new(format!(
            "this would {what} project `{project}` (database `{}`), and there is no terminal to ask on: \
             confirm it with --confirm-project {project}",
            target.database
        )));
    }
    let mut terminal = std::io::stderr();
    writeln!(
        terminal,
        "This will {what} project `{project}`, database `{}`.",
        target.database
    )?;
    write!(terminal, "Type the project's id to go on: ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == project {
        return Ok(());
    }
    Err(Refused::new(
        "the project's id was not typed: nothing was changed",
    ))
}
