use super::*;
use crate::records::Running;

#[derive(Clone, Debug)]
enum Digging {}

impl Work for Digging {
    const FOLDER: &'static str = "digs";
    const NAME: &'static str = "dig";
    type Plan = u32;
    type Checkpoint = u64;

    fn check(_: &u32, _: &u64) -> Result<(), &'static str> {
        Ok(())
    }
}

impl ShareableWork for Digging {
    const SHARED_FOLDER: &'static str = "shared-digs";
    const PARTS_PER_TASK: u32 = 3;
    type Common = String;
}

fn work(index: u32, count: u32) -> SharedWork {
    SharedWork::new(Task::new(index, count).unwrap(), "the garden")
}

fn of_another_time(index: u32, count: u32) -> SharedWork {
    SharedWork {
        execution: Some("another".to_owned()),
        ..work(index, count)
    }
}

async fn try_shares<'a>(
    store: &Store,
    shared: &'a SharedWork,
    depth: &str,
    beds: usize,
) -> Result<Shares<'a, Digging>, SharesError> {
    let options = BTreeMap::from([("--depth".to_owned(), depth.to_owned())]);
    let place = format!("where {} found it", shared.task);
    let agreed = agree::<Digging>(store, shared, options.clone(), place, beds).await?;
    Shares::new(store, shared, agreed, &options)
}

/// One part for each task.
async fn shares<'a>(store: &Store, shared: &'a SharedWork) -> Shares<'a, Digging> {
    let tasks = shared.task.count() as usize;
    try_shares(store, shared, "5", tasks).await.unwrap()
}

/// Begins or goes on with what is next at that time, which must be that part.
async fn take(shares: &mut Shares<'_, Digging>, now: Instant, number: u32) -> Running<Digging> {
    let taken = match shares.next_at(now).await.unwrap() {
        Next::Begin(part, id) if part.number == number => shares.begin(id, &number).await,
        Next::Resume(part, record) if part.number == number => shares.resume(&record).await,
        other => panic!("{other:?} instead of {number}"),
    };
    taken.unwrap().unwrap()
}

async fn waits(shares: &mut Shares<'_, Digging>, now: Instant) -> bool {
    matches!(shares.next_at(now).await.unwrap(), Next::Wait)
}

/// What came of each part.
async fn outcome(shares: &mut Shares<'_, Digging>) -> Vec<(u32, u64)> {
    let Next::Finished(outcomes) = shares.next().await.unwrap() else {
        panic!("not finished");
    };
    let outcomes = outcomes.into_iter();
    outcomes
        .map(|(part, _, outcome)| (part.number, outcome))
        .collect()
}

#[tokio::test]
async fn what_shows_no_sign_of_life_is_taken_over_and_nothing_else() {
    let store = Store::memory();
    let (of_first, of_second) = (work(0, 3), work(1, 3));
    let (mut first, mut second) = (shares(&store, &of_first).await, shares(&store, &of_second).await);
    assert_eq!(first.common(), second.common());
    let mut now = Instant::now();
    let mut own = take(&mut first, now, 0).await;
    let mut slow = take(&mut second, now, 1).await;
    assert!(own.checkpoint(&1).await.unwrap());
    assert!(first.mark_done(&own, 2).await.unwrap());
    assert!(!own.checkpoint(&3).await.unwrap(), "it is done");
    // The third part nobody begins; the second is at work.
    let third = take(&mut first, now, 2).await;
    assert!(first.mark_done(&third, 0).await.unwrap());
    let moment = of_first.patience / 4;
    for depth in 0..6 {
        assert!(waits(&mut first, now).await);
        now += moment;
        assert!(slow.checkpoint(&depth).await.unwrap());
    }
    assert!(waits(&mut first, now).await);
    // Now that one falls silent.
    now += of_first.patience;
    let mut taken = take(&mut first, now, 1).await;
    assert!(!slow.checkpoint(&7).await.unwrap(), "two work on one part");
    assert!(!second.mark_done(&slow, 7).await.unwrap());
    assert!(slow.is_taken().await.unwrap());
    assert!(waits(&mut second, now).await);
    assert!(taken.checkpoint(&8).await.unwrap());
    assert!(first.mark_done(&taken, 9).await.unwrap());
    assert_eq!(outcome(&mut first).await, [(0, 2), (1, 9), (2, 0)]);
    assert_eq!(outcome(&mut second).await, [(0, 2), (1, 9), (2, 0)]);
    // One that is started again is told what came of it.
    let mut again = shares(&store, &of_second).await;
    assert_eq!(outcome(&mut again).await, [(0, 2), (1, 9), (2, 0)]);
}

