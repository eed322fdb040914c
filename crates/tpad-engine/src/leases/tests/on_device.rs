//! Blocks that are leased on a device, of the stand-in: host memory, no GPU.

use tempfile::TempDir;
use tpad_cuda::fault::{Faults, Faulty};
use tpad_cuda::{DeviceName, StandIn};
use tpad_handoff::{DirectoryView, Hazards, Uses};
use tpad_hbm::{DeviceBudget, HbmConfig, HbmLevel, HbmMetrics};
use tpad_manifest::Placement;
use tpad_store::Medium;

use super::*;
use crate::Memory;

pub(super) const MIB: u64 = 1 << 20;

/// A level of so many devices, each of so much.
pub(super) fn devices(count: u32, capacity_bytes: u64) -> (TempDir, DeviceMemory) {
    faulty_devices(count, capacity_bytes, &Arc::default())
}

fn faulty_devices(
    count: u32,
    capacity_bytes: u64,
    faults: &Arc<Faults>,
) -> (TempDir, DeviceMemory) {
    let directory = tempfile::tempdir().expect("a directory");
    let driver = StandIn::on(directory.path(), count, 2 * capacity_bytes);
    let driver = Faulty::over(driver, faults);
    let device = |index| DeviceBudget { device: DeviceName::Index(index), capacity_bytes };
    let config = HbmConfig {
        devices: (0..count).map(device).collect(),
        class_budgets: BTreeMap::new(),
        streams: HbmConfig::STREAMS,
    };
    let level = HbmLevel::open(&driver, &config, HbmMetrics::default()).expect("it is there");
    (directory, DeviceMemory::On(Arc::new(level)))
}

/// One expert at each of so many layers, with images of a mebibyte.
fn large(layers: u32, placement: Placement) -> Checkpoint {
    let layers: Vec<u32> = (0..layers).collect();
    let mut tier = Tier::new("t", &[1], &layers);
    (tier.expert_bytes, tier.routers, tier.placement) = (MIB - 4096, false, placement);
    Checkpoint::new(&Shape::of(vec![tier]))
}

pub(super) async fn on_devices(layers: u32, placement: Placement, devices: DeviceMemory) -> Scene {
    let store = HierarchyConfig::new(64 * MIB);
    scene_of(large(layers, placement), store, bounds(64, 64), devices).await
}

impl Scene {
    pub(super) fn assert_there(&self, leased: &DeviceLeased) {
        let image = &self.checkpoint.blocks[&leased.key];
        let mut there = vec![0; image.len()];
        leased.block.read(0, &mut there).expect("it is there");
        assert!(there == **image, "{}", leased.key);
    }
}

pub(super) fn leases_of(acquired: &DeviceAcquired) -> Vec<u64> {
    acquired.iter().flatten().map(|leased| leased.lease).collect()
}

