//! Sizes and durations as people write them: `"64MiB"`, `"30s"`.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A size as the file spells it: text with a binary unit, or an integer of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) struct SizeText(String);

/// A duration as the file spells it: an integer with a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) struct DurationText(String);

/// Binary units, largest first, so that formatting finds the shortest spelling.
const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Units of time in milliseconds; `ms` before `m` and `s`, whose letters it holds.
const DURATIONS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

impl SizeText {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// The size in bytes, or what to write instead.
    pub(super) fn bytes(&self) -> Result<u64, String> {
        let text = self.0.trim();
        let (digits, unit) = split_unit(text);
        let factor = match unit {
            "" => Some(1),
            unit => SIZES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor),
        };
        let (Ok(number), Some(factor)) = (digits.parse::<u64>(), factor) else {
            return Err(format!(
                "{text:?} is not a size: write a whole number with KiB, MiB, GiB or TiB, such as \"64MiB\""
            ));
        };
        number.checked_mul(factor).ok_or_else(|| format!("{text:?} is more than 2^64 bytes"))
    }
}

impl DurationText {
    /// The duration, or what to write instead.
    pub(super) fn duration(&self) -> Result<Duration, String> {
        let text = self.0.trim();
        let (digits, unit) = split_unit(text);
        let factor = DURATIONS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms);
        let (Ok(number), Some(factor)) = (digits.parse::<u64>(), factor) else {
            return Err(format!(
                "{text:?} is not a duration: write a whole number with ms, s, m or h, such as \"30s\""
            ));
        };
        let milliseconds = number.checked_mul(factor);
        milliseconds
            .map(Duration::from_millis)
            .ok_or_else(|| format!("{text:?} is longer than 2^64 milliseconds"))
    }
}

/// Bytes with the largest binary unit that needs no more than one decimal: for messages.
pub(crate) fn show_bytes(bytes: u64) -> String {
    for (unit, factor) in SIZES {
        if bytes >= factor {
            if bytes.is_multiple_of(factor) {
                return format!("{}{unit}", bytes / factor);
            }
            let tenths = u128::from(bytes) * 10 / u128::from(factor);
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    "0B".to_owned()
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    (digits, unit.trim_start())
}

impl<'de> Deserialize<'de> for SizeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor("a size such as \"64MiB\"")).map(Self)
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor("a duration such as \"30s\"")).map(Self)
    }
}

/// Takes text or a whole number; what it means is judged later, with all other values.
struct TextVisitor(&'static str);

impl Visitor<'_> for TextVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<String, E> {
        Ok(number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<u64, String> {
        SizeText(text.to_owned()).bytes()
    }

    fn duration(text: &str) -> Result<Duration, String> {
        DurationText(text.to_owned()).duration()
    }

    #[test]
    fn sizes_are_binary_and_whole() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("64 MiB"), Ok(64 << 20));
        assert_eq!(size("3GiB"), Ok(3 << 30));
        assert_eq!(size("1TiB"), Ok(1 << 40));
        assert_eq!(size("12KiB"), Ok(12 << 10));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("7B"), Ok(7));
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_an_example() {
        for text in ["", "MiB", "64MB", "1.5GiB", "-1", "64mib", "1GiBs", "0x10"] {
            let problem = size(text).expect_err(text);
            assert!(problem.contains("64MiB"), "{problem}");
        }
        assert!(size("18446744073709551615KiB").expect_err("overflow").contains("2^64"));
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for text in ["", "30", "30 seconds", "1d", "s", "1.5s", "-3s"] {
            assert!(duration(text).expect_err(text).contains("30s"), "{text}");
        }
        assert!(duration("18446744073709551615h").expect_err("overflow").contains("2^64"));
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit() {
        assert_eq!(show_bytes(0), "0B");
        assert_eq!(show_bytes(1000), "1000B");
        assert_eq!(show_bytes(1 << 20), "1MiB");
        assert_eq!(show_bytes((1 << 30) + (1 << 29)), "1.5GiB");
        assert_eq!(show_bytes(u64::MAX), "16777215.9TiB");
    }
}
