//! Documents that are made when they are read: millions of them, of which nothing is held.
//!
//! A document is its index. The index gives the id, by an ascending map onto twenty characters that look like
//! Firestore's random ids, and picks one of the bodies that were made at the start, in which a few values of
//! fixed width are replaced. So a document costs a copy, no two are equal, and any of them can be found by
//! name. Everything follows from the seed: the same specification serves the same bytes in every process, as
//! long as the random generator of the `rand` crate stays.

use std::sync::OnceLock;

use bytes::BufMut;
use prost::encoding::encoded_len_varint;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::codec::put_bytes_field;
use super::database::{Micros, Stored, put_time_field};
use super::synthetic_body::{Body, make_body};
use crate::document::DatabaseName;
use crate::document::key::{self as keys, TAG_TEXT, TEXT_END};

/// A root collection of made-up documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntheticSpec {
    /// The root collection that they are in. Each specification of a database needs its own.
    pub collection: String,
    /// How many there are.
    pub documents: u64,
    /// About how many bytes the fields of each take on the wire, from about 200 upwards.
    pub document_bytes: usize,
    /// What they are made from: another seed gives other documents.
    pub seed: u64,
    /// The database that they are in; every database where it is `None`.
    pub database: Option<DatabaseName>,
}

impl SyntheticSpec {
    /// Documents in every database.
    pub fn new(collection: impl Into<String>, documents: u64, document_bytes: usize) -> Self {
        Self {
            collection: collection.into(),
            documents,
            document_bytes,
            seed: 0,
            database: None,
        }
    }
}

/// When synthetic documents were created: 2025-06-29T00:00:00Z, and each a millisecond after the one before.
const FIRST_CREATED: Micros = 1_751_155_200_000_000;
/// The digits of ids, ascending as bytes.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Ten digits of base 62: the part of an id that ascends.
const LEADING: u64 = 62u64.pow(10);
/// The length of an id.
const ID_LENGTH: usize = 20;
/// Bytes of bodies to choose from: much more than the 2 MiB that zstd -3 looks back, so that a repetition of
/// a body does not make the data compress better than real data.
const POOL_BYTES: usize = 16 << 20;

/// The documents of a specification in one database.
#[derive(Debug)]
pub(crate) struct Synthetic {
    spec: SyntheticSpec,
    /// `projects/…/documents`.
    root: String,
    /// `projects/…/documents/<collection>/`.
    name_prefix: String,
    /// The key of the collection.
    prefix: Vec<u8>,
    /// Each is made when it is first needed: a test that reads a few documents does not wait for all.
    bodies: Box<[OnceLock<Body>]>,
}

impl Synthetic {
    pub(crate) fn new(spec: SyntheticSpec, root: &str) -> Self {
        Self {
            root: root.to_owned(),
            name_prefix: format!("{root}/{}/", spec.collection),
            prefix: keys::key_of(&spec.collection),
            bodies: std::iter::repeat_with(OnceLock::new)
                .take(body_count(&spec))
                .collect(),
            spec,
        }
    }

    /// How many documents there are.
    pub(crate) fn len(&self) -> u64 {
        self.spec.documents
    }

    /// The key of the collection.
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    fn hash(&self, index: u64, purpose: u8) -> u64 {
        let mut bytes = [0; 9];
        bytes[..8].copy_from_slice(&index.to_le_bytes());
        bytes[8] = purpose;
        xxh3_64_with_seed(&bytes, self.spec.seed)
    }

    fn slot(&self) -> u64 {
        LEADING / self.spec.documents.max(1)
    }

    fn id(&self, index: u64) -> [u8; ID_LENGTH] {
        let slot = self.slot().max(1);
        let random = self.hash(index, 0);
        let mut id = [0; ID_LENGTH];
        let (leading, trailing) = id.split_at_mut(ID_LENGTH / 2);
        put_digits(index * slot + random % slot, leading);
        put_digits(random, trailing);
        id
    }

