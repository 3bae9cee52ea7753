//! Ranges that take long are split when other readers have nothing to do, and nothing is lost or read twice by it, whoever dies
//! when.

use std::time::{Duration, Instant};

use firebank::archive::{ArchiveError, ReadMode, Repository, Selection, Session};
use firebank::backup::{BackupError, BackupOptions, BackupStats, Parent, backup};
use firebank::document::{DocumentPath, canonical, typed_json};
use firebank::firestore::Firestore;
use firebank::progress::Progress;
use firebank::sandbox::{FaultPlan, Sandbox};
use firebank::stop::Stop;
use futures::TryStreamExt;

use crate::support::operations::*;
use crate::support::{project, sandbox};

const DOCUMENTS: u64 = 6000;
/// Slow enough that a reader is asked while it reads.
const BYTES_PER_SECOND: u64 = 2_500_000;

struct World {
    sandbox: Sandbox,
    database: Firestore,
    repository: Repository,
}

fn path(number: u64) -> DocumentPath {
    let id = number * 7919 % 1_000_003;
    let path = match number % 4 {
        0 => format!("orders/o{id:07}"),
        1 => format!("orders/o{id:07}/items/{number}"),
        2 => format!("products/__id{id}__"),
        _ => format!("users/u{id:07}/missing/m/reviews/{number}"),
    };
    DocumentPath::parse(path).unwrap()
}

impl World {
    async fn new() -> Self {
        let sandbox = sandbox().await;
        let world = Self {
            database: client(&sandbox, &project("splits")).await,
            repository: repository(small_segments()).await,
            sandbox,
        };
        world.write((0..DOCUMENTS).map(|number| (path(number), 0))).await;
        world
    }

