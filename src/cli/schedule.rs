//! `firebank schedule`

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono_tz::Tz;
use clap::{Args, Parser as _, Subcommand};
use serde_json::json;

use super::options::GlobalOptions;
use super::{Cli, Outcome, UsageError};
use crate::schedule::{
    CloudRun, File, Job, Kubernetes, Plan, Purpose, Systemd, When, cloud_run, crontab, kubernetes, systemd,
};
use crate::store::Address;

#[derive(Args, Debug)]
pub(crate) struct ScheduleCommand {
    #[command(subcommand)]
    scheduler: Scheduler,
}

#[derive(Subcommand, Debug)]
enum Scheduler {
    /// Lines for a user's crontab
    Cron(CronCommand),
    /// Services and timers
    Systemd(SystemdCommand),
    /// CronJobs, of which the backup's starts an Indexed Job, and an account for each
    Kubernetes(KubernetesCommand),
    /// A script of gcloud commands: jobs of Cloud Run, their accounts and rights, and what starts them
    CloudRun(CloudRunCommand),
}

#[derive(Args, Debug)]
struct Jobs {
    /// When to back up: 02:00, or `sun 02:00` for once a week
    #[arg(long, value_name = "TIME", default_value = "02:00")]
    backup_at: When,
    /// When to remove old backups
    #[arg(long, value_name = "TIME", default_value = "sun 03:00")]
    clean_at: When,
    /// When to read a part of what is stored
    #[arg(long, value_name = "TIME", default_value = "sat 04:00")]
    verify_at: When,
    /// When to look whether a backup was missed
    #[arg(long, value_name = "TIME", default_value = "08:00")]
    check_at: When,
    /// How old the newest backup may be then
    #[arg(long, value_name = "DURATION", default_value = "26h")]
    max_age: String,
    /// The part to read: `10%`, or `2/7` for the second of seven parts
    #[arg(long, value_name = "SUBSET", default_value = "10%")]
    verify_part: String,
    /// The time zone of the times, such as Europe/Berlin [default: what the scheduler takes]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<Tz>,
    /// More of `firebank backup`'s command line, such as `users orders --tag nightly`
    #[arg(
        long,
        value_name = "ARGUMENTS",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    backup_arguments: String,
    /// More of `firebank clean`'s command line, such as `--keep-daily 14 --keep-monthly 12` [default: the last 10 are kept]
    #[arg(
        long,
        value_name = "ARGUMENTS",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    clean_arguments: String,
    /// Write the files into this folder instead of printing them; what is there already is left alone, and an error
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct CronCommand {
    #[command(flatten)]
    jobs: Jobs,
    /// The path of `firebank` there
    #[arg(long, value_name = "FILE", default_value = "/usr/local/bin/firebank")]
    program: String,
}

#[derive(Args, Debug)]
struct SystemdCommand {
    #[command(flatten)]
    jobs: Jobs,
    /// The path of `firebank` there
    #[arg(long, value_name = "FILE", default_value = "/usr/local/bin/firebank")]
    program: String,
    /// The user that the jobs run as
    #[arg(long, value_name = "NAME", default_value = "firebank")]
    user: String,
    /// A unit to start when a job fails, such as `notify@%n.service`
    #[arg(long, value_name = "UNIT")]
    on_failure: Option<String>,
}

#[derive(Args, Debug)]
struct KubernetesCommand {
    #[command(flatten)]
    jobs: Jobs,
    /// The image, with `firebank` as its entry point
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// The namespace; it has to be there
    #[arg(long, value_name = "NAME", default_value = "firebank")]
    namespace: String,
    /// How many tasks back up together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    tasks: u16,
}

#[derive(Args, Debug)]
struct CloudRunCommand {
    #[command(flatten)]
    jobs: Jobs,
    /// The image, with `firebank` as its entry point
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// Where the jobs run: where the database is
    #[arg(long, value_name = "REGION")]
    region: String,
    /// How many tasks back up together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    tasks: u16,
}

impl ScheduleCommand {
    pub(crate) fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let (files, output) = match self.scheduler {
            Scheduler::Cron(command) => {
                let credentials = global.given_key_file().map(absolute).transpose()?;
                let plan = command.jobs.plan(global)?;
                let file = crontab(&plan, &command.program, credentials.as_deref());
                (file.map(|file| vec![file]), command.jobs.output)
            }
            Scheduler::Systemd(command) => {
                let options = Systemd {
                    program: command.program,
                    user: command.user,
                    on_failure: command.on_failure,
                };
                (
                    systemd(&command.jobs.plan(global)?, &options),
                    command.jobs.output,
                )
            }
            Scheduler::Kubernetes(command) => {
                let options = Kubernetes {
                    image: command.image,
                    namespace: command.namespace,
                    tasks: command.tasks,
                };
                let file = kubernetes(&command.jobs.plan(global)?, &options);
                (file.map(|file| vec![file]), command.jobs.output)
            }
            Scheduler::CloudRun(command) => {
                let options = CloudRun {
                    image: command.image,
                    region: command.region,
                    tasks: command.tasks,
                };
                let file = cloud_run(&command.jobs.plan(global)?, &options);
                (file.map(|file| vec![file]), command.jobs.output)
            }
        };
        let files = files.map_err(|error| UsageError::new(error.to_string()))?;
        match output {
            Some(folder) => write(&files, &folder, global)?,
            None => print(&files, global)?,
        }
        Ok(Outcome::Done)
    }
}

