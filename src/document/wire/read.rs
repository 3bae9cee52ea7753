//! From the wire to the canonical form.

use std::cell::RefCell;
use std::cmp::Ordering;

use super::cursor::{Cursor, Span, tag};
use super::names::{Collection, path_below};
use super::{BatchGetAnswer, ListAnswer, ListedDocument, QueryAnswer, ValueKind, WireError, number};
use crate::document::canonical::{self, MAX_DEPTH, is_utf8};
use crate::document::{DocumentBatch, FieldPath, Timestamp};

/// Appends the document in `wire`, a `google.firestore.v1.Document`, to `batch`: its path's key, its times
/// (the epoch where the message has none) and its fields in canonical form.
///
/// `root` is the database's document root, `projects/P/databases/D/documents`; see
/// [`DatabaseName::root`](crate::document::DatabaseName::root). References to documents below it become
/// relative, all others are kept as they stand.
///
/// On an error the batch is as it was before.
pub fn append_document(wire: &[u8], root: &str, batch: &mut DocumentBatch) -> Result<(), WireError> {
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { entries, collection } = scratch;
        entries.clear();
        let envelope = Envelope::read(wire, entries).map_err(|unread| unread.below(root));
        let result = envelope.and_then(|envelope| {
            let (keys, bodies) = batch.buffers();
            if !collection.append_key(envelope.name, root, keys) {
                return Err(WireError::OutsideRoot {
                    name: envelope.name.to_owned(),
                    root: root.to_owned(),
                });
            }
            bodies.reserve(wire.len());
            let mut transcoder = Transcoder {
                wire,
                root,
                out: bodies,
                entries,
            };
            match transcoder.collected(Collected::all(envelope.sorted), 1) {
                Ok(()) => {
                    batch.seal(envelope.create_time, envelope.update_time);
                    Ok(())
                }
                Err(fault) => {
                    batch.discard_unsealed();
                    Err(fault.in_document(path_below(envelope.name, root).unwrap_or_default()))
                }
            }
        });
        if entries.capacity() > MAX_KEPT_ENTRIES {
            *entries = Vec::new();
        }
        result
    })
}

thread_local! {
    /// Kept between documents.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// One document in a million has this many entries in nested maps: no reason for every thread to keep room
/// for it.
const MAX_KEPT_ENTRIES: usize = 16 * 1024;

/// Takes a `RunQueryResponse` apart.
pub fn query_answer(message: &[u8]) -> Result<QueryAnswer<'_>, WireError> {
    let invalid = |what| WireError::InvalidMessage {
        message: "RunQueryResponse",
        what,
    };
    let mut answer = QueryAnswer::default();
    let mut cursor = Cursor::new(message);
    while let Some((field, payload)) = cursor.field().map_err(invalid)? {
        match field {
            number::ANSWER_DOCUMENT if answer.document.is_some() => {
                return Err(invalid("two documents in one answer"));
            }
            number::ANSWER_DOCUMENT => answer.document = Some(payload.bytes(message).map_err(invalid)?),
            number::ANSWER_READ_TIME => {
                answer.read_time = Some(cursor.time(payload, answer.read_time).map_err(invalid)?);
            }
            4 => answer.skipped_results = payload.varint().map_err(invalid)? as i32,
            6 => answer.done = payload.varint().map_err(invalid)? != 0,
            _ => {}
        }
    }
    Ok(answer)
}

/// Takes a `BatchGetDocumentsResponse` apart.
pub fn batch_get_answer(message: &[u8]) -> Result<BatchGetAnswer<'_>, WireError> {
    let invalid = |what| WireError::InvalidMessage {
        message: "BatchGetDocumentsResponse",
        what,
    };
    let mut answer = BatchGetAnswer::default();
    let mut cursor = Cursor::new(message);
    while let Some((field, payload)) = cursor.field().map_err(invalid)? {
        match field {
            1 | 2 if answer.found.is_some() || answer.missing.is_some() => {
                return Err(invalid("two documents in one answer"));
            }
            1 => answer.found = Some(payload.bytes(message).map_err(invalid)?),
            2 => answer.missing = Some(payload.text(message).map_err(invalid)?),
            4 => answer.read_time = Some(cursor.time(payload, answer.read_time).map_err(invalid)?),
            _ => {}
        }
    }
    Ok(answer)
}

