//! What the level counts. Clones share the counters.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::DeviceId;

/// The level's counters. The text format appends `_total` to their names.
#[derive(Clone, Debug)]
pub struct HbmMetrics {
    lookups: Family<LookupLabels, Counter>,
    fills: Family<FillLabels, Counter>,
    fill_bytes: Family<DeviceLabel, Counter>,
    fill_seconds: Histogram,
    evictions: Counter,
    no_memory: Family<DeviceLabel, Counter>,
    mapped_bytes: Family<DeviceLabel, Gauge>,
    kept_bytes: Family<DeviceLabel, Gauge>,
    registered_bytes: Gauge,
    registration_failures: Counter,
    broken: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabel {
    device: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    device: u32,
    outcome: Lookup,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FillLabels {
    device: u32,
    outcome: FillOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as they are spelled")]
enum Lookup {
    hit,
    miss,
}

/// What became of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as they are spelled")]
pub(crate) enum FillOutcome {
    /// Copied and kept.
    kept,
    /// Copied, and given up meanwhile.
    dropped,
    /// The policy would not let it stay.
    not_admitted,
    /// There was no slot for it, in time.
    no_room,
    /// Nobody waited for it any more.
    given_up,
    /// The driver failed.
    failed,
}

impl Default for HbmMetrics {
    fn default() -> Self {
        Self {
            lookups: Family::default(),
            fills: Family::default(),
            fill_bytes: Family::default(),
            // 50 µs to 26 s: a router over the bus to an expert that waits for room.
            fill_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 20)),
            evictions: Counter::default(),
            no_memory: Family::default(),
            mapped_bytes: Family::default(),
            kept_bytes: Family::default(),
            registered_bytes: Gauge::default(),
            registration_failures: Counter::default(),
            broken: Gauge::default(),
        }
    }
}

impl HbmMetrics {
    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Lookups of blocks in GPU memory";
        registry.register("tpad_hbm_lookups", help, self.lookups.clone());
        let help = "Fills of GPU memory, by what became of them";
        registry.register("tpad_hbm_fills", help, self.fills.clone());
        let help = "Bytes copied to GPU memory, padding of slots included";
        registry.register("tpad_hbm_fill_bytes", help, self.fill_bytes.clone());
        let help = "Seconds from a wish to a block in GPU memory";
        registry.register("tpad_hbm_fill_seconds", help, self.fill_seconds.clone());
        let help = "Blocks that GPU memory gave up for others";
        registry.register("tpad_hbm_evictions", help, self.evictions.clone());
        let help =
            "Times that a GPU had no memory for the level though its capacity was not used up";
        registry.register("tpad_hbm_no_memory", help, self.no_memory.clone());
        let help = "GPU memory taken for blocks, as of the last fill";
        registry.register("tpad_hbm_mapped_bytes", help, self.mapped_bytes.clone());
        let help = "Bytes of blocks kept in GPU memory, as of the last fill";
        registry.register("tpad_hbm_kept_bytes", help, self.kept_bytes.clone());
        let help = "Host memory that is registered for copies to GPUs";
        registry.register("tpad_hbm_registered_host_bytes", help, self.registered_bytes.clone());
        let help = "Slabs of host memory that could not be registered: copies of them are slow";
        registry.register(
            "tpad_hbm_registration_failures",
            help,
            self.registration_failures.clone(),
        );
        let help = "1 when an error of a GPU has turned the level off until restart";
        registry.register("tpad_hbm_broken", help, self.broken.clone());
    }

    pub(crate) fn looked_up(&self, device: DeviceId, found: bool) {
        let outcome = if found { Lookup::hit } else { Lookup::miss };
        self.lookups.get_or_create(&LookupLabels { device: device.0, outcome }).inc();
    }

    pub(crate) fn filled(&self, device: DeviceId, outcome: FillOutcome) {
        self.fills.get_or_create(&FillLabels { device: device.0, outcome }).inc();
    }

    pub(crate) fn copied(&self, device: DeviceId, bytes: u64, took: Duration) {
        self.fill_bytes.get_or_create(&DeviceLabel { device: device.0 }).inc_by(bytes);
        self.fill_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn evicted(&self) {
        self.evictions.inc();
    }

    pub(crate) fn had_no_memory(&self, device: DeviceId) {
        self.no_memory.get_or_create(&DeviceLabel { device: device.0 }).inc();
    }

    pub(crate) fn memory(&self, device: DeviceId, mapped: u64, kept: u64) {
        let label = DeviceLabel { device: device.0 };
        self.mapped_bytes.get_or_create(&label).set(gauge(mapped));
        self.kept_bytes.get_or_create(&label).set(gauge(kept));
    }

    pub(crate) fn registered(&self, bytes: usize, more: bool) {
        let bytes = gauge(bytes as u64);
        if more {
            self.registered_bytes.inc_by(bytes);
        } else {
            self.registered_bytes.dec_by(bytes);
        }
    }

    pub(crate) fn registration_failed(&self) {
        self.registration_failures.inc();
    }

    pub(crate) fn broke(&self) {
        self.broken.set(1);
    }
}

fn gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
