//! What the engine counts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tpad_store::Medium;

/// Tiers with a label of their own; later ones share `other`. Manifests come
/// from outside, and a label's values must not.
const TIER_LABELS: usize = 64;

/// Counters of the engine; clones share them.
#[derive(Clone, Debug, Default)]
pub struct EngineMetrics {
    revision: Family<ModelLabel, Gauge>,
    generation: Family<ModelLabel, Gauge>,
    loads: Family<LoadLabels, Counter>,
    blocks: Family<ServedLabels, Counter>,
    bytes: Family<ServedLabels, Counter>,
    pins: Gauge,
    pinned_bytes: Gauge,
    leased_bytes: Gauge,
    direct_bytes: Gauge,
    direct_uses: Counter,
    tiers: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoadLabels {
    model: String,
    outcome: LoadOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as they are spelled")]
enum LoadOutcome {
    loaded,
    failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServedLabels {
    tier: String,
    level: &'static str,
}

impl EngineMetrics {
    /// Adds everything to `registry`; the text format appends `_total` to
    /// counters.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Revision of the model that is served";
        registry.register("tpad_model_revision", help, self.revision.clone());
        let help = "Count of swaps when the model's generation was made";
        registry.register("tpad_model_generation", help, self.generation.clone());
        let help = "Attempts to load a model";
        registry.register("tpad_model_loads", help, self.loads.clone());
        let help =
            "Blocks read for requests, by tier (or router, dense) and the level they came from";
        registry.register("tpad_blocks_served", help, self.blocks.clone());
        let help = "Image bytes of the blocks read for requests";
        registry.register("tpad_bytes_served", help, self.bytes.clone());
        registry.register("tpad_pins", "Pins", self.pins.clone());
        let help = "Image bytes of the blocks that pins hold in host memory, each once";
        registry.register("tpad_pinned_bytes", help, self.pinned_bytes.clone());
        let help = "Host memory that workers of this machine lease, each slot once";
        registry.register("tpad_leased_bytes", help, self.leased_bytes.clone());
        let help = "Host memory that workers of this machine hold by directories beside leases, each slot once";
        registry.register("tpad_direct_bytes", help, self.direct_bytes.clone());
        let help = "Blocks that workers say they used by directories, without a message";
        registry.register("tpad_direct_uses", help, self.direct_uses.clone());
    }

    pub(crate) fn loaded(&self, model: &str, revision: u64, generation: u64) {
        let label = ModelLabel { model: model.into() };
        self.revision.get_or_create(&label).set(gauge(revision));
        self.generation.get_or_create(&label).set(gauge(generation));
        self.load(model, LoadOutcome::loaded);
    }

    /// Forgets a model that was unloaded, so that names do not pile up.
    pub(crate) fn unloaded(&self, model: &str) {
        let label = ModelLabel { model: model.into() };
        self.revision.remove(&label);
        self.generation.remove(&label);
        for outcome in [LoadOutcome::loaded, LoadOutcome::failed] {
            self.loads.remove(&LoadLabels { model: model.into(), outcome });
        }
    }

    pub(crate) fn leased(&self, bytes: u64) {
        self.leased_bytes.set(gauge(bytes));
    }

    pub(crate) fn held_directly(&self, uses: u64, bytes: u64) {
        self.direct_uses.inc_by(uses);
        self.direct_bytes.set(gauge(bytes));
    }

    pub(crate) fn pinned(&self, pins: usize, bytes: u64) {
        self.pins.set(gauge(pins as u64));
        self.pinned_bytes.set(gauge(bytes));
    }

    pub(crate) fn failed(&self, model: &str) {
        self.load(model, LoadOutcome::failed);
    }

    fn load(&self, model: &str, outcome: LoadOutcome) {
        self.loads.get_or_create(&LoadLabels { model: model.into(), outcome }).inc();
    }

    pub(crate) fn served(&self, class: &str, medium: Medium, bytes: usize) {
        let labels = ServedLabels { tier: self.tier(class), level: medium.as_str() };
        self.blocks.get_or_create(&labels).inc();
        self.bytes.get_or_create(&labels).inc_by(bytes as u64);
    }

    fn tier(&self, class: &str) -> String {
        let mut known = self.tiers.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(class) {
            if known.len() >= TIER_LABELS {
                return "other".into();
            }
            known.insert(class.into());
        }
        class.into()
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_beyond_the_bound_share_a_label() {
        let metrics = EngineMetrics::default();
        for n in 0..TIER_LABELS {
            assert_eq!(metrics.tier(&n.to_string()), n.to_string());
        }
        assert_eq!(metrics.tier("one_more"), "other");
        assert_eq!(metrics.tier("3"), "3");
    }

    #[test]
    fn names_are_what_dashboards_use() {
        let metrics = EngineMetrics::default();
        metrics.loaded("m", 3, 1);
        metrics.failed("m");
        metrics.served("tier_1b", Medium::Dram, 512);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("it encodes");
        for line in [
            r#"tpad_model_revision{model="m"} 3"#,
            r#"tpad_model_generation{model="m"} 1"#,
            r#"tpad_model_loads_total{model="m",outcome="loaded"} 1"#,
            r#"tpad_model_loads_total{model="m",outcome="failed"} 1"#,
            r#"tpad_blocks_served_total{tier="tier_1b",level="dram"} 1"#,
            r#"tpad_bytes_served_total{tier="tier_1b",level="dram"} 512"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
