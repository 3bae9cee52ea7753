//! Queries: what a `StructuredQuery` means, and the walk over the documents that answers it.
//!
//! A query in the order of names streams pages from the store and holds nothing. Any other order needs all
//! results before the first can be told, and sorts them in memory.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use ::firestore::gcloud_sdk::google::firestore::v1::structured_query::{self, CollectionSelector, Direction};
use ::firestore::gcloud_sdk::google::firestore::v1::{Cursor, StructuredQuery, Value, value::ValueType};
use tonic::Status;

use super::database::{Database, Found, Micros, Position};
use super::filter::{Filter, Looked};
use super::names;
use super::values::{self, FieldPath};
use crate::document::DatabaseName;
use crate::document::key as keys;

/// Which documents a query looks at, by their keys.
#[derive(Clone, Debug)]
enum Selector {
    /// Everything in the range.
    All,
    /// Documents so many segments deep.
    Depth(usize),
    /// Documents in collections whose id has this key.
    Group(Vec<u8>),
}

impl Selector {
    fn accepts(&self, key: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Depth(depth) => keys::segments(key).count() == *depth,
            Self::Group(id) => {
                let mut before_last = [&[][..]; 2];
                for segment in keys::segments(key) {
                    before_last = [before_last[1], segment];
                }
                before_last[0] == id
            }
        }
    }
}

/// What is returned of a document.
#[derive(Clone, Debug)]
pub(crate) enum Projection {
    Whole,
    NameOnly,
    Fields(Vec<FieldPath>),
}

