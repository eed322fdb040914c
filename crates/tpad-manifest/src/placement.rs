//! Where tiers fit: the arithmetic of placements, for what plans them and what
//! carries them out.
//!
//! A tier's bytes fill its home first and what is slower after it. Tiers with a
//! faster home go first, and of one home those that the manifest has first.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Catalog, IndexHeader, LayerKind, Placement, TierRecord};

/// What the media of one machine can keep, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Room {
    /// GPU memory; `None` without any.
    pub hbm: Option<u64>,
    /// Host memory: what is kept, not the whole capacity.
    pub dram: u64,
    /// Disk; `None` without any.
    pub nvme: Option<u64>,
}

/// A tier that wants a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierNeed {
    /// Its id, as text.
    pub tier: String,
    /// Its home, as the manifest names it.
    pub placement: Placement,
    /// What its blocks take there.
    pub bytes: u64,
    /// Its own part of host memory, where an operator gave it one; what is the
    /// room's is then the others'. Tiers of one name have it together.
    pub dram: Option<u64>,
}

/// Where a tier comes to lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TierFit {
    /// Its id, as text.
    pub tier: String,
    /// Its home, as the manifest names it.
    pub placement: Placement,
    /// Its home on this machine.
    pub home: Placement,
    /// Why that is another one than the manifest names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home_reason: Option<&'static str>,
    /// What its blocks take.
    pub bytes: u64,
    /// Where how many of them are.
    pub spread: Spread,
    /// What its home had left when it came to this tier; `None` when the home is
    /// the object store, which has everything.
    #[serde(skip)]
    pub offered: Option<u64>,
}

/// Bytes by medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// In GPU memory.
    pub hbm: u64,
    /// In host memory.
    pub dram: u64,
    /// On disk.
    pub nvme: u64,
    /// Fetched when they are asked for.
    pub object_store: u64,
}

/// Where a tier's home is on a machine that has these media, and why if that is
/// not where the manifest puts it.
#[must_use]
pub const fn home(placement: Placement, room: &Room) -> (Placement, Option<&'static str>) {
    match placement {
        Placement::Hbm if room.hbm.is_none() => (Placement::Dram, Some("no GPU: served from dram")),
        Placement::Nvme if room.nvme.is_none() => {
            (Placement::ObjectStore, Some("no nvme level: fetched on demand"))
        }
        other => (other, None),
    }
}

/// Gives every tier its place, in the order of `needs`.
#[must_use]
pub fn fit(needs: &[TierNeed], room: &Room) -> Vec<TierFit> {
    let mut left = *room;
    let mut own: BTreeMap<&str, u64> = BTreeMap::new();
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|n| needs.get(*n).map(|need| speed(need.placement)));
    let mut fits: Vec<(usize, TierFit)> = order
        .into_iter()
        .filter_map(|n| {
            let need = needs.get(n)?;
            let own = need.dram.map(|part| own.entry(&need.tier).or_insert(part));
            Some((n, place(need, own, &mut left)))
        })
        .collect();
    fits.sort_by_key(|(n, _)| *n);
    fits.into_iter().map(|(_, fit)| fit).collect()
}

/// Faster homes first.
const fn speed(placement: Placement) -> u8 {
    match placement {
        Placement::Hbm => 0,
        Placement::Dram => 1,
        Placement::Nvme => 2,
        Placement::ObjectStore => 3,
    }
}

fn place(need: &TierNeed, own: Option<&mut u64>, left: &mut Room) -> TierFit {
    let (home, home_reason) = home(need.placement, left);
    let mut spread = Spread::default();
    let mut rest = need.bytes;
    let mut take = |room: &mut u64| {
        let taken = rest.min(*room);
        *room -= taken;
        rest -= taken;
        taken
    };
    let offered = match home {
        Placement::Hbm => left.hbm,
        Placement::Dram => Some(own.as_deref().copied().unwrap_or(left.dram)),
        Placement::Nvme => left.nvme,
        Placement::ObjectStore => None,
    };
    if home == Placement::Hbm {
        spread.hbm = left.hbm.as_mut().map_or(0, &mut take);
    }
    if matches!(home, Placement::Hbm | Placement::Dram) {
        spread.dram = take(own.unwrap_or(&mut left.dram));
    }
    if home != Placement::ObjectStore {
        spread.nvme = left.nvme.as_mut().map_or(0, &mut take);
    }
    spread.object_store = rest;
    TierFit {
        tier: need.tier.clone(),
        placement: need.placement,
        home,
        home_reason,
        bytes: need.bytes,
        spread,
        offered,
    }
}

