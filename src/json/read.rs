//! Reading a collection's file, one document at a time.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Header, JsonError, Metadata};
use crate::document::typed_json::{field_from_raw, fields_from_raw};
use crate::document::{CollectionPath, DocumentPath, Fields};

/// What was found in a file that was read to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// What the file says about itself.
    pub header: Header,
    /// Documents directly in the collection.
    pub document_count: u64,
    /// All documents.
    pub total_document_count: u64,
    /// Documents that do not exist but have subcollections.
    pub missing_documents: u64,
}

/// Reads a file through and keeps nothing: whether it is valid JSON, every document in it can be restored, and the counts
/// are right. It does not notice an id that is there twice; that would take the memory of all of them.
pub fn check(file: &Path) -> Result<Checked, JsonError> {
    read_documents(file, |_, _| Ok(()))
}

/// Calls `each` with every document of a file, in the file's order: parents before what lies below them. Missing documents are
/// left out.
///
/// The members of the file may come in any order; where `documents` comes before `collection` the file is read twice.
/// Stops at the first error of `each` and returns it. An error of the file may come after documents were delivered, a
/// wrong count comes after all of them: see [`check`].
pub fn read_documents<E: From<JsonError>>(
    file: &Path,
    mut each: impl FnMut(DocumentPath, Fields) -> Result<(), E>,
) -> Result<Checked, E> {
    let mut state = State {
        each: Some(&mut each),
        failed: None,
        stop: None,
        collection: None,
        checked: Checked::default(),
    };
    match read(file, &mut state) {
        Err(_) if state.stop == Some(Stop::CollectionUnknown) => {
            let header = header(file, false)?;
            state.collection = Some(collection_path(file, &header.collection)?);
            state.stop = None;
            state.checked = Checked::default();
            read(file, &mut state)
        }
        result => result,
    }
    .map_err(|error| state.failed.take().unwrap_or_else(|| error.into()))?;
    let checked = state.checked;
    check_counts(file, &checked)?;
    Ok(checked)
}

/// What a file says about itself; with `head_only` what comes before its documents.
pub(super) fn header(file: &Path, head_only: bool) -> Result<Header, JsonError> {
    let mut state = State::<JsonError> {
        each: None,
        failed: None,
        stop: None,
        collection: None,
        checked: Checked::default(),
    };
    match read(file, &mut state) {
        // Only the head was wanted, and it is whole.
        Err(_) if state.stop == Some(Stop::DocumentsBegin) && head_only => Ok(state.checked.header),
        Err(_) if state.stop == Some(Stop::DocumentsBegin) => {
            state.stop = Some(Stop::SkipDocuments);
            state.checked = Checked::default();
            read(file, &mut state)?;
            Ok(state.checked.header)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(state.checked.header),
    }
}

fn check_counts(file: &Path, checked: &Checked) -> Result<(), JsonError> {
    let total = (checked.header.metadata.as_ref()).and_then(|metadata| metadata.total_document_count);
    let counts = [
        (
            "document_count",
            checked.header.document_count,
            checked.document_count,
        ),
        ("total_document_count", total, checked.total_document_count),
    ];
    for (member, stated, found) in counts {
        if let Some(stated) = stated
            && stated != found
        {
            return Err(JsonError::Count {
                file: file.to_owned(),
                member,
                stated,
                found,
            });
        }
    }
    Ok(())
}

fn collection_path(file: &Path, collection: &str) -> Result<CollectionPath, JsonError> {
    CollectionPath::parse(collection).map_err(|error| JsonError::Invalid {
        file: file.to_owned(),
        reason: format!("`collection`: {error}"),
    })
}

fn read<E>(file: &Path, state: &mut State<'_, E>) -> Result<(), JsonError> {
    let source = File::open(file).map_err(JsonError::io("open", file))?;
    let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(256 * 1024, source));
    parse(&mut json, state).map_err(|error| match error.classify() {
        serde_json::error::Category::Io => JsonError::io("read", file)(error.into()),
        serde_json::error::Category::Data => JsonError::Invalid {
            file: file.to_owned(),
            reason: error.to_string(),
        },
        _ => JsonError::Malformed {
            file: file.to_owned(),
            reason: error.to_string(),
        },
    })
}

fn parse<E, R: Read>(
    json: &mut serde_json::Deserializer<serde_json::de::IoRead<R>>,
    state: &mut State<'_, E>,
) -> Result<(), serde_json::Error> {
    json.deserialize_map(FileVisitor { state })?;
    json.end()
}

/// What the visitors of one file share.
struct State<'f, E> {
    /// Who gets the documents; nobody does where only the header is asked for.
    each: Option<&'f mut dyn FnMut(DocumentPath, Fields) -> Result<(), E>>,
    /// The error that `each` stopped with.
    failed: Option<E>,
    stop: Option<Stop>,
    /// Known before the file says it, in a second reading.
    collection: Option<CollectionPath>,
    checked: Checked,
}

/// Why a reading was ended on purpose, or what it should not look into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// `documents` came before `collection`.
    CollectionUnknown,
    /// The header was asked for, and `documents` begins.
    DocumentsBegin,
    /// Documents are skipped: the rest of the header is asked for.
    SkipDocuments,
}

