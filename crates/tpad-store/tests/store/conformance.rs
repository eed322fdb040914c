//! Every level, origin and wrapper against the one suite.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tpad_store::conformance::{level_conforms, level_is_safe, origin_conforms, origin_is_safe};
use tpad_store::fault::{Fault, Faults, FaultyLevel, FaultyOrigin};
use tpad_store::testing::{MemoryLevel, MemoryOrigin};
use tpad_store::{
    Arena, DramConfig, DramLevel, Level, Medium, ObjectOrigin, Origin, OriginOptions, StoreMetrics,
};

use crate::model::MIB;
use crate::server::Server;

fn dram() -> Arc<DramLevel> {
    let config = DramConfig { capacity_bytes: 64 * MIB, class_budgets: [].into() };
    Arc::new(DramLevel::new(&config, StoreMetrics::default()).expect("sound bounds"))
}

fn memory() -> Arc<dyn Level> {
    Arc::new(MemoryLevel::new(Medium::Nvme, 8 * MIB))
}

#[tokio::test]
async fn host_memory_conforms_with_its_own_slots() {
    let level = dram();
    let arena = Arc::clone(level.arena());
    level_conforms(&(level as Arc<dyn Level>), &arena).await;
    assert_eq!(arena.usage().held, 0, "nothing leaks");
}

#[tokio::test]
async fn host_memory_conforms_with_slots_of_others() {
    let level = dram();
    let own = Arc::clone(level.arena());
    level_conforms(&(level as Arc<dyn Level>), &Arena::new(16 * MIB)).await;
    assert_eq!(own.usage().held, 0, "nothing leaks");
}

#[tokio::test]
async fn the_level_of_the_tests_conforms() {
    level_conforms(&memory(), &Arena::new(16 * MIB)).await;
}

#[tokio::test]
async fn a_wrapper_without_faults_changes_nothing() {
    let wrapped: Arc<dyn Level> = Arc::new(FaultyLevel::new(memory(), Faults::none()));
    level_conforms(&wrapped, &Arena::new(16 * MIB)).await;
    let level = dram();
    let arena = Arc::clone(level.arena());
    let wrapped: Arc<dyn Level> = Arc::new(FaultyLevel::new(level, Faults::none()));
    level_conforms(&wrapped, &arena).await;
}

/// All faults but the one that never returns.
fn all() -> Vec<(Fault, f64)> {
    [
        Fault::Slow(Duration::from_micros(100)),
        Fault::Short,
        Fault::Flipped,
        Fault::Failing,
        Fault::Missing,
        Fault::LyingLength,
    ]
    .map(|fault| (fault, 0.1))
    .into()
}

#[tokio::test]
async fn faulty_levels_are_safe_behind_their_checks() {
    for (seed, level) in [memory(), dram() as Arc<dyn Level>].into_iter().enumerate() {
        let faults = Faults::new(seed as u64, all());
        let wrapped: Arc<dyn Level> = Arc::new(FaultyLevel::new(level, Arc::clone(&faults)));
        level_is_safe(&wrapped, &Arena::new(16 * MIB), 500).await;
        for (fault, _) in all() {
            assert!(faults.fired(fault) > 0, "{fault:?} did not fire");
        }
    }
}

fn content() -> Vec<u8> {
    (0..2_500_000u32).map(|n| (n % 253) as u8).collect()
}

#[tokio::test]
async fn origins_conform() {
    let content = content();
    let directory = tempfile::tempdir().expect("directory");
    std::fs::create_dir(directory.path().join("a")).expect("made");
    std::fs::write(directory.path().join("a/shard"), &content).expect("written");
    let root = directory.path().to_str().expect("UTF-8");
    let local = ObjectOrigin::open(root, &OriginOptions::default()).expect("opened");
    let local: Arc<dyn Origin> = Arc::new(local);
    let objects = [("a/shard".to_owned(), Bytes::from(content.clone()))];
    let memory: Arc<dyn Origin> = Arc::new(MemoryOrigin::new(objects));
    let wrapped: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(Arc::clone(&memory), Faults::none()));
    let server = Server::honest("root/a/shard", &content).await;
    let http = ObjectOrigin::open(&server.url("root"), &OriginOptions::default());
    let http: Arc<dyn Origin> = Arc::new(http.expect("opened"));
    for origin in [local, memory, wrapped, http] {
        origin_conforms(&origin, "a/shard", &content).await;
    }
}

#[tokio::test]
async fn faulty_origins_are_safe() {
    let content = content();
    let objects = [("a/shard".to_owned(), Bytes::from(content.clone()))];
    let faults = Faults::new(7, all());
    let origin = MemoryOrigin::new(objects);
    let origin: Arc<dyn Origin> =
        Arc::new(FaultyOrigin::new(Arc::new(origin), Arc::clone(&faults)));
    origin_is_safe(&origin, "a/shard", &content, 200).await;
    for (fault, _) in all() {
        assert!(faults.fired(fault) > 0, "{fault:?} did not fire");
    }
}
