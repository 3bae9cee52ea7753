//! The rules of retention, against tables of what restic's rules mean, and what a plan makes of them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

use chrono::{DateTime, NaiveDateTime, Utc};
use firebank::archive::*;
use firebank::document::{CollectionPath, DatabaseName, Timestamp};
use firebank::prune::{Candidate, Choice, Keep, Policy, PruneError, PruneFilter, PrunePlan, plan_snapshots};
use proptest::prelude::*;

fn at(text: &str) -> DateTime<Utc> {
    let form = if text.len() == 16 {
        "%Y-%m-%d %H:%M"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    NaiveDateTime::parse_from_str(text, form).unwrap().and_utc()
}

fn now() -> DateTime<Utc> {
    at("2030-01-01 00:00")
}

fn n(count: u32) -> Keep {
    Keep::Count(count)
}

/// Which of these times, newest first, a policy keeps.
fn kept<'a>(policy: &Policy, times: &[&'a str]) -> Vec<&'a str> {
    let candidates: Vec<Candidate<'_>> = times
        .iter()
        .map(|time| Candidate {
            time: at(time),
            tags: &[],
            id: "",
        })
        .collect();
    let reasons = policy.apply(&candidates, now());
    assert_eq!(reasons.len(), times.len());
    times
        .iter()
        .zip(reasons)
        .filter(|(_, reasons)| !reasons.is_empty())
        .map(|(time, _)| *time)
        .collect()
}

#[test]
fn counted_rules_keep_the_newest_of_each_period() {
    let days = [
        "2015-09-22 20:00",
        "2015-09-22 10:00",
        "2015-09-20 10:00",
        "2015-09-11 23:59",
        "2015-09-11 00:00",
        "2015-08-31 12:00",
        "2014-12-31 12:00",
    ];
    let policy = Policy::default;
    let table: &[(&str, Policy, &[usize])] = &[
        (
            "the last two",
            Policy {
                last: n(2),
                ..policy()
            },
            &[0, 1],
        ),
        (
            "more than there are",
            Policy {
                last: n(99),
                ..policy()
            },
            &[0, 1, 2, 3, 4, 5, 6],
        ),
        (
            "all",
            Policy {
                last: Keep::Unlimited,
                ..policy()
            },
            &[0, 1, 2, 3, 4, 5, 6],
        ),
        (
            "hours",
            Policy {
                hourly: n(3),
                ..policy()
            },
            &[0, 1, 2],
        ),
        (
            "the newest of each day",
            Policy {
                daily: n(3),
                ..policy()
            },
            &[0, 2, 3],
        ),
        (
            "days without a backup do not count",
            Policy {
                daily: n(4),
                ..policy()
            },
            &[0, 2, 3, 5],
        ),
        (
            "all days",
            Policy {
                daily: Keep::Unlimited,
                ..policy()
            },
            &[0, 2, 3, 5, 6],
        ),
        // 22 September 2015 is a Tuesday, the 20th a Sunday.
        (
            "weeks",
            Policy {
                weekly: n(3),
                ..policy()
            },
            &[0, 2, 3],
        ),
        (
            "months",
            Policy {
                monthly: n(2),
                ..policy()
            },
            &[0, 5],
        ),
        (
            "months of different years",
            Policy {
                monthly: n(3),
                ..policy()
            },
            &[0, 5, 6],
        ),
        (
            "years",
            Policy {
                yearly: n(1),
                ..policy()
            },
            &[0],
        ),
        (
            "years, and the oldest",
            Policy {
                yearly: n(9),
                ..policy()
            },
            &[0, 6],
        ),
        (
            "each rule counts on its own",
            Policy {
                last: n(2),
                daily: n(2),
                ..policy()
            },
            &[0, 1, 2],
        ),
        (
            "what one rule keeps counts for the others",
            Policy {
                daily: n(1),
                monthly: n(1),
                yearly: n(1),
                ..policy()
            },
            &[0],
        ),
        ("a count of nothing keeps nothing", policy(), &[]),
    ];
    for (what, policy, expected) in table {
        let expected: Vec<&str> = expected.iter().map(|place| days[*place]).collect();
        assert_eq!(kept(policy, &days), expected, "{what}");
    }
}