/// A process that waits for long for one thing shows all the same that it lives.
#[tokio::test]
async fn who_waits_shows_that_it_lives() {
    let store = Store::memory();
    let of_first = SharedWork {
        patience: Duration::from_millis(60),
        ..work(0, 2)
    };
    let mut first = shares(&store, &of_first).await;
    let own = take(&mut first, Instant::now(), 0).await;
    let of_second = work(1, 2);
    let mut second = shares(&store, &of_second).await;
    let mut now = Instant::now();
    let other = take(&mut second, now, 1).await;
    assert!(second.mark_done(&other, 0).await.unwrap());
    for _ in 0..3 {
        let before = object_names(&store).await;
        let is_new = |name: &String| !before.contains(name);
        let shown = async {
            while !object_names(&store).await.iter().any(is_new) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), shown)
            .await
            .unwrap();
        now += of_second.patience;
        assert!(waits(&mut second, now).await, "it lives");
    }
    drop(own);
    now += of_second.patience;
    // What was on its way when it died may be a last sign.
    second.next_at(now).await.unwrap();
    take(&mut second, now + of_second.patience, 0).await;
}

async fn object_names(store: &Store) -> Vec<String> {
    let names = store.list("").map_ok(|object| object.name);
    names.try_collect().await.unwrap()
}

#[tokio::test]
async fn a_task_goes_on_at_once_with_what_an_earlier_process_of_it_has_left() {
    let store = Store::memory();
    let (of_task, of_other) = (work(1, 2), work(0, 2));
    let mut gone = take(&mut shares(&store, &of_task).await, Instant::now(), 1).await;
    assert!(gone.checkpoint(&3).await.unwrap());
    let mut again = shares(&store, &of_task).await;
    let Next::Resume(_, record) = again.next().await.unwrap() else {
        panic!("it was begun");
    };
    assert_eq!(record.checkpoint, Some(3));
    let own = again.resume(&record).await.unwrap().unwrap();
    assert!(again.resume(&record).await.unwrap().is_none(), "claimed twice");
    assert!(!gone.checkpoint(&4).await.unwrap());
    // Also where it was at another's; and not with what another one has of its own share.
    assert!(again.mark_done(&own, 0).await.unwrap());
    let now = Instant::now();
    let _of_others = take(&mut again, now, 0).await;
    assert!(waits(&mut shares(&store, &of_other).await, now).await);
    take(&mut shares(&store, &of_task).await, now, 0).await;
    assert!(waits(&mut shares(&store, &of_other).await, now).await);
}

/// Each its own first, in order; who has done that takes from the end of what most is left of, and leaves to each what it is at.
#[tokio::test]
async fn who_is_idle_takes_what_nobody_has_begun() {
    let store = Store::memory();
    let tasks = [work(0, 3), work(1, 3), work(2, 3)];
    let mut all = Vec::new();
    for task in &tasks {
        all.push(try_shares(&store, task, "5", usize::MAX).await.unwrap());
    }
    let [first, second, third] = &mut all[..] else {
        panic!("three");
    };
    let now = Instant::now();
    let mut done = Vec::new();
    let _slow = take(second, now, 3).await;
    for number in [0, 1, 2] {
        done.push(take(first, now, number).await);
    }
    // The third has not started: most is left of its share.
    done.push(take(first, now, 8).await);
    // Of both as much: the next one's after its own.
    done.push(take(first, now, 5).await);
    done.push(take(third, now, 6).await);
    done.push(take(third, now, 7).await);
    done.push(take(third, now, 4).await);
    assert!(waits(first, now).await && waits(third, now).await);
}

