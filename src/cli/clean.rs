//! `firebank clean`

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::options::GlobalOptions;
use super::snapshot_filter::SnapshotFilterArgs;
use super::{Outcome, Refused, UsageError, durations, output};
use crate::archive::{ArchiveError, Repository, SnapshotId, SweepOptions};
use crate::prune::{
    Choice, Keep, Policy, PruneError, PrunePlan, PruneStats, Within, Zone, estimate, plan, prune,
};

/// What is kept when nothing is said: the newest so many of each group, as the original tool did.
const KEPT_BY_DEFAULT: u32 = 10;

#[derive(Args, Debug)]
pub(crate) struct CleanCommand {
    /// Give up exactly these snapshots (ids or unique prefixes) instead of choosing by rules
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    #[command(flatten)]
    rules: Rules,
    #[command(flatten)]
    filter: SnapshotFilterArgs,
    /// Forget nothing: only delete what no snapshot, running backup or reader needs
    #[arg(long)]
    sweep_only: bool,
    /// Show what would happen to every backup and why, and how many bytes it would free; change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Give up sessions and readers without a sign of life for so long
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = durations::parse)]
    expire_after: Duration,
}

/// The rules of a policy. Each counts on its own; what any of them keeps is kept.
#[derive(Args, Debug)]
#[command(next_help_heading = "Rules")]
struct Rules {
    /// Keep the newest N of each group (or `unlimited`)
    #[arg(long, value_name = "N")]
    keep_last: Option<Keep>,
    /// Keep the newest of each of the newest N hours that have one
    #[arg(long, value_name = "N")]
    keep_hourly: Option<Keep>,
    /// Keep the newest of each of the newest N days that have one
    #[arg(long, value_name = "N")]
    keep_daily: Option<Keep>,
    /// Keep the newest of each of the newest N weeks that have one
    #[arg(long, value_name = "N")]
    keep_weekly: Option<Keep>,
    /// Keep the newest of each of the newest N months that have one
    #[arg(long, value_name = "N")]
    keep_monthly: Option<Keep>,
    /// Keep the newest of each of the newest N years that have one
    #[arg(long, value_name = "N")]
    keep_yearly: Option<Keep>,
    /// Keep all within this time before the newest one, such as 14d or 1y5m7d2h
    #[arg(long, value_name = "DURATION")]
    keep_within: Option<Within>,
    /// Keep the newest of each hour within this time before the newest one
    #[arg(long, value_name = "DURATION")]
    keep_within_hourly: Option<Within>,
    /// Keep the newest of each day within this time before the newest one
    #[arg(long, value_name = "DURATION")]
    keep_within_daily: Option<Within>,
    /// Keep the newest of each week within this time before the newest one
    #[arg(long, value_name = "DURATION")]
    keep_within_weekly: Option<Within>,
    /// Keep the newest of each month within this time before the newest one
    #[arg(long, value_name = "DURATION")]
    keep_within_monthly: Option<Within>,
    /// Keep the newest of each year within this time before the newest one
    #[arg(long, value_name = "DURATION")]
    keep_within_yearly: Option<Within>,
    /// Keep those with all of these tags; may be repeated
    #[arg(long, value_name = "TAG[,TAG…]")]
    keep_tag: Vec<String>,
    /// Keep the snapshot with this id, or those whose ids begin so; may be repeated
    #[arg(long, value_name = "ID")]
    keep_id: Vec<String>,
    /// Where days, weeks and months begin: a name such as Europe/Berlin, or `local`
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    timezone: Zone,
}

