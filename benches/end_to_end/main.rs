//! Whole backups, restores and verifications through the binary, measured against the parts that nobody can
//! leave out.
//!
//! `cargo bench --bench end_to_end` makes all the figures; after `--` come options, such as `--only backup
//! --runs 5`. The database is the sandbox in a process of its own. A figure and its yardsticks take turns
//! within one run, so that what the machine does beside hits both. The bounds are ratios; the verdict goes by
//! the median of the runs.

#[path = "../measure/mod.rs"]
mod measure;
mod yardsticks;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use tempfile::TempDir;

use measure::process::{Cost, Sandbox, asked, run, synthetic};
use measure::report::{self, Bound, Row};
use measure::repository::Repository;
use yardsticks::{TARGET_PROJECT, Yardstick};

#[derive(Debug, Parser)]
#[command(about = "Measures whole operations against what they are made of")]
struct Options {
    /// Documents in the database
    #[arg(long, value_name = "N", default_value_t = 300_000)]
    documents: u64,
    /// About how many bytes a document has
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    document_bytes: usize,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Measure only this; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// With the memory part: restore into a database that keeps what is written, which takes its process
    /// several times the data's size
    #[arg(long)]
    keep_writes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// CPU seconds of a full backup
    Backup,
    /// Wall time of a full backup of a source that gives 40 MB/s with 5 ms latency
    SlowSource,
    /// CPU seconds of a restore
    Restore,
    /// Wall time of a restore into a target with 10 ms latency
    SlowTarget,
    /// Throughput of verify --read-data
    Verify,
    /// The most memory that backup, restore and verify have resident, for a tenth of the documents and for all
    Memory,
}

fn main() -> anyhow::Result<()> {
    let Some(options) = asked::<Yardstick, Options>()? else {
        return Ok(());
    };
    let rows = Bench::prepare(&options)?.measure()?;
    report::print(&rows, options.json)
}

struct Bench<'a> {
    options: &'a Options,
    folder: TempDir,
    /// Serves the documents as fast as it can.
    source: Sandbox,
    /// The documents' canonical bytes.
    canonical: PathBuf,
}

impl<'a> Bench<'a> {
    fn prepare(options: &'a Options) -> anyhow::Result<Self> {
        ensure!(
            options.documents >= 10 && options.runs >= 1,
            "at least ten documents and one run"
        );
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let source = Sandbox::start(&synthetic(options.documents, options.document_bytes))?;
        let canonical = folder.path().join("canonical");
        let bench = Self {
            options,
            folder,
            source,
            canonical,
        };
        if Part::value_variants()
            .iter()
            .any(|&part| part != Part::Memory && bench.is_wanted(part))
        {
            let (address, file) = (bench.source.address.clone(), bench.canonical.clone());
            Yardstick::Copy { address, file }.measure()?;
        }
        Ok(bench)
    }

    fn is_wanted(&self, part: Part) -> bool {
        self.options.only.is_empty() || self.options.only.contains(&part)
    }

    fn measure(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for part in Part::value_variants()
            .iter()
            .filter(|part| self.is_wanted(**part))
        {
            match part {
                Part::Backup => rows.extend(self.backup()?),
                Part::SlowSource => rows.push(self.slow_source()?),
                Part::Restore => rows.push(self.restore()?),
                Part::SlowTarget => rows.push(self.slow_target()?),
                Part::Verify => rows.extend(self.verify()?),
                Part::Memory => rows.extend(self.memory()?),
            }
        }
        Ok(rows)
    }

    fn runs<T>(&self, run: impl FnMut(usize) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
        (0..self.options.runs).map(run).collect()
    }

    fn backup(&self) -> anyhow::Result<[Row; 2]> {
        let runs = self.runs(|_| {
            let drain = Yardstick::Drain {
                address: self.source.address.clone(),
            }
            .measure()?;
            let compress = Yardstick::Compress {
                file: self.canonical.clone(),
            }
            .measure()?;
            let backup = Repository::create(self.folder.path())?.backup(&self.source)?;
            Ok((backup, drain, compress))
        })?;
        let cpu: Vec<_> = runs
            .iter()
            .map(|(backup, drain, zstd)| (backup.cpu, drain.cpu + zstd.cpu))
            .collect();
        let wall: Vec<_> = runs
            .iter()
            .map(|(backup, drain, zstd)| (backup.wall, drain.wall + zstd.wall))
            .collect();
        Ok([
            Row::new(
                "full backup / (drain + zstd -3), CPU",
                "s",
                Bound::AtMost(1.3),
                &cpu,
            ),
            Row::new("full backup / (drain + zstd -3), wall", "s", None, &wall),
        ])
    }

    fn slow_source(&self) -> anyhow::Result<Row> {
        let mut options = synthetic(self.options.documents, self.options.document_bytes);
        options.extend([
            "--bytes-per-second=40000000".to_owned(),
            "--latency-ms=5".to_owned(),
        ]);
        let source = Sandbox::start(&options)?;
        let runs = self.runs(|_| {
            let drain = Yardstick::Drain {
                address: source.address.clone(),
            }
            .measure()?;
            let backup = Repository::create(self.folder.path())?.backup(&source)?;
            Ok((backup.wall, drain.wall))
        })?;
        let what = "full backup / drain, 40 MB/s and 5 ms, wall";
        Ok(Row::new(what, "s", Bound::AtMost(1.1), &runs))
    }

