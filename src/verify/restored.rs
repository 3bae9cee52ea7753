//! Whether a database holds what a restore was to leave there.
//!
//! Where documents were restored as they are, they are compared one by one. Where they were not, because only some fields were
//! restored, or merged, or under other names, what a restore with the same options would still have to do is the difference:
//! the plan of one that is complete is empty. So it is where a damaged index was gone around: what could not be read is not compared.

use std::time::Instant;

use super::database::{CompareOptions, DatabaseStats, verify_database};
use crate::archive::SnapshotReader;
use crate::compare::Comparison;
use crate::diff::DiffError;
use crate::firestore::{self, Firestore};
use crate::progress::Progress;
use crate::restore::{RestoreError, RestoreMode, RestoreOptions, plan_restore};

/// What was restored cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyRestoreError {
    /// The two sides could not be read.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// What a restore would still have to do could not be found out.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The database did not answer.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
}

/// Compares what a restore with these options was to leave in a database with what is there now. What was there and was to stay,
/// because of [`RestoreMode::CreateOnly`] or [`RestoreOptions::unmodified_since`], is a difference too: the question is what
/// the database holds. Extra documents are counted; whether they matter, the caller knows (only after a mirror there must be
/// none). After a restore of some fields, of a task's share, under other names, or [around damage](RestoreOptions::skip_damaged), extra ones are
/// counted after a mirror only.
///
/// # Errors
/// When either side cannot be read. A difference is none.
pub async fn verify_restore(
    snapshot: &SnapshotReader,
    database: &Firestore,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<DatabaseStats, VerifyRestoreError> {
    let as_they_are = options.fields.is_none()
        && options.renames.is_empty()
        && options.mode != RestoreMode::Merge
        && options.task.is_none();
    if as_they_are {
        let compare = CompareOptions {
            filter: options.filter.clone(),
            references: options.references,
            parallel: options.parallel,
            ..CompareOptions::default()
        };
        match verify_database(snapshot, database, &compare, progress).await {
            Err(DiffError::Archive(error)) if options.skip_damaged => {
                // Anything else is an error all the same.
                error.into_damage().map_err(DiffError::Archive)?;
            }
            verified => return Ok(verified?),
        }
    }
    let started = Instant::now();
    let before = database.stats().counts();
    progress.watch(database.pace());
    let read_time = database.current_read_time().await?;
    let again = RestoreOptions {
        mode: match options.mode {
            RestoreMode::Merge => RestoreMode::Merge,
            RestoreMode::Mirror => RestoreMode::Mirror,
            RestoreMode::Overwrite | RestoreMode::CreateOnly | RestoreMode::SkipIdentical => {
                RestoreMode::SkipIdentical
            }
        },
        unmodified_since: None,
        ..options.clone()
    };
    let plan = plan_restore(snapshot, database, &again).await?;
    let spent = database.stats().counts().since(&before);
    let differing = |fates: &crate::restore::Fates| fates.created + fates.changed + fates.deleted;
    Ok(DatabaseStats {
        read_time,
        // A plan looks at every document when it comes to it, and keeps no record of when.
        later: Vec::new(),
        comparison: Comparison {
            equal: plan.fates.unchanged,
            different: plan.fates.changed,
            missing: plan.fates.created,
            extra: plan.fates.deleted,
            first_differences: plan.some_differences,
        },
        collections: plan
            .collections
            .iter()
            .map(|(collection, fates)| (collection.clone(), differing(fates)))
            .filter(|(_, count)| *count > 0)
            .collect(),
        documents: plan.documents + plan.fates.deleted,
        billed_reads: spent.billed_reads,
        retries: spent.retries,
        duration: started.elapsed(),
    })
}
