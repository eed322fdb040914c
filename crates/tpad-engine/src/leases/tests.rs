mod direct;
mod expected;
mod on_device;
mod schedules;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;
use tpad_manifest::{BlockKey, ExpertKey};
use tpad_store::{ErrorKind, HierarchyConfig, ReadOptions, StoreMetrics};

use super::*;
use crate::fixture::{Checkpoint, Shape, Tier};
use crate::{
    DeviceMemory, Engine, EngineConfig, EngineMetrics, Generation, ModelConfig, Readiness,
};

const SLOT: u64 = 64 << 10;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Blocks whose slots are of `SLOT` bytes, `layers` of them.
fn checkpoint(layers: u32) -> Checkpoint {
    let layers: Vec<u32> = (0..layers).collect();
    let mut tier = Tier::new("t", &[1], &layers);
    (tier.expert_bytes, tier.routers) = (SLOT - 4096, false);
    Checkpoint::new(&Shape::of(vec![tier]))
}

fn key(layer: u32) -> BlockKey {
    let key = ExpertKey { tier: "t".parse().expect("an id"), group: 0, expert: 0 };
    BlockKey::Expert { key, layer }
}

fn keys(layers: std::ops::Range<u32>) -> Vec<BlockKey> {
    layers.map(key).collect()
}

struct Scene {
    engine: Arc<Engine>,
    generation: Arc<Generation>,
    checkpoint: Checkpoint,
}

/// An engine with so much host memory and these bounds.
async fn scene(layers: u32, capacity: u64, budget: Option<u64>, leases: LeaseBounds) -> Scene {
    let mut store = HierarchyConfig::new(capacity);
    store.dram.class_budgets.extend(budget.map(|budget| ("t".to_owned(), budget)));
    scene_of(checkpoint(layers), store, leases, DeviceMemory::default()).await
}

async fn scene_of(
    checkpoint: Checkpoint,
    store: HierarchyConfig,
    leases: LeaseBounds,
    devices: DeviceMemory,
) -> Scene {
    let model = ModelConfig {
        name: "m".into(),
        root: checkpoint.root(),
        allowed_bases: Vec::new(),
        tier_sets: BTreeMap::new(),
        origin: tpad_store::OriginOptions::default(),
    };
    let config = EngineConfig { leases, devices, ..EngineConfig::new(vec![model], store) };
    let engine = Engine::start(config, EngineMetrics::default(), StoreMetrics::default());
    let engine = engine.expect("it starts");
    let mut readiness = engine.watch_readiness();
    readiness.wait_for(|now| *now == Readiness::Ready).await.expect("the engine lives");
    let generation = engine.open("m").expect("it is served");
    Scene { engine, generation, checkpoint }
}

fn bounds(slots: u64, worker_slots: u64) -> LeaseBounds {
    LeaseBounds { bytes: slots * SLOT, worker_bytes: worker_slots * SLOT }
}

impl Scene {
    fn worker(&self) -> Worker {
        self.engine.worker(WorkerName::default(), false)
    }

    fn held(&self) -> u64 {
        let status = self.engine.status().leases;
        assert!(status.bytes <= status.most_bytes, "{status:?}");
        let most = self.worker().most_bytes();
        assert!(status.workers.iter().all(|worker| worker.bytes <= most), "{status:?}");
        status.bytes
    }

    fn assert_right(&self, leased: &Leased) {
        let image = &self.checkpoint.blocks[&leased.block.key];
        assert_eq!(&*leased.block.served.bytes, &**image, "{}", leased.block.key);
    }
}

fn numbers(acquired: &Acquired) -> Vec<u64> {
    acquired.iter().flatten().map(|leased| leased.lease).collect()
}

