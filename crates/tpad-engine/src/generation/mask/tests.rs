use std::collections::{BTreeMap, BTreeSet};

use tpad_manifest::{BlockKey, ExpertKey, MaskReason, TierSet};
use tpad_store::ReadOptions;

use super::super::tests::{open, soon};
use super::*;
use crate::fixture::{Shape, Tier, shard_of};
use crate::{Bounds, Engine, ModelState};

/// Checkpoints, and requests of each: a thousand together.
const CHECKPOINTS: u64 = 40;
const REQUESTS: u64 = 25;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides).expect("small")
    }

    fn shape(&mut self) -> Shape {
        let tiers = (0..=self.roll(4)).map(|n| {
            let groups: Vec<u32> = (0..=self.roll(3))
                .map(|_| u32::try_from(self.roll(5)).expect("small") + 1)
                .collect();
            let layers: Vec<u32> = (0..6).filter(|_| self.roll(2) == 0).collect();
            let id = if self.roll(3) == 0 { n.to_string() } else { format!("tier_{n}") };
            let mut tier = Tier::new(&id, &groups, &layers);
            tier.index = !layers.is_empty() && self.roll(6) > 0;
            if self.roll(6) == 0 {
                tier.requires.push("warp".into());
            }
            tier
        });
        Shape::of(tiers.collect())
    }
}

/// What is at a place, by naive rules: `None` is unavailable, else whether it
/// was read.
fn at(shape: &Shape, read: &BTreeSet<BlockKey>, tier: &Tier, at: (u32, u32, u32)) -> Option<bool> {
    let (layer, group, expert) = at;
    assert!(shape.tiers.iter().any(|known| known.id == tier.id));
    if !tier.index || !tier.layers.contains(&layer) {
        return None;
    }
    let key = ExpertKey { tier: tier.id.clone(), group, expert };
    Some(read.contains(&BlockKey::Expert { key, layer }))
}

