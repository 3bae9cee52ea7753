//! Writing a collection's file, one document at a time.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use tempfile::NamedTempFile;

use super::layout::{new_line, write_value};
use super::{JsonError, MAX_COLLECTION_DEPTH, Metadata, file_name, iso};
use crate::document::canonical::{self, CanonicalError};
use crate::document::typed_json::{self, FieldsJson};
use crate::document::{CollectionPath, DatabaseName, DocumentPath, Timestamp};

/// Room for the count of documents, which is known at the end: as many digits as a `u64` can have.
const COUNT_WIDTH: usize = 20;

/// Where a file's documents come from, and when.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The collection that the file is for.
    pub collection: CollectionPath,
    /// The database.
    pub database: DatabaseName,
    /// When the backup was made: goes into the file and into its name.
    pub time: DateTime<Utc>,
    /// The time that the documents were read at, where there is one time for all of them.
    pub read_time: Option<Timestamp>,
}

/// Writes a collection's file.
///
/// The file has another name until [`finish`](Self::finish) gives it its own; dropped before that, it is removed.
#[derive(Debug)]
pub struct CollectionWriter {
    folder: PathBuf,
    origin: Origin,
    out: BufWriter<NamedTempFile>,
    /// Where the room for `document_count` begins.
    count_at: u64,
    documents: u64,
    total_documents: u64,
    /// Whether `documents` has a member yet.
    filled: bool,
    /// The documents whose objects are open, from the outside in, each as its collection's id and its own.
    open: Vec<(String, String)>,
    last: Option<DocumentPath>,
    /// Reused: a document's object.
    scratch: Vec<u8>,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenFile {
    /// The file.
    pub file: PathBuf,
    /// Documents directly in the collection.
    pub document_count: u64,
    /// All documents.
    pub total_document_count: u64,
    /// The file's size.
    pub bytes: u64,
}

impl CollectionWriter {
    /// Begins a file in `folder`, which must exist.
    pub fn create(folder: &Path, origin: Origin) -> Result<Self, JsonError> {
        let file = tempfile::Builder::new()
            .prefix(".backup_")
            .suffix(".tmp")
            .tempfile_in(folder)
            .map_err(JsonError::io("create a file in", folder))?;
        let mut writer = Self {
            folder: folder.to_owned(),
            origin,
            out: BufWriter::with_capacity(256 * 1024, file),
            count_at: 0,
            documents: 0,
            total_documents: 0,
            filled: false,
            open: Vec::new(),
            last: None,
            scratch: Vec::new(),
        };
        let head = writer.head();
        writer.count_at = (head.len() - COUNT_TAIL.len() - COUNT_WIDTH) as u64;
        writer.put(head.as_bytes())?;
        Ok(writer)
    }

    fn head(&self) -> String {
        let collection = serde_json::Value::from(self.origin.collection.as_str());
        let timestamp = iso(self.origin.time);
        format!(
            "{{\n  \"collection\": {collection},\n  \"timestamp\": \"{timestamp}\",\n  \"document_count\": {:COUNT_WIDTH$}{COUNT_TAIL}",
            0
        )
    }

    /// Writes the document at `path`, whose fields `body` is the canonical form of. Documents come in ascending path order;
    /// parents that did not come are written as missing.
    pub fn write(&mut self, path: &DocumentPath, body: &[u8]) -> Result<(), JsonError> {
        let documents = self.place(path)?;
        self.scratch.clear();
        let mut object = std::mem::take(&mut self.scratch);
        self.enter(&documents, &mut object);
        let level = document_level(documents.len() - 1) + 1;
        write_fields(body, level, &mut object).map_err(|error| JsonError::Body {
            document: path.clone(),
            reason: error.to_string(),
        })?;
        self.put(&object)?;
        self.scratch = object;
        self.total_documents += 1;
        if documents.len() == 1 {
            self.documents += 1;
        }
        self.filled = true;
        self.open = owned(&documents);
        self.last = Some(path.clone());
        Ok(())
    }

