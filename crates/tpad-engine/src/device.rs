//! GPU memory beside the levels of the hierarchy: blocks are copied there for workers
//! that acquire them on a device, and for tiers that are at home there. No request for
//! bytes is answered from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tpad_cuda::DeviceName;
use tpad_hbm::{DeviceId, HbmLevel, HbmStatus};
use tpad_manifest::BlockId;
use tpad_store::{CacheClass, ClassUsage, Health};

use crate::Generation;

/// GPU memory, or why there is none.
#[derive(Clone, Debug)]
pub enum DeviceMemory {
    /// There is none, for this reason.
    Off(String),
    /// The level.
    On(Arc<HbmLevel>),
}

impl Default for DeviceMemory {
    fn default() -> Self {
        Self::Off("levels.hbm has no capacity".to_owned())
    }
}

impl DeviceMemory {
    /// The level, if there is one, broken or not.
    #[must_use]
    pub fn level(&self) -> Option<&Arc<HbmLevel>> {
        match self {
            Self::Off(_) => None,
            Self::On(level) => Some(level),
        }
    }

    /// What an operator sees.
    #[must_use]
    pub fn status(&self) -> HbmStatus {
        match self {
            Self::Off(reason) => HbmStatus::off(reason),
            Self::On(level) => level.status(),
        }
    }

    /// The device of this name.
    pub(crate) fn device(&self, name: &str) -> Option<(&Arc<HbmLevel>, DeviceId)> {
        let level = self.level()?;
        let name: DeviceName = name.parse().ok()?;
        Some((level, level.device(&name)?))
    }

    /// Whether a device has the block.
    pub(crate) fn has(&self, id: &BlockId) -> bool {
        self.level().is_some_and(|level| !level.holders(id).is_empty())
    }

    /// What a generation's blocks were used does not count any more: it is served no more,
    /// and others wait for the room of what only it has.
    pub(crate) fn forget_uses(&self, of: &Generation) {
        if let Some(level) = self.level() {
            let tiers =
                of.manifest().tiers.iter().map(|tier| CacheClass::from(tier.id.to_string()));
            level.forget_uses(&tiers.collect::<Vec<_>>());
        }
    }

    /// The level, if it works.
    pub(crate) fn working(&self) -> Option<&Arc<HbmLevel>> {
        self.level().filter(|level| level.health() == Health::Ok)
    }

    /// What each device keeps: that of the one with the least. `None` when the level is off
    /// or broken.
    pub(crate) fn room(&self) -> Option<u64> {
        let level = self.working()?;
        ids(level).map(|device| level.usage(device).capacity).min()
    }

    /// What classes have for themselves on the first device: on each the same.
    pub(crate) fn budgets(&self) -> BTreeMap<String, u64> {
        let status = self.level().map(|level| level.status());
        let classes = status.and_then(|status| Some(status.devices.into_iter().next()?.classes));
        let named = |usage: ClassUsage| Some((usage.class?, usage.budget));
        classes.into_iter().flatten().filter_map(named).collect()
    }

    /// What blocks of a class take on the device that has the least of them.
    pub(crate) fn kept_of(&self, class: &CacheClass) -> u64 {
        let of = |level: &Arc<HbmLevel>| {
            ids(level).map(|device| level.kept_of(class, device).bytes).min()
        };
        self.level().and_then(of).unwrap_or(0)
    }
}

/// The devices of a level.
pub(crate) fn ids(level: &HbmLevel) -> impl Iterator<Item = DeviceId> {
    level.devices().map(|facts| DeviceId(facts.index))
}
