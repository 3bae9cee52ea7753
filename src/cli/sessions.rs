//! `firebank sessions`

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use clap::Args;
use comfy_table::Table;
use serde::Serialize;

use super::options::GlobalOptions;
use super::restore_session::StateArgs;
use super::{Outcome, UsageError, output};
use crate::archive::heartbeat::HEARTBEAT_EVERY;
use crate::archive::{OpenSession, ReadMode, SnapshotKind};
use crate::clock;
use crate::restore::{SharedRestore, UnfinishedRestore};

/// Signs of life that may be missed before a session counts as left.
const MISSED_SIGNS: u32 = 4;

#[derive(Args, Debug)]
pub(crate) struct SessionsCommand {
    /// Remove the record of a restore that is not to be resumed (its id or its tasks' name, or a unique prefix); what it has written stays.
    /// May be repeated. Those of backups go with `clean`
    #[arg(long, value_name = "RESTORE")]
    remove: Vec<String>,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Serialize)]
struct SessionsView {
    sessions: Vec<SessionView>,
    restores: Vec<RestoreView>,
}

/// A restore that was not finished.
#[derive(Serialize)]
struct RestoreView {
    id: String,
    snapshot: String,
    target: String,
    started_at: DateTime<Utc>,
    /// When it last recorded how far it is.
    last_sign: DateTime<Utc>,
    /// Documents that are done.
    documents: u64,
    /// What was chosen, and how it is restored.
    options: BTreeMap<String, String>,
}

impl RestoreView {
    /// One that tasks share: it has their name for it.
    fn shared(restore: &SharedRestore) -> Self {
        let mut options = restore.options();
        options.insert("--task-count".to_owned(), restore.tasks().to_string());
        Self {
            id: restore.name().to_owned(),
            snapshot: restore.snapshot().to_owned(),
            target: restore.target().to_owned(),
            started_at: restore.started_at(),
            last_sign: restore.last_sign(),
            documents: restore.counts().documents,
            options,
        }
    }

    fn new(restore: &UnfinishedRestore) -> Self {
        Self {
            id: restore.id().to_string(),
            snapshot: restore.snapshot().to_string(),
            target: restore.target().to_string(),
            started_at: restore.started_at(),
            last_sign: restore.last_sign(),
            documents: restore.counts().documents,
            options: restore.options().clone(),
        }
    }
}

#[derive(Serialize)]
struct SessionView {
    id: String,
    kind: SnapshotKind,
    project: String,
    database: String,
    selection: String,
    /// The snapshot whose layers are merged.
    merges: Option<String>,
    read: ReadMode,
    read_time: String,
    started_at: DateTime<Utc>,
    /// The last sign of life of a worker.
    last_sign: DateTime<Utc>,
    /// Whether it is recent.
    running: bool,
    finished_ranges: usize,
    ranges: usize,
}

impl SessionView {
    fn new(session: &OpenSession) -> Self {
        let plan = &session.plan;
        let silence = clock::now() - session.last_sign;
        Self {
            id: session.id.to_string(),
            kind: plan.kind,
            project: plan.database.project.clone(),
            database: plan.database.database.clone(),
            selection: plan.selection.to_string(),
            merges: plan.merges.map(|snapshot| snapshot.to_string()),
            read: plan.read,
            read_time: session.read_time.to_string(),
            started_at: plan.started_at,
            last_sign: session.last_sign,
            running: silence.to_std().unwrap_or_default() < HEARTBEAT_EVERY * MISSED_SIGNS,
            finished_ranges: session.finished_ranges,
            ranges: session.ranges,
        }
    }

    fn state(&self) -> String {
        let state = match self.running {
            true => "running".to_owned(),
            false => format!(
                "no sign of life for {}",
                output::age((clock::now() - self.last_sign).num_seconds())
            ),
        };
        match &self.merges {
            Some(snapshot) => format!("{state}; merges the layers of {snapshot}"),
            None => state,
        }
    }
}

