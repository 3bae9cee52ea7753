//! Cutting the key space into parts that can be read side by side.
//!
//! Production knows where its data is: PartitionQuery gives names that split a collection group evenly. Where
//! it is not offered, or knows too little (it asks by group, and the root's collections need not be where the
//! documents are), the key space is probed: a piece is halved at a made-up name, counts say which piece to
//! halve next, and queries for one name keep the pieces tight around what is there. Parts come out roughly
//! equal; that is enough, since whoever reads them splits what runs longest again.

mod between;

use std::collections::BTreeSet;
use std::time::Duration;

use ::firestore::gcloud_sdk::google::firestore::v1::partition_query_request::{
    ConsistencySelector, QueryType,
};
use ::firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    CollectionSelector, Direction, Order,
};
use ::firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use ::firestore::gcloud_sdk::google::firestore::v1::{
    PartitionQueryRequest, PartitionQueryResponse, RunQueryResponse, StructuredQuery,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::by_name::{query_by_name, query_request};
use super::cursor::{NameRange, cursor, name_range};
use super::proto::{name_field, protobuf_time};
use super::{Error, Firestore, Method, Result};
use crate::document::{CollectionPath, DocumentKey, DocumentPath, KeyRange, Timestamp};
use between::{name_between, name_past};

/// Groups that are asked for partitions at once.
const GROUPS_AT_ONCE: usize = 8;
/// Partitions asked for, for each part: the more, the better they show where the data is.
const PARTITIONS_PER_PART: usize = 4;
/// Collections that get a piece of their own; of more, every n-th.
const MOST_COLLECTIONS: usize = 256;
/// Pieces made by probing, for each part, so that parts of about the same size can be put together.
const PIECES_PER_PART: usize = 2;
/// Pieces that may be tried to be halved, for each part.
const HALVINGS_PER_PART: usize = 6;
/// How long an answer may take that only makes the parts more even.
const PATIENCE: Duration = Duration::from_secs(10);
/// Queries that bring a piece's end nearer to its last document.
const MOST_TIGHTENINGS: usize = 24;
/// Documents that are not worth a piece.
const SMALLEST_PIECE: u64 = 16;

impl Firestore {
    /// Cuts a range into at most `parts` parts of about the same number of documents: the keys that begin the
    /// second and every further part, ascending, inside the range. There may be fewer, or none.
    ///
    /// A few requests for each part, billed as a read each (counts as one for each thousand). Only a lack of
    /// permission or of the database is an error; everything else just leaves fewer parts.
    ///
    /// Where collection groups are named, only their documents count; then the server must offer
    /// PartitionQuery, or the range stays whole.
    pub async fn split(
        &self,
        range: &KeyRange,
        groups: &[String],
        read_time: Timestamp,
        parts: usize,
    ) -> Result<Vec<DocumentKey>> {
        if parts < 2 || range.is_empty() {
            return Ok(Vec::new());
        }
        if !groups.is_empty() {
            let partitions = self.partitions(groups, range, read_time, parts).await;
            let partitions = partitions.or_else(|error| tolerated(error, BTreeSet::new()))?;
            return Ok(thinned(partitions.into_iter().collect(), parts - 1));
        }
        let roots = match self.root_collections(range, read_time).await {
            Ok(roots) => roots,
            Err(error) => return tolerated(error, Vec::new()),
        };
        if self.walks() {
            // A walk cannot begin within a collection without passing over what comes before.
            let starts = roots.iter().filter_map(|group| group.key_range().start);
            let starts: BTreeSet<DocumentKey> = starts.filter(|start| inside(range, start)).collect();
            return Ok(thinned(starts.into_iter().collect(), parts - 1));
        }
        let groups: Vec<String> = roots.iter().map(|root| root.as_str().to_owned()).collect();
        let partitions = match self.partitions(&groups, range, read_time, parts).await {
            Ok(partitions) => partitions,
            Err(error) => tolerated(error, BTreeSet::new())?,
        };
        if partitions.len() + 1 >= parts {
            return Ok(thinned(partitions.into_iter().collect(), parts - 1));
        }
        let mut probing = Probing {
            firestore: self,
            read_time,
            pieces: Vec::new(),
            counts: true,
            lasts: true,
        };
        match probing.run(range, &roots, partitions, parts).await {
            Ok(()) => {}
            Err(error) => tolerated(error, ())?,
        }
        Ok(probing.boundaries(parts))
    }

    /// The root collections that have something in the range.
    async fn root_collections(&self, range: &KeyRange, read_time: Timestamp) -> Result<Vec<CollectionPath>> {
        let ids: Vec<String> = self.collection_ids(None, Some(read_time)).try_collect().await?;
        Ok(ids
            .into_iter()
            .filter_map(|id| CollectionPath::parse(id).ok())
            .filter(|collection| !collection.key_range().intersection(range).is_empty())
            .collect())
    }

    /// The server's own split points inside the range.
    async fn partitions(
        &self,
        groups: &[String],
        range: &KeyRange,
        read_time: Timestamp,
        parts: usize,
    ) -> Result<BTreeSet<DocumentKey>> {
        let asked = parts.saturating_mul(PARTITIONS_PER_PART).min(1000);
        let mut keys = BTreeSet::new();
        // The first one alone: a server that does not offer it is not asked again.
        let Some((first, rest)) = groups.split_first() else {
            return Ok(keys);
        };
        keys.extend(self.partitions_of(first, read_time, asked).await?);
        let mut answers = stream::iter(rest)
            .map(|group| self.partitions_of(group, read_time, asked))
            .buffer_unordered(GROUPS_AT_ONCE)
            .boxed();
        while let Some(more) = answers.try_next().await? {
            keys.extend(more);
        }
        keys.retain(|key| inside(range, key));
        Ok(keys)
    }

    async fn partitions_of(
        &self,
        group: &str,
        read_time: Timestamp,
        asked: usize,
    ) -> Result<Vec<DocumentKey>> {
        let mut request = PartitionQueryRequest {
            parent: self.inner.root.clone(),
            partition_count: i64::try_from(asked).unwrap_or(i64::MAX),
            query_type: Some(QueryType::StructuredQuery(StructuredQuery {
                from: vec![CollectionSelector {
                    collection_id: group.to_owned(),
                    all_descendants: true,
                }],
                order_by: vec![Order {
                    field: Some(name_field()),
                    direction: Direction::Ascending.into(),
                }],
                ..Default::default()
            })),
            consistency_selector: Some(ConsistencySelector::ReadTime(protobuf_time(read_time))),
            ..Default::default()
        };
        let mut keys = Vec::new();
        loop {
            let answer: PartitionQueryResponse = self
                .ask(Method::PartitionQuery, Some(read_time), &request)
                .await?;
            self.inner.stats.billed(1);
            keys.extend(
                answer
                    .partitions
                    .iter()
                    .flat_map(|cursor| &cursor.values)
                    .filter_map(|value| match &value.value_type {
                        Some(ValueType::ReferenceValue(name)) => Some(self.path_of(name)?.key()),
                        _ => None,
                    }),
            );
            if answer.next_page_token.is_empty() {
                return Ok(keys);
            }
            request.page_token = answer.next_page_token;
        }
    }

    /// The first document in a range of names at the read time, or the last: not every server answers in
    /// descending order.
    async fn end_name(
        &self,
        names: &NameRange,
        read_time: Timestamp,
        last: bool,
    ) -> Result<Option<DocumentPath>> {
        let mut query = query_by_name(&self.inner.root, None, names, None);
        if last {
            descending(&mut query, &self.inner.root, names);
        }
        let request = query_request(&self.inner.root, query, true, 1, Some(read_time));
        let answers: Vec<RunQueryResponse> = self
            .ask_stream(Method::RunQuery, Some(read_time), &request)
            .await?;
        self.inner.stats.billed(1);
        let Some(document) = answers.into_iter().find_map(|answer| answer.document) else {
            return Ok(None);
        };
        let path = self.path_of(&document.name).ok_or_else(|| {
            let reason = format!("it has a document named `{}`", document.name);
            Error::malformed(Method::RunQuery, reason)
        })?;
        Ok(Some(path))
    }
}

/// Turns a query around. Its bounds change places: `end` is left out by starting after it.
fn descending(query: &mut StructuredQuery, root: &str, names: &NameRange) {
    for order in &mut query.order_by {
        order.direction = Direction::Descending.into();
    }
    query.start_at = names.end.as_ref().map(|end| cursor(root, end, names.through_end));
    let start = names.start.as_ref();
    query.end_at = start.map(|start| cursor(root, start, names.after_start));
}

/// What failed only makes splitting worse, unless everything that follows will fail as well.
fn tolerated<T>(error: Error, instead: T) -> Result<T> {
    match error {
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::DatabaseNotFound { .. }
        | Error::ReadTimeTooOld { .. } => Err(error),
        error => {
            tracing::debug!(%error, "splitting goes on without");
            Ok(instead)
        }
    }
}

/// The answer to a question that not every server answers, or answers soon: counting hundreds of millions
/// takes longer than reading unevenly cut parts. `None` means not to ask again.
async fn patiently<T>(answer: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) => tolerated(error, None),
        Err(_) => Ok(None),
    }
}

