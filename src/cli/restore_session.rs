//! Where a restore records how far it is, and which one to go on with.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::options::GlobalOptions;
use super::task_args::SharedArgs;
use super::{UsageError, output};
use crate::archive::{RepositoryId, SnapshotId};
use crate::document::DatabaseName;
use crate::restore::{RestoreOptions, RestoreSessions, SessionOptions, UnfinishedRestore};
use crate::store::{Address, AddressError, Store, StoreError};
use crate::task::SharedWork;

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
    shared: SharedArgs,
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

    /// The place, where one was given.
    pub(super) fn chosen(&self, global: &GlobalOptions) -> anyhow::Result<Option<Store>> {
        match self.given() {
            Some(_) => self.store(global).map(Some),
            None => Ok(None),
        }
    }

    fn store(&self, global: &GlobalOptions) -> anyhow::Result<Store> {
        let address = self.address()?;
        Store::create_at(&address, &global.bucket_options())
            .with_context(|| format!("cannot keep state in {address}: name another place with --state"))
    }

    /// Says no where a record would not be kept. The variable may be meant for other commands.
    pub(super) fn refuse(&self, why: &str) -> anyhow::Result<()> {
        let variable = std::env::var(STATE_VARIABLE).ok();
        match self.given() {
            Some(state) if variable.as_deref() != Some(state) => {
                Err(UsageError::new(format!("--state {state}: {why}")))
            }
            _ => Ok(()),
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
    /// Says no where a record would not be kept.
    pub(super) fn refuse_state(&self, why: &str) -> anyhow::Result<()> {
        self.state.refuse(why)
    }

    /// The task whose share is restored, and how it shares with the others. Tasks go on with what they find of their own and what
    /// others have left, so they need a name for it, and a place for their state that outlives them.
    pub(super) fn shared(&self) -> anyhow::Result<Option<SharedWork>> {
        let (task, shared) = self.shared.shared()?;
        if task.is_some() && self.state.given().is_none() {
            return Err(UsageError::new(
                "tasks that share a restore keep their state where all of them find it: name a bucket with --state",
            ));
        }
        if task.is_some() && shared.is_none() {
            return Err(UsageError::new(
                "tasks share a session: give all of them the same --session NAME, a new one for each restore",
            ));
        }
        Ok(shared)
    }

    /// Whether the command line says which task this is.
    pub(super) fn names_task(&self) -> bool {
        self.shared.is_given()
    }

    /// How a restore is recorded that tasks share.
    pub(super) fn shared_options(
        &self,
        global: &GlobalOptions,
        shared: SharedWork,
    ) -> anyhow::Result<SessionOptions> {
        Ok(SessionOptions {
            shared: Some(shared),
            ..SessionOptions::new(self.sessions(global)?)
        })
    }

    fn sessions(&self, global: &GlobalOptions) -> anyhow::Result<RestoreSessions> {
        self.state.store(global).map(RestoreSessions::new)
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
        unfinished.retain(|one| one.task().is_none());
        let of_snapshot = |one: &UnfinishedRestore| one.snapshot() == snapshot;
        unfinished.retain(|one| of_snapshot(one) || is_latest && self.resume);
        // The newest that is the same in most: one that only differs in its options is told of, and not taken.
        unfinished.sort_by_key(|one| std::cmp::Reverse((one.has_options(restore), of_snapshot(one))));
        let found = unfinished.into_iter().next();
        let resume = match (self.resume, found) {
            (true, Some(unfinished)) => {
                tracing::info!("going on with restore {}", unfinished.id());
                Some(unfinished)
            }
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
