//! Where blocks come from, and what a read makes of them.

use std::sync::Arc;
use std::time::Duration;

use tpad_manifest::BlockId;
use tpad_store::fault::{Fault, Faults, FaultyOrigin};
use tpad_store::testing::{MemoryLevel, MemoryOrigin};
use tpad_store::{
    BlockFetch, DramLevel, ErrorKind, FetchPart, Hierarchy, Level, Medium, Origin, ReadError,
    StoreMetrics,
};

use crate::model::{MIB, Model, check, config, hierarchy, metric, read, within};

#[tokio::test]
async fn a_block_comes_from_the_origin_once() {
    let model = Model::new(1, "a", [1, 255, 4096, 300_000, 9 * MIB + 1]);
    let origin = model.origin();
    let metrics = StoreMetrics::default();
    let hierarchy = Hierarchy::new(config(64 * MIB), vec![], metrics.clone()).expect("sound");
    for block in &model.blocks {
        assert_eq!(hierarchy.resident(&block.fetch.id), None);
        assert_eq!(check(&hierarchy, &origin, block).await, Medium::ObjectStore);
        assert_eq!(hierarchy.resident(&block.fetch.id), Some(Medium::Dram));
        assert_eq!(check(&hierarchy, &origin, block).await, Medium::Dram);
    }
    let count = |name: &str| metric(&metrics, name);
    assert_eq!(count("tpad_level_reads_total{level=\"dram\",outcome=\"miss\"}"), 5);
    assert_eq!(count("tpad_level_reads_total{level=\"dram\",outcome=\"hit\"}"), 5);
    assert_eq!(count("tpad_store_reads_total{outcome=\"ok\"}"), 10);
    let bytes: u64 = model.blocks.iter().map(|block| block.fetch.bytes).sum();
    assert_eq!(count("tpad_level_bytes_total{level=\"dram\"}"), bytes);
    let status = hierarchy.status();
    assert_eq!(status.levels[0].usage.blocks, 5);
    assert_eq!((status.fills, status.reads_waiting), (0, 0));
    serde_json::to_string(&status).expect("JSON");
}

#[tokio::test]
async fn a_lower_level_is_filled_and_read() {
    let model = Model::new(2, "a", [100_000; 8]);
    let origin = model.memory_origin();
    let lower: Arc<dyn Level> = Arc::new(MemoryLevel::new(Medium::Nvme, 64 * MIB));
    let metrics = StoreMetrics::default();
    let levels = vec![Arc::clone(&lower)];
    let hierarchy = Hierarchy::new(config(16 * MIB), levels, metrics.clone()).expect("sound");
    let dynamic: Arc<dyn Origin> = origin.clone();
    for block in &model.blocks {
        assert_eq!(check(&hierarchy, &dynamic, block).await, Medium::ObjectStore);
    }
    let asked = origin.requests();
    // Shutting down would drop what is still on its way down.
    while lower.usage().blocks < 8 {
        tokio::task::yield_now().await;
    }
    for block in &model.blocks {
        hierarchy.dram().remove(&block.fetch.id).await.expect("removed");
        assert_eq!(hierarchy.resident(&block.fetch.id), Some(Medium::Nvme));
        assert_eq!(check(&hierarchy, &dynamic, block).await, Medium::Nvme);
        assert_eq!(check(&hierarchy, &dynamic, block).await, Medium::Dram);
    }
    assert_eq!(origin.requests(), asked, "the origin is not asked again");
    assert_eq!(metric(&metrics, "tpad_level_reads_total{level=\"nvme\",outcome=\"hit\"}"), 8);
}

#[tokio::test]
async fn padding_is_zero_whatever_the_slot_held() {
    let hierarchy = hierarchy(MIB, vec![]);
    let dirty = Model::new(3, "a", [1020; 400]);
    for block in &dirty.blocks {
        check(&hierarchy, &dirty.origin(), block).await;
    }
    let clean = Model::new(4, "a", [700; 400]);
    for block in &clean.blocks {
        check(&hierarchy, &clean.origin(), block).await;
    }
}

#[tokio::test]
async fn neighbours_are_one_request_and_large_parts_are_several() {
    let content: Vec<u8> = (0..3 * MIB).map(|n| (n % 239) as u8).collect();
    let origin = Arc::new(MemoryOrigin::new([("s".to_owned(), content.clone().into())]));
    let part = |offset, bytes, at| FetchPart { object: "s".into(), offset, bytes, at };
    let parts = vec![part(0, 100, 256), part(300, 156, 0), part(MIB, 2 * MIB, 512)];
    let mut image = content[300..456].to_vec();
    image.resize(256, 0);
    image.extend_from_slice(&content[..100]);
    image.resize(512, 0);
    image.extend_from_slice(&content[MIB as usize..]);
    let bytes = image.len() as u64;
    let fetch = BlockFetch { id: BlockId::of(&image), bytes, parts, class: "a".into() };
    let mut config = config(16 * MIB);
    config.fetch.part_bytes = MIB;
    let metrics = StoreMetrics::default();
    let hierarchy = Hierarchy::new(config, vec![], metrics.clone()).expect("sound");
    let dynamic: Arc<dyn Origin> = origin.clone();
    let served = hierarchy.read(&dynamic, &Arc::new(fetch), within(Duration::from_secs(9))).await;
    assert_eq!(served.expect("read").bytes[..], image[..]);
    let asked: Vec<_> = origin.requests().into_iter().map(|((_, at, n), _)| (at, n)).collect();
    assert_eq!(asked, [(0, 456), (MIB, MIB), (2 * MIB, MIB)]);
    assert_eq!(metric(&metrics, "tpad_origin_dropped_bytes_total"), 200);
}

