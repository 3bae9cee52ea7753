//! The file that takes the documents that could not be written.
//!
//! One JSON object a line, so that what is there is whole after a crash: each line is written at once, and the file is
//! synced at the end. It holds documents, so nobody but its owner may read it. It appears with the first failure: a
//! restore without any leaves no file.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tonic::Code;

use super::{FailureSink, OwnedChange, Precondition, Recorded, WriteFailure};
use crate::document::typed_json::{FieldsJson, fields_from_raw};
use crate::document::{DocumentPath, Timestamp, canonical};

/// The longest line that is read: a document of the largest size in JSON stays far below.
const LONGEST_LINE: u64 = 64 << 20;

/// Writes failures to a file, one JSON object a line:
///
/// | member | |
/// | --- | --- |
/// | `path` | the document's path |
/// | `operation` | `put`, `patch` or `delete` |
/// | `status`, `reason` | why it failed: the name of gRPC's status, and the server's words |
/// | `document` | the fields as typed JSON (see [`typed_json`](crate::document::typed_json)), null for a deletion |
/// | `mask` | of a patch, the field paths that it sets or, where `document` lacks them, removes |
/// | `precondition` | where the write had one: `{"exists": false}`, or `{"update_time": "2025-06-29T12:00:00Z"}` |
#[derive(Debug)]
pub struct DeadLetterFile {
    path: PathBuf,
    file: Option<File>,
}

#[derive(Serialize)]
struct Line<'a> {
    path: &'a str,
    operation: Operation,
    status: &'static str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    precondition: Option<Condition>,
    document: Option<FieldsJson<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    Put,
    Patch,
    Delete,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Condition {
    Exists(bool),
    UpdateTime(String),
}

impl Condition {
    fn of(precondition: Precondition) -> Option<Self> {
        match precondition {
            Precondition::None => None,
            Precondition::MustNotExist => Some(Self::Exists(false)),
            Precondition::MustExist => Some(Self::Exists(true)),
            Precondition::UpdateTime(time) => Some(Self::UpdateTime(time.to_string())),
        }
    }

    fn precondition(&self) -> Result<Precondition, String> {
        Ok(match self {
            Self::Exists(false) => Precondition::MustNotExist,
            Self::Exists(true) => Precondition::MustExist,
            Self::UpdateTime(time) => {
                let time = DateTime::parse_from_rfc3339(time)
                    .map_err(|error| format!("`{time}` is no time: {error}"))?;
                Precondition::UpdateTime(Timestamp::from(time.to_utc()))
            }
        })
    }
}

impl DeadLetterFile {
    /// Lines are added to the file if it exists; it is created when there is something to write.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            file: None,
        }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        match &mut self.file {
            Some(file) => Ok(file),
            none => Ok(none.insert(open(&self.path)?)),
        }
    }

    /// The error with the file that it is about.
    fn named(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    // A file that was there before keeps its mode otherwise.
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    // There is nothing to look at in a pipe.
    if file.metadata()?.is_file() {
        end_last_line(path)?;
    }
    Ok(file)
}

/// What each line begins with.
const BEGINNING: &[u8] = br#"{"path":""#;

/// Makes sure that what is added begins a line. A letter that a full disk or a kill has cut off is removed: its write was not
/// taken for recorded, so it comes again, and a torn line in the middle would make the whole file unreadable.
fn end_last_line(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    let (start, line) = last_line(&mut file, length)?;
    if line.is_empty() {
        return Ok(());
    }
    let is_letter = line.starts_with(BEGINNING) || BEGINNING.starts_with(&line);
    if is_letter && parse(&line).is_err() {
        tracing::warn!("{}: its last line was cut off, and is removed", path.display());
        return file.set_len(start);
    }
    file.seek(SeekFrom::End(0))?;
    file.write_all(b"\n")
}

/// Where the last line of a file of this length begins, and the line; it is empty where the file ends with a line's end.
fn last_line(file: &mut File, length: u64) -> io::Result<(u64, Vec<u8>)> {
    let (mut start, mut line) = (length, Vec::new());
    while start > 0 && length - start < LONGEST_LINE {
        // As much again as there is already.
        let more = start.min((length - start).max(64 << 10));
        start -= more;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        Read::by_ref(file).take(more).read_to_end(&mut bytes)?;
        if let Some(at) = bytes.iter().rposition(|byte| *byte == b'\n') {
            bytes.drain(..=at);
            start += at as u64 + 1;
            bytes.append(&mut line);
            return Ok((start, bytes));
        }
        bytes.append(&mut line);
        line = bytes;
    }
    Ok((start, line))
}

