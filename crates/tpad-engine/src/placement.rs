//! Which tiers are at home where: the models' tiers against this machine's room,
//! and what each level is told of it.

mod place;
mod warm;
mod way;

use std::collections::BTreeMap;
use std::sync::Arc;

use tpad_manifest::{
    Placement, Room, TierFit, TierId, fit, token_cycle_bytes, token_cycle_warning,
};
use tpad_store::{CacheClass, Footprint, Hierarchy, Medium, NvmeLevel, home_bytes};

use crate::{DeviceMemory, Generation};

pub(crate) use self::place::Places;
pub(crate) use self::warm::keep_placing;

/// The class of routers in the levels.
const ROUTERS: &str = "router";

/// The levels, as homes.
#[derive(Clone, Debug)]
pub(crate) struct Levels {
    pub(crate) hierarchy: Arc<Hierarchy>,
    pub(crate) nvme: Option<Arc<NvmeLevel>>,
    pub(crate) devices: DeviceMemory,
    /// Whether the operator divided host memory among the tiers; placement does
    /// otherwise.
    pub(crate) divided: bool,
}

/// Where the tiers of all models are to lie.
#[derive(Debug)]
pub(crate) struct Plan {
    generations: Vec<Arc<Generation>>,
    tiers: Vec<PlannedTier>,
    /// The classes' parts of host memory; `None` where the operator gave them.
    budgets: Option<BTreeMap<String, u64>>,
    /// Their parts of each device's memory.
    device_budgets: BTreeMap<String, u64>,
    /// Classes at home on disk.
    homes: Vec<CacheClass>,
}

/// A tier and its home.
#[derive(Debug)]
struct PlannedTier {
    generation: Arc<Generation>,
    tier: TierId,
    fit: TierFit,
}

impl Plan {
    /// Places the tiers of these generations, models in order.
    pub(crate) fn of(generations: &[Arc<Generation>], levels: &Levels) -> Self {
        let kept = levels.hierarchy.dram().classes();
        let own = |class: &str| {
            let named = kept.iter().filter(|_| levels.divided);
            let mut named = named.filter(|usage| usage.class.as_deref() == Some(class));
            named.next().map(|usage| usage.budget)
        };
        let shared: u64 = if levels.divided {
            kept.iter().filter(|usage| usage.class.is_none()).map(|usage| usage.budget).sum()
        } else {
            kept.iter().map(|usage| usage.budget).sum()
        };
        let nvme = levels.nvme.as_ref().map(|level| tpad_store::Level::usage(&**level).capacity);
        let on_devices = levels.devices.room();
        let room = Room { hbm: on_devices.map(home_bytes), dram: home_bytes(shared), nvme };
        let (mut needs, mut of, mut routers) = (Vec::new(), Vec::new(), 0u64);
        for generation in generations {
            for tier in &generation.manifest().tiers {
                let id = tier.id.to_string();
                let Ok((tier, header)) = generation.catalog().tier(&id) else { continue };
                let footprint = Footprint::of(tier, header);
                if tier.placement != Placement::ObjectStore {
                    routers = routers.saturating_add(footprint.routers);
                }
                needs.push(footprint.need(tier, own(&id)));
                of.push((Arc::clone(generation), tier.id.clone()));
            }
        }
        let fits = fit(&needs, &room);
        let tiers = of.into_iter().zip(fits);
        let tiers: Vec<PlannedTier> =
            tiers.map(|((generation, tier), fit)| PlannedTier { generation, tier, fit }).collect();
        let budgets = (!levels.divided).then(|| {
            let mut budgets: BTreeMap<String, u64> = BTreeMap::new();
            for PlannedTier { fit, .. } in tiers.iter().filter(|tier| tier.fit.spread.dram > 0) {
                *budgets.entry(fit.tier.clone()).or_default() += fit.spread.dram;
            }
            if !budgets.is_empty() {
                // Half of what is left to all that is on demand.
                let routers = routers.min((shared - home_bytes(shared)) / 2);
                *budgets.entry(ROUTERS.to_owned()).or_default() += routers;
            }
            budgets
        });
        let on_disk = tiers.iter().filter(|tier| tier.fit.spread.nvme > 0);
        let mut homes: Vec<CacheClass> =
            on_disk.map(|tier| CacheClass::from(tier.fit.tier.as_str())).collect();
        if !homes.is_empty() {
            homes.push(ROUTERS.into());
        }
        let mut device_budgets: BTreeMap<String, u64> = BTreeMap::new();
        for PlannedTier { fit, .. } in tiers.iter().filter(|tier| tier.fit.spread.hbm > 0) {
            *device_budgets.entry(fit.tier.clone()).or_default() += fit.spread.hbm;
        }
        if let (Some(kept), false) = (on_devices, device_budgets.is_empty()) {
            // As in host memory.
            let routers = routers.min((kept - home_bytes(kept)) / 2);
            device_budgets.insert(ROUTERS.to_owned(), routers);
        }
        Self { generations: generations.to_vec(), tiers, budgets, device_budgets, homes }
    }

    /// Tells the levels and the generations, and the log what does not fit.
    pub(crate) fn apply(&self, levels: &Levels) {
        let dram = levels.hierarchy.dram();
        if let Some(budgets) = &self.budgets {
            let named = |usage: tpad_store::ClassUsage| Some((usage.class?, usage.budget));
            let now: BTreeMap<String, u64> = dram.classes().into_iter().filter_map(named).collect();
            if now != *budgets
                && let Err(error) = dram.set_budgets(budgets)
            {
                tracing::error!(%error, "host memory is not divided among the tiers");
            }
        }
        // New budgets have the caches begin anew.
        if let Some(level) = levels.devices.working()
            && levels.devices.budgets() != self.device_budgets
            && let Err(error) = level.set_budgets(&self.device_budgets)
        {
            tracing::error!(%error, "GPU memory is not divided among the tiers");
        }
        if let Some(nvme) = &levels.nvme {
            nvme.set_homes(self.homes.iter().cloned());
        }
        for PlannedTier { generation, fit, .. } in &self.tiers {
            generation.places().plan(fit);
        }
        let kept: u64 = dram.classes().iter().map(|usage| usage.budget).sum();
        for generation in &self.generations {
            let of_this = self.tiers.iter();
            let of_this = of_this.filter(|tier| Arc::ptr_eq(&tier.generation, generation));
            let mut warnings: Vec<String> = of_this.filter_map(|tier| tier.fit.warning()).collect();
            warnings.extend(token_cycle_warning(token_cycle_bytes(generation.catalog()), kept));
            for warning in generation.places().warn(warnings) {
                tracing::warn!(model = generation.model(), warning, "placement");
            }
        }
    }
}

/// The medium of a home.
pub(crate) const fn medium(home: Placement) -> Medium {
    match home {
        Placement::Hbm => Medium::Hbm,
        Placement::Dram => Medium::Dram,
        Placement::Nvme => Medium::Nvme,
        Placement::ObjectStore => Medium::ObjectStore,
    }
}
