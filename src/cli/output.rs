//! What the command line prints: words for people on standard output, or one JSON object and nothing else.

use std::io::{self, Write};
use std::time::Duration;

use chrono::{DateTime, Utc};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

/// Standard output does not take what is written to it.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub(crate) struct OutputError(io::Error);

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<serde_json::Error> for OutputError {
    fn from(error: serde_json::Error) -> Self {
        Self(error.into())
    }
}

impl OutputError {
    /// Whether nobody reads any more, as `head` does when it has seen enough.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Where a command's results go.
///
/// A reader that went away is no error of a command that has done its work: `verify | head -1` still ends as it found the
/// repository. Only [`Output::entry`], for listings of any length, says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// A line for people. Silent with `--json` and `--quiet`.
    pub(crate) fn line(self, line: impl AsRef<str>) -> Result<(), OutputError> {
        if self.json || self.quiet {
            return Ok(());
        }
        self.data(line)
    }

    /// A line that is what was asked for, such as a name in a listing: `--quiet` keeps it.
    pub(crate) fn data(self, line: impl AsRef<str>) -> Result<(), OutputError> {
        match self.entry(line) {
            Err(error) if error.is_broken_pipe() => Ok(()),
            written => written,
        }
    }

    /// Like [`Output::data`] for one of very many lines: fails when nobody reads them any more.
    pub(crate) fn entry(self, line: impl AsRef<str>) -> Result<(), OutputError> {
        if self.json {
            return Ok(());
        }
        Ok(writeln!(io::stdout().lock(), "{}", line.as_ref())?)
    }

    /// The one JSON object of `--json`. Silent otherwise.
    pub(crate) fn json(self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(value)?;
            match writeln!(io::stdout().lock(), "{text}") {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written.map_err(OutputError::from)?,
            }
        }
        Ok(())
    }

    /// A table for people.
    pub(crate) fn table(self, table: &Table) -> Result<(), OutputError> {
        for line in table.lines() {
            self.data(line.trim_end())?;
        }
        Ok(())
    }
}

/// A table without lines, its columns at the given positions aligned right.
pub(crate) fn table(header: &[&str], right_aligned: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right_aligned.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// `12,345`.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 document`, `2 documents`.
pub(crate) fn count(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", number(count))
}

/// `5.0 KiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `0.42 s`, `3 min 5 s`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.2} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `2026-11-22 02:00:07 UTC`.
pub(crate) fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `3 h`, `2 days`: the largest unit that fits.
pub(crate) fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Text from a database or a repository, fit for one line of a terminal: control characters escaped, and those that change
/// the direction or the line of what follows, with which an id could pass for another one.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        let misleads = matches!(char,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if char.is_control() || misleads {
            shown.extend(char.escape_default())
        } else {
            shown.push(char)
        }
    }
    shown
}

/// The same for text of several lines.
pub(crate) fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_000), "1,000");
        assert_eq!(number(12_345_678), "12,345,678");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(printable("a\u{1b}[31m\nü"), "a\\u{1b}[31m\\nü");
        assert_eq!(printable("a\u{202e}b👩\u{200d}🚀"), "a\\u{202e}b👩\u{200d}🚀");
    }
}
