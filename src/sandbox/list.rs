//! Lists: the collections below a document, and a collection's documents with those that are missing.
//!
//! A document is missing when it does not exist and something below it does; nothing is stored for it.

use std::ops::Bound;

use bytes::Bytes;
use tonic::Status;

use super::codec::put_bytes_field;
use super::database::{Database, Micros, Position};
use super::query::Projection;
use crate::document::key as keys;

/// Up to `limit` ids of collections below `parent`, ascending, and the token of the next page.
pub(crate) fn collection_ids(
    database: &Database,
    parent: &[u8],
    time: Micros,
    limit: usize,
    token: &str,
) -> Result<(Vec<String>, String), Status> {
    let end = keys::prefix_end(parent);
    let mut ids = Vec::new();
    let mut from = match token {
        "" => Bound::Excluded(parent.to_vec()),
        token => Bound::Included(decode_token(token)?),
    };
    while let Some(key) = database.first_key(from, &end, time) {
        let segment = keys::first_segment(key.get(parent.len()..).unwrap_or_default());
        if ids.len() == limit {
            return Ok((ids, encode_token(&key[..parent.len() + segment.len()])));
        }
        ids.push(keys::segment_text(segment));
        from = Bound::Included(keys::prefix_end(&key[..parent.len() + segment.len()]));
    }
    Ok((ids, String::new()))
}

/// What to list of a collection.
pub(crate) struct Listing<'a> {
    /// The key of the collection.
    pub(crate) collection: &'a [u8],
    /// The collection's name with a slash after it.
    pub(crate) name_prefix: &'a str,
    pub(crate) show_missing: bool,
    pub(crate) projection: &'a Projection,
}

/// Up to `limit` documents of a collection in order, encoded, and the token of the next page.
pub(crate) fn documents(
    database: &Database,
    listing: &Listing<'_>,
    time: Micros,
    limit: usize,
    token: &str,
) -> Result<(Vec<Bytes>, String), Status> {
    let collection = listing.collection;
    let end = keys::prefix_end(collection);
    let mut documents = Vec::new();
    let mut from = match token {
        "" => Bound::Excluded(collection.to_vec()),
        token => Bound::Included(decode_token(token)?),
    };
    loop {
        let Some(key) = database.first_key(from, &end, time) else {
            return Ok((documents, String::new()));
        };
        let segment = keys::first_segment(key.get(collection.len()..).unwrap_or_default());
        let own = &key[..collection.len() + segment.len()];
        let found = (own.len() == key.len())
            .then(|| database.get(own, time))
            .flatten();
        if found.is_some() || listing.show_missing {
            documents.push(match found {
                Some(found) => listing.projection.apply(&found.stored()),
                None => {
                    let mut message = Vec::new();
                    let name = format!("{}{}", listing.name_prefix, keys::segment_text(segment));
                    put_bytes_field(1, name.as_bytes(), &mut message);
                    message.into()
                }
            });
        }
        let next = keys::prefix_end(own);
        if documents.len() == limit {
            // Whether anything follows is not looked up: the next page may be empty, as the emulator's may.
            return Ok((documents, encode_token(&next)));
        }
        from = Bound::Included(next);
    }
}

/// What a listing in a transaction reads.
pub(crate) fn range(prefix: &[u8]) -> Position {
    Position {
        start: Bound::Included(prefix.to_vec()),
        end: Bound::Excluded(keys::prefix_end(prefix)),
    }
}

pub(crate) fn encode_token(key: &[u8]) -> String {
    hex::encode(key)
}

pub(crate) fn decode_token(token: &str) -> Result<Vec<u8>, Status> {
    hex::decode(token).map_err(|_| Status::invalid_argument("invalid page token"))
}
