//! Processes and what they cost: CPU seconds of user and system, wall time, and the most memory that was
//! resident.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};
use wait4::Wait4;

/// What a piece of work took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Seconds of all cores, user and system.
    pub(crate) cpu: f64,
    /// Seconds on the clock.
    pub(crate) wall: f64,
    /// The most bytes that were resident at a time; 0 where it was not a process of its own, or the system
    /// does not tell.
    pub(crate) peak_bytes: u64,
}

/// How often a process is asked for the most that it had resident.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Takes the time of a part of this process.
pub(crate) struct Stopwatch {
    wall: Instant,
    cpu: f64,
}

impl Stopwatch {
    pub(crate) fn start() -> anyhow::Result<Self> {
        Ok(Self {
            cpu: own_cpu_seconds()?,
            wall: Instant::now(),
        })
    }

    pub(crate) fn stop(self) -> anyhow::Result<Cost> {
        let wall = self.wall.elapsed().as_secs_f64();
        Ok(Cost {
            cpu: own_cpu_seconds()? - self.cpu,
            wall,
            peak_bytes: 0,
        })
    }
}

fn own_cpu_seconds() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Runs a command to its end. Answers what the whole process took and what it printed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<(Cost, Vec<u8>)> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let mut output = child.stdout.take().context("standard output is piped")?;
    let (stop, stopped) = mpsc::channel::<()>();
    let process = child.id();
    let watch = thread::spawn(move || {
        let mut peak = 0;
        while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            peak = peak.max(peak_bytes(process).unwrap_or(0));
        }
        peak
    });
    let mut printed = Vec::new();
    output.read_to_end(&mut printed)?;
    let ended = child.wait4()?;
    drop(stop);
    let peak_bytes = watch
        .join()
        .map_err(|_| anyhow::anyhow!("the watch over {command:?} has panicked"))?;
    ensure!(ended.status.success(), "{command:?} ended with {}", ended.status);
    let cost = Cost {
        cpu: (ended.rusage.utime + ended.rusage.stime).as_secs_f64(),
        wall: start.elapsed().as_secs_f64(),
        peak_bytes,
    };
    Ok((cost, printed))
}

/// The most that a process has had resident so far, as Linux tells.
///
/// What `wait4` tells of a child that has ended counts the parent too, as it was when the child split off
/// from it.
fn peak_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// A process that `cargo bench` started to measure has this as its first argument.
const YARDSTICK: &str = "yardstick";

/// Starts this benchmark again to measure one yardstick, and waits for it.
pub(crate) fn measure_by_itself(arguments: &[&OsStr]) -> anyhow::Result<Cost> {
    let mut command = Command::new(std::env::current_exe()?);
    let (_, printed) = run(command.arg(YARDSTICK).args(arguments))?;
    serde_json::from_slice(&printed).context("the yardstick printed something else than what it measured")
}

/// The parts of a benchmark that are measured by themselves, as the subcommands of the process that is
/// started for one.
pub(crate) trait Yardstick: Subcommand {
    /// Measures, in the process that was started for it.
    fn run(self) -> anyhow::Result<Cost>;
}

#[derive(Parser)]
struct Internal<Y: Subcommand> {
    #[command(subcommand)]
    yardstick: Y,
}

/// What to measure. `None` where it is done already, because this process was started for one yardstick,
/// whose cost it has printed; and where nobody asks: `cargo test --benches` and those who list tests start
/// this too, without saying `--bench`.
pub(crate) fn asked<Y: Yardstick, O: Parser>() -> anyhow::Result<Option<O>> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == YARDSTICK) {
        let cost = Internal::<Y>::parse_from(&arguments[1..]).yardstick.run()?;
        serde_json::to_writer(std::io::stdout().lock(), &cost)?;
        return Ok(None);
    }
    let is_asked = arguments
        .iter()
        .any(|argument| argument == "--bench" || argument == "--help");
    Ok(is_asked.then(O::parse))
}

/// The command line tool, with nothing of this process's environment.
pub(crate) fn firebank() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firebank"));
    command.env_clear();
    command
}

/// A sandbox in a process of its own. It is stopped when this is dropped.
pub(crate) struct Sandbox {
    process: Child,
    /// `host:port`.
    pub(crate) address: String,
}

impl Sandbox {
    /// Starts one with these options besides the port.
    pub(crate) fn start(options: &[String]) -> anyhow::Result<Self> {
        let mut process = firebank()
            .args(["sandbox", "--port", "0", "--json"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the sandbox")?;
        let output = process.stdout.take().context("standard output is piped")?;
        let mut sandbox = Self {
            process,
            address: String::new(),
        };
        // It says where it listens and stays.
        let said = serde_json::Deserializer::from_reader(BufReader::new(output))
            .into_iter::<serde_json::Value>()
            .next()
            .context("the sandbox said nothing")??;
        let address = said["address"].as_str();
        sandbox.address = address
            .context("the sandbox did not say where it listens")?
            .to_owned();
        Ok(sandbox)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // It has ended by itself, or it ends now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The options of a sandbox that makes up so many documents.
pub(crate) fn synthetic(documents: u64, document_bytes: usize) -> Vec<String> {
    vec![
        format!("--synthetic={documents}"),
        format!("--synthetic-bytes={document_bytes}"),
    ]
}