impl Rules {
    /// The policy; `None` when no rule is given.
    fn policy(&self) -> anyhow::Result<Option<Policy>> {
        let counts = [
            self.keep_last,
            self.keep_hourly,
            self.keep_daily,
            self.keep_weekly,
            self.keep_monthly,
            self.keep_yearly,
        ];
        if self.keep_id.iter().any(String::is_empty) {
            return Err(UsageError::new("--keep-id wants a snapshot's id"));
        }
        let policy = Policy {
            last: self.keep_last.unwrap_or_default(),
            hourly: self.keep_hourly.unwrap_or_default(),
            daily: self.keep_daily.unwrap_or_default(),
            weekly: self.keep_weekly.unwrap_or_default(),
            monthly: self.keep_monthly.unwrap_or_default(),
            yearly: self.keep_yearly.unwrap_or_default(),
            within: self.keep_within,
            within_hourly: self.keep_within_hourly,
            within_daily: self.keep_within_daily,
            within_weekly: self.keep_within_weekly,
            within_monthly: self.keep_within_monthly,
            within_yearly: self.keep_within_yearly,
            tags: super::snapshot_filter::tag_lists(&self.keep_tag),
            ids: self.keep_id.iter().map(|id| id.to_ascii_lowercase()).collect(),
            zone: self.timezone,
        };
        if !policy.is_empty() {
            return Ok(Some(policy));
        }
        if counts.iter().any(Option::is_some) {
            return Err(UsageError::new(PruneError::EmptyPolicy.to_string()));
        }
        Ok(None)
    }
}

impl CleanCommand {
    pub(crate) async fn run(self, global: &GlobalOptions) -> anyhow::Result<Outcome> {
        if self.expire_after < Duration::from_secs(3600) {
            return Err(UsageError::new(
                "--expire-after wants at least 1h: sessions and readers that live show it every few minutes",
            ));
        }
        let rules = self.rules.policy()?;
        let asks = self.asks(rules.is_some())?;
        let repository = open(global).await?;
        let choice = match rules {
            Some(policy) => Choice::Policy(policy),
            None if self.sweep_only => Choice::Nothing,
            None if !self.snapshots.is_empty() => Choice::Snapshots(self.named(repository.as_ref()).await?),
            None => Choice::Policy(Policy::last(KEPT_BY_DEFAULT)),
        };
        let filter = self.filter.prune_filter(global);
        let folder = global.repository_folder()?;
        let plan = plan(repository.as_ref(), folder, &choice, &filter).await?;
        let output = global.output();
        show(output, &plan)?;
        let options = SweepOptions {
            expiry: self.expire_after,
            ..SweepOptions::default()
        };
        if self.dry_run {
            let stats = estimate(repository.as_ref(), &plan, &options).await?;
            return report(output, &plan, &stats, true);
        }
        if asks && plan.removes_anything() {
            ask(&plan)?;
        }
        let stats = prune(repository.as_ref(), &plan, &options).await?;
        if let Some(repository) = &repository {
            repository.remove_old_verifications().await?;
        }
        report(output, &plan, &stats, false)
    }

    /// Whether somebody must say yes before anything is removed.
    fn asks(&self, has_rules: bool) -> anyhow::Result<bool> {
        let ways = [has_rules, self.sweep_only, !self.snapshots.is_empty()];
        if ways.iter().filter(|way| **way).count() > 1 {
            return Err(UsageError::new(
                "snapshots by name, --keep-… rules and --sweep-only are three ways to choose: give one of them",
            ));
        }
        if has_rules || self.sweep_only || self.yes || self.dry_run {
            return Ok(false);
        }
        if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            return Ok(true);
        }
        Err(Refused::new(match self.snapshots.is_empty() {
            true => format!(
                "without rules this keeps the last {KEPT_BY_DEFAULT} backups of each group, and there is no terminal to ask \
                 on: give --keep-… rules, or --yes if that is meant"
            ),
            false => "this gives up what is named, and there is no terminal to ask on: confirm it with --yes"
                .to_owned(),
        }))
    }

    async fn named(&self, repository: Option<&Repository>) -> anyhow::Result<Vec<SnapshotId>> {
        let Some(repository) = repository else {
            return Err(UsageError::new(
                "there is no repository here, so there are no snapshots",
            ));
        };
        let mut ids = Vec::with_capacity(self.snapshots.len());
        for wanted in &self.snapshots {
            if wanted == "latest" {
                return Err(UsageError::new(
                    "name the snapshot by its id: `latest` may be another one soon",
                ));
            }
            // A full id also names one that cannot be read.
            let full = wanted.parse::<SnapshotId>().ok();
            let id = match (repository.resolve(wanted, &Default::default()).await, full) {
                (Ok(snapshot), _) => snapshot.id,
                (Err(ArchiveError::Damaged(_)), Some(id)) => id,
                (Err(_), Some(id)) if repository.is_open_session(id).await? => id,
                (Err(error), _) => return Err(error.into()),
            };
            ids.push(id);
        }
        Ok(ids)
    }
}

