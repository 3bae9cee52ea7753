//! Writing and reading an archive against what nobody can leave out: zstd and BLAKE3 over the same bytes.
//!
//! Compare `write::bare` with `write::archive` and `read::bare` with `read::documents` and `read::verify`. Times are of the
//! wall; the archive spreads over as many threads as there are, so for the cost in CPU look at the process's user time
//! with one benchmark at a time (`cargo bench --bench chunk_pipeline -- write::bare`).

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up should stop")]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use firebank::archive::{
    DamageReport, DataSubset, Plan, ReadMode, Repository, Selection, Session, SessionOptions, Snapshot,
    SnapshotDraft, SnapshotKind, check_contents,
};
use firebank::document::{
    DatabaseName, DocumentBatch, DocumentPath, DocumentRef, Fields, KeyRange, Timestamp, Value, canonical,
};
use firebank::progress::Progress;
use firebank::store::Store;
use futures::{StreamExt, TryStreamExt};
use tokio::runtime::Runtime;

const DOCUMENTS: usize = 40_000;
const FRAME_LEN: usize = 256 << 10;

fn main() {
    divan::main();
}

/// Orders of a shop, about 0.8 KB each.
static BATCH: LazyLock<DocumentBatch> = LazyLock::new(|| {
    let mut batch = DocumentBatch::new();
    let words = [
        "wireless",
        "headphones",
        "black",
        "express",
        "gift",
        "Berlin",
        "Amsterdam",
        "return",
        "invoice",
        "customer",
    ];
    let mut state = 1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for number in 0..DOCUMENTS {
        let mut fields = Fields::new();
        for field in 0..12 {
            fields.insert(
                format!("amount_{field}"),
                Value::Integer((random() % 1_000_000) as i64),
            );
            let text: Vec<&str> = (0..4).map(|_| words[(random() % 10) as usize]).collect();
            fields.insert(format!("note_{field}"), Value::String(text.join(" ")));
        }
        fields.insert(
            "token".into(),
            Value::String(format!("{:016x}{:016x}", random(), random())),
        );
        let path = DocumentPath::parse(format!("orders/o{number:08}")).unwrap();
        batch.push(DocumentRef {
            key: path.key().as_bytes(),
            create_time: Timestamp::new(1_700_000_000 + number as i64, 0),
            update_time: Timestamp::new(1_700_000_000 + number as i64, 0),
            body: &canonical::encode(&fields),
        });
    }
    batch
});

static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    BATCH
        .iter()
        .flat_map(|document| document.body.iter().copied())
        .collect()
});

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

async fn write() -> (Repository, Snapshot) {
    let now = firebank::clock::now();
    let repository = Repository::init(Store::memory(), now).await.unwrap();
    let plan = Plan {
        kind: SnapshotKind::Backup,
        database: DatabaseName::new("demo-bench", "(default)"),
        database_uid: None,
        read_time: now.into(),
        started_at: now,
        selection: Selection::all(),
        parent: None,
        merges: None,
        read: ReadMode::Full,
        ranges: vec![KeyRange::all()],
        extra: BTreeMap::new(),
    };
    let session = Session::begin(&repository, SessionOptions::new(plan))
        .await
        .unwrap();
    let mut writer = session.range_writer(KeyRange::all());
    for document in BATCH.iter() {
        let _ = writer.push(document).await.unwrap();
    }
    writer.finish().await.unwrap();
    let snapshot = session.commit(SnapshotDraft::default()).await.unwrap();
    (repository, snapshot)
}

#[divan::bench_group(sample_count = 10, sample_size = 1)]
mod write {
    use super::*;

    #[divan::bench]
    fn bare(bencher: Bencher<'_, '_>) {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        bencher.counter(BytesCount::of_slice(&PLAIN[..])).bench_local(|| {
            let frame = |frame: &[u8]| (blake3::hash(frame), compressor.compress(frame).unwrap().len());
            PLAIN
                .chunks(FRAME_LEN)
                .map(frame)
                .map(|(_, length)| length)
                .sum::<usize>()
        });
    }

    #[divan::bench]
    fn archive(bencher: Bencher<'_, '_>) {
        let runtime = runtime();
        LazyLock::force(&BATCH);
        bencher
            .counter(BytesCount::of_slice(&PLAIN[..]))
            .counter(ItemsCount::new(DOCUMENTS))
            .bench_local(|| runtime.block_on(write()));
    }
}

#[divan::bench_group(sample_count = 10, sample_size = 1)]
mod read {
    use super::*;

    #[divan::bench]
    fn bare(bencher: Bencher<'_, '_>) {
        let frames: Vec<Vec<u8>> = PLAIN
            .chunks(FRAME_LEN)
            .map(|frame| zstd::bulk::compress(frame, 3).unwrap())
            .collect();
        let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
        let mut out = vec![0; FRAME_LEN];
        bencher.counter(BytesCount::of_slice(&PLAIN[..])).bench_local(|| {
            for frame in &frames {
                let length = decompressor.decompress_to_buffer(frame, &mut out[..]).unwrap();
                divan::black_box(blake3::hash(&out[..length]));
            }
        });
    }

    #[divan::bench]
    fn documents(bencher: Bencher<'_, '_>) {
        let runtime = runtime();
        let (repository, snapshot) = runtime.block_on(write());
        bencher.counter(BytesCount::of_slice(&PLAIN[..])).bench_local(|| {
            runtime.block_on(async {
                let reader = repository.reader(&snapshot).await.unwrap();
                let mut batches = reader.documents(KeyRange::all()).boxed();
                let mut count = 0;
                while let Some(batch) = batches.try_next().await.unwrap() {
                    count += batch.len();
                }
                assert_eq!(count, DOCUMENTS);
            });
        });
    }

    #[divan::bench]
    fn verify(bencher: Bencher<'_, '_>) {
        let runtime = runtime();
        let (repository, snapshot) = runtime.block_on(write());
        bencher.counter(BytesCount::of_slice(&PLAIN[..])).bench_local(|| {
            runtime.block_on(async {
                let readers = [repository.reader(&snapshot).await.unwrap()];
                let mut report = DamageReport::default();
                let everything = Some(DataSubset::ALL);
                check_contents(&readers, everything, &mut report, &Progress::new())
                    .await
                    .unwrap();
                assert!(report.is_empty());
            });
        });
    }
}
