//! The file that takes the documents that could not be written.
//!
//! One JSON object a line, so that what is there is whole after a crash: each line is written at once, and the file is
//! synced at the end. It holds documents, so nobody but its owner may read it. It appears with the first failure: a
//! restore without any leaves no file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tonic::Code;

use super::{FailureSink, Recorded, WriteFailure};
use crate::document::typed_json::FieldsJson;

/// Writes failures to a file: `{"path", "code", "reason", "document"}` a line; `document` has the
/// fields as typed JSON (see [`typed_json`](crate::document::typed_json)) and is null for a deletion.
#[derive(Debug)]
pub struct DeadLetterFile {
    path: PathBuf,
    file: Option<File>,
}

#[derive(Serialize)]
struct Line<'a> {
    path: &'a str,
    code: &'static str,
    reason: &'a str,
    document: Option<FieldsJson<'a>>,
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
    Ok(file)
}

impl FailureSink for DeadLetterFile {
    fn record(&mut self, failure: WriteFailure) -> io::Result<Recorded> {
        let line = Line {
            path: failure.path.as_str(),
            code: code_name(failure.code),
            reason: &failure.reason,
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
    use crate::document::{DocumentPath, Value, canonical};
    use crate::firestore::{OwnedChange, Precondition};

    fn failure(path: &str, body: Option<Vec<u8>>) -> WriteFailure {
        WriteFailure {
            path: DocumentPath::parse(path).unwrap(),
            code: Code::AlreadyExists,
            reason: "it \"exists\"\nalready".to_owned(),
            change: body.map_or(OwnedChange::Delete, |body| OwnedChange::Put { body }),
            precondition: Precondition::None,
        }
    }

    #[test]
    fn a_line_for_each_failure_and_no_file_without_any() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("failed.ndjson");
        DeadLetterFile::new(&path).sync().unwrap();
        assert!(!path.exists());

        let body = canonical::encode(&[("n".to_owned(), Value::Integer(5))].into());
        let mut file = DeadLetterFile::new(&path);
        file.record(failure("a/1", Some(body))).unwrap();
        file.record(failure("a/2", None)).unwrap();
        file.sync().unwrap();
        DeadLetterFile::new(&path).record(failure("a/3", None)).unwrap();

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
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["path"], "a/1");
        assert_eq!(lines[0]["code"], "ALREADY_EXISTS");
        assert_eq!(lines[0]["reason"], "it \"exists\"\nalready");
        assert_eq!(lines[0]["document"], serde_json::json!({"n": 5}));
        assert!(lines[1]["document"].is_null());
    }
}
