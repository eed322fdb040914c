//! Faults below the hierarchy: a broken level is a miss, a broken origin is an
//! error, and no byte is ever wrong.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tpad_store::fault::{Fault, Faults, FaultyLevel, FaultyOrigin};
use tpad_store::testing::MemoryLevel;
use tpad_store::{ErrorKind, Health, Hierarchy, Level, Medium, Origin, StoreMetrics};

use crate::model::{MIB, Model, check, config, metric, within};

struct Broken {
    hierarchy: Arc<Hierarchy>,
    metrics: StoreMetrics,
    faults: Arc<Faults>,
    inner: Arc<dyn Level>,
}

/// A hierarchy over a level that misbehaves and holds all of the model's blocks.
async fn over(model: &Model, faults: Vec<(Fault, f64)>) -> Broken {
    let inner: Arc<dyn Level> = Arc::new(MemoryLevel::new(Medium::Nvme, 64 * MIB));
    let filler =
        Hierarchy::new(config(64 * MIB), vec![Arc::clone(&inner)], StoreMetrics::default());
    let filler = filler.expect("sound");
    let origin = model.origin();
    for block in &model.blocks {
        check(&filler, &origin, block).await;
        while !inner.contains(&block.fetch.id) {
            tokio::task::yield_now().await;
        }
    }
    let faults = Faults::new(3, faults);
    let level = FaultyLevel::new(Arc::clone(&inner), Arc::clone(&faults));
    let metrics = StoreMetrics::default();
    let levels: Vec<Arc<dyn Level>> = vec![Arc::new(level)];
    let hierarchy = Hierarchy::new(config(64 * MIB), levels, metrics.clone()).expect("sound");
    Broken { hierarchy, metrics, faults, inner }
}

#[tokio::test(start_paused = true)]
async fn a_broken_level_is_a_miss() {
    let model = Model::new(1, "a", vec![50_000; 6]);
    let origin = model.origin();
    for fault in [Fault::Failing, Fault::Hanging, Fault::Short] {
        let broken = over(&model, vec![(fault, 1.0)]).await;
        for block in &model.blocks {
            assert_eq!(check(&broken.hierarchy, &origin, block).await, Medium::ObjectStore);
        }
        assert_eq!(broken.faults.fired(fault), 1, "then the level is left alone: {fault:?}");
        assert_eq!(metric(&broken.metrics, "tpad_level_errors_total{level=\"nvme\"}"), 1);
        let status = broken.hierarchy.status();
        assert!(matches!(&status.levels[1].health, Health::Broken(why) if !why.is_empty()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_level_that_works_again_is_used_again() {
    let model = Model::new(2, "a", vec![50_000; 40]);
    let origin = model.origin();
    let broken = over(&model, vec![(Fault::Failing, 0.5)]).await;
    let mut from_level = 0;
    for block in &model.blocks {
        if check(&broken.hierarchy, &origin, block).await == Medium::Nvme {
            from_level += 1;
        }
        tokio::time::advance(Duration::from_secs(31)).await;
    }
    let fired = broken.faults.fired(Fault::Failing);
    assert!(fired > 0 && from_level > 0 && fired + from_level == 40, "{fired} {from_level}");
}

#[tokio::test]
async fn wrong_bytes_of_a_level_are_a_miss_and_are_removed() {
    let model = Model::new(3, "a", vec![50_000; 6]);
    let origin = model.origin();
    for fault in [Fault::Flipped, Fault::LyingLength] {
        let broken = over(&model, vec![(fault, 1.0)]).await;
        for block in &model.blocks {
            assert_eq!(check(&broken.hierarchy, &origin, block).await, Medium::ObjectStore);
        }
        assert!(broken.faults.fired(fault) >= 6);
        assert_eq!(metric(&broken.metrics, "tpad_verify_failures_total{level=\"nvme\"}"), 6);
        assert_eq!(broken.hierarchy.status().levels[1].health, Health::Ok);
        // Removed, and then offered again with the bytes of the origin.
        while broken.inner.usage().blocks < 6 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_level_that_takes_its_time_delays_no_reply() {
    let model = Model::new(4, "a", vec![MIB - 1000; 30]);
    let origin = model.origin();
    let faults = Faults::new(1, [(Fault::Slow(Duration::from_secs(1)), 1.0)]);
    let inner: Arc<dyn Level> = Arc::new(MemoryLevel::new(Medium::Nvme, 64 * MIB));
    let level: Arc<dyn Level> = Arc::new(FaultyLevel::new(inner, Arc::clone(&faults)));
    let metrics = StoreMetrics::default();
    let hierarchy = Hierarchy::new(config(64 * MIB), vec![level], metrics.clone()).expect("sound");
    let started = tokio::time::Instant::now();
    for block in &model.blocks {
        check(&hierarchy, &origin, block).await;
    }
    assert!(started.elapsed() < Duration::from_secs(1), "writes are waited for");
    let dropped = "tpad_level_admissions_total{level=\"nvme\",outcome=\"dropped\"}";
    assert_eq!(metric(&metrics, dropped), 22, "8 are under way, the others are dropped");
    assert_eq!(faults.fired_in_all(), 8);
}

#[tokio::test]
async fn no_fault_of_the_origin_makes_a_wrong_byte() {
    let model = Model::new(5, "a", (1..60).map(|n| n * 7_001));
    let faults = [
        Fault::Slow(Duration::from_micros(300)),
        Fault::Short,
        Fault::Flipped,
        Fault::Failing,
        Fault::Missing,
        Fault::LyingLength,
    ];
    let faults = Faults::new(5, faults.map(|fault| (fault, 0.05)));
    let origin = FaultyOrigin::new(model.origin(), Arc::clone(&faults));
    let origin: Arc<dyn Origin> = Arc::new(origin);
    let hierarchy = Hierarchy::new(config(4 * MIB), vec![], StoreMetrics::default());
    let hierarchy = hierarchy.expect("sound");
    let mut right = 0;
    for _ in 0..4 {
        let reads = model.blocks.iter().map(async |block| {
            let read = hierarchy.read(&origin, &block.fetch, within(Duration::from_secs(60)));
            // Compared and let go of here: all blocks at once do not fit.
            match read.await {
                Ok(served) => {
                    assert!(served.bytes[..] == block.image[..], "a wrong byte");
                    true
                }
                Err(error) => {
                    use ErrorKind::{DataLoss, NotFound, Unavailable};
                    assert!(matches!(error.kind(), DataLoss | NotFound | Unavailable), "{error}");
                    false
                }
            }
        });
        right += join_all(reads).await.into_iter().filter(|right| *right).count();
    }
    assert!(right > 50, "{right} were right");
    for fault in [Fault::Short, Fault::Flipped, Fault::Failing, Fault::LyingLength] {
        assert!(faults.fired(fault) > 0, "{fault:?} did not fire");
    }
    assert_eq!(hierarchy.status().arena.held, hierarchy.status().levels[0].usage.bytes);
}
