//! Routing masks, to the wire and back.

use tpad_manifest::{
    CostClass, ExpertBits, LayerGroup, LayerMask, LayerSources, LayerTier, MaskReason, MaskedTier,
    ResidentMask, RoutingMask, SetOrigin, Source, TierMask, TierSet,
};

use crate::{WireError, v1};

/// A mask as a message, with its etag.
#[must_use]
pub fn routing_mask(mask: &RoutingMask, generation: u64) -> v1::RoutingMask {
    let (origin, name) = origin(&mask.origin);
    v1::RoutingMask {
        revision: mask.revision,
        generation,
        etag: mask.etag(),
        unchanged: false,
        origin: origin.into(),
        origin_name: name.to_owned(),
        tiers: mask.tiers.iter().map(tier).collect(),
        k_tier: mask.k_tier,
        masked: mask.masked.iter().map(masked).collect(),
        resident: mask.resident.as_ref().map(resident),
    }
}

/// The message for a caller that has the mask already: it names it and leaves
/// its content out.
#[must_use]
pub fn unchanged_mask(revision: u64, generation: u64, etag: String) -> v1::RoutingMask {
    v1::RoutingMask { revision, generation, etag, unchanged: true, ..Default::default() }
}

/// A TierSet as a message; the default is none.
#[must_use]
pub fn tier_set(set: &TierSet) -> Option<v1::TierSet> {
    use v1::tier_set::Set;
    let set = match set {
        TierSet::Default => return None,
        TierSet::Tiers(tiers) => Set::Tiers(v1::TierList { tiers: tiers.clone() }),
        TierSet::Named(name) => Set::Named(name.clone()),
        TierSet::UpTo(last) => Set::UpTo(last.clone()),
    };
    Some(v1::TierSet { set: Some(set) })
}

impl TryFrom<v1::TierSet> for TierSet {
    type Error = WireError;

    /// A set of a kind that this version does not know reads as none at all,
    /// which must not be taken for the default.
    fn try_from(set: v1::TierSet) -> Result<Self, WireError> {
        use v1::tier_set::Set;
        Ok(match set.set.ok_or(WireError::Missing("one of tiers, named and up_to"))? {
            Set::Tiers(list) => Self::Tiers(list.tiers),
            Set::Named(name) => Self::Named(name),
            Set::UpTo(last) => Self::UpTo(last),
        })
    }
}

impl TryFrom<v1::RoutingMask> for RoutingMask {
    type Error = WireError;

    /// Checks that every list has the length that its bitset announces, so that
    /// they may be walked together.
    fn try_from(mask: v1::RoutingMask) -> Result<Self, WireError> {
        let origin = read_origin(mask.origin, mask.origin_name)?;
        let tiers: Vec<TierMask> =
            mask.tiers.into_iter().map(read_tier).collect::<Result<_, _>>()?;
        let resident = mask.resident.map(|resident| read_resident(resident, &tiers)).transpose()?;
        Ok(Self {
            revision: mask.revision,
            origin,
            tiers,
            k_tier: mask.k_tier,
            masked: mask.masked.into_iter().map(read_masked).collect::<Result<_, _>>()?,
            resident,
        })
    }
}

fn origin(origin: &SetOrigin) -> (v1::TierSetOrigin, &str) {
    match origin {
        SetOrigin::Default => (v1::TierSetOrigin::Default, ""),
        SetOrigin::Tiers => (v1::TierSetOrigin::Tiers, ""),
        SetOrigin::UpTo(last) => (v1::TierSetOrigin::UpTo, last),
        SetOrigin::Configuration(name) => (v1::TierSetOrigin::Configuration, name),
        SetOrigin::Manifest(name) => (v1::TierSetOrigin::Manifest, name),
    }
}

