use std::cell::Cell;
use std::time::Duration;

use proptest::prelude::*;
use tpad_store::ErrorKind;

use super::*;
use crate::Bounds;
use crate::fixture::{Shape, Tier};
use crate::generation::tests::{open, soon};

fn keys(selected: &Selected) -> Vec<BlockKey> {
    (0..selected.len()).map(|n| selected.get(n).expect("in range").0).collect()
}

/// What a selection means, spelled out over the shape without any cleverness.
fn reference(shape: &Shape, selection: &Selection) -> Option<Vec<BlockKey>> {
    let mut found = Vec::new();
    let tier = |id: &TierId| shape.tiers.iter().find(|tier| tier.id.is(&id.to_string()));
    let block = |tier: &Tier, group, expert, layer| {
        let key = ExpertKey { tier: tier.id.clone(), group, expert };
        BlockKey::Expert { key, layer }
    };
    let exists = |tier: &Tier, key: &ExpertKey| {
        tier.groups.get(key.group as usize).is_some_and(|experts| key.expert < *experts)
    };
    for key in &selection.keys {
        tier(&key.tier).filter(|tier| exists(tier, key))?;
    }
    let mut layers = selection.layers.clone();
    if layers.is_empty() {
        layers = shape.tiers.iter().flat_map(|tier| tier.layers.clone()).collect();
        layers.sort_unstable();
    }
    let mut seen_tiers: Vec<&TierId> = Vec::new();
    for key in &selection.keys {
        if !seen_tiers.contains(&&key.tier) {
            seen_tiers.push(&key.tier);
        }
    }
    for layer in layers {
        for id in &seen_tiers {
            for key in selection.keys.iter().filter(|key| key.tier == **id) {
                let tier = tier(id)?;
                if tier.layers.contains(&layer) {
                    found.push(block(tier, key.group, key.expert, layer));
                } else if !selection.layers.is_empty() {
                    return None;
                }
            }
        }
    }
    for (key, layer) in &selection.blocks {
        let tier = tier(&key.tier).filter(|tier| exists(tier, key))?;
        found.push(block(tier, key.group, key.expert, *layer));
        tier.layers.iter().find(|known| *known == layer)?;
    }
    for id in &selection.tiers {
        let tier = tier(id)?;
        let layers = if selection.layers.is_empty() { &tier.layers } else { &selection.layers };
        for layer in layers {
            tier.layers.iter().find(|known| *known == layer)?;
            for (experts, group) in tier.groups.iter().zip(0..) {
                found.extend((0..*experts).map(|expert| block(tier, group, expert, *layer)));
            }
        }
    }
    let mut once = Vec::new();
    for key in found {
        if !once.contains(&key) {
            once.push(key);
        }
    }
    Some(once)
}

fn tier_id() -> impl Strategy<Value = TierId> {
    // Seldom one that does not exist.
    const IDS: [&str; 3] = ["tier_1b", "7", "tier_10b"];
    let ids = prop_oneof![40 => prop::sample::select(&IDS[..]), 1 => Just("tier_2b")];
    ids.prop_map(|id| id.parse().expect("an id"))
}

fn expert_key() -> impl Strategy<Value = ExpertKey> {
    (tier_id(), prop_oneof![20 => Just(0), 2 => 0u32..4], prop_oneof![9 => 0u32..3, 1 => 0u32..6])
        .prop_map(|(tier, group, expert)| ExpertKey { tier, group, expert })
}

fn layers() -> impl Strategy<Value = Vec<u32>> {
    let layer = prop::sample::select(&[1u32, 2, 5, 3][..]);
    prop_oneof![3 => Just(vec![]), 2 => Just(vec![5, 5]), 1 => prop::collection::vec(layer, 1..3)]
}

fn selection() -> impl Strategy<Value = Selection> {
    let layer = prop_oneof![9 => Just(5u32), 1 => 1u32..4];
    (
        prop::collection::vec(expert_key(), 0..6),
        prop::collection::vec((expert_key(), layer), 0..5),
        prop::collection::vec(tier_id(), 0..3),
        layers(),
    )
        .prop_map(|(keys, blocks, tiers, layers)| Selection { keys, blocks, tiers, layers })
}

