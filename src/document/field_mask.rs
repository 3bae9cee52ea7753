//! Fields named from outside, and what becomes of a document when only some of its fields are written.
//!
//! A patch writes the fields that its mask names and leaves all others alone; a field that the mask names and
//! the patch does not have is removed. Names are those of Firestore's protocol: `a.b`, with everything that
//! is no plain identifier in backticks
//! (<https://firebase.google.com/docs/firestore/reference/rpc/google.firestore.v1#document>).

use super::{Fields, Value, field_path_text};

/// A text that names no field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` does not name a field: write `a.b`, and names that have more than letters, digits and `_` in backticks"
)]
pub struct FieldNameError(String);

/// Names of fields, none of which is inside of another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldMask {
    /// The keys from the outside in, ascending.
    paths: Vec<Vec<String>>,
}

impl FieldMask {
    /// Reads names that are separated by commas.
    pub fn parse(text: &str) -> Result<Self, FieldNameError> {
        let mut mask = Self::default();
        let mut rest = text;
        loop {
            let (path, after) = parse_path(rest).ok_or_else(|| FieldNameError(text.to_owned()))?;
            mask.add(path);
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None if after.is_empty() => return Ok(mask),
                None => return Err(FieldNameError(text.to_owned())),
            }
        }
    }

    /// Adds a field, given by the keys that lead to it. One that is inside of another one is in the mask already.
    pub fn add(&mut self, path: Vec<String>) {
        if self.paths.iter().any(|outer| path.starts_with(outer)) {
            return;
        }
        self.paths.retain(|inner| !inner.starts_with(&path));
        let at = self.paths.partition_point(|other| *other < path);
        self.paths.insert(at, path);
    }

    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// The names as the protocol has them.
    pub fn names(&self) -> Vec<String> {
        self.paths
            .iter()
            .map(|path| field_path_text(path.iter().map(String::as_str)))
            .collect()
    }

    /// The keys that lead to each field.
    pub fn paths(&self) -> &[Vec<String>] {
        &self.paths
    }

    /// The fields that it names, as far as a document has them.
    pub fn pick(&self, fields: &Fields) -> Fields {
        let mut picked = Fields::new();
        for path in &self.paths {
            if let Some(value) = value_at(fields, path) {
                put_at(&mut picked, path, value.clone());
            }
        }
        picked
    }

    /// Whether two documents agree about the fields that it names.
    pub fn agree(&self, one: &Fields, other: &Fields) -> bool {
        let same = |path: &Vec<String>| value_at(one, path) == value_at(other, path);
        self.paths.iter().all(same)
    }
}

impl std::fmt::Display for FieldMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

/// The value that keys lead to, through maps.
pub fn value_at<'a>(fields: &'a Fields, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(fields.get(first)?, |value, key| match value {
            Value::Map(fields) => fields.get(key),
            _ => None,
        })
}

fn put_at(fields: &mut Fields, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => drop(fields.insert(last.clone(), value)),
        [first, rest @ ..] => {
            let inner = fields
                .entry(first.clone())
                .or_insert_with(|| Value::Map(Fields::new()));
            if let Value::Map(inner) = inner {
                put_at(inner, rest, value);
            }
        }
    }
}

/// What has to be written over a document so that it has all that another one has and keeps what only it has.
#[derive(Clone, Debug, PartialEq)]
pub enum Merge {
    /// Nothing: it has all of it.
    Nothing,
    /// These fields, those that the mask names.
    Patch {
        /// What is to be written.
        fields: Fields,
        /// Which of it; all of it.
        mask: FieldMask,
    },
    /// The whole document: the protocol cannot name a field that differs.
    Whole(Fields),
}

/// How `from` is merged into `into`. Maps are merged key by key, at any depth, and an empty map only makes
/// sure that there is a map; every other value takes the place of what is there. Vectors and other types that
/// are maps with reserved keys are values, not maps.
pub fn merge(from: &Fields, into: &Fields) -> Merge {
    let (mut fields, mut mask) = (Fields::new(), FieldMask::default());
    let mut path = Vec::new();
    match merge_map(from, into, &mut path, &mut fields, &mut mask) {
        Ok(()) if mask.is_empty() => Merge::Nothing,
        Ok(()) => Merge::Patch { fields, mask },
        Err(Unnameable) => Merge::Whole(merged(from, into)),
    }
}

/// A key that no field path of the protocol can have.
struct Unnameable;

fn merge_map(
    from: &Fields,
    into: &Fields,
    path: &mut Vec<String>,
    patch: &mut Fields,
    mask: &mut FieldMask,
) -> Result<(), Unnameable> {
    for (key, value) in from {
        let there = into.get(key);
        if there == Some(value) {
            continue;
        }
        if key.is_empty() || is_reserved(key) {
            return Err(Unnameable);
        }
        path.push(key.clone());
        match (as_map(value), there.and_then(as_map)) {
            (Some(inner), Some(there)) => {
                if merge_map(inner, there, path, patch, mask).is_err() {
                    // Then its maps are merged here, and it is written as one value.
                    mask.add(path.clone());
                    put_at(patch, path, Value::Map(merged(inner, there)));
                }
            }
            _ => {
                mask.add(path.clone());
                put_at(patch, path, value.clone());
            }
        }
        path.pop();
    }
    Ok(())
}

fn merged(from: &Fields, into: &Fields) -> Fields {
    let mut merged = into.clone();
    for (key, value) in from {
        let value = match (as_map(value), into.get(key).and_then(as_map)) {
            (Some(inner), Some(there)) => Value::Map(self::merged(inner, there)),
            _ => value.clone(),
        };
        merged.insert(key.clone(), value);
    }
    merged
}

