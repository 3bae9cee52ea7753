//! What the snapshots of a chain hand down about the field that tells when a document changed: when all names were read last, and
//! how late commits have come.
//!
//! A backup that asks a field is only as good as the field. What it cannot see is found by the next backup that reads all names or
//! whole documents, so there must be one from time to time, and a snapshot has to know when the last one was. It also knows the
//! longest time by which a commit was behind the time in the field: see [`Asking::overlap`](super::changed::Asking).

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::BackupOptions;
use crate::archive::{Consistency, Plan, ReadMode, Snapshot};
use crate::document::{KeyRange, Timestamp, field_path_text};
use crate::firestore::Firestore;

type Extra = BTreeMap<String, serde_json::Value>;

/// Under which name it stands among what plans and snapshots remember.
const KEY: &str = "changed";

/// How far back a field is asked at least. A server takes the time for a field some moments before it commits, and a transaction
/// may be open for 270 seconds (<https://firebase.google.com/docs/firestore/manage-data/transactions>).
const LEAST_OVERLAP: Duration = Duration::from_secs(15 * 60);

/// The longest time that is taken for a late commit. What is beyond is a field that was not moved, or one that was set to a time of
/// the past: asking ever further back would not find the next one either.
const LONGEST_LAG: Duration = Duration::from_secs(24 * 3600);

/// Asks a field which documents have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeField {
    /// The keys that lead to the field, from the outside in. It holds timestamps.
    pub field: Vec<String>,
    /// How old the last backup of the chain that read all names or whole documents may be: names are read instead when it is
    /// older.
    pub full_scan_every: Duration,
}

impl ChangeField {
    /// Whether all names were read lately enough for the field to be asked.
    fn covers(&self, last_scan: Timestamp, read_time: Timestamp) -> bool {
        let age = read_time.seconds.saturating_sub(last_scan.seconds);
        u64::try_from(age).unwrap_or(0) < self.full_scan_every.as_secs()
    }

    /// The field's path as Firestore writes it.
    pub fn path(&self) -> String {
        field_path_text(self.field.iter().map(String::as_str))
    }
}

/// What is handed down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Since {
    /// The keys that lead to the field.
    pub(super) field: Vec<String>,
    /// When all names or whole documents were read last.
    full_scan: DateTime<Utc>,
    /// The longest lag that was seen before.
    lag_micros: u64,
}

impl Since {
    /// What a snapshot, or a plan, remembers. What cannot be read is as if it were not there: then the overlap is the least.
    pub(super) fn of(extra: &Extra) -> Option<Self> {
        serde_json::from_value(extra.get(KEY)?.clone()).ok()
    }

    /// What a plan remembers.
    pub(super) fn entry(&self) -> Option<(String, serde_json::Value)> {
        Some((KEY.to_owned(), serde_json::to_value(self).ok()?))
    }

    /// How far back to ask.
    pub(super) fn overlap(&self) -> Duration {
        Duration::from_micros(self.lag_micros).clamp(LEAST_OVERLAP, LONGEST_LAG)
    }

    /// When all names were read last.
    pub(super) fn full_scan(&self) -> Timestamp {
        Timestamp::from(self.full_scan)
    }
}

/// How to read a database upon a parent, and what to hand down.
pub(super) struct Choice {
    pub(super) read: ReadMode,
    pub(super) since: Option<Since>,
}

/// Chooses how to read upon a parent.
pub(super) fn choose(
    database: &Firestore,
    parent: &Snapshot,
    read_time: Timestamp,
    options: &BackupOptions,
) -> Choice {
    let otherwise = match options.read {
        Some(ReadMode::Full) => ReadMode::Full,
        _ => ReadMode::Names,
    };
    let wanted = options.changed.as_ref();
    let handed_down = Since::of(&parent.extra);
    let field = wanted.map(|wanted| &wanted.field);
    let Some(field) = field.or(handed_down.as_ref().map(|since| &since.field)) else {
        return Choice {
            read: otherwise,
            since: None,
        };
    };
    let lag_micros = match &handed_down {
        Some(since) if since.field == *field => since.lag_micros.max(parent.stats.largest_lag_micros),
        _ => 0,
    };
    let last_scan = last_full_scan(parent);
    let read = match (wanted, last_scan) {
        (Some(wanted), Some(last)) if !database.walks() && wanted.covers(last, read_time) => {
            ReadMode::Changed
        }
        _ => otherwise,
    };
    let full_scan = match (read, last_scan) {
        (ReadMode::Changed, Some(last)) => last,
        _ => read_time,
    };
    let since = full_scan.to_datetime().map(|full_scan| Since {
        field: field.clone(),
        full_scan,
        lag_micros,
    });
    Choice { read, since }
}

/// When all names or whole documents were read last, as of a snapshot; `None` where it does not say.
fn last_full_scan(snapshot: &Snapshot) -> Option<Timestamp> {
    match snapshot.stats.read {
        ReadMode::Changed => Since::of(&snapshot.extra).map(|since| since.full_scan()),
        ReadMode::Full | ReadMode::Names => Some(snapshot.read_time),
    }
}

/// Of what a plan remembers, what its snapshot does.
pub(super) fn handed_down(plan: &Extra) -> Extra {
    plan.get_key_value(KEY)
        .map(|(key, value)| (key.clone(), value.clone()))
        .into_iter()
        .collect()
}

