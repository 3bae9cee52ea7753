//! Field paths as scripts write them: `address.city`, or with keys between backticks.

/// The keys of a field path, or what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Vec<String>, String> {
    let mut keys = Vec::new();
    let mut letters = text.chars().peekable();
    loop {
        let mut key = String::new();
        if letters.next_if_eq(&'`').is_some() {
            loop {
                match letters.next() {
                    Some('`') => break,
                    Some('\\') => key.extend(letters.next()),
                    Some(letter) => key.push(letter),
                    None => {
                        return Err(format!(
                            "the field path {text:?} has a backtick that is not closed"
                        ));
                    }
                }
            }
        } else {
            while let Some(letter) = letters.next_if(|&letter| letter != '.') {
                key.push(letter);
            }
        }
        if key.is_empty() {
            return Err(format!("the field path {text:?} has an empty key"));
        }
        keys.push(key);
        match letters.next() {
            None => return Ok(keys),
            Some('.') => {}
            Some(_) => {
                return Err(format!(
                    "the field path {text:?} goes on after a backtick without a dot"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn keys_stand_between_dots_or_backticks() {
        assert_eq!(parse("a").unwrap(), ["a"]);
        assert_eq!(parse("a.b c.d").unwrap(), ["a", "b c", "d"]);
        assert_eq!(parse(r"`a.b`.`c\`d\\`").unwrap(), ["a.b", r"c`d\"]);
        for wrong in ["", ".", "a.", ".a", "a..b", "`a", "`a`b", "``"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
