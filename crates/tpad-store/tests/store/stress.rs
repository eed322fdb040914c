//! The limits under load.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use proptest::prelude::*;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tpad_store::fault::{Fault, Faults, FaultyOrigin};
use tpad_store::testing::MemoryLevel;
use tpad_store::{
    BlockBytes, ErrorKind, Hierarchy, Level, Medium, Origin, ReadOptions, StoreMetrics, Urgency,
};

use crate::model::{MIB, Model, check, config, hierarchy, read, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_reads_of_a_cold_block_fetch_each_range_once() {
    let model = Arc::new(Model::new(1, "a", [20 * MIB]));
    let origin = model.memory_origin();
    let hierarchy = hierarchy(64 * MIB, vec![]);
    let reads = (0..10_000).map(|_| {
        let (hierarchy, model) = (Arc::clone(&hierarchy), Arc::clone(&model));
        let origin: Arc<dyn Origin> = origin.clone();
        tokio::spawn(async move { read(&hierarchy, &origin, &model.blocks[0]).await })
    });
    let dynamic: Arc<dyn Origin> = origin.clone();
    let first = check(&hierarchy, &dynamic, &model.blocks[0]);
    let (reads, _) = tokio::join!(join_all(reads.collect::<Vec<_>>()), first);
    let kept = hierarchy.dram().in_place(&model.blocks[0].fetch.id).expect("kept");
    for read in reads {
        let served = read.expect("no panic").expect("served");
        assert_eq!(served.bytes.as_ptr(), kept.as_ptr(), "one slot for all");
    }
    let requests = origin.requests();
    assert!(requests.len() >= 3 && requests.values().all(|count| *count == 1), "{requests:?}");
}

#[tokio::test]
async fn callers_who_leave_stop_nothing() {
    let model = Model::new(2, "a", [20 * MIB]);
    let origin = model.memory_origin();
    let dynamic: Arc<dyn Origin> = origin.clone();
    let hierarchy = hierarchy(64 * MIB, vec![]);
    let mut reads: Vec<_> =
        (0..10_000).map(|_| read(&hierarchy, &dynamic, &model.blocks[0]).boxed()).collect();
    for read in &mut reads {
        assert!(read.now_or_never().is_none(), "the leader has not run yet");
    }
    // The first among them, who started the fill.
    let stay = reads.split_off(5000);
    drop(reads);
    let kept = check(&hierarchy, &dynamic, &model.blocks[0]);
    let (stay, _) = tokio::join!(join_all(stay), kept);
    let kept = hierarchy.dram().in_place(&model.blocks[0].fetch.id).expect("kept");
    for read in stay {
        assert_eq!(read.expect("served").bytes.as_ptr(), kept.as_ptr(), "one slot for all");
    }
    let requests = origin.requests();
    assert!(requests.values().all(|count| *count == 1), "{requests:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_in_step_fetch_each_block_once() {
    let model = Arc::new(Model::new(23, "a", vec![300; 4000]));
    let origin = model.memory_origin();
    let hierarchy = hierarchy(64 * MIB, vec![]);
    let readers = (0..8).map(|_| {
        let (hierarchy, model) = (Arc::clone(&hierarchy), Arc::clone(&model));
        let origin: Arc<dyn Origin> = origin.clone();
        tokio::spawn(async move {
            for block in &model.blocks {
                check(&hierarchy, &origin, block).await;
            }
        })
    });
    for reader in join_all(readers.collect::<Vec<_>>()).await {
        reader.expect("no panic");
    }
    // A reader that misses just before a fill ends must not start another one.
    let twice: Vec<_> = origin.requests().into_iter().filter(|(_, count)| *count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// A model of mixed sizes, four times the capacity.
fn mixed(seed: u64, capacity: u64) -> Model {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sizes = Vec::new();
    let mut total = 0;
    while total < 4 * capacity {
        let bytes = match rng.random_range(0..10) {
            0..4 => capacity / 40,
            4..7 => capacity / 70,
            7 => rng.random_range(1..capacity / 8),
            8 => rng.random_range(1..20_000),
            _ => capacity / 5,
        };
        total += bytes;
        sizes.push(bytes);
    }
    Model::new(seed, "a", sizes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_model_of_four_times_the_capacity_is_read_right_within_it() {
    let capacity = 12 * MIB;
    let model = Arc::new(mixed(3, capacity));
    let origin = model.origin();
    let lower: Arc<dyn Level> = Arc::new(MemoryLevel::new(Medium::Nvme, 16 * MIB));
    let hierarchy = hierarchy(capacity, vec![lower]);
    let done = Arc::new(AtomicBool::new(false));
    let watch = {
        let (hierarchy, done) = (Arc::clone(&hierarchy), Arc::clone(&done));
        tokio::spawn(async move {
            let mut looks = 0u64;
            while !done.load(Ordering::SeqCst) {
                let status = hierarchy.status();
                assert!(status.arena.mapped <= status.arena.capacity, "{status:?}");
                assert!(status.arena.held <= status.arena.mapped, "{status:?}");
                looks += 1;
                tokio::task::yield_now().await;
            }
            looks
        })
    };
    for round in 0..2u64 {
        let readers = (0..16u64).map(|reader| {
            let (hierarchy, origin) = (Arc::clone(&hierarchy), Arc::clone(&origin));
            let model = Arc::clone(&model);
            tokio::spawn(async move {
                let mut order: Vec<usize> = (0..model.blocks.len()).collect();
                order.shuffle(&mut ChaCha8Rng::seed_from_u64(100 * round + reader));
                for number in order {
                    check(&hierarchy, &origin, &model.blocks[number]).await;
                }
            })
        });
        for reader in join_all(readers.collect::<Vec<_>>()).await {
            reader.expect("no panic");
        }
    }
    done.store(true, Ordering::SeqCst);
    assert!(watch.await.expect("no panic") > 100);
    hierarchy.shutdown().await;
    let status = hierarchy.status();
    assert_eq!(status.arena.held, status.levels[0].usage.bytes, "nothing leaks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn short_deadlines_neither_deadlock_nor_leak() {
    let capacity = 8 * MIB;
    let model = Arc::new(mixed(4, capacity));
    let slow = Faults::new(4, [(Fault::Slow(Duration::from_millis(60)), 0.3)]);
    let origin = FaultyOrigin::new(model.origin(), Arc::clone(&slow));
    let origin: Arc<dyn Origin> = Arc::new(origin);
    let hierarchy = hierarchy(capacity, vec![]);
    let readers = (0..16u64).map(|reader| {
        let (hierarchy, origin) = (Arc::clone(&hierarchy), Arc::clone(&origin));
        let model = Arc::clone(&model);
        tokio::spawn(async move {
            let mut rng = ChaCha8Rng::seed_from_u64(reader);
            let mut held: Vec<BlockBytes> = Vec::new();
            let (mut served, mut refused) = (0, 0);
            for _ in 0..60 {
                let block = &model.blocks[rng.random_range(0..model.blocks.len())];
                let options = within(Duration::from_millis(100));
                match hierarchy.read(&origin, &block.fetch, options).await {
                    Ok(read) => {
                        assert!(read.bytes[..] == block.image[..], "wrong bytes");
                        served += 1;
                        held.push(read.bytes);
                    }
                    Err(error) => {
                        use ErrorKind::{DeadlineExceeded, ResourceExhausted};
                        let kind = error.kind();
                        assert!(matches!(kind, DeadlineExceeded | ResourceExhausted), "{error}");
                        refused += 1;
                    }
                }
                // Everybody holds more than there is for all.
                if held.len() > rng.random_range(0..4) {
                    held.clear();
                }
            }
            (served, refused)
        })
    });
    let results = join_all(readers.collect::<Vec<_>>()).await;
    let results: Vec<(u32, u32)> = results.into_iter().map(|r| r.expect("no panic")).collect();
    let served: u32 = results.iter().map(|(served, _)| served).sum();
    assert!(served > 100, "{results:?}");
    assert!(slow.fired_in_all() > 0);
    // It still works, and at full size.
    for block in &model.blocks {
        check(&hierarchy, &origin, block).await;
    }
    hierarchy.shutdown().await;
    let status = hierarchy.status();
    assert_eq!(status.arena.held, status.levels[0].usage.bytes, "nothing leaks");
    assert_eq!((status.fills, status.fills_waiting_for_memory, status.reads_waiting), (0, 0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Read { block: usize, urgency: Urgency, hold: bool },
    Release(usize),
    Abandon(usize),
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![
        6 => (0usize..24, any::<bool>(), any::<bool>()).prop_map(|(block, urgent, hold)| {
            let urgency = if urgent { Urgency::Demand } else { Urgency::Prefetch };
            Step::Read { block, urgency, hold }
        }),
        3 => any::<usize>().prop_map(Step::Release),
        2 => (0usize..24).prop_map(Step::Abandon),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..25), 1..6)
}

async fn schedule(hierarchy: &Hierarchy, origin: &Arc<dyn Origin>, model: &Model, steps: &[Step]) {
    let mut held: Vec<(usize, BlockBytes)> = Vec::new();
    for step in steps {
        match *step {
            Step::Read { block: number, urgency, hold } => {
                let block = &model.blocks[number];
                let options = ReadOptions { urgency, ..within(Duration::from_millis(20)) };
                if let Ok(served) = hierarchy.read(origin, &block.fetch, options).await {
                    assert!(served.bytes[..] == block.image[..], "wrong bytes");
                    if hold {
                        held.push((number, served.bytes));
                    }
                }
            }
            Step::Release(n) if !held.is_empty() => {
                held.swap_remove(n % held.len());
            }
            Step::Release(_) => {}
            Step::Abandon(number) => {
                let block = &model.blocks[number];
                let options = within(Duration::from_secs(1));
                drop(hierarchy.read(origin, &block.fetch, options).now_or_never());
            }
        }
        let arena = hierarchy.status().arena;
        assert!(arena.mapped <= arena.capacity, "{arena:?}");
    }
    for (number, bytes) in held {
        assert!(bytes[..] == model.blocks[number].image[..], "a held block changed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever tasks read, hold, release and abandon at once: what they hold is
    /// right as long as they hold it, and in the end nothing is left behind.
    #[test]
    fn no_schedule_of_readers_breaks_the_store(schedules in steps()) {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(3).enable_all().build().expect("runtime");
        runtime.block_on(async {
            let sizes = (0..24u64).map(|n| if n % 3 == 0 { 90_000 } else { n * 9_001 + 1 });
            let model = Arc::new(Model::new(9, "a", sizes));
            let origin = model.origin();
            let hierarchy = hierarchy(MIB, vec![]);
            let tasks = schedules.into_iter().map(|steps| {
                let (hierarchy, origin) = (Arc::clone(&hierarchy), Arc::clone(&origin));
                let model = Arc::clone(&model);
                tokio::spawn(async move { schedule(&hierarchy, &origin, &model, &steps).await })
            });
            for task in join_all(tasks.collect::<Vec<_>>()).await {
                task.expect("no panic");
            }
            for block in &model.blocks {
                check(&hierarchy, &origin, block).await;
            }
            hierarchy.shutdown().await;
            let status = hierarchy.status();
            assert_eq!(status.arena.held, status.levels[0].usage.bytes, "nothing leaks");
        });
    }
}

#[tokio::test]
async fn a_hot_class_survives_a_scan_of_a_cold_one() {
    let hot = Model::new(21, "hot", vec![100_000; 20]);
    let cold = Model::new(22, "cold", vec![150_000; 200]);
    let mut config = config(8 * MIB);
    config.dram.class_budgets = [("hot".to_owned(), 3 * MIB), ("cold".to_owned(), 2 * MIB)].into();
    let hierarchy = Hierarchy::new(config, vec![], StoreMetrics::default()).expect("sound");
    for block in &hot.blocks {
        check(&hierarchy, &hot.origin(), block).await;
    }
    for block in &cold.blocks {
        check(&hierarchy, &cold.origin(), block).await;
    }
    let ids: BTreeSet<_> = hot.blocks.iter().map(|block| block.fetch.id).collect();
    assert!(ids.iter().all(|id| hierarchy.resident(id) == Some(Medium::Dram)));
}
