//! What scripts can do: every call of `db`, on the sandbox and on Google's emulator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use firebank::document::typed_json::fields_from_str;
use firebank::document::{FieldChangeKind, Fields, Value, canonical};
use firebank::firestore::Firestore;
use firebank::migration::{
    BeforeImage, BodyHash, CollectionStats, Function, Journal, JournalError, NoJournal, RunMode, RunOptions,
    RunStats,
};
use firebank::progress::Progress;
use firebank::sandbox::{Effect, Fault, FaultPlan, Rpc, SandboxConfig, When};
use tonic::Code;

use crate::migration_support::{capture, get, json, load, migrate, path, put, run, run_function, run_ok};
use crate::support::operations::connect;
use crate::support::{emulator, project, sandbox, sandbox_with};

fn fields(json: &str) -> Fields {
    fields_from_str(json).unwrap()
}

async fn put_json(database: &Firestore, documents: &[(&str, &str)]) {
    let mut all = Vec::new();
    for (name, json) in documents {
        all.push(((*name).to_owned(), fields(json)));
    }
    put(database, all).await;
}

/// Runs a check on a sandbox and, where there is one, on the emulator.
macro_rules! on_both {
    ($name:ident, $check:path) => {
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn on_the_sandbox() {
                let sandbox = crate::support::sandbox().await;
                let address = sandbox.address().to_string();
                let database =
                    crate::support::operations::connect(&address, "demo-engine", "(default)").await;
                $check(&database).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_the_emulator() {
                let Some(address) = crate::support::emulator() else {
                    return;
                };
                let project = crate::support::project("engine");
                let database = crate::support::operations::connect(address, &project, "(default)").await;
                $check(&database).await;
            }
        }
    };
}

on_both!(single_documents, super::check_single_documents);
on_both!(field_values, super::check_field_values);
on_both!(scans, super::check_scans);
on_both!(filters, super::check_filters);
on_both!(whole_collections, super::check_whole_collections);
on_both!(collection_groups, super::check_collection_groups);
on_both!(copies, super::check_copies);
on_both!(dry_runs, super::check_dry_run);
on_both!(steps_upon_steps, super::check_steps_upon_steps);
on_both!(assertions, super::check_assertions);

