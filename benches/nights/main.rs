//! Nightly backups through the binary: what a night stores, how long it takes, how much memory, and what
//! forty of them leave.
//!
//! `cargo bench --bench nights` makes all the figures; after `--` come options, such as `--only stored
//! --nights 10`. The database is the sandbox in a process of its own, and changes every night as [`changing`]
//! says: 0.8 % of the documents are updated, 0.1 % inserted, 0.1 % deleted, all over the key space. Bytes are
//! those that the repository's folder grew by, index and manifests included; what is left of finished
//! sessions, which the next `clean` deletes, is told apart. Times are of whole processes, next to a yardstick
//! that takes its turn in the same run.

mod changing;
#[path = "../measure/mod.rs"]
mod measure;
mod other_tools;
mod series;
mod yardsticks;

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use tempfile::TempDir;

use changing::{ChangingDatabase, Night};
use measure::process::{Cost, asked};
use measure::report::{self, Bound, Row};
use measure::repository::Repository;
use other_tools::{Tool, ToolRepository, export};
use series::Series;
use yardsticks::Yardstick;

/// Documents whose bytes are measured, if nobody says otherwise.
const DOCUMENTS: u64 = 200_000;
/// Documents with which times are measured: enough for them to count, and not what a process takes to start.
const TIMED_DOCUMENTS: u64 = 2_000_000;

#[derive(Debug, Parser)]
#[command(about = "Measures nightly backups against what changed")]
struct Options {
    /// Documents in the database, but for the memory part; 200,000 where bytes are measured, and 2,000,000 where times are
    #[arg(long, value_name = "N")]
    documents: Option<u64>,
    /// About how many bytes a document has
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    document_bytes: usize,
    /// How many nights follow the first backup, with the stored part
    #[arg(long, value_name = "N", default_value_t = 40)]
    nights: usize,
    /// In how many ranges to read, with the stored part; each gets a repository of its own
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 16, 64])]
    ranges: Vec<usize>,
    /// How often wall times are measured
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Documents in the database, with the memory part, which also takes a tenth of them
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    memory_documents: u64,
    /// How many layers the parent has, with the memory part
    #[arg(long, value_name = "N", default_value_t = 32)]
    layers: usize,
    /// Measure only this; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Stored bytes of each night and of all nights
    Stored,
    /// Wall time of a night without a change
    Unchanged,
    /// Wall time of a night with changes
    Changed,
    /// The most memory that a night has resident
    Memory,
    /// What restic and borg store of the same data as files
    Tools,
}

/// Where wall times are measured: a source that is as fast as the machine, and one that is more like the real
/// one.
const SOURCES: [(&str, &[&str]); 2] = [
    ("", &[]),
    (
        ", 40 MB/s and 5 ms",
        &["--bytes-per-second=40000000", "--latency-ms=5"],
    ),
];

fn main() -> anyhow::Result<()> {
    let Some(options) = asked::<Yardstick, Options>()? else {
        return Ok(());
    };
    ensure!(
        options.documents.is_none_or(|documents| documents >= 1000)
            && options.runs >= 1
            && options.layers >= 1,
        "at least a thousand documents, one run and one layer"
    );
    let bench = Bench {
        options: &options,
        folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?,
    };
    let rows = tokio::runtime::Runtime::new()?.block_on(bench.measure())?;
    report::print(&rows, options.json)
}

struct Bench<'a> {
    options: &'a Options,
    folder: TempDir,
}

