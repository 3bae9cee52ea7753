//! `firebank backup` and `firebank backup-all`

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use futures::TryStreamExt;
use serde::Serialize;

use super::cost_args::{self, PricesArgs};
use super::options::GlobalOptions;
use super::progress::ProgressDisplay;
use super::snapshots::lag_seconds;
use super::task_args::{EXECUTION_VARIABLE, TaskArgs, execution, given_or_own};
use super::write_args::positive;
use super::{Outcome, UsageError, backup_plan, durations, json_backup, output};
use crate::archive::{Consistency, Counts, ReadMode, Repository, Selection, Snapshot};
use crate::backup::{BackupOptions, BackupStats, ChangeField, CommittedBy, Parent, TaskOptions, backup};
use crate::document::{CollectionPath, FieldMask, Timestamp};
use crate::progress::Progress;
use crate::stop::Stop;

#[derive(Args, Debug)]
pub(crate) struct BackupCommand {
    /// Root collections to back up, each with everything below it; without any, the whole database
    #[arg(value_name = "COLLECTION")]
    collections: Vec<String>,
    /// Back up the documents of all collections with this id, wherever they are, and what is named besides; may be repeated.
    /// Only they are read, and billed
    #[arg(long = "collection-group", value_name = "NAME")]
    collection_groups: Vec<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(Args, Debug)]
pub(crate) struct BackupAllCommand {
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A snapshot in the repository
    Snapshot,
    /// One JSON file a collection, as older tools read and write them
    Json,
}

/// What `--read` says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Read {
    Auto,
    Full,
    Names,
    Changed(Vec<String>),
}

impl Read {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "full" => Ok(Self::Full),
            "names" => Ok(Self::Names),
            text => match text.strip_prefix(CHANGED) {
                Some(field) => field_path(field).map(Self::Changed),
                None => Err("say auto, full, names or changed:FIELD".to_owned()),
            },
        }
    }
}

/// How often names are read where a field is asked.
const FULL_SCAN_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

const CHANGED: &str = "changed:";

/// The field of `changed:FIELD`.
pub(crate) fn changed_field(text: &str) -> Result<Vec<String>, String> {
    field_path(
        text.strip_prefix(CHANGED)
            .ok_or("say changed:FIELD, as `backup --read` does")?,
    )
}

fn field_path(text: &str) -> Result<Vec<String>, String> {
    let mask = FieldMask::parse(text).map_err(|error| error.to_string())?;
    match mask.paths() {
        [only] => Ok(only.clone()),
        _ => Err("name one field, such as changed:updated_at or changed:meta.updated_at".to_owned()),
    }
}

