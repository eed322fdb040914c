//! A worker that reads on, whatever becomes of its daemon: two connections, each of which
//! acquires experts, holds some for a while, and connects again when its daemon is gone.
//! Every byte of every block that it holds, also of those that it had of a daemon which is
//! dead, is compared with the checkpoint each time that it has acquired something.
//!
//! Prints a line of JSON when a connection has read its first blocks of another daemon. When
//! its standard input ends it lets go of everything and prints what it did, and what is left
//! in it.
//!
//! usage: `read_on ADDRESS MODEL CHECKPOINT`

#![expect(clippy::print_stdout, reason = "it tells who started it what it has read")]

use std::collections::VecDeque;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokio::task::JoinSet;
use tpad_client::{AcquireOptions, Error, Handoff, HeldBlock, Kind};
use tpad_manifest::BlockKey;
use tpad_tests::reference::Reference;
use tpad_tests::worker::{experts, slabs};

/// Connections, each with a task of its own.
const CONNECTIONS: u64 = 2;

/// What a connection holds at a time.
const HELD: usize = 2;

/// Blocks of a daemon that is dead are held until the next one has answered so often.
const OUTLIVED: u64 = 20;

/// From a failed attempt to the next.
const PAUSE: Duration = Duration::from_millis(1);

/// Until what is closed is gone: tasks end in their own time.
const SOON: Duration = Duration::from_secs(10);

/// What is read, and with what it is compared.
struct Work {
    address: String,
    model: String,
    keys: Vec<BlockKey>,
    reference: Reference,
    stop: AtomicBool,
    /// Blocks that were compared, and those among them that a dead daemon had handed over.
    read: AtomicU64,
    outlived: AtomicU64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, model, checkpoint] = &arguments[..] else {
        unreachable!("usage: read_on ADDRESS MODEL CHECKPOINT");
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let before = descriptors();
        let work = Arc::new(Work {
            address: address.clone(),
            model: model.clone(),
            keys: experts(address, model).await,
            reference: Reference::read(Path::new(checkpoint)),
            stop: AtomicBool::new(false),
            read: AtomicU64::new(0),
            outlived: AtomicU64::new(0),
        });
        let mut connections = JoinSet::new();
        for n in 0..CONNECTIONS {
            connections.spawn(read_on(Arc::clone(&work), n));
        }
        let input = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        tokio::select! {
            ended = input => drop(ended),
            Some(failed) = connections.join_next() => unreachable!("{failed:?}"),
        }
        work.stop.store(true, Ordering::Relaxed);
        connections.join_all().await;
        let began = Instant::now();
        while (descriptors() > before || !slabs().is_empty()) && began.elapsed() < SOON {
            tokio::time::sleep(PAUSE).await;
        }
        println!(
            "{}",
            json!({
                "read": work.read.load(Ordering::Relaxed),
                "outlived": work.outlived.load(Ordering::Relaxed),
                "descriptors": descriptors().saturating_sub(before),
                "slabs": slabs().len(),
            })
        );
    });
}

/// One connection after the other.
async fn read_on(work: Arc<Work>, n: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(n);
    let (mut outlived, mut epoch) = (Vec::new(), 0);
    while !work.stop.load(Ordering::Relaxed) {
        work.check_outlived(&outlived);
        let Ok(handoff) = Handoff::connect(&work.address).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (mut held, mut answers) = (VecDeque::new(), 0);
        while !work.stop.load(Ordering::Relaxed) {
            match work.acquire(&handoff, &mut random).await {
                Ok(blocks) => held.extend(blocks),
                Err(_) if handoff.over().is_some() => break,
                // All leases are the other one's, or the daemon has only just begun.
                Err(error) => {
                    let later = [Kind::ResourceExhausted, Kind::Unavailable];
                    assert!(later.contains(&error.kind()), "{error}");
                    held.clear();
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            held.iter().for_each(|block| work.check(block));
            work.check_outlived(&outlived);
            held.drain(..held.len().saturating_sub(HELD));
            answers += 1;
            if answers == OUTLIVED {
                outlived.clear();
            }
            if epoch != handoff.daemon().epoch {
                epoch = handoff.daemon().epoch;
                println!("{}", json!({ "epoch": epoch, "connection": n }));
            }
        }
        outlived.extend(held);
    }
}

impl Work {
    async fn acquire(
        &self,
        handoff: &Handoff,
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<HeldBlock>, Error> {
        let one =
            |random: &mut ChaCha8Rng| self.keys[random.random_range(0..self.keys.len())].clone();
        let keys: Vec<BlockKey> = (0..random.random_range(1..=2)).map(|_| one(random)).collect();
        let acquired = handoff.acquire(&self.model, &keys, AcquireOptions::default()).await?;
        let blocks: Vec<HeldBlock> = acquired.blocks.into_iter().collect::<Result<_, _>>()?;
        assert!(blocks.iter().map(HeldBlock::key).eq(&keys), "other blocks than were asked for");
        Ok(blocks)
    }

    fn check_outlived(&self, outlived: &[HeldBlock]) {
        outlived.iter().for_each(|block| self.check(block));
        self.outlived.fetch_add(outlived.len() as u64, Ordering::Relaxed);
    }

    /// Compares every byte.
    fn check(&self, block: &HeldBlock) {
        let BlockKey::Expert { layer, .. } = block.key() else { unreachable!("{block:?}") };
        let source = block.source().expect("an expert has one").expert;
        let originals = &self.reference.experts[&(*layer, source)];
        assert_eq!(block.tensors().len(), originals.len(), "{block:?}");
        for tensor in block.tensors() {
            let right = tensor.bytes == originals[tensor.name].bytes;
            assert!(right, "{} of {block:?} is not what it was", tensor.name);
        }
        self.read.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many descriptors this process has.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the kernel lists them").count()
}
