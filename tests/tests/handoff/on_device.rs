//! Blocks handed over in a device's memory, of the stand-in: host memory, no GPU.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tpad_client::{AcquireOptions, Client, Error, Gpu, Handoff, HeldDeviceBlock, Kind};
use tpad_cuda::StandIn;
use tpad_manifest::BlockKey;
use tpad_proto::handoff::v1::{self as wire, daemon_message, worker_message::Message};
use tpad_tests::checkpoint::{said, tpactl};
use tpad_tests::scene::play;
use tpad_tests::worker::Worker;

use super::slabs::fetch;
use super::stage::{SOON, Stage, keys};

const MIB: u64 = 1 << 20;

/// Lines of a level of so much on one device.
fn level(directory: &Path, capacity_bytes: u64) -> (PathBuf, String) {
    let machine = directory.join("gpus");
    let lines = format!("[levels.hbm]\ncapacity = \"{capacity_bytes}\"\nstand_in = {machine:?}\n");
    (machine, lines)
}

/// The device, as this process opens it.
fn gpu(machine: &Path, capacity_bytes: u64) -> Gpu {
    Gpu::on(&StandIn::on(machine, 1, 2 * capacity_bytes), "0").expect("it is there")
}

fn is_right(block: &HeldDeviceBlock) -> bool {
    let image = block.read(0..block.image_bytes()).expect("it is mapped");
    blake3::hash(&image).as_bytes() == block.id().as_bytes()
}

async fn hold(handoff: &Handoff, gpu: &Gpu, keys: &[BlockKey]) -> Vec<HeldDeviceBlock> {
    let acquired = handoff.acquire_on(gpu, "mixtral", keys, AcquireOptions::default()).await;
    let blocks = acquired.expect("the device is there").blocks;
    blocks.into_iter().map(|block| block.expect("there is room")).collect()
}

