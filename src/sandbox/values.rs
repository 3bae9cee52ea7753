//! Documents' fields: checked as bytes, and taken apart where a request looks inside.

use std::collections::BTreeMap;

use ::firestore::gcloud_sdk::google::firestore::v1::{MapValue, Value, value::ValueType};
use bytes::Bytes;
use prost::Message;
use tonic::Status;

use super::codec::put_bytes_field;
use super::messages::Entry;
use super::names;
use super::value_order::vector_elements;

/// The largest document, in bytes as Firestore counts them.
const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// The largest value that an index entry could need: 1 MiB less 89 bytes.
const MAX_VALUE_BYTES: usize = (1 << 20) - 89;
/// The longest name of a field, in bytes.
const MAX_FIELD_NAME_BYTES: usize = 1500;
/// The most dimensions of a vector.
const MAX_DIMENSIONS: usize = 2048;
/// How deep maps and arrays nest.
const MAX_DEPTH: usize = 20;

/// The fields of a document.
pub(crate) type Tree = BTreeMap<String, Value>;

fn bad(error: prost::DecodeError) -> Status {
    Status::invalid_argument(format!("cannot read a field: {error}"))
}

/// Reads map entries, each one message.
pub(crate) fn tree<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> Result<Tree, Status> {
    let entry = |bytes| {
        let entry = Entry::decode(bytes).map_err(bad)?;
        Ok((entry.name, entry.value.unwrap_or_default()))
    };
    entries.into_iter().map(entry).collect()
}

/// Reads the fields of a stored document: map entries, each under tag 2.
pub(crate) fn stored_tree(fields: &[u8]) -> Tree {
    // What is stored was checked when it was written.
    super::messages::Document::decode(fields)
        .ok()
        .and_then(|document| tree(document.fields.iter().map(|entry| &entry[..])).ok())
        .unwrap_or_default()
}

/// Writes fields as map entries under tag 2, in the order of their names.
pub(crate) fn encode_tree(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in tree {
        let mut entry = Vec::new();
        put_bytes_field(1, name.as_bytes(), &mut entry);
        put_bytes_field(2, &value.encode_to_vec(), &mut entry);
        put_bytes_field(2, &entry, &mut out);
    }
    out
}

/// Fields that may be stored.
pub(crate) struct Checked {
    /// Map entries under tag 2.
    pub(crate) fields: Vec<u8>,
    /// Bytes as Firestore counts them, the document's name not included.
    size: usize,
}

/// Checks the fields of a document to be written.
///
/// The bytes stay what they were, unless a timestamp has to be cut to microseconds or a name comes twice.
pub(crate) fn checked(entries: &[Bytes]) -> Result<Checked, Status> {
    let mut size = 0;
    let mut rewrite = false;
    let mut names = Vec::with_capacity(entries.len());
    for bytes in entries {
        let entry = Entry::decode(&bytes[..]).map_err(bad)?;
        check_field_name(&entry.name)?;
        let value = entry.value.unwrap_or_default();
        let mut check = Check { rewrite: false };
        size += entry.name.len() + 1 + check.value(&value, 1, &entry.name)?;
        rewrite |= check.rewrite;
        names.push(entry.name);
    }
    names.sort_unstable();
    let fields = if rewrite || names.windows(2).any(|pair| pair[0] == pair[1]) {
        let mut tree = tree(entries.iter().map(|entry| &entry[..]))?;
        tree.values_mut().for_each(cut_times);
        encode_tree(&tree)
    } else {
        let mut fields = Vec::with_capacity(entries.iter().map(|entry| entry.len() + 4).sum());
        entries
            .iter()
            .for_each(|entry| put_bytes_field(2, entry, &mut fields));
        fields
    };
    Ok(Checked { fields, size })
}

/// Checks fields that were put together from a document and a request.
pub(crate) fn checked_tree(tree: &Tree) -> Result<Checked, Status> {
    let fields = encode_tree(tree);
    let document = super::messages::Document::decode(&fields[..]).map_err(bad)?;
    checked(&document.fields)
}

impl Checked {
    /// Refuses a document that is too large as a whole.
    pub(crate) fn into_fields(self, name: &str) -> Result<Vec<u8>, Status> {
        let size = self.size + document_name_size(name) + 32;
        if size > MAX_DOCUMENT_BYTES {
            return Err(Status::invalid_argument(format!(
                "Document '{name}' cannot be written because its size ({size} bytes) exceeds the maximum allowed size of {MAX_DOCUMENT_BYTES} bytes."
            )));
        }
        Ok(self.fields)
    }
}

fn document_name_size(name: &str) -> usize {
    let path = name.split_once("/documents/").map_or(name, |(_, path)| path);
    path.split('/').map(|segment| segment.len() + 1).sum::<usize>() + 16
}