#[tokio::test]
async fn a_missing_object_fails_only_its_block() {
    let model = Model::new(5, "a", [5000, 5000]);
    let origin = model.origin();
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let mut fetch = (*model.blocks[0].fetch).clone();
    fetch.parts[0].object = "gone".into();
    let fetch = Arc::new(fetch);
    for _ in 0..2 {
        let error = hierarchy.read(&origin, &fetch, within(Duration::from_secs(9))).await;
        assert_eq!(error.expect_err("missing").kind(), ErrorKind::NotFound);
    }
    check(&hierarchy, &origin, &model.blocks[1]).await;
    // Equal blocks are one block, and another place may have it.
    check(&hierarchy, &origin, &model.blocks[0]).await;
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_failing_read_of_another_place_tries_its_own() {
    let model = Model::new(6, "a", [5000]);
    let origin = model.origin();
    let slow = Fault::Slow(Duration::from_secs(1));
    let slow = FaultyOrigin::new(model.origin(), Faults::new(1, [(slow, 1.0)]));
    let slow: Arc<dyn Origin> = Arc::new(slow);
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let mut broken = (*model.blocks[0].fetch).clone();
    broken.parts[0].object = "gone".into();
    let broken = Arc::new(broken);
    let first = hierarchy.read(&slow, &broken, within(Duration::from_secs(9)));
    let second = read(&hierarchy, &origin, &model.blocks[0]);
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.expect_err("missing").kind(), ErrorKind::NotFound);
    assert_eq!(second.expect("its own place has it").bytes[..], model.blocks[0].image[..]);
}

#[tokio::test]
async fn contradictions_are_refused_before_anything_is_read() {
    let model = Model::new(7, "a", [5000]);
    let origin = model.memory_origin();
    let dynamic: Arc<dyn Origin> = origin.clone();
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let sound = &model.blocks[0].fetch;
    let spoiled: [fn(&mut BlockFetch); 4] = [
        |fetch| fetch.bytes -= 256,
        |fetch| fetch.bytes -= 1,
        |fetch| fetch.parts[0].at = fetch.parts[1].at,
        |fetch| fetch.parts[0].offset = u64::MAX,
    ];
    for spoil in spoiled {
        let mut fetch = (**sound).clone();
        spoil(&mut fetch);
        let read = hierarchy.read(&dynamic, &Arc::new(fetch), within(Duration::from_secs(9))).await;
        assert!(matches!(read, Err(ReadError::Fetch { .. })), "{read:?}");
    }
    assert!(origin.requests().is_empty());
}

#[tokio::test]
async fn a_block_larger_than_memory_is_refused_at_once_with_both_numbers() {
    let hierarchy = hierarchy(MIB, vec![]);
    let model = Model::new(8, "a", [2 * MIB]);
    let error = read(&hierarchy, &model.origin(), &model.blocks[0]).await.expect_err("too large");
    let bytes = model.blocks[0].fetch.bytes;
    assert!(matches!(error, ReadError::TooLarge { bytes: b, capacity: MIB, .. } if b == bytes));
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let whole = Model::new(9, "a", [MIB - 4096]);
    check(&hierarchy, &whole.origin(), &whole.blocks[0]).await;
}

#[tokio::test]
async fn a_level_that_can_be_read_in_place_is() {
    let model = Model::new(17, "a", [5000]);
    let origin = model.origin();
    let block = &model.blocks[0];
    let dram = config(16 * MIB).dram;
    let lower = DramLevel::new(&dram, StoreMetrics::default()).expect("sound");
    let mut slot = lower.arena().slot(block.image.len()).expect("mapped").expect("room");
    slot.copy_from_slice(&block.image);
    let shared = slot.freeze();
    lower.admit(&block.fetch.id, &"a".into(), &shared).await.expect("works");
    let hierarchy = hierarchy(16 * MIB, vec![Arc::new(lower)]);
    let served = read(&hierarchy, &origin, block).await.expect("served");
    assert_eq!(served.bytes.as_ptr(), shared.as_ptr(), "no copy");
    assert_eq!(hierarchy.status().arena.held, 0);
}