/// Waits until the only worker has so many leases: it tells late of those that are over.
async fn leases_come_to(stage: &Stage, leases: usize) -> serde_json::Value {
    let began = Instant::now();
    loop {
        let worker = stage.status().await["leases"]["workers"][0].clone();
        if worker["leases"] == leases {
            return worker;
        }
        assert!(began.elapsed() < SOON, "{worker:#}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn every_expert_is_read_on_a_device_to_the_byte_and_given_back() {
    play(async |scene| {
        let (machine, lines) = level(scene.directory(), 32 * MIB);
        let stage = Stage::fixture(scene, &lines).await;
        let keys = keys(&stage.daemon.address()).await;
        let gpu = gpu(&machine, 32 * MIB);
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        assert_eq!(handoff.devices(), [gpu.uuid()]);
        let held = hold(&handoff, &gpu, &keys).await;
        let host = handoff.acquire("mixtral", &keys, AcquireOptions::default()).await;
        for (block, host) in held.iter().zip(host.expect("within bounds").blocks) {
            let host = host.expect("it is leased");
            assert_eq!((block.key(), block.id()), (host.key(), host.id()));
            assert!(block.read(0..block.image_bytes()).expect("it is mapped") == *host);
            for (tensor, expected) in block.tensors().zip(host.tensors()) {
                assert_eq!(
                    (tensor.name, tensor.bytes),
                    (expected.name, expected.bytes.len() as u64)
                );
                assert_eq!(tensor.address % 256, 0);
            }
        }
        let status = stage.status().await;
        assert_eq!(status["hbm"]["mode"], "stand_in");
        assert_eq!(status["hbm"]["devices"][0]["blocks"], keys.len());
        let worker = leases_come_to(&stage, keys.len()).await;
        assert!(worker["device_bytes"].as_u64() > Some(0));
        let shown = tpactl().args(["--addr", &stage.daemon.address(), "status"]).output();
        let shown = said(&shown.expect("tpactl runs"));
        assert!(shown.contains("hbm 0") && shown.contains("stand_in"), "{shown}");

        // Evicted, they are there as long as they are held.
        let mut evict = tpactl();
        evict.args(["--addr", &stage.daemon.address(), "evict", "--model", "mixtral"]);
        let evicted = evict.args(["--tier", "base", "--level", "hbm"]).output().expect("it runs");
        assert!(said(&evicted).contains(&format!("{} blocks", keys.len())), "{}", said(&evicted));
        assert!(held.iter().all(is_right));
        // Who has not leased them gets them anew, beside those.
        let other = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let again = hold(&other, &gpu, &keys[..4]).await;
        assert!(again.iter().all(is_right));
        let device = stage.status().await["hbm"]["devices"][0].clone();
        assert_eq!(device["blocks"], 4, "{device}");
        assert!(device["held_bytes"].as_u64() > device["kept_bytes"].as_u64(), "{device}");
        drop((held, again, handoff, other));
        stage.free().await;
        let began = Instant::now();
        while stage.status().await["hbm"]["devices"][0]["held_bytes"]
            != stage.status().await["hbm"]["devices"][0]["kept_bytes"]
        {
            assert!(began.elapsed() < SOON, "{:#}", stage.status().await["hbm"]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_block_on_a_device_is_found_and_held_without_a_message() {
    play(async |scene| {
        let (machine, lines) = level(scene.directory(), 32 * MIB);
        let stage = Stage::fixture(scene, &lines).await;
        let keys = keys(&stage.daemon.address()).await;
        let gpu = gpu(&machine, 32 * MIB);
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let find = |key| handoff.hold_on(&gpu, "mixtral", key);
        assert!(find(&keys[0]).is_none(), "it was not acquired yet");
        let leased = hold(&handoff, &gpu, &keys).await;
        assert!(handoff.hold("mixtral", &keys[0]).is_none(), "host memory is another");
        let held: Vec<HeldDeviceBlock> =
            keys.iter().map(|key| find(key).expect("it lies there")).collect();
        for (held, leased) in held.iter().zip(&leased) {
            assert_eq!((held.key(), held.address()), (leased.key(), leased.address()));
        }
        drop(leased);
        gpu.drain();
        let worker = leases_come_to(&stage, 0).await;
        let bytes = worker["device_bytes"].as_u64().expect("a number");
        assert!(bytes >= held.iter().map(|block| block.image_bytes() as u64).sum(), "{worker}");

        // Evicted, they are there as long as they are held, and nobody finds them.
        let mut evict = tpactl();
        evict.args(["--addr", &stage.daemon.address(), "evict", "--model", "mixtral"]);
        let evicted = evict.args(["--tier", "base", "--level", "hbm"]).output().expect("it runs");
        assert!(said(&evicted).contains(&format!("{} blocks", keys.len())), "{}", said(&evicted));
        assert!(keys.iter().all(|key| find(key).is_none()));
        let again = hold(&handoff, &gpu, &keys).await;
        assert!(held.iter().chain(&again).all(is_right));
        assert!(held.iter().zip(&again).all(|(one, two)| one.address() != two.address()));
        stage.daemon.signal("KILL");
        assert!(held.iter().chain(&again).all(is_right), "what is held can be read to the end");
        drop((held, again));
        gpu.drain();
    });
}

#[test]
fn what_a_worker_expects_comes_to_the_device_without_a_lease() {
    play(async |scene| {
        let (machine, lines) = level(scene.directory(), 32 * MIB);
        let stage = Stage::fixture(scene, &lines).await;
        let keys = keys(&stage.daemon.address()).await;
        let gpu = gpu(&machine, 32 * MIB);
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let mut absent = keys[0].clone();
        if let BlockKey::Expert { layer, .. } = &mut absent {
            *layer = 999;
        }
        handoff.expect_on(&gpu, "mixtral", &[&[absent], &keys[..4]].concat());
        let began = Instant::now();
        loop {
            let status = stage.status().await;
            if status["hbm"]["devices"][0]["blocks"] == 4 {
                assert_eq!(status["leases"]["workers"][0]["leases"], 0, "{status:#}");
                break;
            }
            assert!(began.elapsed() < SOON, "{:#}", status["hbm"]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let held = hold(&handoff, &gpu, &keys[..4]).await;
        assert!(held.iter().all(is_right));
        drop(held);
        gpu.drain();
    });
}

#[test]
fn what_is_acquired_while_it_was_expected_is_copied_once_whatever_is_expected_next() {
    play(async |scene| {
        let (machine, lines) = level(scene.directory(), 32 * MIB);
        let stage = Stage::fixture(scene, &lines).await;
        let keys = keys(&stage.daemon.address()).await;
        let gpu = gpu(&machine, 32 * MIB);
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let turns: Vec<&[BlockKey]> = keys.chunks(2).collect();
        for turn in turns.windows(2) {
            handoff.expect_on(&gpu, "mixtral", turn[0]);
            let acquired = hold(&handoff, &gpu, turn[0]);
            // Said after the call, and before its answer is read.
            let next = async { handoff.expect_on(&gpu, "mixtral", turn[1]) };
            let (held, ()) = tokio::join!(acquired, next);
            assert!(held.iter().all(is_right));
        }
        let held = hold(&handoff, &gpu, &keys).await;
        assert!(held.iter().all(is_right));
        // Whatever became of them: a copy that is given up and begun again is two.
        let fills = stage.daemon.metric("tpad_hbm_fills_total", &[]).await;
        let each_once = f64::from(u32::try_from(keys.len()).expect("few"));
        assert!((fills - each_once).abs() < f64::EPSILON, "{fills} fills of {each_once} blocks");
        drop(held);
        gpu.drain();
    });
}

#[test]
fn an_expectation_that_makes_no_sense_is_passed_over() {
    play(async |scene| {
        let (machine, lines) = level(scene.directory(), 32 * MIB);
        let stage = Stage::fixture(scene, &lines).await;
        let keys = keys(&stage.daemon.address()).await;
        let device = gpu(&machine, 32 * MIB).uuid().to_owned();
        let named = keys[..2].iter().map(Into::into).collect();
        let right =
            wire::Expect { model: "mixtral".to_owned(), generation: 0, keys: named, device };
        let nothing = tpad_proto::v1::BlockKey::default();
        let too_many = vec![right.keys[0].clone(); 257];
        let mut worker = Worker::welcome(&stage.socket()).await;
        for wrong in [
            wire::Expect { model: "another".to_owned(), ..right.clone() },
            wire::Expect { generation: 99, ..right.clone() },
            wire::Expect { device: "GPU-77".to_owned(), ..right.clone() },
            wire::Expect { device: String::new(), ..right.clone() },
            wire::Expect { keys: vec![nothing], ..right.clone() },
            wire::Expect { keys: too_many, ..right },
        ] {
            assert!(worker.say(Message::Expect(wrong)).await);
        }
        worker.acquire(7, "mixtral", &keys[..1]).await;
        let answer = worker.hear().await;
        let Some(daemon_message::Message::Acquired(acquired)) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!((acquired.call, acquired.failure), (7, None));
        assert_eq!(stage.status().await["hbm"]["devices"][0]["blocks"], 0);
    });
}

#[test]
fn a_cell_is_cleared_when_the_work_that_was_launched_under_it_is_done() {
    play(async |scene| {
        let (machine, lines) = level(scene.directory(), 32 * MIB);
        let stage = Stage::fixture(scene, &lines).await;
        let keys = keys(&stage.daemon.address()).await;
        let gpu = gpu(&machine, 32 * MIB);
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        drop(hold(&handoff, &gpu, &keys[..1]).await);
        gpu.drain();
        leases_come_to(&stage, 0).await;
        let block = handoff.hold_on(&gpu, "mixtral", &keys[0]).expect("it lies there");
        let (memory, offset) = block.memory();
        let bytes = block.image_bytes() as u64 / 8 * 8;
        let delay = Duration::from_millis(600);
        let late = gpu.device().read_late(memory, offset, bytes, delay).expect("it begins");
        drop(block);
        let named = stage.status().await["leases"]["workers"][0]["device_bytes"].clone();
        assert!(!late.is_done().expect("it runs"), "too slow to show anything");
        assert!(named.as_u64() > Some(0), "the slot may be written while it is read");
        let began = Instant::now();
        while stage.status().await["leases"]["workers"][0]["device_bytes"] != 0 {
            assert!(began.elapsed() < SOON, "{:#}", stage.status().await["leases"]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(late.is_done().expect("it ran"), "it was cleared before");
    });
}

#[test]
fn slabs_of_a_device_go_back_when_another_size_needs_their_memory() {
    play(async |scene| {
        // Eight slabs of the least size.
        let (machine, lines) = level(scene.directory(), 16 * MIB);
        let others = ["gpt_oss", "qwen3_moe", "deepseek_v3"];
        let stage = Stage::crowded_with(scene, &others, &lines).await;
        let gpu = gpu(&machine, 16 * MIB);
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let client = Client::connect(&stage.daemon.address()).await.expect("the daemon answers");
        for round in 0..3 {
            for model in ["mixtral"].iter().chain(&others) {
                let keys = tpad_tests::worker::experts(&stage.daemon.address(), model).await;
                for keys in keys.chunks(4) {
                    let options = AcquireOptions::default();
                    let acquired = handoff.acquire_on(&gpu, model, keys, options).await;
                    for block in acquired.expect("the device is there").blocks {
                        let block = block.unwrap_or_else(|error| panic!("{round}: {error}"));
                        assert!(is_right(&block), "{model} in round {round}");
                    }
                }
            }
        }
        fetch(&client, "gpt_oss").await.expect("host memory is as before");
        drop(handoff);
        stage.free().await;
    });
}

#[test]
fn a_device_that_the_daemon_has_not_is_refused_by_its_name_and_host_memory_serves() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let keys = keys(&stage.daemon.address()).await;
        let gpu = gpu(&scene.directory().join("gpus"), 32 * MIB);
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        assert!(handoff.devices().is_empty());
        let none = handoff.acquire_on(&gpu, "mixtral", &keys, AcquireOptions::default()).await;
        let error = none.expect_err("it hands over none");
        assert!(matches!(error, Error::NotHandedOver { .. }), "{error}");
        assert!(error.to_string().contains(gpu.uuid()), "{error}");
        let host = handoff.acquire("mixtral", &keys, AcquireOptions::default()).await;
        assert!(host.expect("within bounds").blocks.iter().all(Result::is_ok));
        let status = stage.status().await;
        assert!(status["hbm"]["mode"]["off"]["reason"].is_string(), "{}", status["hbm"]);
    });
}

#[test]
fn a_daemon_that_is_killed_leaves_right_bytes_on_the_device() {
    play(async |scene| {
        let (machine, lines) = level(scene.directory(), 32 * MIB);
        let mut stage = Stage::fixture(scene, &lines).await;
        let keys = keys(&stage.daemon.address()).await;
        let gpu = gpu(&machine, 32 * MIB);
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let held = hold(&handoff, &gpu, &keys).await;
        stage.daemon.signal("KILL");
        let began = Instant::now();
        while handoff.over().is_none() {
            assert!(began.elapsed() < SOON, "its socket has ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(held.iter().all(is_right));
        let lost = handoff.acquire_on(&gpu, "mixtral", &keys, AcquireOptions::default()).await;
        assert_eq!(lost.expect_err("it is gone").kind(), Kind::Unavailable);
        stage.restart().await;
        let next = Handoff::connect(&stage.daemon.address()).await.expect("the next daemon");
        let again = hold(&next, &gpu, &keys).await;
        assert!(held.iter().chain(&again).all(is_right));
        assert!(held.iter().zip(&again).all(|(old, new)| old.address() != new.address()));
    });
}