#[tokio::test]
async fn resident_masks_equal_what_was_read_over_a_thousand_requests() {
    let (mut answers, mut empty) = (0, 0);
    for seed in 0..CHECKPOINTS {
        let mut dice = Dice(seed);
        let shape = dice.shape();
        let (checkpoint, engine, generation) = open(&shape, Bounds::default()).await;
        let keys: Vec<BlockKey> = checkpoint
            .blocks
            .keys()
            .filter(|key| match key {
                BlockKey::Expert { key, .. } => {
                    let mut tiers = shape.tiers.iter();
                    let tier = tiers.find(|tier| tier.id == key.tier).expect("of the shape");
                    tier.index && tier.requires.is_empty()
                }
                _ => false,
            })
            .cloned()
            .collect();
        let mut read = BTreeSet::new();
        for _ in 0..REQUESTS {
            if let (false, true) = (keys.is_empty(), dice.roll(2) == 0) {
                let key = keys[dice.roll(keys.len() as u64)].clone();
                generation.read(key.clone(), ReadOptions::demand(soon())).await.expect("it reads");
                read.insert(key);
            }
            let names: Vec<String> = shape.tiers.iter().map(|tier| tier.id.to_string()).collect();
            let set = match dice.roll(3) {
                0 => TierSet::Default,
                1 => TierSet::UpTo(names[dice.roll(names.len() as u64)].clone()),
                _ => TierSet::Tiers(names.into_iter().filter(|_| dice.roll(2) == 0).collect()),
            };
            let level = [CostClass::Hbm, CostClass::Dram, CostClass::Nvme, CostClass::ObjectStore]
                [dice.roll(4)];
            let all: BTreeSet<u32> =
                shape.tiers.iter().flat_map(|tier| tier.layers.iter().copied()).collect();
            let layers: Vec<u32> =
                all.iter().copied().filter(|_| dice.roll(3) == 0).rev().collect();
            let residency = Residency { level, layers: layers.clone() };
            let request =
                MaskRequest { set, sources: dice.roll(2) == 0, resident: Some(residency) };
            let mask = engine.mask("m", &request, soon()).await;
            let layers: BTreeSet<u32> =
                if layers.is_empty() { all } else { layers.into_iter().collect() };
            let Ok(found) = mask else {
                let error = mask.expect_err("refused");
                assert_eq!(error.reason(), "MASK_EMPTY", "seed {seed}: {error}");
                let plain = MaskRequest { resident: None, sources: false, ..request.clone() };
                if let Ok(plain) = engine.mask("m", &plain, soon()).await {
                    // Then truly nothing is near enough.
                    let tiers = plain.mask.tiers.iter().map(|mask| {
                        let mut tiers = shape.tiers.iter();
                        tiers.find(|tier| tier.id.is(&mask.tier)).expect("of the shape")
                    });
                    for tier in tiers {
                        for layer in &layers {
                            for (group, experts) in (0..).zip(&tier.groups) {
                                for expert in 0..*experts {
                                    let place = (*layer, group, expert);
                                    let near = match at(&shape, &read, tier, place) {
                                        None => false,
                                        Some(true) => level >= CostClass::Dram,
                                        Some(false) => level == CostClass::ObjectStore,
                                    };
                                    assert!(!near, "seed {seed}");
                                }
                            }
                        }
                    }
                }
                empty += 1;
                continue;
            };
            answers += 1;
            let mask = found.mask;
            let resident = mask.resident.as_ref().expect("it was asked for");
            let found_layers: Vec<u32> = resident.layers.iter().map(|layer| layer.layer).collect();
            assert_eq!(found_layers, layers.iter().copied().collect::<Vec<_>>());
            let mut missing: BTreeMap<&str, u32> = BTreeMap::new();
            for layer in &resident.layers {
                assert_eq!(layer.tiers.len(), mask.tiers.len());
                for (found, tier_mask) in layer.tiers.iter().zip(&mask.tiers) {
                    let mut tiers = shape.tiers.iter();
                    let tier = tiers.find(|tier| tier.id.is(&tier_mask.tier)).expect("known");
                    assert_eq!(tier_mask.indexed, tier.index);
                    for ((group, experts), found) in (0..).zip(&tier.groups).zip(&found.groups) {
                        assert_eq!(found.experts.experts(), *experts);
                        for expert in 0..*experts {
                            let place = (layer.layer, group, expert);
                            let (cost, near) = match at(&shape, &read, tier, place) {
                                None => (CostClass::Unavailable, false),
                                Some(true) => (CostClass::Dram, level >= CostClass::Dram),
                                Some(false) => {
                                    (CostClass::ObjectStore, level == CostClass::ObjectStore)
                                }
                            };
                            if cost == CostClass::Unavailable {
                                *missing.entry(&tier_mask.tier).or_default() += 1;
                            }
                            let n = usize::try_from(expert).expect("small");
                            assert_eq!(found.costs[n], cost, "seed {seed}, {tier:?} {place:?}");
                            assert_eq!(found.experts.has(expert), near, "seed {seed}, {place:?}");
                        }
                    }
                }
            }
            let told = mask.masked.iter().filter(|m| m.reason == MaskReason::UnavailableBlock);
            let told: Vec<&str> = told.map(|masked| &*masked.tier).collect();
            assert_eq!(told.len(), missing.len());
            assert!(told.iter().all(|tier| missing.contains_key(tier)));
            sources(&shape, &request, &mask);
        }
        engine.shutdown().await;
    }
    assert_eq!(answers + empty, CHECKPOINTS * REQUESTS);
    assert!(answers > 400 && empty > 50, "{answers} answers, {empty} empty");
}