#[derive(Args, Debug)]
struct Options {
    /// What to make
    #[arg(long, value_enum, default_value_t = Format::Snapshot)]
    format: Format,
    /// Where JSON files go; the repository's folder when not given
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// With --format json: include the `_migrations` collection
    #[arg(long)]
    include_migrations: bool,
    /// Add a tag to the snapshot; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// The machine's name to record instead of this one's
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// A sentence to record with the snapshot
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// What to read [possible values: auto, full, names, changed:FIELD]
    ///
    /// auto: whole documents in a first backup, names afterwards.
    ///
    /// full: every document whole; more traffic, and it finds changes that leave a document's times as they were.
    ///
    /// names: names and times, and those documents whose times differ from the parent's.
    ///
    /// changed:FIELD: only documents that say by this field, a timestamp, that they have changed, and counts that tell where others are
    /// gone: a few per cent of the billed reads. A document is found late, by the next reading of names (--full-scan-every), when its
    /// change leaves FIELD as it was, sets it to a time long before the commit, or to no timestamp; when it is
    /// deleted and made again with the old FIELD; or when it comes without FIELD at the moment and place at which another one of its
    /// collection group goes. Needs an index over each collection group: `firebank doctor --for backup --read changed:FIELD` names
    /// those that are missing, and names are read where one is.
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = Read::parse)]
    read: Read,
    /// With --read changed:FIELD: read names when the newest backup of the chain that read all names, or everything, is older than
    /// this, such as 7d or 36h [default: 7d]
    #[arg(long, value_name = "AGE", value_parser = durations::parse)]
    full_scan_every: Option<Duration>,
    /// Build upon this snapshot instead of the newest: its id, or a unique prefix of it
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "full")]
    parent: Option<String>,
    /// Build upon no snapshot: read and list every document anew. Data that is stored already is not stored again
    #[arg(long)]
    full: bool,
    /// Store everything anew, also what is stored already: after `verify` has found damaged chunks
    #[arg(long, requires = "full")]
    no_dedup: bool,
    /// Go on with the newest backup of the same database and selection that was not finished, as of its time; begin a new
    /// one if there is none that the database can still be read at: for an hour, with `--pitr` for seven days
    #[arg(long, conflicts_with_all = ["full", "parent"])]
    resume: bool,
    /// Work on the session of this name: the first process with it begins a backup, others with the same name share the work, on this
    /// machine or another. Once the backup is there the name cannot be used again [default: in a Cloud Run Job, its execution]
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    session: Option<String>,
    #[command(flatten)]
    task: TaskArgs,
    /// What tells these tasks from those of another time: one that is started again after the backup is there says so and ends well, one
    /// of another execution is refused [default: in a Cloud Run Job, its execution]
    #[arg(long, value_name = "ID", env = EXECUTION_VARIABLE, hide_env_values = true)]
    execution: Option<String>,
    /// Back up the database as it was then, such as 2026-01-31T22:00:00Z: any moment of the last hour, and with point-in-time
    /// recovery any whole minute of the last seven days
    #[arg(long, value_name = "TIME", value_parser = read_time, conflicts_with = "resume")]
    read_time: Option<Timestamp>,
    /// The database has point-in-time recovery: read as of the last whole minute, which can be read for seven days instead of an
    /// hour
    #[arg(long)]
    pitr: bool,
    /// Fail when the database can no longer be read at the time of the backup before all was read, instead of reading the rest at
    /// a newer time
    #[arg(long)]
    require_consistent: bool,
    /// Read collection by collection instead of all at once, which collection groups never are: slower, and a billed read more for every document. Done by
    /// itself where the server refuses queries over all collections
    #[arg(long)]
    walk: bool,
    /// How many key ranges to read at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=512))]
    parallel: u16,
    /// Read at most so many documents a second, by all readers of this process together. It reads more slowly by itself while the database
    /// refuses reads, or takes long to answer
    #[arg(long, value_name = "N", value_parser = positive)]
    read_rate: Option<f64>,
    /// Be billed at most about so many reads: a backup that is expected to take more is not begun, one that comes to take more stops, for
    /// --resume to go on with (exit code 1). With tasks, each counts its own
    #[arg(long, value_name = "N")]
    max_reads: Option<u64>,
    /// Say what a backup would read, store and cost, and write nothing. That is billed itself: a read for each thousand documents, and some
    /// hundred for a sample
    #[arg(long, short = 'n', conflicts_with_all = ["resume", "session", "task_index", "task_count", "max_reads"])]
    dry_run: bool,
    #[command(flatten)]
    prices: PricesArgs,
    /// How many key ranges to read the database in [default: by its size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    ranges: Option<u16>,
}

impl BackupAllCommand {
    /// Whether it can stop and go on later.
    pub(crate) fn is_resumable(&self) -> bool {
        self.options.is_resumable()
    }

    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        BackupCommand {
            collections: Vec::new(),
            collection_groups: Vec::new(),
            options: self.options,
        }
        .run(global, stop)
        .await
    }
}

impl BackupCommand {
    /// Whether it can stop and go on later.
    pub(crate) fn is_resumable(&self) -> bool {
        self.options.is_resumable()
    }

    pub(crate) async fn run(self, global: &GlobalOptions, stop: Stop) -> anyhow::Result<Outcome> {
        let collections = root_collections(&self.collections)?;
        let groups = collection_groups(self.collection_groups)?;
        match self.options.format {
            Format::Snapshot => {
                let selection = Selection::new(collections, groups);
                self.options.take_snapshot(global, selection, stop).await
            }
            Format::Json => {
                if self.options.dry_run || self.options.max_reads.is_some() {
                    return Err(UsageError::new(
                        "--dry-run and --max-reads go with snapshots, not with --format json",
                    ));
                }
                if !groups.is_empty() {
                    return Err(UsageError::new(
                        "JSON files are of root collections: --collection-group goes with snapshots",
                    ));
                }
                let folder = match self.options.output {
                    Some(folder) => folder,
                    None => global.repository_folder()?.ok_or_else(|| {
                        UsageError::new(format!(
                            "JSON backups are local files, and {} is a bucket: name a folder with -o DIR",
                            global.repository
                        ))
                    })?,
                };
                let Options {
                    include_migrations,
                    read_rate,
                    ..
                } = self.options;
                json_backup::run(global, folder, collections, include_migrations, read_rate).await
            }
        }
    }
}

impl Options {
    fn is_resumable(&self) -> bool {
        self.format == Format::Snapshot
    }

