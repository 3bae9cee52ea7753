//! Collections that are restored under another name.
//!
//! A collection moves with everything below it. Its documents' keys begin with the collection's, so to rename it is to put
//! another prefix in its place: the order within the collection stays, and a range of the snapshot beside the same range of
//! the database is still a merge.

use std::borrow::Cow;

use crate::document::{CollectionPath, DocumentKey, DocumentPath, KeyRange, PathError};

/// Names that cannot be taken together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenameError {
    /// Not of the form `from=to`.
    #[error(
        "`{0}` does not say what becomes of which collection: write FROM=TO, such as `products=products_old`"
    )]
    NoPair(String),
    /// One side is not a collection.
    #[error("`{text}`: {source}")]
    NoCollection {
        /// What was given.
        text: String,
        /// What is wrong.
        source: PathError,
    },
    /// Two of them say where the same documents go, or send documents to the same place.
    #[error("`{0}` and `{1}` overlap: rename one of them in a restore of its own")]
    Overlap(String, String),
}

/// Which collections get which other names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renames(Vec<Rename>);

/// One collection and its other name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    from: CollectionPath,
    to: CollectionPath,
}

impl std::fmt::Display for Rename {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.from, self.to)
    }
}

impl Renames {
    /// Reads `from=to` pairs of collections' paths, as they are in the snapshot and as they are to be.
    ///
    /// # Errors
    /// Where a pair is none, and where two of them overlap: none may be inside of another one, neither the ones that move
    /// nor the places that they move to.
    pub fn parse<S: AsRef<str>>(pairs: &[S]) -> Result<Self, RenameError> {
        let mut renames: Vec<Rename> = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let pair = pair.as_ref();
            let (from, to) = pair
                .split_once('=')
                .ok_or_else(|| RenameError::NoPair(pair.to_owned()))?;
            let collection = |text: &str| {
                CollectionPath::parse(text).map_err(|source| RenameError::NoCollection {
                    text: pair.to_owned(),
                    source,
                })
            };
            let rename = Rename {
                from: collection(from)?,
                to: collection(to)?,
            };
            let overlap = renames.iter().find(|other| {
                overlap(&rename.from.key_range(), &other.from.key_range())
                    || overlap(&rename.to.key_range(), &other.to.key_range())
            });
            if let Some(other) = overlap {
                return Err(RenameError::Overlap(other.to_string(), pair.to_owned()));
            }
            if rename.from != rename.to {
                renames.push(rename);
            }
        }
        Ok(Self(renames))
    }

    /// Whether nothing gets another name.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The renamed collections, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &Rename> {
        self.0.iter()
    }

    /// Where a document of the snapshot goes; `None` where it keeps its path.
    pub fn rename(&self, path: &str) -> Option<String> {
        let moved = |rename: &Rename| {
            let below = path.strip_prefix(rename.from.as_str())?;
            below
                .starts_with('/')
                .then(|| format!("{}{below}", rename.to.as_str()))
        };
        self.0.iter().find_map(moved)
    }

    /// Whether a document lies where a renamed collection goes.
    pub(super) fn lead_to(&self, path: &str) -> bool {
        let below = |rename: &Rename| path.strip_prefix(rename.to.as_str());
        self.0
            .iter()
            .any(|rename| below(rename).is_some_and(|below| below.starts_with('/')))
    }

    /// Cuts ranges of the snapshot into pieces in each of which all documents are renamed alike. Ranges that others move to are
    /// left out, unless they move away themselves: what the snapshot has there cannot be restored along with them.
    pub(super) fn pieces(&self, ranges: &[KeyRange]) -> Vec<KeyRange> {
        if self.is_empty() {
            return ranges.to_vec();
        }
        let from: Vec<KeyRange> = self.0.iter().map(|rename| rename.from.key_range()).collect();
        let to: Vec<KeyRange> = self.0.iter().map(|rename| rename.to.key_range()).collect();
        let mut boundaries: Vec<&DocumentKey> = from
            .iter()
            .chain(&to)
            .flat_map(|range| range.start.iter().chain(&range.end))
            .collect();
        boundaries.sort_unstable();
        let mut pieces = Vec::new();
        for range in ranges {
            let mut start = range.start.clone();
            let inside = boundaries
                .iter()
                .filter(|boundary| range.contains(boundary.as_bytes()));
            for end in inside
                .map(|boundary| Some((*boundary).clone()))
                .chain([range.end.clone()])
            {
                pieces.push(KeyRange {
                    start: std::mem::replace(&mut start, end.clone()),
                    end,
                });
            }
        }
        let within = |piece: &KeyRange, ranges: &[KeyRange]| {
            ranges.iter().any(|range| range.intersection(piece) == *piece)
        };
        pieces.retain(|piece| !piece.is_empty() && (within(piece, &from) || !within(piece, &to)));
        pieces
    }

    /// Ranges that documents move to and that are not moved away themselves, each with what moves there.
    pub(crate) fn taken(&self) -> Vec<(KeyRange, &Rename)> {
        let from: Vec<KeyRange> = self.0.iter().map(|rename| rename.from.key_range()).collect();
        let mut taken = Vec::new();
        for rename in &self.0 {
            let to = rename.to.key_range();
            if !from.iter().any(|from| from.intersection(&to) == to) {
                taken.push((to, rename));
            }
        }
        taken
    }

    /// What happens to the keys of a piece.
    pub(super) fn of_piece(&self, piece: &KeyRange) -> KeyMap {
        let rename = self
            .0
            .iter()
            .find(|rename| rename.from.key_range().intersection(piece) == *piece);
        let prefix = |collection: &CollectionPath| {
            let start = collection.key_range().start;
            start.map_or_else(Vec::new, |start| start.as_bytes().to_vec())
        };
        KeyMap(rename.map(|rename| (prefix(&rename.from), prefix(&rename.to))))
    }
}

