//! Masks with residency against a reference that keeps its own books: which
//! images were put on which level. It shares no code with what it checks.

mod reference;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tempfile::TempDir;
use tpad_manifest::{BlockId, SetOrigin};

use self::world::{Dice, World};
use super::super::super::tests::soon;
use super::super::*;

/// Checkpoints, and requests of each.
const CHECKPOINTS: u64 = 48;
const REQUESTS: u64 = 25;

const CLASSES: [CostClass; 4] =
    [CostClass::Hbm, CostClass::Dram, CostClass::Nvme, CostClass::ObjectStore];

#[tokio::test]
async fn resident_masks_equal_the_reference_over_a_thousand_requests() {
    // How often each outcome, and each cost, was seen.
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut shared = 0;
    for seed in 0..CHECKPOINTS {
        let mut dice = Dice(seed);
        let mut world = World::new(&mut dice);
        let disk = TempDir::new().expect("a temporary directory");
        let engine = world.serve(&disk, &mut dice).await;
        let keys = world.keys();
        let distinct: BTreeSet<BlockId> =
            keys.iter().map(|key| BlockId::of(&world.checkpoint.blocks[key])).collect();
        shared += keys.len() - distinct.len();
        let mut etags: BTreeMap<String, String> = BTreeMap::new();
        for request in 0..REQUESTS {
            for _ in 0..dice.roll(4) {
                if !keys.is_empty() {
                    world.happen(&engine, &mut dice, &keys).await;
                }
            }
            let asked = world.ask(&mut dice);
            let residency = Residency { level: CLASSES[asked.level], layers: asked.layers.clone() };
            let question = MaskRequest {
                set: asked.set.clone(),
                sources: asked.sources,
                resident: Some(residency),
            };
            let answer = engine.mask("m", &question, soon()).await;
            let found = answer.as_ref().map(|found| shown(&found.mask));
            let found = found.map_err(EngineError::reason);
            let expected = world.reference(&asked);
            assert_eq!(found, expected, "seed {seed}, request {request}: {question:?}");
            let outcome = match &expected {
                Err(reason) => (*reason).to_owned(),
                Ok(mask) => mask["level"].to_string(),
            };
            *seen.entry(outcome).or_default() += 1;
            let Ok(expected) = expected else { continue };
            for block in expected["resident"].as_array().expect("a list") {
                *seen.entry(format!("at {}", block[1])).or_default() += 1;
            }
            // Equal masks have equal etags, others do not.
            let etag = answer.expect("it was found").mask.etag();
            let content = expected.to_string();
            let known = etags.entry(etag).or_insert_with(|| content.clone());
            assert_eq!(*known, content, "seed {seed}, request {request}");
            let contents: BTreeSet<&String> = etags.values().collect();
            assert_eq!(contents.len(), etags.len(), "seed {seed}, request {request}");
        }
        engine.shutdown().await;
    }
    // Every way to an answer was taken often, and blocks were shared.
    assert!(shared > 1000, "{shared}");
    let words: Vec<&str> = seen.keys().map(String::as_str).collect();
    let all = [
        "\"dram\"",
        "\"nvme\"",
        "\"object_store\"",
        "LAYER_NOT_FOUND",
        "MASK_EMPTY",
        "TIER_SET_NOT_FOUND",
        "at \"dram\"",
        "at \"nvme\"",
        "at \"object_store\"",
        "at \"unavailable\"",
    ];
    assert_eq!(words, all, "{seen:?}");
    assert!(seen.values().all(|count| *count >= 20), "{seen:?}");
}

/// A mask in the reference's words.
fn shown(mask: &RoutingMask) -> Value {
    let origin = match &mask.origin {
        SetOrigin::Default => "default".into(),
        SetOrigin::Tiers => "tiers".into(),
        SetOrigin::UpTo(last) => format!("up to {last}"),
        SetOrigin::Configuration(name) => format!("configuration {name}"),
        SetOrigin::Manifest(name) => format!("manifest {name}"),
    };
    let tiers: Vec<Value> = mask
        .tiers
        .iter()
        .map(|tier| {
            // The static part masks no expert of an active tier.
            assert!(tier.groups.iter().all(|group| group.iter().all(|may| may)), "{tier:?}");
            let experts: Vec<u32> = tier.groups.iter().map(|group| group.experts()).collect();
            let source = |source: &Source| (source.expert, source.column);
            let group = |group: &Vec<Source>| group.iter().map(source).collect::<Vec<_>>();
            let sources = tier.sources.iter().map(|sources| {
                json!([sources.layers, sources.groups.iter().map(group).collect::<Vec<_>>()])
            });
            let sources: Vec<Value> = sources.collect();
            json!([tier.tier, tier.k_group, tier.k_expert, experts, tier.indexed, sources])
        })
        .collect();
    let masked = mask.masked.iter().map(|masked| {
        // In whose words a reader says what it lacks is not this test's concern.
        let detail = if masked.detail.contains("warp") { "warp" } else { &*masked.detail };
        json!([masked.tier, masked.reason.as_str(), detail])
    });
    let found = mask.resident.as_ref().expect("it was asked for");
    let mut resident = Vec::new();
    for layer in &found.layers {
        assert_eq!(layer.tiers.len(), mask.tiers.len());
        for (tier, id) in layer.tiers.iter().zip(&mask.tiers) {
            for (group, found) in tier.groups.iter().enumerate() {
                assert_eq!(found.costs.len(), found.experts.experts() as usize);
                for (expert, (cost, near)) in
                    found.costs.iter().zip(found.experts.iter()).enumerate()
                {
                    let at = format!("{} {} {group} {expert}", layer.layer, id.tier);
                    resident.push(json!([at, cost.as_str(), near]));
                }
            }
        }
    }
    json!({
        "revision": mask.revision,
        "origin": origin,
        "tiers": tiers,
        "k_tier": mask.k_tier,
        "masked": masked.collect::<Vec<_>>(),
        "level": found.level.as_str(),
        "layers": found.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(),
        "resident": sorted(resident),
    })
}

fn sorted(mut list: Vec<Value>) -> Vec<Value> {
    list.sort_by_key(ToString::to_string);
    list
}
