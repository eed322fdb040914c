//! What each kind of thread of this process takes of the processors.

use std::collections::BTreeMap;
use std::fs;

/// Nanoseconds on a processor so far, by the threads' name without its numbers.
pub(super) fn spent() -> BTreeMap<String, u64> {
    let mut spent = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let name = read("comm").trim().replace(|c: char| c.is_ascii_digit(), "");
        let nanos = read("schedstat").split(' ').next().and_then(|text| text.parse::<u64>().ok());
        *spent.entry(name).or_default() += nanos.unwrap_or(0);
    }
    spent
}

/// Microseconds since `before`, for each of so many.
#[expect(clippy::cast_precision_loss, reason = "an average")]
pub(super) fn each(before: &BTreeMap<String, u64>, count: u64) -> BTreeMap<String, f64> {
    let since = |(name, nanos): (String, u64)| {
        let more = nanos.saturating_sub(before.get(&name).copied().unwrap_or(0));
        (name, more as f64 / 1e3 / count as f64)
    };
    spent().into_iter().map(since).filter(|(_, micros)| *micros >= 0.05).collect()
}
