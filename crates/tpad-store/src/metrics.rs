//! What the store counts. Clones share the counters.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::{ErrorKind, Lookups, Medium};

/// The store's counters. The text format appends `_total` to their names.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    origin_requests: Family<OutcomeLabel, Counter>,
    origin_bytes: Counter,
    origin_dropped_bytes: Counter,
    origin_retries: Counter,
    origin_parallel_ranges: Gauge,
    level_reads: Family<LevelReadLabels, Counter>,
    level_bytes: Family<LevelLabel, Counter>,
    level_admissions: Family<LevelWriteLabels, Counter>,
    level_evictions: Family<LevelLabel, Counter>,
    level_errors: Family<LevelLabel, Counter>,
    verify_failures: Family<LevelLabel, Counter>,
    prefetch_wasted_bytes: Counter,
    reads: Family<OutcomeLabel, Counter>,
    reads_joined: Counter,
    fill_seconds: Histogram,
    mapped_bytes: Gauge,
    kept_bytes: Family<LevelLabel, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabel {
    level: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelReadLabels {
    level: &'static str,
    outcome: ReadOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as they are spelled")]
enum ReadOutcome {
    hit,
    miss,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelWriteLabels {
    level: &'static str,
    outcome: WriteOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as they are spelled")]
enum WriteOutcome {
    written,
    dropped,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            origin_requests: Family::default(),
            origin_bytes: Counter::default(),
            origin_dropped_bytes: Counter::default(),
            origin_retries: Counter::default(),
            origin_parallel_ranges: Gauge::default(),
            level_reads: Family::default(),
            level_bytes: Family::default(),
            level_admissions: Family::default(),
            level_evictions: Family::default(),
            level_errors: Family::default(),
            verify_failures: Family::default(),
            prefetch_wasted_bytes: Counter::default(),
            reads: Family::default(),
            reads_joined: Counter::default(),
            // 1 ms to 65 s: a router from a local file to an expert over a slow link.
            fill_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            mapped_bytes: Gauge::default(),
            kept_bytes: Family::default(),
        }
    }
}

impl StoreMetrics {
    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Ranges asked of origins, by outcome; attempts at one range count once";
        registry.register("tpad_origin_requests", help, self.origin_requests.clone());
        let help = "Bytes of blocks that origins delivered";
        registry.register("tpad_origin_bytes", help, self.origin_bytes.clone());
        let help = "Bytes between ranges that were fetched with them and dropped";
        registry.register("tpad_origin_dropped_bytes", help, self.origin_dropped_bytes.clone());
        let help = "Attempts at a range after a failed one";
        registry.register("tpad_origin_retries", help, self.origin_retries.clone());
        let help = "Ranges that may be asked of origins at once, as they go now, over all origins";
        registry.register("tpad_origin_parallel_ranges", help, self.origin_parallel_ranges.clone());
        let help = "Lookups of blocks in levels";
        registry.register("tpad_level_reads", help, self.level_reads.clone());
        let help = "Image bytes that levels delivered";
        registry.register("tpad_level_bytes", help, self.level_bytes.clone());
        let help = "Blocks offered to levels";
        registry.register("tpad_level_admissions", help, self.level_admissions.clone());
        let help = "Blocks that levels gave up for others";
        registry.register("tpad_level_evictions", help, self.level_evictions.clone());
        let help = "Failed reads and writes of levels, each counted as a miss";
        registry.register("tpad_level_errors", help, self.level_errors.clone());
        let help = "Blocks whose bytes were not what their checksum says, by where they came from";
        registry.register("tpad_verify_failures", help, self.verify_failures.clone());
        let help =
            "Image bytes of prefetched blocks that host memory gave up before their first use";
        registry.register("tpad_prefetch_wasted_bytes", help, self.prefetch_wasted_bytes.clone());
        let help = "Blocks asked of the store, by outcome";
        registry.register("tpad_store_reads", help, self.reads.clone());
        let help = "Reads that waited for a fill which another one had started";
        registry.register("tpad_store_reads_joined", help, self.reads_joined.clone());
        let help = "Seconds from a miss to a verified block in memory";
        registry.register("tpad_fill_seconds", help, self.fill_seconds.clone());
        let help = "Host memory taken for blocks, as of the last fill";
        registry.register("tpad_arena_mapped_bytes", help, self.mapped_bytes.clone());
        let help = "Bytes that levels keep, as of the last fill";
        registry.register("tpad_level_kept_bytes", help, self.kept_bytes.clone());
    }

    pub(crate) fn origin_request(&self, result: Result<u64, ErrorKind>) {
        let outcome = result.map_or_else(ErrorKind::as_str, |_| "ok");
        self.origin_requests.get_or_create(&OutcomeLabel { outcome }).inc();
        if let Ok(bytes) = result {
            self.origin_bytes.inc_by(bytes);
        }
    }

    pub(crate) fn origin_dropped(&self, bytes: u64) {
        self.origin_dropped_bytes.inc_by(bytes);
    }

    pub(crate) fn origin_retried(&self) {
        self.origin_retries.inc();
    }

    pub(crate) fn origin_parallel(&self, ranges: u64) {
        self.origin_parallel_ranges.set(i64::try_from(ranges).unwrap_or(i64::MAX));
    }

    pub(crate) fn level_hit(&self, level: Medium, bytes: u64) {
        let level = level.as_str();
        let labels = LevelReadLabels { level, outcome: ReadOutcome::hit };
        self.level_reads.get_or_create(&labels).inc();
        self.level_bytes.get_or_create(&LevelLabel { level }).inc_by(bytes);
    }

    pub(crate) fn level_missed(&self, level: Medium) {
        let labels = LevelReadLabels { level: level.as_str(), outcome: ReadOutcome::miss };
        self.level_reads.get_or_create(&labels).inc();
    }

    /// What was counted of a level's lookups.
    pub(crate) fn lookups(&self, level: Medium) -> Lookups {
        let count = |outcome| {
            let labels = LevelReadLabels { level: level.as_str(), outcome };
            self.level_reads.get(&labels).map_or(0, |counter| counter.get())
        };
        Lookups::of(count(ReadOutcome::hit), count(ReadOutcome::miss))
    }

    pub(crate) fn level_failed(&self, level: Medium) {
        self.level_errors.get_or_create(&LevelLabel { level: level.as_str() }).inc();
    }

    pub(crate) fn level_written(&self, level: Medium) {
        let labels = LevelWriteLabels { level: level.as_str(), outcome: WriteOutcome::written };
        self.level_admissions.get_or_create(&labels).inc();
    }

    pub(crate) fn level_write_dropped(&self, level: Medium) {
        let labels = LevelWriteLabels { level: level.as_str(), outcome: WriteOutcome::dropped };
        self.level_admissions.get_or_create(&labels).inc();
    }

    pub(crate) fn level_evicted(&self, level: Medium) {
        self.level_evictions.get_or_create(&LevelLabel { level: level.as_str() }).inc();
    }

    pub(crate) fn prefetch_wasted(&self, bytes: u64) {
        self.prefetch_wasted_bytes.inc_by(bytes);
    }

    pub(crate) fn verify_failed(&self, from: Medium) {
        self.verify_failures.get_or_create(&LevelLabel { level: from.as_str() }).inc();
    }

    pub(crate) fn read(&self, result: Result<(), ErrorKind>) {
        let outcome = result.map_or_else(ErrorKind::as_str, |()| "ok");
        self.reads.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn read_joined(&self) {
        self.reads_joined.inc();
    }

    pub(crate) fn memory(&self, mapped: u64, kept: u64) {
        let gauge = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.mapped_bytes.set(gauge(mapped));
        let level = Medium::Dram.as_str();
        self.kept_bytes.get_or_create(&LevelLabel { level }).set(gauge(kept));
    }

    pub(crate) fn filled(&self, took: Duration) {
        self.fill_seconds.observe(took.as_secs_f64());
    }
}
