//! Compaction as a whole: by the command, at the end of a backup, and next to snapshots that keep their layers.

use firebank::archive::{ReadMode, Repository, SweepOptions, sweep};
use firebank::document::{DocumentBatch, DocumentPath, canonical, typed_json};
use firebank::firestore::{BulkWriter, WriteFailure, WriteOptions};
use firebank::store::Store;
use futures::{StreamExt, TryStreamExt};

use crate::cli_support::*;
use crate::support::operations::*;
use crate::support::{project, sandbox};

fn document(number: u32, night: u32) -> (DocumentPath, Vec<u8>) {
    let fields = format!(r#"{{"number": {number}, "night": {night}}}"#);
    let body = canonical::encode(&typed_json::fields_from_str(&fields).unwrap());
    (DocumentPath::parse(format!("things/t{number:04}")).unwrap(), body)
}

/// A backup, and one a night of a few changed documents.
fn nights(documents: u32, changed: u32, nights: u32) -> (Shop, Vec<(String, Contents)>) {
    let shop = Shop::empty();
    shop.run(["init"]).done();
    shop.put(SHOP, (0..documents).map(|number| document(number, 0)).collect());
    let mut taken = vec![(shop.back_up(), shop.contents(SHOP))];
    for night in 1..=nights {
        let first = night * changed;
        shop.put(
            SHOP,
            (first..first + changed)
                .map(|number| document(number % documents, night))
                .collect(),
        );
        taken.push((shop.back_up(), shop.contents(SHOP)));
    }
    (shop, taken)
}

#[track_caller]
fn assert_restores(shop: &Shop, snapshot: &str, contents: &Contents) {
    let project = format!("demo-{snapshot}");
    let address = shop.address();
    shop.run([
        "restore",
        snapshot,
        "--to-project",
        &project,
        "--emulator",
        &address,
    ])
    .done();
    assert_eq!(shop.contents(&project), *contents, "snapshot {snapshot}");
}

#[test]
fn the_command_merges_all_layers_and_forgets_the_old_snapshot() {
    let (shop, taken) = nights(400, 5, 3);
    let (last, contents) = &taken[3];
    let merged = shop.run(["compact", "--json"]).json();
    assert_eq!(
        keys(&merged),
        ["layers", "layers_before", "replaced", "snapshot", "stored_bytes"]
    );
    assert_eq!(merged["replaced"], last.as_str());
    assert_eq!(
        (&merged["layers_before"], &merged["layers"]),
        (&4.into(), &1.into())
    );
    let merged = merged["snapshot"].as_str().unwrap().to_owned();
    assert!(!shop.snapshots().contains(last));
    assert_restores(&shop, &merged, contents);
    for (snapshot, contents) in &taken[..3] {
        assert_restores(&shop, snapshot, contents);
    }
    assert_eq!(
        shop.run(["diff", &taken[2].0, &merged, "--json"]).json()["summary"]["changed"],
        5
    );
    shop.run(["verify", "--read-data"]).done();
    // The next night builds upon it, and unchanged it has the same layers.
    let next = shop.firebank(["backup", "--json"]).json();
    assert_eq!(next["parent"], merged.as_str());
    shop.run(["clean", "--keep-last", "10", "--yes"]).done();
    shop.run(["verify", "--read-data"]).done();
    assert_restores(&shop, &merged, contents);
    let text = shop.run(["compact", &merged]).done();
    assert!(text.contains("has 1 layer and nothing to merge"), "{text}");
}

#[test]
fn a_backup_merges_layers_that_have_grown_too_large() {
    let (shop, taken) = nights(100, 8, 14);
    let listing = shop.run(["list-backups", "--json"]).json();
    let listing = listing["snapshots"].as_array().unwrap();
    assert_eq!(listing.len(), 15, "no night is listed twice");
    let layers: Vec<u64> = listing
        .iter()
        .map(|snapshot| snapshot["layers"].as_u64().unwrap())
        .collect();
    // 6 nights are 48 records; the seventh goes past half of the base.
    assert_eq!(layers.iter().max(), Some(&7), "{layers:?}");
    assert_eq!(
        layers.iter().filter(|&&layers| layers == 1).count(),
        3,
        "{layers:?}"
    );
    for (snapshot, contents) in &taken {
        assert_restores(&shop, snapshot, contents);
    }
    shop.run(["verify", "--read-data"]).done();
}

/// Whatever looks into a snapshot sees the newest of each document, and none that is gone, over all of its layers.
#[test]
fn layers_are_looked_into_and_exported() {
    let (shop, _) = nights(60, 3, 2);
    let (gone, kept) = ("things/t0001", "things/t0050");
    let connection = shop.connect(SHOP, "(default)");
    shop.runtime.block_on(async {
        let options = WriteOptions::new(&connection);
        let mut writer = BulkWriter::new(&connection, options, Vec::<WriteFailure>::new());
        writer.delete(&DocumentPath::parse(gone).unwrap()).await.unwrap();
        // Gone, and there again.
        writer
            .delete(&DocumentPath::parse("things/t0002").unwrap())
            .await
            .unwrap();
        assert_eq!(writer.finish().await.unwrap().failed, 0);
    });
    shop.back_up();
    shop.put(SHOP, vec![document(2, 9), document(7, 9), document(77, 9)]);
    let newest = shop.back_up();
    assert_eq!(shop.run(["show", &newest, "--json"]).json()["layers"], 5);
    let contents = shop.contents(SHOP);
    assert_eq!(contents.len(), 60);

    let listed = shop.run(["ls", &newest]).done();
    let listed: Vec<&str> = listed.lines().collect();
    assert_eq!(listed, contents.keys().collect::<Vec<_>>());
    let below = shop.run(["ls", &newest, "things", "--json"]).json();
    assert_eq!(below["documents"].as_array().unwrap().len(), 60);
    let night = |path: &str| shop.run(["show", &newest, path, "--json"]).json()["fields"]["night"].clone();
    assert_eq!(
        [
            night("things/t0007"),
            night("things/t0002"),
            night("things/t0077"),
            night(kept)
        ],
        [9, 9, 9, 0]
    );
    shop.run(["show", &newest, gone]).fails(1, &[gone]);

    for format in ["json", "ndjson"] {
        shop.run(["export", &newest, "--format", format, "-o", format])
            .done();
        let files: Vec<String> = std::fs::read_dir(shop.file(format))
            .unwrap()
            .map(|entry| entry.unwrap().path().display().to_string())
            .filter(|file| !file.contains("summary"))
            .collect();
        let project = format!("demo-{format}");
        for file in &files {
            shop.firebank(["import", file, "--project", &project]).done();
        }
        assert_eq!(shop.contents(&project), contents, "{files:?}");
    }
}

/// The only bound that these nights come to is that of the number of layers: some are merged, and what is deleted stays so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_that_grows_too_deep_is_merged_in_part() {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), &project("deep"), "(default)").await;
    let repository = repository(small_segments()).await;
    let write = async |numbers: std::ops::Range<u32>, night, deleted: Option<u32>| {
        let options = WriteOptions::new(&database);
        let mut writer = BulkWriter::new(&database, options, Vec::<WriteFailure>::new());
        for number in numbers {
            let (path, body) = document(number, night);
            writer.put(&path, &body).await.unwrap();
        }
        if let Some(number) = deleted {
            writer.delete(&document(number, 0).0).await.unwrap();
        }
        assert_eq!(writer.finish().await.unwrap().failed, 0);
    };
    let contents = async |documents| {
        let batches: Vec<DocumentBatch> = TryStreamExt::try_collect(documents).await.unwrap();
        let all = batches.iter().flat_map(DocumentBatch::iter);
        all.map(|document| (document.key.to_vec(), document.body.to_vec()))
            .collect::<Vec<_>>()
    };
    write(0..600, 0, None).await;
    let (mut taken, mut merged) = (Vec::new(), 0);
    for night in 0..40 {
        if night > 0 {
            // One changes, and one that was changed some nights ago goes away, from under the layers that are merged first.
            write(night..night + 1, night, (night % 3 == 0).then_some(night / 2)).await;
        }
        let stats = try_back_up_changes(&database, &repository, ReadMode::Names, 2)
            .await
            .unwrap();
        let snapshot = stats.snapshot;
        assert!(snapshot.runs.len() <= 32, "{} layers", snapshot.runs.len());
        merged += usize::from(snapshot.replaces.is_some());
        let is_partial = snapshot.replaces.is_none() || snapshot.runs.len() > 1;
        assert!(is_partial, "it is not the base that is due");
        taken.push((snapshot, contents(scan(&database).await.boxed()).await));
    }
    assert!(merged >= 1);
    let tombstones: u64 = taken
        .iter()
        .flat_map(|(snapshot, _)| &snapshot.runs)
        .map(|run| run.tombstones)
        .sum();
    assert!(tombstones > 0);
    for (snapshot, expected) in &taken {
        let found = contents(documents(&repository, snapshot).await).await;
        assert!(found == *expected, "snapshot {} is not what it was", snapshot.id);
        assert_eq!(snapshot.documents, expected.len() as u64);
    }
    assert_intact(&repository, 40).await;
    sweep(&repository, &SweepOptions::default()).await.unwrap();
    assert_intact(&repository, 40).await;
    let (last, _) = taken.last().unwrap();
    assert_snapshot_is(&repository, last, &database).await;
}

