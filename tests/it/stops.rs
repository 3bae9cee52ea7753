//! Stopped at every request to the store in turn: the repository verifies, every committed snapshot restores, the next run
//! succeeds, and what was left is gone after the next prune once its session has expired. (A prune itself: see the tests of
//! prunes.)

use chrono::TimeDelta;
use firebank::archive::ReadMode;
use firebank::sandbox::Sandbox;

use crate::model::world::{Edit, Ended, Reading, World};
use crate::support::sandbox;

/// More than there are snapshots.
const KEEP_ALL: usize = 100;

const FULL: Reading = Reading {
    read: ReadMode::Full,
    ranges: 3,
    alone: false,
    resume: false,
};

const NAMES: Reading = Reading {
    read: ReadMode::Names,
    ranges: 4,
    ..FULL
};

/// Stops a run at its first request, at its second, and so on until it is not stopped any more. Returns how many it makes.
///
/// After each of them the world is looked at as after every operation: see [`World`].
async fn stop_everywhere(base: &World, run: impl AsyncFn(&mut World, Option<u64>) -> Ended) -> u64 {
    stop_where(base, run, |_| true).await
}

/// The same, but follows up only those stops that left what is asked for.
async fn stop_where(
    base: &World,
    run: impl AsyncFn(&mut World, Option<u64>) -> Ended,
    left: impl Fn(&World) -> bool,
) -> u64 {
    let mut undisturbed = base.fork();
    assert_eq!(run(&mut undisturbed, None).await, Ended::Done);
    undisturbed.clean(KEEP_ALL, None).await;
    let snapshots = undisturbed.standing().len();

    for stop in 1.. {
        let mut world = base.fork();
        if run(&mut world, Some(stop)).await == Ended::Done {
            return stop - 1;
        }
        if !left(&world) {
            continue;
        }
        // A backup may have been stopped when it had recorded and merged layers.
        let recorded = world.moments() - base.moments();
        let undecided = world.undecided();
        assert!(undecided <= 1);
        if undecided > 0 && stop % 2 == 0 {
            // It may live: nothing of it goes.
            world.clean(KEEP_ALL, None).await;
            assert_eq!(world.undecided(), undecided);
        }
        assert_eq!(run(&mut world, None).await, Ended::Done);
        assert_eq!(world.undecided(), undecided);
        world.wait(TimeDelta::hours(24));
        world.clean(KEEP_ALL, None).await;
        assert_eq!(world.undecided(), 0);
        assert_eq!(world.standing().len(), snapshots + recorded);
        world.restore(0, None).await;
        if stop % 4 == 0 {
            world.restore_all().await;
            // And of the records nothing is left when their time is up.
            world.wait(TimeDelta::days(30));
            world.clean(KEEP_ALL, None).await;
            assert_nothing_is_left(&world).await;
        }
    }
    unreachable!("a run comes to its end")
}

async fn assert_nothing_is_left(world: &World) {
    let mut records: Vec<String> = world
        .standing()
        .iter()
        .map(|one| one.id.snapshot_name())
        .collect();
    records.push("repository.json".to_owned());
    records.sort();
    let mut names = world.object_names().await;
    names.retain(|name| !name.starts_with("chunks/") && !name.starts_with("runs/"));
    assert_eq!(names, records);
}

