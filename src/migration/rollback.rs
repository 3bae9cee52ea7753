//! Takes migrations back: by their own `rollback()`, or by putting back what documents were before.
//!
//! A script's `rollback()` is a run like any other: what it writes is kept first, and undone when it fails or is killed; then
//! the migration is applied as before. Putting before-images back goes on where it was when it is killed. Nothing is
//! begun that cannot be finished: that every migration has a way back, and that nobody has changed the documents since, is
//! looked at before the first write.

use std::time::Instant;

use super::apply::shortened;
use super::before_images;
use super::undo::{Conflicts, plan_undo};
use super::{
    AfterFailure, Entry, Function, Lock, MigrationError, MigrationState, Overview, Record, RecordStatus,
    RollbackWay, RunMode, Runner, RunnerEvent, Script, UndoStats, Version,
};
use crate::archive::{Decision, SnapshotId};
use crate::progress::Progress;

/// How far to take back.
#[derive(Clone, Copy, Debug)]
pub enum RollbackTarget {
    /// So many migrations, the newest first.
    Steps(usize),
    /// All above this version.
    To(Version),
}

/// How to take back.
#[derive(Clone, Copy, Debug)]
pub struct RollbackOptions {
    /// How far.
    pub target: RollbackTarget,
    /// Put back also what somebody changed since.
    pub force: bool,
}

/// A migration that was taken back, or would be.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RolledBack {
    /// Which one.
    pub id: String,
    /// Whether by its script.
    pub by_script: bool,
    /// Documents that were put back as they were, or that the script wrote.
    pub restored: u64,
    /// Documents that were deleted.
    pub deleted: u64,
    /// Documents that were as before already.
    pub unchanged: u64,
    /// Documents that somebody changed since.
    pub changed_since: u64,
    /// The first of these, by name.
    pub first_changed_since: Vec<String>,
    /// The snapshot that has what was overwritten with `force`, or by the script.
    pub snapshot: Option<SnapshotId>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What a rollback did.
#[derive(Clone, Debug, Default)]
pub struct RollbackStats {
    /// What was half done.
    pub recovered: Vec<super::Recovered>,
    /// What was taken back, in that order.
    pub rolled_back: Vec<RolledBack>,
    /// The version that the database is at.
    pub version: Option<u64>,
}

/// How one migration is taken back.
enum Way {
    Script(Box<Script>),
    BeforeImages,
    /// It wrote nothing.
    Nothing,
}

impl Runner {
    /// Takes migrations back, the newest first.
    ///
    /// # Errors
    /// [`MigrationError::NoWayBack`] before anything is done, [`MigrationError::ChangedSince`] before anything of that
    /// migration is done.
    pub async fn rollback(
        &self,
        options: RollbackOptions,
        progress: &Progress,
    ) -> Result<RollbackStats, MigrationError> {
        let lock = self.lock().await?;
        let done = self.rollback_locked(&lock, options, progress).await;
        lock.release().await;
        done
    }

    async fn rollback_locked(
        &self,
        lock: &Lock,
        options: RollbackOptions,
        progress: &Progress,
    ) -> Result<RollbackStats, MigrationError> {
        let mut stats = RollbackStats {
            recovered: self.recover(lock, progress).await?,
            ..RollbackStats::default()
        };
        let overview = self.overview_for_rollback().await?;
        let mut ways = Vec::new();
        for entry in targets(&overview, options.target) {
            ways.push((entry, self.way_back(entry).await?));
        }
        for (entry, way) in ways {
            let Some(record) = entry.record.clone() else {
                continue;
            };
            if self.options.stop.is_requested() {
                lock.check()?;
                let stopped = format!("stopped before {} was taken back", entry.id);
                return Err(MigrationError::Refused(stopped));
            }
            self.tell(RunnerEvent::RollingBack(&entry.id));
            let done = match way {
                Way::Script(script) => self.roll_back_by_script(lock, record, &script, progress).await?,
                Way::BeforeImages => self.put_back(lock, record, options.force, progress).await?,
                Way::Nothing => {
                    self.rolled_back(lock, record).await?;
                    report(&entry.id.to_string(), &UndoStats::default(), Instant::now())
                }
            };
            stats.rolled_back.push(done);
        }
        stats.version = super::History::read(&self.database).await?.current();
        Ok(stats)
    }

