//! Retention: decides by a policy which backups go, gives their snapshots up, and deletes what nothing needs any more.
//!
//! Plan, then execute: a dry run is the plan, printed. The plan is made from one listing; snapshots that are taken meanwhile
//! are not in it and stay. What is safe beside other processes is the archive's matter: see
//! [`sweep`](fn@crate::archive::sweep).

mod json_files;
pub mod retention;
pub mod timezone;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use chrono::{DateTime, Utc};

use crate::archive::session::abort;
use crate::archive::{
    ArchiveError, Decision, Repository, SessionId, Snapshot, SnapshotId, SnapshotKind, SnapshotListing,
    SweepOptions, SweepStats, plan_sweep, sweep,
};
use crate::clock;
use crate::json::JsonError;
use crate::store::StoreError;
pub use json_files::{JsonFile, JsonGroup, JsonGroupKey, plan_json};
pub use retention::{Candidate, Keep, Policy, Within};
pub use timezone::Zone;

/// Which snapshots and files are looked at; all others stay untouched.
#[derive(Clone, Debug, Default)]
pub struct PruneFilter {
    /// Of this project.
    pub project: Option<String>,
    /// Of databases with this id.
    pub database: Option<String>,
    /// With all tags of one of these lists.
    pub tags: Vec<Vec<String>>,
    /// Of one of these machines.
    pub hosts: Vec<String>,
}

impl PruneFilter {
    /// Whether the snapshot is looked at.
    pub fn accepts(&self, snapshot: &Snapshot) -> bool {
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.project, &snapshot.database.project)
            && is(&self.database, &snapshot.database.database)
            && (self.tags.is_empty() || self.tags.iter().any(|tags| snapshot.has_tags(tags)))
            && (self.hosts.is_empty()
                || snapshot
                    .host
                    .as_ref()
                    .is_some_and(|host| self.hosts.contains(host)))
    }
}

/// What decides which snapshots go.
#[derive(Clone, Debug)]
pub enum Choice {
    /// A policy, group by group.
    Policy(Policy),
    /// Exactly these, whatever any rule would say; sessions that are not decided as well.
    Snapshots(Vec<SnapshotId>),
    /// None: only what nothing needs is deleted.
    Nothing,
}

/// What snapshots must share to be counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Group {
    /// The project.
    pub project: String,
    /// The database in it.
    pub database: String,
    /// Which documents, in words.
    pub selection: String,
    /// `backup` or `before_images`.
    pub kind: &'static str,
}

impl Group {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            project: snapshot.database.project.clone(),
            database: snapshot.database.database.clone(),
            selection: snapshot.selection.to_string(),
            kind: match snapshot.kind {
                SnapshotKind::Backup => "backup",
                SnapshotKind::BeforeImages => "before_images",
            },
        }
    }
}

/// A snapshot and what becomes of it.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Whether it stays.
    pub keep: bool,
    /// Why.
    pub reasons: Vec<String>,
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct PrunePlan {
    /// Every snapshot that was looked at, newest first within its group.
    pub groups: Vec<(Group, Vec<Verdict>)>,
    /// Snapshots to give up that cannot be read.
    pub unreadable: Vec<SnapshotId>,
    /// Sessions under way, or left, to give up.
    pub sessions: Vec<SessionId>,
    /// Every JSON backup that was looked at.
    pub json: Vec<JsonGroup>,
    /// Summaries of JSON backups of which no file will be left.
    pub summaries: Vec<PathBuf>,
}

impl PrunePlan {
    /// The snapshots to give up, each with the reason.
    pub fn to_forget(&self) -> Vec<(SnapshotId, String)> {
        self.groups
            .iter()
            .flat_map(|(_, verdicts)| verdicts)
            .filter(|verdict| !verdict.keep)
            .map(|verdict| (verdict.snapshot.id, verdict.reasons.join(", ")))
            .chain(
                self.unreadable
                    .iter()
                    .map(|id| (*id, "named, and it cannot be read".to_owned())),
            )
            .collect()
    }