impl SessionsCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let repository = global.open_repository().await?;
        let open = repository.open_sessions().await?;
        let sessions: Vec<SessionView> = open.iter().map(SessionView::new).collect();
        let mut restores = Vec::new();
        if let Some(records) = self.state.existing(global)? {
            let unfinished = records.unfinished().await?.into_iter();
            let shared = records.shared().await?.into_iter();
            let own = unfinished.filter(|one| one.repository() == repository.id());
            let shared = shared.filter(|one| one.repository() == Some(repository.id()));
            let all: Vec<Unfinished> = own
                .map(|one| Unfinished::Alone(Box::new(one)))
                .chain(shared.map(|one| Unfinished::Shared(Box::new(one))))
                .collect();
            let views: Vec<RestoreView> = all.iter().map(Unfinished::view).collect();
            let chosen = self.remove.iter().map(|id| choose(&views, id));
            let chosen: BTreeSet<usize> = chosen.collect::<Result<_, _>>()?;
            for (place, (restore, view)) in all.iter().zip(views).enumerate() {
                if !chosen.contains(&place) {
                    restores.push(view);
                    continue;
                }
                match restore {
                    Unfinished::Alone(restore) => records.remove(restore).await?,
                    Unfinished::Shared(restore) => records.remove_shared(restore).await?,
                }
                tracing::info!("the record of restore {} was removed", view.id);
            }
        } else if let Some(id) = self.remove.first() {
            choose(&[], id)?;
        }
        let output = global.output();
        if sessions.is_empty() && restores.is_empty() {
            output.data("No session is under way or was left.")?;
        }
        if !sessions.is_empty() {
            let header = [
                "session",
                "started",
                "as of",
                "database",
                "selection",
                "ranges",
                "state",
            ];
            let mut table = output::table(&header, &[5]);
            for session in &sessions {
                table.add_row([
                    session.id.clone(),
                    output::time(session.started_at),
                    session.read_time.clone(),
                    output::printable(&format!("{}/{}", session.project, session.database)),
                    output::printable(&session.selection),
                    format!("{} of {}", session.finished_ranges, session.ranges),
                    session.state(),
                ]);
            }
            output.table(&table)?;
        }
        if !restores.is_empty() {
            output.table(&restores_table(&restores))?;
        }
        output.json(&SessionsView { sessions, restores })?;
        Ok(Outcome::Done)
    }
}

/// A restore whose record is there.
enum Unfinished {
    Alone(Box<UnfinishedRestore>),
    Shared(Box<SharedRestore>),
}

impl Unfinished {
    fn view(&self) -> RestoreView {
        match self {
            Self::Alone(restore) => RestoreView::new(restore),
            Self::Shared(restore) => RestoreView::shared(restore),
        }
    }
}

/// Which restore is meant.
fn choose(unfinished: &[RestoreView], id: &str) -> anyhow::Result<usize> {
    if let Some(place) = unfinished.iter().position(|restore| restore.id == id) {
        return Ok(place);
    }
    let mut matching = unfinished
        .iter()
        .enumerate()
        .filter(|(_, restore)| !id.is_empty() && restore.id.starts_with(id));
    match (matching.next(), matching.next()) {
        (Some((place, _)), None) => Ok(place),
        (Some(_), Some(_)) => Err(UsageError::new(format!(
            "--remove {id}: more than one restore's id begins like this"
        ))),
        (None, _) => Err(UsageError::new(format!(
            "--remove {id}: there is no such unfinished restore; `firebank sessions` lists them"
        ))),
    }
}

fn restores_table(restores: &[RestoreView]) -> Table {
    let header = [
        "restore",
        "started",
        "snapshot",
        "into",
        "documents",
        "last recorded",
        "options",
    ];
    let mut table = output::table(&header, &[4]);
    for restore in restores {
        let options = restore
            .options
            .iter()
            .map(|(name, value)| format!("{name} {value}"));
        let age = (clock::now() - restore.last_sign).num_seconds();
        table.add_row([
            restore.id.clone(),
            output::time(restore.started_at),
            restore.snapshot.clone(),
            output::printable(&restore.target),
            output::number(restore.documents),
            format!("{} ago", output::age(age)),
            output::printable(&options.collect::<Vec<_>>().join(" ")),
        ]);
    }
    table
}
