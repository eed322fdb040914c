//! Blocks that are held without a message.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tpad_client::{AcquireOptions, Client, Handoff, HeldBlock};
use tpad_manifest::BlockKey;
use tpad_proto::handoff::v1::daemon_message::Message;
use tpad_tests::checkpoint::{said, tpactl};
use tpad_tests::scene::play;
use tpad_tests::worker::Worker;

use super::slabs::fetch;
use super::stage::{SOON, Stage, keys};

/// Acquires everything once and lets go of it.
async fn met(stage: &Stage, keys: &[BlockKey]) -> Handoff {
    let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
    let acquired = handoff.acquire("mixtral", keys, AcquireOptions::default()).await;
    for block in acquired.expect("within bounds").blocks {
        drop(block.expect("it is leased"));
    }
    handoff
}

fn is_right(block: &HeldBlock) -> bool {
    blake3::hash(block).as_bytes() == block.id().as_bytes()
}

/// Waits until the daemon says so of what is held without a message.
async fn until_held(stage: &Stage, bytes: impl Fn(u64) -> bool) {
    let began = Instant::now();
    loop {
        let leases = stage.leases().await;
        let held = leases["direct_bytes"].as_u64().expect("a number");
        if bytes(held) && leases["bytes"] == 0 {
            return;
        }
        assert!(began.elapsed() < SOON, "{leases:#}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn what_was_acquired_once_is_held_without_a_message_and_the_daemon_knows() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let keys = keys(&stage.daemon.address()).await;
        let other = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        assert!(other.hold("mixtral", &keys[0]).is_none(), "it never acquired it");
        let handoff = met(&stage, &keys).await;
        let granted = async || stage.daemon.metric("tpad_leases_granted_total", &[]).await;
        let before = granted().await;
        let held: Vec<_> =
            keys.iter().map(|key| handoff.hold("mixtral", key).expect("it is there")).collect();
        assert!(held.iter().all(is_right));
        assert!(keys.iter().zip(&held).all(|(key, block)| block.key() == key));
        let all = handoff.acquire("mixtral", &keys, AcquireOptions::default()).await;
        let all = all.expect("it asks nobody");
        assert_eq!((all.blocks.len(), all.generation), (keys.len(), 1));
        drop(all);
        let bytes: u64 = held.iter().map(|block| block.len() as u64).sum();
        until_held(&stage, |held| held >= bytes).await;
        assert_eq!(granted().await.to_bits(), before.to_bits(), "no lease was asked for");
        let all = 2.0 * f64::from(u32::try_from(keys.len()).expect("few"));
        let began = Instant::now();
        loop {
            let uses = stage.daemon.metric("tpad_direct_uses_total", &[]).await;
            if uses >= all {
                break;
            }
            assert!(began.elapsed() < SOON, "{uses} of {all}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let listed = tpactl().args(["--addr", &stage.daemon.address(), "leases"]).output();
        let table = said(&listed.expect("tpactl runs"));
        assert!(table.contains("DIRECT"), "{table}");

        assert!(handoff.hold("other", &keys[0]).is_none());
        // The handle may go before what it gave.
        drop(handoff);
        assert!(held.iter().all(is_right));
        drop(held);
        until_held(&stage, |held| held == 0).await;
        drop(other);
        stage.free().await;
    });
}

#[test]
fn a_block_that_is_evicted_stays_where_it_is_held_and_comes_back_elsewhere() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let keys = keys(&stage.daemon.address()).await;
        let handoff = met(&stage, &keys).await;
        let held: Vec<_> =
            keys.iter().map(|key| handoff.hold("mixtral", key).expect("it is there")).collect();
        for round in 0..3 {
            evict(&stage);
            assert!(keys.iter().all(|key| handoff.hold("mixtral", key).is_none()), "{round}");
            let again = handoff.acquire("mixtral", &keys, AcquireOptions::default()).await;
            for (old, new) in held.iter().zip(again.expect("within bounds").blocks) {
                let new = new.expect("it is leased");
                assert_ne!(old.as_ptr(), new.as_ptr(), "the slot is read");
                assert!(is_right(old) && is_right(&new));
            }
            assert!(keys.iter().all(|key| handoff.hold("mixtral", key).is_some()), "{round}");
        }
        drop(held);
        until_held(&stage, |held| held == 0).await;
        evict(&stage);
        let began = Instant::now();
        while stage.status().await["store"]["arena"]["held"] != 0 {
            assert!(began.elapsed() < SOON, "{:#}", stage.status().await["store"]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

fn evict(stage: &Stage) {
    let mut evict = tpactl();
    evict.args(["--addr", &stage.daemon.address(), "evict", "--model", "mixtral"]);
    let evicted = evict.args(["--tier", "base", "--level", "dram"]).output().expect("tpactl runs");
    assert!(evicted.status.success(), "{}", said(&evicted));
}

#[test]
fn a_daemon_that_ends_takes_no_block_along_and_says_nothing_more_by_its_directory() {
    play(async |scene| {
        let mut stage = Stage::fixture(scene, "").await;
        let keys = keys(&stage.daemon.address()).await;
        let handoff = met(&stage, &keys).await;
        let held: Vec<_> =
            keys.iter().map(|key| handoff.hold("mixtral", key).expect("it is there")).collect();
        stage.daemon.signal("KILL");
        let began = Instant::now();
        while handoff.over().is_none() {
            assert!(began.elapsed() < SOON, "its socket has ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(handoff.hold("mixtral", &keys[0]).is_none(), "another daemon may serve by now");
        assert!(held.iter().all(is_right));
        stage.restart().await;
        let next = met(&stage, &keys).await;
        let again = next.hold("mixtral", &keys[0]).expect("it is there");
        assert!(is_right(&again) && held.iter().all(is_right));
        assert_ne!(again.as_ptr(), held[0].as_ptr());
    });
}

#[test]
fn a_worker_that_names_every_slot_is_refused_and_harms_nobody() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "worker_lease_bytes = \"64KiB\"\n").await;
        let keys = keys(&stage.daemon.address()).await;
        let mut worker = Worker::welcome(&stage.socket()).await;
        assert!(worker.acquire(1, "mixtral", &keys[..1]).await);
        let Some(Message::Acquired(acquired)) = worker.hear().await else {
            unreachable!("no answer");
        };
        let directory = acquired.directory.expect("it wants directories");
        assert!(directory.cells);
        let mut sent = worker.descriptors(acquired.slabs.len() + 3);
        let cells = sent.swap_remove(acquired.slabs.len());
        let client = Client::connect(&stage.daemon.address()).await.expect("the daemon answers");
        fetch(&client, "mixtral").await.expect("all is in memory from here on");
        // Nonsense first: it is no slot, and counts for nothing.
        name(&cells, |n| u64::MAX - n);
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let acquire = handoff.acquire("mixtral", &keys[..1], AcquireOptions::default()).await;
        assert!(is_right(acquire.expect("within bounds").blocks[0].as_ref().expect("leased")));
        // Every slot of the first slabs.
        name(&cells, |n| ((1 + n / 64) << 24) | (n % 64));
        let failure = worker.refusal().await;
        assert!(failure.message.contains("handoff.worker_lease_bytes"), "{}", failure.message);
        let again = handoff.acquire("mixtral", &keys[1..2], AcquireOptions::default()).await;
        assert!(is_right(again.expect("within bounds").blocks[0].as_ref().expect("leased")));
        drop((worker, cells, sent, handoff));
        stage.free().await;
    });
}

/// Writes every cell.
fn name(cells: &OwnedFd, word: impl Fn(u64) -> u64) {
    let words: Vec<u8> = (0..4096).flat_map(|n| word(n).to_ne_bytes()).collect();
    let written = rustix::io::pwrite(cells, &words, 4096).expect("they are the worker's");
    assert_eq!(written, words.len());
}