fn check_field_name(name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(Status::invalid_argument("The property.name is the empty string."));
    }
    if name.len() > MAX_FIELD_NAME_BYTES {
        return Err(Status::invalid_argument(format!(
            "The property.name is longer than {MAX_FIELD_NAME_BYTES} bytes."
        )));
    }
    if names::is_reserved(name) {
        return Err(Status::invalid_argument(format!(
            "field name '{name}' is reserved."
        )));
    }
    Ok(())
}

struct Check {
    /// Whether a timestamp is finer than microseconds.
    rewrite: bool,
}

impl Check {
    /// The size of a value as Firestore counts it.
    fn value(&mut self, value: &Value, depth: usize, field: &str) -> Result<usize, Status> {
        let Some(value) = &value.value_type else {
            return Err(Status::invalid_argument(format!(
                "The value of property \"{field}\" is not set."
            )));
        };
        if depth > MAX_DEPTH + 1 {
            return Err(Status::invalid_argument(format!(
                "Property \"{field}\" contains an invalid nested entity: nested too deeply."
            )));
        }
        Ok(match value {
            ValueType::NullValue(_) | ValueType::BooleanValue(_) => 1,
            ValueType::IntegerValue(_) | ValueType::DoubleValue(_) => 8,
            ValueType::TimestampValue(time) => {
                if !(-62_135_596_800..=253_402_300_799).contains(&time.seconds)
                    || !(0..1_000_000_000).contains(&time.nanos)
                {
                    return Err(Status::invalid_argument(format!(
                        "The timestamp of property \"{field}\" is out of range."
                    )));
                }
                self.rewrite |= time.nanos % 1000 != 0;
                8
            }
            ValueType::StringValue(text) => sized(text.len(), field)? + 1,
            ValueType::BytesValue(bytes) => sized(bytes.len(), field)?,
            ValueType::ReferenceValue(name) => {
                names::check_reference(name)?;
                document_name_size(name)
            }
            ValueType::GeoPointValue(point) => {
                if !(-90.0..=90.0).contains(&point.latitude) || !(-180.0..=180.0).contains(&point.longitude) {
                    return Err(Status::invalid_argument(format!(
                        "The geographical point of property \"{field}\" is out of range."
                    )));
                }
                16
            }
            ValueType::ArrayValue(array) => {
                let mut size = 0;
                for value in &array.values {
                    if matches!(value.value_type, Some(ValueType::ArrayValue(_))) {
                        return Err(Status::invalid_argument(
                            "Cannot convert an array value in an array value.",
                        ));
                    }
                    size += self.value(value, depth + 1, field)?;
                }
                size
            }
            ValueType::MapValue(map) if map.fields.contains_key("__type__") => vector_size(map, field)?,
            ValueType::MapValue(map) => {
                let mut size = 0;
                for (name, value) in &map.fields {
                    check_field_name(name)?;
                    size += name.len() + 1 + self.value(value, depth + 1, name)?;
                }
                size
            }
            _ => {
                return Err(Status::invalid_argument(format!(
                    "The value of property \"{field}\" cannot be stored."
                )));
            }
        })
    }
}

/// Checks a map that says that it is a vector.
fn vector_size(map: &MapValue, field: &str) -> Result<usize, Status> {
    let Some(elements) = vector_elements(map) else {
        return Err(Status::invalid_argument(format!(
            "Property {field} contains an invalid nested entity."
        )));
    };
    let is_double = |value: &Value| matches!(value.value_type, Some(ValueType::DoubleValue(_)));
    let problem = match elements.len() {
        _ if map.fields.len() > 2 => "Vector Value map has extraneous entries.",
        0 => "Cannot have a zero length vector.",
        length if length > MAX_DIMENSIONS => "Vectors must be at most 2048 dimensions.",
        _ if !elements.iter().all(is_double) => "Vector must only contain values of type 'double'",
        length => return Ok(length * 8 + 32),
    };
    Err(Status::invalid_argument(problem))
}

fn sized(bytes: usize, field: &str) -> Result<usize, Status> {
    if bytes > MAX_VALUE_BYTES {
        return Err(Status::invalid_argument(format!(
            "The value of property \"{field}\" is longer than {MAX_VALUE_BYTES} bytes."
        )));
    }
    Ok(bytes)
}

fn cut_times(value: &mut Value) {
    match &mut value.value_type {
        Some(ValueType::TimestampValue(time)) => time.nanos -= time.nanos % 1000,
        Some(ValueType::ArrayValue(array)) => array.values.iter_mut().for_each(cut_times),
        Some(ValueType::MapValue(map)) => map.fields.values_mut().for_each(cut_times),
        _ => {}
    }
}

