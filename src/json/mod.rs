//! The JSON format for compatibility: one file a collection, as the Python tool before Firebank wrote it; and NDJSON, one
//! document a line ([`LineWriter`]), for other tools and for pipes.
//!
//! A person can read it, `jq` can, and files of the old tool are read as they are. It is no archive: every backup is a full
//! copy, and nothing but its count says that a file is whole. So files come into being under another name and are renamed
//! when they are complete and on the disk, and a restore reads a file through ([`check`]) before it writes anything.
//!
//! ```json
//! {
//!   "collection": "products",
//!   "timestamp": "2025-06-29T12:00:00Z",
//!   "document_count":                    2,
//!   "documents": [
//!     {
//!       "id": "p1",
//!       "price": 349.99,
//!       "$collections": {
//!         "reviews": [
//!           {
//!             "id": "r1",
//!             "stars": 5
//!           }
//!         ]
//!       }
//!     },
//!     …
//!   ],
//!   "metadata": {
//!     "backup_version": "1.0",
//!     "firebase_project": "shop",
//!     "backup_type": "full_collection",
//!     "compression": "none",
//!     "firebase_database": "(default)",
//!     "total_document_count": 3,
//!     "read_time": "2025-06-29T11:59:58.123456Z",
//!     "tool": "firebank 0.1.0"
//!   }
//! }
//! ```
//!
//! What the old tool could not say is said like this:
//!
//! - Values are [typed JSON](crate::document::typed_json).
//! - `$collections`, the last member of a document, holds the subcollections. `document_count` counts the documents directly in
//!   `documents`, `total_document_count` those below them too.
//! - A document that does not exist but has subcollections is `{"id": …, "$missing": true, "$collections": {…}}`. It is not
//!   counted, and a restore does not create it.
//! - A document with a field of its own that is named `id` or begins with `$` keeps its fields apart:
//!   `{"id": …, "$fields": {…}, "$collections": {…}}`.
//!
//! Both directions stream: a file of any size takes the memory of one document and of the path to it. This module knows
//! neither Firestore nor the archive.

mod folder;
mod layout;
mod ndjson;
mod read;
mod source;
mod summary;
mod write;

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::document::canonical::CanonicalError;
use crate::document::{CollectionPath, DocumentPath};

pub use folder::{JsonBackup, list_folder};
pub use ndjson::{LineFile, LineWriter, ndjson_file_name, read_lines, read_lines_of};
pub use read::{Checked, check, read_documents};
pub use source::{DocumentsFile, is_ndjson};
pub use summary::{BackupSession, BackupSummary};
pub use write::{CollectionWriter, Origin, WrittenFile};

/// How deep subcollections may nest: the limit of the JSON parser, which a file must not exceed to be readable. Firestore
/// itself allows 50 (<https://firebase.google.com/docs/firestore/quotas>); the archive has no such limit.
pub const MAX_COLLECTION_DEPTH: usize = 40;

/// A JSON backup that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        file: PathBuf,
        /// Why it did not work.
        source: std::io::Error,
    },
    /// A file of that name is there already, and is left alone.
    #[error("{} exists already; wait a second or choose another folder", .0.display())]
    AlreadyExists(PathBuf),
    /// The file is not JSON or is cut off.
    #[error("{} is not valid JSON: {reason}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// The file is JSON and not a backup, or one with something in it that cannot be restored.
    #[error("{} is not a valid backup: {reason}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong, with line and column where there are any.
        reason: String,
    },
    /// A line of an NDJSON file is no document.
    #[error("{}, line {line}: {reason}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it, with the column where there is one.
        reason: String,
    },
    /// The file does not hold as many documents as it says.
    #[error("{} says `{member}` {stated} and holds {found}: it is damaged or was edited", file.display())]
    Count {
        /// The file.
        file: PathBuf,
        /// Which count.
        member: &'static str,
        /// What the file says.
        stated: u64,
        /// What was counted.
        found: u64,
    },
    /// Documents to write came in the wrong order: a fault of the caller.
    #[error("document `{next}` came after `{previous}`, out of path order")]
    Order {
        /// The document before.
        previous: DocumentPath,
        /// The document that should have come earlier.
        next: DocumentPath,
    },
    /// A document to write belongs to another collection: a fault of the caller.
    #[error("document `{document}` does not belong to the collection `{collection}`")]
    OtherCollection {
        /// The document.
        document: DocumentPath,
        /// The file's collection.
        collection: CollectionPath,
    },
    /// Subcollections nest deeper than a file can say.
    #[error(
        "document `{0}` lies below more than {MAX_COLLECTION_DEPTH} subcollections; use the archive format for it"
    )]
    TooDeep(DocumentPath),
    /// A document's fields cannot be written.
    #[error("document `{document}` cannot be written: {reason}")]
    Body {
        /// The document.
        document: DocumentPath,
        /// What is wrong.
        reason: String,
    },
}

impl JsonError {
    fn io(action: &'static str, file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            action,
            file: file.to_owned(),
            source,
        }
    }
}

/// What a file says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The collection's path; files of the old tool only have root collections.
    pub collection: String,
    /// When the backup was made, as it stands there: ISO 8601, mostly.
    pub timestamp: Option<String>,
    /// Documents directly in the collection.
    pub document_count: Option<u64>,
    /// The rest; the old tool left it out at times.
    pub metadata: Option<Metadata>,
}

/// A file's `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// The format's version: `1.0`.
    pub backup_version: Option<String>,
    /// The project that the documents come from.
    pub firebase_project: Option<String>,
    /// `full_collection`.
    pub backup_type: Option<String>,
    /// `none`.
    pub compression: Option<String>,
    /// The database that the documents come from; not in files of the old tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firebase_database: Option<String>,
    /// All documents, subcollections' too; not in files of the old tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_document_count: Option<u64>,
    /// The time that the documents were read at; not in files of the old tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_time: Option<String>,
    /// What wrote the file; not in files of the old tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
}

/// The name of a collection's file: `backup_<collection>_<YYYYmmdd_HHMMSS>.json`.
///
/// Of the collection's path only letters, digits, `_` and `-` are kept; other bytes are percent-encoded, so that no id can
/// lead out of the folder. A long one is cut and ends in `~` and a part of its hash.
pub fn file_name(collection: &CollectionPath, time: DateTime<Utc>) -> String {
    format!("backup_{}_{}.json", safe_name(collection.as_str()), stamp(time))
}

fn stamp(time: DateTime<Utc>) -> String {
    time.format("%Y%m%d_%H%M%S").to_string()
}

fn safe_name(collection: &str) -> String {
    /// File systems allow 255 bytes for the whole name.
    const LONGEST: usize = 160;
    let mut name = String::new();
    for letter in collection.chars() {
        if name.len() > LONGEST {
            let hash = blake3::hash(collection.as_bytes()).to_hex();
            name.push('~');
            name.push_str(&hash[..16]);
            break;
        }
        if letter.is_alphanumeric() || matches!(letter, '_' | '-') {
            name.push(letter);
        } else {
            for byte in letter.encode_utf8(&mut [0; 4]).bytes() {
                name.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    name
}

/// ISO 8601 in UTC, with as many digits as the time needs.
fn iso(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

impl From<(DocumentPath, CanonicalError)> for JsonError {
    fn from((document, error): (DocumentPath, CanonicalError)) -> Self {
        Self::Body {
            document,
            reason: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