/// Where there is less to do than there are tasks.
#[tokio::test]
async fn there_are_no_more_parts_than_pieces() {
    let store = Store::memory();
    let (of_first, of_last) = (work(0, 4), work(3, 4));
    let mut first = try_shares(&store, &of_first, "5", 1).await.unwrap();
    let mut last = try_shares(&store, &of_last, "5", 1).await.unwrap();
    let now = Instant::now();
    let all = take(&mut last, now, 0).await;
    assert!(waits(&mut first, now).await);
    assert!(last.mark_done(&all, 1).await.unwrap());
    assert_eq!(outcome(&mut first).await, [(0, 1)]);
    assert_eq!(outcome(&mut last).await, [(0, 1)]);
    // Nothing at all is a part, too: somebody has to say that there is nothing.
    let of_none = SharedWork::new(Task::new(0, 1).unwrap(), "a balcony");
    let mut none = try_shares(&store, &of_none, "5", 0).await.unwrap();
    take(&mut none, now, 0).await;
}

#[tokio::test]
async fn tasks_that_do_not_agree_are_told_so() {
    let store = Store::memory();
    let (of_first, of_many, of_second) = (work(0, 2), work(2, 3), work(1, 2));
    shares(&store, &of_first).await;
    let refused = try_shares(&store, &of_many, "5", 9)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("shared by 2 tasks") && refused.contains("task 2 of 3"),
        "{refused}"
    );
    let refused = try_shares(&store, &of_second, "6", 9)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("--depth was `5` and is `6`"), "{refused}");
}

/// Tasks of another time go on with what is not done, and others are told when all is.
#[tokio::test]
async fn a_name_can_be_used_once() {
    let store = Store::memory();
    let (of_first, of_second) = (work(0, 2), work(1, 2));
    let mut first = shares(&store, &of_first).await;
    let own = take(&mut first, Instant::now(), 0).await;
    assert!(first.mark_done(&own, 1).await.unwrap());
    let later = of_another_time(1, 2);
    let mut second = shares(&store, &later).await;
    let other = take(&mut second, Instant::now(), 1).await;
    assert!(second.mark_done(&other, 2).await.unwrap());
    // Both have had a part in it.
    outcome(&mut shares(&store, &of_second).await).await;
    outcome(&mut shares(&store, &later).await).await;
    let never = SharedWork {
        execution: Some("never seen".to_owned()),
        ..work(0, 2)
    };
    let refused = shares(&store, &never).await.next().await.unwrap_err();
    assert!(matches!(refused, SharesError::Used { .. }), "{refused}");
    assert!(undone::<Digging>(&store).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_given_up_nobody_goes_on_with() {
    let store = Store::memory();
    let (of_first, of_second) = (work(0, 2), work(1, 2));
    let mut first = shares(&store, &of_first).await;
    let mut own = take(&mut first, Instant::now(), 0).await;
    assert!(own.checkpoint(&7).await.unwrap());
    let mut found = undone::<Digging>(&store).await.unwrap();
    assert_eq!(
        found.iter().flat_map(|found| &found.begun).collect::<Vec<_>>(),
        [&7]
    );
    remove(&store, &found.pop().unwrap()).await.unwrap();
    assert!(undone::<Digging>(&store).await.unwrap().is_empty());
    // Also when the name was given to other work since.
    let mut new = shares(&store, &of_second).await;
    for gone in [&mut first, &mut shares(&store, &of_first).await] {
        let is_new = gone.agreed.id == new.agreed.id;
        match gone.next().await {
            Err(SharesError::Removed { .. }) => assert!(!is_new),
            next => assert!(is_new && matches!(next, Ok(Next::Begin(..)))),
        }
    }
    take(&mut new, Instant::now(), 1).await;
}