/// Whether two values are the same, bit for bit.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    use ValueType::{ArrayValue, DoubleValue, GeoPointValue, MapValue};
    match (&a.value_type, &b.value_type) {
        (Some(DoubleValue(a)), Some(DoubleValue(b))) => a.to_bits() == b.to_bits(),
        (Some(GeoPointValue(a)), Some(GeoPointValue(b))) => {
            a.latitude.to_bits() == b.latitude.to_bits() && a.longitude.to_bits() == b.longitude.to_bits()
        }
        (Some(ArrayValue(a)), Some(ArrayValue(b))) => {
            a.values.len() == b.values.len() && a.values.iter().zip(&b.values).all(|(a, b)| same(a, b))
        }
        (Some(MapValue(a)), Some(MapValue(b))) => {
            let same_as = |(name, a): (&String, &Value)| b.fields.get(name).is_some_and(|b| same(a, b));
            a.fields.len() == b.fields.len() && a.fields.iter().all(same_as)
        }
        (a, b) => a == b,
    }
}

/// Whether the encoded fields of two documents say the same.
pub(crate) fn same_fields(a: &[u8], b: &[u8]) -> bool {
    if a == b {
        return true;
    }
    if a.len() != b.len() {
        // An encoding that is not the shortest could differ in length and say the same; clients do not write
        // such.
        return false;
    }
    let (a, b) = (stored_tree(a), stored_tree(b));
    a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
}

/// A field's path: names from the document inwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldPath(pub(crate) Vec<String>);

impl FieldPath {
    /// Reads `a.b`, with names that are not plain identifiers in backticks.
    pub(crate) fn parse(path: &str) -> Result<Self, Status> {
        let bad = || Status::invalid_argument(format!("Invalid property path \"{path}\"."));
        let mut names = Vec::new();
        let mut rest = path;
        loop {
            let mut name = String::new();
            if let Some(quoted) = rest.strip_prefix('`') {
                let mut characters = quoted.char_indices();
                rest = loop {
                    match characters.next().ok_or_else(bad)? {
                        (at, '`') => break &quoted[at + 1..],
                        (_, '\\') => name.push(characters.next().ok_or_else(bad)?.1),
                        (_, character) => name.push(character),
                    }
                };
            } else {
                let end = rest.find('.').unwrap_or(rest.len());
                let plain = |(at, c): (usize, char)| {
                    c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit())
                };
                if !rest[..end].char_indices().all(plain) {
                    return Err(bad());
                }
                name.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            if name.is_empty() {
                return Err(bad());
            }
            names.push(name);
            match rest.strip_prefix('.') {
                Some(more) => rest = more,
                None if rest.is_empty() => return Ok(Self(names)),
                None => return Err(bad()),
            }
        }
    }

    /// Whether it is the document's name.
    pub(crate) fn is_name(&self) -> bool {
        self.0 == ["__name__"]
    }

    /// The value at the path.
    pub(crate) fn get<'a>(&self, tree: &'a Tree) -> Option<&'a Value> {
        let (first, rest) = self.0.split_first()?;
        rest.iter()
            .try_fold(tree.get(first)?, |value, name| match &value.value_type {
                Some(ValueType::MapValue(map)) => map.fields.get(name),
                _ => None,
            })
    }

    /// Puts a value at the path, or takes it away; maps on the way are made as needed.
    pub(crate) fn set(&self, tree: &mut Tree, value: Option<Value>) {
        let Some((first, rest)) = self.0.split_first() else {
            return;
        };
        if rest.is_empty() {
            match value {
                Some(value) => tree.insert(first.clone(), value),
                None => tree.remove(first),
            };
            return;
        }
        if value.is_none() && self.get(tree).is_none() {
            return;
        }
        let slot = tree.entry(first.clone()).or_default();
        set_inside(slot, rest, value);
    }
}

fn set_inside(slot: &mut Value, path: &[String], value: Option<Value>) {
    let Some((first, rest)) = path.split_first() else {
        *slot = value.unwrap_or_default();
        return;
    };
    if !matches!(slot.value_type, Some(ValueType::MapValue(_))) {
        slot.value_type = Some(ValueType::MapValue(MapValue::default()));
    }
    let Some(ValueType::MapValue(map)) = &mut slot.value_type else {
        return;
    };
    if rest.is_empty() && value.is_none() {
        map.fields.remove(first);
    } else {
        set_inside(map.fields.entry(first.clone()).or_default(), rest, value);
    }
}

/// The fields that a mask lets through.
pub(crate) fn project(tree: &Tree, mask: &[FieldPath]) -> Tree {
    let mut out = Tree::new();
    for path in mask {
        if let Some(value) = path.get(tree) {
            path.set(&mut out, Some(value.clone()));
        }
    }
    out
}

/// Reads the paths of a mask.
pub(crate) fn mask<'a>(paths: impl IntoIterator<Item = &'a String>) -> Result<Vec<FieldPath>, Status> {
    paths.into_iter().map(|path| FieldPath::parse(path)).collect()
}
