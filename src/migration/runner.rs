//! Runs migrations: each once, one runner at a time, with a way back.
//!
//! The order of things is what makes a kill at any point harmless. The session that keeps before-images comes first, then the
//! record that names it, then the script, whose every write follows its before-image; then the session's snapshot, and
//! only then the record that says that the migration is done. Whoever finds a record that says that something is under
//! way, and has the lock, knows that its process is no more, and where to undo it from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::before_images::SessionJournal;
use super::{
    CollectionStats, Entry, Function, History, Holder, Limits, Lock, LockOptions, LogSink, MigrationError,
    MigrationFile, MigrationId, Overview, Record, RunMode, RunOptions, RunStats, Script, Version, files,
};
use crate::archive::{Repository, SnapshotId};
use crate::firestore::{CommitWrite, Firestore, Precondition, WriteOptions};
use crate::progress::Progress;
use crate::stop::Stop;

/// The most time that a script gets to say what it is for, in a listing.
const DESCRIBING: Duration = Duration::from_secs(1);
/// Documents that a dry run shows.
const PREVIEW: usize = 5;

/// How to run migrations.
#[derive(Clone)]
pub struct RunnerOptions {
    /// Where the scripts are.
    pub folder: PathBuf,
    /// What scripts find as `db.settings`.
    pub settings: BTreeMap<String, String>,
    /// What scripts may use up.
    pub limits: Limits,
    /// How to take the lock.
    pub lock: LockOptions,
    /// How fast to write.
    pub write: WriteOptions,
    /// Whether to leave what a failed migration wrote.
    pub keep_partial: bool,
    /// Takes what scripts log; it goes to `tracing` when none.
    pub log: Option<LogSink>,
    /// Is told what happens.
    pub observer: Arc<dyn Fn(RunnerEvent<'_>) + Send + Sync>,
    /// Asks to stop: what is under way is undone then.
    pub stop: Stop,
}

impl std::fmt::Debug for RunnerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunnerOptions")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl RunnerOptions {
    /// The usual ones for a database.
    pub fn new(database: &Firestore, folder: impl Into<PathBuf>, owner: impl Into<String>) -> Self {
        Self {
            folder: folder.into(),
            settings: BTreeMap::new(),
            limits: Limits::default(),
            lock: LockOptions::new(owner),
            write: WriteOptions::new(database),
            keep_partial: false,
            log: None,
            observer: Arc::new(|_| {}),
            stop: Stop::default(),
        }
    }
}