    /// Says what [`rollback`](Self::rollback) would do, and writes nothing. Each migration is looked at as if it were alone.
    pub async fn plan_rollback(
        &self,
        options: RollbackOptions,
        progress: &Progress,
    ) -> Result<RollbackStats, MigrationError> {
        let overview = self.overview_for_rollback().await?;
        let mut stats = RollbackStats {
            version: overview.current,
            ..RollbackStats::default()
        };
        for entry in targets(&overview, options.target) {
            let start = Instant::now();
            let id = entry.id.to_string();
            let planned = match self.way_back(entry).await? {
                Way::Nothing => report(&id, &UndoStats::default(), start),
                Way::BeforeImages => {
                    let images = match (&entry.record, self.repository()?) {
                        (
                            Some(Record {
                                snapshot_id: Some(id),
                                ..
                            }),
                            repository,
                        ) => before_images::images(repository, *id, &entry.id).await?,
                        _ => continue,
                    };
                    report(&id, &plan_undo(&self.database, images).await?, start)
                }
                Way::Script(script) => {
                    let options = self.run_options(RunMode::DryRun { preview: 0 });
                    let run = script.run(Function::Rollback, &self.database, options, progress);
                    let run = run.await.map_err(|source| MigrationError::Script {
                        id: entry.id.clone(),
                        source: Box::new(source),
                    })?;
                    RolledBack {
                        by_script: true,
                        restored: run.created + run.updated,
                        deleted: run.deleted,
                        ..report(&id, &UndoStats::default(), start)
                    }
                }
            };
            stats.rolled_back.push(planned);
        }
        Ok(stats)
    }

    /// A folder that is gone is no reason not to go back.
    async fn overview_for_rollback(&self) -> Result<Overview, MigrationError> {
        match self.overview().await {
            Err(MigrationError::Files(super::FilesError::NoFolder(_))) => {
                let history = super::History::read(&self.database).await?;
                Ok(Overview::new(Vec::new(), &history))
            }
            overview => overview,
        }
    }

    async fn way_back(&self, entry: &Entry) -> Result<Way, MigrationError> {
        let no_way = |why| MigrationError::NoWayBack {
            id: entry.id.clone(),
            why,
        };
        let Some(record) = &entry.record else {
            return Err(no_way("there is no record of it"));
        };
        // What failed in the middle is no state that a script can expect.
        if let (Some(file), false) = (&entry.file, record.partial) {
            let script = self.load(file.clone()).await?;
            let changed = record
                .checksum
                .as_ref()
                .is_some_and(|applied| *applied != file.checksum);
            match (script.has_rollback(), changed) {
                (true, true) => {
                    return Err(MigrationError::Refused(format!(
                        "{} was changed after it was applied, so its rollback() may not fit what it did: put the file back as it \
                         was, or accept it with `firebank migrate --repair`",
                        entry.id
                    )));
                }
                (true, false) => return Ok(Way::Script(Box::new(script))),
                (false, _) => {}
            }
        }
        if record.baseline {
            return Err(no_way(
                "it was taken for applied by --baseline and never run here",
            ));
        }
        let Some(snapshot) = record.snapshot_id else {
            return match record.tool_version {
                Some(_) => Ok(Way::Nothing),
                None => Err(no_way("another tool ran it, which kept nothing")),
            };
        };
        let repository = self.repository_of(record)?;
        match repository.decision(snapshot).await? {
            Some(Decision::Committed(_)) if !repository.is_forgotten(snapshot).await? => {
                Ok(Way::BeforeImages)
            }
            _ => Err(no_way("its before-images were removed from the repository")),
        }
    }

