//! The command line: clap definitions, one file a command, and nothing that a library user would miss.

mod backup;
mod backup_plan;
mod billed;
mod clean;
mod compact;
mod completions;
mod confirm;
mod cost_args;
mod demo;
mod demo_migrations;
mod diff;
mod doctor;
mod durations;
mod export;
mod history;
mod import;
mod init;
mod json_backup;
mod json_restore;
mod later;
mod list_backups;
mod listing;
mod log;
mod ls;
mod migrate;
mod migration_args;
mod migration_view;
mod migrations;
mod options;
mod outcome;
mod output;
mod progress;
mod reset;
mod restore;
mod restore_session;
mod rollback;
mod sandbox;
mod schedule;
mod sessions;
mod show;
mod snapshot_filter;
mod snapshots;
mod status;
mod task_args;
mod verify;
mod verify_live;
mod write_args;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

use options::GlobalOptions;
use outcome::Interrupted;
pub(crate) use outcome::{Outcome, Refused, UsageError};

use crate::archive::lease;
use crate::stop::Stop;

/// Back up, verify and restore Google Cloud Firestore
#[derive(Parser, Debug)]
#[command(
    name = "firebank",
    version,
    about,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Create a repository, and with --schema the database's first collections
    Init(init::InitCommand),
    /// Take a snapshot of the database, or of some collections
    #[command(alias = "backup_collection")]
    Backup(backup::BackupCommand),
    /// Take a snapshot of the whole database
    #[command(alias = "backup_all", alias = "backup_all_collections")]
    BackupAll(backup::BackupAllCommand),
    /// List the snapshots and the JSON backups
    #[command(visible_alias = "snapshots", alias = "list_backups")]
    ListBackups(list_backups::ListBackupsCommand),
    /// Show what a snapshot holds, or one document of it
    Show(show::ShowCommand),
    /// List the documents of a snapshot
    Ls(ls::LsCommand),
    /// Show a document through all snapshots
    History(history::HistoryCommand),
    /// Show what changed between two snapshots, or since one
    Diff(diff::DiffCommand),
    /// Check that snapshots are intact, or that a database holds what a snapshot holds
    Verify(verify::VerifyCommand),
    /// Write a snapshot or a JSON backup into a database
    #[command(alias = "restore_collection")]
    Restore(restore::RestoreCommand),
    /// Remove old backups by rules, and delete what nothing needs any more
    #[command(visible_alias = "prune")]
    Clean(clean::CleanCommand),
    /// Write a snapshot as JSON files
    Export(export::ExportCommand),
    /// Write JSON files into a database
    Import(import::ImportCommand),
    /// List the backups that are under way or were left unfinished
    Sessions(sessions::SessionsCommand),
    /// Merge the layers of a snapshot into one
    Compact(compact::CompactCommand),
    /// Apply the migrations that are pending, or show what they would change
    Migrate(migrate::MigrateCommand),
    /// Take migrations back
    Rollback(rollback::RollbackCommand),
    /// Apply one migration, whatever else is pending
    #[command(alias = "run")]
    RunMigration(migrate::RunMigrationCommand),
    /// Write a new migration's script, a template to fill in
    #[command(alias = "create")]
    CreateMigration(migrations::CreateMigrationCommand),
    /// List the migrations of the folder and the database
    #[command(alias = "list")]
    ListMigrations(migrations::ListMigrationsCommand),
    #[command(hide = true)]
    Applied(migrations::AppliedCommand),
    /// Show which migrations are applied and which are pending, and what does not fit
    MigrationStatus(migrations::MigrationStatusCommand),
    /// Make a test database: a repository where there is none, and all migrations
    SetupTest(reset::SetupTestCommand),
    /// Back a development database up, delete everything in it, and apply the migrations
    ResetDev(reset::ResetDevCommand),
    /// Show the database, its migrations and the last backups at a glance
    Status(status::StatusCommand),
    /// Check that everything is reachable and permitted
    Doctor(doctor::DoctorCommand),
    /// Run the embedded Firestore by itself
    Sandbox(sandbox::SandboxCommand),
    /// Show the whole story on the embedded sandbox; needs no account
    Demo(demo::DemoCommand),
    /// Print what starts the nightly backup, the weekly clean and the checks: for cron, systemd, Kubernetes or Cloud Run
    Schedule(schedule::ScheduleCommand),
    /// Print the completion script for a shell
    Completions(completions::CompletionsCommand),
}

/// Threads that compress, hash and wait for disks. Each may keep memory of its own, so many of them cost more
/// than they bring.
const BLOCKING_THREADS: usize = 8;
/// How long an interrupted command takes to reach a place where it can stop.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// How long an interrupted command waits for its leases to be removed.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// Parses the command line, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(outcome) => outcome.into(),
        Err(error) => outcome::report(&error),
    }
}

