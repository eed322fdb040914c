//! The rules of reads: where blocks come from, and who waits for what.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use tokio::time::Instant;
use tpad_manifest::BlockId;
use tpad_store::fault::{Fault, Faults, FaultyOrigin};
use tpad_store::testing::{MemoryLevel, MemoryOrigin};
use tpad_store::{
    BlockFetch, ErrorKind, FetchPart, Hierarchy, HierarchyConfig, Level, Medium, Origin, ReadError,
    ReadOptions, StoreError, StoreMetrics, Urgency,
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

#[tokio::test(start_paused = true)]
async fn each_caller_has_its_own_deadline() {
    let model = Model::new(10, "a", [5000]);
    let delay = Duration::from_secs(10);
    let faults = Faults::new(1, [(Fault::Slow(delay), 1.0)]);
    let origin: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(model.origin(), faults));
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let fetch = &model.blocks[0].fetch;
    let started = Instant::now();
    let short = hierarchy.read(&origin, fetch, within(Duration::from_millis(100)));
    let long = hierarchy.read(&origin, fetch, within(Duration::from_secs(60)));
    let (short, long) = tokio::join!(async { (short.await, started.elapsed()) }, async {
        (long.await, started.elapsed())
    },);
    assert_eq!(short.0.expect_err("late").kind(), ErrorKind::DeadlineExceeded);
    assert!(short.1 < Duration::from_secs(1));
    assert_eq!(long.0.expect("in time").bytes[..], model.blocks[0].image[..]);
    assert!(long.1 >= delay);
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_nobody_waits_for_is_kept() {
    let model = Model::new(11, "a", [5000]);
    let faults = Faults::new(1, [(Fault::Slow(Duration::from_secs(5)), 1.0)]);
    let origin: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(model.origin(), faults));
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let mut read = Box::pin(read(&hierarchy, &origin, &model.blocks[0]));
    assert!((&mut read).now_or_never().is_none());
    drop(read);
    while hierarchy.status().fills > 0 {
        tokio::time::advance(Duration::from_millis(100)).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(hierarchy.resident(&model.blocks[0].fetch.id), Some(Medium::Dram));
}

#[tokio::test(start_paused = true)]
async fn a_fill_takes_no_longer_than_any_may() {
    let model = Model::new(12, "a", [5000]);
    let faults = Faults::new(1, [(Fault::Hanging, 1.0)]);
    let origin: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(model.origin(), faults));
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let options = within(Duration::from_secs(100_000));
    let error = hierarchy.read(&origin, &model.blocks[0].fetch, options).await;
    let error = error.expect_err("hangs");
    assert!(matches!(error, ReadError::Slow { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(hierarchy.status().arena.held, 0);
}

#[tokio::test]
async fn memory_that_is_read_is_waited_for_until_the_deadline() {
    let model = Model::new(13, "a", vec![200_000; 8]);
    let origin = model.origin();
    let hierarchy = hierarchy(MIB, vec![]);
    let mut readers = Vec::new();
    let refused = loop {
        let block = &model.blocks[readers.len()];
        let read = hierarchy.read(&origin, &block.fetch, within(Duration::from_millis(300))).await;
        match read {
            Ok(served) => readers.push(served.bytes),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ReadError::NoRoom { capacity: MIB, .. }), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(readers.len() >= 3);
    for (reader, block) in readers.iter().zip(&model.blocks) {
        assert_eq!(reader[..], block.image[..], "nothing is written over");
    }
    let prefetch = ReadOptions { urgency: Urgency::Prefetch, ..within(Duration::from_secs(60)) };
    let refused = hierarchy.read(&origin, &model.blocks[7].fetch, prefetch).await;
    let refused = refused.expect_err("a prefetch does not wait");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    let last = &model.blocks[7];
    let (served, ()) = tokio::join!(read(&hierarchy, &origin, last), async {
        tokio::task::yield_now().await;
        readers.clear();
    });
    assert_eq!(served.expect("served").bytes[..], last.image[..]);
}

#[tokio::test(start_paused = true)]
async fn over_its_bounds_it_refuses_early() {
    let model = Model::new(14, "a", vec![5000; 10]);
    let faults = Faults::new(1, [(Fault::Slow(Duration::from_secs(5)), 1.0)]);
    let origin: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(model.origin(), faults));
    let mut config = config(16 * MIB);
    config.fetch.max_fills = 4;
    let hierarchy = Hierarchy::new(config.clone(), vec![], StoreMetrics::default());
    let hierarchy = hierarchy.expect("sound");
    let reads = model.blocks.iter().map(|block| read(&hierarchy, &origin, block));
    let results = join_all(reads).await;
    assert!(results[..4].iter().all(Result::is_ok));
    for refused in &results[4..] {
        let error = refused.as_ref().expect_err("one too many");
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    }
    config.fetch.max_waiting = 3;
    let hierarchy = Hierarchy::new(config, vec![], StoreMetrics::default()).expect("sound");
    let reads = (0..10).map(|_| read(&hierarchy, &origin, &model.blocks[0]));
    let results = join_all(reads).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
    assert_eq!(hierarchy.status().reads_waiting, 0);
}

#[tokio::test]
async fn a_prefetch_that_is_demanded_becomes_urgent() {
    let model = Model::new(15, "a", vec![200_000; 8]);
    let origin = model.origin();
    let hierarchy = hierarchy(MIB, vec![]);
    let held = hierarchy.dram().arena().slot(900_000).expect("mapped").expect("room");
    let block = &model.blocks[0];
    let prefetch = ReadOptions { urgency: Urgency::Prefetch, ..within(Duration::from_secs(60)) };
    let (prefetch, demand, ()) = tokio::join!(
        hierarchy.read(&origin, &block.fetch, prefetch),
        read(&hierarchy, &origin, block),
        async {
            tokio::task::yield_now().await;
            drop(held);
        }
    );
    assert_eq!(demand.expect("waited for").bytes[..], block.image[..]);
    assert!(prefetch.is_ok(), "it is the same fill");
}

#[tokio::test]
async fn after_shutdown_nothing_is_filled() {
    let model = Model::new(16, "a", [5000, 6000]);
    let faults = Faults::new(1, [(Fault::Hanging, 1.0)]);
    let hanging: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(model.origin(), faults));
    let hierarchy = hierarchy(16 * MIB, vec![]);
    check(&hierarchy, &model.origin(), &model.blocks[0]).await;
    let (hung, ()) = tokio::join!(read(&hierarchy, &hanging, &model.blocks[1]), async {
        tokio::task::yield_now().await;
        hierarchy.shutdown().await;
    });
    assert!(matches!(hung, Err(ReadError::Stopping)));
    let refused = read(&hierarchy, &model.origin(), &model.blocks[1]).await;
    assert!(matches!(refused, Err(ReadError::Stopping)));
    assert_eq!(check(&hierarchy, &model.origin(), &model.blocks[0]).await, Medium::Dram);
}

#[test]
fn bounds_that_make_no_sense_are_refused() {
    let start = |change: fn(&mut HierarchyConfig)| {
        let mut config = config(MIB);
        change(&mut config);
        Hierarchy::new(config, vec![], StoreMetrics::default())
    };
    for error in [
        start(|config| config.dram.capacity_bytes = 0),
        start(|config| config.fetch.part_bytes = 0),
        start(|config| config.fetch.concurrent_ranges = 0),
        start(|config| config.fetch.max_fills = 0),
    ] {
        assert!(matches!(error, Err(StoreError::Bound { value: 0, .. })), "{error:?}");
    }
    let error = start(|config| {
        config.dram.class_budgets.insert("a".into(), MIB + 1);
    });
    assert!(matches!(error, Err(StoreError::Budgets { .. })), "{error:?}");
}