#[test]
fn the_oldest_is_kept_while_counts_are_left() {
    // Four in one month: the newest by its month, the oldest because counts are left.
    let month = [
        "2024-01-04 20:20",
        "2024-01-04 20:09",
        "2024-01-03 01:04",
        "2024-01-02 13:42",
    ];
    let monthly = |count| Policy {
        monthly: n(count),
        ..Policy::default()
    };
    assert_eq!(kept(&monthly(4), &month), [month[0], month[3]]);
    assert_eq!(kept(&monthly(2), &month), [month[0], month[3]]);
    assert_eq!(kept(&monthly(1), &month), [month[0]]);
    let daily = |count| Policy {
        daily: n(count),
        ..Policy::default()
    };
    assert_eq!(kept(&daily(3), &month), [month[0], month[2], month[3]]);
    // Two on the oldest day: the newest of that day by the day, the oldest by what is left.
    let two = ["2024-01-03 10:00", "2024-01-01 20:00", "2024-01-01 08:00"];
    assert_eq!(kept(&daily(2), &two), [two[0], two[1]]);
    assert_eq!(kept(&daily(3), &two), two);
}

#[test]
fn weeks_are_those_of_iso_8601() {
    // 1 January 2016 is a Friday: of week 53 of 2015, as is Sunday the 3rd.
    let times = [
        "2016-01-04 00:00",
        "2016-01-03 23:59",
        "2016-01-01 00:00",
        "2015-12-28 00:00",
    ];
    let weekly = |count| Policy {
        weekly: n(count),
        ..Policy::default()
    };
    assert_eq!(kept(&weekly(2), &times), [times[0], times[1]]);
    let yearly = Policy {
        yearly: n(2),
        ..Policy::default()
    };
    assert_eq!(
        kept(&yearly, &times),
        [times[0], times[3]],
        "years are those of the calendar"
    );
}

#[test]
fn within_looks_back_from_the_newest_by_the_calendar() {
    let within = |text: &str| Policy {
        within: Some(text.parse().unwrap()),
        ..Policy::default()
    };
    let times = [
        "2016-01-18 12:00:00",
        "2016-01-17 12:00:01",
        "2016-01-17 12:00:00",
        "2015-01-18 12:00:01",
    ];
    assert_eq!(
        kept(&within("1d"), &times),
        times[..2],
        "exactly a day before is not within"
    );
    assert_eq!(kept(&within("24h"), &times), times[..2]);
    assert_eq!(kept(&within("25h"), &times), times[..3]);
    assert_eq!(kept(&within("1y"), &times), times);
    assert_eq!(kept(&within("11m29d"), &times), times[..3]);
    // A month before 31 March is "31 February", which counts on into March.
    let march = [
        "2015-03-31 00:00:00",
        "2015-03-03 00:00:01",
        "2015-03-03 00:00:00",
    ];
    assert_eq!(kept(&within("1m"), &march), march[..2]);
    let leap = [
        "2016-03-31 00:00:00",
        "2016-03-02 00:00:01",
        "2016-03-02 00:00:00",
    ];
    assert_eq!(kept(&within("1m"), &leap), leap[..2]);
    let each_day = Policy {
        within_daily: Some("2d".parse().unwrap()),
        ..Policy::default()
    };
    let many = [
        "2016-01-18 12:00",
        "2016-01-18 11:00",
        "2016-01-17 12:00",
        "2016-01-17 11:00",
        "2016-01-15 11:00",
    ];
    assert_eq!(
        kept(&each_day, &many),
        [many[0], many[2]],
        "there are no counts to be left for the oldest"
    );
    for wrong in [
        "",
        "1",
        "d",
        "1w",
        "1d2",
        "-1d",
        "0d",
        "1.5d",
        "1é",
        "999999999999y",
        "100000y",
    ] {
        assert!(wrong.parse::<firebank::prune::Within>().is_err(), "{wrong}");
    }
    assert_eq!(
        "1y5m7d2h".parse::<firebank::prune::Within>().unwrap().to_string(),
        "1y5m7d2h"
    );
    // Before all time: everything is within.
    assert_eq!(kept(&within("99999y"), &times), times);
}

