//! A repository and what the tool does to it, each time in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;
use tempfile::TempDir;

use super::process::{Cost, Sandbox, firebank, run};
use super::raw::SOURCE_PROJECT;

/// A repository in a folder of its own, removed when this is dropped.
pub(crate) struct Repository {
    pub(crate) folder: TempDir,
}

/// What a backup says that it did.
#[derive(Debug, Deserialize)]
pub(crate) struct Backup {
    pub(crate) documents: u64,
    pub(crate) layers: usize,
    pub(crate) new_documents: u64,
    pub(crate) changed_documents: u64,
    pub(crate) deleted_documents: u64,
    pub(crate) unchanged_documents: u64,
}

impl Repository {
    pub(crate) fn create(parent: &Path) -> anyhow::Result<Self> {
        let repository = Self {
            folder: tempfile::tempdir_in(parent)?,
        };
        run(&mut repository.command("init"))?;
        Ok(repository)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// The tool with this command, to be used on this repository.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = firebank();
        command.arg(name).arg("--repository").arg(self.path());
        command.args(["--quiet", "--json", "--project", SOURCE_PROJECT]);
        command
    }

    pub(crate) fn backup(&self, source: &Sandbox) -> anyhow::Result<Cost> {
        Ok(self.backup_with(source, &[])?.0)
    }

    /// A backup with more options.
    pub(crate) fn backup_with(&self, source: &Sandbox, options: &[&str]) -> anyhow::Result<(Cost, Backup)> {
        let mut command = self.command("backup");
        command.args(["--emulator", &source.address]).args(options);
        let (cost, printed) = run(&mut command)?;
        let backup = serde_json::from_slice(&printed).context("the backup printed no summary")?;
        Ok((cost, backup))
    }
}
