//! `firebank doctor`

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::options::GlobalOptions;
use super::{Outcome, output};
use crate::backup::{ChangeField, check_field};
use crate::firestore::{Firestore, Permission, PermissionCheck, Purpose};

#[derive(Args, Debug)]
pub(crate) struct DoctorCommand {
    /// What the account is for: one that only backs up need not be allowed to write
    #[arg(long = "for", value_enum, value_name = "PURPOSE", default_value_t = AccountPurpose::Everything)]
    purpose: AccountPurpose,
    /// Also look whether backups with this `--read changed:FIELD` can ask the field of every collection group, and name the indexes
    /// that are missing
    #[arg(long, value_name = "changed:FIELD", value_parser = ReadField::parse)]
    read: Option<ReadField>,
}

/// The field that `backup --read changed:FIELD` asks.
#[derive(Clone, Debug)]
struct ReadField(Vec<String>);

impl ReadField {
    fn parse(text: &str) -> Result<Self, String> {
        super::backup::changed_field(text).map(Self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AccountPurpose {
    /// To back up and to restore
    Everything,
    /// To back up
    Backup,
    /// To restore and to import
    Restore,
}

impl AccountPurpose {
    fn needs(self, permission: &PermissionCheck) -> bool {
        match self {
            Self::Everything => true,
            Self::Backup => permission.purpose != Purpose::Writing,
            Self::Restore => permission.purpose != Purpose::Reading,
        }
    }
}

#[derive(Serialize)]
struct Diagnosis {
    healthy: bool,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    name: String,
    state: State,
    detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    Problem,
    Unknown,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Problem => "PROBLEM",
            Self::Unknown => "unknown",
        }
    }
}

impl DoctorCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let mut checks = Vec::new();
        check_repository(global, &mut checks).await?;
        check_database(global, self.purpose, self.read, &mut checks).await;
        let healthy = checks.iter().all(|check| check.state != State::Problem);
        let output = global.output();
        let mut table = output::table(&["check", "state", "detail"], &[]);
        for check in &checks {
            table.add_row([
                output::printable(&check.name),
                check.state.word().to_owned(),
                output::printable(&check.detail),
            ]);
        }
        output.table(&table)?;
        output.json(&Diagnosis { healthy, checks })?;
        Ok(if healthy {
            Outcome::Done
        } else {
            Outcome::NeedsLook
        })
    }
}

fn push(checks: &mut Vec<Check>, name: impl Into<String>, state: State, detail: impl Into<String>) {
    checks.push(Check {
        name: name.into(),
        state,
        detail: detail.into(),
    });
}

async fn check_repository(global: &GlobalOptions, checks: &mut Vec<Check>) -> anyhow::Result<()> {
    let name = "repository";
    if let Some(path) = global.repository_folder()?.filter(|path| !path.is_dir()) {
        push(
            checks,
            name,
            State::Problem,
            format!("there is no folder {}: `firebank init` makes one", path.display()),
        );
        return Ok(());
    }
    let repository = match global.open_repository().await {
        Ok(repository) => repository,
        Err(error) => {
            push(checks, name, State::Problem, format!("{error:#}"));
            return Ok(());
        }
    };
    match repository.snapshots().await {
        Ok(listing) if listing.unreadable.is_empty() => {
            let detail = format!(
                "{} in {}",
                output::count(listing.snapshots.len() as u64, "snapshot"),
                repository.store().location()
            );
            push(checks, name, State::Ok, detail);
        }
        Ok(listing) => {
            let detail = format!(
                "{} cannot be read: `firebank verify` tells more",
                output::count(listing.unreadable.len() as u64, "snapshot")
            );
            push(checks, name, State::Problem, detail);
        }
        Err(error) => push(checks, name, State::Problem, error.to_string()),
    }
    match repository.store().check_create_only().await {
        Ok(()) => push(
            checks,
            "repository writes",
            State::Ok,
            "refuses a second object of one name, lists what it wrote",
        ),
        Err(error) => push(checks, "repository writes", State::Problem, error.to_string()),
    }
    Ok(())
}

async fn check_database(
    global: &GlobalOptions,
    purpose: AccountPurpose,
    read: Option<ReadField>,
    checks: &mut Vec<Check>,
) {
    let connection = match global.connect().await {
        Ok(connection) => connection,
        Err(error) => return push(checks, "connection", State::Problem, format!("{error:#}")),
    };
    let name = connection.database().to_string();
    match connection.current_read_time().await {
        Ok(time) => push(
            checks,
            "connection",
            State::Ok,
            format!("{name} answers, and says it is {time}"),
        ),
        Err(error) => push(checks, "connection", State::Problem, error.to_string()),
    }
    check_permissions(&connection, purpose, checks).await;
    if let Some(ReadField(field)) = read {
        check_changed(global, &connection, field, checks).await;
    }
}

/// Whether a field can be asked which documents have changed.
async fn check_changed(
    global: &GlobalOptions,
    connection: &Firestore,
    field: Vec<String>,
    checks: &mut Vec<Check>,
) {
    let field = ChangeField {
        field,
        full_scan_every: Duration::MAX,
    };
    let name = format!("changed:{}", field.path());
    // Without a repository there are the root collections.
    let snapshots = match global.open_repository().await {
        Ok(repository) => repository.snapshots().await.unwrap_or_default().snapshots,
        Err(_) => Vec::new(),
    };
    match check_field(connection, &field, &snapshots).await {
        Err(error) => push(checks, name, State::Unknown, error.to_string()),
        Ok(groups) => {
            for group in groups {
                let (state, detail) = match group.refusal {
                    None => (State::Ok, "its index is there, or none is needed".to_owned()),
                    Some(error) => (
                        State::Problem,
                        format!("{error}; if its index is missing: {}", group.index_command),
                    ),
                };
                push(
                    checks,
                    format!("{name} of {}", group.collection_group),
                    state,
                    detail,
                );
            }
        }
    }
}

async fn check_permissions(connection: &Firestore, purpose: AccountPurpose, checks: &mut Vec<Check>) {
    for permission in connection.check_permissions().await {
        if !purpose.needs(&permission) {
            continue;
        }
        let (state, detail) = match permission.result {
            Permission::Granted => (State::Ok, permission.needed_for.to_owned()),
            Permission::Missing => (
                State::Problem,
                format!("missing; needed for {}", permission.needed_for),
            ),
            Permission::Unknown(reason) => (State::Unknown, reason),
        };
        push(checks, permission.permission, state, detail);
    }
}