#[tokio::test]
async fn all_are_leased_or_none_within_the_bounds() {
    let scene = scene(8, 64 * SLOT, None, bounds(4, 3)).await;
    let (one, two) = (scene.worker(), scene.worker());
    let three = one.acquire(&scene.generation, &keys(0..3), soon()).await.expect("it may");
    for leased in &three {
        scene.assert_right(leased.as_ref().expect("it is leased"));
    }
    let full = one.acquire(&scene.generation, &keys(3..4), soon()).await.expect_err("a fourth");
    let told = full.to_string();
    assert!(told.contains("this worker") && told.contains("handoff.worker_lease_bytes"), "{told}");
    assert_eq!((full.kind(), full.reason()), (ErrorKind::ResourceExhausted, "LEASES_FULL"));
    let full = two.acquire(&scene.generation, &keys(3..5), soon()).await.expect_err("all have 3");
    assert!(full.to_string().contains("raise handoff.lease_bytes"), "{full}");
    assert_eq!(scene.held(), 3 * SLOT, "a refused batch leaves nothing behind");
    // More than may ever be leased is refused before it is waited for.
    let many = two.acquire(&scene.generation, &keys(0..8), soon()).await.expect_err("8 of 3");
    assert!(many.to_string().contains(&(8 * SLOT).to_string()), "{many}");

    // What another has already takes no more memory.
    two.acquire(&scene.generation, &keys(0..3), soon()).await.expect("they are there");
    assert_eq!(scene.held(), 3 * SLOT);
    one.release(&numbers(&three));
    one.release(&numbers(&three));
    assert_eq!(scene.held(), 3 * SLOT, "the other one has them");
    drop(two);
    assert_eq!(scene.held(), 0);
    assert_eq!(scene.engine.status().leases.workers.len(), 1);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_is_dropped_frees_what_it_held() {
    let scene = scene(4, 64 * SLOT, None, bounds(8, 8)).await;
    let before = scene.engine.status().store.arena.held;
    let worker = scene.worker();
    let leased = worker.acquire(&scene.generation, &keys(0..4), soon()).await.expect("it may");
    drop(leased);
    for key in keys(0..4) {
        let id = scene.generation.record(&key, soon()).await.expect("it exists").id;
        scene.engine.hierarchy().evict(&id, None).await;
    }
    let held = scene.engine.status().store.arena.held;
    assert_eq!(held, before + 4 * SLOT, "what is evicted stays for those who lease it");
    drop(worker);
    assert_eq!(scene.engine.status().store.arena.held, before);
    assert_eq!(scene.held(), 0);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn without_time_what_is_in_memory_is_leased_and_nothing_else_read() {
    let scene = scene(4, 64 * SLOT, None, bounds(8, 8)).await;
    let worker = scene.worker();
    let read = scene.generation.read(key(2), ReadOptions::demand(soon())).await;
    drop(read.expect("it is read"));
    let acquired = worker.acquire(&scene.generation, &keys(0..4), Instant::now()).await;
    let acquired = acquired.expect("within the bounds");
    assert!(acquired[2].is_ok());
    for n in [0, 1, 3] {
        let late = acquired[n].as_ref().expect_err("it is not there");
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
    }
    assert_eq!(scene.engine.status().store.fills, 0, "no read began");
    let missing = worker.acquire(&scene.generation, &keys(9..10), Instant::now()).await;
    let missing = missing.expect("none is leased")[0].as_ref().expect_err("no layer 9").kind();
    assert_eq!(missing, ErrorKind::NotFound);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_key_that_does_not_exist_keeps_no_other_from_its_lease() {
    let scene = scene(4, 64 * SLOT, None, bounds(8, 8)).await;
    let worker = scene.worker();
    let keys = [key(0), key(77), key(1), key(0)];
    let acquired = worker.acquire(&scene.generation, &keys, soon()).await.expect("it may");
    let error = acquired[1].as_ref().expect_err("there is no layer 77");
    assert_eq!(error.reason(), "LAYER_NOT_FOUND", "{error}");
    assert_eq!(numbers(&acquired).len(), 3);
    assert_eq!(scene.held(), 2 * SLOT, "the block that was asked for twice counts once");
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn more_keys_than_a_task_polls_at_once_are_leased() {
    let scene = scene(300, 1024 * SLOT, None, bounds(400, 400)).await;
    let worker = scene.worker();
    for _ in 0..2 {
        let acquired = worker.acquire(&scene.generation, &keys(0..300), soon()).await;
        assert_eq!(numbers(&acquired.expect("it may")).len(), 300);
    }
    assert_eq!(scene.held(), 300 * SLOT);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn blocks_that_memory_does_not_keep_are_leased_all_the_same() {
    // The tier's budget is less than one block.
    let scene = scene(6, 64 * SLOT, Some(SLOT / 2), bounds(8, 8)).await;
    let worker = scene.worker();
    let acquired = worker.acquire(&scene.generation, &keys(0..6), soon()).await.expect("it may");
    for leased in &acquired {
        scene.assert_right(leased.as_ref().expect("it is leased"));
    }
    assert_eq!(scene.held(), 6 * SLOT);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_fill_ends_at_its_deadline_when_everything_is_leased() {
    let scene = scene(40, 16 * SLOT, None, bounds(16, 16)).await;
    let worker = scene.worker();
    let mut leased = 0;
    let error = loop {
        let deadline = Instant::now() + Duration::from_millis(300);
        let acquired = worker.acquire(&scene.generation, &[key(leased)], deadline).await;
        match acquired.expect("within the bounds").remove(0) {
            Ok(_) => leased += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    assert!(leased >= 12, "{leased} of 16 slots");
    let read = ReadOptions::demand(Instant::now() + Duration::from_millis(300));
    let error = scene.generation.read(key(39), read).await.expect_err("no slot is free");
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    drop(worker);
    scene.generation.read(key(39), ReadOptions::demand(soon())).await.expect("there is room");
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_worker_holds_a_bounded_number_of_leases() {
    let scene = scene(1, 64 * SLOT, None, bounds(1, 1)).await;
    let worker = scene.worker();
    let same = vec![key(0); WORKER_LEASES / 2];
    for _ in 0..2 {
        worker.acquire(&scene.generation, &same, soon()).await.expect("it may");
    }
    let error = worker.acquire(&scene.generation, &same, soon()).await.expect_err("too many");
    assert_eq!(error.reason(), "TOO_MANY_LEASES");
    scene.engine.shutdown().await;
}

/// Some workers over a memory that is too small for what they want together: whatever
/// they ask for, hold, give back and drop, everybody gets on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_schedule_has_workers_wait_for_each_other() {
    const LAYERS: u32 = 48;
    for (seed, budget) in [(1, None), (2, Some(SLOT / 2)), (3, Some(3 * SLOT)), (4, None)] {
        let scene = scene(LAYERS, 24 * SLOT, budget, bounds(12, 6)).await;
        let scene = Arc::new(scene);
        let mut workers = JoinSet::new();
        for n in 0..6 {
            let scene = Arc::clone(&scene);
            let random = ChaCha8Rng::seed_from_u64(seed * 100 + n);
            workers.spawn(busy(scene, random, LAYERS));
        }
        let done = tokio::time::timeout(Duration::from_secs(120), workers.join_all()).await;
        let granted: usize = done.expect("nobody waits for ever").into_iter().sum();
        assert!(granted > 100, "{granted} leases were granted");
        assert_eq!(scene.held(), 0);
        scene.engine.shutdown().await;
    }
}

/// One worker's life: how many leases it got.
async fn busy(scene: Arc<Scene>, mut random: ChaCha8Rng, layers: u32) -> usize {
    let (mut worker, mut held, mut granted) = (scene.worker(), Vec::new(), 0);
    for _ in 0..40 {
        match random.random_range(0..10) {
            0 => {
                held.clear();
                worker = scene.worker();
            }
            1 => {
                let key = key(random.random_range(0..layers));
                let id = scene.generation.record(&key, soon()).await.expect("it exists").id;
                scene.engine.hierarchy().evict(&id, None).await;
            }
            2..5 => {
                let some = held.split_off(held.len() / 2);
                worker
                    .release(&some.iter().map(|leased: &Leased| leased.lease).collect::<Vec<_>>());
            }
            _ => {
                let count = random.random_range(1..6);
                let keys: Vec<_> =
                    (0..count).map(|_| key(random.random_range(0..layers))).collect();
                let wait = Duration::from_millis(random.random_range(0..400));
                match worker.acquire(&scene.generation, &keys, Instant::now() + wait).await {
                    Ok(acquired) => held.extend(acquired.into_iter().flatten()),
                    Err(error) => assert_eq!(error.reason(), "LEASES_FULL", "{error}"),
                }
                held.iter().for_each(|leased| scene.assert_right(leased));
                granted += held.len();
            }
        }
        scene.held();
    }
    granted
}
