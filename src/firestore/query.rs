//! What a query asks for: a collection or a collection group, filtered and ordered.
//!
//! Without an order of its own, a query is ordered as Firestore implies it: by the fields of its
//! inequalities, then by name, which needs no index that is not there. It is read [in
//! pages](super::Firestore::query).

use std::collections::BTreeSet;

use ::firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    CollectionSelector, CompositeFilter, Direction, FieldFilter, FieldReference, Filter, Order, UnaryFilter,
    composite_filter, field_filter, filter::FilterType, unary_filter,
};
use ::firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use ::firestore::gcloud_sdk::google::firestore::v1::{Cursor, StructuredQuery, Value as ProtoValue};

use super::cursor::name_range;
use super::proto::{NAME_FIELD, proto_value};
use super::{Error, Method, Result};
use crate::document::{
    CollectionPath, DocumentPath, Fields, KeyRange, Reference, Value, canonical, field_path_text,
};

/// Which documents, in which order.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// The document below which to look, `None` for the root.
    pub parent: Option<DocumentPath>,
    /// The collection's id.
    pub collection: String,
    /// Whether all collections with this id below the parent are meant, at any depth.
    pub all_descendants: bool,
    /// Conditions that all must hold.
    pub filters: Vec<QueryFilter>,
    /// The order; empty for the implied one. The name always follows last.
    pub order: Vec<QueryOrder>,
    /// How many documents at most.
    pub limit: Option<u64>,
}

/// A condition on a field.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryFilter {
    /// The field's path, a key a step; `__name__` alone is the document's name.
    pub field: Vec<String>,
    /// How it compares.
    pub operator: QueryOperator,
    /// With what.
    pub value: Value,
}

