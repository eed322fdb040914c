//! Single values: sizes, durations and counts, each within its range.

use std::time::Duration;

use super::Problems;
use crate::config::units::{DurationText, SizeText, show_bytes};

pub(in crate::config) fn size(
    key: &str,
    text: Option<SizeText>,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
    problems: &mut Problems,
) -> u64 {
    let Some(text) = text else { return default };
    match text.bytes() {
        Ok(bytes) if range.contains(&bytes) => return bytes,
        Ok(bytes) => problems.add(
            key,
            format!(
                "{} is outside {} to {}",
                show_bytes(bytes),
                show_bytes(*range.start()),
                show_bytes(*range.end()),
            ),
        ),
        Err(message) => problems.add(key, message),
    }
    default
}

pub(super) fn duration(
    key: &str,
    text: Option<DurationText>,
    default: Duration,
    range: std::ops::RangeInclusive<Duration>,
    problems: &mut Problems,
) -> Duration {
    let Some(text) = text else { return default };
    match text.duration() {
        Ok(duration) if range.contains(&duration) => return duration,
        Ok(duration) => problems
            .add(key, format!("{duration:?} is outside {:?} to {:?}", range.start(), range.end())),
        Err(message) => problems.add(key, message),
    }
    default
}

pub(super) fn count<N: TryFrom<u64> + Default>(
    key: &str,
    number: Option<u64>,
    default: u64,
    most: u64,
    problems: &mut Problems,
) -> N {
    let number = number.unwrap_or(default);
    if !(1..=most).contains(&number) {
        problems.add(key, format!("{number} is outside 1 to {most}"));
    }
    narrow(number)
}

/// A number that a range check above has bounded, or that a problem is already recorded for.
pub(super) fn narrow<N: TryFrom<u64> + Default>(number: u64) -> N {
    N::try_from(number).unwrap_or_default()
}

pub(super) const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}
