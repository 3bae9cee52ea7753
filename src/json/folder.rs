//! What JSON backups a folder holds.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::read::{header, metadata_in_tail};
use super::{Header, JsonError};

/// A collection's file in a folder.
#[derive(Debug)]
pub struct JsonBackup {
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What it says about itself, or why it cannot be read. That it can is no proof that the file is whole: see
    /// [`check`](super::check).
    pub header: Result<Header, JsonError>,
}

/// The collections' files in `folder`, ordered by name; none if the folder does not exist.
///
/// Reads a few kilobytes of each file, more only of those that no tool has written in this order.
pub fn list_folder(folder: &Path) -> Result<Vec<JsonBackup>, JsonError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JsonError::io("list", folder)(error)),
    };
    let mut backups = Vec::new();
    for entry in entries {
        let entry = entry.map_err(JsonError::io("list", folder))?;
        if !is_backup(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let file = entry.path();
        let (bytes, header) = match fs::metadata(&file) {
            Ok(metadata) if metadata.is_dir() => continue,
            Ok(metadata) => (metadata.len(), look_into(&file, metadata.len())),
            Err(error) => (0, Err(JsonError::io("read", &file)(error))),
        };
        backups.push(JsonBackup { file, bytes, header });
    }
    backups.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(backups)
}

/// Whether a file's name is that of a collection's backup.
fn is_backup(name: &str) -> bool {
    name.starts_with("backup_") && name.ends_with(".json") && !name.starts_with("backup_summary_")
}

fn look_into(file: &Path, bytes: u64) -> Result<Header, JsonError> {
    let mut head = header(file, true)?;
    if head.collection.is_empty() {
        // `documents` comes first. Slow, and right.
        return header(file, false);
    }
    let tail = tail(file, bytes).map_err(JsonError::io("read", file))?;
    if !tail.trim_end().ends_with('}') {
        return Err(JsonError::Malformed {
            file: file.to_owned(),
            reason: "it is cut off".to_owned(),
        });
    }
    if head.metadata.is_none() {
        head.metadata = metadata_in_tail(&tail);
    }
    Ok(head)
}

/// The end of a file, as far as it is text: enough for the metadata.
fn tail(file: &Path, bytes: u64) -> std::io::Result<String> {
    const LENGTH: u64 = 4096;
    let mut source = File::open(file)?;
    source.seek(SeekFrom::Start(bytes.saturating_sub(LENGTH)))?;
    let mut tail = Vec::new();
    source.take(LENGTH).read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}
