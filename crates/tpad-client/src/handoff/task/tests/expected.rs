//! What is likely to be acquired on a device next.

use tpad_handoff::{Directory, Entry, Place, UsesView};

use super::device::Scene;
use super::*;
use crate::Gpu;

fn at(layer: u32) -> BlockKey {
    let key = ExpertKey { tier: "t".parse().expect("an id"), group: 0, expert: 0 };
    BlockKey::Expert { key, layer }
}

impl Scene {
    /// What it says to expect next, and on which device.
    async fn expected(&mut self) -> (Vec<BlockKey>, String) {
        match self.peer.read().await {
            Some(worker_message::Message::Expect(expect)) => {
                assert_eq!((expect.model.as_str(), expect.generation), ("m", 0));
                let keys = expect.keys.into_iter().map(|key| key.try_into().expect("a key"));
                (keys.collect(), expect.device)
            }
            other => panic!("nothing is expected: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_expected_is_told_behind_the_calls_before_it_and_once() {
    let mut scene = Scene::new().await;
    let (handoff, gpu) = (scene.handoff.clone(), scene.gpu.clone());
    // Nothing was expected before: that need not be given up.
    handoff.expect_on(&gpu, "m", &[]);
    let call = tokio::spawn({
        let (handoff, gpu) = (handoff.clone(), gpu.clone());
        async move { handoff.acquire_on(&gpu, "m", &[key()], AcquireOptions::default()).await }
    });
    tokio::task::yield_now().await;
    let many: Vec<BlockKey> = (1..9).map(at).collect();
    handoff.expect_on(&gpu, "m", &many);
    handoff.expect_on(&gpu, "m", &many[2..3]);
    handoff.expect_on(&gpu, "m", &[]);
    handoff.expect_on(&gpu, "m", &[]);
    handoff.expect_on(&Gpu::on(&scene.driver, "1").expect("it is there"), "m", &many);
    handoff.expect_on(&gpu, "m", &many[..1]);

    scene.peer.call().await;
    let uuid = gpu.uuid().to_owned();
    // As many as the daemon takes.
    assert_eq!(scene.expected().await, (many[..4].to_vec(), uuid.clone()));
    assert_eq!(scene.expected().await, (many[2..3].to_vec(), uuid.clone()));
    assert_eq!(scene.expected().await, (vec![], uuid.clone()));
    assert_eq!(scene.expected().await, (many[..1].to_vec(), uuid));
    call.abort();
}

#[tokio::test]
async fn what_lies_on_the_device_is_not_told() {
    let scene = Scene::new().await;
    let (uuid, directories) = (scene.gpu.uuid(), &scene.handoff.directories);
    let made = Directory::create(4, 9).expect("memory");
    let uses = UsesView::create(4, 9).expect("memory");
    let sent = |file: std::os::fd::BorrowedFd<'_>| file.try_clone_to_owned().expect("a file");
    let sent = [sent(made.descriptor()), sent(uses.descriptor())];
    directories.watch(uuid, "m", (2, 3), None, sent);
    let (keys, mut scene) = ([key(), at(1)], scene);
    let outcome = lease(5, 4096).outcome;
    let Some(wire::outcome::Outcome::Lease(wire::Lease { block: Some(block), .. })) = outcome
    else {
        panic!("no lease");
    };
    let block = Arc::new(crate::stream::placed_block(block, 0).expect("a block"));
    scene.handoff.directories.learn(scene.gpu.uuid(), "m", 3, vec![(0, block)]);

    scene.handoff.expect_on(&scene.gpu, "m", &keys);
    assert_eq!(scene.expected().await.0, keys, "it was there once");
    let entry = Entry::new(1, Place::new(1, 1).expect("a place"));
    made.publish(0, entry).expect("it is in bounds");
    scene.handoff.expect_on(&scene.gpu, "m", &keys);
    assert_eq!(scene.expected().await.0, keys[1..]);
    scene.handoff.expect_on(&scene.gpu, "m", &keys[..1]);
    assert_eq!(scene.expected().await.0, [], "it gives up what it expected");
}

#[tokio::test]
async fn what_is_expected_of_a_daemon_that_has_ended_is_nobodys_business() {
    let scene = Scene::new().await;
    let Scene { handoff, peer, gpu, .. } = scene;
    drop(peer);
    // Before it is seen, and after.
    for _ in 0..200 {
        handoff.expect_on(&gpu, "m", &[key()]);
    }
    while handoff.over().is_none() {
        handoff.expect_on(&gpu, "m", &[key()]);
        tokio::task::yield_now().await;
    }
    for _ in 0..200 {
        handoff.expect_on(&gpu, "m", &[key()]);
    }
    let error = handoff.acquire_on(&gpu, "m", &[key()], AcquireOptions::default()).await;
    assert!(matches!(error, Err(Error::Disconnected { .. })), "{error:?}");
}
