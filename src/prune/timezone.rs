//! Where days begin: a zone of the IANA database, this machine's, or UTC.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Local, MappedLocalTime, NaiveDateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

/// A time zone. UTC by default: a policy must not depend on the machine that it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// One of the IANA database.
    Named(Tz),
    /// This machine's.
    Local,
}

impl Default for Zone {
    fn default() -> Self {
        Self::Named(Tz::UTC)
    }
}

impl FromStr for Zone {
    type Err = String;

    /// A name of the IANA database, such as `Europe/Berlin`, or `local`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "local" {
            return Ok(Self::Local);
        }
        Tz::from_str(text).map(Self::Named).map_err(|_| {
            format!("`{text}` is no time zone: give a name such as Europe/Berlin, UTC, or `local`")
        })
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(zone) => f.write_str(zone.name()),
            Self::Local => f.write_str("local"),
        }
    }
}

impl Zone {
    /// What the clock on the wall says.
    pub(super) fn local(self, time: DateTime<Utc>) -> NaiveDateTime {
        match self {
            Self::Named(zone) => time.with_timezone(&zone).naive_local(),
            Self::Local => time.with_timezone(&Local).naive_local(),
        }
    }

    /// When the clock on the wall says this: the first time when it does so twice, just after the gap when it never does.
    pub(super) fn instant(self, local: NaiveDateTime) -> DateTime<Utc> {
        let instant = |local: NaiveDateTime| match self {
            Self::Named(zone) => earliest(zone.from_local_datetime(&local)),
            Self::Local => earliest(Local.from_local_datetime(&local)),
        };
        // No gap is longer than a day (islands have moved across the date line).
        instant(local)
            .or_else(|| {
                (1..=48)
                    .find_map(|halves| instant(local.checked_add_signed(TimeDelta::minutes(30 * halves))?))
            })
            .unwrap_or_else(|| local.and_utc())
    }
}

fn earliest<Z: TimeZone>(times: MappedLocalTime<DateTime<Z>>) -> Option<DateTime<Utc>> {
    times.earliest().map(|time| time.to_utc())
}