impl FailureSink for DeadLetterFile {
    fn record(&mut self, failure: WriteFailure) -> io::Result<Recorded> {
        let (operation, mask) = match &failure.change {
            OwnedChange::Put { .. } => (Operation::Put, None),
            OwnedChange::Patch { mask, .. } => (Operation::Patch, Some(&mask[..])),
            OwnedChange::Delete => (Operation::Delete, None),
        };
        let line = Line {
            path: failure.path.as_str(),
            operation,
            status: code_name(failure.code),
            reason: &failure.reason,
            mask,
            precondition: Condition::of(failure.precondition),
            document: failure.body().map(FieldsJson::new),
        };
        let mut line = serde_json::to_vec(&line)?;
        line.push(b'\n');
        let written = self.file().and_then(|file| file.write_all(&line));
        written.map_err(|error| self.named(error))?;
        Ok(Recorded::Failed)
    }

    fn sync(&mut self) -> io::Result<()> {
        match &self.file {
            Some(file) => file.sync_all().map_err(|error| self.named(error)),
            None => Ok(()),
        }
    }
}

/// A line that is no dead letter.
#[derive(Debug, thiserror::Error)]
#[error("{}, line {line}: {what}", file.display())]
pub struct DeadLetterError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1; 0 for the file itself.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
}

/// The failures in a file, in its order.
#[derive(Debug)]
pub struct DeadLetters {
    path: PathBuf,
    file: BufReader<File>,
    line: u64,
    text: Vec<u8>,
}

#[derive(Deserialize)]
struct ReadLine<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    operation: Operation,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    reason: Cow<'a, str>,
    #[serde(default)]
    mask: Option<Vec<String>>,
    #[serde(default)]
    precondition: Option<Condition>,
    #[serde(borrow)]
    document: Option<&'a RawValue>,
}

impl DeadLetters {
    /// Begins to read a file.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DeadLetterError> {
        let path = path.into();
        match File::open(&path) {
            Ok(file) => Ok(Self {
                path,
                file: BufReader::new(file),
                line: 0,
                text: Vec::new(),
            }),
            Err(error) => Err(DeadLetterError {
                file: path,
                line: 0,
                what: error.to_string(),
            }),
        }
    }

    /// The next failure.
    fn read(&mut self) -> Result<Option<WriteFailure>, String> {
        loop {
            self.text.clear();
            self.line += 1;
            let mut limited = (&mut self.file).take(LONGEST_LINE);
            let read = limited.read_until(b'\n', &mut self.text);
            if read.map_err(|error| error.to_string())? == 0 {
                return Ok(None);
            }
            if self.text.len() as u64 == LONGEST_LINE {
                return Err("too long for a document".to_owned());
            }
            if !self.text.trim_ascii().is_empty() {
                return parse(&self.text).map(Some);
            }
        }
    }
}

impl Iterator for DeadLetters {
    type Item = Result<WriteFailure, DeadLetterError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read()
            .map_err(|what| DeadLetterError {
                file: self.path.clone(),
                line: self.line,
                what,
            })
            .transpose()
    }
}

fn parse(line: &[u8]) -> Result<WriteFailure, String> {
    let line: ReadLine<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let body = match line.document.filter(|document| document.get() != "null") {
        Some(document) => {
            let fields = fields_from_raw(document).map_err(|error| error.to_string())?;
            Some(canonical::encode(&fields))
        }
        None => None,
    };
    let change = match (line.operation, body, line.mask) {
        (Operation::Put, Some(body), None) => OwnedChange::Put { body },
        (Operation::Patch, Some(body), Some(mask)) => OwnedChange::Patch { body, mask },
        (Operation::Delete, None, None) => OwnedChange::Delete,
        _ => return Err("the operation, the document and the mask do not go together".to_owned()),
    };
    let precondition = line.precondition.map(|condition| condition.precondition());
    Ok(WriteFailure {
        path: DocumentPath::parse(line.path).map_err(|error| error.to_string())?,
        code: CODES
            .into_iter()
            .find(|code| code_name(*code) == line.status)
            .unwrap_or(Code::Unknown),
        reason: line.reason.into_owned(),
        change,
        precondition: precondition.transpose()?.unwrap_or_default(),
    })
}

