//! The script engine: QuickJS on a thread of its own, and Firestore on the other side of a channel.
//!
//! ```text
//! engine's thread                            │ the run's future
//! script ─ prelude.js ─ calls ─ host ──────► serve ─ writer ─ deliver ─ sink ─► journal, then database
//!                        ▲                   │  └── scans, look-ups, counts ──────────────► database
//!                        └── convert, draft  │
//! ```
//!
//! QuickJS is synchronous, and so is what scripts write; a call that needs an answer blocks the engine's thread and nobody
//! else's. Values go over in canonical form and come back as drafts ([`draft`]), which get their types where they meet what is
//! stored. What a run needs lives in its future and on its thread: when either ends, so does the other.

mod bulk;
mod calls;
mod change;
mod convert;
mod deliver;
pub(crate) mod draft;
mod evaluate;
mod failure;
mod field_path;
mod host;
mod promises;
mod scan;
mod serve;
mod sink;
mod watch;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::{Function, Limits, RunMode, RunOptions, RunStats, ScriptError, ScriptErrorKind};
use crate::firestore::{ConditionalWriter, Firestore};
use crate::progress::Progress;
use crate::stop::Stop;
use deliver::Delivery;
use evaluate::{Job, Task};
use failure::Failure;
use host::Access;
use serve::{Bounds, Request, Server};
use sink::{Live, Pretend, Sink};
use writer::Writer;

/// What a module says about itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Exports {
    pub(super) description: Option<String>,
    pub(super) rollback: bool,
    pub(super) validate: bool,
}

/// A script's text, and what it runs with.
#[derive(Clone, Debug)]
pub(super) struct Module {
    pub(super) file: std::path::PathBuf,
    pub(super) source: String,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) limits: Limits,
}

/// Requests that wait for the database's side.
const REQUESTS: usize = 4;
/// What the thread's stack has beyond JavaScript's: host calls need some wherever the script is.
const NATIVE_STACK: usize = 4 << 20;

/// Evaluates a module without a database, and looks at its exports.
pub(super) fn load(module: &Module) -> Result<Exports, ScriptError> {
    let job = Job {
        module: module.clone(),
        task: Task::Look,
        access: Access::None,
        dry_run: false,
        requests: None,
        log: Arc::new(
            |line| tracing::info!(target: "firebank::script", level = ?line.level, "{}", line.text),
        ),
        stop: Stop::default(),
        abandoned: Arc::default(),
        root: String::new(),
        project: String::new(),
    };
    let file = module.file.clone();
    let thread = spawn(module, move || evaluate::evaluate(job)).map_err(|error| no_thread(&file, &error))?;
    match thread.join() {
        Ok(evaluated) => evaluated.map_err(|failed| failed.error),
        Err(_) => Err(gone(&file)),
    }
}

/// Runs a function of a module against a database.
pub(super) async fn run(
    module: &Module,
    function: Function,
    firestore: &Firestore,
    options: RunOptions,
    progress: &Progress,
) -> Result<RunStats, ScriptError> {
    let deadline = module.limits.call;
    let progress = progress.clone();
    match (function, options.mode.clone()) {
        (Function::Validate, _) => {
            let sink = Pretend::new(0);
            let delivery = Delivery::new(firestore.clone(), sink, deadline);
            drive(module, function, delivery, options, Access::Read, progress).await
        }
        (_, RunMode::DryRun { preview }) => {
            let delivery = Delivery::new(firestore.clone(), Pretend::new(preview), deadline);
            drive(module, function, delivery, options, Access::Write, progress).await
        }
        (
            _,
            RunMode::Write {
                journal,
                options: write,
                fence,
            },
        ) => {
            let sink = Live {
                writer: ConditionalWriter::new(firestore, &write, fence),
                journal,
                deadline,
            };
            let delivery = Delivery::new(firestore.clone(), sink, deadline);
            drive(module, function, delivery, options, Access::Write, progress).await
        }
    }
}

async fn drive<S: Sink>(
    module: &Module,
    function: Function,
    delivery: Delivery<S>,
    options: RunOptions,
    access: Access,
    progress: Progress,
) -> Result<RunStats, ScriptError> {
    let firestore = delivery.firestore.clone();
    let (requests, served) = mpsc::channel::<Request>(REQUESTS);
    let (finished, outcome) = oneshot::channel();
    let abandoned = Abandon(Arc::new(AtomicBool::new(false)));
    let job = Job {
        module: module.clone(),
        task: Task::Call(function),
        access,
        dry_run: matches!(options.mode, RunMode::DryRun { .. }),
        requests: Some(requests),
        log: options.log,
        stop: options.stop.clone(),
        abandoned: abandoned.0.clone(),
        root: firestore.database().root(),
        project: firestore.database().project.clone(),
    };
    let thread = spawn(module, move || {
        // The receiver is gone when nobody waits any more.
        let _ = finished.send(evaluate::evaluate(job));
    });
    let thread = thread.map_err(|error| no_thread(&module.file, &error))?;
    let bounds = Bounds {
        call: module.limits.call,
        total: module.limits.total.map(|total| (Instant::now() + total, total)),
        stop: options.stop.clone(),
    };
    let server = Server::new(firestore, Writer::new(delivery), progress, bounds);
    let served = server.serve(served).await;
    if served.is_err() {
        abandoned.0.store(true, Ordering::Relaxed);
    }
    let evaluated = outcome.await;
    // What it had to say is said: it ends at once.
    let _ = thread.join();
    match (served, evaluated) {
        (Err(failure), _) => Err(evaluate::of_failure(&module.file, failure)),
        (_, Err(_)) => Err(gone(&module.file)),
        (_, Ok(Err(failed))) => Err(failed.error),
        (Ok(stats), Ok(Ok(_))) => Ok(stats),
    }
}

/// Ends the script when the run's future is dropped.
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn spawn<T: Send + 'static>(
    module: &Module,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    // The script's name, so that tools which list threads show which one is busy.
    let stem = module.file.file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem.chars().filter(|&letter| letter != '\0').take(15).collect();
    std::thread::Builder::new()
        .name(name)
        .stack_size(module.limits.stack_bytes.saturating_mul(2) + NATIVE_STACK)
        .spawn(work)
}

fn no_thread(file: &Path, error: &std::io::Error) -> ScriptError {
    plain(
        file,
        format!("no thread can be had for the script: {error}"),
        ScriptErrorKind::Thrown,
    )
}

fn gone(file: &Path) -> ScriptError {
    evaluate::of_failure(file, Failure::Gone)
}

/// An error without a place in the script.
fn plain(file: &Path, message: String, kind: ScriptErrorKind) -> ScriptError {
    ScriptError {
        file: file.to_owned(),
        line: None,
        column: None,
        message,
        stack: String::new(),
        kind,
    }
}
