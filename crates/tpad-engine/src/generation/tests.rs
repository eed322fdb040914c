use std::collections::BTreeSet;
use std::time::Duration;

use tpad_store::{ErrorKind, HierarchyConfig, StoreMetrics};

use super::*;
use crate::fixture::{Checkpoint, Shape, Tier};
use crate::{Engine, EngineConfig, ModelConfig, Readiness};

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// An engine on one checkpoint, and what it serves.
pub(super) async fn open(
    shape: &Shape,
    bounds: Bounds,
) -> (Checkpoint, Arc<Engine>, Arc<Generation>) {
    let checkpoint = Checkpoint::new(shape);
    let model = ModelConfig {
        name: "m".into(),
        root: checkpoint.root(),
        allowed_bases: Vec::new(),
        tier_sets: std::collections::BTreeMap::new(),
        origin: tpad_store::OriginOptions::default(),
    };
    let store = HierarchyConfig::new(64 << 20);
    let config = EngineConfig { bounds, ..EngineConfig::new(vec![model], store) };
    let engine = Engine::start(config, EngineMetrics::default(), StoreMetrics::default());
    let engine = engine.expect("it starts");
    let mut readiness = engine.watch_readiness();
    readiness.wait_for(Readiness::is_ready).await.expect("the engine lives");
    let generation = engine.open("m").expect("it is loaded");
    (checkpoint, engine, generation)
}

async fn pages_of(
    generation: &Generation,
    tier: Option<&str>,
    blocks: usize,
) -> Vec<Vec<ListedBlock>> {
    let mut pages = Vec::new();
    let mut token = None;
    loop {
        let tier = tier.map(|tier| tier.parse().expect("an id"));
        let page = generation.page(&PageRequest { tier, token, blocks }, soon()).await;
        let page = page.expect("it can be listed");
        token = page.token_after(page.blocks.len());
        pages.push(page.blocks);
        if token.is_none() {
            return pages;
        }
    }
}