#[test]
fn a_selection_is_what_its_words_say() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let shape = Shape::mixed();
    let (checkpoint, engine, generation) = runtime.block_on(open(&shape, Bounds::default()));
    let (found, refused) = (Cell::new(0), Cell::new(0));
    proptest!(ProptestConfig::with_cases(2000), |(selection in selection())| {
        let empty = selection.keys.is_empty()
            && selection.blocks.is_empty()
            && selection.tiers.is_empty();
        let selected = runtime.block_on(generation.select(&selection, soon()));
        match (reference(&shape, &selection).filter(|_| !empty), selected) {
            (Some(expected), Ok(selected)) => {
                found.set(found.get() + 1);
                let bytes = expected.iter().map(|key| checkpoint.blocks[key].len() as u64);
                prop_assert_eq!(selected.bytes(), bytes.sum::<u64>());
                prop_assert_eq!(keys(&selected), expected);
            }
            (None, Err(error)) => {
                refused.set(refused.get() + 1);
                prop_assert!(matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::InvalidArgument
                ));
            }
            (expected, selected) => {
                prop_assert!(false, "{expected:?} was expected, {selected:?} came");
            }
        }
    });
    // Both sides were seen, or the property says little.
    let counts = (found.get(), refused.get());
    assert!(counts.0 > 200 && counts.1 > 200, "{counts:?}");
    runtime.block_on(engine.shutdown());
}

#[tokio::test]
async fn all_selections_are_given_back() {
    let bounds = Bounds { selected_blocks_in_flight: 20, ..Bounds::default() };
    let (_checkpoint, engine, generation) = open(&Shape::mixed(), bounds).await;
    let tier =
        |id: &str| Selection { tiers: vec![id.parse().expect("an id")], ..Selection::default() };
    let key = ExpertKey { tier: "7".parse().expect("an id"), group: 0, expert: 0 };
    // 6 blocks, one of them asked for 6 times more: repeats are counted only
    // until they are known.
    let repeats = Selection { blocks: vec![(key, 5); 6], ..tier("7") };
    let first = generation.select(&repeats, soon()).await.expect("12 of 20");
    assert_eq!(first.len(), 6);
    let second = generation.select(&repeats, soon()).await.expect("12 of 14");
    let error = generation.select(&tier("tier_10b"), soon()).await.expect_err("16 of 8");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::ResourceExhausted, "SELECTIONS_BUSY"));
    drop((first, second));
    assert_eq!(generation.select(&tier("tier_10b"), soon()).await.expect("16 of 20").len(), 16);
    engine.shutdown().await;
}

#[tokio::test]
async fn repeats_cost_no_more_than_reading_them() {
    let (_checkpoint, engine, generation) = open(&Shape::mixed(), Bounds::default()).await;
    let id: TierId = "7".parse().expect("an id");
    let key = ExpertKey { tier: id.clone(), group: 0, expert: 0 };
    let began = std::time::Instant::now();
    // Looked at for each other, they would be 400 million lookups.
    let (tiers, layers) = (vec![id; 2000], vec![5; 200_000]);
    let routers = generation.routers(&tiers, &layers, soon()).await.expect("one");
    assert_eq!(routers.len(), 1);
    let all = Selection { keys: vec![key], tiers, layers, ..Selection::default() };
    let experts = generation.select(&all, soon()).await.expect("few");
    let once =
        Selection { tiers: all.tiers[..1].to_vec(), layers: vec![5], ..Selection::default() };
    let once = generation.select(&once, soon()).await.expect("few");
    let sorted = |selected| {
        let mut keys = keys(selected);
        keys.sort_unstable();
        keys
    };
    assert_eq!(sorted(&experts), sorted(&once));
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    engine.shutdown().await;
}