    /// The JSON backups to delete.
    pub fn files_to_delete(&self) -> impl Iterator<Item = &JsonFile> {
        self.json
            .iter()
            .flat_map(|group| &group.files)
            .filter(|file| !file.keep)
    }

    /// Whether any backup goes.
    pub fn removes_anything(&self) -> bool {
        !self.to_forget().is_empty() || !self.sessions.is_empty() || self.files_to_delete().next().is_some()
    }
}

/// What was done, or would be.
#[derive(Clone, Debug, Default)]
pub struct PruneStats {
    /// Snapshots that were given up.
    pub forgotten: u64,
    /// JSON backups that were deleted, with their bytes.
    pub json_files: u64,
    /// Bytes of these.
    pub json_bytes: u64,
    /// What the sweep did.
    pub sweep: SweepStats,
}

/// Why nothing was removed, or not all.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The policy keeps nothing of what it was asked about.
    #[error(
        "this policy would keep none of {0}: nothing was removed. A policy that keeps nothing is most likely a typing error; \
         name snapshots by their ids to give them up one by one"
    )]
    KeepsNothing(String),
    /// The policy says nothing.
    #[error("the policy keeps nothing: give at least one rule with a number above 0")]
    EmptyPolicy,
    /// There is no room to write down what is given up.
    #[error(
        "there is no room to write down that {0} {noun} given up, and there was nothing that could be deleted first: no snapshot was \
         given up. Free some kilobytes on the disk, for that is all it takes, and run `clean` again",
        noun = if *.0 == 1 { "snapshot is" } else { "snapshots are" }
    )]
    NoRoom(u64),
    /// The archive failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A JSON backup could not be deleted.
    #[error(transparent)]
    Json(#[from] JsonError),
}

/// Decides what becomes of the snapshots in a listing.
///
/// The newest snapshot of a group is kept whatever the rules say; so is everything that is no backup. A snapshot that another
/// one stands in for goes, and is not counted.
///
/// # Errors
/// [`PruneError::KeepsNothing`], [`PruneError::EmptyPolicy`], and when a snapshot cannot be read that may be the newest.
pub fn plan_snapshots(
    listing: SnapshotListing,
    choice: &Choice,
    filter: &PruneFilter,
    now: DateTime<Utc>,
) -> Result<PrunePlan, PruneError> {
    let mut plan = PrunePlan::default();
    for (name, error) in listing.unreadable {
        let id = name
            .strip_prefix("snapshots/")
            .and_then(|name| name.strip_suffix(".json"))
            .and_then(|id| id.parse::<SnapshotId>().ok());
        match (id, choice) {
            // A stray file is no snapshot.
            (None, _) => {}
            (Some(id), Choice::Snapshots(named)) if named.contains(&id) => plan.unreadable.push(id),
            (Some(id), _) => {
                return Err(PruneError::Archive(ArchiveError::CannotSweep {
                    object: name,
                    source: Box::new(error),
                    advice: format!("`firebank clean {id}` gives the snapshot up when it is not to be saved"),
                }));
            }
        }
    }
    let replaced = replaced(&listing.snapshots);
    let mut groups: BTreeMap<Group, Vec<Snapshot>> = BTreeMap::new();
    for snapshot in listing.snapshots {
        if filter.accepts(&snapshot) {
            groups.entry(Group::of(&snapshot)).or_default().push(snapshot);
        }
    }
    if let Choice::Policy(policy) = choice
        && policy.is_empty()
    {
        return Err(PruneError::EmptyPolicy);
    }
    let mut kept_by_rule = false;
    for (group, snapshots) in groups {
        let verdicts = match choice {
            Choice::Policy(policy) => judge(policy, snapshots, &replaced, now, &mut kept_by_rule),
            Choice::Snapshots(named) => named_only(named, snapshots),
            Choice::Nothing => named_only(&[], snapshots),
        };
        plan.groups.push((group, verdicts));
    }
    let judged = plan.groups.iter().any(|(group, _)| group.kind == "backup");
    if matches!(choice, Choice::Policy(_)) && judged && !kept_by_rule {
        return Err(PruneError::KeepsNothing("the snapshots".to_owned()));
    }
    Ok(plan)
}

