//! Progress on standard error: a moving line on a terminal, a plain line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::progress::Progress;

const TERMINAL_INTERVAL: Duration = Duration::from_millis(100);
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Shows an operation's counters until it is dropped.
#[derive(Debug)]
pub(crate) struct ProgressDisplay {
    task: Option<tokio::task::JoinHandle<()>>,
    bar: Option<ProgressBar>,
}

impl ProgressDisplay {
    /// Starts showing `progress` under the name of what is done, unless `quiet`.
    pub(crate) fn start(what: &'static str, progress: &Arc<Progress>, quiet: bool) -> Self {
        if quiet {
            return Self {
                task: None,
                bar: None,
            };
        }
        let progress = Arc::clone(progress);
        if !std::io::stderr().is_terminal() {
            return Self {
                task: Some(tokio::spawn(plain_lines(what, progress))),
                bar: None,
            };
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            let start = Instant::now();
            loop {
                shown.set_message(line(what, &progress, start.elapsed()));
                shown.tick();
                tokio::time::sleep(TERMINAL_INTERVAL).await;
            }
        });
        Self {
            task: Some(task),
            bar: Some(bar),
        }
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

async fn plain_lines(what: &'static str, progress: Arc<Progress>) {
    let start = Instant::now();
    loop {
        tokio::time::sleep(PLAIN_INTERVAL).await;
        // Nobody to tell when standard error is gone.
        let _ = writeln!(std::io::stderr(), "{}", line(what, &progress, start.elapsed()));
    }
}

fn line(what: &str, progress: &Progress, elapsed: Duration) -> String {
    let documents = progress.documents();
    let seconds = elapsed.as_secs_f64().max(0.001);
    let rate = documents as f64 / seconds;
    let mut line = format!("{what}: {}", output::count(documents, "document"));
    if let Some(total) = progress.total_documents() {
        line.push_str(&format!(" of {}", output::number(total)));
    }
    line.push_str(&format!(
        ", {}, {}/s, {}/s",
        output::bytes(progress.bytes()),
        output::number(rate as u64),
        output::bytes((progress.bytes() as f64 / seconds) as u64)
    ));
    if let Some(left) = progress
        .total_documents()
        .map(|total| total.saturating_sub(documents))
        && rate > 0.0
        && left > 0
    {
        line.push_str(&format!(
            ", {} left",
            output::duration(Duration::from_secs_f64(left as f64 / rate))
        ));
    }
    line
}
