//! The same nights with tools that back up files, for those who keep exports: restic and borg, where they are
//! installed.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;

use firebank::document::typed_json::FieldsJson;
use futures::TryStreamExt;
use serde::Serialize;
use tempfile::TempDir;

use crate::changing::ChangingDatabase;
use crate::measure::process::run;
use crate::stored_bytes;

/// A tool that backs up files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tool {
    Restic,
    Borg,
}

impl Tool {
    pub(crate) const ALL: [Self; 2] = [Self::Restic, Self::Borg];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Restic => "restic",
            Self::Borg => "borg",
        }
    }

    /// What it says its version is; `None` where it is not installed.
    pub(crate) fn version(self) -> Option<String> {
        let argument = match self {
            Self::Restic => "version",
            Self::Borg => "--version",
        };
        let printed = Command::new(self.name()).arg(argument).output().ok()?;
        let said = String::from_utf8_lossy(&printed.stdout);
        Some(said.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    }
}

/// A repository of such a tool, removed when this is dropped.
pub(crate) struct ToolRepository {
    tool: Tool,
    folder: TempDir,
}

impl ToolRepository {
    pub(crate) fn create(tool: Tool, parent: &Path) -> anyhow::Result<Self> {
        let repository = Self {
            tool,
            folder: tempfile::tempdir_in(parent)?,
        };
        let mut command = repository.command();
        match tool {
            Tool::Restic => command.arg("init"),
            Tool::Borg => command
                .args(["init", "--encryption", "none"])
                .arg(repository.path()),
        };
        run(&mut command)?;
        Ok(repository)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.tool.name());
        match self.tool {
            Tool::Restic => {
                command.args(["--quiet", "--no-cache", "--repo"]).arg(self.path());
                command.env("RESTIC_PASSWORD", "benchmark")
            }
            Tool::Borg => command
                .env("BORG_BASE_DIR", self.folder.path())
                .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes"),
        };
        command
    }

    /// Backs up a folder. Answers how many bytes the repository has grown by.
    pub(crate) fn back_up(&self, folder: &Path, name: &str) -> anyhow::Result<u64> {
        let before = stored_bytes(&self.path())?;
        let mut command = self.command();
        match self.tool {
            Tool::Restic => command.arg("backup").arg(folder),
            Tool::Borg => {
                let archive = format!("{}::{name}", self.path().display());
                command
                    .args(["create", "--compression", "zstd,3"])
                    .arg(archive)
                    .arg(folder)
            }
        };
        run(&mut command)?;
        Ok(stored_bytes(&self.path())?.saturating_sub(before))
    }
}

#[derive(Serialize)]
struct Line<'a> {
    path: &'a str,
    fields: FieldsJson<'a>,
}

/// Writes all documents to a file, a line of JSON each, in the order of names. Answers its length.
pub(crate) async fn export(database: &ChangingDatabase, file: &Path) -> anyhow::Result<u64> {
    let mut out = BufWriter::new(fs::File::create(file)?);
    let mut batches = pin!(database.scan().await?);
    while let Some(batch) = batches.try_next().await? {
        for document in batch.iter() {
            let path = document.path()?;
            let line = Line {
                path: path.as_str(),
                fields: FieldsJson::new(document.body),
            };
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(fs::metadata(file)?.len())
}
