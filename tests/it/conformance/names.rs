//! The order of names, the range of cursors, and which names there are.

use super::client::*;

/// Paths in Firestore's order. `__id…__` ids stand for Datastore's numbers, of which zero is none.
const ASCENDING: &[&str] = &[
    "a/__id-9223372036854775808__",
    "a/__id-5__",
    "a/__id-5__/b/c",
    "a/__id7__",
    "a/__id10__",
    "a/__id9223372036854775807__",
    "a/\0",
    "a/\n",
    "a/ ",
    "a/%2F",
    "a/.x",
    "a/A",
    "a/____",
    "a/a",
    "a/a/b/c",
    "a/a/b/c/d/e",
    "a/a/b0/c",
    "a/a\0",
    "a/a\0/b/c",
    "a/a b",
    "a/aa",
    "a/é",
    "a/\u{ffff}",
    "a/😀",
    "a\0/a",
    "aa/a",
];

async fn load(server: &Server) {
    // Not in their order, so that it is the server that orders them.
    let mut shuffled = ASCENDING.to_vec();
    shuffled.sort_by_key(|path| (path.len() * 7 % 5, path.bytes().last()));
    server.put_all(&shuffled).await;
}

pub(crate) async fn kindless_query_follows_name_order(server: &Server) {
    load(server).await;
    assert_eq!(server.paths(kindless()).await, ASCENDING);
    let unordered = query(|query| query.order_by.clear());
    assert_eq!(server.paths(unordered).await, ASCENDING);
    let below = server
        .run_at(&server.name("a/a"), kindless(), None)
        .await
        .unwrap();
    let below: Vec<String> = below.iter().map(|document| server.path(&document.name)).collect();
    assert_eq!(below, ["a/a/b/c", "a/a/b/c/d/e", "a/a/b0/c"]);
}

pub(crate) async fn cursors_cut_at_every_name(server: &Server) {
    load(server).await;
    for (index, path) in ASCENDING.iter().enumerate() {
        for (start, before, expected) in [
            (true, true, &ASCENDING[index..]),
            (true, false, &ASCENDING[index + 1..]),
            (false, true, &ASCENDING[..index]),
            (false, false, &ASCENDING[..index + 1]),
        ] {
            let cursor = server.cursor(path, before);
            let query = query(|query| {
                if start {
                    query.start_at = cursor
                } else {
                    query.end_at = cursor
                }
            });
            assert_eq!(
                server.paths(query).await,
                expected,
                "{path:?} start {start} before {before}"
            );
        }
    }
}

pub(crate) async fn pages_by_cursor_repeat_and_skip_nothing(server: &Server) {
    load(server).await;
    let mut all: Vec<String> = Vec::new();
    loop {
        let cursor = all.last().and_then(|last| server.cursor(last, false));
        let page = server
            .paths(limited(query(|query| query.start_at = cursor), 4))
            .await;
        if page.is_empty() {
            break;
        }
        all.extend(page);
    }
    assert_eq!(all, ASCENDING);
}

/// Everything below one root collection lies between two names that no document has.
pub(crate) async fn smallest_ids_bound_a_root_collection(server: &Server) {
    load(server).await;
    server.put_all(&["b/x"]).await;
    let query = query(|query| {
        query.start_at = server.cursor("a/__id-9223372036854775808__", true);
        query.end_at = server.cursor("a\0/__id-9223372036854775808__", true);
    });
    let below: Vec<&str> = ASCENDING
        .iter()
        .copied()
        .filter(|path| path.starts_with("a/"))
        .collect();
    assert_eq!(server.paths(query).await, below);
}

pub(crate) async fn names_are_checked(server: &Server) {
    let long = "x".repeat(1500);
    for id in [
        "__id7__", "__id-5__", "____", "__", "__a", ".x", "a\0", "\0", "é", &long,
    ] {
        let results = server.try_batch(vec![server.set(&format!("c/{id}"), &[])]).await;
        assert!(results.is_ok_and(|results| results[0].is_ok()), "{id:?} is an id");
    }
    let too_long = "x".repeat(1501);
    let reserved = [
        "__id0__",
        "__id007__",
        "__id-0__",
        "__id+1__",
        "__id9223372036854775808__",
        "__foo__",
    ];
    for id in reserved.into_iter().chain([".", "..", "", &too_long]) {
        let result = server.try_batch(vec![server.set(&format!("c/{id}"), &[])]).await;
        assert_eq!(code(result), 3, "{id:?} is no document's id");
    }
    for id in ["__id7__", "__foo__", ".", &too_long] {
        let result = server.try_batch(vec![server.set(&format!("{id}/x"), &[])]).await;
        assert_eq!(code(result), 3, "{id:?} is no collection's id");
        let result = server.run(collection(id, false)).await;
        assert!(id.len() > 1500 || code(result) == 3, "{id:?} cannot be queried");
    }
    server.put_all(&["_migrations/x", "c d/x"]).await;
    server.put_all(&[&vec!["a"; 200].join("/")]).await;
    for path in [vec!["a"; 202].join("/"), "a/b/c".to_owned()] {
        assert_eq!(
            code(server.try_batch(vec![server.set(&path, &[])]).await),
            3,
            "{path}"
        );
    }
    assert_eq!(code(server.get("z").await), 3);
    assert_eq!(code(server.get("z/z").await), 5);
}

pub(crate) async fn databases_keep_apart(server: &Server) {
    let other = server.with_database("other-database");
    server.put_all(&["a/default"]).await;
    other.put_all(&["a/other"]).await;
    assert_eq!(server.paths(kindless()).await, ["a/default"]);
    assert_eq!(other.paths(kindless()).await, ["a/other"]);
    let foreign = query(|query| query.start_at = other.cursor("a/x", true));
    assert_eq!(code(server.run(foreign).await), 3);
}