impl Bench<'_> {
    async fn measure(&self) -> anyhow::Result<Vec<Row>> {
        let only = &self.options.only;
        let mut rows = Vec::new();
        for part in Part::value_variants() {
            if !only.is_empty() && !only.contains(part) {
                continue;
            }
            match part {
                Part::Stored => rows.extend(self.stored().await?),
                Part::Unchanged => rows.extend(self.unchanged().await?),
                Part::Changed => rows.extend(self.changed().await?),
                Part::Memory => rows.extend(self.memory().await?),
                Part::Tools => rows.extend(self.tools().await?),
            }
        }
        Ok(rows)
    }

    async fn database(&self, documents: u64, more: &[&str]) -> anyhow::Result<ChangingDatabase> {
        let documents = self.options.documents.unwrap_or(documents);
        ChangingDatabase::start(documents, self.options.document_bytes, more).await
    }

    /// The same nights in one repository for each number of ranges.
    async fn stored(&self) -> anyhow::Result<Vec<Row>> {
        let mut database = self.database(DOCUMENTS, &[]).await?;
        let mut series = Vec::new();
        for &ranges in &self.options.ranges {
            let repository = Repository::create(self.folder.path())?;
            series.push(Series::begin(repository, ranges, &database)?);
        }
        for _ in 0..self.options.nights {
            let alone = compressed(&database.pass_a_night().await?)?;
            for series in &mut series {
                series.back_up(&database, alone)?;
            }
        }
        let mut rows = Vec::new();
        for series in &series {
            rows.extend(series.rows()?);
        }
        Ok(rows)
    }

    async fn unchanged(&self) -> anyhow::Result<Vec<Row>> {
        let what = "unchanged night / draining the names";
        let mut rows = Vec::new();
        for (source, options) in SOURCES {
            let database = self.database(TIMED_DOCUMENTS, options).await?;
            let repository = Repository::create(self.folder.path())?;
            repository.backup(&database.sandbox)?;
            let mut runs = Vec::new();
            for _ in 0..self.options.runs {
                let drain = self.drain_names(&database)?;
                let (cost, backup) = repository.backup_with(&database.sandbox, &["--read", "names"])?;
                ensure!(
                    backup.unchanged_documents == database.documents(),
                    "the backup found changes where there are none: {backup:?}"
                );
                runs.push((cost, drain));
            }
            rows.extend(times(what, source, &runs));
        }
        Ok(rows)
    }

    async fn changed(&self) -> anyhow::Result<Vec<Row>> {
        let what = "1 % night / (draining the names + fetching the changed)";
        let mut rows = Vec::new();
        for (source, options) in SOURCES {
            let mut database = self.database(TIMED_DOCUMENTS, options).await?;
            let repository = Repository::create(self.folder.path())?;
            repository.backup(&database.sandbox)?;
            let mut runs = Vec::new();
            for _ in 0..self.options.runs {
                let night = database.pass_a_night().await?;
                let drain = self.drain_names(&database)?;
                let fetch = self.fetch(&database, &night)?;
                let (cost, backup) = repository.backup_with(&database.sandbox, &["--read", "names"])?;
                let found = backup.new_documents + backup.changed_documents;
                ensure!(
                    (found, backup.deleted_documents) == (night.changed.len() as u64, night.deleted),
                    "the backup found other changes than were made: {backup:?}"
                );
                let yardstick = Cost {
                    cpu: drain.cpu + fetch.cpu,
                    wall: drain.wall + fetch.wall,
                    peak_bytes: 0,
                };
                runs.push((cost, yardstick));
            }
            rows.extend(times(what, source, &runs));
        }
        Ok(rows)
    }

    fn drain_names(&self, database: &ChangingDatabase) -> anyhow::Result<Cost> {
        let address = database.sandbox.address.clone();
        Yardstick::DrainNames { address }.measure()
    }

    fn fetch(&self, database: &ChangingDatabase, night: &Night) -> anyhow::Result<Cost> {
        let paths = self.folder.path().join("changed");
        let mut out = std::io::BufWriter::new(fs::File::create(&paths)?);
        for (path, _) in &night.changed {
            writeln!(out, "{path}")?;
        }
        out.flush()?;
        drop(out);
        let address = database.sandbox.address.clone();
        Yardstick::Fetch { address, paths }.measure()
    }

    /// The peak of the last of many nights, and of the first ones, for a tenth of the documents and for all.
    async fn memory(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for documents in [self.options.memory_documents / 10, self.options.memory_documents] {
            let mut database = ChangingDatabase::start(documents, self.options.document_bytes, &[]).await?;
            let repository = Repository::create(self.folder.path())?;
            let (mut peaks, mut layers) = (Vec::new(), 0);
            while layers < self.options.layers {
                let (cost, backup) = repository.backup_with(&database.sandbox, &[])?;
                ensure!(
                    backup.layers > layers,
                    "layers were merged before there were {}",
                    self.options.layers
                );
                layers = backup.layers;
                peaks.push(cost.peak_bytes);
                database.pass_a_night().await?;
            }
            let (last, _) = repository.backup_with(&database.sandbox, &[])?;
            let drain = self.drain_names(&database)?;
            let mut row = |what: String, peak: u64| {
                let what = format!("{what} of {documents} documents, peak / 256 MiB");
                let mebibytes = peak as f64 / f64::from(1 << 20);
                rows.push(Row::new(&what, "MiB", Bound::AtMost(1.0), &[(mebibytes, 256.0)]));
            };
            row("first backup".to_owned(), peaks[0]);
            if let Some(peak) = peaks.get(1) {
                row("night upon 1 layer".to_owned(), *peak);
            }
            row(format!("night upon {layers} layers"), last.peak_bytes);
            let what =
                format!("night upon {layers} layers of {documents} documents / draining the names, wall");
            rows.push(Row::new(&what, "s", None, &[(last.wall, drain.wall)]));
        }
        Ok(rows)
    }

    /// Two nights of exported files, beside the same two nights of this tool.
    async fn tools(&self) -> anyhow::Result<Vec<Row>> {
        let mut database = self.database(DOCUMENTS, &[]).await?;
        let exports = self.folder.path().join("exports");
        fs::create_dir_all(&exports)?;
        let repository = Repository::create(self.folder.path())?;
        let mut tools = Vec::new();
        for tool in Tool::ALL {
            match tool.version() {
                Some(version) => tools.push((version, ToolRepository::create(tool, self.folder.path())?)),
                None => report::note(&format!("{} is not installed: left out", tool.name()))?,
            }
        }
        let mut stored = vec![Vec::new(); tools.len() + 1];
        let mut exported = Vec::new();
        let mut alone = 0.0;
        for night in ["first", "second"] {
            if night == "second" {
                alone = compressed(&database.pass_a_night().await?)?;
            }
            exported.push(export(&database, &exports.join("documents.ndjson")).await? as f64);
            for (index, (_, tool)) in tools.iter().enumerate() {
                stored[index].push(tool.back_up(&exports, night)? as f64);
            }
            let path = repository.path();
            let bytes =
                || Ok::<_, anyhow::Error>(stored_bytes(&path)? - stored_bytes(&path.join("sessions"))?);
            let before = bytes()?;
            repository.backup(&database.sandbox)?;
            stored[tools.len()].push((bytes()? - before) as f64);
        }
        let names = tools
            .iter()
            .map(|(version, _)| version.as_str())
            .chain(["firebank"]);
        let mut rows = Vec::new();
        for (name, stored) in names.zip(&stored) {
            let row = |what: &str, stored: f64, yardstick: f64| {
                Row::new(
                    &format!("{name}: {what}"),
                    "MB",
                    None,
                    &[(stored / 1e6, yardstick / 1e6)],
                )
            };
            rows.push(row("first night / NDJSON", stored[0], exported[0]));
            rows.push(row("second night / changed documents, zstd -3", stored[1], alone));
        }
        Ok(rows)
    }
}

/// Wall time with its bound, and CPU time of the processes, the sandbox's excepted.
fn times(what: &str, source: &str, runs: &[(Cost, Cost)]) -> [Row; 2] {
    let pairs = |pick: fn(&Cost) -> f64| -> Vec<_> {
        let pairs = runs.iter().map(|(cost, yardstick)| (pick(cost), pick(yardstick)));
        pairs.collect()
    };
    let bound = Bound::AtMost(1.3);
    [
        Row::new(
            &format!("{what}{source}, wall"),
            "s",
            bound,
            &pairs(|cost| cost.wall),
        ),
        Row::new(
            &format!("{what}{source}, CPU"),
            "s",
            None,
            &pairs(|cost| cost.cpu),
        ),
    ]
}

/// What zstd -3 makes of the documents that a night has changed, in bytes.
fn compressed(night: &Night) -> anyhow::Result<f64> {
    Ok(zstd::encode_all(&night.canonical_bytes()[..], 3)?.len() as f64)
}

/// The lengths of all files in a folder; 0 when there is none.
fn stored_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    if !folder.exists() {
        return Ok(bytes);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => stored_bytes(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}