    async fn write(&self, documents: impl Iterator<Item = (DocumentPath, u64)>) {
        let documents = documents.map(|(path, number)| {
            let text = format!("{path}{number}").repeat(40);
            let fields = format!(r#"{{"number": {number}, "text": "{text}"}}"#);
            let body = canonical::encode(&typed_json::fields_from_str(&fields).unwrap());
            (path, body)
        });
        put_all(&self.database, documents).await;
    }

    fn slow_down(&self, bytes_per_second: u64) {
        self.sandbox.faults().set(FaultPlan {
            bytes_per_second: Some(bytes_per_second),
            ..FaultPlan::default()
        });
    }

    /// Backs up in one range. Says how many streams of documents were open at the same time, at most.
    async fn back_up(&self, options: BackupOptions) -> (Result<BackupStats, BackupError>, u64) {
        let (database, repository) = (self.database.clone(), self.repository.clone());
        let running =
            tokio::spawn(async move { backup(&database, &repository, options, &Progress::new()).await });
        let begun = Instant::now();
        let mut most = 0;
        while !running.is_finished() {
            assert!(begun.elapsed() < Duration::from_secs(90));
            most = self.sandbox.usage().open_streams.max(most);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        (running.await.unwrap(), most)
    }

    /// How many objects of the session there are in one of its folders.
    async fn count(&self, folder: &str) -> usize {
        let names = self
            .repository
            .store()
            .list("sessions")
            .map_ok(|object| object.name);
        let names: Vec<String> = names.try_collect().await.unwrap();
        names.iter().filter(|name| name.contains(folder)).count()
    }
}

fn one_range() -> BackupOptions {
    BackupOptions {
        ranges: Some(1),
        parallel: 4,
        split_after: Duration::ZERO,
        split_documents: 0,
        ..BackupOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_readers_take_parts_of_a_long_range() {
    for refuse_partition_query in [false, true] {
        let world = World::new().await;
        let alone = BackupOptions {
            split_after: Duration::from_secs(3600),
            ..one_range()
        };
        world.sandbox.faults().set(FaultPlan {
            bytes_per_second: Some(BYTES_PER_SECOND),
            refuse_partition_query,
            ..FaultPlan::default()
        });
        let (whole, most) = world.back_up(alone).await;
        let whole = whole.unwrap();
        assert!(most <= 2, "{most} streams with nobody to share with");
        assert_eq!(world.count("/splits/").await, 0);

        let full = BackupOptions {
            parent: Parent::None,
            ..one_range()
        };
        let (split, most) = world.back_up(full).await;
        let split = split.unwrap();
        assert!(most >= 3, "{most} streams");
        assert!(world.count("/splits/").await >= 1);
        assert_eq!(split.snapshot.documents, DOCUMENTS);
        // The very same chunks: none is new.
        assert_eq!(split.snapshot.stats.new_bytes, 0);
        assert_snapshot_is(&world.repository, &split.snapshot, &world.database).await;
        // Heads are handed over, so that hardly a document is read twice.
        let more = split.billed_reads.saturating_sub(whole.billed_reads);
        assert!(
            more < DOCUMENTS / 4,
            "{more} more billed reads than {}",
            whole.billed_reads
        );
        assert_intact(&world.repository, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nights_are_split_too() {
    let world = World::new().await;
    back_up(&world.database, &world.repository, 3).await;
    for read in [ReadMode::Names, ReadMode::Full] {
        let splits = world.count("/splits/").await;
        world
            .write(
                (0..DOCUMENTS)
                    .step_by(9)
                    .map(|number| (path(number), 1 + read as u64)),
            )
            .await;
        world
            .write((0..100).map(|number| (path(DOCUMENTS + number * 2 + read as u64), 7)))
            .await;
        world.slow_down(match read {
            ReadMode::Names | ReadMode::Changed => 400_000,
            ReadMode::Full => BYTES_PER_SECOND,
        });
        let options = BackupOptions {
            read: Some(read),
            ..one_range()
        };
        let (night, most) = world.back_up(options).await;
        world.sandbox.faults().clear();
        let night = night.unwrap().snapshot;
        assert!(most >= 3, "{most} streams");
        assert!(world.count("/splits/").await > splits);
        assert_eq!(
            night.stats.unchanged_documents + night.stats.changed_documents + night.stats.new_documents,
            night.documents
        );
        assert_snapshot_is(&world.repository, &night, &world.database).await;
    }
    assert_intact(&world.repository, 3).await;
}

/// Stopped at any time, also between a split and its parts, the next worker reads what is left, and the result is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_goes_on_over_splits() {
    let world = World::new().await;
    for at in 0..2 {
        world.slow_down(BYTES_PER_SECOND);
        let stop = Stop::default();
        let options = BackupOptions {
            parent: Parent::None,
            stop: stop.clone(),
            ..one_range()
        };
        let sent = world.sandbox.usage().documents_sent;
        let stopping = async {
            while world.sandbox.usage().documents_sent < sent + DOCUMENTS / 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stop.request();
        };
        let ((stopped, _), ()) = tokio::join!(world.back_up(options), stopping);
        world.sandbox.faults().clear();
        let Err(BackupError::Stopped { session, ranges, .. }) = stopped else {
            panic!("{stopped:?}")
        };
        assert!(ranges > 1, "it was not split");
        let resumed = BackupOptions {
            resume: true,
            ..one_range()
        };
        let (stats, _) = world.back_up(resumed).await;
        let stats = stats.unwrap();
        let snapshot = stats.snapshot;
        assert_eq!(snapshot.id, session);
        let read = stats.billed_reads;
        assert!(read < DOCUMENTS, "{read} of {DOCUMENTS} were read again");
        assert_snapshot_is(&world.repository, &snapshot, &world.database).await;
        assert_intact(&world.repository, at + 1).await;
    }
}

/// A worker that dies when it has split a range, and read one part of it, leaves no hole: without the other part nothing is committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_whose_other_part_is_missing_is_no_snapshot() {
    let world = World::new().await;
    let stop = Stop::default();
    stop.request();
    let options = BackupOptions { stop, ..one_range() };
    let Err(BackupError::Stopped { session, .. }) = world.back_up(options).await.0 else {
        panic!("it was to stop")
    };
    let session = Session::join(&world.repository, session, 1 << 20).await.unwrap();
    let whole = session.unfinished_ranges().await.unwrap().remove(0);
    let middle = path(2002).key();
    let parts = session
        .split(&whole, std::slice::from_ref(&middle))
        .await
        .unwrap();
    assert_eq!(parts.len(), 2);
    // Whoever splits it elsewhere later gets the parts that there are.
    let again = session.split(&whole, &[path(3).key()]).await.unwrap();
    assert_eq!(again[0].range, parts[0].range);
    let time = session.plan().read_time;
    let mut writer = session.resume_range_writer(parts[0].clone());
    let mut batches = Box::pin(world.database.scan(firebank::firestore::ScanOptions::new(
        writer.reads().clone(),
        time,
    )));
    'reading: while let Some(batch) = batches.try_next().await.unwrap() {
        for document in batch.iter() {
            if writer.push(document).await.unwrap() == firebank::archive::Flow::Done {
                break 'reading;
            }
        }
    }
    writer.finish().await.unwrap();
    let committed = session.commit(Default::default()).await;
    assert!(
        matches!(committed, Err(ArchiveError::Incomplete { .. })),
        "{committed:?}"
    );
    drop(session);
    let resumed = BackupOptions {
        resume: true,
        selection: Selection::all(),
        ..one_range()
    };
    let snapshot = world.back_up(resumed).await.0.unwrap().snapshot;
    assert_snapshot_is(&world.repository, &snapshot, &world.database).await;
}
