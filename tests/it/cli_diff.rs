//! `diff` and `history`: what changed between two snapshots, since one, and one document through all of them.

use firebank::document::{DocumentPath, canonical, typed_json};
use serde_json::{Value as Json, json};

use crate::cli_support::*;
use crate::support::operations::change_all;

fn document(path: &str, fields: &str) -> (DocumentPath, Vec<u8>) {
    let body = canonical::encode(&typed_json::fields_from_str(fields).unwrap());
    (DocumentPath::parse(path).unwrap(), body)
}

fn delete(shop: &Shop, paths: &[&str]) {
    let connection = shop.connect(SHOP, "(default)");
    let gone = paths
        .iter()
        .map(|path| (DocumentPath::parse(*path).unwrap(), None));
    shop.runtime.block_on(change_all(&connection, gone));
}

/// A small shop on three days, and the ids of their snapshots.
fn three_days() -> (Shop, [String; 3]) {
    let shop = Shop::empty();
    shop.run(["init"]).done();
    shop.put(
        SHOP,
        vec![
            document(
                "products/p1",
                r#"{"price": 1, "stock": {"a": 1, "b": 2}, "old": true}"#,
            ),
            document("products/p2", r#"{"price": 2}"#),
            document("products/p3", r#"{"price": 3}"#),
            document("users/u1", r#"{"name": "Ada"}"#),
            document("users/u1/orders/o1", r#"{"total": 5}"#),
        ],
    );
    let first = shop.back_up();
    // The same again would change nothing, not even a time; but what is new has new times.
    delete(&shop, &["products/p3"]);
    shop.put(
        SHOP,
        vec![
            document("products/p1", r#"{"price": 1.5, "stock": {"a": 1, "c": 2}}"#),
            document("products/p3", r#"{"price": 3}"#),
            document("users/u2", r#"{"name": "Bo"}"#),
        ],
    );
    delete(&shop, &["users/u1/orders/o1"]);
    let second = shop.back_up();
    delete(&shop, &["products/p1"]);
    let third = shop.back_up();
    (shop, [first, second, third])
}

const SECOND_DAY: [&str; 4] = [
    "M products/p1  -old, price, -stock.b, +stock.c",
    "R products/p3",
    "- users/u1/orders/o1",
    "+ users/u2",
];

#[test]
fn a_difference_names_documents_and_fields() {
    let (shop, [first, second, _]) = three_days();
    let text = shop.run(["diff", &first, &second]).done();
    let lines: Vec<&str> = text.lines().take(4).collect();
    assert_eq!(lines, SECOND_DAY);
    let table: Vec<Vec<&str>> = text
        .lines()
        .skip(5)
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        table,
        [
            ["collection", "added", "changed", "rewritten", "deleted"],
            ["products", "0", "1", "1", "0"],
            ["users", "1", "0", "0", "1"],
            ["all", "1", "1", "1", "1"],
        ]
    );
    let back = shop.run(["diff", &second, &first]).done();
    assert!(
        back.starts_with("M products/p1  +old, price, +stock.b, -stock.c\n"),
        "{back}"
    );

    let part = shop.run(["diff", &first, &second, "users"]).done();
    assert!(part.starts_with("- users/u1/orders/o1\n+ users/u2\n"), "{part}");
    let counts = shop.run(["diff", &first, &second, "--by-collection"]).done();
    assert!(
        counts.starts_with("collection") && !counts.contains("p1"),
        "{counts}"
    );
    assert_eq!(shop.run(["diff", &first, &first]).done(), "no document differs\n");
}

#[test]
fn a_difference_as_json_is_one_object() {
    let (shop, [first, second, _]) = three_days();
    let diff = shop.run(["diff", &first, &second, "--json"]).json();
    assert_eq!(keys(&diff), ["documents", "new", "old", "summary"]);
    assert_eq!(
        diff["documents"][0],
        json!({"path": "products/p1", "change": "changed", "fields": [
            {"field": "old", "change": "removed"},
            {"field": "price", "change": "changed"},
            {"field": "stock.b", "change": "removed"},
            {"field": "stock.c", "change": "added"},
        ]})
    );
    assert_eq!(
        diff["documents"][2],
        json!({"path": "users/u1/orders/o1", "change": "deleted"})
    );
    assert_eq!(
        diff["summary"]["collections"]["users"],
        json!({"added": 1, "changed": 0, "rewritten": 0, "deleted": 1})
    );
    assert_eq!(diff["summary"]["changed"], 1);
}

#[test]
fn the_live_database_is_a_side_too() {
    let (shop, [first, second, third]) = three_days();
    // p1 is gone by now.
    let live = shop.firebank(["diff", &second, "live"]).done();
    assert!(live.starts_with("- products/p1\n"), "{live}");
    let live = shop.firebank(["diff", &third, "live"]).done();
    assert!(live.starts_with("no document differs\n("), "{live}");
    assert!(live.ends_with(" billed reads)\n"), "{live}");
    delete(&shop, &["products/p2"]);
    shop.put(
        SHOP,
        vec![
            document("products/p1", r#"{"price": 1.5, "stock": {"a": 1, "c": 2}}"#),
            document("products/p2", r#"{"price": 2}"#),
        ],
    );
    let since = shop.firebank(["diff", &first, "live"]).done();
    let lines: Vec<&str> = since.lines().take(5).collect();
    let mut expected = SECOND_DAY.to_vec();
    expected.insert(1, "R products/p2");
    assert_eq!(lines, expected);
    let live = shop.firebank(["diff", &first, "live", "users", "--json"]).json();
    assert_eq!(
        keys(&live),
        [
            "billed_reads",
            "documents",
            "later_ranges",
            "new",
            "old",
            "read_time",
            "summary"
        ]
    );
    assert_eq!(live["later_ranges"], json!([]));
    assert_eq!(live["documents"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_restored_copy_does_not_differ_and_a_changed_one_does() {
    let (shop, [first, _, _]) = three_days();
    shop.run([
        "restore",
        &first,
        "--to-project",
        "demo-copy",
        "--emulator",
        &shop.address(),
    ])
    .done();
    let copy = shop.firebank_on("demo-copy", ["diff", &first, "live"]).done();
    assert!(copy.starts_with("no document differs\n("), "{copy}");
    shop.put(
        "demo-copy",
        vec![document("users/u1", r#"{"name": "Eve", "admin": true}"#)],
    );
    let copy = shop.firebank_on("demo-copy", ["diff", &first, "live"]).done();
    assert!(copy.starts_with("M users/u1  +admin, name\n"), "{copy}");
}

#[test]
fn a_large_database_is_compared_in_parallel_and_in_order() {
    let shop = Shop::open();
    shop.run(["init"]).done();
    let first = shop.back_up();
    let touched: Vec<String> = shop.contents(SHOP).into_keys().step_by(3).collect();
    shop.put(
        SHOP,
        touched
            .iter()
            .map(|path| document(path, r#"{"touched": true}"#))
            .collect(),
    );
    for parallel in ["1", "7"] {
        let live = shop
            .firebank(["diff", &first, "live", "--json", "--parallel", parallel])
            .json();
        let paths: Vec<&str> = live["documents"]
            .as_array()
            .unwrap()
            .iter()
            .map(|change| {
                assert_eq!(change["change"], "changed");
                change["path"].as_str().unwrap()
            })
            .collect();
        let mut expected = touched.clone();
        let order = |path: &String| DocumentPath::parse(path.as_str()).unwrap().key();
        expected.sort_by_key(order);
        assert_eq!(paths, expected);
    }
}

#[test]
fn a_document_has_a_history() {
    let (shop, [first, second, third]) = three_days();
    let text = shop.run(["history", "products/p1"]).done();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for (line, (id, what)) in lines
        .iter()
        .zip([(&first, "added"), (&second, "changed"), (&third, "deleted")])
    {
        assert!(line.starts_with(id.as_str()) && line.contains(what), "{line}");
    }
    assert!(lines[1].ends_with("-old, price, -stock.b, +stock.c"), "{text}");

    let view = shop.run(["history", "products/p2", "--json"]).json();
    assert_eq!(keys(&view), ["path", "versions"]);
    let versions = view["versions"].as_array().unwrap();
    assert_eq!(versions.len(), 1);
    assert_eq!(versions[0]["snapshots"], 3);
    assert_eq!(versions[0]["first_snapshot"], Json::from(first.as_str()));
    assert_eq!(versions[0]["last_snapshot"], Json::from(third.as_str()));
    assert_eq!(versions[0]["fields"], json!({"price": 2}));

    let none = shop.run(["history", "products/none"]).done();
    assert_eq!(none, "no snapshot has a document `products/none`\n");
    shop.run(["history", "products"]).fails(2, &["products"]);
}
