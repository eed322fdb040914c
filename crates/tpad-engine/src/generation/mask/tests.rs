mod random;

use tpad_store::ReadOptions;

use super::super::tests::{open, soon};
use super::*;
use crate::fixture::{Shape, shard_of};
use crate::{Bounds, Engine, ModelState};

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
