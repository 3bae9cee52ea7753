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

/// Documents chosen by patterns: those that any of the patterns matches, or all, without those that are excluded.
///
/// A pattern is a path whose segments may hold `*`, `?`, `[abc]` and `{a,b}`, none of which cross a slash, or be `**` for
/// any number of segments; a backslash takes the meaning from the next character. It chooses the documents it matches, and
/// everything below the documents and collections that it matches: `products` is all of `products` with its
/// subcollections, `users/*/orders` every user's orders, `products/p1` one product and what is below it. Patterns that
/// exclude match in the same way, and win.
#[derive(Clone, Debug)]
pub struct PathFilter {
    /// `None`: everything.
    only: Option<Patterns>,
    except: Option<Patterns>,
    ranges: Vec<KeyRange>,
}

/// Patterns, any of which may match.
#[derive(Clone, Debug)]
struct Patterns {
    globs: GlobSet,
    texts: Vec<String>,
    /// Ranges that hold everything that matches, ascending and apart.
    ranges: Vec<KeyRange>,
    /// The ranges of those patterns that match all that is in their range.
    exact: Vec<KeyRange>,
}

impl PathFilter {
    /// Chooses every document.
    pub fn all() -> Self {
        Self {
            only: None,
            except: None,
            ranges: vec![KeyRange::all()],
        }
    }

    /// Chooses what any of the patterns chooses; with no pattern, every document.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        if patterns.is_empty() {
            return Ok(Self::all());
        }
        let only = Patterns::new(patterns)?;
        Ok(Self {
            ranges: only.ranges.clone(),
            only: Some(only),
            except: None,
        })
    }

    /// The same without what any of these patterns matches. Replaces what was excluded before.
    pub fn excluding<S: AsRef<str>>(self, patterns: &[S]) -> Result<Self, PatternError> {
        let chosen = match &self.only {
            Some(only) => only.ranges.clone(),
            None => vec![KeyRange::all()],
        };
        if patterns.is_empty() {
            return Ok(Self {
                except: None,
                ranges: chosen,
                ..self
            });
        }
        let except = Patterns::new(patterns)?;
        Ok(Self {
            ranges: subtract(chosen, &except.exact),
            except: Some(except),
            ..self
        })
    }

    /// Whether every document is chosen.
    pub fn is_all(&self) -> bool {
        self.only.is_none() && self.except.is_none()
    }

    /// Whether every document in [`ranges`](Self::ranges) is chosen.
    pub fn is_exact(&self) -> bool {
        let exact = |patterns: &Option<Patterns>| patterns.as_ref().is_none_or(Patterns::is_exact);
        exact(&self.only) && exact(&self.except)
    }

    /// The patterns that choose, as they were given; none where every document is chosen.
    pub fn patterns(&self) -> &[String] {
        self.only.as_ref().map_or(&[], |only| &only.texts)
    }

    /// The patterns that exclude, as they were given.
    pub fn excluded(&self) -> &[String] {
        self.except.as_ref().map_or(&[], |except| &except.texts)
    }

    /// Key ranges, ascending and apart, outside of which nothing is chosen.
    pub fn ranges(&self) -> &[KeyRange] {
        &self.ranges
    }

    /// Whether the document is chosen.
    pub fn matches(&self, path: &DocumentPath) -> bool {
        let matched = |patterns: &Patterns| patterns.globs.is_match(path.as_str());
        self.only.as_ref().is_none_or(matched) && !self.except.as_ref().is_some_and(matched)
    }
}

impl Patterns {
    fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        let mut globs = GlobSetBuilder::new();
        let mut ranges = Vec::with_capacity(patterns.len());
        let mut exact = Vec::new();
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
            let range = literal_prefix_range(pattern);
            if is_literal(pattern) {
                exact.push(range.clone());
            }
            ranges.push(range);
        }
        let globs = globs.build().map_err(|source| PatternError::Glob {
            pattern: String::new(),
            source: Box::new(source),
        })?;
        Ok(Self {
            globs,
            texts: patterns
                .iter()
                .map(|pattern| pattern.as_ref().to_owned())
                .collect(),
            ranges: KeyRange::merge(ranges),
            exact: KeyRange::merge(exact),
        })
    }

    fn is_exact(&self) -> bool {
        self.exact == self.ranges
    }
}

