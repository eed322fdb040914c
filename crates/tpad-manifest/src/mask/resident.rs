//! Where blocks are, for routers that trade a little quality for speed.

use super::ExpertBits;

/// What it costs to read a block: where it is now. Faster is smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CostClass {
    /// GPU memory.
    Hbm,
    /// Host memory.
    Dram,
    /// Local disk.
    Nvme,
    /// The object store.
    ObjectStore,
    /// Nowhere: the tier has no index, or no such block at this layer.
    Unavailable,
}

impl CostClass {
    /// The name that documents use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hbm => "hbm",
            Self::Dram => "dram",
            Self::Nvme => "nvme",
            Self::ObjectStore => "object_store",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What is resident at a level or a faster one, by layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidentMask {
    /// The slowest level that counts; [`CostClass::ObjectStore`] masks nothing
    /// but what is unavailable.
    pub level: CostClass,
    /// The layers, ascending.
    pub layers: Vec<LayerMask>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerMask {
    /// Its number.
    pub layer: u32,
    /// The active tiers, in the mask's order.
    pub tiers: Vec<LayerTier>,
}

/// One tier at one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerTier {
    /// Its groups.
    pub groups: Vec<LayerGroup>,
}

/// One group at one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerGroup {
    /// The experts that are at the level or a faster one.
    pub experts: ExpertBits,
    /// Each expert's cost class.
    pub costs: Vec<CostClass>,
}

impl LayerGroup {
    /// The group's experts within `level`.
    #[must_use]
    pub fn of(level: CostClass, costs: Vec<CostClass>) -> Self {
        let near = |cost: &CostClass| *cost <= level && *cost != CostClass::Unavailable;
        Self { experts: ExpertBits::of(costs.iter().map(near)), costs }
    }
}
