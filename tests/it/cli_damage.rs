//! Damage, seen from the command line: `verify` names what is damaged, `restore` writes no wrong document.
//!
//! How each kind of damage shows, as far as it is a decision and no accident:
//!
//! - Without `repository.json` there is no repository: every command fails with exit code 1. A damaged one is a finding of
//!   `verify`, exit code 3; everything else fails.
//! - A snapshot's file that is gone is a snapshot that was never made: nobody can tell. A damaged one is a finding.
//! - What a session left behind is not needed once its snapshot is there: damage of it is nobody's business.

use std::collections::BTreeSet;
use std::path::Path;

use firebank::archive::{Repository, RepositoryId, SessionOptions};
use firebank::document::{CollectionPath, DocumentPath};
use firebank::store::Store;
use futures::TryStreamExt;

use crate::archive_support::{self, Docs, doc, key, plan, time, tiny};
use crate::cli_support::*;

const ID: &str = "0123456789abcdef";

/// An archive with every kind of object. Long names and small pages give its run a root that is too large for the snapshot.
fn archive() -> (Shop, Contents) {
    let shop = Shop::empty();
    let mut docs = Docs::new();
    let long = "long".repeat(300);
    for number in 0..200 {
        let id = |half| noise(2 * number + half);
        let path = format!("{long}/{number:03}{}/{}/{}", id(0), &id(1)[..1400], id(1));
        docs.insert(key(&path), doc(number, 40));
    }
    docs.extend(archive_support::sample(80));
    shop.runtime.block_on(async {
        let repository = Repository::init_with(
            Store::create_local(shop.repository()).unwrap(),
            time(0),
            RepositoryId::from_u64(7),
            firebank::archive::Parameters {
                page_records: 1,
                ..tiny()
            },
        )
        .await
        .unwrap();
        let options = SessionOptions {
            id: Some(ID.parse().unwrap()),
            ..SessionOptions::new(plan(&[], 0))
        };
        archive_support::back_up(&repository, options, &docs).await;
    });
    let contents = docs
        .into_iter()
        .map(|(key, doc)| (DocumentPath::from_key(&key).unwrap().to_string(), doc.body))
        .collect();
    (shop, contents)
}

/// Letters that do not compress well.
fn noise(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-="[(state >> 40) as usize % 64]
    };
    (0..1450).map(letter).map(char::from).collect()
}

/// Objects of a kind: a chunk's ninth byte says which it is.
fn objects(shop: &Shop, kind: Kind) -> Vec<String> {
    let all = files_below(&shop.repository()).into_iter();
    let of_kind = |name: &String| match kind {
        Kind::Named(start) => name.starts_with(start),
        Kind::Chunk(kind) => {
            name.starts_with("chunks/") && std::fs::read(shop.repository().join(name)).unwrap()[9] == kind
        }
    };
    all.filter(of_kind).collect()
}

#[derive(Clone, Copy)]
enum Kind {
    Named(&'static str),
    Chunk(u8),
}

/// What can happen to a file. The last words say where.
fn damages(intact: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let length = intact.len();
    let mut all = vec![
        ("deleted".to_owned(), None),
        ("emptied".to_owned(), Some(Vec::new())),
    ];
    for cut in [length / 2, length - 1] {
        // The newline at the end of a JSON object may go: nothing of it is lost.
        if !intact[cut..].trim_ascii().is_empty() {
            all.push((format!("cut at {cut}"), Some(intact[..cut].to_vec())));
        }
    }
    for position in [0, length / 3, length * 2 / 3, length - 1] {
        // Nor does white space count.
        if !intact[position].is_ascii_whitespace() || intact[0] != b'{' {
            let mut flipped = intact.to_vec();
            flipped[position] ^= 0x10;
            all.push((format!("flipped at {position}"), Some(flipped)));
        }
    }
    all
}

fn damage(file: &Path, damaged: &Option<Vec<u8>>) {
    match damaged {
        Some(bytes) => std::fs::write(file, bytes).unwrap(),
        None => std::fs::remove_file(file).unwrap(),
    }
}

/// What `verify` found: the objects and the collections affected.
#[track_caller]
fn findings(shop: &Shop, arguments: &[&str]) -> Vec<(String, Vec<String>)> {
    let verified = shop.run([&["verify", "--json"], arguments].concat());
    let report = verified.json();
    let found = report["damage"].as_array().unwrap();
    assert_eq!(verified.code, if found.is_empty() { 0 } else { 3 }, "{verified}");
    assert_eq!(report["intact"], found.is_empty());
    assert_eq!(report["damage_count"], found.len());
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    found
        .iter()
        .map(|damage| {
            assert_ne!(text(&damage["what"]), "");
            let affected = damage["affected"].as_array().unwrap().iter().map(text).collect();
            (text(&damage["object"]), affected)
        })
        .collect()
}

/// Restores into a project of its own: all is well and complete, or there is an error and what was written is right.
#[track_caller]
fn restore(shop: &Shop, original: &Contents, context: &str, object: &str) -> bool {
    let project = support_project();
    let ended = shop.firebank_on("demo-test", ["restore", ID, "--to-project", &project]);
    let written = shop.contents(&project);
    for (path, body) in &written {
        assert_eq!(
            original.get(path),
            Some(body),
            "{context}: {path} is another document"
        );
    }
    if ended.code == 0 {
        assert_eq!(written.len(), original.len(), "{context}");
        return true;
    }
    ended.fails(1, &[object]);
    if object.starts_with("chunks/") {
        ended.fails(1, &["stopped after", "firebank verify", "--skip-damaged"]);
    }
    false
}

fn support_project() -> String {
    crate::support::project("damage")
}

fn root_of(collection: &str) -> &str {
    collection.split('/').next().unwrap()
}

/// The root collections that cannot be read to their end.
fn unreadable_collections<'a>(shop: &Shop, original: &'a Contents) -> BTreeSet<&'a str> {
    let roots: BTreeSet<&str> = original.keys().map(|path| root_of(path)).collect();
    shop.runtime.block_on(async {
        let store = Store::local(shop.repository()).unwrap();
        let repository = Repository::open(store).await.unwrap();
        let snapshot = repository.resolve(ID, &Default::default()).await.unwrap();
        let Ok(reader) = repository.reader(&snapshot).await else {
            return roots;
        };
        let mut unreadable = BTreeSet::new();
        for root in roots {
            let range = CollectionPath::parse(root).unwrap().key_range();
            let read = reader.documents(range).try_collect::<Vec<_>>().await;
            if read.is_err() {
                unreadable.insert(root);
            }
        }
        unreadable
    })
}