impl TierFit {
    /// One line with the numbers when the tier does not fit its home.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let offered = self.offered.filter(|offered| *offered < self.bytes)?;
        let Self { tier, home, bytes, spread, .. } = self;
        let mut rest = Vec::new();
        let stays = [("dram", spread.dram), ("nvme", spread.nvme)];
        for (medium, bytes) in stays.into_iter().filter(|(medium, _)| *medium != home.as_str()) {
            if bytes > 0 {
                rest.push(format!("{} stays on {medium}", Show(bytes)));
            }
        }
        if spread.object_store > 0 {
            rest.push(format!("{} is fetched on demand", Show(spread.object_store)));
        }
        let (home, rest) = (home.as_str(), rest.join(", "));
        Some(format!(
            "tier {tier} is {}, {home} has {} for it: {rest}",
            Show(*bytes),
            Show(offered)
        ))
    }
}

impl Spread {
    /// What of `images` bytes this is when in all they take `padded`: to scale, and
    /// nothing lost.
    #[must_use]
    pub fn of_images(self, images: u64, padded: u64) -> Self {
        let scale = |bytes: u64| {
            let part = u128::from(bytes) * u128::from(images) / u128::from(padded.max(1));
            u64::try_from(part).unwrap_or(images)
        };
        let Self { hbm, dram, nvme, object_store } = self;
        let mut scaled =
            Self { hbm: scale(hbm), dram: scale(dram), nvme: scale(nvme), object_store: 0 };
        let rest = images.saturating_sub(scaled.brought());
        // Rounded off, it belongs to the slowest that has any.
        *match (object_store, nvme, dram) {
            (1.., ..) => &mut scaled.object_store,
            (0, 1.., _) => &mut scaled.nvme,
            (0, 0, 1..) => &mut scaled.dram,
            (0, 0, 0) => &mut scaled.hbm,
        } += rest;
        scaled
    }

    /// What is brought to a level when the model is loaded.
    #[must_use]
    pub const fn brought(&self) -> u64 {
        self.hbm.saturating_add(self.dram).saturating_add(self.nvme)
    }
}

/// What one token reads at most when it is routed within the default tiers: at
/// every MoE layer the k largest experts of each of the k tiers with the most.
///
/// From the headers alone: of a tier without templates the mean block stands for
/// the largest.
#[must_use]
pub fn token_cycle_bytes(catalog: &Catalog) -> u64 {
    let manifest = catalog.manifest();
    let served: Vec<(&TierRecord, &IndexHeader)> = manifest
        .default_tier_set
        .iter()
        .filter_map(|id| catalog.tier(&id.to_string()).ok())
        .map(|(tier, header)| (tier, &**header))
        .collect();
    let k_tier = served.iter().map(|(tier, _)| tier.routing.k_tier).max().unwrap_or(0);
    let layers = manifest.layers.iter().filter(|layer| layer.kind == LayerKind::Moe);
    let cycle = layers.map(|layer| {
        let tiers = served.iter().filter_map(|(tier, header)| {
            let bytes = largest_expert(header, layer.layer)?;
            Some(bytes.saturating_mul(u64::from(tier.routing.k_expert)))
        });
        let mut tiers: Vec<u64> = tiers.collect();
        tiers.sort_unstable_by(|a, b| b.cmp(a));
        let most = usize::try_from(k_tier).unwrap_or(usize::MAX);
        tiers.into_iter().take(most).fold(0, u64::saturating_add)
    });
    cycle.fold(0, u64::saturating_add)
}

/// One line with both numbers when host memory keeps less than a token reads.
#[must_use]
pub fn token_cycle_warning(cycle: u64, dram: u64) -> Option<String> {
    (dram < cycle).then(|| {
        format!(
            "dram keeps {}, less than the {} that one token of the default tiers reads: every token reads slower levels; raise levels.dram.capacity",
            Show(dram),
            Show(cycle)
        )
    })
}

fn largest_expert(header: &IndexHeader, layer: u32) -> Option<u64> {
    let segment = header.segment(layer).filter(|segment| segment.blocks > 0)?;
    let templates = header.templates.iter().filter_map(|template| template.image_bytes().ok());
    templates.max().or_else(|| segment.image_bytes.checked_div(segment.blocks))
}

/// Bytes for people, in a binary unit with one decimal.
struct Show(u64);

impl std::fmt::Display for Show {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let Some((unit, shift)) = UNITS.iter().find(|(_, shift)| self.0 >> shift > 0) else {
            return write!(f, "{} B", self.0);
        };
        // Rounded down, so that nothing looks larger than it is.
        let tenths = (u128::from(self.0) * 10) >> shift;
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests;