    async fn roll_back_by_script(
        &self,
        lock: &Lock,
        mut record: Record,
        script: &Script,
        progress: &Progress,
    ) -> Result<RolledBack, MigrationError> {
        let start = Instant::now();
        let repository = self.repository_of(&record)?;
        let id = record.id.clone();
        let read_time = self.database.current_read_time().await?;
        let journal = before_images::begin(repository, &self.database, read_time, lock.watch()).await?;
        record.status = RecordStatus::RollingBack;
        record.rollback_way = Some(RollbackWay::Script);
        record.rollback_snapshot_id = Some(journal.id());
        record.repository_id.get_or_insert(repository.id());
        self.write_record(lock, &record).await?;

        let options = self.run_options(self.write_mode(&journal));
        let ran = script
            .run(Function::Rollback, &self.database, options, progress)
            .await;
        lock.check()?;
        match ran {
            Ok(run) => {
                let snapshot = match journal.is_empty() {
                    true => None,
                    false => Some(journal.commit(repository, &id).await?.id),
                };
                record.rollback_snapshot_id = snapshot;
                self.rolled_back(lock, record).await?;
                if snapshot.is_none() {
                    self.give_up(journal.id(), "the rollback wrote nothing").await;
                }
                Ok(RolledBack {
                    by_script: true,
                    restored: run.created + run.updated,
                    deleted: run.deleted,
                    snapshot,
                    ..report(&id.to_string(), &UndoStats::default(), start)
                })
            }
            Err(error) => {
                let reason = shortened(format!("rollback(): {error}"));
                let undone = self.undo_rollback(lock, record, progress).await;
                Err(match undone {
                    Ok(undone) => MigrationError::Failed {
                        id,
                        reason,
                        after: AfterFailure::Undone {
                            documents: undone.changed() + undone.unchanged,
                            left: undone.first_conflicts,
                            left_count: undone.conflicts,
                            snapshot: None,
                        },
                    },
                    Err(source) => MigrationError::NotUndone {
                        id,
                        reason,
                        source: Box::new(source),
                    },
                })
            }
        }
    }

    /// Undoes what a script's `rollback()` wrote: the migration is applied as before.
    async fn undo_rollback(
        &self,
        lock: &Lock,
        mut record: Record,
        progress: &Progress,
    ) -> Result<UndoStats, MigrationError> {
        let mut undone = UndoStats::default();
        let session = record.rollback_snapshot_id.take();
        if let Some(session) = session {
            let repository = self.repository_of(&record)?;
            let images = before_images::images(repository, session, &record.id).await?;
            undone = self
                .put_back_all(lock, images, Conflicts::Leave, progress)
                .await?;
            if undone.conflicts > 0 {
                record.rollback_snapshot_id = self.keep_left(repository, session, &record.id).await?;
            }
        }
        record.status = RecordStatus::Completed;
        record.rollback_way = None;
        self.write_record(lock, &record).await?;
        if let (Some(session), 0) = (session, undone.conflicts) {
            self.give_up(session, "the rollback failed and was undone").await;
        }
        Ok(undone)
    }

    async fn put_back(
        &self,
        lock: &Lock,
        mut record: Record,
        force: bool,
        progress: &Progress,
    ) -> Result<RolledBack, MigrationError> {
        let start = Instant::now();
        let Some(snapshot) = record.snapshot_id else {
            return Ok(report(record.id.as_str(), &UndoStats::default(), start));
        };
        let repository = self.repository_of(&record)?;
        if !force {
            let images = before_images::images(repository, snapshot, &record.id).await?;
            let planned = plan_undo(&self.database, images).await?;
            if planned.conflicts > 0 {
                return Err(MigrationError::ChangedSince {
                    id: record.id,
                    count: planned.conflicts,
                    first: planned.first_conflicts,
                });
            }
        }
        record.status = RecordStatus::RollingBack;
        record.rollback_way = Some(RollbackWay::BeforeImages { force });
        self.write_record(lock, &record).await?;
        self.finish_putting_back(lock, record, force, progress, start)
            .await
    }

