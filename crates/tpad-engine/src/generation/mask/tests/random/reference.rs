//! What a mask must be, by the design's words and naive loops.

use serde_json::{Value, json};
use tpad_manifest::{BlockId, BlockKey, ExpertKey, TierSet};

use super::sorted;
use super::world::{Asked, World};
use crate::fixture::Tier;

/// Where a block can be, the fastest first, and where it is when it is nowhere.
const WORDS: [&str; 5] = ["hbm", "dram", "nvme", "object_store", "unavailable"];
const NOWHERE: usize = 4;

impl World {
    /// Where a block is, as a place in [`WORDS`].
    fn place(&self, tier: &Tier, layer: u32, group: u32, expert: u32) -> usize {
        let key = ExpertKey { tier: tier.id.clone(), group, expert };
        let Some(image) = self.checkpoint.blocks.get(&BlockKey::Expert { key, layer }) else {
            return NOWHERE;
        };
        let id = BlockId::of(image);
        match (tier.index, self.dram.contains(&id), self.nvme.contains(&id)) {
            (false, ..) => NOWHERE,
            (_, true, _) => 1,
            (_, _, true) => 2,
            _ => 3,
        }
    }

    /// Where the set was found, and the tiers that it names.
    fn named(&self, set: &TierSet) -> Option<(String, Vec<String>)> {
        let found = match set {
            TierSet::Default => ("default".into(), listed(&self.document["default_tier_set"])),
            TierSet::Tiers(tiers) => ("tiers".into(), tiers.clone()),
            TierSet::Named(name) => match self.configured.get(name) {
                Some(set) => (format!("configuration {name}"), set.clone()),
                None if self.document["tier_sets"][name].is_null() => return None,
                None => (format!("manifest {name}"), listed(&self.document["tier_sets"][name])),
            },
            TierSet::UpTo(last) => {
                let mut tiers = Vec::new();
                for tier in &self.shape.tiers {
                    tiers.push(tier.id.to_string());
                    if tiers.last() == Some(last) {
                        return Some((format!("up to {last}"), tiers));
                    }
                }
                (format!("up to {last}"), vec![last.clone()])
            }
        };
        Some(found)
    }

    /// The answer, or the reason for which there is none.
    pub(super) fn reference(&self, asked: &Asked) -> Result<Value, &'static str> {
        let (origin, wanted) = self.named(&asked.set).ok_or("TIER_SET_NOT_FOUND")?;
        let mut active = Vec::new();
        let mut masked = Vec::new();
        for (n, tier) in self.shape.tiers.iter().enumerate() {
            let id = tier.id.to_string();
            if !wanted.contains(&id) {
                masked.push(json!([id, "not_in_tier_set", ""]));
            } else if !tier.requires.is_empty() {
                masked.push(json!([id, "skipped_tier", "warp"]));
            } else {
                active.push((tier, &self.document["tiers"][n]["routing"]));
            }
        }
        for (n, id) in wanted.iter().enumerate() {
            let known = self.shape.tiers.iter().any(|tier| tier.id.to_string() == *id);
            if !known && !wanted[..n].contains(id) {
                masked.push(json!([id, "unknown_tier", ""]));
            }
        }
        if active.is_empty() {
            return Err("MASK_EMPTY");
        }
        let all = self.layers();
        let layers = match &asked.layers[..] {
            [] => all.clone(),
            some => some.iter().copied().collect(),
        };
        if !layers.is_subset(&all) {
            return Err("LAYER_NOT_FOUND");
        }
        let mut tiers = Vec::new();
        let mut resident = Vec::new();
        let mut any = false;
        for (tier, routing) in &active {
            let sources = if asked.sources && tier.index { sources(tier) } else { json!([]) };
            tiers.push(json!([
                tier.id.to_string(),
                routing["k_group"],
                routing["k_expert"],
                tier.groups,
                tier.index,
                sources,
            ]));
            let (mut missing, mut blocks) = (0, 0);
            for layer in &layers {
                for (group, experts) in (0..).zip(&tier.groups) {
                    for expert in 0..*experts {
                        let place = self.place(tier, *layer, group, expert);
                        let near = place != NOWHERE && place <= asked.level;
                        blocks += 1;
                        missing += u32::from(place == NOWHERE);
                        any |= near;
                        let at = format!("{layer} {} {group} {expert}", tier.id);
                        resident.push(json!([at, WORDS[place], near]));
                    }
                }
            }
            if missing > 0 {
                let detail = format!("{missing} of {blocks} blocks");
                masked.push(json!([tier.id.to_string(), "unavailable_block", detail]));
            }
        }
        if !any {
            return Err("MASK_EMPTY");
        }
        let most = active.iter().map(|(_, routing)| routing["k_tier"].as_u64().expect("a number"));
        Ok(json!({
            "revision": 1,
            "origin": origin,
            "tiers": tiers,
            "k_tier": most.max().expect("one at least").min(active.len() as u64),
            "masked": masked,
            "level": WORDS[asked.level],
            "layers": layers,
            "resident": sorted(resident),
        }))
    }
}

fn listed(value: &Value) -> Vec<String> {
    let list = value.as_array().expect("a list").iter();
    list.map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned)).collect()
}

/// The fixture numbers a tier's experts from 0 at every layer, and its columns
/// from 100; so all layers agree.
fn sources(tier: &Tier) -> Value {
    let mut number = 0;
    let groups = tier.groups.iter().map(|experts| {
        let first = number;
        number += experts;
        (first..number).map(|expert| (expert, expert + 100)).collect::<Vec<_>>()
    });
    json!([[tier.layers, groups.collect::<Vec<_>>()]])
}
