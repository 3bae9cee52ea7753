//! Choosing documents by patterns on their paths.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::document::{CollectionPath, DocumentPath, KeyRange};

/// A pattern that is none.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// The glob does not parse.
    #[error("`{pattern}` is not a pattern: {source}")]
    Glob {
        /// What was given.
        pattern: String,
        /// What is wrong with it.
        source: Box<globset::Error>,
    },
    /// A pattern must look like a path: no empty segments, no slash at an end.
    #[error("`{0}` is not a pattern: a path has no empty segments and no slash at its ends")]
    EmptySegment(String),
}

/// Documents chosen by patterns, any of which may match.
///
/// A pattern is a path whose segments may hold `*`, `?`, `[abc]` and `{a,b}`, none of which cross a slash, or be `**` for
/// any number of segments; a backslash takes the meaning from the next character. It chooses the documents it matches, and
/// everything below the documents and collections that it matches: `products` is all of `products` with its
/// subcollections, `users/*/orders` every user's orders, `products/p1` one product and what is below it.
#[derive(Clone, Debug)]
pub struct PathFilter {
    /// `None`: everything.
    globs: Option<GlobSet>,
    patterns: Vec<String>,
    ranges: Vec<KeyRange>,
}

impl PathFilter {
    /// Chooses every document.
    pub fn all() -> Self {
        Self {
            globs: None,
            patterns: Vec::new(),
            ranges: vec![KeyRange::all()],
        }
    }

    /// Chooses what any of the patterns chooses; with no pattern, every document.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        if patterns.is_empty() {
            return Ok(Self::all());
        }
        let mut globs = GlobSetBuilder::new();
        let mut ranges = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            let pattern = pattern.as_ref();
            if pattern.split('/').any(str::is_empty) {
                return Err(PatternError::EmptySegment(pattern.to_owned()));
            }
            for glob in [pattern.to_owned(), format!("{pattern}/**")] {
                let glob = GlobBuilder::new(&glob)
                    .literal_separator(true)
                    .backslash_escape(true)
                    .build()
                    .map_err(|source| PatternError::Glob {
                        pattern: pattern.to_owned(),
                        source: Box::new(source),
                    })?;
                globs.add(glob);
            }
            ranges.push(literal_prefix_range(pattern));
        }
        let globs = globs.build().map_err(|source| PatternError::Glob {
            pattern: String::new(),
            source: Box::new(source),
        })?;
        Ok(Self {
            globs: Some(globs),
            patterns: patterns
                .iter()
                .map(|pattern| pattern.as_ref().to_owned())
                .collect(),
            ranges: KeyRange::merge(ranges),
        })
    }

    /// Whether every document is chosen.
    pub fn is_all(&self) -> bool {
        self.globs.is_none()
    }

    /// The patterns as they were given; none where every document is chosen.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Key ranges, ascending and apart, outside of which nothing is chosen.
    pub fn ranges(&self) -> &[KeyRange] {
        &self.ranges
    }

    /// Whether the document is chosen.
    pub fn matches(&self, path: &DocumentPath) -> bool {
        self.globs
            .as_ref()
            .is_none_or(|globs| globs.is_match(path.as_str()))
    }
}

/// What can match: everything below the segments before the first one that is a pattern.
fn literal_prefix_range(pattern: &str) -> KeyRange {
    let is_glob = |segment: &&str| segment.contains(['*', '?', '[', ']', '{', '}', '\\']);
    let literal: Vec<&str> = pattern
        .split('/')
        .take_while(|segment| !is_glob(segment))
        .collect();
    // An alternation can span a slash: then the segments that it was cut into say nothing.
    let spans = pattern
        .split('/')
        .any(|segment| segment.matches('{').count() != segment.matches('}').count());
    if literal.is_empty() || spans {
        return KeyRange::all();
    }
    let path = literal.join("/");
    match (DocumentPath::parse(&*path), CollectionPath::parse(&*path)) {
        (Ok(document), _) => document.key().subtree(),
        (_, Ok(collection)) => collection.key_range(),
        _ => KeyRange::all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 8] = [
        "orders/o1",
        "orders/o1/lines/1",
        "orders/o2/lines/1",
        "products/p1",
        "products/p1/reviews/r1",
        "products/p2",
        "products2/p1",
        "users/u*/orders/o1",
    ];

    fn chosen(patterns: &[&str]) -> Vec<&'static str> {
        let filter = PathFilter::new(patterns).unwrap();
        PATHS
            .into_iter()
            .filter(|path| {
                let path = DocumentPath::parse(*path).unwrap();
                let matches = filter.matches(&path);
                let in_ranges = filter
                    .ranges()
                    .iter()
                    .any(|range| range.contains(path.key().as_bytes()));
                assert!(
                    in_ranges || !matches,
                    "{patterns:?} choose {path}, but do not read it"
                );
                matches
            })
            .collect()
    }

    #[test]
    fn patterns_choose_what_they_say() {
        assert_eq!(chosen(&[]), PATHS);
        assert_eq!(
            chosen(&["products"]),
            ["products/p1", "products/p1/reviews/r1", "products/p2"]
        );
        assert_eq!(
            chosen(&["products/p1"]),
            ["products/p1", "products/p1/reviews/r1"]
        );
        assert_eq!(
            chosen(&["orders/*/lines"]),
            ["orders/o1/lines/1", "orders/o2/lines/1"]
        );
        assert_eq!(
            chosen(&["orders/*"]),
            ["orders/o1", "orders/o1/lines/1", "orders/o2/lines/1"]
        );
        assert_eq!(
            chosen(&["**/{reviews/r1,lines/1}"]),
            ["orders/o1/lines/1", "orders/o2/lines/1", "products/p1/reviews/r1"]
        );
        assert_eq!(
            chosen(&["{orders/o1,products/p2}"]),
            ["orders/o1", "orders/o1/lines/1", "products/p2"]
        );
        assert_eq!(chosen(&["users/u\\*"]), ["users/u*/orders/o1"]);
        assert_eq!(
            chosen(&["products/p2", "orders/o2"]),
            ["orders/o2/lines/1", "products/p2"]
        );
        assert!(chosen(&["nothing"]).is_empty());
    }

    #[test]
    fn ranges_are_joined_and_ascend() {
        let filter = PathFilter::new(&["products/p1", "products", "orders/o1"]).unwrap();
        assert_eq!(filter.ranges().len(), 2);
        assert!(PathFilter::new(&["a//b"]).is_err());
        assert!(PathFilter::new(&["a[/b"]).is_err());
    }
}
