//! From the wire to the canonical form.

use std::cell::RefCell;

use super::{BatchGetAnswer, QueryAnswer, ValueKind, WireError, number};
use crate::document::canonical::{self, MAX_DEPTH, NANOS_PER_SECOND};
use crate::document::path::{append_key, is_document_path};
use crate::document::{DocumentBatch, FieldPath, Timestamp};

/// Appends the document in `wire`, a `google.firestore.v1.Document`, to `batch`: its path's key, its times (the epoch where
/// the message has none) and its fields in canonical form.
///
/// `root` is the database's document root, `projects/P/databases/D/documents`; see
/// [`DatabaseName::root`](crate::document::DatabaseName::root). References to documents below it become relative, all
/// others are kept as they stand.
///
/// On an error the batch is as it was before.
pub fn append_document(wire: &[u8], root: &str, batch: &mut DocumentBatch) -> Result<(), WireError> {
    thread_local! {
        /// Kept between documents, so that maps cost no allocation.
        static ENTRIES: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
    }
    ENTRIES.with_borrow_mut(|entries| {
        entries.clear();
        let result = Envelope::read(wire, root, entries).and_then(|envelope| {
            let (keys, bodies) = batch.buffers();
            append_key(envelope.path, keys);
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
                    Err(fault.in_document(envelope.path))
                }
            }
        });
        if entries.capacity() > MAX_KEPT_ENTRIES {
            *entries = Vec::new();
        }
        result
    })
}

/// One document in a million has this many entries in nested maps: no reason for every thread to keep room for it.
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
            1 if answer.document.is_some() => return Err(invalid("two documents in one answer")),
            1 => answer.document = Some(payload.bytes(message).map_err(invalid)?),
            3 => answer.read_time = Some(cursor.time(payload, answer.read_time).map_err(invalid)?),
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
    fn under_key(mut self: Box<Self>, key: &str) -> Box<Self> {
        self.field.push_key(key);
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
    path: &'w str,
    create_time: Timestamp,
    update_time: Timestamp,
    sorted: bool,
}

impl<'w> Envelope<'w> {
    fn read(wire: &'w [u8], root: &str, entries: &mut Vec<Entry>) -> Result<Self, WireError> {
        // The name may come last, and errors should say it: so what is wrong waits until everything was looked at.
        let mut name = Ok("");
        let mut create_time = None;
        let mut update_time = None;
        let mut sorted = true;
        let mut fault = None;
        let mut cursor = Cursor::new(wire);
        loop {
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
        let invalid = |document: &str, what| WireError::InvalidDocument {
            document: document.to_owned(),
            field: FieldPath::root(),
            what,
        };
        let name = name.map_err(|what| invalid("", what))?;
        if let Some(what) = fault {
            return Err(invalid(path_below(name, root).unwrap_or(name), what));
        }
        let path = path_below(name, root).ok_or_else(|| WireError::OutsideRoot {
            name: name.to_owned(),
            root: root.to_owned(),
        })?;
        Ok(Self {
            path,
            create_time: create_time.unwrap_or_default(),
            update_time: update_time.unwrap_or_default(),
            sorted,
        })
    }
}

/// The document path that `name` has below `root`.
#[inline]
fn path_below<'n>(name: &'n str, root: &str) -> Option<&'n str> {
    let path = name.strip_prefix(root)?.strip_prefix('/')?;
    is_document_path(path).then_some(path)
}

