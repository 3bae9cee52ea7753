//! What to know before documents are written: those that the database would refuse or soon delete, and references that lead
//! away from it.
//!
//! The limits are those of <https://firebase.google.com/docs/firestore/quotas>, a document's size is computed as
//! <https://firebase.google.com/docs/firestore/storage-size> says.

use std::sync::Arc;

use super::{RestoreError, RestoreOptions};
use crate::clock;
use crate::document::canonical::{self, ReferenceRef};
use crate::document::field_mask::value_at;
use crate::document::{CanonicalError, DocumentPath, FieldMask, Fields, Reference, Timestamp, Value};
use crate::firestore::{Firestore, TtlPolicy};

const MAX_DOCUMENT_BYTES: usize = 1 << 20;
const MAX_DEPTH: usize = 20;
const MAX_NAME_BYTES: usize = 6 << 10;
const MAX_ID_BYTES: usize = 1500;
const MAX_LEVELS: usize = 100;
/// How many documents are named for each warning. All are counted.
const NAMED: usize = 5;

/// A field that a time-to-live policy goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TtlField {
    /// Of documents in collections with this id; of any without.
    group: Option<String>,
    field: Vec<String>,
}

impl TtlField {
    /// Reads `field`, or `collection.field` as the collection group's id and the field's path.
    pub fn parse(text: &str) -> Result<Self, RestoreError> {
        let wrong = || {
            RestoreError::Options(format!(
                "`{text}` names no time-to-live field: write FIELD or COLLECTION.FIELD"
            ))
        };
        let mask = FieldMask::parse(text).map_err(|_| wrong())?;
        match mask.paths() {
            [path] => Ok(match path.as_slice() {
                [group, field @ ..] if !field.is_empty() => Self {
                    group: Some(group.clone()),
                    field: field.to_vec(),
                },
                field => Self {
                    group: None,
                    field: field.to_vec(),
                },
            }),
            _ => Err(wrong()),
        }
    }

    /// The field that a policy of the database goes by; `None` of one whose path cannot be read.
    fn of_policy(policy: TtlPolicy) -> Option<Self> {
        let mask = FieldMask::parse(&policy.field).ok()?;
        let [field] = mask.paths() else {
            return None;
        };
        Some(Self {
            group: Some(policy.collection_group),
            field: field.to_vec(),
        })
    }

    /// The field in the document's collection, as people are told of it.
    fn of(&self, path: &DocumentPath) -> String {
        let names = std::iter::once(path.collection_group()).chain(self.field.iter().map(String::as_str));
        names.collect::<Vec<_>>().join(".")
    }

    fn has_passed(&self, path: &DocumentPath, fields: &Fields, now: Timestamp) -> bool {
        let concerns = |group: &String| *group == path.collection_group();
        self.group.as_ref().is_none_or(concerns)
            && matches!(value_at(fields, &self.field), Some(Value::Timestamp(time)) if *time <= now)
    }
}

/// The fields by which the database deletes documents: those that the options name, and where they name none, those that the
/// database says it has, if it does.
pub async fn ttl_fields_of(database: &Firestore, options: &RestoreOptions) -> Vec<TtlField> {
    if !options.ttl_fields.is_empty() {
        return options.ttl_fields.clone();
    }
    match database.ttl_policies().await {
        Ok(Some(policies)) => policies.into_iter().filter_map(TtlField::of_policy).collect(),
        Ok(None) => Vec::new(),
        Err(error) => {
            tracing::info!(
                "whether the database deletes documents by their time to live is not known (--ttl-field says it): {error}"
            );
            Vec::new()
        }
    }
}

/// What documents are looked through for.
#[derive(Clone, Debug)]
pub(crate) struct Checks {
    ttl: Arc<[TtlField]>,
    now: Timestamp,
}

impl Checks {
    pub(crate) fn new(ttl: &[TtlField]) -> Self {
        Self {
            ttl: ttl.into(),
            now: clock::now().into(),
        }
    }
}

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WarningKind {
    /// References lead to other databases.
    ForeignReferences,
    /// A time-to-live policy on the named field deletes the document again.
    TtlPassed,
    /// Larger than 1 MiB.
    TooLarge,
    /// Values nest deeper than 20 levels.
    TooDeep,
    /// A path or an id that Firestore does not take.
    BadName,
    /// The name of a field that Firestore keeps for itself.
    ReservedField,
}

impl WarningKind {
    /// What is wrong with so many documents, to stand behind them in a sentence.
    pub(crate) fn of(self, documents: u64) -> &'static str {
        let (one, many) = match self {
            Self::ForeignReferences => (
                "refers to documents of other databases",
                "refer to documents of other databases",
            ),
            Self::TtlPassed => (
                "is past its time to live, and would be deleted again",
                "are past their time to live, and would be deleted again",
            ),
            Self::TooLarge => (
                "is larger than 1 MiB, and would be refused",
                "are larger than 1 MiB, and would be refused",
            ),
            Self::TooDeep => (
                "nests deeper than 20 levels, and would be refused",
                "nest deeper than 20 levels, and would be refused",
            ),
            Self::BadName => (
                "has a name that would be refused",
                "have names that would be refused",
            ),
            Self::ReservedField => (
                "has fields with reserved names (`__…__`), and would be refused",
                "have fields with reserved names (`__…__`), and would be refused",
            ),
        };
        if documents == 1 { one } else { many }
    }
}

