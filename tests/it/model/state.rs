//! The model: what a database holds, as a map, and how two such maps differ.

use std::collections::BTreeMap;

use firebank::archive::ChangeKind;
use firebank::diff::DocumentChange;
use firebank::document::{DocumentBatch, DocumentPath, FieldChangeKind, Fields, Value, canonical};
use futures::{Stream, TryStreamExt};

/// A document: its contents follow from the number.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Doc {
    pub(crate) number: i64,
    /// Which writing made it what it is: tells one that was deleted and made again from one that stayed.
    pub(crate) written: u64,
}

/// What a database holds, or a snapshot of it.
pub(crate) type State = BTreeMap<DocumentPath, Doc>;

/// A difference as the model tells it: the document, how it differs, and which fields do.
pub(crate) type Difference = (DocumentPath, ChangeKind, Vec<(String, FieldChangeKind)>);

/// A place for document `number`: four collections, some of them below documents, some below missing ones.
pub(crate) fn path(number: u16) -> DocumentPath {
    let path = match number % 5 {
        0 => format!("orders/{number}"),
        1 => format!("orders/{}/items/{number}", number - 1),
        2 => format!("missing/{number}/items/{number}"),
        3 => format!("products/__id{number}__"),
        _ => format!("users/ü{number}"),
    };
    DocumentPath::parse(path).unwrap()
}

pub(crate) fn fields(number: i64) -> Fields {
    let padding = format!("{number:x}").repeat(10 + (number % 30) as usize);
    let mut fields: Fields = [
        ("number".to_owned(), Value::Integer(number)),
        ("padding".to_owned(), Value::String(padding)),
    ]
    .into();
    if number % 3 == 0 {
        fields.insert("third".to_owned(), Value::Integer(number / 3));
    }
    fields
}

/// Panics unless the documents are exactly those of the state, to the bit and in order.
pub(crate) async fn assert_holds(
    documents: impl Stream<Item = anyhow::Result<DocumentBatch>>,
    state: &State,
    what: &str,
) {
    let mut documents = std::pin::pin!(documents);
    let mut expected = state.iter();
    while let Some(batch) = documents.try_next().await.unwrap() {
        for document in batch.iter() {
            let found = document.path().unwrap();
            let Some((path, doc)) = expected.next() else {
                panic!("{what} holds {found}, which it should not");
            };
            assert_eq!(found, *path, "{what}");
            assert_eq!(
                canonical::decode(document.body).unwrap(),
                fields(doc.number),
                "{path} of {what}"
            );
        }
    }
    assert_eq!(expected.next(), None, "{what} lacks documents");
}

/// What is different in `new`, ascending by path.
pub(crate) fn differences(old: &State, new: &State) -> Vec<Difference> {
    let mut paths: Vec<&DocumentPath> = old.keys().chain(new.keys()).collect();
    paths.sort();
    paths.dedup();
    let difference = |path: &DocumentPath| {
        let (kind, names) = match (old.get(path), new.get(path)) {
            (None, _) => (ChangeKind::Added, Vec::new()),
            (_, None) => (ChangeKind::Deleted, Vec::new()),
            (Some(old), Some(new)) if old == new => return None,
            (Some(old), Some(new)) if old.number == new.number => (ChangeKind::Rewritten, Vec::new()),
            (Some(old), Some(new)) => (ChangeKind::Changed, names_of_changed(old.number, new.number)),
        };
        Some((path.clone(), kind, names))
    };
    paths.into_iter().filter_map(difference).collect()
}

fn names_of_changed(old: i64, new: i64) -> Vec<(String, FieldChangeKind)> {
    let (old, new) = (fields(old), fields(new));
    ["number", "padding", "third"]
        .into_iter()
        .filter_map(|name| {
            let kind = match (old.get(name), new.get(name)) {
                (None, None) => return None,
                (Some(old), Some(new)) if old == new => return None,
                (None, Some(_)) => FieldChangeKind::Added,
                (Some(_), None) => FieldChangeKind::Removed,
                (Some(_), Some(_)) => FieldChangeKind::Changed,
            };
            Some((name.to_owned(), kind))
        })
        .collect()
}

/// What a diff found, in the model's words.
pub(crate) async fn collect<E: std::fmt::Debug>(
    changes: impl Stream<Item = Result<Vec<DocumentChange>, E>>,
) -> Vec<Difference> {
    let batches: Vec<Vec<DocumentChange>> = changes.try_collect().await.unwrap();
    let told = |change: DocumentChange| {
        let fields = change.fields.into_iter();
        let fields = fields.map(|field| (field.path.to_string(), field.kind));
        (change.path, change.kind, fields.collect())
    };
    batches.into_iter().flatten().map(told).collect()
}