#[test]
fn a_backup_of_the_future_does_not_move_the_look_back() {
    let within = Policy {
        within: Some("2d".parse().unwrap()),
        ..Policy::default()
    };
    let times = [
        "2031-01-01 00:00",
        "2029-12-31 00:00",
        "2029-12-30 00:00",
        "2029-12-28 00:00",
    ];
    assert_eq!(kept(&within, &times), times[..3]);
    let future = ["2031-01-09 00:00", "2031-01-01 00:00"];
    assert_eq!(kept(&within, &future), future, "without a present nothing is old");
}

#[test]
fn days_begin_where_the_time_zone_says() {
    let times = ["2024-06-02 00:30", "2024-06-01 23:30", "2024-06-01 21:30"];
    let daily = |zone: &str| Policy {
        daily: n(2),
        zone: zone.parse().unwrap(),
        ..Policy::default()
    };
    assert_eq!(kept(&daily("UTC"), &times), times[..2]);
    // In Berlin it is two hours later: the first two share a day, and the third is the day before.
    assert_eq!(kept(&daily("Europe/Berlin"), &times), [times[0], times[2]]);
    assert!("Mars/Olympus".parse::<firebank::prune::Zone>().is_err());
    // The clocks go forward at 01:00 UTC on 31 March 2024: a day before 02:30 is a time that was not on any clock.
    let within = Policy {
        within: Some("1d".parse().unwrap()),
        zone: "Europe/Berlin".parse().unwrap(),
        ..Policy::default()
    };
    let spring = [
        "2024-04-01 00:30:00",
        "2024-03-31 01:00:01",
        "2024-03-31 00:59:59",
    ];
    assert_eq!(kept(&within, &spring), spring[..2]);
}

#[test]
fn tags_and_ids_keep_without_counting() {
    let tags: Vec<Vec<String>> = ["", "foo", "foo,bar", "bar"]
        .iter()
        .map(|tags| {
            tags.split(',')
                .filter(|tag| !tag.is_empty())
                .map(str::to_owned)
                .collect()
        })
        .collect();
    let candidates: Vec<Candidate<'_>> = tags
        .iter()
        .zip(["a0", "a1", "b0", "b1"])
        .map(|(tags, id)| Candidate {
            time: at("2020-01-01 00:00"),
            tags,
            id,
        })
        .collect();
    let kept = |policy: Policy| -> Vec<usize> {
        let reasons = policy.apply(&candidates, now());
        (0..reasons.len())
            .filter(|place| !reasons[*place].is_empty())
            .collect()
    };
    let tagged = |lists: &[&[&str]]| Policy {
        tags: lists
            .iter()
            .map(|list| list.iter().map(|tag| (*tag).to_owned()).collect())
            .collect(),
        ..Policy::default()
    };
    assert_eq!(kept(tagged(&[&["foo"]])), [1, 2]);
    assert_eq!(kept(tagged(&[&["foo", "bar"]])), [2]);
    assert_eq!(kept(tagged(&[&["foo"], &["bar"]])), [1, 2, 3]);
    assert_eq!(kept(tagged(&[&[""]])), [0]);
    assert_eq!(kept(tagged(&[&["baz"]])), [0; 0]);
    let ids = Policy {
        ids: vec!["b".to_owned(), "a1".to_owned()],
        ..Policy::default()
    };
    assert_eq!(kept(ids), [1, 2, 3]);
    let both = Policy {
        last: n(1),
        ..tagged(&[&["bar"]])
    };
    assert_eq!(kept(both), [0, 2, 3]);
}

proptest! {
    /// Whatever the times: a rule keeps no more than its count, the newest is always kept, and a greater count never
    /// removes what a smaller one keeps, the oldest excepted.
    #[test]
    fn counts_bound_what_is_kept(mut hours in proptest::collection::vec(0i64..40_000, 1..60), count in 1u32..20) {
        hours.sort_unstable_by(|a, b| b.cmp(a));
        let candidates: Vec<Candidate<'_>> = hours
            .iter()
            .map(|hour| Candidate { time: DateTime::from_timestamp(1_400_000_000 + hour * 3600, 0).unwrap(), tags: &[], id: "" })
            .collect();
        let rules: [fn(u32) -> Policy; 6] = [
            |count| Policy { last: n(count), ..Policy::default() },
            |count| Policy { hourly: n(count), ..Policy::default() },
            |count| Policy { daily: n(count), ..Policy::default() },
            |count| Policy { weekly: n(count), ..Policy::default() },
            |count| Policy { monthly: n(count), ..Policy::default() },
            |count| Policy { yearly: n(count), ..Policy::default() },
        ];
        for rule in rules {
            let kept = |count| -> Vec<bool> {
                rule(count).apply(&candidates, now()).iter().map(|reasons| !reasons.is_empty()).collect()
            };
            let (fewer, more) = (kept(count), kept(count + 1));
            prop_assert!(fewer.iter().filter(|kept| **kept).count() <= count as usize);
            prop_assert!(fewer[0]);
            let oldest = candidates.len() - 1;
            prop_assert!((0..oldest).all(|place| !fewer[place] || more[place]));
        }
    }
}