fn read_origin(origin: i32, name: String) -> Result<SetOrigin, WireError> {
    Ok(match known(origin, "origin")? {
        v1::TierSetOrigin::Default => SetOrigin::Default,
        v1::TierSetOrigin::Tiers => SetOrigin::Tiers,
        v1::TierSetOrigin::UpTo => SetOrigin::UpTo(name),
        v1::TierSetOrigin::Configuration => SetOrigin::Configuration(name),
        v1::TierSetOrigin::Manifest => SetOrigin::Manifest(name),
        v1::TierSetOrigin::Unspecified => return Err(WireError::Missing("origin")),
    })
}

fn tier(tier: &TierMask) -> v1::TierMask {
    v1::TierMask {
        tier: tier.tier.clone(),
        k_group: tier.k_group,
        k_expert: tier.k_expert,
        groups: tier.groups.iter().map(bits).collect(),
        indexed: tier.indexed,
        sources: tier.sources.iter().map(sources).collect(),
    }
}

fn read_tier(tier: v1::TierMask) -> Result<TierMask, WireError> {
    let groups: Vec<ExpertBits> =
        tier.groups.into_iter().map(read_bits).collect::<Result<_, _>>()?;
    let sources = tier.sources.into_iter().map(|sources| read_sources(sources, &groups));
    Ok(TierMask {
        tier: tier.tier,
        k_group: tier.k_group,
        k_expert: tier.k_expert,
        indexed: tier.indexed,
        sources: sources.collect::<Result<_, _>>()?,
        groups,
    })
}

fn bits(bits: &ExpertBits) -> v1::ExpertBits {
    v1::ExpertBits { experts: bits.experts(), bits: bits.as_bytes().clone() }
}

fn read_bits(bits: v1::ExpertBits) -> Result<ExpertBits, WireError> {
    let v1::ExpertBits { experts, bits } = bits;
    let found = bits.len();
    ExpertBits::from_bytes(experts, bits).ok_or(WireError::Bits { experts, bytes: found })
}

fn sources(sources: &LayerSources) -> v1::LayerSources {
    let group = |group: &Vec<Source>| v1::GroupSources {
        source_experts: group.iter().map(|source| source.expert).collect(),
        router_columns: group.iter().map(|source| source.column).collect(),
    };
    v1::LayerSources {
        layers: sources.layers.clone(),
        groups: sources.groups.iter().map(group).collect(),
    }
}

fn read_sources(
    sources: v1::LayerSources,
    groups: &[ExpertBits],
) -> Result<LayerSources, WireError> {
    same_length("sources.groups", sources.groups.len(), groups.len())?;
    let mut read = Vec::with_capacity(groups.len());
    for (group, bits) in sources.groups.into_iter().zip(groups) {
        let experts = count(bits);
        same_length("source_experts", group.source_experts.len(), experts)?;
        same_length("router_columns", group.router_columns.len(), experts)?;
        let pairs = group.source_experts.into_iter().zip(group.router_columns);
        read.push(pairs.map(|(expert, column)| Source { expert, column }).collect());
    }
    Ok(LayerSources { layers: sources.layers, groups: read })
}

fn masked(masked: &MaskedTier) -> v1::MaskedTier {
    let reason = match masked.reason {
        MaskReason::NotInTierSet => v1::MaskReason::NotInTierSet,
        MaskReason::UnknownTier => v1::MaskReason::UnknownTier,
        MaskReason::SkippedTier => v1::MaskReason::SkippedTier,
        MaskReason::UnavailableBlock => v1::MaskReason::UnavailableBlock,
    };
    v1::MaskedTier {
        tier: masked.tier.clone(),
        reason: reason.into(),
        detail: masked.detail.clone(),
    }
}

fn read_masked(masked: v1::MaskedTier) -> Result<MaskedTier, WireError> {
    let reason = match known(masked.reason, "reason")? {
        v1::MaskReason::NotInTierSet => MaskReason::NotInTierSet,
        v1::MaskReason::UnknownTier => MaskReason::UnknownTier,
        v1::MaskReason::SkippedTier => MaskReason::SkippedTier,
        v1::MaskReason::UnavailableBlock => MaskReason::UnavailableBlock,
        v1::MaskReason::Unspecified => return Err(WireError::Missing("reason")),
    };
    Ok(MaskedTier { tier: masked.tier, reason, detail: masked.detail })
}

