//! Blocks brought to their homes, and those that others bring along.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tpad_store::fault::{Fault, Faults, FaultyLevel};
use tpad_store::testing::MemoryLevel;
use tpad_store::{
    CacheClass, Claim, DramConfig, Hierarchy, HierarchyConfig, Level, Medium, NvmeConfig, NvmeIo,
    NvmeLevel, Origin, ReadOptions, Staged, StoreMetrics, Urgency,
};

use crate::model::{Block, MIB, Model, check, config, metric};

const WASTED: &str = "tpad_prefetch_wasted_bytes_total";

struct Scene {
    hierarchy: Arc<Hierarchy>,
    metrics: StoreMetrics,
    origin: Arc<dyn Origin>,
}

impl Scene {
    fn new(config: HierarchyConfig, lower: Vec<Arc<dyn Level>>, model: &Model) -> Self {
        let metrics = StoreMetrics::default();
        let hierarchy = Hierarchy::new(config, lower, metrics.clone()).expect("sound bounds");
        Self { hierarchy, metrics, origin: model.origin() }
    }

    async fn stage(&self, block: &Block, home: Medium) -> Staged {
        let deadline = Instant::now() + Duration::from_secs(60);
        let staged =
            self.hierarchy.stage(&self.origin, &block.fetch, home, Claim::Firm, deadline).await;
        staged.expect("the origin is well")
    }

    async fn prefetch(&self, block: &Block) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let options = ReadOptions { deadline, urgency: Urgency::Prefetch };
        self.hierarchy.read(&self.origin, &block.fetch, options).await.expect("read");
    }

    fn count(&self, name: &str) -> u64 {
        metric(&self.metrics, name)
    }

    fn requests(&self) -> u64 {
        self.count("tpad_origin_requests_total{outcome=\"ok\"}")
    }
}

fn nvme(capacity: u64) -> Arc<dyn Level> {
    Arc::new(MemoryLevel::new(Medium::Nvme, capacity))
}

#[tokio::test]
async fn a_block_at_home_below_host_memory_takes_nothing_of_it() {
    let model = Model::new(1, "a", vec![100_000; 40]);
    let scene = Scene::new(config(4 * MIB), vec![nvme(64 * MIB)], &model);
    for block in &model.blocks {
        assert_eq!(scene.stage(block, Medium::Nvme).await, Staged::There);
        assert!(scene.hierarchy.holds(Medium::Nvme, &block.fetch.id));
        assert!(!scene.hierarchy.holds(Medium::Dram, &block.fetch.id));
    }
    assert_eq!(scene.hierarchy.status().levels[0].usage.blocks, 0);
    let requests = scene.requests();
    assert!(requests > 0);
    for block in &model.blocks {
        assert_eq!(scene.stage(block, Medium::Nvme).await, Staged::There, "once is enough");
        assert_eq!(check(&scene.hierarchy, &scene.origin, block).await, Medium::Nvme);
    }
    assert_eq!(scene.requests(), requests);
}

#[tokio::test]
async fn a_block_at_home_in_host_memory_is_read_from_there() {
    let model = Model::new(2, "a", vec![100_000; 10]);
    let scene = Scene::new(config(16 * MIB), vec![], &model);
    for block in &model.blocks {
        assert_eq!(scene.stage(block, Medium::Dram).await, Staged::There);
        assert_eq!(check(&scene.hierarchy, &scene.origin, block).await, Medium::Dram);
    }
}

#[tokio::test]
async fn what_a_level_cannot_take_is_said_and_nothing_is_read_in_vain() {
    let model = Model::new(3, "a", [1000, 100_000]);
    let scene = Scene::new(config(16 * MIB), vec![], &model);
    assert_eq!(scene.stage(&model.blocks[0], Medium::Nvme).await, Staged::OutOfService);
    assert_eq!(scene.requests(), 0);

    let scene = Scene::new(config(16 * MIB), vec![nvme(2000)], &model);
    assert_eq!(scene.stage(&model.blocks[1], Medium::Nvme).await, Staged::Refused);

    let faults = Faults::new(1, [(Fault::Failing, 1.0)]);
    let broken: Arc<dyn Level> = Arc::new(FaultyLevel::new(nvme(64 * MIB), faults));
    let scene = Scene::new(config(16 * MIB), vec![broken], &model);
    assert_eq!(scene.stage(&model.blocks[0], Medium::Nvme).await, Staged::OutOfService);
    let requests = scene.requests();
    assert_eq!(scene.stage(&model.blocks[1], Medium::Nvme).await, Staged::OutOfService);
    assert_eq!(scene.requests(), requests, "a level that rests is not staged for");
}

#[tokio::test]
async fn a_read_that_meets_a_block_on_its_way_down_keeps_it_in_host_memory() {
    let model = Model::new(4, "a", [10 * MIB]);
    let scene = Scene::new(config(64 * MIB), vec![nvme(64 * MIB)], &model);
    let block = &model.blocks[0];
    let (staged, medium) = tokio::join!(
        scene.stage(block, Medium::Nvme),
        check(&scene.hierarchy, &scene.origin, block)
    );
    assert_eq!((staged, medium), (Staged::There, Medium::ObjectStore));
    assert!(scene.hierarchy.holds(Medium::Dram, &block.fetch.id));
    assert!(scene.requests() <= 6, "one fill for both: {}", scene.requests());
}

