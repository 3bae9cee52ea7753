//! The options that every command shares, and what they resolve to.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args};

use super::UsageError;
use super::output::Output;
use crate::archive::{ArchiveError, Repository};
use crate::document::DatabaseName;
use crate::firestore::{ConnectOptions, Credentials, Firestore, Target};
use crate::store::{Address, AddressError, BucketOptions, Store, StoreError};

/// The file in the working folder that the original tools read their credentials from.
const CREDENTIALS_IN_WORKING_FOLDER: &str = "firebase-credentials.json";
const DEFAULT_CHANNELS: usize = 4;

#[derive(Args, Clone, Debug)]
pub(crate) struct GlobalOptions {
    /// Where the repository is: a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX
    #[arg(
        short,
        long,
        global = true,
        value_name = "ADDRESS",
        env = "FIREBANK_REPOSITORY",
        default_value = "backups",
        hide_env_values = true
    )]
    pub(crate) repository: String,

    /// The Google Cloud project [env: FIREBASE_PROJECT_ID, then GOOGLE_CLOUD_PROJECT]
    #[arg(long, global = true, value_name = "ID")]
    project: Option<String>,

    /// The database in the project [default: (default)]
    #[arg(long, global = true, value_name = "ID", env = "FIREBANK_DATABASE")]
    database: Option<String>,

    /// Talk to an emulator or a sandbox instead of Google Cloud
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "FIRESTORE_EMULATOR_HOST"
    )]
    emulator: Option<String>,

    /// A service account's key file; without it the application default credentials
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "GOOGLE_APPLICATION_CREDENTIALS",
        // An empty variable is none, and no mistake.
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    credentials: Option<PathBuf>,

    /// How many HTTP/2 connections to open to Firestore
    #[arg(long, global = true, value_name = "N", default_value_t = DEFAULT_CHANNELS, hide = true)]
    connections: usize,

    /// Print one JSON object on standard output, nothing else
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Print results and errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Say more on standard error; twice for the details
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Also write the log to this file
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,

    /// Projects that TESTING=true lifts the confirmation for
    #[arg(
        long,
        global = true,
        value_name = "ID",
        env = "FIREBANK_ALLOW_PROJECTS",
        value_delimiter = ','
    )]
    pub(crate) allow_project: Vec<String>,

    /// Confirm a destructive command: the id of the project that it changes
    #[arg(long, global = true, value_name = "ID")]
    pub(crate) confirm_project: Option<String>,
}

impl GlobalOptions {
    pub(crate) fn output(&self) -> Output {
        Output::new(self.json, self.quiet)
    }

    /// Where the repository is.
    pub(crate) fn address(&self) -> anyhow::Result<Address> {
        self.repository
            .parse()
            .map_err(|error: AddressError| UsageError::new(format!("--repository: {error}")))
    }

    /// The repository's folder, `None` when it is in a bucket.
    pub(crate) fn repository_folder(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(match self.address()? {
            Address::Folder(folder) => Some(folder),
            Address::Bucket(_) => None,
        })
    }

    pub(crate) fn store(&self) -> anyhow::Result<Store> {
        let address = self.address()?;
        match Store::open(&address, &self.bucket_options()) {
            Err(StoreError::NotFound { name }) => Err(ArchiveError::NotARepository { location: name }.into()),
            opened => opened.with_context(|| format!("cannot open the repository {address}")),
        }
    }

    /// Like [`Self::store`], and makes a folder where it is missing.
    pub(crate) fn new_store(&self) -> anyhow::Result<Store> {
        let address = self.address()?;
        Store::create_at(&address, &self.bucket_options())
            .with_context(|| format!("cannot create a repository in {address}"))
    }

    pub(crate) fn bucket_options(&self) -> BucketOptions {
        BucketOptions {
            google_credentials: self.key_file(),
            ..BucketOptions::from_environment()
        }
    }

    pub(crate) async fn open_repository(&self) -> anyhow::Result<Repository> {
        Ok(Repository::open(self.store()?).await?)
    }

    /// The emulator's address, `None` when it is unset or empty.
    pub(crate) fn emulator(&self) -> Option<&str> {
        self.emulator.as_deref().filter(|host_port| !host_port.is_empty())
    }

