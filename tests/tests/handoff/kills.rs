//! Daemons that are killed under a worker which reads on.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tpad_tests::scene::play;

use super::stage::{Program, Stage};

/// Daemons that are killed one after the other. `TPAD_DAEMON_KILLS` asks for more.
const KILLS: usize = 10;

/// As many as `read_on` has.
const CONNECTIONS: usize = 2;

/// What a worker's connection says that it has found.
#[derive(Debug, serde::Deserialize)]
struct Attached {
    epoch: u64,
    connection: usize,
}

/// What it says at the end.
#[derive(Debug, serde::Deserialize)]
struct Left {
    read: u64,
    outlived: u64,
    descriptors: usize,
    slabs: usize,
}

#[test]
fn a_worker_reads_right_bytes_over_every_kill_of_its_daemon_and_keeps_nothing() {
    play(async |scene| {
        let kills = std::env::var("TPAD_DAEMON_KILLS").ok().and_then(|text| text.parse().ok());
        let kills = kills.unwrap_or(KILLS);
        let seed: u64 = rand::random();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut stage = Stage::scarce(scene).await;
        let mut worker = stage.read_on();
        let mut epochs = BTreeSet::from([attached(&mut worker).await]);
        for kill in 1..=kills {
            let after = Duration::from_micros(random.random_range(0..100_000));
            println!("kill {kill} after {after:?}, seed {seed}");
            let line = tokio::time::timeout(after, worker.line()).await;
            assert!(line.is_err(), "it ended, or found another daemon: {line:?}");
            stage.daemon.signal("KILL");
            stage.restart().await;
            assert!(epochs.insert(attached(&mut worker).await), "kill {kill}");
        }
        worker.end();
        let line = worker.line().await;
        let left: Left = serde_json::from_str(&line).expect("JSON");
        println!("{left:?} after {kills} kills");
        assert_eq!((left.descriptors, left.slabs), (0, 0), "{left:?}");
        let most = kills as u64;
        assert!(left.outlived >= most && left.read > left.outlived, "{left:?}");
        worker.finish().await;
        stage.free().await;
    });
}

/// The epoch of the daemon that every connection of the worker has read blocks of.
async fn attached(worker: &mut Program) -> u64 {
    let mut found = BTreeSet::new();
    let mut connections = BTreeSet::new();
    for _ in 0..CONNECTIONS {
        let line = worker.line().await;
        let Attached { epoch, connection } = serde_json::from_str(&line).expect("JSON");
        found.insert(epoch);
        connections.insert(connection);
    }
    assert_eq!(connections.len(), CONNECTIONS, "each of them once");
    assert_eq!(found.len(), 1, "there is one daemon: {found:?}");
    found.pop_first().unwrap_or_default()
}
