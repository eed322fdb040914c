//! Blocks on a device: a stand-in, which is no GPU.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tpad_cuda::fault::{Faults, Faulty, checksum};
use tpad_cuda::{Driver, HostCopy, Slab, StandIn};

use super::*;
use crate::{AcquiredOn, Gpu, HeldDeviceBlock, Kind};

const SLAB_BYTES: u64 = 2 << 20;

/// A worker with a device, its daemon, and memory of the daemon's there.
pub(super) struct Scene {
    pub(super) handoff: Handoff,
    pub(super) peer: Peer,
    pub(super) gpu: Gpu,
    /// With the image at `4096`.
    made: Arc<dyn Slab>,
    pub(super) driver: Arc<dyn Driver>,
    _directory: tempfile::TempDir,
}

impl Scene {
    pub(super) async fn new() -> Self {
        Self::over(|driver| driver).await
    }

    async fn over(worker: impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let driver = StandIn::on(directory.path(), 2, 4 * SLAB_BYTES);
        let gpu = Gpu::on(&worker(Arc::clone(&driver)), "0").expect("it is there");
        let made = driver.open(&"0".parse().expect("a name")).expect("it is there");
        let made = made.create(SLAB_BYTES).expect("there is room");
        made.write(4096, IMAGE).expect("it is the daemon's");
        let devices = vec![gpu.uuid().to_owned()];
        let (handoff, peer) = pair_with(directory.path(), devices).await;
        Self { handoff, peer, gpu, made, driver, _directory: directory }
    }

    fn slab(&self, slab: u64, device: &str) -> wire::Slab {
        let (bytes, slot_bytes) = (SLAB_BYTES, 4096);
        wire::Slab { slab, bytes, slot_bytes, device: device.to_owned() }
    }

    /// Acquires as many blocks as there are outcomes, which come with these slabs.
    async fn acquire(
        &mut self,
        outcomes: Vec<wire::Outcome>,
        slabs: Vec<wire::Slab>,
    ) -> Result<AcquiredOn, Error> {
        let files = slabs.iter().map(|_| self.made.descriptor().expect("it is there")).collect();
        let (keys, peer) = (vec![key(); outcomes.len()], &mut self.peer);
        let daemon = async {
            let Some(worker_message::Message::Acquire(asked)) = peer.read().await else {
                panic!("no call");
            };
            assert_eq!(asked.device, self.gpu.uuid());
            peer.write(acquired_with(asked.call, outcomes, slabs), files).await;
        };
        let options = AcquireOptions::default();
        let call = self.handoff.acquire_on(&self.gpu, "m", &keys, options);
        tokio::join!(call, daemon).0
    }

    /// Acquires the block of slab 1, which is new.
    async fn block(&mut self) -> HeldDeviceBlock {
        let slab = self.slab(1, self.gpu.uuid());
        let got = self.acquire(vec![lease(5, 4096)], vec![slab]).await.expect("it is leased");
        got.blocks.into_iter().next().expect("one").expect("it is leased")
    }

    async fn forget(&mut self, device_slabs: Vec<u64>) {
        let forget = wire::Forget { slabs: Vec::new(), device_slabs };
        self.peer.write(daemon_message::Message::Forget(forget), Vec::new()).await;
    }

    async fn released(&mut self) -> Vec<u64> {
        match self.peer.read().await {
            Some(worker_message::Message::Release(release)) => release.leases,
            other => panic!("no release: {other:?}"),
        }
    }

