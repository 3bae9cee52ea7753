//! The order of names, the range of cursors, and which names there are.

use super::client::*;

const ASCENDING: &[&str] = &[
    "a/__id-9223372036854775808__",
    "a/__id-5__",
    "a/__id-5__/b/c",
    "a/__id0__",
    "a/__id7__",
    "a/__id10__",
    "a/\0",
    "a/\n",
    "a/ ",
    "a/.x",
    "a/A",
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

pub(crate) async fn kindless_query_follows_name_order(server: &Server) {
    let mut shuffled = ASCENDING.to_vec();
    shuffled.sort_by_key(|path| path.len() * 7 % 5);
    server.put_all(&shuffled).await;
    assert_eq!(server.paths(kindless()).await, ASCENDING);
}
