//! Comparing two streams of documents that are in path order.

use std::pin::pin;

use futures::{Stream, StreamExt};

use crate::document::{DocumentBatch, DocumentPath, DocumentRef, PathError};

/// How many paths of each kind a [`Comparison`] names; it counts all.
const NAMED_DIFFERENCES: usize = 20;

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
#[derive(Clone, Debug, serde::Serialize)]
pub struct Difference {
    /// The document.
    pub path: DocumentPath,
    /// How they disagree.
    pub kind: DifferenceKind,
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
        self.different + self.missing + self.extra == 0
    }

    fn note(&mut self, key: &[u8], kind: DifferenceKind) -> Result<(), PathError> {
        match kind {
            DifferenceKind::Different => self.different += 1,
            DifferenceKind::Missing => self.missing += 1,
            DifferenceKind::Extra => self.extra += 1,
        }
        if self.first_differences.len() < NAMED_DIFFERENCES {
            self.first_differences.push(Difference {
                path: DocumentPath::from_key(key)?,
                kind,
            });
        }
        Ok(())
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
                comparison.note(document.key, DifferenceKind::Missing)?;
                expected.advance();
            }
            (std::cmp::Ordering::Greater, _, Some(document)) => {
                comparison.note(document.key, DifferenceKind::Extra)?;
                found.advance();
            }
            (_, Some(left), Some(right)) => {
                if left.body == right.body {
                    comparison.equal += 1;
                } else {
                    comparison.note(left.key, DifferenceKind::Different)?;
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