    async fn take_snapshot(
        self,
        global: &GlobalOptions,
        selection: Selection,
        stop: Stop,
    ) -> anyhow::Result<Outcome> {
        if self.output.is_some() || self.include_migrations {
            return Err(UsageError::new(
                "--output and --include-migrations go with --format json",
            ));
        }
        // A dry run is nobody's part of anything, whatever the environment says.
        let alone = self.resume || self.dry_run;
        let session = match alone {
            true => None,
            false => self.session.or_else(execution),
        };
        let task = match alone {
            true => None,
            false => self.task.task()?,
        };
        if task.is_some() && session.is_none() {
            return Err(UsageError::new(
                "tasks share a session: give all of them the same --session NAME, a new one for each backup",
            ));
        }
        let task = task.map(|task| TaskOptions {
            execution: given_or_own(self.execution),
            ..TaskOptions::new(task)
        });
        let (read, changed) = match self.read {
            Read::Auto => (None, None),
            Read::Full => (Some(ReadMode::Full), None),
            Read::Names => (Some(ReadMode::Names), None),
            Read::Changed(field) => {
                let full_scan_every = self.full_scan_every.unwrap_or(FULL_SCAN_EVERY);
                let changed = ChangeField {
                    field,
                    full_scan_every,
                };
                (None, Some(changed))
            }
        };
        if self.full_scan_every.is_some() && changed.is_none() {
            return Err(UsageError::new(
                "--full-scan-every goes with --read changed:FIELD",
            ));
        }
        let repository = global.open_repository().await?;
        let database = global.connect_reading(global.database()?, self.read_rate).await?;
        if self.walk {
            database.walk();
        }
        let options = BackupOptions {
            selection,
            parallel: usize::from(self.parallel),
            ranges: self.ranges.map(usize::from),
            parent: match (self.parent, self.full) {
                (_, true) => Parent::None,
                (Some(snapshot), _) => Parent::Snapshot(snapshot),
                (None, false) => Parent::Newest,
            },
            read,
            changed,
            deduplicate: !self.no_dedup,
            tags: self.tags,
            host: self
                .host
                .or_else(|| gethostname::gethostname().into_string().ok()),
            description: self.description,
            resume: self.resume,
            session,
            task,
            read_time: self.read_time,
            pitr: self.pitr,
            require_consistent: self.require_consistent,
            max_reads: self.max_reads,
            stop,
            ..BackupOptions::default()
        };
        if self.dry_run {
            return backup_plan::run(global, &database, &repository, &options, &self.prices).await;
        }
        cost_args::look_for_crossing(global, &database).await?;
        let progress = Arc::new(Progress::new());
        let display = ProgressDisplay::start("backing up", &progress, global.quiet);
        let stats = backup(&database, &repository, options, &progress).await?;
        drop(display);
        report(global, &stats)?;
        let complete = without_documents(&repository, &stats.snapshot).await?;
        Ok(match is_mixed(&stats.snapshot) {
            true => Outcome::NeedsLook,
            false => complete,
        })
    }
}

fn read_time(text: &str) -> Result<Timestamp, String> {
    DateTime::parse_from_rfc3339(text)
        .map(|time| Timestamp::from(time.with_timezone(&Utc)))
        .map_err(|error| format!("{error}; a time looks like 2026-01-31T22:00:00Z"))
}

/// Says so where not all documents are of one moment.
fn is_mixed(snapshot: &Snapshot) -> bool {
    let Consistency::Mixed { ranges } = &snapshot.consistency else {
        return false;
    };
    tracing::error!(
        "the documents are of several moments, from {} to {}: the database could not be read at the first for long enough. {} of it \
         are of later ones; `firebank show {} --json` lists them",
        snapshot.read_time,
        snapshot.latest_read_time(),
        output::count(ranges.len() as u64, "range"),
        snapshot.id,
    );
    true
}

/// Says which of the named collections have no document: most likely a name with a typing error, and then a backup that
/// lacks what somebody counts on.
async fn without_documents(repository: &Repository, snapshot: &Snapshot) -> anyhow::Result<Outcome> {
    let Selection {
        collections,
        collection_groups,
    } = &snapshot.selection;
    let mut outcome = Outcome::Done;
    for group in collection_groups {
        if !snapshot.collection_groups.contains_key(group) && is_complete(&snapshot.collection_groups) {
            tracing::error!(
                "there are no documents in any collection `{}`: is it spelled right?",
                output::printable(group)
            );
            outcome = Outcome::NeedsLook;
        }
    }
    if collections.is_empty() {
        return Ok(outcome);
    }
    let reader = repository.reader(snapshot).await?;
    for collection in collections {
        let mut records = pin!(reader.records(collection.key_range()));
        if records.try_next().await?.is_none() {
            outcome = has_no_documents(collection);
        }
    }
    Ok(outcome)
}

