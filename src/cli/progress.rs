//! Progress on standard error: a moving line on a terminal, a plain line now and then elsewhere.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::progress::{Pace, Progress};

const TERMINAL_INTERVAL: Duration = Duration::from_millis(100);
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// The rate is that of the last so many seconds: a restore that ramps up is faster than its average.
const RATE_WINDOW: Duration = Duration::from_secs(15);
/// What the spinner before the line takes.
const SPINNER_WIDTH: usize = 2;

/// The moving line that is on the terminal, for whoever else writes there.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

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
        if !io::stderr().is_terminal() {
            return Self {
                task: Some(tokio::spawn(plain_lines(what, progress))),
                bar: None,
            };
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        *shown() = Some(bar.clone());
        let moving = bar.clone();
        let task = tokio::spawn(async move {
            let mut meter = Meter::new();
            loop {
                let parts = meter.parts(what, &progress, Instant::now());
                moving.set_message(fitted(parts, terminal_width() - SPINNER_WIDTH));
                moving.tick();
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
            *shown() = None;
            bar.finish_and_clear();
        }
    }
}

fn shown() -> std::sync::MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Columns of the terminal: at least so many that subtracting the spinner's leaves some.
fn terminal_width() -> usize {
    let (_, columns) = console::Term::stderr().size();
    match usize::from(columns) {
        // A terminal that does not know.
        0 => 80,
        columns => columns.max(SPINNER_WIDTH + 1),
    }
}

/// Standard error for the log: takes the moving line away, writes, and puts it back.
pub(crate) struct BesideProgress;

impl Write for BesideProgress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = shown().clone();
        match bar {
            Some(bar) => bar.suspend(|| io::stderr().write_all(bytes))?,
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

async fn plain_lines(what: &'static str, progress: Arc<Progress>) {
    let mut meter = Meter::new();
    loop {
        tokio::time::sleep(PLAIN_INTERVAL).await;
        let parts = meter.parts(what, &progress, Instant::now());
        // Nobody to tell when standard error is gone.
        let _ = writeln!(io::stderr(), "{}", fitted(parts, usize::MAX));
    }
}

/// Remembers the last while, for the rate.
struct Meter {
    /// When, with documents and bytes, oldest first; never empty.
    past: VecDeque<(Instant, u64, u64)>,
}

/// A part of the line. Where they do not all fit, those with the highest number go first.
struct Part {
    text: String,
    dispensable: u8,
}

impl Meter {
    fn new() -> Self {
        Self {
            past: VecDeque::from([(Instant::now(), 0, 0)]),
        }
    }

    /// Documents and bytes a second.
    fn rates(&mut self, documents: u64, bytes: u64, now: Instant) -> (f64, f64) {
        self.past.push_back((now, documents, bytes));
        // The oldest that is kept is at least as old as the window is long.
        while self.past.len() > 2 && now.duration_since(self.past[1].0) >= RATE_WINDOW {
            self.past.pop_front();
        }
        let (then, documents_then, bytes_then) = self.past[0];
        let seconds = now.duration_since(then).as_secs_f64().max(0.001);
        (
            documents.saturating_sub(documents_then) as f64 / seconds,
            bytes.saturating_sub(bytes_then) as f64 / seconds,
        )
    }

    fn parts(&mut self, what: &str, progress: &Progress, now: Instant) -> Vec<Part> {
        let Pace {
            limit,
            retries,
            settled,
        } = progress.pace().unwrap_or_default();
        let total = progress.total_documents();
        // Deletions are settled too, and no part of the total.
        let settled = settled.min(total.unwrap_or(u64::MAX));
        let documents = progress.documents().max(settled);
        let (rate, byte_rate) = self.rates(documents, progress.bytes(), now);
        let mut parts = Vec::new();
        let mut add = |dispensable, text: String| parts.push(Part { text, dispensable });
        match total {
            Some(total) => {
                add(
                    0,
                    format!("{what} {}/{}", output::number(documents), output::number(total)),
                );
                let part = documents as f64 / total as f64;
                add(5, format!("{}%", (part * 100.0).min(100.0) as u64));
            }
            None => add(0, format!("{what} {}", output::count(documents, "document"))),
        }
        if progress.bytes() > 0 {
            add(4, output::bytes(progress.bytes()));
            add(6, format!("{}/s", output::bytes(byte_rate as u64)));
        }
        let per_second = output::number(rate as u64);
        match limit {
            Some(limit) => add(2, format!("{per_second}/s (of {})", output::number(limit as u64))),
            None => add(2, format!("{per_second}/s")),
        }
        if retries > 0 {
            add(
                3,
                match retries {
                    1 => "1 retry".to_owned(),
                    retries => format!("{} retries", output::number(retries)),
                },
            );
        }
        let left = total.map_or(0, |total| total.saturating_sub(documents));
        if left > 0 && rate > 0.0 {
            add(1, format!("{} left", about(left as f64 / rate)));
        }
        parts
    }
}

/// `38 s`, `5 min`, `3 h 5 min`: an estimate has no more digits than it deserves.
fn about(seconds: f64) -> String {
    match seconds as u64 {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6_000 => format!("{} min", seconds.div_ceil(60)),
        seconds @ 6_000..360_000 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// The parts in one line of that many columns, as far as they fit.
fn fitted(mut parts: Vec<Part>, width: usize) -> String {
    loop {
        let texts: Vec<&str> = parts.iter().map(|part| part.text.as_str()).collect();
        let line = texts.join("  ");
        // All of it is ASCII.
        if line.len() <= width {
            return line;
        }
        let worst = parts.iter().map(|part| part.dispensable).max().unwrap_or(0);
        if worst == 0 {
            return line.chars().take(width).collect();
        }
        parts.retain(|part| part.dispensable < worst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(progress: &Progress, seconds: u64, width: usize) -> String {
        let mut meter = Meter::new();
        let now = meter.past[0].0 + Duration::from_secs(seconds);
        fitted(meter.parts("restoring", progress, now), width)
    }

    #[test]
    fn a_line_fits_and_keeps_what_matters_most() {
        let progress = Progress::new();
        progress.add(123_456, 12_900_000);
        progress.set_total_documents(200_000);
        progress.watch(|| {
            Some(Pace {
                limit: Some(12_656.25),
                retries: 3,
                settled: 100_000,
            })
        });
        assert_eq!(
            line(&progress, 10, 1000),
            "restoring 123,456/200,000  61%  12.30 MiB  1.23 MiB/s  12,345/s (of 12,656)  3 retries  6 s left"
        );
        assert_eq!(
            line(&progress, 10, 78),
            "restoring 123,456/200,000  12,345/s (of 12,656)  3 retries  6 s left"
        );
        assert_eq!(line(&progress, 10, 40), "restoring 123,456/200,000  6 s left");
        assert_eq!(line(&progress, 10, 9), "restoring");
        for width in 0..100 {
            assert!(line(&progress, 10, width).len() <= width);
        }
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let progress = Progress::new();
        assert_eq!(line(&progress, 5, 80), "restoring 0 documents  0/s");
        progress.add(1, 0);
        assert_eq!(line(&progress, 1, 80), "restoring 1 document  1/s");
        progress.watch(|| None);
        progress.set_total_documents(1);
        assert_eq!(line(&progress, 1, 80), "restoring 1/1  100%  1/s");
    }

    #[test]
    fn the_rate_is_that_of_the_last_while() {
        let progress = Progress::new();
        let mut meter = Meter::new();
        let start = meter.past[0].0;
        for second in 1..=60u64 {
            progress.add(if second <= 30 { 100 } else { 1_000 }, 0);
            let (rate, _) = meter.rates(progress.documents(), 0, start + Duration::from_secs(second));
            if second == 20 {
                assert_eq!(rate, 100.0);
            }
            if second == 60 {
                assert_eq!(rate, 1_000.0);
            }
        }
        assert!(meter.past.len() < 20);
    }

    #[test]
    fn estimates_are_short() {
        let texts = [5.9, 99.0, 100.0, 3_600.0, 20_000.0, 1e9].map(about);
        assert_eq!(
            texts,
            ["5 s", "99 s", "2 min", "60 min", "5 h 33 min", "11574 days"]
        );
    }
}