impl Projection {
    /// Reads the paths of a mask; an empty mask leaves the name alone.
    pub(crate) fn of_paths<'a>(paths: impl IntoIterator<Item = &'a String>) -> Result<Self, Status> {
        let mut fields = values::mask(paths)?;
        fields.retain(|path| !path.is_name());
        Ok(if fields.is_empty() {
            Self::NameOnly
        } else {
            Self::Fields(fields)
        })
    }

    /// The `Document` message of what is returned.
    pub(crate) fn apply(&self, stored: &super::database::Stored) -> bytes::Bytes {
        match self {
            Self::Whole => stored.message().clone(),
            Self::NameOnly => stored.names_only(),
            Self::Fields(fields) => {
                let tree = values::project(&values::stored_tree(stored.fields()), fields);
                stored.with_fields(&values::encode_tree(&tree))
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Order {
    path: FieldPath,
    descending: bool,
}

/// A query that was understood.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    selector: Selector,
    filter: Option<Filter>,
    orders: Vec<Order>,
    cursors: [Option<Cursor>; 2],
    /// What to look at: narrowed by the cursors where the order is that of names.
    pub(crate) position: Position,
    pub(crate) projection: Projection,
    pub(crate) offset: usize,
    pub(crate) limit: Option<usize>,
    /// Whether it asks for all collections at once.
    pub(crate) kindless: bool,
}

impl Plan {
    /// Understands a query below `parent`, a key or nothing for the root, of a database.
    pub(crate) fn new(
        query: StructuredQuery,
        parent: &[u8],
        database: &DatabaseName,
    ) -> Result<Self, Status> {
        if query.find_nearest.is_some() {
            return Err(Status::unimplemented("The sandbox has no vector search."));
        }
        let from = match &query.from[..] {
            [] => CollectionSelector::default(),
            [from] => from.clone(),
            _ => {
                return Err(Status::invalid_argument(
                    "StructuredQuery.from cannot have more than one collection selector.",
                ));
            }
        };
        let kindless = from.collection_id.is_empty();
        let depth = keys::segments(parent).count();
        let mut position = Position {
            start: Bound::Unbounded,
            end: Bound::Unbounded,
        };
        if !parent.is_empty() {
            position.start = Bound::Excluded(parent.to_vec());
            position.end = Bound::Excluded(keys::prefix_end(parent));
        }
        let selector = match (kindless, from.all_descendants) {
            (true, true) => Selector::All,
            (true, false) => Selector::Depth(depth + 2),
            (false, true) => {
                names::check_collection_id(&from.collection_id)?;
                Selector::Group(keys::key_of(&from.collection_id))
            }
            (false, false) => {
                names::check_collection_id(&from.collection_id)?;
                let mut collection = parent.to_vec();
                collection.extend(keys::key_of(&from.collection_id));
                position.end = Bound::Excluded(keys::prefix_end(&collection));
                position.start = Bound::Excluded(collection);
                Selector::Depth(depth + 2)
            }
        };
        let filter = query.r#where.map(Filter::parse).transpose()?;
        let orders = orders(&query.order_by, filter.as_ref())?;
        let mut plan = Self {
            selector,
            filter,
            orders,
            cursors: [query.start_at, query.end_at],
            position,
            projection: match &query.select {
                None => Projection::Whole,
                Some(select) => Projection::of_paths(select.fields.iter().map(|field| &field.field_path))?,
            },
            offset: usize::try_from(query.offset)
                .map_err(|_| Status::invalid_argument("offset is negative"))?,
            limit: match query.limit {
                None => None,
                Some(limit) => {
                    Some(usize::try_from(limit).map_err(|_| Status::invalid_argument("limit is negative"))?)
                }
            },
            kindless,
        };
        plan.check(query.order_by.len())?;
        if plan.is_by_name() {
            plan.narrow(database)?;
        }
        plan.narrow_by_filter(database);
        Ok(plan)
    }

    /// Whether the results come in the order of names.
    fn is_by_name(&self) -> bool {
        matches!(&self.orders[..], [order] if order.path.is_name())
    }

    /// Refuses what Firestore refuses of a query that was asked for with so many orders.
    fn check(&self, asked_orders: usize) -> Result<(), Status> {
        if self
            .cursors
            .iter()
            .flatten()
            .any(|cursor| cursor.values.len() > asked_orders)
        {
            return Err(Status::invalid_argument("Cursor has too many values."));
        }
        let descending = self.is_by_name() && self.orders[0].descending;
        if self.kindless && (descending || !self.is_by_name()) {
            return Err(Status::invalid_argument(
                "kind is required for all orders except __key__ ascending",
            ));
        }
        if descending {
            return Err(Status::failed_precondition(
                "Firestore does not support descending key scans",
            ));
        }
        if self.kindless && self.filter.as_ref().is_some_and(|filter| !filter.is_by_name()) {
            return Err(Status::invalid_argument(
                "kind is required for filters except on __key__",
            ));
        }
        Ok(())
    }

    /// Turns the cursors of a query by name into bounds of the range.
    fn narrow(&mut self, database: &DatabaseName) -> Result<(), Status> {
        let [start, end] = std::mem::take(&mut self.cursors);
        for (cursor, is_start) in [(start, true), (end, false)] {
            let Some(cursor) = cursor else { continue };
            let Some(value) = cursor.values.first() else {
                continue;
            };
            let key = cursor_key(value, database)?;
            // A cursor before its document lets a start have it and an end not.
            let bound = if cursor.before == is_start {
                Bound::Included(key)
            } else {
                Bound::Excluded(key)
            };
            let side = if is_start {
                &mut self.position.start
            } else {
                &mut self.position.end
            };
            *side = tighter(std::mem::replace(side, Bound::Unbounded), bound, is_start);
        }
        Ok(())
    }

    /// Leaves out what the filter's bounds on names do. The filter stands all the same: this only spares the walk.
    fn narrow_by_filter(&mut self, database: &DatabaseName) {
        let Some(filter) = &self.filter else { return };
        for (operator, value) in filter.name_bounds() {
            use structured_query::field_filter::Operator;
            let Ok(key) = cursor_key(value, database) else {
                continue;
            };
            let (side, bound, is_start) = match operator {
                Operator::GreaterThan => (&mut self.position.start, Bound::Excluded(key), true),
                Operator::GreaterThanOrEqual => (&mut self.position.start, Bound::Included(key), true),
                Operator::LessThan => (&mut self.position.end, Bound::Excluded(key), false),
                Operator::LessThanOrEqual => (&mut self.position.end, Bound::Included(key), false),
                _ => continue,
            };
            *side = tighter(std::mem::replace(side, Bound::Unbounded), bound, is_start);
        }
    }

    fn accepts(&self, key: &[u8], found: &Found) -> bool {
        self.selector.accepts(key)
            && self
                .filter
                .as_ref()
                .is_none_or(|filter| filter.matches(&look(found)))
    }

    /// The next results at a time, and whether there may be more. The offset and the limit are the caller's
    /// to apply while `position` is walked, except where the order is not that of names: then everything is
    /// in one page.
    pub(crate) fn page(
        &self,
        database: &Database,
        position: &mut Option<Position>,
        time: Micros,
        limit: usize,
    ) -> Result<Vec<Found>, Status> {
        if self.is_by_name() {
            return Ok(database.scan(position, time, limit, &mut |key, found| self.accepts(key, found)));
        }
        let mut results = Vec::new();
        while position.is_some() {
            let page = database.scan(position, time, 4096, &mut |key, found| self.accepts(key, found));
            results.extend(page.into_iter().filter_map(|found| {
                let looked = look(&found);
                let values = self.orders.iter().map(|order| looked.get(&order.path).cloned());
                Some((values.collect::<Option<Vec<Value>>>()?, found))
            }));
        }
        results.sort_by(|(a, _), (b, _)| self.compare(a, b));
        let [start, end] = &self.cursors;
        results.retain(|(values, _)| {
            let after_start = start.as_ref().is_none_or(|cursor| {
                let order = self.compare(values, &cursor.values);
                if cursor.before {
                    order.is_ge()
                } else {
                    order.is_gt()
                }
            });
            let before_end = end.as_ref().is_none_or(|cursor| {
                let order = self.compare(values, &cursor.values);
                if cursor.before {
                    order.is_lt()
                } else {
                    order.is_le()
                }
            });
            after_start && before_end
        });
        Ok(results.into_iter().map(|(_, found)| found).collect())
    }

    /// Compares by as many values as both have.
    fn compare(&self, a: &[Value], b: &[Value]) -> Ordering {
        let values = a.iter().zip(b).zip(&self.orders);
        let mut orders = values.map(|((a, b), order)| {
            let ascending = super::value_order::compare(a, b);
            if order.descending {
                ascending.reverse()
            } else {
                ascending
            }
        });
        orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    }

    /// Whether the count of documents follows from the range alone, so that synthetic ones need not be walked.
    pub(crate) fn counts_by_range(&self) -> bool {
        self.filter.is_none() && self.is_by_name()
    }

    /// Whether the document with this key, which lies in the range, is looked at.
    pub(crate) fn selects(&self, key: &[u8]) -> bool {
        self.selector.accepts(key)
    }

    /// Whether the documents of a root collection are looked at.
    pub(crate) fn accepts_root_collection(&self, collection: &[u8]) -> bool {
        match &self.selector {
            Selector::All => true,
            Selector::Depth(depth) => *depth == 2,
            Selector::Group(id) => id == collection,
        }
    }
}

fn tighter(a: Bound<Vec<u8>>, b: Bound<Vec<u8>>, is_start: bool) -> Bound<Vec<u8>> {
    use Bound::{Excluded, Included, Unbounded};
    match (&a, &b) {
        (Unbounded, _) => b,
        (_, Unbounded) => a,
        (Included(x) | Excluded(x), Included(y) | Excluded(y)) => {
            let order = if is_start { x.cmp(y) } else { y.cmp(x) };
            match order {
                Ordering::Less => b,
                Ordering::Greater => a,
                Ordering::Equal if matches!(a, Excluded(_)) => a,
                Ordering::Equal => b,
            }
        }
    }
}

fn cursor_key(value: &Value, database: &DatabaseName) -> Result<Vec<u8>, Status> {
    let Some(ValueType::ReferenceValue(name)) = &value.value_type else {
        return Err(Status::invalid_argument(
            "Cursor __key__ value is not a document reference.",
        ));
    };
    names::document(name, database)
}

fn orders(order_by: &[structured_query::Order], filter: Option<&Filter>) -> Result<Vec<Order>, Status> {
    let mut orders = Vec::new();
    for order in order_by {
        let field = order
            .field
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("An order needs a field."))?;
        let descending = order.direction() == Direction::Descending;
        orders.push(Order {
            path: FieldPath::parse(&field.field_path)?,
            descending,
        });
    }
    let descending = orders.last().is_some_and(|order| order.descending);
    let mut implied = Vec::new();
    if let Some(filter) = filter {
        filter.inequality_fields(&mut implied);
        implied.sort_by(|a, b| a.0.cmp(&b.0));
    }
    implied.retain(|path| !path.is_name());
    implied.push(FieldPath(vec!["__name__".to_owned()]));
    for path in implied {
        if orders.iter().all(|order| order.path != path) {
            orders.push(Order { path, descending });
        }
    }
    Ok(orders)
}

/// A document for filters and sorting.
pub(crate) fn look(found: &Found) -> Looked {
    let stored = found.stored();
    let document =
        <super::messages::Document as prost::Message>::decode(&stored.message()[..]).unwrap_or_default();
    Looked {
        name: Value {
            value_type: Some(ValueType::ReferenceValue(document.name)),
        },
        tree: values::tree(document.fields.iter().map(|entry| &entry[..])).unwrap_or_default(),
    }
}

/// A query under way: the plan, where, when, and how far it is.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) plan: Plan,
    pub(crate) database: Arc<Database>,
    pub(crate) time: Micros,
    position: Option<Position>,
    skip: usize,
    left: usize,
    /// Documents that the offset has skipped.
    pub(crate) skipped: usize,
}

impl Walk {
    pub(crate) fn new(plan: Plan, database: Arc<Database>, time: Micros) -> Self {
        Self {
            position: Some(plan.position.clone()),
            skip: plan.offset,
            left: plan.limit.unwrap_or(usize::MAX),
            skipped: 0,
            plan,
            database,
            time,
        }
    }

    /// The next documents; none when the query is at its end.
    pub(crate) fn next(&mut self, limit: usize) -> Result<Vec<Found>, Status> {
        while self.left > 0 && self.position.is_some() {
            let want = limit.min(self.left.saturating_add(self.skip));
            let mut page = self
                .plan
                .page(&self.database, &mut self.position, self.time, want)?;
            let skip = self.skip.min(page.len());
            page.drain(..skip);
            self.skip -= skip;
            self.skipped += skip;
            page.truncate(self.left);
            self.left -= page.len();
            if !page.is_empty() {
                return Ok(page);
            }
        }
        Ok(Vec::new())
    }
}
