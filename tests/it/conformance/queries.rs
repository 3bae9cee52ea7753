//! Queries: what they select, return and refuse, and at which time.

use firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    CollectionSelector, CompositeFilter, Direction, FieldFilter, Filter, UnaryFilter, composite_filter,
    field_filter, filter::FilterType, unary_filter,
};
use firestore::gcloud_sdk::google::firestore::v1::{
    RunQueryResponse, StructuredQuery, Value, run_query_response,
};
use firestore::gcloud_sdk::prost_types::Timestamp;

use super::client::*;

const PATHS: &[&str] = &["a/1", "a/2", "a/2/s/1", "a/3", "b/1", "m/x/s/1", "m/x/s/2/s/3"];

fn by_name(query: StructuredQuery) -> StructuredQuery {
    StructuredQuery {
        order_by: vec![by("__name__", Direction::Ascending)],
        ..query
    }
}

pub(crate) async fn selectors_choose_collections(server: &Server) {
    server.put_all(PATHS).await;
    assert_eq!(server.paths(collection("a", false)).await, ["a/1", "a/2", "a/3"]);
    assert_eq!(server.paths(collection("s", false)).await, [""; 0]);
    assert_eq!(
        server.paths(collection("s", true)).await,
        ["a/2/s/1", "m/x/s/1", "m/x/s/2/s/3"]
    );
    let children = query(|query| query.from = vec![CollectionSelector::default()]);
    assert_eq!(server.paths(children).await, ["a/1", "a/2", "a/3", "b/1"]);
    assert_eq!(
        server.paths(query(|query| query.from.clear())).await,
        ["a/1", "a/2", "a/3", "b/1"]
    );
    let below = |query| async {
        server
            .run_at(&server.name("m/x"), query, None)
            .await
            .unwrap()
            .len()
    };
    assert_eq!(below(collection("s", false)).await, 1);
    assert_eq!(below(collection("s", true)).await, 2);
    assert_eq!(below(kindless()).await, 2);
    let two = query(|query| query.from = vec![CollectionSelector::default(); 2]);
    assert_eq!(code(server.run(two).await), 3);
    assert_eq!(code(server.run_at(&server.name("a"), kindless(), None).await), 3);
}

pub(crate) async fn limits_and_offsets_count_documents(server: &Server) {
    server.put_all(PATHS).await;
    assert_eq!(server.paths(limited(kindless(), 3)).await, PATHS[..3]);
    assert_eq!(server.paths(limited(kindless(), 100)).await, PATHS);
    assert_eq!(server.paths(limited(kindless(), 0)).await, [""; 0]);
    let skipping = limited(query(|query| query.offset = 2), 2);
    assert_eq!(server.paths(skipping.clone()).await, PATHS[2..4]);
    let answers = server.answers(&server.root(), skipping, None).await.unwrap();
    assert_eq!(
        answers
            .iter()
            .map(|answer| answer.skipped_results)
            .collect::<Vec<_>>(),
        [2, 0]
    );
    assert_eq!(server.paths(query(|query| query.offset = 20)).await, [""; 0]);
    assert_eq!(code(server.run(limited(kindless(), -1)).await), 3);
    assert_eq!(code(server.run(query(|query| query.offset = -1)).await), 3);
}

/// Every answer says the read time; the last one says that it is the last, with a document or without.
pub(crate) async fn answers_say_their_time_and_the_end(server: &Server) {
    server.put_all(PATHS).await;
    let done = |answer: &RunQueryResponse| {
        answer.continuation_selector == Some(run_query_response::ContinuationSelector::Done(true))
    };
    let answers = server.answers(&server.root(), kindless(), None).await.unwrap();
    assert_eq!(answers.len(), PATHS.len());
    assert!(
        answers
            .iter()
            .all(|answer| answer.read_time.is_some() && answer.document.is_some())
    );
    assert_eq!(answers.iter().position(done), Some(PATHS.len() - 1));
    let nothing = query(|query| query.start_at = server.cursor("z/z", true));
    let answers = server.answers(&server.root(), nothing, None).await.unwrap();
    assert_eq!(answers.len(), 1);
    assert!(answers[0].read_time.is_some() && answers[0].document.is_none() && done(&answers[0]));
}

