//! Units and manifests for what starts Firebank at its times: cron, systemd, Kubernetes, Cloud Run.
//!
//! Firebank has no clock of its own to run by. Every team has something that starts jobs, retries them and tells when they
//! fail, so what is printed here is for that, complete and for the user's own settings: the nightly backup, the weekly clean,
//! a weekly check of the stored data, and the check whether a night was missed. Each runs with rights of its own where the
//! scheduler knows such: only the clean may delete, and only the backup and the last check read the database.
//!
//! Values of the user are quoted by the rules of where they stand. Control characters, which no place can quote, are refused.

mod cloud_run;
mod cron;
mod kubernetes;
mod systemd;
mod when;

use chrono_tz::Tz;

pub use cloud_run::{CloudRun, cloud_run};
pub use cron::crontab;
pub use kubernetes::{Kubernetes, kubernetes};
pub use systemd::{Systemd, systemd};
pub use when::{BadTime, When};

/// What is to be run, and on what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The address of the repository: a bucket, or a folder's absolute path.
    pub repository: String,
    /// Whether the repository is a folder.
    pub repository_is_folder: bool,
    /// The project of the database.
    pub project: String,
    /// The database's id, where it is not the default one.
    pub database: Option<String>,
    /// What the times are in; without one, what the scheduler takes, which is UTC on Kubernetes and Cloud Run.
    pub time_zone: Option<Tz>,
    /// The jobs.
    pub jobs: Vec<Job>,
}

/// A command that runs at its times.
#[derive(Clone, Debug)]
pub struct Job {
    /// What it is for.
    pub purpose: Purpose,
    /// When it runs.
    pub when: When,
    /// The arguments of `firebank`, its command first.
    pub arguments: Vec<String>,
}

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Backs the database up.
    Backup,
    /// Reads part of what is stored, and compares it with its hashes.
    Verify,
    /// Removes what the rules do not keep.
    Clean,
    /// Fails when a backup was missed.
    Check,
}

impl Purpose {
    /// A name for units and accounts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Verify => "verify",
            Self::Clean => "clean",
            Self::Check => "check",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Backup => "Firebank: back up the database",
            Self::Verify => "Firebank: check part of the stored data",
            Self::Clean => "Firebank: remove old backups",
            Self::Check => "Firebank: fail when a backup was missed",
        }
    }

    /// Whether it reads the database.
    fn reads_database(self) -> bool {
        matches!(self, Self::Backup | Self::Check)
    }
}

/// A file to put where the scheduler finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub text: String,
}

/// Why nothing can be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A value with a line feed or another control character.
    #[error("{0:?} has a control character, which no crontab, unit or manifest can hold")]
    ControlCharacter(String),
    /// A folder where several machines work.
    #[error(
        "the repository is the folder {0}, which the machines that run the jobs do not share: give a bucket"
    )]
    FolderOnManyMachines(String),
    /// A value that the format has no way to write.
    #[error("{value:?} cannot be written in {place}: {why}")]
    Unquotable {
        /// The value.
        value: String,
        /// Where.
        place: &'static str,
        /// Why not.
        why: &'static str,
    },
}

impl Plan {
    /// What all jobs find in their environment.
    fn environment(&self) -> Vec<(&'static str, &str)> {
        let mut environment = vec![
            ("FIREBANK_REPOSITORY", self.repository.as_str()),
            ("FIREBASE_PROJECT_ID", &self.project),
        ];
        if let Some(database) = &self.database {
            environment.push(("FIREBANK_DATABASE", database));
        }
        environment
    }

    fn check(&self, more: &[&str]) -> Result<(), ScheduleError> {
        let environment = self.environment();
        let values = environment.iter().map(|(_, value)| *value);
        let arguments = self.jobs.iter().flat_map(|job| &job.arguments);
        let all = values
            .chain(arguments.map(String::as_str))
            .chain(more.iter().copied());
        match all.into_iter().find(|value| value.chars().any(char::is_control)) {
            Some(value) => Err(ScheduleError::ControlCharacter(value.to_owned())),
            None => Ok(()),
        }
    }

    fn check_shared(&self) -> Result<(), ScheduleError> {
        match self.repository_is_folder {
            true => Err(ScheduleError::FolderOnManyMachines(self.repository.clone())),
            false => Ok(()),
        }
    }
}