/// Takes a `ListDocumentsResponse` apart.
pub fn list_answer(message: &[u8]) -> Result<ListAnswer<'_>, WireError> {
    let invalid = |what| WireError::InvalidMessage {
        message: "ListDocumentsResponse",
        what,
    };
    let mut answer = ListAnswer::default();
    let mut cursor = Cursor::new(message);
    while let Some((field, payload)) = cursor.field().map_err(invalid)? {
        match field {
            1 => {
                let document = payload.bytes(message).map_err(invalid)?;
                answer.documents.push(listed_document(document).map_err(invalid)?);
            }
            2 => answer.next_page_token = payload.text(message).map_err(invalid)?,
            _ => {}
        }
    }
    Ok(answer)
}

fn listed_document(message: &[u8]) -> Result<ListedDocument<'_>, &'static str> {
    let mut listed = ListedDocument {
        message,
        ..ListedDocument::default()
    };
    let mut cursor = Cursor::new(message);
    while let Some((field, payload)) = cursor.field()? {
        match field {
            number::DOCUMENT_NAME => listed.name = payload.text(message)?,
            number::DOCUMENT_CREATE_TIME => listed.exists = true,
            _ => {}
        }
    }
    Ok(listed)
}

/// What is wrong, before it is known in which document.
struct Fault {
    kind: FaultKind,
    field: FieldPath,
}

enum FaultKind {
    Invalid(&'static str),
    Unsupported(ValueKind),
}

impl From<&'static str> for Box<Fault> {
    #[cold]
    fn from(what: &'static str) -> Self {
        Box::new(Fault {
            kind: FaultKind::Invalid(what),
            field: FieldPath::root(),
        })
    }
}

impl Fault {
    #[cold]
    fn unsupported(kind: ValueKind) -> Box<Self> {
        Box::new(Self {
            kind: FaultKind::Unsupported(kind),
            field: FieldPath::root(),
        })
    }

    #[cold]
    fn under_key(mut self: Box<Self>, key: &[u8]) -> Box<Self> {
        self.field.push_key(&String::from_utf8_lossy(key));
        self
    }

    #[cold]
    fn under_index(mut self: Box<Self>, index: usize) -> Box<Self> {
        self.field.push_index(index);
        self
    }

    #[cold]
    fn in_document(self, path: &str) -> WireError {
        let document = path.to_owned();
        let field = self.field;
        match self.kind {
            FaultKind::Invalid(what) => WireError::InvalidDocument {
                document,
                field,
                what,
            },
            FaultKind::Unsupported(kind) => WireError::UnsupportedValue {
                document,
                field,
                kind,
            },
        }
    }
}

/// What a document's message says about it; its fields' entries are in the scratch buffer.
struct Envelope<'w> {
    name: &'w str,
    create_time: Timestamp,
    update_time: Timestamp,
    sorted: bool,
}

impl<'w> Envelope<'w> {
    fn read(wire: &'w [u8], entries: &mut Vec<Entry>) -> Result<Self, Unread<'w>> {
        // The name may come last, and errors should say it: so what is wrong waits until everything was
        // looked at.
        let mut name = Ok("");
        let mut create_time = None;
        let mut update_time = None;
        let mut sorted = true;
        let mut fault = None;
        let mut cursor = Cursor::new(wire);
        loop {
            if let Some(span) = cursor.delimited(tag(number::DOCUMENT_FIELDS))
                && let Ok(entry) = Entry::read(wire, span)
            {
                sorted &= entries.last().is_none_or(|last| last.is_before(&entry, wire));
                entries.push(entry);
                continue;
            }
            let step = cursor.field().and_then(|field| {
                let Some((field, payload)) = field else {
                    return Ok(false);
                };
                match field {
                    number::DOCUMENT_NAME => name = payload.text(wire),
                    number::DOCUMENT_FIELDS => {
                        let entry = Entry::read(wire, payload.span()?)?;
                        sorted &= entries.last().is_none_or(|last| last.is_before(&entry, wire));
                        entries.push(entry);
                    }
                    number::DOCUMENT_CREATE_TIME => {
                        create_time = Some(cursor.time(payload, create_time)?);
                    }
                    number::DOCUMENT_UPDATE_TIME => {
                        update_time = Some(cursor.time(payload, update_time)?);
                    }
                    _ => {}
                }
                Ok(true)
            });
            match step {
                Ok(true) => {}
                Ok(false) => break,
                Err(what) => {
                    fault = Some(what);
                    break;
                }
            }
        }
        let name = name.map_err(|what| Unread { name: "", what })?;
        if let Some(what) = fault {
            return Err(Unread { name, what });
        }
        Ok(Self {
            name,
            create_time: create_time.unwrap_or_default(),
            update_time: update_time.unwrap_or_default(),
            sorted,
        })
    }
}

/// A document whose message is not valid, and whose name that is, as far as it is known.
struct Unread<'w> {
    name: &'w str,
    what: &'static str,
}

