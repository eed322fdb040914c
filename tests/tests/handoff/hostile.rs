//! Peers that break the protocol or take all they can get: each is refused or bounded,
//! and another worker gets what it asks for meanwhile.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tpad_client::{AcquireOptions, Handoff};
use tpad_manifest::BlockKey;
use tpad_proto::handoff::v1::{self as wire, worker_message::Message};
use tpad_tests::scene::play;
use tpad_tests::worker::Worker;

use super::stage::{Stage, keys};

/// gRPC's INVALID_ARGUMENT, DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED.
const INVALID: u32 = 3;
const LATE: u32 = 4;
const EXHAUSTED: u32 = 8;

/// What an honest worker waits for while others misbehave.
const HONEST: Duration = Duration::from_secs(5);

#[test]
fn whoever_breaks_the_protocol_is_refused_and_harms_nobody() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let (socket, keys) = (stage.socket(), keys(&stage.daemon.address()).await);
        let silent = Worker::connect(&socket).await;
        for garbage in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[3, 0, 0, 0, 0xff, 0xff, 0xff]]
        {
            let mut worker = Worker::connect(&socket).await;
            worker.socket.write_all(garbage).await.expect("it is taken");
            assert_eq!(worker.refusal().await.code, INVALID, "{garbage:?}");
        }
        let mut unknown = Worker::connect(&socket).await;
        assert!(unknown.acquire(1, "mixtral", &keys).await);
        assert!(unknown.refusal().await.message.contains("Hello"));
        let mut twice = Worker::welcome(&socket).await;
        let hello = wire::Hello { protocol: 1, worker: "x".repeat(10_000), directories: true };
        assert!(twice.say(Message::Hello(hello)).await);
        assert!(twice.refusal().await.message.contains("second"));
        // Halves of frames, each of them as long as a frame may be.
        let mut halves = Vec::new();
        for _ in 0..50 {
            let mut half = Worker::welcome(&socket).await;
            half.socket.write_all(&(64u32 << 10).to_le_bytes()).await.expect("it is taken");
            half.socket.write_all(&[0; 1000]).await.expect("it is taken");
            halves.push(half);
        }
        // Leases and slabs of nobody are passed over.
        let mut liar = Worker::welcome(&socket).await;
        assert!(liar.say(Message::Release(wire::Release { leases: (0..5000).collect() })).await);
        assert!(
            liar.say(Message::Forgotten(wire::Forgotten {
                slabs: (0..5000).collect(),
                device_slabs: (0..5000).collect()
            }))
            .await
        );
        assert!(liar.acquire(2, "mixtral", &vec![keys[0].clone(); 300]).await);
        honest(&stage, &keys).await;
        let began = Instant::now();
        let mut silent = silent;
        assert_eq!(silent.refusal().await.code, LATE, "no hello in {:?}", began.elapsed());
        assert!(silent.hear().await.is_none(), "it is closed");
        drop((halves, liar, twice, unknown));
        stage.free().await;
    });
}

#[test]
fn a_worker_that_reads_no_answer_is_not_read_and_harms_nobody() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let keys = keys(&stage.daemon.address()).await;
        let before = stage.daemon.peak_bytes();
        let mut flood = Worker::welcome(&stage.socket()).await;
        let batch: Vec<BlockKey> = keys.iter().cycle().take(200).cloned().collect();
        let mut asked = 0;
        while asked < 20_000 && flood.acquire(asked, "mixtral", &batch).await {
            asked += 1;
        }
        assert!(asked < 20_000, "the daemon stops to read it");
        honest(&stage, &keys).await;
        let leases = stage.leases().await;
        let flooded = leases["workers"].as_array().expect("a list");
        assert!(flooded[0]["leases"].as_u64() <= Some(65_536), "{leases}");
        let grown = stage.daemon.peak_bytes() - before;
        assert!(grown < 256 << 20, "{grown} bytes after {asked} calls");
        drop(flood);
        stage.free().await;
    });
}

#[test]
fn workers_beyond_the_bound_are_told_and_the_next_is_welcome_when_one_goes() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "connections = 8\n").await;
        let mut workers = Vec::new();
        for _ in 0..8 {
            workers.push(Worker::welcome(&stage.socket()).await);
        }
        let mut ninth = Worker::connect(&stage.socket()).await;
        let failure = ninth.refusal().await;
        assert_eq!(failure.code, EXHAUSTED);
        assert!(failure.message.contains("handoff.connections"), "{}", failure.message);
        drop(workers);
        stage.free().await;
        let handoff = Handoff::connect(&stage.daemon.address()).await;
        handoff.expect("there is a place");
    });
}

/// Another worker acquires everything, in time.
async fn honest(stage: &Stage, keys: &[BlockKey]) {
    let began = Instant::now();
    let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
    let held = handoff.acquire("mixtral", keys, AcquireOptions::default()).await;
    for block in held.expect("within bounds").blocks {
        let block = block.expect("it is leased");
        assert_eq!(blake3::hash(&block).as_bytes(), block.id().as_bytes());
    }
    assert!(began.elapsed() < HONEST, "{:?}", began.elapsed());
}