    /// Slabs of hosts and of devices.
    async fn forgotten(&mut self) -> (Vec<u64>, Vec<u64>) {
        match self.peer.read().await {
            Some(worker_message::Message::Forgotten(it)) => (it.slabs, it.device_slabs),
            other => panic!("nothing is forgotten: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_block_on_a_device_is_given_back_when_the_work_that_may_read_it_is_done() {
    let mut scene = Scene::new().await;
    let block = scene.block().await;
    assert_eq!(block.read(0..256).expect("it is there"), IMAGE);
    assert_eq!(block.read(255..256).expect("it is there"), [7]);
    assert!(block.read(256..256).expect("nothing").is_empty());
    assert_eq!(block.read(0..257).expect_err("it ends").kind(), Kind::InvalidArgument);
    let (memory, offset) = block.memory();
    assert_eq!((offset, block.address()), (4096, memory.address() + 4096));
    assert_eq!((block.image_bytes(), block.id().to_string().len()), (256, 64));
    let tensor = block.tensors().next().expect("one");
    assert_eq!((tensor.name, tensor.shape, tensor.bytes), ("w", &[256][..], 256));
    assert_eq!(tensor.address, block.address());

    let delay = Duration::from_millis(150);
    let late = scene.gpu.device().read_late(memory, offset, 256, delay).expect("it starts");
    let clone = block.clone();
    drop(block);
    assert_eq!(scene.gpu.pending(), 0, "a clone holds it");
    drop(clone);
    scene.forget(vec![1]).await;
    assert_eq!(scene.released().await, [5]);
    assert!(late.is_done().expect("it says"), "the lease ends after the work");
    assert_eq!(late.checksum().expect("it read"), checksum(IMAGE));
    assert_eq!(scene.forgotten().await, (vec![], vec![1]));
}

#[tokio::test]
async fn slabs_of_devices_are_apart_from_those_of_the_host_and_unmapped_when_nothing_reads_them() {
    let mut scene = Scene::new().await;
    let block = scene.block().await;
    let daemon = async {
        let call = scene.peer.call().await;
        scene.peer.write(acquired(call, vec![lease(6, 4096)], true), vec![slab()]).await;
    };
    let keys = [key()];
    let call = scene.handoff.acquire("m", &keys, AcquireOptions::default());
    let (got, ()) = tokio::join!(call, daemon);
    let on_host = got.expect("an answer").blocks.remove(0).expect("it is leased");
    // Another lease of the slab brings none with it: it is mapped once.
    let again = scene.acquire(vec![lease(7, 4096)], vec![]).await.expect("an answer");
    let again = again.blocks.into_iter().next().expect("one").expect("it is leased");
    assert_eq!(again.address(), block.address());
    drop(again);
    assert_eq!(scene.released().await, [7]);

    // The daemon may ask for what it never sent.
    scene.forget(vec![1, 8]).await;
    assert_eq!(scene.forgotten().await, (vec![], vec![8]));
    assert_eq!((block.read(0..256).expect("it is held"), &on_host[..]), (IMAGE.to_vec(), IMAGE));
    drop(block);
    assert_eq!(scene.released().await, [5]);
    assert_eq!(scene.forgotten().await, (vec![], vec![1]));
    let none = scene.acquire(vec![lease(9, 4096)], vec![]).await.expect("an answer");
    assert!(none.blocks[0].is_err(), "it is not mapped any more");
    assert_eq!(scene.released().await, [9]);
    // Sent again it is mapped again.
    let block = scene.block().await;
    assert_eq!((block.read(0..256).expect("it is there"), &on_host[..]), (IMAGE.to_vec(), IMAGE));
}

#[tokio::test]
async fn calls_that_need_a_slab_at_once_get_one_mapping() {
    let mut scene = Scene::new().await;
    let slab = scene.slab(1, scene.gpu.uuid());
    let (keys, options) = ([key()], AcquireOptions::default());
    let ask = || scene.handoff.acquire_on(&scene.gpu, "m", &keys, options);
    let daemon = async {
        let calls = [scene.peer.call().await, scene.peer.call().await];
        let files = vec![scene.made.descriptor().expect("it is there")];
        let first = acquired_with(calls[0], vec![lease(5, 4096)], vec![slab]);
        scene.peer.write(first, files).await;
        let second = acquired_with(calls[1], vec![lease(6, 4096)], vec![]);
        scene.peer.write(second, vec![]).await;
    };
    let (one, other, ()) = tokio::join!(ask(), ask(), daemon);
    let [one, other] = [one, other].map(|got| {
        let block = got.expect("an answer").blocks.remove(0);
        block.expect("it is leased")
    });
    assert_eq!(one.address(), other.address());
    assert_eq!(other.read(0..256).expect("it is there"), IMAGE);
}

#[tokio::test]
async fn leases_that_make_no_sense_on_a_device_are_errors_and_given_back() {
    let mut scene = Scene::new().await;
    let (here, elsewhere) = (scene.gpu.uuid().to_owned(), "GPU-elsewhere");
    let mut on_another = lease(8, 4096);
    if let Some(wire::outcome::Outcome::Lease(lease)) = &mut on_another.outcome {
        lease.slab = 2;
    }
    let slabs = vec![scene.slab(1, &here), scene.slab(2, elsewhere)];
    let wrong = vec![lease(5, SLAB_BYTES), lease(6, u64::MAX), lease(7, 4352), on_another];
    let blocks = scene.acquire(wrong, slabs).await.expect("an answer").blocks;
    for block in &blocks {
        let error = block.as_ref().expect_err("none makes sense");
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }
    let text = format!("{:?}", blocks[3]);
    assert!(text.contains(&here) && text.contains(elsewhere), "{text}");
    let mut released = Vec::new();
    while released.len() < 4 {
        released.extend(scene.released().await);
    }
    released.sort_unstable();
    assert_eq!(released, [5, 6, 7, 8]);
    let failure = wire::Failure {
        code: 8,
        message: "the device is full".to_owned(),
        ..wire::Failure::default()
    };
    let full = wire::Outcome { outcome: Some(wire::outcome::Outcome::Failure(failure)) };
    let some = scene.acquire(vec![full, lease(9, 4096)], vec![]).await.expect("an answer").blocks;
    assert_eq!(some[0].as_ref().expect_err("full").kind(), Kind::ResourceExhausted);
    assert_eq!(some[1].as_ref().expect("leased").read(0..256).expect("it is there"), IMAGE);
}

#[tokio::test]
async fn memory_that_cannot_be_mapped_fails_the_call_and_its_leases_are_given_back() {
    let mut scene = Scene::new().await;
    let mut larger = scene.slab(1, scene.gpu.uuid());
    larger.bytes *= 2;
    for (n, slabs) in [vec![larger], vec![]].into_iter().enumerate() {
        let leases = vec![lease(5, 4096), lease(6, 4096)];
        let error = scene.acquire(leases, slabs).await.expect_err("it is not so large");
        assert!(matches!(error, Error::Gpu { .. }), "{n}: {error}");
        let mut released = scene.released().await;
        while released.len() < 2 {
            released.extend(scene.released().await);
        }
    }
    assert_eq!(scene.gpu.pending(), 0, "nobody has seen them");
    scene.forget(vec![1]).await;
    assert_eq!(scene.forgotten().await, (vec![], vec![1]));
    scene.block().await;
}

#[tokio::test]
async fn a_dead_context_fails_the_call_and_says_what_helps() {
    let faults = Arc::<Faults>::default();
    let mut scene = Scene::over(|driver| Faulty::over(driver, &faults)).await;
    let held = scene.block().await;
    faults.copies_to_death.store(1, Ordering::SeqCst);
    let own = scene.gpu.device().create(4096).expect("there is room");
    let copy = HostCopy { from: Bytes::from_static(b"dies"), to: own, offset: 0 };
    let stream = scene.gpu.device().stream().expect("there is one");
    assert!(stream.copy(copy).expect("it begins").wait().is_err());
    let slab = scene.slab(2, scene.gpu.uuid());
    let mut there = lease(6, 4096);
    if let Some(wire::outcome::Outcome::Lease(lease)) = &mut there.outcome {
        lease.slab = 2;
    }
    let error = scene.acquire(vec![there], vec![slab]).await.expect_err("it is dead");
    assert_eq!((error.kind(), faults.fired()), (Kind::FailedPrecondition, 2));
    let text = error.to_string();
    assert!(text.contains("ILLEGAL_ADDRESS") && text.contains("restart"), "{text}");
    assert_eq!(scene.released().await, [6]);
    // Nothing of a dead context reads any more.
    drop(held);
    assert_eq!(scene.released().await, [5]);
}

#[tokio::test]
async fn a_gpu_that_the_daemon_does_not_hand_over_is_not_asked_for() {
    let mut scene = Scene::new().await;
    let other = Gpu::on(&scene.driver, "1").expect("it is there");
    let keys = [key()];
    let options = AcquireOptions::default();
    let error = scene.handoff.acquire_on(&other, "m", &keys, options).await.expect_err("it is not");
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    let text = error.to_string();
    assert!(text.contains(other.uuid()) && text.contains(scene.gpu.uuid()), "{text}");
    assert_eq!(scene.handoff.devices(), [scene.gpu.uuid()]);
    // The next call is the first that comes.
    scene.block().await;
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_leaves_no_lease() {
    let mut scene = Scene::new().await;
    let (handoff, gpu) = (scene.handoff.clone(), scene.gpu.clone());
    let call = tokio::spawn(async move {
        handoff.acquire_on(&gpu, "m", &[key()], AcquireOptions::default()).await
    });
    let number = scene.peer.call().await;
    call.abort();
    assert!(call.await.expect_err("it was aborted").is_cancelled());
    let slab = scene.slab(1, scene.gpu.uuid());
    let files = vec![scene.made.descriptor().expect("it is there")];
    scene.peer.write(acquired_with(number, vec![lease(5, 4096)], vec![slab]), files).await;
    assert_eq!(scene.released().await, [5]);
}

#[tokio::test]
async fn what_is_held_on_a_device_stays_when_the_daemon_ends_or_breaks_the_protocol() {
    for breaks in [false, true] {
        let mut scene = Scene::new().await;
        let block = scene.block().await;
        if breaks {
            // A slab without its descriptor.
            let lost = scene.slab(2, scene.gpu.uuid());
            let (keys, peer) = ([key()], &mut scene.peer);
            let daemon = async {
                let call = peer.call().await;
                peer.write(acquired_with(call, vec![lease(6, 4096)], vec![lost]), vec![]).await;
            };
            let options = AcquireOptions::default();
            let call = scene.handoff.acquire_on(&scene.gpu, "m", &keys, options);
            let (got, ()) = tokio::join!(call, daemon);
            assert!(matches!(got, Err(Error::Disconnected { .. })), "{got:?}");
        }
        let Scene { handoff, peer, gpu, made, _directory, .. } = scene;
        let mut peer = Some(peer);
        if !breaks {
            peer = None;
            while handoff.over().is_none() {
                tokio::task::yield_now().await;
            }
        }
        drop((handoff, made));
        assert_eq!(block.read(0..256).expect("it is held"), IMAGE);
        drop(block);
        gpu.drain();
        assert_eq!(gpu.pending(), 0);
        if let Some(mut peer) = peer {
            while peer.read().await.is_some() {}
        }
    }
}