/// A part of the message: positions, so that the scratch buffer outlives it. Messages stay far below 4 GiB.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Result<Self, &'static str> {
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) => Ok(Self { start, end }),
            _ => Err("it is larger than 4 GiB"),
        }
    }

    #[inline]
    fn of(self, wire: &[u8]) -> &[u8] {
        &wire[self.start as usize..self.end as usize]
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
    fn read(wire: &[u8], span: Span) -> Result<Self, &'static str> {
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
            prefix: prefix(key.of(wire)),
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
fn prefix(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; 8];
            bytes[..key.len()].copy_from_slice(key);
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

struct Transcoder<'w, 's> {
    wire: &'w [u8],
    root: &'s str,
    out: &'s mut Vec<u8>,
    entries: &'s mut Vec<Entry>,
}

impl<'w> Transcoder<'w, '_> {
    /// Writes the map of the collected entries, whose values are at `depth`, and forgets them.
    fn collected(&mut self, map: Collected, depth: usize) -> Result<(), Box<Fault>> {
        if !map.sorted {
            self.sort(map.base);
        }
        let end = self.entries.len();
        canonical::put_map_header(end - map.base, self.out);
        for index in map.base..end {
            let entry = self.entries[index];
            let key = std::str::from_utf8(entry.key.of(self.wire)).map_err(|_| "a map's key is not UTF-8")?;
            canonical::put_str(key, self.out);
            self.value(entry.value, depth)
                .map_err(|fault| fault.under_key(key))?;
        }
        self.entries.truncate(map.base);
        Ok(())
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
        let mut cursor = Cursor::over(self.wire, span);
        let Some((field, payload)) = cursor.field()? else {
            return Err(Fault::unsupported(ValueKind::Unset));
        };
        match field {
            number::STRING => canonical::put_str(payload.text(self.wire)?, self.out),
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

    fn map(&mut self, span: Span, depth: usize) -> Result<(), Box<Fault>> {
        let base = self.entries.len();
        let mut sorted = true;
        let mut cursor = Cursor::over(self.wire, span);
        while let Some((field, payload)) = cursor.field()? {
            if field == number::MAP_FIELDS {
                let entry = Entry::read(self.wire, payload.span()?)?;
                if let Some(last) = self.entries[base..].last() {
                    sorted &= last.is_before(&entry, self.wire);
                }
                self.entries.push(entry);
            }
        }
        self.collected(Collected { base, sorted }, depth)
    }

    fn array(&mut self, span: Span, depth: usize) -> Result<(), Box<Fault>> {
        // The header comes first and holds the length: so the elements are counted by a run over their lengths.
        let mut count = 0;
        let mut cursor = Cursor::over(self.wire, span);
        while let Some((field, payload)) = cursor.field()? {
            if field == number::ARRAY_VALUES {
                payload.span()?;
                count += 1;
            }
        }
        canonical::put_array_header(count, self.out);
        let mut index = 0;
        let mut cursor = Cursor::over(self.wire, span);
        while let Some((field, payload)) = cursor.field()? {
            if field == number::ARRAY_VALUES {
                self.value(payload.span()?, depth)
                    .map_err(|fault| fault.under_index(index))?;
                index += 1;
            }
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

/// What stands behind a tag.
#[derive(Clone, Copy)]
enum Payload {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Delimited { start: usize, end: usize },
}

const WRONG_TYPE: &str = "a field has the wrong wire type";
const CUT_OFF: &str = "it is cut off";

impl Payload {
    #[inline]
    fn varint(self) -> Result<u64, &'static str> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(WRONG_TYPE),
        }
    }

    #[inline]
    fn fixed64(self) -> Result<u64, &'static str> {
        match self {
            Self::Fixed64(value) => Ok(value),
            _ => Err(WRONG_TYPE),
        }
    }

    #[inline]
    fn span(self) -> Result<Span, &'static str> {
        match self {
            Self::Delimited { start, end } => Span::new(start, end),
            _ => Err(WRONG_TYPE),
        }
    }

    #[inline]
    fn bytes(self, wire: &[u8]) -> Result<&[u8], &'static str> {
        match self {
            Self::Delimited { start, end } => Ok(&wire[start..end]),
            _ => Err(WRONG_TYPE),
        }
    }

    #[inline]
    fn text(self, wire: &[u8]) -> Result<&str, &'static str> {
        std::str::from_utf8(self.bytes(wire)?).map_err(|_| "a text is not UTF-8")
    }
}

/// Reads the fields of one message, which lies within `wire`.
struct Cursor<'w> {
    wire: &'w [u8],
    /// The whole message's bytes up to the end of this one: positions are those of the whole.
    window: &'w [u8],
    at: usize,
}

impl<'w> Cursor<'w> {
    fn new(wire: &'w [u8]) -> Self {
        Self {
            wire,
            window: wire,
            at: 0,
        }
    }

    #[inline]
    fn over(wire: &'w [u8], span: Span) -> Self {
        Self {
            wire,
            window: &wire[..span.end as usize],
            at: span.start as usize,
        }
    }

    /// The next field's number and payload, `None` at the end.
    #[inline]
    fn field(&mut self) -> Result<Option<(u32, Payload)>, &'static str> {
        if self.at == self.window.len() {
            return Ok(None);
        }
        let tag = u32::try_from(self.varint()?).map_err(|_| "a field's tag is too large")?;
        let field = tag >> 3;
        if field == 0 {
            return Err("a field has the number 0");
        }
        let payload = match tag & 7 {
            0 => Payload::Varint(self.varint()?),
            1 => {
                let end = self.advance(8)?;
                let bytes = self.window[..end].last_chunk::<8>().ok_or(CUT_OFF)?;
                Payload::Fixed64(u64::from_le_bytes(*bytes))
            }
            2 => {
                let length = self.varint()?;
                let start = self.at;
                let end = self.advance(usize::try_from(length).map_err(|_| CUT_OFF)?)?;
                Payload::Delimited { start, end }
            }
            5 => {
                self.advance(4)?;
                Payload::Fixed32
            }
            3 | 4 => return Err("it holds a group"),
            _ => return Err("a field has an unknown wire type"),
        };
        Ok(Some((field, payload)))
    }

    #[inline]
    fn advance(&mut self, length: usize) -> Result<usize, &'static str> {
        if length > self.window.len() - self.at {
            return Err(CUT_OFF);
        }
        self.at += length;
        Ok(self.at)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, &'static str> {
        match self.window.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.window.get(self.at).ok_or(CUT_OFF)?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number has more than 64 bits")
    }

    /// The `google.protobuf.Timestamp` in a field of this message, merged into an earlier one of the same field.
    fn time(&self, payload: Payload, earlier: Option<Timestamp>) -> Result<Timestamp, &'static str> {
        let mut time = earlier.unwrap_or_default();
        let mut cursor = Cursor::over(self.wire, payload.span()?);
        while let Some((field, payload)) = cursor.field()? {
            match field {
                number::TIMESTAMP_SECONDS => time.seconds = payload.varint()? as i64,
                number::TIMESTAMP_NANOS => {
                    let nanos = payload.varint()?;
                    if nanos >= u64::from(NANOS_PER_SECOND) {
                        return Err("a timestamp's nanoseconds are negative or a second and more");
                    }
                    time.nanos = nanos as u32;
                }
                _ => {}
            }
        }
        Ok(time)
    }
}
