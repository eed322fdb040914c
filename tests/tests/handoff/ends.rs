//! Leases end with their worker, and blocks stay when the daemon ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tpad_client::{AcquireOptions, Handoff, Kind};
use tpad_tests::scene::play;
use tpad_tests::tools;

use super::stage::{Program, SOON, Stage, keys};

/// Workers that are killed one after the other. `TPAD_WORKER_KILLS` asks for more.
const KILLS: usize = 200;

#[test]
fn two_hundred_killed_workers_leave_no_lease_no_descriptor_and_no_byte() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        // The first makes what stays: slabs, and the blocks in them.
        let (worker, held) = stage.hold(&["unread"]).await;
        assert!(stage.leases().await["bytes"].as_u64() >= Some(held.bytes));
        worker.kill().await;
        stage.free().await;
        let arena = || async { stage.status().await["store"]["arena"].clone() };
        let (descriptors, before) = (stage.descriptors(), arena().await);
        let kills = std::env::var("TPAD_WORKER_KILLS").ok().and_then(|text| text.parse().ok());
        let kills = kills.unwrap_or(KILLS);
        for kill in 0..kills {
            let how = if kill % 2 == 0 { &["unread"][..] } else { &["unread", "direct"] };
            let (worker, again) = stage.hold(how).await;
            assert_eq!(again.bytes, held.bytes);
            worker.kill().await;
        }
        stage.free().await;
        assert_eq!(arena().await, before, "after {kills} kills");
        // The workers' connections over gRPC end in their own time.
        let began = Instant::now();
        while of_workers(&stage.descriptors()) > of_workers(&descriptors) {
            let after = stage.descriptors();
            assert!(began.elapsed() < SOON, "{descriptors:?}, {after:?} after {kills} kills");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let died = stage.daemon.metric("tpad_handoff_connections_total", &["died"]).await;
        let closed = stage.daemon.metric("tpad_handoff_connections_total", &["closed"]).await;
        assert!(died + closed >= f64::from(u32::try_from(kills).expect("few")), "{died} {closed}");
    });
}

/// Descriptors that the daemon has for workers. Its threads come when they are first used,
/// each runtime with an eventfd, and a socket for signals.
fn of_workers(descriptors: &BTreeMap<String, usize>) -> usize {
    let count = |kind: &str| descriptors.get(kind).copied().unwrap_or(0);
    let sockets = count("socket").saturating_sub(count("anon_inode:[eventfd]"));
    sockets + count("anon_inode:[pidfd]") + count("/memfd")
}

#[test]
fn a_child_that_keeps_the_socket_open_keeps_no_lease() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let (worker, line) = fork(&stage).await;
        let child = line.trim().strip_prefix("child ").expect("it has forked").to_owned();
        assert_eq!(stage.leases().await["workers"][0]["leases"], 1, "the parent has it");
        worker.kill().await;
        assert!(std::fs::exists(format!("/proc/{child}")).expect("asked"), "the child lives");
        stage.free().await;
        let killed = std::process::Command::new("kill").arg(&child).status().expect("kill runs");
        assert!(killed.success(), "it lived until now");
    });
}

/// A worker that shares nothing with tpad but the proto files. It holds one block and has a
/// child.
async fn fork(stage: &Stage) -> (Program, String) {
    let mut worker = Command::new(tools::tool("python"));
    worker.env("PYTHONDONTWRITEBYTECODE", "1");
    worker.arg(tools::workspace().join("tests/python/hold_block.py"));
    worker.arg(tools::workspace().join("proto")).arg(stage.socket());
    worker.args([&stage.model, "base", "fork"]);
    Program::start(worker).await
}

#[test]
fn a_daemon_that_is_killed_leaves_right_bytes_and_its_successor_takes_the_worker() {
    play(async |scene| {
        let mut stage = Stage::fixture(scene, "").await;
        let keys = keys(&stage.daemon.address()).await;
        let options = AcquireOptions::default();
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let held = handoff.acquire("mixtral", &keys, options).await.expect("within bounds").blocks;
        let held: Vec<_> = held.into_iter().map(|block| block.expect("it is leased")).collect();
        let right = || held.iter().all(|b| blake3::hash(b).as_bytes() == b.id().as_bytes());
        assert!(right());
        stage.daemon.signal("KILL");
        let lost = async {
            loop {
                match handoff.acquire("mixtral", &keys[..1], options).await {
                    Err(error) if error.kind() == Kind::Unavailable => return error.to_string(),
                    other => drop(other),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let lost = tokio::time::timeout(Duration::from_secs(20), lost).await.expect("it is gone");
        assert!(lost.contains("tpad-handoff.sock"), "{lost}");
        assert!(right(), "the daemon is dead and its memory as it was");
        stage.restart().await;
        let next = Handoff::connect(&stage.daemon.address()).await.expect("the next daemon");
        assert_ne!(next.daemon().epoch, handoff.daemon().epoch);
        let again = next.acquire("mixtral", &keys, options).await.expect("within bounds").blocks;
        for (old, new) in held.iter().zip(again) {
            let new = new.expect("it is leased");
            assert_eq!((&old[..], old.id()), (&new[..], new.id()));
            assert_ne!(old.as_ptr(), new.as_ptr());
        }
        assert!(right());
    });
}

#[test]
fn a_drain_with_live_leases_ends_in_time_and_leaves_them_readable() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let keys = keys(&stage.daemon.address()).await;
        let options = AcquireOptions::default();
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let held = handoff.acquire("mixtral", &keys, options).await.expect("within bounds").blocks;
        let Stage { daemon, .. } = stage;
        let began = Instant::now();
        daemon.signal("TERM");
        let refused = loop {
            match handoff.acquire("mixtral", &keys[..1], options).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
        let (status, log) = daemon.ended().await;
        assert!(status.success(), "{log}");
        // The deadline is two seconds.
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        for block in held {
            let block = block.expect("it is leased");
            assert_eq!(blake3::hash(&block).as_bytes(), block.id().as_bytes());
        }
    });
}

#[test]
fn a_worker_that_closes_gives_everything_back() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let (worker, held) = stage.hold(&[]).await;
        assert!(held.right && held.blocks > 0 && held.epoch != 0, "{held:?}");
        worker.finish().await;
        stage.free().await;
    });
}