/// Key ranges without that of the lock of migrations. A backup of a whole database has the lock where a migration was at work, as
/// everything else; it is no data, however, and says who works on *that* database at that time: a restore neither writes nor
/// deletes it, and nothing is compared with it.
pub(crate) fn without_lock(ranges: &[KeyRange]) -> Vec<KeyRange> {
    #[expect(clippy::expect_used, reason = "a constant")]
    let lock = CollectionPath::parse(crate::export::MIGRATIONS_LOCK_COLLECTION).expect("a segment");
    subtract(ranges.to_vec(), &[lock.key_range()])
}

/// What is left of ascending ranges without others, which ascend too.
fn subtract(ranges: Vec<KeyRange>, without: &[KeyRange]) -> Vec<KeyRange> {
    let mut left = Vec::with_capacity(ranges.len());
    for range in ranges {
        let mut rest = Some(range);
        for hole in without {
            let Some(range) = rest.take() else { break };
            if range.intersection(hole).is_empty() {
                rest = Some(range);
                continue;
            }
            if let Some(start) = &hole.start {
                left.push(KeyRange {
                    start: range.start.clone(),
                    end: Some(start.clone()),
                });
            }
            rest = hole.end.clone().map(|end| KeyRange {
                start: Some(end),
                end: range.end.clone(),
            });
        }
        left.extend(rest);
    }
    left.retain(|range| !range.is_empty());
    left
}

fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', ']', '{', '}', '\\'])
}

/// Whether a pattern matches all there is in its range: it has nothing that is special, or only says that it means all of
/// a collection.
fn is_literal(pattern: &str) -> bool {
    match pattern.strip_suffix("/**") {
        Some(collection) if collection.split('/').count() % 2 == 1 => !is_glob(collection),
        _ => !is_glob(pattern),
    }
}

/// What can match: everything below the segments before the first one that is a pattern.
fn literal_prefix_range(pattern: &str) -> KeyRange {
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
        chosen_by(&PathFilter::new(patterns).unwrap())
    }

    fn chosen_by(filter: &PathFilter) -> Vec<&'static str> {
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
                    "{filter:?} chooses {path}, but does not read it"
                );
                assert!(!filter.is_exact() || matches == in_ranges, "{filter:?}: {path}");
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
    fn what_is_excluded_is_not_chosen() {
        let chosen = |only: &[&str], except: &[&str]| {
            let filter = PathFilter::new(only).unwrap().excluding(except).unwrap();
            assert!(!filter.is_all());
            chosen_by(&filter)
        };
        let rest = ["products/p1", "products/p2", "products2/p1", "users/u*/orders/o1"];
        assert_eq!(chosen(&[], &["orders", "products/p1/reviews"]), rest);
        assert_eq!(chosen(&[], &["orders/**", "**/reviews/*"]), rest);
        assert_eq!(chosen(&["products"], &["products/p1"]), ["products/p2"]);
        assert_eq!(
            chosen(&["orders", "users"], &["**/lines"]),
            ["orders/o1", "users/u*/orders/o1"]
        );
        assert!(chosen(&["orders/o1"], &["orders"]).is_empty());
    }

    #[test]
    fn what_is_excluded_by_name_is_not_read() {
        let filter = PathFilter::new(&["products", "users"]).unwrap();
        let filter = filter.excluding(&["products/p1", "users/u1/orders/**"]).unwrap();
        assert!(filter.is_exact());
        assert_eq!(filter.ranges().len(), 4);
        let without = filter.excluding::<&str>(&[]).unwrap();
        assert_eq!((without.ranges().len(), without.excluded().len()), (2, 0));
        let inexact = without.excluding(&["**/orders"]).unwrap();
        assert!(!inexact.is_exact());
        assert_eq!(inexact.excluded(), ["**/orders"]);
    }

    #[test]
    fn ranges_are_joined_and_ascend() {
        let filter = PathFilter::new(&["products/p1", "products", "orders/o1"]).unwrap();
        assert_eq!(filter.ranges().len(), 2);
        assert!(PathFilter::new(&["a//b"]).is_err());
        assert!(PathFilter::new(&["a[/b"]).is_err());
    }
}
