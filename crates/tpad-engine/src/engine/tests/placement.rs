//! Tiers that are brought home.

use tpad_manifest::Placement;
use tpad_store::Medium;

use futures::StreamExt as _;

use super::*;
use crate::{Prefetched, ReadyWhen, Scope, TierStatus, WarmState};

const MIB: u64 = 1 << 20;

/// A tier of one layer and group.
fn tier(id: &str, placement: Placement, experts: u32, expert_bytes: u64) -> Tier {
    Tier { placement, expert_bytes, ..Tier::new(id, &[experts], &[1]) }
}

fn warm_config(models: Vec<ModelConfig>, capacity: u64) -> EngineConfig {
    EngineConfig {
        ready_when: ReadyWhen::Warm,
        store: HierarchyConfig::new(capacity),
        ..config(models)
    }
}

async fn ready(engine: &Engine) {
    engine.watch_readiness().wait_for(Readiness::is_ready).await.expect("the engine lives");
}

fn status_of(engine: &Engine, model: usize, tier: usize) -> TierStatus {
    engine.status().models[model].tiers[tier].clone()
}

/// What each class may keep in host memory.
fn budget(engine: &Engine, class: &str) -> Option<u64> {
    let classes = engine.hierarchy().dram().classes();
    classes.into_iter().find(|usage| usage.class.as_deref() == Some(class)).map(|u| u.budget)
}

#[tokio::test]
async fn tiers_of_all_models_share_the_room_in_order() {
    // Kept are 5.6 MiB, at home 4.9.
    let first = Checkpoint::new(&Shape::of(vec![
        tier("a", Placement::Dram, 16, 100_000),
        tier("b", Placement::ObjectStore, 16, 100_000),
    ]));
    let second = Checkpoint::new(&Shape::of(vec![tier("c", Placement::Hbm, 64, 100_000)]));
    let models = vec![model("first", &first.root()), model("second", &second.root())];
    let engine = start(warm_config(models, 8 * MIB));
    ready(&engine).await;
    // GPU memory goes first, wherever it is.
    let (a, b, c) = (status_of(&engine, 0, 0), status_of(&engine, 0, 1), status_of(&engine, 1, 0));
    assert_eq!((a.home, b.home, c.home), (Medium::Dram, Medium::ObjectStore, Medium::Dram));
    assert_eq!(c.home_reason.as_deref(), Some("no GPU: served from dram"));
    assert_eq!((a.warm.state, c.warm.state), (WarmState::Warm, WarmState::Warm));
    assert_eq!(b.warm.state, WarmState::OnDemand);
    assert!(c.missing_bytes > 0 && c.missing_bytes < c.bytes, "{c:?}");
    assert_eq!(a.missing_bytes, a.bytes, "nothing was left for it");
    let warnings = engine.status().models[0].warnings.clone();
    assert!(warnings.iter().any(|w| w.starts_with("tier a is 1.5 MiB, dram has")), "{warnings:?}");
    assert!(budget(&engine, "c") > Some(4 * MIB) && budget(&engine, "b").is_none());

    // Another's end is its beginning.
    engine.unload("second").await.expect("it is there");
    let brought = async {
        while status_of(&engine, 0, 0).missing_bytes > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), brought).await.expect("there is room now");
    assert!(budget(&engine, "a").is_some() && budget(&engine, "c").is_none());
    assert_eq!(engine.status().models[0].warnings, Vec::<String>::new());
    engine.shutdown().await;
}

