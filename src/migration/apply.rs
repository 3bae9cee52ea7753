//! Applies one migration: runs its script, validates it, and writes down what became of it.

use std::sync::Arc;
use std::time::Instant;

use super::before_images::{self, SessionJournal};
use super::runner::{Applied, Runner, RunnerEvent};
use super::{
    AfterFailure, Function, Lock, MigrationError, MigrationFile, MigrationId, Record, RecordStatus, RunStats,
    Script, UndoStats,
};
use crate::document::Timestamp;
use crate::progress::Progress;

/// The most bytes of a script's error that go into the history.
const MAX_ERROR_LEN: usize = 8 << 10;

impl Runner {
    /// Runs a script and records it as applied. One that fails is undone, or kept as far as it got where that is asked for, and
    /// recorded as failed.
    pub(super) async fn apply(
        &self,
        lock: &Lock,
        file: MigrationFile,
        progress: &Progress,
    ) -> Result<Applied, MigrationError> {
        if self.options.stop.is_requested() {
            lock.check()?;
            return Err(MigrationError::Refused(format!(
                "stopped before {}, which stays pending",
                file.id
            )));
        }
        let repository = self.repository()?;
        let id = file.id.clone();
        let checksum = file.checksum.clone();
        let script = self.load(file).await?;
        let started = Instant::now();
        let read_time = self.database.current_read_time().await?;
        let journal = before_images::begin(repository, &self.database, read_time, lock.watch());
        let journal = journal.await?;
        let mut record = Self::begin_record(&id, read_time)?;
        record.description = script.description().map(ToOwned::to_owned);
        record.checksum = Some(checksum);
        record.repository_id = Some(repository.id());
        record.snapshot_id = Some(journal.id());
        self.write_record(lock, &record).await?;
        self.tell(RunnerEvent::Running(&id));

        let ran = self.run_and_validate(&script, &journal, progress).await;
        lock.check()?;
        record.duration_ms = u64::try_from(started.elapsed().as_millis()).ok();
        let stats = match ran {
            Ok(stats) => stats,
            Err(error) => {
                let reason = error.to_string();
                let failed = self
                    .failed(lock, record, &journal, reason.clone(), progress)
                    .await;
                return Err(match failed {
                    Ok(after) => MigrationError::Failed { id, reason, after },
                    Err(source) => MigrationError::NotUndone {
                        id,
                        reason,
                        source: Box::new(source),
                    },
                });
            }
        };
        record.documents_written = Some(stats.created + stats.updated);
        record.documents_deleted = Some(stats.deleted);
        record.created_collections = stats.created_collections.clone();
        let completed = self.completed(lock, &mut record, &journal).await;
        completed.map_err(|source| MigrationError::NotRecorded {
            id: id.clone(),
            source: Box::new(source),
        })?;
        Ok(Applied {
            id: id.to_string(),
            description: record.description,
            created: stats.created,
            updated: stats.updated,
            deleted: stats.deleted,
            collections: stats.collections,
            snapshot: record.snapshot_id,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Makes the snapshot of a migration that is done, and then says that it is done.
    async fn completed(
        &self,
        lock: &Lock,
        record: &mut Record,
        journal: &SessionJournal,
    ) -> Result<(), MigrationError> {
        record.snapshot_id = match journal.is_empty() {
            true => None,
            false => Some(journal.commit(self.repository()?, &record.id).await?.id),
        };
        record.status = RecordStatus::Completed;
        self.write_record(lock, record).await?;
        if record.snapshot_id.is_none() {
            self.give_up(journal.id(), "the migration wrote nothing").await;
        }
        Ok(())
    }

    /// A record that says that the migration is under way, without what an earlier attempt left in it.
    fn begin_record(id: &MigrationId, now: Timestamp) -> Result<Record, MigrationError> {
        let mut record = Record::new(id.clone())?;
        record.status = RecordStatus::Running;
        record.executed_at = Some(now);
        record.tool_version = Some(env!("CARGO_PKG_VERSION").to_owned());
        Ok(record)
    }

    async fn run_and_validate(
        &self,
        script: &Script,
        journal: &Arc<SessionJournal>,
        progress: &Progress,
    ) -> Result<RunStats, super::ScriptError> {
        let options = self.run_options(self.write_mode(journal));
        let stats = script
            .run(Function::Migrate, &self.database, options, progress)
            .await?;
        if script.has_validate() {
            let options = self.run_options(self.write_mode(journal));
            script
                .run(Function::Validate, &self.database, options, progress)
                .await?;
        }
        Ok(stats)
    }

    /// Undoes a migration that failed, or leaves it as asked for, and writes that down.
    async fn failed(
        &self,
        lock: &Lock,
        mut record: Record,
        journal: &SessionJournal,
        reason: String,
        progress: &Progress,
    ) -> Result<AfterFailure, MigrationError> {
        let repository = self.repository()?;
        let id = record.id.clone();
        record.status = RecordStatus::Failed;
        record.error = Some(shortened(reason));
        if self.options.keep_partial && !journal.is_empty() {
            let snapshot = journal.commit(repository, &id).await?;
            record.partial = true;
            self.write_record(lock, &record).await?;
            let documents = snapshot.stats.new_documents + snapshot.stats.deleted_documents;
            return Ok(AfterFailure::Kept { documents });
        }
        let undone = match journal.is_empty() {
            true => {
                record.snapshot_id = None;
                UndoStats::default()
            }
            false => {
                self.tell(RunnerEvent::Undoing(&id));
                self.undo_session(lock, &mut record, progress).await?
            }
        };
        self.write_record(lock, &record).await?;
        if record.snapshot_id.is_none() {
            self.give_up(journal.id(), "the migration failed and was undone")
                .await;
        }
        Ok(AfterFailure::Undone {
            documents: undone.changed() + undone.unchanged,
            left: undone.first_conflicts,
            left_count: undone.conflicts,
            snapshot: record.snapshot_id.map(|id| id.to_string()),
        })
    }
}

/// An error fit for the history.
pub(super) fn shortened(mut reason: String) -> String {
    if reason.len() > MAX_ERROR_LEN {
        let end = (0..=MAX_ERROR_LEN)
            .rev()
            .find(|&end| reason.is_char_boundary(end));
        reason.truncate(end.unwrap_or(0));
        reason.push('…');
    }
    reason
}
