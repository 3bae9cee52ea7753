//! Aggregations: count, sum and average.

use std::collections::HashMap;
use std::ops::ControlFlow;

use ::firestore::gcloud_sdk::google::firestore::v1::structured_aggregation_query::{
    Aggregation, aggregation::Operator,
};
use ::firestore::gcloud_sdk::google::firestore::v1::{Value, value::ValueType};
use tonic::Status;

use super::database::{Database, Micros, Run};
use super::query::{Plan, Walk, look};
use super::values::FieldPath;
use crate::document::key as keys;

/// The results by their aliases, and how many index entries were counted.
pub(crate) fn run(
    walk: &mut Walk,
    aggregations: &[Aggregation],
) -> Result<(HashMap<String, Value>, u64), Status> {
    if aggregations.is_empty() || aggregations.len() > 5 {
        return Err(Status::invalid_argument(
            "An aggregation query needs between one and five aggregations.",
        ));
    }
    let counts_only = |aggregation: &Aggregation| matches!(aggregation.operator, Some(Operator::Count(_)));
    let mut sums = Sums::new(aggregations)?;
    if walk.plan.counts_by_range() && aggregations.iter().all(counts_only) {
        sums.count = count_range(&walk.database, &walk.plan, walk.time);
    } else {
        loop {
            let page = walk.next(4096)?;
            if page.is_empty() {
                break;
            }
            page.iter().for_each(|found| sums.add(found));
        }
    }
    let entries = sums.count;
    let mut results = HashMap::new();
    for (index, aggregation) in aggregations.iter().enumerate() {
        let alias = match aggregation.alias.as_str() {
            "" => format!("field_{}", index + 1),
            alias => alias.to_owned(),
        };
        if results
            .insert(
                alias,
                Value {
                    value_type: Some(sums.result(index, aggregation)?),
                },
            )
            .is_some()
        {
            return Err(Status::invalid_argument(
                "Aggregation aliases contain a duplicate alias.",
            ));
        }
    }
    Ok((results, entries))
}

/// How many documents a query by name finds, its offset and limit applied.
fn count_range(database: &Database, plan: &Plan, time: Micros) -> u64 {
    let wanted = plan.limit.map(|limit| limit as u64 + plan.offset as u64);
    let mut count = 0;
    database.visit(&plan.position, time, &mut |run| {
        count += match run {
            Run::One(key, _) => u64::from(plan.selects(key)),
            Run::Synthetic(source, range)
                if plan.accepts_root_collection(keys::first_segment(source.prefix())) =>
            {
                range.end - range.start
            }
            Run::Synthetic(..) => 0,
        };
        if wanted.is_some_and(|wanted| count >= wanted) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let count = wanted.map_or(count, |wanted| count.min(wanted));
    count.saturating_sub(plan.offset as u64)
}

struct Sum {
    path: FieldPath,
    numbers: u64,
    /// The sum as long as it is one of integers and does not overflow.
    integer: Option<i64>,
    double: f64,
}

struct Sums {
    count: u64,
    /// For each aggregation that has a field.
    fields: Vec<Option<Sum>>,
}

impl Sums {
    fn new(aggregations: &[Aggregation]) -> Result<Self, Status> {
        let field = |aggregation: &Aggregation| {
            let field = match &aggregation.operator {
                Some(Operator::Count(_)) => return Ok(None),
                Some(Operator::Sum(sum)) => sum.field.as_ref(),
                Some(Operator::Avg(average)) => average.field.as_ref(),
                None => None,
            };
            let field = field
                .ok_or_else(|| Status::invalid_argument("An aggregation needs an operator and a field."))?;
            Ok(Some(Sum {
                path: FieldPath::parse(&field.field_path)?,
                numbers: 0,
                integer: Some(0),
                double: 0.0,
            }))
        };
        Ok(Self {
            count: 0,
            fields: aggregations.iter().map(field).collect::<Result<_, Status>>()?,
        })
    }

    fn add(&mut self, found: &super::database::Found) {
        self.count += 1;
        if self.fields.iter().all(Option::is_none) {
            return;
        }
        let document = look(found);
        for sum in self.fields.iter_mut().flatten() {
            match document
                .get(&sum.path)
                .and_then(|value| value.value_type.as_ref())
            {
                Some(ValueType::IntegerValue(number)) => {
                    sum.integer = sum.integer.and_then(|integer| integer.checked_add(*number));
                    sum.double += *number as f64;
                }
                Some(ValueType::DoubleValue(number)) => {
                    sum.integer = None;
                    sum.double += number;
                }
                _ => continue,
            }
            sum.numbers += 1;
        }
    }

    fn result(&self, index: usize, aggregation: &Aggregation) -> Result<ValueType, Status> {
        Ok(match (&aggregation.operator, &self.fields[index]) {
            (Some(Operator::Count(count)), _) => {
                let up_to = count.up_to.map(|up_to| up_to.max(0) as u64);
                ValueType::IntegerValue(self.count.min(up_to.unwrap_or(u64::MAX)) as i64)
            }
            (Some(Operator::Sum(_)), Some(sum)) => sum
                .integer
                .map_or(ValueType::DoubleValue(sum.double), ValueType::IntegerValue),
            (_, Some(sum)) if sum.numbers > 0 => ValueType::DoubleValue(sum.double / sum.numbers as f64),
            _ => ValueType::NullValue(0),
        })
    }
}