#[test]
fn a_failed_compaction_leaves_the_backup_as_it_is() {
    let (shop, taken) = nights(20, 4, 2);
    let runtime = &shop.runtime;
    let repository = runtime.block_on(async {
        let store = Store::local(shop.repository()).unwrap();
        Repository::open(store).await.unwrap()
    });
    // The base's index is damaged where only a merge of everything reads it.
    let snapshot = runtime
        .block_on(repository.resolve(&taken[2].0, &Default::default()))
        .unwrap();
    assert_eq!(snapshot.runs.len(), 3);
    let reader = runtime.block_on(repository.reader(&snapshot)).unwrap();
    let names: Vec<String> = runtime.block_on(async {
        use futures::TryStreamExt;
        reader
            .blocks()
            .map_ok(|block| block.entries[0].chunk.name())
            .try_collect()
            .await
            .unwrap()
    });
    std::fs::remove_file(shop.repository().join(&names[2])).unwrap();
    shop.run(["compact"]).fails(1, &[&names[2]]);
    assert!(shop.snapshots().contains(&taken[2].0));
}

/// The data chunks that a session wrote.
fn data_chunks(shop: &Shop, session: &str) -> usize {
    let is_data = |name: &String| std::fs::read(shop.repository().join(name)).unwrap()[9] == 1;
    files_below(&shop.repository())
        .into_iter()
        .filter(|name| name.starts_with("chunks/") && name.ends_with(&format!("-{session}")))
        .filter(is_data)
        .count()
}