// Plans.

fn snapshot(id: u64, time: &str) -> Snapshot {
    Snapshot {
        id: SnapshotId::from_u64(id),
        kind: SnapshotKind::Backup,
        database: DatabaseName::new("demo-a", "(default)"),
        database_uid: None,
        read_time: Timestamp::from(at(time)),
        consistency: Consistency::Consistent,
        started_at: at(time),
        finished_at: at(time),
        selection: Selection::all(),
        documents: 0,
        body_bytes: 0,
        runs: Vec::new(),
        parent: None,
        pins: Vec::new(),
        replaces: None,
        refs: Vec::new(),
        tags: Vec::new(),
        description: None,
        host: None,
        tool_version: String::new(),
        stats: SnapshotStats::default(),
        collections: Counts::default(),
        collection_groups: Counts::default(),
        extra: Default::default(),
    }
}

fn listing(mut snapshots: Vec<Snapshot>) -> SnapshotListing {
    snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.read_time));
    SnapshotListing {
        snapshots,
        ..SnapshotListing::default()
    }
}

fn plan(policy: Policy, snapshots: Vec<Snapshot>) -> Result<PrunePlan, PruneError> {
    plan_snapshots(
        listing(snapshots),
        &Choice::Policy(policy),
        &PruneFilter::default(),
        now(),
    )
}