#[tokio::test]
async fn pages_of_any_size_list_every_block_once_in_one_order() {
    let (checkpoint, engine, generation) = open(&Shape::mixed(), Bounds::default()).await;
    let whole: Vec<BlockKey> =
        pages_of(&generation, None, 1000).await.concat().into_iter().map(|b| b.key).collect();
    let distinct: BTreeSet<&BlockKey> = whole.iter().collect();
    assert_eq!(distinct, checkpoint.blocks.keys().collect());
    assert_eq!(whole.len(), checkpoint.blocks.len());
    for size in [1, 2, 7, whole.len() - 1, whole.len()] {
        let pages = pages_of(&generation, None, size).await;
        assert!(pages.iter().all(|page| page.len() <= size && !page.is_empty()));
        let keys: Vec<BlockKey> = pages.concat().into_iter().map(|block| block.key).collect();
        assert_eq!(keys, whole, "pages of {size}");
    }
    let tier = pages_of(&generation, Some("7"), 4).await.concat();
    assert_eq!(tier.len(), (3 + 1) * 2);
    assert!(tier.iter().all(|block| block.key.to_string().contains('7')));
    for block in tier {
        assert_eq!(generation.record(&block.key, soon()).await.expect("listed"), block.record);
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn listing_leaves_the_caches_of_blocks_alone() {
    let (_checkpoint, engine, generation) = open(&Shape::mixed(), Bounds::default()).await;
    for block in pages_of(&generation, None, 1000).await.concat() {
        assert_eq!(generation.medium_of(&block.record), Medium::ObjectStore);
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn tokens_of_another_request_or_generation_are_refused() {
    let (_checkpoint, engine, generation) = open(&Shape::mixed(), Bounds::default()).await;
    let page = |tier: Option<&str>, token: Option<String>| {
        let tier = tier.map(|tier| tier.parse().expect("an id"));
        let request = PageRequest { tier, token, blocks: 2 };
        let generation = Arc::clone(&generation);
        async move { generation.page(&request, soon()).await }
    };
    let token = page(None, None).await.expect("listed").token_after(2).expect("there is more");
    assert!(page(None, Some(token.clone())).await.is_ok());
    for (tier, token, reason) in [
        (Some("7"), token.clone(), "PAGE_TOKEN_INVALID"),
        (None, "nonsense".to_owned(), "PAGE_TOKEN_INVALID"),
        (None, token.replacen('1', "2", 1), "PAGE_TOKEN_STALE"),
    ] {
        let error = page(tier, Some(token)).await.expect_err(reason);
        assert_eq!(error.reason(), reason);
    }
    let (_other, other_engine, other) =
        open(&Shape { dense: Vec::new(), ..Shape::mixed() }, Bounds::default()).await;
    assert_eq!(other.number(), generation.number(), "daemons count alike");
    let request = PageRequest { tier: None, token: Some(token), blocks: 2 };
    let error = other.page(&request, soon()).await.expect_err("it is another daemon's");
    assert_eq!(error.reason(), "PAGE_TOKEN_INVALID");
    engine.shutdown().await;
    other_engine.shutdown().await;
}

#[tokio::test]
async fn segments_beyond_the_bound_are_read_again() {
    let bounds = Bounds { segment_bytes: 1, ..Bounds::default() };
    let (checkpoint, engine, generation) = open(&Shape::mixed(), bounds).await;
    for _ in 0..3 {
        for key in checkpoint.blocks.keys() {
            generation.record(key, soon()).await.expect("it exists");
        }
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn tiers_that_are_not_served_say_why_and_stop_no_other() {
    let mut skipped = Tier::new("new", &[2], &[0]);
    skipped.requires = vec!["telepathy".into()];
    let mut bare = Tier::new("bare", &[2], &[0]);
    bare.index = false;
    let shape = Shape::of(vec![Tier::new("old", &[2], &[0]), skipped, bare]);
    let (_checkpoint, engine, generation) = open(&shape, Bounds::default()).await;
    for (tier, kind, reason, text) in [
        ("new", ErrorKind::FailedPrecondition, "TIER_SKIPPED", "telepathy"),
        ("bare", ErrorKind::FailedPrecondition, "TIER_WITHOUT_INDEX", "no index"),
        ("none", ErrorKind::NotFound, "TIER_NOT_FOUND", "old, new, bare"),
    ] {
        let id: TierId = tier.parse().expect("an id");
        let selection = Selection { tiers: vec![id], ..Selection::default() };
        let error = generation.select(&selection, soon()).await.expect_err(tier);
        assert_eq!((error.kind(), error.reason()), (kind, reason));
        assert!(error.to_string().contains(text), "{error}");
    }
    let selection =
        Selection { tiers: vec!["old".parse().expect("an id")], ..Selection::default() };
    assert_eq!(generation.select(&selection, soon()).await.expect("it is served").len(), 2);
    let status = serde_json::to_value(engine.status()).expect("it serializes");
    let tiers = &status["models"][0]["tiers"];
    assert!(tiers[1]["skipped"].as_str().is_some_and(|why| why.contains("telepathy")));
    assert_eq!(tiers[0]["blocks"], 3);
    assert_eq!(tiers[1]["blocks"], 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn keys_that_do_not_exist_are_answered_with_what_does() {
    let (_checkpoint, engine, generation) = open(&Shape::mixed(), Bounds::default()).await;
    let expert = |tier: &str, group, expert, layer| {
        let tier = tier.parse().expect("an id");
        let key = tpad_manifest::ExpertKey { tier, group, expert };
        BlockKey::Expert { key, layer }
    };
    for (key, reason, text) in [
        (expert("tier_1b", 2, 0, 1), "GROUP_NOT_FOUND", "groups 0 to 1"),
        (expert("tier_1b", 0, 4, 1), "EXPERT_NOT_FOUND", "experts 0 to 3"),
        (expert("tier_1b", 0, 0, 3), "LAYER_NOT_FOUND", "1 to 2, 5"),
        (expert("8", 0, 0, 1), "TIER_NOT_FOUND", "tier_1b, 7, tier_10b"),
        (
            BlockKey::Router { tier: "7".parse().expect("an id"), layer: 1 },
            "LAYER_NOT_FOUND",
            "2, 5",
        ),
        (
            BlockKey::Dense { name: "model.norms.weight".into() },
            "DENSE_TENSOR_NOT_FOUND",
            "model.norm.weight",
        ),
    ] {
        let error = generation.record(&key, soon()).await.expect_err(reason);
        assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, reason), "{key}");
        assert!(error.to_string().contains(text), "{error} does not say {text}");
    }
    engine.shutdown().await;
}
