//! NDJSON: one document a line, with its path and its fields as [typed JSON](crate::document::typed_json).
//!
//! ```json
//! {"path":"products/p1","create_time":"2025-06-29T12:00:00Z","update_time":"2025-06-29T12:00:00Z","document":{"price":349.99}}
//! ```
//!
//! Lines can be cut, joined, filtered and loaded by other tools without a parser of their own for files of any size. Every
//! line stands alone, at any depth of subcollections, and a document that is missing needs none: the paths below it tell.
//! A reader needs `path` and `document`; the times say when a document was written and cannot be restored, and other
//! members are left alone, so that lines of a dead-letter file are read too, as far as they are documents: a patch, a
//! deletion, or what was only to be written under a condition is refused, because it is none.
//!
//! Nothing says how many lines there should be, so a file that was cut off between two lines looks whole.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tempfile::NamedTempFile;

use super::write::publish;
use super::{JsonError, safe_name, stamp};
use crate::document::typed_json::{FieldsJson, fields_from_raw};
use crate::document::{CollectionPath, DocumentPath, DocumentRef, Fields};

/// Bytes that a line may have: a document of the largest size with every byte of it escaped has less.
const LONGEST_LINE: u64 = 64 << 20;
const BUFFER: usize = 256 << 10;

#[derive(Serialize)]
struct LineOut<'a> {
    path: &'a DocumentPath,
    create_time: String,
    update_time: String,
    document: FieldsJson<'a>,
}

#[derive(Deserialize)]
struct LineIn<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow)]
    document: &'a RawValue,
    /// Of a dead-letter file, as are those that follow.
    #[serde(borrow, default)]
    operation: Option<&'a RawValue>,
    #[serde(default)]
    mask: Option<IgnoredAny>,
    #[serde(default)]
    precondition: Option<IgnoredAny>,
}

impl LineIn<'_> {
    /// Why it is more, or less, than a document.
    fn is_no_document(&self) -> Option<&'static str> {
        let is_put = |operation: &&RawValue| operation.get() == "\"put\"";
        if self.document.get() == "null" {
            return Some("its `document` is null, as of a deletion that failed");
        }
        if self.mask.is_some() || !self.operation.as_ref().is_none_or(is_put) {
            return Some("it is a dead letter with some fields of a document, and not a document");
        }
        let has_condition = self.precondition.is_some();
        has_condition.then_some("it is a dead letter that was to be written under a condition only")
    }
}

/// The name of a collection's NDJSON file: `backup_<collection>_<YYYYmmdd_HHMMSS>.ndjson`.
pub fn ndjson_file_name(collection: &CollectionPath, time: chrono::DateTime<chrono::Utc>) -> String {
    format!("backup_{}_{}.ndjson", safe_name(collection.as_str()), stamp(time))
}

/// Writes documents as lines, in the order in which they come.
#[derive(Debug)]
pub struct LineWriter<W: Write> {
    out: BufWriter<W>,
    /// What the output is called in errors.
    name: PathBuf,
    /// Reused: a line.
    line: Vec<u8>,
    documents: u64,
    bytes: u64,
}

impl<W: Write> LineWriter<W> {
    /// Writes into `out`, which errors call `name`.
    pub fn new(out: W, name: impl Into<PathBuf>) -> Self {
        Self {
            out: BufWriter::with_capacity(BUFFER, out),
            name: name.into(),
            line: Vec::new(),
            documents: 0,
            bytes: 0,
        }
    }

    /// Writes a document.
    pub fn write(&mut self, path: &DocumentPath, document: DocumentRef<'_>) -> Result<(), JsonError> {
        self.line.clear();
        let line = LineOut {
            path,
            create_time: document.create_time.to_string(),
            update_time: document.update_time.to_string(),
            document: FieldsJson::new(document.body),
        };
        serde_json::to_writer(&mut self.line, &line).map_err(|error| JsonError::Body {
            document: path.clone(),
            reason: error.to_string(),
        })?;
        self.line.push(b'\n');
        self.out
            .write_all(&self.line)
            .map_err(JsonError::io("write", &self.name))?;
        self.documents += 1;
        self.bytes += self.line.len() as u64;
        Ok(())
    }