pub(crate) async fn projections_keep_names_and_times(server: &Server) {
    let fields = [
        ("n", integer(1)),
        ("m", map(&[("a", integer(1)), ("b", integer(2))])),
        ("x y", integer(3)),
    ];
    let time = server.put("a/1", &fields).await;
    for (select, names) in [
        (&["__name__"][..], &[][..]),
        (&[], &[]),
        (&["n"], &["n"]),
        (&["n", "__name__"], &["n"]),
        (&["`x y`", "nothing"], &["x y"]),
    ] {
        let found = server.run(selecting(kindless(), select)).await.unwrap();
        assert_eq!(found.len(), 1, "{select:?}");
        assert_eq!(found[0].name, server.name("a/1"));
        assert_eq!(
            (found[0].create_time, found[0].update_time),
            (Some(time), Some(time))
        );
        let mut fields: Vec<&str> = found[0].fields.keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, names, "{select:?}");
    }
    let found = server.run(selecting(kindless(), &["m.a"])).await.unwrap();
    assert_eq!(found[0].fields["m"], map(&[("a", integer(1))]));
    assert_eq!(code(server.run(selecting(kindless(), &["a..b"])).await), 3);
}

pub(crate) async fn cursors_are_checked(server: &Server) {
    server.put_all(PATHS).await;
    let starting = |cursor| {
        by_name(StructuredQuery {
            start_at: cursor,
            ..collection("a", false)
        })
    };
    assert_eq!(server.paths(starting(server.cursor("a/2", false))).await, ["a/3"]);
    assert_eq!(
        server.paths(starting(server.cursor("a/2/s/1", false))).await,
        ["a/3"]
    );
    assert_eq!(server.paths(starting(server.cursor("b/2", false))).await, [""; 0]);
    let group = StructuredQuery {
        start_at: server.cursor("b/1", false),
        ..collection("s", true)
    };
    assert_eq!(server.paths(by_name(group)).await, ["m/x/s/1", "m/x/s/2/s/3"]);
    let crossed = query(|query| {
        query.start_at = server.cursor("b/2", false);
        query.end_at = server.cursor("a/1", true);
    });
    assert_eq!(server.paths(crossed).await, [""; 0]);
    let cursor = |values| {
        query(|query| {
            query.start_at =
                Some(firestore::gcloud_sdk::google::firestore::v1::Cursor { values, before: true })
        })
    };
    assert_eq!(server.paths(cursor(vec![])).await, PATHS);
    for values in [
        vec![text("a/1")],
        vec![server.reference("b")],
        vec![server.reference("b/__x__")],
        vec![server.reference("a/1"), server.reference("a/1")],
    ] {
        assert_eq!(code(server.run(cursor(values.clone())).await), 3, "{values:?}");
    }
    let unordered = StructuredQuery {
        start_at: server.cursor("a/2", false),
        ..collection("a", false)
    };
    assert_eq!(code(server.run(unordered).await), 3);
}

pub(crate) async fn descending_names_are_refused(server: &Server) {
    server.put_all(PATHS).await;
    let descending = |query| StructuredQuery {
        order_by: vec![by("__name__", Direction::Descending)],
        ..query
    };
    assert_eq!(code(server.run(descending(kindless())).await), 3);
    assert_eq!(code(server.run(descending(collection("a", false))).await), 9);
}