impl Unread<'_> {
    #[cold]
    fn below(self, root: &str) -> WireError {
        WireError::InvalidDocument {
            document: path_below(self.name, root).unwrap_or(self.name).to_owned(),
            field: FieldPath::root(),
            what: self.what,
        }
    }
}

/// What is kept between documents, so that they cost no allocation, and nothing is done twice that is the same for
/// neighbours.
struct Scratch {
    entries: Vec<Entry>,
    collection: Collection,
}

impl Scratch {
    const fn new() -> Self {
        Self {
            entries: Vec::new(),
            collection: Collection::unknown(),
        }
    }
}

/// One entry of a protobuf map.
#[derive(Clone, Copy)]
struct Entry {
    /// The key's first eight bytes, big-endian, filled up with zeros: most comparisons end here.
    prefix: u64,
    key: Span,
    value: Span,
}

impl Entry {
    #[inline]
    fn read(wire: &[u8], span: Span) -> Result<Self, &'static str> {
        // As every encoder writes it: the key, the value, nothing else.
        let mut cursor = Cursor::over(wire, span);
        if let Some(key) = cursor.delimited(tag(number::ENTRY_KEY))
            && let Some(value) = cursor.delimited(tag(number::ENTRY_VALUE))
            && cursor.is_at_end()
        {
            return Ok(Self {
                prefix: prefix(key, wire),
                key,
                value,
            });
        }
        Self::read_any(wire, span)
    }

    #[cold]
    fn read_any(wire: &[u8], span: Span) -> Result<Self, &'static str> {
        let empty = Span {
            start: span.end,
            end: span.end,
        };
        // An absent key is the empty string, an absent value is one without a type.
        let (mut key, mut value) = (empty, None);
        let mut cursor = Cursor::over(wire, span);
        while let Some((field, payload)) = cursor.field()? {
            match field {
                number::ENTRY_KEY => key = payload.span()?,
                number::ENTRY_VALUE if value.is_some() => return Err("a map's entry has two values"),
                number::ENTRY_VALUE => value = Some(payload.span()?),
                _ => {}
            }
        }
        Ok(Self {
            prefix: prefix(key, wire),
            key,
            value: value.unwrap_or(empty),
        })
    }

    #[inline]
    fn is_before(&self, other: &Self, wire: &[u8]) -> bool {
        self.prefix < other.prefix || (self.prefix == other.prefix && self.key.of(wire) < other.key.of(wire))
    }
}

#[inline]
fn prefix(key: Span, wire: &[u8]) -> u64 {
    let length = (key.end - key.start) as usize;
    match wire[key.start as usize..].first_chunk::<8>() {
        Some(bytes) if length >= 8 => u64::from_be_bytes(*bytes),
        // What follows the key is read with it and cut off again.
        Some(bytes) => u64::from_be_bytes(*bytes) & !(u64::MAX >> (8 * length)),
        None => {
            let mut bytes = [0; 8];
            bytes[..length].copy_from_slice(key.of(wire));
            u64::from_be_bytes(bytes)
        }
    }
}

/// The entries of one map: those of the scratch buffer from `base` on.
struct Collected {
    base: usize,
    sorted: bool,
}

impl Collected {
    fn all(sorted: bool) -> Self {
        Self { base: 0, sorted }
    }
}

/// The places of a map's entries in the order of their keys: what moves while they are sorted is one word
/// each, the upper bits of the key's prefix and the place in the lower ones.
struct Ranks {
    words: [u64; Self::MOST],
    len: usize,
}

impl Ranks {
    const MOST: usize = 1 << Self::BITS;
    const BITS: u32 = 5;

    /// `None` for too many entries, and where two have the same key.
    fn of(entries: &[Entry], wire: &[u8]) -> Option<Self> {
        let mut ranks = Self {
            words: [0; Self::MOST],
            len: entries.len(),
        };
        let words = ranks.words.get_mut(..entries.len())?;
        for (place, (word, entry)) in words.iter_mut().zip(entries).enumerate() {
            *word = entry.prefix & (u64::MAX << Self::BITS) | place as u64;
        }
        words.sort_unstable();
        // The places decided where the bits of the prefix are the same: there the whole keys do.
        for end in 1..words.len() {
            for at in (1..=end).rev() {
                let (before, word) = (words[at - 1], words[at]);
                if before >> Self::BITS != word >> Self::BITS {
                    break;
                }
                let key = |word: u64| entries[Self::place(word)].key.of(wire);
                match key(before).cmp(key(word)) {
                    Ordering::Less => break,
                    Ordering::Equal => return None,
                    Ordering::Greater => words.swap(at - 1, at),
                }
            }
        }
        Some(ranks)
    }

