//! Which backups a policy keeps, and why: restic's rules, with restic's meaning.
//!
//! Pure: times in, verdicts out. Every rule counts on its own, newest first; a backup is kept when any rule keeps it. A rule by
//! calendar period keeps the newest of each period. While a rule has counts left, it keeps the oldest backup too, so that the
//! history reaches as far back as it can. `--keep-within…` looks back from the newest backup, not from now, so that a database
//! that is no longer backed up keeps what it has. (See restic's manual, "Removing snapshots according to a policy".)

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Days, NaiveDate, TimeDelta, Timelike, Utc};

use super::timezone::Zone;
use crate::archive::snapshot::has_tags;

/// How many a rule keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// So many.
    Count(u32),
    /// All that the rule sees: the newest of every period.
    Unlimited,
}

impl Default for Keep {
    fn default() -> Self {
        Self::Count(0)
    }
}

impl FromStr for Keep {
    type Err = String;

    /// A number, or `unlimited` (or -1, as restic says it too).
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "unlimited" | "-1" => Ok(Self::Unlimited),
            number => number
                .parse()
                .map(Self::Count)
                .map_err(|_| "give a number, or `unlimited`".to_owned()),
        }
    }
}

/// A calendar duration, such as `1y5m7d2h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Within {
    years: u32,
    months: u32,
    days: u32,
    hours: u32,
}

impl FromStr for Within {
    type Err = String;

    /// Numbers, each with its unit: `y` years, `m` months, `d` days, `h` hours.
    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "give a duration such as 14d or 1y5m7d2h (years, months, days, hours)";
        let mut within = Self::default();
        let mut rest = text;
        while let Some(end) = rest.find(|char: char| !char.is_ascii_digit()) {
            let number: u32 = rest[..end].parse().map_err(|_| FORM)?;
            let (unit, after) = rest[end..].split_at_checked(1).ok_or(FORM)?;
            let place = match unit {
                "y" => &mut within.years,
                "m" => &mut within.months,
                "d" => &mut within.days,
                "h" => &mut within.hours,
                _ => return Err(FORM.to_owned()),
            };
            // Times that a calendar has: years of five digits are past its end.
            if number > 99_999 {
                return Err(FORM.to_owned());
            }
            *place = number;
            rest = after;
        }
        match rest.is_empty() && within != Self::default() {
            true => Ok(within),
            false => Err(FORM.to_owned()),
        }
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, unit) in [
            (self.years, 'y'),
            (self.months, 'm'),
            (self.days, 'd'),
            (self.hours, 'h'),
        ] {
            if number > 0 {
                write!(f, "{number}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Within {
    /// So long before `time`: years, months and days by the calendar of the zone (a day that a month does not have counts on
    /// into the next month), hours by the clock. `None` before all time.
    fn before(&self, time: DateTime<Utc>, zone: Zone) -> Option<DateTime<Utc>> {
        let local = zone.local(time);
        let months = i64::from(local.year()) * 12 + i64::from(local.month0())
            - i64::from(self.years) * 12
            - i64::from(self.months);
        let first = NaiveDate::from_ymd_opt(
            i32::try_from(months.div_euclid(12)).ok()?,
            u32::try_from(months.rem_euclid(12)).ok()? + 1,
            1,
        )?;
        let date = first
            .checked_add_days(Days::new(u64::from(local.day0())))?
            .checked_sub_days(Days::new(u64::from(self.days)))?;
        zone.instant(date.and_time(local.time()))
            .checked_sub_signed(TimeDelta::hours(i64::from(self.hours)))
    }
}

/// What to keep. Empty: nothing is said, and nothing may be removed by it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// The newest.
    pub last: Keep,
    /// The newest of each hour, of the newest such hours.
    pub hourly: Keep,
    /// The newest of each day.
    pub daily: Keep,
    /// The newest of each week (ISO 8601: weeks begin on Monday).
    pub weekly: Keep,
    /// The newest of each month.
    pub monthly: Keep,
    /// The newest of each year.
    pub yearly: Keep,
    /// All that are newer than this before the newest one.
    pub within: Option<Within>,
    /// The newest of each hour within this before the newest one.
    pub within_hourly: Option<Within>,
    /// The newest of each day within this before the newest one.
    pub within_daily: Option<Within>,
    /// The newest of each week within this before the newest one.
    pub within_weekly: Option<Within>,
    /// The newest of each month within this before the newest one.
    pub within_monthly: Option<Within>,
    /// The newest of each year within this before the newest one.
    pub within_yearly: Option<Within>,
    /// All that have every tag of one of these lists. A list of one empty tag means those without tags.
    pub tags: Vec<Vec<String>>,
    /// All whose id begins with one of these.
    pub ids: Vec<String>,
    /// Where days begin and end.
    pub zone: Zone,
}

/// A backup as a policy sees it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// When it was taken.
    pub time: DateTime<Utc>,
    /// Its tags.
    pub tags: &'a [String],
    /// Its id.
    pub id: &'a str,
}

