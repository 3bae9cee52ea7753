//! Night after night in one repository, and what it stores.

use anyhow::ensure;

use crate::changing::ChangingDatabase;
use crate::measure::process::run;
use crate::measure::report::{Bound, Row};
use crate::measure::repository::Repository;
use crate::stored_bytes;

/// The nights of one repository.
pub(crate) struct Series {
    repository: Repository,
    ranges: usize,
    /// The repository's bytes, after the first backup and after each of the nights, without what is left of
    /// sessions.
    bytes: Vec<f64>,
    /// What is left of sessions for the next `clean`: mostly what ranges with little to write hand to the commit.
    left: f64,
    /// What the changed documents of each night take alone.
    alone: Vec<f64>,
    /// The nights, from 0, in which layers were merged.
    merged: Vec<usize>,
    layers: usize,
}

impl Series {
    /// Takes the first backup.
    pub(crate) fn begin(
        repository: Repository,
        ranges: usize,
        database: &ChangingDatabase,
    ) -> anyhow::Result<Self> {
        let mut series = Self {
            repository,
            ranges,
            bytes: Vec::new(),
            left: 0.0,
            alone: Vec::new(),
            merged: Vec::new(),
            layers: 0,
        };
        series.take(database)?;
        Ok(series)
    }

    /// Takes a night's backup; `alone` is what its changed documents take compressed by themselves.
    pub(crate) fn back_up(&mut self, database: &ChangingDatabase, alone: f64) -> anyhow::Result<()> {
        let layers = self.layers;
        self.take(database)?;
        if self.layers <= layers {
            self.merged.push(self.alone.len());
        }
        self.alone.push(alone);
        Ok(())
    }

    fn take(&mut self, database: &ChangingDatabase) -> anyhow::Result<()> {
        let ranges = self.ranges.to_string();
        let options = ["--ranges", &ranges, "--parallel", &ranges];
        let (_, backup) = self.repository.backup_with(&database.sandbox, &options)?;
        ensure!(
            backup.documents == database.documents(),
            "the backup has {} documents and the database {}",
            backup.documents,
            database.documents()
        );
        self.layers = backup.layers;
        let path = self.repository.path();
        self.left = stored_bytes(&path.join("sessions"))? as f64;
        self.bytes.push(stored_bytes(&path)? as f64 - self.left);
        Ok(())
    }

    /// The repository's bytes when a `clean` that keeps all snapshots has been there.
    fn cleaned(&self) -> anyhow::Result<f64> {
        run(self.repository.command("clean").args(["--sweep-only", "--yes"]))?;
        Ok(stored_bytes(&self.repository.path())? as f64)
    }

    /// What is to be told of it.
    pub(crate) fn rows(&self) -> anyhow::Result<Vec<Row>> {
        let megabytes = |stored: f64, yardstick: f64| (stored / 1e6, yardstick / 1e6);
        let nights: Vec<_> = self
            .bytes
            .windows(2)
            .zip(&self.alone)
            .map(|(bytes, alone)| megabytes(bytes[1] - bytes[0], *alone))
            .collect();
        let plain: Vec<_> = (0..nights.len())
            .filter(|night| !self.merged.contains(night))
            .map(|night| nights[night])
            .collect();
        let ratio = |night: &&(f64, f64)| night.0 / night.1;
        let worst = plain.iter().max_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        let sum = |pick: fn(&(f64, f64)) -> f64| nights.iter().map(pick).sum::<f64>();
        let (first, last) = (self.bytes[0], self.bytes[self.bytes.len() - 1]);

        let row = |what: &str, bound: Option<Bound>, runs: &[(f64, f64)]| {
            let what = format!("{} ranges: {what}", self.ranges);
            Row::new(&what, "MB", bound, runs)
        };
        let alone = "changed documents, zstd -3";
        let mut rows = vec![row(
            &format!("a night that merges no layers, median / {alone}"),
            Some(Bound::AtMost(1.5)),
            &plain,
        )];
        if let Some(worst) = worst {
            rows.push(row(
                &format!("the worst night but those that merge / {alone}"),
                Some(Bound::AtMost(1.5)),
                &[*worst],
            ));
        }
        let all = format!(
            "all {} nights, layers merged in {} / {alone}",
            nights.len(),
            self.merged.len()
        );
        rows.push(row(&all, None, &[(sum(|night| night.0), sum(|night| night.1))]));
        let grown = format!("repository after {} nights", nights.len());
        let mut grown = |what: &str, bound, bytes| {
            let what = format!("{grown}{what} / after the first backup");
            rows.push(row(&what, bound, &[megabytes(bytes, first)]));
        };
        grown("", Some(Bound::AtMost(1.8)), last);
        grown(", with what is left of sessions", None, last + self.left);
        grown(", cleaned", Some(Bound::AtMost(1.8)), self.cleaned()?);
        Ok(rows)
    }
}