fn resident(resident: &ResidentMask) -> v1::ResidentMask {
    let group = |group: &LayerGroup| v1::LayerGroup {
        experts: Some(bits(&group.experts)),
        costs: group.costs.iter().map(|cost| v1::CostClass::from(*cost).into()).collect(),
    };
    let tier = |tier: &LayerTier| v1::LayerTier { groups: tier.groups.iter().map(group).collect() };
    let layer = |layer: &LayerMask| v1::LayerMask {
        layer: layer.layer,
        tiers: layer.tiers.iter().map(tier).collect(),
    };
    v1::ResidentMask {
        level: v1::CostClass::from(resident.level).into(),
        layers: resident.layers.iter().map(layer).collect(),
    }
}

fn read_resident(
    resident: v1::ResidentMask,
    tiers: &[TierMask],
) -> Result<ResidentMask, WireError> {
    let level = known::<v1::CostClass>(resident.level, "level")?.try_into()?;
    let mut layers = Vec::with_capacity(resident.layers.len());
    for layer in resident.layers {
        same_length("layers.tiers", layer.tiers.len(), tiers.len())?;
        let read = layer.tiers.into_iter().zip(tiers).map(|(found, tier)| {
            same_length("layers.tiers.groups", found.groups.len(), tier.groups.len())?;
            let groups = found.groups.into_iter().zip(&tier.groups);
            let groups = groups.map(|(group, bits)| read_layer_group(group, bits));
            Ok::<_, WireError>(LayerTier { groups: groups.collect::<Result<_, _>>()? })
        });
        layers.push(LayerMask { layer: layer.layer, tiers: read.collect::<Result<_, _>>()? });
    }
    Ok(ResidentMask { level, layers })
}

fn read_layer_group(group: v1::LayerGroup, bits: &ExpertBits) -> Result<LayerGroup, WireError> {
    let experts = read_bits(group.experts.ok_or(WireError::Missing("experts"))?)?;
    same_length("layers.tiers.groups.experts", count(&experts), count(bits))?;
    same_length("costs", group.costs.len(), count(bits))?;
    let costs =
        group.costs.into_iter().map(|cost| known::<v1::CostClass>(cost, "costs")?.try_into());
    Ok(LayerGroup { experts, costs: costs.collect::<Result<_, _>>()? })
}

impl From<CostClass> for v1::CostClass {
    fn from(cost: CostClass) -> Self {
        match cost {
            CostClass::Hbm => Self::Hbm,
            CostClass::Dram => Self::Dram,
            CostClass::Nvme => Self::Nvme,
            CostClass::ObjectStore => Self::ObjectStore,
            CostClass::Unavailable => Self::Unavailable,
        }
    }
}

impl TryFrom<v1::CostClass> for CostClass {
    type Error = WireError;

    fn try_from(cost: v1::CostClass) -> Result<Self, WireError> {
        Ok(match cost {
            v1::CostClass::Hbm => Self::Hbm,
            v1::CostClass::Dram => Self::Dram,
            v1::CostClass::Nvme => Self::Nvme,
            v1::CostClass::ObjectStore => Self::ObjectStore,
            v1::CostClass::Unavailable => Self::Unavailable,
            v1::CostClass::Unspecified => return Err(WireError::Missing("cost class")),
        })
    }
}

fn count(bits: &ExpertBits) -> usize {
    usize::try_from(bits.experts()).unwrap_or(usize::MAX)
}

fn same_length(field: &'static str, found: usize, expected: usize) -> Result<(), WireError> {
    if found == expected { Ok(()) } else { Err(WireError::Length { field, found, expected }) }
}

fn known<E: TryFrom<i32>>(value: i32, field: &'static str) -> Result<E, WireError> {
    E::try_from(value).map_err(|_| WireError::UnknownValue { field, value })
}

#[cfg(test)]
mod tests;