#[test]
fn what_is_left_in_mostly_dead_chunks_is_copied_out_of_them() {
    let (shop, taken) = nights(400, 50, 5);
    let change = |numbers: &mut dyn Iterator<Item = u32>, night| {
        shop.put(SHOP, numbers.map(|number| document(number, night)).collect());
        shop.back_up();
        let newest = shop.snapshots().remove(0);
        let shown = shop.run(["show", &newest, "--json"]).json();
        assert_eq!(shown["layers"], 1, "its layers are merged");
        newest
    };
    let first = &taken[0].0;
    // The first snapshot needs all of its chunk, and keeps it.
    let merged = change(&mut (0..10).chain(300..400).chain(100..201), 6);
    assert_eq!(data_chunks(&shop, &merged), 0);
    assert_eq!(data_chunks(&shop, first), 1);
    shop.run(["clean", "--keep-last", "1", "--yes"]).done();
    assert_eq!(data_chunks(&shop, first), 1, "40 bodies are needed");
    shop.run(["verify", "--read-data"]).done();
    // Now nobody does.
    let merged = change(&mut (200..401), 7);
    assert_eq!(data_chunks(&shop, &merged), 1);
    assert_restores(&shop, &merged, &shop.contents(SHOP));
    shop.run(["clean", "--keep-last", "1", "--yes"]).done();
    assert_eq!(data_chunks(&shop, first), 0);
    shop.run(["verify", "--read-data"]).done();
    assert_restores(&shop, &merged, &shop.contents(SHOP));
    let next = shop.firebank(["backup", "--json"]).json();
    assert_eq!(
        (&next["layers"], &next["unchanged_documents"]),
        (&1.into(), &401.into())
    );
}