#[derive(Clone, Copy)]
enum Period {
    Each,
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    /// A number that two times share when they lie in the same period.
    fn of(self, time: DateTime<Utc>, place: usize, zone: Zone) -> (i32, u32, u32) {
        let local = zone.local(time);
        match self {
            Self::Each => (0, 0, place as u32),
            Self::Hour => (local.year(), local.ordinal(), local.hour()),
            Self::Day => (local.year(), local.ordinal(), 0),
            Self::Week => (local.iso_week().year(), local.iso_week().week(), 0),
            Self::Month => (local.year(), local.month(), 0),
            Self::Year => (local.year(), 0, 0),
        }
    }
}

/// A rule by period, as far as it has got.
struct Rule {
    period: Period,
    name: String,
    kind: RuleKind,
    last: Option<(i32, u32, u32)>,
}

enum RuleKind {
    Counted(Keep),
    /// Only what is newer than this; `None`: everything.
    Since(Option<DateTime<Utc>>),
}

impl Policy {
    /// The newest `count` of each group.
    pub fn last(count: u32) -> Self {
        Self {
            last: Keep::Count(count),
            ..Self::default()
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        Self {
            zone: Zone::default(),
            ..self.clone()
        } == Self::default()
    }

    /// The reasons to keep each of a group's backups, in the order given, which must be newest first. No reason: it goes.
    ///
    /// `now` only matters for backups that claim to be of the future: the look back does not begin at them.
    pub fn apply(&self, group: &[Candidate<'_>], now: DateTime<Utc>) -> Vec<Vec<String>> {
        let newest = group
            .iter()
            .map(|candidate| candidate.time)
            .filter(|time| *time < now)
            .max();
        // Without a newest one that is not of the future, everything is within.
        let since = |within: &Within| newest.and_then(|newest| within.before(newest, self.zone));
        let mut rules = self.rules(since);
        let mut verdicts = Vec::with_capacity(group.len());
        for (place, candidate) in group.iter().enumerate() {
            let mut reasons = Vec::new();
            for id in &self.ids {
                if candidate.id.starts_with(id.as_str()) {
                    reasons.push("named by --keep-id".to_owned());
                }
            }
            for tags in self.tags.iter().filter(|tags| has_tags(candidate.tags, tags)) {
                reasons.push(match tags.join(",") {
                    tags if tags.is_empty() => "has no tags".to_owned(),
                    tags => format!("has tags {tags}"),
                });
            }
            if let Some(within) = &self.within
                && since(within).is_none_or(|since| candidate.time > since)
            {
                reasons.push(format!("within {within}"));
            }
            for rule in &mut rules {
                if rule.keeps(candidate.time, place, place + 1 == group.len(), self.zone) {
                    reasons.push(rule.name.clone());
                }
            }
            verdicts.push(reasons);
        }
        verdicts
    }

    fn rules(&self, since: impl Fn(&Within) -> Option<DateTime<Utc>>) -> Vec<Rule> {
        let counted = [
            (self.last, Period::Each, "last"),
            (self.hourly, Period::Hour, "hourly"),
            (self.daily, Period::Day, "daily"),
            (self.weekly, Period::Week, "weekly"),
            (self.monthly, Period::Month, "monthly"),
            (self.yearly, Period::Year, "yearly"),
        ];
        let within = [
            (&self.within_hourly, Period::Hour, "hourly"),
            (&self.within_daily, Period::Day, "daily"),
            (&self.within_weekly, Period::Week, "weekly"),
            (&self.within_monthly, Period::Month, "monthly"),
            (&self.within_yearly, Period::Year, "yearly"),
        ];
        let counted = counted.into_iter().map(|(keep, period, name)| Rule {
            period,
            name: name.to_owned(),
            kind: RuleKind::Counted(keep),
            last: None,
        });
        let within = within.into_iter().filter_map(|(within, period, name)| {
            let within = within.as_ref()?;
            Some(Rule {
                period,
                name: format!("{name} within {within}"),
                kind: RuleKind::Since(since(within)),
                last: None,
            })
        });
        counted.chain(within).collect()
    }
}

impl Rule {
    fn keeps(&mut self, time: DateTime<Utc>, place: usize, oldest: bool, zone: Zone) -> bool {
        let period = self.period.of(time, place, zone);
        let newest_of_period = self.last != Some(period);
        match &mut self.kind {
            RuleKind::Counted(Keep::Count(0)) => return false,
            RuleKind::Counted(keep) if newest_of_period || oldest => {
                if let Keep::Count(left) = keep {
                    *left -= 1;
                }
            }
            RuleKind::Since(since) if newest_of_period && since.is_none_or(|since| time > since) => {}
            _ => return false,
        }
        self.last = Some(period);
        true
    }
}

impl Policy {
    /// Whether a rule goes by time: tags and ids are no rule for files.
    pub fn goes_by_time(&self) -> bool {
        !Self {
            tags: Vec::new(),
            ids: Vec::new(),
            ..self.clone()
        }
        .is_empty()
    }
}