/// Something that happens while migrations run.
#[derive(Clone, Copy, Debug)]
pub enum RunnerEvent<'a> {
    /// Somebody else has the lock, and is waited for.
    Waiting(&'a Holder),
    /// What a process left half done is being undone, or a rollback finished.
    Recovering(&'a MigrationId),
    /// A migration begins.
    Running(&'a MigrationId),
    /// A migration failed, and what it wrote is being undone.
    Undoing(&'a MigrationId),
    /// A migration is being taken back.
    RollingBack(&'a MigrationId),
}

/// Runs migrations on one database.
#[derive(Debug)]
pub struct Runner {
    pub(super) database: Firestore,
    pub(super) repository: Option<Repository>,
    pub(super) options: RunnerOptions,
}

/// Which migrations to apply.
#[derive(Clone, Copy, Debug, Default)]
pub struct MigrateOptions {
    /// None above this version.
    pub to: Option<Version>,
    /// Also those below the version that the database is at.
    pub out_of_order: bool,
}

/// A migration that was applied.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Applied {
    /// Which one.
    pub id: String,
    /// What it says about itself.
    pub description: Option<String>,
    /// Documents that it created.
    pub created: u64,
    /// Documents that it changed.
    pub updated: u64,
    /// Documents that it deleted.
    pub deleted: u64,
    /// The same by collection.
    pub collections: BTreeMap<String, CollectionStats>,
    /// The snapshot of its before-images; none when it wrote nothing.
    pub snapshot: Option<SnapshotId>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Something half done that was undone, or done.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Recovered {
    /// Which migration.
    pub id: String,
    /// Whether it was its rollback.
    pub was_rollback: bool,
    /// Documents that were put back.
    pub documents: u64,
    /// Documents that somebody had changed, and that were left.
    pub left: Vec<String>,
}

/// What `migrate` did.
#[derive(Clone, Debug, Default)]
pub struct MigrateStats {
    /// What was half done.
    pub recovered: Vec<Recovered>,
    /// What was applied, in order.
    pub applied: Vec<Applied>,
    /// The version that the database is at.
    pub version: Option<u64>,
}

/// What `migrate` would do.
#[derive(Clone, Debug, Default)]
pub struct MigrationPlan {
    /// What is half done and would be undone first.
    pub interrupted: Vec<MigrationId>,
    /// What would be applied, in order, each as if it were alone: one that builds upon another sees nothing of it.
    pub runs: Vec<(MigrationId, RunStats)>,
}

impl Runner {
    /// A runner. It needs a repository for whatever writes documents.
    pub fn new(database: Firestore, repository: Option<Repository>, options: RunnerOptions) -> Self {
        Self {
            database,
            repository,
            options,
        }
    }

    /// The database.
    pub fn database(&self) -> &Firestore {
        &self.database
    }

    /// Scripts and history, as they are now.
    pub async fn overview(&self) -> Result<Overview, MigrationError> {
        let files = files::discover(&self.options.folder)?;
        Ok(Overview::new(files, &History::read(&self.database).await?))
    }

    /// What a migration says about itself: what was recorded, or, where it is pending, what its script says now. The script is
    /// evaluated for that; one that cannot be says nothing.
    pub async fn description(&self, entry: &Entry) -> Option<String> {
        let recorded = entry
            .record
            .as_ref()
            .and_then(|record| record.description.clone());
        let Some(MigrationFile { path, source, .. }) =
            entry.file.clone().filter(|_| entry.state.is_pending())
        else {
            return recorded;
        };
        let settings = self.options.settings.clone();
        let limits = Limits {
            busy: self.options.limits.busy.min(DESCRIBING),
            ..self.options.limits.clone()
        };
        let load = move || Script::load(&path, source, settings, limits);
        let script = tokio::task::spawn_blocking(load).await.ok()?.ok();
        script
            .and_then(|script| script.description().map(ToOwned::to_owned))
            .or(recorded)
    }

    /// Applies what is pending, in order. A migration that fails is undone, and ends it.
    ///
    /// # Errors
    /// [`MigrationError::Diverged`] before anything is done, [`MigrationError::Failed`].
    pub async fn migrate(
        &self,
        options: MigrateOptions,
        progress: &Progress,
    ) -> Result<MigrateStats, MigrationError> {
        let overview = self.overview().await?;
        let nothing_to_do = overview.interrupted().next().is_none();
        if nothing_to_do && pending(&overview, options)?.is_empty() {
            return Ok(MigrateStats {
                version: overview.current,
                ..MigrateStats::default()
            });
        }
        let lock = self.lock().await?;
        let done = self.migrate_locked(&lock, options, progress).await;
        lock.release().await;
        done
    }

    pub(super) async fn migrate_locked(
        &self,
        lock: &Lock,
        options: MigrateOptions,
        progress: &Progress,
    ) -> Result<MigrateStats, MigrationError> {
        let recovered = self.recover(lock, progress).await?;
        // Whoever had the lock before may have applied some.
        let overview = self.overview().await?;
        let mut stats = MigrateStats {
            recovered,
            version: overview.current,
            ..MigrateStats::default()
        };
        for file in pending(&overview, options)? {
            let version = file.id.version();
            stats.applied.push(self.apply(lock, file, progress).await?);
            stats.version = stats.version.max(Some(version));
        }
        Ok(stats)
    }

    /// Runs what is pending without writing anything.
    pub async fn plan_migrate(
        &self,
        options: MigrateOptions,
        progress: &Progress,
    ) -> Result<MigrationPlan, MigrationError> {
        let overview = self.overview().await?;
        let mut plan = MigrationPlan {
            interrupted: overview.interrupted().map(|entry| entry.id.clone()).collect(),
            ..MigrationPlan::default()
        };
        for file in pending(&overview, options)? {
            let id = file.id.clone();
            plan.runs.push((id, self.dry_run(file, progress).await?));
        }
        Ok(plan)
    }

    /// Runs one script without writing anything.
    pub async fn plan_file(&self, file: &Path, progress: &Progress) -> Result<RunStats, MigrationError> {
        self.dry_run(files::read(file)?, progress).await
    }

    async fn dry_run(&self, file: MigrationFile, progress: &Progress) -> Result<RunStats, MigrationError> {
        let id = file.id.clone();
        let script = self.load(file).await?;
        let options = self.run_options(RunMode::DryRun { preview: PREVIEW });
        let run = script.run(Function::Migrate, &self.database, options, progress);
        run.await.map_err(|source| MigrationError::Script {
            id,
            source: Box::new(source),
        })
    }

    /// Applies one script, whatever else is pending.
    ///
    /// # Errors
    /// As [`Runner::migrate`], and when it is applied already.
    pub async fn run_file(&self, file: &Path, progress: &Progress) -> Result<MigrateStats, MigrationError> {
        let file = files::read(file)?;
        let lock = self.lock().await?;
        let done = self.run_file_locked(&lock, file, progress).await;
        lock.release().await;
        done
    }

    async fn run_file_locked(
        &self,
        lock: &Lock,
        file: MigrationFile,
        progress: &Progress,
    ) -> Result<MigrateStats, MigrationError> {
        let recovered = self.recover(lock, progress).await?;
        let history = History::read(&self.database).await?;
        match history.get(&file.id) {
            Some(record) if record.is_applied() => {
                return Err(MigrationError::Refused(format!(
                    "{} is applied already: `firebank rollback` takes it back first",
                    file.id
                )));
            }
            Some(record) if record.partial => {
                return Err(MigrationError::Diverged(vec![super::Divergence::Partial {
                    id: file.id,
                }]));
            }
            _ => {}
        }
        let version = file.id.version();
        let applied = self.apply(lock, file, progress).await?;
        Ok(MigrateStats {
            recovered,
            applied: vec![applied],
            version: history.current().max(Some(version)),
        })
    }

    pub(super) async fn lock(&self) -> Result<Lock, MigrationError> {
        let observer = Arc::clone(&self.options.observer);
        let waiting = move |holder: &Holder| observer(RunnerEvent::Waiting(holder));
        let options = self.options.lock.clone();
        Ok(Lock::acquire(&self.database, options, &self.options.stop, waiting).await?)
    }

    pub(super) fn tell(&self, event: RunnerEvent<'_>) {
        (self.options.observer)(event);
    }

    pub(super) fn repository(&self) -> Result<&Repository, MigrationError> {
        self.repository.as_ref().ok_or_else(|| {
            MigrationError::Refused(
                "what documents were before a migration is kept in a repository, and there is none: `firebank init` creates \
                 it, --repository says where"
                    .to_owned(),
            )
        })
    }

    /// The repository that has a record's before-images.
    pub(super) fn repository_of(&self, record: &Record) -> Result<&Repository, MigrationError> {
        let repository = self.repository()?;
        match record.repository_id {
            Some(wanted) if wanted != repository.id() => Err(MigrationError::OtherRepository {
                id: record.id.clone(),
                wanted,
                found: repository.id(),
            }),
            _ => Ok(repository),
        }
    }

    /// Reads a script, which evaluates it.
    pub(super) async fn load(&self, file: MigrationFile) -> Result<Script, MigrationError> {
        let MigrationFile { id, path, source, .. } = file;
        let (settings, limits) = (self.options.settings.clone(), self.options.limits.clone());
        let load = move || Script::load(&path, source, settings, limits);
        let loaded = tokio::task::spawn_blocking(load)
            .await
            .map_err(std::io::Error::other)?;
        loaded.map_err(|source| MigrationError::Script {
            id,
            source: Box::new(source),
        })
    }

    pub(super) fn run_options(&self, mode: RunMode) -> RunOptions {
        let defaults = RunOptions::new(mode);
        RunOptions {
            log: self.options.log.clone().unwrap_or_else(|| defaults.log.clone()),
            stop: self.options.stop.clone(),
            ..defaults
        }
    }

    pub(super) fn write_mode(&self, journal: &Arc<SessionJournal>) -> RunMode {
        RunMode::Write {
            journal: Arc::clone(journal) as Arc<dyn super::Journal>,
            options: self.options.write.clone(),
            fence: Some(journal.fence()),
        }
    }

    /// Writes a record, provided that the lock is held.
    pub(super) async fn write_record(&self, lock: &Lock, record: &Record) -> Result<(), MigrationError> {
        let write = CommitWrite {
            path: record.path.clone(),
            fields: Some(record.to_fields()),
            condition: Precondition::None,
        };
        Ok(lock.write(vec![write]).await?)
    }
}

/// The scripts to run, ascending.
fn pending(overview: &Overview, options: MigrateOptions) -> Result<Vec<MigrationFile>, MigrationError> {
    let wanted = |id: &MigrationId| options.to.is_none_or(|to| id.version() <= to.0);
    let stops = |divergence: &&super::Divergence| match divergence {
        super::Divergence::OutOfOrder { id, .. } => !options.out_of_order && wanted(id),
        _ => true,
    };
    let divergences: Vec<_> = overview.divergences.iter().filter(stops).cloned().collect();
    if !divergences.is_empty() {
        return Err(MigrationError::Diverged(divergences));
    }
    let files = overview.pending().filter_map(|entry| entry.file.clone());
    Ok(files.filter(|file| wanted(&file.id)).collect())
}
