//! Why migrations were not run, or not to the end.

use super::{BadMigrationId, Divergence, FilesError, LockError, MigrationId, ScriptError};
use crate::archive::{ArchiveError, RepositoryId, SessionId};
use crate::document::{CanonicalError, PathError};
use crate::firestore;

/// A command on migrations that failed. What the database holds then is said by the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The database failed.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// The repository failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The folder of the scripts does not make sense.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The lock is somebody else's, or was lost.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Something that is named is no migration.
    #[error(transparent)]
    Id(#[from] BadMigrationId),
    /// A document's path makes no sense.
    #[error("a document has a path that makes no sense: {0}")]
    Path(#[from] PathError),
    /// A document's body makes no sense.
    #[error("a document cannot be read: {0}")]
    Body(#[from] CanonicalError),
    /// Before-images could not be sorted.
    #[error("cannot sort before-images in the temporary folder (TMPDIR): {0}")]
    Sort(#[from] std::io::Error),
    /// A script cannot be read.
    #[error("{id} cannot be run: {source}")]
    Script {
        /// Which one.
        id: MigrationId,
        /// Why not.
        source: Box<ScriptError>,
    },
    /// Folder and history do not fit.
    #[error("nothing was run, because the folder and the database's history do not fit:\n{}", lines(.0))]
    Diverged(Vec<Divergence>),
    /// A migration failed.
    #[error("{id} failed: {reason}\n{after}")]
    Failed {
        /// Which one.
        id: MigrationId,
        /// Why.
        reason: String,
        /// What became of what it had written.
        after: AfterFailure,
    },
    /// What a migration wrote could not be undone to the end.
    #[error(
        "{id} failed: {reason}\nWhat it had written could not be undone to the end: {source}. The next `firebank migrate` goes on \
         with that before it does anything else"
    )]
    NotUndone {
        /// Which one.
        id: MigrationId,
        /// Why it failed.
        reason: String,
        /// Why it was not undone.
        source: Box<MigrationError>,
    },
    /// A migration ran to its end, and that could not be written down.
    #[error(
        "{id} ran to its end, and that could not be written down: {source}. The next `firebank migrate` undoes it and runs it \
         again"
    )]
    NotRecorded {
        /// Which one.
        id: MigrationId,
        /// Why not.
        source: Box<MigrationError>,
    },
    /// The before-images are in another repository.
    #[error(
        "the before-images of {id} are in repository {wanted}, and this is {found}: name that one with --repository"
    )]
    OtherRepository {
        /// Whose.
        id: MigrationId,
        /// Where they are.
        wanted: RepositoryId,
        /// What was given.
        found: RepositoryId,
    },
    /// What a migration that was killed wrote cannot be undone any more.
    #[error(
        "{id} was not done when its process ended, and what it wrote cannot be undone: its session {session} was given up \
         ({reason}) and what documents were before is not in the repository any more. Restore a backup; or see to the documents \
         yourself, and then delete the document `_migrations/{id}`, which makes {id} pending again"
    )]
    LostWayBack {
        /// Which one.
        id: MigrationId,
        /// The session that had the before-images.
        session: SessionId,
        /// Why it was given up.
        reason: String,
    },
    /// There is nothing to put back.
    #[error(
        "{id} cannot be rolled back: its script has no rollback(), and {why}. Write what takes it back as a new migration, or \
         restore a backup"
    )]
    NoWayBack {
        /// Which one.
        id: MigrationId,
        /// Why there are no before-images.
        why: &'static str,
    },
    /// Somebody changed what a rollback would put back.
    #[error(
        "{id} was not rolled back, and nothing was changed: {count} of the documents that it wrote {} changed since, {}. Look at \
         them; --force puts back what they were before the migration, over what they are now, and keeps what they are now in \
         the repository",
        if *count == 1 { "was" } else { "were" }, list(.first, *count)
    )]
    ChangedSince {
        /// Which one.
        id: MigrationId,
        /// How many documents.
        count: u64,
        /// The first of them.
        first: Vec<String>,
    },
    /// A command makes no sense as things stand.
    #[error("{0}")]
    Refused(String),
}

/// What became of what a failed migration had written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// It was undone.
    Undone {
        /// Documents that were put back or deleted again.
        documents: u64,
        /// Documents that somebody changed meanwhile, and which were left as they are.
        left: Vec<String>,
        /// How many these are.
        left_count: u64,
        /// The snapshot that has what those were.
        snapshot: Option<String>,
    },
    /// It was left, as asked for.
    Kept {
        /// Documents that were written.
        documents: u64,
    },
}

impl std::fmt::Display for AfterFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Undone {
                documents: 0,
                left_count: 0,
                ..
            } => f.write_str("It had written nothing"),
            Self::Undone {
                documents,
                left,
                left_count,
                snapshot,
            } => {
                write!(
                    f,
                    "What it had written was undone: {documents} documents are as they were"
                )?;
                if *left_count > 0 {
                    write!(
                        f,
                        "; {left_count} that somebody else changed meanwhile were left as they are, {}",
                        list(left, *left_count)
                    )?;
                    if let Some(snapshot) = snapshot {
                        write!(f, ". `firebank show {snapshot} PATH` shows what they were")?;
                    }
                }
                Ok(())
            }
            Self::Kept { documents } => write!(
                f,
                "What it had written was left, as asked for: {documents} documents. `firebank rollback` puts them back"
            ),
        }
    }
}

fn lines(divergences: &[Divergence]) -> String {
    let lines: Vec<String> = divergences
        .iter()
        .map(|divergence| format!("  {divergence}"))
        .collect();
    lines.join("\n")
}

/// `a, b, c and 7 more`.
fn list(first: &[String], count: u64) -> String {
    let more = count.saturating_sub(first.len() as u64);
    match more {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