pub(crate) async fn reads_see_the_past(server: &Server) {
    let first = server.put("a/1", &[("n", integer(1))]).await;
    let second = server.put("a/1", &[("n", integer(2))]).await;
    server.put("a/2", &[]).await;
    let both = server.now().await;
    server.delete("a/1").await;
    assert!((first.seconds, first.nanos) < (second.seconds, second.nanos));
    let at = |time| async move {
        server
            .run_at(&server.root(), kindless(), Some(time))
            .await
            .unwrap()
    };
    assert_eq!(at(first).await[0].fields["n"], integer(1));
    assert_eq!(at(second).await[0].fields["n"], integer(2));
    assert_eq!(at(both).await.len(), 2);
    assert_eq!(at(server.now().await).await.len(), 1);
    let just_before = Timestamp {
        nanos: first.nanos - 1000,
        ..first
    };
    if first.nanos >= 1000 {
        assert_eq!(at(just_before).await.len(), 0);
    }
    let future = Timestamp {
        seconds: both.seconds + 3600,
        ..both
    };
    assert_eq!(
        code(server.run_at(&server.root(), kindless(), Some(future)).await),
        3
    );
    let answers = server
        .answers(&server.root(), kindless(), Some(both))
        .await
        .unwrap();
    assert!(answers.iter().all(|answer| answer.read_time == Some(both)));
}

fn field_filter(path: &str, operator: field_filter::Operator, value: Value) -> Filter {
    let filter = FieldFilter {
        field: Some(field(path)),
        op: operator as i32,
        value: Some(value),
    };
    Filter {
        filter_type: Some(FilterType::FieldFilter(filter)),
    }
}

fn unary(path: &str, operator: unary_filter::Operator) -> Filter {
    let operand = Some(unary_filter::OperandType::Field(field(path)));
    Filter {
        filter_type: Some(FilterType::UnaryFilter(UnaryFilter {
            op: operator as i32,
            operand_type: operand,
        })),
    }
}

fn composite(operator: composite_filter::Operator, filters: Vec<Filter>) -> Filter {
    Filter {
        filter_type: Some(FilterType::CompositeFilter(CompositeFilter {
            op: operator as i32,
            filters,
        })),
    }
}

