//! The same policy for JSON backups in a folder: one group for each project, database and collection.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Serialize;

use super::retention::{Candidate, Policy};
use super::{PruneError, PruneFilter};
use crate::json::{BackupSummary, JsonError, list_folder};

/// A JSON backup and what becomes of it.
#[derive(Clone, Debug)]
pub struct JsonFile {
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was taken, as far as it says so.
    pub time: Option<DateTime<Utc>>,
    /// Whether it stays.
    pub keep: bool,
    /// Why.
    pub reasons: Vec<String>,
}

/// JSON backups that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct JsonGroupKey {
    /// The project, where the files say so.
    pub project: Option<String>,
    /// The database, where the files say so.
    pub database: Option<String>,
    /// The collection; `None`: the files cannot be read.
    pub collection: Option<String>,
}

/// JSON backups of one collection, newest first.
#[derive(Clone, Debug)]
pub struct JsonGroup {
    /// What they share.
    pub key: JsonGroupKey,
    /// The files.
    pub files: Vec<JsonFile>,
}

/// Decides what becomes of the JSON backups in a folder, and which summaries go because none of their files is left.
///
/// A file that cannot be read, or that does not say when it was taken, stays.
pub fn plan_json(
    folder: &Path,
    policy: &Policy,
    filter: &PruneFilter,
    now: DateTime<Utc>,
) -> Result<(Vec<JsonGroup>, Vec<PathBuf>), PruneError> {
    let mut groups: BTreeMap<JsonGroupKey, Vec<JsonFile>> = BTreeMap::new();
    for backup in list_folder(folder)? {
        let mut file = JsonFile {
            file: backup.file,
            bytes: backup.bytes,
            time: None,
            keep: true,
            reasons: Vec::new(),
        };
        let mut key = JsonGroupKey {
            project: None,
            database: None,
            collection: None,
        };
        match backup.header {
            Ok(header) => {
                file.time = header.timestamp.as_deref().and_then(parse_time);
                let metadata = header.metadata.unwrap_or_default();
                key.project = metadata.firebase_project;
                key.database = metadata.firebase_database;
                key.collection = Some(header.collection);
            }
            Err(error) => file.reasons.push(format!("it cannot be read: {error}")),
        }
        let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let database = key.database.clone().or_else(|| Some("(default)".to_owned()));
        if is(&filter.project, &key.project) && is(&filter.database, &database) {
            groups.entry(key).or_default().push(file);
        }
    }
    let mut planned = Vec::with_capacity(groups.len());
    // Of files without a time no rule says anything.
    let judged = groups.values().flatten().any(|file| file.time.is_some());
    let mut kept_by_rule = false;
    for (key, mut files) in groups {
        judge(policy, &mut files, now, &mut kept_by_rule);
        planned.push(JsonGroup { key, files });
    }
    if judged && !kept_by_rule {
        return Err(PruneError::KeepsNothing("the JSON backups".to_owned()));
    }
    let summaries = empty_summaries(folder, &planned)?;
    Ok((planned, summaries))
}

fn judge(policy: &Policy, files: &mut [JsonFile], now: DateTime<Utc>, kept_by_rule: &mut bool) {
    files.sort_by(|a, b| (b.time, &b.file).cmp(&(a.time, &a.file)));
    let names: Vec<String> = files.iter().map(|file| name_of(&file.file)).collect();
    let candidates: Vec<Candidate<'_>> = files
        .iter()
        .zip(&names)
        .filter_map(|(file, name)| {
            Some(Candidate {
                time: file.time?,
                tags: &[],
                id: name,
            })
        })
        .collect();
    let mut reasons = policy.apply(&candidates, now).into_iter();
    let mut newest = true;
    for file in files {
        if file.time.is_none() {
            if file.reasons.is_empty() {
                file.reasons.push("it does not say when it was taken".to_owned());
            }
            continue;
        }
        file.reasons = reasons.next().unwrap_or_default();
        file.keep = !file.reasons.is_empty();
        *kept_by_rule |= file.keep;
        if !file.keep && newest {
            file.keep = true;
            file.reasons.push("the last of its group".to_owned());
        } else if !file.keep {
            file.reasons.push("no rule keeps it".to_owned());
        }
        newest = false;
    }
}

/// Times as the original tool wrote them too: without a zone, which meant UTC.
fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    let local = NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f");
    local.ok().map(|time| time.and_utc())
}

fn name_of(file: &Path) -> String {
    file.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Summaries that name files of which none will be left.
fn empty_summaries(folder: &Path, groups: &[JsonGroup]) -> Result<Vec<PathBuf>, JsonError> {
    let files = || groups.iter().flat_map(|group| &group.files);
    let going: HashSet<String> = files()
        .filter(|file| !file.keep)
        .map(|file| name_of(&file.file))
        .collect();
    if going.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |source| JsonError::Io {
        action: "list",
        file: folder.to_owned(),
        source,
    };
    let mut empty = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let name = name_of(&file);
        if !name.starts_with("backup_summary_") || !name.ends_with(".json") {
            continue;
        }
        let Some(named) = files_of_summary(&file) else {
            continue;
        };
        let goes = |name: &String| going.contains(name);
        let is_left = |name: &String| !goes(name) && folder.join(name).exists();
        if named.iter().any(goes) && !named.iter().any(is_left) {
            empty.push(file);
        }
    }
    empty.sort();
    Ok(empty)
}

/// The names of the files that a summary tells of; `None` when it is none.
fn files_of_summary(file: &Path) -> Option<Vec<String>> {
    let summary: BackupSummary = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let files = summary.backup_files.values();
    Some(files.map(|file| name_of(Path::new(file))).collect())
}

/// Deletes a file; one that is gone already is no error.
pub(super) async fn delete(file: &Path) -> Result<(), JsonError> {
    match tokio::fs::remove_file(file).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(JsonError::Io {
            action: "delete",
            file: file.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}
