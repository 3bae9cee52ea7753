//! `firebank sessions`

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::options::GlobalOptions;
use super::{Outcome, output};
use crate::archive::heartbeat::HEARTBEAT_EVERY;
use crate::archive::{OpenSession, ReadMode, SnapshotKind};
use crate::clock;

/// Signs of life that may be missed before a session counts as left.
const MISSED_SIGNS: u32 = 4;

#[derive(Args, Debug)]
pub(crate) struct SessionsCommand {}

#[derive(Serialize)]
struct SessionsView {
    sessions: Vec<SessionView>,
}

#[derive(Serialize)]
struct SessionView {
    id: String,
    kind: SnapshotKind,
    project: String,
    database: String,
    selection: String,
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
            read: plan.read,
            read_time: session.read_time.to_string(),
            started_at: plan.started_at,
            last_sign: session.last_sign,
            running: silence.to_std().unwrap_or_default() < HEARTBEAT_EVERY * MISSED_SIGNS,
            finished_ranges: session.finished_ranges,
            ranges: session.ranges,
        }
    }
}

impl SessionsCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        let repository = global.open_repository().await?;
        let open = repository.open_sessions().await?;
        let sessions: Vec<SessionView> = open.iter().map(SessionView::new).collect();
        let output = global.output();
        if sessions.is_empty() {
            output.data("No session is under way or was left.")?;
        } else {
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
                    match session.running {
                        true => "running".to_owned(),
                        false => format!(
                            "no sign of life for {}",
                            output::age((clock::now() - session.last_sign).num_seconds())
                        ),
                    },
                ]);
            }
            output.table(&table)?;
        }
        output.json(&SessionsView { sessions })?;
        Ok(Outcome::Done)
    }
}
