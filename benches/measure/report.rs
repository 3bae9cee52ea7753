//! What was measured beside what it is measured against.

use std::io::Write;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

/// How a figure and its yardstick must stand to each other.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// The ratio may be this much, or less.
    AtMost(f64),
    /// The ratio must be this much, or more.
    AtLeast(f64),
}

impl Bound {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(bound) => ratio <= bound,
            Self::AtLeast(bound) => ratio >= bound,
        }
    }
}

/// A line of the report. Figures are medians of the runs, the ratio is the median of the runs' ratios.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    measured: f64,
    yardstick: f64,
    ratio: f64,
    bound: Option<Bound>,
    met: bool,
}

impl Row {
    /// A row of pairs {measured, yardstick}, one a run.
    pub(crate) fn new(
        what: &str,
        unit: &'static str,
        bound: impl Into<Option<Bound>>,
        runs: &[(f64, f64)],
    ) -> Self {
        let bound = bound.into();
        let ratio = median(runs.iter().map(|(measured, yardstick)| measured / yardstick));
        Self {
            what: what.to_owned(),
            unit,
            measured: median(runs.iter().map(|run| run.0)),
            yardstick: median(runs.iter().map(|run| run.1)),
            ratio,
            bound,
            met: bound.is_none_or(|bound| bound.is_met(ratio)),
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (None, _) => f64::NAN,
        (Some(upper), 0) => (values[middle - 1] + upper) / 2.0,
        (Some(value), _) => *value,
    }
}

/// Tells something beside the figures.
pub(crate) fn note(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stderr(), "{text}")?)
}

/// Prints the rows, for people or as JSON.
pub(crate) fn print(rows: &[Row], json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, rows)?;
        writeln!(out)?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["figure", "unit", "measured", "yardstick", "ratio", "bound", ""]);
    for row in rows {
        let bound = match row.bound {
            Some(Bound::AtMost(bound)) => format!("<= {bound}"),
            Some(Bound::AtLeast(bound)) => format!(">= {bound}"),
            None => String::new(),
        };
        let verdict = match (row.bound, row.met) {
            (None, _) => "",
            (_, true) => "met",
            (_, false) => "MISSED",
        };
        table.add_row([
            row.what.clone(),
            row.unit.to_owned(),
            figure(row.measured),
            figure(row.yardstick),
            format!("{:.2}", row.ratio),
            bound,
            verdict.to_owned(),
        ]);
    }
    for column in 2..=5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{table}")?;
    Ok(())
}

fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
