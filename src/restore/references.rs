//! What becomes of references when documents move to another database, or to another name.
//!
//! A snapshot holds references into its own database as paths alone, so by default they point at the database that is written.
//! References to other databases are full names and stay what they are.

use std::borrow::Cow;

use super::Renames;
use crate::document::canonical::{self, ReferenceRef};
use crate::document::{CanonicalError, DatabaseName, DocumentPath, Fields, Reference, Value};

/// Where references into the snapshot's own database point once they are restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceMode {
    /// Into the database that is written, and to renamed collections under their new names.
    #[default]
    Rewrite,
    /// Where they pointed: into the database that the snapshot was taken of, at the old names.
    Keep,
    /// As [`Rewrite`](Self::Rewrite); but if any document that was chosen refers to another database, nothing is written.
    Fail,
}

/// References in the documents that were looked into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReferenceCounts {
    /// Those that come to point into the database that is written.
    pub rewritten: u64,
    /// Of these, those that lead to a renamed collection's new name.
    pub renamed: u64,
    /// Those that keep pointing into the database that the snapshot was taken of.
    pub kept: u64,
    /// Those to documents of other databases, which stay as they are.
    pub foreign: u64,
}

impl std::ops::AddAssign for ReferenceCounts {
    fn add_assign(&mut self, other: Self) {
        self.rewritten += other.rewritten;
        self.renamed += other.renamed;
        self.kept += other.kept;
        self.foreign += other.foreign;
    }
}

/// How references are restored.
#[derive(Clone, Debug)]
pub(crate) struct References {
    /// Where kept ones point: `projects/…/databases/…/documents/`.
    keep: Option<String>,
    /// What names in the database that is written begin with.
    target: String,
    renames: Renames,
}

impl References {
    /// `source` is the snapshot's database, if it is known.
    pub(crate) fn new(
        mode: ReferenceMode,
        source: Option<&DatabaseName>,
        target: &DatabaseName,
        renames: &Renames,
    ) -> Self {
        let keep = source.filter(|_| mode == ReferenceMode::Keep);
        Self {
            keep: keep
                .filter(|source| *source != target || !renames.is_empty())
                .map(|source| format!("{}/", source.root())),
            target: format!("{}/", target.root()),
            renames: renames.clone(),
        }
    }

    /// Whether relative references stay what they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.keep.is_none() && self.renames.is_empty()
    }

    /// The body with its references as they are to be written, in the form in which they would be read again.
    pub(crate) fn restored<'a>(&self, body: &'a [u8]) -> Result<Cow<'a, [u8]>, CanonicalError> {
        let mut changes = false;
        canonical::for_each_reference(body, |reference| {
            changes |= self.change(reference).is_some();
        })?;
        if !changes {
            return Ok(Cow::Borrowed(body));
        }
        let mut fields = canonical::decode(body)?;
        self.change_fields(&mut fields);
        Ok(Cow::Owned(canonical::encode(&fields)))
    }

    /// What references there are in a body that is written.
    pub(crate) fn count(&self, restored: &[u8]) -> Result<ReferenceCounts, CanonicalError> {
        let mut counts = ReferenceCounts::default();
        let is_kept = |name: &str| self.keep.as_ref().is_some_and(|source| name.starts_with(source));
        canonical::for_each_reference(restored, |reference| match reference {
            // Kept, and at home.
            ReferenceRef::Relative(_) if is_kept(&self.target) => counts.kept += 1,
            ReferenceRef::Relative(path) => {
                counts.rewritten += 1;
                counts.renamed += u64::from(self.renames.lead_to(path));
            }
            ReferenceRef::Absolute(name) if is_kept(name) => counts.kept += 1,
            ReferenceRef::Absolute(_) => counts.foreign += 1,
        })?;
        Ok(counts)
    }

    /// What takes a reference's place, if anything does.
    fn change(&self, reference: ReferenceRef<'_>) -> Option<Reference> {
        match reference {
            ReferenceRef::Relative(path) => match &self.keep {
                Some(source) => self.absolute(format!("{source}{path}")),
                None => {
                    let renamed = self.renames.rename(path)?;
                    DocumentPath::parse(renamed).ok().map(Reference::Relative)
                }
            },
            // Written as a name, read as a path.
            ReferenceRef::Absolute(name) => {
                let path = name.strip_prefix(&self.target)?;
                DocumentPath::parse(path).ok().map(Reference::Relative)
            }
        }
    }

    /// A name, in the form in which it would be read.
    fn absolute(&self, name: String) -> Option<Reference> {
        let path = name.strip_prefix(&self.target);
        match path.and_then(|path| DocumentPath::parse(path).ok()) {
            Some(path) => Some(Reference::Relative(path)),
            None => Some(Reference::Absolute(name)),
        }
    }

    fn change_fields(&self, fields: &mut Fields) {
        fields.values_mut().for_each(|value| self.change_value(value));
    }

    fn change_value(&self, value: &mut Value) {
        match value {
            Value::Reference(reference) => {
                let found = match &*reference {
                    Reference::Relative(path) => ReferenceRef::Relative(path.as_str()),
                    Reference::Absolute(name) => ReferenceRef::Absolute(name),
                };
                if let Some(changed) = self.change(found) {
                    *reference = changed;
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.change_value(value)),
            Value::Map(fields) => self.change_fields(fields),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::typed_json::{fields_from_str, fields_to_json};

    fn restored(mode: ReferenceMode, target: &str, renames: &[&str], text: &str) -> (String, [u64; 4]) {
        let (source, target) = (
            DatabaseName::new("shop", "(default)"),
            DatabaseName::new(target, "(default)"),
        );
        let renames = Renames::parse(renames).unwrap();
        let references = References::new(mode, Some(&source), &target, &renames);
        let body = canonical::encode(&fields_from_str(text).unwrap());
        let restored = references.restored(&body).unwrap();
        let counts = references.count(&restored).unwrap();
        let fields = canonical::decode(&restored).unwrap();
        let text = fields_to_json(&fields).unwrap().to_string();
        (
            text,
            [counts.rewritten, counts.renamed, counts.kept, counts.foreign],
        )
    }

    #[test]
    fn references_go_where_they_are_meant_to() {
        let text = r#"{"r":{"$reference":"a/1"},"s":[{"$reference":"c/1"}]}"#;
        let shop = "projects/shop/databases/(default)/documents";
        assert_eq!(
            restored(ReferenceMode::Rewrite, "copy", &[], text),
            (text.to_owned(), [2, 0, 0, 0])
        );
        assert_eq!(
            restored(ReferenceMode::Rewrite, "copy", &["a=b"], text),
            (text.replace("a/1", "b/1"), [2, 1, 0, 0])
        );
        let kept = text
            .replace("$reference", "$absoluteReference")
            .replace("a/1", &format!("{shop}/a/1"))
            .replace("c/1", &format!("{shop}/c/1"));
        assert_eq!(
            restored(ReferenceMode::Keep, "copy", &["a=b"], text),
            (kept.clone(), [0, 0, 2, 0])
        );
        assert_eq!(
            restored(ReferenceMode::Keep, "shop", &["a=b"], text),
            (text.to_owned(), [0, 0, 2, 0])
        );
        // What was foreign is at home where it is restored to.
        assert_eq!(
            restored(ReferenceMode::Rewrite, "copy", &[], &kept),
            (kept.clone(), [0, 0, 0, 2])
        );
        let home = kept.replace("shop", "copy");
        assert_eq!(
            restored(ReferenceMode::Rewrite, "copy", &[], &home),
            (text.to_owned(), [2, 0, 0, 0])
        );
    }
}
