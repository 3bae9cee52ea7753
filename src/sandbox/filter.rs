//! Filters of queries: which documents match.

use ::firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    self, composite_filter, field_filter, filter::FilterType, unary_filter,
};
use ::firestore::gcloud_sdk::google::firestore::v1::{Value, value::ValueType};
use tonic::Status;

use super::value_order::{compare, is_nan, rank};
use super::values::{FieldPath, Tree};

/// A filter that was understood.
#[derive(Clone, Debug)]
pub(crate) enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Field(FieldPath, field_filter::Operator, Value),
    Unary(FieldPath, unary_filter::Operator),
}

/// A document as filters and sorting look at it.
pub(crate) struct Looked {
    pub(crate) name: Value,
    pub(crate) tree: Tree,
}

impl Looked {
    pub(crate) fn get(&self, path: &FieldPath) -> Option<&Value> {
        if path.is_name() {
            Some(&self.name)
        } else {
            path.get(&self.tree)
        }
    }
}

fn unset() -> Status {
    Status::invalid_argument("The filter is not complete.")
}

impl Filter {
    pub(crate) fn parse(filter: structured_query::Filter) -> Result<Self, Status> {
        match filter.filter_type.ok_or_else(unset)? {
            FilterType::CompositeFilter(composite) => {
                let operator = composite.op();
                let parts = composite
                    .filters
                    .into_iter()
                    .map(Self::parse)
                    .collect::<Result<Vec<_>, _>>()?;
                match operator {
                    _ if parts.is_empty() => Err(unset()),
                    composite_filter::Operator::And => Ok(Self::All(parts)),
                    composite_filter::Operator::Or => Ok(Self::Any(parts)),
                    composite_filter::Operator::Unspecified => Err(unset()),
                }
            }
            FilterType::FieldFilter(filter) => {
                let path = FieldPath::parse(&filter.field.as_ref().ok_or_else(unset)?.field_path)?;
                let operator = filter.op();
                let value = filter.value.ok_or_else(unset)?;
                let is_list = matches!(value.value_type, Some(ValueType::ArrayValue(_)));
                use field_filter::Operator::{ArrayContainsAny, In, NotIn, Unspecified};
                match operator {
                    Unspecified => return Err(unset()),
                    In | NotIn | ArrayContainsAny if !is_list => {
                        return Err(Status::invalid_argument(format!(
                            "'{}' requires an ArrayValue.",
                            operator.as_str_name()
                        )));
                    }
                    _ => {}
                }
                Ok(Self::Field(path, operator, value))
            }
            FilterType::UnaryFilter(filter) => {
                let operator = filter.op();
                let unary_filter::OperandType::Field(field) = filter.operand_type.ok_or_else(unset)?;
                Ok(Self::Unary(FieldPath::parse(&field.field_path)?, operator))
            }
        }
    }

    /// Appends the fields that are compared by more or less, which order the results.
    pub(crate) fn inequality_fields(&self, fields: &mut Vec<FieldPath>) {
        use field_filter::Operator::{
            GreaterThan, GreaterThanOrEqual, LessThan, LessThanOrEqual, NotEqual, NotIn,
        };
        use unary_filter::Operator::{IsNotNan, IsNotNull};
        let path = match self {
            Self::All(parts) | Self::Any(parts) => {
                return parts.iter().for_each(|part| part.inequality_fields(fields));
            }
            Self::Field(
                path,
                GreaterThan | GreaterThanOrEqual | LessThan | LessThanOrEqual | NotEqual | NotIn,
                _,
            )
            | Self::Unary(path, IsNotNan | IsNotNull) => path,
            _ => return,
        };
        if !fields.contains(path) {
            fields.push(path.clone());
        }
    }

    /// The comparisons of the name that must hold.
    pub(crate) fn name_bounds(&self) -> Vec<(field_filter::Operator, &Value)> {
        match self {
            Self::All(parts) => parts.iter().flat_map(Self::name_bounds).collect(),
            Self::Field(path, operator, value) if path.is_name() => vec![(*operator, value)],
            Self::Any(_) | Self::Field(..) | Self::Unary(..) => Vec::new(),
        }
    }

    /// Whether it looks at nothing but the name.
    pub(crate) fn is_by_name(&self) -> bool {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().all(Self::is_by_name),
            Self::Field(path, ..) | Self::Unary(path, _) => path.is_name(),
        }
    }

    pub(crate) fn matches(&self, document: &Looked) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(document)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(document)),
            Self::Field(path, operator, operand) => document
                .get(path)
                .is_some_and(|value| field_matches(value, *operator, operand)),
            Self::Unary(path, operator) => document.get(path).is_some_and(|value| match operator {
                unary_filter::Operator::IsNan => is_nan(value),
                unary_filter::Operator::IsNull => rank(value) == 0,
                unary_filter::Operator::IsNotNan => rank(value) != 0 && !is_nan(value),
                unary_filter::Operator::IsNotNull => rank(value) != 0,
                unary_filter::Operator::Unspecified => false,
            }),
        }
    }
}

fn elements(value: &Value) -> &[Value] {
    match &value.value_type {
        Some(ValueType::ArrayValue(array)) => &array.values,
        _ => &[],
    }
}

fn field_matches(value: &Value, operator: field_filter::Operator, operand: &Value) -> bool {
    use field_filter::Operator;
    let comparable = rank(value) == rank(operand) && is_nan(value) == is_nan(operand);
    let order = compare(value, operand);
    let is_in = |value: &Value, list: &Value| {
        elements(list)
            .iter()
            .any(|element| compare(value, element).is_eq())
    };
    match operator {
        Operator::LessThan => comparable && order.is_lt(),
        Operator::LessThanOrEqual => comparable && order.is_le(),
        Operator::GreaterThan => comparable && order.is_gt(),
        Operator::GreaterThanOrEqual => comparable && order.is_ge(),
        Operator::Equal => order.is_eq(),
        Operator::NotEqual => rank(value) != 0 && order.is_ne(),
        Operator::ArrayContains => is_in(operand, value),
        Operator::In => is_in(value, operand),
        Operator::ArrayContainsAny => elements(operand).iter().any(|wanted| is_in(wanted, value)),
        Operator::NotIn => rank(value) != 0 && !is_in(value, operand),
        Operator::Unspecified => false,
    }
}
