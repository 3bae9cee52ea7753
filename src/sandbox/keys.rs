//! What the sandbox needs to know about the byte keys of documents: where their segments end.

/// The end of the segment that `key` starts with. A key is made of whole segments: see
/// [`document::path`](crate::document::path).
pub(crate) fn first_segment(key: &[u8]) -> &[u8] {
    let end = match key.first() {
        None => 0,
        Some(1) => 9,
        Some(_) => {
            let mut at = 1;
            loop {
                match key[at..].iter().position(|&byte| byte == 0) {
                    None => break key.len(),
                    Some(nul) if key.get(at + nul + 1) == Some(&0xff) => at += nul + 2,
                    Some(nul) => break at + nul + 1,
                }
            }
        }
    };
    &key[..end.min(key.len())]
}

/// The segments of a key.
pub(crate) fn segments(mut key: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let segment = first_segment(key);
        key = &key[segment.len()..];
        (!segment.is_empty()).then_some(segment)
    })
}

/// The key of one segment or of a relative path.
pub(crate) fn key_of(path: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(path.len() + 8);
    crate::document::path::append_key(path, &mut key);
    key
}

/// The first key after everything that starts with `prefix`, whole segments.
pub(crate) fn after_subtree(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    // Greater than every tag that a next segment can start with, and not the escape of a NUL.
    end.push(3);
    end
}

/// The text of a segment.
pub(crate) fn segment_text(segment: &[u8]) -> String {
    match segment {
        [1, number @ ..] => {
            let number = number.try_into().map(u64::from_be_bytes).unwrap_or_default();
            format!("__id{}__", (number ^ (1 << 63)) as i64)
        }
        [_, text @ .., _] => {
            let mut plain = Vec::with_capacity(text.len());
            let mut after_nul = false;
            for &byte in text {
                if !(after_nul && byte == 0xff) {
                    plain.push(byte);
                }
                after_nul = byte == 0;
            }
            String::from_utf8_lossy(&plain).into_owned()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_found_again() {
        let path = "a/__id-5__/b\0c\0/é/__id007__/\0";
        let key = key_of(path);
        let found: Vec<String> = segments(&key).map(segment_text).collect();
        assert_eq!(found.join("/"), path);
    }
}
