//! Sizes and durations as people write them.
//!
//! `K M G T P` and `KiB MiB ...` are powers of 1024, `kB MB GB ...` powers of 1000, as on the
//! label of a drive. What is printed is always in powers of 1024 with the unit spelt out.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const LETTERS: &str = "KMGTPE";

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("{text:?} is not a size; write for example 512M, 10GiB or 1.5T");
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let factor = unit_bytes(unit).ok_or_else(wrong)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.len() > 9 || (fraction.is_empty() && number.contains('.')) {
            return Err(wrong());
        }
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
        let scaled = digits * u128::from(factor);
        let divisor = 10u128.pow(fraction.len() as u32);
        if !scaled.is_multiple_of(divisor) {
            return Err(format!("{text:?} is not a whole number of bytes"));
        }
        u64::try_from(scaled / divisor).map(Size).map_err(|_| format!("{text:?} is too large"))
    }
}

fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number.starts_with(|c: char| c.is_ascii_digit()) && number.len() < 24)
        .then_some((number, unit.trim()))
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let mut letters = unit.chars();
    let power = match letters.next() {
        None => return Some(1),
        Some('B') => return (unit == "B").then_some(1),
        Some(letter) => LETTERS.find(letter.to_ascii_uppercase())? as u32 + 1,
    };
    match letters.as_str() {
        "" | "i" | "iB" | "ib" => Some(1024u64.pow(power)),
        "B" | "b" => Some(1000u64.pow(power)),
        _ => None,
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut power = 0;
        while power < LETTERS.len() && self.0 >= 1024u64.pow(power as u32 + 1) {
            power += 1;
        }
        let Some(letter) = power.checked_sub(1).and_then(|at| LETTERS.chars().nth(at)) else {
            return f.pad(&format!("{} B", self.0));
        };
        let value = self.0 as f64 / 1024f64.powi(power as i32);
        let decimals = if value >= 100.0 { 0 } else { 1 };
        f.pad(&format!("{value:.decimals$} {letter}iB"))
    }
}

/// A duration as `250us`, `10ms`, `30s`, `5m`, `2h`; a bare number is seconds.
///
/// # Errors
/// If the text is none of these.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write for example 250us, 10ms, 30s, 5m");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Result<u64, String> {
        text.parse::<Size>().map(|size| size.0)
    }

    #[test]
    fn reads_what_people_write() {
        for (text, expected) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4k", 4096),
            ("4K", 4096),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5T", 3 << 39),
            ("0.5M", 1 << 19),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "G", "-1", "1X", "1Gi B", "1..5G", "1.G", "0.3", "99999999999T", "1e3"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prints_with_the_unit() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10 << 30, "10.0 GiB"),
            (850 << 20, "850 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), expected);
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("2ms"), Ok(Duration::from_millis(2)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(duration("2 weeks").is_err());
    }
}