/// Snapshots that others stand in for, each with the one that does. A compaction that was stopped when it had committed, and
/// done again, leaves two that stand in for the same one: they read the same, and the one with fewer layers does for both.
fn replaced(snapshots: &[Snapshot]) -> BTreeMap<SnapshotId, SnapshotId> {
    let mut merged: Vec<(SnapshotId, &Snapshot)> = snapshots
        .iter()
        .filter_map(|snapshot| Some((snapshot.replaces?, snapshot)))
        .collect();
    merged.sort_by_key(|(_, snapshot)| (snapshot.runs.len(), snapshot.id));
    let mut replaced = BTreeMap::new();
    for (original, snapshot) in merged {
        match replaced.get(&original) {
            Some(&stands_in) => replaced.insert(snapshot.id, stands_in),
            None => replaced.insert(original, snapshot.id),
        };
    }
    replaced
}

/// One group by the rules. The snapshots come newest first.
fn judge(
    policy: &Policy,
    snapshots: Vec<Snapshot>,
    replaced: &BTreeMap<SnapshotId, SnapshotId>,
    now: DateTime<Utc>,
    kept_by_rule: &mut bool,
) -> Vec<Verdict> {
    let counted: Vec<&Snapshot> = snapshots
        .iter()
        .filter(|snapshot| snapshot.kind == SnapshotKind::Backup && !replaced.contains_key(&snapshot.id))
        .collect();
    let ids: Vec<String> = counted.iter().map(|snapshot| snapshot.id.to_string()).collect();
    let candidates: Vec<Candidate<'_>> = counted
        .iter()
        .zip(&ids)
        .map(|(snapshot, id)| Candidate {
            time: time_of(snapshot),
            tags: &snapshot.tags,
            id,
        })
        .collect();
    let reasons = policy.apply(&candidates, now);
    let mut reasons: BTreeMap<SnapshotId, Vec<String>> =
        counted.iter().map(|snapshot| snapshot.id).zip(reasons).collect();
    let newest = counted.first().map(|snapshot| snapshot.id);
    snapshots
        .into_iter()
        .map(|snapshot| {
            let mut why = reasons.remove(&snapshot.id).unwrap_or_default();
            let mut keep = !why.is_empty();
            *kept_by_rule |= keep;
            if snapshot.kind == SnapshotKind::BeforeImages {
                keep = true;
                why.push("before-images are kept while their migration is on record".to_owned());
            } else if let Some(by) = replaced.get(&snapshot.id) {
                why.push(format!("replaced by {by}"));
            } else if !keep && newest == Some(snapshot.id) {
                keep = true;
                why.push("the last of its group".to_owned());
            } else if !keep {
                why.push("no rule keeps it".to_owned());
            }
            Verdict {
                snapshot,
                keep,
                reasons: why,
            }
        })
        .collect()
}

fn named_only(named: &[SnapshotId], snapshots: Vec<Snapshot>) -> Vec<Verdict> {
    let verdict = |snapshot: Snapshot| {
        let keep = !named.contains(&snapshot.id);
        let reason = if keep { "not named" } else { "named" };
        Verdict {
            snapshot,
            keep,
            reasons: vec![reason.to_owned()],
        }
    };
    snapshots.into_iter().map(verdict).collect()
}

