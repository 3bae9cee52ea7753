//! What is told of a comparison that took longer than the database could be read at one moment.

use serde::Serialize;

use super::output;
use crate::archive::RangeTime;
use crate::document::{DocumentKey, DocumentPath};

/// Ranges that are told in words; `--json` lists all.
const TOLD: usize = 10;

/// What `--json` prints of a range that was looked at later.
#[derive(Serialize)]
pub(crate) struct LaterView {
    /// The document that it begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<DocumentPath>,
    /// The document that it begins behind. Neither: it begins with the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<DocumentPath>,
    /// The first document that is no part of it any more; without: it goes on to where the next one begins, or to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<DocumentPath>,
    read_time: String,
}

impl LaterView {
    fn new(later: &RangeTime) -> Self {
        let start = later.range.start.as_ref();
        let behind = |key: &DocumentKey| {
            let key = key.as_bytes().strip_suffix(&[0])?;
            let path = DocumentPath::from_key(key).ok()?;
            // A text's end is the same byte, so only the key itself tells.
            (path.key().as_bytes() == key).then_some(path)
        };
        let from = start.and_then(|key| key.path().ok());
        Self {
            after: match from {
                Some(_) => None,
                None => start.and_then(behind),
            },
            from,
            until: later.range.end.as_ref().and_then(|key| key.path().ok()),
            read_time: later.read_time.to_string(),
        }
    }

    pub(crate) fn of(later: &[RangeTime]) -> Vec<Self> {
        later.iter().map(Self::new).collect()
    }
}

/// Says from which document on the database was read at a newer time.
pub(crate) fn warn_of_later(later: &[RangeTime]) {
    if later.is_empty() {
        return;
    }
    let line = |view: LaterView| {
        let begin = match (&view.from, &view.after) {
            (Some(path), _) => format!("from `{}` on", output::printable(path.as_str())),
            (_, Some(path)) => format!("after `{}`", output::printable(path.as_str())),
            _ => "from the first document on".to_owned(),
        };
        let end = view.until.map_or(String::new(), |path| {
            format!(", before `{}`", output::printable(path.as_str()))
        });
        format!("{begin}{end}: as of {}", view.read_time)
    };
    let lines: Vec<String> = later.iter().take(TOLD).map(LaterView::new).map(line).collect();
    let more = match later.len().saturating_sub(TOLD) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    tracing::warn!(
        "the database could not be read at one moment for long enough, and was read at newer ones in part: {}{more}",
        lines.join("; ")
    );
}
