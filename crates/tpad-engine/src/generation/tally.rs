//! Where a generation's reads found its blocks, counted by class.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use tpad_manifest::Catalog;
use tpad_store::{Lookups, Medium};

use crate::TierReads;

/// Counts by class and medium. The classes are the manifest's, so there are only
/// so many.
#[derive(Debug)]
pub(super) struct Tally {
    classes: HashMap<String, [AtomicU64; 4]>,
}

impl Tally {
    pub(super) fn of(catalog: &Catalog) -> Self {
        let tiers = catalog.manifest().tiers.iter();
        Self { classes: tiers.map(|tier| (tier.id.to_string(), Default::default())).collect() }
    }

    /// Counts a read that ended well.
    pub(super) fn count(&self, class: &str, medium: Medium) {
        if let Some(counts) = self.classes.get(class) {
            counts[place(medium)].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn reads(&self, class: &str) -> TierReads {
        let Some(counts) = self.classes.get(class) else { return TierReads::default() };
        let of = |medium| counts[place(medium)].load(Ordering::Relaxed);
        let (hbm, dram, nvme) = (of(Medium::Hbm), of(Medium::Dram), of(Medium::Nvme));
        let object_store = of(Medium::ObjectStore);
        let lookups = Lookups::of(hbm.saturating_add(dram).saturating_add(nvme), object_store);
        TierReads { hbm, dram, nvme, object_store, lookups }
    }
}

const fn place(medium: Medium) -> usize {
    match medium {
        Medium::Hbm => 0,
        Medium::Dram => 1,
        Medium::Nvme => 2,
        Medium::ObjectStore => 3,
    }
}
