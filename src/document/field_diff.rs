//! Which fields differ between two versions of a document.

use super::{FieldPath, Fields, Value};

/// How a field differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldChangeKind {
    /// Only the newer version has it.
    Added,
    /// Both have it, with other values, or values of another type.
    Changed,
    /// Only the older version has it.
    Removed,
}

/// A field that differs. In JSON: `{"field": "address.city", "change": "changed"}`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FieldChange {
    /// The field: the innermost map's key where both versions have a map, so `address.city` and not `address`.
    #[serde(rename = "field", serialize_with = "as_text")]
    pub path: FieldPath,
    /// How it differs.
    #[serde(rename = "change")]
    pub kind: FieldChangeKind,
}

fn as_text<S: serde::Serializer>(path: &FieldPath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

/// The fields that differ, in the order of their keys. Maps are looked into, arrays are compared as a whole.
pub fn changed_fields(old: &Fields, new: &Fields) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let mut note = |key: &str, kind| {
            let mut path = FieldPath::root();
            path.push_key(key);
            changes.push(FieldChange { path, kind });
        };
        match (old.next_if(|_| order.is_le()), new.next_if(|_| order.is_ge())) {
            (Some((key, Value::Map(old))), Some((_, Value::Map(new)))) => {
                changes.extend(changed_fields(old, new).into_iter().map(|mut change| {
                    change.path.push_key(key);
                    change
                }));
            }
            (Some((key, old)), Some((_, new))) if old != new => note(key, FieldChangeKind::Changed),
            (Some((key, _)), None) => note(key, FieldChangeKind::Removed),
            (None, Some((key, _))) => note(key, FieldChangeKind::Added),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::typed_json::fields_from_str;

    fn changes(old: &str, new: &str) -> Vec<(String, FieldChangeKind)> {
        changed_fields(&fields_from_str(old).unwrap(), &fields_from_str(new).unwrap())
            .into_iter()
            .map(|change| (change.path.to_string(), change.kind))
            .collect()
    }

    #[test]
    fn maps_are_looked_into_and_types_count() {
        use FieldChangeKind::{Added, Changed, Removed};
        let old = r#"{"a": 1, "b": {"c": 1, "d d": {"e": true}, "g": {}}, "f": [1], "h": {"i": 1}, "same": {"$double": "NaN"}}"#;
        let new = r#"{"a": 1.5, "b": {"c": 1, "d d": {"e": null, "x": 0}}, "f": [1, 2], "h": 7, "n": 0, "same": {"$double": "NaN"}}"#;
        let expected = [
            ("a", Changed),
            ("b.`d d`.e", Changed),
            ("b.`d d`.x", Added),
            ("b.g", Removed),
            ("f", Changed),
            ("h", Changed),
            ("n", Added),
        ];
        assert_eq!(
            changes(old, new),
            expected.map(|(path, kind)| (path.to_owned(), kind))
        );
        assert_eq!(changes(old, old), []);
    }
}