/// Why the field is not asked, by a plan, though somebody wants it to be.
pub(super) fn why_not_asked(wanted: &ChangeField, plan: &Plan, parent: Option<&Snapshot>) -> Option<String> {
    let path = wanted.path();
    if plan.read == ReadMode::Changed {
        let asked = Since::of(&plan.extra).map(|since| since.field);
        return (asked.as_ref() != Some(&wanted.field))
            .then(|| format!("another field than `{path}` was asked: the session was begun with it"));
    }
    why_another(wanted, plan.read, plan.read_time, parent)
}

/// Why a backup upon this parent does not ask the field that is wanted, as of a time.
pub(super) fn why_another(
    wanted: &ChangeField,
    read: ReadMode,
    read_time: Timestamp,
    parent: Option<&Snapshot>,
) -> Option<String> {
    if read == ReadMode::Changed {
        return None;
    }
    let path = wanted.path();
    let Some(parent) = parent else {
        return Some(format!(
            "every document is read, and `{path}` is not asked: there is no backup before this one to build upon"
        ));
    };
    let what = match read {
        ReadMode::Full => "whole documents",
        _ => "all names",
    };
    let why = match last_full_scan(parent) {
        Some(last) if !wanted.covers(last, read_time) => {
            format!("they were read last at {last}, longer ago than --full-scan-every")
        }
        Some(_) => {
            "collection by collection, as the server or --walk wants it, nothing can be counted".to_owned()
        }
        None => "it is not known when they were read last".to_owned(),
    };
    Some(format!("{what} are read, and `{path}` is not asked: {why}"))
}

/// The moment from which on a range of the parent does not know what happened.
pub(super) fn known_until(parent: &Snapshot, range: &KeyRange) -> Timestamp {
    let Consistency::Mixed { ranges } = &parent.consistency else {
        return parent.read_time;
    };
    let holds = |outer: &KeyRange| {
        outer.start <= range.start
            && match (&outer.end, &range.end) {
                (None, _) => true,
                (Some(outer), Some(inner)) => inner <= outer,
                (Some(_), None) => false,
            }
    };
    let own = ranges.iter().find(|tail| holds(&tail.range));
    own.map_or(parent.read_time, |tail| tail.read_time)
}

/// By how much a commit was behind the time in the field, in microseconds, if that counts.
pub(super) fn lag_micros(field: Timestamp, update_time: Timestamp) -> Option<u64> {
    let micros = |time: Timestamp| i128::from(time.seconds) * 1_000_000 + i128::from(time.nanos / 1000);
    let lag = u64::try_from(micros(update_time) - micros(field)).ok()?;
    (u128::from(lag) <= LONGEST_LAG.as_micros()).then_some(lag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::RangeTime;
    use crate::document::DocumentPath;

    fn range(start: &str, end: &str) -> KeyRange {
        let key = |path: &str| DocumentPath::parse(path).ok().map(|path| path.key());
        KeyRange {
            start: key(start),
            end: key(end),
        }
    }

    #[test]
    fn a_mixed_parent_knows_each_range_until_its_own_time() {
        let at = |seconds| Timestamp::new(seconds, 0);
        let tail = |start, end, seconds| RangeTime {
            range: range(start, end),
            read_time: at(seconds),
        };
        let mut parent = super::super::parent::tests::snapshot(100);
        let known = |parent: &Snapshot, start, end| known_until(parent, &range(start, end));
        assert_eq!(known(&parent, "c/1", "c/2"), at(100));
        parent.consistency = Consistency::Mixed {
            ranges: vec![tail("b/1", "c/5", 200), tail("d/1", "", 300)],
        };
        assert_eq!(known(&parent, "c/1", "c/5"), at(200));
        assert_eq!(known(&parent, "a/1", "a/2"), at(100));
        // In more than one: what is certain.
        assert_eq!(known(&parent, "a/1", "c/2"), at(100));
        assert_eq!(known(&parent, "c/1", "c/6"), at(100));
        assert_eq!(known(&parent, "", ""), at(100));
        assert_eq!(known(&parent, "d/7", ""), at(300));
        assert_eq!(known(&parent, "c/1", ""), at(100));
    }

    #[test]
    fn lags_count_within_reason() {
        let micros = |field: (i64, u32), update: (i64, u32)| {
            lag_micros(
                Timestamp::new(field.0, field.1),
                Timestamp::new(update.0, update.1),
            )
        };
        assert_eq!(micros((100, 5_000_000), (100, 7_000_000)), Some(2000));
        assert_eq!(micros((100, 0), (2500, 0)), Some(2_400_000_000));
        // A clock that is ahead, and a field of the past.
        assert_eq!(micros((101, 0), (100, 0)), None);
        assert_eq!(micros((0, 0), (86_401, 0)), None);
        assert_eq!(micros((i64::MIN, 0), (i64::MAX, 0)), None);
    }

    #[test]
    fn the_overlap_is_the_longest_lag_between_bounds() {
        let overlap = |seconds: u64| {
            let since = Since {
                field: vec!["f".to_owned()],
                full_scan: crate::clock::now(),
                lag_micros: seconds * 1_000_000,
            };
            since.overlap().as_secs()
        };
        assert_eq!(
            [0, 900, 901, 86_400, 1 << 40].map(overlap),
            [900, 900, 901, 86_400, 86_400]
        );
    }
}