    /// The key of the document at `index`.
    pub(crate) fn key(&self, index: u64) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + ID_LENGTH + 2);
        key.extend_from_slice(&self.prefix);
        key.push(TAG_TEXT);
        key.extend_from_slice(&self.id(index));
        key.push(TEXT_END);
        key
    }

    /// The document with this key.
    pub(crate) fn find(&self, key: &[u8]) -> Option<u64> {
        key.strip_prefix(&self.prefix[..])?;
        let index = self.lower_bound(key);
        (index < self.len() && self.key(index) == key).then_some(index)
    }

    /// How many documents have a smaller key.
    pub(crate) fn lower_bound(&self, key: &[u8]) -> u64 {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle).as_slice() < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// When the document at `index` was created and last changed.
    pub(crate) fn time(&self, index: u64) -> Micros {
        FIRST_CREATED + (index % 1_000_000_000) as i64 * 1000
    }

    fn body(&self, index: u64) -> &Body {
        let number = self.hash(index, 2) % self.bodies.len() as u64;
        self.bodies[number as usize]
            .get_or_init(|| make_body(self.hash(number, 1), self.spec.document_bytes, &self.root))
    }

    fn times(&self, index: u64) -> Times {
        let mut times = Times {
            bytes: [0; 64],
            len: 0,
        };
        let mut out = &mut times.bytes[..];
        put_time_field(3, self.time(index), &mut out);
        put_time_field(4, self.time(index), &mut out);
        let unused = out.len();
        times.len = times.bytes.len() - unused;
        times
    }

    /// The length of the `Document` message of the document at `index`.
    pub(crate) fn message_len(&self, index: u64, names_only: bool) -> usize {
        let name = self.name_prefix.len() + ID_LENGTH;
        let fields = if names_only {
            0
        } else {
            self.body(index).fields.len()
        };
        1 + encoded_len_varint(name as u64) + name + fields + self.times(index).len
    }

    /// Appends the `Document` message of the document at `index`.
    pub(crate) fn put_message(&self, index: u64, names_only: bool, out: &mut impl BufMut) {
        let name = self.name_prefix.len() + ID_LENGTH;
        prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, out);
        prost::encoding::encode_varint(name as u64, out);
        out.put_slice(self.name_prefix.as_bytes());
        out.put_slice(&self.id(index));
        if !names_only {
            self.body(index).put(self.hash(index, 3), out);
        }
        let times = self.times(index);
        out.put_slice(&times.bytes[..times.len]);
    }

    /// The document at `index` as if it had been written.
    pub(crate) fn stored(&self, index: u64) -> Stored {
        let mut fields = Vec::new();
        self.body(index).put(self.hash(index, 3), &mut fields);
        let mut name = self.name_prefix.clone();
        name.push_str(&String::from_utf8_lossy(&self.id(index)));
        Stored::from_parts(&name, &fields, self.time(index), self.time(index))
    }

    /// The name of the document at `index`, as a field of a message.
    pub(crate) fn name(&self, index: u64) -> String {
        format!("{}{}", self.name_prefix, String::from_utf8_lossy(&self.id(index)))
    }
}

fn body_count(spec: &SyntheticSpec) -> usize {
    let count = (POOL_BYTES / spec.document_bytes.max(200)).clamp(64, 1 << 15);
    count.min(spec.documents.max(1) as usize)
}

struct Times {
    bytes: [u8; 64],
    len: usize,
}

fn put_digits(mut number: u64, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = DIGITS[(number % 62) as usize];
        number /= 62;
    }
}

/// A message that holds the fields of a document, each as a map entry under tag 2.
pub(crate) fn put_entry(name: &str, value: &[u8], out: &mut Vec<u8>) -> usize {
    let mut entry = Vec::with_capacity(name.len() + value.len() + 8);
    put_bytes_field(1, name.as_bytes(), &mut entry);
    put_bytes_field(2, value, &mut entry);
    put_bytes_field(2, &entry, out);
    out.len() - value.len()
}

/// The bytes of a whole document, for tests.
#[cfg(test)]
pub(crate) fn message(synthetic: &Synthetic, index: u64) -> bytes::Bytes {
    let mut out = Vec::new();
    synthetic.put_message(index, false, &mut out);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::firestore::gcloud_sdk::google::firestore::v1::Document;
    use prost::Message;

    fn synthetic(documents: u64) -> Synthetic {
        Synthetic::new(
            SyntheticSpec::new("products", documents, 900),
            "projects/p/databases/d/documents",
        )
    }

    #[test]
    fn ids_ascend_and_are_found() {
        for count in [1, 2, 1000, 50_000_000] {
            let synthetic = synthetic(count);
            let mut last = Vec::new();
            for index in (0..count).step_by((count / 1000).max(1) as usize) {
                let key = synthetic.key(index);
                assert!(last < key);
                assert_eq!(synthetic.find(&key), Some(index));
                last = key;
            }
        }
    }

    #[test]
    fn messages_decode_differ_and_have_the_length_they_say() {
        let synthetic = synthetic(5000);
        let mut bodies = std::collections::HashSet::new();
        let mut total = 0;
        for index in 0..5000 {
            let bytes = message(&synthetic, index);
            assert_eq!(bytes.len(), synthetic.message_len(index, false));
            let document = Document::decode(&bytes[..]).unwrap();
            assert_eq!(document.name, synthetic.name(index));
            assert!(document.fields.len() > 5);
            total += bytes.len();
            assert!(bodies.insert(
                format!("{:?}", document.fields.iter().collect::<std::collections::BTreeMap<_, _>>())
            ));
            assert_eq!(synthetic.stored(index).message(), &bytes);
        }
        assert!((800..1200).contains(&(total / 5000)), "{}", total / 5000);
    }

    /// Real collections compress three- to fivefold in frames of 256 KiB; so must these, wherever they are cut.
    #[test]
    fn documents_compress_as_real_ones_do() {
        let synthetic = synthetic(200_000);
        let mut frame = Vec::new();
        let mut index = 100_000;
        while frame.len() < 256 << 10 {
            synthetic.put_message(index, false, &mut frame);
            index += 1;
        }
        let compressed = zstd::encode_all(&frame[..], 3).unwrap();
        let ratio = frame.len() as f64 / compressed.len() as f64;
        assert!((3.0..5.0).contains(&ratio), "{ratio:.2}");
    }
}
