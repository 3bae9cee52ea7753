//! Comparing two streams of documents that are in path order.

use std::pin::pin;

use futures::{Stream, StreamExt};

use crate::document::{DocumentBatch, DocumentPath, DocumentRef, FieldChange, PathError};

/// How many paths a [`Comparison`] names unless it is told otherwise; it counts all.
pub const NAMED_DIFFERENCES: usize = 20;

/// What two streams of documents have in common and what not.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Comparison {
    /// Documents that both have, with the same fields to the bit.
    pub equal: u64,
    /// Documents that both have, with other fields.
    pub different: u64,
    /// Documents that only the expected side has.
    pub missing: u64,
    /// Documents that only the found side has.
    pub extra: u64,
    /// The first of those that differ, are missing or extra, in path order.
    pub first_differences: Vec<Difference>,
}

/// One document that the two sides disagree about.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Difference {
    /// The document.
    pub path: DocumentPath,
    /// How they disagree.
    pub kind: DifferenceKind,
    /// The fields that differ, where somebody has looked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
}

/// How two sides disagree about a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// Both have it, with other fields.
    Different,
    /// Only the expected side has it.
    Missing,
    /// Only the found side has it.
    Extra,
}

impl Comparison {
    /// Whether both sides are the same, to the bit.
    pub fn is_equal(&self) -> bool {
        self.differences() == 0
    }

    /// Documents that differ, are missing or extra.
    pub fn differences(&self) -> u64 {
        self.different + self.missing + self.extra
    }

    /// Counts a difference, and names it while fewer than `named` are.
    pub(crate) fn note(&mut self, path: DocumentPath, kind: DifferenceKind, named: usize) {
        self.count(kind);
        if self.first_differences.len() < named {
            let fields = Vec::new();
            self.first_differences.push(Difference { path, kind, fields });
        }
    }

    fn count(&mut self, kind: DifferenceKind) {
        *match kind {
            DifferenceKind::Different => &mut self.different,
            DifferenceKind::Missing => &mut self.missing,
            DifferenceKind::Extra => &mut self.extra,
        } += 1;
    }

    /// Adds what was found further on in path order.
    pub(crate) fn append(&mut self, later: Self, named: usize) {
        self.equal += later.equal;
        self.different += later.different;
        self.missing += later.missing;
        self.extra += later.extra;
        let room = named.saturating_sub(self.first_differences.len());
        self.first_differences
            .extend(later.first_differences.into_iter().take(room));
    }
}

/// Compares what is there with what should be: paths and fields, not the times, which a restore cannot set.
///
/// Both streams must be in ascending path order. Holds one batch of each.
pub async fn compare<E>(
    expected: impl Stream<Item = Result<DocumentBatch, E>>,
    found: impl Stream<Item = Result<DocumentBatch, E>>,
) -> Result<Comparison, E>
where
    E: From<PathError>,
{
    let mut comparison = Comparison::default();
    let (mut expected, mut found) = (pin!(expected), pin!(found));
    let (mut expected, mut found) = (Cursor::new(expected.as_mut()), Cursor::new(found.as_mut()));
    loop {
        expected.fill().await?;
        found.fill().await?;
        let order = match (expected.current(), found.current()) {
            (None, None) => return Ok(comparison),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(expected), Some(found)) => expected.key.cmp(found.key),
        };
        match (order, expected.current(), found.current()) {
            (std::cmp::Ordering::Less, Some(document), _) => {
                comparison.note(document.path()?, DifferenceKind::Missing, NAMED_DIFFERENCES);
                expected.advance();
            }
            (std::cmp::Ordering::Greater, _, Some(document)) => {
                comparison.note(document.path()?, DifferenceKind::Extra, NAMED_DIFFERENCES);
                found.advance();
            }
            (_, Some(left), Some(right)) => {
                if left.body == right.body {
                    comparison.equal += 1;
                } else {
                    comparison.note(left.path()?, DifferenceKind::Different, NAMED_DIFFERENCES);
                }
                expected.advance();
                found.advance();
            }
            _ => return Ok(comparison),
        }
    }
}

/// Goes through the documents of a stream one by one.
pub(crate) struct Cursor<S> {
    stream: S,
    batch: DocumentBatch,
    position: usize,
    ended: bool,
}

impl<S, E> Cursor<S>
where
    S: Stream<Item = Result<DocumentBatch, E>> + Unpin,
{
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            batch: DocumentBatch::new(),
            position: 0,
            ended: false,
        }
    }

    /// Fetches the next batch when the present one is used up. Must come before [`Cursor::current`].
    pub(crate) async fn fill(&mut self) -> Result<(), E> {
        while !self.ended && self.position == self.batch.len() {
            match self.stream.next().await.transpose()? {
                Some(batch) => (self.batch, self.position) = (batch, 0),
                None => self.ended = true,
            }
        }
        Ok(())
    }

    /// The document that it is at; `None` at the end.
    pub(crate) fn current(&self) -> Option<DocumentRef<'_>> {
        self.batch.get(self.position)
    }

    /// The last document of the batch that it is in.
    pub(crate) fn last(&self) -> Option<DocumentRef<'_>> {
        self.batch.last()
    }

    /// Goes to the next document.
    pub(crate) fn advance(&mut self) {
        self.position += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Timestamp;

    fn batches(documents: &[(&str, &[u8])]) -> impl Stream<Item = Result<DocumentBatch, PathError>> {
        let batches: Vec<_> = documents
            .chunks(2)
            .map(|chunk| {
                let mut batch = DocumentBatch::new();
                for (path, body) in chunk {
                    let key = DocumentPath::parse(*path).unwrap().key();
                    batch.push(DocumentRef {
                        key: key.as_bytes(),
                        create_time: Timestamp::default(),
                        update_time: Timestamp::default(),
                        body,
                    });
                }
                Ok(batch)
            })
            .collect();
        futures::stream::iter(batches)
    }

    #[tokio::test]
    async fn every_kind_of_difference_is_counted_and_named() {
        let expected = batches(&[("a/1", b"x"), ("a/2", b"x"), ("a/3", b"x"), ("a/5", b"x")]);
        let found = batches(&[
            ("a/0", b"x"),
            ("a/1", b"x"),
            ("a/3", b"y"),
            ("a/5", b"x"),
            ("a/6", b"x"),
        ]);
        let comparison = compare(expected, found).await.unwrap();
        assert!(!comparison.is_equal());
        let named: Vec<_> = comparison
            .first_differences
            .iter()
            .map(|d| (d.path.as_str(), d.kind))
            .collect();
        assert_eq!(
            named,
            [
                ("a/0", DifferenceKind::Extra),
                ("a/2", DifferenceKind::Missing),
                ("a/3", DifferenceKind::Different),
                ("a/6", DifferenceKind::Extra)
            ]
        );
        assert_eq!((comparison.equal, comparison.extra), (2, 2));
    }

    #[tokio::test]
    async fn nothing_equals_nothing() {
        assert!(compare(batches(&[]), batches(&[])).await.unwrap().is_equal());
        assert!(
            !compare(batches(&[("a/1", b"x")]), batches(&[]))
                .await
                .unwrap()
                .is_equal()
        );
    }
}
