//! Where a restore records how far it is, and which one to go on with.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::options::GlobalOptions;
use super::{UsageError, output};
use crate::archive::{RepositoryId, SnapshotId};
use crate::document::DatabaseName;
use crate::restore::{RestoreSessions, SessionOptions, UnfinishedRestore};
use crate::store::{Address, AddressError, Store};

#[derive(Args, Debug)]
pub(super) struct SessionArgs {
    /// Go on with a restore of the snapshot into the database that was not finished; begin a new one if there is none
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) resume: bool,
    /// Where the restore records how far it is, so that it can be resumed: a folder or a bucket's address [default: the folder
    /// `firebank` among the user's state files]
    #[arg(long, value_name = "ADDRESS", env = "FIREBANK_STATE", hide_env_values = true)]
    state: Option<String>,
    /// Restore what is intact around damage, and list what is not
    #[arg(long)]
    pub(super) skip_damaged: bool,
}

impl SessionArgs {
    fn sessions(&self, global: &GlobalOptions) -> anyhow::Result<RestoreSessions> {
        let address = match self.state.as_deref().filter(|state| !state.is_empty()) {
            Some(state) => state
                .parse()
                .map_err(|error: AddressError| UsageError::new(format!("--state: {error}")))?,
            None => Address::Folder(state_folder()),
        };
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
        snapshot: SnapshotId,
        is_latest: bool,
        target: &DatabaseName,
    ) -> anyhow::Result<SessionOptions> {
        let sessions = self.sessions(global)?;
        let mut unfinished = sessions.unfinished().await?;
        unfinished.retain(|one| one.repository() == repository && one.target() == target);
        let same = unfinished.iter().position(|one| one.snapshot() == snapshot);
        let found = match same {
            Some(place) => Some(unfinished.swap_remove(place)),
            None if is_latest && self.resume => unfinished.into_iter().next(),
            None => None,
        };
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
        Ok(SessionOptions {
            resume,
            ..SessionOptions::new(sessions)
        })
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