/// Where the keys of some range go: the same prefix of all of them is replaced, if any is.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyMap(Option<(Vec<u8>, Vec<u8>)>);

impl KeyMap {
    /// The key in the database.
    pub(super) fn target<'a>(&self, key: &'a [u8]) -> Cow<'a, [u8]> {
        match &self.0 {
            Some((from, to)) => replaced(key, from, to),
            None => Cow::Borrowed(key),
        }
    }

    /// The key in the snapshot.
    pub(super) fn source<'a>(&self, key: &'a [u8]) -> Cow<'a, [u8]> {
        match &self.0 {
            Some((from, to)) => replaced(key, to, from),
            None => Cow::Borrowed(key),
        }
    }

    /// The range in the database.
    pub(super) fn target_range(&self, range: &KeyRange) -> KeyRange {
        let Some((from, to)) = &self.0 else {
            return range.clone();
        };
        let whole = |prefix: &[u8]| DocumentKey::from_bytes(prefix).subtree();
        let (all, moved) = (whole(from), whole(to));
        let side = |key: &Option<DocumentKey>, all_of: &Option<DocumentKey>, moved: &Option<DocumentKey>| {
            if key == all_of {
                return moved.clone();
            }
            key.as_ref()
                .map(|key| DocumentKey::from_bytes(self.target(key.as_bytes())))
        };
        KeyRange {
            start: side(&range.start, &all.start, &moved.start),
            end: side(&range.end, &all.end, &moved.end),
        }
    }
}

fn replaced<'a>(key: &'a [u8], from: &[u8], to: &[u8]) -> Cow<'a, [u8]> {
    match key.strip_prefix(from) {
        Some(rest) => Cow::Owned([to, rest].concat()),
        None => Cow::Borrowed(key),
    }
}

fn overlap(one: &KeyRange, other: &KeyRange) -> bool {
    !one.intersection(other).is_empty()
}

/// The document where it is restored to.
pub(super) fn renamed(renames: &Renames, path: &DocumentPath) -> Result<Option<DocumentPath>, PathError> {
    match renames.is_empty() {
        true => Ok(None),
        false => renames.rename(path.as_str()).map(DocumentPath::parse).transpose(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Vec<u8> {
        DocumentPath::parse(path).unwrap().key().as_bytes().to_vec()
    }

    #[test]
    fn a_collection_moves_with_what_is_below_it() {
        let renames = Renames::parse(&["a=b", "users/u1/orders=old/u1/orders", "x=x"]).unwrap();
        let rename = |path| renames.rename(path).unwrap_or_else(|| "stays".to_owned());
        assert_eq!(rename("a/1"), "b/1");
        assert_eq!(rename("a/1/c/2"), "b/1/c/2");
        assert_eq!(rename("ab/1"), "stays");
        assert_eq!(rename("users/u1"), "stays");
        assert_eq!(rename("users/u1/orders/o/lines/1"), "old/u1/orders/o/lines/1");
        assert_eq!(renames.iter().count(), 2, "to its own name is no change");
    }

    #[test]
    fn names_that_overlap_are_refused() {
        for (pairs, what) in [
            (&["a"][..], "FROM=TO"),
            (&["a=b/c"], "collection"),
            (&["a/b=c"], "collection"),
            (&["=a"], "empty"),
            (&["a=b", "a=c"], "overlap"),
            (&["a=c", "b=c"], "overlap"),
            (&["a=b", "a/1/c=d"], "overlap"),
            (&["a=b", "c=b/1/c"], "overlap"),
        ] {
            let error = Renames::parse(pairs).unwrap_err().to_string();
            assert!(error.contains(what), "{pairs:?}: {error}");
        }
        assert!(Renames::parse(&["a=b", "b=a"]).is_ok(), "two may change places");
    }

    /// For every path: its piece says the same as its name, and comes back.
    fn check(pairs: &[&str], paths: &[&str], left_out: &[&str]) {
        let renames = Renames::parse(pairs).unwrap();
        let pieces = renames.pieces(&[KeyRange::all()]);
        for path in paths {
            let key = key(path);
            let piece: Vec<_> = pieces.iter().filter(|piece| piece.contains(&key)).collect();
            if left_out.contains(path) {
                assert_eq!(piece.len(), 0, "{path}");
                continue;
            }
            assert_eq!(piece.len(), 1, "{path}");
            let keys = renames.of_piece(piece[0]);
            let target = renames.rename(path).unwrap_or_else(|| (*path).to_owned());
            assert_eq!(*keys.target(&key), self::key(&target), "{path}");
            assert_eq!(*keys.source(&self::key(&target)), key, "{path}");
            assert!(
                keys.target_range(piece[0]).contains(&self::key(&target)),
                "{path}"
            );
        }
        let targets: Vec<_> = pieces
            .iter()
            .map(|piece| renames.of_piece(piece).target_range(piece))
            .collect();
        for (index, one) in targets.iter().enumerate() {
            for other in &targets[index + 1..] {
                assert!(one.intersection(other).is_empty(), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn pieces_have_one_name_each() {
        let paths = [
            "__id1__/1",
            "a/1",
            "a/1/c/1",
            "a/__id5__",
            "aa/1",
            "b/1",
            "b/2/c/1",
            "c/1",
            "z/1",
        ];
        check(&["a=b"], &paths, &["b/1", "b/2/c/1"]);
        check(&["a=b", "b=a"], &paths, &[]);
        check(&["a=b", "b=c"], &paths, &["c/1"]);
        check(&["a=a/1/c"], &paths, &[]);
        check(&["a/1/c=a"], &paths, &["a/1", "a/__id5__"]);
    }
}