    fn restore(&self) -> anyhow::Result<Row> {
        let target = Sandbox::start(&["--discard-writes".to_owned()])?;
        let repository = Repository::create(self.folder.path())?;
        repository.backup(&self.source)?;
        let runs = self.runs(|_| {
            let write = self.bare_write(&target)?;
            let decompress = Yardstick::Decompress {
                file: self.canonical.clone(),
            }
            .measure()?;
            let restore = repository.restore(&target)?;
            Ok((restore.cpu, write.cpu + decompress.cpu))
        })?;
        let what = "restore / (BatchWrite + decompression), CPU";
        Ok(Row::new(what, "s", Bound::AtMost(1.5), &runs))
    }

    fn slow_target(&self) -> anyhow::Result<Row> {
        let target = Sandbox::start(&["--discard-writes".to_owned(), "--latency-ms=10".to_owned()])?;
        let repository = Repository::create(self.folder.path())?;
        repository.backup(&self.source)?;
        let runs = self.runs(|_| {
            let write = self.bare_write(&target)?;
            let restore = repository.restore(&target)?;
            Ok((restore.wall, write.wall))
        })?;
        Ok(Row::new(
            "restore / BatchWrite, 10 ms, wall",
            "s",
            Bound::AtMost(1.1),
            &runs,
        ))
    }

    fn bare_write(&self, target: &Sandbox) -> anyhow::Result<Cost> {
        let (source, target) = (self.source.address.clone(), target.address.clone());
        Yardstick::BatchWrite { source, target }.measure()
    }

    fn verify(&self) -> anyhow::Result<[Row; 2]> {
        let repository = Repository::create(self.folder.path())?;
        repository.backup(&self.source)?;
        let megabytes = std::fs::metadata(&self.canonical)?.len() as f64 / 1e6;
        let runs = self.runs(|_| {
            let decompress = Yardstick::Decompress {
                file: self.canonical.clone(),
            }
            .measure()?;
            let hash = Yardstick::Hash {
                file: self.canonical.clone(),
            }
            .measure()?;
            let verify = repository.verify()?;
            Ok((
                verify,
                Cost {
                    cpu: decompress.cpu + hash.cpu,
                    wall: decompress.wall + hash.wall,
                    peak_bytes: 0,
                },
            ))
        })?;
        let rates = |seconds: fn(&Cost) -> f64| -> Vec<_> {
            runs.iter()
                .map(|(verify, bare)| (megabytes / seconds(verify), megabytes / seconds(bare)))
                .collect()
        };
        let what = "verify --read-data / (decompression + BLAKE3), all cores";
        let a_core = "verify --read-data / (decompression + BLAKE3), a core";
        Ok([
            Row::new(what, "MB/s", Bound::AtLeast(0.5), &rates(|cost| cost.wall)),
            Row::new(a_core, "MB/s", Bound::AtLeast(0.5), &rates(|cost| cost.cpu)),
        ])
    }

    fn memory(&self) -> anyhow::Result<Vec<Row>> {
        let few = self.options.documents / 10;
        let few_source = Sandbox::start(&synthetic(few, self.options.document_bytes))?;
        let target_options = if self.options.keep_writes {
            Vec::new()
        } else {
            vec!["--discard-writes".to_owned()]
        };
        let peaks = |source: &Sandbox| -> anyhow::Result<[f64; 3]> {
            let target = Sandbox::start(&target_options)?;
            let repository = Repository::create(self.folder.path())?;
            let costs = [
                repository.backup(source)?,
                repository.restore(&target)?,
                repository.verify()?,
            ];
            Ok(costs.map(|cost| cost.peak_bytes as f64 / f64::from(1 << 20)))
        };
        let of_few = peaks(&few_source)?;
        let of_all = peaks(&self.source)?;
        let names = ["backup", "restore", "verify --read-data"];
        let sizes = [(few, of_few), (self.options.documents, of_all)];
        let rows = sizes.iter().flat_map(|(documents, peaks)| {
            names.iter().zip(peaks).map(move |(name, peak)| {
                let what = format!("{name} of {documents} documents, peak / 256 MiB");
                Row::new(&what, "MiB", Bound::AtMost(1.0), &[(*peak, 256.0)])
            })
        });
        Ok(rows.collect())
    }
}

impl Repository {
    fn restore(&self, target: &Sandbox) -> anyhow::Result<Cost> {
        let mut command = self.command("restore");
        command.args([
            "latest",
            "--no-ramp",
            "--to-project",
            TARGET_PROJECT,
            "--emulator",
            &target.address,
        ]);
        let (cost, _) = run(command.current_dir(self.folder.path())).context("see above")?;
        Ok(cost)
    }

    fn verify(&self) -> anyhow::Result<Cost> {
        Ok(run(self.command("verify").args(["latest", "--read-data"]))?.0)
    }
}