/// The fixture numbers a tier's experts from 0 at every layer, and its columns
/// from 100.
fn sources(shape: &Shape, request: &MaskRequest, mask: &RoutingMask) {
    for found in &mask.tiers {
        let mut tiers = shape.tiers.iter();
        let tier = tiers.find(|tier| tier.id.is(&found.tier)).expect("known");
        if !request.sources || !tier.index {
            assert!(found.sources.is_empty());
            continue;
        }
        let [sources] = &found.sources[..] else { panic!("all layers agree: {:?}", found.sources) };
        assert_eq!(sources.layers, tier.layers);
        let mut number = 0;
        for (group, experts) in sources.groups.iter().zip(&tier.groups) {
            assert_eq!(group.len() as u64, u64::from(*experts));
            for source in group {
                assert_eq!((source.expert, source.column), (number, number + 100));
                number += 1;
            }
        }
    }
}

#[tokio::test]
async fn masks_leave_the_caches_alone() {
    let (checkpoint, engine, generation) = open(&Shape::mixed(), Bounds::default()).await;
    for key in checkpoint.blocks.keys().take(3) {
        generation.read(key.clone(), ReadOptions::demand(soon())).await.expect("it reads");
    }
    let store =
        |engine: &Engine| serde_json::to_value(engine.status().store).expect("it serializes");
    let before = store(&engine);
    let residency = Residency { level: CostClass::ObjectStore, layers: Vec::new() };
    let request = MaskRequest { sources: true, resident: Some(residency), ..Default::default() };
    let first = engine.mask("m", &request, soon()).await.expect("a mask");
    let second = engine.mask("m", &request, soon()).await.expect("a mask");
    assert_eq!(first, second);
    assert_eq!(store(&engine), before);
    engine.shutdown().await;
}

#[tokio::test]
async fn layers_and_sizes_that_cannot_be_are_refused_by_name() {
    let bounds = Bounds { selected_blocks: 17, ..Bounds::default() };
    let (_checkpoint, engine, _) = open(&Shape::mixed(), bounds).await;
    let ask = |sources, layers: Option<Vec<u32>>| {
        let resident = layers.map(|layers| Residency { level: CostClass::ObjectStore, layers });
        let request = MaskRequest { sources, resident, ..MaskRequest::default() };
        let engine = &engine;
        async move { engine.mask("m", &request, soon()).await }
    };
    let error = ask(false, Some(vec![1, 3])).await.expect_err("there is no layer 3");
    assert_eq!(error.reason(), "LAYER_NOT_FOUND");
    assert!(error.to_string().contains("no layer 3; it has 1 to 2, 5"), "{error}");
    // Six experts at three layers.
    let error = ask(false, Some(Vec::new())).await.expect_err("18 blocks");
    assert_eq!(error.reason(), "TOO_MANY_BLOCKS");
    ask(false, Some(vec![5, 1, 5])).await.expect("12 blocks");
    let error = ask(true, None).await.expect_err("18 blocks to look up");
    assert_eq!(error.reason(), "MASK_TOO_LARGE");
    assert!(error.to_string().contains("omit sources"), "{error}");
    ask(false, None).await.expect("it takes no index");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_mask_without_sources_and_residency_needs_no_index_segment() {
    let (checkpoint, engine, generation) = open(&Shape::mixed(), Bounds::default()).await;
    for entry in checkpoint.path().join("tpad/index").read_dir().expect("indexes") {
        std::fs::remove_file(entry.expect("an entry").path()).expect("removed");
    }
    std::fs::remove_file(checkpoint.path().join(shard_of("tier_1b", 1))).expect("removed");
    let plain = MaskRequest::default();
    let found = engine.mask("m", &plain, soon()).await.expect("the manifest is enough");
    assert_eq!(found.generation, generation.number());
    assert_eq!(found.mask.tiers.len(), 1);
    let error = engine.mask("m", &MaskRequest { sources: true, ..plain }, soon()).await;
    assert_eq!(error.expect_err("the index is gone").reason(), "INDEX_UNREADABLE");
    assert_eq!(engine.view("m").expect("configured").state, ModelState::Serving);
    engine.shutdown().await;
}
