//! The data model: what a Firestore document is to the rest of the crate, and its encodings.
//!
//! Pure: no I/O, no async, and it knows no other module of the crate. A document travels through the
//! engine as `(key, create_time, update_time, body)`, where the key is the order-preserving byte form of
//! its path ([`key`]) and the body is its fields in canonical MessagePack ([`canonical`]). Bulk work moves
//! whole [`DocumentBatch`]es of these and never builds a value tree: the protobuf side ([`wire`]) goes from
//! wire bytes to canonical bytes in one pass and back. [`Value`] trees are for what looks inside
//! (JSON, diffs, migrations).

pub mod batch;
pub mod canonical;
pub mod database_name;
pub mod field_diff;
pub mod field_mask;
pub mod field_path;
pub mod key;
pub mod path;
#[cfg(test)]
pub(crate) mod testing;
pub mod typed_json;
pub mod value;
pub mod wire;

pub use batch::{DocumentBatch, DocumentRef};
pub use canonical::CanonicalError;
pub use database_name::DatabaseName;
pub use field_diff::{FieldChange, FieldChangeKind, changed_fields};
pub use field_mask::FieldMask;
pub use field_path::{FieldPath, field_path_text};
pub use key::{DocumentKey, KeyRange};
pub use path::{CollectionPath, DocumentPath, PathError};
pub use value::{Fields, GeoPoint, Reference, Timestamp, Value};
