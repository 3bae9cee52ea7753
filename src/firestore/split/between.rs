//! A name about half way between two names, by how ids usually look.

use crate::document::DocumentPath;
use crate::firestore::cursor::SMALLEST_ID;

/// Stands for the end of a collection of ordinary ids: the character after `z`.
const AFTER_ORDINARY: char = '{';
/// Characters of a made-up id after what its neighbours have in common.
const DIGITS: usize = 4;

/// A name between `first` and `end`, neither of which it is; `None` for `end` is the end of everything. There
/// is none where the two are next to each other, or look so.
pub(super) fn name_between(first: &DocumentPath, end: Option<&DocumentPath>) -> Option<DocumentPath> {
    let candidates = match end {
        Some(end) => candidates(first, end),
        None => vec![inside(first, 0)],
    };
    candidates
        .into_iter()
        .flatten()
        .filter_map(|path| DocumentPath::parse(path).ok())
        .find(|name| first < name && end.is_none_or(|end| name < end))
}

/// A name before `end` that probably nothing lies between, `None` when there is none to try: just past
/// everything that begins as `first` does, one character further than `end` shares. Ids often begin alike,
/// and half way to the end of all ids would be far from any of them.
pub(super) fn name_past(first: &DocumentPath, end: Option<&DocumentPath>) -> Option<DocumentPath> {
    let a: Vec<&str> = first.segments().collect();
    let b: Vec<&str> = end.map(|end| end.segments().collect()).unwrap_or_default();
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let mut depth = same | 1;
    let mut high = if same % 2 == 1 { b.get(same).copied() } else { None };
    while let Some(id) = a.get(depth) {
        let common = high.map_or(0, |high| {
            id.chars().zip(high.chars()).take_while(|(a, b)| a == b).count()
        });
        let past: String = match id.chars().nth(common) {
            Some(_) => id.chars().take(common + 1).chain([AFTER_ORDINARY]).collect(),
            None => format!("{id}\0"),
        };
        let path = format!("{}/{past}", a[..depth].join("/"));
        let name = DocumentPath::parse(path).ok()?;
        if *first < name && end.is_none_or(|end| name < *end) {
            return Some(name);
        }
        // Nothing is left between this id and the end: on among what lies below it.
        depth += 2;
        high = None;
    }
    None
}

fn candidates(first: &DocumentPath, end: &DocumentPath) -> Vec<Option<String>> {
    let a: Vec<&str> = first.segments().collect();
    let b: Vec<&str> = end.segments().collect();
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let prefix = |segments: &[&str], more: &str| {
        let mut path = segments.join("/");
        if !path.is_empty() {
            path.push('/');
        }
        path + more
    };
    if same == a.len() {
        // `end` lies below `first`: among its siblings.
        let id = b.get(same + 1).and_then(|end| id_between("", Some(end)));
        return vec![id.map(|id| prefix(&b[..=same], &id))];
    }
    if same % 2 == 1 {
        let id = id_between(a[same], Some(b[same]));
        return vec![id.map(|id| prefix(&a[..same], &id)), inside(first, same + 1)];
    }
    // Different collections: where the second begins, or else inside the first.
    vec![Some(prefix(&b[..=same], SMALLEST_ID)), inside(first, same)]
}

/// A name after `first` in the collection that stands at `depth` of its path.
fn inside(first: &DocumentPath, depth: usize) -> Option<String> {
    let segments: Vec<&str> = first.segments().collect();
    let id = id_between(segments.get(depth + 1)?, None)?;
    Some(format!("{}/{id}", segments[..=depth].join("/")))
}

