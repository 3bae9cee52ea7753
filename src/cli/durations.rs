//! Durations as people write them: `26h`, `2d`, `1h30min`.

use std::time::Duration;

const FORM: &str = "give a duration such as 26h, 90min or 2d (s, min, h, d, w)";

/// Numbers, each with its unit: `s`, `min`, `h`, `d` (24 hours), `w`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let mut seconds: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|char: char| !char.is_ascii_digit()).ok_or(FORM)?;
        let (number, after) = rest.split_at(digits);
        let unit = after
            .find(|char: char| char.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let number: u64 = number.parse().map_err(|_| FORM)?;
        let factor = match unit {
            "s" => 1,
            "min" => 60,
            "h" => 3_600,
            "d" => 86_400,
            "w" => 604_800,
            _ => return Err(FORM.to_owned()),
        };
        seconds = number
            .checked_mul(factor)
            .and_then(|more| seconds.checked_add(more))
            .ok_or(FORM)?;
        rest = after;
    }
    match seconds {
        // A hundred thousand years: what is longer is a typing error, and does not fit a calendar.
        1..=3_155_760_000_000 => Ok(Duration::from_secs(seconds)),
        _ => Err(FORM.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up() {
        assert_eq!(parse("26h"), Ok(Duration::from_secs(26 * 3600)));
        assert_eq!(parse("1h30min"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("2d"), Ok(Duration::from_secs(172_800)));
        for wrong in [
            "",
            "0h",
            "26",
            "h",
            "26m",
            "-1h",
            "1.5h",
            "99999999999999999999d",
            "9999999999999w",
            "1h ",
            "é",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