    /// Documents written so far.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hands on what is buffered, and the output itself.
    pub fn finish(self) -> Result<W, JsonError> {
        let Self { out, name, .. } = self;
        out.into_inner()
            .map_err(|error| JsonError::io("write", &name)(error.into_error()))
    }
}

/// A file of lines in the making: it has another name until it is whole and on the disk; dropped before that, it is removed.
#[derive(Debug)]
pub struct LineFile {
    lines: LineWriter<NamedTempFile>,
    folder: PathBuf,
    file: PathBuf,
}

impl LineFile {
    /// Begins the file. Its folder must exist, and nothing may have its name.
    pub fn create(file: PathBuf) -> Result<Self, JsonError> {
        if file.exists() {
            return Err(JsonError::AlreadyExists(file));
        }
        let folder = match file.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let out = tempfile::Builder::new()
            .prefix(".backup_")
            .suffix(".tmp")
            .tempfile_in(&folder)
            .map_err(JsonError::io("create a file in", &folder))?;
        Ok(Self {
            lines: LineWriter::new(out, &file),
            folder,
            file,
        })
    }

    /// Writes a document.
    pub fn write(&mut self, path: &DocumentPath, document: DocumentRef<'_>) -> Result<(), JsonError> {
        self.lines.write(path, document)
    }

    /// Ends the file, brings it to the disk and gives it its name. Says how many documents and bytes it has.
    pub fn finish(self) -> Result<(PathBuf, u64, u64), JsonError> {
        let (documents, bytes) = (self.lines.documents(), self.lines.bytes());
        publish(self.lines.finish()?, &self.folder, &self.file)?;
        Ok((self.file, documents, bytes))
    }
}

/// Calls `each` with the document of every line of a file, in the file's order, and says how many there are. Empty lines are
/// passed over. Stops at the first error of `each` and returns it.
pub fn read_lines<E: From<JsonError>>(
    file: &Path,
    each: impl FnMut(DocumentPath, Fields) -> Result<(), E>,
) -> Result<u64, E> {
    let source = File::open(file).map_err(JsonError::io("open", file))?;
    read_lines_of(source, file, each)
}

/// The same for what any reader gives, which errors call `name`.
pub fn read_lines_of<E: From<JsonError>>(
    source: impl Read,
    name: &Path,
    mut each: impl FnMut(DocumentPath, Fields) -> Result<(), E>,
) -> Result<u64, E> {
    let mut source = std::io::BufReader::with_capacity(BUFFER, source);
    let (mut line, mut number, mut documents) = (Vec::new(), 0, 0);
    loop {
        line.clear();
        number += 1;
        let length = (&mut source)
            .take(LONGEST_LINE + 1)
            .read_until(b'\n', &mut line)
            .map_err(JsonError::io("read", name))?;
        if length == 0 {
            return Ok(documents);
        }
        let bad = |reason: String| JsonError::Line {
            file: name.to_owned(),
            line: number,
            reason,
        };
        if length as u64 > LONGEST_LINE {
            return Err(bad(format!("it is longer than {} MiB", LONGEST_LINE >> 20)).into());
        }
        // Some editors begin a file with a mark of its encoding.
        let text = match number {
            1 => line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&line),
            _ => &line,
        };
        if text.trim_ascii().is_empty() {
            continue;
        }
        let (path, fields) = parse(text).map_err(bad)?;
        documents += 1;
        each(path, fields)?;
    }
}