#[tokio::test]
async fn the_operators_budgets_stand() {
    let checkpoint = Checkpoint::new(&Shape::of(vec![
        tier("own", Placement::Dram, 16, 100_000),
        tier("rest", Placement::Dram, 4, 100_000),
    ]));
    let mut config = warm_config(vec![model("m", &checkpoint.root())], 8 * MIB);
    config.store.dram.class_budgets = [("own".to_owned(), MIB)].into();
    let engine = start(config);
    ready(&engine).await;
    let (own, rest) = (status_of(&engine, 0, 0), status_of(&engine, 0, 1));
    assert_eq!(budget(&engine, "own"), Some(MIB));
    assert!(own.resident_bytes.dram > MIB / 2 && own.resident_bytes.dram <= MIB, "{own:?}");
    assert!(own.missing_bytes > 0 && rest.missing_bytes == 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn a_damaged_block_keeps_no_other_from_home_and_is_said() {
    let checkpoint = Checkpoint::new(&Shape::of(vec![tier("a", Placement::Dram, 8, 5000)]));
    // Behind what the shard begins with.
    checkpoint.flip(&shard_of("a", 1), 100);
    let engine = start(warm_config(vec![model("m", &checkpoint.root())], 8 * MIB));
    ready(&engine).await;
    let status = status_of(&engine, 0, 0);
    assert_eq!(status.warm.state, WarmState::Failed);
    assert!(status.warm.problem.is_some_and(|problem| problem.contains("a/0/")));
    assert!(
        status.missing_bytes > 0 && status.missing_bytes < 2 * 5000,
        "{}",
        status.missing_bytes
    );
    engine.shutdown().await;
}

#[tokio::test]
async fn a_newer_revision_is_brought_home_and_stays_ready_meanwhile() {
    let shape = Shape::of(vec![tier("a", Placement::Dram, 8, 5000)]);
    let mut checkpoint = Checkpoint::new(&shape);
    let engine = start(warm_config(vec![model("m", &checkpoint.root())], 8 * MIB));
    ready(&engine).await;
    let mut readiness = engine.watch_readiness();
    readiness.mark_unchanged();
    checkpoint.publish(&Shape { revision: 2, ..shape });
    engine.reload("m", soon()).await.expect("it is there");
    let brought = async {
        while status_of(&engine, 0, 0).warm.state != WarmState::Warm {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), brought).await.expect("it is brought home");
    assert_eq!(status_of(&engine, 0, 0).missing_bytes, 0);
    assert!(!readiness.has_changed().expect("the engine lives"), "it was ready all the time");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_model_with_no_tier_to_serve_is_as_warm_as_it_gets() {
    let mut unknown = tier("a", Placement::Dram, 8, 5000);
    unknown.requires = vec!["something of later".to_owned()];
    let checkpoint = Checkpoint::new(&Shape::of(vec![unknown]));
    let engine = start(warm_config(vec![model("m", &checkpoint.root())], 8 * MIB));
    ready(&engine).await;
    assert!(status_of(&engine, 0, 0).skipped.is_some());
    engine.shutdown().await;
}

#[tokio::test]
async fn a_model_that_is_added_leaves_the_engine_ready() {
    let (first, second) = (Checkpoint::new(&Shape::mixed()), Checkpoint::empty());
    let engine = start(warm_config(vec![model("m", &first.root())], 8 * MIB));
    ready(&engine).await;
    let mut readiness = engine.watch_readiness();
    readiness.mark_unchanged();
    let mut second = second;
    second.publish(&Shape::of(vec![tier("a", Placement::Dram, 8, 5000)]));
    engine.add(model("n", &second.root()), soon()).await.expect("it is there");
    assert!(!readiness.has_changed().expect("the engine lives"));
    engine.shutdown().await;
}

#[tokio::test]
async fn a_tier_of_copies_is_at_home_where_the_originals_are() {
    let copies = |id| Tier { variety: Some(4), ..tier(id, Placement::Dram, 8, 5000) };
    let checkpoint = Checkpoint::new(&Shape::of(vec![copies("a"), copies("b")]));
    let engine = start(warm_config(vec![model("m", &checkpoint.root())], 8 * MIB));
    ready(&engine).await;
    for n in 0..2 {
        let status = status_of(&engine, 0, n);
        assert_eq!((status.warm.state, status.missing_bytes), (WarmState::Warm, 0), "{status:?}");
    }
    engine.shutdown().await;
}

/// Until every tier of the first model is warm.
async fn warm(engine: &Engine) {
    let brought = async {
        while engine.status().models[0].tiers.iter().any(|t| t.warm.state != WarmState::Warm) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), brought).await.expect("it is brought home");
}

#[tokio::test]
async fn what_a_revision_that_is_gone_left_behind_makes_way_however_often_it_was_read() {
    let shape = Shape::of(vec![tier("a", Placement::Dram, 32, 100_000)]);
    let mut checkpoint = Checkpoint::new(&shape);
    let engine = start(warm_config(vec![model("m", &checkpoint.root())], 8 * MIB));
    ready(&engine).await;
    let generation = serving(&engine, "m").await;
    for _ in 0..20 {
        for key in checkpoint.blocks.keys() {
            generation.read(key.clone(), ReadOptions::demand(soon())).await.expect("it is there");
        }
    }
    drop(generation);
    // Other bytes under the same keys.
    checkpoint.publish(&Shape { revision: 2, ..shape });
    engine.reload("m", soon()).await.expect("it is there");
    warm(&engine).await;
    let generation = serving(&engine, "m").await;
    for key in checkpoint.blocks.keys() {
        let block = generation.read(key.clone(), ReadOptions::demand(soon())).await;
        assert_eq!(block.expect("it is there").served.medium, Medium::Dram, "{key}");
    }
    assert_eq!(status_of(&engine, 0, 0).missing_bytes, 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn tiers_of_one_name_share_the_operators_budget() {
    let shape = || Shape::of(vec![tier("own", Placement::Dram, 8, 100_000)]);
    let (first, second) =
        (Checkpoint::new(&shape()), Checkpoint::new(&Shape { revision: 2, ..shape() }));
    let models = vec![model("first", &first.root()), model("second", &second.root())];
    let mut config = warm_config(models, 8 * MIB);
    config.store.dram.class_budgets = [("own".to_owned(), MIB)].into();
    let engine = start(config);
    ready(&engine).await;
    let missing: u64 = (0..2).map(|model| status_of(&engine, model, 0).missing_bytes).sum();
    let resident = status_of(&engine, 0, 0).resident_bytes.dram;
    assert!(resident <= MIB && missing >= 2 * 8 * 100_000 - MIB, "{missing} of {resident}");
    let warnings = engine.status().models[1].warnings.clone();
    assert!(warnings.iter().any(|w| w.starts_with("tier own is")), "{warnings:?}");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_guess_brings_no_more_than_tiers_that_share_a_budget_keep_together() {
    let cold = |id| tier(id, Placement::ObjectStore, 64, 100_000);
    let checkpoint = Checkpoint::new(&Shape::of(vec![cold("a"), cold("b"), cold("c")]));
    let engine = start(warm_config(vec![model("m", &checkpoint.root())], 8 * MIB));
    ready(&engine).await;
    let tiers = ["a", "b", "c"].map(|tier| tier.parse().expect("an id"));
    let prefetch = engine.prefetch("m", &Scope::of_tiers(tiers), soon()).await.expect("accepted");
    let fetched = prefetch
        .blocks
        .filter(|block| futures::future::ready(matches!(block.outcome, Prefetched::Fetched)));
    let bytes: u64 = fetched.map(|block| block.bytes).fold(0, async |sum, more| sum + more).await;
    let rest: u64 = engine.hierarchy().dram().classes().iter().map(|usage| usage.budget).sum();
    assert!(bytes > 0 && bytes <= rest, "{bytes} of {rest}");
    engine.shutdown().await;
}

#[tokio::test]
async fn an_added_tier_is_at_home_when_its_revision_is_first_seen() {
    let first = tier("a", Placement::Dram, 8, 5000);
    let shape = Shape::of(vec![first.clone()]);
    let mut checkpoint = Checkpoint::new(&shape);
    let mut config = warm_config(vec![model("m", &checkpoint.root())], 8 * MIB);
    config.follow = Some(Duration::from_millis(2));
    let engine = start(config);
    ready(&engine).await;
    let tiers = vec![first, tier("b", Placement::Dram, 8, 5000)];
    checkpoint.publish(&Shape {
        revision: 2,
        bytes_of: Some(1),
        major: Some(1),
        ..Shape::of(tiers)
    });
    let mut changes = engine.changes.subscribe();
    let swapped = async {
        loop {
            changes.changed().await.expect("the engine lives");
            let view = engine.view("m").expect("it is configured");
            let generation = view.generation.expect("it serves");
            if generation.revision() == 2 {
                return generation;
            }
        }
    };
    let swapped = tokio::time::timeout(Duration::from_secs(20), swapped).await.expect("a swap");
    let added = swapped.places().get("b").expect("it has a place");
    assert_eq!((added.home, added.warm.state), (Medium::Dram, WarmState::Warm));
    assert_eq!(status_of(&engine, 0, 1).missing_bytes, 0);
    assert!(engine.view("m").expect("it is configured").coming.is_none());
    engine.shutdown().await;
}