/// A world with some documents and so many backups, the later ones of a few changes each.
async fn world(nights: u16) -> (Sandbox, World) {
    let sandbox = sandbox().await;
    let mut world = World::new(&sandbox.address().to_string()).await;
    world
        .write((0..50).map(|number| (number, Edit::Put(i64::from(number)))))
        .await;
    for night in 0..nights {
        world.back_up(FULL, None).await;
        let first = night * 6;
        world
            .write([
                (first, Edit::Put(700 + i64::from(night))),
                (first + 1, Edit::Delete),
                (first + 2, Edit::Remake),
                (60 + first, Edit::Put(i64::from(night))),
            ])
            .await;
    }
    (sandbox, world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_backup_may_stop_anywhere() {
    let (_sandbox, base) = world(0).await;
    let requests = stop_everywhere(&base, async |world, stop| world.back_up(FULL, stop).await).await;
    assert!(requests > 15, "{requests}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_may_stop_anywhere() {
    let (_sandbox, base) = world(2).await;
    let requests = stop_everywhere(&base, async |world, stop| world.back_up(NAMES, stop).await).await;
    assert!(requests > 15, "{requests}");
}

/// Whoever goes on with a backup that was stopped at any request, and is stopped at some request too, ends with the snapshot of the
/// moment that it began with, whatever became of the database and of the snapshot that it builds upon.
async fn goes_on_from_anywhere(mut base: World, reading: Reading) {
    let resuming = Reading {
        resume: true,
        ..reading
    };
    let mut taken_up = 0;
    for stop in 1.. {
        let mut world = base.fork();
        if world.back_up(reading, Some(stop)).await == Ended::Done {
            assert!(stop > 15 && taken_up > 5, "{taken_up} of {stop}");
            return;
        }
        let left = world.open_sessions().await;
        let state = i64::try_from(stop).unwrap();
        world
            .write([
                (50, Edit::Put(state)),
                (2, Edit::Delete),
                (4, Edit::Remake),
                (9, Edit::Put(1)),
            ])
            .await;
        if stop % 3 == 0 && !world.standing().is_empty() {
            // What it builds upon is forgotten, and a prune takes what nobody claims.
            world.give_up(0, None).await;
        }
        world.back_up(resuming, Some(3 + stop % 23)).await;
        let ended = world.back_up(resuming, None).await;
        assert_eq!(ended, Ended::Done);
        for session in left {
            assert!(world.has_recorded(session), "{session} was left at {stop}");
            taken_up += 1;
        }
        world.clean(KEEP_ALL, None).await;
        world.restore_all().await;
        // The database is the same for all.
        base.follow(&world);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_may_stop_anywhere_and_go_on() {
    let (_sandbox, base) = world(2).await;
    goes_on_from_anywhere(base, NAMES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_backup_may_stop_anywhere_and_go_on() {
    let (_sandbox, base) = world(0).await;
    goes_on_from_anywhere(base, FULL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_may_stop_where_it_merges_layers() {
    let (_sandbox, mut base) = world(2).await;
    base.write((0..40).map(|number| (number, Edit::Put(900 + i64::from(number)))))
        .await;
    let recorded = base.moments() + 1;
    let requests = stop_where(
        &base,
        async |world, stop| world.back_up(FULL, stop).await,
        |world| world.moments() == recorded,
    )
    .await;
    assert!(requests > 30, "{requests}");
}

/// What a merge has written of some ranges is not what the database has of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_goes_on_with_a_merge_as_with_a_backup() {
    let (_sandbox, mut base) = world(1).await;
    base.write((0..40).map(|number| (number, Edit::Put(900 + i64::from(number)))))
        .await;
    let recorded = base.moments() + 1;
    let resuming = Reading { resume: true, ..FULL };
    let mut merging = 0;
    for stop in 1.. {
        let mut world = base.fork();
        if world.back_up(FULL, Some(stop)).await == Ended::Done {
            break;
        }
        if world.moments() < recorded {
            continue;
        }
        merging += usize::from(!world.open_sessions().await.is_empty());
        assert_eq!(world.back_up(resuming, None).await, Ended::Done);
        assert_eq!(world.moments(), recorded + 1, "stopped at {stop}");
        world.wait(TimeDelta::hours(25));
        world.clean(KEEP_ALL, None).await;
        world.restore(0, None).await;
    }
    assert!(merging > 5, "{merging}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_may_stop_anywhere() {
    let (_sandbox, base) = world(4).await;
    assert_eq!(base.standing()[0].runs.len(), 4);
    let layered = base.standing()[0].id;
    let requests = stop_everywhere(&base, async |world, stop| {
        // What was merged when it was stopped is merged again, or its merged one has nothing to merge.
        let which = world.place_of(layered).unwrap_or(0);
        world.compact(which, true, stop).await
    })
    .await;
    assert!(requests > 15, "{requests}");
}
