//! The bounds of a hierarchy.

use std::collections::BTreeMap;
use std::time::Duration;

use super::StoreError;

/// The bounds of a hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HierarchyConfig {
    /// Host memory.
    pub dram: DramConfig,
    /// How misses are filled.
    pub fetch: FetchTuning,
}

/// Bounds on host memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DramConfig {
    /// All memory for blocks: kept ones, ones being filled, and ones that are
    /// still read after they were given up. Never exceeded.
    pub capacity_bytes: u64,
    /// What each class may keep. Classes without a budget share the rest.
    pub class_budgets: BTreeMap<String, u64>,
}

/// How misses are filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchTuning {
    /// Two ranges of an object at most this far apart are fetched as one: a
    /// request costs more than these bytes.
    pub gap_bytes: u64,
    /// Larger ranges are split into parts of this size, fetched in parallel.
    pub part_bytes: u64,
    /// Ranges in flight from one origin, over all its blocks: at least so many.
    pub least_ranges: u64,
    /// At most so many, if the origin makes something of them.
    pub most_ranges: u64,
    /// Digests computed at once: of spans of what arrives, and of blocks that lower
    /// levels read, each on all cores if it is large.
    pub concurrent_digests: usize,
    /// Blocks that are being filled or wait for it. One more is refused.
    pub max_fills: usize,
    /// Reads that wait for a fill. One more is refused.
    pub max_waiting: usize,
    /// How long a fill may take once it has memory, whoever still waits for it.
    pub max_fill_time: Duration,
    /// How long a lower level may take for a read, beside what its bytes cost
    /// at 100 MB/s.
    pub level_patience: Duration,
}

impl HierarchyConfig {
    /// The defaults for this much host memory.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        let dram = DramConfig { capacity_bytes, class_budgets: BTreeMap::new() };
        Self { dram, fetch: FetchTuning::default() }
    }
}

impl DramConfig {
    /// What of the capacity keeps blocks; the rest is for blocks that are being
    /// filled, or still read after they were given up.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        crate::dram::kept_bytes(self.capacity_bytes)
    }

    /// What of that may be the home of tiers. An eighth is left to routers, dense
    /// tensors and tiers that are fetched on demand, which would be read from the
    /// store each time.
    #[must_use]
    pub fn home_bytes(&self) -> u64 {
        home_bytes(self.kept_bytes())
    }
}

/// What of `kept` bytes may be the home of tiers.
#[must_use]
pub const fn home_bytes(kept: u64) -> u64 {
    kept - kept / 8
}

impl Default for FetchTuning {
    fn default() -> Self {
        Self {
            gap_bytes: 256 << 10,
            part_bytes: 8 << 20,
            least_ranges: 4,
            most_ranges: 64,
            concurrent_digests: std::thread::available_parallelism().map_or(1, usize::from),
            max_fills: 4096,
            max_waiting: 65_536,
            max_fill_time: Duration::from_secs(120),
            level_patience: Duration::from_secs(2),
        }
    }
}

impl FetchTuning {
    /// Refuses bounds under which nothing could be read.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let bounds = [
            ("fetch.part_bytes", self.part_bytes),
            ("fetch.least_ranges", self.least_ranges),
            ("fetch.most_ranges", self.most_ranges),
            ("fetch.concurrent_digests", self.concurrent_digests as u64),
            ("fetch.max_fills", self.max_fills as u64),
            ("fetch.max_waiting", self.max_waiting as u64),
        ];
        match bounds.into_iter().find(|(_, value)| *value == 0) {
            Some((key, value)) => Err(StoreError::Bound {
                key,
                value,
                remedy: "nothing could be read, make it larger",
            }),
            None => Ok(()),
        }
    }
}