    async fn finish_putting_back(
        &self,
        lock: &Lock,
        mut record: Record,
        force: bool,
        progress: &Progress,
        start: Instant,
    ) -> Result<RolledBack, MigrationError> {
        let id = record.id.clone();
        let repository = self.repository_of(&record)?;
        let images = match record.snapshot_id {
            Some(snapshot) => before_images::images(repository, snapshot, &record.id).await?,
            None => Box::pin(futures::stream::empty()),
        };
        let mut overwritten = None;
        let undone = match force {
            false => {
                self.put_back_all(lock, images, Conflicts::Leave, progress)
                    .await?
            }
            true => {
                // What a killed attempt had overwritten stays kept.
                if let Some(earlier) = record.rollback_snapshot_id
                    && !repository.journal(earlier).await?.is_empty()
                    && let Some(kept) = self.keep_left(repository, earlier, &id).await?
                {
                    tracing::warn!("snapshot {kept} has what an earlier attempt has overwritten");
                }
                let read_time = self.database.current_read_time().await?;
                let watch = lock.watch();
                let journal = before_images::begin(repository, &self.database, read_time, watch).await?;
                record.rollback_snapshot_id = Some(journal.id());
                self.write_record(lock, &record).await?;
                let conflicts = Conflicts::Overwrite(&journal);
                let undone = self.put_back_all(lock, images, conflicts, progress).await?;
                overwritten = match journal.is_empty() {
                    true => None,
                    false => Some(journal.commit(repository, &id).await?.id),
                };
                record.rollback_snapshot_id = overwritten;
                if overwritten.is_none() {
                    self.give_up(journal.id(), "the rollback overwrote nothing of others")
                        .await;
                }
                undone
            }
        };
        lock.check()?;
        self.rolled_back(lock, record).await?;
        Ok(RolledBack {
            snapshot: overwritten,
            ..report(id.as_str(), &undone, start)
        })
    }

    /// Writes down that a migration was taken back.
    async fn rolled_back(&self, lock: &Lock, mut record: Record) -> Result<(), MigrationError> {
        record.status = match record.partial {
            true => RecordStatus::Failed,
            false => RecordStatus::RolledBack,
        };
        record.partial = false;
        record.rollback_way = None;
        record.rolled_back_at = Some(self.database.current_read_time().await?);
        self.write_record(lock, &record).await
    }

    /// Goes on with a rollback whose process ended, or undoes it: see the module.
    pub(super) async fn recover_rollback(
        &self,
        lock: &Lock,
        record: &Record,
        progress: &Progress,
    ) -> Result<UndoStats, MigrationError> {
        match record.rollback_way {
            Some(RollbackWay::BeforeImages { force }) => {
                let start = Instant::now();
                let done = self.finish_putting_back(lock, record.clone(), force, progress, start);
                let done = done.await?;
                Ok(UndoStats {
                    restored: done.restored,
                    deleted: done.deleted,
                    unchanged: done.unchanged,
                    conflicts: done.changed_since,
                    first_conflicts: done.first_changed_since,
                })
            }
            Some(RollbackWay::Script) | None => self.undo_rollback(lock, record.clone(), progress).await,
        }
    }
}

/// Those to take back, the newest first.
fn targets(overview: &Overview, target: RollbackTarget) -> Vec<&Entry> {
    let can = |entry: &&Entry| {
        matches!(
            entry.state,
            MigrationState::Applied | MigrationState::Baseline | MigrationState::Partial
        )
    };
    let newest_first = overview.entries.iter().rev().filter(can);
    match target {
        RollbackTarget::Steps(steps) => newest_first.take(steps).collect(),
        RollbackTarget::To(version) => newest_first
            .filter(|entry| entry.id.version() > version.0)
            .collect(),
    }
}

fn report(id: &str, undone: &UndoStats, start: Instant) -> RolledBack {
    RolledBack {
        id: id.to_owned(),
        by_script: false,
        restored: undone.restored,
        deleted: undone.deleted,
        unchanged: undone.unchanged,
        changed_since: undone.conflicts,
        first_changed_since: undone.first_conflicts.clone(),
        snapshot: None,
        seconds: start.elapsed().as_secs_f64(),
    }
}
