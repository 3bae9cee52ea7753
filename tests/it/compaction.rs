//! Compaction as a whole: by the command, at the end of a backup, and next to snapshots that keep their layers.

use firebank::archive::Repository;
use firebank::document::{DocumentPath, canonical, typed_json};
use firebank::store::Store;

use crate::cli_support::*;

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