impl Jobs {
    fn plan(&self, global: &GlobalOptions) -> anyhow::Result<Plan> {
        let address = global.address()?;
        let repository = match &address {
            Address::Folder(folder) => absolute(folder)?,
            Address::Bucket(_) => global.repository.clone(),
        };
        let database = global.database()?;
        let job = |purpose, when, arguments: &[&str], more: &str| {
            let more = shell_words::split(more)
                .map_err(|error| UsageError::new(format!("the arguments `{more}`: {error}")))?;
            let arguments = arguments.iter().map(|&argument| argument.to_owned());
            let arguments: Vec<String> = arguments.chain(more).collect();
            check(&arguments)?;
            anyhow::Ok(Job {
                purpose,
                when,
                arguments,
            })
        };
        let verify = format!("--read-data={}", self.verify_part);
        Ok(Plan {
            repository,
            repository_is_folder: matches!(address, Address::Folder(_)),
            project: database.project,
            database: global.named_database().map(str::to_owned),
            time_zone: self.time_zone,
            jobs: vec![
                job(
                    Purpose::Backup,
                    self.backup_at,
                    &["backup"],
                    &self.backup_arguments,
                )?,
                job(Purpose::Verify, self.verify_at, &["verify", &verify], "")?,
                job(
                    Purpose::Clean,
                    self.clean_at,
                    &["clean", "--yes"],
                    &self.clean_arguments,
                )?,
                job(
                    Purpose::Check,
                    self.check_at,
                    &["status", "--max-age", &self.max_age],
                    "",
                )?,
            ],
        })
    }
}

/// What is scheduled must be a command line that this tool takes.
fn check(arguments: &[String]) -> anyhow::Result<()> {
    let line = std::iter::once("firebank").chain(arguments.iter().map(String::as_str));
    match Cli::try_parse_from(line) {
        Ok(_) => Ok(()),
        Err(error) => Err(UsageError::new(format!(
            "`firebank {}` is no command line: {}",
            shell_words::join(arguments),
            error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ")
        ))),
    }
}

fn absolute(path: impl AsRef<Path>) -> anyhow::Result<String> {
    let path = path.as_ref();
    let absolute = std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))?;
    match absolute.into_os_string().into_string() {
        Ok(text) => Ok(text),
        Err(path) => Err(UsageError::new(format!(
            "{} is no text, which a schedule has to be",
            path.display()
        ))),
    }
}

fn print(files: &[File], global: &GlobalOptions) -> anyhow::Result<()> {
    let output = global.output();
    let as_json = |file: &File| json!({ "name": file.name, "text": file.text });
    output.json(&json!({ "files": files.iter().map(as_json).collect::<Vec<_>>() }))?;
    for (number, file) in files.iter().enumerate() {
        if files.len() > 1 {
            let gap = if number > 0 { "\n" } else { "" };
            output.data(format!("{gap}# {}", file.name))?;
        }
        output.data(file.text.trim_end())?;
    }
    Ok(())
}

fn write(files: &[File], folder: &Path, global: &GlobalOptions) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mut written = Vec::new();
    for file in files {
        let path = folder.join(&file.name);
        let mut new = std::fs::File::create_new(&path).with_context(|| {
            format!(
                "cannot write {}: remove it first, or give another folder",
                path.display()
            )
        })?;
        new.write_all(file.text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path.display().to_string());
    }
    let output = global.output();
    output.json(&json!({ "written": written }))?;
    written
        .iter()
        .try_for_each(|path| output.line(format!("Wrote {path}.")))?;
    Ok(())
}