/// The fields of a map that is no more than a map.
fn as_map(value: &Value) -> Option<&Fields> {
    match value {
        Value::Map(fields) if !fields.keys().any(|key| is_reserved(key)) => Some(fields),
        _ => None,
    }
}

/// Keys of this form stand for types.
fn is_reserved(key: &str) -> bool {
    key.len() > 4 && key.starts_with("__") && key.ends_with("__")
}

/// Reads a name, up to a comma or the end.
fn parse_path(text: &str) -> Option<(Vec<String>, &str)> {
    let mut path = Vec::new();
    let mut rest = text.trim_start();
    loop {
        let mut key = String::new();
        if let Some(quoted) = rest.strip_prefix('`') {
            let mut letters = quoted.char_indices();
            rest = loop {
                match letters.next()? {
                    (at, '`') => break &quoted[at + 1..],
                    (_, '\\') => key.push(letters.next()?.1),
                    (_, letter) => key.push(letter),
                }
            };
        } else {
            let end = rest.find(['.', ',', '`']).unwrap_or(rest.len());
            key.push_str(rest[..end].trim_end());
            rest = &rest[end..];
            // Whatever is typed without backticks is taken as it is, but for what could be a slip.
            if key.contains(char::is_whitespace) {
                return None;
            }
        }
        if key.is_empty() {
            return None;
        }
        path.push(key);
        rest = rest.trim_start();
        match rest.strip_prefix('.') {
            Some(more) => rest = more,
            None => return Some((path, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::typed_json::{fields_from_str, fields_to_json};

    fn fields(text: &str) -> Fields {
        fields_from_str(text).unwrap()
    }

    #[test]
    fn names_are_read_and_shown() {
        let mask = FieldMask::parse("b.c, a,`x.y`.`z\\`,`,b.c.d").unwrap();
        assert_eq!(mask.to_string(), "a,b.c,`x.y`.`z\\`,`");
        assert_eq!(FieldMask::parse("größe-1").unwrap().to_string(), "`größe-1`");
        for wrong in ["", "a,", "a..b", ".a", "`a", "a b", "a`b", "``"] {
            assert!(FieldMask::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn picks_what_it_names() {
        let mask = FieldMask::parse("a,b.c,e.f").unwrap();
        let picked = mask.pick(&fields(r#"{"a": 1, "b": {"c": {}, "d": 2}, "e": 5}"#));
        assert_eq!(picked, fields(r#"{"a": 1, "b": {"c": {}}}"#));
    }

    fn merge_texts(from: &str, into: &str) -> String {
        match merge(&fields(from), &fields(into)) {
            Merge::Nothing => "nothing".to_owned(),
            Merge::Patch { fields, mask } => {
                assert!(
                    mask.agree(&fields, &merged(&self::fields(from), &self::fields(into))),
                    "a patch makes what a merge makes"
                );
                format!("{mask} = {}", fields_to_json(&fields).unwrap())
            }
            Merge::Whole(fields) => format!("whole = {}", fields_to_json(&fields).unwrap()),
        }
    }

    #[test]
    fn a_merge_touches_what_differs() {
        for (from, into, expected) in [
            (r#"{}"#, r#"{"a":1}"#, "nothing"),
            (r#"{"a":1}"#, r#"{"a":1,"b":2}"#, "nothing"),
            (r#"{"a":1}"#, r#"{"a":2,"b":2}"#, r#"a = {"a":1}"#),
            (
                r#"{"a":{"b":1}}"#,
                r#"{"a":{"b":2,"c":3}}"#,
                r#"a.b = {"a":{"b":1}}"#,
            ),
            (r#"{"a":{"b":1}}"#, r#"{"a":5}"#, r#"a = {"a":{"b":1}}"#),
            (r#"{"a":{"b":1}}"#, r#"{}"#, r#"a = {"a":{"b":1}}"#),
            // An empty map says that there is a map, not that nothing is in it.
            (r#"{"a":{}}"#, r#"{"a":{"c":3}}"#, "nothing"),
            (r#"{"a":{}}"#, r#"{"a":5}"#, r#"a = {"a":{}}"#),
            (r#"{"a":{}}"#, r#"{}"#, r#"a = {"a":{}}"#),
            (r#"{"a":{"b":{}}}"#, r#"{"a":{"c":3}}"#, r#"a.b = {"a":{"b":{}}}"#),
            // Arrays are values.
            (r#"{"a":[1]}"#, r#"{"a":[1,2]}"#, r#"a = {"a":[1]}"#),
            // So are types that are maps on the wire.
            (
                r#"{"v":{"__type__":"__vector__","value":[1.5]}}"#,
                r#"{"v":{"__type__":"__vector__","value":[2.5],"x":1}}"#,
                r#"v = {"v":{"__type__":"__vector__","value":[1.5]}}"#,
            ),
            (r#"{"a.b":1}"#, r#"{"a":{"b":1}}"#, r#"`a.b` = {"a.b":1}"#),
            // What no mask can name is merged here.
            (
                r#"{"":1,"b":2}"#,
                r#"{"b":1,"c":3}"#,
                r#"whole = {"":1,"b":2,"c":3}"#,
            ),
            (
                r#"{"m":{"":1},"b":2}"#,
                r#"{"m":{"x":1},"c":3}"#,
                r#"b,m = {"b":2,"m":{"":1,"x":1}}"#,
            ),
        ] {
            assert_eq!(
                merge_texts(from, into).replace(' ', ""),
                expected.replace(' ', ""),
                "{from} into {into}"
            );
        }
    }
}
