//! PartitionQuery: cursors that cut a collection group into parts of about the same size.

use std::ops::ControlFlow;

use ::firestore::gcloud_sdk::google::firestore::v1::{Cursor, Value, value::ValueType};
use xxhash_rust::xxh3::xxh3_64;

use super::database::{Database, Micros, Run};
use super::query::{Plan, look};
use crate::document::key as keys;

/// The fewest documents that a part holds, about: Firestore does not cut finer.
const MIN_PART: u64 = 128;

/// Up to `count` cursors, in no order.
pub(crate) fn cursors(database: &Database, plan: &Plan, time: Micros, count: u64) -> Vec<Cursor> {
    let mut total = 0;
    walk(database, plan, time, &mut |run| {
        total += match run {
            Run::One(..) => 1,
            Run::Synthetic(_, range) => range.end - range.start,
        };
    });
    let parts = (count + 1).min(total / MIN_PART).max(1);
    let boundary = |part: u64| (u128::from(total) * u128::from(part) / u128::from(parts)) as u64;
    let mut names = Vec::new();
    let (mut passed, mut part) = (0, 1);
    walk(database, plan, time, &mut |run| {
        let length = match &run {
            Run::One(..) => 1,
            Run::Synthetic(_, range) => range.end - range.start,
        };
        while part < parts && boundary(part) < passed + length {
            names.push(match &run {
                Run::One(_, found) => look(found).name,
                Run::Synthetic(source, range) => Value {
                    value_type: Some(ValueType::ReferenceValue(
                        source.name(range.start + boundary(part) - passed),
                    )),
                },
            });
            part += 1;
        }
        passed += length;
    });
    let mut cursors: Vec<Cursor> = names
        .into_iter()
        .map(|name| Cursor {
            values: vec![name],
            before: true,
        })
        .collect();
    // The contract promises no order, so a client that counts on one shall notice.
    cursors.sort_by_cached_key(|cursor| xxh3_64(format!("{cursor:?}").as_bytes()));
    cursors
}

fn walk(database: &Database, plan: &Plan, time: Micros, visit: &mut dyn FnMut(Run<'_>)) {
    database.visit(&plan.position, time, &mut |run| {
        let selected = match &run {
            Run::One(key, _) => plan.selects(key),
            Run::Synthetic(source, _) => plan.accepts_root_collection(keys::first_segment(source.prefix())),
        };
        if selected {
            visit(run);
        }
        ControlFlow::Continue(())
    });
}