/// An id between two ids of a collection, about half way.
fn id_between(low: &str, high: Option<&str>) -> Option<String> {
    // Numeric ids come before text; half way from there to a text is a text.
    let low = if low.starts_with("__id") { "" } else { low };
    let high = match high {
        Some(high) if high.starts_with("__id") => return None,
        Some(high) => high.chars().collect(),
        None if low.starts_with(|first| first < AFTER_ORDINARY) || low.is_empty() => vec![AFTER_ORDINARY],
        None => vec![char::MAX],
    };
    let low: Vec<char> = low.chars().collect();
    let same = low.iter().zip(&high).take_while(|(a, b)| a == b).count();
    let digits = |id: &[char]| -> [char; DIGITS] {
        std::array::from_fn(|index| id.get(same + index).copied().unwrap_or('\0'))
    };
    let alphabet = Alphabet::of(digits(&low).into_iter().chain(digits(&high)));
    let value = |id: [char; DIGITS]| {
        id.into_iter()
            .fold(0, |value, digit| value * alphabet.base() + alphabet.number(digit))
    };
    let mut middle = (value(digits(&low)) + value(digits(&high))) / 2;
    let mut id = ['\0'; DIGITS];
    for digit in id.iter_mut().rev() {
        *digit = alphabet.digit(middle % alphabet.base());
        middle /= alphabet.base();
    }
    let length = DIGITS - id.iter().rev().take_while(|&&digit| digit == '\0').count();
    let id = &id[..length];
    let id: String = high[..same].iter().chain(id).collect();
    (!id.is_empty() && id != "." && id != ".." && !id.starts_with("__")).then_some(id)
}

/// Characters as digits, in their order, NUL as the end of an id. Ids are mostly letters and digits: half way
/// is then found among those, where documents are, and reads well.
#[derive(Clone, Copy)]
enum Alphabet {
    Ordinary,
    Everything,
}

/// What ordinary ids are made of, between their end and what stands for the end of a collection, in order.
const ORDINARY: &[u8] = b"\0-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz{";

impl Alphabet {
    fn of(mut characters: impl Iterator<Item = char>) -> Self {
        let ordinary = |character| u8::try_from(character).is_ok_and(|byte| ORDINARY.contains(&byte));
        match characters.all(ordinary) {
            true => Self::Ordinary,
            false => Self::Everything,
        }
    }

    fn base(self) -> u128 {
        match self {
            Self::Ordinary => ORDINARY.len() as u128,
            Self::Everything => 0x11_0000,
        }
    }

    fn number(self, digit: char) -> u128 {
        match self {
            Self::Ordinary => ORDINARY
                .iter()
                .take_while(|&&ordinary| char::from(ordinary) != digit)
                .count() as u128,
            Self::Everything => u32::from(digit).into(),
        }
    }

    fn digit(self, number: u128) -> char {
        match self {
            Self::Ordinary => usize::try_from(number)
                .ok()
                .and_then(|number| ORDINARY.get(number))
                .map_or('\0', |&digit| char::from(digit)),
            Self::Everything => match u32::try_from(number).ok().and_then(char::from_u32) {
                Some('/') => '0',
                Some(digit) => digit,
                None => '\u{e000}',
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn between(first: &str, end: &str) -> Option<String> {
        let end = (!end.is_empty()).then(|| DocumentPath::parse(end).unwrap());
        name_between(&DocumentPath::parse(first).unwrap(), end.as_ref()).map(String::from)
    }

    #[test]
    fn halves_what_ids_look_like() {
        assert_eq!(between("a/p0000", "a/p9999").unwrap().as_bytes()[..4], *b"a/p4");
        assert_eq!(between("a/A", "a/C").unwrap(), "a/B");
        assert_eq!(between("a/b", "a/b/c/d").unwrap().as_bytes()[..6], *b"a/b/c/");
        assert_eq!(between("a/b", "c/d").unwrap(), "c/__id-9223372036854775808__");
        let collection_end = "a\0/__id-9223372036854775808__";
        assert_eq!(between("a/0", collection_end).as_deref(), Some("a/VV"));
        assert_eq!(between("a/0", "").as_deref(), Some("a/VV"));
        assert_eq!(between("a/b", "a/b\0"), None);
    }

    proptest! {
        #[test]
        fn lies_between(a in "[a-c]/[^/]{1,4}(/[a-c]/[^/]{1,4})?", b in "[a-c]/[^/]{1,4}(/[a-c]/[^/]{1,4})?") {
            let (Ok(a), Ok(b)) = (DocumentPath::parse(a), DocumentPath::parse(b)) else { return Ok(()) };
            if a < b && let Some(middle) = name_between(&a, Some(&b)) {
                prop_assert!(a < middle && middle < b, "{:?} {:?} {:?}", a, middle, b);
            }
            if let Some(middle) = name_between(&a, None) {
                prop_assert!(a < middle);
            }
        }
    }
}
