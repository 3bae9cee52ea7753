//! Where a restore records how far it is, and which one to go on with.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::options::GlobalOptions;
use super::task_args::TaskArgs;
use super::{UsageError, output};
use crate::archive::{RepositoryId, SnapshotId};
use crate::document::DatabaseName;
use crate::restore::{RestoreOptions, RestoreSessions, SessionOptions, UnfinishedRestore};
use crate::store::{Address, AddressError, Store, StoreError};
use crate::task::Task;

const STATE_VARIABLE: &str = "FIREBANK_STATE";

/// Where the records of restores are.
#[derive(Args, Debug)]
pub(super) struct StateArgs {
    /// Where restores record how far they are, so that they can be resumed: a folder or a bucket's address [default: the folder
    /// `firebank` among the user's state files]
    #[arg(long, value_name = "ADDRESS", env = STATE_VARIABLE, hide_env_values = true)]
    state: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct SessionArgs {
    /// Go on with a restore of the snapshot into the database that was not finished; begin a new one if there is none
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) resume: bool,
    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    task: TaskArgs,
    /// Restore what is intact around damage, and list what is not
    #[arg(long)]
    pub(super) skip_damaged: bool,
}

impl StateArgs {
    /// The address that was given.
    fn given(&self) -> Option<&str> {
        self.state.as_deref().filter(|state| !state.is_empty())
    }

    fn address(&self) -> anyhow::Result<Address> {
        match self.given() {
            Some(state) => Ok(state
                .parse()
                .map_err(|error: AddressError| UsageError::new(format!("--state: {error}")))?),
            None => Ok(Address::Folder(state_folder())),
        }
    }

    /// Those that are there; `None` where there never were any.
    pub(super) fn existing(&self, global: &GlobalOptions) -> anyhow::Result<Option<RestoreSessions>> {
        let address = self.address()?;
        match Store::open(&address, &global.bucket_options()) {
            Ok(store) => Ok(Some(RestoreSessions::new(store))),
            Err(StoreError::NotFound { .. }) if self.given().is_none() => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read the state of restores in {address}"))
            }
        }
    }
}

impl SessionArgs {
    /// Says no where a record would not be kept. The variable may be meant for other commands.
    pub(super) fn refuse_state(&self, why: &str) -> anyhow::Result<()> {
        let variable = std::env::var(STATE_VARIABLE).ok();
        match self.state.given() {
            Some(state) if variable.as_deref() != Some(state) => {
                Err(UsageError::new(format!("--state {state}: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// The task whose share is restored. Tasks go on with what an earlier process of theirs has left, so they need a place for
    /// their state that outlives them.
    pub(super) fn task(&self) -> anyhow::Result<Option<Task>> {
        // A job of one task shares with nobody.
        let task = self.task.task()?.filter(|task| task.count() > 1);
        if task.is_some() && self.state.given().is_none() {
            return Err(UsageError::new(
                "tasks that share a restore keep their state where one that is started again finds it: name a bucket with --state",
            ));
        }
        Ok(task)
    }

    /// Whether the command line says which task this is.
    pub(super) fn names_task(&self) -> bool {
        self.task.is_given()
    }

    fn sessions(&self, global: &GlobalOptions) -> anyhow::Result<RestoreSessions> {
        let address = self.state.address()?;
        let store = Store::create_at(&address, &global.bucket_options()).with_context(|| {
            format!("cannot keep the state of a restore in {address}: name another place with --state")
        })?;
        Ok(RestoreSessions::new(store))
    }

    /// How the restore is recorded, with the one to go on with where that is asked for. `latest` goes on with whichever
    /// snapshot was restored into the target.
    pub(super) async fn options(
        &self,
        global: &GlobalOptions,
        repository: RepositoryId,
        (snapshot, is_latest): (SnapshotId, bool),
        target: &DatabaseName,
        restore: &RestoreOptions,
    ) -> anyhow::Result<Option<SessionOptions>> {
        let found = async {
            let sessions = self.sessions(global)?;
            let unfinished = sessions.unfinished().await?;
            Ok::<_, anyhow::Error>((sessions, unfinished))
        };
        let (sessions, mut unfinished) = match found.await {
            Ok(found) => found,
            // Nobody asked for it, and a restore must not fail for want of a home.
            Err(error) if !self.resume && self.state.given().is_none() => {
                tracing::warn!("should this restore be stopped, it cannot be resumed: {error:#}");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        unfinished.retain(|one| one.repository() == repository && one.target() == target);
        if let Some(task) = restore.task {
            check_count(&unfinished, snapshot, task)?;
        }
        let own = restore.task.map(|task| (task.index(), task.count()));
        unfinished.retain(|one| one.task() == own);
        let of_snapshot = |one: &UnfinishedRestore| one.snapshot() == snapshot;
        let resume = self.resume || own.is_some();
        unfinished.retain(|one| of_snapshot(one) || is_latest && self.resume);
        // The newest that is the same in most: one that only differs in its options is told of, and not taken.
        unfinished.sort_by_key(|one| std::cmp::Reverse((one.has_options(restore), of_snapshot(one))));
        let found = unfinished.into_iter().next();
        let resume = match (resume, found) {
            (true, Some(unfinished)) => {
                tracing::info!("going on with restore {}", unfinished.id());
                Some(unfinished)
            }
            (true, None) if !self.resume => None,
            (true, None) => {
                tracing::warn!(
                    "there is no unfinished restore into {target} to go on with: beginning a new one"
                );
                None
            }
            (false, Some(unfinished)) => {
                tell_of(&unfinished, &sessions);
                None
            }
            (false, None) => None,
        };
        Ok(Some(SessionOptions {
            resume,
            ..SessionOptions::new(sessions)
        }))
    }
}

/// Tasks must agree upon how many they are: shares of different counts leave gaps between them.
fn check_count(unfinished: &[UnfinishedRestore], snapshot: SnapshotId, task: Task) -> anyhow::Result<()> {
    let counts = unfinished
        .iter()
        .filter(|one| one.snapshot() == snapshot)
        .filter_map(UnfinishedRestore::task);
    match counts
        .map(|(_, count)| count)
        .find(|&count| count != task.count())
    {
        Some(count) => Err(UsageError::new(format!(
            "a restore of snapshot {snapshot} into this database is shared by {count} tasks, and this is {task}: give all of them the \
             same --task-count (`firebank sessions --remove` removes what nobody is to go on with)"
        ))),
        None => Ok(()),
    }
}

fn tell_of(unfinished: &UnfinishedRestore, sessions: &RestoreSessions) {
    tracing::warn!(
        "a restore of this snapshot into {} was begun at {} and is not finished ({} are done, its state is in {}): --resume goes \
         on with it, this is a new one",
        unfinished.target(),
        output::time(unfinished.started_at()),
        output::count(unfinished.counts().documents, "document"),
        sessions.location(),
    );
}

/// Where state is kept that is worth keeping and no configuration, as the XDG Base Directory Specification has it; in the working
/// folder where there is no home.
fn state_folder() -> PathBuf {
    let folder = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|folder| folder.is_absolute())
    };
    let state = match cfg!(windows) {
        true => folder("LOCALAPPDATA"),
        false => {
            folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local").join("state")))
        }
    };
    state.map_or_else(|| PathBuf::from(".firebank"), |state| state.join("firebank"))
}
