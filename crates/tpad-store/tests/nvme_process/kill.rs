//! kill -9, a thousand times, while blocks are filled and read.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tpad_store::{Level as _, Medium, StoreMetrics};

use crate::model::{MIB, check, metric};
use crate::{model, open, own, runtime};

const KILLS: u64 = 1000;

/// Less than the blocks take, so that files come and go.
const CAPACITY: u64 = MIB;

pub(crate) fn run() {
    let scratch = tempfile::tempdir().expect("scratch");
    let model = model();
    let origin = model.origin();
    let runtime = runtime();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (mut recovered, mut hits, mut torn) = (0, 0, 0);
    for kill in 0..KILLS {
        let mut child = own()
            .args(["fill".as_ref(), scratch.path().as_os_str(), kill.to_string().as_ref()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs itself");
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut ready).expect("readable");
        assert_eq!(ready, "filling\n", "kill {kill}: the child did not recover");
        // Not for something to happen: a kill comes at any time.
        let time = Duration::from_micros(rng.random_range(0..25_000));
        runtime.block_on(async { tokio::time::sleep(time).await });
        child.kill().expect("killed");
        let status = child.wait().expect("ended");
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(9), "kill {kill}: the child ended by itself, {status}");
        let unfinished = scratch.path().join("tpad-cache-v1/unfinished");
        torn += std::fs::read_dir(&unfinished).expect("there").count();

        runtime.block_on(async {
            let metrics = StoreMetrics::default();
            let (level, hierarchy) = open(scratch.path(), CAPACITY, &metrics);
            while level.is_scanning() {
                tokio::task::yield_now().await;
            }
            let usage = level.usage();
            assert!(usage.bytes <= usage.capacity, "kill {kill}: {usage:?}");
            let kept: Vec<_> =
                model.blocks.iter().filter(|block| level.contains(&block.fetch.id)).collect();
            assert_eq!(kept.len() as u64, usage.blocks, "kill {kill}: files of no block");
            for block in kept {
                // Compares every byte.
                assert_eq!(check(&hierarchy, &origin, block).await, Medium::Nvme, "kill {kill}");
                hits += 1;
            }
            let failures = metric(&metrics, "tpad_verify_failures_total{level=\"nvme\"}");
            assert_eq!(failures, 0, "kill {kill}: a torn file has a block's name");
            assert_eq!(std::fs::read_dir(&unfinished).expect("there").count(), 0, "kill {kill}");
            hierarchy.shutdown().await;
        });
        recovered += 1;
    }
    assert!(hits > KILLS && torn > 0, "the kills came too early: {hits} hits, {torn} torn files");
    println!("{recovered} recoveries, {hits} blocks right, {torn} unfinished files removed");
}

/// The child: reads, and so fills, until it is killed.
pub(crate) fn fill(path: &Path, seed: u64) {
    runtime().block_on(async {
        let model = Arc::new(model());
        let origin = model.origin();
        let (level, hierarchy) = open(path, CAPACITY, &StoreMetrics::default());
        while level.is_scanning() {
            tokio::task::yield_now().await;
        }
        assert_eq!(level.health(), tpad_store::Health::Ok, "it recovers");
        let tasks = (0..4).map(|task| {
            let (model, origin) = (Arc::clone(&model), Arc::clone(&origin));
            let hierarchy = Arc::clone(&hierarchy);
            tokio::spawn(async move {
                let mut rng = ChaCha8Rng::seed_from_u64(seed * 4 + task);
                loop {
                    let block = &model.blocks[rng.random_range(0..model.blocks.len())];
                    check(&hierarchy, &origin, block).await;
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        println!("filling");
        for task in tasks {
            // Wrong bytes panic there, and the parent sees an end that it did not make.
            let () = task.await.expect("right bytes");
        }
    });
}