#[tokio::test]
async fn a_prefetch_that_nobody_used_was_wasted_and_no_other() {
    let model = Model::new(5, "a", vec![100_000; 3]);
    let scene = Scene::new(config(16 * MIB), vec![], &model);
    let [used, unused, staged] = &model.blocks[..] else { panic!("three blocks") };
    scene.prefetch(used).await;
    scene.prefetch(unused).await;
    scene.stage(staged, Medium::Dram).await;
    assert_eq!(check(&scene.hierarchy, &scene.origin, used).await, Medium::Dram);
    for block in &model.blocks {
        assert_eq!(scene.hierarchy.evict(&block.fetch.id, None).await.from, [Medium::Dram]);
    }
    assert_eq!(scene.count(WASTED), unused.fetch.bytes);
}

/// A tier within its budget against a cold one of ten times the memory, whose
/// blocks have other sizes and are read many at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cold_class_of_ten_times_the_memory_pushes_out_nothing_of_a_warm_one() {
    const CAPACITY: u64 = 24 * MIB;
    let warm = Model::new(6, "warm", vec![300_000; 45]);
    let mixed = [300_000, 1_100_000, 90_000, 2_500_000];
    for (seed, sizes) in [(7, &mixed[..1]), (8, &mixed[1..2]), (9, &mixed)] {
        let mean = sizes.iter().sum::<u64>() / sizes.len() as u64;
        let count = usize::try_from(10 * CAPACITY / mean).expect("small");
        let cold = Model::new(seed, "cold", sizes.iter().copied().cycle().take(count));
        let dram = DramConfig {
            capacity_bytes: CAPACITY,
            class_budgets: [("warm".to_owned(), 15 * MIB)].into(),
        };
        let tuning = config(CAPACITY).fetch;
        let scene = Scene::new(HierarchyConfig { dram, fetch: tuning }, vec![], &warm);
        for block in &warm.blocks {
            assert_eq!(scene.stage(block, Medium::Dram).await, Staged::There);
        }
        let origin = cold.origin();
        let reads = cold.blocks.iter().map(|block| check(&scene.hierarchy, &origin, block));
        futures::StreamExt::for_each(
            futures::StreamExt::buffer_unordered(futures::stream::iter(reads), 16),
            async |_| (),
        )
        .await;
        let left =
            warm.blocks.iter().filter(|block| scene.hierarchy.holds(Medium::Dram, &block.fetch.id));
        assert_eq!(left.count(), warm.blocks.len(), "cold blocks of {sizes:?} bytes");
        scene.hierarchy.shutdown().await;
    }
}

#[tokio::test]
async fn what_nobody_has_at_home_any_more_goes_before_what_was_found_there() {
    let scratch = tempfile::tempdir().expect("scratch");
    // Seven eighths of it: ten blocks and no more.
    let config_of_disk = NvmeConfig {
        path: scratch.path().to_owned(),
        capacity_bytes: 1_250_000,
        free_floor_bytes: 0,
        io: NvmeIo::Auto,
    };
    let disk = NvmeLevel::open(config_of_disk, StoreMetrics::default()).expect("sound bounds");
    disk.scanned().await;
    disk.set_homes([CacheClass::from("a")]);
    let model = Model::new(10, "a", vec![100_000; 15]);
    let (kept, rest) = model.blocks.split_at(5);
    let (gone, new) = rest.split_at(5);
    let scene = Scene::new(config(16 * MIB), vec![Arc::clone(&disk) as Arc<dyn Level>], &model);
    for block in kept.iter().chain(gone) {
        assert_eq!(scene.stage(block, Medium::Nvme).await, Staged::There);
    }
    for block in kept.iter().chain(new) {
        assert_eq!(scene.stage(block, Medium::Nvme).await, Staged::There);
    }
    let there = |block: &&Block| scene.hierarchy.holds(Medium::Nvme, &block.fetch.id);
    assert_eq!(kept.iter().chain(new).filter(there).count(), 10);
    assert_eq!(gone.iter().filter(there).count(), 0);
    scene.hierarchy.shutdown().await;
}

#[tokio::test]
async fn a_firm_claim_takes_the_place_of_what_was_read_often_and_a_loose_one_does_not() {
    let model = Model::new(11, "a", vec![100_000; 45]);
    let scene = Scene::new(config(4 * MIB), vec![], &model);
    let (often, new) = model.blocks.split_at(25);
    for _ in 0..20 {
        for block in often {
            check(&scene.hierarchy, &scene.origin, block).await;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let stage = async |block: &Block, claim| {
        let staged =
            scene.hierarchy.stage(&scene.origin, &block.fetch, Medium::Dram, claim, deadline);
        staged.await.expect("the origin is well")
    };
    let mut refused = 0;
    for block in &new[..10] {
        refused += u32::from(stage(block, Claim::Loose).await == Staged::Refused);
    }
    assert!(refused > 0, "memory was not full");
    for block in new {
        assert_eq!(stage(block, Claim::Firm).await, Staged::There);
    }
    assert!(new.iter().all(|block| scene.hierarchy.holds(Medium::Dram, &block.fetch.id)));
    let usage = scene.hierarchy.status().levels[0].usage;
    assert!(usage.bytes <= usage.capacity, "{usage:?}");
}
