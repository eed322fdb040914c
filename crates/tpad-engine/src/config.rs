//! What the engine is told: models, the store below it, and its bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use tpad_manifest::TierId;
use tpad_store::{HierarchyConfig, NvmeConfig, OriginOptions};

use crate::{DeviceMemory, LeaseBounds};

/// Everything that an engine needs to start.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The models; names are unique.
    pub models: Vec<ModelConfig>,
    /// The levels in front of the origins.
    pub store: HierarchyConfig,
    /// The level on local disk, if there is one.
    pub nvme: Option<NvmeConfig>,
    /// GPU memory.
    pub devices: DeviceMemory,
    /// What to do with a tier over its parameter budget.
    pub budget_enforcement: BudgetEnforcement,
    /// When the engine says that it is ready.
    pub ready_when: ReadyWhen,
    /// How often roots are looked at for a newer revision or activation; `None`:
    /// when a reload is asked for.
    pub follow: Option<Duration>,
    /// How long the tiers that a revision adds may take to come home before it is
    /// served all the same; zero serves it at once.
    pub swap_patience: Duration,
    /// How often a model that cannot be loaded is tried again.
    pub retry: RetryIntervals,
    /// What workers may hold of host memory.
    pub leases: LeaseBounds,
    /// Bounds on memory and on single requests.
    pub bounds: Bounds,
}

/// One model.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// What requests call it.
    pub name: String,
    /// The checkpoint's root, whose highest revision is served, or the URL of
    /// one revision (`ROOT/tpad/revisions/N.json`), which then stays.
    pub root: String,
    /// Where a manifest's `objects_base` may point besides the root: each entry
    /// allows itself and what lies below it.
    pub allowed_bases: Vec<String>,
    /// How to reach the root and the bases.
    pub origin: OriginOptions,
    /// TierSets that requests may ask for by name; they go before the
    /// manifest's of the same name. They may name tiers that it does not have.
    pub tier_sets: BTreeMap<String, Vec<TierId>>,
}

/// What happens to a revision with a tier over its parameter budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BudgetEnforcement {
    /// It is served and the status says so: a daemon that stops serving over an
    /// advisory number helps nobody.
    #[default]
    Warn,
    /// It is not served; what was served before stays.
    Reject,
}

/// When the engine says that it is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadyWhen {
    /// As soon as models can be read: what is not at home yet is read from where
    /// it is.
    #[default]
    Loaded,
    /// When their tiers are at home, too, as far as they fit. Whoever was ready
    /// stays so while another model or revision is brought home.
    Warm,
}

/// When a model that could not be loaded is tried again: `first`, then twice as
/// long each time, up to `longest`.
#[derive(Clone, Copy, Debug)]
pub struct RetryIntervals {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
}

/// Bounds on memory and on single requests.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// For one attempt at loading a model, and for reading one index segment.
    pub load_deadline: Duration,
    /// Index segments that a generation keeps, in bytes as they are stored. One
    /// segment is kept whatever its size.
    pub segment_bytes: u64,
    /// Small files that a generation keeps.
    pub file_bytes: u64,
    /// The largest file that is served.
    pub largest_file_bytes: u64,
    /// Blocks that one request may select.
    pub selected_blocks: usize,
    /// Blocks that all requests in progress may have selected.
    pub selected_blocks_in_flight: usize,
}

impl EngineConfig {
    /// These models on this store, the rest at its defaults.
    #[must_use]
    pub fn new(models: Vec<ModelConfig>, store: HierarchyConfig) -> Self {
        Self {
            leases: LeaseBounds::of_capacity(store.dram.capacity_bytes),
            models,
            store,
            nvme: None,
            devices: DeviceMemory::default(),
            budget_enforcement: BudgetEnforcement::default(),
            ready_when: ReadyWhen::default(),
            follow: Some(Duration::from_secs(30)),
            swap_patience: Duration::from_secs(600),
            retry: RetryIntervals::default(),
            bounds: Bounds::default(),
        }
    }
}

impl Default for RetryIntervals {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(60) }
    }
}

impl Default for Bounds {
    /// A block costs about 80 bytes in a segment and 32 in a selection: 128 MiB
    /// hold the index of 1.6 million blocks, and all selections together take
    /// at most 64 MiB. The largest tokenizers have 35 MB.
    fn default() -> Self {
        Self {
            load_deadline: Duration::from_secs(60),
            segment_bytes: 128 << 20,
            file_bytes: 64 << 20,
            largest_file_bytes: 64 << 20,
            selected_blocks: 1_000_000,
            selected_blocks_in_flight: 2_000_000,
        }
    }
}
