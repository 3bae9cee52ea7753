//! Where the log goes.

use std::fs::OpenOptions;
use std::io;
use std::sync::Mutex;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::options::GlobalOptions;
use super::progress;

/// Warnings go to standard error, more with `-v`; everything from `info` on also to `--log-file`.
pub(crate) fn start(global: &GlobalOptions) -> anyhow::Result<()> {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "firebank=warn,firebank::script=info",
        // The second tells of retries.
        (false, 1) => "firebank=info,object_store=info",
        (false, 2) => "firebank=debug,object_store=info",
        (false, _) => "debug",
    };
    let terminal = tracing_subscriber::fmt::layer()
        .with_writer(|| progress::BesideProgress)
        .without_time()
        .with_target(global.verbose > 1)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    let terminal = tracing_subscriber::Layer::with_filter(terminal, EnvFilter::new(level));
    let file = match &global.log_file {
        Some(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("cannot write the log to {}", path.display()))?;
            let layer = tracing_subscriber::fmt::layer()
                .with_writer(Mutex::new(file))
                .with_ansi(false);
            let level = if global.verbose > 1 {
                "debug"
            } else {
                "firebank=info,object_store=info"
            };
            Some(tracing_subscriber::Layer::with_filter(
                layer,
                EnvFilter::new(level),
            ))
        }
        None => None,
    };
    tracing_subscriber::registry().with(terminal).with(file).init();
    Ok(())
}
