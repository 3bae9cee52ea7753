//! How a snapshot's references read in the database that they were written to.
//!
//! References to documents of the same database are stored relative, those to other databases absolute. In another database
//! "the same" means something else: what was absolute may point into it and then reads relative, and a reference that was
//! written with its old target reads absolute. So two documents can differ in their bytes and say the same.

use std::borrow::Cow;

use super::DiffError;
use crate::document::{DatabaseName, DocumentPath, Fields, Reference, Value, canonical};

/// What a snapshot's references become in a database.
#[derive(Clone, Debug)]
pub(crate) struct ReferencesThere {
    /// `projects/…/databases/…/documents/` of the database.
    there: String,
    /// The same of the snapshot's database, where relative references were written to point at that one.
    kept: Option<String>,
    same: bool,
}

impl ReferencesThere {
    /// References of a snapshot of `from`, read in `there`; `kept` says that they were written to point where they pointed
    /// before, and not at the same document of the new database.
    pub(crate) fn new(from: &DatabaseName, there: &DatabaseName, kept: bool) -> Self {
        let root = |database: &DatabaseName| format!("{}/", database.root());
        let same = from == there;
        Self {
            there: root(there),
            kept: (kept && !same).then(|| root(from)),
            same,
        }
    }

    /// Whether all of them read as they are stored.
    pub(crate) fn are_the_same(&self) -> bool {
        self.same
    }

    /// The body that a document has there if it has this one in the snapshot.
    pub(crate) fn body_there<'b>(
        &self,
        path: &DocumentPath,
        body: &'b [u8],
    ) -> Result<Cow<'b, [u8]>, DiffError> {
        if self.same {
            return Ok(Cow::Borrowed(body));
        }
        let mut fields = canonical::decode(body).map_err(|source| DiffError::Body {
            path: path.clone(),
            source,
        })?;
        Ok(match self.rewrite(&mut fields) {
            true => Cow::Owned(canonical::encode(&fields)),
            false => Cow::Borrowed(body),
        })
    }

    /// Whether anything was rewritten.
    fn rewrite(&self, fields: &mut Fields) -> bool {
        fields
            .values_mut()
            .fold(false, |any, value| self.rewrite_value(value) | any)
    }

    fn rewrite_value(&self, value: &mut Value) -> bool {
        let there = match value {
            Value::Map(fields) => return self.rewrite(fields),
            Value::Array(values) => {
                return values
                    .iter_mut()
                    .fold(false, |any, value| self.rewrite_value(value) | any);
            }
            Value::Reference(Reference::Relative(path)) => self
                .kept
                .as_ref()
                .map(|root| Reference::Absolute(format!("{root}{path}"))),
            Value::Reference(Reference::Absolute(name)) => name
                .strip_prefix(&self.there)
                .and_then(|path| DocumentPath::parse(path).ok())
                .map(Reference::Relative),
            _ => None,
        };
        match there {
            Some(there) => {
                *value = Value::Reference(there);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::typed_json::fields_from_str;

    fn there(kept: bool, target: &str, fields: &str) -> String {
        let from = DatabaseName::new("shop", "(default)");
        let references = ReferencesThere::new(&from, &DatabaseName::new(target, "(default)"), kept);
        let body = canonical::encode(&fields_from_str(fields).unwrap());
        let path = DocumentPath::parse("a/1").unwrap();
        let body = references.body_there(&path, &body).unwrap();
        serde_json::to_string(&crate::document::typed_json::FieldsJson::new(&body)).unwrap()
    }

    #[test]
    fn references_read_as_they_were_written() {
        let stored = r#"{"a":[{"$reference":"p/1"}],"b":{"c":{"$absoluteReference":"projects/copy/databases/(default)/documents/p/2"}},"d":1}"#;
        let moved = r#"{"a":[{"$reference":"p/1"}],"b":{"c":{"$reference":"p/2"}},"d":1}"#;
        let kept = r#"{"a":[{"$absoluteReference":"projects/shop/databases/(default)/documents/p/1"}],"b":{"c":{"$reference":"p/2"}},"d":1}"#;
        assert_eq!(there(false, "copy", stored), moved);
        assert_eq!(there(true, "copy", stored), kept);
        assert_eq!(there(false, "other", stored), stored);
        assert_eq!(there(true, "shop", stored), stored);
    }
}
