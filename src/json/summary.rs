//! The summary of one run over several collections.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::write::publish;
use super::{JsonError, iso, stamp};

/// What `backup_summary_<stamp>.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSummary {
    /// The run as a whole.
    pub backup_session: BackupSession,
    /// Collections with a file.
    pub successful_collections: Vec<String>,
    /// Collections without.
    pub failed_collections: Vec<String>,
    /// The files by collection.
    pub backup_files: BTreeMap<String, String>,
}

/// A run over several collections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSession {
    /// When it was, ISO 8601.
    pub timestamp: String,
    /// How many collections were asked for.
    pub total_collections: u64,
    /// How many have a file.
    pub successful_backups: u64,
    /// How many have none.
    pub failed_backups: u64,
    /// `success` or `partial_failure`.
    pub status: String,
}

impl BackupSummary {
    /// The summary of a run at `time` that wrote `files` (by collection) and failed for the `failed` collections.
    pub fn new(time: DateTime<Utc>, files: &[(String, PathBuf)], failed: &[String]) -> Self {
        let status = if failed.is_empty() {
            "success"
        } else {
            "partial_failure"
        };
        Self {
            backup_session: BackupSession {
                timestamp: iso(time),
                total_collections: (files.len() + failed.len()) as u64,
                successful_backups: files.len() as u64,
                failed_backups: failed.len() as u64,
                status: status.to_owned(),
            },
            successful_collections: files.iter().map(|(collection, _)| collection.clone()).collect(),
            failed_collections: failed.to_vec(),
            backup_files: files
                .iter()
                .map(|(collection, file)| (collection.clone(), file.display().to_string()))
                .collect(),
        }
    }

    /// Writes it to `folder`, under the name that goes with `time`, and returns the file.
    pub fn write(&self, folder: &Path, time: DateTime<Utc>) -> Result<PathBuf, JsonError> {
        let file = folder.join(format!("backup_summary_{}.json", stamp(time)));
        let mut out = tempfile::Builder::new()
            .prefix(".backup_")
            .suffix(".tmp")
            .tempfile_in(folder)
            .map_err(JsonError::io("create a file in", folder))?;
        let failed = JsonError::io("write", &file);
        let mut text = match serde_json::to_vec_pretty(self) {
            Ok(text) => text,
            Err(error) => return Err(failed(error.into())),
        };
        text.push(b'\n');
        out.write_all(&text).map_err(failed)?;
        publish(out, folder, &file)?;
        Ok(file)
    }
}