fn going(plan: &PrunePlan) -> Vec<u64> {
    let mut ids: Vec<u64> = plan.to_forget().iter().map(|(id, _)| id.to_u64()).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn groups_are_project_database_selection_and_kind() {
    let of_project = Snapshot {
        database: DatabaseName::new("demo-b", "(default)"),
        ..snapshot(3, "2020-01-01 00:00")
    };
    let of_database = Snapshot {
        database: DatabaseName::new("demo-a", "other"),
        ..snapshot(4, "2020-01-01 00:00")
    };
    let of_selection = Snapshot {
        selection: Selection::new(vec![CollectionPath::parse("users").unwrap()], Vec::new()),
        ..snapshot(5, "2020-01-01 00:00")
    };
    let all = vec![
        snapshot(1, "2020-01-01 00:00"),
        snapshot(2, "2020-01-02 00:00"),
        of_project,
        of_database,
        of_selection,
    ];
    let plan = plan(Policy::last(1), all).unwrap();
    assert_eq!(plan.groups.len(), 4);
    assert_eq!(going(&plan), [1]);
    assert_eq!(plan.to_forget()[0].1, "no rule keeps it");
}

#[test]
fn the_last_of_a_group_stays_whatever_the_rules_say() {
    let mut tagged = snapshot(1, "2020-01-03 00:00");
    tagged.tags = vec!["keep".to_owned()];
    let other_group = |id, time| Snapshot {
        database: DatabaseName::new("demo-b", "(default)"),
        ..snapshot(id, time)
    };
    let policy = Policy {
        tags: vec![vec!["keep".to_owned()]],
        ..Policy::default()
    };
    let all = vec![
        tagged,
        snapshot(2, "2020-01-02 00:00"),
        other_group(3, "2020-01-01 00:00"),
        other_group(4, "2020-01-02 00:00"),
    ];
    let plan = plan(policy, all).unwrap();
    assert_eq!(going(&plan), [2, 3]);
    let last = &plan.groups[1].1[0];
    assert_eq!(
        (last.snapshot.id.to_u64(), &*last.reasons),
        (4, &["the last of its group".to_owned()][..])
    );
}

#[test]
fn a_policy_that_would_keep_nothing_is_refused() {
    let two = || vec![snapshot(1, "2020-01-01 00:00"), snapshot(2, "2020-01-02 00:00")];
    let policy = Policy {
        tags: vec![vec!["prodction".to_owned()]],
        ..Policy::default()
    };
    let error = plan(policy, two()).unwrap_err();
    assert!(matches!(error, PruneError::KeepsNothing(_)), "{error}");
    let error = plan(Policy::default(), two()).unwrap_err();
    assert!(matches!(error, PruneError::EmptyPolicy), "{error}");
    assert!(
        going(&plan(Policy::last(1), Vec::new()).unwrap()).is_empty(),
        "an empty repository is no policy's fault"
    );
}

#[test]
fn what_a_compaction_replaced_goes_and_is_not_counted() {
    let compacted = Snapshot {
        replaces: Some(SnapshotId::from_u64(2)),
        ..snapshot(3, "2020-01-02 00:00")
    };
    let all = vec![
        snapshot(1, "2020-01-01 00:00"),
        snapshot(2, "2020-01-02 00:00"),
        compacted,
    ];
    let plan = plan(Policy::last(2), all).unwrap();
    assert_eq!(going(&plan), [2]);
    assert!(plan.to_forget()[0].1.starts_with("replaced by "));
}

#[test]
fn before_images_are_outside_of_retention() {
    let images = |id, time| Snapshot {
        kind: SnapshotKind::BeforeImages,
        ..snapshot(id, time)
    };
    let all = vec![
        images(1, "2020-01-01 00:00"),
        images(2, "2020-01-05 00:00"),
        snapshot(3, "2020-01-02 00:00"),
        snapshot(4, "2020-01-03 00:00"),
    ];
    assert_eq!(going(&plan(Policy::last(1), all).unwrap()), [3]);
}

#[test]
fn filters_leave_all_others_alone() {
    let with = |id, time, tag: &str, host: &str| Snapshot {
        tags: vec![tag.to_owned()],
        host: Some(host.to_owned()),
        ..snapshot(id, time)
    };
    let all = || {
        vec![
            with(1, "2020-01-01 00:00", "nightly", "a"),
            with(2, "2020-01-02 00:00", "nightly", "b"),
            with(3, "2020-01-03 00:00", "manual", "a"),
            with(4, "2020-01-04 00:00", "nightly", "a"),
        ]
    };
    let going = |filter: PruneFilter| {
        let plan = plan_snapshots(listing(all()), &Choice::Policy(Policy::last(1)), &filter, now());
        going(&plan.unwrap())
    };
    let nightly = PruneFilter {
        tags: vec![vec!["nightly".to_owned()]],
        ..PruneFilter::default()
    };
    assert_eq!(going(nightly.clone()), [1, 2]);
    let nightly_of_a = PruneFilter {
        hosts: vec!["a".to_owned()],
        ..nightly
    };
    assert_eq!(going(nightly_of_a), [1]);
    let elsewhere = PruneFilter {
        project: Some("demo-z".to_owned()),
        ..PruneFilter::default()
    };
    assert_eq!(going(elsewhere), [0; 0]);
}

#[test]
fn an_unreadable_snapshot_stops_the_rules_but_can_be_named() {
    let unreadable = |id: u64| {
        let name = SnapshotId::from_u64(id).snapshot_name();
        (
            name.clone(),
            ArchiveError::damaged(name, DamageKind::Checksum, "a bit flipped"),
        )
    };
    let with_damage = || SnapshotListing {
        unreadable: vec![unreadable(9), ("snapshots/notes.txt".to_owned(), unreadable(9).1)],
        ..listing(vec![snapshot(1, "2020-01-01 00:00")])
    };
    let plan = |choice| plan_snapshots(with_damage(), &choice, &PruneFilter::default(), now());
    let error = plan(Choice::Policy(Policy::last(1))).unwrap_err().to_string();
    assert!(
        error.contains("0000000000000009.json") && error.contains("nothing is deleted"),
        "{error}"
    );
    let named = plan(Choice::Snapshots(vec![SnapshotId::from_u64(9)])).unwrap();
    assert_eq!(going(&named), [9]);
}