/// Whether the key can begin a part: it is in the range, and not at its start.
fn inside(range: &KeyRange, key: &DocumentKey) -> bool {
    range.contains(key.as_bytes()) && range.start.as_ref() != Some(key)
}

/// Every n-th key, so that `wanted` are left, or all if there are no more.
fn thinned(keys: Vec<DocumentKey>, wanted: usize) -> Vec<DocumentKey> {
    let total = keys.len();
    if total <= wanted {
        return keys;
    }
    (1..=wanted)
        .map(|index| keys[index * (total + 1) / (wanted + 1) - 1].clone())
        .collect()
}

/// A range and what is known of its documents.
#[derive(Clone, Debug)]
struct Piece {
    range: KeyRange,
    first: DocumentPath,
    /// The last document, where the server can be asked for it.
    last: Option<DocumentPath>,
    /// A name that all documents lie before, near to the last of them; `None` if that is the end of everything.
    upper: Option<DocumentPath>,
    /// How many there are, where the server counts.
    documents: Option<u64>,
    /// Whether it was found that it cannot be halved.
    whole: bool,
}

struct Probing<'a> {
    firestore: &'a Firestore,
    read_time: Timestamp,
    /// In order; together they hold every document of the range.
    pieces: Vec<Piece>,
    /// Whether the server counts over all collections.
    counts: bool,
    /// Whether the server answers in descending order.
    lasts: bool,
}