const CODES: [Code; 17] = [
    Code::Ok,
    Code::Cancelled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unauthenticated,
];

/// gRPC's own name of a status.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{DocumentPath, Value};

    fn failure(path: &str, change: OwnedChange, precondition: Precondition) -> WriteFailure {
        WriteFailure {
            path: DocumentPath::parse(path).unwrap(),
            code: Code::AlreadyExists,
            reason: "it \"exists\"\nalready".to_owned(),
            change,
            precondition,
        }
    }

    fn failures() -> Vec<WriteFailure> {
        let body = canonical::encode(&[("n".to_owned(), Value::Integer(5))].into());
        let put = OwnedChange::Put { body: body.clone() };
        let mask = vec!["n".to_owned(), "`odd one`.b".to_owned()];
        let time = Timestamp::new(1_700_000_000, 123_456_000);
        vec![
            failure("a/1", put.clone(), Precondition::MustNotExist),
            failure("a/2", OwnedChange::Delete, Precondition::None),
            failure("a/ü\n", put.clone(), Precondition::None),
            failure(
                "a/3",
                OwnedChange::Patch { body, mask },
                Precondition::UpdateTime(time),
            ),
            failure("a/4", OwnedChange::Delete, Precondition::MustExist),
        ]
    }

    #[test]
    fn a_line_for_each_failure_and_no_file_without_any() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failed.ndjson");
        DeadLetterFile::new(&path).sync().unwrap();
        assert!(!path.exists());

        let failures = failures();
        let mut file = DeadLetterFile::new(&path);
        for failure in &failures[..2] {
            file.record(failure.clone()).unwrap();
        }
        file.sync().unwrap();
        // As after a restart: what is there stays.
        let mut file = DeadLetterFile::new(&path);
        for failure in &failures[2..] {
            file.record(failure.clone()).unwrap();
        }

        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0]["path"], "a/1");
        assert_eq!(lines[0]["status"], "ALREADY_EXISTS");
        assert_eq!(lines[0]["reason"], "it \"exists\"\nalready");
        assert_eq!(lines[0]["document"], serde_json::json!({"n": 5}));
        assert!(lines[1]["document"].is_null());

        let read: Vec<WriteFailure> = DeadLetters::open(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(read, failures);
    }

    /// A full disk, or a kill, cuts a line off. Its write is not taken for recorded, so it comes again.
    #[test]
    fn what_comes_after_a_torn_line_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failed.ndjson");
        let failures = failures();
        let record = |failures: &[WriteFailure]| {
            let mut file = DeadLetterFile::new(&path);
            for failure in failures {
                file.record(failure.clone()).unwrap();
            }
        };
        let read =
            || -> Vec<WriteFailure> { DeadLetters::open(&path).unwrap().map(Result::unwrap).collect() };
        record(&failures[..2]);
        let whole = std::fs::read(&path).unwrap();
        let lines: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
        for cut in 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            record(&failures[2..]);
            // A line that only lacks its end is whole.
            let kept = lines.iter().filter(|end| **end <= cut).count();
            let expected: Vec<_> = failures[..kept].iter().chain(&failures[2..]).cloned().collect();
            assert_eq!(read(), expected, "cut at {cut}");
        }
        // What is none of ours is not touched.
        for other in ["a note", "{\"path\": \"a/1\"}", "\n{\"other\": 1"] {
            std::fs::write(&path, other).unwrap();
            record(&failures[2..3]);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with(&format!("{other}\n{{")), "{text}");
        }
    }

    #[test]
    fn what_is_no_dead_letter_is_refused_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failed.ndjson");
        let good =
            r#"{"path": "a/1", "operation": "delete", "status": "ABORTED", "reason": "", "document": null}"#;
        for bad in [
            "{",
            &good.replace("a/1", "a"),
            &good.replace("delete", "put"),
            &good.replace("null", "{}"),
            &good.replace("null", r#"null, "precondition": {"update_time": "noon"}"#),
        ] {
            std::fs::write(&path, format!("{good}\n\n{bad}\n{good}\n")).unwrap();
            let mut letters = DeadLetters::open(&path).unwrap();
            letters.next().unwrap().unwrap();
            let error = letters.next().unwrap().unwrap_err();
            assert_eq!(error.line, 3, "{error}");
        }
        assert!(DeadLetters::open(folder.path().join("none")).is_err());
    }
}
