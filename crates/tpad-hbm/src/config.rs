//! What a level is made of.

use std::collections::BTreeMap;

use tpad_cuda::DeviceName;

/// The devices of a level, and how their memory is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HbmConfig {
    /// Which devices, and how much of each.
    pub devices: Vec<DeviceBudget>,
    /// What of each device's capacity each class may keep; all others share the rest.
    /// Budgets that fit in the smallest device's capacity, but not in what of it may be
    /// kept, are lowered alike.
    pub class_budgets: BTreeMap<String, u64>,
    /// Streams that copy to each device at once: [`HbmConfig::STREAMS`] where nobody
    /// says another.
    pub streams: usize,
}

/// A device's part in a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceBudget {
    /// Which one.
    pub device: DeviceName,
    /// What the level takes of its memory at most, in bytes.
    pub capacity_bytes: u64,
}

impl HbmConfig {
    /// While one stream's copy ends and the next begins, another's uses the bus.
    pub const STREAMS: usize = 2;
}
