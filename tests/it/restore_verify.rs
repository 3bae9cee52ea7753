//! `restore --verify`: the proof at the end of a restore, in every mode.

use firebank::document::{DocumentPath, canonical, typed_json};
use firebank::sandbox::{Fault, When};
use serde_json::json;

use crate::cli_support::*;

const COPY: &str = "demo-copy";

fn put(shop: &Shop, path: &str, fields: &str) {
    let body = canonical::encode(&typed_json::fields_from_str(fields).unwrap());
    shop.put(COPY, vec![(DocumentPath::parse(path).unwrap(), body)]);
}

fn restore(shop: &Shop, id: &str, more: &[&str]) -> Ended {
    let mut arguments = vec!["restore", id, "--to-project", COPY, "--verify"];
    arguments.extend(more);
    shop.firebank_on(COPY, arguments)
}

#[test]
fn a_restore_that_is_complete_is_proven_and_one_that_is_not_is_told() {
    let (shop, id) = Shop::backed_up();
    let documents = shop.contents(SHOP).len() as u64;
    let told = restore(&shop, &id, &[]).done();
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("Restored "), "{told}");
    assert!(
        told.contains(&format!(
            "Billed: 0 reads, {documents} writes, 0 deletes; 0 writes sent again."
        )),
        "{told}"
    );
    let last = format!("Equal: all {documents} documents of snapshot {id} are in {COPY}/(default) as of ");
    assert!(lines.last().unwrap().starts_with(&last), "{told}");

    // What the database refuses is missing or different, and named.
    put(&shop, "products/p000001", r#"{"old": true}"#);
    shop.add_fault(Fault::write(
        tonic::Code::InvalidArgument,
        "/products/p000001",
        When::Always,
    ));
    let refused = restore(&shop, &id, &["--json", "--only", "products"]);
    assert_eq!(refused.code, 3, "{refused}");
    let view = refused.json();
    assert!(view["failed"].as_u64().unwrap() > 0);
    assert_eq!(view["billed_writes"], view["written"]);
    let verification = &view["verification"];
    assert_eq!(verification["matches"], false);
    assert_eq!(verification["different"], 1);
    assert_eq!(verification["first_differences"][0]["path"], "products/p000001");
    assert_eq!(verification["first_differences"][0]["kind"], "different");
    assert!(
        verification["documents"].as_u64().unwrap() < documents,
        "only what was chosen"
    );
    shop.sandbox.faults().clear();
}

#[test]
fn extra_documents_matter_after_a_mirror_only() {
    let (shop, id) = Shop::backed_up();
    put(&shop, "extra/1", "{}");
    let told = restore(&shop, &id, &[]).done();
    assert!(told.contains("extra      extra/1\n"), "{told}");
    assert!(told.contains(", which has 1 more ("), "{told}");
    let view = restore(&shop, &id, &["--mode", "mirror", "--json"]).json();
    assert_eq!(view["billed_deletes"], 1);
    assert_eq!(
        (&view["verification"]["matches"], &view["verification"]["extra"]),
        (&json!(true), &json!(0))
    );
    assert_eq!(shop.contents(COPY), shop.contents(SHOP));
    // A deletion that is refused.
    put(&shop, "extra/1", "{}");
    shop.add_fault(Fault::write(
        tonic::Code::InvalidArgument,
        "/extra/1",
        When::Always,
    ));
    let view = restore(&shop, &id, &["--mode", "mirror", "--json"]);
    assert_eq!(view.code, 3);
    let view = view.json();
    assert_eq!(view["verification"]["extra"], 1);
    // What was decided did not come to pass.
    assert_eq!(
        ["written", "failed", "deleted", "billed_writes", "billed_deletes"].map(|name| &view[name]),
        [0, 1, 0, 0, 0]
    );
}

