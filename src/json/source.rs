//! A file of documents, of either format, that is read more than once: through, and then again while its documents are written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ndjson::{read_lines, read_lines_of};
use super::{JsonError, read_documents};
use crate::document::{DocumentPath, Fields};

/// Documents in a file.
#[derive(Clone, Debug)]
pub struct DocumentsFile {
    /// What it is called, and where it is unless it was spooled.
    name: PathBuf,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    /// A collection's JSON file.
    Collection,
    /// One document a line.
    Lines,
    /// One document a line, in a file without a name.
    Spooled(Arc<File>),
}

impl DocumentsFile {
    /// The file at a path: NDJSON where its name ends in `.ndjson` or `.jsonl`, else a collection's JSON file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let name = path.into();
        match is_ndjson(&name) {
            true => Self::ndjson(name),
            false => Self::collection(name),
        }
    }

    /// The file at a path, which is a collection's JSON file whatever it is called.
    pub fn collection(path: impl Into<PathBuf>) -> Self {
        Self {
            name: path.into(),
            content: Content::Collection,
        }
    }

    /// The file at a path, which holds one document a line whatever it is called.
    pub fn ndjson(path: impl Into<PathBuf>) -> Self {
        Self {
            name: path.into(),
            content: Content::Lines,
        }
    }

    /// What a reader gives until its end: one document a line. It is kept on the disk, in the folder for temporary files, until
    /// this and its clones are dropped, because it must be read through before it is used. Errors call it `name`.
    pub fn spool(mut source: impl Read, name: impl Into<PathBuf>) -> Result<Self, JsonError> {
        let name = name.into();
        let mut file = tempfile::tempfile().map_err(JsonError::io("keep a copy of", &name))?;
        io::copy(&mut source, &mut file).map_err(JsonError::io("keep a copy of", &name))?;
        Ok(Self {
            name,
            content: Content::Spooled(Arc::new(file)),
        })
    }

    /// What it is called.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Calls `each` with every document, in the file's order, and says how many there are. Stops at the first error of `each`
    /// and returns it. Clones that were spooled must not be read at the same time.
    pub fn read<E: From<JsonError>>(
        &self,
        each: impl FnMut(DocumentPath, Fields) -> Result<(), E>,
    ) -> Result<u64, E> {
        match &self.content {
            Content::Collection => {
                read_documents(&self.name, each).map(|checked| checked.total_document_count)
            }
            Content::Lines => read_lines(&self.name, each),
            Content::Spooled(file) => {
                let mut file = &**file;
                file.seek(SeekFrom::Start(0))
                    .map_err(JsonError::io("read", &self.name))?;
                read_lines_of(file, &self.name, each)
            }
        }
    }
}

/// Whether a file's name says that it is NDJSON.
pub fn is_ndjson(name: &Path) -> bool {
    name.extension()
        .is_some_and(|extension| extension == "ndjson" || extension == "jsonl")
}