fn start(cli: Cli) -> anyhow::Result<Outcome> {
    log::start(&cli.global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start the runtime")?;
    // On a worker and not on this thread: what a connection has received is then taken up where it is still
    // in the cache.
    let command = runtime.spawn(until_done_or_interrupted(cli));
    let outcome = runtime
        .block_on(command)
        .unwrap_or_else(|stopped| Err(stopped.into()));
    // A command that was interrupted has dropped its leases; what cannot be removed in time expires.
    let released = async { tokio::time::timeout(RELEASE_PATIENCE, lease::all_released()).await };
    if runtime.block_on(released).is_err() {
        tracing::info!("a lease is left to a later `clean`");
    }
    // Blocking tasks that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    outcome
}

/// Runs the command; a signal lets it stop at a good place where it can, and ends it early otherwise.
async fn until_done_or_interrupted(cli: Cli) -> anyhow::Result<Outcome> {
    let left = cli.command.left_by_an_interruption();
    let resumable = cli.command.is_resumable();
    let undone = cli.command.is_undone();
    let stop = Stop::default();
    let mut work = std::pin::pin!(run(&cli.global, cli.command, stop.clone()));
    tokio::select! {
        outcome = &mut work => return outcome,
        () = interrupted() => {}
    }
    if resumable {
        tracing::warn!("stopping as soon as what is under way is done; once more, and it stops at once");
        stop.request();
        tokio::select! {
            outcome = &mut work => return outcome,
            () = interrupted() => {}
            () = tokio::time::sleep(STOP_PATIENCE) => {}
        }
    } else if undone {
        tracing::warn!(
            "undoing what is under way; once more, and it stops at once and is undone by the next `migrate`"
        );
        stop.request();
        tokio::select! {
            outcome = &mut work => return outcome,
            () = interrupted() => {}
        }
    }
    match left {
        Some(left) => Err(anyhow::Error::new(Interrupted(left))),
        None => Ok(Outcome::Done),
    }
}

async fn run(global: &GlobalOptions, command: Command, stop: Stop) -> anyhow::Result<Outcome> {
    match command {
        Command::Init(command) => command.run(global, stop).await,
        Command::SetupTest(command) => command.run(global, stop).await,
        Command::ResetDev(command) => command.run(global, stop).await,
        Command::Backup(command) => command.run(global, stop).await,
        Command::BackupAll(command) => command.run(global, stop).await,
        Command::ListBackups(command) => command.run(global).await,
        Command::Show(command) => command.run(global).await,
        Command::Ls(command) => command.run(global).await,
        Command::History(command) => command.run(global).await,
        Command::Diff(command) => command.run(global).await,
        Command::Verify(command) => command.run(global).await,
        Command::Restore(command) => command.run(global, stop).await,
        Command::Clean(command) => command.run(global).await,
        Command::Export(command) => command.run(global).await,
        Command::Import(command) => command.run(global, stop).await,
        Command::Sessions(command) => command.run(global).await,
        Command::Compact(command) => command.run(global).await,
        Command::Migrate(command) => command.run(global, stop).await,
        Command::Rollback(command) => command.run(global, stop).await,
        Command::RunMigration(command) => command.run(global, stop).await,
        Command::CreateMigration(command) => command.run(global),
        Command::ListMigrations(command) => command.run(global).await,
        Command::Applied(command) => command.run(global).await,
        Command::MigrationStatus(command) => command.run(global).await,
        Command::Status(command) => command.run(global).await,
        Command::Doctor(command) => command.run(global).await,
        Command::Sandbox(command) => command.run(global).await,
        Command::Demo(command) => command.run(global).await,
        Command::Schedule(command) => command.run(global),
        Command::Completions(command) => command.run(),
    }
}

impl Command {
    /// Whether the command can stop and go on later.
    fn is_resumable(&self) -> bool {
        match self {
            Self::Backup(command) => command.is_resumable(),
            Self::BackupAll(command) => command.is_resumable(),
            Self::Restore(_) | Self::Import(_) => true,
            _ => false,
        }
    }

    /// Whether the command undoes what it has begun when it is asked to stop.
    fn is_undone(&self) -> bool {
        matches!(
            self,
            Self::Migrate(_) | Self::Rollback(_) | Self::RunMigration(_) | Self::Init(_) | Self::SetupTest(_)
        )
    }

    /// What a signal leaves behind when it ends the command early; `None` where it is the ordinary end.
    fn left_by_an_interruption(&self) -> Option<&'static str> {
        Some(match self {
            Self::Sandbox(_) => return None,
            Self::Backup(_) | Self::BackupAll(_) if self.is_resumable() => {
                "the backup is not finished, and there is no snapshot of it; `firebank backup --resume` goes on from its last \
                 checkpoints, while the database can be read at its time: an hour, with --pitr seven days"
            }
            Self::Backup(_) | Self::BackupAll(_) => "the backup is not finished",
            Self::Restore(_) => {
                "the documents that were written stay written; the same command with --resume goes on from the last checkpoint"
            }
            Self::Import(_) => {
                "the documents that were written stay written; the same command again writes them all"
            }
            Self::Migrate(_) | Self::Rollback(_) | Self::RunMigration(_) | Self::SetupTest(_) => {
                "the migration is not finished; the next `firebank migrate` puts it in order"
            }
            Self::ResetDev(_) => {
                "the database may be half empty; the same command again goes on, and its backup has everything"
            }
            Self::Clean(_) => "what was forgotten is forgotten, and the next `clean` deletes the rest",
            Self::Export(_) => "the files that are there are whole, the others are missing",
            _ => "it is not finished",
        })
    }
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