/// What is counted is what became of the documents, and what is billed is what the database bills.
#[test]
fn the_report_tells_what_came_to_pass() {
    let (shop, id) = Shop::backed_up();
    let original = shop.contents(SHOP);
    let below = |part: &str| original.keys().filter(|path| path.starts_with(part)).count() as u64;
    let products = below("products/");
    // With what lies below them.
    let (missing, there) = (below("products/p000001"), below("products/p000002"));
    // Among many, one that is to be created and one that is to be changed are refused, and a deletion.
    for path in ["products/p000002", "extra/1", "extra/2"] {
        put(&shop, path, r#"{"old": true}"#);
    }
    let refuse = |paths: &[&str]| {
        for path in paths {
            shop.add_fault(Fault::write(tonic::Code::InvalidArgument, *path, When::Always));
        }
    };
    let report = |arguments: &[&str]| {
        let before = shop.sandbox.usage();
        let all = ["restore", &id, "--to-project", COPY, "--json"];
        let report = shop.firebank([&all, arguments].concat()).json();
        let usage = shop.sandbox.usage().since(&before);
        let number = |name: &str| report[name].as_u64().unwrap();
        // The sandbox bills what it refuses on demand, too.
        if number("failed") == 0 {
            assert_eq!(
                ["billed_reads", "billed_writes", "billed_deletes"].map(number),
                [usage.reads, usage.writes, usage.deletes],
                "{arguments:?}: {report}"
            );
        } else {
            assert_eq!(
                number("billed_writes") + number("billed_deletes"),
                number("written"),
                "{report}"
            );
            assert_eq!(number("billed_deletes"), number("deleted"), "{report}");
        }
        shop.sandbox.faults().clear();
        report
    };
    refuse(&["/products/p000001", "/products/p000002", "/extra/1"]);
    let mirror = ["--only", "products", "--only", "extra", "--mode", "mirror"];
    let done = report(&mirror);
    assert_eq!(
        ["written", "failed", "created", "changed", "deleted"].map(|name| &done[name]),
        [
            products + 1 - missing - there,
            missing + there + 1,
            products - missing - there,
            0,
            1
        ]
        .map(|count| json!(count))
        .each_ref(),
        "{done}"
    );
    let done = report(&mirror);
    assert_eq!(
        ["written", "failed", "created", "changed", "deleted", "unchanged"].map(|name| &done[name]),
        [
            missing + there + 1,
            0,
            missing + there - 1,
            1,
            1,
            products - missing - there
        ]
        .map(|count| json!(count))
        .each_ref(),
        "{done}"
    );
    // What is only asked for is billed as well.
    let create = ["--only", "products", "--mode", "create-only"];
    let done = report(&create);
    assert_eq!(
        (&done["existing"], &done["billed_writes"]),
        (&json!(products), &json!(products)),
        "{done}"
    );

    // The same of an import.
    shop.firebank([
        "export",
        &id,
        "products",
        "--format",
        "ndjson",
        "-o",
        "lines.ndjson",
    ])
    .done();
    let import = |arguments: &[&str]| {
        let before = shop.sandbox.usage();
        let all = ["import", "lines.ndjson", "--json"];
        let report = shop.firebank_on("demo-import", [&all, arguments].concat()).json();
        let usage = shop.sandbox.usage().since(&before);
        if report["failed"] == 0 {
            assert_eq!(
                ["billed_reads", "billed_writes"].map(|name| report[name].as_u64().unwrap()),
                [usage.reads, usage.writes],
                "{arguments:?}: {report}"
            );
        }
        shop.sandbox.faults().clear();
        report
    };
    refuse(&["/products/p000001"]);
    let done = import(&["--mode", "skip-identical"]);
    assert_eq!(
        (&done["created"], &done["failed"]),
        (&json!(products - missing), &json!(missing)),
        "{done}"
    );
    let done = import(&["--mode", "create-only"]);
    assert_eq!(
        (&done["existing"], &done["written"]),
        (&json!(products - missing), &json!(missing)),
        "{done}"
    );
}

#[test]
fn what_was_left_alone_is_a_difference() {
    let (shop, id) = Shop::backed_up();
    put(&shop, "products/p000001", r#"{"mine": true}"#);
    let created = restore(&shop, &id, &["--mode", "create-only"]);
    assert_eq!(created.code, 3, "{created}");
    assert!(
        created.stdout.contains("different  products/p000001  "),
        "{created}"
    );
    restore(&shop, &id, &["--mode", "skip-identical"]).done();
}

#[test]
fn every_other_way_to_restore_is_verified_by_its_own_measure() {
    let (shop, id) = Shop::backed_up();
    restore(&shop, &id, &["--references", "keep"]).done();
    // Read as they were kept, they are not those that a rewriting restore leaves.
    let rewritten = shop.firebank_on(COPY, ["verify", &id, "--live"]);
    assert_eq!(rewritten.code, 3, "{rewritten}");

    put(&shop, "products/p000001", r#"{"mine": true, "price": 1}"#);
    let merged = restore(&shop, &id, &["--mode", "merge", "--json"]).json();
    assert_eq!(merged["verification"]["matches"], true);
    let fields = restore(&shop, &id, &["--fields", "price,name", "--json"]).json();
    assert_eq!(fields["verification"]["matches"], true);
    let renamed = restore(&shop, &id, &["--rename-collection", "products=goods", "--json"]).json();
    assert_eq!(renamed["verification"]["matches"], true);

    put(&shop, "goods/p000002", r#"{"mine": true}"#);
    shop.add_fault(Fault::write(
        tonic::Code::InvalidArgument,
        "/goods/p000002",
        When::Always,
    ));
    let renamed = restore(&shop, &id, &["--rename-collection", "products=goods"]);
    assert_eq!(renamed.code, 3, "{renamed}");
    assert!(renamed.stdout.contains("different  goods/p000002\n"), "{renamed}");
    assert!(renamed.stdout.contains(" 1 different, "), "{renamed}");
}

#[test]
fn a_verification_that_makes_no_sense_is_refused() {
    let (shop, id) = Shop::backed_up();
    assert_eq!(restore(&shop, &id, &["--dry-run"]).code, 2);
    shop.write(
        "backup_x_20250629_120000.json",
        r#"{"collection": "x", "documents": []}"#,
    );
    let file = restore(&shop, "backup_x_20250629_120000.json", &[]);
    assert_eq!(file.code, 2, "{file}");
    assert!(file.stderr.contains("--verify"), "{file}");
}
