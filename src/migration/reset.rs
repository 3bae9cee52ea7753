//! Beginning anew: backs a database up, deletes everything in it, and applies the migrations.
//!
//! For databases of development. Whether this is one is for the caller to find out.

use std::pin::pin;

use futures::TryStreamExt;

use super::{LOCK_COLLECTION, Lock, MigrateOptions, MigrateStats, MigrationError, Runner};
use crate::archive::Snapshot;
use crate::backup::{BackupError, BackupOptions, backup};
use crate::document::KeyRange;
use crate::firestore::{BulkWriter, ScanOptions, WriteFailure};
use crate::progress::Progress;

/// How often the database is looked at again until nothing is found: others may still write.
const ROUNDS: usize = 5;

/// What a reset did.
#[derive(Clone, Debug)]
pub struct ResetStats {
    /// What there was before.
    pub backup: Snapshot,
    /// Documents that were deleted.
    pub deleted: u64,
    /// What was applied afterwards.
    pub migrated: MigrateStats,
}

/// A reset that failed.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The backup failed, and nothing was deleted.
    #[error("the backup failed, so nothing was deleted: {0}")]
    Backup(#[from] BackupError),
    /// Deleting or migrating failed.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// Others write faster than this deletes.
    #[error(
        "{0} documents were deleted, and there are still some: somebody else writes to the database. Stop them and start again"
    )]
    NotEmpty(u64),
}

impl Runner {
    /// Backs the database up, deletes all of it, and applies the migrations. Nobody else runs migrations meanwhile.
    pub async fn reset(&self, progress: &Progress) -> Result<ResetStats, ResetError> {
        let lock = self.lock().await?;
        let done = self.reset_locked(&lock, progress).await;
        lock.release().await;
        done
    }

    async fn reset_locked(&self, lock: &Lock, progress: &Progress) -> Result<ResetStats, ResetError> {
        // Before anything is deleted: what cannot be run is noticed here.
        super::files::discover(&self.options.folder).map_err(MigrationError::from)?;
        let options = BackupOptions {
            tags: vec!["reset-dev".to_owned()],
            description: Some("Before a reset of the database".to_owned()),
            ..BackupOptions::default()
        };
        let backup = backup(&self.database, self.repository()?, options, progress).await?;
        let deleted = self.delete_everything(lock).await?;
        let migrated = self
            .migrate_locked(lock, MigrateOptions::default(), progress)
            .await?;
        Ok(ResetStats {
            backup: backup.snapshot,
            deleted,
            migrated,
        })
    }

    /// Deletes every document at every depth, but the lock.
    async fn delete_everything(&self, lock: &Lock) -> Result<u64, ResetError> {
        let mut deleted = 0;
        for _ in 0..ROUNDS {
            match self.delete_round(lock).await? {
                0 => return Ok(deleted),
                more => deleted += more,
            }
        }
        Err(ResetError::NotEmpty(deleted))
    }

    async fn delete_round(&self, lock: &Lock) -> Result<u64, MigrationError> {
        let database = &self.database;
        let read_time = database.current_read_time().await?;
        let mut batches = pin!(database.scan(ScanOptions::names(KeyRange::all(), read_time)));
        let mut writer = BulkWriter::new(database, self.options.write.clone(), Vec::<WriteFailure>::new());
        while let Some(batch) = batches.try_next().await? {
            lock.check()?;
            for document in batch.iter() {
                let path = document.path()?;
                if path.root_collection() != LOCK_COLLECTION {
                    writer.delete(&path).await?;
                }
            }
        }
        let stats = writer.finish().await?;
        if stats.failed > 0 {
            return Err(MigrationError::Refused(format!(
                "the database refused to delete {} documents",
                stats.failed
            )));
        }
        Ok(stats.written)
    }
}
