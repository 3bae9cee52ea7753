//! A document's fields as a tree, for what looks inside them.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::DocumentPath;

/// The fields of a document or a map, ordered by the bytes of their names.
pub type Fields = BTreeMap<String, Value>;

/// Any value that Firestore can hold, without loss.
///
/// Equality is that of the stored bits: a NaN equals itself, `-0.0` and `0.0` differ, and so do `1` and `1.0`.
/// Vectors and the BSON types of the Enterprise edition are maps with reserved keys, on the wire and here.
#[derive(Clone, Debug)]
pub enum Value {
    /// Null.
    Null,
    /// A boolean.
    Boolean(bool),
    /// A 64-bit integer.
    Integer(i64),
    /// A double, bit for bit.
    Double(f64),
    /// A point in time.
    Timestamp(Timestamp),
    /// A string.
    String(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A reference to a document.
    Reference(Reference),
    /// A point on Earth.
    GeoPoint(GeoPoint),
    /// An array.
    Array(Vec<Value>),
    /// A map.
    Map(Fields),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Boolean(a), Self::Boolean(b)) => a == b,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Double(a), Self::Double(b)) => a.to_bits() == b.to_bits(),
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::String(a), Self::String(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Reference(a), Self::Reference(b)) => a == b,
            (Self::GeoPoint(a), Self::GeoPoint(b)) => a == b,
            (Self::Array(a), Self::Array(b)) => a == b,
            (Self::Map(a), Self::Map(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Value {}

/// A reference to a document.
///
/// One into the document's own database is kept relative, so that it deduplicates across projects and points
/// at the new home after a restore elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// To a document of the same database.
    Relative(DocumentPath),
    /// To anything else: the full resource name, as it was found.
    Absolute(String),
}

/// A point on Earth, in degrees, bit for bit.
#[derive(Clone, Copy, Debug)]
pub struct GeoPoint {
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
}

impl PartialEq for GeoPoint {
    fn eq(&self, other: &Self) -> bool {
        self.latitude.to_bits() == other.latitude.to_bits()
            && self.longitude.to_bits() == other.longitude.to_bits()
    }
}

impl Eq for GeoPoint {}

/// A point in time as protobuf has it: `google.protobuf.Timestamp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds past them, below a thousand million.
    pub nanos: u32,
}

impl Timestamp {
    /// A point in time; `nanos` must be below a thousand million.
    pub fn new(seconds: i64, nanos: u32) -> Self {
        Self { seconds, nanos }
    }

    /// As a date, `None` where chrono's range ends.
    pub fn to_datetime(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(self.seconds, self.nanos)
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Self::new(time.timestamp(), time.timestamp_subsec_nanos())
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with as many digits as the time needs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_datetime() {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            None => write!(f, "{}.{:09}s", self.seconds, self.nanos),
        }
    }
}
