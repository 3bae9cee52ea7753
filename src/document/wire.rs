//! The protobuf form of a document: `google.firestore.v1.Document`, to and from canonical MessagePack.
//!
//! Bulk reads and writes spend their time here, so both directions go from bytes to bytes: no generated
//! types, no value tree, no allocation per value. Protobuf maps come in any order; each map's entries are
//! collected as ranges of the message, sorted, and only then written.
//!
//! Reading skips fields that it does not know, as protobuf asks, but for one place: a **value** of a kind
//! that this version does not know is an error that names the document and the field. Skipping it would lose
//! data without a word. The numbers are those of
//! <https://github.com/googleapis/googleapis/blob/master/google/firestore/v1/document.proto>.

mod cursor;
mod names;
mod read;
mod write;

use super::canonical::CanonicalError;
use super::{FieldPath, Timestamp};

pub use names::NameReader;
pub use read::{append_document, batch_get_answer, list_answer, query_answer};
pub use write::append_document_message;

/// A message that cannot be turned into a document, or the other way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The document's name is not below the database that was asked.
    #[error("the server sent a document named `{name}`, which is not a document below `{root}`")]
    OutsideRoot {
        /// The name as it was sent.
        name: String,
        /// What it should begin with.
        root: String,
    },
    /// A value of a kind that this version does not know how to keep.
    #[error(
        "document `{document}` holds {kind} at {field}, which this version cannot keep; leaving it out would lose data"
    )]
    UnsupportedValue {
        /// The document's path.
        document: String,
        /// Where in the document.
        field: FieldPath,
        /// What was found, with its protobuf field number.
        kind: ValueKind,
    },
    /// A document whose bytes are not a valid `Document`.
    #[error("document `{document}` came as an invalid message: {what} (at {field})")]
    InvalidDocument {
        /// The document's path.
        document: String,
        /// Where in the document.
        field: FieldPath,
        /// What is wrong.
        what: &'static str,
    },
    /// An answer whose bytes are not a valid message, before any document in it is known.
    #[error("the server sent an invalid {message}: {what}")]
    InvalidMessage {
        /// The message's type.
        message: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// The body to write is not in canonical form.
    #[error("document `{document}` cannot be written: {source}")]
    InvalidBody {
        /// The document's path.
        document: String,
        /// What is wrong, and where.
        source: CanonicalError,
    },
}

/// References in a document that was put into a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReferencesSeen {
    /// Those that are paths, and became names in the database that the message is for.
    pub relative: u64,
    /// Those that are full names.
    pub absolute: u64,
}

/// What stands in a value instead of something known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// Nothing: no member of the oneof is set.
    Unset,
    /// A member with this field number.
    Unknown(u32),
}

impl std::fmt::Display for ValueKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unset => f.write_str("a value without any type"),
            Self::Unknown(19) => f.write_str("a field reference (value type 19)"),
            Self::Unknown(20) => f.write_str("a function (value type 20)"),
            Self::Unknown(21) => f.write_str("a pipeline (value type 21)"),
            Self::Unknown(number) => write!(f, "a value of the unknown type {number}"),
        }
    }
}

/// One answer of a query's stream: `RunQueryResponse`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueryAnswer<'a> {
    /// A document's message, for [`append_document`]; answers without one only report progress.
    pub document: Option<&'a [u8]>,
    /// The time that the answer was read at.
    pub read_time: Option<Timestamp>,
    /// Results skipped by an offset since the last answer.
    pub skipped_results: i32,
    /// Whether the server says that nothing follows.
    pub done: bool,
}

/// One answer of a look-up's stream: `BatchGetDocumentsResponse`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchGetAnswer<'a> {
    /// A document's message, for [`append_document`].
    pub found: Option<&'a [u8]>,
    /// The full name of a document that does not exist.
    pub missing: Option<&'a str>,
    /// The time that the answer was read at.
    pub read_time: Option<Timestamp>,
}

/// A page of a collection: `ListDocumentsResponse`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListAnswer<'a> {
    /// The documents, in the server's order.
    pub documents: Vec<ListedDocument<'a>>,
    /// What asks for the next page; empty after the last one.
    pub next_page_token: &'a str,
}

/// A document of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ListedDocument<'a> {
    /// Its full name.
    pub name: &'a str,
    /// Its message, for [`append_document`].
    pub message: &'a [u8],
    /// Whether there is such a document: missing ones come without times.
    pub exists: bool,
}

/// The field numbers of the messages.
mod number {
    pub(super) const ANSWER_DOCUMENT: u32 = 1;
    pub(super) const ANSWER_READ_TIME: u32 = 3;
    pub(super) const DOCUMENT_NAME: u32 = 1;
    pub(super) const DOCUMENT_FIELDS: u32 = 2;
    pub(super) const DOCUMENT_CREATE_TIME: u32 = 3;
    pub(super) const DOCUMENT_UPDATE_TIME: u32 = 4;
    pub(super) const ENTRY_KEY: u32 = 1;
    pub(super) const ENTRY_VALUE: u32 = 2;
    pub(super) const ARRAY_VALUES: u32 = 1;
    pub(super) const MAP_FIELDS: u32 = 1;
    pub(super) const TIMESTAMP_SECONDS: u32 = 1;
    pub(super) const TIMESTAMP_NANOS: u32 = 2;
    pub(super) const LATITUDE: u32 = 1;
    pub(super) const LONGITUDE: u32 = 2;
    pub(super) const BOOLEAN: u32 = 1;
    pub(super) const INTEGER: u32 = 2;
    pub(super) const DOUBLE: u32 = 3;
    pub(super) const REFERENCE: u32 = 5;
    pub(super) const MAP: u32 = 6;
    pub(super) const GEO_POINT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const TIMESTAMP: u32 = 10;
    pub(super) const NULL: u32 = 11;
    pub(super) const STRING: u32 = 17;
    pub(super) const BYTES: u32 = 18;
}

#[cfg(test)]
mod tests;