async fn check_single_documents(database: &Firestore) {
    put_json(database, &[("settings/old", r#"{"x": 1}"#)]).await;
    let ran = run(
        database,
        r#"
        const made = db.create("user_preferences", { theme: "dark" });
        db.assert(/^user_preferences\/[A-Za-z0-9]{20}$/.test(made), made);
        db.assertEqual(db.get(made).data, { theme: "dark" });
        db.assertEqual(db.create("settings/main", { version: 2, ui: { font: "a", theme: "x" } }), "settings/main");
        db.set("settings/main", { version: 3, "not.a.path": true }, { merge: true });
        db.update("settings/main", { "ui.theme": "light", "new.deep": 1, "`not.a.path`": FieldValue.delete() });
        db.delete("settings/old");
        db.delete("settings/never-there");
        const main = db.get("settings/main");
        db.assertEqual([main.path, main.id, main.collection], ["settings/main", "main", "settings"]);
        db.assertEqual(main.data, { version: 3, ui: { font: "a", theme: "light" }, new: { deep: 1 } });
        db.assert(main.createTime instanceof Timestamp && main.updateTime >= main.createTime);
        db.assert(db.get("settings/old") === null);
        main.update({ version: 4 });
        main.set({ extra: true }, { merge: true });
        db.assertEqual(db.get("settings/main").data.version, 4);
        db.set("settings/main", { only: "this" });
        db.log("settings", db.settings.currency, { a: 1n }, [new Timestamp(1)], db.dryRun);
        console.warn("from the console");
        "#,
    )
    .await;
    let stats = ran.result.unwrap();
    assert_eq!(json(database, "settings/main").await, r#"{"only":"this"}"#);
    assert_eq!(
        ran.log,
        [
            r#"settings EUR {"a":"1n"} [{"seconds":1,"nanoseconds":0}] false"#,
            "from the console"
        ]
    );
    assert_eq!(stats.created_collections, ["user_preferences"]);
    assert_eq!((stats.created, stats.deleted), (2, 1));
    assert_eq!(
        stats.collections["settings"],
        CollectionStats {
            created: 1,
            updated: stats.updated,
            deleted: 1
        }
    );
    // Each image fits what was there before it: from nothing to what is there now.
    let mut main = ran
        .images
        .iter()
        .filter(|image| image.path == path("settings/main"));
    assert_eq!(main.next().unwrap().before, None);
    let hashes: Vec<_> = ran
        .images
        .iter()
        .filter(|image| image.path == path("settings/main"))
        .collect();
    assert_eq!(hashes[0].before, None);
    for pair in hashes.windows(2) {
        let before = pair[1].before.as_ref().unwrap();
        assert_eq!(pair[0].after, Some(BodyHash::of(&before.body)));
        assert!(!pair[1].supersedes);
    }
    assert_eq!(
        hashes.last().unwrap().after,
        Some(BodyHash::of(&canonical::encode(
            &get(database, "settings/main").await.unwrap()
        )))
    );
    let old = ran
        .images
        .iter()
        .find(|image| image.path == path("settings/old"))
        .unwrap();
    assert_eq!(
        old.before.as_ref().unwrap().body,
        canonical::encode(&fields(r#"{"x": 1}"#))
    );
    assert_eq!(old.after, None);
}

async fn check_field_values(database: &Firestore) {
    put_json(
        database,
        &[(
            "a/b",
            r#"{"n": 5, "d": 0.5, "tags": ["x", "y"], "gone": 1, "deep": {"gone": 1, "kept": 2}}"#,
        )],
    )
    .await;
    let (stats, _) = run_ok(
        database,
        r#"
        db.update("a/b", {
            n: FieldValue.increment(2), d: FieldValue.increment(1), fresh: FieldValue.increment(1.5),
            tags: FieldValue.arrayUnion("y", "z"), list: FieldValue.arrayUnion(1), at: FieldValue.serverTimestamp(),
            gone: FieldValue.delete(), "deep.gone": FieldValue.delete(), "nowhere.gone": FieldValue.delete(),
        });
        db.update("a/b", { n: FieldValue.increment(-10), tags: FieldValue.arrayRemove("x", "q") });
        db.update("a/b", { n: FieldValue.increment(2n ** 53n + 1n) });
        const { at } = db.get("a/b").data;
        db.assert(Math.abs(at.toMillis() - Date.now()) < 600000 && at.nanoseconds % 1000000 === 0, at);
        db.update("a/b", { at: FieldValue.delete() });
        "#,
    )
    .await;
    assert!(stats.updated >= 2);
    assert_eq!(
        get(database, "a/b").await.unwrap(),
        fields(&format!(
            r#"{{"n": {}, "d": 1.5, "fresh": 1.5, "tags": ["y", "z"], "list": [1], "deep": {{"kept": 2}}}}"#,
            (1i64 << 53) + 1 - 3
        ))
    );
}

async fn check_scans(database: &Firestore) {
    let documents = (0..1500).map(|n| {
        let fields = Fields::from([("n".to_owned(), Value::Integer(n))]);
        (format!("numbers/n{n:04}"), fields)
    });
    put(database, documents).await;
    put_json(
        database,
        &[
            ("users/u1/orders/o1", r#"{"total": 1}"#),
            ("users/u1/orders/o2", r#"{"total": null}"#),
            ("users/u2/orders/o3", r#"{}"#),
            ("users/u2", r#"{"name": "two"}"#),
            ("orders/o4", r#"{"total": 4}"#),
        ],
    )
    .await;
    let (stats, log) = run_ok(
        database,
        r#"
        let sum = 0, last = "";
        for (const doc of db.documents("numbers")) {
            db.assert(doc.path > last); last = doc.path;
            sum += doc.data.n;
            // What is written while it runs is not seen.
            if (doc.data.n < 3) db.create(`numbers/z${doc.data.n}`, { n: 0 });
        }
        db.log(sum, db.count("numbers"));
        // Leaving a loop in every way there is.
        for (const doc of db.documents("numbers")) break;
        try { for (const doc of db.documents("numbers")) throw new Error("out"); } catch {}
        const found = (() => { for (const doc of db.documents("numbers")) if (doc.data.n === 7) return doc.id; })();
        const hand = db.documents("numbers"); hand.next(); hand.next();
        const [first, second] = db.documents("numbers");
        let nested = 0;
        for (const user of ["u1", "u2", "u3"]) for (const order of db.documents(`users/${user}/orders`)) nested += 1;
        const group = [...db.collectionGroup("orders")].map((doc) => doc.path);
        for (const doc of db.collectionGroup("orders")) if (doc.data.total == null) doc.delete();
        db.log(found, first.id, second.id, nested, group, db.count("orders", { group: true }), db.count("orders"));
        "#,
    )
    .await;
    assert_eq!(
        log,
        [
            "1124250 1503".to_owned(),
            r#"n0007 n0000 n0001 3 ["orders/o4","users/u1/orders/o1","users/u1/orders/o2","users/u2/orders/o3"] 2 1"#
                .to_owned()
        ]
    );
    assert_eq!((stats.created, stats.deleted), (3, 2));
    assert_eq!(stats.collections["users/*/orders"].deleted, 2);
    assert!(stats.read > 1500);
}

async fn check_filters(database: &Firestore) {
    put_json(
        database,
        &[
            ("p/a", r#"{"price": 5, "tags": ["x"], "stock": {"n": 1}}"#),
            ("p/b", r#"{"price": 10.5, "tags": ["x", "y"], "stock": {"n": 2}}"#),
            ("p/c", r#"{"price": 20, "tags": [], "stock": {"n": 2}}"#),
            ("p/d", r#"{"price": null, "tags": "x"}"#),
            ("p/e", r#"{"price": {"$double": "NaN"}}"#),
            ("p/f", r#"{}"#),
        ],
    )
    .await;
    let (_, log) = run_ok(
        database,
        r#"
        const ids = (options) => [...db.documents("p", options)].map((doc) => doc.id).join("");
        const price = (...condition) => ids({ where: [["price", ...condition]] });
        db.log(price("<", 10), price("<=", 10.5), price("==", 5), price("==", 20.0), price(">=", 10.5), price(">", 10));
        db.log(price("==", null), price("==", NaN), price("!=", 5), price("in", [5, 20]), price("not-in", [5, 20]));
        db.log(ids({ where: ["tags", "array-contains", "x"] }), ids({ where: [["tags", "array-contains-any", ["y", "z"]]] }));
        db.log(ids({ where: [["stock.n", "==", 2], ["price", ">", 1]] }), ids({ where: [["__name__", ">", "p/d"]] }));
        db.log(ids({ orderBy: ["price", "desc"], limit: 2 }), ids({ orderBy: "price" }), ids({ limit: 3 }));
        db.log(db.count("p", { where: ["price", ">", 1] }), db.count("p"), db.count("nothing"));
        "#,
    )
    .await;
    assert_eq!(
        log,
        [
            "a ab a c bc bc",
            "d e ebc ac eb",
            "ab b",
            "bc ef",
            "cb deabc abc",
            "3 6 0"
        ]
    );
}

async fn check_whole_collections(database: &Firestore) {
    put_json(
        database,
        &[
            (
                "p/a",
                r#"{"name": " A ", "qty": {"$double": "1.0"}, "legacy": true, "at": {"x": 1}}"#,
            ),
            ("p/b", r#"{"name": "B", "qty": 2, "currency": "USD"}"#),
            ("p/c", r#"{"name": "C", "currency": null}"#),
            ("p/c/sub/x", r#"{"name": " not touched "}"#),
        ],
    )
    .await;
    let (_, log) = run_ok(
        database,
        r#"
        db.log(
            db.addField("p", "currency", "EUR"), db.addField("p", "currency", "EUR"),
            db.addField("p", "at.y", 2, { where: ["name", "==", " A "] }),
            db.addField("p", "slug", (data, doc) => `${doc.id}-${data.name.trim().toLowerCase()}`),
            db.addField("p", "made.by", () => ({ who: "me" })),
            db.renameField("p", "qty", "stock.count"), db.renameField("p", "qty", "stock.count"),
            db.removeField("p", "legacy"), db.removeField("p", "at.x"),
            db.transform("p", (data, doc) => ({ ...data, name: data.name.trim() })),
            db.transform("p", (data) => { if (data.name === "B") return; delete data.currency; return data; }),
            db.transform("sub", () => ({ all: "gone" }), { group: true, where: ["name", "==", "nobody"] }),
        );
        db.log(db.createCollection("coupons", { fields: { code: "string" }, indexes: ["code"] }));
        "#,
    )
    .await;
    assert_eq!(log, ["1 0 1 3 3 2 0 1 1 1 2 0", "coupons/_schema"]);
    let made = r#""made":{"by":{"who":"me"}}"#;
    // Moved as it was: a double that holds a whole number.
    assert_eq!(
        get(database, "p/a").await.unwrap(),
        fields(&format!(
            r#"{{"name": "A", "stock": {{"count": {{"$double": "1.0"}}}}, "at": {{"y": 2}}, "slug": "a-a", {made}}}"#
        ))
    );
    assert_eq!(
        get(database, "p/b").await.unwrap(),
        fields(&format!(
            r#"{{"name": "B", "stock": {{"count": 2}}, "currency": "USD", "slug": "b-b", {made}}}"#
        ))
    );
    assert_eq!(
        get(database, "p/c").await.unwrap(),
        fields(&format!(r#"{{"name": "C", "slug": "c-c", {made}}}"#))
    );
    assert_eq!(json(database, "p/c/sub/x").await, r#"{"name":" not touched "}"#);
    assert_eq!(
        json(database, "coupons/_schema").await,
        r#"{"fields":{"code":"string"},"indexes":["code"]}"#
    );
    // A name that is taken is not silently overwritten.
    let error = run(database, "db.renameField('p', 'name', 'slug');")
        .await
        .result
        .unwrap_err();
    assert!(
        error.message.contains("has a field by the new name already"),
        "{error}"
    );
}

/// What works upon a collection works upon all of one name, wherever they are, and upon nothing else.
async fn check_collection_groups(database: &Firestore) {
    put_json(
        database,
        &[
            ("orders/o1", r#"{"total": 5, "old": "a"}"#),
            ("users/u1/orders/o2", r#"{"total": 15, "old": "b"}"#),
            ("users/u2/orders/o3", r#"{"total": 25}"#),
            ("users/u2/orders/o3/lines/l1", r#"{"total": 25}"#),
            ("users/u1", r#"{"total": 15, "old": "c"}"#),
        ],
    )
    .await;
    let (stats, log) = run_ok(
        database,
        r#"
        const found = (options) => [...db.collectionGroup("orders", options)].map((doc) => doc.id).join(" ");
        db.log(found({ where: ["total", ">", 10] }), found({ where: [["total", "==", 5]] }), found({ orderBy: ["total", "desc"], limit: 2 }));
        db.log([...db.documents("orders", { group: true, where: ["total", "in", [5, 25]] })].map((doc) => doc.path));
        const all = { group: true };
        db.log(db.addField("orders", "currency", "EUR", all), db.addField("orders", "large", (data) => data.total > 20, { ...all, where: ["total", ">", 10] }));
        db.log(db.renameField("orders", "old", "legacy.name", all), db.removeField("orders", "total", all));
        db.log(db.assertEvery("orders", (data, doc) => data.currency === "EUR" && doc.id.startsWith("o"), all));
        db.log(db.transform("orders", (data, doc) => ({ ...data, at: doc.collection }), all), db.count("orders", { ...all, where: ["large", "==", true] }));
        "#,
    )
    .await;
    assert_eq!(
        log,
        [
            "o2 o3 o1 o3 o2",
            r#"["orders/o1","users/u2/orders/o3"]"#,
            "3 2",
            "2 3",
            "3",
            "3 1"
        ]
    );
    assert_eq!(stats.deleted, 0);
    for (name, expected) in [
        (
            "orders/o1",
            r#"{"currency": "EUR", "legacy": {"name": "a"}, "at": "orders"}"#,
        ),
        (
            "users/u1/orders/o2",
            r#"{"currency": "EUR", "large": false, "legacy": {"name": "b"}, "at": "users/u1/orders"}"#,
        ),
        (
            "users/u2/orders/o3",
            r#"{"currency": "EUR", "large": true, "at": "users/u2/orders"}"#,
        ),
        ("users/u2/orders/o3/lines/l1", r#"{"total": 25}"#),
        ("users/u1", r#"{"total": 15, "old": "c"}"#),
    ] {
        assert_eq!(get(database, name).await.unwrap(), fields(expected), "{name}");
    }
    let error = run(
        database,
        "db.assertEvery('orders', (data) => data.large, { group: true });",
    )
    .await
    .result
    .unwrap_err();
    assert!(error.message.contains("orders/o1"), "{error}");
}

async fn check_copies(database: &Firestore) {
    let all = [
        ("a/1", r#"{"n": {"$double": "1.0"}}"#),
        ("a/1/deep/x", r#"{"n": 1}"#),
        // Below a document that is not there.
        ("a/2/deep/y/deeper/z", r#"{"n": 2}"#),
        ("ab/1", r#"{"other": true}"#),
        ("b/1", r#"{"n": "replaced"}"#),
        ("b/9", r#"{"n": 9}"#),
    ];
    put_json(database, &all).await;
    let (stats, log) = run_ok(
        database,
        "db.log(db.copyCollection('a', 'b'), db.copyCollection('a', 'x/y/z'));",
    )
    .await;
    assert_eq!(log, ["3 3"]);
    assert_eq!((stats.created, stats.updated, stats.deleted), (5, 1, 0));
    for (name, json) in &all[..3] {
        let tail = name.strip_prefix('a').unwrap();
        assert_eq!(get(database, &format!("b{tail}")).await, Some(fields(json)));
        assert_eq!(get(database, &format!("x/y/z{tail}")).await, Some(fields(json)));
        assert_eq!(get(database, name).await, Some(fields(json)));
    }
    let (_, log) = run_ok(
        database,
        "db.log(db.moveCollection('b', 'c'), db.deleteCollection('a'), db.count('a'), db.count('b'), db.count('c'));",
    )
    .await;
    assert_eq!(log, ["4 3 0 0 2"]);
    for (name, _) in &all[..3] {
        assert_eq!(get(database, name).await, None);
    }
    assert_eq!(get(database, "c/2/deep/y/deeper/z").await, Some(fields(all[2].1)));
    assert_eq!(get(database, "ab/1").await, Some(fields(all[3].1)));
}

/// What a later step sees of an earlier one, a dry run sees as well.
async fn check_steps_upon_steps(database: &Firestore) {
    let names: Vec<String> = (0..30).map(|number| format!("p/{number:02}")).collect();
    let documents: Vec<(&str, &str)> = names.iter().map(|name| (&name[..], r#"{"n": 1}"#)).collect();
    put_json(database, &documents).await;
    let source = migrate(
        r#"
        db.transform("p", (data) => ({ ...data, a: data.n }));
        db.transform("p", (data) => ({ ...data, b: data.a + 1, at: FieldValue.serverTimestamp() }));
        db.delete("p/07");
        let seen = 0;
        for (const { data } of db.documents("p")) {
            db.assertEqual([data.n, data.a, data.b], [1, 1, 2]);
            seen += 1;
        }
        db.assertEqual(seen, 29);
        const changed = db.transform("p", ({ at, ...data }) => data);
        db.assertEqual([changed, db.get("p/03").data], [29, { n: 1, a: 1, b: 2 }]);
        "#,
    );
    for mode in [
        RunMode::DryRun { preview: 100 },
        RunMode::write(database, Arc::new(NoJournal)),
    ] {
        let script = load(source.clone()).unwrap();
        let options = RunOptions::new(mode);
        let stats = script
            .run(Function::Migrate, database, options, &Progress::new())
            .await
            .unwrap();
        assert_eq!((stats.updated, stats.deleted), (89, 1));
    }
    assert_eq!(json(database, "p/03").await, r#"{"a":1,"b":2,"n":1}"#);
}

async fn check_dry_run(database: &Firestore) {
    put_json(
        database,
        &[
            ("p/a", r#"{"n": 1, "m": {"x": 1}}"#),
            ("p/b", r#"{"n": 2}"#),
            ("p/c", r#"{"n": 3}"#),
        ],
    )
    .await;
    let source = migrate(
        r#"
        db.assert(db.dryRun);
        for (const doc of db.documents("p")) doc.update({ n: FieldValue.increment(1), "m.x": 2 });
        db.create("q/new", { n: 1 });
        db.delete("p/b");
        db.assert(db.get("p/b") === null && db.get("q/new").data.n === 1, "it sees what it would have written");
        db.addField("p", "f", 1);
        db.copyCollection("p", "r");
        db.set("p/c", { n: 4, m: { x: 2 } }, { merge: true });
        "#,
    );
    let script = load(source).unwrap();
    let mut options = RunOptions::new(RunMode::DryRun { preview: 2 });
    let _log = capture(&mut options);
    let before = database.current_read_time().await.unwrap();
    let stats = script
        .run(Function::Migrate, database, options, &Progress::new())
        .await
        .unwrap();
    assert_eq!(stats.preview.len(), 2);
    let first = &stats.preview[0];
    assert_eq!(first.path, path("p/a"));
    assert_eq!(first.before, Some(fields(r#"{"n": 1, "m": {"x": 1}}"#)));
    assert_eq!(first.after, Some(fields(r#"{"n": 2, "m": {"x": 2}}"#)));
    let changes: Vec<_> = first
        .fields
        .iter()
        .map(|change| (change.path.to_string(), change.kind))
        .collect();
    assert_eq!(
        changes,
        [
            ("m.x".to_owned(), FieldChangeKind::Changed),
            ("n".to_owned(), FieldChangeKind::Changed)
        ]
    );
    assert_eq!(stats.collections["q"].created, 1);
    assert_eq!(stats.collections["r"].created, 3);
    assert_eq!(stats.created_collections, ["q", "r"]);
    assert_eq!(stats.deleted, 1);
    // Not a document has changed since.
    for (name, json) in [
        ("p/a", r#"{"n": 1, "m": {"x": 1}}"#),
        ("p/b", r#"{"n": 2}"#),
        ("p/c", r#"{"n": 3}"#),
    ] {
        let found = database.get_documents(&[path(name)], None).await.unwrap().found;
        let document = found.last().unwrap();
        assert_eq!(canonical::decode(document.body).unwrap(), fields(json));
        assert!(document.update_time < before);
    }
    assert_eq!(get(database, "q/new").await, None);
}

async fn check_assertions(database: &Firestore) {
    put_json(database, &[("a/b", r#"{"n": 1}"#), ("a/c", r#"{"n": 2}"#)]).await;
    run_ok(
        database,
        r#"
        db.assertNotEmpty("a"); db.assertNotEmpty(["a"]); db.assertExists("a/b"); db.assertMissing("a/x");
        db.assertEqual({ x: [1, new Timestamp(1)] }, { x: [1, new Timestamp(1)] });
        db.assertEqual(db.assertEvery("a", (data) => data.n > 0), 2);
        "#,
    )
    .await;
    for (call, expected) in [
        ("db.assertNotEmpty('a', 'none')", "collection none is empty"),
        ("db.assertExists('a/x')", "there is no document a/x"),
        ("db.assertMissing('a/b')", "there is a document a/b"),
        ("db.assertEqual(1, 2, 'numbers')", "numbers: 1 instead of 2"),
        (
            "db.assertEvery('a', (data) => data.n < 2)",
            "a/c does not hold what it must",
        ),
        ("db.assert(0)", "an assertion failed"),
    ] {
        let error = run(database, call).await.result.unwrap_err();
        assert_eq!(error.message, expected, "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_sends_no_write() {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), "demo-dry", "(default)").await;
    check_dry_run(&database).await;
    // What the check itself has put there.
    assert_eq!((sandbox.usage().writes, sandbox.usage().deletes), (3, 0));
    assert_eq!(sandbox.usage().requests_of(Rpc::Commit), 0);
    assert_eq!(sandbox.usage().requests_of(Rpc::BatchWrite), 1);
}

/// Only what changed is sent.
#[tokio::test(flavor = "multi_thread")]
async fn only_changed_fields_are_written() {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), "demo-masks", "(default)").await;
    let large = Value::String("x".repeat(500_000));
    put(
        &database,
        [(
            "p/a".to_owned(),
            Fields::from([("large".to_owned(), large.clone())]),
        )],
    )
    .await;
    let before = sandbox.usage();
    run_ok(
        &database,
        "db.transform('p', (data) => ({ ...data, small: 1 })); db.update('p/a', { other: 2 }); db.addField('p', 'x', 1);",
    )
    .await;
    let used = sandbox.usage().since(&before);
    assert!(used.received_bytes < 20_000, "{used:?}");
    let found = get(&database, "p/a").await.unwrap();
    assert_eq!((found.len(), &found["large"]), (4, &large));
}

/// Somebody who changes a document right before it is written, once for each.
struct Meddler {
    database: Firestore,
    done: AtomicBool,
}

#[async_trait::async_trait]
impl Journal for Meddler {
    async fn record(&self, images: Vec<BeforeImage>) -> Result<(), JournalError> {
        let meddles = images.iter().any(|image| image.path == path("p/a"));
        if meddles && !self.done.swap(true, Ordering::Relaxed) {
            put_json(&self.database, &[("p/a", r#"{"n": 100, "theirs": true}"#)]).await;
            assert!(images.iter().all(|image| !image.supersedes));
        } else if meddles {
            let image = images.iter().find(|image| image.path == path("p/a")).unwrap();
            let before = canonical::decode(&image.before.as_ref().unwrap().body).unwrap();
            assert_eq!(before, fields(r#"{"n": 100, "theirs": true}"#));
        }
        Ok(())
    }
}

async fn meddled(body: &str) -> (Option<String>, RunStats) {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), "demo-meddled", "(default)").await;
    put_json(
        &database,
        &[("p/a", r#"{"n": 1, "old": true}"#), ("p/b", r#"{"n": 2}"#)],
    )
    .await;
    let script = load(migrate(body)).unwrap();
    let journal = Arc::new(Meddler {
        database: database.clone(),
        done: AtomicBool::new(false),
    });
    let options = RunOptions::new(RunMode::write(&database, journal.clone()));
    let stats = script
        .run(Function::Migrate, &database, options, &Progress::new())
        .await
        .unwrap();
    assert!(journal.done.load(Ordering::Relaxed));
    let found = get(&database, "p/a").await.map(|fields| {
        let json = firebank::document::typed_json::fields_to_json(&fields).unwrap();
        json.to_string()
    });
    (found, stats)
}

/// A change is made upon what the document has become, never upon what it was, and nobody's change is lost.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_others_are_kept() {
    let increment = "for (const doc of db.documents('p')) doc.update({ n: FieldValue.increment(1) });";
    let (found, stats) = meddled(increment).await;
    assert_eq!(found.as_deref(), Some(r#"{"n":101,"theirs":true}"#));
    assert_eq!(stats.updated, 2);
    // The function runs again, on what is there now.
    let (found, stats) = meddled("db.transform('p', (data) => ({ ...data, double: data.n * 2 }));").await;
    assert_eq!(found.as_deref(), Some(r#"{"double":200,"n":100,"theirs":true}"#));
    assert_eq!(stats.updated, 2);
    let (found, _) = meddled("db.addField('p', 'f', 1);").await;
    assert_eq!(found.as_deref(), Some(r#"{"f":1,"n":100,"theirs":true}"#));
    let (found, _) = meddled("db.get('p/a'); db.set('p/a', { mine: 1 });").await;
    assert_eq!(found.as_deref(), Some(r#"{"mine":1}"#));
}

/// Also where it stands within another operation, of a script's function that is worked out at once.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_time_is_that_of_the_write() {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), "demo-engine", "(default)").await;
    put_json(&database, &[("p/a", r#"{"n": 1}"#)]).await;
    let before = database.current_read_time().await.unwrap();
    run_ok(
        &database,
        "db.transform('p', (data) => ({ ...data, log: FieldValue.arrayUnion({ at: FieldValue.serverTimestamp() }) }));\n\
         db.transform('p', (data) => ({ ...data, at: FieldValue.serverTimestamp() }));\n\
         const { at, log } = db.get('p/a').data;\n\
         db.log(at.seconds, log[0].at.seconds);",
    )
    .await;
    let found = database.get_documents(&[path("p/a")], None).await.unwrap().found;
    let fields = canonical::decode(found.last().unwrap().body).unwrap();
    let Value::Array(log) = &fields["log"] else {
        panic!("{fields:?}")
    };
    let Value::Map(entry) = &log[0] else {
        panic!("{fields:?}")
    };
    for value in [&fields["at"], &entry["at"]] {
        let Value::Timestamp(time) = value else {
            panic!("{fields:?}")
        };
        assert!(time.seconds >= before.seconds, "{fields:?}");
    }
}

/// Lost answers: what was written is written once.
#[tokio::test(flavor = "multi_thread")]
async fn increments_count_once_when_answers_get_lost() {
    let lost = Fault::new(
        Rpc::BatchWrite,
        When::EveryNth(2),
        Effect::ResetAfter { documents: 0 },
    );
    let sandbox = sandbox_with(SandboxConfig {
        faults: FaultPlan {
            faults: vec![lost],
            ..FaultPlan::default()
        },
        ..SandboxConfig::default()
    })
    .await;
    let database = connect(&sandbox.address().to_string(), "demo-lost", "(default)").await;
    let documents = (0..300).map(|n| (format!("p/{n:03}"), fields(r#"{"n": 1}"#)));
    put(&database, documents).await;
    run_ok(
        &database,
        "for (let round = 0; round < 5; round += 1) { db.transform('p', (data) => ({ n: data.n + 1 }));\n\
         for (const doc of db.documents('p')) doc.update({ n: FieldValue.increment(1) });\n\
         for (let n = 0; n < 50; n += 1) db.create(`q/${round}-${n}`, { n }); }",
    )
    .await;
    for n in 0..300 {
        let found = get(&database, &format!("p/{n:03}")).await.unwrap();
        assert_eq!(found["n"], Value::Integer(11), "{n}");
    }
}

/// Writes to one document keep their order, however they meet.
#[tokio::test(flavor = "multi_thread")]
async fn writes_to_one_document_keep_their_order() {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), "demo-order", "(default)").await;
    let (stats, _) = run_ok(
        &database,
        r#"
        for (let n = 0; n < 5000; n += 1) {
            db.set("hot/one", { n }, { merge: true });
            db.update("hot/one", { count: FieldValue.increment(1) });
            db.create(`cold/${n}`, { n });
            if (n % 1000 === 0) { db.delete("hot/other"); db.create("hot/other", { n }); }
        }
        db.assertEqual(db.get("hot/one").data, { n: 4999, count: 5000 });
        db.assertEqual(db.get("hot/other").data, { n: 4000 });
        "#,
    )
    .await;
    assert_eq!(stats.collections["cold"].created, 5000);
}

/// Runs a transform over so many documents, and says how much the process grew.
async fn transform_many(documents: i64) -> u64 {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), "demo-many", "(default)").await;
    let text = "x".repeat(200);
    let all = (0..documents).map(|n| {
        let fields = Fields::from([
            ("n".to_owned(), Value::Integer(n)),
            ("price".to_owned(), Value::Double(n as f64)),
            ("text".to_owned(), Value::String(text.clone())),
        ]);
        (format!("products/p{n:07}"), fields)
    });
    put(&database, all).await;
    let script = load(migrate(
        "db.assertEqual(db.transform('products', (data) => ({ ...data, half: data.n / 2 })), db.count('products'));",
    ))
    .unwrap();
    let before = resident();
    let options = RunOptions::new(RunMode::write(&database, Arc::new(NoJournal)));
    let stats = script
        .run(Function::Migrate, &database, options, &Progress::new())
        .await
        .unwrap();
    assert_eq!(stats.updated, documents as u64);
    let database_growth = documents as u64 * 2000;
    let last = get(&database, &format!("products/p{:07}", documents - 1))
        .await
        .unwrap();
    assert_eq!(last["price"], Value::Double((documents - 1) as f64));
    resident().saturating_sub(before + database_growth)
}

/// The process's peak of resident memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn some_thousand_documents_are_transformed() {
    transform_many(6_000).await;
}

/// In release, by itself: `cargo test --release --test it -- --ignored a_hundred_thousand_documents`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a release build to be quick"]
async fn a_hundred_thousand_documents_are_transformed_in_bounded_memory() {
    let grown = transform_many(100_000).await;
    assert!(grown < 256 << 20, "{grown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn some_thousand_documents_on_the_emulator() {
    let Some(address) = emulator() else { return };
    let database = connect(address, &project("many"), "(default)").await;
    let all = (0..2_000).map(|n| {
        let fields = Fields::from([("n".to_owned(), Value::Integer(n))]);
        (format!("products/p{n:07}"), fields)
    });
    put(&database, all).await;
    let (stats, _) = run_ok(
        &database,
        "db.assertEqual(db.transform('products', (data) => ({ ...data, half: data.n / 2 })), 2000);",
    )
    .await;
    assert_eq!(stats.updated, 2000);
    assert_eq!(
        json(&database, "products/p0000003").await,
        r#"{"half":1.5,"n":3}"#
    );
}

/// The first of a scan's documents are there before the last ones are read.
#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_is_left_stops_reading() {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), "demo-lazy", "(default)").await;
    let all = (0..20_000).map(|n| {
        let fields = Fields::from([("n".to_owned(), Value::Integer(n))]);
        (format!("numbers/{n:07}"), fields)
    });
    put(&database, all).await;
    let script = load(migrate(
        "for (const doc of db.documents('numbers')) { db.log(doc.id); break; }",
    ))
    .unwrap();
    let ran = run_function(&database, &script, Function::Migrate).await;
    assert_eq!(ran.log, ["0000000"]);
    let read = ran.result.unwrap().read;
    assert!(read <= 5 * 512, "{read}");
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// A scan that takes longer than the database keeps its past goes on where it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_scan_outlives_the_past() {
    let sandbox = sandbox_with(SandboxConfig {
        history: Duration::from_millis(400),
        ..SandboxConfig::default()
    })
    .await;
    let database = connect(&sandbox.address().to_string(), "demo-past", "(default)").await;
    let all = (0..25_000).map(|n| {
        let fields = Fields::from([("n".to_owned(), Value::Integer(n))]);
        (format!("numbers/{n:07}"), fields)
    });
    put(&database, all).await;
    let (_, log) = run_ok(
        &database,
        r#"
        let count = 0, last = "";
        for (const doc of db.documents("numbers", { limit: 24000 })) {
            db.assert(doc.path > last); last = doc.path; count += 1;
            if (count % 8000 === 0) for (const until = Date.now() + 900; Date.now() < until; );
        }
        db.log(count, last);
        db.log(db.copyCollection("numbers", "copies"), db.count("copies"));
        "#,
    )
    .await;
    assert_eq!(log, ["24000 numbers/0023999", "25000 25000"]);
}

/// The database may have done a write whose status says that it timed out. What is done once is not done again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_in_spite_of_its_status_is_not_done_again() {
    for code in [Code::DeadlineExceeded, Code::Internal, Code::Unavailable] {
        let sandbox = sandbox().await;
        let database = connect(&sandbox.address().to_string(), "demo-engine", "(default)").await;
        let items = (0..40).map(|number| (format!("items/i{number}"), fields(r#"{"n": 1, "m": 1}"#)));
        put(&database, items).await;
        let done = Fault::done_write(code, "", When::EveryNth(3));
        sandbox.faults().add(done);
        let (stats, _) = run_ok(
            &database,
            r#"
            for (const item of db.documents("items")) item.update({ n: FieldValue.increment(1) });
            db.transform("items", (item) => ({ ...item, m: item.m + 1 }));
            db.create("items/new", { n: 2, m: 2 });
            "#,
        )
        .await;
        assert_eq!(stats.created, 1);
        sandbox.faults().clear();
        for number in 0..40 {
            let name = format!("items/i{number}");
            assert_eq!(
                json(&database, &name).await,
                r#"{"m":2,"n":2}"#,
                "{code:?} {name}"
            );
        }
    }
}

/// The declarations that editors complete from have what scripts find, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn what_scripts_find_is_declared() {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), "demo-declared", "(default)").await;
    let script = "
        const members = (...objects) => [...new Set(objects.flatMap((one) => Object.getOwnPropertyNames(one)))];
        const of = (one) => members(one, Object.getPrototypeOf(one));
        const statics = (one) => members(one).filter((name) => !['length', 'name', 'prototype'].includes(name));
        const found = {
          Timestamp: [...of(new Timestamp(1)), ...statics(Timestamp)],
          GeoPoint: [...of(new GeoPoint(1, 2)), ...statics(GeoPoint)],
          DocumentReference: [...of(new DocumentReference('a/b')), ...statics(DocumentReference)],
          Bytes: [...of(Bytes.fromBase64String('AA==')), ...statics(Bytes)],
          Vector: [...of(new Vector([1])), ...statics(Vector)],
          Double: of(Double(1)),
          FieldValue: statics(FieldValue),
          Database: of(db),
        };
        db.create('a/b', {});
        found.Document = of(db.get('a/b'));
        const inherent = ['constructor', 'toJSON', 'toString', 'valueOf'];
        for (const name of Object.keys(found)) {
          const names = [...new Set(found[name])].filter((member) => !inherent.includes(member)).sort();
          db.log(`${name}: ${names.join(' ')}`);
        }
        ";
    let (_, mut found) = run_ok(&database, script).await;
    let mut declared: Vec<String> = Vec::new();
    // The class or interface whose members come, and how far in it is.
    let mut open: Option<(String, Vec<String>, usize)> = None;
    for line in include_str!("../../migrations/firebank.d.ts").lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim_start();
        let words: Vec<&str> = line.split(|char: char| !char.is_alphanumeric()).collect();
        match &mut open {
            None => {
                if let ["class" | "interface", name, ..] = words[..] {
                    open = Some((name.to_owned(), Vec::new(), indent));
                }
            }
            Some((name, members, at)) if indent == *at && line == "}" => {
                members.sort();
                members.dedup();
                if !["SetOptions", "QueryOptions"].contains(&name.as_str()) {
                    declared.push(format!("{name}: {}", members.join(" ")));
                }
                open = None;
            }
            Some((_, members, at)) if indent == *at + 2 => {
                let modifiers = ["static", "readonly", "private"];
                let name = words.iter().find(|word| !modifiers.contains(word));
                let name = name.filter(|name| name.starts_with(char::is_alphabetic));
                members.extend(
                    name.filter(|name| !["constructor", "valueOf"].contains(name))
                        .map(|name| (*name).to_owned()),
                );
            }
            Some(_) => {}
        }
    }
    found.sort();
    declared.sort();
    assert_eq!(found, declared);
}