#[tokio::test]
async fn more_than_one_request_may_select_is_refused_before_it_is_spelled_out() {
    let bounds = Bounds { selected_blocks: 1000, ..Bounds::default() };
    let shape = Shape::of(vec![Tier::new("t", &[600], &[0, 1])]);
    let (_checkpoint, engine, generation) = open(&shape, bounds).await;
    let id: TierId = "t".parse().expect("an id");
    let all = Selection { tiers: vec![id.clone()], ..Selection::default() };
    let error = generation.select(&all, soon()).await.expect_err("1200 of 1000");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::InvalidArgument, "TOO_MANY_BLOCKS"));
    let keys = (0..501).map(|expert| ExpertKey { tier: id.clone(), group: 0, expert });
    let many = Selection { keys: keys.collect(), ..Selection::default() };
    let error = generation.select(&many, soon()).await.expect_err("1002 of 1000");
    assert_eq!(error.reason(), "TOO_MANY_BLOCKS");
    let layer = Selection { layers: vec![1], ..all };
    assert_eq!(generation.select(&layer, soon()).await.expect("600 of 1000").len(), 600);
    engine.shutdown().await;
}

#[tokio::test]
async fn routers_come_from_the_default_tiers_unless_others_are_named() {
    let mut shape = Shape::mixed();
    shape.tiers[2].routers = false;
    let (checkpoint, engine, generation) = open(&shape, Bounds::default()).await;
    let id = |text: &str| -> TierId { text.parse().expect("an id") };
    let router = |tier: &str, layer| BlockKey::Router { tier: id(tier), layer };
    let all = generation.routers(&[], &[], soon()).await.expect("they exist");
    assert_eq!(keys(&all), [1, 2, 5].map(|layer| router("tier_1b", layer)));
    let bytes: usize = keys(&all).iter().map(|key| checkpoint.blocks[key].len()).sum();
    assert_eq!(all.bytes(), bytes as u64);
    let some = generation.routers(&[id("7"), id("tier_1b")], &[5], soon()).await;
    assert_eq!(keys(&some.expect("they exist")), [router("7", 5), router("tier_1b", 5)]);
    for (layers, text) in [(&[][..], "any layer"), (&[5][..], "layer 5")] {
        let error = generation.routers(&[id("tier_10b")], layers, soon()).await;
        let error = error.expect_err("it has none");
        assert_eq!(error.reason(), "ROUTER_NOT_FOUND");
        assert!(error.to_string().ends_with(text), "{error}");
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn dense_tensors_come_by_name_or_all() {
    let (_checkpoint, engine, generation) = open(&Shape::mixed(), Bounds::default()).await;
    let dense = |name: &str| BlockKey::Dense { name: name.into() };
    let (norm, embed) = ("model.norm.weight", "model.embed_tokens.weight");
    let none: [&str; 0] = [];
    let all = generation.dense(&none, soon()).await.expect("they exist");
    assert_eq!(keys(&all), [dense(norm), dense(embed)]);
    assert_eq!(all.bytes(), 256 + 5120);
    let some = generation.dense(&[embed, norm, embed], soon()).await.expect("they exist");
    assert_eq!(keys(&some), [dense(embed), dense(norm)]);
    let error = generation.dense(&["x"], soon()).await.expect_err("it does not");
    assert_eq!(error.reason(), "DENSE_TENSOR_NOT_FOUND");
    engine.shutdown().await;

    let bare = Shape { dense: Vec::new(), ..Shape::mixed() };
    let (_checkpoint, engine, generation) = open(&bare, Bounds::default()).await;
    assert!(generation.dense(&none, soon()).await.expect("none is no error").is_empty());
    assert!(generation.dense(&[norm], soon()).await.is_err());
    engine.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_is_told() {
    let (_checkpoint, engine, generation) = open(&Shape::mixed(), Bounds::default()).await;
    let past = Instant::now() - Duration::from_secs(1);
    let all = Selection { tiers: vec!["7".parse().expect("an id")], ..Selection::default() };
    let error = generation.select(&all, past).await.expect_err("it is too late");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    engine.shutdown().await;
}