/// How a field compares to a value. Those that compare with several take an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryOperator {
    /// `<`
    LessThan,
    /// `<=`
    LessThanOrEqual,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>=`
    GreaterThanOrEqual,
    /// `>`
    GreaterThan,
    /// The field is an array that has the value.
    ArrayContains,
    /// The field is an array that has any of the values.
    ArrayContainsAny,
    /// The field is one of the values.
    In,
    /// The field is there and none of the values.
    NotIn,
}

impl QueryOperator {
    /// Whether results must be ordered by the field.
    fn orders(self) -> bool {
        use QueryOperator::{GreaterThan, GreaterThanOrEqual, LessThan, LessThanOrEqual, NotEqual, NotIn};
        matches!(
            self,
            LessThan | LessThanOrEqual | GreaterThan | GreaterThanOrEqual | NotEqual | NotIn
        )
    }

    fn proto(self) -> field_filter::Operator {
        use field_filter::Operator;
        match self {
            Self::LessThan => Operator::LessThan,
            Self::LessThanOrEqual => Operator::LessThanOrEqual,
            Self::Equal => Operator::Equal,
            Self::NotEqual => Operator::NotEqual,
            Self::GreaterThanOrEqual => Operator::GreaterThanOrEqual,
            Self::GreaterThan => Operator::GreaterThan,
            Self::ArrayContains => Operator::ArrayContains,
            Self::ArrayContainsAny => Operator::ArrayContainsAny,
            Self::In => Operator::In,
            Self::NotIn => Operator::NotIn,
        }
    }
}

/// A field that results are ordered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryOrder {
    /// The field's path, a key a step.
    pub field: Vec<String>,
    /// From the largest to the smallest.
    pub descending: bool,
}

impl Query {
    /// All of a collection.
    pub fn collection(collection: &CollectionPath) -> Self {
        let (parent, id) = match collection.as_str().rsplit_once('/') {
            // What is before the id of a collection's path names a document.
            Some((parent, id)) => (DocumentPath::parse(parent).ok(), id),
            None => (None, collection.as_str()),
        };
        Self {
            parent,
            ..Self::group(id)
        }
        .with_descendants(false)
    }

    /// All of a collection group.
    pub fn group(id: &str) -> Self {
        Self {
            parent: None,
            collection: id.to_owned(),
            all_descendants: true,
            filters: Vec::new(),
            order: Vec::new(),
            limit: None,
        }
    }

    /// The same, of the documents in a range of keys, which must not be empty.
    ///
    /// # Errors
    /// [`Error::BadBoundary`] when one of its ends is no place between documents.
    pub fn within(mut self, range: &KeyRange) -> Result<Self> {
        use QueryOperator::{GreaterThan, GreaterThanOrEqual, LessThan, LessThanOrEqual};
        let names = name_range(range)?;
        let start = match names.after_start {
            true => GreaterThan,
            false => GreaterThanOrEqual,
        };
        let end = match names.through_end {
            true => LessThanOrEqual,
            false => LessThan,
        };
        for (name, operator) in [(names.start, start), (names.end, end)] {
            self.filters.extend(name.map(|name| QueryFilter {
                field: vec![NAME_FIELD.to_owned()],
                operator,
                value: Value::Reference(Reference::Relative(name)),
            }));
        }
        Ok(self)
    }

    fn with_descendants(mut self, all: bool) -> Self {
        self.all_descendants = all;
        self
    }

    /// What it is ordered by, without the name at the end.
    fn fields_of_order(&self) -> Vec<QueryOrder> {
        let mut order = self.order.clone();
        let descending = order.last().is_some_and(|last| last.descending);
        let implied: BTreeSet<&Vec<String>> = self
            .filters
            .iter()
            .filter(|filter| filter.operator.orders())
            .map(|filter| &filter.field)
            .collect();
        for field in implied {
            if order.iter().all(|order| &order.field != field) {
                order.push(QueryOrder {
                    field: field.clone(),
                    descending,
                });
            }
        }
        order.retain(|order| !is_name(&order.field));
        order
    }

    fn ends_descending(&self) -> bool {
        self.order.last().is_some_and(|last| last.descending)
    }

    pub(super) fn parent_name(&self, root: &str) -> String {
        match &self.parent {
            Some(parent) => format!("{root}/{parent}"),
            None => root.to_owned(),
        }
    }

    /// The query as it is asked, without cursor and limit.
    pub(super) fn structured(&self, root: &str) -> StructuredQuery {
        let direction = |descending: bool| match descending {
            true => Direction::Descending,
            false => Direction::Ascending,
        };
        let mut order_by: Vec<Order> = self
            .fields_of_order()
            .iter()
            .map(|order| Order {
                field: Some(field_reference(&order.field)),
                direction: direction(order.descending).into(),
            })
            .collect();
        order_by.push(Order {
            field: Some(field_reference(&[NAME_FIELD.to_owned()])),
            direction: direction(self.ends_descending()).into(),
        });
        StructuredQuery {
            from: vec![CollectionSelector {
                collection_id: self.collection.clone(),
                all_descendants: self.all_descendants,
            }],
            r#where: self.proto_filter(root),
            order_by,
            ..Default::default()
        }
    }

    fn proto_filter(&self, root: &str) -> Option<Filter> {
        let mut filters: Vec<Filter> = self.filters.iter().map(|filter| filter.proto(root)).collect();
        match filters.len() {
            0 | 1 => filters.pop(),
            _ => Some(Filter {
                filter_type: Some(FilterType::CompositeFilter(CompositeFilter {
                    op: composite_filter::Operator::And.into(),
                    filters,
                })),
            }),
        }
    }

    /// The cursor after a document.
    pub(super) fn cursor(&self, path: &DocumentPath, body: &[u8], root: &str) -> Result<Cursor> {
        let order = self.fields_of_order();
        let mut values = Vec::with_capacity(order.len() + 1);
        if !order.is_empty() {
            let fields =
                canonical::decode(body).map_err(|error| Error::malformed(Method::RunQuery, error))?;
            for order in &order {
                let value = value_at(&fields, &order.field).ok_or_else(|| {
                    Error::malformed(
                        Method::RunQuery,
                        format!(
                            "`{path}` came without the field {} that it is ordered by",
                            shown(&order.field)
                        ),
                    )
                })?;
                values.push(proto_value(value, root));
            }
        }
        values.push(ProtoValue {
            value_type: Some(ValueType::ReferenceValue(format!("{root}/{path}"))),
        });
        Ok(Cursor {
            values,
            before: false,
        })
    }
}

impl QueryFilter {
    /// Null and NaN are asked for by operators of their own.
    fn proto(&self, root: &str) -> Filter {
        use unary_filter::{OperandType, Operator};
        let unary = match (&self.value, self.operator) {
            (Value::Null, QueryOperator::Equal) => Some(Operator::IsNull),
            (Value::Null, QueryOperator::NotEqual) => Some(Operator::IsNotNull),
            (Value::Double(value), QueryOperator::Equal) if value.is_nan() => Some(Operator::IsNan),
            (Value::Double(value), QueryOperator::NotEqual) if value.is_nan() => Some(Operator::IsNotNan),
            _ => None,
        };
        let field = field_reference(&self.field);
        let filter_type = match unary {
            Some(operator) => FilterType::UnaryFilter(UnaryFilter {
                op: operator.into(),
                operand_type: Some(OperandType::Field(field)),
            }),
            None => FilterType::FieldFilter(FieldFilter {
                field: Some(field),
                op: self.operator.proto().into(),
                value: Some(proto_value(&self.operand(), root)),
            }),
        };
        Filter {
            filter_type: Some(filter_type),
        }
    }

    /// The value; a text that is compared with names is one.
    fn operand(&self) -> Value {
        let as_name = |value: &Value| match value {
            Value::String(path) => DocumentPath::parse(path.as_str()).map_or_else(
                |_| value.clone(),
                |path| Value::Reference(Reference::Relative(path)),
            ),
            other => other.clone(),
        };
        match &self.value {
            Value::Array(values) if is_name(&self.field) => {
                Value::Array(values.iter().map(as_name).collect())
            }
            value if is_name(&self.field) => as_name(value),
            value => value.clone(),
        }
    }
}

fn is_name(field: &[String]) -> bool {
    matches!(field, [only] if only == NAME_FIELD)
}

fn shown(field: &[String]) -> String {
    field_path_text(field.iter().map(String::as_str))
}

fn field_reference(field: &[String]) -> FieldReference {
    FieldReference {
        field_path: shown(field),
    }
}

fn value_at<'f>(fields: &'f Fields, path: &[String]) -> Option<&'f Value> {
    let (first, rest) = path.split_first()?;
    let mut value = fields.get(first)?;
    for key in rest {
        let Value::Map(fields) = value else { return None };
        value = fields.get(key)?;
    }
    Some(value)
}