/// Damages one object in every way.
fn check_object(shop: &Shop, original: &Contents, object: &str) {
    let file = shop.repository().join(object);
    let intact = std::fs::read(&file).unwrap();
    for (what, damaged) in damages(&intact) {
        let context = format!("{object} {what}");
        damage(&file, &damaged);
        let found = findings(shop, &["--read-data"]);
        assert!(!found.is_empty(), "{context} was not found");
        let unreadable = unreadable_collections(shop, original);
        let check_affected = |found: &[(String, Vec<String>)]| {
            let named: BTreeSet<&str> = found
                .iter()
                .flat_map(|(_, affected)| affected)
                .map(|collection| root_of(collection))
                .collect();
            assert!(!named.is_empty(), "{context}");
            assert!(
                named.is_superset(&unreadable),
                "{context}: {named:?}, {unreadable:?}"
            );
        };
        for (named, _) in &found {
            assert_eq!(named, object, "{context}");
        }
        check_affected(&found);
        let wrong_size = damaged.is_none_or(|damaged| damaged.len() != intact.len());
        if wrong_size {
            assert!(!unreadable.is_empty(), "{context}");
            let found = findings(shop, &[]);
            assert!(found.iter().any(|(named, _)| named == object), "{context}");
            check_affected(&found);
        }
        let restored = restore(shop, original, &context, object);
        assert!(!(restored && what == "deleted"), "{context}");
        std::fs::write(&file, &intact).unwrap();
    }
    assert!(findings(shop, &["--read-data"]).is_empty());
}

fn check_kind(kind: Kind) {
    let (shop, original) = archive();
    let objects = objects(&shop, kind);
    assert!(!objects.is_empty());
    check_object(&shop, &original, &objects[objects.len() / 2]);
    assert!(restore(&shop, &original, "intact", ""));
}

#[test]
fn damage_of_a_data_chunk() {
    check_kind(Kind::Chunk(1));
}

#[test]
fn damage_of_an_index_chunk() {
    check_kind(Kind::Chunk(2));
}

#[test]
fn damage_of_a_directory_block() {
    check_kind(Kind::Chunk(3));
}

#[test]
fn damage_of_a_run() {
    check_kind(Kind::Named("runs/"));
}

