//! Values through JavaScript and back: nothing may change that a script does not change.

use firebank::document::{Fields, GeoPoint, Reference, Timestamp, Value, canonical};
use firebank::firestore::Firestore;
use firebank::migration::{Function, RunMode, RunOptions};
use firebank::progress::Progress;

use crate::migration_support::{get, load, migrate, path, put, run, run_err, run_ok};
use crate::support::operations::{client, connect};
use crate::support::{emulator, project, sandbox};

fn reference(name: &str) -> Value {
    Value::Reference(Reference::Relative(path(name)))
}

fn vector(values: &[f64]) -> Value {
    let values = values.iter().copied().map(Value::Double).collect();
    Value::Map(
        [
            ("__type__".to_owned(), Value::String("__vector__".to_owned())),
            ("value".to_owned(), Value::Array(values)),
        ]
        .into(),
    )
}

/// Every type, with the values that are easily lost. What Google's emulator refuses is left out for it.
fn everything(for_emulator: bool) -> Fields {
    let double = Value::Double;
    let text = |text: &str| Value::String(text.to_owned());
    let mut fields: Fields = [
        ("null", Value::Null),
        ("true", Value::Boolean(true)),
        ("false", Value::Boolean(false)),
        ("zero", Value::Integer(0)),
        ("small", Value::Integer(-42)),
        ("int32", Value::Integer(3_000_000_000)),
        ("safe", Value::Integer(9_007_199_254_740_991)),
        ("beyond", Value::Integer(9_007_199_254_740_993)),
        ("largest", Value::Integer(i64::MAX)),
        ("smallest", Value::Integer(i64::MIN)),
        ("whole double", double(5.0)),
        ("double zero", double(0.0)),
        ("negative zero", double(-0.0)),
        ("half", double(0.5)),
        ("tiny", double(5e-324)),
        ("huge", double(1.797_693_134_862_315_7e308)),
        ("large whole double", double(9_007_199_254_740_994.0)),
        ("infinity", double(f64::INFINITY)),
        ("minus infinity", double(f64::NEG_INFINITY)),
        ("nan", double(f64::NAN)),
        (
            "time",
            Value::Timestamp(Timestamp::new(1_751_198_400, 123_456_000)),
        ),
        ("early", Value::Timestamp(Timestamp::new(-62_135_596_800, 0))),
        (
            "late",
            Value::Timestamp(Timestamp::new(253_402_300_799, 999_999_000)),
        ),
        ("text", text("Grüße, 😀\u{0}\n\"`$")),
        ("empty", text("")),
        ("bytes", Value::Bytes((0..=255).collect())),
        ("no bytes", Value::Bytes(Vec::new())),
        ("reference", reference("a/b/c/d")),
        (
            "elsewhere",
            Value::Reference(Reference::Absolute(
                "projects/other/databases/(default)/documents/a/b".to_owned(),
            )),
        ),
        (
            "place",
            Value::GeoPoint(GeoPoint {
                latitude: 52.5,
                longitude: -0.0,
            }),
        ),
        ("vector", vector(&[1.0, -2.5, 0.0])),
        (
            "array",
            Value::Array(vec![Value::Integer(1), double(1.0), Value::Null, text("x")]),
        ),
        ("empty array", Value::Array(Vec::new())),
        ("empty map", Value::Map(Fields::new())),
        ("constructor", text("a field like any other")),
        ("then", text("this too")),
        ("1", Value::Integer(1)),
        ("a.b`c\\d", Value::Integer(2)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    if !for_emulator {
        let odd = f64::from_bits(0xfff8_0000_0000_0001);
        fields.insert("odd nan".to_owned(), double(odd));
    }
    let mut nested = fields.clone();
    nested.insert("list".to_owned(), Value::Array(vec![Value::Map(fields.clone())]));
    fields.insert("map".to_owned(), Value::Map(nested));
    fields
}

async fn untouched(database: &Firestore, for_emulator: bool) {
    let fields = everything(for_emulator);
    put(database, [("values/all".to_owned(), fields.clone())]).await;
    // Looked at, copied by spreading and given back: nothing is written.
    let (stats, log) = run_ok(
        database,
        r#"
        const changed = db.transform("values", (data) => ({ ...data, map: { ...data.map, list: data.map.list.map((x) => ({ ...x })) } }));
        db.log(changed);
        "#,
    )
    .await;
    assert_eq!((stats.changed(), &log[..]), (0, &["0".to_owned()][..]));
    // Set as a new document: the types follow from the classes, and from what numbers are.
    run_ok(
        database,
        r#"
        const doc = db.get("values/all");
        db.set("values/all", { ...doc.data, marked: true });
        db.update("values/all", { marked: FieldValue.delete() });
        "#,
    )
    .await;
    let found = get(database, "values/all").await.unwrap();
    assert_eq!(found, fields);
    assert_eq!(canonical::encode(&found), canonical::encode(&fields));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_survives_javascript() {
    let sandbox = sandbox().await;
    let database = client(&sandbox, "demo-values").await;
    untouched(&database, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_survives_javascript_on_the_emulator() {
    let Some(address) = emulator() else { return };
    let database = connect(address, &project("values"), "(default)").await;
    untouched(&database, true).await;
}

/// A script sees what the facts say, and what it makes is what it says.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_see_values_as_classes_and_make_them() {
    let sandbox = sandbox().await;
    let database = client(&sandbox, "demo-classes").await;
    put(&database, [("values/all".to_owned(), everything(false))]).await;
    run_ok(
        &database,
        r#"
        const { data } = db.get("values/all");
        const is = (holds, what) => db.assert(holds, what);
        is(data.beyond === 9007199254740993n, "beyond");
        is(data.largest === 9223372036854775807n && data.smallest === -9223372036854775808n, "ends");
        is(data.safe === 9007199254740991, "safe");
        is(Object.is(data["negative zero"], -0) && Object.is(data["double zero"], 0), "zeros");
        is(data.time instanceof Timestamp && data.time.seconds === 1751198400 && data.time.nanoseconds === 123456000, "time");
        is(data.time.toDate().toISOString() === "2025-06-29T12:00:00.123Z", data.time.toDate().toISOString());
        is(data.early < data.time && data.time < data.late, "times compare");
        is(data.place instanceof GeoPoint && data.place.latitude === 52.5, "place");
        is(data.reference instanceof DocumentReference && data.reference.path === "a/b/c/d" && data.reference.id === "d", "reference");
        is(data.elsewhere.path === "projects/other/databases/(default)/documents/a/b", "elsewhere");
        is(data.bytes instanceof Bytes && data.bytes.toUint8Array()[255] === 255 && data.bytes.length === 256, "bytes");
        is(Bytes.fromBase64String(data.bytes.toBase64()).isEqual(data.bytes), "base 64");
        is(data.vector instanceof Vector && data.vector.toArray()[1] === -2.5, "vector");
        is(data.text.startsWith("Grüße, 😀\0"), "text");
        db.create("values/made", {
            integer: 5, double: Double(5), fraction: 5.5, negativeZero: -0, big: 10n ** 18n, large: 1e300,
            time: new Timestamp(5, 6000), date: new Date(1500), place: new GeoPoint(1, 2),
            reference: new DocumentReference("a/b"), bytes: Bytes.fromUint8Array(new Uint8Array([1, 200])),
            array: new Uint8Array([9]), vector: new Vector([1, 2]), map: { list: [1, Double(1), { x: null }] },
        });
        "#,
    )
    .await;
    let expected: Fields = [
        ("integer", Value::Integer(5)),
        ("double", Value::Double(5.0)),
        ("fraction", Value::Double(5.5)),
        ("negativeZero", Value::Double(-0.0)),
        ("big", Value::Integer(1_000_000_000_000_000_000)),
        ("large", Value::Double(1e300)),
        ("time", Value::Timestamp(Timestamp::new(5, 6000))),
        ("date", Value::Timestamp(Timestamp::new(1, 500_000_000))),
        (
            "place",
            Value::GeoPoint(GeoPoint {
                latitude: 1.0,
                longitude: 2.0,
            }),
        ),
        ("reference", reference("a/b")),
        ("bytes", Value::Bytes(vec![1, 200])),
        ("array", Value::Bytes(vec![9])),
        ("vector", vector(&[1.0, 2.0])),
        (
            "map",
            Value::Map(
                [(
                    "list".to_owned(),
                    Value::Array(vec![
                        Value::Integer(1),
                        Value::Double(1.0),
                        Value::Map([("x".to_owned(), Value::Null)].into()),
                    ]),
                )]
                .into(),
            ),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    assert_eq!(get(&database, "values/made").await.unwrap(), expected);
}

/// A number keeps the type that is stored, wherever it stands.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_keep_the_stored_type() {
    let sandbox = sandbox().await;
    let database = client(&sandbox, "demo-numbers").await;
    let fields: Fields = [
        ("price".to_owned(), Value::Double(10.0)),
        ("stock".to_owned(), Value::Integer(10)),
        (
            "sizes".to_owned(),
            Value::Array(vec![Value::Double(1.0), Value::Integer(1)]),
        ),
    ]
    .into();
    put(&database, [("products/p".to_owned(), fields)]).await;
    run_ok(
        &database,
        r#"
        db.transform("products", (data) => ({ price: data.price * 2, stock: data.stock * 2, sizes: data.sizes.map((x) => x + 1) }));
        db.update("products/p", { "deep.price": 3 });
        db.update("products/p", { price: 30 });
        "#,
    )
    .await;
    let expected: Fields = [
        ("price".to_owned(), Value::Double(30.0)),
        ("stock".to_owned(), Value::Integer(20)),
        (
            "sizes".to_owned(),
            Value::Array(vec![Value::Double(2.0), Value::Integer(2)]),
        ),
        (
            "deep".to_owned(),
            Value::Map([("price".to_owned(), Value::Integer(3))].into()),
        ),
    ]
    .into();
    assert_eq!(get(&database, "products/p").await.unwrap(), expected);
}

/// What Firestore cannot hold is refused where it is given, with the field's name.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_value_is_refused() {
    let sandbox = sandbox().await;
    let database = client(&sandbox, "demo-refused").await;
    let cases = [
        ("undefined", "undefined is no value"),
        ("() => 1", "a function is no value"),
        ("Symbol('x')", "a symbol is no value"),
        ("new Map()", "an object of class Map is no value"),
        ("2n ** 63n", "9223372036854775808n is beyond the 64 bits"),
        ("-(2n ** 63n) - 1n", "beyond the 64 bits"),
        ("'\\ud800'", "half a character"),
        ("[[1]]", "no arrays in arrays"),
        ("Promise.resolve(1)", "a promise is no value"),
        ("new Date(NaN)", "an invalid Date is no value"),
        (
            "(() => { const a = {}; a.a = a; return a; })()",
            "deeper than 100 levels",
        ),
        ("new DocumentReference('a')", "does not name a document"),
    ];
    for (value, expected) in cases {
        let body = format!("db.create('a/b', {{ outer: {{ field: {value} }} }});");
        let error = run_err(&database, &body).await;
        assert!(error.message.contains(expected), "{value}: {error}");
        assert!(error.message.contains("outer.field"), "{value}: {error}");
        assert_eq!(error.line, Some(2), "{value}: {error}");
    }
    assert_eq!(get(&database, "a/b").await, None);
    // And nothing was left behind that a later run would meet.
    let ran = run(&database, "db.assert(db.get('a/b') === null);").await;
    ran.result.unwrap();
    assert_eq!(sandbox.usage().writes, 0);
}

/// A name that JavaScript's objects have a meaning for. No server here stores it, so a dry run has to do.
#[tokio::test(flavor = "multi_thread")]
async fn the_field_proto_is_a_field() {
    let sandbox = sandbox().await;
    let database = client(&sandbox, "demo-proto").await;
    let script = load(migrate(
        r#"
        db.create("a/b", { ["__proto__"]: { x: 1 }, y: 2 });
        const { data } = db.get("a/b");
        db.assert(Object.hasOwn(data, "__proto__") && Object.getPrototypeOf(data) === Object.prototype && !("x" in data));
        db.create("a/c", { ...data, y: 3 });
        db.assertEqual(db.addField("a", "none", 1), 0);
        "#,
    ))
    .unwrap();
    let options = RunOptions::new(RunMode::DryRun { preview: 5 });
    let stats = script
        .run(Function::Migrate, &database, options, &Progress::new())
        .await
        .unwrap();
    let inner = Value::Map(Fields::from([("x".to_owned(), Value::Integer(1))]));
    for (change, y) in stats.preview.iter().zip([2, 3]) {
        let expected = Fields::from([
            ("__proto__".to_owned(), inner.clone()),
            ("y".to_owned(), Value::Integer(y)),
        ]);
        assert_eq!(change.after, Some(expected));
    }
    assert_eq!(stats.created, 2);
}

/// What scripts have beside the calls that read and write.
#[tokio::test(flavor = "multi_thread")]
async fn values_have_the_members_that_their_users_know() {
    let sandbox = sandbox().await;
    let database = connect(&sandbox.address().to_string(), "demo-members", "(default)").await;
    let (_, log) = run_ok(
        &database,
        r#"
        db.assert(Math.abs(Timestamp.now().toMillis() - Date.now()) < 600000);
        const date = new Date(Date.UTC(2025, 5, 29, 12, 0, 0, 250));
        db.assertEqual(Timestamp.fromDate(date), Timestamp.fromMillis(date.getTime()));
        db.assertEqual(Timestamp.fromDate(date).toDate().getTime(), date.getTime());
        db.assertEqual([Timestamp.fromMillis(-1).seconds, Timestamp.fromMillis(-1).nanoseconds], [-1, 999000000]);
        db.assert(Timestamp.fromMillis(-1) < Timestamp.fromMillis(0) && new Timestamp(9) < new Timestamp(10));
        const pairs = [
            [new Timestamp(1, 2), new Timestamp(1, 2), new Timestamp(1, 3)],
            [new GeoPoint(1, 2), new GeoPoint(1, 2), new GeoPoint(1, 3)],
            [new DocumentReference("a/b"), new DocumentReference("a/b"), new DocumentReference("a/c")],
            [new Vector([1, 2]), new Vector([1, 2]), new Vector([1, 2, 3])],
            [Bytes.fromBase64String("AQI="), Bytes.fromUint8Array(new Uint8Array([1, 2])), Bytes.fromBase64String("AQM=")],
        ];
        for (const [one, same, other] of pairs) {
            db.assert(one.isEqual(same) && !one.isEqual(other) && !one.isEqual(null), one);
            db.assert(pairs.every(([foreign]) => foreign === one || !one.isEqual(foreign)), one);
        }
        const deep = new DocumentReference("users/u1/orders/o1");
        db.assertEqual([deep.collection, deep.id, db.project], ["users/u1/orders", "o1", "demo-members"]);
        db.debug("debug", 1); db.warn("warn", 2); db.error("error", 3);
        "#,
    )
    .await;
    assert_eq!(log, ["debug 1", "warn 2", "error 3"]);
}
