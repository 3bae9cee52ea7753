//! Writes a snapshot as NDJSON: a file for each root collection, one file, or a stream.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::pin::pin;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};

use super::{ExportError, chosen_collections, explain, write_through};
use crate::archive::{Lease, SnapshotReader};
use crate::document::{CollectionPath, DocumentRef, KeyRange};
use crate::json::{JsonError, LineFile, LineWriter, ndjson_file_name};
use crate::progress::Progress;

/// Where the lines go.
pub enum LinesTo {
    /// A file for each root collection in this folder, which must exist.
    Folder(PathBuf),
    /// One file, whose folder must exist, and which must not.
    File(PathBuf),
    /// A stream, which errors call by this name.
    Stream(Box<dyn Write + Send>, PathBuf),
}

impl fmt::Debug for LinesTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => f.debug_tuple("Folder").field(folder).finish(),
            Self::File(file) => f.debug_tuple("File").field(file).finish(),
            Self::Stream(_, name) => f.debug_tuple("Stream").field(name).finish(),
        }
    }
}

/// What to write.
#[derive(Clone, Debug)]
pub struct LinesOptions {
    /// Root collections; none means all.
    pub collections: Vec<CollectionPath>,
    /// Whether all collections include [`MIGRATIONS_COLLECTION`](super::MIGRATIONS_COLLECTION).
    pub include_migrations: bool,
    /// The time in the names of files in a folder.
    pub time: DateTime<Utc>,
}

/// A file or stream of lines that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenLines {
    /// The collections in it.
    pub collections: Vec<CollectionPath>,
    /// The file, or the name of the stream.
    pub file: PathBuf,
    /// Documents in it.
    pub documents: u64,
    /// Its size.
    pub bytes: u64,
}

/// What an export as lines wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinesStats {
    /// The files, or the stream.
    pub files: Vec<WrittenLines>,
    /// Collections that were named and have no document.
    pub empty: Vec<CollectionPath>,
}

/// Writes collections of a snapshot, in path order.
///
/// # Errors
/// At the first thing that cannot be read or written. Files that are there by then are whole, and a file that is not whole is
/// not there.
pub async fn export_lines(
    reader: &SnapshotReader,
    to: LinesTo,
    options: &LinesOptions,
    progress: &Progress,
) -> Result<LinesStats, ExportError> {
    let lease = Lease::of(reader, "export").await?;
    let mut exported = export(reader, to, options, progress).await;
    lease.release().await;
    if let Err(error) = &mut exported {
        explain(reader, error).await;
    }
    exported
}

async fn export(
    reader: &SnapshotReader,
    to: LinesTo,
    options: &LinesOptions,
    progress: &Progress,
) -> Result<LinesStats, ExportError> {
    let mut collections =
        chosen_collections(reader, &options.collections, options.include_migrations).await?;
    collections.sort_by_cached_key(|path| path.key_range().start);
    let mut empty = Vec::new();
    for named in &options.collections {
        let mut records = pin!(reader.records(named.key_range()));
        if records.try_next().await?.is_none() {
            empty.push(named.clone());
        }
    }
    let documents = |collections: &[CollectionPath]| {
        // One may lie below another, and no document is to be there twice.
        let ranges = KeyRange::merge(collections.iter().map(CollectionPath::key_range).collect());
        let reader = reader.clone();
        stream::iter(ranges)
            .flat_map(move |range| reader.documents(range).boxed())
            .map_err(ExportError::from)
    };
    let files = match to {
        LinesTo::Folder(folder) => {
            let mut files = Vec::with_capacity(collections.len());
            for collection in collections {
                let file = folder.join(ndjson_file_name(&collection, options.time));
                let collections = vec![collection];
                let documents = documents(&collections);
                let written =
                    write_through(documents, move || File::create(file, collections), progress).await?;
                files.push(written);
            }
            files
        }
        LinesTo::File(file) => {
            let documents = documents(&collections);
            vec![write_through(documents, move || File::create(file, collections), progress).await?]
        }
        LinesTo::Stream(out, name) => {
            let documents = documents(&collections);
            let lines = LineWriter::new(out, &name);
            let open = move || {
                Ok(Output {
                    lines,
                    name,
                    collections,
                })
            };
            vec![write_through(documents, open, progress).await?]
        }
    };
    Ok(LinesStats { files, empty })
}

struct File {
    file: LineFile,
    collections: Vec<CollectionPath>,
}

impl File {
    fn create(file: PathBuf, collections: Vec<CollectionPath>) -> Result<Self, ExportError> {
        let file = LineFile::create(file)?;
        Ok(Self { file, collections })
    }
}

impl super::Writer for File {
    type Written = WrittenLines;

    fn write(&mut self, document: DocumentRef<'_>) -> Result<(), ExportError> {
        Ok(self.file.write(&document.path()?, document)?)
    }

    fn finish(self) -> Result<WrittenLines, ExportError> {
        let (file, documents, bytes) = self.file.finish()?;
        Ok(WrittenLines {
            collections: self.collections,
            file,
            documents,
            bytes,
        })
    }
}

struct Output {
    lines: LineWriter<Box<dyn Write + Send>>,
    name: PathBuf,
    collections: Vec<CollectionPath>,
}

impl super::Writer for Output {
    type Written = WrittenLines;

    fn write(&mut self, document: DocumentRef<'_>) -> Result<(), ExportError> {
        Ok(self.lines.write(&document.path()?, document)?)
    }

    fn finish(self) -> Result<WrittenLines, ExportError> {
        let (documents, bytes) = (self.lines.documents(), self.lines.bytes());
        self.lines.finish()?.flush().map_err(|source| JsonError::Io {
            action: "write",
            file: self.name.clone(),
            source,
        })?;
        Ok(WrittenLines {
            collections: self.collections,
            file: self.name,
            documents,
            bytes,
        })
    }
}
