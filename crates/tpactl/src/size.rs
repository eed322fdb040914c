//! Sizes as people write them.

/// Bytes: a whole number, alone or with a unit.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => {
            return Err("the unit must be B, KB, MB, GB, TB, KiB, MiB, GiB or TiB".to_owned());
        }
    };
    let bytes = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "a size such as 512MiB is expected".to_owned())
}

/// Bytes in a second: a size, with `/s` or without.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    size(text.strip_suffix("/s").unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_are_not_zero() {
        assert_eq!(size("5"), Ok(5));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("5GB"), Ok(5_000_000_000));
        assert_eq!(size("2TiB"), Ok(2 << 40));
        assert_eq!(rate("2GB/s"), rate("2GB"));
        for text in ["", "0", "0GiB", "MiB", "1.5GiB", "-1", "1 parsec", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