/// The document of a line, or what is wrong with it.
fn parse(line: &[u8]) -> Result<(DocumentPath, Fields), String> {
    let line: LineIn<'_> = serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        // It says that it is line 1: of what it was given.
        let what = text.rfind(" at line ").map_or(&text[..], |end| &text[..end]);
        match error.is_eof() {
            true => format!("it is cut off ({what})"),
            false => format!("column {}: {what}", error.column()),
        }
    })?;
    if let Some(reason) = line.is_no_document() {
        return Err(format!(
            "{reason}: `firebank restore --retry` writes dead letters as they were meant"
        ));
    }
    let path = DocumentPath::parse(line.path).map_err(|error| format!("`path`: {error}"))?;
    let fields = fields_from_raw(line.document).map_err(|error| format!("`{path}`: {error}"))?;
    Ok((path, fields))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Timestamp;
    use crate::document::canonical;
    use crate::document::testing;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Vec<(String, Fields)>, JsonError> {
        let mut documents = Vec::new();
        read_lines_of::<JsonError>(text, Path::new("x.ndjson"), |path, fields| {
            documents.push((path.to_string(), fields));
            Ok(())
        })
        .map(|count| {
            assert_eq!(count, documents.len() as u64);
            documents
        })
    }

    fn error(text: &[u8]) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn a_line_is_a_document_whatever_else_it_says() {
        let text = "\u{feff}{\"path\": \"a/1\", \"document\": {\"n\": 5}}\r\n\n  \n\
            {\"code\": \"ABORTED\", \"document\": {}, \"reason\": \"x\", \"path\": \"a/\\u0031/b/2\"}";
        let documents = read(text.as_bytes()).unwrap();
        let paths: Vec<&str> = documents.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["a/1", "a/1/b/2"]);
        assert!(read(b"").unwrap().is_empty());
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        let good = b"{\"path\":\"a/1\",\"document\":{}}\n";
        for (bad, says) in [
            (&b"{\"path\":\"a/1\",\"document\":{}"[..], "line 2: it is cut off"),
            (b"{\"path\":\"a/1\"}", "missing field `document`"),
            (b"{\"document\":{}}", "missing field `path`"),
            (b"{\"path\":\"a\",\"document\":{}}", "`path`: "),
            (b"{\"path\":\"a/1\",\"document\":null}", "null"),
            (b"{\"path\":\"a/1\",\"document\":[]}", "`a/1`: "),
            (
                b"{\"path\":\"a/1\",\"document\":{\"t\":{\"$timestamp\":1}}}",
                "(at t)",
            ),
            (b"{\"path\":\"a/1\",\"document\":{}} x", "column 30"),
            (
                b"{\"path\":\"a/1\",\"path\":\"a/2\",\"document\":{}}",
                "duplicate field `path`",
            ),
            (b"{\"path\":\"a/\xff\",\"document\":{}}", "column"),
            (b"7", "column 1"),
        ] {
            let message = error(&[good, bad].concat());
            assert!(
                message.starts_with("x.ndjson, line 2: ") && message.contains(says),
                "{message}"
            );
        }
    }

    #[test]
    fn a_line_without_an_end_takes_bounded_memory() {
        let endless = std::io::repeat(b' ').take(LONGEST_LINE + 10);
        let read = read_lines_of::<JsonError>(endless, Path::new("x"), |_, _| Ok(()));
        assert!(read.unwrap_err().to_string().contains("longer than 64 MiB"));
    }

    #[test]
    fn a_file_appears_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("x.ndjson");
        let path = DocumentPath::parse("a/1").unwrap();
        let body = canonical::encode(&Fields::new());
        let key = path.key();
        let document = DocumentRef {
            key: key.as_bytes(),
            create_time: Timestamp::default(),
            update_time: Timestamp::default(),
            body: &body,
        };
        let mut file = LineFile::create(name.clone()).unwrap();
        file.write(&path, document).unwrap();
        assert!(!name.exists());
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut file = LineFile::create(name.clone()).unwrap();
        file.write(&path, document).unwrap();
        let (written, documents, bytes) = file.finish().unwrap();
        assert_eq!((&written, documents), (&name, 1));
        assert_eq!(std::fs::metadata(&name).unwrap().len(), bytes);
        assert!(matches!(LineFile::create(name), Err(JsonError::AlreadyExists(_))));
    }

    proptest! {
        #[test]
        fn every_value_comes_back(fields in testing::fields()) {
            let path = DocumentPath::parse("a/\"\u{2028}\n").unwrap();
            let body = canonical::encode(&fields);
            let key = path.key();
            let mut lines = LineWriter::new(Vec::new(), "x");
            let document = DocumentRef {
                key: key.as_bytes(),
                create_time: Timestamp::default(),
                update_time: Timestamp::default(),
                body: &body,
            };
            lines.write(&path, document).unwrap();
            let text = lines.finish().unwrap();
            prop_assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 1);
            let read = read(&text).unwrap();
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(&read[0].0, path.as_str());
            prop_assert_eq!(canonical::encode(&read[0].1), body);
        }
    }
}