pub(crate) fn has_no_documents(collection: &CollectionPath) -> Outcome {
    tracing::error!(
        "there are no documents in `{}`: is it spelled right?",
        output::printable(collection.as_str())
    );
    Outcome::NeedsLook
}

/// Whether all names are there: what is beyond many counts under an empty name.
fn is_complete(counts: &Counts) -> bool {
    !counts.contains_key("")
}

fn collection_groups(names: Vec<String>) -> anyhow::Result<Vec<String>> {
    let wrong = names.iter().find(|name| name.is_empty() || name.contains('/'));
    match wrong {
        None => Ok(names),
        Some(name) => Err(UsageError::new(format!(
            "`{name}` is no collection's id: a collection group is named by the last part of its collections' paths"
        ))),
    }
}

pub(crate) fn root_collections(names: &[String]) -> anyhow::Result<Vec<CollectionPath>> {
    let mut collections = Vec::with_capacity(names.len());
    for name in names {
        let path = CollectionPath::parse(name.trim_end_matches('/'))
            .map_err(|_| UsageError::new(format!("`{name}` does not name a collection")))?;
        collections.push(path);
    }
    collections.sort();
    collections.dedup();
    Ok(collections)
}

/// What `--json` prints of a backup.
#[derive(Serialize)]
struct Summary {
    snapshot: String,
    /// Who committed it.
    committed_by: &'static str,
    database: String,
    read_time: String,
    /// From then to the commit.
    lag_seconds: f64,
    /// Whether all documents are of that moment; else which ranges are of which.
    consistency: Consistency,
    parent: Option<String>,
    layers: usize,
    read: ReadMode,
    documents: u64,
    new_documents: u64,
    changed_documents: u64,
    deleted_documents: u64,
    unchanged_documents: u64,
    raw_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    billed_reads: u64,
    requests: u64,
    retries: u64,
    /// Where a field should have been asked and names were read: why.
    names_instead: Vec<String>,
    seconds: f64,
}

fn report(global: &GlobalOptions, stats: &BackupStats) -> anyhow::Result<()> {
    let snapshot = &stats.snapshot;
    let output = global.output();
    match stats.committed {
        CommittedBy::ThisProcess => {}
        CommittedBy::Another => output.line("All is read, and another task has committed the snapshot.")?,
        CommittedBy::Before => {
            output.line("The snapshot of this session is there: nothing was left to do.")?
        }
    }
    output.line(format!(
        "Snapshot {} of {}, as of {}: {}, {}.",
        snapshot.id,
        snapshot.database,
        snapshot.read_time,
        output::count(snapshot.documents, "document"),
        output::bytes(snapshot.body_bytes),
    ))?;
    if let Some(parent) = snapshot.parent {
        output.line(format!(
            "Since {parent}: {} new, {} changed, {} deleted, {} unchanged, in {}.",
            output::number(snapshot.stats.new_documents),
            output::number(snapshot.stats.changed_documents),
            output::number(snapshot.stats.deleted_documents),
            output::number(snapshot.stats.unchanged_documents),
            output::count(snapshot.runs.len() as u64, "layer"),
        ))?;
    }
    output.line(format!(
        "Stored {} ({} new before compression) in {}, for {}.",
        output::bytes(snapshot.stats.stored_bytes),
        output::bytes(snapshot.stats.new_bytes),
        output::duration(stats.duration),
        output::count(stats.billed_reads, "billed read"),
    ))?;
    for why in &stats.names_instead {
        output.line(format!("Note: {}.", output::printable(why)))?;
    }
    output.json(&Summary {
        snapshot: snapshot.id.to_string(),
        committed_by: match stats.committed {
            CommittedBy::ThisProcess => "this process",
            CommittedBy::Another => "another process",
            CommittedBy::Before => "before",
        },
        database: snapshot.database.to_string(),
        read_time: snapshot.read_time.to_string(),
        lag_seconds: lag_seconds(snapshot),
        consistency: snapshot.consistency.clone(),
        parent: snapshot.parent.map(|parent| parent.to_string()),
        layers: snapshot.runs.len(),
        read: snapshot.stats.read,
        documents: snapshot.documents,
        new_documents: snapshot.stats.new_documents,
        changed_documents: snapshot.stats.changed_documents,
        deleted_documents: snapshot.stats.deleted_documents,
        unchanged_documents: snapshot.stats.unchanged_documents,
        raw_bytes: snapshot.body_bytes,
        new_bytes: snapshot.stats.new_bytes,
        stored_bytes: snapshot.stats.stored_bytes,
        billed_reads: stats.billed_reads,
        requests: stats.requests,
        retries: stats.retries,
        names_instead: stats.names_instead.clone(),
        seconds: stats.duration.as_secs_f64(),
    })
}