/// The moment that a snapshot is of, as the server told it: no machine's clock decides what is old.
fn time_of(snapshot: &Snapshot) -> DateTime<Utc> {
    snapshot
        .read_time
        .to_datetime()
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// Says what [`prune`] would delete, and deletes nothing.
pub async fn estimate(
    repository: Option<&Repository>,
    plan: &PrunePlan,
    options: &SweepOptions,
) -> Result<PruneStats, PruneError> {
    let forget: HashSet<SnapshotId> = plan.to_forget().into_iter().map(|(id, _)| id).collect();
    let mut stats = PruneStats {
        forgotten: forget.len() as u64,
        ..PruneStats::default()
    };
    if let Some(repository) = repository {
        stats.sweep = plan_sweep(repository, options, &forget).await?;
        stats.sweep.aborted_sessions += plan.sessions.len() as u64;
    }
    for file in plan.files_to_delete() {
        stats.json_files += 1;
        stats.json_bytes += file.bytes;
    }
    Ok(stats)
}

/// Carries out a plan: deletes the files, gives the snapshots up, then sweeps the repository where there is one. Stopped at
/// any point it can be started again.
///
/// A snapshot must be marked as given up before anything of it is deleted, or another process could build upon it meanwhile. On a
/// full disk there is no room for the marks: then what is due already is swept first.
///
/// # Errors
/// Also [`PruneError::NoRoom`].
pub async fn prune(
    repository: Option<&Repository>,
    plan: &PrunePlan,
    options: &SweepOptions,
) -> Result<PruneStats, PruneError> {
    let mut stats = PruneStats::default();
    for file in plan.files_to_delete() {
        json_files::delete(&file.file).await?;
        stats.json_files += 1;
        stats.json_bytes += file.bytes;
    }
    for summary in &plan.summaries {
        json_files::delete(summary).await?;
    }
    if let Some(repository) = repository {
        let before = forget_all(repository, plan, options, &mut stats.forgotten).await?;
        let mut given_up = 0;
        for session in &plan.sessions {
            let decision = abort(repository, *session, "somebody gave it up").await?;
            given_up += u64::from(matches!(decision, Decision::Aborted(_)));
        }
        stats.sweep = sweep(repository, options).await?;
        stats.sweep.aborted_sessions += given_up;
        if let Some(before) = before {
            stats.sweep.add_deleted(&before);
        }
    }
    Ok(stats)
}

/// Gives the snapshots up. Says what was swept to make room for that, where there was none.
async fn forget_all(
    repository: &Repository,
    plan: &PrunePlan,
    options: &SweepOptions,
    forgotten: &mut u64,
) -> Result<Option<SweepStats>, PruneError> {
    let mut swept = None;
    let all = plan.to_forget();
    for (snapshot, reason) in &all {
        match repository.forget(*snapshot, reason).await {
            Err(error) if is_full(&error) && swept.is_none() => {
                tracing::warn!("{error}: deleting first what nothing needs already");
                swept = Some(sweep(repository, options).await?);
                repository.forget(*snapshot, reason).await.map_err(|error| {
                    match is_full(&error) && *forgotten == 0 {
                        true => PruneError::NoRoom(all.len() as u64),
                        false => error.into(),
                    }
                })?;
            }
            given_up => given_up?,
        }
        *forgotten += 1;
    }
    Ok(swept)
}

fn is_full(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Store(StoreError::Full { .. }))
}

/// Those of the ids that are sessions which nobody has decided.
async fn open_sessions(repository: &Repository, ids: &[SessionId]) -> Result<Vec<SessionId>, PruneError> {
    let mut open = Vec::new();
    for id in ids {
        if repository.is_open_session(*id).await? {
            open.push(*id);
        }
    }
    Ok(open)
}

/// A plan by a policy for all that a folder and its repository hold, with this machine's time as "now".
pub async fn plan(
    repository: Option<&Repository>,
    json_folder: Option<PathBuf>,
    choice: &Choice,
    filter: &PruneFilter,
) -> Result<PrunePlan, PruneError> {
    let now = clock::now();
    let mut plan = match repository {
        Some(repository) => {
            let mut plan = plan_snapshots(repository.snapshots().await?, choice, filter, now)?;
            if let Choice::Snapshots(named) = choice {
                plan.sessions = open_sessions(repository, named).await?;
            }
            plan
        }
        None => PrunePlan::default(),
    };
    // Files have neither tags nor hosts.
    let looks_at_files = filter.tags.is_empty() && filter.hosts.is_empty();
    if let (Some(folder), Choice::Policy(policy)) = (json_folder, choice)
        && looks_at_files
        && policy.goes_by_time()
    {
        (plan.json, plan.summaries) = plan_json(&folder, policy, filter, now)?;
    }
    Ok(plan)
}
