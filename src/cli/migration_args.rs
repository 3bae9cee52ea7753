//! What the commands on migrations have in common: the folder, the runner, and what it tells.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::options::GlobalOptions;
use super::{UsageError, durations, output};
use crate::archive::{ArchiveError, Repository};
use crate::migration::files::DEFAULT_FOLDER;
use crate::migration::{LogLevel, LogLine, LogSink, Runner, RunnerEvent, RunnerOptions};
use crate::stop::Stop;

/// Where scripts are.
#[derive(Args, Clone, Debug)]
pub(crate) struct FolderArgs {
    /// The folder with the scripts
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER, env = "FIREBANK_MIGRATIONS", hide_env_values = true)]
    pub(crate) migrations: PathBuf,
}

/// How scripts run.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) folder: FolderArgs,
    /// A setting that scripts find as `db.settings.KEY`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// How long to wait when somebody else runs migrations; 0 fails at once
    #[arg(long, value_name = "DURATION", default_value = "5min", value_parser = wait)]
    wait: Duration,
    /// After how long without a sign of life others may take the lock
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = durations::parse, hide = true)]
    lock_expiry: Duration,
    /// How long a script may compute without asking anything of the database
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = durations::parse)]
    script_time: Duration,
    /// How much memory a script may take, in MiB
    #[arg(long, value_name = "MIB", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=65536))]
    script_memory: u32,
    /// At most this many writes a second
    #[arg(long, value_name = "N", value_parser = super::write_args::positive)]
    rate: Option<f64>,
    /// Do not start slowly: for databases that are empty or warmed up
    #[arg(long)]
    no_ramp: bool,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn wait(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => durations::parse(text),
    }
}

impl FolderArgs {
    /// A runner that only looks.
    pub(crate) async fn observer(&self, global: &GlobalOptions) -> anyhow::Result<Runner> {
        let database = global.connect().await?;
        let options = RunnerOptions::new(&database, &self.migrations, owner());
        Ok(Runner::new(database, None, options))
    }
}

impl RunArgs {
    /// A runner on the database and the repository that the command line names. That there is no repository matters only
    /// when something is to be written.
    pub(crate) async fn runner(
        &self,
        global: &GlobalOptions,
        keep_partial: bool,
        stop: Stop,
    ) -> anyhow::Result<Runner> {
        let mut settings = BTreeMap::new();
        for (key, value) in &self.settings {
            if settings.insert(key.clone(), value.clone()).is_some() {
                return Err(UsageError::new(format!("--set {key} is given twice")));
            }
        }
        let repository = repository(global).await?;
        let database = global.connect().await?;
        let mut options = RunnerOptions::new(&database, &self.folder.migrations, owner());
        options.lock.wait = self.wait;
        options.lock.expiry = self.lock_expiry;
        options.write.rate = self.rate;
        options.write.ramp &= !self.no_ramp;
        options.settings = settings;
        options.limits.busy = self.script_time;
        options.limits.memory_bytes = (self.script_memory as usize) << 20;
        options.keep_partial = keep_partial;
        options.log = Some(script_log());
        options.observer = Arc::new(tell);
        options.stop = stop;
        Ok(Runner::new(database, repository, options))
    }
}

/// The repository, `None` where there is none yet.
pub(crate) async fn repository(global: &GlobalOptions) -> anyhow::Result<Option<Repository>> {
    match global.open_repository().await {
        Ok(repository) => Ok(Some(repository)),
        Err(error) => match error.downcast_ref() {
            Some(ArchiveError::NotARepository { .. }) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Who runs migrations, in words for whoever has to wait.
pub(crate) fn owner() -> String {
    let user = ["USER", "LOGNAME", "USERNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok())
        .filter(|user| !user.is_empty());
    let host = gethostname::gethostname();
    format!(
        "{} on {} (process {})",
        user.as_deref().unwrap_or("somebody"),
        host.to_string_lossy(),
        std::process::id()
    )
}

/// What scripts log goes where all logs go, and is shown without `-v`.
fn script_log() -> LogSink {
    Arc::new(|LogLine { level, text }| {
        for line in text.lines().map(output::printable) {
            match level {
                LogLevel::Debug => tracing::debug!(target: "firebank::script", "{line}"),
                LogLevel::Info => tracing::info!(target: "firebank::script", "{line}"),
                LogLevel::Warning => tracing::warn!(target: "firebank::script", "{line}"),
                LogLevel::Error => tracing::error!(target: "firebank::script", "{line}"),
            }
        }
    })
}

/// What happens is told as it happens, on standard error and in the log: a result is printed at the end.
fn tell(event: RunnerEvent<'_>) {
    let line = match event {
        RunnerEvent::Waiting(holder) => format!(
            "waiting for {}, who has run migrations since {}",
            output::printable(&holder.owner),
            output::printable(&holder.since)
        ),
        RunnerEvent::Recovering(id) => format!("{id}: was left half done, putting it in order"),
        RunnerEvent::Running(id) => format!("{id}: running"),
        RunnerEvent::Undoing(id) => format!("{id}: failed, undoing what it wrote"),
        RunnerEvent::RollingBack(id) => format!("{id}: rolling back"),
    };
    tracing::info!(target: "firebank::script", "{line}");
}