pub(crate) async fn filters_select_by_value(server: &Server) {
    use composite_filter::Operator::{And, Or};
    use field_filter::Operator::*;
    use unary_filter::Operator::{IsNan, IsNotNan, IsNotNull, IsNull};
    for (id, value) in [
        ("array", array(vec![integer(1), text("x")])),
        ("five", integer(5)),
        ("five-and-a-half", double(5.5)),
        ("five-as-double", double(5.0)),
        ("map", map(&[("x", integer(1))])),
        ("minus", integer(-1)),
        ("nan", double(f64::NAN)),
        ("null", null()),
        ("text", text("five")),
        ("true", boolean(true)),
    ] {
        server
            .put(&format!("v/{id}"), &[("v", value), ("k", text(id))])
            .await;
    }
    server.put("v/without", &[]).await;
    let cases = [
        (field_filter("v", Equal, integer(5)), "five five-as-double"),
        (field_filter("v", Equal, text("five")), "text"),
        (field_filter("v", Equal, map(&[("x", integer(1))])), "map"),
        (field_filter("v", LessThan, integer(5)), "minus"),
        (
            field_filter("v", LessThanOrEqual, integer(5)),
            "minus five five-as-double",
        ),
        (field_filter("v", GreaterThan, double(5.0)), "five-and-a-half"),
        (
            field_filter("v", GreaterThanOrEqual, integer(5)),
            "five five-as-double five-and-a-half",
        ),
        (field_filter("v", GreaterThanOrEqual, text("a")), "text"),
        (
            field_filter("v", NotEqual, integer(5)),
            "true nan minus five-and-a-half text array map",
        ),
        (field_filter("v", ArrayContains, text("x")), "array"),
        (
            field_filter("v", ArrayContainsAny, array(vec![text("y"), integer(1)])),
            "array",
        ),
        (
            field_filter("v", In, array(vec![integer(5), text("five")])),
            "five five-as-double text",
        ),
        (
            field_filter("v", NotIn, array(vec![integer(5), text("five")])),
            "true nan minus five-and-a-half array map",
        ),
        (unary("v", IsNull), "null"),
        (unary("v", IsNan), "nan"),
        (
            unary("v", IsNotNull),
            "true nan minus five five-as-double five-and-a-half text array map",
        ),
        (
            unary("v", IsNotNan),
            "true minus five five-as-double five-and-a-half text array map",
        ),
        (
            composite(
                And,
                vec![
                    field_filter("v", GreaterThan, integer(0)),
                    field_filter("v", LessThan, double(5.5)),
                ],
            ),
            "five five-as-double",
        ),
        (
            composite(
                Or,
                vec![
                    field_filter("v", Equal, integer(5)),
                    field_filter("k", Equal, text("null")),
                ],
            ),
            "five five-as-double null",
        ),
        (
            field_filter("__name__", GreaterThan, server.reference("v/text")),
            "true without",
        ),
    ];
    for (filter, expected) in cases {
        let query = StructuredQuery {
            r#where: Some(filter.clone()),
            ..collection("v", false)
        };
        let found = server.paths(query).await.join(" ").replace("v/", "");
        assert_eq!(found, expected, "{filter:?}");
    }
    let kindless = query(|query| query.r#where = Some(field_filter("v", Equal, integer(5))));
    assert_eq!(code(server.run(kindless).await), 3);
}

pub(crate) async fn orders_follow_the_order_of_values(server: &Server) {
    let ascending = [
        ("null", null()),
        ("false", boolean(false)),
        ("true", boolean(true)),
        ("nan", double(f64::NAN)),
        ("least", double(f64::NEG_INFINITY)),
        ("minus", integer(-3)),
        ("half", double(0.5)),
        ("one", integer(1)),
        ("big", integer(i64::MAX)),
        ("time", timestamp(1, 0)),
        ("text", text("a")),
        ("bytes", bytes(&[0])),
        ("reference", server.reference("a/b")),
        ("point", point(1.0, 2.0)),
        ("array", array(vec![integer(2)])),
        ("array-longer", array(vec![integer(2), integer(0)])),
        ("vector", vector(&[1.0])),
        ("map", map(&[])),
        ("map-a", map(&[("a", integer(1))])),
        ("map-b", map(&[("b", integer(0))])),
    ];
    for (id, value) in &ascending {
        server.put(&format!("o/{id}"), &[("v", value.clone())]).await;
    }
    server.put("o/without", &[]).await;
    let ordered = |direction| StructuredQuery {
        order_by: vec![by("v", direction)],
        ..collection("o", false)
    };
    let mut expected: Vec<String> = ascending.iter().map(|(id, _)| format!("o/{id}")).collect();
    assert_eq!(server.paths(ordered(Direction::Ascending)).await, expected);
    let from_one = StructuredQuery {
        start_at: Some(firestore::gcloud_sdk::google::firestore::v1::Cursor {
            values: vec![integer(1)],
            before: false,
        }),
        ..limited(ordered(Direction::Ascending), 2)
    };
    assert_eq!(server.paths(from_one).await, ["o/big", "o/time"]);
    expected.reverse();
    assert_eq!(server.paths(ordered(Direction::Descending)).await, expected);
}

/// What a backup asks that goes by a field: a collection group, from a time on, between names, in the order of the field; counted, in pages, and
/// as of a past time.
pub(crate) async fn changes_are_asked_by_field_and_name(server: &Server) {
    use field_filter::Operator::*;
    for (path, at) in [
        ("g/1", 10),
        ("g/2", 40),
        ("g/3", 30),
        ("g/4", 30),
        ("g/5", 20),
        ("p/x/g/1", 35),
        ("p/y/g/1", 36),
        ("p/y/h/1", 37),
        ("q/__id7__/g/__id7__", 38),
    ] {
        server
            .put(path, &[("meta", map(&[("at", timestamp(at, 5000))]))])
            .await;
    }
    server.put("g/6", &[("meta", map(&[("at", integer(99))]))]).await;
    server.put("g/7", &[("meta", text("none"))]).await;
    let before = server.now().await;
    server
        .put("g/2", &[("meta", map(&[("at", timestamp(50, 0))]))])
        .await;
    server.delete("g/3").await;
    let changed = |bounds: &[(field_filter::Operator, &str)]| {
        let names = bounds.iter().map(|(operator, path)| {
            let name = server.reference(path);
            field_filter("__name__", *operator, name)
        });
        let since = field_filter("meta.at", GreaterThanOrEqual, timestamp(30, 5000));
        StructuredQuery {
            r#where: Some(composite(
                composite_filter::Operator::And,
                std::iter::once(since).chain(names).collect(),
            )),
            order_by: vec![
                by("meta.at", Direction::Ascending),
                by("__name__", Direction::Ascending),
            ],
            ..collection("g", true)
        }
    };
    let all = ["g/4", "p/x/g/1", "p/y/g/1", "q/__id7__/g/__id7__", "g/2"];
    assert_eq!(server.paths(changed(&[(GreaterThan, "a/0")])).await, all);
    type Bounds<'a> = &'a [(field_filter::Operator, &'a str)];
    let cases: [(Bounds<'_>, &[&str]); 6] = [
        (
            &[(GreaterThanOrEqual, "g/4"), (LessThan, "p/y/g/1")],
            &["g/4", "p/x/g/1"],
        ),
        (
            &[(GreaterThan, "g/4"), (LessThanOrEqual, "p/y/g/1")],
            &["p/x/g/1", "p/y/g/1"],
        ),
        (
            &[(GreaterThanOrEqual, "p/y/g/1")],
            &["p/y/g/1", "q/__id7__/g/__id7__"],
        ),
        (
            &[
                (GreaterThanOrEqual, "p/__id-9223372036854775808__"),
                (LessThan, "p\0/__id-9223372036854775808__"),
            ],
            &["p/x/g/1", "p/y/g/1"],
        ),
        (&[(LessThan, "g/4")], &["g/2"]),
        (&[(GreaterThan, "z/z")], &[]),
    ];
    for (bounds, expected) in cases {
        let query = changed(bounds);
        assert_eq!(server.paths(query.clone()).await, expected, "{bounds:?}");
        let counted = count(server, query, None, None).await.unwrap();
        assert_eq!(counted, expected.len() as i64, "{bounds:?}");
    }
    // In pages.
    let mut cursor = None;
    for path in all {
        let page = StructuredQuery {
            start_at: cursor.take(),
            ..limited(changed(&[(GreaterThan, "a/0")]), 1)
        };
        let found = server.run(page).await.unwrap();
        assert_eq!(server.path(&found[0].name), path);
        let values = vec![
            field_value(&found[0].fields["meta"], "at"),
            server.reference(path),
        ];
        cursor = Some(firestore::gcloud_sdk::google::firestore::v1::Cursor {
            values,
            before: false,
        });
    }
    let then = server
        .run_at(&server.root(), changed(&[(LessThan, "p/0")]), Some(before))
        .await
        .unwrap();
    let then: Vec<String> = then.iter().map(|document| server.path(&document.name)).collect();
    assert_eq!(then, ["g/3", "g/4", "g/2"]);
    assert_eq!(
        count(server, changed(&[(LessThan, "p/0")]), None, Some(before))
            .await
            .unwrap(),
        3
    );
}

fn field_value(map: &Value, key: &str) -> Value {
    use firestore::gcloud_sdk::google::firestore::v1::value::ValueType::MapValue;
    match &map.value_type {
        Some(MapValue(map)) => map.fields[key].clone(),
        other => panic!("{other:?}"),
    }
}