    fn place(word: u64) -> usize {
        word as usize % Self::MOST
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.words[..self.len].iter().map(|&word| Self::place(word))
    }
}

struct Transcoder<'w, 's> {
    wire: &'w [u8],
    root: &'s str,
    out: &'s mut Vec<u8>,
    entries: &'s mut Vec<Entry>,
}

impl<'w> Transcoder<'w, '_> {
    /// Writes the map of the collected entries, whose values are at `depth`, and forgets them.
    fn collected(&mut self, map: Collected, depth: usize) -> Result<(), Box<Fault>> {
        let Collected { base, sorted } = map;
        let in_order = match sorted {
            true => None,
            false => Ranks::of(&self.entries[base..], self.wire),
        };
        if let Some(ranks) = in_order {
            canonical::put_map_header(self.entries.len() - base, self.out);
            for index in ranks.iter() {
                self.entry(base + index, depth)?;
            }
        } else {
            if !sorted {
                self.sort(base);
            }
            canonical::put_map_header(self.entries.len() - base, self.out);
            for index in base..self.entries.len() {
                self.entry(index, depth)?;
            }
        }
        self.entries.truncate(base);
        Ok(())
    }

    /// Writes one of the collected entries.
    #[inline]
    fn entry(&mut self, index: usize, depth: usize) -> Result<(), Box<Fault>> {
        let entry = self.entries[index];
        let key = entry.key.of(self.wire);
        if !is_utf8(key) {
            return Err("a map's key is not UTF-8".into());
        }
        canonical::put_text(key, self.out);
        self.value(entry.value, depth)
            .map_err(|fault| fault.under_key(key))
    }

    /// Sorts the entries from `base` on by their keys and keeps the last of each, as protobuf asks.
    fn sort(&mut self, base: usize) {
        let wire = self.wire;
        self.entries[base..].sort_unstable_by(|a, b| {
            (a.prefix.cmp(&b.prefix))
                .then_with(|| a.key.of(wire).cmp(b.key.of(wire)))
                // The one that comes later in the message first: `dedup` keeps the first.
                .then_with(|| b.key.end.cmp(&a.key.end))
        });
        let mut kept = base;
        for index in base..self.entries.len() {
            let entry = self.entries[index];
            let duplicate = kept > base && self.entries[kept - 1].key.of(wire) == entry.key.of(wire);
            if !duplicate {
                self.entries[kept] = entry;
                kept += 1;
            }
        }
        self.entries.truncate(kept);
    }

    fn value(&mut self, span: Span, depth: usize) -> Result<(), Box<Fault>> {
        if depth > MAX_DEPTH {
            return Err("values nest too deep".into());
        }
        // As every encoder writes the most common values. What looks different in any way takes the long way.
        match span.of(self.wire) {
            [STRING_TAG, STRING_TAG_END, length, text @ ..]
                if *length < 0x80 && text.len() == usize::from(*length) =>
            {
                return self.text(text);
            }
            [STRING_TAG, STRING_TAG_END, low, high, text @ ..]
                if *low >= 0x80 && *high < 0x80 && text.len() == two_bytes(*low, *high) =>
            {
                return self.text(text);
            }
            [INTEGER_TAG, value] if *value < 0x80 => {
                canonical::put_integer(i64::from(*value), self.out);
                return Ok(());
            }
            [INTEGER_TAG, low, high] if *low >= 0x80 && *high < 0x80 => {
                canonical::put_integer(two_bytes(*low, *high) as i64, self.out);
                return Ok(());
            }
            [DOUBLE_TAG, bytes @ ..] => {
                if let Ok(bytes) = bytes.try_into() {
                    canonical::put_double(u64::from_le_bytes(bytes), self.out);
                    return Ok(());
                }
            }
            [BOOLEAN_TAG, value @ (0 | 1)] => {
                canonical::put_boolean(*value == 1, self.out);
                return Ok(());
            }
            _ => {}
        }
        let mut cursor = Cursor::over(self.wire, span);
        let Some((field, payload)) = cursor.field()? else {
            return Err(Fault::unsupported(ValueKind::Unset));
        };
        match field {
            number::STRING => self.text(payload.bytes(self.wire)?)?,
            number::INTEGER => canonical::put_integer(payload.varint()? as i64, self.out),
            number::DOUBLE => canonical::put_double(payload.fixed64()?, self.out),
            number::BOOLEAN => canonical::put_boolean(payload.varint()? != 0, self.out),
            number::MAP => self.map(payload.span()?, depth + 1)?,
            number::ARRAY => self.array(payload.span()?, depth + 1)?,
            number::TIMESTAMP => canonical::put_timestamp(cursor.time(payload, None)?, self.out),
            number::REFERENCE => {
                let name = payload.text(self.wire)?;
                match path_below(name, self.root) {
                    Some(path) => canonical::put_relative_reference(path, self.out),
                    None => canonical::put_absolute_reference(name, self.out),
                }
            }
            number::BYTES => canonical::put_bytes(payload.bytes(self.wire)?, self.out),
            number::GEO_POINT => self.geo_point(payload.span()?)?,
            number::NULL => {
                payload.varint()?;
                canonical::put_null(self.out);
            }
            unknown => return Err(Fault::unsupported(ValueKind::Unknown(unknown))),
        }
        // No encoder sets two members of a oneof. To take one of them would be a guess.
        match cursor.field()? {
            None => Ok(()),
            Some((field, _)) if is_known(field) => Err("a value has two types".into()),
            Some((field, _)) => Err(Fault::unsupported(ValueKind::Unknown(field))),
        }
    }

    #[inline]
    fn text(&mut self, text: &[u8]) -> Result<(), Box<Fault>> {
        if !is_utf8(text) {
            return Err("a text is not UTF-8".into());
        }
        canonical::put_text(text, self.out);
        Ok(())
    }

    fn map(&mut self, span: Span, depth: usize) -> Result<(), Box<Fault>> {
        let base = self.entries.len();
        let mut sorted = true;
        let mut cursor = Cursor::over(self.wire, span);
        while let Some(entry) = cursor.repeated(number::MAP_FIELDS)? {
            let entry = Entry::read(self.wire, entry)?;
            if let Some(last) = self.entries[base..].last() {
                sorted &= last.is_before(&entry, self.wire);
            }
            self.entries.push(entry);
        }
        self.collected(Collected { base, sorted }, depth)
    }

    fn array(&mut self, span: Span, depth: usize) -> Result<(), Box<Fault>> {
        // The header comes first and holds the length: so the elements are counted by a run over their lengths.
        let mut count = 0;
        let mut cursor = Cursor::over(self.wire, span);
        while cursor.repeated(number::ARRAY_VALUES)?.is_some() {
            count += 1;
        }
        canonical::put_array_header(count, self.out);
        let mut index = 0;
        let mut cursor = Cursor::over(self.wire, span);
        while let Some(value) = cursor.repeated(number::ARRAY_VALUES)? {
            self.value(value, depth)
                .map_err(|fault| fault.under_index(index))?;
            index += 1;
        }
        Ok(())
    }

    fn geo_point(&mut self, span: Span) -> Result<(), &'static str> {
        let (mut latitude, mut longitude) = (0, 0);
        let mut cursor = Cursor::over(self.wire, span);
        while let Some((field, payload)) = cursor.field()? {
            match field {
                number::LATITUDE => latitude = payload.fixed64()?,
                number::LONGITUDE => longitude = payload.fixed64()?,
                _ => {}
            }
        }
        canonical::put_geo_point(latitude, longitude, self.out);
        Ok(())
    }
}

/// The first two bytes of a string value, the others' first byte.
const STRING_TAG: u8 = 0x8a;
const STRING_TAG_END: u8 = 0x01;
const INTEGER_TAG: u8 = 0x10;
const DOUBLE_TAG: u8 = 0x19;
const BOOLEAN_TAG: u8 = 0x08;

/// A varint of two bytes.
#[inline]
fn two_bytes(low: u8, high: u8) -> usize {
    usize::from(low & 0x7f) | usize::from(high) << 7
}

fn is_known(field: u32) -> bool {
    matches!(
        field,
        number::BOOLEAN
            | number::INTEGER
            | number::DOUBLE
            | number::REFERENCE
            | number::MAP
            | number::GEO_POINT
            | number::ARRAY
            | number::TIMESTAMP
            | number::NULL
            | number::STRING
            | number::BYTES
    )
}