struct FileVisitor<'s, 'f, E> {
    state: &'s mut State<'f, E>,
}

impl<'de, E> Visitor<'de> for FileVisitor<'_, '_, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `collection` and `documents`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let state = self.state;
        let mut seen = Seen::default();
        while let Some(member) = map.next_key::<String>()? {
            match &member[..] {
                "collection" => {
                    once(&mut seen.collection, &member)?;
                    let text: String = map.next_value()?;
                    let path = CollectionPath::parse(text.clone())
                        .map_err(|error| A::Error::custom(format!("`collection`: {error}")))?;
                    state.checked.header.collection = text;
                    state.collection = Some(path);
                }
                "timestamp" => {
                    once(&mut seen.timestamp, &member)?;
                    state.checked.header.timestamp = map.next_value()?;
                }
                "document_count" => {
                    once(&mut seen.document_count, &member)?;
                    state.checked.header.document_count = map.next_value()?;
                }
                "metadata" => {
                    once(&mut seen.metadata, &member)?;
                    state.checked.header.metadata = map.next_value()?;
                }
                "documents" => {
                    once(&mut seen.documents, &member)?;
                    read_collection(state, &mut map)?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        for (present, member) in [(seen.collection, "collection"), (seen.documents, "documents")] {
            if !present {
                return Err(A::Error::custom(format!("it has no `{member}`")));
            }
        }
        Ok(())
    }
}

/// Which members of the file have come.
#[derive(Default)]
struct Seen {
    collection: bool,
    timestamp: bool,
    document_count: bool,
    metadata: bool,
    documents: bool,
}

fn once<E: Error>(seen: &mut bool, member: &str) -> Result<(), E> {
    if std::mem::replace(seen, true) {
        return Err(E::custom(format!("`{member}` is there twice")));
    }
    Ok(())
}

/// Reads the value of `documents`, which comes next.
fn read_collection<'de, E, A: MapAccess<'de>>(state: &mut State<'_, E>, map: &mut A) -> Result<(), A::Error> {
    if state.stop == Some(Stop::SkipDocuments) {
        return map.next_value::<IgnoredAny>().map(|_| ());
    }
    if state.each.is_none() {
        state.stop = Some(Stop::DocumentsBegin);
        return Err(A::Error::custom("the documents begin"));
    }
    let Some(collection) = state.collection.clone() else {
        state.stop = Some(Stop::CollectionUnknown);
        return Err(A::Error::custom("`documents` before `collection`"));
    };
    map.next_value_seed(Documents {
        state,
        collection: &collection,
        top: true,
    })
}

/// Reads the array of a collection's documents.
struct Documents<'s, 'f, 'c, E> {
    state: &'s mut State<'f, E>,
    collection: &'c CollectionPath,
    /// Whether this is the file's own collection and not one below it.
    top: bool,
}

impl<'de, E> DeserializeSeed<'de> for Documents<'_, '_, '_, E> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, E> Visitor<'de> for Documents<'_, '_, '_, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of the documents of `{}`", self.collection)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut documents: A) -> Result<(), A::Error> {
        while let Some(()) = documents.next_element_seed(Document {
            state: &mut *self.state,
            collection: self.collection,
            top: self.top,
        })? {}
        Ok(())
    }
}

/// Reads one document's object.
struct Document<'s, 'f, 'c, E> {
    state: &'s mut State<'f, E>,
    collection: &'c CollectionPath,
    top: bool,
}

impl<'de, E> DeserializeSeed<'de> for Document<'_, '_, '_, E> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// What a document's object has said so far.
#[derive(Default)]
struct Parts {
    path: Option<DocumentPath>,
    missing: Option<bool>,
    fields: Fields,
    /// The fields came in `$fields`.
    apart: bool,
    /// The document went out, since its subcollections began: nothing may follow but the object's end.
    delivered: bool,
    /// Subcollections that came before the id: only a tool that sorts keys writes them there.
    early_collections: Option<Box<RawValue>>,
}

impl<'de, E> Visitor<'de> for Document<'_, '_, '_, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a document of `{}`: an object with an `id`", self.collection)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut parts = Parts::default();
        while let Some(member) = map.next_key::<String>()? {
            if parts.delivered {
                return Err(self.fault(
                    &parts,
                    format!("`{member}` comes after `$collections`, which must be last"),
                ));
            }
            match &member[..] {
                "id" => self.read_id(&mut parts, &mut map)?,
                "$missing" if parts.missing.is_none() => parts.missing = Some(map.next_value()?),
                "$collections" if parts.path.is_none() && parts.early_collections.is_none() => {
                    parts.early_collections = Some(map.next_value()?);
                }
                "$collections" if parts.early_collections.is_none() => {
                    let path = self.deliver(&mut parts)?;
                    map.next_value_seed(self.collections(&path))?;
                }
                "$fields" if !parts.apart && parts.fields.is_empty() => {
                    let raw: Box<RawValue> = map.next_value()?;
                    parts.fields = fields_from_raw(&raw).map_err(|error| self.fault(&parts, error))?;
                    parts.apart = true;
                }
                "$missing" | "$collections" | "$fields" => {
                    return Err(self.fault(
                        &parts,
                        format!("`{member}` is there twice, or beside plain fields"),
                    ));
                }
                _ => self.read_field(&mut parts, member, &mut map)?,
            }
        }
        if !parts.delivered {
            let path = self.deliver(&mut parts)?;
            if let Some(collections) = parts.early_collections.take() {
                let mut json = serde_json::Deserializer::from_str(collections.get());
                (self.collections(&path).deserialize(&mut json)).map_err(A::Error::custom)?;
            }
        }
        Ok(())
    }
}