impl Probing<'_> {
    async fn run(
        &mut self,
        range: &KeyRange,
        groups: &[CollectionPath],
        mut boundaries: BTreeSet<DocumentKey>,
        parts: usize,
    ) -> Result<()> {
        let starts: Vec<DocumentKey> = groups
            .iter()
            .filter_map(|group| group.key_range().start)
            .filter(|start| inside(range, start))
            .collect();
        boundaries.extend(thinned(starts, MOST_COLLECTIONS));
        for piece in range.cut_at(&boundaries) {
            let piece = self.look_at(piece, None, None, None).await?;
            self.pieces.extend(piece);
        }
        let wanted = parts.saturating_mul(PIECES_PER_PART);
        for _ in 0..parts.saturating_mul(HALVINGS_PER_PART) {
            if self.pieces.len() >= wanted {
                break;
            }
            let Some(index) = self.largest() else { break };
            let piece = self.pieces[index].clone();
            let halves = self.halve(piece).await?;
            self.pieces.splice(index..=index, halves);
        }
        Ok(())
    }

    /// The piece to halve next: the one with the most documents, or, uncounted, the first of those halved least.
    fn largest(&self) -> Option<usize> {
        let open = self.pieces.iter().enumerate().filter(|(_, piece)| {
            !piece.whole && piece.documents.is_none_or(|documents| documents > SMALLEST_PIECE)
        });
        match self.counts {
            true => open
                .max_by_key(|(_, piece)| piece.documents)
                .map(|(index, _)| index),
            // Pieces that are halved move their halves to the same place: going round keeps them even.
            false => open
                .min_by_key(|(_, piece)| std::cmp::Reverse(spread(piece)))
                .map(|(index, _)| index),
        }
    }

    /// Halves a piece, or makes it tighter, or notes that neither is possible.
    async fn halve(&mut self, mut piece: Piece) -> Result<Vec<Piece>> {
        let end = match &piece.last {
            Some(last) => Some(last.clone()),
            None => piece.upper.clone(),
        };
        let Some(middle) = name_between(&piece.first, end.as_ref()) else {
            piece.whole = true;
            return Ok(vec![piece]);
        };
        let boundary = middle.key();
        let left = KeyRange {
            start: piece.range.start.clone(),
            end: Some(boundary.clone()),
        };
        let right = KeyRange {
            start: Some(boundary),
            end: piece.range.end.clone(),
        };
        // The first document lies left of the middle, and the last, where it is known, right of it.
        let left = self.look_at(left, Some(piece.first), None, None).await?;
        let left_documents = match &left {
            Some(left) => left.documents,
            None => Some(0),
        };
        let rest = piece
            .documents
            .zip(left_documents)
            .map(|(all, left)| all.saturating_sub(left));
        let right = self.look_at(right, None, piece.last, rest).await?;
        Ok(left.into_iter().chain(right).collect())
    }

    /// What is in a range, `None` if nothing. What is known of it already is not asked for.
    async fn look_at(
        &mut self,
        range: KeyRange,
        first: Option<DocumentPath>,
        last: Option<DocumentPath>,
        documents: Option<u64>,
    ) -> Result<Option<Piece>> {
        if range.is_empty() || documents == Some(0) {
            return Ok(None);
        }
        let names = name_range(&range)?;
        let first = match first {
            Some(first) => Some(first),
            None => self.firestore.end_name(&names, self.read_time, false).await?,
        };
        let Some(first) = first else { return Ok(None) };
        let last = match (last, self.lasts) {
            (None, true) => self.last(&names).await?,
            (last, _) => last,
        };
        let documents = match (documents, self.counts) {
            (None, true) => self.count(&range).await?,
            (documents, _) => documents,
        };
        let upper = match &last {
            None => self.tightened(&names, &first).await?,
            Some(_) => names.end,
        };
        Ok(Some(Piece {
            upper,
            whole: last.as_ref() == Some(&first),
            range,
            first,
            last,
            documents,
        }))
    }

    /// The range's end, brought nearer to what is there.
    async fn tightened(&self, names: &NameRange, first: &DocumentPath) -> Result<Option<DocumentPath>> {
        let mut upper = names.end.clone();
        for _ in 0..MOST_TIGHTENINGS {
            let Some(nearer) = name_past(first, upper.as_ref()) else {
                break;
            };
            let beyond = NameRange {
                start: Some(nearer.clone()),
                end: upper.clone(),
                ..NameRange::default()
            };
            if self
                .firestore
                .end_name(&beyond, self.read_time, false)
                .await?
                .is_some()
            {
                break;
            }
            upper = Some(nearer);
        }
        Ok(upper)
    }

    async fn last(&mut self, names: &NameRange) -> Result<Option<DocumentPath>> {
        let asked = self.firestore.end_name(names, self.read_time, true);
        let last = patiently(asked).await?;
        self.lasts = last.is_some();
        Ok(last.flatten())
    }

    async fn count(&mut self, range: &KeyRange) -> Result<Option<u64>> {
        let asked = self.firestore.count(range, Some(self.read_time));
        let count = patiently(asked).await?;
        self.counts = count.is_some();
        Ok(count)
    }

    /// Puts pieces together to parts, and says where all but the first begin.
    fn boundaries(self, parts: usize) -> Vec<DocumentKey> {
        // Some counts and some guesses do not add up.
        let counted = self.pieces.iter().all(|piece| piece.documents.is_some());
        let weight = |piece: &Piece| piece.documents.filter(|_| counted).unwrap_or(1);
        let total: u64 = self.pieces.iter().map(weight).sum();
        let mut boundaries = Vec::new();
        let mut before = 0;
        for piece in &self.pieces {
            // A part ends where its share is full.
            let full = (boundaries.len() as u64 + 1) * total / parts as u64;
            let fits_worse = before + weight(piece) / 2 > full;
            if before > 0
                && (before >= full || fits_worse)
                && boundaries.len() + 1 < parts
                && let Some(start) = &piece.range.start
            {
                boundaries.push(start.clone());
            }
            before += weight(piece);
        }
        boundaries
    }
}

/// How far apart a piece's first and last names are: the earlier in the path they differ, the further.
fn spread(piece: &Piece) -> usize {
    let length = |name: &DocumentPath| name.as_str().len();
    let Some(last) = &piece.last else {
        return usize::MAX - length(&piece.first);
    };
    let same = piece
        .first
        .as_str()
        .bytes()
        .zip(last.as_str().bytes())
        .take_while(|(a, b)| a == b)
        .count();
    usize::MAX / 2 - same
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> Vec<DocumentKey> {
        (0..count)
            .map(|index| DocumentPath::parse(format!("a/{index:04}")).unwrap().key())
            .collect()
    }

    #[test]
    fn thinning_is_even() {
        assert_eq!(thinned(keys(3), 5), keys(3));
        let thin = thinned(keys(99), 3);
        assert_eq!(
            thin,
            [keys(99)[24].clone(), keys(99)[49].clone(), keys(99)[74].clone()]
        );
        for wanted in 1..40 {
            let thin = thinned(keys(40), wanted);
            assert_eq!(thin.len(), wanted);
            assert!(thin.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