/// The repository, `None` when the folder is none and may hold JSON backups.
async fn open(global: &GlobalOptions) -> anyhow::Result<Option<Repository>> {
    match global.open_repository().await {
        Ok(repository) => Ok(Some(repository)),
        Err(error) => {
            let is_none = matches!(error.downcast_ref(), Some(ArchiveError::NotARepository { .. }));
            let files = match global.repository_folder()? {
                Some(folder) if is_none => crate::json::list_folder(&folder)?,
                _ => Vec::new(),
            };
            match !files.is_empty() {
                true => Ok(None),
                false => Err(error),
            }
        }
    }
}

fn ask(plan: &PrunePlan) -> anyhow::Result<()> {
    let snapshots = plan.to_forget().len() as u64;
    let files = plan.files_to_delete().count() as u64;
    let what = match (snapshots, files) {
        (0, 0) => output::count(plan.sessions.len() as u64, "session"),
        (snapshots, 0) => output::count(snapshots, "snapshot"),
        (0, files) => output::count(files, "JSON backup"),
        (snapshots, files) => format!(
            "{} and {}",
            output::count(snapshots, "snapshot"),
            output::count(files, "JSON backup")
        ),
    };
    let mut terminal = std::io::stderr();
    write!(terminal, "Remove {what}? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Refused::new("nobody said yes: nothing was removed")),
    }
}

fn show(output: output::Output, plan: &PrunePlan) -> anyhow::Result<()> {
    for (group, verdicts) in &plan.groups {
        output.line(format!(
            "{}/{}, {} ({}):",
            output::printable(&group.project),
            output::printable(&group.database),
            output::printable(&group.selection),
            group.kind
        ))?;
        let mut table = output::table(&["", "snapshot", "read time", "tags", "reasons"], &[]);
        for verdict in verdicts {
            table.add_row([
                fate(verdict.keep).to_owned(),
                verdict.snapshot.id.to_string(),
                verdict.snapshot.read_time.to_string(),
                output::printable(&verdict.snapshot.tags.join(",")),
                output::printable(&verdict.reasons.join(", ")),
            ]);
        }
        for line in table.lines() {
            output.line(line.trim_end())?;
        }
        output.line("")?;
    }
    for id in &plan.unreadable {
        output.line(format!("{} {id}, which cannot be read", fate(false)))?;
    }
    for id in &plan.sessions {
        output.line(format!(
            "give up the session {id}, and remove what it has written"
        ))?;
    }
    for group in &plan.json {
        output.line(format!(
            "JSON backups of {}, {}:",
            output::printable(group.key.project.as_deref().unwrap_or("an unknown project")),
            output::printable(group.key.collection.as_deref().unwrap_or("unreadable"))
        ))?;
        let mut table = output::table(&["", "file", "taken", "size", "reasons"], &[3]);
        for file in &group.files {
            table.add_row([
                fate(file.keep).to_owned(),
                output::printable(&name_of(&file.file)),
                file.time.map_or_else(|| "?".to_owned(), output::time),
                output::bytes(file.bytes),
                output::printable(&file.reasons.join(", ")),
            ]);
        }
        for line in table.lines() {
            output.line(line.trim_end())?;
        }
        output.line("")?;
    }
    Ok(())
}