/// Documents that something is to be known of.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    /// What.
    pub kind: WarningKind,
    /// Of [`WarningKind::TtlPassed`]: the collection's id and the field whose time has passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// How many documents.
    pub documents: u64,
    /// Some of them.
    pub examples: Vec<DocumentPath>,
}

impl Warning {
    /// What it is about: there is one warning of each.
    fn about(&self) -> (WarningKind, Option<&str>) {
        (self.kind, self.field.as_deref())
    }
}

/// Adds a document to what is known.
fn note(warnings: &mut Vec<Warning>, kind: WarningKind, field: Option<String>, path: &DocumentPath) {
    let at = match warnings.binary_search_by(|warning| warning.about().cmp(&(kind, field.as_deref()))) {
        Ok(at) => at,
        Err(at) => {
            warnings.insert(
                at,
                Warning {
                    kind,
                    field,
                    documents: 0,
                    examples: Vec::new(),
                },
            );
            at
        }
    };
    let warning = &mut warnings[at];
    warning.documents += 1;
    if warning.examples.len() < NAMED {
        warning.examples.push(path.clone());
    }
}

/// Brings warnings about different documents together.
pub(crate) fn merge(warnings: &mut Vec<Warning>, others: Vec<Warning>) {
    for other in others {
        match warnings.binary_search_by(|warning| warning.about().cmp(&other.about())) {
            Ok(at) => {
                let warning = &mut warnings[at];
                warning.documents += other.documents;
                warning.examples.extend(other.examples);
                warning.examples.sort();
                warning.examples.truncate(NAMED);
            }
            Err(at) => warnings.insert(at, other),
        }
    }
}

/// Looks through a document that would be written with these fields.
pub(crate) fn examine(
    path: &DocumentPath,
    body: &[u8],
    checks: &Checks,
    warnings: &mut Vec<Warning>,
) -> Result<(), CanonicalError> {
    let mut foreign = false;
    canonical::for_each_reference(body, |reference| {
        foreign |= matches!(reference, ReferenceRef::Absolute(_));
    })?;
    let fields = canonical::decode(body)?;
    let measured = Measured::of(&fields);
    let findings = [
        (WarningKind::ForeignReferences, foreign),
        (
            WarningKind::TooLarge,
            name_size(path.as_str()) + measured.bytes + 32 > MAX_DOCUMENT_BYTES,
        ),
        (WarningKind::TooDeep, measured.depth > MAX_DEPTH),
        (WarningKind::BadName, !is_acceptable(path)),
        (
            WarningKind::ReservedField,
            fields.keys().any(|name| is_reserved(name)),
        ),
    ];
    for (kind, _) in findings.into_iter().filter(|(_, found)| *found) {
        note(warnings, kind, None, path);
    }
    let passed = checks
        .ttl
        .iter()
        .filter(|field| field.has_passed(path, &fields, checks.now));
    let mut passed: Vec<String> = passed.map(|field| field.of(path)).collect();
    passed.sort();
    passed.dedup();
    for field in passed {
        note(warnings, WarningKind::TtlPassed, Some(field), path);
    }
    Ok(())
}

fn is_reserved(name: &str) -> bool {
    name.len() > 4 && name.starts_with("__") && name.ends_with("__")
}

/// Whether the database takes a document of this name.
pub(crate) fn is_acceptable(path: &DocumentPath) -> bool {
    let numeric = |id: &str| {
        id.strip_prefix("__id")
            .and_then(|id| id.strip_suffix("__"))
            .is_some_and(|digits| digits.parse::<i64>().is_ok())
    };
    let acceptable = |(level, id): (usize, &str)| {
        id.len() <= MAX_ID_BYTES
            && !matches!(id, "." | "..")
            && (!is_reserved(id) || (level % 2 == 1 && numeric(id)))
    };
    path.as_str().len() <= MAX_NAME_BYTES
        && path.segments().count() <= 2 * MAX_LEVELS
        && path.segments().enumerate().all(acceptable)
}

/// The bytes that a document's name counts for.
fn name_size(path: &str) -> usize {
    path.split('/').map(|id| id.len() + 1).sum::<usize>() + 16
}

#[derive(Default)]
struct Measured {
    bytes: usize,
    /// How deep values nest: a field's own value is at depth 1 if it is an array or a map.
    depth: usize,
}

impl Measured {
    fn of(fields: &Fields) -> Self {
        let mut measured = Self::default();
        measured.fields(fields, 1);
        measured
    }

