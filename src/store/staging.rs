//! What a crash leaves of a write to a local disk: object_store writes `<name>#<number>` first and links it
//! into place when it is whole. Listings do not show such files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::{Store, StoreError};

impl Store {
    /// Removes half-written files of a local store that were last written before `before`, by the file
    /// system's times. Returns how many. Other stores have none.
    pub async fn remove_staging_files(&self, before: DateTime<Utc>) -> Result<u64, StoreError> {
        let Some(folder) = self.local_folder() else {
            return Ok(0);
        };
        let name = folder.display().to_string();
        let failed = |error| StoreError::from_io(&name, "look for half-written files in", error);
        match tokio::task::spawn_blocking(move || remove(&folder, before)).await {
            Ok(removed) => removed.map_err(failed),
            Err(stopped) => Err(failed(io::Error::other(stopped))),
        }
    }
}

/// The folders of a repository. Whatever else lies beside them is not looked at.
const FOLDERS: &[&str] = &[
    "chunks",
    "keys",
    "leases",
    "probes",
    "runs",
    "sessions",
    "snapshots",
];

fn remove(root: &Path, before: DateTime<Utc>) -> io::Result<u64> {
    let mut removed = 0;
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && is_staging(&entry.file_name().to_string_lossy()) {
                removed += u64::from(remove_stale(&entry, before)?);
            }
        }
    }
    Ok(removed)
}

fn remove_stale(entry: &fs::DirEntry, before: DateTime<Utc>) -> io::Result<bool> {
    let stale = |modified| DateTime::<Utc>::from(modified) < before;
    let removed = match entry.metadata().and_then(|metadata| metadata.modified()) {
        Ok(modified) if stale(modified) => fs::remove_file(entry.path()),
        Ok(_) => return Ok(false),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(true),
        // Its writer, or another sweep.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_staging(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(name, number)| {
        !name.is_empty() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}