fn fate(keep: bool) -> &'static str {
    if keep { "keep" } else { "remove" }
}

fn name_of(file: &Path) -> String {
    file.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    dry_run: bool,
    groups: Vec<GroupView<'a>>,
    json_groups: Vec<JsonGroupView<'a>>,
    forgotten_snapshots: u64,
    deleted_json_files: u64,
    deleted_json_bytes: u64,
    /// What the sweep deleted, or would.
    #[serde(flatten)]
    sweep: &'a crate::archive::SweepStats,
    /// Bytes of objects and of JSON backups.
    freed_bytes: u64,
}

#[derive(Serialize)]
struct GroupView<'a> {
    #[serde(flatten)]
    group: &'a crate::prune::Group,
    snapshots: Vec<VerdictView<'a>>,
}

#[derive(Serialize)]
struct VerdictView<'a> {
    id: String,
    read_time: String,
    tags: &'a [String],
    host: Option<&'a str>,
    keep: bool,
    reasons: &'a [String],
}

#[derive(Serialize)]
struct JsonGroupView<'a> {
    #[serde(flatten)]
    group: &'a crate::prune::JsonGroupKey,
    files: Vec<FileView<'a>>,
}

#[derive(Serialize)]
struct FileView<'a> {
    file: String,
    bytes: u64,
    time: Option<String>,
    keep: bool,
    reasons: &'a [String],
}

fn report(
    output: output::Output,
    plan: &PrunePlan,
    stats: &PruneStats,
    dry_run: bool,
) -> anyhow::Result<Outcome> {
    let sweep = &stats.sweep;
    let freed = sweep.deleted_bytes + stats.json_bytes;
    let (removed, and) = match dry_run {
        true => ("Would remove", "and free"),
        false => ("Removed", "and freed"),
    };
    output.line(format!(
        "{removed} {}, {} and {} that nothing needs, {and} {}.",
        output::count(stats.forgotten, "snapshot"),
        output::count(stats.json_files, "JSON backup"),
        output::count(sweep.deleted_objects, "object"),
        output::bytes(freed),
    ))?;
    output.line(format!(
        "What stays: {}, {}, {}.",
        output::count(sweep.snapshots, "snapshot"),
        output::count(sweep.kept_objects, "object"),
        output::bytes(sweep.kept_bytes),
    ))?;
    if sweep.aborted_sessions + sweep.expired_leases > 0 {
        output.line(format!(
            "Given up without a sign of life: {}, {}.",
            output::count(sweep.aborted_sessions, "session"),
            output::count(sweep.expired_leases, "reader"),
        ))?;
    }
    output.json(&Summary {
        dry_run,
        groups: plan
            .groups
            .iter()
            .map(|(group, verdicts)| GroupView {
                group,
                snapshots: verdicts
                    .iter()
                    .map(|verdict| VerdictView {
                        id: verdict.snapshot.id.to_string(),
                        read_time: verdict.snapshot.read_time.to_string(),
                        tags: &verdict.snapshot.tags,
                        host: verdict.snapshot.host.as_deref(),
                        keep: verdict.keep,
                        reasons: &verdict.reasons,
                    })
                    .collect(),
            })
            .collect(),
        json_groups: plan
            .json
            .iter()
            .map(|group| JsonGroupView {
                group: &group.key,
                files: group
                    .files
                    .iter()
                    .map(|file| FileView {
                        file: name_of(&file.file),
                        bytes: file.bytes,
                        time: file.time.map(|time| time.to_rfc3339()),
                        keep: file.keep,
                        reasons: &file.reasons,
                    })
                    .collect(),
            })
            .collect(),
        forgotten_snapshots: stats.forgotten,
        deleted_json_files: stats.json_files,
        deleted_json_bytes: stats.json_bytes,
        sweep,
        freed_bytes: freed,
    })?;
    Ok(Outcome::Done)
}