#[test]
fn damage_of_a_snapshot() {
    let (shop, original) = archive();
    let object = format!("snapshots/{ID}.json");
    let file = shop.repository().join(&object);
    let intact = std::fs::read(&file).unwrap();
    for (what, damaged) in damages(&intact) {
        damage(&file, &damaged);
        let found = findings(&shop, &["--read-data"]);
        let named = findings(&shop, &[]);
        if damaged.is_none() {
            // Nobody can tell that there was one, but for who asks for it.
            assert!(found.is_empty() && named.is_empty());
            shop.run(["verify", ID]).fails(1, &[ID, "no snapshot matches"]);
        } else {
            assert_eq!((&found[0].0, &named[0].0), (&object, &object), "{what}");
            shop.run(["verify", ID, "--read-data"]).fails(1, &[&object]);
            let listed = shop.run(["list-backups"]);
            assert!(
                listed.code == 3 && listed.stderr.contains(&object),
                "{what}: {listed}"
            );
            for wanted in ["latest", &ID[..4], ID] {
                shop.run(["show", wanted]).fails(1, &[&object]);
            }
        }
        assert!(!restore(&shop, &original, &what, ID), "{what}");
        std::fs::write(&file, &intact).unwrap();
    }
    // What does not belong there is said, and does not stop the others.
    std::fs::write(shop.repository().join("snapshots/notes.txt"), "x").unwrap();
    assert_eq!(findings(&shop, &["--read-data"])[0].0, "snapshots/notes.txt");
    assert_eq!(shop.run(["show", "latest", "--json"]).json()["id"], ID);
    std::fs::remove_file(shop.repository().join("snapshots/notes.txt")).unwrap();
    // File managers leave these behind, and nobody shall be woken for them.
    for folder in ["", "snapshots/", "chunks/", "sessions/"] {
        std::fs::write(shop.repository().join(format!("{folder}.DS_Store")), "x").unwrap();
    }
    assert!(findings(&shop, &["--read-data"]).is_empty());
    assert_eq!(shop.run(["list-backups"]).code, 0);
    assert!(restore(&shop, &original, "intact", ""));
}

#[test]
fn damage_of_what_a_session_left_behind() {
    let (shop, original) = archive();
    let objects = objects(&shop, Kind::Named("sessions/"));
    assert!(objects.len() >= 3, "{objects:?}");
    for way in [4, 2, 1, 0] {
        for object in &objects {
            let file = shop.repository().join(object);
            let intact = std::fs::read(&file).unwrap_or_default();
            if !intact.is_empty() {
                damage(&file, &damages(&intact)[way].1);
            }
        }
        assert!(findings(&shop, &["--read-data"]).is_empty(), "{way}");
    }
    assert!(restore(&shop, &original, "sessions", ""));
}

#[test]
fn the_repository_file_is_gone() {
    let (shop, original) = archive();
    std::fs::remove_file(shop.file("backups/repository.json")).unwrap();
    shop.run(["verify", "--read-data"])
        .fails(1, &["not a Firebank repository"]);
    assert!(!restore(
        &shop,
        &original,
        "no repository",
        "not a Firebank repository"
    ));
    // A new one is not made over what is there.
    shop.run(["init"]).fails(1, &["holds", "no part of a repository"]);
}

#[test]
fn damage_is_told_to_people() {
    let (shop, _) = archive();
    let object = &objects(&shop, Kind::Chunk(1))[0];
    let file = shop.repository().join(object);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    for quiet in [false, true] {
        let mut arguments = vec!["verify", "--read-data"];
        arguments.extend(quiet.then_some("-q"));
        let verified = shop.run(arguments);
        assert_eq!(verified.code, 3);
        assert!(
            verified.stdout.contains(object) && verified.stdout.contains("DAMAGED in 1 place"),
            "{verified}"
        );
    }
    // A reader that goes away does not make it intact.
    let mut child = shop.std_command();
    child.args(["verify", "--read-data"]);
    let mut child = child
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
    // Other documents can still be had, one by one and by collection.
    let listed = shop.run(["ls", ID]).done();
    let readable = listed.lines().filter(|path| shop_can_show(&shop, path)).take(3);
    assert_eq!(readable.count(), 3);
}

fn shop_can_show(shop: &Shop, path: &str) -> bool {
    shop.run(["show", ID, path]).code == 0
}

/// How a repository comes back to health: a full backup stores missing chunks again, and one that reuses nothing also those
/// that are there and wrong; the nights after it build upon it.
fn heals(damage: fn(Vec<u8>) -> Option<Vec<u8>>, full: &[&str]) {
    let (shop, before) = Shop::backed_up();
    for object in objects(&shop, Kind::Chunk(1)) {
        let file = shop.repository().join(object);
        match damage(std::fs::read(&file).unwrap()) {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
    }
    let verify = |snapshot: &str| shop.run(["verify", "--read-data", snapshot]);
    let found = verify(&before);
    assert_eq!(found.code, 3, "{found}");
    assert!(found.stdout.contains("backup --full --no-dedup"), "{found}");
    assert_eq!(verify(&shop.back_up()).code, 3, "a night carries the damage on");
    let healed = shop.firebank([&["--json", "backup"], full].concat()).json();
    verify(healed["snapshot"].as_str().unwrap()).done();
    verify(&shop.back_up()).done();
    assert_eq!(
        verify(&before).code,
        3,
        "what was damaged stays so, and is said to be"
    );
}

#[test]
fn a_full_backup_stores_missing_chunks_again() {
    heals(|_| None, &["--full"]);
}

#[test]
fn a_full_backup_stores_chunks_that_were_cut_again() {
    heals(|bytes| Some(bytes[..bytes.len() - 1].to_vec()), &["--full"]);
}

#[test]
fn a_full_backup_without_deduplication_needs_nothing_that_was_there() {
    let flip = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(bytes)
    };
    heals(flip, &["--full", "--no-dedup"]);
}