    /// The project that the user named: by the flag, else by the environment, else in the key file.
    pub(crate) fn named_project(&self) -> Option<String> {
        let from_environment = |name: &str| std::env::var(name).ok();
        self.project
            .clone()
            .or_else(|| from_environment("FIREBASE_PROJECT_ID"))
            .or_else(|| from_environment("GOOGLE_CLOUD_PROJECT"))
            .filter(|project| !project.is_empty())
            .or_else(|| self.key_file().and_then(|file| project_of_key_file(&file)))
    }

    /// The same options with another project.
    pub(crate) fn with_project(&self, project: &str) -> Self {
        Self {
            project: Some(project.to_owned()),
            ..self.clone()
        }
    }

    /// The project that the command line names, whatever the environment says.
    pub(crate) fn project_flag(&self) -> Option<&str> {
        self.project.as_deref().filter(|project| !project.is_empty())
    }

    /// The database that the user named, by the flag or the environment.
    pub(crate) fn named_database(&self) -> Option<&str> {
        self.database.as_deref().filter(|database| !database.is_empty())
    }

    /// The id of the database in its project.
    pub(crate) fn database_id(&self) -> &str {
        self.named_database().unwrap_or(DatabaseName::DEFAULT_DATABASE)
    }

    /// The database that the user named.
    pub(crate) fn database(&self) -> anyhow::Result<DatabaseName> {
        let project = self.named_project().ok_or_else(|| {
            UsageError::new(
                "which project? Give --project ID, or set FIREBASE_PROJECT_ID or GOOGLE_CLOUD_PROJECT",
            )
        })?;
        Ok(DatabaseName::new(project, self.database_id()))
    }

    /// Whether connections go to an emulator or a sandbox, where nothing is at stake.
    pub(crate) fn is_emulated(&self) -> bool {
        self.emulator().is_some()
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Firestore> {
        self.connect_to(self.database()?).await
    }

    pub(crate) async fn connect_to(&self, database: DatabaseName) -> anyhow::Result<Firestore> {
        self.connect_reading(database, None).await
    }

    /// The same, reading at most so many documents a second.
    pub(crate) async fn connect_reading(
        &self,
        database: DatabaseName,
        read_rate: Option<f64>,
    ) -> anyhow::Result<Firestore> {
        self.announce_found_credentials();
        let target = match self.emulator() {
            Some(host_port) => Target::Emulator {
                host_port: host_port.to_owned(),
            },
            None => Target::Production {
                credentials: self
                    .key_file()
                    .map_or(Credentials::ApplicationDefault, Credentials::KeyFile),
            },
        };
        let options = ConnectOptions {
            channels: self.connections.max(1),
            read_rate,
            ..ConnectOptions::new(database, target)
        };
        Ok(Firestore::connect(options).await?)
    }

    /// The key file to use: the flag or the environment, else the one in the working folder when there are no default
    /// credentials in their well-known places.
    fn key_file(&self) -> Option<PathBuf> {
        if let Some(file) = self.given_key_file() {
            return Some(file.to_owned());
        }
        let in_folder = PathBuf::from(CREDENTIALS_IN_WORKING_FOLDER);
        if self.is_emulated() || well_known_credentials_exist() || !in_folder.is_file() {
            return None;
        }
        Some(in_folder)
    }

    /// The key file that the user gave, by the flag or the environment; an empty variable is none.
    pub(crate) fn given_key_file(&self) -> Option<&Path> {
        self.credentials
            .as_deref()
            .filter(|file| !file.as_os_str().is_empty())
    }

    /// Announces credentials that were found rather than given.
    fn announce_found_credentials(&self) {
        if self.given_key_file().is_none() && self.key_file().is_some() {
            tracing::warn!("using {CREDENTIALS_IN_WORKING_FOLDER} of the working folder as credentials");
        }
    }
}

/// Where `gcloud auth application-default login` leaves its credentials.
fn well_known_credentials_exist() -> bool {
    let folder = std::env::var_os("CLOUDSDK_CONFIG")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os(if cfg!(windows) { "APPDATA" } else { "HOME" })?;
            let below = if cfg!(windows) { "gcloud" } else { ".config/gcloud" };
            Some(Path::new(&home).join(below))
        });
    folder.is_some_and(|folder| folder.join("application_default_credentials.json").is_file())
}

fn project_of_key_file(file: &Path) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Key {
        project_id: Option<String>,
    }
    let text = std::fs::read(file).ok()?;
    serde_json::from_slice::<Key>(&text).ok()?.project_id
}