    /// The documents on the way to `path`, itself included, as their collections' ids and their own.
    fn place<'p>(&self, path: &'p DocumentPath) -> Result<Vec<(&'p str, &'p str)>, JsonError> {
        if let Some(last) = &self.last
            && last >= path
        {
            return Err(JsonError::Order {
                previous: last.clone(),
                next: path.clone(),
            });
        }
        let collection = self.origin.collection.as_str();
        let below = path
            .as_str()
            .strip_prefix(collection)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| JsonError::OtherCollection {
                document: path.clone(),
                collection: self.origin.collection.clone(),
            })?;
        let mut segments = below.split('/');
        let mut documents = Vec::new();
        let mut collection = "";
        while let Some(id) = segments.next() {
            documents.push((collection, id));
            collection = segments.next().unwrap_or_default();
        }
        if documents.len() > MAX_COLLECTION_DEPTH + 1 {
            return Err(JsonError::TooDeep(path.clone()));
        }
        Ok(documents)
    }

    /// Closes what is open and not on the way to the last of `documents`, opens what is missing on it, and opens the last
    /// one's object after its id.
    fn enter(&self, documents: &[(&str, &str)], out: &mut Vec<u8>) {
        let common = (self.open.iter())
            .zip(documents)
            .take_while(|(open, next)| (&open.0[..], &open.1[..]) == **next)
            .count();
        let collection_stays = match self.open.get(common) {
            Some((collection, _)) => {
                self.close(common, out);
                collection == documents[common].0
            }
            None => false,
        };
        let last = documents.len() - 1;
        for (depth, &(collection, id)) in documents.iter().enumerate().skip(common) {
            let level = document_level(depth);
            let first_on_the_way = depth == common;
            if depth == 0 || (first_on_the_way && collection_stays) {
                if collection_stays {
                    out.push(b',');
                }
            } else {
                let sibling = first_on_the_way && self.open.len() > common;
                begin_collection(collection, sibling, level, out);
            }
            line(level, out);
            out.push(b'{');
            line(level + 1, out);
            member("id", id, out);
            if depth < last {
                out.push(b',');
                line(level + 1, out);
                out.extend_from_slice(b"\"$missing\": true");
            }
        }
    }

    /// Closes the open documents but for the outermost `keep`, and the collections in the documents that are closed. The
    /// collection of the outermost closed one stays open.
    fn close(&self, keep: usize, out: &mut Vec<u8>) {
        for depth in (keep..self.open.len()).rev() {
            if depth + 1 < self.open.len() {
                end_collections(document_level(depth), out);
            }
            line(document_level(depth), out);
            out.push(b'}');
        }
    }

    /// Ends the file, brings it to the disk and gives it its name.
    pub fn finish(mut self) -> Result<WrittenFile, JsonError> {
        let mut tail = Vec::new();
        self.close(0, &mut tail);
        if self.filled {
            line(1, &mut tail);
        }
        tail.extend_from_slice(b"],\n  \"metadata\": ");
        let metadata = self.metadata();
        let file = self
            .folder
            .join(file_name(&self.origin.collection, self.origin.time));
        let failed = |action| JsonError::io(action, &file);
        write_value(&mut tail, 1, &metadata).map_err(|error| failed("write")(error.into()))?;
        tail.extend_from_slice(b"\n}\n");
        self.put(&tail)?;

        let count = format!("{:COUNT_WIDTH$}", self.documents);
        let mut out = self
            .out
            .into_inner()
            .map_err(|error| failed("write")(error.into_error()))?;
        let bytes = out.stream_position().map_err(failed("write"))?;
        out.seek(SeekFrom::Start(self.count_at))
            .map_err(failed("write"))?;
        out.write_all(count.as_bytes()).map_err(failed("write"))?;
        publish(out, &self.folder, &file)?;
        Ok(WrittenFile {
            file,
            document_count: self.documents,
            total_document_count: self.total_documents,
            bytes,
        })
    }

    fn metadata(&self) -> Metadata {
        Metadata {
            backup_version: Some("1.0".to_owned()),
            firebase_project: Some(self.origin.database.project.clone()),
            backup_type: Some("full_collection".to_owned()),
            compression: Some("none".to_owned()),
            firebase_database: Some(self.origin.database.database.clone()),
            total_document_count: Some(self.total_documents),
            read_time: self.origin.read_time.map(|time| time.to_string()),
            tool: Some(concat!("firebank ", env!("CARGO_PKG_VERSION")).to_owned()),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), JsonError> {
        self.out
            .write_all(bytes)
            .map_err(JsonError::io("write a file in", &self.folder))
    }
}

