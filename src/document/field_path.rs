//! Where in a document something stands, for messages.

use std::fmt;

use super::{Fields, Value};

/// The way from a document's fields to a value in them.
///
/// Shown as Firestore writes field paths, with indexes for what it has no notation for: ``a.`b c`[3].d``.
/// Built from the inside out while an error travels up, so that it costs nothing where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPath {
    /// The innermost step first.
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl FieldPath {
    /// The document's fields as a whole.
    pub fn root() -> Self {
        Self::default()
    }

    /// Whether this is the document itself and not a value in it.
    pub fn is_root(&self) -> bool {
        self.steps.is_empty()
    }

    /// The value at this place; `None` where there is none, and for the document itself.
    pub fn find<'a>(&self, fields: &'a Fields) -> Option<&'a Value> {
        let mut steps = self.steps.iter().rev();
        let Some(Step::Key(first)) = steps.next() else {
            return None;
        };
        steps.try_fold(fields.get(first)?, |value, step| match (step, value) {
            (Step::Key(key), Value::Map(map)) => map.get(key),
            (Step::Index(index), Value::Array(values)) => values.get(*index),
            _ => None,
        })
    }

    /// The same place seen from the map that holds it as `key`.
    pub(crate) fn push_key(&mut self, key: &str) {
        self.steps.push(Step::Key(key.to_owned()));
    }

    /// The same place seen from the array that holds it at `index`.
    pub(crate) fn push_index(&mut self, index: usize) {
        self.steps.push(Step::Index(index));
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str("the document's fields");
        }
        for (number, step) in self.steps.iter().rev().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if number > 0 {
                        f.write_str(".")?;
                    }
                    write_key(key, f)?;
                }
            }
        }
        Ok(())
    }
}

/// The path that these keys lead along as Firestore writes it: keys that are no simple names stand between
/// backticks. For the server, where a [`FieldPath`] is for people and shows control characters.
pub fn field_path_text<'a>(keys: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for key in keys {
        if !text.is_empty() {
            text.push('.');
        }
        if is_simple(key) {
            text.push_str(key);
            continue;
        }
        text.push('`');
        for letter in key.chars() {
            if matches!(letter, '`' | '\\') {
                text.push('\\');
            }
            text.push(letter);
        }
        text.push('`');
    }
    text
}

/// Whether a key needs no backticks.
fn is_simple(key: &str) -> bool {
    let mut letters = key.bytes();
    letters
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && letters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn write_key(key: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if is_simple(key) {
        return f.write_str(key);
    }
    f.write_str("`")?;
    for letter in key.chars() {
        match letter {
            '`' | '\\' => write!(f, "\\{letter}")?,
            letter if letter.is_control() => write!(f, "{}", letter.escape_unicode())?,
            letter => write!(f, "{letter}")?,
        }
    }
    f.write_str("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_way_from_the_outside_in() {
        let mut path = FieldPath::root();
        path.push_key("d");
        path.push_index(3);
        path.push_key("b`c\0");
        path.push_key("a_1");
        assert_eq!(path.to_string(), "a_1.`b\\`c\\u{0}`[3].d");
        assert_eq!(FieldPath::root().to_string(), "the document's fields");
    }
}