    fn fields(&mut self, fields: &Fields, depth: usize) {
        for (name, value) in fields {
            self.bytes += name.len() + 1;
            self.value(value, depth);
        }
    }

    fn value(&mut self, value: &Value, depth: usize) {
        self.bytes += match value {
            Value::Null | Value::Boolean(_) => 1,
            Value::Integer(_) | Value::Double(_) => 8,
            Value::Timestamp(_) | Value::GeoPoint(_) => 16,
            Value::String(text) => text.len() + 1,
            Value::Bytes(bytes) => bytes.len(),
            Value::Reference(Reference::Relative(path)) => name_size(path.as_str()),
            Value::Reference(Reference::Absolute(name)) => name_size(name),
            Value::Array(values) => {
                self.depth = self.depth.max(depth);
                values.iter().for_each(|value| self.value(value, depth + 1));
                0
            }
            Value::Map(fields) => {
                self.depth = self.depth.max(depth);
                self.fields(fields, depth + 1);
                0
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::typed_json::fields_from_str;

    fn kinds(path: &str, fields: &Fields, ttl: &[&str]) -> Vec<WarningKind> {
        let ttl: Vec<TtlField> = ttl.iter().map(|text| TtlField::parse(text).unwrap()).collect();
        let mut warnings = Vec::new();
        let path = DocumentPath::parse(path).unwrap();
        examine(
            &path,
            &canonical::encode(fields),
            &Checks::new(&ttl),
            &mut warnings,
        )
        .unwrap();
        warnings.into_iter().map(|warning| warning.kind).collect()
    }

    fn fields(text: &str) -> Fields {
        fields_from_str(text).unwrap()
    }

    #[test]
    fn a_documents_size_is_counted_as_firestore_does() {
        // The example of the page on storage sizes: 147 bytes.
        let fields = fields(
            r#"{"type": "Personal", "done": false, "priority": 1, "description": "Learn Cloud Firestore"}"#,
        );
        let path = "users/jeff/tasks/my_task_id";
        let size = name_size(path) + Measured::of(&fields).bytes + 32;
        assert_eq!(size, 147);
    }

    #[test]
    fn what_would_be_refused_is_found() {
        assert_eq!(kinds("a/1", &fields(r#"{"n": 1}"#), &[]), []);
        let large = Value::String("x".repeat(MAX_DOCUMENT_BYTES - 60));
        assert_eq!(
            kinds("a/1", &[("large".to_owned(), large.clone())].into(), &[]),
            []
        );
        let mut larger = Fields::from([("large".to_owned(), large)]);
        larger.insert("more".to_owned(), Value::String("x".repeat(60)));
        assert_eq!(kinds("a/1", &larger, &[]), [WarningKind::TooLarge]);

        let nested = |levels: usize| {
            let value = (0..levels).fold(Value::Null, |inner, _| {
                Value::Map([("m".to_owned(), inner)].into())
            });
            Fields::from([("top".to_owned(), value)])
        };
        assert_eq!(kinds("a/1", &nested(20), &[]), []);
        assert_eq!(kinds("a/1", &nested(21), &[]), [WarningKind::TooDeep]);

        let empty = Fields::new();
        for good in ["a/__id7__", "a/x", "a/____"] {
            assert_eq!(kinds(good, &empty, &[]), [], "{good}");
        }
        let long = format!("a/{}", "x".repeat(1501));
        let deep = vec!["a"; 202].join("/");
        for bad in ["a/.", "a/..", "a/__x__", "__a__/1", "__id7__/1", &long, &deep] {
            assert_eq!(kinds(bad, &empty, &[]), [WarningKind::BadName], "{bad}");
        }
        assert_eq!(
            kinds("a/1", &fields(r#"{"__x__": 1}"#), &[]),
            [WarningKind::ReservedField]
        );
    }

    #[test]
    fn what_leads_away_or_does_not_last_is_found() {
        let foreign = r#"{"r": [{"$absoluteReference": "projects/p/databases/d/documents/a/1"}, {"$reference": "a/1"}]}"#;
        assert_eq!(
            kinds("a/1", &fields(foreign), &[]),
            [WarningKind::ForeignReferences]
        );
        let expired = fields(r#"{"at": {"$timestamp": "2020-01-01T00:00:00Z"}, "m": {"at": 1}}"#);
        let future = fields(r#"{"at": {"$timestamp": "2999-01-01T00:00:00Z"}}"#);
        assert_eq!(kinds("a/1/s/1", &expired, &["at"]), [WarningKind::TtlPassed]);
        assert_eq!(kinds("a/1/s/1", &expired, &["s.at"]), [WarningKind::TtlPassed]);
        for other in ["a.at", "s.m.at", "m"] {
            assert_eq!(kinds("a/1/s/1", &expired, &[other]), [], "{other}");
        }
        assert_eq!(kinds("a/1", &future, &["at"]), []);
        assert!(TtlField::parse("a,b").is_err());
    }
}