impl<'f, 'c, E> Document<'_, 'f, 'c, E> {
    /// An error that says which document it is about, as far as that is known.
    fn fault<F: Error>(&self, parts: &Parts, what: impl fmt::Display) -> F {
        match &parts.path {
            Some(path) => F::custom(format!("document `{path}`: {what}")),
            None => F::custom(format!("a document of `{}`: {what}", self.collection)),
        }
    }

    fn read_id<'de, A: MapAccess<'de>>(&self, parts: &mut Parts, map: &mut A) -> Result<(), A::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Id {
            Text(String),
            Other(IgnoredAny),
        }
        if parts.path.is_some() {
            return Err(self.fault(parts, "`id` is there twice"));
        }
        let Id::Text(id) = map.next_value()? else {
            return Err(self.fault(parts, "its `id` is not a string"));
        };
        // https://firebase.google.com/docs/firestore/quotas: what no document can be named.
        let valid = !id.is_empty() && id.len() <= 1500 && !id.contains('/') && id != "." && id != "..";
        if !valid {
            return Err(self.fault(parts, format!("its `id` {id:?} is not a valid document id")));
        }
        parts.path = Some(self.collection.document(&id).map_err(A::Error::custom)?);
        Ok(())
    }

    fn read_field<'de, A: MapAccess<'de>>(
        &self,
        parts: &mut Parts,
        field: String,
        map: &mut A,
    ) -> Result<(), A::Error> {
        if field.starts_with('$') {
            let what = format!("unknown member `{field}`; fields with such names go into `$fields`");
            return Err(self.fault(parts, what));
        }
        if parts.apart || parts.fields.contains_key(&field) {
            return Err(self.fault(
                parts,
                format!("field `{field}` is there twice, or beside `$fields`"),
            ));
        }
        let raw: Box<RawValue> = map.next_value()?;
        let value = field_from_raw(&field, &raw).map_err(|error| self.fault(parts, error))?;
        parts.fields.insert(field, value);
        Ok(())
    }

    /// Hands the document on, unless it is a missing one.
    fn deliver<F: Error>(&mut self, parts: &mut Parts) -> Result<DocumentPath, F> {
        let path = match parts.path.clone() {
            Some(path) => path,
            None => return Err(self.fault(parts, "it has no `id`")),
        };
        parts.delivered = true;
        if parts.missing == Some(true) {
            if !parts.fields.is_empty() || parts.apart {
                return Err(self.fault(parts, "it is `$missing` and has fields"));
            }
            self.state.checked.missing_documents += 1;
            return Ok(path);
        }
        self.state.checked.total_document_count += 1;
        if self.top {
            self.state.checked.document_count += 1;
        }
        if let Some(each) = &mut self.state.each
            && let Err(error) = each(path.clone(), std::mem::take(&mut parts.fields))
        {
            self.state.failed = Some(error);
            return Err(F::custom("stopped"));
        }
        Ok(path)
    }

    fn collections<'s>(&'s mut self, document: &'s DocumentPath) -> Collections<'s, 'f, 's, E> {
        Collections {
            state: self.state,
            document,
        }
    }
}

/// Reads the subcollections of a document.
struct Collections<'s, 'f, 'd, E> {
    state: &'s mut State<'f, E>,
    document: &'d DocumentPath,
}

impl<'de, E> DeserializeSeed<'de> for Collections<'_, '_, '_, E> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, E> Visitor<'de> for Collections<'_, '_, '_, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with the subcollections of `{}`", self.document)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(id) = map.next_key::<String>()? {
            let path = CollectionPath::parse(format!("{}/{id}", self.document));
            let collection = match path {
                Ok(collection) if !id.contains('/') => collection,
                _ => {
                    let what = format!(
                        "document `{}`: {id:?} is not a valid collection id",
                        self.document
                    );
                    return Err(A::Error::custom(what));
                }
            };
            map.next_value_seed(Documents {
                state: &mut *self.state,
                collection: &collection,
                top: false,
            })?;
        }
        Ok(())
    }
}

/// The metadata at the end of a file, where both tools put it, if `tail` ends the way they do.
pub(super) fn metadata_in_tail(tail: &str) -> Option<Metadata> {
    let (_, metadata) = tail.rsplit_once("\"metadata\"")?;
    let text = metadata
        .trim_start()
        .strip_prefix(':')?
        .trim_end()
        .strip_suffix('}')?;
    serde_json::from_str(text).ok()
}
