//! Times of day, with or without a weekday.

use std::fmt;
use std::str::FromStr;

use chrono::{NaiveTime, Timelike, Weekday};

/// Every day at a time, or once a week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    weekday: Option<Weekday>,
    time: NaiveTime,
}

/// A text that is no such time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("give a time such as 02:00, or `sun 03:00` for once a week")]
pub struct BadTime;

impl FromStr for When {
    type Err = BadTime;

    fn from_str(text: &str) -> Result<Self, BadTime> {
        let (weekday, time) = match text.trim().split_once(' ') {
            Some((weekday, time)) => (Some(weekday.parse().map_err(|_| BadTime)?), time.trim()),
            None => (None, text.trim()),
        };
        let time = NaiveTime::parse_from_str(time, "%H:%M").map_err(|_| BadTime)?;
        Ok(Self { weekday, time })
    }
}

/// As it was given.
impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(weekday) = self.weekday {
            write!(f, "{weekday} ")?;
        }
        write!(f, "{}", self.time.format("%H:%M"))
    }
}

impl When {
    /// The five fields of cron.
    pub(super) fn cron(self) -> String {
        let (hour, minute) = (self.time.hour(), self.time.minute());
        match self.weekday {
            Some(weekday) => format!("{minute} {hour} * * {}", weekday.num_days_from_sunday()),
            None => format!("{minute} {hour} * * *"),
        }
    }

    /// A calendar event of systemd: systemd.time(7).
    pub(super) fn calendar(self) -> String {
        let time = self.time.format("%H:%M:00");
        match self.weekday {
            Some(weekday) => format!("{weekday} *-*-* {time}"),
            None => format!("*-*-* {time}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_weeks() {
        let forms = |text: &str| {
            let when: When = text.parse().unwrap();
            (when.to_string(), when.cron(), when.calendar())
        };
        let expected = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(forms("02:00"), expected("02:00", "0 2 * * *", "*-*-* 02:00:00"));
        assert_eq!(
            forms("sunday 23:59"),
            expected("Sun 23:59", "59 23 * * 0", "Sun *-*-* 23:59:00")
        );
        assert_eq!(
            forms("SAT 4:05"),
            expected("Sat 04:05", "5 4 * * 6", "Sat *-*-* 04:05:00")
        );
        for wrong in [
            "",
            "2",
            "24:00",
            "02:60",
            "someday 02:00",
            "02:00 sun",
            "02:00:30",
        ] {
            assert_eq!(wrong.parse::<When>(), Err(BadTime), "{wrong}");
        }
    }
}
