//! What `tpactl mask --json` prints. Scripts rely on its form: docs/tpactl.md.

use serde::Serialize;
use tpad_manifest::{ExpertBits, LayerGroup, LayerMask, ResidentMask, RoutingMask, TierMask};

/// A mask.
#[derive(Serialize)]
pub(super) struct Report<'m> {
    tiers: Vec<Tier<'m>>,
    k_tier: u32,
    masked: Vec<Masked<'m>>,
    revision: u64,
    /// Only when it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    resident: Option<Resident<'m>>,
}

#[derive(Serialize)]
struct Tier<'m> {
    id: &'m str,
    k_group: u32,
    k_expert: u32,
    groups: Vec<Group>,
}

#[derive(Serialize)]
struct Group {
    id: usize,
    experts: Vec<bool>,
}

#[derive(Serialize)]
struct Masked<'m> {
    tier: &'m str,
    reason: &'static str,
}

#[derive(Serialize)]
struct Resident<'m> {
    level: &'static str,
    layers: Vec<Layer<'m>>,
}

#[derive(Serialize)]
struct Layer<'m> {
    layer: u32,
    tiers: Vec<LayerTier<'m>>,
}

#[derive(Serialize)]
struct LayerTier<'m> {
    id: &'m str,
    groups: Vec<PlacedGroup>,
}

#[derive(Serialize)]
struct PlacedGroup {
    #[serde(flatten)]
    group: Group,
    costs: Vec<&'static str>,
}

impl<'m> Report<'m> {
    pub(super) fn of(mask: &'m RoutingMask) -> Self {
        Self {
            tiers: mask.tiers.iter().map(Tier::of).collect(),
            k_tier: mask.k_tier,
            masked: mask
                .masked
                .iter()
                .map(|masked| Masked { tier: &masked.tier, reason: masked.reason.as_str() })
                .collect(),
            revision: mask.revision,
            resident: mask.resident.as_ref().map(|resident| Resident::of(resident, &mask.tiers)),
        }
    }
}

impl<'m> Tier<'m> {
    fn of(tier: &'m TierMask) -> Self {
        let groups = tier.groups.iter().enumerate();
        Self {
            id: &tier.tier,
            k_group: tier.k_group,
            k_expert: tier.k_expert,
            groups: groups.map(|(id, bits)| Group::of(id, bits)).collect(),
        }
    }
}

impl Group {
    fn of(id: usize, bits: &ExpertBits) -> Self {
        Self { id, experts: bits.iter().collect() }
    }
}

impl<'m> Resident<'m> {
    fn of(resident: &ResidentMask, tiers: &'m [TierMask]) -> Self {
        Self {
            level: resident.level.as_str(),
            layers: resident.layers.iter().map(|layer| Layer::of(layer, tiers)).collect(),
        }
    }
}

impl<'m> Layer<'m> {
    fn of(layer: &LayerMask, tiers: &'m [TierMask]) -> Self {
        let placed = |(id, group): (usize, &LayerGroup)| PlacedGroup {
            group: Group::of(id, &group.experts),
            costs: group.costs.iter().map(|cost| cost.as_str()).collect(),
        };
        let tiers = layer.tiers.iter().zip(tiers).map(|(found, tier)| LayerTier {
            id: &tier.tier,
            groups: found.groups.iter().enumerate().map(placed).collect(),
        });
        Self { layer: layer.layer, tiers: tiers.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_form_that_scripts_rely_on() {
        let mut mask = crate::mask::example();
        let shown = serde_json::to_string(&Report::of(&mask)).expect("JSON");
        let (shown, resident) = shown.split_once(",\"resident\":").expect("it was asked for");
        let expected = concat!(
            r#"{"tiers":[{"id":"a","k_group":1,"k_expert":2,"groups":[{"id":0,"experts":[true,true]}]},"#,
            r#"{"id":"7","k_group":1,"k_expert":2,"groups":[{"id":0,"experts":[true]},"#,
            r#"{"id":1,"experts":[true,true,true]}]}],"k_tier":2,"#,
            r#""masked":[{"tier":"b","reason":"not_in_tier_set"},{"tier":"c","reason":"unknown_tier"}],"#,
            r#""revision":4"#,
        );
        assert_eq!(shown, expected);
        let expected = concat!(
            r#"{"level":"dram","layers":[{"layer":5,"tiers":[{"id":"a","groups":["#,
            r#"{"id":0,"experts":[true,false],"costs":["dram","object_store"]}]},"#,
            r#"{"id":"7","groups":[{"id":0,"experts":[true],"costs":["hbm"]},"#,
            r#"{"id":1,"experts":[false,true,false],"costs":["nvme","dram","unavailable"]}]}]}]}}"#,
        );
        assert_eq!(resident, expected);
        mask.resident = None;
        let shown = serde_json::to_value(Report::of(&mask)).expect("JSON");
        let keys: Vec<_> = shown.as_object().expect("an object").keys().cloned().collect();
        assert_eq!(keys.len(), 4, "{keys:?}");
    }
}