/// What stands between the count and the first document.
const COUNT_TAIL: &str = ",\n  \"documents\": [";

/// Makes a finished temporary file durable under its own name, which must be free.
pub(super) fn publish(out: NamedTempFile, folder: &Path, file: &Path) -> Result<(), JsonError> {
    out.as_file().sync_all().map_err(JsonError::io("write", file))?;
    out.persist_noclobber(file).map_err(|error| {
        if error.error.kind() == std::io::ErrorKind::AlreadyExists {
            JsonError::AlreadyExists(file.to_owned())
        } else {
            JsonError::io("create", file)(error.error)
        }
    })?;
    // The name is durable when the folder is.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(JsonError::io("write the folder", folder))
}

/// The level of a document's brackets; it lies below `depth` subcollections.
fn document_level(depth: usize) -> usize {
    2 + 3 * depth
}

/// Begins the array of a collection whose documents are at `level`, after a sibling or as the first of a document.
fn begin_collection(collection: &str, sibling: bool, level: usize, out: &mut Vec<u8>) {
    if sibling {
        line(level - 1, out);
        out.extend_from_slice(b"],");
    } else {
        out.push(b',');
        line(level - 2, out);
        out.extend_from_slice(b"\"$collections\": {");
    }
    line(level - 1, out);
    put_text(collection, out);
    out.extend_from_slice(b": [");
}

/// Ends the last collection of a document at `level`, and with it `$collections`.
fn end_collections(level: usize, out: &mut Vec<u8>) {
    line(level + 2, out);
    out.push(b']');
    line(level + 1, out);
    out.push(b'}');
}

/// Appends the members for a document's fields, each after a comma.
fn write_fields(body: &[u8], level: usize, out: &mut Vec<u8>) -> Result<(), FieldError> {
    let mut apart = false;
    canonical::for_each_field_name(body, |name| apart |= name == "id" || name.starts_with('$'))?;
    if apart {
        out.push(b',');
        line(level, out);
        out.extend_from_slice(b"\"$fields\": ");
        return Ok(write_value(out, level, &FieldsJson::new(body))?);
    }
    typed_json::for_each_field(body, |name, value| {
        out.push(b',');
        line(level, out);
        put_text(name, out);
        out.extend_from_slice(b": ");
        Ok(write_value(out, level, &value)?)
    })
}

/// Why a document's fields cannot be written.
#[derive(Debug, thiserror::Error)]
enum FieldError {
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

fn member(name: &str, text: &str, out: &mut Vec<u8>) {
    put_text(name, out);
    out.extend_from_slice(b": ");
    put_text(text, out);
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    // A string always serializes, and memory takes it.
    let _ = serde_json::to_writer(out, text);
}

fn line(level: usize, out: &mut Vec<u8>) {
    let _ = new_line(out, level);
}

fn owned(documents: &[(&str, &str)]) -> Vec<(String, String)> {
    let pair = |&(collection, id): &(&str, &str)| (collection.to_owned(), id.to_owned());
    documents.iter().map(pair).collect()
}
