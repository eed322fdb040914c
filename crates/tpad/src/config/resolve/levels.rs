//! What is kept, how it is fetched, and what is logged.

use std::collections::BTreeMap;

use super::Problems;
use super::values::{count, size};
use crate::config::units::show_bytes;
use crate::config::{Dram, Fetch, Log, LogFormat, Surroundings, mirror};
use crate::memory::DRAM_LEAST;

/// What the process needs beside the DRAM level: code, indexes, buffers.
const PROCESS_BYTES: u64 = 256 << 20;

pub(super) fn fetch(fetch: mirror::Fetch, problems: &mut Problems) -> Fetch {
    let mirror::Fetch { least_ranges, most_ranges } = fetch;
    let least_ranges = count("fetch.least_ranges", least_ranges, 4, 1024, problems);
    let most_ranges = count("fetch.most_ranges", most_ranges, 64.max(least_ranges), 1024, problems);
    if most_ranges < least_ranges {
        let message = format!("{most_ranges} is less than fetch.least_ranges, {least_ranges}");
        problems.add("fetch.most_ranges", message);
    }
    Fetch { least_ranges, most_ranges }
}

pub(super) fn dram(
    dram: mirror::Dram,
    surroundings: &Surroundings,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Dram {
    const KEY: &str = "levels.dram.capacity";
    let mirror::Dram { capacity, tiers } = dram;
    let limit = &surroundings.memory;
    let capacity_bytes =
        size(KEY, capacity, limit.default_dram_bytes(), DRAM_LEAST..=u64::MAX, problems);
    // The allowance of a tenth is the process's own bound: fragmentation and bookkeeping included.
    let whole = capacity_bytes.saturating_add(capacity_bytes / 10).saturating_add(PROCESS_BYTES);
    if capacity_bytes > limit.bytes {
        problems.add(
            KEY,
            format!(
                "{} is more than {} ({}): lower it to {} or less, or raise the limit",
                show_bytes(capacity_bytes),
                show_bytes(limit.bytes),
                limit.source,
                show_bytes(limit.default_dram_bytes()),
            ),
        );
    } else if whole > limit.bytes {
        warnings.push(format!(
            "{KEY} of {} leaves less than the process needs below {} ({}): expect up to {} in all",
            show_bytes(capacity_bytes),
            show_bytes(limit.bytes),
            limit.source,
            show_bytes(whole),
        ));
    }
    let mut tier_bytes = BTreeMap::new();
    for (tier, bytes) in tiers {
        let key = format!("levels.dram.tiers.{tier:?}");
        tier_bytes.insert(tier, size(&key, Some(bytes), 0, 0..=u64::MAX, problems));
    }
    let sum = tier_bytes.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    if sum > capacity_bytes {
        problems.add(
            "levels.dram.tiers",
            format!(
                "the tiers' budgets add up to {}, more than {KEY} = {}: lower the budgets or raise the capacity",
                show_bytes(sum),
                show_bytes(capacity_bytes),
            ),
        );
    }
    Dram { capacity_bytes, tier_bytes }
}

pub(super) fn log(log: mirror::Log, problems: &mut Problems) -> Log {
    let mirror::Log { level, format } = log;
    let level = level.unwrap_or_else(|| "info".to_owned());
    if let Err(error) = level.parse::<tracing_subscriber::filter::Targets>() {
        problems.add(
            "log.level",
            format!(
                "{level:?} is no log filter ({error}): write error, warn, info, debug or trace, or entries such as \
                 \"info,tpad_store=debug\""
            ),
        );
    }
    let format = match format.as_deref().unwrap_or("text") {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            problems.add("log.format", format!("{other:?} is neither \"text\" nor \"json\""));
            LogFormat::Text
        }
    };
    Log { level, format }
}