#[tokio::test]
async fn blocks_are_copied_to_a_device_once_and_leased_there() {
    let (_directory, devices) = devices(2, 16 * MIB);
    let scene = on_devices(6, Placement::ObjectStore, devices.clone()).await;
    let uuids = scene.engine.devices();
    assert_eq!(uuids.len(), 2);
    let worker = scene.worker();
    let both = [&uuids[0], &uuids[1]];
    let mut leases = Vec::new();
    for (n, uuid) in both.into_iter().enumerate() {
        let first = worker.acquire_on(uuid, &scene.generation, &keys(0..4), soon()).await;
        let again = worker.acquire_on(uuid, &scene.generation, &keys(0..4), soon()).await;
        let (first, again) = (first.expect("it is there"), again.expect("it is there"));
        for (first, again) in first.iter().zip(&again) {
            let first = first.as_ref().expect("there is room");
            let again = again.as_ref().expect("there is room");
            scene.assert_there(first);
            assert_eq!(first.place, again.place);
            assert_eq!(first.place.device.0 as usize, n);
            assert_eq!(again.medium, Medium::Hbm);
            assert!(first.lease != again.lease && worker.uses_on_device(first.place.slab));
        }
        leases.extend(leases_of(&first).into_iter().chain(leases_of(&again)));
    }
    let status = scene.engine.status();
    assert_eq!((status.leases.workers[0].leases, status.leases.bytes), (16, 0));
    assert_eq!(status.leases.workers[0].device_bytes, 8 * MIB, "each slot once");
    assert!(status.leases.workers[0].oldest_seconds.is_some());
    assert_eq!(status.hbm.devices.len(), 2);
    let id = scene.generation.record(&key(0), soon()).await.expect("it exists").id;
    assert_eq!(devices.level().expect("it is on").holders(&id).len(), 2);

    worker.release(&leases);
    assert_eq!(scene.engine.status().leases.workers[0].device_bytes, 0);
    // A key that does not exist keeps no other from its lease.
    let mixed = [key(5), key(77)];
    let mixed = worker.acquire_on("0", &scene.generation, &mixed, soon()).await.expect("asked");
    scene.assert_there(mixed[0].as_ref().expect("it exists"));
    assert_eq!(mixed[1].as_ref().expect_err("no layer 77").reason(), "LAYER_NOT_FOUND");
    drop(worker);
    assert_eq!(scene.engine.status().leases.workers.len(), 0);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_block_on_a_device_is_held_by_the_directory_until_it_is_let_go_of() {
    let (_directory, devices) = devices(2, 16 * MIB);
    let scene = on_devices(2, Placement::ObjectStore, devices.clone()).await;
    let level = devices.level().expect("it is on");
    let worker = scene.engine.worker(WorkerName::default(), true);
    let acquired = worker.acquire_on("0", &scene.generation, &keys(0..2), soon()).await;
    let acquired = acquired.expect("it is there");
    let leased = acquired[1].as_ref().expect("there is room");
    let (ordinal, place, id) =
        (leased.ordinal.expect("it wants it"), leased.place, leased.record.id);
    let memory = Memory::Device(place.device);
    let offer = worker.offer(&scene.generation, memory).expect("memory").expect("its first");
    assert!(worker.offer(&scene.generation, memory).expect("memory").is_none(), "once");
    let hazards = Hazards::receive(offer.cells.expect("its first")).expect("cells");
    let directory = DirectoryView::receive(offer.directory).expect("a directory");
    let uses = Uses::receive(offer.uses).expect("counters");
    // Each memory has its own, and the worker's cells are for all of them.
    let host = worker.offer(&scene.generation, Memory::Host).expect("memory").expect("it is new");
    let host = DirectoryView::receive(host.directory).expect("a directory");
    assert!(host.get(ordinal).is_none(), "it was not leased in host memory");
    let other = Memory::Device(tpad_hbm::DeviceId(1));
    let other = worker.offer(&scene.generation, other).expect("memory").expect("it is new");
    assert!(other.cells.is_none());
    assert!(DirectoryView::receive(other.directory).expect("a directory").get(ordinal).is_none());

    worker.release(&leases_of(&acquired));
    drop(acquired);
    let held = Hazards::hold(&hazards, &directory, ordinal).expect("it is there");
    assert_eq!(u64::from(held.entry().place().slab()), place.slab);
    assert_eq!(u64::from(held.entry().place().slot()) * place.slot_bytes, place.offset);
    (0..5).for_each(|_| uses.count(ordinal));
    scene.engine.tend_workers();
    let status = scene.engine.status().leases;
    assert_eq!((status.workers[0].leases, status.workers[0].device_bytes), (0, MIB));
    assert_eq!((status.bytes, status.direct_bytes), (0, 0), "it takes no host memory");

    // Evicted, nobody finds it, and nothing else comes to lie there.
    assert!(level.remove(&id, place.device));
    // The thread that told of its arrival may be about to let go of it.
    let gone = async {
        while directory.get(ordinal).is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("nobody has it");
    scene.engine.tend_workers();
    assert_eq!(level.status().devices[0].held_bytes, 2 * MIB);
    drop(held);
    scene.engine.tend_workers();
    assert_eq!(level.status().devices[0].held_bytes, MIB);
    // A worker that is gone holds nothing.
    let again = worker.acquire_on("0", &scene.generation, &keys(1..2), soon()).await;
    drop(again.expect("it is there"));
    let held = Hazards::hold(&hazards, &directory, ordinal).expect("it is there again");
    assert!(level.remove(&id, place.device));
    drop(worker);
    scene.engine.tend_workers();
    assert_eq!(level.status().devices[0].held_bytes, MIB, "of the other block");
    drop(held);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn who_waits_for_a_slot_hears_when_workers_let_go_without_a_word() {
    let (_directory, devices) = devices(1, 16 * MIB);
    let scene = on_devices(24, Placement::ObjectStore, devices).await;
    let reader = scene.engine.worker(WorkerName::default(), true);
    let acquired = reader.acquire_on("0", &scene.generation, &keys(0..15), soon()).await;
    let acquired = acquired.expect("it is there");
    let memory = Memory::Device(tpad_hbm::DeviceId(0));
    let offer = reader.offer(&scene.generation, memory).expect("memory").expect("its first");
    let hazards = Hazards::receive(offer.cells.expect("its first")).expect("cells");
    let directory = DirectoryView::receive(offer.directory).expect("a directory");
    let ordinals: Vec<u32> = acquired.iter().flatten().filter_map(|it| it.ordinal).collect();
    reader.release(&leases_of(&acquired));
    drop(acquired);
    let hold = |ordinal: &u32| Hazards::hold(&hazards, &directory, *ordinal).expect("it is there");
    let held: Vec<_> = ordinals.iter().map(hold).collect();
    // One slot is free, the others are read.
    let other = scene.worker();
    let soon_enough = || Instant::now() + Duration::from_millis(800);
    let one = other.acquire_on("0", &scene.generation, &[key(15)], soon_enough()).await;
    scene.assert_there(one.expect("asked")[0].as_ref().expect("there is a slot"));
    let keys = [key(16)];
    let waiting = other.acquire_on("0", &scene.generation, &keys, soon_enough());
    let let_go = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(held);
    };
    let (acquired, ()) = tokio::join!(waiting, let_go);
    scene.assert_there(acquired.expect("asked")[0].as_ref().expect("nobody reads any more"));
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn what_is_used_by_the_directory_stays_when_a_block_is_brought_before_the_next_look() {
    const HOT: usize = 8;
    for counted in [true, false] {
        let (_directory, devices) = devices(1, 16 * MIB);
        let scene = on_devices(24, Placement::ObjectStore, devices.clone()).await;
        let level = devices.level().expect("it is on");
        let worker = scene.engine.worker(WorkerName::default(), true);
        // As many as the device keeps, the hot ones first.
        let acquired = worker.acquire_on("0", &scene.generation, &keys(0..15), soon()).await;
        let acquired = acquired.expect("it is there");
        let memory = Memory::Device(tpad_hbm::DeviceId(0));
        let offer = worker.offer(&scene.generation, memory).expect("memory").expect("its first");
        let uses = Uses::receive(offer.uses).expect("counters");
        let hot: Vec<_> = acquired.iter().flatten().take(HOT).collect();
        let hot: Vec<_> =
            hot.iter().map(|it| (it.record.id, it.ordinal.expect("it wants it"))).collect();
        worker.release(&leases_of(&acquired));
        drop(acquired);
        if counted {
            hot.iter().for_each(|(_, ordinal)| uses.count(*ordinal));
        }
        // No look of the daemon's own comes between.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let more = worker.acquire_on("0", &scene.generation, &keys(15..22), soon()).await;
        let more = more.expect("it is there");
        assert!(more.iter().all(Result::is_ok));
        let kept = hot.iter().filter(|(id, _)| level.contains(id, tpad_hbm::DeviceId(0))).count();
        if counted {
            assert_eq!(kept, HOT, "they were used last");
        } else {
            assert!(kept < HOT, "what nobody counts goes: {kept}");
        }
        drop(more);
        scene.engine.shutdown().await;
    }
}

#[tokio::test]
async fn a_directory_of_a_device_is_empty_when_its_level_is_off_or_its_generation_over() {
    for breaks in [false, true] {
        let faults = Arc::<Faults>::default();
        let (_directory, devices) = faulty_devices(1, 16 * MIB, &faults);
        let scene = on_devices(2, Placement::ObjectStore, devices.clone()).await;
        let worker = scene.engine.worker(WorkerName::default(), true);
        let acquired = worker.acquire_on("0", &scene.generation, &keys(0..1), soon()).await;
        let acquired = acquired.expect("it is there");
        let leased = acquired[0].as_ref().expect("there is room");
        let ordinal = leased.ordinal.expect("it wants it");
        let memory = Memory::Device(leased.place.device);
        let offer = worker.offer(&scene.generation, memory).expect("memory").expect("its first");
        let directory = DirectoryView::receive(offer.directory).expect("a directory");
        assert!(directory.get(ordinal).is_some());
        if breaks {
            faults.copies_to_death.store(1, Ordering::SeqCst);
            let last = worker.acquire_on("0", &scene.generation, &keys(1..2), soon()).await;
            assert!(last.expect("it is there")[0].is_err(), "the context dies");
        } else {
            scene.generation.retire();
        }
        assert!(directory.get(ordinal).is_none(), "{breaks}");
        scene.engine.shutdown().await;
    }
}

#[tokio::test]
async fn a_device_that_is_not_there_is_told_with_what_is() {
    let (_directory, devices) = devices(1, 16 * MIB);
    for (devices, told) in
        [(devices, "this daemon has GPU-"), (DeviceMemory::Off("no driver".into()), "no driver")]
    {
        let scene = on_devices(1, Placement::ObjectStore, devices).await;
        let worker = scene.worker();
        let none = worker.acquire_on("GPU-77", &scene.generation, &keys(0..1), soon()).await;
        let error = none.expect_err("there is none");
        assert_eq!(
            (error.kind(), error.reason()),
            (ErrorKind::FailedPrecondition, "DEVICE_NOT_FOUND")
        );
        assert!(
            error.to_string().contains(told) && error.to_string().contains("GPU-77"),
            "{error}"
        );
        scene.engine.shutdown().await;
    }
}

#[tokio::test]
async fn when_a_device_is_leased_whole_the_next_is_refused_at_its_deadline() {
    let (_directory, devices) = devices(1, 16 * MIB);
    let scene = on_devices(24, Placement::ObjectStore, devices).await;
    let worker = scene.worker();
    let mut leased = Vec::new();
    let error = loop {
        let deadline = Instant::now() + Duration::from_millis(400);
        let next = u32::try_from(leased.len()).expect("few");
        let acquired = worker.acquire_on("0", &scene.generation, &[key(next)], deadline).await;
        match acquired.expect("the device is there").remove(0) {
            Ok(one) => leased.push(one),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    assert!(error.to_string().contains("levels.hbm.capacity"), "{error}");
    assert!((8..=16).contains(&leased.len()), "{} of 16 slots", leased.len());
    leased.iter().for_each(|leased| scene.assert_there(leased));
    // Host memory has it all the same.
    let next = u32::try_from(leased.len()).expect("few");
    let host = worker.acquire(&scene.generation, &[key(next)], soon()).await;
    scene.assert_right(host.expect("within bounds")[0].as_ref().expect("there is room"));
    worker.release(&leased.iter().map(|leased| leased.lease).collect::<Vec<_>>());
    drop(leased);
    let acquired = worker.acquire_on("0", &scene.generation, &[key(next)], soon()).await;
    scene.assert_there(acquired.expect("asked")[0].as_ref().expect("there is room again"));
    scene.engine.shutdown().await;
}

/// Batches that fit alone and not together: each comes to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_want_most_of_a_device_do_not_wait_for_each_other() {
    let (_directory, devices) = devices(1, 16 * MIB);
    let scene = Arc::new(on_devices(24, Placement::ObjectStore, devices).await);
    let mut workers = JoinSet::new();
    for n in 0..4_u64 {
        let scene = Arc::clone(&scene);
        workers.spawn(async move {
            let worker = scene.worker();
            let mut random = ChaCha8Rng::seed_from_u64(n);
            for _ in 0..12 {
                let keys: Vec<_> = (0..8).map(|_| key(random.random_range(0..24))).collect();
                let acquired = worker.acquire_on("0", &scene.generation, &keys, soon()).await;
                let acquired = acquired.expect("the device is there");
                for leased in &acquired {
                    scene.assert_there(leased.as_ref().expect("it fits, alone"));
                }
                worker.release(&leases_of(&acquired));
            }
        });
    }
    let done = tokio::time::timeout(Duration::from_secs(120), workers.join_all()).await;
    done.expect("nobody waits for ever");
    assert_eq!(scene.engine.status().leases.workers.len(), 0);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_tier_at_home_on_devices_is_brought_to_each() {
    let (_directory, devices) = devices(2, 16 * MIB);
    let scene = on_devices(6, Placement::Hbm, devices.clone()).await;
    let home = async {
        loop {
            let tier = scene.engine.status().models[0].tiers[0].clone();
            if tier.warm.state == crate::WarmState::Warm {
                return tier;
            }
            tokio::task::yield_now().await;
        }
    };
    let tier = tokio::time::timeout(Duration::from_secs(20), home).await.expect("it fits");
    assert_eq!((tier.home, tier.home_reason), (Medium::Hbm, None));
    assert_eq!((tier.missing_bytes, tier.resident_bytes.hbm), (0, 6 * MIB));
    let level = devices.level().expect("it is on");
    for layer in 0..6 {
        let record = scene.generation.record(&key(layer), soon()).await.expect("it exists");
        assert_eq!(level.holders(&record.id).len(), 2);
        assert_eq!(scene.generation.medium_of(&record), Medium::Hbm);
    }
    let usage = level.status().devices[0].classes.clone();
    let own = usage.iter().find(|usage| usage.class.as_deref() == Some("t")).expect("a budget");
    assert_eq!((own.blocks, own.bytes), (6, 6 * MIB));
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_new_major_comes_home_to_a_device_that_the_old_one_fills_however_often_it_was_used() {
    let (_directory, devices) = devices(1, 8 * MIB);
    let mut scene = on_devices(6, Placement::Hbm, devices.clone()).await;
    let home = async |scene: &Scene| {
        let home = async {
            while scene.engine.status().models[0].tiers[0].warm.state != crate::WarmState::Warm {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), home).await.expect("it fits");
    };
    home(&scene).await;
    let worker = scene.worker();
    for _ in 0..50 {
        let acquired = worker.acquire_on("0", &scene.generation, &keys(0..6), soon()).await;
        worker.release(&leases_of(&acquired.expect("they are there")));
    }
    // Other bytes under the same keys.
    let mut tier = Tier::new("t", &[1], &[0, 1, 2, 3, 4, 5]);
    (tier.expert_bytes, tier.routers, tier.placement) = (MIB - 4096, false, Placement::Hbm);
    scene.checkpoint.publish(&Shape { revision: 2, ..Shape::of(vec![tier]) });
    scene.engine.reload("m", soon()).await.expect("it is there");
    let generation = scene.engine.view("m").expect("it is configured").generation;
    let generation = generation.expect("it serves");
    assert_eq!(generation.manifest().model_version.major, 2);
    home(&scene).await;
    let level = devices.level().expect("it is on");
    for layer in 0..6 {
        let record = generation.record(&key(layer), soon()).await.expect("it exists");
        assert_eq!(level.holders(&record.id).len(), 1, "{layer}");
    }
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_tier_comes_home_to_host_memory_when_its_device_breaks() {
    let faults = Arc::<Faults>::default();
    let (_directory, devices) = faulty_devices(1, 16 * MIB, &faults);
    let scene = on_devices(6, Placement::Hbm, devices).await;
    let home = async |medium| {
        let home = async {
            loop {
                let tier = scene.engine.status().models[0].tiers[0].clone();
                if tier.warm.state == crate::WarmState::Warm && tier.home == medium {
                    return tier;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), home).await.expect("it fits")
    };
    home(Medium::Hbm).await;
    let id = scene.generation.record(&key(0), soon()).await.expect("it exists").id;
    let level = scene.engine.device_memory().level().expect("it is on").clone();
    assert!(level.remove(&id, tpad_hbm::DeviceId(0)));
    faults.copies_to_death.store(1, Ordering::SeqCst);
    let worker = scene.worker();
    let last = worker.acquire_on("0", &scene.generation, &keys(0..1), soon()).await;
    assert!(last.expect("it is there")[0].is_err(), "the context dies");
    let tier = home(Medium::Dram).await;
    assert!(tier.home_reason.is_some(), "{tier:?}");
    assert_eq!((tier.missing_bytes, tier.resident_bytes.dram), (0, 6 * MIB));
    scene.engine.shutdown().await;
}
