//! Blocks that a worker expects on a device, of the stand-in.

use tpad_hbm::{DeviceId, HbmLevel};
use tpad_manifest::Placement;
use tpad_store::Medium;

use super::on_device::{MIB, devices, leases_of, on_devices};
use super::*;

const DEVICE: DeviceId = DeviceId(0);

impl Scene {
    fn level(&self) -> &Arc<HbmLevel> {
        self.engine.device_memory().level().expect("it is on")
    }

    /// Which of these are on the device.
    async fn there(&self, keys: &[BlockKey]) -> Vec<bool> {
        let mut there = Vec::new();
        for key in keys {
            let record = self.generation.record(key, soon()).await.expect("it exists");
            there.push(self.level().contains(&record.id, DEVICE));
        }
        there
    }

    /// Waits until all of these are on the device.
    async fn come(&self, keys: &[BlockKey]) {
        let come = async {
            while self.there(keys).await.contains(&false) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), come).await.expect("there is room");
    }
}

#[tokio::test]
async fn what_is_expected_comes_to_the_device_without_a_lease() {
    let (_directory, devices) = devices(2, 16 * MIB);
    let scene = on_devices(6, Placement::ObjectStore, devices).await;
    let uuid = &scene.engine.devices()[0];
    let worker = scene.worker();
    worker.expect_on(uuid, &scene.generation, keys(0..4));
    scene.come(&keys(0..4)).await;
    let status = scene.engine.status();
    assert_eq!((status.leases.workers[0].leases, status.leases.bytes), (0, 0));
    assert_eq!(status.hbm.devices[1].blocks, 0, "the other device was not named");
    let acquired = worker.acquire_on(uuid, &scene.generation, &keys(0..4), soon()).await;
    for leased in acquired.expect("it is there") {
        let leased = leased.expect("there is room");
        scene.assert_there(&leased);
        assert_eq!(leased.medium, Medium::Hbm);
    }
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn what_was_expected_before_is_given_up_soon_after_and_not_at_once() {
    let (_directory, devices) = devices(1, 16 * MIB);
    let scene = on_devices(6, Placement::ObjectStore, devices).await;
    let (worker, other) = (scene.worker(), scene.worker());
    for next in [keys(2..4), Vec::new()] {
        worker.expect_on("0", &scene.generation, keys(0..2));
        let before = lock(&worker.state.expected).current.handle().expect("it was begun just now");
        worker.expect_on("0", &scene.generation, next.clone());
        // Whoever asks for it now finds it on its way.
        assert!(!before.is_finished());
        let acquired = worker.acquire_on("0", &scene.generation, &keys(0..2), soon()).await;
        let acquired = acquired.expect("it is there");
        acquired.iter().flatten().for_each(|leased| scene.assert_there(leased));
        worker.release(&leases_of(&acquired));
        let given_up = async {
            while !before.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), given_up).await.expect("it is given up");
        scene.come(&next).await;
    }
    // A device that is not there gives up as well.
    worker.expect_on("GPU-77", &scene.generation, keys(0..1));
    other.expect_on("0", &scene.generation, keys(5..6));
    scene.come(&keys(5..6)).await;
    assert!(!worker.expects());
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_is_gone_expects_nothing() {
    let (_directory, devices) = devices(1, 16 * MIB);
    let scene = on_devices(4, Placement::ObjectStore, devices).await;
    let (worker, other) = (scene.worker(), scene.worker());
    worker.expect_on("0", &scene.generation, keys(0..2));
    drop(worker);
    other.expect_on("0", &scene.generation, keys(2..4));
    scene.come(&keys(2..4)).await;
    assert_eq!(scene.there(&keys(0..2)).await, [false; 2]);
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn a_key_that_does_not_exist_keeps_no_other_from_coming() {
    let (_directory, devices) = devices(1, 16 * MIB);
    let scene = on_devices(2, Placement::ObjectStore, devices).await;
    let worker = scene.worker();
    worker.expect_on("0", &scene.generation, vec![key(0), key(77), key(1)]);
    scene.come(&keys(0..2)).await;
    scene.engine.shutdown().await;
}

#[tokio::test]
async fn what_is_expected_takes_no_room_of_what_is_leased() {
    let (_directory, devices) = devices(1, 16 * MIB);
    let scene = on_devices(24, Placement::ObjectStore, devices).await;
    let worker = scene.worker();
    let acquired = worker.acquire_on("0", &scene.generation, &keys(0..12), soon()).await;
    let acquired = acquired.expect("it is there");
    worker.expect_on("0", &scene.generation, keys(12..24));
    // It is over when the rest has come or was refused.
    let over = async {
        while worker.expects() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), over).await.expect("it waits for no room");
    assert_eq!(scene.there(&keys(0..12)).await, [true; 12]);
    assert!(scene.there(&keys(12..24)).await.contains(&false), "there is not room for all");
    acquired.iter().flatten().for_each(|leased| scene.assert_there(leased));
    worker.release(&leases_of(&acquired));
    scene.engine.shutdown().await;
}

impl Worker {
    /// Whether something that it expects is on its way.
    fn expects(&self) -> bool {
        lock(&self.state.expected).current.is_under_way()
    }
}
