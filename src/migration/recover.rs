//! Undoes what a migration has done, from its before-images: one that failed, and one whose process is no more.

use super::before_images::{self, Images};
use super::runner::{Recovered, Runner, RunnerEvent};
use super::undo::{Conflicts, undo};
use super::{History, Lock, MigrationError, MigrationId, Record, RecordStatus, UndoStats};
use crate::archive::{Decision, Repository, SnapshotId};
use crate::progress::Progress;

impl Runner {
    /// Undoes what the record's session has before-images of. Keeps them as a snapshot where documents had to be left.
    pub(super) async fn undo_session(
        &self,
        lock: &Lock,
        record: &mut Record,
        progress: &Progress,
    ) -> Result<UndoStats, MigrationError> {
        let Some(session) = record.snapshot_id else {
            return Ok(UndoStats::default());
        };
        let repository = self.repository_of(record)?;
        let images = before_images::images(repository, session, &record.id).await?;
        let undone = self
            .put_back_all(lock, images, Conflicts::Leave, progress)
            .await?;
        record.snapshot_id = match undone.conflicts {
            0 => None,
            _ => self.keep_left(repository, session, &record.id).await?,
        };
        Ok(undone)
    }

    /// Makes the before-images of documents that had to be left a snapshot. None when they are another database's.
    pub(super) async fn keep_left(
        &self,
        repository: &Repository,
        session: SnapshotId,
        of: &MigrationId,
    ) -> Result<Option<SnapshotId>, MigrationError> {
        match repository.decision(session).await? {
            Some(Decision::Committed(_)) => Ok(Some(session)),
            Some(Decision::Aborted(_)) => Ok(None),
            None if before_images::is_of(repository, session, &self.database).await? => {
                let snapshot = before_images::commit_left(repository, session, of).await?;
                Ok(Some(snapshot.id))
            }
            None => Ok(None),
        }
    }

    /// Puts documents back, as long as the lock is held.
    pub(super) async fn put_back_all(
        &self,
        lock: &Lock,
        images: Images,
        conflicts: Conflicts<'_>,
        progress: &Progress,
    ) -> Result<UndoStats, MigrationError> {
        let options = &self.options.write;
        undo(
            &self.database,
            images,
            conflicts,
            options,
            &lock.watch(),
            progress,
        )
        .await
    }

    /// Gives up a session or a snapshot that is of no more use, unless it is another database's. What cannot be given up only
    /// takes space.
    pub(super) async fn give_up(&self, session: SnapshotId, reason: &str) {
        if let Err(error) = self.try_give_up(session, reason).await {
            tracing::info!("session {session} is of no more use and could not be given up: {error}");
        }
    }

    async fn try_give_up(&self, session: SnapshotId, reason: &str) -> Result<(), MigrationError> {
        let Some(repository) = &self.repository else {
            return Ok(());
        };
        if !before_images::is_of(repository, session, &self.database).await? {
            tracing::info!("session {session} is not of this database, and stays as it is");
            return Ok(());
        }
        match crate::archive::session::abort(repository, session, reason).await? {
            Decision::Committed(_) => Ok(repository.forget(session, reason).await?),
            Decision::Aborted(_) => Ok(()),
        }
    }

    /// Undoes, or finishes, what processes left half done.
    pub(super) async fn recover(
        &self,
        lock: &Lock,
        progress: &Progress,
    ) -> Result<Vec<Recovered>, MigrationError> {
        let history = History::read(&self.database).await?;
        let mut recovered = Vec::new();
        // The newest first: it may have built upon the others.
        for record in history.records().rev().filter(|record| record.is_unfinished()) {
            self.tell(RunnerEvent::Recovering(&record.id));
            let (was_rollback, undone) = match record.status {
                RecordStatus::RollingBack => (true, self.recover_rollback(lock, record, progress).await?),
                _ => (false, self.recover_migration(lock, record, progress).await?),
            };
            recovered.push(Recovered {
                id: record.id.to_string(),
                was_rollback,
                documents: undone.changed(),
                left: undone.first_conflicts,
            });
        }
        Ok(recovered)
    }

    async fn recover_migration(
        &self,
        lock: &Lock,
        record: &Record,
        progress: &Progress,
    ) -> Result<UndoStats, MigrationError> {
        let mut record = record.clone();
        let session = record.snapshot_id;
        let undone = self.undo_session(lock, &mut record, progress).await?;
        record.status = RecordStatus::Failed;
        record.error = Some("its process ended before it was done; it was undone".to_owned());
        self.write_record(lock, &record).await?;
        if let (Some(session), None) = (session, record.snapshot_id) {
            self.give_up(session, "the migration was killed and undone").await;
        }
        Ok(undone)
    }
}
